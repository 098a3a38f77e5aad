"""Limits: never exceeded by requests at the same time, never leaked by those that fail, and told with the figures."""

import asyncio
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from nova import datastore, events, exception
from nova.auth import quota
from nova.compute import models as compute
from nova.compute.types import GIB
from nova.datastore import Store
from nova.flags import FLAGS
from nova.objectstore import buckets, holdings, multipart, objects, sweep
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, Part, Upload, object_id, part_id
from tests.conftest import wait_until
from tests.functional.cloud import Cloud, at_once, cloud, states, terminate_all
from tests.functional.s3 import own_fixture, start, stop  # noqa: F401  (a fixture)

KINDS = [compute.holdings, holdings.holdings]


# -- instances --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def the_cloud(directory_driver: str) -> Iterator[Cloud]:
    """A cloud of records in which a project may have 50 instances, and 4 of the large ones."""
    with cloud("--compute_driver=fake", "--converge_interval=2", "--project_instances=50",
               "--project_instances_of_type=m1.large=4,m1.xlarge=-1", directory=directory_driver) as made:
        made.start()
        assert made.machine_image
        yield made


@pytest.fixture
def limited(the_cloud: Cloud) -> Iterator[Cloud]:
    """The cloud, empty; afterwards nothing is in use, and the counters say what is there."""
    yield the_cloud
    terminate_all(the_cloud.ec2)
    override(the_cloud, "user:admin", instances=None)
    assert in_use(the_cloud) == {}
    assert differences(the_cloud) == []


def in_use(made: Cloud) -> dict[str, int]:
    """The counters of instances that are not 0, of user and project alike."""
    async def read() -> dict[str, int]:
        async with made.store() as store:
            found = {f.name: int(f.used) for f in await quota.usage(store, "admin") if f.used}
            assert found == {f.name: int(f.used) for f in await quota.of_user(store, "admin") if f.used}
            return {name: used for name, used in found.items() if name != quota.OBJECT_GB}
    return asyncio.run(read())


def differences(made: Cloud) -> list[quota.Difference]:
    async def count() -> list[quota.Difference]:
        async with made.store() as store:
            return await quota.recount(store, KINDS)
    return asyncio.run(count())


def override(made: Cloud, account: str, **limits: int | None) -> None:
    async def store_it() -> None:
        async with made.store() as store:
            await quota.override(store, None, account, **limits)
    asyncio.run(store_it())


def runner(made: Cloud, least: int = 1, most: int = 1, size: str = "m1.tiny", **more: Any) -> Callable[[], Any]:
    """A call of RunInstances; gives how many instances it got, or the error's code and text."""
    ec2, image = made.ec2, more.pop("image", made.machine_image)

    def call() -> Any:
        try:
            return len(ec2.run_instances(ImageId=image, InstanceType=size, MinCount=least, MaxCount=most,
                                         **more)["Instances"])
        except botocore.exceptions.ClientError as error:
            return error.response["Error"]["Code"], error.response["Error"]["Message"]
    return call


@pytest.mark.both_directories
def test_200_at_once_get_exactly_what_is_allowed(limited: Cloud) -> None:
    answers = at_once([runner(limited)] * 200)
    assert Counter(a if a == 1 else a[0] for a in answers) == {1: 50, "InstanceLimitExceeded": 150}
    assert {a[1] for a in answers if a != 1} == {
        "You have requested 1 more instances than the limit of 50 of project admin allows; 50 are in use."}
    assert len(states(limited.ec2)) == 50
    assert in_use(limited) == {"instances": 50, "instances:m1.tiny": 50}
    terminate_all(limited.ec2)
    assert in_use(limited) == {}


def test_as_many_as_are_allowed_but_no_fewer_than_asked_for(limited: Cloud) -> None:
    assert runner(limited, 48, 48)() == 48
    assert runner(limited, 7, 7)() == (
        "InstanceLimitExceeded",
        "You have requested 5 more instances than the limit of 50 of project admin allows; 48 are in use.")
    assert runner(limited, 1, 10)() == 2
    assert runner(limited, 1, 10)()[0] == "InstanceLimitExceeded"
    assert in_use(limited) == {"instances": 50, "instances:m1.tiny": 50}


def test_parallel_requests_for_many(limited: Cloud) -> None:
    answers = at_once([runner(limited, 3, 7)] * 20)
    served = [a for a in answers if isinstance(a, int)]
    assert sum(served) == len(states(limited.ec2)) == in_use(limited)["instances"] > 47
    assert {a[0] for a in answers if not isinstance(a, int)} == {"InstanceLimitExceeded"}


