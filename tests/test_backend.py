"""The local backend at moments that are hard to come by with real processes; its workers are in this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from aiopool import PoolNotRunning, PoolTerminated, wire
from aiopool.backends.handles import Observer, Setup
from aiopool.backends.inline import InlineWorker
from aiopool.backends.local import LocalBackend
from aiopool.backends.shell import RESERVE
from aiopool.calls import Call, Outcome, Pace, Reply
from aiopool.decisions import QUICK
from aiopool.hooks import Hooks
from aiopool.phases import PoolPhase
from aiopool.recycling import IdlePolicy, RecyclePolicy
from test_inline import SETUP

pytestmark = pytest.mark.both_loops


class Workers:
    """Makes workers that answer nothing by themselves.

    Attributes:
        kind: of them.
        refuses: whether none can be made any more.
    """

    def __init__(self) -> None:
        self.kind: type[Silent] = Silent
        self.refuses = False

    def make(
        self, number: int, seat: int, loop: asyncio.AbstractEventLoop, setup: Setup, observer: Observer
    ) -> InlineWorker:
        """Make one."""
        if self.refuses:
            raise OSError("Too many open files")
        return self.kind(number, seat, loop, setup, observer)


class Silent(InlineWorker):
    """Takes calls and does not run them."""

    def send(self, packets: Any, call: int = 0) -> None:
        """Take a message."""


def backend_with(workers: Workers) -> LocalBackend:
    """Return one with a single seat."""
    return LocalBackend(
        1,
        lambda _seats: SETUP,
        RecyclePolicy(None),
        grace=0.0,
        start_timeout=1000.0,
        idling=IdlePolicy(None, 1),
        hooks=Hooks(()),
        kind=workers.make,
    )


async def test_a_backend_that_does_not_run_is_not_resized() -> None:
    """It says where it stands."""
    backend = backend_with(Workers())
    with pytest.raises(PoolNotRunning, match="not started"):
        await backend.resize(2)
    await backend.start()
    backend.terminate()
    with pytest.raises(PoolNotRunning, match="takes no more calls"):
        await backend.resize(2)
    await backend.join()
    assert backend.seats == 1


async def test_values_of_a_stream_that_has_ended_are_for_nobody() -> None:
    """Nor is room for more of them for a worker."""
    backend = backend_with(Workers())
    await backend.start()
    [worker] = backend._processes
    backend.received(worker, [wire.Frame(wire.Kind.VALUE, 0, 7, b"")])
    backend.grant(Call("f", b"", lambda _: None), 1)
    assert backend.phase is PoolPhase.RUNNING
    assert list(backend._processes) == [worker]
    backend.terminate()
    await backend.join()


async def test_what_a_worker_said_before_it_was_abandoned_is_no_more_heard() -> None:
    """One of its messages may have been what made somebody abandon the pool."""
    backend = backend_with(Workers())
    await backend.start()
    outcomes: list[Outcome] = []

    def finish(outcome: Outcome) -> None:
        outcomes.append(outcome)
        backend.abandon()

    call = Call("f", b"", finish)
    backend.submit(call)
    [worker] = backend._processes
    frames = [wire.Frame(kind, 0, call.id, b"") for kind in (wire.Kind.RESULT, wire.Kind.HEAVY, wire.Kind.RESULT)]
    backend.received(worker, frames)
    assert outcomes == [Reply(failed=False, payload=b"")]
    assert backend.phase is PoolPhase.CLOSED
    await backend.join()


async def test_a_worker_gets_its_next_call_before_the_answer_to_the_last_is_handed_on() -> None:
    """Which may have to be unpickled for long."""
    backend = backend_with(Workers())
    await backend.start()
    happened: list[str] = []
    [(number, worker)] = backend._processes.items()
    worker.send = lambda _packets, call=0: happened.append(f"sent {call - first.id}")  # type: ignore[method-assign]
    first, second = (Call("f", b"", lambda _outcome: happened.append("handed on")) for _ in range(2))
    for call in (first, second):
        backend.submit(call)
    backend.received(number, [wire.Frame(wire.Kind.RESULT, 0, first.id, b"")])
    assert happened == ["sent 0", "sent 1", "handed on"]
    backend.abandon()


async def test_ctrl_c_while_a_call_is_finished_leaves_nothing_undone() -> None:
    """The interrupt goes on at once, and what was left is done in the loop's next turn."""
    backend = backend_with(Workers())
    await backend.start()
    outcomes: list[Outcome] = []

    def finish(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 1:
            raise KeyboardInterrupt

    for _ in range(3):
        backend.submit(Call("f", b"", finish))
    with pytest.raises(KeyboardInterrupt):
        backend.terminate()
    assert len(outcomes) == 1
    await backend.join()
    assert [type(outcome) for outcome in outcomes] == [PoolTerminated] * 3


async def test_a_worker_that_could_not_be_made_need_not_be_killed() -> None:
    """Though that was decided before, and an interrupt came between."""
    workers = Workers()
    backend = backend_with(workers)
    troubles: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: troubles.append(context))
    await backend.start()

    def interrupted(_outcome: Outcome) -> None:
        raise KeyboardInterrupt

    [first] = backend._processes.values()
    workers.refuses = True
    first.kill()
    await asyncio.sleep(0)  # it is gone, and another is to be made in the next turn
    assert len(backend._unstarted) == 1
    backend.submit(Call("f", b"", interrupted))
    with pytest.raises(KeyboardInterrupt):
        backend.terminate()
    assert [type(command).__name__ for command in backend._commands] == ["Kill"]
    await backend.join()
    assert troubles == []


