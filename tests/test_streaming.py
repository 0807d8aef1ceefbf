"""Streams: what a generator yields in a worker, as it yields it."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import pytest
import uvloop

import async_jobs
import jobs
from aiopool import (
    AioPool,
    AioPoolError,
    CallTimeout,
    NotPicklable,
    PoolFull,
    PoolNotRunning,
    PoolTerminated,
    WorkerDied,
)  # fmt: skip
from aiopool.calls import CANCELLED, Call
from aiopool.pickling import PLAIN
from aiopool.streaming import Stream, StreamIterator
from conftest import is_gone
from latch import Latch

pytestmark = pytest.mark.both_loops

KINDS = pytest.mark.parametrize("asynchronous", [False, True], ids=["generator", "async generator"])
TELLING = {False: async_jobs.tell_each, True: async_jobs.atell_each}
COUNTING = {False: async_jobs.count, True: async_jobs.acount}


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio in workers", "uvloop in workers"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the workers' loops."""
    made: Callable[[], asyncio.AbstractEventLoop] | None = request.param
    return made


@KINDS
async def test_values_come_in_their_order(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None, *, asynchronous: bool
) -> None:
    """All of them, however small the window."""
    async with AioPool(1, loop_factory=loop_factory) as pool:
        for size in (1, 2, 3, 64):
            view = pool.options(buffersize=size)
            assert [value async for value in view.stream(COUNTING[asynchronous], 200)] == list(range(200))
        assert [value async for value in pool.stream(COUNTING[asynchronous], 0)] == []
        assert pool.stats().done == 5


@KINDS
async def test_a_value_comes_when_it_is_yielded(latch: Latch, *, asynchronous: bool) -> None:
    """Not when the generator goes on, or ends."""
    function = {False: async_jobs.block_after, True: async_jobs.await_after}[asynchronous]
    async with AioPool(1) as pool:
        values = pool.stream(function, latch.path, 3)
        assert [await anext(values) for _ in range(3)] == [0, 1, 2]
        assert await latch.told() in ("blocked", "waits")
        pool.terminate()
        with pytest.raises(PoolTerminated):
            await anext(values)


@KINDS
async def test_a_slow_reader_holds_the_generator_back(latch: Latch, *, asynchronous: bool) -> None:
    """It computes no more than the window has room for."""
    async with AioPool(1) as pool:
        values = pool.options(buffersize=4).stream(TELLING[asynchronous], latch.path)
        assert [await latch.told() for _ in range(4)] == ["0", "1", "2", "3"]
        await pool.stacks()
        assert latch.told_already() == []
        assert [await anext(values), await anext(values)] == [0, 1]
        assert [await latch.told() for _ in range(2)] == ["4", "5"]
        await pool.stacks()
        assert latch.told_already() == []
        await values.aclose()
        assert latch.told_already() == ["closed"]


@KINDS
@pytest.mark.parametrize("grace", [0.0, 5.0])
async def test_leaving_early_closes_the_generator(
    latch: Latch,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
    grace: float,
    *,
    asynchronous: bool,
) -> None:
    """Its clean-up runs, and its worker is free for the next call."""
    async with AioPool(1, loop_factory=loop_factory, cancel_grace=grace) as pool:
        pid = await pool.apply(jobs.pid_of)
        values = pool.stream(TELLING[asynchronous], latch.path, 10**9)
        async for value in values:
            if value == 100:
                break
        await values.aclose()
        assert "closed" in latch.told_already()
        with pytest.raises(StopAsyncIteration):
            await anext(values)
        assert await pool.apply(jobs.pid_of) == pid
        await values.aclose()


async def test_letting_go_of_the_iterator_closes_the_generator(latch: Latch) -> None:
    """Soon."""
    async with AioPool(1) as pool:
        values = pool.options(buffersize=1).stream(async_jobs.atell_each, latch.path)
        await anext(values)
        del values
        gc.collect()
        while await latch.told() != "closed":
            pass


