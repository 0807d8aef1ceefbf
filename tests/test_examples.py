"""The examples, run as their users run them: as programs, on real files, with every warning an error."""

from __future__ import annotations

import ast
import email
import math
import re
import tokenize
from pathlib import Path

import pytest

from programs import PROGRAMS, interrupt, output_of, read_until, run, started

pytestmark = pytest.mark.once

REAL_FOLDER = Path(str(email.__file__)).parent
# Reading what the census prints.


def counts(output: str) -> dict[str, int]:
    """Return the numbers at the table's head, and how many files do not parse."""
    heads = re.findall(r"^(files|lines|functions|classes) +([\d,]+)$", output, re.MULTILINE)
    found = {what: int(number.replace(",", "")) for what, number in heads}
    problems = re.search(r"^Files that do not parse: (\S+)$", output, re.MULTILINE)
    assert problems is not None
    return found | {"problems": 0 if problems[1] == "none" else int(problems[1])}


def longest_functions(output: str) -> list[tuple[int, str, str]]:
    """Return the table of the longest functions: lines, name, place."""
    rows = re.findall(r"^ *([\d,]+)  (\S+)  (\S+:\d+)$", output, re.MULTILINE)
    return [(int(lines.replace(",", "")), name, place) for lines, name, place in rows]


def without_times(output: str) -> str:
    """Return the part of the output that is the same in each run."""
    return output.partition("\nTime with the pool")[0]


# Counting by other means than the census does.


