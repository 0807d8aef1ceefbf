"""Large payloads: what a pickle left outside of itself, and pickles that are large themselves.

A parcel lies in anonymous memory whose descriptor is passed to the other process, which maps it: it is copied once,
by whoever sends it. The memory has no name, so nothing is left of it when both processes are gone, however they
went. Where there is no such memory, or no descriptor left, it lies in a buffer, and travels through the socket.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
from collections.abc import Sequence

__all__ = ["LARGE", "Parcel", "Payload", "dumps", "parts_of", "wrap"]

LARGE = 32 * 1024
"""Bytes from which on a buffer stays outside of its pickle."""

ALIGNMENT = 64
"""Each part begins at a multiple of this: what computes with vectors wants that."""

MOST_PARTS = 1000
"""Buffers in a parcel; the table of their lengths is to fit in one packet."""


class Parcel:
    """Some parts, one behind the other.

    Args:
        parts: each given as the pieces that it is made of.

    Attributes:
        lengths: of the parts.
        size: of all, with the gaps between them.
        descriptor: of the memory that they lie in, or None.
        content: the parts, where there is no descriptor.
    """

    __slots__ = ("content", "descriptor", "lengths", "size")

    def __init__(self, parts: Sequence[Sequence[bytes | memoryview]]) -> None:
        self.lengths = [sum(map(len, part)) for part in parts]
        self.size = sum(map(_padded, self.lengths))
        self.descriptor: int | None = None
        self.content = memoryview(b"")
        pieces: list[bytes | memoryview] = []
        for part, length in zip(parts, self.lengths, strict=True):
            pieces += (*part, bytes(_padded(length) - length))
        try:
            self.descriptor = os.memfd_create("aiopool")
            _write(self.descriptor, pieces)
        except (OSError, AttributeError):  # no descriptor or no memory left, or a system without
            self.close()
            self.content = memoryview(b"".join(pieces))

    def close(self) -> None:
        """Let go of the memory."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    __del__ = close

    @staticmethod
    def view(descriptor: int, access: int) -> memoryview:
        """Map the memory of a parcel that has come, and close the descriptor."""
        try:
            return memoryview(mmap.mmap(descriptor, 0, access=access))
        finally:
            os.close(descriptor)


Payload = bytes | Parcel
"""What travels in a message."""


def dumps(value: object) -> tuple[bytes, list[memoryview]]:
    """Return a pickle, and the large buffers that it leaves outside; those are not copied yet."""
    buffers: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE or len(buffers) >= MOST_PARTS:
            return True
        buffers.append(raw)
        return False

    return pickle.dumps(value, protocol=5, buffer_callback=inside), buffers


def wrap(pickled: bytes, buffers: Sequence[memoryview], most: int, head: bytes = b"") -> Payload:
    """Return a payload that begins with ``head``: a parcel if there are buffers, or more than so many bytes."""
    if not buffers and len(head) + len(pickled) <= most:
        return head + pickled
    return Parcel([(head, pickled), *((buffer,) for buffer in buffers)])


def parts_of(content: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Return the parts of a parcel; raise ValueError if they do not make it up."""
    starts = [0, *itertools.accumulate(map(_padded, lengths))]
    if starts[-1] != len(content):
        raise ValueError(lengths)
    return [content[start : start + length] for start, length in zip(starts, lengths, strict=False)]


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _write(descriptor: int, pieces: Sequence[bytes | memoryview]) -> None:
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
