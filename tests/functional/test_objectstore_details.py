"""Details of S3's rules that clients go by, each tried over HTTP."""

import base64
import hashlib
import http.client
import os
from datetime import timedelta

import pytest
from botocore.exceptions import ClientError

from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
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
from tests.functional.test_objectstore_wire import signed_chunks


def refusal(call, **arguments) -> tuple[str, int]:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return code_of(error)


# -- where a bucket is ------------------------------------------------------------------------------------------------

def test_a_bucket_is_where_its_cloud_is_unless_it_says_otherwise(server, s3, bucket):
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] == "nova"
    assert s3.head_bucket(Bucket=bucket)["BucketRegion"] == "nova"
    s3.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert s3.get_bucket_location(Bucket="elsewhere")["LocationConstraint"] == "eu-west-1"
    assert s3.head_bucket(Bucket="elsewhere")["BucketRegion"] == "eu-west-1"
    regions = {b["Name"]: b["BucketRegion"] for b in s3.list_buckets(MaxBuckets=1000)["Buckets"]}
    assert (regions[bucket], regions["elsewhere"]) == ("nova", "eu-west-1")
    assert [b["Name"] for b in s3.list_buckets(BucketRegion="eu-west-1")["Buckets"]] == ["elsewhere"]
    s3.delete_bucket(Bucket="elsewhere")


def test_a_cloud_called_as_the_first_region_says_nothing_of_it(own):
    redis, directory = own
    server = start(redis.url, directory, "--region=us-east-1")
    s3 = server.client()
    s3.create_bucket(Bucket="first")
    assert s3.get_bucket_location(Bucket="first")["LocationConstraint"] is None  # as boto3 has it from Amazon
    assert s3.head_bucket(Bucket="first")["BucketRegion"] == "us-east-1"
    stop(server)


def test_buckets_are_listed_by_pages(server, s3):
    names = [f"paged-{n}" for n in range(5)]
    for name in reversed(names):
        s3.create_bucket(Bucket=name)
    pages = list(s3.get_paginator("list_buckets").paginate(Prefix="paged-", PaginationConfig={"PageSize": 2}))
    assert [[b["Name"] for b in page["Buckets"]] for page in pages] == [names[:2], names[2:4], names[4:]]
    assert {page["Prefix"] for page in pages} == {"paged-"}
    for wrong in ("max-buckets=0", "max-buckets=10001", "max-buckets=x", "continuation-token=x"):
        status, answer = signed(server, "GET", f"/?{wrong}")
        assert (status, b"InvalidArgument" in answer) == (400, True)
    for name in names:
        s3.delete_bucket(Bucket=name)


# -- what the model has and Nova has not ------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("query", ["annotation&annotationName=a", "torrent", "retention", "legal-hold", "restore",
                                   "select&select-type=2", "renameObject", "encryption"])
def test_sub_resources_of_objects_that_are_not_offered_touch_no_object(server, s3, bucket, method, query):
    s3.put_object(Bucket=bucket, Key="k", Body=b"as it was")
    status, answer = signed(server, method, f"/{bucket}/k?{query}", b"" if method in ("GET", "DELETE") else b"<x/>")
    assert (status, b"<Code>NotImplemented</Code>" in answer) == (501, True)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"as it was"


@pytest.mark.parametrize("query", ["abac", "metadataAnnotationTable", "metadataInventoryTable", "metadataJournalTable",
                                   "metadataConfiguration", "encryption", "website", "object-lock", "logging"])
def test_sub_resources_of_buckets_that_are_not_offered_are_told(server, bucket, query):
    status, answer = signed(server, "PUT", f"/{bucket}?{query}", b"<x/>")
    assert (status, b"<Code>NotImplemented</Code>" in answer) == (501, True)


