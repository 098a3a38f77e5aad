"""What the object store asks of what keeps its files, asked of a directory and of a bucket in a radosgw."""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nova import exception
from nova.flags import FLAGS, FlagError
from nova.objectstore import description, driver, s3backend, s3files
from nova.objectstore.description import Unreadable
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, Part
from nova.objectstore.s3files import S3Files
from nova.objectstore.storage import Storage
from tests.functional import ceph
from tests.functional.ceph import Ceph

MIB = 1 << 20
#: makes a description longer than any metadata
LONG = {"long": "".join(uuid.uuid4().hex for _ in range(200))}


@pytest.fixture(name="cluster", scope="module")
def cluster_fixture() -> Iterator[Ceph]:
    with ceph.running() as cluster:
        yield cluster


def opened(cluster: Ceph, prefix: str = "") -> S3Files:
    """A bucket of its own in the cluster."""
    bucket = f"files-{uuid.uuid4().hex[:8]}"
    client = cluster.client(request_checksum_calculation="when_required", response_checksum_validation="when_required",
                            retries={"total_max_attempts": 2, "mode": "standard"})
    client.create_bucket(Bucket=bucket)
    return S3Files(s3backend.Backend(client, bucket, prefix), 4)


@pytest.fixture(name="files", params=["local", pytest.param("s3", marks=ceph.needs_ceph)])
def files_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        made: Storage = Files(str(tmp_path / "objects"))
    else:
        made = opened(request.getfixturevalue("cluster"), "of/nova/")
    with contextlib.closing(made):
        yield made


def record(files: Storage, data: bytes, **fields) -> Object:
    return replace(Object(
        "a" * 64, bucket="b", key="k ü", project_id="p", file=files.name("o-" + "a" * 64), size=len(data),
        md5=hashlib.md5(data).hexdigest(), sha256=hashlib.sha256(data).hexdigest(), etag="e", modified=1.5), **fields)


def put(files: Storage, data: bytes, **fields) -> Object:
    made = record(files, data, **fields)
    files.put(made, data)
    return made


def part(files: Storage, number: int, data: bytes) -> Part:
    with files.new(f"p-{'c' * 32}.{number:05d}") as writer:
        writer.write(data)
        made = Part(f"{'c' * 32}.{number:05d}", upload_id="c" * 32, number=number, file=writer.name, size=len(data),
                    md5=hashlib.md5(data).hexdigest(), modified=1.5)
        writer.publish(made)
    return made


def bytes_of(files: Storage, file: str, *where: int) -> bytes:
    return b"".join(files.read(file, *where))


def names(files: Storage) -> list[str]:
    return sorted(files.names(-1.0))


