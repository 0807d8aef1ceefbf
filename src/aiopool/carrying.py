"""Context variables whose values travel with a call: read here when it is made, set in the worker while it runs.

A context variable does not pickle, so it travels as the module that it is a global of, and its name there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

__all__ = ["Carried", "Carrier", "call_with"]

T = TypeVar("T")


class Carried(NamedTuple):
    """The value of a context variable."""

    module: str
    name: str
    value: Any


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

    def __bool__(self) -> bool:
        return bool(self._places)

    def values(self) -> tuple[Carried, ...]:
        """Return the present values; a variable that has none does not travel."""
        return tuple(
            Carried(*place, value)
            for variable, place in self._places.items()
            if (value := variable.get(_UNSET)) is not _UNSET
        )


_UNSET: Any = object()


def _place_of(variable: ContextVar[Any]) -> tuple[str, str]:
    if not isinstance(variable, ContextVar):
        raise TypeError(f"context_vars must be context variables, not {variable!r}")
    for module, content in list(sys.modules.items()):
        for name, value in list(getattr(content, "__dict__", {}).items()):
            if value is variable:
                return module, name
    raise ValueError(
        f"context_vars: {variable!r} is no global of a module that is imported; a worker could not find it"
    )


def call_with(
    values: Sequence[Carried], function: Callable[..., T], args: tuple[Any, ...], kwds: Mapping[str, Any]
) -> T:
    """Call a function in the worker while the variables have these values."""
    variables = [(getattr(importlib.import_module(each.module), each.name), each.value) for each in values]
    tokens = [(variable, variable.set(value)) for variable, value in variables]
    try:
        return function(*args, **kwds)
    finally:
        for variable, token in tokens:
            variable.reset(token)
