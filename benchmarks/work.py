"""The work that is measured: each function does it with the pool of a cell, and returns one number."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from . import jobs, processes
from .cell import WORKERS, Cell, clocked, warm_up
from .limits import ARRAY_BYTES, bare_workers
from .peers import NotThere, Peer

__all__ = [
    "Work", "bare_cpu", "bare_lag", "bare_round_trip", "burst", "busy_burst", "cancel", "coroutine_round_trip",
    "coroutines", "dask_client", "dask_map", "idle", "imap", "loop_lag", "map_", "payload_in", "payload_out",
    "plain_call", "queue", "recycle", "round_trip", "share", "share_copies", "start", "start_and_exit", "stream",
    "worker_memory",
]  # fmt: skip


class WrongResults(Exception):  # noqa: N818 - what came, came without an error
    """A pool has not done what was asked for."""


Work = Callable[[Cell], Coroutine[Any, Any, float]]

BUSY = 0.0001
"""Seconds of CPU that a short call needs."""

MILLISECOND = 0.001

PATIENCE = 2.0
"""Seconds after which a line that repeats one call has repeated it often enough."""

NAP = 0.01
"""Seconds that a coroutine waits."""

AT_ONCE = 32
"""Coroutines that a worker runs at once."""

CALLERS = 8

TICK = 0.001

IDLE = 5.0

GRACE = 10.0
"""Seconds that a cancelled call has to stop, far more than it needs."""

KILLED, INTERRUPTED = 10, 100
"""Calls that are cancelled: with their workers, which takes long, or alone."""

WARM_ARRAYS = 4
"""Arrays sent before the clock starts: what a pool keeps for the next one, it keeps by then."""

SHARED_CALLS = 100

SENT_CALLS = 10
"""Calls with a large argument of its own: each costs the same, so these are enough where there is no sharing."""


# Calls in numbers.


def _check(values: Sequence[Any], items: Sequence[Any]) -> None:
    if list(values) != list(items):
        raise WrongResults(f"{len(values)} results are not those of {len(items)} calls")


async def _gathered(pool: Peer, count: int) -> float:
    began = time.perf_counter()
    values = await asyncio.gather(*(pool.call(jobs.trivial, number) for number in range(count)))
    seconds = time.perf_counter() - began
    _check(values, range(count))
    return seconds


def burst(calls: int, workers: int = WORKERS, *, each: bool = False) -> Work:
    """Return the work of a gather of trivial calls; its number is calls a second, or microseconds for each."""

    async def work(cell: Cell) -> float:
        count = cell.count(calls, 10)
        async with cell.pool(workers) as pool:
            await warm_up(pool, workers)
            await _gathered(pool, max(1, count // 10))
            seconds = await _gathered(pool, count)
        return 1e6 * seconds / count if each else count / seconds

    return work


async def busy_burst(cell: Cell) -> float:
    """Return how many cores do useful work in a gather of short calls."""
    count = cell.count(3000, 10)
    async with cell.pool() as pool:
        await warm_up(pool)
        seconds = await clocked(lambda: asyncio.gather(*(pool.call(jobs.busy, BUSY) for _ in range(count))))
    return count * BUSY / seconds


async def _round_trip(count: int, call: Callable[[], Awaitable[Any]]) -> float:
    times, until = [], time.perf_counter() + PATIENCE
    for _ in range(count):
        times.append(await clocked(call))
        if time.perf_counter() > until:
            break
    return 1000 * statistics.median(times)


async def round_trip(cell: Cell) -> float:
    """Return the milliseconds of one call at a time, at the median."""
    async with cell.pool() as pool:
        await warm_up(pool)
        return await _round_trip(cell.count(2000, 10), lambda: pool.call(jobs.trivial, 1))


async def bare_round_trip(cell: Cell) -> float:
    """Return the same of a call to a bare worker."""
    with _bare_caller(1) as call:
        return await _round_trip(cell.count(2000, 10), call)


@contextlib.contextmanager
def _bare_caller(ahead: int) -> Iterator[Callable[[], Awaitable[Any]]]:
    """Give what calls a bare worker, each of which has so many calls at most."""
    with bare_workers(ahead) as bare:

        def call() -> Awaitable[Any]:
            future = bare.call(jobs.trivial, 1)
            bare.feed()
            return future

        yield call


async def map_(cell: Cell) -> float:
    """Return the items a second of a map."""
    items = range(cell.count(200_000, 100))
    async with cell.pool() as pool:
        await warm_up(pool)
        await pool.map(jobs.trivial, items[: len(items) // 20])
        began = time.perf_counter()
        values = await pool.map(jobs.trivial, items)
        seconds = time.perf_counter() - began
    _check(values, items)
    return len(items) / seconds


async def imap(cell: Cell) -> float:
    """Return the items a second of an imap whose items travel alone."""
    items = range(cell.count(5000, 10))
    async with cell.pool() as pool:
        await warm_up(pool)
        began = time.perf_counter()
        values = [value async for value in pool.imap(jobs.trivial, items)]
        seconds = time.perf_counter() - began
    _check(values, items)
    return len(items) / seconds


def recycle(every: int) -> Work:
    """Return the work of a gather of trivial calls to workers that serve so many each; its number is calls a second."""

    async def work(cell: Cell) -> float:
        count = cell.count(60 * every, 3 * every)
        async with cell.pool(recycle=every, single=True) as pool:
            await pool.call(jobs.trivial, 1)
            began = time.perf_counter()
            pids = await asyncio.gather(*(pool.call(os.getpid) for _ in range(count)))
            seconds = time.perf_counter() - began
        if (most := max(Counter(pids).values())) > every:
            raise WrongResults(f"a worker served {most} calls")
        return count / seconds

    return work


# On a cluster.


def _cluster() -> Any:
    try:
        from distributed import LocalCluster
    except ImportError:
        raise NotThere("no distributed") from None
    return LocalCluster(
        n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0", asynchronous=True, silence_logs=50
    )


def _milliseconds(cell: Cell) -> list[float]:
    return [MILLISECOND] * cell.count(20_000, 20)


async def dask_map(cell: Cell) -> float:
    """Return the items a second of a map on a cluster of Dask, each of which computes for a millisecond."""
    items = _milliseconds(cell)
    async with _cluster() as cluster:
        from aiopool import AioPool
        from aiopool.backends.dask import DaskBackend

        async with AioPool(backend=DaskBackend(cluster)) as pool:
            await pool.map(jobs.busy, items[:20])
            return len(items) / await clocked(lambda: pool.map(jobs.busy, items))


async def dask_client(cell: Cell) -> float:
    """Return the same for Dask's own map, a task for each item, and gather."""
    items = _milliseconds(cell)
    async with _cluster() as cluster:
        from distributed import Client

        async with Client(cluster, asynchronous=True) as client:
            await client.gather(client.map(jobs.busy, items[:20], pure=False))
            return len(items) / await clocked(lambda: client.gather(client.map(jobs.busy, items, pure=False)))


