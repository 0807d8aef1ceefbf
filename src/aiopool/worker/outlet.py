"""The worker's way to the parent: whole messages, from whichever thread."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence

from .. import wire

__all__ = ["Outlet"]


class Outlet:
    """Sends messages over the worker's channel. A message may take several packets, so one is sent at a time."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._turn = threading.Lock()
        # Another thread may be sending when a job forks; what it forks has none, and a channel that is closed.
        os.register_at_fork(after_in_child=self._forget_turns)

    def _forget_turns(self) -> None:
        self._turn = threading.Lock()

    def send(self, packets: Sequence[wire.Packet]) -> None:
        """Send a message, however long it takes until the parent reads."""
        with self._turn:
            for packet in packets:
                wire.send(self._channel, packet)

    def send_soon(self, packets: Sequence[wire.Packet], patience: float) -> bool:
        """Send a message of one packet; return False if that cannot be done within so many seconds, or any more."""
        (packet,) = packets
        assert isinstance(packet, bytes)  # noqa: S101 - for the type checker
        with self._turn:
            try:
                while True:
                    try:
                        self._channel.send(packet, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        if not self._writable(patience):
                            return False
                    else:
                        return True
            except OSError:  # closed: this is a process that a job has forked, or the parent is gone
                return False

    def _writable(self, patience: float) -> bool:
        poll = select.poll()
        poll.register(self._channel, select.POLLOUT)
        return bool(poll.poll(1000 * patience))
