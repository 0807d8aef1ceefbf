"""The check for what a test leaves behind knows what is none of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from benchmarks.chaos_named import FOLDER, vanishes


@pytest.fixture
def name() -> Iterator[str]:
    """A file in /dev/shm that nobody has open."""
    made = f"aiopool-test-{os.getpid()}"
    (FOLDER / made).touch()
    yield made
    (FOLDER / made).unlink(missing_ok=True)


def test_a_file_that_somebody_removes_is_waited_for(name: str) -> None:
    """However many others are removed before it."""
    script = f"read go; for i in 1 2 3; do : > {name}-$i; rm {name}-$i; done; rm {name}"
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, cwd=FOLDER) as remover:
        assert remover.stdin is not None
        remover.stdin.write(b"go\n")
        remover.stdin.close()
        assert vanishes(name, 20)
    assert vanishes(name, 20)


def test_a_file_that_stays_is_a_leftover(name: str) -> None:
    """After a while."""
    assert not vanishes(name, 0.01)
