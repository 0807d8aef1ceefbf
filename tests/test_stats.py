"""What a pool says of itself."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

import jobs
from aiopool import AioPool, CallTimeout, InitializerError, Latencies, PoolStats, WorkerDied
from aiopool.calls import CANCELLED, Call, Limits, Outcome, Reply
from aiopool.exceptions import BrokenPool, PoolTerminated
from aiopool.recycling import RecycleReason
from aiopool.stats import BUCKETS, Histogram, Tally
from aiopool.worker import memory
from latch import Latch


def snapshot(tally: Tally) -> PoolStats:
    """Return what has been counted."""
    return tally.snapshot("running", (), 0, 0)


@pytest.mark.parametrize(
    ("outcome", "tries", "field", "retried"),
    [
        (Reply(failed=False, payload=b""), 0, "done", 0),
        (Reply(failed=False, payload=b""), 2, "done", 2),
        (Reply(failed=True, payload=b""), 1, "failed", 1),
        (WorkerDied(1, 1, "job", 1), 1, "died", 0),
        (WorkerDied(1, 1, "job", 3), 3, "died", 2),
        (CallTimeout("job", 1.0), 0, "timed_out", 0),
        (CANCELLED, 1, "cancelled", 1),
        (PoolTerminated("terminated"), 0, "abandoned", 0),
        (BrokenPool("broken"), 1, "abandoned", 1),
    ],
)
def test_each_end_of_a_call_counts_as_what_it_is(outcome: Outcome, tries: int, field: str, retried: int) -> None:
    """And as nothing else."""
    tally, call = Tally(), Call("job", b"", lambda _outcome: None, Limits())
    call.tries = tries
    tally.ended(call, outcome, 0.0)
    stats = snapshot(tally)
    fields = ("done", "failed", "died", "timed_out", "cancelled", "abandoned")
    assert {name: getattr(stats, name) for name in fields} == {name: int(name == field) for name in fields}
    assert stats.retried == retried


def test_the_time_of_a_call_is_divided_into_waiting_and_running() -> None:
    """Only where it has answered; a clock that is coarse makes no negative times."""
    tally, call = Tally(), Call("job", b"", lambda _outcome: None, Limits())
    call.submitted = 10.0
    tally.ended(call, Reply(failed=False, payload=b"", seconds=0.25), 11.0)
    tally.ended(call, Reply(failed=True, payload=b"", seconds=2.0), 11.0)
    tally.ended(call, CANCELLED, 11.0)
    stats = snapshot(tally)
    assert (stats.run_time.count, stats.run_time.seconds) == (2, 2.25)
    assert (stats.queue_time.count, stats.queue_time.seconds) == (2, 0.75)


@pytest.mark.parametrize("seconds", [0.0, 0.9e-6, 1e-6, 1.5e-6, 2e-6, 0.001, 0.3, 1.0, 60.0, 1800.0, 1e6])
def test_a_time_is_counted_below_its_bound(seconds: float) -> None:
    """And not below the bound before that."""
    histogram = Histogram()
    histogram.add(seconds)
    counted = histogram.snapshot()
    bucket = counted.counts.index(1)
    assert counted.count == 1
    assert len(counted.counts) == len(Latencies.BOUNDS) == BUCKETS
    assert seconds < Latencies.BOUNDS[bucket]
    assert bucket == 0 or seconds >= Latencies.BOUNDS[bucket - 1]


def test_workers_count_by_how_they_went() -> None:
    """Each reason has a number, also one that never was."""
    tally = Tally()
    tally.lost()
    tally.recycled(RecycleReason.AGE)
    tally.recycled(RecycleReason.AGE)
    tally.recycled(RecycleReason.CALLS)
    stats = snapshot(tally)
    assert stats.lost == 1
    assert stats.recycled == {"calls": 1, "age": 2, "memory": 0}


@pytest.mark.both_loops
async def test_a_snapshot_shows_who_does_what(latch: Latch, gate: Latch) -> None:
    """Seat, process, phase, what it has served, what it runs; and what waits."""
    async with AioPool(2) as pool:
        running = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, os.getpid()) for _ in range(2)]
        waiting = pool.submit(jobs.square, 3)
        for _ in running:
            await latch.told()
        stats = pool.stats()
        assert (stats.phase, stats.queued, stats.running) == ("running", 1, 2)
        assert [worker.seat for worker in stats.workers] == [0, 1]
        for worker in stats.workers:
            assert (worker.phase, worker.calls, worker.call) == ("busy", 0, "tell_and_wait")
            assert worker.age is not None
            assert worker.call_seconds is not None
            assert 0 <= worker.call_seconds <= worker.age
            assert worker.memory is not None
            assert worker.memory > 1_000_000
        gate.let(2)
        assert await waiting == 9
        await asyncio.gather(*running)
        stats = pool.stats()
        assert (stats.done, stats.queued, stats.running) == (3, 0, 0)
        assert {worker.phase for worker in stats.workers} == {"idle"}
        assert sum(worker.calls for worker in stats.workers) == 3
        assert {worker.call for worker in stats.workers} == {worker.call_seconds for worker in stats.workers} == {None}
        assert {worker.pid for worker in stats.workers} == {
            process.pid for process in pool._backend._processes.values()
        }
    assert pool.stats().workers == ()
    assert pool.stats().phase == "closed"


async def test_what_cannot_be_looked_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is left, the memory of workers is not known, and all else is."""

    def no_descriptor_left(_path: str, _mode: str) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with AioPool(1) as pool:
        monkeypatch.setattr(memory, "open", no_descriptor_left, raising=False)
        assert pool.healthy
        (worker,) = pool.stats().workers
        assert (worker.phase, worker.memory) == ("idle", None)


