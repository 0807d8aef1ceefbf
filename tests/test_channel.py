"""The parent's end of a channel, at a socket whose other end is here, too."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket

import pytest

from aiopool import parcels, wire
from aiopool.backends import channel as channel_module
from aiopool.backends.channel import Channel

pytestmark = pytest.mark.both_loops


class Heard:
    """What a channel reports.

    Attributes:
        frames: what has arrived.
        garbled: how often it was told that something is no message.
    """

    def __init__(self) -> None:
        self.frames: list[wire.Frame] = []
        self.garbled = 0

    def on_garbled(self) -> None:
        """Count it."""
        self.garbled += 1


@pytest.fixture
def heard() -> Heard:
    """Nothing yet."""
    return Heard()


async def test_what_the_kernel_does_not_take_waits_and_keeps_its_order(
    ends: tuple[socket.socket, socket.socket], heard: Heard
) -> None:
    """Messages that come while others wait are behind them."""
    channel = Channel(asyncio.get_running_loop(), ends[0], heard.frames.extend, heard.on_garbled)
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    count = 1000
    for number in range(1, count + 1):
        channel.send(wire.encode(wire.Kind.DROP, number))
    assert channel._unsent
    received: list[int] = []
    done = asyncio.Event()

    def receive() -> None:
        received.append(wire.call_of(ends[1].recv(wire.PACKET)))
        if len(received) == count:
            done.set()

    asyncio.get_running_loop().add_reader(ends[1].fileno(), receive)
    await done.wait()
    asyncio.get_running_loop().remove_reader(ends[1].fileno())
    assert received == list(range(1, count + 1))
    assert channel.take_unsent() == []
    channel.close()


async def test_what_nobody_can_read_any_more_stays_where_it_is(
    ends: tuple[socket.socket, socket.socket], heard: Heard
) -> None:
    """To send it is no error: that the other end is gone is reported elsewhere."""
    channel = Channel(asyncio.get_running_loop(), ends[0], heard.frames.extend, heard.on_garbled)
    ends[1].close()
    packets = wire.encode(wire.Kind.DROP, 1)
    channel.send(packets)
    assert channel.take_unsent() == packets
    channel.close()


@pytest.mark.parametrize("closes", [False, True])
async def test_a_descriptor_that_cannot_be_sent_yet_is_sent_a_little_later(
    ends: tuple[socket.socket, socket.socket], heard: Heard, monkeypatch: pytest.MonkeyPatch, *, closes: bool
) -> None:
    """Linux lets a user have so many on their way only. What comes behind it waits, too; in vain if nobody waits."""
    channel = Channel(asyncio.get_running_loop(), ends[0], heard.frames.extend, heard.on_garbled)
    refused, send = [3], wire.send

    def refusing(sock: socket.socket, packet: wire.Packet) -> None:
        if isinstance(packet, parcels.Parcel) and refused[0]:
            refused[0] -= 1
            raise OSError(errno.ETOOMANYREFS, "too many")
        send(sock, packet)

    monkeypatch.setattr(wire, "send", refusing)
    monkeypatch.setattr(channel_module, "CROWDED", 0.001)
    channel.send(wire.encode(wire.Kind.CALL, 1, parcels.wrap(bytes(100_000), (), wire.LARGEST)))
    channel.send(wire.encode(wire.Kind.DROP, 2))
    if closes:
        assert len(channel.take_unsent()) == 2
        channel.close()
        return
    decoder, loop, come = wire.Decoder(), asyncio.get_running_loop(), asyncio.Queue[wire.Frame]()

    def receive() -> None:
        if (frame := wire.receive(ends[1], decoder)) is not None:
            come.put_nowait(frame)

    loop.add_reader(ends[1].fileno(), receive)
    frames = [await come.get(), await come.get()]
    loop.remove_reader(ends[1].fileno())
    assert [frame.call for frame in frames] == [1, 2]
    assert frames[0].payload == bytes(100_000)
    assert refused == [0]
    channel.close()


async def test_what_is_sent_again_may_have_to_wait_for_room(
    ends: tuple[socket.socket, socket.socket], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket tells when there is some."""
    loop, send, come = asyncio.get_running_loop(), wire.send, asyncio.Event()
    refusals: list[OSError] = [OSError(errno.ETOOMANYREFS, "too many"), BlockingIOError()]

    def refusing(sock: socket.socket, packet: wire.Packet) -> None:
        if refusals:
            raise refusals.pop(0)
        send(sock, packet)

    monkeypatch.setattr(wire, "send", refusing)
    monkeypatch.setattr(channel_module, "CROWDED", 0.001)
    channel = Channel(loop, ends[0], heard.frames.extend, heard.on_garbled)
    loop.add_reader(ends[1].fileno(), come.set)
    channel.send([b"one"])
    await come.wait()
    loop.remove_reader(ends[1].fileno())
    assert ends[1].recv(wire.PACKET) == b"one"
    assert not loop.remove_writer(ends[0].fileno())
    channel.close()


