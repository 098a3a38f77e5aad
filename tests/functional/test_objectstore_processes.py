"""Several object stores that share one directory and one Redis, as on hosts with a shared file system."""

import http.client
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.conftest import RedisServer, wait_until
from tests.functional.nginx_server import Nginx
from tests.functional.s3 import MIB, ROOT, Server, code_of, own_stores, sign, signed, start, stop

SECRET = "only-nginx-knows"
#: both look all the time for what they may remove
_BUSY = ("--objects_sweep_interval=1", "--objects_orphan_age=3", "--objects_lifecycle_interval=1")
_names = itertools.count()


@dataclass
class Pair:
    """Two object stores, and nginx before both."""

    redis: RedisServer
    directory: Path
    one: Server
    two: Server
    nginx: Nginx

    @property
    def both(self) -> tuple[Server, Server]:
        return self.one, self.two

    def client(self):
        """A client that goes through nginx, and asks once."""
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.nginx.s3_port}",
                            aws_access_key_id="keyone:one", aws_secret_access_key="secretone", region_name="nova",
                            config=Config(retries={"max_attempts": 1, "mode": "standard"}))


def begin(redis: RedisServer, directory: Path, host: str) -> Server:
    return start(redis.url, directory, f"--host={host}", f"--proxy_secret={SECRET}", "--s3_sendfile_size=65536", *_BUSY)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("processes")
    with own_stores(directory) as redis:
        one, two = begin(redis, directory, "one"), begin(redis, directory, "two")
        nginx = Nginx(directory / "nginx", [one.port, two.port], one.objects, SECRET)
        nginx.start()
        made = Pair(redis, directory, one, two, nginx)
        yield made
        nginx.stop()
        for server in made.both:
            stop(server)
        log = one.log.read_text(errors="replace")
    assert "Traceback" not in log and not re.search(r" 50[01] \d+ ms$", log, re.MULTILINE)


@pytest.fixture
def bucket(pair: Pair) -> str:
    name = f"shared-{next(_names)}"
    pair.one.client().create_bucket(Bucket=name)
    return name


def files_of(server: Server, bucket: str) -> int:
    """How many files there are of objects and parts of a bucket, by their descriptions."""
    needle = f'"bucket":"{bucket}"'.encode()
    found = 0
    for path in server.files():
        aside = Path(f"{path}.meta")
        if needle in (aside.read_bytes() if aside.exists() else os.getxattr(path, "user.nova")):
            found += 1
    return found


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What each call returns, or the error that it raises, when all run at the same time."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        gate.wait(30)
        try:
            return call()
        except (ClientError, BotoCoreError) as error:
            return error
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


# -- racing -----------------------------------------------------------------------------------------------------------

def test_writers_of_one_key_leave_one_whole_object(pair: Pair, bucket: str) -> None:
    def put(n: int) -> Callable[[], object]:
        client = pair.both[n % 2].client()
        return lambda: client.put_object(Bucket=bucket, Key="k", Body=bytes((n,)) * 300_000)
    results = at_once(*(put(n) for n in range(12)))
    assert not [found for found in results if isinstance(found, Exception)]
    bodies = {server.client().get_object(Bucket=bucket, Key="k")["Body"].read() for server in pair.both}
    assert len(bodies) == 1
    [body] = bodies
    assert len(body) == 300_000 and len(set(body)) == 1
    assert files_of(pair.one, bucket) == 1


def test_only_one_process_writes_what_is_not_there(pair: Pair, bucket: str) -> None:
    for turn in range(5):
        clients = [server.client() for server in pair.both for _ in range(4)]
        results = at_once(*(lambda n=n, client=client, key=f"k{turn}": client.put_object(
            Bucket=bucket, Key=key, Body=str(n).encode(), IfNoneMatch="*") and n
            for n, client in enumerate(clients)))
        won = [found for found in results if isinstance(found, int)]
        lost = {found.response["Error"]["Code"] for found in results if isinstance(found, ClientError)}
        assert len(won) == 1 and lost == {"PreconditionFailed"}
        assert pair.one.client().get_object(Bucket=bucket, Key=f"k{turn}")["Body"].read() == str(won[0]).encode()


