"""The worker's side in this process: what is hard to see in one that ends, is killed, or has another system."""

from __future__ import annotations

import atexit
import contextlib
import errno
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
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, NoReturn

import pytest

import jobs
from aiopool import AioPoolError, failures, parcels, sharing, wire
from aiopool.arena import Arena
from aiopool.backends.inline import Undisturbed
from aiopool.exceptions import CallInterrupted
from aiopool.pickling import PLAIN
from aiopool.worker import control as control_module
from aiopool.worker import current, isolation, job, logs, memory
from aiopool.worker import main as worker_main
from aiopool.worker import outlet as outlet_module
from aiopool.worker.control import INTERRUPT
from aiopool.worker.looping import Looping
from aiopool.worker.outlet import Outlet
from worker_side import Interrupting, Late, at_each_place, be_late, call_of, descriptors

# Interruptions.


def test_an_interruption_waits_while_it_is_held_off(interrupting: Interrupting) -> None:
    """It comes when the call goes on, and once."""
    control = interrupting.control
    control.begin(7)
    with pytest.raises(CallInterrupted):
        control.uninterrupted(lambda: interrupting.interrupt(7))
    assert control.interrupted == 7
    assert control.uninterrupted(lambda: 5) == 5


def test_an_interruption_waits_for_all_that_hold_it_off(interrupting: Interrupting) -> None:
    """A signal's handler may do so while its own thread does."""
    control, steps = interrupting.control, list[str]()
    control.begin(7)

    def outer() -> None:
        control.uninterrupted(lambda: interrupting.interrupt(7))
        steps.append("behind the inner one")

    with pytest.raises(CallInterrupted):
        control.uninterrupted(outer)
    assert steps


def test_another_thread_does_not_hold_interruptions_off(interrupting: Interrupting) -> None:
    """They come to the main thread only, whatever others are in the midst of."""
    control, inside, leave = interrupting.control, threading.Event(), threading.Event()
    control.begin(7)

    def linger() -> int:
        inside.set()
        leave.wait()
        return 5

    with ThreadPoolExecutor(1) as executor:
        lingering = executor.submit(control.uninterrupted, linger)
        inside.wait()
        try:
            with pytest.raises(CallInterrupted):
                interrupting.interrupt(7)
        finally:
            leave.set()
        assert lingering.result() == 5


def test_a_handler_that_raises_does_not_have_interruptions_held_off_for_ever(interrupting: Interrupting) -> None:
    """Wherever it does: as something is held off, meanwhile, and as that ends."""
    control = interrupting.control
    control.begin(7)
    for raised in at_each_place(lambda: control.uninterrupted(os.getpid), be_late):
        assert isinstance(raised, Late)
        with pytest.raises(CallInterrupted):
            interrupting.interrupt(7)


@pytest.mark.parametrize("fails", [False, True])
def test_an_interruption_that_comes_as_a_call_ends_is_of_that_call(interrupting: Interrupting, *, fails: bool) -> None:
    """Nothing is left of it for what the worker does next."""
    call = call_of(int, "x" if fails else "5")
    for _ in at_each_place(
        lambda: job.run(call, interrupting.control, PLAIN), lambda: interrupting.interrupt(call.call)
    ):
        assert interrupting.control.current is None


@pytest.fixture
def station(interrupting: Interrupting, ends: tuple[socket.socket, socket.socket]) -> Iterator[current.Station]:
    """This thread as a worker that runs call 7."""
    interrupting.control.begin(7)
    station = current.Station(0, Outlet(ends[0], interrupting.control), interrupting.control, PLAIN)
    with current.being_in_thread(station):
        yield station


def sent_whole(ends: tuple[socket.socket, socket.socket]) -> list[int]:
    """Return the kinds of messages that have come, all of them whole."""
    decoder, kinds = wire.Decoder(), list[int]()
    with contextlib.suppress(BlockingIOError):
        while True:
            if (frame := wire.receive(ends[1], decoder, socket.MSG_DONTWAIT)) is not None:
                kinds.append(frame.kind)
    assert not decoder.awaits_descriptor
    return kinds


