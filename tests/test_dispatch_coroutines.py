"""The dispatcher with coroutines, step by step, in the model's world, which judges each decision."""

from __future__ import annotations

import pytest

from aiopool.calls import CANCELLED, STOP_GRACE, CallKind, Limits, Reply
from aiopool.decisions import OVERDUE
from aiopool.exceptions import CallTimeout, WorkerDied
from aiopool.recycling import RecyclePolicy
from dispatch_facts import Process, Ticket
from dispatch_world import World

LONG = 10.0


def world(
    seats: int, concurrency: int, *, depth: int = 10, grace: float = 0.0, policy: RecyclePolicy | None = None
) -> World:
    """Return one whose workers are ready."""
    made = World(seats, concurrency=concurrency, depth=depth, grace=grace, policy=policy)
    made.start()
    for process in list(made.processes.values()):
        made.become_ready(process)
    return made


def submit(
    made: World,
    count: int = 1,
    *,
    kind: CallKind = CallKind.COROUTINE,
    seconds: float = LONG,
    limits: Limits = Limits(),  # noqa: B008
) -> list[Ticket]:
    """Submit so many calls."""
    for _ in range(count):
        made.submit(kind=kind, seconds=seconds, limits=limits)
        made.check()
    return made.tickets[-count:]


def begin_all(made: World) -> None:
    """Have workers begin what they have a place for."""
    for process in made.processes.values():
        while process.inbox and len(process.running) < process.width:
            made.begin(process)


def sizes(made: World) -> list[int]:
    """Return how many calls each worker has."""
    return sorted(len(process.held) for process in made.processes.values())


def of(made: World, ticket: Ticket) -> Process:
    """Return which worker has a call."""
    return next(process for process in made.processes.values() if ticket in process.held)


def test_places_are_filled_evenly_and_the_rest_waits() -> None:
    """First workers that have nothing, then those with the fewest."""
    made = world(2, 3)
    submit(made, 5)
    assert sizes(made) == [2, 3]
    submit(made, 4)
    assert sizes(made) == [3, 3]
    assert made.dispatcher.waiting == 3


def test_answers_come_in_any_order() -> None:
    """Each makes room for the next."""
    made = world(1, 3)
    submit(made, 5)
    begin_all(made)
    process = made.processes[1]
    for which in (2, 0, 1, 1, 0):
        made.answer(process, which)
        made.deliver_all(process)
        made.check()
        begin_all(made)
    assert all(isinstance(ticket.decided, Reply) for ticket in made.tickets)


def test_a_function_waits_for_a_worker_of_its_own() -> None:
    """And what comes behind it waits, too: nobody overtakes."""
    made = world(1, 2)
    submit(made)
    (function,) = submit(made, kind=CallKind.FUNCTION)
    (behind,) = submit(made)
    begin_all(made)
    assert sizes(made) == [1]
    process = made.processes[1]
    made.answer(process)
    made.deliver_all(process)
    assert list(process.held) == [function]
    begin_all(made)
    made.answer(process)
    made.deliver_all(process)
    assert list(process.held) == [behind]


def test_short_coroutines_are_sent_ahead_and_taken_back_when_another_worker_has_a_place() -> None:
    """Which may be busy itself."""
    made = world(2, 2)
    submit(made, 8, seconds=0.0)
    assert sum(sizes(made)) == 8
    begin_all(made)
    one, other = sorted(made.processes.values(), key=lambda process: len(process.held))
    behind = len(other.held) - 2
    assert behind > 0
    for _ in range(len(one.held)):
        made.answer(one)
        made.deliver_all(one)
        made.check()
        assert len(one.held) >= 2, "what was behind those in the other could begin here"


def test_what_is_behind_long_coroutines_is_taken_back() -> None:
    """When others are answered, and these are not."""
    made = world(2, 2)
    submit(made, 10, seconds=0.0)
    begin_all(made)
    one, other = made.processes.values()
    made.stall(2 * OVERDUE)
    made.answer(one)
    made.deliver_all(one)
    made.check()
    assert len(other.held) == 2


def test_cancelling_one_leaves_the_others_alone() -> None:
    """It has a second where there is no grace; then its worker is killed, and the others hear why."""
    made = world(1, 3)
    first, second, third = submit(made, 3)
    begin_all(made)
    made.cancel(second)
    made.check()
    process = of(made, second)
    assert second.interrupted
    assert not process.killed
    made.wait(STOP_GRACE)
    assert process.killed
    made.die(process)
    assert second.decided is CANCELLED
    for ticket in (first, third):
        assert isinstance(ticket.decided, WorkerDied)
        assert second.call.name in str(ticket.decided)


def test_what_is_not_begun_runs_elsewhere_before_another_is_interrupted() -> None:
    """Its worker may have to be killed."""
    made = world(2, 3)
    first = submit(made)[0]
    begin_all(made)
    tickets = submit(made, 3)
    beside = next(ticket for ticket in tickets if of(made, ticket) is of(made, first))
    made.cancel(first)
    made.check()
    assert of(made, beside) is not of(made, first)


def test_each_has_its_own_time_limit() -> None:
    """Counted from when its worker says that it begins."""
    made = world(1, 2, grace=1.0)
    short, long = submit(made, limits=Limits(timeout=1.0)) + submit(made, limits=Limits(timeout=5.0))
    begin_all(made)
    process = made.processes[1]
    made.deliver_all(process)
    made.wait(1.0)
    made.check()
    assert short.interrupted
    assert not long.interrupted
    made.answer(process)
    made.deliver_all(process)
    assert isinstance(short.decided, CallTimeout)
    assert long.decided is None


def test_a_worker_that_has_served_enough_waits_for_all_that_run() -> None:
    """Each coroutine counts."""
    made = world(1, 2, policy=RecyclePolicy(3))
    submit(made, 5)
    begin_all(made)
    process = made.processes[1]
    made.answer(process)
    made.deliver_all(process)
    begin_all(made)
    assert process.spent
    assert len(process.held) == 2
    made.answer(process)
    made.deliver_all(process)
    assert not process.dismissed
    made.answer(process)
    made.deliver_all(process)
    assert process.dismissed
    made.check()


@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_a_death_ends_what_was_begun(unseen: int) -> None:
    """And what was not goes elsewhere."""
    made = world(1, 3)
    tickets = submit(made, 3)
    process = made.processes[1]
    for _ in range(3 - unseen):
        made.begin(process)
    made.die(process)
    made.check()
    assert [isinstance(ticket.decided, WorkerDied) for ticket in tickets] == [n < 3 - unseen for n in range(3)]


def test_a_time_limit_counts_from_when_there_is_a_place() -> None:
    """Also for what was sent ahead, and whichever has made room for it."""
    made = world(1, 2)
    submit(made, 4, seconds=0.0, limits=Limits(timeout=1.0))
    begin_all(made)
    process = made.processes[1]
    made.answer(process, 1)
    made.deliver_all(process)
    made.check()
    assert [ticket.deadline is None for ticket in process.held] == [False, False, True]
