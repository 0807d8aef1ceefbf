"""How many threads numerical libraries may start in a worker, as they are told by the environment."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool
from aiopool.worker.environment import READ_BY_LIBRARIES


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has set any of the variables here."""
    for name in READ_BY_LIBRARIES:
        monkeypatch.delenv(name, raising=False)


async def limits(pool: AioPool) -> set[str | None]:
    """Return what the variables are in a worker."""
    return set(await pool.map(jobs.variable, READ_BY_LIBRARIES))


async def test_the_cpus_are_divided_among_the_workers(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one each."""
    monkeypatch.setattr("aiopool.pool.usable_cpus", lambda: 7)
    async with AioPool(2, context=start_method) as pool:
        assert await limits(pool) == {"3"}
    async with AioPool(8, context=start_method) as pool:
        assert await limits(pool) == {"1"}
    async with AioPool(context=start_method) as pool:
        assert pool.processes == 7
        assert await limits(pool) == {"1"}


async def test_what_was_asked_for_counts_more_than_what_is_set(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is set counts more than the fair share, also for a fork server that began before it was set."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setattr("aiopool.pool.usable_cpus", lambda: 7)
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.variable, ("MKL_NUM_THREADS",)) == "7"
        assert await pool.apply(jobs.variable, ("OMP_NUM_THREADS",)) == "5"
    async with AioPool(1, context=start_method, thread_limit=3) as pool:
        assert await limits(pool) == {"3"}


async def test_it_is_what_is_set_when_the_pool_is_started(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may set it between that and the pool's making."""
    pool = AioPool(1, context=start_method)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    async with pool:
        assert await pool.apply(jobs.variable, ("OMP_NUM_THREADS",)) == "5"


async def test_the_parent_is_told_nothing(start_method: str) -> None:
    """By the name of a worker's process, which each log record has."""
    async with AioPool(1, context=start_method, thread_limit=3) as pool:
        assert (await pool.apply(jobs.log_and_name_process)).startswith("AioPoolWorker-")
        assert await limits(pool) == {"3"}
    assert os.environ.keys().isdisjoint(READ_BY_LIBRARIES)


async def test_an_import_of_the_users_own_is_no_hindrance(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some libraries put a function of theirs in its place, which nobody can pickle."""
    original = builtins.__import__

    def imported(*args: Any, **kwds: Any) -> Any:
        return original(*args, **kwds)

    monkeypatch.setattr(builtins, "__import__", imported)
    async with AioPool(1, context=start_method, thread_limit=3) as pool:
        assert await limits(pool) == {"3"}


async def test_a_replacement_has_the_same(start_method: str) -> None:
    """Whoever comes later is told, too."""
    async with AioPool(1, context=start_method, thread_limit=3, maxtasksperchild=1) as pool:
        assert [await pool.apply(jobs.variable, ("OMP_NUM_THREADS",)) for _ in range(3)] == ["3"] * 3


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_the_main_module_is_imported_with_it(tmp_path: Path, method: str) -> None:
    """For what it imports in its first lines may read the variables."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import asyncio, os
        from aiopool import AioPool

        seen = os.environ.get("OPENBLAS_NUM_THREADS")

        def look():
            return seen

        async def main():
            async with AioPool(1, context={method!r}, thread_limit=3) as pool:
                print(seen, await pool.apply(look))

        if __name__ == "__main__":
            asyncio.run(main())
        """)
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.split() == ["None", "3"]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_it_is_set_before_the_package_can_be_imported(tmp_path: Path, method: str) -> None:
    """In a program that has found it by a path of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import asyncio, os, sys
        sys.path += {sys.path!r}
        from aiopool import AioPool

        async def main():
            async with AioPool(1, context={method!r}, thread_limit=3) as pool:
                print(await pool.apply(os.getenv, ("OMP_NUM_THREADS",)))

        if __name__ == "__main__":
            asyncio.run(main())
        """)
    )
    done = subprocess.run([sys.executable, "-ISB", program], capture_output=True, text=True, check=False, timeout=50)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.parametrize(("odd", "error"), [(0, ValueError), (1.5, TypeError)])
def test_a_bad_limit_is_refused(odd: int, error: type[Exception]) -> None:
    """With its value."""
    with pytest.raises(error, match=f"thread_limit .*{odd}"):
        AioPool(1, thread_limit=odd)
