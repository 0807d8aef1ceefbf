"""A pool on this machine: what users want and what workers do, as the dispatcher is told of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from .. import log_records, wire
from ..calls import Call, Reply, ids
from ..commands import Finish
from ..exceptions import AioPoolError, InitializerError
from ..hooks import WorkerLeft, WorkerStarted
from ..phases import PoolPhase, WorkerPhase
from ..seats import Worker
from ..sharing import CallPayload, Share
from ..stacks import WorkerStack
from ..stats import PoolStats
from .base import not_running
from .handles import End, Handle
from .remains import abandon_all
from .reports import ANSWERS, VALUE, failure_of, reply_in
from .shell import Shell
from .start_methods import UNGUARDED, UNGUARDED_TEXT
from .survey import stacks_of, stats_of

__all__ = ["LocalBackend"]

LULL = 0.001
"""Seconds after which workers that have enough to do are listened to, all at once."""

LOGS = (wire.Kind.LOG, wire.Kind.UNLOGGED)


class LocalBackend(Shell):
    """Runs calls in workers on this machine. See `aiopool.backends.base.Backend`, and for its arguments `Shell`."""

    loop: asyncio.AbstractEventLoop
    shortest_chunk: float = 0.0
    streams: bool = True
    _lull: asyncio.TimerHandle | None = None  # its end

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
        call.submitted = self.loop.time()
        commands = self._dispatcher.submit(call, call.submitted)
        if commands:
            self._perform(commands)

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
        self._over()
        for timer in filter(None, (self._timer, self._lull)):
            timer.cancel()
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
        self._heard(worker, frames, self.loop.time())
        self._begin_lull()

    def _begin_lull(self) -> bool:
        """Listen to nobody for a while if that can wait; return whether it is so now.

        To be woken for each answer takes more time than the answer.
        """
        if self._lull is None and self._dispatcher.at_ease:
            self._lull = self.loop.call_later(LULL, self._end_lull)
            for process in self._processes.values():
                process.pause_reading()
        return self._lull is not None

    def _end_lull(self) -> None:
        try:
            for process in list(self._processes.values()):
                process.listen()
        finally:
            self._lull = None
            if not self._begin_lull():
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
            self._perform(self._dispatcher.unfit(worker, failure_of(frame.payload), now))
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
        now = self.loop.time()
        self._plan(self._dispatcher.died(worker, end.pid, end.exitcode, now, unseen=unseen, cause=cause))
        if self._tell is not None:  # behind that, or a call made by who is told might be for the one that has left
            self._tell(WorkerLeft(leaver.seat.number, end.pid, end.exitcode, why))
        self._perform([])

    def _unseen(self, worker: int, unread: int) -> int:
        """Return how many of the calls that were sent to a worker it has not wholly read, and so not begun."""
        unseen = 0
        for call in reversed(self._dispatcher.workers[worker].calls):
            if unread <= 0:
                break
            unread -= wire.packets(call.payload)
            unseen += 1
        return unseen


_ENDS = {WorkerPhase.LEAVING: "left", WorkerPhase.KILLED: "killed"}
