"""The object store in trouble: large objects, races, clients that go away, lost answers, crashes."""

import asyncio
import base64
import hmac
import http.client
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from botocore.exceptions import ClientError

from nova import exception
from nova.auth import quota
from nova.auth.manager import AuthManager
from nova.datastore import Transaction
from nova.flags import FLAGS
from nova.objectstore import buckets, holdings, multipart, objects
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.operations import multipart as multipart_operations
from nova.objectstore.service import ObjectStoreService
from nova.objectstore.storage import Undo
from tests.conftest import wait_until
from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
    Server,
    Zeros,
    add_users,
    bucket_fixture,
    code_of,
    own_fixture,
    s3_fixture,
    server_fixture,
    sign,
    signed,
    start,
    stop,
)

# -- robustness -------------------------------------------------------------------------------------------------------

def test_memory_does_not_grow_with_the_object(server, s3, bucket):
    s3.put_object(Bucket=bucket, Key="warm", Body=Zeros(8 * MIB))
    s3.get_object(Bucket=bucket, Key="warm")["Body"].read()
    before = server.resident()
    s3.put_object(Bucket=bucket, Key="k", Body=Zeros(256 * MIB))
    body = s3.get_object(Bucket=bucket, Key="k")["Body"]
    assert sum(len(piece) for piece in body.iter_chunks(MIB)) == 256 * MIB
    assert server.resident() - before < 40 * MIB


def test_client_that_goes_away_leaves_nothing(server, bucket):
    before = set(server.files())
    request = sign(server, "PUT", f"/{bucket}/k", b"", payload="UNSIGNED-PAYLOAD")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest("PUT", f"/{bucket}/k")
    for name, value in request.headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(50 * MIB))
    connection.endheaders()
    connection.send(b"x" * (3 * MIB))
    connection.close()
    fds = Path(f"/proc/{server.process.pid}/fd")

    def no_open_files() -> bool:
        return not any("/objects/" in os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink())
    wait_until(no_open_files, 10)
    assert set(server.files()) == before and signed(server, "GET", f"/{bucket}/k")[0] == 404


def test_delete_bucket_against_concurrent_puts(server, s3):
    for n in range(5):
        name = f"race-{n}"
        s3.create_bucket(Bucket=name)
        results: dict[str, object] = {}

        def put(name=name, results=results) -> None:
            try:
                server.client().put_object(Bucket=name, Key="k", Body=b"x")
                results["put"] = "done"
            except ClientError as error:
                results["put"] = error.response["Error"]["Code"]

        def delete(name=name, results=results) -> None:
            try:
                server.client().delete_bucket(Bucket=name)
                results["delete"] = "done"
            except ClientError as error:
                results["delete"] = error.response["Error"]["Code"]
        threads = [threading.Thread(target=put), threading.Thread(target=delete)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert sorted(results.values()) in (["BucketNotEmpty", "done"], ["NoSuchBucket", "done"]), results
        if results["put"] == "done":
            s3.delete_object(Bucket=name, Key="k")
            s3.delete_bucket(Bucket=name)


def test_concurrent_overwrites_leave_one_whole_object(server, s3, bucket):
    before = len(server.files())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: server.client().put_object(Bucket=bucket, Key="k", Body=bytes((n,)) * 300000),
                      range(16)))
    body = s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    assert len(body) == 300000 and len(set(body)) == 1
    server.wait_for_files(before + 1)


def test_datastore_down_is_503(server, s3, bucket):
    server.redis.kill()
    try:
        started = time.monotonic()
        with pytest.raises(ClientError) as error:
            server.client(retries={"max_attempts": 0, "mode": "legacy"}).list_objects_v2(Bucket=bucket)
        assert code_of(error) == ("ServiceUnavailable", 503) and time.monotonic() - started < 3
    finally:
        server.redis.start()
    wait_until(lambda: signed(server, "GET", f"/{bucket}")[0] == 200, 10)


