"""The dispatcher's records: places for workers, and the workers that have them."""

from __future__ import annotations

from collections import deque

from .calls import Call
from .exceptions import AioPoolError
from .phases import WorkerPhase
from .recycling import Allowance

__all__ = ["Seat", "Worker"]


class Worker:
    """What the dispatcher knows of one worker."""

    __slots__ = (
        "allowance",
        "calls",
        "cause",
        "due",
        "id",
        "phase",
        "recalled",
        "recalling",
        "seat",
        "served",
        "taken",
    )

    def __init__(self, id_: int, seat: Seat, allowance: Allowance) -> None:
        self.id = id_
        self.seat = seat
        self.allowance = allowance
        self.due = False  # it is to leave as soon as its successor is ready
        self.phase = WorkerPhase.STARTING
        self.calls: deque[Call] = deque()  # sent and not answered; the first of them runs
        self.taken = 0  # calls of the user's function sent to it so far
        self.served = 0  # those it has answered
        self.recalling = False  # a recall is under way
        self.recalled = False  # there is nothing to take back: no call was sent since the last recall
        self.cause: AioPoolError | None = None  # why it is no good

    def __repr__(self) -> str:
        return f"<Worker {self.id} {self.phase.value} calls={len(self.calls)} served={self.served}>"


class Seat:
    """A place for one worker at a time to serve calls."""

    __slots__ = ("number", "occupant", "successor")

    def __init__(self, number: int) -> None:
        self.number = number
        self.occupant: Worker | None = None
        self.successor: Worker | None = None
