"""The dispatcher's records: the workers, the seats that they have, and when something is due about each."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from itertools import islice

from .calls import STOPPING, Call
from .exceptions import AioPoolError
from .phases import BUSY, IDLE, KILLED, RETIRING, WORKER_MOVES, WorkerPhase
from .recycling import Allowance, RecyclePolicy, RecycleReason

__all__ = ["SERVING", "Crew", "Seat", "SeatPhase", "Worker"]

SERVING = (IDLE, BUSY, RETIRING)
"""Where a worker stands that is ready, and not leaving or killed: it has, or may have, calls."""


class Worker:
    """What the dispatcher knows of one worker."""

    __slots__ = (
        "allowance",
        "calls",
        "cause",
        "due",
        "id",
        "load",
        "phase",
        "ready_at",
        "reason",
        "recalled",
        "recalling",
        "seat",
        "served",
        "since",
        "taken",
        "width",
    )

    def __init__(self, id_: int, seat: Seat, allowance: Allowance) -> None:
        self.id: int = id_
        self.seat: Seat = seat
        self.allowance: Allowance = allowance
        self.due: RecycleReason | None = None  # why it is to leave as soon as its successor is ready
        self.phase: WorkerPhase = WorkerPhase.STARTING
        self.calls: deque[Call] = deque()  # sent and not answered; as many of the first as its width run
        self.width: int = 1  # how many of its present kind of calls run at once
        self.load: float = 0.0  # seconds that its calls will take, as predicted when they were sent
        self.ready_at: float | None = None  # when it had run its initializer
        self.since: float = 0.0  # when the first of them began or the last was answered; or when none was left
        self.taken: int = 0  # calls of the user's function sent to it so far
        self.served: int = 0  # those it has answered
        self.recalling: bool = False  # a recall is under way
        self.recalled: bool = False  # there is nothing to take back: no call was sent since the last recall
        self.cause: AioPoolError | None = None  # why it is no good
        self.reason: str | None = None  # why it was killed, for those of its calls that have nothing to do with that

    def __repr__(self) -> str:
        return f"<Worker {self.id} {self.phase.value} calls={len(self.calls)} served={self.served}>"

    @property
    def is_stopping(self) -> bool:
        """Whether something that runs in it is to stop; else it may have to be killed."""
        if self.width == 1:
            return bool(self.calls) and self.calls[0].phase is STOPPING
        return any(call.phase is STOPPING for call in self.calls)

    @property
    def is_loading(self) -> bool:
        """Whether it may have read a part of its last call only: then nothing can be taken back, nor is more sent."""
        return bool(self.calls) and self.calls[-1].loading

    def running(self) -> list[Call]:
        """Return the calls that it runs, as far as can be known."""
        return list(islice(self.calls, self.width))

    def lighten(self, seconds: float) -> None:
        """It has calls no more that were to take so long."""
        if self.width == 1:
            self.load -= seconds
        else:  # that may be unknown, and infinite, and what is left need not be
            self.load = sum(call.cost for call in self.calls)


class SeatPhase(enum.Enum):
    """Whether a seat is to have a worker."""

    OPEN = "open"
    """If it has none, it gets one as soon as that may be started."""
    DORMANT = "dormant"
    """It has none, since there was nothing to do for the last one; it gets one when there is."""
    CLOSED = "closed"
    """The pool has become smaller: whoever is there leaves after the call that runs."""


class Seat:
    """A place for one worker at a time to serve calls."""

    __slots__ = ("number", "occupant", "phase", "successor")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.phase: SeatPhase = SeatPhase.OPEN
        self.occupant: Worker | None = None
        self.successor: Worker | None = None

    @property
    def vacant(self) -> bool:
        """Whether it is to have a worker, and has none."""
        return self.occupant is None and self.phase is SeatPhase.OPEN

    @property
    def wants_successor(self) -> bool:
        """Whether the occupant is to go, and nobody is on the way to take its place."""
        occupant = self.occupant
        return (
            occupant is not None and self.successor is None and (occupant.due is not None or occupant.phase is RETIRING)
        )

    @property
    def staffed(self) -> bool:
        """Whether the occupant is ready, and not leaving or killed."""
        return self.occupant is not None and self.occupant.phase in SERVING

    @property
    def has_ready_successor(self) -> bool:
        """Whether somebody could take the occupant's place at once."""
        return self.successor is not None and self.successor.phase is IDLE


