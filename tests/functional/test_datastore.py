"""The datastore against a real redis-server."""

import asyncio
import dataclasses
from dataclasses import dataclass, field

import pytest

from nova import exception
from nova.auth.models import KeyPair
from nova.compute.models import Instance
from nova.datastore import Pool, Record, Store, record
from nova.image.models import Image
from nova.network.models import Network
from nova.objectstore.models import Bucket


@record("thing", indexes=("owner", "color", "parts"))
@dataclass(frozen=True)
class Thing(Record):
    owner: str = ""
    color: str = ""
    size: int = 0
    weight: float = 0.0
    heavy: bool = False
    parts: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    nickname: str | None = None


async def test_a_record_comes_back_as_it_was_stored(store: Store) -> None:
    thing = await store.create(Thing("t1", owner="ann", size=3, weight=0.1, heavy=True, parts=["ä", "b"],
                                     notes={"x": 1}))
    assert await store.get(Thing, "t1") == thing
    assert await store.get(Thing, "t2") is None


async def test_what_an_older_version_wrote_is_read_with_the_defaults(store: Store) -> None:
    thing = await store.create(Thing("t1", owner="ann", size=3, parts=["a"], notes={"x": 1}, nickname="n"))
    await store.redis.hdel("nova:thing:t1", "size", "weight", "heavy", "parts", "notes", "nickname")
    old = Thing("t1", owner="ann", version=thing.version)
    assert (await store.get(Thing, "t1"), await store.find(Thing, owner="ann")) == (old, [old])
    assert await store.update(old, heavy=True) == await store.get(Thing, "t1") != old


async def test_some_fields_of_many_records(store: Store) -> None:
    for n in range(1200):  # more than one round trip
        await store.create(Thing(f"t{n:04}", owner="ann", size=n, notes={"n": n}))
    await store.redis.hdel("nova:thing:t0007", "size", "notes")
    ids = [f"t{n:04}" for n in range(1300)]
    assert await store.get_fields(Thing, ids, ("id", "size", "notes", "nickname")) == [
        (f"t{n:04}", n, {"n": n}, None) if n != 7 else ("t0007", 0, {}, None) for n in range(1200)]
    assert await store.get_fields(Thing, [], ("id",)) == await store.get_many(Thing, []) == []
    assert [t.size for t in await store.get_many(Thing, ids)] == [n if n != 7 else 0 for n in range(1200)]
    assert len(await store.get_many(Thing, ids, at_once=True)) == 1200


async def test_two_records_of_different_kinds(store: Store) -> None:
    thing = await store.create(Thing("x"))
    bucket = await store.create(Bucket("b", project_id="p", created=1.0))
    assert await store.get_two(Thing, "x", Bucket, "b") == (thing, bucket)
    assert await store.get_two(Thing, "y", Bucket, "b") == (None, bucket)
    assert await store.get_two(Thing, "x", Bucket, "c") == (thing, None)


