"""The dispatcher's rules for limits: grace, time limits, retries, and workers that are to go. Without a process."""

from __future__ import annotations

from aiopool.calls import CANCELLED, Call, Limits, Pace, Reply
from aiopool.commands import Dismiss, Finish, Interrupt, Kill, Recall, Send, Spawn
from aiopool.dispatch import Dispatcher
from aiopool.exceptions import CallTimeout
from aiopool.phases import WorkerPhase
from aiopool.recycling import RecyclePolicy, RecycleReason

ANSWER = Reply(failed=False, payload=b"answer")


def running_pool(seats: int = 1, *, depth: int = 2, limit: int | None = None, grace: float = 0.0) -> Dispatcher:
    """Return a dispatcher with workers 1 to ``seats``, which are ready."""
    pool = Dispatcher(seats, RecyclePolicy(limit), depth=depth, grace=grace, jitter=lambda: 0.5)
    pool.start(0)
    for worker in range(1, seats + 1):
        pool.ready(worker, 0)
    return pool


def quick() -> Pace:
    """Return the pace of a function that takes no time."""
    pace = Pace()
    pace.learn(0)
    return pace


def submitted(pool: Dispatcher, *timeouts: float | None) -> list[Call]:
    """Submit a call for each of these time limits; return them."""
    calls = [Call("job", b"arguments", lambda _: None, Limits(timeout), quick()) for timeout in timeouts]
    for call in calls:
        pool.submit(call, 0)
    return calls


def test_the_last_call_sent_ahead_leaves_the_running_ones_time_limit() -> None:
    """The worker retires as that is sent, and what it runs goes on being timed."""
    pool = running_pool(limit=2)
    (timed,) = submitted(pool, 5.0)
    pool.began(1, timed.id, 10)
    submitted(pool, None)
    assert pool.workers[1].phase is WorkerPhase.RETIRING
    assert Recall(1) in pool.tick(15)
    assert isinstance(timed.verdict, CallTimeout)


def test_a_cancelled_call_whose_answer_is_on_its_way_is_not_timed_any_more() -> None:
    """Or the call behind it, which the worker has begun, would be killed for it."""
    pool = running_pool(2)
    free, timed, behind = submitted(pool, None, 5.0, None)
    pool.began(1, timed.id, 0)
    assert Recall(1) in pool.replied(2, [(free.id, ANSWER)], 1)
    pool.recalled(1, [], 1)  # it has answered the first call, and begun the other
    assert pool.cancel(timed, 2) == []
    assert pool.deadline() is None
    assert pool.tick(5) == []
    assert pool.replied(1, [(timed.id, ANSWER)], 6) == [Finish(timed, CANCELLED)]
    assert pool.replied(1, [(behind.id, ANSWER)], 7) == [Finish(behind, ANSWER)]


def test_cancelling_a_call_behind_leaves_the_running_ones_time_limit() -> None:
    """It is another call's."""
    pool = running_pool()
    timed, behind = submitted(pool, 5.0, None)
    pool.began(1, timed.id, 0)
    pool.cancel(behind, 1)
    assert pool.deadline() == 5


def test_a_killed_worker_that_says_it_begins_a_call_starts_no_clock() -> None:
    """The call ends as its worker's death, not as over its time, however long it takes to go."""
    pool = running_pool()
    (timed,) = submitted(pool, 5.0)
    pool.garbled(1, 0)
    before = pool.workers[2].phase, pool.deadline()
    pool.began(1, timed.id, 0)
    assert (pool.workers[2].phase, pool.deadline()) == before


def test_a_killed_worker_is_not_interrupted() -> None:
    """What it has, ends with it."""
    pool = running_pool(grace=3.0)
    (call,) = submitted(pool, None)
    assert pool.garbled(1, 0) == [Kill(1), Spawn(2, 0)]
    assert pool.cancel(call, 0) == []
    assert pool.died(1, 101, -9, 0) == [Finish(call, CANCELLED)]


def test_what_a_killed_worker_gives_back_is_sent_to_its_successor() -> None:
    """It is sent nothing more itself, nor asked for more."""
    pool = running_pool(grace=3.0)
    first, behind = submitted(pool, None, None)
    assert pool.cancel(first, 0) == [Recall(1)]
    assert pool.garbled(1, 0) == [Kill(1), Spawn(2, 0)]
    assert pool.recalled(1, [behind.id], 0) == []
    assert pool.died(1, 101, -9, 0) == [Finish(first, CANCELLED)]
    assert pool.ready(2, 1) == [Send(2, behind)]


def test_what_a_killed_worker_has_not_begun_can_be_withdrawn() -> None:
    """Nothing is asked of that worker any more; the call never goes to its successor."""
    pool = running_pool()
    _, behind = submitted(pool, None, None)
    pool.garbled(1, 0)
    assert pool.withdraw(behind, 0) == []
    assert Finish(behind, CANCELLED) in pool.died(1, 101, -9, 0)
    assert pool.ready(2, 1) == []


def test_a_call_is_interrupted_when_what_is_behind_it_has_come_back() -> None:
    """Its grace begins then, and no other call is in the worker's channel."""
    pool = running_pool(grace=3.0)
    first, behind = submitted(pool, None, None)
    assert pool.cancel(first, 0) == [Recall(1)]
    assert pool.recalled(1, [behind.id], 1) == [Interrupt(1, first)]
    assert pool.deadline() == 4
    assert pool.tick(4) == [Kill(1), Spawn(2, 0)]


def test_a_worker_that_is_too_heavy_goes_at_once_if_its_successor_is_there() -> None:
    """Started when it was to serve its last call, which somebody else has served since."""
    pool = running_pool(2, limit=2)
    free, runs, behind = submitted(pool, None, None, None)
    pool.replied(2, [(free.id, ANSWER)], 0)
    pool.recalled(1, [behind.id], 0)
    (successor,) = [worker.id for worker in pool.workers.values() if worker.phase is WorkerPhase.STARTING][:1]
    pool.ready(successor, 0)
    pool.replied(1, [(runs.id, ANSWER)], 0)
    assert pool.due(1, 0) == [Dismiss(1, RecycleReason.MEMORY)]


def test_a_worker_that_is_too_heavy_is_sent_nothing_ahead_once_its_successor_is_ready() -> None:
    """While there is work, it would never have nothing in hand, and so never go."""
    pool = running_pool()
    first, behind = submitted(pool, None, None)
    assert pool.due(1, 0) == [Spawn(2, 0)]
    pool.ready(2, 0)
    (waiting,) = submitted(pool, None)
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, ANSWER)]
    assert Send(2, waiting) in pool.replied(1, [(behind.id, ANSWER)], 0)
