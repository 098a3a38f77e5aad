"""The object store as boto3, boto 2 and the aws command line see it."""

import base64
import hashlib
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.conftest import environment_without_aws
from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
    bucket_fixture,
    code_of,
    crc32,
    s3_fixture,
    server_fixture,
    signed,
)

# -- buckets ----------------------------------------------------------------------------------------------------------

def test_bucket_round(server, s3):
    s3.create_bucket(Bucket="round-1", CreateBucketConfiguration={"LocationConstraint": "nova"})
    assert s3.head_bucket(Bucket="round-1")["BucketRegion"] == "nova"
    assert s3.get_bucket_location(Bucket="round-1")["LocationConstraint"] == "nova"
    answer = s3.list_buckets()
    assert "round-1" in [b["Name"] for b in answer["Buckets"]] and answer["Owner"]["ID"] == "one"
    assert abs((datetime.now(UTC) - answer["Buckets"][0]["CreationDate"]).total_seconds()) < 60
    with pytest.raises(ClientError) as error:
        s3.create_bucket(Bucket="round-1")
    assert code_of(error) == ("BucketAlreadyOwnedByYou", 409)
    s3.delete_bucket(Bucket="round-1")
    with pytest.raises(ClientError) as error:
        s3.head_bucket(Bucket="round-1")
    assert code_of(error)[1] == 404


def test_another_projects_bucket(server, s3, bucket):
    two = server.client("two")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with pytest.raises(ClientError) as error:
        two.create_bucket(Bucket=bucket)
    assert code_of(error) == ("BucketAlreadyExists", 409)
    for call in (lambda: two.list_objects_v2(Bucket=bucket), lambda: two.get_object(Bucket=bucket, Key="k"),
                 lambda: two.put_object(Bucket=bucket, Key="k", Body=b"y"), lambda: two.delete_bucket(Bucket=bucket),
                 lambda: two.delete_object(Bucket=bucket, Key="k"), lambda: two.get_bucket_acl(Bucket=bucket)):
        with pytest.raises(ClientError) as error:
            call()
        assert code_of(error) == ("AccessDenied", 403)
    two.create_bucket(Bucket="of-two")
    with pytest.raises(ClientError) as error:
        two.copy_object(Bucket="of-two", Key="stolen", CopySource={"Bucket": bucket, "Key": "k"})
    assert code_of(error) == ("AccessDenied", 403)
    two.delete_bucket(Bucket="of-two")
    assert bucket not in [b["Name"] for b in two.list_buckets()["Buckets"]]


@pytest.mark.parametrize("name", ["ab", "a" * 64, "192.168.1.1", "-ab", "a..b", "a b", "ü" * 3])
def test_bad_bucket_names(server, name):
    status, answer = signed(server, "PUT", f"/{quote(name)}")
    assert status == 400 and b"<Code>InvalidBucketName</Code>" in answer


def test_bucket_with_objects_cannot_be_removed(s3, bucket):
    s3.put_object(Bucket=bucket, Key="x", Body=b"")
    with pytest.raises(ClientError) as error:
        s3.delete_bucket(Bucket=bucket)
    assert code_of(error) == ("BucketNotEmpty", 409)


def test_bucket_with_uploads_can_be_removed(server, s3):
    s3.create_bucket(Bucket="with-uploads")
    before = len(server.files())
    upload = s3.create_multipart_upload(Bucket="with-uploads", Key="x")["UploadId"]
    s3.upload_part(Bucket="with-uploads", Key="x", UploadId=upload, PartNumber=1, Body=b"x")
    s3.delete_bucket(Bucket="with-uploads")
    server.wait_for_files(before)


# -- objects ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", ["plain", "a b", "a+b", "ü/ö/漢字", "dir//x", "../../etc/passwd", ".", "a/./b", "%41",
                                 "'\"<&>", "x?y=z#f", "~-_.!*()", "k" * 1024, "tail/", "\u0001control"])
