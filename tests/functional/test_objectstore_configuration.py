"""What buckets are told to do: CORS, tags, lifecycle; and what is told of an object beside its bytes."""

import asyncio
import base64
import hashlib
import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from nova import datastore
from nova.flags import FLAGS
from nova.objectstore import expiry, lifecycle
from nova.objectstore.files import Files
from nova.objectstore.models import object_id
from tests.conftest import wait_until
from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
    bucket_fixture,
    code_of,
    crc32,
    own_fixture,
    s3_fixture,
    server_fixture,
    sign,
    start,
    stop,
)


def refusal(call, *args, **more) -> tuple[str, int]:
    with pytest.raises(ClientError) as error:
        call(*args, **more)
    return code_of(error)


# -- CORS -------------------------------------------------------------------------------------------------------------

def ask(server, method, path, headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), data


def preflight(server, path, origin="http://a.example", method="PUT", **more):
    return ask(server, "OPTIONS", path, {"Origin": origin, "Access-Control-Request-Method": method, **more})


RULES = {"CORSRules": [
    {"ID": "writers", "AllowedMethods": ["PUT", "POST"], "AllowedOrigins": ["http://*.example"],
     "AllowedHeaders": ["x-amz-*", "content-type"], "ExposeHeaders": ["ETag", "x-amz-request-id"], "MaxAgeSeconds": 60},
    {"AllowedMethods": ["GET", "HEAD"], "AllowedOrigins": ["*"]}]}


def test_cors_configuration(s3, bucket):
    assert refusal(s3.get_bucket_cors, Bucket=bucket) == ("NoSuchCORSConfiguration", 404)
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES)
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == RULES["CORSRules"]
    wrong = {"CORSRules": [{"AllowedMethods": ["PATCH"], "AllowedOrigins": ["*"]}]}
    assert refusal(s3.put_bucket_cors, Bucket=bucket, CORSConfiguration=wrong) == ("InvalidRequest", 400)
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == RULES["CORSRules"]
    s3.delete_bucket_cors(Bucket=bucket)
    s3.delete_bucket_cors(Bucket=bucket)
    assert refusal(s3.get_bucket_cors, Bucket=bucket) == ("NoSuchCORSConfiguration", 404)


def test_only_the_owner_configures(server, s3, bucket):
    two = server.client("two")
    for call in (lambda: two.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES),
                 lambda: two.get_bucket_cors(Bucket=bucket), lambda: two.delete_bucket_cors(Bucket=bucket),
                 lambda: two.get_bucket_tagging(Bucket=bucket), lambda: two.delete_bucket_lifecycle(Bucket=bucket),
                 lambda: two.get_bucket_lifecycle_configuration(Bucket=bucket)):
        assert refusal(call) == ("AccessDenied", 403)


def test_preflight(server, s3, bucket):
    path = f"/{bucket}/some/key"
    status, _, data = preflight(server, path)
    assert status == 403 and b"<Code>AccessForbidden</Code>" in data and b"CORS is not enabled for this bucket" in data
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES)
    status, headers, data = preflight(server, path, **{"Access-Control-Request-Headers": "Content-Type, X-Amz-Acl"})
    assert (status, data) == (200, b"")
    told = {name: value for name, value in headers.items() if name.startswith("Access-Control-") or name == "Vary"}
    assert told == {
        "Access-Control-Allow-Origin": "http://a.example", "Access-Control-Allow-Methods": "PUT, POST",
        "Access-Control-Allow-Headers": "content-type, x-amz-acl", "Access-Control-Max-Age": "60",
        "Access-Control-Expose-Headers": "ETag, x-amz-request-id", "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"}
    assert preflight(server, f"/{bucket}", "null", "GET")[1]["Access-Control-Allow-Origin"] == "*"
    for refused in (preflight(server, path, "http://a.elsewhere"), preflight(server, path, method="DELETE"),
                    preflight(server, path, **{"Access-Control-Request-Headers": "authorization"})):
        assert refused[0] == 403 and b"<Message>CORSResponse: This CORS request is not allowed." in refused[2]
        assert "Access-Control-Allow-Origin" not in refused[1]
    assert b"CORSResponse: Bucket not found" in preflight(server, "/no-such-bucket/x")[2]
    for headers in ({}, {"Origin": "http://a.example"},
                    {"Origin": "http://a.example", "Access-Control-Request-Method": "PATCH"}):
        status, _, data = ask(server, "OPTIONS", path, headers)
        assert status == 400 and b"<Code>BadRequest</Code>" in data


