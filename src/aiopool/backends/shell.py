"""The asyncio shell around the dispatcher: carries out its commands, and owns the one timer."""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import Callable

from .. import wire
from ..arena import Arena
from ..calls import Call, CallKind
from ..commands import Command, Dismiss, Finish, Interrupt, Kill, Recall, Send, Spawn
from ..dispatch import Dispatcher
from ..hooks import CallStarted, Hooks
from ..phases import PoolPhase
from ..pickling import Pickling
from ..recycling import IdlePolicy, RecyclePolicy
from ..stats import Tally
from .handles import End, Handle, Observer, Setup
from .process import failed_start
from .remains import LocalRemains
from .reports import ended

__all__ = ["RESERVE", "Shell"]

DEPTH = 128
"""How many calls a worker may have in its channel: as many small messages as a socket's buffer surely takes."""

RESERVE = 8
"""Where fewer calls wait for each seat, no more than one is sent ahead to a worker, and none that is quick.

What is ahead may be answered all at once, and the loop, which then deals with all of it in one turn, has other things
to do. That matters most where few call: then nobody has flooded the pool.
"""

FUNCTION = CallKind.FUNCTION
CALL, TIMED = int(wire.Kind.CALL), int(wire.Kind.TIMED)
"""What each call needs; a member of an enumeration takes longer to look up and to compare."""

KINDS = {
    CallKind.FUNCTION: (CALL, TIMED),
    CallKind.COROUTINE: (int(wire.Kind.COROUTINE), int(wire.Kind.TIMED_COROUTINE)),
    CallKind.GENERATOR: (int(wire.Kind.GENERATOR), int(wire.Kind.TIMED_GENERATOR)),
    CallKind.ASYNC_GENERATOR: (int(wire.Kind.ASYNC_GENERATOR), int(wire.Kind.TIMED_ASYNC_GENERATOR)),
}
"""As what calls are sent: without a time limit, and where the worker is to say when it begins."""


