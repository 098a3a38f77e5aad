"""The object store and the EC2 endpoint behind nginx, with the configuration that the project ships."""

import hashlib
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3
import botocore.exceptions
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from nova import datastore
from nova.crypto.authority import Authority
from nova.image import models as image_models
from nova.image.models import Image
from nova.objectstore import images
from nova.objectstore.files import Files
from tests.conftest import RedisServer, free_port
from tests.functional.nginx_server import CONFIGURATION, Nginx
from tests.functional.s3 import MIB, Server, add_users, sign, start, stop

SECRET = "only-nginx-knows"
#: nginx gives out objects from this size on
FROM = 64 << 10


@dataclass
class Front:
    """An object store, nginx before it, and nginx before nobody."""

    server: Server
    nginx: Nginx
    redis_url: str
    names: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.nginx.s3_port}"

    @property
    def port(self) -> int:
        return self.nginx.s3_port

    def client(self, **config):
        config = {"retries": {"max_attempts": 1, "mode": "standard"}, "s3": {"addressing_style": "path"}, **config}
        return boto3.client("s3", endpoint_url=self.url, aws_access_key_id="keyone:one",
                            aws_secret_access_key="secretone", region_name="nova", config=Config(**config))


@pytest.fixture(name="front", scope="module")
def front_fixture(tmp_path_factory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    redis = RedisServer(directory, free_port())
    redis.start()
    add_users(redis.url, str(directory / "ca"))
    server = start(redis.url, directory, f"--proxy_secret={SECRET}", f"--s3_sendfile_size={FROM}",
                   "--s3_domain=s3.test")
    nginx = Nginx(directory / "nginx", [server.port], server.objects, SECRET)
    nginx.start()
    yield Front(server, nginx, redis.url)
    nginx.stop()
    stop(server)
    redis.kill()


@pytest.fixture(name="bucket")
def bucket_fixture(front) -> str:
    name = f"front-{next(front.names)}"
    front.client().create_bucket(Bucket=name)
    return name


def ask(front, method, path, headers=None, body=b"", port=0, user="one"):
    """A request signed for the address that it goes to; status, headers as sent, body."""
    target = front if not port else type("Direct", (), {"url": f"http://127.0.0.1:{port}"})
    request = sign(target, method, path, body, headers, user=user)
    connection = http.client.HTTPConnection("127.0.0.1", port or front.port, timeout=60)
    try:
        connection.request(method, path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


# -- what goes through ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", [
    "plain", "a//b", "//a", "a/", "a/../b", "../up", "./dot", "a%2Fb", "with space", "a+b", "a b+c%20d", "ü/é?x=1&y#z",
    "_objects/x", "@objects", "tilde~'()*!", "trailing.", "100%"])
