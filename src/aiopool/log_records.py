"""Log records of workers, in the parent: which are wanted, and their way to the handlers."""

from __future__ import annotations

import logging
import pickle

from . import wire
from .worker.logs import Levels

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
    """Give a record to the handlers that a record of this process would be given to.

    What a handler raises is dealt with in the way of logging, so that no other message of the worker is lost.
    """
    if frame.call:
        logger.warning("%d log records of a worker were dropped: it made more than could be sent", frame.call)
    record = logging.makeLogRecord(pickle.loads(frame.payload or b""))
    target = logging.getLogger(record.name)
    if not target.isEnabledFor(record.levelno):
        return
    try:
        target.handle(record)
    except Exception:
        logger.exception("a filter or handler has failed with a log record of a worker")
