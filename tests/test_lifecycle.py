"""Starting and leaving: what an initializer may do, and that every way out is clean."""

from __future__ import annotations

import asyncio
import functools
import gc
import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvloop

import jobs
from aiopool import (
    AioPool,
    BrokenPool,
    InitializerError,
    PoolNotRunning,
    PoolTerminated,
    WorkerDied,
    WrongLoop,
    lifecycle,
)
from aiopool.backends.process import WorkerProcess
from conftest import START_METHODS, is_gone
from latch import Latch

pytestmark = pytest.mark.both_loops


async def test_the_initializer_runs_once_in_each_worker_before_any_call(start_method: str) -> None:
    """Also in the worker that replaces a dead one."""
    async with AioPool(1, jobs.remember, ("a", 2), context=start_method) as pool:
        for _ in range(2):
            remembered = await pool.apply(jobs.recall)
            assert remembered == [(await pool.apply(jobs.pid_of), "a", 2)]
            with pytest.raises(WorkerDied):
                await pool.apply(jobs.leave_half_way, (1,))


async def test_a_failing_initializer_raises_from_the_block_with_its_cause(start_method: str) -> None:
    """The worker's own exception, with its traceback, is the cause; no process is left."""
    with pytest.raises(InitializerError, match="the initializer failed in a worker") as caught:
        async with AioPool(2, jobs.fail_to_initialize, context=start_method):
            pytest.fail("started")
    assert repr(caught.value.__cause__) == "LookupError('no such model')"
    assert "in fail_to_initialize" in str(caught.value.__cause__.__cause__)


@pytest.mark.parametrize("code", [0, 7])
async def test_an_initializer_that_leaves_raises_from_the_block(start_method: str, code: int) -> None:
    """The error says how the process ended."""
    with pytest.raises(InitializerError, match=f"exited with code {code} before it was ready") as caught:
        await AioPool(1, jobs.leave_half_way, (code,), context=start_method).start()
    assert isinstance(caught.value.__cause__, WorkerDied)


async def test_an_initializer_that_is_killed_raises_from_the_block(start_method: str) -> None:
    """By the kernel for its memory, say; the error names the signal."""
    with pytest.raises(InitializerError, match="was killed by SIGKILL before it was ready") as caught:
        await AioPool(1, jobs.kill_self, context=start_method).start()
    assert isinstance(caught.value.__cause__, WorkerDied)


async def test_a_start_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    """One process for each seat at most has run the initializer."""
    with pytest.raises(InitializerError):
        await AioPool(3, jobs.fail_to_initialize, (str(tmp_path / "pids"),)).start()
    assert 1 <= len((tmp_path / "pids").read_text().splitlines()) <= 3


async def test_an_initializer_that_raises_system_exit_raises_from_the_block() -> None:
    """It does not stop the loop: it is a cause, and nothing more."""
    with pytest.raises(InitializerError) as caught:
        await AioPool(1, jobs.fail, (SystemExit(3),)).start()
    assert isinstance(caught.value.__cause__, SystemExit)


async def test_an_initializer_that_cannot_be_pickled_raises_from_the_start() -> None:
    """What could not be pickled is named."""
    with pytest.raises(InitializerError, match="the initializer could not be pickled") as caught:
        await AioPool(2, lambda: None, context="forkserver").start()
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_an_initializer_whose_pickling_would_end_a_thread_raises_from_the_start(error: BaseException) -> None:
    """It ends that of the start, where nobody would hear of it."""
    with pytest.raises(InitializerError, match=re.escape(f"could not be started: {error!r}")) as caught:
        await AioPool(1, jobs.same, (jobs.PicklesNever(error),), context="forkserver").start()
    assert caught.value.__cause__ is error


async def test_an_initializer_that_does_not_unpickle_raises_from_the_start() -> None:
    """As one that fails, since the worker meets it only when it runs it."""
    with pytest.raises(InitializerError) as caught:
        await AioPool(1, jobs.same, (jobs.UnpicklesNever("worker"),), context="forkserver").start()
    assert isinstance(caught.value.__cause__, ArithmeticError)