def test_keys_are_exact(server, s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert [o["Key"] for o in s3.list_objects(Bucket=bucket)["Contents"]] == [key]
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == key.encode()
    s3.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key=key)
    assert code_of(error) == ("NoSuchKey", 404)


def test_key_that_is_too_long(s3, bucket):
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k" * 1025, Body=b"")
    assert code_of(error) == ("KeyTooLongError", 400)


def test_headers_and_metadata_are_kept(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345", ContentType="text/x-y", ContentEncoding="gzip",
                  CacheControl="no-cache", ContentDisposition='attachment; filename="x"', ContentLanguage="de",
                  Metadata={"color": "blue  green", "mode": "33188"}, StorageClass="STANDARD_IA", ACL="private")
    for answer in (s3.get_object(Bucket=bucket, Key="k"), s3.head_object(Bucket=bucket, Key="k")):
        assert answer["ContentType"] == "text/x-y" and answer["ContentEncoding"] == "gzip"
        assert answer["CacheControl"] == "no-cache" and answer["ContentLanguage"] == "de"
        assert answer["ContentDisposition"] == 'attachment; filename="x"'
        assert answer["Metadata"] == {"color": "blue  green", "mode": "33188"}
        assert answer["StorageClass"] == "STANDARD_IA" and answer["ContentLength"] == 5
        assert answer["ETag"] == f'"{hashlib.md5(b"12345").hexdigest()}"' and answer["AcceptRanges"] == "bytes"
        assert "VersionId" not in answer
    answer = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="a/b", ResponseContentDisposition="ü")
    assert answer["ContentType"] == "a/b"


def test_default_checksum_of_boto3_is_kept_and_returned(s3, bucket):
    answer = s3.put_object(Bucket=bucket, Key="k", Body=b"hello")
    expected = base64.b64encode(zlib.crc32(b"hello").to_bytes(4, "big")).decode()
    assert answer["ChecksumCRC32"] == expected and answer["ChecksumType"] == "FULL_OBJECT"
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["ChecksumCRC32"] == expected
    assert s3.get_object(Bucket=bucket, Key="k")["ChecksumCRC32"] == expected


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_checksum_algorithms(s3, bucket, algorithm):
    s3.put_object(Bucket=bucket, Key="k", Body=b"hello", ChecksumAlgorithm=algorithm)
    answer = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert answer[f"Checksum{algorithm}"] and answer["Body"].read() == b"hello"


@pytest.mark.parametrize("name, value",
                         [("x-amz-checksum-crc32c", "4waSgw=="), ("x-amz-checksum-crc64nvme", "rosUhgp5mIg=")])
def test_crc32c_and_crc64nvme(server, bucket, name, value):
    assert signed(server, "PUT", f"/{bucket}/k", b"123456789", {name: value})[0] == 200
    assert signed(server, "PUT", f"/{bucket}/k", b"12345678x", {name: value}) [0] == 400


def test_ranges(s3, bucket):
    data = os.urandom(100000)
    s3.put_object(Bucket=bucket, Key="k", Body=data)
    for header, expected in (("bytes=0-9", data[:10]), ("bytes=99990-", data[-10:]), ("bytes=-5", data[-5:]),
                             ("bytes=5-999999999", data[5:])):
        answer = s3.get_object(Bucket=bucket, Key="k", Range=header)
        assert answer["Body"].read() == expected and answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert s3.get_object(Bucket=bucket, Key="k", Range="bytes=0-9")["ContentRange"] == "bytes 0-9/100000"
    for header in ("bytes=9-1", "chars=1-2", "bytes=0-1,3-4"):
        assert s3.get_object(Bucket=bucket, Key="k", Range=header)["Body"].read() == data
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=100000-")
    assert code_of(error) == ("InvalidRange", 416)


