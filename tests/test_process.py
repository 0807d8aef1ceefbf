"""A worker's process under odd circumstances: garbled channels, old kernels, foreign hands."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import multiprocessing.forkserver
import os
import resource
import select
import signal
import threading
import types
from collections.abc import Iterator

import pytest

import jobs
from aiopool import AioPool, InitializerError, WorkerDied, wire
from aiopool.backends.group import PIDFD_SIGNAL_PROCESS_GROUP, Group
from aiopool.backends.handles import End, Observer, Setup
from aiopool.backends.process import WorkerProcess
from aiopool.hooks import CallEnded
from aiopool.pickling import PLAIN
from aiopool.worker import isolation
from aiopool.worker import main as worker_main
from conftest import is_gone
from latch import Latch
from test_crash import gone
from test_inline import Keeper

pytestmark = pytest.mark.both_loops


async def test_a_job_that_writes_into_the_channel_ends_its_worker_only(start_method: str) -> None:
    """What is no frame is not believed; the call fails, and the next gets its own answer."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.scribble_on_sockets, (b"\xff" * 100,))
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_job_that_answers_for_another_call_ends_its_worker_only() -> None:
    """A frame that is well formed and names a call that this worker does not have."""
    async with AioPool(1) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.answer_a_stranger)
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.parametrize("kind", [1, 2, 3])
async def test_a_message_in_the_wrong_direction_ends_the_worker_only(kind: int) -> None:
    """A worker makes no calls and dismisses nobody."""
    async with AioPool(1) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.send_upwards, (kind,))
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_job_that_closes_everything_cannot_hang_its_caller(start_method: str) -> None:
    """Its answer cannot be sent, so the worker goes, and that is an answer."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(os.closerange, (3, 1000))
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_job_that_closes_everything_and_opens_sockets_cannot_hang_its_caller(start_method: str) -> None:
    """Its answer goes to a socket of its own, which has the channel's number now; so the worker goes."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.close_everything_and_open_sockets)
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.fixture(params=["no pidfds", "no signals to groups"])
def old_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without pidfds, or whose pidfds cannot signal a group."""
    if request.param == "no pidfds":
        monkeypatch.delattr(os, "pidfd_open")
        return
    send = signal.pidfd_send_signal

    def without_groups(pidfd: int, number: int, info: None = None, flags: int = 0) -> None:
        if flags == PIDFD_SIGNAL_PROCESS_GROUP:
            raise OSError(errno.EINVAL, "no such flag")
        send(pidfd, number, info, flags)

    monkeypatch.setattr(signal, "pidfd_send_signal", without_groups)


@pytest.mark.usefixtures("old_kernel")
async def test_an_older_kernel_does_as_well(start_method: str, latch: Latch) -> None:
    """Deaths are seen and named, running calls are cancelled with what they started."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied) as caught:
            await pool.apply(jobs.leave_half_way, (42,))
        assert caught.value.exitcode == 42
        result = pool.submit(jobs.tell_and_spin, latch.path)
        pid = int(await latch.told())
        result.cancel()
        await asyncio.wait([result])
        assert is_gone(pid)
        if start_method == "forkserver":  # where the worker's sentinel is not shared with what it starts
            result = pool.submit(jobs.tell_of_grandchild_and_spin, latch.path)
            grandchild = int(await latch.told())
            result.cancel()
            await asyncio.wait([result])
        else:
            grandchild = pid
        assert await pool.apply(jobs.square, (3,)) == 9
    if start_method == "forkserver":
        await gone_without_pidfds(grandchild)


