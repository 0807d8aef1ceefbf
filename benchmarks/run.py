"""Runs cells: each in a fresh process with a time limit, peers by turns, round after round."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import processes
from .cell import LIMIT, Order
from .lines import Line
from .peers import PEERS

__all__ = ["Outcome", "Plan", "Status", "contestants", "run_cell", "run_rounds"]

ROOT = Path(__file__).parent.parent

PROGRAM = "from benchmarks.cell import main; main()"

WATCHED = 1.0
"""Seconds for which a cell that is out of time is watched, to see whether it works or hangs."""

AT_WORK = 0.25
"""Cores from which on it works. (A hang that polls is still a hang.)"""


class Status(enum.StrEnum):
    """How a cell has ended."""

    OK = "ok"
    HANG = "hang"
    SLOW = "slow"
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Outcome:
    """What came of one cell.

    Args:
        status: how it ended.
        value: its number, if it has one.
        detail: why it has none.
    """

    status: Status
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    lines: Sequence[Line]
    peers: Sequence[str]
    rounds: int = 5
    loop: str = "asyncio"
    timeout: float = 60.0
    size: float = 1.0

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return self.rounds * sum(len(contestants(line, self.peers)) for line in self.lines)


def contestants(line: Line, peers: Sequence[str]) -> list[str]:
    """Return who runs a line: the machine's limit, and the peers that can."""
    able = [name for name in peers if line.needs <= PEERS[name].abilities and (not line.alone or name == "aiopool")]
    return [LIMIT, *able] if line.limit else able


def run_rounds(plan: Plan) -> Iterator[tuple[Line, str, Outcome | None]]:
    """Run everything; give each outcome as it comes, and None for a cell that is not worth running any more."""
    for line in plan.lines:
        turns, given_up = contestants(line, plan.peers), set()
        for number in range(plan.rounds):
            first = number % len(turns) if turns else 0
            for name in turns[first:] + turns[:first]:  # nobody always runs when the machine is in the same mood
                if name in given_up:
                    yield line, name, None
                    continue
                outcome = run_cell(Order(line.name, name, plan.size, plan.loop), plan.timeout)
                if outcome.status in (Status.HANG, Status.SLOW, Status.MISSING):
                    given_up.add(name)
                yield line, name, outcome


def run_cell(order: Order, timeout: float) -> Outcome:
    """Run one cell in a fresh process, in a session of its own; let nothing of it outlive it."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        place = Path(folder)
        with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
            process = subprocess.Popen(  # noqa: S603 - a program of our own
                [sys.executable, "-c", PROGRAM, json.dumps(asdict(order)), folder],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, env=_environment(), start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                return _out_of_time(process.pid, timeout)
            finally:
                processes.end_session(process.pid)
                process.wait()
            return _read((place / "out").read_text(), (place / "err").read_text(), process.returncode)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}  # for workers that are programs of their own


def _out_of_time(pid: int, timeout: float) -> Outcome:
    everybody = {pid, *processes.descendants(pid)}
    before = processes.cpu_of_others(everybody)
    time.sleep(WATCHED)
    cores = (processes.cpu_of_others(everybody) - before) / WATCHED
    if cores < AT_WORK:
        return Outcome(Status.HANG, detail=f"no result in {timeout:g} s, and nothing was being computed")
    return Outcome(Status.SLOW, detail=f"no result in {timeout:g} s, on {cores:.1f} cores")


def _read(out: str, err: str, code: int) -> Outcome:
    """Find the line that a cell has printed. Others may have printed, too."""
    for line in reversed(out.splitlines()):
        found: Any = None
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "value" in found:
            return Outcome(Status.OK, float(found["value"]))
        if isinstance(found, dict) and "missing" in found:
            return Outcome(Status.MISSING, detail=str(found["missing"]))
    last = err.strip().splitlines()[-1:] or ["it printed nothing"]
    return Outcome(Status.FAILED, detail=f"exit code {code}: {last[0]}")
