"""A cluster of Dask as its users start one: by the command line. On loopback only; the system chooses the ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from aiopool import AioPool
from aiopool.backends.dask_calls import ClusterBackend
from conftest import helpers
from programs import processes_left

TESTS = Path(__file__).parent
LONGEST = 45
"""Seconds that a busy machine may take to start one."""

DASK = """
import ctypes, os, runpy, signal, sys

PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv.pop(1)):  # else it was gone before it could be asked for
    runpy.run_module("dask", run_name="__main__", alter_sys=True)
"""
"""The command, which is killed when the process ends that has started it; its workers see that, and end, too."""


class Command:
    """A ``dask`` command that runs, in a session of its own."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DASK, str(os.getpid()), *arguments, "--host", "127.0.0.1", "--no-dashboard"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", env=environment,
            start_new_session=True,
        )  # fmt: skip
        helpers.add(self.process.pid)
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> str:
        """Return what the first group matches in the first line that matches."""
        while line := self._lines.get(timeout=LONGEST):
            self.said.append(line)
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError("".join(self.said))

    def end(self) -> None:
        """Kill it, and see that all that it has started goes, too, and what cleans up after them last."""
        self.process.kill()
        self.process.wait()
        left = processes_left(self.process.pid)
        if left:
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        helpers.discard(self.process.pid)
        assert not left


class Cluster:
    """A scheduler and its workers.

    Attributes:
        address: of the scheduler.
        scheduler: its command.
        workers: their commands; each is a nanny, which has one worker and starts another when that is gone.
    """

    def __init__(self, scheduler: Command, address: str) -> None:
        self.scheduler = scheduler
        self.address = address
        self.workers: list[Command] = []


@contextlib.contextmanager
def cluster(workers: int = 2, options: Sequence[str] = (), worker_options: Sequence[str] = ()) -> Generator[Cluster]:
    """Start a cluster, and end it afterwards."""
    with contextlib.ExitStack() as stack:
        scheduler = Command("scheduler", "--port", "0", *options)
        stack.callback(scheduler.end)
        made = Cluster(scheduler, scheduler.wait_for(r"Scheduler at: +(t\w+://127\.0\.0\.1:\d+)"))
        for _ in range(workers):
            worker = Command("worker", made.address, "--nthreads", "1", *worker_options)
            stack.callback(worker.end)
            made.workers.append(worker)
        for worker in made.workers:
            worker.wait_for(r"(Registered) to: ")
        yield made


async def workers_of(pool: AioPool, count: int, *, at_most: bool = False) -> None:
    """Wait until so many workers are there, or more; or fewer if that is said."""
    if at_most:
        await until(pool, lambda: len(pool.stats().workers) <= count)
    else:
        await until(pool, lambda: len(pool.stats().workers) >= count)


async def until(pool: AioPool, holds: Callable[[], bool]) -> None:
    """Wait until something holds of a pool."""
    changed = asyncio.Event()
    pool._backend.watch(changed.set)
    while not holds():
        changed.clear()
        await changed.wait()


def backend_of(pool: AioPool) -> ClusterBackend:
    """Return what runs a pool's calls."""
    backend = pool._backend
    assert isinstance(backend, ClusterBackend)
    return backend
