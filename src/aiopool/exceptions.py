"""What can go wrong with a pool or a call.

::

    AioPoolError
    ├── PoolNotRunning (ValueError)     a call before start() or after close()
    ├── WrongLoop (RuntimeError)        a pool used outside the loop, thread or process that started it
    ├── PoolTerminated                  the call was abandoned by terminate()
    ├── BrokenPool                      replacements for dead workers kept dying
    ├── InitializerError                a worker did not become ready
    ├── WorkerDied                      the process went away under the call
    ├── CallTimeout (TimeoutError)      the call ran longer than its time limit
    ├── PoolFull                        max_pending calls wait already
    ├── CallAborted                     the job raised SystemExit, KeyboardInterrupt, CancelledError, ...
    ├── NotPicklable                    something could not cross the process boundary
    ├── ResultTimeout (TimeoutError)    get(timeout) gave up waiting; the call goes on
    └── RemoteTraceback                 the worker's traceback, as the cause of an exception

    BaseException
    └── CallInterrupted                 raised within the job that is to stop, so that it can clean up

An ordinary exception of the user's function is none of these: it arrives as itself.
"""

from __future__ import annotations

import multiprocessing
import re
import signal as signals

__all__ = [
    "AioPoolError",
    "BrokenPool",
    "CallAborted",
    "CallInterrupted",
    "CallTimeout",
    "InitializerError",
    "NotPicklable",
    "PoolFull",
    "PoolNotRunning",
    "PoolTerminated",
    "RemoteTraceback",
    "ResultTimeout",
    "WorkerDied",
    "WrongLoop",
    "not_received",
    "what_to_do",
]

MOST_NAMES = 3
"""Functions that an error names of those that ran beside its own."""

MISSED_IN_MAIN = re.compile(
    r"Can't get attribute .* on <module '__(mp_)?main__'"
    r"|(attribute lookup \w+ on __main__ failed|not found as __main__\.\w+)$"
)
"""What pickle says, in the versions of Python, of a name that the main module does not have. (A lambda has no name.)"""

PUT_INTO_A_MODULE = """\
the main module does not have it there. Put it into a module of its own, and import it. (With forkserver and spawn, \
workers get of the main module what a script defines outside of `if __name__ == "__main__":`. They get nothing that \
was typed into an interpreter or a notebook, or stands in `python -c` or in the __main__.py of a package or zip \
application. With fork, they get what was defined before they were started.)"""


class AioPoolError(Exception):
    """Base of the errors that are the pool's own.

    What is wrong with an argument, or asked for at a wrong time, is a ValueError, TypeError or RuntimeError as ever.
    """


class PoolNotRunning(AioPoolError, ValueError):
    """The pool takes no calls: it is not started yet, or closed (a ValueError, as in multiprocessing)."""


class WrongLoop(AioPoolError, RuntimeError):
    """The pool was used from another event loop, thread or process than the one that started it."""


class PoolTerminated(AioPoolError):
    """The call was waiting or running when the pool was terminated."""


class BrokenPool(AioPoolError):
    """Replacements for dead workers kept dying, so the pool gave up; or its cluster is gone. See ``__cause__``."""


class InitializerError(AioPoolError):
    """A worker did not become ready: its initializer failed, or it went away first. See ``__cause__``."""


class CallTimeout(AioPoolError, TimeoutError):
    """The call ran longer than its ``timeout``. It has been stopped; on Dask its work may go on, see there.

    Attributes:
        call: the name of the function.
        timeout: the limit, in seconds, counted from the call's start in the worker.
    """

    def __init__(self, call: str, timeout: float) -> None:
        super().__init__(call, timeout)
        self.call = call
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.call} ran longer than its time limit of {self.timeout:g} s"


class PoolFull(AioPoolError):
    """As many calls wait as ``max_pending`` allows."""


class CallInterrupted(BaseException):
    """Raised in the worker, within the call that is to stop: it was cancelled, or is over its time limit.

    With ``cancel_grace``, a job has that long to clean up (``finally``, ``with``) and let this exception pass. It is
    no `Exception`, so that ``except Exception`` lets it through.
    """


