"""Time limits, the grace to stop by oneself, and tries after a death."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool, CallTimeout, ResultTimeout, WorkerDied, wire
from conftest import is_gone, pass_time
from latch import Latch

pytestmark = pytest.mark.both_loops

LONG = 1000.0
"""A grace or a limit, in seconds, that no test outlasts."""


async def test_a_call_over_its_time_limit_is_stopped(start_method: str, latch: Latch) -> None:
    """Its worker is gone when CallTimeout is raised, and the next call gets a fresh one."""
    async with AioPool(1, timeout=0.05, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of, timeout=None)
        with pytest.raises(CallTimeout, match=r"tell_and_spin ran longer than its time limit of 0\.05 s") as caught:
            await pool.apply(jobs.tell_and_spin, (latch.path,))
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.call, caught.value.timeout) == ("tell_and_spin", 0.05)
        assert is_gone(pid)
        assert await pool.apply(jobs.square, (3,), timeout=None) == 9


async def test_a_call_may_ask_for_a_limit_of_its_own(latch: Latch, gate: Latch) -> None:
    """Another than the pool's, or none."""
    async with AioPool(1, timeout=0.05) as pool:
        unlimited = pool.apply_async(jobs.tell_and_wait, (latch.path, gate.path), timeout=None)
        await latch.told()
        with pytest.raises(ResultTimeout):
            await unlimited.get(0.2)
        gate.let()
        await unlimited
    async with AioPool(1) as pool:
        with pytest.raises(CallTimeout):
            await pool.apply(jobs.tell_and_spin, (latch.path,), timeout=0.01)


async def test_the_clock_starts_when_the_call_begins(latch: Latch, gate: Latch) -> None:
    """Not while it waits for a worker, however long."""
    async with AioPool(1) as pool:
        blocking = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        limited = pool.apply_async(jobs.square, (3,), timeout=5)
        pass_time(pool, 100)
        gate.let()
        await blocking
        assert await limited == 9


async def test_time_limits_of_maps_and_streams_are_for_each_chunk(latch: Latch) -> None:
    """An automatic chunk is one item then; the items that are in time count."""
    items = [(latch.path, item) for item in range(4)]
    async with AioPool(2, timeout=LONG, start_timeout=10 * LONG) as pool:
        assert await pool.map(jobs.square, range(20)) == [number**2 for number in range(20)]
        mapped = pool.map_async(jobs.spin_at_one, items)
        await latch.told()
        pass_time(pool, 2 * LONG)
        with pytest.raises(CallTimeout):
            await mapped
        stream = pool.imap(jobs.spin_at_one, items, buffersize=1)
        assert await anext(stream) == 0
        await latch.told()
        pass_time(pool, 2 * LONG)
        with pytest.raises(CallTimeout):
            await anext(stream)
        assert [value async for value in stream] == [2, 3]
        assert await pool.starmap(jobs.add, [(1, 2)], timeout=None) == [3]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_call_that_stops_in_its_grace_keeps_its_worker(start_method: str, how: str, latch: Latch) -> None:
    """It is interrupted, cleans up, and the next call meets the same process."""
    async with AioPool(1, cancel_grace=LONG, context=start_method) as pool:
        timeout = LONG if how == "timeout" else None
        for job in (jobs.tell_and_clean_up, jobs.tell_sleep_and_clean_up):
            result = pool.apply_async(job, (latch.path,), timeout=timeout)
            pid = int(await latch.told())
            if how == "cancel":
                result.cancel()
                await asyncio.wait([result])
                assert result.cancelled()
            else:
                pass_time(pool, 2 * LONG)
                with pytest.raises(CallTimeout):
                    await result
            assert await latch.told() == "cleaned up"
            assert await pool.apply(jobs.pid_of) == pid


async def test_an_interruption_that_goes_unnoticed_is_signalled_again(start_method: str, latch: Latch) -> None:
    """The grace is not over by then, and the worker stays."""
    async with AioPool(1, cancel_grace=LONG, context=start_method) as pool:
        result = pool.submit(jobs.lose_an_interruption, latch.path)
        pid = int(await latch.told())
        result.cancel()
        assert await latch.told() == "cleaned up"
        await asyncio.wait([result])
        assert await pool.apply(jobs.pid_of) == pid