def test_answers_to_pages_of_other_origins(server, s3, bucket):
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES)
    request = sign(server, "PUT", f"/{bucket}/k", b"x", {"Origin": "http://b.example"})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("PUT", f"/{bucket}/k", b"x", dict(request.headers))
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["Access-Control-Allow-Origin"] == "http://b.example"
    assert answer.headers["Access-Control-Expose-Headers"] == "ETag, x-amz-request-id"
    connection.close()
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"}).removeprefix(server.url)
    status, headers, data = ask(server, "GET", url, {"Origin": "http://c.elsewhere"})
    assert (status, data, headers["Access-Control-Allow-Origin"]) == (200, b"x", "*")
    assert "Access-Control-Allow-Origin" not in ask(server, "GET", url, {})[1]
    for path, expected in ((f"/{bucket}/k", 403), (url.replace("/k?", "/none?"), 403)):
        status, headers, data = ask(server, "GET", path, {"Origin": "http://c.elsewhere"})
        assert (status, headers["Access-Control-Allow-Origin"]) == (expected, "*") and b"<Error>" in data
    assert "Access-Control-Allow-Origin" not in ask(server, "DELETE", f"/{bucket}/k", {"Origin": "http://b.example"})[1]


# -- tags -------------------------------------------------------------------------------------------------------------

def tag_set(**tags: str) -> list[dict]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def test_tags_of_an_object(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1&b=%C3%A4")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tag_set(a="1", b="ä")
    assert s3.get_object(Bucket=bucket, Key="k")["TagCount"] == 2
    before = s3.head_object(Bucket=bucket, Key="k")
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tag_set(c="")})
    after = s3.head_object(Bucket=bucket, Key="k")
    assert after["ResponseMetadata"]["HTTPHeaders"]["x-amz-tagging-count"] == "1"
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])
    s3.copy_object(Bucket=bucket, Key="copied", CopySource=f"{bucket}/k")
    s3.copy_object(Bucket=bucket, Key="new", CopySource=f"{bucket}/k", TaggingDirective="REPLACE", Tagging="d=4")
    assert s3.get_object_tagging(Bucket=bucket, Key="copied")["TagSet"] == tag_set(c="")
    assert s3.get_object_tagging(Bucket=bucket, Key="new")["TagSet"] == tag_set(d="4")
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert "TagCount" not in s3.get_object(Bucket=bucket, Key="k")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", Tagging="e=5")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload,
                                 MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert s3.get_object_tagging(Bucket=bucket, Key="m")["TagSet"] == tag_set(e="5")
    s3.put_object(Bucket=bucket, Key="m", Body=b"")
    assert s3.get_object_tagging(Bucket=bucket, Key="m")["TagSet"] == []


