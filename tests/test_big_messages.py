"""Messages of hundreds of megabytes and more, and workers that are lost in the middle of them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AioPoolError, WorkerDied, wire
from aiopool.backends.process import WorkerProcess
from conftest import is_gone
from latch import Latch

SIZE = 200_000_000
HUGE = 2**31 + 10
"""More than a signed 32-bit number can count."""

MEMORY_FOR_HUGE = 5 * HUGE
"""The argument's pickle here, and in the worker what arrives and what it is made into; with something to spare."""

Initializer = Callable[[], None] | None


def available_memory() -> int:
    """Return how many bytes of memory can be had; where it is known, those that only keep files at hand included."""
    told = Path("/proc/meminfo")
    if told.exists() and (found := re.search(r"MemAvailable: *(\d+) kB", told.read_text())):
        return 1024 * int(found[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Tap:
    """Stands before the parent's socket, counts what goes through, and does what a test wants half-way.

    Args:
        sock: the socket.
        sent: called before each write with the number of bytes written so far.
        received: called before each read with the number of bytes read so far.
    """

    def __init__(
        self,
        sock: socket.socket,
        sent: Callable[[int], None] = lambda _count: None,
        received: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._sock, self._on_send, self._on_receive = sock, sent, received
        self.sent = self.received = 0

    def send(self, packet: memoryview) -> int:
        """Send a packet."""
        self._on_send(self.sent)
        count = self._sock.send(packet)
        self.sent += count
        return count

    def recv_into(self, buffer: memoryview, size: int, flags: int) -> int:
        """Receive a packet."""
        self._on_receive(self.received)
        count = self._sock.recv_into(buffer, size, flags)
        self.received += count
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def tap(pool: AioPool, **actions: Callable[[int], None]) -> Tap:
    """Put a tap on the channel of a pool's one worker."""
    (process,) = pool._backend._processes.values()  # type: ignore[attr-defined]
    process._channel._sock = tapped = Tap(process._channel._sock, **actions)
    return tapped


def once_at(count: int, action: Callable[[], object]) -> Callable[[int], None]:
    """Return what does something once, as soon as more than so many bytes have passed."""
    done: list[int] = []

    def act(passed: int) -> None:
        if passed > count and not done:
            done.append(passed)
            action()

    return act


def kill(pid: int) -> None:
    """Kill a process, and return when it has ended."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)


async def test_an_argument_that_a_worker_has_no_memory_for_fails_its_call_only(either_way: Initializer) -> None:
    """However it comes."""
    async with AioPool(1, either_way) as pool:
        pid = await pool.apply(jobs.pid_of)
        await pool.apply(jobs.have_little_memory)
        with pytest.raises(AioPoolError, match="the arguments could not be received: the worker has no memory"):
            await pool.apply(len, (bytes(SIZE),))
        assert await pool.apply(len, (bytes(1_000_000),)) == 1_000_000
        assert await pool.apply(jobs.pid_of) == pid


@pytest.mark.both_loops
async def test_hundreds_of_megabytes_go_both_ways(either_way: Initializer) -> None:
    """At once, on two workers."""
    value = os.urandom(1_000_000) * (SIZE // 1_000_000)
    async with AioPool(2, either_way) as pool:
        assert await asyncio.gather(*(pool.apply(jobs.same, (value,)) for _ in range(2))) == [value] * 2


@pytest.mark.usefixtures("either_way")
async def test_a_large_argument_is_held_once_while_the_call_runs() -> None:
    """What came over the channel is given up when it is unpickled."""
    async with AioPool(1) as pool:
        without = await pool.apply(jobs.resident_with, (b"",))
        assert await pool.apply(jobs.resident_with, (bytes(SIZE),)) - without < 1.5 * SIZE


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    available_memory() < MEMORY_FOR_HUGE, reason=f"less than {MEMORY_FOR_HUGE / 2**30:.0f} GiB of memory are free"
)
async def test_an_argument_of_more_than_two_gigabytes_arrives() -> None:
    """No length on the way is a 32-bit number."""
    async with AioPool(1) as pool:
        assert await pool.apply(len, (bytes(HUGE),)) == HUGE


@pytest.mark.both_loops
@pytest.mark.usefixtures("either_way")
async def test_a_worker_that_is_gone_before_a_large_argument_is_sent_costs_nothing() -> None:
    """Though its death is not known yet: the call is given to another."""
    async with AioPool(1) as pool:
        kill(await pool.apply(jobs.pid_of))
        assert await pool.apply(len, (bytes(SIZE),)) == SIZE


@pytest.mark.both_loops
@pytest.mark.usefixtures("in_pieces")
async def test_a_worker_that_is_killed_half_way_through_a_large_argument_costs_nothing() -> None:
    """It has not begun the call, so the call is given to another."""
    async with AioPool(1) as pool:
        pid = await pool.apply(jobs.pid_of)
        tapped = tap(pool, sent=once_at(SIZE // 2, lambda: kill(pid)))
        assert await pool.apply(len, (bytes(SIZE),)) == SIZE
        assert SIZE // 2 < tapped.sent < SIZE
        assert await pool.apply(jobs.pid_of) != pid


@pytest.mark.usefixtures("in_pieces")
async def test_a_worker_that_stops_reading_and_is_killed_costs_nothing() -> None:
    """As much as the system takes is written, the rest waits, and the loop with neither."""
    async with AioPool(1) as pool:
        pid = await pool.apply(jobs.pid_of)
        os.kill(pid, signal.SIGSTOP)
        result = pool.submit(len, bytes(SIZE))
        (process,) = pool._backend._processes.values()  # type: ignore[attr-defined]
        assert process._channel._unsent
        kill(pid)
        assert await result == SIZE


@pytest.mark.usefixtures("in_pieces")
async def test_a_large_argument_that_two_workers_did_not_survive_is_not_sent_to_a_third(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may well be what kills them."""
    attach, pids = WorkerProcess._attach, []

    def attach_and_tap(process: WorkerProcess, failure: Any) -> None:
        attach(process, failure)
        assert process.pid
        assert process._channel
        pids.append(process.pid)
        process._channel._sock = Tap(process._channel._sock, once_at(SIZE // 2, lambda: kill(pids[-1])))  # type: ignore[assignment]

    monkeypatch.setattr(WorkerProcess, "_attach", attach_and_tap)
    async with AioPool(1) as pool:
        with pytest.raises(WorkerDied, match="SIGKILL while running len") as caught:
            await pool.apply(len, (bytes(SIZE),))
        assert caught.value.pid == pids[1]
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.usefixtures("either_way")
async def test_a_worker_that_is_killed_with_a_large_argument_in_hand_fails_the_call(latch: Latch, gate: Latch) -> None:
    """It was all read, so nobody knows how far the call has come."""
    async with AioPool(1) as pool:
        result = pool.submit(len, (bytes(SIZE), jobs.TellsAndWaits(latch.path, gate.path)))
        pid = int(await latch.told())
        kill(pid)
        with pytest.raises(WorkerDied, match="SIGKILL while running len"):
            await result
        assert await pool.apply(jobs.square, (3,)) == 9


async def test_a_worker_that_is_killed_before_it_sends_a_large_result_fails_the_call(
    either_way: Initializer, latch: Latch, gate: Latch
) -> None:
    """The function has returned, and nobody will ever know what."""
    async with AioPool(1, either_way) as pool:
        pid = await pool.apply(jobs.pid_of)
        result = pool.submit(jobs.large_and_waiting, latch.path, gate.path, SIZE)
        await latch.told()
        kill(pid)
        with pytest.raises(WorkerDied, match="SIGKILL while running large_and_waiting"):
            await result
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.both_loops
async def test_a_worker_that_is_killed_half_way_through_a_large_result_fails_the_call() -> None:
    """What has come of it is dropped; the next call gets its own answer."""
    async with AioPool(1, jobs.refuse_memory) as pool:
        pid = await pool.apply(jobs.pid_of)
        tapped = tap(pool, received=once_at(SIZE // 2, lambda: kill(pid)))
        with pytest.raises(WorkerDied, match="SIGKILL while running bytes"):
            await pool.apply(bytes, (SIZE,))
        assert SIZE // 2 < tapped.received < SIZE
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.both_loops
async def test_a_worker_that_is_killed_after_it_has_sent_a_large_result_is_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of it lies in the channel when the death is noticed; the result counts."""
    died, noticed = WorkerProcess._died, asyncio.Event()

    def notice(process: WorkerProcess) -> None:
        noticed.set()
        died(process)

    def wait_for_the_death(count: int) -> None:
        if count > SIZE - wire.PACKET and not noticed.is_set():
            raise BlockingIOError

    monkeypatch.setattr(WorkerProcess, "_died", notice)
    async with AioPool(1, jobs.refuse_memory, context="spawn") as pool:  # there, nothing else is waited for then
        pid = await pool.apply(jobs.pid_of)
        tapped = tap(pool, received=wait_for_the_death)
        result = pool.submit(bytes, SIZE)
        while tapped.received + waiting_in(tapped) < SIZE:
            await asyncio.sleep(0)
        kill(pid)
        assert len(await result) == SIZE
        assert await pool.apply(jobs.pid_of) != pid


def waiting_in(sock: Any) -> int:
    """Return how much has arrived at a socket and was not read."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])


@pytest.mark.both_loops
@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_cancelling_half_way_through_a_large_message_ends_the_call(direction: str) -> None:
    """Its worker is gone then, the rest is dropped, and the next call gets its own answer."""
    async with AioPool(1, jobs.refuse_memory) as pool:
        pid = await pool.apply(jobs.pid_of)
        job, argument = (len, bytes(SIZE)) if direction == "sent" else (bytes, SIZE)
        call = asyncio.create_task(pool.apply(job, (argument,)))
        tapped = tap(pool, **{direction: once_at(SIZE // 2, call.cancel)})
        with pytest.raises(asyncio.CancelledError):
            await call
        assert is_gone(pid)
        assert getattr(tapped, direction) < SIZE
        assert await pool.apply(jobs.square, (3,)) == 9


@pytest.mark.timeout(300)
async def test_a_hundred_thousand_calls_at_once_neither_block_the_loop_nor_raise() -> None:
    """Each gets its own answer, and the loop turns all the while."""
    loop = asyncio.get_running_loop()
    async with AioPool(2) as pool:
        results = [pool.submit(jobs.same, number) for number in range(100_000)]
        longest, last = 0.0, loop.time()
        while not results[-1].done():
            await asyncio.sleep(0)
            longest, last = max(longest, loop.time() - last), loop.time()
        assert [await result for result in results] == list(range(100_000))
    assert longest < 10, "a deadline against hangs: the work of a turn must not grow with what waits"
