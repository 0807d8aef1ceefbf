"""The verbs of the pool, their callbacks, and what they say of bad input."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import traceback
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from typing import Any

import pytest

import async_jobs
import jobs
from aiopool import AioPool, AsyncResult, MapResult, NotPicklable, PoolTerminated, ResultTimeout, cpus
from faultpoints import Taps
from latch import Latch

pytestmark = pytest.mark.both_loops


@pytest.fixture
async def pool():
    """A small pool."""
    async with AioPool(2) as pool:
        yield pool


async def numbers() -> AsyncIterator[int]:
    """Be an async input."""
    for number in range(10):
        yield number


async def test_apply_calls_with_arguments_and_keywords(start_method: str) -> None:
    """As multiprocessing.Pool does, in another process, by every start method."""
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.add, (1, 2), {"c": 3}) == 6
        assert await pool.apply(jobs.pid_of) != os.getpid()
        assert await pool.submit(jobs.add, 1, b=2, c=3) == 6


async def test_submit_leaves_all_keywords_to_the_function(pool: AioPool) -> None:
    """Even those that apply_async has for itself."""
    assert await pool.submit(dict, func=1, args=2, kwds=3, callback=4) == {
        "func": 1,
        "args": 2,
        "kwds": 3,
        "callback": 4,
    }


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
async def test_map_and_starmap_return_values_in_order(pool: AioPool, chunksize: int | None) -> None:
    """Whatever the chunks are; also of nothing, of an iterator and of an async iterable."""
    squares = [number**2 for number in range(10)]
    assert await pool.map(jobs.square, range(10), chunksize) == squares
    assert await pool.map(jobs.square, iter(range(10)), chunksize) == squares
    assert await pool.map(jobs.square, numbers(), chunksize) == squares
    assert await pool.map(jobs.square, [], chunksize) == []
    assert await pool.starmap(jobs.add, [(1, 2), (3, 4)], chunksize) == [3, 7]
    assert await pool.map_async(jobs.square, {3: None}, chunksize) == [9]
    assert await pool.starmap_async(jobs.add, [(1,)], chunksize) == [1]


async def test_the_items_of_a_range_do_not_travel(taps: Taps) -> None:
    """Each chunk is a range, too, and fits into one packet. Their values need more."""
    async with AioPool(1, context="fork") as pool:
        tapped = taps.of(await pool.apply(jobs.pid_of))
        assert await pool.map(abs, range(-200_000, 0), 50_000) == [*range(200_000, 0, -1)]
        assert tapped.down.packets == len(tapped.down.messages) == 1 + 4
        assert tapped.up.packets > len(tapped.up.messages)


async def test_map_raises_at_the_first_failure_and_drops_what_has_not_begun(latch: Latch) -> None:
    """Later chunks are never run."""
    async with AioPool(1) as pool:
        items = [(latch.path, number) for number in range(10)]
        with pytest.raises(ValueError, match="2"):
            await pool.map(tell_and_fail_at_two, items, chunksize=1)
        await pool.apply(jobs.square, (1,))
        told = latch.told_already()
        assert told[:3] == ["0", "1", "2"]
        assert len(told) <= 4, "no more than the one that had begun before the failure was known"


def tell_and_fail_at_two(pair: tuple[str, int]) -> None:
    """Fail at one of the items."""
    path, number = pair
    jobs.tell(path, number)
    if number == 2:
        raise ValueError(number)


async def test_results_are_futures(pool: AioPool) -> None:
    """gather, wait, as_completed, shield and done callbacks work natively."""
    results = [pool.submit(jobs.square, number) for number in range(4)]
    assert all(isinstance(result, asyncio.Future) and isinstance(result, AsyncResult) for result in results)
    assert await asyncio.gather(*results) == [0, 1, 4, 9]
    done, pending = await asyncio.wait([pool.submit(jobs.square, 5), pool.map_async(jobs.square, [5])])
    assert (len(done), len(pending)) == (2, 0)
    assert [await each for each in asyncio.as_completed([pool.submit(jobs.square, 6)])] == [36]
    assert await asyncio.shield(pool.submit(jobs.square, 7)) == 49
    seen = asyncio.Event()
    pool.submit(jobs.square, 8).add_done_callback(lambda _result: seen.set())
    await seen.wait()
    async with asyncio.timeout(30):
        assert await asyncio.wait_for(pool.submit(jobs.square, 9), 30) == 81


async def test_a_result_has_the_verbs_of_multiprocessing(pool: AioPool, gate: Latch) -> None:
    """get, wait, ready, successful."""
    result = pool.submit(jobs.wait_at, gate.path)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(ResultTimeout) as caught:
        await result.get(0)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, multiprocessing.TimeoutError)
    gate.let()
    await result.wait()
    assert result.ready()
    assert result.successful()
    assert await result.get() is None
    failed = pool.submit(jobs.fail_at, 3)
    await failed.wait(30)
    assert not failed.successful()
    with pytest.raises(ValueError, match="3"):
        await failed.get()


async def test_callbacks_are_called_with_value_or_exception(pool: AioPool) -> None:
    """One of the two, once."""
    seen: list[Any] = []
    await pool.apply_async(jobs.square, (3,), callback=seen.append, error_callback=pytest.fail)
    await pool.map_async(jobs.square, [1, 2], callback=seen.append, error_callback=pytest.fail)
    await pool.starmap_async(jobs.add, [(1, 2)], callback=seen.append)
    assert seen == [9, [1, 4], [3]]
    failed = pool.apply_async(jobs.fail_at, (3,), callback=pytest.fail, error_callback=seen.append)
    await asyncio.wait([failed])
    assert repr(seen[-1]) == "ValueError(3)"
    cancelled = pool.apply_async(jobs.square, (1,), callback=pytest.fail, error_callback=pytest.fail)
    cancelled.cancel()
    await asyncio.wait([cancelled])


async def test_a_callback_that_raises_goes_to_the_loops_exception_handler(pool: AioPool) -> None:
    """The result is not harmed by it."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))

    def raise_it(value: object) -> None:
        raise LookupError(value)

    assert await pool.apply_async(jobs.square, (3,), callback=raise_it) == 9
    assert repr(told[0]["exception"]) == "LookupError(9)"


