"""Checks of what users pass in: each says what was wrong, with which value, and what is asked for."""

from __future__ import annotations

import enum
import math
import multiprocessing
import numbers
import operator
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Final, SupportsIndex, TypeVar

__all__ = [
    "POOLS",
    "Default",
    "at_least",
    "at_least_one",
    "check_callable",
    "find_context",
    "fraction",
    "iterate",
    "iterate_input",
    "keywords_of",
    "length_of",
    "module_names",
    "name_of",
    "optional",
    "patience",
    "seconds",
    "signal_number",
    "size",
    "truth",
]

T = TypeVar("T")


class Default(enum.Enum):
    """Stands for what the pool was made with, where a call may ask for something else."""

    POOLS = "the pool's"


POOLS: Final = Default.POOLS
"""What each call needs; a member of an enumeration takes longer to look up."""


def at_least(least: int, name: str, value: SupportsIndex) -> int:
    """Return the number as an int, or raise TypeError or ValueError."""
    number = _index_of(value)
    if number is None:
        raise TypeError(f"{name} must be an int, not {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _index_of(value: object) -> int | None:
    """Return an integer as Python's own, or None for what is none; a truth value does not count as one."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - or a TypeError
    except TypeError:
        return None


at_least_one: Callable[[str, SupportsIndex], int] = partial(at_least, 1)


def size(name: str, value: SupportsIndex) -> int:
    """Return how many items there may be at most, or raise TypeError or ValueError. Nothing has more than maxsize."""
    return min(at_least_one(name, value), sys.maxsize)


def optional(check: Callable[[str, T], T], name: str, value: T | None) -> T | None:
    """Return None for None, and else what is checked."""
    return None if value is None else check(name, value)


def _real(name: str, value: object, what: str) -> float:
    """Return a real number as Python's own, an infinite one if it is too large, or raise TypeError."""
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = ": make it a float" if isinstance(value, numbers.Number) and hasattr(value, "__float__") else ""
        raise TypeError(f"{name} must be {what}, not {value!r}{'' if isinstance(value, bool) else hint}")
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def seconds(name: str, value: float, *, zero: bool = False) -> float:
    """Return a time, or raise TypeError or ValueError; zero is a time only where it is said to be."""
    number = _real(name, value, "a number of seconds")
    if not (number > 0 or (zero and number == 0)):
        raise ValueError(f"{name} must be {'at least' if zero else 'more than'} 0 seconds, not {value}")
    if number > sys.float_info.max:  # what no clock can be asked for: infinity, and an int of more than 308 digits
        raise ValueError(f"{name} must be a number of seconds that is finite as a float")
    return number


def patience(timeout: float | None) -> float | None:
    """Return for how long to wait, or None for as long as it takes; raise TypeError or ValueError.

    As in multiprocessing, less than no time is no time. What no clock can be asked for is as long as it takes.
    """
    if timeout is None:
        return None
    number = _real("timeout", timeout, "a number of seconds, or None")
    if not number <= math.inf:  # NaN, which is neither
        raise ValueError(f"timeout must be a number of seconds, or None, not {timeout}")
    return None if number > threading.TIMEOUT_MAX else max(number, 0)


def truth(name: str, value: bool) -> bool:  # noqa: FBT001 - that is what it is about
    """Return True or False, or raise TypeError: text such as "no" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def signal_number(value: int) -> int:
    """Return the number of a signal, or raise TypeError or ValueError."""
    number = _index_of(value)
    if number is None:
        raise TypeError(f"number must be that of a signal, such as signal.SIGUSR1, not {value!r}")
    if number not in signal.valid_signals():
        raise ValueError(f"number must be that of a signal, such as signal.SIGUSR1, not {number}")
    return number


def keywords_of(kwds: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments as a dictionary of their own, or raise TypeError."""
    if not isinstance(kwds, (dict, Mapping)) and not hasattr(type(kwds), "keys"):
        raise TypeError(f"kwds must be a mapping of names to values, not {kwds!r}")
    keywords = dict(kwds)
    for name in keywords:
        if not isinstance(name, str):
            raise TypeError(f"kwds must be a mapping of names to values; {name!r} in it is no name")
    return keywords


def module_names(name: str, value: Iterable[str]) -> tuple[str, ...]:
    """Return names of modules, or raise TypeError."""
    try:
        names = None if isinstance(value, str) else tuple(value)
    except TypeError:
        names = None
    if names is None or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{name} must be a sequence of module names, not {value!r}")
    return names


def fraction(name: str, value: float) -> float:
    """Return a number from 0 to 1, or raise TypeError or ValueError."""
    number = _real(name, value, "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value}")
    return number


def iterate(name: str, value: Iterable[T], kind: str = "iterable") -> Iterator[T]:
    """Return an iterator over the items, or raise TypeError. It is asked for once: some give their items only once."""
    if not isinstance(value, Iterable) and not hasattr(type(value), "__getitem__"):
        raise TypeError(f"{name} must be {kind}, not {value!r}")
    return iter(value)


def iterate_input(value: Iterable[T]) -> Iterator[T]:
    """Return an iterator over what is to be mapped, or raise TypeError."""
    return iterate("the input", value, "an iterable or an async iterable")


def length_of(value: object) -> int | None:
    """Return how many items there are, or should be, or None if that is not known."""
    length = operator.length_hint(value, -1)
    return None if length < 0 else length


def check_callable(name: str, value: object) -> None:
    """Raise TypeError for what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}")


def name_of(func: Callable[..., object]) -> str:
    """Return what errors call a function."""
    if isinstance(func, partial):
        return f"partial of {name_of(func.func)}"
    return getattr(func, "__qualname__", None) or type(func).__qualname__


def find_context(context: BaseContext | str | None) -> BaseContext:
    """Return the multiprocessing context that is meant, or raise TypeError or ValueError."""
    methods = multiprocessing.get_all_start_methods()
    if context is None:
        return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if isinstance(context, BaseContext):
        return context
    if not isinstance(context, str):
        raise TypeError(f"context must be a multiprocessing context or the name of a start method, not {context!r}")
    if context not in methods:
        raise ValueError(f"context must be one of {', '.join(methods)}, not {context!r}")
    return multiprocessing.get_context(context)
