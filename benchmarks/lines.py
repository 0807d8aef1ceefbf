"""The lines of the benchmark: which work, what its number means, what it is held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from . import limits, work
from .cell import WORKERS
from .work import Work

__all__ = ["BEST", "LIMIT_OF_MACHINE", "LINES", "VALUE", "Line", "Target", "named"]

BEST = "best peer"
LIMIT_OF_MACHINE = "limit"
VALUE = "value"


@dataclass(frozen=True)
class Target:
    """What aiopool's number is to reach.

    Args:
        against: the best peer, one peer by name, the machine's limit, or the bare value.
        least: how many times as good it is to be; for the bare value, the number itself.
    """

    against: str
    least: float


@dataclass(frozen=True)
class Line:
    """One line: its work is done by every peer that has the abilities it needs.

    Args:
        name: how the command line calls it.
        title: what it is, for the table and the picture.
        unit: of its number.
        more: whether more is better.
        work: what is measured.
        targets: what aiopool is held against.
        needs: abilities that a peer must have.
        limit: how the machine's limit is measured.
        limit_title: what that limit is.
        alone: whether only aiopool runs it.
        whole: whether its number is the milliseconds from the loop's start to its end.
    """

    name: str
    title: str
    unit: str
    more: bool
    work: Work
    targets: tuple[Target, ...] = ()
    needs: frozenset[str] = frozenset()
    limit: Work | None = None
    limit_title: str = ""
    alone: bool = False
    whole: bool = False

    def ratio(self, ours: float, others: float) -> float:
        """Return how many times as good as the other number ours is."""
        above, below = (ours, others) if self.more else (others, ours)
        return above / below if below else (1.0 if not above else float("inf"))


FLAT = (Target(LIMIT_OF_MACHINE, 1 / 1.2),)
FIVEFOLD = (Target(BEST, 5),)
NO_WORSE = (Target(BEST, 1),)
COPIED = (Target(BEST, 4), Target(LIMIT_OF_MACHINE, 1 / 4))
SHORT = (Target(VALUE, 1.5), *NO_WORSE)
QUICK = (*NO_WORSE, Target(LIMIT_OF_MACHINE, 1 / 5))


def _calls() -> Iterable[Line]:
    target = (*FIVEFOLD, Target("run_in_executor", 12))
    yield Line("burst", "gather of 5,000 trivial calls", "calls/s", True, work.burst(5000), target,
               limit=limits.bare_calls(5000), limit_title="bare futures, pickles and sockets")  # fmt: skip
    yield Line("busy", "gather of 3,000 calls of 0.1 ms CPU", "cores", True, work.busy_burst, SHORT,
               limit=limits.bare_busy(3000, work.BUSY), limit_title="bare futures, pickles and sockets")  # fmt: skip
    yield Line("round_trip", "one trivial call at a time, median", "ms", False, work.round_trip, QUICK,
               limit=limits.ping_pong, limit_title="bare socket ping-pong")  # fmt: skip
    yield Line("round_trip_bare", "the same, beside bare calls", "ms", False, work.round_trip,
               limit=work.bare_round_trip, limit_title="bare futures, pickles and sockets")  # fmt: skip
    yield Line("map", "map of 200,000 trivial items", "items/s", True, work.map_, (Target(BEST, 1.2),),
               needs=frozenset({"map"}),
               limit=limits.bare_map(200_000), limit_title="bare pickles and sockets")  # fmt: skip
    yield Line("imap", "imap of 5,000 items, chunksize 1", "items/s", True, work.imap, FIVEFOLD,
               needs=frozenset({"imap"}),
               limit=limits.bare_calls(5000), limit_title="bare futures, pickles and sockets")  # fmt: skip
    yield Line("dask", "map of 20,000 items of 1 ms CPU on a cluster of Dask", "items/s", True, work.dask_map,
               (Target(LIMIT_OF_MACHINE, 0.9),), alone=True,
               limit=work.dask_client, limit_title="Dask's own client.map and gather")  # fmt: skip


def _coroutines() -> Iterable[Line]:
    yield Line("coroutines", "gather of 2,000 coroutines that wait 10 ms, 32 at once in each worker", "calls/s", True,
               work.coroutines, (Target("aiomultiprocess", 3),), needs=frozenset({"coroutines"}),
               limit=limits.bare_naps(2000, WORKERS * work.AT_ONCE, work.NAP),
               limit_title="as many at once in this loop, without a pool")  # fmt: skip
    yield Line("coroutine_round_trip", "one trivial coroutine at a time, median", "ms", False,
               work.coroutine_round_trip, NO_WORSE, needs=frozenset({"coroutines"}))  # fmt: skip
    yield Line("stream", "a stream of 100,000 small values", "values/s", True, work.stream,
               (Target(VALUE, 100_000), Target(LIMIT_OF_MACHINE, 1)), needs=frozenset({"stream"}),
               limit=work.burst(5000), limit_title="one call for each value")  # fmt: skip


def _payloads() -> Iterable[Line]:
    yield Line("payload_in", "a 100 MB NumPy array as argument", "GB/s", True, work.payload_in, COPIED,
               limit=limits.array_copy, limit_title="memcpy")  # fmt: skip
    yield Line("payload_out", "a 100 MB NumPy array as result", "GB/s", True, work.payload_out, COPIED,
               limit=limits.array_copy, limit_title="memcpy")  # fmt: skip
    yield Line("share", "the same 100 MB array for each of 100 calls", "ms/call", False, work.share)
    yield Line("share_copies", "copies of that array after the calls", "copies", False, work.share_copies,
               (Target(VALUE, 1.05),), alone=True)  # fmt: skip


def _lives() -> Iterable[Line]:
    yield Line("start", "start and first result", "ms", False, work.start, NO_WORSE,
               limit=limits.bare_start, limit_title="bare processes of the fork server")  # fmt: skip
    yield Line("start_exit", "start, one result, exit", "ms", False, work.start_and_exit, NO_WORSE, whole=True)
    for every in (1, 10):
        each = "call" if every == 1 else f"{every} calls"
        yield Line(f"recycle_{every}", f"a fresh worker every {each}, {60 * every} calls", "calls/s", True,
                   work.recycle(every), FIVEFOLD, needs=frozenset({"recycle"}),
                   limit=limits.bare_processes(every), limit_title="bare processes of the fork server")  # fmt: skip
    yield Line("cancel", "cancel a running call, next result (killed)", "ms", False, work.cancel(), NO_WORSE,
               needs=frozenset({"kill"}))  # fmt: skip
    yield Line("cancel_grace", "cancel a running call, next result (interrupted)", "ms", False,
               work.cancel(work.GRACE), (Target(LIMIT_OF_MACHINE, 1 / 2),), needs=frozenset({"interrupt"}),
               limit=work.plain_call, limit_title="a plain call after a busy one")  # fmt: skip


def _costs() -> Iterable[Line]:
    yield Line("loop_lag", "loop lag while 8 coroutines call, 99th percentile", "ms", False, work.loop_lag, NO_WORSE,
               limit=work.bare_lag, limit_title="bare futures, pickles and sockets")  # fmt: skip
    yield Line("idle", "CPU of an idle pool over 5 s", "% of a core", False, work.idle, (Target(VALUE, 0.05),),
               limit=work.bare_cpu, limit_title="no pool")  # fmt: skip
    yield Line("worker_memory", "private memory of an idle worker", "MB", False, work.worker_memory, NO_WORSE,
               limit=limits.bare_memory, limit_title="bare processes of the fork server")  # fmt: skip
    yield Line("queue", "parent's memory for each of 50,000 waiting calls", "bytes", False, work.queue, NO_WORSE)


def _growth() -> Iterable[Line]:
    for calls in (10_000, 100_000):
        yield Line(f"growth_calls_{calls // 1000}k", f"cost of a call in a burst of {calls:,}", "µs", False,
                   work.burst(calls, each=True), FLAT, alone=True,
                   limit=work.burst(1000, each=True), limit_title="in a burst of 1,000")  # fmt: skip
    for workers in (8, 64):
        yield Line(f"growth_workers_{workers}", f"cost of a call with {workers} workers", "µs", False,
                   work.burst(5000, workers, each=True), alone=True,
                   limit=work.burst(5000, each=True), limit_title="with 2 workers")  # fmt: skip


LINES = {line.name: line for group in (_calls, _coroutines, _payloads, _lives, _costs, _growth) for line in group()}


def named(names: Iterable[str]) -> list[Line]:
    """Return the lines of these names, or whose names begin with them: ``recycle`` is both of its lines.

    Raises:
        LookupError: there is none.
    """
    found: dict[str, Line] = {}
    for name in names:
        matching = {key: line for key, line in LINES.items() if key == name or key.startswith(f"{name}_")}
        if not matching:
            raise LookupError(f"no line is called {name!r}; there are: {', '.join(LINES)}")
        found |= matching
    return list(found.values())
