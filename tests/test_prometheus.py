"""A pool's statistics, scraped over HTTP as Prometheus does it."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

import jobs
from aiopool import AioPool
from aiopool.contrib.prometheus import PoolCollector
from latch import Latch

pytestmark = pytest.mark.both_loops

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and labels."""


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return one that has nothing else."""
    return CollectorRegistry()


@pytest.fixture
def address(registry: CollectorRegistry) -> Iterator[str]:
    """Serve the registry on a free port."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


async def scrape(address: str) -> Samples:
    """Return all samples. Another thread asks, so that another than the pool's collects."""

    def get() -> str:
        with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own server
            text: str = answer.read().decode()
            return text

    families = text_string_to_metric_families(await asyncio.to_thread(get))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_what_is_scraped_is_what_the_pool_does(
    registry: CollectorRegistry, address: str, latch: Latch, gate: Latch
) -> None:
    """Calls by their end, what runs and waits, how long it took, and the workers."""
    pool = AioPool(1, maxtasksperchild=2)
    registry.register(PoolCollector({"main": pool}))
    mine = ("pool", "main")
    assert (await scrape(address))["aiopool_healthy", (mine,)] == 0
    async with pool:
        for _ in range(2):
            await pool.apply(jobs.square, (3,))
        with pytest.raises(ValueError, match="3"):
            await pool.apply(jobs.fail_at, (3,))
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        waiting = pool.submit(jobs.square, 3)
        await latch.told()
        samples = await scrape(address)
        assert samples["aiopool_healthy", (mine,)] == 1
        assert samples["aiopool_calls_total", (("end", "done"), mine)] == 2
        assert samples["aiopool_calls_total", (("end", "failed"), mine)] == 1
        assert samples["aiopool_calls_total", (("end", "died"), mine)] == 0
        assert samples["aiopool_calls_running", (mine,)] == 1
        assert samples["aiopool_calls_queued", (mine,)] == 1
        assert samples["aiopool_calls_retried_total", (mine,)] == 0
        assert samples["aiopool_workers_lost_total", (mine,)] == 0
        assert samples["aiopool_workers_recycled_total", (mine, ("reason", "calls"))] == 1
        assert samples["aiopool_workers", (("phase", "retiring"), mine)] == 1
        assert samples["aiopool_worker_memory_bytes", (mine, ("seat", "0"))] > 1_000_000
        assert samples["aiopool_call_run_seconds_count", (mine,)] == 3
        assert samples["aiopool_call_queue_seconds_bucket", (("le", "+Inf"), mine)] == 3
        gate.let()
        await asyncio.gather(running, waiting)
    samples = await scrape(address)
    assert samples["aiopool_healthy", (mine,)] == 0
    assert samples["aiopool_calls_total", (("end", "done"), mine)] == 4


async def test_several_pools_are_told_apart_by_their_names(registry: CollectorRegistry, address: str) -> None:
    """All in the same metrics, or a registry would not take them."""
    async with AioPool(1) as first, AioPool(1) as second:
        registry.register(PoolCollector({"first": first, "second": second}))
        await second.apply(jobs.square, (3,))
        samples = await scrape(address)
        done = {name: samples["aiopool_calls_total", (("end", "done"), ("pool", name))] for name in ("first", "second")}
        assert done == {"first": 0, "second": 1}