def test_tags_that_are_refused(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1")
    eleven = tag_set(**{f"k{i}": "" for i in range(11)})
    for tags, expected in ((eleven, "BadRequest"), (tag_set(**{"k" * 129: ""}), "InvalidTag"),
                           (tag_set(k="v" * 257), "InvalidTag"), (tag_set(a="1") * 2, "InvalidTag")):
        assert refusal(s3.put_object_tagging, Bucket=bucket, Key="k", Tagging={"TagSet": tags}) == (expected, 400)
    assert refusal(s3.put_object, Bucket=bucket, Key="k", Tagging="a=1&a=2") == ("InvalidArgument", 400)
    assert refusal(s3.put_object_tagging, Bucket=bucket, Key="no", Tagging={"TagSet": []}) == ("NoSuchKey", 404)
    assert refusal(s3.copy_object, Bucket=bucket, Key="c", CopySource=f"{bucket}/k", TaggingDirective="X") == (
        "InvalidArgument", 400)
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tag_set(a="1")


def test_tags_never_tear_an_object_that_is_replaced_meanwhile(server, s3, bucket):
    def put(i: int) -> None:
        s3.put_object(Bucket=bucket, Key="k", Body=b"%d" % i)

    def tag(i: int) -> None:
        s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tag_set(i=str(i))})
    put(0)
    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(call, i) for i in range(30) for call in (put, tag)]:
            future.result()
    found = s3.get_object(Bucket=bucket, Key="k")
    body = found["Body"].read()
    assert found["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    wait_until(lambda: len([f for f in server.files() if object_id(bucket, "k") in f.name]) == 1, 10)


def test_tags_of_a_bucket(s3, bucket):
    assert refusal(s3.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)
    fifty = tag_set(**{f"k{i}": "v" for i in range(50)})
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": fifty})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == fifty
    assert refusal(s3.put_bucket_tagging, Bucket=bucket, Tagging={"TagSet": [*fifty, *tag_set(x="")]})[1] == 400
    s3.delete_bucket_tagging(Bucket=bucket)
    assert refusal(s3.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)


def test_configurations_do_not_overwrite_each_other(server, bucket):
    clients = [server.client() for _ in range(3)]
    calls = [lambda c: c.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES),
             lambda c: c.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tag_set(a="1")}),
             lambda c: c.put_bucket_lifecycle_configuration(
                 Bucket=bucket, LifecycleConfiguration={"Rules": [{"Status": "Enabled", "Prefix": "", "ID": "r",
                                                                   "Expiration": {"Days": 1}}]})]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda pair: pair[0](pair[1]), zip(calls, clients, strict=True)))
    assert clients[0].get_bucket_cors(Bucket=bucket)["CORSRules"] == RULES["CORSRules"]
    assert clients[0].get_bucket_tagging(Bucket=bucket)["TagSet"] == tag_set(a="1")
    assert clients[0].get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]["ID"] == "r"


# -- lifecycle --------------------------------------------------------------------------------------------------------

def set_rules(s3, bucket, *rules: dict) -> None:
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={
        "Rules": [{"Status": "Enabled", "ID": f"r{i}", **rule} for i, rule in enumerate(rules)]})


def apply(server, days: float = 0, meanwhile=None, upload_days: int = 0) -> int:
    """Apply the rules as another process would, so many days from now."""
    async def run() -> int:
        store = datastore.open_store(server.redis.url)
        files = Files(str(server.objects))
        try:
            return await expiry.apply(store, files, lambda: time.time() + days * lifecycle.DAY)
        finally:
            files.close()
            await store.close()
    FLAGS.objects_upload_days = upload_days
    try:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(asyncio.run, run()).result()
    finally:
        FLAGS.objects_upload_days = 0


