"""The compute host's cache of image files: one copy per content, checked before it is used.

A file is called after the SHA-256 of its content.  It is fetched once, however many guests wait for it, into a
temporary file whose hash is computed on the way; only a file that has the right hash gets its name.
"""

import asyncio
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable

import tornado.httpclient

from nova import exception, failpoint
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_float
from nova.image import models
from nova.process import in_thread, wait

DEFINE_float("image_fetch_timeout", 1800, "seconds that fetching one image may take", lower_bound=1)

DEFINE_float("image_cache_age", 86400, "seconds that an image stays in a compute host's cache when nobody uses it",
             lower_bound=0)

LOG = logging.getLogger(__name__)

failpoint.declare("compute.image.fetched", "an image is fetched and checked, and does not have its name yet")


class ImageCache:
    """The files in one directory.

    :param url: tells where the object store hands images out, without the image's id
    """

    def __init__(self, directory: str, store: Store, url: Callable[[], str]):
        self._directory, self._store, self._url = directory, store, url
        self._locks: dict[str, asyncio.Lock] = {}

    def start(self) -> None:
        """Make the directory and remove what an earlier process left half fetched."""
        os.makedirs(self._directory, exist_ok=True)
        for name in os.listdir(self._directory):
            if name.startswith(".part-"):
                os.unlink(os.path.join(self._directory, name))

    def path(self, sha256: str) -> str:
        """Where the file of this content is, or would be."""
        return os.path.join(self._directory, sha256)

    async def fetch(self, image_id: str, sha256: str) -> str:
        """Have an image here.

        :returns: the path of the file
        :raises exception.ImageUnavailable: the object store does not have it (any more), or it is not what it should be
        :raises exception.NovaError: it cannot be had now
        """
        path = self.path(sha256)
        async with self._locks.setdefault(sha256, asyncio.Lock()):
            if not os.path.exists(path):
                await self._fetch(image_id, sha256, path)
            os.utime(path)
        return path

    async def _fetch(self, image_id: str, sha256: str, path: str) -> None:
        LOG.info("fetching %s", image_id)
        descriptor, part = tempfile.mkstemp(prefix=".part-", dir=self._directory)
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                def chunk(data: bytes) -> None:
                    digest.update(data)
                    file.write(data)
                await self._get(image_id, chunk)
                await wait(in_thread(_flush, file))
            if digest.hexdigest() != sha256:
                raise exception.ImageUnavailable(f"{image_id} is damaged: its SHA-256 is not the registered one")
            os.chmod(part, 0o444)
            failpoint.hit("compute.image.fetched")
            os.rename(part, path)
        except BaseException:
            os.unlink(part)
            raise

    async def _get(self, image_id: str, chunk: Callable[[bytes], None]) -> None:
        token = models.fetch_token(await models.fetch_secret(self._store), image_id)
        client = tornado.httpclient.AsyncHTTPClient(force_instance=True, max_body_size=1 << 44)
        try:
            await client.fetch(self._url() + image_id, headers={"X-Nova-Token": token}, streaming_callback=chunk,
                               connect_timeout=5, request_timeout=FLAGS.image_fetch_timeout)
        except tornado.httpclient.HTTPClientError as error:
            if error.code == 404:
                raise exception.ImageUnavailable(f"{image_id} is not in the object store any more") from error
            raise exception.NovaError(f"cannot fetch {image_id}: {error}") from error
        except OSError as error:
            raise exception.NovaError(f"cannot fetch {image_id}: {error}") from error
        finally:
            client.close()

    async def sweep(self, used: set[str]) -> None:
        """Remove the files whose content no instance of this host uses, and none did for a while."""
        for name in os.listdir(self._directory):
            if (len(name) == 64 and name not in used and not self._busy(name)
                    and self._age(name) > FLAGS.image_cache_age):
                LOG.info("image file %s is not used any more", name)
                os.unlink(self.path(name))

    def _age(self, name: str) -> float:
        return time.time() - os.path.getmtime(self.path(name))

    def _busy(self, sha256: str) -> bool:
        lock = self._locks.get(sha256)
        return lock is not None and lock.locked()


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
