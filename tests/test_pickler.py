"""Other picklers in the place of pickle."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

import jobs
from aiopool import AioPool, NotPicklable
from aiopool.pickling import ForeignPickling

pytestmark = pytest.mark.both_loops


async def test_lambdas_and_closures_travel_in_both_directions(start_method: str) -> None:
    """With cloudpickle: as functions, as arguments, as results, with every verb, and as the initializer."""
    factor = 3
    async with AioPool(1, lambda: jobs.remember(factor), context=start_method, pickler=cloudpickle) as pool:
        assert await pool.apply(lambda: jobs.recall()[0][1:]) == (3,)
        assert await pool.apply(lambda x: x * factor, (2,)) == 6
        assert await pool.submit(jobs.call_with, lambda x: x + factor, 2) == 5
        assert await pool.map(lambda x: x * factor, range(3)) == [0, 3, 6]
        assert [each async for each in pool.imap(lambda x: x + factor, range(3))] == [3, 4, 5]
        made = await pool.apply(lambda: lambda x: x - factor)
        assert made(10) == 7


async def test_a_closure_travels_as_it_is_at_the_call() -> None:
    """One function, called twice: what it refers to may have changed."""
    factor = 1

    def times(number: int) -> int:
        return number * factor

    async with AioPool(1, pickler=cloudpickle) as pool:
        assert await pool.apply(times, (5,)) == 5
        factor = 2
        assert await pool.apply(times, (5,)) == 10


async def test_what_a_job_reports_is_pickled_alike() -> None:
    """Progress, too."""
    told: list[Callable[[int], int]] = []
    async with AioPool(1, pickler=cloudpickle) as pool:
        result = pool.apply_async(jobs.report_a_closure, (4,))
        result.on_progress(told.append)
        await result
    assert [each(3) for each in told] == [7]


async def test_large_buffers_stay_outside_where_the_pickler_can() -> None:
    """And what is shared crosses once."""
    block = jobs.Block(bytearray(b"x" * 200_000))
    async with AioPool(1, pickler=cloudpickle) as pool:
        assert (await pool.apply(lambda each: each, (block,))).data == block.data
        shared = pool.share(block)
        assert await pool.apply(lambda each: len(each.data), (shared,)) == 200_000


class Json:
    """Pickles as JSON what is JSON, and a function as its name."""

    def dumps(self, value: Any) -> bytes:
        """Return JSON."""
        return json.dumps(value, default=self.name).encode()

    @staticmethod
    def name(function: Any) -> dict[str, str]:
        """Return a function's place."""
        return {"module": function.__module__, "function": function.__qualname__}

    def loads(self, text: bytes) -> Any:
        """Return the value; a function for its place."""
        assert type(text) is bytes
        return json.loads(text, object_hook=self.found)

    @staticmethod
    def found(fields: dict[str, Any]) -> Any:
        """Return the function that is meant, or the fields."""
        return (
            getattr(importlib.import_module(fields["module"]), fields["function"]) if "function" in fields else fields
        )


async def test_any_object_with_dumps_and_loads_will_do(start_method: str) -> None:
    """Tuples come out of JSON as lists: so it is really that which they have gone through."""
    async with AioPool(1, context=start_method, pickler=Json()) as pool:
        assert await pool.apply(jobs.same, ((1, 2),)) == [1, 2]
        assert await pool.apply(jobs.same, ("x" * 100_000,)) == "x" * 100_000
        assert await pool.map(jobs.square, range(10), chunksize=3) == [number**2 for number in range(10)]
        with pytest.raises(ValueError, match="3"):
            await pool.apply(jobs.fail_at, (3,))


async def test_a_pickler_that_cannot_tell_of_buffers_shares_nothing() -> None:
    """A clear error, where the call is made."""
    async with AioPool(1, pickler=Json()) as pool:
        with pytest.raises(TypeError, match="buffer_callback"):
            pool.share([1])


async def test_what_the_pickler_refuses_is_an_error_of_that_call() -> None:
    """Of the function, of an argument here or there, of the result."""
    async with AioPool(1, pickler=Json()) as pool:
        with pytest.raises(NotPicklable, match="function"):
            await pool.apply(partial(jobs.same, 1))
        with pytest.raises(NotPicklable, match="arguments"):
            await pool.apply(jobs.same, (object(),))
        with pytest.raises(NotPicklable, match="result"):
            await pool.apply(jobs.unpicklable_result)
        with pytest.raises(NotPicklable, match=r"arguments of same.*KeyError"):
            await pool.apply(jobs.same, ({"function": "no_such"},))
        assert await pool.apply(jobs.same, (1,)) == 1


@pytest.mark.parametrize("odd", [1, SimpleNamespace(dumps=pickle.dumps), SimpleNamespace(dumps=1, loads=2)])
def test_what_is_no_pickler_is_refused(odd: Any) -> None:
    """At the caller's line."""
    with pytest.raises(TypeError, match="pickler must have the functions dumps and loads"):
        AioPool(1, pickler=odd)


class Untold:
    """A pickler whose functions do not tell what they take."""

    class Dumps:
        """One of those."""

        __signature__ = "none"

        def __call__(self, value: object) -> bytes:
            """Pickle."""
            return pickle.dumps(value)

    dumps = Dumps()
    loads = staticmethod(pickle.loads)


def test_a_pickler_that_does_not_tell_what_it_takes_is_asked_for_no_more_than_a_pickle() -> None:
    """Its buffers stay inside."""
    pickling = ForeignPickling(Untold())
    assert not pickling.tells_buffers
    pickled, buffers = pickling.dumps([1, 2])
    assert (pickling.loads(pickled), buffers) == ([1, 2], [])
