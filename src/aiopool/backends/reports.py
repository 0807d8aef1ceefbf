"""What is made of the messages of workers, and of the ends of calls."""

from __future__ import annotations

from .. import failures, wire
from ..calls import CANCELLED, Call, Outcome, Reply
from ..exceptions import InitializerError, not_received
from ..hooks import CallEnded
from ..stats import end_of

__all__ = ["ANSWERS", "VALUE", "ended", "failure_of", "reply_in"]

NANO = 1_000_000_000

VALUE, RESULT, FAILED = int(wire.Kind.VALUE), int(wire.Kind.RESULT), int(wire.Kind.FAILED)
ANSWERS = (RESULT, FAILED)
"""Each call has one of these; a member of an enumeration takes longer to look up and to compare."""


def ended(call: Call, outcome: Outcome, now: float) -> CallEnded:
    """Return what hooks are told of a call that has ended."""
    if isinstance(outcome, Reply):
        waited = max(0.0, now - call.submitted - outcome.seconds)
        return CallEnded(call.id, call.name, end_of(outcome), waited, outcome.seconds)
    error = None if outcome is CANCELLED else outcome
    return CallEnded(call.id, call.name, end_of(outcome), error=error)


def reply_in(frame: wire.Frame) -> tuple[int, Reply]:
    """Return the number of a call, and the answer to it that is in a message."""
    seconds = frame.number / NANO
    if frame.payload is None:
        return frame.call, Reply(True, failures.encode(not_received("the result")), (), seconds)
    return frame.call, Reply(frame.kind == FAILED, frame.payload, frame.buffers, seconds)


def failure_of(payload: bytes | memoryview | None) -> InitializerError:
    """Return the error for what a worker says of its initializer's."""
    error = InitializerError("the initializer failed in a worker")
    if payload is None:
        error.__cause__ = not_received("what it raised")
        return error
    try:
        error.__cause__ = failures.decode(payload, None)
    except Exception as garbled:  # noqa: BLE001 - a job has written this, and nobody will ever see it
        error.__cause__ = garbled
    return error
