"""A pool on a cluster of Dask at moments that are hard to come by with a real one; the cluster is not there."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator
from traceback import FrameSummary
from typing import Any

import pytest
from distributed import KilledWorker

import jobs
from aiopool import (
    AioPool,
    AioPoolError,
    BrokenPool,
    CallTimeout,
    InitializerError,
    PoolFull,
    PoolNotRunning,
    PoolTerminated,
    WorkerDied,
    WorkerLeft,
    wire,
)
from aiopool.backends.dask import DaskBackend
from aiopool.backends.dask_calls import MOST_SUBMISSIONS
from aiopool.backends.dask_crossing import Answer, Answered, Packed
from aiopool.calls import Call, Outcome
from dask_fakes import FakeClient, FakeDask, Task, backend_of
from test_hooks import Diary

NOBODY: Any = None


@pytest.fixture
async def client() -> FakeClient:
    """Of a cluster where nothing has happened."""
    return FakeClient()


@contextlib.asynccontextmanager
async def pool_of(client: FakeClient, *, restart_cancelled: bool = False, **options: Any) -> AsyncIterator[AioPool]:
    """Make a pool there, with a worker of one thread; what is left of it in the end is terminated."""
    pool = AioPool(backend=FakeDask(client, restart_cancelled=restart_cancelled), **options)
    await pool.start()
    client.says(what="came", worker="a", seat=0, pid=100, threads=1)
    try:
        yield pool
    finally:
        client.answering.set()
        pool.terminate()
        await pool.join()


@pytest.fixture
async def pool(client: FakeClient) -> AsyncIterator[AioPool]:
    """A pool there."""
    async with pool_of(client) as made:
        yield made


async def settled() -> None:
    """Let all come to its end that waits for nothing but its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


def begin(client: FakeClient, task: Task, worker: str = "a") -> None:
    """A worker begins a task."""
    client.begun[task.key] = worker
    client.says(what="began", call=task.call, worker=worker)


# Answers.


async def test_answers_of_one_turn_are_asked_for_together(pool: AioPool, client: FakeClient) -> None:
    """Those that are too large to be told."""
    results = [pool.submit(jobs.square, number) for number in range(3)]
    for number, task in enumerate(await client.given(3)):
        task.give(number * number)
    assert await asyncio.gather(*results) == [0, 1, 4]
    assert client.gathered == [3]


async def test_a_call_that_ends_as_its_answer_comes_has_the_end_that_came_first(
    pool: AioPool, client: FakeClient
) -> None:
    """Be it before the answer is asked for, or while it is sent."""
    client.answering.clear()
    client.sending.clear()
    result = pool.submit(jobs.square, 3)
    [task] = await client.given(1)
    task.give(9)
    while not client.gathered:
        await asyncio.sleep(0)
    result.cancel()
    client.sending.set()
    await settled()
    assert not result.done()
    client.answering.set()
    await asyncio.wait([result])
    assert result.cancelled()
    abandoned = pool.submit(jobs.square, 3)
    [_, task] = await client.given(2)
    task.give(9)
    while not backend_of(pool)._tasks._arrived:
        await asyncio.sleep(0)
    client.answering.clear()
    pool.terminate()
    with pytest.raises(PoolTerminated):
        await abandoned
    await settled()
    client.answering.set()
    await pool.join()
    assert client.gathered == [1]


async def test_a_result_that_is_lost_is_a_death_of_its_worker(pool: AioPool, client: FakeClient) -> None:
    """If it was begun, which it is never more often than it may; it is run again if it has tries."""
    lost, again = pool.submit(jobs.square, 3), pool.apply_async(jobs.square, (4,), retries=1)
    for task in await client.given(2):
        begin(client, task)
        task.become("finished")
    with pytest.raises(WorkerDied) as caught:
        await lost
    assert (caught.value.pid, caught.value.tries) == (100, 1)
    (await client.given(3))[2].give(16)
    assert await again == 16


@pytest.mark.parametrize(
    ("status", "answer", "error", "why"),
    [
        ("finished", Answer(Answered.REFUSED, Packed([b""])), None, "it was not run again"),
        ("error", None, KilledWorker("task", NOBODY, 4), "too many workers died that had it"),
        ("cancelled", None, None, "the cluster has dropped it"),
    ],
)
async def test_a_call_that_comes_to_nothing_before_it_is_begun_is_given_anew(
    status: str, answer: Answer | None, error: BaseException | None, why: str, pool: AioPool, client: FakeClient
) -> None:
    """Under another name, and not for ever."""
    result = pool.submit(jobs.square, 3)
    for number in range(1, MOST_SUBMISSIONS + 1):
        (await client.given(number))[-1].become(status, answer, error)
    with pytest.raises(AioPoolError, match=f"square was given to the cluster 5 times: {why}"):
        await result
    await settled()
    assert len({task.key for task in client.tasks}) == len(client.tasks) == MOST_SUBMISSIONS


