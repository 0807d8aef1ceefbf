"""Workers that were lost before they were of any use: how many in a row, how long to wait, when to give up."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FAILURE_BUDGET", "FIRST_DELAY", "QUIET", "Losses"]

FAILURE_BUDGET = 5
"""How many workers in a row, beside one for each seat but the first, may be lost without use.

One more breaks the pool.
"""

FIRST_DELAY = 0.1
"""Seconds before the second start in a row that follows a lost worker; doubled for each one after it."""

QUIET = 60.0
"""Seconds without a lost worker after which earlier ones are forgotten."""


class Losses:
    """Counts them.

    Args:
        seats: how many workers may be idle, and so may be lost, at once.
        jitter: returns a number from 0 to 1; spreads the delays.

    Attributes:
        in_a_row: how many were lost since the last one that was of use.
        budget: how many in a row are borne.
        not_before: when the next worker may be started, or None for at once.
    """

    def __init__(self, seats: int, jitter: Callable[[], float]) -> None:
        self.in_a_row: int = 0
        self.not_before: float | None = None
        self._jitter = jitter
        self._last = 0.0
        self.budget: int
        self.expect(seats)

    def expect(self, seats: int) -> None:
        """So many may be lost at once from now on."""
        self.budget = FAILURE_BUDGET + seats - 1

    def count(self, now: float) -> bool:
        """A worker was lost; return whether that is borne."""
        if now - self._last > QUIET:
            self.in_a_row = 0
        self.in_a_row += 1
        self._last = now
        if self.in_a_row > self.budget:
            self.not_before = None
            return False
        if self.in_a_row > 1:
            self.not_before = now + FIRST_DELAY * 2 ** (self.in_a_row - 2) * (0.5 + self._jitter())
        return True

    def forgive(self) -> None:
        """A worker was of use: what was lost before does not matter any more."""
        self.in_a_row = 0

    def pass_time(self, now: float) -> None:
        """The time is ``now``: maybe the wait is over."""
        if self.not_before is not None and self.not_before <= now:
            self.not_before = None
