"""Objects that many calls have in their arguments: one memory, unpickled once, forgotten when nobody needs it."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import itertools
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import jobs
from aiopool import AioPool, AioPoolError, NotPicklable, PoolNotRunning, WorkerDied, WrongLoop, parcels, wire
from aiopool.backends.local import LocalBackend
from aiopool.calls import Limits, Pace
from aiopool.parcels import Parcel
from aiopool.sharing import Shared, Sharing
from conftest import START_METHODS, processes
from faultpoints import DOWN, END, Point, Tapped, Taps, kill, kill_when_it_has_read
from latch import Latch

HERE = Path(__file__).parent

SIZE = 500_032
"""Bytes, more than a socket holds, and a multiple of what parts are padded to."""

Block = jobs.Block


class Short(Pace):
    """Of a function that has been seen to be short, whatever it does now."""

    def __init__(self) -> None:
        self.seconds = 1e-6

    def learn(self, seconds: float) -> None:
        """Stay as it is."""


@pytest.fixture
def all_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls are sent ahead, and not taken back merely because the one before them takes its time."""
    monkeypatch.setattr("aiopool.packing.Pace", Short)
    monkeypatch.setattr("aiopool.decisions.OVERDUE", math.inf)
    monkeypatch.setattr("aiopool.backends.shell.RESERVE", 0)


def memory_of(shared: Shared[Any]) -> int:
    """Return the descriptor of the memory of what is shared."""
    assert shared._share is not None
    payload = shared._share.payload
    assert isinstance(payload, Parcel)
    assert payload.descriptor is not None
    return payload.descriptor


def inode_of(shared: Shared[Any]) -> int:
    """Return the inode of that memory."""
    return os.fstat(memory_of(shared)).st_ino


def memories() -> list[str]:
    """Return the memory that this process has descriptors of, to pass it on."""
    return [name for name in jobs.descriptors() if name.startswith("/memfd:aiopool")]


async def items(*values: Any) -> AsyncIterator[Any]:
    """Be an async input."""
    for value in values:
        yield value


# What functions get.

VERBS: dict[str, Callable[[AioPool, Any], Any]] = {
    "submit": lambda pool, value: pool.submit(jobs.content, value),
    "keyword": lambda pool, value: pool.apply(jobs.same, (), {"value": value}),
    "nested": lambda pool, value: pool.apply(jobs.same, ([{"a": (value, 1)}],)),
    "partial": lambda pool, value: pool.submit(functools.partial(jobs.content, value)),
    "method": lambda pool, value: pool.submit(functools.partial(jobs.same, value).__call__),
    "map": lambda pool, value: pool.map(jobs.content, [value, value]),
    "map of a partial": lambda pool, value: pool.map(functools.partial(jobs.tell_and_return, os.devnull), [value]),
    "map_async": lambda pool, value: pool.map_async(jobs.content, items(value)),
    "starmap": lambda pool, value: pool.starmap(jobs.content, [(value,)]),
    "partial in starmap": lambda pool, value: pool.starmap(functools.partial(jobs.content, value), [()]),
    "imap": lambda pool, value: anext(pool.imap(jobs.content, [value])),
    "imap_unordered": lambda pool, value: anext(pool.imap_unordered(functools.partial(jobs.same), items(value))),
}


def plain(value: Any) -> str:
    """Return what blocks hold, wherever they are."""
    if isinstance(value, Block):
        return f"block of {bytes(value.data)!r}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {[plain(each) for each in value]}"
    return f"dict of {plain(list(value.items()))}" if isinstance(value, dict) else repr(value)


@pytest.mark.both_loops
@pytest.mark.parametrize("verb", VERBS)
async def test_wherever_a_handle_is_the_function_gets_the_object(verb: str) -> None:
    """As if the object itself had been passed, in every verb."""
    async with AioPool(1) as pool:
        block = Block(b"content")
        shared = pool.share(block)
        assert plain(await VERBS[verb](pool, shared.argument)) == plain(await VERBS[verb](pool, block))


