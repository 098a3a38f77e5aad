"""The object store is killed at every failpoint of every operation: the old or the new state is there afterwards.

Which operation comes by which failpoint is found by doing each once; one that none comes by fails the last test.
After each crash the state is compared: as another server has it, after Redis has been emptied and rebuilt from the
disk, and after the sweep.  The sweep is done here while nothing is being put: with an age of 0 it takes the file of an
object whose record is just being made.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from nova import datastore, failpoint
from nova.auth import quota
from nova.auth.manager import AuthManager
from nova.flags import FLAGS
from nova.objectstore import holdings, reindex, sweep
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, Part, Upload
from nova.objectstore.service import ObjectStoreService
from tests.conftest import RedisServer, free_port
from tests.functional.s3 import Server, add_users, start

#: what a bucket has by key: size, MD5, metadata
State = dict[str, Any]

#: what a client of a server that dies sees
_DEAD = (botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError)

OLD, NEW = b"old" * 1000, b"new" * 2000
LAST = b"last"
#: too much metadata for a file's attribute beside everything else: it is described beside the file
LONG = {"long": "x" * 1900}


class Scene:
    """A bucket with objects and an upload of two parts, an empty bucket, one that keeps versions, and one that did, as
    they are before each operation.

    :param url: of the server's Redis
    :param directory: of its files
    """

    def __init__(self, s3: Any, url: str, directory: Path):
        s3.create_bucket(Bucket="here")
        s3.create_bucket(Bucket="empty")
        s3.put_object(Bucket="here", Key="k", Body=OLD, Metadata={"a": "old"})
        s3.put_object(Bucket="here", Key="source", Body=NEW, Metadata={"a": "source"})
        s3.put_object(Bucket="here", Key="ahead", Body=OLD)
        in_loop(url, functools.partial(_put_ahead, str(directory / "objects")))
        for bucket in ("keeps", "kept"):
            s3.create_bucket(Bucket=bucket)
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
            s3.put_object(Bucket=bucket, Key="k", Body=OLD)
            s3.put_object(Bucket=bucket, Key="k", Body=NEW)
        s3.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Suspended"})
        s3.put_object(Bucket="kept", Key="k", Body=LAST)
        self.upload = s3.create_multipart_upload(Bucket="here", Key="k")["UploadId"]
        self.parts = [{"PartNumber": n, "ETag": s3.upload_part(
            Bucket="here", Key="k", UploadId=self.upload, PartNumber=n, Body=LAST)["ETag"]} for n in (1, 2)]


def _put(s3: Any, scene: Scene) -> None:
    s3.put_object(Bucket="here", Key="k", Body=NEW, Metadata={"b": "new"})


def _put_long(s3: Any, scene: Scene) -> None:
    s3.put_object(Bucket="here", Key="k/long" + "n" * 900, Body=NEW, Metadata=LONG, ContentDisposition="y" * 900)


def _copy(s3: Any, scene: Scene) -> None:
    s3.copy_object(Bucket="here", Key="k", CopySource={"Bucket": "here", "Key": "source"}, Metadata={"c": "copy"},
                   MetadataDirective="REPLACE")


def _delete(s3: Any, scene: Scene) -> None:
    s3.delete_object(Bucket="here", Key="k")


def _put_later(s3: Any, scene: Scene) -> None:
    s3.put_object(Bucket="here", Key="ahead", Body=NEW)


def _put_version(s3: Any, scene: Scene) -> None:
    s3.put_object(Bucket="keeps", Key="k", Body=LAST)


def _put_null(s3: Any, scene: Scene) -> None:
    s3.put_object(Bucket="kept", Key="k", Body=OLD)


def _mark(s3: Any, scene: Scene) -> None:
    s3.delete_object(Bucket="keeps", Key="k")


def _mark_null(s3: Any, scene: Scene) -> None:
    s3.delete_object(Bucket="kept", Key="k")


def _delete_version(s3: Any, scene: Scene) -> None:
    newest = s3.list_object_versions(Bucket="keeps")["Versions"][0]["VersionId"]
    s3.delete_object(Bucket="keeps", Key="k", VersionId=newest)


def _tag(s3: Any, scene: Scene) -> None:
    s3.put_object_tagging(Bucket="here", Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})


def _create_bucket(s3: Any, scene: Scene) -> None:
    s3.create_bucket(Bucket="another")


def _delete_bucket(s3: Any, scene: Scene) -> None:
    s3.delete_bucket(Bucket="empty")


def _begin(s3: Any, scene: Scene) -> None:
    s3.create_multipart_upload(Bucket="here", Key="other")


def _part(s3: Any, scene: Scene) -> None:
    s3.upload_part(Bucket="here", Key="k", UploadId=scene.upload, PartNumber=2, Body=NEW)


def _complete(s3: Any, scene: Scene) -> None:
    s3.complete_multipart_upload(Bucket="here", Key="k", UploadId=scene.upload,
                                 MultipartUpload={"Parts": scene.parts[1:]})  # the other one is needless


def _abort(s3: Any, scene: Scene) -> None:
    s3.abort_multipart_upload(Bucket="here", Key="k", UploadId=scene.upload)


OPERATIONS: dict[str, Callable[[Any, Scene], None]] = {
    "put": _put, "put with long metadata": _put_long, "put with a clock put back": _put_later, "copy": _copy,
    "delete": _delete, "put a version": _put_version, "put a null version": _put_null, "mark": _mark,
    "mark a null version": _mark_null, "delete a version": _delete_version, "tag": _tag, "part": _part,
    "complete": _complete, "abort": _abort, "begin an upload": _begin, "create bucket": _create_bucket,
    "delete bucket": _delete_bucket,
}


def in_loop(url: str, function: Callable[[datastore.Store], Any]) -> Any:
    """Run a coroutine function on the store, in a thread: the test may be in a loop."""
    async def call() -> Any:
        store = datastore.open_store(url)
        try:
            return await function(store)
        finally:
            await store.close()
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, call()).result()


async def _put_ahead(root: str, store: datastore.Store) -> None:
    """The object was put when the clock was an hour ahead."""
    [found] = [record async for record in store.scan(Object) if record.key == "ahead"]
    files = Files(root)
    try:
        files.describe(await store.update(found, sequence=found.sequence + 3600 * 10**6, revision=found.revision + 1))
    finally:
        files.close()


def state(s3: Any) -> State:
    """All that a client sees, with every byte read."""
    seen: State = {}
    for bucket in (b["Name"] for b in s3.list_buckets()["Buckets"]):
        seen[bucket] = there = {}
        for item in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
            answer = s3.get_object(Bucket=bucket, Key=item["Key"])
            data = answer["Body"].read()
            assert len(data) == item["Size"] and answer["ETag"] == item["ETag"]
            if "-" not in answer["ETag"]:
                assert answer["ETag"].strip('"') == hashlib.md5(data).hexdigest()
            tags = s3.get_object_tagging(Bucket=bucket, Key=item["Key"])["TagSet"]
            there[item["Key"]] = (hashlib.sha256(data).hexdigest(), answer["Metadata"], tags)
        there["versions"] = _versions(s3, bucket)
        there["versioning"] = s3.get_bucket_versioning(Bucket=bucket).get("Status")
        for upload in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            parts = s3.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", [])
            there[upload["UploadId"]] = [(p["PartNumber"], p["ETag"], p["Size"]) for p in parts]
    return seen


def _versions(s3: Any, bucket: str) -> tuple[Any, ...]:
    """All versions and delete markers, the newest of a key first; their ids, which are new each time, left out."""
    found = s3.list_object_versions(Bucket=bucket)
    versions = [(v["Key"], v["VersionId"] == "null", v["IsLatest"], hashlib.sha256(s3.get_object(
        Bucket=bucket, Key=v["Key"], VersionId=v["VersionId"])["Body"].read()).hexdigest())
        for v in found.get("Versions", [])]
    markers = [(m["Key"], m["VersionId"] == "null", m["IsLatest"]) for m in found.get("DeleteMarkers", [])]
    return versions, markers


def without_new_uploads(seen: State, scene: Scene) -> State:
    """Uploads have new ids each time: only that of the scene is compared, under a name of its own."""
    return {bucket: {"the upload" if key == scene.upload else key: value for key, value in objects.items()
                     if not isinstance(value, list) or key == scene.upload}
            for bucket, objects in seen.items()}


def check_consistent(url: str, directory: Path) -> None:
    """No file without a record, no record without a file; the counters are what is there."""
    async def check(store: datastore.Store) -> None:
        named = {record.file for cls in (Object, Part) for record in [r async for r in store.scan(cls)]}
        root = directory / "objects"
        files = {str(p.relative_to(root)) for p in root.glob("??/*")}
        assert {f for f in files if not f.endswith(".meta")} == named
        assert {f.removesuffix(".meta") for f in files if f.endswith(".meta")} <= named
        for name, cls in (("buckets", Bucket), ("uploads", Upload)):
            ids = {kind.removeprefix(f"nova:{name[:-1]}:") for kind in
                   [k.decode() async for k in store.redis.scan_iter(f"nova:{name[:-1]}:*")]}
            assert {p.name for p in (root / name).iterdir()} == {f"{id}.json" for id in ids}, cls
        assert await quota.recount(store, [holdings.holdings]) == []
    in_loop(url, check)


def wipe(url: str) -> None:
    """Remove everything from the object store, as far as Redis knows it."""
    async def run(store: datastore.Store) -> None:
        keys = [key async for key in store.redis.scan_iter("nova:*")
                if key.startswith((b"nova:bucket", b"nova:object", b"nova:upload", b"nova:part", b"nova:usage"))]
        if keys:
            await store.redis.delete(*keys)
    in_loop(url, run)


def rebuild(url: str, directory: Path) -> reindex.Report:
    """Reindex, in a process other than the server's."""
    async def run(store: datastore.Store) -> reindex.Report:
        files = Files(str(directory / "objects"))
        try:
            return await reindex.reindex(store, files, pause=0)
        finally:
            files.close()
    return in_loop(url, run)


