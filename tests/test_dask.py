"""A pool on a cluster of Dask: what it promises there, and what is different."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import async_jobs
import dask_jobs
import jobs
from aiopool import (
    AioPool,
    AioPoolError,
    CallStarted,
    CallTimeout,
    WorkerDied,
    WorkerLeft,
    WorkerStarted,
)
from aiopool.backends.dask import DaskBackend
from dask_cluster import Cluster, backend_of, workers_of
from latch import Latch
from test_hooks import Diary

pytestmark = pytest.mark.once


@pytest.fixture
async def pool(dask: Cluster):
    """A pool there, that has both workers."""
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        await workers_of(pool, 2)
        yield pool


# Cancelling, time limits.


async def test_a_call_that_waits_is_never_invoked_when_it_is_cancelled(
    pool: AioPool, latch: Latch, gate: Latch
) -> None:
    """Nor is one that was cancelled before it was given to the cluster."""
    running = [pool.submit(jobs.tell_and_wait, latch.path, gate.path) for _ in range(2)]
    for _ in running:
        await latch.told()
    waiting = pool.submit(jobs.tell, latch.path, "no")
    unsent = pool.submit(jobs.tell, latch.path, "no")
    unsent.cancel()
    await asyncio.wait([unsent])
    await asyncio.sleep(0)
    assert waiting.waiting
    waiting.cancel()
    await asyncio.wait([waiting])
    gate.let(2)
    await asyncio.gather(*running)
    await pool.map(jobs.square, range(4), chunksize=1)
    assert (waiting.cancelled(), unsent.cancelled(), latch.told_already()) == (True, True, [])


async def test_a_running_call_that_is_cancelled_is_let_go_of_and_its_work_goes_on(
    pool: AioPool, latch: Latch, gate: Latch
) -> None:
    """As ever in Dask."""
    running = pool.submit(dask_jobs.tell_wait_and_tell, latch.path, gate.path)
    pid = int(await latch.told())
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    await asyncio.sleep(0)
    assert (backend_of(pool)._tasks.futures, backend_of(pool)._tasks.following) == ({}, {})
    gate.let()
    assert await latch.told() == "past the gate"
    assert pid in await pool.map(jobs.pid_of, range(8), chunksize=1)


async def test_a_cancelled_calls_worker_is_restarted_where_that_is_wanted(dask: Cluster, latch: Latch) -> None:
    """It is gone when the cancelled result is done."""
    async with AioPool(backend=DaskBackend(dask.address, restart_cancelled=True)) as pool:
        running = pool.submit(jobs.tell_and_spin, latch.path)
        pid = int(await latch.told())
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await workers_of(pool, 2)
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_call_over_its_time_limit_is_let_go_of(
    pool: AioPool, latch: Latch, gate: Latch, tmp_path: Path
) -> None:
    """The limit counts from its start in the worker: what waits is not over it."""
    running = [pool.submit(jobs.tell_and_wait, latch.path, gate.path) for _ in range(2)]
    for _ in running:
        await latch.told()
    with Latch(tmp_path / "closed") as closed:
        late = pool.apply_async(jobs.tell_and_wait, (latch.path, closed.path), timeout=0.2)
        await late.wait(0.5)
        assert not late.done()
        gate.let(2)
        with pytest.raises(CallTimeout, match=r"tell_and_wait ran longer than its time limit of 0\.2 s"):
            await late
        closed.let()
    assert pool.stats().timed_out == 1


# Death.


async def test_a_worker_that_is_killed_in_a_map_fails_the_map_and_nothing_else(pool: AioPool, latch: Latch) -> None:
    """The death names its call; a chunk that had not begun, and other calls, run elsewhere, once."""
    doomed = pool.map_async(jobs.tell_and_spin, [latch.path], chunksize=1)
    pid = int(await latch.told())
    others = [pool.submit(jobs.tell_and_return, latch.path, number) for number in range(20)]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="exit code unknown while running tell_and_spin") as caught:
        await doomed
    assert (caught.value.pid, caught.value.exitcode, caught.value.tries) == (pid, None, 1)
    assert "worker of a Dask cluster" in caught.value.__notes__[0]
    assert await asyncio.gather(*others) == list(range(20))
    assert sorted(map(int, latch.told_already())) == list(range(20))
    stats = pool.stats()
    assert (stats.died, stats.lost, stats.done) == (1, 1, 20)
    await workers_of(pool, 2)


async def test_a_call_whose_worker_died_is_run_again_only_if_it_has_retries(dask: Cluster, latch: Latch) -> None:
    """Though the scheduler itself would give it to three more workers."""
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        await workers_of(pool, 2)
        again = pool.apply_async(dask_jobs.tell_and_die_once, (latch.path, f"{latch.path}.died"), retries=1)
        assert await again == "alive"
        assert len({await latch.told(), await latch.told()}) == 2
        assert pool.stats().retried == 1
        await workers_of(pool, 2)
        with pytest.raises(WorkerDied) as caught:
            await pool.apply(dask_jobs.tell_and_die, (latch.path,))
        assert caught.value.tries == 1
        await workers_of(pool, 2)
        assert await pool.map(jobs.pid_of, range(4), chunksize=1)
        assert len(latch.told_already()) == 1


# What is shared, and what is large.


async def test_a_shared_object_goes_to_every_worker_once_and_to_those_that_come_later(pool: AioPool) -> None:
    """They forget it when the handle is dropped."""
    shared = pool.share(jobs.Block(bytearray(b"x" * 100_000)))
    assert await pool.map(jobs.first_byte, [shared] * 8, chunksize=1) == [ord("x")] * 8
    for worker in pool.stats().workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    assert await pool.map(partial(jobs.first_byte), [shared] * 4, chunksize=1) == [ord("x")] * 4
    await workers_of(pool, 2)
    shared.drop()
    with pytest.raises(AioPoolError, match="dropped"):
        await pool.apply(jobs.first_byte, (shared,))
    while any(await pool.map(dask_jobs.shares_here, range(4), chunksize=1)):
        pass


async def test_arrays_arrive_writable_and_are_the_receivers_own(pool: AioPool) -> None:
    """Larger ones than Dask likes to see in its graphs, too, without a warning."""
    array = np.zeros(2_000_000)
    found = await pool.apply(dask_jobs.add_one_in_place, (array,))
    assert (found.sum(), array.sum()) == (2_000_000, 0)
    found += 1
    assert found.flags.writeable


# What it tells.


async def test_hooks_and_statistics_tell_of_calls_and_workers(dask: Cluster) -> None:
    """Which worker has which call, and what has come of it."""
    diary = Diary()
    async with AioPool(backend=DaskBackend(dask.address), hooks=[diary]) as pool:
        await workers_of(pool, 2)
        await pool.map(jobs.square, range(6), chunksize=1)
        stats = pool.stats()
        assert sorted(worker.seat for worker in stats.workers) == [0, 1]
        assert (stats.done, stats.queued, stats.running, sum(worker.calls for worker in stats.workers)) == (6, 0, 0, 6)
        assert pool.healthy
    diary.check()
    assert len(diary.of(CallStarted)) == len(diary.ends) == 6
    assert {event.pid for event in diary.of(CallStarted)} <= {event.pid for event in diary.of(WorkerStarted)}
    assert diary.of(WorkerLeft) == []


async def test_stacks_tell_what_workers_do(pool: AioPool, latch: Latch, gate: Latch) -> None:
    """As Python has them, without the frames around a call."""
    running = pool.submit(jobs.tell_and_wait_deep, 3, latch.path, gate.path)
    pid = int(await latch.told())
    stacks = {stack.pid: stack for stack in await pool.stacks()}
    gate.let()
    await running
    frames = stacks.pop(pid).frames
    assert frames is not None
    certain = [*["tell_and_wait_deep"] * 4, "tell_and_wait"]  # within which it may still be telling
    assert [frame.name for frame in frames][: len(certain)] == certain
    [idle] = stacks.values()
    assert (idle.call, idle.frames) == (None, [])


async def test_the_stack_of_a_coroutine_is_its_own(pool: AioPool, latch: Latch, gate: Latch) -> None:
    """Without the frames of the loop that runs it."""
    running = pool.submit(async_jobs.block_or_size, latch.path, gate.path, b"")
    await latch.told()
    [frames] = [stack.frames for stack in await pool.stacks() if stack.call is not None]
    gate.let()
    await running
    assert frames is not None
    assert frames[0].name == "block_or_size"


async def test_log_records_of_calls_come_here(pool: AioPool, caplog: pytest.LogCaptureFixture) -> None:
    """Those that the worker's own levels let through."""
    await pool.apply(jobs.log, ("there", logging.WARNING, "once %d"), {})
    await pool.apply(jobs.square, (3,))
    assert [record.getMessage() for record in caplog.records if record.name == "there"] == ["once %d"]