@pytest.mark.parametrize("name", ["sha512", "md5", "xxhash64", "xxhash128"])
def test_a_checksum_that_nobody_would_check_is_refused(server, bucket, name):
    status, answer = signed(server, "PUT", f"/{bucket}/k", b"x", {f"x-amz-checksum-{name}": "AAAA"})
    assert (status, b"<Code>NotImplemented</Code>" in answer) == (501, True)
    status, _ = signed(server, "PUT", f"/{bucket}/k", b"x", {"x-amz-sdk-checksum-algorithm": name.upper()})
    assert status == 400


#: of the digits 1 to 9: the check values of the catalogue of CRCs, and hashlib's
_NINE = b"123456789"
_SUMS = {"CRC32": bytes.fromhex("cbf43926"), "CRC32C": bytes.fromhex("e3069283"),
         "CRC64NVME": bytes.fromhex("ae8b14860a799888"), "SHA1": hashlib.sha1(_NINE).digest(),
         "SHA256": hashlib.sha256(_NINE).digest()}


@pytest.mark.parametrize("way", ["header", "unsigned trailer", "signed trailer"])
@pytest.mark.parametrize("algorithm", _SUMS)
def test_each_checksum_in_each_way(server, s3, bucket, algorithm, way):
    name, right = f"x-amz-checksum-{algorithm.lower()}", base64.b64encode(_SUMS[algorithm]).decode()

    def put(value: str) -> tuple[int, bytes]:
        if way == "header":
            return signed(server, "PUT", f"/{bucket}/k", _NINE, {name: value})
        headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": "9", "x-amz-trailer": name}
        if way == "unsigned trailer":
            body = b"9\r\n%s\r\n0\r\n%s:%s\r\n\r\n" % (_NINE, name.encode(), value.encode())
            return signed(server, "PUT", f"/{bucket}/k", body, headers, "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
        request = sign(server, "PUT", f"/{bucket}/k", b"", headers, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("PUT", f"/{bucket}/k", signed_chunks(request, "secretone", _NINE, trailer=(name, value)),
                           dict(request.headers.items()))
        answer = connection.getresponse()
        said = answer.status, answer.read()
        connection.close()
        return said
    wrong = base64.b64encode(bytes(len(_SUMS[algorithm]))).decode()
    for value, code in ((wrong, b"BadDigest"), ("AAAA", b"InvalidDigest"), ("!", b"InvalidDigest")):
        status, said = put(value)
        assert (status, code in said) == (400, True), said
        assert refusal(s3.head_object, Bucket=bucket, Key="k") == ("404", 404)
    assert put(right)[0] == 200
    found = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (found[f"Checksum{algorithm}"], found["ChecksumType"]) == (right, "FULL_OBJECT")
    known = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize"])
    assert (known["Checksum"][f"Checksum{algorithm}"], known["ObjectSize"]) == (right, 9)


# -- conditional deletes ----------------------------------------------------------------------------------------------

def test_an_object_is_deleted_only_as_it_is_known(server, s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"12345")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    for wrong in ({"IfMatch": '"x"'}, {"IfMatchSize": 4}, {"IfMatchLastModifiedTime": modified - timedelta(seconds=1)},
                  {"IfMatch": etag, "IfMatchSize": 6}):
        assert refusal(s3.delete_object, Bucket=bucket, Key="k", **wrong) == ("PreconditionFailed", 412)
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=etag, IfMatchSize=5, IfMatchLastModifiedTime=modified)
    assert refusal(s3.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    for match in ("*", etag):
        assert refusal(s3.delete_object, Bucket=bucket, Key="k", IfMatch=match) == ("NoSuchKey", 404)
    s3.delete_object(Bucket=bucket, Key="k", IfMatchSize=5)  # what is not there needs no size
    s3.put_object(Bucket=bucket, Key="k", Body=b"new")
    s3.delete_object(Bucket=bucket, Key="k", IfMatch="*")
    status, answer = signed(server, "DELETE", f"/{bucket}/k", headers={"x-amz-if-match-size": "many"})
    assert (status, b"InvalidArgument" in answer) == (400, True)


@pytest.mark.parametrize("versioned", [False, True])
def test_of_many_those_are_deleted_that_are_as_they_are_known(s3, bucket, versioned):
    if versioned:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    tags = {key: s3.put_object(Bucket=bucket, Key=key, Body=key.encode())["ETag"] for key in "abcde"}
    modified = s3.head_object(Bucket=bucket, Key="e")["LastModified"]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [
        {"Key": "a", "ETag": tags["a"]}, {"Key": "b", "ETag": tags["a"]}, {"Key": "c", "Size": 1},
        {"Key": "d", "Size": 2}, {"Key": "e", "LastModifiedTime": modified - timedelta(seconds=5)},
        {"Key": "none", "ETag": "*"}]})
    assert {found["Key"] for found in answer["Deleted"]} == {"a", "c"}
    assert {found["Key"]: found["Code"] for found in answer["Errors"]} == {
        "b": "PreconditionFailed", "d": "PreconditionFailed", "e": "PreconditionFailed", "none": "NoSuchKey"}
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["b", "d", "e"]