def test_a_number_that_may_be_somebody_elses_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pidfds, whether a process has ended is known by its exit code only."""
    monkeypatch.delattr(os, "pidfd_open")
    sent: list[tuple[int, int]] = []
    for name in ("kill", "killpg"):
        monkeypatch.setattr(os, name, lambda *signal: sent.append(signal))
    process = types.SimpleNamespace(pid=os.getpid(), exitcode=None)
    group = Group(process, reaped_here=False)  # type: ignore[arg-type]
    group.signal(signal.SIGTERM)
    assert sent == [(process.pid, signal.SIGTERM)]
    process.exitcode = 0
    group.signal(signal.SIGTERM)
    group.kill()
    assert len(sent) == 1


async def gone_without_pidfds(pid: int) -> None:
    """Wait for a process that was killed already."""
    if hasattr(os, "pidfd_open"):
        await gone(pid)
    while not is_gone(pid) and "Z" not in state_of(pid):
        await asyncio.sleep(0)


def state_of(pid: int) -> str:
    """Return the state of a process, a letter."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - nothing else is needed of it
            return stat.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.fixture
def foreign_reaper() -> Iterator[None]:
    """Have the kernel reap all children of this process, before anybody can ask for their exit codes."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("foreign_reaper")
@pytest.mark.parametrize("method", ["spawn", "fork"])
async def test_workers_that_somebody_else_reaps_are_seen_to_be_gone(method: str) -> None:
    """Only the exit code is not known then."""
    async with AioPool(1, context=method) as pool:
        with pytest.raises(WorkerDied, match="went away, exit code unknown") as caught:
            await pool.apply(jobs.leave_half_way, (42,))
        assert caught.value.exitcode is None
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_start_without_descriptors_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's own as its cause."""

    def refuse(*_args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("aiopool.backends.process.socket.socketpair", refuse)
    with pytest.raises(InitializerError, match=r"could not be started: .*Too many open files") as caught:
        await AioPool(2).start()
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("opened", range(3))
async def test_descriptors_that_run_out_half_way_are_all_given_back(
    opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel takes several; without the last one, the others are closed again (see the check of all tests)."""
    context, left = multiprocessing.get_context("spawn"), [opened]
    pipe = type(context).Pipe

    def limited(_context: object, *, duplex: bool) -> object:
        if not left[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        left[0] -= 1
        return pipe(context, duplex)

    monkeypatch.setattr(type(context), "Pipe", limited)
    with pytest.raises(InitializerError, match="Too many open files"):
        await AioPool(2, context=context).start()


async def test_threads_that_run_out_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the interpreter's own as its cause."""

    def refuse(_function: object, _args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    with pytest.raises(InitializerError, match="can't start new thread"):
        await AioPool(2, context="forkserver").start()


async def test_a_false_report_of_a_failed_initializer_ends_nothing() -> None:
    """A worker that serves has had its initializer."""
    async with AioPool(1) as pool:
        result = pool.submit(jobs.report_unfit)
        assert await result == "reported"
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_job_that_shuts_its_channel_down_ends_its_worker_only() -> None:
    """The end of the stream is for ever readable; the loop is not kept busy with it."""
    async with AioPool(1) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.shut_down_sockets_and_spin)
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_program_with_more_than_1024_descriptors_gets_workers(start_method: str) -> None:
    """Theirs have higher numbers then than select() takes."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        with contextlib.ExitStack() as opened:
            for _ in range(1100):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            async with AioPool(1, context=start_method) as pool:
                assert await pool.apply(jobs.square, (3,)) == 9
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_resource_tracker_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """multiprocessing wants one before it starts a process, and it takes descriptors."""

    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("aiopool.backends.process.resource_tracker.ensure_running", refuse)
    with pytest.raises(InitializerError, match="Too many open files"):
        await AioPool(2).start()


async def test_a_fork_server_that_is_stuck_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone knows the exit codes of workers; that they are dead is known without it."""
    monkeypatch.setattr("aiopool.backends.process.REAP_GRACE", 0.01)
    async with AioPool(1) as pool:
        server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        os.kill(server, signal.SIGSTOP)
        try:
            with pytest.raises(WorkerDied, match="went away, exit code unknown"):
                await pool.apply(jobs.kill_self)
            pool.terminate()
            await pool.join()
        finally:
            os.kill(server, signal.SIGCONT)


def watched_by(observer: Observer, method: str = "spawn") -> WorkerProcess:
    """Return a worker that is not started."""
    initializer = worker_main.Initializer(None, (), ())
    setup = Setup(multiprocessing.get_context(method), initializer, None, lambda: None, PLAIN, {})
    return WorkerProcess(1, 0, asyncio.get_running_loop(), setup, observer)


async def test_a_worker_whose_pool_is_gone_tells_nobody() -> None:
    """Neither what it says nor that it has ended; with a pool it does."""
    keeper = Keeper()
    frame = wire.Frame(wire.Kind.READY, 0, 0, b"")
    for worker in (watched_by(keeper), watched_by(Keeper())):
        worker._received([frame])
        worker._garbled()
        worker._report(End())
    assert keeper.told == [(1, wire.Kind.READY), (1, "garbled"), (1, End())]


async def test_a_worker_that_is_not_started_has_nothing_and_nobody_to_signal() -> None:
    """Its process has no number yet; there is nothing to be taken back, or to be left behind."""
    keeper = Keeper()
    worker = watched_by(keeper)
    worker.send(wire.encode(wire.Kind.DROP, 1))
    assert worker.take_back() == []
    worker.interrupt(1)
    worker.stack()
    worker.abandon()
    assert worker._orders._reminder is not None
    assert worker._orders._reminder.cancelled()
    worker._forsake()  # when the time is over that its start may take
    assert worker._own_end.fileno() == -1
    assert keeper.told == []


async def test_a_call_is_interrupted_without_pidfds(monkeypatch: pytest.MonkeyPatch, latch: Latch) -> None:
    """By the worker's number; the worker stays."""
    monkeypatch.delattr(os, "pidfd_open")
    async with AioPool(1, cancel_grace=1000.0) as pool:
        result = pool.submit(jobs.tell_and_clean_up, latch.path)
        pid = int(await latch.told())
        result.cancel()
        await asyncio.wait([result])
        assert await pool.apply(jobs.pid_of) == pid


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_a_start_that_returns_too_late_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    """The pool ends without it; the process that has come of it is killed, and reaped."""
    monkeypatch.setattr("aiopool.backends.process.START_GRACE", 0.0)
    loop, started, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    begin, close = multiprocessing.process.BaseProcess.start, WorkerProcess._close_process
    closed: asyncio.Future[int] = loop.create_future()

    def start_late(process: multiprocessing.process.BaseProcess) -> None:
        begin(process)
        os.kill(process.pid or 0, signal.SIGSTOP)  # so that it does not end by itself
        loop.call_soon_threadsafe(started.set)
        go.wait()

    def close_and_tell(worker: WorkerProcess) -> None:
        close(worker)
        closed.set_result(worker.pid or 0)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_late)
    monkeypatch.setattr(WorkerProcess, "_close_process", close_and_tell)
    pool = AioPool(1, context=start_method)
    start = asyncio.create_task(pool.start())
    await started.wait()
    pool.terminate()
    await pool.join()
    await start
    assert not closed.done()
    go.set()
    assert is_gone(await closed)


class Waits(Keeper):
    """Tells when the worker is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def gone(self, worker: int, end: End) -> None:
        """Tell it."""
        super().gone(worker, end)
        self.ended.set()


async def test_whether_a_worker_that_is_still_starting_is_read_makes_no_difference() -> None:
    """Others may have so much to do meanwhile that nobody listens for a while."""
    worker = watched_by(keeper := Keeper())
    worker.pause_reading()
    worker.listen()
    worker.resume_reading()
    worker.abandon()
    assert keeper.told == []


async def test_a_start_that_is_given_up_leaves_no_timer() -> None:
    """Its loop is not to keep the worker any longer than it has to."""
    worker = watched_by(keeper := Waits())
    worker.launch()
    worker.kill()
    first = worker._patience
    worker.kill()
    assert first is not None
    assert first.cancelled()
    await keeper.ended.wait()
    assert worker._patience is not None
    assert worker._patience.cancelled()


@pytest.mark.parametrize("abandoned", ["before", "afterwards"])
def test_a_start_that_returns_when_its_loop_is_closed_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, abandoned: str
) -> None:
    """Whether the worker was abandoned before, or is so afterwards."""
    monkeypatch.setattr("aiopool.backends.process.START_GRACE", 0.0)
    started, go = threading.Event(), threading.Event()
    begin = multiprocessing.process.BaseProcess.start

    def start_late(process: multiprocessing.process.BaseProcess) -> None:
        begin(process)
        started.set()
        go.wait()

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_late)

    async def launch() -> WorkerProcess:
        worker = watched_by(Keeper())
        worker.launch()
        return worker

    with asyncio.Runner() as runner:
        worker = runner.run(launch())
    started.wait()
    if abandoned == "before":
        worker.abandon()
    go.set()
    worker._starter_done.wait()
    if abandoned == "afterwards":
        assert worker._group is not None
        assert worker._group._pidfd is not None  # by which it is killed
        worker.abandon()
    assert worker.pid is not None
    assert is_gone(worker.pid)
    assert worker._group is not None
    assert worker._group._pidfd is None


async def test_a_process_that_nobody_wants_any_more_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was to have is closed by then; and the fork server would not survive that."""
    monkeypatch.setattr("aiopool.backends.process.START_GRACE", 0.0)
    loop, reached, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    attach, attached = WorkerProcess._attach, asyncio.Event()

    def prepare_for_long() -> None:
        loop.call_soon_threadsafe(reached.set)
        go.wait()

    def attach_and_tell(worker: WorkerProcess, failure: InitializerError | None) -> None:
        assert worker._workers_end.fileno() == -1
        attach(worker, failure)
        attached.set()

    monkeypatch.setattr("aiopool.backends.process._prepare_thread", prepare_for_long)
    monkeypatch.setattr(WorkerProcess, "_attach", attach_and_tell)
    pool = AioPool(1)
    start = asyncio.create_task(pool.start())
    await reached.wait()
    (worker,) = pool._backend._processes.values()  # type: ignore[attr-defined]
    assert isinstance(worker, WorkerProcess)
    pool.terminate()
    await pool.join()
    await start
    assert worker._workers_end.fileno() != -1  # the number must not become another's while the thread may use it
    go.set()
    await attached.wait()
    assert worker.pid is None


class Abandons:
    """A hook that ends the pool at the end of a call."""

    def __init__(self) -> None:
        self.pool: AioPool | None = None

    def on_event(self, event: object) -> None:
        """Be told."""
        if isinstance(event, CallEnded) and self.pool is not None:
            self.pool, pool = None, self.pool
            pool.abandon()


async def test_a_pool_that_ends_as_a_dead_workers_last_answer_is_read_has_ended() -> None:
    """Nothing more is made of that death."""
    hook = Abandons()
    pool = hook.pool = AioPool(1, context="fork", hooks=[hook])
    await pool.start()
    (worker,) = pool._backend._processes.values()  # type: ignore[attr-defined]
    result = pool.submit(jobs.pid_of)
    select.select([worker._own_end], [], [])
    os.kill(worker.pid or 0, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)
    pid = worker.pid
    worker._died()
    assert hook.pool is None
    assert await result == pid


async def test_nothing_of_a_worker_gets_the_descriptor_of_a_standard_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if one is closed: a forked child closes its standard input, be that what tells of its parent's end."""
    lowest = os.dup(0)
    os.close(lowest)
    monkeypatch.setattr(isolation, "FIRST_FREE", lowest + 20)
    async with AioPool(1, context="fork") as pool:
        (process,) = pool._backend._processes.values()  # type: ignore[attr-defined]
        assert isinstance(process, WorkerProcess)
        ends = (process._own_end, process._workers_end, process._lifeline, process._control, process._dumps)
        assert min(end.fileno() for end in ends) >= isolation.FIRST_FREE
        again = os.dup(0)
        os.close(again)
        assert again < isolation.FIRST_FREE
