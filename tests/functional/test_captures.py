"""Images of instances on their way from the compute host to the object store, with the fake hypervisor: whatever goes
wrong, the image is made once, or fails with its reason, and nothing of the work is left.
"""

import asyncio
import hashlib
import http.client
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nova import converge, exception, failpoint
from nova.compute.models import Capture, Instance
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import models
from nova.image.models import Image
from tests.functional.test_keypairs_images_actions import CONTENT, Cloud, until


@pytest.fixture
async def cloud(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setattr(converge, "RETRY_FIRST", 0.05)
    FLAGS.state_path, FLAGS.host, FLAGS.converge_interval = str(tmp_path), "h1", 0.5
    FLAGS.private_range, FLAGS.network_size, FLAGS.region = "10.204.0.0/27", 16, "nova"
    cloud = Cloud(store, tmp_path)
    await cloud.start()
    yield cloud
    await cloud.stop()


@pytest.fixture
async def instance(cloud: Cloud) -> str:
    [id] = await cloud.run(await cloud.register())
    await cloud.reached(id, "running")
    return id


async def create(cloud: Cloud, instance: str, name: str = "captured", **params: Any) -> str:
    return str((await cloud.call("CreateImage", InstanceId=instance, Name=name, **params))["ImageId"])


async def ended(cloud: Cloud, id: str, seconds: float = 30) -> Image:
    """An image that is not pending any more."""
    async def there() -> bool:
        found = await cloud.store.get(Image, id)
        return found is not None and found.state != "pending"
    await until(there, seconds)
    found = await cloud.store.get(Image, id)
    assert found is not None
    return found


async def check_nothing_is_left(cloud: Cloud) -> None:
    async def nothing() -> bool:
        return (await cloud.store.ids(Capture) == [] and os.listdir(cloud.directory / "captures") == []
                and await cloud.store.redis.keys("nova:bucket-keys:_captures") == [])
    await until(nothing)


class Died(BaseException):
    """Stands for the death of the process at a failpoint."""


def hold_at(monkeypatch: pytest.MonkeyPatch, cloud: Cloud, before: Callable[[], Any]) -> None:
    """Have something done just before a disk is copied."""
    capture = cloud.driver.capture

    async def held(*args: Any) -> None:
        await before()
        await capture(*args)
    monkeypatch.setattr(cloud.driver, "capture", held)


async def test_an_image_has_what_is_on_the_instances_disk(cloud: Cloud, instance: str) -> None:
    image = await ended(cloud, await create(cloud, instance, NoReboot="true"))
    assert (image.state, image.virtual_size) == ("available", len(CONTENT)), image.state_reason
    found = await cloud.image_files.find(image.id)
    assert found is not None and (await asyncio.to_thread(Path(found.path).read_bytes)) == CONTENT
    await check_nothing_is_left(cloud)
    [another] = await cloud.run(image.id)
    await cloud.reached(another, "running")


@pytest.mark.parametrize(("no_reboot", "starts"), [("true", 1), ("false", 2)])
async def test_the_guest_is_started_anew_unless_it_is_not_to_be(cloud: Cloud, instance: str, no_reboot: str,
                                                                starts: int) -> None:
    await ended(cloud, await create(cloud, instance, NoReboot=no_reboot))
    console = (cloud.directory / "instances" / instance / "console.log").read_text()
    assert console.count("NOVA ready") == starts


async def test_an_image_of_an_instance_that_is_terminated_fails_with_its_reason(
        cloud: Cloud, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def terminate() -> None:
        await cloud.call("TerminateInstances", InstanceId_1=instance)
        await cloud.reached(instance, "terminated")
    hold_at(monkeypatch, cloud, terminate)
    image = await ended(cloud, await create(cloud, instance))
    assert (image.state, image.state_code) == ("failed", "Client.InstanceTerminated")
    assert instance in image.state_reason
    await check_nothing_is_left(cloud)


async def test_deregistering_the_image_ends_the_work(cloud: Cloud, instance: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    began = asyncio.Event()

    async def forever() -> None:
        began.set()
        await asyncio.sleep(60)
    hold_at(monkeypatch, cloud, forever)
    image = await create(cloud, instance)
    await began.wait()
    await cloud.call("DeregisterImage", ImageId=image)
    await check_nothing_is_left(cloud)
    assert (await cloud.reached(instance, "running")).wanted == "running"


async def test_a_disk_that_cannot_be_copied_is_tried_again_and_then_given_up(
        cloud: Cloud, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 2

    async def fail() -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise exception.NovaError("the disk has a scratch")
    hold_at(monkeypatch, cloud, fail)
    assert (await ended(cloud, await create(cloud, instance))).state == "available"
    failures = 1000
    image = await ended(cloud, await create(cloud, instance, "again"))
    assert (image.state, image.state_code) == ("failed", "Server.InternalError") and "h1" in image.state_reason
    assert failures == 997
    await check_nothing_is_left(cloud)


async def test_an_image_that_takes_too_long_fails(cloud: Cloud, instance: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever() -> None:
        await asyncio.sleep(60)
    hold_at(monkeypatch, cloud, forever)
    FLAGS.capture_timeout = 1.5
    image = await ended(cloud, await create(cloud, instance))
    assert image.state == "failed" and "1.5 seconds" in image.state_reason
    await check_nothing_is_left(cloud)


async def test_an_image_whose_compute_host_never_comes_back_fails(cloud: Cloud, instance: str) -> None:
    await cloud.captures.stop()
    id = await create(cloud, instance)
    await cloud.store.modify(Image, id, lambda i: {"created": time.time() - FLAGS.capture_timeout - 100})
    image = await ended(cloud, id)
    assert (image.state, image.state_code) == ("failed", "Server.InternalError") and "not sent" in image.state_reason
    await cloud.captures.start()
    await check_nothing_is_left(cloud)


async def test_an_object_store_that_is_away_costs_only_time(cloud: Cloud, instance: str) -> None:
    await cloud.objectstore.stop()
    id = await create(cloud, instance)
    copy = cloud.directory / "captures" / id

    async def tried() -> bool:
        return copy.exists() and id in cloud.captures._converger._failures
    await until(tried)
    found = await cloud.store.get(Image, id)
    assert found is not None and found.state == "pending"
    await cloud.objectstore.start()
    assert (await ended(cloud, id)).state == "available"
    await check_nothing_is_left(cloud)


@pytest.mark.parametrize("point", ["compute.capture.shut_down", "compute.capture.begun", "compute.capture.copied",
                                   "compute.capture.sent", "compute.capture.recorded", "image.capture.received",
                                   "image.capture.recorded"])
async def test_a_process_that_dies_on_the_way_leaves_what_the_next_one_completes(
        cloud: Cloud, instance: str, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    died = asyncio.Event()
    hit = failpoint.hit

    def die(name: str) -> None:
        if name == point and not died.is_set():
            died.set()
            raise exception.NovaError(f"died at {point}")
        hit(name)
    monkeypatch.setattr(failpoint, "hit", die)
    image = await ended(cloud, await create(cloud, instance))
    assert died.is_set() and image.state == "available", image.state_reason
    await check_nothing_is_left(cloud)

    async def all_files_are_named() -> bool:
        records = await cloud.store.redis.keys("nova:object:*")
        named = {(await cloud.store.redis.hget(key, "file")).decode() for key in records}
        objects = cloud.directory / "objects"
        return {str(path.relative_to(objects)).removesuffix(".meta") for path in objects.glob("??/*")} <= named
    if point != "image.capture.received":  # what no record names then, the sweep of the object store removes
        await until(all_files_are_named)


# -- what the object store receives -----------------------------------------------------------------------------------

async def put(cloud: Cloud, id: str, body: bytes, token: str = "", **headers: str) -> int:
    """Send a disk; the status of the answer."""
    secret = await models.fetch_secret(cloud.store)
    given = {"X-Nova-Token": token or models.fetch_token(secret, models.capture_of(id)),
             "X-Nova-Sha256": hashlib.sha256(body).hexdigest(), **{k.replace("_", "-"): v for k, v in headers.items()}}

    def send() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", cloud.objectstore.port, timeout=20)
        try:
            connection.request("PUT", f"/_images/{id}/disk", body=body, headers=given)
            return connection.getresponse().status
        finally:
            connection.close()
    return await asyncio.to_thread(send)


@pytest.fixture
async def waiting(cloud: Cloud, instance: str) -> str:
    """An image that waits for its disk, which its host will not send."""
    await cloud.captures.stop()
    return await create(cloud, instance)


async def test_a_disk_is_received_from_who_has_a_token_for_it_only(cloud: Cloud, waiting: str) -> None:
    secret = await models.fetch_secret(cloud.store)
    for token in ("1.2", "x", models.fetch_token(secret, waiting),
                  models.fetch_token(secret, models.capture_of("ami-1")),
                  models.fetch_token(secret, models.capture_of(waiting), time.time() - models.TOKEN_LIFETIME - 1)):
        assert await put(cloud, waiting, CONTENT, token) == 403
    assert await cloud.disks.find(waiting) is None
    assert await put(cloud, waiting, CONTENT) == 204
    cloud.bus.cast("objectstore.h1", "look_at_image", image_id=waiting)
    assert (await ended(cloud, waiting)).state == "available"


@pytest.mark.parametrize("body", [b"junk" * 1000, b"", CONTENT[:-1]], ids=["junk", "nothing", "cut off"])
async def test_what_is_no_disk_fails_the_image_as_any_import(cloud: Cloud, waiting: str, body: bytes) -> None:
    assert await put(cloud, waiting, body) == 204
    image = await ended(cloud, waiting)
    assert image.state == "failed" and image.state_code.startswith("Client.") and image.state_reason


@pytest.mark.parametrize("headers", [{"X_Nova_Sha256": "0" * 64}, {"X_Nova_Sha256": "short"}], ids=["wrong", "short"])
async def test_a_disk_that_is_not_what_was_sent_is_not_kept(cloud: Cloud, waiting: str,
                                                            headers: dict[str, str]) -> None:
    assert await put(cloud, waiting, CONTENT, **headers) == 400
    assert await cloud.disks.find(waiting) is None


async def test_a_disk_is_received_for_an_image_that_waits_for_it_only(cloud: Cloud, waiting: str) -> None:
    other = await cloud.register("bucket/other.img")
    assert await put(cloud, other, CONTENT) == 404
    assert await put(cloud, "ami-00000000", CONTENT) == 404
    await cloud.call("DeregisterImage", ImageId=waiting)
    assert await put(cloud, waiting, CONTENT) == 404


async def test_a_disk_that_comes_twice_is_kept_once(cloud: Cloud, waiting: str) -> None:
    await cloud.images.stop()
    codes = await asyncio.gather(*(put(cloud, waiting, CONTENT) for _ in range(4)))
    assert codes == [204] * 4
    keys = [key for key in await cloud.store.redis.keys("nova:object:*")
            if await cloud.store.redis.hget(key, "bucket") == b"_captures"]
    assert len(keys) == 1
    await cloud.images.start()
    assert (await ended(cloud, waiting)).state == "available"


async def test_a_sender_that_goes_away_leaves_nothing(cloud: Cloud, waiting: str) -> None:
    secret = await models.fetch_secret(cloud.store)
    reader, writer = await asyncio.open_connection("127.0.0.1", cloud.objectstore.port)
    writer.write((f"PUT /_images/{waiting}/disk HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONTENT)}\r\n"
                  f"X-Nova-Token: {models.fetch_token(secret, models.capture_of(waiting))}\r\n"
                  f"X-Nova-Sha256: {hashlib.sha256(CONTENT).hexdigest()}\r\n\r\n").encode() + CONTENT[:30000])
    await writer.drain()
    writer.close()
    assert await put(cloud, waiting, CONTENT) == 204
    cloud.bus.cast("objectstore.h1", "look_at_image", image_id=waiting)
    assert (await ended(cloud, waiting)).state == "available"
    assert await cloud.store.get(Instance, "i-00000000") is None
