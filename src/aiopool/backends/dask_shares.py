"""What the calls of a pool share, in a cluster of Dask."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import Iterator

from distributed import Future

from ..sharing import CallPayload, Home, Share, Sharing
from .dask_connection import Connection
from .dask_crossing import Packed
from .dask_site import share_key

__all__ = ["Shares", "all_shares", "packed"]


class Shares:
    """Has each shared object in all workers, once.

    Args:
        token: the pool's name in the cluster.
        connection: with the cluster.
    """

    def __init__(self, token: str, connection: Connection) -> None:
        self._token = token
        self._connection = connection
        self._scattered: dict[int, tuple[weakref.ref[Share], asyncio.Future[Future[Packed]]]] = {}

    def add(self, payload: CallPayload, home: Home) -> Share:
        """Return what has this payload; it begins to go to all workers now."""
        share = Share(uuid.uuid4().int >> 65, payload, home)  # a number that no other pool in the cluster has
        self._scatter(share)
        return share

    def _scatter(self, share: Share) -> asyncio.Future[Future[Packed]]:
        key = share_key(self._token, share.id)
        scattering = asyncio.get_running_loop().create_task(self._send(key, packed(share.payload)))
        scattering.add_done_callback(_retrieved)
        self._scattered[share.id] = weakref.ref(share), scattering
        return scattering

    async def _send(self, key: str, packed: Packed) -> Future[Packed]:
        client = self._connection.client
        if client is None:
            raise ConnectionError("the pool has ended")
        scattered: dict[str, Future[Packed]] = await client.scatter({key: packed}, broadcast=True, hash=False)
        return scattered[key]

    async def find(self, share: Share) -> Future[Packed]:
        """Return what stands for a shared object in the cluster; send it again if all who had it are gone."""
        future = await asyncio.shield(self._scattered[share.id][1])
        if future.status in ("lost", "cancelled"):
            future = await asyncio.shield(self._scatter(share))
        return future

    def forget(self, share: int) -> None:
        """Let go of a shared object, which the cluster then forgets."""
        self._scattered.pop(share, None)

    def clear(self) -> None:
        """Let go of all."""
        self._scattered.clear()


def packed(payload: CallPayload) -> Packed:
    """Return a payload as it crosses the cluster, without what it shares with others."""
    return Packed.of(payload.payload if isinstance(payload, Sharing) else payload)


def all_shares(payload: CallPayload) -> Iterator[Share]:
    """Yield the shares in a payload, those first that others stand on."""
    if isinstance(payload, Sharing):
        for share in payload.shares:
            yield from all_shares(share.payload)
            yield share


def _retrieved(scattering: asyncio.Future[Future[Packed]]) -> None:
    """See that a failure counts as seen: each call that needs the object is told of it."""
    if not scattering.cancelled():
        scattering.exception()
