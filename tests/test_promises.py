"""What stands for the pool as a whole: no work when there is none to do, no stall, and nobody hurt in many rounds."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import jobs
from aiopool import AioPool
from aiopool.backends.process import WorkerProcess
from conftest import START_METHODS, processes
from latch import Latch


def wakeups() -> dict[str, tuple[int, int]]:
    """Return how often each thread of this process and of its descendants has gone to sleep, and its CPU time."""
    found = {}
    for pid in [os.getpid(), *processes()]:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
                ticks = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            found[f"{pid}/{task.name}"] = (int(status["voluntary_ctxt_switches"]), sum(map(int, ticks)))
    return found


@pytest.mark.both_loops
async def test_idle_pools_and_pools_that_wait_use_no_cpu(latch: Latch, gate: Latch) -> None:
    """Within a second, no worker wakes up, nor does this process but for the timer that ends the second.

    Of each pool's two workers one has nothing to do, and one waits within a call that has a time limit, in a pool with
    all kinds of deadlines. If somebody else happens to wake them, the next second counts.
    """
    async with AsyncExitStack() as stack:
        results = []
        for method in START_METHODS:
            pool = AioPool(2, context=method, timeout=1000, max_age=1000, cancel_grace=1000, retries=1)
            await stack.enter_async_context(pool)
            results.append(pool.submit(jobs.tell_and_wait, latch.path, gate.path))
            await latch.told()
        me = f"{os.getpid()}/{threading.get_native_id()}"
        for _ in range(10):
            before = wakeups()
            await asyncio.sleep(1)
            after = wakeups()
            slept, used = (now - then for now, then in zip(after.pop(me), before.pop(me), strict=True))
            if before == after and slept <= 5 and used <= 5:
                break
        assert before == after
        assert slept <= 5
        assert used <= 5, "hundredths of a second, most of them for the reading of /proc"
        gate.let(len(results))
        await asyncio.gather(*results)


async def test_entering_a_pool_of_eight_never_takes_the_loop_for_long(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of its turns at most one process is started: whoever else is there waits for one start, not for eight."""
    loop, launch, turn, turns = asyncio.get_running_loop(), WorkerProcess.launch, 0, list[int]()

    def beat() -> None:
        nonlocal turn, timer
        turn, timer = turn + 1, loop.call_soon(beat)

    def launch_and_note(process: WorkerProcess) -> None:
        turns.append(turn)
        launch(process)

    monkeypatch.setattr(WorkerProcess, "launch", launch_and_note)
    timer = loop.call_soon(beat)
    async with AioPool(8, context=start_method):
        timer.cancel()
    assert len(turns) == 8
    assert len(set(turns)) == 8


@pytest.fixture(params=["idle", "under load"])
def machine(request: pytest.FixtureRequest) -> Iterator[str]:
    """One that has nothing else to do, and one with a busy process for each CPU."""
    busy = 0 if request.param == "idle" else len(os.sched_getaffinity(0))
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    yield request.param
    for process in spinning:
        process.kill()
        process.wait()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("machine")
async def test_in_a_thousand_rounds_a_cancelled_call_never_hurts_the_one_behind_it() -> None:
    """A is cancelled a little after it was sent, when its reply has arrived unread, or when B has just been sent."""
    told_to_loop: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told_to_loop.append(context))
    async with AioPool(1, context="fork") as pool:
        for number in range(1000):
            cancelled, behind = pool.submit(jobs.pid_of), pool.submit(jobs.square, number)
            if number % 3 == 0:
                for _ in range(number // 3 % 10):
                    await asyncio.sleep(0)
            elif number % 3 == 1:
                reply_has_arrived(pool)
            else:
                while not cancelled.done():
                    await asyncio.sleep(0)
            cancelled.cancel()
            assert await behind == number**2
            await asyncio.wait([cancelled])
            assert cancelled.cancelled() or cancelled.result()
    assert told_to_loop == []


def reply_has_arrived(pool: AioPool) -> None:
    """Block until the one worker has answered, or is gone."""
    (process,) = pool._backend._processes.values()  # type: ignore[attr-defined]
    select.select([process._own_end], [], [])


async def test_of_a_backlog_every_call_runs_once_on_as_few_processes_as_it_takes(tmp_path: Path) -> None:
    """Ten thousand calls, one worker at a time, 500 calls for each."""
    path = str(tmp_path / "numbers")
    async with AioPool(1, maxtasksperchild=500) as pool:
        results = [pool.submit(jobs.tell_and_name_process, path, number) for number in range(10_000)]
        pids = await asyncio.gather(*results)
    assert sorted(Counter(pids).values()) == [500] * 20
    assert sorted(map(int, Path(path).read_text().splitlines())) == list(range(10_000))
