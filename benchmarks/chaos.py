"""Chaos: workers are killed at random, calls are cancelled and timed out at random, and every call is accounted for.

    python benchmarks/chaos.py --minutes 10 --seed 1

does that with each start method, prints a table for each, and exits with 1 if anything is amiss: a call that has not
ended, or not once, or not as its fate allows; one that ran twice and was not to be tried again; a worker that died and
was not killed; an exception that nobody caught; a process, zombie, descriptor, task or file in /dev/shm that is left
when a pool is gone; memory that has grown from the first tenth of the run to the last.

Beside this: `chaos_clients` makes the calls, `chaos_jobs` runs in the workers, `chaos_watch` kills from outside,
`chaos_ledger` keeps the accounts, `chaos_traces` finds what is left, `chaos_named` whose it is in /dev/shm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import gc
import importlib
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
import unittest.mock
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_clients import Client, Terms
from chaos_jobs import deaths_of, no_core
from chaos_ledger import Ledger
from chaos_traces import Memory, Traces, left_since
from chaos_watch import Murderer, Toll, Watch

from aiopool import AioPool
from aiopool.losses import FAILURE_BUDGET

METHODS = ("forkserver", "spawn", "fork")

CLIENTS = (2, 12, 12)
"""How many there may be at a time: too few for all workers, or more than enough."""

LIFE = 5.0
"""Seconds that a pool lives, at most."""

LONG = 300.0
"""Seconds from which on a run must have seen everything that it is to see."""

WAYS = ("drain", "close", "terminate", "raise", "cancel")
"""How a pool is left: when all calls have ended; with calls in flight; by terminate(), an exception, a cancellation."""

EVERYTHING = {
    "outcomes": {"value", "raised", "no memory", "died", "timed out", "cancelled", "refused", "terminated", "closed"},
    "fates": {"exit", "kill", "crash", "bomb", "abandon", "hoard", "spin", "sleep", "resist", "child"},
    "ends": {"recycled by count", "recycled by age", "recycled by memory", "killed by the pool", "died"},
    "kills": {"idle", "busy", "starting", "half-way in", "half-way out", "greedy"},
    "ways": set(WAYS),
}


IN_PIECES = 0.3
"""The part of pools whose large arguments go through the socket, since there is no memory to pass on."""


def no_memory() -> contextlib.AbstractContextManager[object]:
    """Have the system refuse memory that could be passed on."""
    return unittest.mock.patch.object(os, "memfd_create", side_effect=OSError(errno.ENOMEM, "no memory"))


class LeaveError(Exception):
    """Leaves a pool's block."""


