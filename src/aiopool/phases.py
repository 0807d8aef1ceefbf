"""Where a worker and a pool may stand, and which moves there are: the tables that the dispatcher obeys."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

__all__ = [
    "BUSY", "IDLE", "KILLED", "POOL_MOVES", "RETIRING", "RUNNING", "WORKER_MOVES", "PoolPhase", "WorkerPhase",
]  # fmt: skip


class WorkerPhase(enum.Enum):
    """Where a worker stands."""

    if not TYPE_CHECKING:  # for which it stays what it is
        __hash__ = object.__hash__  # each call takes two moves; what an enumeration has is slower, and says the same

    STARTING = "starting"
    """Its process is being started, or runs its initializer."""
    IDLE = "idle"
    """Ready, with nothing in hand."""
    BUSY = "busy"
    """Has calls: the first of them runs, or as many coroutines as there may be at once."""
    RETIRING = "retiring"
    """Running its last calls, if none of them is taken back; a successor is on the way, unless its seat is no more."""
    LEAVING = "leaving"
    """Told to leave; nothing in hand."""
    KILLED = "killed"
    """Its process is not reaped yet."""
    GONE = "gone"
    """Its process is reaped."""


IDLE, BUSY, RETIRING, KILLED = WorkerPhase.IDLE, WorkerPhase.BUSY, WorkerPhase.RETIRING, WorkerPhase.KILLED
"""What each call needs has a name of its own: a member of an enumeration takes longer to look up."""

_W = WorkerPhase
WORKER_MOVES: dict[WorkerPhase, frozenset[WorkerPhase]] = {
    _W.STARTING: frozenset({_W.IDLE, _W.LEAVING, _W.KILLED, _W.GONE}),
    _W.IDLE: frozenset({_W.BUSY, _W.RETIRING, _W.LEAVING, _W.KILLED, _W.GONE}),
    _W.BUSY: frozenset({_W.IDLE, _W.RETIRING, _W.LEAVING, _W.KILLED, _W.GONE}),
    _W.RETIRING: frozenset({_W.BUSY, _W.LEAVING, _W.KILLED, _W.GONE}),
    _W.LEAVING: frozenset({_W.KILLED, _W.GONE}),
    _W.KILLED: frozenset({_W.GONE}),
    _W.GONE: frozenset(),
}


class PoolPhase(enum.Enum):
    """Where the pool stands."""

    NEW = "new"
    """Not started."""
    STARTING = "starting"
    """Its first workers become ready; no call is taken yet."""
    RUNNING = "running"
    """Calls are taken."""
    BROKEN = "broken"
    """Replacements kept dying. Calls that run may finish; no other is taken."""
    CLOSING = "closing"
    """Accepted calls finish; no other is taken."""
    TERMINATING = "terminating"
    """Every call has failed; the workers are killed, and not all of them reaped."""
    CLOSED = "closed"
    """No worker and no call is left."""


RUNNING = PoolPhase.RUNNING
"""As with workers."""

_P = PoolPhase
POOL_MOVES: dict[PoolPhase, frozenset[PoolPhase]] = {
    _P.NEW: frozenset({_P.STARTING, _P.CLOSED}),
    _P.STARTING: frozenset({_P.RUNNING, _P.CLOSING, _P.TERMINATING}),
    _P.RUNNING: frozenset({_P.BROKEN, _P.CLOSING, _P.TERMINATING}),
    _P.BROKEN: frozenset({_P.CLOSING, _P.TERMINATING}),
    _P.CLOSING: frozenset({_P.TERMINATING, _P.CLOSED}),
    _P.TERMINATING: frozenset({_P.CLOSED}),
    _P.CLOSED: frozenset(),
}
