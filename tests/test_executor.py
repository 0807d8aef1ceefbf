"""A pool as an executor: what the standard library's own tests expect of executors, as far as it makes sense here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

import async_jobs
import jobs
from aiopool import AioPool, NotPicklable, PoolNotRunning, PoolTerminated, WorkerDied
from aiopool.executor import PoolExecutor
from latch import Latch

pytestmark = pytest.mark.both_loops

Executor = concurrent.futures.Executor


@pytest.fixture
async def pool() -> AsyncIterator[AioPool]:
    """Two workers."""
    async with AioPool(2) as made:
        yield made


@pytest.fixture
def executor(pool: AioPool) -> PoolExecutor:
    """An executor of theirs."""
    return pool.as_executor()


async def elsewhere(work: Callable[..., Any], *args: Any) -> Any:
    """Do something in another thread."""
    return await asyncio.to_thread(work, *args)


# As the loop's executor.


async def test_it_runs_what_the_loop_is_told_to(executor: PoolExecutor) -> None:
    """In a process."""
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(executor, os.getpid) != os.getpid()
    assert await loop.run_in_executor(executor, jobs.square, 3) == 9
    with pytest.raises(ValueError, match="3"):
        await loop.run_in_executor(executor, jobs.fail_at, 3)


async def test_cancelling_what_the_loop_waits_for_ends_the_call(
    pool: AioPool, executor: PoolExecutor, latch: Latch
) -> None:
    """Other than with the executors of the standard library."""
    running = asyncio.get_running_loop().run_in_executor(executor, jobs.tell_and_spin, latch.path)
    await latch.told()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert await pool.map(jobs.square, range(10)) == [number**2 for number in range(10)]


async def test_it_may_be_the_loops_default(pool: AioPool) -> None:
    """For what can be pickled; the loop's end shuts it down, and the pool goes on."""
    loop = asyncio.get_running_loop()
    executor = pool.as_executor()
    loop.set_default_executor(executor)
    assert await loop.run_in_executor(None, os.getpid) != os.getpid()
    assert await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    with pytest.raises(NotPicklable):
        await asyncio.to_thread(lambda: None)
    await loop.shutdown_default_executor()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.square, 3)
    assert await pool.apply(jobs.square, (3,)) == 9


# submit, as in the standard library's `ExecutorTest`.


async def test_submit_takes_positional_and_keyword_arguments(executor: PoolExecutor) -> None:
    """Whatever they are called."""
    assert await elsewhere(lambda: executor.submit(jobs.add, 1, b=2, c=3).result()) == 6
    assert await elsewhere(lambda: executor.submit(jobs.keywords, self=1, fn=2).result()) == {"self": 1, "fn": 2}


async def test_the_future_has_the_exception(executor: PoolExecutor) -> None:
    """Also that of what does not pickle, of a worker that dies; the others go on."""

    def work() -> list[BaseException | None]:
        futures = [
            executor.submit(jobs.fail_at, 3),
            executor.submit(lambda: None),
            executor.submit(jobs.same, threading.Lock()),
            executor.submit(jobs.kill_self),
            executor.submit(jobs.square, 3),
        ]
        return [future.exception() for future in futures]

    assert [type(error) for error in await elsewhere(work)] == [
        ValueError, NotPicklable, NotPicklable, WorkerDied, type(None),
    ]  # fmt: skip


async def test_what_cannot_be_called_is_refused_at_once(executor: PoolExecutor) -> None:
    """At the caller's line."""
    with pytest.raises(TypeError, match="fn must be callable, not 3"):
        executor.submit(3)  # type: ignore[arg-type]


async def test_many_threads_may_use_it(executor: PoolExecutor) -> None:
    """At the same time."""

    def work(number: int) -> list[int]:
        return [executor.submit(jobs.add, number, each).result() for each in range(50)]

    sums = await asyncio.gather(*(elsewhere(work, number) for number in range(8)))
    assert sums == [[number + each for each in range(50)] for number in range(8)]


async def test_a_future_that_waits_or_runs_can_be_cancelled(
    executor: PoolExecutor, pool: AioPool, latch: Latch, gate: Latch
) -> None:
    """One that waits is never run; one that runs ends with its worker."""
    running = [executor.submit(jobs.tell_and_wait, latch.path, gate.path) for _ in range(2)]
    waiting = executor.submit(jobs.tell, latch.path, "ran")
    pids = {int(await latch.told()) for _ in running}
    assert waiting.cancel()
    assert running[0].cancel()
    await asyncio.sleep(0)  # the loop's next turn, in which the pool hears of that
    gate.let(2)  # the one that is cancelled may still be there to take one
    await elsewhere(running[1].result)
    assert running[0].cancelled()
    assert not running[1].cancel()
    assert await pool.apply(jobs.square, (3,)) == 9
    assert latch.told_already() == []
    assert len(pids) == 2


