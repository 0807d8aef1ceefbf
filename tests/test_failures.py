"""How exceptions are encoded and decoded, where a whole pool is not needed to see it."""

from __future__ import annotations

import builtins
import errno
import itertools
import pickle
from typing import Any, NoReturn

import pytest

import jobs
from aiopool import CallInterrupted, NotPicklable, RemoteTraceback, failures


def travel(error: BaseException) -> BaseException:
    """Send an exception there and back."""
    return failures.decode(failures.encode(error), "f")


def raised(error: BaseException) -> BaseException:
    """Return the exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


class Odd(Exception):
    """Everything about it is odd."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.__notes__ = "not a list"

    def __str__(self) -> str:
        raise SystemExit


def test_a_chain_is_kept_however_it_is_tied() -> None:
    """Cause and context of each, and whether the context is shown."""
    one, two, three = ValueError(1), KeyError(2), TypeError(3)
    one.__cause__, two.__context__ = two, three
    one.__context__ = three
    arrived = travel(one)
    remote = arrived.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert repr(remote.__cause__) == "KeyError(2)"
    assert remote.__cause__ is not None
    assert remote.__cause__.__context__ is arrived.__context__
    assert repr(arrived.__context__) == "TypeError(3)"
    assert not remote.__cause__.__suppress_context__


def test_a_chain_in_a_circle_ends() -> None:
    """It arrives as a circle."""
    one, two = ValueError(1), KeyError(2)
    one.__context__, two.__context__ = two, one
    arrived = travel(one)
    assert arrived.__context__ is not None
    assert arrived.__context__.__context__ is arrived


def test_an_endless_chain_is_cut() -> None:
    """Its beginning arrives."""
    first = error = ValueError(0)
    for number in range(1000):
        error.__context__ = error = ValueError(number)
    arrived: BaseException | None = travel(first)
    length = 0
    while arrived is not None:
        arrived = arrived.__context__
        length += 1
    assert length == failures.MOST_LINKS


def test_all_members_of_a_group_travel() -> None:
    """However many; of groups in groups, and of what caused the members, as many as of a chain."""
    group = ExceptionGroup("many", [*map(ValueError, range(500)), KeyError("last")])
    arrived = travel(group)
    assert isinstance(arrived, ExceptionGroup)
    assert [each.args for each in arrived.exceptions[:500]] == [(number,) for number in range(500)]
    assert isinstance(arrived.exceptions[500], KeyError)
    nested = ExceptionGroup("deepest", [ValueError(0)])
    for number in range(1000):
        nested = ExceptionGroup("deep", [ValueError(number), nested])
    depth, deepest = 0, travel(nested)
    while isinstance(deepest, ExceptionGroup):
        depth, deepest = depth + 1, deepest.exceptions[-1]
    assert depth == failures.MOST_LINKS


def test_notes_that_a_reduce_drops_are_added_again() -> None:
    """And those that arrive by themselves are not doubled."""
    plain, dropping = ValueError(1), DropsNotes(1)
    for error in (plain, dropping):
        error.add_note("one")
        error.add_note("two")
        assert travel(error).__notes__ == ["one", "two"]


class DropsNotes(ValueError):
    """Its pickle has the arguments only."""

    def __reduce__(self) -> tuple[type[DropsNotes], tuple[object, ...]]:
        return type(self), self.args


def test_an_exception_that_fails_at_everything_still_arrives() -> None:
    """As NotPicklable or as itself, with what could be had."""
    arrived = travel(Odd())
    assert isinstance(arrived, Odd)
    stand_in = failures.decode(failures.encode(raised(KeepsLockToo())), "f")
    assert isinstance(stand_in, NotPicklable)
    assert "not available" in stand_in.original_text


class KeepsLockToo(jobs.KeepsLock):
    """Neither pickles nor tells its text."""

    def __init__(self) -> None:
        super().__init__("x")

    def __str__(self) -> str:
        raise SystemExit


def refuse(*_: object) -> NoReturn:
    """Be code of the user's that runs where none is expected."""
    raise SystemExit


class NotesRaise(Exception):
    """Has no notes."""

    __notes__ = property(refuse)  # type: ignore[assignment]


class AllRaises(Exception):
    """Has nothing at all."""

    __getattribute__ = refuse  # type: ignore[assignment]


class CauseRaises(Exception):
    """Has no cause."""

    __cause__ = property(refuse)  # type: ignore[assignment]


class RefusesCause(Exception):
    """Does not take a cause where it arrives."""

    __cause__ = property(lambda _: None, refuse)  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [NotesRaise, AllRaises, CauseRaises, RefusesCause])
