"""Making calls: what they need is pickled in the caller's frame, so that what cannot travel raises there."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from . import failures, parcels, wire
from .arena import Arena
from .arguments import check_callable, name_of
from .calls import Call, CallKind, Limits, Outcome, Pace, ids
from .carrying import Around, Carrier, await_with, call_with, iterate_async_with, iterate_with
from .exceptions import NotPicklable
from .hooks import CallEnded, CallQueued, Hooks
from .parcels import Payload, SharedParcel
from .pickling import Pickling, is_name_of
from .sharing import CallPayload, Home, Share, Sharing, share_in

__all__ = ["Function", "Packer", "kind_of"]

MOST_KNOWN = 1000
"""Functions remembered; a program that makes new ones all the time is not to fill the memory with them."""


CALLED_WITH: dict[CallKind, Callable[..., Any]] = {
    CallKind.FUNCTION: call_with,
    CallKind.COROUTINE: await_with,
    CallKind.GENERATOR: iterate_with,
    CallKind.ASYNC_GENERATOR: iterate_async_with,
}
"""What calls a function with something around it."""


@dataclass(frozen=True, slots=True)
class Function:
    """What there is to know of a function that is called."""

    func: Callable[..., object]
    """Itself."""
    name: str
    """What errors call it."""
    part: bytes
    """The first part of a call's payload."""
    pace: Pace
    """How long it takes."""
    kind: CallKind
    """What it is."""
    shares: tuple[Share, ...] = ()
    """Those that are in its own arguments, as a partial has them."""


