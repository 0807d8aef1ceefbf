"""Objects that are in the arguments of many calls, and cross to each worker once.

In the parent, a `Share` has the pickled object. Handles hold it (`Shared`), and so do the payloads of calls that wait
or run (`Sharing`); when nobody does any more, its home is told, and has the workers forget it. In the pickle of a call,
a handle is a mark, which is an empty buffer: pickle itself tells whoever makes a call which marks are in it, so that
calls without any cost nothing.

With each call that has a share in its arguments, the share is sent, too. It is up to the worker to know that it has it
already: so nobody keeps count of which worker has what, however workers come and go. What a worker has been sent it
unpickles when a call first asks for it, and keeps until it is told to forget it. Only the standard library is imported.
"""

from __future__ import annotations

import operator
import os
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, SupportsIndex, TypeVar, cast

from . import failures
from .exceptions import AioPoolError, not_received
from .parcels import Payload
from .pickling import PLAIN, Pickling

__all__ = ["CallPayload", "Home", "Share", "Shared", "Sharing", "drop", "drop_all", "keep", "revive", "share_in"]

T = TypeVar("T")

WITH_BUFFERS = 5
"""The first protocol of pickle that tells of buffers, and so of marks."""


# In the parent.


class Home(Protocol):
    """Who has workers that may have got a share."""

    def forget(self, share: int) -> None:
        """Have workers forget it. Called in any thread, even in the midst of a decision, or after the pool's end."""


class Share:
    """An object, pickled, as long as somebody needs it.

    Attributes:
        id: names it on the wire; no call has the same.
        payload: the pickle, and the shares that it stands on itself; emptied when the pool is gone.
    """

    __slots__ = ("__weakref__", "_home", "_owner", "id", "payload")

    def __init__(self, id_: int, payload: CallPayload, home: Home) -> None:
        self._owner = os.getpid()
        self.id: int = id_
        self.payload: CallPayload = payload
        self._home = weakref.ref(home)  # which has calls, that somebody waits for; a handle is to keep nobody waiting

    def belongs_to(self, home: Home) -> bool:
        """Whether it can be in calls of this home."""
        return self._home() is home

    def __del__(self) -> None:
        home = self._home()
        if home is not None and self._owner == os.getpid():  # a forked child has a copy of the loop, but no say in it
            home.forget(self.id)


class Sharing(NamedTuple):
    """A payload whose pickle has marks in it."""

    payload: Payload
    shares: Sequence[Share]


CallPayload = Payload | Sharing
"""What is sent for a call."""


class Mark(bytearray):
    """Stands in a pickle for a share."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share


def share_in(buffer: memoryview) -> Share | None:
    """Return the share that a buffer of a pickle is the mark of, or None."""
    return buffer.obj.share if isinstance(buffer.obj, Mark) else None


class Shared(Generic[T]):
    """Stands for an object in the arguments of calls; made by `AioPool.share`.

    Wherever it occurs in a call's arguments, the function is given the object itself: in a worker, always the same
    one, whose buffers are memory that all workers have in common, and may only be read.
    """

    __slots__ = ("__weakref__", "_share")

    def __init__(self, share: Share) -> None:
        self._share: Share | None = share

    @property
    def argument(self) -> T:
        """This handle, in the eyes of a type checker the object."""
        return cast("T", self)

    def drop(self) -> None:
        """Let go of the object: new calls cannot have it, and when those that have it have ended, it is forgotten.

        The same happens when the handle is not used any more.
        """
        self._share = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[int, pickle.PickleBuffer]]:
        if operator.index(protocol) < WITH_BUFFERS:
            raise TypeError(
                "a shared object travels in the arguments of its pool's calls: it cannot be copied or pickled otherwise"
            )
        if self._share is None:
            raise ValueError("this shared object has been dropped")
        return revive, (self._share.id, pickle.PickleBuffer(Mark(self._share)))

    def __repr__(self) -> str:
        return "<Shared: dropped>" if self._share is None else f"<Shared {self._share.id}>"


# In a worker.

_pickled: dict[int, tuple[bytes | memoryview | None, Sequence[memoryview], Pickling]] = {}
"""What has come and was not asked for, by id: pickle and buffers, as in a `wire.Frame`; and whose pickle it is."""

_objects: dict[int, object] = {}
"""What has been asked for, by id."""


def keep(
    share: int, payload: bytes | memoryview | None, buffers: Sequence[memoryview], pickling: Pickling = PLAIN
) -> None:
    """Take what a call that follows shares with others."""
    if share not in _objects and _pickled.get(share, (None,))[0] is None:
        _pickled[share] = payload, buffers, pickling


def drop(share: int) -> None:
    """Forget it, if it ever came here."""
    _pickled.pop(share, None)
    _objects.pop(share, None)


def drop_all() -> None:
    """Forget what this process was before it was forked: a worker of another pool, with ids of its own."""
    _pickled.clear()
    _objects.clear()


def revive(share: int, _mark: object) -> object:
    """Return the object that a mark stands for; called by pickle."""
    if share not in _objects:
        _objects[share] = _unpickled(*_pickled.get(share) or _refuse())
        del _pickled[share]
    return _objects[share]


def _unpickled(payload: bytes | memoryview | None, buffers: Sequence[memoryview], pickling: Pickling) -> object:
    if payload is None:
        raise not_received("a shared object", "the worker")
    try:
        return pickling.loads(payload, buffers=buffers)
    except AioPoolError:  # of a share in it
        raise
    except BaseException as error:
        raise failures.refusal("shared object", None, error, (__file__,)) from error


def _refuse() -> NoReturn:
    raise AioPoolError("a shared object travels in the arguments of its pool's calls: it has come here in another way")
