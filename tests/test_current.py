"""What a job can learn of its worker."""

from __future__ import annotations

import asyncio

import pytest

import jobs
from aiopool import AioPool, WorkerDied, current_worker
from latch import Latch

pytestmark = pytest.mark.both_loops


async def test_a_worker_has_the_seat_of_the_one_that_it_replaces(start_method: str) -> None:
    """Whether that was recycled or died; its calls are counted anew."""
    async with AioPool(1, maxtasksperchild=2, context=start_method) as pool:
        workers = [await pool.apply(jobs.worker_here) for _ in range(5)]
        assert [worker.seat for worker in workers] == [0] * 5
        assert [worker.calls for worker in workers] == [0, 1, 0, 1, 0]
        assert workers[0].pid == workers[1].pid != workers[2].pid
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.kill_self)
        worker = await pool.apply(jobs.worker_here)
        assert (worker.seat, worker.calls) == (0, 0)


async def test_each_worker_has_a_seat_of_its_own(latch: Latch, gate: Latch, start_method: str) -> None:
    """From 0 on, as in the pool's statistics."""
    async with AioPool(3, context=start_method) as pool:
        held = [pool.submit(jobs.tell_and_wait, latch.path, gate.path) for _ in range(2)]
        for _ in held:
            await latch.told()
        free = await pool.apply(jobs.worker_here)
        by_seat = {worker.seat: worker.pid for worker in pool.stats().workers}
        assert sorted(by_seat) == [0, 1, 2]
        assert by_seat[free.seat] == free.pid
        gate.let(2)
        await asyncio.gather(*held)


async def test_elsewhere_there_is_none() -> None:
    """Neither in the parent, nor in what a job forks."""
    assert current_worker() is None
    async with AioPool(1) as pool:
        assert await pool.apply(jobs.worker_in_a_child) is False
