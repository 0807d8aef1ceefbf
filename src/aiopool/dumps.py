"""Logging what workers are doing when a signal asks for it."""

from __future__ import annotations

import asyncio
import logging
import weakref

from .backends.base import Backend

__all__ = ["dump_on"]

logger: logging.Logger = logging.getLogger("aiopool")

_asked: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, Dumper]] = weakref.WeakKeyDictionary()
"""Who answers which signal in which loop."""


class Dumper:
    """Logs what the workers of some pools are doing."""

    def __init__(self) -> None:
        self.pools: weakref.WeakSet[Backend] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Ask all of them."""
        for pool in list(self.pools):
            task = asyncio.get_running_loop().create_task(_dump(pool))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _dump(pool: Backend) -> None:
    for stack in await pool.stacks():
        logger.warning("%s", stack)


def dump_on(number: int, pool: Backend) -> None:
    """Have what its workers are doing logged at each of these signals."""
    dumpers = _asked.setdefault(pool.loop, {})
    if number not in dumpers:
        dumper = Dumper()
        pool.loop.add_signal_handler(number, dumper.begin)
        dumpers[number] = dumper
    dumpers[number].pools.add(pool)
