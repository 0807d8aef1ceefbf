"""Take a census of a folder's Python files: lines, functions, classes, the longest functions, what does not parse."""

from __future__ import annotations

import argparse
import ast
import asyncio
import heapq
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm.asyncio import tqdm

from aiopool import AioPool

OWN_CLUSTER = "one of its own"
LONGEST = 10
LEFT_OUT = {"site-packages"}
INTERRUPTED = 130  # what a shell calls a program that Ctrl-C has ended
LARGEST_CHUNK = 16  # some ten milliseconds of parsing for each message; more gains nothing and makes progress jerky
CHUNKS_PER_WORKER = 8  # at least, if files are few: a worker that got short ones then finds others to go on with

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Function(NamedTuple):
    """Where a function stands and how long it is."""

    lines: int
    name: str
    file: Path
    line: int


class Report(NamedTuple):
    """What is in one file, or in all of them."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    longest: tuple[Function, ...] = ()
    problems: tuple[tuple[Path, str], ...] = ()


# In a worker.


def survey(file: Path) -> Report:
    """Parse a file and report what is in it."""
    lines = 0
    try:
        source = file.read_bytes()
        lines = len(source.splitlines())
        tree = parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Report(files=1, lines=lines, problems=((file, reason(error)),))
    found = list(definitions(tree))
    functions = [
        Function((node.end_lineno or node.lineno) - node.lineno + 1, name, file, node.lineno)
        for name, node in found
        if not isinstance(node, ast.ClassDef)
    ]
    return Report(1, lines, len(functions), len(found) - len(functions), longest(functions))


def parse(source: bytes) -> ast.Module:
    """Parse a file's bytes, which say themselves how they are encoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Find each function and class, however deep, with its qualified name."""
    nodes: list[tuple[str, ast.AST]] = [("", tree)]
    while nodes:
        prefix, node = nodes.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                yield prefix + child.name, child
                nodes.append((f"{prefix}{child.name}.", child))
            else:
                nodes.append((prefix, child))


def longest(functions: list[Function]) -> tuple[Function, ...]:
    """Return the longest functions; of equally long ones, those that come first in the alphabet of files."""
    return tuple(heapq.nsmallest(LONGEST, functions, key=lambda each: (-each.lines, each.file, each.line, each.name)))


def reason(error: Exception) -> str:
    """Say why a file does not parse."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    return f"{type(error).__name__}: {error}"


# In this process.


def python_files(folder: Path) -> list[Path]:
    """Return the Python files below a folder."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = set(folders) - LEFT_OUT
        files += [Path(place, name) for name in names if name.endswith(".py")]
    return sorted(file for file in files if file.is_file())


def make_pool(processes: int | None, cluster: str | None) -> AioPool:
    """Return a pool of worker processes, or one on a cluster of Dask, whose machines see the same files."""
    if cluster is None:
        return AioPool(processes)
    from aiopool.backends.dask import DaskBackend  # noqa: PLC0415 - needs the extra dask

    return AioPool(processes, backend=DaskBackend(None if cluster == OWN_CLUSTER else cluster))


async def survey_all(files: list[Path], processes: int | None, cluster: str | None) -> list[Report]:
    """Survey the files in worker processes; show the progress."""
    async with make_pool(processes, cluster) as pool:
        chunksize = max(1, min(LARGEST_CHUNK, len(files) // (CHUNKS_PER_WORKER * pool.processes)))
        reports = pool.imap_unordered(survey, files, chunksize)
        return [report async for report in tqdm(reports, "with the pool", len(files), unit=" files")]


def summary(reports: list[Report]) -> Report:
    """Add up reports, whatever order they came in."""
    return Report(
        files=sum(report.files for report in reports),
        lines=sum(report.lines for report in reports),
        functions=sum(report.functions for report in reports),
        classes=sum(report.classes for report in reports),
        longest=longest([function for report in reports for function in report.longest]),
        problems=tuple(sorted(problem for report in reports for problem in report.problems)),
    )


def print_report(report: Report, folder: Path) -> None:
    """Print the table."""
    print(f"Python files below {folder}\n")
    for what in ("files", "lines", "functions", "classes"):
        print(f"{what:<10}{getattr(report, what):>12,}")
    print(f"\nThe longest functions\n{'lines':>7}  function")
    for function in report.longest:
        place = f"{function.file.relative_to(folder)}:{function.line}"
        print(f"{function.lines:>7,}  {function.name}  {place}")
    print(f"\nFiles that do not parse: {len(report.problems) or 'none'}")
    for file, problem in report.problems:
        print(f"  {file.relative_to(folder)}: {problem}")


def positive(text: str) -> int:
    """Return the number that an option says."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def arguments() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    stdlib = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("folder", type=Path, nargs="?", default=stdlib, help="default: the standard library")
    parser.add_argument("--processes", type=positive, metavar="N", help="how many workers (default: one for each CPU)")
    parser.add_argument(
        "--dask", metavar="ADDRESS", nargs="?", const=OWN_CLUSTER,
        help="run on the cluster of Dask whose scheduler is there, or on one of this machine's (pip install '.[dask]')",
    )  # fmt: skip
    parser.add_argument("--no-compare", action="store_true", help="skip the same work without the pool")
    return parser


def main() -> None:
    """Take the census; then do the same work without the pool."""
    parser = arguments()
    options = parser.parse_args()
    if options.dask not in (None, OWN_CLUSTER) and options.processes is not None:
        parser.error("a cluster has as many workers as it has: --processes is not for --dask ADDRESS")
    if not options.folder.is_dir():
        parser.error(f"there is no folder {options.folder}")
    files = python_files(options.folder)
    if not files:
        parser.error(f"there is no Python file below {options.folder}")
    begin = time.perf_counter()
    reports = asyncio.run(survey_all(files, options.processes, options.dask))
    with_pool = time.perf_counter() - begin
    print_report(summary(reports), options.folder)
    print(f"\nTime with the pool:    {with_pool:8.2f} s", flush=True)
    if not options.no_compare:
        begin = time.perf_counter()
        for file in tqdm(files, "without", unit=" files"):
            survey(file)
        without = time.perf_counter() - begin
        print(f"Time without the pool: {without:8.2f} s, {without / with_pool:.2f} times as long")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
