"""imap and imap_unordered: the window, the order, and every way to leave the loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import itertools
import operator
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NoReturn

import pytest
import rich.console
import rich.progress
import uvloop
from tqdm.asyncio import tqdm

import async_jobs
import jobs
from aiopool import (
    AioPool,
    AioPoolError,
    BrokenPool,
    CallAborted,
    NotPicklable,
    PoolNotRunning,
    PoolTerminated,
    ResultTimeout,
    WorkerDied,
)
from conftest import is_gone
from latch import Latch
from test_crash import gone

pytestmark = pytest.mark.both_loops


class Counted:
    """An endless input that counts what is taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.taken += 1
            yield number

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in self:
            yield number


@contextlib.asynccontextmanager
async def plain(counted: Counted) -> AsyncIterator[Iterator[int]]:
    """Give the input as an ordinary iterable."""
    yield iter(counted)


@contextlib.asynccontextmanager
async def asynchronous(counted: Counted) -> AsyncIterator[AsyncIterator[int]]:
    """Give the input as an async iterable."""
    async with contextlib.aclosing(aiter(counted)) as source:  # type: ignore[type-var]
        yield source


@pytest.mark.parametrize("chunksize", [1, 3, 100])
@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
async def test_all_values_arrive_for_every_kind_of_input(verb: str, chunksize: int) -> None:
    """In order, unless it was asked for otherwise; sync and async inputs, empty ones too."""
    async with AioPool(2) as pool:
        imap = getattr(pool, verb)
        values = [value async for value in imap(jobs.square, range(20), chunksize)]
        assert sorted(values) == [number**2 for number in range(20)]
        if verb == "imap":
            assert values == sorted(values)

        async def source() -> AsyncIterator[int]:
            for number in range(20):
                await asyncio.sleep(0)
                yield number

        assert sorted([value async for value in imap(jobs.square, source(), chunksize)]) == sorted(values)
        assert [value async for value in imap(jobs.square, [], chunksize)] == []


