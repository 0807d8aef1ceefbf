"""Cancelling: a call that waits is never run, one that runs is ended with all it started, no other is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio
import pytest

import jobs
from aiopool import AioPool, WorkerDied
from conftest import is_gone
from latch import Latch
from test_crash import gone

pytestmark = pytest.mark.both_loops


@pytest.mark.parametrize("job", [jobs.tell_and_spin, jobs.tell_and_swallow_everything])
async def test_cancelling_ends_whatever_the_job_does(
    start_method: str, job: Callable[[str], None], latch: Latch
) -> None:
    """The pid is gone when the await returns, be it an endless loop or one that ignores signals and exceptions."""
    async with AioPool(1, context=start_method) as pool:
        call = asyncio.create_task(pool.apply(job, (latch.path,)))
        pid = int(await latch.told())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert is_gone(pid)
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_cancelled_waiting_call_is_never_invoked(latch: Latch, gate: Latch) -> None:
    """It leaves the queue at once; those before and behind it run."""
    async with AioPool(1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        before, doomed, behind = (pool.submit(jobs.tell_and_return, latch.path, name) for name in "abc")
        assert doomed.cancel()
        assert doomed.cancelled()
        assert not doomed.cancel()
        gate.let()
        await running
        assert [await before, await behind] == ["a", "c"]
    assert latch.told_already() == ["a", "c"]


async def test_a_call_that_is_cancelled_before_its_worker_is_up_is_never_invoked(
    start_method: str, latch: Latch
) -> None:
    """The worker serves the next call."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.leave_half_way, (1,))
        doomed = pool.submit(jobs.tell, latch.path, "invoked")
        assert repr(pool) == "<AioPool running: 1 workers, 0 busy, 1 calls waiting>"
        assert doomed.cancel()
        assert doomed.cancelled()
        assert await pool.apply(jobs.square, (3,)) == 9
    assert latch.told_already() == []


async def test_cancelling_a_running_result_ends_it_when_its_worker_is_gone(latch: Latch) -> None:
    """As with a task, ``cancel`` asks, and the result is cancelled a little later."""
    async with AioPool(1) as pool:
        result = pool.submit(jobs.tell_and_spin, latch.path)
        pid = int(await latch.told())
        assert result.cancel("enough")
        assert result.cancel()
        assert not result.done()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await result
        assert is_gone(pid)
        assert not result.cancel()


async def test_a_call_that_starts_processes_is_cancelled_with_them(start_method: str, latch: Latch) -> None:
    """The whole process group of the worker is killed."""
    async with AioPool(1, context=start_method) as pool:
        result = pool.submit(jobs.tell_of_grandchild_and_spin, latch.path)
        grandchild = int(await latch.told())
        result.cancel()
        with pytest.raises(asyncio.CancelledError):
            await result
        await gone(grandchild)


async def test_after_cancelling_all_running_calls_the_next_ones_complete(latch: Latch) -> None:
    """All N seats get fresh workers, which serve 4 N calls."""
    async with AioPool(2) as pool:
        running = [pool.submit(jobs.tell_and_spin, latch.path) for _ in range(2)]
        await latch.told()
        await latch.told()
        for result in running:
            result.cancel()
        assert await asyncio.gather(*(pool.apply(jobs.square, (number,)) for number in range(8))) == [
            number**2 for number in range(8)
        ]
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


async def test_a_result_that_arrives_after_the_cancel_raises_nothing_anywhere(latch: Latch, gate: Latch) -> None:
    """Cancelled as it finishes, a call is cancelled; its reply is dropped without a word."""
    told_to_loop: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told_to_loop.append(context))
    async with AioPool(1) as pool:
        for _ in range(20):
            result = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
            await latch.told()
            gate.let()
            result.cancel()
            with pytest.raises(asyncio.CancelledError):
                await result
            gate.told_already()  # takes back a pass that the killed worker did not use
        assert await pool.apply(jobs.square, (3,)) == 9
    assert told_to_loop == []


async def test_cancelling_one_call_never_hurts_the_next() -> None:
    """A is cancelled while it begins, runs or finishes; B, behind it, succeeds in every round."""
    async with AioPool(1) as pool:
        for number in range(100):
            cancelled = pool.submit(jobs.square, number)
            behind = pool.submit(jobs.square, number)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            cancelled.cancel()
            assert await behind == number**2
            await asyncio.wait([cancelled])


async def test_cancelling_a_map_ends_all_of_it(latch: Latch) -> None:
    """Chunks that wait are dropped, those that run are ended, and only then does the await return."""
    async with AioPool(2) as pool:
        task = asyncio.create_task(pool.map(jobs.tell_and_spin, [latch.path] * 20, chunksize=1))
        pids = [int(await latch.told()), int(await latch.told())]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(is_gone(pid) for pid in pids)
        assert latch.told_already() == []


@pytest.mark.parametrize("steps", range(12))
async def test_cancelling_the_start_leaves_no_process(start_method: str, steps: int) -> None:
    """Wherever in the start it arrives, or just after, nothing is left (which is checked after each test)."""

    async def start() -> None:
        async with AioPool(2, context=start_method):
            await asyncio.Event().wait()

    task = asyncio.create_task(start())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_anyio_host_that_cancels_again_and_again_gets_its_call_ended(latch: Latch) -> None:
    """anyio re-delivers a cancellation at every await; the call is ended once, and its worker gone, all the same."""
    async with AioPool(1) as pool:
        pid = 0
        async with anyio.create_task_group() as group:
            group.start_soon(pool.apply, jobs.tell_and_spin, (latch.path,))
            pid = int(await latch.told())
            group.cancel_scope.cancel()
        assert is_gone(pid)
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_waiting_with_a_time_limit_leaves_the_call_alone(latch: Latch, gate: Latch) -> None:
    """``get`` and ``wait`` do not own the call: when they give up, or are cancelled, it goes on."""
    async with AioPool(1) as pool:
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "done")
        await latch.told()
        with pytest.raises(TimeoutError):
            await result.get(timeout=0.01)
        await result.wait(timeout=0.01)
        waiting = asyncio.create_task(result.get())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not result.ready()
        gate.let()
        assert await result.get() == "done"