def test_each_type_has_a_limit(limited: Cloud) -> None:
    answers = at_once([runner(limited, size="m1.large")] * 10)
    assert Counter(a if a == 1 else a[0] for a in answers) == {1: 4, "InstanceLimitExceeded": 6}
    assert "m1.large instances" in next(a[1] for a in answers if a != 1)
    assert runner(limited, 1, 5, size="m1.xlarge")() == 5
    assert in_use(limited) == {"instances": 9, "instances:m1.large": 4, "instances:m1.xlarge": 5}


def test_a_user_has_a_limit_and_it_can_be_changed(limited: Cloud) -> None:
    override(limited, "user:admin", instances=3)
    answers = at_once([runner(limited)] * 10)
    assert Counter(a if a == 1 else a[0] for a in answers) == {1: 3, "InstanceLimitExceeded": 7}
    assert "of user admin" in next(a[1] for a in answers if a != 1)
    override(limited, "user:admin", instances=1)  # below what is there: that stays
    assert len(states(limited.ec2)) == 3
    assert "2 more" in runner(limited)()[1] or "3 more" in runner(limited)()[1]
    override(limited, "user:admin", instances=-1)
    assert runner(limited)() == 1


def test_what_fails_counts_for_nothing(limited: Cloud) -> None:
    huge = {"KeyName": "no-such-key"}
    calls = [runner(limited, image="ami-0badcafe"), runner(limited, **huge), runner(limited, 51, 60),
             runner(limited, DryRun=True), runner(limited, SecurityGroups=["none"])]
    answers = at_once(calls * 5)
    assert not [a for a in answers if isinstance(a, int)]
    assert in_use(limited) == {}


def test_one_token_counts_once(limited: Cloud) -> None:
    override(limited, "user:admin", instances=1)
    answers = at_once([runner(limited, ClientToken="the-same")] * 10)
    assert set(answers) == {1}
    assert in_use(limited) == {"instances": 1, "instances:m1.tiny": 1}


@pytest.mark.parametrize("point", ["cloud.run.recorded", "compute.launch.spawned", "compute.terminate.begin",
                                   "compute.terminate.recorded"])
def test_a_crash_leaves_nothing_counted_twice(point: str) -> None:
    with cloud("--compute_driver=fake", "--converge_interval=1") as made:
        made.start()
        assert made.machine_image
        made.stop()
        made.start(f"--failpoint={point}")
        try:
            made.ec2.run_instances(ImageId=made.machine_image, InstanceType="m1.tiny", MinCount=3, MaxCount=3)
            if "terminate" in point:
                made.ec2.terminate_instances(InstanceIds=list(states(made.ec2)))
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            pass  # it died with the request
        made.wait_dead()
        made.start()
        assert differences(made) == []
        assert in_use(made).get("instances", 0) == len(states(made.ec2))
        terminate_all(made.ec2)
        assert in_use(made) == {} and differences(made) == []


# -- object storage ---------------------------------------------------------------------------------------------------

ONE = ("one", "ann")


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> Iterator[Files]:
    files = Files(str(tmp_path))
    yield files
    files.close()


async def used(store: Store, project: str = "one") -> int:
    """Bytes of object storage that count for a project."""
    return round(next(f.used for f in await quota.usage(store, project) if f.name == quota.OBJECT_GB) * GIB)


_numbers = itertools.count()


def an_object(bucket: Bucket, key: str, size: int) -> Object:
    """An object whose record says how large it is; its file is not looked at."""
    return Object(object_id(bucket.id, key), bucket=bucket.id, key=key, project_id=bucket.project_id,
                  user_id=bucket.user_id, file=f"00/file-{next(_numbers)}", size=size, md5="m", sha256="s", etag="m",
                  modified=0.0)


async def test_a_full_store(store: Store, files: Files) -> None:
    FLAGS.project_object_gb = 2
    bucket = await buckets.create(store, files, "bucket", *ONE)
    await objects.put(store, files, bucket, an_object(bucket, "a", 2 * GIB - 10))
    with pytest.raises(exception.QuotaExceeded) as caught:
        await objects.put(store, files, bucket, an_object(bucket, "b", GIB))
    assert (caught.value.code, caught.value.status) == ("QuotaExceeded", 403)
    assert caught.value.message == ("You have requested 1 more GiB of object storage than the limit of 2 of "
                                    "project one allows; 2 are in use.")
    await objects.put(store, files, bucket, an_object(bucket, "b", 10))
    await objects.put(store, files, bucket, an_object(bucket, "a", GIB))  # smaller than what it replaces
    await objects.put(store, files, bucket, an_object(bucket, "c", GIB - 10))
    assert await used(store) == 2 * GIB
    FLAGS.project_object_gb = 1
    await objects.put(store, files, bucket, an_object(bucket, "c", 5))  # what gets smaller is always welcome
    await objects.delete(store, files, bucket, "a")
    assert await used(store) == 15
    assert await quota.recount(store, KINDS) == []


