"""Chaos: workers are killed at random, calls are cancelled and timed out at random, and every call is accounted for.

    python benchmarks/chaos.py --minutes 10 --seed 1 --methods forkserver spawn fork

At the end: each call has ended exactly once, and with what its fate allows; none has run twice unless it was tried
again; no process, descriptor, file in /dev/shm or task is left; what memory there is, is shown. Exits with 1 if
anything is amiss.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiopool import AioPool, BrokenPool, CallTimeout, PoolFull, WorkerDied

CLIENTS = 12
LARGEST = 50_000_000
PERIOD = 5.0
"""Seconds that one pool lives."""


def begin(journal: str, number: int) -> None:
    """Note that a call runs."""
    with open(journal, "ab", buffering=0) as file:  # noqa: PTH123 - in a worker
        file.write(b"%d\n" % number)


def job(journal: str, number: int, what: str, size: int) -> bytes:
    """Do what chance has decided."""
    begin(journal, number)
    match what:
        case "exit":
            os._exit(size % 256)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raise":
            raise LookupError(number)
        case "spin":
            while True:
                size += 1
        case "sleep":
            time.sleep(1000)
    return bytes(size)


def no_core() -> None:
    """Initializer: crashes are meant to happen, and need no dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Chaos:
    """One run with one start method."""

    def __init__(self, method: str, seed: int, journal: str) -> None:
        self.method = method
        self.random = random.Random(seed)  # noqa: S311 - chance, not secrecy
        self.journal = journal
        self.number = 0
        self.tries: dict[int, int] = {}  # by call, how often it may run
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.open = 0

    async def run(self, seconds: float) -> None:
        """Let pool follow pool until the time is up."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.one_pool(min(PERIOD, until - time.monotonic()))

    async def one_pool(self, seconds: float) -> None:
        """Open a pool with options of chance, let clients loose on it, and leave it in a way of chance."""
        chance = self.random
        async with contextlib.AsyncExitStack() as stack:
            pool = await stack.enter_async_context(
                AioPool(
                    chance.randint(1, 4),
                    no_core,
                    context=self.method,
                    maxtasksperchild=chance.choice([None, 1, 20, 200]),
                    max_age=chance.choice([None, 0.5]),
                    max_memory_per_child=chance.choice([None, 120_000_000]),
                    recycle_jitter=chance.choice([0, 0.5]),
                    max_pending=chance.choice([None, 5]),
                    cancel_grace=chance.choice([0, 0.05, 1.0]),
                )
            )
            async with asyncio.TaskGroup() as clients:
                ending = asyncio.get_running_loop().time() + seconds
                clients.create_task(self.murderer(pool, ending))
                for _ in range(CLIENTS):
                    clients.create_task(self.client(pool, ending))
            if chance.random() < 0.3:
                pool.terminate()

    async def murderer(self, pool: AioPool, ending: float) -> None:
        """Kill workers from outside."""
        loop = asyncio.get_running_loop()
        while loop.time() < ending:
            await asyncio.sleep(self.random.expovariate(1))
            pids = [process.pid for process in pool._backend._processes.values() if process.pid]  # type: ignore[attr-defined]  # noqa: SLF001
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.random.choice(pids), signal.SIGKILL)

    async def client(self, pool: AioPool, ending: float) -> None:
        """Make one call after the other."""
        loop = asyncio.get_running_loop()
        deeds: list[Callable[[AioPool], Awaitable[None]]] = [self.call, self.call, self.call, self.map, self.imap]
        while loop.time() < ending:
            try:
                await self.random.choice(deeds)(pool)
            except BrokenPool:  # chance has killed them faster than they could start
                self.ended["broken"] += 1
                return

    def arguments(self, what: str, retries: int = 0) -> tuple[str, int, str, int]:
        """Return the arguments of a new call."""
        self.number += 1
        self.tries[self.number] = 1 + retries
        size = int(LARGEST ** self.random.random()) if self.random.random() < 0.02 else self.random.randint(0, 2000)
        return self.journal, self.number, what, size

    async def call(self, pool: AioPool) -> None:
        """One call, with a fate of chance."""
        what = self.random.choices(
            ["value", "raise", "exit", "kill", "crash", "spin", "sleep"], [60, 10, 3, 3, 2, 3, 3]
        )[0]
        retries = self.random.choice([0, 0, 2])
        args = self.arguments(what, retries)
        endless = what in ("spin", "sleep")
        timeout = self.random.uniform(0.01, 0.1) if endless or self.random.random() < 0.1 else None
        patience = self.random.expovariate(30) if self.random.random() < 0.2 else None
        self.open += 1
        outcome = "?"
        try:
            async with asyncio.timeout(patience):
                value = await pool.apply(job, args, timeout=timeout, retries=retries)
            outcome = "value"
            if len(value) != args[3] or what != "value":
                self.wrong.append(f"call {args} returned {len(value)} bytes")
        except LookupError as error:
            outcome = "raised"
            if what != "raise" or error.args != (args[1],):
                self.wrong.append(f"call {args} raised {error!r}")
        except CallTimeout:
            outcome = "timed out"
        except TimeoutError:
            outcome = "cancelled"
        except WorkerDied:
            outcome = "died"
        finally:
            self.open -= 1
        self.ended[outcome] += 1

    async def map(self, pool: AioPool) -> None:
        """A map, or a result that is cancelled."""
        items = [self.arguments("value") for _ in range(self.random.randint(0, 20))]
        outcome = "map"
        try:
            result = pool.starmap_async(job, items, self.random.choice([None, 1, 3]))
        except PoolFull:
            self.ended["map refused"] += 1
            return
        if self.random.random() < 0.3:
            await asyncio.sleep(self.random.expovariate(100))
            result.cancel()
        try:
            values = await result
            if [len(value) for value in values] != [item[3] for item in items]:
                self.wrong.append("a map's values are not in order")
        except WorkerDied:
            outcome = "map died"
        except asyncio.CancelledError:
            outcome = "map cancelled"
        self.ended[outcome] += 1

    async def imap(self, pool: AioPool) -> None:
        """A stream, maybe left early."""
        items = [self.arguments("value") for _ in range(self.random.randint(0, 20))]
        leave_at = self.random.randint(0, 30)
        stream, got = pool.imap(unpack, items, self.random.choice([1, 4])), 0
        while True:
            try:
                value = await anext(stream)
            except WorkerDied:
                continue
            except StopAsyncIteration:
                break
            got += 1
            if len(value) not in {item[3] for item in items}:
                self.wrong.append("a stream has a stranger's value")
            if got == leave_at:
                break
        self.ended["imap"] += 1

    def check_journal(self) -> None:
        """See how often each call has run."""
        runs = Counter(map(int, Path(self.journal).read_text().split()))
        for number, count in runs.items():
            if count > self.tries[number]:
                self.wrong.append(f"call {number} ran {count} times, and might {self.tries[number]} times")


def unpack(args: tuple[str, int, str, int]) -> bytes:
    """Call the job from a stream."""
    return job(*args)


def resident() -> int:
    """Return this process's resident memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def leftovers() -> tuple[set[str], set[str], set[str]]:
    """Return children, descriptors and shared memory."""
    children = {
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    }
    descriptors = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    return children, descriptors, {entry.name for entry in Path("/dev/shm").iterdir()}  # noqa: S108


