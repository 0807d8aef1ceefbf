"""What a pool has in a Dask cluster: a desk at the scheduler, and a site in each worker.

The cluster may give a task to one worker after another: when a worker dies, or has the only copy of a result and dies,
or since it wants to spread its load. So before a worker runs a call, it asks the desk, which says yes once for each
try that the call may have, and tells the pool of it. A call thus never runs more often than it may, and whoever wants
to know whether it has begun, knows. When the pool's client goes, in whatever way, desk and sites go, too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import os
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from distributed import Scheduler, SchedulerPlugin, Worker, WorkerPlugin, get_worker

from .. import failures, sharing, wire
from ..pickling import Pickling
from ..stacks import within_ours
from ..worker import current, job, tasks
from ..worker.logs import ForwardingHandler
from ..worker.main import Initializer, PickledInitializer
from .dask_crossing import Answer, Answered, Packed, UnfitError
from .inline import Undisturbed

__all__ = ["Desk", "Site", "run_call", "share_key", "stacks_here"]


DOOR = "aiopool"
"""What messages of all pools are called. Who has heard of it does not forget it: an unknown one ends a connection."""


IMPORTED = uuid.uuid4().hex
"""Names the import of this module."""

RUN: Mapping[wire.Kind, Callable[[wire.Frame, current.Calls, Pickling], job.Answer]] = {
    wire.Kind.CALL: job.run,
    wire.Kind.COROUTINE: tasks.run,
}
"""What runs a call, by its kind."""


# At the scheduler.


class Desk(SchedulerPlugin):
    """Grants calls to workers, and tells the pool what happens in the cluster.

    Args:
        token: the pool's name in the cluster.
        client: the id of the pool's client.
    """

    def __init__(self, token: str, client: str) -> None:
        self.name = token
        self._client = client
        self._begun: dict[str, list[str]] = {}
        """The workers that have begun a task, by its key."""
        self._unwanted: set[str] = set()
        """Keys of tasks that were cancelled before they came here."""
        self._seats: dict[str, int] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Open."""
        self._scheduler = scheduler
        self._over = asyncio.Event()
        scheduler.handlers.setdefault(DOOR, _door(scheduler))
        scheduler.stream_handlers.setdefault(DOOR, partial(_hear, scheduler))
        for worker in scheduler.workers:
            self.add_worker(scheduler, worker)
        self._tell(what="open")

    def _tell(self, **message: object) -> None:
        # Not by the scheduler's log of events: that would keep them.
        self._scheduler.client_send(self._client, {"op": "event", "topic": self.name, "event": (0.0, message)})

    def hear(self, worker: str, what: str, **message: Any) -> None:
        """A worker says something. It does so in the stream of its messages: a connection would cost more."""
        if what == "claim":
            granted = self.claim(worker=worker, **message)
            answer = {"op": DOOR, "pool": self.name, "call": message["call"], "granted": granted}
            self._scheduler.worker_send(worker, answer)
        else:
            self._tell(what=what, **message)

    # What workers ask.

    def seat(self, worker: str) -> int:
        """Return the number of a worker's place."""
        return self._seats[worker]

    def claim(self, key: str, call: int, retries: int, worker: str) -> bool:
        """Whether a worker may run a call now; the pool is told if so."""
        task = self._scheduler.tasks.get(key)
        if task is None or task.processing_on is None or task.processing_on.address != worker:
            return False  # the task is not wanted any more, or another worker's
        begun = self._begun.setdefault(key, [])
        if len(begun) > retries:
            return False
        begun.append(worker)
        self._tell(what="began", call=call, worker=worker)
        return True

    # What the pool asks.

    async def attend(self) -> None:
        """Return when the desk closes. Whoever waits for this is told by its connection's end if the scheduler goes."""
        await self._over.wait()

    def release(self, keys: Sequence[str], *, begun: bool) -> dict[str, str | None]:
        """Drop tasks, also those that have begun if that is said.

        Returns:
            for each that is dropped, the worker that has begun it; None if it never will begin.
        """
        chosen = {key: self._begun.get(key, [None])[-1] for key in keys if begun or key not in self._begun}
        self._unwanted.update(key for key in chosen if key not in self._scheduler.tasks)
        self._scheduler.client_releases_keys(list(chosen), self._client)
        return chosen

    async def leave(self) -> None:
        """Close, here and in the workers."""
        if self._over.is_set():
            return
        self._over.set()
        scheduler = self._scheduler
        scheduler.remove_plugin(self.name)
        if self.name in scheduler.worker_plugins:
            await scheduler.unregister_worker_plugin(None, self.name)

    # What happens in the cluster.

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """There is a new worker."""
        state = scheduler.workers[worker]
        self._seats[worker] = next(seat for seat in count() if seat not in self._seats.values())
        self._tell(what="came", worker=worker, seat=self._seats[worker], pid=state.pid, threads=state.nthreads)

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **_: Any) -> None:
        """A worker is gone."""
        del scheduler, stimulus_id
        self._seats.pop(worker, None)
        self._tell(what="left", worker=worker)

    def update_graph(self, scheduler: Scheduler, *, keys: Iterable[Any], **_: Any) -> None:
        """Tasks come in."""
        if self._unwanted and (dropped := self._unwanted.intersection(keys)):
            self._unwanted -= dropped
            scheduler.client_releases_keys(list(dropped), self._client)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """A task moves on."""
        del start
        if finish == "forgotten":
            self._begun.pop(key, None)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client has gone, maybe ours."""
        del scheduler
        if client == self._client:
            self._leaving = asyncio.ensure_future(self.leave())


def _door(scheduler: Scheduler) -> Callable[..., Any]:
    """Return what answers the questions that pools and workers ask a desk; with None if that is closed."""

    async def answer(pool: str, what: str, **question: Any) -> Any:
        desk = scheduler.plugins.get(pool)
        if not isinstance(desk, Desk):
            return None
        found = getattr(desk, what)(**question)
        return await found if inspect.isawaitable(found) else found

    return answer


def _hear(scheduler: Scheduler, worker: str, pool: str, what: str, **message: Any) -> None:
    """Pass on what a worker says, to a desk that may be closed."""
    desk = scheduler.plugins.get(pool)
    if isinstance(desk, Desk):
        desk.hear(worker, what, **message)


# In a worker.


class ThreadsCall(Undisturbed, threading.local):
    """Knows which call runs in a thread; none can be interrupted. See `aiopool.worker.control.Control`."""


class Outlet:
    """Sends what jobs report and log to the desk. See `aiopool.worker.outlet.Outlet`."""

    def __init__(self, token: str, worker: Worker) -> None:
        self._token = token
        self._worker = worker

    def put(self, **message: object) -> None:
        """Send a message; it comes to the desk before all that this thread leads to later."""
        self._worker.loop.add_callback(self._worker.batched_send, {"op": DOOR, "pool": self._token, **message})

    def send(self, packets: Sequence[wire.Packet], patience: float | None = None) -> None:
        """Send what a job reports or logs; it waits in this process for as long as it takes."""
        del patience
        for frame in wire.frames_of(packets):
            parts = [bytes(part) for part in (frame.payload or b"", *frame.buffers)]
            self.put(what="told", kind=frame.kind, call=frame.call, parts=parts)


class Site(WorkerPlugin):
    """What a worker knows of a pool.

    Args:
        token: the pool's name in the cluster.
        initializer: run before the first call.
        pickling: how calls and their outcomes are pickled.
        forward_logs: whether log records are sent to the pool.
        home: the pool's process, where records need not be sent; this one by default.
    """

    def __init__(
        self,
        token: str,
        initializer: Initializer | PickledInitializer,
        pickling: Pickling,
        *,
        forward_logs: bool,
        home: tuple[str, int] | None = None,
    ) -> None:
        self.name = token
        self._initializer = initializer
        self._pickling = pickling
        self._forward_logs = forward_logs
        self._home = home or _this_process()
        self._handler: logging.Handler | None = None
        self._claims: dict[int, concurrent.futures.Future[bool]] = {}
        self._closed = False
        self._counting = threading.Lock()
        self.unfit: bytes | None = None
        self.running: dict[int, int] = {}
        """Which call runs in which thread."""

    def __reduce__(self) -> tuple[Callable[..., Site], tuple[Any, ...]]:
        return _site, (self.name, self._initializer, self._pickling, self._forward_logs, self._home)

    async def setup(self, worker: Worker) -> None:
        """Come into a worker, which may be long after the pool was started; run the initializer in its own thread."""
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        worker.stream_handlers.setdefault(DOOR, partial(_granted, worker))
        seat = await worker.scheduler.aiopool(pool=self.name, what="seat", worker=worker.address)
        if seat is None:  # the pool has just ended
            return
        self._outlet = outlet = Outlet(self.name, worker)
        self.station: current.Station = current.Station(seat, outlet, ThreadsCall(), self._pickling)
        if self._forward_logs and self._home != _this_process():
            self._handler = ForwardingHandler(outlet)
            self._handler.addFilter(lambda _record: current.is_in_thread(self.station))
            logging.root.addHandler(self._handler)
        self.unfit = await self._loop.run_in_executor(worker.executors["default"], self._initialize)
        if self.unfit is not None:
            raise UnfitError(self.unfit)

    def _initialize(self) -> bytes | None:
        """Run the initializer; return its failure."""
        try:
            with current.being_in_thread(self.station):
                if (coroutine := self._initializer.run()) is not None:
                    asyncio.run(coroutine)
        except BaseException as error:  # noqa: BLE001 - whatever it raises, the pool is to hear of it
            return failures.encode(error, (__file__,))
        return None

    def teardown(self, worker: Worker) -> None:
        """Go."""
        del worker
        self._closed = True
        for call in list(self._claims):
            self.granted(call, granted=False)
        if self._handler is not None:
            logging.root.removeHandler(self._handler)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Forget a shared object when the cluster does."""
        del start
        if finish in ("released", "forgotten") and (share := share_in_key(self.name, key)) is not None:
            sharing.drop(share)

    def run(self, call: int, retries: int, kind: int, packed: Packed, shares: Mapping[int, Packed]) -> Answer:
        """Run a call, if the desk says so. In one of the worker's threads."""
        if not self._claim(call, retries):
            return Answer(Answered.REFUSED, Packed([b""]))
        if self.unfit is not None:
            return Answer(Answered.UNFIT, Packed([self.unfit]))
        for number, share in shares.items():
            frame = share.frame(wire.Kind.SHARE, number)
            sharing.keep(number, frame.payload, [each.toreadonly() for each in frame.buffers], self._pickling)
        self.running[threading.get_ident()] = call
        try:
            with current.being_in_thread(self.station):
                answer = RUN[wire.Kind(kind)](packed.frame(kind, call), self.station.control, self._pickling)
        finally:
            del self.running[threading.get_ident()]
        with self._counting:
            self.station.calls += 1
        answered = Answered.RESULT if answer.kind == wire.Kind.RESULT else Answered.FAILED
        if isinstance(answer.payload, bytes):
            told = {"kind": answered.value, "nanoseconds": answer.nanoseconds, "payload": answer.payload}
            self._outlet.put(what="answered", call=call, **told)
            return Answer(Answered.TOLD, Packed([b""]))
        return Answer(answered, Packed.of(answer.payload), answer.nanoseconds)

    def _claim(self, call: int, retries: int) -> bool:
        """Ask the desk for a call, and wait for what it says."""
        claim = self._claims[call] = concurrent.futures.Future()
        if self._closed:
            return False
        self._outlet.put(what="claim", key=self._worker.get_current_task(), call=call, retries=retries)
        return claim.result()

    def granted(self, call: int, *, granted: bool) -> None:
        """The desk has answered, or never will."""
        if (claim := self._claims.pop(call, None)) is not None:
            claim.set_result(granted)


