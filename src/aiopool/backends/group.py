"""A worker's process and all that it started, as the kernel knows them."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing.process import BaseProcess

from ..worker import isolation

__all__ = ["PIDFD_SIGNAL_PROCESS_GROUP", "Group"]

PIDFD_SIGNAL_PROCESS_GROUP = 4
"""A flag of pidfd_send_signal(2), from Linux 6.9 on: the whole group, also when its leader is reaped."""


class Group:
    """The group that a worker's process leads. Where there are pidfds, no signal can meet another one's process.

    Args:
        process: that runs.
        reaped_here: whether this process reaps it; else the fork server does, at any time.

    Attributes:
        pid: of the leader.
    """

    def __init__(self, process: BaseProcess, *, reaped_here: bool) -> None:
        assert process.pid is not None  # noqa: S101 - for the type checker
        self.pid: int = process.pid
        self._process = process
        self._reaped_here = reaped_here
        self._pidfd: int | None = None
        with contextlib.suppress(OSError, AttributeError):  # gone and reaped already, or a system without pidfds
            self._pidfd = os.pidfd_open(self.pid)

    @property
    def end(self) -> int:
        """The descriptor that becomes readable when the leader ends."""
        return self._process.sentinel if self._pidfd is None else self._pidfd

    def wait(self) -> None:
        """Return when the leader has ended, whose `end` says so; without pidfds that closes a moment before."""
        if self._pidfd is None:
            self._process.join()

    def signal(self, number: int) -> None:
        """Send a signal to the leader alone; raise OSError if it is gone."""
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, number)
        elif self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL to all of it, but never to a pid that may be somebody else's by now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pidfd is not None:
                self._kill_by_pidfd(self._pidfd)
            elif self._process.exitcode is None:
                self._kill_by_pid()

    def _kill_by_pidfd(self, pidfd: int) -> None:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)
        except ProcessLookupError:  # not yet the leader of a group
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:  # an older kernel: by number, as long as the number is certainly its own
            if self._reaped_here or not isolation.is_readable(pidfd):
                self._kill_by_pid()

    def _kill_by_pid(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
