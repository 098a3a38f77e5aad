"""The records of versions: what counts towards limits, what verification finds, lost answers, clocks that go back."""

import dataclasses
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova import exception
from nova.auth import quota
from nova.cloud import verify
from nova.cloud.scrub import Scrubber
from nova.context import Context
from nova.datastore import Store, Transaction
from nova.flags import FLAGS
from nova.objectstore import buckets, description, holdings, objects, versions
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, object_id


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> Iterator[Files]:
    files = Files(str(tmp_path))
    yield files
    files.close()


@pytest.fixture(name="bucket")
async def bucket_fixture(store: Store, files: Files) -> Bucket:
    made = await buckets.create(store, files, "bucket", "one", "ann")
    await buckets.change(store, files, made, lambda _: {"versioning": versions.ENABLED})
    return await buckets.get(store, "bucket")


def an_object(key: str = "k", size: int = 1) -> Object:
    """An object whose file is not looked at."""
    id = object_id("bucket", key)
    return Object(id, bucket="bucket", key=key, project_id="one", user_id="ann", size=size, md5="m", sha256="s",
                  etag="m", modified=0.0, file=f"00/o-{id}-{uuid.uuid4().hex}")


async def used(store: Store) -> int:
    """Bytes that count, which are those of the records."""
    assert await quota.recount(store, [holdings.holdings]) == []
    counted = await store.redis.hget("nova:usage:project:one", quota.OBJECT_GB)
    return int(counted or 0)


async def test_every_version_counts_and_markers_do_not(store: Store, files: Files, bucket: Bucket) -> None:
    made = [await objects.put(store, files, bucket, an_object(size=size)) for size in (1, 20, 300)]
    assert await used(store) == 321
    await objects.delete(store, files, bucket, "k")
    assert await used(store) == 321
    await objects.delete(store, files, bucket, "k", made[1].version_id)
    assert await used(store) == 301
    await buckets.change(store, files, bucket, lambda _: {"versioning": versions.SUSPENDED})
    for size in (4000, 50000):
        await objects.put(store, files, bucket, an_object(size=size))
    assert await used(store) == 50301
    await objects.delete(store, files, bucket, "k")
    assert await used(store) == 301


async def test_versions_end_at_the_limit(store: Store, files: Files, bucket: Bucket) -> None:
    FLAGS.project_object_gb = 1
    await objects.put(store, files, bucket, an_object(size=1 << 29))
    await objects.put(store, files, bucket, an_object(size=1 << 29))
    with pytest.raises(exception.QuotaExceeded):
        await objects.put(store, files, bucket, an_object(size=1))
    assert (await objects.open_object(store, "bucket", "k")).size == 1 << 29
    await objects.delete(store, files, bucket, "k")  # a marker needs no room


async def test_order_does_not_depend_on_the_clock(store: Store, files: Files, bucket: Bucket, monkeypatch) -> None:
    made = []
    for seconds in (1000, 10, 10, 500):
        monkeypatch.setattr(objects.time, "time_ns", lambda seconds=seconds: seconds * 10**9)
        made.append(await objects.put(store, files, bucket, objects.planned(bucket, an_object())))
    assert [v.sequence - made[0].sequence for v in made] == [0, 1, 2, 3]
    older = await objects.older_versions(store, bucket, "k", 10)
    assert [v.version_id for v in older] == [v.version_id for v in reversed(made[:-1])]


@pytest.mark.parametrize("versioning", ["", versions.ENABLED, versions.SUSPENDED])
async def test_a_put_syncs_its_file_and_its_directory_and_nothing_else(store: Store, files: Files, bucket: Bucket,
                                                                       versioning: str, monkeypatch) -> None:
    await buckets.change(store, files, bucket, lambda _: {"versioning": versioning})
    bucket = await buckets.get(store, "bucket")
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        real(fd)
    for _ in range(3):
        monkeypatch.setattr(os, "fsync", fsync)
        with files.new(f"o-{object_id('bucket', 'k')}") as writer:
            new = objects.planned(bucket, dataclasses.replace(an_object(), file=writer.name))
            synced.clear()  # the directory's own name is new the first time
            writer.publish(new)
        made = await objects.put(store, files, bucket, new)
        assert synced == [False, True] and description.same(files.description(made.file), made)


