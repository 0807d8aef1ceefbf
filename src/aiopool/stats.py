"""What a pool says of itself: frozen snapshots, and the tally that they are made from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from .calls import CANCELLED, Call, Outcome, Reply
from .exceptions import CallTimeout, WorkerDied
from .recycling import RecycleReason

__all__ = ["Latencies", "PoolStats", "Tally", "WorkerStats", "end_of"]

BUCKETS = 32
"""How many ranges of time are told apart: the last but one ends at 2**30 microseconds, which is some 18 minutes."""

MOST_BITS = 128
"""Of a number of microseconds: a worker tells in 64 bits of nanoseconds how long a call took."""

MICRO = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Latencies:
    """How long something took, each time: a histogram.

    Attributes:
        counts: how often it took less than the bound of the same place, and not less than the one before.
        seconds: of all of them together.
    """

    counts: tuple[int, ...]
    seconds: float

    BOUNDS: ClassVar[tuple[float, ...]] = (*(2**power / MICRO for power in range(BUCKETS - 1)), float("inf"))
    """In seconds, a millionth, and then always twice as many; the last is infinite."""

    @property
    def count(self) -> int:
        """How often."""
        return sum(self.counts)


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker.

    Attributes:
        seat: its place, from 0; its successor will have the same.
        pid: None while its process is being started; always so with ``backend="inline"``, which has none.
        phase: ``"starting"``, ``"idle"``, ``"busy"``, ``"retiring"`` (busy for the last time), ``"leaving"`` or
            ``"killed"``.
        calls: how many calls of the user's functions it has served.
        age: seconds since it was ready, or None before.
        memory: its resident memory in bytes, or None where that is not known.
        call: the name of the function that it runs, or the names of the coroutine functions, or None.
        call_seconds: for how long it has been running that, or the first of those, or None.
    """

    seat: int
    pid: int | None
    phase: str
    calls: int
    age: float | None
    memory: int | None
    call: str | None
    call_seconds: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool. Where calls are counted, a chunk of a map or an imap is one.

    Attributes:
        phase: ``"new"``, ``"starting"``, ``"running"``, ``"broken"``, ``"closing"``, ``"terminating"``, ``"closed"``.
        workers: those that are there, in the order in which they were started.
        queued: calls that no worker has.
        running: calls that a worker has.
        done: calls that returned a value.
        failed: calls that raised.
        died: calls that ended with their worker.
        timed_out: calls that were stopped because they ran too long.
        cancelled: calls that were cancelled.
        abandoned: calls that ended with the pool, terminated or broken.
        retried: how often calls that have ended were run again.
        lost: workers that went away unbidden; on Dask, while they ran a call.
        recycled: workers that were replaced, by the reason: ``"calls"``, ``"age"``, ``"memory"``.
        queue_time: how long calls that returned or raised had waited, what is sent to and fro included.
        run_time: how long they ran.
    """

    phase: str
    workers: tuple[WorkerStats, ...]
    queued: int
    running: int
    done: int
    failed: int
    died: int
    timed_out: int
    cancelled: int
    abandoned: int
    retried: int
    lost: int
    recycled: Mapping[str, int]
    queue_time: Latencies
    run_time: Latencies


def end_of(outcome: Outcome) -> str:
    """Return by which name a call's end is counted."""
    if isinstance(outcome, Reply):
        return "failed" if outcome.failed else "done"
    if outcome is CANCELLED:
        return "cancelled"
    if isinstance(outcome, WorkerDied):
        return "died"
    return "timed_out" if isinstance(outcome, CallTimeout) else "abandoned"


class Histogram:
    """Counts how long something took."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts: list[int] = [0] * MOST_BITS
        self._seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self._seconds += seconds
        self._counts[int(seconds * MICRO).bit_length()] += 1

    def snapshot(self) -> Latencies:
        """Return what has been counted."""
        *counts, last = self._counts[:BUCKETS]
        return Latencies((*counts, last + sum(self._counts[BUCKETS:])), self._seconds)


class Tally:
    """Counts what has become of calls and workers."""

    def __init__(self) -> None:
        self._done = self._failed = self._retried = self._lost = 0
        self._unanswered: Counter[str] = Counter()
        self._recycled: Counter[RecycleReason] = Counter()
        self._queue_time, self._run_time = Histogram(), Histogram()

    def ended(self, call: Call, outcome: Outcome, now: float) -> None:
        """A call has ended."""
        if isinstance(outcome, Reply):
            ran = outcome.seconds
            waited = now - call.submitted - ran
            self._run_time.add(ran)
            self._queue_time.add(waited if waited > 0 else 0.0)
            self._retried += call.tries
            if outcome.failed:
                self._failed += 1
            else:
                self._done += 1
        else:
            end = end_of(outcome)
            self._unanswered[end] += 1
            self._retried += call.tries - (end == "died")

    def lost(self) -> None:
        """A worker has gone away unbidden."""
        self._lost += 1

    def recycled(self, reason: RecycleReason) -> None:
        """A worker is replaced."""
        self._recycled[reason] += 1

    def snapshot(self, phase: str, workers: Sequence[WorkerStats], queued: int, running: int) -> PoolStats:
        """Return all that has been counted, and what there is now."""
        return PoolStats(
            phase=phase,
            workers=tuple(workers),
            queued=queued,
            running=running,
            done=self._done,
            failed=self._failed,
            died=self._unanswered["died"],
            timed_out=self._unanswered["timed_out"],
            cancelled=self._unanswered["cancelled"],
            abandoned=self._unanswered["abandoned"],
            retried=self._retried,
            lost=self._lost,
            recycled={reason.value: self._recycled[reason] for reason in RecycleReason},
            queue_time=self._queue_time.snapshot(),
            run_time=self._run_time.snapshot(),
        )
