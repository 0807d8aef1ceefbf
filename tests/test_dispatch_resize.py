"""The dispatcher's rules for seats that come and go, one by one, without a process. See `test_dispatch`."""

from __future__ import annotations

import pytest

from aiopool.calls import CANCELLED, Call, Limits, Pace, Reply
from aiopool.commands import Command, Dismiss, Finish, Kill, Recall, Send, Spawn
from aiopool.dispatch import Dispatcher
from aiopool.ends import START_TIMEOUT
from aiopool.exceptions import BrokenPool, InitializerError, WorkerDied
from aiopool.losses import FAILURE_BUDGET
from aiopool.phases import PoolPhase, WorkerPhase
from aiopool.recycling import IdlePolicy, RecyclePolicy, RecycleReason

ANSWER = Reply(failed=False, payload=b"answer")
UNFIT = InitializerError("unfit")
KILLED = -9
REST = 10.0
"""Seconds after which a worker goes that has nothing to do."""


def running_pool(
    seats: int = 1,
    *,
    depth: int = 1,
    least: int | None = None,
    policy: RecyclePolicy | None = None,
) -> Dispatcher:
    """Return a dispatcher with workers 1 to ``seats``, which are ready; idle ones go down to ``least`` of them."""
    idling = None if least is None else IdlePolicy(REST, least)
    pool = Dispatcher(seats, policy or RecyclePolicy(), depth=depth, idling=idling, jitter=lambda: 0.5)
    pool.start(0)
    for worker in range(1, seats + 1):
        pool.ready(worker, 0)
    return pool


def submitted(pool: Dispatcher, count: int, now: float = 0, *, limits: Limits | None = None) -> list[Call]:
    """Submit so many calls of a function that takes no time; return them."""
    pace = Pace()
    pace.learn(0)
    calls = [Call(f"job{number}", b"arguments", lambda _: None, limits or Limits(), pace) for number in range(count)]
    for call in calls:
        pool.submit(call, now)
    return calls


def spawned(commands: list[Command]) -> list[int]:
    """Return the seats that workers are started for."""
    return [command.seat for command in commands if isinstance(command, Spawn)]


def answer(pool: Dispatcher, worker: int, call: Call, now: float = 0) -> list[Command]:
    """Have a worker answer a call."""
    return pool.replied(worker, [(call.id, ANSWER)], now)


# More seats.


def test_a_new_seat_gets_a_worker_at_once() -> None:
    """It serves as soon as it is ready, and until then the pool is being resized."""
    pool = running_pool(1)
    _running, waiting = submitted(pool, 2)
    assert pool.resize(3, 0) == [Spawn(2, 1), Spawn(3, 2)]
    assert (pool.seats, pool.resizing) == (3, True)
    assert pool.ready(2, 0) == [Send(2, waiting)]
    assert pool.resizing
    pool.ready(3, 0)
    assert not pool.resizing


def test_the_same_number_changes_nothing() -> None:
    """There is nothing to wait for, either."""
    pool = running_pool(2)
    assert pool.resize(2, 0) == []
    assert not pool.resizing


def test_what_was_sent_ahead_is_taken_back_for_a_new_worker() -> None:
    """A pool of one seat has no other, until it has."""
    pool = running_pool(1, depth=2)
    submitted(pool, 2)
    pool.resize(2, 0)
    assert pool.ready(2, 0) == [Recall(1)]


def test_a_worker_that_is_recycled_meanwhile_does_not_hold_up_the_resize() -> None:
    """A pool that replaces its workers all the time would never have all of them ready at once."""
    pool = running_pool(1, policy=RecyclePolicy(1))
    pool.resize(2, 0)
    (call,) = submitted(pool, 1)
    pool.ready(2, 0)
    answer(pool, 1, call)
    assert pool.workers[3].phase is WorkerPhase.STARTING
    assert not pool.resizing


