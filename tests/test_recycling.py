"""Recycling: how many calls a worker serves, and that none is lost or run twice over it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from typing import Any

import pytest

import jobs
from aiopool import AioPool
from aiopool.backends.process import WorkerProcess
from aiopool.recycling import Allowance, RecyclePolicy
from latch import Latch


def test_a_worker_without_a_limit_is_never_spent() -> None:
    """And takes chunks of any size."""
    policy = RecyclePolicy(None, jitter=0.5)
    allowance = policy.allowance(1)
    assert allowance == Allowance(None, None)
    assert not allowance.spent(10**9)
    assert allowance.fits(10**9, 10**9)
    assert policy.chunksize(12345) == 12345


@pytest.mark.parametrize(("limit", "wanted", "size"), [(10, 7, 5), (10, 100, 10), (7, 4, 1), (1, 50, 1), (12, 5, 4)])
def test_an_automatic_chunk_divides_the_limit(limit: int, wanted: int, size: int) -> None:
    """So that chunks use a worker up without a remainder."""
    assert RecyclePolicy(limit).chunksize(wanted) == size


def test_a_chunk_fits_what_is_left_and_a_fresh_worker_takes_any() -> None:
    """Or a chunk that is larger than the limit would never run."""
    allowance = RecyclePolicy(5).allowance(0.5)
    assert allowance.fits(3, 2)
    assert not allowance.fits(4, 2)
    assert allowance.fits(0, 100)
    assert allowance.spent(5)
    assert not allowance.spent(4)


def test_jitter_lowers_each_workers_own_limits() -> None:
    """By as much as chance says, and never below one call; automatic chunks are then single items."""
    policy = RecyclePolicy(100, max_age=60, jitter=0.5)
    assert policy.allowance(0) == Allowance(100, 60)
    assert policy.allowance(0.5) == Allowance(75, 45)
    assert policy.allowance(1) == Allowance(50, 30)
    assert policy.chunksize(20) == 1
    assert RecyclePolicy(1, jitter=1).allowance(1) == Allowance(1, None)


@pytest.mark.parametrize(("calls", "limit"), [(7, 1), (10, 5), (11, 5), (3, 100)])
async def test_calls_use_exactly_as_many_processes_as_it_takes(start_method: str, calls: int, limit: int) -> None:
    """ceil(n/k) processes for n calls with ``maxtasksperchild=k``, when one worker serves them."""
    async with AioPool(1, maxtasksperchild=limit, context=start_method) as pool:
        pids = [await pool.apply(jobs.pid_of) for _ in range(calls)]
    assert max(Counter(pids).values()) == min(limit, calls)
    assert len(set(pids)) == -(-calls // limit)


async def test_a_map_uses_exactly_as_many_processes_as_it_takes() -> None:
    """Items are counted, not chunks."""
    async with AioPool(1, maxtasksperchild=7) as pool:
        pids = await pool.map(jobs.pid_of, range(100))
    assert sorted(Counter(pids).values()) == [2] + [7] * 14


async def test_an_automatic_chunk_never_exceeds_what_a_worker_has_left() -> None:
    """After a few single calls, a worker goes early rather than take a chunk that is too large for it."""
    async with AioPool(1, maxtasksperchild=4) as pool:
        pids = [await pool.apply(jobs.pid_of) for _ in range(3)]
        pids += await pool.map(jobs.pid_of, range(32))
    assert max(Counter(pids).values()) == 4


async def test_a_larger_chunk_that_was_asked_for_is_finished() -> None:
    """Then the worker goes."""
    async with AioPool(1, maxtasksperchild=2) as pool:
        pids = await pool.map(jobs.pid_of, range(10), chunksize=5)
    assert sorted(Counter(pids).values()) == [5, 5]


async def test_a_backlog_survives_recycling_none_lost_and_none_twice() -> None:
    """Ten thousand calls on workers that serve a hundred each."""
    async with AioPool(2, maxtasksperchild=100) as pool:
        results = await asyncio.gather(*(pool.apply(jobs.same, (number,)) for number in range(10_000)))
        assert results == list(range(10_000))
        pids = await pool.map(jobs.pid_of, range(1000), chunksize=1)
    assert max(Counter(pids).values()) <= 100


async def test_never_more_calls_run_than_there_are_seats(latch: Latch, gate: Latch) -> None:
    """A successor waits for its seat, though it is ready: here each call is its worker's last, and none ends."""
    async with AioPool(2, maxtasksperchild=1) as pool:
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(6)]
        assert {await latch.told(), await latch.told()} == {"0", "1"}
        while repr(pool) != "<AioPool running: 4 workers, 2 busy, 4 calls waiting>":
            await asyncio.sleep(0)
        assert latch.told_already() == []
        gate.let(6)
        assert await asyncio.gather(*results) == list(range(6))


async def test_a_worker_that_uses_too_much_memory_is_replaced(start_method: str) -> None:
    """It is measured after each call; whoever is below the limit stays."""
    async with AioPool(1, max_memory_per_child=400_000_000, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of)
        assert await pool.apply(jobs.grow, (1000,)) == pid
        assert await pool.apply(jobs.grow, (500_000_000,)) == pid
        while await pool.apply(jobs.pid_of) == pid:  # until its successor is ready
            pass


async def test_a_worker_that_is_old_is_replaced_when_its_successor_is_ready(latch: Latch, gate: Latch) -> None:
    """One that is idle goes, one that is busy finishes first."""
    async with AioPool(1, max_age=0.2) as pool:
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        pid = int(await latch.told())
        while "2 workers" not in repr(pool):
            await asyncio.sleep(0)
        gate.let()
        await result
        while (other := await pool.apply(jobs.pid_of)) == pid:
            pass
        while f"{other}" in {str(process.pid) for process in pool._backend._processes.values()}:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.both_loops
async def test_nothing_is_kept_of_workers_that_are_gone(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither buffers nor threads; they do not even wait for the garbage to be collected."""
    made: list[weakref.ref[WorkerProcess]] = []

    def make(*args: Any, **kwds: Any) -> WorkerProcess:
        process = WorkerProcess(*args, **kwds)
        made.append(weakref.ref(process))
        return process

    monkeypatch.setattr("aiopool.pool.WorkerProcess", make)
    gc.disable()
    try:
        async with AioPool(1, maxtasksperchild=1, context=start_method) as pool:
            pids = {await pool.apply(jobs.pid_of) for _ in range(3)}
        await asyncio.sleep(0)  # a loop may still hold the callback that it ran last
        assert len(made) > len(pids) == 3
        assert [process() for process in made] == [None] * len(made)
    finally:
        gc.enable()
