"""The iterators that `imap` and `imap_unordered` return, and the window that bounds how far they read ahead.

The iterator is what the user holds; the window is what calls in flight and the input's reader hold. So a loop that
is left drops the iterator, and that closes the window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import anyio

from . import failures
from .admission import Admission
from .backends.base import Backend, in_loop
from .calls import CANCELLED, Call, Limits, Outcome
from .exceptions import AioPoolError, NotPicklable, ResultTimeout
from .phases import PoolPhase
from .results import deliverable, open_outcome

__all__ = ["ImapIterator", "Window"]

T = TypeVar("T")


class Chunk:
    """Some items on their way, and what has become of them."""

    __slots__ = ("call", "done", "error", "values")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.done = False
        self.values: deque[Any] = deque()  # an `ItemFailure` in the place of an item whose call raised
        self.error: BaseException | None = None  # of the whole chunk

    def take(self, values: Any, error: BaseException | None) -> None:
        """Keep the outcome."""
        self.done = True
        self.values = deque(values or ())
        self.error = error


class Window:
    """The chunks that are taken from the input and not yet handed out, never more than ``buffersize``.

    Args:
        backend: runs the calls.
        admission: says when a call may be submitted.
        name: of the user's function.
        pack: pickles a chunk's items into the payload of a call.
        limits: of each chunk.
        chunksize: items in a chunk.
        buffersize: chunks in the window.
        ordered: whether they are handed out in the order of the input.
    """

    def __init__(
        self,
        backend: Backend,
        admission: Admission,
        name: str,
        pack: Callable[[list[Any]], list[bytes]],
        limits: Limits,
        *,
        chunksize: int,
        buffersize: int,
        ordered: bool,
    ) -> None:
        self.backend = backend
        self.name = name
        self.running = 0
        self.closed = False
        self._admission = admission
        self._pack = pack
        self._limits = limits
        self._chunksize = chunksize
        self._buffersize = buffersize
        self._ordered = ordered
        self._chunks: deque[Chunk] = deque()  # in the order of the input
        self._exhausted = False
        self._input_error: BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._items: Iterator[Any] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._room = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing is left to hand out, now or later."""
        return not self._chunks and (self._exhausted or self.closed)

    @property
    def quiet(self) -> bool:
        """Whether nothing runs on its behalf."""
        return not self.running and (self._reader is None or self._reader.done())

    # Taking in.

    def open(self, source: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Begin to take from the input."""
        if self._admission.limited and not isinstance(source, AsyncIterable):
            source = _asynchronous(source)
        if isinstance(source, AsyncIterable):
            self._reader = self.backend.loop.create_task(self._read(aiter(source)))
            self._reader.add_done_callback(self._wake)
        else:
            self._items = iter(source)
            self._fill()

    def _fill(self) -> None:
        """Take chunks from an ordinary iterable while there is room."""
        while self._items is not None and len(self._chunks) < self._buffersize:
            try:
                items = list(islice(self._items, self._chunksize))
            except Exception as error:  # noqa: BLE001 - of the user's iterator: raised in its turn
                self._end_input(error)
                return
            if not items:
                self._end_input(None)
                return
            self._submit(items)

    async def _read(self, source: AsyncIterator[Any]) -> None:
        """Take chunks from an async iterable while there is room."""
        error: BaseException | None = None
        items: list[Any] = []
        try:
            async for item in source:
                items.append(item)
                if len(items) == self._chunksize:
                    await self._submit_in_turn(items)
                    items = []
                    await self._until_room()
                if self._exhausted:
                    return  # refused: the pool takes no more
        except Exception as raised:  # noqa: BLE001 - of the user's iterator: raised in its turn
            error = raised
        if items:
            await self._submit_in_turn(items)
        self._end_input(error)

    async def _submit_in_turn(self, items: list[Any]) -> None:
        try:
            await self._admission.enter()
        except AioPoolError as refused:
            self._end_input(refused)
        else:
            self._submit(items)

    async def _until_room(self) -> None:
        while len(self._chunks) >= self._buffersize:
            self._room.clear()
            await self._room.wait()

    def _submit(self, items: list[Any]) -> None:
        if self.backend.phase is not PoolPhase.RUNNING:
            self._end_input(self.backend.refusal())
            return
        chunk = Chunk()
        self._chunks.append(chunk)
        try:
            payload = self._pack(items)
        except NotPicklable as error:
            chunk.take(None, error)
            self._wake()
            return
        chunk.call = Call(self.name, payload, partial(self._finish, chunk), self._limits, weight=len(items))
        self.running += 1
        self.backend.submit(chunk.call)

    def _end_input(self, error: BaseException | None) -> None:
        if not self._exhausted:
            self._exhausted = True
            self._input_error = error
            self._items = None
            self._wake()

    # Handing out.

    def _finish(self, chunk: Chunk, outcome: Outcome) -> None:
        self.running -= 1
        chunk.call = None
        if outcome is not CANCELLED:  # which only `close` makes it
            open_outcome(outcome, self.name, chunk.take)
        self._wake()

    def turn(self) -> Chunk | None:
        """Return the chunk to hand out from, if it is there."""
        if self._ordered:
            return self._chunks[0] if self._chunks and self._chunks[0].done else None
        return next((chunk for chunk in self._chunks if chunk.done), None)

    def hand_out(self, chunk: Chunk) -> Any:
        """Return a value of this chunk, or raise what its call raised; make room when it was the last."""
        value = chunk.values.popleft() if chunk.values else None
        if not chunk.values:
            self._chunks.remove(chunk)
            self._room.set()
            self._fill()
        if isinstance(value, failures.ItemFailure):
            raise deliverable(failures.decode(value.payload, self.name), self.name)
        if chunk.error is not None:
            raise chunk.error
        return value

    def end(self) -> BaseException:
        """Return what to raise when it is over: first the input's own exception, if it had one."""
        error, self._input_error = self._input_error, None
        return error or StopAsyncIteration()

    # Waiting and closing.

    async def change(self, timeout: float | None = None) -> None:
        """Wait until a chunk, the input or its reader has come to an end, or until the time is up."""
        waiter = self.backend.loop.create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout)
        finally:
            self._waiters.discard(waiter)

    def _wake(self, _reader: object = None) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            waiter.set_result(None)

    def close(self) -> None:
        """End the calls in flight and take no more from the input."""
        if self.closed:
            return
        self.closed = True
        self._items = None
        if self._reader is not None:
            self._reader.cancel()
        chunks, self._chunks = self._chunks, deque()
        for chunk in chunks:
            if chunk.call is not None:
                self.backend.cancel(chunk.call)


