"""The dispatcher's rules, one by one, without a process. Workers and seats are numbered as they are started."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from aiopool import backlog, decisions, ends, losses
from aiopool.calls import CANCELLED, Call, CallPhase, Limits, Outcome, Pace, Reply
from aiopool.commands import Command, Dismiss, Finish, Kill, Recall, Send, Spawn
from aiopool.dispatch import Dispatcher
from aiopool.exceptions import BrokenPool, InitializerError, PoolTerminated, WorkerDied
from aiopool.phases import PoolPhase, WorkerPhase
from aiopool.recycling import RecyclePolicy, RecycleReason

ANSWER = Reply(failed=False, payload=b"answer")
UNFIT = InitializerError("unfit")
KILLED = -9
CALLS = RecycleReason.CALLS


def new_pool(seats: int = 1, *, depth: int = 1, reserve: int = 0, limit: int | None = None) -> Dispatcher:
    """Return a dispatcher that was not started."""
    return Dispatcher(seats, RecyclePolicy(limit), depth=depth, reserve=reserve, jitter=lambda: 0.5)


def running_pool(seats: int = 1, *, depth: int = 1, reserve: int = 0, limit: int | None = None) -> Dispatcher:
    """Return a dispatcher with workers 1 to ``seats``, which are ready; the last of them is the warmest."""
    pool = new_pool(seats, depth=depth, reserve=reserve, limit=limit)
    pool.start(0)
    for worker in range(1, seats + 1):
        pool.ready(worker, 0)
    return pool


def new_call(name: str = "job", *, weight: int = 1, automatic: bool = False, seconds: float = 0.0) -> Call:
    """Return a call whose outcome only the commands tell, of a function that has taken so long before."""
    pace = Pace()
    pace.learn(seconds)
    return Call(name, b"arguments", lambda _: None, pace=pace, weight=weight, automatic=automatic)


def submitted(pool: Dispatcher, count: int) -> list[Call]:
    """Submit so many calls; return them."""
    calls = [new_call(f"job{number}") for number in range(count)]
    for call in calls:
        pool.submit(call, 0)
    return calls


def outcome_of(call: Call, commands: list[Command]) -> Outcome:
    """Return the outcome of a call that must be among those finished."""
    (outcome,) = [command.outcome for command in commands if isinstance(command, Finish) and command.call is call]
    return outcome


def lose(pool: Dispatcher, worker: int, now: float) -> list[Command]:
    """Let a worker die that nobody wanted to die."""
    return pool.died(worker, 100 + worker, KILLED, now)


def exhaust(pool: Dispatcher, worker: int) -> list[Command]:
    """Let a worker and those who follow it die until the pool is broken; return the last commands."""
    now = 0.0
    while True:
        commands = lose(pool, worker, now)
        if pool.phase is PoolPhase.BROKEN:
            return commands
        if not any(isinstance(command, Spawn) for command in commands):
            now = pool.deadline() or now
            commands = pool.tick(now)
        (worker,) = [command.worker for command in commands if isinstance(command, Spawn)]


# Start.


def test_start_spawns_one_worker_per_seat() -> None:
    """Every seat gets its worker at once."""
    assert new_pool(3).start(0) == [Spawn(1, 0), Spawn(2, 1), Spawn(3, 2)]


def test_a_pool_runs_only_when_all_workers_are_ready() -> None:
    """The last worker to become ready ends the start."""
    pool = new_pool(2)
    pool.start(0)
    phases = []
    for worker in (2, 1):
        pool.ready(worker, 0)
        phases.append(pool.phase)
    assert phases == [PoolPhase.STARTING, PoolPhase.RUNNING]


def test_an_unfit_worker_ends_the_start() -> None:
    """When the unfit worker is gone, all others are killed, the cause is kept, and the pool closes after them."""
    pool = new_pool(2)
    pool.start(0)
    pool.unfit(1, UNFIT, 0)
    assert pool.died(1, 101, 0, 0) == [Kill(2)]
    assert pool.cause is UNFIT
    assert lose(pool, 2, 0) == []
    assert pool.phase is PoolPhase.CLOSED


def test_a_worker_that_dies_ends_the_start() -> None:
    """A worker that goes away without a word fails the start as an unfit one does, with its death as the cause."""
    pool = new_pool()
    pool.start(0)
    lose(pool, 1, 0)
    assert pool.phase is PoolPhase.CLOSED
    assert isinstance(pool.cause, InitializerError)
    assert isinstance(pool.cause.__cause__, WorkerDied)
    assert pool.cause.__cause__.exitcode == KILLED


def test_a_process_that_cannot_be_started_ends_the_start() -> None:
    """The shell tells why it could not start a process; that is the start's failure."""
    pool = new_pool()
    pool.start(0)
    pool.died(1, None, None, 0, cause=UNFIT)
    assert pool.phase is PoolPhase.CLOSED
    assert pool.cause is UNFIT


def test_a_worker_that_is_not_ready_in_time_is_killed() -> None:
    """The start has a deadline; passing it fails the start and says so."""
    pool = new_pool()
    pool.start(0)
    assert pool.deadline() == ends.START_TIMEOUT
    assert pool.tick(ends.START_TIMEOUT - 1) == []
    assert Kill(1) in pool.tick(ends.START_TIMEOUT)
    lose(pool, 1, ends.START_TIMEOUT)
    assert isinstance(pool.cause, InitializerError)
    assert "not ready within 60 s" in str(pool.cause)


