"""The dispatcher in every order of events, against a small model of the world around it.

`World` is the shell and the workers: it carries out commands in the shell's order (what carrying one out leads to
comes after what is already decided), keeps what a dispatcher may know and what really happened, and compares.
`Machine` draws what happens next.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiopool import dispatch, losses
from aiopool.calls import CANCELLED, Call, Outcome, Reply
from aiopool.commands import Command, Dismiss, Finish, Kill, Recall, Send, Spawn
from aiopool.dispatch import Dispatcher
from aiopool.exceptions import AioPoolError, BrokenPool, InitializerError, PoolTerminated, WorkerDied
from aiopool.phases import PoolPhase
from aiopool.recycling import RecyclePolicy

REACTIONS = (None,) * 12 + ("submit",) * 4 + ("cancel", "replace", "replace") + ("close", "terminate")


@dataclasses.dataclass(eq=False)
class Ticket:
    """One call, and what happened to it."""

    call: Call
    reaction: str | None
    cancelled: bool = False
    decided: Outcome | None = None
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    begun: int = 0
    unseen: bool = False  # a worker that had it has died before it read it

    def __repr__(self) -> str:
        return f"<Ticket {self.call.name}>"


@dataclasses.dataclass(eq=False)
class Process:
    """One worker: the process, and what the dispatcher has decided on it."""

    number: int
    seat: int
    due: float  # when it has to be ready, or gone
    ready: bool = False
    unfit: bool = False
    late: bool = False  # killed because it was not ready in time
    garbled: bool = False
    useless: bool = False  # garbled with nothing in hand
    killed: bool = False
    dismissed: bool = False
    spent: bool = False
    recalling: bool = False
    taken: int = 0
    served: int = 0
    held: deque[Ticket] = dataclasses.field(default_factory=deque)  # sent and not answered, as far as is known
    inbox: deque[Ticket] = dataclasses.field(default_factory=deque)
    running: Ticket | None = None
    outbox: deque[tuple[Ticket, Reply]] = dataclasses.field(default_factory=deque)

    @property
    def seated(self) -> bool:
        """Whether it still counts for its seat."""
        return not (self.killed or self.dismissed)

    @property
    def leaving(self) -> bool:
        """Whether it goes by itself."""
        return not self.killed and (self.dismissed or self.unfit)

    @property
    def unanswered(self) -> int:
        """How many calls it has, apart from those whose replies are on their way."""
        return len(self.held) - len(self.outbox)

    @property
    def serving(self) -> bool:
        """Whether it may get calls, if its seat is its own."""
        return self.seated and self.ready and not self.unfit


class World:
    """Everything around a dispatcher. Its methods are what may happen."""

    def __init__(self, seats: int, depth: int, limit: int | None) -> None:
        self.seats, self.depth, self.limit = seats, depth, limit
        self.dispatcher = Dispatcher(seats, RecyclePolicy(limit), depth=depth, jitter=lambda: 0.5)
        self.now = 1000.0
        self.processes: dict[int, Process] = {}
        self.tickets: list[Ticket] = []
        self.queue: deque[Ticket] = deque()
        self.closing = self.terminated = self.doomed = self.start_failed = self.broken = False
        self.losses = 0
        self.lost_at = 0.0
        self.not_before: float | None = None
        self.spawns_to_fail = 0
        self.quick_to_begin = self.slow_to_report = False
        self._event: tuple[Any, ...] = ()
        self._pending: deque[Command] = deque()
        self._performing = False
        self._stillborn: set[int] = set()

    # What users do.

    def start(self) -> None:
        """The pool starts."""
        self._decide(("start",), self.dispatcher.start)

    def submit(self, weight: int = 1, *, automatic: bool = False, reaction: str | None = None) -> None:
        """A call arrives."""
        call = Call(f"job{len(self.tickets)}", [b""], lambda outcome: self._finished(ticket, outcome))
        call.weight, call.automatic = weight, automatic
        ticket = Ticket(call, reaction)
        self.tickets.append(ticket)
        self.queue.append(ticket)
        self._decide(("submit",), lambda now: self.dispatcher.submit(call, now))

    def cancel(self, ticket: Ticket) -> None:
        """Somebody wants a call to end."""
        waiting = ticket in self.queue
        ticket.cancelled |= ticket.decided is None
        self._decide(("cancel",), lambda now: self.dispatcher.cancel(ticket.call, now))
        assert ticket.decided is CANCELLED or not waiting, "a waiting call ends at once"

    def withdraw(self, ticket: Ticket) -> None:
        """Somebody wants a call to end if no worker has it."""
        waiting = ticket in self.queue
        ticket.cancelled |= waiting
        before = ticket.decided
        self._decide(("withdraw",), lambda now: self.dispatcher.withdraw(ticket.call, now))
        assert ticket.decided is (CANCELLED if waiting else before)

    def close(self) -> None:
        """The pool is closed."""
        self.closing = True
        self._decide(("close",), self.dispatcher.close)

    def terminate(self) -> None:
        """The pool is terminated."""
        self.terminated = True
        self._decide(("terminate",), self.dispatcher.terminate)
        assert all(ticket.decided is not None for ticket in self.tickets)

    def wait(self, seconds: float) -> None:
        """Time passes; a tick comes when it is due, and maybe when it is not."""
        self.now += seconds
        due = {p.number for p in self.processes.values() if (not p.ready or p.leaving) and p.due <= self.now}
        for process in self.processes.values():
            if process.number in due and process.seated and not process.ready:
                process.late |= not process.unfit
                self.start_failed |= self.phase is PoolPhase.STARTING
        if self.not_before is not None and self.not_before <= self.now:
            self.not_before = None
        self._decide(("tick", due), self.dispatcher.tick)
        assert all(self.processes[number].killed for number in due if number in self.processes)

    def wait_until_due(self) -> bool:
        """Time passes up to what the dispatcher waits for; return whether there was anything."""
        deadline = self.dispatcher.deadline()
        if deadline is not None:
            self.wait(max(0.0, deadline - self.now))
        return deadline is not None

    # What workers do.

    def become_ready(self, process: Process) -> None:
        """A worker says that it is ready."""
        process.ready = True
        before = self.phase
        self._decide(("ready",), lambda now: self.dispatcher.ready(process.number, now))
        if before is not self.phase is PoolPhase.RUNNING:
            assert all(other.ready or other.unfit or other.killed for other in self.processes.values())
            assert not self.doomed, "a first worker was no good"

    def become_unfit(self, process: Process) -> None:
        """A worker says that its initializer failed."""
        if not process.killed:
            process.unfit = True
            process.due = self.now + dispatch.LEAVE_GRACE
            self.doomed |= self.phase is PoolPhase.STARTING
        self._decide(("unfit",), lambda now: self.dispatcher.unfit(process.number, InitializerError("unfit"), now))

    def begin(self, process: Process) -> None:
        """A worker begins the next call in its channel."""
        ticket = process.running = process.inbox.popleft()
        ticket.begun += 1
        assert ticket.begun == 1, f"{ticket} runs again"
        assert ticket.decided is None, f"{ticket} runs after its end"

    def answer(self, process: Process) -> None:
        """A worker's call returns; nobody has read its reply yet."""
        assert process.running
        reply = Reply(failed=False, payload=b"%d of %d" % (process.running.call.id, process.number))
        process.outbox.append((process.running, reply))
        process.running = None

    def deliver(self, process: Process) -> None:
        """A reply arrives."""
        ticket, reply = process.outbox.popleft()
        counts = not process.killed
        if counts:
            assert process.held.popleft() is ticket
            process.served += ticket.call.weight
            self.losses = 0
        event = ("replied", ticket, reply, counts)
        self._decide(event, lambda now: self.dispatcher.replied(process.number, ticket.call.id, reply, now))
        if counts:
            assert ticket.decided is (CANCELLED if ticket.cancelled else reply)

    def garble(self, process: Process, way: int, *, goes_on: bool) -> None:
        """A worker sends nonsense: what is no frame, a reply to nothing, or to a call that it has not begun.

        Before anybody reads that, it may go on to the next of its calls.
        """
        while process.outbox:
            self.deliver(process)
        if process.killed:
            return
        if goes_on and process.running and process.inbox:
            self.answer(process)
            self.begin(process)
        process.garbled, process.useless = True, not process.held
        self.start_failed |= self.phase is PoolPhase.STARTING
        nonsense = Reply(failed=False, payload=b"nonsense")
        wrong = process.held[-1].call.id if len(process.held) > 1 else 0
        if way == 0:
            self._decide(("garbled",), lambda now: self.dispatcher.garbled(process.number, now))
        else:
            self._decide(("garbled",), lambda now: self.dispatcher.replied(process.number, wrong, nonsense, now))
        assert process.killed

    def die(self, process: Process, exitcode: int | None = -9, *, reading: bool = False) -> None:
        """A worker's process ends, maybe after it has read its next call and before it has begun that."""
        while process.outbox:
            self.deliver(process)
        unseen = sum(ticket in process.held for ticket in process.inbox)
        if reading and unseen and not process.running:
            unseen -= 1
        self._died(process, 4000 + process.number, exitcode, unseen, None)

    def _died(
        self, process: Process, pid: int | None, exitcode: int | None, unseen: int, cause: AioPoolError | None
    ) -> None:
        del self.processes[process.number]
        held = list(process.held)
        begun = len(held) - unseen
        if held and not begun and held[0].unseen:
            begun = 1
        victims, spared = held[:begun], held[begun:]
        if spared and not begun:
            spared[0].unseen = True
        self.queue.extendleft(ticket for ticket in reversed(spared) if not ticket.cancelled)
        lost = cause is not None or self._is_loss(process, victims)
        if lost:
            self._lose()
        event = ("died", victims, pid, exitcode)
        self._decide(
            event,
            lambda now: self.dispatcher.died(process.number, pid, exitcode, now, unseen=unseen, cause=cause),
        )
        assert all(ticket.decided is not None for ticket in victims)
        assert not (lost and self.losses > self.dispatcher._losses.budget and self.queue), "calls wait for nobody"
        assert all(ticket.decided is CANCELLED for ticket in spared if ticket.cancelled and not self.terminated)

    def _is_loss(self, process: Process, victims: list[Ticket]) -> bool:
        """Whether this death tells that workers are no good."""
        told = process.unfit or process.late or process.useless
        return told or (process.seated and not process.served and not victims)

    def _lose(self) -> None:
        if self.phase is PoolPhase.STARTING:
            self.start_failed = True
        elif self.phase is not PoolPhase.TERMINATING:
            if self.now - self.lost_at > losses.QUIET:
                self.losses = 0
            self.losses += 1
            self.lost_at = self.now
            if self.losses > self.dispatcher._losses.budget:
                self.broken, self.not_before = True, None
            elif self.losses > 1:
                self.not_before = self.now + losses.FIRST_DELAY * 2 ** (self.losses - 2)

    # Commands: first judged, when they are decided, then carried out.

    def _decide(self, event: tuple[Any, ...], act: Callable[[float], list[Command]]) -> None:
        self._event = event
        commands = act(self.now)
        for command in commands:
            self._judge(command)
        self._pending.extend(commands)
        if self._performing:
            return
        self._performing, performed = True, 0
        while self._pending:
            performed += 1
            assert performed < 1000, "no end of commands"
            self._perform(self._pending.popleft())
        self._performing = False

    def _judge(self, command: Command) -> None:
        match command:
            case Spawn(number, seat):
                self._judge_spawn(number, seat)
            case Send(number, call):
                self._judge_send(self.processes[number], call)
            case Recall(number):
                self._judge_recall(self.processes[number])
            case Dismiss(number):
                self._judge_dismiss(self.processes[number])
            case Kill(number):
                self._judge_kill(self.processes[number])
            case Finish(call, outcome):
                self._judge_finish(self._ticket(call), outcome)

    def _judge_spawn(self, number: int, seat: int) -> None:
        assert number not in self.processes
        assert 0 <= seat < self.seats
        assert not any((self.terminated, self.start_failed)), "nobody is needed any more"
        starting = sum(not unwanted(other) and not other.ready for other in self.processes.values())
        assert not self.closing or starting < len(self.queue), "there are enough for what waits"
        assert self.closing or not self.broken, "the pool has given up"
        assert all(other.spent for other in self._in_seat(seat)), "the seat is taken"
        assert len(self._in_seat(seat)) < 2, "the seat has its successor"
        assert self.not_before is None, "it is too early for another start"
        self.processes[number] = Process(number, seat, self.now + dispatch.START_TIMEOUT)

    def _judge_send(self, process: Process, call: Call) -> None:
        ticket = self._ticket(call)
        assert self.queue, f"{ticket} does not wait"
        assert self.queue.popleft() is ticket, f"{ticket} jumps the queue"
        assert process.serving
        assert not process.spent, "it has served enough"
        assert self._in_seat(process.seat)[0] is process, "its seat is not vacant yet"
        assert len(process.held) < self.depth
        assert process.outbox or not (process.held and process.held[0].cancelled), "it is about to be killed"
        assert self._fits(process, ticket)
        if process.held:
            assert not self._idle(), "another worker is free"
            assert not process.recalling, "it is giving back"
        process.held.append(ticket)
        process.taken += call.weight
        process.spent = self.limit is not None and process.taken >= self.limit

    def _judge_recall(self, process: Process) -> None:
        assert process.seated
        assert len(process.held) > 1, "there is nothing to take back"
        assert not process.recalling, "it is asked already"
        process.recalling = True

    def _judge_dismiss(self, process: Process) -> None:
        assert process.serving
        assert not process.held, "it has something in hand"
        done = (self.closing or self.broken) and not self.queue
        if done and self._in_seat(process.seat)[0] is process:
            done = not any(other.unanswered > 1 for other in self.processes.values() if other.seated)
        assert done or process.spent or (self.queue and not self._fits(process, self.queue[0])), "it is needed"
        process.dismissed = True
        process.due = self.now + dispatch.LEAVE_GRACE

    def _judge_kill(self, process: Process) -> None:
        assert not process.killed, "it is killed already"
        too_late = self._event[0] == "tick" and process.number in self._event[1]
        wanted = bool(process.held) and all(ticket.cancelled for ticket in process.held) and not process.recalling
        assert self.terminated or self.start_failed or process.garbled or too_late or wanted, "it is innocent"
        process.killed = True

    def _judge_finish(self, ticket: Ticket, outcome: Outcome) -> None:
        assert ticket.decided is None, f"{ticket} ends again"
        match outcome:
            case Reply():
                assert self._event[0] == "replied"
                assert self._event[1] is ticket
                assert self._event[2] is outcome
                assert self._event[3], "its worker is killed, and the call decided"
                assert not ticket.cancelled
            case WorkerDied():
                assert self._event[0] == "died"
                assert ticket in self._event[1]
                assert self._event[2:] == (outcome.pid, outcome.exitcode)
                assert outcome.call == ticket.call.name
                assert not ticket.cancelled
            case BrokenPool():
                assert self.broken
                assert ticket in self.queue
                assert outcome.__cause__ is self.dispatcher.cause
            case PoolTerminated():
                assert self.terminated
                assert not ticket.cancelled
            case _:
                assert outcome is CANCELLED
                assert ticket.cancelled
        ticket.decided = outcome
        assert ticket.call.payload == []
        for place in (self.queue, *(process.held for process in self.processes.values())):
            if ticket in place:
                place.remove(ticket)

    def _perform(self, command: Command) -> None:
        match command:
            case Spawn(number, _) if self.spawns_to_fail:
                self.spawns_to_fail -= 1
                self._stillborn.add(number)
                self._died(self.processes[number], None, None, 0, InitializerError("no descriptors left"))
            case Send(number, call) if number not in self._stillborn:
                self.processes[number].inbox.append(self._ticket(call))
            case Recall(number):
                self._recall(self.processes[number])
            case Finish(call, outcome):
                call.finish(outcome)

    def _recall(self, process: Process) -> None:
        """Take back what is not begun."""
        if self.quick_to_begin and able(process):
            self.begin(process)
        while process.outbox and not self.slow_to_report:
            self.deliver(process)
        self.quick_to_begin = self.slow_to_report = False
        back, process.inbox = list(process.inbox), deque()
        for ticket in back:
            if ticket in process.held:
                process.held.remove(ticket)
                process.taken -= ticket.call.weight
        waiting = [ticket for ticket in back if not ticket.cancelled and ticket.decided is None]
        self.queue.extendleft(reversed(waiting))
        ids = [ticket.call.id for ticket in back]
        process.recalling = False
        self._decide(("recalled",), lambda now: self.dispatcher.recalled(process.number, ids, now))
        assert all(ticket.decided is not None for ticket in back if ticket.cancelled)

    def _finished(self, ticket: Ticket, outcome: Outcome) -> None:
        """Tell who made the call; they may act on it right away."""
        ticket.outcomes.append(outcome)
        unfinished = [other for other in self.tickets if other.decided is None]
        match ticket.reaction:
            case "submit" if self.phase is PoolPhase.RUNNING:
                self.submit()
            case "cancel" if unfinished:
                self.cancel(unfinished[0])
            case "replace" if self.phase is PoolPhase.RUNNING:
                for other in unfinished[:3]:
                    self.cancel(other)
                self.submit()
                self.submit()
            case "close" if isinstance(outcome, Reply):
                self.close()
            case "terminate" if isinstance(outcome, Reply):
                self.terminate()

    # Questions.

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self.dispatcher.phase

    def _ticket(self, call: Call) -> Ticket:
        return next(ticket for ticket in self.tickets if ticket.call is call)

    def _in_seat(self, seat: int) -> list[Process]:
        """Return who has a seat and who is to follow, in this order."""
        return [process for process in self.processes.values() if process.seat == seat and process.seated]

    def _servers(self) -> list[Process]:
        """Return who may be given calls."""
        firsts = [self._in_seat(seat)[:1] for seat in range(self.seats)]
        return [process for first in firsts for process in first if process.serving and not process.spent]

    def _idle(self) -> list[Process]:
        return [process for process in self._servers() if not process.held]

    def _fits(self, process: Process, ticket: Ticket) -> bool:
        after = process.taken + ticket.call.weight
        return not ticket.call.automatic or self.limit is None or not process.taken or after <= self.limit

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

    def _check_calls(self) -> None:
        holders = [process for process in self.processes.values() if process.held and process.seated]
        assert len({process.seat for process in holders}) == len(holders), "two workers of one seat have calls"
        assert sum(bool(p.running) for p in self.processes.values() if not p.killed) <= self.seats
        for ticket in self.tickets:
            assert ticket.outcomes == ([] if ticket.decided is None else [ticket.decided])
        for process in holders:
            if process.held[0].cancelled:
                assert len(process.held) > 1, "a call to be stopped runs on"

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
        elif self.phase is not PoolPhase.NEW:
            firsts = [self._in_seat(seat)[:1] for seat in range(self.seats)]
            if self.phase is PoolPhase.STARTING:
                assert not all(first and first[0].serving for first in firsts), "all are ready"
            else:
                assert self.phase is PoolPhase.RUNNING
        assert not ended or over

    def _check_deadline(self) -> None:
        due = [p.due for p in self.processes.values() if p.leaving or (p.seated and not p.ready)]
        if self.not_before is not None:
            due.append(self.not_before)
        deadline = self.dispatcher.deadline()
        if self.phase in (PoolPhase.STARTING, PoolPhase.RUNNING, PoolPhase.CLOSING, PoolPhase.BROKEN):
            assert deadline == min(due, default=None)

    def _check_no_waste(self) -> None:
        """Nobody waits while somebody is free; nobody is free while somebody waits."""
        idle = self._idle()
        assert not (idle and self.queue), "a call waits although a worker is idle"
        if self.queue:
            for process in self._servers():
                assert len(process.held) == self.depth or not self._fits(process, self.queue[0]), "not sent ahead"
        if idle:
            assert all(p.unanswered < 2 for p in self.processes.values() if p.seated), "not taken back"

    def _check_seats(self) -> None:
        """Every seat has a worker, and every spent worker a successor, or they are to come."""
        for seat in range(self.seats):
            workers = self._in_seat(seat)
            assert len(workers) <= 2
            if self.not_before is None:
                assert workers, "a seat stays vacant"
                assert len(workers) == 1 + workers[0].spent, "a successor is missing, or one too many"

    # The end.

    def settle(self) -> None:
        """Let everybody do what they have to, until nothing is left to happen."""
        self.spawns_to_fail = 0
        self.quick_to_begin = self.slow_to_report = False
        for _ in range(100 + 10 * len(self.tickets)):
            progress = [self._step(process) for process in list(self.processes.values())]
            if not any(progress) and (self.phase is PoolPhase.CLOSED or not self.wait_until_due()):
                return
            self.check()
        raise AssertionError("it never comes to rest")

    def _step(self, process: Process) -> bool:
        """Let a worker do the next thing; return whether there was one."""
        if process.number not in self.processes:
            return False
        if process.killed or process.leaving:
            self.die(process, 0)
        elif not process.ready:
            self.become_ready(process)
        elif process.outbox:
            self.deliver(process)
        elif process.running:
            self.answer(process)
        elif process.inbox:
            self.begin(process)
        else:
            return False
        return True

    def end(self, *, at_once: bool) -> None:
        """Close the pool, at once or when there is nothing left to do, and let everything come to its end."""
        if not at_once:
            self._come_to_rest()
        self.close()
        self.settle()
        assert self.phase is PoolPhase.CLOSED
        assert not self.processes
        assert all(len(ticket.outcomes) == 1 for ticket in self.tickets)

    def _come_to_rest(self) -> None:
        self.settle()
        assert all(ticket.decided is not None for ticket in self.tickets), "calls are left"
        if self.phase is PoolPhase.RUNNING:
            assert len(self._idle()) == len(self.processes) == self.seats


