"""Disks of instances that compute hosts send, on their way to become images.

What is received is an object of a bucket of the cloud's own, as the files of images are, so that any of the object
store's hosts can receive it and the host that makes the image finds it.  It goes as soon as its image is not pending
any more.
"""

import asyncio
import logging
import time

import tornado.web

from nova import exception, failpoint, process
from nova.converge import Converger
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import models, sources
from nova.image.models import Image
from nova.image.sources import Candidate, Job
from nova.objectstore import errors, objects
from nova.objectstore.body import BLOCK, Expected, Receiver
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.storage import Storage, Writer, discard
from nova.objectstore.versions import Change
from nova.service import Service

log = logging.getLogger(__name__)

failpoint.declare("image.capture.received", "an instance's disk is received, and its object is not recorded")
failpoint.declare("image.capture.recorded", "an instance's disk is received and recorded, and its sender does not know")

#: no client can make or name a bucket that begins with an underscore
BUCKET = Bucket("_captures", project_id="", created=0.0)
#: bytes that one disk may have
MAX_SIZE = 1 << 44
#: characters of a SHA-256
_LENGTH = 64
#: seconds after --capture_timeout in which the compute host itself would say what is wrong
_GRACE = 60.0


class CapturedDisks(Service):
    """Keeps what was received until its image is made, or needs it no more.

    :param files: of the object store on this host
    """

    name = "captured disks"

    def __init__(self, store: Store, files: Storage):
        self._store, self.files = store, files
        self._converger = Converger("captured disk", self._keys, self._converge)

    async def start(self) -> None:
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()

    async def find(self, image_id: str) -> Object | None:
        """What was received for an image."""
        return await self._store.get(Object, object_id(BUCKET.id, image_id))

    async def source(self, job: Job) -> Candidate:
        """A source of images (:mod:`nova.image.sources`): the disk that the instance's host has sent.

        :raises sources.NotYet: it has not
        :raises sources.NeverCame: it will not any more
        """
        found = await self.find(job.image.id)
        if found is None and time.time() > job.image.created + FLAGS.capture_timeout + _GRACE:
            raise sources.NeverCame("The host of the instance has not sent its disk.")
        if found is None:
            raise sources.NotYet()
        return await sources.of(job, found)

    async def put(self, image_id: str, writer: Writer, size: int, sha256: str) -> None:
        """Keep a file that was written.

        :raises exception.NoSuchKey: the image is gone
        """
        id = object_id(BUCKET.id, image_id)
        new = Object(id, bucket=BUCKET.id, key=image_id, project_id="", user_id="", file=writer.name, size=size, md5="",
                     sha256=sha256, etag=sha256, modified=time.time(), sequence=time.time_ns() // 1000)
        await process.wait(self.files.pool.run(writer.publish, new))
        failpoint.hit("image.capture.received")
        while True:
            old = await self._store.get(Object, id)
            tx = self._store.transaction()
            tx.require_exists(Image, image_id)
            objects.write(tx, BUCKET, Change((old,) if old else (), (new,)))
            try:
                await tx.commit()
                break
            except (exception.Exists, exception.Conflict, exception.NotFound):
                if await self._store.get(Image, image_id) is None:
                    await discard(self.files, new.file)
                    raise errors.NoSuchKey() from None
                if await objects.named(self._store, new.file) is not None:
                    break  # it was done, the answer got lost
        failpoint.hit("image.capture.recorded")
        if old is not None:
            await discard(self.files, old.file)

    async def _keys(self) -> set[str]:
        return {key.decode() for key in await self._store.attempt(self._store.redis.zrange(BUCKET.keys_key, 0, -1))}

    async def _converge(self, image_id: str) -> None:
        image, found = await self._store.get(Image, image_id), await self.find(image_id)
        if found is None or (image is not None and image.state == "pending"):
            return
        tx = self._store.transaction()
        objects.write(tx, BUCKET, Change((found,), ()))
        try:
            await tx.commit()
        except (exception.Conflict, exception.NotFound):
            return  # another host was faster
        await discard(self.files, found.file)


@tornado.web.stream_request_body
class CaptureHandler(tornado.web.RequestHandler):
    """``PUT`` and ``HEAD /_images/<image id>/disk``: receives the disk for an image from a compute host that shows a
    token (its memory does not grow with the disk), and tells the SHA-256 of what was received.
    """

    def initialize(self, disks: CapturedDisks, store: Store) -> None:
        """:param disks: keeps what is received"""
        self._disks, self._store = disks, store
        self._writer: Writer | None = None
        self._receiver: Receiver | None = None
        self._failed: exception.NovaError | OSError | None = None

    async def prepare(self) -> None:
        """Let in who shows a token for an image that waits for its disk."""
        image_id = self.path_args[0]
        secret = await models.fetch_secret(self._store)
        if not models.token_is_valid(secret, models.capture_of(image_id), self.request.headers.get("X-Nova-Token", "")):
            raise tornado.web.HTTPError(403)
        image = await self._store.get(Image, image_id)
        if image is None or image.state != "pending" or not image.source.startswith("instance:"):
            raise tornado.web.HTTPError(404)
        if self.request.method != "PUT":
            return
        length, digest = self.request.headers.get("Content-Length", ""), self.request.headers.get("X-Nova-Sha256", "")
        if not length.isdigit() or int(length) > MAX_SIZE or len(digest) != _LENGTH:
            raise tornado.web.HTTPError(400)
        self.request.connection.set_max_body_size(MAX_SIZE)  # type: ignore[union-attr]
        files = self._disks.files
        try:
            self._writer = await process.wait(files.pool.run(
                files.new, f"o-{object_id(BUCKET.id, image_id)}", int(length)))
        except OSError as error:
            log.error("there is no room for the disk for %s: %s", image_id, error)
            raise tornado.web.HTTPError(507) from None
        assert self._writer is not None
        self._receiver = Receiver(Expected(int(length), sha256=digest), self._writer, files.pool, MAX_SIZE)

    async def data_received(self, chunk: bytes) -> None:
        """Write what arrives; what comes after a failure is let pass."""
        if self._receiver is None or self._failed is not None:
            return
        for start in range(0, len(chunk), BLOCK):
            try:
                await self._receiver.feed(chunk[start:start + BLOCK])
            except (exception.NovaError, OSError) as error:
                self._failed = error
                return

    async def put(self, image_id: str) -> None:
        """All is here: keep it."""
        assert self._receiver is not None and self._writer is not None
        try:
            if self._failed is not None:
                raise self._failed
            received = await self._receiver.finish()
            await self._disks.put(image_id, self._writer, received.size, received.sha256)
        except exception.NoSuchKey:
            raise tornado.web.HTTPError(404) from None
        except exception.ClientError as error:
            raise tornado.web.HTTPError(400, error.message) from None
        except OSError as error:
            log.error("the disk for %s cannot be written: %s", image_id, error)
            raise tornado.web.HTTPError(507) from None
        self.set_status(204)

    async def head(self, image_id: str) -> None:
        """What was received."""
        found = await self._disks.find(image_id)
        if found is None:
            raise tornado.web.HTTPError(404)
        self.set_header("ETag", f'"{found.sha256}"')

    def on_connection_close(self) -> None:
        """The sender went away."""
        self._let_go()

    def on_finish(self) -> None:
        """What was not kept is gone."""
        self._let_go()

    def _let_go(self) -> None:
        if self._receiver is None or self._writer is None:
            return
        receiver, writer, self._receiver, self._writer = self._receiver, self._writer, None, None

        async def close() -> None:
            await receiver.close()
            await process.wait(self._disks.files.pool.run(writer.close))
        self._closing = asyncio.ensure_future(close())


def handlers(disks: CapturedDisks, store: Store) -> list[tuple]:
    """What the object store's application mounts to receive disks."""
    return [(r"/_images/([a-z0-9-]+)/disk", CaptureHandler, {"disks": disks, "store": store})]