def test_an_unfit_worker_that_does_not_leave_is_killed() -> None:
    """After the grace it is killed, and its own cause is what counts."""
    pool = new_pool()
    pool.start(0)
    pool.unfit(1, UNFIT, 0)
    assert pool.deadline() == decisions.LEAVE_GRACE
    assert Kill(1) in pool.tick(decisions.LEAVE_GRACE)
    lose(pool, 1, decisions.LEAVE_GRACE)
    assert pool.cause is UNFIT


def test_an_unfit_worker_does_not_count_as_ready() -> None:
    """Ready after unfit changes nothing."""
    pool = new_pool()
    pool.start(0)
    pool.unfit(1, UNFIT, 0)
    pool.ready(1, 0)
    assert pool.phase is PoolPhase.STARTING


# Calls.


def test_a_call_goes_to_an_idle_worker_at_once() -> None:
    """Nothing waits while a worker is free."""
    pool, call = running_pool(), new_call()
    assert pool.submit(call, 0) == [Send(1, call)]
    assert call.phase is CallPhase.RUNNING
    assert pool.waiting == 0


def test_calls_are_sent_in_the_order_of_their_submission() -> None:
    """First in, first out."""
    pool = running_pool()
    calls = submitted(pool, 4)
    assert pool.waiting == 3
    for call, following in pairwise(calls):
        assert pool.replied(1, [(call.id, ANSWER)], 0) == [Finish(call, ANSWER), Send(1, following)]


def test_the_warmest_idle_worker_goes_first() -> None:
    """Who became idle last, is sent the next call."""
    pool = running_pool(3)
    calls = submitted(pool, 3)
    by_worker = {3: calls[0], 2: calls[1], 1: calls[2]}
    for worker in (1, 3, 2):
        pool.replied(worker, [(by_worker[worker].id, ANSWER)], 0)
    order = []
    for call in [new_call() for _ in range(3)]:
        order += [command.worker for command in pool.submit(call, 0) if isinstance(command, Send)]
    assert order == [2, 3, 1]


def test_a_finished_call_lets_go_of_its_payload() -> None:
    """Arguments are not kept longer than the call."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.replied(1, [(call.id, ANSWER)], 0)
    assert call.payload == b""
    assert call.phase is CallPhase.ENDED


def test_a_reply_with_a_wrong_call_id_kills_the_worker() -> None:
    """Who answers what it was not asked, cannot be trusted; its call fails with its death."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    assert pool.replied(1, [(call.id + 1, ANSWER)], 0) == [Kill(1), Spawn(2, 0)]
    assert isinstance(outcome_of(call, lose(pool, 1, 0)), WorkerDied)


def test_a_reply_from_an_idle_worker_kills_it() -> None:
    """Nothing was asked."""
    pool = running_pool()
    assert pool.replied(1, [(0, ANSWER)], 0) == [Kill(1), Spawn(2, 0)]


def test_a_garbled_worker_is_killed_once() -> None:
    """What it sends after that is no news."""
    pool = running_pool()
    assert pool.garbled(1, 0) == [Kill(1), Spawn(2, 0)]
    assert pool.garbled(1, 0) == []


# Cancel.


def test_cancelling_a_waiting_call_removes_it() -> None:
    """No worker ever sees it."""
    pool = running_pool()
    running, waiting, following = submitted(pool, 3)
    assert pool.cancel(waiting, 0) == [Finish(waiting, CANCELLED)]
    assert pool.waiting == 1
    assert pool.replied(1, [(running.id, ANSWER)], 0) == [Finish(running, ANSWER), Send(1, following)]


def test_cancelling_a_running_call_kills_its_worker() -> None:
    """The call ends when its worker is gone; the seat is refilled before."""
    pool = running_pool(2)
    call, other = submitted(pool, 2)
    assert pool.cancel(call, 0) == [Kill(2), Spawn(3, 1)]
    assert call.phase is CallPhase.STOPPING
    assert lose(pool, 2, 0) == [Finish(call, CANCELLED)]
    assert other.phase is CallPhase.RUNNING


def test_cancelling_twice_changes_nothing() -> None:
    """The first cancel has done it."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.cancel(call, 0)
    assert pool.cancel(call, 0) == []


def test_cancelling_an_ended_call_changes_nothing() -> None:
    """The first end wins."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.replied(1, [(call.id, ANSWER)], 0)
    assert pool.cancel(call, 0) == []


def test_a_late_reply_is_dropped() -> None:
    """A reply that arrives after the kill changes nothing: the cancel came first."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.cancel(call, 0)
    assert pool.replied(1, [(call.id, ANSWER)], 0) == []
    assert outcome_of(call, lose(pool, 1, 0)) is CANCELLED


def test_withdrawing_a_waiting_call_removes_it() -> None:
    """It is as if cancelled."""
    pool = running_pool()
    _, waiting = submitted(pool, 2)
    assert pool.withdraw(waiting, 0) == [Finish(waiting, CANCELLED)]


def test_withdrawing_a_running_call_changes_nothing() -> None:
    """It has a worker already."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    assert pool.withdraw(call, 0) == []
    assert call.phase is CallPhase.RUNNING


def test_withdrawing_a_call_that_was_sent_ahead_takes_it_back() -> None:
    """It ends when it has come back. If it has begun, it ends with its answer: nobody is killed for it."""
    pool = running_pool(depth=3)
    _, comes_back, runs = calls = submitted(pool, 3)
    assert pool.withdraw(runs, 0) == [Recall(1)]
    assert pool.withdraw(comes_back, 0) == []
    assert pool.recalled(1, [comes_back.id], 0) == [Finish(comes_back, CANCELLED)]
    pool.replied(1, [(calls[0].id, ANSWER)], 0)
    assert runs.phase is CallPhase.RUNNING
    assert outcome_of(runs, pool.replied(1, [(runs.id, ANSWER)], 0)) is CANCELLED


