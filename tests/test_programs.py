"""Whole programs, run as users run them: their ends, tidy and untidy, and what they print."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import START_METHODS, processes
from latch import Latch

HERE = Path(__file__).parent


def run(*args: str) -> tuple[str, str]:
    """Run Python with options and a program's text; return what it wrote to its output and to its errors."""
    *options, program = args
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(program)], cwd=HERE, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("method", START_METHODS)
def test_a_tidy_program_prints_nothing_of_its_own(method: str) -> None:
    """Not as workers start, serve, fail, are recycled, are killed, or leave."""
    out, err = run("-X", "dev", "-W", "error", f"""
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            asyncio.get_running_loop().slow_callback_duration = 60  # how fast the machine is, is not the question
            async with AioPool(2, maxtasksperchild=3, context={method!r}) as pool:
                print(await pool.map(jobs.square, range(10)))
                print(await asyncio.gather(pool.apply(jobs.fail_at, (3,)), return_exceptions=True))
                result = pool.submit(jobs.total, iter([]))
                result.cancel()
                await asyncio.wait([result])
        asyncio.run(main())
    """)  # fmt: skip
    assert out == f"{[number**2 for number in range(10)]}\n[ValueError(3)]\n"
    assert err == ""


UNGUARDED = """
import asyncio, jobs
from aiopool import AioPool
async def main():
    async with AioPool(3, context={method!r}) as pool:
        await pool.apply(jobs.square, (1,))
asyncio.run(main())
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_missing_guard_is_one_clear_error(method: str, tmp_path: Path) -> None:
    """No storm of processes or of tracebacks: it is said once what to do."""
    program = tmp_path / "unguarded.py"
    program.write_text(UNGUARDED.format(method=method))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", program],
        env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'if __name__ == "__main__":' in done.stderr
    assert "InitializerError" in done.stderr


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_main_module_that_cannot_be_imported_again_is_an_error_not_a_hang(method: str, tmp_path: Path) -> None:
    """Which points to what the worker printed."""
    program = tmp_path / "broken.py"
    program.write_text(
        "import __main__\nif __name__ != '__main__': raise LookupError('not twice')\n"
        + UNGUARDED.format(method=method).replace("AioPool(3", "AioPool(1")  # what several print would be mixed up
    )
    done = subprocess.run(
        [sys.executable, program], env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "LookupError: not twice" in done.stderr
    assert "exited with code 1 before it was ready" in done.stderr


LEAKED = {
    "in a variable of the main module": """
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            global pool
            pool = AioPool(2, context={method!r})
            await pool.start()
            print(await pool.map(jobs.square, range(4)), flush=True)
            pool.submit(jobs.kill_self, 18)
        asyncio.run(main())
    """,
    "in a coroutine that ended": """
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            pool = AioPool(2, context={method!r})
            await pool.start()
            print(await pool.map(jobs.square, range(4)), flush=True)
            pool.submit(jobs.kill_self, 18)
        asyncio.run(main())
    """,
    "with a loop that was never closed": """
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            global pool
            pool = AioPool(2, context={method!r})
            await pool.start()
            print(await pool.map(jobs.square, range(4)), flush=True)
            pool.submit(jobs.kill_self, 18)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
    """,
    "whose start was never finished": """
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            global pool, starting
            pool = AioPool(2, jobs.kill_self, (18,), context={method!r})
            starting = asyncio.ensure_future(pool.start())
            await asyncio.sleep(0)
            print([0, 1, 4, 9], flush=True)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
    """,
}


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("where", LEAKED)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_interpreter_that_exits_with_a_pool_ends_its_workers(loop: str, method: str, where: str) -> None:
    """Without a hang: all that it says is one ResourceWarning, and no process is left."""
    program = "import uvloop\n" + textwrap.dedent(LEAKED[where]).format(method=method)
    program = program.replace("asyncio.run(", f"{loop}.run(").replace(
        "asyncio.new_event_loop", f"{loop}.new_event_loop"
    )
    out, err = run("-W", "default", program)
    assert out == "[0, 1, 4, 9]\n"
    assert err.count("ResourceWarning: unclosed AioPool") == 1, err
    assert "Traceback" not in err, err


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("job", ["jobs.tell_and_spin", "jobs.tell_of_grandchild_and_spin", "hold_the_interpreter"])
def test_a_killed_parent_takes_its_workers_along(method: str, job: str, tmp_path: Path) -> None:
    """Idle or busy, with what they have started, and even while C code holds the interpreter's lock."""
    program = f"""
        import asyncio, jobs
        from aiopool import AioPool
        def hold_the_interpreter(path):
            jobs.tell(path, "now")
            sum(range(10**18))
        async def main():
            async with AioPool(2, context={method!r}) as pool:
                await pool.apply({job}, ("/dev/stdout",))
        if __name__ == "__main__":
            asyncio.run(main())
    """
    path = tmp_path / "killed_parent.py"
    path.write_text(textwrap.dedent(program))
    before, environment = processes(), {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        assert parent.stdout.readline()
        parent.kill()
        assert parent.stdout.read() == "", "whoever lives holds the pipe open"
    for pid in processes().keys() - before.keys():
        wait_until_gone(pid)


def test_a_killed_parent_takes_its_workers_along_on_other_systems(tmp_path: Path) -> None:
    """Where the kernel cannot do the killing, a thread in each worker does."""
    program = """
        import asyncio, fcntl, jobs
        from aiopool import AioPool
        del fcntl.F_SETSIG
        async def main():
            async with AioPool(2, context="fork") as pool:
                await pool.apply(jobs.tell_and_spin, ("/dev/stdout",))
        asyncio.run(main())
    """
    path = tmp_path / "killed_parent.py"
    path.write_text(textwrap.dedent(program))
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        assert parent.stdout.readline()
        parent.kill()
        assert parent.stdout.read() == "", "whoever lives holds the pipe open"


def wait_until_gone(pid: int) -> None:
    """Wait for a process that is not ours: multiprocessing's helpers go a little after their program."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 20)[0], f"process {pid} is still there"
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("method", START_METHODS)
def test_ctrl_c_to_the_whole_group_ends_program_and_busy_workers(method: str) -> None:
    """With the parent's own traceback and nothing else."""
    program = f"""
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            async with AioPool(2, context={method!r}) as pool:
                await asyncio.gather(*(pool.apply(jobs.tell_and_spin, ("/dev/stdout",)) for _ in range(4)))
        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, process_group=0,
    ) as parent:  # fmt: skip
        assert parent.stdout
        assert parent.stderr
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        for pid in workers:  # which are in groups of their own, where a service manager would find them all the same
            os.kill(pid, signal.SIGINT)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stderr.read().count("Traceback (most recent call last)") == parent_tracebacks()
        assert parent.stdout.read() == ""
    assert parent.returncode == -signal.SIGINT


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_ctrl_c_during_the_start_meets_the_parent_only(method: str, tmp_path: Path, latch: Latch, gate: Latch) -> None:
    """Neither the fork server nor a worker prints a traceback of its own while it imports modules."""
    (tmp_path / "slow.py").write_text(f"import jobs; jobs.tell({latch.path!r}, 'here'); jobs.wait_at({gate.path!r})")
    program = f"""
        import asyncio, jobs
        from aiopool import AioPool
        async def main():
            async with AioPool(1, context={method!r}, preload=["slow"]) as pool:
                await asyncio.Event().wait()
        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, process_group=0, env={**os.environ, "PYTHONPATH": f"{HERE}:{tmp_path}"},
    ) as parent:  # fmt: skip
        assert parent.stderr
        assert latch.told_now() == "here"
        os.killpg(parent.pid, signal.SIGINT)
        gate.let(2)
        assert parent.stderr.read().count("Traceback (most recent call last)") == parent_tracebacks()
    assert parent.returncode == -signal.SIGINT


