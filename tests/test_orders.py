"""The parent's end of the pipe for orders, without a worker at the other one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

import pytest

from aiopool.backends.orders import AGAIN, Orders
from aiopool.worker.control import ORDER

pytestmark = pytest.mark.both_loops

PAGE = 4096
"""As many bytes have to be read before there is room for others."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Neither end blocks."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(end)


def fill(writer: int) -> None:
    """Leave no room in a pipe."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(PAGE))


async def test_orders_that_do_not_fit_into_the_pipe_are_written_when_they_do(pipe: tuple[int, int]) -> None:
    """A worker that is stopped reads none; none is lost, and none is written to one that is gone."""
    reader, writer = pipe
    fill(writer)
    orders = Orders(asyncio.get_running_loop(), writer)
    orders.grant(7, 1)
    orders.grant(7, 2)
    read = b""
    while not read.endswith(ORDER.pack(7, 1) + ORDER.pack(7, 2)):
        await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            read += os.read(reader, 65536)
    os.close(reader)
    orders.grant(7, 3)
    assert not orders._unwritten
    orders.close()


async def test_orders_for_which_there_is_room_in_part_are_written_bit_by_bit(pipe: tuple[int, int]) -> None:
    """The loop is asked to tell of room as long as any are left, and no longer."""
    reader, writer = pipe
    fill(writer)
    loop = asyncio.get_running_loop()
    orders = Orders(loop, writer)
    granted = range(1, 3 * PAGE // ORDER.size)
    for more in granted:
        orders.grant(7, more)
    all_of_them, read = b"".join(ORDER.pack(7, more) for more in granted), b""
    while not read.endswith(all_of_them):
        await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            read += os.read(reader, PAGE)
    assert not loop.remove_writer(writer)
    orders.close()


async def test_what_is_closed_writes_nothing_any_more(pipe: tuple[int, int]) -> None:
    """Though something is left that did not fit."""
    reader, writer = pipe
    fill(writer)
    orders = Orders(asyncio.get_running_loop(), writer)
    orders.grant(7, 1)
    orders.close()
    assert not asyncio.get_running_loop().remove_writer(writer)
    assert ORDER.pack(7, 1) not in os.read(reader, 2**20)


async def test_an_interruption_is_signalled_again_until_it_is_read(pipe: tuple[int, int]) -> None:
    """A signal that meets a call on its way into the system does not wake it there."""
    reader, writer = pipe
    signalled: asyncio.Queue[float] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def signal() -> None:
        signalled.put_nowait(loop.time())

    orders = Orders(loop, writer)
    orders.interrupt(7, signal)
    times = [await signalled.get() for _ in range(3)]
    first, second = times[1] - times[0], times[2] - times[1]
    assert AGAIN / 2 < first < second
    assert os.read(reader, 100) == ORDER.pack(7, 0)
    orders._remind(signal, 1000.0)
    assert signalled.empty()
    orders.close()


async def test_of_several_interruptions_all_are_reminded_of_at_once(pipe: tuple[int, int]) -> None:
    """By one signal; and when nobody is to be signalled any more, none comes."""
    _, writer = pipe
    signalled = list[str]()
    orders = Orders(asyncio.get_running_loop(), writer)
    orders.interrupt(7, lambda: signalled.append("first"))
    before = orders._reminder
    orders.interrupt(8, lambda: signalled.append("second"))
    assert before is not None
    assert before.cancelled()
    orders.close()
    assert orders._reminder is not None
    assert orders._reminder.cancelled()
    assert signalled == ["first", "second"]
