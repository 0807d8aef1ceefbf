"""Messages: how parent and worker talk, over a socket that keeps messages apart (SOCK_SEQPACKET).

A message is a header and a payload. The header names the message's kind, its call (or share) and the payload's length,
all outside the pickle, so that whatever a payload holds, the reader knows whose it is. A payload that is too large for
one packet is a `Parcel`: the header's packet tells the lengths of its parts, and is followed by a packet with a
descriptor of the memory that they lie in, or else by pieces. Both ends use this module; it imports only the standard
library.

===================== ========= ======= ===========================================================================
kind                  direction id      payload
===================== ========= ======= ===========================================================================
CALL                  down      its id  the function's pickle and the arguments' pickle, see `function_part`
TIMED                 down      its id  the same; the worker is to say when it begins
COROUTINE             down      its id  the same as CALL, of a coroutine function
TIMED_COROUTINE       down      its id  the same; the worker is to say when it begins
GENERATOR             down      its id  the same as CALL, of a generator function; the number says how many values
                                        may be sent at first
TIMED_GENERATOR       down      its id  the same; the worker is to say when it begins
ASYNC_GENERATOR       down      its id  the same as GENERATOR, of an async generator function, which shares its worker
TIMED_ASYNC_GENERATOR down      its id  the same; the worker is to say when it begins
SHARE                 down      its id  the pickle of an object that the call behind it shares with others
DROP                  down      its id  none: the worker is to forget what was shared
LEAVE                 down      0       none: return from main, exit cleanly
READY                 up        0       none: the initializer has run
UNFIT                 up        0       a failure: the initializer raised
BEGUN                 up        its id  none: this call begins, which is timed, or is large and shares its worker
HEAVY                 up        0       none: the worker uses more memory than it should
PROGRESS              up        its id  what the call reports, pickled
VALUE                 up        its id  what the generator yields, pickled
LOG                   up        0       a log record
UNLOGGED              up        number  none: so many log records have been dropped since that was last told
RESULT                up        its id  the result's pickle
FAILED                up        its id  a failure, see `aiopool.failures`
===================== ========= ======= ===========================================================================

One packet is one small message, never more. So a message that nobody has read can be taken back by the process that
sent it, from a reader that is busy, stopped or dead.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence

from .parcels import Parcel, parts_of, size_of
from .sharing import CallPayload, Sharing

__all__ = [
    "Decoder", "Frame", "Kind", "Packet", "WireError",
    "are_too_many", "call_of", "encode", "frames_of", "function_part", "in_pieces", "is_bare", "lasting_scratch",
    "packets", "receive", "send", "send_all", "unpack_call",
]  # fmt: skip

HEADER = struct.Struct("<BBQQQ")
"""Kind, form, a number (of an answer, the nanoseconds that it took), call id, length of the payload in bytes."""

HEADED = HEADER.size
"""So many bytes come before the payload."""

GLIMPSE = HEADED + 1
"""As many bytes of a packet as tell what it is."""

LENGTH = struct.Struct("<Q")

DESCRIPTOR = struct.Struct("i")

ATTACHED, FOLLOWING = b".", b":"
"""What the packet says that is to have a descriptor: here it is; or, it could not be sent, and pieces follow."""

PACKET = 64 * 1024
"""The most bytes of one packet."""

NOT_INHERITED = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

LARGEST = PACKET - HEADED
"""The most bytes of a payload that travels in the packet of its header."""


class Kind(enum.IntEnum):
    """What a message means."""

    CALL = 1
    TIMED = 2
    COROUTINE = 3
    TIMED_COROUTINE = 4
    GENERATOR = 5
    TIMED_GENERATOR = 6
    ASYNC_GENERATOR = 7
    TIMED_ASYNC_GENERATOR = 8
    SHARE = 9
    DROP = 10
    LEAVE = 11
    READY = 12
    UNFIT = 13
    BEGUN = 14
    HEAVY = 15
    LOG = 16
    PROGRESS = 17
    VALUE = 18
    RESULT = 19
    FAILED = 20
    UNLOGGED = 21


class Form(enum.IntEnum):
    """How a payload travels."""

    INLINE = 0
    """Behind its header."""
    PIECES = 1
    """In packets that hold nothing else."""
    DESCRIPTOR = 2
    """In memory that the next packet has a descriptor of."""


LAST_KIND, INLINE = len(Kind), int(Form.INLINE)
"""What each message needs; an enumeration takes longer to ask."""


class Frame:
    """One message, as it was received. A named tuple would take twice as long to make.

    Attributes:
        kind: what it means.
        number: in an answer, for how many nanoseconds the worker was busy with the call; in a stream's call, how many
            values it may send at first; else 0.
        call: the id of the call, or of the share, that it is about, or 0.
        payload: what belongs to it; None if it has been lost: this process has no memory or descriptor for it.
        buffers: what the payload's pickle left outside.
    """

    __slots__ = ("buffers", "call", "kind", "number", "payload")

    def __init__(
        self, kind: int, number: int, call: int, payload: bytes | memoryview | None, buffers: Sequence[memoryview] = ()
    ) -> None:
        self.kind: int = kind
        self.number: int = number
        self.call: int = call
        self.payload: bytes | memoryview | None = payload
        self.buffers: Sequence[memoryview] = buffers


Packet = bytes | memoryview | Parcel
"""What is sent at once; a parcel is sent as the descriptor of its memory."""


class WireError(Exception):
    """What came over the channel is no message; whoever wrote it cannot be trusted with another call."""


def encode(kind: int, call: int = 0, payload: CallPayload = b"", number: int = 0) -> list[Packet]:
    """Return a message as the packets to send, in order, behind those it needs. A parcel is not copied."""
    if isinstance(payload, Sharing):
        before = [packet for share in payload.shares for packet in encode(Kind.SHARE, share.id, share.payload)]
        return before + encode(kind, call, payload.payload, number)
    if isinstance(payload, bytes):
        return [HEADER.pack(kind, INLINE, number, call, len(payload)) + payload]
    table = b"".join(map(LENGTH.pack, payload.lengths))
    form = Form.PIECES if payload.descriptor is None else Form.DESCRIPTOR
    header = HEADER.pack(kind, form, number, call, payload.size) + table
    if payload.descriptor is not None:
        return [header, payload]
    return [header, *_pieces(payload.content)]


def _pieces(content: memoryview) -> list[memoryview]:
    return [content[start : start + PACKET] for start in range(0, len(content), PACKET)]


def packets(payload: CallPayload) -> int:
    """Return how many packets a message with this payload takes, those included that it needs before."""
    if isinstance(payload, Sharing):
        return packets(payload.payload) + sum(packets(share.payload) for share in payload.shares)
    if isinstance(payload, bytes):
        return 1
    return 2 if payload.descriptor is not None else 1 + -(-payload.size // PACKET)


def call_of(packet: Packet) -> int:
    """Return the id in a packet that is a message, or begins one."""
    call: int = 0 if isinstance(packet, Parcel) else HEADER.unpack_from(packet)[3]
    return call


def is_bare(packet: Packet) -> bool:
    """Whether a packet, or a glimpse of one, is a message without a payload: no piece has the same length."""
    return not isinstance(packet, Parcel) and len(packet) == HEADED


def function_part(pickled: bytes) -> bytes:
    """Return the first part of a CALL's payload: a function's pickle, and where it ends. The arguments' follows it."""
    return LENGTH.pack(len(pickled)) + pickled


