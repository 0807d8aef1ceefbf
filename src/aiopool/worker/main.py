"""A worker's life: set up, run the initializer, then receive a call, run it, answer, until told to leave.

One thread does it all, so that a job may fork without a second thought.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import math
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import failures, sharing, wire
from ..exceptions import NotPicklable, what_to_do
from ..parcels import wrap
from ..pickling import PLAIN, Pickling
from . import current, isolation, job
from .control import Control
from .current import Station
from .dump import dump_into
from .memory import resident_bytes
from .outlet import Outlet

if TYPE_CHECKING:
    from .logs import Levels

__all__ = ["Inheritance", "Initializer", "Lines", "main"]

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
    ) -> None:
        self.content: tuple[Callable[..., object] | None, tuple[Any, ...], tuple[str, ...]] = (function, args, preload)
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

    def run(self) -> None:
        """Import, then call."""
        function, args, preload = self.content
        for name in preload:
            importlib.import_module(name)
        if function is not None:
            function(*args)


class PickledInitializer:
    """An `Initializer` as it arrives in a worker."""

    def __init__(self, pickled: bytes, pickling: Pickling) -> None:
        self.pickled = pickled
        self._pickling = pickling

    def run(self) -> None:
        """Unpickle it and run it."""
        try:
            content = self._pickling.loads(self.pickled)
        except AttributeError as error:
            if hint := what_to_do(str(error)):
                error.add_note(hint)
            raise
        Initializer(*content).run()


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
    """A pipe for the ids of calls to interrupt."""
    dumps: Connection
    """A pipe for what faulthandler writes."""


def main(
    lines: Lines,
    initializer: Initializer | PickledInitializer,
    seat: int,
    memory_limit: int | None,
    levels: Levels | None,
    pickling: Pickling,
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
        inheritance: what to be rid of when this process was forked from the parent, else None.
    """
    channel = isolation.above_stdio(lines.channel)
    isolation.leave_parents_group()
    isolation.quieten_signals()
    if inheritance is not None:
        _renounce(inheritance)
    isolation.die_with(lines.lifeline.fileno())
    isolation.forked_children_are_ordinary(channel)
    sharing.drop_all()
    control = Control(lines.control.fileno())
    dump_into(lines.dumps.fileno())
    with channel, contextlib.suppress(ConnectionError):  # the parent may be gone; its end is no news to report
        outlet = Outlet(channel, control)
        station = current.Station(seat, outlet, control, pickling)
        current.begin(station)
        if levels is not None:
            from .logs import forward  # noqa: PLC0415 - a worker that leaves logging alone need not import it

            forward(outlet, levels)
        if _introduce(outlet, initializer):
            _serve(channel, station, memory_limit)
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


def _introduce(outlet: Outlet, initializer: Initializer | PickledInitializer) -> bool:
    """Run the initializer, say how it went, and return whether we are good for calls."""
    try:
        initializer.run()
    except BaseException as error:  # noqa: BLE001 - whatever it raises, the parent is to hear of it
        outlet.send(wire.encode(wire.Kind.UNFIT, 0, wrap(failures.encode(error, (__file__,)), (), wire.LARGEST)))
        return False
    outlet.send(wire.encode(wire.Kind.READY))
    return True


def _serve(channel: socket.socket, station: Station, memory_limit: int | None) -> None:
    decoder, arrival = wire.Decoder(), Arrival(channel)
    while (frame := _receive(channel, decoder, arrival)).kind != wire.Kind.LEAVE:
        if frame.kind == wire.Kind.SHARE:
            sharing.keep(frame.call, frame.payload, frame.buffers, station.pickling)
        elif frame.kind == wire.Kind.DROP:
            sharing.drop(frame.call)
        else:
            _answer(station, frame)
            station.calls += 1
            if memory_limit is not None and resident_bytes() > memory_limit:
                station.outlet.send(wire.encode(wire.Kind.HEAVY))
        del frame  # or what came with it would be kept while we wait


class Arrival:
    """Waits for packets on a channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._identity = self._present_identity()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def wait(self) -> None:
        """Wait until there is something to receive.

        A job may have closed all descriptors, and ours may be another socket's by now, which has our last answer.
        Then nobody will ever write to us: our end is the only news that there can be.
        """
        if self._present_identity() != self._identity:
            raise ConnectionResetError("a job has closed the channel")
        self._poll.poll()

    def _present_identity(self) -> int:
        return os.fstat(self._channel.fileno()).st_ino


def _receive(channel: socket.socket, decoder: wire.Decoder, arrival: Arrival) -> wire.Frame:
    """Receive a message.

    We never wait in a call that receives: a worker that is killed there could take along a message that comes after
    its death, and nobody would know that it has not begun it.
    """
    while True:
        try:
            frame = wire.receive(channel, decoder, socket.MSG_DONTWAIT)
        except BlockingIOError:
            arrival.wait()
        else:
            if frame is not None:
                return frame


def _answer(station: Station, frame: wire.Frame) -> None:
    if frame.kind == wire.Kind.TIMED:
        station.outlet.send(wire.encode(wire.Kind.BEGUN, frame.call))
    answer = job.run(frame, station.control, station.pickling)
    _flush()
    station.outlet.send(wire.encode(answer.kind, frame.call, answer.payload, answer.nanoseconds))


def _flush() -> None:
    """Write out what the job printed: a worker that is killed later would take it along."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - there is none, or the job has closed it, or put something else there
            continue
