"""What a pool in a cluster of Dask says and is told: questions to its desk, errors, stacks."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

from distributed import Client

from .. import failures
from ..calls import Call
from ..exceptions import AioPoolError, InitializerError, PoolTerminated
from ..sharing import CallPayload, Share, Sharing
from ..stacks import WorkerStack
from .dask_crossing import Packed, UnfitError
from .ledger import ClusterWorker

__all__ = [
    "all_shares", "ask", "attend", "failed_start", "hear", "large_graphs", "packed", "retrieved", "stacks_of",
    "terminated", "unfit",
]  # fmt: skip

OURS = str(Path(__file__).parent.parent)
"""Where files lie whose frames are around every call."""


async def ask(client: Client, token: str, what: str, **question: object) -> Any:
    """Ask a pool's desk."""
    scheduler: Any = client.scheduler
    if scheduler is None:
        raise ConnectionError("the client is closed")
    return await scheduler.aiopool(pool=token, what=what, **question)


async def attend(client: Client, token: str, gone: weakref.WeakMethod[Callable[[Exception | None], None]]) -> None:
    """Wait for the end of the connection to the desk."""
    error: Exception | None = None
    try:
        await ask(client, token, "attend")
    except OSError as lost:
        error = lost
    if (tell := gone()) is not None:
        tell(error)


def hear(heard: weakref.WeakMethod[Callable[[dict[str, Any]], None]], event: tuple[float, dict[str, Any]]) -> None:
    """Pass on what the desk tells, if anybody is there."""
    if (hear := heard()) is not None:
        hear(dict(event[1]))


def packed(payload: CallPayload) -> Packed:
    """Return a payload as it crosses the cluster, without what it shares with others."""
    return Packed.of(payload.payload if isinstance(payload, Sharing) else payload)


def all_shares(payload: CallPayload) -> Iterator[Share]:
    """Yield the shares in a payload, those first that others stand on."""
    if isinstance(payload, Sharing):
        for share in payload.shares:
            yield from all_shares(share.payload)
            yield share


def terminated(call: Call) -> PoolTerminated:
    """Return the end of a call that the pool's end has come before."""
    return PoolTerminated(f"the pool was terminated before {call.name} had finished")


def unfit(failure: bytes) -> InitializerError:
    """Return the error of a worker whose initializer has failed."""
    error = InitializerError("the initializer failed in a worker")
    error.__cause__ = failures.decode(failure, None)
    return error


def failed_start(error: Exception) -> Exception:
    """Return what a start raises that has failed with this."""
    if isinstance(error, UnfitError):
        return unfit(error.failure)
    if isinstance(error, AioPoolError):
        return error
    why = str(error) or "it was not within the time that a start has"
    failed = InitializerError(f"the cluster could not be made ready: {why}")
    failed.__cause__ = error
    return failed


def retrieved(scattering: asyncio.Future[Any]) -> None:
    """See that a failure counts as seen: each call that needs the object is told of it."""
    if not scattering.cancelled():
        scattering.exception()


@contextlib.contextmanager
def large_graphs() -> Generator[None, None, None]:
    """Have no warning that arguments are large: what to do about it in a pool is `AioPool.share`, not what it says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        yield


def stacks_of(worker: ClusterWorker, found: dict[int, list[traceback.FrameSummary]] | None) -> Iterator[WorkerStack]:
    """Yield what a worker does, for each call that it runs."""
    if not found:
        yield WorkerStack(worker.seat, worker.pid, None, None if found is None else [])
        return
    for call, frames in found.items():
        entry = worker.running.get(call)
        outside = dropwhile(lambda frame: not frame.filename.startswith(OURS), frames)
        inner = list(dropwhile(lambda frame: frame.filename.startswith(OURS), outside))
        yield WorkerStack(worker.seat, worker.pid, None if entry is None else entry.call.name, inner)
