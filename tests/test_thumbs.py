"""The service of examples/thumbs.py, under a real server on a free port, with real images and real clients."""

from __future__ import annotations

import asyncio
import contextlib
import html.parser
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from browser import browsing
from conftest import is_gone
from examples import thumbs
from gated_thumbs import MARK
from latch import Latch
from programs import PROGRAMS, STRICT, read_until, session

HERE = Path(__file__).parent
PATIENCE = 240
"""Seconds after which even a very busy machine must have done it."""

CHROMIUM = shutil.which("chromium")

pytestmark = [pytest.mark.timeout(PATIENCE), pytest.mark.once]


# Images.


class Order(NamedTuple):
    """An image of one colour, and what it is to become."""

    image: bytes
    size: tuple[int, int]
    color: tuple[int, int, int]


def order(number: int) -> Order:
    """Return an image that is different for each number."""
    width, height = 300 + number * 53 % 900, 300 + number * 31 % 700
    color = (number * 67 % 256, number * 151 % 256, number * 29 % 256)
    image = encoded(Image.new("RGB", (width, height), color), thumbs.FORMATS[number % len(thumbs.FORMATS)])
    scale = thumbs.SIDE / max(width, height)
    return Order(image, (round(width * scale), round(height * scale)), color)


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Return the file of a picture."""
    file = BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def check(answer: httpx.Response, ordered: Order) -> None:
    """See that an answer is the thumbnail of the image that was sent, and not another's."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/webp"
    check_picture(answer.content, ordered)


def check_picture(file: bytes, ordered: Order) -> None:
    """See that a file is the thumbnail of an image."""
    with Image.open(BytesIO(file), formats=["WEBP"]) as small:
        assert small.size == pytest.approx(ordered.size, abs=1)
        assert small.convert("RGB").getpixel((9, 9)) == pytest.approx(ordered.color, abs=12)


# Services.


class Service(NamedTuple):
    """One that runs."""

    process: subprocess.Popen[str]
    address: str

    def signal(self, number: int) -> None:
        """Send its first process a signal."""
        self.process.send_signal(number)

    def says(self, expected: str) -> str:
        """Wait until it logs a text; return what it has logged meanwhile."""
        assert self.process.stderr is not None
        return read_until(self.process.stderr, expected)

    def end(self) -> tuple[int, str]:
        """Wait until all its processes are gone; return its exit code and what it has logged meanwhile."""
        assert self.process.stderr is not None
        log = self.process.stderr.read()
        return self.process.wait(), log

    def client(self) -> httpx.AsyncClient:
        """Return a client that is in no hurry, and tries again where nobody listens yet."""
        transport = httpx.AsyncHTTPTransport(retries=6)
        return httpx.AsyncClient(base_url=self.address, transport=transport, timeout=None)  # noqa: S113 - a test has one


@contextlib.contextmanager
def serving(*command: object, **settings: object) -> Generator[Service]:
    """Start a service; its address is known before it answers."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "THUMBS_SETTINGS": json.dumps(settings)}
    with session(*command, "--port", 0, stdout=subprocess.DEVNULL, env=env) as process:
        assert process.stderr is not None
        read_until(process.stderr, "running on ")
        yield Service(process, read_until(process.stderr, " ").strip())


@pytest.fixture
def service() -> Iterator[Service]:
    """The program as it is."""
    with serving(*STRICT, PROGRAMS / "thumbs.py") as started:
        yield started
        stop(started)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that."""
    async with service.client() as made:
        yield made


def gated(**settings: object) -> contextlib.AbstractContextManager[Service]:
    """Start the service with other settings, in which images can be told to wait at a gate, for as long as it takes."""
    return serving(*STRICT, HERE / "gated_thumbs.py", **{"TIME_LIMIT": PATIENCE, **settings})


def stop(service: Service, number: int = signal.SIGTERM) -> None:
    """Have a service end that has nothing to do any more; see that it does so with success and without a word."""
    service.signal(number)
    code, log = service.end()
    assert code == 0, log
    assert "Traceback" not in log
    assert "Warning" not in log


# What clients do.


async def post(client: httpx.AsyncClient, image: bytes) -> httpx.Response:
    """Post an image."""
    return await client.post("/thumbnail", files={"image": ("image", image)})


def waiting(image: bytes, latch: Latch, gate: Latch) -> bytes:
    """Return an image that tells the latch its worker's process id, and then waits at the gate."""
    return image + MARK + json.dumps([latch.path, gate.path]).encode()


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the pool's metrics, by name and by what they tell apart."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            names = [sample.name, *(value for label, value in sample.labels.items() if label != "pool")]
            found[" ".join(names)] = sample.value
    return found