def _granted(worker: Worker, pool: str, call: int, granted: bool) -> None:  # noqa: FBT001 - of a message
    """Pass on what a desk has answered, to a site that may be gone."""
    site = worker.plugins.get(pool)
    if isinstance(site, Site):
        site.granted(call, granted=granted)


def _site(
    token: str,
    initializer: Initializer,
    pickling: Pickling,
    forward_logs: bool,  # noqa: FBT001
    home: tuple[str, int],
) -> Site:
    return Site(token, initializer, pickling, forward_logs=forward_logs, home=home)


def _this_process() -> tuple[str, int]:
    """Return what no other process has, on no machine; what is forked from this one is another."""
    return IMPORTED, os.getpid()


def share_key(token: str, share: int) -> str:
    """Return what the cluster calls a shared object."""
    return f"share-{token}-{share}"


def share_in_key(token: str, key: object) -> int | None:
    """Return the number of the shared object of a pool that has this key, or None if it is none."""
    head = f"share-{token}-"
    return int(key[len(head) :]) if isinstance(key, str) and key.startswith(head) else None


def run_call(
    call: int, retries: int, kind: int, packed: Packed, *shared: Packed, token: str, shares: Sequence[int] = ()
) -> Answer:
    """Run a call: what a task is made of."""
    site = get_worker().plugins.get(token)
    if not isinstance(site, Site):
        return Answer(Answered.REFUSED, Packed([b""]))  # the pool has ended
    return site.run(call, retries, kind, packed, dict(zip(shares, shared, strict=True)))


def stacks_here(token: str, dask_worker: Worker) -> dict[int, list[traceback.FrameSummary]]:
    """Return the stacks of the calls that run in a worker; sent there to be run, for there it is known what is ours."""
    site = dask_worker.plugins.get(token)
    if not isinstance(site, Site):
        return {}
    frames = sys._current_frames()  # noqa: SLF001 - there is no other way to see the stacks of all threads
    return {
        call: within_ours(traceback.extract_stack(frames[thread]))
        for thread, call in list(site.running.items())
        if thread in frames
    }