def test_a_new_worker_that_is_no_good_is_replaced_as_ever() -> None:
    """Later and later, and in the end the pool is broken."""
    pool, now, worker = running_pool(1), 0.0, 2
    assert pool.resize(2, 0) == [Spawn(2, 1)]
    for _ in range(FAILURE_BUDGET + 2):
        assert pool.phase is PoolPhase.RUNNING
        assert pool.resizing
        pool.unfit(worker, UNFIT, now)
        commands = pool.died(worker, 100, 1, now)
        if not commands:
            now = pool.deadline() or now
            commands = pool.tick(now)
        worker += 1
    assert pool.phase is PoolPhase.BROKEN
    assert pool.broken().__cause__ is UNFIT


def test_the_error_tells_how_many_were_lost_though_the_pool_has_become_smaller() -> None:
    """Fewer are borne in a smaller pool, but they were as many as they were."""
    pool, now, lost = running_pool(4), 0.0, 0
    while lost < FAILURE_BUDGET + 2:
        now = pool.deadline() or now
        pool.tick(now)
        for worker in [*pool.workers][:2]:
            pool.died(worker, 100, KILLED, now)
            lost += 1
    pool.resize(1, now)
    pool.tick(pool.deadline() or now)
    (worker,) = [number for number, worker in pool.workers.items() if worker.phase is not WorkerPhase.KILLED]
    pool.died(worker, 100, KILLED, now)
    assert pool.phase is PoolPhase.BROKEN
    assert str(pool.broken()).startswith(f"{lost + 1} workers")


# Fewer seats.


def test_the_highest_seats_are_closed_and_their_idle_workers_dismissed() -> None:
    """Nobody takes their place, and so they are not recycled."""
    pool = running_pool(3)
    assert pool.resize(1, 0) == [Dismiss(3), Dismiss(2)]
    assert (pool.seats, pool.idle, pool.resizing) == (1, 1, True)
    pool.died(3, 103, 0, 0)
    assert pool.resizing
    assert pool.died(2, 102, 0, 0) == []
    assert not pool.resizing


def test_a_worker_that_starts_for_a_closed_seat_is_killed() -> None:
    """What it says after that does not count, nor does its end."""
    pool = running_pool(1)
    pool.resize(2, 0)
    assert pool.resize(1, 0) == [Kill(2)]
    assert pool.ready(2, 0) == []
    assert pool.died(2, 102, KILLED, 0) == []
    assert (pool.idle, pool.resizing, pool.deadline()) == (1, False, None)


def test_an_unfit_worker_of_a_closed_seat_is_left_alone_on_its_way_out() -> None:
    """It is killed only if that takes too long; that it was no good still counts."""
    pool = running_pool(1)
    pool.resize(2, 0)
    pool.unfit(2, UNFIT, 0)
    assert pool.resize(1, 0) == []
    assert pool.resizing
    assert pool.tick(pool.deadline() or 0) == [Kill(2)]
    assert pool.died(2, 102, KILLED, 0) == []
    assert not pool.resizing


def test_an_unfit_worker_of_a_closed_seat_does_not_have_it_again() -> None:
    """The seat that comes again gets another one at once."""
    pool = running_pool(1)
    pool.resize(2, 0)
    pool.unfit(2, UNFIT, 0)
    pool.resize(1, 0)
    assert pool.resize(2, 0) == [Spawn(3, 1)]
    assert pool.died(2, 102, 1, 0) == []


def test_a_busy_worker_of_a_closed_seat_finishes_its_call() -> None:
    """Then it goes, and has no successor, though others wait."""
    pool = running_pool(2)
    first, second, waiting = submitted(pool, 3)
    assert pool.resize(1, 0) == []
    assert pool.workers[1].phase is WorkerPhase.BUSY
    assert pool.workers[2].phase is WorkerPhase.RETIRING
    assert answer(pool, 2, first) == [Finish(first, ANSWER), Dismiss(2)]
    assert answer(pool, 1, second) == [Finish(second, ANSWER), Send(1, waiting)]


def test_what_was_sent_ahead_to_a_closed_seat_goes_elsewhere() -> None:
    """Before all that waits, and without a second chance for the worker: it stays on its way out."""
    pool = running_pool(2, depth=2)
    first, second, third, fourth = submitted(pool, 4)
    assert [pool.workers[number].calls[0] for number in (2, 1)] == [first, second]
    commands = pool.resize(1, 0)
    behind = pool.workers[2].calls[1]
    assert behind in (third, fourth)
    assert commands == [Recall(2)]
    assert pool.recalled(2, [behind.id], 0) == []
    assert pool.workers[2].phase is WorkerPhase.RETIRING
    assert Send(1, behind) in answer(pool, 1, second)


