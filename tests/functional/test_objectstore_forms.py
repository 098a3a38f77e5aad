"""Forms that browsers post to the object store."""

import base64
import hashlib
import hmac
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
    Zeros,
    add_users,
    bucket_fixture,
    crc32,
    own_fixture,
    s3_fixture,
    server_fixture,
    start,
    stop,
)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def encode(fields, content: bytes, filename="f.txt", everywhere=False, after=()) -> bytes:
    """A form as browsers write it; `everywhere`: each field has a file name."""
    parts = []
    for name, value in [*fields.items(), ("file", content), *after]:
        extra = f'; filename="{filename if name == "file" else name}"' if name == "file" or everywhere else ""
        value = value if isinstance(value, bytes) else value.encode()
        parts.append(f'--lImIt\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n'
                     "Content-Type: text/plain\r\n\r\n".encode() + value + b"\r\n")
    return b"".join(parts) + b"--lImIt--\r\n"


def post(url: str, body: bytes, headers=()):
    """Status, headers and body of the answer."""
    kind = {"Content-Type": "multipart/form-data; boundary=lImIt"}
    request = urllib.request.Request(url, body, {**kind, **dict(headers)})
    try:
        answer = _opener.open(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


def code(answer: bytes) -> str:
    return ElementTree.fromstring(answer).findtext("Code")


def policy_of(bucket, *conditions, expires=600) -> str:
    moment = (datetime.now(UTC) + timedelta(seconds=expires)).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"expiration": moment, "conditions": [{"bucket": bucket}, *conditions]}
    return base64.b64encode(json.dumps(document).encode()).decode()


def signed_v2(bucket, *conditions, expires=600, user="one", secret=None) -> dict[str, str]:
    policy = policy_of(bucket, *conditions, expires=expires)
    digest = hmac.digest((secret or f"secret{user}").encode(), policy.encode(), "sha1")
    return {"policy": policy, "AWSAccessKeyId": f"key{user}:{user}", "signature": base64.b64encode(digest).decode()}


