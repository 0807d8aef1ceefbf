"""A pool on a cluster of Dask: how it begins and ends, and workers that come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Security

import async_jobs
import dask_jobs
import jobs
from aiopool import (
    AioPool,
    BrokenPool,
    InitializerError,
    PoolTerminated,
    WorkerDied,
)
from aiopool.backends.dask import DaskBackend
from dask_cluster import TESTS, Cluster, backend_of, cluster, until, workers_of
from latch import Latch
from programs import session

pytestmark = pytest.mark.once


# Initializers, workers that come and go.


async def test_an_initializer_runs_in_each_worker_and_in_those_that_come_later(dask: Cluster) -> None:
    """Before its first call."""
    async with AioPool(initializer=jobs.remember, initargs=("here",), backend=DaskBackend(dask.address)) as pool:
        await workers_of(pool, 2)
        pids = {worker.pid for worker in pool.stats().workers}
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await pool.apply(jobs.square, (3,))
        await workers_of(pool, 2)
        found = await pool.map(dask_jobs.recall_here, range(12), chunksize=1)
        assert all((pid, "here") in seen for pid, seen in found)
        assert not pids & {pid for pid, _ in found}
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_an_initializer_that_fails_fails_the_start(dask: Cluster) -> None:
    """With its cause, and nothing is left in the cluster."""
    with pytest.raises(InitializerError) as caught:
        await AioPool(initializer=jobs.fail_to_initialize, backend=DaskBackend(dask.address)).start()
    assert repr(caught.value.__cause__) == "LookupError('no such model')"
    async with Client(dask.address, asynchronous=True, set_as_default=False) as client:
        assert set((await client.run(dask_jobs.plugins_here)).values()) == {()}
        assert await client.run_on_scheduler(dask_jobs.desks_here) == ()


async def test_a_worker_whose_initializer_fails_later_fails_the_calls_that_it_gets(
    dask: Cluster, tmp_path: Any
) -> None:
    """With the initializer's own exception as their cause."""
    backend, marks = DaskBackend(dask.address), str(tmp_path / "marks")
    async with AioPool(initializer=jobs.fail_to_initialize_after, initargs=(marks, 2), backend=backend) as pool:
        await workers_of(pool, 2)
        for worker in pool.stats().workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(InitializerError) as caught:
            await pool.apply(jobs.square, (3,))
        assert repr(caught.value.__cause__) == "LookupError('no such model')"
        await workers_of(pool, 2)


async def test_the_initializer_may_be_a_coroutine_function(dask: Cluster) -> None:
    """It is awaited in each worker; if it fails, so does the start."""
    backend = DaskBackend(dask.address)
    async with AioPool(initializer=dask_jobs.remember_awaited, initargs=("awaited",), backend=backend) as pool:
        assert "awaited" in (await pool.apply(dask_jobs.recall_here, (0,)))[1]
    with pytest.raises(InitializerError) as caught:
        await AioPool(initializer=async_jobs.fail_to_initialize, backend=backend).start()
    assert repr(caught.value.__cause__) == "OSError('no luck')"


async def test_the_number_of_workers_is_read_when_it_is_needed() -> None:
    """A cluster without any is one that will have some; it grows and shrinks under a pool."""
    async with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True) as grows,
        AioPool(backend=DaskBackend(grows)) as pool,
    ):
        assert (pool.processes, pool.stats().workers) == (1, ())
        first = pool.submit(jobs.square, 3)
        await asyncio.sleep(0)
        assert not first.done()
        stream = pool.imap(jobs.square, iter(range(1000)))
        grows.scale(3)
        await workers_of(pool, 3)
        assert pool.processes >= 3
        assert await first == 9
        assert await anext(stream) == 0
        assert len(stream._source._chunks) == 2 * pool.processes
        await stream.aclose()
        grows.scale(1)
        await workers_of(pool, 1, at_most=True)
        assert await pool.map(jobs.square, range(5)) == [0, 1, 4, 9, 16]


