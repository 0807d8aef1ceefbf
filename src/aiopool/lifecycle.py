"""Starting a pool, and every way to leave it: by the block's end, by an exception, a cancellation, or forgetfulness."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NoReturn, Self

import anyio
import anyio.lowlevel

from .arguments import signal_number
from .backends import start_methods
from .backends.base import Backend, Remains, in_loop
from .dumps import dump_on
from .exceptions import WrongLoop
from .phases import RUNNING, PoolPhase
from .stacks import WorkerStack

__all__ = ["Guard", "Lifecycle"]

# anyio would load its asyncio side at its first use: in the user's loop, which would stand still meanwhile.
with contextlib.suppress(ImportError):  # a release that names it otherwise loads it later
    importlib.import_module("anyio._backends._asyncio")


started: weakref.WeakSet[Lifecycle] = weakref.WeakSet()
"""Pools that have been started, as long as somebody holds them."""


class Guard:
    """Knows where a pool may be used: in its process, its thread and its loop.

    Args:
        backend: the pool's.
    """

    def __init__(self, backend: Backend) -> None:
        self.owner: int = os.getpid()
        self._backend = backend

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the pool's own."""
        return os.getpid() != self.owner

    def check_process(self) -> None:
        """Refuse a process that was forked from the pool's own."""
        if self.forked:
            self._refuse_loop()

    def check_usable(self) -> None:
        """Raise what is to be raised if no call can be made now, or here."""
        if self._backend.phase is not RUNNING:
            raise self._backend.refusal()
        if not in_loop(self._backend.loop):
            self._refuse_loop()

    def check_loop(self) -> None:
        """Refuse another process, or another thread or loop while the pool's own runs; else nobody can be disturbed."""
        if self._backend.phase in (PoolPhase.NEW, PoolPhase.CLOSED):
            return
        loop = self._backend.loop
        if self.forked or (loop.is_running() and not in_loop(loop)):
            self._refuse_loop()

    def _refuse_loop(self) -> NoReturn:
        pool = f"<AioPool {self._backend.describe()}>"
        if self.forked:
            raise WrongLoop(
                f"{pool} belongs to process {self.owner}; process {os.getpid()}, forked from it, has none: "
                "make a pool in that process, after the fork"
            )
        raise WrongLoop(
            f"{pool} was started in another event loop. A pool works in the loop, and the thread, that started it; "
            "make one for each loop"
        )


class Lifecycle:
    """What a pool does before its first call and after its last.

    Args:
        backend: what runs the calls.
        prepare_start: called before the backend is started.
    """

    def __init__(self, backend: Backend, prepare_start: Callable[[], None]) -> None:
        self._backend = backend
        self._prepare_start = prepare_start
        self._guard = Guard(backend)
        self._finalizer: weakref.finalize[..., Any] | None = None

    async def start(self) -> None:
        """Start the workers; return when each has run its initializer.

        Raises:
            InitializerError: a worker did not become ready; none is left behind.
            RuntimeError: the pool was started, or closed, before.
        """
        if self._backend.phase is not PoolPhase.NEW:
            raise RuntimeError(f"{self!r} was started or closed before; make a new pool")
        start_methods.end_unguarded_import()
        self._prepare_start()
        await anyio.lowlevel.checkpoint_if_cancelled()
        started.add(self)
        self._finalizer = weakref.finalize(self, _forgotten, self._backend.remains, self._guard.owner)
        await self._or_end(self._backend.start())

    def close(self) -> None:
        """Take no more calls. Those accepted finish, then the workers leave.

        Raises:
            WrongLoop: the pool belongs to another process, or to another event loop that runs.
        """
        self._guard.check_loop()
        self._backend.close()

    def terminate(self) -> None:
        """Kill the workers. Calls that wait or run fail with `PoolTerminated`.

        Raises:
            WrongLoop: see `close`.
        """
        self._guard.check_loop()
        self._backend.terminate()

    async def stacks(self) -> list[WorkerStack]:
        """Return what each worker is doing, busy or not: its call, and the Python stack of its main thread.

        A worker that has not answered within five seconds is stopped, or still being started. On Dask there is a stack
        for each call, of the thread that runs it. With ``backend="inline"`` there is no process to ask, and nothing to
        return.

        Raises:
            WrongLoop: see `close`.
        """
        self._guard.check_loop()
        return await self._backend.stacks()

    def dump_on(self, number: int) -> None:
        """Have `stacks` logged, as warnings of the logger ``aiopool``, whenever this process gets a signal.

        The loop handles the signal from then on, also when the pool is gone; other pools may want it, too.

        Args:
            number: of the signal, such as `signal.SIGUSR1`.

        Raises:
            BrokenPool: see `apply`.
            PoolNotRunning: the pool is not started, or closed.
            RuntimeError: this is not the main thread, or the loop handles no signals, or not this one.
            TypeError: that is no number.
            ValueError: no signal has it.
            WrongLoop: see `apply`.
        """
        self._guard.check_usable()
        dump_on(signal_number(number), self._backend)

    async def join(self) -> None:
        """Wait until the last worker is gone.

        Raises:
            ValueError: neither `close` nor `terminate` was called.
            WrongLoop: see `close`.
        """
        if self._backend.phase in (PoolPhase.NEW, PoolPhase.STARTING, RUNNING, PoolPhase.BROKEN):
            raise ValueError(f"{self!r} has not been told to end: call close() or terminate() before join()")
        self._guard.check_loop()
        await self._backend.join()
        self._forget()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            self.abandon()
        elif kind is not None:
            self.terminate()
            await self._settle()
        else:
            self.close()
            await self._or_end(self.join())

    async def _or_end(self, step: Awaitable[None]) -> None:
        """Take a step of the pool's life; if that fails or is cancelled, end the pool."""
        try:
            await step
        except GeneratorExit:
            self.abandon()
            raise
        except BaseException:
            self.terminate()
            await self._settle()
            raise

    @property
    def alive(self) -> bool:
        """Whether it has been started, and has not ended."""
        return self._backend.phase not in (PoolPhase.NEW, PoolPhase.CLOSED)

    def abandon(self) -> None:
        """End the workers at once, without a loop: for where nothing can be awaited. In a forked child, do nothing."""
        if self._guard.forked:
            return
        self._backend.abandon()
        self._forget()

    async def _settle(self) -> None:
        """Wait for the killed workers' end, which is near, whatever is cancelled meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):  # an anyio host cancels again at every await
            while self._backend.phase is not PoolPhase.CLOSED:
                try:
                    await self._backend.join()
                except asyncio.CancelledError as error:  # asyncio's own, which no shield holds off
                    cancelled = error
        self._forget()
        if cancelled is not None:
            raise cancelled

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AioPool cannot be pickled: pass values to a worker, and make a pool there if it needs one")

    def __repr__(self) -> str:
        return f"<AioPool {self._backend.describe()}>"


def _forgotten(remains: Remains, owner: int) -> None:
    """End the workers of a pool that is collected, or still there at the interpreter's exit."""
    if os.getpid() != owner or (loop := remains.running()) is None:
        return
    state = remains.describe()
    if loop.is_running():  # maybe in another thread, and maybe in the midst of a decision
        loop.call_soon_threadsafe(remains.abandon)
    else:
        remains.abandon()
    warnings.warn(
        f"unclosed AioPool ({state}): use `async with`, or `close()` and `await join()`", ResourceWarning, stacklevel=2
    )
