"""The object store host's part in images: makes their files from what was registered.

An image is made in a directory of its own (nova.image.work): its source brings a file (nova.image.sources), from which
one of the wanted format is made, if need be (nova.image.worker); that becomes an object of the object store in the same
transaction that makes the image available.  Whatever dies in between,
the image is pending and is made anew.  An object that no image wants is removed.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Mapping

from nova import exception, failpoint
from nova.converge import Converger
from nova.crypto import Authority
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import sources, work, worker
from nova.image.convert import Made
from nova.image.models import Image
from nova.image.sources import Candidate, ImageFiles, Job, Opener, Source
from nova.process import in_thread, wait
from nova.rpc import Bus
from nova.service import Service

LOG = logging.getLogger(__name__)

failpoint.declare("image.file.made", "an image's file is there, and its record is still pending")

MANIFEST_SUFFIX = sources.MANIFEST_SUFFIX


class ImageManager(Service):
    """Converges the images of this host.

    :param open_object: how objects of the object store on this host are found
    :param authority: whose key bundles are encrypted for, and who knows the certificates of who signs them
    :param files: where the files of images are kept
    :param kinds: what each kind of source is brought with
    """

    name = "images"

    def __init__(self, store: Store, bus: Bus, open_object: Opener, authority: Authority, files: ImageFiles,
                 kinds: Mapping[str, Source] = sources.SOURCES):
        self._store, self._open, self._authority = store, open_object, authority
        self._files, self._sources = files, kinds
        self._directory = os.path.join(FLAGS.state_path, "images")
        self._converger = Converger("image", self._keys, self._converge)
        self._described: set[str] = set()
        self._conversions = asyncio.Semaphore(FLAGS.image_conversions)
        bus.serve("objectstore", {"ingest_image": self.ingest_image, "look_at_image": self.look_at_image})

    async def start(self) -> None:
        os.makedirs(self._directory, exist_ok=True)
        await wait(in_thread(work.sweep, self._directory))
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()

    async def ingest_image(self, image_id: str) -> None:
        """Make an image available; comes back when it is, or when it is known why not."""
        self._converger.wake(image_id)
        await self._converger.settled(image_id)

    async def look_at_image(self, image_id: str) -> None:
        """Somebody says that something changed."""
        self._described.discard(image_id)
        self._converger.wake(image_id)

    async def _keys(self) -> set[str]:
        files = await self._files.ids()  # first: an image that is registered meanwhile has none
        mine = await self._store.find(Image, host=FLAGS.host)
        return (files - set(await self._store.ids(Image))) | {
            image.id for image in mine if image.state == "pending" or image.id not in self._described}

    async def _converge(self, image_id: str) -> None:
        image = await self._store.get(Image, image_id)
        if image is None:
            await self._files.remove(image_id)
        elif image.host == FLAGS.host and image.state == "pending":
            await self._make(image)
        elif image.host == FLAGS.host:
            await self._files.describe(image)
            self._described.add(image_id)

    async def _make(self, image: Image) -> None:
        progress = work.Progress(self._store, image.id)
        try:
            async with work.directory(self._directory, image.id) as directory:
                job = Job(image, directory, self._store, self._open, self._files, self._authority, progress)
                await self._bring(job)
        except sources.NotYet:
            LOG.info("what the image %s is made from is still on its way", image.id)
        except exception.ClientError as error:
            await self._fail(image.id, f"Client.{error.code}", error.message)
        except (worker.CannotConvert, sources.NeverCame) as error:
            LOG.error("the image %s cannot be made: %s", image.id, error)
            await self._fail(image.id, "Server.InternalError", error.message)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            LOG.error("there is no room for the image %s: %s", image.id, error)
            await self._fail(image.id, "Server.InternalError", "The object store's disk has no room for the image.")
        finally:
            await progress.end()

    async def _bring(self, job: Job) -> None:
        kind = sources.kind_of(job.image)
        if kind not in self._sources:
            raise exception.InvalidParameterValue(f"An image cannot be made from {job.image.source}.")
        candidate = await self._sources[kind](job)
        made = await worker.as_it_is(candidate.path, job.image.kind, candidate.sha256)
        if made is None:
            async with self._conversions:
                made = await worker.make(candidate.path, job.directory, job.progress)
        failpoint.hit("image.file.made")
        await self._publish(job.image, candidate, made)

    async def _publish(self, image: Image, candidate: Candidate, made: Made) -> None:
        unchanged = candidate.stored is not None and made.path == candidate.path
        try:
            await self._files.publish(
                image, candidate.stored if unchanged else made.path, sha256=made.sha256, size=made.size,
                state="available", disk_format=made.disk_format, virtual_size=made.virtual_size)
        except exception.Conflict:
            LOG.info("the image %s was changed or removed while it was made", image.id)
            self._converger.wake(image.id)

    async def _fail(self, image_id: str, code: str, reason: str) -> None:
        try:
            await self._store.modify(Image, image_id, lambda i: {
                "state": "failed", "state_code": code, "state_reason": reason} if i.state == "pending" else None)
        except exception.NotFound:
            LOG.info("the image %s, which failed, is gone: %s", image_id, reason)
