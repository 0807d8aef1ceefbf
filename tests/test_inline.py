"""The backend that runs calls in this process: what it has in common with workers, and what it has not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import threading
import unittest.mock
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import async_jobs
import jobs
from aiopool import (
    AioPool,
    AioPoolError,
    CallAborted,
    CallEnded,
    InitializerError,
    Inline,
    NotPicklable,
    PoolFull,
    PoolNotRunning,
    PoolTerminated,
    current_worker,
    report,
    sharing,
    wire,
)
from aiopool.backends.handles import End, Setup
from aiopool.backends.inline import KILLED, InlineWorker
from aiopool.pickling import PLAIN
from aiopool.worker.main import Initializer
from latch import Latch
from test_carrying import numbers
from test_hooks import Diary

pytestmark = pytest.mark.both_loops

BACKENDS: dict[str, Any] = {"pickled": "inline", "as they are": Inline(pickled=False)}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    """In this process, with pickling and without."""
    return BACKENDS[request.param]


async def all_of(values: Any) -> list[Any]:
    """Return what an async iterator gives, exceptions in their places."""
    found: list[Any] = []
    while True:
        try:
            found.append(await anext(values))
        except StopAsyncIteration:
            return found
        except ValueError as error:
            found.append(str(error))


async def refused(verb: Callable[[], Awaitable[Any]]) -> tuple[type[BaseException], str]:
    """Return what is raised."""
    with pytest.raises(AioPoolError) as caught:
        await verb()
    return type(caught.value), str(caught.value)


async def callbacks(pool: AioPool) -> list[Any]:
    """Return what callbacks are called with."""
    called: list[Any] = []
    await pool.apply_async(jobs.square, (3,), callback=called.append)
    await pool.map_async(jobs.square, [1, 2], callback=called.append)
    failing = pool.apply_async(jobs.fail_at, (3,), error_callback=lambda error: called.append(str(error)))
    await failing.wait()
    await asyncio.sleep(0)
    return called


async def left_early(pool: AioPool) -> list[int]:
    """Leave an imap."""
    async with contextlib.aclosing(pool.imap(jobs.square, range(100))) as stream:
        return [await anext(stream), await anext(stream)]


async def cancelled_in_the_queue(pool: AioPool) -> list[Any]:
    """Cancel one of some calls."""
    calls = [pool.submit(jobs.square, number) for number in range(5)]
    assert calls[3].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    return [value if isinstance(value, int) else type(value) for value in done]


async def progress(pool: AioPool) -> list[Any]:
    """Return what a call reports."""
    result = pool.apply_async(jobs.report_each, ([1, "two"], 3))
    told: list[Any] = []
    result.on_progress(told.append)
    told.append(await result)
    return told


async def chained(pool: AioPool) -> tuple[Any, ...]:
    """Return what is known of an exception with a cause."""
    with pytest.raises(ValueError, match="outer") as caught:
        await pool.apply(jobs.raise_from)
    error = caught.value
    assert error.__cause__ is not None
    return type(error), str(error), type(error.__cause__), error.__cause__.__cause__.__class__


async def numbered(pool: AioPool) -> list[int]:
    """Return how many calls the worker had answered before each."""
    return [(await pool.apply(jobs.worker_here)).calls for _ in range(4)]


async def after_close(pool: AioPool) -> Any:
    """Close, with a call accepted before."""
    result = pool.submit(jobs.square, 4)
    pool.close()
    return await result, await refused(lambda: pool.apply(jobs.square, (3,)))


async def after_terminate(pool: AioPool) -> Any:
    """Terminate, with a call accepted before."""
    result = pool.submit(jobs.square, 4)
    pool.terminate()
    return (await refused(lambda: result))[0], (await refused(lambda: pool.apply(jobs.square, (3,))))[0]


OPERATIONS: dict[str, Callable[[AioPool], Awaitable[Any]]] = {
    "apply": lambda pool: pool.apply(jobs.add, (1,), {"b": 2, "c": 3}),
    "submit": lambda pool: pool.submit(jobs.add, 1, b=2),
    "map": lambda pool: pool.map(jobs.square, range(10)),
    "map of nothing": lambda pool: pool.map(jobs.square, []),
    "map of an async input": lambda pool: pool.map(jobs.square, numbers(5)),
    "starmap": lambda pool: pool.starmap(jobs.add, [(1, 2), (3,)]),
    "imap": lambda pool: all_of(pool.imap(jobs.fail_at, range(6), chunksize=2)),
    "imap of an async input": lambda pool: all_of(pool.imap(jobs.square, numbers(5))),
    "imap_unordered": lambda pool: all_of(pool.imap_unordered(jobs.square, range(3))),
    "imap that is left": left_early,
    "callbacks": callbacks,
    "an exception": chained,
    "an exit": lambda pool: refused(lambda: pool.apply(jobs.fail, (SystemExit(3),))),
    "a cancelled call": cancelled_in_the_queue,
    "progress": progress,
    "calls of one worker": numbered,
    "a large value": lambda pool: pool.apply(bytes, (3_000_000,)),
    "close": after_close,
    "terminate": after_terminate,
    "a view": lambda pool: pool.options(retries=2).apply(jobs.square, (3,)),
    "context variables": lambda pool: pool.map(jobs.who_asks, range(2)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_the_outcome_is_that_of_a_worker(operation: str, backend: Any) -> None:
    """Value for value, error for error."""
    found = []
    token = jobs.request.set("us")
    for kind in ("local", backend):
        async with AioPool(1, backend=kind, context_vars=[jobs.request]) as pool:
            found.append(await OPERATIONS[operation](pool))
    jobs.request.reset(token)
    assert found[0] == found[1]


async def test_it_runs_here(backend: Any) -> None:
    """Starts nothing; a mock is seen, and a worker is what the call thinks to be in."""
    async with AioPool(2, backend=backend) as pool:
        assert await pool.map(jobs.pid_of, range(4)) == [os.getpid()] * 4
        with unittest.mock.patch("jobs.os.getpid", return_value="mocked"):
            assert await pool.apply(jobs.pid_of) == "mocked"
        assert (await pool.apply(jobs.worker_here)).pid == os.getpid()
        assert current_worker() is None
        assert await pool.stacks() == []
        assert [worker.pid for worker in pool.stats().workers] == [None, None]


async def test_what_runs_here_reports_as_it_does_elsewhere() -> None:
    """Coroutines and their tasks, and threads of functions; a coroutine initializer knows its worker."""
    told: list[Any] = []

    async def initialize() -> None:
        told.append(current_worker())
        report("of no call")

    async with AioPool(1, initialize, backend=Inline(pickled=False)) as pool:
        for func, *values in ((async_jobs.report_each, "a", "b"), (jobs.report_in_a_thread, "c")):
            result = pool.submit(func, *values)
            result.on_progress(told.append)
            told.append(await result)
        assert current_worker() is None
    assert told == [(0, os.getpid(), 0), "a", "b", "from a task", 0, "c", None]


async def test_pools_in_two_threads_do_not_take_one_anothers_reports() -> None:
    """Their functions run at the same time; a thread of neither, or of one of the two, is no worker then."""
    meeting = threading.Barrier(2, timeout=60)

    def job(number: int) -> None:
        meeting.wait()
        report(number)
        stray = threading.Thread(target=report, args=(-1,))
        stray.start()
        stray.join()
        meeting.wait()

    async def reports_of(number: int) -> list[Any]:
        told: list[Any] = []
        async with AioPool(1, backend=Inline(pickled=False)) as pool:
            result = pool.submit(job, number)
            result.on_progress(told.append)
            await result
        return told

    running = (asyncio.to_thread(asyncio.run, reports_of(number)) for number in (1, 2))
    assert await asyncio.gather(*running) == [[1], [2]]
    assert current_worker() is None


async def test_objects_are_handed_over_as_they_are_only_where_one_says_so() -> None:
    """Otherwise what cannot be pickled is refused, as by any worker."""
    value = object()
    async with AioPool(1, backend=Inline(pickled=False)) as pool:
        assert await pool.apply(jobs.same, (value,)) is value
        assert await pool.submit(lambda: value) is value
    async with AioPool(1, backend="inline") as pool:
        with pytest.raises(NotPicklable):
            await pool.apply(lambda: value)
        with pytest.raises(NotPicklable, match="result"):
            await pool.apply(jobs.unpicklable_result)
        given = [1]
        result = await pool.apply(jobs.same, (given,))
        assert (result, result is given) == ([1], False)


async def test_a_shared_object_is_shared_here_too() -> None:
    """And forgotten with its handle."""
    async with AioPool(1, backend="inline") as pool:
        shared = pool.share(jobs.Block(bytearray(b"x" * 100_000)))
        assert await pool.map(jobs.first_byte, [shared, shared], chunksize=1) == [ord("x")] * 2
        shared.drop()


@pytest.mark.parametrize("end", ["close", "abandon"])
async def test_a_pool_that_has_ended_leaves_nothing_shared(end: str) -> None:
    """Though its handle is still there: this process goes on, and is no worker of anybody's."""
    pool = AioPool(1, backend="inline")
    await pool.start()
    shared = pool.share(jobs.Block(bytearray(b"x" * 100_000)))
    assert await pool.apply(jobs.first_byte, (shared.argument,)) == ord("x")
    getattr(pool, end)()
    await pool.join()
    assert sharing._objects == {}
    shared.drop()


