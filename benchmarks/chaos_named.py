"""Files in /dev/shm: which of them somebody else has, and which are about to go. Tests look for leftovers with it, too.

Other programs make files there at any time, and multiprocessing's resource tracker removes those of a killed process a
little after its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import time
from collections.abc import Collection
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - looked at, not written

IN_DELETE = 0x200
"""A flag of inotify(7): a file in the directory was removed."""


def names() -> set[str]:
    """Return what lies there."""
    return {entry.name for entry in FOLDER.iterdir()}


def is_left(name: str, ours: Collection[int], patience: float = 20.0) -> bool:
    """Whether a file stays there for so many seconds, and none but our processes use it."""
    return not belongs_to_others(name, ours) and not vanishes(name, patience)


def belongs_to_others(name: str, ours: Collection[int]) -> bool:
    """Whether a process that is none of ours uses it."""
    try:
        number = str((FOLDER / name).stat().st_ino)
    except FileNotFoundError:
        return True  # they have removed it
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in ours:
            with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
                mappings = map(str.split, (entry / "maps").read_text().splitlines())
                if any(each[4] == number and each[5].startswith(str(FOLDER)) for each in mappings if each[5:]):
                    return True
    return False


def vanishes(name: str, seconds: float) -> bool:
    """Whether it is removed before long."""
    libc = ctypes.CDLL(None, use_errno=True)
    with os.fdopen(libc.inotify_init(), "rb", buffering=0) as removals:
        assert libc.inotify_add_watch(removals.fileno(), bytes(FOLDER), IN_DELETE) > 0, ctypes.get_errno()  # noqa: S101 - else nothing can be said
        deadline = time.monotonic() + seconds
        while (FOLDER / name).exists():
            if not select.select([removals], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            removals.read(65536)
        return True
