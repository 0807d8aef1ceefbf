"""The chaos program's eyes and hands within a pool: how each call is finished, how workers go; and their murderer.

A pool says less of itself than accounts and murder need, so this looks at its private parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chaos_jobs import LIMIT
from chaos_ledger import Ledger

from aiopool import AioPool
from aiopool.phases import PoolPhase, WorkerPhase
from aiopool.wire import Kind

if TYPE_CHECKING:
    from aiopool.backends.handles import End
    from aiopool.backends.process import WorkerProcess
    from aiopool.calls import Call, Outcome
    from aiopool.wire import Frame

WEIGHTS: dict[WorkerPhase | None, float] = {None: 1.0, WorkerPhase.STARTING: 0.1, WorkerPhase.IDLE: 3.0}
"""How likely a worker in this phase, or nobody, is killed, where that is not 1. (Some must get as far as to work.)"""

TICK = 0.004
"""Seconds between two looks at what is on its way."""


class Toll:
    """What has become of the workers of a run.

    Attributes:
        workers: how many there were.
        pids: of those of the present pool.
        ends: how they went.
        kills: which blows from outside there were.
    """

    def __init__(self) -> None:
        self.workers = 0
        self.pids: set[int] = set()
        self.ends: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()


class Watch:
    """Looks on while a pool works. Made before the pool has started."""

    def __init__(self, pool: AioPool, ledger: Ledger, toll: Toll) -> None:
        self._ledger = ledger
        self._toll = toll
        self._heavy: set[int] = set()
        self._backend = cast("Any", pool._backend)  # noqa: SLF001 - see the module's text
        backend = self._backend
        self._submit, self._received, self._gone = backend.submit, backend.received, backend.gone
        backend.submit, backend.received, backend.gone = self.submit, self.received, self.gone

    def submit(self, call: Call) -> None:
        """Count how often this call's outcome is told."""
        finish = call.finish

        def counted(outcome: Outcome) -> None:
            self._ledger.finished(call.id)
            finish(outcome)

        call.finish = counted
        self._ledger.submitted(call.id)
        self._submit(call)

    def received(self, worker: int, frames: list[Frame]) -> None:
        """Remember which workers have grown too large."""
        if any(frame.kind == Kind.HEAVY for frame in frames):
            self._heavy.add(worker)
        self._received(worker, frames)

    def gone(self, worker: int, end: End) -> None:
        """Note how a worker has gone."""
        if end.pid is not None:
            self._toll.workers += 1
            self._toll.pids.add(end.pid)
            self._toll.ends[self._way(worker)] += 1
            record = self._backend._dispatcher.workers[worker]  # noqa: SLF001
            if record.is_stopping and record.width > 1 and end.exitcode is not None:
                self._ledger.killed(end.pid, end.exitcode)  # for those beside one that did not stop
        self._gone(worker, end)

    def _way(self, worker: int) -> str:
        record = self._backend._dispatcher.workers[worker]  # noqa: SLF001
        if record.phase is WorkerPhase.KILLED:
            return "killed by the pool"
        if record.phase is not WorkerPhase.LEAVING:
            return "died"
        if record.allowance.spent(record.taken):
            return "recycled by count"
        if record.due:
            return "recycled by memory" if worker in self._heavy else "recycled by age"
        return "left at the end"


class Murderer:
    """Kills workers from outside: at any time, idle, half-way through a message, or when they take too much memory.

    Args:
        pool: whose workers.
        chance: decides.
        ledger: is told, so that what follows is explained.
        toll: is told, too.
    """

    def __init__(self, pool: AioPool, chance: random.Random, ledger: Ledger, toll: Toll) -> None:
        self.kills = 0
        self.over = False
        self._backend: Any = pool._backend  # noqa: SLF001 - see the module's text
        self._chance = chance
        self._ledger = ledger
        self._toll = toll

    async def run(self) -> None:
        """Go about it until the pool takes no more calls."""
        loop = asyncio.get_running_loop()
        next_at = loop.time() + self._chance.expovariate(1.5)
        while not self.over and self._backend.phase is PoolPhase.RUNNING:
            await asyncio.sleep(TICK)
            for process in list(self._backend._processes.values()):  # noqa: SLF001
                if self._chance.random() < 0.05 and (where := self._half_way(process)):
                    self._kill(process, where)
            if loop.time() > next_at:
                next_at = loop.time() + self._chance.expovariate(1.5)
                self._kill_some()

    def _kill_some(self) -> None:
        """Kill those who take too much memory, as the kernel would; or else anybody."""
        workers = self._backend._dispatcher.workers  # noqa: SLF001
        living = [process for process in self._backend._processes.values() if process.pid]  # noqa: SLF001
        if greedy := [process for process in living if _resident(process.pid) > LIMIT]:
            for process in greedy:
                self._kill(process, "greedy")
            return
        by_phase: dict[WorkerPhase | None, list[WorkerProcess]] = {None: []}
        for process in living:
            by_phase.setdefault(workers[process.number].phase, []).append(process)
        (phase,) = self._chance.choices([*by_phase], [WEIGHTS.get(phase, 1.0) for phase in by_phase])
        if phase is not None:
            self._kill(self._chance.choice(by_phase[phase]), phase.value)

    def _half_way(self, process: WorkerProcess) -> str:
        """Return in which direction a large message is on its way, or an empty string."""
        channel = process._channel  # noqa: SLF001
        if channel is None or process.pid is None:
            return ""
        if channel._unsent:  # noqa: SLF001
            return "half-way in"
        decoder = channel._decoder  # noqa: SLF001
        return "half-way out" if decoder.awaits_descriptor or decoder._large is not None else ""  # noqa: SLF001

    def _kill(self, process: WorkerProcess, when: str) -> None:
        number = self._chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV])
        if (group := process._group) is not None:  # noqa: SLF001
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                group.signal(number)
                self.kills += 1
                self._ledger.killed(group.pid, -number)
                self._toll.kills[when] += 1


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
