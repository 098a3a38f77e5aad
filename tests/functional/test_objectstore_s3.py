"""The object store with its files in a radosgw (--objectstore_driver=s3), as clients with default settings see it.

What other modules ask of a server with a directory is asked of this one, too.
"""

import contextlib
import hashlib
import http.client
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ResponseStreamingError,
)

from nova import datastore
from nova.auth import quota
from nova.flags import FLAGS
from nova.objectstore import checksums, holdings, reindex, s3backend, sweep, verify
from nova.objectstore.models import Object, Part
from nova.objectstore.s3files import S3Files
from tests.conftest import wait_until
from tests.functional import (
    ceph,
    test_objectstore,
    test_objectstore_versions,
)
from tests.functional.ceph import Ceph
from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
    Server,
    Zeros,
    bucket_fixture,
    code_of,
    own_stores,
    s3_fixture,
    sign,
    signed,
    start,
    stop,
)
from tests.functional.s3_versions import versioned_fixture  # noqa: F401 (the fixture)
from tests.functional.test_objectstore_crashes import in_loop, wipe

pytestmark = ceph.needs_ceph

#: what other modules ask that has to do with where the files are
_ALSO = {
    test_objectstore: (
        "test_bucket_with_uploads_can_be_removed", "test_headers_and_metadata_are_kept",
        "test_default_checksum_of_boto3_is_kept_and_returned", "test_checksum_algorithms", "test_crc32c_and_crc64nvme",
        "test_ranges", "test_conditions", "test_only_one_of_many_conditional_puts_wins",
        "test_overwrite_and_delete_leave_no_files", "test_copy_with_new_metadata_onto_itself",
        "test_delete_objects_quiet_and_versions", "test_listing_pages_and_prefixes",
        "test_managed_upload_and_download_of_20_mb", "test_multipart_by_hand", "test_abort", "test_boto2"),
    test_objectstore_versions: (
        "test_every_put_makes_a_version", "test_ranges_and_conditions_are_of_the_version",
        "test_a_delete_marker_hides_the_object", "test_deleting_versions_from_the_newest_to_the_oldest",
        "test_the_files_of_versions_go_with_them", "test_a_suspended_put_replaces_only_the_null_version",
        "test_copying_a_version", "test_restoring_an_old_version_by_a_copy_onto_its_key",
        "test_parts_may_be_copied_from_versions_and_become_one"),
}
globals().update({name: getattr(module, name) for module, names in _ALSO.items() for name in names})


@dataclass
class S3Server(Server):
    """An object store whose files are in a bucket of the cluster."""

    cluster: Ceph | None = None
    bucket: str = "nova"

    def files(self) -> list[Path]:
        assert self.cluster is not None
        return [Path(key) for key in keys(self.cluster, self.bucket) if key[2:3] == "/" and not key.endswith(".meta")]


def keys(cluster: Ceph, bucket: str) -> list[str]:
    """All that is in a bucket of the cluster."""
    pages = cluster.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def flags(cluster: Ceph, bucket: str) -> tuple[str, ...]:
    """Of an object store whose files are in a bucket of the cluster."""
    return ("--objectstore_driver=s3", f"--objectstore_s3_endpoint={cluster.url}",
            f"--objectstore_s3_bucket={bucket}", f"--objectstore_s3_access_key={ceph.ACCESS}",
            f"--objectstore_s3_secret_key={ceph.SECRET}", "--objectstore_s3_timeout=20")


@pytest.fixture(name="cluster", scope="module")
def cluster_fixture() -> Iterator[Ceph]:
    with ceph.running() as cluster:
        yield cluster


