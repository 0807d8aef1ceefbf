"""Coroutine functions in workers: what they can do, and what happens to those beside them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import uvloop

import async_jobs
import jobs
from aiopool import AioPool, CallAborted, CallTimeout, InitializerError, WorkerDied
from aiopool.decisions import QUICK
from conftest import is_gone
from latch import Latch
from test_hooks import Diary

pytestmark = pytest.mark.both_loops


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio in workers", "uvloop in workers"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the workers' loops."""
    made: Callable[[], asyncio.AbstractEventLoop] | None = request.param
    return made


async def told(latch: Latch, count: int) -> list[str]:
    """Return so many lines, sorted."""
    return sorted([await latch.told() for _ in range(count)])


# What is a coroutine function, and where it can be given.


async def test_every_verb_takes_coroutine_functions(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    """Its value is what it is awaited to."""
    async with AioPool(2, concurrency=4, loop_factory=loop_factory) as pool:
        assert await pool.apply(async_jobs.add, (1,), {"c": 5}) == 6
        assert await pool.apply_async(async_jobs.add, (1, 2)) == 3
        assert await pool.submit(async_jobs.add, 1, c=2) == 3
        assert await pool.map(async_jobs.add, range(20)) == list(range(20))
        assert await pool.starmap(async_jobs.add, [(1, 2), (3, 4)], chunksize=2) == [3, 7]
        assert await pool.map_async(async_jobs.add, range(5), chunksize=2) == list(range(5))
        assert await pool.starmap_async(async_jobs.add, [(1, 2)]) == [3]
        assert [value async for value in pool.imap(async_jobs.add, range(9), chunksize=2)] == list(range(9))
        assert sorted([value async for value in pool.imap_unordered(async_jobs.add, range(9))]) == list(range(9))
        module = await pool.apply(async_jobs.loop_type)
        assert module.startswith("asyncio" if loop_factory is None else "uvloop")


@pytest.mark.parametrize(
    "function",
    [partial(async_jobs.add, 1), partial(partial(async_jobs.add), 1), async_jobs.Adder(1), async_jobs.Adder(1).add],
    ids=["partial", "partial of a partial", "instance", "method"],
)
async def test_what_runs_a_coroutine_function_is_one(function: Callable[[int], Any]) -> None:
    """As `inspect` and asyncio see it."""
    async with AioPool(1) as pool:
        assert await pool.apply(function, (2,)) == 3
        assert await pool.map(function, [2, 3], chunksize=2) == [3, 4]


async def test_a_function_that_returns_a_coroutine_is_a_clear_error(capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing warns that a coroutine was never awaited, in the worker either."""
    async with AioPool(1, context="spawn") as pool:  # whose worker writes where we read; a fork server is older
        for _ in range(2):
            with pytest.raises(TypeError, match="has returned a coroutine of add, which nobody awaits"):
                await pool.apply(async_jobs.returns_a_coroutine, (1,))
            await pool.apply(async_jobs.add, (1, 2))  # then, the worker has a loop
        with pytest.raises(TypeError, match="has returned a coroutine of add"):
            await pool.map(async_jobs.returns_a_coroutine, [1, 2, 3], chunksize=3)
    assert capfd.readouterr().err == ""


async def test_functions_pay_nothing_for_it() -> None:
    """No asyncio, and not what the loop comes from, before the first coroutine."""
    async with AioPool(1, context="spawn", concurrency=8, loop_factory=uvloop.new_event_loop) as pool:
        assert not {"asyncio", "uvloop"} & await pool.apply(jobs.modules)
        assert await pool.apply(async_jobs.loop_type) == "uvloop"
        assert {"asyncio", "uvloop"} <= await pool.apply(jobs.modules)


async def test_failures_arrive_as_ever() -> None:
    """An exception is itself, with its traceback; a harmful one is wrapped; one item's harms no other."""
    async with AioPool(1, concurrency=2) as pool:
        with pytest.raises(KeyError) as caught:
            await pool.apply(async_jobs.fail, (KeyError("key"),))
        trace = str(caught.value.__cause__)
        assert "in fail" in trace
        assert "tasks.py" not in trace
        for harmful in (asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), StopIteration()):
            with pytest.raises((CallAborted, RuntimeError)):
                await pool.apply(async_jobs.fail, (harmful,))
        values = pool.imap(async_jobs.fail_at, range(5), chunksize=5)
        assert [await anext(values) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="bad 3"):
            await anext(values)
        assert await anext(values) == 4
        with pytest.raises(ValueError, match="bad 3"):
            await pool.map(async_jobs.fail_at, range(5))


# How many at once.


async def test_so_many_run_at_once_in_a_worker(
    latch: Latch, gate: Latch, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """The next begins when one has ended; in whatever order they end, each gets its own value."""
    async with AioPool(1, concurrency=3, loop_factory=loop_factory) as pool:
        results = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, n) for n in range(4)]
        assert await told(latch, 3) == ["0", "1", "2"]
        assert (pool.stats().running, pool.stats().queued) == (3, 1)
        assert latch.told_already() == []
        gate.let()
        assert await latch.told() == "3"
        gate.let(3)
        assert await asyncio.gather(*results) == [0, 1, 2, 3]


