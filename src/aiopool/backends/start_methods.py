"""What the start methods of multiprocessing need to be told, and what may go wrong with them."""

from __future__ import annotations

import contextlib
import multiprocessing.forkserver
import multiprocessing.process
import os
import sys
from multiprocessing.context import BaseContext

__all__ = ["UNGUARDED", "UNGUARDED_TEXT", "end_unguarded_import", "preload"]

WORKERS_SIDE = "aiopool.worker.preloaded"

UNGUARDED = 113
"""Exit code of a worker-to-be that was led to start a pool by importing the main module."""

UNGUARDED_TEXT = """\
the main module starts the pool while it is being imported. Every worker imports the main module (the forkserver and \
spawn start methods work that way), and would start a pool of its own. Put what is to run once under a guard:

    if __name__ == "__main__":
        asyncio.run(main())
"""


def end_unguarded_import() -> None:
    """End this process if it is a worker-to-be that has come here by importing a main module without a guard.

    An exception could be caught there, and each worker would print one. The exit code tells the parent, which says it
    once.
    """
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be none, or a closed one
                stream.flush()
        os._exit(UNGUARDED)


def preload(context: BaseContext, names: tuple[str, ...]) -> None:
    """Have the fork server import the worker's side and these modules, beside what it was told before.

    It has no effect on one that runs already; the workers then import the modules themselves.
    """
    if context.get_start_method() == "forkserver":
        told = multiprocessing.forkserver._forkserver._preload_modules  # type: ignore[attr-defined]  # noqa: SLF001
        context.set_forkserver_preload(list(dict.fromkeys([*told, WORKERS_SIDE, *names])))