@KINDS
@pytest.mark.parametrize("read", [0, 1])
async def test_a_reader_that_leaves_the_pool_does_not_wait_for_itself(
    latch: Latch, read: int, *, asynchronous: bool
) -> None:
    """It holds the stream, and could not read on: the generator is closed, and the stream has an end that says so."""
    async with AioPool(1) as pool:
        values = pool.options(buffersize=2).stream(TELLING[asynchronous], latch.path)
        for _ in range(read):
            await anext(values)
    while read and await latch.told() != "closed":
        pass  # one that had not begun has nothing to close
    with pytest.raises(PoolNotRunning, match=r"the pool was left before the stream of a?tell_each was at its end"):
        await anext(values)
    with pytest.raises(StopAsyncIteration):
        await anext(values)


@pytest.mark.parametrize("later", [False, True])
async def test_a_reader_that_has_ended_reads_nothing_more(*, later: bool) -> None:
    """Though somebody holds the stream: who leaves the pool does not wait for that, nor if it ends later."""

    async def read() -> None:
        await anext(values)
        begun.set()
        if later:
            await left.wait()

    begun, left = asyncio.Event(), asyncio.Event()
    async with AioPool(1) as pool:
        values = pool.options(buffersize=1).stream(async_jobs.acount, 10**9)
        reading = asyncio.create_task(read())
        await (begun.wait() if later else reading)
        pool.close()
        joining = asyncio.create_task(pool.join())
        await asyncio.sleep(0)  # it has looked who reads
        left.set()
        await joining
    with pytest.raises(PoolNotRunning, match="the pool was left before the stream of acount was at its end"):
        await anext(values)


async def test_what_is_sent_behind_a_generator_begins_when_that_has_ended() -> None:
    """Also where its worker has places for coroutines, and the generator waits for its reader."""
    async with AioPool(1, concurrency=4) as pool:
        for _ in range(40):  # until both are known to be quick, so that one is sent behind the other
            assert [value async for value in pool.stream(async_jobs.count, 3)] == [0, 1, 2]
            assert await pool.apply(abs, (-1,)) == 1
        values = pool.options(buffersize=1).stream(async_jobs.count, 3)
        assert await anext(values) == 0
        behind = pool.submit(abs, -2)
        assert [value async for value in values] == [1, 2]
        assert await behind == 2


async def test_a_stream_that_another_task_reads_comes_to_its_end() -> None:
    """However slowly it is read, after the pool's block is left."""
    left = asyncio.Event()

    async def read() -> list[int]:
        values = pool.options(buffersize=2).stream(async_jobs.count, 10)
        found = [await anext(values)]
        begun.set()
        await left.wait()
        return found + [value async for value in values]

    async with AioPool(1) as pool:
        begun = asyncio.Event()
        reading = asyncio.create_task(read())
        await begun.wait()
        pool.close()
        asyncio.get_running_loop().call_soon(left.set)
    assert await reading == list(range(10))