def test_a_worker_that_had_not_begun_anything_leaves_a_closed_seat_at_once() -> None:
    """All that it had comes back."""
    pool = running_pool(2, depth=2)
    calls = submitted(pool, 4)
    ids = [call.id for call in pool.workers[2].calls]
    pool.resize(1, 0)
    assert Dismiss(2) in pool.recalled(2, ids, 0)
    assert all(call.verdict is None for call in calls)


def test_the_successor_in_a_closed_seat_goes_before_the_one_who_is_spent() -> None:
    """Or it would take the seat."""
    pool = running_pool(2, policy=RecyclePolicy(1))
    (first,) = submitted(pool, 1)
    assert pool.resize(1, 0) == [Kill(3)]
    assert answer(pool, 2, first) == [Finish(first, ANSWER), Dismiss(2)]
    (second,) = submitted(pool, 1)
    assert pool.ready(4, 0) == []
    assert answer(pool, 1, second) == [Finish(second, ANSWER), Dismiss(1, RecycleReason.CALLS)]


def test_a_ready_successor_in_a_closed_seat_is_dismissed() -> None:
    """It has nothing in hand."""
    pool = running_pool(2, policy=RecyclePolicy(1))
    submitted(pool, 1)
    pool.ready(3, 0)
    assert pool.resize(1, 0) == [Dismiss(3)]


def test_a_call_that_dies_in_a_closed_seat_is_tried_again_in_another() -> None:
    """As anywhere."""
    pool = running_pool(2)
    (call,) = submitted(pool, 1, limits=Limits(retries=1))
    pool.resize(1, 0)
    assert pool.died(2, 102, KILLED, 0) == [Send(1, call)]


def test_a_call_that_runs_in_a_closed_seat_can_be_cancelled_and_timed() -> None:
    """Its worker is killed for it, and not replaced."""
    pool = running_pool(2)
    (call,) = submitted(pool, 1)
    pool.resize(1, 0)
    assert pool.cancel(call, 0) == [Kill(2)]
    assert pool.died(2, 102, KILLED, 0) == [Finish(call, CANCELLED)]
    assert not pool.resizing


# Seats that come again.


def test_a_seat_that_comes_again_is_its_busy_workers_still() -> None:
    """Another worker there could run a call beside it that has the same seat's number."""
    pool = running_pool(2)
    first, second = submitted(pool, 2)
    pool.resize(1, 0)
    assert pool.resize(2, 0) == []
    assert not pool.resizing
    assert pool.workers[2].phase is WorkerPhase.BUSY
    assert answer(pool, 2, first) == [Finish(first, ANSWER)]
    assert pool.idle == 1
    assert answer(pool, 1, second) == [Finish(second, ANSWER)]
    assert pool.idle == 2


def test_a_spent_worker_whose_seat_comes_again_gets_a_successor() -> None:
    """Its own was killed."""
    pool = running_pool(2, policy=RecyclePolicy(1))
    (call,) = submitted(pool, 1)
    pool.resize(1, 0)
    assert pool.resize(2, 0) == [Spawn(4, 1)]
    assert answer(pool, 2, call) == [Finish(call, ANSWER), Dismiss(2, RecycleReason.CALLS)]


def test_a_worker_that_gives_back_while_its_seat_comes_again_stays() -> None:
    """It gets calls again."""
    pool = running_pool(2, depth=2)
    submitted(pool, 4)
    ids = [call.id for call in pool.workers[2].calls]
    assert Recall(2) in pool.resize(1, 0)
    pool.resize(2, 0)
    assert Send(2, next(call for call in pool.workers[2].calls if call.id == ids[0])) in pool.recalled(2, ids, 0)


def test_a_seat_that_comes_again_after_its_worker_has_gone_is_new() -> None:
    """The old worker may still be on its way out."""
    pool = running_pool(2)
    pool.resize(1, 0)
    assert pool.resize(2, 0) == [Spawn(3, 1)]
    assert pool.died(2, 102, 0, 0) == []
    assert pool.resizing
    pool.ready(3, 0)
    assert not pool.resizing


