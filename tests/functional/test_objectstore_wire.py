"""The object store on the wire: forms of upload, signatures, malformed requests, error documents."""

import base64
import hashlib
import hmac
import http.client
import os
import re
import time

import boto3
import pytest
import urllib3
from botocore.exceptions import ClientError

from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    bucket_fixture,
    code_of,
    crc32,
    s3_fixture,
    server_fixture,
    sign,
    signed,
)

# -- raw requests -----------------------------------------------------------------------------------------------------

def unsigned_trailer(data: bytes, crc: str, size: int = 65536) -> bytes:
    out = b""
    for start in range(0, len(data), size):
        piece = data[start:start + size]
        out += b"%x\r\n%s\r\n" % (len(piece), piece)
    return out + b"0\r\nx-amz-checksum-crc32:" + crc.encode() + b"\r\n\r\n"


def put_trailer(server, bucket, data, body, transfer_chunked=False, **more):
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(data)),
               "x-amz-trailer": "x-amz-checksum-crc32", **more}
    if transfer_chunked:
        headers["Transfer-Encoding"] = "chunked"
        body = iter([body[i:i + 1000] for i in range(0, len(body), 1000)])
    return signed(server, "PUT", f"/{bucket}/k", body, headers, "STREAMING-UNSIGNED-PAYLOAD-TRAILER")


@pytest.mark.parametrize("transfer_chunked", [False, True])
def test_unsigned_trailer_form(server, s3, bucket, transfer_chunked):
    data = os.urandom(200000)
    status, answer = put_trailer(server, bucket, data, unsigned_trailer(data, crc32(data)), transfer_chunked)
    assert status == 200, answer
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == data and got["ChecksumCRC32"] == crc32(data) and "ContentEncoding" not in got


@pytest.mark.parametrize("name, body", [
    ("wrong checksum", unsigned_trailer(b"hello", crc32(b"hellx"))),
    ("no trailer", b"5\r\nhello\r\n0\r\n\r\n"),
    ("another trailer", b"5\r\nhello\r\n0\r\nx-amz-checksum-sha1:x\r\n\r\n"),
    ("too short", unsigned_trailer(b"hell", crc32(b"hell"))),
    ("too long", unsigned_trailer(b"hello!", crc32(b"hello!"))),
    ("not chunked", b"hello"), ("huge chunk", b"ffffffffffffffff\r\nhello"),
    ("negative", b"-5\r\nhello\r\n0\r\n\r\n"), ("ends early", b"5\r\nhel"), ("empty", b""),
    ("no line end", b"5" * 10000), ("chunk longer than it says", b"4\r\nhello\r\n0\r\n\r\n"),
    ("more after the end", unsigned_trailer(b"hello", crc32(b"hello")) + b"x")])
def test_malformed_chunks_are_refused(server, bucket, name, body):
    status, answer = put_trailer(server, bucket, b"hello", body)
    assert status == 400 and b"<Error>" in answer, (status, answer)
    assert signed(server, "GET", f"/{bucket}/k")[0] == 404


