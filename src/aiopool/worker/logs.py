"""Log records of a worker: sent to the parent, whose handlers they are for.

They go over the worker's own channel, so a record that was logged before a crash has been sent before it. While the
parent does not read, a record waits for a moment; if that is not enough, records are dropped until something can be
sent again, before which is told how many are missing.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from .. import wire
from .outlet import Outlet

__all__ = ["Extra", "ForwardingHandler", "Levels", "forward"]

PATIENCE = 1.0
"""Seconds that a record waits for the parent to read, before it and those after it are dropped."""

MOST_CHARACTERS = 8000
"""Of a message or a traceback that is too long to be sent."""

FEWEST_CHARACTERS = 1000
"""Of each text of a record that is still too long then."""

STANDARD = frozenset(vars(logging.makeLogRecord({})))
"""The fields that every record has."""

MOST_WORDS = 500
"""Characters of what stands in for an object."""

PLAIN = (str, int, float, bool, type(None))
"""What surely unpickles; a class that is derived from these may not."""


class Levels(NamedTuple):
    """Which records the parent wants.

    Attributes:
        disabled: records up to this level, as `logging.disable` has it.
        by_logger: the levels of loggers that have one of their own; the root's name is empty.
    """

    disabled: int
    by_logger: Mapping[str, int]


class Extra(NamedTuple):
    """A field of a record, as it travels: it may not unpickle where the record is handled."""

    pickled: bytes
    words: str


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
    """Sends a message, or drops it if that takes too long; see `Outlet`."""

    def send(self, packets: list[wire.Packet], patience: float, /) -> None:
        """Send a message."""
        ...


class ForwardingHandler(logging.Handler):
    """Sends records to the parent."""

    def __init__(self, outlet: Patient) -> None:
        super().__init__()
        self._outlet = outlet

    def handle(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]
        """Emit it without this handler's lock.

        A thread that has the lock waits for its turn at the outlet. Whoever has that turn may log, too, in a signal's
        handler or a destructor, and would wait for the lock.
        """
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, or have it dropped."""
        try:
            packets = wire.encode(wire.Kind.LOG, 0, _pickled(self._plain(record)))
        except Exception:  # noqa: BLE001 - of the record's own arguments; logging's way is to say so and go on
            self.handleError(record)
            return
        self._outlet.send(packets, PATIENCE)

    def _plain(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what is known of a record, with all in words that might not be understood elsewhere."""
        fields = dict(vars(record))
        fields["msg"], fields["args"] = record.getMessage(), None
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = (self.formatter or logging.Formatter()).formatException(record.exc_info)
        fields["exc_info"] = None
        return fields


def _pickled(fields: dict[str, Any]) -> bytes:
    pickled = _dumps(fields)
    if len(pickled) > wire.LARGEST:
        pickled = _dumps(_shortened(fields, MOST_CHARACTERS))
    if len(pickled) > wire.LARGEST:
        pickled = _dumps(_shortened({name: fields[name] for name in STANDARD & fields.keys()}, FEWEST_CHARACTERS))
    return pickled


def _dumps(fields: dict[str, Any]) -> bytes:
    return pickle.dumps({name: _packed(value) for name, value in fields.items()}, protocol=5)


def _packed(value: Any) -> Any:
    """Return what surely unpickles, whatever becomes of the value."""
    if type(value) in PLAIN:
        return value
    words = _in_words(value)
    try:
        return Extra(pickle.dumps(value, protocol=5), words)
    except Exception:  # noqa: BLE001 - the user's
        return words


def _in_words(value: object) -> str:
    try:
        return str.__str__(repr(value))[:MOST_WORDS]
    except Exception:  # noqa: BLE001 - the user's
        return f"<{type(value).__name__}: its repr() raised>"


def _shortened(fields: dict[str, Any], most: int) -> dict[str, Any]:
    """Return the beginnings of texts, and numbers; no other field of a record that is too large travels."""
    return {name: _beginning(value, most) for name, value in fields.items() if _is_short(value)}


def _is_short(value: object) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= 64  # noqa: PLR2004 - what a number of a record needs
    return isinstance(value, (str, float, type(None)))


def _beginning(value: Any, most: int) -> Any:
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]}... ({len(value)} characters)"
    return value