async def test_by_default_one_runs_at_a_time(latch: Latch, gate: Latch) -> None:
    """As functions do."""
    async with AioPool(1) as pool:
        first = pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, 1)
        assert await latch.told() == "1"
        second = pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, 2)
        await pool.stacks()
        assert latch.told_already() == []
        gate.let(2)
        assert await asyncio.gather(first, second) == [1, 2]


async def test_what_is_sent_ahead_begins_when_there_is_a_place(latch: Latch, gate: Latch) -> None:
    """Not before: until then it could be taken back."""
    async with AioPool(1, concurrency=2) as pool:
        pool._engine.packer.pace_of(async_jobs.tell_and_wait).seconds = 2 * QUICK
        results = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, n) for n in range(3)]
        assert (pool.stats().running, pool.stats().queued) == (3, 0)
        assert await told(latch, 2) == ["0", "1"]
        await pool.stacks()
        assert latch.told_already() == []
        gate.let()
        assert await latch.told() == "2"
        gate.let(2)
        assert await asyncio.gather(*results) == [0, 1, 2]


async def test_workers_that_have_nothing_come_first(latch: Latch, gate: Latch) -> None:
    """Then those with the fewest."""
    async with AioPool(2, concurrency=2) as pool:
        results = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path) for _ in range(4)]
        pids = [await latch.told() for _ in range(4)]
        assert sorted(map(pids.count, set(pids))) == [2, 2]
        gate.let(4)
        await asyncio.gather(*results)


async def test_a_function_has_its_worker_for_itself(latch: Latch, gate: Latch) -> None:
    """It waits for the coroutines, and those behind it wait for it."""
    async with AioPool(1, concurrency=3) as pool:
        coroutine = pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, 1)
        assert await latch.told() == "1"
        function = pool.submit(jobs.tell_and_wait, latch.path, gate.path, 2)
        behind = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, n) for n in (3, 4)]
        await pool.stacks()
        assert latch.told_already() == []
        gate.let()
        assert await latch.told() == "2"
        await pool.stacks()
        assert latch.told_already() == []
        gate.let()
        assert await told(latch, 2) == ["3", "4"]
        gate.let(2)
        assert await asyncio.gather(coroutine, function, *behind) == [1, 2, 3, 4]


async def test_a_chunk_of_coroutines_is_awaited_one_after_the_other(latch: Latch) -> None:
    """Where chunks are asked for; else each item is a call of its own."""
    async with AioPool(1, concurrency=3) as pool:
        items = [(latch.path, number) for number in range(3)]
        assert await pool.map(async_jobs.tell_in_turn, items, chunksize=3) == [0, 1, 2]
        in_turn = [f"{what} {number}" for number in range(3) for what in ("begun", "ended")]
        assert [await latch.told() for _ in range(6)] == in_turn
        before = pool.stats().done
        await pool.map(async_jobs.add, range(7))
        assert pool.stats().done - before == 7