@pytest.mark.parametrize("size", [10, FROM])
def test_a_key_means_the_same_through_nginx(front, bucket, key, size):
    s3, data = front.client(), os.urandom(size)
    s3.put_object(Bucket=bucket, Key=key, Body=data)
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == data
    assert [o["Key"] for o in front.server.client().list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_a_path_that_leads_above_the_root_is_refused_in_s3s_words(front):
    status, headers, body = ask(front, "GET", "/../../x")
    assert status == 400
    assert dict(headers)["Content-Type"] == "application/xml"
    assert b"<Code>InvalidRequest</Code>" in body


@pytest.mark.parametrize("key", ["x", "a//b", "_objects/x", "_images/", "nova-unreadable", "a/../../b"])
def test_a_bucket_named_by_the_host(front, bucket, key):
    data = os.urandom(FROM)
    front.client().put_object(Bucket=bucket, Key=key, Body=data)
    host = f"{bucket}.s3.test:{front.port}"
    request = sign(type("Virtual", (), {"url": f"http://{host}"}), "GET", f"/{key}")
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    connection.request("GET", f"/{key}", headers={**request.headers, "Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if key == "a/../../b":  # nginx takes it for a path above its root; by the path the bucket's name keeps it below
        assert answer.status == 400
    else:
        assert (answer.status, body) == (200, data)


@pytest.mark.parametrize("name", ["a_b", "a.b", "a-b"])
def test_metadata_keep_their_names(front, bucket, name):
    s3 = front.client()
    s3.put_object(Bucket=bucket, Key="x", Body=bytes(FROM), Metadata={name: "w%20 &=x;y"})
    assert s3.get_object(Bucket=bucket, Key="x")["Metadata"] == {name: "w%20 &=x;y"}


@pytest.mark.parametrize("version", ["s3v4", "s3"])
@pytest.mark.parametrize("size", [10, FROM])
def test_presigned_urls(front, bucket, version, size):
    s3, data = front.client(signature_version=version), os.urandom(size)
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a b+c"})
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": ""}, method="PUT"), timeout=60):
        pass
    url = s3.generate_presigned_url("get_object", Params={
        "Bucket": bucket, "Key": "a b+c", "ResponseContentDisposition": 'attachment; filename="ü%.txt"'})
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.read() == data
        assert answer.headers["Content-Disposition"].startswith("attachment;")


def test_a_multipart_upload_of_20_mb(front, bucket):
    s3, data = front.client(), os.urandom(20 * MIB + 17)
    s3.upload_fileobj(io.BytesIO(data), bucket, "large", Config=TransferConfig(multipart_chunksize=5 * MIB))
    found = io.BytesIO()
    s3.download_fileobj(bucket, "large", found, Config=TransferConfig(multipart_chunksize=3 * MIB))
    assert found.getvalue() == data
    assert s3.head_object(Bucket=bucket, Key="large")["ETag"].endswith('-5"')


@pytest.mark.parametrize("transfer", ["length", "chunks"])
def test_100_continue(front, bucket, transfer):
    data = os.urandom(MIB)
    headers = {"Expect": "100-continue", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    request = sign(front, "PUT", f"/{bucket}/x", b"", headers, payload="UNSIGNED-PAYLOAD")
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    connection.putrequest("PUT", f"/{bucket}/x", skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name.lower() != "content-length":
            connection.putheader(name, value)
    connection.putheader("Host", f"127.0.0.1:{front.port}")
    connection.putheader(*(("Content-Length", str(len(data))) if transfer == "length" else
                           ("Transfer-Encoding", "chunked")))
    connection.endheaders()
    raw = connection.sock.makefile("rb")
    assert raw.readline().startswith(b"HTTP/1.1 100")
    assert raw.readline() == b"\r\n"
    raw.close()
    connection.sock.sendall(data if transfer == "length" else b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
    assert connection.getresponse().status == 200
    connection.close()
    assert front.client().get_object(Bucket=bucket, Key="x")["Body"].read() == data


# -- nginx gives files out --------------------------------------------------------------------------------------------

def _make(front, bucket, kind):
    data = os.urandom(FROM + 1000)
    if kind == "whole":
        front.client().put_object(
            Bucket=bucket, Key="k", Body=data, Metadata={"a": "1", "b_c": "x y"}, ContentType="text/x; charset=utf-8",
            ContentEncoding="gzip", ContentLanguage="de", ContentDisposition="inline", CacheControl="max-age=3",
            StorageClass="STANDARD_IA", Expires="Thu, 01 Dec 2050 16:00:00 GMT")
        return data
    s3, parts = front.client(), [os.urandom(5 * MIB), data]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="CRC32")["UploadId"]
    done = [{"PartNumber": n, **{k: v for k, v in s3.upload_part(
        Bucket=bucket, Key="k", UploadId=upload, PartNumber=n, Body=part, ChecksumAlgorithm="CRC32").items()
        if k in ("ETag", "ChecksumCRC32")}} for n, part in enumerate(parts, 1)]
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
    return b"".join(parts)


_VOLATILE = ("Date", "x-amz-request-id", "Connection")
_PAST, _FUTURE = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.mark.parametrize("kind", ["whole", "parts"])
def test_answers_are_the_same_with_and_without_nginx(front, bucket, kind):
    data = _make(front, bucket, kind)
    etag = front.client().head_object(Bucket=bucket, Key="k")["ETag"]
    size = len(data)
    cases = [
        {}, {"x-amz-checksum-mode": "ENABLED"}, {"Range": "bytes=0-"}, {"Range": f"bytes=0-{FROM}"},
        {"Range": f"bytes=5-{FROM + 500}"}, {"Range": f"bytes=-{FROM + 1}"}, {"Range": f"bytes=17-{size * 2}"},
        {"Range": "bytes=0-0"}, {"Range": "bytes=10-19"}, {"Range": "bytes=0-1,5-9"}, {"Range": "bytes=9-5"},
        {"Range": "bytes=x"}, {"Range": "bytes=-"}, {"Range": "octets=0-5"}, {"Range": "bytes=-0"},
        {"Range": f"bytes={size}-"}, {"Range": f"bytes={size - 1}-"}, {"Range": f"bytes=-{size * 3}"},
        {"Range": "BYTES = 3 - 99999"}, {"If-Match": etag}, {"If-Match": '"no"'}, {"If-None-Match": etag},
        {"If-None-Match": '"no"'}, {"If-Modified-Since": _PAST}, {"If-Modified-Since": _FUTURE},
        {"If-Unmodified-Since": _PAST}, {"If-Unmodified-Since": _FUTURE}, {"If-Match": etag, "Range": "bytes=1-70000"},
        {"If-Match": etag, "If-Unmodified-Since": _PAST}, {"If-None-Match": '"no"', "If-Modified-Since": _FUTURE},
        {"If-Range": etag, "Range": "bytes=1-70000"}, {"If-Range": '"no"', "Range": "bytes=1-70000"},
        {"Accept-Encoding": "gzip"},
    ]
    queries = ["", "?partNumber=1", "?partNumber=2", "?partNumber=3", "?response-content-type=a%2Fb",
               "?response-cache-control=no-store&response-expires=x"]
    asked = [(method, f"/{bucket}/k", case) for method in ("GET", "HEAD") for case in cases]
    asked += [(method, f"/{bucket}/k{query}", {}) for method in ("GET", "HEAD") for query in queries]
    for method, path, headers in asked:
        answers = []
        for port in (front.server.port, front.port):
            status, got, body = ask(front, method, path, headers, port=port)
            kept = sorted((n, v) for n, v in got if n not in _VOLATILE)
            if status >= 400:  # documents have the request's id in them
                kept, body = [(n, v) for n, v in kept if n != "Content-Length"], body.partition(b"<Resource>")[0]
            answers.append((status, kept, body))
        assert answers[0] == answers[1], (method, path, headers)
        assert any(name == "x-amz-request-id" for name, _ in got), (method, path, headers)


def test_nginx_and_not_nova_gives_out_what_is_large(front, bucket):
    front.client().put_object(Bucket=bucket, Key="large", Body=bytes(FROM))
    front.client().put_object(Bucket=bucket, Key="small", Body=bytes(FROM - 1))
    told = {}
    for key in ("large", "small"):
        headers = {"X-Nova-Proxy": f"{SECRET} https 192.0.2.7 sendfile"}  # as nginx asks
        status, got, body = ask(front, "GET", f"/{bucket}/{key}", headers, port=front.server.port)
        assert status == 200
        told[key] = dict(got).get("X-Accel-Redirect"), len(body)
    assert told == {"large": ("@objects", 0), "small": (None, FROM - 1)}
    assert "192.0.2.7 GET" in front.server.log.read_text()


@pytest.mark.parametrize("forged", ["x https 192.0.2.66 sendfile", f"{SECRET}x https 192.0.2.66 sendfile",
                                    " https 192.0.2.66 sendfile", "sendfile", SECRET, "\xfc https 192.0.2.66 sendfile"])
def test_nobody_can_pretend_to_be_nginx(front, bucket, forged):
    data = os.urandom(FROM)
    front.client().put_object(Bucket=bucket, Key="x", Body=data)
    for port in (front.server.port, front.port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        target = type("Direct", (), {"url": f"http://127.0.0.1:{port}"})
        request = sign(target, "GET", f"/{bucket}/x")
        connection.request("GET", f"/{bucket}/x", headers={**request.headers, "X-Nova-Proxy": forged})
        answer = connection.getresponse()
        assert answer.read() == data
        assert "X-Accel-Redirect" not in answer.headers
        connection.close()
    assert "192.0.2.66" not in front.server.log.read_text()


def test_a_client_that_knows_the_names_gets_no_file(front, bucket):
    front.client().put_object(Bucket=bucket, Key="x", Body=bytes(FROM))
    [name] = [str(p.relative_to(front.server.objects)) for p in front.server.files()
              if p.stat().st_size == FROM][:1]
    for path in (f"/@objects/{name}", f"/objects/{name}", f"/{name}"):
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
        connection.request("GET", path, headers={"X-Nova-File": name, "X-Accel-Redirect": "@objects"})
        answer = connection.getresponse()
        assert (answer.status, b"<Error>" in answer.read()) == (404, True)
        connection.close()


def test_a_response_header_with_hostile_content_stays_one_header(front, bucket):
    s3 = front.client()
    s3.put_object(Bucket=bucket, Key="x", Body=bytes(FROM), Metadata={"m": "a&Set-Cookie=b%0d%0aX-Evil: 1"})
    status, headers, body = ask(front, "GET", f"/{bucket}/x")
    assert (status, len(body)) == (200, FROM)
    assert dict(headers)["x-amz-meta-m"] == "a&Set-Cookie=b%0d%0aX-Evil: 1"
    assert not {"set-cookie", "x-evil"} & {name.lower() for name, _ in headers}


def test_an_object_that_is_replaced_during_downloads_is_one_or_the_other(front, bucket):
    s3, rounds = front.client(), 60
    contents = [bytes([65 + n]) * (FROM + 1000 * n) for n in range(2)]
    s3.put_object(Bucket=bucket, Key="x", Body=contents[0])
    failures, over = [], threading.Event()

    def read() -> None:
        reader = front.client()
        while not over.is_set():
            try:
                found = reader.get_object(Bucket=bucket, Key="x")
                body = found["Body"].read()
            except Exception as error:
                failures.append(repr(error))
                return
            right = hashlib.md5(body).hexdigest() == found["ETag"].strip('"')
            if body not in contents or not right or len(body) != found["ContentLength"]:
                failures.append((len(body), found["ETag"]))
    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for n in range(rounds):
        s3.put_object(Bucket=bucket, Key="x", Body=contents[n % 2])
    over.set()
    for reader in readers:
        reader.join(60)
    assert not failures


def test_where_the_file_is_gone_when_nginx_looks_nova_answers(front, bucket):
    """As when the object is removed between Nova's answer and nginx's open: nginx asks Nova once more."""
    s3 = front.client()
    s3.put_object(Bucket=bucket, Key="x", Body=os.urandom(FROM))
    [mine] = [p for p in front.server.files() if p.stat().st_size == FROM and p.stat().st_mtime ==
              max(q.stat().st_mtime for q in front.server.files())]
    away = mine.with_name("away")
    mine.rename(away)
    status, headers, body = ask(front, "GET", f"/{bucket}/x")
    assert (status, dict(headers)["Content-Type"]) == (500, "application/xml")
    assert b"<Code>InternalError</Code>" in body
    away.rename(mine)
    assert ask(front, "GET", f"/{bucket}/x")[0] == 200


def test_what_nginx_may_not_read_comes_from_nova(front, bucket, tmp_path):
    """nginx with another directory finds nothing there, and every object still comes, as it should."""
    nginx = Nginx(tmp_path / "n", [front.server.port], tmp_path / "nothing", SECRET)
    nginx.start()
    data = os.urandom(3 * FROM)
    front.client().put_object(Bucket=bucket, Key="a//b +%2F", Body=data)
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{nginx.s3_port}", aws_access_key_id="keyone:one",
                      aws_secret_access_key="secretone", region_name="nova",
                      config=Config(s3={"addressing_style": "path"}))
    assert s3.get_object(Bucket=bucket, Key="a//b +%2F")["Body"].read() == data
    part = s3.get_object(Bucket=bucket, Key="a//b +%2F", Range="bytes=7-70000")
    assert (part["ResponseMetadata"]["HTTPStatusCode"], part["Body"].read()) == (206, data[7:70001])
    nginx.stop()


async def test_images_for_compute_nodes(front, tmp_path):
    data = os.urandom(2 * FROM)
    store = datastore.open_store(front.redis_url)
    files = Files(str(front.server.objects))
    kept = images.ImageFiles(store, files)
    (tmp_path / "made").write_bytes(data)
    image = await store.create(Image("ami-1", "one", "one", "x", "x/x", "machine", "h", 0.0))
    sha256 = hashlib.sha256(data).hexdigest()
    await kept.publish(image, str(tmp_path / "made"), sha256=sha256, size=len(data), state="available")
    secret = await image_models.fetch_secret(store)

    def ask_for(id, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
        headers = {"X-Nova-Token": image_models.fetch_token(secret, id), **headers}
        connection.request(headers.pop("method", "GET"), f"/_images/{id}", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body
    status, headers, body = ask_for("ami-1")
    assert (status, headers["Content-Type"], body) == (200, "application/octet-stream", data)
    assert (headers["ETag"], headers["Content-Length"]) == (f'"{sha256}"', str(len(data)))
    assert "X-Accel-Redirect" not in headers and "X-Nova-File" not in headers
    status, headers, body = ask_for("ami-1", Range="bytes=1000-", **{"If-Match": f'"{sha256}"'})
    assert (status, headers["Content-Range"], body) == (206, f"bytes 1000-{len(data) - 1}/{len(data)}", data[1000:])
    assert ask_for("ami-1", Range="bytes=1000-", **{"If-Match": '"another"'})[0] == 412
    assert ask_for("ami-1", Range="bytes=1000-", **{"If-Range": '"another"'})[::2] == (200, data)
    assert ask_for("ami-1", Range=f"bytes={len(data)}-")[0] == 416
    status, headers, body = ask_for("ami-1", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(data)), b"")
    assert ask_for("ami-1", **{"X-Nova-Token": "wrong"})[0] == 403 and ask_for("ami-3")[0] == 404
    os.unlink(files.path((await kept.find("ami-1")).file))
    assert ask_for("ami-1")[0] == 404
    await store.delete(await store.get(Image, "ami-1"))
    await kept.remove("ami-1")
    await store.close()
    files.close()


# -- backends that are away -------------------------------------------------------------------------------------------

def test_a_backend_that_is_away(front, tmp_path):
    nginx = Nginx(tmp_path / "n", [free_port()], tmp_path, SECRET)
    nginx.start()
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{nginx.s3_port}", aws_access_key_id="keyone:one",
                      aws_secret_access_key="secretone", region_name="nova",
                      config=Config(retries={"max_attempts": 1, "mode": "standard"}))
    with pytest.raises(botocore.exceptions.ClientError) as error:
        s3.list_buckets()
    assert error.value.response["Error"]["Code"] == "ServiceUnavailable"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    ec2 = boto3.client("ec2", endpoint_url=f"http://127.0.0.1:{nginx.ec2_port}", aws_access_key_id="keyone:one",
                       aws_secret_access_key="secretone", region_name="nova",
                       config=Config(retries={"max_attempts": 1, "mode": "standard"}))
    with pytest.raises(botocore.exceptions.ClientError) as error:
        ec2.describe_regions()
    assert error.value.response["Error"]["Code"] == "Unavailable"
    nginx.stop()


def test_of_two_backends_one_is_enough(front, bucket, tmp_path):
    nginx = Nginx(tmp_path / "n", [free_port(), front.server.port], front.server.objects, SECRET)
    nginx.start()
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{nginx.s3_port}", aws_access_key_id="keyone:one",
                      aws_secret_access_key="secretone", region_name="nova",
                      config=Config(retries={"max_attempts": 1, "mode": "standard"}))
    for n in range(6):
        s3.put_object(Bucket=bucket, Key=f"k{n}", Body=bytes(FROM + n))
        assert len(s3.get_object(Bucket=bucket, Key=f"k{n}")["Body"].read()) == FROM + n
    nginx.stop()


def test_a_refused_upload_is_told(front, bucket):
    status, _, body = ask(front, "PUT", f"/{bucket}-none/x", body=bytes(MIB))
    assert (status, b"<Code>NoSuchBucket</Code>" in body) == (404, True)


def _put_refused(front, path, size, expect, user="one"):
    """Send a large body whatever comes back meanwhile, as simple clients do; the answer that is there at the end."""
    request = sign(front, "PUT", path, b"", payload="UNSIGNED-PAYLOAD", user=user)
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=120)
    connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name.lower() not in ("content-length", "host"):
            connection.putheader(name, value)
    connection.putheader("Host", f"127.0.0.1:{front.port}")
    connection.putheader("Content-Length", str(size))
    if expect:
        connection.putheader("Expect", "100-continue")
    connection.endheaders()
    for _ in range(size // MIB):
        connection.sock.sendall(bytes(MIB))
    answer = connection.getresponse()  # passes over 100 Continue
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("expect", [False, True])
@pytest.mark.parametrize(("size", "user", "code"), [
    (1, "two", "AccessDenied"), (64, "two", "AccessDenied"), (64, "one", "NoSuchBucket"),
    (200, "one", "NoSuchBucket")])
def test_a_large_upload_that_is_refused_gets_the_real_error(front, bucket, expect, size, user, code):
    name = bucket if code == "AccessDenied" else f"{bucket}-none"
    status, body = _put_refused(front, f"/{name}/x", size * MIB, expect, user)
    assert (status, f"<Code>{code}</Code>".encode() in body) == (404 if code == "NoSuchBucket" else 403, True)


def test_a_large_upload_that_boto3_is_refused(front, bucket):
    other = boto3.client("s3", endpoint_url=front.url, aws_access_key_id="keytwo:two",
                         aws_secret_access_key="secrettwo", region_name="nova",
                         config=Config(retries={"max_attempts": 1, "mode": "standard"}))
    for _ in range(3):
        with pytest.raises(botocore.exceptions.ClientError) as error:
            other.put_object(Bucket=bucket, Key="x", Body=bytes(64 * MIB))
        assert error.value.response["Error"]["Code"] == "AccessDenied"
    assert "PUT /" + bucket in front.server.log.read_text()


# -- what else Nova decides -------------------------------------------------------------------------------------------

def test_versions_and_delete_markers(front, bucket):
    s3, contents = front.client(), [os.urandom(FROM + n) for n in range(2)]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ids = [s3.put_object(Bucket=bucket, Key="x", Body=data)["VersionId"] for data in contents]
    for id, data in zip([*ids, None], [*contents, contents[1]], strict=True):
        found = s3.get_object(Bucket=bucket, Key="x", **({"VersionId": id} if id else {}))
        assert (found["Body"].read(), found["VersionId"]) == (data, id or ids[1])
    marker = s3.delete_object(Bucket=bucket, Key="x")["VersionId"]
    for query in ("", f"?versionId={marker}", f"?versionId={ids[0]}", "?versionId=nonsense"):
        answers = []
        for port in (front.server.port, front.port):
            status, headers, body = ask(front, "GET", f"/{bucket}/x{query}", port=port)
            named = sorted((n, v) for n, v in headers if n.startswith(("x-amz-v", "x-amz-d")) or n == "Last-Modified")
            answers.append((status, named, body if status == 200 else body[:body.index(b"<Resource>")]))
        assert answers[0] == answers[1], query
        assert answers[0][0] == {"": 404, f"?versionId={marker}": 405, f"?versionId={ids[0]}": 200}.get(query, 400)


def test_a_browser_is_told_that_it_may_read_the_file(front, bucket):
    s3 = front.client()
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [
        {"AllowedOrigins": ["https://www.example.com"], "AllowedMethods": ["GET"], "ExposeHeaders": ["ETag"]}]})
    s3.put_object(Bucket=bucket, Key="x", Body=bytes(FROM))
    for origin, allowed in (("https://www.example.com", "https://www.example.com"), ("https://example.org", None)):
        status, headers, body = ask(front, "GET", f"/{bucket}/x", {"Origin": origin})
        assert (status, len(body), dict(headers).get("Access-Control-Allow-Origin")) == (200, FROM, allowed)


def test_a_policy_sees_the_address_and_protocol_of_nginxs_client(front, bucket):
    s3 = front.client()
    s3.put_object(Bucket=bucket, Key="x", Body=bytes(FROM))
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*",
        "Condition": {"IpAddress": {"aws:SourceIp": "192.0.2.7/32"}, "Bool": {"aws:SecureTransport": "true"}}}]}))
    told = {}
    for name, port, said in (
            ("right", front.server.port, f"{SECRET} https 192.0.2.7 sendfile"),
            ("other address", front.server.port, f"{SECRET} https 192.0.2.8 sendfile"),
            ("no TLS", front.server.port, f"{SECRET} http 192.0.2.7 sendfile"),
            ("forged", front.server.port, "guess https 192.0.2.7 sendfile"),
            ("forged at nginx", front.port, f"{SECRET} https 192.0.2.7 sendfile")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", f"/{bucket}/x", headers={"X-Nova-Proxy": said})
        answer = connection.getresponse()
        answer.read()
        told[name] = answer.status, answer.headers["X-Accel-Redirect"]
        connection.close()
    assert told == {"right": (200, "@objects"), **dict.fromkeys(
        ("other address", "no TLS", "forged", "forged at nginx"), (403, None))}


@pytest.mark.parametrize(("size", "status"), [(FROM, 204), (64 * MIB, 400)])
def test_a_form(front, bucket, size, status):
    form = front.client().generate_presigned_post(bucket, "from a form", Conditions=[
        ["content-length-range", 0, MIB]])
    boundary = "ef3a9b"
    fields = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
                     for name, value in form["fields"].items())
    body = (f'{fields}--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
            + bytes(size) + f"\r\n--{boundary}--\r\n".encode())
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=120)
    connection.request("POST", f"/{bucket}", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert (answer.status, b"<Code>EntityTooLarge</Code>" in text) == (status, status == 400)
    listed = front.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    assert [(o["Key"], o["Size"]) for o in listed] == ([("from a form", FROM)] if status == 204 else [])


def test_debians_nginx_takes_what_the_commands_of_the_page_make(tmp_path):
    """In a mount namespace where /etc/nginx is a copy."""
    page = (CONFIGURATION.parents[1] / "docs" / "nginx.rst").read_text()
    lines = re.sub(r"\\\n *", "", page).splitlines()
    commands = [line.removeprefix("   # ") for line in lines if line.startswith("   # ")]
    assert commands[0].startswith("apt-get install ") and len(commands) == 13
    script = "\n".join(commands[1:]).replace(" && systemctl reload nginx", "")
    for there in ("/etc/nova", "/var/lib/nova"):
        here = tmp_path / there.replace("/", "_")
        here.mkdir()
        script = script.replace(there, str(here))
    Authority(str(tmp_path / "_var_lib_nova" / "ca")).ensure()
    shutil.copytree("/etc/nginx", tmp_path / "nginx", symlinks=True)
    (tmp_path / "nginx/sites-enabled/default").touch()
    mounts = f"mount --bind {tmp_path}/nginx /etc/nginx; mount -t tmpfs none /run"  # nginx -t writes its pid file
    done = subprocess.run(["unshare", "--mount", "bash", "-euc", f"{mounts}\n{script}"],
                          cwd=CONFIGURATION.parents[1], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("test is successful") == 2
    [secret] = re.findall("--proxy_secret=([0-9a-f]{48})\n", (tmp_path / "_etc_nova/nova.conf").read_text())
    assert secret in (tmp_path / "nginx/nova-secret.conf").read_text()
    assert "ssl;" in (tmp_path / "nginx/conf.d/nova.conf").read_text()
