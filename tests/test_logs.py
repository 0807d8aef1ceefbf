"""Log records of workers, in the parent's handlers."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

import jobs
from aiopool import AioPool, CallInterrupted, WorkerDied, log_records, wire
from aiopool.worker.logs import Extra, ForwardingHandler
from latch import Latch

pytestmark = pytest.mark.both_loops

NAME = "service.part"


class Keeper(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        """What the records say."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """Return the handler of a logger that lets everything pass, and leave all as it was."""
    logger, handler = logging.getLogger("service"), Keeper()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_a_record_arrives_once_as_it_was_made(start_method: str, keeper: Keeper) -> None:
    """Level, name, process, thread, arguments, extra fields."""
    async with AioPool(1, context=start_method) as pool:
        pid = await pool.apply(jobs.pid_of)
        await pool.apply(jobs.log, (NAME, logging.INFO, "%s of %d", "one", 2), {"extra": {"request": [1]}})
    (record,) = keeper.records
    assert (record.levelno, record.name, record.getMessage()) == (logging.INFO, NAME, "one of 2")
    assert (record.process, record.processName) == (pid, "AioPoolWorker-1")
    assert (record.funcName, record.filename, record.threadName) == ("log", "jobs.py", "MainThread")
    assert record.request == [1]  # type: ignore[attr-defined]


async def test_an_exception_arrives_as_its_text(start_method: str, keeper: Keeper) -> None:
    """It could not be pickled, maybe; a formatter prints it as ever."""
    async with AioPool(1, context=start_method) as pool:
        await pool.apply(jobs.log_failure, (NAME,))
    (record,) = keeper.records
    text = logging.Formatter("%(message)s").format(record)
    assert re.fullmatch(r"it failed\nTraceback .*jobs.py.*ValueError: logged", text, re.DOTALL)


async def test_records_of_the_initializer_arrive(start_method: str, keeper: Keeper) -> None:
    """They come before anything else."""
    async with AioPool(1, jobs.log_at_start, (NAME,), context=start_method):
        assert keeper.messages == ["at the start"]


async def test_levels_are_obeyed_in_the_worker(
    start_method: str, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not wanted does not travel."""
    came: list[wire.Frame] = []
    monkeypatch.setattr("aiopool.log_records.handle", came.append)
    logging.getLogger("service.quiet").setLevel(logging.ERROR)
    logging.getLogger("service").setLevel(logging.INFO)
    try:
        async with AioPool(1, context=start_method) as pool:
            for name in ("service", "service.quiet", "service.other"):
                for level in (logging.DEBUG, logging.INFO, logging.ERROR):
                    await pool.apply(jobs.log, (name, level, "%s %d", name, level))
    finally:
        logging.getLogger("service.quiet").setLevel(logging.NOTSET)
    messages = [pickle.loads(frame.payload or b"")["msg"] for frame in came]
    assert messages == ["service 20", "service 40", "service.quiet 40", "service.other 20", "service.other 40"]
    assert keeper.records == []


async def test_a_level_that_is_set_later_is_obeyed_here(keeper: Keeper) -> None:
    """The worker does not know it, but the record is not handled."""
    async with AioPool(1) as pool:
        logging.getLogger("service").setLevel(logging.ERROR)
        await pool.apply(jobs.log, (NAME, logging.INFO, "not any more"))
        await pool.apply(jobs.log, (NAME, logging.ERROR, "still"))
    assert keeper.messages == ["still"]


async def test_what_logging_disables_is_not_made(keeper: Keeper) -> None:
    """As with a level."""
    logging.disable(logging.INFO)
    try:
        async with AioPool(1) as pool:
            await pool.apply(jobs.log, (NAME, logging.INFO, "disabled"))
            await pool.apply(jobs.log, (NAME, logging.WARNING, "not disabled"))
    finally:
        logging.disable(logging.NOTSET)
    assert keeper.messages == ["not disabled"]


async def test_records_before_a_death_arrive_in_their_order(start_method: str, keeper: Keeper) -> None:
    """They were sent before it."""
    async with AioPool(1, context=start_method) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.log_and_leave, (NAME, 100))
    assert keeper.messages == [f"before the end {number}" for number in range(100)]


async def test_logging_can_be_left_alone(start_method: str, keeper: Keeper) -> None:
    """Then the worker has what its start method gives it."""
    async with AioPool(1, context=start_method, forward_logs=False) as pool:
        assert "ForwardingHandler" not in await pool.apply(jobs.handlers_of_the_root)
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.handlers_of_the_root) == ["ForwardingHandler"]
    assert keeper.records == []


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """What the pool says itself of records that workers which are forked now drop, rather than wait."""
    monkeypatch.setattr("aiopool.worker.logs.PATIENCE", 0.0)
    made, logger = Keeper(), logging.getLogger("aiopool")
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


