"""Functions that run in workers. This module is imported there, so it imports little."""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from aiopool import current_worker, report
from aiopool.worker.control import INTERRUPT

initialized: list[Any] = []
"""What the initializer has left in this process."""


def square(x: int) -> int:
    return x * x


request: ContextVar[str] = ContextVar("request", default="none")
tenant: ContextVar[Any] = ContextVar("tenant")


def who_asks(_item: object = None) -> tuple[str, Any]:
    return request.get(), tenant.get("nobody")


class InAs:
    """Has the call ask under a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Set the variable."""
        token = request.set(self.name)
        yield
        request.reset(token)


def ask_as(name: str) -> tuple[str, Any]:
    """Change a variable that has travelled, and one that has not."""
    request.set(name)
    tenant.set(name)
    return who_asks()


def log(name: str, level: int, message: str, *args: object, **kwds: Any) -> None:
    logging.getLogger(name).log(level, message, *args, **kwds)


def log_failure(name: str) -> None:
    try:
        raise ValueError("logged")
    except ValueError:
        logging.getLogger(name).exception("it failed")


def log_and_leave(name: str, count: int) -> NoReturn:
    for number in range(count):
        logging.getLogger(name).warning("before the end %d", number)
    kill_self()


def log_much(name: str, count: int, path: str) -> int:
    """Tell when all are made; return how many there were."""
    for number in range(count):
        logging.getLogger(name).warning("flood %d", number)
    tell(path, "done")
    return count


def log_much_later(name: str, count: int, path: str, gate: str) -> None:
    """Do so in a thread, when the call has ended."""

    def work() -> None:
        wait_at(gate)
        log_much(name, count, path)

    threading.Thread(target=work).start()


def log_in_threads(name: str, threads: int, count: int, size: int) -> bytes:
    """Log in several threads, and return something large meanwhile."""

    def work(thread: int) -> None:
        for number in range(count):
            logging.getLogger(name).warning("thread %d: %d", thread, number)

    started = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(threads)]
    for thread in started:
        thread.start()
    return bytes(size)


def log_in_a_child(name: str) -> int:
    """Log in a forked process, which has no way to the parent."""
    pid = os.fork()
    if not pid:
        logging.getLogger(name).warning("in a child")
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def handlers_of_the_root() -> list[str]:
    return [type(handler).__name__ for handler in logging.root.handlers]


def log_at_start(name: str) -> None:
    """Initializer."""
    logging.getLogger(name).warning("at the start")


def report_each(values: Iterable[Any], result: Any = None) -> Any:
    for value in values:
        report(value)
    return result


def report_in_a_thread(value: Any) -> None:
    thread = threading.Thread(target=report, args=(value,))
    thread.start()
    thread.join()


def report_in_a_child(value: Any) -> int:
    """Report in a forked process, which has no way to the parent."""
    pid = os.fork()
    if not pid:
        report(value)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def report_and_tell(path: str, value: Any) -> NoReturn:
    """Report something again and again; tell after the first time."""
    report(value)
    tell(path, os.getpid())
    while True:
        report(value)


def worker_here(_item: object = None) -> Any:
    return current_worker()


def worker_in_a_child() -> bool:
    """Return whether a process that a job forks takes itself for a worker."""
    pid = os.fork()
    if not pid:
        os._exit(current_worker() is not None)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def cube(x: int) -> int:
    return x * x * x


def put_in_place(name: str, value: object) -> None:
    """Give another meaning to a name of this module, in this process."""
    globals()[name] = value


def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def pid_of(_item: object = None) -> int:
    return os.getpid()


def same(value: Any) -> Any:
    return value


def tell(path: str, text: object) -> None:
    """Write a line into a `latch.Latch`."""
    with open(path, "a") as fifo:
        fifo.write(f"{text}\n")


def wait_at(path: str) -> None:
    """Wait until a `latch.Latch` lets one pass."""
    fifo = os.open(path, os.O_RDONLY)
    os.read(fifo, 1)
    os.close(fifo)


def tell_and_wait(path: str, gate: str, value: Any = None) -> Any:
    tell(path, value if value is not None else os.getpid())
    wait_at(gate)
    return value


def wait_there(paths: tuple[str, str]) -> str:
    tell_and_wait(*paths)
    return "there"


