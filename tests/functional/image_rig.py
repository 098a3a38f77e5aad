"""An object store host without its S3 server: what makes images, on a real Redis, and where it keeps them."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nova import crypto
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image.manager import ImageManager
from nova.image.models import Image
from nova.objectstore import objects
from nova.objectstore.files import Files
from nova.objectstore.images import ImageFiles
from nova.objectstore.models import Bucket, Object, object_id
from nova.process import wait
from nova.rpc import Bus
from tests import bundles, images

CONTENT = images.machine(2 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()


async def until(condition: Callable, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module", name="authority")
def authority_fixture(tmp_path_factory: pytest.TempPathFactory) -> crypto.Authority:
    authority = crypto.Authority(str(tmp_path_factory.mktemp("ca")))
    authority.ensure()
    return authority


class Rig:
    """An object store host, without its S3 server."""

    def __init__(self, store: Store, directory: Path, authority: crypto.Authority):
        self.store, self.directory, self.authority = store, directory, authority
        self.bus = Bus("memory://", "h1")
        self.files = Files(str(directory / "objects"))
        self.image_files = ImageFiles(store, self.files)
        self.manager = self.new_manager(self.open)
        self.work = directory / "images"

    def new_manager(self, opener: Callable) -> ImageManager:
        return ImageManager(self.store, self.bus, opener, self.authority, self.image_files)

    async def open(self, bucket: str, key: str) -> Object:
        return await objects.open_object(self.store, bucket, key)

    async def put(self, bucket: str, key: str, data: bytes = CONTENT) -> Object:
        there = await self.store.get(Bucket, bucket) or await self.store.create(
            Bucket(bucket, project_id="proj", created=0.0))
        id = object_id(bucket, key)
        with self.files.new(f"o-{id}") as writer:
            writer.write(data)
            md5, sha256 = hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest()
            new = objects.planned(there, Object(id, bucket=bucket, key=key, project_id="proj", file=writer.name,
                                                user_id=there.user_id,
                                                size=len(data), md5=md5, sha256=sha256, etag=md5, modified=1.0))
            writer.publish(new)
        return await objects.put(self.store, self.files, there, new)

    async def remove(self, bucket: str, key: str) -> None:
        there = await self.store.get(Bucket, bucket)
        assert there is not None
        await objects.delete(self.store, self.files, there, key)

    async def put_bundle(self, bucket: str, folder: str = "", content: bytes = CONTENT) -> bundles.Bundle:
        made = bundles.make(self.directory / "bundle", self.authority.certificate_path, content,
                            signer=self.signer("ann"))
        await self.put_parts(bucket, made, folder)
        return made

    def signer(self, user: str) -> str:
        """The path of a new private key of a user, who has a certificate for it."""
        return bundles.signer(self.directory / "keys", *self.authority.issue(user, "proj"))

    async def put_parts(self, bucket: str, made: bundles.Bundle, folder: str = "") -> None:
        """A bundle as it stands."""
        for name, _ in made.parts:
            await self.put(bucket, f"{folder}/{name}" if folder else name, (made.directory / name).read_bytes())
        await self.put(bucket, f"{folder}/image.manifest.xml" if folder else "image.manifest.xml", made.manifest)

    async def record(self, location: str, id: str = "ami-00000001", host: str = "h1", **fields: object) -> Image:
        values = {"kind": "machine", "name": "x", **fields}
        return await self.store.create(Image(id, project_id="proj", user_id="ann", location=location, host=host,
                                             created=0.0, **values))  # type: ignore[arg-type]

    async def ingest(self, location: str, **fields: object) -> Image:
        """Register a location as RegisterImage does."""
        await self.record(location, **fields)
        await wait(self.bus.call("objectstore.h1", "ingest_image", image_id="ami-00000001", timeout=60))
        return await self.image()

    async def image(self) -> Image:
        found = await self.store.get(Image, "ami-00000001")
        assert found is not None
        return found

    async def file(self, id: str = "ami-00000001") -> Path:
        """Where the file of an image is."""
        found = await self.image_files.find(id)
        assert found is not None
        return Path(found.path)

    async def content(self, id: str = "ami-00000001") -> bytes:
        return (await self.file(id)).read_bytes()

    def left(self) -> list[str]:
        """What is in the directory in which images are made."""
        return sorted(os.listdir(self.work))

    async def stray(self) -> list[str]:
        """Files of the object store that no record names."""
        named = {found.file async for found in self.store.scan(Object)}
        return [name for name in self.files.names(-1.0) if name.removesuffix(".meta") not in named]


@pytest.fixture(name="idle")
async def idle_fixture(store: Store, tmp_path: Path, authority: crypto.Authority) -> AsyncIterator[Rig]:
    """A rig that is not started."""
    FLAGS.state_path, FLAGS.host, FLAGS.converge_interval = str(tmp_path), "h1", 3600.0
    rig = Rig(store, tmp_path, authority)
    rig.bus.start()
    assert await rig.bus.connected()
    yield rig
    await rig.manager.stop()
    await rig.bus.stop()
    rig.files.close()


@pytest.fixture(name="rig")
async def rig_fixture(idle: Rig) -> Rig:
    await idle.manager.start()
    return idle