async def test_all_workers_have_the_object_in_the_same_memory(start_method: str, latch: Latch, gate: Latch) -> None:
    """What is written there is seen by each; large or small."""
    async with AioPool(2, context=start_method) as pool:
        for size in (SIZE, 64):
            shared = pool.share(Block(bytes(size)))
            calls = [
                pool.submit(jobs.tell_wait_and_return_mapped, latch.path, gate.path, shared.argument) for _ in range(2)
            ]
            assert len({await latch.told(), await latch.told()}) == 2
            gate.let(2)
            assert [each.count(inode_of(shared)) for each in await asyncio.gather(*calls)] == [1, 1]
            os.pwrite(memory_of(shared), b"\7", os.fstat(memory_of(shared)).st_size - size)
            calls = [pool.submit(jobs.tell_and_wait, latch.path, gate.path, Pair(shared.argument)) for _ in range(2)]
            assert [await latch.told(), await latch.told()] == ["7", "7"]
            gate.let(2)
            await asyncio.gather(*calls)


class Pair:
    """Becomes the first byte of a block, when it is unpickled."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def __reduce__(self) -> Any:
        return jobs.first_byte, (self.block,)


@pytest.mark.usefixtures("either_way")
async def test_a_worker_unpickles_it_once_for_all_calls() -> None:
    """However many there are, and however often it is in one of them."""
    async with AioPool(1) as pool:
        shared, other = pool.share(Block(bytes(SIZE))), pool.share(Block(b"x"))
        assert await pool.submit(jobs.blocks_made, shared.argument, shared.argument) == 1
        assert await pool.map(jobs.blocks_made, [shared.argument] * 3, chunksize=1) == [1] * 3
        assert await pool.submit(jobs.blocks_made, other.argument, shared.argument) == 2


async def test_a_worker_keeps_no_more_than_the_object() -> None:
    """Neither what comes again, nor the pickle once it has been unpickled."""
    async with AioPool(1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        for _ in range(3):
            assert await pool.submit(jobs.mapped, shared.argument) == [inode_of(shared)]
        within = pool.share(bytes(SIZE))
        for _ in range(3):
            assert await pool.submit(jobs.mapped, within.argument) == [inode_of(shared)]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("size", [1, parcels.LARGE, SIZE, 2 * parcels.MAPPED])
async def test_buffers_are_read_only_in_a_worker(size: int) -> None:
    """However large, and whichever way they came."""
    async with AioPool(1) as pool:
        for block in map(pool.share, (Block(bytearray(size)), Block(bytes(size)))):
            with pytest.raises(TypeError, match="cannot modify read-only memory"):
                await pool.submit(jobs.overwrite, block.argument)
            assert await pool.submit(jobs.content, block.argument) == bytes(size)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("count", [10, 100_000])
async def test_numpy_arrays_are_read_only_in_a_worker(count: int) -> None:
    """NumPy itself says so."""
    numpy = pytest.importorskip("numpy")
    async with AioPool(1) as pool:
        shared = pool.share({"a": numpy.ones(count)})
        assert (await pool.submit(jobs.same, shared.argument))["a"].sum() == count
        with pytest.raises(ValueError, match="read-only"):
            await pool.submit(numpy.ndarray.fill, pool.share(numpy.ones(count)).argument, 2)


async def test_what_happens_to_the_object_later_does_not_travel() -> None:
    """It was pickled when it was shared."""
    async with AioPool(1) as pool:
        block, values = Block(bytearray(b"before")), ["before"]
        shared = pool.share((block, values))
        block.data[:], values[:] = b"later!", ["later"]
        before, texts = await pool.submit(jobs.same, shared.argument)
        assert (bytes(before.data), texts) == (b"before", ["before"])


async def test_what_is_shared_may_have_shares_in_it() -> None:
    """Each is unpickled once, and there as long as one that it is in."""
    async with AioPool(1) as pool:
        inner = pool.share(Block(bytes(SIZE)))
        inode = inode_of(inner)
        outer = pool.share([inner.argument, inner.argument, Block(b"x")])
        inner.drop()
        one, other, _ = await pool.submit(jobs.same, outer.argument)
        assert one is other
        assert await pool.submit(jobs.blocks_made, outer.argument) == 2
        assert inode in await pool.submit(jobs.mapped)
        outer.drop()
        await asyncio.sleep(0)
        assert await pool.submit(jobs.mapped) == []


# Ends.


def drop(_pool: AioPool, handles: list[Shared[Any]]) -> None:
    """Say so."""
    handles[0].drop()
    handles[0].drop()


def lose(_pool: AioPool, handles: list[Shared[Any]]) -> None:
    """Hold the handle no longer."""
    del handles[:]


def lose_in_a_cycle(_pool: AioPool, handles: list[Any]) -> None:
    """Leave the handle to the collector."""
    handles.append(handles)
    cycle = [handles[:]]
    cycle.append(cycle)  # type: ignore[arg-type]
    del handles[:], cycle
    gc.collect()


def lose_in_a_thread(pool: AioPool, handles: list[Shared[Any]]) -> None:
    """Hold it longest in a thread."""
    thread = threading.Thread(target=lose, args=(pool, handles))
    thread.start()
    thread.join()


@pytest.mark.both_loops
@pytest.mark.parametrize("let_go", [drop, lose, lose_in_a_cycle, lose_in_a_thread])
async def test_what_is_dropped_is_forgotten_here_and_by_every_worker(
    let_go: Callable[[AioPool, list[Shared[Any]]], None], start_method: str, latch: Latch, gate: Latch
) -> None:
    """Also by one that was forked when it was shared already, and by one that never used it."""
    async with AioPool(3, context=start_method, maxtasksperchild=3) as pool:
        handles = [pool.share(Block(bytes(SIZE)))]
        await asyncio.gather(*(pool.submit(jobs.content, handles[0].argument) for _ in range(12)))
        assert len(memories()) == 1
        let_go(pool, handles)
        assert memories() == []
        await asyncio.sleep(0)
        calls = [pool.submit(jobs.tell_wait_and_return_mapped, latch.path, gate.path) for _ in range(3)]
        for _ in calls:
            await latch.told()
        gate.let(3)
        assert await asyncio.gather(*calls) == [[]] * 3
        assert [name for name in await pool.submit(jobs.descriptors) if "memfd" in name] == []


@pytest.mark.both_loops
async def test_a_handle_may_go_at_any_moment_and_in_any_thread(taps: Taps) -> None:
    """Workers are told in the loop, in their turn."""
    asyncio.get_running_loop().set_debug(True)  # refuses what is only for the loop's own thread
    async with AioPool(1) as pool:
        handles = [pool.share(Block(bytes(SIZE)))]
        await pool.submit(jobs.content, handles[0].argument)
        sent = len(taps.made[0].down.messages)
        lose_in_a_thread(pool, handles)
        assert len(taps.made[0].down.messages) == sent
        await asyncio.sleep(0)
        assert [message.kind for message in taps.made[0].down.messages[sent:]] == [wire.Kind.DROP]
        assert await pool.submit(jobs.mapped) == []


async def test_a_call_that_waits_or_runs_has_it_when_the_handle_is_dropped(latch: Latch, gate: Latch) -> None:
    """It is forgotten when the last of them has ended."""
    async with AioPool(1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        calls = [
            pool.submit(jobs.tell_wait_and_return_mapped, latch.path, gate.path, shared.argument) for _ in range(2)
        ]
        inode = inode_of(shared)
        await latch.told()
        del shared
        gate.let(2)
        assert await asyncio.gather(*calls) == [[inode]] * 2
        await asyncio.sleep(0)
        assert memories() == []
        assert await pool.submit(jobs.mapped) == []


async def test_the_end_of_a_cancelled_call_is_an_end() -> None:
    """It is not kept for one that never runs."""
    async with AioPool(1) as pool:
        blocked = pool.submit(jobs.same, 1)
        waiting = pool.submit(jobs.content, pool.share(Block(bytes(SIZE))).argument)
        assert len(memories()) == 1
        waiting.cancel()
        assert await blocked == 1
        assert memories() == []


@pytest.mark.both_loops
@pytest.mark.usefixtures("all_is_short")
async def test_a_worker_is_told_again_to_forget_when_that_was_taken_back(taps: Taps, latch: Latch, gate: Latch) -> None:
    """It had not read it, and lost a call behind which it lay."""
    async with AioPool(1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        await pool.submit(jobs.content, shared.argument)
        begun = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        ahead = pool.submit(jobs.square, 2)
        await latch.told()
        shared.drop()
        await asyncio.sleep(0)
        sent = len(taps.made[0].down.messages)
        behind = pool.submit(jobs.square, 3)
        behind.cancel()
        sent_again = [message.kind for message in taps.made[0].down.messages[sent + 1 :]]
        assert sent_again == [wire.Kind.DROP, wire.Kind.CALL]
        gate.let()
        assert await asyncio.gather(begun, ahead) == [None, 4]
        assert await pool.submit(jobs.mapped) == []


@pytest.mark.usefixtures("all_is_short")
async def test_what_a_worker_is_told_to_forget_is_no_call_that_it_has_not_read(
    taps: Taps, latch: Latch, gate: Latch
) -> None:
    """When it dies, the call that ran is lost, and what is behind it runs elsewhere."""
    async with AioPool(1) as pool:
        shares = [pool.share(number) for number in range(10)]
        begun = pool.submit(jobs.tell_and_wait, latch.path, gate.path)
        ahead = pool.submit(jobs.square, 2)
        await latch.told()
        shares.clear()
        await asyncio.sleep(0)
        kill(taps.made[0])
        with pytest.raises(WorkerDied):
            await begun
        assert await ahead == 4


async def test_the_pools_end_frees_the_memory_of_handles_that_are_left(start_method: str) -> None:
    """They are of no use any more."""
    async with AioPool(1, context=start_method) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        await pool.submit(jobs.content, shared.argument)
        assert len(memories()) == 1
    assert memories() == []
    with pytest.raises(PoolNotRunning):
        await pool.submit(jobs.content, shared.argument)


@pytest.mark.parametrize("forgotten", ["in its loop", "after its loop"])
def test_a_handle_may_outlive_its_loop_and_a_forgotten_pool(forgotten: str) -> None:
    """Nothing is to be done then, and nothing is said."""
    kept: list[AioPool] = []

    async def main() -> Shared[Any]:
        pool = AioPool(1)
        await pool.start()
        shared = pool.share(Block(bytes(SIZE)))
        assert await pool.submit(jobs.content, shared.argument) == bytes(SIZE)
        kept.extend([pool] if forgotten == "after its loop" else [])
        return shared

    with pytest.warns(ResourceWarning, match="unclosed AioPool"):
        shared = asyncio.run(main())
        kept.clear()
        gc.collect()
    assert memories() == []
    shared.drop()


async def test_a_forked_child_that_drops_a_copy_of_the_handle_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are not its own."""
    forget, forgotten = LocalBackend.forget, list[int]()
    monkeypatch.setattr(
        LocalBackend, "forget", lambda backend, share: (forgotten.append(share), forget(backend, share))
    )
    async with AioPool(1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        if not (pid := os.fork()):
            shared.drop()
            os._exit(len(forgotten))
        assert os.waitpid(pid, 0)[1] == 0
        assert await pool.submit(jobs.content, shared.argument) == bytes(SIZE)
        shared.drop()
        assert len(forgotten) == 1


# Workers come and go.


@pytest.mark.usefixtures("either_way")
async def test_a_fresh_worker_gets_what_is_shared(start_method: str, tmp_path: Path) -> None:
    """When one has died under a call that is tried again, and when each serves one call only."""
    async with AioPool(1, jobs.count_blocks_anew, context=start_method, retries=1, maxtasksperchild=1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        assert await pool.submit(jobs.die_first_unless_tried, str(tmp_path / "tries"), shared.argument) == SIZE
        made = await pool.map(jobs.blocks_made, [shared.argument] * 3)
        assert made == [1] * 3


PLACES = [(0, 0), (0, 1), (0, END), (1, 0), (1, END)]
"""Messages and places in them: what is shared, in two packets, then the call."""


@pytest.mark.both_loops
@pytest.mark.parametrize("act", [kill, kill_when_it_has_read])
async def test_a_worker_dies_between_any_two_packets(act: Callable[[Tapped], None], taps: Taps, latch: Latch) -> None:
    """The call is lost if it was wholly read, and else runs elsewhere, once."""
    async with AioPool(1, context="fork") as pool:
        shared = pool.share(Block(bytes(SIZE)))
        for place in PLACES:
            fates: list[str] = []

            def strike(tapped: Tapped, fates: list[str] = fates) -> None:
                act(tapped)
                fates += tapped.fate(0), tapped.fate(1)

            tapped = taps.of(await pool.apply(jobs.pid_of))
            tapped.at(Point(DOWN, *place), strike)
            [outcome] = await asyncio.gather(
                pool.submit(jobs.tell_and_give, latch.path, "begun", shared.argument), return_exceptions=True
            )
            told = latch.told_already()
            assert tapped.struck
            if fates[0] != "answered" and fates[1] == "died":
                assert isinstance(outcome, WorkerDied)
                assert len(told) <= 1
            else:
                assert jobs.content(outcome) == bytes(SIZE)
                assert told == ["begun"]


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("packet", [0, 1, 5, END])
async def test_a_worker_dies_between_any_two_pieces(packet: int, taps: Taps, latch: Latch) -> None:
    """Before the call itself: it runs elsewhere, once."""
    async with AioPool(1, context="fork") as pool:
        shared = pool.share(Block(bytes(SIZE)))
        tapped = taps.of(await pool.apply(jobs.pid_of))
        tapped.at(Point(DOWN, 0, packet), kill)
        assert jobs.content(await pool.submit(jobs.tell_and_give, latch.path, "begun", shared.argument)) == bytes(SIZE)
        assert tapped.struck
        assert latch.told_already() == ["begun"]


@pytest.mark.parametrize("inner", START_METHODS)
async def test_a_job_may_have_a_pool_with_shares_of_its_own(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they have the same ids: one process counts them anew, and the other is forked from it."""
    monkeypatch.setattr("aiopool.backends.local.ids", itertools.count(1))
    async with AioPool(1) as pool:
        shared = pool.share(Block(b"outer"))
        assert (await pool.submit(jobs.share_in_a_job, inner, shared.argument))[:2] == (b"inner", b"outer")


@pytest.mark.parametrize("method", START_METHODS)
def test_nothing_is_left_of_it_when_the_parent_is_killed(method: str, tmp_path: Path) -> None:
    """The memory has no name, and the workers go."""
    program = f"""
        import asyncio, jobs
        from aiopool import AioPool
        def tell_and_spin(block, path):
            jobs.tell(path, len(block.data))
            while True:
                pass
        async def main():
            async with AioPool(2, context={method!r}) as pool:
                shared = pool.share(jobs.Block(bytes({SIZE})))
                await pool.apply(tell_and_spin, (shared.argument, "/dev/stdout"))
        if __name__ == "__main__":
            asyncio.run(main())
    """
    path = tmp_path / "killed_parent.py"
    path.write_text(textwrap.dedent(program))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == f"{SIZE}\n"
        started = processes()
        assert any("memfd:aiopool" in maps_of(pid) for pid in started)
        parent.kill()
        assert parent.stdout.read() == "", "whoever lives holds the pipe open"
    assert not any("memfd:aiopool" in maps_of(pid) for pid in started)


def maps_of(pid: int) -> str:
    """Return what a process maps; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


# Descriptors.


@pytest.mark.usefixtures("in_pieces")
async def test_without_memory_to_pass_on_it_comes_in_pieces() -> None:
    """Again and again, but it is unpickled once."""
    async with AioPool(1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        for _ in range(3):
            assert await pool.submit(jobs.content, shared.argument) == bytes(SIZE)
        assert await pool.submit(jobs.blocks_made, shared.argument) == 1
        assert await pool.submit(jobs.mapped) == []


async def test_so_many_shares_leave_descriptors_for_other_things() -> None:
    """Here and in a worker: those with small content need none, of the others some come in pieces."""
    async with AioPool(1) as pool:
        small = [pool.share(number) for number in range(1000)]
        assert memories() == []
        assert await pool.submit(sum, small) == sum(range(1000))
        large = [pool.share(Block(b"%d" % number)) for number in range(parcels.MOST_SHARED + 2)]
        assert len(memories()) == parcels.MOST_SHARED
        arrived = await pool.submit(jobs.same, large)
        assert [int(jobs.content(each)) for each in arrived] == [*range(len(large))]
        assert len(await pool.submit(jobs.descriptors)) < parcels.MOST_SHARED + 50
        assert memories()
        del arrived, large
        assert memories() == []


async def test_a_worker_without_descriptors_fails_the_call_only() -> None:
    """Later it gets what it lacks."""
    async with AioPool(1) as pool:
        shared = pool.share(Block(bytes(SIZE)))
        pid = await pool.apply(jobs.pid_of)
        await pool.apply(jobs.give_up_descriptors)
        with pytest.raises(AioPoolError, match="the worker has no memory or descriptor left for it"):
            await pool.submit(jobs.content, shared.argument)
        await pool.apply(jobs.want_descriptors)
        assert await pool.submit(jobs.content, shared.argument) == bytes(SIZE)
        assert await pool.apply(jobs.pid_of) == pid


# Errors.


async def test_a_handle_works_in_its_own_pool_only() -> None:
    """Another says so at the call's line; as it does within a share."""
    async with AioPool(1) as pool, AioPool(1) as other:
        shared = pool.share([1])
        for use in (
            lambda: other.submit(len, shared.argument),
            lambda: other.map_async(functools.partial(len, shared), [1]),
            lambda: other.submit(functools.partial(len, shared)),
            lambda: other.share([shared]),
        ):
            with pytest.raises(NotPicklable, match="ValueError: a shared object of another pool is among them"):
                use()
        assert await pool.submit(len, shared.argument) == 1


async def test_a_dropped_handle_is_an_error_of_the_callers_line() -> None:
    """And of no other call."""
    async with AioPool(1) as pool:
        shared = pool.share([1])
        earlier = pool.submit(len, shared.argument)
        assert repr(shared).startswith("<Shared ")
        shared.drop()
        assert repr(shared) == "<Shared: dropped>"
        with pytest.raises(
            NotPicklable, match=r"arguments of len could not .*: ValueError: this shared object has been dropped"
        ):
            pool.submit(len, shared.argument)
        assert await earlier == 1


async def test_a_handle_travels_in_no_other_way() -> None:
    """It is neither copied nor stored, and what somebody has pickled nevertheless is a clear error where it arrives."""
    async with AioPool(1) as pool:
        shared = pool.share([1])
        for attempt in (copy.copy, copy.deepcopy, functools.partial(pickle.dumps, protocol=4)):
            with pytest.raises(TypeError, match="cannot be copied or pickled otherwise"):
                attempt(shared)
        pickled = pickle.dumps(shared, protocol=5)
        with pytest.raises(AioPoolError, match="it has come here in another way"):
            pickle.loads(pickled)
        with pytest.raises(AioPoolError, match="it has come here in another way"):
            await pool.submit(pickle.loads, pickled)


async def test_what_does_not_pickle_cannot_be_shared() -> None:
    """It raises at once, and nothing is left of it."""
    async with AioPool(1) as pool:
        with pytest.raises(NotPicklable, match="the shared object could not be pickled") as caught:
            pool.share(threading.Lock())
        assert caught.value.what == "shared object"


async def test_what_does_not_unpickle_in_the_worker_fails_each_call_that_asks_for_it() -> None:
    """The worker lives, and calls without it are not disturbed."""
    async with AioPool(1) as pool:
        pid = await pool.apply(jobs.pid_of)
        for shared in (bad := pool.share(jobs.UnpicklesNever("worker")), pool.share([bad]), bad):
            with pytest.raises(NotPicklable, match="ArithmeticError: does not unpickle here") as caught:
                await pool.submit(jobs.same, shared.argument)
            assert (caught.value.what, caught.value.call) == ("shared object", "same")
            assert caught.value.original_type == "ArithmeticError"
            assert isinstance(caught.value.__cause__, AioPoolError)
        assert await pool.apply(jobs.pid_of) == pid


async def test_a_pool_that_is_not_running_shares_nothing() -> None:
    """Before its start, after its end, and in another loop."""
    pool = AioPool(1)
    with pytest.raises(PoolNotRunning):
        pool.share(1)
    async with pool:

        def share_in_another_loop() -> None:
            async def share() -> None:
                pool.share(1)

            asyncio.run(share())

        with pytest.raises(WrongLoop):
            await asyncio.to_thread(share_in_another_loop)
    with pytest.raises(PoolNotRunning):
        pool.share(1)


async def test_a_call_without_shares_is_as_it_was() -> None:
    """Plain bytes, which may be sent ahead; one with shares is not."""
    async with AioPool(1) as pool:
        packer = pool._engine.packer
        function, limits = packer.find(len), Limits()
        assert isinstance(packer.make(function, ([1],), {}, print, limits, ()).payload, bytes)
        assert isinstance(packer.make(function, (pool.share([1]),), {}, print, limits, ()).payload, Sharing)