def test_a_swap_by_etag_loses_no_update(pair: Pair, bucket: str) -> None:
    """If-Match makes a counter that two processes count up together."""
    pair.one.client().put_object(Bucket=bucket, Key="counter", Body=b"0")

    def count(server: Server) -> Callable[[], object]:
        client = server.client()

        def go() -> None:
            for _ in range(10):
                while True:
                    there = client.get_object(Bucket=bucket, Key="counter")
                    more = str(int(there["Body"].read()) + 1).encode()
                    try:
                        client.put_object(Bucket=bucket, Key="counter", Body=more, IfMatch=there["ETag"])
                        break
                    except ClientError as error:
                        assert error.response["Error"]["Code"] == "PreconditionFailed"
        return go
    assert at_once(*(count(server) for server in pair.both)) == [None, None]
    assert pair.two.client().get_object(Bucket=bucket, Key="counter")["Body"].read() == b"20"


def test_parts_through_both_completed_by_both(pair: Pair, bucket: str) -> None:
    clients = [server.client() for server in pair.both]
    data = [os.urandom(5 * MIB), os.urandom(5 * MIB), os.urandom(1000)]
    for turn in range(3):
        upload = clients[turn % 2].create_multipart_upload(Bucket=bucket, Key=f"k{turn}")["UploadId"]
        parts = [{"PartNumber": n, "ETag": clients[n % 2].upload_part(
            Bucket=bucket, Key=f"k{turn}", UploadId=upload, PartNumber=n, Body=part)["ETag"]}
            for n, part in enumerate(data, 1)]
        results = at_once(*(lambda client=client, n=turn, upload=upload, parts=parts: client.complete_multipart_upload(
            Bucket=bucket, Key=f"k{n}", UploadId=upload, MultipartUpload={"Parts": parts})["ETag"]
            for client in clients * 2))
        assert len(set(results)) == 1 and str(results[0]).endswith('-3"'), results
        body = clients[turn % 2].get_object(Bucket=bucket, Key=f"k{turn}")["Body"].read()
        assert body == b"".join(data)
        assert files_of(pair.one, bucket) == turn + 1


def test_completing_against_aborting(pair: Pair, bucket: str) -> None:
    one, two = (server.client() for server in pair.both)
    for turn in range(6):
        key = f"k{turn}"
        upload = one.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        part = two.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=os.urandom(100_000))
        completed, aborted = at_once(
            lambda key=key, upload=upload, tag=part["ETag"]: one.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]}),
            lambda key=key, upload=upload: two.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload))
        there = "Contents" in one.list_objects_v2(Bucket=bucket, Prefix=key)
        assert isinstance(completed, ClientError) != isinstance(aborted, ClientError)
        assert there == (not isinstance(completed, ClientError))
        lost = completed if isinstance(completed, ClientError) else aborted
        assert isinstance(lost, ClientError) and lost.response["Error"]["Code"] == "NoSuchUpload"
        assert "Uploads" not in one.list_multipart_uploads(Bucket=bucket)


def test_versions_through_both(pair: Pair, bucket: str) -> None:
    clients = [server.client() for server in pair.both]
    clients[0].put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def put(n: int) -> Callable[[], object]:
        return lambda: clients[n % 2].put_object(Bucket=bucket, Key="k", Body=f"{n}".encode())["VersionId"]

    def delete(n: int) -> Callable[[], object]:
        return lambda: clients[n % 2].delete_object(Bucket=bucket, Key="k")["VersionId"]
    calls = [put(n) if n % 3 else delete(n) for n in range(12)]
    ids = at_once(*calls)
    for client in clients:
        found = client.list_object_versions(Bucket=bucket)
        versions, markers = found["Versions"], found["DeleteMarkers"]
        assert {v["VersionId"] for v in versions} == {id for n, id in enumerate(ids) if n % 3}
        assert {v["VersionId"] for v in markers} == {id for n, id in enumerate(ids) if not n % 3}
        assert sum(v["IsLatest"] for v in [*versions, *markers]) == 1
    for n, id in enumerate(ids):
        if n % 3:
            assert clients[n % 2].get_object(Bucket=bucket, Key="k", VersionId=id)["Body"].read() == f"{n}".encode()
    gone = at_once(*(lambda id=id, client=client: client.delete_object(Bucket=bucket, Key="k", VersionId=id)
                     for id in ids for client in clients))
    assert not [error for error in gone if isinstance(error, Exception)]
    assert "Versions" not in clients[0].list_object_versions(Bucket=bucket) and files_of(pair.one, bucket) == 0


