"""What a job may do in its process, and what reaches it from outside, without harm to the pool."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
from aiopool import AioPool
from latch import Latch

HERE = Path(__file__).parent


@pytest.mark.both_loops
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_parents_signals_do_not_disturb_a_call(
    start_method: str, number: int, latch: Latch, gate: Latch
) -> None:
    """A terminal or a service manager signals every process; what that means is for the parent to say."""
    async with AioPool(1, context=start_method) as pool:
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        pid = int(await latch.told())
        os.kill(pid, number)
        os.killpg(pid, number)
        gate.let()
        assert await result is None
        assert await pool.apply(jobs.pid_of) == pid


@pytest.mark.both_loops
async def test_a_worker_has_none_of_the_parents_signal_handlers(start_method: str, latch: Latch) -> None:
    """Neither do signals to it fire the parent's, nor does killing it."""
    loop, fired = asyncio.get_running_loop(), []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, fired.append, number)
    try:
        async with AioPool(1, context=start_method) as pool:
            handlers = await pool.apply(jobs.handlers)
            assert set(handlers) == {signal.SIGINT, signal.SIGTERM, signal.SIGURG}
            assert "_pass_by" in handlers[signal.SIGTERM]
            assert await pool.apply(jobs.blocked_signals) == set()
            result = pool.submit(jobs.tell_and_spin, latch.path)
            os.kill(int(await latch.told()), signal.SIGTERM)
            result.cancel()
            await asyncio.wait([result])
            await pool.apply(jobs.square, (1,))
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            loop.remove_signal_handler(number)
    assert fired == []


@pytest.mark.both_loops
async def test_a_forked_worker_keeps_nothing_of_its_siblings_and_of_the_loop() -> None:
    """Only its own channel: a sibling's would hide that one's death, the loop's would disturb it."""
    before = sockets_of(jobs.descriptors())
    async with AioPool(3, context="fork") as pool, AioPool(1, context="spawn"):
        for worker in await asyncio.gather(*(pool.apply(jobs.descriptors) for _ in range(9))):
            assert not [what for what in worker if "eventpoll" in what]
            assert len(set(sockets_of(worker)) - set(before)) == 1


def sockets_of(descriptors: list[str]) -> list[str]:
    """Return the sockets among what is open."""
    return [what for what in descriptors if what.startswith("socket:")]


@pytest.mark.both_loops
async def test_a_job_may_write_anywhere(start_method: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Python's streams, C's, the descriptors below, a child's: nothing gets into the channel, nothing is lost."""
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.flood, (1_000_000,)) == 1_000_000
        assert await pool.apply(jobs.square, (3,)) == 9
    written = capfd.readouterr()
    if start_method != "forkserver":  # whose output goes where the fork server's was going when it was started
        assert written.out.count("x") == written.err.count("y") == 1_000_000


async def test_a_job_may_start_processes_of_its_own(start_method: str) -> None:
    """They are ordinary ones: they can be terminated."""
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.subprocess_that_is_terminated) == -signal.SIGTERM
        for method in ("spawn", "fork"):
            code = await pool.apply(jobs.multiprocessing_process_that_is_terminated, (method,))
            assert code == -signal.SIGTERM


async def test_a_job_may_have_a_pool_of_its_own(start_method: str) -> None:
    """Of any start method."""
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.pool_in_a_job, ("spawn",)) == [0, 1, 4]
        assert await pool.apply(jobs.pool_in_a_job, ("fork",)) == [0, 1, 4]


async def test_a_child_that_returns_from_the_job_cannot_answer_in_the_workers_place(start_method: str) -> None:
    """The parent of the fork answers, once; the child finds the channel closed, and goes."""
    async with AioPool(1, context=start_method) as pool:
        for _ in range(3):
            assert await pool.apply(jobs.fork_and_return) == "parent"
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_fresh_worker_is_light(method: str) -> None:
    """Neither asyncio nor anyio is imported there, unless the user's own module does."""
    program = (
        "import asyncio, jobs\nfrom aiopool import AioPool\n"
        "async def main():\n"
        "    asyncio.get_running_loop().slow_callback_duration = 60\n"  # the machine may be slow
        f"    async with AioPool(1, context={method!r}) as pool:\n"
        "        return await pool.apply(jobs.modules)\n"
        "modules = asyncio.run(main())\n"
        "print('aiopool.worker.main' in modules, sorted(modules & {'asyncio', 'anyio', 'aiopool.pool'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("True []\n", "")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_standard_streams_that_are_closed_do_no_harm(method: str, closed: tuple[int, ...], tmp_path: Path) -> None:
    """A channel on descriptor 0, 1 or 2 would be mixed up with what jobs print."""
    program = (
        "import asyncio, os, sys, jobs\nfrom aiopool import AioPool\n"
        f"for descriptor in {closed}: os.close(descriptor)\n"
        "async def main():\n"
        f"    async with AioPool(2, context={method!r}) as pool:\n"
        "        await pool.apply(os.write, (2, b'x')) if 2 not in (" + ",".join(map(str, closed)) + ",) else None\n"
        "        return await pool.map(jobs.square, range(4))\n"
        f"open({str(tmp_path / 'out')!r}, 'w').write(str(asyncio.run(main())))\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, check=True, timeout=30)
    assert (tmp_path / "out").read_text() == "[0, 1, 4, 9]"


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_what_a_job_prints_where_that_is_closed_gets_into_no_array(method: str, tmp_path: Path) -> None:
    """A large argument's memory has a descriptor, which would be the first that is free."""
    program = (
        "import asyncio, os, sys, jobs\nfrom aiopool import AioPool\n"
        "for descriptor in (0, 1, 2): os.close(descriptor)\n"
        "async def main():\n"
        f"    async with AioPool(1, context={method!r}) as pool:\n"
        "        for _ in range(3):\n"
        "            written = await pool.apply(jobs.write_below, (bytearray(4_000_000),))\n"
        "        return written\n"
        f"open({str(tmp_path / 'out')!r}, 'w').write(str(asyncio.run(main())))\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, check=True, timeout=30)
    assert (tmp_path / "out").read_text() == "(1000, 1000, 0)"


@pytest.mark.parametrize("kind", ["writes only", "flush raises", "flush exits", "none", "deleted"])
async def test_a_job_may_replace_its_standard_output(kind: str) -> None:
    """By whatever has a write method, or by nothing; calls are answered all the same."""
    async with AioPool(1) as pool:
        assert await pool.apply(jobs.replace_stdout, (kind,)) == await pool.apply(jobs.pid_of)
