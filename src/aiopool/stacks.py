"""What workers are doing: the Python stacks of their main threads."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import selectors
import traceback
from collections.abc import Iterable, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path

from .worker import main as worker_main

__all__ = ["WorkerStack", "frames_in", "is_whole", "within_ours"]

HEADER = "Stack (most recent call first):\n"
"""How faulthandler begins."""

FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')
"""As faulthandler writes it."""

OURS = f"{Path(__file__).parent}{os.sep}"
"""Where files lie whose frames are around every call."""

LOOPS = (f"{Path(asyncio.__file__).parent}{os.sep}", selectors.__file__)
"""Where files lie whose frames are around a coroutine, where its worker's loop is asyncio's."""

BOTTOM = f'  File "{worker_main.__file__}", line '
"""How the line of the frame begins that all of a worker's own stand on, if it is in `main`."""

MOST_FRAMES = 100
"""All that faulthandler tells of a stack that is deeper. How it says so, if at all, depends on Python."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStack:
    """What a worker is doing. As a string, it reads like a traceback.

    Attributes:
        seat: its place.
        pid: its process id. (With ``backend="inline"``, which has no process, there are no stacks.)
        call: the name of the function that it runs, or the names of the coroutine functions, or None.
        frames: the stack of its main thread, or, on Dask, of the thread that runs the call; the innermost frame last,
            without the pool's own; empty while it waits for a call, or runs a function of C; None if it does not
            answer: it is stopped, or gone meanwhile, or not so far yet that it could.
    """

    seat: int
    pid: int
    call: str | None
    frames: Sequence[traceback.FrameSummary] | None

    def __str__(self) -> str:
        does = "runs no call" if self.call is None else f"runs {self.call}"
        head = f"worker {self.seat} (pid {self.pid}) {does}"
        if self.frames is None:
            return f"{head}; it does not answer\n"
        return f"{head}\n{''.join(traceback.StackSummary.from_list(self.frames).format())}"


def is_whole(dump: str) -> bool:
    """Whether there is all of a worker's stack in what faulthandler has written, save what multiprocessing is in."""
    lines = _lines_of(dump)
    return any(map(_is_end, lines)) or sum(map(_is_frame, lines)) >= MOST_FRAMES


def frames_in(dump: str) -> list[traceback.FrameSummary]:
    """Return the frames in what faulthandler has written, the innermost last, without those of ours around them."""
    innermost_first = takewhile(lambda line: not _is_end(line), _lines_of(dump))
    found = [match for line in innermost_first if (match := FRAME.fullmatch(line))]
    frames = [
        traceback.FrameSummary(match["file"], int(match["line"]), match["name"], lookup_line=False)
        for match in reversed(found)
    ]
    return list(dropwhile(_is_around, frames))


def within_ours(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Return the frames that ours have called; there may be others around these."""
    return list(dropwhile(_is_around, dropwhile(lambda frame: not frame.filename.startswith(OURS), frames)))


def _is_around(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith((OURS, *LOOPS))


def _lines_of(dump: str) -> list[str]:
    """Return the whole lines of the last dump; the end of the one before may have come late, and stand before it."""
    _, _, body = dump.rpartition(HEADER)
    *lines, _ = body.split("\n")
    return lines


def _is_end(line: str) -> bool:
    return line.startswith(BOTTOM) and line.endswith(" in main")


def _is_frame(line: str) -> bool:
    return FRAME.fullmatch(line) is not None
