"""A cluster of Dask of a pool's own, whose start can be given up at any moment."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import LocalCluster, Nanny, Status

__all__ = ["OwnCluster"]


class OwnNanny(Nanny):
    """A nanny that starts no worker once it was told to close; another does so, and nobody knows of that worker."""

    async def instantiate(self) -> Status:
        """Start a worker."""
        if self.status is Status.closing_gracefully:
            raise RuntimeError("its start was given up")
        return await super().instantiate()


class OwnCluster:
    """A scheduler in this process, and workers on this machine, which start at once.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self._cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            asynchronous=True, worker_class=OwnNanny, scheduler_kwargs={"allowed_failures": 0},
        )  # fmt: skip
        self._starting: asyncio.Future[Any] = asyncio.ensure_future(self._cluster)
        self._guard: asyncio.Task[None] | None = None

    async def ready(self) -> str:
        """Return the scheduler's address when all workers are there."""
        # The start is not cancelled with this: of one that is cut short, nobody would know the workers. See `close`.
        await asyncio.wait([self._starting])
        self._starting.result()
        self._guard = asyncio.get_running_loop().create_task(_guard(self._cluster))
        return str(self._cluster.scheduler_address)

    @property
    def _nannies(self) -> list[Nanny]:
        return list(self._cluster._created)  # noqa: SLF001 - in its `workers` are none that are still starting

    async def close(self) -> None:
        """End all of it, be it that it has only begun; that a worker hangs as it starts does not matter."""
        self._cluster.worker_spec.clear()
        coming = [nanny for nanny in self._nannies if nanny.status is Status.init]
        try:
            await asyncio.gather(*map(_give_up, coming), return_exceptions=True)
            await asyncio.gather(self._starting, return_exceptions=True)
            # They are closed by now, unless the start was cancelled with all else that the loop did.
            await asyncio.gather(*(nanny.close() for nanny in coming), return_exceptions=True)
            await (self._cluster.close() or _done())
        finally:
            if self._guard is not None:
                self._guard.cancel()

    def kill(self) -> None:
        """Kill the workers: nobody will wait for them."""
        for nanny in self._nannies:
            process = None if nanny.process is None else nanny.process.process
            if process is not None and process.is_alive():
                process._process.kill()  # noqa: SLF001 - its own ways all need a loop


async def _give_up(nanny: Nanny) -> None:
    """Have a nanny start no worker; if it has begun to, kill that, for which its start waits."""
    nanny.close_gracefully(reason="its start was given up")
    worker = nanny.process
    if worker is not None and worker.status is Status.starting and worker.process is not None:
        await worker.process.kill()
        await worker.stopped.wait()


async def _guard(cluster: LocalCluster) -> None:
    """Have whoever cancels all tasks of the loop, as `asyncio.run` does at its end, not wait for ever.

    The scheduler's are among them. One that is cancelled while it writes to a client does not say that it has stopped,
    for which another waits, whatever becomes of the cluster.
    """
    scheduler: Any = cluster.scheduler
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        for comm in scheduler.client_comms.values():
            comm.stopped.set()


async def _done() -> None:
    """Be what there is to await of something that is done already."""