# Deaths.


def test_the_death_of_a_worker_fails_its_call() -> None:
    """The error names process, exit code and call; the seat is refilled."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    commands = pool.died(1, 4711, 0, 0)
    error = outcome_of(call, commands)
    assert isinstance(error, WorkerDied)
    assert (error.pid, error.exitcode, error.call) == (4711, 0, "job0")
    assert commands == [Finish(call, error), Spawn(2, 0)]


def test_the_death_of_an_idle_worker_is_made_good_unseen() -> None:
    """Its seat is refilled; no call hears of it."""
    pool = running_pool()
    assert lose(pool, 1, 0) == [Spawn(2, 0)]
    (call,) = submitted(pool, 1)
    assert pool.ready(2, 0) == [Send(2, call)]


def test_a_call_that_a_dead_worker_has_not_seen_goes_to_another() -> None:
    """It comes before all that wait."""
    pool = running_pool()
    unseen, _ = submitted(pool, 2)
    assert pool.died(1, 101, KILLED, 0, unseen=1) == [Spawn(2, 0)]
    assert pool.ready(2, 0) == [Send(2, unseen)]


def test_a_call_goes_unseen_only_once() -> None:
    """If another worker dies under it, then this call may be what kills them."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.died(1, 101, KILLED, 0, unseen=1)
    pool.ready(2, 0)
    assert isinstance(outcome_of(call, pool.died(2, 102, KILLED, 0, unseen=1)), WorkerDied)


def test_a_cancelled_call_that_a_dead_worker_has_not_seen_is_cancelled() -> None:
    """It goes to no other worker."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.cancel(call, 0)
    assert pool.died(1, 101, KILLED, 0, unseen=1) == [Finish(call, CANCELLED)]


# Recycling.


def test_a_successor_is_started_when_the_last_call_begins() -> None:
    """So it is ready when the old worker leaves."""
    pool = running_pool(limit=2)
    first, last = submitted(pool, 2)
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, ANSWER), Send(1, last), Spawn(2, 0)]


def test_a_successor_serves_nothing_before_its_predecessor_has_finished() -> None:
    """Never more calls run than there are seats."""
    pool = running_pool(limit=1)
    last, waiting = submitted(pool, 2)
    assert pool.ready(2, 0) == []
    assert pool.replied(1, [(last.id, ANSWER)], 0) == [
        Finish(last, ANSWER),
        Dismiss(1, CALLS),
        Send(2, waiting),
        Spawn(3, 0),
    ]


def test_a_successor_takes_the_seat_of_one_that_dies() -> None:
    """No other is started in its place."""
    pool = running_pool(limit=1)
    last, waiting = submitted(pool, 2)
    pool.ready(2, 0)
    commands = lose(pool, 1, 0)
    assert commands == [Finish(last, outcome_of(last, commands)), Send(2, waiting), Spawn(3, 0)]


def test_a_successor_that_dies_is_replaced() -> None:
    """The seat is not left without one."""
    pool = running_pool(limit=1)
    submitted(pool, 1)
    assert lose(pool, 2, 0) == [Spawn(3, 0)]


def test_an_automatic_chunk_that_does_not_fit_retires_the_worker() -> None:
    """It goes to a fresh one instead."""
    pool, chunk = running_pool(limit=3), new_call(weight=2, automatic=True)
    for call in (new_call(), new_call()):
        pool.submit(call, 0)
        pool.replied(1, [(call.id, ANSWER)], 0)
    assert pool.submit(chunk, 0) == [Dismiss(1, CALLS), Spawn(2, 0)]
    assert pool.ready(2, 0) == [Send(2, chunk)]


def test_an_explicit_larger_chunk_is_finished_and_then_the_worker_goes() -> None:
    """The user's own chunk size is obeyed."""
    pool, call, chunk = running_pool(limit=3), new_call(), new_call(weight=7)
    pool.submit(call, 0)
    pool.replied(1, [(call.id, ANSWER)], 0)
    assert pool.submit(chunk, 0) == [Send(1, chunk), Spawn(2, 0)]
    assert pool.replied(1, [(chunk.id, ANSWER)], 0) == [Finish(chunk, ANSWER), Dismiss(1, CALLS)]


def test_a_dismissed_worker_that_does_not_leave_is_killed() -> None:
    """It has some seconds for its atexit handlers."""
    pool = running_pool(limit=1)
    (call,) = submitted(pool, 1)
    pool.ready(2, 0)
    pool.replied(1, [(call.id, ANSWER)], 10)
    assert pool.deadline() == 10 + decisions.LEAVE_GRACE
    assert pool.tick(10 + decisions.LEAVE_GRACE) == [Kill(1)]
    assert pool.deadline() is None


# Failures in a row.


def test_the_first_lost_worker_is_replaced_at_once_and_the_next_ones_later() -> None:
    """Each start that follows a loss waits twice as long as the one before it."""
    pool = running_pool()
    assert lose(pool, 1, 10) == [Spawn(2, 0)]
    assert lose(pool, 2, 10) == []
    assert pool.deadline() == pytest.approx(10.1)
    assert pool.tick(10.05) == []
    assert pool.tick(10.1) == [Spawn(3, 0)]
    pool.unfit(3, UNFIT, 10.1)
    assert lose(pool, 3, 10.1) == []
    assert pool.deadline() == pytest.approx(10.3)