@pytest.mark.parametrize("version", ["s3v4", "s3"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_presigned_post_of_boto3(server, s3, bucket, version, everywhere):
    client = server.client(signature_version=version)
    given = client.generate_presigned_post(
        bucket, "up/${filename}", Fields={"acl": "private", "Content-Type": "text/x"},
        Conditions=[{"acl": "private"}, ["starts-with", "$Content-Type", "text/"], ["content-length-range", 1, 100],
                    ["starts-with", "$x-amz-meta-a", ""]])
    fields = {**given["fields"], "x-amz-meta-a": "ü"}
    assert ("x-amz-signature" in fields) == (version == "s3v4")
    content = b"content\r\n--lImI"
    body = encode(fields, content, "C:\\d\\n m.txt", everywhere, [("submit", "x")])
    status, headers, answer = post(given["url"], body)
    assert (status, answer) == (204, b""), answer
    assert headers["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
    assert headers["Location"] == f"{server.url}/{bucket}/up/n%20m.txt"
    found = s3.get_object(Bucket=bucket, Key="up/n m.txt")
    assert found["Body"].read() == content and found["ContentType"] == "text/x"
    assert found["Metadata"]["a"].encode("latin-1").decode() == "ü"
    for wrong in ({"acl": "public-read"}, {"Content-Type": "image/png"}, {"more": "1"}, {"key": "other"}):
        status, _, answer = post(given["url"], encode(fields | wrong, content))
        assert (status, code(answer)) == (403, "AccessDenied"), wrong
        assert b"Invalid according to Policy" in answer
    assert code(post(given["url"], encode(fields, b"x" * 101))[2]) == "EntityTooLarge"
    assert code(post(given["url"], encode(fields, b""))[2]) == "EntityTooSmall"
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["up/n m.txt"]
    for name in ("x-amz-signature", "signature"):
        if name in fields:
            status, _, answer = post(given["url"], encode(fields | {name: "0" * 64}, content))
            assert (status, code(answer)) == (403, "SignatureDoesNotMatch")


def test_what_is_answered(server, s3, bucket):
    url, base = f"{server.url}/{bucket}", ({"key": "a&b ü"}, ["starts-with", "$success_action_status", ""],
                                           ["starts-with", "$success_action_redirect", ""])
    fields = {"key": "a&b ü", **signed_v2(bucket, *base)}
    status, _, answer = post(url, encode(fields | {"success_action_status": "201"}, b"x"))
    tree = ElementTree.fromstring(answer)
    assert status == 201 and tree.tag == "PostResponse"
    assert [(e.tag, e.text) for e in tree] == [
        ("Location", f"{url}/a%26b%20%C3%BC"), ("Bucket", bucket), ("Key", "a&b ü"),
        ("ETag", f'"{hashlib.md5(b"x").hexdigest()}"')]
    for asked, expected in (("200", 200), ("204", 204), ("500", 204)):
        status, _, answer = post(url, encode(fields | {"success_action_status": asked}, b"x"))
        assert (status, answer) == (expected, b"")
    status, headers, _ = post(url + "/", encode(fields | {"success_action_redirect": "http://x.example/a?b=c"}, b"x"))
    parts = urllib.parse.urlsplit(headers["Location"])
    assert status == 303 and parts._replace(query="").geturl() == "http://x.example/a"
    assert urllib.parse.parse_qs(parts.query) == {"b": ["c"], "bucket": [bucket], "key": ["a&b ü"],
                                                  "etag": [f'"{hashlib.md5(b"x").hexdigest()}"']}
    for no_address in ("javascript:alert(1)", "http://x/\r\nSet-Cookie: a"):
        assert post(url, encode(fields | {"success_action_redirect": no_address}, b"x"))[0] == 204


def test_tags_checksums_and_digests(server, s3, bucket):
    url = f"{server.url}/{bucket}"
    open_ = [["starts-with", f"${name}", ""] for name in ("key", "tagging", "x-amz-checksum-crc32", "content-md5",
                                                          "x-amz-storage-class", "x-amz-checksum-algorithm")]
    fields = {"key": "k", **signed_v2(bucket, *open_)}
    tagging = "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>"
    right = {"tagging": tagging, "x-amz-checksum-crc32": crc32(b"data"), "x-amz-storage-class": "STANDARD_IA",
             "Content-MD5": base64.b64encode(hashlib.md5(b"data").digest()).decode()}
    assert post(url, encode(fields | right, b"data"))[0] == 204
    found = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert found["ChecksumCRC32"] == crc32(b"data") and found["StorageClass"] == "STANDARD_IA"
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "1"}]
    assert post(url, encode(fields | {"x-amz-checksum-algorithm": "SHA256"}, b"data"))[0] == 204
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["ChecksumSHA256"] == base64.b64encode(
        hashlib.sha256(b"data").digest()).decode()
    for wrong, expected in (({"x-amz-checksum-crc32": crc32(b"other")}, "BadDigest"),
                            ({"tagging": "<a/>"}, "MalformedXML"), ({"Content-MD5": "AAAA"}, "InvalidDigest"),
                            ({"x-amz-storage-class": "X"}, "InvalidArgument")):
        status, _, answer = post(url, encode(fields | wrong, b"data"))
        assert (status, code(answer)) == (400, expected)


def test_forms_that_are_refused(server, s3, bucket):
    url = f"{server.url}/{bucket}"
    fields = {"key": "k", **signed_v2(bucket, {"key": "k"})}

    def refused(body: bytes, where: str = url, **headers) -> tuple[int, str]:
        status, _, answer = post(where, body, headers)
        return status, code(answer)
    assert refused(encode({k: v for k, v in fields.items() if k != "key"}, b"x")) == (400, "InvalidArgument")
    assert refused(encode(fields | {"key": ""}, b"x")) == (400, "InvalidArgument")
    assert refused(encode({"key": "k"}, b"x")) == (403, "AccessDenied")
    assert refused(encode({"key": "k", "policy": fields["policy"]}, b"x")) == (400, "InvalidArgument")
    assert refused(encode(fields | {"policy": "bm8="}, b"x")) == (400, "InvalidPolicyDocument")
    assert refused(encode(fields | {"AWSAccessKeyId": "nobody"}, b"x")) == (403, "InvalidAccessKeyId")
    assert refused(encode({"key": "k", **signed_v2(bucket, {"key": "k"}, expires=-5)}, b"x")) == (403, "AccessDenied")
    assert refused(encode({"key": "k", **signed_v2("other", {"key": "k"})}, b"x")) == (403, "AccessDenied")
    assert refused(encode({"key": "k", **signed_v2(bucket, {"key": "k"}, user="two")}, b"x")) == (403, "AccessDenied")
    assert refused(encode(fields, b"x")[:-12]) == (400, "MalformedPOSTRequest")
    assert refused(b"no form") == (400, "MalformedPOSTRequest")
    assert refused(encode(fields | {"x-ignore-a": "v" * 21000}, b"x")) == (400, "MaxPostPreDataLengthExceededError")
    assert refused(b"a=b", **{"Content-Type": "application/x-www-form-urlencoded"}) == (412, "PreconditionFailed")
    assert refused(encode(fields, b"x"), Authorization="AWS keyone:one:abc") == (403, "AccessDenied")
    assert refused(encode({"key": "k", **signed_v2("missing-bucket", {"key": "k"})}, b"x"),
                   f"{server.url}/missing-bucket") == (404, "NoSuchBucket")
    second = b'--lImIt\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n'
    twice = second + encode(fields, b"x")
    assert refused(twice) == (400, "InvalidArgument")
    meta = {"key": "k", **signed_v2(bucket, {"key": "k"}, ["starts-with", "$x-amz-meta-a", ""])}
    assert refused(encode(meta | {"x-amz-meta-a": "1\r\nSet-Cookie: b"}, b"x")) == (400, "InvalidArgument")
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_a_form_is_good_for_many_files_even_where_replays_are_rejected_but_not_for_guessing(own):
    redis, directory = own
    server = start(redis.url, directory, "--reject_replays", "--lockout_attempts=3")
    s3 = server.client()
    s3.create_bucket(Bucket="forms")
    url, fields = f"{server.url}/forms", {"key": "${filename}", **signed_v2("forms", ["starts-with", "$key", ""])}
    for name in ("a", "b"):
        assert post(url, encode(fields, b"x", name))[0] == 204
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="forms")["Contents"]] == ["a", "b"]
    for guess in range(3):
        assert code(post(url, encode(fields | {"signature": f"guess {guess}"}, b"x"))[2]) == "SignatureDoesNotMatch"
    status, _, answer = post(url, encode(fields, b"x", "c"))
    assert (status, code(answer)) == (403, "AccessDenied") and b"locked" in answer
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="forms")["Contents"]] == ["a", "b"]  # its owner works on
    stop(server)


