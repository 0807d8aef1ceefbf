"""The benchmark program: what it makes of given numbers, and one line for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.cell import Order
from benchmarks.lines import BEST, LIMIT_OF_MACHINE, LINES, VALUE, Target, named
from benchmarks.run import Outcome, Plan, Status, contestants, run_cell, run_rounds

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

BURST = replace(LINES["burst"], targets=(Target(BEST, 5), Target("run_in_executor", 12)), limit=None, limit_title="")
ROUND_TRIP = LINES["round_trip"]
IDLE = LINES["idle"]

WHERE = {"processor": "a processor", "cores": 2, "python": "a Python", "date": "2026-01-01 00:00:00"}


def measured(line, **rounds):
    """Make results of numbers, or of outcomes, for each round."""
    results = report.Results()
    for name, values in rounds.items():
        for value in values:
            results.add(line, name, value if isinstance(value, Outcome) else Outcome(Status.OK, value))
    return results


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without a picture."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


HANG = Outcome(Status.HANG, detail="no result in 60 s, and nothing was being computed")


def test_a_number_is_the_median_of_its_rounds() -> None:
    """One bad round does not count."""
    assert measured(BURST, aiopool=[10.0, 1000.0, 20.0]).median(BURST, "aiopool") == 20


def test_ratios_are_how_many_times_as_good_whether_more_is_better_or_less() -> None:
    """Above one, aiopool is better."""
    more = measured(BURST, aiopool=[60.0], mp_pool=[10.0], loky=[20.0])
    assert more.best(BURST) == ("loky", 20)
    assert more.ratio(BURST, BEST) == 3
    less = measured(ROUND_TRIP, aiopool=[2.0], mp_pool=[10.0], loky=[20.0], limit=[0.5])
    assert less.best(ROUND_TRIP) == ("mp_pool", 10)
    assert less.ratio(ROUND_TRIP, BEST) == 5
    assert less.ratio(ROUND_TRIP, LIMIT_OF_MACHINE) == 0.25


def test_a_ratio_to_nothing_is_none_and_to_zero_is_finite_or_endless() -> None:
    """A peer that did not run has no number; an idle one may use no CPU at all."""
    assert measured(BURST, aiopool=[60.0]).ratio(BURST, BEST) is None
    assert measured(BURST, loky=[60.0]).ratio(BURST, BEST) is None
    assert measured(IDLE, aiopool=[0.0], loky=[0.0]).ratio(IDLE, BEST) == 1
    assert measured(IDLE, aiopool=[0.0], loky=[0.1]).ratio(IDLE, BEST) == float("inf")


def test_targets_are_reached_or_missed_or_not_told() -> None:
    """Against the best peer, a peer by name, and a bare value that may be a ceiling."""
    results = measured(BURST, aiopool=[60.0], loky=[10.0], run_in_executor=[6.0])
    assert [results.reached(BURST, target) for target in BURST.targets] == [True, False]
    assert results.reached(BURST, Target("pebble", 1)) is None
    assert measured(IDLE, aiopool=[0.01]).reached(IDLE, Target(VALUE, 0.05)) is True
    assert measured(IDLE, aiopool=[0.1]).reached(IDLE, Target(VALUE, 0.05)) is False


def test_a_hang_is_reported_as_a_hang_and_never_as_a_number() -> None:
    """Even if other rounds have gone well; and it is not the best peer."""
    results = measured(BURST, aiopool=[60.0, 60.0, 60.0], loky=[1000.0, HANG], pebble=[10.0, 10.0, 10.0])
    assert results.best(BURST) == ("pebble", 10)
    text = report.table(Plan([BURST], ["aiopool", "loky", "pebble"]), results)
    assert "HANG 1/2" in text
    assert "burst, loky: HANG: no result in 60 s, and nothing was being computed" in text
    assert "1,000" not in text


def test_a_hang_is_worse_news_than_a_failure() -> None:
    """If both happened, the hang is what is shown."""
    results = measured(BURST, loky=[Outcome(Status.FAILED, detail="exit code 1"), HANG, HANG])
    assert results.text(BURST, "loky") == "HANG 2/3"


def test_the_table_has_a_dash_for_who_cannot_and_the_reason_for_what_is_missing() -> None:
    """So that an empty cell is no riddle."""
    line = LINES["cancel"]
    results = measured(line, aiopool=[Outcome(Status.MISSING, detail="not there")], pebble=[3.0])
    heading, _, row, *_ = report.table(Plan([line], ["aiopool", "mp_pool", "pebble"]), results).splitlines()
    assert heading.split() == ["unit", "aiopool", "mp_pool", "pebble", "limit"]
    assert row.split() == ["cancel", "ms", "not", "there", "-", "3", "-"]


def test_json_has_every_round_and_what_is_made_of_it() -> None:
    """Also the hang."""
    plan = Plan([BURST], ["aiopool", "mp_pool"], rounds=2)
    found = json.loads(report.to_json(plan, measured(BURST, aiopool=[50.0, 70.0], mp_pool=[HANG]), WHERE))
    line = found["lines"]["burst"]
    assert line["results"]["aiopool"]["median"] == 60
    assert [each["value"] for each in line["results"]["aiopool"]["rounds"]] == [50, 70]
    assert [each["status"] for each in line["results"]["mp_pool"]["rounds"]] == ["hang"]
    assert line["best peer"] is None
    assert found["machine"] == WHERE


def test_only_those_run_a_line_that_can() -> None:
    """With the machine's limit beside them, where there is one."""
    everybody = ["aiopool", "mp_pool", "pebble", "anyio"]
    assert contestants(LINES["cancel"], everybody) == ["aiopool", "pebble", "anyio"]
    assert contestants(ROUND_TRIP, everybody) == ["limit", *everybody]
    assert contestants(LINES["growth_calls_10k"], everybody) == ["limit", "aiopool"]


