"""How many threads the numerical libraries of a worker may start: by the environment variables that they read.

They read them when they are imported, and the main module, which multiprocessing imports before anything of the pool's
runs, may import them first. What comes even before that is the process's name. So the name carries the variables. At
that time nothing of the pool's can be imported, either, where it has been found by the parent's `sys.path`: what sets
them is the interpreter's own.
"""

from __future__ import annotations

import importlib
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Self

__all__ = ["NameWithVariables", "thread_variables"]

READ_BY_LIBRARIES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def thread_variables(limit: int | None, share: int) -> dict[str, str]:
    """Return the variables for a limit that was asked for, or else as they are here, or else for a fair share."""
    if limit is not None:
        return dict.fromkeys(READ_BY_LIBRARIES, str(limit))
    return {name: os.environ.get(name, str(share)) for name in READ_BY_LIBRARIES}


class NameWithVariables(str):
    """A process's name. Where it is unpickled, the environment has these variables from then on."""

    __slots__ = ("_variables",)

    _variables: Mapping[str, str]

    def __new__(cls, name: str, variables: Mapping[str, str]) -> Self:
        """Make a name of this text."""
        made = super().__new__(cls, name)
        made._variables = variables
        return made

    def __reduce__(self) -> tuple[Callable[..., str], tuple[tuple[str, _Environment], int]]:
        return operator.getitem, ((str(self), _Environment(self._variables)), 0)


class _Environment:
    """Unpickles as `os.environ`, which has these variables from then on."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __reduce__(self) -> tuple[Callable[..., object], tuple[_Os, str], None, None, Iterator[tuple[str, str]]]:
        return getattr, (_Os(), "environ"), None, None, iter(self._variables.items())


class _Os:
    """Unpickles as the module."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        # Not `__import__`, in whose place some libraries put a function of their own, which does not pickle.
        return importlib.import_module, ("os",)
