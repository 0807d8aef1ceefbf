"""How the parent learns what a worker is doing: at a signal, faulthandler writes the main thread's stack into a pipe.

That needs no help from Python, so it also works while C code does not let Python run.
"""

from __future__ import annotations

import faulthandler
import os
import signal

__all__ = ["DUMP", "dump_into"]

DUMP = signal.SIGWINCH
"""Ignored by default, so it does no harm where it is not expected. (Terminals send it to groups of their own.)"""


def dump_into(descriptor: int) -> None:
    """Write the stack there at each signal; what does not fit is lost, rather than that the call has to wait."""
    os.set_blocking(descriptor, False)
    faulthandler.register(DUMP, file=descriptor, all_threads=False)
