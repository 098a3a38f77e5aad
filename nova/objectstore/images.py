"""The files of images: objects of a bucket that is the cloud's own, so that all that looks after objects covers them.

There is no record of this bucket, and none can be made under its name: no request of a client finds it, whoever asks.
Its objects belong to nobody and count in nobody's limits.  A file becomes an image's in the same transaction that makes
the image available.  Its description holds the image's record, so that images come back with the objects when Redis is
rebuilt from the disk.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Any

import tornado.iostream
import tornado.web

from nova import exception, failpoint, process, proxy
from nova.datastore import Store
from nova.image import models
from nova.image.models import Image, ImageName
from nova.objectstore import conditions, errors, objects
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.serving import FileBody, StoredFile, body_of, hand_over
from nova.objectstore.storage import Reader, Storage, discard, read_small
from nova.objectstore.versions import Change

log = logging.getLogger(__name__)

failpoint.declare("image.published", "an image's file is in the object store, and its record is still pending")
failpoint.declare("image.committed", "an image is available, what it was made in is still there")
failpoint.declare("image.removed", "an image's object is gone, its file still exists")

#: no client can make or name a bucket that begins with an underscore
BUCKET = Bucket("_images", project_id="", created=0.0)
#: under this name the object's metadata have the image's record
_RECORD = "image"
_TURNS = 3


class ImageFiles:
    """Puts image files into the object store, finds and removes them.

    :param files: of the object store on this host
    """

    def __init__(self, store: Store, files: Storage):
        self._store, self.files = store, files

    async def local(self, stored: Object, directory: str) -> str:
        """The path of a file with the bytes of an object; if there is none, one is made in a directory.

        :raises exception.NoSuchKey: it is gone
        """
        try:
            return await process.wait(self.files.pool.run(self.files.local, stored, directory))
        except FileNotFoundError:
            raise errors.NoSuchKey() from None

    async def read(self, stored: Object, limit: int) -> bytes:
        """The bytes of an object, no more than `limit` of them; :raises exception.NoSuchKey: it is gone"""
        try:
            return await process.wait(self.files.pool.run(read_small, self.files, stored, limit))
        except FileNotFoundError:
            raise errors.NoSuchKey() from None

    def open(self, stored: Object) -> AbstractContextManager[Reader]:
        """Open an object, which blocks, as reading does; :raises FileNotFoundError: it is gone"""
        return contextlib.closing(self.files.open(stored))

    async def find(self, image_id: str) -> Object | None:
        """The object that is an image's file."""
        return await self._store.get(Object, object_id(BUCKET.id, image_id))

    async def ids(self) -> set[str]:
        """The ids of all images that have a file."""
        return {key.decode() for key in await self._store.attempt(self._store.redis.zrange(BUCKET.keys_key, 0, -1))}

    async def publish(self, image: Image, source: Object | str, *, sha256: str, size: int,
                      **changes: Any) -> None:
        """Make a file an image's, and change the image's record, both or neither.

        :param image: as it is now
        :param source: another object, which will share its file; or the path of a finished file, which is moved
        :param sha256: of the file, hex
        :param size: of the file, in bytes
        :param changes: other fields of the image
        :raises exception.NoSuchKey: the other object is gone
        :raises exception.Conflict: somebody else has changed or removed the image
        :raises OSError: (ENOSPC) there is no room for it
        """
        id = object_id(BUCKET.id, image.id)
        changes |= {"sha256": sha256, "size": size}
        described = dataclasses.replace(image, **changes)
        new = Object(id, bucket=BUCKET.id, key=image.id, project_id="", user_id="", file=self.files.name(f"o-{id}"),
                     size=size, md5="" if isinstance(source, str) else source.md5, sha256=sha256, etag=sha256,
                     modified=time.time(), sequence=time.time_ns() // 1000,
                     metadata={_RECORD: dataclasses.asdict(described)})
        try:
            if isinstance(source, str):
                await process.wait(self.files.pool.run(self.files.take, source, new))
            else:
                await process.wait(self.files.pool.run(self.files.link, source.file, new))
        except FileNotFoundError:
            raise errors.NoSuchKey() from None
        failpoint.hit("image.published")
        old = await self._commit(image, new, changes)
        failpoint.hit("image.committed")
        if old is not None:
            await discard(self.files, old.file)

    async def _commit(self, image: Image, new: Object, changes: dict[str, Any]) -> Object | None:
        """:returns: the object that was replaced"""
        old = await self._store.get(Object, new.id)
        tx = self._store.transaction()
        tx.update(image, **changes)
        objects.write(tx, BUCKET, Change((old,) if old else (), (new,)))
        try:
            await tx.commit()
        except (exception.Exists, exception.NotFound, exception.Conflict):
            if await objects.named(self._store, new.file) is not None:
                return None  # it was done, the answer got lost
            await discard(self.files, new.file)
            raise exception.Conflict(kind="image", id=image.id) from None
        return old

    async def describe(self, image: Image) -> None:
        """Note on the disk what the record of an image says now."""
        wanted = {_RECORD: dataclasses.asdict(image)}
        found = await self.find(image.id)
        if found is not None and not found.damaged and found.metadata != wanted:
            await objects.change(self._store, self.files, BUCKET.id, image.id, None, lambda _: {"metadata": wanted})

    async def remove(self, image_id: str) -> None:
        """Remove the file of an image that has no record any more; nothing happens if it has one."""
        found = await self.find(image_id)
        if found is None:
            return
        tx = self._store.transaction()
        tx.require_missing(Image, image_id)
        objects.write(tx, BUCKET, Change((found,), ()))
        try:
            await tx.commit()
        except (exception.Exists, exception.NotFound, exception.Conflict):
            log.info("the image %s was changed or removed by somebody else", image_id)
            return
        failpoint.hit("image.removed")
        await discard(self.files, found.file)