def run(method: str, seconds: float, seed: int) -> list[str]:
    """Run chaos with one start method; print what there was, and return what is amiss."""
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(method, seed, str(Path(folder) / "journal"))
        Path(chaos.journal).touch()

        async def main() -> None:
            await chaos.run(seconds / 10)
            gc.collect()
            sizes.append(resident())
            await chaos.run(seconds * 9 / 10)
            if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                chaos.wrong.append(f"tasks are left: {tasks}")

        sizes: list[int] = []
        asyncio.run(main())
        gc.collect()
        sizes.append(resident())
        chaos.check_journal()
        if chaos.open:
            chaos.wrong.append(f"{chaos.open} calls have not ended")
    table = ", ".join(f"{outcome} {count}" for outcome, count in sorted(chaos.ended.items()))
    print(f"{method:<10} {sum(chaos.ended.values()):>7} deeds, {chaos.number} calls: {table}")
    print(f"{'':<10} memory after a tenth {sizes[0] >> 20} MiB, at the end {sizes[1] >> 20} MiB")
    return chaos.wrong


def main() -> int:
    """Read the options, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each start method (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=["forkserver", "spawn", "fork"])
    options = parser.parse_args()
    wrong = []
    asyncio.run(warm_up())
    for method in options.methods:
        before = leftovers()
        wrong += run(method, options.minutes * 60, options.seed)
        after = leftovers()
        wrong += [f"{method}: left over: {new}" for old, new in zip(before, after, strict=True) if not new <= old]
    for each in wrong[:50]:
        print("AMISS:", each)
    print("all accounted for" if not wrong else f"{len(wrong)} things amiss")
    return 1 if wrong else 0


async def warm_up() -> None:
    """Start what multiprocessing keeps for the life of the program."""
    async with AioPool(1):
        pass


if __name__ == "__main__":
    sys.exit(main())
