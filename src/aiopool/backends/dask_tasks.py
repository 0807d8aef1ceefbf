"""A pool's calls as tasks of a Dask cluster: how they get there, and how their answers come back."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

from distributed import Future, KilledWorker

from .. import wire
from ..calls import Call, CallKind, CallPhase, Outcome
from ..exceptions import AioPoolError
from ..sharing import Sharing
from .dask_connection import Connection
from .dask_crossing import Answer
from .dask_parts import ask
from .dask_shares import Shares, all_shares, packed
from .dask_site import run_call
from .ledger import Entry, Ledger

__all__ = ["Tasks"]

KINDS = {CallKind.FUNCTION: int(wire.Kind.CALL), CallKind.COROUTINE: int(wire.Kind.COROUTINE)}
"""What workers are told of how to run a call."""


class Owner(Protocol):
    """Is told what has come of each task."""

    def answered(self, entry: Entry, answer: Answer) -> None:
        """A worker has answered."""
        ...

    def dropped(self, entry: Entry, why: str) -> None:
        """The task has come to nothing."""
        ...

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """The call cannot be run at all."""
        ...


class Tasks:
    """Gives calls to the cluster, and fetches their answers.

    Args:
        token: the pool's name in the cluster.
        connection: with the cluster.
        ledger: where each call stands.
        shares: what calls share.
        owner: told what has come of each task.

    Attributes:
        futures: those of calls that the cluster has, by the calls' ids.
        following: what waits for these, likewise.
    """

    def __init__(self, token: str, connection: Connection, ledger: Ledger, shares: Shares, owner: Owner) -> None:
        self.futures: dict[int, Future[Answer]] = {}
        self.following: dict[int, asyncio.Task[None]] = {}
        self._token = token
        self._connection = connection
        self._ledger = ledger
        self._shares = shares
        self._owner = owner
        self._outbox: list[Entry] = []
        self._arrived: list[Entry] = []

    # On their way.

    def send(self, entry: Entry) -> None:
        """Give a call to the cluster, together with all others that come in this turn of the loop."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(entry)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        together = list[Entry]()
        for entry in outbox:
            if entry.call.phase is not CallPhase.WAITING:
                continue
            if isinstance(entry.call.payload, Sharing):
                self._connection.begin(self._send_sharing(entry, entry.call.payload))
            else:
                together.append(entry)
        if together and (client := self._connection.client) is not None:
            keys = [self._ledger.submitted(entry) for entry in together]
            columns = (
                [entry.call.id for entry in together],
                [entry.tries_left for entry in together],
                [KINDS[entry.call.kind] for entry in together],
                [packed(entry.call.payload) for entry in together],
            )
            with _large_graphs():
                futures = client.map(run_call, *columns, key=keys, token=self._token, pure=False, fifo_timeout="0 s")
            for entry, future in zip(together, futures, strict=True):
                self._follow(entry, future)

    async def _send_sharing(self, entry: Entry, payload: Sharing) -> None:
        """Give a call to the cluster when it has what the call shares with others."""
        shares = list(dict.fromkeys(all_shares(payload)))
        try:
            scattered = [await self._shares.find(share) for share in shares]
        except (OSError, TimeoutError) as error:
            lost = AioPoolError(f"what {entry.call.name} shares with other calls could not be sent: {error}")
            lost.__cause__ = error
            self._owner.end(entry, lost)
            return
        client = self._connection.client
        if entry.call.phase is not CallPhase.WAITING or client is None:
            return
        with _large_graphs():
            future = client.submit(
                run_call, entry.call.id, entry.tries_left, KINDS[entry.call.kind], packed(payload), *scattered,
                token=self._token, shares=[share.id for share in shares], key=self._ledger.submitted(entry),
                pure=False, fifo_timeout="0 s",
            )  # fmt: skip
        self._follow(entry, future)

    # Their ends.

    def _follow(self, entry: Entry, future: Future[Answer]) -> None:
        self.futures[entry.call.id] = future
        self.following[entry.call.id] = self._connection.begin(self._wait(entry, future))

    def unfollow(self, call: Call) -> None:
        """Let go of a call's task, and of its result in the cluster."""
        self.futures.pop(call.id, None)
        if (following := self.following.pop(call.id, None)) is not None:
            following.cancel()

    async def _wait(self, entry: Entry, future: Future[Answer]) -> None:
        """Wait until the cluster is done with a task."""
        error: BaseException | None = await future.exception()
        if self.futures.get(entry.call.id) is not future or entry.call.phase in (CallPhase.STOPPING, CallPhase.ENDED):
            return
        if future.status == "finished":
            if not self._arrived:
                asyncio.get_running_loop().call_soon(self._fetch)
            self._arrived.append(entry)
        elif future.status == "error":
            self._failed(entry, error)
        else:
            self._owner.dropped(entry, "the cluster has dropped it")

    def _failed(self, entry: Entry, error: BaseException | None) -> None:
        if isinstance(error, KilledWorker):
            self._owner.dropped(entry, "too many workers died that had it")
            return
        failed = AioPoolError(f"the cluster could not run {entry.call.name}: {error!r}")
        failed.__cause__ = error
        self._owner.end(entry, failed)

    def _fetch(self) -> None:
        """Have the answers sent that have become ready in this turn of the loop."""
        arrived, self._arrived = self._arrived, []
        self._connection.begin(self._gather(arrived))

    async def _gather(self, entries: Sequence[Entry]) -> None:
        client = self._connection.client
        futures = {entry.call.id: future for entry in entries if (future := self.futures.get(entry.call.id))}
        if client is None or not futures:
            return
        try:
            gathering: Any = client.gather(futures, errors="skip")
            answers: dict[int, Answer | None] = await gathering
        except OSError:  # the scheduler is gone, which whoever attends at the desk hears of
            return
        for entry in entries:
            if entry.call.phase in (CallPhase.WAITING, CallPhase.RUNNING):
                if (answer := answers.get(entry.call.id)) is None:
                    self._owner.dropped(entry, "its result was lost")
                else:
                    self._owner.answered(entry, answer)

    # Dropping them.

    async def release(self, keys: Sequence[str], *, begun: bool) -> dict[str, str | None]:
        """Have the cluster drop tasks; return for each that it drops the worker that has begun it, or None."""
        client = self._connection.client
        if client is None or client.scheduler is None:
            return {}
        released: dict[str, str | None] | None = None
        with contextlib.suppress(OSError):  # the scheduler is gone
            released = await ask(client, self._token, "release", keys=list(keys), begun=begun)
        return released or {}

    def drop(self, entries: Iterable[Entry]) -> None:
        """Have the cluster drop tasks whose calls end now."""
        if keys := [entry.key for entry in entries if entry.submissions]:
            self._connection.begin(self._drop(keys))

    async def _drop(self, keys: Sequence[str]) -> None:
        await self.release(keys, begun=True)

    async def restart_workers(self, addresses: Iterable[str]) -> None:
        """Have those of these workers restarted that are there."""
        client, there = self._connection.client, [each for each in addresses if each in self._ledger.workers]
        if client is not None and there:
            with contextlib.suppress(OSError):  # the scheduler is gone
                await client.restart_workers(there)


@contextlib.contextmanager
def _large_graphs() -> Generator[None, None, None]:
    """Have no warning that arguments are large: what to do about it in a pool is `AioPool.share`, not what it says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        yield