async def test_cancelling_who_waits_closes_the_generator(latch: Latch) -> None:
    """When the cancellation arrives, that is done; others who wait are told."""
    async with AioPool(1) as pool:
        values = pool.stream(async_jobs.await_after, latch.path, 0)
        assert await latch.told() == "waits"
        waits = [asyncio.create_task(anext(values)) for _ in range(2)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waits[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits[0]
        assert latch.told_already() == ["closed"]
        with pytest.raises(AioPoolError, match="was closed as a task was cancelled"):
            await waits[1]


async def test_a_generator_that_blocks_is_interrupted_or_killed(latch: Latch) -> None:
    """In its grace it is interrupted as a function is."""
    async with AioPool(1, cancel_grace=10) as pool:
        pid = await pool.apply(jobs.pid_of)
        for end in (0, 1, 3):
            values = pool.stream(async_jobs.block_after, latch.path, end)
            assert await latch.told() == "blocked"
            await values.aclose()
            assert latch.told_already() == ["closed"]
        assert await pool.apply(jobs.pid_of) == pid
    async with AioPool(1, cancel_grace=0.05) as pool:
        values = pool.options(buffersize=1).stream(async_jobs.never_closes, latch.path)
        pid = int(await latch.told())
        await anext(values)
        await values.aclose()
        assert is_gone(pid)


@pytest.mark.parametrize("function", [async_jobs.fail_after, async_jobs.afail_after])
async def test_an_exception_comes_after_the_values_before_it(function: Callable[..., Any]) -> None:
    """Once."""
    async with AioPool(1) as pool:
        values = pool.options(buffersize=2).stream(function, 5)
        found = [await anext(values) for _ in range(5)]
        with pytest.raises(ValueError, match="that was all"):
            await anext(values)
        assert found == list(range(5))
        with pytest.raises(StopAsyncIteration):
            await anext(values)


async def test_a_death_comes_after_the_values_before_it() -> None:
    """And it is never tried again, or the values would come twice."""
    async with AioPool(1, retries=3) as pool:
        values = pool.stream(async_jobs.die_after, 5)
        assert [await anext(values) for _ in range(5)] == list(range(5))
        with pytest.raises(WorkerDied) as caught:
            await anext(values)
        assert (caught.value.call, caught.value.tries) == ("die_after", 1)


async def test_a_time_limit_is_for_all_of_a_stream(latch: Latch) -> None:
    """It is closed then."""
    async with AioPool(1) as pool:
        values = pool.options(timeout=0.1).stream(async_jobs.await_after, latch.path, 2)
        assert [await anext(values), await anext(values)] == [0, 1]
        with pytest.raises(CallTimeout):
            await anext(values)
        assert latch.told_already() == ["waits", "closed"]


async def test_values_that_do_not_pickle() -> None:
    """What cannot be sent ends the generator; what cannot be received is one error in its turn."""
    async with AioPool(1) as pool:
        values = pool.stream(async_jobs.give_locks)
        assert await anext(values) == 1
        with pytest.raises(NotPicklable, match="lock"):
            await anext(values)
        values = pool.stream(async_jobs.give_unpicklable, 1)
        with pytest.raises(NotPicklable, match="the value of give_unpicklable"):
            await anext(values)
        assert await anext(values) == 2
        with pytest.raises(StopAsyncIteration):
            await anext(values)


class Backend:
    """Runs nothing.

    Attributes:
        cancelled: the calls that were.
    """

    pickling = PLAIN

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.cancelled: list[Call] = []
        self.cancel = self.cancelled.append

    def submit(self, call: Call) -> None:
        """Take a call."""


async def test_a_value_that_could_not_be_received_ends_the_stream() -> None:
    """Behind the values before it; those behind it would pass for them."""
    backend: Any = Backend()
    stream, call = Stream(backend, "f", 10), Call("f", b"", lambda _: None)
    stream.begin(call)
    assert call.take is not None
    call.take(pickle.dumps(1), ())
    call.take(None, ())
    call.take(pickle.dumps(2), ())
    assert backend.cancelled == [call]
    stream.finish(CANCELLED)
    values: StreamIterator[int] = StreamIterator(stream, None)
    assert await anext(values) == 1
    with pytest.raises(AioPoolError, match="a value could not be received: this process has no memory"):
        await anext(values)


async def test_ctrl_c_while_a_value_is_unpickled_goes_on() -> None:
    """It is no fault of the value's."""
    backend: Any = Backend()
    stream, call = Stream(backend, "f", 10), Call("f", b"", lambda _: None)
    stream.begin(call)
    assert call.take is not None
    call.take(pickle.dumps(Interrupts()), ())
    values = aiter(StreamIterator[Any](stream, None))
    with pytest.raises(KeyboardInterrupt):
        anext(values).send(None)
    stream.finish(CANCELLED)


class Interrupts:
    """Somebody is at the keyboard while it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return interrupt, ()


def interrupt() -> NoReturn:
    """Do what Python does at Ctrl-C."""
    raise KeyboardInterrupt


async def test_large_values(either_way: Callable[[], None] | None) -> None:
    """Whole, in memory or in pieces."""
    async with AioPool(1, either_way) as pool:
        big = [bytes([number]) * 300_000 for number in range(5)]
        assert [value async for value in pool.options(buffersize=2).stream(async_jobs.give, *big)] == big


async def test_async_generators_run_beside_one_another_and_generators_alone(latch: Latch) -> None:
    """As coroutines and functions do."""
    async with AioPool(1, concurrency=2) as pool:
        one, two = (pool.stream(async_jobs.atell_each, latch.path) for _ in range(2))
        assert [await anext(one), await anext(two), await anext(one), await anext(two)] == [0, 0, 1, 1]
        alone = pool.stream(async_jobs.count, 3)
        await pool.stacks()
        assert pool.stats().queued == 1
        await one.aclose()
        await two.aclose()
        assert [value async for value in alone] == [0, 1, 2]


async def test_a_generator_may_have_a_loop_of_its_own() -> None:
    """In each of its steps, as a function may."""
    async with AioPool(1) as pool:
        assert [value async for value in pool.stream(async_jobs.loops_of_its_own)] == [3, 3]


@pytest.mark.parametrize(
    "function", [partial(async_jobs.count, 3), partial(async_jobs.acount, 3), partial(async_jobs.Generates(), 3)]
)
async def test_what_runs_a_generator_function_is_one(function: Callable[[], Any]) -> None:
    """Partials and instances."""
    async with AioPool(1) as pool:
        assert [value async for value in pool.stream(function)] == [0, 1, 2]


async def test_what_makes_no_sense_is_said_at_once() -> None:
    """In the caller's line."""
    async with AioPool(1, max_pending=1) as pool:
        for function in (jobs.square, async_jobs.add):
            with pytest.raises(TypeError, match="func must be a generator function or an async generator function"):
                pool.stream(function, 1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="buffersize"):
            pool.options(buffersize=0)
        with pytest.raises(NotPicklable):
            pool.stream(async_jobs.give, lambda: None)
        streams = [pool.stream(async_jobs.acount, 10**6) for _ in range(2)]
        with pytest.raises(PoolFull):
            pool.stream(async_jobs.count, 3)
        for stream in streams:
            await stream.aclose()


@KINDS
async def test_a_call_of_a_generator_function_is_an_error_of_its_line(*, asynchronous: bool) -> None:
    """It has no value that could be waited for; an executor's future has the same error."""
    function = COUNTING[asynchronous]
    async with AioPool(1) as pool, AioPool(1, max_pending=1) as limited:
        for each in (pool, limited):
            for verb in (each.apply_async, each.submit):
                with pytest.raises(TypeError, match="count is a generator function: stream gives what it yields"):
                    verb(function, (3,))
            with pytest.raises(TypeError, match="count is a generator function"):
                await each.apply(function, (3,))
        with pytest.raises(TypeError, match="count is a generator function"):
            await asyncio.wrap_future(pool.as_executor().submit(function, 3))


async def test_waiting_for_a_value_for_some_time_only(latch: Latch) -> None:
    """Nothing is lost."""
    async with AioPool(1) as pool:
        values = pool.stream(async_jobs.await_after, latch.path, 1)
        assert await values.next(timeout=30) == 0
        with pytest.raises(TimeoutError):
            await values.next(timeout=0.01)
        assert "await_after: open" in repr(values)
        await values.aclose()
        assert "await_after: closed" in repr(values)


async def test_the_stream_of_an_inline_pool(latch: Latch) -> None:
    """In the loop itself: held back, closed, failing."""
    async with AioPool(1, backend="inline", concurrency=2) as pool:
        for asynchronous in (False, True):
            assert [value async for value in pool.stream(COUNTING[asynchronous], 200)] == list(range(200))
            values = pool.options(buffersize=2).stream(TELLING[asynchronous], latch.path)
            assert await anext(values) == 0
            await values.aclose()
            assert latch.told_already()[-1] == "closed"
        values = pool.stream(async_jobs.afail_after, 2)
        assert [await anext(values), await anext(values)] == [0, 1]
        with pytest.raises(ValueError, match="that was all"):
            await anext(values)
