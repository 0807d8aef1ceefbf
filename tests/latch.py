"""A named pipe as a latch: jobs tell what they have reached, and wait until they are let pass."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from pathlib import Path
from types import TracebackType
from typing import Self


class Latch:
    """Made by a test; jobs get its ``path``."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)

    async def told(self) -> str:
        """Return the next line that a job wrote."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._read:
            readable = loop.create_future()
            loop.add_reader(self._fd, readable.set_result, None)
            try:
                await readable
            finally:
                loop.remove_reader(self._fd)
            self._read += os.read(self._fd, 65536)
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def told_now(self) -> str:
        """Return the next line that a job writes, in a test without a loop."""
        while b"\n" not in self._read:
            select.select([self._fd], [], [])
            self._read += os.read(self._fd, 65536)
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def told_already(self) -> list[str]:
        """Return the lines that jobs have written and nobody asked for."""
        with contextlib.suppress(BlockingIOError):  # nothing was written
            self._read += os.read(self._fd, 65536)
        lines, self._read = self._read.decode().splitlines(), b""
        return lines

    def let(self, count: int = 1) -> None:
        """Let so many jobs pass."""
        os.write(self._fd, b"." * count)
