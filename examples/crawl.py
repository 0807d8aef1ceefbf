"""Crawl a web site with worker processes: fetch its pages, many at a time in each worker, and parse them there.

    python examples/crawl.py --pages 3000

It starts a real web server on this machine, in a process of its own. Its pages have words and links, and take a
while to come. First one process fetches and parses all of them, then worker processes do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from multiprocessing.connection import Connection

import httpx

from aiopool import AioPool

WORDS = ("harbour", "lantern", "meadow", "copper", "thimble", "orchard", "gravel", "winter", "signal", "velvet")

DELAY = 0.02
"""Seconds that the server takes for a page."""

CONCURRENCY = 32
"""How many pages are fetched at once by a process."""


# The server.


def page(number: int, pages: int) -> str:
    """Return the page of this number: always the same."""
    chance = random.Random(number)  # noqa: S311 - words, not secrets
    text = " ".join(chance.choices(WORDS, k=400))
    links = "".join(f'<li><a href="/{chance.randrange(pages)}">more</a></li>' for _ in range(20))
    return f"<html><head><title>Page {number}</title></head><body><p>{text}</p><ul>{links}</ul></body></html>"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: int) -> None:
    """Answer the requests of one connection."""
    try:
        while request := await reader.readline():
            while (await reader.readline()).strip():
                pass  # headers
            await asyncio.sleep(DELAY)
            body = page(int(request.split()[1].lstrip(b"/")), pages).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    except ConnectionError:
        pass  # the client has gone
    finally:
        writer.close()


def serve(tell: Connection, pages: int) -> None:
    """Be the server until the process is ended; tell the port."""

    async def run() -> None:
        server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, pages), "127.0.0.1", 0)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def server(pages: int) -> Generator[str, None, None]:
    """Have the server run, and know its address."""
    context = multiprocessing.get_context("spawn")
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(tell, pages), daemon=True)
    process.start()
    try:
        with hear, tell:
            yield f"http://127.0.0.1:{hear.recv()}"
    finally:
        process.terminate()
        process.join()


# The crawler.


class Reader(HTMLParser):
    """Counts the words of a page, and collects its links."""

    def __init__(self) -> None:
        super().__init__()
        self.words: Counter[str] = Counter()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Note where a link leads."""
        self.links.update(value for name, value in attrs if tag == "a" and name == "href" and value)

    def handle_data(self, data: str) -> None:
        """Count words."""
        self.words.update(data.split())


client: httpx.AsyncClient


async def open_client(address: str) -> None:
    """Open the client that all pages of this process are fetched with: a worker's initializer."""
    global client  # noqa: PLW0603 - it lasts as long as the process
    client = httpx.AsyncClient(base_url=address, timeout=60, trust_env=False)


async def read_page(path: str) -> tuple[Counter[str], set[str]]:
    """Fetch a page and read it; return its words and its links."""
    response = await client.get(path)
    response.raise_for_status()
    reader = Reader()
    reader.feed(response.text)
    return reader.words, reader.links


async def in_one_process(address: str, paths: Sequence[str]) -> list[tuple[Counter[str], set[str]]]:
    """Read all pages here."""
    await open_client(address)
    places = asyncio.Semaphore(CONCURRENCY)

    async def read(path: str) -> tuple[Counter[str], set[str]]:
        async with places:
            return await read_page(path)

    async with client:
        return await asyncio.gather(*map(read, paths))


async def in_workers(address: str, paths: Sequence[str], processes: int) -> list[tuple[Counter[str], set[str]]]:
    """Read all pages in worker processes."""
    async with AioPool(processes, open_client, (address,), concurrency=CONCURRENCY) as pool:
        return await pool.map(read_page, paths)


def summary(pages: list[tuple[Counter[str], set[str]]]) -> tuple[str, int, int]:
    """Return the most frequent word, how many words there are, and to how many pages links lead."""
    words = sum((each for each, _ in pages), Counter[str]())
    links = set(itertools.chain.from_iterable(links for _, links in pages))
    return words.most_common(1)[0][0], words.total(), len(links)


def main() -> None:
    """Crawl, twice."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=2000, help="how many (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many workers (%(default)s)")
    options = parser.parse_args()
    paths = [f"/{number}" for number in range(options.pages)]
    with server(options.pages) as address:
        began = time.perf_counter()
        alone = summary(asyncio.run(in_one_process(address, paths)))
        between = time.perf_counter()
        together = summary(asyncio.run(in_workers(address, paths, options.processes)))
        ended = time.perf_counter()
    word, words, links = together
    print(f"{options.pages} pages, {words} words, most often {word!r}, links to {links} pages")
    print(f"one process: {between - began:.1f} s; {options.processes} workers: {ended - between:.1f} s")
    if alone != together:
        raise SystemExit(f"they do not agree: {alone}, {together}")


if __name__ == "__main__":
    main()
