"""The worker's side in this process: what is hard to see in one that ends, is killed, or has another system."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import itertools
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import async_jobs
import jobs
from aiopool import AioPoolError, failures, sharing, wire
from aiopool.backends.inline import Undisturbed
from aiopool.exceptions import CallInterrupted
from aiopool.pickling import PLAIN
from aiopool.worker import control as control_module
from aiopool.worker import current, isolation, job, logs, memory
from aiopool.worker import main as worker_main
from aiopool.worker import outlet as outlet_module
from aiopool.worker.control import INTERRUPT, ORDER, Control
from aiopool.worker.inbox import Inbox
from aiopool.worker.looped import Looped
from aiopool.worker.looping import Looping
from aiopool.worker.outlet import Outlet
from aiopool.worker.tasks import Tasks, each_of_chunk


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a channel."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


# Interruptions.


class Interrupting:
    """A worker's end of the pipe for interruptions, and the parent's."""

    def __init__(self, reader: int, writer: int) -> None:
        self.control = Control(reader)
        self.writer = writer

    def interrupt(self, call: int) -> None:
        """Do what the parent does; the handler has run when this returns."""
        os.write(self.writer, ORDER.pack(call, 0))
        signal.raise_signal(INTERRUPT)


@pytest.fixture
def interrupting() -> Iterator[Interrupting]:
    """Nothing is written yet."""
    before = signal.getsignal(INTERRUPT)
    reader, writer = os.pipe()
    yield Interrupting(reader, writer)
    signal.signal(INTERRUPT, before)
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(descriptor)


def test_an_interruption_waits_while_it_is_held_off(interrupting: Interrupting) -> None:
    """It comes when the call goes on, and once."""
    control = interrupting.control
    control.begin(7)
    control.hold()
    interrupting.interrupt(7)
    with pytest.raises(CallInterrupted):
        control.resume()
    assert control.interrupted == 7
    control.hold()
    control.resume()


def test_an_interruption_of_another_call_does_not_come_when_this_one_goes_on(interrupting: Interrupting) -> None:
    """It is kept for its own."""
    control = interrupting.control
    control.begin(7)
    control.hold()
    interrupting.interrupt(8)
    control.resume()
    assert control.interrupted is None
    control.end()
    with pytest.raises(CallInterrupted):
        control.begin(8)


@pytest.mark.parametrize("closed", [False, True])
def test_a_signal_that_nothing_was_written_for_interrupts_nothing(interrupting: Interrupting, *, closed: bool) -> None:
    """Somebody else has sent it; or a job has closed the pipe."""
    interrupting.control.begin(7)
    if closed:
        os.close(interrupting.control._descriptor)
    signal.raise_signal(INTERRUPT)
    assert interrupting.control.interrupted is None


def test_an_order_is_kept_for_its_call_though_others_begin_beside(
    interrupting: Interrupting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large message comes after the order to stop its call. Of those whose call had ended the oldest are dropped."""
    control = interrupting.control
    control.put_off(7)
    assert not control.forestalled(8)
    assert control.forestalled(7)
    assert not control.forestalled(7)
    monkeypatch.setattr(control_module, "MOST_EARLY", 2)
    for call in (7, 8, 9):
        control.put_off(call)
    assert [call for call in (7, 8, 9) if control.forestalled(call)] == [8, 9]


class Nobody:
    """Takes what is sent."""

    def send(self, packets: Any) -> None:
        """Forget it."""


def test_an_interruption_that_is_left_to_a_loop_is_not_lost(interrupting: Interrupting) -> None:
    """The loop may not have run before its call begins."""
    control = interrupting.control
    control.looped = True
    interrupting.interrupt(7)
    with pytest.raises(CallInterrupted):
        control.begin(7)


