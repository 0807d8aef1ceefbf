"""What a pool has in a Dask cluster, and the way there, each by itself; the other side is not there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import pickle
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Security

import jobs
from aiopool import AioPoolError, InitializerError, failures, wire
from aiopool.backends import dask_site
from aiopool.backends.dask_connection import Connection
from aiopool.backends.dask_crossing import Answer, Answered, Packed, UnfitError
from aiopool.backends.dask_parts import attend, failed_start, hear
from aiopool.backends.dask_shares import _retrieved
from aiopool.backends.dask_site import DOOR, Desk, Site, run_call, stacks_here
from aiopool.phases import PoolPhase
from aiopool.pickling import PLAIN
from aiopool.worker.logs import ForwardingHandler
from aiopool.worker.main import Initializer
from worker_side import call_of

# A desk.


class Scheduler(SimpleNamespace):
    """A scheduler that has nothing but what a desk needs.

    Attributes:
        told: what the desk has told the pool.
        unregistered: the sites that were.
    """

    def __init__(self) -> None:
        super().__init__(handlers={}, stream_handlers={}, workers={}, plugins={}, worker_plugins={})
        self.told: list[Any] = []
        self.unregistered: list[str] = []

    def client_send(self, _client: str, message: Any) -> None:
        """Send to a client."""
        self.told.append(message["event"][1])

    def remove_plugin(self, name: str) -> None:
        """Forget a desk."""
        del self.plugins[name]

    async def unregister_worker_plugin(self, _comm: None, name: str) -> None:
        """Have workers forget a site."""
        del self.worker_plugins[name]
        self.unregistered.append(name)


async def opened(scheduler: Scheduler) -> Desk:
    """Return a desk there."""
    desk = scheduler.plugins["pool"] = Desk("pool", "client")
    await desk.start(scheduler)  # type: ignore[arg-type]
    return desk


async def test_a_desk_closes_once_and_takes_the_sites_along() -> None:
    """If there are any yet; when its own client goes, or says so, and not when another does."""
    scheduler: Any = Scheduler()
    desk = await opened(scheduler)
    desk.remove_client(scheduler, "another")
    assert not desk._over.is_set()
    desk.remove_client(scheduler, "client")
    await desk._leaving
    await desk.attend()
    assert scheduler.unregistered == []
    desk = await opened(scheduler)
    scheduler.worker_plugins["pool"] = None
    await desk.leave()
    await desk.leave()
    assert scheduler.unregistered == ["pool"]


async def test_who_comes_when_a_desk_is_closed_is_told_nothing() -> None:
    """Be it a pool that asks or a worker that says something."""
    scheduler: Any = Scheduler()
    desk = await opened(scheduler)
    await desk.leave()
    scheduler.told.clear()
    assert await scheduler.handlers[DOOR](pool="pool", what="attend") is None
    scheduler.stream_handlers[DOOR](worker="a", pool="pool", what="answered", call=1)
    assert scheduler.told == []


# A site.


class Worker(SimpleNamespace):
    """A worker that has nothing but what a site needs.

    Attributes:
        sent: what it has sent to the desk, without what all messages have.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        super().__init__(stream_handlers={}, plugins={}, address="a", executors={"default": executor})
        self.scheduler = self.loop = self
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.seat: int | None = 3
        self._turn = asyncio.get_running_loop()

    async def aiopool(self, **_question: object) -> int | None:
        """Answer for the desk."""
        return self.seat

    def get_current_task(self) -> str:
        """Return the task's key."""
        return "key"

    def batched_send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        self.sent.put_nowait({key: value for key, value in message.items() if key not in ("op", "pool")})

    def add_callback(self, callback: Callable[..., object], *args: object) -> None:
        """Call something in the loop."""
        self._turn.call_soon_threadsafe(callback, *args)


