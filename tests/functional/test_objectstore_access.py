"""Who may do what in the object store, as users of several projects and whoever did not sign see it."""

import json
import os
import subprocess
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.conftest import environment_without_aws
from tests.functional.s3 import (  # noqa: F401 (the fixtures)
    bucket_fixture,
    code_of,
    s3_fixture,
    server_fixture,
)

ALL = "http://acs.amazonaws.com/groups/global/AllUsers"
KNOWN = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
DENIED = ("AccessDenied", 403)


def anonymous(server, path, method="GET", body=None, headers=None):
    """Status, body and error code of a request that nobody signed."""
    request = urllib.request.Request(server.url + path, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), ""
    except urllib.error.HTTPError as error:
        data = error.read()
        return error.code, data, ET.fromstring(data).findtext("Code") if data else ""


def refused(call, *expected):
    with pytest.raises(ClientError) as error:
        call()
    assert code_of(error) == (expected or DENIED)


def set_policy(s3, bucket, *statements):
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*",
         **statement} for statement in statements]}))


@pytest.fixture(name="two")
def two_fixture(server):
    return server.client("two")


# -- nobody signed ----------------------------------------------------------------------------------------------------

def test_unsigned_requests_are_refused_without_a_rule(server, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    for method, path in (("GET", f"/{bucket}/k"), ("GET", f"/{bucket}/missing"), ("GET", f"/{bucket}"), ("GET", "/"),
                         ("PUT", f"/{bucket}/k"), ("DELETE", f"/{bucket}/k"), ("DELETE", f"/{bucket}"),
                         ("POST", f"/{bucket}?delete"), ("PUT", "/new-bucket"), ("GET", f"/{bucket}?policy"),
                         ("PUT", f"/{bucket}?policy"), ("PUT", f"/{bucket}?acl"), ("PUT", f"/{bucket}/k?acl"),
                         ("GET", f"/{bucket}/k?acl"), ("POST", f"/{bucket}/k?uploads"), ("GET", f"/{bucket}?uploads"),
                         ("GET", f"/{bucket}?versions"), ("GET", f"/{bucket}/k?tagging")):
        status, _, code = anonymous(server, path, method, b"" if method in ("PUT", "POST") else None)
        assert (status, code) == (403, "AccessDenied"), (method, path)
    assert anonymous(server, "/no-such-bucket/k")[::2] == (404, "NoSuchBucket")


def test_public_object(server, s3, bucket, two):
    s3.put_object(Bucket=bucket, Key="k", Body=b"public", ACL="public-read")
    s3.put_object(Bucket=bucket, Key="private", Body=b"x")
    assert anonymous(server, f"/{bucket}/k") == (200, b"public", "")
    assert two.get_object(Bucket=bucket, Key="k")["Body"].read() == b"public"
    assert anonymous(server, f"/{bucket}/k", "HEAD")[0] == 200
    assert anonymous(server, f"/{bucket}/private")[0] == 403
    assert anonymous(server, f"/{bucket}/k", "PUT", b"y")[0] == 403
    s3.put_object(Bucket=bucket, Key="k", Body=b"private again")
    assert anonymous(server, f"/{bucket}/k")[0] == 403


def test_missing_keys_are_told_only_to_who_may_list(server, s3, bucket, two):
    set_policy(s3, bucket, {})
    assert anonymous(server, f"/{bucket}/missing")[::2] == (403, "AccessDenied")
    refused(lambda: two.get_object(Bucket=bucket, Key="missing"))
    refused(lambda: two.copy_object(Bucket=bucket, Key="x", CopySource={"Bucket": bucket, "Key": "missing"}))
    refused(lambda: s3.get_object(Bucket=bucket, Key="missing"), "NoSuchKey", 404)
    set_policy(s3, bucket, {"Action": ["s3:GetObject", "s3:ListBucket"],
                            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]})
    assert anonymous(server, f"/{bucket}/missing")[::2] == (404, "NoSuchKey")


def test_public_read_write_bucket(server, s3, bucket):
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    assert anonymous(server, f"/{bucket}/k", "PUT", b"from nobody")[0] == 200
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"from nobody"
    assert b"<Key>k</Key>" in anonymous(server, f"/{bucket}?list-type=2")[1]
    assert anonymous(server, f"/{bucket}/k")[0] == 403
    assert anonymous(server, f"/{bucket}/k2", "PUT", b"x", {"x-amz-acl": "public-read"})[0] == 403
    unsigned = boto3.client("s3", endpoint_url=server.url, region_name="nova",
                            config=Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}))
    unsigned.put_object(Bucket=bucket, Key="k3", Body=b"chunks with a trailer")
    assert unsigned.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k3"}]})["Deleted"]
    assert anonymous(server, f"/{bucket}/k", "DELETE")[0] == 204
    refused(lambda: unsigned.put_bucket_acl(Bucket=bucket, ACL="private"))
    refused(lambda: unsigned.delete_bucket(Bucket=bucket))


