"""The public face is typed: what users pass and get keeps their own types, and a wrong argument is an error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TYPED = Path(__file__).with_name("typed.py")


def expected() -> dict[int, str]:
    """Return what is said in the comments, by line: a type, or "error"."""
    found = {}
    for number, line in enumerate(TYPED.read_text().splitlines(), 1):
        if re.search(r"\)  # ", line):
            comment = line.rpartition("  # ")[2]
            found[number] = "error" if comment.startswith("error") else comment
    return found


def by_mypy() -> dict[int, str]:
    """Return what mypy says, by line."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--no-error-summary", TYPED],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r'.*?:(\d+): (?:note: Revealed type is "(.*)"|error: .*)', line)
        if match:
            found[int(match[1])] = re.sub(r"(?:\w+\.)+", "", match[2]) if match[2] else "error"
    return found


def by_pyright() -> dict[int, str]:
    """Return what pyright says, by line."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, TYPED],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {}
    for diagnostic in json.loads(done.stdout)["generalDiagnostics"]:
        match = re.match(r'Type of ".*" is "(.*)"$', diagnostic["message"])
        if match or diagnostic["severity"] == "error":
            found[diagnostic["range"]["start"]["line"] + 1] = match[1] if match else "error"
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", [by_mypy, by_pyright])
def test_type_checkers_see_the_users_types(checker) -> None:
    """As the comments in ``typed.py`` say, line by line."""
    assert checker() == expected()