async def test_what_the_cluster_cannot_run_is_an_error_of_the_call(pool: AioPool, client: FakeClient) -> None:
    """With the cluster's own as its cause."""
    result = pool.submit(jobs.square, 3)
    error = RuntimeError("no such module")
    (await client.given(1))[0].become("error", None, error)
    with pytest.raises(AioPoolError, match="the cluster could not run square: RuntimeError") as caught:
        await result
    assert caught.value.__cause__ is error


async def test_a_failure_of_the_initializer_that_cannot_be_read_ends_its_call(
    pool: AioPool, client: FakeClient
) -> None:
    """As one that can be, and says why it cannot."""
    result = pool.submit(jobs.square, 3)
    (await client.given(1))[0].become("finished", Answer(Answered.UNFIT, Packed([b"garbled"])))
    with pytest.raises(InitializerError, match="the initializer failed in a worker") as caught:
        await result
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


async def test_a_scheduler_that_goes_while_an_answer_is_sent_breaks_the_pool(pool: AioPool, client: FakeClient) -> None:
    """Its calls are told of that, and nothing else."""
    client.sending.clear()
    result = pool.submit(jobs.square, 3)
    (await client.given(1))[0].give(9)
    while not client.gathered:
        await asyncio.sleep(0)
    client.unreachable = True
    client.sending.set()
    await settled()
    assert not result.done()
    client.goes()
    with pytest.raises(BrokenPool, match="the scheduler of the Dask cluster is gone"):
        await result
    assert not pool.healthy


async def test_a_task_that_is_lost_with_the_way_to_the_scheduler_is_no_workers_death(
    pool: AioPool, client: FakeClient
) -> None:
    """The client may notice before the desk's silence does."""
    running, waiting = (pool.submit(jobs.square, number) for number in range(2))
    tasks = await client.given(2)
    begin(client, tasks[0])
    client.status = "connecting"
    tasks[0].become("cancelled")
    for result in (running, waiting):
        with pytest.raises(BrokenPool, match="the scheduler of the Dask cluster is gone"):
            await result


# Workers and time limits.