@pytest.fixture(name="server", scope="module")
def server_fixture(cluster: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("objectstore")
    cluster.client().create_bucket(Bucket="nova")
    with own_stores(directory) as own_redis:
        running = S3Server(**vars(start(own_redis.url, directory, *flags(cluster, "nova"))), cluster=cluster)
        running.redis = own_redis  # type: ignore[attr-defined]
        yield running
        running.process.terminate()
        running.process.wait(15)


# -- what is particular to it -----------------------------------------------------------------------------------------

def in_files(server: S3Server, function: Callable[[datastore.Store, S3Files], Any], redis_url: str = "") -> Any:
    """Run a coroutine function on the records and the files of a server, in another process than it."""
    assert server.cluster is not None
    client = server.cluster.client(request_checksum_calculation="when_required",
                                   response_checksum_validation="when_required")
    files = S3Files(s3backend.Backend(client, server.bucket), 8)

    async def call(store: datastore.Store) -> Any:
        with contextlib.closing(files):
            return await function(store, files)
    return in_loop(redis_url or server.redis.url, call)  # type: ignore[attr-defined]


async def everything_swept(store: datastore.Store, files: S3Files) -> None:
    """Remove what is needless, however young it is, and check that what is left is what records name."""
    usual = FLAGS.objects_orphan_age, FLAGS.objectstore_s3_upload_age
    FLAGS.objects_orphan_age = FLAGS.objectstore_s3_upload_age = 0
    try:
        await sweep.sweep(store, files)
    finally:
        FLAGS.objects_orphan_age, FLAGS.objectstore_s3_upload_age = usual
    named = {record.file for cls in (Object, Part) for record in [r async for r in store.scan(cls)]}
    there = {found.key for found in files.backend.list() if found.key[2:3] == "/"}
    assert {key.removesuffix(".meta") for key in there} == named == {key for key in there if not key.endswith(".meta")}
    assert list(files.backend.uploads()) == []
    uploads = {k.decode().rpartition(":")[2] async for k in store.redis.scan_iter("nova:upload:*")}
    assert set(files.uploads.ids()) == uploads
    assert await quota.recount(store, [holdings.holdings]) == []


async def rebuilt(store: datastore.Store, files: S3Files) -> reindex.Report:
    return await reindex.reindex(store, files, pause=0)


async def verified(store: datastore.Store, files: S3Files) -> verify.Report:
    return await verify.verify(store, files)


OLD, LARGE = b"old" * 1000, bytes(range(256)) * 24576  # 6 MiB: one part and more
LONG = {"long": "".join(uuid.uuid4().hex for _ in range(60))}


def _put(s3: Any, bucket: str, upload: dict[str, Any]) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"new")


def _put_large(s3: Any, bucket: str, upload: dict[str, Any]) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=LARGE)


def _copy(s3: Any, bucket: str, upload: dict[str, Any]) -> None:
    s3.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "source"}, Metadata=LONG,
                   MetadataDirective="REPLACE")


def _complete(s3: Any, bucket: str, upload: dict[str, Any]) -> None:
    s3.complete_multipart_upload(**upload)


def _delete(s3: Any, bucket: str, upload: dict[str, Any]) -> None:
    s3.delete_object(Bucket=bucket, Key="k")


@pytest.mark.parametrize(("operation", "point"), [
    (_put, "objectstore.put.published"), (_put_large, "s3files.uploaded"), (_put_large, "s3files.described"),
    (_put_large, "objectstore.put.committed"),
    (_copy, "s3files.described"), (_copy, "objectstore.put.published"), (_complete, "s3files.uploaded"),
    (_complete, "s3files.described"), (_complete, "objectstore.put.published"),
    (_complete, "objectstore.complete.committed"), (_complete, "objectstore.upload.ended"),
    (_delete, "objectstore.delete.committed")], ids=lambda value: getattr(value, "__name__", value))
