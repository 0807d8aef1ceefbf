"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cell import LIMIT
from .lines import BEST, LIMIT_OF_MACHINE, VALUE, Line, Target
from .peers import PEERS, version
from .run import Outcome, Plan, Status

__all__ = ["Results", "format_number", "picture", "table", "to_json"]

OURS = "aiopool"

WORDS = {Status.HANG: "HANG", Status.SLOW: "too slow", Status.FAILED: "FAILED"}

PLAIN_FROM = 1000
"""From here on numbers have no fraction, and thousands are set apart."""


class Results:
    """The outcomes of all rounds, by line and by who it was."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], list[Outcome]] = defaultdict(list)

    def add(self, line: Line, name: str, outcome: Outcome) -> None:
        """Keep one cell's outcome."""
        self._outcomes[line.name, name].append(outcome)

    def of(self, line: Line, name: str) -> Sequence[Outcome]:
        """Return the outcomes of all rounds, none if it did not run."""
        return self._outcomes.get((line.name, name), ())

    def median(self, line: Line, name: str) -> float | None:
        """Return the median over the rounds. Who has hung or failed in one has none."""
        outcomes = self.of(line, name)
        values = [outcome.value for outcome in outcomes if outcome.value is not None]
        return statistics.median(values) if values and len(values) == len(outcomes) else None

    def trouble(self, line: Line, name: str) -> Outcome | None:
        """Return the worst of the outcomes without a number: a hang before anything else."""
        bad = {outcome.status: outcome for outcome in self.of(line, name) if outcome.status is not Status.OK}
        return next((bad[status] for status in Status if status in bad), None)

    def best(self, line: Line) -> tuple[str, float] | None:
        """Return the peer with the best median, and that."""
        medians = {name: self.median(line, name) for name in PEERS if name != OURS}
        there = {name: value for name, value in medians.items() if value is not None}
        if not there:
            return None
        name = (max if line.more else min)(there, key=lambda each: there[each])
        return name, there[name]

    def text(self, line: Line, name: str) -> str:
        """Return the median, or the word for what happened instead."""
        value, trouble = self.median(line, name), self.trouble(line, name)
        if trouble is None:
            return "-" if value is None else format_number(value)
        if trouble.status is Status.MISSING:
            return trouble.detail
        times, rounds = sum(o.status is trouble.status for o in self.of(line, name)), len(self.of(line, name))
        return WORDS[trouble.status] + (f" {times}/{rounds}" if rounds > 1 else "")

    def ratio(self, line: Line, against: str) -> float | None:
        """Return how many times as good as something aiopool is, or its bare value."""
        ours, best = self.median(line, OURS), self.best(line)
        if ours is None or against == VALUE:
            return ours
        if against == BEST:
            other = best[1] if best else None
        else:
            other = self.median(line, LIMIT if against == LIMIT_OF_MACHINE else against)
        return None if other is None else line.ratio(ours, other)

    def reached(self, line: Line, target: Target) -> bool | None:
        """Return whether aiopool reaches a target; None if there is nothing to tell it from."""
        ratio = self.ratio(line, target.against)
        if ratio is None:
            return None
        return ratio <= target.least if target.against == VALUE and not line.more else ratio >= target.least


def format_number(value: float) -> str:
    """Return a number with the digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= PLAIN_FROM else f"{value:.3g}"


def format_ratio(value: float | None) -> str:
    """Return how many times, or a dash."""
    return "-" if value is None else f"{value:.2f}x"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Set rows in columns: the first to the left, numbers to the right; the first row is a heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.rjust(width) if index else text.ljust(width)
                       for index, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip()
             for row in rows]  # fmt: skip
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _target_text(results: Results, line: Line, target: Target) -> str:
    word = {True: "reached", False: "missed", None: "not told"}[results.reached(line, target)]
    if target.against == VALUE:
        return f"{'at least' if line.more else 'at most'} {target.least:g}: {word}"
    return f"{target.least:.3g}x {target.against}: {word}"


def table(plan: Plan, results: Results) -> str:
    """Return the medians of everybody, then aiopool's ratios and targets, then what went wrong."""
    peers = [name for name in PEERS if name in plan.peers]
    medians = [["", "unit", *peers, LIMIT]]
    ratios = [["aiopool", "to the best peer", "which", "to the limit", "which", "targets"]]
    for line in plan.lines:
        medians.append([line.name, line.unit, *(results.text(line, name) for name in [*peers, LIMIT])])
        best = results.best(line)
        targets = "; ".join(_target_text(results, line, target) for target in line.targets)
        to_best, to_limit = (format_ratio(results.ratio(line, against)) for against in (BEST, LIMIT_OF_MACHINE))
        ratios.append([line.name, to_best, best[0] if best else "-", to_limit, line.limit_title or "-", targets or "-"])
    return "\n\n".join(filter(None, [_aligned(medians), _aligned(ratios), "\n".join(_troubles(plan, results))]))


