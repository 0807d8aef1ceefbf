"""When a worker has served long enough, or had nothing to do for long enough. Pure: numbers in, answers out."""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["Allowance", "IdlePolicy", "RecyclePolicy", "RecycleReason"]


class RecycleReason(enum.Enum):
    """Why a worker is replaced."""

    CALLS = "calls"
    AGE = "age"
    MEMORY = "memory"


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """What one worker may serve.

    Attributes:
        calls: so many calls of the user's function, or None for no limit.
        age: for so many seconds from its being ready, or None for no limit.
    """

    calls: int | None = None
    age: float | None = None

    def fits(self, taken: int, weight: int) -> bool:
        """Whether a worker that has taken so many calls may take a chunk of so many more; a fresh one always may."""
        return self.calls is None or not taken or taken + weight <= self.calls

    def spent(self, taken: int) -> bool:
        """Whether a worker that has taken so many calls takes no more."""
        return self.calls is not None and taken >= self.calls


@dataclasses.dataclass(frozen=True, slots=True)
class IdlePolicy:
    """The rule by which workers go that have nothing to do.

    Attributes:
        timeout: seconds after which one goes, or None for never.
        minimum: so many stay.
    """

    timeout: float | None = None
    minimum: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class RecyclePolicy:
    """The rules by which workers are replaced; what memory they use, they find out themselves.

    Attributes:
        maxtasksperchild: how many calls of the user's function a worker serves, or None for no limit.
        max_age: for how many seconds it serves, or None for no limit.
        jitter: by which part of these, from 0 to 1, each worker's own limits may be lower.
    """

    maxtasksperchild: int | None = None
    max_age: float | None = None
    jitter: float = 0.0

    def allowance(self, chance: float) -> Allowance:
        """Return what a new worker may serve; ``chance``, from 0 to 1, says how much of the jitter it gets."""
        part = 1 - self.jitter * chance
        calls = self.maxtasksperchild
        return Allowance(
            calls if calls is None else max(1, round(calls * part)),
            self.max_age if self.max_age is None else self.max_age * part,
        )

    def chunksize(self, wanted: int) -> int:
        """Return the largest automatic chunk, up to ``wanted``, that uses workers up without a remainder."""
        if self.maxtasksperchild is None:
            return wanted
        if self.jitter:
            return 1  # each worker has a limit of its own
        size = min(wanted, self.maxtasksperchild)
        while self.maxtasksperchild % size:
            size -= 1
        return size
