"""How an exception crosses: encoded in the worker, decoded here, with its chain, notes and group members.

Pickle alone drops an exception's cause, context and traceback, and fails altogether for many classes. So an
exception travels as a list of nodes, one for each exception that can be reached from it, each pickled apart from
the others. A node that cannot be pickled, or not unpickled here, arrives as `NotPicklable` with the original's
type, text and traceback; the others are not harmed by it. Only the standard library is imported.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .exceptions import NotPicklable, RemoteTraceback

__all__ = ["ItemFailure", "decode", "encode", "type_name"]

MOST_NODES = 100
"""A chain longer than this is cut, so that a runaway one costs little."""


class Node(NamedTuple):
    """One exception. The numbers are positions in the list of nodes."""

    pickled: bytes | None
    type_name: str
    text: str
    notes: list[str]
    cause: int | None
    context: int | None
    suppress_context: bool
    members: list[int] | None  # of an exception group, which is built anew from them


class ItemFailure(NamedTuple):
    """Stands in a chunk's list of values for the item whose call raised."""

    payload: bytes


def type_name(error: BaseException) -> str:
    """Return the qualified name of an exception's class, as tracebacks print it."""
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, or a stand-in where that raises."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - __str__ is the user's code; whatever it raises, the failure must travel
        return "<text not available: __str__ raised>"


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", ())
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, (list, tuple)) else []


def format_traceback(error: BaseException, hidden: Iterable[str] = ()) -> str:
    """Return the traceback with its chain, without the leading frames that lie in ``hidden`` files."""
    import traceback  # noqa: PLC0415 - a worker needs it at its first failure only

    hidden, top = frozenset(hidden), error.__traceback__
    while top is not None and top.tb_frame.f_code.co_filename in hidden:
        top = top.tb_next
    return "".join(traceback.format_exception(type(error), error, top or error.__traceback__))


def encode(error: BaseException, hidden: Iterable[str] = ()) -> bytes:
    """Return the payload of a failure.

    Args:
        error: the exception.
        hidden: files whose leading frames are left out of its traceback.
    """
    found: list[BaseException] = []
    positions: dict[int, int] = {}

    def position(other: BaseException | None) -> int | None:
        if other is None or (id(other) not in positions and len(found) >= MOST_NODES):
            return None
        if id(other) not in positions:
            positions[id(other)] = len(found)
            found.append(other)
        return positions[id(other)]

    position(error)
    nodes = []
    for each in found:  # grows while it is walked
        members = [position(member) for member in _members(each)]
        nodes.append(
            Node(
                None if members else _pickled(each),
                type_name(each),
                each.message if members and isinstance(each, BaseExceptionGroup) else text_of(each),
                _notes(each),
                position(each.__cause__),
                position(each.__context__),
                each.__suppress_context__,
                [member for member in members if member is not None] or None,
            )
        )
    return pickle.dumps((format_traceback(error, hidden), [tuple(node) for node in nodes]), protocol=5)


def _members(error: BaseException) -> Sequence[BaseException]:
    """Return the members of a plain exception group; one of a class of its own travels as it pickles itself."""
    if type(error) in (ExceptionGroup, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        return error.exceptions
    return ()


def _pickled(error: BaseException) -> bytes | None:
    try:
        return pickle.dumps(error, protocol=5)
    except BaseException:  # noqa: BLE001 - the user's __reduce__ may raise anything; the text travels instead
        return None


def decode(payload: bytes | bytearray, call: str | None) -> BaseException:
    """Return the exception, with the worker's traceback as its ``__cause__`` and its own cause behind that."""
    text, fields = pickle.loads(payload)
    nodes = [Node(*each) for each in fields]
    built: dict[int, BaseException] = {}
    for number in range(len(nodes)):
        _build(number, nodes, built, call, text)
    for number, node in enumerate(nodes):
        error = built[number]
        error.__cause__ = None if node.cause is None else built[node.cause]
        error.__context__ = None if node.context is None else built[node.context]
        error.__suppress_context__ = node.suppress_context
    error = built[0]
    remote = RemoteTraceback(text)
    remote.__cause__, error.__cause__ = error.__cause__, remote
    if isinstance(error, NotPicklable) and error.call is None:
        error.call = call
    return error


def _build(
    number: int, nodes: list[Node], built: dict[int, BaseException], call: str | None, text: str
) -> BaseException:
    if number in built:
        return built[number]
    node = nodes[number]
    error: BaseException | None
    if node.members:
        error = BaseExceptionGroup(node.text, [_build(each, nodes, built, call, text) for each in node.members])
    else:
        error = _unpickled(node.pickled)
    if error is None:
        error = NotPicklable("exception", call, node.type_name, node.text, "" if number else text)
    for note in node.notes[len(_notes(error)) :]:  # a __reduce__ of the class's own may have dropped them
        error.add_note(note)
    built[number] = error
    return error


def _unpickled(pickled: bytes | None) -> BaseException | None:
    if pickled is None:
        return None
    try:
        error = pickle.loads(pickled)
    except KeyboardInterrupt:
        raise  # somebody at the keyboard, not the pickle
    except BaseException:  # noqa: BLE001 - the user's __init__ or __setstate__; the text is delivered instead
        return None
    return error if isinstance(error, BaseException) else None
