"""Pools that become larger and smaller, by `resize` and by having nothing to do."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool, BrokenPool, InitializerError, PoolNotRunning, PoolTerminated
from conftest import is_gone, pass_time
from latch import Latch

HOURS = 36000.0
"""Seconds that no test takes: whoever has nothing to do goes when the test says that the time is over."""


def pids(pool: AioPool) -> list[int | None]:
    """Return those of all workers, by their seats."""
    return [worker.pid for worker in sorted(pool.stats().workers, key=lambda worker: worker.seat)]


async def until_alone(pool: AioPool, count: int = 1) -> None:
    """Return when so many workers are left."""
    while len(pool.stats().workers) > count:
        await asyncio.sleep(0)


# Larger.


@pytest.mark.both_loops
async def test_a_larger_pool_has_its_new_workers_ready(start_method: str, latch: Latch, gate: Latch) -> None:
    """As many calls run at once as was asked for."""
    async with AioPool(1, context=start_method) as pool:
        await pool.resize(3)
        assert pool.processes == 3
        assert [(worker.seat, worker.phase) for worker in pool.stats().workers] == [
            (0, "idle"),
            (1, "idle"),
            (2, "idle"),
        ]
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(3)]
        assert {await latch.told() for _ in results} == {"0", "1", "2"}
        gate.let(3)
        assert await asyncio.gather(*results) == [0, 1, 2]


async def test_new_workers_run_the_initializer() -> None:
    """Like all others."""
    async with AioPool(1, jobs.remember, ("kept",)) as pool:
        await pool.resize(2)
        found = await asyncio.gather(*(pool.apply(jobs.recall) for _ in range(4)))
        assert [value for ((_pid, value),) in found] == ["kept"] * 4


async def test_calls_that_wait_run_in_new_workers(latch: Latch, gate: Latch) -> None:
    """While what runs goes on."""
    async with AioPool(1) as pool:
        held = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "held")
        waiting = pool.submit(jobs.square, 3)
        await latch.told()
        await pool.resize(2)
        assert await waiting == 9
        assert not held.ready()
        gate.let()
        assert await held == "held"


async def test_chunks_are_made_for_the_present_number_of_workers() -> None:
    """Four for each."""
    async with AioPool(1) as pool:
        await pool.map(jobs.square, range(16))
        assert pool.stats().done == 4
        await pool.resize(2)
        await pool.map(jobs.square, range(16))
        assert pool.stats().done == 4 + 8


async def test_new_workers_share_the_cpus_among_as_many_as_there_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there already have their threads."""
    monkeypatch.setattr("aiopool.pool.usable_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    async with AioPool(2, maxtasksperchild=1) as pool:
        assert await pool.apply(jobs.variable, ("OMP_NUM_THREADS",)) == "4"
        await pool.resize(4)
        found = [await pool.apply(jobs.variable, ("OMP_NUM_THREADS",)) for _ in range(12)]
        assert set(found) <= {"4", "2"}
        assert found.count("4") <= 3  # two workers that were there, and the successor of one of them


@pytest.mark.both_loops
async def test_an_initializer_that_fails_in_a_new_worker_breaks_the_pool_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start is tried again, later and later; then the resize raises what calls get."""
    monkeypatch.setattr("aiopool.losses.FIRST_DELAY", 0.001)
    initargs = (str(tmp_path / "tries"), 1)
    async with AioPool(1, initializer=jobs.fail_to_initialize_after, initargs=initargs) as pool:
        with pytest.raises(BrokenPool) as caught:
            await pool.resize(2)
        assert isinstance(caught.value.__cause__, InitializerError)
        with pytest.raises(BrokenPool):
            await pool.resize(1)


# Smaller.


@pytest.mark.both_loops
async def test_a_smaller_pool_is_rid_of_its_idle_workers(start_method: str) -> None:
    """Those of the highest seats. They are neither lost nor recycled."""
    async with AioPool(3, context=start_method) as pool:
        first, *others = pids(pool)
        await pool.resize(1)
        assert pool.processes == 1
        assert pids(pool) == [first]
        assert all(pid is not None and is_gone(pid) for pid in others)
        stats = pool.stats()
        assert (stats.lost, sum(stats.recycled.values())) == (0, 0)
        assert await pool.map(jobs.pid_of, range(10)) == [first] * 10


@pytest.mark.both_loops
async def test_a_busy_worker_that_is_too_many_finishes_its_call(start_method: str, latch: Latch, gate: Latch) -> None:
    """What waits runs elsewhere, and the resize waits for the last."""
    async with AioPool(2, context=start_method) as pool:
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(2)]
        for _ in results:
            await latch.told()
        resize = asyncio.create_task(pool.resize(1))
        rest = [pool.submit(jobs.square, number) for number in range(5)]
        await asyncio.sleep(0)
        assert (pool.processes, resize.done()) == (1, False)
        gate.let(2)
        await resize
        assert len(pids(pool)) == 1
        assert await asyncio.gather(*results, *rest) == [0, 1, 0, 1, 4, 9, 16]
        assert pool.stats().lost == 0


async def test_no_call_is_lost_or_run_twice_while_the_number_changes(tmp_path: Path) -> None:
    """Thousands of short calls, sent ahead and taken back."""
    path = tmp_path / "runs"
    path.touch()
    async with AioPool(3) as pool:
        results = [pool.submit(jobs.tell_and_give, str(path), number, number) for number in range(3000)]
        for number in (1, 4, 2, 3, 1):
            await results[400 * number]
            await pool.resize(number)
        assert await asyncio.gather(*results) == list(range(3000))
    assert sorted(map(int, path.read_text().split())) == list(range(3000))


async def test_a_seat_is_never_two_calls_at_once(latch: Latch, gate: Latch) -> None:
    """It may stand for a GPU: the worker that was to go has its seat again, with the call that it runs."""
    async with AioPool(2) as pool:
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(2)]
        for _ in results:
            await latch.told()
        before = pids(pool)
        smaller = asyncio.create_task(pool.resize(1))
        await asyncio.sleep(0)
        await pool.resize(2)
        await smaller
        assert pids(pool) == before
        gate.let(2)
        assert await asyncio.gather(*results) == [0, 1]
        assert {worker.phase for worker in pool.stats().workers} == {"idle"}


# The wait.


@pytest.mark.both_loops
async def test_cancelling_the_wait_leaves_the_number_in_force(latch: Latch, gate: Latch) -> None:
    """It is the wait that is cancelled; no call is."""
    async with AioPool(2) as pool:
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(2)]
        for _ in results:
            await latch.told()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.resize(1), 0.01)
        assert pool.processes == 1
        gate.let(2)
        assert await asyncio.gather(*results) == [0, 1]
        await pool.resize(1)
        assert len(pids(pool)) == 1


async def test_of_several_numbers_the_last_one_counts() -> None:
    """All who wait return, when that is reached."""
    async with AioPool(1) as pool:
        await asyncio.gather(*(pool.resize(number) for number in (4, 1, 3, 2)))
        assert pool.processes == 2
        assert [worker.phase for worker in pool.stats().workers if worker.seat < 2] == ["idle"] * 2
        assert {worker.seat for worker in pool.stats().workers} == {0, 1}


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_pool_that_ends_ends_the_wait(end: str, latch: Latch, gate: Latch) -> None:
    """With what a call would get."""
    async with AioPool(2) as pool:
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(2)]
        for _ in results:
            await latch.told()
        resize = asyncio.create_task(pool.resize(1))
        await asyncio.sleep(0)
        getattr(pool, end)()
        with pytest.raises(PoolNotRunning, match="takes no more calls"):
            await resize
        gate.let(2)
        ends = await asyncio.gather(*results, return_exceptions=True)
        assert ends == [0, 1] or all(isinstance(each, PoolTerminated) for each in ends)


async def test_a_pool_that_does_not_run_cannot_be_resized() -> None:
    """It says why, as to a call."""
    pool = AioPool(1)
    with pytest.raises(PoolNotRunning, match="not started"):
        await pool.resize(2)
    assert pool.processes == 1
    async with pool:
        pass
    with pytest.raises(PoolNotRunning, match="closed"):
        await pool.resize(2)


@pytest.mark.parametrize(("odd", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (None, TypeError)])
async def test_a_number_that_is_none_changes_nothing(odd: Any, error: type[Exception]) -> None:
    """The error names it."""
    async with AioPool(1, backend="inline") as pool:
        with pytest.raises(error, match=f"processes .*{odd}"):
            await pool.resize(odd)
        assert pool.processes == 1


# Workers that have nothing to do.


@pytest.mark.both_loops
async def test_idle_workers_go_and_come_back_when_calls_wait(start_method: str, latch: Latch, gate: Latch) -> None:
    """Several at a time; those that go are neither lost nor recycled."""
    async with AioPool(3, context=start_method, idle_timeout=HOURS) as pool:
        assert len(pids(pool)) == 3
        pass_time(pool, HOURS)
        await until_alone(pool)
        assert pool.processes == 3
        assert pool.healthy
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(3)]
        for _ in results:
            await latch.told()
        gate.let(3)
        assert await asyncio.gather(*results) == [0, 1, 2]
        stats = pool.stats()
        assert (stats.lost, sum(stats.recycled.values())) == (0, 0)
        assert len(stats.workers) == 3


@pytest.mark.both_loops
async def test_the_time_passes_by_itself() -> None:
    """And when only those are left that are to stay, nothing is to come."""
    async with AioPool(3, idle_timeout=0.05, min_processes=2) as pool:
        await until_alone(pool, 2)
        assert pool._backend._timer is None  # type: ignore[attr-defined]
        assert await pool.map(jobs.square, range(3)) == [0, 1, 4]


@pytest.mark.both_loops
async def test_all_workers_may_go() -> None:
    """A pool without any is healthy, and the next call gets one."""
    async with AioPool(2, idle_timeout=HOURS, min_processes=0) as pool:
        assert pool.healthy
        pass_time(pool, HOURS)
        await until_alone(pool, 0)
        assert pool.healthy
        assert pool._backend._timer is None  # type: ignore[attr-defined]
        assert await pool.apply(jobs.square, (3,)) == 9
        assert len(pids(pool)) == 1


async def test_calls_one_after_the_other_need_one_worker() -> None:
    """The one that was busy last is the next; the other goes."""
    async with AioPool(2, idle_timeout=HOURS) as pool:
        busy = {await pool.apply(jobs.pid_of) for _ in range(20)}
        pass_time(pool, HOURS - 1)
        assert len(pids(pool)) == 2
        pass_time(pool, HOURS)
        await until_alone(pool)
        assert set(pids(pool)) == busy


async def test_two_calls_that_wait_for_one_another_both_run_though_a_worker_is_gone(gate: Latch) -> None:
    """Nothing is sent behind a call while another worker could be had."""
    async with AioPool(2, idle_timeout=HOURS) as pool:
        for _ in range(10):
            await pool.apply(jobs.call_with, (jobs.square, 3))  # it has been seen to be short
        pass_time(pool, HOURS)
        await until_alone(pool)
        waits = pool.submit(jobs.call_with, jobs.wait_at, gate.path)
        opens = pool.submit(jobs.call_with, partial(jobs.tell, gate.path), "open")
        await asyncio.gather(waits, opens)


async def test_a_pool_with_few_workers_left_is_closed_as_ever(latch: Latch, gate: Latch) -> None:
    """Calls that wait for a worker that is started are run."""
    async with AioPool(2, idle_timeout=HOURS) as pool:
        pass_time(pool, HOURS)
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, number) for number in range(2)]
        gate.let(2)
    assert [await result for result in results] == [0, 1]


async def test_a_worker_that_dies_is_replaced_though_there_is_nothing_to_do() -> None:
    """Only who had nothing to do for long is not."""
    async with AioPool(1, idle_timeout=HOURS, min_processes=0) as pool:
        (pid,) = pids(pool)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while pids(pool) in ([pid], [], [None]):
            await asyncio.sleep(0)
        assert await pool.apply(jobs.square, (3,)) == 9
        assert pool.stats().lost == 1


async def test_calls_in_this_process_are_as_many_as_they_are() -> None:
    """What decides is the same."""
    async with AioPool(2, backend="inline", idle_timeout=HOURS) as pool:
        await pool.resize(4)
        assert len(pids(pool)) == 4
        pass_time(pool, HOURS)
        await until_alone(pool)
        assert await pool.map(jobs.square, range(5)) == [0, 1, 4, 9, 16]
        await pool.resize(1)
        assert len(pids(pool)) == 1


@pytest.mark.parametrize("odd", [0, -1, float("nan"), float("inf")])
def test_a_time_without_anything_to_do_is_more_than_nothing(odd: float) -> None:
    """The error names it."""
    with pytest.raises(ValueError, match="idle_timeout must be"):
        AioPool(1, idle_timeout=odd)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"min_processes": 1}, ValueError, "min_processes needs an idle_timeout"),
        ({"min_processes": 3, "idle_timeout": 1}, ValueError, "at most processes, which is 2, not 3"),
        ({"min_processes": -1, "idle_timeout": 1}, ValueError, "min_processes must be at least 0, not -1"),
        ({"min_processes": 1.0, "idle_timeout": 1}, TypeError, "min_processes must be an int, not 1.0"),
        ({"min_processes": True, "idle_timeout": 1}, TypeError, "min_processes must be an int, not True"),
        ({"idle_timeout": "1"}, TypeError, "idle_timeout must be a number of seconds, not '1'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """By name and value."""
    with pytest.raises(error, match=text):
        AioPool(2, **options)