async def metrics_at_rest(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the metrics when the pool has noticed the end of every call; each look is a visit to its loop."""
    while (found := await metrics(client))["aiopool_calls_running"]:
        pass
    return found


async def end_of(pid: int) -> None:
    """Wait until a process has ended that may be no child of ours."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(descriptor, ended.set_result, None)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def overload(
    client: httpx.AsyncClient, latch: Latch, gate: Latch
) -> tuple[list[tuple[asyncio.Task[httpx.Response], Order]], httpx.Response]:
    """Where one call may wait, have all workers at the gate and one call waiting; return those, and the refusal."""
    workers = int((await metrics(client))["aiopool_workers idle"])
    orders = [order(number) for number in range(workers + 2)]
    posts = {asyncio.create_task(post(client, waiting(each.image, latch, gate))): each for each in orders}
    done, accepted = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    for _ in range(workers):
        await latch.told()
    return [(task, posts[task]) for task in accepted], refused.result()


# The job.


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG")),
        *(("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("RGB", "WEBP"), ("RGBA", "WEBP")),
    ],
)
def test_every_kind_of_picture_has_a_thumbnail(mode: str, kind: str) -> None:
    """Whatever its colours are made of, it looks like itself, and what can be seen through stays so."""
    alpha = 128 if mode.endswith("A") else 255
    picture = Image.new("RGBA", (600, 300), (255, 255, 255, alpha)).convert(mode)
    file = thumbs.thumbnail(encoded(picture, kind))
    check_picture(file, Order(b"", (256, 128), (255, 255, 255)))
    with Image.open(BytesIO(file)) as small:
        assert small.convert("RGBA").getpixel((9, 9))[3] == pytest.approx(alpha, abs=12)


def test_a_small_picture_keeps_its_size() -> None:
    """Nothing is gained by making it larger."""
    file = thumbs.thumbnail(encoded(Image.new("RGB", (40, 30), (1, 2, 3)), "PNG"))
    check_picture(file, Order(b"", (40, 30), (1, 2, 3)))


def test_a_photo_that_was_taken_on_its_side_stands_upright() -> None:
    """As its camera has noted down."""
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the camera was turned by a quarter
    file = BytesIO()
    Image.new("RGB", (600, 300), (200, 100, 50)).save(file, "JPEG", exif=turned)
    check_picture(thumbs.thumbnail(file.getvalue()), Order(b"", (128, 256), (200, 100, 50)))


