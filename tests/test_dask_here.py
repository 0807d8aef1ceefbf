"""What of a pool on Dask needs no cluster, or only one in this process."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import LocalCluster, Security

import async_jobs
import jobs
from aiopool import AioPool
from aiopool.backends.dask import NOT_THERE, DaskBackend
from aiopool.backends.dask_site import Desk


async def test_a_cluster_may_be_in_this_process() -> None:
    """Functions and coroutine functions run in its worker's threads; what they raise arrives as itself."""
    async with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True) as here,
        AioPool(backend=DaskBackend(here)) as pool,
    ):
        assert await pool.map(jobs.square, range(100)) == [number**2 for number in range(100)]
        assert await pool.starmap(async_jobs.add, [(1, 2), (3, 4)], chunksize=2) == [3, 7]
        assert [value async for value in pool.imap(async_jobs.add, range(9), chunksize=2)] == list(range(9))
        with pytest.raises(ZeroDivisionError):
            await pool.apply(divmod, (1, 0))


async def test_a_record_that_is_made_in_this_process_is_handled_once(caplog: pytest.LogCaptureFixture) -> None:
    """It need not be sent to where it is."""
    async with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True) as here,
        AioPool(backend=DaskBackend(here)) as pool,
    ):
        caplog.clear()
        await pool.apply(jobs.log, ("shop", logging.WARNING, "once"))
    assert [record.getMessage() for record in caplog.records if record.name == "shop"] == ["once"]


def test_a_desk_grants_a_call_once_for_each_try_and_to_whom_has_it() -> None:
    """Not what nobody wants any more, be it that it was dropped before it came."""
    told: list[Any] = []
    dropped: list[Any] = []
    task = SimpleNamespace(processing_on=SimpleNamespace(address="a"))
    scheduler: Any = SimpleNamespace(
        tasks={"one": task, "idle": SimpleNamespace(processing_on=None)},
        client_send=lambda _client, message: told.append(message["event"][1]),
        client_releases_keys=lambda keys, _client: dropped.append(sorted(keys)),
    )
    desk = Desk("pool", "client")
    desk._scheduler = scheduler
    assert not desk.claim("gone", 1, 5, "a")
    assert not desk.claim("idle", 1, 5, "a")
    assert not desk.claim("one", 1, 5, "b")
    assert [desk.claim("one", 1, 1, "a") for _ in range(3)] == [True, True, False]
    assert told == [{"what": "began", "call": 1, "worker": "a"}] * 2
    assert desk.release(["one", "idle"], begun=False) == {"idle": None}
    assert desk.release(["one", "late"], begun=True) == {"one": "a", "late": None}
    desk.update_graph(scheduler, keys={"late", "other"})
    desk.update_graph(scheduler, keys={"late"})
    assert dropped == [["idle"], ["late", "one"], ["late"]]
    desk.transition("one", "memory", "forgotten")
    assert desk.claim("one", 1, 0, "a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maxtasksperchild", 3), ("context", "spawn"), ("cancel_grace", 1.0), ("max_memory_per_child", 10),
        ("concurrency", 2), ("max_age", 3.0), ("recycle_jitter", 0.5), ("idle_timeout", 3.0), ("thread_limit", 1),
    ],
)  # fmt: skip
def test_what_dask_cannot_do_is_refused_at_once(name: str, value: Any) -> None:
    """With the value, and what to do instead."""
    with pytest.raises(ValueError, match=f"{name} cannot be had on Dask, and is {value!r}: ") as caught:
        AioPool(backend=DaskBackend(), **{name: value})
    assert str(caught.value).endswith(NOT_THERE[name])


def test_bad_arguments_of_the_backend_are_refused() -> None:
    """With the value."""
    with pytest.raises(
        TypeError, match=r"cluster must be an address, a distributed\.Client or a cluster object, not 3"
    ):
        DaskBackend(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="security is for an address; None is none"):
        DaskBackend(security=Security())
    with pytest.raises(ValueError, match="processes must be None for a cluster that is there already, not 3"):
        AioPool(3, backend=DaskBackend("tcp://127.0.0.1:1"))
    assert repr(DaskBackend("tcp://127.0.0.1:1")) == "DaskBackend('tcp://127.0.0.1:1')"