def test_one_of_two_makes_a_bucket(pair: Pair) -> None:
    calls = [server.client(user).create_bucket for server, user in zip(pair.both, ("one", "two"), strict=True)]
    for turn in range(5):
        results = at_once(*(lambda call=call, n=turn: call(Bucket=f"wanted-{n}") for call in calls))
        lost = [found for found in results if isinstance(found, ClientError)]
        assert [found.response["Error"]["Code"] for found in lost] == ["BucketAlreadyExists"]


# -- what one does the other sees -------------------------------------------------------------------------------------

def test_what_one_was_told_the_other_lists(pair: Pair, bucket: str) -> None:
    one, two = (server.client() for server in pair.both)
    keys = [f"k{n:03}" for n in range(60)]
    stopped = threading.Event()
    pages: list[list[str]] = []

    def list_all() -> None:
        while not stopped.is_set():
            found = two.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 7})
            pages.append([o["Key"] for page in found for o in page.get("Contents", ())])
    lister = threading.Thread(target=list_all)
    lister.start()
    try:
        for key in keys:
            one.put_object(Bucket=bucket, Key=key, Body=b"x")
            assert [o["Key"] for o in two.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]] == [key]
        for key in keys[::2]:
            one.delete_object(Bucket=bucket, Key=key)
            assert "Contents" not in two.list_objects_v2(Bucket=bucket, Prefix=key)
    finally:
        stopped.set()
        lister.join()
    assert all(page == sorted(set(page)) for page in pages) and len(pages) > 1
    kept = set(keys[1::2])
    for before, after in itertools.pairwise(pages):  # what is never deleted, and was there once, is there ever after
        assert kept & set(before) <= set(after)


def test_a_change_of_a_bucket_holds_at_both_at_once(pair: Pair, bucket: str) -> None:
    one, two = (server.client() for server in pair.both)
    stranger = pair.two.client("two")
    one.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read")
    assert stranger.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    two.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration={
        "BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True, "RestrictPublicBuckets": True})
    for server in pair.both:
        with pytest.raises(ClientError) as error:
            server.client("two").get_object(Bucket=bucket, Key="k")
        assert code_of(error) == ("AccessDenied", 403)


# -- both sweep -------------------------------------------------------------------------------------------------------

def test_sweeps_and_lifecycles_leave_uploads_under_way_alone(pair: Pair, bucket: str) -> None:
    """A slow upload, an upload in parts that rests, copies and puts, for longer than what has no owner may stay."""
    one, two = (server.client() for server in pair.both)
    one.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [
        {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "old/"}, "Expiration": {"Date": "2020-01-01T00:00:00Z"},
         "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}} | {"Expiration": {"Days": 1}}]})
    data = os.urandom(5 * MIB)
    upload = one.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    first = two.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=data)["ETag"]
    orphan = pair.one.objects / "00" / f"o-{'0' * 64}-{'0' * 32}"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"nobody's")
    aside = Path(f"{orphan}1.meta")
    aside.write_bytes(b"nobody's, too")

    request = sign(pair.two, "PUT", f"/{bucket}/slow", b"", payload="UNSIGNED-PAYLOAD")
    slow = http.client.HTTPConnection("127.0.0.1", pair.two.port, timeout=60)
    slow.putrequest("PUT", f"/{bucket}/slow")
    for name, value in request.headers.items():
        slow.putheader(name, value)
    slow.putheader("Content-Length", str(len(data)))
    slow.endheaders()
    slow.send(data[:MIB])
    count = itertools.count()
    deadline = time.monotonic() + 60
    while orphan.exists() or aside.exists():  # by then both have swept what is as old as the upload
        assert time.monotonic() < deadline
        n = next(count)
        one.put_object(Bucket=bucket, Key=f"k{n % 20}", Body=str(n).encode())
        two.copy_object(Bucket=bucket, Key=f"copy{n % 20}", CopySource={"Bucket": bucket, "Key": f"k{n % 20}"})
        slow.send(data[MIB + n:MIB + n + 1])
    sent = MIB + next(count)
    slow.send(data[sent:])
    answer = slow.getresponse()
    assert answer.status == 200, answer.read()
    slow.close()
    second = one.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=2, Body=b"end")["ETag"]
    two.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload={
        "Parts": [{"PartNumber": 1, "ETag": first}, {"PartNumber": 2, "ETag": second}]})
    assert one.get_object(Bucket=bucket, Key="parts")["Body"].read() == data + b"end"
    assert one.get_object(Bucket=bucket, Key="slow")["Body"].read() == data
    for found in one.list_objects_v2(Bucket=bucket)["Contents"]:
        assert len(two.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()) == found["Size"]


