"""The chaos program's accounts: what each call may come to, what it has come to, and how often it has run.

A ledger is settled after each pool, so that it does not grow with the length of the run.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

from chaos_jobs import Answer, Order, content, deaths_of

from aiopool import (
    BrokenPool,
    CallTimeout,
    PoolFull,
    PoolNotRunning,
    PoolTerminated,
    WorkerDied,
)

KINDS: dict[type[BaseException], str] = {
    LookupError: "raised",
    MemoryError: "no memory",
    WorkerDied: "died",
    CallTimeout: "timed out",
    PoolFull: "refused",
    PoolTerminated: "terminated",
    PoolNotRunning: "closed",
    BrokenPool: "broken",
    asyncio.CancelledError: "cancelled",
    TimeoutError: "cancelled",  # of asyncio.timeout, which cancels
}
"""What an exception that a call raises tells of its end; the type must be exactly this one."""

OWN_END = {"raise": "raised", "starve": "no memory"}
"""How a call ends that nobody disturbs, where that is not with its value."""

NEVER_RUN = {"refused", "closed"}
"""The ends of calls that no worker must have begun."""


class Entry:
    """One call of a job."""

    __slots__ = ("ends", "order", "possible", "tries")

    def __init__(self, order: Order, possible: Collection[str], tries: int) -> None:
        self.order = order._replace(burden=b"")  # which may be large
        self.possible = {OWN_END.get(order.fate, "value"), "died", *possible}
        self.tries = tries
        self.ends: list[str] = []

    def __repr__(self) -> str:
        return f"call {self.order.number} ({self.order.fate})"


class Ledger:
    """All calls of a run.

    Attributes:
        calls: how many there were.
        ends: how often one has ended.
        outcomes: how they ended.
        fates: what the jobs that ran were to do.
        retried: how many runs were another try.
        amiss: what is not as it should be.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.ends = 0
        self.outcomes: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        self.retried = 0
        self.amiss: list[str] = []
        self._entries: dict[int, Entry] = {}
        self._died: list[tuple[Entry, WorkerDied]] = []
        self._killed: defaultdict[int, set[int]] = defaultdict(set)  # by pid, the exit codes that this explains
        self._submitted: Counter[int] = Counter()
        self._finished: Counter[int] = Counter()

    # While a pool lives.

    def next_number(self) -> int:
        """Return a new call's number."""
        self.calls += 1
        return self.calls

    def open(self, order: Order, possible: Collection[str], tries: int) -> None:
        """Enter a call that is about to be made.

        Args:
            order: what it is to do.
            possible: how it may end, beside of what its own fate and a dying worker bring.
            tries: how often it may run.
        """
        self._entries[order.number] = Entry(order, possible, tries)

    def end(self, number: int, outcome: str) -> None:
        """A call has ended."""
        self.ends += 1
        self._entries[number].ends.append(outcome)

    def answered(self, order: Order, answer: object) -> None:
        """A call has returned this."""
        self.end(order.number, "value")
        expected = Answer(order.number, len(order.burden), content(order.number, order.size))
        if answer != expected:
            self.amiss.append(f"call {order.number} ({order.fate}) returned {str(answer)[:60]}...")

    def failed(self, numbers: Collection[int], error: BaseException, *, partly: bool = False) -> str:
        """These calls have ended with one exception; return how that is called.

        Args:
            numbers: of the calls.
            error: what was raised.
            partly: whether the pool may have been closed when some of them had run.
        """
        outcome = KINDS.get(type(error), "")
        if not outcome:
            outcome = type(error).__name__
            self.amiss.append(f"a call raised {error!r}, caused by {error.__cause__!r}")
        if outcome == "closed" and partly:
            outcome = "cut off"
        own = outcome in OWN_END.values()
        if own and (len(error.args) != 1 or error.args[0] not in numbers):
            self.amiss.append(f"calls {numbers} got {error!r}, which is none of theirs")
        for number in numbers:  # of a map, one call's exception ends the others
            self.end(number, "dropped" if own and error.args[0] != number else outcome)
            if isinstance(error, WorkerDied):
                self._died.append((self._entries[number], error))
        return outcome

    def killed(self, pid: int, exitcode: int) -> None:
        """A worker was killed from outside."""
        self._killed[pid].add(exitcode)

    def submitted(self, call: int) -> None:
        """The pool has taken what it calls a call: a job, or a chunk of them."""
        self._submitted[call] += 1

    def finished(self, call: int) -> None:
        """The pool has told the outcome of one."""
        self._finished[call] += 1

    def unended(self) -> list[Entry]:
        """Return the calls that have not ended."""
        return [entry for entry in self._entries.values() if not entry.ends]

    # After it.

    def settle(self, journal: Path, also_possible: Collection[str]) -> None:
        """Close the accounts of a pool that is gone.

        Args:
            journal: where its jobs have noted that they run.
            also_possible: ends that any call may have met because of what was done to the pool.
        """
        runs = self._read(journal)
        for number, entry in self._entries.items():
            self._check_end(entry, also_possible)
            self._check_runs(entry, runs.pop(number, []))
        for number in runs:
            self.amiss.append(f"call {number} ran, and was never made in this pool")
        for entry, error in self._died:
            self._check_death(entry, error)
        for call in self._submitted.keys() | self._finished.keys():
            if (self._submitted[call], self._finished[call]) != (1, 1):
                self.amiss.append(f"the pool has finished one of its calls {self._finished[call]} times")
        for accounts in (self._entries, self._died, self._killed, self._submitted, self._finished):
            accounts.clear()

    def _read(self, journal: Path) -> dict[int, list[int]]:
        """Return the pids of the workers that have run each call, in their order."""
        runs: defaultdict[int, list[int]] = defaultdict(list)
        for line in journal.read_text().splitlines():
            number, pid, fate = line.split()
            runs[int(number)].append(int(pid))
            self.fates[fate] += 1
            self._killed[int(pid)] |= deaths_of(fate, int(number))
        journal.unlink()
        return runs

    def _check_end(self, entry: Entry, also_possible: Collection[str]) -> None:
        if len(entry.ends) != 1:
            self.amiss.append(f"{entry} has ended {len(entry.ends)} times: {entry.ends}")
        for outcome in entry.ends[:1]:
            self.outcomes[outcome] += 1
            if outcome not in entry.possible and outcome not in also_possible:
                self.amiss.append(f"{entry} must not end as {outcome!r}")

    def _check_runs(self, entry: Entry, pids: list[int]) -> None:
        self.retried += max(0, len(pids) - 1)
        end = entry.ends[0] if entry.ends else "?"
        if len(pids) > entry.tries:
            self.amiss.append(f"{entry} ran {len(pids)} times, and may have {entry.tries} tries")
        if not pids and end in ("value", "raised", "no memory"):
            self.amiss.append(f"{entry} ended as {end!r}, and never ran")
        if pids and end in NEVER_RUN:
            self.amiss.append(f"{entry} ended as {end!r}, and ran")
        for pid in pids[:-1]:
            if not self._killed[pid]:
                self.amiss.append(f"{entry} ran again, and nothing had killed its worker {pid}")

    def _check_death(self, entry: Entry, error: WorkerDied) -> None:
        if error.pid is None or error.exitcode not in self._killed[error.pid]:
            self.amiss.append(f"{entry}: {error}, and nothing explains that")
        if error.tries != entry.tries:
            self.amiss.append(f"{entry} was given up after {error.tries} tries of {entry.tries}")