class Crew:
    """All workers of a pool.

    Args:
        seats: how many places there are.
        policy: what each worker may serve.
        start_timeout: seconds that a worker has to become ready.
        jitter: returns a number from 0 to 1.

    Attributes:
        workers: by their ids.
        seats: the places, by their numbers.
        closed: places that are no more, and whose workers have calls yet; by their numbers.
        fresh: places that have not had a worker that was ready.
        dormant: how many places have no worker because there is nothing to do.
        settled: whether it is known that every open place has an occupant, and a successor if it wants one.
        idle: occupants of seats that have nothing to do, who has been so for longest first; the last is the warmest.
        deadlines: when a start or a leave of a worker, or a call or its interruption, has taken too long.
        ages: when workers become due by age.
    """

    def __init__(self, seats: int, policy: RecyclePolicy, start_timeout: float, jitter: Callable[[], float]) -> None:
        self.workers: dict[int, Worker] = {}
        self.seats: list[Seat] = [Seat(number) for number in range(seats)]
        self.closed: dict[int, Seat] = {}
        self.fresh: set[Seat] = set(self.seats)
        self.dormant: int = 0
        self.settled: bool = False
        self.idle: list[Worker] = []
        self.deadlines: dict[Worker | Call, float] = {}
        self.ages: dict[Worker, float] = {}
        self._policy = policy
        self._start_timeout = start_timeout
        self._jitter = jitter
        self._hired = 0

    # Seats.

    def add_seat(self) -> None:
        """Add the next seat. If it was closed, and its worker has calls yet, that worker stays."""
        number = len(self.seats)
        seat = self.closed.pop(number, None)
        if seat is None:
            seat = Seat(number)
            self.fresh.add(seat)
        elif seat.occupant is not None and not seat.occupant.allowance.spent(seat.occupant.taken):
            self.move(seat.occupant, BUSY)
        seat.phase = SeatPhase.OPEN
        self.seats.append(seat)
        self.settled = False

    def remove_seat(self) -> Seat:
        """Close the last seat; whoever is there is to go."""
        seat = self.seats.pop()
        self.dormant -= seat.phase is SeatPhase.DORMANT
        self.fresh.discard(seat)
        seat.phase = SeatPhase.CLOSED
        if seat.occupant is not None:
            self.closed[seat.number] = seat
        return seat

    def lay_down(self, seat: Seat) -> None:
        """A seat needs no worker for now; whoever is there is to go."""
        seat.phase = SeatPhase.DORMANT
        self.dormant += 1

    def wake(self, count: int) -> None:
        """Open so many of the dormant seats, or all of them."""
        for seat in self.seats:
            if count > 0 and seat.phase is SeatPhase.DORMANT:
                seat.phase = SeatPhase.OPEN
                count -= 1
                self.dormant -= 1
                self.settled = False

    def openings(self) -> list[Seat]:
        """Return the seats that a worker is to be made for."""
        found = [seat for seat in self.seats if seat.vacant or seat.wants_successor]
        self.settled = not found
        return found

    def count_staffed(self) -> int:
        """Return how many seats have a worker that is ready."""
        return sum(seat.staffed for seat in self.seats)

    # Workers.

    def hire(self, seat: Seat, now: float) -> Worker:
        """Make a worker for a seat that is vacant, or whose occupant needs a successor."""
        self._hired += 1
        worker = self.workers[self._hired] = Worker(self._hired, seat, self._policy.allowance(self._jitter()))
        self.deadlines[worker] = now + self._start_timeout
        if seat.occupant is None:
            seat.occupant = worker
        else:
            seat.successor = worker
        return worker

    def rest(self, worker: Worker, now: float) -> None:
        """The occupant of a seat has nothing to do from now on."""
        worker.since = now
        self.idle.append(worker)

    def wear_out(self, worker: Worker, reason: RecycleReason) -> None:
        """A worker is to go as soon as somebody can take its place."""
        worker.due = reason
        self.settled = False

    def move(self, worker: Worker, phase: WorkerPhase) -> None:
        """Have a worker enter a phase; a move that the table does not know raises RuntimeError, and changes nothing."""
        if phase not in WORKER_MOVES[worker.phase]:
            raise RuntimeError(f"{worker!r} cannot become {phase.value}")
        worker.phase = phase
        if phase is RETIRING:
            self.settled = False
        if self.deadlines:
            self.deadlines.pop(worker, None)
        if self.ages and phase in (WorkerPhase.LEAVING, KILLED, WorkerPhase.GONE):
            self.ages.pop(worker, None)

    def vacate(self, worker: Worker, now: float) -> None:
        """Give the worker's seat to its successor."""
        seat = worker.seat
        self.settled = False
        if seat.successor is worker:
            seat.successor = None
        elif seat.occupant is worker:
            seat.occupant, seat.successor = seat.successor, None
            self._relieve(worker, seat.occupant, now)
            if seat.occupant is None:
                self.closed.pop(seat.number, None)

    def _relieve(self, worker: Worker, successor: Worker | None, now: float) -> None:
        """An occupant goes. If it was idle, its successor takes its place among the idle ones, too.

        A seat's time without anything to do goes on then; or it might never be long where workers do not get old.
        """
        ready = successor if successor is not None and successor.phase is IDLE else None
        if worker not in self.idle:
            if ready is not None:
                self.rest(ready, now)
        elif ready is None:
            self.idle.remove(worker)
        else:
            ready.since = worker.since
            self.idle[self.idle.index(worker)] = ready

    def starting(self) -> int:
        """Return how many workers are not ready yet."""
        return sum(worker.phase is WorkerPhase.STARTING for worker in self.workers.values())