async def test_records_without_the_fields_that_came_later_are_read(store: Store) -> None:
    """Of each kind there is, whatever has a default may be missing."""
    for kind in (Instance, Image, Network, KeyPair, Bucket):
        fields = [f for f in dataclasses.fields(kind) if f.name not in ("id", "version")]
        values = {f.name: f.type("1") for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        made = await store.create(kind("x1", **values))
        key = f"nova:{kind.__name__.lower().replace('keypair', 'key_pair')}:x1"
        optional = [f.name for f in fields if f.name not in values]
        if optional:
            await store.redis.hdel(key, *optional)
        assert set(await store.redis.hkeys(key)) >= {name.encode() for name in values}
        assert await store.get(kind, "x1") == made, kind
    instance = await store.get(Instance, "x1")
    assert not await store.redis.hexists("nova:instance:x1", "locked")
    assert not instance.locked and (await store.update(instance, locked=True)).locked


async def test_a_record_is_created_once(store: Store) -> None:
    results = await asyncio.gather(*(store.create(Thing("t1", size=n)) for n in range(10)), return_exceptions=True)
    assert sum(isinstance(r, exception.Exists) for r in results) == 9


async def test_an_index_follows_its_field(store: Store) -> None:
    thing = await store.create(Thing("t1", owner="ann", color="red"))
    await store.create(Thing("t2", owner="ann", color="blue"))
    thing = await store.update(thing, color="blue")
    assert [t.id for t in await store.find(Thing, owner="ann", color="blue")] == ["t1", "t2"]
    assert await store.find(Thing, color="red") == []
    await store.update(thing, color="")
    assert [t.id for t in await store.find(Thing, color="blue")] == ["t2"]
    await store.delete((await store.find(Thing, color="blue"))[0])
    assert [t.id for t in await store.all(Thing)] == ["t1"]
    await store.delete((await store.all(Thing))[0])
    assert [k for k in await store.redis.keys("nova:thing*")] == []


async def test_a_list_is_indexed_by_each_of_its_members(store: Store) -> None:
    thing = await store.create(Thing("t1", parts=["ä", "b:c", '["']))
    await store.create(Thing("t2", owner="ann", parts=["b:c"]))
    assert await store.ids(Thing, parts="b:c") == ["t1", "t2"]
    assert await store.ids(Thing, parts="b:c", owner="ann") == ["t2"]
    assert await store.ids(Thing, parts="ä") == await store.ids(Thing, parts='["') == ["t1"]
    thing = await store.update(thing, parts=["ä", "d"])
    assert await store.ids(Thing, parts="b:c") == ["t2"] and await store.ids(Thing, parts="d") == ["t1"]
    thing = await store.update(thing, parts=[])
    assert await store.ids(Thing, parts="ä") == []
    await store.delete(thing)
    await store.delete((await store.all(Thing))[0])
    assert [k for k in await store.redis.keys("nova:thing*")] == []


async def test_a_stale_copy_changes_nothing(store: Store) -> None:
    thing = await store.create(Thing("t1"))
    await store.update(thing, size=1)
    with pytest.raises(exception.Conflict):
        await store.update(thing, size=2)
    with pytest.raises(exception.Conflict):
        await store.delete(thing)
    assert (await store.get(Thing, "t1")).size == 1


async def test_a_copy_of_a_removed_record_changes_no_later_one_of_its_id(store: Store) -> None:
    old = await store.create(Thing("t1", size=1))
    await store.delete(old)
    await store.create(Thing("t1", size=2))
    with pytest.raises(exception.Conflict):
        await store.update(old, size=3)
    with pytest.raises(exception.Conflict):
        await store.delete(old)
    assert (await store.get(Thing, "t1")).size == 2


async def test_none_removes_a_field(store: Store) -> None:
    thing = await store.create(Thing("t1", nickname="x"))
    await store.update(thing, nickname=None)
    assert (await store.get(Thing, "t1")).nickname is None


async def test_modify_is_tried_again_until_it_holds(store: Store) -> None:
    await store.create(Thing("t1"))
    await asyncio.gather(*(store.modify(Thing, "t1", lambda t: {"size": t.size + 1}) for _ in range(20)))
    assert (await store.get(Thing, "t1")).size == 20


async def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    await store.create(Thing("t2"))
    tx = store.transaction()
    tx.create(Thing("t1"))
    tx.add("count", "things", 1)
    tx.create(Thing("t2"))
    with pytest.raises(exception.Exists) as error:
        await tx.commit()
    assert (error.value.kind, error.value.id) == ("thing", "t2")
    assert await store.get(Thing, "t1") is None
    assert await store.redis.hgetall("nova:count") == {}


async def test_a_pool_gives_each_item_to_one_owner(store: Store) -> None:
    pool = Pool("colors")
    await store.redis.rpush(pool.key, "red", "green", "blue")

    async def take(name: str) -> str | None:
        tx = store.transaction()
        tx.create(Thing(name, color=tx.take(pool, name)))  # type: ignore[arg-type]
        try:
            return (await tx.commit())[0]
        except exception.Exhausted:
            return None
    taken = await asyncio.gather(*(take(f"t{n}") for n in range(5)))
    assert sorted(t for t in taken if t) == ["blue", "green", "red"]
    [red] = await store.find(Thing, color="red")
    for owner in ("somebody else", red.id, red.id):
        tx = store.transaction()
        tx.give(pool, owner, "red")
        await tx.commit()
    assert await store.redis.lrange(pool.key, 0, -1) == [b"red"]


async def test_a_counter_stays_within_its_limit(store: Store) -> None:
    async def claim() -> bool:
        tx = store.transaction()
        tx.add("used", "memory", 2, 5)
        tx.add("used", "memory", 1, 5)
        try:
            await tx.commit()
        except exception.Exhausted:
            return False
        return True
    assert sum(await asyncio.gather(*(claim() for _ in range(5)))) == 1
    assert await store.redis.hget("nova:used", "memory") == b"3"


async def test_members_of_sorted_sets_are_bytes(store: Store) -> None:
    members = ["ä b".encode(), b"a/\xff\x00", b"\\\"quoted\""]
    tx = store.transaction()
    for member in members:
        tx.zadd_lex("nova:z", member)
    await tx.commit()
    assert await store.redis.zrange("nova:z", 0, -1) == sorted(members)
    tx = store.transaction()
    tx.require_empty("nova:z")
    with pytest.raises(exception.Conflict):
        await tx.commit()


async def test_a_list_takes_two_round_trips(store: Store) -> None:
    for n in range(50):
        await store.create(Thing(f"t{n}", owner="ann"))
    before = (await store.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert len(await store.find(Thing, owner="ann")) == 50
    assert (await store.redis.info("commandstats"))["cmdstat_hgetall"]["calls"] == before + 50


async def test_an_outage_is_told_at_once_and_passes() -> None:
    import shutil
    import tempfile
    import time
    from pathlib import Path

    from nova.datastore import open_store
    from tests.conftest import RedisServer, free_port
    directory = Path(tempfile.mkdtemp())
    server = RedisServer(directory, free_port())
    server.start()
    store = open_store(server.url)
    try:
        await store.create(Thing("t1"))
        server.kill()
        began = time.monotonic()
        with pytest.raises(exception.DatastoreUnavailable):
            await store.get(Thing, "t1")
        assert time.monotonic() - began < 2
        server.start()
        assert (await store.get(Thing, "t1")).id == "t1"
    finally:
        server.kill()
        await store.close()
        shutil.rmtree(directory)