def tell_and_wait_deep(depth: int, path: str, gate: str) -> None:
    if depth:
        tell_and_wait_deep(depth - 1, path, gate)
    else:
        tell_and_wait(path, gate)


def tell_and_return(path: str, value: Any) -> Any:
    tell(path, value)
    return value


def tell_and_spin(path: str) -> NoReturn:
    tell(path, os.getpid())
    while True:
        pass


def tell_and_swallow_everything(path: str) -> NoReturn:
    """Ignore all signals that can be ignored, and every exception."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    tell(path, os.getpid())
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


def tell_of_grandchild_and_spin(path: str) -> NoReturn:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"],
                                  stdout=subprocess.PIPE)  # fmt: skip
    assert grandchild.stdout
    grandchild.stdout.readline()
    tell(path, grandchild.pid)
    while True:
        pass


def kill_self(number: int = signal.SIGKILL) -> None:
    faulthandler.disable()  # pytest's, after a fork: it would print what is meant to happen
    os.kill(os.getpid(), number)
    signal.pause()  # a signal to oneself may arrive a little later


def leave_half_way(code: int) -> NoReturn:
    os._exit(code)


def leave_at_one(item: int) -> int:
    if item == 1:
        os._exit(1)
    return item


def fail(error: BaseException) -> NoReturn:
    raise error


def fail_at(item: int, bad: int = 3) -> int:
    if item == bad:
        raise ValueError(item)
    return item


def present_span() -> tuple[str, str]:
    """Return the ids of the trace and of the span that new spans would belong to."""
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:x}", f"{found.span_id:x}"


def make_span(_item: object = None) -> tuple[str, str, str]:
    """Make a span as the worker's own code would; return its trace, its parent and its own id."""
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("job")
    with tracer.start_as_current_span("inner") as span:
        assert isinstance(span, ReadableSpan)
        assert span.parent is not None
        return f"{span.parent.trace_id:x}", f"{span.parent.span_id:x}", present_span()[1]


def keywords(**kwds: Any) -> dict[str, Any]:
    return kwds


def spin() -> NoReturn:
    while True:
        os.getpid()


def log_and_name_process() -> str:
    import logging
    import multiprocessing

    logging.getLogger("worker").warning("with its process's name")
    return multiprocessing.current_process().name


def variable(name: str) -> str | None:
    return os.environ.get(name)


def call_with(function: Callable[[Any], Any], value: Any) -> Any:
    return function(value)


def report_a_closure(number: int) -> None:
    report(lambda other: number + other)


def remember(*values: Any) -> None:
    """Initializer."""
    initialized.append((os.getpid(), *values))


def recall() -> list[Any]:
    return initialized


def fail_to_initialize(path: str | None = None) -> NoReturn:
    if path:
        tell(path, os.getpid())
    raise LookupError("no such model")


def fail_to_initialize_after(path: str, good: int) -> None:
    """Succeed in the first ``good`` processes that get here, fail in all later ones."""
    with open(path, "ab") as counter:
        counter.write(b".")
        if counter.tell() > good:
            raise LookupError("no such model")


def leave_marks_at_exit(path: str) -> None:
    """Initializer: have an atexit handler write into a file."""
    import atexit

    atexit.register(tell, path, "atexit")


def modules() -> set[str]:
    return set(sys.modules)


def start_thread_that_never_ends() -> None:
    threading.Thread(target=threading.Event().wait, daemon=False).start()


class TwoArguments(Exception):
    """Cannot be made from its ``args``, as pickle does it."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class KeepsLock(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())


class BadState(Exception):
    """Does not survive being unpickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("no state, please")


class ReducesToNone(Exception):
    """Breaks the pickle protocol."""

    def __reduce__(self) -> Any:
        return None


class ReducesToExit(Exception):
    """Leaves while it is pickled."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


class PicklesNever:
    """Raises when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


class UnpicklesNever:
    """A value or argument that pickles well and does not unpickle in one of the processes."""

    def __init__(self, where: str) -> None:
        self.where = where  # "worker" or "parent"
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        return _revive, (self.where, self.home)


def _revive(where: str, home: int) -> UnpicklesNever:
    if (where == "worker") == (os.getpid() != home):
        raise ArithmeticError("does not unpickle here")
    return UnpicklesNever(where)


def make_unpickles_never_in_parent() -> UnpicklesNever:
    """Return a result that pickles here; ``home`` is the worker, so the parent fails."""
    return UnpicklesNever("worker")


