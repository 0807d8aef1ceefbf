"""What the dispatcher tells the shell around it to do."""

from __future__ import annotations

from typing import NamedTuple

from .calls import Call, Outcome
from .recycling import RecycleReason

__all__ = ["Command", "Dismiss", "Finish", "Interrupt", "Kill", "Recall", "Send", "Spawn"]


class Spawn(NamedTuple):
    """Start a process for this worker."""

    worker: int
    seat: int


class Send(NamedTuple):
    """Write this call to this worker."""

    worker: int
    call: Call


class Recall(NamedTuple):
    """Take back what this worker has not read, then report `Dispatcher.recalled`.

    A worker reads a call only when it has a place for it. So what does not come back has begun, and if that is more
    than the worker runs at once, the answers to those too many are on their way.
    """

    worker: int


class Interrupt(NamedTuple):
    """Have this worker raise an exception within this call, if it still runs it."""

    worker: int
    call: Call


class Dismiss(NamedTuple):
    """Tell this worker, which has nothing in hand, to leave by itself.

    The reason is why another takes its place, or None if none does.
    """

    worker: int
    reason: RecycleReason | None = None


class Kill(NamedTuple):
    """Kill this worker and everything that it started."""

    worker: int


class Finish(NamedTuple):
    """Hand the outcome to whoever made the call."""

    call: Call
    outcome: Outcome


Command = Spawn | Send | Recall | Interrupt | Dismiss | Kill | Finish
