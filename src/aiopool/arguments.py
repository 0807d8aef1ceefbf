"""Checks of what users pass in: each says what was wrong, with which value, and what is asked for."""

from __future__ import annotations

import enum
import multiprocessing
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.context import BaseContext
from typing import TypeVar

__all__ = [
    "Default",
    "at_least",
    "at_least_one",
    "check_callable",
    "find_context",
    "fraction",
    "iterate",
    "iterate_input",
    "length_of",
    "module_names",
    "name_of",
    "optional",
    "seconds",
]

T = TypeVar("T")


class Default(enum.Enum):
    """Stands for what the pool was made with, where a call may ask for something else."""

    POOLS = "the pool's"


def at_least(least: int, name: str, value: int) -> int:
    """Return the number, or raise TypeError or ValueError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


at_least_one: Callable[[str, int], int] = partial(at_least, 1)


def optional(check: Callable[[str, T], T], name: str, value: T | None) -> T | None:
    """Return None for None, and else what is checked."""
    return None if value is None else check(name, value)


def seconds(name: str, value: float, *, zero: bool = False) -> float:
    """Return a time, or raise TypeError or ValueError; zero is a time only where it is said to be."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{name} must be {'at least' if zero else 'more than'} 0 seconds, not {value}")
    if value > sys.float_info.max:  # what no clock can be asked for: infinity, and an int of more than 308 digits
        raise ValueError(f"{name} must be a number of seconds that is finite as a float")
    return value


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
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number from 0 to 1, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value}")
    return value


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