# Only while the pool runs.


@pytest.mark.parametrize("end", [Dispatcher.close, Dispatcher.terminate])
def test_a_pool_that_ends_keeps_its_seats(end: object) -> None:
    """Nobody is started or dismissed for another number."""
    pool = running_pool(2)
    submitted(pool, 2)
    assert callable(end)
    end(pool, 0)
    assert pool.resize(3, 0) == []
    assert pool.seats == 2


def test_a_pool_that_is_not_started_keeps_its_seats() -> None:
    """It is to start with those that it was made with."""
    pool = Dispatcher(2, RecyclePolicy())
    assert pool.resize(3, 0) == []
    assert spawned(pool.start(0)) == [0, 1]
    assert pool.resize(1, 0) == []


def test_a_pool_that_is_closed_while_a_closed_seat_is_busy_ends_after_that() -> None:
    """As after any other call."""
    pool = running_pool(2)
    (call,) = submitted(pool, 1)
    pool.resize(1, 0)
    assert pool.close(0) == [Dismiss(1)]
    pool.died(1, 101, 0, 0)
    answer(pool, 2, call)
    assert pool.phase is PoolPhase.CLOSING
    pool.died(2, 102, 0, 0)
    assert pool.phase is PoolPhase.CLOSED


# Workers that have nothing to do.


def test_without_a_limit_nobody_goes() -> None:
    """And nothing is to be waited for."""
    pool = running_pool(3)
    assert pool.deadline() is None
    assert pool.tick(10**9) == []


def test_idle_workers_go_down_to_the_minimum() -> None:
    """They are not recycled. Then nothing is to be waited for."""
    pool = running_pool(3, least=1)
    assert pool.deadline() == REST
    assert pool.tick(REST - 0.1) == []
    assert pool.tick(REST) == [Dismiss(1), Dismiss(2)]
    for worker in (1, 2):
        assert pool.died(worker, 100, 0, REST) == []
    assert (pool.idle, pool.deadline(), pool.tick(10**9)) == (1, None, [])


def test_a_pool_may_be_left_by_all() -> None:
    """It rests then, until a call comes."""
    pool = running_pool(2, least=0)
    assert not pool.resting
    pool.tick(REST)
    assert pool.resting
    assert spawned(pool.submit(Call("job", b"arguments", lambda _: None), REST)) == [0]
    assert not pool.resting


def test_the_warm_worker_stays_busy_and_the_others_go() -> None:
    """Whoever was idle last serves next."""
    pool = running_pool(2, least=1)
    for now in (3.0, 6.0, 9.0):
        (call,) = submitted(pool, 1, now)
        assert answer(pool, 2, call, now) == [Finish(call, ANSWER)]
    assert pool.deadline() == REST
    assert pool.tick(REST) == [Dismiss(1)]
    pool.died(1, 101, 0, REST)
    assert pool.deadline() is None


def test_a_minimum_that_is_busy_lets_all_others_go() -> None:
    """It counts who is ready, not who is idle."""
    pool = running_pool(3, least=2)
    submitted(pool, 2)
    assert pool.tick(REST) == [Dismiss(1)]


def test_who_is_not_ready_yet_does_not_count_for_the_minimum() -> None:
    """It may turn out to be no good."""
    pool = running_pool(2, least=1)
    assert pool.died(2, 102, KILLED, 1) == [Spawn(3, 1)]
    assert pool.deadline() == 1 + START_TIMEOUT
    assert pool.tick(REST) == []
    pool.ready(3, REST + 1)
    assert pool.deadline() == REST
    assert pool.tick(REST + 1) == [Dismiss(1)]


def test_the_start_is_not_idleness() -> None:
    """A worker that is ready early has not had the chance to do anything."""
    pool = Dispatcher(2, RecyclePolicy(), idling=IdlePolicy(REST, 0))
    pool.start(0)
    pool.ready(1, 0)
    assert pool.tick(REST + 1) == []
    pool.ready(2, REST + 2)
    assert pool.deadline() == 2 * REST + 2