async def test_a_failure_with_an_error_callback_counts_as_seen(pool: AioPool) -> None:
    """Without one, asyncio says that it was never retrieved, as for any future; terminated ones are known."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    result = pool.apply_async(jobs.fail_at, (3,), error_callback=lambda _error: None)
    await result.wait()
    del result
    result = pool.apply_async(jobs.fail_at, (3,), callback=lambda _value: None)
    await result.wait()
    del result
    await asyncio.sleep(0)
    assert [context["message"] for context in told] == ["AsyncResult exception was never retrieved"]
    abandoned = pool.submit(jobs.square, 3)
    pool.terminate()
    assert abandoned.done()
    del abandoned
    assert len(told) == 1


@pytest.mark.parametrize(
    ("kwds", "error", "text"),
    [
        ({"processes": 0}, ValueError, "processes must be at least 1, not 0"),
        ({"processes": -3}, ValueError, "processes must be at least 1, not -3"),
        ({"processes": 1.5}, TypeError, "processes must be an int, not 1.5"),
        ({"processes": True}, TypeError, "processes must be an int, not True"),
        ({"initializer": 3}, TypeError, "initializer must be callable, not 3"),
        ({"initargs": 3}, TypeError, "initargs must be iterable, not 3"),
        ({"maxtasksperchild": 0}, ValueError, "maxtasksperchild must be at least 1, not 0"),
        ({"maxtasksperchild": "x"}, TypeError, "maxtasksperchild must be an int, not 'x'"),
        ({"context": "thread"}, ValueError, "context must be one of fork, spawn, forkserver, not 'thread'"),
        ({"context": 3}, TypeError, "context must be a multiprocessing context or the name of a start method, not 3"),
        ({"preload": "json"}, TypeError, "preload must be a sequence of module names, not 'json'"),
        ({"preload": 5}, TypeError, "preload must be a sequence of module names, not 5"),
        ({"preload": [5]}, TypeError, "preload must be a sequence of module names, not [5]"),
        ({"forward_logs": "no"}, TypeError, "forward_logs must be True or False, not 'no'"),
    ],
)
async def test_bad_options_are_refused_before_anything_starts(kwds: dict[str, Any], error, text: str) -> None:
    """With the value, at the caller's line."""
    with pytest.raises(error) as caught:
        AioPool(**kwds)
    assert str(caught.value) == text


class CountsItsUses:
    """An iterable that may be able to give its items only once."""

    def __init__(self) -> None:
        self.uses = 0

    def __iter__(self) -> Iterator[int]:
        self.uses += 1
        return iter([3])


@pytest.mark.parametrize("max_pending", [None, 5])
async def test_iterables_are_asked_once_for_their_items(max_pending: int | None) -> None:
    """Not once more to see whether they have some."""
    asked = [CountsItsUses() for _ in range(6)]
    async with AioPool(1, jobs.remember, asked[0], max_pending=max_pending) as pool:
        assert await pool.apply(jobs.square, asked[1]) == 9
        assert await pool.map(jobs.square, asked[2]) == [9]
        assert await pool.map_async(jobs.square, asked[3]) == [9]
        assert [value async for value in pool.imap(jobs.square, asked[4])] == [9]
        assert [value async for value in pool.imap_unordered(jobs.square, asked[5])] == [9]
    assert [each.uses for each in asked] == [1] * 6