def unpack_call(payload: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
    """Return the function's and the arguments' pickle out of the payload of a CALL; only the latter may be large."""
    (length,) = LENGTH.unpack_from(payload)
    end = LENGTH.size + length
    return bytes(payload[LENGTH.size : end]), payload[end:]


def send(sock: socket.socket, packet: Packet) -> None:
    """Send a packet."""
    if isinstance(packet, Parcel):
        sock.sendmsg(*_message_of(packet))
    else:
        sock.send(packet)


def send_all(sock: socket.socket, packets: Sequence[Packet], sent: deque[int]) -> None:
    """Send packets, and add an item to ``sent`` for each.

    That is one step, written in C: where a signal's handler raises, be it that the socket has to wait, it is known what
    was sent.
    """
    messages = [_message_of(packet) for packet in packets]
    sent.extend(map(sock.sendmsg, [content for content, _ in messages], [extra for _, extra in messages]))


def _message_of(packet: Packet) -> tuple[list[bytes | memoryview], list[tuple[int, int, bytes]]]:
    if isinstance(packet, Parcel):
        return [ATTACHED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, DESCRIPTOR.pack(packet.descriptor or 0))]
    return [packet], []


def are_too_many(error: OSError) -> bool:
    """Whether a descriptor could not be sent because this user has too many on their way: Linux counts them."""
    return error.errno == errno.ETOOMANYREFS


def in_pieces(parcel: Parcel) -> list[Packet]:
    """Return what takes the place of a parcel whose descriptor cannot be sent, though its header was."""
    return [FOLLOWING, *_pieces(parcel.copy())]


def receive(sock: socket.socket, decoder: Decoder, flags: int = 0) -> Frame | None:
    """Receive a packet; return the message that it completes, or None.

    Raises:
        WireError: it is no part of a message.
        ConnectionResetError: the other end is closed.
    """
    if decoder.awaits_descriptor:
        said, descriptors, _, _ = socket.recv_fds(sock, 1, 1, flags | NOT_INHERITED)
        if said != FOLLOWING:
            return decoder.attached(descriptors)
        decoder.expect_pieces()
        return None
    return decoder.filled(sock.recv_into(decoder.space, 0, flags))