async def test_a_coroutine_that_is_cancelled_before_its_first_step_is_answered() -> None:
    """Or its caller would wait for ever."""
    answers: list[tuple[int, int]] = []
    station = current.Station(0, Nobody(), Undisturbed(), PLAIN)
    tasks = Tasks(asyncio.get_running_loop(), station, lambda call, answer: answers.append((call, answer.kind)), 1)
    frame = call_of(async_jobs.add, 3)._replace(kind=wire.Kind.COROUTINE)
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
    tasks.begin(call_of(async_jobs.add, 3)._replace(kind=wire.Kind.COROUTINE))
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
    coroutine = call_of(async_jobs.add, 3)._replace(kind=wire.Kind.COROUTINE)
    tasks.begin(coroutine)
    assert tasks.has_place
    assert tasks.stop(coroutine.call)
    generator = call_of(async_jobs.count, 3)._replace(kind=kind, call=8)  # which may send no value yet
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
    return call_of(function, *args)._replace(kind=kind, number=100)


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


# The end of the parent.


class Kills:
    """Takes the place of what would kill this process's group.

    Attributes:
        sent: what would have been sent to whom.
        struck: set at the first.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.struck = threading.Event()

    def kill(self, pid: int, number: int) -> None:
        """Keep it."""
        self.sent.append((pid, number))
        self.struck.set()


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Kills:
    """None yet."""
    made = Kills()
    monkeypatch.setattr(os, "kill", made.kill)
    return made


@pytest.mark.parametrize("closed", [False, True])
def test_a_worker_whose_parent_is_gone_before_it_listens_ends_at_once(
    kills: Kills, monkeypatch: pytest.MonkeyPatch, *, closed: bool
) -> None:
    """The kernel tells of what comes, not of what was."""
    asked: list[tuple[int, int]] = []

    def ask(_descriptor: int, command: int, argument: int = 0) -> int:
        asked.append((command, argument))
        return 0

    monkeypatch.setattr(fcntl, "fcntl", ask)
    lifeline, parents = multiprocessing.Pipe(duplex=False)
    with lifeline, parents:
        if closed:
            parents.close()
        isolation.die_with(lifeline.fileno())
    assert kills.sent == ([(0, signal.SIGKILL)] if closed else [])
    assert asked == [
        (fcntl.F_SETOWN, -os.getpgrp()), (fcntl.F_SETSIG, signal.SIGKILL), (fcntl.F_GETFL, 0),
        (fcntl.F_SETFL, fcntl.FASYNC),
    ]  # fmt: skip


def test_where_the_kernel_does_not_kill_a_thread_does(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the parent's end of the pipe closes, and not before."""
    monkeypatch.delattr(fcntl, "F_SETSIG")
    before = set(threading.enumerate())
    lifeline, parents = multiprocessing.Pipe(duplex=False)
    with lifeline, parents:
        isolation.die_with(lifeline.fileno())
        [waiting] = set(threading.enumerate()) - before
        assert (waiting.daemon, kills.sent) == (True, [])
        parents.close()
        kills.struck.wait()
        waiting.join()
    assert kills.sent == [(0, signal.SIGKILL)]


# The channel.


