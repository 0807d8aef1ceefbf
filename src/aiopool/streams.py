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
from typing import Any, TypeVar

from . import failures
from .admission import Admission
from .backends.base import Backend
from .calls import CANCELLED, Call, Outcome
from .exceptions import AioPoolError, NotPicklable
from .phases import PoolPhase
from .results import deliverable, open_outcome
from .sources import Source, SourceIterator

__all__ = ["ImapIterator", "Window"]

T = TypeVar("T")


class Chunk:
    """Some items on their way, and what has become of them."""

    __slots__ = ("call", "done", "error", "values")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.done: bool = False
        self.values: deque[Any] = deque()  # an `ItemFailure` in the place of an item whose call raised
        self.error: BaseException | None = None  # of the whole chunk

    def take(self, values: Any, error: BaseException | None) -> None:
        """Keep the outcome."""
        self.done = True
        self.values = deque(values or ())
        self.error = error


class Window(Source):
    """The chunks that are taken from the input and not yet handed out, never more than ``buffersize``.

    Args:
        backend: runs the calls.
        admission: says when a call may be submitted.
        name: of the user's function.
        make: makes the call for a chunk's items, which ends with the function that it is given.
        chunksize: items in a chunk.
        buffersize: returns how many chunks may be in the window at present.
        ordered: whether they are handed out in the order of the input.
        left: how many values there will be, or None if the input does not tell.
    """

    def __init__(
        self,
        backend: Backend,
        admission: Admission,
        name: str,
        make: Callable[[list[Any], Callable[[Outcome], None]], Call],
        *,
        chunksize: int,
        buffersize: Callable[[], int],
        ordered: bool,
        left: int | None = None,
    ) -> None:
        super().__init__(backend, name)
        self.left = left
        self.running: int = 0
        self._admission = admission
        self._make = make
        self._chunksize = chunksize
        self._buffersize = buffersize
        self._ordered = ordered
        self._chunks: deque[Chunk] = deque()  # in the order of the input
        self._exhausted = False
        self._input_error: BaseException | None = None
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

    def open(self, source: Iterator[Any] | AsyncIterable[Any]) -> None:
        """Begin to take from the input."""
        if isinstance(source, AsyncIterable):
            self._admission.tell(self._begin_to_read(source), self._refuse)
        elif self._admission.limited:
            self._begin_to_read(_asynchronous(source))
        else:
            self._items = source
            self._fill()

    def _fill(self) -> None:
        """Take chunks from an ordinary iterable while there is room."""
        while self._items is not None and len(self._chunks) < self._buffersize():
            try:
                items = list(islice(self._items, self._chunksize))
            except Exception as error:  # noqa: BLE001 - of the user's iterator: raised in its turn
                self._end_input(error)
                return
            if not items:
                self._end_input(None)
                return
            self._submit(items)

    def _begin_to_read(self, source: AsyncIterable[Any]) -> asyncio.Task[None]:
        self._reader = self.backend.loop.create_task(self._read(aiter(source)))
        self._reader.add_done_callback(self._read_over)
        return self._reader

    def _refuse(self, error: AioPoolError) -> None:
        """Do not wait for more of the input: the pool takes no more calls."""
        self._end_input(error)
        self.stop_reading()

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
                if self._exhausted or self.closed:
                    return  # the pool takes no more, or nobody wants more, and the input was not to be cancelled
        except Exception as raised:  # noqa: BLE001 - of the user's iterator: raised in its turn
            error = raised
        if items:
            await self._submit_in_turn(items)
        self._end_input(error)
        del error  # its traceback has this frame

    def _read_over(self, reader: asyncio.Task[None]) -> None:
        """End the input, whatever has ended the reading of it."""
        if reader.cancelled():
            if not self.closed:  # but by the input, or by somebody who cancels all tasks there are
                self._end_input(asyncio.CancelledError())
        elif (error := reader.exception()) is not None:
            self._end_input(deliverable(error, f"the input of {self.name}"))
        self._wake()

    async def _submit_in_turn(self, items: list[Any]) -> None:
        try:
            await self._admission.enter()
        except AioPoolError as refused:
            self._end_input(refused)
        else:
            self._submit(items)

    async def _until_room(self) -> None:
        while len(self._chunks) >= self._buffersize():
            self._room.clear()
            await self._room.wait()

    def _submit(self, items: list[Any]) -> None:
        if self.closed:
            return
        if self.backend.phase is not PoolPhase.RUNNING:
            self._end_input(self.backend.refusal())
            return
        chunk = Chunk()
        try:
            chunk.call = self._make(items, partial(self._finish, chunk))
        except NotPicklable as error:
            chunk.take(None, error)
        self._chunks.append(chunk)
        if chunk.call is None:
            self._wake()
            return
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
            open_outcome(outcome, self.backend.pickling, self.name, chunk.take)
        self._wake()

    def turn(self) -> Chunk | None:
        """Return the chunk to hand out from, if it is there."""
        if self._ordered:
            return self._chunks[0] if self._chunks and self._chunks[0].done else None
        return next((chunk for chunk in self._chunks if chunk.done), None)

    def hand_out(self, chunk: Chunk) -> Any:
        """Return a value of this chunk, or raise what its call raised; make room when it was the last."""
        value = chunk.values.popleft() if chunk.values else None
        if self.left:
            self.left -= 1
        if not chunk.values:
            self._chunks.remove(chunk)
            self._room.set()
            self._fill()
        if isinstance(value, failures.ItemFailure):
            raise deliverable(failures.decode(value.payload, self.name), self.name)
        error, chunk.error = chunk.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame
        return value

    def end(self) -> BaseException:
        """Return what to raise when it is over: first the input's own exception, if it had one."""
        if self.cut_short:
            return self.was_cut_short()
        error, self._input_error = self._input_error, None
        return error or StopAsyncIteration()

    # Closing.

    def close(self, *, cut_short: bool = False) -> None:
        """End the calls in flight and take no more from the input; keep in mind if somebody may still want that."""
        if self.closed:
            return
        super().close(cut_short=cut_short)
        self._items = None
        self.stop_reading()
        chunks, self._chunks = self._chunks, deque()
        for chunk in chunks:
            if chunk.call is not None:
                self.backend.cancel(chunk.call)
        self._wake()

    def stop_reading(self) -> None:
        """Cancel what takes from an async input; once more if it stands in a clean-up of its own."""
        if self._reader is not None:
            self._reader.cancel()


async def _asynchronous(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class ImapIterator(SourceIterator[T]):
    """An async iterator over the values of an `AioPool.imap` or `AioPool.imap_unordered`.

    A call that raises has its exception raised in its turn; the iteration may go on after that. Leaving the loop,
    or cancelling it, ends the calls in flight and reads no more of the input. (Where an iterator is kept after its
    loop, `aclose` does that.) Several tasks may share one; if one of them is cancelled as it waits for a value, the
    others are told by an `AioPoolError` that there will be no more. The pool lives as long as this is held.
    """

    _source: Window

    def __length_hint__(self) -> int:
        """Return how many values are left, if the input has told (`operator.length_hint`): for progress bars."""
        left = 0 if self._source.over else self._source.left
        return NotImplemented if left is None else left

    def __repr__(self) -> str:
        return f"<ImapIterator of {self._source.name}: {self._source.state}, {self._source.running} chunks in flight>"
