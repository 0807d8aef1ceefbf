"""What runs in workers on an event loop, or yields values there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn, cast

from aiopool import current_worker, report
from aiopool.exceptions import CallInterrupted
from aiopool.worker import tasks
from jobs import make_unpickles_never_in_parent, mapped, tell, wait_at

variable: ContextVar[str] = ContextVar("variable", default="unset")
_kept: list[Any] = []


async def add(a: int, b: int = 0, *, c: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b + c


class Adder:
    """An instance that is called, and has a method, both of them coroutine functions."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def __call__(self, other: int) -> int:
        return await add(self.number, other)

    async def add(self, other: int) -> int:
        return await add(self.number, other)


async def fail(error: BaseException) -> NoReturn:
    await asyncio.sleep(0)
    raise error


async def fail_at(item: int, bad: int = 3) -> int:
    if item == bad:
        raise ValueError(f"bad {item}")
    return item


async def fail_in_task(error: BaseException) -> None:
    await asyncio.gather(fail(error))


def exit_now(*_: object) -> NoReturn:
    """Handle what nobody waits for as some programs do."""
    sys.exit(1)


async def fail_in_callback(error: BaseException, *, exits: bool = False) -> str:
    """Go on after something has failed that nobody waits for."""

    def fail_now() -> NoReturn:
        raise error

    passed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(exit_now if exits else None)
    loop.call_soon(fail_now)
    loop.call_soon(passed.set)
    await passed.wait()
    return "went on"


def returns_a_coroutine(number: int) -> Coroutine[Any, Any, int]:
    return add(number)


async def passed(gate: str) -> None:
    """Wait until a latch lets one pass; others on the loop go on."""
    loop, descriptor = asyncio.get_running_loop(), os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                if os.read(descriptor, 1):
                    return
            readable = loop.create_future()
            loop.add_reader(descriptor, lambda done=readable: done.done() or done.set_result(None))
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


async def tell_and_wait(path: str, gate: str, value: Any = None) -> Any:
    tell(path, os.getpid() if value is None else value)
    await passed(gate)
    return value


async def tell_and_clean_up(path: str, text: str = "cleaned up") -> None:
    tell(path, "begun")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        tell(path, "cancelled")
        raise
    finally:
        await asyncio.sleep(0)
        tell(path, text)


async def tell_and_swallow(path: str) -> NoReturn:
    """Take no notice of being cancelled."""
    tell(path, os.getpid())
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def tell_and_block(path: str) -> None:
    tell_and_block_the_loop(path)


def tell_and_block_the_loop(path: str) -> None:
    tell(path, "blocked")
    block_the_loop()


def block_the_loop() -> None:
    time.sleep(1000)


