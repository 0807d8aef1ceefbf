import asyncio

from aiopool import AioPool


async def main() -> None:
    async with AioPool() as pool:
        print("apply:", await pool.apply(pow, (2, 100)))
        print("map:", await pool.map(sum, [range(10**3), range(10**5), range(10**7)]))
        print("as they come:", [value async for value in pool.imap_unordered(sum, [range(10**7), range(10)])])


if __name__ == "__main__":
    asyncio.run(main())
