"""The parent's end of a worker's channel: frames over a socket, on the event loop.

It stands on ``add_reader`` and ``add_writer`` rather than on a transport: what is sent is written from where it
lies, a large payload is received into its own buffer, and closing is silent even when the loop is closed already.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from .. import wire

__all__ = ["Channel"]

MOST_BUFFERS = 64
"""Buffers handed to one system call."""


class Channel:
    """Sends without waiting, reports what arrives.

    Args:
        loop: where it is used.
        sock: connected, owned by the channel from now on.
        on_frame: called with each frame.
        on_garbled: called once, when what arrives is no frame.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_frame: Callable[[wire.Frame], None],
        on_garbled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()  # for the loop: uvloop keeps a socket that it is given open beyond its close()
        self._on_frame = on_frame
        self._on_garbled = on_garbled
        self._decoder = wire.Decoder()
        self._backlog: deque[memoryview] = deque()  # what the kernel has not taken yet
        sock.setblocking(False)
        loop.add_reader(self._fd, self._receive)

    def send(self, parts: list[bytes]) -> None:
        """Send a frame. To a worker that is gone nothing is sent: its death is reported elsewhere."""
        waiting = bool(self._backlog)
        self._backlog.extend(map(memoryview, parts))
        if not waiting:
            self._transmit()
            if self._backlog:
                self._loop.add_writer(self._fd, self._resume)

    @property
    def unsent(self) -> int:
        """How many bytes the kernel has not taken yet."""
        return sum(map(len, self._backlog))

    def receive_rest(self) -> None:
        """Report what has arrived already, when nothing more will come."""
        while self._receive():
            pass

    def close(self) -> None:
        """Close it. Reports nothing any more."""
        if self._sock.fileno() != -1:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
                self._loop.remove_writer(self._fd)
            self._sock.close()

    def _resume(self) -> None:
        self._transmit()
        if not self._backlog:
            self._loop.remove_writer(self._fd)

    def _transmit(self) -> None:
        backlog = self._backlog
        while backlog:
            try:
                sent = self._sock.sendmsg([backlog[i] for i in range(min(len(backlog), MOST_BUFFERS))])
            except BlockingIOError:
                return
            except OSError:  # nobody can read it any more; that is for the worker's death to report
                return
            while backlog and sent >= len(backlog[0]):
                sent -= len(backlog.popleft())
            if sent:
                backlog[0] = backlog[0][sent:]

    def _receive(self) -> bool:
        """Receive once; return whether there may be more."""
        if self._sock.fileno() == -1:
            return False
        try:
            count = self._sock.recv_into(self._decoder.space())
            frames = self._decoder.filled(count)
        except BlockingIOError:
            return False
        except (OSError, wire.WireError):
            self._loop.remove_reader(self._fd)
            self._on_garbled()
            return False
        for frame in frames:
            self._on_frame(frame)
        return True
