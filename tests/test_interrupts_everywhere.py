"""An interruption at every moment of a call, as ``cancel_grace`` asks for: it hits this call or none."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AsyncResult, CallTimeout
from faultpoints import DOWN, LARGE, PLACES, UP, Point, Tapped, Taps
from latch import Latch

pytestmark = pytest.mark.both_loops

LONG = 1000.0
"""A grace or a limit, in seconds, that no test outlasts."""


async def ends_cancelled(pool: AioPool, result: AsyncResult[Any], pid: int) -> None:
    """The call is over, its worker stays, and the next two calls in that get their own answers."""
    await asyncio.wait([result])
    assert result.cancelled()
    for number in range(2):
        assert await pool.apply(jobs.same, ((number, "own"),)) == (number, "own")
    assert await pool.apply(jobs.pid_of) == pid


async def cancelled_at(
    pool: AioPool, taps: Taps, point: Point, make: Callable[[], AsyncResult[Any]], *, behind: bool = False
) -> bool:
    """Cancel a call at a point of its way; return whether that was reached."""
    pid = await pool.apply(jobs.pid_of)
    tapped = taps.of(pid)

    def act(_tapped: Tapped) -> None:
        # The call is not known yet to whoever sends it.
        loop.call_soon(lambda: result.cancel()) if point.way == DOWN else result.cancel()  # noqa: PLW0108 - see above

    loop = asyncio.get_running_loop()
    tapped.at(point, act)
    result = make()
    next_one = pool.submit(jobs.same, "next") if behind else None
    await asyncio.wait([result])
    if next_one is not None:
        assert await next_one == "next"
    if tapped.struck:
        await ends_cancelled(pool, result, pid)
    return tapped.struck


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("form", PLACES)
async def test_a_call_that_never_ends_is_interrupted_wherever_it_is_on_its_way(
    *, form: str, behind: bool, taps: Taps, latch: Latch, request: pytest.FixtureRequest
) -> None:
    """Though its interruption may overtake it: the worker stays."""
    if form == "in pieces":
        request.getfixturevalue("in_pieces")
    value = bytes(0 if form == "small" else LARGE)
    async with AioPool(1, cancel_grace=LONG, context="fork") as pool:
        for place in PLACES[form]:
            assert await cancelled_at(
                pool, taps, Point(DOWN, 0, place), lambda: pool.submit(jobs.tell_and_clean_up, latch.path, value),
                behind=behind,
            )  # fmt: skip


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("message", [0, 1])
async def test_an_answer_that_is_there_already_is_cancelled_and_the_next_is_not(
    *, behind: bool, message: int, taps: Taps
) -> None:
    """Before and after the word that it begins, and the result."""
    async with AioPool(1, cancel_grace=LONG, context="fork") as pool:
        for place in PLACES["small"]:
            assert await cancelled_at(
                pool, taps, Point(UP, message, place), lambda: pool.apply_async(jobs.square, (3,), timeout=LONG),
                behind=behind,
            )  # fmt: skip


async def test_a_call_that_was_not_read_is_interrupted_before_it_begins(start_method: str, latch: Latch) -> None:
    """The worker does nothing until it has both."""
    async with AioPool(1, cancel_grace=LONG, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of)
        for _ in range(3):
            os.kill(pid, signal.SIGSTOP)
            result = pool.submit(jobs.tell_and_spin, latch.path)
            result.cancel()
            os.kill(pid, signal.SIGCONT)
            await ends_cancelled(pool, result, pid)
        assert latch.told_already() == []


def unpickling(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops when it is received and has not begun."""
    return pool.submit(jobs.same, jobs.Moment("unpickled", jobs.tell_and_wait, *stop))


def running(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops as it runs."""
    return pool.submit(jobs.tell_and_wait, *stop)


def pickling(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops when it has run, and its result is not pickled yet."""
    return pool.submit(jobs.make_moment, jobs.tell_and_wait, *stop)


@pytest.mark.parametrize("step", [unpickling, running, pickling])
async def test_a_call_is_interrupted_at_every_step_of_it(
    step: Callable[..., AsyncResult[Any]], latch: Latch, gate: Latch
) -> None:
    """Before the function runs, in it, and after it."""
    async with AioPool(1, cancel_grace=LONG) as pool:
        pid = await pool.apply(jobs.pid_of)
        result = step(pool, latch.path, gate.path)
        await latch.told()
        result.cancel()
        await ends_cancelled(pool, result, pid)


@pytest.mark.parametrize("form", ["in memory", "in pieces"])
async def test_an_answer_that_is_being_sent_is_not_interrupted(form: str, taps: Taps) -> None:
    """The worker stands in the middle of sending it, and goes on."""
    async with AioPool(1, jobs.refuse_memory if form == "in pieces" else None, cancel_grace=LONG) as pool:
        for place in PLACES[form]:
            assert await cancelled_at(
                pool, taps, Point(UP, 0, place), lambda: pool.submit(jobs.same, bytes(LARGE)), behind=True
            )


async def test_an_interruption_that_comes_late_is_forgotten(latch: Latch, gate: Latch) -> None:
    """When its call has ended, and the next one runs, or none."""
    async with AioPool(1, cancel_grace=LONG) as pool:
        pid = await pool.apply(jobs.pid_of)
        [process] = pool._backend._processes.values()  # type: ignore[attr-defined]
        ended = pool.submit(jobs.square, 2)
        late = ended._calls[0].id
        assert await ended == 4
        process.interrupt(late)
        assert await pool.apply(jobs.square, (3,)) == 9
        result = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "unhurt")
        await latch.told()
        process.interrupt(late)
        gate.let()
        assert await result == "unhurt"
        assert await pool.apply(jobs.pid_of) == pid


async def test_a_time_limit_that_is_over_before_anybody_has_read_that_the_call_began(
    start_method: str, latch: Latch
) -> None:
    """The call is told, cleans up, and its worker stays."""
    async with AioPool(1, cancel_grace=LONG, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of)
        with pytest.raises(CallTimeout):
            await pool.apply(jobs.tell_and_clean_up, (latch.path,), timeout=0.001)
        assert await pool.apply(jobs.pid_of) == pid