async def test_a_map_that_is_cancelled_in_its_grace_keeps_all_workers(latch: Latch) -> None:
    """Each chunk that runs is interrupted."""
    async with AioPool(2, cancel_grace=LONG) as pool:
        result = pool.map_async(jobs.tell_and_clean_up, [latch.path] * 9, chunksize=1)
        pids = {int(await latch.told()), int(await latch.told())}
        result.cancel()
        await asyncio.wait([result])
        assert [await latch.told(), await latch.told()] == ["cleaned up"] * 2
        assert set(await pool.map(jobs.pid_of, range(20), chunksize=1)) <= pids


@pytest.mark.parametrize("job", [jobs.tell_and_swallow_everything, jobs.tell_and_hold_the_interpreter])
async def test_a_call_that_does_not_stop_is_killed_after_its_grace(start_method: str, job, latch: Latch) -> None:
    """It swallows the interruption, or C code never lets Python look."""
    async with AioPool(1, cancel_grace=0.1, context=start_method) as pool:
        result = pool.submit(job, latch.path)
        pid = int(await latch.told())
        await work_on(pid)  # what follows the telling has begun
        result.cancel()
        await asyncio.wait([result])
        assert result.cancelled()
        assert is_gone(pid)
        assert await pool.apply(jobs.square, (3,)) == 9


async def work_on(pid: int) -> None:
    """Let a process use a little more of its CPU's time."""

    def ticks() -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    begin = ticks()
    while ticks() < begin + 3:
        await asyncio.sleep(0)


async def test_an_interruption_never_hits_the_next_call() -> None:
    """A is cancelled while it begins, runs or finishes; B, behind it in the same worker, succeeds in every round."""
    async with AioPool(1, cancel_grace=LONG) as pool:
        pid = await pool.apply(jobs.pid_of)
        for number in range(1000):
            cancelled, behind = pool.submit(jobs.square, number), pool.submit(jobs.square, number)
            for _ in range(number % 7):
                await asyncio.sleep(0)
            cancelled.cancel()
            assert await behind == number**2
            await asyncio.wait([cancelled])
        assert await pool.apply(jobs.pid_of) == pid


async def test_an_interruption_without_a_word_is_ignored(latch: Latch, gate: Latch) -> None:
    """The signal alone, from anybody, interrupts nothing; nor does it break a wait."""
    async with AioPool(1, cancel_grace=LONG) as pool:
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "done")
        pool._backend._processes[1].interrupt(10**9)  # type: ignore[attr-defined]  # some other call's id
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        await latch.told()
        pool._backend._processes[1].interrupt(10**9)  # type: ignore[attr-defined]
        gate.let()
        assert await result == "done"


async def test_a_call_whose_worker_died_is_tried_again(start_method: str, tmp_path: Path) -> None:
    """As often as was said; what it returns at last is its result."""
    async with AioPool(1, retries=2, context=start_method) as pool:
        path = str(tmp_path / "tries")
        assert await pool.apply(jobs.die_unless_tried, (path, 3)) == 3
        with pytest.raises(WorkerDied, match=r"was killed by SIGKILL .* \(the last of 3 tries\)") as caught:
            await pool.apply(jobs.die_unless_tried, (path + "2", 4))
        assert caught.value.tries == 3
        assert (tmp_path / "tries2").stat().st_size == 3
        with pytest.raises(WorkerDied) as caught:
            await pool.apply(jobs.die_unless_tried, (path + "3", 2), retries=0)
        assert (caught.value.tries, (tmp_path / "tries3").stat().st_size) == (1, 1)


async def test_a_chunk_whose_worker_died_is_tried_again(tmp_path: Path) -> None:
    """In maps and streams."""
    async with AioPool(2) as pool:
        paths = [(str(tmp_path / str(number)), 2) for number in range(4)]
        assert await pool.starmap(jobs.die_unless_tried, paths, chunksize=2, retries=2) == [3, 2, 3, 2]
        stream = pool.imap(jobs.die_once, [str(tmp_path / "a"), str(tmp_path / "b")], retries=1)
        assert [value async for value in stream] == [2, 2]


