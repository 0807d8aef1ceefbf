"""`AioPool`: the pool as its users see it. Signatures and checks of arguments; the work is a backend's."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Literal, TypeVar

from . import log_records
from .admission import Admission
from .arguments import (
    at_least,
    at_least_one,
    check_callable,
    find_context,
    fraction,
    iterate,
    module_names,
    optional,
    seconds,
    size,
    truth,
)
from .backends import start_methods
from .backends.base import Backend, Elsewhere, Wanted
from .backends.handles import Setup
from .backends.inline import Inline, InlineWorker, References
from .backends.local import LocalBackend
from .backends.process import WorkerProcess
from .caller import Caller
from .calls import CallKind, Limits
from .carrying import Carrier
from .cpus import usable_cpus
from .engine import Engine
from .hooks import Hook, Hooks
from .lifecycle import Lifecycle
from .packing import Packer, kind_of
from .phases import PoolPhase, WorkerPhase
from .pickling import PLAIN, ForeignPickling, Pickler, Pickling, check_pickler
from .recycling import IdlePolicy, RecyclePolicy
from .seats import SERVING
from .sharing import Shared
from .stats import PoolStats
from .worker.environment import thread_variables
from .worker.looping import LoopFactory, Looping
from .worker.main import Initializer

__all__ = ["AioPool"]

T = TypeVar("T")


class AioPool(Lifecycle, Caller):
    """A pool of worker processes for coroutines: `multiprocessing.pool.Pool`, awaitable.

    ``async with AioPool() as pool:`` starts the workers, and on the way out lets accepted calls finish. It kills
    them instead when the block is left by an exception or a cancellation.

    Args:
        processes: how many functions may run at once, one in each worker (of coroutines, ``concurrency`` in each). None
            means the CPUs that this process may use: those of its affinity, or fewer where a container has a quota.
        initializer: called with ``initargs`` in each worker before its first call; a coroutine function is awaited on
            the worker's event loop. If it fails in one of the first workers, the start raises `InitializerError`.
        initargs: its positional arguments.
        maxtasksperchild: how many calls of the function a worker serves before a fresh one takes its place. (Calls,
            not chunks, other than in multiprocessing; a larger chunk that was asked for is finished.)
        context: a multiprocessing context or the name of a start method. The default is ``"forkserver"`` where there
            is one, else ``"spawn"``: a fork would take along the running loop's handlers, locks and connections.
        timeout: seconds that a call may run, counted from its start in the worker, before it is stopped and raises
            `CallTimeout`; for `map` and `imap` it is the limit of a chunk, and an automatic chunk is then one item.
            None for no limit. A call may ask for another, as for ``retries``.
        retries: how often a call is run again when its worker died under it. (Never after a cancellation, a timeout
            or an exception.)
        max_pending: how many calls may wait for a worker: `apply`, `map`, `starmap` and the ``imap`` verbs wait for
            room, first come first served; `submit`, `stream` and the ``_async`` verbs raise `PoolFull`. None for any
            number.
        cancel_grace: seconds that a call which is cancelled, or over its time limit, has to stop by itself:
            `CallInterrupted` is raised in it, and only if it does not end in that time its worker is killed. With 0 it
            is killed at once. A coroutine is cancelled instead, and has a second if this is 0, for its worker may have
            others.
        concurrency: how many coroutines may run at once in each worker. A function has its worker for itself.
        loop_factory: makes the event loop of a worker, such as `uvloop.new_event_loop`; None for asyncio's own. It is
            called at the first coroutine; until then, a worker has no loop.
        max_memory_per_child: bytes of resident memory (on Linux the present size, shared pages included; elsewhere
            the largest so far) from which on a worker is replaced. It is measured after each call.
        max_age: seconds from which on a worker is replaced.
        recycle_jitter: a part, from 0 to 1, by which each worker's limits of calls and age are lowered at random, so
            that workers do not all leave together.
        idle_timeout: seconds without anything to do after which a worker goes, as long as more than ``min_processes``
            are ready. When calls wait, workers are started again, as many as there are calls. None for never.
        min_processes: how many workers stay although they have nothing to do, 0 for none; only with ``idle_timeout``,
            where the default, None, means 1.
        start_timeout: seconds that a worker has to start and to run its initializer.
        preload: names of modules that workers have imported before the first call. The fork server imports them
            once if it is not running yet.
        context_vars: context variables whose values at the time of a call are theirs in the worker, too, while it
            runs. Each is a global of a module that workers can import; one that has no value does not travel.
        forward_logs: whether log records of workers are for this process's handlers, and its levels, as they are when a
            worker starts, decide which are made at all. False leaves logging in workers alone.
        pickler: a module, or an object, whose ``dumps`` and ``loads`` take the place of those of `pickle` for
            functions, arguments, results and the initializer; cloudpickle, for instance. Exceptions travel as ever.
        thread_limit: how many threads each of the numerical libraries (OpenMP, OpenBLAS, MKL, BLIS, Accelerate, Numba,
            NumExpr) may use in a worker. None divides the CPUs by the number of processes when the pool is started or
            resized, but for what the environment says already. What a fork brings along, and what the fork server has
            imported, keeps the limit that it has.
        hooks: objects with a method ``on_event`` that is called with each of the pool's events; see `aiopool.Hook`.
        backend: what runs the calls: ``"local"``, workers on this machine; ``"inline"`` or an `aiopool.Inline`, this
            process, for tests, breakpoints and mocks; an `aiopool.backends.dask.DaskBackend`, a cluster of Dask.

    Raises:
        ValueError: a number is out of its range; the start method or the backend is unknown; ``min_processes`` stands
            without ``idle_timeout``; a context variable is no global of a module; an argument asks for what the backend
            does not have, such as ``max_age`` on Dask.
        TypeError: an argument is of the wrong type.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | str | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        max_pending: int | None = None,
        cancel_grace: float = 0.0,
        concurrency: int = 1,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        max_memory_per_child: int | None = None,
        max_age: float | None = None,
        recycle_jitter: float = 0.0,
        idle_timeout: float | None = None,
        min_processes: int | None = None,
        start_timeout: float = 60.0,
        preload: Sequence[str] = (),
        context_vars: Iterable[ContextVar[Any]] = (),
        forward_logs: bool = True,
        pickler: Pickler | None = None,
        thread_limit: int | None = None,
        hooks: Iterable[Hook] = (),
        backend: Literal["local", "inline"] | Inline | Elsewhere = "local",
    ) -> None:
        cpus = usable_cpus()
        processes = optional(at_least_one, "processes", processes)
        seats = cpus if processes is None else processes
        if initializer is not None:
            check_callable("initializer", initializer)
        modules = module_names("preload", preload)
        elsewhere, inline = (backend, None) if isinstance(backend, Elsewhere) else (None, find_inline(backend))
        pickling = find_pickling(pickler if elsewhere is None else pickler or elsewhere.pickler, inline)
        watchers = Hooks(iterate("hooks", hooks))
        carrier = Carrier(iterate("context_vars", context_vars))
        start_method = find_context(context)
        limits = Limits(optional(seconds, "timeout", timeout), at_least(0, "retries", retries))
        policy = find_policy(maxtasksperchild, max_age, recycle_jitter)
        initialize = make_initializer(initializer, initargs, modules, pickling)
        looping = find_looping(concurrency, loop_factory)
        memory = optional(at_least_one, "max_memory_per_child", max_memory_per_child)
        threads = optional(at_least_one, "thread_limit", thread_limit)
        grace, patience = seconds("cancel_grace", cancel_grace, zero=True), seconds("start_timeout", start_timeout)
        idling = find_idling(idle_timeout, min_processes, seats)
        forwards = truth("forward_logs", forward_logs)
        here = elsewhere is None and inline is None
        runs: Backend
        if elsewhere is not None:
            others = not_default(
                maxtasksperchild=(maxtasksperchild, None), context=(context, None), cancel_grace=(cancel_grace, 0),
                concurrency=(concurrency, 1), loop_factory=(loop_factory, None),
                max_memory_per_child=(max_memory_per_child, None), max_age=(max_age, None),
                recycle_jitter=(recycle_jitter, 0), idle_timeout=(idle_timeout, None),
                min_processes=(min_processes, None), thread_limit=(thread_limit, None),
            )  # fmt: skip
            runs = elsewhere.make(Wanted(processes, initialize, pickling, patience, forwards, watchers, others))
        else:
            levels = log_records.levels if forwards else no_levels
            setup = Setup(start_method, initialize, memory, levels, pickling, {}, looping)
            setups = partial(with_variables, setup, threads, cpus)
            kind = WorkerProcess if here else InlineWorker
            runs = LocalBackend(
                seats, setups, policy, grace=grace, start_timeout=patience, idling=idling, hooks=watchers, kind=kind
            )
        Lifecycle.__init__(self, runs, partial(start_methods.prepare, start_method, modules) if here else _nothing)
        packer = Packer(runs, carrier, pickling, watchers, runs.arena)
        admission = Admission(runs, optional(at_least_one, "max_pending", max_pending))
        engine = Engine(runs, packer, admission, policy, self._guard, weakref.WeakSet(), weakref.WeakSet())
        Caller.__init__(self, engine, limits)

    async def join(self) -> None:
        """Wait until the last worker is gone.

        A stream that has not come to its end is closed if the task that has read it last is the one that waits here, or
        has ended.

        Raises:
            ValueError: neither `close` nor `terminate` was called.
            WrongLoop: see `close`.
        """
        if self._backend.phase is PoolPhase.CLOSING:
            for stream in list(self._engine.streams):
                stream.forsake(asyncio.current_task())
        await Lifecycle.join(self)

    def abandon(self) -> None:
        """End the workers at once, without a loop: for where nothing can be awaited."""
        Lifecycle.abandon(self)
        for executor in list(self._engine.executors):
            executor.end_left()

    @property
    def processes(self) -> int:
        """How many functions may run at once, one in each worker.

        With ``idle_timeout``, fewer workers may be there at present. On Dask it is how many threads the cluster's
        workers have now, or 1 while there is none.
        """
        return self._backend.seats

    async def resize(self, processes: int) -> None:
        """Change how many functions may run at once; return when new workers are ready and those too many are gone.

        No call is lost or run twice: one that a worker runs which is to go comes to its end first. The new number is
        in force at once, also if the wait for all this is cancelled. Where several wait, the last number counts, and
        all return when it is reached.

        Args:
            processes: how many; the workers of the highest seats go.

        Raises:
            BrokenPool: the new workers kept dying.
            NotImplementedError: the pool is on Dask.
            PoolNotRunning: the pool is not started, or closed, maybe while this waited.
            TypeError: that is no number.
            ValueError: it is less than 1.
            WrongLoop: see `apply`.
        """
        self._guard.check_usable()
        await self._backend.resize(at_least_one("processes", processes))

    def stats(self) -> PoolStats:
        """Return a snapshot of the pool: its workers, its calls, how long they took. Cheap, and for any thread."""
        return self._backend.stats()

    @property
    def healthy(self) -> bool:
        """Whether calls are taken, and a worker is ready, or all have gone because of ``idle_timeout``.

        For a health probe.
        """
        stats = self.stats()
        ready = any(WorkerPhase(worker.phase) in SERVING for worker in stats.workers) or self._backend.resting
        return stats.phase == PoolPhase.RUNNING.value and ready

    def share(self, value: T) -> Shared[T]:
        """Return a handle that stands for an object in the arguments of many calls, so that it crosses only once.

        Wherever the handle occurs in a function's arguments or in the items of a map, the function gets the object.
        It is pickled now: later changes do not travel. A worker unpickles it once, when a call first needs it, and
        keeps it until the handle is dropped or not used any more. What pickles its buffers apart, such as a NumPy
        array, lies in memory that all workers have in common, and is read-only there.

        Args:
            value: the object; handles of this pool may be in it.

        Raises:
            BrokenPool: see `apply`.
            NotPicklable: it cannot be pickled.
            PoolNotRunning: the pool is not started, or closed.
            TypeError: the pool's ``pickler`` cannot leave buffers outside, which is how handles are found; or nothing
                is pickled (``Inline(pickled=False)``).
            WrongLoop: see `apply`.
        """
        self._guard.check_usable()
        if not self._backend.pickling.tells_buffers:
            raise TypeError(
                "this pool's pickler has no dumps with buffer_callback, as pickle has it: nothing can be shared"
            )
        return Shared(self._backend.share(self._engine.packer.pack_value(value)))


