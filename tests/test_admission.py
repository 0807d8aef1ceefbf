"""``max_pending``: how many may wait, who waits for room, and who is told that there is none."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest

import jobs
from aiopool import AioPool, PoolFull, PoolNotRunning, PoolTerminated
from aiopool.admission import Admission
from aiopool.phases import PoolPhase
from latch import Latch

pytestmark = pytest.mark.both_loops


async def settle() -> None:
    """Let every task get as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_verbs_that_return_at_once_say_that_there_is_no_room(latch: Latch, gate: Latch) -> None:
    """As soon as so many calls wait; those that run do not count."""
    async with AioPool(1, max_pending=2) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        waiting = [pool.submit(jobs.square, number) for number in range(2)]
        for call in (
            lambda: pool.submit(jobs.square, 1),
            lambda: pool.apply_async(jobs.square, (1,)),
            lambda: pool.map_async(jobs.square, [1]),
            lambda: pool.starmap_async(jobs.add, [(1,)]),
        ):
            with pytest.raises(PoolFull, match="2 calls wait, and max_pending is 2: no room for 1 more"):
                call()
        waiting[0].cancel()
        waiting.append(pool.submit(jobs.square, 5))
        gate.let()
        await running
        assert [await waiting[1], await waiting[2]] == [1, 25]
        await pool.map_async(jobs.square, range(3), chunksize=1)
        with pytest.raises(PoolFull, match="no room for 4 more"):
            pool.map_async(jobs.square, range(4), chunksize=1)


async def test_apply_waits_for_room_first_come_first_served(latch: Latch, gate: Latch) -> None:
    """However many wait for it."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        calls = [asyncio.create_task(pool.apply(jobs.tell_and_return, (latch.path, number))) for number in range(5)]
        await settle()
        assert "1 calls waiting" in repr(pool)
        gate.let()
        await running
        assert await asyncio.gather(*calls) == list(range(5))
    assert latch.told_already() == ["0", "1", "2", "3", "4"]


async def test_a_cancelled_waiter_leaves_no_trace(latch: Latch, gate: Latch) -> None:
    """Nobody behind it waits in vain."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        calls = [asyncio.create_task(pool.apply(jobs.tell_and_return, (latch.path, number))) for number in range(6)]
        await settle()
        calls[2].cancel()
        await settle()
        gate.let()
        await running
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [value for value in outcomes if isinstance(value, int)] == [0, 1, 3, 4, 5]
        assert await pool.apply(jobs.square, (3,)) == 9
    assert latch.told_already() == ["0", "1", "3", "4", "5"]


async def test_a_waiter_that_is_cancelled_as_it_is_let_in_hands_its_place_on(latch: Latch, gate: Latch) -> None:
    """The room that it was granted is not lost."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        waiting = pool.submit(jobs.square, 2)
        let_in, behind = (asyncio.create_task(pool.apply(jobs.square, (number,))) for number in (3, 4))
        await settle()
        waiting.cancel()  # makes room: `let_in` is woken, and has not run yet
        let_in.cancel()
        await settle()
        assert let_in.cancelled()
        gate.let()
        await running
        assert await behind == 16


async def test_room_that_comes_as_a_waiter_is_cancelled_goes_to_the_next(latch: Latch, gate: Latch) -> None:
    """The cancelled one has not had the time to leave the queue."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        waiting = pool.submit(jobs.square, 2)
        cancelled, behind = (asyncio.create_task(pool.apply(jobs.square, (number,))) for number in (3, 4))
        await settle()
        cancelled.cancel()
        waiting.cancel()
        await settle()
        assert cancelled.cancelled()
        gate.let()
        await running
        assert await behind == 16


async def test_maps_and_streams_wait_for_room(latch: Latch, gate: Latch) -> None:
    """Chunk by chunk; inputs of both kinds."""
    async with AioPool(2, max_pending=1) as pool:
        squares = [number**2 for number in range(20)]
        assert await pool.map(jobs.square, range(20), chunksize=1) == squares
        assert await pool.starmap(jobs.add, [(1, 2)] * 9, chunksize=1) == [3] * 9
        assert await pool.map(jobs.square, []) == []
        assert [value async for value in pool.imap(jobs.square, range(20))] == squares
        stream = pool.imap_unordered(jobs.square, itertools.count(), buffersize=10)
        assert {await anext(stream), await anext(stream)}
        await settle()
        assert "0 calls waiting" in repr(pool) or "1 calls waiting" in repr(pool)
        await stream.aclose()
        both = await asyncio.gather(*(pool.map(jobs.square, range(20), chunksize=1) for _ in range(3)))
        assert both == [squares] * 3
    del latch, gate


async def test_a_map_that_fails_or_is_cancelled_feeds_no_more(latch: Latch) -> None:
    """What it had not submitted is dropped."""
    async with AioPool(1, max_pending=1) as pool:
        with pytest.raises(ValueError, match="3"):
            await pool.map(jobs.fail_at, range(100), chunksize=1)
        for steps in (0, 1, 5):
            task = asyncio.create_task(pool.map(jobs.tell_and_spin, [latch.path] * 9, chunksize=1))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        latch.told_already()
        assert await pool.apply(jobs.square, (3,)) == 9
        assert latch.told_already() == []


