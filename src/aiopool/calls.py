"""One call on its way: what the pool submits, the backend runs, and the dispatcher keeps count of."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable
from typing import NamedTuple

from .exceptions import AioPoolError

__all__ = ["CANCELLED", "Call", "CallPhase", "Cancelled", "Limits", "Outcome", "Reply"]

_ids = itertools.count(1)


class CallPhase(enum.Enum):
    """Where a call stands. It ends exactly once."""

    NEW = "new"
    WAITING = "waiting"
    SENT = "sent"
    """In its worker's channel, behind a call that runs."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Its end is decided after it was sent; it comes when the worker is gone, has stopped it, or has given it back."""
    ENDED = "ended"


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answered; the payload is still pickled."""

    failed: bool
    payload: bytes | bytearray


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
        payload: the pickled function and arguments, in buffers; emptied when the call ends.
        weight: how many calls of the user's function it holds.
        limits: how long it may run, and how often it is tried again.
        automatic: whether its chunk size was our choice, so that it must not exceed what a worker has left.
        finish: called once, with the outcome, from the event loop.
        phase: kept by the dispatcher.
        tries: how many workers have died under it; kept by the dispatcher.
        verdict: the outcome that was decided while it ran; kept by the dispatcher.
    """

    __slots__ = (
        "automatic",
        "finish",
        "id",
        "limits",
        "name",
        "payload",
        "phase",
        "tries",
        "verdict",
        "weight",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        payload: list[bytes],
        finish: Callable[[Outcome], None],
        limits: Limits = Limits(),  # noqa: B008 - immutable
        *,
        weight: int = 1,
        automatic: bool = False,
    ) -> None:
        self.id = next(_ids)
        self.name = name
        self.payload = payload
        self.finish = finish
        self.weight = weight
        self.automatic = automatic
        self.limits = limits
        self.phase = CallPhase.NEW
        self.tries = 0
        self.verdict: Outcome | None = None

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.name} {self.phase.value}>"