async def test_puts_at_the_same_time_share_what_is_left(store: Store, files: Files) -> None:
    FLAGS.user_object_gb = 10
    places = [await buckets.create(store, files, f"bucket-{n}", f"p{n}", "ann") for n in range(3)]
    answers = await asyncio.gather(*(objects.put(store, files, places[n % 3], an_object(places[n % 3], f"k{n}", GIB))
                                     for n in range(30)), return_exceptions=True)
    assert Counter(type(a) for a in answers) == {Object: 10, exception.QuotaExceeded: 20}
    assert sum([await used(store, f"p{n}") for n in range(3)]) == 10 * GIB
    assert await quota.recount(store, KINDS) == []


async def test_bytes_are_exact_under_overwriting_and_deleting(store: Store, files: Files) -> None:
    """Few keys, many hands; the counter is the sum of what is there in the end."""
    bucket = await buckets.create(store, files, "bucket", *ONE)
    dice = random.Random(7)

    async def hand(number: int) -> None:
        for _ in range(15):
            key = f"k{dice.randrange(2)}"
            if dice.random() < 0.4:
                await objects.delete(store, files, bucket, key)
            else:
                await objects.put(store, files, bucket, an_object(bucket, key, dice.randrange(1, 10**6)))
    await asyncio.gather(*map(hand, range(12)))
    there = await objects.read_many(store, bucket, [b"k0", b"k1"])
    assert await used(store) == sum(o.size for o in there)
    assert await quota.recount(store, KINDS) == []
    for key in ("k0", "k1"):
        await objects.delete(store, files, bucket, key)
    assert await used(store) == 0


async def upload_of(store: Store, files: Files, bucket: Bucket, key: str = "big") -> Upload:
    upload = Upload(multipart.new_id(), bucket=bucket.id, key=key, project_id=bucket.project_id,
                    user_id=bucket.user_id, initiated=0.0)
    await multipart.create(store, files, bucket, upload)
    return await multipart.get(store, bucket, key, upload.id)


async def put_part(store: Store, files: Files, upload: Upload, number: int, data: bytes) -> None:
    def write() -> Part:
        with files.new(f"p-{part_id(upload.id, number)}") as writer:
            writer.write(data)
            part = multipart.new_part(upload, number, writer.name, len(data), hashlib.md5(data).hexdigest(), {})
            writer.publish(part)
            return part
    part = await asyncio.to_thread(write)
    await multipart.put_part(store, files, upload, part)


async def test_parts_count_until_the_upload_is_over(store: Store, files: Files) -> None:
    bucket = await buckets.create(store, files, "bucket", *ONE)
    first, second = await upload_of(store, files, bucket), await upload_of(store, files, bucket, "other")
    for upload in (first, second):
        await put_part(store, files, upload, 1, b"x" * 100)
        await put_part(store, files, upload, 1, b"x" * 70)
        await put_part(store, files, upload, 2, b"x" * 30)
    assert await used(store) == 200
    chosen = (await multipart.parts_of(store, first))[:1]
    assert (await multipart.complete(store, files, bucket, first, chosen, {})).size == 70
    assert await used(store) == 170
    await multipart.abort(store, files, bucket, second)
    assert await used(store) == 70
    assert await quota.recount(store, KINDS) == []
    assert len(list(files.names(-1))) == 1


async def test_an_upload_that_is_as_large_as_the_limit_can_be_completed(store: Store, files: Files) -> None:
    """Its parts count for it until then: it need not fit twice."""
    bucket = await buckets.create(store, files, "bucket", *ONE)
    upload = await upload_of(store, files, bucket)
    await put_part(store, files, upload, 1, b"x" * 100)
    await objects.put(store, files, bucket, an_object(bucket, "rest", GIB - 100))
    await quota.override(store, None, "project:one", object_gb=1)
    with pytest.raises(exception.QuotaExceeded):
        await put_part(store, files, upload, 2, b"x")
    await multipart.complete(store, files, bucket, upload, await multipart.parts_of(store, upload), {})
    assert await used(store) == GIB


async def test_a_part_that_came_too_late_is_given_back_by_the_sweep(store: Store, files: Files) -> None:
    bucket = await buckets.create(store, files, "bucket", *ONE)
    upload = await upload_of(store, files, bucket)
    await put_part(store, files, upload, 1, b"x" * 100)
    await store.delete(upload)  # as if the upload had ended between the look at its parts and the commit
    FLAGS.objects_orphan_age = 0
    async with asyncio.timeout(5):
        while not await sweep.sweep(store, files):
            await asyncio.sleep(0.01)  # the file has to be older than now
    assert await used(store) == 0 and await quota.recount(store, KINDS) == []


