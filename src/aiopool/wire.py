"""Frames: how parent and worker talk.

A frame is a header and a payload. The header names the frame's kind, its call and the payload's length,
all outside the pickle, so that whatever a payload holds, the reader knows whose it is and where the next
frame begins. Both ends use this module; it imports only the standard library.

====== ========= ======= ==========================================================
kind   direction call    payload
====== ========= ======= ==========================================================
CALL   down      its id  the function's pickle and the arguments' pickle, see `pack_call`
TIMED  down      its id  the same; the worker is to say when it begins
LEAVE  down      0       none: return from main, exit cleanly
READY  up        0       none: the initializer has run
UNFIT  up        0       a failure: the initializer raised
BEGUN  up        its id  none: this timed call begins
HEAVY  up        0       none: the worker uses more memory than it should
RESULT up        its id  the result's pickle
FAILED up        its id  a failure, see `aiopool.worker.failure`
====== ========= ======= ==========================================================
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

__all__ = ["Decoder", "Frame", "Kind", "WireError", "encode", "length", "pack_call", "unpack_call"]

HEADER = struct.Struct("<BQQ")
"""Kind, call id, length of the payload in bytes."""

FUNCTION_LENGTH = struct.Struct("<Q")

SCRATCH = 64 * 1024
"""Bytes asked for at once. A payload that does not fit gets a buffer of its own and is read straight into it."""


class Kind(enum.IntEnum):
    """What a frame means."""

    CALL = 1
    TIMED = 2
    LEAVE = 3
    READY = 4
    UNFIT = 5
    BEGUN = 6
    HEAVY = 7
    RESULT = 8
    FAILED = 9


class Frame(NamedTuple):
    """One message."""

    kind: int
    call: int
    payload: bytes | bytearray


class WireError(Exception):
    """The bytes on the channel are no frames; whoever wrote them cannot be trusted with another call."""


def encode(kind: Kind, call: int = 0, *parts: bytes) -> list[bytes]:
    """Return a frame as the buffers to write, in order; large parts are not copied."""
    header = HEADER.pack(kind, call, sum(map(len, parts)))
    return [header, *parts]


def length(parts: list[bytes]) -> int:
    """Return how many bytes a frame with this payload takes."""
    return HEADER.size + sum(map(len, parts))


def pack_call(function: bytes, arguments: bytes) -> list[bytes]:
    """Return the payload of a CALL: two pickles, told apart by the length of the first."""
    return [FUNCTION_LENGTH.pack(len(function)), function, arguments]


def unpack_call(payload: bytes | bytearray) -> tuple[memoryview, memoryview]:
    """Return the function's and the arguments' pickle out of the payload of a CALL."""
    view = memoryview(payload)
    (length,) = FUNCTION_LENGTH.unpack_from(view)
    start = FUNCTION_LENGTH.size
    return view[start : start + length], view[start + length :]


class Decoder:
    """Turns what arrives on a channel into frames, however the bytes are cut.

    The reader asks for `space`, receives into it, and says how much was `filled`. Small frames share one
    scratch buffer. A payload that is larger than what has arrived gets a buffer of its own size, and the rest
    of it lands there without a copy.
    """

    def __init__(self) -> None:
        self._scratch = bytearray(SCRATCH)
        self._end = 0  # how much of the scratch holds bytes not decoded yet
        self._large: bytearray | None = None
        self._large_end = 0
        self._large_head = (0, 0)

    def space(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._large is not None:
            return memoryview(self._large)[self._large_end :]
        return memoryview(self._scratch)[self._end :]

    def filled(self, count: int) -> list[Frame]:
        """Return the frames that are whole now that ``count`` more bytes are in `space`."""
        if self._large is not None:
            self._large_end += count
            if self._large_end < len(self._large):
                return []
            frame = Frame(*self._large_head, self._large)
            self._large = None
            return [frame]
        self._end += count
        return self._split()

    def _split(self) -> list[Frame]:
        frames = []
        start, end, scratch = 0, self._end, self._scratch
        while end - start >= HEADER.size:
            kind, call, length = HEADER.unpack_from(scratch, start)
            if not 1 <= kind <= len(Kind):
                raise WireError(f"no frame begins with byte {kind}")
            body = start + HEADER.size
            if length > end - body:
                if length > SCRATCH - HEADER.size:
                    self._begin_large(kind, call, length, memoryview(scratch)[body:end])
                    start = end
                break
            start = body + length
            frames.append(Frame(kind, call, bytes(memoryview(scratch)[body:start])))
        # What is left of a small frame moves to the front, so that there is always space for the rest of it.
        rest = end - start
        if start and rest:
            scratch[:rest] = scratch[start:end]
        self._end = rest
        return frames

    def _begin_large(self, kind: int, call: int, length: int, begun: memoryview) -> None:
        try:
            self._large = bytearray(length)
        except (MemoryError, OverflowError) as error:
            raise WireError(f"no memory for a frame of {length} bytes") from error
        self._large[: len(begun)] = begun
        self._large_end = len(begun)
        self._large_head = (kind, call)
