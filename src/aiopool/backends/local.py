"""The asyncio shell around the dispatcher: carries out its commands, feeds it events, owns the one timer."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from time import monotonic

from .. import log_records, wire
from ..arena import Arena
from ..calls import Call, CallKind, Reply, ids
from ..commands import Command, Dismiss, Finish, Interrupt, Kill, Recall, Send, Spawn
from ..dispatch import Dispatcher
from ..exceptions import AioPoolError, InitializerError
from ..hooks import CallStarted, Hooks, WorkerLeft, WorkerStarted
from ..phases import PoolPhase, WorkerPhase
from ..pickling import Pickling
from ..recycling import IdlePolicy, RecyclePolicy
from ..seats import Worker
from ..sharing import CallPayload, Share
from ..stacks import WorkerStack
from ..stats import PoolStats, Tally
from .base import not_running
from .handles import End, Handle, Observer, Setup
from .process import failed_start
from .remains import LocalRemains, abandon_all
from .reports import ANSWERS, VALUE, ended, failure_of, reply_in
from .start_methods import UNGUARDED, UNGUARDED_TEXT
from .survey import stacks_of, stats_of

__all__ = ["LocalBackend"]

DEPTH = 128
"""How many calls a worker may have in its channel: as many small messages as a socket's buffer surely takes."""

RESERVE = 8
"""Where fewer calls wait for each seat, no more than one is sent ahead to a worker.

What is ahead may be answered all at once, and the loop, which then deals with all of it in one turn, has other things
to do. That matters most where few call: then nobody has flooded the pool.
"""

LISTEN = 0.0005
"""Seconds, for each seat, after which workers are listened to while calls are made and the loop has no turn."""

LULL = 0.001
"""Seconds after which workers that have enough to do are listened to, all at once."""

CALL, TIMED = int(wire.Kind.CALL), int(wire.Kind.TIMED)
"""What each call needs; a member of an enumeration takes longer to look up and to compare."""

KINDS = {
    CallKind.FUNCTION: (CALL, TIMED),
    CallKind.COROUTINE: (int(wire.Kind.COROUTINE), int(wire.Kind.TIMED_COROUTINE)),
    CallKind.GENERATOR: (int(wire.Kind.GENERATOR), int(wire.Kind.TIMED_GENERATOR)),
    CallKind.ASYNC_GENERATOR: (int(wire.Kind.ASYNC_GENERATOR), int(wire.Kind.TIMED_ASYNC_GENERATOR)),
}
"""As what calls are sent: without a time limit, and where the worker is to say when it begins."""

LOGS = (wire.Kind.LOG, wire.Kind.UNLOGGED)


