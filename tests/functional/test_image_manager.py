"""Images: from objects and bundles to files, with real Redis, and handed out over HTTP."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tornado.httpclient
import tornado.httpserver
import tornado.netutil
import tornado.web

from nova import crypto, exception
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import manager as image_manager
from nova.image import models
from nova.image.manager import ImageManager
from nova.image.models import Image
from nova.process import wait
from nova.rpc import Bus
from tests import bundles

CONTENT = random.Random(2).randbytes(2 << 20)


async def until(condition: Callable, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@dataclass
class FileObject:
    path: str
    size: int
    sha256: str
    project_id: str = "proj"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> crypto.Authority:
    authority = crypto.Authority(str(tmp_path_factory.mktemp("ca")))
    authority.ensure()
    return authority


class Rig:
    """An object store host whose buckets are directories."""

    def __init__(self, store: Store, directory: Path, authority: crypto.Authority):
        self.store, self.buckets, self.authority = store, directory / "buckets", authority
        self.bus = Bus("memory://", "h1")
        self.manager = ImageManager(store, self.bus, self.open, authority.key_path)
        self.images = directory / "images"

    async def open(self, bucket: str, key: str) -> FileObject:
        path = self.buckets / bucket / key
        if not (self.buckets / bucket).is_dir():
            raise exception.NoSuchBucket()
        if not path.is_file():
            raise exception.NoSuchKey()
        return FileObject(str(path), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())

    def put(self, bucket: str, key: str, data: bytes) -> Path:
        path = self.buckets / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def put_bundle(self, bucket: str, folder: str = "", **changes: object) -> bundles.Bundle:
        made = bundles.make(self.buckets / bucket / folder, self.authority.certificate_path, CONTENT, **changes)
        self.put(bucket, f"{folder}/image.manifest.xml" if folder else "image.manifest.xml", made.manifest)
        return made

    async def record(self, location: str, id: str = "ami-00000001", host: str = "h1") -> Image:
        return await self.store.create(Image(id, project_id="proj", user_id="ann", name="x", location=location,
                                             kind="machine", host=host, created=0.0))

    async def ingest(self, location: str) -> Image:
        """Register a location as RegisterImage does."""
        await self.record(location)
        await wait(self.bus.call("objectstore.h1", "ingest_image", image_id="ami-00000001"))
        return await self.image()

    async def image(self) -> Image:
        found = await self.store.get(Image, "ami-00000001")
        assert found is not None
        return found

    def files(self) -> list[str]:
        return sorted(os.listdir(self.images))


@pytest.fixture
async def idle(store: Store, tmp_path: Path, authority: crypto.Authority) -> AsyncIterator[Rig]:
    """A rig that is not started."""
    FLAGS.state_path, FLAGS.host, FLAGS.converge_interval = str(tmp_path), "h1", 3600.0
    rig = Rig(store, tmp_path, authority)
    rig.bus.start()
    assert await rig.bus.connected()
    yield rig
    await rig.manager.stop()
    await rig.bus.stop()


@pytest.fixture
async def rig(idle: Rig) -> Rig:
    await idle.manager.start()
    return idle


# -- objects ----------------------------------------------------------------------------------------------------------

async def test_an_object_becomes_an_image(rig: Rig) -> None:
    rig.put("bucket", "deep/disk.img", CONTENT)
    image = await rig.ingest("bucket/deep/disk.img")
    assert (image.state, image.size, image.sha256) == ("available", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert (rig.images / image.id).read_bytes() == CONTENT


async def test_an_image_shares_its_objects_file_and_outlives_it(rig: Rig) -> None:
    path = rig.put("bucket", "disk.img", CONTENT)
    image = await rig.ingest("bucket/disk.img")
    assert (rig.images / image.id).stat().st_ino == path.stat().st_ino
    path.unlink()
    assert (rig.images / image.id).read_bytes() == CONTENT


async def test_an_object_that_cannot_be_linked_is_copied(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")
    monkeypatch.setattr(os, "link", link)
    path = rig.put("bucket", "disk.img", CONTENT)
    image = await rig.ingest("bucket/disk.img")
    assert image.state == "available"
    assert (rig.images / image.id).stat().st_ino != path.stat().st_ino
    assert (rig.images / image.id).read_bytes() == CONTENT


@pytest.mark.parametrize(("location", "reason"), [
    ("bucket/gone", "key does not exist"), ("gone/key", "bucket does not exist"), ("bucket", "does not exist")])
async def test_an_object_that_is_not_there_fails_the_image_with_the_reason(rig: Rig, location: str,
                                                                           reason: str) -> None:
    rig.put("bucket", "other", b"")
    image = await rig.ingest(location)
    assert image.state == "failed" and reason in image.state_reason


# -- bundles ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", ["", "deep/er"])
async def test_a_bundle_becomes_an_image(rig: Rig, folder: str) -> None:
    rig.put_bundle("bucket", folder)
    image = await rig.ingest(os.path.join("bucket", folder, "image.manifest.xml"))
    assert (image.state, image.size, image.sha256) == ("available", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert (rig.images / image.id).read_bytes() == CONTENT
    assert rig.files() == [image.id]


@pytest.mark.parametrize(("damage", "reason"), [
    ("digest", "digest of part"), ("missing part", "does not exist"), ("other cloud", "not encrypted for this cloud"),
    ("manifest", "no XML"), ("size", "size is not what the manifest says"), ("huge", "no XML")])
async def test_a_damaged_bundle_fails_the_image_with_the_reason_and_leaves_no_file(
        rig: Rig, tmp_path: Path, damage: str, reason: str) -> None:
    made = rig.put_bundle("bucket")
    if damage == "digest":
        made.parts[0] = (made.parts[0][0], "0" * 40)
    elif damage == "missing part":
        (made.directory / made.parts[1][0]).unlink()
    elif damage == "other cloud":
        another = crypto.Authority(str(tmp_path / "another"))
        another.ensure()
        made.certificate = another.certificate_path
    elif damage == "size":
        made.size = len(CONTENT) + 1
    text = {"manifest": b"hello", "huge": made.manifest + b" " * (5 << 20)}.get(damage, made.manifest)
    if damage == "huge":
        text = text.replace(b"<version>", b"<version>" + b"x" * (5 << 20), 1)
    rig.put("bucket", "image.manifest.xml", text)
    image = await rig.ingest("bucket/image.manifest.xml")
    assert image.state == "failed" and reason in image.state_reason
    assert rig.files() == []


# -- convergence ------------------------------------------------------------------------------------------------------

async def test_an_image_that_was_pending_at_the_start_is_made(idle: Rig) -> None:
    idle.put("bucket", "disk.img", CONTENT)
    await idle.record("bucket/disk.img")
    await idle.manager.start()

    async def available() -> bool:
        return (await idle.image()).state == "available"
    await until(available)


async def test_what_a_dead_process_left_half_made_is_made_anew(idle: Rig) -> None:
    idle.put_bundle("bucket")
    await idle.record("bucket/image.manifest.xml")
    idle.images.mkdir()
    for name in ("ami-00000001", "ami-00000001.part"):
        (idle.images / name).write_bytes(b"half")
    await idle.manager.start()

    async def available() -> bool:
        return (await idle.image()).state == "available"
    await until(available)
    assert idle.files() == ["ami-00000001"] and (idle.images / "ami-00000001").read_bytes() == CONTENT


async def test_files_that_no_record_wants_are_removed(idle: Rig) -> None:
    idle.images.mkdir()
    for name in ("ami-0000dead", "ami-0000dead.part", "aki-0000beef.part"):
        (idle.images / name).write_bytes(b"x")
    await idle.manager.start()

    async def removed() -> bool:
        return idle.files() == []
    await until(removed)


async def test_the_file_of_an_image_that_was_deregistered_is_removed(rig: Rig) -> None:
    rig.put("bucket", "disk.img", CONTENT)
    image = await rig.ingest("bucket/disk.img")
    await rig.store.delete(image)
    rig.bus.cast("objectstore.h1", "look_at_image", image_id=image.id)

    async def removed() -> bool:
        return rig.files() == []
    await until(removed)


async def test_an_image_of_another_host_is_left_to_it(rig: Rig) -> None:
    rig.put("bucket", "disk.img", CONTENT)
    await rig.record("bucket/disk.img", host="h2")
    await wait(rig.bus.call("objectstore.h1", "ingest_image", image_id="ami-00000001"))
    assert (await rig.image()).state == "pending" and rig.files() == []


async def test_an_image_that_is_available_is_not_made_again(rig: Rig) -> None:
    path = rig.put("bucket", "disk.img", CONTENT)
    image = await rig.ingest("bucket/disk.img")
    path.unlink()
    rig.put("bucket", "disk.img", b"another object")
    await wait(rig.bus.call("objectstore.h1", "ingest_image", image_id=image.id))
    assert await rig.image() == image and (rig.images / image.id).read_bytes() == CONTENT


async def test_a_failure_that_may_pass_is_tried_again(idle: Rig) -> None:
    idle.put("bucket", "disk.img", CONTENT)
    errors: list[Exception] = [exception.DatastoreUnavailable(), OSError(28, "No space left on device")]

    async def open_object(bucket: str, key: str) -> FileObject:
        if errors:
            raise errors.pop()
        return await idle.open(bucket, key)
    idle.manager = ImageManager(idle.store, idle.bus, open_object, idle.authority.key_path)
    await idle.record("bucket/disk.img")
    await idle.manager.start()

    async def available() -> bool:
        return (await idle.image()).state == "available"
    await until(available)


# -- handing out ------------------------------------------------------------------------------------------------------

@pytest.fixture
async def url(rig: Rig) -> AsyncIterator[str]:
    [socket] = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server = tornado.httpserver.HTTPServer(tornado.web.Application(image_manager.handlers(rig.manager, rig.store)))
    server.add_socket(socket)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}/_images/"
    server.stop()
    await server.close_all_connections()


async def fetch(url: str, token: str | None) -> tornado.httpclient.HTTPResponse:
    headers = {} if token is None else {"X-Nova-Token": token}
    return await tornado.httpclient.AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)


async def test_a_node_with_a_token_gets_the_file(rig: Rig, url: str) -> None:
    rig.put("bucket", "disk.img", CONTENT)
    image = await rig.ingest("bucket/disk.img")
    token = models.fetch_token(await models.fetch_secret(rig.store), image.id)
    answer = await fetch(url + image.id, token)
    assert (answer.code, answer.body) == (200, CONTENT)


async def test_who_has_no_token_for_the_image_gets_nothing(rig: Rig, url: str) -> None:
    rig.put("bucket", "disk.img", CONTENT)
    image = await rig.ingest("bucket/disk.img")
    secret = await models.fetch_secret(rig.store)
    old = models.fetch_token(secret, image.id, now=0.0)
    for token in (None, "", "x", old, models.fetch_token(secret, "ami-00000002"), models.fetch_token(b"x", image.id)):
        assert (await fetch(url + image.id, token)).code == 403


async def test_an_image_that_is_not_there_is_not_found(rig: Rig, url: str) -> None:
    token = models.fetch_token(await models.fetch_secret(rig.store), "ami-00000009")
    assert (await fetch(url + "ami-00000009", token)).code == 404


@pytest.mark.parametrize("path", ["../buckets/x", "..%2fbuckets%2fx", "ami-1.part", "ami-1/", ""])
async def test_what_is_no_image_id_is_not_found(url: str, path: str) -> None:
    assert (await fetch(url + path, "x")).code == 404


async def test_the_clouds_secret_is_made_once(store: Store) -> None:
    secrets = await asyncio.gather(*(models.fetch_secret(store) for _ in range(5)))
    assert len(set(secrets)) == 1 and len(secrets[0]) == 64