def test_seats_are_woken_for_as_many_calls_as_wait() -> None:
    """At once, and not one after the other; a worker that starts anyhow is as good."""
    pool = running_pool(4, least=1)
    pool.tick(REST)
    (running,) = submitted(pool, 1, REST)
    assert [command.worker for command in pool.submit(Call("a", b"", lambda _: None), REST) if command] == [5]
    assert spawned(pool.submit(Call("b", b"", lambda _: None), REST)) == [1]
    assert spawned(answer(pool, 4, running, REST)) == []
    assert spawned(pool.submit(Call("c", b"", lambda _: None), REST)) == []
    assert spawned(pool.submit(Call("d", b"", lambda _: None), REST)) == [2]


def test_calls_that_come_back_wake_seats_too() -> None:
    """Three calls of a worker that dies before it has read them, and nobody else is there."""
    pool = running_pool(3, depth=3, least=1)
    submitted(pool, 9)
    calls = [list(worker.calls) for worker in pool.workers.values()]
    for number in (2, 3):
        for call in calls[number - 1]:
            answer(pool, number, call)
    pool.recalled(1, [], 0)
    pool.tick(REST)
    assert pool.idle == 0
    assert spawned(pool.died(1, 101, KILLED, REST, unseen=3)) == [0, 1, 2]


def test_nothing_is_sent_behind_a_call_while_a_seat_is_dormant() -> None:
    """Two calls may wait for one another, and a worker could be had."""
    pool = running_pool(3, depth=3, least=1)
    pool.tick(REST)
    submitted(pool, 1, REST)
    (second,) = submitted(pool, 1, REST)
    assert len(pool.workers[3].calls) == 1
    assert Send(4, second) in pool.ready(4, REST)


def test_what_was_sent_behind_a_call_when_the_last_seat_was_woken_is_taken_back() -> None:
    """As for any worker that is on its way: what waits is maybe done before that."""
    pool = running_pool(2, depth=3, least=1)
    pool.tick(REST)
    _first, second, third = submitted(pool, 3, REST)
    assert [*pool.workers[2].calls][1:] == [second, third]
    assert pool.ready(3, REST) == [Recall(2)]
    assert pool.recalled(2, [second.id, third.id], REST)[0] == Send(3, second)


def test_a_dormant_seat_is_not_filled_before_its_time_after_losses() -> None:
    """Calls wait as long as no worker may be started."""
    pool = running_pool(2, least=1)
    pool.tick(REST)
    pool.died(1, 101, 0, REST)
    pool.died(2, 102, KILLED, REST)
    assert pool.died(3, 103, KILLED, REST) == []
    assert submitted(pool, 2, REST)
    wait = pool.deadline()
    assert wait is not None
    assert spawned(pool.tick(wait)) == [0, 1]


def test_an_idle_worker_whose_successor_is_on_the_way_takes_that_along() -> None:
    """The seat needs neither."""
    pool = running_pool(2, least=1, policy=RecyclePolicy(max_age=REST - 1))
    assert pool.tick(REST - 1) == [Spawn(3, 0), Spawn(4, 1)]
    assert pool.tick(REST) == [Kill(3), Dismiss(1)]


def test_a_successor_rests_for_as_long_as_its_predecessor() -> None:
    """Or no worker would ever be idle for long where they do not get as old as that."""
    pool = running_pool(2, least=1, policy=RecyclePolicy(max_age=REST / 2))
    pool.tick(REST / 2)
    assert pool.ready(3, REST / 2 + 1) == [Dismiss(1, RecycleReason.AGE)]
    assert pool.ready(4, REST / 2 + 1) == [Dismiss(2, RecycleReason.AGE)]
    assert pool.tick(REST) == [Dismiss(3)]


def test_a_worker_rests_from_when_it_is_ready() -> None:
    """Before that it could have done nothing."""
    pool = running_pool(1, least=0)
    pool.died(1, 101, KILLED, 4)
    pool.ready(2, 5)
    assert pool.deadline() == 5 + REST


def test_a_lost_worker_is_replaced_though_nobody_needs_it() -> None:
    """Only idleness leaves a seat vacant."""
    pool = running_pool(2, least=0)
    assert pool.died(2, 102, KILLED, 0) == [Spawn(3, 1)]


