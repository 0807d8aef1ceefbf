"""The calls that wait for a worker, in their order."""

from __future__ import annotations

from collections import deque

from .calls import WAITING, Call

__all__ = ["MOST_ENDED", "Backlog"]

MOST_ENDED = 100
"""Calls that have ended and may stay where they were, beside as many as wait."""


class Backlog:
    """A queue that calls may leave in its middle: they stay, and are passed over, until there are too many of them.

    Attributes:
        waiting: how many calls wait.
    """

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self.waiting: int = 0

    def put(self, call: Call) -> None:
        """Have a call wait behind all others."""
        call.phase = WAITING
        self._calls.append(call)
        self.waiting += 1

    def put_back(self, call: Call) -> None:
        """Have a call wait before all others."""
        call.phase = WAITING
        self._calls.appendleft(call)
        self.waiting += 1

    def first(self) -> Call:
        """Return the next call; there is one."""
        while self._calls[0].phase is not WAITING:
            self._calls.popleft()
        return self._calls[0]

    def take(self) -> Call:
        """Take the next call; there is one."""
        self.waiting -= 1
        while (call := self._calls.popleft()).phase is not WAITING:
            pass
        return call

    def forget_one(self) -> None:
        """One of the calls has ended."""
        self.waiting -= 1
        if len(self._calls) > MOST_ENDED + 2 * self.waiting:
            self._calls = deque(call for call in self._calls if call.phase is WAITING)
