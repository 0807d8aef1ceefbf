"""Every program in the documents runs, and prints what is said there.

A comment on the line above a code block says what kind of block it is, where it is not simply a program:

- ``<!-- file: NAME -->``: it is kept under this name beside the programs that follow on its page. One that is named
  ``test_*.py`` is run by pytest.
- ``<!-- fails: TEXT -->``: the program ends with this on its standard error.
- ``<!-- fragment: REASON -->``: it is no program; only its syntax is looked at.

A block of ``text`` that follows a program is what it prints; ``...`` in it stands for anything.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = ("file", "fails", "fragment")
BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>\w+): (?P<what>.+?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
STRICTLY = ("-X", "dev", "-W", "error")
FEWEST = 35
"""Programs; should the pattern above fail to see them, that is not to pass for success."""


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    line: int
    kind: str
    what: str
    language: str
    code: str
    output: str | None

    @property
    def is_test(self) -> bool:
        """Whether pytest runs it."""
        return self.kind == "file" and self.what.startswith("test_")

    @property
    def is_program(self) -> bool:
        """Whether it is run by itself."""
        return self.language == "python" and self.kind not in ("file", "fragment")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        kind, what = found["kind"] or "", found["what"] or ""
        yield Block(page, line, kind, what, found["language"], found["code"], found["output"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
PROGRAMS = [block for block in BLOCKS if block.is_program or block.is_test]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_the_syntax_is_right(block: Block) -> None:
    """Of every block, also of those that cannot be run; and each comment above one is understood."""
    compile(block.code, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    assert block.kind in ("", *KINDS)


def test_every_block_of_python_is_found() -> None:
    """Those in lists or with options of their own would not be, and so are not to be."""
    for page in PAGES:
        fences = re.findall(r"^\s*(?:```+|:::+|~~~+)\W*(?:code-block\W*)?python", page.read_text(), re.MULTILINE)
        assert len(fences) == sum(block.page == page for block in PYTHON), page
    assert len(PROGRAMS) >= FEWEST


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_does_what_is_said(block: Block, tmp_path: Path) -> None:
    """With every warning an error, and beside the files that stand above it on its page."""
    for other in BLOCKS:
        if other.page == block.page and other.kind == "file" and other.line <= block.line:
            (tmp_path / other.what).write_text(other.code)
    program = ["program.py"]
    if block.is_test:
        program = ["-m", "pytest", "-q", "-p", "no:cacheprovider", block.what]
    else:
        (tmp_path / "program.py").write_text(block.code)
    done = subprocess.run(
        [sys.executable, *STRICTLY, *program], cwd=tmp_path, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    if block.kind == "fails":
        assert done.returncode == 1
        assert block.what in done.stderr
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
    if block.output is not None:
        wanted = doctest.OutputChecker().check_output(block.output, done.stdout, doctest.ELLIPSIS)
        assert wanted, f"printed:\n{done.stdout}\nexpected:\n{block.output}"