async def test_a_cluster_that_adapts_has_workers_for_the_calls_that_wait(latch: Latch, gate: Latch) -> None:
    """And none when there are no calls; the pool knows of them as they come and go."""
    async with (
        LocalCluster(
            n_workers=0, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True
        ) as adapts,
        AioPool(backend=DaskBackend(adapts)) as pool,
    ):
        adapts.adapt(minimum=0, maximum=2, interval="50 ms", target_duration="100 ms", wait_count=1)
        assert (pool.processes, pool.stats().workers) == (1, ())
        results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path) for _ in range(4)]
        for _ in range(2):
            await latch.told()
        await until(pool, lambda: (len(pool.stats().workers), pool.stats().running) == (2, 2))
        assert pool.processes == 2
        gate.let(4)
        await asyncio.gather(*results)
        await workers_of(pool, 0, at_most=True)
        assert pool.processes == 1
        assert await pool.apply(jobs.square, (3,)) == 9


# Beginnings and ends.


async def test_a_client_of_this_loop_is_used_and_left_alone(dask: Cluster) -> None:
    """And of the pool nothing is left in the cluster."""
    async with Client(dask.address, asynchronous=True, set_as_default=False) as client:
        async with AioPool(backend=DaskBackend(client)) as pool:
            assert await pool.apply(jobs.square, (3,)) == 9
            assert backend_of(pool)._connection.client is client
        assert client.status == "running"
        assert set((await client.run(dask_jobs.plugins_here)).values()) == {()}
        assert await client.run_on_scheduler(dask_jobs.desks_here) == ()


async def test_a_synchronous_client_tells_where_the_scheduler_is(dask: Cluster) -> None:
    """The pool has a client of its own, in its own loop; with one that is closed it does not start."""
    client = await asyncio.to_thread(Client, dask.address, set_as_default=False)
    async with AioPool(backend=DaskBackend(client)) as pool:
        assert await pool.map(jobs.square, range(4)) == [0, 1, 4, 9]
        assert backend_of(pool)._connection.client is not client
    assert await asyncio.to_thread(lambda: client.submit(jobs.square, 3).result()) == 9
    await asyncio.to_thread(client.close)
    with pytest.raises(InitializerError, match=r"the cluster could not be made ready: <Client.*> is closed"):
        await AioPool(backend=DaskBackend(client)).start()


@pytest.mark.both_loops
async def test_a_cluster_of_its_own_is_started_and_ended_with_the_pool() -> None:
    """With as many workers as there are to be processes."""
    async with AioPool(2, backend=DaskBackend()) as pool:
        assert pool.processes == 2
        assert os.getpid() not in await pool.map(jobs.pid_of, range(4), chunksize=1)
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.kill_self)


async def test_what_is_terminated_fails_and_the_cluster_is_free(dask: Cluster, latch: Latch, gate: Latch) -> None:
    """What runs in another's cluster goes on there, as ever in Dask."""
    with pytest.raises(ZeroDivisionError):
        async with AioPool(backend=DaskBackend(dask.address)) as pool:
            results = [pool.submit(jobs.tell_and_wait, latch.path, gate.path) for _ in range(5)]
            await latch.told()
            raise ZeroDivisionError
    for result in results:
        with pytest.raises(PoolTerminated):
            await result
    assert pool.stats().abandoned == 5
    gate.let(2)
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        assert await pool.map(jobs.square, range(4), chunksize=1) == [0, 1, 4, 9]


FORGETFUL = """
import asyncio
from aiopool import AioPool
from aiopool.backends.dask import DaskBackend

async def forget():
    pool = AioPool(1, backend=DaskBackend())
    await pool.start()
    await pool.apply(pow, (2, 3))
    pool.submit(print)

if __name__ == "__main__":
    asyncio.run(forget())
"""


INTERRUPTED = """
import asyncio
from distributed import Scheduler
from aiopool import AioPool
from aiopool.backends.dask import DaskBackend

async def main():
    global pool
    pool = AioPool(1, backend=DaskBackend())
    await pool.start()
    [scheduler] = Scheduler._instances
    [sender] = scheduler.client_comms.values()
    while sender.buffer or sender.next_deadline is not None:  # it tells nobody when it has nothing more to send
        await asyncio.sleep(0.01)
    sender.send({"op": "key-in-memory", "key": "nobody's"})

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("text", [FORGETFUL, INTERRUPTED], ids=["forgotten", "open while the scheduler sends"])
def test_a_pool_that_is_left_open_is_warned_of_and_its_workers_go(text: str, tmp_path: Path) -> None:
    """Though the loop is closed.

    `asyncio.run` cancels all tasks at its end, among them the one that writes, for which the scheduler waits.
    """
    program = tmp_path / "program.py"
    program.write_text(text)
    with session("-W", "always::ResourceWarning", program) as process:
        _, errors = process.communicate(timeout=30)
    assert "ResourceWarning: unclosed AioPool (running: 1 workers" in errors
    assert process.returncode == 0


SHORT_LIVED = """
import asyncio, sys
import jobs
from aiopool import AioPool
from aiopool.backends.dask import DaskBackend

