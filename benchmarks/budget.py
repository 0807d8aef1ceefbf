"""The budget of one call, step by step: what the parent and the worker do for it, each measured by itself.

    python -m benchmarks.budget

The steps are those of a real call, done over and over again in this thread. What the kernel does to wake processes, and
what caches lose by that, is not in it. Printed is the least of several rounds, in microseconds.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, NamedTuple, cast

from aiopool import AioPool, wire
from aiopool.backends.local import LocalBackend
from aiopool.calls import Call, Reply
from aiopool.dispatch import Dispatcher
from aiopool.pickling import PLAIN
from aiopool.recycling import RecyclePolicy
from aiopool.results import AsyncResult
from aiopool.stats import Tally
from aiopool.worker import job
from aiopool.worker.current import Calls

__all__ = ["main"]

CALLS = 2000
"""In a round."""

ROUNDS = 15

BATCH = 64
"""Answers that come at once, as they do in a burst."""


class Step(NamedTuple):
    """What is done for each call.

    Attributes:
        name: what it is.
        prepare: makes what each of so many calls needs; not timed.
        act: does it for one call.
    """

    name: str
    prepare: Callable[[int], Sequence[Any]]
    act: Callable[[Any], object]


def measure(step: Step) -> float:
    """Return microseconds for a call, without those of the loop around it."""

    def time(act: Callable[[Any], object], needs: Iterable[Any]) -> float:
        begun = perf_counter()
        for need in needs:
            act(need)
        return perf_counter() - begun

    least = min(time(step.act, step.prepare(CALLS)) for _ in range(ROUNDS))
    nothing = min(time(lambda _need: None, range(CALLS)) for _ in range(ROUNDS))
    return (least - nothing) / CALLS * 1e6


class Ends:
    """Two connected sockets, of the kind that channels are made of."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.decoder = wire.Decoder()

    def send(self, packet: bytes) -> None:
        """Send, and take it away again."""
        wire.send(self.near, packet)

    def receive(self, packet: bytes) -> None:
        """Receive what is sent just before."""
        self.far.send(packet)
        wire.receive(self.near, self.decoder)


class NoControl:
    """Interrupts nothing."""

    current: int | None = None
    interrupted = None

    def begin(self, call: int) -> None:
        """A call begins."""
        self.current = call

    def end(self) -> None:
        """It has ended."""
        self.current = None


def steps_of_the_parent(pool: AioPool) -> list[Step]:
    """Return what the parent does, in this order."""
    packer, backend = pool._engine.packer, cast("LocalBackend", pool._backend)  # noqa: SLF001 - they are looked into
    answer = pickle.dumps(1, protocol=5)
    message = wire.encode(wire.Kind.RESULT, 1, answer, 1000)[0]

    def results(count: int) -> list[AsyncResult[Any]]:
        return [AsyncResult(backend, "abs") for _ in range(count)]

    def make(result: AsyncResult[Any]) -> Call:
        return packer.make(packer.find(abs), (-1,), {}, result.finish, pool._limits, ())  # noqa: SLF001

    def calls(count: int) -> list[Call]:
        return list(map(make, results(count)))

    ends, dispatching, tally = Ends(), Dispatching(), Tally()
    done = Reply(failed=False, payload=answer)
    return [
        Step("check the arguments", range, lambda _: pool._prepare(abs, (-1,), None)),  # noqa: SLF001
        Step("make the future", range, lambda _: AsyncResult(backend, "abs")),
        Step("pickle the arguments, make the call", results, make),
        Step("decide: whom to send it to", dispatching.submissions, dispatching.submit),
        Step("encode it", calls, lambda call: wire.encode(wire.Kind.CALL, call.id, call.payload)),
        Step("receive and decode an answer (with a send)", range, lambda _: ends.receive(cast("bytes", message))),
        Step(f"decide what follows, {BATCH} answers at once", dispatching.batches, dispatching.reply),
        Step("count it", calls, lambda call: tally.ended(call, done, 1.0)),
        Step("unpickle the value, end the future", results, lambda each: each.finish(done)),
    ]


class Dispatching:
    """A dispatcher whose worker is always in the midst of something short."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(1, RecyclePolicy(), depth=10**9)
        self.dispatcher.start(0.0)
        self.dispatcher.ready(1, 0.0)

    def submissions(self, count: int) -> list[Call]:
        """Return calls that are to come."""
        self._finish_all()
        made = [Call("abs", b"payload", lambda _outcome: None) for _ in range(count)]
        for call in made:
            call.pace.seconds = 0.0
        return made

    def submit(self, call: Call) -> None:
        """One comes."""
        self.dispatcher.submit(call, 0.0)

    def batches(self, count: int) -> list[list[tuple[int, Reply]] | None]:
        """Return batches of answers to calls that have been sent, each in the place of its last one."""
        calls = self.submissions(count)
        for call in calls:
            self.submit(call)
        replies = [(call.id, Reply(failed=False, payload=b"value")) for call in calls]
        return [replies[end - BATCH : end] if end % BATCH == 0 else None for end in range(1, count + 1)]

    def reply(self, batch: list[tuple[int, Reply]] | None) -> None:
        """A batch comes."""
        if batch is not None:
            self.dispatcher.replied(1, batch, 0.0)

    def _finish_all(self) -> None:
        """Answer what is left."""
        left = list(self.dispatcher.workers[1].calls)
        if left:
            self.dispatcher.replied(1, [(call.id, Reply(failed=False, payload=b"value")) for call in left], 0.0)


def steps_of_the_worker(pool: AioPool) -> list[Step]:
    """Return what a worker does, in this order."""
    packer = pool._engine.packer  # noqa: SLF001 - see above
    call = packer.make(packer.find(abs), (-1,), {}, lambda _outcome: None, pool._limits, ())  # noqa: SLF001
    payload = cast("bytes", call.payload)
    message = wire.encode(wire.Kind.CALL, call.id, payload)[0]
    frame = wire.Frame(wire.Kind.CALL, 0, call.id, payload)
    control, ends = cast("Calls", NoControl()), Ends()
    answer = job.run(frame, control, PLAIN)
    return [
        Step("receive and decode a call (with a send)", range, lambda _: ends.receive(cast("bytes", message))),
        Step("unpickle it, run it, pickle the value", range, lambda _: job.run(frame, control, PLAIN)),
        Step("encode the answer", range, lambda _: wire.encode(answer.kind, 1, answer.payload, answer.nanoseconds)),
    ]


async def measure_all() -> None:
    """Measure and print."""
    async with AioPool(1) as pool:
        for who, steps in (("parent", steps_of_the_parent(pool)), ("worker", steps_of_the_worker(pool))):
            total = 0.0
            for step in steps:
                spent = measure(step)
                total += spent
                print(f"{who:8} {step.name:48} {spent:6.2f}")
            print(f"{who:8} {'all of that':48} {total:6.2f}\n")


def main() -> None:
    """Do all that."""
    asyncio.run(measure_all())


if __name__ == "__main__":
    main()
