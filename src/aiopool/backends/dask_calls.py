"""A pool's calls in a cluster of Dask: the asyncio shell around the ledger and the client."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from distributed import Client

from .. import log_records, wire
from ..arena import Arena
from ..calls import Call, CallPhase, Reply
from ..exceptions import AioPoolError, CallTimeout, WorkerDied
from ..hooks import CallStarted, WorkerLeft, WorkerStarted
from ..phases import PoolPhase
from ..sharing import CallPayload, Share
from ..stacks import WorkerStack
from ..stats import PoolStats
from .base import Wanted
from .dask_connection import Connection
from .dask_crossing import Answer, Answered, Packed
from .dask_ends import ClusterEnds
from .dask_parts import attend, failed_start, hear, terminated
from .dask_site import Desk, Site
from .dask_survey import stacks_in
from .dask_tasks import Tasks
from .ledger import Entry
from .reports import NANO, failure_of

__all__ = ["ClusterBackend"]

WORTHWHILE = 0.05
"""Seconds that an automatic chunk should take at least: a task costs the cluster milliseconds, whatever it does."""

MOST_SUBMISSIONS = 5
"""How often a call is given to the cluster that has lost it, time and again, before a worker began it."""


class ClusterBackend(ClusterEnds):
    """Runs calls in a cluster. See `aiopool.backends.base.Backend`.

    Args:
        connection: with the cluster; not open yet.
        wanted: what the pool is to be like.
        restart_cancelled: whether the worker of a call is restarted that is stopped while it runs.
    """

    shortest_chunk: float = WORTHWHILE
    concurrency: int = 1
    arena: Arena | None = None
    streams: bool = False
    resting: bool = False

    def __init__(self, connection: Connection, wanted: Wanted, *, restart_cancelled: bool) -> None:
        super().__init__(connection, wanted, restart_cancelled=restart_cancelled)
        connection.backend = weakref.ref(self)
        self._tasks = Tasks(self._token, connection, self._ledger, self._shares, self)

    # What there is.

    @property
    def seats(self) -> int:
        """How many calls the cluster runs at once at present; one that has no worker yet will get one for a call."""
        return max(1, self._ledger.threads)

    @property
    def waiting(self) -> int:
        """How many calls there are beyond those that the cluster can run at once."""
        return self._ledger.waiting

    @property
    def idle(self) -> int:
        """How many calls would be run at once if they came now."""
        return self._ledger.idle

    # Beginning.

    async def start(self) -> None:
        """Connect, and run the initializer in each worker that is there; raise `InitializerError` if that fails."""
        self._bind()
        self._ledger.move(PoolPhase.STARTING)
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self._wanted.start_timeout):
                await self._enter(await self._connection.open())
        except Exception as error:  # noqa: BLE001 - raised again, in other words
            failure = failed_start(error)
            self.terminate()
            await self.join()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame
        if self.phase is PoolPhase.STARTING:
            self._ledger.move(PoolPhase.RUNNING)
            self._changed()

    async def _enter(self, client: Client) -> None:
        """Set up the desk and the sites."""
        client.subscribe_topic(self._token, partial(hear, weakref.WeakMethod(self._heard)))
        await client.register_plugin(Desk(self._token, client.id))
        self._connection.begin(attend(client, self._token, weakref.WeakMethod(self._scheduler_gone)))
        wanted = self._wanted
        site = Site(self._token, wanted.initializer, wanted.pickling, forward_logs=wanted.forward_logs)
        await client.register_plugin(site)
        await asyncio.wait([self._open])

    # Taking calls.

    def submit(self, call: Call) -> None:
        """Take a call. All that come in one turn of the loop are given to the cluster together."""
        call.submitted = self.loop.time()
        entry = self._ledger.accept(call)
        if self.phase not in (PoolPhase.RUNNING, PoolPhase.CLOSING):
            self.end(entry, terminated(call))
            return
        self._tasks.send(entry)
        self._changed()

    # Answers.

    def answered(self, entry: Entry, answer: Answer) -> None:
        """A worker has answered."""
        call = entry.call
        if answer.kind is Answered.REFUSED:
            self.dropped(entry, "it was not run again")
        elif answer.kind is Answered.UNFIT:
            self.end(entry, failure_of(answer.packed.parts[0]))
        else:
            payload, *buffers = answer.packed.parts
            seconds = answer.nanoseconds / NANO
            call.pace.learn(seconds / call.weight)
            reply = Reply(answer.kind is Answered.FAILED, payload, [memoryview(each) for each in buffers], seconds)
            self.end(entry, reply, served=True)

    def dropped(self, entry: Entry, why: str) -> None:
        """A task has come to nothing: a call that had begun died with its worker; another is given away anew."""
        client = self._connection.client
        if client is not None and client.status != "running":  # all tasks are lost with the way to the scheduler
            self._scheduler_gone(None)
        elif entry.call.phase is CallPhase.RUNNING and (died := self._died(entry)) is not None:
            self.end(entry, died)
        elif entry.submissions >= MOST_SUBMISSIONS + entry.call.tries:
            self.end(
                entry, AioPoolError(f"{entry.call.name} was given to the cluster {entry.submissions} times: {why}")
            )
        else:
            self._tasks.unfollow(entry.call)
            self._tasks.send(entry)

    def _died(self, entry: Entry) -> WorkerDied | None:
        """A worker is gone that ran a call. Another try has all of the time that the call may run."""
        self._stop_timer(entry.call)
        return self._ledger.died(entry)

    # What the desk tells.

    def _heard(self, message: dict[str, Any]) -> None:
        match message.pop("what"):
            case "began":
                self._began(**message)
            case "answered":
                self._told_answer(**message)
            case "told":
                self._told(**message)
            case "came":
                self._came(**message)
            case "left":
                self._left(**message)
            case _:
                self._opened()

    def _began(self, call: int, worker: str) -> None:
        entry = self._ledger.began(call, worker, self.loop.time())
        if entry is None or entry.worker is None:
            return
        if self._tell is not None:
            self._tell(CallStarted(call, entry.call.name, entry.worker.seat, entry.worker.pid))
        limit = entry.call.limits.timeout
        if limit is not None:
            late = CallTimeout(entry.call.name, limit)
            self._timers[call] = self.loop.call_later(limit, self._stop, entry, late)
        self._changed()

    def _told_answer(self, call: int, kind: str, nanoseconds: int, payload: bytes) -> None:
        entry = self._ledger.entries.get(call)
        if entry is not None and entry.call.phase is CallPhase.RUNNING:
            self.answered(entry, Answer(Answered(kind), Packed([payload]), nanoseconds))

    def _told(self, kind: int, call: int, parts: Sequence[bytes]) -> None:
        payload, *buffers = parts
        if kind == wire.Kind.LOG:
            log_records.handle(wire.Frame(kind, 0, call, payload))
        elif (entry := self._ledger.entries.get(call)) is not None and entry.call.progress is not None:
            entry.call.progress(payload, [memoryview(each) for each in buffers])

    def _came(self, worker: str, seat: int, pid: int, threads: int) -> None:
        self._ledger.came(worker, seat, pid, threads, self.loop.time())
        if self._tell is not None:
            self._tell(WorkerStarted(seat, pid))
        self._changed()

    def _left(self, worker: str) -> None:
        if (found := self._ledger.left(worker)) is None:
            return
        gone, running = found
        why = "lost" if running else "left"
        if why == "lost":
            self._tally.lost()
        if self._tell is not None:
            self._tell(WorkerLeft(gone.seat, gone.pid, None, why))
        dead = [(entry, died) for entry in running if (died := self._died(entry)) is not None]
        self._tasks.drop(entry for entry, _ in dead)
        for entry, died in dead:
            self.end(entry, died)
        self._changed()

    # What is refused.

    async def resize(self, seats: int) -> None:
        """Refuse: the cluster's size is not the pool's affair."""
        raise NotImplementedError(
            f"a pool on Dask cannot be resized, not to {seats} either: scale the cluster, or have it adapt"
        )

    def grant(self, call: Call, more: int) -> None:
        """Do what nobody asks for: no call yields values here."""
        raise NotImplementedError  # pragma: no cover - only calls that yield values are asked

    # What is shared.

    def share(self, payload: CallPayload) -> Share:
        """Return what has this payload; it begins to go to all workers now."""
        return self._shares.add(payload, self)

    def forget(self, share: int) -> None:
        """Have workers forget a share; see `aiopool.sharing.Home`."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._shares.forget, share)

    # What it tells.

    def describe(self) -> str:
        """Return the state in a few words."""
        ledger = self._ledger
        busy = sum(bool(worker.running) for worker in ledger.workers.values())
        return f"{self.phase.value}: {len(ledger.workers)} workers, {busy} busy, {ledger.waiting} calls waiting"

    def stats(self) -> PoolStats:
        """Return what there is, and what has been."""
        now = self.loop.time() if self._closed is not None else 0.0
        workers = [worker.stats(now) for worker in list(self._ledger.workers.values())]
        running = self._ledger.running
        return self._tally.snapshot(self.phase.value, workers, max(0, len(self._ledger.entries) - running), running)

    async def stacks(self) -> list[WorkerStack]:
        """Return what workers are doing; those that do not answer are waited for, for a moment."""
        client, workers = self._connection.client, list(self._ledger.workers.values())
        if client is None or self.phase not in (PoolPhase.RUNNING, PoolPhase.CLOSING):
            return []
        return await stacks_in(client, self._token, workers)
