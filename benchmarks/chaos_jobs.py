"""What the chaos program's workers run: a job notes that it runs, then meets the fate that was chosen for it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NamedTuple

from aiopool import CallInterrupted

HOARD = 400 << 20
"""Bytes that a hoarding job takes, if nobody ends it before."""

LIMIT = 300 << 20
"""Bytes of resident memory from which on a worker is killed from outside, as the kernel would do."""

KEPT = 100 << 20
"""Bytes that a leaking job leaves in its worker."""

STEP = 8 << 20

_leaked: list[bytes] = []


class Order(NamedTuple):
    """What a job gets."""

    journal: str
    number: int
    fate: str
    size: int
    """Bytes of the result."""
    burden: bytes
    """To be carried there."""


class Answer(NamedTuple):
    """What a job returns."""

    number: int
    received: int
    """Bytes of the order's burden."""
    content: bytes


def content(number: int, size: int) -> bytes:
    """Return what a job with this number carries: nobody else's."""
    return (number.to_bytes(8, "little") * (size // 8 + 1))[:size]


def perform(order: Order) -> Answer:
    """Note that the call runs; do what chance has decided; answer."""
    with open(order.journal, "ab", buffering=0) as journal:  # noqa: PTH123 - pathlib is much to import in a worker
        journal.write(b"%d %d %s\n" % (order.number, os.getpid(), order.fate.encode()))
    FATES[order.fate](order.number)
    if order.burden != content(order.number, len(order.burden)):
        raise ValueError(order.number)  # which is no job's fate
    return Answer(order.number, len(order.burden), content(order.number, order.size))


def perform_parts(*parts: Any) -> Answer:
    """Do the same, for a starmap."""
    return perform(Order(*parts))


async def perform_on_loop(order: Order) -> Answer:
    """Do the same as a coroutine, which waits for a moment first, so that there are others beside it."""
    await _wait(order.number % 5 / 1000)
    if order.fate not in WAITING:
        return perform(order)
    perform(order._replace(fate="value"))  # but for the fate, which is met here
    await WAITING[order.fate]()
    raise AssertionError(order)


async def perform_parts_on_loop(*parts: Any) -> Answer:
    """Do the same, for a starmap."""
    return await perform_on_loop(Order(*parts))


def generate(order: Order, count: int) -> Iterator[int | Answer]:
    """Yield some numbers, then do the same."""
    yield from range(count)
    yield perform(order)


async def generate_on_loop(order: Order, count: int) -> AsyncIterator[int | Answer]:
    """Yield some numbers, then do the same."""
    for number in range(count):
        yield number
    yield await perform_on_loop(order)


async def _wait(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


async def _resist_on_loop() -> None:
    """Go on whenever this is cancelled."""
    import asyncio

    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            continue


WAITING: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "sleep": lambda: _wait(1000),
    "resist": _resist_on_loop,
}
"""What coroutines do without holding up those beside them."""


def exit_code(number: int) -> int:
    """Return the code with which the job of this number leaves."""
    return number % 256


def no_core() -> None:
    """Initializer: crashes are meant to happen, and need no dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _raise(number: int) -> None:
    raise LookupError(number)


def _bomb(number: int) -> None:
    """Have the worker die a little later, whatever it does then: it computes, answers, or serves another call."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, (1 + number % 40) / 1000)


def _starve(number: int) -> None:
    """Ask for more memory than there may be."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, before[1]))
    try:
        _leaked.append(bytes(1 << 31))
    except MemoryError:
        raise MemoryError(number) from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _hoard(_number: int) -> None:
    heap: list[bytes] = []
    while len(heap) * STEP < HOARD:
        heap.append(b"x" * STEP)
    time.sleep(1000)


def _spin(_number: int) -> None:
    while True:
        pass


def _resist(_number: int) -> None:
    """Go on whatever is raised here."""
    while True:
        try:
            time.sleep(1000)
        except CallInterrupted:
            continue


def _have_child(_number: int) -> None:
    """Wait for a process of our own; end it when we are interrupted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])  # not while there is a child that we do not know yet
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
            child.wait()
        finally:
            child.kill()


def _abandon_child(number: int) -> None:
    """Leave a process of our own behind."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])  # interrupted, we would live on, and so would the process
    subprocess.Popen(["/bin/sleep", "1000"])
    os._exit(exit_code(number))


FATES: dict[str, Callable[[int], object]] = {
    "value": lambda _number: None,
    "leak": lambda _number: _leaked.append(b"x" * KEPT),
    "bomb": _bomb,
    "raise": _raise,
    "starve": _starve,
    "exit": lambda number: os._exit(exit_code(number)),
    "kill": lambda _number: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda _number: os.kill(os.getpid(), signal.SIGSEGV),
    "abandon": _abandon_child,
    "hoard": _hoard,
    "spin": _spin,
    "sleep": lambda _number: time.sleep(1000),
    "resist": _resist,
    "child": _have_child,
}

ENDLESS = {"hoard", "spin", "sleep", "resist", "child"}
"""They end when somebody ends them."""


def deaths_of(fate: str, number: int) -> set[int]:
    """Return the exit codes with which a worker may end because of such a job."""
    return {
        "exit": {exit_code(number)},
        "abandon": {exit_code(number)},
        "kill": {-signal.SIGKILL},
        "crash": {-signal.SIGSEGV},
        "bomb": {-signal.SIGALRM},
    }.get(fate, set())
