"""Messages, whatever their size."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopool import parcels, wire
from aiopool.parcels import Parcel, Payload, SharedParcel
from aiopool.sharing import Share, Sharing
from aiopool.wire import Decoder, Frame, Kind, WireError

HEADER = wire.HEADER.pack


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has no anonymous memory with descriptors, or no descriptor left."""

    def refuse(_name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A channel's two ends."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def passed(ends: tuple[socket.socket, socket.socket], decoder: Decoder, packets: list[wire.Packet]) -> list[Frame]:
    """Send packets and receive them, one after the other; return the messages that they make up."""
    frames = []
    for packet in packets:
        wire.send(ends[0], packet)
        frame = wire.receive(ends[1], decoder)
        if frame is not None:
            frames.append(frame)
    return frames


numbers = st.integers(0, 2**64 - 1)
sizes = st.one_of(
    st.integers(0, 50), st.integers(wire.LARGEST - 40, wire.LARGEST + 40), st.integers(0, 3 * wire.PACKET)
)
contents = sizes.map(lambda size: os.urandom(size % 97) * (size // 97 + 1)).map(lambda data: data[: len(data) - 1])
messages = st.tuples(st.sampled_from(Kind), numbers, numbers, contents, st.lists(contents, max_size=3))


def check_that_they_come_out(
    ends: tuple[socket.socket, socket.socket], drawn: list[tuple[Kind, int, int, bytes, list[bytes]]]
) -> None:
    """Send messages; compare what arrives."""
    decoder = Decoder()
    for kind, nanoseconds, call, pickled, buffers in drawn:
        payload = parcels.wrap(pickled, list(map(memoryview, buffers)), wire.LARGEST)
        packets = wire.encode(kind, call, payload, nanoseconds)
        assert len(packets) == wire.packets(payload)
        assert wire.call_of(packets[0]) == call
        (frame,) = passed(ends, decoder, packets)
        assert (frame.kind, frame.number, frame.call) == (kind, nanoseconds, call)
        assert (frame.payload, list(frame.buffers)) == (pickled, buffers)


@settings(deadline=None)
@given(drawn=st.lists(messages, max_size=5))
def test_messages_come_out_as_they_went_in(
    ends: tuple[socket.socket, socket.socket], drawn: list[tuple[Kind, int, int, bytes, list[bytes]]]
) -> None:
    """Small ones in one packet, large ones in memory that is passed on."""
    check_that_they_come_out(ends, drawn)


def out_of_memory(_size: int) -> NoReturn:
    """Do as `bytearray` does then."""
    raise MemoryError


@pytest.mark.parametrize("following", [False, True])
def test_a_message_that_there_is_no_memory_for_is_passed_over(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, *, following: bool
) -> None:
    """All of its pieces, also where a descriptor was to come; the next one is whole."""
    parcel = Parcel([[bytes(3 * wire.PACKET)], [b"x"]])
    packets = wire.encode(Kind.RESULT, 7, parcel)
    if following:
        packets[1:] = wire.in_pieces(parcel)
    else:
        parcel.content = parcel.copy()
        parcel.close()
        packets = wire.encode(Kind.RESULT, 7, parcel)
    decoder = Decoder()
    monkeypatch.setattr(wire, "bytearray", out_of_memory, raising=False)
    frames = passed(ends, decoder, [*packets, *wire.encode(Kind.RESULT, 8, b"x")])
    assert [(frame.kind, frame.call, frame.payload) for frame in frames] == [
        (Kind.RESULT, 7, None), (Kind.RESULT, 8, b"x"),
    ]  # fmt: skip


@pytest.mark.usefixtures("no_memory")
def test_large_messages_come_in_pieces_where_there_is_no_memory_to_pass(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Slower, and all the same otherwise."""
    large = bytes(range(256)) * 1000
    for buffers in ([], [large], [large, b"", b"x"]):
        check_that_they_come_out(ends, [(Kind.RESULT, 1, 2, large, buffers)])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("way", ["in memory", "in pieces"])
def test_what_a_call_shares_goes_before_it(
    way: str, request: pytest.FixtureRequest, ends: tuple[socket.socket, socket.socket], *, nested: bool
) -> None:
    """Small and large, each as a message of its own, which can only be read."""
    if way == "in pieces":
        request.getfixturevalue("no_memory")
    home = Forgetful()
    large = Share(3, parcels.wrap(b"pickle", [memoryview(b"x" * 100_000)], wire.LARGEST, kind=SharedParcel), home)
    small = Share(4, Sharing(b"small", [large]) if nested else b"small", home)
    payload = Sharing(b"call", [small] if nested else [large, small])
    packets = wire.encode(Kind.CALL, 5, payload)
    assert len(packets) == wire.packets(payload)
    frames = passed(ends, Decoder(), packets)
    assert [(frame.kind, frame.call, frame.payload) for frame in frames] == [
        (Kind.SHARE, 3, b"pickle"), (Kind.SHARE, 4, b"small"), (Kind.CALL, 5, b"call"),
    ]  # fmt: skip
    assert [bytes(buffer) for buffer in frames[0].buffers] == [b"x" * 100_000]
    assert all(memoryview(part).readonly for part in (frames[0].payload or b"", *frames[0].buffers))


@pytest.mark.parametrize("count", [1, parcels.LARGE, 2 * parcels.MAPPED])
def test_shared_memory_is_not_copied(count: int, ends: tuple[socket.socket, socket.socket]) -> None:
    """Whatever its size, what is written to it is seen by whoever has it."""
    parcel = SharedParcel([[bytes(count)]])
    (frame,) = passed(ends, Decoder(), wire.encode(Kind.SHARE, 1, parcel))
    assert parcel.descriptor is not None
    os.pwrite(parcel.descriptor, b"\7", 0)
    assert isinstance(frame.payload, memoryview)
    assert frame.payload[0] == 7


class Forgetful:
    """Has no workers."""

    def forget(self, share: int) -> None:
        """Do nothing."""


@pytest.mark.usefixtures("no_memory")
def test_a_glimpse_of_a_packet_tells_a_bare_message(ends: tuple[socket.socket, socket.socket]) -> None:
    """From all others, and from pieces, whatever they hold."""
    bare = wire.encode(Kind.DROP, 7)
    assert list(map(wire.is_bare, bare)) == [True]
    header = bytes(bare[0])  # type: ignore[arg-type]
    others = wire.encode(Kind.CALL, 7, b"x")
    for size in (wire.HEADER.size, wire.LARGEST + 1, wire.PACKET, wire.PACKET + wire.HEADER.size):
        others += wire.encode(Kind.CALL, 7, Parcel([[(header * size)[:size]]]))
    for packet in others:
        wire.send(ends[0], packet)
        assert not wire.is_bare(packet)
        assert not wire.is_bare(ends[1].recv(wire.GLIMPSE))


def test_a_message_says_whose_it_is_outside_the_payload(ends: tuple[socket.socket, socket.socket]) -> None:
    """So the payload need not be understood for that."""
    (frame,) = passed(ends, Decoder(), wire.encode(Kind.RESULT, 7, b"not a pickle"))
    assert (frame.kind, frame.call, frame.payload) == (Kind.RESULT, 7, b"not a pickle")


@pytest.mark.usefixtures("no_memory")
def test_pieces_are_received_straight_into_their_buffer() -> None:
    """Without another copy."""
    payload = parcels.wrap(bytes(10 * wire.PACKET), (), wire.LARGEST)
    header, *pieces = wire.encode(Kind.RESULT, 1, payload)
    assert isinstance(header, bytes)
    decoder = Decoder()
    decoder.space[: len(header)] = header
    decoder.filled(len(header))
    assert len(decoder.space) == 10 * wire.PACKET
    decoder.filled(wire.PACKET)
    assert len(decoder.space) == 9 * wire.PACKET
    assert len(pieces) == 10


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"x", "no message has 1 bytes"),
        (bytes(100), "no message begins with byte 0"),
        (bytes([len(Kind) + 1]) + bytes(100), f"no message begins with byte {len(Kind) + 1}"),
        (HEADER(Kind.RESULT, 0, 0, 1, 5) + b"1234", "30 bytes says that it has 31"),
        (HEADER(Kind.RESULT, 0, 0, 1, 5) + b"123456", "32 bytes says that it has 31"),
        (HEADER(Kind.RESULT, 3, 0, 1, 5) + bytes(8), "no message of 34 bytes has the form 3"),
        (HEADER(Kind.RESULT, 1, 0, 1, 5), "no message of 26 bytes has the form 1"),
        (HEADER(Kind.RESULT, 2, 0, 1, 5) + bytes(9), "no message of 35 bytes has the form 2"),
        (HEADER(Kind.RESULT, 1, 0, 1, 64) + bytes(8), r"no parcel of 64 bytes has parts of \[0\] bytes"),
        (HEADER(Kind.RESULT, 1, 0, 1, 2**63) + wire.LENGTH.pack(2**63), f"no parcel of {2**63} bytes has parts of"),
        (HEADER(Kind.RESULT, 1, 0, 1, 0) + bytes(8), "no parcel of 0 bytes"),
    ],
)
def test_what_is_no_message_is_an_error(packet: bytes, message: str, ends: tuple[socket.socket, socket.socket]) -> None:
    """Somebody else has written on the channel."""
    with pytest.raises(WireError, match=message):
        passed(ends, Decoder(), [packet])


def test_the_end_of_a_channel_is_an_error_of_its_own() -> None:
    """It is no news of what was sent."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.close()
    with other, pytest.raises(ConnectionResetError):
        wire.receive(other, Decoder())


def test_a_descriptor_that_cannot_be_taken_loses_its_payload_only(ends: tuple[socket.socket, socket.socket]) -> None:
    """Whose it was is known, and the next message is whole."""
    decoder, lost = Decoder(), wire.encode(Kind.RESULT, 7, Parcel([[bytes(100_000)]]))
    for packet in lost:
        wire.send(ends[0], packet)
    assert wire.receive(ends[1], decoder) is None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        frame = wire.receive(ends[1], decoder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert frame is not None
    assert (frame.kind, frame.call, frame.payload) == (Kind.RESULT, 7, None)
    (following,) = passed(ends, decoder, wire.encode(Kind.RESULT, 8, b"whole"))
    assert (following.call, following.payload) == (8, b"whole")


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_call_carries_two_pickles(function: bytes, arguments: bytes) -> None:
    """They are told apart without being read."""
    payload = wire.function_part(function) + arguments
    assert wire.unpack_call(payload) == (function, arguments)


class Buffer:
    """Pickles as a buffer of its own."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def __reduce_ex__(self, protocol: int) -> tuple[type[bytearray], tuple[pickle.PickleBuffer]]:
        return bytearray, (pickle.PickleBuffer(self.data),)


def test_large_buffers_stay_outside_of_the_pickle() -> None:
    """Small ones are copied more quickly than they are kept apart; of very many, the rest is inside."""
    small, large = Buffer(parcels.LARGE - 1), Buffer(parcels.LARGE)
    pickled, buffers = parcels.dumps([small, large])
    assert [len(buffer) for buffer in buffers] == [parcels.LARGE]
    assert parcels.LARGE <= len(pickled) < parcels.LARGE + 200
    assert len(parcels.dumps([large] * (parcels.MOST_PARTS + 1))[1]) == 1  # the same object again is no other buffer
    many = [Buffer(0) for _ in range(parcels.MOST_PARTS + 1)]
    for each in many:
        each.data = large.data
    assert len(parcels.dumps(many)[1]) == parcels.MOST_PARTS
    assert len(parcels.dumps([small, Buffer(1), Buffer(0)], least=1)[1]) == 2


def test_the_table_of_the_most_parts_fits_in_a_packet(ends: tuple[socket.socket, socket.socket]) -> None:
    """It is sent at once."""
    parts = [memoryview(b"%d" % number) for number in range(parcels.MOST_PARTS)]
    (frame,) = passed(ends, Decoder(), wire.encode(Kind.RESULT, 1, parcels.wrap(b"pickle", parts, wire.LARGEST)))
    assert frame.payload == b"pickle"
    assert list(frame.buffers) == parts


def test_a_parcel_is_a_copy_and_lets_go_of_its_memory() -> None:
    """What happens to the buffer later does not travel."""
    data = bytearray(100_000)
    parcel: Payload = parcels.wrap(b"", [memoryview(data)], wire.LARGEST)
    data[0] = 1
    assert isinstance(parcel, Parcel)
    descriptor = parcel.descriptor
    assert descriptor is not None
    assert os.pread(descriptor, 1, 0) == b"\0"
    del parcel
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_only_so_many_parcels_have_a_descriptor(ends: tuple[socket.socket, socket.socket]) -> None:
    """The rest go in pieces, and a program that has thousands of them waiting can still open its files."""
    kept = [Parcel([[b"x" * 100_000]]) for _ in range(parcels.MOST_DESCRIPTORS + 2)]
    assert [parcel.descriptor is None for parcel in kept] == [False] * parcels.MOST_DESCRIPTORS + [True] * 2
    (frame,) = passed(ends, Decoder(), wire.encode(Kind.RESULT, 1, kept[-1]))
    assert frame.payload == b"x" * 100_000
    other = SharedParcel([[b"x" * 100_000]])
    assert other.descriptor is not None
    kept.clear()
    assert Parcel([[b"x" * 100_000]]).descriptor is not None


@pytest.mark.parametrize("kind", [Parcel, SharedParcel])
def test_a_forked_child_holds_no_parcels_memory(kind: type[Parcel]) -> None:
    """It could live for long; and what it opens later is not closed when the parcel goes there."""
    parcel: Parcel | None = kind([[b"x" * 100_000]])
    assert parcel is not None
    descriptor = parcel.descriptor
    assert descriptor is not None
    if not (pid := os.fork()):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            os._exit(1)
        assert os.dup2(2, descriptor) == descriptor
        parcel = None
        os.fstat(descriptor)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.fstat(descriptor).st_size == parcel.size


@pytest.mark.parametrize("size", [parcels.MAPPED - 64, parcels.MAPPED])
@pytest.mark.parametrize("mappings", ["some", "none"])
def test_what_arrives_can_be_written_to_and_is_the_receivers_own(
    size: int, mappings: str, monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    """Whether its memory is mapped, copied, or cannot be mapped."""
    if mappings == "none":
        monkeypatch.setattr("aiopool.parcels.mmap.mmap", no_mapping)
    parcel = Parcel([[bytes(size)]])
    (frame,) = passed(ends, Decoder(), wire.encode(Kind.RESULT, 1, parcel))
    assert isinstance(frame.payload, memoryview)
    frame.payload[0] = 1
    assert parcel.descriptor is not None
    assert os.pread(parcel.descriptor, 1, 0) == b"\0"
    assert len(frame.payload) == size


def no_mapping(*_args: object, **_options: object) -> None:
    """Refuse a mapping."""
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_where_there_are_no_mappings_packets_go_into_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as any packet."""
    monkeypatch.setattr("aiopool.wire.mmap.mmap", no_mapping)
    assert len(wire.lasting_scratch()) == wire.PACKET


def test_memory_that_cannot_be_read_is_lost_with_its_message_only(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next message is received as ever."""
    decoder = Decoder()
    with monkeypatch.context() as patch:
        patch.setattr(parcels, "_read", no_mapping)
        (lost,) = passed(ends, decoder, wire.encode(Kind.RESULT, 1, Parcel([[b"x" * 100_000]])))
    assert (lost.call, lost.payload) == (1, None)
    (frame,) = passed(ends, decoder, wire.encode(Kind.RESULT, 2, b"value"))
    assert (frame.call, frame.payload) == (2, b"value")


def test_memory_that_was_cut_short_is_no_payload(ends: tuple[socket.socket, socket.socket]) -> None:
    """Whoever has its descriptor could do that; nobody waits for the rest."""
    parcel = Parcel([[b"x" * 100_000]])
    with pytest.raises(OSError, match="cut short"):
        parcels._read(parcel.descriptor or 0, parcel.size + 1)
    del ends


def test_the_parts_of_a_parcel_without_memory_of_its_own_are_the_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be written to, as those of one that has some; the parcel keeps its own."""
    for most in (0, parcels.MOST_DESCRIPTORS):
        monkeypatch.setattr(Parcel, "most", most)
        parcel = Parcel([[b"pickle"], [b"buf", b"fer"]])
        pickled, buffer = parcel.parts()
        buffer[:] = b"BUFFER"
        assert (bytes(pickled), bytes(parcel.parts()[1])) == (b"pickle", b"buffer")
        parcel.close()
