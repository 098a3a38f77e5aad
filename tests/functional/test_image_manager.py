"""Images: from objects and bundles to objects of the cloud's own, with real Redis, and handed out over HTTP."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tornado.httpclient
import tornado.httpserver
import tornado.netutil
import tornado.web

from nova import crypto, exception
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import models, work
from nova.image.manager import ImageManager
from nova.image.models import Image
from nova.objectstore import images as object_images
from nova.objectstore import reindex, verify
from nova.objectstore.holdings import holdings
from nova.objectstore.models import Bucket, Object
from nova.process import wait
from nova.rpc import Bus
from tests import bundles, images
from tests.functional.image_rig import (  # noqa: F401 (the fixtures)
    CONTENT,
    SHA,
    Rig,
    authority_fixture,
    idle_fixture,
    rig_fixture,
    until,
)

# -- objects ----------------------------------------------------------------------------------------------------------

async def test_an_object_becomes_an_image(rig: Rig) -> None:
    await rig.put("bucket", "deep/disk.img")
    image = await rig.ingest("bucket/deep/disk.img")
    assert (image.state, image.size, image.sha256) == ("available", len(CONTENT), SHA)
    assert (image.disk_format, image.virtual_size) == ("raw", len(CONTENT))
    assert await rig.content() == CONTENT
    assert rig.left() == []


async def test_an_image_shares_its_objects_file_and_outlives_it(rig: Rig) -> None:
    source = Path((await rig.put("bucket", "disk.img")).path)
    await rig.ingest("bucket/disk.img")
    assert (await rig.file()).stat().st_ino == source.stat().st_ino
    await rig.remove("bucket", "disk.img")
    assert not source.exists() and await rig.content() == CONTENT


@pytest.mark.parametrize(("location", "reason"), [
    ("bucket/gone", "key does not exist"), ("gone/key", "bucket does not exist"), ("bucket", "does not exist")])
async def test_an_object_that_is_not_there_fails_the_image_with_the_reason(rig: Rig, location: str,
                                                                           reason: str) -> None:
    await rig.put("bucket", "other", b"")
    image = await rig.ingest(location)
    assert image.state == "failed" and reason in image.state_reason
    assert image.state_code in ("Client.NoSuchKey", "Client.NoSuchBucket")


async def test_an_image_of_an_unknown_source_fails(rig: Rig) -> None:
    image = await rig.ingest("bucket/x", source="rubbish:1")
    assert (image.state, image.state_code) == ("failed", "Client.InvalidParameterValue")


# -- bundles ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", ["", "deep/er"])
async def test_a_bundle_becomes_an_image(rig: Rig, folder: str) -> None:
    await rig.put_bundle("bucket", folder)
    image = await rig.ingest(os.path.join("bucket", folder, "image.manifest.xml"))
    assert (image.state, image.size, image.sha256) == ("available", len(CONTENT), SHA)
    assert await rig.content() == CONTENT
    assert rig.left() == [] and await rig.stray() == []


@pytest.mark.parametrize(("damage", "reason"), [
    ("digest", "digest of part"), ("missing part", "does not exist"), ("other cloud", "not encrypted for this cloud"),
    ("manifest", "no XML"), ("size", "size is not what the manifest says"), ("huge", "no XML"),
    ("bundled size", "not the bundled size"), ("image's digest", "image's digest is not"), ("unsigned", "not signed"),
    ("changed", "signature is not of"), ("signed by another", "signature is not of"), ("revoked", "revoked"),
    ("truncated", "cut off")])
async def test_a_damaged_bundle_fails_the_image_with_the_reason_and_leaves_no_file(
        rig: Rig, tmp_path: Path, damage: str, reason: str) -> None:
    made = await rig.put_bundle("bucket")
    if damage == "digest":
        made.parts[0] = (made.parts[0][0], "0" * 40)
    elif damage == "missing part":
        await rig.remove("bucket", made.parts[1][0])
    elif damage == "other cloud":
        another = crypto.Authority(str(tmp_path / "another"))
        another.ensure()
        made.certificate = another.certificate_path
    elif damage == "size":
        made.size = len(CONTENT) + 1
    elif damage == "bundled size":
        made.bundled_size = int(made.bundled_size) + 1
    elif damage == "image's digest":
        made.digest = "0" * 40
    elif damage == "unsigned":
        made.signer = ""
    elif damage == "signed by another":
        made.signer = rig.signer("eve")
    elif damage == "revoked":
        made.signer = rig.signer("ann")
        rig.authority.revoke_user("ann")
    elif damage == "truncated":
        path = tmp_path / "image"
        path.write_bytes(CONTENT)
        made.seal(bundles.run("gzip", "-c", input=made.tar(path))[:-100])
        await rig.put_parts("bucket", made)
    text = {"manifest": b"hello", "huge": made.manifest + b" " * (5 << 20),
            "changed": made.manifest.replace(b"x86_64", b"i386")}.get(damage, made.manifest)
    if damage == "huge":
        text = text.replace(b"<version>", b"<version>" + b"x" * (5 << 20), 1)
    await rig.put("bucket", "image.manifest.xml", text)
    image = await rig.ingest("bucket/image.manifest.xml")
    assert image.state == "failed" and reason in image.state_reason
    assert rig.left() == [] and await rig.stray() == []


@pytest.mark.parametrize(("members", "reason"), [
    ("../image", "must not have a path"), ("/tmp/image", "must not have a path"), ("two files", "something behind"),
    ("symlink", "one regular file"), ("hard link", "something behind"), ("device", "one regular file"),
    ("directory", "one regular file"), ("bomb", "too much behind")])
async def test_a_bundle_of_something_else_than_one_file_fails_and_leaves_no_file(rig: Rig, tmp_path: Path, members: str,
                                                                                 reason: str) -> None:
    made = await rig.put_bundle("bucket")
    place = tmp_path / "members" / "here"
    place.mkdir(parents=True)
    (place / "image").write_bytes(CONTENT)
    names, options = ["image"], []
    if members in ("../image", "/tmp/image"):
        options = ["-P", f"--transform=s,^image$,{members},"]
    elif members == "two files":
        (place / "second").write_bytes(b"x")
        names = ["image", "second"]
    elif members == "symlink":
        (place / "link").symlink_to("/etc/passwd")
        names = ["link"]
    elif members == "hard link":
        os.link(place / "image", place / "link")
        names = ["image", "link"]
    elif members == "device":
        names = ["/dev/null"]
        options = ["-P", "--transform=s,.*,image,"]
    elif members == "directory":
        names = ["."]
    archive = bundles.run("tar", "-c", "-C", str(place), *options, *names)
    made.pack(archive + (bytes(100 << 20) if members == "bomb" else b""))
    await rig.put_parts("bucket", made)
    image = await rig.ingest("bucket/image.manifest.xml")
    assert image.state == "failed" and reason in image.state_reason
    assert rig.left() == [] and await rig.stray() == []


async def test_the_buckets_owner_may_have_signed(rig: Rig) -> None:
    made = await rig.put_bundle("bucket")
    made.signer = rig.signer("bob")
    await rig.put("bucket", "image.manifest.xml", made.manifest)
    there = await rig.store.get(Bucket, "bucket")
    assert there is not None
    await rig.store.update(there, user_id="bob")
    await rig.put("bucket", "image.manifest.xml", made.manifest)
    assert (await rig.ingest("bucket/image.manifest.xml")).state == "available"


# -- convergence ------------------------------------------------------------------------------------------------------

async def test_an_image_that_was_pending_at_the_start_is_made(idle: Rig) -> None:
    await idle.put("bucket", "disk.img")
    await idle.record("bucket/disk.img")
    await idle.manager.start()

    async def available() -> bool:
        return (await idle.image()).state == "available"
    await until(available)


async def test_what_a_dead_process_left_half_made_is_made_anew(idle: Rig) -> None:
    await idle.put_bundle("bucket")
    await idle.record("bucket/image.manifest.xml")
    (idle.work / "ami-00000001.0123").mkdir(parents=True)
    for name in ("ami-00000001.0123/unbundled", "stray"):
        (idle.work / name).write_bytes(b"half")
    await idle.manager.start()

    async def available() -> bool:
        return (await idle.image()).state == "available"
    await until(available)

    async def cleared() -> bool:  # just after that
        return idle.left() == []
    await until(cleared)
    assert await idle.content() == CONTENT


async def test_what_another_process_works_on_is_left_to_it(rig: Rig) -> None:
    async with work.directory(str(rig.work), "ami-00000001") as theirs:
        work.sweep(str(rig.work))
        assert os.path.isdir(theirs)
    assert rig.left() == []


async def test_the_file_of_an_image_that_was_deregistered_is_removed(rig: Rig) -> None:
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img")
    await rig.store.delete(image)
    rig.bus.cast("objectstore.h1", "look_at_image", image_id=image.id)

    async def removed() -> bool:
        return not await rig.image_files.ids()
    await until(removed)
    await rig.remove("bucket", "disk.img")
    assert list(rig.files.names(-1.0)) == []


async def test_files_that_no_record_wants_are_removed_at_the_start(idle: Rig) -> None:
    (idle.directory / "made").write_bytes(CONTENT)
    image = await idle.record("bucket/disk.img")
    await idle.image_files.publish(image, str(idle.directory / "made"), sha256=SHA, size=len(CONTENT))
    await idle.store.delete(await idle.image())
    await idle.manager.start()

    async def removed() -> bool:  # the record first, then the file
        return not await idle.image_files.ids() and not list(idle.files.names(-1.0))
    await until(removed)


async def test_an_image_of_another_host_is_left_to_it(rig: Rig) -> None:
    await rig.put("bucket", "disk.img")
    await rig.record("bucket/disk.img", host="h2")
    await wait(rig.bus.call("objectstore.h1", "ingest_image", image_id="ami-00000001"))
    assert (await rig.image()).state == "pending" and await rig.image_files.ids() == set()


async def test_an_image_that_is_available_is_not_made_again(rig: Rig) -> None:
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img")
    await rig.put("bucket", "disk.img", images.machine(seed=9))
    await wait(rig.bus.call("objectstore.h1", "ingest_image", image_id=image.id))
    assert await rig.image() == image and await rig.content() == CONTENT


async def test_a_failure_that_may_pass_is_tried_again(idle: Rig) -> None:
    await idle.put("bucket", "disk.img")
    errors: list[Exception] = [exception.DatastoreUnavailable(), OSError(5, "Input/output error")]

    async def open_object(bucket: str, key: str) -> Object:
        if errors:
            raise errors.pop()
        return await idle.open(bucket, key)
    idle.manager = idle.new_manager(open_object)
    await idle.record("bucket/disk.img")
    await idle.manager.start()

    async def available() -> bool:
        return (await idle.image()).state == "available"
    await until(available)


async def test_a_full_disk_fails_the_image_and_leaves_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.put_bundle("bucket")

    def take(*arguments: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(rig.files, "take", take)
    image = await rig.ingest("bucket/image.manifest.xml")
    assert (image.state, image.state_code) == ("failed", "Server.InternalError")
    assert "no room" in image.state_reason
    assert rig.left() == [] and await rig.stray() == []


async def test_two_managers_that_race_leave_one_file(rig: Rig) -> None:
    await rig.put("bucket", "disk.img")
    other = Bus("memory://", "other")
    FLAGS.host = "h1"
    second = ImageManager(rig.store, other, rig.open, rig.authority, rig.image_files)
    await second.start()
    await rig.record("bucket/disk.img")
    await asyncio.gather(*(manager.ingest_image("ami-00000001") for manager in (rig.manager, second)))

    async def available() -> bool:
        return (await rig.image()).state == "available"
    await until(available)
    await second.stop()
    assert await rig.content() == CONTENT and await rig.stray() == [] and rig.left() == []


# -- what the disk knows ----------------------------------------------------------------------------------------------

async def test_images_come_back_when_redis_is_rebuilt(rig: Rig) -> None:
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img", name="debian", is_public=True)
    await rig.store.modify(Image, image.id, lambda _: {"description": "changed later"})
    await rig.manager.look_at_image(image.id)

    async def described() -> bool:
        found = await rig.image_files.find(image.id)
        return found is not None and found.metadata["image"]["description"] == "changed later"
    await until(described)
    before = await rig.image()
    await rig.manager.stop()
    await rig.store.redis.flushall()
    report = await reindex.reindex(rig.store, rig.files, pause=0.0)
    assert report.restored["object"] == 1 and report.leftovers == 1  # its bucket was never described
    assert dataclasses.replace(await rig.image(), version=before.version) == before
    assert await rig.image_files.ids() == {image.id} and await rig.content() == CONTENT
    name = await rig.store.get(models.ImageName, "proj:debian")
    assert name is not None and name.image_id == image.id
    report = await reindex.reindex(rig.store, rig.files, pause=0.0)
    assert report.restored["object"] == 0


async def test_images_are_verified_and_count_in_nobodys_limits(rig: Rig) -> None:
    await rig.put_bundle("bucket")
    image = await rig.ingest("bucket/image.manifest.xml")
    assert (await verify.verify(rig.store, rig.files, bucket="_images")).damaged == []
    assert [held async for held in holdings(rig.store) if held.project_id != "proj"] == []
    path = await rig.file()
    path.write_bytes(CONTENT[:-1] + b"x")
    [damage] = (await verify.verify(rig.store, rig.files, bucket="_images")).damaged
    assert damage.about == f"_images/{image.id}" and "SHA-256" in damage.what


# -- handing out ------------------------------------------------------------------------------------------------------

@pytest.fixture
async def url(rig: Rig) -> AsyncIterator[str]:
    [socket] = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server = tornado.httpserver.HTTPServer(tornado.web.Application(
        object_images.handlers(rig.image_files, rig.store)))
    server.add_socket(socket)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}/_images/"
    server.stop()
    await server.close_all_connections()


async def fetch(url: str, token: str | None, method: str = "GET",
                **headers: str) -> tornado.httpclient.HTTPResponse:
    sent = {} if token is None else {"X-Nova-Token": token}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await tornado.httpclient.AsyncHTTPClient().fetch(url, method=method, headers=sent, raise_error=False)


async def token_for(rig: Rig, image_id: str) -> str:
    return models.fetch_token(await models.fetch_secret(rig.store), image_id)


async def test_a_node_with_a_token_gets_the_file(rig: Rig, url: str) -> None:
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img")
    token = await token_for(rig, image.id)
    answer = await fetch(url + image.id, token)
    assert (answer.code, answer.body, answer.headers["ETag"]) == (200, CONTENT, f'"{SHA}"')
    answer = await fetch(url + image.id, token, "HEAD")
    assert (answer.code, answer.headers["Content-Length"], answer.body) == (200, str(len(CONTENT)), b"")


async def test_a_broken_download_goes_on_with_bytes_of_the_same_file(rig: Rig, url: str) -> None:
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img")
    token = await token_for(rig, image.id)
    answer = await fetch(url + image.id, token, Range="bytes=1000-", If_Match=f'"{SHA}"')
    assert (answer.code, answer.body) == (206, CONTENT[1000:])
    assert answer.headers["Content-Range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"
    assert (await fetch(url + image.id, token, Range="bytes=1000-", If_Match='"another"')).code == 412
    answer = await fetch(url + image.id, token, Range="bytes=1000-", If_Range='"another"')
    assert (answer.code, answer.body) == (200, CONTENT)
    assert (await fetch(url + image.id, token, Range=f"bytes={len(CONTENT)}-")).code == 416
    assert (await fetch(url + image.id, token, If_None_Match=f'"{SHA}"')).code == 304


async def test_who_has_no_token_for_the_image_gets_nothing(rig: Rig, url: str) -> None:
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img")
    secret = await models.fetch_secret(rig.store)
    old = models.fetch_token(secret, image.id, now=0.0)
    for token in (None, "", "x", old, models.fetch_token(secret, "ami-00000002"), models.fetch_token(b"x", image.id)):
        assert (await fetch(url + image.id, token)).code == 403


async def test_an_image_that_is_not_there_or_damaged_is_not_found(rig: Rig, url: str) -> None:
    assert (await fetch(url + "ami-00000009", await token_for(rig, "ami-00000009"))).code == 404
    await rig.put("bucket", "disk.img")
    image = await rig.ingest("bucket/disk.img")
    found = await rig.image_files.find(image.id)
    assert found is not None
    await rig.store.update(found, damaged=True)
    assert (await fetch(url + image.id, await token_for(rig, image.id))).code == 404


@pytest.mark.parametrize("path", ["../buckets/x", "..%2fbuckets%2fx", "ami-1.part", "ami-1/", ""])
async def test_what_is_no_image_id_is_not_found(url: str, path: str) -> None:
    assert (await fetch(url + path, "x")).code == 404


async def test_the_clouds_secret_is_made_once(store: Store) -> None:
    secrets = await asyncio.gather(*(models.fetch_secret(store) for _ in range(5)))
    assert len(set(secrets)) == 1 and len(secrets[0]) == 64