async def test_a_large_argument_is_let_go_of_when_the_coroutine_does_so() -> None:
    """Though that goes on."""
    async with AioPool(1, concurrency=2) as pool:
        assert await pool.submit(async_jobs.mapped_after_use, jobs.Block(bytes(2_000_000))) == (1, 0)


async def test_large_arguments_travel_beside_one_another(either_way: Callable[[], None] | None) -> None:
    """Each to a place of its own."""
    async with AioPool(2, either_way, concurrency=4) as pool:
        sizes = [1_000_000 + number for number in range(12)]
        assert await pool.map(async_jobs.size_of, [bytes(size) for size in sizes]) == sizes


async def test_what_has_a_place_but_is_not_begun_goes_to_whoever_is_free(latch: Latch, gate: Latch) -> None:
    """A coroutine that blocks its loop holds up those beside it only while no worker is free."""
    async with AioPool(2, concurrency=3) as pool:
        first = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "function")
        assert await latch.told() == "function"
        blocking = pool.submit(async_jobs.block_or_size, latch.path, gate.path, b"")
        assert await latch.told() == "blocked"
        beside = [pool.submit(async_jobs.size_of, bytes(size)) for size in (5, 3_000)]
        gate.let()  # one of the two is free then
        done, _ = await asyncio.wait([first, blocking], return_when="FIRST_COMPLETED")
        if first in done:
            assert await asyncio.gather(*beside) == [5, 3_000]
        gate.let()
        assert await asyncio.gather(blocking, *beside) == [0, 5, 3_000]
        await first


async def test_a_large_call_that_is_not_begun_harms_nobody(
    latch: Latch, gate: Latch, either_way: Callable[[], None] | None
) -> None:
    """It cannot be taken back, for its worker may have read a part of it; it waits, or can be cancelled."""
    async with AioPool(2, either_way, concurrency=3, cancel_grace=30) as pool:
        first = pool.submit(jobs.tell_and_wait, latch.path, gate.path, "function")
        assert await latch.told() == "function"
        blocking = pool.submit(async_jobs.block_or_size, latch.path, gate.path, b"")
        assert await latch.told() == "blocked"
        large, other = (pool.submit(async_jobs.size_of, bytes(300_000)) for _ in range(2))
        large.cancel()
        gate.let(2)
        assert await asyncio.gather(first, blocking, other) == ["function", 0, 300_000]
        await asyncio.wait([large])
        assert large.cancelled()
        assert pool.stats().lost == 0


# Cancelling.


async def test_cancelling_cancels_the_coroutine(
    latch: Latch, gate: Latch, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """Its clean-up runs, and its neighbour and their worker live on."""
    async with AioPool(1, concurrency=2, loop_factory=loop_factory) as pool:
        neighbour = pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, 7)
        assert await latch.told() == "7"
        pid = pool.stats().workers[0].pid
        call = pool.submit(async_jobs.tell_and_clean_up, latch.path)
        assert await latch.told() == "begun"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [latch.told_already()] == [["cancelled", "cleaned up"]]
        gate.let()
        assert await neighbour == 7
        assert await pool.apply(async_jobs.pid) == pid


async def test_a_time_limit_cancels_the_coroutine(latch: Latch) -> None:
    """Its worker lives."""
    async with AioPool(1, concurrency=2) as pool:
        pid = await pool.apply(async_jobs.pid)
        with pytest.raises(CallTimeout):
            await pool.apply(async_jobs.tell_and_clean_up, (latch.path,), timeout=0.05)
        assert latch.told_already() == ["begun", "cancelled", "cleaned up"]
        assert await pool.apply(async_jobs.pid) == pid


@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_what_would_end_the_loop_does_not(
    loop_factory: Any, error: BaseException, caplog: pytest.LogCaptureFixture, latch: Latch, gate: Latch
) -> None:
    """Raised in a task, or where nobody waits for it: then it is logged. Those beside it do not notice."""
    async with AioPool(1, concurrency=2, loop_factory=loop_factory) as pool:
        beside = pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, "well")
        await latch.told()
        with pytest.raises(CallAborted) as caught:
            await pool.apply(async_jobs.fail_in_task, (error,))
        assert type(caught.value.__cause__) is type(error)
        for raised, exits in ((error, False), (error, True), (ValueError(), True)):
            caplog.clear()
            assert await pool.apply(async_jobs.fail_in_callback, (raised,), {"exits": exits}) == "went on"
            logged = SystemExit if isinstance(raised, ValueError) else type(raised)
            assert [record.exc_text and logged.__name__ in record.exc_text for record in caplog.records] == [True]
        gate.let()
        assert await beside == "well"


