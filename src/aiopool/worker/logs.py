"""Log records of a worker: sent to the parent, whose handlers they are for.

They go over the worker's own channel, so a record that was logged before a crash has been sent before it. While the
parent does not read, a record waits for a moment; if that is not enough, records are dropped until one can be sent
again, which then tells how many are missing.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from .. import wire
from .outlet import Outlet

__all__ = ["ForwardingHandler", "Levels", "forward"]

PATIENCE = 1.0
"""Seconds that a record waits for the parent to read, before it and those after it are dropped."""

MOST_CHARACTERS = 8000
"""Of a message or a traceback that is too long to be sent."""


class Levels(NamedTuple):
    """Which records the parent wants.

    Attributes:
        disabled: records up to this level, as `logging.disable` has it.
        by_logger: the levels of loggers that have one of their own; the root's name is empty.
    """

    disabled: int
    by_logger: Mapping[str, int]


def forward(outlet: Outlet, levels: Levels) -> None:
    """Send all records to the parent, and handle none here: not with what a fork or the main module has set up."""
    for logger in (logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(levels.by_logger.get("" if logger is logging.root else logger.name, logging.NOTSET))
    for name, level in levels.by_logger.items():
        logging.getLogger(name or None).setLevel(level)
    logging.disable(levels.disabled)
    logging.root.addHandler(ForwardingHandler(outlet))


class Patient(Protocol):
    """Sends a message if it can do so before long; see `Outlet`."""

    def send_soon(self, packets: Sequence[wire.Packet], patience: float, /) -> bool:
        """Send a message, or return False."""
        ...


class ForwardingHandler(logging.Handler):
    """Sends records to the parent."""

    def __init__(self, outlet: Patient) -> None:
        super().__init__()
        self._outlet = outlet
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, or count it as dropped."""
        try:
            packets = wire.encode(wire.Kind.LOG, self._dropped, _pickled(self._plain(record)))
        except Exception:  # noqa: BLE001 - of the record's own arguments; logging's way is to say so and go on
            self.handleError(record)
            return
        if self._outlet.send_soon(packets, 0.0 if self._dropped else PATIENCE):
            self._dropped = 0
        else:
            self._dropped += 1

    def _plain(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what is known of a record, with all in words that might not be understood elsewhere."""
        fields = dict(vars(record))
        fields["msg"], fields["args"] = record.getMessage(), None
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = (self.formatter or logging.Formatter()).formatException(record.exc_info)
        fields["exc_info"] = None
        return fields


def _pickled(fields: dict[str, Any]) -> bytes:
    try:
        pickled = pickle.dumps(fields, protocol=5)
    except Exception:  # noqa: BLE001 - of an extra field
        fields = {name: _in_words(value) for name, value in fields.items()}
        pickled = pickle.dumps(fields, protocol=5)
    if len(pickled) > wire.LARGEST:
        short = {name: _shortened(value) for name, value in fields.items()}
        pickled = pickle.dumps({name: value for name, value in short.items() if value is not ...}, protocol=5)
    return pickled


def _in_words(value: Any) -> Any:
    try:
        pickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001 - the user's
        return repr(value)
    return value


def _shortened(value: Any) -> Any:
    """Return a text's beginning; no other field of a record that is too large travels."""
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return f"{value[:MOST_CHARACTERS]}... ({len(value)} characters)"
    return value if isinstance(value, (str, int, float, type(None))) else ...