class Answering(Silent):
    """Answers what it was sent when it is listened to, and tells whether what it sends is to be read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.unanswered: list[int] = []
        self.listened_to = 0
        self.read = asyncio.Event()
        self.read.set()

    def send(self, _packets: Any, call: int = 0) -> None:
        """Take a message."""
        self.unanswered.append(call)

    def listen(self) -> None:
        """Answer."""
        self.listened_to += 1
        calls, self.unanswered = self.unanswered, []
        if calls and (observer := self._observer()) is not None:
            took = int(2e9 * QUICK)
            observer.received(self.number, [wire.Frame(wire.Kind.RESULT, took, call, b"") for call in calls])

    def pause_reading(self) -> None:
        """Not now."""
        self.read.clear()

    def resume_reading(self) -> None:
        """As ever."""
        self.read.set()


async def ended(backend: LocalBackend) -> None:
    """End it."""
    backend.terminate()
    await backend.join()


def short_call(finish: Callable[[Outcome], None] = lambda _outcome: None) -> Call:
    """Return one of those of which workers get some ahead."""
    pace = Pace()
    pace.learn(2 * QUICK)
    return Call("f", b"", finish, pace=pace)


async def with_many_calls(finish: Callable[[Outcome], None]) -> tuple[LocalBackend, Answering]:
    """Return a backend at which a hundred calls wait, and its worker, which has answered some."""
    workers = Workers()
    workers.kind = Answering
    backend = backend_with(workers)
    await backend.start()
    [worker] = backend._processes.values()
    assert isinstance(worker, Answering)
    for _ in range(100):
        backend.submit(short_call(finish))
    assert worker.read.is_set()
    worker.listen()
    return backend, worker


async def test_while_many_short_calls_wait_workers_are_listened_to_now_and_then() -> None:
    """To be woken for each answer would take the time from them. In the end it is as ever."""
    outcomes: list[Outcome] = []
    backend, worker = await with_many_calls(outcomes.append)
    assert 0 < len(outcomes) < 50
    assert not worker.read.is_set()
    await worker.read.wait()
    assert backend.waiting < RESERVE
    assert worker.listened_to < 10
    while worker.unanswered:
        worker.listen()
    assert len(outcomes) == 100
    assert worker.read.is_set()
    await ended(backend)


async def test_an_abandoned_pool_leaves_no_lull_to_its_loop() -> None:
    """Nor anything else that comes later."""
    backend, _ = await with_many_calls(lambda _outcome: None)
    lull = backend._lull
    assert lull is not None
    backend.abandon()
    assert lull.cancelled()


async def test_a_lull_ends_whatever_is_raised_at_the_end_of_a_call() -> None:
    """Or nothing would be heard any more."""
    outcomes: list[Outcome] = []

    def finish(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) in (50, 70):
            raise LookupError

    backend, worker = await with_many_calls(finish)
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context["exception"]))
    assert not worker.read.is_set()
    await worker.read.wait()
    while worker.unanswered:
        worker.listen()
    assert list(map(type, troubles)) == [LookupError] * 2
    assert len(outcomes) == 100
    await ended(backend)
