"""Memory for large parcels that is used again: new memory takes the system several times as long as filling it.

Whoever gets a parcel maps its memory, for as long as it likes; until then nobody may write there again. So it is given
a file description of its own, with a lock. The kernel gives the lock up with the last that stands on that description:
a descriptor, a mapping, a message under way, in whichever process, and however that ends. Nobody has to say that it is
done, and a process that is killed keeps nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["Arena", "Block", "open_as", "write"]

MOST_KEPT = 256 * 1024 * 1024
"""Bytes of memory that an arena keeps, if it is not used at present."""

MOST_BLOCKS = 16
"""The same in blocks: each has a descriptor, and another one for its mapping."""

LASTING = 1.0
"""Seconds for which a block is kept that is not used."""

NOTHING: memoryview = memoryview(b"")

SHARED: int = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
"""Mapped for all to see, and on Linux all at once: page by page it takes several times as long."""


class Borrower(Protocol):
    """Who gets a block's memory.

    Attributes:
        descriptor: of it, for the borrower to close, even if something is raised.
    """

    descriptor: int | None


class Block:
    """Memory without a name, so nothing is left of it.

    Args:
        size: the most that is to be written to it, in bytes.

    Attributes:
        size: the same.
        written: how much has been; the rest takes no memory.
        put_at: when it was put into an arena, by the monotonic clock.
    """

    __slots__ = ("_content", "_descriptor", "_mapping", "put_at", "size", "written")

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.written: int = 0
        self.put_at: float = 0.0
        self._mapping: mmap.mmap | None = None
        self._content: memoryview = NOTHING
        self._descriptor: int = -1
        open_as(self, "_descriptor", os.memfd_create, "aiopool")

    def fill(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write these, one behind the other. What has been written to before is mapped, and that is fastest."""
        size = sum(map(len, pieces))
        if size > self.written:
            write(self._descriptor, pieces)
            self.written = size
            return
        if len(self._content) < size:
            self._map()
        content, start = self._content, 0
        for piece in pieces:
            content[start : start + len(piece)] = piece
            start += len(piece)

    def _map(self) -> None:
        self._unmap()
        self._mapping = mmap.mmap(self._descriptor, self.written, SHARED)
        self._content = memoryview(self._mapping)

    def _unmap(self) -> None:
        if self._mapping is not None:
            self._content.release()
            self._mapping.close()
            self._content, self._mapping = NOTHING, None

    def lend(self, borrower: Borrower) -> None:
        """Give somebody a descriptor; as long as anything stands on what it describes, this is not free."""
        open_as(borrower, "descriptor", os.open, f"/proc/self/fd/{self._descriptor}", os.O_RDWR | os.O_CLOEXEC)
        assert borrower.descriptor is not None  # noqa: S101 - for the type checker
        fcntl.flock(borrower.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    @property
    def free(self) -> bool:
        """Whether nobody has it any more."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True

    def __del__(self) -> None:
        self._unmap()
        if self._descriptor != -1:  # else it could not be made
            os.close(self._descriptor)


_put_at = attrgetter("put_at")


class Arena:
    """The blocks of one owner. Any thread may use it, and destructors may."""

    def __init__(self) -> None:
        self._kept: list[Block] = []  # which it has not lent, the oldest first; others may still have them
        self._works: bool | None = None
        self._most = MOST_BLOCKS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._attended = False
        _arenas.add(self)

    @property
    def works(self) -> bool:
        """Whether blocks can be had here at all."""
        if self._works is None:
            self._works = _locks_last()
        return self._works

    def take(self, size: int) -> Block:
        """Return a free block for so many bytes; raise OSError if there is no more memory, or no descriptor left."""
        size = 1 << (size - 1).bit_length()  # those that are nearly as large can have the same
        # The latest first, so that those which are not needed grow old.
        for block in [each for each in reversed(self._kept) if each.size == size]:
            with contextlib.suppress(ValueError):  # another thread has taken it
                self._kept.remove(block)
                if block.free:
                    return block
                insort(self._kept, block, key=_put_at)
        return Block(size)

    def put(self, block: Block) -> None:
        """Take back what was lent. It may be some time yet until others have done so with theirs."""
        kept = self._kept
        block.put_at = monotonic()
        kept.append(block)
        with contextlib.suppress(IndexError):  # another thread has taken the last
            while len(kept) > self._most or sum(each.written for each in kept) > MOST_KEPT:
                del kept[0]
        if kept and self._loop is not None:
            self._have_tidied(self._loop, LASTING)

    def tidy(self) -> float | None:
        """Give back what has not been used for a while.

        Returns:
            the seconds until that is to be done again, or None if nothing is kept.
        """
        kept = self._kept
        if not kept:  # as most often, and before each message of a worker
            return None
        with contextlib.suppress(IndexError):  # nothing is left
            while (rest := kept[0].put_at + LASTING - monotonic()) <= 0:
                del kept[0]
            return rest
        return None

    def attend(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have this loop do `tidy` when it is due."""
        self._loop = loop
        if (rest := self.tidy()) is not None:
            self._have_tidied(loop, rest)

    def _have_tidied(self, loop: asyncio.AbstractEventLoop, rest: float) -> None:
        if self._attended:
            return
        self._attended = True
        try:
            loop.call_soon_threadsafe(loop.call_later, rest, self._tidy_in, loop)
        except RuntimeError:  # it is closed
            self._attended = False
            self.clear()

    def _tidy_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._attended = False
        self.attend(loop)

    def clear(self) -> None:
        """Give back what is not used."""
        self._kept.clear()

    def close(self) -> None:
        """Give back what is not used, and from now on everything at once."""
        self._most = 0
        self.clear()


_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _close_in_child() -> None:
    for arena in list(_arenas):
        arena.close()


os.register_at_fork(after_in_child=_close_in_child)


class _Nobody:
    descriptor: int | None = None


def _locks_last() -> bool:
    """Try whether a mapping keeps a lock that others see. No standard says so, and a sandbox may have its own ways."""
    borrower = _Nobody()
    try:
        block = Block(1)
        block.fill([b"."])
        try:
            block.lend(borrower)
            mapping = mmap.mmap(borrower.descriptor or -1, 1)
        finally:
            if borrower.descriptor is not None:  # pragma: no branch - without an error it has one
                os.close(borrower.descriptor)
        with mapping:
            held = not block.free
        given_up = block.free
    except (OSError, AttributeError):
        return False
    return held and given_up


def open_as(owner: object, name: str, opening: Callable[..., int], *args: object) -> None:
    """Open something, and set an owner's attribute to its descriptor.

    In one step, written in C: behind each call a signal's handler may raise, and nobody would have the descriptor.
    """
    deque(map(setattr, [owner], [name], map(opening, *([arg] for arg in args))), 0)


def write(descriptor: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write these into a memory, one behind the other."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
