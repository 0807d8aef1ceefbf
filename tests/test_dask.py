"""A pool on a cluster of Dask: what is the same as with workers of its own, and what is not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

import jobs
from aiopool import AioPool
from aiopool.backends.dask import DaskBackend
from dask_cluster import Cluster, cluster
from test_inline import OPERATIONS

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def dask() -> Iterator[Cluster]:
    """A scheduler and two workers."""
    with cluster() as made:
        yield made


@pytest.fixture
async def pool(dask: Cluster):
    """A pool on that cluster."""
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        yield pool


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_the_outcome_is_that_of_a_worker(operation: str, dask: Cluster) -> None:
    """Value for value, error for error."""
    found = []
    token = jobs.request.set("us")
    for options in ({"processes": 1}, {"backend": DaskBackend(dask.address)}):
        async with AioPool(**options, context_vars=[jobs.request]) as pool:
            found.append(await OPERATIONS[operation](pool))
    jobs.request.reset(token)
    assert found[0] == found[1]
