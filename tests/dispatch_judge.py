"""What a dispatcher may decide, and what holds between its decisions; `dispatch_world` says for what."""

from __future__ import annotations

import math
from typing import Any

from aiopool import decisions, ends
from aiopool.calls import CANCELLED, STOP_GRACE, Call, Outcome, Reply
from aiopool.commands import Command, Dismiss, Finish, Interrupt, Kill, Recall, Send, Spawn
from aiopool.exceptions import BrokenPool, CallTimeout, PoolTerminated, WorkerDied
from aiopool.phases import PoolPhase
from aiopool.recycling import RecycleReason
from dispatch_facts import TIMEOUT, Facts, Process, Ticket, fresh, unwanted


class Judge(Facts):
    """Keeps the facts as the dispatcher's commands change them, and says no."""

    event: tuple[Any, ...] = ()
    """What the dispatcher has just been told."""

    behind = 0
    """How many calls it has sent behind others for that."""

    woken_late = False
    """Whether it has started a worker for a seat that was asleep, and has not looked at what waits since."""

    # Commands, in the moment that they are decided.

    def judge(self, command: Command) -> None:
        """Say whether this command is right."""
        match command:
            case Spawn(number, seat):
                self._judge_spawn(number, seat)
            case Send(number, call):
                self._judge_send(self.processes[number], call)
            case Recall(number):
                self._judge_recall(self.processes[number])
            case Interrupt(number, call):
                self._judge_interrupt(self.processes[number], self.by_id[call.id])
            case Dismiss(number, reason):
                self._judge_dismiss(self.processes[number], reason)
            case Kill(number):
                self._judge_kill(self.processes[number])
            case Finish(call, outcome):
                self._judge_finish(self.by_id[call.id], outcome)

    def _judge_spawn(self, number: int, seat: int) -> None:
        assert number not in self.processes
        assert 0 <= seat < self.seats
        assert not any((self.terminated, self.start_failed)), "nobody is needed any more"
        starting = sum(not unwanted(other) and not other.ready for other in self.processes.values())
        coming = starting if self.in_seat(seat) else self.unready()
        assert not self.closing or coming < len(self.queue), "there are enough for what waits"
        assert self.closing or not self.broken, "the pool has given up"
        assert all(other.spent or other.worn is not None for other in self.in_seat(seat)), "the seat is taken"
        assert len(self.in_seat(seat)) < 2, "the seat has its successor"
        assert self.not_before is None, "it is too early for another start"
        if seat in self.asleep:
            needed = self.coming() < len(self.queue) + self.behind or self.seats - len(self.asleep) < self.least
            assert needed or self.closing, "nobody needs it"
            self.asleep.remove(seat)
            self.woken_late = self.closing
        process = self.processes[number] = Process(number, seat, self.now + ends.START_TIMEOUT)
        part = 1 - self.policy.jitter * self.foresee()
        if self.policy.maxtasksperchild is not None:
            process.limit = max(1, round(self.policy.maxtasksperchild * part))
        if self.policy.max_age is not None:
            process.age = self.policy.max_age * part

    def _judge_send(self, process: Process, call: Call) -> None:
        ticket = self.by_id[call.id]
        assert self.queue, f"{ticket} does not wait"
        assert self.queue.popleft() is ticket, f"{ticket} jumps the queue"
        assert process.serving
        assert not process.spent, "it has served enough"
        assert not self.relieved(process), "it is to go"
        assert self.in_seat(process.seat)[0] is process, "its seat is not vacant yet"
        assert not (process.held and process.stopping), "it may have to be killed"
        assert process.takes(ticket)
        if process.held:
            assert process.width == self.width_for(ticket), "it runs what this cannot run beside"
            assert not self.idle(), "another worker is free"
            assert not process.recalling, "it is giving back"
        else:
            process.load, process.since, process.width = 0.0, self.now, self.width_for(ticket)
        if len(process.held) >= process.width:
            assert len(process.held) < self.depth
            assert not self.has_its_share(process, ticket, len(self.queue) + 1), "it is to have no more ahead"
            assert not any(self.has_place(server, ticket) for server in self.servers()), "another worker has a place"
            assert not self.short_of_workers(), "another worker could be made"
            self.behind += 1
            assert process.soon_done(ticket), "it has enough to do"
        elif process.held:
            roomy = [server for server in self.servers() if self.has_place(server, ticket)]
            assert len(process.held) == min(len(server.held) for server in roomy), "another worker has fewer"
        process.load += ticket.cost
        process.held.append(ticket)
        self.advance(process)
        process.emptied = False
        process.taken += call.weight
        self.weigh(process)

    def advance(self, process: Process) -> None:
        """Note when a worker must have begun the calls that it has a place for."""
        for ticket in process.inside:
            timeout = ticket.call.limits.timeout
            if not ticket.expected and timeout is not None and not ticket.stopping:
                ticket.deadline = self.now + timeout + decisions.BEGIN_TIMEOUT
            ticket.expected = True

    @staticmethod
    def weigh(process: Process) -> None:
        """Note whether it has had all that it may serve."""
        process.spent = process.limit is not None and process.taken >= process.limit
        process.has_been_spent |= process.spent

    def _judge_recall(self, process: Process) -> None:
        assert process.seated
        assert len(process.held) > 1, "there is nothing to take back"
        assert not process.recalling, "it is asked already"
        assert not process.emptied, "it has said that it has nothing"
        wanted = process.out or any(t.stopping or t.withdrawn for t in process.held)
        if len(process.held) > process.width:
            wanted = wanted or self.overdue(process) or self.short_of_workers() or self.place_elsewhere(process)
        assert wanted or self.idle(), "nobody wants it back"
        process.recalling = process.emptied = True

    def _judge_interrupt(self, process: Process, ticket: Ticket) -> None:
        assert self.grace or ticket.has_grace, "there is no grace"
        assert process.seated, "it hears nothing any more"
        assert ticket.stopping, f"{ticket} is innocent"
        assert ticket in process.held
        assert len(process.held) <= process.width, "it has another call in hand"
        assert process.emptied or len(process.held) == 1, "it may have what it has not begun"
        assert not process.recalling, "it is giving back"
        assert not ticket.interrupted, "it is interrupted already"
        ticket.interrupted = True
        ticket.deadline = self.now + (self.grace or STOP_GRACE)

    def _judge_dismiss(self, process: Process, reason: RecycleReason | None) -> None:
        assert process.serving
        assert not process.held, "it has something in hand"
        rests = self.event[0] == "tick" and self._may_rest(process.seat)
        rests = rests and not (reason and self.relieved(process))  # else it goes because it is worn
        assert process.out or rests or self._may_leave(process), "it is needed"
        replaced = self.phase is PoolPhase.RUNNING and not process.out and not rests
        assert reason is (process.worn or RecycleReason.CALLS if replaced else None)
        if rests and self.in_seat(process.seat) == [process]:
            self.asleep.add(process.seat)
            del self.rested[process.seat]
        process.dismissed = True
        process.deadline = self.now + decisions.LEAVE_GRACE
        process.worn_at = None

    def _may_leave(self, process: Process) -> bool:
        """Whether it has served enough, or nobody needs anybody any more."""
        done = (self.closing or self.broken) and not self.queue
        if done and self.in_seat(process.seat)[0] is process:
            done = not any(other.keeps for other in self.processes.values() if other.seated)
        unfit = bool(self.queue) and not process.takes(self.queue[0])
        return done or process.spent or self.relieved(process) or unfit

    def _may_rest(self, seat: int) -> bool:
        """Whether nobody in a seat has had anything to do for too long, nor for longer in any other."""
        end = self.rest_ends()
        return end is not None and end <= self.now and self.rested.get(seat) == min(self.rested.values())

    def _judge_kill(self, process: Process) -> None:
        assert not process.killed, "it is killed already"
        too_late = self.event[0] == "tick" and process.number in self.event[1]
        wanted = bool(process.held) and all(ticket.stopping for ticket in process.held) and not process.recalling
        if self.grace or any(ticket.has_grace for ticket in process.held):
            wanted = False  # they are interrupted first
        if fresh(process):
            wanted |= process.out or (self.event[0] == "tick" and self._may_rest(process.seat))
        assert self.terminated or self.start_failed or process.garbled or too_late or wanted, "it is innocent"
        process.killed = True
        process.deadline = process.worn_at = None
        for ticket in process.held:
            ticket.deadline = None

    def _judge_finish(self, ticket: Ticket, outcome: Outcome) -> None:
        assert ticket.decided is None, f"{ticket} ends again"
        match outcome:
            case Reply():
                assert self.event[0] == "replied"
                assert self.event[1] is ticket
                assert self.event[2] is outcome
                assert self.event[3], "its worker is killed, and the call decided"
                assert not ticket.stopping
                assert not ticket.withdrawn
            case WorkerDied():
                self._judge_death(ticket, outcome)
            case CallTimeout():
                assert ticket.stopping == TIMEOUT
                assert (outcome.call, outcome.timeout) == (ticket.call.name, ticket.call.limits.timeout)
            case BrokenPool():
                assert self.broken
                assert ticket in self.queue
                assert outcome.__cause__ is self.dispatcher.cause
            case PoolTerminated():
                assert self.terminated
                assert not ticket.stopping
                assert not ticket.withdrawn
            case _:
                assert outcome is CANCELLED
                assert ticket.stopping is CANCELLED or ticket.withdrawn
        self._finish(ticket, outcome)

    def _judge_death(self, ticket: Ticket, outcome: WorkerDied) -> None:
        assert self.event[0] == "died"
        assert ticket in self.event[1]
        assert self.event[2:4] == (outcome.pid, outcome.exitcode)
        begun, process = self.event[4:]
        assert outcome.beside == tuple(other.call.name for other in begun if other is not ticket)
        reasons = [process.culprit.call.name] if process.culprit else []
        reasons += ["it sent"] if process.garbled else []
        assert (outcome.because or "").startswith(tuple(reasons) or "")
        assert bool(reasons) == bool(outcome.because)
        assert outcome.call == ticket.call.name
        assert outcome.tries == ticket.tries == ticket.call.limits.retries + 1
        assert not ticket.stopping
        assert not ticket.withdrawn

    def _finish(self, ticket: Ticket, outcome: Outcome) -> None:
        ticket.decided, ticket.deadline = outcome, None
        assert ticket.call.payload == b""
        for place in (self.queue, *(process.held for process in self.processes.values())):
            if ticket in place:
                place.remove(ticket)

    # What holds at all times.

    def check(self) -> None:
        """Compare what the dispatcher thinks with what is."""
        self._check_records()
        self._check_calls()
        self._check_phase()
        self._check_deadline()
        if self.phase in (PoolPhase.RUNNING, PoolPhase.CLOSING, PoolPhase.BROKEN):
            self._check_no_waste()
        if self.phase is PoolPhase.RUNNING or (self.phase is PoolPhase.STARTING and not self.doomed):
            self._check_seats()

    def _check_records(self) -> None:
        known = {number: list(worker.calls) for number, worker in self.dispatcher.workers.items()}
        assert known == {number: [t.call for t in process.held] for number, process in self.processes.items()}
        assert self.dispatcher.waiting == len(self.queue)
        assert self.thrown == self.foreseen, "the dice were thrown once too often, or not at all"
        assert self.dispatcher.seats == self.seats
        left = any(process.seat >= self.seats for process in self.processes.values())
        assert self.dispatcher.resizing == (left or bool(self.fresh))

    def _check_calls(self) -> None:
        holders = [process for process in self.processes.values() if process.held and process.seated]
        assert len({process.seat for process in holders}) == len(holders), "two workers of one seat have calls"
        alive = [process for process in self.processes.values() if not process.killed]
        assert sum(bool(process.running) and not process.out for process in alive) <= self.seats
        for ticket in self.tickets:
            assert ticket.outcomes == ([] if ticket.decided is None else [ticket.decided])
            if ticket.decided is None:
                assert ticket.call.payload, "a call that has not ended has lost its arguments"
        for process in holders:
            if len(process.held) <= process.width:
                assert all(t.interrupted for t in process.held if t.stopping), "a call to be stopped runs on"
            unread = [ticket for ticket in process.inbox if ticket.stopping]
            assert not unread or (len(process.held) == 1 and unread[0].interrupted), "a call to be stopped is unread"
            assert not any(ticket.withdrawn for ticket in process.inbox), (
                "a call that nobody wants is left in the channel"
            )

    def _check_phase(self) -> None:
        unfinished = any(ticket.decided is None for ticket in self.tickets)
        over = not self.processes and not unfinished
        ended = self.phase is PoolPhase.CLOSED
        if self.terminated or self.start_failed:
            assert self.phase is (PoolPhase.CLOSED if over else PoolPhase.TERMINATING)
            assert not unfinished
        elif self.closing:
            assert self.phase is (PoolPhase.CLOSED if over else PoolPhase.CLOSING)
        elif self.broken:
            assert self.phase is PoolPhase.BROKEN
            assert not self.queue, "calls wait for nobody"
        elif self.phase is PoolPhase.STARTING:
            assert not all(first and first.serving for first in self.firsts()), "all are ready"
        else:
            assert self.phase in (PoolPhase.NEW, PoolPhase.RUNNING)
        assert not ended or over

    def _check_deadline(self) -> None:
        deadline = self.dispatcher.deadline()
        if self.phase in (PoolPhase.STARTING, PoolPhase.RUNNING, PoolPhase.CLOSING, PoolPhase.BROKEN):
            worn = [process.worn_at for process in self.processes.values() if process.worn_at is not None]
            assert deadline == min(self.deadlines() + worn, default=None)

    def deadlines(self) -> list[float]:
        """Return when something is due, apart from workers that only grow old."""
        known = [process.deadline for process in self.processes.values()] + [self.not_before, self.rest_ends()]
        known += [ticket.deadline for process in self.processes.values() for ticket in process.held]
        return [deadline for deadline in known if deadline is not None]

    def _check_no_waste(self) -> None:
        """Nobody waits while somebody is free; nobody is free while somebody waits."""
        idle = self.idle()
        assert not (idle and self.queue), "a call waits although a worker is idle"
        assert self.dispatcher.idle == len(idle)
        if self.queue:
            for process in self.servers():
                first = self.queue[0]
                assert not self.has_place(process, first), "a call waits although there is a place for it"
                full = len(process.held) >= self.depth or not process.takes(first) or not process.soon_done(first)
                full = full or process.width != self.width_for(first)
                full = full or self.has_its_share(process, first, len(self.queue))
                others = self.asleep or self.woken_late or self.short_of_workers() or self.awaits_somebody()
                assert full or others or process.stopping or self.relieved(process), "not sent ahead"
            left = [process for process in self.servers() if process.load == math.inf and len(process.held) > 1]
            assert not any(p.unanswered > p.width for p in left), "left"
        if self.closing and self.vacant() and self.not_before is None:
            assert self.unready() >= len(self.queue), "a call waits although a worker could be had"
        if idle and self.seats > 1:
            assert not any(p.keeps for p in self.processes.values() if p.seated), "not taken back"
        if self.short_of_workers():
            assert all(p.unanswered <= p.width for p in self.processes.values() if p.seated), "not taken back"
        for process in self.servers():
            assert process.unanswered <= process.width or not self.place_elsewhere(process), "it could begin elsewhere"
        outside = [process for process in self.processes.values() if process.out and process.seated]
        assert all(process.unfit or len(process.held) > 0 for process in outside), "it has nothing to do there"
        assert not any(process.keeps for process in outside), "it has calls that could run elsewhere"

    def _check_seats(self) -> None:
        """Every seat that is not asleep has a worker, and one that is to go a successor, or they are to come."""
        for seat in range(self.seats):
            workers = self.in_seat(seat)
            assert len(workers) <= 2
            if workers and self.relieved(workers[0]):
                assert workers[0].held, "it has nothing in hand, and could go"
            if seat in self.asleep:
                assert not workers, "it could have stayed"
            elif self.not_before is None:
                assert workers, "a seat stays vacant"
                wanted = workers[0].spent or workers[0].worn is not None
                assert len(workers) > wanted, "a successor is missing"
                assert len(workers) == 1 or wanted or workers[0].has_been_spent, "one too many"
        if self.asleep and self.not_before is None:
            assert len(self.queue) <= self.coming(), "a call waits although a worker could be had"
            assert self.seats - len(self.asleep) >= self.least, "there should be more"