class Chaos:
    """One run with one start method.

    Args:
        method: the start method.
        seconds: how long.
        seed: of chance.
        hang: seconds after which something that has not ended never will.
        folder: for the journals.
        coroutines: which part of the calls are coroutines or generators.
    """

    def __init__(
        self, method: str, seconds: float, seed: int, hang: float, folder: Path, coroutines: float = 0.0
    ) -> None:
        self.ledger = Ledger()
        self.toll = Toll()
        self.verbs: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.memory = Memory(seconds)
        self.took = 0.0
        self._method = method
        self._seconds = seconds
        self._hang = hang
        self._coroutines = coroutines
        self._watchdog: asyncio.TimerHandle
        self._folder = folder
        self._chance = random.Random(f"{method} {seed}")  # noqa: S311 - chance, not secrecy

    async def run(self) -> None:
        """Let pool follow pool until the time is up."""
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        await self._one_pool(min(LIFE, self._seconds / 10))  # so that what is made once, is made
        before = Traces.now()
        begin, tenth = time.monotonic(), 0
        while self.took < self._seconds:
            await self._one_pool(max(0.5, min(LIFE, self._seconds / 15, self._seconds - self.took)))
            gc.collect()
            await asyncio.sleep(0)  # what async generators have left is disposed of by tasks
            if waiting := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(waiting, timeout=1)
            gc.collect()  # what they have left
            self.ledger.amiss += left_since(before, self.toll.pids)
            self.toll.pids.clear()
            self.took = time.monotonic() - begin
            self.memory.sample(self.took)
            if self.took * 10 // self._seconds > tenth:
                tenth = int(self.took * 10 // self._seconds)
                self._tell()

    def judge(self) -> list[str]:
        """Return what is amiss, now that everything has ended."""
        amiss = self.ledger.amiss + self.memory.amiss()
        amiss += [f"a call ran after its pool was gone: {path}" for path in self._folder.iterdir()]
        if self._seconds >= LONG:
            seen = {
                "outcomes": self.ledger.outcomes, "fates": self.ledger.fates, "ends": self.toll.ends,
                "kills": self.toll.kills, "ways": self.ways,
            }  # fmt: skip
            for what, wanted in EVERYTHING.items():
                amiss += [f"it never came to this: {what}, {each}" for each in sorted(wanted - seen[what].keys())]
        return amiss

    # One pool.

    def _new_pool(self) -> tuple[AioPool, Terms, bool, int]:
        """Return a pool with options of chance, what it promises, whether it is bounded, and how long maps may be."""
        chance = self._chance
        lifetime = chance.choice([1, 10, 100, None])
        timeout, retries = chance.choice([None, None, 0.5]), chance.choice([0, 0, 1])
        bound = chance.choice([None, None, None, 8, 50])
        pool = AioPool(
            chance.randint(1, 4), no_core, (),
            lifetime,
            self._method,
            max_age=chance.choice([0.3, 2.0, None]),
            max_memory_per_child=chance.choice([100_000_000, 150_000_000, None]),
            recycle_jitter=chance.choice([0, 0.5]),
            max_pending=bound,
            cancel_grace=chance.choice([0, 0.05, 0.5]),
            concurrency=chance.choice([1, 2, 8, 32]) if self._coroutines else 1,
            timeout=timeout,
            retries=retries,
        )  # fmt: skip
        return (
            pool,
            Terms({}, timeout, 1 + retries),
            bound is not None,
            20 if lifetime is None else min(20, 4 * lifetime),
        )

    async def _one_pool(self, seconds: float) -> None:
        """Open a pool, let clients and a murderer loose on it, leave it in a way of chance, and settle its accounts."""
        way = self._chance.choice(WAYS)
        self.ways[way] += 1
        pool, terms, bounded, most = self._new_pool()
        Watch(pool, self.ledger, self.toll)
        murderer = Murderer(pool, self._chance, self.ledger, self.toll)
        journal = self._folder / f"journal-{self.ways.total()}"
        journal.touch()
        clients = [
            Client(
                pool,
                terms,
                str(journal),
                self.ledger,
                self.verbs,
                self._chance,
                bounded=bounded,
                most=most,
                coroutines=self._coroutines,
            )
            for _ in range(self._chance.choice(CLIENTS))
        ]
        self._expect_progress(pool)
        with no_memory() if self._chance.random() < IN_PIECES else contextlib.nullcontext():
            await self._use(pool, way, seconds, clients, murderer)
        self._watchdog.cancel()
        signal.alarm(0)
        also_possible = set[str]()
        if way != "drain":
            also_possible |= {"closed", "cut off"}
        if way in ("terminate", "raise", "cancel"):
            also_possible |= {"terminated"}
        if murderer.kills > FAILURE_BUDGET:
            also_possible |= {"broken"}
        self.ledger.settle(journal, also_possible)

    async def _use(self, pool: AioPool, way: str, seconds: float, clients: list[Client], murderer: Murderer) -> None:
        """Be in the block of a pool for so long, then leave it; return when everybody has ended."""
        loop = asyncio.get_running_loop()
        at_work: list[asyncio.Task[None]] = []
        people: list[Client | Murderer] = [*clients, murderer]

        async def block() -> None:
            async with pool:
                at_work.extend(loop.create_task(each.run()) for each in people)
                await asyncio.sleep(seconds)
                if way == "drain":
                    for each in people:
                        each.over = True
                    await asyncio.wait(at_work[:-1])
                elif way == "terminate":
                    pool.terminate()
                elif way == "raise":
                    raise LeaveError
                elif way == "cancel":
                    loop.call_later(self._chance.expovariate(20), task.cancel)

        task = loop.create_task(block())
        await asyncio.wait([task])
        ended = await asyncio.gather(task, *at_work, return_exceptions=True)
        expected = {"raise": LeaveError, "cancel": asyncio.CancelledError}.get(way, type(None))
        if not isinstance(ended[0], expected | None):
            self.ledger.amiss.append(f"the block, left by {way}, raised {ended[0]!r}")
        self.ledger.amiss += [f"a client or the murderer raised {each!r}" for each in ended[1:] if each is not None]

    # What must not happen.

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.ledger.amiss.append(f"unhandled: {context}")

    def _expect_progress(self, pool: AioPool, ends: int = -1) -> None:
        """Give up if no call has ended since this was last looked at."""
        if ends == self.ledger.ends:
            self._give_up(pool)
        self._watchdog = asyncio.get_running_loop().call_later(
            self._hang, self._expect_progress, pool, self.ledger.ends
        )
        signal.alarm(int(3 * self._hang))  # if the loop itself hangs

    def _give_up(self, pool: AioPool) -> None:
        """Something hangs: tell what, and end everything."""
        self.ledger.amiss.append(f"{pool!r} hangs")
        self.ledger.amiss += [f"{entry} has not ended" for entry in self.ledger.unended()]
        try:
            self.report(self.ledger.amiss)
            faulthandler.dump_traceback()
        finally:
            os._exit(1)

    # What is told.

    def _tell(self) -> None:
        print(
            f"{self._method}: {self.took:.0f} of {self._seconds:.0f} s, {self.ledger.calls} calls,"
            f" {self.toll.workers} workers, {len(self.ledger.amiss)} things amiss",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def report(self, amiss: list[str]) -> None:
        """Print the table."""
        ledger, toll, took = self.ledger, self.toll, max(self.took, 0.001)
        (bytes_first, blocks_first), (bytes_last, blocks_last) = self.memory.tenths()
        deadly = {fate: count for fate, count in ledger.fates.items() if deaths_of(fate, 0)}
        rows = {
            "calls": f"{ledger.calls} in {took:.0f} s: {ledger.calls / took:.0f} /s",
            "outcomes": _listed(ledger.outcomes),
            "verbs": _listed(self.verbs),
            "runs": f"{ledger.fates.total()}, of these another try {ledger.retried}",
            "pools": f"{self.ways.total()}, left by: {_listed(self.ways)}",
            "workers": f"{toll.workers}: {_listed(toll.ends)}",
            "killed by jobs": _listed(Counter(deadly)),
            "from outside": _listed(toll.kills),
            "memory": f"first tenth {bytes_first / 2**20:.1f} MiB, last tenth {bytes_last / 2**20:.1f} MiB",
            "blocks": f"first tenth {blocks_first:.0f}, last tenth {blocks_last:.0f}",
            "verdict": f"{len(amiss)} THINGS AMISS" if amiss else "every call accounted for, nothing left",
        }
        print(f"\n{self._method}")
        for name, text in rows.items():
            print(f"  {name:<15} {text}")
        for each in amiss[:30]:
            print(f"  AMISS: {each:.500}")
        sys.stdout.flush()


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def run(
    method: str, seconds: float, seed: int, hang: float, loop_factory: Callable[[], Any] | None, coroutines: float
) -> bool:
    """Run chaos with one start method, print its table, and return whether all was well."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_warm_up(method))
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(method, seconds, seed, hang, Path(folder), coroutines)
        with _witness(chaos.ledger.amiss):
            before = Traces.now()
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(chaos.run())
            chaos.ledger.amiss += left_since(before, chaos.toll.pids)
        amiss = chaos.judge()
        chaos.report(amiss)
    return not amiss


async def _warm_up(method: str) -> None:
    """Start what multiprocessing keeps for the life of the program."""
    async with AioPool(1, context=method):
        pass


@contextlib.contextmanager
def _witness(amiss: list[str]) -> Any:
    """Have warnings, and exceptions that nobody can catch, count as amiss."""
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda what: amiss.append(f"unraisable: {what.exc_value!r} in {what.object!r}")
    threading.excepthook = lambda what: amiss.append(f"in a thread: {what.exc_value!r}")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield
    finally:
        amiss += [f"warning: {warning.message}" for warning in seen]
        sys.unraisablehook, threading.excepthook = hooks


def main() -> int:
    """Read the options, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each start method (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is decided by chance (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="start methods (all)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="(%(default)s)")
    parser.add_argument("--hang", type=float, default=90.0, help="seconds until a call counts as lost (%(default)s)")
    parser.add_argument(
        "--coroutines", type=float, default=0.0, metavar="PART",
        help="which part of the calls are coroutines or generators, from 0 to 1 (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args()
    faulthandler.register(signal.SIGALRM, chain=True)
    loop_factory = importlib.import_module(options.loop).new_event_loop
    print(
        f"chaos: {options.minutes:g} minutes for each start method, seed {options.seed}, {options.loop},"
        f" Python {platform.python_version()}",
        flush=True,
    )
    well = [
        run(method, options.minutes * 60, options.seed, options.hang, loop_factory, options.coroutines)
        for method in options.methods
    ]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