@pytest.mark.parametrize("kind", [plain, asynchronous])
@pytest.mark.parametrize(("chunksize", "buffersize"), [(1, 1), (1, 5), (4, 2)])
async def test_no_more_is_taken_than_the_window_holds(kind, chunksize: int, buffersize: int) -> None:
    """From an endless input, at most ``buffersize`` chunks ahead of what was received."""
    counted = Counted()
    async with AioPool(2) as pool, kind(counted) as source:
        stream = pool.imap(jobs.square, source, chunksize, buffersize)
        for received in range(1, 30):
            assert await anext(stream) == (received - 1) ** 2
            for _ in range(20):
                await asyncio.sleep(0)
            assert counted.taken <= (received // chunksize + buffersize) * chunksize
        await stream.aclose()
        taken = counted.taken
        await pool.apply(jobs.square, (1,))
        assert counted.taken == taken


async def test_the_window_is_two_chunks_for_each_worker_by_default() -> None:
    """Enough to keep them busy."""
    counted = Counted()
    async with AioPool(3) as pool:
        stream = pool.imap(jobs.square, iter(counted))
        assert counted.taken == 6
        await stream.aclose()


@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_breaking_out_ends_what_runs_and_takes_no_more(kind, latch: Latch) -> None:
    """The calls in flight are dropped, with their workers where they had begun."""
    counted = Counted()
    async with AioPool(2) as pool, kind(counted) as source:
        async for value in pool.imap_unordered(zero_or_spin, ((latch.path, item) for item in source)
                                               if kind is plain else paired(latch.path, source)):  # fmt: skip
            assert value == 0
            pid = int(await latch.told())
            break
        taken = counted.taken
        assert await pool.map(jobs.square, range(9)) == [number**2 for number in range(9)]
        await gone(pid)
        assert counted.taken == taken
        assert "0 calls waiting" in repr(pool)


async def paired(path: str, source: AsyncIterator[int]) -> AsyncIterator[tuple[str, int]]:
    """Put the path before each item."""
    async for item in source:
        yield path, item


def zero_or_spin(pair: tuple[str, int]) -> int:
    """Return zero, or never."""
    path, item = pair
    if item:
        jobs.tell_and_spin(path)
    return item


@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_cancelling_the_loop_ends_what_runs_before_it_returns(kind, latch: Latch) -> None:
    """And the input is not read any more."""
    counted = Counted()

    async def consume(pool: AioPool, source: AsyncIterator[int]) -> None:
        pairs = paired(latch.path, source) if kind is asynchronous else ((latch.path, item + 1) for item in source)
        async for _ in pool.imap(zero_or_spin, pairs):
            pass

    async with AioPool(1) as pool, kind(counted) as source:
        task = asyncio.create_task(consume(pool, source))
        pid = int(await latch.told())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        taken = counted.taken
        assert is_gone(pid)
        assert await pool.apply(jobs.square, (3,)) == 9
        assert counted.taken == taken


async def test_an_iterator_that_is_dropped_unused_leaves_nothing() -> None:
    """Its calls are withdrawn as it goes."""
    async with AioPool(1) as pool:
        busy = pool.submit(jobs.square, 1)
        pool.imap(jobs.square, itertools.count())
        await busy
        await pool.apply(jobs.square, (1,))
        assert "0 calls waiting" in repr(pool)


def three_and_then_fail() -> Iterator[int]:
    """Break after three items."""
    yield from range(3)
    raise LookupError("input broke")


async def three_and_then_fail_async() -> AsyncIterator[int]:
    """Break after three items."""
    for number in three_and_then_fail():
        yield number


@pytest.mark.parametrize("source", [three_and_then_fail, three_and_then_fail_async])
@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
async def test_an_input_that_raises_midway_surfaces_after_the_earlier_results(verb: str, source) -> None:
    """Every value of what was taken before, then the input's own exception, then the end."""
    async with AioPool(2) as pool:
        stream, values = getattr(pool, verb)(jobs.square, source()), []
        with pytest.raises(LookupError, match="input broke"):
            async for value in stream:
                values.append(value)
        assert sorted(values) == [0, 1, 4]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize("source", [three_and_then_fail, three_and_then_fail_async])
async def test_a_map_over_an_input_that_raises_raises_the_same(source) -> None:
    """An async input is read first, then mapped."""
    async with AioPool(2) as pool:
        with pytest.raises(LookupError, match="input broke"):
            await pool.map(jobs.square, source())


class OwnBaseException(BaseException):
    """Neither an Exception nor one that means something to asyncio."""


async def one_and_then_fail(error: BaseException) -> AsyncIterator[int]:
    """Break after an item with an exception that a task takes no notice of, or takes for something else."""
    yield 1
    raise error


async def one_that_fails(error: BaseException) -> AsyncIterator[FailsToPickle]:
    """Give an item that breaks when it is pickled."""
    yield FailsToPickle(error)


class FailsToPickle:
    """An item that must not travel."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


UNUSUAL = [
    (asyncio.CancelledError(), asyncio.CancelledError, ""),
    (GeneratorExit("x"), CallAborted, "the input of square raised GeneratorExit: x"),
    (OwnBaseException("x"), OwnBaseException, "x"),
]


@pytest.mark.parametrize(("error", "kind", "text"), UNUSUAL, ids=repr)
@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
async def test_an_async_input_that_ends_with_no_exception_proper_ends_the_stream(
    verb: str, error: BaseException, kind: type[BaseException], text: str
) -> None:
    """Nobody waits for more: what was taken before it comes first, then what has ended it."""
    async with AioPool(1) as pool:
        stream = getattr(pool, verb)(jobs.square, one_and_then_fail(error))
        assert await anext(stream) == 1
        with pytest.raises(kind) as caught:
            await anext(stream)
        assert str(caught.value) == text
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize(("error", "kind", "text"), UNUSUAL, ids=repr)
@pytest.mark.parametrize("verb", ["map", "map_async"])
async def test_an_async_input_that_ends_with_no_exception_proper_ends_the_map(
    verb: str, error: BaseException, kind: type[BaseException], text: str
) -> None:
    """As one that ends with any other."""
    async with AioPool(1) as pool:
        with pytest.raises(kind) as caught:
            await getattr(pool, verb)(jobs.square, one_and_then_fail(error))
        assert str(caught.value) == text


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("where", ["raised", "pickled"])
@pytest.mark.parametrize("error", [SystemExit("x"), KeyboardInterrupt("x")], ids=repr)
@pytest.mark.parametrize("verb", ["map", "imap"])
def test_an_async_input_that_stops_the_loop_leaves_nobody_waiting(
    verb: str, error: BaseException, where: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What is to end the program passes through the loop at once. If that runs again, whoever waited is told."""

    async def use(pool: AioPool) -> None:
        source: AsyncIterator[Any] = one_and_then_fail(error) if where == "raised" else one_that_fails(error)
        if verb == "map":
            await pool.map(jobs.square, source)
        else:
            [value async for value in pool.imap(jobs.square, source)]

    pool = AioPool(1)
    with contextlib.closing(make_loop()) as loop:
        loop.run_until_complete(pool.start())
        task = loop.create_task(use(pool))
        with pytest.raises(type(error)):
            loop.run_until_complete(task)
        with pytest.raises(CallAborted, match=f"the input of square raised {type(error).__name__}: x"):
            loop.run_until_complete(task)
        pool.close()
        loop.run_until_complete(pool.join())


class GivesOneAndWaits:
    """An async input that does not go on."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.left = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            yield 3
            self.waits.set()
            await asyncio.Event().wait()
        finally:
            self.left.set()


def give_up(pool: AioPool) -> None:
    """Break the pool, as if workers had kept dying."""
    backend: Any = pool._backend
    backend._dispatcher._losses.in_a_row = 6
    backend._dispatcher._give_up(WorkerDied(1, 1))
    backend._perform([])


ENDS = [
    (AioPool.close, PoolNotRunning, "the pool is closing: it takes no more calls"),
    (AioPool.terminate, PoolTerminated, "the pool was terminated while the input was read"),
    (give_up, BrokenPool, "6 workers in a row were lost before they served a call"),
]


@pytest.mark.parametrize("max_pending", [None, 1])
@pytest.mark.parametrize(("end", "error", "text"), ENDS)
async def test_the_end_of_a_pool_is_told_to_whoever_waits_for_an_async_input(
    end: Callable[[AioPool], None], error: type[Exception], text: str, max_pending: int | None
) -> None:
    """At once, however long the input would take, and that is read no more. Accepted calls of a stream finish."""
    pool = AioPool(1, max_pending=max_pending)
    await pool.start()
    sources = [GivesOneAndWaits() for _ in range(3)]
    stream = pool.imap(jobs.square, sources[0])
    assert await anext(stream) == 9
    results = [pool.map_async(jobs.square, sources[1]), asyncio.create_task(pool.map(jobs.square, sources[2]))]
    waiting = asyncio.create_task(anext(stream))
    for source in sources:
        await source.waits.wait()
    end(pool)
    for ended in (waiting, *results):
        with pytest.raises(error) as caught:
            await ended
        assert str(caught.value).startswith(text)
    for source in sources:
        await source.left.wait()
    pool.terminate()
    await pool.join()


class GivesMoreWhenCancelled(GivesOneAndWaits):
    """An async input that takes its cancellation for a reason to hurry up."""

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 3
        with contextlib.suppress(asyncio.CancelledError):
            self.waits.set()
            await asyncio.Event().wait()
        yield 4
        self.left.set()


@pytest.mark.parametrize("verb", ["map_async", "imap"])
async def test_what_an_input_gives_after_the_end_of_the_pool_is_dropped(verb: str) -> None:
    """Whoever waits for it has been told already. A stream reads no more; a map's input may end as it likes."""
    pool, source = AioPool(1), GivesMoreWhenCancelled()
    await pool.start()
    ended = getattr(pool, verb)(jobs.square, source)
    if verb == "imap":
        assert await anext(ended) == 9
    await source.waits.wait()
    reader = ended._source._reader if verb == "imap" else ended._reader
    pool.close()
    with pytest.raises(PoolNotRunning):
        await (anext(ended) if verb == "imap" else ended)
    await pool.join()
    await asyncio.wait([reader])
    assert source.left.is_set() == (verb == "map_async")
    assert reader.exception() is None


async def test_an_input_that_closes_the_pool_is_read_no_further() -> None:
    """What it gives after that is refused at once, before anything is cancelled."""
    pool, read = AioPool(1), list[int]()
    await pool.start()

    async def close_and_go_on() -> AsyncIterator[int]:
        for number in (1, 2, 3):
            if number > 1:
                pool.close()
            read.append(number)
            yield number

    stream = pool.imap(jobs.square, close_and_go_on())
    assert await anext(stream) == 1
    with pytest.raises(PoolNotRunning):
        await anext(stream)
    await pool.join()
    assert read == [1, 2]


class EndsWhenCancelled:
    """An async input that takes its cancellation for its end, as the reader of a queue might."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.waits = asyncio.Event()
        self.ended = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[tuple[str, int]]:
        with contextlib.suppress(asyncio.CancelledError):
            self.waits.set()
            await asyncio.Event().wait()
        yield self.path, 1
        yield self.path, 2
        self.ended.set()


@pytest.mark.parametrize("verb", ["map_async", "imap"])
async def test_nothing_is_run_when_a_cancelled_input_goes_on(verb: str, latch: Latch) -> None:
    """Whoever wanted it has gone."""
    async with AioPool(1) as pool:
        source = EndsWhenCancelled(latch.path)
        if verb == "imap":
            stream = pool.imap(tell_pair, source)
            await source.waits.wait()
            await stream.aclose()
        else:
            result = pool.map_async(tell_pair, source)
            await source.waits.wait()
            assert result.cancel()
            with pytest.raises(asyncio.CancelledError):
                await result
            await source.ended.wait()
        await pool.apply(jobs.square, (1,))
        assert latch.told_already() == []


def tell_pair(pair: tuple[str, int]) -> None:
    """Tell that this has run."""
    jobs.tell(*pair)


async def test_a_cancelled_map_whose_input_goes_on_is_cancelled_when_the_pool_ends() -> None:
    """The input may take as long as it likes to end."""
    clean_up = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            await clean_up.wait()
        yield 1

    waits = asyncio.Event()
    pool = AioPool(1)
    await pool.start()
    result = pool.map_async(jobs.square, source())
    await waits.wait()
    result.cancel()
    await asyncio.sleep(0)
    assert not result.done()
    pool.terminate()
    with pytest.raises(asyncio.CancelledError):
        await result
    await pool.join()


async def test_an_input_is_refused_that_ends_the_pool_as_it_is_opened() -> None:
    """There is nobody left to tell of it later."""

    class EndsPool:
        def __aiter__(self) -> AsyncIterator[int]:
            pool.terminate()
            return GivesOneAndWaits().__aiter__()

    pool = AioPool(1)
    await pool.start()
    with pytest.raises(PoolTerminated):
        await anext(pool.imap(jobs.square, EndsPool()))
    await pool.join()


async def test_unordered_yields_a_fast_call_before_a_slow_earlier_one(latch: Latch, gate: Latch) -> None:
    """In the order in which they end."""
    async with AioPool(2) as pool:
        stream = pool.imap_unordered(slow_first, [(gate.path, 0), (gate.path, 1), (gate.path, 2)])
        assert [await anext(stream), await anext(stream)] == [1, 2]
        gate.let()
        assert [value async for value in stream] == [0]
    del latch


def slow_first(pair: tuple[str, int]) -> int:
    """Wait at the gate with the first item."""
    path, item = pair
    if item == 0:
        jobs.wait_at(path)
    return item


@pytest.mark.parametrize("chunksize", [1, 3])
async def test_an_item_that_fails_raises_in_its_turn_and_the_iteration_may_go_on(chunksize: int) -> None:
    """Neither the items before it nor those after it are lost, in whatever chunk they travel."""
    async with AioPool(2) as pool:
        stream, got = pool.imap(jobs.fail_at, range(7), chunksize), []
        while True:
            try:
                got.append(await anext(stream))
            except ValueError as error:
                got.append(repr(error))
            except StopAsyncIteration:
                break
        assert got == [0, 1, 2, "ValueError(3)", 4, 5, 6]


async def test_a_death_and_an_item_that_cannot_travel_raise_in_their_turn() -> None:
    """As any other failure of an item."""
    async with AioPool(1) as pool:
        stream = pool.imap(jobs.leave_at_one, range(3))
        assert await anext(stream) == 0
        with pytest.raises(WorkerDied):
            await anext(stream)
        assert [value async for value in stream] == [2]
        mixed = pool.imap(jobs.same, [1, lambda: 2, 3])
        assert await anext(mixed) == 1
        with pytest.raises(NotPicklable):
            await anext(mixed)
        assert [value async for value in mixed] == [3]
        with pytest.raises(NotPicklable, match="function"):
            pool.imap(lambda item: item, [1])


async def test_next_with_a_time_limit_loses_nothing(gate: Latch) -> None:
    """The value comes with a later call."""
    async with AioPool(1) as pool:
        stream = pool.imap(slow_first, [(gate.path, 0), (gate.path, 1)])
        with pytest.raises(ResultTimeout, match=r"no value of slow_first within 0\.01 s"):
            await stream.next(timeout=0.01)
        gate.let()
        assert [await stream.next(timeout=30), await stream.next()] == [0, 1]
        with pytest.raises(StopAsyncIteration):
            await stream.next(timeout=30)


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
async def test_cancelling_one_of_several_that_share_an_iterator_is_told_to_the_others(verb: str, gate: Latch) -> None:
    """It ends the iteration, and what they have had by then is not to pass for all there was."""
    async with AioPool(2) as pool:
        stream = getattr(pool, verb)(jobs.wait_at, [gate.path] * 9)
        tasks = [asyncio.create_task(step) for step in (anext(stream), anext(stream), stream.next(timeout=30))]
        for _ in range(5):
            await asyncio.sleep(0)
        tasks[0].cancel()
        for task in tasks[1:]:
            with pytest.raises(AioPoolError, match="the iterator over wait_at was closed as a task was cancelled"):
                await task
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        with pytest.raises(AioPoolError, match="was closed"):
            await anext(stream)


async def test_who_gives_up_waiting_by_cancellation_does_not_take_that_for_the_end(gate: Latch) -> None:
    """As with `asyncio.wait_for`, which cancels what it has waited for."""
    async with AioPool(1) as pool:
        stream = pool.imap(jobs.wait_at, [gate.path] * 9)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        with pytest.raises(AioPoolError, match="was closed"):
            await anext(stream)


async def test_after_close_what_was_taken_is_finished_and_the_rest_is_refused() -> None:
    """Nothing is lost silently."""
    async with AioPool(1) as pool:
        stream, values = pool.imap(jobs.square, range(10), buffersize=3), []
        pool.close()
        with pytest.raises(PoolNotRunning):
            async for value in stream:
                values.append(value)
        assert values == [0, 1, 4]


async def test_an_iterator_tells_its_state() -> None:
    """In one line."""
    async with AioPool(1) as pool:
        stream = pool.imap(jobs.square, range(2))
        assert repr(stream) == "<ImapIterator of square: open, 2 chunks in flight>"
        assert [value async for value in stream] == [0, 1]
        assert repr(stream) == "<ImapIterator of square: exhausted, 0 chunks in flight>"
        stream = pool.imap(jobs.square, range(2))
        await stream.aclose()
        assert "closed" in repr(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_that_is_collected_is_closed_in_a_turn_of_the_loops_own() -> None:
    """The collector may run in the midst of a decision of the pool's, which must not be entered again."""
    async with AioPool(1) as pool:
        stream = pool.imap(jobs.square, itertools.count())
        window = stream._source
        assert await anext(stream) == 0
        del stream
        gc.collect()
        assert not window.closed
        while not window.closed:
            await asyncio.sleep(0)


async def test_a_stream_tells_how_many_values_are_left() -> None:
    """Where its input has told, for progress bars; whatever raises counts as well, and at the end there are none."""
    async with AioPool(1) as pool:
        stream = pool.imap(jobs.fail_at, range(5), chunksize=2)
        assert operator.length_hint(stream) == 5
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="3"):
            await anext(stream)
        assert operator.length_hint(stream) == 1
        assert await anext(stream) == 4
        assert operator.length_hint(stream) == 0
        unknown = pool.imap_unordered(jobs.square, iter_of(range(3)))
        assert operator.length_hint(unknown, 77) == 77
        assert sorted([value async for value in unknown]) == [0, 1, 4]
        assert operator.length_hint(unknown, 77) == 0
        left = pool.imap(jobs.square, range(100))
        await left.aclose()
        assert operator.length_hint(left, 77) == 0


