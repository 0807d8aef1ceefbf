"""`AioPool`: the pool as its users see it. Signatures and checks of arguments; the work is a backend's."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, ParamSpec, TypeVar

from .admission import Admission
from .arguments import (
    Default,
    at_least,
    at_least_one,
    check_callable,
    find_context,
    fraction,
    iterate,
    iterate_input,
    module_names,
    name_of,
    optional,
    seconds,
)
from .backends import start_methods
from .backends.local import LocalBackend
from .calls import Call, Limits, Outcome
from .cpus import usable_cpus
from .lifecycle import Lifecycle
from .packing import Function, Packer
from .recycling import RecyclePolicy
from .results import AsyncResult, MapResult, PackedChunk
from .sharing import CallPayload, Shared
from .streams import ImapIterator, Window
from .worker import job
from .worker.main import Initializer

__all__ = ["AioPool"]

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

CHUNKS_PER_WORKER = 4
"""Into how many chunks a map divides its input for each worker, as `multiprocessing.pool.Pool.map` does."""

CHUNKS_AHEAD = 2
"""How many chunks for each worker an imap has in its window by default."""


class AioPool(Lifecycle):
    """A pool of worker processes for coroutines: `multiprocessing.pool.Pool`, awaitable.

    ``async with AioPool() as pool:`` starts the workers, and on the way out lets accepted calls finish. It kills
    them instead when the block is left by an exception or a cancellation.

    Args:
        processes: how many calls may run at once; None means the CPUs that this process may use: those
            of its affinity, or fewer where a container has a quota.
        initializer: called with ``initargs`` in each worker before its first call. If it fails in one of the first
            workers, the start raises `InitializerError`.
        initargs: its positional arguments.
        maxtasksperchild: how many calls of the function a worker serves before a fresh one takes its place. (Calls,
            not chunks, other than in multiprocessing; a larger chunk that was asked for is finished.)
        context: a multiprocessing context or the name of a start method. The default is ``"forkserver"`` where there
            is one, else ``"spawn"``: a fork would take along the running loop's handlers, locks and connections.
        timeout: seconds that a call may run, counted from its start in the worker, before it is stopped and raises
            `CallTimeout`; for `map` and `imap` it is the limit of a chunk, and an automatic chunk is then one item.
            None for no limit. A call may ask for another, as for ``retries``.
        retries: how often a call is run again when its worker died under it. (Never after a cancellation, a timeout
            or an exception.)
        max_pending: how many calls may wait for a worker: `apply`, `map` and `imap` wait for room, first come first
            served; `apply_async`, `submit` and `map_async` raise `PoolFull`. None for any number.
        cancel_grace: seconds that a call which is cancelled, or over its time limit, has to stop by itself:
            `CallInterrupted` is raised in it, and only if it does not end in that time its worker is killed. With 0 it
            is killed at once.
        max_memory_per_child: bytes of resident memory (on Linux the present size, shared pages included; elsewhere
            the largest so far) from which on a worker is replaced. It is measured after each call.
        max_age: seconds from which on a worker is replaced.
        recycle_jitter: a part, from 0 to 1, by which each worker's limits of calls and age are lowered at random, so
            that workers do not all leave together.
        start_timeout: seconds that a worker has to start and to run its initializer.
        preload: names of modules that workers have imported before the first call. The fork server imports them
            once if it is not running yet.

    Raises:
        ValueError: a number is out of its range, or the start method unknown.
        TypeError: an argument is of the wrong type.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | str | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        max_pending: int | None = None,
        cancel_grace: float = 0.0,
        max_memory_per_child: int | None = None,
        max_age: float | None = None,
        recycle_jitter: float = 0.0,
        start_timeout: float = 60.0,
        preload: Sequence[str] = (),
    ) -> None:
        seats = usable_cpus() if processes is None else at_least_one("processes", processes)
        if initializer is not None:
            check_callable("initializer", initializer)
        modules = module_names("preload", preload)
        start_method = find_context(context)
        self._limits = Limits(optional(seconds, "timeout", timeout), at_least(0, "retries", retries))
        self._policy = RecyclePolicy(
            optional(at_least_one, "maxtasksperchild", maxtasksperchild),
            optional(seconds, "max_age", max_age),
            fraction("recycle_jitter", recycle_jitter),
        )
        backend = LocalBackend(
            seats,
            start_method,
            Initializer(initializer, tuple(iterate("initargs", initargs)), modules),
            self._policy,
            memory_limit=optional(at_least_one, "max_memory_per_child", max_memory_per_child),
            grace=seconds("cancel_grace", cancel_grace, zero=True),
            start_timeout=seconds("start_timeout", start_timeout),
        )
        super().__init__(backend, partial(start_methods.prepare, start_method, modules))
        self._packer = Packer(backend)
        self._admission = Admission(backend, optional(at_least_one, "max_pending", max_pending))

    @property
    def processes(self) -> int:
        """How many calls may run at once."""
        return self._backend.seats

    def share(self, value: T) -> Shared[T]:
        """Return a handle that stands for an object in the arguments of many calls, so that it crosses only once.

        Wherever the handle occurs in a function's arguments or in the items of a map, the function gets the object.
        It is pickled now: later changes do not travel. A worker unpickles it once, when a call first needs it, and
        keeps it until the handle is dropped or not used any more. What pickles its buffers apart, such as a NumPy
        array, lies in memory that all workers have in common, and is read-only there.

        Args:
            value: the object; handles of this pool may be in it.

        Raises:
            NotPicklable: it cannot be pickled.
            PoolNotRunning: the pool is not started, or closed.
        """
        self._check_usable()
        return Shared(self._backend.share(self._packer.pack_value(value)))

    # One call.

    async def apply(
        self,
        func: Callable[..., T],
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
            func: what to call in a worker.
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
        """
        function, payload = self._prepare(func, args, kwds)
        limits = self._limits_for(timeout, retries)
        if self._admission.limited:
            try:
                await self._admission.enter()
            except BaseException:
                del payload  # its memory is not to live as long as the exception, whose traceback has this frame
                raise
        result: AsyncResult[T] = AsyncResult(self._backend, function.name)
        result.begin(payload, limits, function.pace)
        del payload  # large, maybe: the call has it, and drops it at its end
        try:
            return await result
        finally:
            del result  # it has the exception, whose traceback has this frame

    def apply_async(
        self,
        func: Callable[..., T],
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
        function, payload = self._prepare(func, args, kwds)
        limits = self._limits_for(timeout, retries)
        result: AsyncResult[T] = AsyncResult(self._backend, function.name)
        result.add_callbacks(callback, error_callback)
        self._admission.take(1)
        result.begin(payload, limits, function.pace)
        return result

    def submit(self, func: Callable[P, T], /, *args: P.args, **kwds: P.kwargs) -> AsyncResult[T]:
        """Begin ``func(*args, **kwds)`` in a worker: `apply_async` with the arguments written as in a call."""
        return self.apply_async(func, args, kwds)

    def _prepare(
        self, func: Callable[..., object], args: Iterable[Any], kwds: Mapping[str, Any] | None
    ) -> tuple[Function, CallPayload]:
        self._check_usable()
        check_callable("func", func)
        keywords = {} if kwds is None else dict(kwds)
        positional = args if type(args) is tuple else tuple(iterate("args", args))
        function = self._packer.find(func)
        return function, self._packer.pack(function, function.name, positional, keywords)

    def _limits_for(self, timeout: float | Default | None, retries: int | Default) -> Limits:
        if timeout is Default.POOLS and retries is Default.POOLS:
            return self._limits
        return Limits(
            self._limits.timeout if timeout is Default.POOLS else optional(seconds, "timeout", timeout),
            self._limits.retries if retries is Default.POOLS else at_least(0, "retries", retries),
        )

    # Many calls.

    async def map(
        self,
        func: Callable[[S], T],
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
                into single items if there is a time limit.
            timeout: see `apply`; the limit of each chunk.
            retries: see `apply`; the whole chunk is run again.
        """
        limits = self._limits_for(timeout, retries)
        return await self._map(job.map_chunk, func, iterable, chunksize, None, None, limits, wait=True)

    async def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        timeout: float | Default | None = Default.POOLS,
        retries: int | Default = Default.POOLS,
    ) -> list[T]:
        """Call ``func(*item)`` for each item; return the values in order. For the rest, see `map`."""
        limits = self._limits_for(timeout, retries)
        return await self._map(job.starmap_chunk, func, iterable, chunksize, None, None, limits, wait=True)

    def map_async(
        self,
        func: Callable[[S], T],
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

    def starmap_async(
        self,
        func: Callable[..., T],
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

    def imap(
        self,
        func: Callable[[S], T],
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
                for each worker.
            timeout: see `apply`; the limit of each chunk.
            retries: see `apply`; the whole chunk is run again.
        """
        limits = self._limits_for(timeout, retries)
        return self._imap(func, iterable, chunksize, buffersize, limits, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[S], T],
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
        func: Callable[..., T],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        limits: Limits,
        *,
        wait: bool = False,
    ) -> MapResult[T]:
        self._check_usable()
        check_callable("func", func)
        optional(at_least_one, "chunksize", chunksize)
        result: MapResult[T] = MapResult(self._backend, name_of(func))
        result.add_callbacks(callback, error_callback)

        def begin(items: list[Any]) -> None:
            self._check_usable()
            size, pace = self._size_of_chunks(len(items), chunksize, limits), self._packer.pace_of(func)
            waits = wait and self._admission.limited
            if not waits:
                self._admission.take(-(-len(items) // size))
            chunks = self._pack_chunks(over_chunk, func, items, size, automatic=chunksize is None)
            if waits:
                result.feed_chunks(chunks, limits, pace, self._admission.enter)
            else:
                result.begin_chunks(chunks, limits, pace)

        if isinstance(iterable, AsyncIterable):
            result.begin_when_read(iterable, begin, self._admission.tell)
        else:
            begin(list(iterate_input(iterable)))
        return result

    def _size_of_chunks(self, items: int, chunksize: int | None, limits: Limits) -> int:
        if chunksize is not None:
            return chunksize
        if limits.timeout is not None:
            return 1
        return self._policy.chunksize(-(-items // (self._backend.seats * CHUNKS_PER_WORKER)) or 1)

    def _pack_chunks(
        self,
        over_chunk: Callable[..., object],
        func: Callable[..., object],
        items: list[Any],
        size: int,
        *,
        automatic: bool,
    ) -> list[PackedChunk]:
        chunks = (items[begin : begin + size] for begin in range(0, len(items), size))
        name, runner = name_of(func), self._packer.find(over_chunk)
        return [
            PackedChunk(self._packer.pack(runner, name, (func, chunk), {}), len(chunk), automatic) for chunk in chunks
        ]

    def _imap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int,
        buffersize: int | None,
        limits: Limits,
        *,
        ordered: bool,
    ) -> ImapIterator[T]:
        self._check_usable()
        check_callable("func", func)
        at_least_one("chunksize", chunksize)
        ahead = CHUNKS_AHEAD * self._backend.seats if buffersize is None else at_least_one("buffersize", buffersize)
        source = iterable if isinstance(iterable, AsyncIterable) else iterate_input(iterable)
        function = self._packer.find(func)  # one that cannot travel is an error of this line
        runner = self._packer.find(job.each_of_chunk)

        def begin(items: list[Any], finish: Callable[[Outcome], None]) -> Call:
            payload = self._packer.pack(runner, function.name, (func, items), {})
            return Call(function.name, payload, finish, limits, function.pace, weight=len(items))

        window = Window(
            self._backend, self._admission, function.name, begin, chunksize=chunksize, buffersize=ahead, ordered=ordered
        )
        window.open(source)
        return ImapIterator(window)
