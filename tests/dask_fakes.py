"""A cluster of Dask that is not there: a test says what happens in it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping, Sequence
from traceback import FrameSummary
from typing import Any

from aiopool import AioPool
from aiopool.backends.base import Backend, Elsewhere, Wanted
from aiopool.backends.dask_calls import ClusterBackend
from aiopool.backends.dask_connection import Connection
from aiopool.backends.dask_crossing import Answer, Answered, Packed
from aiopool.backends.dask_site import Site


class Task:
    """What the client knows of a task.

    Attributes:
        call: the id of the call that it runs.
        key: its name.
        status: as of a `distributed.Future`.
        answer: what it returns.
    """

    def __init__(self, call: int, key: str) -> None:
        self.call = call
        self.key = key
        self.status = "pending"
        self.answer: Answer | None = None
        self._error: BaseException | None = None
        self._over = asyncio.Event()

    def become(self, status: str, answer: Answer | None = None, error: BaseException | None = None) -> None:
        """It is over."""
        self.status, self.answer, self._error = status, answer, error
        self._over.set()

    def give(self, value: object) -> None:
        """It returns a value."""
        self.become("finished", Answer(Answered.RESULT, Packed([pickle.dumps(value)])))

    async def exception(self) -> BaseException | None:
        """Wait until it is over."""
        await self._over.wait()
        return self._error


class Stored:
    """What stands for a shared object in the cluster."""

    status = "finished"


class FakeClient:
    """A client, and the way to the scheduler.

    Attributes:
        tasks: all that were given to it.
        asked: what the desk was asked, and about what.
        begun: the workers that have begun tasks, by their keys.
        answering: whether the desk answers.
        opens: whether the desk says that it is open, once it is there.
        sending: whether results are sent.
        gathered: how many results were asked for, each time.
        scattered: what was, by its key.
        unreachable: whether nobody answers any more.
        restarted: the workers that were.
        saying: what workers say that are asked what they are doing, by their addresses; others do not answer.
        most_at_once: how many of them were being asked at once.
        complete: whether results that are asked for are all there.
    """

    id = "client"
    status = "running"

    def __init__(self) -> None:
        self.scheduler: FakeClient | None = self
        self.tasks: list[Task] = []
        self.asked: list[tuple[str, Any]] = []
        self.begun: dict[str, str] = {}
        self.answering = asyncio.Event()
        self.answering.set()
        self.opens = True
        self.sending = asyncio.Event()
        self.sending.set()
        self.gathered: list[int] = []
        self.scattered: dict[str, Stored] = {}
        self.unreachable = False
        self.restarted: list[str] = []
        self.saying: dict[str, dict[int, list[FrameSummary]] | OSError] = {}
        self.most_at_once = 0
        self._being_asked: set[str] = set()
        self._gone = asyncio.Event()

    # What a test says.

    def says(self, **message: object) -> None:
        """The desk tells something."""
        self._handler((0.0, message))

    def goes(self) -> None:
        """The scheduler goes away."""
        self.unreachable = True
        self._gone.set()

    async def given(self, count: int) -> list[Task]:
        """Wait until so many tasks were given to it; return all."""
        while len(self.tasks) < count:
            await asyncio.sleep(0)
        return self.tasks

    # What the backend calls.

    def subscribe_topic(self, _topic: str, handler: Any) -> None:
        """Have what the desk tells passed on."""
        self._handler = handler

    def unsubscribe_topic(self, topic: str) -> None:
        """Do it no more, as far as that goes."""

    async def register_plugin(self, plugin: object) -> None:
        """Take a desk or a site."""
        if isinstance(plugin, Site) and self.opens:
            self.says(what="open")

    def map(self, _function: object, calls: Sequence[int], *_: object, key: Sequence[str], **__: object) -> list[Task]:
        """Take tasks."""
        made = [Task(call, name) for call, name in zip(calls, key, strict=True)]
        self.tasks += made
        return made

    def submit(self, _function: object, call: int, *_: object, key: str, **__: object) -> Task:
        """Take a task."""
        return self.map(_function, [call], key=[key])[0]

    async def gather(self, tasks: Mapping[int, Task], errors: str) -> dict[int, Answer]:
        """Return those answers that there are."""
        assert errors == "skip"
        self.gathered.append(len(tasks))
        await self.sending.wait()
        self._reach()
        return {call: task.answer for call, task in tasks.items() if task.answer is not None}

    async def scatter(self, objects: Mapping[str, object], **_: object) -> dict[str, Stored]:
        """Take objects."""
        await self.sending.wait()
        self._reach()
        made = {key: Stored() for key in objects}
        self.scattered |= made
        return made

    async def restart_workers(self, addresses: Sequence[str]) -> None:
        """Restart workers."""
        self._reach()
        self.restarted += addresses

    async def run(self, _function: object, _token: str, *, workers: Sequence[str]) -> dict[str, Any]:
        """Ask a worker what it does."""
        self._being_asked.update(workers)
        self.most_at_once = max(self.most_at_once, len(self._being_asked))
        try:
            await asyncio.sleep(0)
            [worker] = workers
            if worker not in self.saying:
                await asyncio.Event().wait()
            said = self.saying[worker]
            if isinstance(said, OSError):
                raise said
            return {worker: said}
        finally:
            self._being_asked.difference_update(workers)

    async def aiopool(self, *, pool: str, what: str, **question: Any) -> Any:
        """Answer for the desk."""
        del pool
        self.asked.append((what, question))
        if what == "attend":
            await self._gone.wait()
        await self.answering.wait()
        self._reach()
        if what != "release":
            return None
        keys, begun = question["keys"], question["begun"]
        return {key: self.begun.get(key) for key in keys if begun or key not in self.begun}

    def _reach(self) -> None:
        if self.unreachable:
            raise ConnectionError("nobody is there")


class Connected(Connection):
    """A connection that is there."""

    def __init__(self, client: Any) -> None:
        super().__init__(None, None, 1, 1.0)
        self._client = client

    async def open(self) -> Any:
        """Return the client."""
        self.loop = asyncio.get_running_loop()
        self.client = self._client
        return self.client


class FakeDask(Elsewhere):
    """Where the pools of a test run."""

    def __init__(self, client: FakeClient, *, restart_cancelled: bool = False) -> None:
        self.client = client
        self.restart_cancelled = restart_cancelled

    def make(self, wanted: Wanted) -> Backend:
        """Make a backend."""
        return ClusterBackend(Connected(self.client), wanted, restart_cancelled=self.restart_cancelled)


def backend_of(pool: AioPool) -> ClusterBackend:
    """Return what runs a pool's calls."""
    backend = pool._backend
    assert isinstance(backend, ClusterBackend)
    return backend