def test_a_dormant_pool_that_is_closed_runs_what_waits() -> None:
    """A seat is woken for each call that waits, as far as there are seats, and when workers may be started."""
    pool = running_pool(3, least=0)
    pool.tick(REST)
    for worker in (1, 2, 3):
        pool.died(worker, 100, 0, REST)
    submitted(pool, 1, REST)
    for worker in (4, 5):
        pool.died(worker, 100, KILLED, REST)
    submitted(pool, 1, REST)
    assert pool.close(REST) == []
    assert spawned(pool.tick(pool.deadline() or 0)) == [0, 1]
    assert pool.phase is PoolPhase.CLOSING


def test_a_dormant_pool_that_is_closed_ends() -> None:
    """There is nobody to wait for."""
    pool = running_pool(1, least=0)
    pool.tick(REST)
    pool.died(1, 101, 0, REST)
    pool.close(REST)
    assert pool.phase is PoolPhase.CLOSED


# Both.


def test_a_dormant_seat_can_be_closed() -> None:
    """There is nobody to go."""
    pool = running_pool(2, least=1)
    first, second = submitted(pool, 2)
    answer(pool, 2, first)
    answer(pool, 1, second, 1)
    assert pool.tick(REST) == [Dismiss(2)]
    assert pool.resize(1, REST) == []
    assert spawned(pool.resize(2, REST)) == [1]


def test_a_pool_that_is_left_without_its_dormant_seats_sends_ahead() -> None:
    """Nobody else could be had."""
    pool = running_pool(2, depth=2, least=1)
    first, second = submitted(pool, 2)
    answer(pool, 2, first)
    answer(pool, 1, second, 1)
    pool.tick(REST)
    pool.resize(1, REST)
    submitted(pool, 2, REST)
    assert len(pool.workers[1].calls) == 2


def test_closing_the_only_seat_that_is_awake_wakes_another() -> None:
    """Though its worker has a call yet, and its seat comes again with it."""
    pool = running_pool(2, least=1)
    pool.tick(REST)
    submitted(pool, 1, REST)
    assert pool.resize(1, REST) == [Spawn(3, 0)]
    assert pool.resize(2, REST) == []


def test_dormant_seats_are_woken_up_to_the_minimum_when_others_are_closed() -> None:
    """The seats that are left are those with the lowest numbers, and maybe just those have nobody."""
    pool = running_pool(4, least=2)
    assert pool.tick(REST) == [Dismiss(1), Dismiss(2)]
    assert pool.resize(3, REST) == [Dismiss(4), Spawn(5, 0)]
    assert pool.resize(2, REST) == [Dismiss(3), Spawn(6, 1)]


def test_a_pool_below_its_minimum_keeps_all_workers() -> None:
    """Until it is larger again."""
    pool = running_pool(3, least=2)
    pool.resize(1, 0)
    for worker in (2, 3):
        pool.died(worker, 100, 0, 0)
    assert pool.deadline() is None
    assert pool.tick(REST) == []
    assert pool.idle == 1


def test_workers_of_new_seats_go_too_when_they_have_nothing_to_do() -> None:
    """They were wanted; now they have had their time."""
    pool = running_pool(1, least=1)
    pool.resize(2, 1)
    pool.ready(2, 2)
    assert pool.deadline() == REST
    assert pool.tick(REST) == [Dismiss(1)]
    assert pool.deadline() == REST + 5
    pool.died(1, 101, 0, REST)
    assert pool.deadline() is None


def test_a_death_in_a_closed_seat_names_its_call() -> None:
    """As anywhere, and nobody follows."""
    pool = running_pool(2)
    (call,) = submitted(pool, 1)
    pool.resize(1, 0)
    (finish,) = pool.died(2, 102, KILLED, 0)
    assert isinstance(finish, Finish)
    assert isinstance(finish.outcome, WorkerDied)
    assert finish.outcome.call == call.name


def test_a_broken_pool_is_not_resized() -> None:
    """Nobody could serve in it."""
    pool = running_pool(1, least=0)
    pool._give_up(UNFIT)
    assert pool.resize(2, 0) == [Dismiss(1)]
    assert pool.seats == 1
    assert isinstance(pool.broken(), BrokenPool)