async def _asynchronous(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class ImapIterator(AsyncIterator[T], Generic[T]):
    """An async iterator over the values of an `AioPool.imap` or `AioPool.imap_unordered`.

    A call that raises has its exception raised in its turn; the iteration may go on after that. Leaving the loop,
    or cancelling it, ends the calls in flight and reads no more of the input. (Where an iterator is kept after its
    loop, `aclose` does that.)
    """

    def __init__(self, window: Window) -> None:
        self._window = window

    def __aiter__(self) -> ImapIterator[T]:
        return self

    async def __anext__(self) -> T:
        window = self._window
        while (chunk := window.turn()) is None:
            if window.over:
                raise window.end()
            try:
                await window.change()
            except asyncio.CancelledError:
                await self.aclose()
                raise
        value: T = window.hand_out(chunk)
        return value

    async def next(self, timeout: float | None = None) -> T:
        """Return the next value.

        Args:
            timeout: seconds to wait for it, or None for as long as it takes.

        Raises:
            ResultTimeout: the time is up. Nothing is lost: the value comes with a later call.
            StopAsyncIteration: there are no more.
        """
        window = self._window
        if timeout is not None:
            deadline = window.backend.loop.time() + timeout
            while window.turn() is None and not window.over:
                left = deadline - window.backend.loop.time()
                if left <= 0:
                    raise ResultTimeout(f"no value of {window.name} within {timeout} s")
                await window.change(left)
        return await anext(self)

    async def aclose(self) -> None:
        """End the calls in flight, read no more of the input, and return when that is done."""
        self._window.close()
        with anyio.CancelScope(shield=True):
            while not self._window.quiet:
                await self._window.change()

    def __del__(self) -> None:
        window = self._window
        if in_loop(window.backend.loop):
            window.close()
        elif not window.backend.loop.is_closed():
            window.backend.loop.call_soon_threadsafe(window.close)  # collected by another thread

    def __repr__(self) -> str:
        window = self._window
        state = "closed" if window.closed else "exhausted" if window.over else "open"
        return f"<ImapIterator of {window.name}: {state}, {window.running} chunks in flight>"