class Decoder:
    """Turns packets into messages.

    The reader receives one packet into its `space`, and says how much was `filled`. A payload that comes in pieces has
    a buffer of its own, into which they are received without a copy.

    Args:
        access: how the memory of a parcel is mapped, see `mmap.mmap`. Either way the receiver may write to it, but
            for what is shared.
        scratch: where packets go that are no piece of a larger message.

    Attributes:
        awaits_descriptor: whether the next packet is to have one, and is not for `filled` but for `attached`.
        space: where the next packet goes; never empty.
    """

    def __init__(self, access: int = mmap.ACCESS_COPY, scratch: memoryview | None = None) -> None:
        self.awaits_descriptor: bool = False
        self._access = access
        self._scratch = memoryview(bytearray(PACKET)) if scratch is None else scratch
        self.space: memoryview = self._scratch
        self._head = (0, 0, 0)
        self._size = 0
        self._lengths: Sequence[int] = ()
        self._large: memoryview | None = None  # where pieces go
        self._unkept = 0  # bytes that are still to come in pieces for which there is no memory

    def filled(self, count: int) -> Frame | None:
        """Return the message that a packet of ``count`` bytes in `space` completes, or None."""
        if not count:
            raise ConnectionResetError("the other end is closed")
        if self._large is not None:
            return self._piece(self._large, count)
        if self._unkept:
            return self._passed_over(count)
        if count < HEADED:
            raise WireError(f"no message has {count} bytes")
        kind, form, number, call, length = HEADER.unpack_from(self._scratch)
        if not 1 <= kind <= LAST_KIND:
            raise WireError(f"no message begins with byte {kind}")
        if form == INLINE:
            if count != HEADED + length:
                raise WireError(f"a message of {count} bytes says that it has {HEADED + length}")
            return Frame(kind, number, call, bytes(self._scratch[HEADED:count]))
        self._head = (kind, number, call)
        self._begin_parcel(form, length, count)
        return None

    def attached(self, descriptors: Sequence[int]) -> Frame:
        """Return the message that a packet with this descriptor completes."""
        self.awaits_descriptor = False
        if not descriptors:
            return Frame(*self._head, None)
        try:
            content = Parcel.view(descriptors[0], self._size, mmap.ACCESS_READ if self._shared() else self._access)
        except (OSError, MemoryError, ValueError, OverflowError):  # the last two of memory that is not so large
            return Frame(*self._head, None)
        return self._parcel(content)

    def expect_pieces(self) -> None:
        """The descriptor does not come; the content does, in pieces."""
        self.awaits_descriptor = False
        try:
            self._large = self.space = memoryview(bytearray(self._size))
        except MemoryError:
            self._unkept = self._size

    def _shared(self) -> bool:
        return self._head[0] == Kind.SHARE

    def _begin_parcel(self, form: int, length: int, count: int) -> None:
        table = bytes(self._scratch[HEADED:count])
        if form not in (Form.PIECES, Form.DESCRIPTOR) or not table or len(table) % LENGTH.size:
            raise WireError(f"no message of {count} bytes has the form {form}")
        self._size, self._lengths = length, [length for (length,) in LENGTH.iter_unpack(table)]
        if not 0 < length <= sys.maxsize or length != size_of(self._lengths):
            raise WireError(f"no parcel of {length} bytes has parts of {self._lengths} bytes")
        self.awaits_descriptor = form == Form.DESCRIPTOR
        if form == Form.PIECES:
            self.expect_pieces()

    def _piece(self, large: memoryview, count: int) -> Frame | None:
        self.space = self.space[count:]
        if self.space:
            return None
        self._large, self.space = None, self._scratch
        return self._parcel(large)

    def _passed_over(self, count: int) -> Frame | None:
        self._unkept = max(0, self._unkept - count)
        return None if self._unkept else Frame(*self._head, None)

    def _parcel(self, content: memoryview) -> Frame:
        if self._shared():
            content = content.toreadonly()
        payload, *buffers = parts_of(content, self._lengths)
        return Frame(*self._head, payload, buffers)


def lasting_scratch() -> memoryview:
    """Return memory for packets that takes no more than the largest that has come: most are small."""
    try:
        return memoryview(mmap.mmap(-1, PACKET, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError:  # no more mappings
        return memoryview(bytearray(PACKET))


def frames_of(packets: Sequence[Packet]) -> list[Frame]:
    """Return the messages that these packets are, as if they had come through a channel."""
    decoder, frames = Decoder(), list[Frame]()
    for packet in packets:
        frame: Frame | None
        if isinstance(packet, Parcel):
            frame = decoder.attached([os.dup(packet.descriptor or 0)])
        else:
            decoder.space[: len(packet)] = packet
            frame = decoder.filled(len(packet))
        if frame is not None:
            frames.append(frame)
    return frames
