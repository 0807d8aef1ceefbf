"""What is known of a pool in a cluster of Dask, and how its calls come to their ends, and with them the pool.

What comes before that is in `aiopool.backends.dask_calls`.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Sequence

from ..calls import CANCELLED, Call, CallPhase, Outcome
from ..exceptions import AioPoolError, BrokenPool
from ..phases import PoolPhase
from ..pickling import Pickling
from ..stats import Tally
from .base import Remains, Wanted, in_loop, not_running
from .dask_connection import Connection
from .dask_parts import ask, terminated
from .dask_shares import Shares
from .dask_tasks import Tasks
from .ledger import Entry, Ledger
from .reports import ended

__all__ = ["ClusterEnds"]

PATIENCE = 5.0
"""Seconds that the cluster has to answer when the pool ends."""


class ClusterEnds:
    """The state, and what ends.

    Args:
        connection: with the cluster; not open yet.
        wanted: what the pool is to be like.
        restart_cancelled: whether the worker of a call is restarted that is stopped while it runs.
    """

    loop: asyncio.AbstractEventLoop
    _tasks: Tasks

    def __init__(self, connection: Connection, wanted: Wanted, *, restart_cancelled: bool) -> None:
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
        self._notice: Callable[[], None] | None = None
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._open: asyncio.Future[None]
        self._closed: asyncio.Future[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._cause: BaseException | None = None

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self._ledger.phase

    def watch(self, notice: Callable[[], None]) -> None:
        """Have ``notice`` called after every change."""
        self._notice = notice

    def _changed(self) -> None:
        if self._ledger.over():
            self._leave()
        if self._notice is not None:
            self._notice()

    def _bind(self) -> None:
        """Belong to the running loop."""
        self.loop = asyncio.get_running_loop()
        self._open, self._closed = self.loop.create_future(), self.loop.create_future()

    def _opened(self) -> None:
        """Nobody needs to wait for the desk any more."""
        if not self._open.done():
            self._open.set_result(None)

    # Calls that end.

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

    def _stop_timer(self, call: Call) -> None:
        if (timer := self._timers.pop(call.id, None)) is not None:
            timer.cancel()

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
            self._stop(entry, CANCELLED)

    def withdraw(self, call: Call) -> None:
        """End a call if it has not begun."""
        entry = self._ledger.entries.get(call.id)
        if entry is None or entry.call.phase is not CallPhase.WAITING:
            return
        if entry.submissions:
            self._connection.begin(self._withdraw(entry))
        else:
            self._stop(entry, CANCELLED)

    async def _withdraw(self, entry: Entry) -> None:
        released = await self._tasks.release([entry.key], begun=False)
        if released.get(entry.key, "") is None and self._ledger.stop(entry, CANCELLED):
            self.end(entry, CANCELLED)

    def _stop(self, entry: Entry, verdict: Outcome) -> None:
        if not self._ledger.stop(entry, verdict):
            return
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
