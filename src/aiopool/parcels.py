"""Large payloads: what a pickle left outside of itself, and pickles that are large themselves.

A parcel lies in anonymous memory whose descriptor is passed to the other process. That maps it, where it is worth it:
then it has been copied once, by whoever sent it. The memory has no name, so nothing is left of it when both processes
are gone, however they went. Where there is no such memory, or no descriptor left, it lies in a buffer, and travels
through the socket.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import pickle
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, cast

from .arena import Arena, Block, open_as, write

__all__ = ["LARGE", "Parcel", "Payload", "SharedParcel", "dumps", "parts_of", "size_of", "wrap"]

LARGE = 32 * 1024
"""Bytes from which on a buffer stays outside of its pickle."""

ALIGNMENT = 64
"""Each part begins at a multiple of this: what computes with vectors wants that."""

MAPPED = 1024 * 1024
"""Bytes from which on the memory of a parcel is mapped. Less is copied: a process may have so many mappings only."""

MOST_DESCRIPTORS = 64
"""Parcels of this process that have a descriptor, at the same time: the program needs some for other things."""

MOST_MAPPED = 256
"""Parcels that have come and are mapped, at the same time: a mapping, too, has a descriptor. The next are copied."""

MOST_SHARED = 256
"""The same for parcels that are sent again and again. Without a descriptor each time is a copy, so they get more."""

MOST_PARTS = 8000
"""Buffers in a parcel; the table of their lengths is to fit in one packet."""


class Parcel:
    """Some parts, one behind the other.

    Args:
        parts: each given as the pieces that it is made of.
        arena: has memory for it, if it is large enough to be mapped.

    Attributes:
        lengths: of the parts.
        size: of all, with the gaps between them.
        descriptor: of the memory that they lie in, or None.
        content: the parts, where there is no descriptor.
    """

    __slots__ = ("__weakref__", "_arena", "_block", "content", "descriptor", "lengths", "size")

    most: ClassVar[int] = MOST_DESCRIPTORS
    with_descriptor: ClassVar[weakref.WeakSet[Parcel]] = weakref.WeakSet()

    def __init__(self, parts: Sequence[Sequence[bytes | memoryview]], arena: Arena | None = None) -> None:
        self.descriptor: int | None = None
        self._block: Block | None = None
        self.lengths: list[int] = [sum(map(len, part)) for part in parts]
        self.size: int = size_of(self.lengths)
        self.content: memoryview = memoryview(b"")
        self._arena = arena if self.size >= MAPPED else None
        pieces: list[bytes | memoryview] = []
        for part, length in zip(parts, self.lengths, strict=True):
            pieces += (*part, bytes(_padded(length) - length))
        try:
            self._fill_memory(pieces)
        except (OSError, AttributeError) as error:  # no descriptor or no memory left, or a system without
            self.close()
            if isinstance(error, OSError) and error.errno is None:  # not the system's: a signal's handler raised it
                raise
        if self.descriptor is None:
            self.content = memoryview(b"".join(pieces))

    def _fill_memory(self, pieces: Sequence[bytes | memoryview]) -> None:
        if len(self.with_descriptor) >= self.most:
            return
        if self._arena is not None and self._arena.works:
            block = self._arena.take(self.size)
            block.fill(pieces)
            block.lend(self)
            self._block = block
            self.with_descriptor.add(self)
        else:
            open_as(self, "descriptor", os.memfd_create, "aiopool")
            self.with_descriptor.add(self)
            write(cast("int", self.descriptor), pieces)

    def close(self) -> None:
        """Let go of the memory."""
        if self.descriptor is not None:
            self.with_descriptor.discard(self)
            descriptor, self.descriptor = self.descriptor, None  # first: a signal's handler may raise behind any call
            os.close(descriptor)
        if self._block is not None and self._arena is not None:
            self._arena.put(self._block)
            self._block = None

    def __del__(self) -> None:
        if hasattr(self, "_arena"):  # else it was interrupted before it had anything
            self.close()

    def copy(self) -> memoryview:
        """Return a copy of what lies in its memory. It takes no other descriptor."""
        assert self.descriptor is not None  # noqa: S101 - for the type checker
        return _read(self.descriptor, self.size)

    def parts(self) -> list[memoryview]:
        """Return the parts, which the caller may write to: for where the memory itself cannot be passed on."""
        if self.descriptor is None:
            content = memoryview(bytearray(self.content))
        else:
            content = self.view(os.dup(self.descriptor), self.size, mmap.ACCESS_COPY)
        return parts_of(content, self.lengths)

    @staticmethod
    def view(descriptor: int, size: int, access: int) -> memoryview:
        """Return the content of a parcel that has come, and close the descriptor. What is only read is not copied."""
        try:
            if access == mmap.ACCESS_READ or (size >= MAPPED and len(_mapped) < MOST_MAPPED):
                with contextlib.suppress(OSError):  # no more mappings
                    return memoryview(_map(descriptor, size, access))
            return _read(descriptor, size)
        finally:
            os.close(descriptor)


_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def _map(descriptor: int, size: int, access: int) -> mmap.mmap:
    mapping = mmap.mmap(descriptor, size, access=access)
    if access != mmap.ACCESS_READ:  # those have a limit of their own, where they are sent
        _mapped.add(mapping)
    return mapping


class SharedParcel(Parcel):
    """One that is sent again and again."""

    __slots__ = ()

    most: ClassVar[int] = MOST_SHARED
    with_descriptor: ClassVar[weakref.WeakSet[Parcel]] = weakref.WeakSet()


def _close_in_child() -> None:
    for parcel in [*Parcel.with_descriptor, *SharedParcel.with_descriptor]:
        parcel.close()


# A forked child sends none of them, and would hold their memory for as long as it lives.
os.register_at_fork(after_in_child=_close_in_child)


Payload = bytes | Parcel
"""What travels in a message."""


def dumps(
    value: object,
    least: float = LARGE,
    notice: Callable[[memoryview], None] | None = None,
    pickled: Callable[..., bytes] = pickle.dumps,
) -> tuple[bytes, list[memoryview]]:
    """Return a pickle, and the buffers that it leaves outside; those are not copied yet.

    Args:
        value: what to pickle.
        least: bytes from which on a buffer stays outside.
        notice: called with each buffer, also those that stay inside.
        pickled: `pickle.dumps`, or what takes its place.
    """
    buffers: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if notice is not None:
            notice(raw)
        if raw.nbytes < least or len(buffers) >= MOST_PARTS:
            return True
        buffers.append(raw)
        return False

    return pickled(value, protocol=5, buffer_callback=inside), buffers


def wrap(
    pickled: bytes,
    buffers: Sequence[memoryview],
    most: int,
    head: bytes = b"",
    kind: type[Parcel] = Parcel,
    arena: Arena | None = None,
) -> Payload:
    """Return a payload that begins with ``head``: a parcel if there are buffers, or more than so many bytes."""
    if not buffers and len(head) + len(pickled) <= most:
        return head + pickled
    return kind([(head, pickled), *((buffer,) for buffer in buffers)], arena)


def parts_of(content: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Return the parts of a parcel."""
    starts = [0, *itertools.accumulate(map(_padded, lengths))]
    return [content[start : start + length] for start, length in zip(starts, lengths, strict=False)]


def size_of(lengths: Iterable[int]) -> int:
    """Return the size of a parcel that has parts of so many bytes."""
    return sum(map(_padded, lengths))


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _read(descriptor: int, size: int) -> memoryview:
    content, end = memoryview(bytearray(size)), 0
    while end < size:
        count = os.preadv(descriptor, [content[end:]], end)
        if not count:
            raise OSError(errno.EIO, "the memory of a message has been cut short")
        end += count
    return content