# Coroutines and streams.


async def coroutines(cell: Cell) -> float:
    """Return the calls a second of coroutines that wait."""
    count = cell.count(2000, 10)
    async with cell.pool(concurrency=AT_ONCE) as pool:
        await warm_up(pool)
        await asyncio.gather(*(pool.await_(jobs.nap, NAP) for _ in range(max(1, count // 10))))
        began = time.perf_counter()
        values = await asyncio.gather(*(pool.await_(jobs.nap, NAP) for _ in range(count)))
        seconds = time.perf_counter() - began
    _check(values, [NAP] * count)
    return count / seconds


async def coroutine_round_trip(cell: Cell) -> float:
    """Return the milliseconds of one trivial coroutine at a time, at the median."""
    async with cell.pool() as pool:
        await warm_up(pool)
        await pool.await_(jobs.trivial_coroutine, 1)
        return await _round_trip(cell.count(2000, 10), lambda: pool.await_(jobs.trivial_coroutine, 1))


async def stream(cell: Cell) -> float:
    """Return the values a second of a stream of small ones."""
    count = cell.count(100_000, 100)
    async with cell.pool(1) as pool:
        await warm_up(pool, 1)
        values = [value async for value in pool.stream(jobs.numbers, max(1, count // 10))]
        began = time.perf_counter()
        values = [value async for value in pool.stream(jobs.numbers, count)]
        seconds = time.perf_counter() - began
    _check(values, range(count))
    return count / seconds


# Large arguments and results.


def _array(cell: Cell) -> Any:
    try:
        return jobs.ones(cell.count(ARRAY_BYTES // 8, jobs.PAGE))
    except ImportError:
        raise NotThere("no numpy") from None


async def payload_in(cell: Cell) -> float:
    """Return the gigabytes a second at which an array gets to a worker. One worker, so that it is warm."""
    array = _array(cell)
    async with cell.pool(1) as pool:
        for _ in range(WARM_ARRAYS):
            await pool.call(jobs.touch, array)
        times = [await clocked(lambda: pool.call(jobs.touch, array)) for _ in range(5)]
    return float(array.nbytes / statistics.median(times) / 1e9)


async def payload_out(cell: Cell) -> float:
    """Return the gigabytes a second at which an array that a worker has gets here."""
    size = _array(cell).size

    async def fetch() -> None:
        jobs.touch(await pool.call(jobs.ones, size))

    async with cell.pool(1) as pool:
        for _ in range(WARM_ARRAYS):
            await fetch()
        times = [await clocked(fetch) for _ in range(5)]
    return float(8 * size / statistics.median(times) / 1e9)


async def _with_same_argument(pool: Peer, argument: Any, calls: int) -> None:
    async def caller() -> None:
        for _ in range(calls // WORKERS):
            await pool.call(jobs.touch, argument)

    await asyncio.gather(*(caller() for _ in range(WORKERS)))


async def share(cell: Cell) -> float:
    """Return the milliseconds of a call whose argument is the array that others have, too, sharing it included."""
    array = _array(cell)
    async with cell.pool() as pool:
        await warm_up(pool)
        began = time.perf_counter()
        argument = await pool.share(array)
        calls = cell.count(SENT_CALLS if argument is array else SHARED_CALLS, WORKERS)
        await _with_same_argument(pool, argument, calls)
        return 1000 * (time.perf_counter() - began) / calls


async def share_copies(cell: Cell) -> float:
    """Return how many copies of the array there are in all processes after the calls, beside the caller's own."""
    array = _array(cell)
    async with cell.pool() as pool:
        await warm_up(pool)
        await _with_same_argument(pool, array[: jobs.PAGE], WORKERS)  # NumPy itself is no copy
        everybody = {os.getpid(), *processes.descendants(os.getpid())}
        before = processes.proportional_bytes(everybody)
        argument = await pool.share(array)
        await _with_same_argument(pool, argument, cell.count(SHARED_CALLS, WORKERS))
        return float((processes.proportional_bytes(everybody) - before) / array.nbytes)


# Beginnings and ends.


async def start(cell: Cell) -> float:
    """Return the milliseconds until a new pool's first result."""
    began = time.perf_counter()
    async with cell.pool() as pool:
        await pool.call(jobs.trivial, 1)
        return 1000 * (time.perf_counter() - began)


async def start_and_exit(cell: Cell) -> float:
    """Start a pool, call once, leave it. The number is the whole program's, loop included: `Line.whole`."""
    async with cell.pool() as pool:
        await pool.call(jobs.trivial, 1)
    return 0.0


def cancel(grace: float = 0.0) -> Work:
    """Return the work of cancelling an endless call that runs; its number is milliseconds to the next call's result."""

    async def work(cell: Cell) -> float:
        times = []
        async with cell.pool(1, grace=grace) as pool, cell.told() as (path, told):
            await warm_up(pool, 1)
            for _ in range(cell.count(INTERRUPTED if grace else KILLED, 2)):
                endless = asyncio.ensure_future(pool.call(jobs.tell_and_spin, path))
                await told()
                began = time.perf_counter()
                endless.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await endless
                await pool.call(jobs.trivial, 1)
                times.append(time.perf_counter() - began)
        return 1000 * statistics.median(times)

    return work


async def plain_call(cell: Cell) -> float:
    """Return the milliseconds of a call in aiopool's pool of one, as `cancel` has it: its worker was busy until then.

    One that was is on another core than this process; one that has not been for long may well be on the same, and a
    call is much faster there.
    """
    times = []
    async with cell.pool(1, grace=GRACE) as pool, cell.told() as (path, told):
        await warm_up(pool, 1)
        for _ in range(cell.count(INTERRUPTED, 2)):
            busy = asyncio.ensure_future(pool.call(jobs.tell_and_be_busy, path, MILLISECOND))
            await told()
            await busy
            times.append(await clocked(lambda: pool.call(jobs.trivial, 1)))
    return 1000 * statistics.median(times)


# What a pool costs beside its calls.


async def _lag(seconds: float) -> float:
    """Return the milliseconds by which a sleep in this loop is too long, at the 99th percentile."""
    lags, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        lags.append(await clocked(lambda: asyncio.sleep(TICK)) - TICK)
    return 1000 * sorted(lags)[int(0.99 * len(lags))]


async def _lag_beside(call: Callable[[], Awaitable[Any]], seconds: float) -> float:
    """Return the lag while coroutines call, each one call at a time."""
    ending = False

    async def caller() -> None:
        while not ending:
            await call()

    callers = [asyncio.ensure_future(caller()) for _ in range(CALLERS)]
    lag = await _lag(seconds)
    ending = True
    await asyncio.gather(*callers)
    return lag


async def bare_lag(cell: Cell) -> float:
    """Return the loop's lag while coroutines call bare workers."""
    with _bare_caller(CALLERS) as call:
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return await _lag_beside(call, PATIENCE * cell.size)


async def loop_lag(cell: Cell) -> float:
    """Return the loop's lag while coroutines call."""
    async with cell.pool() as pool:
        await warm_up(pool)
        return await _lag_beside(lambda: pool.call(jobs.trivial, 1), PATIENCE * cell.size)


async def _cpu(seconds: float) -> float:
    """Return the percentage of one core that this process and all below it use while this coroutine sleeps."""
    others = processes.descendants(os.getpid())
    before = processes.cpu_of_others(others) + time.process_time()  # our own last, and then first: to look costs, too
    await asyncio.sleep(seconds)
    after = time.process_time() + processes.cpu_of_others(others)
    return 100 * (after - before) / seconds


async def bare_cpu(cell: Cell) -> float:
    """Return what a loop without a pool uses."""
    return await _cpu(IDLE * cell.size)


async def idle(cell: Cell) -> float:
    """Return what an idle pool uses."""
    async with cell.pool() as pool:
        await warm_up(pool)
        await asyncio.sleep(cell.size)  # what winds down after the calls is not idleness
        return await _cpu(IDLE * cell.size)


async def worker_memory(cell: Cell) -> float:
    """Return the megabytes that are an idle worker's own."""
    async with cell.pool() as pool:
        return statistics.median(map(processes.private_bytes, await warm_up(pool))) / 1e6


async def _settled_bytes() -> int:
    """Return this process's own memory when it has stopped growing."""
    last = 0
    while abs((now := processes.private_bytes(os.getpid())) - last) > 0.002 * now:
        last = now
        await asyncio.sleep(0.3)
    return now


async def queue(cell: Cell) -> float:
    """Find the bytes of memory here for each call that waits, and leave at once: to serve them all takes long."""
    count = cell.count(50_000, 1000)
    pool = await cell.pool(single=True).__aenter__()
    await warm_up(pool)
    async with cell.told() as (path, told):
        running = [asyncio.ensure_future(pool.call(jobs.tell_and_wait, path)) for _ in range(WORKERS)]
        for _ in running:
            await told()
        gc.collect()
        before = await _settled_bytes()
        waiting = [asyncio.ensure_future(pool.call(jobs.trivial, number)) for number in range(count)]
        value = (await _settled_bytes() - before) / len(waiting)
    print(json.dumps({"value": value}), flush=True)
    os._exit(0)
