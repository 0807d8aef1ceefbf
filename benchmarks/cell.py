"""One cell: one line of work, with one peer, in this process, which is fresh. `benchmarks.run` starts it.

The process is `python -c`, so there is no main module that workers would import, and what they cost is the pool's own.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import jobs
from .peers import PEERS, NotThere, Options, Peer

__all__ = ["LIMIT", "WORKERS", "Cell", "Order", "clocked", "main", "warm_up"]

LIMIT = "limit"
"""Stands where a peer's name stands: what is measured is the machine's limit for this line."""

WORKERS = 2

PAUSE = 0.01
"""Seconds that a call takes which is to find out who serves it, so that every worker gets one."""

TRIES = 100


@dataclass(frozen=True)
class Order:
    """What a cell is to do."""

    line: str
    peer: str
    size: float = 1.0
    loop: str = "asyncio"


class Cell:
    """What a line's work gets: a pool to use, how much to do, a place for files.

    Args:
        peer: which adapter makes the pool.
        size: which part of the line's numbers to do.
        folder: where named pipes can be made.
    """

    def __init__(self, peer: type[Peer], size: float, folder: Path) -> None:
        self.peer, self.size, self.folder = peer, size, folder
        self._numbers = itertools.count()

    def pool(
        self,
        workers: int = WORKERS,
        *,
        recycle: int | None = None,
        grace: float = 0.0,
        single: bool = False,
        concurrency: int = 0,
    ) -> Peer:
        """Return a new pool; use it with ``async with``."""
        return self.peer(Options(workers, recycle, grace, single, concurrency))

    def count(self, full: float, least: int = 1) -> int:
        """Return how many to do."""
        return max(least, round(full * self.size))

    @asynccontextmanager
    async def told(self) -> AsyncIterator[tuple[str, Callable[[], Awaitable[object]]]]:
        """Give a named pipe into which jobs tell that they run, and what waits for one more to have told."""
        path = str(self.folder / f"told{next(self._numbers)}")
        os.mkfifo(path)
        pipe, heard, loop = os.open(path, os.O_RDWR | os.O_NONBLOCK), asyncio.Semaphore(0), asyncio.get_running_loop()

        def hear() -> None:
            for _ in os.read(pipe, 100):
                heard.release()

        loop.add_reader(pipe, hear)
        try:
            yield path, heard.acquire
        finally:
            loop.remove_reader(pipe)
            os.close(pipe)


async def clocked(begin: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds it takes to begin something and to await it."""
    began = time.perf_counter()
    await begin()
    return time.perf_counter() - began


async def warm_up(pool: Peer, workers: int = WORKERS) -> list[int]:
    """Have each worker serve a call, and the loop's side have done it often; return the workers' pids."""
    pids: set[int] = set()
    for _ in range(TRIES):
        pids |= set(await asyncio.gather(*(pool.call(jobs.whoami, PAUSE) for _ in range(4 * workers))))
        if len(pids) >= workers:
            break
    await asyncio.gather(*(pool.call(jobs.trivial, number) for number in range(200)))
    gc.collect()
    return sorted(pids)


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def _measure(order: Order, folder: Path) -> dict[str, Any]:
    from .lines import LINES

    line = LINES[order.line]
    work = line.limit if order.peer == LIMIT else line.work
    assert work is not None  # noqa: S101 - nobody orders a limit that there is none of
    peer = PEERS["aiopool" if order.peer == LIMIT else order.peer]
    importlib.import_module(peer.module)
    cell = Cell(peer, order.size, folder)
    began = time.perf_counter()
    try:
        with asyncio.Runner(loop_factory=lambda: _new_loop(order.loop)) as runner:
            value = runner.run(work(cell))
    except NotThere as error:
        return {"missing": str(error)}
    return {"value": 1000 * (time.perf_counter() - began) if line.whole else value}


def main() -> None:
    """Do what the order in the first argument says, and print what came out, in JSON."""
    order, folder = Order(**json.loads(sys.argv[1])), Path(sys.argv[2])
    print(json.dumps(_measure(order, folder)), flush=True)
