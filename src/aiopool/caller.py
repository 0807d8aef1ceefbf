"""The verbs of `multiprocessing.pool.Pool`, made for coroutines: what a pool has, and a view of a pool."""

from __future__ import annotations

import math
import weakref
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, overload

from .admission import Admission
from .arguments import (
    Default,
    at_least,
    check_callable,
    iterate,
    iterate_input,
    keywords_of,
    length_of,
    name_of,
    optional,
    seconds,
    size,
)
from .backends.base import Backend
from .calls import YIELDING, Call, CallKind, Limits, Outcome, Pace
from .carrying import Around
from .executor import PoolExecutor
from .lifecycle import Guard
from .packing import Function, Packer, kind_of
from .recycling import RecyclePolicy
from .results import AsyncResult, MapResult
from .streaming import Stream, StreamIterator
from .streams import ImapIterator, Window
from .worker import job, tasks

__all__ = ["Caller", "Engine"]

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

MaybeCoroutine: TypeAlias = Coroutine[Any, Any, T] | T
"""What a function returns whose call has a value: that, or what gives it when it is awaited."""

CHUNKS_PER_WORKER = 4
"""Into how many chunks a map divides its input for each worker, as `multiprocessing.pool.Pool.map` does."""

CHUNKS_AHEAD = 2
"""How many chunks for each worker, or each coroutine that may run at once, an imap has in its window by default."""

VALUES_AHEAD = 64
"""How many values a stream is ahead of its reader by default."""

AWAITED: dict[Callable[..., Any], Callable[..., Any]] = {
    job.map_chunk: tasks.map_chunk,
    job.starmap_chunk: tasks.starmap_chunk,
    job.each_of_chunk: tasks.each_of_chunk,
}
"""What calls a coroutine function with each item of a chunk, by what does so with a function."""

IMMEASURABLE = 1e-9
"""Seconds below which no call is told from none."""


class Engine(NamedTuple):
    """What a pool makes its calls with; all its callers have the same."""

    backend: Backend
    """Runs the calls."""
    packer: Packer
    """Pickles what they need."""
    admission: Admission
    """Says when one may be submitted."""
    policy: RecyclePolicy
    """Says how large a chunk may be."""
    guard: Guard
    """Says where a call can be made."""
    streams: weakref.WeakSet[Stream]
    """Those that have not come to their end, and some that have."""
    executors: weakref.WeakSet[PoolExecutor]
    """Those that were made."""


