"""What a pool stands on: the protocol between `aiopool.pool.AioPool` and whatever runs its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ..calls import Call
from ..exceptions import AioPoolError
from ..phases import PoolPhase
from ..pickling import Pickling
from ..sharing import CallPayload, Share
from ..stacks import WorkerStack
from ..stats import PoolStats

__all__ = ["Backend", "Remains", "in_loop"]


def in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this code runs in that loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Remains(Protocol):
    """What is to be ended of a backend when nobody holds its pool any more. It holds neither pool nor backend itself.

    For a backend holds its calls, these hold whoever waits for them, and that may hold the pool.
    """

    def running(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop in which there is something to be ended, or None."""
        ...

    def abandon(self) -> None:
        """See `Backend.abandon`."""
        ...

    def describe(self) -> str:
        """Return what there is in a few words."""
        ...


class Backend(Protocol):
    """Runs calls somewhere. All methods are called from the event loop that `start` ran in."""

    loop: asyncio.AbstractEventLoop
    """The loop that `start` ran in; not to be read before."""

    @property
    def remains(self) -> Remains:
        """What is to be ended when nobody holds the pool any more."""
        ...

    pickling: Pickling
    """How what it is given is pickled, and what it answers."""

    concurrency: int
    """How many coroutines may run at once in each seat."""

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        ...

    @property
    def seats(self) -> int:
        """How many functions may run at once."""
        ...

    @property
    def resting(self) -> bool:
        """Whether nobody is ready to run a call because there has been none for long."""
        ...

    @property
    def waiting(self) -> int:
        """How many calls no worker has yet."""
        ...

    @property
    def idle(self) -> int:
        """How many calls would be run at once if they came now."""
        ...

    def watch(self, notice: Callable[[], None]) -> None:
        """Have ``notice`` called whenever `phase`, `waiting` or `idle` may have changed."""
        ...

    async def start(self) -> None:
        """Return when calls can run, or raise `InitializerError` with nothing left behind."""
        ...

    async def resize(self, seats: int) -> None:
        """Return when so many calls can run at once, and no more do; raise `refusal` if no calls are taken.

        It stays in force if the wait is cancelled. The last one counts.
        """
        ...

    def submit(self, call: Call) -> None:
        """Take a call. Its ``finish`` is called once: later, or from within this method if the pool is terminated."""
        ...

    def cancel(self, call: Call) -> None:
        """End a call, waiting or running. Its ``finish`` is called when it has ended for good."""
        ...

    def withdraw(self, call: Call) -> None:
        """End a call if it has not begun."""
        ...

    def grant(self, call: Call, more: int) -> None:
        """Let a call that yields values yield so many more, if it has not ended."""
        ...

    def share(self, payload: CallPayload) -> Share:
        """Return what has this payload until nobody needs it any more, or the pool is gone."""
        ...

    def forget(self, share: int) -> None:
        """See `aiopool.sharing.Home`."""
        ...

    def refusal(self) -> AioPoolError:
        """Return why no call is taken now."""
        ...

    def close(self) -> None:
        """Take no more calls; accepted ones finish."""
        ...

    def terminate(self) -> None:
        """Fail every call and stop everything."""
        ...

    async def join(self) -> None:
        """Return when nothing is left running, after `close` or `terminate`."""
        ...

    def abandon(self) -> None:
        """Do what `terminate` does, with or without a running loop, and without waiting."""
        ...

    def stats(self) -> PoolStats:
        """Return what there is, and what has been."""
        ...

    async def stacks(self) -> list[WorkerStack]:
        """Return what workers are doing."""
        ...

    def describe(self) -> str:
        """Return the state in a few words, for a repr."""
        ...
