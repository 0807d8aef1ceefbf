"""What a pool may leave behind: processes, zombies, descriptors, files in /dev/shm, tasks, memory."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import statistics
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import chaos_named

END_GRACE = 10.0
"""Seconds that a process which was killed, and is not ours to reap, may take to be gone."""

RSS_MARGIN, BLOCKS_MARGIN = 1.10, 1.03
RSS_NOISE, BLOCKS_NOISE = 6 << 20, 4000
"""By so much what is in use may differ between two moments."""


class Traces(NamedTuple):
    """What there is at a moment, each with a word about it."""

    processes: dict[str, str]
    descriptors: dict[str, str]
    shared_memory: dict[str, str]
    tasks: dict[str, str]

    @classmethod
    def now(cls, pids: Collection[int] = ()) -> Traces:
        """Look.

        Args:
            pids: of all workers that there were. A zombie that is none of them and has no parent but init is init's.
        """
        with contextlib.suppress(RuntimeError):  # there is no loop
            tasks = {str(id(task)): repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}}
            return cls(_processes(pids), _descriptors(), _shared_memory(), tasks)
        return cls(_processes(pids), _descriptors(), _shared_memory(), {})

    def new_since(self, before: Traces) -> list[str]:
        """Return what was not there before, in words."""
        return [
            f"{kind.replace('_', ' ')} left: {key} {what}"
            for kind, then, here in zip(self._fields, before, self, strict=True)
            for key, what in here.items()
            if key not in then or (kind == "descriptors" and then[key] != what)
        ]


def left_since(before: Traces, pids: Collection[int]) -> list[str]:
    """Return what is left; who was killed and is not ours to reap, gets a moment to go."""
    now, deadline = Traces.now(pids), time.monotonic() + END_GRACE
    for pid in now.processes.keys() - before.processes.keys():
        with contextlib.suppress(ProcessLookupError), os.fdopen(os.pidfd_open(int(pid))) as pidfd:
            select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
    now = Traces.now(pids)
    ours = {os.getpid(), *map(int, now.processes)}
    named = {name: "" for name in now.shared_memory if name in before.shared_memory or chaos_named.is_left(name, ours)}
    return now._replace(shared_memory=named).new_since(before)


def _processes(pids: Collection[int]) -> dict[str, str]:
    """Return what descends from this process, and the running orphans of its session."""
    found: dict[int, tuple[int, str, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
                state, parent, _group, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                words = (entry / "cmdline").read_text().replace("\0", " ")[:80]
                found[int(entry.name)] = int(parent), session, f"{state} {words}"
    kin = {}
    for pid, (elder, group, what) in found.items():
        orphan = elder == 1 and group == str(os.getsid(0))
        zombie = what.startswith("Z")
        if elder == 1 and zombie and pid not in pids:
            continue
        if pid != os.getpid() and (orphan or _descends(pid, found)):
            kin[str(pid)] = what
    return kin


def _descends(pid: int, found: dict[int, tuple[int, str, str]]) -> bool:
    while pid in found:
        pid = found[pid][0]
        if pid == os.getpid():
            return True
    return False


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[entry.name] = str(entry.readlink())
    return found


def _shared_memory() -> dict[str, str]:
    return dict.fromkeys(chaos_named.names(), "")


class Memory:
    """How much memory this process uses, from the run's first tenth to its last."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._samples: list[tuple[float, int, int]] = []

    def sample(self, at: float) -> None:
        """Measure what is in use after ``at`` seconds: bytes in memory, and the blocks that Python has given out."""
        gc.collect()
        with contextlib.suppress(AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self._samples.append((at, resident, sys.getallocatedblocks()))

    def tenths(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return bytes and blocks in the first tenth and in the last; at least one sample stands for each."""
        samples = self._samples or [(0.0, 0, 0)]  # a run that was given up has none
        first = [each for each in samples if each[0] <= self._seconds / 10] or samples[:1]
        last = [each for each in samples if each[0] >= self._seconds * 9 / 10] or samples[-1:]
        begin, end = (
            (statistics.median(each[1] for each in part), statistics.median(each[2] for each in part))
            for part in (first, last)
        )
        return begin, end

    def amiss(self) -> list[str]:
        """Return what has grown."""
        (bytes_first, blocks_first), (bytes_last, blocks_last) = self.tenths()
        found = []
        if bytes_last > bytes_first * RSS_MARGIN + RSS_NOISE:
            found.append(f"memory has grown from {bytes_first / 2**20:.1f} to {bytes_last / 2**20:.1f} MiB")
        if blocks_last > blocks_first * BLOCKS_MARGIN + BLOCKS_NOISE:
            found.append(f"memory has grown from {blocks_first:.0f} to {blocks_last:.0f} blocks")
        return found