@pytest.fixture(name="place", scope="module")
def place_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, Path]]:
    """A Redis with users, and a directory."""
    directory = tmp_path_factory.mktemp("crashes")
    own_redis = RedisServer(directory, free_port())
    own_redis.start()
    add_users(own_redis.url, str(directory / "ca"))
    yield own_redis, directory
    own_redis.kill()


@dataclass(frozen=True)
class Dry:
    """An operation that nobody disturbed: the failpoints that it came by, the state before and after it."""

    points: list[str]
    before: State
    after: State


@pytest.fixture(name="dry", scope="module")
def dry_fixture(place: tuple[RedisServer, Path]) -> dict[str, Dry]:
    """All operations."""
    own_redis, directory = place
    root = directory / "dry"
    FLAGS.ca_path, FLAGS.objects_path = str(directory / "ca"), str(root / "objects")
    seen: list[str] = []
    patch = pytest.MonkeyPatch()
    patch.setattr(failpoint, "hit", seen.append)
    found: dict[str, Dry] = {}

    def do(s3: Any, name: str) -> Dry:
        scene = Scene(s3, own_redis.url, root)
        before = without_new_uploads(state(s3), scene)
        seen.clear()
        OPERATIONS[name](s3, scene)
        points = list(dict.fromkeys(seen))
        after = without_new_uploads(state(s3), scene)
        clear(own_redis.url, root)
        return Dry(points, before, after)

    async def run(store: datastore.Store) -> None:
        service = ObjectStoreService(store, AuthManager(store), port=0, address="127.0.0.1")
        await service.start()
        s3 = Server(None, service.port, root, directory).client()  # type: ignore[arg-type]
        for name in OPERATIONS:
            found[name] = await asyncio.to_thread(do, s3, name)
        await service.stop()
    try:
        in_loop(own_redis.url, run)
    finally:
        patch.undo()
        FLAGS.objects_path = ""
    return found