async def test_done_futures_keep_nothing_alive(executor: PoolExecutor) -> None:
    """The executor forgets them."""

    def work() -> weakref.ref[Any]:
        return weakref.ref(executor.submit(jobs.square, 3))

    future = await elsewhere(work)
    while executor._calls:
        await asyncio.sleep(0)
    gc.collect()
    assert future() is None


# map.


@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
async def test_map_keeps_the_order(executor: PoolExecutor, chunksize: int) -> None:
    """Of all iterables, up to the shortest."""
    mapped = await elsewhere(lambda: list(executor.map(jobs.add, range(10), range(20), chunksize=chunksize)))
    assert mapped == [2 * number for number in range(10)]


@pytest.mark.parametrize("chunksize", [1, 2])
async def test_map_takes_coroutine_functions(executor: PoolExecutor, chunksize: int) -> None:
    """In chunks, too."""
    assert await elsewhere(lambda: list(executor.map(async_jobs.add, range(5), chunksize=chunksize))) == [*range(5)]


async def test_a_chunk_bears_the_name_of_the_function_that_is_mapped(executor: PoolExecutor) -> None:
    """Its death names it."""
    with pytest.raises(WorkerDied) as died:
        await elsewhere(lambda: list(executor.map(jobs.leave_half_way, [3, 4], chunksize=2)))
    assert died.value.call == "leave_half_way"


@pytest.mark.parametrize("chunksize", [1, 2])
async def test_a_generator_function_cannot_be_mapped(executor: PoolExecutor, chunksize: int) -> None:
    """What it makes cannot travel."""
    with pytest.raises(TypeError, match="count is a generator function: stream gives what it yields"):
        await elsewhere(lambda: list(executor.map(async_jobs.count, [1, 2], chunksize=chunksize)))


@pytest.mark.parametrize("chunksize", [1, 2])
async def test_map_raises_in_its_turn(executor: PoolExecutor, chunksize: int) -> None:
    """What the call raised; with larger chunks that of the chunk."""

    def work() -> list[int]:
        values = executor.map(jobs.fail_at, range(10), chunksize=chunksize)
        came = []
        with pytest.raises(ValueError, match="3"):
            came.extend(values)
        return came

    assert await elsewhere(work) == [0, 1, 2][: 3 // chunksize * chunksize]


async def test_map_has_a_time_limit(executor: PoolExecutor, latch: Latch, gate: Latch) -> None:
    """Then it gives up, and cancels what it has begun."""

    def work() -> None:
        with pytest.raises(TimeoutError):
            list(executor.map(partial(jobs.tell_and_wait, latch.path), [gate.path], timeout=0.01))

    await elsewhere(work)
    gate.let(2)


async def test_a_bad_chunksize_is_refused(executor: PoolExecutor) -> None:
    """Before anything is run."""
    with pytest.raises(ValueError, match="chunksize must be at least 1, not 0"):
        executor.map(jobs.square, [1], chunksize=0)


@pytest.mark.parametrize("chunksize", [1, 10**30])
async def test_map_takes_any_chunksize_and_no_timeout_that_is_no_time(executor: PoolExecutor, chunksize: int) -> None:
    """The other arguments are checked as the pool's are."""
    assert await elsewhere(lambda: list(executor.map(jobs.square, [1, 2], chunksize=chunksize))) == [1, 4]
    with pytest.raises(TypeError, match="timeout must be a number of seconds, or None, not '1'"):
        executor.map(jobs.square, [1], timeout="1", chunksize=chunksize)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fn must be callable, not 3"):
        executor.map(3, [1], chunksize=chunksize)  # type: ignore[arg-type]


# wait, as_completed.


async def test_the_functions_of_the_module_take_its_futures(executor: PoolExecutor) -> None:
    """All of them."""

    def work() -> tuple[set[int], int]:
        futures = [executor.submit(jobs.square, number) for number in range(5)]
        done = {future.result() for future in concurrent.futures.as_completed(futures)}
        return done, len(concurrent.futures.wait(futures).done)

    assert await elsewhere(work) == ({0, 1, 4, 9, 16}, 5)


# shutdown.


async def test_shutdown_waits_and_leaves_the_pool(executor: PoolExecutor, pool: AioPool) -> None:
    """As a context manager, too."""

    def work() -> list[bool]:
        with executor:
            futures = [executor.submit(jobs.square, number) for number in range(5)]
        return [future.done() for future in futures]

    assert await elsewhere(work) == [True] * 5
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.square, 3)
    assert await pool.apply(jobs.square, (3,)) == 9
    assert await elsewhere(lambda: pool.as_executor().submit(jobs.square, 3).result()) == 9


