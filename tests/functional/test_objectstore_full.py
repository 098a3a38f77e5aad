"""A disk that is full or cannot be written: what clients are told, and what is left."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from nova import datastore
from nova.auth import quota
from nova.objectstore import holdings
from tests.conftest import RedisServer
from tests.functional.s3 import MIB, Server, Zeros, code_of, own_fixture, start  # noqa: F401 (a fixture)
from tests.functional.test_objectstore_crashes import in_loop

SIZE = 24 * MIB
FULL = ("InsufficientStorage", 507)


@pytest.fixture(name="small")
def small_fixture(own: tuple[RedisServer, Path]) -> Iterator[Server]:
    """A server whose objects are on a disk of 24 MiB, which only it sees, with the bucket 'here'."""
    own_redis, directory = own
    (directory / "objects").mkdir()
    mount = f"mount -t tmpfs -o size={SIZE} tmpfs {directory}/objects && exec \"$@\""
    server = start(own_redis.url, directory, within=("unshare", "--mount", "sh", "-c", mount, "sh"))
    server.objects = Path(f"/proc/{server.process.pid}/root{directory}/objects")
    server.redis = own_redis  # type: ignore[attr-defined]
    server.client().create_bucket(Bucket="here")
    yield server
    server.process.kill()
    server.process.wait()


def outcome(call: Any) -> tuple[str, int]:
    """("done", 200), or the error; anything that is no answer of the server is raised."""
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    return "done", 200


def counters_agree(server: Server) -> None:
    async def check(store: datastore.Store) -> None:
        assert await quota.recount(store, [holdings.holdings]) == []
    in_loop(server.redis.url, check)  # type: ignore[attr-defined]


def test_a_full_disk(small: Server) -> None:
    s3 = small.client()
    s3.put_object(Bucket="here", Key="k", Body=b"old")
    s3.put_object(Bucket="here", Key="large", Body=Zeros(16 * MIB))
    assert outcome(lambda: s3.put_object(Bucket="here", Key="k", Body=Zeros(16 * MIB))) == FULL
    upload = s3.create_multipart_upload(Bucket="here", Key="k")["UploadId"]

    def part(size: int) -> str:
        return s3.upload_part(Bucket="here", Key="k", UploadId=upload, PartNumber=1, Body=Zeros(size))["ETag"]
    assert outcome(lambda: part(16 * MIB)) == FULL
    parts = {"Parts": [{"PartNumber": 1, "ETag": part(6 * MIB)}]}

    def complete() -> None:
        s3.complete_multipart_upload(Bucket="here", Key="k", UploadId=upload, MultipartUpload=parts)
    assert outcome(complete) == FULL
    assert len(small.files()) == 3
    answers = [outcome(lambda n=n: s3.put_object(Bucket="here", Key=f"small-{n}", Body=Zeros(MIB // 2)))  # type: ignore
               for n in range(6)]
    assert answers[0] == ("done", 200) and answers[-1] == FULL  # found while it was written
    assert outcome(lambda: s3.put_object(Bucket="here", Key="k", Body=Zeros(MIB // 2))) == FULL
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"old"
    assert len(small.files()) == 3 + answers.count(("done", 200))
    counters_agree(small)
    s3.delete_object(Bucket="here", Key="large")
    complete()
    assert s3.head_object(Bucket="here", Key="k")["ContentLength"] == 6 * MIB
    counters_agree(small)


def test_a_disk_that_gets_full_while_many_write(small: Server) -> None:
    """None of them sees a broken connection, although there was room when each began."""
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda n: outcome(lambda: small.client().put_object(
            Bucket="here", Key=f"k{n}", Body=Zeros(10 * MIB))), range(5)))
    assert set(answers) <= {FULL, ("done", 200)} and answers.count(FULL) >= 3
    assert len(small.files()) == answers.count(("done", 200))
    s3 = small.client()
    for item in s3.list_objects_v2(Bucket="here").get("Contents", []):
        s3.delete_object(Bucket="here", Key=item["Key"])
    s3.put_object(Bucket="here", Key="k", Body=Zeros(20 * MIB))  # nothing is left of what was refused
    counters_agree(small)


def test_a_disk_that_cannot_be_written(small: Server) -> None:
    s3 = small.client(retries={"max_attempts": 0, "mode": "legacy"})
    s3.put_object(Bucket="here", Key="k", Body=b"old")

    def remount(how: str) -> None:
        directory = str(small.objects).partition("/root")[2]
        subprocess.run(["nsenter", "--mount", f"--target={small.process.pid}", "mount", "-o", f"remount,{how}",
                        directory], check=True)
    remount("ro")
    unavailable = ("ServiceUnavailable", 503)
    assert outcome(lambda: s3.put_object(Bucket="here", Key="k", Body=b"new")) == unavailable
    assert outcome(lambda: s3.put_object(Bucket="here", Key="l", Body=Zeros(2 * MIB))) == unavailable
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"old"
    remount("rw")
    s3.put_object(Bucket="here", Key="k", Body=b"new")
    assert s3.get_object(Bucket="here", Key="k")["Body"].read() == b"new"
    counters_agree(small)


def test_a_disk_that_gets_full_with_small_objects(small: Server) -> None:
    """Files that are written together: those for which there is no room harm none of the others."""
    small.client().put_object(Bucket="here", Key="large", Body=Zeros(22 * MIB))
    size = 100 << 10

    def put(n: int) -> tuple[str, int]:
        return outcome(lambda: small.client().put_object(Bucket="here", Key=f"k{n}", Body=bytes([n]) * size))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(put, range(48)))
    assert set(answers) == {FULL, ("done", 200)}
    small.wait_for_files(1 + answers.count(("done", 200)))
    s3 = small.client()
    for n, answer in enumerate(answers):
        there = outcome(lambda n=n: s3.head_object(Bucket="here", Key=f"k{n}"))  # type: ignore[misc]
        assert there == (("done", 200) if answer == ("done", 200) else ("404", 404))
        if there == ("done", 200):
            assert s3.get_object(Bucket="here", Key=f"k{n}")["Body"].read() == bytes([n]) * size
    counters_agree(small)