@pytest.mark.parametrize("limit", [None, 0.5], ids=["cancelled", "over its time"])
async def test_a_coroutine_that_does_not_stop_takes_its_worker_along(
    latch: Latch, gate: Latch, limit: float | None
) -> None:
    """Those that it ran beside hear whose fault that was; one that has not begun runs elsewhere."""
    async with AioPool(1, concurrency=2, cancel_grace=0.05) as pool:
        neighbour = pool.submit(async_jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        call = pool.apply_async(async_jobs.tell_and_swallow, (latch.path,), timeout=limit)
        pid = int(await latch.told())
        behind = pool.submit(async_jobs.pid)
        if limit is None:
            call.cancel()
        with pytest.raises(asyncio.CancelledError if limit is None else CallTimeout):
            await call
        with pytest.raises(WorkerDied) as caught:
            await neighbour
        why = "was cancelled" if limit is None else "was over its time limit"
        assert f"tell_and_swallow, which ran beside it, {why} and did not stop" in str(caught.value)
        assert caught.value.beside == ("tell_and_swallow",)
        assert caught.value.call == "tell_and_wait"
        assert is_gone(pid)
        assert await behind != pid


async def test_a_coroutine_has_a_moment_to_stop_where_there_is_no_grace(latch: Latch) -> None:
    """A second; then its worker is killed."""
    async with AioPool(1) as pool:
        call = pool.submit(async_jobs.tell_and_block, latch.path)
        assert await latch.told() == "blocked"
        pid = pool.stats().workers[0].pid
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert pid
        assert is_gone(pid)


async def test_cancelling_many_at_once(latch: Latch) -> None:
    """Each runs its clean-up, once, and the worker serves on."""
    async with AioPool(1, concurrency=20) as pool:
        calls = [pool.submit(async_jobs.tell_and_clean_up, latch.path, f"over {number}") for number in range(20)]
        assert await told(latch, 20) == ["begun"] * 20
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        lines = latch.told_already()
        assert sorted(lines) == sorted(["cancelled"] * 20 + [f"over {number}" for number in range(20)])
        assert await pool.apply(async_jobs.add, (1, 2)) == 3


async def test_a_call_cancelled_as_it_is_sent_never_runs_on(latch: Latch) -> None:
    """Whether it has begun or not."""
    async with AioPool(1, concurrency=2) as pool:
        await pool.apply(async_jobs.add, (1, 2))
        for _ in range(20):
            call = pool.submit(async_jobs.tell_and_clean_up, latch.path)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            lines = latch.told_already()
            assert lines in ([], ["begun", "cancelled", "cleaned up"])
        assert pool.stats().lost == 0


# Deaths, retries and recycling.


async def test_a_death_names_every_call_that_was_inside(latch: Latch, gate: Latch) -> None:
    """Any of them may have been its cause."""
    async with AioPool(1, concurrency=3) as pool:
        results = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path) for _ in range(2)]
        await told(latch, 2)
        deadly = pool.submit(async_jobs.kill_self)
        errors = await asyncio.gather(*results, deadly, return_exceptions=True)
        assert [error.call for error in errors if isinstance(error, WorkerDied)] == ["tell_and_wait"] * 2 + [
            "kill_self"
        ]
        assert isinstance(errors[2], WorkerDied)
        assert errors[2].beside == ("tell_and_wait",) * 2
        assert str(errors[2]).endswith("was killed by SIGKILL while running kill_self, beside tell_and_wait")
        assert await pool.apply(async_jobs.add, (1, 2)) == 3
        assert pool.stats().lost == 1


async def test_a_coroutine_is_tried_again_as_a_function_is(tmp_path: Any) -> None:
    """When its worker has died under it."""
    async with AioPool(1, concurrency=2) as pool:
        assert await pool.apply(async_jobs.die_once, (str(tmp_path / "mark"),), retries=1)


