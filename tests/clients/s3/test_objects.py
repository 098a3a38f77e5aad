"""Buckets and objects in the hands of each client, seen by another."""

from pathlib import Path

import pytest

from tests.clients.s3.client import MIB, Client, Seen, etag_of_parts, files_below, md5, random_bytes
from tests.clients.s3.conftest import WAYS, new_name, part_sizes
from tests.clients.s3.libraries import Boto3

METADATA = {"colour": "light blue", "sum": "1+1=2"}
#: keys and what is put under them
ODD = {"a b+c/ümläut 漢字": b"first", "?x=y&z#end 100%41 %2F'\"<&>~(1)!*@:,;=$": b"", "slash//twice": b"third"}


@pytest.mark.ways(*WAYS)
def test_round(client: Client, witness: Boto3, tmp_path: Path):
    """Bucket and object, from the making to the removal."""
    bucket, data = new_name(), random_bytes(100_003, "round")
    (tmp_path / "file").write_bytes(data)
    client.make_bucket(bucket)
    assert bucket in client.buckets()

    client.put(bucket, "folder/key", tmp_path / "file", "image/x-test", METADATA)
    assert witness.api.get_object(Bucket=bucket, Key="folder/key")["Body"].read() == data
    seen = Seen(len(data), md5(data), "image/x-test", METADATA)
    for one in (client, witness):
        found = one.head(bucket, "folder/key")
        assert (found.size, found.etag, found.content_type) == (seen.size, seen.etag, seen.content_type)
        assert METADATA.items() <= found.metadata.items()  # some clients add the time of the file
    client.get(bucket, "folder/key", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert client.keys(bucket) == ["folder/key"]

    client.copy(bucket, "folder/key", "the copy")
    client.delete(bucket, "folder/key")
    copy = witness.head(bucket, "the copy")
    assert (copy.size, copy.etag, copy.content_type) == (seen.size, seen.etag, seen.content_type)
    assert METADATA.items() <= copy.metadata.items()

    assert witness.keys(bucket) == ["the copy"]
    witness.delete(bucket, "the copy")
    client.remove_bucket(bucket)
    assert bucket not in witness.buckets()


def test_odd_keys(client: Client, witness: Boto3, bucket: str, tmp_path: Path):
    """Keys are what they were given as, in all directions, and empty objects empty; then all go at once."""
    keys = [key for key in ODD if client.double_slashes or "//" not in key]
    for number, key in enumerate(keys):
        (tmp_path / "file").write_bytes(ODD[key])
        client.put(bucket, key, tmp_path / "file")
        assert witness.api.get_object(Bucket=bucket, Key=key)["Body"].read() == ODD[key]
        client.get(bucket, key, tmp_path / f"back{number}")
        assert (tmp_path / f"back{number}").read_bytes() == ODD[key]
    assert sorted(client.keys(bucket)) == sorted(witness.keys(bucket)) == sorted(keys)
    copy = f"{keys[1]} copy"
    client.copy(bucket, keys[0], copy)
    assert witness.head(bucket, copy).etag == md5(ODD[keys[0]])
    client.delete_many(bucket, [*keys, copy])
    assert witness.keys(bucket) == []


@pytest.mark.ways(*WAYS)
def test_large_object(client: Client, witness: Boto3, bucket: str, tmp_path: Path):
    """It goes up in parts and comes back whole, and in a piece that lies in two parts."""
    data = random_bytes(17 * MIB + 12_345, "large")
    (tmp_path / "file").write_bytes(data)
    client.put(bucket, "large", tmp_path / "file")

    sizes = part_sizes(witness, bucket, "large")
    assert len(sizes) > 1 and witness.head(bucket, "large").etag == etag_of_parts(data, sizes)
    assert witness.api.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []

    client.get(bucket, "large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    if hasattr(client, "get_range"):
        end = sizes[0]
        assert client.get_range(bucket, "large", end - 10, end + 9) == data[end - 10:end + 10]
        assert client.get_range(bucket, "large", len(data) - 1, len(data) - 1) == data[-1:]


@pytest.mark.ways("direct")  # its requests are those of the tests above
@pytest.mark.needs("sync_up", "sync_down")
def test_sync(client: Client, witness: Boto3, bucket: str, tmp_path: Path):
    """A bucket follows a directory, a directory follows a bucket, and what has not changed is left alone."""
    def modified() -> dict:
        return {one["Key"]: one["LastModified"]
                for one in witness.api.list_objects_v2(Bucket=bucket).get("Contents", ())}

    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("one", "deep/er/two", "a b+ü/three"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(random_bytes(1000, name))
    client.sync_up(here, bucket)
    before = modified()
    assert set(before) == {"one", "deep/er/two", "a b+ü/three"}

    (here / "one").write_bytes(b"changed, and of another size")
    (here / "deep/er/two").unlink()
    (here / "four").write_bytes(b"4")
    client.sync_up(here, bucket)
    after = modified()
    assert set(after) == {"one", "a b+ü/three", "four"}
    assert after["a b+ü/three"] == before["a b+ü/three"]

    there.mkdir()
    (there / "not in the bucket").write_bytes(b"x")
    client.sync_down(bucket, there)
    assert files_below(there) == files_below(here)
