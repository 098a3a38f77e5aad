"""What cloud verify finds in a real Redis, and what it repairs."""

import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nova.auth.manager import AuthManager
from nova.cloud import verify
from nova.compute.models import Instance
from nova.datastore import Store
from nova.network.models import ALLOTMENTS, network_of
from nova.objectstore import buckets
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket


@pytest.fixture
async def auth(store: Store, tmp_path) -> AsyncIterator[AuthManager]:
    auth = AuthManager(store)
    await auth.create_user("ann")
    await auth.create_project("web", "ann")
    yield auth
    await auth.stop()


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> Iterator[Files]:
    files = Files(str(tmp_path))
    yield files
    files.close()


async def instance(store: Store, id: str = "i-00000001") -> Instance:
    """An instance with all that belongs to it."""
    network = await network_of(store, "web", "host1")
    tx = store.transaction()
    made = Instance(id, project_id="web", user_id="ann", reservation_id="r-1", launch_index=0, image_id="ami-1",
                    instance_type="m1.small", vcpus=1, memory_mb=512, disk_gb=1, hostname=id, uuid="u", mac="m",
                    private_ip=tx.take(network.addresses, id), network_id="web", host="host1", zone="nova",
                    launch_time=0.0, state="running")
    tx.create(made)
    for account in ("project:web", "user:ann"):
        tx.add(f"usage:{account}", "instances", 1)
        tx.add(f"usage:{account}", "instances:m1.small", 1)
    tx.add("claims:host1", "memory_mb", 512)
    tx.add("claims:host1", "vcpus", 1)
    [address] = await tx.commit()
    return dataclasses.replace(made, private_ip=address)


async def found(store: Store, auth: AuthManager) -> list[verify.Difference]:
    return await verify.verify(store, auth, pause=0)


async def repaired(store: Store, auth: AuthManager) -> list[verify.Difference]:
    """What is left after a repair."""
    await verify.repair(await found(store, auth))
    return await found(store, auth)


async def test_a_cloud_that_agrees_with_itself(store: Store, auth: AuthManager, files: Files) -> None:
    await instance(store)
    await buckets.create(store, files, "shelf", "web", "ann")
    assert await found(store, auth) == []


async def test_an_index_that_lacks_a_record(store: Store, auth: AuthManager) -> None:
    made = await instance(store)
    await store.redis.srem("nova:instances:by-host:host1", made.id)
    await store.redis.srem("nova:instances", made.id)
    assert [d.check for d in await found(store, auth)] == ["index", "index"]
    assert await repaired(store, auth) == []
    assert await store.ids(Instance, host="host1") == await store.ids(Instance) == [made.id]


async def test_an_index_that_has_too_much(store: Store, auth: AuthManager) -> None:
    made = await instance(store)
    await store.redis.sadd("nova:instances:by-host:host2", made.id)
    await store.redis.sadd("nova:instances", "i-0000000f")
    assert {d.about for d in await found(store, auth)} == {f"nova:instance:{made.id}", "nova:instance:i-0000000f"}
    assert await repaired(store, auth) == []
    assert await store.ids(Instance, host="host2") == []
    assert await store.ids(Instance) == [made.id]


async def test_an_object_that_is_listed_only(store: Store, auth: AuthManager, files: Files) -> None:
    bucket = await buckets.create(store, files, "shelf", "web", "ann")
    await store.redis.zadd(bucket.keys_key, {"ä/b".encode(): 0})
    assert [(d.check, d.about) for d in await found(store, auth)] == [("bucket", "shelf/ä/b")]
    assert await repaired(store, auth) == []


async def test_claims_that_nobody_has(store: Store, auth: AuthManager) -> None:
    await instance(store)
    await store.redis.hincrby("nova:claims:host1", "vcpus", 5)
    await store.redis.hset("nova:claims:host9", "memory_mb", 7)
    assert {(d.check, d.about) for d in await found(store, auth)} == {("claim", "host1"), ("claim", "host9")}
    assert await repaired(store, auth) == []
    assert await store.redis.hget("nova:claims:host1", "vcpus") == b"1"


async def test_a_claim_that_changes_meanwhile_is_left(store: Store, auth: AuthManager) -> None:
    await instance(store)
    await store.redis.hset("nova:claims:host1", "vcpus", "5")
    differences = await found(store, auth)
    await store.redis.hset("nova:claims:host1", "vcpus", "1")
    await verify.repair(differences)
    assert await store.redis.hget("nova:claims:host1", "vcpus") == b"1"
    await store.redis.hset("nova:claims:host1", "vcpus", "2")
    await verify.repair(differences)
    assert await store.redis.hget("nova:claims:host1", "vcpus") == b"2"


async def test_an_address_that_its_owner_does_not_have(store: Store, auth: AuthManager) -> None:
    await instance(store)
    network = await network_of(store, "web", "host1")
    tx = store.transaction()
    tx.take(network.addresses, "i-0000000f")
    await tx.commit()
    before = await store.redis.llen(network.addresses.key)
    [difference] = await found(store, auth)
    assert "taken for i-0000000f, which does not have it" in difference.what
    assert await repaired(store, auth) == []
    assert await store.redis.llen(network.addresses.key) == before + 1


async def test_what_cannot_be_repaired_without_guessing_is_told(store: Store, auth: AuthManager) -> None:
    made = await instance(store)
    network = await network_of(store, "web", "host1")
    await store.redis.hdel(network.addresses.owners_key, made.private_ip)
    lost = await store.redis.lpop(network.addresses.key)
    await store.redis.rpush(network.addresses.key, made.private_ip)
    await store.redis.hset(network.addresses.owners_key, made.private_ip, made.id)
    await store.redis.hdel(ALLOTMENTS.owners_key, network.allotment)
    texts = {d.what for d in await found(store, auth)}
    assert texts == {f"{made.private_ip} is free, and taken for {made.id}",
                     f"{lost.decode()} is neither free nor taken",
                     f"web has {network.allotment}, which is not taken for it"}
    assert len(await repaired(store, auth)) == 3


async def test_limits_that_are_counted_wrongly(store: Store, auth: AuthManager) -> None:
    await instance(store)
    await store.redis.hincrby("nova:usage:project:web", "instances", 4)
    assert [(d.check, d.about) for d in await found(store, auth)] == [("limit", "project:web")]
    assert await repaired(store, auth) == []


@pytest.mark.both_directories
async def test_what_belongs_to_no_project(store: Store, auth: AuthManager) -> None:
    await store.create(Bucket("lonely", project_id="gone", created=0.0))
    assert [(d.check, d.about) for d in await found(store, auth)] == [("owner", "bucket lonely")]
    assert len(await repaired(store, auth)) == 1
