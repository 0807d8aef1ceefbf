"""What type checkers are to make of the public face; see test_typing. Never run."""

from collections.abc import AsyncIterator, Iterator
from typing import reveal_type

from aiopool import AioPool


def f(x: int, *, key: str) -> bytes:
    """Have parameters of all kinds."""
    return key.encode() * x


def g(x: int) -> str:
    """Be mapped."""
    return str(x)


async def h(x: int) -> str:
    """Be a coroutine function."""
    return str(x)


def each(x: int) -> Iterator[str]:
    """Be a generator function."""
    yield str(x)


async def numbers() -> AsyncIterator[int]:
    """Be an async input."""
    yield 1


async def check() -> None:
    """Use every verb."""
    async with AioPool(2) as pool:
        reveal_type(pool)  # AioPool
        reveal_type(await pool.submit(f, 1, key="x"))  # bytes
        reveal_type(pool.submit(f, 1, key="x"))  # AsyncResult[bytes]
        reveal_type(await pool.apply(f, (1,), {"key": "x"}))  # bytes
        reveal_type(await pool.submit(f, 1, key="x").get(1.0))  # bytes
        reveal_type(await pool.map(g, [1, 2]))  # list[str]
        reveal_type(await pool.map(g, numbers()))  # list[str]
        reveal_type(pool.map_async(g, [1]))  # MapResult[str]
        reveal_type(await pool.starmap(f, [(1, 2)]))  # list[bytes]
        reveal_type(await pool.options(timeout=1).submit(f, 1, key="x"))  # bytes
        reveal_type(await pool.submit(h, 1))  # str
        reveal_type(await pool.apply(h, (1,)))  # str
        reveal_type(await pool.map(h, [1]))  # list[str]
        reveal_type(await pool.starmap(h, [(1,)]))  # list[str]
        reveal_type(pool.imap_unordered(h, [1]))  # ImapIterator[str]
        reveal_type(pool.stream(each, 1))  # StreamIterator[str]
        reveal_type(pool.stream(numbers))  # StreamIterator[int]
        shared = pool.share("x")
        reveal_type(shared)  # Shared[str]
        reveal_type(await pool.submit(len, shared.argument))  # int
        async for value in pool.imap(g, numbers()):
            reveal_type(value)  # str
        pool.submit(f, 1)  # error: the keyword is missing
        pool.submit(f, "1", key="x")  # error: not an int
        pool.submit(f, 1, key="x", more=2)  # error: no such keyword
        pool.map_async(g, ["1"])  # error: not ints
        pool.options(retries=1).submit(f, 1)  # error: the keyword is missing
        pool.imap(g, ["1"])  # error: not ints
        pool.submit(h, "1")  # error: not an int
        pool.stream(each, "1")  # error: not an int
        pool.submit(g, shared.argument)  # error: not an int
        AioPool("2")  # error: not an int
