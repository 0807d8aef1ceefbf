"""What the machine itself gives, measured beside the peers: nothing that a pool does can be faster."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from . import jobs, processes
from .cell import WORKERS, Cell

if TYPE_CHECKING:
    from .work import Work

__all__ = [
    "array_copy",
    "bare_busy",
    "bare_calls",
    "bare_map",
    "bare_memory",
    "bare_naps",
    "bare_processes",
    "bare_start",
    "bare_workers",
    "ping_pong",
]

MESSAGE = b"." * 64

ECHO = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as ours:
    while message := ours.recv(64):
        ours.sendall(message)
"""

ANSWER = f"""
import pickle, socket, sys
sys.path[:] = {sys.path!r}
with socket.socket(fileno=int(sys.argv[1])) as ours:
    while message := ours.recv(65536):
        number, function, args = pickle.loads(message)
        ours.send(pickle.dumps((number, function(*args)), 5))
"""

MAP = """
import pickle, sys
from multiprocessing.connection import Connection
with Connection(int(sys.argv[1])) as ours:
    while True:
        try:
            function, items = pickle.loads(ours.recv_bytes())
        except EOFError:
            break
        ours.send_bytes(pickle.dumps([function(item) for item in items], 5))
"""

CHUNKS = 8
"""Of a map over two workers."""

AHEAD = 100
"""Messages on their way to a bare worker, so that it need not wait for them."""

FEW_AHEAD = 10
"""The same of calls that take a while: as much as a millisecond of them."""

ARRAY_BYTES = 100_000_000


