"""The connection of a pool with a cluster of Dask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from distributed import Client, Security, SpecCluster

from ..phases import PoolPhase
from .base import Backend
from .dask_own import OwnCluster

__all__ = ["Cluster", "Connection"]


class Cluster(Protocol):
    """A cluster object of Dask: a `distributed.LocalCluster`, or one of dask-jobqueue, dask-kubernetes and the like."""

    @property
    def scheduler_address(self) -> str:
        """Where its scheduler is."""
        ...


class Connection:
    """The way to a cluster, and what is to be ended of it. See `aiopool.backends.base.Remains`.

    Args:
        where: the cluster: see `aiopool.backends.dask.DaskBackend`.
        security: for an address.
        workers: how many a cluster of our own has.
        timeout: seconds that the scheduler has to answer at first.

    Attributes:
        client: None before it is open, and after it is closed.
        loop: in which it was opened.
        tasks: cancelled when it is closed.
    """

    def __init__(
        self, where: str | Client | Cluster | None, security: Security | None, workers: int, timeout: float
    ) -> None:
        self.client: Client | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.backend: Callable[[], Backend | None] = _nobody
        self._where = where
        self._security = security
        self._workers = workers
        self._timeout = timeout
        self._own_client = False
        self._own_cluster: OwnCluster | None = None

    async def open(self) -> Client:
        """Connect; start a cluster if there is none."""
        self.loop = asyncio.get_running_loop()
        where = self._where
        if isinstance(where, Client) and where.asynchronous and _loop_of(where) is self.loop:
            self.client = where
            return where
        address, security = await self._address()
        self._own_client = True
        self.client = Client(
            address, security=security, asynchronous=True, set_as_default=False, timeout=self._timeout, name="aiopool"
        )
        await self.client
        return self.client

    async def _address(self) -> tuple[str, Security | None]:
        where = self._where
        if where is None:
            self._own_cluster = OwnCluster(self._workers)
            return await self._own_cluster.ready(), None
        if isinstance(where, str):
            return where, self._security
        if isinstance(where, Client):
            return _address_of(where), where.security
        if getattr(where, "asynchronous", False) and isinstance(where, SpecCluster):
            await where
        return where.scheduler_address, getattr(where, "security", None)

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done as long as this is open."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def close(self) -> None:
        """Leave; end what is our own."""
        for task in list(self.tasks):
            task.cancel()
        # The scheduler may be gone, or not answer any more: then there is nobody to take leave of.
        if self._own_client and self.client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                closing: Any = self.client.close()
                await closing
        if self._own_cluster is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._own_cluster.close()
        self.client = self._own_cluster = None

    def kill_own(self) -> None:
        """Kill the workers of a cluster of our own: nobody will wait for them."""
        if self._own_cluster is not None:
            self._own_cluster.kill()

    # See `Remains`.

    def running(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop in which there is something to be ended, or None."""
        backend = self.backend()
        if backend is not None and backend.phase in (PoolPhase.NEW, PoolPhase.CLOSED):
            return None
        return None if self.client is None and self._own_cluster is None else self.loop

    def abandon(self) -> None:
        """End the backend, or what is left of it."""
        backend = self.backend()
        if backend is not None:
            backend.abandon()
        elif self.loop is not None and not self.loop.is_closed():
            self.loop.create_task(self.close())
        else:
            self.kill_own()

    def describe(self) -> str:
        """Return what there is in a few words."""
        backend = self.backend()
        return "a cluster of Dask" if backend is None else backend.describe()


def _loop_of(client: Client) -> asyncio.AbstractEventLoop | None:
    loop: asyncio.AbstractEventLoop | None = getattr(client.loop, "asyncio_loop", None)
    return loop


def _address_of(client: Client) -> str:
    if client.scheduler is None:
        raise ConnectionError(f"{client!r} is closed")
    return str(client.scheduler.address)


def _nobody() -> None:
    """Know no backend."""
