"""Who runs what: the one owner of the pool's state. Pure: no I/O, no clock of its own.

The shell around it (`aiopool.backends.local`) reports what happened: a call was submitted, a worker became
ready, replied, died, a deadline passed. Each of these inputs is a method that takes the time, ``now``, and
returns the commands to carry out: `Spawn`, `Send`, `Recall`, `Interrupt`, `Dismiss`, `Kill`, `Finish`. Reply, death,
cancel, close and terminate all meet here, one after the other, so a call ends exactly once: the first of them wins.

A pool has a number of *seats*. The occupant of a seat serves calls. When it begins its last one, its successor is
started, so that it is ready when the seat falls vacant; it serves nothing before that, so never more calls run than
there are seats. A worker runs one function at a time, or as many coroutines as it has places; these may be answered
in any order. A seat that had nothing to do for long lies *dormant*, without a worker, until calls wait. When the
pool is made smaller, its last seats are *closed*; a call that runs there ends in its time. If it is made larger before
that, the seat is the same: at no time do two calls run in seats of the same number.

Workers and pool move from phase to phase as the tables in `aiopool.phases` say. Any other move is a bug here, and
raises before anything has changed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from .calls import CANCELLED, RUNS, SENT, WAITING, Call, Reply
from .commands import Command
from .decisions import AHEAD, FEW, LEAVE_GRACE, QUICK, Decisions
from .exceptions import AioPoolError, InitializerError, PoolTerminated, WorkerDied
from .phases import BUSY, IDLE, KILLED, RETIRING, RUNNING, PoolPhase, WorkerPhase
from .recycling import RecycleReason
from .seats import SeatPhase, Worker

__all__ = ["Dispatcher"]

OVER = (PoolPhase.TERMINATING, PoolPhase.CLOSED)
"""Where a pool takes no call, and never will."""


class Dispatcher(Decisions):
    """What may happen, and what is known; what follows from it is decided in `aiopool.decisions`."""

    @property
    def idle(self) -> int:
        """How many calls would be sent at once if they came now."""
        return len(self._crew.idle)

    @property
    def resizing(self) -> bool:
        """Whether a seat has never had a worker that was ready, or a worker is left of a seat that is no more."""
        return bool(self._crew.fresh) or any(worker.seat.number >= self.seats for worker in self.workers.values())

    @property
    def resting(self) -> bool:
        """Whether no seat has a worker, or is to have one, because there is nothing to do."""
        return self._crew.dormant == self.seats

    @property
    def waiting(self) -> int:
        """How many calls no worker has."""
        return self._backlog.waiting

    @property
    def at_ease(self) -> bool:
        """Whether many short calls wait, and all workers that run some have enough ahead to be busy for a while."""
        waiting = self._backlog.waiting
        if not waiting or waiting < self._many:
            return False
        call = self._backlog.first()
        if not QUICK < call.pace.seconds * call.weight < AHEAD / FEW:
            return False
        occupants = (seat.occupant for seat in self._crew.seats)
        loads = [each.load / each.width for each in occupants if each and each.phase is BUSY]
        return bool(loads) and AHEAD / 2 <= min(loads) <= max(loads) <= AHEAD

    @property
    def workers(self) -> dict[int, Worker]:
        """All workers that are not gone, by their ids."""
        return self._crew.workers

    def owner(self, call: Call) -> int | None:
        """Return which worker has a call, or None."""
        worker = self._owner.get(call.id)
        return None if worker is None else worker.id

    def held(self, worker_id: int, call_id: int) -> Call | None:
        """Return the call of this id that a worker has, or None."""
        return next((call for call in self.workers[worker_id].calls if call.id == call_id), None)

    # Inputs: what users want.

    def start(self, now: float) -> list[Command]:
        """Start a worker for each seat."""
        self._enter(PoolPhase.STARTING)
        return self._decided(now)

    def submit(self, call: Call, now: float) -> list[Command]:
        """Take a new call. One that comes when nobody is left to run it ends at once."""
        if self._crew.idle and not self._backlog.waiting and self.phase is RUNNING and not call.automatic:
            return self._hand_over(call, self._crew.idle.pop(), now)
        if self.phase in OVER:
            self._end(call, PoolTerminated("the pool was terminated before the call was taken"))
            return self._decided(now)
        self._backlog.put(call)
        waiting = self._backlog.waiting
        if waiting > 1 and waiting != self._many and not self._crew.dormant:
            return []  # where others wait, so must this one
        return self._decided(now)

    def _hand_over(self, call: Call, worker: Worker, now: float) -> list[Command]:
        """Send a call that nothing waits before to a worker that is idle; if that goes on, all else stays as it is."""
        self._send(worker, call, now)
        if worker.phase is not BUSY:
            return self._decided(now)
        commands, self._commands = self._commands, []
        return commands

    def cancel(self, call: Call, now: float) -> list[Command]:
        """End a call wherever it is. One that has ended already stays as it is."""
        if call.phase is WAITING:
            self._end(call, CANCELLED)
            self._backlog.forget_one()
        elif call.phase in (SENT, RUNS):
            self._condemn(call, CANCELLED, now)
        return self._decided(now)

    def withdraw(self, call: Call, now: float) -> list[Command]:
        """End a call if no worker has begun it; one that runs goes on, though nobody wants to know its outcome."""
        if call.phase is WAITING:
            return self.cancel(call, now)
        if call.phase is not SENT or call.verdict is not None:
            return []
        call.verdict = CANCELLED
        self._recall(self._owner[call.id])
        return self._decided(now)

    def resize(self, seats: int, now: float) -> list[Command]:
        """Have so many seats from now on, if the pool runs. What is behind a call in a closed seat is taken back."""
        if self.phase is RUNNING:
            while self.seats < seats:
                self._crew.add_seat()
            while self.seats > seats:
                self._clear(self._crew.remove_seat(), now)
            self._losses.expect(seats)
        return self._decided(now)

    def close(self, now: float) -> list[Command]:
        """Take no more calls; let everybody leave when the accepted ones are done."""
        if self.phase is PoolPhase.NEW:
            self._enter(PoolPhase.CLOSED)
        elif self.phase in (PoolPhase.STARTING, RUNNING, PoolPhase.BROKEN):
            self._enter(PoolPhase.CLOSING)
        return self._decided(now)

    def terminate(self, now: float) -> list[Command]:
        """Fail every call and kill every worker."""
        if self.phase is PoolPhase.NEW:
            self._enter(PoolPhase.CLOSED)
        elif self.phase not in OVER:
            self._kill_all(now)
        return self._decided(now)

    # Inputs: what workers do.

    def ready(self, worker_id: int, now: float) -> list[Command]:
        """A worker has run its initializer."""
        worker = self.workers[worker_id]
        if worker.phase is WorkerPhase.STARTING:
            self._crew.move(worker, IDLE)
            worker.ready_at = now
            if worker.allowance.age is not None:
                self._crew.ages[worker] = now + worker.allowance.age
            self._crew.fresh.discard(worker.seat)
            if worker.seat.occupant is worker:
                self._crew.rest(worker, now)
            elif worker.seat.occupant in self._crew.idle and worker.seat.occupant.due:
                self._replace(worker.seat.occupant, now)
            if self.phase is PoolPhase.STARTING and not self._crew.fresh:
                self._open(now)
        return self._decided(now)

    def unfit(self, worker_id: int, cause: AioPoolError, now: float) -> list[Command]:
        """A worker's initializer failed; it is leaving by itself."""
        worker = self.workers[worker_id]
        if worker.phase is WorkerPhase.STARTING:
            worker.cause = cause
            self._crew.move(worker, WorkerPhase.LEAVING)
            self._crew.deadlines[worker] = now + LEAVE_GRACE
        return self._decided(now)

    def garbled(self, worker_id: int, now: float) -> list[Command]:
        """A worker sent what is no message; no other of its messages can be trusted."""
        worker = self.workers[worker_id]
        if worker.phase is not KILLED:
            worker.reason = "it sent what is no message of the pool's"
        if not worker.calls:
            worker.cause = worker.cause or AioPoolError("a worker sent what is no message of the pool's")
        self._discard(worker, now)
        return self._decided(now)

    def began(self, worker_id: int, call_id: int, now: float) -> list[Command]:
        """A worker says that it begins a call that has a time limit, or is large."""
        worker = self.workers[worker_id]
        for call in worker.calls if worker.phase is not KILLED else ():
            if call.id == call_id:
                call.loading = False
                if call.phase is RUNS and call.limits.timeout is not None:
                    self._crew.deadlines[call] = now + call.limits.timeout
        return self._decided(now)

    def due(self, worker_id: int, now: float) -> list[Command]:
        """A worker uses too much memory; it is to go when it has a successor."""
        self._wear_out(self.workers[worker_id], RecycleReason.MEMORY, now)
        return self._decided(now)

    def replied(self, worker_id: int, replies: Iterable[tuple[int, Reply]], now: float) -> list[Command]:
        """A worker answered these calls, one after the other."""
        worker = self._crew.workers[worker_id]
        if worker.phase is KILLED:
            return []  # too late: what it had in hand is decided
        for call_id, reply in replies:
            calls = worker.calls
            if not (calls and calls[0].id == call_id) and not self._bring_forward(worker, call_id):
                return self.garbled(worker_id, now)  # it answers what it was not asked
            call = calls.popleft()
            worker.served += call.weight
            worker.lighten(call.cost)
            call.pace.learn(reply.seconds / call.weight)
            self._end(call, reply if call.verdict is None else call.verdict)
        worker.since = now
        self._losses.forgive()
        self._proceed(worker, now)
        return self._decided(now)

    def _bring_forward(self, worker: Worker, call_id: int) -> bool:
        """Have a call that runs be the first, to be answered; return False if it does not run."""
        for call in worker.running():
            if call.id == call_id:
                worker.calls.remove(call)
                worker.calls.appendleft(call)
                return True
        return False

    def recalled(self, worker_id: int, calls: Iterable[int], now: float) -> list[Command]:
        """A worker's channel gave back these calls, which it had not begun."""
        worker = self.workers[worker_id]
        worker.recalling = False
        worker.recalled = True
        ids = set(calls)
        back = [call for call in worker.calls if call.id in ids]
        worker.calls = deque(call for call in worker.calls if call.id not in ids)
        worker.taken -= sum(call.weight for call in back)
        if worker.load < math.inf:  # else what it runs is long, or was never seen: nothing follows before an answer
            worker.lighten(sum(call.cost for call in back))
        self._requeue(back)
        stays = worker.seat.phase is not SeatPhase.CLOSED and not worker.allowance.spent(worker.taken)
        if worker.phase is RETIRING and stays:
            self._crew.move(worker, BUSY)
        if worker.phase in (BUSY, RETIRING):
            self._proceed(worker, now)
        return self._decided(now)

    def died(
        self,
        worker_id: int,
        pid: int | None,
        exitcode: int | None,
        now: float,
        *,
        unseen: int = 0,
        cause: AioPoolError | None = None,
    ) -> list[Command]:
        """A worker's process is reaped, and all its replies were reported.

        Args:
            worker_id: the worker.
            pid: its process id, or None when it never had one.
            exitcode: of its process, or None when nobody could tell.
            now: the time.
            unseen: how many of the last calls that were sent to it, it has certainly not begun.
            cause: why it could not be started, or None.
        """
        worker = self.workers.pop(worker_id)
        useless = worker.phase not in (WorkerPhase.LEAVING, KILLED) and worker.served == 0
        in_start = worker.phase is WorkerPhase.STARTING or self.phase is PoolPhase.STARTING
        self._crew.move(worker, WorkerPhase.GONE)
        calls, worker.calls = list(worker.calls), deque()
        begun = max(0, len(calls) - unseen)
        if calls and not begun and calls[0].id in self._unseen_before:
            begun = 1  # it may well be what kills them
        elif calls and not begun:
            self._unseen_before.add(calls[0].id)
        self._requeue(calls[begun:])
        names = [call.name for call in calls[:begun]]
        for place in reversed(range(begun)):
            beside = (*names[:place], *names[place + 1 :])
            self._end_with_worker(calls[place], pid, exitcode, beside, worker.reason)
        self._crew.vacate(worker, now)
        cause = worker.cause or cause
        if cause or (useless and not begun):
            self._lose(cause or _premature(pid, exitcode, in_start=in_start), now)
        return self._decided(now)

    def tick(self, now: float) -> list[Command]:
        """Act on the deadlines that have passed."""
        overdue = [late for late, deadline in self._crew.deadlines.items() if deadline <= now]
        for late in sorted(overdue, key=_ends_worker):
            if late in self._crew.deadlines:  # what is done about one may settle others
                del self._crew.deadlines[late]
                if isinstance(late, Call):
                    self._overrun(late, now)
                else:
                    self._overdue(late, now)
        for worker, age in list(self._crew.ages.items()):
            if age <= now:
                del self._crew.ages[worker]
                self._wear_out(worker, RecycleReason.AGE, now)
        self._losses.pass_time(now)
        self._let_idle_go(now)
        return self._decided(now)

    def deadline(self) -> float | None:
        """Return when `tick` is due, or None."""
        crew, not_before = self._crew, self._losses.not_before
        if not crew.deadlines and not crew.ages and not_before is None and self._idling.timeout is None:
            return None  # as it is most often when this is asked, after each call
        times = [*crew.deadlines.values(), *crew.ages.values()]
        times += [each for each in (not_before, self._idle_deadline()) if each is not None]
        return min(times, default=None)


def _ends_worker(late: Worker | Call) -> bool:
    """Whether it ends a worker that this has not happened in time; calls that are over their limits come before."""
    return not isinstance(late, Call) or late.phase is not RUNS


def _premature(pid: int | None, exitcode: int | None, *, in_start: bool) -> AioPoolError:
    died = WorkerDied(pid, exitcode)
    if not in_start:
        return died
    error = InitializerError(
        f"{died} before it was ready. Its own output may say why. (The forkserver and spawn start methods import "
        "the main module again in each worker; an error there ends it, too.)"
    )
    error.__cause__ = died
    return error