async def test_bad_arguments_of_calls_are_refused_at_the_callers_line(pool: AioPool) -> None:
    """With the value; nothing is sent, and the frame that called is the first below the test's."""
    refused: list[tuple[Any, type[Exception], str]] = [
        (lambda: pool.apply_async(3), TypeError, "func must be callable, not 3"),  # type: ignore[arg-type]
        (lambda: pool.apply_async(jobs.square, 3), TypeError, "args must be iterable, not 3"),  # type: ignore[arg-type]
        (
            lambda: pool.map_async(jobs.square, 3),
            TypeError,
            "the input must be an iterable or an async iterable, not 3",
        ),  # type: ignore[arg-type]
        (lambda: pool.map_async(None, [3]), TypeError, "func must be callable, not None"),  # type: ignore[arg-type]
        (lambda: pool.map_async(jobs.square, [3], 0), ValueError, "chunksize must be at least 1, not 0"),
        (lambda: pool.starmap_async(jobs.add, [3], -1), ValueError, "chunksize must be at least 1, not -1"),  # type: ignore[list-item]
        (lambda: pool.imap(jobs.square, [3], 0), ValueError, "chunksize must be at least 1, not 0"),
        (lambda: pool.imap(jobs.square, [3], 1, 0), ValueError, "buffersize must be at least 1, not 0"),
        (lambda: pool.imap(jobs.square, 3), TypeError, "the input must be an iterable or an async iterable, not 3"),  # type: ignore[arg-type]
        (lambda: pool.imap_unordered(3, [3]), TypeError, "func must be callable, not 3"),  # type: ignore[arg-type]
        (lambda: pool.apply_async(jobs.square, callback=3), TypeError, "callback must be callable, not 3"),  # type: ignore[arg-type]
        (lambda: pool.apply_async(jobs.square, (), 5), TypeError, "kwds must be a mapping of names to values, not 5"),  # type: ignore[call-overload]
        (
            lambda: pool.apply_async(jobs.square, (), [("a", 1)]),  # type: ignore[call-overload]
            TypeError,
            "kwds must be a mapping of names to values, not [('a', 1)]",
        ),
        (
            lambda: pool.apply_async(jobs.square, (), {3: 1}),  # type: ignore[call-overload]
            TypeError,
            "kwds must be a mapping of names to values; 3 in it is no name",
        ),
        (lambda: pool.dump_on(True), TypeError, "number must be that of a signal, such as signal.SIGUSR1, not True"),
        (lambda: pool.dump_on(999), ValueError, "number must be that of a signal, such as signal.SIGUSR1, not 999"),
    ]
    for call, error, text in refused:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == text
        assert traceback.extract_tb(caught.value.__traceback__)[1].filename == __file__
    assert "0 calls waiting" in repr(pool)
    with pytest.raises(TypeError, match="the input must be an iterable or an async iterable, not 3"):
        await pool.map(jobs.square, 3)  # type: ignore[arg-type]


async def test_a_timeout_that_is_no_time_is_refused_by_every_wait(pool: AioPool) -> None:
    """Also by one that would not have to wait, and whatever it waits for."""
    result = pool.submit(jobs.square, 3)
    await result
    values, yielded = pool.imap(jobs.square, [3]), pool.stream(async_jobs.count, 1)
    for wait in (result.get, result.wait, values.next, yielded.next):
        with pytest.raises(TypeError) as caught:
            await wait("1")  # type: ignore[arg-type]
        assert str(caught.value) == "timeout must be a number of seconds, or None, not '1'"
        await wait(float("inf"))
    await yielded.aclose()


async def test_a_wait_of_no_time_or_less_looks_once(pool: AioPool, latch: Latch, gate: Latch) -> None:
    """As in multiprocessing."""
    result = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
    for timeout in (0, -1, -(10**400), Fraction(-1, 2)):
        with pytest.raises(ResultTimeout):
            await result.get(timeout)  # type: ignore[arg-type]
    gate.let()
    await result


async def test_chunks_and_buffers_may_be_larger_than_anything(pool: AioPool) -> None:
    """They hold all there is."""
    assert await pool.map(jobs.square, [1, 2], chunksize=10**30) == [1, 4]
    for mapped in (pool.imap, pool.imap_unordered):
        assert [value async for value in mapped(jobs.square, [1, 2], 10**30, 10**30)] == [1, 4]
    assert [value async for value in pool.options(buffersize=10**30).stream(async_jobs.count, 2)] == [0, 1]