async def restore(store: Store, told: Object) -> bool:
    """Bring an image's object back, and the image with it, from what a file is described as; whether it was gone."""
    fields = told.metadata.get(_RECORD)
    if not fields or await store.get(Object, told.id) is not None:
        return False
    known = {field.name for field in dataclasses.fields(Image)}
    image = Image(**{name: value for name, value in fields.items() if name in known})
    tx = store.transaction()
    objects.write(tx, BUCKET, Change((), (told,)))
    if await store.get(Image, image.id) is None:
        tx.create(image, version=image.version + 1)
        name = ImageName(models.name_id(image.project_id, image.name), image_id=image.id)
        if image.name != image.location and await store.get(ImageName, name.id) is None:
            tx.create(name)
    try:
        await tx.commit()
    except (exception.Exists, exception.NotFound, exception.Conflict):
        return False
    return True


# -- handing out ------------------------------------------------------------------------------------------------------

class ImageHandler(tornado.web.RequestHandler):
    """``GET`` and ``HEAD /_images/<image id>``: an image's file, for a node of the cloud that shows a token.

    The ETag is the SHA-256 of the file.  A download that broke off goes on with Range and If-Match, and never gets
    bytes of another file.
    """

    def initialize(self, images: ImageFiles, store: Store) -> None:
        """:param images: what is handed out"""
        self._images, self._store = images, store

    def set_default_headers(self) -> None:
        self.clear_header("Content-Type")  # nginx would take the character set from it

    def compute_etag(self) -> None:
        """It is that of the object."""

    def check_etag_header(self) -> bool:
        return False

    async def get(self, image_id: str) -> None:
        """The file, or the part of it that is asked for."""
        sends_files = proxy.read(self.request)
        secret = await models.fetch_secret(self._store)
        if not models.token_is_valid(secret, image_id, self.request.headers.get("X-Nova-Token", "")):
            raise tornado.web.HTTPError(403)
        for _ in range(_TURNS):
            found = await self._images.find(image_id)
            if found is None or found.damaged:
                raise tornado.web.HTTPError(404)
            try:
                await self._give(found, sends_files)
            except FileNotFoundError:
                continue  # it was made anew between the two
            except errors.S3Error as error:
                raise tornado.web.HTTPError(error.status) from None
            return
        raise tornado.web.HTTPError(404)

    head = get

    async def _give(self, found: Object, sends_files: bool) -> None:
        start, length = self._describe(found)
        if self.request.method == "HEAD" or not length:
            return
        if sends_files and self._images.files.nginx_has_them:
            self._images.files.open(found).close()  # it is there, and as large as it should be
            part = (start, length) if length < found.size else None
            told = hand_over(StoredFile(found.file, part), self._headers.get_all())
            self.clear()
            for name, value in told.items():
                self.set_header(name, value)
            return
        await self._stream(await body_of(self._images.files, found, start, length))

    def _describe(self, found: Object) -> tuple[int, int]:
        """Set status and headers; offset and length in bytes of what is to be sent."""
        headers = self.request.headers
        self.set_header("ETag", f'"{found.etag}"')
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("Content-Type", "application/octet-stream")
        conditions.check_read(headers, found.etag, found.modified)
        wanted = headers.get("Range")
        if headers.get("If-Range", f'"{found.etag}"') != f'"{found.etag}"':
            wanted = None
        chosen = conditions.parse_range(wanted, found.size)
        start, length = chosen or (0, found.size)
        if chosen:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{start + length - 1}/{found.size}")
        self.set_header("Content-Length", str(length))
        return start, length

    async def _stream(self, body: bytes | AsyncIterator[bytes]) -> None:
        if isinstance(body, bytes):
            self.write(body)
            return
        try:
            async for block in body:
                self.write(block)
                await self.flush()
        except tornado.iostream.StreamClosedError:
            log.info("the node went away")
        finally:
            if isinstance(body, FileBody):
                await body.aclose()


def handlers(images: ImageFiles, store: Store) -> list[tuple]:
    """What the object store's application mounts to hand images out."""
    return [(r"/_images/([a-z0-9-]+)", ImageHandler, {"images": images, "store": store})]