async def test_it_does_not_ask_all_the_time_whether_a_descriptor_can_be_sent(
    ends: tuple[socket.socket, socket.socket], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket could be written to, also where that came of waiting for it."""
    loop, asked, done = asyncio.get_running_loop(), list[wire.Packet](), asyncio.Event()
    channel = Channel(loop, ends[0], heard.frames.extend, heard.on_garbled)

    def refusing(_sock: socket.socket, packet: wire.Packet) -> None:
        asked.append(packet)
        if len(asked) == 1:
            raise BlockingIOError
        loop.call_soon(done.set)
        raise OSError(errno.ETOOMANYREFS, "too many")

    monkeypatch.setattr(wire, "send", refusing)
    monkeypatch.setattr(channel_module, "CROWDED", 1000)
    channel.send([b"one"])
    await done.wait()
    assert not loop.remove_writer(ends[0].fileno())
    channel.close()


async def test_to_close_it_again_is_nothing(ends: tuple[socket.socket, socket.socket], heard: Heard) -> None:
    """Its descriptor's number may be another's by then, to whom the loop listens."""
    loop = asyncio.get_running_loop()
    channel, number = Channel(loop, ends[0], heard.frames.extend, heard.on_garbled), ends[0].fileno()
    channel.close()
    reader, writer = os.pipe()
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, writer)
        if reader != number:
            os.dup2(reader, number)
            os.close(reader)
        opened.callback(os.close, number)
        read = asyncio.Event()
        loop.add_reader(number, read.set)
        channel.close()
        os.write(writer, b".")
        await read.wait()
        loop.remove_reader(number)
    assert (heard.frames, heard.garbled) == ([], 0)


async def test_it_can_be_read_only_when_it_is_asked_to(ends: tuple[socket.socket, socket.socket], heard: Heard) -> None:
    """And later as before."""
    loop = asyncio.get_running_loop()
    channel = Channel(loop, ends[0], heard.frames.extend, heard.on_garbled)
    channel.pause_reading()
    for number in (1, 2):
        for packet in wire.encode(wire.Kind.RESULT, number):
            wire.send(ends[1], packet)
    await turns()
    assert not heard.frames
    channel.listen()
    assert [frame.call for frame in heard.frames] == [1, 2]
    for packet in wire.encode(wire.Kind.RESULT, 3):
        wire.send(ends[1], packet)
    await turns()
    assert len(heard.frames) == 2
    channel.resume_reading()
    await turns()
    assert [frame.call for frame in heard.frames] == [1, 2, 3]
    channel.close()


async def test_when_it_is_asked_to_it_reads_all_that_has_come(
    ends: tuple[socket.socket, socket.socket], heard: Heard
) -> None:
    """Behind as many reports as it holds may be the end of their call."""
    channel = Channel(asyncio.get_running_loop(), ends[0], heard.frames.extend, heard.on_garbled)
    channel.pause_reading()
    ends[1].setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        for packet in itertools.cycle(wire.encode(wire.Kind.PROGRESS, 1)):
            wire.send(ends[1], packet)
            sent += 1
    channel.listen()
    assert len(heard.frames) == sent > channel_module.MOST_FRAMES
    channel.close()


async def test_of_what_is_no_message_it_reports_once(ends: tuple[socket.socket, socket.socket], heard: Heard) -> None:
    """However it is asked to read on."""
    channel = Channel(asyncio.get_running_loop(), ends[0], heard.frames.extend, heard.on_garbled)
    channel.pause_reading()
    for _ in range(2):
        ends[1].send(b"?")
    channel.listen()
    channel.listen()
    channel.resume_reading()
    await turns()
    assert heard.garbled == 1
    channel.close()


async def turns() -> None:
    """Let the loop look at its descriptors."""
    loop = asyncio.get_running_loop()
    one, other = socket.socketpair()
    with one, other:
        for _ in range(2):
            seen = asyncio.Event()
            loop.add_reader(one, seen.set)
            other.send(b".")
            await seen.wait()
            loop.remove_reader(one)
