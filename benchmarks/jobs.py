"""Functions that run in workers. This module is imported there, so it imports little."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

GIVEN = 8
"""Bytes of one number of an array."""

PAGE = 4096


def trivial(x: int) -> int:
    """Do nothing."""
    return x


def busy(seconds: float) -> None:
    """Compute for so long, by this thread's own clock: time in which others had the core does not count."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def whoami(pause: float) -> int:
    """Tell which process this is, after a while in which others can be asked."""
    time.sleep(pause)
    return os.getpid()


def tell(path: str) -> None:
    """Write into a named pipe that this call runs."""
    pipe = os.open(path, os.O_WRONLY)
    os.write(pipe, b".")
    os.close(pipe)


def tell_and_spin(path: str) -> None:
    """Say that it runs, and run until it is stopped."""
    tell(path)
    while True:
        os.getpid()  # in a loop around nothing at all, CPython 3.11 finds no handler for what a signal raises


def tell_and_be_busy(path: str, seconds: float) -> None:
    """Say that it runs, and compute for so long."""
    tell(path)
    busy(seconds)


def tell_and_wait(path: str) -> None:
    """Say that it runs, and keep the worker for longer than any cell lasts."""
    tell(path)
    time.sleep(10_000)


def touch(array: Any) -> float:
    """Read one number of each page of an array, so that it must really be there."""
    return float(array[:: PAGE // GIVEN].sum())


@functools.cache
def ones(count: int) -> Any:
    """Return an array that was made before it is asked for again."""
    import numpy as np

    return np.ones(count)


def echo(messages: Any) -> None:
    """Send back what comes over a connection, until that is nothing."""
    while message := messages.recv():
        messages.send(message)


async def nap(seconds: float) -> float:
    """Wait, and let others go on."""
    import asyncio

    await asyncio.sleep(seconds)
    return seconds


async def trivial_coroutine(x: int) -> int:
    """Do nothing, as a coroutine."""
    return x


def numbers(count: int) -> Iterator[int]:
    """Yield small values."""
    yield from range(count)


async def as_coroutine(func: Callable[..., Any], *args: Any) -> Any:
    """Call a function where the pool wants coroutine functions."""
    return func(*args)
