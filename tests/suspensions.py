"""Cancel a task at the k-th time that it waits for something: for every k, without a clock.

A coroutine is awaited through `Watched`, which counts its suspensions. A *blow* is what is done at one of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Generator
from typing import Any

import anyio

Task = asyncio.Task[Any]
Awaited = asyncio.Future[Any] | None
Blow = Callable[[Task, Awaited, Task | None], None]
"""Gets the task that is about to wait, what it is about to wait for, and the test's own task."""


class Watched:
    """Awaits a coroutine; calls ``at_suspension`` with the number of each suspension, and what is waited for."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at_suspension: Callable[[int, Awaited], None]) -> None:
        self._coroutine = coroutine
        self._at_suspension = at_suspension

    def __await__(self) -> Generator[Any, Any, Any]:
        send, throw = self._coroutine.send, self._coroutine.throw
        error: BaseException | None = None
        for number in itertools.count(1):
            try:
                awaited = send(None) if error is None else throw(error)
            except StopIteration as end:
                return end.value
            self._at_suspension(number, awaited)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown
        return None


def at_once(task: Task, _awaited: Awaited, _tests: Task | None) -> None:
    """Cancel before anything of what is waited for has come about."""
    task.cancel()


def twice_at_once(task: Task, _awaited: Awaited, _tests: Task | None) -> None:
    """Cancel, and again before the first has arrived."""
    task.cancel()
    task.cancel()


def as_it_ends(task: Task, awaited: Awaited, _tests: Task | None) -> None:
    """Cancel when what is waited for has come about, and the task was not told yet."""
    if awaited is None:
        task.cancel()
    else:
        awaited.add_done_callback(lambda _awaited: task.cancel())


def everything(_task: Task, _awaited: Awaited, tests: Task | None) -> None:
    """Cancel all tasks save the test's own, as the end of `asyncio.run` does."""
    for each in asyncio.all_tasks() - {tests}:
        each.cancel()


class Struck:
    """What has come of a coroutine that was cancelled on its way.

    Attributes:
        way: how it was cancelled.
        suspensions: how often it has waited.
        outcome: what it returned, or the exception that it raised; a CancelledError when that got out.
    """

    def __init__(self) -> None:
        self.way = ""
        self.suspensions = 0
        self.outcome: Any = None

    def __repr__(self) -> str:
        return f"<cancelled {self.way}, {self.suspensions} suspensions: {self.outcome!r}>"

    @property
    def cancelled(self) -> bool:
        """Whether the cancellation got out."""
        return isinstance(self.outcome, asyncio.CancelledError)


async def strike(coroutine: Coroutine[Any, Any, Any], blow: Blow, at: Collection[int]) -> Struck:
    """Run a coroutine in a task of its own, with a blow at its suspensions of these numbers."""
    struck = Struck()

    def at_suspension(number: int, awaited: Awaited) -> None:
        struck.suspensions = number
        if number in at:
            blow(task, awaited, tests)

    tests = asyncio.current_task()
    task = asyncio.create_task(_outcome(Watched(coroutine, at_suspension), struck))
    await asyncio.wait([task])
    assert not task.cancelled()
    task.result()
    return struck


async def strike_by_anyio(coroutine: Coroutine[Any, Any, Any], at: int) -> Struck:
    """The same, in an anyio scope that is cancelled at that suspension, and so again at every later one."""
    struck = Struck()

    def at_suspension(number: int, _awaited: Awaited) -> None:
        struck.suspensions = number
        if number == at:
            scope.cancel()

    async def scoped() -> None:
        with scope:
            await _outcome(Watched(coroutine, at_suspension), struck, again=True)

    scope = anyio.CancelScope()
    await asyncio.create_task(scoped())
    return struck


async def _outcome(watched: Awaitable[Any], struck: Struck, *, again: bool = False) -> None:
    try:
        struck.outcome = await watched
    except Exception as error:
        struck.outcome = error
    except asyncio.CancelledError as error:
        struck.outcome = error
        if again:
            raise


async def each_way(make: Callable[[], Coroutine[Any, Any, Any]], way: str) -> AsyncIterator[Struck]:
    """Strike a fresh coroutine at its first suspension, its second, and so on, until one ends before it is reached.

    Args:
        make: makes the coroutine.
        way: the name of a blow; or "twice", for a second cancellation at every suspension after the first, in turn;
            "again and again", at every one from the k-th on; "anyio", the same by a scope.
    """
    for first in itertools.count(1):
        for last in itertools.count(first + 1) if way == "twice" else (first,):
            if way == "anyio":
                struck = await strike_by_anyio(make(), first)
            elif way == "again and again":
                struck = await strike(make(), at_once, range(first, 1_000_000))
            else:
                struck = await strike(make(), BLOWS[way], {first, last})
            struck.way = f"{way} at {first}, {last}"
            yield struck
            if struck.suspensions < last:
                break
        if struck.suspensions < first:
            return


BLOWS: dict[str, Blow] = {
    "at once": at_once,
    "twice at once": twice_at_once,
    "as it ends": as_it_ends,
    "everything": everything,
    "twice": at_once,
}
WAYS = (*BLOWS, "again and again", "anyio")
