"""Crunch web servers' access logs: who asked for what, when, and what came of it.

    python examples/logs.py /var/log/nginx
    python examples/logs.py --make 1000000 logs && python examples/logs.py logs

The second line is for those who have no logs at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gzip
import heapq
import random
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from aiopool import AioPool

TOP = 10
DAYS = 30  # of the logs that are made
INTERRUPTED = 130  # what a shell calls a program that Ctrl-C has ended

# The Common Log Format; what the Combined one has beyond it stands behind that.
LINE = re.compile(
    rb"(?P<client>\S+) \S+ .*?"  # users' names may have spaces
    rb"\[(?P<hour>\d\d/\w{3}/\d{4}:\d\d):\d\d:\d\d [+-]\d{4}\] "
    rb'"(?P<request>(?:[^"\\]|\\.)*)" '
    rb"(?P<status>[1-5])\d\d (?P<size>\d+|-)"
)

S = TypeVar("S")
T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class Tally:
    """What is in one file, or in all of them."""

    size: int = 0
    unknown: int = 0
    statuses: Counter[bytes] = dataclasses.field(default_factory=Counter)
    paths: Counter[bytes] = dataclasses.field(default_factory=Counter)
    clients: Counter[bytes] = dataclasses.field(default_factory=Counter)
    hours: Counter[bytes] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)

    def add_line(self, line: bytes) -> None:
        """Count a line."""
        if not (match := LINE.match(line)):
            self.unknown += 1
            return
        client, hour, request, status, size = match.groups()
        self.size += 0 if size == b"-" else int(size)
        self.statuses[status] += 1
        self.paths[path_of(request)] += 1
        self.clients[client] += 1
        self.hours[hour] += 1

    def add(self, other: Tally) -> None:
        """Add what is in other files."""
        self.size += other.size
        self.unknown += other.unknown
        self.statuses.update(other.statuses)
        self.paths.update(other.paths)
        self.clients.update(other.clients)
        self.hours.update(other.hours)
        self.problems += other.problems


# In a worker.


def crunch(file: Path) -> Tally:
    """Count the lines of a log, up to where it is damaged."""
    tally = Tally()
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                tally.add_line(line)
    except (OSError, EOFError, zlib.error) as error:
        tally.problems.append(f"{file}: {error}")
    return tally


def path_of(request: bytes) -> bytes:
    """Return what was asked for, without the query; of what is no request, all of it."""
    words = request.split(b" ", 2)
    return words[1].partition(b"?")[0] if len(words) > 1 else request


def make_log(folder: Path, lines: int, day: int) -> int:
    """Write one of the days that so many lines are spread over, always with the same ones; return the file's size."""
    chance = random.Random(day)  # noqa: S311 - nothing is kept secret with it
    begin = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day)
    share = lines // DAYS + (day < lines % DAYS)
    seconds = sorted(int(chance.gauss(14 * 3600, 4 * 3600)) % 86_400 for _ in range(share))
    file = folder / f"access-{begin:%Y-%m-%d}.log.gz"
    with gzip.open(file, "wt", compresslevel=6, encoding="ascii") as log:
        log.writelines(make_line(chance, begin + timedelta(seconds=second)) for second in seconds)
    return file.stat().st_size


def make_line(chance: random.Random, moment: datetime) -> str:
    """Return a line of a log; there are popular pages and busy clients, and now and then something odd."""
    client = int(chance.paretovariate(0.8)) % 0x10000
    page = int(chance.paretovariate(0.9)) % 1000
    status = chance.choices((200, 304, 404, 500), (90, 6, 3, 1))[0]
    size = "-" if status == HTTPStatus.NOT_MODIFIED else int(chance.lognormvariate(8, 1.5))
    oddity = chance.choices(("none", "noise", "half"), (989, 10, 1))[0]
    if oddity == "half":
        return "the disk was full, and half of the li\n"
    request = r"\x16\x03\x01" if oddity == "noise" else f"GET /pages/{page}?from={client} HTTP/1.1"
    return (
        f"10.0.{client >> 8}.{client & 255} - - [{moment:%d/%b/%Y:%H:%M:%S %z}] "
        f'"{request}" {status} {size} "-" "Mozilla/5.0 (X11; Linux x86_64)"\n'
    )