def test_memory_does_not_grow_with_the_file(own):
    redis, directory = own
    server = start(redis.url, directory)
    s3 = server.client()
    s3.create_bucket(Bucket="forms")
    fields = {"key": "big", **signed_v2("forms", {"key": "big"})}

    def put(size: int) -> None:
        head, _, tail = encode(fields, b"@FILE@").partition(b"@FILE@")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.putrequest("POST", "/forms")
        connection.putheader("Content-Type", "multipart/form-data; boundary=lImIt")
        connection.putheader("Content-Length", str(len(head) + size + len(tail)))
        connection.endheaders(head)
        zeros = Zeros(size)
        while block := zeros.read(MIB):
            connection.send(block)
        connection.send(tail)
        assert connection.getresponse().status == 204
        connection.close()
        assert s3.head_object(Bucket="forms", Key="big")["ContentLength"] == size
    put(8 * MIB)
    before = server.resident()
    put(300 * MIB)
    assert server.resident() - before < 60 * MIB
    stop(server)


def test_a_client_that_goes_away_leaves_nothing(server, s3, bucket):
    fields = {"key": "k", **signed_v2(bucket, {"key": "k"})}
    body = encode(fields, b"x" * 300_000)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest("POST", f"/{bucket}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=lImIt")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:200_000])
    connection.close()
    assert post(f"{server.url}/{bucket}", body)[0] == 204
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x" * 300_000
