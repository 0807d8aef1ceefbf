"""How a worker's loop is made, and how much it runs at once: what is known of it before there is one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio

__all__ = ["LoopFactory", "Looping"]


class LoopFactory:
    """Makes a worker's loop.

    In the worker, the function is unpickled only when it is called: what it stands in is not imported, and neither is
    asyncio, before the first coroutine comes.
    """

    def __init__(self, function: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[type[PickledLoopFactory], tuple[bytes]]:
        return PickledLoopFactory, (bytes(ForkingPickler.dumps(self._function)),)

    def __call__(self) -> asyncio.AbstractEventLoop:
        """Make one."""
        return self._function()


class PickledLoopFactory:
    """A `LoopFactory` as it arrives in a worker."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __call__(self) -> asyncio.AbstractEventLoop:
        """Unpickle the function and call it."""
        function: Callable[[], asyncio.AbstractEventLoop] = pickle.loads(self.pickled)
        return function()


class Looping(NamedTuple):
    """How a worker runs coroutines."""

    concurrency: int = 1
    """How many at once."""
    factory: LoopFactory | PickledLoopFactory | None = None
    """Makes its loop; None for asyncio's own."""
