"""What a pool stands on: the protocol between `aiopool.pool.AioPool` and whatever runs its calls."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from ..arena import Arena
from ..calls import Call
from ..exceptions import AioPoolError, PoolNotRunning
from ..hooks import Hooks
from ..phases import PoolPhase
from ..pickling import Pickler, Pickling
from ..sharing import CallPayload, Share
from ..stacks import WorkerStack
from ..stats import PoolStats
from ..worker.main import Initializer

__all__ = ["Backend", "Elsewhere", "Remains", "Wanted", "in_loop", "not_running"]


def in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this code runs in that loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def not_running(phase: PoolPhase) -> PoolNotRunning:
    """Return the error of a call that is made when a pool stands there."""
    if phase in (PoolPhase.NEW, PoolPhase.STARTING):
        return PoolNotRunning("the pool is not started: use `async with pool:`, or `await pool.start()` first")
    return PoolNotRunning(f"the pool is {phase.value}: it takes no more calls")


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
    """Runs calls somewhere.

    Its methods are called from the event loop that `start` ran in, but for `stats`, `describe` and `forget`, which are
    for any thread. `abandon`, `close` and `terminate` are called where that loop does not run, too.
    """

    loop: asyncio.AbstractEventLoop
    """The loop that `start` ran in; not to be read before."""

    @property
    def remains(self) -> Remains:
        """What is to be ended when nobody holds the pool any more."""
        ...

    @property
    def arena(self) -> Arena | None:
        """What has memory for large arguments, if there is any that can be used again."""
        ...

    pickling: Pickling
    """How what it is given is pickled, and what it answers."""

    shortest_chunk: float
    """Seconds that an automatic chunk should take at least, as far as is known; 0 if a call costs next to nothing."""

    concurrency: int
    """How many coroutines may run at once in each seat."""

    streams: bool
    """Whether calls may yield values."""

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
        """Return when so many functions can run at once, and no more do; raise `refusal` if no calls are taken.

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


class Wanted(NamedTuple):
    """What a pool is to be like that runs elsewhere: as its user has said, and as it has been checked.

    Attributes:
        processes: how many workers, or None if that was not said.
        initializer: to be run in each worker first.
        pickling: how calls and their outcomes are pickled.
        start_timeout: seconds that the start may take.
        forward_logs: whether log records of workers are for this process's handlers.
        hooks: told what happens.
        others: all other arguments that are not what they are by default, by their names.
    """

    processes: int | None
    initializer: Initializer
    pickling: Pickling
    start_timeout: float
    forward_logs: bool
    hooks: Hooks
    others: Mapping[str, object]


class Elsewhere(abc.ABC):
    """Says where a pool's calls run, if neither on this machine nor in this process; an argument of `AioPool`."""

    pickler: Pickler | None = None
    """Takes the place of pickle in pools that are given no other."""

    @abc.abstractmethod
    def make(self, wanted: Wanted) -> Backend:
        """Return a backend for a pool, or raise ValueError for what cannot be had there."""
