"""Pickling what a call needs, in the caller's frame, so that what cannot travel raises there."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple

from . import failures, parcels, wire
from .arguments import name_of
from .calls import Pace
from .exceptions import NotPicklable
from .parcels import Payload

__all__ = ["Function", "Functions", "pack"]

MOST_KNOWN = 1000
"""Functions remembered; a program that makes new ones all the time is not to fill the memory with them."""


class Function(NamedTuple):
    """What there is to know of a function that is called."""

    name: str
    """What errors call it."""
    part: bytes
    """The first part of a call's payload."""
    pace: Pace
    """How long it takes."""


class Functions:
    """Remembers functions: those that pickle as a mere name need be pickled only once."""

    def __init__(self) -> None:
        self._known: dict[object, Function] = {}
        self._paces: dict[object, Pace] = {}

    def find(self, func: Callable[..., object]) -> Function:
        """Return what there is to know of a function, or raise `NotPicklable`."""
        by_name = type(func) in (FunctionType, BuiltinFunctionType)
        if by_name and (known := self._known.get(func)):
            return known
        name = name_of(func)
        try:
            pickled = pickle.dumps(func, protocol=5)
        except Exception as error:
            raise _refusal("function", name, error) from error
        function = Function(name, wire.function_part(pickled), self.pace_of(func))
        if by_name:
            self._forget(self._known)
            self._known[func] = function
        return function

    def pace_of(self, func: Callable[..., object]) -> Pace:
        """Return the pace of a function; partials, methods and instances have that of what they run."""
        while isinstance(func, partial):
            func = func.func
        if isinstance(func, MethodType):
            func = func.__func__
        key = func if isinstance(func, (FunctionType, BuiltinFunctionType)) else type(func)
        if key not in self._paces:
            self._forget(self._paces)
            self._paces[key] = Pace()
        return self._paces[key]

    @staticmethod
    def _forget(remembered: dict[object, Any]) -> None:
        if len(remembered) >= MOST_KNOWN:
            remembered.clear()


def pack(function: Function, name: str, args: tuple[Any, ...], kwds: dict[str, Any]) -> Payload:
    """Return the payload of a call, or raise `NotPicklable`. Later changes to the arguments do not travel."""
    try:
        pickled, buffers = parcels.dumps((args, kwds))
    except Exception as error:
        raise _refusal("arguments", name, error) from error
    return parcels.wrap(pickled, buffers, wire.LARGEST, function.part)


def _refusal(what: str, name: str, error: Exception) -> NotPicklable:
    text = failures.format_traceback(error)
    return NotPicklable(what, name, failures.type_name(error), failures.text_of(error), text)