class Packer:
    """Makes the calls of one pool. Functions that pickle as a mere name are remembered, and pickled only once.

    Args:
        home: of the shares that may be in what is pickled.
        carrier: reads the context variables whose values travel with each call.
        pickling: turns what is packed into bytes.
        hooks: told of calls that are made.
        arena: has memory for large arguments.

    Attributes:
        carried: returns the present values of the context variables that travel.
    """

    def __init__(
        self, home: Home, carrier: Carrier, pickling: Pickling, hooks: Hooks, arena: Arena | None = None
    ) -> None:
        self.carried: Callable[[], tuple[Around, ...]] = carrier.values
        self._tell = hooks.tell if hooks else None
        self._arena = arena
        self._home = home
        self._pickling = pickling
        self._known: dict[object, Function] = {}
        self._paces: dict[object, Pace] = {}

    def find(self, func: Callable[..., object]) -> Function:
        """Return what there is to know of a function, or raise `NotPicklable`, or TypeError for what is none."""
        by_name = type(func) in (FunctionType, BuiltinFunctionType)
        if by_name and (known := self._known.get(func)):
            return known
        check_callable("func", func)
        name = name_of(func)
        try:
            pickled, _, shares = self._dumps(func, math.inf)
        except Exception as error:
            raise failures.refusal("function", name, error) from error
        function = Function(func, name, wire.function_part(pickled), self.pace_of(func), kind_of(func), shares)
        if by_name and is_name_of(func, pickled):
            self._forget(self._known)
            self._known[func] = function
        return function

    def find_runner(self, over_chunk: Callable[..., object], func: Callable[..., object]) -> Function:
        """Return what there is to know of a function that calls a user's function with each item of a chunk."""
        return replace(self.find(over_chunk), name=name_of(func), pace=self.pace_of(func))

    def pace_of(self, func: Callable[..., object]) -> Pace:
        """Return the pace of a function; partials, methods and instances have that of what they run."""
        while isinstance(func, partial):
            func = func.func
        if isinstance(func, MethodType):
            func = func.__func__
        key = func if isinstance(func, (FunctionType, BuiltinFunctionType)) else type(func)
        if key not in self._paces:
            self._forget(self._paces)
            self._paces[key] = Pace()
        return self._paces[key]

    @staticmethod
    def _forget(remembered: dict[object, Any]) -> None:
        if len(remembered) >= MOST_KNOWN:
            remembered.clear()

    def make(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        finish: Callable[[Outcome], None],
        limits: Limits,
        company: Sequence[Around],
        *,
        weight: int = 1,
        automatic: bool = False,
    ) -> Call:
        """Return a call that is ready to be submitted, or raise `NotPicklable`.

        Later changes to the arguments do not travel. Whoever does not submit it, has to `drop` it.
        """
        name, pace = function.name, function.pace
        if (tell := self._tell) is None:
            payload = self._pack(function, args, kwds, company)
            return Call(name, payload, finish, limits, pace, weight=weight, automatic=automatic, kind=function.kind)
        id_, company = next(ids), list(company)
        tell(CallQueued(id_, name, company))
        try:
            payload = self._pack(function, args, kwds, company)
        except NotPicklable as error:
            tell(CallEnded(id_, name, "failed", error=error))
            raise
        except BaseException:
            tell(CallEnded(id_, name, "cancelled"))
            raise
        return Call(
            name, payload, finish, limits, pace, weight=weight, automatic=automatic, id_=id_, kind=function.kind
        )

    def drop(self, call: Call) -> None:
        """A call was made, and is not to be submitted."""
        call.payload = b""
        if self._tell is not None:
            self._tell(CallEnded(call.id, call.name, "cancelled"))

    def _pack(
        self, function: Function, args: tuple[Any, ...], kwds: dict[str, Any], company: Sequence[Around]
    ) -> CallPayload:
        name = function.name
        if company:
            called_with = self.find(CALLED_WITH[function.kind])
            args, kwds, function = (company, function.func, args, kwds), {}, called_with
        try:
            pickled, buffers, shares = self._dumps((args, kwds), parcels.LARGE)
        except Exception as error:
            raise failures.refusal("arguments", name, error) from error
        payload = parcels.wrap(pickled, buffers, wire.LARGEST, function.part, arena=self._arena)
        return _with_shares(payload, function.shares + shares)

    def pack_value(self, value: object) -> CallPayload:
        """Return the payload of a share, or raise `NotPicklable`. All of its buffers are outside, to be read-only."""
        try:
            pickled, buffers, shares = self._dumps(value, 1)
        except Exception as error:
            raise failures.refusal("shared object", None, error) from error
        return _with_shares(parcels.wrap(pickled, buffers, wire.LARGEST, kind=SharedParcel), shares)

    def _dumps(self, value: object, least: float) -> tuple[bytes, list[memoryview], tuple[Share, ...]]:
        """Return a pickle, its buffers of at least so many bytes, and the shares whose handles are in it."""
        shares: list[Share] = []

        def notice(buffer: memoryview) -> None:
            if (share := share_in(buffer)) is None:
                return
            if not share.belongs_to(self._home):
                raise ValueError("a shared object of another pool is among them; share it with this one, too")
            shares.append(share)

        pickled, buffers = self._pickling.dumps(value, least, notice)
        return pickled, buffers, tuple(shares)


def kind_of(func: Callable[..., object]) -> CallKind:
    """Return what a function is; partials, methods and instances are what they run."""
    while isinstance(func, partial):
        func = func.func
    if not isinstance(func, (FunctionType, MethodType, BuiltinFunctionType)) and not inspect.iscoroutinefunction(func):
        func = getattr(type(func), "__call__", func)  # noqa: B004 - an instance is what its class makes of it
    for kind, is_so in KINDS:
        if is_so(func):
            return kind
    return CallKind.FUNCTION


KINDS: Sequence[tuple[CallKind, Callable[[object], bool]]] = (
    (CallKind.COROUTINE, inspect.iscoroutinefunction),
    (CallKind.GENERATOR, inspect.isgeneratorfunction),
    (CallKind.ASYNC_GENERATOR, inspect.isasyncgenfunction),
)


def _with_shares(payload: Payload, shares: Iterable[Share]) -> CallPayload:
    return Sharing(payload, tuple(dict.fromkeys(shares))) if shares else payload
