"""What crosses between processes, and what does not: values, exceptions, and their refusals to be pickled."""

from __future__ import annotations

import asyncio
import functools
import gc
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

import jobs
from aiopool import AioPool, AioPoolError, CallAborted, NotPicklable, RemoteTraceback

pytestmark = pytest.mark.both_loops

T = TypeVar("T")


@pytest.fixture
async def pool():
    """A pool of one, so that the next call meets the same worker."""
    async with AioPool(1) as pool:
        pid = await pool.apply(jobs.pid_of)
        yield pool
        assert await pool.apply(jobs.pid_of) == pid, "the worker did not live on"


async def test_an_unpicklable_function_raises_at_the_call(pool: AioPool) -> None:
    """Before anything is sent, and in the caller's own line, also where no await is."""
    with pytest.raises(NotPicklable) as caught:
        pool.apply_async(lambda: 1)
    assert caught.value.what == "function"
    assert "<lambda>" in str(caught.value)


async def test_an_unpicklable_argument_raises_at_the_call(pool: AioPool) -> None:
    """The error says what could not be pickled, and keeps the pickler's own."""
    with pytest.raises(NotPicklable, match=r"the arguments of same could not be .*lock") as caught:
        await pool.apply(jobs.same, (threading.Lock(),))
    assert caught.value.what == "arguments"
    assert isinstance(caught.value.__cause__, TypeError)


async def test_what_cannot_be_pickled_takes_no_worker(pool: AioPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, and nobody is counted busy."""
    with monkeypatch.context() as patched:
        patched.setattr("aiopool.backends.channel.Channel.send", lambda *_: pytest.fail("something was sent"))
        for verb in (pool.apply_async, pool.map_async, pool.submit):
            with pytest.raises(NotPicklable):
                verb(jobs.same, [threading.Lock()])
        assert repr(pool) == "<AioPool running: 1 workers, 0 busy, 0 calls waiting>"


async def test_an_unpicklable_result_is_a_clear_error(pool: AioPool) -> None:
    """It fails its call; the worker lives."""
    with pytest.raises(NotPicklable, match=r"the result of unpicklable_result could not be .*lock") as caught:
        await pool.apply(jobs.unpicklable_result)
    assert caught.value.what == "result"
    assert "in dumps" in caught.value.original_traceback


async def test_an_unpicklable_exception_keeps_type_text_and_traceback(pool: AioPool) -> None:
    """It arrives as NotPicklable with all that there is to know of the original."""
    with pytest.raises(NotPicklable) as caught:
        await pool.apply(raise_lock)
    error = caught.value
    assert (error.what, error.call, error.original_type) == ("exception", "raise_lock", "jobs.KeepsLock")
    assert "gone wrong" in error.original_text
    assert "in raise_lock" in error.original_traceback


def raise_lock() -> None:
    """Raise what cannot be pickled."""
    raise jobs.KeepsLock("gone wrong")


def raise_bad_state() -> None:
    """Raise what cannot be unpickled."""
    raise jobs.BadState("gone wrong")


def raise_reduces_to_none() -> None:
    """Raise what breaks the protocol."""
    raise jobs.ReducesToNone("gone wrong")


def raise_reduces_to_exit() -> None:
    """Raise what leaves while it is pickled."""
    raise jobs.ReducesToExit("gone wrong")


@pytest.mark.parametrize(
    ("job", "kind", "text"),
    [
        (jobs.fail_two_arguments, "jobs.TwoArguments", "1 and 2"),
        (raise_bad_state, "jobs.BadState", "gone wrong"),
        (raise_reduces_to_none, "jobs.ReducesToNone", "gone wrong"),
        (raise_reduces_to_exit, "jobs.ReducesToExit", "gone wrong"),
    ],
)
async def test_an_exception_that_breaks_pickling_fails_one_call(
    pool: AioPool, job: Callable[[], None], kind: str, text: str
) -> None:
    """A custom ``__init__``, a raising ``__setstate__``, a ``__reduce__`` that returns None or exits."""
    with pytest.raises(NotPicklable) as caught:
        await pool.apply(job)
    assert (caught.value.original_type, caught.value.original_text) == (kind, text)


async def test_an_exception_that_cannot_be_looked_at_fails_one_call(pool: AioPool) -> None:
    """It tells at least its type and its text; in a stream, too."""
    with pytest.raises(NotPicklable) as caught:
        await pool.apply(raise_odd)
    assert (caught.value.original_type, caught.value.original_text) == ("test_outcomes.OddException", "gone wrong")
    with pytest.raises(NotPicklable):
        [value async for value in pool.imap(raise_odd, [1])]


class OddException(Exception):
    """Raises whatever it is asked."""

    def __getattribute__(self, name: str) -> object:
        raise LookupError(name)


def raise_odd(_item: object = None) -> None:
    """Raise what cannot be looked at."""
    raise OddException("gone wrong")


async def test_a_result_that_does_not_unpickle_here_fails_its_call_only(pool: AioPool) -> None:
    """The value's own error is the cause."""
    bad, good = pool.submit(jobs.make_unpickles_never_in_parent), pool.submit(jobs.square, 3)
    with pytest.raises(NotPicklable, match="the result of make_unpickles_never_in_parent") as caught:
        await bad
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert await good == 9


async def test_arguments_that_do_not_unpickle_in_the_worker_fail_their_call_only(pool: AioPool) -> None:
    """Each of the next ten calls gets its own answer."""
    for _ in range(3):
        bad = pool.submit(jobs.same, jobs.UnpicklesNever("worker"))
        good = [pool.submit(jobs.square, number) for number in range(10)]
        with pytest.raises(NotPicklable, match="the arguments of same") as caught:
            await bad
        assert caught.value.original_type == "ArithmeticError"
        assert [await result for result in good] == [number**2 for number in range(10)]


async def test_a_function_that_returns_an_exception_returns_it(pool: AioPool) -> None:
    """It is a value like any other."""
    value = await pool.apply(jobs.same, (ValueError("no error"),))
    assert isinstance(value, ValueError)
    assert await pool.map(jobs.same, [KeyError("k")] * 2, chunksize=2)


async def test_an_ordinary_exception_arrives_as_itself_with_the_workers_traceback(pool: AioPool) -> None:
    """Its cause is the traceback as it stood in the worker, which a log shows; the pool's own frames are left out."""
    with pytest.raises(ValueError, match="3") as caught:
        await pool.apply(jobs.fail_at, (3,))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    printed = "".join(traceback.format_exception(caught.value))
    assert "in fail_at" in printed
    assert "worker/job.py" not in printed


async def test_a_cause_and_notes_are_kept(pool: AioPool) -> None:
    """``raise X from Y`` keeps Y behind the worker's traceback."""
    with pytest.raises(ValueError, match="outer") as caught:
        await pool.apply(jobs.raise_from)
    assert caught.value.__notes__ == ["a note"]
    remote = caught.value.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert repr(remote.__cause__) == "KeyError('inner')"
    assert repr(caught.value.__context__) == "KeyError('inner')"


async def test_a_context_is_kept(pool: AioPool) -> None:
    """An exception raised while another was handled keeps that one."""
    with pytest.raises(ValueError, match="outer") as caught:
        await pool.apply(jobs.raise_in_except)
    assert repr(caught.value.__context__) == "KeyError('inner')"


async def test_a_group_keeps_its_members_chains_and_one_that_does_not_pickle_harms_no_other(pool: AioPool) -> None:
    """Each member arrives by itself."""
    with pytest.raises(ExceptionGroup, match="several") as caught:
        await pool.apply(jobs.raise_group)
    first, second = caught.value.exceptions
    assert caught.value.__notes__ == ["a group's note"]
    assert repr(first) == "ValueError('outer')"
    assert repr(first.__cause__) == "KeyError('inner')"
    assert isinstance(second, NotPicklable)
    assert second.original_type == "jobs.TwoArguments"


HARMFUL = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError("x"), StopIteration(1),
           StopAsyncIteration(2)]  # fmt: skip


