"""What can be said of the workers of a cluster of Dask."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Iterator, Sequence

from distributed import Client

from ..stacks import WorkerStack
from .dask_site import stacks_here
from .ledger import ClusterWorker

__all__ = ["stacks_in"]

PATIENCE = 5.0
"""Seconds that workers have to say what they are doing."""

Frames = dict[int, list[traceback.FrameSummary]]
"""The stacks of a worker's calls, by the calls' ids."""


async def stacks_in(client: Client, token: str, workers: Sequence[ClusterWorker]) -> list[WorkerStack]:
    """Return what workers are doing. Each is asked by itself, all at once: one that is silent holds up no other."""
    found: dict[str, Frames] = {}

    async def ask(worker: ClusterWorker) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is gone, or the scheduler is
            found.update(await client.run(stacks_here, token, workers=[worker.address]))

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as asking:
            for worker in workers:
                asking.create_task(ask(worker))
    return [stack for worker in workers for stack in _stacks_of(worker, found.get(worker.address))]


def _stacks_of(worker: ClusterWorker, found: Frames | None) -> Iterator[WorkerStack]:
    """Yield what a worker does, for each call that it runs."""
    if not found:
        yield WorkerStack(worker.seat, worker.pid, None, None if found is None else [])
        return
    for call, frames in found.items():
        entry = worker.running.get(call)
        yield WorkerStack(worker.seat, worker.pid, None if entry is None else entry.call.name, frames)
