"""Death at every step of a worker's life: what the call gets, that no other is touched, and that the seat is refilled.

Where packets are on their way, the worker dies between any two of them; where a job runs, at a moment that it tells of.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AsyncResult, PoolTerminated, WorkerDied
from conftest import is_gone
from faultpoints import DOWN, END, LARGE, PLACES, UP, Point, Tapped, Taps, kill, kill_and_wait, kill_when_it_has_read
from latch import Latch


async def outcome_of(result: asyncio.Future[Any]) -> Any:
    """Return what a call returned or raised."""
    return (await asyncio.gather(result, return_exceptions=True))[0]


class Victim:
    """A call whose worker dies at a point.

    Args:
        pool: with one seat left.
        make: submits the call.
    """

    def __init__(self, pool: AioPool, taps: Taps, make: Callable[[AioPool], AsyncResult[Any]]) -> None:
        self.pool, self.taps, self.make = pool, taps, make
        self.fate: str | None = None
        self.pid = 0

    async def dies(self, point: Point, and_then: Callable[[AsyncResult[Any]], object] = repr) -> Any:
        """Return the call's outcome; its ``fate`` is how it was to end."""
        self.fate, self.pid = None, await self.pool.apply(jobs.pid_of)

        def act(tapped: Tapped) -> None:
            (kill_when_it_has_read if point.way == DOWN else kill)(tapped)
            self.fate = tapped.fate()
            loop.call_soon(lambda: and_then(result))

        loop, tapped = asyncio.get_running_loop(), self.taps.of(self.pid)
        tapped.at(point, act)
        result = self.make(self.pool)
        outcome = await outcome_of(result)
        assert tapped.struck
        assert await self.pool.apply(jobs.pid_of) != self.pid
        return outcome

    def check(self, outcome: Any, value: object, told: list[str], *, tried_again: bool = False) -> None:
        """It ended as it must, and ran as often as it must."""
        if self.fate == "died" and not tried_again:
            assert isinstance(outcome, WorkerDied)
            assert (outcome.pid, outcome.exitcode, outcome.signal) == (self.pid, -9, "SIGKILL")
            assert told in ([], ["told"])
        else:
            assert outcome == value or repr(outcome) == repr(value)
            assert told == ["told"] or (tried_again and told == ["told", "told"])


CALLS: dict[str, tuple[Callable[..., Any], object, float | None]] = {
    "small": (jobs.tell_and_return, "told", None),
    "timed": (jobs.tell_and_return, "told", 1000.0),
    "failing": (jobs.tell_and_fail, LookupError("told"), None),
}
"""The job, the outcome, the time limit."""


def victim_of(pool: AioPool, taps: Taps, latch: Latch, call: str, retries: int = 0) -> Victim:
    """Return one of the calls."""
    job, _value, limit = CALLS[call]

    def make(pool: AioPool) -> AsyncResult[Any]:
        return pool.apply_async(job, (latch.path, "told"), timeout=limit, retries=retries)

    return Victim(pool, taps, make)


@pytest.mark.both_loops
@pytest.mark.parametrize("way", [DOWN, UP])
@pytest.mark.parametrize("form", PLACES)
async def test_between_any_two_packets_of_a_call_and_its_answer(
    form: str, way: str, taps: Taps, latch: Latch, gate: Latch, request: pytest.FixtureRequest
) -> None:
    """A call that was not wholly read goes elsewhere, once; one that was answered counts; else it is WorkerDied."""
    value = b"x" if form == "small" else bytes(range(250)) * (LARGE // 250)
    if form == "in pieces":
        request.getfixturevalue("in_pieces")  # which a fork inherits
    fates: list[str | None] = []
    async with AioPool(2, context="fork") as pool:
        bystander = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "untouched")
        await latch.told()
        victim = Victim(pool, taps, lambda pool: pool.submit(jobs.tell_and_give, latch.path, "told", value))
        for place in PLACES[form]:
            victim.check(await victim.dies(Point(way, 0, place)), value, latch.told_already())
            fates.append(victim.fate)
        assert not bystander.done()
        gate.let()
        assert await bystander == "untouched"
    if way == DOWN:
        assert fates[:-1] == ["unseen"] * (len(fates) - 1)
        assert fates[-1] in {"died", "answered"}
    else:
        assert "unseen" not in fates
        assert fates[-1] == "answered"


@pytest.mark.both_loops
@pytest.mark.usefixtures("in_pieces")
async def test_when_it_has_read_all_that_its_socket_took_of_a_call(taps: Taps, latch: Latch) -> None:
    """The rest was not sent yet: the call goes elsewhere."""
    async with AioPool(1, context="fork") as pool:
        pid = await pool.apply(jobs.pid_of)
        os.kill(pid, signal.SIGSTOP)
        result = pool.submit(jobs.tell_and_give, latch.path, "told", bytes(LARGE))
        os.kill(pid, signal.SIGCONT)
        tapped = taps.of(pid)
        assert tapped.down.position
        kill_when_it_has_read(tapped)
        tapped.process._died()  # before the loop goes on with the rest
        assert await result == bytes(LARGE)
        assert latch.told_already() == ["told"]


