"""A worker's life: set up, run the initializer, then receive a call, run it, answer, until told to leave.

One thread does it all, so that a job may fork without a second thought. What runs on an event loop is for
`aiopool.worker.looped`, which is imported when the first coroutine comes.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .. import failures, sharing, wire
from ..arena import Arena
from ..exceptions import NotPicklable, what_to_do
from ..parcels import wrap
from ..pickling import PLAIN, Pickling
from . import current, isolation, job
from .control import Control
from .current import Station
from .dump import dump_into
from .inbox import Inbox, take_share
from .looping import Looping
from .memory import resident_bytes
from .outlet import Outlet

if TYPE_CHECKING:
    from .logs import Levels
    from .looped import Looped

__all__ = ["Inheritance", "Initializer", "Lines", "main"]

LEAVE, TIMED, LAST_CALL = int(wire.Kind.LEAVE), int(wire.Kind.TIMED), int(wire.Kind.TIMED_ASYNC_GENERATOR)
"""What each message is compared with: kinds up to these are calls; see `aiopool.wire.Kind`."""

HIDDEN = (__file__,)
"""Files whose frames an initializer's traceback does not begin with."""

ENDS_WITHOUT_ATEXIT = sys.version_info < (3, 13)
"""Whether multiprocessing leaves a forked process without running its atexit handlers."""


class Initializer:
    """What a worker does before its first call: import modules, then call the user's initializer.

    It is pickled while the process is being started, when multiprocessing's own locks and queues may be, too. In
    the worker it is unpickled only when it runs: a failure there is then an initializer's failure, with its cause.
    """

    def __init__(
        self,
        function: Callable[..., object] | None,
        args: tuple[Any, ...],
        preload: tuple[str, ...],
        pickling: Pickling = PLAIN,
        *,
        awaited: bool = False,
    ) -> None:
        self.content: tuple[Callable[..., object] | None, tuple[Any, ...], tuple[str, ...], bool] = (
            function,
            args,
            preload,
            awaited,
        )
        self._pickling = pickling

    def __reduce__(self) -> tuple[Callable[[bytes, Pickling], PickledInitializer], tuple[bytes, Pickling]]:
        try:
            return PickledInitializer, (self._pickled(), self._pickling)
        except Exception as error:
            name, text = failures.type_name(error), failures.text_of(error)
            raise NotPicklable("initializer", None, name, text) from error

    def _pickled(self) -> bytes:
        if self._pickling is PLAIN:
            return bytes(ForkingPickler.dumps(self.content))  # which can do more than pickle while a process is started
        return self._pickling.dumps(self.content, math.inf)[0]

    def run(self) -> Coroutine[Any, Any, object] | None:
        """Import, then call; return what is to be awaited, if the function is a coroutine function."""
        function, args, preload, awaited = self.content
        for name in preload:
            importlib.import_module(name)
        if function is None:
            return None
        returned = function(*args)
        if awaited:
            return cast("Coroutine[Any, Any, object]", returned)
        job.checked(returned)
        return None


class PickledInitializer:
    """An `Initializer` as it arrives in a worker."""

    def __init__(self, pickled: bytes, pickling: Pickling) -> None:
        self.pickled = pickled
        self._pickling = pickling

    def run(self) -> Coroutine[Any, Any, object] | None:
        """Unpickle it and run it."""
        try:
            function, args, preload, awaited = self._pickling.loads(self.pickled)
        except AttributeError as error:
            if hint := what_to_do(str(error)):
                error.add_note(hint)
            raise
        return Initializer(function, args, preload, awaited=awaited).run()


class Inheritance(NamedTuple):
    """What makes the difference between a fork of the parent and a worker."""

    descriptors: tuple[int, ...]
    """The event loop's own."""
    blocked: frozenset[int]
    """The signals that the parent had blocked before it blocked all of them for the fork."""
    variables: Mapping[str, str]
    """Of the environment, as this process is to have them; others have got them with their name."""


class Lines(NamedTuple):
    """What connects a worker to its parent."""

    channel: socket.socket
    """Calls come in, replies go out."""
    lifeline: Connection
    """A pipe that closes when the parent is gone."""
    control: Connection
    """A pipe for what calls are told that run: to stop, or to send more values; see `aiopool.worker.control`."""
    dumps: Connection
    """A pipe for what faulthandler writes."""