def unpicklable_result() -> Any:
    return threading.Lock()


def raise_from() -> NoReturn:
    try:
        raise KeyError("inner")
    except KeyError as error:
        outer = ValueError("outer")
        outer.add_note("a note")
        raise outer from error


def raise_in_except() -> NoReturn:
    try:
        raise KeyError("inner")
    except KeyError:
        raise ValueError("outer")


def raise_group() -> NoReturn:
    raised: list[Exception] = []
    for job in (raise_from, fail_two_arguments):
        try:
            job()
        except Exception as error:
            raised.append(error)
    group = ExceptionGroup("several", raised)
    group.add_note("a group's note")
    raise group


def fail_two_arguments() -> NoReturn:
    raise TwoArguments(1, 2)


def flood(size: int) -> int:
    """Write on all standard streams, from Python, from C, from below, and from a child process."""
    print("x" * size)
    sys.stderr.write("y" * size)
    os.write(1, b"z" * 1000)
    os.write(2, b"z" * 1000)
    import ctypes

    ctypes.CDLL(None).printf(b"from C\n")
    subprocess.run([sys.executable, "-c", "import os; os.write(1, b'child'); os.write(2, b'child')"], check=True)
    return size


def subprocess_that_is_terminated() -> int:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as process:
        process.terminate()
        return process.wait()


def multiprocessing_process_that_is_terminated(method: str) -> int | None:
    import multiprocessing
    import time

    process = multiprocessing.get_context(method).Process(target=time.sleep, args=(1000,))  # type: ignore[attr-defined]
    process.start()
    process.terminate()
    process.join()
    code: int | None = process.exitcode
    return code


def pool_in_a_job(method: str) -> list[int]:
    import asyncio

    from aiopool import AioPool

    async def main() -> list[int]:
        async with AioPool(1, context=method) as pool:
            return await pool.map(square, range(3))

    return asyncio.run(main())


def fork_and_return() -> str:
    """Fork a child that goes on as if it were the worker."""
    return "child" if os.fork() == 0 else "parent"


def total(numbers: Iterable[int]) -> int:
    return sum(numbers)


def blocked_signals() -> set[int]:
    return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def print_blocked_signals() -> None:
    print(blocked_signals())


def handlers() -> dict[int, str]:
    """Return the signals that have a Python function for a handler."""
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {int(number): repr(handler) for number, handler in found.items() if callable(handler)}


def descriptors() -> list[str]:
    """Return what is open here."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def own_sockets() -> list[int]:
    """Return the descriptors of this process's sockets: its channel, under spawn and forkserver."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def close_everything_and_open_sockets() -> None:
    os.closerange(3, 1000)
    for _ in range(20):
        for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            each.detach()  # it stays open


def scribble_on_sockets(data: bytes) -> NoReturn:
    for descriptor in own_sockets():
        with contextlib.suppress(OSError):
            os.write(descriptor, data)
    while True:
        pass


def answer_a_stranger() -> NoReturn:
    from aiopool import wire

    scribble_on_sockets(wire.encode(wire.Kind.RESULT, 10**9)[0])


def send_upwards(kind: int) -> NoReturn:
    from aiopool import wire

    scribble_on_sockets(wire.encode(wire.Kind(kind))[0])


def tell_and_clean_up(path: str, _value: object = None) -> NoReturn:
    """Spin until interrupted, then say so."""
    try:
        tell(path, os.getpid())
        while True:
            os.getpid()  # in a loop around nothing at all, CPython 3.11 finds no handler for what a signal raises
    finally:
        tell(path, "cleaned up")


def tell_sleep_and_clean_up(path: str) -> NoReturn:
    """Block in a system call until interrupted, then say so."""
    try:
        tell(path, os.getpid())
        while True:
            threading.Event().wait()
    finally:
        tell(path, "cleaned up")


def lose_an_interruption(path: str) -> NoReturn:
    """Take no notice of the first signal, as a system call does that begins just then; and block until interrupted."""

    def lose(_number: int, _frame: object) -> None:
        signal.signal(INTERRUPT, before)

    before = signal.signal(INTERRUPT, lose)
    tell_sleep_and_clean_up(path)


def tell_and_hold_the_interpreter(path: str) -> None:
    """Run C code that never lets go of the interpreter's lock, nor looks for signals."""
    tell(path, os.getpid())
    sum(range(10**18))