async def test_the_pools_of_a_cluster_do_not_know_each_other(dask: Cluster) -> None:
    """Each has its own initializer, pickler, statistics and shares."""
    async with (
        AioPool(initializer=jobs.remember, initargs=(1,), backend=DaskBackend(dask.address)) as one,
        AioPool(initializer=jobs.fail_at, initargs=(1,), backend=DaskBackend(dask.address)) as other,
    ):
        assert await asyncio.gather(one.apply(jobs.square, (2,)), other.apply(jobs.square, (3,))) == [4, 9]
        assert (one.stats().done, other.stats().done) == (1, 1)


async def test_pickling_is_cloudpickles_unless_there_is_another(dask: Cluster) -> None:
    """So a lambda, and what the main module has, may travel."""
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        assert await pool.submit(lambda x: x + 1, 2) == 3


# Chunks.


async def test_automatic_chunks_take_some_time_as_far_as_that_is_known(pool: AioPool) -> None:
    """By what the function's calls have taken so far; an unknown function's input is divided as ever."""
    assert len(set(await pool.map(dask_jobs.numbered_chunk, range(64)))) == 8
    pool._engine.packer.pace_of(dask_jobs.numbered_chunk).seconds = 0.001
    assert len(set(await pool.map(dask_jobs.numbered_chunk, range(100)))) == 2
    pool._engine.packer.pace_of(dask_jobs.numbered_chunk).seconds = 10.0
    assert len(set(await pool.map(dask_jobs.numbered_chunk, range(64)))) == 8