def test_peers_take_turns_and_who_hangs_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round begins with another one; a hang costs its time once."""
    asked = []

    def run_cell(order, _timeout):
        asked.append(order.peer)
        return HANG if order.peer == "loky" else Outcome(Status.OK, 1.0)

    monkeypatch.setattr("benchmarks.run.run_cell", run_cell)
    plan = Plan([BURST], ["aiopool", "mp_pool", "loky"], rounds=3)
    assert len(list(run_rounds(plan))) == plan.cells == 9
    assert asked == ["aiopool", "mp_pool", "loky", "mp_pool", "aiopool", "aiopool", "mp_pool"]


def test_lines_are_found_by_name_and_by_beginning() -> None:
    """A name that is neither is an error that tells the names."""
    assert [line.name for line in named(["recycle", "imap"])] == ["recycle_1", "recycle_10", "imap"]
    with pytest.raises(LookupError, match="round_trip"):
        named(["roundtrip"])


def test_one_line_for_real(tmp_path: Path) -> None:
    """aiopool, a peer and the machine's limit, in processes of their own; a table, a file, maybe a picture."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "round_trip", "--peers", "mp_pool", "--rounds", "1", "--size", "0.01",
         "--timeout", "40", "--out", str(tmp_path / "results")],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "round_trip, mp_pool: " in done.stderr  # the progress
    found = json.loads((tmp_path / "results" / "results.json").read_text())["lines"]["round_trip"]
    assert {name: each["rounds"][0]["status"] for name, each in found["results"].items()} == dict.fromkeys(
        ["aiopool", "mp_pool", "limit"], "ok"
    )
    assert f"{found['ratio to the best peer']:.2f}x" in done.stdout
    assert (tmp_path / "results" / "results.png").exists() or "no picture: pip install" in done.stdout


@pytest.mark.parametrize("line", ["burst", "recycle_10", "loop_lag", "worker_memory"])
def test_what_is_bare_can_be_measured(line: str) -> None:
    """It is of this program's own making, other than a copy of memory."""
    outcome = run_cell(Order(line, "limit", size=0.01), 40)
    assert outcome.status is Status.OK, outcome
    assert outcome.value is not None
    assert outcome.value > 0


@pytest.mark.usefixtures("no_matplotlib")
def test_a_cell_that_hangs_is_reported_and_ends_with_all_that_it_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's exit code tells if it was aiopool."""
    forever = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    monkeypatch.setattr("benchmarks.run.PROGRAM", forever)
    code = main(["map", "--peers", "aiopool", "--rounds", "2", "--timeout", "0.2", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert code == 1
    assert "map, aiopool: HANG: no result in 0.2 s" in out
    assert "no picture: pip install" in out


@pytest.mark.parametrize(("seconds", "status"), [(0.1, Status.HANG), (0.9, Status.SLOW)])
def test_a_cell_that_still_computes_when_its_time_is_up_is_slow_and_does_not_hang(
    seconds: float, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little CPU time is used by those that poll, too."""
    used = iter([1.0, 1.0 + seconds])
    monkeypatch.setattr("benchmarks.processes.cpu_of_others", lambda _pids: next(used))
    monkeypatch.setattr("benchmarks.run.PROGRAM", "import time; time.sleep(1000)")
    assert run_cell(Order("map", "aiopool"), 0.1).status is status


@pytest.mark.usefixtures("no_matplotlib")
def test_a_cell_that_fails_is_reported_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a number is expected, anything else is a failure."""
    monkeypatch.setattr("benchmarks.run.PROGRAM", "print('[\"value\"]'); raise LookupError('no such thing')")
    assert main(["map", "--peers", "aiopool", "--rounds", "1", "--out", str(tmp_path)]) == 1
    assert "map, aiopool: FAILED: exit code 1: LookupError: no such thing" in capsys.readouterr().out


@pytest.mark.usefixtures("no_matplotlib")
def test_an_interrupted_run_reports_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour's work is not lost."""

    def run_rounds(plan):
        yield plan.lines[0], "aiopool", Outcome(Status.OK, 1234.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.__main__.run_rounds", run_rounds)
    assert main(["map", "--peers", "aiopool", "--out", str(tmp_path)]) == 130
    assert "1,234" in capsys.readouterr().out
    assert (tmp_path / "results.json").exists()


def test_a_peer_that_is_not_installed_is_an_error_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of a table without it."""
    monkeypatch.setattr("benchmarks.__main__.installed", lambda: ["aiopool"])
    assert main(["map", "--peers", "loky"]) == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def draw(file: str) -> None:
    """Draw a picture of a number and a hang."""
    plan = Plan([BURST, ROUND_TRIP], ["aiopool", "mp_pool", "loky"])
    report.picture(plan, measured(BURST, aiopool=[3.0], mp_pool=[HANG]), WHERE, Path(file))


def test_the_picture_names_everybody(tmp_path: Path) -> None:
    """It is drawn in a process of its own, since matplotlib keeps its fonts open."""
    file = tmp_path / "picture.svg"
    command = [sys.executable, "-c", "import sys, test_benchmarks; test_benchmarks.draw(sys.argv[1])", str(file)]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=50)
    text = file.read_text()
    assert "<!-- multiprocessing.Pool -->" in text
    assert "<!-- HANG -->" in text