@pytest.fixture
def executor() -> Iterator[concurrent.futures.Executor]:
    """The threads of a worker."""
    with concurrent.futures.ThreadPoolExecutor(1) as made:
        yield made


def site_with(function: Callable[..., object] | None = None, *, forward_logs: bool = False) -> Site:
    """Return a site with an initializer."""
    return Site("pool", Initializer(function, (), ()), PLAIN, forward_logs=forward_logs, home=("elsewhere", 0))


async def test_a_call_runs_when_the_desk_says_so(executor: concurrent.futures.Executor) -> None:
    """And not when it does not, or never will, since the pool has ended."""
    loop, worker, site = asyncio.get_running_loop(), Worker(executor), site_with()
    worker.plugins["pool"] = site
    await site.setup(worker)  # type: ignore[arg-type]
    granted = worker.stream_handlers[DOOR]
    packed = Packed([bytes(call_of(jobs.square, 3).payload or b"")])

    def begin() -> asyncio.Future[Answer]:
        return loop.run_in_executor(executor, site.run, 7, 0, int(wire.Kind.CALL), packed, {})

    for grant, kind in ((False, Answered.REFUSED), (True, Answered.TOLD)):
        running = begin()
        claim = await worker.sent.get()
        granted(pool="pool", call=7, granted=grant)
        granted(pool="pool", call=7, granted=True)  # which nobody has asked
        assert (await running).kind is kind
        assert claim == {"what": "claim", "key": "key", "call": 7, "retries": 0}
    assert pickle.loads((await worker.sent.get())["payload"]) == 9
    running = begin()
    await worker.sent.get()
    site.teardown(worker)  # type: ignore[arg-type]
    assert (await running).kind is Answered.REFUSED
    assert (await begin()).kind is Answered.REFUSED
    worker.plugins.clear()
    granted(pool="pool", call=7, granted=True)
    assert worker.sent.empty()


async def test_a_worker_whose_initializer_has_failed_runs_nothing(executor: concurrent.futures.Executor) -> None:
    """It answers with the failure."""
    worker, site = Worker(executor), site_with(jobs.fail_to_initialize)
    with pytest.raises(UnfitError) as caught:
        await site.setup(worker)  # type: ignore[arg-type]
    running = asyncio.get_running_loop().run_in_executor(
        executor, site.run, 7, 0, int(wire.Kind.CALL), Packed([b"whatever"]), {}
    )
    await worker.sent.get()
    site.granted(7, granted=True)
    answer = await running
    assert answer.kind is Answered.UNFIT
    assert answer.packed.parts == [caught.value.failure]
    assert repr(failures.decode(caught.value.failure, None)) == "LookupError('no such model')"


@pytest.mark.parametrize("forward_logs", [False, True])
async def test_log_records_are_sent_only_where_that_is_wanted(
    executor: concurrent.futures.Executor, *, forward_logs: bool
) -> None:
    """And until the site goes."""
    worker, site = Worker(executor), site_with(forward_logs=forward_logs)
    await site.setup(worker)  # type: ignore[arg-type]
    there = [handler for handler in logging.root.handlers if isinstance(handler, ForwardingHandler)]
    assert len(there) == forward_logs
    site.teardown(worker)  # type: ignore[arg-type]
    assert not any(isinstance(handler, ForwardingHandler) for handler in logging.root.handlers)


