"""What crosses a cluster of Dask: calls on their way, and their answers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from pickle import PickleBuffer
from typing import Any, SupportsIndex

from distributed.protocol.serialize import dask_deserialize, dask_serialize

from .. import wire
from ..parcels import LARGE, Payload

__all__ = ["Answer", "Answered", "Packed", "UnfitError"]


class Packed:
    """A payload on its way through a cluster, where anybody who passes it on may pickle it. It is not copied for that.

    Args:
        parts: the pickle, and what it left outside.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self.parts: Sequence[bytes | memoryview] = parts

    @classmethod
    def of(cls, payload: Payload) -> Packed:
        """Pack a payload."""
        return cls([payload] if isinstance(payload, bytes) else payload.parts())

    def frame(self, kind: int, number: int) -> wire.Frame:
        """Return it as a message that has come."""
        pickled, *buffers = [memoryview(part) for part in self.parts]
        return wire.Frame(kind, 0, number, pickled, buffers)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Packed], tuple[list[bytes | PickleBuffer]]]:
        apart = protocol == 5 or int(protocol) > 5  # noqa: PLR2004 - the first protocol that leaves buffers outside
        parts = [PickleBuffer(part) if apart and len(part) >= LARGE else bytes(part) for part in self.parts]
        return Packed, (parts,)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + sum(map(len, self.parts))


class Answered(enum.Enum):
    """What came of a task."""

    RESULT = "result"
    FAILED = "failed"
    UNFIT = "unfit"
    """The initializer had failed in this worker."""
    TOLD = "told"
    """It is small, and has gone to the pool by itself, before the task's end."""
    REFUSED = "refused"
    """It was not run: another worker had begun it before, or nobody wants it any more."""


class Answer:
    """What a task returns.

    Attributes:
        kind: what has come of it.
        packed: the value or the failure.
        nanoseconds: how long it took.
    """

    __slots__ = ("kind", "nanoseconds", "packed")

    def __init__(self, kind: Answered, packed: Packed, nanoseconds: int = 0) -> None:
        self.kind: Answered = kind
        self.packed: Packed = packed
        self.nanoseconds: int = nanoseconds

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + self.packed.__sizeof__()


# Dask pickles results with a protocol of pickle that copies all buffers, unless it is told how else they travel.


def _frames_of(packed: Packed) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """Return what is told of parts, and the parts; empty ones do not travel."""
    return {"lengths": [len(part) for part in packed.parts]}, [part for part in packed.parts if len(part)]


def _packed_in(header: Mapping[str, Any], frames: Iterable[bytes | memoryview]) -> Packed:
    """Return the parts, which may be written to; a frame that was compressed is read-only."""
    frames = iter(frames)
    parts = [next(frames) if length else b"" for length in header["lengths"]]
    return Packed([part if not memoryview(part).readonly else memoryview(bytearray(part)) for part in parts])


@dask_serialize.register(Packed)  # pyright: ignore[reportUntypedFunctionDecorator]
def _packed_to_frames(packed: Packed) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    return _frames_of(packed)


@dask_deserialize.register(Packed)  # pyright: ignore[reportUntypedFunctionDecorator]
def _frames_to_packed(header: Mapping[str, Any], frames: Iterable[bytes | memoryview]) -> Packed:
    return _packed_in(header, frames)


@dask_serialize.register(Answer)  # pyright: ignore[reportUntypedFunctionDecorator]
def _answer_to_frames(answer: Answer) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    header, frames = _frames_of(answer.packed)
    return {**header, "kind": answer.kind.value, "nanoseconds": answer.nanoseconds}, frames


@dask_deserialize.register(Answer)  # pyright: ignore[reportUntypedFunctionDecorator]
def _frames_to_answer(header: Mapping[str, Any], frames: Iterable[bytes | memoryview]) -> Answer:
    return Answer(Answered(header["kind"]), _packed_in(header, frames), header["nanoseconds"])


class UnfitError(Exception):
    """The initializer has failed in a worker.

    Attributes:
        failure: what it raised; see `aiopool.failures`.
    """

    def __init__(self, failure: bytes) -> None:
        super().__init__(failure)
        self.failure = failure