def not_default(**arguments: tuple[object, object]) -> dict[str, object]:
    """Return the arguments that are not what they are by default, by their names."""
    return {name: value for name, (value, default) in arguments.items() if value != default}


def with_variables(setup: Setup, threads: int | None, cpus: int, seats: int) -> Setup:
    """Return what workers are like in a pool of so many seats."""
    return setup._replace(variables=thread_variables(threads, max(1, cpus // seats)))


def no_levels() -> None:
    """Want no log records."""


def find_policy(calls: int | None, age: float | None, jitter: float) -> RecyclePolicy:
    """Return when a worker has served enough, or raise TypeError or ValueError."""
    return RecyclePolicy(
        optional(size, "maxtasksperchild", calls), optional(seconds, "max_age", age), fraction("recycle_jitter", jitter)
    )


def make_initializer(
    function: Callable[..., object] | None, args: Iterable[Any], modules: tuple[str, ...], pickling: Pickling
) -> Initializer:
    """Return what is run in a worker first, or raise TypeError."""
    awaited = function is not None and kind_of(function) is CallKind.COROUTINE
    return Initializer(function, tuple(iterate("initargs", args)), modules, pickling, awaited=awaited)


def find_idling(timeout: float | None, minimum: int | None, processes: int) -> IdlePolicy:
    """Return which workers go that have nothing to do, or raise TypeError or ValueError."""
    timeout = optional(seconds, "idle_timeout", timeout)
    if minimum is None:
        return IdlePolicy(timeout, 1)
    minimum = at_least(0, "min_processes", minimum)
    if minimum > processes:
        raise ValueError(f"min_processes must be at most processes, which is {processes}, not {minimum}")
    if timeout is None:
        raise ValueError(f"min_processes needs an idle_timeout, or all workers stay, not only {minimum}")
    return IdlePolicy(timeout, minimum)


def find_looping(concurrency: int, factory: Callable[[], asyncio.AbstractEventLoop] | None) -> Looping:
    """Return how workers run coroutines, or raise TypeError or ValueError."""
    if factory is not None:
        check_callable("loop_factory", factory)
    return Looping(at_least_one("concurrency", concurrency), None if factory is None else LoopFactory(factory))


def find_inline(backend: str | Inline) -> Inline | None:
    """Return how calls run in this process, or None for workers; raise ValueError for what is neither."""
    if isinstance(backend, Inline):
        return backend
    if backend not in ("local", "inline"):
        raise ValueError(f"backend must be 'local', 'inline', an aiopool.Inline or a DaskBackend, not {backend!r}")
    return Inline() if backend == "inline" else None


def find_pickling(pickler: Pickler | None, inline: Inline | None) -> Pickling:
    """Return what pickles for a pool, or raise TypeError or ValueError."""
    if pickler is None:
        return ForeignPickling(References()) if inline is not None and not inline.pickled else PLAIN
    check_pickler(pickler)
    if inline is not None and not inline.pickled:
        raise ValueError(f"pickler must be None where nothing is pickled, not {pickler!r}")
    return ForeignPickling(pickler)


def _nothing() -> None:
    """Prepare nothing."""
