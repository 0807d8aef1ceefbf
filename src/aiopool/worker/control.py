"""How the parent interrupts a call, and no other.

The parent writes the call's id into a pipe and signals the process. Python runs the signal's handler in the main
thread, which is the one that runs calls: it reads the ids, and raises if the call that runs now is among them. A call
that has ended meanwhile is not the one that runs, so nothing is raised into the next. A call that has not begun yet,
since the pipe and the signal may overtake the channel, is interrupted as it begins.
"""

from __future__ import annotations

import os
import signal
import struct
from types import FrameType
from typing import NoReturn

from ..exceptions import CallInterrupted

__all__ = ["ID", "INTERRUPT", "Control"]

INTERRUPT = signal.SIGURG
"""Ignored by default, so it does no harm where it is not expected."""

ID = struct.Struct("<Q")
"""A call's id, as it is written into the pipe."""

MOST_IDS = 512


class Control:
    """The worker's end of the pipe.

    Attributes:
        current: the id of the call whose function runs now, or None.
        interrupted: the id of the call that was interrupted last, or None.
    """

    def __init__(self, descriptor: int) -> None:
        self.current: int | None = None
        self.interrupted: int | None = None
        self._held = False
        self._early: set[int] = set()  # ids that came when another call ran, or none
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        signal.signal(INTERRUPT, self._interrupt)

    def begin(self, call: int) -> None:
        """From now on this call runs; raise if it was interrupted before it came here."""
        self.current = call
        if self._early:
            early, self._early = self._early, set()
            if call in early:
                self._raise(call)

    def end(self) -> None:
        """No call runs."""
        self.current = None

    def hold(self) -> None:
        """The call does in the main thread what must not be left half done; an interruption waits for `resume`."""
        self._held = True

    def resume(self) -> None:
        """Go on as ever; raise if the call was interrupted meanwhile."""
        self._held = False
        if self.current in self._early:
            self._early.discard(self.current)
            self._raise(self.current)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        try:
            ids = os.read(self._descriptor, MOST_IDS * ID.size)
        except OSError:  # nothing was written, or the job has closed it
            return
        calls = {call for (call,) in ID.iter_unpack(ids)}
        if self.current is not None and self.current in calls and not self._held:
            self._raise(self.current)
        self._early |= calls

    def _raise(self, call: int) -> NoReturn:
        self.interrupted = call
        raise CallInterrupted
