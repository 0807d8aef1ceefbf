"""Pools' statistics for Prometheus; needs the extra ``prometheus``.

    registry.register(PoolCollector({"thumbnails": pool}))

Whatever serves the registry then has these metrics, as they are in the moment in which they are asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ..pool import AioPool
    from ..stats import Latencies, PoolStats

__all__ = ["PoolCollector"]

K = TypeVar("K", bound=tuple[str, ...])

ENDS = ("done", "failed", "died", "timed_out", "cancelled", "abandoned")
"""How calls end, as `aiopool.PoolStats` has it."""


class PoolCollector(Collector):
    """Collects what `AioPool.stats` says, in any thread.

    Args:
        pools: by the value that their metrics have for the label ``pool``.
    """

    def __init__(self, pools: Mapping[str, AioPool]) -> None:
        self._pools = dict(pools)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        stats = {name: pool.stats() for name, pool in self._pools.items()}
        healthy = {(name,): float(pool.healthy) for name, pool in self._pools.items()}
        yield _gauge("healthy", "Whether calls are taken and somebody can run them.", healthy)
        yield _gauge(
            "calls_queued", "Calls that no worker has.", {(name,): each.queued for name, each in stats.items()}
        )
        yield _gauge(
            "calls_running", "Calls that a worker has.", {(name,): each.running for name, each in stats.items()}
        )
        yield from _counters(stats)
        yield from _of_workers(stats)
        yield _histogram("queue", "How long calls waited.", {name: each.queue_time for name, each in stats.items()})
        yield _histogram("run", "How long calls ran.", {name: each.run_time for name, each in stats.items()})


def _counters(stats: Mapping[str, PoolStats]) -> Iterator[Metric]:
    ends = {(name, end): getattr(each, end) for name, each in stats.items() for end in ENDS}
    yield _counter("calls", "Calls that have ended, by how.", ends, "end")
    retried = {(name,): each.retried for name, each in stats.items()}
    yield _counter("calls_retried", "Further tries of calls whose worker had died.", retried)
    lost = {(name,): each.lost for name, each in stats.items()}
    yield _counter("workers_lost", "Workers that went away unbidden.", lost)
    recycled = {(name, why): count for name, each in stats.items() for why, count in each.recycled.items()}
    yield _counter("workers_recycled", "Workers that were replaced, by the reason.", recycled, "reason")


def _of_workers(stats: Mapping[str, PoolStats]) -> Iterator[Metric]:
    workers = [(name, worker) for name, each in stats.items() for worker in each.workers]
    yield _gauge("workers", "Workers, by phase.", Counter((name, worker.phase) for name, worker in workers), "phase")
    memory: Counter[tuple[str, str]] = Counter()
    for name, worker in workers:
        memory[name, str(worker.seat)] += worker.memory or 0  # for a moment, of one that goes and of its successor
    yield _gauge("worker_memory_bytes", "Resident memory of the worker in a seat.", memory, "seat")


def _gauge(name: str, text: str, values: Mapping[K, float], *labels: str) -> Metric:
    metric = GaugeMetricFamily(f"aiopool_{name}", text, labels=["pool", *labels])
    for key, value in values.items():
        metric.add_metric(key, value)
    return metric


def _counter(name: str, text: str, values: Mapping[K, float], *labels: str) -> Metric:
    metric = CounterMetricFamily(f"aiopool_{name}", text, labels=["pool", *labels])
    for key, value in values.items():
        metric.add_metric(key, value)
    return metric


def _histogram(what: str, text: str, latencies: Mapping[str, Latencies]) -> Metric:
    metric = HistogramMetricFamily(f"aiopool_call_{what}_seconds", text, labels=["pool"])
    for name, each in latencies.items():
        below, buckets = 0, []
        for bound, count in zip(each.BOUNDS, each.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == math.inf else repr(bound), below))
        metric.add_metric([name], buckets, each.seconds)
    return metric
