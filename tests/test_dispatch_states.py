"""The dispatcher in every order of events, against a small model of the world around it.

`dispatch_world` is that world, and says what may happen in it. `Machine` draws what happens next.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aiopool.calls import CallKind, Limits
from aiopool.phases import PoolPhase
from aiopool.recycling import IdlePolicy, RecyclePolicy
from dispatch_facts import (
    Heavy,
    Process,
    Suits,
    able,
    anyone,
    eager,
    fresh,
    heard,
    interrupted,
    running,
    seated,
    timed,
    unproven,
    unwanted,
    up,
    working,
)
from dispatch_world import World

pytestmark = pytest.mark.once

REACTIONS = (None,) * 12 + ("submit",) * 4 + ("cancel", "replace", "replace") + ("close", "terminate")

VICTIMS = ("unfinished", "held", "held", "first", "first", "behind", "behind", "any")
TRAPS = ((False, False),) * 3 + ((True, False), (False, True), (True, True), (True, True))
MISHAPS = ("dies",) * 5 + ("garbles",) * 2 + ("sees nothing",) * 2 + ("deadly",) * 2 + ("is unfit", "is lost")

TIMED, RETRIED = Limits(timeout=2.0), Limits(retries=1)
MENUS = [
    [Limits()],
    [TIMED],
    [TIMED, Limits(timeout=0.5), Limits()],
    [RETRIED, Limits(retries=2), Limits()],
    [TIMED, RETRIED, Limits(timeout=2.0, retries=1)],
]
"""The limits that the calls of a pool may have."""

POLICIES = [RecyclePolicy(limit) for limit in (None, 1, 2, 5, 5)] + [
    RecyclePolicy(max_age=20.0),
    RecyclePolicy(2, max_age=20.0, jitter=0.5),
    RecyclePolicy(5, max_age=3.0, jitter=1.0),
]

IDLING = [IdlePolicy()] * 4 + [IdlePolicy(5.0, 1), IdlePolicy(0.1, 0), IdlePolicy(20.0, 2), IdlePolicy(0.5, 0)]

FUNCTION, COROUTINE = CallKind.FUNCTION, CallKind.COROUTINE
KINDS_OF_CALLS = [
    (FUNCTION,),
    (COROUTINE,),
    (COROUTINE,),
    (FUNCTION, COROUTINE),
    (COROUTINE, COROUTINE, CallKind.GENERATOR),
]
"""What the calls of a pool may be."""

MOODS = [
    frozenset[str](),
    frozenset({"end"}),
    frozenset({"end", "resize"}),
    frozenset({"end", "mishap", "nonsense", "lie"}),
    frozenset({"end", "cancel", "withdraw"}),
    frozenset({"end", "mishap", "wait"}),
]
"""What does not happen to a pool: not everything happens to each."""


class Event(NamedTuple):
    """Something that may happen: the name of a method of `Machine`, and the arguments."""

    name: str
    how: tuple[Any, ...]


KINDS: list[str] = []
"""Names of events, each as often as its weight says."""

HOWS: dict[str, list[tuple[Any, ...]]] = {}
CONDITIONS: dict[str, Callable[[World], bool]] = {}
Method = TypeVar("Method", bound=Callable[..., None])


def event(weight: int, *axes: Iterable[object], when: Callable[[World], bool] = bool) -> Callable[[Method], Method]:
    """Have a method be one of the events, with any of these arguments, where it can happen.

    With a rule for each event, hypothesis takes most of the time for its draws, and it switches half of the rules
    off in each run, which is too many where all of them are to play together.
    """

    def register(method: Method) -> Method:
        KINDS.extend([method.__name__] * weight)
        HOWS[method.__name__] = list(itertools.product(*axes))
        CONDITIONS[method.__name__] = when
        return method

    return register


def events() -> st.SearchStrategy[Event]:
    """Draw one of all events. Hypothesis prefers small numbers, but not up to 127."""
    assert len(KINDS) < 128

    def choose(kind: str, high: int, low: int) -> Event:
        return Event(kind, HOWS[kind][(128 * high + low) % len(HOWS[kind])])

    return st.builds(choose, st.sampled_from(KINDS), st.integers(0, 127), st.integers(0, 127))


def is_there(suits: Suits) -> Callable[[World], bool]:
    """Return whether there is a process that suits."""
    return lambda world: any(map(suits, world.processes.values()))


PIECE = 2**-12
"""Seconds: four of these are soon done, five are not, and sums of them are exact."""

PACES = [(0.0,), (0.0,), (0.0, PIECE, 2 * PIECE), (0.0, PIECE, math.inf)]
"""How long calls should take."""


class Machine(RuleBasedStateMachine):
    """Draws what happens in a `World`."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(1)
        self.menu, self.paces, self.mood = MENUS[0], PACES[0], MOODS[0]
        self.hasty = False
        self.kinds = KINDS_OF_CALLS[0]

    @initialize(
        size=st.sampled_from(list(itertools.product((1, 2, 3), (1, 2, 3, 3), (0.0, 1.0)))),
        reserve=st.sampled_from((0, 0, 1, 2)),
        policy=st.sampled_from(POLICIES),
        idling=st.sampled_from(IDLING),
        menu=st.sampled_from(MENUS),
        paces=st.sampled_from(PACES),
        mood=st.sampled_from(MOODS),
        begins=st.sampled_from(["running"] * 9 + ["starting"] * 3 + ["unfit", "new"]),
        hasty=st.booleans(),
        concurrency=st.sampled_from((1, 2, 3, 3, 4)),
        kinds=st.sampled_from(KINDS_OF_CALLS),
    )
    def set_up(
        self,
        *,
        size: tuple[int, int, float],
        reserve: int,
        policy: RecyclePolicy,
        idling: IdlePolicy,
        menu: list[Limits],
        paces: tuple[float, ...],
        mood: frozenset[str],
        begins: str,
        hasty: bool,
        concurrency: int,
        kinds: tuple[CallKind, ...],
    ) -> None:
        """A pool, mostly one that runs already."""
        seats, depth, grace = size
        self.menu, self.paces, self.mood, self.hasty, self.kinds = menu, paces, mood, hasty, kinds
        self.world = World(
            seats, depth=depth, reserve=reserve, policy=policy, grace=grace, idling=idling, concurrency=concurrency
        )
        if begins != "new":
            self.world.start()
        if begins == "running":
            self.become_ready_all()
        elif begins == "unfit":
            self.world.become_unfit(self.some(fresh, 0))

    def some(self, suits: Suits, pick: int) -> Process:
        """Choose one of the processes that suit."""
        found = list(filter(suits, self.world.processes.values()))
        return found[pick % len(found)]

    # Users.

    @event(2, when=lambda world: world.phase is PoolPhase.NEW)
    def start(self) -> None:
        """The pool starts."""
        self.world.start()

    @event(
        8,
        (1, 2, 3, 5),
        (1, 1, 1, 2, 3, 7),
        (False, True),
        range(3),
        range(3),
        (False, True, True),
        REACTIONS,
        when=lambda world: world.phase is PoolPhase.RUNNING,
    )
    def submit(
        self, count: int, weight: int, automatic: bool, order: int, pick: int, prompt: bool, reaction: str | None
    ) -> None:
        """Calls arrive. An automatic chunk is never larger than what a fresh worker may serve."""
        if automatic and self.world.policy.maxtasksperchild is not None:
            weight = min(weight, self.world.policy.maxtasksperchild)
        for number in range(count):
            if self.world.phase is PoolPhase.RUNNING:
                limits, also = self.menu[(order + number) % len(self.menu)], None if number else reaction
                seconds = self.paces[(pick + number) % len(self.paces)]
                kind = self.kinds[(pick + order + number) % len(self.kinds)]
                size = 1 if automatic and kind is CallKind.COROUTINE else weight
                self.world.submit(size, automatic=automatic, limits=limits, reaction=also, seconds=seconds, kind=kind)
        if prompt:
            self.begin_all()

    def begin_all(self) -> None:
        """All workers begin their next calls, and it is known."""
        for process in list(self.world.processes.values()):
            if able(process):
                self.world.begin(process)
                self.world.deliver_all(process)

    @event(6, range(12), VICTIMS, (False, True), TRAPS, when=lambda world: bool(world.tickets))
    def cancel(self, pick: int, which: str, late: bool, trap: tuple[bool, bool]) -> None:
        """Somebody cancels a call, mostly one that has not ended, and maybe when its worker has just answered one."""
        held = [process.held for process in self.world.processes.values()]
        tickets = {
            "any": self.world.tickets,
            "unfinished": [ticket for ticket in self.world.tickets if ticket.decided is None],
            "held": [ticket for calls in held for ticket in calls],
            "first": [calls[0] for calls in held if len(calls) > 1],
            "behind": [ticket for calls in held for ticket in list(calls)[1:]],
        }[which]
        if tickets:
            ticket = tickets[pick % len(tickets)]
            for process in filter(running, self.world.processes.values()):
                if late and ticket in process.held:
                    self.world.answer(process)
            if any(trap):
                self.world.quick_to_begin, self.world.slow_to_report = trap
            self.world.cancel(ticket)

    @event(1, range(4), when=lambda world: bool(world.tickets))
    def withdraw(self, pick: int) -> None:
        """Somebody withdraws one of the latest calls."""
        self.world.withdraw(self.world.tickets[-1 - pick % len(self.world.tickets)])

    @event(5, (1, 1, 2, 3, 4, 5), (None, None, 2, 4), when=lambda world: world.phase is PoolPhase.RUNNING)
    def resize(self, seats: int, then: int | None) -> None:
        """The pool is to be larger or smaller, and maybe that is thought better of."""
        self.world.resize(seats)
        if then is not None:
            self.world.resize(then)

    @event(1, ("terminate", "close", "close"), when=lambda world: len(world.tickets) > 5)
    def end(self, how: str) -> None:
        """The pool is closed or terminated; then there is not much left to see."""
        if how == "terminate":
            self.world.terminate()
        else:
            self.world.close()

    # Workers.

    @event(3, range(6), when=is_there(fresh))
    def become_ready(self, pick: int) -> None:
        """A worker is ready; one that is killed may have said so before."""
        self.world.become_ready(self.some(fresh, pick))

    @event(5, when=is_there(fresh))
    def become_ready_all(self) -> None:
        """All workers are ready."""
        for process in list(filter(fresh, self.world.processes.values())):
            self.world.become_ready(process)

    @event(4, range(6), (False, True), when=is_there(able))
    def begin(self, pick: int, known: bool) -> None:
        """A worker begins its next call, and maybe that is known at once."""
        process = self.some(able, pick)
        self.world.begin(process)
        if known:
            self.world.deliver_all(process)

    @event(4, range(6), (False, False, True), range(3), when=is_there(running))
    def answer(self, pick: int, heavy: bool, which: int) -> None:
        """A call returns; its reply is on its way for a while, and maybe the word that the worker is too heavy."""
        self.world.answer(self.some(running, pick), which, heavy=heavy)

    @event(4, range(6), when=is_there(heard))
    def deliver(self, pick: int) -> None:
        """What a worker has said arrives, maybe too late."""
        self.world.deliver(self.some(heard, pick))

    @event(3, range(6), range(1, 5), when=is_there(able))
    def serve(self, pick: int, count: int) -> None:
        """A worker serves its next calls from beginning to end."""
        self.let_serve(self.some(able, pick), count)

    @event(3, range(1, 5), when=is_there(able))
    def serve_all(self, count: int) -> None:
        """All workers do so."""
        for process in list(filter(able, self.world.processes.values())):
            self.let_serve(process, count)
        self.begin_all()

    def let_serve(self, process: Process, count: int) -> None:
        """Let a worker serve so many calls if it has them."""
        for _ in range(count):
            if able(process):
                self.world.begin(process)
                self.world.answer(process)
                self.world.deliver_all(process)

    @event(5, range(6), (0.0, 0.0, 0.25), when=is_there(working))
    def overrun(self, pick: int, late: float) -> None:
        """A call goes on until its time is over, if there is a limit to it."""
        process = self.some(working, pick)
        if able(process):
            self.world.begin(process)
        self.world.deliver_all(process)
        deadlines = [ticket.deadline for ticket in process.held if ticket.deadline is not None]
        if timed(process):
            self.world.now = max(self.world.now, min(deadlines))
            self.world.wait(late)

    @event(4, range(6), ("stops", "stops", "dies", "goes on"), when=is_there(interrupted))
    def react(self, pick: int, how: str) -> None:
        """A call that was interrupted stops in time, or it does not."""
        process = self.some(interrupted, pick)
        if how == "goes on":
            self.world.wait_until_due()
        elif how == "dies":
            self.world.die(process)
        else:
            if able(process):
                self.world.begin(process)
            stopping = [number for number, ticket in enumerate(process.running) if ticket.interrupted]
            if process.running:
                self.world.answer(process, *stopping[:1])
            self.world.deliver_all(process)

    @event(2, range(6), range(8), when=is_there(up))
    def lie(self, pick: int, number: int) -> None:
        """A worker says that it begins a call that may be another's, or over; or that it uses too much memory."""
        process = self.some(up, pick)
        if self.world.tickets and number:
            self.world.claim(process, self.world.tickets[-1 - number % len(self.world.tickets)])
        elif not process.running:
            process.outbox.append(Heavy())

    @event(3, when=is_there(unwanted))
    def be_gone(self) -> None:
        """Workers that were killed or told to leave are gone."""
        for process in list(filter(unwanted, self.world.processes.values())):
            self.world.die(process, 0)

    @event(6, range(6), MISHAPS, (0, 1, -9, None), (0, 1, 2, 3, 7, 7), (False, True), when=is_there(anyone))
    def mishap(self, pick: int, kind: str, exitcode: int | None, count: int, busy: bool) -> None:
        """A worker comes to grief."""
        if kind == "dies":
            self.world.die(self.some(anyone, pick), exitcode, reading=busy)
        elif kind == "garbles" and is_there(seated)(self.world):
            self.world.garble(self.some(seated, pick), count % 3, goes_on=False)
        elif kind == "is unfit" and is_there(fresh)(self.world):
            self.world.become_unfit(self.some(fresh, pick))
        elif kind == "is lost":
            self.lose(count, exitcode, calls=3 if busy else 0)
        elif kind == "sees nothing":
            self.die_unseeing(count)
        elif kind == "deadly":
            self.die_under_calls(count)

    def lose(self, count: int, exitcode: int | None, calls: int) -> None:
        """Workers that have not served yet die, one after the other, and calls arrive while there are fewer."""
        for _ in range(count):
            if is_there(unproven)(self.world):
                self.world.die(self.some(unproven, 0), exitcode)
                while calls and self.world.phase is PoolPhase.RUNNING:
                    calls -= 1
                    self.world.submit()
                self.world.wait_until_due()

    def die_unseeing(self, count: int) -> None:
        """Workers die before they read what they were sent, as do those that get it after them."""
        for _ in range(count):
            if is_there(able)(self.world):
                self.world.die(self.some(able, 0))
                self.become_ready_all()

    def die_under_calls(self, count: int) -> None:
        """Workers die under calls, as do those that try these again."""
        for _ in range(count):
            if is_there(running)(self.world):
                self.world.die(self.some(running, 0))
                self.become_ready_all()
                self.begin_all()

    @event(2, range(6), range(3), (False, True), when=is_there(eager))
    def nonsense(self, pick: int, way: int, known: bool) -> None:
        """A worker sends nonsense, and is at its next call before anybody has read that."""
        process = self.some(eager, pick)
        self.world.garble(process, way, goes_on=True)
        if known:
            self.world.deliver_all(process)

    # The world at large.

    @event(5, (None, None, None, None, 0.0, 0.01, 0.15, 1.0, 6.0, 61.0), (False, False, True))
    def wait(self, seconds: float | None, asleep: bool) -> None:
        """Time passes: so much, or up to what the dispatcher waits for; and maybe nobody looks at the clock."""
        if seconds is None:
            self.world.wait_until_due()
        elif asleep:
            self.world.stall(seconds)
        else:
            self.world.wait(seconds)

    @event(4, range(1, 4), (False, False, True), when=lambda world: world.rest_ends() is not None)
    def rest(self, count: int, worn: bool) -> None:
        """Nothing happens until workers go that have nothing to do; one may be worn by then."""
        for _ in range(count):
            ends = self.world.rest_ends()
            if worn and is_there(up)(self.world):
                self.world.wear_out(self.some(up, count))
            if ends is not None:
                self.world.now = max(self.world.now, ends)
                self.world.wait(0)

    @event(3, range(3), (False, True), (False, True))
    def set_a_trap(self, spawns: int, quick: bool, slow: bool) -> None:
        """The next processes cannot be started; the next recall comes just too late, or before earlier replies."""
        self.world.spawns_to_fail = spawns
        self.world.quick_to_begin, self.world.slow_to_report = quick, slow

    # All that.

    @rule(event=events())
    def happen(self, *, event: Event) -> None:
        """One of the events happens, if it can."""
        if event.name not in self.mood and CONDITIONS[event.name](self.world):
            getattr(self, event.name)(*event.how)

    @invariant()
    def holds(self) -> None:
        """What always holds."""
        self.world.check()

    def teardown(self) -> None:
        """Everything comes to its end."""
        if sys.exc_info()[0] is None:  # a world that has gone wrong would only hide where
            self.world.end(at_once=self.hasty)


SETTINGS = settings(
    max_examples=500,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
)


@pytest.mark.timeout(400)  # it computes for a while, and longer where its coverage is measured
def test_the_dispatcher_keeps_its_promises_in_every_order_of_events() -> None:
    """Whatever happens, in whatever order."""
    run_state_machine_as_test(Machine, settings=SETTINGS)
