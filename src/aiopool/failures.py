"""How an exception crosses: encoded in the worker, decoded here, with its chain, notes and group members.

Pickle alone drops an exception's cause, context and traceback, and fails altogether for many classes. So an
exception travels as a list of nodes, one for each exception that can be reached from it, each pickled apart from
the others. A node that cannot be pickled, or not unpickled here, arrives as `NotPicklable` with the original's
type, text and traceback; the others are not harmed by it. An exception may be so odd that looking at it raises;
then that is all that travels of it. Only the standard library is imported.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .exceptions import CallInterrupted, NotPicklable, RemoteTraceback

__all__ = ["ItemFailure", "decode", "encode", "encode_briefly", "refusal", "type_name"]

MOST_LINKS = 100
"""More causes, contexts and groups than this do not travel with an exception, so that a runaway chain costs little."""


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
    try:
        module, name = f"{kind.__module__}", _plain(kind.__qualname__)
    except BaseException:  # noqa: BLE001 - a metaclass is the user's code
        return "<type not available>"
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, or a stand-in where that raises."""
    try:
        return _plain(str(error))
    except BaseException:  # noqa: BLE001 - __str__ is the user's code; whatever it raises, the failure must travel
        return "<text not available: __str__ raised>"


def _plain(text: str) -> str:
    """Return the text as a mere str: a class of the user's own might not pickle."""
    return str.__str__(text)


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", ())
    return [_plain(note) for note in notes if isinstance(note, str)] if isinstance(notes, (list, tuple)) else []


def format_traceback(error: BaseException, hidden: Iterable[str] = ()) -> str:
    """Return the traceback with its chain, without the leading frames that lie in ``hidden`` files."""
    brief = f"{type_name(error)}: {text_of(error)}\n"
    top = _first_shown(error, frozenset(hidden))
    try:
        import traceback  # noqa: PLC0415 - a worker needs it at its first failure only

        try:
            return "".join(traceback.format_exception(type(error), error, top))
        except CallInterrupted:
            raise
        except BaseException:  # noqa: BLE001 - the chain, the notes, the fields of a SyntaxError: all may be odd
            return f"Traceback (most recent call last):\n{''.join(traceback.format_tb(top))}{brief}"
    except OSError:  # no descriptor left for this module's file, or for one that it imports
        return brief


def _first_shown(error: BaseException, hidden: frozenset[str]) -> types.TracebackType | None:
    whole: types.TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)  # runs no user's code
    top = whole
    while top is not None and top.tb_frame.f_code.co_filename in hidden:
        top = top.tb_next
    return top or whole


def refusal(what: str, call: str | None, error: BaseException, hidden: Iterable[str] = ()) -> NotPicklable:
    """Return the error of what could not be pickled or unpickled."""
    return NotPicklable(what, call, type_name(error), text_of(error), format_traceback(error, hidden))


def encode(error: BaseException, hidden: Iterable[str] = ()) -> bytes:
    """Return the payload of a failure.

    Args:
        error: the exception.
        hidden: files whose leading frames are left out of its traceback.
    """
    text = format_traceback(error, hidden)
    try:
        return pickle.dumps((text, _nodes(error)), protocol=5)
    except CallInterrupted:
        raise
    except BaseException:  # noqa: BLE001 - its attributes are the user's code; whatever they raise, the failure must travel
        node = Node(None, type_name(error), text_of(error), [], None, None, False, None)
        return pickle.dumps((text, [tuple(node)]), protocol=5)


def encode_briefly(error: BaseException) -> bytes:
    """Return the payload of a failure that does not tell where it was."""
    return pickle.dumps((f"{type_name(error)}\n", _nodes(error)), protocol=5)


def _nodes(error: BaseException) -> list[tuple[object, ...]]:
    found: list[BaseException] = []
    positions: dict[int, int] = {}
    left = MOST_LINKS

    def position(other: BaseException | None, *, counts: bool = True) -> int | None:
        nonlocal left
        if other is None or (counts and not left and id(other) not in positions):
            return None
        if id(other) not in positions:
            positions[id(other)] = len(found)
            found.append(other)
            left -= counts
        return positions[id(other)]

    position(error)
    nodes = []
    for each in found:  # grows while it is walked
        members = [position(member, counts=bool(_members(member))) for member in _members(each)]
        nodes.append(
            Node(
                None if members else _pickled(each),
                type_name(each),
                _plain(each.message) if members and isinstance(each, BaseExceptionGroup) else text_of(each),
                _notes(each),
                position(each.__cause__),
                position(each.__context__),
                each.__suppress_context__,
                [member for member in members if member is not None] or None,
            )
        )
    return [tuple(node) for node in nodes]


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


def decode(payload: bytes | memoryview, call: str | None) -> BaseException:
    """Return the exception, with the worker's traceback as its ``__cause__`` and its own cause behind that."""
    text, fields = pickle.loads(payload)
    nodes = [Node(*each) for each in fields]
    try:
        return _chained(nodes, call, text)
    except KeyboardInterrupt:
        raise  # somebody at the keyboard
    except BaseException:  # noqa: BLE001 - it is so odd that it does not let itself be put together here
        return NotPicklable("exception", call, nodes[0].type_name, nodes[0].text, text)


def _chained(nodes: list[Node], call: str | None, text: str) -> BaseException:
    """Return the first exception, tied to the others as it was."""
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
    if not isinstance(error, BaseException):
        return None
    # Where tblib is, exceptions take their tracebacks along, of frames that the worker's text leaves out.
    return BaseException.with_traceback(error, None)
