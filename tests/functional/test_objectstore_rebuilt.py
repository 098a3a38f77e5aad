"""Redis emptied and rebuilt from the disk: versions, access lists, tags and all configuration of buckets come back."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nova import datastore
from nova.auth import quota
from nova.objectstore import description, holdings, objects, verify
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, Upload
from tests.conftest import RedisServer
from tests.functional.s3 import Server, own_fixture, start  # noqa: F401 (a fixture)
from tests.functional.test_objectstore_crashes import in_loop, rebuild, wipe

GRANTS = {"GrantRead": "uri=http://acs.amazonaws.com/groups/global/AllUsers"}


@pytest.fixture(name="running")
def running_fixture(own: tuple[RedisServer, Path]) -> Iterator[Server]:
    """A server of the test's own with the bucket 'here'."""
    own_redis, directory = own
    server = start(own_redis.url, directory)
    server.redis = own_redis  # type: ignore[attr-defined]
    server.client().create_bucket(Bucket="here", ObjectOwnership="ObjectWriter")
    yield server
    server.process.kill()
    server.process.wait()


def known(server: Server) -> dict[str, Any]:
    """All that Redis knows of the object store: records without their versions, lists and counters."""
    async def read(store: datastore.Store) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for cls in (Bucket, Object, Upload):
            for record in [r async for r in store.scan(cls)]:
                fields = dataclasses.asdict(record)
                del fields["version"]
                found[f"{cls.__name__} {record.id}"] = fields
        async for key in store.redis.scan_iter("nova:bucket-*"):
            found[key.decode()] = await store.redis.zrange(key, 0, -1)
        async for key in store.redis.scan_iter("nova:usage:*"):
            found[key.decode()] = (await store.redis.hget(key, quota.OBJECT_GB) or b"0")
        assert await quota.recount(store, [holdings.holdings]) == []
        return found
    return in_loop(server.redis.url, read)  # type: ignore[attr-defined]


def check_rebuilt(server: Server) -> None:
    """Everything comes back as it was, and nothing more when it is done again."""
    url, directory = server.redis.url, server.objects.parent  # type: ignore[attr-defined]
    before = known(server)
    wipe(url)
    assert not any(name.startswith("Object") for name in known(server))
    report = rebuild(url, directory)
    assert (report.unreadable, report.missing, report.leftovers) == ([], [], 0)
    assert known(server) == before
    again = rebuild(url, directory)
    assert set(again.restored.values()) == {0} and again.described == 0 and known(server) == before


def versioned(s3: Any, status: str = "Enabled") -> None:
    s3.put_bucket_versioning(Bucket="here", VersioningConfiguration={"Status": status})