def test_an_exception_that_cannot_be_looked_at_arrives_as_type_text_and_traceback(kind: type[Exception]) -> None:
    """Its own code may raise whatever it likes, wherever it is asked."""
    arrived = travel(raised(kind("text")))
    assert isinstance(arrived, NotPicklable)
    assert (arrived.original_type, arrived.original_text) == (f"test_failures.{kind.__name__}", "text")
    assert "in raised" in arrived.original_traceback
    assert f"{kind.__name__}: text" in arrived.original_traceback


class Nameless(type):
    """Makes classes that do not tell their names."""

    __module__ = property(refuse)  # type: ignore[assignment]


def test_an_exception_without_a_name_arrives() -> None:
    """With what there is."""
    arrived = travel(Nameless("Odd", (Exception,), {})("text"))
    assert isinstance(arrived, NotPicklable)
    assert (arrived.original_type, arrived.original_text) == ("<type not available>", "text")


def test_texts_of_a_class_of_their_own_arrive_as_texts() -> None:
    """Notes, and what ``__str__`` returns: the class might not pickle."""

    class Text(str):
        __slots__ = ()

    class Error(Exception):
        def __str__(self) -> str:
            return Text("text")

    error = Error()
    error.add_note(Text("note"))
    arrived = travel(error)
    assert isinstance(arrived, NotPicklable)
    assert (arrived.original_text, arrived.__notes__) == ("text", ["note"])
    assert type(arrived.original_text) is type(arrived.__notes__[0]) is str


class NoDir:
    """Leaves when it is asked what it has, as tracebacks do to suggest a name."""

    __dir__ = refuse  # type: ignore[assignment]


@pytest.mark.parametrize(
    "error",
    [
        SyntaxError("text", ("file", "1", [], 5)),  # type: ignore[arg-type]
        AttributeError("text", name="attribute", obj=NoDir()),
    ],
    ids=repr,
)
def test_an_exception_whose_traceback_cannot_be_formatted_arrives_as_itself(error: Exception) -> None:
    """With the frames that there are."""
    arrived = travel(raised(error))
    assert type(arrived) is type(error)
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "in raised" in arrived.__cause__.text
    assert f"{type(error).__name__}: text" in arrived.__cause__.text


@pytest.mark.parametrize("asked_before", [0, 1])
def test_the_end_of_a_chunk_is_not_swallowed(asked_before: int) -> None:
    """A chunk that is interrupted while one of its failures is encoded is to stop."""

    class Interrupts(Exception):
        @property
        def __notes__(self) -> list[str]:
            if not next(answers):
                raise CallInterrupted
            return []

    answers = itertools.chain([True] * asked_before, itertools.repeat(False))
    with pytest.raises(CallInterrupted):
        failures.encode(Interrupts())


def test_groups_within_groups_arrive() -> None:
    """Of plain classes; one of a class of its own travels by its own pickle."""
    group = BaseExceptionGroup("outer", [ExceptionGroup("inner", [ValueError(1)]), SystemExit(2)])
    arrived = travel(group)
    assert repr(arrived) == repr(group)
    assert type(arrived) is BaseExceptionGroup
    assert repr(travel(OwnGroup("own", [ValueError(1)]))) == repr(OwnGroup("own", [ValueError(1)]))


class OwnGroup(ExceptionGroup[ValueError]):
    """A class of the user's own."""


def test_what_unpickles_as_something_else_is_not_raised() -> None:
    """An exception's ``__reduce__`` may return anything."""
    arrived = travel(Impostor("text"))
    assert isinstance(arrived, NotPicklable)
    assert arrived.original_text == "text"


class Impostor(Exception):
    """Turns into a string."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("not an exception",)


def test_ctrl_c_while_unpickling_is_not_swallowed() -> None:
    """It is somebody at the keyboard."""
    with pytest.raises(KeyboardInterrupt):
        failures.decode(failures.encode(InterruptsUnpickling()), "f")


class InterruptsUnpickling(Exception):
    """Raises KeyboardInterrupt where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return interrupt, ()


def interrupt() -> None:
    """Be somebody at the keyboard."""
    raise KeyboardInterrupt


def test_errors_of_the_pool_survive_pickling() -> None:
    """With all that they know."""
    error = NotPicklable("result", "f", "TypeError", "text", "traceback")
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_a_failure_travels_without_its_lines_where_no_module_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has used up all descriptors may be the first that fails."""
    importing = builtins.__import__

    def import_what_is_open(name: str, *rest: Any) -> Any:
        if name == "traceback":
            raise OSError(errno.EMFILE, "Too many open files")
        return importing(name, *rest)

    error = raised(ValueError("text"))
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", import_what_is_open)
        payload = failures.encode(error)
    arrived = failures.decode(payload, "f")
    assert (type(arrived), str(arrived)) == (ValueError, "text")
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert arrived.__cause__.text == "ValueError: text\n"
