"""Versions of objects over HTTP: what stays, what is hidden, what comes back, what is copied."""

import hashlib
import http.client

import pytest

from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    MIB,
    bucket_fixture,
    s3_fixture,
    server_fixture,
    sign,
    signed,
)
from tests.functional.s3_versions import (  # noqa: F401 (the fixture)
    NOBODY_HAS_IT,
    delete,
    enable,
    get,
    listed,
    put,
    refused,
    suspend,
    versioned_fixture,
)

# -- the bucket -------------------------------------------------------------------------------------------------------

def test_versioning_is_off_then_enabled_then_suspended(s3, bucket):
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    for status in ("Enabled", "Suspended", "Enabled"):
        enable(s3, bucket, status)
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == status


def test_mfa_delete_is_refused(server, s3, bucket):
    assert refused(s3.put_bucket_versioning, Bucket=bucket, VersioningConfiguration={
        "Status": "Enabled", "MFADelete": "Enabled"}) == ("NotImplemented", 501)
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    enable(s3, bucket)


@pytest.mark.parametrize("body, code", [
    (b"<VersioningConfiguration/>", b"IllegalVersioningConfigurationException"), (b"", b"MissingRequestBodyError"),
    (b"<VersioningConfiguration><Status>On</Status></VersioningConfiguration>", b"MalformedXML")])
def test_bad_versioning_configurations(server, bucket, body, code):
    status, answer = signed(server, "PUT", f"/{bucket}?versioning", body)
    assert status == 400 and b"<Code>" + code + b"</Code>" in answer


def test_only_the_owner_changes_versioning(server, bucket):
    assert refused(server.client("two").put_bucket_versioning, Bucket=bucket, VersioningConfiguration={
        "Status": "Enabled"}) == ("AccessDenied", 403)


def test_a_bucket_is_not_removed_while_it_has_versions(s3, versioned):
    first = put(s3, versioned, b"1")
    marker = delete(s3, versioned)["VersionId"]
    assert refused(s3.delete_bucket, Bucket=versioned) == ("BucketNotEmpty", 409)
    delete(s3, versioned, first)
    assert refused(s3.delete_bucket, Bucket=versioned) == ("BucketNotEmpty", 409)
    delete(s3, versioned, marker)
    s3.delete_bucket(Bucket=versioned)
    s3.create_bucket(Bucket=versioned)
    assert "Status" not in s3.get_bucket_versioning(Bucket=versioned)


# -- putting and getting ----------------------------------------------------------------------------------------------

def test_every_put_makes_a_version(s3, versioned):
    ids = [put(s3, versioned, body) for body in (b"1", b"22", b"333")]
    assert len(set(ids)) == 3 and "null" not in ids
    assert get(s3, versioned) == b"333"
    assert [get(s3, versioned, id) for id in ids] == [b"1", b"22", b"333"]
    for id, size in zip(ids, (1, 2, 3), strict=True):
        head = s3.head_object(Bucket=versioned, Key="k", VersionId=id)
        assert (head["VersionId"], head["ContentLength"]) == (id, size)
    assert s3.head_object(Bucket=versioned, Key="k")["VersionId"] == ids[2]
    assert listed(s3, versioned) == [("k", id, id == ids[2], False) for id in reversed(ids)]


def test_a_bucket_that_never_had_versions_tells_of_none(s3, bucket):
    made = s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    copied = s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    for answer in (made, copied, s3.get_object(Bucket=bucket, Key="k"), s3.head_object(Bucket=bucket, Key="k"),
                   s3.delete_object(Bucket=bucket, Key="k")):
        assert not {"VersionId", "CopySourceVersionId", "DeleteMarker"}.intersection(answer)
    assert get(s3, bucket, "null", "copy") == b"1"
    delete(s3, bucket, "null", "copy")
    assert listed(s3, bucket) == []


def test_an_object_from_before_is_the_null_version(s3, bucket):
    put(s3, bucket, b"old")
    enable(s3, bucket)
    assert s3.head_object(Bucket=bucket, Key="k")["VersionId"] == "null"
    new = put(s3, bucket, b"new")
    assert (get(s3, bucket), get(s3, bucket, "null"), get(s3, bucket, new)) == (b"new", b"old", b"new")
    assert listed(s3, bucket) == [("k", new, True, False), ("k", "null", False, False)]


@pytest.mark.parametrize("version, error", [
    (NOBODY_HAS_IT, ("NoSuchVersion", 404)), ("null", ("NoSuchVersion", 404)), ("../..", ("InvalidArgument", 400))])
def test_versions_that_are_not_there(s3, versioned, version, error):
    put(s3, versioned, b"1")
    assert refused(get, s3, versioned, version) == error
    assert refused(s3.copy_object, Bucket=versioned, Key="c", CopySource=f"{versioned}/k?versionId={version}") == error
    for call in (s3.get_object_tagging, s3.get_object_acl):
        assert refused(call, Bucket=versioned, Key="k", VersionId=version) == error