def test_over_http(own) -> None:  # noqa: F811
    own_redis, directory = own
    server = start(own_redis.url, directory, "--project_object_gb=0")
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    calls = [lambda: s3.put_object(Bucket="bucket", Key="k", Body=b"x"),
             lambda: s3.put_object(Bucket="bucket", Key="k", Body=b"x" * (5 << 20))]
    for call in calls:
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            call()
        assert caught.value.response["Error"]["Code"] == "QuotaExceeded"
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert "limit of 0 of project one" in caught.value.response["Error"]["Message"]
    s3.put_object(Bucket="bucket", Key="empty", Body=b"")
    wait_until(lambda: len(server.files()) == 1, 5)  # nothing is left of what was refused
    stop(server)


@pytest.mark.parametrize("point", ["objectstore.put.published", "objectstore.put.committed",
                                   "objectstore.delete.committed", "objectstore.complete.committed"])
async def test_crashes_of_the_object_store(own, point: str) -> None:  # noqa: F811
    own_redis, directory = own
    server = start(own_redis.url, directory)
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="k", Body=b"x" * 1000)
    stop(server)
    server = start(own_redis.url, directory, f"--failpoint={point}")
    s3 = server.client(retries={"max_attempts": 0, "mode": "legacy"})

    def change() -> None:
        upload = s3.create_multipart_upload(Bucket="bucket", Key="u")["UploadId"]
        etag = s3.upload_part(Bucket="bucket", Key="u", UploadId=upload, PartNumber=1, Body=b"y" * 300)["ETag"]
        if "complete" in point:
            s3.complete_multipart_upload(Bucket="bucket", Key="u", UploadId=upload,
                                         MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
        elif "delete" in point:
            s3.delete_object(Bucket="bucket", Key="k")
        s3.put_object(Bucket="bucket", Key="k", Body=b"x" * 500)
    with pytest.raises(botocore.exceptions.BotoCoreError):
        await asyncio.to_thread(change)
    server.process.wait(10)
    store = datastore.open_store(own_redis.url)
    assert await quota.recount(store, KINDS) == []
    sizes = {"objectstore.put.published": 1300, "objectstore.put.committed": 800,
             "objectstore.delete.committed": 300, "objectstore.complete.committed": 1300}
    assert await used(store) == sizes[point]
    await store.close()


# -- overrides and figures --------------------------------------------------------------------------------------------

async def test_overrides_are_checked_stored_and_told(store: Store) -> None:
    await quota.override(store, None, "project:one", instances=7, **{"instances:m1.tiny": 2})
    await quota.override(store, None, "project:one", instances=None, object_gb=-1)
    found = {f.name: f.limit for f in await quota.usage(store, "one")}
    assert (found["instances"], found["instances:m1.tiny"], found["object_gb"]) == (FLAGS.project_instances, 2, None)
    for wrong in ({"instancs": 1}, {"instances": -2}, {"instances:m9.huge": 1}, {"instances": 10**10}):
        with pytest.raises(exception.InvalidParameterValue):
            await quota.override(store, None, "project:one", **wrong)
    told = await events.read(store, what="quota.set", target="project:one")
    assert [e.details["limits"] for e in told] == [
        {"instances": None, "object_gb": -1}, {"instances": 7, "instances:m1.tiny": 2}]


async def test_overrides_at_the_same_time_are_all_kept(store: Store) -> None:
    await asyncio.gather(*(quota.override(store, None, "user:ann", **{name: n}) for n, name in enumerate(quota.NAMES)))
    [found] = await store.get_many(quota.Quota, ["user:ann"])
    assert found.values == {name: n for n, name in enumerate(quota.NAMES)}
    tx = store.transaction()
    await quota.forget(tx, store, "user:ann")
    await tx.commit()
    assert await store.get(quota.Quota, "user:ann") is None


async def test_a_counter_that_is_wrong_is_found_and_repaired(store: Store, files: Files) -> None:
    bucket = await buckets.create(store, files, "bucket", *ONE)
    await objects.put(store, files, bucket, an_object(bucket, "k", 100))
    tx = store.transaction()
    tx.add("usage:project:one", quota.OBJECT_GB, 11)
    tx.add("usage:user:gone", quota.INSTANCES, 3)
    await tx.commit()
    wrong = [quota.Difference("project:one", quota.OBJECT_GB, 111, 100),
             quota.Difference("user:gone", quota.INSTANCES, 3, 0)]
    assert await quota.recount(store, KINDS) == wrong
    assert await quota.recount(store, KINDS, repair=True) == wrong
    assert await quota.recount(store, KINDS) == [] and await used(store) == 100