# -- one dies ---------------------------------------------------------------------------------------------------------

def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(15)


def test_what_a_killed_process_acknowledged_is_there_and_whole(pair: Pair, bucket: str) -> None:
    doomed = begin(pair.redis, pair.directory, "doomed")
    acknowledged: dict[str, bytes] = {}
    clients = [doomed.client(retries={"max_attempts": 0}) for _ in range(4)]

    def put(writer: int) -> Callable[[], object]:
        def go() -> None:
            for n in itertools.count():
                key = f"w{writer}-{n % 7}"  # some are written anew
                body = f"{key} {n}".encode() * 20_000
                clients[writer].put_object(Bucket=bucket, Key=key, Body=body)
                acknowledged[key] = body
        return go

    def end() -> None:
        wait_until(lambda: len(acknowledged) >= 20, 60, "some puts")
        kill(doomed)
    at_once(*(put(n) for n in range(len(clients))), end)
    for client in (server.client() for server in pair.both):
        listed = {o["Key"]: o["Size"] for o in client.list_objects_v2(Bucket=bucket)["Contents"]}
        assert acknowledged.keys() <= listed.keys()
        for key, size in listed.items():
            body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            name, _, last = body[:20].decode().partition(" ")
            n = int(re.match(r"\d+", last.split("w")[0])[0])
            assert name == key and body == f"{key} {n}".encode() * 20_000 and len(body) == size
            said = int(acknowledged[key].split()[1].split(b"w")[0]) if key in acknowledged else -7
            assert n in (said, said + 7)  # the last that was acknowledged, or the one after it, whole
    wait_until(lambda: files_of(pair.one, bucket) == len(listed), 60, "the sweep")


def test_nginx_goes_on_with_the_one_that_is_left(pair: Pair, bucket: str) -> None:
    """Requests that one process did not answer are not repeated where they may have done something; a client's own
    retry is."""
    third = begin(pair.redis, pair.directory, "third")
    nginx = Nginx(pair.directory / "two", [third.port, pair.two.port], pair.one.objects, SECRET)
    nginx.start()
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{nginx.s3_port}", aws_access_key_id="keyone:one",
                      aws_secret_access_key="secretone", region_name="nova")
    data = os.urandom(100_000)
    done = itertools.count()

    def work() -> None:
        for _ in range(40):
            n = next(done)
            s3.put_object(Bucket=bucket, Key=f"k{n}", Body=data)
            assert s3.get_object(Bucket=bucket, Key=f"k{n}")["Body"].read() == data
            if n == 20:
                kill(third)
    try:
        at_work = at_once(work, work)
        assert at_work == [None, None]
        log = pair.one.log.read_text(errors="replace")
        assert len(re.findall(rf"PUT /{bucket}/k\d+ 200", log)) >= 80
        assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == 80
    finally:
        nginx.stop()
        if third.process.poll() is None:
            kill(third)


