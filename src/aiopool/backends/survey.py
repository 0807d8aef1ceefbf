"""What can be said of a pool's workers, from what the dispatcher and their processes know."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..calls import Call
from ..seats import Worker
from ..stacks import WorkerStack, frames_in, is_whole
from ..stats import WorkerStats
from ..worker.memory import resident_bytes_of
from .handles import Handle

__all__ = ["stacks_of", "stats_of"]

PATIENCE = 5.0
"""Seconds that workers have to say what they are doing."""


def stats_of(worker: Worker, process: Handle | None, now: float) -> WorkerStats:
    """Return what is known of a worker. Each thing is looked at once, since this may be another thread."""
    pid, calls = None if process is None else process.pid, tuple(worker.calls)
    return WorkerStats(
        seat=worker.seat.number,
        pid=pid,
        phase=worker.phase.value,
        calls=worker.served,
        age=None if worker.ready_at is None else now - worker.ready_at,
        memory=None if pid is None else resident_bytes_of(pid),
        call=names_of(calls[: worker.width]),
        call_seconds=now - calls[0].since if calls else None,
    )


def names_of(calls: Sequence[Call]) -> str | None:
    """Return the names of functions that run at once, or None."""
    return ", ".join(dict.fromkeys(call.name for call in calls)) or None


async def stacks_of(workers: Sequence[tuple[Worker, Handle | None]]) -> list[WorkerStack]:
    """Return what workers are doing, as far as they have a process."""
    asked = [
        (worker.seat.number, process.pid, names_of(worker.running()), process.stack())
        for worker, process in workers
        if process is not None and process.pid is not None
    ]
    if asked:
        await asyncio.wait([dump for *_, dump in asked], timeout=PATIENCE)
    return [
        WorkerStack(seat, pid, call, frames_in(dump.result()) if dump.done() and is_whole(dump.result()) else None)
        for seat, pid, call, dump in asked
    ]
