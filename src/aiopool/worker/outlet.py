"""The worker's way to the parent: whole messages, from whichever thread."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque

from .. import wire
from ..parcels import Parcel
from .current import Calls

__all__ = ["Outlet"]


class Outlet:
    """Sends messages over the worker's channel. A message may take several packets, so one is sent at a time.

    A signal's handler or a destructor may send while its own thread is sending: its message goes behind the present
    one, by the hand that sends that.

    Args:
        channel: to the parent.
        control: holds off interruptions while a message is sent in part.
    """

    def __init__(self, channel: socket.socket, control: Calls) -> None:
        self._channel = channel
        self._control = control
        self._begin()
        # Another thread may be sending when a job forks; what it forks has none, and a channel that is closed.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._turn = threading.RLock()
        self._unsent: deque[tuple[list[wire.Packet], float | None]] = deque()
        self._sending = False
        self._rest: list[wire.Packet] = []  # of a message that has several
        self._sent: deque[int] = deque()  # an item for each of them that was sent
        self._dropped = 0

    def send(self, packets: list[wire.Packet], patience: float | None = None) -> None:
        """Send a message, behind the news of how many were dropped before it.

        Args:
            packets: of the message; none for that news alone.
            patience: seconds that a message of one packet waits for the parent to read before it is dropped; those
                after it do not wait then. None to wait however long it takes.
        """
        with self._turn:
            self._unsent.append((packets, patience))
            while self._unsent and not self._sending:  # asked again, since one may come when the inner loop has ended
                self._sending = True
                try:
                    while self._unsent:
                        if self._rest and self._unsent[0][1] is None:  # a signal's handler has raised as it was sent
                            self._control.uninterrupted(self._send_rest)
                        self._send_whole(*self._unsent.popleft())
                finally:
                    self._sending = False

    def _send_whole(self, packets: list[wire.Packet], patience: float | None) -> None:
        if self._dropped:
            patience = patience and 0.0
        if self._rest or (self._dropped and not self._tell_of_dropped(patience)):
            self._dropped += 1
        elif len(packets) > 1:
            self._rest, self._sent = packets, deque()
            self._control.uninterrupted(self._send_rest)
        elif packets and not self._put(packets[0], patience):
            self._dropped += 1

    def _tell_of_dropped(self, patience: float | None) -> bool:
        (news,) = wire.encode(wire.Kind.UNLOGGED, self._dropped)
        if not self._put(news, patience):
            return False
        self._dropped = 0
        return True

    def _send_rest(self) -> None:
        while (place := len(self._sent)) < len(self._rest):
            try:
                wire.send_all(self._channel, self._rest[place:], self._sent)
            except OSError as error:
                place = len(self._sent)
                parcel = self._rest[place]
                if not wire.are_too_many(error) or not isinstance(parcel, Parcel):
                    raise
                self._rest[place : place + 1] = wire.in_pieces(parcel)
        for packet in self._rest:
            if isinstance(packet, Parcel):
                packet.close()
        self._rest.clear()  # now, and closed: what is raised in a destructor is lost

    def _put(self, packet: wire.Packet, patience: float | None) -> bool:
        """Send a packet; return False if that cannot be done within so many seconds, or any more."""
        if patience is None:
            wire.send(self._channel, packet)
            return True
        assert isinstance(packet, bytes)  # noqa: S101 - for the type checker
        try:
            while True:
                try:
                    self._channel.send(packet, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    if not self._writable(patience):
                        return False
                else:
                    return True
        except OSError as error:
            if error.errno is None:  # not the system's: a signal's handler of the job's raised it
                raise
            return False  # closed: this is a process that a job has forked, or the parent is gone

    def _writable(self, patience: float) -> bool:
        poll = select.poll()
        poll.register(self._channel, select.POLLOUT)
        return bool(poll.poll(1000 * patience))
