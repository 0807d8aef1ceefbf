"""aiopool and its peers: one small adapter for each, all with the same verbs, so that lines need not know them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, ClassVar, Protocol, Self

from . import jobs

__all__ = ["PEERS", "NotThere", "Options", "Peer", "installed", "version"]

CHUNKS_PER_WORKER = 4
"""Into how many chunks `multiprocessing.Pool.map` divides its input, and so do adapters of peers that must be told."""

AHEAD = 500
"""How far aiopool's imap reads ahead; its peers read their whole input."""


class NotThere(Exception):  # noqa: N818 - no error: the line is not run
    """What a line needs is not in this version or this environment."""


@dataclass(frozen=True)
class Options:
    """What lines ask of a pool.

    Args:
        workers: how many.
        recycle: after how many calls a worker is replaced.
        grace: seconds that a cancelled call has to stop.
        single: whether a worker is to take one call at a time, where that is a choice.
        concurrency: how many coroutines a worker runs at once, where that is a choice; 0 for what the pool does itself.
    """

    workers: int = 2
    recycle: int | None = None
    grace: float = 0.0
    single: bool = False
    concurrency: int = 0


class Peer(Protocol):
    """A pool as the lines use it. What an adapter lacks, its ``abilities`` do not name."""

    name: ClassVar[str]
    label: ClassVar[str]
    distribution: ClassVar[str | None]
    """What has a version; None for what comes with Python."""
    module: ClassVar[str]
    """Imported before anything is measured."""
    abilities: ClassVar[frozenset[str]]
    """Of ``map``, ``imap``, ``recycle``, ``kill`` (cancelling ends the call), ``interrupt`` (its worker may stay),
    ``coroutines``, ``stream``."""

    def __init__(self, options: Options) -> None: ...

    async def __aenter__(self) -> Self:
        """Start as far as the pool does without a call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave in the orderly way: nothing runs, and the workers are let go."""

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        """Begin a call, in the way that gives a future if there is one, or else a coroutine."""
        ...

    def await_(self, func: Callable[..., Awaitable[Any]], /, *args: Any) -> Awaitable[Any]:
        """Begin a call of a coroutine function."""
        raise NotImplementedError

    def stream(self, func: Callable[..., Iterable[Any]], /, *args: Any) -> AsyncIterator[Any]:
        """Give what a generator yields, as it yields it."""
        raise NotImplementedError

    def map(self, func: Callable[[Any], Any], items: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        """Call for each item, many in each message."""
        raise NotImplementedError

    def imap(self, func: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[Any]:
        """Call for each item, and give the values in order as they come, one in each message."""
        raise NotImplementedError

    async def share(self, value: Any) -> Any:
        """Return what to pass as an argument when many calls get the same: the value, if there is nothing better."""
        return value


def start_method() -> BaseContext:
    """Return what peers that let one choose are told: aiopool's default."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def chunksize(items: Sequence[Any], workers: int) -> int:
    """Return the size of chunks that `multiprocessing.Pool.map` would choose."""
    return max(1, -(-len(items) // (workers * CHUNKS_PER_WORKER)))


async def from_thread(make: Callable[[], Iterable[Any]]) -> AsyncIterator[Any]:
    """Give what a blocking iterator gives, as it comes: one thread iterates, and hands over to the loop."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[list[Any]] = asyncio.Queue()

    def feed() -> None:
        try:
            for value in make():
                loop.call_soon_threadsafe(arrived.put_nowait, [value])
        finally:
            loop.call_soon_threadsafe(arrived.put_nowait, [])

    thread = asyncio.ensure_future(asyncio.to_thread(feed))
    while values := await arrived.get():
        yield values[0]
    await thread


class Aiopool(Peer):
    """What this is about."""

    name, label, distribution, module = "aiopool", "aiopool", "aiopool", "aiopool.pool"
    abilities = frozenset({"map", "imap", "recycle", "kill", "interrupt", "coroutines", "stream"})

    def __init__(self, options: Options) -> None:
        from aiopool import AioPool

        self._pool = AioPool(
            options.workers,
            maxtasksperchild=options.recycle,
            context=start_method(),
            cancel_grace=options.grace,
            concurrency=options.concurrency or 1,
        )

    async def __aenter__(self) -> Self:
        await self._pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        await self._pool.join()

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        return self._pool.submit(func, *args)

    def await_(self, func: Callable[..., Awaitable[Any]], /, *args: Any) -> Awaitable[Any]:
        return self._pool.submit(func, *args)

    def stream(self, func: Callable[..., Iterable[Any]], /, *args: Any) -> AsyncIterator[Any]:
        return self._pool.stream(func, *args)

    def map(self, func: Callable[[Any], Any], items: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        return self._pool.map(func, items)

    def imap(self, func: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[Any]:
        return self._pool.imap(func, items, buffersize=AHEAD)

    async def share(self, value: Any) -> Any:
        return self._pool.share(value).argument


class MultiprocessingPool(Peer):
    """`multiprocessing.Pool`, with callbacks into the loop."""

    name, label, distribution, module = "mp_pool", "multiprocessing.Pool", None, "multiprocessing.pool"
    abilities = frozenset({"map", "imap", "recycle"})

    def __init__(self, options: Options) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = start_method().Pool(options.workers, maxtasksperchild=options.recycle)

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        await asyncio.to_thread(self._pool.join)

    def _setters(self, future: asyncio.Future[Any]) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
        call_soon = self._loop.call_soon_threadsafe
        return lambda value: call_soon(future.set_result, value), lambda error: call_soon(future.set_exception, error)

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        future = self._loop.create_future()
        self._pool.apply_async(func, args, {}, *self._setters(future))
        return future

    def map(self, func: Callable[[Any], Any], items: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        future = self._loop.create_future()
        self._pool.map_async(func, items, None, *self._setters(future))
        return future

    def imap(self, func: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[Any]:
        return from_thread(lambda: self._pool.imap(func, items))


class RunInExecutor(Peer):
    """`loop.run_in_executor` with a `ProcessPoolExecutor`."""

    name, label, module = "run_in_executor", "run_in_executor", "concurrent.futures.process"
    distribution: ClassVar[str | None] = None
    abilities = frozenset({"map", "imap", "recycle"})

    def __init__(self, options: Options) -> None:
        self._loop, self._workers = asyncio.get_running_loop(), options.workers
        self._executor = self._make(options)

    def _make(self, options: Options) -> Any:
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(options.workers, start_method(), max_tasks_per_child=options.recycle)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        return self._loop.run_in_executor(self._executor, func, *args)

    def map(self, func: Callable[[Any], Any], items: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        size = chunksize(items, self._workers)
        return asyncio.to_thread(lambda: list(self._executor.map(func, items, chunksize=size)))

    def imap(self, func: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[Any]:
        return from_thread(lambda: self._executor.map(func, items))


class Loky(RunInExecutor):
    """loky's executor, in its own start method: that is what it is for."""

    name, label, distribution, module = "loky", "loky", "loky", "loky"
    abilities = frozenset({"map", "imap"})

    def _make(self, options: Options) -> Any:
        import loky

        return loky.ProcessPoolExecutor(options.workers)


class Pebble(Peer):
    """pebble's `ProcessPool`."""

    name, label, distribution, module = "pebble", "pebble", "pebble", "pebble"
    abilities = frozenset({"map", "imap", "recycle", "kill"})

    def __init__(self, options: Options) -> None:
        import pebble

        self._workers = options.workers
        self._pool = pebble.ProcessPool(options.workers, options.recycle or 0, context=start_method())

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        await asyncio.to_thread(self._pool.join)

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        return asyncio.wrap_future(self._pool.schedule(func, args))

    def map(self, func: Callable[[Any], Any], items: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        size = chunksize(items, self._workers)
        return asyncio.to_thread(lambda: list(self._pool.map(func, items, chunksize=size).result()))

    def imap(self, func: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[Any]:
        return from_thread(lambda: self._pool.map(func, items).result())


class Aiomultiprocess(Peer):
    """aiomultiprocess, whose functions are coroutine functions. Its `map` has no chunks."""

    name, label, distribution = "aiomultiprocess", "aiomultiprocess", "aiomultiprocess"
    module = "aiomultiprocess"
    abilities = frozenset({"imap", "recycle", "coroutines"})

    def __init__(self, options: Options) -> None:
        import aiomultiprocess

        aiomultiprocess.set_start_method(start_method().get_start_method())
        self._pool = aiomultiprocess.Pool(
            options.workers,
            maxtasksperchild=options.recycle or 0,
            childconcurrency=1 if options.single else options.concurrency or aiomultiprocess.pool.CHILD_CONCURRENCY,
        )

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        await self._pool.join()

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        return self.await_(jobs.as_coroutine, func, *args)

    def await_(self, func: Callable[..., Awaitable[Any]], /, *args: Any) -> Awaitable[Any]:
        awaitable: Awaitable[Any] = self._pool.apply(func, args)
        return awaitable

    def imap(self, func: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[Any]:
        values: AsyncIterator[Any] = aiter(self._pool.map(partial(jobs.as_coroutine, func), items))
        return values


class Anyio(Peer):
    """`anyio.to_process.run_sync`. Its workers live as long as the loop."""

    name, label, distribution, module = "anyio", "anyio.to_process", "anyio", "anyio.to_process"
    abilities = frozenset({"kill"})

    def __init__(self, options: Options) -> None:
        import anyio

        self._limiter = anyio.CapacityLimiter(options.workers)

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        import anyio.to_process

        return anyio.to_process.run_sync(func, *args, cancellable=True, limiter=self._limiter)


class Aiomisc(Peer):
    """aiomisc's `WorkerPool`. A cancellation raises an exception in the call, which may stop it."""

    name, label, distribution, module = "aiomisc", "aiomisc WorkerPool", "aiomisc", "aiomisc"
    abilities = frozenset({"interrupt"})

    def __init__(self, options: Options) -> None:
        import aiomisc

        self._pool = aiomisc.WorkerPool(options.workers)

    async def __aenter__(self) -> Self:
        await self._pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    def call(self, func: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        awaitable: Awaitable[Any] = self._pool.create_task(func, *args)
        return awaitable


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (Aiopool, MultiprocessingPool, RunInExecutor, Loky, Pebble, Aiomultiprocess, Anyio, Aiomisc)
}


def installed() -> list[str]:
    """Return the names of the peers that can be imported here, aiopool first."""
    return [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.module.partition(".")[0])]


def version(peer: type[Peer]) -> str:
    """Return which release of a peer this is."""
    return "of this Python" if peer.distribution is None else importlib.metadata.version(peer.distribution)