def test_ranges_and_conditions_are_of_the_version(s3, versioned):
    first = put(s3, versioned, b"0123456789")
    put(s3, versioned, b"x")
    answer = s3.get_object(Bucket=versioned, Key="k", VersionId=first, Range="bytes=2-4")
    assert (answer["Body"].read(), answer["VersionId"]) == (b"234", first)
    etag = hashlib.md5(b"0123456789").hexdigest()
    assert refused(s3.get_object, Bucket=versioned, Key="k", VersionId=first, IfNoneMatch=etag) == ("304", 304)
    assert refused(s3.get_object, Bucket=versioned, Key="k", IfMatch=etag) == ("PreconditionFailed", 412)


# -- delete markers ---------------------------------------------------------------------------------------------------

def test_a_delete_marker_hides_the_object(s3, versioned):
    first = put(s3, versioned, b"1")
    answer = delete(s3, versioned)
    marker = answer["VersionId"]
    assert answer["DeleteMarker"] and marker not in (first, "null")
    assert s3.list_objects_v2(Bucket=versioned)["KeyCount"] == 0
    assert get(s3, versioned, first) == b"1"
    assert listed(s3, versioned) == [("k", first, False, False), ("k", marker, True, True)]
    second = put(s3, versioned, b"2")
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=versioned)["Contents"]] == ["k"]
    assert sorted(listed(s3, versioned)) == sorted([
        ("k", second, True, False), ("k", first, False, False), ("k", marker, False, True)])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_asking_for_a_marker_answers(server, s3, versioned, method):
    put(s3, versioned, b"1")
    marker = delete(s3, versioned)["VersionId"]
    for query, status in (("", 404), (f"?versionId={marker}", 405)):
        request = sign(server, method, f"/{versioned}/k{query}")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request(method, f"/{versioned}/k{query}", headers=dict(request.headers.items()))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert (answer.status, answer.headers["x-amz-delete-marker"], answer.headers["x-amz-version-id"]) == (
            status, "true", marker)
        assert (answer.headers["Allow"], bool(answer.headers["Last-Modified"])) == (
            ("DELETE", True) if query else (None, False))
        code = b"MethodNotAllowed" if query else b"NoSuchKey"
        assert body == b"" if method == "HEAD" else b"<Code>" + code + b"</Code>" in body


def test_deleting_what_is_not_there_leaves_a_marker_each_time(s3, versioned):
    markers = [delete(s3, versioned)["VersionId"] for _ in range(2)]
    assert listed(s3, versioned) == [("k", markers[1], True, True), ("k", markers[0], False, True)]


def test_deleting_the_marker_brings_the_object_back(s3, versioned):
    first = put(s3, versioned, b"1")
    marker = delete(s3, versioned)["VersionId"]
    assert delete(s3, versioned, marker) == {"VersionId": marker, "DeleteMarker": True}
    assert get(s3, versioned) == b"1" and s3.list_objects_v2(Bucket=versioned)["KeyCount"] == 1
    assert listed(s3, versioned) == [("k", first, True, False)]


def test_deleting_versions_from_the_newest_to_the_oldest(server, s3, versioned):
    ids = [put(s3, versioned, bytes([n])) for n in range(4)]
    for n in (3, 2, 1):
        assert delete(s3, versioned, ids[n]) == {"VersionId": ids[n]}
        assert get(s3, versioned) == bytes([n - 1])
        assert refused(get, s3, versioned, ids[n]) == ("NoSuchVersion", 404)
    assert listed(s3, versioned) == [("k", ids[0], True, False)]
    delete(s3, versioned, ids[0])
    assert refused(get, s3, versioned) == ("NoSuchKey", 404)


def test_deleting_an_object_may_bring_an_older_marker_to_the_front(s3, versioned):
    first = put(s3, versioned, b"1")
    marker = delete(s3, versioned)["VersionId"]
    second = put(s3, versioned, b"2")
    delete(s3, versioned, second)
    assert refused(get, s3, versioned) == ("NoSuchKey", 404)
    assert listed(s3, versioned) == [("k", first, False, False), ("k", marker, True, True)]
    delete(s3, versioned, first)
    assert listed(s3, versioned) == [("k", marker, True, True)]


def test_deleting_a_version_that_is_not_there_is_no_error(s3, versioned):
    first = put(s3, versioned, b"1")
    assert delete(s3, versioned, NOBODY_HAS_IT) == {"VersionId": NOBODY_HAS_IT}
    assert listed(s3, versioned) == [("k", first, True, False)]


def test_the_files_of_versions_go_with_them(server, s3, versioned):
    before = set(server.files())
    ids = [put(s3, versioned, bytes(MIB)) for _ in range(3)]
    assert len(set(server.files()) - before) == 3
    for id in ids:
        delete(s3, versioned, id)
    assert set(server.files()) == before