async def test_what_an_input_raises_when_it_is_asked_for_its_items_is_its_own(pool: AioPool) -> None:
    """Also a TypeError, which would be ours if it were no iterable."""

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise TypeError("out of order")

    with pytest.raises(TypeError, match="out of order"):
        await pool.map(jobs.square, Broken())
    with pytest.raises(TypeError, match="out of order"):
        pool.imap(jobs.square, Broken())


async def test_a_map_with_an_item_that_cannot_be_pickled_sends_nothing(pool: AioPool, latch: Latch) -> None:
    """It raises at the call, before the first chunk goes out."""
    with pytest.raises(NotPicklable):
        pool.map_async(tell_and_fail_at_two, [(latch.path, 0), (latch.path, lambda: 1)], chunksize=1)
    assert "0 busy, 0 calls waiting" in repr(pool)
    assert latch.told_already() == []


async def test_a_map_over_an_async_input_can_be_cancelled_while_it_reads(pool: AioPool) -> None:
    """Its reading ends with it."""

    async def never() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            left.append(True)

    left: list[bool] = []
    result = pool.map_async(jobs.square, never())
    await asyncio.sleep(0)
    assert result.cancel()
    with pytest.raises(asyncio.CancelledError):
        await result
    assert left == [True]


async def test_a_map_over_an_async_input_read_after_the_close_is_refused() -> None:
    """The result says so, instead of never coming."""
    async with AioPool(1) as pool:
        result = pool.map_async(jobs.square, numbers())
        pool.close()
        with pytest.raises(ValueError, match="closing"):
            await result


async def test_pool_and_results_tell_their_state_in_one_line(latch: Latch, gate: Latch) -> None:
    """What it is, how much of it, and what of."""
    pool = AioPool(1)
    assert repr(pool) == "<AioPool new: 0 workers, 0 busy, 0 calls waiting>"
    async with pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        waiting, cancelled = pool.submit(jobs.square, 1), pool.submit(jobs.square, 1)
        mapped: MapResult[int] = pool.map_async(jobs.square, [1])
        cancelled.cancel()
        assert repr(pool) == "<AioPool running: 1 workers, 1 busy, 2 calls waiting>"
        assert repr(running) == "<AsyncResult of tell_and_wait: running>"
        assert repr(waiting) == "<AsyncResult of square: waiting>"
        assert repr(cancelled) == "<AsyncResult of square: cancelled>"
        assert repr(mapped) == "<MapResult of square: waiting>"
        gate.let()
        await mapped
        assert repr(mapped) == "<MapResult of square: finished>"
        failed = pool.submit(jobs.fail_at, 3)
        await failed.wait()
        failed.exception()
        assert repr(failed) == "<AsyncResult of fail_at: failed with ValueError>"
    assert repr(pool) == "<AioPool closed: 0 workers, 0 busy, 0 calls waiting>"


async def test_preloaded_modules_are_there_before_the_first_call(start_method: str) -> None:
    """By every start method; one that does not exist is an initializer's error."""
    async with AioPool(1, context=start_method, preload=["xml.dom.minidom"]) as pool:
        assert "xml.dom.minidom" in await pool.apply(jobs.modules)


async def test_modules_to_preload_may_come_from_a_generator() -> None:
    """It is gone through once only."""
    async with AioPool(1, preload=(name for name in ["xml.sax.saxutils"])) as pool:  # type: ignore[arg-type]
        assert "xml.sax.saxutils" in await pool.apply(jobs.modules)


async def test_a_collection_in_a_worker_leaves_alone_what_the_fork_server_has_imported() -> None:
    """Or it would write to that memory, and have a copy of its own; what the job itself leaves is collected."""
    async with AioPool(1) as pool:
        assert await pool.apply(gc.isenabled)
        assert await pool.apply(gc.get_freeze_count) > 1000


async def test_a_context_of_multiprocessing_is_taken_as_it_is() -> None:
    """The module's own default, too."""
    for context in (multiprocessing.get_context("spawn"), multiprocessing.get_context()):
        async with AioPool(1, context=context) as pool:
            assert await pool.apply(jobs.square, (2,)) == 4


async def test_as_many_workers_as_usable_cpus_by_default() -> None:
    """Not more than this process may use."""
    async with AioPool() as pool:
        assert repr(pool).startswith(f"<AioPool running: {cpus.usable_cpus()} workers")


async def test_many_calls_at_once_neither_block_nor_raise(pool: AioPool) -> None:
    """Twenty thousand in one turn of the loop."""
    assert sum(await asyncio.gather(*(pool.apply(jobs.same, (1,)) for _ in range(20_000)))) == 20_000


async def test_a_terminated_map_fails_once(pool: AioPool) -> None:
    """With PoolTerminated, whatever its chunks were doing."""
    result = pool.map_async(jobs.square, range(100), chunksize=1)
    pool.terminate()
    with pytest.raises(PoolTerminated):
        await result