async def test_shutdown_that_would_wait_for_its_own_loop_is_refused(
    executor: PoolExecutor, latch: Latch, gate: Latch
) -> None:
    """It would never return; without waiting, or when there is nothing to wait for, it does."""
    running = executor.submit(jobs.tell_and_wait, latch.path, gate.path)
    with pytest.raises(RuntimeError, match="would wait for calls that can only end in that loop"):
        executor.shutdown()
    executor.shutdown(wait=False)
    gate.let()
    await asyncio.wrap_future(running)
    executor.shutdown()


async def test_shutdown_may_cancel_what_waits(executor: PoolExecutor, latch: Latch, gate: Latch) -> None:
    """And nothing that runs."""
    running = [executor.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(2)]
    waiting = [executor.submit(jobs.tell, latch.path, "ran") for _ in range(3)]
    for _ in running:
        await latch.told()
    executor.shutdown(wait=False, cancel_futures=True)
    done = asyncio.gather(*map(asyncio.wrap_future, waiting), return_exceptions=True)
    assert {type(error) for error in await done} == {asyncio.CancelledError}
    gate.let(2)
    assert await asyncio.gather(*map(asyncio.wrap_future, running)) == [0, 1]
    assert latch.told_already() == []


async def test_a_pool_that_takes_no_more_calls_says_so(pool: AioPool, executor: PoolExecutor) -> None:
    """In the future."""
    pool.close()
    with pytest.raises(PoolNotRunning):
        await asyncio.wrap_future(executor.submit(jobs.square, 3))


def test_a_loop_that_is_closed_is_an_error_at_once() -> None:
    """Nobody would ever run it."""

    async def make() -> PoolExecutor:
        async with AioPool(1) as pool:
            return pool.as_executor()

    executor = asyncio.run(make())
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(jobs.square, 3)
    executor.shutdown(cancel_futures=True)


def test_shutdown_ends_what_a_closed_loop_has_left() -> None:
    """Nobody else would, so it would wait for ever."""
    loop = asyncio.new_event_loop()
    pool = AioPool(1)
    loop.run_until_complete(pool.start())
    executor = pool.as_executor()
    future = executor.submit(jobs.spin)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    executor.shutdown()
    with pytest.raises(PoolTerminated, match="loop was closed"):
        future.result(0)
    pool.abandon()


def test_a_block_that_ends_with_its_closed_loop_ends_what_threads_wait_for() -> None:
    """The block is left as its task is collected; else they would wait for ever."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)  # that a task was pending
    made: list[PoolExecutor] = []

    async def stand() -> None:
        async with AioPool(1) as pool:
            made.append(pool.as_executor())
            await asyncio.get_running_loop().create_future()

    async def until_it_stands() -> None:
        tasks.append(asyncio.ensure_future(stand()))
        while not made:
            await asyncio.sleep(0)

    tasks: list[asyncio.Future[None]] = []
    loop.run_until_complete(until_it_stands())
    future = made[0].submit(jobs.spin)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    tasks.clear()
    gc.collect()
    with pytest.raises(PoolTerminated, match="loop was closed"):
        future.result(0)


async def test_it_waits_for_room() -> None:
    """Where only so many may wait, futures have to wait, too; nobody has to retry."""
    async with AioPool(1, max_pending=1) as pool:
        executor = pool.as_executor()
        assert await elsewhere(lambda: list(executor.map(jobs.square, range(20)))) == [n**2 for n in range(20)]


async def test_a_view_has_its_limits() -> None:
    """An executor of a view has the view's."""
    async with AioPool(1) as pool:
        executor = pool.options(timeout=0.01).as_executor()
        with pytest.raises(TimeoutError, match="spin"):
            await asyncio.wrap_future(executor.submit(jobs.spin))


async def test_of_a_pool_that_was_never_started_nothing_is_taken() -> None:
    """Nor has it anything to wait for."""
    pool = AioPool(1)
    executor = pool.as_executor()
    with pytest.raises(PoolNotRunning):
        executor.submit(jobs.square, 3)
    pool.close()
    with pytest.raises(PoolNotRunning):
        executor.map(jobs.square, [3, 4], chunksize=2)
    executor.shutdown()
    executor.end_left()