@pytest.mark.parametrize("size", [0, 1, s3files.PART - 1, s3files.PART, 2 * s3files.PART + 7])
def test_a_file_is_what_was_written(files: Storage, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with files.new("o-" + "a" * 64, size) as writer:
        for at in range(0, size, MIB):
            writer.write(data[at:at + MIB])
        assert names(files) == [] and not files.exists(writer.name)
        made = record(files, data, file=writer.name)
        writer.publish(made)
    assert names(files) == [made.file] and files.exists(made.file)
    assert bytes_of(files, made.file) == data == b"".join(files.reread(made.file))
    assert files.description(made.file) == made
    if size > 8:
        assert bytes_of(files, made.file, 3, 5) == data[3:8] and bytes_of(files, made.file, size - 2) == data[-2:]
        with contextlib.closing(files.open(made, 4, size - 6)) as reader:
            blocks = []
            while block := reader.read(300_000):
                blocks.append(block)
            assert b"".join(blocks) == data[4:size - 2]


def test_what_is_not_published_is_gone(files: Storage) -> None:
    for size in (10, s3files.PART + 10):
        with files.new("o-" + "a" * 64) as writer:
            writer.write(bytes(size))
        writer.close()
    assert names(files) == []
    if isinstance(files, S3Files):
        assert list(files.backend.uploads()) == []


@pytest.mark.parametrize("metadata", [{}, LONG], ids=["short", "long"])
def test_a_copy_lives_without_what_it_was_made_of(files: Storage, metadata: dict[str, str]) -> None:
    old = put(files, b"bytes")
    new = record(files, b"bytes", metadata=metadata, key="other")
    files.link(old.file, new)
    files.remove(old.file)
    assert names(files) == [new.file] and bytes_of(files, new.file) == b"bytes"
    assert files.description(new.file) == new
    with pytest.raises(FileNotFoundError):
        files.link(old.file, record(files, b"bytes", metadata=metadata))
    with contextlib.suppress(StopIteration):  # a description that lacks its file is a leftover
        files.remove(next(name for name in names(files) if name != new.file))
    assert names(files) == [new.file]


def test_descriptions_change_and_do_not_go_back(files: Storage) -> None:
    made = put(files, b"bytes", metadata=LONG)
    assert files.description(made.file) == made
    later, latest = replace(made, tags={"a": "1"}, revision=1), replace(made, tags={"a": "2"}, revision=2)
    files.describe(latest)
    files.describe(later)
    assert files.description(made.file) == latest and names(files) == [made.file]
    files.describe(replace(latest, revision=3, tags={}))
    assert files.description(made.file).tags == {}
    files.remove(made.file)
    files.describe(replace(latest, revision=4))
    assert names(files) == []
    with pytest.raises(Unreadable):
        files.description(made.file)


def test_what_is_gone_is_told_so(files: Storage) -> None:
    gone = record(files, b"x")
    with pytest.raises(FileNotFoundError):
        files.open(gone)
    with pytest.raises(FileNotFoundError):
        bytes_of(files, gone.file)
    with pytest.raises(FileNotFoundError):
        list(files.reread(gone.file))
    files.remove(gone.file)
    there = put(files, b"some bytes")
    with pytest.raises(OSError, match="bytes, not"):
        files.open(replace(there, size=3))


def test_parts_become_one_file(files: Storage, tmp_path: Path) -> None:
    parts = [part(files, 1, b"1" * (5 * MIB)), part(files, 2, b"2" * (6 * MIB)), part(files, 3, b"3")]
    data = b"1" * (5 * MIB) + b"2" * (6 * MIB) + b"3"
    with files.new("o-" + "a" * 64) as writer:
        done = writer.append(parts)
        assert done == isinstance(files, S3Files)
        if not done:
            for one in parts:
                for block in files.read(one.file):
                    writer.write(block)
        made = record(files, data, file=writer.name)
        writer.publish(made)
    assert bytes_of(files, made.file) == data and files.description(made.file) == made
    files.remove(*(one.file for one in parts))
    assert names(files) == [made.file]
    with open(files.local(made, str(tmp_path)), "rb") as file:
        assert file.read() == data


def test_a_finished_file_is_taken(files: Storage, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"image" * 2 * MIB)
    made = record(files, path.read_bytes())
    files.take(str(path), made)
    assert not path.exists() and files.description(made.file) == made
    assert hashlib.sha256(bytes_of(files, made.file)).hexdigest() == made.sha256


def test_quarantine(files: Storage) -> None:
    bad, lost = put(files, b"bad"), record(files, b"lost")
    files.quarantine(replace(bad, damaged=True, revision=1))
    files.quarantine(replace(lost, damaged=True, revision=1))
    assert names(files) == [] and not files.exists(bad.file)
    found = {files.description(name).sha256 for name in files.quarantined()}
    assert found == {bad.sha256, lost.sha256}
    files.remove(bad.file)
    assert [files.description(name).sha256 for name in files.quarantined()] == [lost.sha256]


def test_registers(files: Storage) -> None:
    first, second = (Bucket("b", project_id="p", created=at, version=1) for at in (1.0, 2.0))
    files.buckets.put(first)
    files.buckets.put(second)
    files.buckets.put(first)
    files.buckets.put(replace(second, version=3, versioning="Enabled"))
    files.buckets.put(replace(second, version=2, versioning="Suspended"))
    files.buckets.remove(first)  # it was deleted before, and who did it comes late
    assert files.buckets.get("b") == replace(second, version=3, versioning="Enabled")
    assert files.buckets.ids() == ["b"] and files.buckets.ids(time.time() - 3600) == [] and files.uploads.ids() == []
    files.buckets.remove(second)
    assert files.buckets.get("b") is None and files.buckets.ids() == []
    with pytest.raises(ValueError, match="cannot be"):
        files.buckets.get("../b")


def test_names_are_given_once(files: Storage) -> None:
    assert files.id() == ""
    files.set_id("one")
    files.set_id("two")
    assert files.id() == "one"
    put(files, b"young")
    assert list(files.names(3600)) == []


# -- the bucket -------------------------------------------------------------------------------------------------------

@pytest.fixture(name="bucket")
def bucket_fixture(cluster: Ceph) -> Iterator[S3Files]:
    with contextlib.closing(opened(cluster)) as files:
        yield files


@ceph.needs_ceph
def test_a_copy_that_is_too_large_for_one_call(bucket: S3Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3files, "_LARGEST_COPY", 6 * MIB)
    monkeypatch.setattr(s3files, "_COPY_PART", 5 * MIB)
    data = b"".join(bytes([n]) * MIB for n in range(13))
    old = put(bucket, data)
    new = record(bucket, data)
    bucket.link(old.file, new)
    assert bytes_of(bucket, new.file) == data and bucket.description(new.file) == new
    bucket.quarantine(replace(new, damaged=True))
    assert [bucket.description(name).damaged for name in bucket.quarantined()] == [True]
    assert bytes_of(bucket, bucket.quarantined()[0]) == data


@ceph.needs_ceph
def test_uploads_of_the_dead_are_ended(bucket: S3Files) -> None:
    writer = bucket.new("o-" + "a" * 64)
    writer.write(bytes(s3files.PART))
    bucket.remove_unfinished()
    assert len(list(bucket.backend.uploads())) == 1
    FLAGS.objectstore_s3_upload_age = 0
    bucket.remove_unfinished()
    assert list(bucket.backend.uploads()) == []
    writer.close()


@ceph.needs_ceph
def test_a_full_cluster(cluster: Ceph, bucket: S3Files) -> None:
    old = put(bucket, b"x")
    cluster.limit(max_size=0)
    try:
        with pytest.raises(OSError, match="full"):
            put(bucket, bytes(MIB))
        with pytest.raises(OSError, match="full"), bucket.new("o-" + "a" * 64) as writer:
            writer.write(bytes(2 * s3files.PART))
        with pytest.raises(OSError, match="full"):
            bucket.link(old.file, record(bucket, b"x"))
    finally:
        cluster.limit(max_size=-1)
    assert names(bucket) == [old.file] and list(bucket.backend.uploads()) == []


@ceph.needs_ceph
def test_a_bucket_that_is_not_there_has_not_lost_its_files(cluster: Ceph) -> None:
    files = S3Files(s3backend.Backend(cluster.client(), "no-such-bucket"), 2)
    with contextlib.closing(files):
        for call in (lambda: files.exists("aa/x"), lambda: bytes_of(files, "aa/x"), files.id, lambda: names(files),
                     lambda: files.remove("aa/x"), lambda: put(files, b"x"), lambda: files.description("aa/x")):
            with pytest.raises(exception.Unavailable, match="no bucket"):
                call()


@ceph.needs_ceph
def test_as_the_flags_have_it_over_https(cluster: Ceph, bucket: S3Files, tmp_path: Path) -> None:
    """radosgw takes no checksums in trailers there, which boto3 sends unasked."""
    (tmp_path / "secret").write_text(ceph.SECRET + "\n")
    FLAGS.objectstore_driver, FLAGS.objectstore_s3_bucket = "s3", bucket.backend.bucket
    FLAGS.objectstore_s3_endpoint, FLAGS.objectstore_s3_access_key = cluster.secure_url, ceph.ACCESS
    FLAGS.objectstore_s3_prefix, FLAGS.objectstore_s3_secret_file = "/deep/down", str(tmp_path / "secret")
    with contextlib.closing(driver.open_files()) as files, pytest.raises(exception.Unavailable, match="certificate"):
        files.id()
    FLAGS.objectstore_s3_ca_file = str(cluster.certificate)
    with contextlib.closing(driver.open_files()) as files:
        small, large = put(files, b"small"), put(files, bytes(s3files.PART + 1))
        copy = record(files, b"small")
        files.link(small.file, copy)
        files.describe(replace(small, revision=1))
        assert bytes_of(files, copy.file) == b"small" and bytes_of(files, large.file, s3files.PART) == b"\0"
        files.remove(small.file)
        assert names(files) == sorted((large.file, copy.file))
        keys = {found.key for found in bucket.backend.list()}
        assert keys == {f"deep/down/{name}" for name in (large.file, large.file + ".meta", copy.file)}


@pytest.mark.parametrize(("flags", "said"), [
    ({}, "objectstore_s3_bucket"),
    ({"objectstore_s3_bucket": "b", "objectstore_s3_access_key": "a"}, "belong together"),
    ({"objectstore_s3_bucket": "b", "objectstore_s3_secret_file": "/nowhere/secret"}, "No such file")])
def test_flags_that_do_not_tell_enough(flags: dict[str, str], said: str) -> None:
    FLAGS.objectstore_driver = "s3"
    for name, value in flags.items():
        setattr(FLAGS, name, value)
    with pytest.raises(FlagError, match=said):
        driver.open_files()


def test_descriptions_as_metadata() -> None:
    made = Object("a" * 64, bucket="b", key="ü" * 100, project_id="p", file="aa/o-x-1", size=1, md5="m", sha256="s",
                  etag="e", modified=1.0)
    packed = s3files._packed(made)
    assert s3files._unpacked(packed["nova"]) == made and packed["nova"].isascii()
    assert s3files._packed(replace(made, metadata=LONG)) == {}
    for text in ("?", "", packed["nova"][:-8] + "AAAAAAA="):
        with pytest.raises(Unreadable):
            s3files._unpacked(text)
    assert description.SCHEMA == 1