class Shell(abc.ABC):
    """Has workers do what the dispatcher decides.

    Args:
        seats: how many.
        setup: says how workers are started where there are so many.
        policy: when they have served enough.
        grace: seconds from the interruption of a call to the end of its worker; 0 for no interruption.
        start_timeout: seconds that a worker has to become ready.
        idling: which workers go that have nothing to do.
        hooks: told what happens.
        kind: of worker.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        seats: int,
        setup: Callable[[int], Setup],
        policy: RecyclePolicy,
        *,
        grace: float,
        start_timeout: float,
        idling: IdlePolicy,
        hooks: Hooks,
        kind: Callable[[int, int, asyncio.AbstractEventLoop, Setup, Observer], Handle],
    ) -> None:
        self._tell = hooks.tell if hooks else None
        self._setup_for = setup
        self._setup = setup(seats)
        self.pickling: Pickling = self._setup.pickling
        self.concurrency: int = self._setup.looping.concurrency
        self.arena: Arena = Arena()
        self.remains: LocalRemains = LocalRemains(self)
        self._make = kind
        self._dispatcher = Dispatcher(
            seats,
            policy,
            grace=grace,
            start_timeout=start_timeout,
            concurrency=self.concurrency,
            depth=DEPTH,
            reserve=RESERVE,
            idling=idling,
        )
        self._processes = self.remains.processes
        self._unstarted: deque[int] = deque()  # workers that are to get a process
        self._tally = Tally()
        self._commands: deque[Command] = deque()
        self._performing = False
        self._notice: Callable[[], None] | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at: float | None = None  # uvloop's handle does not know its time when it is due at once
        self._settled_in = PoolPhase.NEW
        self._started: asyncio.Future[None]
        self._closed: asyncio.Future[None] | None = None
        self._resized: asyncio.Future[bool] | None = None  # whether the pool still ran

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self._dispatcher.phase

    # What workers do, see `Observer`.

    @abc.abstractmethod
    def received(self, worker: int, frames: list[wire.Frame]) -> None:
        """A worker sent messages."""

    @abc.abstractmethod
    def garbled(self, worker: int) -> None:
        """A worker sent what is no message."""

    @abc.abstractmethod
    def gone(self, worker: int, end: End) -> None:
        """A worker's process has been reaped, or could not be started."""

    # What remains of it needs these.

    @abc.abstractmethod
    def abandon(self) -> None:
        """End everything for a pool that nobody holds any more."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return the state in a few words."""

    # Commands.

    def _plan(self, commands: list[Command]) -> None:
        """Have commands be carried out next, behind those that are to be already.

        Workers get what is next before callers get what is done: that may have to be unpickled for long.
        """
        if len(commands) > 1:
            sends = [command for command in commands if isinstance(command, Send)]
            commands = sends + [command for command in commands if not isinstance(command, Send)]
        self._commands.extend(commands)

    def _perform(self, commands: list[Command]) -> None:
        """Carry out commands, also when carrying one out leads to more."""
        self._plan(commands)
        if self._performing:
            return
        self._performing = True
        try:
            while self._commands:
                self._perform_one(self._commands.popleft())
        finally:
            self._performing = False
            if self._commands:  # interrupted: the rest is not lost
                self.loop.call_soon(self._perform, [])
        self._settle()

    def _perform_one(self, command: Command) -> None:
        if isinstance(command, Finish):  # not as a case: each call has these two, and a case takes its time
            call, outcome, now = command.call, command.outcome, self.loop.time()
            self._tally.ended(call, outcome, now)
            if self._tell is not None:
                self._tell(ended(call, outcome, now))
            call.finish(outcome)
        elif isinstance(command, Send):
            call = command.call
            process = self._processes[command.worker]
            process.send(_message(call), call.id)
            if self._tell is not None:
                self._tell(CallStarted(call.id, call.name, process.seat, process.pid))
        else:
            self._perform_seldom(command)

    def _perform_seldom(self, command: Spawn | Recall | Interrupt | Dismiss | Kill) -> None:
        match command:
            case Interrupt(worker, call):
                self._processes[worker].interrupt(call.id)
            case Spawn(worker, _seat):
                self._unstarted.append(worker)
                if len(self._unstarted) == 1:
                    self.loop.call_soon(self._start_next)
            case Dismiss(worker, reason):
                if reason is not None:
                    self._tally.recycled(reason)
                self._processes[worker].dismiss()
            case Kill(worker):
                self._kill(worker)
            case Recall(worker):  # pragma: no branch - there is no other command
                self._take_back(worker)

    def _take_back(self, worker: int) -> None:
        """Take back what a worker has not begun. Meanwhile it may read any of it, so we look at what has come."""
        calls = [wire.call_of(packet) for packet in self._processes[worker].take_back()]
        self._perform(self._dispatcher.recalled(worker, calls, self.loop.time()))

    def _kill(self, worker: int) -> None:
        if worker in self._processes:
            self._processes[worker].kill()
        elif worker in self._unstarted:  # else it could not even be started, which is reported already
            self._unstarted.remove(worker)
            self._perform(self._dispatcher.died(worker, None, None, self.loop.time()))

    def _start_next(self) -> None:
        """Start one process; the next has to wait for the loop's next turn, or many would hold up everything else."""
        try:
            if self._unstarted:
                self._spawn(self._unstarted.popleft())
        finally:
            if self._unstarted:
                self.loop.call_soon(self._start_next)

    def _spawn(self, worker: int) -> None:
        try:
            seat = self._dispatcher.workers[worker].seat.number
            process = self._make(worker, seat, self.loop, self._setup, self)
        except OSError as error:  # no descriptors left
            failure = failed_start(error)
            self._perform(self._dispatcher.died(worker, None, None, self.loop.time(), cause=failure))
            return
        self._processes[worker] = process
        process.launch()

    def _settle(self) -> None:
        """After the commands: wake who waits for a phase, and set the timer."""
        if self._closed is None:
            return
        phase = self._dispatcher.phase
        if phase is not self._settled_in:
            self._settle_in(phase, self._closed)
        if self._resized is not None and (phase is not PoolPhase.RUNNING or not self._dispatcher.resizing):
            self._resized.set_result(phase is PoolPhase.RUNNING)
            self._resized = None
        deadline = self._dispatcher.deadline()
        if deadline != self._timer_at:
            self._set_timer(deadline)
        if self._notice is not None:
            self._notice()

    def _settle_in(self, phase: PoolPhase, closed: asyncio.Future[None]) -> None:
        """The pool has come to another phase."""
        self._settled_in = phase
        if phase is not PoolPhase.STARTING and not self._started.done():
            self._started.set_result(None)
        if phase is PoolPhase.CLOSED:
            closed.set_result(None)
            self._over()

    def _set_timer(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, deadline
        if deadline is not None and self._settled_in is not PoolPhase.CLOSED:
            self._timer = self.loop.call_at(deadline, self._tick)

    def _over(self) -> None:
        """Nothing is kept for a pool that is closed."""
        self.arena.close()
        self.remains.forget_shares()

    def _tick(self) -> None:
        """Act on deadlines, behind what has come: it may be this process that was stopped, and not a call too slow."""
        self._timer = self._timer_at = None
        try:
            for process in list(self._processes.values()):
                process.listen()
        finally:
            self._perform(self._dispatcher.tick(self.loop.time()))

    def _now(self) -> float:
        return self.loop.time() if self._closed is not None else 0.0


def _message(call: Call) -> list[wire.Packet]:
    """Return the packets by which a worker gets a call."""
    if call.kind is FUNCTION:
        return wire.encode(CALL if call.limits.timeout is None else TIMED, call.id, call.payload)
    kind = KINDS[call.kind][call.limits.timeout is not None or call.loading]
    return wire.encode(kind, call.id, call.payload, call.window)
