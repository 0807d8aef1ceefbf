"""What calls report while they run."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Coroutine
from typing import Any, NoReturn

import pytest

import jobs
from aiopool import AioPool, AsyncResult, WorkerDied, report
from latch import Latch

pytestmark = pytest.mark.both_loops

LONG = 1000.0


def collected(result: AsyncResult[Any]) -> Coroutine[Any, Any, list[Any]]:
    """Listen from this moment on; what is returned returns all that is reported."""
    values = result.progress()

    async def collect() -> list[Any]:
        return [value async for value in values]

    return collect()


async def test_what_a_call_reports_arrives_in_its_order_and_before_the_result(start_method: str) -> None:
    """In a callback, and in an iteration that ends with the call."""
    async with AioPool(1, context=start_method) as pool:
        told: list[object] = []
        result = pool.submit(jobs.report_each, range(100), "result")
        result.on_progress(told.append)
        result.add_done_callback(lambda done: told.append(done.result()))
        values = asyncio.create_task(collected(result))
        assert await result == "result"
        assert await values == list(range(100))
        assert told == [*range(100), "result"]


async def test_each_call_has_its_own(start_method: str) -> None:
    """Also when several of them are in one worker's channel."""
    async with AioPool(2, context=start_method) as pool:
        results = [pool.submit(jobs.report_each, [number, number]) for number in range(50)]
        assert await asyncio.gather(*map(collected, results)) == [[number, number] for number in range(50)]


async def test_a_map_reports_what_any_of_its_chunks_reports() -> None:
    """Chunks that run at the same time are mixed."""
    async with AioPool(2) as pool:
        mapped = pool.map_async(jobs.report_each, [[number] for number in range(20)], chunksize=3)
        values = collected(mapped)
        assert sorted(await values) == list(range(20))
        await mapped


async def test_nobody_needs_to_listen() -> None:
    """Nothing is kept for whoever comes later."""
    async with AioPool(1) as pool:
        result = pool.submit(jobs.report_each, range(10), "result")
        assert await result == "result"
        assert await collected(result) == []


@pytest.mark.parametrize("way", ["in memory", "in pieces"])
async def test_a_large_value_arrives(way: str, start_method: str, request: pytest.FixtureRequest) -> None:
    """It takes more than one packet."""
    if way == "in pieces":
        request.getfixturevalue("in_pieces")
    async with AioPool(1, jobs.refuse_memory if way == "in pieces" else None, context=start_method) as pool:
        values = [bytes([number]) * 3_000_000 for number in range(3)]
        result = pool.submit(jobs.report_each, values)
        assert await collected(result) == values


async def test_a_thread_of_the_job_may_report() -> None:
    """For the call that runs."""
    async with AioPool(1) as pool:
        assert await collected(pool.submit(jobs.report_in_a_thread, "from a thread")) == ["from a thread"]


async def test_where_no_call_runs_nothing_is_reported(start_method: str) -> None:
    """The same function can be called here, and in a process that a job forks."""
    report("nothing")
    assert jobs.report_each([1, 2], "result") == "result"
    async with AioPool(1, context=start_method) as pool:
        result = pool.submit(jobs.report_in_a_child, 1)
        assert await collected(result) == []
        assert await result == 7


async def test_the_iteration_ends_with_the_call_however_that_ends(latch: Latch) -> None:
    """By a death, a cancellation, an exception."""
    async with AioPool(1) as pool:
        result = pool.submit(jobs.report_and_tell, latch.path, "x")
        values = result.progress()
        assert await anext(values) == "x"
        os.kill(int(await latch.told()), signal.SIGKILL)
        assert {value async for value in values} <= {"x"}
        with pytest.raises(WorkerDied):
            await result
        result = pool.submit(jobs.report_and_tell, latch.path, "x")
        values = result.progress()
        assert await anext(values) == "x"
        await latch.told()
        result.cancel()
        assert {value async for value in values} <= {"x"}
        failing = pool.submit(jobs.report_each, 3)
        assert await collected(failing) == []
        with pytest.raises(TypeError):
            await failing


async def test_an_interruption_leaves_no_report_half_done(start_method: str, latch: Latch) -> None:
    """One of several packets would be taken for another message; so the worker stays, and serves."""
    async with AioPool(1, cancel_grace=LONG, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of)
        for _ in range(20):
            result = pool.submit(jobs.report_and_tell, latch.path, bytes(200_000))
            values = result.progress()
            await anext(values)
            assert int(await latch.told()) == pid
            result.cancel()
            assert {len(value) async for value in values} <= {200_000}
            assert await pool.apply(jobs.pid_of) == pid


async def test_a_value_that_does_not_pickle_is_the_jobs_trouble() -> None:
    """It can deal with it; nothing arrives."""
    async with AioPool(1) as pool:
        result = pool.submit(report_a_lambda)
        with pytest.raises(Exception, match="report_a_lambda"):
            await result


async def test_a_value_that_does_not_unpickle_here_is_told_of(start_method: str) -> None:
    """The next one arrives."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    async with AioPool(1, context=start_method) as pool:
        result = pool.submit(report_one_that_does_not_unpickle)
        assert await collected(result) == ["next"]
        await result
    (trouble,) = troubles
    assert "report_one_that_does_not_unpickle reports does not unpickle" in trouble["message"]
    assert isinstance(trouble["exception"], ArithmeticError)


def report_one_that_does_not_unpickle() -> None:
    """Report something that fails in the parent, then something else."""
    report(jobs.make_unpickles_never_in_parent())
    report("next")


class Cancels:
    """Raises CancelledError where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return cancel, ()


def cancel() -> NoReturn:
    """Raise CancelledError."""
    raise asyncio.CancelledError


async def test_a_value_that_cancels_whoever_unpickles_it_cancels_nothing() -> None:
    """Or what has come behind it, such as the call's answer, would be lost."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    async with AioPool(1) as pool:
        result = pool.submit(jobs.square, 3)
        result._progressed(pickle.dumps(Cancels()), ())
        assert await result == 9
    assert [type(trouble["exception"]) for trouble in troubles] == [asyncio.CancelledError]


async def test_a_callback_that_fails_harms_no_call() -> None:
    """The loop is told; the others are called."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    told: list[object] = []

    def fail(_value: object) -> None:
        raise LookupError("callback")

    async with AioPool(1) as pool:
        result = pool.submit(jobs.report_each, [1, 2])
        result.on_progress(fail)
        result.on_progress(told.append)
        await result
    assert told == [1, 2]
    assert [type(trouble["exception"]) for trouble in troubles] == [LookupError, LookupError]


async def test_what_cannot_be_called_is_an_error_of_its_line() -> None:
    """Not of a report later on."""
    async with AioPool(1) as pool:
        with pytest.raises(TypeError, match="callback must be callable, not 3"):
            pool.submit(jobs.square, 3).on_progress(3)  # type: ignore[arg-type]


def report_a_lambda() -> None:
    """Report something that does not pickle."""
    report(lambda: 1)