async def test_progress_bars_go_over_streams_as_they_are() -> None:
    """tqdm's, and rich's."""
    async with AioPool(1) as pool:
        stream = pool.imap(jobs.square, range(20))
        drawn = io.StringIO()
        assert [value async for value in tqdm(stream, total=operator.length_hint(stream), file=drawn)] == [
            number**2 for number in range(20)
        ]
        assert "20/20" in drawn.getvalue()
        with rich.progress.Progress(console=rich.console.Console(file=io.StringIO())) as progress:
            stream = pool.imap_unordered(jobs.square, range(20))
            task = progress.add_task("squares", total=operator.length_hint(stream))
            async for _ in stream:
                progress.advance(task)
            assert progress.finished


def iter_of(items: Iterable[int]) -> Iterator[int]:
    """Give items without telling how many."""
    yield from items


@pytest.mark.parametrize("verb", ["imap", "imap_unordered", "stream"])
async def test_the_iterator_keeps_its_pool(verb: str) -> None:
    """One that nobody else holds goes on until the last value, and goes with the iterator."""
    pool = AioPool(1)
    await pool.start()
    ended = weakref.ref(pool)
    values: Any = pool.stream(async_jobs.count, 3) if verb == "stream" else getattr(pool, verb)(jobs.same, range(3))
    del pool
    assert [value async for value in values] == [0, 1, 2]
    with pytest.warns(ResourceWarning, match="unclosed AioPool"):
        del values
    assert ended() is None
