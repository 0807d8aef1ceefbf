"""When a worker has served long enough. Pure: numbers in, answers out."""

from __future__ import annotations

import dataclasses

__all__ = ["RecyclePolicy"]


@dataclasses.dataclass(frozen=True, slots=True)
class RecyclePolicy:
    """The rules by which workers are replaced.

    Attributes:
        maxtasksperchild: how many calls of the user's function a worker serves, or None for no limit.
    """

    maxtasksperchild: int | None = None

    def fits(self, served: int, weight: int) -> bool:
        """Whether a worker that has served so many calls may take a chunk of so many more; a fresh one always may."""
        return self.maxtasksperchild is None or not served or served + weight <= self.maxtasksperchild

    def spent(self, served: int) -> bool:
        """Whether a worker that has served so many calls takes no more."""
        return self.maxtasksperchild is not None and served >= self.maxtasksperchild

    def chunksize(self, wanted: int) -> int:
        """Return the largest automatic chunk, up to ``wanted``, that uses workers up without a remainder."""
        if self.maxtasksperchild is None:
            return wanted
        size = min(wanted, self.maxtasksperchild)
        while self.maxtasksperchild % size:
            size -= 1
        return size