# -- clients that die -------------------------------------------------------------------------------------------------

def half(port: int, path: str, data: bytes, chunked: bool) -> http.client.HTTPConnection:
    """Begin to upload, and send the half of it."""
    target = type("Target", (), {"url": f"http://127.0.0.1:{port}"})
    headers, payload = {}, "UNSIGNED-PAYLOAD"
    if chunked:
        payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(data)),
                   "x-amz-trailer": "x-amz-checksum-crc32"}
    request = sign(target, "PUT", path, b"", headers, payload=payload)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", f"127.0.0.1:{port}")
    for name, value in request.headers.items():
        if name.lower() not in ("host", "content-length"):
            connection.putheader(name, value)
    frame = b"%x\r\n" % len(data) if chunked else b""
    connection.putheader("Content-Length", str(len(data) + len(frame) + 40 if chunked else len(data)))
    connection.endheaders()
    connection.send(frame + data[:len(data) // 2])
    return connection


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "aws-chunked"])
@pytest.mark.parametrize("way", ["direct", "nginx"])
def test_a_client_that_dies_half_way_twice_harms_nobody(pair: Pair, bucket: str, way: str, chunked: bool) -> None:
    ports = (pair.nginx.s3_port,) * 2 if way == "nginx" else (pair.one.port, pair.two.port)
    good, bad = os.urandom(3 * MIB), os.urandom(6 * MIB)
    one, two = pair.one.client(), pair.two.client()
    dying = half(ports[0], f"/{bucket}/k", bad, chunked)
    one.put_object(Bucket=bucket, Key="k", Body=good)
    dying.sock.shutdown(2)
    dying.close()
    assert two.get_object(Bucket=bucket, Key="k")["Body"].read() == good
    again = half(ports[1], f"/{bucket}/k", bad, chunked)
    better = os.urandom(3 * MIB)
    results = at_once(again.close, lambda: two.put_object(Bucket=bucket, Key="k", Body=better) and None)
    assert results == [None, None]

    def nobody_writes() -> bool:
        return not any("/objects/" in os.readlink(fd) for server in pair.both
                       for fd in Path(f"/proc/{server.process.pid}/fd").iterdir() if fd.is_symlink())
    wait_until(nobody_writes, 60, "the uploads to end")
    for client in (one, two):
        assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == better
    assert files_of(pair.one, bucket) == 1
    # and whoever retries in the end gets through
    status, said = signed(type("Way", (), {"url": f"http://127.0.0.1:{ports[0]}", "port": ports[0]}), "PUT",
                          f"/{bucket}/k", bad)
    assert status == 200, said
    assert two.get_object(Bucket=bucket, Key="k")["Body"].read() == bad


# -- the directory ----------------------------------------------------------------------------------------------------

def test_a_host_without_the_shared_directory_does_not_start(pair: Pair, tmp_path: Path) -> None:
    """It would hand out errors, and put objects where nobody else finds them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.functional.objectstore_server", "--s3_port=0", "--s3_listen=127.0.0.1",
         f"--redis_url={pair.redis.url}", f"--state_path={tmp_path}"], cwd=ROOT, capture_output=True, text=True,
        timeout=60)
    assert done.returncode == 1 and "Is it mounted?" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "objects" / "id").exists()


def test_processes_that_start_at_once_agree_about_a_new_directory(tmp_path: Path) -> None:
    with own_stores(tmp_path) as redis, ThreadPoolExecutor(3) as pool:
        servers = list(pool.map(lambda n: begin(redis, tmp_path, f"host{n}"), range(3)))
        try:
            servers[0].client().create_bucket(Bucket="agreed")
            servers[1].client().put_object(Bucket="agreed", Key="k", Body=b"x")
            assert servers[2].client().get_object(Bucket="agreed", Key="k")["Body"].read() == b"x"
        finally:
            for server in servers:
                stop(server)
