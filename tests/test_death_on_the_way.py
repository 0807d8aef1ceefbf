"""Death at the begin and at the end of a worker's life: as it starts, gets ready, retires, is told to leave."""

from __future__ import annotations

import asyncio
import functools
import itertools

import pytest

import jobs
from aiopool import AioPool, InitializerError, WorkerDied
from conftest import is_gone
from faultpoints import DOWN, END, LARGE, UP, Point, Tapped, Taps, kill, kill_and_wait, kill_when_it_has_read
from latch import Latch

EDGES = (0, END)
"""Before and after the one packet of a message."""

BOTH = pytest.mark.both_loops


async def made(taps: Taps, count: int) -> Tapped:
    """Wait until so many workers have been started; return the last of them."""
    while len(taps.made) < count:
        await asyncio.sleep(0)
    return taps.made[count - 1]


@BOTH
@pytest.mark.parametrize("seats", [1, 2])
async def test_as_the_interpreter_starts(start_method: str, seats: int, taps: Taps) -> None:
    """In the pool's start it is an error of that, unless the worker has got ready first; nothing is left."""
    taps.on_made = functools.partial(kill_if, 1, taps)
    pool = AioPool(seats, context=start_method)
    [refused] = await asyncio.gather(pool.start(), return_exceptions=True)
    if refused is None:
        assert taps.made[0].up.messages
        assert await pool.apply(jobs.square, (3,)) == 9
        pool.close()
        await pool.join()
    else:
        assert isinstance(refused, InitializerError)
        assert isinstance(refused.__cause__, WorkerDied)
        assert refused.__cause__.signal == "SIGKILL"


def kill_if(number: int, taps: Taps, tapped: Tapped) -> None:
    """Kill the worker that is the ``number``-th to be started."""
    if len(taps.made) == number:
        kill(tapped)


@BOTH
async def test_as_the_interpreter_of_a_replacement_starts(start_method: str, taps: Taps) -> None:
    """The call that waits for it gets another."""
    taps.on_made = functools.partial(kill_if, 2, taps)
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.leave_half_way, (1,))
        assert await pool.apply(jobs.square, (3,)) == 9
        assert len(taps.made) == 3


@BOTH
async def test_in_the_initializer(start_method: str, latch: Latch, gate: Latch) -> None:
    """In the pool's start it is an error of that; of a replacement, the next one has another try."""
    pool = AioPool(1, jobs.tell_and_wait, (latch.path, gate.path), context=start_method)
    start = asyncio.create_task(pool.start())
    kill_and_wait(int(await latch.told()))
    with pytest.raises(InitializerError, match=r"was killed by SIGKILL before it was ready"):
        await start
    async with asyncio.TaskGroup() as group:
        pool = AioPool(1, jobs.tell_and_wait, (latch.path, gate.path), context=start_method)
        start = group.create_task(pool.start())
        gate.let()
        await start
        kill_and_wait(int(await latch.told()))
        call = group.create_task(pool.apply(jobs.square, (3,)))
        kill_and_wait(int(await latch.told()))
        gate.let()
        assert await call == 9
        pool.close()
        await pool.join()


@pytest.mark.parametrize("seats", [1, 2])
async def test_as_it_says_that_it_is_ready(seats: int, taps: Taps) -> None:
    """It has got ready, and then dies idle: that is nobody's business where all others are ready, too."""
    for place in EDGES:
        taps.made.clear()
        taps.on_made = lambda tapped, place=place: (  # type: ignore[misc]
            tapped.at(Point(UP, 0, place), kill) if len(taps.made) == 1 else None
        )
        try:
            async with AioPool(seats, context="fork") as pool:
                assert await pool.apply(jobs.square, (3,)) == 9
        except InitializerError:
            assert seats == 2
        assert taps.made[0].struck


@BOTH
async def test_as_a_replacement_says_that_it_is_ready(taps: Taps) -> None:
    """The call that it is to get goes to the next."""
    async with AioPool(1) as pool:
        for place in EDGES:
            count = len(taps.made)
            taps.on_made = lambda tapped, place=place, count=count: (  # type: ignore[misc]
                tapped.at(Point(UP, 0, place), kill) if len(taps.made) == count + 1 else None
            )
            with pytest.raises(WorkerDied):
                await pool.apply(jobs.leave_half_way, (1,))
            assert await pool.apply(jobs.square, (3,)) == 9
            assert taps.made[count].struck
            assert len(taps.made) == count + 2


