"""Pickling what a call needs, in the caller's frame, so that what cannot travel raises there."""

from __future__ import annotations

import pickle
from typing import Any

from . import failures, wire
from .exceptions import NotPicklable

__all__ = ["dumps", "pack"]


def pack(name: str, func: object, args: tuple[Any, ...], kwds: dict[str, Any]) -> list[bytes]:
    """Return the payload of a call."""
    return wire.pack_call(dumps("function", name, func), dumps("arguments", name, (args, kwds)))


def dumps(what: str, name: str, value: object) -> bytes:
    """Return the pickle, or raise `NotPicklable`, which says of what."""
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:
        text = failures.format_traceback(error)
        raise NotPicklable(what, name, failures.type_name(error), failures.text_of(error), text) from error
