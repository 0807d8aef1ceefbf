"""One worker: its operating-system process, its channel, its death."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import itertools
import multiprocessing.process
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

from .. import wire
from ..exceptions import InitializerError
from ..worker import isolation
from ..worker import main as worker_main
from ..worker.control import INTERRUPT
from ..worker.dump import DUMP
from ..worker.environment import NameWithVariables
from .base import in_loop
from .channel import Channel
from .dump import DumpReader
from .group import Group
from .handles import End, Observer, Setup
from .orders import Orders

__all__ = ["WorkerProcess", "failed_start"]

MESSAGES = socket.SOCK_SEQPACKET if sys.platform != "darwin" else socket.SOCK_DGRAM
"""A kind of socket that keeps messages apart and in order; macOS has only the other one."""

REAP_GRACE = 5.0
"""Seconds that the fork server has to tell the exit code of a process that has ended."""

START_GRACE = 5.0
"""Seconds that the start of an unwanted process may take to return before it is left to itself."""

_ends: weakref.WeakSet[socket.socket | Connection] = weakref.WeakSet()
"""What this process holds of all channels. A forked child closes it, or nobody would see this process die."""

_forking = threading.local()
"""``end``: the end of the channel that the process being forked by this thread is to keep."""


def _close_ends_in_child() -> None:
    kept = getattr(_forking, "end", None)
    for end in list(_ends):
        if end is not kept:
            end.close()


os.register_at_fork(after_in_child=_close_ends_in_child)


class WorkerProcess:
    """Starts a worker's process, talks to it, kills it, and reports its end.

    The worker's end of the channel stays open here, too: what the worker has not read can then be taken back, whatever
    the worker does, and when it dies, a call which it never saw is not taken for one that killed it.

    Args:
        number: what the observer knows it by.
        seat: the number of its place in the pool.
        loop: where everything happens, save the start itself.
        setup: how it is started.
        observer: told what happens, as long as it is there.
    """

    def __init__(
        self,
        number: int,
        seat: int,
        loop: asyncio.AbstractEventLoop,
        setup: Setup,
        observer: Observer,
    ) -> None:
        self.number = number
        self.seat = seat
        self._loop = loop
        self._observer = weakref.ref(observer)  # whose calls have all that waits for them, and that may have the pool
        self._start_method = setup.context.get_start_method()
        # Between the thread that starts the process and whoever ends it: maybe the garbage collector, in the former.
        self._lock = threading.RLock()
        self._starter: int | None = None  # the thread that starts it, if that is one of its own
        self._starter_done = threading.Event()
        self._started = False  # or failed to: what the process is to have is not needed here any more
        self._unwanted = False
        self._dismissed = False
        self._patience: asyncio.TimerHandle | None = None
        self._channel: Channel | None = None
        self._group: Group | None = None  # as soon as it runs
        with isolation.stdio_taken(), contextlib.ExitStack() as opened:  # all of them, or none
            self._own_end, self._workers_end = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, MESSAGES))
            self._workers_lifeline, self._lifeline = map(opened.enter_context, setup.context.Pipe(duplex=False))
            self._workers_control, self._control = map(opened.enter_context, setup.context.Pipe(duplex=False))
            self._dumps, self._workers_dumps = map(opened.enter_context, setup.context.Pipe(duplex=False))
            opened.pop_all()
        os.set_blocking(self._control.fileno(), False)
        self._orders = Orders(loop, self._control.fileno())
        self._dump = DumpReader(loop, self._dumps.fileno())
        _ends.update((self._own_end, self._workers_end, self._lifeline, self._control, self._dumps))
        lines = worker_main.Lines(self._workers_end, self._workers_lifeline, self._workers_control, self._workers_dumps)
        name = f"AioPoolWorker-{number}"
        self._process = setup.context.Process(  # type: ignore[attr-defined]  # every concrete context has one
            target=worker_main.main,
            args=(
                lines,
                setup.initializer,
                seat,
                setup.memory_limit,
                setup.levels(),
                setup.pickling,
                setup.looping,
                self._inheritance(setup),
            ),
            # A forked one has got them already, and would hand them on with its name to whoever unpickles that.
            name=name if self._start_method == "fork" else NameWithVariables(name, setup.variables),
        )

    @property
    def pid(self) -> int | None:
        """The process's; None before there is one."""
        return None if self._group is None else self._group.pid

    def launch(self) -> None:
        """Start the process: in a thread, so that the loop goes on; a fork here, since threads and forks don't mix."""
        if self._start_method == "fork":
            self._attach(self._fork())
        else:
            # Not by `threading`, which waits until the thread runs: on a busy machine the loop would stand still.
            # Nor does anybody wait for it at the interpreter's exit: a start may never return.
            try:
                self._starter = _thread.start_new_thread(self._start_in_thread, ())
            except RuntimeError as error:  # no more threads
                self._report(End(cause=failed_start(error)))

    def send(self, packets: Sequence[wire.Packet], call: int = 0) -> None:
        """Send a message about a call, or about none."""
        if self._channel is not None:
            self._channel.send(packets, call)

    def listen(self) -> None:
        """Report what it has sent."""
        if self._channel is not None:
            self._channel.listen()

    def pause_reading(self) -> None:
        """Report it only when `listen` is called, or when the process has ended."""
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Report it as it comes, as at first."""
        if self._channel is not None:
            self._channel.resume_reading()

    def take_back(self) -> list[wire.Packet]:
        """Return the packets of calls that it has not read, and never will; of each no more than a glimpse.

        Whatever else it was told, it is told again.
        """
        packets: list[wire.Packet] = []
        with contextlib.suppress(BlockingIOError):
            while packet := self._workers_end.recv(wire.GLIMPSE, socket.MSG_DONTWAIT):
                packets.append(packet)
        if self._channel is not None:
            packets += self._channel.take_unsent()
        self.send(list(filter(wire.is_bare, packets)))
        return list(itertools.filterfalse(wire.is_bare, packets))

    def dismiss(self) -> None:
        """Tell it to leave by itself."""
        self._dismissed = True
        self.send(wire.encode(wire.Kind.LEAVE))

    def interrupt(self, call: int) -> None:
        """Have it raise an exception within this call, if it runs it."""
        self._orders.interrupt(call, partial(self._signal, INTERRUPT))

    def grant(self, call: int, more: int) -> None:
        """Let a stream that it runs send so many values more."""
        self._orders.grant(call, more)

    def stack(self) -> asyncio.Future[str]:
        """Return a future of what faulthandler writes of its main thread. That never comes from one that is stopped."""
        dump = self._dump.expect()
        self._signal(DUMP)
        return dump

    def _signal(self, number: int) -> None:
        if self._group is not None:
            with contextlib.suppress(OSError):  # it is gone
                self._group.signal(number)

    def kill(self) -> None:
        """Kill it with everything that it started; a process that is still being started is killed right then."""
        with self._lock:
            self._unwanted = True
            if self._group is not None:
                self._group.kill()
                return
        if in_loop(self._loop):
            self._have_patience(START_GRACE, self._forsake)

    def _forsake(self) -> None:
        """A start that does not return is left to itself; its thread kills what may still come of it."""
        if self.pid is None and self._own_end.fileno() != -1:
            self._report(End())

    def abandon(self) -> None:
        """Kill it, wait until it is reaped, and close everything: without the loop's help, and without a report."""
        self.kill()
        if self._starter not in (None, threading.get_ident()):
            self._starter_done.wait(START_GRACE)
        if self.pid is not None:
            self._process.join(REAP_GRACE)
        self._close()

    # Start.

    def _fork(self) -> InitializerError | None:
        # A signal that arrived in the child before it has dropped the parent's handlers would run them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _forking.end = self._workers_end
        try:
            return self._start()
        finally:
            _forking.end = None
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start_in_thread(self) -> None:
        self._starter = threading.get_ident()  # which the loop's thread may not have noted yet
        try:
            self._start_and_attach()
        finally:
            self._starter_done.set()

    def _start_and_attach(self) -> None:
        failure: InitializerError | None
        try:
            failure = self._start(self._prepare)
        except BaseException as error:  # noqa: BLE001 - of pickling, such as SystemExit: in a thread, nobody hears of it
            failure = failed_start(error)
        if failure is None and self._unwanted:
            self._process.join(REAP_GRACE)  # it is killed, and maybe nobody waits for it any more
        try:
            self._loop.call_soon_threadsafe(self._attach, failure)
        except RuntimeError:  # the loop is closed
            if self._own_end.fileno() == -1:
                self._close_process()

    def _prepare(self) -> None:
        _prepare_thread()
        if self._unwanted:
            raise InterruptedError("it is not wanted any more")

    def _start(self, prepare: Callable[[], None] = lambda: None) -> InitializerError | None:
        """Start the process; return why that failed, or None."""
        try:
            prepare()
            self._process.start()
        except Exception as error:  # noqa: BLE001 - of pickling, of the system, of the user's context: all end the start
            return failed_start(error)
        finally:
            with self._lock:
                self._started = True
                if self._own_end.fileno() == -1:
                    self._workers_end.close()
            self._workers_lifeline.close()
            self._workers_control.close()
            self._workers_dumps.close()
        # Kept there, any thread that starts a process would poll ours and could take its exit code away;
        # and the interpreter's exit would wait for it before we have had a chance to end it.
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]  # noqa: SLF001
        with self._lock:
            self._group = Group(self._process, reaped_here=self._start_method != "forkserver")
            if self._unwanted:
                self._group.kill()
        return None

    def _attach(self, failure: InitializerError | None) -> None:
        """Back in the loop: listen to the process."""
        if self._own_end.fileno() == -1:
            self._close_process()  # abandoned meanwhile, and killed by the thread that started it
            return
        if failure is not None:
            self._report(End(cause=None if self._unwanted else failure))
            return
        self._channel = Channel(self._loop, self._own_end, self._received, self._garbled)
        self._loop.add_reader(self._running().end, self._died)

    def _inheritance(self, setup: Setup) -> worker_main.Inheritance | None:
        if self._start_method != "fork":
            return None
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return worker_main.Inheritance(
            tuple(_descriptors_of(self._loop)), frozenset(map(int, blocked)), setup.variables
        )

    # What it does.

    def _received(self, frames: list[wire.Frame]) -> None:
        if (observer := self._observer()) is not None:
            observer.received(self.number, frames)

    def _garbled(self) -> None:
        if (observer := self._observer()) is not None:
            observer.garbled(self.number)

    # Its end.

    def _running(self) -> Group:
        """Return what was started, to whom knows that it was."""
        assert self._group is not None  # noqa: S101 - for the type checker
        return self._group

    def _died(self) -> None:
        """The process has ended. What it answered before counts; what it started goes with it."""
        group = self._running()
        self._loop.remove_reader(group.end)
        if self._channel is not None:  # pragma: no branch - its death is listened for only while it has a channel
            self._channel.receive_rest()
        if self._own_end.fileno() == -1:
            return  # abandoned by whoever was told of that
        if not self._dismissed:
            group.kill()
        if self._start_method != "forkserver":
            group.wait()
            self._reaped()
        elif self._process.exitcode is None:
            # The fork server reaps it, and only then tells the exit code; unless it is stopped, or stuck.
            self._loop.add_reader(self._process.sentinel, self._reaped)
            self._have_patience(REAP_GRACE, self._reaped)
        else:
            self._reaped()

    def _have_patience(self, seconds: float, then: Callable[[], None]) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(seconds, then)

    def _reaped(self) -> None:
        self._report(End(self.pid, self._process.exitcode, len(self.take_back())))

    def _report(self, end: End) -> None:
        self._close()
        if (observer := self._observer()) is not None:
            observer.gone(self.number, end)

    def _close(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._orders.close()
        if self._channel is not None:
            self._channel.close()
            if not self._loop.is_closed():
                self._loop.remove_reader(self._process.sentinel)
                self._loop.remove_reader(self._running().end)
            self._channel = None  # we hold one another, and its buffer need not wait for the garbage collector
        with self._lock:
            self._own_end.close()
            if self._starter is None or self._started:
                self._workers_end.close()  # else the thread does it: until then its number must not become another's
        self._lifeline.close()
        self._control.close()
        self._dump.close()
        self._dumps.close()
        if self._starter is None or self.pid is not None:
            self._close_process()

    def _close_process(self) -> None:
        if self._group is not None:
            self._group.close()
        with contextlib.suppress(ValueError):  # somebody else has reaped it, so multiprocessing thinks that it runs
            self._process.close()


def _prepare_thread() -> None:
    resource_tracker.ensure_running()  # which unblocks SIGINT when it starts
    # What this thread starts begins with SIGINT blocked: Ctrl-C has nothing to say to it while it still imports.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def failed_start(error: BaseException) -> InitializerError:
    """Return the error of a start that did not get as far as a process."""
    text = error if isinstance(error, Exception) else repr(error)  # a SystemExit's text is a mere number
    failure = InitializerError(f"a worker process could not be started: {text}")
    failure.__cause__ = error
    return failure


def _descriptors_of(loop: asyncio.AbstractEventLoop) -> list[int]:
    """Return the descriptors that belong to the loop itself; a forked child that kept them could disturb it."""
    own = [getattr(loop, name, None) for name in ("_selector", "_ssock", "_csock")]  # asyncio's own loops
    if own[0] is not None:
        return [each.fileno() for each in own if each is not None]
    listing = Path("/proc/self/fd")  # another kind of loop, such as uvloop, hides them
    return [int(entry.name) for entry in listing.iterdir() if _is_epoll(entry)] if listing.is_dir() else []


def _is_epoll(entry: Path) -> bool:
    try:
        return str(entry.readlink()) == "anon_inode:[eventpoll]"
    except OSError:  # closed meanwhile: the one that the listing itself had open
        return False
