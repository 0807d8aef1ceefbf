"""What a generator in a worker yields, on its way to whoever iterates over it.

The worker may send as many values as it was granted. Whenever half of them have been taken, it is granted as many more:
so it goes on while they are read, and stands still while they are not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from .backends.base import Backend
from .calls import CANCELLED, Call, Outcome
from .exceptions import PoolNotRunning, not_received
from .results import not_unpickled, open_outcome
from .sources import Source, SourceIterator

__all__ = ["Stream", "StreamIterator"]

T = TypeVar("T")


class Stream(Source):
    """The values of one call that have come and were not handed out, and the call's end.

    Args:
        backend: runs the call.
        name: of the user's function.
        buffersize: how many values may have been yielded and not handed out.
    """

    def __init__(self, backend: Backend, name: str, buffersize: int) -> None:
        super().__init__(backend, name)
        self._buffersize = buffersize
        self._batch = (buffersize + 1) // 2
        self._taken = 0  # values handed out for which the worker was not granted others yet
        self._values: deque[tuple[bytes | memoryview, Sequence[memoryview]]] = deque()
        self._call: Call | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._reader = asyncio.current_task()  # who has asked for a value last, or has made this

    def begin(self, call: Call) -> None:
        """Submit the call, which ends with `finish`."""
        call.window = self._buffersize
        call.take = self._take
        self._call = call
        self.backend.submit(call)

    @property
    def over(self) -> bool:
        """Whether nothing is left to hand out, now or later."""
        return not self._values and (self._ended or self.closed)

    @property
    def quiet(self) -> bool:
        """Whether the call has ended."""
        return self._ended

    def turn(self) -> deque[Any] | None:
        """Return the values that are there, if there are any."""
        self._reader = asyncio.current_task()
        return self._values or None

    def hand_out(self, turn: deque[Any]) -> Any:
        """Return the next value; let the worker go on if enough of them are gone. What does not unpickle raises."""
        payload, buffers = turn.popleft()
        self._taken += 1
        if self._taken == self._batch:
            if self._call is not None:
                self.backend.grant(self._call, self._taken)
            self._taken = 0
        try:
            return self.backend.pickling.loads(payload, buffers=buffers)
        except KeyboardInterrupt:
            raise  # from the keyboard, not from the pickle
        except BaseException as refused:
            raise not_unpickled("value", self.name, refused) from refused

    def end(self) -> BaseException:
        """Return what to raise when it is over: what the generator has raised, once."""
        if self.cut_short:
            return self.was_cut_short()
        error, self._error = self._error, None
        return error or StopAsyncIteration()

    def close(self, *, cut_short: bool = False) -> None:
        """Have the generator closed, and drop what has come from it."""
        if self.closed:
            return
        super().close(cut_short=cut_short)
        self._values.clear()
        self._error = None
        if self._call is not None:
            self.backend.cancel(self._call)
        self._wake()

    def forsake(self, task: asyncio.Task[Any] | None) -> None:
        """This task waits for the pool's end, which would never come if it is the reader, or the reader has ended."""
        reader = self._reader
        if self.over:
            return
        if reader is None or reader is task or reader.done():
            self.close()
            self._error = PoolNotRunning(f"the pool was left before the stream of {self.name} was at its end")
        else:
            reader.add_done_callback(lambda _done: self.forsake(task))

    def finish(self, outcome: Outcome) -> None:
        """Take the outcome of the call: the end comes when the values before it are handed out."""
        self._call = None
        self._ended = True
        if outcome is not CANCELLED and not self.closed:
            open_outcome(outcome, self.backend.pickling, self.name, self._keep_error)
        self._wake()

    def _keep_error(self, _value: Any, error: BaseException | None) -> None:
        self._error = self._error or error

    def _take(self, payload: bytes | memoryview | None, buffers: Sequence[memoryview]) -> None:
        """Take a value that has come."""
        if self.closed or self._error is not None:
            return
        if payload is None:  # the values behind it would pass for those before it
            self._error = not_received("a value")
            assert self._call is not None  # noqa: S101 - for the type checker
            self.backend.cancel(self._call)
            return
        self._values.append((payload, buffers))
        if self._waiters:
            self._wake()


class StreamIterator(SourceIterator[T]):
    """An async iterator over what a generator yields in a worker; see `AioPool.stream`.

    Leaving the loop while this is kept leaves the generator where it is, held back: `aclose` closes it, as does letting
    go of this. Several tasks may share one; if one of them is cancelled as it waits for a value, the others are told by
    an `AioPoolError` that there will be no more. The pool lives as long as this is held.
    """

    def __repr__(self) -> str:
        return f"<StreamIterator of {self._source.name}: {self._source.state}>"
