"""What a pool tells those who watch it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import jobs
from aiopool import (
    AioPool,
    AsyncResult,
    CallEnded,
    CallQueued,
    CallStarted,
    Event,
    NotPicklable,
    PoolFull,
    PoolNotRunning,
    PoolTerminated,
    WorkerDied,
    WorkerLeft,
    WorkerStarted,
)
from latch import Latch

pytestmark = pytest.mark.both_loops


class Diary:
    """Writes down all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """One more."""
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        """Return those of a kind."""
        return [event for event in self.events if type(event) is kind]

    @property
    def ends(self) -> list[str]:
        """Return how calls have ended."""
        return [event.end for event in self.of(CallEnded)]

    def check(self) -> None:
        """Each call that was queued has ended, once, and nothing was said of it after that."""
        queued = Counter(event.call for event in self.of(CallQueued))
        assert queued == Counter(event.call for event in self.of(CallEnded))
        assert set(queued.values()) <= {1}
        ended: set[int] = set()
        for event in self.events:
            if isinstance(event, (CallQueued, CallStarted, CallEnded)):
                assert event.call not in ended
                if isinstance(event, CallEnded):
                    ended.add(event.call)


@pytest.fixture
def diary() -> Diary:
    """What the test's pool tells."""
    return Diary()


async def test_a_call_is_queued_started_and_ended(diary: Diary, start_method: str) -> None:
    """In a worker that starts before, and leaves after it."""
    async with AioPool(1, context=start_method, hooks=[diary]) as pool:
        pid = await pool.apply(jobs.pid_of)
    names = [type(event).__name__ for event in diary.events]
    assert names == ["WorkerStarted", "CallQueued", "CallStarted", "CallEnded", "WorkerLeft"]
    worker, queued, started, ended, left = diary.events
    assert worker == WorkerStarted(0, pid)
    assert isinstance(queued, CallQueued)
    assert queued.name == "pid_of"
    assert started == CallStarted(queued.call, "pid_of", 0, pid)
    assert isinstance(ended, CallEnded)
    assert (ended.call, ended.name, ended.end, ended.error) == (queued.call, "pid_of", "done", None)
    assert ended.queue_seconds is not None
    assert ended.run_seconds is not None
    assert left == WorkerLeft(0, pid, 0, "left")


async def test_each_way_to_end_has_its_name(diary: Diary, latch: Latch, gate: Latch) -> None:
    """And its reason, where the pool has one."""
    pool = AioPool(1, hooks=[diary])
    async with pool:
        with pytest.raises(ValueError, match="3"):
            await pool.apply(jobs.fail_at, (3,))
        with pytest.raises(WorkerDied) as died:
            await pool.apply(jobs.kill_self)
        running = pool.apply_async(jobs.tell_and_wait, (latch.path, gate.path))
        waiting = pool.apply_async(jobs.square, (2,))
        await latch.told()
        waiting.cancel()
        running.cancel()
        await asyncio.wait([waiting, running])
        abandoned = pool.apply_async(jobs.tell_and_wait, (latch.path, gate.path))
        await latch.told()
        pool.terminate()
        with pytest.raises(PoolTerminated) as terminated:
            await abandoned
    diary.check()
    assert diary.ends == ["failed", "died", "cancelled", "cancelled", "abandoned"]
    errors = [event.error for event in diary.of(CallEnded)]
    assert errors == [None, died.value, None, None, terminated.value]
    assert Counter(event.why for event in diary.of(WorkerLeft)) == {"lost": 1, "killed": 2}
    assert [event.exitcode for event in diary.of(WorkerLeft)] == [-signal.SIGKILL] * 3


async def refused_argument(pool: AioPool) -> None:
    """Try to send what cannot travel."""
    with pytest.raises(NotPicklable):
        await pool.apply(jobs.same, (lambda: None,))
    with pytest.raises(NotPicklable):
        await pool.map(jobs.same, [1, 2, lambda: None], chunksize=1)
    with pytest.raises(NotPicklable):
        [each async for each in pool.imap(jobs.same, [1, lambda: None], chunksize=1)]