@pytest.mark.both_loops
async def test_workers_that_go_are_counted_by_the_reason(latch: Latch) -> None:
    """Recycled by count and memory, lost, killed for a cancellation; those that leave at the end are none of these."""
    async with AioPool(1, maxtasksperchild=2) as pool:
        for _ in range(5):
            await pool.apply(jobs.square, (3,))
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.kill_self)
        endless = pool.submit(jobs.tell_and_spin, latch.path)
        await latch.told()
        endless.cancel()
        await asyncio.wait([endless])
    stats = pool.stats()
    assert stats.recycled == {"calls": 2, "age": 0, "memory": 0}
    assert (stats.done, stats.died, stats.cancelled, stats.lost) == (5, 1, 1, 1)
    assert stats.retried == 0
    async with AioPool(1, max_memory_per_child=1) as pool:
        first = await pool.apply(jobs.pid_of)
        while await pool.apply(jobs.pid_of) == first:
            pass  # its successor is not ready yet
        assert pool.stats().recycled["memory"] >= 1


@pytest.mark.both_loops
async def test_a_pool_is_healthy_while_somebody_can_serve(latch: Latch) -> None:
    """Not before its start, not after its end, and not while its only worker is gone."""
    pool = AioPool(1)
    assert not pool.healthy
    assert pool.stats().phase == "new"
    async with pool:
        assert pool.healthy
        endless = pool.submit(jobs.tell_and_spin, latch.path)
        await latch.told()
        assert pool.healthy
        endless.cancel()
        assert not pool.healthy
        await asyncio.wait([endless])
        assert await pool.apply(jobs.square, (3,)) == 9
        assert pool.healthy
        pool.close()
        assert not pool.healthy


async def test_a_pool_whose_workers_keep_dying_is_not_healthy(tmp_path: Path) -> None:
    """It tells so before a call does."""
    async with AioPool(1, initializer=jobs.fail_to_initialize_after, initargs=(str(tmp_path / "tries"), 1)) as pool:
        assert pool.healthy
        (worker,) = pool.stats().workers
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises((BrokenPool, WorkerDied)) as caught:
            await pool.apply(jobs.square, (3,))
        assert isinstance(caught.value.__cause__, InitializerError)
        assert not pool.healthy
