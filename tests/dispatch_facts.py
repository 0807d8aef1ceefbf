"""What a dispatcher may know of its calls and workers, kept by the model beside it; `dispatch_world` says for what."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from aiopool.calls import CANCELLED, Call, CallKind, Outcome, Reply
from aiopool.decisions import AHEAD, OVERDUE, QUICK
from aiopool.dispatch import Dispatcher
from aiopool.exceptions import CallTimeout
from aiopool.phases import PoolPhase
from aiopool.recycling import IdlePolicy, RecyclePolicy, RecycleReason

CHANCES = (0.0, 1.0, 0.5)
"""What the dispatcher's dice show, over and over again."""

TIMEOUT = "timeout"
"""A call is to stop because it is over its time limit."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """One call, and what happened to it."""

    call: Call
    reaction: str | None
    stopping: object = None  # why it is to stop: CANCELLED or TIMEOUT
    withdrawn: bool = False  # it is to end, but not to be stopped if it has begun
    decided: Outcome | None = None
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    begun: int = 0
    tries: int = 0  # how many workers have died under it
    unseen: bool = False  # a worker that had it has died before it read it
    expected: bool = False  # its worker is thought to run it
    interrupted: bool = False  # its worker was told to stop it
    deadline: float | None = None  # for it to have begun, to have ended, or to have stopped

    def __repr__(self) -> str:
        return f"<Ticket {self.call.name}>"

    @property
    def cost(self) -> float:
        """How long it should take."""
        return self.call.pace.seconds * self.call.weight

    @property
    def has_grace(self) -> bool:
        """Whether it has time to stop where the pool gives none."""
        return self.call.kind is not CallKind.FUNCTION

    def ends_as(self, otherwise: Outcome) -> bool:
        """Whether it has ended as what was decided on it first, or else as what came then."""
        if self.stopping is None:
            return self.decided is (CANCELLED if self.withdrawn else otherwise)
        return isinstance(self.decided, CallTimeout) if self.stopping == TIMEOUT else self.decided is CANCELLED


class Begun(NamedTuple):
    """A worker says that it begins a call."""

    ticket: Ticket


class Answer(NamedTuple):
    """A worker answers a call."""

    ticket: Ticket
    reply: Reply


class Heavy(NamedTuple):
    """A worker says that it uses too much memory."""


Message = Begun | Answer | Heavy


@dataclasses.dataclass(eq=False)
class Process:
    """One worker: the process, and what the dispatcher has decided on it."""

    number: int
    seat: int
    deadline: float | None  # for it to be ready, or to be gone
    limit: int | None = None  # so many calls it may serve
    age: float | None = None  # for so long it may serve
    worn_at: float | None = None  # when its age is reached
    worn: RecycleReason | None = None  # why it is to go when somebody is ready to take its place
    out: bool = False  # its seat is no more
    ready: bool = False
    unfit: bool = False
    late: bool = False  # killed because it was not ready in time
    garbled: bool = False
    useless: bool = False  # garbled with nothing in hand
    killed: bool = False
    dismissed: bool = False
    spent: bool = False
    has_been_spent: bool = False  # and so has a successor, though calls may have been taken back since
    recalling: bool = False
    emptied: bool = False  # nothing was sent to it since the last recall
    taken: int = 0
    served: int = 0
    held: deque[Ticket] = dataclasses.field(default_factory=deque)  # sent and not answered, as far as is known
    width: int = 1  # how many of these it runs at once
    culprit: Ticket | None = None  # did not stop in time
    inbox: deque[Ticket] = dataclasses.field(default_factory=deque)
    running: list[Ticket] = dataclasses.field(default_factory=list)
    outbox: deque[Message] = dataclasses.field(default_factory=deque)

    load: float = 0.0  # how long its calls should take
    since: float = 0.0  # when the first of its calls became that

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
        return len(self.held) - sum(isinstance(message, Answer) for message in self.outbox)

    @property
    def inside(self) -> list[Ticket]:
        """What it runs, as far as can be known."""
        return list(self.held)[: self.width]

    @property
    def stopping(self) -> bool:
        """Whether anything in it is to stop."""
        return any(ticket.stopping for ticket in (self.held if self.width > 1 else self.inside))

    @property
    def keeps(self) -> bool:
        """Whether it has what it has not begun, and others could."""
        return len(self.held) > 1 and (bool(self.inbox) if self.width > 1 else self.unanswered > 1)

    @property
    def serving(self) -> bool:
        """Whether it may get calls, if its seat is its own."""
        return self.seated and self.ready and not self.unfit

    def soon_done(self, ticket: Ticket) -> bool:
        """Whether it should be done with all that it has, and with this call, before long."""
        return (self.load + ticket.cost) / self.width <= AHEAD

    def takes(self, ticket: Ticket) -> bool:
        """Whether a chunk fits into what it has left to serve."""
        after = self.taken + ticket.call.weight
        return not ticket.call.automatic or self.limit is None or not self.taken or after <= self.limit


class Facts:
    """All calls, all workers, and where the pool stands."""

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
        self.seats, self.depth, self.reserve, self.grace, self.concurrency = seats, depth, reserve, grace, concurrency
        self.policy, self.idling = policy or RecyclePolicy(), idling or IdlePolicy()
        self.dispatcher = Dispatcher(
            seats,
            self.policy,
            depth=depth,
            reserve=reserve,
            grace=grace,
            idling=self.idling,
            concurrency=concurrency,
            jitter=self._throw,
        )
        self.fresh = set(range(seats))  # seats that have not had a worker that was ready
        self.asleep: set[int] = set()  # seats whose worker went because it had nothing to do
        self.rested: dict[int, float] = {}  # since when those seats that have one that is idle have had one
        self.now = 1000.0
        self.processes: dict[int, Process] = {}
        self.tickets: list[Ticket] = []
        self.by_id: dict[int, Ticket] = {}
        self.queue: deque[Ticket] = deque()
        self.closing = self.terminated = self.doomed = self.start_failed = self.broken = False
        self.losses = 0
        self.lost_at = 0.0
        self.not_before: float | None = None
        self.thrown = self.foreseen = 0  # how often the dice were thrown, and should have been

    def _throw(self) -> float:
        self.thrown += 1
        return CHANCES[self.thrown % len(CHANCES)]

    def foresee(self) -> float:
        """Return what the dice are going to show."""
        self.foreseen += 1
        return CHANCES[self.foreseen % len(CHANCES)]

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self.dispatcher.phase

    def in_seat(self, seat: int) -> list[Process]:
        """Return who has a seat and who is to follow, in this order."""
        return [
            process
            for process in self.processes.values()
            if process.seat == seat and process.seated and not process.out
        ]

    def firsts(self) -> list[Process | None]:
        """Return who has each seat."""
        return [next(iter(self.in_seat(seat)), None) for seat in range(self.seats)]

    def servers(self) -> list[Process]:
        """Return who may be given calls."""
        return [first for first in self.firsts() if first and first.serving and not first.spent]

    def idle(self) -> list[Process]:
        """Return who has nothing to do."""
        return [process for process in self.servers() if not process.held]

    def staffed(self) -> int:
        """Return how many seats have somebody who is ready."""
        return sum(first is not None and first.serving for first in self.firsts())

    def coming(self) -> int:
        """Return how many seats are going to have somebody who is ready."""
        return self.seats - len(self.asleep) - self.staffed()

    def short_of_workers(self) -> bool:
        """Whether a seat is vacant, and nobody is to come unless a call waits."""
        if self.seats == 1 or not (self.closing or self.broken):
            return False
        return self.phase is PoolPhase.BROKEN or bool(self.vacant())

    def vacant(self) -> list[int]:
        """Return the seats without a worker that are not asleep."""
        return [seat for seat in range(self.seats) if not self.in_seat(seat) and seat not in self.asleep]

    def unready(self) -> int:
        """Return how many seats have a worker that is not ready."""
        return sum(first is not None and not first.serving for first in self.firsts())

    def awaits_somebody(self) -> bool:
        """Whether the pool is being closed, and somebody is on the way for whom calls may have been kept."""
        return self.closing and self.unready() > 0

    @property
    def least(self) -> int:
        """How many seats are not to be without a worker."""
        return min(self.idling.minimum, self.seats) if self.idling.timeout is not None else self.seats

    def rest_ends(self) -> float | None:
        """Return when the next worker is to go that has nothing to do until then."""
        if self.phase is not PoolPhase.RUNNING or self.idling.timeout is None or not self.rested:
            return None
        return min(self.rested.values()) + self.idling.timeout if self.staffed() > self.idling.minimum else None

    def note_who_rests(self) -> None:
        """Note which seats have somebody who has nothing to do; that counts when calls may come."""
        idle = {process.seat for process in self.idle()} if self.phase is PoolPhase.RUNNING else set[int]()
        self.rested = {seat: self.rested.get(seat, self.now) for seat in idle}

    def overdue(self, process: Process) -> bool:
        """Whether what it runs takes longer than anything that others are sent behind."""
        return self.seats > 1 and len(process.held) > process.width and self.now - process.since > OVERDUE

    def width_for(self, ticket: Ticket) -> int:
        """Return how many calls of its kind run at once."""
        return self.concurrency if ticket.call.shares else 1

    def has_place(self, process: Process, ticket: Ticket) -> bool:
        """Whether it could run this call beside those that it has."""
        fits = 0 < len(process.held) < process.width == self.width_for(ticket) and process.takes(ticket)
        return fits and not process.recalling and not process.stopping and not self.relieved(process)

    def has_its_share(self, process: Process, ticket: Ticket, waiting: int) -> bool:
        """Whether it has as many ahead as it may where so many wait, this one first."""
        most = self.depth if waiting >= self.reserve * self.seats else int(ticket.cost > QUICK)
        return len(process.held) - process.width >= most

    def place_elsewhere(self, process: Process) -> bool:
        """Whether what is first behind the calls that it runs could run at once beside others."""
        waiting = next(islice(process.held, process.width, None), None)
        return waiting is not None and any(self.has_place(server, waiting) for server in self.servers())

    def relieved(self, process: Process) -> bool:
        """Whether it is worn, and somebody is ready to take its place."""
        return process.worn is not None and any(other.serving for other in self.in_seat(process.seat)[1:])


Suits = Callable[[Process], bool]


def fresh(process: Process) -> bool:
    """Whether it may say how its initializer went."""
    return not process.ready and not process.unfit


def able(process: Process) -> bool:
    """Whether it may begin a call."""
    if not process.inbox or not process.seated:
        return False
    return not process.running or (process.inbox[0].call.shares and len(process.running) < process.width)


def eager(process: Process) -> bool:
    """Whether it has a call that it has not begun."""
    return bool(process.inbox) and process.seated


def running(process: Process) -> bool:
    """Whether it runs a call."""
    return bool(process.running) and process.seated


def working(process: Process) -> bool:
    """Whether it has calls."""
    return bool(process.held) and process.seated


def timed(process: Process) -> bool:
    """Whether the clock runs for any of its calls."""
    return any(ticket.deadline is not None and not ticket.interrupted for ticket in process.held)


def interrupted(process: Process) -> bool:
    """Whether any of its calls should stop by itself."""
    return process.seated and any(ticket.interrupted for ticket in process.held)


def heard(process: Process) -> bool:
    """Whether it has said what nobody has read yet."""
    return bool(process.outbox)


def seated(process: Process) -> bool:
    """Whether it still counts for its seat."""
    return process.seated


def up(process: Process) -> bool:
    """Whether it can say that it uses too much memory."""
    return process.serving and not process.worn


def unwanted(process: Process) -> bool:
    """Whether it was killed or is leaving."""
    return process.killed or process.leaving


def unproven(process: Process) -> bool:
    """Whether its death would tell that workers are no good."""
    return process.seated and not process.served and not process.held


def anyone(process: Process) -> bool:
    """Whether it is there."""
    return bool(process)
