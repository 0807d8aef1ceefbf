"""What the fork server imports before it forks its first worker; nobody else does."""

from __future__ import annotations

import gc
import multiprocessing.popen_forkserver as descriptors  # what is forked takes descriptors over with it
import os
import signal

gc.disable()  # a collection would find nothing, and takes its time
from . import logs, main  # noqa: E402 - behind that

gc.enable()

__all__ = ["descriptors", "logs", "main"]


def _listen_to_the_keyboard() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


# The pool starts the fork server with SIGINT blocked, so that Ctrl-C does not meet it while it still imports modules.
# The server never needs it; but what it forks, workers and other processes of the program alike, is to be as ever.
os.register_at_fork(after_in_child=_listen_to_the_keyboard)

# A collection writes to all that it looks at. What has been imported by then is the same in all that are forked, and
# stays so, memory and all, if nobody looks at it there.
os.register_at_fork(before=gc.freeze)