async def test_the_loop_has_its_turn_between_calls(backend: Any) -> None:
    """It stands still only while one runs."""
    turns: list[str] = []

    async def others() -> None:
        for _ in range(3):
            turns.append("loop")
            await asyncio.sleep(0)

    async with AioPool(1, backend=backend) as pool:
        calls = pool.map(jobs.square, range(30), chunksize=1)
        await asyncio.gather(calls, others())
    assert turns == ["loop"] * 3


async def test_recycling_and_hooks_are_as_ever(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool does not know the difference."""
    monkeypatch.setattr(jobs, "initialized", [])
    diary = Diary()
    async with AioPool(1, jobs.remember, (1,), 2, backend=backend, hooks=[diary]) as pool:
        assert [await pool.apply(jobs.square, (number,)) for number in range(5)] == [0, 1, 4, 9, 16]
        assert pool.stats().recycled["calls"] == 2
        assert len(jobs.initialized) in (2, 3)
    diary.check()
    assert diary.ends == ["done"] * 5
    assert {event.run_seconds is not None for event in diary.of(CallEnded)} == {True}


async def test_an_initializer_that_fails_fails_the_start(backend: Any) -> None:
    """As in a worker."""
    with pytest.raises(InitializerError) as caught:
        await AioPool(2, jobs.fail_to_initialize, backend=backend).start()
    assert caught.value.__cause__ is not None


async def test_the_initializer_may_be_a_coroutine_function(backend: Any, latch: Latch) -> None:
    """It is awaited in the loop; what it raises fails the start, and it is cancelled with the pool."""
    async with AioPool(1, asyncio.sleep, (0,), backend=backend) as pool:
        assert await pool.apply(jobs.square, (3,)) == 9
    with pytest.raises(InitializerError) as caught:
        await AioPool(1, async_jobs.fail_to_initialize, backend=backend).start()
    assert isinstance(caught.value.__cause__, OSError)
    pool = AioPool(1, async_jobs.tell_and_clean_up, (latch.path,), backend=backend)
    starting = asyncio.create_task(pool.start())
    assert await latch.told() == "begun"
    pool.terminate()
    await starting
    await pool.join()
    assert [await latch.told(), await latch.told()] == ["cancelled", "cleaned up"]


async def test_a_coroutine_is_cancelled_when_the_pool_is_terminated(backend: Any, latch: Latch) -> None:
    """Nobody waits for it any more."""
    async with AioPool(1, backend=backend) as pool:
        running = pool.submit(async_jobs.tell_and_clean_up, latch.path)
        assert await latch.told() == "begun"
        pool.terminate()
        with pytest.raises(PoolTerminated):
            await running
        assert [await latch.told(), await latch.told()] == ["cancelled", "cleaned up"]


async def test_log_records_are_those_of_this_process(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each once."""
    async with AioPool(1, backend=backend) as pool:
        await pool.apply(jobs.log, ("here", logging.WARNING, "once"))
    assert [record.getMessage() for record in caplog.records] == ["once"]


async def test_limits_of_the_queue_hold(backend: Any) -> None:
    """Whoever would have to wait, waits or is told."""
    async with AioPool(1, backend=backend, max_pending=1) as pool:
        calls = [pool.submit(jobs.square, number) for number in range(2)]
        with pytest.raises(PoolFull):
            pool.submit(jobs.square, 2)
        assert await asyncio.gather(*calls) == [0, 1]
        assert await pool.map(jobs.square, range(20), chunksize=1) == [number**2 for number in range(20)]


async def test_what_would_end_a_worker_is_an_outcome_here(backend: Any) -> None:
    """As far as it is an exception; a real end would be that of this process."""
    async with AioPool(1, backend=backend) as pool:
        with pytest.raises(CallAborted):
            await pool.apply(jobs.fail, (KeyboardInterrupt(),))
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_pool_that_is_cancelled_on_the_way_out_ends(backend: Any) -> None:
    """With what was accepted."""
    pool = AioPool(1, backend=backend)
    with pytest.raises(ZeroDivisionError):
        async with pool:
            waiting = pool.submit(jobs.square, 3)
            raise ZeroDivisionError
    with pytest.raises(PoolTerminated):
        await waiting
    with pytest.raises(PoolNotRunning):
        pool.submit(jobs.square, 3)


def test_a_forgotten_pool_is_warned_of(backend: Any) -> None:
    """And ended, though the loop is closed."""

    async def forget() -> None:
        pool = AioPool(1, backend=backend)
        await pool.start()
        pool.submit(jobs.square, 3)

    with pytest.warns(ResourceWarning, match="unclosed AioPool"):
        asyncio.run(forget())


@pytest.mark.parametrize("odd", ["threads", None, Inline])
def test_an_unknown_backend_is_refused(odd: Any) -> None:
    """With its value."""
    with pytest.raises(
        ValueError, match=r"backend must be 'local', 'inline', an aiopool\.Inline or a DaskBackend, not"
    ):
        AioPool(1, backend=odd)


def test_a_pickler_has_nothing_to_do_where_nothing_is_pickled() -> None:
    """So it is a mistake."""
    import pickle  # noqa: PLC0415 - only as a value

    with pytest.raises(ValueError, match="pickler must be None where nothing is pickled"):
        AioPool(1, backend=Inline(pickled=False), pickler=pickle)
    assert repr(Inline()) == "Inline(pickled=True)"


class Keeper:
    """Keeps what a worker tells."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def received(self, worker: int, frames: list[wire.Frame]) -> None:
        """Keep the kinds of its messages."""
        self.told += [(worker, frame.kind) for frame in frames]

    def garbled(self, worker: int) -> None:
        """Keep it."""
        self.told.append((worker, "garbled"))

    def gone(self, worker: int, end: End) -> None:
        """Keep it."""
        self.told.append((worker, end))


SETUP = Setup(multiprocessing.get_context("spawn"), Initializer(None, (), ()), None, lambda: None, PLAIN, {})


async def test_a_worker_whose_pool_is_gone_tells_nobody() -> None:
    """Neither that it is ready, nor that it has ended; with a pool it does."""
    loop = asyncio.get_running_loop()
    troubles: list[object] = []
    loop.set_exception_handler(lambda _loop, context: troubles.append(context))
    keeper = Keeper()
    workers = [InlineWorker(1, 0, loop, SETUP, keeper), InlineWorker(2, 0, loop, SETUP, Keeper())]
    for step in (InlineWorker.launch, InlineWorker.kill):
        for worker in workers:
            step(worker)
        await asyncio.sleep(0)
    assert keeper.told == [(1, wire.Kind.READY), (1, End(None, KILLED))]
    assert troubles == []


def test_a_worker_that_is_ended_after_the_loop_tells_nobody() -> None:
    """A closed loop calls nobody back."""
    keeper = Keeper()

    async def make() -> InlineWorker:
        return InlineWorker(1, 0, asyncio.get_running_loop(), SETUP, keeper)

    worker = asyncio.run(make())
    worker.kill()
    assert keeper.told == []