def test_conditions(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    past, future = datetime(2001, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)
    assert s3.get_object(Bucket=bucket, Key="k", IfMatch=etag, IfUnmodifiedSince=past)["Body"].read() == b"x"
    assert s3.get_object(Bucket=bucket, Key="k", IfModifiedSince=past)["Body"].read() == b"x"
    for condition, status in (({"IfMatch": '"no"'}, 412), ({"IfNoneMatch": etag}, 304), ({"IfNoneMatch": "*"}, 304),
                              ({"IfModifiedSince": future}, 304), ({"IfUnmodifiedSince": past}, 412)):
        for call in (s3.get_object, s3.head_object):
            with pytest.raises(ClientError) as error:
                call(Bucket=bucket, Key="k", **condition)
            assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    for condition, code in (({"IfNoneMatch": "*"}, "PreconditionFailed"), ({"IfMatch": '"no"'}, "PreconditionFailed")):
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=bucket, Key="k", Body=b"y", **condition)
        assert error.value.response["Error"]["Code"] == code
    s3.put_object(Bucket=bucket, Key="k", Body=b"y", IfMatch=etag)
    s3.put_object(Bucket=bucket, Key="new", Body=b"y", IfNoneMatch="*")


def test_only_one_of_many_conditional_puts_wins(server, s3, bucket):
    def put(n: int) -> int:
        try:
            server.client().put_object(Bucket=bucket, Key="k", Body=str(n).encode(), IfNoneMatch="*")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "PreconditionFailed"
            return 0
        return 1
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(8))) == 1
    assert len([f for f in server.files()]) >= 1


def test_overwrite_and_delete_leave_no_files(server, s3, bucket):
    before = len(server.files())
    for n in range(3):
        s3.put_object(Bucket=bucket, Key="k", Body=b"x" * n)
    s3.copy_object(Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "k"})
    server.wait_for_files(before + 2)
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}, {"Key": "c"}, {"Key": "not there"}]})
    server.wait_for_files(before)


def test_copy_with_new_metadata_onto_itself(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata={"a": "1"}, ContentType="a/b")
    with pytest.raises(ClientError) as error:
        s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/k")
    assert code_of(error) == ("InvalidRequest", 400)
    s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/k", MetadataDirective="REPLACE", Metadata={"b": "2"})
    answer = s3.get_object(Bucket=bucket, Key="k")
    assert answer["Metadata"] == {"b": "2"} and answer["Body"].read() == b"x"
    with pytest.raises(ClientError) as error:
        s3.copy_object(Bucket=bucket, Key="z", CopySource=f"{bucket}/k", CopySourceIfMatch='"no"')
    assert code_of(error) == ("PreconditionFailed", 412)


def test_delete_objects_quiet_and_versions(s3, bucket):
    for key in ("a", "b"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    versions = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [(v["Key"], v["VersionId"], v["IsLatest"]) for v in versions] == [("a", "null", True), ("b", "null", True)]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Quiet": True, "Objects": [
        {"Key": "a", "VersionId": "null"}, {"Key": "b", "VersionId": "4711"}]})
    assert "Deleted" not in answer and [e["Code"] for e in answer["Errors"]] == ["NoSuchVersion"]
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["b"]


# -- listings ---------------------------------------------------------------------------------------------------------

def test_listing_pages_and_prefixes(s3, bucket):
    keys = sorted(["a/1", "a/2", "a/b/3", "b", "c/x", "ä", "z z", "a"], key=str.encode)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: s3.put_object(Bucket=bucket, Key=k, Body=b""), keys))
    for size in (1, 2, 3, 1000):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
        assert [o["Key"] for p in pages for o in p.get("Contents", ())] == keys
        pages = s3.get_paginator("list_objects").paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
        assert [o["Key"] for p in pages for o in p.get("Contents", ())] == keys
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/",
                                                                  PaginationConfig={"PageSize": size}))
        assert [o["Key"] for p in pages for o in p.get("Contents", ())] == ["a", "b", "z z", "ä"]
        assert [o["Prefix"] for p in pages for o in p.get("CommonPrefixes", ())] == ["a/", "c/"]
        assert sum(p["KeyCount"] for p in pages) == 6
    answer = s3.list_objects_v2(Bucket=bucket, Prefix="a/", Delimiter="/")
    assert [o["Key"] for o in answer["Contents"]] == ["a/1", "a/2"]
    assert [o["Prefix"] for o in answer["CommonPrefixes"]] == ["a/b/"]
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=bucket, StartAfter="b")["Contents"]] == ["c/x", "z z", "ä"]
    answer = s3.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert answer["KeyCount"] == 0 and not answer["IsTruncated"]
    with pytest.raises(ClientError) as error:
        s3.list_objects_v2(Bucket=bucket, ContinuationToken="bogus!")
    assert code_of(error) == ("InvalidArgument", 400)