def test_too_many_lost_workers_in_a_row_break_the_pool() -> None:
    """Every waiting call fails with the last cause."""
    pool = running_pool()
    lose(pool, 1, 0)
    calls = submitted(pool, 2)
    commands = exhaust(pool, 2)
    assert pool.phase is PoolPhase.BROKEN
    for call in calls:
        error = outcome_of(call, commands)
        assert isinstance(error, BrokenPool)
        assert error.__cause__ is pool.cause
    assert isinstance(pool.cause, InitializerError)
    assert pool.tick(1000) == []


def test_the_last_worker_within_the_budget_does_not_break_the_pool() -> None:
    """Five in a row are borne, the sixth is not; of all that are idle at once, each is borne."""
    pool = running_pool()
    phases, now = [], 0.0
    for worker in range(1, losses.FAILURE_BUDGET + 2):
        lose(pool, worker, now)
        phases.append(pool.phase)
        now = max(now, pool.deadline() or 0)
        pool.tick(now)
    assert phases == [PoolPhase.RUNNING] * losses.FAILURE_BUDGET + [PoolPhase.BROKEN]
    large = running_pool(20)
    for worker in range(1, 21):
        lose(large, worker, 0)
    assert large.phase is PoolPhase.RUNNING


def test_a_call_that_runs_in_a_broken_pool_finishes() -> None:
    """Its worker is dismissed then."""
    pool = running_pool(2)
    (call,) = submitted(pool, 1)
    exhaust(pool, 1)
    assert pool.phase is PoolPhase.BROKEN
    assert pool.replied(2, [(call.id, ANSWER)], 0) == [Finish(call, ANSWER), Dismiss(2)]


def test_a_broken_pool_can_be_closed() -> None:
    """It is closed when the last worker has gone."""
    pool = running_pool(1)
    exhaust(pool, 1)
    pool.close(0)
    assert pool.phase is PoolPhase.CLOSED


def test_a_reply_resets_the_budget() -> None:
    """Lost workers count only in a row."""
    pool = running_pool(2)
    (call,) = submitted(pool, 1)
    lose(pool, 1, 0)
    pool.replied(2, [(call.id, ANSWER)], 0)
    assert lose(pool, 3, 0) == [Spawn(4, 0)]


def test_a_quiet_time_resets_the_budget() -> None:
    """Lost workers long ago do not count."""
    pool = running_pool()
    lose(pool, 1, 0)
    pool.ready(2, 0)
    assert lose(pool, 2, losses.QUIET + 1) == [Spawn(3, 0)]


def test_a_worker_that_dies_under_a_call_does_not_count_against_the_budget() -> None:
    """The call may be what killed it; it fails, and that is all."""
    pool = running_pool()
    for worker in range(1, 20):
        submitted(pool, 1)
        assert Spawn(worker + 1, 0) in lose(pool, worker, 0)
        pool.ready(worker + 1, 0)


# Close and terminate.


def test_closing_dismisses_idle_workers() -> None:
    """Closed is the pool when they are gone."""
    pool = running_pool()
    assert pool.close(0) == [Dismiss(1)]
    phases = [pool.phase]
    assert pool.died(1, 101, 0, 0) == []
    phases.append(pool.phase)
    assert phases == [PoolPhase.CLOSING, PoolPhase.CLOSED]


def test_accepted_calls_finish_after_close() -> None:
    """The worker is dismissed after the last of them."""
    pool = running_pool()
    first, last = submitted(pool, 2)
    assert pool.close(0) == []
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, ANSWER), Send(1, last)]
    assert pool.replied(1, [(last.id, ANSWER)], 0) == [Finish(last, ANSWER), Dismiss(1)]


def test_a_dead_worker_is_replaced_for_the_backlog_of_a_closed_pool() -> None:
    """Accepted calls finish, whatever happens to a worker; no more are started than calls wait."""
    pool = running_pool(2)
    *_, waiting = submitted(pool, 3)
    pool.close(0)
    assert Spawn(3, 1) in lose(pool, 2, 0)
    assert lose(pool, 1, 0)[1:] == []
    assert pool.ready(3, 0) == [Send(3, waiting)]


def test_a_worker_that_becomes_ready_after_close_is_dismissed() -> None:
    """Closing a pool that starts lets everybody leave."""
    pool = new_pool()
    pool.start(0)
    assert pool.close(0) == []
    assert pool.ready(1, 0) == [Dismiss(1)]


def test_workers_that_keep_dying_fail_the_backlog_of_a_closed_pool() -> None:
    """A closed pool gives up, too, and then it is closed."""
    pool = running_pool()
    running, waiting = submitted(pool, 2)
    pool.close(0)
    outcomes = [command for command in lose(pool, 1, 0) if isinstance(command, Finish)]
    now = 0.0
    for worker in range(2, 3 + losses.FAILURE_BUDGET):
        outcomes += [command for command in lose(pool, worker, now) if isinstance(command, Finish)]
        now = max(now, pool.deadline() or 0)
        pool.tick(now)
    assert [finish.call for finish in outcomes] == [running, waiting]
    assert isinstance(outcomes[1].outcome, BrokenPool)
    assert pool.phase is PoolPhase.CLOSED


