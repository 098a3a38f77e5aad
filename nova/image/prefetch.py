"""Images that compute hosts fetch before anybody boots them, because the operator says so.

A record says which host is to have which image, and how far it is; the host converges it (:class:`Prefetcher`).  What
was prefetched is in the host's cache like any other file: it goes when nobody uses it for long, or when others need the
room.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nova import exception, failpoint
from nova.converge import Converger
from nova.datastore import Record, Store, record
from nova.flags import FLAGS
from nova.image.cache import ImageCache
from nova.rpc import Bus
from nova.service import Service

LOG = logging.getLogger(__name__)

failpoint.declare("compute.prefetch.fetched", "an image is in the cache, and the record of its prefetch does not know")

#: seconds between two signs of progress, and for which one that has ended can be looked at
_OFTEN, _SHOWN = 0.5, 3600.0
WAITING, DONE, FAILED = "waiting", "done", "failed"


@record("prefetch", indexes=("host",))
@dataclass(frozen=True)
class Prefetch(Record):
    """One image that one host is to have; the id is ``<host>:<image>``.

    `images` has the SHA-256 of the files by image: the machine image's, its kernel's and its ramdisk's.  `state` is
    waiting, done or failed; `done` of `size` bytes are here (0: not known yet).  `reason` tells why it failed, or what
    went wrong in the last attempt.
    """

    image_id: str
    host: str
    requested: float
    images: dict[str, str] = field(default_factory=dict)
    state: str = WAITING
    done: int = 0
    size: int = 0
    reason: str = ""


async def request(store: Store, bus: Bus, image_id: str, images: Mapping[str, str],
                  hosts: Sequence[str]) -> list[str]:
    """Have hosts fetch an image; the ids of the records that tell how far they are.

    :param images: SHA-256 by image: what belongs to it
    """
    ids = []
    for host in hosts:
        wanted = Prefetch(f"{host}:{image_id}", image_id=image_id, host=host, requested=time.time(),
                          images=dict(images))
        try:
            await store.create(wanted)
        except exception.Exists:
            await store.modify(Prefetch, wanted.id, functools.partial(_anew, wanted))
        ids.append(wanted.id)
        bus.cast(f"compute.{host}", "look_at_prefetch", prefetch_id=wanted.id)
    return ids


def _anew(wanted: Prefetch, before: Prefetch) -> dict[str, Any]:
    return {"requested": wanted.requested, "images": wanted.images, "state": WAITING, "done": 0, "size": 0,
            "reason": ""}


class Prefetcher(Service):
    """Fetches what this host is to have."""

    name = "prefetch"

    def __init__(self, store: Store, bus: Bus, cache: ImageCache):
        self._store, self._cache = store, cache
        self._converger = Converger("prefetch", self._keys, self._converge)
        bus.serve("compute", {"look_at_prefetch": self.look_at_prefetch})

    async def start(self) -> None:
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()

    async def look_at_prefetch(self, prefetch_id: str) -> None:
        """Somebody says that something changed."""
        self._converger.wake(prefetch_id)

    async def _keys(self) -> list[str]:
        return [p.id for p in await self._store.find(Prefetch, host=FLAGS.host)
                if p.state == WAITING or time.time() > p.requested + _SHOWN]

    async def _converge(self, prefetch_id: str) -> None:
        wanted = await self._store.get(Prefetch, prefetch_id)
        if wanted is None or wanted.host != FLAGS.host:
            return
        if wanted.state != WAITING:
            if time.time() > wanted.requested + _SHOWN:
                await self._store.delete(wanted)
            return
        try:
            await self._fetch(wanted)
        except exception.LaunchFailed as error:
            await self._tell(wanted, state=FAILED, reason=error.message)
        except exception.NovaError as error:
            late = time.time() > wanted.requested + FLAGS.image_fetch_timeout
            await self._tell(wanted, reason=error.message, **({"state": FAILED} if late else {}))
            if not late:
                raise

    async def _fetch(self, wanted: Prefetch) -> None:
        told: dict[str, tuple[int, int]] = {}
        telling = asyncio.ensure_future(self._tell_often(wanted, told))
        try:
            for image_id, sha256 in wanted.images.items():
                def progress(done: int, size: int, image_id: str = image_id) -> None:
                    told[image_id] = done, size
                await self._cache.fetch(image_id, sha256, progress)
        finally:
            telling.cancel()
            await asyncio.wait([telling])
        failpoint.hit("compute.prefetch.fetched")
        await self._tell(wanted, state=DONE, reason="", **_sums(told))

    async def _tell_often(self, wanted: Prefetch, told: Mapping[str, tuple[int, int]]) -> None:
        while True:
            await asyncio.sleep(_OFTEN)
            try:
                await self._tell(wanted, **_sums(told))
            except exception.Unavailable as error:
                LOG.debug("how far %s is cannot be told: %s", wanted.id, error)

    async def _tell(self, wanted: Prefetch, **changes: Any) -> None:
        """Change the record, unless it was requested anew or is gone."""
        try:
            await self._store.modify(Prefetch, wanted.id,
                                     lambda now: changes if now.requested == wanted.requested else None)
        except exception.NotFound:
            LOG.info("nobody wants to know any more how %s went", wanted.id)


def _sums(told: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    return {"done": sum(done for done, _ in told.values()), "size": sum(size for _, size in told.values())}
