"""Cancel at every await: of the calls, of the start, of every way out, of `join`; in every way that a cancel comes."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AsyncResult, InitializerError, PoolTerminated
from aiopool.backends.handles import End
from aiopool.backends.process import WorkerProcess
from aiopool.phases import WorkerPhase
from faultpoints import DOWN, PLACES, UP, Point, Tapped, Taps
from latch import Latch
from suspensions import WAYS, Struck, each_way

pytestmark = pytest.mark.both_loops

SQUARES = [0, 1, 4, 9]


def unrest(pool: AioPool) -> str | None:
    """Return what is still going on in a pool where nothing should be; a worker that is not reaped yet counts."""
    phases = [worker.phase for worker in pool._backend._dispatcher.workers.values()]  # type: ignore[attr-defined]
    at_rest = {WorkerPhase.STARTING, WorkerPhase.IDLE, WorkerPhase.LEAVING}
    return None if set(phases) <= at_rest and not pool._backend.waiting else f"{pool!r} {phases}"


async def numbers() -> AsyncIterator[int]:
    """Give a few numbers, each a little later."""
    for number in range(4):
        await asyncio.sleep(0)
        yield number


async def stream(pool: AioPool, source: Any, **kwds: int) -> list[int]:
    """Return all values of an imap."""
    return [value async for value in pool.imap(jobs.square, source, **kwds)]


async def stream_unordered(pool: AioPool) -> list[int]:
    """Return all values of an imap_unordered."""
    return sorted([value async for value in pool.imap_unordered(jobs.square, range(4), buffersize=4)])


async def close_stream(pool: AioPool) -> list[int]:
    """Leave an imap half-way."""
    values = pool.imap(jobs.square, numbers())
    first = [await anext(values), await anext(values)]
    await values.aclose()
    return [*first, 4, 9]


VERBS: dict[str, Callable[[AioPool], Coroutine[Any, Any, list[int]]]] = {
    "apply": lambda pool: pool.apply(jobs.same, (SQUARES,)),
    "apply, timed": lambda pool: pool.apply(jobs.same, (SQUARES,), timeout=1000),
    "map": lambda pool: pool.map(jobs.square, range(4), chunksize=1),
    "map of an async iterable": lambda pool: pool.map(jobs.square, numbers()),
    "imap": lambda pool: stream(pool, range(4)),
    "imap of an async iterable": lambda pool: stream(pool, numbers(), chunksize=3),
    "imap, narrow": lambda pool: stream(pool, numbers(), buffersize=1),
    "imap_unordered": stream_unordered,
    "imap, left": close_stream,
}


@pytest.fixture
def late_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """The news that a worker is gone takes some turns of the loop, so that cancels can come before it."""
    report, reported = WorkerProcess._report, set[WorkerProcess]()

    def later(process: WorkerProcess, end: End, turns: int = 8) -> None:
        if turns:
            process._loop.call_soon(later, process, end, turns - 1)
        else:
            report(process, end)

    def once(process: WorkerProcess, end: End) -> None:
        if process not in reported:
            reported.add(process)
            later(process, end)

    monkeypatch.setattr(WorkerProcess, "_report", once)


@pytest.mark.usefixtures("late_news")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("max_pending", [None, 1])
async def test_wherever_a_call_is_cancelled_it_has_ended_and_hurts_no_other(verb: str, max_pending: int | None) -> None:
    """When the await returns, no call of it waits or runs, and what it had run in is reaped; the others get theirs."""
    async with AioPool(1, max_pending=max_pending, context="fork") as pool:
        others: list[asyncio.Future[int]] = []

        def make() -> Coroutine[Any, Any, list[int]]:
            others[:] = [pool.submit(jobs.square, number) for number in range(2)] if max_pending else []
            return VERBS[verb](pool)

        for way in WAYS:
            async for struck in each_way(make, way):
                assert struck.cancelled or struck.outcome == SQUARES, struck
                assert await asyncio.gather(*others) == SQUARES[: len(others)], struck
                assert not unrest(pool), struck
                assert await pool.apply(jobs.square, (5,)) == 25
            assert struck.outcome == SQUARES, struck


@pytest.mark.parametrize("way", [DOWN, UP])
@pytest.mark.parametrize("end", ["call", "map", "stream"])
async def test_a_cancel_between_any_two_moments_of_a_calls_way(way: str, end: str, taps: Taps) -> None:
    """Whatever was sent or answered by then, the call has ended, and the next is well."""
    victims: dict[str, Callable[[AioPool], Coroutine[Any, Any, Any]]] = {
        "call": lambda pool: pool.apply(jobs.square, (3,), timeout=1000),
        "map": lambda pool: pool.map(jobs.square, range(3), chunksize=1),
        "stream": lambda pool: stream(pool, range(3), buffersize=2),
    }
    async with AioPool(1, context="fork") as pool:
        for message, place in itertools.product(range(9), PLACES["small"]):
            tapped = taps.of(await pool.apply(jobs.pid_of))
            task = asyncio.create_task(victims[end](pool))
            tapped.at(Point(way, message, place), lambda _tapped, task=task: task.cancel())  # type: ignore[misc]
            await asyncio.wait([task])
            assert not unrest(pool)
            if not tapped.struck:
                break
            assert task.cancelled()
            assert await pool.apply(jobs.square, (5,)) == 25
        assert task.result() == (9 if end == "call" else [0, 1, 4])
        assert message in {1, 2, 3}


@pytest.mark.parametrize("kind", ["cancelled", "cancels its reader", "cancels all"])
@pytest.mark.parametrize("max_pending", [None, 1])
async def test_an_input_that_is_cancelled_ends_what_reads_it(kind: str, max_pending: int | None) -> None:
    """Nobody waits for the rest of it, and no half of a result is taken for the whole."""

    async def source() -> AsyncIterator[int]:
        yield 0
        await asyncio.sleep(0)
        if kind == "cancelled":
            raise asyncio.CancelledError
        for task in asyncio.all_tasks() if kind == "cancels all" else [asyncio.current_task()]:
            if task is not tests and task is not None:
                task.cancel()
        yield 1
        await asyncio.sleep(0)
        yield 2

    tests = asyncio.current_task()
    async with AioPool(1, max_pending=max_pending, context="fork") as pool:
        for verb in (pool.map(jobs.square, source()), stream(pool, source())):
            task = asyncio.create_task(verb)
            async with asyncio.timeout(20):
                await asyncio.wait([task])
            assert task.cancelled()
            assert not unrest(pool)


async def test_a_feeder_that_is_cancelled_by_others_ends_its_map(latch: Latch, gate: Latch) -> None:
    """With a cancellation, and not with some of the values."""
    async with AioPool(1, max_pending=1) as pool:
        before = asyncio.all_tasks()
        task = asyncio.create_task(pool.map(functools.partial(jobs.tell_and_wait, latch.path, gate.path), "abcd", 1))
        await latch.told()
        [feeder] = asyncio.all_tasks() - before - {task}
        feeder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not unrest(pool)


async def test_an_input_with_a_clean_up_of_its_own_can_be_cancelled_twice() -> None:
    """The first cancellation waits for that clean-up; the second reaches it."""
    stands, told = asyncio.Event(), []

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            stands.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append("again")
                raise

    async with AioPool(1, context="fork") as pool:
        task = asyncio.create_task(stream(pool, source()))
        while not pool._backend.idle:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await stands.wait()
        assert not task.done()
        task.cancel()
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert told == ["again"]


async def start(pool: AioPool, _results: list[AsyncResult[str]]) -> None:
    """Start, and leave by what `aiopool.AioPool` calls the other way."""
    await pool.start()
    pool.close()
    await pool.join()


async def work(pool: AioPool, results: list[AsyncResult[str]]) -> None:
    """Leave the block when all is done."""
    async with pool:
        results.append(pool.submit(jobs.same, "done"))
        await results[0].wait()


async def leave_early(pool: AioPool, results: list[AsyncResult[str]]) -> None:
    """Leave the block with calls that run and wait."""
    async with pool:
        results += [pool.submit(jobs.same, "done") for _ in range(4)]


async def fail_in_block(pool: AioPool, results: list[AsyncResult[str]]) -> None:
    """Leave the block by an exception."""
    async with pool:
        results += [pool.submit(jobs.same, "done") for _ in range(4)]
        raise LookupError


async def nest(pool: AioPool, results: list[AsyncResult[str]]) -> None:
    """Leave two blocks."""
    async with AioPool(1, context="fork") as outer:
        results.append(outer.submit(jobs.same, "done"))
        await leave_early(pool, results)


Life = Callable[[AioPool, list[AsyncResult[str]]], Coroutine[Any, Any, None]]
LIVES: list[Life] = [start, work, leave_early, fail_in_block, nest]


async def check_over(life: Life, struck: Struck, pool: AioPool, results: list[AsyncResult[str]]) -> None:
    """The pool is closed, or was never started; whoever holds a result has its outcome, too."""
    assert struck.cancelled or isinstance(struck.outcome, LookupError if life is fail_in_block else type(None))
    if life is start and struck.cancelled:
        pool.terminate()  # the cancelled `join` is none of the pool's business
        await pool.join()
    assert repr(pool).split()[1] in {"closed:", "new:"}
    assert "0 workers" in repr(pool)
    assert not pool._backend._processes  # type: ignore[attr-defined]
    for result in results:
        assert isinstance(result.exception(), PoolTerminated) or result.result() == "done"


@pytest.mark.usefixtures("late_news")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("life", LIVES)
async def test_wherever_a_pool_is_cancelled_nothing_is_left(life: Life, way: str) -> None:
    """Its start, its block, every way out of that, `join`: the workers are reaped when the await returns."""
    pools: list[AioPool] = []
    results: list[list[AsyncResult[str]]] = []

    def make() -> Coroutine[Any, Any, None]:
        pools.append(AioPool(2, context="fork"))
        results.append([])
        return life(pools[-1], results[-1])

    async for struck in each_way(make, way):
        await check_over(life, struck, pools[-1], results[-1])
    assert not struck.cancelled


@pytest.mark.parametrize("way", ["as it ends", "twice", "anyio"])
async def test_wherever_a_start_is_cancelled_nothing_is_left(start_method: str, way: str) -> None:
    """Whatever the start method."""

    def make() -> Coroutine[Any, Any, None]:
        pools.append(AioPool(2, context=start_method))
        return work(pools[-1], [])

    pools: list[AioPool] = []
    async for struck in each_way(make, way):
        await check_over(work, struck, pools[-1], [])
    assert not struck.cancelled


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("number", [1, 2])
async def test_a_start_that_is_cancelled_while_a_thread_starts_a_process(
    method: str, moment: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is a process, and before anybody knows of it: it is killed at birth."""
    begin, begun = WorkerProcess._start, itertools.count(1)
    loop, struck = asyncio.get_running_loop(), threading.Event()

    def cancel(turns: int = 4) -> None:
        task.cancel() if turns == 4 else None
        loop.call_soon(cancel, turns - 1) if turns else struck.set()

    def held(process: WorkerProcess, *prepare: Callable[[], None]) -> InitializerError | None:
        ours = next(begun) == number
        failure = None if moment == "before" else begin(process, *prepare)
        if ours:
            loop.call_soon_threadsafe(cancel)
            struck.wait()
        return begin(process, *prepare) if moment == "before" else failure

    monkeypatch.setattr(WorkerProcess, "_start", held)
    pool = AioPool(2, context=method)
    task = asyncio.create_task(pool.start())
    await asyncio.wait([task])
    assert task.cancelled()
    assert repr(pool) == "<AioPool closed: 0 workers, 0 busy, 0 calls waiting>"


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("place", [None, *PLACES["small"]])
async def test_a_start_that_is_cancelled_as_workers_get_ready(
    method: str, number: int, place: int | None, taps: Taps
) -> None:
    """As the first or the second process is there, and at the message that says that it is ready."""

    def cancel(_tapped: Tapped) -> None:
        task.cancel()

    def strike(tapped: Tapped) -> None:
        if len(taps.made) == number and place is None:
            cancel(tapped)
        elif len(taps.made) == number:
            tapped.at(Point(UP, 0, place or 0), cancel)

    taps.on_made = strike
    pool = AioPool(2, context=method)
    task = asyncio.create_task(pool.start())
    await asyncio.wait([task])
    assert task.cancelled()
    assert repr(pool) == "<AioPool closed: 0 workers, 0 busy, 0 calls waiting>"
