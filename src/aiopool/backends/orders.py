"""The parent's end of the pipe for orders, by which it interrupts calls and lets streams go on.

See `aiopool.worker.control` for what a worker makes of them.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
from collections import deque
from collections.abc import Callable

from ..worker.control import ORDER

__all__ = ["AGAIN", "Orders"]

AGAIN = 0.1
"""Seconds until a worker is signalled again that has not read why; after that twice as long, and so on.

A signal that comes in the moment before a call blocks in the system does not wake it, and no event tells of that.
"""


class Orders:
    """Writes orders without waiting, and sees to it that an interruption is noticed.

    Args:
        loop: where it is used.
        pipe: its descriptor, which does not block.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: int) -> None:
        self._loop = loop
        self._pipe = pipe
        self._unwritten: deque[bytes] = deque()
        self._reminder: asyncio.TimerHandle | None = None

    def interrupt(self, call: int, signal: Callable[[], None]) -> None:
        """Have the worker raise an exception within this call, if it runs it; a signal makes it read this at once."""
        self._put(call, 0)
        self._urge(signal, AGAIN)

    def grant(self, call: int, more: int) -> None:
        """Let a stream that it runs send so many values more."""
        self._put(call, more)

    def close(self) -> None:
        """Write nothing any more, and signal nobody."""
        if self._reminder is not None:
            self._reminder.cancel()
        if self._unwritten and not self._loop.is_closed():
            self._loop.remove_writer(self._pipe)

    def _put(self, call: int, more: int) -> None:
        self._unwritten.append(ORDER.pack(call, more))
        if len(self._unwritten) == 1:
            self._write()
            if self._unwritten:
                self._loop.add_writer(self._pipe, self._resume)

    def _resume(self) -> None:
        self._write()
        if not self._unwritten:
            self._loop.remove_writer(self._pipe)

    def _write(self) -> None:
        """Write what the pipe has room for; that of a worker that is stopped or stuck may have none left."""
        try:
            while self._unwritten:
                os.write(self._pipe, self._unwritten[0])
                self._unwritten.popleft()
        except BlockingIOError:
            pass  # `_resume` goes on
        except OSError:  # it is gone
            self._unwritten.clear()

    def _urge(self, signal: Callable[[], None], patience: float) -> None:
        signal()  # if the worker does not listen to that, it will be killed
        if self._reminder is not None:
            self._reminder.cancel()
        self._reminder = self._loop.call_later(patience, self._remind, signal, 2 * patience)

    def _remind(self, signal: Callable[[], None], patience: float) -> None:
        if any(fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4))):  # the bytes of how many are unread
            self._urge(signal, patience)
