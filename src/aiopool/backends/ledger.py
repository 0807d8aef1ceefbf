"""Which calls a pool has in a cluster, and what is known of the workers there. Pure: no I/O, and no clock of its own.

The cluster decides who runs what, and when. A call is `WAITING` until the cluster says that a worker begins it, and
`RUNNING` from then on. It is `STOPPING` when its end is decided and the cluster has yet to say that it has let go of
it. What happens first decides: an answer, a worker's end, a cancellation, a time limit, the pool's end.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..calls import Call, CallPhase, Outcome
from ..exceptions import WorkerDied
from ..phases import POOL_MOVES, PoolPhase
from ..stats import WorkerStats

__all__ = ["ClusterWorker", "Entry", "Ledger"]


class ClusterWorker:
    """A worker of the cluster, as the scheduler has told of it.

    Attributes:
        address: names it in the cluster; its successor has another.
        seat: its number, from 0: the lowest that no other had when it came.
        pid: its process id, on its own machine.
        threads: how many calls it runs at once.
        since: when it came.
        served: how many calls of the user's functions have ended in it.
        running: those that it runs, by their ids.
    """

    __slots__ = ("address", "pid", "running", "seat", "served", "since", "threads")

    def __init__(self, address: str, seat: int, pid: int, threads: int, since: float) -> None:
        self.address: str = address
        self.seat: int = seat
        self.pid: int = pid
        self.threads: int = threads
        self.since: float = since
        self.served: int = 0
        self.running: dict[int, Entry] = {}

    def stats(self, now: float) -> WorkerStats:
        """Return what is known of it."""
        entry = next(iter(list(self.running.values())), None)
        return WorkerStats(
            seat=self.seat,
            pid=self.pid,
            phase="idle" if entry is None else "busy",
            calls=self.served,
            age=now - self.since,
            memory=None,
            call=None if entry is None else entry.call.name,
            call_seconds=None if entry is None else now - entry.begun,
        )


class Entry:
    """A call that has not ended.

    Attributes:
        call: itself.
        key: what the cluster calls it; another each time it is submitted.
        worker: who runs it, or ran it last; None as long as nobody has.
        begun: when that worker began it.
        submissions: how often it has been given to the cluster.
    """

    __slots__ = ("begun", "call", "key", "submissions", "worker")

    def __init__(self, call: Call) -> None:
        self.call: Call = call
        self.key: str = ""
        self.worker: ClusterWorker | None = None
        self.begun: float = 0.0
        self.submissions: int = 0

    @property
    def tries_left(self) -> int:
        """How many more workers may die under it, and it is run again."""
        return self.call.limits.retries - self.call.tries


class Ledger:
    """Keeps a pool's phase, its calls and its workers.

    Args:
        token: the pool's name in the cluster.
    """

    def __init__(self, token: str) -> None:
        self.workers: dict[str, ClusterWorker] = {}
        self.entries: dict[int, Entry] = {}
        self._token = token
        self._phase = PoolPhase.NEW

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self._phase

    def move(self, phase: PoolPhase) -> None:
        """Have the pool enter a phase; a move that the table does not know raises RuntimeError, and changes nothing."""
        if phase not in POOL_MOVES[self._phase]:
            raise RuntimeError(f"a pool that is {self._phase.value} cannot become {phase.value}")
        self._phase = phase

    # What there is.

    @property
    def threads(self) -> int:
        """How many calls the cluster can run at once, at present."""
        return sum(worker.threads for worker in self.workers.values())

    @property
    def running(self) -> int:
        """How many calls have begun."""
        return sum(len(worker.running) for worker in list(self.workers.values()))

    @property
    def waiting(self) -> int:
        """How many calls there are beyond those that the cluster can run at once."""
        return max(0, len(self.entries) - max(self.threads, self.running))

    @property
    def idle(self) -> int:
        """How many more calls the cluster could run at once."""
        return max(0, self.threads - len(self.entries))

    def over(self) -> bool:
        """Whether a pool that takes no more calls has none left."""
        return self._phase is PoolPhase.CLOSING and not self.entries

    # What happens to calls.

    def accept(self, call: Call) -> Entry:
        """Take a call."""
        entry = self.entries[call.id] = Entry(call)
        call.phase = CallPhase.WAITING
        return entry

    def submitted(self, entry: Entry) -> str:
        """Return the key by which a call is to be given to the cluster, now or anew.

        It begins with the function's name, for by that the scheduler learns how long tasks take.
        """
        entry.submissions += 1
        entry.key = f"{entry.call.name}-{self._token}-{entry.call.id}-{entry.submissions}"
        return entry.key

    def began(self, call: int, address: str, now: float) -> Entry | None:
        """A worker begins a call; return its entry if that has not ended, and is not being stopped."""
        entry, worker = self.entries.get(call), self.workers.get(address)
        if entry is None or worker is None or entry.call.phase is not CallPhase.WAITING:
            return None
        entry.worker, entry.begun = worker, now
        worker.running[call] = entry
        entry.call.phase = CallPhase.RUNNING
        return entry

    def stop(self, entry: Entry, verdict: Outcome) -> bool:
        """Decide on a call's end; return whether that is news."""
        if entry.call.phase not in (CallPhase.WAITING, CallPhase.RUNNING):
            return False
        entry.call.verdict = verdict
        entry.call.phase = CallPhase.STOPPING
        return True

    def end(self, entry: Entry, *, served: bool = False) -> bool:
        """A call has ended; return whether that is news."""
        if self.entries.pop(entry.call.id, None) is None:
            return False
        if entry.worker is not None:
            entry.worker.running.pop(entry.call.id, None)
            entry.worker.served += entry.call.weight if served else 0
        entry.call.phase = CallPhase.ENDED
        entry.call.payload = b""
        return True

    def died(self, entry: Entry) -> WorkerDied | None:
        """A call's worker is gone that had begun it; return how the call ends, or None if it is to be tried again."""
        worker, call = entry.worker, entry.call
        assert worker is not None  # noqa: S101 - for the type checker
        worker.running.pop(call.id, None)
        call.tries += 1
        if call.tries > call.limits.retries:
            died = WorkerDied(worker.pid, None, call.name, call.tries)
            died.add_note(f"It was {worker.address}, a worker of a Dask cluster.")
            return died
        call.phase = CallPhase.WAITING
        return None

    # What happens to workers.

    def came(self, address: str, seat: int, pid: int, threads: int, now: float) -> ClusterWorker:
        """There is a worker."""
        worker = self.workers[address] = ClusterWorker(address, seat, pid, threads, now)
        return worker

    def left(self, address: str) -> tuple[ClusterWorker, list[Entry]] | None:
        """A worker is gone; return it, and the calls that it ran."""
        worker = self.workers.pop(address, None)
        if worker is None:
            return None
        return worker, [entry for entry in worker.running.values() if entry.call.phase is CallPhase.RUNNING]

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries.values()))
