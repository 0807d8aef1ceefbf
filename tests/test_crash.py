"""Workers that die: every death names its call, touches no other, and leaves the pool as it was."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

import jobs
from aiopool import AioPool, WorkerDied
from conftest import is_gone
from latch import Latch

pytestmark = pytest.mark.both_loops


async def test_kill_in_mid_call_raises_with_pid_exit_code_and_signal(start_method: str, latch: Latch) -> None:
    """``kill -9`` of a busy worker fails its call, at once, and says what happened to whom."""
    async with AioPool(1, context=start_method) as pool:
        result = pool.submit(jobs.tell_and_spin, latch.path)
        pid = int(await latch.told())
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            with pytest.raises(WorkerDied) as caught:
                await result
        died = caught.value
        assert (died.pid, died.exitcode, died.signal, died.call) == (pid, -9, "SIGKILL", "tell_and_spin")
        assert str(died) == f"worker process {pid} was killed by SIGKILL while running tell_and_spin"
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.parametrize("code", [0, 42])
async def test_leaving_in_a_job_fails_the_call_and_refills_the_seat(start_method: str, code: int) -> None:
    """``os._exit``, with code 0 too, is a death."""
    async with AioPool(1, context=start_method) as pool:
        first = await pool.apply(jobs.pid_of)
        with pytest.raises(WorkerDied) as caught:
            await pool.apply(jobs.leave_half_way, (code,))
        assert (caught.value.pid, caught.value.exitcode, caught.value.signal) == (first, code, None)
        assert await pool.apply(jobs.pid_of) != first


async def test_bystanders_and_queued_calls_succeed(latch: Latch, gate: Latch) -> None:
    """A death touches neither the call on another worker nor one that waits."""
    async with AioPool(2) as pool:
        bystander = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "bystander")
        await latch.told()
        victim = pool.submit(jobs.tell_and_spin, latch.path)
        pid = int(await latch.told())
        queued = [pool.submit(jobs.square, number) for number in range(3)]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await victim
        assert await asyncio.gather(*queued) == [0, 1, 4]
        gate.let()
        assert await bystander == "bystander"


async def test_three_times_as_many_crashes_as_workers_all_fail_and_the_pool_works_on(start_method: str) -> None:
    """Crashing calls use up workers, not the pool."""
    async with AioPool(2, context=start_method) as pool:
        crashes = [pool.submit(jobs.leave_half_way, 1) for _ in range(6)]
        outcomes = await asyncio.gather(*crashes, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WorkerDied] * 6
        assert await pool.map(jobs.square, range(6)) == [0, 1, 4, 9, 16, 25]


async def test_a_worker_that_dies_idle_is_replaced_unseen(start_method: str) -> None:
    """A call made right after an idle worker was killed succeeds, though its death is not even known yet."""
    async with AioPool(1, context=start_method) as pool:
        for _ in range(3):
            pid = await pool.apply(jobs.pid_of)
            os.kill(pid, signal.SIGKILL)
            assert await pool.apply(jobs.pid_of) != pid


async def test_a_segmentation_fault_is_a_death_like_any_other(start_method: str) -> None:
    """SIGSEGV behaves as kill -9 does."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied, match=r"was killed by SIGSEGV while running kill_self"):
            await pool.apply(jobs.kill_self, (signal.SIGSEGV,))
        assert await pool.apply(jobs.square, (2,)) == 4


async def test_a_death_in_a_map_fails_the_map_and_nothing_else() -> None:
    """The chunk that died is the map's exception."""
    async with AioPool(2) as pool:
        with pytest.raises(WorkerDied) as caught:
            await pool.map(jobs.leave_at_one, range(8), chunksize=1)
        assert caught.value.call == "leave_at_one"
        assert await pool.map(jobs.square, range(4)) == [0, 1, 4, 9]


async def test_what_a_killed_worker_started_goes_with_it(start_method: str, latch: Latch) -> None:
    """A worker that is killed from outside does not leave its call's processes behind."""
    async with AioPool(1, context=start_method) as pool:
        result = pool.submit(jobs.tell_of_grandchild_and_spin, latch.path)
        grandchild = int(await latch.told())
        os.kill(parent_of(grandchild), signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await result
        await gone(grandchild)


def parent_of(pid: int) -> int:
    """Return a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def gone(pid: int) -> None:
    """Wait until a process that is not our child is gone: whoever has inherited it must reap it first."""
    pidfd = None
    try:
        pidfd = os.pidfd_open(pid)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        await ended.wait()
        loop.remove_reader(pidfd)
    except ProcessLookupError:
        assert is_gone(pid)
    finally:
        if pidfd is not None:
            os.close(pidfd)
