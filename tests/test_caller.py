"""Views of a pool that have limits of their own."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

import jobs
from aiopool import AioPool, CallTimeout, PoolNotRunning, WorkerDied
from aiopool.caller import Caller
from latch import Latch

pytestmark = pytest.mark.both_loops

SHORT = 0.05
"""Seconds that no endless call needs."""


async def test_a_view_has_limits_of_its_own(latch: Latch) -> None:
    """Whichever verb is used, also the one that cannot be told a limit; the pool's other calls keep theirs."""
    async with AioPool(1) as pool:
        impatient = pool.options(timeout=SHORT)
        for begin in (
            lambda: impatient.apply(jobs.tell_and_spin, (latch.path,)),
            lambda: impatient.submit(jobs.tell_and_spin, latch.path),
            lambda: impatient.map(jobs.tell_and_spin, [latch.path]),
            lambda: anext(impatient.imap(jobs.tell_and_spin, [latch.path])),
        ):
            with pytest.raises(CallTimeout):
                await begin()
        assert await pool.options(timeout=None).apply(jobs.square, (3,)) == 9
    assert repr(impatient) == "<Caller timeout=0.05 retries=0: closed: 0 workers, 0 busy, 0 calls waiting>"


async def test_what_is_not_said_is_as_in_what_it_is_a_view_of(tmp_path: Path) -> None:
    """A view of a view, too; and a call may ask for something else."""
    async with AioPool(1, timeout=1000, retries=1) as pool:
        view = pool.options(retries=2).options(timeout=2000)
        assert "timeout=2000 retries=2" in repr(view)
        assert "timeout=1000 retries=2" in repr(pool.options(retries=2))
        assert await view.apply(jobs.die_unless_tried, (str(tmp_path / "two"), 3)) == 3
        with pytest.raises(WorkerDied):
            await view.apply(jobs.die_unless_tried, (str(tmp_path / "one"), 3), retries=1)


@pytest.mark.parametrize(
    ("options", "error"), [({"timeout": 0}, ValueError), ({"timeout": "1"}, TypeError), ({"retries": -1}, ValueError)]
)
async def test_a_limit_that_makes_no_sense_is_an_error_of_its_line(
    options: dict[str, object], error: type[Exception]
) -> None:
    """Not of a call later on."""
    with pytest.raises(error):
        AioPool(1).options(**options)  # type: ignore[arg-type]


async def test_a_view_goes_with_its_pool() -> None:
    """It can be made before the pool starts, and is of no use when that has ended."""
    pool = AioPool(1)
    view = pool.options(timeout=1000)
    with pytest.raises(PoolNotRunning):
        await view.apply(jobs.square, (3,))
    async with pool:
        assert await view.apply(jobs.square, (3,)) == 9
    with pytest.raises(PoolNotRunning):
        await view.apply(jobs.square, (3,))


async def test_a_view_keeps_its_pool() -> None:
    """Who has a view of a pool only, has a pool that works."""

    async def started() -> tuple[Caller, weakref.ref[AioPool]]:
        pool = AioPool(1)
        await pool.start()
        return pool.options(retries=1).options(timeout=None), weakref.ref(pool)

    view, reference = await started()
    assert await view.apply(jobs.square, (3,)) == 9
    pool = reference()
    assert pool is not None
    pool.close()
    await pool.join()
