"""What all tests share: the loops they run on, and the check that a test leaves nothing behind."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import uvloop
from hypothesis import settings

import jobs
from aiopool import AioPool
from aiopool.arguments import find_context
from aiopool.backends.local import LocalBackend
from aiopool.worker.control import INTERRUPT
from benchmarks.chaos_named import is_left, names
from faultpoints import Taps
from latch import Latch
from worker_side import Interrupting

pytest_plugins = ["pytester"]

settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")

START_METHODS = ("forkserver", "spawn", "fork")


def pytest_asyncio_loop_factories(config, item):
    """Name the loops that a test runs on; see the marker ``both_loops``."""
    del config
    factories = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole suite run with each start method."""
    parser.addoption("--start-method", choices=START_METHODS, help="of the pools that are not told which")


@pytest.fixture(scope="session", autouse=True)
def default_start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have pools that are told no start method use the one of the command line."""
    method = request.config.getoption("--start-method")
    with pytest.MonkeyPatch.context() as patched:
        if method:
            patched.setattr("aiopool.pool.find_context", lambda context: find_context(context or method))
        yield


@pytest.fixture(scope="session", autouse=True)
def measured_threads() -> Iterator[None]:
    """Have what measures coverage see the threads, too, that `threading` knows nothing of."""
    trace, start = threading.gettrace(), _thread.start_new_thread

    def start_traced(function: Callable[..., object], args: tuple[object, ...]) -> int:
        def traced() -> None:
            sys.settrace(trace)
            function(*args)

        return start(traced, ())

    with pytest.MonkeyPatch.context() as patched:
        if trace is not None:
            patched.setattr(_thread, "start_new_thread", start_traced)
        yield


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each start method in turn."""
    return str(request.param)


helpers: set[int] = set()
"""Programs that several tests have in common, such as a cluster; whoever has started one sees that it goes."""


def processes() -> dict[int, str]:
    """Return what descends from this process, zombies included, and the running orphans of its session.

    What descends from a helper is left out: it may start others at any time.
    """
    parents, found = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent, _group, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            parents[int(entry.name)] = int(parent)
            if (parent, state) == ("1", "Z"):
                continue  # a killed orphan, which is for init to reap
            found[int(entry.name)] = f"{state} {session} {(entry / 'cmdline').read_text()!r}"
        except (ProcessLookupError, FileNotFoundError):
            continue  # it has just ended
    ours = f" {os.getsid(0)} "
    return {pid: what for pid, what in found.items() if descends(pid, parents) or (parents[pid] == 1 and ours in what)}


def descends(pid: int, parents: dict[int, int]) -> bool:
    """Whether a process is a child of this one, or a child's child, and no helper's."""
    while pid in parents and pid not in helpers and pid != os.getpid():
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def ends_by_itself(pid: int) -> bool:
    """Whether a process is a helper that a program of the test has left to end a little after it, and does so."""
    try:
        with os.fdopen(os.pidfd_open(pid)) as pidfd:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            return parent == 1 and bool(select.select([pidfd], [], [], 20)[0])
    except (ProcessLookupError, FileNotFoundError):
        return True  # it has ended


def descriptors() -> dict[str, str]:
    """Return what this process has open."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue  # the one that listed them
    return found


@pytest.fixture(scope="session", autouse=True)
def helpers_of_the_program() -> None:
    """Start what multiprocessing and uvloop keep for the life of the program, so that it is no test's leftover."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what programs that are to be interrupted inherit
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_forkserver_preload(["aiopool.worker.preloaded"])
    multiprocessing.forkserver.ensure_running()
    multiprocessing.resource_tracker.ensure_running()
    uvloop.new_event_loop().close()
    gc.collect()
    gc.freeze()  # what is imported by now need not be walked through after each test


class Snapshot:
    """What there is at a moment: processes, descriptors, shared memory."""

    def __init__(self) -> None:
        self.processes, self.descriptors, self.shared_memory = processes(), descriptors(), names()

    def new_since(self, before: Snapshot) -> dict[str, object]:
        """Return what is here now and was not before, by its kind."""
        new = {
            "processes": {pid: what for pid, what in self.processes.items() if pid not in before.processes},
            "descriptors": dict(self.descriptors.items() - before.descriptors.items()),
            "shared memory": self.shared_memory - before.shared_memory,
        }
        return {kind: found for kind, found in new.items() if found}


@pytest.fixture(autouse=True)
def nothing_left(helpers_of_the_program: None) -> Iterator[None]:
    """Fail a test that leaves a process, a zombie, an open descriptor or a file in /dev/shm."""
    del helpers_of_the_program
    before = Snapshot()
    yield
    if Snapshot().new_since(before):
        gc.collect()  # what the test itself has dropped is no leftover
        left = Snapshot().new_since(before)
        running = left.get("processes", {})
        assert isinstance(running, dict)
        if running and all(map(ends_by_itself, running)):
            del left["processes"]
        memory = left.pop("shared memory", set())
        assert isinstance(memory, set)
        if own := {name for name in memory if is_left(name, {os.getpid(), *processes()})}:
            left["shared memory"] = own
        assert not left


@pytest.fixture
def latch(tmp_path: Path) -> Iterator[Latch]:
    """What jobs tell."""
    with Latch(tmp_path / "latch") as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Latch]:
    """What jobs wait at."""
    with Latch(tmp_path / "gate") as made:
        yield made


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large arguments go through the socket."""
    monkeypatch.setattr(os, "memfd_create", jobs.without_memory)


@pytest.fixture(params=["in memory", "in pieces"])
def either_way(request: pytest.FixtureRequest) -> Callable[[], None] | None:
    """Large messages go in memory that is passed on, or through the socket; return the initializer that sees to it."""
    if request.param == "in memory":
        return None
    request.getfixturevalue("in_pieces")
    return jobs.refuse_memory


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> Taps:
    """Have all channels to workers tapped."""
    made = Taps()
    monkeypatch.setattr("aiopool.backends.process.Channel", made.make)
    return made


def pass_time(pool: AioPool, seconds: float) -> None:
    """Have a pool's clock strike as if so much time had passed."""
    backend = cast("LocalBackend", pool._backend)
    backend._perform(backend._dispatcher.tick(backend.loop.time() + seconds))


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def dask():
    """A scheduler and two workers."""
    from dask_cluster import cluster  # noqa: PLC0415 - most tests need no Dask, which is slow to import

    with cluster() as made:
        yield made


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a channel, as sockets."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


@pytest.fixture
def interrupting() -> Iterator[Interrupting]:
    """Nothing is written yet."""
    before = signal.getsignal(INTERRUPT)
    reader, writer = os.pipe()
    yield Interrupting(reader, writer)
    signal.signal(INTERRUPT, before)
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(descriptor)
