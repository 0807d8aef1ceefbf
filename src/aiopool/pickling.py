"""How values become bytes and values again: with pickle, or with what a pool was given in its place."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

from . import parcels

__all__ = ["PLAIN", "ForeignPickling", "Pickler", "Pickling", "check_pickler", "is_name_of"]


class Pickler(Protocol):
    """A module, or an object, that takes the place of `pickle`, as cloudpickle or dill do.

    Where ``dumps`` takes ``protocol`` and ``buffer_callback``, too, and ``loads`` takes ``buffers``, as those of
    `pickle` do, large buffers stay outside of the bytes.
    """

    @property
    def dumps(self) -> Callable[..., Any]:
        """Takes a value and returns bytes."""
        ...

    @property
    def loads(self) -> Callable[..., Any]:
        """Takes those bytes and returns the value."""
        ...


class Pickling(Protocol):
    """What the two ends of a channel have in common. It pickles, and means the same at either end."""

    tells_buffers: bool
    """Whether buffers can stay outside."""

    def dumps(
        self, value: object, least: float = parcels.LARGE, notice: Callable[[memoryview], None] | None = None, /
    ) -> tuple[bytes, list[memoryview]]:
        """See `aiopool.parcels.dumps`."""
        ...

    def loads(self, pickled: bytes | memoryview, /, *, buffers: Sequence[memoryview] = ()) -> Any:
        """Return the value."""
        ...


class _PlainPickling:
    """That of `pickle`; nothing is put between it and those who use it, for each call does so four times."""

    tells_buffers = True
    dumps = staticmethod(parcels.dumps)
    loads = staticmethod(pickle.loads)


PLAIN: Pickling = _PlainPickling()


class ForeignPickling:
    """That of another pickler."""

    def __init__(self, pickler: Pickler) -> None:
        self._pickler = pickler
        self.tells_buffers: bool = _takes(pickler.dumps, "buffer_callback")

    def dumps(
        self, value: object, least: float = parcels.LARGE, notice: Callable[[memoryview], None] | None = None, /
    ) -> tuple[bytes, list[memoryview]]:
        """Return a pickle, and the buffers that it leaves outside."""
        if not self.tells_buffers:
            return bytes(self._pickler.dumps(value)), []
        return parcels.dumps(value, least, notice, self._pickler.dumps)

    def loads(self, pickled: bytes | memoryview, /, *, buffers: Sequence[memoryview] = ()) -> Any:
        """Return the value."""
        if not self.tells_buffers:
            return self._pickler.loads(bytes(pickled))
        return self._pickler.loads(pickled, buffers=buffers)

    def __reduce__(self) -> tuple[Callable[..., ForeignPickling], tuple[object]]:
        if isinstance(self._pickler, ModuleType):
            return _of_module, (self._pickler.__name__,)
        return ForeignPickling, (self._pickler,)


def _of_module(name: str) -> ForeignPickling:
    module: Any = importlib.import_module(name)
    return ForeignPickling(module)


def _takes(function: Callable[..., Any], name: str) -> bool:
    import inspect  # noqa: PLC0415 - most workers never ask

    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # one that does not tell
        return False


def check_pickler(pickler: object) -> None:
    """Raise TypeError for what is no pickler."""
    if not (callable(getattr(pickler, "dumps", None)) and callable(getattr(pickler, "loads", None))):
        raise TypeError(f"pickler must have the functions dumps and loads, as the module pickle has; not {pickler!r}")


def is_name_of(function: object, pickled: bytes) -> bool:
    """Whether this pickle is nothing but a function's name, and so is the same whatever becomes of the function."""
    try:
        return pickle.dumps(function, protocol=5) == pickled
    except Exception:  # noqa: BLE001 - it has no name by which it could be found
        return False
