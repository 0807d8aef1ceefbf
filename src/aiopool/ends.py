"""What the dispatcher knows, and how calls come to their ends, and with them workers and the pool.

Nothing here is called from outside; `aiopool.dispatch` says how the parts belong together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from .backlog import Backlog
from .calls import CANCELLED, ENDED, RUNS, STOP_GRACE, STOPPING, Call, CallKind, Outcome
from .commands import Command, Finish, Interrupt, Kill, Recall
from .exceptions import AioPoolError, BrokenPool, CallTimeout, InitializerError, PoolTerminated, WorkerDied
from .losses import Losses
from .phases import BUSY, KILLED, POOL_MOVES, RETIRING, RUNNING, PoolPhase, WorkerPhase
from .recycling import IdlePolicy, RecyclePolicy
from .seats import Crew, Worker

__all__ = ["START_TIMEOUT", "Ends"]

START_TIMEOUT = 60.0
"""Seconds that a worker has to become ready."""


class Ends:
    """The state, and what ends.

    Args:
        seats: how many workers may have calls at once.
        policy: when a worker has served enough.
        grace: seconds from the interruption of a call to the end of its worker; 0 for no interruption.
        start_timeout: seconds that a worker has to become ready.
        concurrency: how many coroutines a worker may run at once.
        depth: how many calls a worker may have in its channel, those that run included; or as many as may run.
        reserve: how many calls are to wait for each seat before a worker is sent more than one ahead, or a quick one.
        idling: which workers go that have nothing to do.
        jitter: returns a number from 0 to 1; spreads the delays between starts after failures.
    """

    def __init__(
        self,
        seats: int,
        policy: RecyclePolicy,
        *,
        grace: float = 0.0,
        start_timeout: float = START_TIMEOUT,
        concurrency: int = 1,
        depth: int = 1,
        reserve: int = 0,
        idling: IdlePolicy | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.phase: PoolPhase = PoolPhase.NEW
        self.cause: AioPoolError | None = None  # of a failed start or a broken pool
        self._broken_after = 0  # so many workers that were lost
        self._crew = Crew(seats, policy, start_timeout, jitter)
        self._losses = Losses(seats, jitter)
        self._grace = grace
        self._start_timeout = start_timeout
        self._concurrency = concurrency
        self._depth = depth
        self._reserve = reserve
        self._idling = idling or IdlePolicy()
        self._backlog = Backlog()
        self._owner: dict[int, Worker] = {}  # by call id, from Send until the call ends
        self._unseen_before: set[int] = set()  # ids of calls whose worker died before it had read them
        self._commands: list[Command] = []

    @property
    def seats(self) -> int:
        """How many workers may have calls at once."""
        return len(self._crew.seats)

    # Calls that are to stop.

    def _condemn(self, call: Call, verdict: Outcome, now: float) -> None:
        """Decide how a call ends that a worker has; it ends when it has stopped."""
        self._crew.deadlines.pop(call, None)  # its time limit; what comes now has a deadline of its own
        call.phase = STOPPING
        call.verdict = verdict
        self._stop(self._owner[call.id], now)

    def _stop(self, worker: Worker, now: float) -> None:
        """End what is to be stopped in a worker, and nothing else: what it has not begun is taken back first."""
        if worker.phase is KILLED or worker.recalling:
            return  # all that it has, ends with it; or what it has is to be known in a moment
        if len(worker.calls) > 1 and not worker.recalled and not worker.is_loading:
            self._recall(worker)
        elif len(worker.calls) <= worker.width:  # else answers are on their way
            for call in worker.running():
                if call.phase is STOPPING and call not in self._crew.deadlines:
                    self._halt(worker, call, now)

    def _halt(self, worker: Worker, call: Call, now: float) -> None:
        """Interrupt a call, or kill its worker if it is to have no time to stop."""
        grace = self._grace or (0.0 if call.kind is CallKind.FUNCTION else STOP_GRACE)
        if grace:
            self._crew.deadlines[call] = now + grace
            self._commands.append(Interrupt(worker.id, call))
        else:
            self._kill(worker, now)

    def _overrun(self, call: Call, now: float) -> None:
        """A call is over its time limit, or has not stopped in time: then its worker ends, with all that it runs."""
        if call.phase is RUNS:
            self._condemn(call, CallTimeout(call.name, call.limits.timeout or 0.0), now)
        else:
            worker = self._owner[call.id]
            worker.reason = _did_not_stop(call)
            self._kill(worker, now)

    def _recall(self, worker: Worker) -> None:
        if worker.recalled or worker.is_loading:
            return
        if worker.phase in (BUSY, RETIRING):
            worker.recalled = worker.recalling = True
            self._commands.append(Recall(worker.id))

    # Calls that end.

    def _end(self, call: Call, outcome: Outcome) -> None:
        call.phase = ENDED
        call.payload = b""
        self._owner.pop(call.id, None)
        if self._crew.deadlines:
            self._crew.deadlines.pop(call, None)
        if self._unseen_before:
            self._unseen_before.discard(call.id)
        self._commands.append(Finish(call, outcome))

    def _end_with_worker(
        self, call: Call, pid: int | None, exitcode: int | None, beside: tuple[str, ...], because: str | None
    ) -> None:
        """A worker has died under a call: that is its end, unless it may be tried again."""
        if call.verdict is not None:
            self._end(call, call.verdict)
            return
        call.tries += 1
        if call.tries <= call.limits.retries:
            self._requeue([call])
        else:
            self._end(call, WorkerDied(pid, exitcode, call.name, call.tries, beside, because))

    def _requeue(self, calls: Iterable[Call]) -> None:
        """Put calls back where they came from: before all others, in their order."""
        for call in reversed(list(calls)):
            if call.verdict is not None:
                self._end(call, call.verdict)
            else:
                del self._owner[call.id]
                self._crew.deadlines.pop(call, None)
                self._backlog.put_back(call)

    def _abandon_calls(self, worker: Worker) -> None:
        for call in worker.calls:
            self._end(call, call.verdict or PoolTerminated("the pool was terminated while the call ran"))
        worker.calls.clear()

    def _fail_waiting(self, error: Callable[[], AioPoolError]) -> None:
        while self._backlog.waiting:
            self._end(self._backlog.take(), error())

    # Workers and the pool.

    def _kill(self, worker: Worker, now: float) -> None:
        if worker.phase is not KILLED:
            self._crew.move(worker, KILLED)
            for call in worker.calls:
                self._crew.deadlines.pop(call, None)
            self._crew.vacate(worker, now)
            self._commands.append(Kill(worker.id))

    def _overdue(self, worker: Worker, now: float) -> None:
        """A worker has not become ready in time, or not left."""
        if worker.phase is WorkerPhase.STARTING:
            worker.cause = InitializerError(
                f"a worker was not ready within {self._start_timeout:g} s: "
                "give a larger start_timeout, or see what its initializer waits for"
            )
        self._discard(worker, now)

    def _discard(self, worker: Worker, now: float) -> None:
        """Kill a worker that is no good. In the pool's start, that ends it at once."""
        if worker.cause is not None and self.phase is PoolPhase.STARTING:
            self._lose(worker.cause, now)
        self._kill(worker, now)

    def _kill_all(self, now: float) -> None:
        self._enter(PoolPhase.TERMINATING)
        self._fail_waiting(lambda: PoolTerminated("the pool was terminated while the call waited"))
        for worker in list(self._crew.workers.values()):
            self._abandon_calls(worker)
            self._kill(worker, now)

    def _lose(self, cause: AioPoolError, now: float) -> None:
        """A worker went without having been of use: wait longer before each start, and in the end give up."""
        if self.phase is PoolPhase.STARTING:
            self.cause = cause
            self._kill_all(now)
            return
        if self.phase is PoolPhase.TERMINATING:
            return
        if not self._losses.count(now):
            self._give_up(cause)

    def _give_up(self, cause: AioPoolError) -> None:
        self.cause, self._broken_after = cause, self._losses.in_a_row
        if self.phase is RUNNING:
            self._enter(PoolPhase.BROKEN)
        self._fail_waiting(self.broken)

    def broken(self) -> BrokenPool:
        """Return the error that a call on a broken pool gets."""
        error = BrokenPool(
            f"{self._broken_after} workers in a row were lost before they served a call. "
            "The last cause is this error's __cause__: see to that, and make a new pool"
        )
        error.__cause__ = self.cause
        return error

    def _enter(self, phase: PoolPhase) -> None:
        if phase not in POOL_MOVES[self.phase]:
            raise RuntimeError(f"a pool that is {self.phase.value} cannot become {phase.value}")
        self.phase = phase


def _did_not_stop(culprit: Call) -> str:
    """Return why a worker is killed under the calls that run beside this one, which did not stop in time."""
    why = "was cancelled" if culprit.verdict is CANCELLED else "was over its time limit"
    return f"{culprit.name}, which ran beside it, {why} and did not stop"