def keys(s3, bucket) -> list[str]:
    return [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


def test_lifecycle_configuration(s3, bucket):
    assert refusal(s3.get_bucket_lifecycle_configuration, Bucket=bucket) == ("NoSuchLifecycleConfiguration", 404)
    rules = [
        {"ID": "a", "Status": "Enabled", "Filter": {"And": {"Prefix": "p/", "Tags": tag_set(t="1"),
                                                            "ObjectSizeGreaterThan": 5, "ObjectSizeLessThan": 50}},
         "Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}},
        {"ID": "b", "Status": "Disabled", "Filter": {"Prefix": ""},
         "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
         "NoncurrentVersionExpiration": {"NoncurrentDays": 3, "NewerNoncurrentVersions": 2}}]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    assert s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == rules
    move = {"Rules": [{"Status": "Enabled", "Prefix": "", "Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}]}
    assert refusal(s3.put_bucket_lifecycle_configuration, Bucket=bucket, LifecycleConfiguration=move) == (
        "NotImplemented", 501)
    assert len(s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]) == 2
    s3.delete_bucket_lifecycle(Bucket=bucket)
    assert refusal(s3.get_bucket_lifecycle_configuration, Bucket=bucket) == ("NoSuchLifecycleConfiguration", 404)


def test_objects_expire(server, s3, bucket):
    s3.put_object(Bucket=bucket, Key="logs/1", Body=b"12345", Tagging="t=1")
    s3.put_object(Bucket=bucket, Key="logs/2", Body=b"12345")
    s3.put_object(Bucket=bucket, Key="logs/3", Body=b"123456789", Tagging="t=1&u=2")
    s3.put_object(Bucket=bucket, Key="other", Body=b"12345", Tagging="t=1")
    set_rules(s3, bucket, {"Filter": {"And": {"Prefix": "logs/", "Tags": tag_set(t="1"), "ObjectSizeLessThan": 9}},
                           "Expiration": {"Days": 2}},
              {"Filter": {"ObjectSizeGreaterThan": 8}, "Expiration": {"Days": 5}})
    assert apply(server, 1.99) == 0 and len(keys(s3, bucket)) == 4
    assert apply(server, 3.01) == 1 and keys(s3, bucket) == ["logs/2", "logs/3", "other"]
    assert apply(server, 6.01) == 1 and keys(s3, bucket) == ["logs/2", "other"]
    assert apply(server, 1000) == 0
    assert len([f for f in server.files() if object_id(bucket, "logs/1") in f.name]) == 0


def test_the_header_says_when(s3, bucket):
    set_rules(s3, bucket, {"Prefix": "logs/", "Expiration": {"Days": 2}})
    put = s3.put_object(Bucket=bucket, Key="logs/1", Body=b"x")
    midnight = put["ResponseMetadata"]["HTTPHeaders"]["date"]
    day = datetime.strptime(midnight, "%a, %d %b %Y %H:%M:%S GMT").replace(hour=0, minute=0, second=0)
    # the clock of the header may have passed a midnight since the object was put
    expected = {(day + timedelta(days=n)).strftime('expiry-date="%a, %d %b %Y 00:00:00 GMT", rule-id="r0"')
                for n in (2, 3)}
    assert put["Expiration"] in expected
    assert s3.head_object(Bucket=bucket, Key="logs/1")["Expiration"] == put["Expiration"]
    assert s3.get_object(Bucket=bucket, Key="logs/1")["Expiration"] == put["Expiration"]
    assert s3.copy_object(Bucket=bucket, Key="logs/2", CopySource=f"{bucket}/logs/1")["Expiration"] in expected
    assert "Expiration" not in s3.put_object(Bucket=bucket, Key="other", Body=b"x")


async def test_an_object_that_was_replaced_stays(server, s3, bucket, monkeypatch):
    """Another process puts the object after it was judged and before it is removed."""
    for key in ("replaced", "tagged", "left"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"old")
    set_rules(s3, bucket, {"Prefix": "", "Expiration": {"Days": 1}})
    judge = expiry.objects.delete

    async def slowly(store, files, bucket_, key, version=None, check=None):
        if key == "replaced":
            await asyncio.to_thread(s3.put_object, Bucket=bucket, Key=key, Body=b"new")
        elif key == "tagged":
            await asyncio.to_thread(s3.put_object_tagging, Bucket=bucket, Key=key, Tagging={"TagSet": tag_set(a="1")})
        await judge(store, files, bucket_, key, version, check)
    monkeypatch.setattr(expiry.objects, "delete", slowly)
    store, files = datastore.open_store(server.redis.url), Files(str(server.objects))
    assert await expiry.apply(store, files, lambda: time.time() + 3 * lifecycle.DAY) == 1
    files.close()
    await store.close()
    assert keys(s3, bucket) == ["replaced", "tagged"]
    assert s3.get_object(Bucket=bucket, Key="replaced")["Body"].read() == b"new"


def test_many_processes_and_more_than_one_batch(server, s3, bucket, monkeypatch):
    monkeypatch.setattr(expiry, "_BATCH", 7)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: s3.put_object(Bucket=bucket, Key=f"{'xy'[i % 2]}{i}", Body=b"x"), range(40)))
    set_rules(s3, bucket, {"Prefix": "x", "Expiration": {"Days": 1}})
    with ThreadPoolExecutor(3) as threads:
        removed = list(threads.map(lambda _: apply(server, 3), range(3)))
    assert sum(removed) == 20 and len(keys(s3, bucket)) == 20


def test_versions_expire(server, s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for number in range(4):
        for key in ("k", "other"):
            s3.put_object(Bucket=bucket, Key=key, Body=b"%d" % number)
    s3.delete_object(Bucket=bucket, Key="deleted")
    s3.delete_object(Bucket=bucket, Key="k")

    def there() -> list[tuple[str, bytes]]:
        found = s3.list_object_versions(Bucket=bucket)
        return [(v["Key"], s3.get_object(Bucket=bucket, Key=v["Key"], VersionId=v["VersionId"])["Body"].read())
                for v in found.get("Versions", ())] + [(m["Key"], b"") for m in found.get("DeleteMarkers", ())]
    set_rules(s3, bucket, {"Filter": {"Prefix": "k"}, "NoncurrentVersionExpiration": {
        "NoncurrentDays": 2, "NewerNoncurrentVersions": 3}})
    assert apply(server, 1.9) == 0 and len(there()) == 10
    assert apply(server, 3.1) == 1
    assert there() == [("k", b"3"), ("k", b"2"), ("k", b"1"), ("other", b"3"), ("other", b"2"), ("other", b"1"),
                       ("other", b"0"), ("deleted", b""), ("k", b"")]
    set_rules(s3, bucket, {"Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 2},
                           "Expiration": {"ExpiredObjectDeleteMarker": True}})
    assert apply(server, 3.1) == 7  # six versions, and the marker that hides nothing
    assert there() == [("other", b"3"), ("k", b"")]
    assert apply(server, 3.1) == 1 and there() == [("other", b"3")]
    set_rules(s3, bucket, {"Filter": {"Prefix": ""}, "Expiration": {"Days": 1}})
    assert "Expiration" in s3.head_object(Bucket=bucket, Key="other")
    assert apply(server, 2.1) == 1 and keys(s3, bucket) == []  # hidden, not removed
    hidden = s3.list_object_versions(Bucket=bucket)["Versions"][0]["VersionId"]
    assert "Expiration" not in s3.head_object(Bucket=bucket, Key="other", VersionId=hidden)
    assert sorted(there()) == [("other", b""), ("other", b"3")]
    s3.delete_object(Bucket=bucket, Key="other", VersionId=hidden)
    assert apply(server, 2.1) == 1 and there() == []


def test_tags_of_versions(s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket=bucket, Key="k", Body=b"1", Tagging="a=1")["VersionId"]
    new = s3.put_object(Bucket=bucket, Key="k", Body=b"2")["VersionId"]
    assert s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tag_set(b="2")})["VersionId"] == new
    assert s3.put_object_tagging(Bucket=bucket, Key="k", VersionId=old, Tagging={"TagSet": tag_set(c="3")})[
        "VersionId"] == old
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tag_set(b="2")
    found = s3.get_object_tagging(Bucket=bucket, Key="k", VersionId=old)
    assert (found["TagSet"], found["VersionId"]) == (tag_set(c="3"), old)
    assert s3.delete_object_tagging(Bucket=bucket, Key="k", VersionId=old)["VersionId"] == old
    assert s3.get_object_tagging(Bucket=bucket, Key="k", VersionId=old)["TagSet"] == []
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", VersionId=old, ObjectAttributes=["ETag"])
    assert (attributes["VersionId"], attributes["ETag"]) == (old, hashlib.md5(b"1").hexdigest())
    s3.delete_object(Bucket=bucket, Key="k")
    assert refusal(s3.get_object_tagging, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    assert refusal(s3.get_object_tagging, Bucket=bucket, Key="k", VersionId="0" * 32) == ("NoSuchVersion", 404)


def test_abandoned_uploads_are_aborted(server, s3, bucket):
    for key in ("a/1", "b/1"):
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    set_rules(s3, bucket, {"Prefix": "a/", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3}})

    def left() -> list[str]:
        return [u["Key"] for u in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]
    assert apply(server, 2.9) == 0 and left() == ["a/1", "b/1"]
    assert apply(server, 4.1) == 1 and left() == ["b/1"]
    s3.delete_bucket_lifecycle(Bucket=bucket)
    assert apply(server, 100) == 0
    assert apply(server, 100, upload_days=99) == 1 and left() == []
    assert not [f for f in server.files() if f.name.startswith("p-")]


def test_the_service_applies_the_rules(own):
    redis, directory = own
    server = start(redis.url, directory, "--objects_lifecycle_interval=1")
    s3 = server.client()
    s3.create_bucket(Bucket="dated")
    s3.put_object(Bucket="dated", Key="k", Body=b"x")
    yesterday = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    set_rules(s3, "dated", {"Filter": {}, "Expiration": {"Date": yesterday}})
    deadline = time.monotonic() + 60
    while keys(s3, "dated"):
        assert time.monotonic() < deadline
    stop(server)


# -- attributes, checksums, uploads in parts --------------------------------------------------------------------------

def upload_parts(s3, bucket, key, sizes, algorithm="SHA256", **more):
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm=algorithm, **more)["UploadId"]
    parts = []
    for number, size in enumerate(sizes, 1):
        part = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=bytes([number]) * size,
                              ChecksumAlgorithm=algorithm)
        parts.append({"PartNumber": number, "ETag": part["ETag"], f"Checksum{algorithm}": part[f"Checksum{algorithm}"]})
    return {"Bucket": bucket, "Key": key, "UploadId": upload, "MultipartUpload": {"Parts": parts}}


