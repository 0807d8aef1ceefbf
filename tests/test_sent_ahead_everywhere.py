"""Calls that lie in a worker's channel behind another, when a worker dies, when calls are cancelled and interrupted.

What a worker has not begun is taken back, so nobody but the call that runs has to do with its end.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AsyncResult, CallInterrupted, CallTimeout, WorkerDied, wire
from aiopool.backends.process import WorkerProcess
from aiopool.calls import Pace
from conftest import pass_time
from faultpoints import DOWN, PLACES, UP, Point, Tapped, Taps, kill
from latch import Latch

pytestmark = pytest.mark.both_loops

LONG = 1000.0
"""A grace, in seconds, that no test outlasts."""

OnTakeBack = Callable[[Callable[[], object]], list[bool]]
"""Takes what is to be done; returns a list that is not empty any more when it has been done."""


class Short(Pace):
    """Of a function that has been seen to be short, whatever it does now."""

    def __init__(self) -> None:
        self.seconds = 1e-6

    def learn(self, seconds: float) -> None:
        """Stay as it is."""


@pytest.fixture(autouse=True)
def all_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls are sent ahead, and not taken back merely because the one before them takes its time."""
    monkeypatch.setattr("aiopool.packing.Pace", Short)
    monkeypatch.setattr("aiopool.decisions.OVERDUE", math.inf)
    monkeypatch.setattr("aiopool.backends.shell.RESERVE", 0)


async def outcomes_of(*results: asyncio.Future[Any]) -> list[Any]:
    """Return what calls returned or raised."""
    return await asyncio.gather(*results, return_exceptions=True)


def quick(pool: AioPool, latch: Latch, texts: str) -> list[AsyncResult[str]]:
    """Submit a short call for each text."""
    return [pool.submit(jobs.tell_and_return, latch.path, text) for text in texts]


class Queue:
    """A call that runs, and waits at a gate, and calls behind it in the same channel."""

    def __init__(self, pool: AioPool, taps: Taps) -> None:
        self.pool, self.taps = pool, taps

    async def form(self, latch: Latch, gate: Latch, texts: str = "abc") -> list[AsyncResult[str]]:
        """Submit them; the first tells "0"."""
        self.tapped = self.taps.of(await self.pool.apply(jobs.pid_of))
        before = len(self.tapped.down.messages)
        results = [self.pool.submit(jobs.tell_and_wait, latch.path, gate.path, "0"), *quick(self.pool, latch, texts)]
        assert await latch.told() == "0"
        assert len(self.tapped.down.messages) == before + len(results)
        return results


# Deaths.


async def test_a_worker_that_dies_takes_only_the_call_along_that_it_has_begun(
    start_method: str, taps: Taps, latch: Latch, gate: Latch
) -> None:
    """What was sent ahead runs elsewhere, once, in its order."""
    async with AioPool(1, context=start_method) as pool:
        queue = Queue(pool, taps)
        begun, *ahead = await queue.form(latch, gate)
        kill(queue.tapped)
        assert isinstance((await outcomes_of(begun))[0], WorkerDied)
        assert await asyncio.gather(*ahead) == [*"abc"]
        assert latch.told_already() == [*"abc"]


@pytest.mark.parametrize("way", [DOWN, UP])
async def test_it_dies_before_and_after_every_message(way: str, taps: Taps, latch: Latch) -> None:
    """Those it has answered count; at most one has begun and is lost; the others run elsewhere, once."""
    async with AioPool(1, context="fork") as pool:
        for message, place in itertools.product(range(4), PLACES["small"]):
            fates: list[str] = []

            def act(tapped: Tapped, fates: list[str] = fates) -> None:
                kill(tapped)
                fates += map(tapped.fate, range(4))

            tapped = taps.of(await pool.apply(jobs.pid_of))
            tapped.at(Point(way, message, place), act)
            outcomes = await outcomes_of(*quick(pool, latch, "abcd"))
            told = latch.told_already()
            assert tapped.struck
            for text, fate, outcome in zip("abcd", fates, outcomes, strict=True):
                assert isinstance(outcome, WorkerDied) if fate == "died" else outcome == text
                assert told.count(text) == 1 or (fate == "died" and not told.count(text))
            assert fates == sorted(fates, key=["answered", "died", "unseen"].index)
            assert fates.count("died") <= 1
            assert fates.count("answered") >= (message + 1 if way == UP else 0)


