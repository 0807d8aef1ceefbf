"""What a pool knows of its calls in a cluster, tested without one."""

from __future__ import annotations

import pytest

from aiopool import WorkerDied
from aiopool.backends.ledger import Entry, Ledger
from aiopool.calls import CANCELLED, Call, CallPhase, Limits
from aiopool.phases import PoolPhase


@pytest.fixture
def ledger() -> Ledger:
    """One of a pool that runs, with a worker of two threads."""
    made = Ledger("pool")
    made.move(PoolPhase.STARTING)
    made.move(PoolPhase.RUNNING)
    made.came("a", 0, 100, 2, 0.0)
    return made


def accepted(ledger: Ledger, retries: int = 0) -> Entry:
    """Return the entry of a call that has been given to the cluster."""
    entry = ledger.accept(Call("f", b"payload", lambda _outcome: None, Limits(retries=retries), weight=3))
    ledger.submitted(entry)
    return entry


def test_a_move_that_is_in_no_table_is_a_mistake(ledger: Ledger) -> None:
    """And changes nothing."""
    with pytest.raises(RuntimeError, match="a pool that is running cannot become new"):
        ledger.move(PoolPhase.NEW)
    assert ledger.phase is PoolPhase.RUNNING


def test_what_waits_is_what_the_threads_that_there_are_do_not_take(ledger: Ledger) -> None:
    """Read whenever it is asked, for workers come and go."""
    assert (ledger.idle, ledger.waiting) == (2, 0)
    entries = [accepted(ledger) for _ in range(5)]
    assert (ledger.idle, ledger.waiting) == (0, 3)
    ledger.came("b", 1, 101, 4, 0.0)
    assert (ledger.threads, ledger.idle, ledger.waiting) == (6, 1, 0)
    ledger.began(entries[0].call.id, "b", 1.0)
    assert ledger.running == 1
    assert ledger.left("a") is not None
    assert ledger.left("a") is None
    assert (ledger.threads, ledger.waiting) == (4, 1)


def test_each_submission_has_a_key_of_its_own_that_begins_with_the_name(ledger: Ledger) -> None:
    """The scheduler tells tasks by their keys, and learns by their beginnings how long they take."""
    entry = accepted(ledger)
    first = entry.key
    assert first == f"f-pool-{entry.call.id}-1"
    assert ledger.submitted(entry) == f"f-pool-{entry.call.id}-2"


def test_a_call_ends_once(ledger: Ledger) -> None:
    """Its worker has served it if it was answered; its arguments are let go of."""
    entry = accepted(ledger)
    ledger.began(entry.call.id, "a", 1.0)
    stats = ledger.workers["a"].stats(3.0)
    assert (stats.phase, stats.call, stats.call_seconds) == ("busy", "f", 2.0)
    assert ledger.end(entry, served=True)
    assert not ledger.end(entry)
    assert (entry.call.phase, entry.call.payload) == (CallPhase.ENDED, b"")
    stats = ledger.workers["a"].stats(3.0)
    assert (stats.phase, stats.calls, stats.call) == ("idle", 3, None)


def test_the_first_verdict_counts(ledger: Ledger) -> None:
    """And whoever begins it after that has begun nothing."""
    entry = accepted(ledger)
    assert ledger.stop(entry, CANCELLED)
    assert not ledger.stop(entry, WorkerDied(1, None))
    assert ledger.began(entry.call.id, "a", 1.0) is None
    assert (entry.call.verdict, ledger.running) == (CANCELLED, 0)


def test_what_an_unknown_worker_begins_is_not_begun(ledger: Ledger) -> None:
    """Nor what has ended."""
    entry = accepted(ledger)
    assert ledger.began(entry.call.id, "nobody", 1.0) is None
    ledger.end(entry)
    assert ledger.began(entry.call.id, "a", 1.0) is None


def test_a_workers_end_is_told_of_the_calls_that_it_ran(ledger: Ledger) -> None:
    """Not of those that wait, nor of those whose end is decided."""
    running, stopping, _waiting = (accepted(ledger) for _ in range(3))
    for entry in (running, stopping):
        ledger.began(entry.call.id, "a", 1.0)
    ledger.stop(stopping, CANCELLED)
    found = ledger.left("a")
    assert found is not None
    assert found[1] == [running]
    died = ledger.died(running)
    assert died is not None
    assert (died.pid, died.exitcode, died.call, died.tries) == (100, None, "f", 1)
    assert died.__notes__ == ["It was a, a worker of a Dask cluster."]


def test_a_call_with_tries_left_waits_again(ledger: Ledger) -> None:
    """Until none is left."""
    entry = accepted(ledger, retries=1)
    assert entry.tries_left == 1
    ledger.began(entry.call.id, "a", 1.0)
    assert ledger.died(entry) is None
    assert (entry.call.phase, entry.tries_left, ledger.running) == (CallPhase.WAITING, 0, 0)
    ledger.began(entry.call.id, "a", 2.0)
    died = ledger.died(entry)
    assert died is not None
    assert died.tries == 2


def test_a_closing_pool_is_over_when_the_last_call_is(ledger: Ledger) -> None:
    """And not before."""
    entry = accepted(ledger)
    ledger.move(PoolPhase.CLOSING)
    assert not ledger.over()
    ledger.end(entry)
    assert ledger.over()
