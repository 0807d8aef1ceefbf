"""Do something at an exact packet of what a worker and its pool say to one another: a wrapper around the channel.

`Line` follows one direction of a channel packet by packet; the channel is stopped at a `Point`. What is done there is
an *act*: it gets the `Tapped` channel, can kill its worker, and finds out what that one had read and written by then.
After it all goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from aiopool import wire
from aiopool.backends.channel import Channel
from aiopool.backends.process import WorkerProcess

UP, DOWN = "up", "down"

END = -1
"""The place behind a message's last packet."""

SO_PEEK_OFF = 42
"""An option of Linux's sockets: whoever peeks again sees what comes after that."""

LARGE = 500_000
"""Bytes, more than a socket holds."""

PLACES = {
    "small": (0, END),
    "in memory": (0, 1, END),
    "in pieces": (*range(1 + -(-LARGE // wire.PACKET)), END),
}
"""Between which packets a message has places: one packet, a header and a descriptor, a header and pieces."""


class Point(NamedTuple):
    """A place between two packets.

    Attributes:
        way: `UP` or `DOWN`.
        message: which one, from 0 on, counted from when the point was set.
        packet: how many of its packets have passed, or `END` for all; that comes before anybody has seen the message.
            At 0, the first one on its way up lies there already.
    """

    way: str
    message: int
    packet: int


class Message(NamedTuple):
    """One that has passed wholly.

    Attributes:
        kind: what it means.
        end: how many packets had passed when it had.
    """

    kind: int
    end: int


class Line:
    """Follows what passes in one direction.

    Attributes:
        messages: those that have passed wholly.
        packets: how many have passed.
        position: how many of them belong to a message that has not passed wholly.
    """

    def __init__(self) -> None:
        self.messages: tuple[Message, ...] = ()
        self.packets = self.position = 0
        self._kind = self._size = 0

    def passed(self, packet: bytes | memoryview) -> tuple[int, int]:
        """A packet has passed; return the place behind it: which message, and where in that."""
        if not self.position:
            self._kind, form, _, _, length = wire.HEADER.unpack_from(packet)
            self._size = {wire.Form.INLINE: 1, wire.Form.DESCRIPTOR: 2}.get(form, 1 + -(-length // wire.PACKET))
        self.packets += 1
        self.position += 1
        if self.position < self._size:
            return len(self.messages), self.position
        self.messages += (Message(self._kind, self.packets),)
        self.position = 0
        return len(self.messages) - 1, END


class Tapped:
    """Stands between a channel and its socket.

    Attributes:
        process: the worker's process.
        up: what has come from it.
        down: what has gone to it.
        struck: whether the point was reached.
        deaf: whether what comes is left where it lies.
    """

    def __init__(self, process: WorkerProcess, sock: socket.socket) -> None:
        self.process = process
        self.up, self.down = Line(), Line()
        self.struck = self.deaf = False
        self._sock = sock
        self._point: Point | None = None
        self._since = (0, 0)
        self._act: Callable[[Tapped], None] = kill

    def at(self, point: Point, act: Callable[[Tapped], None]) -> None:
        """Have something done at a point, once."""
        self._since = len(self.up.messages), len(self.down.messages)
        before = self._since[0 if point.way == UP else 1]
        self._point, self._act, self.struck = point._replace(message=before + point.message), act, False

    def forget(self) -> None:
        """Let the point pass."""
        self._point = None

    # What the worker has done, for acts.

    def fate(self, number: int = 0) -> str:
        """Return how a call must end, the ``number``-th since the point was set, when the worker has died."""
        up, (ups, downs) = copy.copy(self.up), self._since
        for packet in unread(self._sock):
            up.passed(packet)
        read = self.down.packets - len(unread(self.process._workers_end))
        if number < sum(message.kind in (wire.Kind.RESULT, wire.Kind.FAILED) for message in up.messages[ups:]):
            return "answered"
        return "died" if number < sum(message.end <= read for message in self.down.messages[downs:]) else "unseen"

    # What a channel asks of a socket.

    def fileno(self) -> int:
        """For the loop."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - a socket's own signature
        """Pass on."""
        self._sock.setblocking(flag)

    def close(self) -> None:
        """Pass on."""
        self._sock.close()

    def send(self, packet: bytes | memoryview) -> int:
        """Send a packet."""
        self._meet(DOWN, self.down)
        count = self._sock.send(packet)
        self._pass(DOWN, self.down, packet)
        return count

    def sendmsg(self, buffers: list[bytes], *descriptors: Any) -> int:
        """Send a packet with a descriptor."""
        count = self._sock.sendmsg(buffers, *descriptors)
        self._pass(DOWN, self.down, b"")
        return count

    def recv_into(self, view: memoryview, size: int, flags: int) -> int:
        """Receive a packet."""
        if self.deaf:
            raise BlockingIOError
        self._sock.recv(1, socket.MSG_PEEK | flags)  # raises BlockingIOError if there is none
        self._meet(UP, self.up)
        count = self._sock.recv_into(view, size, flags)
        self._pass(UP, self.up, view)
        return count

    def recvmsg(self, *args: int) -> Any:
        """Receive a packet with a descriptor."""
        received = self._sock.recvmsg(*args)
        self._pass(UP, self.up, b"")
        return received

    def _meet(self, way: str, line: Line) -> None:
        """A packet is about to pass; only before the first of a message has nothing else told that."""
        if not line.position:
            self._reach(way, len(line.messages), 0)

    def _pass(self, way: str, line: Line, packet: bytes | memoryview) -> None:
        self._reach(way, *line.passed(packet))

    def _reach(self, *place: Any) -> None:
        if self._point == place:
            self._point, self.struck = None, True
            self._act(self)


def unread(sock: socket.socket) -> list[bytes]:
    """Return the packets that have arrived at a socket and that nobody has read, and leave them there."""
    packets = []
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    with contextlib.suppress(BlockingIOError):
        while packet := sock.recv(wire.PACKET, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            packets.append(packet)
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
    return packets


def kill_and_wait(pid: int) -> None:
    """Kill a process; return when it has ended (it need not be reaped)."""
    with contextlib.suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid)) as pidfd:
        signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
        select.select([pidfd], [], [])


def kill(tapped: Tapped) -> None:
    """Kill the worker before it has read or written another packet."""
    assert tapped.process.pid is not None
    kill_and_wait(tapped.process.pid)


def kill_when_it_has_read(tapped: Tapped) -> None:
    """Kill the worker when it has read all that was sent to it so far."""
    with contextlib.suppress(BlockingIOError):
        while tapped.process._workers_end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os.sched_yield()
    kill(tapped)


class Taps:
    """All channels that are made in a test.

    Attributes:
        made: them, in their order.
        on_made: called with each new one.
    """

    def __init__(self) -> None:
        self.made: list[Tapped] = []
        self.on_made: Callable[[Tapped], None] = lambda _tapped: None

    def make(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_frames: Callable[[list[wire.Frame]], None],
        on_garbled: Callable[[], None],
    ) -> Channel:
        """Make a channel over a tapped socket."""
        process = on_frames.__self__  # type: ignore[attr-defined]
        tapped: Any = Tapped(process, sock)
        self.made.append(tapped)
        self.on_made(tapped)
        return Channel(loop, tapped, on_frames, on_garbled)

    def of(self, pid: int) -> Tapped:
        """Return the channel to this process."""
        return next(tapped for tapped in reversed(self.made) if tapped.process.pid == pid)
