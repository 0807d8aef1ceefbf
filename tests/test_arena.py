"""Memory that is used again, when nobody has it any more."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool, arena, parcels, wire
from aiopool.arena import Arena, Block
from aiopool.parcels import Parcel
from aiopool.worker.inbox import Inbox
from worker_side import Late, at_each_place, be_late, descriptors

SIZE = parcels.MAPPED


def parcel_in(memory: Arena, content: bytes = b"x" * SIZE) -> Parcel:
    """Return a parcel that has memory."""
    parcel = Parcel([[content]], memory)
    assert parcel.descriptor is not None
    return parcel


def memory_of(parcel: Parcel) -> int:
    """Return what tells a memory from another, as long as it is there."""
    assert parcel.descriptor is not None
    return os.fstat(parcel.descriptor).st_ino


def is_used_again(memory: Arena, before: int) -> bool:
    """Whether the next parcel has this memory."""
    parcel = parcel_in(memory)
    with contextlib.closing(parcel):
        return memory_of(parcel) == before


def test_memory_is_used_again_with_its_new_content() -> None:
    """However much of it was there before: less, more, and as much again."""
    memory, memories = Arena(), set[int]()
    for size in (2 * SIZE - 64, SIZE + 64, 2 * SIZE, 2 * SIZE - 1, 2 * SIZE):
        for letter in (b"a", b"b", b"c"):
            parcel = parcel_in(memory, letter * size)
            memories.add(memory_of(parcel))
            assert [bytes(part) for part in parcel.parts()] == [letter * size]
            parcel.close()
    assert len(memories) == 1
    memory.close()


def test_what_is_closed_is_taken_for_the_next() -> None:
    """It need not be given back to the system, and taken anew."""
    memory = Arena()
    parcel = parcel_in(memory)
    before = memory_of(parcel)
    assert not memory._kept
    parcel.close()
    assert memory._kept
    assert is_used_again(memory, before)
    with contextlib.closing(parcel_in(memory, b"x" * (SIZE + 64))) as larger:
        assert memory_of(larger) != before  # or small ones would take those that large ones need
    memory.close()


def keep_descriptor(parcel: Parcel) -> Callable[[], object]:
    """Have another descriptor of it."""
    descriptor = os.dup(parcel.descriptor or 0)
    return lambda: os.close(descriptor)


def keep_mapping(parcel: Parcel) -> Callable[[], object]:
    """Have a mapping."""
    mapping = mmap.mmap(parcel.descriptor or 0, 1, access=mmap.ACCESS_COPY)
    return mapping.close


def keep_message(parcel: Parcel) -> Callable[[], object]:
    """Have it sent to somebody who has not received it."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(ends[0], [b"."], [parcel.descriptor or 0])

    def close() -> None:
        for end in ends:
            end.close()

    return close


def keep_in_process(parcel: Parcel) -> Callable[[], object]:
    """Have it mapped by another process, without any descriptor; that one is killed."""
    mapping = mmap.mmap(parcel.descriptor or 0, 1, access=mmap.ACCESS_COPY)
    if not (pid := os.fork()):
        os.closerange(3, 1000)
        signal.pause()
        os._exit(1)
    mapping.close()

    def kill() -> None:
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        os.waitpid(pid, 0)

    return kill


@pytest.mark.parametrize("keep", [keep_descriptor, keep_mapping, keep_message, keep_in_process])
def test_it_is_not_used_again_as_long_as_somebody_has_it(keep: Callable[[Parcel], Callable[[], object]]) -> None:
    """Whatever he has of it; and however that ends, it is."""
    memory = Arena()
    parcel = parcel_in(memory)
    before, give_up = memory_of(parcel), keep(parcel)
    parcel.close()
    other = parcel_in(memory)
    assert memory_of(other) != before
    give_up()
    other.close()
    one, two = parcel_in(memory), parcel_in(memory)
    assert before in (memory_of(one), memory_of(two))
    one.close()
    two.close()
    memory.close()


