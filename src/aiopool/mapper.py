"""Calls over many items: `map`, `imap` and their kin, whose input travels in chunks."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar, overload

from .arguments import (
    POOLS,
    Default,
    at_least,
    check_callable,
    iterate_input,
    length_of,
    name_of,
    optional,
    seconds,
    size,
)
from .calls import Call, CallKind, Limits, MaybeCoroutine, Outcome
from .chunks import AWAITED, make_chunks, size_of_chunks
from .engine import Engine
from .packing import kind_of
from .pickling import PLAIN
from .results import MapResult
from .streams import ImapIterator, Window
from .worker import job

__all__ = ["Mapper"]

T = TypeVar("T")
S = TypeVar("S")

CHUNKS_AHEAD = 2
"""How many chunks for each worker, or each coroutine that may run at once, an imap has in its window by default."""

WORTHWHILE_RANGE = 64
"""Items from which on the chunks of a range travel as ranges: fewer are smaller, and sooner unpickled, one by one."""


class Mapper:
    """Makes calls over many items.

    Args:
        engine: the pool's.
        limits: how far a call may go that does not say it itself.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits

    @overload
    async def map(
        self,
        func: Callable[[S], Coroutine[Any, Any, T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> list[T]: ...

    @overload
    async def map(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> list[T]: ...

    async def map(
        self,
        func: Callable[[S], MaybeCoroutine[T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> list[T]:
        """Call ``func(item)`` for each item; return the values in order.

        The first exception is raised at once; chunks that have not begun are then dropped.

        Args:
            func: what to call in the workers.
            iterable: the items; an async iterable is read to its end first.
            chunksize: how many items travel together; None divides the input into four chunks for each worker, or
                into single items if there is a time limit, or for a coroutine function, if not on Dask. A chunk of
                coroutines is awaited one after the other.
            timeout: see `apply`; the limit of each chunk.
            retries: see `apply`; the whole chunk is run again.

        Raises:
            Exception: what ``func`` or ``iterable`` raises.
            AioPoolError: see `apply`; what is said of a call there holds for a chunk.
            TypeError: ``func`` cannot be called, there is nothing to iterate over, or another argument is of the wrong
                type.
            ValueError: ``chunksize``, ``timeout`` or ``retries`` is out of its range.
        """
        limits = self._limits_for(timeout, retries)
        return await self._map(job.map_chunk, func, iterable, chunksize, None, None, limits, wait=True)

    @overload
    async def starmap(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> list[T]: ...

    @overload
    async def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> list[T]: ...

    async def starmap(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> list[T]:
        """Call ``func(*item)`` for each item; return the values in order. For the rest, see `map`.

        Raises:
            Exception: see `map`; also a TypeError, if an item cannot be iterated over.
        """
        limits = self._limits_for(timeout, retries)
        return await self._map(job.starmap_chunk, func, iterable, chunksize, None, None, limits, wait=True)

    @overload
    def map_async(
        self,
        func: Callable[[S], Coroutine[Any, Any, T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int | None = ...,
        callback: Callable[[list[T]], object] | None = ...,
        error_callback: Callable[[BaseException], object] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> MapResult[T]: ...

    @overload
    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int | None = ...,
        callback: Callable[[list[T]], object] | None = ...,
        error_callback: Callable[[BaseException], object] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> MapResult[T]: ...

    def map_async(
        self,
        func: Callable[[S], MaybeCoroutine[T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> MapResult[T]:
        """Begin a `map` and return its result-to-be at once. For the callbacks, see `apply_async`.

        Raises:
            PoolFull: ``max_pending`` leaves no room for all of the chunks.
            AioPoolError: see `apply_async`. (An async iterable is read later: what comes of its items, the result
                raises.)
            Exception: what an ordinary iterable raises.
            TypeError: see `map`; or a callback cannot be called.
            ValueError: see `map`.
        """
        limits = self._limits_for(timeout, retries)
        return self._map(job.map_chunk, func, iterable, chunksize, callback, error_callback, limits)

    @overload
    def starmap_async(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = ...,
        callback: Callable[[list[T]], object] | None = ...,
        error_callback: Callable[[BaseException], object] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> MapResult[T]: ...

    @overload
    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = ...,
        callback: Callable[[list[T]], object] | None = ...,
        error_callback: Callable[[BaseException], object] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> MapResult[T]: ...

    def starmap_async(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> MapResult[T]:
        """Begin a `starmap` and return its result-to-be at once. For the callbacks, see `apply_async`.

        Raises:
            Exception: see `map_async`.
        """
        limits = self._limits_for(timeout, retries)
        return self._map(job.starmap_chunk, func, iterable, chunksize, callback, error_callback, limits)

    @overload
    def imap(
        self,
        func: Callable[[S], Coroutine[Any, Any, T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = ...,
        buffersize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> ImapIterator[T]: ...

    @overload
    def imap(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = ...,
        buffersize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> ImapIterator[T]: ...

    def imap(
        self,
        func: Callable[[S], MaybeCoroutine[T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = 1,
        buffersize: int | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> ImapIterator[T]:
        """Call ``func(item)`` for each item; return an async iterator over the values, in order.

        An item's exception is raised in its turn, and the iteration may go on behind it. What ends a whole chunk, such
        as `WorkerDied`, `CallTimeout` or `NotPicklable`, is raised once in the place of all of its values, and the next
        chunk may follow. What the input raises, or that the pool takes no more calls, comes at the end.

        Args:
            func: what to call in the workers.
            iterable: the items, which may be endless or async; read only as far as ``buffersize`` says.
            chunksize: how many items travel together.
            buffersize: how many chunks are taken from the input ahead of what you have received; None means two
                for each worker, or for each coroutine that may run at once.
            timeout: see `apply`; the limit of each chunk.
            retries: see `apply`; the whole chunk is run again.

        Raises:
            NotPicklable: the function cannot be pickled.
            BrokenPool: see `apply`.
            PoolNotRunning: see `apply`.
            WrongLoop: see `apply`.
            TypeError: see `map`.
            ValueError: ``chunksize``, ``buffersize``, ``timeout`` or ``retries`` is out of its range.
        """
        limits = self._limits_for(timeout, retries)
        return self._imap(func, iterable, chunksize, buffersize, limits, ordered=True)

    @overload
    def imap_unordered(
        self,
        func: Callable[[S], Coroutine[Any, Any, T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = ...,
        buffersize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> ImapIterator[T]: ...

    @overload
    def imap_unordered(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = ...,
        buffersize: int | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> ImapIterator[T]: ...

    def imap_unordered(
        self,
        func: Callable[[S], MaybeCoroutine[T]],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = 1,
        buffersize: int | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> ImapIterator[T]:
        """Call ``func(item)`` for each item; return an async iterator over the values as they come. See `imap`.

        Raises:
            Exception: see `imap`.
        """
        limits = self._limits_for(timeout, retries)
        return self._imap(func, iterable, chunksize, buffersize, limits, ordered=False)

    def _map(
        self,
        over_chunk: Callable[..., list[T]],
        func: Callable[..., MaybeCoroutine[T]],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        limits: Limits,
        *,
        wait: bool = False,
    ) -> MapResult[T]:
        self._engine.guard.check_usable()
        check_callable("func", func)
        chunksize = optional(size, "chunksize", chunksize)
        result: MapResult[T] = MapResult(self._engine.backend, name_of(func))
        result.add_callbacks(callback, error_callback)
        admission, packer = self._engine.admission, self._engine.packer
        company, kind = packer.carried(), kind_of(func)  # now; an async input may take its time

        def begin(items: Sequence[Any]) -> None:
            self._engine.guard.check_usable()
            length = size_of_chunks(self._engine, len(items), chunksize, limits, kind, packer.pace_of(func))
            if isinstance(items, range) and length < WORTHWHILE_RANGE:
                items = list(items)
            waits = wait and admission.limited
            if not waits:
                admission.take(-(-len(items) // length))
            calls = make_chunks(
                self._engine,
                packer.find_runner(AWAITED[over_chunk] if kind is CallKind.COROUTINE else over_chunk, func),
                func,
                items,
                length,
                result.finish_chunk,
                limits,
                company,
                automatic=chunksize is None,
            )
            if waits:
                result.feed_calls(calls, admission.enter, packer.drop)
            else:
                result.begin_calls(calls)

        if isinstance(iterable, AsyncIterable):
            result.begin_when_read(iterable, begin, self._engine.admission.tell)
        elif isinstance(iterable, range) and self._engine.backend.pickling is PLAIN:
            begin(iterable)  # each chunk is a range, too, and travels as such; not every pickler knows what that is
        else:
            begin(list(iterate_input(iterable)))
        return result

    def _imap(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int,
        buffersize: int | None,
        limits: Limits,
        *,
        ordered: bool,
    ) -> ImapIterator[T]:
        self._engine.guard.check_usable()
        check_callable("func", func)
        chunksize, buffersize = size("chunksize", chunksize), optional(size, "buffersize", buffersize)
        awaited, backend = kind_of(func) is CallKind.COROUTINE, self._engine.backend
        ahead = CHUNKS_AHEAD * (backend.concurrency if awaited else 1)
        source = iterable if isinstance(iterable, AsyncIterable) else iterate_input(iterable)
        packer = self._engine.packer
        packer.find(func)  # one that cannot travel is an error of this line
        over_chunk = AWAITED[job.each_of_chunk] if awaited else job.each_of_chunk
        runner, company = packer.find_runner(over_chunk, func), packer.carried()

        context = copy_context()  # whoever takes the next value, all calls are those of whoever is here

        def make(items: list[Any], finish: Callable[[Outcome], None]) -> Call:
            return packer.make(runner, (func, items), {}, finish, limits, company, weight=len(items))

        window = Window(
            backend,
            self._engine.admission,
            runner.name,
            lambda items, finish: context.run(make, items, finish),
            chunksize=chunksize,
            buffersize=lambda: ahead * backend.seats if buffersize is None else buffersize,
            ordered=ordered,
            left=length_of(iterable),
        )
        window.open(source)
        return ImapIterator(window, self)

    def _limits_for(self, timeout: float | Default | None, retries: int | Default) -> Limits:
        if timeout is POOLS and retries is POOLS:
            return self._limits
        return Limits(
            self._limits.timeout if timeout is POOLS else optional(seconds, "timeout", timeout),
            self._limits.retries if retries is POOLS else at_least(0, "retries", retries),
        )
