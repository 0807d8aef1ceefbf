"""What the start methods of multiprocessing need to be told, and what may go wrong with them."""

from __future__ import annotations

import contextlib
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.spawn
import os
import sys
from multiprocessing.context import BaseContext
from pathlib import Path

from ..exceptions import InitializerError

__all__ = ["UNGUARDED", "UNGUARDED_TEXT", "end_unguarded_import", "prepare"]

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


def prepare(context: BaseContext, names: tuple[str, ...]) -> None:
    """Get ready for a pool's start, or raise `InitializerError` where workers could never be started.

    The fork server is told to import the worker's side and these modules, beside what it was told before. That has no
    effect on one that runs already; the workers then import the modules themselves.
    """
    method = context.get_start_method()
    if method != "fork":
        _check_main()
    if method == "forkserver":
        told = multiprocessing.forkserver._forkserver._preload_modules  # type: ignore[attr-defined]  # noqa: SLF001
        if told == ["__main__"]:  # the default. Where it has an effect (from Python 3.13.8 on), a main module that
            told = []  # fails would end the fork server, which tells nobody why; in a worker it is a clear error
        context.set_forkserver_preload(list(dict.fromkeys([*told, WORKERS_SIDE, *names])))


def _check_main() -> None:
    """Refuse a main module that was read from a pipe: each worker would fail to import it, and print a traceback."""
    try:
        path = Path(multiprocessing.spawn.get_preparation_data("").get("init_main_from_path", ""))
    except OSError as error:
        raise InitializerError(f"a worker starts in the parent's working directory, which is gone: {error}") from error
    if path.name == "<stdin>" and not path.exists():
        raise InitializerError(
            "the program was read from its standard input, where workers cannot import it from. Put it into a file, "
            'or run it with `python -c` and what workers run in a module; or use context="fork"'
        )