async def streams(pool: AioPool) -> None:
    """Map, imap, and leave one early."""
    assert await pool.map(jobs.square, range(5), chunksize=2) == [0, 1, 4, 9, 16]
    assert [each async for each in pool.imap(jobs.square, range(3))] == [0, 1, 4]
    async with contextlib.aclosing(pool.imap(jobs.square, range(100))) as stream:
        await anext(stream)


async def test_what_cannot_be_pickled_has_failed(diary: Diary) -> None:
    """With the error that its caller gets."""
    async with AioPool(1, hooks=[diary]) as pool:
        with pytest.raises(NotPicklable) as refused:
            await pool.apply(jobs.same, (lambda: None,))
    (ended,) = diary.of(CallEnded)
    assert (ended.end, ended.error) == ("failed", refused.value)


@pytest.mark.parametrize("use", [refused_argument, streams])
async def test_every_call_that_is_queued_ends_once(diary: Diary, use: Callable[[AioPool], Awaitable[None]]) -> None:
    """Also one that is refused when it is half made."""
    async with AioPool(2, hooks=[diary]) as pool:
        await use(pool)
        await pool.apply(jobs.square, (2,))
    diary.check()


async def test_calls_that_wait_for_room_end_once(diary: Diary, latch: Latch, gate: Latch) -> None:
    """Those that are never let in, too; one that finds the pool full is none."""
    async with AioPool(1, hooks=[diary], max_pending=1) as pool:
        running = pool.apply_async(jobs.tell_and_wait, (latch.path, gate.path))
        waiting = pool.apply_async(jobs.square, (2,))
        with pytest.raises(PoolFull):
            pool.apply_async(jobs.square, (3,))
        others = [
            asyncio.ensure_future(pool.apply(jobs.square, (4,))),
            asyncio.ensure_future(pool.map(jobs.square, [5, 6])),
        ]
        await latch.told()
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        assert len(diary.of(CallQueued)) == 5
        gate.let()
        await asyncio.gather(running, waiting)
    diary.check()
    assert Counter(diary.ends) == {"done": 2, "cancelled": 3}


async def test_a_call_that_is_tried_again_starts_again(diary: Diary, latch: Latch) -> None:
    """But ends once."""
    async with AioPool(1, hooks=[diary], retries=1) as pool:
        await pool.apply(jobs.die_once, (latch.path + ".tried",))
    diary.check()
    assert len(diary.of(CallStarted)) == 2