async def test_what_was_planned_otherwise_is_described_before_it_is_there(store: Store, files: Files) -> None:
    """The bucket got versions, and the key another version, while the object was received."""
    before = await buckets.create(store, files, "bucket", "one", "ann")

    def publish() -> Object:
        with files.new(f"o-{object_id('bucket', 'k')}") as writer:
            new = objects.planned(before, dataclasses.replace(an_object(), file=writer.name))
            writer.publish(new)
            return new
    late, early = publish(), publish()
    await buckets.change(store, files, before, lambda _: {"versioning": versions.ENABLED})
    for new in (early, late):
        made = await objects.put(store, files, before, new)
        assert made.version_id and made != new and description.same(files.description(made.file), made)
    assert made.sequence > early.sequence > late.sequence


async def test_a_lost_answer_makes_no_second_version(store: Store, files: Files, bucket: Bucket, monkeypatch) -> None:
    """Also when somebody else has put another version before the same transaction is tried again."""
    new, real = an_object(), Transaction.commit

    async def commit_twice(tx: Transaction) -> list[str]:
        monkeypatch.setattr(Transaction, "commit", real)
        await real(tx)
        await objects.put(store, files, bucket, an_object())
        return await real(tx)
    monkeypatch.setattr(Transaction, "commit", commit_twice)
    made = await objects.put(store, files, bucket, new)
    assert made.file == new.file and not versions.is_current(made)
    assert len(await objects.older_versions(store, bucket, "k", 10)) == 1 and await used(store) == 2


async def test_a_put_that_began_before_versioning_replaces_nothing(store: Store, files: Files) -> None:
    before = await buckets.create(store, files, "bucket", "one", "ann")
    old = await objects.put(store, files, before, an_object())
    await buckets.change(store, files, before, lambda _: {"versioning": versions.ENABLED})
    new = await objects.put(store, files, before, an_object())
    assert new.version_id and (await objects.open_object(store, "bucket", "k", "null")).file == old.file


async def test_nothing_is_put_into_another_bucket_of_the_same_name(store: Store, files: Files, bucket: Bucket) -> None:
    await buckets.delete(store, files, bucket)
    await buckets.create(store, files, "bucket", "two", "bob")
    for change in (objects.put(store, files, bucket, an_object()), objects.delete(store, files, bucket, "k")):
        with pytest.raises(exception.NoSuchBucket):
            await change


async def test_tags_go_with_a_version(store: Store, files: Files, bucket: Bucket) -> None:
    first = await objects.put(store, files, bucket, an_object())
    second = await objects.put(store, files, bucket, an_object())
    await objects.change(store, files, "bucket", "k", first.version_id, lambda found: {"tags": {"n": "1"}})
    await objects.change(store, files, "bucket", "k", None, lambda found: {"tags": {**found.tags, "n": "2"}})
    assert (await objects.open_object(store, "bucket", "k", second.version_id)).tags == {"n": "2"}
    await objects.delete(store, files, bucket, "k", second.version_id)
    assert (await objects.open_object(store, "bucket", "k")).tags == {"n": "1"}


async def test_verification_knows_versions(store: Store, files: Files, bucket: Bucket) -> None:
    for key in ("k", "l"):
        for _ in range(3):
            made = await objects.put(store, files, bucket, an_object(key))
    await objects.delete(store, files, bucket, "k")

    async def found() -> list[verify.Difference]:
        return [difference async for difference in verify._buckets(store, [bucket])]
    assert await found() == []
    listed = set(await store.redis.zrange(bucket.versions_key, 0, -1))
    await store.redis.zadd(bucket.keys_key, {b"k": 0})  # its current version is a marker
    await store.redis.zadd(bucket.versions_key, {versions.live_member(b"gone")[:-32] + b"f" * 32: 0})
    differences = await found()
    assert [d.about for d in differences] == ["bucket/k", "bucket/gone"]
    await verify.repair(differences)
    assert await found() == [] and set(await store.redis.zrange(bucket.versions_key, 0, -1)) == listed
    assert await store.redis.zrange(bucket.keys_key, 0, -1) == [b"l"] and made


async def test_scrubbing_removes_all_versions(store: Store, files: Files, bucket: Bucket, tmp_path: Path) -> None:
    FLAGS.objects_path = str(tmp_path)
    for key in ("k", "l"):
        for _ in range(3):
            await objects.put(store, files, bucket, an_object(key))
        await objects.delete(store, files, bucket, key)
    await objects.put(store, files, bucket, an_object("l"))
    await Scrubber(store, None, None).delete_buckets(  # type: ignore[arg-type]
        Context(user_id="ann", project_id="one"), ["bucket"])
    assert await store.get(Bucket, "bucket") is None and await used(store) == 0
    assert [key async for key in store.redis.scan_iter("nova:*bucket*")] == []
    assert [key async for key in store.redis.scan_iter("nova:object:*")] == []