def test_wrong_signatures_do_not_become_anonymous(server, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read")
    stranger = boto3.client("s3", endpoint_url=server.url, aws_access_key_id="nobody", aws_secret_access_key="x",
                            region_name="nova", config=Config(s3={"addressing_style": "path"}))
    refused(lambda: stranger.get_object(Bucket=bucket, Key="k"), "InvalidAccessKeyId", 403)


# -- access control lists ---------------------------------------------------------------------------------------------

def test_default_lists(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    for found in (s3.get_bucket_acl(Bucket=bucket), s3.get_object_acl(Bucket=bucket, Key="k")):
        assert found["Owner"]["ID"] == "one"
        assert [(g["Grantee"]["ID"], g["Permission"]) for g in found["Grants"]] == [("one", "FULL_CONTROL")]


@pytest.mark.parametrize(("canned", "grants"), [
    ("private", []), ("public-read", [(ALL, "READ")]), ("public-read-write", [(ALL, "READ"), (ALL, "WRITE")]),
    ("authenticated-read", [(KNOWN, "READ")]), ("bucket-owner-read", []), ("bucket-owner-full-control", []),
    ("aws-exec-read", [("za-team", "READ")]),
])
def test_canned_lists(s3, bucket, canned, grants):
    s3.put_object(Bucket=bucket, Key="put", Body=b"", ACL=canned)
    s3.put_object(Bucket=bucket, Key="later", Body=b"")
    s3.put_object_acl(Bucket=bucket, Key="later", ACL=canned)
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "later"}, ACL=canned)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts", ACL=canned)["UploadId"]
    etag = s3.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    s3.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload,
                                 MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    for key in ("put", "later", "copy", "parts"):
        found = s3.get_object_acl(Bucket=bucket, Key=key)["Grants"]
        assert [(g["Grantee"].get("URI") or g["Grantee"]["DisplayName"], g["Permission"]) for g in found] == [
            ("one", "FULL_CONTROL"), *grants]


def test_authenticated_read(server, s3, bucket, two):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="authenticated-read")
    assert two.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    assert anonymous(server, f"/{bucket}/k")[0] == 403


def test_grants_to_a_project(server, s3, bucket, two):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", GrantRead='id="two"', GrantReadACP='id="two"')
    assert two.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    assert two.get_object_acl(Bucket=bucket, Key="k")["Owner"]["ID"] == "one"
    refused(lambda: two.put_object_acl(Bucket=bucket, Key="k", ACL="public-read"))
    refused(lambda: two.list_objects_v2(Bucket=bucket))
    two.create_bucket(Bucket="copies-of-two")
    two.copy_object(Bucket="copies-of-two", Key="k", CopySource={"Bucket": bucket, "Key": "k"})
    two.delete_object(Bucket="copies-of-two", Key="k")
    two.delete_bucket(Bucket="copies-of-two")
    acl = s3.get_bucket_acl(Bucket=bucket)
    grant = {"Grantee": {"Type": "CanonicalUser", "ID": "two"}, "Permission": "READ"}
    s3.put_bucket_acl(Bucket=bucket, AccessControlPolicy={"Owner": acl["Owner"], "Grants": [*acl["Grants"], grant]})
    assert [o["Key"] for o in two.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]
    assert bucket not in [b["Name"] for b in two.list_buckets()["Buckets"]]
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    refused(lambda: two.list_objects_v2(Bucket=bucket))


