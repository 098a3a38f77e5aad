"""Descriptions of records on the disk: where they are, what of them is believed, which of two stays."""

import dataclasses
import errno
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.objectstore import description
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, Part, Upload

OBJECT = Object("x", bucket="b", key="schlüssel/\x01", project_id="p", file="", size=5, md5="m", sha256="s", etag="e",
                modified=1700000000.123456, metadata={"a": "ä"}, part_sizes=[1, 4], tags={"t": ""}, version=7)


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> Iterator[Files]:
    files = Files(str(tmp_path))
    yield files
    files.close()


def put(files: Files, **changes: object) -> Object:
    with files.new("o-x") as writer:
        writer.write(b"hello")
        record = dataclasses.replace(OBJECT, file=writer.name, **changes)  # type: ignore[arg-type]
        writer.publish(record)
    return record


def aside(files: Files, record: Object) -> Path:
    return Path(files.path(record.file) + description.ASIDE)


@pytest.mark.parametrize("record", [
    OBJECT, Bucket("b", project_id="p", created=1.25, configuration={"cors": [{"ID": "ü"}]}, version=3),
    Part("u.00001", upload_id="u", number=1, file="f", size=1, md5="m", modified=0.1),
    Upload("u", bucket="b", key="k", project_id="p", initiated=2.5)], ids=lambda record: type(record).__name__)
def test_what_is_described_is_read_again(record) -> None:
    assert description.decode(description.encode(record)) == record


def test_every_changed_byte_is_found() -> None:
    data = description.encode(OBJECT)
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1
        try:
            assert description.decode(bytes(changed)) == OBJECT  # a space of the JSON, say
        except description.Unreadable:
            continue


def test_fields_of_a_later_nova_are_left_out_but_not_its_schema() -> None:
    def crc(content: dict) -> bytes:
        content.pop("crc32", None)
        data = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        return json.dumps({**content, "crc32": zlib.crc32(data)}).encode()
    content = json.loads(description.encode(OBJECT))
    content["fields"]["colour"] = "red"
    assert description.decode(crc(content)) == OBJECT
    content["schema"] = 2
    with pytest.raises(description.Unreadable, match="the schema 2"):
        description.decode(crc(content))


def test_the_attribute_is_enough_for_what_is_small(files: Files) -> None:
    record = put(files)
    assert os.getxattr(files.path(record.file), description.ATTRIBUTE) == description.encode(record)
    assert not aside(files, record).exists() and files.description(record.file) == record


def test_what_does_not_fit_is_beside_the_file(files: Files) -> None:
    record = put(files, metadata={"a": "x" * 100_000})
    assert aside(files, record).exists() and files.description(record.file) == record
    files.remove(record.file)
    assert list(files.names(-1)) == []


def test_a_file_system_without_attributes(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")
    monkeypatch.setattr(os, "setxattr", without)
    record = put(files)
    assert aside(files, record).exists() and files.description(record.file) == record


def test_a_copy_is_what_is_said_beside_it(files: Files) -> None:
    record = put(files)
    copy = dataclasses.replace(record, key="copy", file=files.name("o-y"))
    files.link(record.file, copy)
    assert files.description(copy.file) == copy and files.description(record.file) == record
    aside(files, copy).unlink()
    with pytest.raises(description.Unreadable, match="another name"):
        files.description(copy.file)


def test_a_copy_of_what_is_gone_leaves_nothing(files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        files.link("aa/o-gone-1", dataclasses.replace(OBJECT, file=files.name("o-y")))
    assert list(files.names(-1)) == []


def test_the_later_description_stays(files: Files) -> None:
    record = put(files)
    later = dataclasses.replace(record, revision=2, tags={"a": "2"})
    files.describe(later)
    files.describe(dataclasses.replace(record, revision=1, tags={"a": "1"}))
    assert files.description(record.file) == later
    files.remove(record.file)
    files.describe(dataclasses.replace(later, revision=3))
    assert list(files.names(-1)) == []


def test_a_bucket_of_the_same_name_is_another_one(files: Files) -> None:
    first = Bucket("b", project_id="p", created=1.0, version=100)
    second = Bucket("b", project_id="q", created=2.0, version=1)
    files.buckets.put(first)
    files.buckets.put(second)
    files.buckets.put(first)
    files.buckets.remove(first)  # it was deleted before, and who did it comes late
    assert files.buckets.get("b") == second and files.buckets.ids() == ["b"]
    files.buckets.remove(second)
    assert files.buckets.get("b") is None and files.buckets.ids() == []
    with pytest.raises(ValueError):
        files.buckets.get("../b")


def test_room_is_asked_for_before_it_is_needed(files: Files) -> None:
    with pytest.raises(OSError) as error:
        files.new("o-x", 1 << 60)
    assert error.value.errno == errno.ENOSPC