def test_what_is_not_free_yet_does_not_look_younger(clock: Clock) -> None:
    """It was asked for, and not used."""
    memory = Arena()
    memory.attend(clock)  # type: ignore[arg-type]
    parcel, other = parcel_in(memory), parcel_in(memory)
    give_up = [keep_descriptor(each) for each in (parcel, other)]
    parcel.close()
    clock.now += 0.25
    other.close()
    clock.now += 0.25
    third = parcel_in(memory)
    assert clock.strike() == 1
    assert len(memory._kept) == 1
    assert clock.strike() == 1.25
    assert not memory._kept
    for each in give_up:
        each()
    third.close()
    memory.close()


def test_no_more_than_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used last is."""
    memory = Arena()
    monkeypatch.setattr(arena, "MOST_KEPT", 2 * SIZE)
    few = [parcel_in(memory) for _ in range(3)]
    for parcel in few:
        parcel.close()
    assert sum(block.written for block in memory._kept) == 2 * SIZE
    monkeypatch.setattr(arena, "MOST_KEPT", 1000 * SIZE)
    many = [parcel_in(memory) for _ in range(arena.MOST_BLOCKS + 2)]
    for parcel in many:
        parcel.close()
    assert len(memory._kept) == arena.MOST_BLOCKS
    memory.close()


def test_small_parcels_have_memory_of_their_own() -> None:
    """It is copied by who gets it, and gone."""
    memory = Arena()
    parcel_in(memory, b"x" * (SIZE - 64)).close()
    assert not memory._kept


def test_a_closed_arena_keeps_nothing() -> None:
    """Parcels that it has lent memory to may be there for longer."""
    memory = Arena()
    early, late = parcel_in(memory), parcel_in(memory)
    early.close()
    memory.close()
    assert not memory._kept
    late.close()
    assert not memory._kept


def test_a_forked_child_keeps_nothing() -> None:
    """And leaves the parent's memory alone."""
    memory = Arena()
    parcel, kept = parcel_in(memory), parcel_in(memory)
    kept.close()
    if not (pid := os.fork()):
        os._exit(bool(memory._kept) or parcel.descriptor is not None)
    assert os.waitpid(pid, 0)[1] == 0
    assert memory._kept
    assert [bytes(part) for part in parcel.parts()] == [b"x" * SIZE]
    parcel.close()
    memory.close()


def no_locks(_descriptor: int, _operation: int) -> None:
    """Give a lock to everybody."""


def locks_of_processes(descriptor: int, operation: int) -> None:
    """Give locks that a process has, as those of POSIX are."""
    if operation & fcntl.LOCK_SH:
        return
    if operation & fcntl.LOCK_EX:
        raise BlockingIOError(descriptor)


def refused(*_args: object) -> int:
    """Refuse to do anything."""
    raise PermissionError(*_args)