@pytest.mark.parametrize("verb", ["map", "imap"])
async def test_whoever_cancels_all_tasks_cuts_no_map_or_stream_short_in_silence(
    verb: str, latch: Latch, gate: Latch
) -> None:
    """What waits for room is a task, too; without it, the values would end too early."""

    async def values(pool: AioPool) -> list[int]:
        items = [(latch.path, gate.path, number) for number in range(6)]
        if verb == "map":
            return await pool.starmap(jobs.tell_and_wait, items, chunksize=1)
        return [value async for value in pool.imap(jobs.pass_through_gate, items, buffersize=6)]

    async with AioPool(1, max_pending=1) as pool:
        task = asyncio.create_task(values(pool))
        await latch.told()
        for other in asyncio.all_tasks() - {task, asyncio.current_task()}:
            other.cancel()
        gate.let(6)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(("end", "error"), [("close", PoolNotRunning), ("terminate", PoolTerminated)])
async def test_who_waits_for_room_is_told_of_the_end(
    end: str, error: type[Exception], latch: Latch, gate: Latch
) -> None:
    """They were not accepted yet."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        accepted = pool.submit(jobs.square, 1)
        calls = [asyncio.create_task(pool.apply(jobs.square, (1,))), asyncio.create_task(pool.map(jobs.square, [1, 2]))]
        stream = pool.imap(jobs.square, [1])
        await settle()
        getattr(pool, end)()
        for call in calls:
            with pytest.raises(error):
                await call
        with pytest.raises(error):
            await anext(stream)
        gate.let()
        await asyncio.wait([running, accepted])
        assert accepted.successful() == (end == "close")


@pytest.mark.parametrize("verb", ["apply", "map"])
async def test_room_that_is_granted_as_the_pool_is_terminated_hangs_nobody(
    verb: str, latch: Latch, gate: Latch
) -> None:
    """The caller was told that there is room, and has not run since; its call fails, and the pool ends."""
    pool = AioPool(1, max_pending=1)
    await pool.start()
    running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
    await latch.told()
    waiting = pool.submit(jobs.square, 1)
    late = asyncio.create_task(pool.apply(jobs.square, (2,)) if verb == "apply" else pool.map(jobs.square, [2]))
    await settle()
    running.add_done_callback(lambda _: pool.terminate())
    gate.let()
    with pytest.raises(PoolTerminated):
        await late
    await pool.join()
    with pytest.raises(PoolTerminated):
        await waiting


async def test_who_is_cancelled_in_the_moment_of_the_end_is_cancelled(latch: Latch, gate: Latch) -> None:
    """It has not had the time to leave the queue, in which everybody is told of the end; others there are told."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        accepted = pool.submit(jobs.square, 1)
        cancelled, behind = (asyncio.create_task(pool.apply(jobs.square, (number,))) for number in (3, 4))
        await settle()
        cancelled.cancel()
        pool.terminate()
        with pytest.raises(PoolTerminated):
            await behind
        assert cancelled.cancelled()
        await asyncio.wait([running, accepted])


@pytest.mark.parametrize(("end", "error"), [("close", PoolNotRunning), ("terminate", PoolTerminated)])
async def test_who_gets_room_in_the_moment_of_the_end_is_told_of_it_all_the_same(
    end: str, error: type[Exception], latch: Latch, gate: Latch
) -> None:
    """A call that comes back from waiting to a pool that has ended meanwhile would wait there for ever."""
    async with AioPool(1, max_pending=1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        accepted = pool.submit(jobs.square, 1)
        call = asyncio.create_task(pool.apply(jobs.square, (2,)))
        await settle()
        accepted.cancel()
        getattr(pool, end)()
        with pytest.raises(error):
            await call
        gate.let()
        await asyncio.wait([running])


@pytest.mark.parametrize(("end", "error"), [("close", PoolNotRunning), ("terminate", PoolTerminated)])
async def test_a_map_that_has_not_fed_its_first_chunk_is_told_of_the_end(end: str, error: type[Exception]) -> None:
    """Though there was room for it."""
    async with AioPool(1, max_pending=1) as pool:
        call = asyncio.create_task(pool.map(jobs.square, [1, 2]))
        await asyncio.sleep(0)
        getattr(pool, end)()
        with pytest.raises(error):
            await call


class Turn(asyncio.Future[None]):
    """Counts how often one is compared with another, as a search through all that wait does."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        type(self).comparisons += 1
        return self is other

    __hash__ = asyncio.Future.__hash__


class Full:
    """A backend, and its loop, without room."""

    phase = PoolPhase.RUNNING
    waiting, idle = 1, 0

    @property
    def loop(self) -> Full:
        """What makes futures."""
        return self

    def create_future(self) -> Turn:
        """Make what is waited for."""
        return Turn(loop=asyncio.get_running_loop())

    def watch(self, notice: Callable[[], None]) -> None:
        """Remember whom to tell of a change."""
        self.change = notice

    def refusal(self) -> PoolNotRunning:
        """Say why no call is taken."""
        return PoolNotRunning("gone")


async def test_leaving_the_queue_costs_no_search_through_it() -> None:
    """Tens of thousands that are cancelled together, in any order, would stop the loop for many seconds."""
    admission = Admission(Full(), 1)  # type: ignore[arg-type]
    calls = [asyncio.create_task(admission.enter()) for _ in range(100)]
    await settle()
    random.shuffle(calls)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    assert Turn.comparisons == 0


@pytest.mark.parametrize(
    ("phases", "error"),
    [
        ([PoolPhase.CLOSING, PoolPhase.CLOSED], PoolNotRunning),
        ([PoolPhase.TERMINATING, PoolPhase.CLOSED], PoolTerminated),
    ],
)
async def test_who_comes_back_to_a_pool_that_is_gone_is_told_how_it_ended(
    phases: list[PoolPhase], error: type[Exception]
) -> None:
    """Its workers may all have left before somebody who was granted room has run again."""
    backend = Full()
    admission = Admission(backend, 1)  # type: ignore[arg-type]
    for backend.phase in phases:
        backend.change()
    backend.waiting = 0  # so there is room
    with pytest.raises(error):
        await admission.enter()