def clear(url: str, directory: Path) -> None:
    """Remove everything from Redis and from the disk."""
    wipe(url)
    for path in (directory / "objects").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.fixture(name="server", scope="module")
def server_fixture(place: tuple[RedisServer, Path], dry: dict[str, Dry]) -> Iterator[Server]:
    """A server that lives, on the same Redis and files as those that are killed."""
    own_redis, directory = place
    server = start(own_redis.url, directory)
    yield server
    server.process.kill()
    server.process.wait()


def swept(url: str, directory: Path) -> None:
    """Remove what is needless, however young it is."""
    async def run(store: datastore.Store) -> None:
        files = Files(str(directory / "objects"))
        usual, FLAGS.objects_orphan_age = FLAGS.objects_orphan_age, 0
        try:
            await sweep.sweep(store, files)
        finally:
            FLAGS.objects_orphan_age = usual
            files.close()
    in_loop(url, run)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_failpoint(place: tuple[RedisServer, Path], server: Server, dry: dict[str, Dry],
                                   name: str) -> None:
    own_redis, directory = place
    s3, before_and_after = server.client(), (dry[name].before, dry[name].after)
    for point in dry[name].points:
        clear(own_redis.url, directory)
        scene = Scene(s3, own_redis.url, directory)
        dying = start(own_redis.url, directory, f"--failpoint={point}")
        try:
            with pytest.raises(_DEAD):
                OPERATIONS[name](dying.client(retries={"max_attempts": 0, "mode": "legacy"}), scene)
            assert dying.process.wait(60) == -9
        finally:
            dying.process.kill()
            dying.process.wait()

        found = without_new_uploads(state(s3), scene)
        assert found in before_and_after, f"{name} at {point}"
        wipe(own_redis.url)
        rebuild(own_redis.url, directory)  # before any sweep: one of both as well
        found = without_new_uploads(state(s3), scene)
        assert found in before_and_after, f"{name} at {point}, rebuilt"

        swept(own_redis.url, directory)
        check_consistent(own_redis.url, directory)
        assert without_new_uploads(state(s3), scene) == found
        wipe(own_redis.url)
        report = rebuild(own_redis.url, directory)
        assert report.unreadable == [] and report.missing == [] and report.leftovers == 0
        check_consistent(own_redis.url, directory)
        assert without_new_uploads(state(s3), scene) == found
        again = rebuild(own_redis.url, directory)
        assert set(again.restored.values()) == {0} and again.described == 0
        check_consistent(own_redis.url, directory)


def test_every_failpoint_of_the_object_store_is_reached(dry: dict[str, Dry]) -> None:
    assert {point for found in dry.values() for point in found.points} == set(failpoint.names("objectstore."))


def test_every_operation_changes_something(dry: dict[str, Dry]) -> None:
    assert [name for name, found in dry.items() if found.before == found.after] == ["begin an upload"]