@pytest.mark.parametrize(
    ("where", "name", "does"),
    [
        (fcntl, "flock", no_locks),
        (fcntl, "flock", locks_of_processes),
        (fcntl, "flock", refused),
        (os, "open", refused),
    ],
)
def test_where_locks_are_not_what_they_should_be_memory_is_new(
    where: Any, name: str, does: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may have others, or no /proc."""
    monkeypatch.setattr(where, name, does)
    memory = Arena()
    assert not memory.works
    with contextlib.closing(parcel_in(memory)) as parcel:
        assert [bytes(part) for part in parcel.parts()] == [b"x" * SIZE]
    assert not memory._kept


def test_where_a_lock_cannot_be_had_any_more_the_parcel_lies_in_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no descriptor is left."""
    memory = Arena()
    assert memory.works
    monkeypatch.setattr(fcntl, "flock", refused)
    parcel = Parcel([[b"x" * SIZE]], memory)
    assert parcel.descriptor is None
    assert bytes(parcel.content) == b"x" * SIZE


class Clock:
    """The time, and a loop that has it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []
        self.closed = False

    def call_soon_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Call it."""
        if self.closed:
            raise RuntimeError("Event loop is closed")
        function(*args)

    def call_later(self, seconds: float, function: Callable[..., object], *args: object) -> None:
        """Keep it for `strike`."""
        self.due.append((self.now + seconds, function, args))

    def strike(self) -> float:
        """Do what is due next, at its time, and return that; there is never more than one thing."""
        ((self.now, function, args),) = self.due
        self.due.clear()
        function(*args)
        return self.now - 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that arenas look at."""
    made = Clock()
    monkeypatch.setattr(arena, "monotonic", lambda: made.now)
    monkeypatch.setattr(arena, "LASTING", 1.0)
    return made


def test_what_is_not_used_for_a_while_is_given_back(clock: Clock) -> None:
    """Each block in its time, and then nobody looks any more."""
    memory = Arena()
    memory.attend(clock)  # type: ignore[arg-type]
    assert not clock.due
    one, other = parcel_in(memory), parcel_in(memory)
    one.close()
    clock.now += 0.25
    other.close()
    assert clock.strike() == 1
    assert memory._kept
    assert clock.strike() == 1.25
    assert not memory._kept
    assert not clock.due


def test_what_is_used_is_not_given_back(clock: Clock) -> None:
    """Until it is not used any more."""
    memory = Arena()
    memory.attend(clock)  # type: ignore[arg-type]
    parcel_in(memory).close()
    clock.now += 0.75
    parcel_in(memory).close()
    assert clock.strike() == 1
    assert memory._kept
    parcel = parcel_in(memory)
    assert clock.strike() == 1.75
    assert not memory._kept
    assert not clock.due
    parcel.close()
    assert clock.strike() == 2.75
    assert not memory._kept


def test_what_is_not_needed_any_more_is_given_back_while_one_goes_on(clock: Clock) -> None:
    """As when many large calls at once are followed by one now and then."""
    memory = Arena()
    memory.attend(clock)  # type: ignore[arg-type]
    many = [parcel_in(memory) for _ in range(5)]
    for parcel in many:
        parcel.close()
    for _ in range(5):
        clock.now += 0.25
        with contextlib.closing(parcel_in(memory)):
            if clock.due[0][0] <= clock.now:
                clock.strike()
    assert len(memory._kept) == 1
    memory.close()


def test_what_was_kept_before_there_was_a_loop_is_given_back_by_it(clock: Clock) -> None:
    """A worker gets one late."""
    memory = Arena()
    parcel_in(memory).close()
    clock.now += 0.25
    memory.attend(clock)  # type: ignore[arg-type]
    assert clock.strike() == 1
    assert not memory._kept


def test_when_the_loop_is_closed_nothing_is_kept(clock: Clock) -> None:
    """Nobody would look."""
    memory = Arena()
    memory.attend(clock)  # type: ignore[arg-type]
    clock.closed = True
    for _ in range(2):
        parcel_in(memory).close()
        assert not memory._kept


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_gives_back_what_it_has_not_used_for_a_while(clock: Clock, *, busy: bool) -> None:
    """While it waits, which it goes on to do; and while one call comes after the other."""
    memory = Arena()
    parcel_in(memory).close()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Poll:
        """Lets time pass; the third time, something comes."""

        def __init__(self) -> None:
            self.asked: list[float | None] = []

        def poll(self, patience: float | None) -> None:
            self.asked.append(patience)
            clock.now += 0.5
            if len(self.asked) == 3:
                wire.send(other, *wire.encode(wire.Kind.DROP))

    with one, other:
        inbox = Inbox(one, memory)
        poll = inbox._poll = Poll()  # type: ignore[assignment]
        if busy:
            for _ in range(3):
                assert memory._kept
                wire.send(other, *wire.encode(wire.Kind.DROP))
                inbox.receive()
                clock.now += 0.5
        else:
            inbox.receive()
            assert poll.asked == [1000, 500, None]
    assert not memory._kept


@pytest.mark.both_loops
async def test_what_a_caller_keeps_stays_as_it_was() -> None:
    """Results that come later have other memory."""
    async with AioPool(1) as pool:
        kept = [await pool.apply(jobs.filled, (number, SIZE)) for number in range(5)]
        assert [bytes(block.data) for block in kept] == [bytes([number]) * SIZE for number in range(5)]
        for number in range(5, 20):
            block = await pool.apply(jobs.filled, (number, SIZE))
            assert bytes(block.data) == bytes([number]) * SIZE
            block.data[:] = b"!" * SIZE  # is the caller's own
        assert [bytes(block.data) for block in kept] == [bytes([number]) * SIZE for number in range(5)]


@pytest.mark.parametrize("job", [jobs.keep_blocks, jobs.keep_blocks_async])
async def test_what_a_job_keeps_stays_as_it_was(job: Callable[..., Any]) -> None:
    """Arguments of later calls have other memory, and what a job writes to its own is nobody else's."""
    async with AioPool(1) as pool:
        for number in range(10):
            block = jobs.Block(bytearray(bytes([number]) * SIZE))
            await pool.apply(job, (block,), {"keep": number % 2 == 0})
            assert bytes(block.data) == bytes([number]) * SIZE
        assert await pool.apply(jobs.kept_blocks) == [(number, number) for number in range(0, 10, 2)]


async def test_a_call_that_is_tried_again_finds_its_argument_as_it_was(tmp_path: Path) -> None:
    """Though others have been sent meanwhile, and the worker had written to it."""
    block = jobs.Block(bytearray(b"x" * SIZE))
    async with AioPool(2) as pool:
        result = pool.options(retries=1).apply_async(
            jobs.overwrite_and_die_unless_tried, (str(tmp_path / "tries"), block)
        )
        others = [pool.apply(jobs.content, (jobs.Block(bytearray(b"y" * SIZE)),)) for _ in range(8)]
        assert set(await asyncio.gather(*others)) == {b"y" * SIZE}
        assert await result == b"x" * SIZE


async def test_a_worker_whose_memory_is_limited_keeps_none() -> None:
    """It would count as the worker's own."""
    async with AioPool(1, max_memory_per_child=10**12) as pool:
        assert not await pool.apply(jobs.has_arena)
    async with AioPool(1) as pool:
        assert await pool.apply(jobs.has_arena)


async def test_pools_give_memory_back_at_their_end() -> None:
    """Not a second later."""
    async with AioPool(1) as pool:
        memory = pool._backend.arena
        assert memory is not None
        await pool.apply(jobs.content, (jobs.Block(bytearray(b"x" * SIZE)),))
        assert memory._kept
    assert not memory._kept


def test_nothing_is_tried_before_there_is_something_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pools never have that."""
    monkeypatch.setattr(arena, "_locks_last", lambda: time.sleep(-1))
    Parcel([[b"x" * 100]], Arena()).close()


def test_what_is_raised_while_memory_is_lent_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal's handler, that is; whatever it raises."""

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    memory = Arena()
    assert memory.works
    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Parcel([[b"x" * SIZE]], memory)


@pytest.mark.parametrize("kept", [False, True])
def test_a_handler_may_raise_wherever_memory_is_got(monkeypatch: pytest.MonkeyPatch, *, kept: bool) -> None:
    """No descriptor is left, be the memory new or used before."""
    in_destructors = list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: in_destructors.append(unraisable.exc_type))
    memory = Arena()
    assert memory.works
    before = descriptors()

    def prepared() -> None:
        if kept:
            parcel_in(memory).close()

    prepared()
    for raised in at_each_place(lambda: Parcel([[b"x" * SIZE]], memory).close(), be_late):
        assert isinstance(raised, Late) or in_destructors.pop() is Late
        memory.clear()
        assert descriptors() == before
        prepared()


