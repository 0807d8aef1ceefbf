"""A pool's own cluster of Dask whose start is given up: nothing of it is left, whatever it was about to do."""

from __future__ import annotations

import asyncio
import gc
import signal
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Nanny, Scheduler
from distributed.nanny import WorkerProcess

from aiopool import AioPool, InitializerError
from aiopool.backends.dask import DaskBackend
from dask_cluster import backend_of
from latch import Latch
from programs import session

pytestmark = pytest.mark.once

MOMENTS = {
    "the scheduler starts": (Scheduler, "start_unsafe"),
    "a nanny starts": (Nanny, "start_unsafe"),
    "a nanny is about to start its worker": (Nanny, "instantiate"),
    "a worker's process starts": (WorkerProcess, "start"),
    "a worker is to say that it is there": (WorkerProcess, "_wait_until_connected"),
}
"""What is called first at a moment of a start."""

HANGS = {"distributed.worker.preload": ["import threading; threading.Event().wait()"]}
"""Has a worker's start never end."""


@pytest.fixture
def moment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set at the moment that a test names."""
    owner, name = MOMENTS[request.param]
    come, method = asyncio.Event(), getattr(owner, name)

    async def watched(*args: Any) -> Any:
        come.set()
        return await method(*args)

    monkeypatch.setattr(owner, name, watched)
    return come


@pytest.mark.parametrize("moment", MOMENTS, indirect=True)
async def test_of_a_start_that_is_cancelled_nothing_is_left(moment: asyncio.Event) -> None:
    """No task either, and no exception that nobody has seen; it does not wait for workers, which hang."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    with dask.config.set(HANGS):
        starting = asyncio.create_task(AioPool(2, backend=DaskBackend()).start())
        await moment.wait()
        starting.cancel()
        await asyncio.wait([starting])
    assert starting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    del starting
    gc.collect()
    assert complaints == []


async def test_a_start_whose_worker_hangs_ends_with_its_time() -> None:
    """It is not waited for the worker."""
    with (
        dask.config.set(HANGS),
        pytest.raises(InitializerError, match="it was not within the time that a start has"),
    ):
        await AioPool(1, backend=DaskBackend(), start_timeout=0.5).start()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_worker_that_is_still_starting_is_killed_where_nobody_can_wait(latch: Latch) -> None:
    """As those are that have started."""
    pool = AioPool(1, backend=DaskBackend())
    hanging = f"import threading, jobs; jobs.tell({latch.path!r}, 'here'); threading.Event().wait()"
    with dask.config.set({"distributed.worker.preload": [hanging]}):
        starting = asyncio.create_task(pool.start())
        assert await latch.told() == "here"
        connection = backend_of(pool)._connection
        own = connection._own_cluster
        assert own is not None
        connection.kill_own()
        with pytest.raises(InitializerError):
            await starting
    own.kill()  # nobody is left


STARTING = """
import asyncio, gc, multiprocessing, signal
from distributed.nanny import WorkerProcess
from aiopool import AioPool
from aiopool.backends.dask import DaskBackend

class Watched(WorkerProcess):
    async def _wait_until_connected(self, *args):
        then()
        return await super()._wait_until_connected(*args)

async def interrupted():
    global then
    then = lambda: signal.raise_signal(signal.SIGINT)
    async with AioPool(1, backend=DaskBackend()):
        await asyncio.Event().wait()

async def left():
    global then
    moment = asyncio.Event()
    then = moment.set
    starting = asyncio.create_task(AioPool(1, backend=DaskBackend()).start())
    await moment.wait()
    del starting

if __name__ == "__main__":
    import distributed.nanny
    distributed.nanny.WorkerProcess = Watched
    asyncio.run({}())
    gc.collect()  # of an exception that nobody has seen, it is told now
    assert not multiprocessing.active_children()
"""


def output_of(tmp_path: Path, way: str) -> tuple[int, str]:
    """Run a program that ends while a start is under way; return its exit code, and what it says."""
    program = tmp_path / "starting.py"
    program.write_text(STARTING.replace("{}", way))
    with session(program) as process:
        _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def test_ctrl_c_during_a_start_says_nothing_but_that(tmp_path: Path) -> None:
    """What `asyncio.run` says: KeyboardInterrupt, from a CancelledError."""
    code, errors = output_of(tmp_path, "interrupted")
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 2, errors
    assert errors.endswith("\nKeyboardInterrupt\n")


def test_a_loop_ends_during_a_start(tmp_path: Path) -> None:
    """With all its tasks cancelled at once, those of `distributed` among them."""
    assert output_of(tmp_path, "left") == (0, "")