@pytest.mark.parametrize("error", HARMFUL, ids=repr)
async def test_an_exception_that_would_harm_the_caller_arrives_wrapped(pool: AioPool, error: BaseException) -> None:
    """Neither does it stop the loop, nor vanish in a task group, nor is it refused by the future."""
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.apply(jobs.fail, (error,)))
    (aborted,) = caught.value.exceptions
    assert isinstance(aborted, CallAborted)
    assert type(aborted.__cause__) is type(error)
    assert type(error).__name__ in str(aborted)
    with pytest.raises(CallAborted):
        await pool.map(jobs.fail, [error])
    with pytest.raises(CallAborted):
        [value async for value in pool.imap(jobs.fail, [error])]


async def test_a_base_exception_of_the_users_own_arrives_as_itself(pool: AioPool) -> None:
    """Only those that mean something else to asyncio are wrapped."""
    with pytest.raises(OwnBaseException):
        await pool.apply(jobs.fail, (OwnBaseException(1),))


class OwnBaseException(BaseException):
    """Not an Exception."""


async def test_a_function_is_what_has_its_name_in_the_worker_now(start_method: str) -> None:
    """It travels as a name, also when the worker knows it already."""
    async with AioPool(1, context=start_method) as pool:
        assert [await pool.apply(jobs.square, (3,)) for _ in range(3)] == [9, 9, 9]
        await pool.apply(jobs.put_in_place, ("square", jobs.cube))
        assert [await pool.apply(jobs.square, (3,)) for _ in range(3)] == [27, 27, 27]
        await pool.apply(jobs.put_in_place, ("square", None))
        with pytest.raises(TypeError, match="not callable"):
            await pool.apply(jobs.square, (3,))