async def test_workers_are_asked_at_once_what_they_do(
    pool: AioPool, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So several that are silent take the time of one, and hide no other's answer, nor does one that is gone."""
    monkeypatch.setattr("aiopool.backends.dask_survey.PATIENCE", 0.05)
    result = pool.submit(jobs.square, 3)
    [task] = await client.given(1)
    begin(client, task)
    for seat, worker in enumerate("bcde", 1):
        client.says(what="came", worker=worker, seat=seat, pid=100 + seat, threads=1)
    frames = [FrameSummary("jobs.py", 1, "square", lookup_line=False)]
    client.saying = {"a": {task.call: frames}, "b": ConnectionError("it is gone"), "e": {}}
    stacks = [(stack.seat, stack.pid, stack.call, stack.frames) for stack in await pool.stacks()]
    assert stacks == [
        (0, 100, "square", frames),
        *[(seat, 100 + seat, None, None) for seat in (1, 2, 3)],
        (4, 104, None, []),
    ]
    assert client.most_at_once == 5
    task.give(9)
    assert await result == 9


async def test_a_time_limit_counts_from_the_beginning_of_each_try(client: FakeClient) -> None:
    """Not for a call that waits for another worker, since its own is gone."""
    diary = Diary()
    async with pool_of(client, hooks=[diary], timeout=1000) as pool:
        backend, result = backend_of(pool), pool.apply_async(jobs.square, (3,), timeout=0.01, retries=1)
        [task] = await client.given(1)
        begin(client, task)
        assert list(backend._timers) == [task.call]
        client.says(what="left", worker="a")
        assert backend._timers == {}
        assert [(left.seat, left.why) for left in diary.of(WorkerLeft)] == [(0, "lost")]
        client.says(what="left", worker="a")
        assert len(diary.of(WorkerLeft)) == pool.stats().lost == 1
        client.says(what="came", worker="b", seat=0, pid=101, threads=1)
        begin(client, task, "b")
        with pytest.raises(CallTimeout):
            await result


async def test_a_worker_that_had_nothing_to_do_has_left_and_is_not_lost(client: FakeClient) -> None:
    """Hooks and statistics say the same: a cluster's workers come and go."""
    diary = Diary()
    async with pool_of(client, hooks=[diary]) as pool:
        result = pool.submit(jobs.square, 3)
        [task] = await client.given(1)
        client.says(what="came", worker="b", seat=1, pid=101, threads=1)
        begin(client, task)
        client.says(what="left", worker="b")
        assert ([(left.seat, left.why) for left in diary.of(WorkerLeft)], pool.stats().lost) == ([(1, "left")], 0)
        client.says(what="left", worker="a")
        with pytest.raises(WorkerDied):
            await result
        assert (diary.of(WorkerLeft)[1].why, pool.stats().lost) == ("lost", 1)


async def test_what_comes_for_a_call_that_has_ended_is_for_nobody(pool: AioPool, client: FakeClient) -> None:
    """Its answer, its reports, another cancellation."""
    result = pool.submit(jobs.square, 3)
    [task] = await client.given(1)
    begin(client, task)
    answer = {"call": task.call, "kind": "result", "nanoseconds": 0}
    client.says(what="answered", payload=pickle.dumps(9), **answer)
    client.says(what="answered", payload=pickle.dumps(10), **answer)
    client.says(what="told", kind=int(wire.Kind.PROGRESS), call=task.call, parts=[b""])
    backend_of(pool).cancel(Call("square", b"", lambda _: None, id_=task.call))
    assert await result == 9
    assert pool.stats().done == 1


async def test_so_many_calls_wait_as_the_cluster_has_no_thread_for(client: FakeClient) -> None:
    """That is what ``max_pending`` bounds."""
    async with pool_of(client, max_pending=1) as pool:
        results = [pool.submit(jobs.square, number) for number in range(2)]
        with pytest.raises(PoolFull):
            pool.submit(jobs.square, 3)
        waiting = asyncio.create_task(pool.apply(jobs.square, (4,)))
        for task in await client.given(2):
            task.give(0)
        await asyncio.gather(*results)
        (await client.given(3))[2].give(16)
        assert await waiting == 16


# Stopping.


async def test_a_call_that_is_being_cancelled_is_not_given_anew_when_the_cluster_drops_it(
    pool: AioPool, client: FakeClient
) -> None:
    """Nor does it count as begun, nor is it stopped twice. The pool's end does not wait for what the cluster says."""
    client.answering.clear()
    result = pool.submit(jobs.square, 3)
    [task] = await client.given(1)
    result.cancel()
    begin(client, task)
    assert pool.stats().running == 0
    backend_of(pool).cancel(Call("square", b"", lambda _: None, id_=task.call))
    task.become("cancelled")
    await settled()
    assert [what for what, _ in client.asked].count("release") == 1
    assert len(client.tasks) == 1
    assert not result.done()
    pool.terminate()
    await asyncio.wait([result])
    assert result.cancelled()
    client.answering.set()
    await pool.join()
    assert pool.stats().cancelled == 1


async def test_where_nobody_answers_a_call_can_be_cancelled_all_the_same(client: FakeClient) -> None:
    """The scheduler is gone, or somebody has closed the client; no worker can be restarted then."""
    async with pool_of(client, restart_cancelled=True) as pool:
        first, second, third = (pool.submit(jobs.square, number) for number in range(3))
        tasks = await client.given(3)
        begin(client, tasks[0])
        client.scheduler = None
        first.cancel()
        await asyncio.wait([first])
        client.scheduler = client
        begin(client, tasks[1])
        client.unreachable = True
        second.cancel()
        await asyncio.wait([second])
        client.unreachable = False
        begin(client, tasks[2])
        third.cancel()
        await asyncio.wait([third])
        assert (first.cancelled(), second.cancelled(), third.cancelled()) == (True, True, True)
        assert client.restarted == ["a"]


async def test_the_first_failure_of_a_map_withdraws_what_has_not_begun(pool: AioPool, client: FakeClient) -> None:
    """Also what was not given to the cluster yet; what runs goes on, though it is not known yet that it does."""
    failing = pool.map_async(jobs.square, range(4), chunksize=1)
    failed, running, begins, waiting = await client.given(4)
    begin(client, running)
    client.begun[begins.key] = "b"
    failed.become("error", None, RuntimeError("no such module"))
    with pytest.raises(AioPoolError):
        await failing
    await settled()
    stats = pool.stats()
    assert (stats.running, stats.queued, stats.cancelled) == (1, 1, 1)
    released = [key for what, question in client.asked if what == "release" for key in question["keys"]]
    assert released == [begins.key, waiting.key]
    outcomes: list[Outcome] = []
    unsent = Call("square", b"", outcomes.append)
    backend_of(pool).submit(unsent)
    backend_of(pool).withdraw(unsent)
    backend_of(pool).withdraw(unsent)
    await settled()
    assert len(outcomes) == 1
    assert len(client.tasks) == 4


# What is shared.


async def test_what_cannot_be_sent_fails_the_calls_that_share_it(pool: AioPool, client: FakeClient) -> None:
    """And one that is cancelled meanwhile is not given to the cluster."""
    client.sending.clear()
    shared = pool.share([1, 2])
    cancelled = pool.submit(jobs.same, shared.argument)
    await settled()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    failing = pool.submit(jobs.same, shared.argument)
    client.unreachable = True
    client.sending.set()
    with pytest.raises(AioPoolError, match="what same shares with other calls could not be sent: nobody is there"):
        await failing


async def test_what_all_who_had_it_have_lost_is_sent_again(pool: AioPool, client: FakeClient) -> None:
    """Before a call that needs it; not for one that is cancelled meanwhile."""
    shared = pool.share([1, 2])
    result, cancelled = (pool.submit(jobs.same, shared.argument) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    (await client.given(1))[0].give([1, 2])
    assert await result == [1, 2]
    [first] = client.scattered.values()
    first.status = "lost"
    result = pool.submit(jobs.same, shared.argument)
    (await client.given(2))[1].give([1, 2])
    assert await result == [1, 2]
    assert list(client.scattered.values()) != [first]


async def test_what_is_shared_as_the_pool_ends_goes_nowhere(client: FakeClient) -> None:
    """Nobody has a use for it."""
    async with pool_of(client) as pool:
        pass
    share = backend_of(pool).share(b"payload")
    await settled()
    assert client.scattered == {}
    del share


# Beginnings and ends.


@pytest.mark.parametrize("end", [AioPool.close, AioPool.terminate])
async def test_a_pool_that_is_ended_as_it_starts_starts_no_more(end: Any, client: FakeClient) -> None:
    """It does not wait for a cluster that is not ready."""
    client.opens = False
    pool = AioPool(backend=FakeDask(client), start_timeout=1000)
    starting = asyncio.create_task(pool.start())
    await settled()
    with pytest.raises(PoolNotRunning, match="the pool is not started"):
        pool.submit(jobs.square, 3)
    end(pool)
    await starting
    await pool.join()
    client.says(what="open")
    assert "closed" in repr(pool)


@pytest.mark.parametrize("end", [AioPool.close, AioPool.terminate])
async def test_a_pool_that_was_not_started_is_ended_at_once(end: Any) -> None:
    """There is nothing to wait for."""
    pool = AioPool(backend=DaskBackend())
    end(pool)
    end(pool)
    await pool.join()
    assert pool.stats().phase == "closed"
    with pytest.raises(PoolNotRunning, match="the pool is closed"):
        await pool.apply(jobs.square, (3,))


async def test_an_initializer_that_does_not_pickle_says_so_itself(client: FakeClient) -> None:
    """The pool is ended, and nothing hides the error."""

    async def refuse(_plugin: object) -> None:
        raise AioPoolError("as it is")

    client.register_plugin = refuse  # type: ignore[method-assign, assignment]
    pool = AioPool(backend=FakeDask(client))
    with pytest.raises(AioPoolError, match="as it is") as caught:
        await pool.start()
    assert not isinstance(caught.value, InitializerError)
    assert pool.stats().phase == "closed"


async def test_a_pool_may_be_terminated_while_it_closes(client: FakeClient) -> None:
    """It ends once."""
    async with pool_of(client) as pool:
        client.answering.clear()
        pool.close()
        await settled()
        pool.terminate()
        client.answering.set()
        await pool.join()
        assert [what for what, _ in client.asked].count("leave") == 1


async def test_a_call_that_comes_when_the_pool_has_ended_is_told_so(client: FakeClient) -> None:
    """And nobody is asked what is being done."""
    async with pool_of(client) as pool:
        pass
    outcomes: list[Outcome] = []
    backend_of(pool).submit(Call("square", b"", outcomes.append))
    assert isinstance(outcomes[0], PoolTerminated)
    assert await backend_of(pool).stacks() == []


def test_a_pool_that_is_abandoned_without_a_running_loop_ends_its_calls() -> None:
    """Once, whether it was being ended or not; what is still going on comes to its end if the loop runs again."""
    for ending in (False, True):
        with asyncio.Runner() as runner:
            pool, result, client = runner.run(begun())
            if ending:
                runner.run(ends(pool))
            pool.abandon()
            pool.abandon()
            assert pool.stats().phase == "closed"
            assert isinstance(result.exception(), PoolTerminated)
            client.answering.set()
            runner.run(settled())
            runner.run(pool._backend.join()) if ending else None
    with asyncio.Runner() as runner:
        pool, result, _ = runner.run(begun())
    pool.abandon()
    assert not result.done()
    assert pool.stats().phase == "closed"


async def begun() -> tuple[AioPool, Any, FakeClient]:
    """Return a pool, a call that its cluster has, and its client, whose desk does not answer."""
    client = FakeClient()
    pool = AioPool(backend=FakeDask(client))
    await pool.start()
    result = pool.submit(jobs.square, 3)
    await client.given(1)
    client.answering.clear()
    return pool, result, client


async def ends(pool: AioPool) -> None:
    """Begin to end it."""
    pool.terminate()
    await settled()
