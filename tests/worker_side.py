"""What tests need that play a worker's parent to the worker's side in this process."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from aiopool import wire
from aiopool.exceptions import CallInterrupted
from aiopool.worker.control import INTERRUPT, ORDER, Control


class Interrupting:
    """A worker's end of the pipe for interruptions, and the parent's."""

    def __init__(self, reader: int, writer: int) -> None:
        self.control = Control(reader)
        self.writer = writer

    def interrupt(self, call: int) -> None:
        """Do what the parent does; the handler has run when this returns."""
        os.write(self.writer, ORDER.pack(call, 0))
        signal.raise_signal(INTERRUPT)


def call_of(
    function: Callable[..., Any], *args: object, kind: int = wire.Kind.CALL, number: int = 0, call: int = 7
) -> wire.Frame:
    """Return the message that asks for a call."""
    payload = wire.function_part(pickle.dumps(function, protocol=5)) + pickle.dumps((args, {}))
    return wire.Frame(kind, number, call, payload)


class Late(Exception):
    """Raised by a signal's handler of the job's own."""


def be_late() -> NoReturn:
    """Do as such a handler does."""
    raise Late


def at_each_place(body: Callable[[], object], act: Callable[[], object]) -> Iterator[BaseException | None]:
    """Do something at each place of what is called where Python looks for signals, one by one; yield what that raised.

    These are the first step of a function, and the return from one that is written in C.
    """
    for place in itertools.count(1):
        left, raised = place, None

        def look(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal left
            left -= event in ("call", "c_return")
            if not left:
                sys.setprofile(None)
                act()

        try:
            sys.setprofile(look)
            body()
        except (Late, CallInterrupted) as error:
            raised = type(error)()
        finally:
            sys.setprofile(None)
        if left > 0:
            assert place > 5
            return
        yield raised


def descriptors() -> set[Path]:
    """Return all that this process has."""
    return set(Path("/proc/self/fd").iterdir())
