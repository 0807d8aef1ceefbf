"""What runs on an event loop: coroutines, and generators step by step. A worker imports it when the first one comes.

Each call is a task, with a context of its own. Where a pool has no workers, its own process runs them in the same way.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio.events import _set_running_loop
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextvars import copy_context
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any, TypeVar

from .. import failures, wire
from ..exceptions import CallInterrupted
from ..parcels import Payload, wrap
from ..pickling import Pickling
from . import current, job
from .job import Answer

__all__ = ["Tasks", "each_of_chunk", "map_chunk", "run", "starmap_chunk"]

T = TypeVar("T")

Async = Callable[..., Awaitable[T]]

COROUTINES = (wire.Kind.COROUTINE, wire.Kind.TIMED_COROUTINE)
GENERATORS = (wire.Kind.GENERATOR, wire.Kind.TIMED_GENERATOR)
TIMED = (wire.Kind.TIMED_COROUTINE, wire.Kind.TIMED_GENERATOR, wire.Kind.TIMED_ASYNC_GENERATOR)

LONGEST_TURN = 0.001
"""Seconds for which a generator may yield one value after the other before others on the loop have their turn."""

HIDDEN = (*job.HIDDEN, __file__)
"""Files whose frames a user's traceback does not begin with."""


class Run:
    """One call on the loop.

    Attributes:
        call: its id.
        credit: how many values it may send.
        places: how many it takes.
        stopped: whether it is to stop.
    """

    __slots__ = ("_task", "_waiter", "begun", "call", "credit", "places", "stopped", "turn_ends")

    def __init__(self, call: int, credit: int, places: int = 1) -> None:
        self.call: int = call
        self.credit: int = credit
        self.places: int = places
        self.stopped: bool = False
        self.begun: int = perf_counter_ns()
        self.turn_ends: float = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def is_done_by(self, task: asyncio.Task[Any]) -> None:
        """This is what `stop` cancels."""
        self._task = task

    def stop(self) -> None:
        """Have it end as soon as it can."""
        self.stopped = True
        assert self._task is not None  # noqa: S101 - for the type checker
        self._task.cancel()

    def grant(self, more: int) -> None:
        """It may send so many values more."""
        self.credit += more
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def until_granted(self) -> None:
        """Wait until it may send a value."""
        while not self.credit:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class Tasks:
    """Runs calls on a loop.

    Args:
        loop: the loop.
        station: of the worker that it is done for.
        answer: called with each call's id when it has ended, and how.
        places: how many may run at once. An ordinary generator takes all of them: it has its worker for itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        station: current.Station,
        answer: Callable[[int, Answer], None],
        places: int,
    ) -> None:
        self._loop = loop
        self._station = station
        self._control = station.control
        self._answer = answer
        self._places = self._free = places
        self._runs: dict[int, Run] = {}

    @property
    def has_place(self) -> bool:
        """Whether another call may begin."""
        return self._free > 0

    def begin(self, frame: wire.Frame) -> None:
        """Begin the call that a message asks for."""
        run = Run(frame.call, frame.number, self._places if frame.kind in GENERATORS else 1)
        if frame.kind in TIMED:
            self._station.outlet.send(wire.encode(wire.Kind.BEGUN, frame.call))
        if self._control.forestalled(frame.call):
            self._answer(frame.call, _failed(job.INTERRUPTED, run))
            return
        self._runs[frame.call] = run
        self._free -= run.places
        context = copy_context()
        context.run(current.on_loop.set, current.Duty(self._station, frame.call))
        task = self._loop.create_task(self._outcome(run, frame), context=context)
        run.is_done_by(task)
        # Not at the coroutine's own end: one that is cancelled before its first step never gets there.
        task.add_done_callback(partial(self._ended, run))

    def obey(self) -> None:
        """Do what the parent has asked for: stop a call, or let it send more values."""
        stops, more = self._control.orders()
        for call, count in more:
            self.grant(call, count)
        for call in stops:
            if not self.stop(call):
                self._control.put_off(call)

    def stop(self, call: int) -> bool:
        """Have a call end as soon as it can; return False if it does not run."""
        if (run := self._runs.get(call)) is None:
            return False
        run.stop()
        return True

    def stop_all(self) -> None:
        """Have all of them end."""
        for run in list(self._runs.values()):
            run.stop()

    def grant(self, call: int, more: int) -> None:
        """Let a call send so many values more, if it has not ended."""
        if (run := self._runs.get(call)) is not None:
            run.grant(more)

    def _ended(self, run: Run, task: asyncio.Task[Answer]) -> None:
        del self._runs[run.call]
        self._free += run.places
        self._answer(run.call, self._outcome_of(task, run))

    def _outcome_of(self, task: asyncio.Task[Answer], run: Run) -> Answer:
        error: BaseException | None
        if task.cancelled():  # before its first step; a job may have cancelled it, too
            error = asyncio.CancelledError()
        elif (error := task.exception()) is None:  # else a signal's handler has raised behind the job
            return task.result()
        return _failed(job.INTERRUPTED if run.stopped else failures.encode(error, HIDDEN), run)

    async def _outcome(self, run: Run, frame: wire.Frame) -> Answer:
        result = self._result(run, frame)
        del frame  # or a large payload would be kept for as long as it runs
        try:
            payload = await result
        except BaseException as error:  # noqa: BLE001 - whatever it raises is its outcome, see `job.run`
            stopped = run.stopped or self._control.interrupted == run.call
            return _failed(job.INTERRUPTED if stopped else failures.encode(error, HIDDEN), run)
        return Answer(wire.Kind.RESULT, payload, perf_counter_ns() - run.begun)

    async def _result(self, run: Run, frame: wire.Frame) -> Payload:
        pickling = self._station.pickling
        function, args, kwds = job.unpickled(frame.payload, frame.buffers, pickling)
        made, kind = function(*args, **kwds), frame.kind
        del frame, args, kwds  # the call may let go of what it does not need any more
        if kind in COROUTINES:
            return job.dumps(await made, pickling, self._station.arena)
        if inspect.isasyncgen(made):
            await self._send_all_of_async(run, made)
        else:
            await self._send_all_of(run, made)
        return job.dumps(None, pickling)

    async def _send_all_of_async(self, run: Run, values: AsyncGenerator[Any, Any]) -> None:
        try:
            while True:
                await self._have_turn(run)
                try:
                    value = await anext(values)
                except StopAsyncIteration:
                    return
                if run.stopped:  # and it has taken no notice
                    return
                self._send(run, value)
                del value
        finally:
            await values.aclose()

    async def _send_all_of(self, run: Run, values: Generator[Any, None, None]) -> None:
        try:
            while True:
                await self._have_turn(run)
                try:
                    value = self._step(run, values.__next__)
                except StopIteration:
                    return
                if self._control.interrupted == run.call:
                    return
                self._send(run, value)
                del value
        finally:
            self._step_aside(values.close)

    async def _have_turn(self, run: Run) -> None:
        """Wait until the generator may go on; let others on the loop have their turn if they have had none for long."""
        if not run.credit:
            self.obey()  # it may have come already
            if run.stopped:
                await asyncio.sleep(0)  # its cancellation arrives here, and not in the generator's clean-up
            await run.until_granted()
        elif monotonic() > run.turn_ends:
            await asyncio.sleep(0)
            run.turn_ends = monotonic() + LONGEST_TURN

    def _step(self, run: Run, step: Callable[[], T]) -> T:
        """Take a step of an ordinary generator, which may be interrupted."""
        try:
            self._control.begin(run.call)
            return self._step_aside(step)
        finally:
            self._control.current = None
            _set_running_loop(self._loop)

    def _step_aside(self, step: Callable[[], T]) -> T:
        """Take a step outside of the loop, as it were: so it may have a loop of its own, as a function may."""
        try:
            _set_running_loop(None)
            return step()
        finally:
            _set_running_loop(self._loop)

    def _send(self, run: Run, value: object) -> None:
        run.credit -= 1
        payload = job.dumps(value, self._station.pickling, self._station.arena, "value")
        self._station.outlet.send(wire.encode(wire.Kind.VALUE, run.call, payload))


def _failed(failure: bytes, run: Run) -> Answer:
    return Answer(wire.Kind.FAILED, wrap(failure, (), wire.LARGEST), perf_counter_ns() - run.begun)


def run(frame: wire.Frame, control: current.Calls, pickling: Pickling) -> Answer:
    """Do what a COROUTINE asks for, in a thread that has no loop: with one that ends with the call."""
    control.begin(frame.call)
    alone = _alone(Run(frame.call, 0), frame, pickling)
    del frame  # see `Tasks`
    try:
        return asyncio.run(alone)
    finally:
        control.current = None


async def _alone(run: Run, frame: wire.Frame, pickling: Pickling) -> Answer:
    try:
        function, args, kwds = job.unpickled(frame.payload, frame.buffers, pickling)
        made = function(*args, **kwds)
        del frame, args, kwds
        payload = job.dumps(await made, pickling)
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its outcome, see `job.run`
        return _failed(failures.encode(error, HIDDEN), run)
    return Answer(wire.Kind.RESULT, payload, perf_counter_ns() - run.begun)


async def map_chunk(function: Async[T], items: Iterable[Any]) -> list[T]:
    """Await the function with each item, one after the other; the first exception ends the chunk."""
    return [await function(item) for item in items]


async def starmap_chunk(function: Async[T], items: Iterable[Iterable[Any]]) -> list[T]:
    """Await the function with each item's elements, one after the other; the first exception ends the chunk."""
    return [await function(*item) for item in items]


async def each_of_chunk(function: Async[T], items: Iterable[Any]) -> list[T | failures.ItemFailure]:
    """Await the function with each item; an exception takes the place of that item's value only."""
    values: list[T | failures.ItemFailure] = []
    task = asyncio.current_task()
    for item in items:
        try:
            values.append(await function(item))
        except CallInterrupted:
            raise
        except BaseException as error:
            if task is not None and task.cancelling():  # it means the whole chunk
                raise
            values.append(failures.ItemFailure(failures.encode(error, HIDDEN)))
    return values
