"""A worker's loop, and the tasks on it, in this process: who is begun, stopped and answered when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import async_jobs
from aiopool import failures, sharing, wire
from aiopool.backends.inline import Undisturbed
from aiopool.exceptions import CallInterrupted
from aiopool.pickling import PLAIN
from aiopool.worker import current, job
from aiopool.worker.control import INTERRUPT, ORDER
from aiopool.worker.inbox import Inbox
from aiopool.worker.looped import Looped
from aiopool.worker.looping import Looping
from aiopool.worker.tasks import Tasks, each_of_chunk
from worker_side import Interrupting, call_of

# Tasks.


class Nobody:
    """Takes what is sent."""

    def send(self, packets: Any) -> None:
        """Forget it."""


async def test_a_coroutine_that_is_cancelled_before_its_first_step_is_answered() -> None:
    """Or its caller would wait for ever."""
    answers: list[tuple[int, int]] = []
    station = current.Station(0, Nobody(), Undisturbed(), PLAIN)
    tasks = Tasks(asyncio.get_running_loop(), station, lambda call, answer: answers.append((call, answer.kind)), 1)
    frame = call_of(async_jobs.add, 3, kind=wire.Kind.COROUTINE)
    tasks.begin(frame)
    assert tasks.stop(frame.call)
    while not tasks.has_place:
        await asyncio.sleep(0)
    assert answers == [(frame.call, wire.Kind.FAILED)]


async def test_a_coroutine_that_others_cancel_before_its_first_step_was_not_interrupted() -> None:
    """Nobody has asked the pool for that, so its caller gets to know what has happened."""
    failures_told: list[bytes | memoryview] = []
    station = current.Station(0, Nobody(), Undisturbed(), PLAIN)
    tasks = Tasks(asyncio.get_running_loop(), station, lambda _, answer: failures_told.append(bytes(answer.payload)), 1)
    tasks.begin(call_of(async_jobs.add, 3, kind=wire.Kind.COROUTINE))
    (begun,) = asyncio.all_tasks() - {asyncio.current_task()}
    begun.cancel()
    while not tasks.has_place:
        await asyncio.sleep(0)
    assert isinstance(failures.decode(failures_told[0], None), asyncio.CancelledError)


@pytest.mark.parametrize("kind", [wire.Kind.GENERATOR, wire.Kind.TIMED_GENERATOR])
async def test_an_ordinary_generator_takes_all_places(kind: wire.Kind) -> None:
    """What was sent behind it would be answered before it, which the parent does not expect."""
    station = current.Station(0, Nobody(), Undisturbed(), PLAIN)
    tasks = Tasks(asyncio.get_running_loop(), station, lambda _call, _answer: None, 4)
    coroutine = call_of(async_jobs.add, 3, kind=wire.Kind.COROUTINE)
    tasks.begin(coroutine)
    assert tasks.has_place
    assert tasks.stop(coroutine.call)
    generator = call_of(async_jobs.count, 3, kind=kind, call=8)  # which may send no value yet
    tasks.begin(generator)
    assert not tasks.has_place
    assert tasks.stop(generator.call)
    while not tasks.has_place:
        await asyncio.sleep(0)


class Answers:
    """What has come of calls.

    Attributes:
        told: their ids, and how they ended.
    """

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def take(self, call: int, answer: job.Answer) -> None:
        """One has ended."""
        self.told.append((call, answer.kind))


class Sent:
    """Keeps what is sent.

    Attributes:
        kinds: of the messages.
    """

    def __init__(self) -> None:
        self.kinds: list[int] = []

    def send(self, packets: Any) -> None:
        """Keep it."""
        self.kinds += [frame.kind for frame in wire.frames_of(packets)]


def coroutine(function: Callable[..., Any], *args: object, kind: int = wire.Kind.COROUTINE) -> wire.Frame:
    """Return the message that asks for a coroutine, or for a stream of many values."""
    return call_of(function, *args, kind=kind, number=100)


async def test_a_coroutine_whose_end_was_asked_for_before_it_came_is_not_begun(interrupting: Interrupting) -> None:
    """The order may overtake the call."""
    answers, control = Answers(), interrupting.control
    control.looped = True
    tasks = Tasks(asyncio.get_running_loop(), current.Station(0, Sent(), control, PLAIN), answers.take, 1)
    os.write(interrupting.writer, ORDER.pack(7, 0))
    tasks.obey()
    tasks.begin(coroutine(async_jobs.kill_self))
    assert answers.told == [(7, wire.Kind.FAILED)]
    assert tasks.has_place


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_takes_no_notice_of_its_end_sends_nothing_more(
    interrupting: Interrupting, *, asynchronous: bool
) -> None:
    """What it yields after that is for nobody."""
    answers, sent = Answers(), Sent()
    tasks = Tasks(asyncio.get_running_loop(), current.Station(0, sent, interrupting.control, PLAIN), answers.take, 1)
    order = (interrupting.writer, ORDER.pack(7, 0), int(INTERRUPT))
    made = (async_jobs.yield_on,) if asynchronous else (async_jobs.interrupt_and_yield_on, *order)
    tasks.begin(coroutine(*made, kind=wire.Kind.ASYNC_GENERATOR if asynchronous else wire.Kind.GENERATOR))
    while not sent.kinds:
        await asyncio.sleep(0)
    if asynchronous:
        for _ in range(20):  # until the generator waits
            await asyncio.sleep(0)
        assert tasks.stop(7)
    while not answers.told:
        await asyncio.sleep(0)
    assert sent.kinds == [wire.Kind.VALUE]
    assert tasks.has_place


async def test_cancelling_or_interrupting_a_chunk_ends_all_of_it() -> None:
    """Though what an item raises takes the place of its value."""
    with pytest.raises(CallInterrupted):
        await each_of_chunk(async_jobs.fail, [ValueError("no"), CallInterrupted(), ValueError("no")])
    begun = asyncio.Event()

    async def wait(number: int) -> None:
        assert number == 1
        begun.set()
        await asyncio.Event().wait()

    chunk = asyncio.create_task(each_of_chunk(wait, [0, 1, 2]))
    await begun.wait()
    chunk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await chunk


# The loop.


def loop_between(
    ends: tuple[socket.socket, socket.socket],
    interrupting: Interrupting,
    answer: Callable[[int, job.Answer], None],
) -> contextlib.closing[Looped]:
    """Return a worker's loop, to be closed."""
    station = current.Station(0, Sent(), interrupting.control, PLAIN)
    return contextlib.closing(Looped(Inbox(ends[0]), station, Looping(), answer))


