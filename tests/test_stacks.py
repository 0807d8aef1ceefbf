"""What workers are doing, as they say themselves."""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiopool
import jobs
from aiopool import AioPool, WorkerDied, WorkerStack
from aiopool.backends.dump import DumpReader
from aiopool.stacks import HEADER, frames_in, is_whole, within_ours
from aiopool.worker import main as worker_main
from latch import Latch


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as long as it takes."""
    monkeypatch.setattr("aiopool.backends.survey.PATIENCE", 50.0)


OURS = f'  File "{worker_main.__file__}", line 7 in main\n'


@pytest.mark.parametrize(
    ("dump", "whole"),
    [
        ("", False),
        (HEADER, False),
        (f'{HEADER}  File "a.py", line 1 in main\n', False),
        (f"{HEADER}{OURS}", True),
        (f'{HEADER}{OURS}  File "process.py", line 1 in run\n', True),
        (f"{OURS}{HEADER}", False),
        (f"{HEADER}{OURS[:-3]}", False),
        (f"{HEADER}{OURS[:-1]}", False),
        (HEADER + 99 * '  File "a.py", line 1 in f\n', False),
        (HEADER + 100 * '  File "a.py", line 1 in f\n', True),
    ],
)
def test_a_dump_is_whole_with_the_workers_own_frame_or_when_it_is_cut(dump: str, whole: bool) -> None:  # noqa: FBT001
    """Nothing else tells where it ends."""
    assert is_whole(dump) is whole


def test_frames_of_a_directory_whose_name_begins_like_ours_are_the_users() -> None:
    """And none around ours are."""
    ours = str(Path(aiopool.__file__).parent)
    files = ["threading.py", f"{ours}/worker/job.py", f"{ours}/pickling.py", f"{ours}_jobs/x.py", f"{ours}/pool.py"]
    frames = [traceback.FrameSummary(file, 1, "f", lookup_line=False) for file in files]
    assert within_ours(frames) == frames[3:]


def test_of_a_coroutine_only_its_own_frames_are_told() -> None:
    """Not those of the loop that runs it, be it the pool's or not; none while it waits."""
    tasks = str(Path(aiopool.__file__).parent / "worker" / "tasks.py")
    files = ["threading.py", tasks, asyncio.runners.__file__, asyncio.base_events.__file__]
    for more, own in (([tasks, "x.py", asyncio.runners.__file__], 2), ([selectors.__file__], 0)):
        frames = [traceback.FrameSummary(file, 1, "f", lookup_line=False) for file in files + more]
        assert within_ours(frames) == frames[len(frames) - own :]


def test_frames_are_told_as_tracebacks_tell_them() -> None:
    """The innermost last, and none of ours around them; those of a user's file that is called the same are."""
    frames = '  File "a b.py", line 1 in g\n  File "main.py", line ??? in x\n  File "/x/main.py", line 2 in main\n'
    dump = f'  File "late.py", line 1 in late\n\n{HEADER}{frames}{OURS}  File "process.py", line 3 in run\n'
    assert [(frame.filename, frame.lineno, frame.name) for frame in frames_in(dump)] == [
        ("/x/main.py", 2, "main"),
        ("a b.py", 1, "g"),
    ]


def names_in(stack: WorkerStack) -> list[str]:
    """Return the names of its functions."""
    assert stack.frames is not None
    return [frame.name for frame in stack.frames]


@pytest.mark.both_loops
async def test_a_busy_worker_tells_its_stack(start_method: str, latch: Latch, gate: Latch) -> None:
    """And goes on as if nothing had happened; an idle one has none."""
    async with AioPool(2, context=start_method) as pool:
        running = pool.submit(jobs.call_with, jobs.wait_there, (latch.path, gate.path))
        pid = int(await latch.told())
        busy, idle = sorted(await pool.stacks(), key=lambda stack: stack.call is None)
        assert (busy.pid, busy.call) == (pid, "call_with")
        assert names_in(busy)[:2] == ["call_with", "wait_there"]
        assert (idle.call, idle.frames) == (None, [])
        assert {busy.seat, idle.seat} == {0, 1}
        gate.let()
        assert await running == "there"
        assert [stack.frames for stack in await pool.stacks()] == [[], []]