async def test_a_worker_that_comes_as_the_pool_ends_does_nothing_for_it(
    executor: concurrent.futures.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No initializer runs, no call, and it does nothing that could be looked at."""
    worker, site = Worker(executor), site_with(jobs.fail_to_initialize)
    worker.seat = None
    await site.setup(worker)  # type: ignore[arg-type]
    monkeypatch.setattr(dask_site, "get_worker", lambda: worker)
    assert run_call(7, 0, int(wire.Kind.CALL), Packed([b""]), token="pool").kind is Answered.REFUSED  # noqa: S106 - the pool's name
    assert stacks_here("pool", worker) == {}  # type: ignore[arg-type]


# The way there.


async def test_whatever_knows_a_schedulers_address_is_a_cluster() -> None:
    """With its own certificates, if it has any."""
    where: Any = SimpleNamespace(scheduler_address="tcp://127.0.0.1:1", security=Security())  # type: ignore[no-untyped-call]
    assert await Connection(where, None, 1, 1.0)._address() == ("tcp://127.0.0.1:1", where.security)


class Ended:
    """A backend.

    Attributes:
        heard: what it has been told.
    """

    phase = PoolPhase.CLOSED

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def hear(self, what: Any) -> None:
        """Be told something."""
        self.heard.append(what)


async def test_nothing_is_left_of_a_connection_that_has_ended() -> None:
    """Or whose pool has."""
    connection, backend = Connection("tcp://127.0.0.1:1", None, 1, 1.0), Ended()
    connection.loop = asyncio.get_running_loop()
    assert connection.running() is None
    connection.client = SimpleNamespace()  # type: ignore[assignment]
    assert connection.running() is connection.loop
    connection.backend = weakref.ref(backend)  # type: ignore[assignment]
    assert connection.running() is None


class Own:
    """A cluster of the pool's own.

    Attributes:
        closed: set when it is closed.
        killed: whether its workers were killed.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.killed = False

    async def close(self) -> None:
        """End."""
        self.closed.set()

    def kill(self) -> None:
        """Kill the workers."""
        self.killed = True


def test_a_cluster_of_a_pool_that_is_forgotten_is_closed_or_its_workers_are_killed() -> None:
    """As long as its loop can run, and afterwards."""
    connection = Connection(None, None, 1, 1.0)

    async def forgotten() -> Own:
        connection.loop = asyncio.get_running_loop()
        made: Any = Own()
        connection._own_cluster = made
        assert connection.describe() == "a cluster of Dask"
        connection.abandon()
        await made.closed.wait()
        return Own()

    cluster: Any = asyncio.run(forgotten())
    assert connection._own_cluster is None
    connection.abandon()
    connection._own_cluster = cluster
    connection.abandon()
    assert (cluster.killed, cluster.closed.is_set()) == (True, False)


# What is told.


async def test_nobody_is_told_of_what_happens_after_the_pools_end() -> None:
    """When it has been collected."""
    backend = Ended()
    method: Any = weakref.WeakMethod(backend.hear)
    event = (0.0, {"what": "open"})
    client: Any = SimpleNamespace(scheduler=None)
    hear(method, event)
    await attend(client, "pool", method)
    assert backend.heard[0] == {"what": "open"}
    assert isinstance(backend.heard[1], ConnectionError)
    del backend
    gc.collect()
    hear(method, event)
    await attend(client, "pool", method)


def test_a_start_fails_with_what_says_most() -> None:
    """An error of this library as it is; the initializer's, even if it cannot be read; another in words."""
    ours = AioPoolError("as it is")
    assert failed_start(ours) is ours
    unfit = failed_start(UnfitError(failures.encode(LookupError("no such model"))))
    assert isinstance(unfit, InitializerError)
    assert repr(unfit.__cause__) == "LookupError('no such model')"
    garbled = failed_start(UnfitError(b"garbled"))
    assert isinstance(garbled, InitializerError)
    assert isinstance(garbled.__cause__, pickle.UnpicklingError)
    assert str(failed_start(TimeoutError())) == (
        "the cluster could not be made ready: it was not within the time that a start has"
    )


async def test_a_failure_to_send_an_object_is_no_news_to_the_loop() -> None:
    """Nor is that it was cancelled with all else that the loop did."""
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    for error in (None, OSError("no way")):
        future: asyncio.Future[None] = loop.create_future()
        if error is None:
            future.cancel()
        else:
            future.set_exception(error)
        _retrieved(future)
        del future
    gc.collect()
    assert complaints == []