def test_objects_that_another_project_puts(server, s3, bucket, two):
    s3.put_bucket_acl(Bucket=bucket, GrantWrite="id=two")
    two.put_object(Bucket=bucket, Key="theirs", Body=b"of two")
    assert two.get_object(Bucket=bucket, Key="theirs")["Body"].read() == b"of two"
    assert s3.get_object(Bucket=bucket, Key="theirs")["Body"].read() == b"of two"  # the role table is as it was
    assert s3.get_object_acl(Bucket=bucket, Key="theirs")["Owner"]["ID"] == "two"
    assert s3.list_objects(Bucket=bucket)["Contents"][0]["Owner"]["ID"] == "two"
    two.put_object_acl(Bucket=bucket, Key="theirs", ACL="public-read")
    assert anonymous(server, f"/{bucket}/theirs")[0] == 200
    two.put_object(Bucket=bucket, Key="shared", Body=b"x", ACL="public-read")
    assert anonymous(server, f"/{bucket}/shared")[0] == 200
    s3.put_object(Bucket=bucket, Key="ours", Body=b"x")
    refused(lambda: two.get_object(Bucket=bucket, Key="ours"))
    assert two.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "theirs"}, {"Key": "shared"}]})["Deleted"]


def test_lists_that_are_refused(s3, bucket, server):
    owner = {"ID": "one"}
    put = s3.put_bucket_acl
    refused(lambda: put(Bucket=bucket, ACL="nonsense"), "InvalidArgument", 400)
    refused(lambda: put(Bucket=bucket, ACL="private", GrantRead="id=two"), "InvalidRequest", 400)
    refused(lambda: put(Bucket=bucket, GrantRead="two"), "InvalidArgument", 400)
    refused(lambda: put(Bucket=bucket, GrantRead="uri=http://x"), "InvalidArgument", 400)
    refused(lambda: put(Bucket=bucket, GrantRead='emailAddress="a@b"'), "UnresolvableGrantByEmailAddress", 400)
    refused(lambda: put(Bucket=bucket, AccessControlPolicy={"Grants": []}), "MalformedACLError", 400)
    refused(lambda: put(Bucket=bucket, AccessControlPolicy={"Owner": {"ID": "two"}, "Grants": []}))
    refused(lambda: put(Bucket=bucket, AccessControlPolicy={"Owner": owner, "Grants": [
        {"Grantee": {"Type": "CanonicalUser"}, "Permission": "READ"}]}), "MalformedACLError", 400)
    refused(lambda: put(Bucket=bucket, AccessControlPolicy={"Owner": owner, "Grants": [
        {"Grantee": {"Type": "CanonicalUser", "ID": "two"}, "Permission": "READ"}] * 101}), "MalformedACLError", 400)
    refused(lambda: put(Bucket=bucket), "MissingRequestBodyError", 400)
    refused(lambda: s3.put_object_acl(Bucket=bucket, Key="missing", ACL="private"), "NoSuchKey", 404)


def test_expected_bucket_owner(s3, bucket):
    s3.head_bucket(Bucket=bucket, ExpectedBucketOwner="one")
    refused(lambda: s3.list_objects_v2(Bucket=bucket, ExpectedBucketOwner="two"))


# -- policies ---------------------------------------------------------------------------------------------------------

def test_policy_round(s3, bucket):
    refused(lambda: s3.get_bucket_policy(Bucket=bucket), "NoSuchBucketPolicy", 404)
    refused(lambda: s3.get_bucket_policy_status(Bucket=bucket), "NoSuchBucketPolicy", 404)
    s3.delete_bucket_policy(Bucket=bucket)
    set_policy(s3, bucket, {"Sid": "one"})
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"][0]["Sid"] == "one"
    assert s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    set_policy(s3, bucket, {"Principal": {"AWS": "two"}})
    assert s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is False
    s3.delete_bucket_policy(Bucket=bucket)
    refused(lambda: s3.get_bucket_policy(Bucket=bucket), "NoSuchBucketPolicy", 404)


def test_malformed_policies(s3, bucket):
    for text in ("{", "{}", '{"Statement": "' + "x" * 21000 + '"}'):
        refused(lambda text=text: s3.put_bucket_policy(Bucket=bucket, Policy=text), "MalformedPolicy", 400)
    with pytest.raises(ClientError) as error:
        set_policy(s3, bucket, {"Action": "s3:Get Object"})
    assert "invalid action" in str(error.value)


def test_policy_for_a_project_and_a_user(server, s3, bucket, two):
    s3.put_object(Bucket=bucket, Key="in/k", Body=b"x")
    set_policy(s3, bucket, {"Principal": {"AWS": "arn:aws:iam::two:user/two"},
                            "Action": ["s3:PutObject", "s3:GetObject"], "Resource": f"arn:aws:s3:::{bucket}/in/*"})
    two.put_object(Bucket=bucket, Key="in/new", Body=b"y")
    assert two.get_object(Bucket=bucket, Key="in/k")["Body"].read() == b"x"
    refused(lambda: two.put_object(Bucket=bucket, Key="out", Body=b"y"))
    refused(lambda: two.delete_object(Bucket=bucket, Key="in/k"))
    refused(lambda: two.put_object(Bucket=bucket, Key="in/new", Body=b"y", ACL="public-read"))
    refused(lambda: two.put_bucket_policy(Bucket=bucket, Policy="{}"))
    found = two.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "in/k"}]})
    assert [e["Code"] for e in found["Errors"]] == ["AccessDenied"]
    assert anonymous(server, f"/{bucket}/in/k")[0] == 403