async def ping_pong(cell: Cell) -> float:
    """Return the milliseconds of a message to another process and back over a bare socket pair, at the median."""
    with _bare_worker(ECHO, socket.SOCK_STREAM) as ours:
        times = []
        for _ in range(cell.count(5000, 200)):
            began = time.perf_counter()
            ours.sendall(MESSAGE)
            ours.recv(len(MESSAGE))
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[len(times) // 10 :])


@contextlib.contextmanager
def _bare_worker(program: str, kind: socket.SocketKind) -> Iterator[socket.socket]:
    """Run a program that answers messages, and give the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours:
        with theirs:
            command = [sys.executable, "-c", program, str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603 - our own program
        yield ours
    process.wait()


class BareCalls:
    """The least that calls need: a future, a pickle and a message each way, and a worker that does nothing else."""

    def __init__(self, workers: list[socket.socket], ahead: int) -> None:
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._futures: dict[int, asyncio.Future[object]] = {}
        self._waiting: deque[bytes] = deque()
        self._under_way = dict.fromkeys(workers, 0)
        for worker in workers:
            worker.setblocking(False)
            self._loop.add_reader(worker.fileno(), self._receive, worker)

    def close(self) -> None:
        """Receive no more; uvloop would keep the sockets open."""
        for worker in self._under_way:
            self._loop.remove_reader(worker.fileno())

    def call(self, function: Callable[..., object], *args: object) -> asyncio.Future[object]:
        """Begin a call."""
        number = next(self._numbers)
        future = self._futures[number] = self._loop.create_future()
        self._waiting.append(pickle.dumps((number, function, args), 5))
        return future

    def feed(self) -> None:
        """Send what waits, as far as it has a place."""
        for worker in self._under_way:
            while self._waiting and self._under_way[worker] < self._ahead:
                worker.send(self._waiting.popleft())
                self._under_way[worker] += 1

    def _receive(self, worker: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                number, value = pickle.loads(worker.recv(65536))
                self._futures.pop(number).set_result(value)
                self._under_way[worker] -= 1
        self.feed()


def bare_calls(calls: int) -> Work:
    """Return the work of so many `BareCalls`, all at once; its number is calls a second."""

    async def work(cell: Cell) -> float:
        count = cell.count(calls, 10)
        return count / await _bare_seconds(count, AHEAD, abs, -1)

    return work


def bare_busy(calls: int, seconds: float) -> Work:
    """Return the work of so many `BareCalls` that compute for a while; its number is how many cores do that."""

    async def work(cell: Cell) -> float:
        count = cell.count(calls, 10)
        return count * seconds / await _bare_seconds(count, FEW_AHEAD, jobs.busy, seconds)

    return work


async def _bare_seconds(count: int, ahead: int, function: Callable[..., object], *args: object) -> float:
    with bare_workers(ahead) as bare:
        for many in (max(1, count // 10), count):
            began = time.perf_counter()
            futures = [bare.call(function, *args) for _ in range(many)]
            bare.feed()
            await asyncio.gather(*futures)
        return time.perf_counter() - began


@contextlib.contextmanager
def bare_workers(ahead: int) -> Iterator[BareCalls]:
    """Run workers that do nothing but answer calls, with so many of them on their way to each."""
    with contextlib.ExitStack() as workers:
        sockets = [workers.enter_context(_bare_worker(ANSWER, socket.SOCK_SEQPACKET)) for _ in range(WORKERS)]
        bare = BareCalls(sockets, ahead)
        try:
            yield bare
        finally:
            bare.close()


def bare_map(count: int) -> Work:
    """Return the work of a map over bare workers, which have one chunk ahead; its number is items a second."""

    async def work(cell: Cell) -> float:
        items = range(cell.count(count, 100))
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(_bare_worker(MAP, socket.SOCK_STREAM)) for _ in range(WORKERS)]
            workers = [stack.enter_context(Connection(each.detach())) for each in sockets]
            for part in (items[: len(items) // 20], items):
                began = time.perf_counter()
                values = _mapped(part, workers)
                seconds = time.perf_counter() - began
                assert values == list(part)  # noqa: S101 - what is not right is no measure
        return len(items) / seconds

    return work


def _mapped(items: range, workers: list[Connection]) -> list[int]:
    length = -(-len(items) // CHUNKS)
    chunks = [items[begin : begin + length] for begin in range(0, len(items), length)]
    waiting, values = deque(enumerate(chunks)), [[0] for _ in chunks]
    sent: dict[Connection, deque[int]] = {worker: deque() for worker in workers}

    def feed(worker: Connection) -> None:
        if waiting:
            number, chunk = waiting.popleft()
            worker.send_bytes(pickle.dumps((abs, chunk), 5))
            sent[worker].append(number)

    for worker in workers * 2:
        feed(worker)
    while any(sent.values()):
        ready = wait([worker for worker in workers if sent[worker]])
        for worker in filter(ready.__contains__, workers):
            answer = worker.recv_bytes()
            feed(worker)
            values[sent[worker].popleft()] = pickle.loads(answer)
    return [value for chunk in values for value in chunk]


def bare_naps(count: int, at_once: int, seconds: float) -> Work:
    """Return the work of coroutines that wait in this loop, without a pool; its number is how many end in a second."""

    async def work(cell: Cell) -> float:
        left = iter(range(cell.count(count, 10)))

        async def nap_again() -> None:
            for _ in left:
                await asyncio.sleep(seconds)

        began = time.perf_counter()
        await asyncio.gather(*(nap_again() for _ in range(at_once)))
        return cell.count(count, 10) / (time.perf_counter() - began)

    return work


def bare_processes(every: int) -> Work:
    """Return the work of starting processes that end at once; its number is calls a second if each served so many."""

    async def work(cell: Cell) -> float:
        context = multiprocessing.get_context("forkserver")
        rounds = cell.count(30, 2)
        for many in (1, rounds):
            began = time.perf_counter()
            for _ in range(many):
                processes = [context.Process(target=int) for _ in range(WORKERS)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
        return every * WORKERS * rounds / (time.perf_counter() - began)

    return work


async def bare_start(_cell: Cell) -> float:
    """Return the milliseconds until the first processes of a fork server have said something."""
    began = time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    processes = [context.Process(target=ours.send_bytes, args=(b"ready",)) for _, ours in pipes]
    for process in processes:
        process.start()
    for theirs, _ in pipes:
        theirs.recv_bytes()
    milliseconds = 1000 * (time.perf_counter() - began)
    for process in processes:
        process.join()
    return milliseconds


async def bare_memory(_cell: Cell) -> float:
    """Return the megabytes that are a process's own which aiopool's fork server has made, and which only echoes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aiopool.worker.preloaded"])
    pipes = [context.Pipe() for _ in range(WORKERS)]
    workers = [context.Process(target=jobs.echo, args=(theirs,)) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    for ours, _ in pipes:
        for _ in range(20):
            ours.send(MESSAGE)
            ours.recv()
    found = [processes.private_bytes(worker.pid or 0) for worker in workers]
    for ours, _ in pipes:
        ours.send(None)
    for worker in workers:
        worker.join()
    return statistics.median(found) / 1e6


async def array_copy(cell: Cell) -> float:
    """Return the gigabytes a second at which memory is copied within a process."""
    size = cell.count(ARRAY_BYTES)
    source, target = bytearray(os.urandom(1) * size), memoryview(bytearray(size))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        target[:] = source
        times.append(time.perf_counter() - began)
    return size / statistics.median(times[1:]) / 1e9
