"""Chaos for a few seconds with each start method, and the accounts that judge it, to which faults are shown."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import START_METHODS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

from chaos_jobs import Answer, Order, content  # noqa: E402 - found only now
from chaos_ledger import Ledger  # noqa: E402
from chaos_traces import Memory, Traces, left_since  # noqa: E402

from aiopool import PoolFull, WorkerDied  # noqa: E402

pytestmark = pytest.mark.once

SECONDS = 6.0
"""For each start method; what begins a pool and ends it comes on top."""


RUNS = [*((method, "0") for method in START_METHODS), ("forkserver", "0.7")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "coroutines"), RUNS)
def test_every_call_is_accounted_for_whatever_happens_to_workers(method: str, coroutines: str) -> None:
    """Each ends once and as it may, none runs again unasked, nothing is left, and the program says so."""
    done = subprocess.run(
        [
            sys.executable, BENCHMARKS / "chaos.py", "--minutes", str(SECONDS / 60), "--seed", "7", "--methods", method,
            "--hang", "60", "--coroutines", coroutines,
        ],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = dict(re.findall(r"^  (\w[\w ]*?)  +(.*)$", done.stdout, re.MULTILINE))
    calls = int(table["calls"].split()[0])
    assert calls == sum(int(count) for count in re.findall(r" (\d+)(?:,|$)", table["outcomes"])) > 0
    assert "value" in table["outcomes"]
    assert table["verdict"] == "every call accounted for, nothing left"


class Accounts:
    """A ledger with one call, which is made, runs and returns as it should; each test spoils that."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger()
        self.journal = folder / "journal"
        self.order = Order("", self.ledger.next_number(), "value", 3, b"")
        self.answer = Answer(self.order.number, 0, content(self.order.number, 3))
        self.runs = [11]
        self.ledger.open(self.order, {"refused"}, tries=1)
        self.ledger.submitted(1)
        self.ledger.finished(1)

    def amiss(self) -> str:
        """Settle; return what is amiss."""
        self.journal.write_text("".join(f"{self.order.number} {pid} {self.order.fate}\n" for pid in self.runs))
        self.ledger.settle(self.journal, set())
        return "; ".join(self.ledger.amiss)

    def end(self) -> None:
        """Have the call return what it should."""
        self.ledger.answered(self.order, self.answer)

    def die(self, exitcode: int, tries: int = 1) -> None:
        """Have the call's worker die."""
        self.ledger.failed([self.order.number], WorkerDied(11, exitcode, "job", tries))


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    """Of one call."""
    return Accounts(tmp_path)


def test_accounts_of_a_call_that_is_well(accounts: Accounts) -> None:
    """Nothing is amiss with it."""
    accounts.end()
    assert accounts.amiss() == ""


def test_accounts_of_a_call_whose_worker_was_killed(accounts: Accounts) -> None:
    """Nothing is amiss where the ledger knows of the blow."""
    accounts.ledger.killed(11, -9)
    accounts.die(-9)
    assert accounts.amiss() == ""


def spoil_end_twice(accounts: Accounts) -> None:
    """It ends twice."""
    accounts.end()
    accounts.end()


def spoil_run_twice(accounts: Accounts) -> None:
    """It runs again, though nothing has happened to its worker."""
    accounts.end()
    accounts.runs = [11, 12]


def spoil_never_run(accounts: Accounts) -> None:
    """It returns what it never computed."""
    accounts.end()
    accounts.runs = []


def spoil_answer(accounts: Accounts) -> None:
    """It returns something else."""
    accounts.ledger.answered(accounts.order, accounts.answer._replace(content=b"xyz"))


def spoil_refusal(accounts: Accounts) -> None:
    """It is refused, and runs."""
    accounts.ledger.failed([accounts.order.number], PoolFull())


def spoil_inner_end(accounts: Accounts) -> None:
    """The pool finishes it twice."""
    accounts.end()
    accounts.ledger.finished(1)


def spoil_inner_loss(accounts: Accounts) -> None:
    """The pool forgets another."""
    accounts.end()
    accounts.ledger.submitted(2)


@pytest.mark.parametrize(
    ("spoil", "amiss"),
    [
        (spoil_end_twice, "ended 2 times"),
        (lambda _accounts: None, "ended 0 times"),
        (spoil_run_twice, r"ran 2 times.*nothing had killed its worker 11"),
        (spoil_never_run, "never ran"),
        (spoil_answer, "returned Answer"),
        (spoil_refusal, "ended as 'refused', and ran"),
        (lambda accounts: accounts.ledger.end(accounts.order.number, "timed out"), "must not end as 'timed out'"),
        (lambda accounts: accounts.ledger.failed([accounts.order.number], OSError()), "a call raised OSError"),
        (lambda accounts: accounts.ledger.failed([accounts.order.number], LookupError(99)), "none of theirs"),
        (lambda accounts: accounts.die(-9), "nothing explains that"),
        (lambda accounts: accounts.die(-9, tries=2), "given up after 2 tries of 1"),
        (spoil_inner_end, "finished one of its calls 2 times"),
        (spoil_inner_loss, "finished one of its calls 0 times"),
    ],
)
def test_accounts_of_a_call_that_is_not_well(accounts: Accounts, spoil: Callable[[Accounts], None], amiss: str) -> None:
    """The ledger says what is amiss."""
    spoil(accounts)
    assert re.search(amiss, accounts.amiss())


def test_what_is_left_is_found() -> None:
    """A process, a zombie and a descriptor."""
    before = Traces.now()
    assert left_since(before, ()) == []
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        left = "; ".join(left_since(before, {zombie.pid}))
    os.close(reader)
    os.close(writer)
    assert f"processes left: {zombie.pid} Z" in left
    assert f"descriptors left: {reader} pipe" in left
    assert left_since(before, ()) == []


async def test_a_task_that_is_left_is_found() -> None:
    """By its name."""
    before = Traces.now()
    task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    assert "tasks left" in left_since(before, ())[0]
    assert "forgotten" in left_since(before, ())[0]
    task.cancel()


@pytest.mark.parametrize(
    ("grow", "amiss"),
    [(lambda: b"x" * (64 << 20), r"to .* MiB"), (lambda: [[] for _ in range(200_000)], r"to \d+ blocks")],
)
def test_memory_that_grows_is_found(grow: Callable[[], object], amiss: str) -> None:
    """In bytes, or in a multitude of small objects."""
    memory, steady = Memory(100.0), Memory(100.0)
    memory.sample(1.0)
    kept = grow()
    memory.sample(99.0)
    assert re.search(amiss, "; ".join(memory.amiss()))
    steady.sample(1.0)
    steady.sample(99.0)
    assert steady.amiss() == []
    del kept