@BOTH
@pytest.mark.parametrize("second", [0, 1])
async def test_twice_before_the_same_call_was_read(second: int, taps: Taps) -> None:
    """Nothing of it, or only its header: then the call is taken to be what kills."""
    async with AioPool(1) as pool:
        pid = await pool.apply(jobs.pid_of)
        taps.of(pid).at(Point(DOWN, 0, 1), kill_when_it_has_read)
        taps.on_made = lambda tapped: tapped.at(Point(DOWN, 0, second), kill_when_it_has_read)
        with pytest.raises(WorkerDied) as caught:
            await pool.apply(len, (bytes(LARGE),))
        assert caught.value.pid == taps.made[1].process.pid != pid
        taps.on_made = lambda _tapped: None
        taps.made[-1].forget()
        assert await pool.apply(jobs.square, (3,)) == 9


@BOTH
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize(("way", "message"), [(DOWN, 0), (UP, 0), (DOWN, 1)])
async def test_a_retiring_worker(way: str, message: int, method: str, taps: Taps) -> None:
    """As it gets its last call, answers that, is told to leave: as any other, and its successor is there."""
    for place in EDGES:
        taps.made.clear()
        fates: list[str] = []
        async with AioPool(1, maxtasksperchild=1, context=method) as pool:
            taps.made[0].at(Point(way, message, place), functools.partial(die, fates))
            result = pool.submit(jobs.square, 2)
            outcome = (await asyncio.gather(result, return_exceptions=True))[0]
            assert [await pool.apply(jobs.square, (number,)) for number in range(2)] == [0, 1]
        assert taps.made[0].struck
        if fates == ["died"]:
            assert isinstance(outcome, WorkerDied)
            assert (way, place) == (DOWN, END)
        else:
            assert outcome == 4


def die(fates: list[str], tapped: Tapped) -> None:
    """Kill the worker, and keep how its call must end."""
    kill(tapped)
    fates.append(tapped.fate())


@BOTH
@pytest.mark.parametrize("place", [None, *EDGES])
async def test_a_successor_that_starts(
    place: int | None, start_method: str, taps: Taps, latch: Latch, gate: Latch
) -> None:
    """The last call of the worker before it goes on, and the seat gets another."""

    def strike(tapped: Tapped) -> None:
        if len(taps.made) == 2:
            kill(tapped) if place is None else tapped.at(Point(UP, 0, place), kill)

    taps.on_made = strike
    async with AioPool(1, maxtasksperchild=1, context=start_method) as pool:
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "last")
        await latch.told()
        await made(taps, 3)
        assert not result.done()
        gate.let()
        assert await result == "last"
        assert await pool.apply(jobs.square, (3,)) == 9


@BOTH
async def test_a_successor_that_is_ready(taps: Taps, latch: Latch, gate: Latch) -> None:
    """It dies idle, before the seat is its own, and is replaced."""
    async with AioPool(1, maxtasksperchild=1) as pool:
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "last")
        await latch.told()
        successor = await made(taps, 2)
        while not successor.up.messages:
            await asyncio.sleep(0)
        kill(successor)
        gate.let()
        assert await result == "last"
        assert await pool.apply(jobs.square, (3,)) == 9


@BOTH
@pytest.mark.parametrize("limit", [None, 1])
async def test_as_it_is_told_to_leave(limit: int | None, taps: Taps) -> None:
    """The way out is as clean as ever."""
    for place, act in itertools.product(EDGES, (kill, kill_when_it_has_read)):
        taps.made.clear()
        async with AioPool(1, maxtasksperchild=limit, context="fork") as pool:
            assert await pool.apply(jobs.square, (3,)) == 9
            last = taps.made[-1] if limit is None else await made(taps, 2)
            last.at(Point(DOWN, 0, place), act)
        assert last.struck
        assert is_gone(last.process.pid or 0)


@BOTH
async def test_as_it_leaves(start_method: str, latch: Latch, gate: Latch) -> None:
    """In an atexit handler, that is."""
    pool = AioPool(1, jobs.at_exit, (jobs.tell_and_wait, latch.path, gate.path), context=start_method)
    await pool.start()
    pool.close()
    kill_and_wait(int(await latch.told()))
    await pool.join()
    assert latch.told_already() == []