def test_terminate_fails_all_calls_and_kills_all_workers() -> None:
    """Running and waiting calls end at once, and not again when their workers are gone."""
    pool = running_pool(2)
    calls = submitted(pool, 3)
    commands = pool.terminate(0)
    assert all(isinstance(outcome_of(call, commands), PoolTerminated) for call in calls)
    assert [command for command in commands if not isinstance(command, Finish)] == [Kill(1), Kill(2)]
    assert lose(pool, 1, 0) + lose(pool, 2, 0) == []
    assert pool.phase is PoolPhase.CLOSED


def test_terminate_leaves_a_cancelled_call_cancelled() -> None:
    """The cancel came first."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.cancel(call, 0)
    assert outcome_of(call, pool.terminate(0)) is CANCELLED


def test_replies_after_terminate_are_dropped() -> None:
    """The calls have ended."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    pool.terminate(0)
    assert pool.replied(1, [(call.id, ANSWER)], 0) == []


def test_close_before_start_closes() -> None:
    """There is nobody to wait for."""
    pool = new_pool()
    assert pool.close(0) == []
    assert pool.phase is PoolPhase.CLOSED


def test_terminate_before_start_closes() -> None:
    """There is nobody to kill."""
    pool = new_pool()
    assert pool.terminate(0) == []
    assert pool.phase is PoolPhase.CLOSED


def test_terminating_again_changes_nothing() -> None:
    """Neither does closing."""
    pool = running_pool()
    pool.terminate(0)
    assert pool.terminate(0) == pool.close(0) == []
    assert pool.phase is PoolPhase.TERMINATING


# Sending ahead.


def test_calls_are_sent_ahead_while_no_worker_is_idle() -> None:
    """Up to the depth; the rest waits."""
    pool = running_pool(2, depth=2)
    calls = [new_call() for _ in range(5)]
    assert [pool.submit(call, 0) for call in calls] == [
        [Send(2, calls[0])],
        [Send(1, calls[1])],
        [Send(1, calls[2])],
        [Send(2, calls[3])],
        [],
    ]
    assert calls[2].phase is CallPhase.SENT


def test_the_call_behind_runs_when_the_first_has_replied() -> None:
    """It is in the worker's channel already."""
    pool = running_pool(depth=2)
    first, second, third = submitted(pool, 3)
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, ANSWER), Send(1, third)]
    assert second.phase is CallPhase.RUNNING


def test_calls_behind_another_are_taken_back_for_an_idle_worker() -> None:
    """No call is stuck behind another while a worker is free."""
    pool = running_pool(2, depth=2)
    free, _, behind = submitted(pool, 3)
    assert pool.replied(2, [(free.id, ANSWER)], 0) == [Finish(free, ANSWER), Recall(1)]
    assert pool.recalled(1, [behind.id], 0) == [Send(2, behind)]


def test_what_could_not_be_taken_back_stays() -> None:
    """The worker has begun it meanwhile; its reply counts."""
    pool = running_pool(2, depth=2)
    free, first, second = submitted(pool, 3)
    pool.replied(2, [(free.id, ANSWER)], 0)
    pool.replied(1, [(first.id, ANSWER)], 0)
    assert pool.recalled(1, [], 0) == []
    assert outcome_of(second, pool.replied(1, [(second.id, ANSWER)], 0)) is ANSWER


def test_a_worker_that_gave_everything_back_is_idle() -> None:
    """Even the first of its calls, if it had not begun that."""
    pool = running_pool(depth=2)
    first, second = submitted(pool, 2)
    pool.cancel(first, 0)
    assert pool.recalled(1, [first.id, second.id], 0) == [Finish(first, CANCELLED), Send(1, second)]


def test_a_sent_call_is_cancelled_by_recall() -> None:
    """The call that runs before it is not touched."""
    pool = running_pool(depth=2)
    first, second = submitted(pool, 2)
    assert pool.cancel(second, 0) == [Recall(1)]
    assert pool.recalled(1, [second.id], 0) == [Finish(second, CANCELLED)]
    assert first.phase is CallPhase.RUNNING


def test_a_cancelled_call_that_was_not_taken_back_is_killed_when_it_begins() -> None:
    """The worker began it before the recall."""
    pool = running_pool(depth=2)
    first, second = submitted(pool, 2)
    pool.cancel(second, 0)
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, ANSWER)]
    assert pool.recalled(1, [], 0) == [Kill(1), Spawn(2, 0)]
    assert lose(pool, 1, 0) == [Finish(second, CANCELLED)]


def test_cancelling_the_running_call_takes_back_what_is_behind_it_before_the_kill() -> None:
    """No other call dies with it."""
    pool = running_pool(depth=3)
    first, second, third = submitted(pool, 3)
    assert pool.cancel(first, 0) == [Recall(1)]
    assert pool.recalled(1, [second.id, third.id], 0) == [Kill(1), Spawn(2, 0)]
    assert lose(pool, 1, 0) == [Finish(first, CANCELLED)]
    assert pool.ready(2, 0) == [Send(2, second), Send(2, third)]


def test_nothing_is_sent_to_a_worker_that_is_giving_back() -> None:
    """It may be killed next."""
    pool = running_pool(depth=3)
    first, _ = submitted(pool, 2)
    pool.cancel(first, 0)
    assert pool.submit(new_call(), 0) == []


def test_a_worker_that_is_giving_back_is_not_asked_again() -> None:
    """One answer serves every reason to ask."""
    pool = running_pool(depth=2)
    first, second = submitted(pool, 2)
    assert pool.cancel(first, 0) == [Recall(1)]
    assert pool.cancel(second, 0) == []


