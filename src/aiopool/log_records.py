"""Log records of workers, in the parent: which are wanted, and their way to the handlers."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Generator
from typing import Any

from . import wire
from .interruptions import raise_soon
from .worker.logs import Extra, Levels

__all__ = ["handle", "levels"]

logger: logging.Logger = logging.getLogger("aiopool")


def levels() -> Levels:
    """Return the present levels of this process's loggers."""
    found = {"": logging.root.level}
    for name, each in list(logging.root.manager.loggerDict.items()):
        if isinstance(each, logging.Logger) and each.level != logging.NOTSET:
            found[name] = each.level
    return Levels(logging.root.manager.disable, found)


def handle(frame: wire.Frame) -> None:
    """Give a record to the handlers that a record of this process would be given to; or say how many were dropped.

    What a filter or handler raises is told as logging tells it, on standard error: the pool's own warnings go to the
    same handlers, and no other message of the worker is to be lost.

    Raises:
        WireError: what came is no record.
    """
    if frame.kind == wire.Kind.UNLOGGED:
        with _handlers_may_fail():
            logger.warning("%d log records of a worker were dropped: it made more than could be sent", frame.call)
        return
    fields = _fields_in(frame)
    with _handlers_may_fail():
        record = logging.makeLogRecord(fields)
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)


def _fields_in(frame: wire.Frame) -> dict[str, Any]:
    try:
        fields = dict(pickle.loads(frame.payload or b""))
    except Exception as error:
        raise wire.WireError("a message has no log record, and says that it has") from error
    return {name: _unpickled(value) if isinstance(value, Extra) else value for name, value in fields.items()}


def _unpickled(extra: Extra) -> Any:
    try:
        return pickle.loads(extra.pickled)
    except BaseException as error:  # noqa: BLE001 - the user's __init__ or __setstate__; the words are handled instead
        if isinstance(error, KeyboardInterrupt):  # somebody at the keyboard, not the pickle
            raise_soon(error)
        return extra.words


@contextlib.contextmanager
def _handlers_may_fail() -> Generator[None, None, None]:
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        raise_soon(error)
    except BaseException:  # noqa: BLE001 - the user's, and pytest.fail() is no Exception
        text = "a filter or handler has failed with a log record of a worker"
        logging.Handler().handleError(logging.LogRecord("aiopool", logging.ERROR, __file__, 0, text, (), None))
