"""Where values come from, one after the other, and the iterator over them: what `imap` and `stream` have in common.

The iterator is what the user holds; the source is what calls in flight hold. So a loop that is left drops the iterator,
and that closes the source.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

import anyio

from .arguments import patience
from .backends.base import Backend
from .exceptions import AioPoolError, ResultTimeout

__all__ = ["Source", "SourceIterator"]

T = TypeVar("T")


class Source(abc.ABC):
    """Has values that workers give, until it is over or closed.

    Args:
        backend: runs the calls.
        name: of the user's function.

    Attributes:
        closed: whether no more values are handed out.
        cut_short: whether it was closed as one reader was cancelled, while others may still wait for values.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self.backend = backend
        self.name = name
        self.closed: bool = False
        self.cut_short: bool = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    @abc.abstractmethod
    def over(self) -> bool:
        """Whether nothing is left to hand out, now or later."""

    @property
    @abc.abstractmethod
    def quiet(self) -> bool:
        """Whether nothing runs on its behalf."""

    @property
    def state(self) -> str:
        """How it stands, in a word."""
        return "closed" if self.closed else "exhausted" if self.over else "open"

    @abc.abstractmethod
    def turn(self) -> Any | None:
        """Return what to hand out from, if it is there."""

    @abc.abstractmethod
    def hand_out(self, turn: Any, /) -> Any:
        """Return a value from there, or raise what has come in its place."""

    @abc.abstractmethod
    def end(self) -> BaseException:
        """Return what to raise when it is over."""

    def was_cut_short(self) -> AioPoolError:
        """Return what to raise when somebody else has been cancelled."""
        return AioPoolError(
            f"the iterator over {self.name} was closed as a task was cancelled that waited for its next value: the "
            "other values are dropped. (Waiting with `next(timeout)` closes nothing)"
        )

    def close(self, *, cut_short: bool = False) -> None:
        """End what runs; keep in mind if somebody may still want values."""
        self.closed = True
        self.cut_short = cut_short

    def stop_reading(self) -> None:  # noqa: B027 - most sources read nothing
        """Stop what else may be waited for before it is quiet."""

    async def change(self, timeout: float | None = None) -> None:
        """Wait until something has come or come to an end, or until the time is up."""
        waiter = self.backend.loop.create_future()
        self._waiters.add(waiter)
        try:
            if timeout is None:
                await waiter
            else:
                await asyncio.wait([waiter], timeout=timeout)
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():  # else cancelled a moment ago, with the task that has not run since
                waiter.set_result(None)


class SourceIterator(AsyncIterator[T], Generic[T]):
    """An async iterator over a source's values.

    Args:
        source: has them.
        pool: gives them; it lives as long as this does. (What calls in flight hold, must not hold it.)
    """

    def __init__(self, source: Source, pool: object) -> None:
        self._source = source
        self._pool = pool

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        source = self._source
        while (turn := source.turn()) is None:
            if source.over:
                raise source.end()
            try:
                await source.change()
            except asyncio.CancelledError:
                source.close(cut_short=True)
                await self.aclose()
                raise
        value: T = source.hand_out(turn)
        return value

    async def next(self, timeout: float | None = None) -> T:
        """Return the next value.

        Args:
            timeout: seconds to wait for it, or None for as long as it takes.

        Raises:
            Exception: what the call, or its input, raised.
            ResultTimeout: the time is up. Nothing is lost: the value comes with a later call.
            StopAsyncIteration: there are no more.
            TypeError: ``timeout`` is no number.
            ValueError: it is none of seconds.
        """
        source, longest = self._source, patience(timeout)
        if longest is not None:
            deadline = source.backend.loop.time() + longest
            while source.turn() is None and not source.over:
                left = deadline - source.backend.loop.time()
                if left <= 0:
                    raise ResultTimeout(f"no value of {source.name} within {timeout} s")
                await source.change(left)
        return await anext(self)

    async def aclose(self) -> None:
        """End what runs for this, and return when that is done; there are no more values then."""
        source, cancelled = self._source, None
        source.close()
        with anyio.CancelScope(shield=True):
            while not source.quiet:
                try:
                    await source.change()
                except asyncio.CancelledError as error:  # asyncio's own, which no shield holds off
                    cancelled = error
                    source.stop_reading()
        if cancelled is not None:
            raise cancelled

    def __del__(self) -> None:
        source = self._source
        if not source.closed and not source.over and not source.backend.loop.is_closed():
            # Not here: the collector may run in another thread, or in the midst of a decision of the pool's.
            source.backend.loop.call_soon_threadsafe(source.close)