def test_deny_wins_over_lists_and_roles(server, s3, bucket, two):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read")
    s3.put_object(Bucket=bucket, Key="other", Body=b"x", ACL="public-read")
    deny = {"Effect": "Deny", "Resource": f"arn:aws:s3:::{bucket}/k"}
    set_policy(s3, bucket, {}, deny)
    assert anonymous(server, f"/{bucket}/k")[0] == 403 and anonymous(server, f"/{bucket}/other")[0] == 200
    refused(lambda: s3.get_object(Bucket=bucket, Key="k"))
    refused(lambda: s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "k"}))
    set_policy(s3, bucket, {**deny, "Action": "s3:*",
                            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]})
    for call in (lambda: s3.list_objects_v2(Bucket=bucket), lambda: s3.put_object(Bucket=bucket, Key="n", Body=b""),
                 lambda: s3.delete_bucket(Bucket=bucket), lambda: s3.put_bucket_acl(Bucket=bucket, ACL="private")):
        refused(call)
    assert s3.get_bucket_policy(Bucket=bucket)["Policy"]  # 'one' manages the project
    s3.delete_bucket_policy(Bucket=bucket)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_a_policy_is_asked_about_the_tags_that_a_document_gives(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    set_policy(s3, bucket, {"Effect": "Deny", "Action": "s3:PutObjectTagging",
                            "Condition": {"StringEquals": {"s3:RequestObjectTag/level": "secret"}}})

    def put(value):
        s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "level", "Value": value}]})
    put("public")
    refused(lambda: put("secret"))
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "level", "Value": "public"}]


def test_roles_stay_and_only_managers_undo_a_deny(server, s3, bucket):
    anna, berta = server.client("anna", project="one"), server.client("berta", project="one")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert anna.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    refused(lambda: anna.get_object(Bucket=bucket, Key="k"))
    refused(lambda: anna.put_object(Bucket=bucket, Key="n", Body=b"x"))
    set_policy(s3, bucket, {"Principal": {"AWS": "one"}, "Action": "s3:PutObject"})
    refused(lambda: anna.put_object(Bucket=bucket, Key="n", Body=b"x"))
    set_policy(s3, bucket, {"Principal": {"AWS": "arn:aws:iam::one:user/anna"}, "Action": "s3:PutObject"})
    anna.put_object(Bucket=bucket, Key="n", Body=b"x")
    refused(lambda: berta.put_object(Bucket=bucket, Key="n", Body=b"x"))
    anna.create_bucket(Bucket="of-anna")
    set_policy(anna, "of-anna", {"Effect": "Deny", "Action": "s3:*",
                                 "Resource": ["arn:aws:s3:::of-anna", "arn:aws:s3:::of-anna/*"]})
    refused(lambda: anna.delete_bucket_policy(Bucket="of-anna"))
    s3.delete_bucket_policy(Bucket="of-anna")
    anna.delete_bucket(Bucket="of-anna")