class ResultTimeout(AioPoolError, TimeoutError, multiprocessing.TimeoutError):
    """``get(timeout)`` or ``next(timeout)`` gave up waiting. The call itself goes on."""


class CallAborted(AioPoolError):
    """The function raised an exception that would do harm here if delivered as such.

    SystemExit and KeyboardInterrupt would stop the caller's loop, CancelledError and GeneratorExit would
    vanish, StopIteration is refused by futures. The original is ``__cause__``.
    """


class RemoteTraceback(AioPoolError):
    """The traceback of an exception as it stood in the worker; found as that exception's ``__cause__``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class WorkerDied(AioPoolError):
    """The worker's process went away under a call.

    Attributes:
        pid: the process id, or None when the process never got one.
        exitcode: what it exited with; negative for a signal; None when nobody could tell.
        signal: the signal's name (``"SIGKILL"``), or None.
        call: the name of the function that it was running, or None.
        tries: how many workers the call has had, this one included.
        beside: the names of the functions that it ran at the same time.
        because: why the pool has killed it: for which of these, or for what it sent; or None.
    """

    def __init__(
        self,
        pid: int | None,
        exitcode: int | None,
        call: str | None = None,
        tries: int = 1,
        beside: tuple[str, ...] = (),
        because: str | None = None,
    ) -> None:
        super().__init__(pid, exitcode, call, tries, beside, because)
        self.pid = pid
        self.exitcode = exitcode
        self.call = call
        self.tries = tries
        self.beside = beside
        self.because = because

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended the process, or None."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return signals.Signals(-self.exitcode).name
        except ValueError:  # a real-time signal has no name
            return f"signal {-self.exitcode}"

    def __str__(self) -> str:
        if self.exitcode is None:
            how = "went away, exit code unknown"
        elif self.signal is not None:
            how = f"was killed by {self.signal}"
        else:
            how = f"exited with code {self.exitcode}"
        while_running = f" while running {self.call}" if self.call else ""
        beside = f", beside {self._others()}" if self.beside else ""
        because = f", because {self.because}" if self.because else ""
        tried = f" (the last of {self.tries} tries)" if self.tries > 1 else ""
        return f"worker process {self.pid} {how}{while_running}{beside}{because}{tried}"

    def _others(self) -> str:
        """Return what else it ran, briefly."""
        names = list(dict.fromkeys(self.beside))
        more = len(names) - MOST_NAMES
        return ", ".join(names[:MOST_NAMES]) + (f" and {more} other functions" if more > 0 else "")


class NotPicklable(AioPoolError):
    """Something could not cross the boundary between processes.

    Attributes:
        what: ``"function"``, ``"arguments"``, ``"shared object"``, ``"result"``, ``"value"`` (of a stream),
            ``"exception"`` or ``"initializer"``.
        call: the name of the function called, or None.
        original_type: for an exception its qualified type; else the type of the error that pickling raised.
        original_text: the text of that exception or error.
        original_traceback: its traceback, formatted, or "" where there was none.
    """

    def __init__(
        self, what: str, call: str | None, original_type: str, original_text: str, original_traceback: str = ""
    ) -> None:
        super().__init__(what, call, original_type, original_text, original_traceback)
        self.what = what
        self.call = call
        self.original_type = original_type
        self.original_text = original_text
        self.original_traceback = original_traceback

    def __str__(self) -> str:
        of = f" of {self.call}" if self.call else ""
        text = f"the {self.what}{of} could not be pickled or unpickled: {self.original_type}: {self.original_text}"
        hint = "" if self.what == "exception" else what_to_do(self.original_text)
        return f"{text}: {hint}" if hint else text


def not_received(what: str, by: str = "this process") -> AioPoolError:
    """Return the error of what has come to a process, and could not be kept there."""
    return AioPoolError(f"{what} could not be received: {by} has no memory or descriptor left for it")


def what_to_do(text: str) -> str:
    """Return what to do about an error of pickle's with this text, or an empty string where that is not known."""
    return PUT_INTO_A_MODULE if MISSED_IN_MAIN.search(text) else ""
