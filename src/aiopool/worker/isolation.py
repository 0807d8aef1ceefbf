"""What a fresh worker does to stand alone: a process group, quiet signals, and a life no longer than its parent's."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import select
import signal
import socket
import threading
from collections.abc import Generator
from types import FrameType

from .control import INTERRUPT
from .dump import DUMP

__all__ = [
    "above_stdio", "die_with", "forked_children_are_ordinary", "is_readable", "leave_parents_group", "quieten_signals",
    "stdio_taken", "take_stdio",
]  # fmt: skip

FIRST_FREE = 3
"""The first descriptor that no job takes for its standard input, output or errors."""

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""A terminal or a service manager sends these to everybody at once; what they mean is for the parent to say."""


def above_stdio(channel: socket.socket) -> socket.socket:
    """Move a socket away from descriptors 0, 1 and 2, which it has got in a fork server that has them closed."""
    if channel.fileno() >= FIRST_FREE:
        return channel
    with channel:
        return socket.socket(fileno=fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE))


def take_stdio() -> list[int]:
    """Open the null device as each of descriptors 0, 1 and 2 that is closed; return which these were.

    Else what is opened later gets them, and all that is printed: the memory of a parcel, for one.
    """
    taken = [os.open(os.devnull, os.O_RDWR)]
    while taken[-1] < FIRST_FREE:
        os.set_inheritable(taken[-1], True)
        taken.append(os.open(os.devnull, os.O_RDWR))
    os.close(taken.pop())
    return taken


@contextlib.contextmanager
def stdio_taken() -> Generator[None, None, None]:
    """Have nothing that is opened meanwhile get descriptor 0, 1 or 2; behind it they are as they were."""
    taken = take_stdio()
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def leave_parents_group() -> None:
    """Make a process group of our own, so that the parent can kill us with all that a call has started."""
    os.setpgid(0, 0)
    # Ours is never the terminal's foreground group: under `stty tostop` a mere print would stop us for good.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def quieten_signals() -> None:
    """Drop the handlers and the wakeup descriptor that a fork brought along; let the parent's signals pass by."""
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in PARENTS_SIGNALS:
        # A handler, not SIG_IGN: programs that a job starts would inherit that, and could not be terminated.
        signal.signal(number, _pass_by)
        signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)


def _pass_by(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def forked_children_are_ordinary(channel: socket.socket) -> None:
    """See to it that what a job forks can be interrupted and terminated, and cannot answer in our place."""
    masks = threading.local()  # a job may fork in any thread

    def before() -> None:
        # A signal that is sent to the child right away waits until it means something there.
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)

    def after_in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def after_in_child() -> None:
        channel.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(INTERRUPT, signal.SIG_DFL)
        faulthandler.unregister(DUMP)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def die_with(lifeline: int) -> None:
    """Have our process group killed the moment that the other end of this pipe closes, even if it is busy.

    Where the kernel can signal a chosen group with a chosen signal (Linux), it does the killing: that also
    works while C code holds the interpreter's lock. Elsewhere a thread waits for the end of the pipe.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | fcntl.FASYNC)
        if is_readable(lifeline):  # closed before we listened
            _kill_group()
    else:
        threading.Thread(target=_kill_group_after, args=(lifeline,), daemon=True, name="aiopool-lifeline").start()


def is_readable(descriptor: int) -> bool:
    """Return whether something can be read, or the end has come; poll() takes numbers above 1023, select() does not."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _kill_group_after(lifeline: int) -> None:
    os.read(lifeline, 1)
    _kill_group()


def _kill_group() -> None:
    os.kill(0, signal.SIGKILL)