async def test_each_coroutine_counts_as_a_call_of_its_worker(latch: Latch, gate: Latch) -> None:
    """Which is replaced after the last, and waits for all that run."""
    async with AioPool(1, maxtasksperchild=3, concurrency=2) as pool:
        results = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path) for _ in range(4)]
        assert len(set(await told(latch, 2))) == 1
        gate.let()
        await latch.told()  # the third is the worker's last
        assert pool.stats().workers[0].phase == "retiring"
        gate.let(2)
        await latch.told()
        gate.let()
        await asyncio.gather(*results)
        pids = await pool.map(async_jobs.pid_of, range(8))
        assert max(map(pids.count, set(pids))) <= 3
        assert pool.stats().lost == 0
        assert pool.stats().recycled["calls"] >= 3


# What a coroutine has around it.


async def test_context_variables_do_not_leak(
    latch: Latch, gate: Latch, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """Neither to those beside it, nor to those that come; its own tasks have its values."""
    async with AioPool(1, concurrency=3, loop_factory=loop_factory) as pool:
        results = [pool.submit(async_jobs.set_variable, latch.path, gate.path, name) for name in "abc"]
        await told(latch, 3)
        gate.let(3)
        assert await asyncio.gather(*results) == [("unset", name, name) for name in "abc"]
        assert await pool.apply(async_jobs.read_variable) == "unset"


async def test_context_variables_travel_with_coroutines() -> None:
    """Each call has the values of where it was made."""
    async with AioPool(1, concurrency=3, context_vars=[async_jobs.variable]) as pool:
        results = []
        for name in "abc":
            async_jobs.variable.set(name)
            results.append(pool.submit(async_jobs.read_variable))
        assert await asyncio.gather(*results) == ["a", "b", "c"]
        assert await pool.map(async_jobs.variable_here, range(2), chunksize=2) == ["c", "c"]
        assert [value async for value in pool.stream(async_jobs.variable_each, 2)] == ["c", "c"]
        assert [value async for value in pool.stream(async_jobs.variable_each_sync, 2)] == ["c", "c"]


async def test_coroutines_report_as_functions_do() -> None:
    """Each to its own call, also from tasks of its own; and they know their worker."""
    async with AioPool(1, concurrency=2) as pool:
        heard: dict[int, list[Any]] = {1: [], 2: []}
        results = {number: pool.submit(async_jobs.report_each, number, b"x" * 100_000) for number in heard}
        for number, result in results.items():
            result.on_progress(heard[number].append)
        assert await results[1] in (0, 1)
        await results[2]
        await asyncio.sleep(0)
        assert heard == {number: [number, b"x" * 100_000, "from a task"] for number in heard}


async def test_the_initializer_may_be_a_coroutine_function(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    """What it sets context variables to is there for all calls."""
    async with AioPool(1, async_jobs.initialize, ("here",), loop_factory=loop_factory) as pool:
        assert await pool.apply(async_jobs.read_variable) == "here"
        assert await pool.apply(async_jobs.variable_here, (0,)) == "here"
    with pytest.raises(InitializerError) as caught:
        await AioPool(1, async_jobs.fail_to_initialize, loop_factory=loop_factory).start()
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(InitializerError) as caught:
        await AioPool(1, async_jobs.returns_a_coroutine, (1,)).start()
    assert "which nobody awaits" in str(caught.value.__cause__)


async def test_a_loop_that_cannot_be_made_fails_the_call() -> None:
    """And no function; each coroutine tries again."""
    async with AioPool(1, loop_factory=async_jobs.broken_loop) as pool:
        for _ in range(2):
            with pytest.raises(OSError, match="no loop today"):
                await pool.apply(async_jobs.add, (1, 2))
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.parametrize(("options", "error"), [({"concurrency": 0}, ValueError), ({"loop_factory": 3}, TypeError)])
def test_what_makes_no_sense_is_said_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    """With the option's name."""
    with pytest.raises(error, match=next(iter(options))):
        AioPool(1, **options)


# The worker's loop.


async def test_what_is_left_on_the_loop_goes_on_until_the_worker_leaves(
    latch: Latch,
    gate: Latch,
    capfd: pytest.CaptureFixture[str],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    """While the worker waits; then tasks are cancelled and async generators closed, without a word."""
    async with AioPool(1, context="spawn", loop_factory=loop_factory) as pool:
        await pool.apply(async_jobs.leave_a_task, (latch.path, gate.path))
        gate.let()
        assert await latch.told() == "went on"
        assert await pool.apply(jobs.square, (3,)) == 9
        assert latch.told_already() == []
    assert latch.told_already() == ["task cancelled", "generator closed"]
    assert capfd.readouterr().err == ""


async def test_a_function_may_have_a_loop_of_its_own(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    """Also in a worker that has one."""
    async with AioPool(1, loop_factory=loop_factory) as pool:
        for _ in range(2):
            assert await pool.apply(async_jobs.run_a_loop) == 3
            assert await pool.apply(async_jobs.add, (1, 2)) == 3


async def test_a_function_in_a_worker_with_a_loop_can_be_interrupted(latch: Latch) -> None:
    """As ever."""
    async with AioPool(1, cancel_grace=10) as pool:
        pid = await pool.apply(async_jobs.pid)
        for _ in range(3):
            call = pool.submit(jobs.tell_and_spin, latch.path)
            assert await latch.told() == str(pid)
            call.cancel()
            await asyncio.wait([call])
            assert await pool.apply(async_jobs.pid) == pid


async def test_the_stack_shows_a_coroutine_that_blocks_its_loop(
    latch: Latch, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """Its frames, and not those of the loop; nothing while the loop waits."""
    async with AioPool(1, concurrency=2, loop_factory=loop_factory) as pool:
        await pool.apply(async_jobs.add, (1, 2))
        (stack,) = await pool.stacks()
        assert stack.frames == []
        call = pool.submit(async_jobs.tell_and_block, latch.path)
        await latch.told()
        (stack,) = await pool.stacks()
        assert stack.call == "tell_and_block"
        assert [frame.name for frame in stack.frames or ()][:2] == ["tell_and_block", "tell_and_block_the_loop"]
        pool.terminate()
        await asyncio.wait([call])


async def test_hooks_and_statistics_count_coroutines() -> None:
    """Each that is queued is started and ends, once."""
    diary = Diary()
    async with AioPool(2, concurrency=5, hooks=[diary]) as pool:
        await asyncio.gather(*(pool.apply(async_jobs.add, (1, 2)) for _ in range(30)))
        with pytest.raises(ValueError, match="bad"):
            await pool.apply(async_jobs.fail_at, (3,))
        stats = pool.stats()
        assert (stats.done, stats.failed, stats.running, stats.queued) == (30, 1, 0, 0)
        assert stats.run_time.count == 31
    for kind in ("CallQueued", "CallEnded"):
        calls = [event.call for event in diary.events if type(event).__name__ == kind]  # type: ignore[union-attr]
        assert len(calls) == len(set(calls)) == 31


async def test_it_works_with_every_start_method(start_method: str, latch: Latch, gate: Latch) -> None:
    """Many at once, a cancelled one, a dead one."""
    async with AioPool(1, context=start_method, concurrency=3) as pool:
        results = [pool.submit(async_jobs.tell_and_wait, latch.path, gate.path, n) for n in range(2)]
        cancelled = pool.submit(async_jobs.tell_and_clean_up, latch.path)
        assert await told(latch, 3) == ["0", "1", "begun"]
        cancelled.cancel()
        await asyncio.wait([cancelled])
        gate.let(2)
        assert await asyncio.gather(*results) == [0, 1]
        with pytest.raises(WorkerDied) as caught:
            await pool.apply(async_jobs.kill_self)
        assert caught.value.signal == signal.SIGKILL.name
        assert [value async for value in pool.stream(async_jobs.acount, 3)] == [0, 1, 2]
    async with AioPool(1, context=start_method, loop_factory=uvloop.new_event_loop) as pool:
        assert await pool.apply(async_jobs.loop_type) == "uvloop"
