"""The chaos program's clients: they make calls in every way that a pool offers, and cancel some of them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any, NamedTuple, TypeVar

from chaos_jobs import (
    ENDLESS,
    Answer,
    Order,
    content,
    generate,
    generate_on_loop,
    perform,
    perform_on_loop,
    perform_parts,
    perform_parts_on_loop,
)
from chaos_ledger import KINDS, Ledger

from aiopool import AioPool, ImapIterator, PoolFull, PoolNotRunning, ResultTimeout

T = TypeVar("T")

LARGEST = 50_000_000

ALONE = {
    "value": 76, "raise": 6, "exit": 2, "kill": 2, "crash": 1.5, "bomb": 1.5, "abandon": 1, "leak": 1, "starve": 1,
    "hoard": 1, "spin": 2, "sleep": 2, "resist": 1, "child": 1.5,
}  # fmt: skip
"""The fates of single calls, with their weights."""

TOGETHER = {"value": 97, "raise": 0.5, "starve": 0.2, "exit": 0.3, "kill": 0.3, "bomb": 0.3, "leak": 0.2, "sleep": 0.3}
"""Those of the items of a map or a stream."""

THE_END = {"closed", "cut off", "terminated", "broken"}
"""What a client hears when the pool takes no more calls."""


class Terms(NamedTuple):
    """What a call was promised."""

    given: dict[str, Any]
    """Arguments of the verb."""
    timeout: float | None
    tries: int

    @property
    def possible(self) -> set[str]:
        """How it may end because of them."""
        return set() if self.timeout is None else {"timed out"}


class Client:
    """Makes one call after the other until the pool takes no more.

    Args:
        pool: to be used.
        terms: what the pool promises to calls that do not ask for anything else.
        journal: where jobs note that they run.
        ledger: is told of every call and its end.
        verbs: counts which verbs were used.
        chance: decides.
        bounded: whether a call may be refused because too many wait.
        most: how many items a map may have.
        coroutines: which part of the calls are coroutines or generators.
    """

    def __init__(
        self,
        pool: AioPool,
        terms: Terms,
        journal: str,
        ledger: Ledger,
        verbs: Counter[str],
        chance: random.Random,
        *,
        bounded: bool,
        most: int,
        coroutines: float = 0.0,
    ) -> None:
        self._pool = pool
        self._terms = terms
        self._journal = journal
        self._ledger = ledger
        self._verbs = verbs
        self._chance = chance
        self._refusable = {"refused"} if bounded else set()
        self._most = most
        self._coroutines = coroutines
        self.over = False

    async def run(self) -> None:
        """Make calls."""
        deeds = [self.apply, self.apply, self.apply_async, self.map, self.map_async, self.stream]
        while not self.over:
            if self._coroutines and self._chance.random() < self._coroutines / 5:
                await self.generate()
            else:
                await self._chance.choice(deeds)()

    # Chance.

    def _choose_terms(self, longest: float) -> Terms:
        if self._chance.random() < 0.5:
            return self._terms
        timeout = self._chance.choice([None, self._chance.uniform(0.01, longest)])
        retries = self._chance.choice([0, 0, 2])
        return Terms({"timeout": timeout, "retries": retries}, timeout, 1 + retries)

    def _on_loop(self) -> bool:
        return bool(self._coroutines) and self._chance.random() < self._coroutines

    def _job(self) -> Any:
        return perform_on_loop if self._on_loop() else perform

    def _job_of_parts(self) -> Any:
        return perform_parts_on_loop if self._on_loop() else perform_parts

    def _choose_patience(self) -> float | None:
        return self._chance.expovariate(20) if self._chance.random() < 0.2 else None

    def _size(self) -> int:
        return int(LARGEST ** self._chance.random()) if self._chance.random() < 0.04 else self._chance.randint(0, 2000)

    def _order(self, fates: dict[str, float]) -> Order:
        number = self._ledger.next_number()
        (fate,) = self._chance.choices([*fates], [*fates.values()])
        return Order(self._journal, number, fate, self._size(), content(number, self._size()))

    def _orders(self, terms: Terms) -> list[Order]:
        orders = [self._order(TOGETHER) for _ in range(self._chance.randint(0, self._most))]
        if terms.timeout is None:  # nothing would end them
            orders = [order._replace(fate="value") if order.fate in ENDLESS else order for order in orders]
        return orders

    def _source(self, items: list[T]) -> Any:
        return items if self._chance.random() < 0.7 else _asynchronous(items)

    # Accounts.

    def _open(self, orders: Iterable[Order], terms: Terms, *possible: str) -> None:
        for order in orders:
            self._ledger.open(order, {*terms.possible, *possible}, terms.tries)

    async def _outcome(self, awaitable: Awaitable[T], patience: float | None = None) -> T | BaseException:
        """Return what comes of a call; a cancellation can only be the call's, since nobody cancels a client."""
        try:
            async with asyncio.timeout(patience):
                return await awaitable
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the ledger judges it
            return error

    def _settle(self, orders: list[Order], outcome: list[Answer] | BaseException, *, partly: bool = False) -> None:
        """Account for some calls that end together."""
        if isinstance(outcome, BaseException):
            if self._ledger.failed([order.number for order in orders], outcome, partly=partly) in THE_END:
                self.over = True
        elif len(outcome) != len(orders):
            self._ledger.amiss.append(f"a map of {len(orders)} items returned {len(outcome)} values")
        else:
            for order, answer in zip(orders, outcome, strict=True):
                self._ledger.answered(order, answer)

    # Deeds.

    async def apply(self) -> None:
        """One call, awaited; maybe not for long."""
        self._verbs["apply"] += 1
        order, terms, patience = self._order(ALONE), self._choose_terms(0.3), self._choose_patience()
        if order.fate == "hoard":
            terms, patience = Terms({"timeout": 3.0}, 3.0, self._terms.tries), None
        if order.fate in ENDLESS and terms.timeout is None and patience is None:
            patience = self._chance.uniform(0.01, 0.3)
        self._open([order], terms, *["cancelled"] * (patience is not None))
        call = self._pool.apply(self._job(), (order,), **terms.given)
        answer = await self._outcome(call, patience)
        self._settle([order], answer if isinstance(answer, BaseException) else [answer])

    async def apply_async(self) -> None:
        """A result, waited for in some way or cancelled, whose callbacks are counted."""
        order, terms = self._order(ALONE), self._choose_terms(0.3)
        cancel = self._chance.random() < 0.3 or (order.fate in ENDLESS and terms.timeout is None)
        self._open([order], terms, *self._refusable, *["cancelled"] * cancel)
        told: list[object] = []
        try:
            if terms is self._terms and self._chance.random() < 0.3:
                self._verbs["submit"] += 1
                result = self._pool.submit(self._job(), order)
                result.add_done_callback(lambda done: told.append(done) if not done.cancelled() else None)
            else:
                self._verbs["apply_async"] += 1
                result = self._pool.apply_async(self._job(), (order,), None, told.append, told.append, **terms.given)
        except (PoolFull, PoolNotRunning) as refused:
            self._settle([order], refused)
            await asyncio.sleep(0.02)
            return
        if cancel:
            await asyncio.sleep(self._chance.expovariate(30))
            result.cancel()
        answer = await self._outcome(result if self._chance.random() < 0.5 else _get_impatiently(result))
        await asyncio.sleep(0)  # a result that was there already when we awaited it may not have called back yet
        cancelled = isinstance(answer, asyncio.CancelledError)
        if len(told) != (0 if cancelled else 1):
            self._ledger.amiss.append(f"call {order.number} has called back {len(told)} times; outcome {answer!r:.80}")
        self._settle([order], answer if isinstance(answer, BaseException) else [answer])

    async def generate(self) -> None:
        """A generator's values, maybe not all of them."""
        self._verbs["stream"] += 1
        order, timeout = self._order(ALONE), self._choose_terms(0.3).timeout
        if order.fate == "hoard":
            order = order._replace(fate="value")
        patience = self._choose_patience()
        if order.fate in ENDLESS and timeout is None and patience is None:
            patience = self._chance.uniform(0.01, 0.3)
        terms = Terms({}, timeout, 1)
        self._open([order], terms, *self._refusable, *["left"] * (patience is not None))
        view = self._pool.options(timeout=timeout, buffersize=self._chance.choice([1, 5, 64]))
        count, values = self._chance.choice([0, 3, 200]), list[Any]()
        try:
            stream = view.stream(generate_on_loop if self._on_loop() else generate, order, count)
        except (PoolFull, PoolNotRunning) as refused:
            self._settle([order], refused)
            await asyncio.sleep(0.02)
            return

        async def read() -> None:
            async for value in stream:
                values.append(value)

        outcome = await self._outcome(read(), patience)
        await stream.aclose()
        if values[:count] != list(range(len(values[:count]))):
            self._ledger.amiss.append(f"stream {order.number} has brought {values[:count]!r:.80}")
        if type(outcome) is TimeoutError:
            self._ledger.end(order.number, "left")
        elif isinstance(outcome, BaseException):
            self._settle([order], outcome)
        else:
            self._settle([order], values[count:])

    async def map(self) -> None:
        """A map, awaited; maybe not for long."""
        self._verbs["map"] += 1
        terms, patience = self._choose_terms(2.0), self._choose_patience()
        orders, chunksize = self._orders(terms), self._chance.choice([None, 1, 3])
        self._open(orders, terms, "dropped", *["cancelled"] * (patience is not None))
        if self._chance.random() < 0.5:
            call = self._pool.map(self._job(), self._source(orders), chunksize, **terms.given)
        else:
            call = self._pool.starmap(self._job_of_parts(), self._source(orders), chunksize, **terms.given)
        self._settle(orders, await self._outcome(call, patience), partly=True)

    async def map_async(self) -> None:
        """A map's result, maybe cancelled."""
        self._verbs["map_async"] += 1
        terms, cancel = self._choose_terms(2.0), self._chance.random() < 0.3
        orders, chunksize = self._orders(terms), self._chance.choice([None, 1, 3])
        self._open(orders, terms, "dropped", *self._refusable, *["cancelled"] * cancel)
        try:
            if self._chance.random() < 0.5:
                result = self._pool.map_async(self._job(), self._source(orders), chunksize, **terms.given)
            else:
                result = self._pool.starmap_async(self._job_of_parts(), self._source(orders), chunksize, **terms.given)
        except (PoolFull, PoolNotRunning) as refused:
            self._settle(orders, refused)
            await asyncio.sleep(0.02)
            return
        if cancel:
            await asyncio.sleep(self._chance.expovariate(30))
            result.cancel()
        self._settle(orders, await self._outcome(result), partly=True)

    async def stream(self) -> None:
        """A stream, maybe left early, or cancelled."""
        terms, chunksize, ordered = self._choose_terms(2.0), self._chance.choice([1, 1, 4]), self._chance.random() < 0.5
        orders = self._orders(terms)
        self._verbs["imap" if ordered else "imap_unordered"] += 1
        self._open(orders, terms, "left")
        verb = self._pool.imap if ordered else self._pool.imap_unordered
        try:
            iterator = verb(
                self._job(), self._source(orders), chunksize, self._chance.choice([None, 1, 5]), **terms.given
            )
        except PoolNotRunning as refused:
            self._settle(orders, refused)
            return
        reading = Reading(orders, chunksize, self._ledger, ordered=ordered)
        reading.leave(await self._read(iterator, reading))
        await iterator.aclose()

    async def _read(self, iterator: ImapIterator[Answer], reading: Reading) -> str:
        """Read from a stream; return what is to be said of the items that have not come, or an empty string."""
        leave_after = self._chance.choice([None, None, self._chance.randint(0, 20)])
        while reading.count != leave_after:
            if self._chance.random() < 0.3:
                outcome = await self._outcome(iterator.next(self._chance.expovariate(100)))
            else:
                outcome = await self._outcome(anext(iterator), self._choose_patience())
            if isinstance(outcome, ResultTimeout):
                continue
            if isinstance(outcome, StopAsyncIteration):
                return ""
            if type(outcome) is TimeoutError:  # our patience has ended, and so the stream is closed
                return "left"
            if isinstance(outcome, BaseException) and KINDS.get(type(outcome)) in THE_END:
                self.over = True
                return "cut off"
            reading.take(outcome)
        return "left"