async def main(address, latch, gate):
    async with AioPool(backend=DaskBackend(address)) as pool:
        shared = pool.share(jobs.Block(bytearray(b"x")))
        await pool.apply(jobs.first_byte, (shared,))
        await asyncio.gather(*(pool.submit(jobs.tell_and_wait, latch, gate) for _ in range(2 + 3)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_of_a_program_that_is_killed_nothing_is_left_in_the_cluster(
    dask: Cluster, tmp_path: Path, latch: Latch, gate: Latch
) -> None:
    """What waited never runs, and what ran is let go of."""
    program = tmp_path / "short_lived.py"
    program.write_text(SHORT_LIVED)
    async with Client(dask.address, asynchronous=True, set_as_default=False) as client:
        with session(program, dask.address, latch.path, gate.path, env={**os.environ, "PYTHONPATH": str(TESTS)}) as run:
            for _ in range(2):
                await latch.told()
            assert len(await client.run_on_scheduler(dask_jobs.left_here)) >= 1 + 1 + 2 + 3
            run.kill()
            run.communicate()
        while await client.run_on_scheduler(dask_jobs.left_here):
            pass
        gate.let(2)
        while any((await client.run(dask_jobs.plugins_here)).values()):
            pass
        async with AioPool(backend=DaskBackend(client)) as pool:
            assert await pool.map(jobs.square, range(4), chunksize=1) == [0, 1, 4, 9]
    assert latch.told_already() == []


async def test_a_scheduler_that_is_not_there_is_a_clear_error() -> None:
    """Within the time that the start has."""
    with pytest.raises(InitializerError, match="the cluster"):
        await AioPool(backend=DaskBackend("tcp://127.0.0.1:1"), start_timeout=0.5).start()


async def test_a_scheduler_that_goes_away_breaks_the_pool(latch: Latch, gate: Latch) -> None:
    """Every call is told, and so is whoever makes another; the block can be left."""
    with cluster(1) as short:
        pool = AioPool(backend=DaskBackend(short.address))
        await pool.start()
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        waiting = pool.submit(jobs.square, 3)
        await latch.told()
        short.scheduler.process.kill()
        for result in (running, waiting):
            with pytest.raises(BrokenPool, match="the scheduler of the Dask cluster is gone"):
                await result
        with pytest.raises(BrokenPool):
            await pool.apply(jobs.square, (3,))
        pool.close()
        await pool.join()
        gate.let()


def certificate(folder: Path, name: str) -> Security:
    """Make a certificate that trusts itself and nobody else."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    paths = {f"tls_{role}_{what}": str(path) for role in ("client", "scheduler", "worker")
             for what, path in (("cert", certificate), ("key", key))}  # fmt: skip
    return Security(tls_ca_file=str(certificate), require_encryption=True, **paths)


async def test_a_cluster_with_certificates_takes_whom_it_trusts(tmp_path: Path) -> None:
    """And refuses everybody else, with a clear error."""
    trusted, stranger = (certificate(tmp_path, name) for name in ("trusted", "stranger"))
    files = ("--tls-ca-file", trusted.tls_ca_file, "--tls-cert", trusted.tls_scheduler_cert,
             "--tls-key", trusted.tls_scheduler_key)  # fmt: skip
    with cluster(1, ("--protocol", "tls", *files), files) as secure:
        assert secure.address.startswith("tls://")
        async with AioPool(backend=DaskBackend(secure.address, security=trusted)) as pool:
            assert await pool.map(jobs.square, range(5)) == [0, 1, 4, 9, 16]
        for other in (stranger, None):
            refused = AioPool(backend=DaskBackend(secure.address, security=other), start_timeout=1.0)
            with pytest.raises(InitializerError, match="the cluster could not be made ready"):
                await refused.start()