def test_versions_markers_and_null_versions_come_back_in_their_order(running: Server) -> None:
    s3 = running.client()
    for key in ("a", "b", "c", "d", "e"):
        s3.put_object(Bucket="here", Key=key, Body=b"null")
    versioned(s3)
    for n in range(3):
        for key in ("a", "b", "c"):
            s3.put_object(Bucket="here", Key=key, Body=b"%d" % n)
    s3.delete_object(Bucket="here", Key="b")
    s3.delete_object(Bucket="here", Key="d")
    check_rebuilt(running)
    newest = s3.list_object_versions(Bucket="here", Prefix="c")["Versions"][0]["VersionId"]
    s3.delete_object(Bucket="here", Key="c", VersionId=newest)
    s3.copy_object(Bucket="here", Key="e", CopySource={"Bucket": "here", "Key": "a"})
    check_rebuilt(running)
    versioned(s3, "Suspended")
    s3.put_object(Bucket="here", Key="a", Body=b"another null")
    s3.delete_object(Bucket="here", Key="b")
    s3.delete_object(Bucket="here", Key="b")
    s3.delete_object(Bucket="here", Key="never")
    check_rebuilt(running)
    assert s3.get_object(Bucket="here", Key="a")["Body"].read() == b"another null"
    assert s3.get_object(Bucket="here", Key="c")["Body"].read() == b"1"
    assert [m["Key"] for m in s3.list_object_versions(Bucket="here")["DeleteMarkers"] if m["IsLatest"]] == [
        "b", "d", "never"]
    upload = s3.create_multipart_upload(Bucket="here", Key="a", Tagging="x=y")["UploadId"]
    part = s3.upload_part(Bucket="here", Key="a", UploadId=upload, PartNumber=1, Body=b"part")
    check_rebuilt(running)
    s3.complete_multipart_upload(Bucket="here", Key="a", UploadId=upload, MultipartUpload={
        "Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    check_rebuilt(running)


def test_changes_of_versions_come_back(running: Server) -> None:
    """Of one that has been the current one, an older one, and the current one again."""
    s3 = running.client()
    versioned(s3)
    ids = [s3.put_object(Bucket="here", Key="k", Body=b"%d" % n, Tagging=f"n={n}")["VersionId"] for n in range(3)]

    def tag(value: str) -> None:
        s3.put_object_tagging(Bucket="here", Key="k", VersionId=ids[1], Tagging={
            "TagSet": [{"Key": "n", "Value": value}]})
    for value in ("first", "second", "third", "fourth"):
        tag(value)
    s3.put_object_acl(Bucket="here", Key="k", VersionId=ids[0], **GRANTS)
    check_rebuilt(running)
    s3.delete_object(Bucket="here", Key="k", VersionId=ids[2])
    tag("last")
    check_rebuilt(running)
    assert s3.get_object_tagging(Bucket="here", Key="k")["TagSet"] == [{"Key": "n", "Value": "last"}]
    assert len(s3.get_object_acl(Bucket="here", Key="k", VersionId=ids[0])["Grants"]) == 1


def test_all_configuration_comes_back(running: Server) -> None:
    s3 = running.client()
    versioned(s3)
    s3.put_bucket_acl(Bucket="here", **GRANTS)
    s3.put_bucket_policy(Bucket="here", Policy=json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::here/p/*"}]}))
    s3.put_bucket_cors(Bucket="here", CORSConfiguration={"CORSRules": [
        {"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]})
    s3.put_bucket_lifecycle_configuration(Bucket="here", LifecycleConfiguration={"Rules": [
        {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "x"}, "Expiration": {"Days": 3}}]})
    s3.put_bucket_tagging(Bucket="here", Tagging={"TagSet": [{"Key": "a", "Value": "\u00e9"}]})
    s3.put_public_access_block(Bucket="here", PublicAccessBlockConfiguration={"BlockPublicAcls": True})
    s3.put_object(Bucket="here", Key="k", Body=b"1", Tagging="a=b")
    check_rebuilt(running)
    bucket = known(running)["Bucket here"]
    assert bucket["versioning"] == "Enabled" and sorted(bucket["configuration"]) == [
        "acl", "cors", "lifecycle", "ownershipControls", "policy", "publicAccessBlock", "tagging"]
    s3.delete_bucket_cors(Bucket="here")
    s3.delete_bucket_policy(Bucket="here")
    versioned(s3, "Suspended")
    check_rebuilt(running)


def test_versions_of_a_bucket_that_was_not_described_to_have_any(running: Server) -> None:
    """A server died before it had described what another one had already obeyed."""
    s3 = running.client()
    kept = (running.objects / "buckets" / "here.json").read_bytes()
    versioned(s3)
    for n in range(2):
        s3.put_object(Bucket="here", Key="k", Body=b"%d" % n)
    before = known(running)
    (running.objects / "buckets" / "here.json").write_bytes(kept)
    wipe(running.redis.url)  # type: ignore[attr-defined]
    rebuild(running.redis.url, running.objects.parent)  # type: ignore[attr-defined]
    assert known(running) == before


def test_verification_reads_every_version_and_makes_lost_markers_again(running: Server) -> None:
    s3, url = running.client(), running.redis.url  # type: ignore[attr-defined]
    versioned(s3)
    ids = [s3.put_object(Bucket="here", Key="k", Body=b"%d" % n * 100)["VersionId"] for n in range(3)]
    s3.delete_object(Bucket="here", Key="k")

    def place(version: str | None) -> Path:
        async def find(store: datastore.Store) -> str:
            found = await objects.find(store, "here", "k", version)
            assert found is not None
            return found.file
        return running.objects / in_loop(url, find)

    async def read(store: datastore.Store) -> verify.Report:
        files = Files(str(running.objects))
        try:
            return await verify.verify(store, files)
        finally:
            files.close()
    place(ids[0]).write_bytes(b"x" * 100)
    marker = place(None)
    marker.unlink()
    report = in_loop(url, read)
    assert [d.about for d in report.damaged] == ["here/k"] and report.mended == 1 and report.objects == 4
    told = description.read(str(marker))
    assert isinstance(told, Object) and told.is_marker
    check_rebuilt(running)
    for id, status in ((ids[0], 500), (ids[1], 200)):
        failed = None
        try:
            s3.head_object(Bucket="here", Key="k", VersionId=id)
        except s3.exceptions.ClientError as error:
            failed = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert (failed or 200) == status
