"""A worker's stack, as faulthandler writes it into a pipe when a signal asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import os

from ..stacks import is_whole

__all__ = ["DumpReader"]

MOST_BYTES = 65536


class DumpReader:
    """Receives dumps.

    Args:
        loop: where that happens.
        descriptor: of the pipe.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = loop
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._text = ""
        self._whole: asyncio.Future[str] | None = None

    def expect(self) -> asyncio.Future[str]:
        """Return a future that gets the next dump, which has to be asked for: what others have asked may be lost."""
        if self._whole is None:
            self._read()  # what has come too late for those who asked before
            self._text, self._whole = "", self._loop.create_future()
            self._loop.add_reader(self._descriptor, self._take)
        return self._whole

    def close(self) -> None:
        """Expect nothing any more; whoever does, gets what there is."""
        if self._whole is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            if not self._whole.done():
                self._whole.set_result(self._text)
        self._whole = None

    def _take(self) -> None:
        if not self._read() or is_whole(self._text):
            self.close()

    def _read(self) -> bool:
        """Read what there is; return False at the pipe's end."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, MOST_BYTES):
                self._text += data.decode(errors="replace")
            return False
        return True