class LocalBackend:
    """Runs calls in workers on this machine. See `aiopool.backends.base.Backend`.

    Args:
        seats: how many.
        setup: says how they are started where there are so many.
        policy: when they have served enough.
        grace: seconds from the interruption of a call to the end of its worker; 0 for no interruption.
        start_timeout: seconds that a worker has to become ready.
        idling: which workers go that have nothing to do.
        hooks: told what happens.
        kind: of worker.
    """

    loop: asyncio.AbstractEventLoop
    shortest_chunk: float = 0.0
    streams: bool = True

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
        self.arena: Arena = Arena()
        self.concurrency: int = self._setup.looping.concurrency
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
        self.remains: LocalRemains = LocalRemains(self)
        self._processes = self.remains.processes
        self._unstarted: deque[int] = deque()  # workers that are to get a process
        self._tally = Tally()
        self._commands: deque[Command] = deque()
        self._performing = False
        self._listened = 0.0  # the last time; infinite while messages are dealt with, which must keep their order
        self._lull: asyncio.TimerHandle | None = None  # its end
        self._listen_every = LISTEN * seats
        self._notice: Callable[[], None] | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # kept here: when it is due at once, uvloop makes a handle that does not know its time
        self._started: asyncio.Future[None]
        self._closed: asyncio.Future[None] | None = None
        self._resized: asyncio.Future[bool] | None = None  # whether the pool still ran

    @property
    def phase(self) -> PoolPhase:
        """Where the pool stands."""
        return self._dispatcher.phase

    @property
    def seats(self) -> int:
        """How many functions may run at once, one in each worker."""
        return self._dispatcher.seats

    @property
    def resting(self) -> bool:
        """Whether no worker is there because there is nothing to do."""
        return self._dispatcher.resting

    @property
    def waiting(self) -> int:
        """How many calls no worker has yet."""
        return self._dispatcher.waiting

    @property
    def idle(self) -> int:
        """How many calls would be run at once if they came now."""
        return self._dispatcher.idle

    def watch(self, notice: Callable[[], None]) -> None:
        """Have ``notice`` called after every change."""
        self._notice = notice

    async def start(self) -> None:
        """Return when every seat has a worker that is ready; raise `InitializerError` when one fails."""
        self.loop = self.remains.loop = asyncio.get_running_loop()
        self.arena.attend(self.loop)
        self._setup = self._setup_for(self.seats)  # of which the environment is a part, as it is now
        self._started, self._closed = self.loop.create_future(), self.loop.create_future()
        self._perform(self._dispatcher.start(self.loop.time()))
        await asyncio.wait([self._started])
        if self._dispatcher.cause is not None:
            await asyncio.wait([self._closed])
            raise self._dispatcher.cause

    async def resize(self, seats: int) -> None:
        """Return when workers of new seats are ready and those of closed ones gone; or raise what a call would get."""
        if self.phase is not PoolPhase.RUNNING:
            raise self.refusal()
        self._setup = self._setup_for(seats)
        if self._resized is None:
            self._resized = self.loop.create_future()
        resized = self._resized
        self._perform(self._dispatcher.resize(seats, self.loop.time()))
        await asyncio.wait([resized])
        if not resized.result():
            raise self.refusal()

    def submit(self, call: Call) -> None:
        """Take a call."""
        call.submitted = now = self.loop.time()
        if (instant := monotonic()) - self._listened > self._listen_every:  # in uvloop, a turn is an instant
            self._listened = instant
            if self._dispatcher.slow:
                self._listen()
        commands = self._dispatcher.submit(call, now)
        if commands:
            self._perform(commands)

    def _listen(self) -> None:
        """Take note of what workers have sent, so that they get what waits."""
        for process in list(self._processes.values()):
            process.listen()

    def cancel(self, call: Call) -> None:
        """End a call. One that runs is stopped.

        A function is with its worker, unless it stops within the grace; a coroutine by being cancelled.
        """
        self._perform(self._dispatcher.cancel(call, self.loop.time()))

    def withdraw(self, call: Call) -> None:
        """End a call if it has not begun."""
        self._perform(self._dispatcher.withdraw(call, self.loop.time()))

    def grant(self, call: Call, more: int) -> None:
        """Let a call that yields values send so many more, if it still runs."""
        worker = self._dispatcher.owner(call)
        if worker is not None and worker in self._processes:
            self._processes[worker].grant(call.id, more)

    def share(self, payload: CallPayload) -> Share:
        """Return what has this payload until nobody needs it any more, or the pool is gone."""
        share = Share(next(ids), payload, self)
        self.remains.shares.add(share)
        return share

    def forget(self, share: int) -> None:
        """Have workers forget a share; here it is forgotten already. For when this is called, see `Home`."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._have_forgotten, share)

    def _have_forgotten(self, share: int) -> None:
        for process in self._processes.values():
            process.send(wire.encode(wire.Kind.DROP, share))

    def refusal(self) -> AioPoolError:
        """Return why no call is taken now."""
        return self._dispatcher.broken() if self.phase is PoolPhase.BROKEN else not_running(self.phase)

    def close(self) -> None:
        """Take no more calls; accepted ones finish, then the workers leave."""
        self._perform(self._dispatcher.close(self._now()))

    def terminate(self) -> None:
        """Fail every call and kill every worker."""
        self._perform(self._dispatcher.terminate(self._now()))

    async def join(self) -> None:
        """Return when the last worker is gone."""
        if self._closed is not None:
            await asyncio.wait([self._closed])

    def abandon(self) -> None:
        """End everything for a pool that nobody holds any more, maybe after the loop's end."""
        if self.phase in (PoolPhase.NEW, PoolPhase.CLOSED):
            return
        now = self.loop.time()
        commands = [*self._commands, *self._dispatcher.terminate(now)]  # this may be in the midst of carrying them out
        self._commands.clear()
        pids = {worker: process.pid for worker, process in self._processes.items()}
        abandon_all(self._processes)
        for worker in list(self._dispatcher.workers):
            commands += self._dispatcher.died(worker, pids.get(worker), None, now)
        self._unstarted.clear()
        self.arena.close()
        self.remains.forget_shares()
        if self._timer is not None:
            self._timer.cancel()
        if not self.loop.is_closed():
            self._perform([command for command in commands if isinstance(command, Finish)])

    def describe(self) -> str:
        """Return the state in a few words."""
        phases = [worker.phase for worker in self._dispatcher.workers.values()]
        busy = sum(phase in (WorkerPhase.BUSY, WorkerPhase.RETIRING) for phase in phases)
        return f"{self.phase.value}: {len(phases)} workers, {busy} busy, {self._dispatcher.waiting} calls waiting"

    def stats(self) -> PoolStats:
        """Return what there is, and what has been. Each thing is looked at once, since this may be another thread."""
        workers, now = self._present(), self._now()
        running = sum(len(worker.calls) for worker, _process in workers)
        stats = [stats_of(worker, process, now) for worker, process in workers]
        return self._tally.snapshot(self.phase.value, stats, self.waiting, running)

    def _present(self) -> list[tuple[Worker, Handle | None]]:
        return [(worker, self._processes.get(worker.id)) for worker in list(self._dispatcher.workers.values())]

    async def stacks(self) -> list[WorkerStack]:
        """Return what workers are doing; those that do not answer are waited for, for a moment."""
        return await stacks_of(self._present())

    # What workers do, as told by `WorkerProcess`.

    def received(self, worker: int, frames: list[wire.Frame]) -> None:
        """A worker sent messages."""
        self._listened = math.inf
        try:
            self._heard(worker, frames, self.loop.time())
        finally:
            self._listened = monotonic()
        self._rest()

    def _rest(self) -> bool:
        """Do not listen for a while, if that can wait: to be woken for each answer takes more time than the answer."""
        if self._lull is None and self._dispatcher.at_ease:
            self._lull = self.loop.call_later(LULL, self._end_lull)
            for process in self._processes.values():
                process.pause_reading()
        return self._lull is not None

    def _end_lull(self) -> None:
        try:
            self._listen()
        finally:
            self._lull = None
            if not self._rest():
                for process in self._processes.values():
                    process.resume_reading()

    def _heard(self, worker: int, frames: list[wire.Frame], now: float) -> None:
        replies: list[tuple[int, Reply]] = []
        for frame in frames:
            if frame.kind in ANSWERS:
                replies.append(reply_in(frame))
                continue
            if frame.kind == VALUE:
                self._take(worker, frame)
                continue
            self._replied(worker, replies, now)
            replies = []
            if worker in self._processes:  # else what came before has ended it
                self._told(worker, frame, now)
        self._replied(worker, replies, now)

    def _replied(self, worker: int, replies: list[tuple[int, Reply]], now: float) -> None:
        if replies and worker in self._processes:
            self._perform(self._dispatcher.replied(worker, replies, now))

    def _told(self, worker: int, frame: wire.Frame, now: float) -> None:
        """A worker sent what is no answer."""
        if frame.kind == wire.Kind.BEGUN:
            self._perform(self._dispatcher.began(worker, frame.call, now))
        elif frame.kind == wire.Kind.HEAVY:
            self._perform(self._dispatcher.due(worker, now))
        elif frame.kind == wire.Kind.READY:
            if self._tell is not None:
                process = self._processes[worker]
                self._tell(WorkerStarted(process.seat, process.pid))
            if worker in self._processes:  # else whoever was told has abandoned the pool
                self._perform(self._dispatcher.ready(worker, now))
        elif frame.kind == wire.Kind.UNFIT:
            self._perform(self._dispatcher.unfit(worker, failure_of(frame.payload or b""), now))
        elif frame.kind == wire.Kind.PROGRESS:
            self._report(worker, frame)
        elif frame.kind in LOGS:
            self._log(worker, frame)
        else:
            self.garbled(worker)

    def _report(self, worker: int, frame: wire.Frame) -> None:
        call = self._dispatcher.held(worker, frame.call)
        if call is not None and call.progress is not None and frame.payload is not None:
            call.progress(frame.payload, frame.buffers)

    def _take(self, worker: int, frame: wire.Frame) -> None:
        """A worker has sent a value of a stream; the stream's end cannot come before it, nor is it told before."""
        call = self._dispatcher.held(worker, frame.call) if worker in self._processes else None
        if call is not None and call.take is not None:
            call.take(frame.payload, frame.buffers)

    def _log(self, worker: int, frame: wire.Frame) -> None:
        try:
            log_records.handle(frame)
        except wire.WireError:  # a job has written into the channel
            self.garbled(worker)

    def garbled(self, worker: int) -> None:
        """A worker sent what is no message."""
        self._perform(self._dispatcher.garbled(worker, self.loop.time()))

    def gone(self, worker: int, end: End) -> None:
        """A worker's process has been reaped, or could not be started."""
        del self._processes[worker]
        unseen, cause = self._unseen(worker, end.unread), end.cause
        if end.exitcode == UNGUARDED:
            cause = InitializerError(UNGUARDED_TEXT)
        leaver = self._dispatcher.workers[worker]
        why = _ENDS.get(leaver.phase, "lost")
        if why == "lost":
            self._tally.lost()
        if self._tell is not None:
            self._tell(WorkerLeft(leaver.seat.number, end.pid, end.exitcode, why))
        if worker in self._dispatcher.workers:  # else whoever was told has abandoned the pool
            now = self.loop.time()
            self._perform(self._dispatcher.died(worker, end.pid, end.exitcode, now, unseen=unseen, cause=cause))

    def _unseen(self, worker: int, unread: int) -> int:
        """Return how many of the calls that were sent to a worker it has not wholly read, and so not begun."""
        unseen = 0
        for call in reversed(self._dispatcher.workers[worker].calls):
            if unread <= 0:
                break
            unread -= wire.packets(call.payload)
            unseen += 1
        return unseen

    # Commands.

    def _perform(self, commands: list[Command]) -> None:
        """Carry out commands, also when carrying one out leads to more.

        Workers get what is next before callers get what is done: that may have to be unpickled for long.
        """
        if len(commands) > 1:
            commands.sort(key=_comes_later)
        self._commands.extend(commands)
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
            now = self.loop.time()
            self._tally.ended(command.call, command.outcome, now)
            if self._tell is not None:
                self._tell(ended(command.call, command.outcome, now))
            command.call.finish(command.outcome)
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
        phase = self.phase
        if self._closed is None:
            return
        if phase is not PoolPhase.STARTING and not self._started.done():
            self._started.set_result(None)
        if phase is PoolPhase.CLOSED and not self._closed.done():
            self._closed.set_result(None)
            self.arena.close()
            self.remains.forget_shares()
        if self._resized is not None and (phase is not PoolPhase.RUNNING or not self._dispatcher.resizing):
            self._resized.set_result(phase is PoolPhase.RUNNING)
            self._resized = None
        deadline = self._dispatcher.deadline()
        if self._timer is not None and self._timer_at != deadline:
            self._timer.cancel()
            self._timer = None
        if deadline is not None and self._timer is None and phase is not PoolPhase.CLOSED:
            self._timer, self._timer_at = self.loop.call_at(deadline, self._tick), deadline
        if self._notice is not None:
            self._notice()

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._dispatcher.tick(self.loop.time()))

    def _now(self) -> float:
        return self.loop.time() if self._closed is not None else 0.0


def _comes_later(command: Command) -> bool:
    return not isinstance(command, Send)


def _message(call: Call) -> list[wire.Packet]:
    """Return the packets by which a worker gets a call."""
    if call.kind is CallKind.FUNCTION:
        return wire.encode(CALL if call.limits.timeout is None else TIMED, call.id, call.payload)
    kind = KINDS[call.kind][call.limits.timeout is not None or call.loading]
    return wire.encode(kind, call.id, call.payload, call.window)


_ENDS = {WorkerPhase.LEAVING: "left", WorkerPhase.KILLED: "killed"}