@pytest.mark.both_loops
@pytest.mark.parametrize(
    ("method", "call", "retries", "way", "message"),
    [
        *itertools.product(["forkserver"], CALLS, [0], [DOWN, UP], [0]),
        ("forkserver", "timed", 0, UP, 1),
        *itertools.product(["fork"], ["small"], [1], [DOWN, UP], [0]),
        ("fork", "timed", 1, UP, 0),
        ("spawn", "small", 0, DOWN, 0),
        ("spawn", "timed", 0, UP, 1),
    ],
)
async def test_before_and_after_every_message(
    method: str, call: str, retries: int, way: str, message: int, taps: Taps, latch: Latch
) -> None:
    """The same for calls with a time limit, calls that raise, calls that are tried again, and all start methods."""
    async with AioPool(1, context=method) as pool:
        victim = victim_of(pool, taps, latch, call, retries)
        for place in PLACES["small"]:
            outcome = await victim.dies(Point(way, message, place))
            victim.check(outcome, CALLS[call][1], latch.told_already(), tried_again=bool(retries))


@pytest.mark.parametrize("form", PLACES)
async def test_a_worker_that_has_sent_part_of_an_answer_has_not_answered(form: str) -> None:
    """Whatever part; one that has sent all of it has."""
    value = b"x" * (1 if form == "small" else LARGE)
    async with AioPool(1, jobs.refuse_memory if form == "in pieces" else None) as pool:
        for place in PLACES[form]:
            before = pool.submit(jobs.square, 1)
            call = before._calls[0].id + 1
            await before
            count = None if place == END else place
            outcome = await outcome_of(pool.submit(jobs.answer_in_part, call, value, count))
            assert outcome == value if count is None else isinstance(outcome, WorkerDied)
            assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.parametrize("way", [DOWN, UP])
async def test_a_call_that_is_cancelled_before_its_workers_death_is_known(way: str, taps: Taps, latch: Latch) -> None:
    """It is cancelled, whether it was read or not; no other worker gets it."""
    async with AioPool(1, context="fork") as pool:
        victim = victim_of(pool, taps, latch, "small")
        for place in PLACES["small"]:
            outcome = await victim.dies(Point(way, 0, place), AsyncResult.cancel)
            assert isinstance(outcome, asyncio.CancelledError) or (outcome, victim.fate) == ("told", "answered")
            told = {"unseen": [[]], "died": [[], ["told"]], "answered": [["told"]]}[str(victim.fate)]
            assert latch.told_already() in told


def unpickling(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops when it is received and has not begun."""
    return pool.submit(jobs.same, jobs.Moment("unpickled", jobs.tell_and_wait, *stop))


def running(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops as it runs."""
    return pool.submit(jobs.tell_and_wait, *stop)


def pickling(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops when it has run, and its result is not pickled yet."""
    return pool.submit(jobs.make_moment, jobs.tell_and_wait, *stop)


def flushing(pool: AioPool, *stop: str) -> AsyncResult[Any]:
    """Submit a call that stops when its answer is made and not sent yet."""
    return pool.submit(jobs.with_moment_at_flush, jobs.tell_and_wait, *stop)


def kill_worker(_pool: AioPool, _result: AsyncResult[Any], pid: int) -> type[BaseException]:
    """Kill it."""
    kill_and_wait(pid)
    return WorkerDied


def kill_and_cancel(_pool: AioPool, result: AsyncResult[Any], pid: int) -> type[BaseException]:
    """Cancel the call when its worker is dead, and nobody knows."""
    kill_and_wait(pid)
    result.cancel()
    return asyncio.CancelledError


def cancel_and_kill(_pool: AioPool, result: AsyncResult[Any], pid: int) -> type[BaseException]:
    """Have somebody else kill it, too."""
    result.cancel()
    kill_and_wait(pid)
    return asyncio.CancelledError


def kill_and_terminate(pool: AioPool, _result: AsyncResult[Any], pid: int) -> type[BaseException]:
    """Terminate the pool when the worker is dead, and nobody knows."""
    kill_and_wait(pid)
    pool.terminate()
    return PoolTerminated


def terminate_and_kill(pool: AioPool, _result: AsyncResult[Any], pid: int) -> type[BaseException]:
    """Terminate the pool; the worker is dead before that is carried out."""
    pool.terminate()
    kill_and_wait(pid)
    return PoolTerminated


def close_and_kill(pool: AioPool, _result: AsyncResult[Any], pid: int) -> type[BaseException]:
    """Close the pool; the worker dies when it is to finish."""
    pool.close()
    kill_and_wait(pid)
    return WorkerDied


@pytest.mark.both_loops
@pytest.mark.parametrize("limit", [None, 1], ids=["one of many", "the last of its worker"])
@pytest.mark.parametrize(
    ("step", "method"),
    [
        *itertools.product([unpickling, running, pickling, flushing], ["fork"]),
        (running, "forkserver"),
    ],
)
async def test_at_every_step_of_a_call_in_the_worker(
    step: Callable[..., AsyncResult[Any]], method: str, limit: int | None, latch: Latch, gate: Latch
) -> None:
    """The death is the call's end, and nobody else's; also when the worker was to retire after this call."""
    for end in (kill_worker, kill_and_cancel, cancel_and_kill, kill_and_terminate, terminate_and_kill, close_and_kill):
        async with AioPool(1, maxtasksperchild=limit, context=method) as pool:
            result = step(pool, latch.path, gate.path)
            pid = int(await latch.told())
            waiting = pool.submit(jobs.tell_and_return, latch.path, "next")
            expected = end(pool, result, pid)
            assert isinstance(await outcome_of(result), expected)
            outcome = await outcome_of(waiting)
            assert outcome == "next" or (expected is PoolTerminated and isinstance(outcome, PoolTerminated))
        assert is_gone(pid)
        assert latch.told_already() == (["next"] if outcome == "next" else [])
