"""A worker's life: set up, run the initializer, then receive a call, run it, answer, until told to leave.

One thread does it all, so that a job may fork without a second thought.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from .. import failures, wire
from ..exceptions import NotPicklable
from . import isolation, job

__all__ = ["Inheritance", "Initializer", "main"]

ENDS_WITHOUT_ATEXIT = sys.version_info < (3, 13)
"""Whether multiprocessing leaves a forked process without running its atexit handlers."""


class Initializer:
    """What a worker does before its first call: import modules, then call the user's initializer.

    It is pickled while the process is being started, when multiprocessing's own locks and queues may be, too. In
    the worker it is unpickled only when it runs: a failure there is then an initializer's failure, with its cause.
    """

    def __init__(self, function: Callable[..., object] | None, args: tuple[Any, ...], preload: tuple[str, ...]) -> None:
        self.content = (function, args, preload)

    def __reduce__(self) -> tuple[Callable[[bytes], PickledInitializer], tuple[bytes]]:
        try:
            return PickledInitializer, (bytes(ForkingPickler.dumps(self.content)),)
        except Exception as error:
            name, text = failures.type_name(error), failures.text_of(error)
            raise NotPicklable("initializer", None, name, text) from error

    def run(self) -> None:
        """Import, then call."""
        function, args, preload = self.content
        for name in preload:
            importlib.import_module(name)
        if function is not None:
            function(*args)


class PickledInitializer:
    """An `Initializer` as it arrives in a worker."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def run(self) -> None:
        """Unpickle it and run it."""
        Initializer(*pickle.loads(self.pickled)).run()


class Inheritance(NamedTuple):
    """What a fork of the parent brings along and a worker must not keep."""

    descriptors: tuple[int, ...]
    """The event loop's own."""
    blocked: frozenset[int]
    """The signals that the parent had blocked before it blocked all of them for the fork."""


def main(
    channel: socket.socket,
    lifeline: Connection,
    initializer: Initializer | PickledInitializer,
    inheritance: Inheritance | None,
) -> None:
    """Be a worker until told to leave. The target of the process.

    Args:
        channel: calls come in, replies go out.
        lifeline: a pipe that closes when the parent is gone.
        initializer: run before the first call.
        inheritance: what to be rid of when this process was forked from the parent, else None.
    """
    channel = isolation.above_stdio(channel)
    isolation.leave_parents_group()
    isolation.quieten_signals()
    if inheritance is not None:
        _renounce(inheritance)
    isolation.die_with(lifeline.fileno())
    isolation.forked_children_are_ordinary(channel)
    with channel, contextlib.suppress(ConnectionError):  # the parent may be gone; its end is no news to report
        if _introduce(channel, initializer):
            _serve(channel)
    if ENDS_WITHOUT_ATEXIT:
        atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing itself does from 3.13 on


def _renounce(inheritance: Inheritance) -> None:
    if ENDS_WITHOUT_ATEXIT:
        atexit._clear()  # noqa: SLF001 - what was registered is the parent's; multiprocessing does the same from 3.13 on
    for descriptor in inheritance.descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_SETMASK, inheritance.blocked)


def _introduce(channel: socket.socket, initializer: Initializer | PickledInitializer) -> bool:
    """Run the initializer, say how it went, and return whether we are good for calls."""
    try:
        initializer.run()
    except BaseException as error:  # noqa: BLE001 - whatever it raises, the parent is to hear of it
        _send(channel, wire.encode(wire.Kind.UNFIT, 0, failures.encode(error, (__file__,))))
        return False
    _send(channel, wire.encode(wire.Kind.READY))
    return True


def _serve(channel: socket.socket) -> None:
    decoder = wire.Decoder()
    while count := channel.recv_into(decoder.space()):
        if not _answer(channel, decoder.filled(count)):
            return


def _answer(channel: socket.socket, frames: list[wire.Frame]) -> bool:
    """Run the calls; return whether to stay. A function, so that nothing of a call is kept while we wait."""
    for frame in frames:
        if frame.kind == wire.Kind.LEAVE:
            return False
        reply = job.run(frame)
        _flush()
        _send(channel, reply)
    return True


def _flush() -> None:
    """Write out what the job printed: a worker that is killed later would take it along."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # closed by the job, or nobody reads it
                stream.flush()


def _send(channel: socket.socket, parts: list[bytes]) -> None:
    if sum(map(len, parts)) <= wire.SCRATCH:
        channel.sendall(b"".join(parts))
    else:
        for part in parts:
            channel.sendall(part)
