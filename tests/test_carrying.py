"""Context variables whose values travel with calls."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AioPoolError, NotPicklable, RemoteTraceback

pytestmark = pytest.mark.both_loops

VARIABLES = (jobs.request, jobs.tenant)


@pytest.fixture(autouse=True)
def nobody_asks() -> Iterator[None]:
    """Leave the variables as they were; tests run in one context."""
    token = jobs.request.set("none")
    yield
    jobs.request.reset(token)


async def numbers(count: int) -> AsyncIterator[int]:
    """Be an async input that changes its mind about who asks."""
    for number in range(count):
        jobs.request.set("input")
        yield number


async def test_values_travel_with_every_verb(start_method: str) -> None:
    """As they are when it is called, also where the input is read later."""
    async with AioPool(1, context=start_method, context_vars=VARIABLES) as pool:
        jobs.request.set("one")
        asked = ("one", "nobody")
        assert await pool.apply(jobs.who_asks) == asked
        assert await pool.apply_async(jobs.who_asks) == asked
        assert await pool.submit(jobs.who_asks, _item=1) == asked
        assert await pool.map(jobs.who_asks, range(3)) == [asked] * 3
        assert await pool.starmap(jobs.who_asks, [(1,), ()]) == [asked] * 2
        assert await pool.map(jobs.who_asks, numbers(3)) == [asked] * 3
        assert [each async for each in pool.imap(jobs.who_asks, numbers(5))] == [asked] * 5
        stream = pool.imap_unordered(jobs.who_asks, range(5), buffersize=1)
        jobs.request.set("two")
        assert [each async for each in stream] == [asked] * 5
        assert await pool.options(retries=1).apply(jobs.who_asks) == ("two", "nobody")


async def test_each_task_has_its_own(start_method: str) -> None:
    """However their calls follow one another in one worker."""

    async def ask(number: int) -> Any:
        jobs.request.set(f"task {number}")
        if number % 2:
            jobs.tenant.set(number)
        return [await pool.apply(jobs.who_asks) for _ in range(3)]

    async with AioPool(1, context=start_method, context_vars=VARIABLES) as pool:
        asked = await asyncio.gather(*(ask(number) for number in range(6)))
    assert asked == [[(f"task {number}", number if number % 2 else "nobody")] * 3 for number in range(6)]


async def test_what_a_job_sets_is_gone_after_it_if_it_has_travelled(start_method: str) -> None:
    """And what has not travelled is the worker's own, as without any of this."""
    async with AioPool(1, context=start_method, context_vars=[jobs.request]) as pool:
        jobs.request.set("one")
        assert await pool.apply(jobs.ask_as, ("job",)) == ("job", "job")
        assert await pool.apply(jobs.who_asks) == ("one", "job")


async def test_nothing_travels_unasked() -> None:
    """A pool that is told of no variables leaves them alone."""
    jobs.request.set("one")
    async with AioPool(1) as pool:
        assert await pool.apply(jobs.who_asks) == ("none", "nobody")


async def test_a_value_that_does_not_pickle_is_an_error_of_the_call() -> None:
    """Like an argument."""
    async with AioPool(1, context_vars=[jobs.tenant]) as pool:
        token = jobs.tenant.set(lambda: 1)
        with pytest.raises(NotPicklable, match="arguments of who_asks"):
            pool.submit(jobs.who_asks)
        jobs.tenant.reset(token)
        assert await pool.apply(jobs.who_asks) == ("none", "nobody")


async def test_an_exception_does_not_show_what_carried_the_values() -> None:
    """The traceback begins with the function."""
    async with AioPool(1, context_vars=VARIABLES) as pool:
        with pytest.raises(ValueError, match="3") as caught:
            await pool.apply(jobs.fail_at, (3,))
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert str(caught.value.__cause__).splitlines()[3].startswith(f'  File "{jobs.__file__}"')


async def test_a_variable_that_the_main_module_has_imported_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the module that it comes from, which is there in a worker in any case."""
    monkeypatch.setattr(sys.modules["__main__"], "request", jobs.request, raising=False)
    async with AioPool(1, context="spawn", context_vars=[jobs.request]) as pool:
        jobs.request.set("one")
        assert await pool.apply(jobs.who_asks) == ("one", "nobody")


async def test_a_variable_that_a_worker_does_not_find_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do."""
    variable = contextvars.ContextVar("variable", default=1)
    monkeypatch.setattr(jobs, "under_a_guard", variable, raising=False)
    variable.set(2)
    async with AioPool(1, context="spawn", context_vars=[variable]) as pool:
        with pytest.raises(AioPoolError, match=r"context_vars: jobs\.under_a_guard is not there in the worker"):
            await pool.apply(jobs.who_asks)


@pytest.mark.parametrize(
    ("variables", "error", "text"),
    [
        (["request"], TypeError, "context_vars must be context variables, not 'request'"),
        ([contextvars.ContextVar("mine")], ValueError, "is no global of a module"),
        (3, TypeError, "context_vars must be iterable, not 3"),
    ],
)
async def test_what_a_worker_could_not_find_is_an_error_of_the_pool(
    variables: Any, error: type[Exception], text: str
) -> None:
    """Before anything starts."""
    with pytest.raises(error, match=text):
        AioPool(1, context_vars=variables)
