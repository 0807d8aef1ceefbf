"""What a pool tells those who watch it: events, as they happen, in its loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Protocol

from .carrying import Around
from .exceptions import AioPoolError
from .interruptions import raise_soon

__all__ = ["CallEnded", "CallQueued", "CallStarted", "Event", "Hook", "Hooks", "WorkerLeft", "WorkerStarted"]

logger: logging.Logger = logging.getLogger("aiopool")


@dataclasses.dataclass(frozen=True, slots=True)
class CallQueued:
    """A call is being made, in the context of whoever makes it. A chunk of a map or an imap is one call.

    Attributes:
        call: its id, which its other events have, too; unique in this process.
        name: of the user's function.
        company: what is put here travels with the call, and is around it in the worker.
    """

    call: int
    name: str
    company: list[Around]


@dataclasses.dataclass(frozen=True, slots=True)
class CallStarted:
    """A call has been sent to a worker; it begins as soon as that has done what it was sent before.

    It comes again when the call is sent to another worker: because it had to wait too long, or because the worker died
    and the call is to be tried again.

    Attributes:
        call: its id.
        name: of the user's function.
        seat: the worker's place.
        pid: the worker's process id.
    """

    call: int
    name: str
    seat: int
    pid: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class CallEnded:
    """A call has come to its end; exactly once for each that was queued.

    Attributes:
        call: its id.
        name: of the user's function.
        end: ``"done"``, ``"failed"``, ``"died"``, ``"timed_out"``, ``"cancelled"`` or ``"abandoned"``; see
            `aiopool.PoolStats`. One that could not be pickled is ``"failed"`` here, and is not counted there.
        queue_seconds: how long it waited, if it returned or raised; else None.
        run_seconds: how long it ran, if it returned or raised; else None.
        error: why it has neither returned nor raised, or None.
    """

    call: int
    name: str
    end: str
    queue_seconds: float | None = None
    run_seconds: float | None = None
    error: AioPoolError | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A worker has run its initializer.

    Attributes:
        seat: its place.
        pid: its process id.
    """

    seat: int
    pid: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker's process is gone.

    Attributes:
        seat: its place.
        pid: its process id, or None if it never had one.
        exitcode: as `multiprocessing.Process.exitcode` has it; None if nobody could tell.
        why: ``"left"`` when it was told to, ``"killed"`` by the pool, or ``"lost"``. On Dask, where workers come and
            go, one that had nothing to do any more has ``"left"``, whatever became of it; any other is ``"lost"``.
    """

    seat: int
    pid: int | None
    exitcode: int | None
    why: str


Event = CallQueued | CallStarted | CallEnded | WorkerStarted | WorkerLeft


class Hook(Protocol):
    """Watches a pool."""

    def on_event(self, event: Event) -> None:
        """Something happens. Called in the pool's loop, which waits for it.

        What it raises is logged the first time, and harms nothing. SystemExit and KeyboardInterrupt go on to end the
        program, from the loop's next turn.
        """


class Hooks:
    """All who watch a pool.

    Args:
        hooks: are told in this order.
    """

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = tuple(hooks)
        for hook in self._hooks:
            if not callable(getattr(hook, "on_event", None)):
                raise TypeError(f"hooks must have the method on_event; {hook!r} has none")
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def tell(self, event: Event) -> None:
        """Tell all of them."""
        for number, hook in enumerate(self._hooks):
            try:
                hook.on_event(event)
            except BaseException as error:
                if number not in self._failed:
                    self._failed.add(number)
                    logger.exception("a hook has failed, and what it raises from now on is not logged: %r", hook)
                raise_soon(error)
