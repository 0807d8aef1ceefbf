"""The worker's end of the channel from the parent: whole messages, one at a time."""

from __future__ import annotations

import os
import select
import socket

from .. import sharing, wire
from ..arena import Arena
from ..pickling import Pickling

__all__ = ["Inbox", "take_share"]


class Inbox:
    """Receives messages.

    We never wait in a call that receives: a worker that is killed there could take along a message that comes after
    its death, and nobody would know that it has not begun it.

    Args:
        channel: from the parent.
        arena: has its memory given back in time.
    """

    def __init__(self, channel: socket.socket, arena: Arena | None = None) -> None:
        self._channel = channel
        self._arena = arena
        self._decoder = wire.Decoder(scratch=wire.lasting_scratch())
        self._identity = self._present_identity()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def fileno(self) -> int:
        """Return the channel's descriptor, for a loop."""
        return self._channel.fileno()

    def receive(self) -> wire.Frame:
        """Wait for a message."""
        while True:
            rest = self._arena.tidy() if self._arena is not None else None
            frame = self.received()
            if frame is not None:
                return frame
            self.check()
            self._poll.poll(None if rest is None else 1000 * rest)

    def received(self) -> wire.Frame | None:
        """Return a message that has come, or None."""
        try:
            while (frame := wire.receive(self._channel, self._decoder, socket.MSG_DONTWAIT)) is None:
                pass
        except BlockingIOError:
            return None
        return frame

    def check(self) -> None:
        """Raise ConnectionResetError if nothing can come any more.

        A job may have closed all descriptors, and ours may be another socket's by now, which has our last answer.
        Then nobody will ever write to us: our end is the only news that there can be.
        """
        if self._present_identity() != self._identity:
            raise ConnectionResetError("a job has closed the channel")

    def _present_identity(self) -> int:
        return os.fstat(self._channel.fileno()).st_ino


def take_share(frame: wire.Frame, pickling: Pickling) -> None:
    """Keep what calls share, or forget it, as a message says."""
    if frame.kind == wire.Kind.SHARE:
        sharing.keep(frame.call, frame.payload, frame.buffers, pickling)
    else:
        sharing.drop(frame.call)