def test_a_delete_marker_is_no_object_to_delete(s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    s3.delete_object(Bucket=bucket, Key="k")
    assert refusal(s3.delete_object, Bucket=bucket, Key="k", IfMatch=etag) == ("NoSuchKey", 404)
    assert len(s3.list_object_versions(Bucket=bucket)["DeleteMarkers"]) == 1


# -- conditional writes -----------------------------------------------------------------------------------------------

def test_a_copy_replaces_only_what_is_known(s3, bucket):
    s3.put_object(Bucket=bucket, Key="source", Body=b"x")
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"old")["ETag"]
    copy = {"Bucket": bucket, "CopySource": f"{bucket}/source"}
    assert refusal(s3.copy_object, **copy, Key="k", IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refusal(s3.copy_object, **copy, Key="k", IfMatch='"x"') == ("PreconditionFailed", 412)
    assert refusal(s3.copy_object, **copy, Key="new", IfMatch=etag) == ("NoSuchKey", 404)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"old"
    s3.copy_object(**copy, Key="k", IfMatch=etag)
    s3.copy_object(**copy, Key="new", IfNoneMatch="*")
    assert {s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in ("k", "new")} == {b"x"}


def test_a_composite_checksum_needs_that_of_every_part(s3, bucket):
    def upload(algorithm: str, kind: str) -> tuple[dict, list[dict]]:
        made = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm=algorithm, ChecksumType=kind)
        args = {"Bucket": bucket, "Key": "k", "UploadId": made["UploadId"]}
        parts = []
        for n, data in enumerate((bytes(5 * MIB), b"end"), 1):
            part = s3.upload_part(**args, PartNumber=n, Body=data, ChecksumAlgorithm=algorithm)
            parts.append({"PartNumber": n, "ETag": part["ETag"],
                          f"Checksum{algorithm}": part[f"Checksum{algorithm}"]})
        return args, parts

    def bare(parts: list[dict]) -> list[dict]:
        return [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]
    args, parts = upload("CRC32", "COMPOSITE")
    for some in (bare(parts), [parts[0], bare(parts)[1]]):
        with pytest.raises(ClientError) as error:
            s3.complete_multipart_upload(**args, MultipartUpload={"Parts": some})
        assert code_of(error) == ("InvalidRequest", 400)
        assert "must include the checksum for each part" in error.value.response["Error"]["Message"]
    wrong = [parts[0], {**parts[1], "ChecksumCRC32": parts[0]["ChecksumCRC32"]}]
    assert refusal(s3.complete_multipart_upload, **args, MultipartUpload={"Parts": wrong}) == ("InvalidPart", 400)
    s3.complete_multipart_upload(**args, MultipartUpload={"Parts": parts})
    args, parts = upload("CRC32", "FULL_OBJECT")
    s3.complete_multipart_upload(**args, MultipartUpload={"Parts": bare(parts)})
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == 5 * MIB + 3


