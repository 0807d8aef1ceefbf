"""What the kernel tells about processes: who descends from whom, their CPU time, their memory. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_of_others", "descendants", "end_session", "private_bytes", "proportional_bytes"]

PROC = Path("/proc")

GONE = (FileNotFoundError, ProcessLookupError)


def _parents_and_sessions() -> dict[int, tuple[int, int]]:
    found = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(*GONE):  # it has just ended
                state, parent, _group, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if state != "Z":
                    found[int(entry.name)] = int(parent), int(session)
    return found


def descendants(ancestor: int) -> set[int]:
    """Return the children of a process, their children, and so on."""
    table = _parents_and_sessions()
    found: set[int] = set()
    fresh = {ancestor}
    while fresh:
        fresh = {pid for pid, (parent, _) in table.items() if parent in fresh} - found
        found |= fresh
    return found


def end_session(leader: int) -> None:
    """Kill what descends from a leader of a session, and what is in its session: workers whose parent went are."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        left = descendants(leader) | {pid for pid, (_, session) in _parents_and_sessions().items() if session == leader}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)  # all there is where there is no /proc


def cpu_of_others(pids: Iterable[int]) -> float:
    """Return the seconds of CPU time that processes, all of their threads, have used."""
    total = 0
    for pid in pids:
        with contextlib.suppress(*GONE):
            for task in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(*GONE):
                    total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _rollup(pid: int, *fields: str) -> int:
    lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}
    return 1024 * sum(sizes[field] for field in fields)


def private_bytes(pid: int) -> int:
    """Return the memory that would be free again if this process ended: its unique set size."""
    return _rollup(pid, "Private_Clean", "Private_Dirty")


def proportional_bytes(pids: Iterable[int]) -> int:
    """Return the memory of several processes, what they share counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(*GONE):
            total += _rollup(pid, "Pss")
    return total
