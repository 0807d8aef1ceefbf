"""Functions that run in workers of a Dask cluster."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from aiopool import current_worker, sharing
from jobs import initialized, tell, tell_and_wait


def tell_wait_and_tell(path: str, gate: str) -> None:
    tell_and_wait(path, gate)
    tell(path, "past the gate")


def tell_and_die(path: str) -> NoReturn:
    tell(path, os.getpid())
    os._exit(0)


def tell_and_die_once(path: str, mark: str) -> str:
    tell(path, os.getpid())
    if not os.path.exists(mark):
        open(mark, "x").close()
        os._exit(0)
    return "alive"


async def remember_awaited(value: object) -> None:
    initialized.append(value)


def recall_here(_item: object) -> tuple[int, list[Any]]:
    return os.getpid(), initialized


def add_one_in_place(array: Any) -> Any:
    array += 1
    return array


def numbered_chunk(_item: object) -> tuple[int, int]:
    """Return which call of which worker this item is in."""
    here = current_worker()
    assert here is not None
    return here.pid, here.calls


async def numbered_coroutine(item: object) -> tuple[int, int]:
    return numbered_chunk(item)


def plugins_here(dask_worker: Any) -> tuple[str, ...]:
    return tuple(name for name in dask_worker.plugins if name.startswith("aiopool0"))


def desks_here(dask_scheduler: Any) -> tuple[str, ...]:
    names = (*dask_scheduler.plugins, *dask_scheduler.handlers, *dask_scheduler.worker_plugins)
    return tuple(name for name in names if str(name).startswith("aiopool0"))


def left_here(dask_scheduler: Any) -> list[str]:
    """Return what of a pool is at the scheduler: its desk, and its tasks."""
    return [*desks_here(dask_scheduler), *(key for key in map(str, dask_scheduler.tasks) if "aiopool0" in key)]


def shares_here(_item: object = None) -> int:
    return len(sharing._objects) + len(sharing._pickled)