class Caller:
    """Makes calls of a pool: the pool itself, or a view of it that has limits of its own; see `options`.

    Args:
        engine: the pool's.
        limits: how far a call may go that does not say it itself.
        buffersize: how many values a stream may be ahead of its reader.
        pool: what this is a view of; it lives as long as the view does.
    """

    def __init__(
        self, engine: Engine, limits: Limits, buffersize: int = VALUES_AHEAD, pool: Caller | None = None
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._buffersize = buffersize
        self._pool = pool

    def options(
        self,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
        buffersize: int | Default = Default.POOLS,
    ) -> Caller:
        """Return a view of the pool whose calls have these limits unless they ask for others; it costs next to nothing.

        Args:
            timeout: see `apply`.
            retries: see `apply`.
            buffersize: see `stream`.

        Raises:
            ValueError: a number is out of its range.
            TypeError: an argument is of the wrong type.
        """
        ahead = self._buffersize if buffersize is Default.POOLS else size("buffersize", buffersize)
        return Caller(self._engine, self._limits_for(timeout, retries), ahead, self)

    def __repr__(self) -> str:
        limits = self._limits
        return f"<Caller timeout={limits.timeout} retries={limits.retries}: {self._engine.backend.describe()}>"

    # One call.

    @overload
    async def apply(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        args: Iterable[Any] = ...,
        kwds: Mapping[str, Any] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> T: ...

    @overload
    async def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = ...,
        kwds: Mapping[str, Any] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> T: ...

    async def apply(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> T:
        """Call ``func(*args, **kwds)`` in a worker; return what it returns, raise what it raises.

        Cancelling this cancels the call: when the cancellation arrives, the call has ended, and so has its worker
        unless the call has stopped within ``cancel_grace``.

        Args:
            func: what to call in a worker; a coroutine function is awaited there, on the worker's own event loop.
            args: its positional arguments.
            kwds: its keyword arguments.
            timeout: seconds that the call may run, or None for no limit; instead of the pool's.
            retries: how often it is run again when its worker died under it; instead of the pool's.

        Raises:
            NotPicklable: the function, an argument, the result or the exception cannot be pickled.
            WorkerDied: the worker went away under the call.
            CallTimeout: the call ran longer than its time limit.
            CallAborted: the function raised SystemExit, KeyboardInterrupt or the like.
            PoolNotRunning: the pool is not started, or closed.
            PoolTerminated: the pool was terminated meanwhile.
            BrokenPool: workers keep dying before they can serve a call.
            TypeError: ``func`` cannot be called, or is a generator function, which `stream` is for.
        """
        if self._engine.admission.limited:
            result = await self._begin_in_turn(func, args, kwds, self._limits_for(timeout, retries))
        else:
            result = self._begin(func, args, kwds, self._limits_for(timeout, retries))
        try:
            return await result
        finally:
            del result  # it has the exception, whose traceback has this frame

    async def _begin_in_turn(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        args: Iterable[Any],
        kwds: Mapping[str, Any] | None,
        limits: Limits,
    ) -> AsyncResult[T]:
        """Begin a call as soon as there is room for it."""
        function, positional, keywords = self._prepare_one(func, args, kwds)
        packer = self._engine.packer
        result: AsyncResult[T] = AsyncResult(self._engine.backend, function.name)
        call = packer.make(function, positional, keywords, result.finish, limits, packer.carried())
        try:
            await self._engine.admission.enter()
        except BaseException:
            packer.drop(call)
            raise
        result.begin(call)
        return result

    @overload
    def apply_async(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        args: Iterable[Any] = ...,
        kwds: Mapping[str, Any] | None = ...,
        callback: Callable[[T], object] | None = ...,
        error_callback: Callable[[BaseException], object] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> AsyncResult[T]: ...

    @overload
    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = ...,
        kwds: Mapping[str, Any] | None = ...,
        callback: Callable[[T], object] | None = ...,
        error_callback: Callable[[BaseException], object] | None = ...,
        *,
        timeout: float | Default | None = ...,
        retries: int | Default = ...,
    ) -> AsyncResult[T]: ...

    def apply_async(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> AsyncResult[T]:
        """Begin a call and return its result-to-be at once.

        Args:
            func: what to call in a worker.
            args: its positional arguments; pickled before this returns.
            kwds: its keyword arguments.
            callback: called in the loop with the value, if there is one. If it raises, the loop's exception handler
                is told.
            error_callback: called in the loop with the exception, if there is one.
            timeout: see `apply`.
            retries: see `apply`.

        Raises:
            NotPicklable: the function or an argument cannot be pickled.
            PoolNotRunning: the pool is not started, or closed.
            PoolFull: ``max_pending`` calls wait already.
        """
        return self._begin(func, args, kwds, self._limits_for(timeout, retries), callback, error_callback)

    def _begin(
        self,
        func: Callable[..., MaybeCoroutine[T]],
        args: Iterable[Any],
        kwds: Mapping[str, Any] | None,
        limits: Limits,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        function, positional, keywords = self._prepare_one(func, args, kwds)
        packer = self._engine.packer
        result: AsyncResult[T] = AsyncResult(self._engine.backend, function.name)
        result.add_callbacks(callback, error_callback)
        self._engine.admission.take(1)
        result.begin(packer.make(function, positional, keywords, result.finish, limits, packer.carried()))
        return result

    @overload
    def submit(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwds: P.kwargs
    ) -> AsyncResult[T]: ...

    @overload
    def submit(self, func: Callable[P, T], /, *args: P.args, **kwds: P.kwargs) -> AsyncResult[T]: ...

    def submit(self, func: Callable[P, MaybeCoroutine[T]], /, *args: P.args, **kwds: P.kwargs) -> AsyncResult[T]:
        """Begin ``func(*args, **kwds)`` in a worker: `apply_async` with the arguments written as in a call."""
        return self._begin(func, args, kwds, self._limits)

    def stream(
        self, func: Callable[P, Iterable[T] | AsyncIterable[T]], /, *args: P.args, **kwds: P.kwargs
    ) -> StreamIterator[T]:
        """Begin ``func(*args, **kwds)`` in a worker; return an async iterator over what it yields, as it yields it.

        It is at most so many values ahead of its reader as ``options(buffersize=...)`` says, 64 by default; then it
        stands still until some are taken. Leaving it early (with `StreamIterator.aclose`, or as a task is cancelled
        that waits for a value) closes the generator in the worker, whose clean-up has ``cancel_grace`` seconds, or one
        if that is 0. What it raises comes after the values before it. It is never tried again, for its values would
        come twice. A time limit is for all of it, what it waits for its reader included.

        Args:
            func: a generator function, which has its worker for itself, or an async generator function, which shares it
                as coroutines do.
            args: its positional arguments.
            kwds: its keyword arguments.

        Raises:
            NotImplementedError: the pool is on Dask.
            NotPicklable: the function or an argument cannot be pickled.
            PoolNotRunning: the pool is not started, or closed.
            PoolFull: ``max_pending`` calls wait already.
            TypeError: the function is no generator function.
        """
        function, positional, keywords = self._prepare(func, args, kwds)
        if function.kind not in YIELDING:
            raise TypeError(f"func must be a generator function or an async generator function, not {func!r}")
        if not self._engine.backend.streams:
            raise NotImplementedError(
                f"a pool on Dask cannot stream what {function.name} yields: return all of it, or use imap"
            )
        engine, limits = self._engine, self._limits._replace(retries=0)
        engine.admission.take(1)
        stream = Stream(engine.backend, function.name, self._buffersize)
        engine.streams.add(stream)
        stream.begin(engine.packer.make(function, positional, keywords, stream.finish, limits, engine.packer.carried()))
        return StreamIterator(stream, self)

    def as_executor(self) -> PoolExecutor:
        """Return a `concurrent.futures.Executor` that runs its calls here, for libraries that want one.

        It may be used in any thread, and be the loop's default executor. Its functions and their arguments and values
        are pickled, as ever. Cancelling one of its futures cancels the call. Shutting it down leaves the pool alone.
        """
        executor = PoolExecutor(self._engine.backend, partial(self._begin_in_turn, limits=self._limits))
        self._engine.executors.add(executor)
        return executor

    def _prepare(
        self, func: Callable[..., object], args: Iterable[Any], kwds: Mapping[str, Any] | None
    ) -> tuple[Function, tuple[Any, ...], dict[str, Any]]:
        self._engine.guard.check_usable()
        check_callable("func", func)
        keywords = {} if kwds is None else keywords_of(kwds)
        positional = args if type(args) is tuple else tuple(iterate("args", args))
        return self._engine.packer.find(func), positional, keywords

    def _prepare_one(
        self, func: Callable[..., object], args: Iterable[Any], kwds: Mapping[str, Any] | None
    ) -> tuple[Function, tuple[Any, ...], dict[str, Any]]:
        """Do the same for a call that has one value, and so is not to be of a generator function."""
        prepared = self._prepare(func, args, kwds)
        if prepared[0].kind in YIELDING:
            raise TypeError(f"{name_of(func)} is a generator function: stream gives what it yields")
        return prepared

    def _limits_for(self, timeout: float | Default | None, retries: int | Default) -> Limits:
        if timeout is Default.POOLS and retries is Default.POOLS:
            return self._limits
        return Limits(
            self._limits.timeout if timeout is Default.POOLS else optional(seconds, "timeout", timeout),
            self._limits.retries if retries is Default.POOLS else at_least(0, "retries", retries),
        )

    # Many calls.

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
        """Call ``func(*item)`` for each item; return the values in order. For the rest, see `map`."""
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
        """Begin a `map` and return its result-to-be at once. For the callbacks, see `apply_async`."""
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
        """Begin a `starmap` and return its result-to-be at once. For the callbacks, see `apply_async`."""
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

        Args:
            func: what to call in the workers.
            iterable: the items, which may be endless or async; read only as far as ``buffersize`` says.
            chunksize: how many items travel together.
            buffersize: how many chunks are taken from the input ahead of what you have received; None means two
                for each worker, or for each coroutine that may run at once.
            timeout: see `apply`; the limit of each chunk.
            retries: see `apply`; the whole chunk is run again.
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
        """Call ``func(item)`` for each item; return an async iterator over the values as they come. See `imap`."""
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

        def begin(items: list[Any]) -> None:
            self._engine.guard.check_usable()
            length = self._size_of_chunks(len(items), chunksize, limits, kind, packer.pace_of(func))
            waits = wait and admission.limited
            if not waits:
                admission.take(-(-len(items) // length))
            calls = self._make_chunks(
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
        else:
            begin(list(iterate_input(iterable)))
        return result

    def _size_of_chunks(self, items: int, chunksize: int | None, limits: Limits, kind: CallKind, pace: Pace) -> int:
        if chunksize is not None:
            return chunksize
        backend = self._engine.backend
        cheap = not backend.shortest_chunk  # so that coroutines that wait had better do so at once
        if limits.timeout is not None or (cheap and kind is CallKind.COROUTINE):
            return 1
        even = -(-items // (backend.seats * CHUNKS_PER_WORKER)) or 1
        worthwhile = math.ceil(backend.shortest_chunk / max(pace.seconds, IMMEASURABLE))
        return self._engine.policy.chunksize(max(even, min(worthwhile, items)))

    def _make_chunks(
        self,
        runner: Function,
        func: Callable[..., object],
        items: list[Any],
        length: int,
        finish: Callable[[int, Outcome], None],
        limits: Limits,
        company: Sequence[Around],
        *,
        automatic: bool,
    ) -> list[Call]:
        """Return a call for each chunk, or drop all of them and raise."""
        packer, calls = self._engine.packer, list[Call]()
        try:
            for number, begin in enumerate(range(0, len(items), length)):
                chunk = items[begin : begin + length]
                ended = partial(finish, number)
                calls.append(
                    packer.make(
                        runner, (func, chunk), {}, ended, limits, company, weight=len(chunk), automatic=automatic
                    )
                )
        except BaseException:
            for call in calls:
                packer.drop(call)
            raise
        return calls

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