# -- multipart --------------------------------------------------------------------------------------------------------

def test_managed_upload_and_download_of_20_mb(server, s3, bucket, tmp_path):
    data = os.urandom(20 * MIB + 17)
    (tmp_path / "in").write_bytes(data)
    s3.upload_file(str(tmp_path / "in"), bucket, "big", ExtraArgs={"Metadata": {"a": "b"}})
    answer = s3.head_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert answer["ETag"].endswith('-3"') and answer["ContentLength"] == len(data) and answer["Metadata"] == {"a": "b"}
    assert answer["ChecksumCRC32"]
    s3.download_file(bucket, "big", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == data
    part = s3.get_object(Bucket=bucket, Key="big", PartNumber=2)
    assert part["PartsCount"] == 3 and part["Body"].read() == data[8 * MIB:16 * MIB]
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copied", Config=TransferConfig(multipart_threshold=MIB))
    assert s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == data
    assert not s3.list_multipart_uploads(Bucket=bucket).get("Uploads")
    parts = [f for f in server.files() if f.name.startswith("p-")]
    assert parts == []


def test_multipart_by_hand(server, s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", ContentType="a/b")["UploadId"]
    assert [u["UploadId"] for u in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    args = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    big, small = b"1" * (5 * MIB), b"2"
    etags = {n: s3.upload_part(**args, PartNumber=n, Body=body)["ETag"] for n, body in
             ((3, small), (1, b"replaced"), (2, b"not used"), (1, big))}
    page = s3.list_parts(**args, MaxParts=2)
    assert [p["PartNumber"] for p in page["Parts"]] == [1, 2] and page["IsTruncated"]
    assert [p["PartNumber"] for p in s3.list_parts(**args, PartNumberMarker=2)["Parts"]] == [3]

    def complete(*numbers, **changed):
        return s3.complete_multipart_upload(**args, MultipartUpload={"Parts": [
            {"PartNumber": n, "ETag": changed.get(f"etag{n}", etags.get(n, '"x"'))} for n in numbers]})
    for numbers, changed, code in (((3, 1), {}, "InvalidPartOrder"), ((1, 4), {}, "InvalidPart"),
                                   ((1, 1), {}, "InvalidPartOrder"),
                                   ((2, 3), {}, "EntityTooSmall"), ((1, 3), {"etag3": '"no"'}, "InvalidPart")):
        with pytest.raises(ClientError) as error:
            complete(*numbers, **changed)
        assert code_of(error) == (code, 400)
    first = complete(1, 3)
    md5 = hashlib.md5(hashlib.md5(big).digest() + hashlib.md5(small).digest()).hexdigest()
    assert first["ETag"] == f'"{md5}-2"'
    assert complete(1, 3)["ETag"] == first["ETag"]  # asked again, because the answer got lost
    answer = s3.get_object(Bucket=bucket, Key="k")
    assert answer["Body"].read() == big + small and answer["ContentType"] == "a/b"
    for call in (lambda: s3.upload_part(**args, PartNumber=1, Body=b""), lambda: s3.abort_multipart_upload(**args),
                 lambda: s3.list_parts(**args)):
        with pytest.raises(ClientError) as error:
            call()
        assert code_of(error) == ("NoSuchUpload", 404)
    assert not [f for f in server.files() if f.name.startswith("p-")]


def test_abort(server, s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
    with pytest.raises(ClientError) as error:
        s3.abort_multipart_upload(Bucket=bucket, Key="other", UploadId=upload)
    assert code_of(error) == ("NoSuchUpload", 404)
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    assert not [f for f in server.files() if f.name.startswith("p-")]


def test_listing_uploads(s3, bucket):
    ids = {key: s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in ("a", "dir/a", "dir/b", "z")}
    pages = list(s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1}))
    assert [(u["Key"], u["UploadId"]) for p in pages for u in p.get("Uploads", ())] == sorted(ids.items())
    answer = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [u["Key"] for u in answer["Uploads"]] == ["a", "z"]
    assert [p["Prefix"] for p in answer["CommonPrefixes"]] == ["dir/"]
    assert len(s3.list_multipart_uploads(Bucket=bucket, Delimiter=ids["a"][3])["Uploads"]) == 4 - sum(
        ids["a"][3] in key for key in ids)


# -- other clients ----------------------------------------------------------------------------------------------------

BOTO2 = r"""
import sys
from boto.s3.connection import S3Connection, OrdinaryCallingFormat
port = int(sys.argv[1])
c = S3Connection('keyone:one', 'secretone', is_secure=False, host='127.0.0.1', port=port,
                 calling_format=OrdinaryCallingFormat())
b = c.create_bucket('boto2-bucket')
k = b.new_key('dir/a b+\u00fc'); k.set_metadata('color', 'blue')
k.set_contents_from_string('hello', policy='aws-exec-read')
assert b.get_key('dir/a b+\u00fc').get_metadata('color') == 'blue'
assert b.get_key('nothing') is None
assert b.get_key('dir/a b+\u00fc').get_contents_as_string() == b'hello'
assert [x.name for x in b.list()] == ['dir/a b+\u00fc'], [x.name for x in b.list()]
m = b.initiate_multipart_upload('multi')
import io
m.upload_part_from_file(io.BytesIO(b'x' * (5 << 20)), 1); m.upload_part_from_file(io.BytesIO(b'y'), 2)
m.complete_upload()
assert b.get_key('multi').size == (5 << 20) + 1
assert c.lookup('not-there') is None
assert [g.permission for g in b.get_acl().acl.grants] == ['FULL_CONTROL']
assert b.get_location() == 'nova'
import urllib.request
assert urllib.request.urlopen(b.get_key('multi').generate_url(60)).read()[-1:] == b'y'
r = b.delete_keys(['multi', 'dir/a b+\u00fc']); assert len(r.deleted) == 2 and not r.errors
assert 'boto2-bucket' in [x.name for x in c.get_all_buckets()]
c.delete_bucket('boto2-bucket')
print('done')
"""


def test_boto2(server):
    done = subprocess.run(["/usr/bin/python3", "-W", "ignore", "-c", BOTO2, str(server.port)], capture_output=True,
                          text=True, timeout=60, env=environment_without_aws())
    assert done.stdout.strip() == "done", done.stdout + done.stderr


def test_aws_command_line(server, tmp_path):
    env = {**environment_without_aws(), "AWS_ACCESS_KEY_ID": "keyone:one", "AWS_SECRET_ACCESS_KEY": "secretone",
           "AWS_DEFAULT_REGION": "nova", "AWS_ENDPOINT_URL_S3": server.url, "HOME": str(tmp_path),
           "AWS_MAX_ATTEMPTS": "1"}
    aws = str(Path(sys.executable).parent / "aws")

    def run(*arguments: str) -> str:
        done = subprocess.run([aws, "s3", *arguments], capture_output=True, text=True, timeout=60, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout
    data = os.urandom(9 * MIB)
    (tmp_path / "big").write_bytes(data)
    run("mb", "s3://cli-bucket")
    run("cp", str(tmp_path / "big"), "s3://cli-bucket/dir/big")
    assert "big" in run("ls", "s3://cli-bucket/dir/")
    assert "PRE dir/" in run("ls", "s3://cli-bucket")
    run("cp", "s3://cli-bucket/dir/big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    run("mv", "s3://cli-bucket/dir/big", "s3://cli-bucket/other")
    run("rb", "--force", "s3://cli-bucket")