def test_conditions_of_requests(server, s3, bucket, two):
    s3.put_object(Bucket=bucket, Key="home/a", Body=b"x")
    bucket_arn = f"arn:aws:s3:::{bucket}"
    set_policy(s3, bucket,
               {"Condition": {"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}, "StringLike": {"aws:Referer": "http://x/*"}}},
               {"Action": "s3:ListBucket", "Resource": bucket_arn, "Principal": {"AWS": "two"},
                "Condition": {"StringEquals": {"s3:prefix": "home/"}, "NumericLessThan": {"s3:max-keys": "5"}}},
               {"Action": "s3:PutObject", "Principal": {"AWS": "two"},
                "Condition": {"StringEquals": {"s3:x-amz-acl": "bucket-owner-full-control"}}})
    assert anonymous(server, f"/{bucket}/home/a", headers={"Referer": "http://x/page"})[0] == 200
    assert anonymous(server, f"/{bucket}/home/a", headers={"Referer": "http://y/page"})[0] == 403
    assert anonymous(server, f"/{bucket}/home/a")[0] == 403
    assert two.list_objects_v2(Bucket=bucket, Prefix="home/", MaxKeys=4)["KeyCount"] == 1
    refused(lambda: two.list_objects_v2(Bucket=bucket, Prefix="home/", MaxKeys=5))
    refused(lambda: two.list_objects_v2(Bucket=bucket, Prefix="", MaxKeys=4))
    refused(lambda: two.put_object(Bucket=bucket, Key="n", Body=b"x"))
    two.put_object(Bucket=bucket, Key="n", Body=b"x", ACL="bucket-owner-full-control")
    set_policy(s3, bucket, {"Effect": "Deny", "Action": "s3:*",
                            "Condition": {"Bool": {"aws:SecureTransport": "false"}}})
    refused(lambda: s3.get_object(Bucket=bucket, Key="home/a"))
    set_policy(s3, bucket, {"Effect": "Deny", "Condition": {"StringNotEquals": {"s3:ExistingObjectTag/open": "yes"}}})
    refused(lambda: s3.get_object(Bucket=bucket, Key="home/a"))


# -- what limits both -------------------------------------------------------------------------------------------------

def test_a_policy_that_wants_conditions_of_writes_and_deletes(s3, bucket):
    everything = {"Effect": "Deny", "Principal": "*", "Resource": f"arn:aws:s3:::{bucket}/*"}
    set_policy(s3, bucket,
               {**everything, "Action": "s3:PutObject",
                "Condition": {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}}},
               {**everything, "Action": "s3:DeleteObject", "Condition": {"Null": {"s3:if-match": "true"}}})
    refused(lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"x"))
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x", IfNoneMatch="*")["ETag"]
    refused(lambda: s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/k"))
    args = {"Bucket": bucket, "Key": "m", "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]}
    parts = [{"PartNumber": 1, "ETag": s3.upload_part(**args, PartNumber=1, Body=b"x")["ETag"]}]
    refused(lambda: s3.complete_multipart_upload(**args, MultipartUpload={"Parts": parts}))
    s3.complete_multipart_upload(**args, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    refused(lambda: s3.delete_object(Bucket=bucket, Key="k"))
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", "ETag": etag}, {"Key": "m"}]})
    assert [found["Key"] for found in answer["Deleted"]] == ["k"]
    assert [(found["Key"], found["Code"]) for found in answer["Errors"]] == [("m", "AccessDenied")]
    s3.delete_object(Bucket=bucket, Key="m", IfMatch="*")
    s3.delete_bucket_policy(Bucket=bucket)


def test_public_access_block(server, s3, bucket, two):
    def block(**switches):
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=switches)
    refused(lambda: s3.get_public_access_block(Bucket=bucket), "NoSuchPublicAccessBlockConfiguration", 404)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read")
    set_policy(s3, bucket, {"Principal": {"AWS": "two"}},
               {"Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"})
    block(BlockPublicAcls=True)
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True, "IgnorePublicAcls": False, "BlockPublicPolicy": False, "RestrictPublicBuckets": False}
    for call in (lambda: s3.put_object(Bucket=bucket, Key="n", Body=b"", ACL="public-read"),
                 lambda: s3.put_object_acl(Bucket=bucket, Key="k", ACL="authenticated-read"),
                 lambda: s3.put_bucket_acl(Bucket=bucket, GrantRead=f"uri={ALL}"),
                 lambda: s3.create_multipart_upload(Bucket=bucket, Key="n", ACL="public-read-write")):
        refused(call)
    s3.put_object(Bucket=bucket, Key="n", Body=b"", GrantRead="id=two")
    assert anonymous(server, f"/{bucket}/k")[0] == 200
    block(IgnorePublicAcls=True)
    assert anonymous(server, f"/{bucket}/k")[0] == 403
    assert two.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"  # the policy names 'two'
    block(BlockPublicPolicy=True)
    refused(lambda: set_policy(s3, bucket, {}))
    assert anonymous(server, f"/{bucket}")[0] == 200
    block(RestrictPublicBuckets=True)
    assert anonymous(server, f"/{bucket}")[0] == 403
    refused(lambda: two.list_objects_v2(Bucket=bucket))
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 2
    s3.delete_public_access_block(Bucket=bucket)
    assert anonymous(server, f"/{bucket}")[0] == 200


def test_ownership_controls(server, s3, bucket, two):
    def control(value):
        s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls={"Rules": [{"ObjectOwnership": value}]})
    refused(lambda: s3.get_bucket_ownership_controls(Bucket=bucket), "OwnershipControlsNotFoundError", 404)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read")
    s3.put_bucket_acl(Bucket=bucket, GrantWrite="id=two")
    refused(lambda: control("BucketOwnerEnforced"), "InvalidBucketAclWithObjectOwnership", 400)
    control("BucketOwnerPreferred")
    two.put_object(Bucket=bucket, Key="given", Body=b"x", ACL="bucket-owner-full-control")
    two.put_object(Bucket=bucket, Key="kept", Body=b"x")
    assert s3.get_object_acl(Bucket=bucket, Key="given")["Owner"]["ID"] == "one"
    assert s3.get_object_acl(Bucket=bucket, Key="kept")["Owner"]["ID"] == "two"
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    control("BucketOwnerEnforced")
    rules = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert anonymous(server, f"/{bucket}/k")[0] == 403
    refused(lambda: two.get_object(Bucket=bucket, Key="kept"))
    not_supported = ("AccessControlListNotSupported", 400)
    refused(lambda: s3.put_object(Bucket=bucket, Key="n", Body=b"", ACL="public-read"), *not_supported)
    refused(lambda: s3.put_bucket_acl(Bucket=bucket, ACL="public-read"), *not_supported)
    refused(lambda: s3.put_object_acl(Bucket=bucket, Key="k", ACL="public-read"), *not_supported)
    s3.put_object(Bucket=bucket, Key="n", Body=b"", ACL="bucket-owner-full-control")
    s3.put_bucket_acl(Bucket=bucket, ACL="bucket-owner-full-control")
    shown = s3.get_object_acl(Bucket=bucket, Key="kept")
    assert shown["Owner"]["ID"] == "one"
    s3.put_object_acl(Bucket=bucket, Key="kept",
                      AccessControlPolicy={"Owner": shown["Owner"], "Grants": shown["Grants"]})
    s3.delete_bucket_ownership_controls(Bucket=bucket)
    assert anonymous(server, f"/{bucket}/k")[0] == 200


