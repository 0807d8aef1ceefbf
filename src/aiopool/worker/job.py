"""Run one call, and turn its outcome, or its refusal to be pickled, into a frame."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .. import failures, wire
from ..exceptions import NotPicklable
from .control import Control

__all__ = ["each_of_chunk", "map_chunk", "run", "starmap_chunk"]

T = TypeVar("T")

HIDDEN = (__file__,)
"""Files whose frames a user's traceback does not begin with."""


def run(frame: wire.Frame, control: Control) -> list[bytes]:
    """Do what a CALL frame asks for; return the frame that answers it. Raises nothing."""
    try:
        result = _result(frame, control)
    except BaseException as error:  # noqa: BLE001 - whatever a job raises is its outcome, and no end of the worker
        return wire.encode(wire.Kind.FAILED, frame.call, failures.encode(error, HIDDEN))
    return wire.encode(wire.Kind.RESULT, frame.call, result)


def _result(frame: wire.Frame, control: Control) -> bytes:
    pickled_function, pickled_arguments = wire.unpack_call(frame.payload)
    control.current = frame.call
    try:
        function = _loads("function", pickled_function)
        args, kwds = _loads("arguments", pickled_arguments)
        return _dumps(_checked(function(*args, **kwds)))
    finally:
        control.current = None


def _loads(what: str, pickled: memoryview) -> Any:
    try:
        return pickle.loads(pickled)
    except BaseException as error:
        raise _refusal(what, error) from error


def _dumps(value: object) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except BaseException as error:
        raise _refusal("result", error) from error


def _refusal(what: str, error: BaseException) -> NotPicklable:
    text = failures.format_traceback(error, HIDDEN)
    return NotPicklable(what, None, failures.type_name(error), failures.text_of(error), text)


def _checked(value: T) -> T:
    if isinstance(value, types.CoroutineType):
        value.close()  # or it would warn that it was never awaited
        raise TypeError(f"{value.__qualname__} is a coroutine function: a worker runs functions that return values")
    return value


def map_chunk(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Call the function with each item; the first exception ends the chunk."""
    return [_checked(function(item)) for item in items]


def starmap_chunk(function: Callable[..., T], items: Iterable[Iterable[Any]]) -> list[T]:
    """Call the function with each item's elements; the first exception ends the chunk."""
    return [_checked(function(*item)) for item in items]


def each_of_chunk(function: Callable[[Any], T], items: Iterable[Any]) -> list[T | failures.ItemFailure]:
    """Call the function with each item; an exception takes the place of that item's value only."""
    values: list[T | failures.ItemFailure] = []
    for item in items:
        try:
            values.append(_checked(function(item)))
        except BaseException as error:  # noqa: BLE001 - an item's outcome, see `run`
            values.append(failures.ItemFailure(failures.encode(error, HIDDEN)))
    return values
