"""One call on its way: what the pool submits, the backend runs, and the dispatcher keeps count of."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable

from .exceptions import AioPoolError

__all__ = ["CANCELLED", "Call", "CallPhase", "Cancelled", "Outcome", "Reply"]

_ids = itertools.count(1)


class CallPhase(enum.Enum):
    """Where a call stands. It ends exactly once."""

    NEW = "new"
    WAITING = "waiting"
    SENT = "sent"
    """In its worker's channel, behind a call that runs."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Cancelled after it was sent; ends when its worker is gone or has given it back."""
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


class Call:
    """One call of a function, or of a chunk of items, as it travels.

    Attributes:
        id: names it on the wire; unique in this process.
        name: the user's function's name, for errors.
        payload: the pickled function and arguments, in buffers; emptied when the call ends.
        weight: how many calls of the user's function it holds.
        automatic: whether its chunk size was our choice, so that it must not exceed what a worker has left.
        finish: called once, with the outcome, from the event loop.
        phase: kept by the dispatcher.
    """

    __slots__ = ("automatic", "finish", "id", "name", "payload", "phase", "weight")

    def __init__(
        self,
        name: str,
        payload: list[bytes],
        finish: Callable[[Outcome], None],
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
        self.phase = CallPhase.NEW

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.name} {self.phase.value}>"