def test_buckets_that_are_made_open(server, s3):
    s3.create_bucket(Bucket="made-open", ACL="public-read")
    assert anonymous(server, "/made-open")[0] == 200
    s3.delete_bucket(Bucket="made-open")
    s3.create_bucket(Bucket="made-enforced", ObjectOwnership="BucketOwnerEnforced")
    refused(lambda: s3.put_bucket_acl(Bucket="made-enforced", ACL="public-read"), "AccessControlListNotSupported", 400)
    s3.delete_bucket(Bucket="made-enforced")
    refused(lambda: s3.create_bucket(Bucket="made-both", ObjectOwnership="BucketOwnerEnforced", ACL="public-read"),
            "InvalidBucketAclWithObjectOwnership", 400)
    refused(lambda: s3.create_bucket(Bucket="made-wrong", ObjectOwnership="Nobody"), "InvalidArgument", 400)


# -- s3cmd ------------------------------------------------------------------------------------------------------------

def test_s3cmd(server, s3, bucket, tmp_path):
    def s3cmd(*arguments):
        done = subprocess.run(
            ["s3cmd", "-c", os.devnull, "--no-ssl", f"--host=127.0.0.1:{server.port}",
             f"--host-bucket=127.0.0.1:{server.port}", "--access_key=keyone:one", "--secret_key=secretone",
             "--region=nova", *arguments], capture_output=True, text=True, timeout=120,
            env=environment_without_aws(), check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    s3cmd("setacl", "--acl-public", f"s3://{bucket}/k")
    assert anonymous(server, f"/{bucket}/k")[0] == 200
    assert "*anon*: READ" in s3cmd("info", f"s3://{bucket}/k")
    s3cmd("setacl", "--acl-private", f"s3://{bucket}/k")
    assert anonymous(server, f"/{bucket}/k")[0] == 403
    s3cmd("setacl", "--acl-grant=read:two", f"s3://{bucket}/k")
    assert server.client("two").get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{bucket}/*"]}]}))
    s3cmd("setpolicy", str(path), f"s3://{bucket}")
    assert anonymous(server, f"/{bucket}/k")[0] == 200
    assert "s3:GetObject" in s3cmd("info", f"s3://{bucket}")
    s3cmd("delpolicy", f"s3://{bucket}")
    assert anonymous(server, f"/{bucket}/k")[0] == 403
