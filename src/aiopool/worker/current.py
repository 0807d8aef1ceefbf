"""What a job can learn of the worker that it runs in, and tell through it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar

from .. import wire
from ..arena import Arena
from ..parcels import wrap
from ..pickling import Pickling

__all__ = [
    "Calls", "CurrentWorker", "Duty", "Station",
    "begin", "being", "being_in_thread", "current_worker", "is_in_thread", "on_loop", "report", "uninterrupted",
]  # fmt: skip

T = TypeVar("T")


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


class Sender(Protocol):
    """Sends messages to the parent; see `aiopool.worker.outlet.Outlet`."""

    def send(self, packets: list[wire.Packet], /) -> None:
        """Send a message."""


class Calls(Protocol):
    """Knows the call that runs, and holds off its interruption; see `aiopool.worker.control.Control`."""

    current: int | None
    looped: bool

    @property
    def interrupted(self) -> int | None:
        """The call that was interrupted last."""

    def begin(self, call: int, /) -> None:
        """From now on this call runs."""

    def forestalled(self, call: int, /) -> bool:
        """Return whether a call that begins was interrupted before."""
        ...

    def orders(self) -> tuple[Iterable[int], list[tuple[int, int]]]:
        """Return what calls are to stop, and which may send how many more values."""
        ...

    def put_off(self, call: int, /) -> None:
        """This call is to stop, and has not begun."""

    def fileno(self) -> int:
        """Return the descriptor at which orders come."""
        ...

    def uninterrupted(self, function: Callable[[], T], /) -> T:
        """Call what must not be left half done."""
        ...


class Station:
    """What makes this process a worker.

    Attributes:
        arena: has memory for large results, if there is any that can be used again.
        calls: how many it has answered.
    """

    def __init__(
        self, seat: int, outlet: Sender, control: Calls, pickling: Pickling, arena: Arena | None = None
    ) -> None:
        self.pid: int = os.getpid()
        self.seat: int = seat
        self.outlet: Sender = outlet
        self.control: Calls = control
        self.pickling: Pickling = pickling
        self.arena: Arena | None = arena
        self.calls: int = 0


class Duty(NamedTuple):
    """What code on a loop runs for: a worker, and its call, or None for its initializer."""

    station: Station
    call: int | None


class Thread(threading.local):
    """What is known of a thread.

    Attributes:
        station: of the worker that it is, if it is one: a process may have several, each in a thread of its own.
    """

    station: Station | None = None


on_loop: ContextVar[Duty | None] = ContextVar("on_loop", default=None)
"""What this code runs for, if that is on a loop."""

_here: list[Station] = []
"""What this process is: one worker; or those of inline pools that run a function at this moment."""

_thread = Thread()


def begin(station: Station) -> None:
    """From now on this process is a worker, whatever the one was that it is forked from."""
    _here[:] = [station]
    _thread.station = station


@contextlib.contextmanager
def being(station: Station) -> Generator[None, None, None]:
    """Be a worker for a moment. Threads that are started in it are that worker, too, if there is no other."""
    with being_in_thread(station):
        _here.append(station)
        try:
            yield
        finally:
            _here.remove(station)


@contextlib.contextmanager
def being_in_thread(station: Station) -> Generator[None, None, None]:
    """Have this thread be a worker for a moment; others may be others meanwhile."""
    before, _thread.station = _thread.station, station
    try:
        yield
    finally:
        _thread.station = before


def is_in_thread(station: Station) -> bool:
    """Whether this thread is that worker now."""
    return _thread.station is station


def current_worker() -> CurrentWorker | None:
    """Return the worker that this code runs in; None elsewhere: in the parent, or in a process that a job started."""
    station = _present()
    return None if station is None else CurrentWorker(station.seat, station.pid, station.calls)


def report(value: object) -> None:
    """Tell how far the present call has come: to `AsyncResult.on_progress` and `AsyncResult.progress`.

    Waits while the parent does not read. Does nothing where no call runs: in the parent, where the same function may
    be called, or in a process that a job started. A thread reports to the call that runs at that moment, so join
    threads before the call ends: one that it leaves behind reports to the next.

    Args:
        value: anything that can be pickled.

    Raises:
        Exception: what pickling it raises.
    """
    station, duty = _present(), on_loop.get()
    if station is None:
        return
    call = station.control.current or (duty.call if duty is not None and duty.station is station else None)
    if call is None:
        return
    station.outlet.send(wire.encode(wire.Kind.PROGRESS, call, wrap(*station.pickling.dumps(value), wire.LARGEST)))


def uninterrupted(function: Callable[[], T]) -> T:
    """Call what must not be left half done, and what would swallow an interruption of the present call."""
    station = _present()
    return function() if station is None else station.control.uninterrupted(function)


def _present() -> Station | None:
    station, duty = _thread.station, on_loop.get()
    if station is None:
        here = list(_here)
        station = duty.station if duty is not None else here[0] if len(here) == 1 else None
    return station if station is not None and station.pid == os.getpid() else None