def test_a_cancelled_call_that_replies_before_its_kill_is_cancelled_and_its_worker_lives() -> None:
    """The cancel came first, and there is nothing left to kill."""
    pool = running_pool(depth=2)
    first, second = submitted(pool, 2)
    pool.cancel(first, 0)
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, CANCELLED)]
    assert pool.recalled(1, [], 0) == []
    assert second.phase is CallPhase.RUNNING


def test_calls_that_were_taken_back_do_not_count_for_recycling() -> None:
    """A worker serves as many as it may."""
    pool = running_pool(depth=2, limit=3)
    first, second = submitted(pool, 2)
    pool.cancel(second, 0)
    pool.recalled(1, [second.id], 0)
    pool.replied(1, [(first.id, ANSWER)], 0)
    third, last = new_call(), new_call()
    assert pool.submit(third, 0) == [Send(1, third)]
    assert pool.submit(last, 0) == [Send(1, last), Spawn(2, 0)]


def test_a_crash_fails_only_the_call_that_had_begun() -> None:
    """Those behind it go elsewhere in their order, before all that wait."""
    pool = running_pool(depth=3)
    begun, second, third, waiting = submitted(pool, 4)
    commands = pool.died(1, 101, KILLED, 0, unseen=2)
    assert isinstance(outcome_of(begun, commands), WorkerDied)
    assert pool.ready(2, 0) == [Send(2, second), Send(2, third), Send(2, waiting)]


def test_a_spent_worker_finishes_what_was_sent_ahead() -> None:
    """It gets no more than its share."""
    pool = running_pool(depth=3, limit=2)
    first, second, third = (new_call() for _ in range(3))
    pool.submit(first, 0)
    assert pool.submit(second, 0) == [Send(1, second), Spawn(2, 0)]
    assert pool.submit(third, 0) == []
    pool.ready(2, 0)
    assert pool.replied(1, [(first.id, ANSWER)], 0) == [Finish(first, ANSWER)]
    assert pool.replied(1, [(second.id, ANSWER)], 0) == [Finish(second, ANSWER), Dismiss(1, CALLS), Send(2, third)]


def test_an_automatic_chunk_that_does_not_fit_is_not_sent_ahead() -> None:
    """It waits for a fresh worker."""
    pool, chunk = running_pool(depth=2, limit=2), new_call(weight=2, automatic=True)
    submitted(pool, 1)
    assert pool.submit(chunk, 0) == []
    assert pool.waiting == 1


# Illegal moves.


def test_starting_twice_raises_and_changes_nothing() -> None:
    """A pool starts once."""
    pool = running_pool()
    with pytest.raises(RuntimeError, match="a pool that is running cannot become starting"):
        pool.start(0)
    assert pool.phase is PoolPhase.RUNNING
    assert len(pool.workers) == 1


def test_a_call_that_comes_after_the_end_is_ended_at_once() -> None:
    """There is nobody left to run it."""
    pool = running_pool()
    pool.terminate(0)
    call = new_call()
    assert isinstance(outcome_of(call, pool.submit(call, 0)), PoolTerminated)


def test_a_call_says_what_it_is() -> None:
    """In whatever is printed of it."""
    pool = running_pool()
    (call,) = submitted(pool, 1)
    assert repr(call) == f"<Call {call.id} job0 running>"


def test_starting_a_closed_pool_raises_and_changes_nothing() -> None:
    """A pool does not come back."""
    pool = new_pool()
    pool.close(0)
    with pytest.raises(RuntimeError, match="a pool that is closed cannot become starting"):
        pool.start(0)
    assert pool.phase is PoolPhase.CLOSED
    assert not pool.workers


def test_an_illegal_move_of_a_worker_raises_and_changes_nothing() -> None:
    """The table of moves is obeyed, and the error names worker and move."""
    pool = new_pool()
    pool.start(0)
    with pytest.raises(RuntimeError, match="<Worker 1 starting calls=0 served=0> cannot become busy"):
        pool._crew.move(pool.workers[1], WorkerPhase.BUSY)
    assert pool.workers[1].phase is WorkerPhase.STARTING
    assert pool.deadline() == ends.START_TIMEOUT


# Known faults. Each test tells what should be.


def test_the_start_fails_although_another_worker_is_ready_before_the_unfit_one_is_gone() -> None:
    """A start succeeds only when every first worker has run its initializer."""
    pool = new_pool(2)
    pool.start(0)
    pool.unfit(1, UNFIT, 0)
    pool.ready(2, 0)
    assert pool.phase is not PoolPhase.RUNNING


def test_a_worker_that_is_not_ready_in_time_is_not_replaced_during_the_start() -> None:
    """The start has failed."""
    pool = new_pool()
    pool.start(0)
    assert pool.tick(ends.START_TIMEOUT) == [Kill(1)]


def test_a_call_that_comes_back_to_a_broken_pool_fails() -> None:
    """It would wait for ever: a broken pool starts no worker."""
    pool = running_pool(2)
    served, unseen = new_call(), new_call()
    pool.submit(served, 0)
    pool.replied(2, [(served.id, ANSWER)], 0)
    pool.submit(unseen, 0)
    exhaust(pool, 1)
    assert isinstance(outcome_of(unseen, pool.died(2, 102, KILLED, 0, unseen=1)), BrokenPool)


def test_workers_that_send_nonsense_break_the_pool() -> None:
    """They are of no use, and starting more of them for ever would be a fork bomb."""
    pool = running_pool()
    for now in range(0, 40, 2):
        if pool.workers:
            worker = max(pool.workers)
            pool.garbled(worker, now)
            lose(pool, worker, now)
            pool.tick(now + 2)
    assert pool.phase is PoolPhase.BROKEN


