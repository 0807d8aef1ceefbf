"""What runs in workers on an event loop, or yields values there."""

from __future__ import annotations

import asyncio


async def add(a: int, b: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b


async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def acount(n):
    for i in range(n):
        yield i


def count(n):
    yield from range(n)