# -- parts ------------------------------------------------------------------------------------------------------------

def test_a_part_has_a_number_and_an_upload(server, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"as it was")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    for query in ("partNumber=1", "partNumber=", f"uploadId={upload}", f"partNumber=&uploadId={upload}",
                  f"partNumber=0&uploadId={upload}", f"partNumber=10001&uploadId={upload}"):
        for headers in ({}, {"x-amz-copy-source": f"{bucket}/k"}):
            if headers and "uploadId" not in query:
                continue  # CopyObject
            status, answer = signed(server, "PUT", f"/{bucket}/k?{query}", b"" if headers else b"x", headers)
            assert (status, b"InvalidArgument" in answer) == (400, True), query
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"as it was"
    status, answer = signed(server, "GET", f"/{bucket}/k?partNumber=2")
    assert (status, b"<Code>InvalidPartNumber</Code>" in answer) == (416, True)


# -- who may say what -------------------------------------------------------------------------------------------------

def test_who_did_not_sign_does_not_say_how_an_object_is_shown(server, s3, bucket):
    s3.delete_public_access_block(Bucket=bucket)
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]})
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ContentType="text/plain", ACL="public-read")

    def get(query: str) -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", f"/{bucket}/k{query}")
        answer = connection.getresponse()
        said = answer.status, answer.getheader("Content-Type"), answer.read()
        connection.close()
        return said
    assert get("") == (200, "text/plain", b"x")
    status, _, said = get("?response-content-type=text/html")
    assert (status, b"anonymous" in said) == (400, True)
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k", "ResponseContentType": "text/html"})
    assert get("?" + url.partition("?")[2])[:2] == (200, "text/html")


def test_a_copy_is_made_of_the_bucket_that_was_meant(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    copy = {"Bucket": bucket, "Key": "copy", "CopySource": f"{bucket}/k"}
    assert refusal(s3.copy_object, **copy, ExpectedSourceBucketOwner="two") == ("AccessDenied", 403)
    s3.copy_object(**copy, ExpectedSourceBucketOwner="one", ExpectedBucketOwner="one")


# -- a connection goes on ---------------------------------------------------------------------------------------------

def test_a_connection_outlives_errors(server, s3, bucket):
    """What was refused has been read to its end, or the next answer would be to the rest of it."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def ask(method: str, path: str, body: bytes = b"", headers: dict | None = None) -> int:
        request = sign(server, method, path, body, headers)
        connection.request(method, path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    assert ask("GET", f"/{bucket}/none") == 404
    socket = connection.sock
    for method, path, body, headers, status in (
            ("PUT", f"/{bucket}-none/k", os.urandom(MIB), None, 404),
            ("PUT", f"/{bucket}/k", b"y", {"If-None-Match": "*"}, 412),
            ("PUT", f"/{bucket}/k", b"y", {"Content-MD5": "bad"}, 400), ("HEAD", f"/{bucket}/none", b"", None, 404),
            ("GET", f"/{bucket}/k", b"", {"Range": "bytes=9-"}, 416),
            ("HEAD", f"/{bucket}/k", b"", {"Range": "bytes=9-"}, 416),
            ("POST", f"/{bucket}?delete", b"junk", None, 400), ("PUT", f"/{bucket}?policy", b"{", None, 400),
            ("PUT", f"/{bucket}/k", b"y", {"Content-MD5": base64.b64encode(hashlib.md5(b"z").digest()).decode()}, 400),
            ("GET", f"/{bucket}/k", b"", {"If-None-Match": "*"}, 304), ("DELETE", f"/{bucket}", b"", None, 409),
            ("PATCH", f"/{bucket}/k", b"x", None, 405), ("GET", f"/{bucket}/k", b"", None, 200)):
        assert ask(method, path, body, headers) == status, (method, path)
        assert connection.sock is socket
    connection.close()
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