def die_unless_tried(path: str, times: int) -> int:
    """Count the tries in a file, and die in all before the last."""
    with open(path, "ab") as counter:
        counter.write(b".")
        tries = counter.tell()
    if tries < times:
        kill_self()
    return tries


def grow(size: int) -> int:
    """Keep so many bytes for good; return the pid."""
    initialized.append(b"x" * size)
    return os.getpid()


def spin_at_one(pair: tuple[str, int]) -> int:
    path, item = pair
    if item == 1:
        tell_and_spin(path)
    return item


def die_once(path: str) -> int:
    return die_unless_tried(path, 2)


def report_unfit() -> str:
    """Send the message of a failed initializer, with nonsense in it."""
    from aiopool import wire

    for descriptor in own_sockets():
        with contextlib.suppress(OSError):
            os.write(descriptor, wire.encode(wire.Kind.UNFIT, 0, b"nonsense")[0])
    return "reported"


def shut_down_sockets_and_spin() -> NoReturn:
    for number in own_sockets():
        with socket.socket(fileno=os.dup(number)) as own:
            own.shutdown(socket.SHUT_RDWR)
    while True:
        pass


class WritesOnly:
    """What many programs put in the place of sys.stdout."""

    def write(self, text: str) -> int:
        """Swallow it."""
        return len(text)


class FlushRaises(WritesOnly):
    """One whose flush fails."""

    def flush(self) -> NoReturn:
        """Fail."""
        raise RuntimeError("no")


class FlushExits(WritesOnly):
    """One whose flush wants to end the program."""

    def flush(self) -> NoReturn:
        """Do so."""
        raise SystemExit(1)


def replace_stdout(kind: str) -> int:
    if kind == "deleted":
        del sys.stdout
    else:
        put_for_stdout(kind)
    atexit.register(setattr, sys, "stdout", sys.__stdout__)
    return os.getpid()


def put_for_stdout(kind: str) -> None:
    kinds = {"writes only": WritesOnly, "flush raises": FlushRaises, "flush exits": FlushExits, "none": lambda: None}
    sys.stdout = kinds[kind]()  # type: ignore[assignment]


def resident_with(_value: object) -> int:
    """Return how much memory this process uses while it has its arguments."""
    from aiopool.worker.memory import resident_bytes

    return resident_bytes()


class TellsAndWaits:
    """Tells where it is, and waits, while it is pickled or unpickled in another process than its home."""

    def __init__(self, path: str, gate: str) -> None:
        self.path, self.gate, self.home = path, gate, os.getpid()

    def __reduce__(self) -> Any:
        if os.getpid() != self.home:
            tell_and_wait(self.path, self.gate)
        return _arrive, (self.path, self.gate, self.home)


def _arrive(path: str, gate: str, home: int) -> None:
    if os.getpid() != home:
        tell_and_wait(path, gate, os.getpid())


def large_and_waiting(path: str, gate: str, size: int) -> Any:
    """Return what tells and waits when it is about to be sent."""
    waiting = TellsAndWaits(path, gate)
    waiting.home = 0
    return bytes(size), waiting


def tell_and_name_process(path: str, text: object) -> int:
    tell(path, text)
    return os.getpid()


def tell_and_fail(path: str, value: object) -> NoReturn:
    tell(path, value)
    raise LookupError(value)


class Moment:
    """Something happens, a call of a job, when this is pickled or unpickled."""

    def __init__(self, when: str, job: Any, *args: Any) -> None:
        self.when, self.job, self.args = when, job, args

    def __reduce__(self) -> Any:
        if self.when == "pickled":
            return same, (self.job(*self.args),)
        return self.job, self.args


def make_moment(*args: Any) -> Moment:
    """Return a result that takes a while to pickle."""
    return Moment("pickled", *args)


def with_moment_at_flush(job: Any, *args: Any) -> None:
    """Print something that takes a while to be written out."""

    class Slow:
        def flush(self) -> None:
            job(*args)

    sys.stdout = Slow()


def answer_in_part(call: int, value: Any, count: int | None) -> NoReturn:
    """Send so many packets of the answer to this call, None for all, then die."""
    from aiopool import parcels, wire

    [descriptor] = own_sockets()
    with socket.socket(fileno=os.dup(descriptor)) as channel:
        payload = parcels.wrap(*parcels.dumps(value), wire.LARGEST)
        for packet in wire.encode(wire.Kind.RESULT, call, payload)[:count]:
            wire.send(channel, packet)
    kill_self()
    raise AssertionError