def signed_chunks(request, secret, data, size=8192, trailer=None):
    date = request.headers["X-Amz-Date"]
    scope = f"{date[:8]}/nova/s3/aws4_request"
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    previous = request.headers["Authorization"].rpartition("Signature=")[2]
    out = b""
    empty = hashlib.sha256(b"").hexdigest()
    for start in range(0, len(data) + size, size):
        piece = data[start:start + size]
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{scope}\n{previous}\n{empty}\n{hashlib.sha256(piece).hexdigest()}"
        previous = hmac.digest(key, text.encode(), "sha256").hex()
        out += f"{len(piece):x};chunk-signature={previous}\r\n".encode() + (piece + b"\r\n" if piece else b"")
        if not piece:
            break
    if trailer:
        digest = hashlib.sha256(f"{trailer[0]}:{trailer[1]}\n".encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256-TRAILER\n{date}\n{scope}\n{previous}\n{digest}"
        previous = hmac.digest(key, text.encode(), "sha256").hex()
        out += f"{trailer[0]}:{trailer[1]}\r\nx-amz-trailer-signature:{previous}\r\n".encode()
    return out + b"\r\n"


@pytest.mark.parametrize("trailer", [False, True])
@pytest.mark.parametrize("tampered", [False, True])
def test_signed_chunks(server, s3, bucket, trailer, tampered):
    data = os.urandom(30000)
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(data))}
    if trailer:
        headers["x-amz-trailer"] = "x-amz-checksum-crc32"
    payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + ("-TRAILER" if trailer else "")
    request = sign(server, "PUT", f"/{bucket}/k", b"", headers, payload)
    body = signed_chunks(request, "secretone", data, trailer=("x-amz-checksum-crc32", crc32(data)) if trailer else None)
    if tampered:
        body = body[:20000] + bytes((body[20000] ^ 1,)) + body[20001:]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("PUT", f"/{bucket}/k", body, dict(request.headers.items()))
    answer = connection.getresponse()
    text = answer.read()
    assert (answer.status, b"SignatureDoesNotMatch" in text) == ((403, True) if tampered else (200, False)), text
    if not tampered:
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == data


def test_body_digests_are_verified(server, bucket):
    md5 = base64.b64encode(hashlib.md5(b"hello").digest()).decode()
    assert signed(server, "PUT", f"/{bucket}/k", b"hello", {"Content-MD5": md5})[0] == 200
    for headers, payload, code in (({"Content-MD5": md5}, None, b"BadDigest"),
                                   ({"Content-MD5": "x"}, None, b"InvalidDigest"),
                                   ({"x-amz-checksum-crc32": crc32(b"hello")}, None, b"BadDigest"),
                                   ({"x-amz-checksum-crc32": "AAAA"}, None, b"InvalidDigest"),
                                   ({}, hashlib.sha256(b"hello").hexdigest(), b"XAmzContentSHA256Mismatch")):
        status, answer = signed(server, "PUT", f"/{bucket}/k", b"other", headers, payload)
        assert (status, code in answer) == (400, True), answer
    assert signed(server, "GET", f"/{bucket}/k") == (200, b"hello")