async def test_a_flood_neither_stalls_nor_loses_silently(keeper: Keeper, warnings: Keeper, latch: Latch) -> None:
    """While this loop stands still, records are dropped; how many is told before the call's answer."""
    count = 5000
    async with AioPool(1, context="fork") as pool:
        result = pool.submit(jobs.log_much, NAME, count, latch.path)
        assert latch.told_now() == "done"  # the loop has stood still
        assert await result == count
        came, dropped = list(keeper.messages), dropped_in(warnings)
        await pool.apply(jobs.log, (NAME, logging.WARNING, "after the flood"))
    assert dropped > 0
    assert keeper.messages[-1] == "after the flood"
    assert len(came) + dropped == count
    assert came == sorted(came, key=lambda message: int(message.split()[1]))


async def test_what_a_thread_has_logged_in_vain_is_told_when_its_worker_leaves(
    keeper: Keeper, warnings: Keeper, latch: Latch, gate: Latch
) -> None:
    """Though no call's answer comes any more."""
    count = 5000
    async with AioPool(1, context="fork") as pool:
        await pool.apply(jobs.log_much_later, (NAME, count, latch.path, gate.path))
        gate.let()
        assert latch.told_now() == "done"  # the loop has stood still
    assert dropped_in(warnings) > 0
    assert len(keeper.messages) + dropped_in(warnings) == count


def dropped_in(warnings: Keeper) -> int:
    """Return how many records are said to have been dropped."""
    found = [re.match(r"(\d+) log records", message) for message in warnings.messages]
    return sum(int(each[1]) for each in found if each)


async def test_records_of_several_threads_do_not_garble_an_answer(start_method: str, keeper: Keeper) -> None:
    """A large answer is more than one packet, and none of a record's comes between them."""
    async with AioPool(1, context=start_method) as pool:
        for _ in range(20):
            assert await pool.apply(jobs.log_in_threads, (NAME, 4, 20, 2_000_000)) == bytes(2_000_000)
    assert len(keeper.records) <= 20 * 4 * 20


async def test_a_record_of_a_process_that_a_job_forks_is_lost(start_method: str, keeper: Keeper) -> None:
    """It has no way here, and harms nobody."""
    async with AioPool(1, context=start_method) as pool:
        assert await pool.apply(jobs.log_in_a_child, (NAME,)) == 7
        assert await pool.apply(jobs.square, (3,)) == 9
    assert keeper.records == []


@pytest.mark.parametrize("what", ["message", "extra"])
async def test_a_record_that_is_too_large_is_cut_short(what: str, keeper: Keeper) -> None:
    """Its text; other fields do not travel then."""
    large = "x" * 200_000
    async with AioPool(1) as pool:
        if what == "message":
            await pool.apply(jobs.log, (NAME, logging.INFO, large), {"extra": {"short": 1}})
        else:
            await pool.apply(jobs.log, (NAME, logging.INFO, "short"), {"extra": {"short": 1, "long": [large]}})
    (record,) = keeper.records
    assert record.short == 1  # type: ignore[attr-defined]
    assert not hasattr(record, "long")
    assert record.getMessage() == ("x" * 8000 + "... (200000 characters)" if what == "message" else "short")


@pytest.mark.parametrize(
    "extra",
    [
        {f"field{number}": "x" * 9000 for number in range(9)},
        {"payload": "文" * 9000, "other": "文" * 9000, "third": "文" * 9000},
        {"number": 1 << 600_000},
        {"x" * 70_000: 1},
        {f"field{number}": number for number in range(10_000)},
    ],
    ids=["fields", "characters", "number", "name", "many"],
)
async def test_a_record_whose_fields_are_too_large_together_loses_them(extra: dict[str, Any], keeper: Keeper) -> None:
    """It has what every record has, and harms no call."""
    async with AioPool(1) as pool:
        await pool.apply(jobs.log, (NAME, logging.INFO, "文" * 9000), {"extra": extra})
        assert await pool.apply(jobs.square, (3,)) == 9
    (record,) = keeper.records
    assert record.getMessage().startswith("文" * 1000)
    assert record.name == NAME
    assert record.process != os.getpid()
    assert not vars(record).keys() & extra.keys()


async def test_a_field_that_does_not_pickle_arrives_in_words(keeper: Keeper) -> None:
    """The others as they are."""
    async with AioPool(1) as pool:
        await pool.apply(log_with_odd_fields)
    (record,) = keeper.records
    fields: dict[str, Any] = vars(record)
    assert fields["odd"].startswith("<function log_with_odd_fields.<locals>.<lambda>")
    assert fields["even"] == [2]
    assert fields["wordless"] == "<Wordless: its repr() raised>"


def log_with_odd_fields() -> None:
    """Log something that cannot travel."""
    logging.getLogger(NAME).info("odd", extra={"odd": lambda: 1, "even": [2], "wordless": Wordless()})


class Wordless:
    """Can neither travel nor be described."""

    def __reduce__(self) -> NoReturn:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class Interrupted:
    """The call is interrupted as it is pickled, or as it is described."""

    def __init__(self, kind: type[BaseException], *, pickles: bool) -> None:
        self.kind = kind
        self.pickles = pickles

    def __reduce__(self) -> Any:
        if self.pickles:
            return Interrupted, (self.kind,)
        raise self.kind

    def __repr__(self) -> str:
        if self.pickles:
            raise self.kind
        return "Interrupted()"


