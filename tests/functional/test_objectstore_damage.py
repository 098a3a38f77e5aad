"""What clients get when bytes change on the disk and files go; what verify and reindex make of it."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from nova import datastore
from nova.objectstore import buckets, description, objects, reindex, verify
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, object_id
from tests.conftest import RedisServer, wait_until
from tests.functional.s3 import MIB, ROOT, Server, Zeros, code_of, own_fixture, start  # noqa: F401 (a fixture)
from tests.functional.test_objectstore_crashes import in_loop, rebuild, wipe


@pytest.fixture(name="running")
def running_fixture(own: tuple[RedisServer, Path]) -> Iterator[Server]:
    """A server of the test's own with the bucket 'here'."""
    own_redis, directory = own
    server = start(own_redis.url, directory)
    server.redis = own_redis  # type: ignore[attr-defined]
    client(server).create_bucket(Bucket="here")
    yield server
    server.process.kill()
    server.process.wait()


def client(server: Server, **config: Any) -> Any:
    """One that does not try again."""
    return server.client(retries={"max_attempts": 0, "mode": "legacy"}, **config)


def file_of(server: Server, key: str) -> Path:
    """Where an object's bytes are."""
    async def find(store: datastore.Store) -> str:
        [record] = [r async for r in store.scan(Object) if r.key == key]
        return record.file
    return server.objects / in_loop(server.redis.url, find)  # type: ignore[attr-defined]


def verified(server: Server, bucket: str = "", change: bool = True) -> verify.Report:
    async def run(store: datastore.Store) -> verify.Report:
        files = Files(str(server.objects))
        try:
            return await verify.verify(store, files, bucket, change)
        finally:
            files.close()
    return in_loop(server.redis.url, run)  # type: ignore[attr-defined]