async def test_locks_and_queues_of_multiprocessing_go_to_the_initializer(start_method: str) -> None:
    """As with multiprocessing.Pool, that is how they are shared."""
    context = multiprocessing.get_context(start_method)
    lock, queue = context.Lock(), context.SimpleQueue()
    async with AioPool(1, jobs.remember, (lock, queue), context=context) as pool:
        await pool.apply(put_remembered, ("from the worker",))
        assert queue.get() == "from the worker"
    queue.close()


def put_remembered(value: str) -> None:
    """Use the lock and the queue that the initializer got."""
    _pid, lock, queue = jobs.initialized[0]
    with lock:
        queue.put(value)


async def test_replacements_that_keep_failing_break_the_pool_with_the_last_cause(tmp_path: Path) -> None:
    """A call that waits gets BrokenPool instead of waiting for ever, and so does the next; the exit is clean."""
    initializer = functools.partial(jobs.fail_to_initialize_after, str(tmp_path / "count"), 1)
    async with AioPool(1, initializer) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.leave_half_way, (1,))
        with pytest.raises(BrokenPool) as caught:
            await pool.apply(jobs.square, (1,))
        assert isinstance(caught.value.__cause__, InitializerError)
        assert repr(caught.value.__cause__.__cause__) == "LookupError('no such model')"
        with pytest.raises(BrokenPool, match="__cause__: see to that, and make a new pool"):
            pool.submit(jobs.square, 1)
        assert "broken" in repr(pool)
    assert (tmp_path / "count").stat().st_size == 1 + 6


async def test_a_normal_exit_lets_accepted_calls_finish(start_method: str) -> None:
    """All of them, those that wait, too; then the workers go."""
    async with AioPool(2, context=start_method) as pool:
        results = [pool.submit(jobs.square, number) for number in range(20)]
        mapped = pool.map_async(jobs.square, range(20))
    assert [result.result() for result in results] == mapped.result() == [number**2 for number in range(20)]


async def test_workers_leave_a_clean_exit_by_themselves(start_method: str, latch: Latch) -> None:
    """Their atexit handlers run: coverage and the like are written."""
    async with AioPool(1, jobs.leave_marks_at_exit, (latch.path,), context=start_method):
        pass
    assert latch.told_already() == ["atexit"]


async def test_recycled_workers_leave_cleanly_too(start_method: str, latch: Latch) -> None:
    """A retiring worker's atexit handlers run."""
    async with AioPool(1, jobs.leave_marks_at_exit, (latch.path,), 1, start_method) as pool:
        await pool.apply(jobs.square, (1,))
    assert latch.told_already() == ["atexit"] * 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
async def test_an_exception_in_the_block_ends_running_and_waiting_calls(
    start_method: str, latch: Latch, error: type[BaseException]
) -> None:
    """They fail with PoolTerminated; nobody is left waiting, and the exception goes on its way."""
    with pytest.raises(error):
        async with AioPool(1, context=start_method) as pool:
            running = pool.submit(jobs.tell_and_spin, latch.path)
            waiting = [pool.submit(jobs.square, 1), pool.map_async(jobs.square, range(9))]
            stream = pool.imap(jobs.square, range(9))
            pid = int(await latch.told())
            raise error
    assert is_gone(pid)
    for result in (running, *waiting):
        with pytest.raises(PoolTerminated):
            await result
    with pytest.raises(PoolTerminated):
        await anext(stream)