class Counter(ast.NodeVisitor):
    """Counts what is in a folder of files that parse, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.counts = {"files": 0, "lines": 0, "functions": 0, "classes": 0, "problems": 0}
        self.functions: list[tuple[int, str, int, str]] = []
        self.names: list[str] = []
        for file in folder.rglob("*.py"):
            self.name = str(file.relative_to(folder))
            self.count(file)

    def count(self, file: Path) -> None:
        """Count one file, decoded before it is parsed."""
        with tokenize.open(file) as stream:
            lines = list(stream)
        self.counts["files"] += 1
        self.counts["lines"] += len(lines)
        self.visit(ast.parse("".join(lines)))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Count a class, and what is in it."""
        self.counts["classes"] += 1
        self.enter(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Count a function, and what is in it."""
        self.counts["functions"] += 1
        lines = range(node.lineno, (node.end_lineno or 0) + 1)
        self.functions.append((-len(lines), self.name, node.lineno, ".".join([*self.names, node.name])))
        self.enter(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - ast's name

    def enter(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Go on inside."""
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    def longest(self) -> list[tuple[int, str, str]]:
        """Return the ten longest functions in the census's order and form."""
        return [(-lines, name, f"{file}:{line}") for lines, file, line, name in sorted(self.functions)[:10]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of every kind."""
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n    pass\n")
    (tmp_path / "latin.py").write_bytes('# -*- coding: latin-1 -*-\ndef grüße():\n    return "ß"\n'.encode("latin-1"))
    (tmp_path / "unmarked.py").write_bytes('x = "ß"\n'.encode("latin-1"))
    (tmp_path / "marked.py").write_bytes(b"\xef\xbb\xbfclass Marked:\n    async def method(self): ...\n")
    (tmp_path / "doubtful.py").write_text('assert (1, "always")\nx = "\\d"\ny = 1 is 1\n')
    (tmp_path / "no_newline.py").write_text("x = 1\ny = 2")
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "notes.txt").write_text("def f(): ...\n")
    below = tmp_path / "site-packages" / "installed"
    below.mkdir(parents=True)
    (below / "module.py").write_text("def f(): ...\n")
    return tmp_path


# The first program.


def test_first_program_has_fewer_than_fifteen_lines() -> None:
    """What a reader meets first can be taken in at a glance."""
    assert len((PROGRAMS / "first.py").read_text().splitlines()) < 15


def test_first_program_calls_maps_and_iterates() -> None:
    """It prints the result of each of the three verbs that it shows."""
    apply, map_, unordered = output_of("first.py").splitlines()
    sums = [sum(range(count)) for count in (10**3, 10**5, 10**7)]
    assert apply == f"apply: {2**100}"
    assert map_ == f"map: {sums}"
    values = ast.literal_eval(unordered.removeprefix("as they come: "))
    assert sorted(values) == [45, sums[-1]]


# The series.


def test_series_ends_near_pi_and_says_how_near() -> None:
    """Each call's part is reported as it comes, and the last estimate is that of the whole series."""
    *progress, last = output_of("compute_pi.py", "--terms", 10_001, "--calls", 7).splitlines()
    expected = math.fsum((-1) ** k * 4 / (2 * k + 1) for k in range(10_001))
    assert [line.split(":")[0] for line in progress] == [f"{number} of 7 calls" for number in range(1, 8)]
    assert progress[-1] == f"7 of 7 calls: {expected:.12f}"
    estimate, error = map(float, re.findall(r"about (\S+), off by (\S+)", last)[0])
    assert estimate == pytest.approx(expected, abs=1e-14)
    assert error == pytest.approx(abs(expected - math.pi), rel=0.1)


def test_series_may_have_fewer_terms_than_calls() -> None:
    """Calls without a term add nothing."""
    assert "pi is about 4.000000000000000," in output_of("compute_pi.py", "--terms", 1, "--calls", 3)


@pytest.mark.parametrize("option", ["--terms", "--calls"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_series_refuses_a_senseless_number(option: str, value: str) -> None:
    """A number that is none, or too small, is a usage error that names the option."""
    done = run("compute_pi.py", f"{option}={value}")
    assert done.returncode == 2
    assert f"error: argument {option}" in done.stderr
    assert "Traceback" not in done.stderr


# The census.


def test_census_counts_a_real_folder_exactly() -> None:
    """The numbers and the longest functions are those that another way of counting finds; both times are told."""
    output = output_of("census.py", REAL_FOLDER)
    counter = Counter(REAL_FOLDER)
    assert counts(output) == counter.counts
    assert longest_functions(output) == counter.longest()
    assert re.search(r"^Time with the pool: +\d+\.\d\d s$", output, re.MULTILINE)
    assert re.search(r"^Time without the pool: +\d+\.\d\d s, \d+\.\d\d times as long$", output, re.MULTILINE)


def test_census_is_the_same_whatever_the_number_of_workers() -> None:
    """The order in which reports arrive makes no difference."""
    one, four = (output_of("census.py", REAL_FOLDER, "--no-compare", "--processes", number) for number in (1, 4))
    assert without_times(one) == without_times(four)


def test_census_without_comparison_works_once() -> None:
    """``--no-compare`` leaves out the run without the pool, its progress and its time."""
    done = run("census.py", REAL_FOLDER, "--no-compare")
    files = len(list(REAL_FOLDER.rglob("*.py")))
    assert f"{files}/{files}" in done.stderr
    assert "without" not in done.stdout + done.stderr


def test_census_shows_progress_of_both_runs() -> None:
    """Each run counts its files up to the last."""
    done = run("census.py", REAL_FOLDER)
    files = len(list(REAL_FOLDER.rglob("*.py")))
    for label in ("with the pool", "without"):
        assert re.search(rf"{label}: 100%.* {files}/{files} ", done.stderr)


def test_census_takes_every_kind_of_file(folder: Path) -> None:
    """Encodings are those that the files declare, doubtful code passes without a word, site-packages is left out."""
    done = run("census.py", folder)
    assert done.returncode == 0
    assert counts(done.stdout) == {"files": 8, "lines": 15, "functions": 2, "classes": 1, "problems": 3}
    assert longest_functions(done.stdout) == [(2, "grüße", "latin.py:2"), (1, "Marked.method", "marked.py:2")]
    assert "Warning" not in done.stdout + done.stderr


def test_census_says_why_a_file_does_not_parse(folder: Path) -> None:
    """Bad syntax, an undeclared encoding and null bytes are each told with their file, in order."""
    output = without_times(output_of("census.py", folder, "--no-compare"))
    broken, null, unmarked = output.partition("do not parse: 3\n")[2].splitlines()
    assert broken.startswith("  broken.py: line 2: ")
    assert null.startswith("  null.py: ")
    assert "null bytes" in null
    assert unmarked.startswith("  unmarked.py: line 1: (unicode error) 'utf-8' codec")


def test_census_refuses_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """It is a usage error that names the folder."""
    done = run("census.py", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"error: there is no folder {tmp_path / 'nowhere'}\n")


def test_census_refuses_a_folder_without_python_files(tmp_path: Path) -> None:
    """A folder's name alone makes no Python file, nor does a link to nothing."""
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nothing")
    done = run("census.py", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"error: there is no Python file below {tmp_path}\n")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_census_refuses_a_senseless_number_of_workers(value: str) -> None:
    """A number that is none, or too small, is a usage error that names the option."""
    done = run("census.py", REAL_FOLDER, f"--processes={value}")
    assert done.returncode == 2
    assert "error: argument --processes" in done.stderr


def test_ctrl_c_ends_the_census_of_the_standard_library_at_once_and_quietly() -> None:
    """The folder is the standard library by default; interrupted while workers parse it, nothing is left of it."""
    with started("census.py", strict=False) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = read_until(process.stderr, "with the pool:   0%")
        errors += read_until(process.stderr, "\n")  # the bar is drawn anew: a first report has come
        errors += interrupt(process)
        assert process.returncode == 130
        assert process.stdout.read() == ""
    assert "Traceback" not in errors
    assert "Warning" not in errors


def test_ctrl_c_ends_the_comparison_quietly_too(tmp_path: Path) -> None:
    """Without the pool an interruption looks the same, and what was printed before it stays."""
    for number in range(5):  # each takes its second, and in the first of these Ctrl-C comes
        (tmp_path / f"long{number}.py").write_text("x = [1, 2, 3]\n" * 40_000)
    with started("census.py", tmp_path, strict=False) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = read_until(process.stderr, "without:   0%")
        errors += interrupt(process)
        assert process.returncode == 130
        assert counts(process.stdout.read())["lines"] == 5 * 40_000
    assert "Traceback" not in errors
    assert "Warning" not in errors


def test_the_census_is_the_same_on_a_cluster() -> None:
    """One that the program starts, with the main module's functions."""
    here = output_of("census.py", REAL_FOLDER, "--no-compare", "--processes", "2")
    there = run("census.py", REAL_FOLDER, "--no-compare", "--processes", "2", "--dask")
    assert there.returncode == 0, there.stderr
    assert without_times(there.stdout) == without_times(here)


# The crawl.


def test_the_crawl_reads_every_page_in_workers_as_in_one_process() -> None:
    """All words and links of all pages of a real server are counted, and it ends without a trace."""
    output = output_of("crawl.py", "--pages", "60", "--processes", "2")
    assert re.match(r"60 pages, 25320 words, most often '\w+', links to 60 pages\n", output)
    assert re.search(r"^one process: [\d.]+ s; 2 workers: [\d.]+ s$", output, re.MULTILINE)
