"""Frames, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopool import wire
from aiopool.wire import Decoder, Frame, Kind, WireError


def feed(decoder: Decoder, data: bytes) -> list[Frame]:
    """Receive these bytes as a reader does."""
    frames = []
    while data:
        space = decoder.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        data = data[count:]
        frames += decoder.filled(count)
    return frames


payloads = st.one_of(
    st.binary(max_size=50),
    st.integers(wire.SCRATCH - 40, wire.SCRATCH + 40).map(bytes),
    st.integers(0, 3 * wire.SCRATCH).map(lambda size: b"." * size),
)
messages = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), payloads), max_size=8)


@given(messages, st.data())
def test_frames_come_out_as_they_went_in(messages: list[tuple[Kind, int, bytes]], data: st.DataObject) -> None:
    """Wherever the stream is cut, and whatever the sizes."""
    stream = b"".join(b"".join(wire.encode(kind, call, payload)) for kind, call, payload in messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=30)))
    decoder, frames = Decoder(), []
    for begin, end in itertools.pairwise([0, *cuts, len(stream)]):
        frames += feed(decoder, stream[begin:end])
    assert frames == messages


def test_a_frame_says_whose_it_is_outside_the_payload() -> None:
    """So the payload need not be understood for that."""
    (frame,) = feed(Decoder(), b"".join(wire.encode(Kind.RESULT, 7, b"not a pickle")))
    assert (frame.kind, frame.call, bytes(frame.payload)) == (Kind.RESULT, 7, b"not a pickle")


def test_a_large_payload_is_not_copied() -> None:
    """Its rest is received straight into its own buffer."""
    decoder = Decoder()
    header, payload = wire.encode(Kind.RESULT, 1, bytes(10 * wire.SCRATCH))
    feed(decoder, header + payload[:100])
    assert len(decoder.space()) == 10 * wire.SCRATCH - 100
    (frame,) = feed(decoder, payload[100:])
    assert isinstance(frame.payload, bytearray)


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_what_is_no_frame_is_an_error(kind: int) -> None:
    """Somebody else has written on the channel."""
    with pytest.raises(WireError, match=f"no frame begins with byte {kind}"):
        feed(Decoder(), bytes([kind]) + bytes(100))


def test_a_length_beyond_all_memory_is_an_error() -> None:
    """Not a crash of whoever reads it."""
    with pytest.raises(WireError, match="no memory"):
        feed(Decoder(), wire.HEADER.pack(Kind.RESULT, 1, 2**63))


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_call_carries_two_pickles(function: bytes, arguments: bytes) -> None:
    """They are told apart without being read."""
    parts = wire.pack_call(function, arguments)
    assert tuple(map(bytes, wire.unpack_call(b"".join(parts)))) == (function, arguments)
    assert wire.length(parts) == len(b"".join(wire.encode(Kind.CALL, 1, *parts)))
