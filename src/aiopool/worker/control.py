"""How the parent interrupts a call, and no other; and how it asks a stream for more.

The parent writes the call's id, and how many more values it may send, into a pipe; no value more means that it is to
stop. Only in that case it signals the process, too. Python runs the signal's handler in the main thread, which is the
one that runs calls: it reads the ids, and raises if the call that runs now is among those that are to stop. A call that
has ended meanwhile is not the one that runs, so nothing is raised into the next. A call that has not begun yet, since
the pipe and the signal may overtake the channel, is interrupted as it begins.

Where a worker has an event loop, that reads the pipe, too, whenever it runs: what runs in a loop is told there.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TypeVar

from ..exceptions import CallInterrupted

__all__ = ["INTERRUPT", "ORDER", "Control"]

T = TypeVar("T")

INTERRUPT = signal.SIGURG
"""Ignored by default, so it does no harm where it is not expected."""

ORDER = struct.Struct("<QQ")
"""What is written into the pipe: a call's id, and how many more values it may send, or 0 if it is to stop."""

MOST_ORDERS = 512

MOST_EARLY = 4096
"""So many ids of calls that have not begun are remembered; a worker has far fewer in its channel."""


class Control:
    """The worker's end of the pipe.

    Attributes:
        current: the id of the call whose function runs now, or None. It is set to that when the call ends, and by no
            method, for an interruption may come before the first step of one.
        interrupted: the id of the call that was interrupted last, or None.
        looped: whether a loop reads the pipe, too.
    """

    def __init__(self, descriptor: int) -> None:
        self.current: int | None = None
        self.interrupted: int | None = None
        self.looped: bool = False
        self._held = False  # an interruption waits
        self._unread = False  # there may be something that is left to the loop
        self._early: dict[int, None] = {}  # ids that came when another call ran, or none; the latest last
        self._more: list[tuple[int, int]] = []  # calls, and how many more values they may send
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        signal.signal(INTERRUPT, self._interrupt)

    def begin(self, call: int) -> None:
        """From now on this call runs; raise if it was interrupted before it came here."""
        self.current = call
        if self._unread:
            self._read()
        if self._early:  # what came for others is of no use any more: this one is alone
            self._early = {call: None} if call in self._early else {}
            self._catch_up()

    def forestalled(self, call: int) -> bool:
        """Return whether a call that begins beside others was interrupted before."""
        if call not in self._early:
            return False
        del self._early[call]
        return True

    def uninterrupted(self, function: Callable[[], T]) -> T:
        """Call what must not be left half done; raise behind it if this call was interrupted meanwhile.

        Where the job's own signals have handlers that raise, they do so anywhere in here. So this is no context
        manager, which could be left half entered, nor is there a count, which could be left wrong.
        """
        if threading.current_thread() is not threading.main_thread():  # interruptions do not come here
            return function()
        before, self._held = self._held, True
        try:
            return function()
        finally:
            self._held = before
            self._catch_up()

    def fileno(self) -> int:
        """Return the pipe's descriptor, for a loop."""
        return self._descriptor

    def orders(self) -> tuple[Iterable[int], list[tuple[int, int]]]:
        """Return what calls are to stop, and which may send how many more values: for a loop."""
        self._read()
        early, self._early = self._early, {}
        more, self._more = self._more, []
        return early, more

    def put_off(self, call: int) -> None:
        """This call is to stop, and has not begun; or it had ended already, and its id must not be kept for ever."""
        self._early[call] = None
        if len(self._early) > MOST_EARLY:
            del self._early[next(iter(self._early))]

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self.looped and self.current is None:
            self._unread = True
            return
        self._read()
        self._catch_up()

    def _catch_up(self) -> None:
        """Raise if the present call is to stop, and nothing holds that off."""
        if self.current in self._early and not self._held:
            self.interrupted = self.current
            # No call between these two: behind one, a handler of the job's own may raise, and this would be lost.
            del self._early[self.current]
            raise CallInterrupted

    def _read(self) -> None:
        self._unread = False
        try:
            orders = os.read(self._descriptor, MOST_ORDERS * ORDER.size)
        except OSError as error:
            if error.errno is None:  # not the system's: a signal's handler of the job's raised it
                raise
            return  # nothing was written, or the job has closed it
        for call, more in ORDER.iter_unpack(orders):
            if more:
                self._more.append((call, more))
            else:
                self._early[call] = None
