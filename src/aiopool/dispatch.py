"""Who runs what: the one owner of the pool's state. Pure: no I/O, no clock of its own.

The shell around it (`aiopool.backends.local`) reports what happened: a call was submitted, a worker became
ready, replied, died, a deadline passed. Each of these inputs is a method that takes the time, ``now``, and
returns the commands to carry out: `Spawn`, `Send`, `Recall`, `Dismiss`, `Kill`, `Finish`. Reply, death, cancel,
close and terminate all meet here, one after the other, so a call ends exactly once: the first of them wins.

A pool has a fixed number of *seats*. The occupant of a seat serves calls. When it begins its last one, its
successor is started, so that it is ready when the seat falls vacant; it serves nothing before that, so never
more calls run than there are seats.

Workers and pool move from phase to phase as the tables in `aiopool.phases` say. Any other move is a bug here, and
raises before anything has changed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable

from .calls import CANCELLED, Call, CallPhase, Outcome, Reply
from .commands import Command, Dismiss, Finish, Interrupt, Kill, Recall, Send, Spawn
from .exceptions import AioPoolError, BrokenPool, CallTimeout, InitializerError, PoolTerminated, WorkerDied
from .losses import Losses
from .phases import POOL_MOVES, PoolPhase, WorkerPhase
from .recycling import RecyclePolicy
from .seats import Crew, Worker

__all__ = ["Dispatcher"]

LEAVE_GRACE = 5.0
"""Seconds that a dismissed worker has for its atexit handlers and threads before it is killed."""

START_TIMEOUT = 60.0
"""Seconds that a worker has to become ready."""


class Dispatcher:
    """Decides; see the module's text for how it is used.

    Args:
        seats: how many calls may run at once.
        policy: when a worker has served enough.
        grace: seconds from the interruption of a call to the end of its worker; 0 for no interruption.
        start_timeout: seconds that a worker has to become ready.
        depth: how many calls a worker may have in its channel, the running one included.
        jitter: returns a number from 0 to 1; spreads the delays between starts after failures.
    """

    def __init__(
        self,
        seats: int,
        policy: RecyclePolicy,
        *,
        grace: float = 0.0,
        start_timeout: float = START_TIMEOUT,
        depth: int = 1,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.phase = PoolPhase.NEW
        self.cause: AioPoolError | None = None  # of a failed start or a broken pool
        self.waiting = 0
        self._crew = Crew(seats, policy, start_timeout, jitter)
        self._losses = Losses(seats, jitter)
        self._grace = grace
        self._start_timeout = start_timeout
        self._depth = depth
        self._queue: deque[Call] = deque()  # may hold calls that have ended; `waiting` counts the others
        self._owner: dict[int, Worker] = {}  # by call id, from Send until the call ends
        self._unseen_before: set[int] = set()  # ids of calls whose worker died before it had read them
        self._commands: list[Command] = []

    @property
    def idle(self) -> int:
        """How many calls would be sent at once if they came now."""
        return len(self._crew.idle)

    @property
    def workers(self) -> dict[int, Worker]:
        """All workers that are not gone, by their ids."""
        return self._crew.workers

    # Inputs: what users want.

    def start(self, now: float) -> list[Command]:
        """Start a worker for each seat."""
        self._enter(PoolPhase.STARTING)
        return self._decided(now)

    def submit(self, call: Call, now: float) -> list[Command]:
        """Take a new call. The caller has made sure that the pool is running."""
        call.phase = CallPhase.WAITING
        self._queue.append(call)
        self.waiting += 1
        return self._decided(now)

    def cancel(self, call: Call, now: float) -> list[Command]:
        """End a call wherever it is. One that has ended already stays as it is."""
        if call.phase is CallPhase.WAITING:
            self.waiting -= 1
            self._end(call, CANCELLED)
        elif call.phase in (CallPhase.SENT, CallPhase.RUNNING):
            self._condemn(call, CANCELLED, now)
        return self._decided(now)

    def withdraw(self, call: Call, now: float) -> list[Command]:
        """End a call if no worker has it yet."""
        return self.cancel(call, now) if call.phase is CallPhase.WAITING else []

    def close(self, now: float) -> list[Command]:
        """Take no more calls; let everybody leave when the accepted ones are done."""
        if self.phase is PoolPhase.NEW:
            self._enter(PoolPhase.CLOSED)
        elif self.phase in (PoolPhase.STARTING, PoolPhase.RUNNING, PoolPhase.BROKEN):
            self._enter(PoolPhase.CLOSING)
        return self._decided(now)

    def terminate(self, now: float) -> list[Command]:
        """Fail every call and kill every worker."""
        if self.phase is PoolPhase.NEW:
            self._enter(PoolPhase.CLOSED)
        elif self.phase not in (PoolPhase.TERMINATING, PoolPhase.CLOSED):
            self._kill_all()
        return self._decided(now)

    # Inputs: what workers do.

    def ready(self, worker_id: int, now: float) -> list[Command]:
        """A worker has run its initializer."""
        worker = self.workers[worker_id]
        if worker.phase is WorkerPhase.STARTING:
            self._crew.move(worker, WorkerPhase.IDLE)
            if worker.allowance.age is not None:
                self._crew.ages[worker] = now + worker.allowance.age
            if worker.seat.occupant is worker:
                self._crew.idle.append(worker)
            elif worker.seat.occupant in self._crew.idle and worker.seat.occupant.due:
                self._dismiss(worker.seat.occupant, now)
            if self.phase is PoolPhase.STARTING and self._crew.all_ready():
                self._enter(PoolPhase.RUNNING)
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
        if not worker.calls:
            worker.cause = worker.cause or AioPoolError("a worker sent what is no message of the pool's")
        self._discard(worker, now)
        return self._decided(now)

    def began(self, worker_id: int, call_id: int, now: float) -> list[Command]:
        """A worker says that it begins a call that has a time limit."""
        worker = self.workers[worker_id]
        for call in worker.calls:
            if call.id == call_id and call.phase is CallPhase.RUNNING and call.limits.timeout is not None:
                self._crew.deadlines[worker] = now + call.limits.timeout
        return self._decided(now)

    def due(self, worker_id: int, now: float) -> list[Command]:
        """A worker uses too much memory; it is to go when it has a successor."""
        self.workers[worker_id].due = True
        return self._decided(now)

    def replied(self, worker_id: int, call_id: int, reply: Reply, now: float) -> list[Command]:
        """A worker answered a call."""
        worker = self.workers[worker_id]
        if worker.phase is WorkerPhase.KILLED:
            return []  # too late: what it had in hand is decided
        if not worker.calls or worker.calls[0].id != call_id:
            return self.garbled(worker_id, now)  # it answers what it was not asked
        call = worker.calls.popleft()
        worker.served += call.weight
        self._losses.forgive()
        self._crew.deadlines.pop(worker, None)
        self._end(call, reply if call.verdict is None else call.verdict)
        self._proceed(worker, now)
        return self._decided(now)

    def recalled(self, worker_id: int, calls: Iterable[int], now: float) -> list[Command]:
        """A worker's channel gave back these calls, which it had not begun."""
        worker = self.workers[worker_id]
        worker.recalling = False
        worker.recalled = True
        ids = set(calls)
        back = [call for call in worker.calls if call.id in ids]
        worker.calls = deque(call for call in worker.calls if call.id not in ids)
        worker.taken -= sum(call.weight for call in back)
        self._requeue(back)
        if worker.phase in (WorkerPhase.BUSY, WorkerPhase.RETIRING):
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
        useless = worker.phase not in (WorkerPhase.LEAVING, WorkerPhase.KILLED) and worker.served == 0
        in_start = worker.phase is WorkerPhase.STARTING or self.phase is PoolPhase.STARTING
        self._crew.move(worker, WorkerPhase.GONE)
        calls, worker.calls = list(worker.calls), deque()
        begun = max(0, len(calls) - unseen)
        if calls and not begun and calls[0].id in self._unseen_before:
            begun = 1  # it may well be what kills them
        elif calls and not begun:
            self._unseen_before.add(calls[0].id)
        self._requeue(calls[begun:])
        for call in reversed(calls[:begun]):
            self._end_with_worker(call, pid, exitcode)
        self._crew.vacate(worker)
        cause = worker.cause or cause
        if cause or (useless and not begun):
            self._lose(cause or _premature(pid, exitcode, in_start=in_start), now)
        return self._decided(now)

    def tick(self, now: float) -> list[Command]:
        """Act on the deadlines that have passed."""
        for worker, deadline in list(self._crew.deadlines.items()):
            if deadline <= now and worker in self._crew.deadlines:  # what is done about one may settle others
                self._overdue(worker, now)
        for worker, age in list(self._crew.ages.items()):
            if age <= now:
                del self._crew.ages[worker]
                worker.due = True
        self._losses.pass_time(now)
        return self._decided(now)

    def deadline(self) -> float | None:
        """Return when `tick` is due, or None."""
        times = [*self._crew.deadlines.values(), *self._crew.ages.values()]
        if self._losses.not_before is not None:
            times.append(self._losses.not_before)
        return min(times, default=None)

    # Decisions.

    def _decided(self, now: float) -> list[Command]:
        """Bring workers and calls together after an input; return all that is to be done."""
        self._assign(now)
        if self.phase is not PoolPhase.RUNNING:
            self._wind_down(now)
        self._refill(now)
        commands, self._commands = self._commands, []
        return commands

    def _assign(self, now: float) -> None:
        while self.waiting and self._crew.idle:
            worker = self._crew.idle.pop()
            call = self._next()
            if call.automatic and not worker.allowance.fits(worker.taken, call.weight):
                self._queue.appendleft(call)
                self._dismiss(worker, now)
            else:
                self._send(worker, call)
        if self._depth > 1:
            self._level()

    def _level(self) -> None:
        """Send ahead to busy workers while there is none idle; take back what waits behind them once there is."""
        while self.waiting and (worker := self._first_with_room()) is not None:
            self._send(worker, self._next())
        if self._crew.idle and not self.waiting:
            for worker in self.workers.values():
                if len(worker.calls) > 1:
                    self._recall(worker)

    def _first_with_room(self) -> Worker | None:
        """Return a busy worker that may be sent the next call ahead."""
        call = self._next()
        self._queue.appendleft(call)
        for worker in (seat.occupant for seat in self._crew.seats):
            if worker is None or worker.phase is not WorkerPhase.BUSY or worker.recalling:
                continue
            if worker.calls[0].phase is CallPhase.STOPPING:
                continue  # it may have to be killed
            fits = not call.automatic or worker.allowance.fits(worker.taken, call.weight)
            if fits and len(worker.calls) < self._depth:
                return worker
        return None

    def _next(self) -> Call:
        """Take the first call that still waits; there is one."""
        while (call := self._queue.popleft()).phase is not CallPhase.WAITING:
            pass
        return call

    def _send(self, worker: Worker, call: Call) -> None:
        self.waiting -= 1
        call.phase = CallPhase.SENT if worker.calls else CallPhase.RUNNING
        worker.calls.append(call)
        worker.recalled = False
        worker.taken += call.weight
        self._owner[call.id] = worker
        if worker.allowance.spent(worker.taken):
            self._crew.move(worker, WorkerPhase.RETIRING)
        elif worker.phase is WorkerPhase.IDLE:
            self._crew.move(worker, WorkerPhase.BUSY)
        self._commands.append(Send(worker.id, call))

    def _proceed(self, worker: Worker, now: float) -> None:
        """A worker goes on to what is next in its channel, or has nothing in hand any more."""
        if worker.calls:
            first = worker.calls[0]
            if first.phase is CallPhase.STOPPING:
                self._stop(worker, now)
            else:
                first.phase = CallPhase.RUNNING
        elif worker.phase is WorkerPhase.RETIRING or (worker.due and worker.seat.has_ready_successor):
            self._dismiss(worker, now)
        else:
            self._crew.move(worker, WorkerPhase.IDLE)
            self._crew.idle.append(worker)

    def _condemn(self, call: Call, verdict: Outcome, now: float) -> None:
        """Decide how a call ends that a worker has; it ends when it has stopped."""
        call.phase = CallPhase.STOPPING
        call.verdict = verdict
        self._stop(self._owner[call.id], now)

    def _stop(self, worker: Worker, now: float) -> None:
        """End what is to be stopped in a worker, and nothing else: what is behind it is taken back first."""
        if len(worker.calls) > 1:
            self._recall(worker)
        elif worker.calls[0].phase is CallPhase.STOPPING and not worker.recalling:
            if self._grace:
                self._crew.deadlines[worker] = now + self._grace
                self._commands.append(Interrupt(worker.id, worker.calls[0]))
            else:
                self._kill(worker)

    def _overdue(self, worker: Worker, now: float) -> None:
        """A worker has let its deadline pass."""
        del self._crew.deadlines[worker]
        if worker.calls and worker.calls[0].phase is CallPhase.RUNNING:
            call = worker.calls[0]
            self._condemn(call, CallTimeout(call.name, call.limits.timeout or 0.0), now)
            return
        if worker.phase is WorkerPhase.STARTING:
            worker.cause = InitializerError(f"a worker was not ready within {self._start_timeout:g} s")
        self._discard(worker, now)

    def _discard(self, worker: Worker, now: float) -> None:
        """Kill a worker that is no good. In the pool's start, that ends it at once."""
        if worker.cause is not None and self.phase is PoolPhase.STARTING:
            self._lose(worker.cause, now)
        self._kill(worker)

    def _recall(self, worker: Worker) -> None:
        if not worker.recalled and worker.phase in (WorkerPhase.BUSY, WorkerPhase.RETIRING):
            worker.recalled = worker.recalling = True
            self._commands.append(Recall(worker.id))

    def _dismiss(self, worker: Worker, now: float) -> None:
        self._crew.move(worker, WorkerPhase.LEAVING)
        self._crew.deadlines[worker] = now + LEAVE_GRACE
        self._crew.vacate(worker)
        self._commands.append(Dismiss(worker.id))

    def _kill(self, worker: Worker) -> None:
        if worker.phase is not WorkerPhase.KILLED:
            self._crew.move(worker, WorkerPhase.KILLED)
            self._crew.vacate(worker)
            self._commands.append(Kill(worker.id))

    def _refill(self, now: float) -> None:
        """Start workers for vacant seats and successors for those that retire, as far as they are needed."""
        if self._losses.not_before is not None:
            return
        if self.phase in (PoolPhase.STARTING, PoolPhase.RUNNING):
            needed = len(self._crew.seats)
        elif self.phase is PoolPhase.CLOSING and self.waiting:
            needed = self.waiting - self._crew.starting()
        else:
            return
        for seat in self._crew.openings()[: max(0, needed)]:
            worker = self._crew.hire(seat, now)
            self._commands.append(Spawn(worker.id, seat.number))

    def _wind_down(self, now: float) -> None:
        if self.phase is PoolPhase.BROKEN:
            self._fail_waiting(self.broken)  # what has come back from a worker
        if self.phase in (PoolPhase.CLOSING, PoolPhase.BROKEN) and not self.waiting:
            workers = list(self.workers.values())
            if not any(worker.recalling for worker in workers):
                for worker in workers:
                    if worker.phase is WorkerPhase.IDLE:
                        self._dismiss(worker, now)
        if self.phase in (PoolPhase.CLOSING, PoolPhase.TERMINATING) and not self.workers and not self.waiting:
            self._enter(PoolPhase.CLOSED)

    # Ends.

    def _end(self, call: Call, outcome: Outcome) -> None:
        call.phase = CallPhase.ENDED
        call.payload = []
        self._owner.pop(call.id, None)
        self._unseen_before.discard(call.id)
        self._commands.append(Finish(call, outcome))

    def _end_with_worker(self, call: Call, pid: int | None, exitcode: int | None) -> None:
        """A worker has died under a call: that is its end, unless it may be tried again."""
        call.tries += 1
        if call.verdict is None and call.tries <= call.limits.retries:
            self._requeue([call])
        else:
            self._end(call, call.verdict or WorkerDied(pid, exitcode, call.name, call.tries))

    def _requeue(self, calls: Iterable[Call]) -> None:
        """Put calls back where they came from: before all others, in their order."""
        for call in reversed(list(calls)):
            if call.verdict is not None:
                self._end(call, call.verdict)
            else:
                del self._owner[call.id]
                call.phase = CallPhase.WAITING
                self._queue.appendleft(call)
                self.waiting += 1

    def _abandon_calls(self, worker: Worker) -> None:
        for call in worker.calls:
            self._end(call, call.verdict or PoolTerminated("the pool was terminated while the call ran"))
        worker.calls.clear()

    def _kill_all(self) -> None:
        self._enter(PoolPhase.TERMINATING)
        self._fail_waiting(lambda: PoolTerminated("the pool was terminated while the call waited"))
        for worker in list(self.workers.values()):
            self._abandon_calls(worker)
            self._kill(worker)

    def _fail_waiting(self, error: Callable[[], AioPoolError]) -> None:
        while self.waiting:
            self.waiting -= 1
            self._end(self._next(), error())
        self._queue.clear()

    def _lose(self, cause: AioPoolError, now: float) -> None:
        """A worker went without having been of use: wait longer before each start, and in the end give up."""
        if self.phase is PoolPhase.STARTING:
            self.cause = cause
            self._kill_all()
            return
        if self.phase is PoolPhase.TERMINATING:
            return
        if not self._losses.count(now):
            self._give_up(cause)

    def _give_up(self, cause: AioPoolError) -> None:
        self.cause = cause
        if self.phase is PoolPhase.RUNNING:
            self._enter(PoolPhase.BROKEN)
        self._fail_waiting(self.broken)

    def broken(self) -> BrokenPool:
        """Return the error that a call on a broken pool gets."""
        error = BrokenPool(f"{self._losses.budget + 1} workers in a row were lost before they served a call")
        error.__cause__ = self.cause
        return error

    def _enter(self, phase: PoolPhase) -> None:
        if phase not in POOL_MOVES[self.phase]:
            raise RuntimeError(f"a pool that is {self.phase.value} cannot become {phase.value}")
        self.phase = phase


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