def test_a_fork_server_that_hangs_is_an_error_in_the_end(tmp_path: Path) -> None:
    """Neither the start nor the program's exit waits for it for ever."""
    (tmp_path / "hanging.py").write_text("import threading; threading.Event().wait()")
    out, _ = run(f"""
        import asyncio, sys
        sys.path.insert(0, {str(tmp_path)!r})
        from aiopool import AioPool, InitializerError
        from aiopool.backends import process
        process.START_GRACE = 0.2
        async def main():
            try:
                await AioPool(2, preload=["hanging"], start_timeout=0.3).start()
            except InitializerError as error:
                print(error)
        asyncio.run(main())
    """)
    assert out.startswith("a worker was not ready within 0.3 s: give a larger start_timeout")


def test_other_processes_of_the_fork_server_can_be_interrupted() -> None:
    """The program's own use of multiprocessing is not changed by the pool's."""
    out, _ = run("""
        import asyncio, jobs, multiprocessing
        from aiopool import AioPool
        async def main():
            async with AioPool(1) as pool:
                await pool.apply(jobs.square, (1,))
            process = multiprocessing.get_context("forkserver").Process(target=jobs.print_blocked_signals)
            process.start()
            process.join()
        asyncio.run(main())
    """)
    assert out == "set()\n"


def parent_tracebacks() -> int:
    """Return how many tracebacks asyncio.run prints for Ctrl-C: KeyboardInterrupt, from a CancelledError."""
    return 2


def test_a_fork_server_that_dies_takes_no_call_along() -> None:
    """Its workers live on, and the next worker gets a new one."""
    out, _ = run("""
        import asyncio, jobs, os, signal
        from multiprocessing import forkserver
        from aiopool import AioPool, WorkerDied
        async def main():
            async with AioPool(1) as pool:
                pid = await pool.apply(jobs.pid_of)
                os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
                print(pid == await pool.apply(jobs.pid_of), await pool.apply(jobs.square, (3,)))
                try:
                    await pool.apply(jobs.leave_half_way, (1,))
                except WorkerDied as died:
                    print(died.pid == pid)
                print(await pool.apply(jobs.square, (4,)))
        asyncio.run(main())
    """)
    assert out == "True 9\nTrue\n16\n"