def test_a_channel_on_a_low_descriptor_is_moved(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same channel; one above stays where it is."""
    low = ends[0].fileno()
    assert isolation.above_stdio(ends[0]) is ends[0]
    monkeypatch.setattr(isolation, "FIRST_FREE", low + 100)
    with isolation.above_stdio(ends[0]) as moved:
        assert moved.fileno() >= low + 100
        assert not moved.get_inheritable()
        assert ends[0].fileno() == -1
        moved.send(b"x")
        assert ends[1].recv(2) == b"x"


def fill(channel: socket.socket) -> None:
    """Send until nothing more can be taken."""
    channel.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while channel.send(b"filler"):
            pass


def received(channel: socket.socket) -> list[bytes]:
    """Read all that there is."""
    packets = []
    with contextlib.suppress(BlockingIOError):
        while packet := channel.recv(wire.PACKET, socket.MSG_DONTWAIT):
            packets.append(packet)
    return packets


def test_a_message_that_cannot_be_sent_yet_is_sent_when_the_parent_reads(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it does so in time; if not, the message is dropped, which the next one tells."""
    fill(ends[0])
    outlet = Outlet(ends[0], Undisturbed())
    outlet.send([b"dropped"], 0.0)
    outlet.send([b"dropped"], 1000.0)  # the first has waited for both
    received(ends[1])
    outlet.send([b"sent"], 0.0)
    assert received(ends[1]) == [wire.encode(wire.Kind.UNLOGGED, 2)[0], b"sent"]
    fill(ends[0])
    writable = outlet._writable

    def drained_meanwhile(patience: float) -> bool:
        received(ends[1])
        return writable(patience)

    monkeypatch.setattr(outlet, "_writable", drained_meanwhile)
    outlet.send([b"sent"], 1000.0)
    assert received(ends[1]) == [b"sent"]


@pytest.mark.parametrize("patience", [None, 0.0])
def test_what_a_handler_sends_while_its_thread_is_sending_comes_before_or_behind_that(
    patience: float | None, ends: tuple[socket.socket, socket.socket]
) -> None:
    """At whichever line it does so: nobody waits for ever, and no message comes between another's packets."""
    outlet = Outlet(ends[0], Undisturbed())
    orders = ([b"one", b"two", b"nested"], [b"nested", b"one", b"two"])
    line = 0
    while sent_with_a_handler(outlet, line, patience):
        assert received(ends[1]) in orders
        line += 1
    assert received(ends[1]) == [b"one", b"two"]
    assert line > 10


def sent_with_a_handler(outlet: Outlet, line: int, patience: float | None) -> bool:
    """Send two packets, and another message before that line; return whether there are so many lines."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != outlet_module.__file__:
            return None
        if event == "line" and next(lines) == line:
            sys.settrace(None)
            outlet.send([b"nested"], patience)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        outlet.send([b"one", b"two"])
    finally:
        sys.settrace(before)
    return next(lines) > line


def test_a_record_waits_for_nobody_who_waits_for_the_turn(ends: tuple[socket.socket, socket.socket]) -> None:
    """A thread that has the turn may log, in a destructor, while one that waits for the turn has a handler's lock."""
    handler = logs.ForwardingHandler(Outlet(ends[0], Undisturbed()))
    record = logging.makeLogRecord({"msg": "hello"})
    handler.acquire()
    try:
        other = threading.Thread(target=handler.handle, args=(record,), daemon=True)
        other.start()
        frame = wire.receive(ends[1], wire.Decoder())
    finally:
        handler.release()
    other.join()
    assert frame is not None
    assert frame.kind == wire.Kind.LOG


def test_a_filter_of_the_root_handler_is_asked(ends: tuple[socket.socket, socket.socket]) -> None:
    """As that of any handler."""
    handler = logs.ForwardingHandler(Outlet(ends[0], Undisturbed()))
    handler.addFilter(lambda record: record.msg != "not this")
    for text in ("not this", "this"):
        handler.handle(logging.makeLogRecord({"msg": text}))
    (packet,) = received(ends[1])
    assert pickle.loads(packet[wire.HEADER.size :])["msg"] == "this"


# Calls.


def test_a_call_whose_memory_could_not_be_taken_fails() -> None:
    """With what says why."""
    answer = job.run(wire.Frame(wire.Kind.CALL, 0, 7, None), Undisturbed(), PLAIN)
    assert answer.kind == wire.Kind.FAILED
    assert isinstance(answer.payload, bytes)
    error = failures.decode(answer.payload, "f")
    assert isinstance(error, AioPoolError)
    assert "the arguments could not be received: the worker has no descriptor left" in str(error)


def call_of(function: Callable[..., Any], *args: object) -> wire.Frame:
    """Return the message that asks for a call."""
    payload = wire.function_part(pickle.dumps(function, protocol=5)) + pickle.dumps((args, {}))
    return wire.Frame(wire.Kind.CALL, 0, 7, payload)


def test_so_many_functions_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten is looked for again."""
    monkeypatch.setattr(job, "MOST_KNOWN", 2)
    monkeypatch.setattr(job, "_known", {})
    for _ in range(2):
        for function, value in ((jobs.square, 9), (jobs.same, 3), (abs, 3)):
            answer = job.run(call_of(function, 3), Undisturbed(), PLAIN)
            assert isinstance(answer.payload, bytes)
            assert (answer.kind, pickle.loads(answer.payload)) == (wire.Kind.RESULT, value)
            assert 1 <= len(job._known) <= 2


# The process.


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_where_the_present_size_is_not_told_the_largest_is_taken(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the unit of the system."""

    class Usage:
        ru_maxrss = 5000

    monkeypatch.setattr(memory, "resident_bytes_of", lambda _pid: None)
    monkeypatch.setattr(memory.sys, "platform", platform)  # type: ignore[attr-defined]
    monkeypatch.setattr(resource, "getrusage", lambda _who: Usage)
    assert memory.resident_bytes() == 5000 * unit


def test_only_where_there_is_something_to_be_done_an_initializer_is_given_a_hint() -> None:
    """A name that is missed elsewhere than in the main module is the user's own business."""
    missed = pickle.dumps((jobs.square, (), ()), protocol=5).replace(b"square", b"sqware")
    with pytest.raises(AttributeError, match="sqware") as caught:
        worker_main.PickledInitializer(missed, PLAIN).run()
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("ends_without", [False, True])
def test_what_a_fork_has_registered_for_its_end_is_forgotten_where_multiprocessing_does_not(
    monkeypatch: pytest.MonkeyPatch, *, ends_without: bool
) -> None:
    """What the event loop had open is closed either way."""
    cleared: list[None] = []
    monkeypatch.setattr(worker_main, "ENDS_WITHOUT_ATEXIT", ends_without)
    monkeypatch.setattr(atexit, "_clear", lambda: cleared.append(None))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loops = os.open(os.devnull, os.O_RDONLY)
    worker_main._renounce(worker_main.Inheritance((loops,), frozenset(map(int, blocked)), {}))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(loops)
    assert len(cleared) == ends_without


@pytest.mark.parametrize("ends_without", [False, True])
def test_a_worker_that_leaves_runs_its_exit_handlers_where_multiprocessing_does_not(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, *, ends_without: bool
) -> None:
    """After it has said that it is ready, and was told to leave."""
    ran: list[None] = []
    monkeypatch.setattr(worker_main, "ENDS_WITHOUT_ATEXIT", ends_without)
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: ran.append(None))
    for name in ("leave_parents_group", "quieten_signals", "die_with", "forked_children_are_ordinary"):
        monkeypatch.setattr(isolation, name, lambda *_args: None)
    monkeypatch.setattr(sharing, "drop_all", lambda: None)
    monkeypatch.setattr(worker_main, "dump_into", lambda _descriptor: None)
    monkeypatch.setattr(worker_main, "Control", lambda _descriptor: Undisturbed())
    monkeypatch.setattr(current, "_here", [])
    monkeypatch.setattr(current, "_thread", current.Thread())
    for packet in wire.encode(wire.Kind.LEAVE):
        wire.send(ends[1], packet)
    with contextlib.ExitStack() as opened:
        pipes = [opened.enter_context(end) for _ in range(3) for end in multiprocessing.Pipe(duplex=False)]
        lines = worker_main.Lines(ends[0], *pipes[::2])
        worker_main.main(lines, worker_main.Initializer(None, (), ()), 0, None, None, PLAIN, Looping(), None)
    frame = wire.receive(ends[1], wire.Decoder())
    assert frame is not None
    assert frame.kind == wire.Kind.READY
    assert len(ran) == ends_without
