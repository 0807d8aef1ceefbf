"""A pool as an executor of `concurrent.futures`: for other threads, and for libraries that know nothing else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from .arguments import check_callable, patience, size
from .backends.base import Backend, in_loop
from .exceptions import PoolTerminated
from .lifecycle import Guard
from .results import AsyncResult

__all__ = ["PoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

Begun = Coroutine[Any, Any, AsyncResult[T]]
"""Returns when there is room for a call, and it has begun."""

Begin = Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Begun[Any]]
"""Takes a function and its arguments."""

BeginChunk = Callable[[Callable[..., Any], list[tuple[Any, ...]]], Begun[Any]]
"""Takes a function and several times its arguments, for which there is one call."""


class ExecutorCall:
    """One call of an executor.

    Attributes:
        result: None while the pool has no room for it.
    """

    __slots__ = ("result",)

    def __init__(self) -> None:
        self.result: AsyncResult[Any] | None = None


class Chunks(concurrent.futures.Executor):
    """Lends its `map` to chunks: what that submits is what begins a chunk's call.

    Args:
        follow: takes what begins a call, and returns the call's future.
    """

    def __init__(self, follow: Callable[[Callable[[], Begun[Any]]], concurrent.futures.Future[Any]]) -> None:
        self._follow = follow

    def submit(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[Any]:
        """Submit the call that this begins."""
        return self._follow(partial(fn, *args, **kwargs))


class PoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """Runs its calls in a pool.

    It is a `ThreadPoolExecutor` in name only, since event loops take nothing else for their default executor: it never
    starts a thread.
    """

    def __init__(self, backend: Backend, guard: Guard, begin: Begin, begin_chunk: BeginChunk) -> None:
        super().__init__(max_workers=backend.seats)
        self._backend = backend
        self._guard = guard
        self._begin = begin
        self._begin_chunk = begin_chunk
        self._turn = threading.Lock()  # between submit and shutdown
        self._over = False
        self._calls: dict[concurrent.futures.Future[Any], ExecutorCall] = {}  # that have not ended

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Begin ``fn(*args, **kwargs)`` in a worker. What does not pickle is an exception of the future.

        Raises:
            PoolNotRunning: the pool has never been started.
            RuntimeError: the executor was shut down, or the pool's loop is closed.
            TypeError: ``fn`` cannot be called.
            WrongLoop: the pool belongs to another process.
        """
        check_callable("fn", fn)
        return self._submit(lambda: self._begin(fn, args, kwargs))

    def _submit(self, begin: Callable[[], Begun[T]]) -> concurrent.futures.Future[T]:
        self._guard.check_process()  # before the turn, which may have been another thread's at the fork
        with self._turn:
            if self._over:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if (loop := self._loop) is None:
                raise self._backend.refusal()
            call = ExecutorCall()
            running = self._run(call, begin)
            try:
                future = asyncio.run_coroutine_threadsafe(running, loop)
            except RuntimeError:
                running.close()
                raise
            self._calls[future] = call
        future.add_done_callback(self._forget)
        return future

    @property
    def _loop(self) -> asyncio.AbstractEventLoop | None:
        """The pool's loop, or None if it has never been started."""
        return getattr(self._backend, "loop", None)

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Call ``fn`` with one item of each iterable at a time; return an iterator over the values, in order.

        Args:
            fn: what to call in the workers.
            iterables: read at once.
            timeout: seconds from now until the iterator raises TimeoutError, or None.
            chunksize: how many calls travel together; for the pool they are one.
        """
        check_callable("fn", fn)
        length, timeout = size("chunksize", chunksize), patience(timeout)
        if length == 1:
            return super().map(fn, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, length)), [])
        begin = cast("Callable[..., list[T]]", partial(self._begin_chunk, fn))  # which leads to these
        return itertools.chain.from_iterable(Chunks(self._submit).map(begin, chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is there
        """Take no more calls.

        Args:
            wait: until all of them have ended.
            cancel_futures: cancel those that no worker has begun.

        Raises:
            RuntimeError: it would wait for calls in the pool's own loop, which brings them to their end.
        """
        if self._guard.forked:  # the calls are the pool's process's, and so are those who wait for them
            return
        with self._turn:
            self._over = True
            futures = list(self._calls)
        if (loop := self._loop) is None:
            return
        if cancel_futures and not loop.is_closed():
            loop.call_soon_threadsafe(self._cancel_waiting)
        if loop.is_closed():
            self.end_left()
        elif wait and futures:
            if in_loop(loop):
                raise RuntimeError(
                    "shutdown(wait=True) in the pool's own loop would wait for calls that can only end in that loop: "
                    "await their futures first (`asyncio.wrap_future`), or call shutdown(wait=False)"
                )
            concurrent.futures.wait(futures)

    def end_left(self) -> None:
        """End the calls that a closed loop has left: nobody else ever would, and threads may wait for them."""
        if self._guard.forked:
            return
        with self._turn:
            futures = list(self._calls)
        if not futures or (loop := self._loop) is None or not loop.is_closed():
            return
        for future in futures:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled by its user, a moment ago
                future.set_exception(PoolTerminated("the pool's loop was closed before this call had ended"))

    # In the loop.

    async def _run(self, call: ExecutorCall, begin: Callable[[], Begun[T]]) -> T:
        result = call.result = await begin()
        del begin  # it has the arguments
        try:
            return await result
        finally:
            del result  # it has the exception, whose traceback has this frame

    def _cancel_waiting(self) -> None:
        for future, call in list(self._calls.items()):
            if call.result is None or call.result.waiting:
                future.cancel()

    def _forget(self, future: concurrent.futures.Future[Any]) -> None:
        with self._turn:
            self._calls.pop(future, None)
