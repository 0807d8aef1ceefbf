"""What the dispatcher does about what has happened: who is sent which call, who goes, who is started.

Nothing here is called from outside; `aiopool.dispatch` says how the parts belong together.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TypeGuard

from .calls import RUNS, SENT, Call
from .commands import Command, Dismiss, Send, Spawn
from .ends import Ends
from .phases import BUSY, IDLE, RETIRING, RUNNING, PoolPhase, WorkerPhase
from .recycling import RecycleReason
from .seats import Seat, SeatPhase, Worker

__all__ = ["AHEAD", "BEGIN_TIMEOUT", "FEW", "LEAVE_GRACE", "OVERDUE", "QUICK", "Decisions"]

LEAVE_GRACE = 5.0
"""Seconds that a dismissed worker has for its atexit handlers and threads before it is killed."""

BEGIN_TIMEOUT = 60.0
"""Seconds, beside its own, that a call with a time limit has before its worker says that it begins."""

AHEAD = 0.002
"""Seconds of work, as far as can be predicted, that a worker has in its channel at most when more is sent to it."""

FEW = 4
"""Calls that a worker should have ahead, so that it can be left alone for a while."""

QUICK = 0.00005
"""Seconds that a call takes, for which this process has to do about as much as its worker, so that it loses little if
that has to wait for the next one."""

OVERDUE = 0.005
"""Seconds after which a call that was predicted to be short is taken for a long one."""


class Decisions(Ends):
    """What is decided on the state; how things end is decided in `aiopool.ends`."""

    def _decided(self, now: float) -> list[Command]:
        """Bring workers and calls together after an input; return all that is to be done."""
        crew, backlog = self._crew, self._backlog
        if backlog.waiting:
            self._assign(now)
        if crew.dormant:
            self._wake()
        if backlog.waiting:
            self._send_ahead(now)
        if crew.dormant or not crew.settled:
            self._refill(now)
        if len(self._owner) > 1:  # else nothing is behind anything
            self._take_back(now)
        if self.phase is not RUNNING:
            self._wind_down(now)
        commands, self._commands = self._commands, []
        return commands

    def _assign(self, now: float) -> None:
        idle, backlog = self._crew.idle, self._backlog
        while backlog.waiting and idle:
            worker, call = idle.pop(), backlog.first()
            if call.automatic and not worker.allowance.fits(worker.taken, call.weight):
                self._replace(worker, now)
            else:
                self._send(worker, backlog.take(), now)
        while backlog.waiting and (roomiest := self._roomiest(backlog.first())) is not None:
            self._send(roomiest, backlog.take(), now)

    def _roomiest(self, call: Call) -> Worker | None:
        """Return the busy worker with the fewest calls that has a place for this one beside them, or None."""
        if self._concurrency == 1 or not call.shares:
            return None
        occupants = filter(_may_have_more, (seat.occupant for seat in self._crew.seats))
        roomy = (worker for worker in occupants if len(worker.calls) < worker.width and _fits(worker, call))
        return min(roomy, key=lambda worker: len(worker.calls), default=None)

    def _width_for(self, call: Call) -> int:
        """Return how many calls of this kind a worker runs at once."""
        return self._concurrency if call.shares else 1

    def _send_ahead(self, now: float) -> None:
        """Deal out what waits among busy workers, to each one call in its turn, as long as all of it is soon done.

        But not while another worker could be had: two calls may wait for one another.
        """
        if self._crew.dormant or self._short_of_workers:
            return
        occupants = (seat.occupant for seat in self._crew.seats)
        turns = deque(sorted(filter(_may_have_more, occupants), key=lambda worker: worker.load))
        backlog, many = self._backlog, self._many
        while backlog.waiting:
            call = backlog.first()
            worker = self._roomiest(call) or self._next_with_room(turns, call, few=backlog.waiting < many)
            if worker is None:
                return
            self._send(worker, backlog.take(), now)

    def _next_with_room(self, turns: deque[Worker], call: Call, *, few: bool) -> Worker | None:
        """Return whose turn it is to be sent this call, now behind the others; drop those with no room at all."""
        width, seconds = self._width_for(call), call.pace.seconds * call.weight
        if few and seconds <= QUICK:
            return None
        soon = AHEAD * width - seconds  # this call will soon be done behind what takes so long
        for _ in range(len(turns)):
            worker = turns.popleft()
            most = min(self._depth, worker.width + 1) if few else self._depth
            if len(worker.calls) < most and worker.phase is BUSY:
                turns.append(worker)
                if worker.load <= soon and worker.width == width and _fits(worker, call):
                    return worker
        return None

    @property
    def _many(self) -> int:
        """How many calls have to wait before more than one, or a quick one, is sent ahead to a worker."""
        return self._reserve * len(self._crew.seats)

    @property
    def _short_of_workers(self) -> bool:
        """Whether a seat is vacant, and no worker is made for it unless calls wait that nobody has."""
        if self.phase is RUNNING:
            return False
        if self.phase is PoolPhase.CLOSING:
            return any(seat.vacant for seat in self._crew.seats)
        return self.phase is PoolPhase.BROKEN

    def _take_back(self, now: float) -> None:
        """Take back what a worker has not begun if it could begin elsewhere, or if what it is behind is long."""
        if len(self._crew.seats) == 1:
            return  # there is nobody else
        free, short = bool(self._crew.idle) and not self._backlog.waiting, self._short_of_workers
        for seat in self._crew.seats:
            worker = seat.occupant
            if worker is None or len(worker.calls) < 2:  # noqa: PLR2004 - the only one is behind nothing
                continue
            if len(worker.calls) <= worker.width:
                if free:  # it may not get round to all that it has a place for
                    self._recall(worker)
            elif now - worker.since > OVERDUE:
                worker.load = math.inf  # nothing is to follow before something has come to an end
                self._recall(worker)
            elif free or short or self._roomiest(worker.calls[worker.width]) is not None:
                self._recall(worker)

    def _send(self, worker: Worker, call: Call, now: float) -> None:
        calls = worker.calls
        if not calls:
            worker.load, worker.since = 0.0, now
            worker.width = self._width_for(call)
        if len(calls) < worker.width:
            self._expect(call, now)
        else:
            call.phase = SENT
        if call.shares:
            call.loading = not isinstance(call.payload, bytes)
        call.cost = cost = call.pace.seconds * call.weight
        worker.load += cost
        calls.append(call)
        worker.recalled = False
        worker.taken += call.weight
        self._owner[call.id] = worker
        if worker.allowance.spent(worker.taken):
            self._crew.move(worker, RETIRING)
        elif worker.phase is IDLE:
            self._crew.move(worker, BUSY)
        self._commands.append(Send(worker.id, call))

    def _expect(self, call: Call, now: float) -> None:
        """Its worker is to begin this call; if that has a time limit it will say so, unless it is stopped or stuck."""
        call.phase, call.since = RUNS, now
        if call.limits.timeout is not None:
            self._crew.deadlines[call] = now + call.limits.timeout + BEGIN_TIMEOUT

    def _proceed(self, worker: Worker, now: float) -> None:
        """A worker goes on to what is next in its channel, or has nothing in hand any more."""
        if worker.calls:
            for call in worker.running() if worker.width > 1 else (worker.calls[0],):
                if call.phase is SENT:
                    self._expect(call, now)
            if worker.is_stopping:
                self._stop(worker, now)
        elif worker.phase is RETIRING or (worker.due and worker.seat.has_ready_successor):
            self._replace(worker, now)
        else:
            self._crew.move(worker, IDLE)
            self._crew.rest(worker, now)

    def _replace(self, worker: Worker, now: float) -> None:
        """Dismiss a worker that has served enough, or whose seat is no more."""
        replaced = self.phase is RUNNING and worker.seat.phase is SeatPhase.OPEN
        self._dismiss(worker, worker.due or RecycleReason.CALLS if replaced else None, now)

    def _wear_out(self, worker: Worker, reason: RecycleReason, now: float) -> None:
        """A worker is to go as soon as somebody can take its place, and that may be now."""
        self._crew.wear_out(worker, reason)
        if worker in self._crew.idle and worker.seat.has_ready_successor:
            self._replace(worker, now)

    def _dismiss(self, worker: Worker, reason: RecycleReason | None, now: float) -> None:
        self._crew.move(worker, WorkerPhase.LEAVING)
        self._crew.deadlines[worker] = now + LEAVE_GRACE
        self._crew.vacate(worker, now)
        self._commands.append(Dismiss(worker.id, reason))

    # Seats.

    def _clear(self, seat: Seat, now: float) -> None:
        """Have everybody leave a seat: the successor first, or it would take the occupant's place."""
        for worker in (seat.successor, seat.occupant):
            if worker is not None:
                self._send_off(worker, now)

    def _send_off(self, worker: Worker, now: float) -> None:
        """Have a worker leave that is not needed any more, with nothing in hand but what it runs already."""
        if worker.phase is IDLE:
            self._dismiss(worker, None, now)
        elif worker.phase is WorkerPhase.STARTING:
            self._kill(worker, now)
        elif worker.phase is WorkerPhase.LEAVING:
            self._crew.vacate(worker, now)
        else:
            if worker.phase is BUSY:
                self._crew.move(worker, RETIRING)
            if len(worker.calls) > 1:
                self._recall(worker)

    def _let_idle_go(self, now: float) -> None:
        """Dismiss who has had nothing to do for too long, as long as enough others are ready."""
        while (due := self._idle_deadline()) is not None and due <= now:
            seat = self._crew.idle[0].seat
            self._crew.lay_down(seat)
            self._clear(seat, now)

    def _idle_deadline(self) -> float | None:
        """Return when the next worker goes that has nothing to do until then, or None."""
        idle, timeout = self._crew.idle, self._idling.timeout
        if timeout is None or not idle or self.phase is not RUNNING:
            return None
        spare = len(idle) > self._idling.minimum or self._crew.count_staffed() > self._idling.minimum
        return idle[0].since + timeout if spare else None

    def _wake(self) -> None:
        """Open dormant seats: one for each call that nobody is there for, or on the way, and up to the minimum."""
        if self.phase is RUNNING and self._losses.not_before is None:
            crew, least = self._crew, min(self._idling.minimum, self.seats)
            opened = self.seats - crew.dormant
            coming = opened - crew.count_staffed()
            crew.wake(max(self._backlog.waiting - len(crew.idle) - coming, least - opened))

    def _refill(self, now: float) -> None:
        """Start workers for vacant seats and successors for those that retire, as far as they are needed."""
        if self._losses.not_before is not None:
            return
        if self.phase in (PoolPhase.STARTING, RUNNING):
            openings = self._crew.openings()
        elif self.phase is PoolPhase.CLOSING and self._backlog.waiting:
            openings = self._openings_for(self._backlog.waiting)
        else:
            return
        for seat in openings:
            worker = self._crew.hire(seat, now)
            self._commands.append(Spawn(worker.id, seat.number))

    def _openings_for(self, calls: int) -> list[Seat]:
        """Return the seats that a worker is to be made for if so many calls wait, and no other will come."""
        crew = self._crew
        # First those where it can begin at once: whoever is to be succeeded may run what waits for one of these calls.
        coming = sum(seat.occupant is not None and not seat.staffed for seat in crew.seats)
        if crew.dormant:
            crew.wake(calls - coming - sum(seat.vacant for seat in crew.seats))
        openings = crew.openings()
        vacant = [seat for seat in openings if seat.vacant][: max(0, calls - coming)]
        occupied = [seat for seat in openings if not seat.vacant]
        return vacant + occupied[: max(0, calls - crew.starting() - len(vacant))]

    def _wind_down(self, now: float) -> None:
        if self.phase is PoolPhase.BROKEN:
            self._fail_waiting(self.broken)  # what has come back from a worker
        waiting = self._backlog.waiting
        if self.phase in (PoolPhase.CLOSING, PoolPhase.BROKEN) and not waiting:
            workers = list(self._crew.workers.values())
            if not any(worker.recalling for worker in workers):
                for worker in workers:
                    if worker.phase is IDLE:
                        self._dismiss(worker, None, now)
        if self.phase in (PoolPhase.CLOSING, PoolPhase.TERMINATING) and not self._crew.workers and not waiting:
            self._enter(PoolPhase.CLOSED)

    def _open(self, now: float) -> None:
        """Calls can come from now on."""
        self._enter(RUNNING)
        for worker in self._crew.idle:
            worker.since = now


def _may_have_more(worker: Worker | None) -> TypeGuard[Worker]:
    """Whether this is a worker that is busy, and may be sent more."""
    if worker is None or worker.phase is not BUSY:
        return False
    if not worker.calls or worker.recalling or worker.is_loading or worker.is_stopping:
        return False
    return not (worker.due and worker.seat.has_ready_successor)  # or it would never have nothing in hand, and go


def _fits(worker: Worker, call: Call) -> bool:
    """Whether a worker may serve all of this call."""
    return not call.automatic or worker.allowance.fits(worker.taken, call.weight)