def flip(path: Path, offset: int = 100) -> None:
    """Change one bit."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 1,)))


def refused(s3: Any, key: str) -> None:
    """To read it is an InternalError, however it is read."""
    for read in (lambda: s3.get_object(Bucket="here", Key=key),
                 lambda: s3.get_object(Bucket="here", Key=key, Range="bytes=0-1"),
                 lambda: s3.copy_object(Bucket="here", Key="new", CopySource={"Bucket": "here", "Key": key})):
        with pytest.raises(ClientError) as error:
            read()
        assert code_of(error) == ("InternalError", 500)
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket="here", Key=key)
    assert code_of(error)[1] == 500


# -- damage -----------------------------------------------------------------------------------------------------------

def test_flipped_cut_and_lost_files(running: Server) -> None:
    s3, data = client(running), os.urandom(3 * MIB)
    for key in ("whole", "flipped", "cut", "lost", "copied"):
        s3.put_object(Bucket="here", Key=key, Body=data)
    s3.copy_object(Bucket="here", Key="copy", CopySource={"Bucket": "here", "Key": "copied"})
    assert verified(running) == verify.Report(objects=6, bytes=6 * len(data))
    flip(file_of(running, "flipped"))
    os.truncate(file_of(running, "cut"), 2 * MIB)
    file_of(running, "lost").unlink()
    flip(file_of(running, "copied"))
    for key in ("cut", "lost"):  # found without verification
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket="here", Key=key)
        assert code_of(error) == ("InternalError", 500)
    only_told = verified(running, change=False)
    assert sorted(d.about for d in only_told.damaged) == [f"here/{k}" for k in ("copied", "copy", "cut", "flipped",
                                                                               "lost")]
    moved = file_of(running, "flipped").name
    assert sorted(d.about for d in verified(running).damaged) == sorted(d.about for d in only_told.damaged)
    for key in ("flipped", "cut", "lost", "copied", "copy"):
        refused(s3, key)
    assert (running.objects / "quarantine" / moved).stat().st_size == len(data)
    assert len(running.files()) == 1 and s3.get_object(Bucket="here", Key="whole")["Body"].read() == data
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="here")["Contents"]] == [
        "copied", "copy", "cut", "flipped", "lost", "whole"]

    wipe(running.redis.url)  # type: ignore[attr-defined]
    rebuild(running.redis.url, running.objects.parent)  # type: ignore[attr-defined]
    for key in ("flipped", "cut", "copied"):
        refused(s3, key)

    s3.put_object(Bucket="here", Key="flipped", Body=b"again")
    assert s3.get_object(Bucket="here", Key="flipped")["Body"].read() == b"again"
    s3.delete_object(Bucket="here", Key="cut")
    wipe(running.redis.url)  # type: ignore[attr-defined]
    rebuild(running.redis.url, running.objects.parent)  # type: ignore[attr-defined]
    assert s3.get_object(Bucket="here", Key="flipped")["Body"].read() == b"again"
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket="here", Key="cut")
    assert code_of(error) == ("NoSuchKey", 404)


def test_a_file_that_is_put_back_is_whole_again(running: Server) -> None:
    s3 = client(running)
    s3.put_object(Bucket="here", Key="k", Body=b"hello" * 100, Metadata={"a": "b"})
    path = file_of(running, "k")
    flip(path)
    assert [d.about for d in verified(running).damaged] == ["here/k"]
    refused(s3, "k")
    path.write_bytes(b"hello" * 100)  # from a backup that has no attributes
    report = verified(running)
    assert (report.damaged, report.mended, report.described) == ([], 1, 1)
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"hello" * 100
    wipe(running.redis.url)  # type: ignore[attr-defined]
    rebuild(running.redis.url, running.objects.parent)  # type: ignore[attr-defined]
    assert s3.get_object(Bucket="here", Key="k")["Metadata"] == {"a": "b"}


def test_only_one_bucket_is_read(running: Server) -> None:
    s3 = client(running)
    s3.create_bucket(Bucket="there")
    for bucket in ("here", "there"):
        s3.put_object(Bucket=bucket, Key=bucket, Body=b"hello" * 100)
        flip(file_of(running, bucket))
    assert [d.about for d in verified(running, "there").damaged] == ["there/there"]
    assert s3.head_object(Bucket="here", Key="here")["ContentLength"] == 500


def test_damaged_parts(running: Server) -> None:
    s3 = client(running)
    upload = s3.create_multipart_upload(Bucket="here", Key="k")["UploadId"]

    def put(number: int) -> dict[str, Any]:
        return {"PartNumber": number, "ETag": s3.upload_part(
            Bucket="here", Key="k", UploadId=upload, PartNumber=number, Body=bytes((number,)) * 5 * MIB)["ETag"]}

    def complete() -> None:
        s3.complete_multipart_upload(Bucket="here", Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    parts = [put(1), put(2)]
    [path] = [f for f in running.files() if f.read_bytes()[0] == 1]
    flip(path)
    with pytest.raises(ClientError) as error:
        complete()
    assert code_of(error) == ("InvalidPart", 400)
    assert [d.what.partition(" is ")[0] for d in verified(running).damaged] == ["its MD5"]
    assert [p["PartNumber"] for p in s3.list_parts(Bucket="here", Key="k", UploadId=upload)["Parts"]] == [2]
    put(1)
    complete()
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"\1" * 5 * MIB + b"\2" * 5 * MIB


def test_lost_and_damaged_descriptions(running: Server) -> None:
    """What only Redis knows is described again; without Redis, what cannot be read is told, and nothing is made up."""
    s3, url, directory = client(running), running.redis.url, running.objects.parent  # type: ignore[attr-defined]
    for key in ("lost", "flipped", "other"):
        s3.put_object(Bucket="here", Key=key, Body=key.encode(), Metadata={"key": key})
    s3.copy_object(Bucket="here", Key="copy", CopySource={"Bucket": "here", "Key": "other"})

    def damage() -> None:
        lost, flipped = file_of(running, "lost"), file_of(running, "flipped")
        for path in (lost, flipped):
            path.with_name(path.name + ".meta").unlink(missing_ok=True)
        os.setxattr(lost, description.ATTRIBUTE, b"")
        data = bytearray(os.getxattr(flipped, description.ATTRIBUTE))
        data[60] = ord("#")
        os.setxattr(flipped, description.ATTRIBUTE, bytes(data))
        copy = file_of(running, "copy")
        copy.with_name(copy.name + ".meta").unlink()  # what its file says is the source's
        (running.objects / "buckets" / "here.json").write_text("{")
    damage()
    report = rebuild(url, directory)
    assert len(report.unreadable) == 4 and report.described == 4 and set(report.restored.values()) == {0}
    wipe(url)
    report = rebuild(url, directory)
    assert report.restored["object"] == 4 and report.unreadable == []
    for key in ("lost", "flipped", "other", "copy"):
        answer = s3.get_object(Bucket="here", Key=key)
        assert answer["Metadata"] == {"key": "other" if key == "copy" else key}
        assert answer["Body"].read().decode() == answer["Metadata"]["key"]
    kept = (running.objects / "buckets" / "here.json").read_bytes()
    damage()
    (running.objects / "buckets" / "here.json").write_bytes(kept)
    wipe(url)
    report = rebuild(url, directory)
    assert len(report.unreadable) == 3 and report.restored["object"] == 1
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="here")["Contents"]] == ["other"]


def test_the_sweep_leaves_everything_where_redis_was_lost(running: Server) -> None:
    s3, url, directory = client(running), running.redis.url, running.objects.parent  # type: ignore[attr-defined]
    s3.put_object(Bucket="here", Key="k", Body=b"hello")
    running.process.kill()
    running.process.wait()
    wipe(url)
    server = start(url, directory, "--objects_orphan_age=0", "--objects_sweep_interval=1")
    try:
        wait_until(lambda: "'nova-manage objectstore reindex' rebuilds" in server.log.read_text(), 20)
        assert len(server.files()) == 1
        rebuild(url, directory)
        assert client(server).get_object(Bucket="here", Key="k")["Body"].read() == b"hello"
    finally:
        server.process.kill()
        server.process.wait()


def test_an_overwritten_file_that_is_still_there_is_not_taken(running: Server) -> None:
    """Two files of one object: the newest counts, with and without a record."""
    s3, url, directory = client(running), running.redis.url, running.objects.parent  # type: ignore[attr-defined]
    s3.put_object(Bucket="here", Key="k", Body=b"old")
    old = file_of(running, "k")
    kept = old.with_name("kept")
    os.link(old, kept)
    s3.put_object(Bucket="here", Key="k", Body=b"new")
    running.wait_for_files(2)
    os.rename(kept, old)
    for _ in range(2):
        report = rebuild(url, directory)
        assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"new" and report.leftovers <= 1
        wipe(url)
    rebuild(url, directory)

    async def roll_back(store: datastore.Store) -> None:
        """What a Redis that has lost its last second says."""
        [record] = [r async for r in store.scan(Object)]
        told = description.read(str(old))
        assert isinstance(told, Object)
        changes = {f.name: getattr(told, f.name) for f in dataclasses.fields(told)}
        del changes["id"], changes["version"]
        await store.update(record, **changes)
    in_loop(url, roll_back)
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"old"
    assert rebuild(url, directory).restored["object"] == 1
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"new"


async def test_changes_are_described_and_later_ones_stay(store: datastore.Store, tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    bucket = await buckets.create(store, files, "here", "p", "u")
    id = object_id("here", "k")
    with files.new(f"o-{id}") as writer:
        writer.write(b"hello")
        new = Object(id, bucket="here", key="k", project_id="p", file=writer.name, size=5, md5="", sha256="",
                     etag="", modified=1.0)
        writer.publish(new)
    await objects.put(store, files, bucket, new)
    first = await objects.change(store, files, "here", "k", None, lambda now: {"tags": {"a": "1"}})
    second = await objects.change(store, files, "here", "k", None, lambda now: {"tags": {"a": "2"}})
    files.describe(first)  # comes late
    assert description.same(files.description(new.file), second) and second.tags == {"a": "2"}
    await buckets.change(store, files, bucket, lambda now: {"versioning": "Enabled"})
    files.buckets.put(bucket)
    told = files.buckets.get("here")
    assert isinstance(told, Bucket) and told.versioning == "Enabled"
    await store.redis.flushall()
    await reindex.reindex(store, files, pause=0)
    there = await store.get(Object, id)
    assert there is not None and there.tags == {"a": "2"}
    assert (await store.get(Bucket, "here")).versioning == "Enabled"  # type: ignore[union-attr]
    await objects.change(store, files, "here", "k", None, lambda now: {"tags": {}})
    assert files.description(new.file).tags == {}  # type: ignore[attr-defined]
    files.close()


# -- the commands -----------------------------------------------------------------------------------------------------

def manage(server: Server, *words: str) -> tuple[int, Any, str]:
    """Run nova-manage; exit code, JSON, standard error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / "nova-manage"), f"--redis_url={server.redis.url}",  # type: ignore
         f"--state_path={server.objects.parent}", "--json", "objectstore", *words], capture_output=True, text=True,
        cwd=ROOT, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_commands(running: Server) -> None:
    s3 = client(running)
    s3.put_object(Bucket="here", Key="k", Body=b"hello" * 100)
    assert manage(running, "verify") == (0, [], "")
    assert manage(running, "verify", "--bucket", "nowhere")[0] == 2
    assert manage(running, "reindex")[0] == 2  # nobody to ask
    wipe(running.redis.url)  # type: ignore[attr-defined]
    code, rows, _ = manage(running, "reindex", "--yes")
    assert code == 0 and [(r["what"], r["found"], r["restored"]) for r in rows][:2] == [
        ("buckets", 1, 1), ("objects", 1, 1)]
    assert s3.get_object(Bucket="here", Key="k")["ContentLength"] == 500
    flip(file_of(running, "k"))
    code, rows, _ = manage(running, "verify", "--bucket", "here")
    assert code == 1 and [r["object"] for r in rows] == ["here/k"] and "SHA-256" in rows[0]["damage"]
    refused(s3, "k")
