"""Measure aiopool and its peers on the same work.

python -m benchmarks                                  # everything: about an hour
python -m benchmarks burst --peers run_in_executor    # one line, one peer
"""

from __future__ import annotations

import argparse
import compileall
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import aiopool

from . import report
from .lines import LINES, Line, named
from .peers import PEERS, installed
from .run import Outcome, Plan, Status, run_rounds

INTERRUPTED = 130  # what a shell calls a program that Ctrl-C has ended


def _line_names() -> str:
    return "\n".join(f"  {line.name:<21} {line.title}" for line in LINES.values())


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"lines:\n{_line_names()}",
    )  # fmt: skip
    parser.add_argument("lines", nargs="*", metavar="LINE", help="which lines, or the beginnings of their names; all")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="PEER",
                        help=f"compare aiopool with these; all that are installed, of {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--rounds", type=_count, default=5, help="how often each cell is run (%(default)s)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="FOLDER",
                        help="where the results go (%(default)s)")  # fmt: skip
    parser.add_argument("--timeout", type=_positive, default=60.0, help="seconds for each cell (%(default)s)")
    parser.add_argument("--size", type=_positive, default=1.0, help="part of the work to do, to try it out (1)")
    return parser.parse_args(arguments)


def _plan(chosen: argparse.Namespace) -> Plan:
    here = installed()
    if chosen.peers and (lacking := [name for name in chosen.peers if name not in here]):
        raise LookupError(f"not installed: {', '.join(lacking)}; pip install -e '.[bench]' installs all peers")
    peers = here if chosen.peers is None else list(dict.fromkeys(["aiopool", *chosen.peers]))
    lines = named(chosen.lines or LINES)
    return Plan(lines, peers, chosen.rounds, chosen.loop, chosen.timeout, chosen.size)


def _compile() -> None:
    """Compile what workers import, as pip has compiled the peers; else who runs this from its source starts slower."""
    for folder in (Path(aiopool.__file__).parent, Path(__file__).parent):
        compileall.compile_dir(folder, quiet=2)


def _run(plan: Plan, results: report.Results) -> bool:
    """Run the cells and show how far they are; return whether nobody has interrupted that."""
    with tqdm(total=plan.cells, unit="cell", dynamic_ncols=True) as bar:
        try:
            for line, name, outcome in run_rounds(plan):
                bar.update()
                if outcome is not None:
                    results.add(line, name, outcome)
                    bar.set_postfix_str(_progress(line, name, outcome))
        except KeyboardInterrupt:
            return False
    return True


def _progress(line: Line, name: str, outcome: Outcome) -> str:
    number = outcome.status if outcome.value is None else f"{report.format_number(outcome.value)} {line.unit}"
    return f"{line.name}, {name}: {number}"


def _write(plan: Plan, results: report.Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    where, text = report.machine(), report.table(plan, results)
    print(f"\n{text}\n")
    (folder / "results.txt").write_text(f"{text}\n")
    (folder / "results.json").write_text(f"{report.to_json(plan, results, where)}\n")
    print(f"written: {folder / 'results.txt'}, {folder / 'results.json'}")
    try:
        report.picture(plan, results, where, folder / "results.png")
    except ImportError:
        print("no picture: pip install matplotlib, or pip install -e '.[bench]'")
    else:
        print(f"written: {folder / 'results.png'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, and report; return 1 if aiopool itself has hung or failed."""
    chosen = options(arguments)
    try:
        plan = _plan(chosen)
    except LookupError as error:
        print(error, file=sys.stderr)
        return 2
    _compile()
    results = report.Results()
    complete = _run(plan, results)
    _write(plan, results, chosen.out)
    if not complete:
        return INTERRUPTED
    ours = (results.trouble(line, "aiopool") for line in plan.lines)
    return int(any(trouble is not None and trouble.status is not Status.MISSING for trouble in ours))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was measured until then is not to be lost
    sys.exit(main())