class Reading:
    """Accounts for the items of a stream.

    Args:
        orders: the items.
        chunksize: how many of them travel together.
        ledger: is told.
        ordered: whether they come in their order.
    """

    def __init__(self, orders: list[Order], chunksize: int, ledger: Ledger, *, ordered: bool) -> None:
        self.count = 0
        self._chunks = [orders[at : at + chunksize] for at in range(0, len(orders), chunksize)]
        self._left = {order.number: order for order in orders}
        self._ledger = ledger
        self._ordered = ordered
        self._errors: list[BaseException] = []  # of whole chunks, of which an unordered stream does not tell which

    def take(self, outcome: object) -> None:
        """Something has come: a value, an item's exception, or a chunk's."""
        self.count += 1
        if isinstance(outcome, LookupError | MemoryError):
            if order := self._next(*outcome.args):
                self._ledger.failed([order.number], outcome)
        elif isinstance(outcome, BaseException):
            self._errors.append(outcome)
            if self._ordered:
                self._fail_chunks()
        elif isinstance(outcome, Answer) and (order := self._next(outcome.number)):
            self._ledger.answered(order, outcome)

    def leave(self, rest: str) -> None:
        """Nothing more will come; account for the rest in these words, of which there is none if they are empty."""
        self._fail_chunks()
        for number in self._left:
            if rest:
                self._ledger.end(number, rest)
            else:
                self._ledger.amiss.append(f"a stream has not brought the outcome of call {number}")

    def _next(self, number: int = 0) -> Order | None:
        """Return the order whose outcome has come, if it may come now."""
        order = self._left.get(number)
        if order is None or (self._ordered and number != next(iter(self._left))):
            self._ledger.amiss.append(f"a stream has brought call {number} out of turn, or twice, or from elsewhere")
            return None
        return self._left.pop(number)

    def _fail_chunks(self) -> None:
        """Let the exceptions of chunks stand for those of which nothing has come, first to first."""
        for error in self._errors:
            missing = [chunk for chunk in self._chunks if all(order.number in self._left for order in chunk)]
            if not missing:
                self._ledger.amiss.append(f"a stream has raised {error!r}, and no chunk of it is missing")
                continue
            numbers = [order.number for order in missing[0]]
            self._ledger.failed(numbers, error)
            for number in numbers:
                del self._left[number]
        self._errors.clear()


async def _asynchronous(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def _get_impatiently(result: Any) -> Any:
    """Get a result, looking up often."""
    while True:
        try:
            return await result.get(0.05)
        except ResultTimeout:
            continue