def at_exit(job: Any, *args: Any) -> None:
    """Initializer: have a job run when the process leaves."""
    import atexit

    atexit.register(job, *args)


def pass_through_gate(item: tuple[str, str, int]) -> int:
    path, gate, value = item
    tell_and_wait(path, gate)
    return value


def tell_wait_and_fail_at(path: str, gate: str, item: int) -> int:
    tell_and_wait(path, gate, f"{item} {os.getpid()}")
    return fail_at(item)


def tell_and_give(path: str, text: object, value: Any) -> Any:
    tell(path, text)
    return value


def without_memory(*_args: object) -> int:
    """Refuse memory to be passed on, as a system does that has none: large messages then go in pieces."""
    raise OSError(errno.ENOMEM, "no memory")


def refuse_memory() -> None:
    """Initializer: have large results go in pieces."""
    os.memfd_create = without_memory  # type: ignore[assignment]


class Block:
    """Some bytes, in a buffer of their own.

    Attributes:
        made: how many this process has unpickled.
    """

    made = 0

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, _protocol: object) -> Any:
        return _make_block, (pickle.PickleBuffer(self.data),)


def _make_block(data: Any) -> Block:
    Block.made += 1
    return Block(data)


def content(block: Block) -> bytes:
    return bytes(block.data)


def first_byte(block: Block) -> int:
    return int(block.data[0])


def blocks_made(*_blocks: Block) -> int:
    return Block.made


def count_blocks_anew() -> None:
    """Initializer: forget what the process before a fork has made."""
    Block.made = 0


def overwrite(block: Block) -> None:
    block.data[0] = 1


def mapped(*_values: object) -> list[int]:
    """Return the inode of each memory that was passed on to this process, as often as it maps it."""
    with open("/proc/self/maps") as maps:
        return [int(line.split()[4]) for line in maps if "memfd:aiopool" in line]


def tell_wait_and_return_mapped(path: str, gate: str, *_values: object) -> list[int]:
    tell_and_wait(path, gate)
    return mapped()


def die_first_unless_tried(path: str, block: Block) -> int:
    die_unless_tried(path, 2)
    return len(block.data)


def overwrite_and_die_unless_tried(path: str, block: Block) -> bytes:
    before = bytes(block.data)
    block.data[:] = bytes(len(before))
    die_unless_tried(path, 2)
    return before


def filled(number: int, size: int) -> Block:
    return Block(bytearray([number]) * size)


_kept_blocks: list[Block] = []


def keep_blocks(block: Block, *, keep: bool) -> None:
    """Keep a block as it is, or write into it."""
    if keep:
        _kept_blocks.append(block)
    else:
        block.data[:] = b"!" * len(block.data)


async def keep_blocks_async(block: Block, *, keep: bool) -> None:
    keep_blocks(block, keep=keep)


def kept_blocks() -> list[tuple[int, int]]:
    """Return the least and the largest byte of each."""
    return [(min(block.data), max(block.data)) for block in _kept_blocks]


def has_arena() -> bool:
    """Whether this worker keeps memory for results."""
    from aiopool.worker.current import _thread

    return _thread.station is not None and _thread.station.arena is not None


def write_below(content: bytearray) -> tuple[int, int, int]:
    """Write to standard output and errors as C code does; return how much, and what is in the content that is not 0."""
    return os.write(1, b"x" * 1000), os.write(2, b"y" * 1000), len(content) - content.count(0)


def have_little_memory() -> None:
    """Leave room for some tens of megabytes."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[0])
    most = pages * resource.getpagesize() + 50_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def give_up_descriptors() -> None:
    """Take no descriptor any more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def want_descriptors() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1024), most))


def share_in_a_job(method: str, block: Block) -> tuple[bytes, bytes, bytes]:
    """Return what a worker's own worker gets for a share with the id of one that the worker has, and what it has."""
    import asyncio
    import itertools

    from aiopool import AioPool
    from aiopool.backends import local

    async def main() -> tuple[bytes, bytes, bytes]:
        local.ids = itertools.count(1)
        async with AioPool(1, context=method) as pool:
            shared = pool.share(Block(b"inner"))
            return await pool.submit(content, shared.argument), content(block), bytes(pool.processes)

    return asyncio.run(main())
