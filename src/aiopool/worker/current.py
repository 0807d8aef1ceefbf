"""What a job can learn of the worker that it runs in."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["CurrentWorker", "begin", "count_call", "current_worker"]


class CurrentWorker(NamedTuple):
    """The worker that this code runs in.

    Attributes:
        seat: its place in the pool, from 0. Its successor will have the same, so it can stand for a GPU or a core.
        pid: its process id.
        calls: how many calls it has answered before this one; a chunk of a map or an imap is one.
    """

    seat: int
    pid: int
    calls: int


class _State:
    seat: int | None = None
    pid = 0
    calls = 0


_state = _State()


def begin(seat: int) -> None:
    """From now on this process is a worker."""
    _state.seat, _state.pid, _state.calls = seat, os.getpid(), 0


def count_call() -> None:
    """One more call is answered."""
    _state.calls += 1


def current_worker() -> CurrentWorker | None:
    """Return the worker that this code runs in; None elsewhere: in the parent, or in a process that a job started."""
    if _state.seat is None or _state.pid != os.getpid():
        return None
    return CurrentWorker(_state.seat, _state.pid, _state.calls)