class Harmful:
    """Raises at each event."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_event(self, event: Event) -> None:
        """Fail."""
        raise self.error(event)


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, GeneratorExit], ids=lambda each: each.__name__)
async def test_a_hook_that_raises_is_logged_once_and_harms_nothing(
    error: type[BaseException], diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    """Those behind it are told all the same."""
    with caplog.at_level(logging.ERROR):
        async with AioPool(1, hooks=[Harmful(error), diary]) as pool:
            assert await pool.map(jobs.square, range(3)) == [0, 1, 4]
    diary.check()
    (record,) = caplog.records
    assert "a hook has failed" in record.message
    assert record.exc_info is not None
    assert record.exc_info[0] is error


class Once:
    """Does something at the first event of a kind."""

    def __init__(self, kind: type[Event], act: Callable[[], object]) -> None:
        self.kind = kind
        self.act = act
        self.done = False

    def on_event(self, event: Event) -> None:
        """Do it, if this is the one."""
        if isinstance(event, self.kind) and not self.done:
            self.done = True
            self.act()


EVENTS = [CallQueued, CallStarted, CallEnded, WorkerStarted, WorkerLeft]


def by_name(kind: type[Event]) -> str:
    """Return what a test with this event is called."""
    return kind.__name__


class InterruptsItsPickling:
    """As Ctrl-C does where no loop handles it."""

    def __reduce__(self) -> str:
        raise KeyboardInterrupt


async def test_a_call_whose_pickling_is_interrupted_ends(diary: Diary) -> None:
    """It was never sent anywhere."""
    async with AioPool(1, hooks=[diary]) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.submit(jobs.square, InterruptsItsPickling())  # type: ignore[arg-type]
    assert diary.ends == ["cancelled"]
    diary.check()


@pytest.mark.parametrize("kind", EVENTS, ids=by_name)
def test_a_hook_that_exits_ends_the_program_and_leaves_nothing_hanging(kind: type[Event]) -> None:
    """Whatever was begun comes to its end first, so that the pool can be left."""

    async def main() -> None:
        async with AioPool(1, hooks=[Once(kind, sys.exit)]) as pool:
            await pool.apply(jobs.square, (2,))
        await asyncio.sleep(0)  # what the last worker's end has caused comes in the next turn

    with pytest.raises(SystemExit):
        asyncio.run(main())


@pytest.mark.parametrize("kind", EVENTS, ids=by_name)
async def test_a_hook_may_abandon_the_pool(kind: type[Event], caplog: pytest.LogCaptureFixture) -> None:
    """In the midst of what the pool does: nothing of that is done any more, and nobody hangs."""
    pool = AioPool(1, hooks=[Once(kind, lambda: pool.abandon())], maxtasksperchild=2)  # noqa: PLW0108 - not made yet
    await pool.start()
    results: list[asyncio.Future[int]] = []
    with contextlib.suppress(PoolNotRunning):
        results += [pool.submit(jobs.square, number) for number in range(6)]
    if results:
        await asyncio.wait(results)
    assert all(isinstance(each.exception(), PoolTerminated | None) for each in results)
    assert not pool.alive
    await pool.join()
    assert pool.stats().workers == ()
    assert not caplog.records


class Caller:
    """Makes a call when a worker has left."""

    def __init__(self) -> None:
        self.pool: AioPool | None = None
        self.called: asyncio.Future[AsyncResult[int]] = asyncio.get_running_loop().create_future()

    def on_event(self, event: Event) -> None:
        """Call once."""
        if isinstance(event, WorkerLeft) and self.pool is not None and not self.called.done():
            self.called.set_result(self.pool.submit(jobs.square, 3))


async def test_a_hook_may_call_when_a_worker_has_left() -> None:
    """Whoever takes its place runs it."""
    hook = Caller()
    async with AioPool(1, hooks=[hook]) as pool:
        hook.pool = pool
        (worker,) = pool.stats().workers
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        assert await (await hook.called) == 9


def test_what_cannot_be_told_anything_is_no_hook() -> None:
    """At the caller's line."""
    with pytest.raises(TypeError, match="hooks must have the method on_event"):
        AioPool(1, hooks=[print])  # type: ignore[list-item]


class Escort:
    """Sends something along with each call: who has made it."""

    def on_event(self, event: Event) -> None:
        """Put it in."""
        if isinstance(event, CallQueued):
            event.company.append(jobs.InAs(f"{event.name} of {jobs.request.get()}"))


async def test_what_a_hook_sends_along_is_around_the_call_in_the_worker(start_method: str) -> None:
    """With every verb; made in the context of whoever makes the call, and gone after it."""
    async with AioPool(1, context=start_method, hooks=[Escort()]) as pool:
        token = jobs.request.set("us")
        try:
            assert await pool.apply(jobs.who_asks) == ("who_asks of us", "nobody")
            assert await pool.map(jobs.who_asks, range(2), chunksize=1) == [("who_asks of us", "nobody")] * 2
            stream = pool.imap(jobs.who_asks, range(3), buffersize=1)
            jobs.request.set("others")
            assert [each async for each in stream] == [("who_asks of us", "nobody")] * 3
            assert await pool.apply(os.getpid) != os.getpid()
        finally:
            jobs.request.reset(token)