async def test_a_chunk_of_a_failed_map_is_not_tried_again(latch: Latch, gate: Latch, tmp_path: Path) -> None:
    """It may go on, but if its worker dies that is the end: the map has failed already."""
    with Latch(tmp_path / "failing") as failing:
        async with AioPool(2) as pool:
            items = [(latch.path, gate.path, 0), (latch.path, failing.path, 3)]
            mapped = pool.starmap_async(jobs.tell_wait_and_fail_at, items, chunksize=1, retries=5)
            pids = dict([(await latch.told()).split() for _ in items])
            failing.let()
            with pytest.raises(ValueError, match="3"):
                await mapped
            os.kill(int(pids["0"]), signal.SIGKILL)
            gate.let(5)  # so that nothing would hang if it were tried again
    assert latch.told_already() == []


async def test_nothing_else_is_tried_again(tmp_path: Path, latch: Latch) -> None:
    """Not what raises, is cancelled, or is late."""
    async with AioPool(1, retries=5) as pool:
        with pytest.raises(ValueError, match="3"):
            await pool.apply(jobs.fail_at, (3,))
        with pytest.raises(CallTimeout):
            await pool.apply(jobs.tell_and_spin, (latch.path,), timeout=0.05)
        assert len(latch.told_already()) <= 1  # if it has come so far
        result = pool.submit(jobs.tell_and_spin, latch.path)
        await latch.told()
        result.cancel()
        await asyncio.wait([result])
        await pool.apply(jobs.square, (1,))
        assert latch.told_already() == []
    assert not list(tmp_path.glob("tries*"))


