"""How much memory a process has in its own hands."""

from __future__ import annotations

import os
import resource
import sys

__all__ = ["resident_bytes", "resident_bytes_of"]

KIB = 1024


def resident_bytes_of(pid: int | str) -> int | None:
    """Return the resident set size of a process, or None where that cannot be told.

    The process is gone, this system does not tell in this way, or there is no descriptor left to ask with.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:  # noqa: PTH123 - pathlib is much to import for one number
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def resident_bytes() -> int:
    """Return the resident set size: what of this process is in physical memory, shared pages included.

    On Linux it is the present one; elsewhere the largest there has been, which is all that the system tells.
    """
    present = resident_bytes_of("self")
    if present is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * KIB
    return present
