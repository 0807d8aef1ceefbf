"""The parent's end of a worker's channel: messages over a socket, on the event loop.

It stands on ``add_reader`` and ``add_writer`` rather than on a transport: what is sent is written from where it
lies, a large payload is received into its own buffer, and closing is silent even when the loop is closed already.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections import deque
from collections.abc import Callable, Sequence

from .. import wire

__all__ = ["Channel"]

MOST_FRAMES = 256
"""Messages received before others in the loop have their turn; by Linux's default a channel holds some 280 at most."""

CROWDED = 0.01
"""Seconds until a descriptor is sent again that could not be, since this user has too many on their way. No event tells
when there are fewer."""

ANSWER = int(wire.Kind.RESULT)
"""From here on, kinds of messages are answers; a member of an enumeration takes longer to compare."""


class Channel:
    """Sends without waiting, reports what arrives.

    Args:
        loop: where it is used.
        sock: connected, owned by the channel from now on.
        on_frames: called with the messages that have arrived.
        on_garbled: called once, when what arrives is no message.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_frames: Callable[[list[wire.Frame]], None],
        on_garbled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()  # for the loop: uvloop keeps a socket that it is given open beyond its close()
        self._on_frames = on_frames
        self._on_garbled = on_garbled
        self._decoder = wire.Decoder(mmap.ACCESS_WRITE, wire.lasting_scratch())
        self._unsent: deque[wire.Packet] = deque()  # packets that the kernel has not taken yet
        self._crowded: asyncio.TimerHandle | None = None  # when to go on
        self._last = 0  # the call that was sent last
        self._garbled = False
        sock.setblocking(False)
        loop.add_reader(self._fd, self._receive)

    def send(self, packets: Sequence[wire.Packet], call: int = 0) -> None:
        """Send a message about a call. To a worker that is gone nothing is sent: its death is reported elsewhere."""
        self._last = call
        waiting = bool(self._unsent)
        self._unsent.extend(packets)
        if not waiting:
            self._transmit()
            if self._unsent and self._crowded is None:
                self._loop.add_writer(self._fd, self._resume)

    def take_unsent(self) -> list[wire.Packet]:
        """Return the packets that the kernel has not taken, and do not send them."""
        packets = list(self._unsent)
        if packets:
            self._unsent.clear()
            self._loop.remove_writer(self._fd)
        return packets

    def listen(self) -> None:
        """Report all that has arrived."""
        if not self._garbled and self._receive():
            self._receive()  # not until there is nothing: a worker may send faster than we read

    def pause_reading(self) -> None:
        """Report what arrives only when `listen` is called."""
        self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Report what arrives, as at first."""
        if not self._garbled:
            self._loop.add_reader(self._fd, self._receive)

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
            if self._crowded is not None:
                self._crowded.cancel()
            self._sock.close()

    def _resume(self) -> None:
        self._transmit()
        if not self._unsent or self._crowded is not None:
            self._loop.remove_writer(self._fd)

    def _try_again(self) -> None:
        self._crowded = None
        self._transmit()
        if self._unsent and self._crowded is None:
            self._loop.add_writer(self._fd, self._resume)

    def _transmit(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                wire.send(self._sock, unsent[0])
                unsent.popleft()
        except BlockingIOError:
            pass  # `_resume` goes on
        except OSError as error:
            if wire.are_too_many(error):
                self._crowded = self._loop.call_later(CROWDED, self._try_again)
            # Else nobody can read it any more; that is for the worker's death to report.

    def _receive(self) -> bool:
        """Report what there is; return whether there may be more."""
        frames: list[wire.Frame] = []
        garbled = more = False
        decoder, sock = self._decoder, self._sock
        try:
            for _ in range(MOST_FRAMES):
                frame = wire.receive(sock, decoder)
                if frame is None:
                    continue
                frames.append(frame)
                if frame.call == self._last and frame.kind >= ANSWER:
                    break  # the last of its calls, most likely; if anything else comes, the loop will tell
            more = True
        except BlockingIOError:
            pass  # that was all
        except (OSError, wire.WireError):
            garbled = True
        if frames:
            self._on_frames(frames)
        if garbled and sock.fileno() != -1:
            self._garbled = True
            self._loop.remove_reader(self._fd)
            self._on_garbled()
        return more
