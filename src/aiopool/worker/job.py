"""Run one call, and turn its outcome, or its refusal to be pickled, into a frame."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, TypeVar

from .. import carrying, failures, wire
from ..arena import Arena
from ..exceptions import AioPoolError, CallInterrupted, not_received
from ..parcels import Payload, wrap
from ..pickling import Pickling, is_name_of
from .current import Calls, uninterrupted

__all__ = [
    "HIDDEN", "INTERRUPTED", "Answer", "checked", "dumps", "each_of_chunk", "map_chunk", "run", "starmap_chunk",
    "unpickled",
]  # fmt: skip

T = TypeVar("T")

HIDDEN = (__file__, carrying.__file__)
"""Files whose frames a user's traceback does not begin with."""

INTERRUPTED = failures.encode_briefly(CallInterrupted())
"""The failure of a call that was interrupted."""

MOST_KNOWN = 1000
"""Functions remembered."""

_known: dict[bytes, Callable[..., Any]] = {}
"""Functions by their pickles."""


class Answer:
    """How a call has ended.

    Attributes:
        kind: of the message that says so.
        payload: the value or the failure, pickled.
        nanoseconds: how long it took.
    """

    __slots__ = ("kind", "nanoseconds", "payload")

    def __init__(self, kind: int, payload: Payload, nanoseconds: int) -> None:
        self.kind: int = kind
        self.payload: Payload = payload
        self.nanoseconds: int = nanoseconds


def run(frame: wire.Frame, control: Calls, pickling: Pickling, arena: Arena | None = None) -> Answer:
    """Do what a CALL asks for; return what to answer. Raises nothing."""
    begun = perf_counter_ns()
    try:
        result = _result(frame, control, pickling)
        # Not to be interrupted: a descriptor that nobody has got yet would be left, and keep a large result's memory.
        kind, payload = wire.Kind.RESULT, wrap(*result, wire.LARGEST, arena=arena)
    except BaseException as error:  # noqa: BLE001 - whatever a job raises is its outcome, and no end of the worker
        # Where it was interrupted nobody wants to know: the parent has decided on the outcome.
        failure = INTERRUPTED if control.interrupted == frame.call else failures.encode(error, HIDDEN)
        kind, payload = wire.Kind.FAILED, wrap(failure, (), wire.LARGEST)
    return Answer(kind, payload, perf_counter_ns() - begun)


def _result(frame: wire.Frame, control: Calls, pickling: Pickling) -> tuple[bytes, list[memoryview]]:
    try:
        control.begin(frame.call)
        function, args, kwds = unpickled(frame.payload, frame.buffers, pickling)
        return _pickled(checked(function(*args, **kwds)), pickling)
    finally:
        control.current = None


def unpickled(
    payload: bytes | memoryview | None, buffers: Sequence[memoryview], pickling: Pickling
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return function and arguments; of a large payload is kept only what they use, so that the call has the rest."""
    if payload is None:
        raise not_received("the arguments", "the worker")
    pickled_function, pickled_arguments = wire.unpack_call(payload)
    try:
        function = _function(pickled_function, pickling)
        args, kwds = _loads("arguments", pickled_arguments, pickling, buffers)
    finally:
        if isinstance(pickled_arguments, memoryview):
            pickled_arguments.release()
    if isinstance(payload, memoryview):
        payload.release()
    return function, args, kwds


def _function(pickled: bytes, pickling: Pickling) -> Callable[..., Any]:
    """Unpickle a function. One that travels as its name and is still what has that name, need not be looked for."""
    if known := _known.get(pickled):
        present: object = getattr(sys.modules.get(known.__module__), known.__name__, None)
        if present is known:
            return known
    function: Callable[..., Any] = _loads("function", pickled, pickling)
    named = isinstance(function, (types.FunctionType, types.BuiltinFunctionType))
    if named and is_name_of(function, pickled):  # else it only has that name for a while
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[pickled] = function
    return function


def _loads(what: str, pickled: bytes | memoryview, pickling: Pickling, buffers: Sequence[memoryview] = ()) -> Any:
    try:
        return pickling.loads(pickled, buffers=buffers)
    except AioPoolError:  # of a shared object in it
        raise
    except BaseException as error:
        raise failures.refusal(what, None, error, HIDDEN) from error


def dumps(value: object, pickling: Pickling, arena: Arena | None = None, what: str = "result") -> Payload:
    """Return the payload of a result or of what else it is; raise `NotPicklable`, or TypeError for coroutines in it."""
    return wrap(*_pickled(value, pickling, what), wire.LARGEST, arena=arena)


def _pickled(value: object, pickling: Pickling, what: str = "result") -> tuple[bytes, list[memoryview]]:
    try:
        return pickling.dumps(value)
    except BaseException as error:
        # Looked for only now, since no coroutine can be pickled: to look at each value is much of a short chunk's time.
        if isinstance(value, list) and (found := [each for each in value if isinstance(each, types.CoroutineType)]):
            raise _no_values(found) from None
        raise failures.refusal(what, None, error, HIDDEN) from error


def checked(value: T) -> T:
    """Return what a function has returned, or raise TypeError for a coroutine."""
    if isinstance(value, types.CoroutineType):
        raise _no_values([value])
    return value


def _no_values(coroutines: Sequence[types.CoroutineType[Any, Any, Any]]) -> TypeError:
    for coroutine in coroutines:
        coroutine.close()  # or it would warn that it was never awaited
    name = coroutines[0].__qualname__
    return TypeError(
        f"the function is none that is known to be a coroutine function, and has returned a coroutine of {name}, which "
        "nobody awaits. Give the pool the coroutine function itself, or make yours one (`async def`)"
    )


def map_chunk(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Call the function with each item; the first exception ends the chunk."""
    return [function(item) for item in items]


def starmap_chunk(function: Callable[..., T], items: Iterable[Iterable[Any]]) -> list[T]:
    """Call the function with each item's elements; the first exception ends the chunk."""
    return [function(*item) for item in items]


def each_of_chunk(function: Callable[[Any], T], items: Iterable[Any]) -> list[T | failures.ItemFailure]:
    """Call the function with each item; an exception takes the place of that item's value only."""
    values: list[T | failures.ItemFailure] = []
    for item in items:
        try:
            values.append(checked(function(item)))
        except CallInterrupted:  # means the whole chunk
            raise
        except BaseException as error:  # noqa: BLE001 - an item's outcome, see `run`
            # Traceback, and what looks at odd exceptions, swallow whatever is raised in there.
            values.append(failures.ItemFailure(uninterrupted(partial(failures.encode, error, HIDDEN))))
    return values