async def test_arguments_travel_as_they_are_at_the_call(pool: AioPool) -> None:
    """They are pickled before the call returns, so what happens to them later does not matter."""
    numbers = [1, 2, 3]
    blocking = pool.submit(jobs.square, 2)
    result = pool.submit(jobs.total, numbers)
    mapped = pool.map_async(jobs.total, [numbers, numbers])
    numbers.append(1000)
    await blocking
    assert (await result, await mapped) == (6, [6, 6])


async def test_callables_of_all_kinds_are_called(pool: AioPool) -> None:
    """Partials, bound methods, classes, builtins."""
    assert await pool.apply(functools.partial(jobs.add, 1, c=5), (2,)) == 8
    assert await pool.apply("abc".upper) == "ABC"
    assert await pool.apply(jobs.TwoArguments.mro) == jobs.TwoArguments.mro()
    assert await pool.apply(dict, (), {"a": 1}) == {"a": 1}
    assert await pool.apply(pow, (2, 10)) == 1024


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 40, 64 * 1024, 64 * 1024 + 1, 3_000_000])
async def test_values_of_every_size_go_both_ways(pool: AioPool, size: int) -> None:
    """Below, at and above the size from which a payload is received into a buffer of its own."""
    value = bytes(size)
    assert await pool.apply(jobs.same, (value,)) == value


async def test_the_errors_can_be_pickled_themselves(pool: AioPool) -> None:
    """A job may hand them on from a pool of its own."""
    error = NotPicklable("result", "f", "TypeError", "no", "tb")
    copy: Any = await pool.apply(jobs.same, (error,))
    assert vars(copy) == vars(error)
    assert str(pickle.loads(pickle.dumps(RemoteTraceback("text")))) == '\n"""\ntext"""'


class Argument:
    """What a call may hold in memory."""


def refuse(_item: object) -> None:
    """Fail without keeping what was given."""
    raise ValueError("refused")


def refuse_to_unpickle(_item: object) -> object:
    """Return what raises when it arrives."""
    return jobs.make_unpickles_never_in_parent()


def die(_item: object) -> None:
    """Take the worker along."""
    jobs.kill_self()


async def give_and_break(item: object) -> AsyncIterator[object]:
    """Be an input that raises."""
    yield item
    raise ValueError("broke")


async def give(*items: T) -> AsyncIterator[T]:
    """Be an input."""
    for item in items:
        yield item


async def map_without_room(item: object) -> None:
    """Refuse a map once its input is read."""
    async with AioPool(1, max_pending=1) as pool:
        await pool.map_async(jobs.pid_of, give(item, item, item), chunksize=1)


async def wait_for_room(verb: Callable[[AioPool], Awaitable[object]]) -> None:
    """Wait in vain for room in a pool that is terminated."""
    async with AioPool(1, max_pending=1) as pool:
        pool.submit(signal.pause)
        pool.submit(jobs.pid_of)
        asyncio.get_running_loop().call_soon(pool.terminate)
        await verb(pool)


FAILING: dict[str, Callable[[AioPool, Any], Awaitable[object]]] = {
    "apply": lambda pool, item: pool.apply(refuse, (item,)),
    "get": lambda pool, item: pool.submit(refuse, item).get(),
    "map": lambda pool, item: pool.map(refuse, [item]),
    "map of an input that breaks": lambda pool, item: pool.map(jobs.pid_of, give_and_break(item)),
    "imap": lambda pool, item: anext(pool.imap(refuse, [item])),
    "imap of an input that breaks": lambda pool, item: second(pool.imap(jobs.pid_of, give_and_break(item))),
    "imap of an item that cannot be pickled": lambda pool, item: anext(pool.imap(refuse, [(item, lambda: 1)])),
    "map without room": lambda _pool, item: map_without_room(item),
    "map that waits for room": lambda _, item: wait_for_room(lambda pool: pool.map(jobs.pid_of, [item, item])),
    "apply that waits for room": lambda _, item: wait_for_room(lambda pool: pool.apply(jobs.pid_of, (item,))),
    "apply, and a result that does not unpickle": lambda pool, item: pool.apply(refuse_to_unpickle, (item,)),
    "apply, and a worker that dies": lambda pool, item: pool.apply(die, (item,)),
    "imap, and a worker that dies": lambda pool, item: anext(pool.imap(die, [item])),
}


async def second(stream: AsyncIterator[T]) -> T:
    """Return the second value."""
    await anext(stream)
    return await anext(stream)


@pytest.mark.parametrize("how", FAILING)
async def test_a_failure_that_was_handled_keeps_nothing_alive(how: str) -> None:
    """What the call was given goes when the exception does, and not only when the garbage is collected."""

    async def fail(pool: AioPool) -> weakref.ref[Argument]:
        item = Argument()
        try:
            await FAILING[how](pool, item)
        except (ValueError, AioPoolError):
            return weakref.ref(item)
        pytest.fail("it did not raise")

    async with AioPool(1) as pool:
        gc.disable()
        try:
            argument = await fail(pool)
            await pool.apply(jobs.pid_of)
            assert argument() is None
        finally:
            gc.enable()
