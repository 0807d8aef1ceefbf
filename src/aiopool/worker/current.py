"""What a job can learn of the worker that it runs in, and tell through it."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from .. import wire
from ..parcels import wrap
from ..pickling import Pickling
from .control import Control
from .outlet import Outlet

__all__ = ["CurrentWorker", "begin", "count_call", "current_worker", "report"]


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


class _Station(NamedTuple):
    """What makes this process a worker."""

    pid: int
    seat: int
    outlet: Outlet
    control: Control
    pickling: Pickling


_station: _Station | None = None
_calls = 0


def begin(seat: int, outlet: Outlet, control: Control, pickling: Pickling) -> None:
    """From now on this process is a worker."""
    global _station, _calls
    _station, _calls = _Station(os.getpid(), seat, outlet, control, pickling), 0


def count_call() -> None:
    """One more call is answered."""
    global _calls  # noqa: PLW0603 - see `begin`
    _calls += 1


def current_worker() -> CurrentWorker | None:
    """Return the worker that this code runs in; None elsewhere: in the parent, or in a process that a job started."""
    station = _present()
    return None if station is None else CurrentWorker(station.seat, station.pid, _calls)


def report(value: object) -> None:
    """Tell how far the present call has come: to `AsyncResult.on_progress` and `AsyncResult.progress`.

    Waits while the parent does not read. Does nothing where no call runs: in the parent, where the same function may
    be called, or in a process that a job started.

    Args:
        value: anything that can be pickled.

    Raises:
        Exception: what pickling it raises.
    """
    station = _present()
    if station is None or (call := station.control.current) is None:
        return
    packets = wire.encode(wire.Kind.PROGRESS, call, wrap(*station.pickling.dumps(value), wire.LARGEST))
    if len(packets) == 1 or threading.current_thread() is not threading.main_thread():
        station.outlet.send(packets)
        return
    station.control.hold()
    try:
        station.outlet.send(packets)
        packets.clear()  # now: what is raised in a destructor is lost
    finally:
        station.control.resume()


def _present() -> _Station | None:
    return _station if _station is not None and _station.pid == os.getpid() else None
