"""One call on its way: what the pool submits, the backend runs, and the dispatcher keeps count of."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .exceptions import AioPoolError
from .sharing import CallPayload

__all__ = [
    "CANCELLED", "ENDED", "NEW", "RUNS", "SENT", "STOPPING", "STOP_GRACE", "WAITING",
    "Call", "CallKind", "CallPhase", "Cancelled", "Limits", "MaybeCoroutine", "Outcome",
    "Pace", "Reply", "ids",
]  # fmt: skip

T = TypeVar("T")

MaybeCoroutine: TypeAlias = Coroutine[Any, Any, T] | T
"""What a function returns whose call has a value: that, or what gives it when it is awaited."""

ids: itertools.count[int] = itertools.count(1)
"""What names calls and shares on the wire."""


STOP_GRACE = 1.0
"""Seconds that what runs on a worker's loop has to stop where `cancel_grace` is 0: its worker may have others."""


class CallKind(enum.Enum):
    """What a call is, and so how a worker runs it."""

    FUNCTION = "function"
    """It has its worker for itself."""
    COROUTINE = "coroutine"
    """It shares its worker with other coroutines and async generators, on the worker's loop."""
    GENERATOR = "generator"
    """It yields values, each when it is asked for; it has its worker for itself."""
    ASYNC_GENERATOR = "async generator"
    """It yields values, and shares its worker as a coroutine does."""


SHARING = (CallKind.COROUTINE, CallKind.ASYNC_GENERATOR)
"""What may run beside others."""

YIELDING = (CallKind.GENERATOR, CallKind.ASYNC_GENERATOR)
"""What has values, not one value."""


class CallPhase(enum.Enum):
    """Where a call stands. It ends exactly once."""

    NEW = "new"
    WAITING = "waiting"
    SENT = "sent"
    """In its worker's channel, behind what runs there."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Its end is decided after it was sent; it comes when the worker is gone, has stopped it, or has given it back."""
    ENDED = "ended"


NEW, WAITING, SENT = CallPhase.NEW, CallPhase.WAITING, CallPhase.SENT
RUNS, STOPPING, ENDED = CallPhase.RUNNING, CallPhase.STOPPING, CallPhase.ENDED
"""Those that calls go through have names of their own: a member of an enumeration takes longer to look up."""


@dataclasses.dataclass(slots=True)  # each call has one, and it takes less time to make than one that is frozen
class Reply:
    """What a worker answered.

    Attributes:
        failed: whether the payload is a failure.
        payload: the value or the failure, still pickled.
        buffers: what the pickle left outside.
        seconds: how long the worker was busy with the call.
    """

    failed: bool
    payload: bytes | memoryview
    buffers: Sequence[memoryview] = ()
    seconds: float = 0.0


class Pace:
    """How long calls of one function take, as far as has been seen.

    Attributes:
        seconds: for one call of the function; infinite before the first has ended.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float = math.inf

    def learn(self, seconds: float) -> None:
        """Take a call into account: the latest ones count most."""
        if self.seconds == math.inf:
            self.seconds = seconds
        else:
            self.seconds += (seconds - self.seconds) / LATEST


LATEST = 4
"""The last so many calls of a function make up most of its pace."""


class Cancelled(enum.Enum):
    """The outcome of a call that was cancelled."""

    CANCELLED = "cancelled"


CANCELLED = Cancelled.CANCELLED

Outcome = Reply | AioPoolError | Cancelled


class Limits(NamedTuple):
    """How far a call may go.

    Attributes:
        timeout: seconds that it may run, counted from its start in the worker, or None.
        retries: how often it is run again when its worker dies under it.
    """

    timeout: float | None = None
    retries: int = 0


class Call:
    """One call of a function, or of a chunk of items, as it travels.

    Attributes:
        id: names it on the wire; unique in this process.
        name: the user's function's name, for errors.
        payload: the pickled function and arguments; emptied when the call ends.
        weight: how many calls of the user's function it holds.
        limits: how long it may run, and how often it is tried again.
        pace: how long the function has taken so far.
        automatic: whether its chunk size was our choice, so that it must not exceed what a worker has left.
        finish: called once, with the outcome, from the event loop.
        phase: kept by the dispatcher.
        progress: called with what the call reports, pickled, and its buffers; None if nobody wants to know.
        submitted: when the backend took it.
        kind: what it is.
        shares: whether it may run beside others in its worker.
        window: how many values its worker may send before the first is taken, if it yields any; else 0.
        take: called with each value that it yields, pickled, or None if that has been lost, and its buffers; None if it
            yields none.
        loading: whether it is too large for one packet, and its worker may not have read all of it; kept by the
            dispatcher.
        since: when it began, as far as can be known; kept by the dispatcher.
        cost: how many seconds it was expected to take when it was sent; kept by the dispatcher.
        tries: how many workers have died under it before its end was decided; kept by the dispatcher.
        verdict: the outcome that was decided while it ran; kept by the dispatcher.
    """

    __slots__ = (
        "automatic",
        "cost",
        "finish",
        "id",
        "kind",
        "limits",
        "loading",
        "name",
        "pace",
        "payload",
        "phase",
        "progress",
        "shares",
        "since",
        "submitted",
        "take",
        "tries",
        "verdict",
        "weight",
        "window",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        payload: CallPayload,
        finish: Callable[[Outcome], None],
        limits: Limits = Limits(),  # noqa: B008 - immutable
        pace: Pace | None = None,
        *,
        weight: int = 1,
        automatic: bool = False,
        id_: int | None = None,
        kind: CallKind = CallKind.FUNCTION,
    ) -> None:
        self.id: int = next(ids) if id_ is None else id_
        self.name: str = name
        self.payload: CallPayload = payload
        self.finish: Callable[[Outcome], None] = finish
        self.weight: int = weight
        self.automatic: bool = automatic
        self.limits: Limits = limits
        small = isinstance(payload, bytes)  # what is large is never quick
        self.pace: Pace = pace if pace is not None and small else Pace()
        self.progress: Callable[[bytes | memoryview, Sequence[memoryview]], None] | None = None
        self.kind: CallKind = kind
        self.shares: bool = kind in SHARING
        self.window: int = 0
        self.take: Callable[[bytes | memoryview | None, Sequence[memoryview]], None] | None = None
        self.submitted: float = 0.0
        self.loading: bool = False
        self.since: float = 0.0
        self.cost: float = 0.0
        self.phase: CallPhase = NEW
        self.tries: int = 0
        self.verdict: Outcome | None = None

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.name} {self.phase.value}>"
