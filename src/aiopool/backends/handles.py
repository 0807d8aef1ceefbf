"""What a backend and the kinds of workers that it may have know of one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import BaseContext
from typing import NamedTuple, Protocol

from .. import wire
from ..exceptions import AioPoolError
from ..pickling import Pickling
from ..worker import main as worker_main
from ..worker.logs import Levels
from ..worker.looping import Looping

__all__ = ["End", "Handle", "Observer", "Setup"]


class Observer(Protocol):
    """Who is told what a worker does. The number is the worker's."""

    def received(self, worker: int, frames: list[wire.Frame]) -> None:
        """It sent messages."""

    def garbled(self, worker: int) -> None:
        """It sent what is no message."""

    def gone(self, worker: int, end: End) -> None:
        """Its process is reaped, or was never started, and nothing of it is left."""


class End(NamedTuple):
    """How a worker's process ended.

    Attributes:
        pid: None when there never was one.
        exitcode: None when nobody could tell.
        unread: how many of the last packets of calls that were sent to it, it has not read.
        cause: why the process could not be started, or None.
    """

    pid: int | None = None
    exitcode: int | None = None
    unread: int = 0
    cause: AioPoolError | None = None


class Handle(Protocol):
    """What a backend has of a worker. `WorkerProcess` says what its methods mean."""

    @property
    def pid(self) -> int | None:
        """The process's id, if there is one."""
        ...

    @property
    def seat(self) -> int:
        """The number of its place in the pool."""
        ...

    def launch(self) -> None:
        """Start it."""

    def send(self, packets: Sequence[wire.Packet], call: int = 0, /) -> None:
        """Send a message about a call, or about none."""

    def listen(self) -> None:
        """Report what it has sent."""

    def pause_reading(self) -> None:
        """Report it only when `listen` is called."""

    def resume_reading(self) -> None:
        """Report it as it comes, as at first."""

    def take_back(self) -> list[wire.Packet]:
        """Return what it has not read."""
        ...

    def dismiss(self) -> None:
        """Tell it to leave by itself."""

    def interrupt(self, call: int, /) -> None:
        """Interrupt a call."""

    def grant(self, call: int, more: int, /) -> None:
        """Let a stream send so many values more."""

    def stack(self) -> asyncio.Future[str]:
        """Ask for its stack."""
        ...

    def kill(self) -> None:
        """Kill it."""

    def abandon(self) -> None:
        """Be rid of it without the loop's help."""


class Setup(NamedTuple):
    """How all workers of a pool are started.

    Attributes:
        context: of multiprocessing; says how a process is started.
        initializer: run in the worker first.
        memory_limit: bytes, see `aiopool.worker.main.main`.
        levels: returns those of the log records that workers are to send, see `aiopool.worker.main.main`.
        pickling: how calls and their outcomes are pickled.
        variables: of the environment, as workers are to have them.
        looping: how workers run coroutines.
    """

    context: BaseContext
    initializer: worker_main.Initializer
    memory_limit: int | None
    levels: Callable[[], Levels | None]
    pickling: Pickling
    variables: Mapping[str, str]
    looping: Looping = Looping()