async def test_answers_that_lie_there_when_a_worker_has_died_count(
    taps: Taps, latch: Latch, gate: Latch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its death was noticed first; the call that ran is lost, and what is behind that runs elsewhere."""
    died = WorkerProcess._died

    def hear(process: WorkerProcess) -> None:
        tapped.deaf = False
        died(process)

    monkeypatch.setattr(WorkerProcess, "_died", hear)
    async with AioPool(1, context="fork") as pool:
        tapped = taps.of(await pool.apply(jobs.pid_of))
        tapped.deaf = True
        answered = quick(pool, latch, "abc")
        begun = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "0")
        ahead = quick(pool, latch, "de")
        assert [await latch.told() for _ in range(4)] == [*"abc0"]
        kill(tapped)
        assert isinstance((await outcomes_of(begun))[0], WorkerDied)
        assert await asyncio.gather(*answered, *ahead) == [*"abcde"]
        assert latch.told_already() == [*"de"]


@pytest.fixture
def on_take_back(monkeypatch: pytest.MonkeyPatch) -> OnTakeBack:
    """Give what has something done once, when packets have been taken back and nobody knows which."""
    take_back, acts, struck = WorkerProcess.take_back, list[Callable[[], object]](), list[bool]()

    def act_then(process: WorkerProcess) -> list[wire.Packet]:
        packets = take_back(process)
        if acts and packets:
            acts.pop()()
            struck.append(True)
        return packets

    def once(act: Callable[[], object]) -> list[bool]:
        acts.append(act)
        return struck

    monkeypatch.setattr(WorkerProcess, "take_back", act_then)
    return once


@pytest.mark.parametrize("dead", [(0,), (1,), (0, 1)], ids=["the giver", "the taker", "both"])
async def test_workers_die_between_a_take_back_and_what_is_sent_next(
    dead: tuple[int, ...], taps: Taps, latch: Latch, gate: Latch, on_take_back: OnTakeBack, tmp_path: Path
) -> None:
    """Calls go from one to another, which has nothing to do: they run, once."""
    with Latch(tmp_path / "other gate") as other_gate:
        async with AioPool(2, context="fork") as pool:
            giver = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
            pids = [int(await latch.told())]
            taker = pool.submit(jobs.tell_and_wait, latch.path, other_gate.path)
            pids.append(int(await latch.told()))
            ahead = quick(pool, latch, "abcd")
            struck = on_take_back(lambda: list(map(kill, [taps.of(pids[number]) for number in dead])))
            other_gate.let()
            assert await asyncio.gather(*ahead) == [*"abcd"]
            assert struck
            assert sorted(latch.told_already()) == [*"abcd"]
            assert await taker is None
            gate.let()
            [outcome] = await outcomes_of(giver)
            assert isinstance(outcome, WorkerDied) if 0 in dead else outcome is None


@pytest.mark.parametrize("grace", [0.0, LONG])
@pytest.mark.parametrize("number", range(4))
async def test_a_worker_dies_between_a_take_back_for_a_cancel_and_what_is_sent_next(
    number: int, grace: float, taps: Taps, latch: Latch, gate: Latch, on_take_back: OnTakeBack
) -> None:
    """Whichever was cancelled: the first is lost if it was not that, the others run elsewhere, once."""
    async with AioPool(1, cancel_grace=grace, context="fork") as pool:
        queue = Queue(pool, taps)
        results = await queue.form(latch, gate)
        struck = on_take_back(lambda: kill(queue.tapped))
        results[number].cancel()
        outcomes = await outcomes_of(*results)
        assert struck
        assert isinstance(outcomes[number], asyncio.CancelledError)
        others = [text for text in "abc" if text != "0abc"[number]]
        assert latch.told_already() == others
        assert [outcome for outcome in outcomes if isinstance(outcome, str)] == others
        assert isinstance(outcomes[0], WorkerDied if number else asyncio.CancelledError)


# Cancellations.


@pytest.mark.parametrize("grace", [0.0, LONG])
async def test_a_call_that_was_sent_ahead_is_cancelled_at_once_and_never_invoked(
    grace: float, start_method: str, taps: Taps, latch: Latch, gate: Latch
) -> None:
    """The one before it goes on, so does the worker, and those behind it run."""
    async with AioPool(1, cancel_grace=grace, context=start_method) as pool:
        for cancelled in ("a", "b", "c", "ab", "ca", "abc"):
            queue = Queue(pool, taps)
            first, *ahead = await queue.form(latch, gate)
            for text, result in zip("abc", ahead, strict=True):
                if text in cancelled:
                    result.cancel()
            await asyncio.wait([result for text, result in zip("abc", ahead, strict=True) if text in cancelled])
            assert not first.done()
            gate.let()
            assert await first == "0"
            outcomes = await outcomes_of(*ahead)
            others = [text for text in "abc" if text not in cancelled]
            assert [outcome for outcome in outcomes if isinstance(outcome, str)] == others
            assert latch.told_already() == others
            assert await pool.apply(jobs.pid_of) == queue.tapped.process.pid


async def test_chunks_of_a_failed_map_that_were_sent_ahead_do_not_run(
    latch: Latch, gate: Latch, tmp_path: Path
) -> None:
    """But for one that its worker begins before the failure is known here."""
    with Latch(tmp_path / "failing") as failing, Latch(tmp_path / "behind") as behind:
        async with AioPool(2) as pool:
            items = [(latch.path, gate.path, 0), (latch.path, failing.path, 3)]
            items += [(latch.path, behind.path, item) for item in range(10, 20)]
            mapped = pool.starmap_async(jobs.tell_wait_and_fail_at, items, chunksize=1)
            pids = dict([(await latch.told()).split() for _ in range(2)])
            failing.let()
            with pytest.raises(ValueError, match="3"):
                await mapped
            gate.let()
            while await pool.apply(jobs.pid_of) != int(pids["0"]):
                pass  # the other one is free, too
            begun = [line.split()[1] for line in latch.told_already()]
            assert begun in ([], [pids["3"]])
            behind.let(len(items))


def cancel_and_tell(result: AsyncResult[Any], in_time: list[bool], _tapped: Tapped) -> None:
    """Cancel a call, and keep whether that came before its end was known."""
    in_time.append(result.cancel())


@pytest.mark.parametrize("grace", [0.0, LONG])
@pytest.mark.parametrize("number", range(3))
async def test_a_cancel_before_and_after_every_answer(number: int, grace: float, taps: Taps, latch: Latch) -> None:
    """Of those that come one behind the other, only the cancelled one is touched, and each runs no more than once."""
    victim, others = "abc"[number], [text for text in "abc" if text != "abc"[number]]
    async with AioPool(1, cancel_grace=grace, context="fork") as pool:
        for message, place in itertools.product(range(3), PLACES["small"]):
            in_time: list[bool] = []
            tapped = taps.of(await pool.apply(jobs.pid_of))
            results = quick(pool, latch, "abc")
            tapped.at(Point(UP, message, place), functools.partial(cancel_and_tell, results[number], in_time))
            outcomes = await outcomes_of(*results)
            told = latch.told_already()
            outcome = outcomes.pop(number)
            assert isinstance(outcome, asyncio.CancelledError) if in_time == [True] else outcome == victim
            assert in_time == [True] or (number < message and in_time)
            assert outcomes == [text for text in told if text != victim] == others
            assert told.count(victim) <= 1
            if grace:
                assert await pool.apply(jobs.pid_of) == tapped.process.pid


# Interruptions.


@pytest.mark.parametrize("grace", [0.0, LONG])
@pytest.mark.parametrize("place", PLACES["small"])
async def test_a_call_is_interrupted_that_has_begun_while_the_one_before_it_seems_to_run(
    place: int, grace: float, taps: Taps, latch: Latch
) -> None:
    """The answer to the one before is still on its way; with a grace the worker stays, and what is behind runs once."""
    async with AioPool(1, cancel_grace=grace, context="fork") as pool:
        tapped = taps.of(await pool.apply(jobs.pid_of))

        def act(_tapped: Tapped) -> None:
            assert latch.told_now() == str(tapped.process.pid)
            second.cancel()

        tapped.at(Point(UP, 0, place), act)
        first = pool.submit(jobs.square, 3)
        second = pool.submit(jobs.tell_and_clean_up, latch.path)
        [third] = quick(pool, latch, "a")
        assert (await outcomes_of(first, third)) == [9, "a"]
        await asyncio.wait([second])  # it ends with its worker, which may be later than its successor's first call
        assert second.cancelled()
        assert latch.told_already() == (["cleaned up", "a"] if grace else ["a"])
        assert (await pool.apply(jobs.pid_of) == tapped.process.pid) == bool(grace)


@pytest.mark.parametrize("reason", ["cancelled", "over its time limit"])
async def test_a_call_is_interrupted_and_what_is_behind_it_is_not(reason: str, start_method: str, latch: Latch) -> None:
    """It cleans up; then the others run, once, in the same worker."""
    async with AioPool(1, cancel_grace=LONG, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of)
        limit = LONG if reason == "over its time limit" else None
        first = pool.apply_async(jobs.tell_and_clean_up, (latch.path,), timeout=limit)
        ahead = quick(pool, latch, "abc")
        assert await latch.told() == str(pid)
        if limit is None:
            first.cancel()
        else:
            pass_time(pool, 2 * LONG)
        assert await asyncio.gather(*ahead) == [*"abc"]
        [outcome] = await outcomes_of(first)
        assert isinstance(outcome, asyncio.CancelledError if limit is None else CallTimeout)
        assert latch.told_already() == ["cleaned up", *"abc"]
        assert await pool.apply(jobs.pid_of) == pid


async def test_an_interruption_that_overtakes_a_call_hits_that_and_not_the_one_before(
    taps: Taps, latch: Latch, gate: Latch
) -> None:
    """It comes while the one before runs, and is remembered until its own call begins."""
    async with AioPool(1, cancel_grace=LONG) as pool:
        queue = Queue(pool, taps)
        first, second, third = await queue.form(latch, gate, "ab")
        queue.tapped.process.interrupt(second._calls[0].id)
        gate.let()
        assert await first == "0"
        [outcome] = await outcomes_of(second)
        assert isinstance(outcome, CallInterrupted)
        assert await third == "b"
        assert latch.told_already() == ["b"]