@pytest.mark.parametrize("number", range(4))
def test_a_file_that_ends_too_early_is_a_bad_image(number: int) -> None:
    """Of each format; its beginning alone promises much."""
    picture = Image.effect_noise((200, 200), 50).convert("RGB")
    file = encoded(picture, thumbs.FORMATS[number])
    with pytest.raises(thumbs.BadImage):
        thumbs.thumbnail(file[: len(file) // 2])


@pytest.mark.parametrize("file", [b"", b"no image", encoded(Image.new("RGB", (9, 9)), "TIFF")])
def test_what_browsers_do_not_know_is_a_bad_image(file: bytes) -> None:
    """Text is none, and of the many formats that Pillow knows only a few are let in."""
    with pytest.raises(thumbs.BadImage):
        thumbs.thumbnail(file)


# The service.


ROUNDS = 4


async def buy(client: httpx.AsyncClient, numbers: range) -> Counter[int]:
    """Post images one after the other, each fifth of them bad; return how often which status came."""
    seen: Counter[int] = Counter()
    for number in numbers:
        ordered, bad = order(number), number % 5 == 4
        answer = await post(client, ordered.image[:20] if bad else ordered.image)
        if answer.status_code == 200:
            check(answer, ordered)
        assert answer.status_code in ({400, 500} if bad else {200, 500}), answer.text
        seen[answer.status_code] += 1
        assert (await client.get("/health")).status_code in {200, 503}  # 503 while every worker is a fresh one
    return seen


async def kill(client: httpx.AsyncClient, latch: Latch, shut: Latch, opened: Latch) -> Counter[int]:
    """Kill workers: under a call of ours, which fails; and when it is let go, whatever that worker does by then."""
    seen: Counter[int] = Counter()
    for number in range(ROUNDS):
        ordered = order(number)
        for gate in (shut, opened):
            posting = asyncio.create_task(post(client, waiting(ordered.image, latch, gate)))
            pid = int(await latch.told())
            if gate is opened:
                gate.let()
            with contextlib.suppress(ProcessLookupError):  # by then it may have had a call that somebody has left
                os.kill(pid, signal.SIGKILL)
            answer = await posting
            if gate is opened and answer.status_code == 200:
                check(answer, ordered)
            else:
                assert answer.status_code == 500
                assert f"worker process {pid} " in answer.text
            seen[answer.status_code] += 1
    return seen


async def leave(client: httpx.AsyncClient, latch: Latch, shut: Latch) -> Counter[int]:
    """Disconnect while a worker has our call; wait for that worker's end."""
    for number in range(ROUNDS):
        posting = asyncio.create_task(post(client, waiting(order(number).image, latch, shut)))
        ended = asyncio.create_task(end_of(int(await latch.told())))
        posting.cancel()
        await ended
    return Counter()


async def test_every_request_is_accounted_for(latch: Latch, gate: Latch, tmp_path: Path) -> None:
    """Under load, while workers are killed and clients leave: answers are right, and only a killed call fails."""
    with gated() as service, Latch(tmp_path / "leavers") as leavers, Latch(tmp_path / "opened") as opened:
        async with service.client() as client:
            seen = await asyncio.gather(
                *(buy(client, range(begin, begin + 20)) for begin in (0, 100, 200, 300)),
                kill(client, latch, gate, opened),
                leave(client, leavers, gate),
            )
            total = sum(seen, Counter[int]())
            check(await post(client, order(0).image), order(0))
            assert (await client.get("/health")).status_code == 200
            found = await metrics_at_rest(client)
        stop(service)
    assert total.total() == 4 * 20 + 2 * ROUNDS
    ends = {end: found[f"aiopool_calls_total {end}"] for end in ("done", "failed", "died", "cancelled")}
    fell = ROUNDS - ends["cancelled"]  # of the calls that somebody was to leave, those whose worker was killed before
    assert ends == {"done": total[200] + 1, "failed": total[400], "died": total[500] + fell, "cancelled": ROUNDS - fell}
    assert 0 <= fell <= ROUNDS
    assert ROUNDS <= total[500] <= found["aiopool_workers_lost_total"] <= 2 * ROUNDS
    assert found["aiopool_calls_queued"] == found["aiopool_calls_total timed_out"] == 0


async def test_an_image_that_takes_too_long_is_given_up(latch: Latch, gate: Latch) -> None:
    """The answer says so, and the worker is gone."""
    with gated(TIME_LIMIT=0.5) as service:
        async with service.client() as client:
            answer = await post(client, waiting(order(1).image, latch, gate))
            assert answer.status_code == 504
            assert "ran longer than its time limit of 0.5 s" in answer.text
            assert all(is_gone(int(pid)) for pid in latch.told_already())  # nothing, if it was slower than that
            assert (await metrics(client))["aiopool_calls_total timed_out"] == 1
        stop(service)


async def test_who_comes_when_too_many_wait_is_told_to_come_again(latch: Latch, gate: Latch) -> None:
    """While the service says that it is healthy; and those who wait are served."""
    with gated(MAX_PENDING=1) as service:
        async with service.client() as client:
            accepted, refused = await overload(client, latch, gate)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            health = await client.get("/health")
            assert (health.status_code, health.text) == (200, "healthy\n")
            gate.let(len(accepted))
            for posting, ordered in accepted:
                check(await posting, ordered)
            check(await post(client, order(1).image), order(1))
        stop(service)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_what_was_accepted_finish(number: int, latch: Latch, gate: Latch) -> None:
    """Nobody else is let in; the exit code is that of success, and no process is left."""
    with gated(MAX_PENDING=1) as service:
        async with service.client() as client, httpx.AsyncClient(base_url=service.address) as newcomer:
            accepted, _ = await overload(client, latch, gate)
            service.signal(number)
            service.says("Waiting for connections to close")
            with pytest.raises(httpx.ConnectError):
                await newcomer.get("/health")
            gate.let(len(accepted))
            for posting, ordered in accepted:
                check(await posting, ordered)
        code, log = service.end()
        assert code == 0, log
        assert "Traceback" not in log


async def test_who_leaves_while_the_image_is_under_way_is_forgotten(service: Service) -> None:
    """It is no error of the service's, and nothing is logged; see the fixture."""
    host, port = re.findall(r"//(.*):(\d+)", service.address)[0]
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /thumbnail HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    writer.write(f"{head}Content-Length: 9999\r\nExpect: 100-continue\r\n\r\n".encode())
    assert b"100 Continue" in await reader.readline()  # it is being asked for the image
    writer.close()
    await writer.wait_closed()


async def test_what_is_no_order_is_refused(client: httpx.AsyncClient) -> None:
    """By what is wrong with it, whether in the form or in the image."""
    assert (await post(client, b"no image")).status_code == 400
    assert (await client.post("/thumbnail", data={"image": "text"})).status_code == 400
    assert (await client.post("/thumbnail", files={"photo": ("image", order(0).image)})).status_code == 400
    assert (await client.post("/thumbnail")).status_code == 400
    assert (await client.get("/thumbnail")).status_code == 405
    assert (await post(client, bytes(thumbs.LARGEST_UPLOAD))).status_code == 413
    assert (await metrics(client))["aiopool_calls_total failed"] == 1


class FormReader(html.parser.HTMLParser):
    """Finds out what a page's form is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str | None]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag's attributes."""
        self.found[tag] = dict(attrs)


async def test_what_the_pages_form_says_is_what_the_service_takes(client: httpx.AsyncClient) -> None:
    """Where to, how, and under which name."""
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    found = FormReader(page.text).found
    form, field = found["form"], found["input"]
    assert (form["method"], form["enctype"], form["target"]) == ("post", "multipart/form-data", found["iframe"]["name"])
    assert field["type"] == "file"
    address = page.url.join(str(form["action"]))
    check(await client.post(address, files={str(field["name"]): order(3).image}), order(3))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH (on Debian: apt install chromium)")
async def test_the_page_shows_the_thumbnail_of_a_chosen_file(service: Service, tmp_path: Path) -> None:
    """In a browser, without leaving the page."""
    ordered = order(5)
    (tmp_path / "image").write_bytes(ordered.image)
    with browsing(str(CHROMIUM), tmp_path) as browser:
        browser.open(service.address)
        browser.choose_file("input[type=file]", tmp_path / "image")
        size = browser.run("""new Promise(shown => {
            const frame = document.querySelector("iframe");
            frame.onload = () => {
                const image = frame.contentDocument.images[0];
                shown([image.naturalWidth, image.naturalHeight]);
            };
            document.querySelector("button").click();
        })""")
        assert size == pytest.approx(ordered.size, abs=1)
        assert browser.run("location.pathname") == "/"


# Other ways to run it.


async def test_the_servers_own_command_runs_it() -> None:
    """The service ends as calmly; that the exit code then tells of the signal is uvicorn's own way."""
    with serving("-m", "uvicorn", "--app-dir", PROGRAMS, "thumbs:app") as service:
        async with service.client() as client:
            check(await post(client, order(0).image), order(0))
        service.signal(signal.SIGTERM)
        code, log = service.end()
    assert code == -signal.SIGTERM
    assert "Application shutdown complete" in log
    assert "Traceback" not in log


async def test_several_server_processes_have_a_pool_each() -> None:
    """They start, serve and stop; none of them leaves a worker."""
    options = ("--workers", 2, "--timeout-worker-healthcheck", PATIENCE)
    with serving("-m", "uvicorn", "--app-dir", PROGRAMS, "thumbs:app", *options) as service:
        for _ in range(2):
            service.says("Application startup complete")
        async with service.client() as client:
            answers = await asyncio.gather(*(post(client, order(number).image) for number in range(8)))
            for number, answer in enumerate(answers):
                check(answer, order(number))
        stop(service)


async def test_a_server_that_reloads_has_a_fresh_pool(tmp_path: Path) -> None:
    """Whose workers run the program as it is now; the old one's are gone with it."""
    program = Path(shutil.copy(PROGRAMS / "thumbs.py", tmp_path))
    options = ("--app-dir", tmp_path, "--reload", "--reload-dir", tmp_path)
    with serving("-m", "uvicorn", *options, "thumbs:app") as service:
        service.says("Application startup complete")
        program.write_text(program.read_text().replace("SIDE = 256", "SIDE = 64"))
        reloading = asyncio.create_task(asyncio.to_thread(service.says, "Reloading..."))
        for later in itertools.count(int(time.time()) + 1):  # the server may not have had its first look at the file
            os.utime(program, (later, later))
            if (await asyncio.wait([reloading], timeout=1))[0]:
                break
        service.says("Application startup complete")
        async with service.client() as client:
            small = await post(client, order(0).image)
            with Image.open(BytesIO(small.content)) as picture:
                assert max(picture.size) == 64
        stop(service)
