"""The verbs of `multiprocessing.pool.Pool`, made for coroutines: what a pool has, and a view of a pool."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

from .arguments import Default, iterate, keywords_of, name_of, size
from .calls import YIELDING, CallKind, Limits, MaybeCoroutine
from .chunks import AWAITED
from .engine import Engine
from .executor import PoolExecutor
from .mapper import Mapper
from .packing import Function
from .results import AsyncResult
from .streaming import Stream, StreamIterator
from .worker import job

__all__ = ["Caller"]

P = ParamSpec("P")
T = TypeVar("T")

VALUES_AHEAD = 64
"""How many values a stream is ahead of its reader by default."""


class Caller(Mapper):
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
        super().__init__(engine, limits)
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
            WrongLoop: the pool was started in another process or event loop than this.
            TypeError: ``func`` cannot be called, or is a generator function, which `stream` is for; or another argument
                is of the wrong type.
            ValueError: ``timeout`` or ``retries`` is out of its range.
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
        function, positional, keywords = self._prepare(func, args, kwds)
        return await self._enter(function, positional, keywords, limits)

    async def _begin_chunk_in_turn(
        self, func: Callable[..., MaybeCoroutine[T]], items: list[tuple[Any, ...]], limits: Limits
    ) -> AsyncResult[list[T]]:
        """Do the same with one call for several items."""
        function, _, _ = self._prepare(func, (), None)
        over_chunk = AWAITED[job.starmap_chunk] if function.kind is CallKind.COROUTINE else job.starmap_chunk
        runner = self._engine.packer.find_runner(over_chunk, func)
        return await self._enter(runner, (func, items), {}, limits, weight=len(items))

    async def _enter(
        self, function: Function, args: tuple[Any, ...], kwds: dict[str, Any], limits: Limits, *, weight: int = 1
    ) -> AsyncResult[Any]:
        packer = self._engine.packer
        result: AsyncResult[Any] = AsyncResult(self._engine.backend, function.name)
        call = packer.make(function, args, kwds, result.finish, limits, packer.carried(), weight=weight)
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
            BrokenPool: see `apply`.
            WrongLoop: see `apply`.
            TypeError: see `apply`; or a callback cannot be called.
            ValueError: see `apply`.
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
        function, positional, keywords = self._prepare(func, args, kwds)
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
        """Begin ``func(*args, **kwds)`` in a worker: `apply_async` with the arguments written as in a call.

        Raises:
            AioPoolError: see `apply_async`.
            TypeError: ``func`` cannot be called, or is a generator function, which `stream` is for.
        """
        return self._begin(func, args, kwds, self._limits)

    def stream(
        self, func: Callable[P, Iterable[T] | AsyncIterable[T]], /, *args: P.args, **kwds: P.kwargs
    ) -> StreamIterator[T]:
        """Begin ``func(*args, **kwds)`` in a worker; return an async iterator over what it yields, as it yields it.

        It is at most as many values ahead of its reader as ``options(buffersize=...)`` says, 64 by default; then it
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
            BrokenPool: see `apply`.
            WrongLoop: see `apply`.
            TypeError: the function is no generator function.
        """
        function, positional, keywords = self._prepare(func, args, kwds, yields=True)
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
        begin = partial(self._begin_in_turn, limits=self._limits)
        begin_chunk = partial(self._begin_chunk_in_turn, limits=self._limits)
        executor = PoolExecutor(self._engine.backend, self._engine.guard, begin, begin_chunk)
        self._engine.executors.add(executor)
        return executor

    def _prepare(
        self, func: Callable[..., object], args: Iterable[Any], kwds: Mapping[str, Any] | None, *, yields: bool = False
    ) -> tuple[Function, tuple[Any, ...], dict[str, Any]]:
        """Return what a call is made of; its function is to be one that yields values, or one that has one value."""
        self._engine.guard.check_usable()
        function = self._engine.packer.find(func)
        keywords = {} if kwds is None else keywords_of(kwds)
        positional = args if type(args) is tuple else tuple(iterate("args", args))
        if (function.kind in YIELDING) is yields:
            return function, positional, keywords
        if yields:
            raise TypeError(f"func must be a generator function or an async generator function, not {func!r}")
        raise TypeError(f"{name_of(func)} is a generator function: stream gives what it yields")