# In this process.


async def do_all(label: str, function: Callable[[S], T], items: Sequence[S], take: Callable[[T], object]) -> None:
    """Call a function for each item in worker processes, hand on the results in order, and show the progress."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(label, total=len(items))
        async with AioPool() as pool:
            async for result in pool.imap(function, items):
                take(result)
                progress.advance(bar)


def find_logs(paths: list[Path]) -> list[Path]:
    """Return files as they are, and of folders the access logs below them."""
    found: list[Path] = []
    for path in paths:
        found += sorted(file for file in path.rglob("*access*") if file.is_file()) if path.is_dir() else [path]
    return found


def print_report(tally: Tally) -> None:
    """Print what was found."""
    requests = tally.statuses.total()
    print(f"Requests: {requests:,}\nBytes: {tally.size:,}\nLines that are no requests: {tally.unknown:,}")
    print("\nAnswers")
    for status, count in sorted(tally.statuses.items()):
        print(f"{count:>12,}  {shown(status)}xx  {count / requests:6.1%}")
    print_top("Pages", tally.paths)
    print_top("Clients", tally.clients)
    days, hours = Counter[bytes](), Counter[bytes]()
    for hour, count in tally.hours.items():
        days[hour[:11]] += count
        hours[hour[12:] + b":00"] += count
    print_ends("Day", days)
    print_ends("Hour of the day", hours)
    print(f"\nFiles that could not be read to their end: {len(tally.problems) or 'none'}")
    for problem in tally.problems:
        print(f"  {problem}")


def print_top(title: str, counter: Counter[bytes]) -> None:
    """Print what is most frequent; of what is equally frequent, that which comes first in the alphabet."""
    print(f"\n{title}: {len(counter):,}")
    for key, count in heapq.nsmallest(TOP, counter.items(), key=lambda each: (-each[1], each[0])):
        print(f"{count:>12,}  {shown(key)}")


def print_ends(title: str, counter: Counter[bytes]) -> None:
    """Print when most was asked, and when least."""
    print(f"\n{title}")
    ranking = sorted(counter.items(), key=lambda each: (each[1], each[0]))
    for label, ends in (("busiest", ranking[-1:]), ("quietest", ranking[:1])):
        for key, count in ends:
            print(f"{count:>12,}  {shown(key)}  {label}")


def shown(key: bytes) -> str:
    """Return a text that does no harm to a terminal, whatever clients have sent."""
    text = key.decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]


def positive(text: str) -> int:
    """Return the number that an option says."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def arguments() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description="Crunch access logs in the Common or the Combined Log Format.")
    what = "a log, compressed if it ends in .gz; or a folder, for all below it whose names have 'access' in them"
    parser.add_argument("paths", type=Path, nargs="+", metavar="path", help=what)
    parser.add_argument("--make", type=positive, metavar="LINES", help="make so many lines of logs in a folder instead")
    return parser


def make_logs(folder: Path, lines: int) -> None:
    """Make logs to play with."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: list[int] = []
    asyncio.run(do_all("making", partial(make_log, folder, lines), range(DAYS), sizes.append))
    print(f"{lines:,} lines in {folder}, {sum(sizes):,} bytes compressed")


def main() -> None:
    """Make logs, or crunch them."""
    parser = arguments()
    options = parser.parse_args()
    if options.make:
        if len(options.paths) > 1:
            parser.error("--make needs one folder")
        make_logs(options.paths[0], options.make)
        return
    if missing := [path for path in options.paths if not path.exists()]:
        parser.error(f"there is no {missing[0]}")
    if not (files := find_logs(options.paths)):
        parser.error(f"there is no access log below {', '.join(map(str, options.paths))}")
    begin = time.perf_counter()
    total = Tally()
    asyncio.run(do_all("crunching", crunch, files, total.add))
    print_report(total)
    print(f"\n{len(files):,} files in {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
