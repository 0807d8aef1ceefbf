"""The example that crunches access logs, on logs that it makes and on odd ones; counted by other means, too."""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import logs
from programs import interrupt, output_of, run, started

LINES = 20_000

pytestmark = [
    pytest.mark.timeout(240),  # a very busy machine may take that long over several runs of a program
    pytest.mark.once,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a month of logs."""
    made = tmp_path_factory.mktemp("logs")
    output = output_of("logs.py", "--make", LINES, made)
    size = sum(file.stat().st_size for file in made.iterdir())
    assert output == f"{LINES:,} lines in {made}, {size:,} bytes compressed\n"
    return made


def lines_of(folder: Path) -> Iterator[str]:
    """Return all lines of the logs in a folder."""
    for file in folder.iterdir():
        yield from gzip.decompress(file.read_bytes()).decode().splitlines()


# What a report says.


def number(output: str, title: str) -> int:
    """Return the number beside a title."""
    found = re.search(rf"^{title}: ([\d,]+)$", output, re.MULTILINE)
    assert found is not None, output
    return int(found[1].replace(",", ""))


def table(output: str, title: str) -> list[tuple[int, str]]:
    """Return the lines of a table."""
    found = re.search(rf"^{title}(: [\d,]+)?\n((?: +[\d,]+  .*\n)*)", output, re.MULTILINE)
    assert found is not None, output
    rows = (line.strip().split("  ", 1) for line in found[2].splitlines())
    return [(int(count.replace(",", "")), text) for count, text in rows]


def untimed(output: str) -> str:
    """Return the part of a report that is the same each time."""
    return output.rpartition("\n\n")[0]


def top(counter: Counter[str]) -> list[tuple[int, str]]:
    """Return the ten lines of a table of what is most frequent."""
    return [(-count, text) for count, text in sorted((-count, text) for text, count in counter.items())[:10]]


def ends(counter: Counter[str]) -> list[tuple[int, str]]:
    """Return the two lines of a table of what is most and what is least frequent."""
    ranking = sorted((count, text) for text, count in counter.items())
    return [(ranking[-1][0], f"{ranking[-1][1]}  busiest"), (ranking[0][0], f"{ranking[0][1]}  quietest")]


def test_the_report_is_what_another_way_of_counting_finds(folder: Path) -> None:
    """Every number of it; lines are taken apart here by their quotes and blanks."""
    size, answers = 0, Counter[str]()
    pages, clients, days, hours = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    lines = list(lines_of(folder))
    requests = [line.split('"') for line in lines if '"' in line]
    for head, request, tail, *_ in requests:
        status, length = tail.split()
        day, hour = head.split("[")[1].split(":")[:2]
        size += 0 if length == "-" else int(length)
        answers[status[0]] += 1
        pages[request.split()[1].split("?")[0] if request.startswith("GET") else request] += 1
        clients[head.split()[0]] += 1
        days[day] += 1
        hours[f"{hour}:00"] += 1
    output = output_of("logs.py", folder)
    assert len(lines) == LINES
    assert number(output, "Requests") == len(requests) < LINES
    assert number(output, "Bytes") == size
    assert number(output, "Lines that are no requests") == LINES - len(requests)
    assert table(output, "Answers") == [
        (count, f"{status}xx  {count / len(requests):6.1%}") for status, count in sorted(answers.items())
    ]
    assert (number(output, "Pages"), table(output, "Pages")) == (len(pages), top(pages))
    assert (number(output, "Clients"), table(output, "Clients")) == (len(clients), top(clients))
    assert table(output, "Day") == ends(days)
    assert table(output, "Hour of the day") == ends(hours)
    assert "could not be read to their end: none\n" in output
    assert re.search(r"^30 files in \d+\.\d\d s$", output, re.MULTILINE)


def test_files_and_folders_are_counted_alike(folder: Path, tmp_path: Path) -> None:
    """Compressed or not, below a folder or named one by one; what has another name is left out of a folder."""
    (tmp_path / "below").mkdir()
    for file in folder.iterdir():
        (tmp_path / "below" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    (tmp_path / "error.log").write_text("[error] not an access log\n")
    reports = {untimed(output_of("logs.py", *paths)) for paths in ([folder], [tmp_path], sorted(folder.iterdir()))}
    assert len(reports) == 1


def test_logs_are_made_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    """So that figures can be compared; in a folder that need not be there."""
    output_of("logs.py", "--make", LINES, tmp_path / "new" / "folder")
    assert sorted(lines_of(tmp_path / "new" / "folder")) == sorted(lines_of(folder))


# Lines.


@pytest.mark.parametrize(
    ("line", "client", "path", "size"),
    [
        ('::1 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.0" 200 2326', "::1", "/a", 2326),
        ('h - frank [10/Oct/2000:13:00:00 +0000] "GET /a?b c HTTP/1.1" 200 1 "http://x/" "Agent [1]"', "h", "/a", 1),
        ('h - a user [10/Oct/2000:13:00:00 +0000] "POST /a HTTP/2.0" 201 0 "-" "-"', "h", "/a", 0),
        (r'h - - [10/Oct/2000:13:00:00 +0000] "GET /\"a\" HTTP/1.1" 404 9', "h", r"/\"a\"", 9),
        (r'h - - [10/Oct/2000:13:00:00 +0000] "\x16\x03" 400 -', "h", r"\x16\x03", 0),
        ('h - - [10/Oct/2000:13:00:00 +0000] "-" 408 -', "h", "-", 0),
        ('h - - [10/Oct/2000:13:00:00 +0000] "" 400 0', "h", "", 0),
    ],
)
def test_a_line_of_either_format_is_taken_apart(line: str, client: str, path: str, size: int) -> None:
    """Whatever the client has sent as a request."""
    tally = logs.Tally()
    tally.add_line(line.encode())
    assert (tally.clients, tally.paths) == (Counter([client.encode()]), Counter([path.encode()]))
    assert (tally.hours, tally.size, tally.unknown) == (Counter([b"10/Oct/2000:13"]), size, 0)


@pytest.mark.parametrize("line", ["", "text", 'h - - [no time] "GET / HTTP/1.1" 200 1', "h - - [10/Oct/2000:13:00:0"])
def test_a_line_that_is_none_is_only_counted(line: str) -> None:
    """It adds to nothing else."""
    tally = logs.Tally()
    tally.add_line(line.encode())
    assert tally == logs.Tally(unknown=1)


# Files.


def test_a_damaged_file_is_counted_as_far_as_it_can_be_read(folder: Path, tmp_path: Path) -> None:
    """The report names it, and why, be it cut, overwritten, or no such file at all. The others are whole."""
    good, cut = sorted(folder.iterdir())[:2]
    (tmp_path / "access-1.gz").write_bytes(good.read_bytes())
    (tmp_path / "access-2.gz").write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "access-3.gz").write_text("no gzip\n")
    (tmp_path / "access-4.gz").write_bytes(
        cut.read_bytes() + gzip.compress(b"")[:10] + b"\x07"
    )  # no such kind of block
    output = output_of("logs.py", tmp_path)
    whole, more = (number(output_of("logs.py", file), "Requests") for file in (good, cut))
    assert whole + more < number(output, "Requests") < whole + more + more
    problems = output.partition("could not be read to their end: ")[2].splitlines()
    assert problems[0] == "3"
    assert problems[1].startswith(f"  {tmp_path / 'access-2.gz'}: Compressed file ended before")
    assert problems[2].startswith(f"  {tmp_path / 'access-3.gz'}: Not a gzipped file")
    assert problems[3].startswith(f"  {tmp_path / 'access-4.gz'}: Error -3 while decompressing")


def test_what_clients_have_sent_does_no_harm_to_the_terminal(tmp_path: Path) -> None:
    """Control characters and bytes that are no text are shown as what they are."""
    line = b'h - - [10/Oct/2000:13:00:00 +0000] "GET /\x1b[2J\xff HTTP/1.1" 200 1\n'
    (tmp_path / "access.log").write_bytes(line)
    assert table(output_of("logs.py", tmp_path), "Pages") == [(1, r"/\x1b[2J\\xff")]


def test_an_empty_log_has_an_empty_report(tmp_path: Path) -> None:
    """There is nothing to divide by."""
    (tmp_path / "access.log").touch()
    output = output_of("logs.py", tmp_path)
    assert number(output, "Requests") == 0
    assert table(output, "Day") == []


def test_what_is_equally_frequent_stands_in_the_alphabets_order(tmp_path: Path) -> None:
    """Also where the table ends before all of it has been named; the report is the same whichever comes first."""
    names = [f"/{letter}" for letter in "lkjihgfedcba"]
    lines = (f'h - - [1{9 - at % 10}/Oct/2000:13:00:00 +0000] "GET {name}" 200 1' for at, name in enumerate(names))
    (tmp_path / "access.log").write_text("\n".join(lines))
    output = output_of("logs.py", tmp_path)
    assert table(output, "Pages") == [(1, name) for name in names[:1:-1]]
    assert table(output, "Day") == [(2, "19/Oct/2000  busiest"), (1, "10/Oct/2000  quietest")]


# The command line.


def test_the_progress_is_shown_up_to_the_last_file(folder: Path) -> None:
    """On the error output, so that the report can be kept."""
    done = run("logs.py", folder)
    assert re.search(r"^crunching .* 100% .* 30/30 *$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no nowhere"),
        (["empty"], "there is no access log below empty"),
        (["--make", "0", "empty"], "must be at least 1, not 0"),
        (["--make", "9", "empty", "other"], "--make needs one folder"),
        ([], "required: path"),
    ],
)
def test_a_senseless_command_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a usage error that says what is wrong."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = run("logs.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_ctrl_c_ends_it_at_once_and_quietly(tmp_path: Path) -> None:
    """Even while a worker waits for a file that gives nothing."""
    os.mkfifo(tmp_path / "fifo")
    with started("logs.py", tmp_path / "fifo", strict=False) as process:
        with (tmp_path / "fifo").open("wb"):  # which returns when the worker has opened it, too
            errors = interrupt(process)
        assert process.returncode == 130
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert "Traceback" not in errors
    assert "Warning" not in errors