def send(channel: socket.socket, *messages: list[wire.Packet]) -> None:
    """Send messages."""
    for packet in itertools.chain.from_iterable(messages):
        wire.send(channel, packet)


def test_a_loop_takes_what_is_shared_and_returns_what_is_not_for_it(
    ends: tuple[socket.socket, socket.socket], interrupting: Interrupting
) -> None:
    """In their order."""
    send(ends[1], wire.encode(wire.Kind.SHARE, 7, pickle.dumps("shared")), wire.encode(wire.Kind.LEAVE))
    with loop_between(ends, interrupting, Answers().take) as looped:
        assert looped.receive().kind == wire.Kind.LEAVE
    try:
        assert sharing.revive(7, None) == "shared"
    finally:
        sharing.drop(7)


def test_a_loop_ends_with_the_channel(ends: tuple[socket.socket, socket.socket], interrupting: Interrupting) -> None:
    """Whether it cannot receive any more, or cannot answer."""

    def refuse(_call: int, _answer: job.Answer) -> None:
        raise BrokenPipeError("nobody reads")

    with loop_between(ends, interrupting, refuse) as looped:
        looped.begin(coroutine(async_jobs.add, 1))
        with pytest.raises(BrokenPipeError, match="nobody reads"):
            looped.receive()
    ends[1].close()
    with loop_between(ends, interrupting, refuse) as looped, pytest.raises(ConnectionError):
        looped.receive()


def test_a_loop_that_a_job_has_closed_is_closed(
    ends: tuple[socket.socket, socket.socket], interrupting: Interrupting
) -> None:
    """The worker ends because of that, and with no other error on top."""
    with loop_between(ends, interrupting, lambda _call, _answer: None) as looped:
        looped._loop.close()


@pytest.fixture
def handled(request: pytest.FixtureRequest) -> Iterator[None]:
    """A signal that is handled so."""
    before = signal.signal(signal.SIGUSR2, request.param)
    yield
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("handled", "error"),
    [
        (async_jobs.handle, async_jobs.Late),
        (async_jobs.handle_once, async_jobs.Late),
        (async_jobs.exit_now, SystemExit),
        (signal.default_int_handler, KeyboardInterrupt),
    ],
    indirect=["handled"],
)
@pytest.mark.usefixtures("handled")
def test_a_loop_ends_where_a_signals_handler_has_raised_in_its_own_code(
    error: type[BaseException], ends: tuple[socket.socket, socket.socket], interrupting: Interrupting
) -> None:
    """Something was left undone, and somebody might wait for that for ever."""
    with loop_between(ends, interrupting, Answers().take) as looped:
        looped._loop.call_soon(signal.raise_signal, signal.SIGUSR2)
        with pytest.raises(error):
            looped.receive()


@pytest.mark.parametrize("handled", [async_jobs.handle], indirect=True)
@pytest.mark.parametrize("raising", [lambda: signal.raise_signal(signal.SIGUSR2), lambda: 1 // 0])
@pytest.mark.usefixtures("handled")
def test_a_loop_goes_on_when_a_callback_of_a_job_has_raised(
    raising: Callable[[], object], ends: tuple[socket.socket, socket.socket], interrupting: Interrupting
) -> None:
    """It is told of, as asyncio does it; also where a handler has raised in there."""
    send(ends[1], wire.encode(wire.Kind.LEAVE))
    with loop_between(ends, interrupting, Answers().take) as looped:
        looped._loop.call_soon(raising)
        assert looped.receive().kind == wire.Kind.LEAVE
