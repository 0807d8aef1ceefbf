"""What the machine itself gives, measured beside the peers: nothing that a pool does can be faster."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time

from .cell import WORKERS, Cell

__all__ = ["array_copy", "cores", "ping_pong"]

MESSAGE = b"." * 64

ECHO = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as ours:
    while message := ours.recv(64):
        ours.sendall(message)
"""

ARRAY_BYTES = 100_000_000


async def ping_pong(cell: Cell) -> float:
    """Return the milliseconds of a message to another process and back over a bare socket pair, at the median."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-c", ECHO, str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: ASYNC220, S603 - the loop has nothing else to do
        times = []
        for _ in range(cell.count(5000, 200)):
            began = time.perf_counter()
            ours.sendall(MESSAGE)
            ours.recv(len(MESSAGE))
            times.append(time.perf_counter() - began)
    process.wait()
    return 1000 * statistics.median(times[len(times) // 10 :])


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


async def cores(_cell: Cell) -> float:
    """Return how many workers can compute at the same time."""
    return float(min(WORKERS, len(os.sched_getaffinity(0))))