EVERYTHING = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]


def test_attributes(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"data", StorageClass="STANDARD_IA")
    found = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=EVERYTHING)
    assert found["ETag"] == hashlib.md5(b"data").hexdigest() and found["ObjectSize"] == 4
    assert found["Checksum"] == {"ChecksumCRC32": crc32(b"data"), "ChecksumType": "FULL_OBJECT"}
    assert found["StorageClass"] == "STANDARD_IA" and "ObjectParts" not in found
    assert found["LastModified"] == s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    only = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectSize"])
    assert only["ObjectSize"] == 4 and "ETag" not in only and "Checksum" not in only
    assert refusal(s3.get_object_attributes, Bucket=bucket, Key="k", ObjectAttributes=["X"]) == ("InvalidArgument", 400)
    assert refusal(s3.get_object_attributes, Bucket=bucket, Key="n", ObjectAttributes=["ETag"]) == ("NoSuchKey", 404)


def test_attributes_of_parts(s3, bucket):
    done = upload_parts(s3, bucket, "m", [5 * MIB, 5 * MIB, 7])
    s3.complete_multipart_upload(**done)
    found = s3.get_object_attributes(Bucket=bucket, Key="m", ObjectAttributes=EVERYTHING)
    digests = [hashlib.sha256(bytes([n]) * size).digest() for n, size in ((1, 5 * MIB), (2, 5 * MIB), (3, 7))]
    whole = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
    assert found["Checksum"] == {"ChecksumSHA256": f"{whole}-3", "ChecksumType": "COMPOSITE"}
    parts = found["ObjectParts"]
    assert (parts["TotalPartsCount"], parts["IsTruncated"], parts["MaxParts"]) == (3, False, 1000)
    assert parts["Parts"] == [{"PartNumber": n, "Size": size, "ChecksumSHA256": base64.b64encode(digest).decode()}
                              for n, size, digest in zip((1, 2, 3), (5 * MIB, 5 * MIB, 7), digests, strict=True)]
    seen, marker = [], 0
    while True:
        page = s3.get_object_attributes(Bucket=bucket, Key="m", ObjectAttributes=["ObjectParts"], MaxParts=2,
                                        PartNumberMarker=marker)["ObjectParts"]
        seen += [p["PartNumber"] for p in page["Parts"]]
        if not page["IsTruncated"]:
            break
        marker = page["NextPartNumberMarker"]
    assert seen == [1, 2, 3]


