"""The object store host's image files: makes them from what was registered, hands them out to compute nodes.

An image's file is ``$state_path/images/<image id>``: a hard link to the object it was registered from (objects are
never changed in place), or what was unpacked from its bundle.  A file that no record wants is removed.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from typing import IO, Any, Protocol

import tornado.web

from nova import exception, failpoint, proxy
from nova.converge import Converger
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import bundle, models
from nova.image.models import Image
from nova.process import in_thread, wait
from nova.rpc import Bus
from nova.service import Service

LOG = logging.getLogger(__name__)

failpoint.declare("image.file.made", "an image's file is there, and its record is still pending")

MANIFEST_SUFFIX = ".manifest.xml"


class StoredObject(Protocol):
    """What the object store tells of an object: the path of its file, its size in bytes, its SHA-256, its owner."""

    path: str
    size: int
    sha256: str
    project_id: str


#: finds an object by bucket and key; raises NoSuchBucket or NoSuchKey
Opener = Callable[[str, str], Awaitable[Any]]


class ImageManager(Service):
    """Converges the images of this host.

    :param open_object: how objects of the object store on this host are found
    :param private_key: path of the cloud's private key, for which bundles are encrypted
    """

    name = "images"

    def __init__(self, store: Store, bus: Bus, open_object: Opener, private_key: str):
        self._store, self._open, self._private_key = store, open_object, private_key
        self._directory = os.path.join(FLAGS.state_path, "images")
        self._converger = Converger("image", self._keys, self._converge)
        bus.serve("objectstore", {"ingest_image": self.ingest_image, "look_at_image": self.look_at_image})

    async def start(self) -> None:
        os.makedirs(self._directory, exist_ok=True)
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()

    async def ingest_image(self, image_id: str) -> None:
        """Make an image available; comes back when it is, or when it is known why not."""
        self._converger.wake(image_id)
        await self._converger.settled(image_id)

    async def look_at_image(self, image_id: str) -> None:
        """Somebody says that something changed."""
        self._converger.wake(image_id)

    def path(self, image_id: str) -> str:
        """Where an image's file is."""
        return os.path.join(self._directory, image_id)

    async def _keys(self) -> set[str]:
        files = {name.removesuffix(".part").removesuffix(".bundle") for name in os.listdir(self._directory)}
        return files | set(await self._store.ids(Image, host=FLAGS.host))

    async def _converge(self, image_id: str) -> None:
        image = await self._store.get(Image, image_id)
        if image is None or image.host != FLAGS.host:
            self._remove(image_id)
        elif image.state == "pending":
            await self._ingest(image)

    def _remove(self, image_id: str) -> None:
        for path in (self.path(image_id), self.path(image_id) + ".part", self.path(image_id) + ".bundle"):
            if os.path.exists(path):
                os.unlink(path)

    async def _ingest(self, image: Image) -> None:
        self._remove(image.id)
        try:
            bucket, _, key = image.location.partition("/")
            source = await self._open(bucket, key)
            if key.endswith(MANIFEST_SUFFIX):
                sha256, size = await self._ingest_bundle(image, source, bucket, key)
            else:
                await wait(in_thread(_link, source.path, self.path(image.id)))
                sha256, size = source.sha256, source.size
        except exception.ClientError as error:
            self._remove(image.id)
            await self._finish(image.id, state="failed", state_reason=error.message)
            return
        failpoint.hit("image.file.made")
        await self._finish(image.id, state="available", sha256=sha256, size=size)

    async def _ingest_bundle(self, image: Image, source: StoredObject, bucket: str, key: str) -> tuple[str, int]:
        with open(source.path, "rb") as file:
            manifest = bundle.read_manifest(file.read(bundle.MAX_MANIFEST))
        folder = key.rpartition("/")[0]
        paths = {}
        for part in manifest.parts:
            paths[part.name] = (await self._open(bucket, f"{folder}/{part.name}" if folder else part.name)).path

        def open_part(name: str) -> IO[bytes]:
            return open(paths[name], "rb")
        partial = self.path(image.id) + ".part"
        await wait(in_thread(bundle.unbundle, manifest, open_part, self._private_key, partial))
        sha256 = await wait(in_thread(_seal, partial))
        os.rename(partial, self.path(image.id))
        return sha256, manifest.size

    async def _finish(self, image_id: str, **changes: Any) -> None:
        try:
            await self._store.modify(Image, image_id, lambda i: changes if i.state == "pending" else None)
        except exception.NotFound:
            self._remove(image_id)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise exception.NoSuchKey() from None
    except OSError as error:  # another file system, or one without links
        LOG.info("copying %s, since it cannot be linked: %s", source, error)
        shutil.copyfile(source, target)
        _seal(target)


def _seal(path: str) -> str:
    """Write a new file through to the disk; its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
        os.fsync(file.fileno())
    return digest.hexdigest()


class ImageHandler(tornado.web.RequestHandler):
    """``GET /_images/<image id>``: an image's file, for a compute node that shows a token."""

    def initialize(self, manager: ImageManager, store: Store) -> None:
        """:param manager: whose images are handed out"""
        self._manager, self._store = manager, store

    async def get(self, image_id: str) -> None:
        """Stream the file with a memory of one buffer."""
        secret = await models.fetch_secret(self._store)
        if not models.token_is_valid(secret, image_id, self.request.headers.get("X-Nova-Token", "")):
            raise tornado.web.HTTPError(403)
        self.set_header("Content-Type", "application/octet-stream")
        if proxy.read(self.request):  # the nginx in front gives it out; if it cannot, it asks again without saying so
            self.set_header("X-Accel-Redirect", "@images")
            self.set_header("X-Nova-File", image_id)
            return
        try:
            file = open(self._manager.path(image_id), "rb")
        except FileNotFoundError:
            raise tornado.web.HTTPError(404) from None
        with file:
            self.set_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            while data := await wait(in_thread(file.read, 1 << 20)):
                self.write(data)
                await self.flush()


def handlers(manager: ImageManager, store: Store) -> list[tuple]:
    """What the object store's application mounts to hand images out."""
    return [(r"/_images/([a-z0-9-]+)", ImageHandler, {"manager": manager, "store": store})]