NEXT = (wire.Kind.PROGRESS, wire.Kind.HEAVY), (wire.Kind.HEAVY,)


def test_a_report_may_be_interrupted_wherever_it_is(
    interrupting: Interrupting, station: current.Station, ends: tuple[socket.socket, socket.socket]
) -> None:
    """It comes as a whole, before what is sent next, or not at all; and no descriptor is left."""
    value = bytes(100_000)
    current.report(value)
    before = sent_whole(ends) and descriptors()
    for raised in at_each_place(lambda: current.report(value), lambda: interrupting.interrupt(7)):
        assert isinstance(raised, CallInterrupted)
        station.outlet.send(wire.encode(wire.Kind.HEAVY))
        assert tuple(sent_whole(ends)) in NEXT
        assert descriptors() == before


def test_a_handler_may_raise_wherever_a_report_is(
    station: current.Station, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for a job's time limit of its own."""
    value, in_destructors = bytes(100_000), list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: in_destructors.append(unraisable.exc_type))
    current.report(value)
    before = sent_whole(ends) and descriptors()
    for raised in at_each_place(lambda: current.report(value), be_late):
        assert isinstance(raised, Late) or in_destructors.pop() is Late
        assert not in_destructors
        station.outlet.send(wire.encode(wire.Kind.HEAVY))
        assert tuple(sent_whole(ends)) in NEXT
        assert descriptors() == before


