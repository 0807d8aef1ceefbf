"""A worker that is none: it runs its calls in this process, in the loop, which stands still meanwhile.

For tests, breakpoints and mocks. To the pool it is a worker like any other, so all that the pool decides is as ever:
order, recycling, retries, hooks, statistics. What needs a process of its own there is not: a call that runs can neither
be cancelled nor be timed out, and what ends the process ends this one.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from .. import failures, sharing, wire
from ..parcels import wrap
from ..worker import current, job
from .handles import End, Observer, Setup

__all__ = ["Inline", "InlineWorker", "References"]

KILLED = -9
"""Exit code of a worker that is ended by the pool."""


class Inline:
    """A backend of a pool that runs its calls in this process, in the loop, which stands still meanwhile.

    A call that runs can neither be cancelled nor be timed out; what ends the process ends this one.

    Args:
        pickled: whether functions, arguments and values are pickled to and fro, as they are for processes. False hands
            the objects themselves over; the pool keeps them as long as it is there.
    """

    def __init__(self, *, pickled: bool = True) -> None:
        self.pickled = pickled

    def __repr__(self) -> str:
        return f"Inline(pickled={self.pickled})"


class References:
    """Takes the place of pickle where nothing is to be pickled: objects are kept here, and numbers stand for them."""

    def __init__(self) -> None:
        self._objects: dict[bytes, Any] = {}
        self._numbers = itertools.count()

    def dumps(self, value: object) -> bytes:
        """Keep it, for as long as this pool is there, and return what stands for it."""
        number = str(next(self._numbers)).encode()
        self._objects[number] = value
        return number

    def loads(self, number: bytes) -> Any:
        """Return the object itself."""
        return self._objects[number]


class InlineWorker:
    """Does what `aiopool.backends.process.WorkerProcess` does, without a process.

    Args:
        number: what the observer knows it by.
        seat: the number of its place in the pool.
        loop: where everything happens.
        setup: its initializer, and how calls are pickled; the rest is for processes.
        observer: told what happens, as long as it is there.
    """

    pid: int | None = None

    def __init__(
        self, number: int, seat: int, loop: asyncio.AbstractEventLoop, setup: Setup, observer: Observer
    ) -> None:
        self.number = number
        self.seat = seat
        self._loop = loop
        self._setup = setup
        self._observer = weakref.ref(observer)
        self._station = current.Station(seat, Reporting(self), Undisturbed(), setup.pickling)
        self._calls: deque[Sequence[wire.Packet]] = deque()  # not begun
        self._next: asyncio.Handle | None = None

    def launch(self) -> None:
        """Run the initializer, soon."""
        self._next = self._loop.call_soon(self._introduce)

    def _introduce(self) -> None:
        self._next = None
        try:
            with current.being(self._station):
                self._setup.initializer.run()
        except BaseException as error:  # noqa: BLE001 - as in a worker
            self.tell(wire.encode(wire.Kind.UNFIT, 0, wrap(failures.encode(error, (__file__,)), (), wire.LARGEST)))
            self._leave(1)
        else:
            self.tell(wire.encode(wire.Kind.READY))

    def send(self, packets: Sequence[wire.Packet], call: int = 0) -> None:
        """Take a message."""
        if call:
            self._calls.append(packets)
            if self._next is None:
                self._next = self._loop.call_soon(self._run_next)
        else:
            for frame in wire.frames_of(packets):
                sharing.drop(frame.call)

    def _run_next(self) -> None:
        """Run one call; others in the loop have their turn before the next."""
        self._next = None
        for frame in wire.frames_of(self._calls.popleft()):
            if frame.kind == wire.Kind.SHARE:
                sharing.keep(frame.call, frame.payload, frame.buffers, self._setup.pickling)
            else:
                self._run(frame)
        if self._calls and self._next is None:
            self._next = self._loop.call_soon(self._run_next)

    def _run(self, frame: wire.Frame) -> None:
        with current.being(self._station):
            answer = job.run(frame, self._station.control, self._setup.pickling)
        self._station.calls += 1
        self.tell(wire.encode(answer.kind, frame.call, answer.payload, answer.nanoseconds))

    def tell(self, packets: Sequence[wire.Packet]) -> None:
        """Have the pool receive a message."""
        if (observer := self._observer()) is not None:
            observer.received(self.number, wire.frames_of(packets))

    def take_back(self) -> list[wire.Packet]:
        """Return the packets of calls that have not begun, and never will here."""
        packets = list(itertools.chain.from_iterable(self._calls))
        self._calls.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        return packets

    def dismiss(self) -> None:
        """End."""
        self._leave(0)

    def kill(self) -> None:
        """End."""
        self._leave(KILLED)

    def _leave(self, exitcode: int) -> None:
        unread = len(self.take_back())
        if not self._loop.is_closed():
            self._next = self._loop.call_soon(self._end, End(None, exitcode, unread))

    def _end(self, end: End) -> None:
        if (observer := self._observer()) is not None:
            observer.gone(self.number, end)

    def abandon(self) -> None:
        """End without a report."""
        self.take_back()

    def interrupt(self, call: int) -> None:
        """Nothing can run while this is called."""

    def stack(self) -> asyncio.Future[str]:
        """Return what nobody asks for: there is no process."""
        raise NotImplementedError  # pragma: no cover - only workers with a pid are asked


class Undisturbed:
    """Knows which call runs; none can be interrupted. See `aiopool.worker.control.Control`."""

    interrupted = None

    def __init__(self) -> None:
        self.current: int | None = None

    def begin(self, call: int) -> None:
        """From now on this call runs."""
        self.current = call

    def end(self) -> None:
        """No call runs."""
        self.current = None

    def hold(self) -> None:
        """Nothing can come between."""

    def resume(self) -> None:
        """Go on."""


class Reporting:
    """Sends what a job reports. See `aiopool.worker.outlet.Outlet`."""

    def __init__(self, worker: InlineWorker) -> None:
        self._worker = worker

    def send(self, packets: Sequence[wire.Packet]) -> None:
        """Have the pool receive a message."""
        self._worker.tell(packets)
