"""What a pool makes its calls with."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from .admission import Admission
from .backends.base import Backend
from .executor import PoolExecutor
from .lifecycle import Guard
from .packing import Packer
from .recycling import RecyclePolicy
from .streaming import Stream

__all__ = ["Engine"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What a pool makes its calls with; all its callers have the same."""

    backend: Backend
    """Runs the calls."""
    packer: Packer
    """Pickles what they need."""
    admission: Admission
    """Says when one may be submitted."""
    policy: RecyclePolicy
    """Says how large a chunk may be."""
    guard: Guard
    """Says where a call can be made."""
    streams: weakref.WeakSet[Stream]
    """Those that have not come to their end, and some that have."""
    executors: weakref.WeakSet[PoolExecutor]
    """Those that were made."""