async def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def die_once(path: str) -> int:
    """Die, unless this has been tried."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)  # noqa: PTH102
        os._exit(1)
    return os.getpid()


async def pid() -> int:
    return os.getpid()


async def pid_of(_item: object) -> int:
    return os.getpid()


async def variable_here(_item: object) -> str:
    return variable.get()


async def set_variable(path: str, gate: str, value: str) -> tuple[str, str, str]:
    before = variable.get()
    variable.set(value)
    await tell_and_wait(path, gate)
    child = await asyncio.create_task(read_variable())
    return before, variable.get(), child


async def read_variable() -> str:
    return variable.get()


async def initialize(value: str) -> None:
    await asyncio.sleep(0)
    variable.set(value)


async def fail_to_initialize() -> None:
    await asyncio.sleep(0)
    raise OSError("no luck")


async def report_each(*values: Any) -> Any:
    for value in values:
        report(value)
        await asyncio.sleep(0)
    await asyncio.create_task(report_in_task())
    worker = current_worker()
    return worker and worker.calls


async def report_in_task() -> None:
    report("from a task")


async def loop_type() -> str:
    return type(asyncio.get_running_loop()).__module__


def broken_loop() -> asyncio.AbstractEventLoop:
    raise OSError("no loop today")


def has_module(name: str) -> bool:
    return name in sys.modules


def run_a_loop() -> int:
    return asyncio.run(add(1, 2))


async def leave_a_task(path: str, gate: str) -> None:
    """Leave a task and an async generator on the loop, which are there when this has ended."""

    async def rest() -> None:
        try:
            await passed(gate)
            tell(path, "went on")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tell(path, "task cancelled")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            tell(path, "generator closed")

    left = numbers()
    await anext(left)
    _kept.extend((asyncio.create_task(rest()), left))


async def tell_in_turn(item: tuple[str, int]) -> int:
    path, number = item
    tell(path, f"begun {number}")
    await asyncio.sleep(0)
    tell(path, f"ended {number}")
    return number


async def mapped_after_use(block: Any) -> tuple[int, int]:
    before = len(mapped())
    del block
    await asyncio.sleep(0)
    return before, len(mapped())


async def size_of(data: bytes) -> int:
    return len(data)


async def block_or_size(path: str, gate: str, data: bytes) -> int:
    """Hold up the loop, as no coroutine should, until a latch lets it go on."""
    tell(path, "blocked")
    wait_at(gate)
    return len(data)


# Generators.


def count(end: int) -> Iterator[int]:
    yield from range(end)


async def acount(end: int) -> AsyncIterator[int]:
    for number in range(end):
        yield number


def tell_each(path: str, end: int = 1000) -> Iterator[int]:
    try:
        for number in range(end):
            tell(path, number)
            yield number
    finally:
        tell(path, "closed")


async def atell_each(path: str, end: int = 1000) -> AsyncIterator[int]:
    try:
        for number in range(end):
            tell(path, number)
            yield number
    finally:
        await asyncio.sleep(0.01)
        tell(path, "closed")


def fail_after(end: int) -> Iterator[int]:
    yield from range(end)
    raise ValueError("that was all")


async def afail_after(end: int) -> AsyncIterator[int]:
    for number in range(end):
        yield number
    raise ValueError("that was all")


def die_after(end: int) -> Iterator[int]:
    yield from range(end)
    os.kill(os.getpid(), signal.SIGKILL)


def block_after(path: str, end: int) -> Iterator[int]:
    try:
        yield from range(end)
        tell(path, "blocked")
        block_the_loop()
    finally:
        tell(path, "closed")


async def await_after(path: str, end: int) -> AsyncIterator[int]:
    try:
        for number in range(end):
            yield number
        tell(path, "waits")
        await asyncio.Event().wait()
    finally:
        tell(path, "closed")


def never_closes(path: str) -> Iterator[int]:
    """Block when it is closed, and when it is interrupted between two values."""
    try:
        tell(path, os.getpid())
        while True:
            yield 1
    finally:
        block_the_loop()


def give(*values: Any) -> Iterator[Any]:
    yield from values


def give_locks() -> Iterator[Any]:
    yield 1
    yield threading.Lock()


def give_unpicklable(_number: int) -> Iterator[Any]:
    yield make_unpickles_never_in_parent()
    yield 2


async def yield_on() -> AsyncIterator[int]:
    """Take no notice of being cancelled."""
    yield 1
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.sleep(0)
    yield 2


def interrupt_and_yield_on(orders: int, order: bytes, number: int) -> Iterator[int]:
    """Take no notice of an interruption."""
    yield 1
    with contextlib.suppress(CallInterrupted):
        os.write(orders, order)
        signal.raise_signal(number)
    yield 2


def loops_of_its_own() -> Iterator[int]:
    yield run_a_loop()
    yield run_a_loop()


async def variable_each(times: int) -> AsyncIterator[str]:
    for _ in range(times):
        yield variable.get()


def variable_each_sync(times: int) -> Iterator[str]:
    for _ in range(times):
        yield variable.get()


class Generates:
    """An instance that is called, and is a generator function then."""

    def __call__(self, end: int) -> Iterator[int]:
        yield from range(end)


class Late(Exception):
    """Raised by a signal's handler of the job's own, as its time is up."""


def be_late_at(name: str, event: str) -> None:
    """Have a signal come, whose handler raises, at such a place of the worker's own code; once."""

    def handle(frame: FrameType, what: object, _: object = None) -> None:
        if what == event and frame.f_code.co_name == name:
            sys.setprofile(None)
            raise Late

    signal.signal(signal.SIGUSR2, cast("Callable[[int, FrameType | None], object]", handle))
    sys.setprofile(handle)


async def leave_late_at(name: str, event: str) -> int:
    be_late_at(name, event)
    return 1


def yield_late_at(name: str, event: str) -> Iterator[int]:
    be_late_at(name, event)
    yield from range(3)


def have_short_turns() -> None:
    """Have generators let others on the loop have their turn after each value."""
    tasks.LONGEST_TURN = -1.0


def handle(*_: object) -> NoReturn:
    raise Late


def handle_once(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    raise Late
