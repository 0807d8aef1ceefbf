"""Awaitable results: what the ``_async`` verbs return."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

from . import failures
from .arguments import check_callable, patience
from .backends.base import Backend
from .calls import CANCELLED, Call, CallPhase, Outcome, Reply
from .exceptions import AioPoolError, CallAborted, NotPicklable, PoolTerminated, ResultTimeout
from .interruptions import raise_soon
from .pickling import Pickling

__all__ = ["AsyncResult", "MapResult", "deliverable", "not_unpickled", "open_outcome"]

T = TypeVar("T")

Deliver = Callable[[Any, BaseException | None], None]
"""Takes a value and None, or anything and an exception."""

HARMFUL = (
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
)
"""Exceptions that mean something else to whoever awaits a result than "the call failed"."""


NOT_BEGUN = (CallPhase.NEW, CallPhase.WAITING, CallPhase.SENT)


def open_outcome(outcome: Reply | BaseException, pickling: Pickling, call: str, deliver: Deliver) -> None:
    """Unpickle what a worker answered and hand on the value or the exception."""
    if not isinstance(outcome, Reply):
        deliver(None, outcome)
        return
    try:
        if outcome.failed:
            value, error = None, deliverable(failures.decode(outcome.payload, call), call)
        else:
            value, error = pickling.loads(outcome.payload, buffers=outcome.buffers), None
    except BaseException as refused:  # noqa: BLE001 - of the user's pickling; the call has its end all the same
        deliver(None, not_unpickled("result", call, refused))
        if isinstance(refused, KeyboardInterrupt):
            raise_soon(refused)  # from the keyboard, not from the pickle
        return
    deliver(value, error)


def not_unpickled(what: str, call: str, refused: BaseException) -> NotPicklable:
    """Return the error of what has come from a worker and does not unpickle here."""
    text = failures.format_traceback(refused)
    error = NotPicklable(what, call, failures.type_name(refused), failures.text_of(refused), text)
    error.__cause__ = refused.with_traceback(None)  # which has frames, and these have whoever gets the error
    return error


def deliverable(error: BaseException, call: str) -> BaseException:
    """Return the exception, or a `CallAborted` around one that would do harm if it were raised here."""
    if not issubclass(type(error), HARMFUL):  # isinstance would ask the exception itself, which may raise
        return error
    aborted = CallAborted(f"{call} raised {failures.type_name(error)}: {failures.text_of(error)}")
    aborted.__cause__ = error
    return aborted


_END: Any = object()


def _put(values: weakref.ref[asyncio.Queue[Any]], value: Any) -> None:
    if (queue := values()) is not None:
        queue.put_nowait(value)


async def _until_end(values: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (value := await values.get()) is not _END:
        yield value


class AsyncResult(asyncio.Future[T], Generic[T]):
    """The result of a call: an `asyncio.Future` with the verbs of `multiprocessing.pool.AsyncResult`.

    ``await result``, and everything else that takes a future, works. Cancelling it, or a task that directly awaits
    it, cancels the call. One that waits is never run. One that runs is stopped: a function with its worker, unless it
    stops within ``cancel_grace``; a coroutine by being cancelled. The result is done, and cancelled, when that has
    happened; until then `cancelled` is false, as it is with a task.

    It does not keep its pool: one that nobody holds any more is ended, and its results fail with `PoolTerminated`.
    """

    __slots__ = ("_backend", "_calls", "_listeners", "_message", "_name", "_stopping")

    def __init__(self, backend: Backend, name: str) -> None:
        super().__init__(loop=backend.loop)
        self._backend = backend
        self._name = name
        self._calls: Sequence[Call] = ()
        self._message: Any = None
        self._stopping = False
        self._listeners: tuple[Callable[[Any], object], ...] = ()

    async def get(self, timeout: float | None = None) -> T:
        """Wait for the value without owning the call.

        Args:
            timeout: seconds to wait, or None for as long as it takes.

        Raises:
            ResultTimeout: the time is up; the call goes on. (A TimeoutError, and multiprocessing's as well.)
            CancelledError: the call was cancelled.
            Exception: what the call raised.
            TypeError: ``timeout`` is no number.
            ValueError: it is none of seconds.
        """
        await self.wait(timeout)
        if not self.done():
            raise ResultTimeout(f"{self._name} has not finished within {timeout} s")
        try:
            return self.result()
        finally:
            del self  # it has the exception, whose traceback has this frame

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, or for ``timeout`` seconds; cancelling this leaves the call alone."""
        await asyncio.wait([self], timeout=patience(timeout))

    def ready(self) -> bool:
        """Return whether the call has ended."""
        return self.done()

    @property
    def waiting(self) -> bool:
        """Whether no worker has begun the call, as far as is known."""
        return not self.done() and all(call.phase in NOT_BEGUN for call in self._calls)

    def successful(self) -> bool:
        """Return whether the call ended with a value; raises ValueError while it has not ended."""
        if not self.done():
            raise ValueError(f"{self!r} is not ready")
        return not self.cancelled() and self.exception() is None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call; return False if it has ended already."""
        if self.done():
            return False
        if not self._stopping:
            self._stopping = True
            self._message = msg
            self._stop()
        return True

    def on_progress(self, callback: Callable[[Any], object]) -> None:
        """Have ``callback`` called in the loop with each value that the call reports from now on; see `aiopool.report`.

        What it raises goes to the loop's exception handler.

        Raises:
            TypeError: ``callback`` cannot be called.
        """
        check_callable("callback", callback)
        self._listeners += (callback,)
        for call in self._calls:
            call.progress = self._progressed

    def progress(self) -> AsyncIterator[Any]:
        """Return an async iterator over what the call reports from now on; it ends with the call, however that ends."""
        values: asyncio.Queue[Any] = asyncio.Queue()
        put = partial(_put, weakref.ref(values))  # or values would be collected that nobody is to have any more
        self.on_progress(put)
        self.add_done_callback(lambda _done: put(_END))
        return _until_end(values)

    def _progressed(self, payload: bytes | memoryview, buffers: Sequence[memoryview]) -> None:
        loop = self._backend.loop
        try:
            value = self._backend.pickling.loads(payload, buffers=buffers)
        except BaseException as error:  # noqa: BLE001 - of the user's pickling; the call itself goes on
            loop.call_exception_handler({"message": f"what {self._name} reports does not unpickle", "exception": error})
            raise_soon(error)
            return
        for listener in self._listeners:
            loop.call_soon(listener, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name}: {self._state_in_words()}>"

    def _state_in_words(self) -> str:
        if not self.done():
            return self._calls[0].phase.value if self._calls else "waiting"
        if self.cancelled():
            return "cancelled"
        error = self._exception
        return "finished" if error is None else f"failed with {type(error).__name__}"

    def begin(self, call: Call) -> None:
        """Submit the one call, which ends with `finish`."""
        self._calls = (call,)
        self._backend.submit(call)

    def add_callbacks(
        self, callback: Callable[[T], object] | None, error_callback: Callable[[BaseException], object] | None
    ) -> None:
        """Have one of these called with the value or the exception, where there is one."""
        if callback is None and error_callback is None:
            return
        for name, value in (("callback", callback), ("error_callback", error_callback)):
            if value is not None:
                check_callable(name, value)

        def call_back(done: asyncio.Future[T]) -> None:
            if done.cancelled():
                return
            if callback is not None and done._exception is None:  # noqa: SLF001 - exception() would count as retrieving it
                callback(done.result())
            elif error_callback is not None and (error := done.exception()) is not None:
                error_callback(error)

        self.add_done_callback(call_back)

    def _submit(self, calls: Sequence[Call]) -> None:
        """Submit the calls whose outcome this is."""
        self._calls = calls
        for call in calls:
            self._backend.submit(call)

    def _stop(self) -> None:
        for call in self._calls:
            self._backend.cancel(call)

    def finish(self, outcome: Outcome) -> None:
        """Take the outcome of the one call."""
        self._calls = ()  # or call and result would hold one another
        if outcome is CANCELLED or self._stopping:  # also if its time was up first: `cancel` has said True
            self._settle_cancelled()
        else:
            open_outcome(outcome, self._backend.pickling, self._name, self._settle)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.done():
            return
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(error)
            if type(error) is PoolTerminated:
                self.exception()  # who terminated the pool knows; no "exception was never retrieved" for each call

    def _settle_cancelled(self) -> None:
        super().cancel(msg=self._message)


class MapResult(AsyncResult[list[T]]):
    """The result of a map: the list of values, in order, or the first exception."""

    __slots__ = ("_chunks", "_left", "_reader")

    def __init__(self, backend: Backend, name: str) -> None:
        super().__init__(backend, name)
        self._chunks: list[list[T]] = []
        self._left = 0
        self._reader: asyncio.Task[Any] | None = None  # of an async input; then, of what waits for room

    def begin_calls(self, calls: Sequence[Call]) -> None:
        """Submit the chunks' calls, all at once; each ends with `finish_chunk`."""
        self._expect(calls)
        self._submit(calls)

    def feed_calls(
        self, calls: Sequence[Call], enter: Callable[[], Awaitable[None]], drop: Callable[[Call], None]
    ) -> None:
        """Submit the chunks' calls one by one, each when ``enter`` lets it; ``drop`` those that it does not."""
        self._expect(calls)
        submitted = list[Call]()
        self._calls = submitted

        async def feed() -> None:
            for call in calls:
                await enter()
                submitted.append(call)
                self._backend.submit(call)

        def fed(feeder: asyncio.Task[None]) -> None:
            self._reader = None
            if feeder.cancelled():  # maybe by somebody who cancels all tasks there are: a map is never half of one
                self.cancel()
            elif (error := feeder.exception()) is not None:
                self._fail(deliverable(error.with_traceback(None), self._name))  # it has our frames, and they the calls
            for call in calls[len(submitted) :]:
                drop(call)
            self._end_chunks(len(calls) - len(submitted))

        self._reader = self._backend.loop.create_task(feed())
        # Not in a finally clause: a task that is cancelled before its first step never gets there.
        self._reader.add_done_callback(fed)

    def _expect(self, calls: Sequence[Call]) -> None:
        self._left = len(calls)
        self._chunks = [[] for _ in calls]
        if not calls:
            self.set_result([])
        for call in calls:
            call.progress = self._progressed

    def begin_when_read(
        self,
        source: AsyncIterable[Any],
        begin: Callable[[list[Any]], None],
        tell: Callable[[asyncio.Task[Any], Callable[[AioPoolError], None]], None],
    ) -> None:
        """Read all of the input first; ``begin`` is then called with it. ``tell`` is told whom to tell of the end."""
        reader = self._backend.loop.create_task(_list_of(source))
        reader.add_done_callback(partial(self._begin_with_input, begin))
        self._reader = reader
        tell(reader, self._refuse)

    def _refuse(self, error: AioPoolError) -> None:
        """Do not wait for more of the input: the pool takes no more calls."""
        if self._stopping:
            self._settle_cancelled()
        self._fail(error)

    def _begin_with_input(self, begin: Callable[[list[Any]], None], reader: asyncio.Task[list[Any]]) -> None:
        """Go on with what has been read, or fail with what has ended the reading, whatever it is."""
        self._reader = None
        error = None if reader.cancelled() else reader.exception()
        if self._stopping or reader.cancelled():  # the input may have ended as if nobody had cancelled it
            self._settle_cancelled()
        elif error is not None:
            self._settle(None, deliverable(error, f"the input of {self._name}"))
        else:
            self._begin(begin, reader.result())

    def _begin(self, begin: Callable[[list[Any]], None], items: list[Any]) -> None:
        try:
            begin(items)
        except (SystemExit, KeyboardInterrupt) as refused:
            self._fail(deliverable(refused, f"the input of {self._name}"))
            raise
        except BaseException as refused:  # noqa: BLE001 - of the user's pickling, maybe: the map's outcome
            # Without its traceback: that has our frames, and they have the input.
            self._fail(deliverable(refused.with_traceback(None), f"the input of {self._name}"))

    def _stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        super()._stop()

    def finish_chunk(self, number: int, outcome: Outcome) -> None:
        """Take the outcome of one chunk's call."""
        if outcome is not CANCELLED and not self._stopping and not self.done():
            open_outcome(outcome, self._backend.pickling, self._name, partial(self._take, number))
        self._end_chunks(1)

    def _end_chunks(self, count: int) -> None:
        """So many chunks have ended, or will never begin."""
        self._left -= count
        if count and self._left == 0:
            self._calls = ()
            if self._stopping:
                self._settle_cancelled()
            else:
                self._settle(list(chain.from_iterable(self._chunks)), None)

    def _take(self, number: int, values: Any, error: BaseException | None) -> None:
        if error is None:
            self._chunks[number] = values
            return
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End with an exception, and begin no more."""
        self._settle(None, error)
        if self._reader is not None:
            self._reader.cancel()
        for call in self._calls:
            call.limits = call.limits._replace(retries=0)  # nobody would have the values of another try
            self._backend.withdraw(call)


async def _list_of(source: AsyncIterable[T]) -> list[T]:
    return [item async for item in source]
