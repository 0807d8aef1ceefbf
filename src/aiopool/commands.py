"""What the dispatcher tells the shell around it to do.

Each call takes two of these, so they are what is made in the least time: no tuples, and not frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from .calls import Call, Outcome
from .recycling import RecycleReason

__all__ = ["Command", "Dismiss", "Finish", "Interrupt", "Kill", "Recall", "Send", "Spawn"]


@dataclass(slots=True)
class Spawn:
    """Start a process for this worker."""

    worker: int
    seat: int


@dataclass(slots=True)
class Send:
    """Write this call to this worker."""

    worker: int
    call: Call


@dataclass(slots=True)
class Recall:
    """Take back what this worker has not read, then report `Dispatcher.recalled`.

    A worker reads a call only when it has a place for it. So what does not come back has begun, and if that is more
    than the worker runs at once, the answers to those too many are on their way.
    """

    worker: int


@dataclass(slots=True)
class Interrupt:
    """Have this worker raise an exception within this call, if it still runs it."""

    worker: int
    call: Call


@dataclass(slots=True)
class Dismiss:
    """Tell this worker, which has nothing in hand, to leave by itself.

    The reason is why another takes its place, or None if none does.
    """

    worker: int
    reason: RecycleReason | None = None


@dataclass(slots=True)
class Kill:
    """Kill this worker and everything that it started."""

    worker: int


@dataclass(slots=True)
class Finish:
    """Hand the outcome to whoever made the call."""

    call: Call
    outcome: Outcome


Command = Spawn | Send | Recall | Interrupt | Dismiss | Kill | Finish