def _troubles(plan: Plan, results: Results) -> Iterable[str]:
    for line in plan.lines:
        for name in [*PEERS, LIMIT]:
            trouble = results.trouble(line, name)
            if trouble and trouble.status is not Status.MISSING:
                yield f"{line.name}, {name}: {WORDS[trouble.status]}: {trouble.detail}"


def machine() -> dict[str, Any]:
    """Return where and when this was."""
    names = [text for text in _lines("/proc/cpuinfo") if text.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def to_json(plan: Plan, results: Results, where: Mapping[str, Any]) -> str:
    """Return everything: each round's number, the medians, the ratios."""
    return json.dumps(
        {
            "machine": where,
            "options": {"rounds": plan.rounds, "loop": plan.loop, "timeout": plan.timeout, "size": plan.size},
            "peers": {name: version(PEERS[name]) for name in plan.peers},
            "lines": {line.name: _line_to_dict(plan, results, line) for line in plan.lines},
        },
        indent=1,
    )


def _line_to_dict(plan: Plan, results: Results, line: Line) -> dict[str, Any]:
    best = results.best(line)
    return {
        "title": line.title, "unit": line.unit, "better": "more" if line.more else "less", "limit": line.limit_title,
        "best peer": best[0] if best else None,
        "ratio to the best peer": results.ratio(line, BEST),
        "ratio to the limit": results.ratio(line, LIMIT_OF_MACHINE),
        "targets": [{"against": target.against, "least": target.least, "reached": results.reached(line, target)}
                    for target in line.targets],
        "results": {name: {"median": results.median(line, name),
                           "rounds": [{"status": o.status, "value": o.value, "detail": o.detail} for o in outcomes]}
                    for name in [*plan.peers, LIMIT] if (outcomes := results.of(line, name))},
    }  # fmt: skip


def picture(plan: Plan, results: Results, where: Mapping[str, Any], file: Path) -> None:
    """Draw one bar chart for each line, everybody's name at the bar.

    Raises:
        ImportError: there is no matplotlib.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(plan.lines))
    rows = -(-len(plan.lines) // columns)
    figure = Figure((6.2 * columns, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(plan.lines) :]:
        axes.set_visible(False)
    for axes, line in zip(grid.flat, plan.lines, strict=False):
        _draw(axes, plan, results, line)
    figure.suptitle(
        f"{where['processor']}, {where['cores']} cores, {where['python']}, {plan.loop}, {where['date'][:10]}; "
        f"medians of {plan.rounds} rounds" + (f", {plan.size:g} of the work" if plan.size != 1 else ""),
        fontsize=10,
    )
    figure.savefig(file, dpi=110)


def _draw(axes: Any, plan: Plan, results: Results, line: Line) -> None:
    names = [name for name in PEERS if name in plan.peers and results.of(line, name)]
    medians = [results.median(line, name) for name in names]
    colors = ["tab:blue" if name == OURS else "lightgray" for name in names]
    bars = axes.barh([PEERS[name].label for name in names], [value or 0.0 for value in medians], color=colors)
    axes.bar_label(bars, [results.text(line, name) for name in names], padding=3, fontsize=8)
    limit = results.median(line, LIMIT)
    better = f"{line.unit}, {'more' if line.more else 'less'} is better"
    if limit is not None:
        axes.axvline(limit, color="tab:red", linestyle="--", linewidth=1)
        better += f"; dashed: {line.limit_title}, {limit:.3g}"
    axes.set_ylim(max(len(names), 4) - 0.4, -0.6)  # from above, and a lonely bar no thicker than others
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_title(f"{line.title}\n{better}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
