"""Dividing the input of a map into chunks, each of which is one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .calls import Call, CallKind, Limits, Outcome, Pace
from .carrying import Around
from .engine import Engine
from .packing import Function
from .worker import job, tasks

__all__ = ["AWAITED", "make_chunks", "size_of_chunks"]

CHUNKS_PER_WORKER = 4
"""Into how many chunks a map divides its input for each worker, as `multiprocessing.pool.Pool.map` does."""

AWAITED: dict[Callable[..., Any], Callable[..., Any]] = {
    job.map_chunk: tasks.map_chunk,
    job.starmap_chunk: tasks.starmap_chunk,
    job.each_of_chunk: tasks.each_of_chunk,
}
"""What calls a coroutine function with each item of a chunk, by what does so with a function."""

IMMEASURABLE = 1e-9
"""Seconds below which no call is told from none."""


def size_of_chunks(
    engine: Engine, items: int, chunksize: int | None, limits: Limits, kind: CallKind, pace: Pace
) -> int:
    """Return how many items travel together: as many as are asked for, or as suits so many calls of this pace."""
    if chunksize is not None:
        return chunksize
    backend = engine.backend
    cheap = not backend.shortest_chunk  # so that coroutines that wait had better do so at once
    if limits.timeout is not None or (cheap and kind is CallKind.COROUTINE):
        return 1
    even = -(-items // (backend.seats * CHUNKS_PER_WORKER)) or 1
    worthwhile = math.ceil(backend.shortest_chunk / max(pace.seconds, IMMEASURABLE))
    return engine.policy.chunksize(max(even, min(worthwhile, items)))


def make_chunks(
    engine: Engine,
    runner: Function,
    func: Callable[..., object],
    items: Sequence[Any],
    length: int,
    finish: Callable[[int, Outcome], None],
    limits: Limits,
    company: Sequence[Around],
    *,
    automatic: bool,
) -> list[Call]:
    """Return a call for each chunk, or drop all of them and raise."""
    packer, calls = engine.packer, list[Call]()
    try:
        for number, begin in enumerate(range(0, len(items), length)):
            chunk = items[begin : begin + length]
            ended = partial(finish, number)
            calls.append(
                packer.make(runner, (func, chunk), {}, ended, limits, company, weight=len(chunk), automatic=automatic)
            )
    except BaseException:
        for call in calls:
            packer.drop(call)
        raise
    return calls