async def test_cancelling_the_block_ends_running_calls(latch: Latch) -> None:
    """Whoever awaits one in another task is told."""

    async def block() -> None:
        async with AioPool(1) as pool:
            others.append(asyncio.create_task(pool.apply(jobs.tell_and_spin, (latch.path,))))
            await asyncio.Event().wait()

    others: list[asyncio.Task[None]] = []
    task = asyncio.create_task(block())
    pid = int(await latch.told())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(pid)
    with pytest.raises(PoolTerminated):
        await others[0]


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_cancelling_the_exit_turns_it_into_terminate(start_method: str, latch: Latch, times: int) -> None:
    """Once or again and again: the workers are reaped before the block is left."""

    async def block() -> None:
        async with AioPool(1, context=start_method) as pool:
            results.append(pool.submit(jobs.tell_and_spin, latch.path))

    results: list[asyncio.Future[None]] = []
    task = asyncio.create_task(block())
    pid = int(await latch.told())
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(pid)
    with pytest.raises(PoolTerminated):
        await results[0]


async def test_an_anyio_host_that_cancels_the_exit_gets_a_clean_one(latch: Latch) -> None:
    """anyio cancels at every await; the reaping is shielded from it."""
    pid = 0
    async with anyio.create_task_group() as group:

        async def block() -> None:
            async with AioPool(1) as pool:
                pool.submit(jobs.tell_and_spin, latch.path)

        group.start_soon(block)
        pid = int(await latch.told())
        group.cancel_scope.cancel()
    assert is_gone(pid)


async def test_a_block_in_an_async_generator_that_is_closed_leaves_nothing(latch: Latch) -> None:
    """It may have to go without awaiting anything, and does."""

    async def block() -> AsyncIterator[asyncio.Future[None]]:
        async with AioPool(1) as pool:
            yield pool.submit(jobs.tell_and_spin, latch.path)

    generator = block()
    result = await anext(generator)
    pid = int(await latch.told())
    await generator.aclose()  # type: ignore[attr-defined]
    assert is_gone(pid)
    with pytest.raises(PoolTerminated):
        await result


@pytest.mark.parametrize("steps", range(1, 6))
async def test_a_coroutine_that_is_thrown_away_leaves_nothing(steps: int) -> None:
    """Wherever in start or exit it stood: without awaiting, its workers are ended."""

    async def block() -> None:
        async with pool:
            pids.append(await pool.apply(jobs.pid_of))

    pids: list[int] = []
    pool = AioPool(1)
    coroutine = block()
    for _ in range(steps):
        waited_for = coroutine.send(None)
        waited_for._asyncio_future_blocking = False
        if steps > 1:
            await asyncio.wait([waited_for])
        if pids:
            break
    coroutine.close()
    assert all(is_gone(pid) for pid in pids)
    assert "closed: 0 workers" in repr(pool)


async def test_close_terminate_and_join_in_every_order() -> None:
    """Twice is as good as once; join needs one of the others first; nothing is taken afterwards."""
    pool = AioPool(1)
    with pytest.raises(PoolNotRunning, match="not started"):
        pool.submit(jobs.square, 1)
    await pool.start()
    with pytest.raises(RuntimeError, match="was started or closed before"):
        await pool.start()
    with pytest.raises(ValueError, match=r"call close\(\) or terminate\(\) before join"):
        await pool.join()
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closing: it takes no more calls"):
        await pool.apply(jobs.square, (1,))
    pool.terminate()
    pool.terminate()
    await pool.join()
    await pool.join()
    pool.close()
    with pytest.raises(PoolNotRunning, match="closed"):
        pool.map_async(jobs.square, [1])


async def test_a_pool_that_never_started_can_be_closed() -> None:
    """Nothing is to be done for that."""
    for end in (AioPool.close, AioPool.terminate):
        pool = AioPool(1)
        end(pool)
        await pool.join()
        assert "closed" in repr(pool)


async def test_a_worker_that_does_not_leave_is_killed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's own thread cannot hold up the exit."""
    monkeypatch.setattr("aiopool.decisions.LEAVE_GRACE", 0.2)
    async with AioPool(1) as pool:
        await pool.apply(jobs.start_thread_that_never_ends)


async def test_an_initializer_that_hangs_is_an_error_in_the_end() -> None:
    """A start has a time limit."""
    with pytest.raises(InitializerError, match=r"not ready within 0\.2 s"):
        await AioPool(1, hang, start_timeout=0.2).start()