def test_a_copy_has_the_checksum_asked_for(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    sha1 = base64.b64encode(hashlib.sha1(b"data").digest()).decode()
    answer = s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/k", ChecksumAlgorithm="SHA1")
    assert answer["CopyObjectResult"]["ChecksumSHA1"] == sha1
    found = s3.head_object(Bucket=bucket, Key="c", ChecksumMode="ENABLED")
    assert found["ChecksumSHA1"] == sha1 and "ChecksumCRC32" not in found
    plain = s3.copy_object(Bucket=bucket, Key="d", CopySource=f"{bucket}/k")["CopyObjectResult"]
    assert plain["ChecksumCRC32"] == crc32(b"data")
    s3.complete_multipart_upload(**upload_parts(s3, bucket, "m", [5 * MIB, 3]))
    whole = base64.b64encode(hashlib.sha256(b"\1" * 5 * MIB + b"\2" * 3).digest()).decode()
    copied = s3.copy_object(Bucket=bucket, Key="e", CopySource=f"{bucket}/m")["CopyObjectResult"]
    assert (copied["ChecksumSHA256"], copied["ChecksumType"]) == (whole, "FULL_OBJECT")


def test_a_checksum_of_the_whole_upload(s3, bucket):
    done = upload_parts(s3, bucket, "m", [5 * MIB, 9], "CRC32", ChecksumType="FULL_OBJECT")
    whole = crc32(b"\1" * 5 * MIB + b"\2" * 9)
    assert refusal(s3.complete_multipart_upload, **done, ChecksumCRC32="AAAAAA==") == ("BadDigest", 400)
    assert refusal(s3.complete_multipart_upload, **done, ChecksumType="COMPOSITE") == ("InvalidRequest", 400)
    answer = s3.complete_multipart_upload(**done, ChecksumCRC32=whole, ChecksumType="FULL_OBJECT")
    assert (answer["ChecksumCRC32"], answer["ChecksumType"]) == (whole, "FULL_OBJECT")
    parts = s3.get_object_attributes(Bucket=bucket, Key="m", ObjectAttributes=["ObjectParts"])["ObjectParts"]["Parts"]
    assert [part["ChecksumCRC32"] for part in parts] == [crc32(b"\1" * 5 * MIB), crc32(b"\2" * 9)]


def test_completing_an_upload(s3, bucket):
    done = upload_parts(s3, bucket, "m", [5 * MIB, 9])
    assert refusal(s3.complete_multipart_upload, **done, MpuObjectSize=5 * MIB) == ("InvalidRequest", 400)
    assert refusal(s3.complete_multipart_upload, **done, IfMatch='"x"') == ("NoSuchKey", 404)
    first = s3.complete_multipart_upload(**done, MpuObjectSize=5 * MIB + 9, IfNoneMatch="*")
    again = s3.complete_multipart_upload(**done, MpuObjectSize=5 * MIB + 9, IfNoneMatch="*")
    assert again["ETag"] == first["ETag"] and again["ChecksumSHA256"] == first["ChecksumSHA256"]
    other = upload_parts(s3, bucket, "m", [3])
    assert refusal(s3.complete_multipart_upload, **other, IfNoneMatch="*") == ("PreconditionFailed", 412)
    s3.complete_multipart_upload(**other, IfMatch=first["ETag"])
    assert s3.head_object(Bucket=bucket, Key="m")["ContentLength"] == 3
    assert refusal(s3.complete_multipart_upload, **done) == ("NoSuchUpload", 404)


def test_pages_of_uploads_and_parts(s3, bucket):
    ids = {key: [s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for _ in range(3)]
           for key in ("a", "b/c")}
    upload = ids["a"][0]
    for number in (1, 3, 7, 8, 10000):
        s3.upload_part(Bucket=bucket, Key="a", UploadId=upload, PartNumber=number, Body=b"x")
    pages = list(s3.get_paginator("list_parts").paginate(Bucket=bucket, Key="a", UploadId=upload,
                                                         PaginationConfig={"PageSize": 2}))
    assert [[p["PartNumber"] for p in page["Parts"]] for page in pages] == [[1, 3], [7, 8], [10000]]
    for size in (1, 2, 5):
        paginate = s3.get_paginator("list_multipart_uploads").paginate
        found = [(u["Key"], u["UploadId"]) for page in paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
                 for u in page.get("Uploads", ())]
        assert sorted(found) == sorted((key, id) for key in ids for id in ids[key]) and len(set(found)) == 6
    rolled = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [p["Prefix"] for p in rolled["CommonPrefixes"]] == ["b/"] and len(rolled["Uploads"]) == 3


def test_what_is_not_offered_says_so(server, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    for call, word in (
            (lambda: s3.get_object_legal_hold(Bucket=bucket, Key="k"), "legal hold"),
            (lambda: s3.get_object_retention(Bucket=bucket, Key="k"), "retention"),
            (lambda: s3.get_object_torrent(Bucket=bucket, Key="k"), "BitTorrent"),
            (lambda: s3.restore_object(Bucket=bucket, Key="k", RestoreRequest={"Days": 1}), "archive"),
            (lambda: s3.select_object_content(
                Bucket=bucket, Key="k", Expression="select", ExpressionType="SQL", InputSerialization={"CSV": {}},
                OutputSerialization={"CSV": {}}), "Querying")):
        with pytest.raises(ClientError) as error:
            call()
        assert code_of(error) == ("NotImplemented", 501) and word in error.value.response["Error"]["Message"]


def test_old_names_of_buckets_have_no_host_names(own):
    redis, directory = own
    server = start(redis.url, directory, "--s3_domain=s3.example")
    s3 = server.client(signature_version="s3")
    http_client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for name, status in (("lower", 403), ("Upper_Case", 404)):
        request = sign(server, "PUT", f"/{name}")
        http_client.request("PUT", f"/{name}", headers=dict(request.headers))
        answer = http_client.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        http_client.request("GET", "/", headers={"Host": f"{name}.s3.example"})
        answer = http_client.getresponse()
        assert answer.status == status
        answer.read()
    s3.put_bucket_cors(Bucket="Upper_Case", CORSConfiguration=RULES)
    s3.put_bucket_cors(Bucket="lower", CORSConfiguration=RULES)
    for name, text in (("lower", b""), ("Upper_Case", b"Bucket not found")):
        http_client.request("OPTIONS", "/k", headers={"Host": f"{name}.s3.example", "Origin": "http://a",
                                                      "Access-Control-Request-Method": "GET"})
        assert text in http_client.getresponse().read()
    http_client.close()
    stop(server)


def test_response_overrides_and_owners(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    found = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="a/b", ResponseContentDisposition="attachment",
                          ResponseCacheControl="no-store", ResponseContentLanguage="de", ResponseContentEncoding="x",
                          ResponseExpires=datetime(2030, 1, 1, tzinfo=UTC))
    assert (found["ContentType"], found["ContentDisposition"], found["CacheControl"], found["ContentLanguage"],
            found["ContentEncoding"]) == ("a/b", "attachment", "no-store", "de", "x")
    assert found["ExpiresString"] == "Tue, 01 Jan 2030 00:00:00 GMT"
    assert "Owner" not in s3.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert s3.list_objects_v2(Bucket=bucket, FetchOwner=True)["Contents"][0]["Owner"]["ID"] == "one"
