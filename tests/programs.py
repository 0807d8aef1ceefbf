"""Running the examples as their users run them, each in a session of its own, of which nothing may be left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO

PROGRAMS = Path(__file__).parent.parent / "examples"
STRICT = ("-X", "dev", "-W", "error")
AT_ONCE = 10
"""Seconds that a busy machine may take over what takes a tenth of one."""


@contextlib.contextmanager
def session(
    *arguments: object, stdout: int = subprocess.PIPE, env: Mapping[str, str] | None = None
) -> Generator[subprocess.Popen[str]]:
    """Start Python in a session of its own; check afterwards that nothing of the session is left."""
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    with subprocess.Popen(
        command, stdout=stdout, stderr=pipe, env=env, encoding="utf-8", start_new_session=True
    ) as process:
        try:
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            process.kill()  # which does nothing to one that has ended
    assert not processes_left(process.pid)


@contextlib.contextmanager
def started(program: str, *arguments: object, strict: bool = True) -> Generator[subprocess.Popen[str]]:
    """Start an example in a session of its own.

    One that is to be interrupted is not run strictly: Ctrl-C within ``open`` leaves a file to the collector, of which
    only the development mode speaks.
    """
    with session(*(STRICT if strict else ()), PROGRAMS / program, *arguments) as process:
        yield process


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    with started(program, *arguments) as process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def output_of(program: str, *arguments: object) -> str:
    """Run an example that is to succeed; return what it prints."""
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def processes_left(number: int) -> list[int]:
    """Return the processes of a session that do not come to their end."""
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                pid = int(entry.name)
                if os.getsid(pid) == number and not ends(pid):
                    left.append(pid)
    return left


def ends(pid: int) -> bool:
    """Wait for the end of a process that nobody needs any more; return False if it goes on instead."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], AT_ONCE)[0])
    finally:
        os.close(descriptor)


def read_until(stream: IO[str], expected: str) -> str:
    """Read a program's output as far as a text that is to come, and no further."""
    seen = ""
    while expected not in seen:
        character = stream.read(1)
        assert character, f"it ended before it said {expected!r}: {seen}"
        seen += character
    return seen


def interrupt(process: subprocess.Popen[str]) -> str:
    """Do what a terminal does at Ctrl-C; return what the program says after that, when all its processes are gone."""
    assert process.stderr is not None
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    errors = process.stderr.read()  # to the end, which comes when the last process that could write is gone
    process.wait()
    assert time.monotonic() - begin < AT_ONCE
    return errors
