"""What a result does with outcomes that are hard to come by in a real pool."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from aiopool import AioPoolError, AsyncResult, InitializerError, NotPicklable, WorkerDied, failures, wire
from aiopool.backends.reports import failure_of, reply_in
from aiopool.calls import Reply
from aiopool.pickling import PLAIN
from aiopool.results import open_outcome
from test_failures import interrupt


class Interrupts:
    """Raises KeyboardInterrupt where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return interrupt, ()


def test_ctrl_c_while_a_result_is_unpickled_ends_the_call_and_goes_on() -> None:
    """Neither is the call left hanging, nor the interrupt swallowed."""
    delivered: list[BaseException | None] = []
    with pytest.raises(KeyboardInterrupt):
        open_outcome(
            Reply(failed=False, payload=pickle.dumps(Interrupts())),
            PLAIN,
            "f",
            lambda _value, error: delivered.append(error),
        )
    assert isinstance(delivered[0], NotPicklable)
    assert isinstance(delivered[0].__cause__, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("exitcode", "text"),
    [
        (-9, "worker process 5 was killed by SIGKILL while running f"),
        (-40, "worker process 5 was killed by signal 40 while running f"),
        (3, "worker process 5 exited with code 3 while running f"),
        (None, "worker process 5 went away, exit code unknown while running f"),
    ],
)
def test_a_death_says_how_it_came(exitcode: int | None, text: str) -> None:
    """By code, by signal, or unknown."""
    died = WorkerDied(5, exitcode, "f")
    assert str(died) == text
    assert vars(pickle.loads(pickle.dumps(died))) == vars(died)


def test_no_result_is_a_task() -> None:
    """asyncio.run cancels all tasks as it ends; results are not among them."""
    assert issubclass(AsyncResult, asyncio.Future)
    assert not issubclass(AsyncResult, asyncio.Task)


def test_a_result_whose_memory_could_not_be_taken_is_a_failure() -> None:
    """Of its own call, and it says why."""
    call, reply = reply_in(wire.Frame(wire.Kind.RESULT, 2_000_000_000, 7, None))
    assert (call, reply.failed, reply.seconds) == (7, True, 2.0)
    error = failures.decode(bytes(reply.payload), None)
    assert isinstance(error, AioPoolError)
    assert "the result could not be received: this process has no memory or descriptor left" in str(error)


def test_an_initializers_failure_whose_memory_could_not_be_taken_says_why() -> None:
    """It is the pool's error all the same."""
    error = failure_of(None)
    assert isinstance(error, InitializerError)
    assert "what it raised could not be received: this process has no memory" in str(error.__cause__)


async def test_ctrl_c_while_a_result_is_unpickled_in_a_loop_comes_when_all_is_done() -> None:
    """What else has arrived with it is not lost."""
    loop, delivered = asyncio.get_running_loop(), list[BaseException | None]()
    raised = loop.create_future()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("aiopool.interruptions._raise", raised.set_result)
        payload = pickle.dumps(Interrupts())
        open_outcome(Reply(failed=False, payload=payload), PLAIN, "f", lambda _, error: delivered.append(error))
        assert isinstance(delivered[0], NotPicklable)
        assert isinstance(await raised, KeyboardInterrupt)
