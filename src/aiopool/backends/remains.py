"""What is left of a backend that nobody holds any more: its workers, and the memory of what it has shared."""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from ..phases import PoolPhase
from ..sharing import Share
from .handles import Handle

__all__ = ["LocalRemains", "abandon_all"]


class Owner(Protocol):
    """What there is of a backend as long as somebody holds it; see `aiopool.backends.base.Backend`."""

    loop: asyncio.AbstractEventLoop

    @property
    def phase(self) -> PoolPhase:
        """Where it stands."""
        ...

    def abandon(self) -> None:
        """End it."""

    def describe(self) -> str:
        """Return its state in a few words."""
        ...


class LocalRemains:
    """The workers of a backend, and what it has shared. See `aiopool.backends.base.Remains`."""

    def __init__(self, backend: Owner) -> None:
        self.processes: dict[int, Handle] = {}
        self.shares: weakref.WeakSet[Share] = weakref.WeakSet()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._backend = weakref.ref(backend)

    def running(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop in which there is something to be ended, or None."""
        backend = self._backend()
        if backend is None:
            return self.loop if self.processes else None
        return None if backend.phase in (PoolPhase.NEW, PoolPhase.CLOSED) else backend.loop

    def abandon(self) -> None:
        """End the workers."""
        backend = self._backend()
        if backend is not None:
            backend.abandon()
        else:
            abandon_all(self.processes)
            self.forget_shares()

    def forget_shares(self) -> None:
        """Let go of the memory of shares that users still have a handle of."""
        for share in list(self.shares):
            share.payload = b""

    def describe(self) -> str:
        """Return how many there are, and more if that is still known."""
        backend = self._backend()
        return f"{len(self.processes)} workers" if backend is None else backend.describe()


def abandon_all(processes: dict[int, Handle]) -> None:
    """Kill all of them, then see that they are gone."""
    for process in processes.values():
        process.kill()
    while processes:
        _, process = processes.popitem()
        process.abandon()