@pytest.mark.parametrize("request_line", [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /b/%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: AWS4-HMAC-SHA256 x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: AWS \xff\xfe:\xff\r\nDate: x\r\n\r\n",
    b"GET /?X-Amz-Algorithm=x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /?Signature=x&Expires=99999999999 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    b"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"\x00\x01\x02\x03\r\n\r\n", b"GET /b?acl&policy HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_bad_requests_get_an_answer_at_once(server, request_line):
    import socket
    with socket.create_connection(("127.0.0.1", server.port), 5) as s:
        s.sendall(request_line)
        answer = s.recv(65536)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
    assert b"Traceback" not in answer


def test_expect_100_continue(server, bucket):
    import socket

    def ask(path: str, secret_user: str = "one") -> tuple[bytes, socket.socket]:
        request = sign(server, "PUT", path, b"hello", user=secret_user)
        head = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
        s = socket.create_connection(("127.0.0.1", server.port), 5)
        s.sendall(f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{head}Content-Length: 5\r\n"
                  "Expect: 100-continue\r\n\r\n".encode())
        return s.recv(65536), s
    answer, s = ask(f"/{bucket}/k")
    assert answer.startswith(b"HTTP/1.1 100 ")
    s.sendall(b"hello")
    assert s.recv(65536).startswith(b"HTTP/1.1 200 ")
    s.close()
    for path, user, status in (("/no-such-bucket/k", "one", b"404"), (f"/{bucket}/k", "two", b"403")):
        answer, s = ask(path, user)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert b"Connection: close" in answer
        s.close()


def test_errors_are_s3_xml_with_ids(server):
    status, answer = signed(server, "GET", "/no-such-bucket/k%20y")
    assert status == 404
    for element in (b"<Code>NoSuchBucket</Code>", b"<Resource>/no-such-bucket/k y</Resource>", b"<RequestId>",
                    b"<HostId>"):
        assert element in answer


def test_who_is_asking(server, s3, bucket):
    def code(**keys) -> str:
        client = boto3.client("s3", endpoint_url=server.url, region_name="nova", **keys)
        with pytest.raises(ClientError) as error:
            client.list_buckets()
        return code_of(error)[0]
    assert code(aws_access_key_id="keyone:one", aws_secret_access_key="wrong") == "SignatureDoesNotMatch"
    assert code(aws_access_key_id="nobody:one", aws_secret_access_key="x") == "InvalidAccessKeyId"
    assert code(aws_access_key_id="keyone:two", aws_secret_access_key="secretone") == "InvalidAccessKeyId"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", f"/{bucket}")
    answer = connection.getresponse()
    assert answer.status == 403 and b"AccessDenied" in answer.read() and answer.headers["x-amz-request-id"]


def test_sub_resources_that_clients_ask_for(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    for call, code in (("get_bucket_policy", "NoSuchBucketPolicy"), ("get_bucket_cors", "NoSuchCORSConfiguration"),
                       ("get_bucket_tagging", "NoSuchTagSet"), ("get_bucket_website", "NoSuchWebsiteConfiguration"),
                       ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
                       ("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
                       ("get_public_access_block", "NoSuchPublicAccessBlockConfiguration"),
                       ("get_bucket_ownership_controls", "OwnershipControlsNotFoundError"),
                       ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
                       ("get_bucket_replication", "ReplicationConfigurationNotFoundError")):
        with pytest.raises(ClientError) as error:
            getattr(s3, call)(Bucket=bucket)
        assert code_of(error) == (code, 404)
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    s3.get_bucket_notification_configuration(Bucket=bucket)
    s3.get_bucket_accelerate_configuration(Bucket=bucket)
    assert not s3.list_bucket_inventory_configurations(Bucket=bucket)["IsTruncated"]
    for acl in (s3.get_bucket_acl(Bucket=bucket), s3.get_object_acl(Bucket=bucket, Key="k")):
        assert [g["Permission"] for g in acl["Grants"]] == ["FULL_CONTROL"] and acl["Owner"]["ID"] == "one"
    s3.put_object_acl(Bucket=bucket, Key="k", ACL="private")
    for call in (lambda: s3.put_bucket_accelerate_configuration(
                     Bucket=bucket, AccelerateConfiguration={"Status": "Enabled"}),
                 lambda: s3.put_bucket_replication(Bucket=bucket, ReplicationConfiguration={
                     "Role": "r", "Rules": [{"Status": "Enabled", "Destination": {"Bucket": "x"}}]})):
        with pytest.raises(ClientError) as error:
            call()
        assert code_of(error) == ("NotImplemented", 501)
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    s3.delete_bucket_policy(Bucket=bucket)


def test_xml_with_a_document_type_is_refused(server, bucket):
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><Delete><Object><Key>&a;</Key></Object></Delete>'
    for body in (bomb, b"<Delete>", b"junk", b"<Other/>", b"<Delete/>", b"<a>" * 100000):
        status, answer = signed(server, "POST", f"/{bucket}?delete", body)
        assert (status, b"MalformedXML" in answer) == (400, True)


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_presigned_urls(server, s3, bucket, version):
    client = server.client(signature_version=version)
    url = client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "a b+c/ü"})
    http_pool = urllib3.PoolManager()
    assert http_pool.request("PUT", url, body=b"hello").status == 200
    url = client.generate_presigned_url("get_object",
                                        {"Bucket": bucket, "Key": "a b+c/ü", "ResponseContentType": "a/b"})
    answer = http_pool.request("GET", url)
    assert (answer.data, answer.headers["Content-Type"]) == (b"hello", "a/b")
    assert http_pool.request("DELETE", url).status == 403
    url = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "a b+c/ü"},
                                        ExpiresIn=-10 if version == "s3" else 1)
    deadline = time.monotonic() + 10
    while (answer := http_pool.request("GET", url)).status == 200:
        assert time.monotonic() < deadline
    assert answer.status == 403 and b"expired" in answer.data