def test_a_handler_may_raise_while_a_message_waits_for_the_parent(
    interrupting: Interrupting, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it comes before the next one. Records of the log do not wait for that."""
    outlet = Outlet(ends[0], interrupting.control)
    fill(ends[0])
    with monkeypatch.context() as patched, pytest.raises(Late):
        patched.setattr(wire, "send_all", lambda _sock, _packets, sent: (sent.append(1), be_late()))
        outlet.send([b"sent", b"two", b"three"])
    outlet.send([b"dropped"], 1000.0)
    received(ends[1])
    outlet.send([b"next"])
    assert received(ends[1]) == [b"two", b"three", wire.encode(wire.Kind.UNLOGGED, 1)[0], b"next"]


def test_a_report_whose_descriptor_cannot_be_sent_goes_in_pieces(
    station: current.Station, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux lets a user have so many on their way only. There may be none left of its own, either."""
    send_all = wire.send_all

    def refusing(sock: socket.socket, packets: list[wire.Packet], sent: deque[int]) -> None:
        fine = list(itertools.takewhile(lambda packet: not isinstance(packet, parcels.Parcel), packets))
        send_all(sock, fine, sent)
        if len(fine) < len(packets):
            raise OSError(errno.ETOOMANYREFS, "too many")

    monkeypatch.setattr(wire, "send_all", refusing)
    monkeypatch.setattr(os, "dup", fail_to_duplicate)
    before, value = descriptors(), bytes(range(250)) * 400
    current.report(value)
    station.outlet.send(wire.encode(wire.Kind.HEAVY))
    decoder, frames = wire.Decoder(), list[wire.Frame]()
    while len(frames) < 2:
        if (frame := wire.receive(ends[1], decoder)) is not None:
            frames.append(frame)
    assert frames[0].payload is not None
    assert pickle.loads(frames[0].payload) == value
    assert descriptors() == before


def fail_to_duplicate(*_: object) -> NoReturn:
    """Do as a process with too many descriptors does."""
    raise OSError(errno.EMFILE, "no more")


def test_what_else_the_system_says_of_a_message_is_raised(
    interrupting: Interrupting, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent may be gone."""

    def failing(*_: object) -> NoReturn:
        raise BrokenPipeError(errno.EPIPE, "gone")

    monkeypatch.setattr(wire, "send_all", failing)
    with pytest.raises(BrokenPipeError):
        Outlet(ends[0], interrupting.control).send([b"one", b"two"])


@pytest.mark.parametrize("number", [None, errno.EPIPE])
def test_what_a_handler_raises_is_no_failure_of_the_channel(
    number: int | None, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a TimeoutError, while a record of the log waits. The system's errors have numbers."""
    outlet = Outlet(ends[0], Undisturbed())
    fill(ends[0])

    def raising(_patience: float) -> bool:
        raise TimeoutError("time is up") if number is None else OSError(number, "closed")

    monkeypatch.setattr(outlet, "_writable", raising)
    with pytest.raises(TimeoutError) if number is None else contextlib.nullcontext():
        outlet.send([b"dropped"], 1000.0)


def test_what_a_handler_raises_is_no_failure_of_the_pipe(
    interrupting: Interrupting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TimeoutError, as orders are read."""

    def read(_descriptor: int, _size: int) -> bytes:
        raise TimeoutError("time is up")

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(TimeoutError):
        interrupting.interrupt(7)


class Apart:
    """Leaves its data outside of its pickle, as an array does."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, _protocol: object) -> tuple[type, tuple[pickle.PickleBuffer]]:
        return bytearray, (pickle.PickleBuffer(self.data),)


def test_what_is_reported_is_not_kept_while_the_parent_does_not_read(interrupting: Interrupting) -> None:
    """Its memory is in the message. Else it could not be given back, or change its size, until that is read."""
    data = bytearray(100_000)

    class Clearing:
        def send(self, packets: list[wire.Packet]) -> None:
            assert packets
            data.clear()

    interrupting.control.begin(7)
    with current.being_in_thread(current.Station(0, Clearing(), interrupting.control, PLAIN)):
        current.report(Apart(data))
    assert not data


class Odd(Exception):
    """The call is interrupted as somebody looks at it."""

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__()
        self.look = look

    def __str__(self) -> str:
        self.look()
        return "odd"


def test_a_chunk_is_interrupted_while_an_items_failure_is_put_into_words(
    interrupting: Interrupting, station: current.Station
) -> None:
    """That is no business of the failure's, and no other item runs."""
    ran = list[int]()

    def fail(item: int) -> NoReturn:
        ran.append(item)
        raise Odd(lambda: interrupting.interrupt(7))

    with pytest.raises(CallInterrupted):
        job.each_of_chunk(fail, [1, 2, 3])
    assert ran == [1]
    assert station.control.interrupted == 7


def test_a_chunk_may_run_where_no_worker_is() -> None:
    """As in a process that a job has started."""
    (failure,) = job.each_of_chunk(int, ["x"])
    assert isinstance(failure, failures.ItemFailure)
    assert isinstance(failures.decode(failure.payload, None), ValueError)


def test_an_interruption_of_another_call_does_not_come_when_this_one_goes_on(interrupting: Interrupting) -> None:
    """It is kept for its own."""
    control = interrupting.control
    control.begin(7)
    control.uninterrupted(lambda: interrupting.interrupt(8))
    assert control.interrupted is None
    control.current = None
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


def test_an_interruption_that_is_left_to_a_loop_is_not_lost(interrupting: Interrupting) -> None:
    """The loop may not have run before its call begins."""
    control = interrupting.control
    control.looped = True
    interrupting.interrupt(7)
    with pytest.raises(CallInterrupted):
        control.begin(7)


def test_a_result_is_not_interrupted_as_it_gets_its_memory(
    interrupting: Interrupting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that nobody has got yet would be left, and keep the memory."""
    wrap = job.wrap

    def interrupted(*args: Any, **kwds: Any) -> Any:
        interrupting.interrupt(7)
        return wrap(*args, **kwds)

    monkeypatch.setattr(job, "wrap", interrupted)
    answer = job.run(call_of(bytes, parcels.MAPPED), interrupting.control, PLAIN, memory_of_results := Arena())
    assert answer.kind is wire.Kind.RESULT
    assert isinstance(answer.payload, parcels.Parcel)
    answer.payload.close()
    memory_of_results.close()


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
    assert "the arguments could not be received: the worker has no memory or descriptor left" in str(error)


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
