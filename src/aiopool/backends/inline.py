"""A worker that is none: it runs its calls in this process, in the loop, which stands still for functions.

For tests, breakpoints and mocks. To the pool it is a worker like any other, so all that the pool decides is as ever:
order, recycling, retries, hooks, statistics. What needs a process of its own there is not: a function that runs can
neither be cancelled nor be timed out, and what ends the process ends this one. Coroutines are tasks of the loop, and
generators take their steps there: they can be cancelled, but not killed.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from .. import failures, sharing, wire
from ..arguments import truth
from ..parcels import wrap
from ..worker import current, job
from ..worker.inbox import take_share
from ..worker.tasks import Tasks
from .handles import End, Observer, Setup

__all__ = ["Inline", "InlineWorker", "References", "Undisturbed"]

T = TypeVar("T")

KILLED = -9
"""Exit code of a worker that is ended by the pool."""


class Inline:
    """A backend of a pool that runs its calls in this process, in the loop, which stands still for functions.

    A function that runs can neither be cancelled nor be timed out; what ends the process ends this one. Coroutines and
    generators can, as long as they let the loop go on.

    Args:
        pickled: whether functions, arguments and values are pickled to and fro, as they are for processes. False hands
            the objects themselves over; the pool keeps them as long as it is there.
    """

    def __init__(self, *, pickled: bool = True) -> None:
        self.pickled: bool = truth("pickled", pickled)

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
        self._shares: set[int] = set()  # that it was sent; this process has them, which does not end with it
        self._next: asyncio.Handle | None = None
        self._tasks = Tasks(loop, self._station, self._answer, setup.looping.concurrency)
        self._introduction: asyncio.Task[None] | None = None
        self._over = False

    def launch(self) -> None:
        """Run the initializer, soon."""
        self._next = self._loop.call_soon(self._introduce)

    def _introduce(self) -> None:
        self._next = None
        try:
            with current.being(self._station):
                coroutine = self._setup.initializer.run()
        except BaseException as error:  # noqa: BLE001 - as in a worker
            self._be_unfit(error)
        else:
            if coroutine is None:
                self.tell(wire.encode(wire.Kind.READY))
            else:
                self._introduction = self._loop.create_task(self._initialize(coroutine))

    async def _initialize(self, coroutine: Coroutine[Any, Any, object]) -> None:
        current.on_loop.set(current.Duty(self._station, None))
        try:
            await coroutine
        except BaseException as error:  # noqa: BLE001 - as in a worker
            self._be_unfit(error)
        else:
            self.tell(wire.encode(wire.Kind.READY))

    def _be_unfit(self, error: BaseException) -> None:
        if not self._over:
            self.tell(wire.encode(wire.Kind.UNFIT, 0, wrap(failures.encode(error, (__file__,)), (), wire.LARGEST)))
            self._leave(1)

    def send(self, packets: Sequence[wire.Packet], call: int = 0) -> None:
        """Take a message."""
        if call:
            self._calls.append(packets)
            self._go_on()
        else:
            for frame in wire.frames_of(packets):
                self._share(frame)

    def _share(self, frame: wire.Frame) -> None:
        self._shares.add(frame.call)
        take_share(frame, self._setup.pickling)

    def _go_on(self) -> None:
        if self._calls and self._next is None and self._tasks.has_place:
            self._next = self._loop.call_soon(self._run_next)

    def _run_next(self) -> None:
        """Run or begin one call; others in the loop have their turn before the next."""
        self._next = None
        for frame in wire.frames_of(self._calls.popleft()):
            if frame.kind <= wire.Kind.TIMED:
                with current.being(self._station):
                    answer = job.run(frame, self._station.control, self._setup.pickling)
                self._answer(frame.call, answer)
            elif frame.kind <= wire.Kind.TIMED_ASYNC_GENERATOR:
                self._tasks.begin(frame)
            else:
                self._share(frame)
        self._go_on()

    def _answer(self, call: int, answer: job.Answer) -> None:
        self._station.calls += 1
        self.tell(wire.encode(answer.kind, call, answer.payload, answer.nanoseconds))
        self._go_on()

    def tell(self, packets: Sequence[wire.Packet]) -> None:
        """Have the pool receive a message."""
        if not self._over and (observer := self._observer()) is not None:
            observer.received(self.number, wire.frames_of(packets))

    def listen(self) -> None:
        """Report nothing: what it does, it reports at once."""

    def pause_reading(self) -> None:
        """Go on as ever."""

    def resume_reading(self) -> None:
        """Go on as ever."""

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
        self._stop()
        if not self._loop.is_closed():
            self._next = self._loop.call_soon(self._end, End(None, exitcode, unread))

    def _end(self, end: End) -> None:
        if (observer := self._observer()) is not None:
            observer.gone(self.number, end)

    def abandon(self) -> None:
        """End without a report."""
        self.take_back()
        self._stop()

    def _stop(self) -> None:
        """Cancel what goes on in the loop, of which nobody hears any more, and forget what was shared."""
        self._over = True
        for share in self._shares:
            sharing.drop(share)
        if self._introduction is not None:
            self._introduction.cancel()
        self._tasks.stop_all()

    def interrupt(self, call: int) -> None:
        """Cancel a coroutine; no function can run while this is called."""
        self._tasks.stop(call)

    def grant(self, call: int, more: int) -> None:
        """Let a stream send so many values more."""
        self._tasks.grant(call, more)

    def stack(self) -> asyncio.Future[str]:
        """Return what nobody asks for: there is no process."""
        raise NotImplementedError  # pragma: no cover - only workers with a pid are asked


class Undisturbed:
    """Knows which call runs; none can be interrupted. See `aiopool.worker.control.Control`."""

    interrupted = None

    def __init__(self) -> None:
        self.current: int | None = None
        self.looped = True

    def begin(self, call: int) -> None:
        """From now on this call runs."""
        self.current = call

    def forestalled(self, call: int) -> bool:
        """Return whether a call that begins was interrupted before: none is."""
        del call
        return False

    def orders(self) -> tuple[set[int], list[tuple[int, int]]]:
        """Return what has been asked for: nothing, for all of it is done at once."""
        return set(), []

    def put_off(self, call: int) -> None:
        """Nothing is put off."""

    def fileno(self) -> int:
        """Return a descriptor of orders; there is none."""
        raise NotImplementedError  # pragma: no cover - only a worker's own loop asks for it

    def uninterrupted(self, function: Callable[[], T]) -> T:
        """Call a function: nothing can come between."""
        return function()


class Reporting:
    """Sends what a job reports. See `aiopool.worker.outlet.Outlet`."""

    def __init__(self, worker: InlineWorker) -> None:
        self._worker = worker

    def send(self, packets: Sequence[wire.Packet]) -> None:
        """Have the pool receive a message."""
        self._worker.tell(packets)
