"""Who may submit a call when only so many may wait, first come, first served; and who is told that no more is taken."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .backends.base import Backend
from .exceptions import AioPoolError, PoolFull, PoolTerminated
from .phases import PoolPhase

__all__ = ["Admission"]


class Admission:
    """Keeps the number of waiting calls at or below ``most``.

    Whoever is admitted submits at once, before anything else can run: room that was granted cannot be lost.

    Args:
        backend: whose calls are counted.
        most: how many may wait, or None for any number.

    Attributes:
        limited: whether anybody may ever have to wait.
    """

    def __init__(self, backend: Backend, most: int | None) -> None:
        self._backend = backend
        self._most = most
        self.limited: bool = most is not None
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # those in the middle may leave, too
        self._terminated = False  # for a pool that is closed does not tell whether it was
        self._granted = 0  # woken, and not yet back to submit
        self._readers: dict[asyncio.Task[Any], Callable[[AioPoolError], None]] = {}
        self._watching = False
        if most is not None:
            self._watch()

    def take(self, count: int) -> None:
        """Admit ``count`` calls now, or raise `PoolFull`."""
        if self._most is not None and (self._queue or self._room() < count):
            raise PoolFull(
                f"{self._backend.waiting} calls wait, and max_pending is {self._most}: no room for {count} more. "
                "`await pool.apply(...)` and `await pool.map(...)` wait for room"
            )

    async def enter(self) -> None:
        """Wait until there is room for one call, and for everybody who came before."""
        if self._most is not None and (self._queue or self._room() <= 0):
            await self._wait()
        if self._backend.phase is not PoolPhase.RUNNING:  # it may have changed since room was granted
            raise self._refusal("while the call waited for room")

    async def _wait(self) -> None:
        turn = self._backend.loop.create_future()
        self._queue[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queue.pop(turn, None)  # `_notice` may have met it already
            else:
                self._granted -= 1
                self._notice()
            raise
        finally:
            del turn  # it may have the exception, whose traceback has this frame
        self._granted -= 1

    def tell(self, reader: asyncio.Task[Any], refuse: Callable[[AioPoolError], None]) -> None:
        """Have ``refuse`` called with the reason if the pool takes no more calls before this task has ended.

        It reads what calls are to be made of, and may wait for more of that for ever.
        """
        self._watch()
        self._readers[reader] = refuse
        reader.add_done_callback(lambda done: self._readers.pop(done, None))
        self._notice()

    def _watch(self) -> None:
        if not self._watching:  # a pool that needs none of this need not pay for it
            self._watching = True
            self._backend.watch(self._notice)

    def _room(self) -> int:
        return (self._most or 0) - self._backend.waiting + self._backend.idle - self._granted

    def _notice(self) -> None:
        """Something has changed: grant what room there is, or tell everybody that nothing is taken any more."""
        if self._backend.phase is PoolPhase.TERMINATING:
            self._terminated = True
        if self._backend.phase is not PoolPhase.RUNNING:
            self._refuse()
        while self._queue and self._room() > 0:
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():  # else cancelled a moment ago; whoever waited for it has not run since
                self._granted += 1
                turn.set_result(None)

    def _refuse(self) -> None:
        while self._queue:
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():
                turn.set_exception(self._refusal("while the call waited for room"))
        while self._readers:
            _, refuse = self._readers.popitem()
            refuse(self._refusal("while the input was read"))

    def _refusal(self, when: str) -> AioPoolError:
        if self._terminated:
            return PoolTerminated(f"the pool was terminated {when}")
        return self._backend.refusal()