async def stored(store, files: Files, bucket: Bucket, data: bytes) -> Object:
    with files.new(f"o-{object_id(bucket.id, 'k')}") as writer:
        writer.write(data)
        new = Object(object_id(bucket.id, "k"), bucket=bucket.id, key="k", project_id="one", file=writer.name,
                     size=len(data), md5="m", sha256="s", etag="m", modified=0.0)
        writer.publish(new)
    return new


async def test_an_answer_of_the_datastore_that_gets_lost_costs_no_object(store, tmp_path, monkeypatch):
    files = Files(str(tmp_path))
    bucket = await buckets.create(store, files, "bucket", "one", "one")
    new = await stored(store, files, bucket, b"hello")
    real = Transaction.commit

    async def commit_and_lose_the_answer(tx) -> list[str]:
        await real(tx)
        monkeypatch.setattr(Transaction, "commit", real)
        raise exception.DatastoreUnavailable()
    monkeypatch.setattr(Transaction, "commit", commit_and_lose_the_answer)
    with pytest.raises(exception.DatastoreUnavailable):
        async with Undo(files, new.file):
            await objects.put(store, files, bucket, new)
    assert (await objects.open_object(store, "bucket", "k")).file == new.file
    assert list(files.names(-1)) == [new.file]
    only_new = objects.write_check({"If-None-Match": "*"})
    await objects.put(store, files, bucket, new, only_new)  # the same put once more, as after a lost answer
    other = await stored(store, files, bucket, b"other")
    with pytest.raises(exception.S3Error):
        async with Undo(files, other.file):
            await objects.put(store, files, bucket, other, only_new)
    assert list(files.names(-1)) == [new.file]
    files.close()


async def test_what_a_request_saw_at_its_beginning_may_have_changed(store, tmp_path):
    files = Files(str(tmp_path))
    bucket = await buckets.create(store, files, "bucket", "one", "one")

    async def put(data: bytes, seen: objects.Seen | None, check: objects.Check | None = None) -> Object:
        new = await stored(store, files, bucket, data)
        async with Undo(files, new.file):
            return await objects.put(store, files, bucket, new, check, seen=seen)

    async def see() -> objects.Seen:
        return (await objects.see(store, "bucket", "k", "one", "one"))[1]
    nothing = await see()
    assert nothing.current is None
    await put(b"faster", None)
    with pytest.raises(exception.S3Error):
        await put(b"new", nothing, objects.write_check({"If-None-Match": "*"}))
    await put(b"later", nothing)
    something = await see()
    await put(b"replaced", None)
    last = await put(b"last", something)
    assert (await objects.open_object(store, "bucket", "k")).file == last.file
    something = await see()
    await put(b"for good", None)
    await objects.delete(store, files, bucket, "k", seen=something)
    assert await objects.find(store, "bucket", "k") is None
    last = await put(b"from the beginning", something)
    async with asyncio.timeout(10):
        while list(files.names(-1)) != [last.file]:
            await asyncio.sleep(0.01)
    assert await quota.recount(store, [holdings.holdings]) == []
    files.close()


async def test_a_long_completion_shows_signs_of_life(store, redis_server, tmp_path, monkeypatch):
    add_users(redis_server.url)
    FLAGS.objects_path = str(tmp_path)
    service = ObjectStoreService(store, AuthManager(store), port=0, address="127.0.0.1")
    await service.start()
    waited = threading.Event()
    real = multipart._assemble

    def slow(*arguments) -> Object:
        assert waited.wait(10)
        return real(*arguments)
    monkeypatch.setattr(multipart, "_assemble", slow)
    monkeypatch.setattr(multipart_operations, "_PATIENCE", 0.01)
    running = Server(None, service.port, tmp_path, tmp_path)

    def complete(part: bytes) -> bytes:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        upload = s3.create_multipart_upload(Bucket="bucket", Key="k")["UploadId"]
        made = s3.upload_part(Bucket="bucket", Key="k", UploadId=upload, PartNumber=1, Body=part)["ETag"]
        body = (f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{made}</ETag></Part>"
                "</CompleteMultipartUpload>").encode()
        path = f"/bucket/k?uploadId={upload}"
        request = sign(running, "POST", path, body)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        connection.request("POST", path, body, dict(request.headers.items()))
        answer = connection.getresponse()  # the headers come before it is done
        assert answer.status == 200 and not waited.is_set()
        first = answer.read(60)
        waited.set()
        return first + answer.read()
    answer = await asyncio.to_thread(complete, b"x")
    assert re.match(rb"<\?xml[^>]*>\n +<CompleteMultipartUploadResult", answer)
    assert (await objects.open_object(store, "bucket", "k")).size == 1
    await service.stop()