def test_killed_at_a_failpoint(server: S3Server, s3: Any, bucket: str, tmp_path: Path,
                               operation: Callable[[Any, str, dict[str, Any]], None], point: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    s3.put_object(Bucket=bucket, Key="source", Body=b"source", Metadata=LONG)
    id = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    parts = [{"PartNumber": n, "ETag": s3.upload_part(Bucket=bucket, Key="k", UploadId=id, PartNumber=n,
                                                      Body=data)["ETag"]} for n, data in ((1, LARGE), (2, b"last"))]
    upload = {"Bucket": bucket, "Key": "k", "UploadId": id, "MultipartUpload": {"Parts": parts}}
    assert server.cluster is not None
    dying = start(server.redis.url, tmp_path, *flags(server.cluster, server.bucket), f"--failpoint={point}",
                  f"--ca_path={server.objects.parent}/ca")
    try:
        with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
            operation(dying.client(retries={"max_attempts": 0, "mode": "legacy"}), bucket, upload)
        assert dying.process.wait(60) == -signal.SIGKILL
    finally:
        dying.process.kill()
        dying.process.wait()
    there = contents(s3, bucket)
    after = {_put: b"new", _put_large: LARGE, _copy: b"source", _complete: LARGE + b"last", _delete: None}[operation]
    is_done = point.endswith((".committed", ".ended"))
    assert there == {"source": b"source", **({"k": after if is_done else OLD} if after or not is_done else {})}
    in_files(server, everything_swept)
    assert contents(s3, bucket) == there
    if not is_done and operation is _complete:
        s3.complete_multipart_upload(**upload)
        assert contents(s3, bucket)["k"] == after


def contents(s3: Any, bucket: str) -> dict[str, bytes]:
    """All objects of a bucket."""
    return {found["Key"]: s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
            for found in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


def joined(s3: Any, bucket: str, key: str, **how: str) -> bytes:
    """Make an object of parts; its bytes."""
    id = s3.create_multipart_upload(Bucket=bucket, Key=key, **how)["UploadId"]
    pieces = [LARGE, LARGE[::-1], b"last"]
    parts = []
    for number, data in enumerate(pieces, 1):
        put = s3.upload_part(Bucket=bucket, Key=key, UploadId=id, PartNumber=number, Body=data)
        told = ("ETag", f"Checksum{how.get('ChecksumAlgorithm')}")
        parts.append({"PartNumber": number, **{name: put[name] for name in told if name in put}})
    s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=id, MultipartUpload={"Parts": parts})
    return b"".join(pieces)


def test_parts_are_put_together_with_the_checksums_of_the_whole(server: S3Server, bucket: str) -> None:
    s3 = server.client(request_checksum_calculation="when_required")  # the server computes those of the parts
    for algorithm in ("CRC32", "CRC32C", "CRC64NVME"):
        data = joined(s3, bucket, algorithm, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT")
        hasher = checksums.hasher(algorithm)
        hasher.update(data)
        got = s3.get_object(Bucket=bucket, Key=algorithm, ChecksumMode="ENABLED")
        assert got[f"Checksum{algorithm}"] == checksums.encode(hasher.digest())
        assert got["Body"].read() == data


def test_what_was_put_together_is_copied_as_it_is(server: S3Server, s3: Any, bucket: str) -> None:
    data = joined(s3, bucket, "parts", ChecksumAlgorithm="SHA256")
    first = s3.head_object(Bucket=bucket, Key="parts", ChecksumMode="ENABLED")
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "parts"})
    s3.copy_object(Bucket=bucket, Key="hashed", CopySource={"Bucket": bucket, "Key": "parts"}, ChecksumAlgorithm="SHA1")
    copy = s3.get_object(Bucket=bucket, Key="copy", ChecksumMode="ENABLED")
    assert copy["ETag"] == first["ETag"] and copy["ChecksumSHA256"] == first["ChecksumSHA256"]
    assert copy["Body"].read() == data
    hashed = s3.head_object(Bucket=bucket, Key="hashed", ChecksumMode="ENABLED")
    assert hashed["ChecksumSHA1"] == checksums.encode(hashlib.sha1(data).digest())
    assert s3.head_object(Bucket=bucket, Key="copy", PartNumber=3)["ContentLength"] == 4


def test_memory_does_not_grow_with_the_object(server: S3Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="warm", Body=Zeros(8 * MIB))
    s3.get_object(Bucket=bucket, Key="warm")["Body"].read()
    before = server.resident()
    s3.put_object(Bucket=bucket, Key="k", Body=Zeros(160 * MIB))
    body = s3.get_object(Bucket=bucket, Key="k")["Body"]
    assert sum(len(piece) for piece in body.iter_chunks(MIB)) == 160 * MIB
    assert server.resident() - before < 40 * MIB