def test_a_worker_that_retires_without_having_seen_its_only_call_counts_as_lost() -> None:
    """With one call per worker, too, starts that follow losses are delayed."""
    pool = running_pool(limit=1)
    submitted(pool, 1)
    lose(pool, 2, 0)
    pool.died(1, 101, KILLED, 0, unseen=1)
    assert pool.deadline() == pytest.approx(losses.FIRST_DELAY)


def test_a_call_taken_back_while_the_pool_closes_goes_to_the_idle_worker() -> None:
    """Not back behind the call that it may be waited for by."""
    pool = running_pool(2, depth=2)
    free, _, behind = submitted(pool, 3)
    pool.close(0)
    assert pool.replied(2, [(free.id, ANSWER)], 0) == [Finish(free, ANSWER), Recall(1)]
    assert pool.recalled(1, [behind.id], 0) == [Send(2, behind)]


def test_a_call_is_tried_again_in_a_closed_pool_by_a_new_worker() -> None:
    """Not behind another, by which it may be waited for: nobody would be started for it there."""
    pool = running_pool(2, depth=2)
    _, retried = submitted(pool, 2)
    retried.limits = Limits(retries=1)
    pool.close(0)
    assert lose(pool, 1, 0) == [Spawn(3, 0)]
    assert pool.ready(3, 0) == [Send(3, retried)]


def test_what_is_behind_a_call_is_taken_back_when_another_worker_of_a_closed_pool_dies() -> None:
    """It may be what that call waits for; a worker is started for it then."""
    pool = running_pool(2, depth=2)
    _, _, behind = submitted(pool, 3)
    pool.close(0)
    assert Recall(1) in lose(pool, 2, 0)
    assert pool.recalled(1, [behind.id], 0) == [Spawn(3, 1)]
    assert pool.ready(3, 0) == [Send(3, behind)]


def test_a_worker_of_a_closed_pool_is_made_where_it_can_begin_at_once() -> None:
    """Rather than as a successor of one who is spent, and may run what waits for the call that it is made for."""
    pool = running_pool(2, limit=2)
    _, first, _, last = submitted(pool, 4)
    pool.close(0)
    assert Spawn(3, 0) in pool.replied(1, [(first.id, ANSWER)], 0)
    assert lose(pool, 2, 0)[-1] == Spawn(4, 1)
    assert pool.ready(4, 0) == [Send(4, last)]


def test_a_call_that_comes_back_to_a_broken_pool_is_sent_behind_no_other() -> None:
    """Nothing is taken any more, and it may be what the other waits for."""
    pool = running_pool(3, depth=2)
    _, retried = submitted(pool, 2)
    retried.limits = Limits(retries=1)
    exhaust(pool, 1)
    assert isinstance(outcome_of(retried, lose(pool, 2, 0)), BrokenPool)


def test_a_recall_that_gave_nothing_back_is_not_repeated_at_once() -> None:
    """The worker has read ahead, and asking again in the same moment cannot change that."""
    pool = running_pool(2, depth=2)
    free, *_ = submitted(pool, 3)
    pool.replied(2, [(free.id, ANSWER)], 0)
    assert pool.recalled(1, [], 0) == []


def test_a_garbled_worker_may_have_begun_all_that_it_has_read() -> None:
    """Its replies are dropped, so the first of its calls need not be the one it died in; no call runs twice."""
    pool = running_pool(depth=2)
    _, second = submitted(pool, 2)
    pool.garbled(1, 0)
    died = outcome_of(second, pool.died(1, 101, KILLED, 0, unseen=0))
    assert isinstance(died, WorkerDied)
    assert str(died).endswith(", because it sent what is no message of the pool's")


def test_nothing_is_sent_ahead_before_a_function_has_been_seen_to_be_short() -> None:
    """Neither behind such a call nor such a call itself."""
    pool = running_pool(depth=9)
    unknown, short = new_call(seconds=math.inf), new_call()
    pool.submit(unknown, 0)
    assert pool.submit(short, 0) == []
    assert pool.replied(1, [(unknown.id, ANSWER)], 0) == [Finish(unknown, ANSWER), Send(1, short)]
    assert pool.submit(new_call(seconds=math.inf), 0) == []


def test_what_is_sent_ahead_is_soon_done() -> None:
    """The time that it will take counts, not the number of calls."""
    pool = running_pool(depth=9)
    tenth = decisions.AHEAD / 10
    calls = [new_call(seconds=4 * tenth), new_call(seconds=tenth, weight=5), new_call(seconds=2 * tenth), new_call()]
    assert [pool.submit(call, 0) for call in calls] == [[Send(1, calls[0])], [Send(1, calls[1])], [], []]
    assert pool.replied(1, [(calls[0].id, ANSWER)], 0)[1:] == [Send(1, calls[2]), Send(1, calls[3])]


@pytest.mark.parametrize(
    ("seconds", "at_first"),
    [(1.1 * decisions.QUICK, [0, 0, 1, 2, 2, 2, 2]), (decisions.QUICK, [0, 0, 0, 0, 0])],
)
def test_only_where_many_calls_wait_more_than_one_is_sent_ahead(seconds: float, at_first: list[int]) -> None:
    """Or one that is quick. What is ahead may be answered all at once, and keep the loop from all else."""
    pool = running_pool(2, depth=9, reserve=2)
    ahead = []
    for _ in range(16):
        pool.submit(new_call(seconds=seconds), 0)
        ahead.append(sum(len(worker.calls) - 1 for worker in pool.workers.values() if worker.calls))
    assert ahead == [*at_first, *range(at_first[-1] + 1, 12)]
    assert pool.waiting == 3


