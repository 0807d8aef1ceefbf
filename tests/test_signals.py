"""Signals that a job handles itself, whose handlers raise where no code of the job runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

import async_jobs
from aiopool import AioPool, WorkerDied

PLACES = [
    ("_outcome", "c_return"),
    ("_ended", "call"),
    ("_listen", "call"),
    ("call_soon", "call"),
    ("_run_once", "call"),
]


@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])
@pytest.mark.parametrize(("name", "event"), PLACES)
@pytest.mark.parametrize("job", [async_jobs.leave_late_at, async_jobs.yield_late_at])
@pytest.mark.parametrize("short_turns", [False, True])
async def test_a_handler_may_raise_wherever_the_workers_loop_is(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
    name: str,
    event: str,
    job: Callable[..., Any],
    *,
    short_turns: bool,
) -> None:
    """At worst the call has died with its worker. No caller waits for ever, not then and not later."""
    async with AioPool(
        1, loop_factory=loop_factory, initializer=async_jobs.have_short_turns if short_turns else None
    ) as pool:
        with contextlib.suppress(async_jobs.Late, WorkerDied):
            if job is async_jobs.leave_late_at:
                assert await pool.submit(job, name, event) == 1
            else:
                assert [value async for value in pool.stream(job, name, event)] == [0, 1, 2]
        assert await pool.apply(pow, (2, 3)) == 8
        assert await pool.submit(async_jobs.add, 1) == 1


async def test_what_a_handler_raises_behind_the_job_is_its_outcome() -> None:
    """And its worker goes on."""
    async with AioPool(1) as pool:
        pid = await pool.apply(os.getpid)
        with pytest.raises(async_jobs.Late):
            await pool.submit(async_jobs.leave_late_at, "_outcome", "c_return")
        assert await pool.apply(os.getpid) == pid
