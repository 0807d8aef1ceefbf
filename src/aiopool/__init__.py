"""multiprocessing.Pool for asyncio: ``await pool.apply(f, args)`` runs ``f`` in another process.

The names are resolved when they are first used (PEP 562): a worker, which imports a part of this package only,
pays for neither asyncio nor anyio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.inline import Inline
    from .caller import Caller
    from .exceptions import (
        AioPoolError,
        BrokenPool,
        CallAborted,
        CallInterrupted,
        CallTimeout,
        InitializerError,
        NotPicklable,
        PoolFull,
        PoolNotRunning,
        PoolTerminated,
        RemoteTraceback,
        ResultTimeout,
        WorkerDied,
        WrongLoop,
    )
    from .executor import PoolExecutor
    from .hooks import CallEnded, CallQueued, CallStarted, Event, Hook, WorkerLeft, WorkerStarted
    from .pickling import Pickler
    from .pool import AioPool
    from .results import AsyncResult, MapResult
    from .sharing import Shared
    from .stacks import WorkerStack
    from .stats import Latencies, PoolStats, WorkerStats
    from .streaming import StreamIterator
    from .streams import ImapIterator
    from .worker.current import CurrentWorker, current_worker, report

__all__ = [
    "AioPool",
    "AioPoolError",
    "AsyncResult",
    "BrokenPool",
    "CallAborted",
    "CallEnded",
    "CallInterrupted",
    "CallQueued",
    "CallStarted",
    "CallTimeout",
    "Caller",
    "CurrentWorker",
    "Event",
    "Hook",
    "ImapIterator",
    "InitializerError",
    "Inline",
    "Latencies",
    "MapResult",
    "NotPicklable",
    "Pickler",
    "PoolExecutor",
    "PoolFull",
    "PoolNotRunning",
    "PoolStats",
    "PoolTerminated",
    "RemoteTraceback",
    "ResultTimeout",
    "Shared",
    "StreamIterator",
    "WorkerDied",
    "WorkerLeft",
    "WorkerStack",
    "WorkerStarted",
    "WorkerStats",
    "WrongLoop",
    "current_worker",
    "report",
]

_ELSEWHERE = {
    "AioPool": "pool",
    "AsyncResult": "results",
    "CallEnded": "hooks",
    "CallQueued": "hooks",
    "CallStarted": "hooks",
    "Caller": "caller",
    "CurrentWorker": "worker.current",
    "Event": "hooks",
    "Hook": "hooks",
    "ImapIterator": "streams",
    "Inline": "backends.inline",
    "Latencies": "stats",
    "MapResult": "results",
    "Pickler": "pickling",
    "PoolExecutor": "executor",
    "PoolStats": "stats",
    "Shared": "sharing",
    "StreamIterator": "streaming",
    "WorkerLeft": "hooks",
    "WorkerStack": "stacks",
    "WorkerStarted": "hooks",
    "WorkerStats": "stats",
    "current_worker": "worker.current",
    "report": "worker.current",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_ELSEWHERE.get(name, 'exceptions')}", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
