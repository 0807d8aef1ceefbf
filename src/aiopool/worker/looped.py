"""A worker's event loop: what coroutines run on, and what waits for messages as soon as there is one.

So what coroutines have left on the loop goes on while the worker waits. A function runs while the loop stands still.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from itertools import chain
from types import FrameType
from typing import Any

from .. import wire
from .current import Station
from .inbox import Inbox, take_share
from .job import Answer
from .looping import Looping
from .tasks import Tasks

__all__ = ["Looped"]

ON_LOOP = range(wire.Kind.COROUTINE, wire.Kind.TIMED_ASYNC_GENERATOR + 1)


class Looped:
    """The loop of a worker, and what runs on it.

    It takes a message only while it has a place, so that what has not begun can be taken back.

    Args:
        inbox: where messages come from.
        station: of the worker.
        looping: how the loop is made, and how many coroutines run at once.
        answer: called with each call's id when it has ended, and how.
    """

    def __init__(self, inbox: Inbox, station: Station, looping: Looping, answer: Callable[[int, Answer], None]) -> None:
        self._runner = asyncio.Runner(loop_factory=looping.factory)
        self._loop = self._runner.get_loop()
        self._inbox = inbox
        self._descriptor = inbox.fileno()  # a forked child closes its own
        self._station = station
        self._answer = answer
        self._tasks = Tasks(self._loop, station, self._ended, looping.concurrency)
        self._listening = False
        self._arrived: wire.Frame | None = None  # what is not for the loop
        self._failure: BaseException | None = None  # of the channel
        # Not `set_exception_handler`: that is for jobs.
        self._tell_as_ever, self._loop.call_exception_handler = self._loop.call_exception_handler, self._check_and_tell  # type: ignore[method-assign]
        station.control.looped = True
        if station.arena is not None:
            station.arena.attend(self._loop)
        self._loop.add_reader(station.control.fileno(), self._tasks.obey)

    def run(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run the initializer; what it sets context variables to is there for all calls."""
        context = copy_context()
        self._runner.run(coroutine, context=context)
        for variable, value in context.items():
            variable.set(value)

    def begin(self, frame: wire.Frame) -> None:
        """Begin a call that has come before there was a loop."""
        self._tasks.begin(frame)

    def receive(self) -> wire.Frame:
        """Run the loop until a message has come that is not for it."""
        self._inbox.check()
        self._listen()
        while self._arrived is None and self._failure is None:  # a job may stop the loop, too
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # asyncio lets them through, also from tasks of a call
                self._tell(error)
        if self._failure is not None:
            raise self._failure
        frame, self._arrived = self._arrived, None
        assert frame is not None  # noqa: S101 - for the type checker
        return frame

    def _tell(self, error: BaseException) -> None:
        context = {"message": "a task or a callback on a worker's loop has raised", "exception": error}
        try:
            self._loop.call_exception_handler(context)
        except (SystemExit, KeyboardInterrupt):  # of a handler that a job has set
            self._loop.default_exception_handler(context)

    def _check_and_tell(self, context: dict[str, Any]) -> None:
        """Tell what was raised, as ever; but do not go on where something of ours was left undone."""
        error = context.get("exception")
        if isinstance(error, BaseException) and _is_of_handler(error, self._loop):
            self._failure = error
            self._loop.stop()
        self._tell_as_ever(context)

    def close(self) -> None:
        """Cancel what is left, close async generators and the loop."""
        if self._loop.is_closed():  # a job has done that
            return
        self._unlisten()
        self._loop.remove_reader(self._station.control.fileno())
        self._station.control.looped = False
        self._runner.close()

    def _listen(self) -> None:
        if not self._listening and self._tasks.has_place:
            self._listening = True
            self._loop.add_reader(self._descriptor, self._take)

    def _unlisten(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._descriptor)

    def _take(self) -> None:
        """Take messages as long as there is a place."""
        try:
            while self._tasks.has_place:
                if (frame := self._inbox.received()) is None:
                    return
                if frame.kind in ON_LOOP:
                    self._tasks.begin(frame)
                elif frame.kind in (wire.Kind.SHARE, wire.Kind.DROP):
                    take_share(frame, self._station.pickling)
                else:
                    self._arrived = frame
                    break
        except BaseException as error:  # noqa: BLE001 - the parent is gone, most likely; see `receive`
            self._failure = error
        self._unlisten()
        if self._arrived is not None or self._failure is not None:
            self._loop.stop()

    def _ended(self, call: int, answer: Answer) -> None:
        try:
            self._answer(call, answer)
        except BaseException as error:  # noqa: BLE001 - the same
            self._failure = error
            self._loop.stop()
        else:
            self._listen()


def _is_of_handler(error: BaseException, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a signal's handler has raised this that came upon code of the loop or of the pool, and not of a job."""
    machinery = {_package_of(__name__), _package_of(type(loop).__module__), *sys.stdlib_module_names}
    step = error.__traceback__
    while step is not None and _package_of(str(step.tb_frame.f_globals.get("__name__"))) in machinery:
        step = step.tb_next
    if step is None:  # Python's own handler of SIGINT is written in C
        return isinstance(error, KeyboardInterrupt)
    values = step.tb_frame.f_locals.values()
    arguments = chain(values, *(value for value in values if isinstance(value, tuple)))
    return any(isinstance(argument, FrameType) for argument in arguments)  # as no other callback is given


def _package_of(module: str) -> str:
    name = module.partition(".")[0]
    return "collections" if name.startswith("namedtuple_") else name  # where methods of a namedtuple say that they are