def main(
    lines: Lines,
    initializer: Initializer | PickledInitializer,
    seat: int,
    memory_limit: int | None,
    levels: Levels | None,
    pickling: Pickling,
    looping: Looping,
    inheritance: Inheritance | None,
) -> None:
    """Be a worker until told to leave. The target of the process.

    Args:
        lines: to the parent.
        initializer: run before the first call.
        seat: the number of this worker's place in the pool.
        memory_limit: bytes of resident memory after which the worker says that it should be replaced, or None.
        levels: of the log records that are to be sent to the parent; None to leave logging alone.
        pickling: how calls and their outcomes are pickled.
        looping: how coroutines run.
        inheritance: what to be rid of when this process was forked from the parent, else None.
    """
    channel = isolation.above_stdio(lines.channel)
    isolation.leave_parents_group()
    isolation.quieten_signals()
    if inheritance is not None:
        _renounce(inheritance)
    isolation.take_stdio()
    isolation.die_with(lines.lifeline.fileno())
    isolation.forked_children_are_ordinary(channel)
    sharing.drop_all()
    control = Control(lines.control.fileno())
    dump_into(lines.dumps.fileno())
    with channel, contextlib.suppress(ConnectionError):  # the parent may be gone; its end is no news to report
        outlet = Outlet(channel, control)
        # What a worker kept would count as its own, where somebody looks at how much it has.
        arena = Arena() if memory_limit is None else None
        station = current.Station(seat, outlet, control, pickling, arena)
        current.begin(station)
        if levels is not None:
            from .logs import forward  # noqa: PLC0415 - a worker that leaves logging alone need not import it

            forward(outlet, levels)
        worker = Worker(Inbox(channel, arena), station, memory_limit, looping)
        if worker.introduce(initializer):
            worker.serve()
        # Not if that raised: the loop may have lost a step, and what is on it would never end.
        worker.end()
        outlet.send([])  # threads may have logged since the last answer
    if ENDS_WITHOUT_ATEXIT:
        atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing itself does from 3.13 on


def _renounce(inheritance: Inheritance) -> None:
    if ENDS_WITHOUT_ATEXIT:
        atexit._clear()  # noqa: SLF001 - what was registered is the parent's; multiprocessing does the same from 3.13 on
    for descriptor in inheritance.descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    os.environ.update(inheritance.variables)
    signal.pthread_sigmask(signal.SIG_SETMASK, inheritance.blocked)


class Worker:
    """Serves calls.

    Args:
        inbox: where they come from.
        station: what jobs can learn of this worker.
        memory_limit: see `main`.
        looping: see `main`.
    """

    def __init__(self, inbox: Inbox, station: Station, memory_limit: int | None, looping: Looping) -> None:
        self._inbox = inbox
        self._station = station
        self._memory_limit = memory_limit
        self._looping = looping
        self._looped: Looped | None = None

    def introduce(self, initializer: Initializer | PickledInitializer) -> bool:
        """Run the initializer, say how it went, and return whether we are good for calls."""
        outlet = self._station.outlet
        try:
            if (coroutine := initializer.run()) is not None:
                self._loop_side().run(coroutine)
        except BaseException as error:  # noqa: BLE001 - whatever it raises, the parent is to hear of it
            outlet.send(wire.encode(wire.Kind.UNFIT, 0, wrap(failures.encode(error, HIDDEN), (), wire.LARGEST)))
            return False
        outlet.send(wire.encode(wire.Kind.READY))
        return True

    def serve(self) -> None:
        """Serve calls until told to leave."""
        while (frame := self._receive()).kind != LEAVE:
            if frame.kind <= TIMED:
                self._run(frame)
            elif frame.kind <= LAST_CALL:
                self._begin_on_loop(frame)
            else:
                take_share(frame, self._station.pickling)
            del frame  # or what came with it would be kept while we wait

    def end(self) -> None:
        """Shut the loop down, if there is one."""
        if self._looped is not None:
            self._looped.close()

    def _receive(self) -> wire.Frame:
        return self._inbox.receive() if self._looped is None else self._looped.receive()

    def _run(self, frame: wire.Frame) -> None:
        station = self._station
        if frame.kind == TIMED:
            station.outlet.send(wire.encode(wire.Kind.BEGUN, frame.call))
        self._answer(frame.call, job.run(frame, station.control, station.pickling, station.arena))

    def _begin_on_loop(self, frame: wire.Frame) -> None:
        """Begin what has come before there was a loop."""
        try:
            looped = self._loop_side()
        except BaseException as error:  # noqa: BLE001 - of the user's loop factory: the call's outcome
            failure = wrap(failures.encode(error, HIDDEN), (), wire.LARGEST)
            self._answer(frame.call, job.Answer(wire.Kind.FAILED, failure, 0))
        else:
            looped.begin(frame)

    def _loop_side(self) -> Looped:
        """Make the loop, at the first coroutine: from then on, messages come there."""
        from .looped import Looped  # noqa: PLC0415 - asyncio is much to import for a worker that runs no coroutine

        self._looped = looped = Looped(self._inbox, self._station, self._looping, self._answer)
        return looped

    def _answer(self, call: int, answer: job.Answer) -> None:
        """A call has ended: say so."""
        station = self._station
        _flush()
        station.outlet.send(wire.encode(answer.kind, call, answer.payload, answer.nanoseconds))
        station.calls += 1
        if self._memory_limit is not None and resident_bytes() > self._memory_limit:
            station.outlet.send(wire.encode(wire.Kind.HEAVY))


def _flush() -> None:
    """Write out what the job printed: a worker that is killed later would take it along."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # noqa: BLE001, S112 - there is none, or the job has closed it, or put something else there
            continue
