"""Serve thumbnails: post an image, get a small one.

    python examples/thumbs.py
    curl -F image=@photo.jpg http://127.0.0.1:8000/thumbnail -o small.webp

Other ways to run it: ``uvicorn --app-dir examples thumbs:app``, with ``--reload`` or ``--workers 2`` if you like.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from io import BytesIO
from typing import TypedDict, TypeVar

import uvicorn
from PIL import Image, ImageOps
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from aiopool import AioPool, AsyncResult
from aiopool.contrib.prometheus import PoolCollector
from aiopool.exceptions import BrokenPool, CallTimeout, PoolFull, WorkerDied

SIDE = 256  # pixels
FORMATS = ("JPEG", "PNG", "GIF", "WEBP")  # those of browsers; Pillow knows others that hardly anybody has looked at
LARGEST_UPLOAD = 32 * 1024 * 1024  # bytes
TIME_LIMIT = 10.0  # seconds; what takes longer is broken, or means to do harm
MAX_PENDING = 32  # images that wait for a worker; whoever comes then had better come again

PAGE = """<!DOCTYPE html>
<html lang="en">
<title>Thumbnails</title>
<form action="thumbnail" method="post" enctype="multipart/form-data" target="thumbnail">
<input type="file" name="image" accept="image/*" required aria-label="Image">
<button>Make a thumbnail</button>
</form>
<iframe name="thumbnail" title="Thumbnail" width="300" height="300"></iframe>
</html>
"""

T = TypeVar("T")


class Services(TypedDict):
    """What requests find in their state."""

    pool: AioPool
    registry: CollectorRegistry


# In a worker.


class BadImage(Exception):  # noqa: N818 - named after what was posted
    """No image can be made of what was posted."""


def thumbnail(image: bytes) -> bytes:
    """Return a small image of an image."""
    try:
        with Image.open(BytesIO(image), formats=FORMATS) as picture:
            picture.thumbnail((SIDE, SIDE))
            ImageOps.exif_transpose(picture, in_place=True)
            small = BytesIO()
            picture.save(small, "WEBP")
    except Exception as error:  # on broken files, decoders raise whatever comes to hand
        raise BadImage("this is no image that can be read") from error
    return small.getvalue()


# In this process.


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncGenerator[Services]:
    """Have a pool while the service runs. At its end the server waits for requests, then the pool for its workers."""
    mine = [__name__]  # which workers have then imported before the first image comes
    async with AioPool(timeout=TIME_LIMIT, max_pending=MAX_PENDING, preload=mine) as pool:
        registry = CollectorRegistry()
        registry.register(PoolCollector({"thumbnails": pool}))
        yield {"pool": pool, "registry": registry}


async def make_thumbnail(request: Request[Services]) -> Response:
    """Answer with the thumbnail of the image in a form."""
    async with request.form(max_files=1) as form:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise BadImage("there is no file in the form's field 'image'")
        image = await upload.read()
    result = request.state["pool"].submit(thumbnail, image)
    return Response(await unless_client_leaves(request, result), media_type="image/webp")


async def unless_client_leaves(request: Request[Services], result: AsyncResult[T]) -> T:
    """Wait for a call; cancel it, so that its worker is free, if there is nobody any more to answer.

    A server does not cancel the handler of a request whose client has disconnected. It tells those who ask.
    """
    leaving = asyncio.create_task(disconnection(request))
    leaving.add_done_callback(lambda _: result.cancel())
    try:
        return await result
    except asyncio.CancelledError:
        if leaving.done():
            raise ClientDisconnect from None
        raise  # it was the server that has cancelled us
    finally:
        leaving.cancel()


async def disconnection(request: Request[Services]) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def show_page(_request: Request[Services]) -> Response:
    """Answer with a form for an image."""
    return HTMLResponse(PAGE)


async def tell_health(request: Request[Services]) -> Response:
    """Answer whether images can be posted."""
    healthy = request.state["pool"].healthy
    return PlainTextResponse("healthy\n" if healthy else "no worker is ready\n", 200 if healthy else 503)


async def tell_metrics(request: Request[Services]) -> Response:
    """Answer with what Prometheus collects; with several server processes, of the one that happens to answer."""
    return Response(generate_latest(request.state["registry"]), media_type=CONTENT_TYPE_LATEST)


def refusal(status: int, **headers: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return a handler of exceptions that answers with a status and the exception's text."""

    async def answer(_request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", status, headers)

    return answer


app = Starlette(
    routes=[
        Route("/", show_page),
        Route("/thumbnail", make_thumbnail, methods=["POST"]),
        Route("/health", tell_health),
        Route("/metrics", tell_metrics),
    ],
    exception_handlers={
        BadImage: refusal(400),
        ClientDisconnect: refusal(499),  # nobody reads it
        WorkerDied: refusal(500),  # and no retries: an image that has crashed one worker will crash the next
        PoolFull: refusal(503, **{"Retry-After": "1"}),
        BrokenPool: refusal(503, **{"Retry-After": "60"}),
        CallTimeout: refusal(504),
    },
    lifespan=lifespan,
    max_body_size=LARGEST_UPLOAD,
)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve thumbnails.")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    options = parser.parse_args()
    # When all requests are answered, uvicorn raises the signal again; this makes it an end like that of Ctrl-C, code 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uvicorn.run(app, port=options.port)


if __name__ == "__main__":
    main()
