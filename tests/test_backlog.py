"""The queue of calls, some of which end where they wait."""

from __future__ import annotations

from aiopool.backlog import MOST_ENDED, Backlog
from aiopool.calls import Call, CallPhase


def new_call() -> Call:
    """Return a call that waits for nothing yet."""
    return Call("job", b"arguments", lambda _: None)


def test_calls_that_ended_in_the_middle_are_passed_over() -> None:
    """The others keep their order."""
    backlog, calls = Backlog(), [new_call() for _ in range(3)]
    for call in calls:
        backlog.put(call)
    calls[0].phase = calls[1].phase = CallPhase.ENDED
    backlog.forget_one()
    backlog.forget_one()
    assert backlog.waiting == 1
    assert backlog.take() is calls[2]
    assert backlog.waiting == 0


def test_calls_that_have_ended_are_let_go_when_there_are_too_many_of_them() -> None:
    """They would stay for as long as nobody takes the first, which may be for ever."""
    backlog, calls = Backlog(), [new_call() for _ in range(MOST_ENDED + 3)]
    for call in calls:
        backlog.put(call)
    for call in calls[1:]:
        call.phase = CallPhase.ENDED
        backlog.forget_one()
    assert len(backlog._calls) < MOST_ENDED
    assert backlog.waiting == 1
    assert backlog.first() is calls[0]