@pytest.mark.parametrize("small", [False, True])
def test_what_a_signals_handler_raises_is_heard(monkeypatch: pytest.MonkeyPatch, *, small: bool) -> None:
    """It is not taken for the system's refusal, though it is an OSError."""

    def struck(*_args: object) -> int:
        raise TimeoutError

    monkeypatch.setattr(os, "memfd_create", struck)
    memory = Arena()
    memory._works = True
    with pytest.raises(TimeoutError):
        Parcel([[b"x" * (100 if small else SIZE)]], memory)


def test_results_leave_descriptors_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping has one; so there are not more than so many of them, and what is dropped makes room."""
    monkeypatch.setattr(parcels, "MOST_MAPPED", len(parcels._mapped) + 2)

    def view() -> memoryview:
        with contextlib.closing(Parcel([[b"x" * SIZE]])) as parcel:
            assert parcel.descriptor is not None
            return Parcel.view(os.dup(parcel.descriptor), SIZE, mmap.ACCESS_WRITE)

    views = [view() for _ in range(3)]
    assert [type(each.obj) for each in views] == [mmap.mmap, mmap.mmap, bytearray]
    assert {bytes(each) for each in views} == {b"x" * SIZE}
    del views
    assert type(view().obj) is mmap.mmap


def test_a_block_that_could_not_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end raises nothing, either."""
    monkeypatch.setattr(os, "memfd_create", refused)
    with pytest.raises(PermissionError):
        Block(1)