def hang() -> None:
    """Never return."""
    threading.Event().wait()


async def test_a_forgotten_pool_warns_once_and_its_workers_go(start_method: str, latch: Latch) -> None:
    """Its results fail instead of hanging."""
    pool = AioPool(2, context=start_method)
    await pool.start()
    pids = await asyncio.gather(*(pool.apply(jobs.pid_of) for _ in range(4)))
    result = pool.submit(jobs.tell_and_spin, latch.path)
    pids.append(int(await latch.told()))
    with pytest.warns(ResourceWarning, match="unclosed AioPool") as warned:
        del pool
        gc.collect()
    assert len(warned) == 1
    with pytest.raises(PoolTerminated):
        await result
    assert all(is_gone(pid) for pid in pids)


async def in_its_start(latch: Latch, pids: list[int]) -> None:
    """Stand in the start of a pool, whose initializer never returns."""
    del pids
    await AioPool(2, jobs.tell_and_spin, (latch.path,)).start()


async def in_a_call(latch: Latch, pids: list[int]) -> None:
    """Stand in a call."""
    async with AioPool(1) as pool:
        pids.append(await pool.apply(jobs.pid_of))
        await pool.apply(jobs.tell_and_spin, (latch.path,))


async def in_a_call_beside_a_handle(latch: Latch, pids: list[int]) -> None:
    """Stand in a call of a pool that has something shared, of which somebody keeps a handle."""
    pool = AioPool(1)
    await pool.start()
    HANDLES.append(pool.share([1]))
    pids.append(await pool.apply(jobs.pid_of))
    await pool.apply(jobs.tell_and_spin, (latch.path,))


HANDLES: list[object] = []


async def at_the_end_of_a_block(latch: Latch, pids: list[int]) -> None:
    """Stand in a block's end, which waits for a call."""
    async with AioPool(1) as pool:
        pids.append(await pool.apply(jobs.pid_of))
        call = pool.submit(jobs.tell_and_spin, latch.path)
    await call


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("stand", [in_its_start, in_a_call, in_a_call_beside_a_handle, at_the_end_of_a_block])
def test_a_loop_that_is_closed_in_the_midst_takes_the_workers_along(
    stand: Callable[[Latch, list[int]], Awaitable[None]], factory: Callable[[], asyncio.AbstractEventLoop], latch: Latch
) -> None:
    """Though the task that used the pool never comes to its end, and its calls have what waits for them."""
    pids: list[int] = []
    loop = factory()
    loop.set_exception_handler(lambda _loop, _context: None)  # that a task was pending

    async def until_it_stands() -> None:
        task = asyncio.ensure_future(stand(latch, pids))
        pids.append(int(await latch.told()))
        assert not task.done()

    loop.run_until_complete(until_it_stands())
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed AioPool"):
        gc.collect()
    assert all(map(is_gone, pids))


async def test_a_pool_collected_in_another_thread_ends_in_its_loop() -> None:
    """The garbage collector may run anywhere."""
    pool = AioPool(1)
    await pool.start()
    pid = await pool.apply(jobs.pid_of)
    result = pool.submit(hang)
    ended, holder = weakref.ref(pool), [pool]
    del pool
    with pytest.warns(ResourceWarning, match="unclosed AioPool"):
        await asyncio.to_thread(holder.clear)
    assert ended() is None
    with pytest.raises(PoolTerminated):
        await result
    assert is_gone(pid)


async def test_a_pool_used_from_another_loop_or_thread_says_so() -> None:
    """And is none the worse for it."""

    async def use() -> None:
        await pool.apply(jobs.square, (1,))

    async with AioPool(1) as pool:
        with pytest.raises(WrongLoop, match="another event loop"):
            await asyncio.to_thread(asyncio.run, use())
        with pytest.raises(WrongLoop, match="another event loop"):
            await asyncio.to_thread(pool.submit, jobs.square, 1)
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(pool.imap, jobs.square, [1])
        for verb in (pool.close, pool.terminate):
            with pytest.raises(WrongLoop, match="another event loop"):
                await asyncio.to_thread(verb)
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_pool_cannot_be_pickled() -> None:
    """Nor sent to a worker."""
    async with AioPool(1) as pool:
        with pytest.raises(Exception, match="an AioPool cannot be pickled"):
            await pool.apply(jobs.same, (pool,))