def test_redis_is_rebuilt_from_the_cluster(server: S3Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="small", Body=b"small", Metadata={"a": "b"})
    s3.put_object(Bucket=bucket, Key="long", Body=b"", Metadata=LONG)
    s3.put_object_tagging(Bucket=bucket, Key="small", Tagging={"TagSet": [{"Key": "t", "Value": "v"}]})
    joined(s3, bucket, "parts")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=bucket, Key="small", Body=b"smaller")
    s3.delete_object(Bucket=bucket, Key="long")
    id = s3.create_multipart_upload(Bucket=bucket, Key="going on")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="going on", UploadId=id, PartNumber=1, Body=b"part")

    def seen() -> Any:
        versions = s3.list_object_versions(Bucket=bucket)
        return (contents(s3, bucket), versions["Versions"], versions["DeleteMarkers"],
                s3.get_object_tagging(Bucket=bucket, Key="small", VersionId="null")["TagSet"],
                s3.head_object(Bucket=bucket, Key="small", VersionId="null")["Metadata"])
    before = seen()
    wipe(server.redis.url)  # type: ignore[attr-defined]
    report = in_files(server, rebuilt)
    assert report.restored["object"] >= 5 and (report.unreadable, report.missing) == ([], [])
    assert seen() == before
    in_files(server, everything_swept)
    again = in_files(server, rebuilt)
    assert set(again.restored.values()) == {0} and again.described == 0
    s3.complete_multipart_upload(Bucket=bucket, Key="going on", UploadId=id, MultipartUpload={
        "Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert contents(s3, bucket)["going on"] == b"part"


def test_verification_finds_what_was_changed_in_the_cluster(server: S3Server, s3: Any, bucket: str) -> None:
    assert server.cluster is not None
    s3.put_object(Bucket=bucket, Key="whole", Body=b"whole")
    data = joined(s3, bucket, "fine")
    before = set(keys(server.cluster, server.bucket))
    s3.put_object(Bucket=bucket, Key="small", Body=b"small")
    joined(s3, bucket, "parts")
    s3.put_object(Bucket=bucket, Key="gone", Body=b"gone")
    changed = [key for key in keys(server.cluster, server.bucket)
               if key[2:3] == "/" and key not in before and not key.endswith(".meta")]
    own = server.cluster.client()
    for key in changed:
        size = own.head_object(Bucket=server.bucket, Key=key)["ContentLength"]
        if size == 4:
            own.delete_object(Bucket=server.bucket, Key=key)
        else:
            own.put_object(Bucket=server.bucket, Key=key, Body=b"?" * size)
    report = in_files(server, verified)
    assert sorted(d.about for d in report.damaged) == [f"{bucket}/{key}" for key in ("gone", "parts", "small")]
    for key in ("gone", "parts", "small"):
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket=bucket, Key=key)
        assert code_of(error) == ("InternalError", 500)
    assert s3.get_object(Bucket=bucket, Key="fine")["Body"].read() == data
    assert len([key for key in keys(server.cluster, server.bucket) if key.startswith("quarantine/")]) == 5


def test_a_full_cluster_is_told_as_full(server: S3Server, s3: Any, bucket: str) -> None:
    assert server.cluster is not None
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    server.cluster.limit(max_size=0)
    try:
        for size in (1, 12 * MIB):
            with pytest.raises(ClientError) as error:
                s3.put_object(Bucket=bucket, Key="k", Body=bytes(size))
            assert code_of(error) == ("InsufficientStorage", 507)
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == OLD
    finally:
        server.cluster.limit(max_size=-1)
    in_files(server, everything_swept)


def test_an_empty_bucket_is_not_taken_for_the_one_with_the_objects(server: S3Server, cluster: Ceph,
                                                                    tmp_path: Path) -> None:
    cluster.client().create_bucket(Bucket="empty")
    with pytest.raises(AssertionError, match="has no file 'id'"):
        start(server.redis.url, tmp_path, *flags(cluster, "empty"),  # type: ignore[attr-defined]
              f"--ca_path={server.objects.parent}/ca")
    assert keys(cluster, "empty") == []


# -- without the cluster ----------------------------------------------------------------------------------------------

@pytest.fixture(name="frail", scope="module")
def frail_fixture(server: S3Server, cluster: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of little patience on the same files."""
    running = start(server.redis.url, tmp_path_factory.mktemp("frail"), *flags(cluster, server.bucket),
                    "--objectstore_s3_timeout=2", f"--ca_path={server.objects.parent}/ca")
    yield running
    running.process.terminate()
    running.process.wait(15)


def test_the_cluster_dies_while_an_object_is_put(server: S3Server, frail: Server, s3: Any, bucket: str) -> None:
    assert server.cluster is not None
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    request = sign(frail, "PUT", f"/{bucket}/k", b"", payload="UNSIGNED-PAYLOAD")
    connection = http.client.HTTPConnection("127.0.0.1", frail.port, timeout=60)
    connection.putrequest("PUT", f"/{bucket}/k")
    for name, value in request.headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(20 * MIB))
    connection.endheaders()
    connection.send(bytes(12 * MIB))
    wait_until(lambda: s3_uploads(server), 30)
    server.cluster.signal_gateway(signal.SIGKILL)
    try:
        connection.send(bytes(8 * MIB))
        answer = connection.getresponse()
        assert (answer.status, b"<Code>ServiceUnavailable</Code>" in answer.read()) == (503, True)
        started = time.monotonic()
        for call in ("GET", "PUT"):
            assert signed(frail, call, f"/{bucket}/k", b"x" if call == "PUT" else b"")[0] == 503
        assert time.monotonic() - started < 30
    finally:
        server.cluster.start_gateway()
    assert contents(s3, bucket) == {"k": OLD}
    in_files(server, everything_swept)


def s3_uploads(server: S3Server) -> list[Any]:
    """The uploads in parts that the cluster knows."""
    assert server.cluster is not None
    return server.cluster.client().list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])


def test_the_cluster_dies_while_an_object_is_read(server: S3Server, frail: Server, s3: Any, bucket: str) -> None:
    assert server.cluster is not None
    data = LARGE * 8
    s3.put_object(Bucket=bucket, Key="k", Body=data)
    body = frail.client().get_object(Bucket=bucket, Key="k")["Body"]
    got = body.read(MIB)
    server.cluster.signal_gateway(signal.SIGKILL)
    try:
        with pytest.raises((IncompleteReadError, ResponseStreamingError)):
            while piece := body.read(MIB):
                got += piece
    finally:
        server.cluster.start_gateway()
    assert data.startswith(got) and len(got) < len(data)
    assert frail.client().get_object(Bucket=bucket, Key="k")["Body"].read() == data


def test_a_cluster_that_hangs_is_unavailable(server: S3Server, frail: Server, s3: Any, bucket: str) -> None:
    assert server.cluster is not None
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    server.cluster.signal_gateway(signal.SIGSTOP)
    try:
        assert signed(frail, "GET", f"/{bucket}/k")[0] == 503
        assert signed(frail, "HEAD", f"/{bucket}/k")[0] == 200  # Redis knows as much
    finally:
        server.cluster.signal_gateway(signal.SIGCONT)
    assert signed(frail, "GET", f"/{bucket}/k") == (200, OLD)


def test_the_cluster_may_come_later_than_the_object_store(server: S3Server, s3: Any, bucket: str,
                                                          tmp_path: Path) -> None:
    assert server.cluster is not None
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    server.cluster.signal_gateway(signal.SIGKILL)
    try:
        early = start(server.redis.url, tmp_path, *flags(server.cluster, server.bucket),
                      f"--ca_path={server.objects.parent}/ca")
        assert signed(early, "GET", f"/{bucket}/k")[0] == 503
    finally:
        server.cluster.start_gateway()
    assert signed(early, "GET", f"/{bucket}/k") == (200, OLD)
    stop(early)