# -- suspended --------------------------------------------------------------------------------------------------------

def test_a_suspended_put_replaces_only_the_null_version(server, s3, bucket):
    put(s3, bucket, b"0")
    enable(s3, bucket)
    first = put(s3, bucket, b"1")
    suspend(s3, bucket)
    files = len(server.files())
    assert put(s3, bucket, b"2") == "null"
    assert (get(s3, bucket), get(s3, bucket, "null"), get(s3, bucket, first)) == (b"2", b"2", b"1")
    assert listed(s3, bucket) == [("k", "null", True, False), ("k", first, False, False)]
    assert put(s3, bucket, b"3") == "null" and get(s3, bucket) == b"3"
    assert listed(s3, bucket) == [("k", "null", True, False), ("k", first, False, False)]
    server.wait_for_files(files)


def test_a_suspended_delete_replaces_the_null_version_by_a_null_marker(server, s3, bucket):
    enable(s3, bucket)
    first = put(s3, bucket, b"1")
    suspend(s3, bucket)
    put(s3, bucket, b"2")
    files = len(server.files())
    for _ in range(2):
        assert delete(s3, bucket) == {"VersionId": "null", "DeleteMarker": True}
        assert sorted(listed(s3, bucket)) == sorted([("k", "null", True, True), ("k", first, False, False)])
    server.wait_for_files(files)  # the marker's in place of the object's
    assert refused(get, s3, bucket) == ("NoSuchKey", 404)
    assert refused(get, s3, bucket, "null") == ("MethodNotAllowed", 405)
    assert delete(s3, bucket, "null") == {"VersionId": "null", "DeleteMarker": True}
    assert get(s3, bucket) == b"1"


def test_a_null_marker_stays_when_versioning_is_enabled_again(s3, bucket):
    enable(s3, bucket)
    suspend(s3, bucket)
    delete(s3, bucket)
    enable(s3, bucket)
    first = put(s3, bucket, b"1")
    assert sorted(listed(s3, bucket)) == sorted([("k", first, True, False), ("k", "null", False, True)])
    suspend(s3, bucket)
    put(s3, bucket, b"2")
    assert listed(s3, bucket) == [("k", "null", True, False), ("k", first, False, False)]


# -- copies and parts -------------------------------------------------------------------------------------------------

def test_copying_a_version(s3, versioned):
    first = put(s3, versioned, b"1", Metadata={"n": "1"})
    put(s3, versioned, b"2")
    answer = s3.copy_object(Bucket=versioned, Key="copy", CopySource=f"{versioned}/k?versionId={first}")
    assert answer["CopySourceVersionId"] == first and answer["VersionId"] not in (None, first, "null")
    copy = s3.get_object(Bucket=versioned, Key="copy")
    assert (copy["Body"].read(), copy["Metadata"], copy["VersionId"]) == (b"1", {"n": "1"}, answer["VersionId"])


def test_restoring_an_old_version_by_a_copy_onto_its_key(s3, versioned):
    first = put(s3, versioned, b"1")
    put(s3, versioned, b"2")
    answer = s3.copy_object(Bucket=versioned, Key="k", CopySource=f"{versioned}/k?versionId={first}")
    assert get(s3, versioned) == b"1" and len(listed(s3, versioned)) == 3
    assert answer["VersionId"] != first
    assert refused(s3.copy_object, Bucket=versioned, Key="k", CopySource=f"{versioned}/k") == ("InvalidRequest", 400)


def test_a_marker_is_no_source(s3, versioned):
    put(s3, versioned, b"1")
    marker = delete(s3, versioned)["VersionId"]
    assert refused(s3.copy_object, Bucket=versioned, Key="c", CopySource=f"{versioned}/k") == ("NoSuchKey", 404)
    assert refused(s3.copy_object, Bucket=versioned, Key="c", CopySource=f"{versioned}/k?versionId={marker}") == (
        "InvalidRequest", 400)


def test_parts_may_be_copied_from_versions_and_become_one(s3, versioned):
    first = put(s3, versioned, b"first")
    put(s3, versioned, b"second")
    before = put(s3, versioned, b"there", key="whole")
    upload = s3.create_multipart_upload(Bucket=versioned, Key="whole")["UploadId"]
    named = {"Bucket": versioned, "Key": "whole", "UploadId": upload}
    part = s3.upload_part_copy(**named, PartNumber=1, CopySource=f"{versioned}/k?versionId={first}")
    assert part["CopySourceVersionId"] == first
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]}
    made = s3.complete_multipart_upload(**named, MultipartUpload=parts)
    assert get(s3, versioned, made["VersionId"], "whole") == b"first"
    assert get(s3, versioned, before, "whole") == b"there"
    put(s3, versioned, b"later", key="whole")
    again = s3.complete_multipart_upload(**named, MultipartUpload=parts)  # its answer got lost
    assert (again["VersionId"], again["ETag"]) == (made["VersionId"], made["ETag"])