async def test_automatic_chunks_of_coroutine_functions_are_no_others(pool: AioPool) -> None:
    """Each item by itself would cost a task; a time limit, which is for each item, has them by themselves."""
    assert len(set(await pool.map(dask_jobs.numbered_coroutine, range(64)))) == 8
    pool._engine.packer.pace_of(dask_jobs.numbered_coroutine).seconds = 0.001
    assert len(set(await pool.map(dask_jobs.numbered_coroutine, range(100)))) == 2
    assert len(set(await pool.map(dask_jobs.numbered_coroutine, range(20), timeout=60.0))) == 20


async def test_a_hundred_thousand_small_items(pool: AioPool) -> None:
    """In chunks; and a stream of chunks that holds only so many at a time."""
    assert await pool.map(jobs.square, range(100_000)) == [number**2 for number in range(100_000)]
    stream = pool.imap(jobs.square, range(100_000), chunksize=5000, buffersize=3)
    assert stream._source.running == 3
    assert [value async for value in stream] == [number**2 for number in range(100_000)]


# What there is not.


async def test_a_pool_there_is_not_resized(pool: AioPool) -> None:
    """The cluster is."""
    with pytest.raises(NotImplementedError, match="cannot be resized, not to 3 either: scale the cluster"):
        await pool.resize(3)


async def test_a_pool_there_does_not_stream(pool: AioPool) -> None:
    """That is an error of the line that would make the stream."""
    with pytest.raises(NotImplementedError, match="a pool on Dask cannot stream what count yields: return all of it"):
        pool.stream(async_jobs.count, (3,))
    with pytest.raises(TypeError, match="func must be a generator function"):
        pool.stream(jobs.square, (3,))


# Coroutine functions.


async def test_a_coroutine_runs_in_a_thread_with_a_loop_of_its_own(pool: AioPool, latch: Latch, gate: Latch) -> None:
    """As many at once as the cluster has threads; what it reports and raises comes here."""
    running = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, number) for number in range(3)]
    assert {await latch.told(), await latch.told()} < {"0", "1", "2"}
    assert latch.told_already() == []
    gate.let(3)
    assert await asyncio.gather(*running) == [0, 1, 2]
    reporting = pool.submit(async_jobs.report_each, 1, 2)
    assert [value async for value in reporting.progress()] == [1, 2, "from a task"]
    with pytest.raises(LookupError) as caught:
        await pool.apply(async_jobs.fail, (LookupError("no such"),))
    assert str(caught.value.__cause__).count("File ") == str(caught.value.__cause__).count("async_jobs.py") == 1
