"""Chromium without a window, told what to do through a pair of pipes (its DevTools protocol)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)


class Browser:
    """A page in it.

    Args:
        commands: where it reads them, each a JSON object and a null byte.
        answers: where it writes them, likewise, and what else it has to tell.
    """

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._numbers, self._session = itertools.count(1), ""
        self._read = b""
        page = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.tell("Page.enable")

    def tell(self, method: str, **params: object) -> Any:
        """Give a command, return its result."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        command = {"id": number, "method": method, "params": params, **session}
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        answer = self._wait_for("id", number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, address: str) -> None:
        """Go to a page; return when it is there."""
        self.tell("Page.navigate", url=address)
        self._wait_for("method", "Page.loadEventFired")

    def choose_file(self, selector: str, file: Path) -> None:
        """Do what the dialog of a file input does."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def run(self, script: str) -> Any:
        """Return the value of an expression, or what it promises."""
        answer = self.tell("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self) -> None:
        """End it."""
        self._session = ""
        self.tell("Browser.close")

    def _wait_for(self, key: str, value: object) -> dict[str, Any]:
        while True:
            message = json.loads(self._next())
            if message.get(key) == value:
                return message

    def _next(self) -> bytes:
        while b"\0" not in self._read:
            some = os.read(self._answers.fileno(), 65536)
            assert some, "the browser has ended"
            self._read += some
        message, _, self._read = self._read.partition(b"\0")
        return message


@contextlib.contextmanager
def browsing(chromium: str, folder: Path) -> Generator[Browser]:
    """Start Chromium with a profile in a folder. It takes commands from descriptor 3 and answers on descriptor 4."""
    script = f'exec "$@" 3<&0 4>&1 </dev/null >{shlex.quote(str(folder))}/log 2>&1'
    command = ["/bin/sh", "-c", script, "sh", chromium, *OPTIONS, f"--user-data-dir={folder}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            browser = Browser(process.stdin, process.stdout)
            yield browser
            browser.close()
            process.wait()
        finally:
            process.kill()  # which does nothing to one that has ended