@pytest.mark.parametrize(
    ("kwds", "error", "text"),
    [
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds, not 0"),
        ({"timeout": float("nan")}, ValueError, "timeout must be more than 0 seconds, not nan"),
        ({"timeout": float("inf")}, ValueError, "timeout must be a number of seconds that is finite as a float"),
        ({"timeout": 10**5000}, ValueError, "timeout must be a number of seconds that is finite as a float"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, not '1'"),
        ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
        ({"retries": 1.5}, TypeError, "retries must be an int, not 1.5"),
    ],
)
async def test_bad_limits_are_refused(kwds: dict[str, float], error: type[Exception], text: str) -> None:
    """By the pool and by each call."""
    with pytest.raises(error) as caught:
        AioPool(**kwds)  # type: ignore[arg-type]
    assert str(caught.value) == text
    async with AioPool(1) as pool:
        for verb in (pool.apply_async, pool.map_async, pool.imap):
            with pytest.raises(error) as caught:
                verb(jobs.square, [1], **kwds)  # type: ignore[operator]
            assert str(caught.value) == text


@pytest.mark.parametrize(
    ("kwds", "error", "text"),
    [
        ({"cancel_grace": -1}, ValueError, "cancel_grace must be at least 0 seconds, not -1"),
        ({"cancel_grace": None}, TypeError, "cancel_grace must be a number of seconds, not None"),
        ({"start_timeout": 0}, ValueError, "start_timeout must be more than 0 seconds, not 0"),
        ({"max_age": float("nan")}, ValueError, "max_age must be more than 0 seconds, not nan"),
        ({"max_age": 10**400}, ValueError, "max_age must be a number of seconds that is finite as a float"),
        ({"max_memory_per_child": 0}, ValueError, "max_memory_per_child must be at least 1, not 0"),
        ({"max_pending": 0}, ValueError, "max_pending must be at least 1, not 0"),
        ({"recycle_jitter": 1.1}, ValueError, "recycle_jitter must be a number from 0 to 1, not 1.1"),
        ({"recycle_jitter": "x"}, TypeError, "recycle_jitter must be a number from 0 to 1, not 'x'"),
    ],
)
def test_bad_options_are_refused(kwds: dict[str, float], error: type[Exception], text: str) -> None:
    """With the value, before anything starts."""
    with pytest.raises(error) as caught:
        AioPool(**kwds)  # type: ignore[arg-type]
    assert str(caught.value) == text


async def test_a_deadline_that_is_due_at_once_is_kept() -> None:
    """However short the limit: what the loop calls soon, it need not call at a time. However long, too."""
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    async with AioPool(2, max_pending=2) as pool:
        for _ in range(30):
            calls = [pool.apply(jobs.square, (3,), timeout=0.0004) for _ in range(5)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {int, CallTimeout}
        assert await pool.apply(jobs.square, (3,), timeout=sys.float_info.max) == 9
    assert troubles == []


async def test_cancelling_a_call_whose_time_is_up_still_cancels(latch: Latch) -> None:
    """It is in its grace and does not stop; a task that is cancelled meanwhile sees that, and no CallTimeout."""
    async with AioPool(1, timeout=LONG, cancel_grace=1) as pool:
        task = asyncio.create_task(pool.apply(jobs.tell_and_swallow_everything, (latch.path,)))
        await latch.told()
        pass_time(pool, 2 * LONG)
        task.cancel()
        await asyncio.sleep(0)  # it is
        pass_time(pool, 3 * LONG)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_chunk_of_a_stream_is_interrupted_as_a_whole(latch: Latch) -> None:
    """No other of its items begins when one was interrupted, and the worker stays."""
    async with AioPool(1, cancel_grace=LONG) as pool:
        await pool.apply(jobs.pid_of)  # which imports the jobs: they are to be interrupted, not their import
        stream = pool.imap(jobs.tell_and_clean_up, [latch.path] * 3, chunksize=3, timeout=LONG)
        pid = int(await latch.told())
        pass_time(pool, 2 * LONG)
        with pytest.raises(CallTimeout):
            await anext(stream)
        assert await latch.told() == "cleaned up"
        assert await pool.apply(jobs.pid_of) == pid
        assert latch.told_already() == []


async def test_a_time_limit_may_end_at_once(latch: Latch) -> None:
    """Also where other things happen in that very moment, for which some loops have no timer but a mere handle."""
    async with AioPool(2) as pool:
        backend, others = pool._backend, []
        received = backend.received  # type: ignore[attr-defined]

        def and_submit(worker: int, frames: list[wire.Frame]) -> None:
            received(worker, frames)
            if frames[0].kind == wire.Kind.BEGUN:
                others.append(pool.submit(jobs.square, 3))

        backend.received = and_submit  # type: ignore[attr-defined]
        with pytest.raises(CallTimeout):
            await pool.apply(jobs.tell_and_spin, (latch.path,), timeout=1e-9)
        assert await asyncio.gather(*others) == [9]


async def test_a_worker_that_is_stopped_holds_up_no_call_with_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never says that it begins the call; that is waited for, and not for ever."""
    monkeypatch.setattr("aiopool.decisions.BEGIN_TIMEOUT", 0.05)
    async with AioPool(1) as pool:
        os.kill(await pool.apply(jobs.pid_of), signal.SIGSTOP)
        with pytest.raises(CallTimeout):
            await pool.apply(jobs.square, (2,), timeout=0.05)
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_call_that_ended_while_this_process_was_stopped_was_in_time(latch: Latch, gate: Latch) -> None:
    """When it goes on, the loop sees that the time is up before it sees what has come."""
    async with AioPool(1) as pool:
        pid = await pool.apply(os.getpid)
        call = pool.apply_async(jobs.tell_and_wait, (latch.path, gate.path, 5), timeout=LONG)
        assert await latch.told() == "5"
        backend: Any = pool._backend
        deadlines, (process,) = backend._dispatcher._crew.deadlines, backend._processes.values()
        while max(deadlines.values()) > backend.loop.time() + LONG:  # until the worker's word is here that it has begun
            await asyncio.sleep(0)
        gate.let()
        select.select([process._own_end], [], [])
        deadlines.update(dict.fromkeys(deadlines, 0.0))
        backend._tick()
        assert await call == 5
        assert await pool.apply(os.getpid) == pid
