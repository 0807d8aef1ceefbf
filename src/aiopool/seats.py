"""The dispatcher's records: the workers, the seats that they have, and when something is due about each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .calls import Call
from .exceptions import AioPoolError
from .phases import WORKER_MOVES, WorkerPhase
from .recycling import Allowance, RecyclePolicy, RecycleReason

__all__ = ["Crew", "Seat", "Worker"]


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
        "recalled",
        "recalling",
        "seat",
        "served",
        "since",
        "taken",
    )

    def __init__(self, id_: int, seat: Seat, allowance: Allowance) -> None:
        self.id: int = id_
        self.seat: Seat = seat
        self.allowance: Allowance = allowance
        self.due: RecycleReason | None = None  # why it is to leave as soon as its successor is ready
        self.phase: WorkerPhase = WorkerPhase.STARTING
        self.calls: deque[Call] = deque()  # sent and not answered; the first of them runs
        self.load: float = 0.0  # seconds that its calls will take, as predicted when they were sent
        self.ready_at: float | None = None  # when it had run its initializer
        self.since: float = 0.0  # when the first of them began, as far as can be known
        self.taken: int = 0  # calls of the user's function sent to it so far
        self.served: int = 0  # those it has answered
        self.recalling: bool = False  # a recall is under way
        self.recalled: bool = False  # there is nothing to take back: no call was sent since the last recall
        self.cause: AioPoolError | None = None  # why it is no good

    def __repr__(self) -> str:
        return f"<Worker {self.id} {self.phase.value} calls={len(self.calls)} served={self.served}>"


class Seat:
    """A place for one worker at a time to serve calls."""

    __slots__ = ("number", "occupant", "successor")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.occupant: Worker | None = None
        self.successor: Worker | None = None

    @property
    def wants_successor(self) -> bool:
        """Whether the occupant is to go, and nobody is on the way to take its place."""
        occupant = self.occupant
        return (
            occupant is not None
            and self.successor is None
            and (occupant.due is not None or occupant.phase is WorkerPhase.RETIRING)
        )

    @property
    def has_ready_successor(self) -> bool:
        """Whether somebody could take the occupant's place at once."""
        return self.successor is not None and self.successor.phase is WorkerPhase.IDLE


class Crew:
    """All workers of a pool.

    Args:
        seats: how many places there are.
        policy: what each worker may serve.
        start_timeout: seconds that a worker has to become ready.
        jitter: returns a number from 0 to 1.

    Attributes:
        workers: by their ids.
        seats: the places.
        idle: occupants of seats that have nothing to do; the last is the warmest.
        deadlines: when a start, a call, an interruption or a leave has taken too long.
        ages: when workers become due by age.
    """

    def __init__(self, seats: int, policy: RecyclePolicy, start_timeout: float, jitter: Callable[[], float]) -> None:
        self.workers: dict[int, Worker] = {}
        self.seats: list[Seat] = [Seat(number) for number in range(seats)]
        self.idle: list[Worker] = []
        self.deadlines: dict[Worker, float] = {}
        self.ages: dict[Worker, float] = {}
        self._policy = policy
        self._start_timeout = start_timeout
        self._jitter = jitter
        self._hired = 0
        self._settled = False  # every seat has an occupant, and a successor if it wants one

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

    def openings(self) -> list[Seat]:
        """Return the seats that a worker is to be made for."""
        if self._settled:
            return []
        found = [seat for seat in self.seats if seat.occupant is None or seat.wants_successor]
        self._settled = not found
        return found

    def wear_out(self, worker: Worker, reason: RecycleReason) -> None:
        """A worker is to go as soon as somebody can take its place."""
        worker.due = reason
        self._settled = False

    def move(self, worker: Worker, phase: WorkerPhase) -> None:
        """Have a worker enter a phase; a move that the table does not know raises RuntimeError, and changes nothing."""
        if phase not in WORKER_MOVES[worker.phase]:
            raise RuntimeError(f"{worker!r} cannot become {phase.value}")
        worker.phase = phase
        if phase is WorkerPhase.RETIRING:
            self._settled = False
        if phase not in (WorkerPhase.BUSY, WorkerPhase.RETIRING):  # in these, what it runs may be timed
            self.deadlines.pop(worker, None)
        if phase in (WorkerPhase.LEAVING, WorkerPhase.KILLED, WorkerPhase.GONE):
            self.ages.pop(worker, None)

    def vacate(self, worker: Worker) -> None:
        """Give the worker's seat to its successor."""
        seat = worker.seat
        self._settled = False
        if worker in self.idle:
            self.idle.remove(worker)
        if seat.successor is worker:
            seat.successor = None
        elif seat.occupant is worker:
            seat.occupant, seat.successor = seat.successor, None
            if seat.occupant and seat.occupant.phase is WorkerPhase.IDLE:
                self.idle.append(seat.occupant)

    def all_ready(self) -> bool:
        """Whether every seat has a worker that has run its initializer, and no call yet."""
        return all(seat.occupant is not None and seat.occupant.phase is WorkerPhase.IDLE for seat in self.seats)

    def starting(self) -> int:
        """Return how many workers are not ready yet."""
        return sum(worker.phase is WorkerPhase.STARTING for worker in self.workers.values())
