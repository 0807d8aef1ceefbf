"""Compute π from Leibniz's series, 4 - 4/3 + 4/5 - 4/7 ...: ranges of it are separate calls, added as they end."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Iterator
from itertools import pairwise

from aiopool import AioPool


def part(begin: int, end: int) -> float:
    """Return the sum of the terms from ``begin`` up to, and without, ``end``."""
    return math.fsum((-4.0 if k % 2 else 4.0) / (2 * k + 1) for k in range(begin, end))


def ranges(terms: int, calls: int) -> Iterator[tuple[int, int]]:
    """Divide the terms evenly among the calls."""
    return pairwise(terms * number // calls for number in range(calls + 1))


async def compute(terms: int, calls: int) -> float:
    """Return the sum of the series; print how it grows."""
    parts: list[float] = []
    async with AioPool() as pool:
        results = [pool.submit(part, begin, end) for begin, end in ranges(terms, calls)]
        for result in asyncio.as_completed(results):
            parts.append(await result)
            print(f"{len(parts):>{len(str(calls))}} of {calls} calls: {math.fsum(parts):.12f}", flush=True)
    return math.fsum(parts)  # rounded once, so the order of arrival makes no difference


def positive(text: str) -> int:
    """Return the number that an option says."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def main() -> None:
    """Read the options, compute, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=positive, default=20_000_000, help="how many terms to add (%(default)s)")
    parser.add_argument("--calls", type=positive, default=40, help="how many calls share them (%(default)s)")
    options = parser.parse_args()
    estimate = asyncio.run(compute(options.terms, options.calls))
    print(f"pi is about {estimate:.15f}, off by {abs(estimate - math.pi):.1e}")


if __name__ == "__main__":
    main()