def fresh(process: Process) -> bool:
    """Whether it may say how its initializer went."""
    return not process.ready and not process.unfit


def able(process: Process) -> bool:
    """Whether it may begin a call."""
    return bool(process.inbox) and process.running is None and process.seated


def ahead(process: Process) -> bool:
    """Whether it runs a call and has another."""
    return running(process) and bool(process.inbox)


def running(process: Process) -> bool:
    """Whether it runs a call."""
    return process.running is not None and process.seated


def heard(process: Process) -> bool:
    """Whether replies of it are on their way."""
    return bool(process.outbox)


def seated(process: Process) -> bool:
    """Whether it still counts for its seat."""
    return process.seated


def unwanted(process: Process) -> bool:
    """Whether it was killed or is leaving."""
    return process.killed or process.leaving


def unproven(process: Process) -> bool:
    """Whether its death would tell that workers are no good."""
    return process.seated and not process.served and not process.held


def anyone(process: Process) -> bool:
    """Whether it is there."""
    return bool(process)


def is_there(suits: Callable[[Process], bool]) -> Callable[[Machine], bool]:
    """Return whether there is a process that suits."""
    return lambda machine: any(map(suits, machine.world.processes.values()))


class Machine(RuleBasedStateMachine):
    """Draws what happens in a `World`."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(1, 1, None)
        self.hasty = False

    @initialize(
        seats=st.integers(1, 3),
        depth=st.sampled_from([1, 2, 3, 3]),
        limit=st.sampled_from([None, 1, 2, 5, 5]),
        begins=st.sampled_from(["running"] * 5 + ["starting", "unfit", "new"]),
        hasty=st.booleans(),
    )
    def set_up(self, *, seats: int, depth: int, limit: int | None, begins: str, hasty: bool) -> None:
        """A pool, mostly one that runs already."""
        self.hasty = hasty
        self.world = World(seats, depth, limit)
        if begins != "new":
            self.world.start()
        if begins == "running":
            self.become_ready_all()
        elif begins == "unfit":
            self.world.become_unfit(self.some(fresh, 0))

    def some(self, suits: Callable[[Process], bool], pick: int) -> Process:
        """Choose one of the processes that suit."""
        found = list(filter(suits, self.world.processes.values()))
        return found[pick % len(found)]

    # Users.

    @precondition(lambda self: self.world.phase is PoolPhase.NEW)
    @rule()
    def start(self) -> None:
        """The pool starts."""
        self.world.start()

    @precondition(lambda self: self.world.phase is PoolPhase.RUNNING)
    @rule(
        count=st.sampled_from([1, 2, 3, 5]),
        weight=st.sampled_from([1, 1, 1, 2, 3, 7]),
        automatic=st.booleans(),
        reaction=st.sampled_from(REACTIONS),
    )
    def submit(self, *, count: int, weight: int, automatic: bool, reaction: str | None) -> None:
        """Calls arrive. An automatic chunk is never larger than what a fresh worker may serve."""
        if automatic and self.world.limit is not None:
            weight = min(weight, self.world.limit)
        for number in range(count):
            if self.world.phase is PoolPhase.RUNNING:
                self.world.submit(weight, automatic=automatic, reaction=None if number else reaction)

    @precondition(lambda self: self.world.tickets)
    @rule(
        pick=st.integers(0, 11),
        which=st.sampled_from(["unfinished", "held", "held", "behind", "behind", "any"]),
        late=st.booleans(),
    )
    def cancel(self, *, pick: int, which: str, late: bool) -> None:
        """Somebody cancels a call, mostly one that has not ended, and maybe when its worker has just answered one."""
        tickets = self.world.tickets
        if which == "unfinished":
            tickets = [ticket for ticket in tickets if ticket.decided is None]
        elif which == "held":
            tickets = [ticket for process in self.world.processes.values() for ticket in process.held]
        elif which == "behind":
            tickets = [ticket for process in self.world.processes.values() for ticket in list(process.held)[1:]]
        if tickets:
            ticket = tickets[pick % len(tickets)]
            for process in filter(running, self.world.processes.values()):
                if late and ticket in process.held:
                    self.world.answer(process)
            self.world.cancel(ticket)

    @precondition(lambda self: self.world.tickets)
    @rule(pick=st.integers(0, 3))
    def withdraw(self, *, pick: int) -> None:
        """Somebody withdraws one of the latest calls."""
        self.world.withdraw(self.world.tickets[-1 - pick % len(self.world.tickets)])

    @precondition(lambda self: len(self.world.tickets) > 5 or self.world.phase is not PoolPhase.RUNNING)
    @rule(dice=st.integers(0, 29))
    def end(self, *, dice: int) -> None:
        """The pool is closed or terminated; seldom, for then there is not much left to see."""
        if dice == 13:  # hypothesis prefers the ends of a range
            self.world.terminate()
        elif dice in (11, 17):
            self.world.close()

    # Workers.

    @precondition(is_there(fresh))
    @rule(pick=st.integers(0, 5))
    def become_ready(self, *, pick: int) -> None:
        """A worker is ready; one that is killed may have said so before."""
        self.world.become_ready(self.some(fresh, pick))

    @precondition(is_there(fresh))
    @rule()
    def become_ready_all(self) -> None:
        """All workers are ready."""
        for process in list(filter(fresh, self.world.processes.values())):
            self.world.become_ready(process)

    @precondition(is_there(able))
    @rule(pick=st.integers(0, 5))
    def begin(self, *, pick: int) -> None:
        """A worker begins its next call."""
        self.world.begin(self.some(able, pick))

    @precondition(is_there(running))
    @rule(pick=st.integers(0, 5))
    def answer(self, *, pick: int) -> None:
        """A call returns; its reply is on its way for a while."""
        self.world.answer(self.some(running, pick))

    @precondition(is_there(heard))
    @rule(pick=st.integers(0, 5))
    def deliver(self, *, pick: int) -> None:
        """A reply arrives, maybe too late."""
        self.world.deliver(self.some(heard, pick))

    @precondition(is_there(able))
    @rule(pick=st.integers(0, 5), count=st.integers(1, 4))
    def serve(self, *, pick: int, count: int) -> None:
        """A worker serves its next calls from beginning to end."""
        self.let_serve(self.some(able, pick), count)

    @precondition(is_there(able))
    @rule(count=st.integers(1, 4))
    def serve_all(self, *, count: int) -> None:
        """All workers do so."""
        for process in list(filter(able, self.world.processes.values())):
            self.let_serve(process, count)

    def let_serve(self, process: Process, count: int) -> None:
        """Let a worker serve so many calls if it has them."""
        for _ in range(count):
            if able(process):
                self.world.begin(process)
                self.world.answer(process)
                self.world.deliver(process)

    @precondition(is_there(unwanted))
    @rule()
    def be_gone(self) -> None:
        """Workers that were killed or told to leave are gone."""
        for process in list(filter(unwanted, self.world.processes.values())):
            self.world.die(process, 0)

    @precondition(is_there(anyone))
    @rule(
        pick=st.integers(0, 5),
        kind=st.sampled_from(
            ["dies", "dies", "dies", "garbles", "is unfit", "is unfit", "is lost", "is lost", "sees nothing"]
        ),
        exitcode=st.sampled_from([0, 1, -9, None]),
        count=st.sampled_from([0, 1, 2, 3, 7, 7]),
        busy=st.booleans(),
    )
    def mishap(self, *, pick: int, kind: str, exitcode: int | None, count: int, busy: bool) -> None:
        """A worker comes to grief."""
        if kind == "dies":
            self.world.die(self.some(anyone, pick), exitcode, reading=busy)
        elif kind == "garbles" and is_there(seated)(self):
            self.world.garble(self.some(seated, pick), count % 3, goes_on=False)
        elif kind == "is unfit" and is_there(fresh)(self):
            self.world.become_unfit(self.some(fresh, pick))
        elif kind == "is lost":
            self.lose(count, exitcode, calls=3 if busy else 0)
        elif kind == "sees nothing":
            self.die_unseeing(count)

    def lose(self, count: int, exitcode: int | None, calls: int) -> None:
        """Workers that have not served yet die, one after the other, and calls arrive while there are fewer."""
        for _ in range(count):
            if is_there(unproven)(self):
                self.world.die(self.some(unproven, 0), exitcode)
                while calls and self.world.phase is PoolPhase.RUNNING:
                    calls -= 1
                    self.world.submit()
                self.world.wait_until_due()

    def die_unseeing(self, count: int) -> None:
        """Workers die before they read what they were sent, as do those that get it after them."""
        for _ in range(count):
            if is_there(able)(self):
                self.world.die(self.some(able, 0))
                self.become_ready_all()

    @precondition(is_there(ahead))
    @rule(pick=st.integers(0, 5), way=st.integers(0, 2))
    def garble_and_go_on(self, *, pick: int, way: int) -> None:
        """A worker sends nonsense, and is at its next call before anybody has read that."""
        self.world.garble(self.some(ahead, pick), way, goes_on=True)

    # The world at large.

    @precondition(lambda self: self.world.processes or self.world.queue)
    @rule(seconds=st.sampled_from([None, None, None, 0.0, 0.01, 0.15, 1.0, 6.0, 61.0]))
    def wait(self, *, seconds: float | None) -> None:
        """Time passes: so much, or up to what the dispatcher waits for."""
        if seconds is None:
            self.world.wait_until_due()
        else:
            self.world.wait(seconds)

    @precondition(lambda self: self.world.phase is not PoolPhase.CLOSED)
    @rule(spawns=st.integers(0, 2), quick=st.booleans(), slow=st.booleans())
    def set_a_trap(self, *, spawns: int, quick: bool, slow: bool) -> None:
        """The next processes cannot be started; the next recall comes just too late, or before earlier replies."""
        self.world.spawns_to_fail = spawns
        self.world.quick_to_begin, self.world.slow_to_report = quick, slow

    @invariant()
    def holds(self) -> None:
        """What always holds."""
        self.world.check()

    def teardown(self) -> None:
        """Everything comes to its end."""
        if sys.exc_info()[0] is None:  # a world that has gone wrong would only hide where
            self.world.end(at_once=self.hasty)


SETTINGS = settings(
    max_examples=800,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
)


@pytest.mark.timeout(400)  # it computes for a while, and longer where its coverage is measured
def test_the_dispatcher_keeps_its_promises_in_every_order_of_events() -> None:
    """Whatever happens, in whatever order."""
    run_state_machine_as_test(Machine, settings=SETTINGS)