async def test_a_stack_reads_like_a_traceback(latch: Latch, gate: Latch) -> None:
    """With the lines of the source."""
    async with AioPool(1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        pid = int(await latch.told())
        (stack,) = await pool.stacks()
        head, *frames = str(stack).splitlines()
        assert head == f"worker 0 (pid {pid}) runs tell_and_wait"
        assert f'File "{jobs.__file__}", line ' in frames[0]
        assert frames[1].strip() in Path(jobs.__file__).read_text()
        gate.let()
        await running
    assert await pool.stacks() == []


async def test_c_code_that_holds_the_interpreter_does_not_hold_the_stack(latch: Latch, start_method: str) -> None:
    """Python itself would not come to tell it."""
    async with AioPool(1, context=start_method) as pool:
        running = pool.submit(jobs.tell_and_hold_the_interpreter, latch.path)
        await latch.told()
        (stack,) = await pool.stacks()
        assert names_in(stack)[0] == "tell_and_hold_the_interpreter"
        running.cancel()
        await asyncio.wait([running])


async def test_a_worker_that_is_stopped_does_not_answer_and_later_does(
    monkeypatch: pytest.MonkeyPatch, latch: Latch, gate: Latch
) -> None:
    """It is not waited for for ever, and two who ask get the same."""
    async with AioPool(1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        pid = int(await latch.told())
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr("aiopool.backends.survey.PATIENCE", 0.01)
            (stack,) = await pool.stacks()
        assert stack.frames is None
        assert str(stack) == f"worker 0 (pid {pid}) runs tell_and_wait; it does not answer\n"
        asking = [asyncio.create_task(pool.stacks()) for _ in range(2)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        for (answer,) in await asyncio.gather(*asking):
            assert names_in(answer)[0] == "tell_and_wait"
        gate.let()
        await running


async def test_a_worker_that_was_asked_too_early_answers_whoever_asks_later(
    monkeypatch: pytest.MonkeyPatch, latch: Latch, gate: Latch
) -> None:
    """What it was asked before it could answer is lost."""
    async with AioPool(1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        await latch.told()
        with monkeypatch.context() as patched:
            patched.setattr("aiopool.backends.survey.PATIENCE", 0.01)
            patched.setattr("aiopool.backends.process.DUMP", signal.SIGURG)  # which it ignores, as then the other
            (stack,) = await pool.stacks()
        assert stack.frames is None
        (stack,) = await pool.stacks()
        assert names_in(stack)[0] == "tell_and_wait"
        gate.let()
        await running


async def test_a_worker_that_dies_answers_nothing_and_holds_nobody_up(latch: Latch, gate: Latch) -> None:
    """It was asked when it was there."""
    async with AioPool(1) as pool:
        running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        pid = int(await latch.told())
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.create_task(pool.stacks())
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        (stack,) = await asking
        assert stack.frames is None
        with pytest.raises(WorkerDied):
            await running


async def test_a_deep_stack_is_cut(latch: Latch, gate: Latch) -> None:
    """Its innermost frames are told."""
    async with AioPool(1) as pool:
        running = pool.submit(jobs.tell_and_wait_deep, 300, latch.path, gate.path)
        await latch.told()
        (stack,) = await pool.stacks()
        names = names_in(stack)
        assert 50 < len(names) <= 100
        assert names[0] == "tell_and_wait_deep"
        gate.let()
        await running


async def test_a_call_whose_stack_was_told_can_be_interrupted(latch: Latch) -> None:
    """Neither disturbs the other."""
    async with AioPool(1, cancel_grace=1000.0) as pool:
        running = pool.submit(jobs.tell_and_clean_up, latch.path)
        pid = int(await latch.told())
        await pool.stacks()
        running.cancel()
        await asyncio.wait([running])
        assert await pool.apply(jobs.pid_of) == pid
        await pool.stacks()
        assert await pool.apply(jobs.pid_of) == pid


@pytest.mark.both_loops
async def test_a_signal_has_stacks_logged(caplog: pytest.LogCaptureFixture, latch: Latch, gate: Latch) -> None:
    """Of all pools that want it; when they are gone, it does nothing."""
    logged = asyncio.Event()
    handler = Noticing(logged, 3)
    logging.getLogger("aiopool").addHandler(handler)
    try:
        async with AioPool(1) as pool, AioPool(2) as other:
            for each in (pool, other, other):
                each.dump_on(signal.SIGUSR1)
            running = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
            await latch.told()
            os.kill(os.getpid(), signal.SIGUSR1)
            await logged.wait()
            gate.let()
            await running
    finally:
        logging.getLogger("aiopool").removeHandler(handler)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(0)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert sum("tell_and_wait" in message for message in messages) == 1
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)


class Noticing(logging.Handler):
    """Says when there have been so many records."""

    def __init__(self, event: asyncio.Event, count: int) -> None:
        super().__init__()
        self._event = event
        self._left = count

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        del record
        self._left -= 1
        if not self._left:
            self._event.set()


def test_a_stack_is_made_of_frames_that_the_standard_library_knows() -> None:
    """So it can be formatted otherwise."""
    stack = WorkerStack(0, 5, "f", [traceback.FrameSummary("no such file", 1, "f", lookup_line=False)])
    assert traceback.StackSummary.from_list(stack.frames or []).format() == ['  File "no such file", line 1, in f\n']


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of the pipe that dumps come through."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_a_dump_that_comes_in_parts_is_waited_for(pipe: tuple[int, int]) -> None:
    """A part of it is not taken for all."""
    reader = DumpReader(asyncio.get_running_loop(), pipe[0])
    dump = reader.expect()
    os.write(pipe[1], HEADER.encode())
    reader._take()
    assert not dump.done()
    os.write(pipe[1], OURS.encode())
    assert await dump == HEADER + OURS


async def test_a_dump_that_was_cancelled_is_not_told(pipe: tuple[int, int]) -> None:
    """The next one is."""
    reader = DumpReader(asyncio.get_running_loop(), pipe[0])
    cancelled = reader.expect()
    cancelled.cancel()
    reader.close()
    dump = reader.expect()
    os.write(pipe[1], f"{HEADER}{OURS}".encode())
    assert await dump == HEADER + OURS
    assert cancelled.cancelled()


def test_a_dump_is_not_told_to_a_loop_that_is_closed(pipe: tuple[int, int]) -> None:
    """Nobody could hear of it, and a closed loop takes no call of a callback."""

    async def expect() -> tuple[DumpReader, asyncio.Future[str]]:
        reader = DumpReader(asyncio.get_running_loop(), pipe[0])
        dump = reader.expect()
        dump.add_done_callback(print)
        return reader, dump

    reader, dump = asyncio.run(expect())
    reader.close()
    assert not dump.done()