def test_two_loops_in_a_row_and_two_in_threads_work() -> None:
    """Each with a pool of its own; two pools in one loop as well."""

    async def use() -> list[int]:
        async with AioPool(1) as one, AioPool(1) as two:
            return [await one.apply(jobs.square, (2,)), await two.apply(jobs.square, (3,))]

    for _ in range(2):
        assert asyncio.run(use()) == [4, 9]
    outcomes: list[list[int]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(asyncio.run(use()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [[4, 9]] * 2


def test_a_pool_in_a_forked_child_says_that_it_is_not_there() -> None:
    """Its workers belong to the parent, and live on, also when a block is given up there, or an executor shut down."""

    async def main() -> None:
        async with AioPool(1) as pool:
            worker = await pool.apply(os.getpid)
            executor = pool.as_executor()
            running = executor.submit(os.getpid)
            read, write = os.pipe()
            executor._turn.acquire()  # as another thread may have it
            if not (child := os.fork()):
                try:
                    signal.alarm(10)
                    pool.abandon()
                    executor.shutdown()
                    submit = functools.partial(executor.submit, jobs.square, 1)
                    for verb in (lambda: pool.submit(jobs.square, 1), submit, pool.close, pool.terminate):
                        try:
                            verb()
                        except WrongLoop as error:
                            os.write(write, str(error).encode())
                finally:
                    os._exit(0)
            executor._turn.release()
            assert os.waitpid(child, 0)[1] == 0
            os.close(write)
            told = os.read(read, 2000)
            assert told.count(b"forked from it") == told.count(b"make a pool in that process, after the fork") == 4
            os.close(read)
            assert await pool.apply(os.getpid) == await asyncio.wrap_future(running) == worker

    asyncio.run(main())


async def test_processes_are_started_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile, save under fork, which must not meet threads."""
    start, starters = WorkerProcess._start, set()

    def observed(process: WorkerProcess, *args: Any) -> InitializerError | None:
        starters.add(threading.get_ident())
        return start(process, *args)

    monkeypatch.setattr(WorkerProcess, "_start", observed)
    async with AioPool(8, context="forkserver"):
        assert len(starters) > 1
        assert threading.get_ident() not in starters
    starters.clear()
    async with AioPool(2, context="fork"):
        assert starters == {threading.get_ident()}


async def test_one_process_is_started_in_a_turn_of_the_loop(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are to start, everything else has its turn in between; a fork of a large program takes its time."""
    launch, loop, turns, started = WorkerProcess.launch, asyncio.get_running_loop(), [0], []

    def turn() -> None:
        turns[0] += 1
        if len(started) < 8:
            loop.call_soon(turn)

    def observed(process: WorkerProcess) -> None:
        started.append(turns[0])
        launch(process)

    monkeypatch.setattr(WorkerProcess, "launch", observed)
    turn()
    async with AioPool(8, context=start_method):
        assert len(set(started)) == 8


def test_every_start_method_is_tried() -> None:
    """So that a method that is missing here is noticed."""
    assert set(START_METHODS) == set(multiprocessing.get_all_start_methods())


class Elsewhere:
    """What remains of a pool whose workers are another process's, or of one that was never started."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop

    def running(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop that it runs in."""
        return self.loop

    def abandon(self) -> None:
        """Be ended."""
        raise AssertionError("there is nothing to be ended here")

    describe = abandon


async def test_a_forked_child_leaves_its_parents_pool_alone() -> None:
    """It has the pool's memory, and nothing of what is to be ended."""
    lifecycle._forgotten(Elsewhere(asyncio.get_running_loop()), os.getppid())
    lifecycle._forgotten(Elsewhere(None), os.getpid())
