"""A small model of the world around a dispatcher: the shell, the workers, the users, and the time.

`World` carries out commands in the shell's order (what carrying one out leads to comes after what is already
decided), and foretells what each event changes. It stands on `dispatch_judge`, which compares that with what the
dispatcher decides, and this on `dispatch_facts`, which keeps what a dispatcher may know and what really happened.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from aiopool import decisions, losses
from aiopool.calls import CANCELLED, Call, CallKind, Limits, Outcome, Reply
from aiopool.commands import Command, Finish, Recall, Send, Spawn
from aiopool.exceptions import AioPoolError, InitializerError
from aiopool.phases import PoolPhase
from aiopool.recycling import IdlePolicy, RecyclePolicy, RecycleReason
from dispatch_facts import TIMEOUT, Answer, Begun, Heavy, Process, Ticket, able
from dispatch_judge import Judge

NO_LIMITS = Limits()


class World(Judge):
    """Everything around a dispatcher. Its methods are what may happen."""

    def __init__(
        self,
        seats: int,
        *,
        depth: int = 1,
        reserve: int = 0,
        policy: RecyclePolicy | None = None,
        grace: float = 0.0,
        idling: IdlePolicy | None = None,
        concurrency: int = 1,
    ) -> None:
        super().__init__(
            seats, depth=depth, reserve=reserve, policy=policy, grace=grace, idling=idling, concurrency=concurrency
        )
        self.spawns_to_fail = 0
        self.quick_to_begin = self.slow_to_report = False
        self._pending: deque[Command] = deque()
        self._performing = False
        self._stillborn: set[int] = set()

    # What users do.

    def start(self) -> None:
        """The pool starts."""
        self._decide(("start",), self.dispatcher.start)

    def submit(
        self,
        weight: int = 1,
        *,
        automatic: bool = False,
        limits: Limits = NO_LIMITS,
        reaction: str | None = None,
        seconds: float = 0.0,
        kind: CallKind = CallKind.FUNCTION,
    ) -> None:
        """A call arrives."""
        name = f"job{len(self.tickets)}"
        call = Call(name, b"arguments", lambda outcome: self._finished(ticket, outcome), limits, kind=kind)
        call.weight, call.automatic = weight, automatic
        call.pace.learn(seconds)
        ticket = self.by_id[call.id] = Ticket(call, reaction)
        self.tickets.append(ticket)
        self.queue.append(ticket)
        self._decide(("submit",), lambda now: self.dispatcher.submit(call, now))

    def cancel(self, ticket: Ticket) -> None:
        """Somebody wants a call to end."""
        waiting = ticket in self.queue
        if ticket.decided is None and ticket.stopping is None:
            ticket.stopping, ticket.deadline = CANCELLED, None  # its time limit does not matter any more
        self._decide(("cancel",), lambda now: self.dispatcher.cancel(ticket.call, now))
        assert ticket.decided is CANCELLED or not waiting, "a waiting call ends at once"

    def withdraw(self, ticket: Ticket) -> None:
        """Somebody wants a call to end if no worker has begun it."""
        waiting, before = ticket in self.queue, ticket.decided
        behind = any(ticket in islice(p.held, p.width, None) for p in self.processes.values())
        news = waiting or (behind and not ticket.stopping and not ticket.withdrawn)
        if waiting:
            ticket.stopping = CANCELLED
        else:
            ticket.withdrawn |= news
        self._decide(("withdraw", news), lambda now: self.dispatcher.withdraw(ticket.call, now))
        if not behind:
            assert ticket.decided is (CANCELLED if waiting else before)

    def resize(self, seats: int) -> None:
        """The pool is to have so many seats. Who has calls in one that comes again, has it again."""
        for process in self.processes.values():
            process.out |= process.seat >= seats
        back = [process for process in self.processes.values() if process.out and process.held and process.seated]
        back = [process for process in back if process.seat < seats]
        for process in back:
            process.out = False
        self.fresh.update(set(range(self.seats, seats)) - {process.seat for process in back})
        self.fresh.intersection_update(range(seats))
        self.asleep.intersection_update(range(seats))
        self.seats = seats
        self._decide(("resize",), lambda now: self.dispatcher.resize(seats, now))

    def close(self) -> None:
        """The pool is closed."""
        self.closing = True
        self._decide(("close",), self.dispatcher.close)

    def terminate(self) -> None:
        """The pool is terminated."""
        self.terminated = True
        self._decide(("terminate",), self.dispatcher.terminate)
        assert all(ticket.decided is not None for ticket in self.tickets)

    # Time.

    def stall(self, seconds: float) -> None:
        """Time passes, and nobody looks at the clock."""
        self.now += seconds

    def wait(self, seconds: float) -> None:
        """Time passes; a tick comes when it is due, and maybe when it is not."""
        self.stall(seconds)
        too_late = self._pass_deadlines()
        for process in self.processes.values():
            if process.worn_at is not None and process.worn_at <= self.now:
                process.worn, process.worn_at = RecycleReason.AGE, None
        if self.not_before is not None and self.not_before <= self.now:
            self.not_before = None
        self._decide(("tick", too_late), self.dispatcher.tick)
        assert all(self.processes[number].killed for number in too_late if number in self.processes)

    def _pass_deadlines(self) -> set[int]:
        """Note who has let a deadline pass; return who is to be killed for it, whatever else is."""
        too_late = set()
        for process in self.processes.values():
            for ticket in process.held:
                if ticket.deadline is None or ticket.deadline > self.now:
                    continue
                ticket.deadline = None
                if not ticket.stopping:
                    ticket.stopping = TIMEOUT
                elif process.number not in too_late:
                    process.culprit = ticket
                    too_late.add(process.number)
            if process.deadline is None or process.deadline > self.now:
                continue
            process.deadline = None
            too_late.add(process.number)
            if process.seated and not process.ready:
                process.late |= not process.unfit
                self.start_failed |= self.phase is PoolPhase.STARTING
        return too_late

    def wait_until_due(self) -> bool:
        """Time passes up to what the dispatcher waits for; return whether there was anything."""
        deadline = self.dispatcher.deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.wait(0)
        return deadline is not None

    # What workers do.

    def become_ready(self, process: Process) -> None:
        """A worker says that it is ready."""
        process.ready = True
        if not process.killed:
            process.deadline = None
            self.fresh.discard(process.seat)
            process.worn_at = None if process.age is None else self.now + process.age
        before = self.phase
        self._decide(("ready",), lambda now: self.dispatcher.ready(process.number, now))
        if before is not self.phase is PoolPhase.RUNNING:
            assert all(first and first.serving for first in self.firsts())
            assert not self.doomed, "a first worker was no good"

    def become_unfit(self, process: Process) -> None:
        """A worker says that its initializer failed."""
        if not process.killed:
            process.unfit = True
            process.deadline = self.now + decisions.LEAVE_GRACE
            first = self.in_seat(process.seat)[0] is process
            self.doomed |= first and self.phase is PoolPhase.STARTING
        self._decide(("unfit",), lambda now: self.dispatcher.unfit(process.number, InitializerError("unfit"), now))

    def begin(self, process: Process) -> None:
        """A worker begins the next call in its channel, and says so when there is a limit to its time."""
        ticket = process.inbox.popleft()
        process.running.append(ticket)
        ticket.begun += 1
        assert ticket.begun <= 1 + ticket.tries, f"{ticket} runs again"
        assert ticket.decided is None, f"{ticket} runs after its end"
        assert sum(other.running.count(ticket) for other in self.processes.values()) == 1, f"{ticket} runs twice"
        kinds = {other.call.shares for other in process.running}
        assert len(kinds) == 1, f"{ticket} runs beside what it must not"
        assert len(process.running) <= (self.concurrency if ticket.call.shares else 1), "too many run"
        if ticket.call.limits.timeout is not None:
            process.outbox.append(Begun(ticket))

    def answer(self, process: Process, which: int = 0, *, heavy: bool = False) -> None:
        """One of a worker's calls returns; nobody has read its reply yet, nor that it uses too much memory."""
        ticket = process.running.pop(which % len(process.running))
        reply = Reply(failed=False, payload=b"%d of %d" % (ticket.call.id, process.number))
        process.outbox.append(Answer(ticket, reply))
        if heavy:
            process.outbox.append(Heavy())

    def deliver(self, process: Process) -> None:
        """What a worker has said arrives."""
        match process.outbox.popleft():
            case Begun(ticket):
                self.claim(process, ticket)
            case Answer(ticket, reply):
                self._deliver_reply(process, ticket, reply)
            case Heavy():
                self.wear_out(process)

    def deliver_all(self, process: Process) -> None:
        """All that it has said arrives."""
        while process.outbox:
            self.deliver(process)

    def wear_out(self, process: Process) -> None:
        """A worker uses too much memory."""
        process.worn = RecycleReason.MEMORY
        self._decide(("due",), lambda now: self.dispatcher.due(process.number, now))

    def claim(self, process: Process, ticket: Ticket) -> None:
        """A worker says that it begins a call, whether that is true or not."""
        timeout = ticket.call.limits.timeout
        if timeout is not None and process.seated and ticket in process.inside and not ticket.stopping:
            ticket.deadline = self.now + timeout
        self._decide(("began",), lambda now: self.dispatcher.began(process.number, ticket.call.id, now))

    def _deliver_reply(self, process: Process, ticket: Ticket, reply: Reply) -> None:
        counts = not process.killed
        if counts:
            assert ticket in process.inside
            process.held.remove(ticket)
            process.served += ticket.call.weight
            process.load = process.load - ticket.cost if process.width == 1 else sum(t.cost for t in process.held)
            process.since = self.now
            ticket.deadline = None
            self.advance(process)
            self.losses = 0
        event = ("replied", ticket, reply, counts)
        self._decide(event, lambda now: self.dispatcher.replied(process.number, [(ticket.call.id, reply)], now))
        assert ticket.ends_as(reply) or not counts

    def garble(self, process: Process, way: int, *, goes_on: bool) -> None:
        """A worker sends nonsense: what is no frame, a reply to nothing, or to a call that it has not begun.

        Before anybody reads that, it may go on to the next of its calls.
        """
        self.deliver_all(process)
        if process.killed:
            return
        if goes_on and process.inbox:
            if process.running:
                self.answer(process)
            self.begin(process)
        process.garbled, process.useless = True, not process.held
        self.start_failed |= self.phase is PoolPhase.STARTING
        nonsense = Reply(failed=False, payload=b"nonsense")
        wrong = process.held[-1].call.id if len(process.held) > process.width else 0
        if way == 0:
            self._decide(("garbled",), lambda now: self.dispatcher.garbled(process.number, now))
        else:
            self._decide(("garbled",), lambda now: self.dispatcher.replied(process.number, [(wrong, nonsense)], now))
        assert process.killed

    def die(self, process: Process, exitcode: int | None = -9, *, reading: bool = False) -> None:
        """A worker's process ends, maybe after it has read its next call and before it has begun that."""
        self.deliver_all(process)
        unseen = sum(ticket in process.held for ticket in process.inbox)
        if reading and unseen and not process.running:
            unseen -= 1
        self._died(process, 4000 + process.number, exitcode, unseen, None)

    def _died(
        self, process: Process, pid: int | None, exitcode: int | None, unseen: int, cause: AioPoolError | None
    ) -> None:
        del self.processes[process.number]
        held = list(process.held)
        stopping = [ticket for ticket in held if ticket.stopping]
        victims, spared = self._share_out(held, len(held) - unseen)
        begun = held[: len(held) - len(spared)]
        lost = cause is not None or self._is_loss(process, killed_calls=len(held) > len(spared))
        if lost:
            self._lose()
        self._decide(
            ("died", victims, pid, exitcode, begun, process),
            lambda now: self.dispatcher.died(process.number, pid, exitcode, now, unseen=unseen, cause=cause),
        )
        assert all(ticket.decided is not None for ticket in victims)
        assert not (lost and self.losses > self.budget and self.queue), "calls wait for nobody"
        assert all(ticket.ends_as(CANCELLED) for ticket in stopping)

    def _share_out(self, held: list[Ticket], begun: int) -> tuple[list[Ticket], list[Ticket]]:
        """Return the calls that end with their worker, and those that it has not begun; put back all others."""
        for ticket in held:
            ticket.expected, ticket.interrupted, ticket.deadline = False, False, None
        if held and not begun and held[0].unseen:
            begun = 1
        elif held and not begun:
            held[0].unseen = True
        for ticket in held[:begun]:
            ticket.tries += 1
        unwanted = [ticket for ticket in held if ticket.stopping or ticket.withdrawn]
        victims = [t for t in held[:begun] if t in unwanted or t.tries > t.call.limits.retries]
        back = [ticket for ticket in held if ticket not in victims and ticket not in unwanted]
        self.queue.extendleft(reversed(back))
        return victims, held[begun:]

    def _is_loss(self, process: Process, *, killed_calls: bool) -> bool:
        """Whether this death tells that workers are no good."""
        told = process.unfit or process.late or process.useless
        return told or (process.seated and not process.served and not killed_calls)

    @property
    def budget(self) -> int:
        """How many losses in a row are borne."""
        return losses.FAILURE_BUDGET + self.seats - 1

    def _lose(self) -> None:
        if self.phase is PoolPhase.STARTING:
            self.start_failed = True
        elif self.phase is not PoolPhase.TERMINATING:
            if self.now - self.lost_at > losses.QUIET:
                self.losses = 0
            self.losses += 1
            self.lost_at = self.now
            if self.losses > self.budget:
                self.broken, self.not_before = True, None
            elif self.losses > 1:
                spread = 0.5 + self.foresee()
                self.not_before = self.now + losses.FIRST_DELAY * 2 ** (self.losses - 2) * spread

    # Commands: first judged, when they are decided, then carried out.

    def _decide(self, event: tuple[Any, ...], act: Callable[[float], list[Command]]) -> None:
        self.event = event
        of_no_effect = self._has_no_effect(event)
        self.behind, self.woken_late = 0, self.woken_late and of_no_effect
        commands = act(self.now)
        for command in commands:
            self.judge(command)
        assert not (self.behind and self.asleep), "another worker could be had"
        for first in self.firsts():
            if first and self.overdue(first) and not of_no_effect:
                first.load = math.inf  # it is sent no more before it has nothing in hand
        self.note_who_rests()
        self._pending.extend(commands)
        if self._performing:
            return
        self._performing, performed = True, 0
        while self._pending:
            performed += 1
            assert performed < 1000, "no end of commands"
            self._perform(self._pending.popleft())
        self._performing = False

    def _has_no_effect(self, event: tuple[Any, ...]) -> bool:
        """Whether nothing follows from this, not even for others: a call behind others, a reply that comes too late."""
        match event:
            case ("submit",):
                return len(self.queue) > 1 and not self.asleep
            case ("withdraw", somewhere):
                return not somewhere
            case ("replied", _, _, counts):
                return not counts
            case _:
                return False

    def _perform(self, command: Command) -> None:
        match command:
            case Spawn(number, _) if self.spawns_to_fail:
                self.spawns_to_fail -= 1
                self._stillborn.add(number)
                self._died(self.processes[number], None, None, 0, InitializerError("no descriptors left"))
            case Send(number, call) if number not in self._stillborn:
                self.processes[number].inbox.append(self.by_id[call.id])
            case Recall(number):
                self._recall(self.processes[number])
            case Finish(call, outcome):
                call.finish(outcome)

    def _recall(self, process: Process) -> None:
        """Take back what is not begun."""
        if self.quick_to_begin and able(process):
            self.begin(process)
        if not self.slow_to_report:
            self.deliver_all(process)
        self.quick_to_begin = self.slow_to_report = False
        back, process.inbox, long = list(process.inbox), deque(), process.load == math.inf
        for ticket in back:
            if ticket in process.held:
                process.held.remove(ticket)
                process.taken -= ticket.call.weight
                process.load -= ticket.cost
                ticket.expected, ticket.deadline = False, None
        if long:
            process.load = math.inf
        elif process.width > 1:
            process.load = sum(ticket.cost for ticket in process.held)
        self.weigh(process)
        waiting = [t for t in back if not t.stopping and not t.withdrawn and t.decided is None]
        self.queue.extendleft(reversed(waiting))
        ids = [ticket.call.id for ticket in back]
        process.recalling = False
        self._decide(("recalled",), lambda now: self.dispatcher.recalled(process.number, ids, now))
        assert all(ticket.decided is not None for ticket in back if ticket.stopping or ticket.withdrawn)

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

    # The end.

    def settle(self) -> None:
        """Let everybody do what they have to, until nothing is left to happen but that workers grow old."""
        self.spawns_to_fail = 0
        self.quick_to_begin = self.slow_to_report = False
        for _ in range(100 + 10 * len(self.tickets)):
            progress = [self._step(process) for process in list(self.processes.values())]
            if not any(progress):
                if self.phase is PoolPhase.CLOSED or not self.deadlines():
                    return
                self.wait_until_due()
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
            assert len(self.idle()) == self.least
            waiting_for_a_seat = sum(process.has_been_spent for process in self.idle())
            assert self.least <= len(self.processes) <= self.least + waiting_for_a_seat
            assert not self.dispatcher.resizing