# -- crashes ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("point, there", [("objectstore.put.published", b"old"), ("objectstore.put.committed", b"new")])
def test_crash_while_putting_is_swept(own, point, there):
    own_redis, directory = own
    server = start(own_redis.url, directory)
    server.client().create_bucket(Bucket="bucket")
    server.client().put_object(Bucket="bucket", Key="k", Body=b"old")
    stop(server)
    server = start(own_redis.url, directory, f"--failpoint={point}")
    with pytest.raises(Exception, match="(?i)connection"):
        server.client(retries={"max_attempts": 0, "mode": "legacy"}).put_object(Bucket="bucket", Key="k", Body=b"new")
    server.process.wait(10)
    assert len(server.files()) == 2
    server = start(own_redis.url, directory, "--objects_orphan_age=0")
    wait_until(lambda: len(server.files()) == 1, 10)
    assert server.client().get_object(Bucket="bucket", Key="k")["Body"].read() == there
    stop(server)


def test_crash_after_completing_an_upload_is_swept(own):
    own_redis, directory = own
    server = start(own_redis.url, directory, "--failpoint=objectstore.complete.committed")
    s3 = server.client(retries={"max_attempts": 0, "mode": "legacy"})
    s3.create_bucket(Bucket="bucket")
    upload = s3.create_multipart_upload(Bucket="bucket", Key="k")["UploadId"]
    part = s3.upload_part(Bucket="bucket", Key="k", UploadId=upload, PartNumber=1, Body=b"hello")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    with pytest.raises(Exception, match="(?i)connection"):
        s3.complete_multipart_upload(Bucket="bucket", Key="k", UploadId=upload, MultipartUpload=parts)
    server.process.wait(10)
    server = start(own_redis.url, directory, "--objects_orphan_age=0")
    wait_until(lambda: len(server.files()) == 1, 10)
    s3 = server.client()
    assert s3.complete_multipart_upload(Bucket="bucket", Key="k", UploadId=upload, MultipartUpload=parts)["ETag"]
    assert s3.get_object(Bucket="bucket", Key="k")["Body"].read() == b"hello"
    client = redis.Redis.from_url(own_redis.url)
    assert not client.keys("nova:part*") and not client.keys("nova:upload*") and not client.keys("nova:bucket-uploads*")
    client.close()
    stop(server)


def test_stop_lets_a_running_download_end(own):
    own_redis, directory = own
    server = start(own_redis.url, directory)
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="k", Body=Zeros(32 * MIB))
    body = s3.get_object(Bucket="bucket", Key="k")["Body"]
    first = body.read(MIB)
    server.process.terminate()
    assert len(first) + len(body.read()) == 32 * MIB
    assert server.process.wait(15) == 0


def test_v2_header_with_amz_date_and_virtual_host_name(own):
    own_redis, directory = own
    server = start(own_redis.url, directory, "--s3_domain=s3.example")
    server.client().create_bucket(Bucket="bucket")
    date = formatdate(usegmt=True)
    text = f"PUT\n\n\n\nx-amz-date:{date}\n/bucket/dir/k"
    signature = base64.b64encode(hmac.digest(b"secretone", text.encode(), "sha1")).decode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("PUT", "/dir/k", b"hello", {"Host": f"bucket.s3.example:{server.port}", "x-amz-date": date,
                                                   "Authorization": f"AWS keyone:one:{signature}"})
    assert connection.getresponse().status == 200
    assert server.client().get_object(Bucket="bucket", Key="dir/k")["Body"].read() == b"hello"
    assert urlsplit(server.url).port == server.port
    stop(server)
