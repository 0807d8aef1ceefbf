"""What travels with a call, and is around it in the worker while it runs: the values of context variables, mostly.

A context variable does not pickle, so it travels as the module that it is a global of, and its name there.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, Protocol, TypeVar

from .exceptions import AioPoolError

__all__ = ["Around", "Carried", "Carrier", "await_with", "call_with", "iterate_async_with", "iterate_with"]

T = TypeVar("T")


class Around(Protocol):
    """Travels with a call. It can be pickled."""

    def around(self) -> contextlib.AbstractContextManager[object]:
        """Return what is entered in the worker before the function is called, and left after it."""
        ...


class Carried(NamedTuple):
    """The value of a context variable."""

    module: str
    name: str
    value: Any

    def around(self) -> Assigned:
        """Return what sets the variable, for a while."""
        try:
            variable = getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            raise AioPoolError(
                f"context_vars: {self.module}.{self.name} is not there in the worker; define it in a module that "
                "workers can import, outside `if __name__ == ...`"
            ) from error
        return Assigned(variable, self.value)


class Assigned:
    """Has a context variable have this value."""

    __slots__ = ("_token", "_value", "_variable")

    _token: Token[Any]

    def __init__(self, variable: ContextVar[Any], value: object) -> None:
        self._variable = variable
        self._value = value

    def __enter__(self) -> None:
        self._token = self._variable.set(self._value)

    def __exit__(self, *_failure: object) -> None:
        self._variable.reset(self._token)


class Carrier:
    """Reads the values of some context variables.

    Args:
        variables: each a global of a module that workers can import.

    Raises:
        TypeError: one of them is no context variable.
        ValueError: one of them is no global of any module.
    """

    def __init__(self, variables: Iterable[ContextVar[Any]]) -> None:
        self._places = {variable: _place_of(variable) for variable in variables}

    def values(self) -> tuple[Carried, ...]:
        """Return the present values; a variable that has none does not travel."""
        if not self._places:
            return ()
        return tuple(
            Carried(*place, value)
            for variable, place in self._places.items()
            if (value := variable.get(_UNSET)) is not _UNSET
        )


_UNSET: Any = object()

MAIN = ("__main__", "__mp_main__")
"""Looked at last: what is imported there under a guard is not there in a worker."""


def _place_of(variable: ContextVar[Any]) -> tuple[str, str]:
    if not isinstance(variable, ContextVar):
        raise TypeError(f"context_vars must be context variables, not {variable!r}")
    for module, content in sorted(sys.modules.items(), key=lambda item: item[0] in MAIN):
        for name, value in list(getattr(content, "__dict__", {}).items()):
            if value is variable:
                return module, name
    raise ValueError(
        f"context_vars: {variable!r} is no global of a module that is imported; a worker could not find it"
    )


def call_with(
    company: Sequence[Around], function: Callable[..., T], args: tuple[Any, ...], kwds: Mapping[str, Any]
) -> T:
    """Call a function in the worker, with what has travelled with the call around it."""
    with _entered(company):
        return function(*args, **kwds)


async def await_with(
    company: Sequence[Around], function: Callable[..., Awaitable[T]], args: tuple[Any, ...], kwds: Mapping[str, Any]
) -> T:
    """Do the same with a coroutine function."""
    with _entered(company):
        return await function(*args, **kwds)


def iterate_with(
    company: Sequence[Around],
    function: Callable[..., Generator[T, None, None]],
    args: tuple[Any, ...],
    kwds: Mapping[str, Any],
) -> Generator[T, None, None]:
    """Do the same with a generator function."""
    with _entered(company):
        yield from function(*args, **kwds)


async def iterate_async_with(
    company: Sequence[Around],
    function: Callable[..., AsyncGenerator[T, None]],
    args: tuple[Any, ...],
    kwds: Mapping[str, Any],
) -> AsyncGenerator[T, None]:
    """Do the same with an async generator function."""
    with _entered(company):
        async with contextlib.aclosing(function(*args, **kwds)) as values:
            async for value in values:
                yield value


def _entered(company: Sequence[Around]) -> contextlib.ExitStack:
    with contextlib.ExitStack() as stack:
        for each in company:
            stack.enter_context(each.around())
        return stack.pop_all()
