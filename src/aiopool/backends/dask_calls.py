"""A pool's calls in a cluster of Dask: the asyncio shell around the ledger and the client."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from distributed import Client

from .. import log_records, wire
from ..calls import CANCELLED, Call, CallPhase, Outcome, Reply
from ..exceptions import AioPoolError, BrokenPool, CallTimeout, WorkerDied
from ..hooks import CallStarted, WorkerLeft, WorkerStarted
from ..phases import PoolPhase
from ..pickling import Pickling
from ..sharing import CallPayload, Share
from ..stacks import WorkerStack
from ..stats import PoolStats, Tally
from .base import Remains, Wanted, in_loop, not_running
from .dask_connection import Connection
from .dask_crossing import Answer, Answered, Packed
from .dask_parts import (
    ask,
    attend,
    failed_start,
    hear,
    terminated,
)
from .dask_shares import Shares
from .dask_site import Desk, Site
from .dask_survey import stacks_in
from .dask_tasks import Tasks
from .ledger import Entry, Ledger
from .reports import NANO, ended, failure_of

__all__ = ["ClusterBackend"]

WORTHWHILE = 0.05
"""Seconds that an automatic chunk should take at least: a task costs the cluster milliseconds, whatever it does."""

PATIENCE = 5.0
"""Seconds that the cluster has to answer when the pool ends."""

MOST_SUBMISSIONS = 5
"""How often a call is given to the cluster that has lost it, time and again, before a worker began it."""


class ClusterBackend:
    """Runs calls in a cluster. See `aiopool.backends.base.Backend`.

    Args:
        connection: with the cluster; not open yet.
        wanted: what the pool is to be like.
        restart_cancelled: whether the worker of a call is restarted that is stopped while it runs.
    """

    loop: asyncio.AbstractEventLoop
    shortest_chunk: float = WORTHWHILE
    concurrency: int = 1
    streams: bool = False
    resting: bool = False

    def __init__(self, connection: Connection, wanted: Wanted, *, restart_cancelled: bool) -> None:
        connection.backend = weakref.ref(self)
        self.pickling: Pickling = wanted.pickling
        self.remains: Remains = connection
        self._connection = connection
        self._wanted = wanted
        self._restart = restart_cancelled
        self._tell = wanted.hooks.tell if wanted.hooks else None
        self._token = f"aiopool0{uuid.uuid4().hex}"
        self._ledger = Ledger(self._token)
        self._tally = Tally()
        self._shares = Shares(self._token, connection)
        self._tasks = Tasks(self._token, connection, self._ledger, self._shares, self)
        self._notice: Callable[[], None] | None = None
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._open: asyncio.Future[None]
        self._closed: asyncio.Future[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._cause: BaseException | None = None

    # What there is.

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self._ledger.phase

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

    def watch(self, notice: Callable[[], None]) -> None:
        """Have ``notice`` called after every change."""
        self._notice = notice

    def _changed(self) -> None:
        if self._ledger.over():
            self._leave()
        if self._notice is not None:
            self._notice()

    # Beginning.

    async def start(self) -> None:
        """Connect, and run the initializer in each worker that is there; raise `InitializerError` if that fails."""
        self.loop = asyncio.get_running_loop()
        self._open, self._closed = self.loop.create_future(), self.loop.create_future()
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

    def _opened(self) -> None:
        """Nobody needs to wait for the desk any more."""
        if not self._open.done():
            self._open.set_result(None)

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

    def end(self, entry: Entry, outcome: Outcome, *, served: bool = False) -> None:
        """A call has its outcome."""
        call = entry.call
        if not self._ledger.end(entry, served=served):
            return
        self._stop_timer(call)
        self._tasks.unfollow(call)
        now = self.loop.time()
        self._tally.ended(call, outcome, now)
        if self._tell is not None:
            self._tell(ended(call, outcome, now))
        call.finish(outcome)
        self._changed()

    def _died(self, entry: Entry) -> WorkerDied | None:
        """A worker is gone that ran a call. Another try has all of the time that the call may run."""
        self._stop_timer(entry.call)
        return self._ledger.died(entry)

    def _stop_timer(self, call: Call) -> None:
        if (timer := self._timers.pop(call.id, None)) is not None:
            timer.cancel()

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
            self._timers[call] = self.loop.call_later(limit, self._stop, [entry], late)
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

    def _scheduler_gone(self, error: Exception | None) -> None:
        """The connection to the scheduler is lost."""
        if self.phase not in (PoolPhase.RUNNING, PoolPhase.CLOSING):
            return
        self._cause = error
        if self.phase is PoolPhase.RUNNING:
            self._ledger.move(PoolPhase.BROKEN)
        for entry in self._ledger:
            self.end(entry, self._broken())
        self._changed()

    def _broken(self) -> BrokenPool:
        broken = BrokenPool("the scheduler of the Dask cluster is gone, or cannot be reached any more")
        broken.__cause__ = self._cause
        return broken

    # Stopping.

    def cancel(self, call: Call) -> None:
        """End a call. The work of one that runs may go on, see `DaskBackend`."""
        if (entry := self._ledger.entries.get(call.id)) is not None:
            self._stop([entry], CANCELLED)

    def withdraw(self, call: Call) -> None:
        """End a call if it has not begun."""
        entry = self._ledger.entries.get(call.id)
        if entry is None or entry.call.phase is not CallPhase.WAITING:
            return
        if entry.submissions:
            self._connection.begin(self._withdraw(entry))
        else:
            self._stop([entry], CANCELLED)

    async def _withdraw(self, entry: Entry) -> None:
        released = await self._tasks.release([entry.key], begun=False)
        if released.get(entry.key, "") is None and self._ledger.stop(entry, CANCELLED):
            self.end(entry, CANCELLED)

    def grant(self, call: Call, more: int) -> None:
        """Do what nobody asks for: no call yields values here."""
        raise NotImplementedError  # pragma: no cover - only calls that yield values are asked

    def _stop(self, entries: Sequence[Entry], verdict: Outcome) -> None:
        chosen = [entry for entry in entries if self._ledger.stop(entry, verdict)]
        for entry in chosen:
            if entry.submissions and self._connection.client is not None:
                self._connection.begin(self._stop_in_cluster(entry, verdict))
            else:
                self.end(entry, verdict)

    async def _stop_in_cluster(self, entry: Entry, verdict: Outcome) -> None:
        worker = (await self._tasks.release([entry.key], begun=True)).get(entry.key)
        if self._restart and worker is not None:
            await self._tasks.restart_workers([worker])
        self.end(entry, verdict)

    # The end.

    def close(self) -> None:
        """Take no more calls; accepted ones finish."""
        if self.phase is PoolPhase.NEW:
            self._ledger.move(PoolPhase.CLOSED)
        elif self.phase in (PoolPhase.STARTING, PoolPhase.RUNNING):
            self._ledger.move(PoolPhase.CLOSING)
        elif self.phase is PoolPhase.BROKEN:
            self.terminate()
        self._changed()

    def terminate(self) -> None:
        """Fail every call. What runs is restarted if that is wanted, and else goes on; see `DaskBackend`."""
        if self.phase is PoolPhase.NEW:
            self._ledger.move(PoolPhase.CLOSED)
        if self.phase in (PoolPhase.CLOSED, PoolPhase.TERMINATING):
            return
        self._ledger.move(PoolPhase.TERMINATING)
        self._leave()

    def _leave(self) -> None:
        """End all calls that there are, and then the connection."""
        entries = list(self._ledger)
        keys = [entry.key for entry in entries if entry.submissions]
        addresses = list({entry.worker.address: None for entry in entries if entry.worker and self._restart})
        for entry in entries:
            self.end(entry, terminated(entry.call) if entry.call.verdict is None else entry.call.verdict)
        self._opened()
        if self._ending is None:
            self._ending = self.loop.create_task(self._tear_down(keys, addresses))

    async def _tear_down(self, keys: Sequence[str], addresses: Sequence[str]) -> None:
        client = self._connection.client
        try:
            if client is not None and client.status == "running":
                with contextlib.suppress(OSError, TimeoutError):  # the scheduler, or a worker, does not answer
                    async with asyncio.timeout(PATIENCE):
                        await self._tasks.release(keys, begun=True)
                        client.unsubscribe_topic(self._token)
                        await ask(client, self._token, "leave")
                await self._tasks.restart_workers(addresses)
        finally:
            try:
                await self._connection.close()
            finally:
                self._finish()

    def _finish(self) -> None:
        self._shares.clear()
        if self.phase is not PoolPhase.CLOSED:  # else it was abandoned meanwhile
            self._ledger.move(PoolPhase.CLOSED)
        self._ledger.workers.clear()
        if self._closed is not None:  # pragma: no branch - what was not started is closed without this
            self._closed.set_result(None)
        self._changed()

    async def join(self) -> None:
        """Return when the connection is closed, and the cluster, too, if it is the pool's own."""
        if self._closed is not None:
            await asyncio.wait([self._closed])

    def abandon(self) -> None:
        """End everything for a pool that nobody holds any more, maybe after the loop's end."""
        if self.phase in (PoolPhase.NEW, PoolPhase.CLOSED):
            return
        if in_loop(self.loop):
            self.terminate()
            return
        self._connection.kill_own()
        if self.phase is not PoolPhase.TERMINATING:
            self._ledger.move(PoolPhase.TERMINATING)
        if not self.loop.is_closed():
            for entry in self._ledger:
                self.end(entry, terminated(entry.call))
        self._ledger.move(PoolPhase.CLOSED)

    def refusal(self) -> AioPoolError:
        """Return why no call is taken now."""
        return self._broken() if self.phase is PoolPhase.BROKEN else not_running(self.phase)

    async def resize(self, seats: int) -> None:
        """Refuse: the cluster's size is not the pool's affair."""
        raise NotImplementedError(
            f"a pool on Dask cannot be resized, not to {seats} either: scale the cluster, or have it adapt"
        )

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