@pytest.mark.parametrize(
    ("seconds", "at_ease"),
    [
        (decisions.QUICK, False),
        (2 * decisions.QUICK, True),
        (decisions.AHEAD / decisions.FEW, False),
        (math.inf, False),
    ],
)
def test_it_is_at_ease_when_workers_have_enough_to_do(seconds: float, at_ease: bool) -> None:  # noqa: FBT001
    """Of short calls, of which many wait: not of very short ones, to which this process has to see all the time."""
    assert not running_pool(reserve=0).at_ease
    pool = running_pool(2, depth=100, reserve=2)
    calls = [new_call(seconds=seconds) for _ in range(90)]
    for number, call in enumerate(calls):
        pool.submit(call, 0)
        assert pool.at_ease == (at_ease and pool.waiting >= 4), number
    assert pool.waiting >= 4


SHORT = 2 * decisions.QUICK


@pytest.mark.parametrize(
    ("long", "depth", "waiting"),
    [
        (1, 100, {"seconds": SHORT}),  # the other has enough to do
        (2, 100, {"seconds": SHORT}),
        (0, 100, {"seconds": SHORT, "weight": 15}),  # chunks
        (0, 3, {"seconds": SHORT}),
    ],
)
def test_it_is_not_at_ease_when_not_enough_can_be_sent_ahead(long: int, depth: int, waiting: dict[str, Any]) -> None:
    """Workers would wait; or nothing comes from them for long."""
    pool = running_pool(2, depth=depth, reserve=2)
    for _ in range(long):
        pool.submit(new_call(seconds=8), 0)
    for _ in range(90):
        pool.submit(new_call(**waiting), 0)
        assert not pool.at_ease
    assert pool.waiting >= 4


def test_it_is_at_ease_no_more_when_a_worker_says_nothing() -> None:
    """It may have been stopped, or runs something that was thought to be short."""
    pool = running_pool(2, depth=100, reserve=2)
    for _ in range(90):
        pool.submit(new_call(seconds=SHORT), 0)
    assert pool.at_ease
    pool.tick(2 * decisions.OVERDUE)
    assert not pool.at_ease


def test_it_is_not_at_ease_before_anybody_works() -> None:
    """Workers are waited for, however long they take to start."""
    pool = new_pool(2, depth=100, reserve=2)
    pool.start(0)
    for _ in range(90):
        pool.submit(new_call(seconds=SHORT), 0)
    assert not pool.at_ease


def test_who_has_least_to_do_is_sent_ahead_first() -> None:
    """However the calls have come."""
    pool = running_pool(2, depth=9)
    tenth = decisions.AHEAD / 10
    few, many = new_call(seconds=2 * tenth), new_call(seconds=6 * tenth)
    assert pool.submit(few, 0) == [Send(2, few)]
    assert pool.submit(many, 0) == [Send(1, many)]
    for _ in range(3):
        following = new_call(seconds=tenth)
        assert pool.submit(following, 0) == [Send(2, following)]


def test_a_call_that_takes_its_time_gives_back_what_is_behind_it() -> None:
    """Though nobody is free: or else it could wait there for ever, while others are served."""
    pool = running_pool(2, depth=2)
    _, other, behind, also_behind, waiting = submitted(pool, 5)
    late = decisions.OVERDUE * 2
    assert pool.replied(1, [(other.id, ANSWER)], late) == [Finish(other, ANSWER), Send(1, waiting), Recall(2)]
    assert behind in pool.workers[1].calls
    assert pool.recalled(2, [also_behind.id], late) == []
    assert pool.replied(1, [(behind.id, ANSWER)], late) == [Finish(behind, ANSWER), Send(1, also_behind)]


def test_several_answers_at_once_end_their_calls_in_their_order() -> None:
    """And more is sent only when all are counted."""
    pool = running_pool(depth=3)
    calls = submitted(pool, 4)
    answers = [(call.id, ANSWER) for call in calls[:3]]
    assert pool.replied(1, answers, 0) == [*(Finish(call, ANSWER) for call in calls[:3]), Send(1, calls[3])]


def test_a_wrong_answer_among_several_kills_the_worker_after_the_right_ones() -> None:
    """What it answered before is believed."""
    pool = running_pool(depth=3)
    first, second = submitted(pool, 2)
    assert pool.replied(1, [(first.id, ANSWER), (0, ANSWER)], 0) == [Finish(first, ANSWER), Kill(1), Spawn(2, 0)]
    assert isinstance(outcome_of(second, lose(pool, 1, 0)), WorkerDied)


def test_a_pace_follows_the_latest_calls() -> None:
    """One that was held up by the machine does not count for long."""
    pace = Pace()
    assert pace.seconds == math.inf
    pace.learn(1)
    assert pace.seconds == 1
    for _ in range(20):
        pace.learn(0)
    assert pace.seconds < 0.01


def test_calls_that_were_cancelled_do_not_stay_in_the_queue() -> None:
    """Though no worker ever comes to them."""
    pool = running_pool()
    pool.submit(new_call(seconds=math.inf), 0)
    for _ in range(1000):
        waiting = new_call()
        pool.submit(waiting, 0)
        pool.cancel(waiting, 0)
    assert len(pool._backlog._calls) <= backlog.MOST_ENDED
