"""What a pool in a cluster of Dask says and is told: questions to its desk, and errors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from distributed import Client

from ..calls import Call
from ..exceptions import AioPoolError, InitializerError, PoolTerminated
from .dask_crossing import UnfitError
from .reports import failure_of

__all__ = ["ask", "attend", "failed_start", "hear", "terminated"]


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


def terminated(call: Call) -> PoolTerminated:
    """Return the end of a call that the pool's end has come before."""
    return PoolTerminated(f"the pool was terminated before {call.name} had finished")


def failed_start(error: Exception) -> Exception:
    """Return what a start raises that has failed with this."""
    if isinstance(error, UnfitError):
        return failure_of(error.failure)
    if isinstance(error, AioPoolError):
        return error
    why = str(error) or "it was not within the time that a start has"
    failed = InitializerError(f"the cluster could not be made ready: {why}")
    failed.__cause__ = error
    return failed
