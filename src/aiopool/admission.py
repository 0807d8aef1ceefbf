"""Who may submit a call when only so many may wait: first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

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
    """

    def __init__(self, backend: Backend, most: int | None) -> None:
        self._backend = backend
        self._most = most
        self._queue: deque[asyncio.Future[None]] = deque()
        self._granted = 0  # woken, and not yet back to submit
        if most is not None:
            backend.watch(self._notice)

    @property
    def limited(self) -> bool:
        """Whether anybody may ever have to wait."""
        return self._most is not None

    def take(self, count: int) -> None:
        """Admit ``count`` calls now, or raise `PoolFull`."""
        if self._most is not None and (self._queue or self._room() < count):
            raise PoolFull(
                f"{self._backend.waiting} calls wait, and max_pending is {self._most}: no room for {count} more. "
                "`await pool.apply(...)` and `await pool.map(...)` wait for room"
            )

    async def enter(self) -> None:
        """Wait until there is room for one call, and for everybody who came before."""
        if self._most is None or (not self._queue and self._room() > 0):
            return
        turn = self._backend.loop.create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `_notice` has met it already
                    self._queue.remove(turn)
            else:
                self._granted -= 1
                self._notice()
            raise
        self._granted -= 1

    def _room(self) -> int:
        return (self._most or 0) - self._backend.waiting + self._backend.idle - self._granted

    def _notice(self) -> None:
        """Something has changed: grant what room there is."""
        phase = self._backend.phase
        while self._queue and (phase is not PoolPhase.RUNNING or self._room() > 0):
            turn = self._queue.popleft()
            if turn.done():
                continue  # cancelled a moment ago; whoever waited for it has not run since
            if phase is PoolPhase.RUNNING:
                self._granted += 1
                turn.set_result(None)
            else:
                turn.set_exception(self._refusal(phase))

    def _refusal(self, phase: PoolPhase) -> AioPoolError:
        if phase in (PoolPhase.TERMINATING, PoolPhase.CLOSED):
            return PoolTerminated("the pool was terminated while the call waited for room")
        return self._backend.refusal()
