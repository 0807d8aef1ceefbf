"""What tests need that play a worker's parent to the worker's side in this process."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

from aiopool import wire
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


def call_of(function: Callable[..., Any], *args: object) -> wire.Frame:
    """Return the message that asks for a call."""
    payload = wire.function_part(pickle.dumps(function, protocol=5)) + pickle.dumps((args, {}))
    return wire.Frame(wire.Kind.CALL, 0, 7, payload)