@pytest.mark.parametrize("kind", [CallInterrupted, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("pickles", [False, True])
def test_an_interruption_while_a_field_is_made_ready_is_heard(kind: type[BaseException], *, pickles: bool) -> None:
    """It is the call's, and not the field's; so is what a signal's handler raises to end the job."""

    class Nowhere:
        def send(self, packets: Any, patience: float) -> None:
            raise AssertionError(packets, patience)

    record = logging.makeLogRecord({"field": Interrupted(kind, pickles=pickles)})
    with pytest.raises(kind):
        ForwardingHandler(Nowhere()).handle(record)


class TwoArgumentsError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Raises:
    """Pickles well; to unpickle it raises."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return raise_this, (self.kind,)

    def __repr__(self) -> str:
        return "Raises()"


def raise_this(kind: type[BaseException]) -> NoReturn:
    """Do so."""
    raise kind


def log_with_field(make: Callable[..., object], *args: object) -> str:
    """Log something that is made here."""
    logging.getLogger(NAME).info("field", extra={"error": make(*args), "even": [2]})
    return "done"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ((TwoArgumentsError, 5, "text"), "TwoArgumentsError('5: text')"),
        ((Raises, asyncio.CancelledError), "Raises()"),
    ],
)
async def test_a_field_that_does_not_unpickle_here_arrives_in_words(
    made: tuple[Any, ...], words: str, keeper: Keeper
) -> None:
    """The others as they are; whatever it raises harms no call."""
    async with AioPool(1) as pool:
        assert await pool.apply(log_with_field, made) == "done"
    (record,) = keeper.records
    assert record.error == words  # type: ignore[attr-defined]
    assert record.even == [2]  # type: ignore[attr-defined]


async def test_a_record_that_cannot_be_formatted_is_the_workers_trouble(
    keeper: Keeper, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in one process: logging says so on its standard error, and goes on."""
    async with AioPool(1, context="spawn") as pool:
        await pool.apply(jobs.log, (NAME, logging.INFO, "%d", "no number"))
        await pool.apply(jobs.log, (NAME, logging.INFO, "next"))
    assert keeper.messages == ["next"]
    assert "--- Logging error ---" in capfd.readouterr().err


class Raising(logging.Handler):
    """Raises."""

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self.kind = kind

    def emit(self, record: logging.LogRecord) -> None:
        """Do so."""
        raise self.kind(record.getMessage())


@pytest.fixture
def raising(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have a handler of the root that raises, also with what the pool itself has to say."""
    handler = Raising(request.param)
    logging.root.addHandler(handler)
    yield
    logging.root.removeHandler(handler)


@pytest.mark.parametrize("raising", [OSError, asyncio.CancelledError], indirect=True)
@pytest.mark.usefixtures("raising")
async def test_a_handler_that_fails_harms_no_call(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told of on standard error, once for each record, as logging tells it."""
    async with AioPool(1) as pool:
        for number in range(2):
            await pool.apply(jobs.log, (NAME, logging.ERROR, "record %d", number))
    told = capsys.readouterr().err
    assert re.findall(r"^\S*Error: (record \d)$", told, re.MULTILINE) == ["record 0", "record 1"]
    assert told.count("a filter or handler has failed with a log record of a worker") >= 2


def goes_on_and_ends_with(kind: type[BaseException], frame: wire.Frame) -> bool:
    """Whether a program goes on behind a record, for there may be more to do with what came, and then ends by this."""
    went_on = False

    async def main() -> None:
        nonlocal went_on
        log_records.handle(frame)
        went_on = True
        await asyncio.Event().wait()

    with pytest.raises(kind):
        asyncio.run(main())
    return went_on


@pytest.mark.parametrize("raising", [SystemExit, KeyboardInterrupt], indirect=True)
@pytest.mark.usefixtures("raising")
def test_a_handler_may_end_this_process(request: pytest.FixtureRequest) -> None:
    """As with a record of this process. What came with it, such as the call's answer, is not lost."""
    kind = request.node.callspec.params["raising"]
    assert goes_on_and_ends_with(kind, wire.Frame(wire.Kind.UNLOGGED, 0, 7, b""))


def test_who_interrupts_this_process_while_a_field_unpickles_is_heard() -> None:
    """It is not taken for an exception of the field."""
    extra = Extra(pickle.dumps(Raises(KeyboardInterrupt)), "")
    frame = wire.Frame(wire.Kind.LOG, 0, 0, pickle.dumps({"name": NAME, "levelno": 0, "extra": extra}))
    assert goes_on_and_ends_with(KeyboardInterrupt, frame)


async def test_what_is_no_record_ends_its_worker_only() -> None:
    """A job that writes into the channel."""
    async with AioPool(1) as pool:
        with pytest.raises(WorkerDied):
            await pool.apply(jobs.scribble_on_sockets, (wire.encode(wire.Kind.LOG, 0, b"nothing")[0],))
        assert await pool.apply(jobs.square, (3,)) == 9
