"""Targets that are request lines, headers and parameters."""

import zlib
from email.utils import formatdate

from nova.objectstore import checksums, conditions, cors, listing, request, tags, versions
from nova.objectstore.access import acl, values
from nova.wire import model
from nova.wire.query import parse_pairs
from tests.fuzz.run import Target

_ETAG, _MODIFIED = "0123456789abcdef0123456789abcdef", 1_767_323_045.5
_SIZES = (0, 1, 2, 10, 1000, 5 << 30, (1 << 63) - 1)


class _Headers(dict):
    """Headers by their names in whatever case, the first of several."""

    def __init__(self, data: bytes):
        super().__init__()
        for line in data.decode("latin-1").split("\n"):
            name, _, value = line.partition(": ")
            self.setdefault(name.lower(), value)

    def get(self, name, default=None):
        return super().get(name.lower(), default)

    def __getitem__(self, name):
        return super().__getitem__(name.lower())

    def __contains__(self, name):
        return super().__contains__(name.lower())


def _check_range(data: bytes) -> str:
    """What is to be served is in the object, and not nothing."""
    size = _SIZES[zlib.crc32(data) % len(_SIZES)]
    found = conditions.parse_range(data.decode("latin-1"), size)
    if found is None:
        return "whole object"
    start, length = found
    assert 0 <= start < size and 0 < length <= size - start, "no part of the object"
    return "part"


def ranges() -> Target:
    """The Range header."""
    return Target(_check_range, (b"bytes=0-0", b"bytes=1-", b"bytes=-5", b"bytes=0-9,20-29", b"BYTES = 3 - 7",
                                 b"bytes=9223372036854775807-9223372036854775807", b"items=0-1"),
                  (b"bytes", b"bytes=", b"-", b"=", b" ", b"  ", b"0-", b"999", b"1000"))


def _check_preconditions(data: bytes) -> str:
    """An object is served, replaced, copied, or not."""
    headers = _Headers(data)
    which = zlib.crc32(data) % 4
    if which == 0:
        conditions.check_copy(headers, _ETAG, _MODIFIED)
    elif which == 1:
        conditions.check_write(headers, _ETAG if data[-1:] > b"Z" else None)
    else:
        conditions.check_read(headers, _ETAG, _MODIFIED)
    return "goes on"


def preconditions() -> Target:
    """The If- headers."""
    date, tag = formatdate(_MODIFIED, usegmt=True), f'"{_ETAG}"'
    both = [(f"If-Match: {tag}", f"If-None-Match: W/{tag}, *"), (f"If-Modified-Since: {date}", "If-Match: *"),
            (f"If-Unmodified-Since: {date}", "a: b"), ("If-None-Match: *", f"If-Unmodified-Since: {date}")]
    seeds = ["\n".join(pair) for pair in both]
    seeds += ["\n".join(line.replace("If-", "x-amz-copy-source-if-") for line in pair) for pair in both]
    return Target(_check_preconditions, [seed.encode() for seed in seeds],
                  (b"If-Match: ", b"If-None-Match: ", b"W/", b'"', b",", b"GMT", b"-0000", b"+0000", b"Feb",
                   b"Sunday, ", b"06-Nov-94", b"1601", b"10000", b"12:60:61", b"Sun Nov  6 08:49:37 1994",
                   b"2026-01-02T03:04:05Z"))


def _check_request(data: bytes) -> str:
    """A target is read, and what its parameters and headers say; keys and names are text that can be stored."""
    uri, _, rest = data.partition(b"\n")
    host, _, rest = rest.partition(b"\n")
    found = request.read(uri.decode("latin-1"), host.decode("latin-1"), "s3.example.com")
    for text in (found.bucket, found.key, *found.params, *found.params.values()):
        text.encode()
    headers = _Headers(rest)
    values.of_request(headers, found.params, "v4-header", False)
    values.of_listing(found.params)
    request.number(found.params, "max-keys", 1000, 0, 1000)
    if "continuation-token" in found.params:
        after = listing.read_token(found.params["continuation-token"])
        assert listing.read_token(listing.token(after)) == after
    if "versionId" in found.params:
        versions.check_id(found.params["versionId"])
    if "x-amz-copy-source" in headers:
        bucket, key, version = request.copy_source(headers["x-amz-copy-source"])
        f"{bucket}{key}{version}".encode()
    tags.from_header(headers)
    checksums.given(headers)
    if "Origin" in headers:
        cors.preflight({"CORSRules": [{"AllowedOrigins": ["http://*.example.com"], "AllowedMethods": ["GET", "PUT"],
                                       "AllowedHeaders": ["x-*"], "MaxAgeSeconds": 5}]}, headers)
    return "read"


def requests() -> Target:
    """The request line, the Host header, and headers that mean something to the object store."""
    token = listing.token("a/é".encode()).encode()
    seeds = (
        b"/bucket/a%20b/%C3%A9?versionId=null\nh:3333\nx-amz-tagging: a=b&c=%C3%A9",
        b"/k?uploads\nbucket.s3.example.com:80\nx-amz-copy-source: /src/a%2Fb?versionId=null",
        b"http://bucket.s3.example.com/?list-type=2&max-keys=7&prefix=a%2F&continuation-token=" + token
        + b"\nbucket.s3.example.com\nReferer: x",
        b"/b?max-keys=0&delimiter=%2F\n[::1]:3333\nOrigin: http://a.example.com\nAccess-Control-Request-Method: PUT\n"
        b"Access-Control-Request-Headers: x-a, x-b",
        b"/b/k?partNumber=1&uploadId=abc\nh\nx-amz-checksum-crc32: AAAAAA==\nx-amz-checksum-sha1: x")
    return Target(_check_request, seeds, (
        b"versionId=", b"continuation-token=", b"max-keys=", b"acl", b"policy", b"uploads", b"x-amz-tagging: ",
        b"x-amz-copy-source: ", b"?versionId=", b"Origin: ", b".s3.example.com", b"https://", b"MQ==", b"_-", token))


def _check_access_lists(data: bytes) -> str:
    headers = _Headers(data)
    found = acl.from_headers(headers, "project", "other")
    if found is None:
        return "none"
    for permission in ("READ", "WRITE", "FULL_CONTROL"):
        acl.permits(found, "somebody", "home", permission)
    acl.is_public(found)
    return "read"


def access_lists() -> Target:
    """The headers with which access lists are given."""
    group = acl.ALL_USERS.encode()
    seeds = [b"x-amz-acl: " + name for name in (b"private", b"public-read", b"bucket-owner-full-control")] + [
        b'x-amz-grant-read: id="p1", id=p2, uri="' + group + b'"\nx-amz-grant-full-control: id="p3"',
        b'x-amz-grant-write-acp: emailAddress="a@b.c"', b"x-amz-grant-write: uri=" + group]
    return Target(_check_access_lists, seeds, (b'id="', b"id=", b"uri=", b"emailAddress=", b"x-amz-grant-read: ", b", ",
                                               b'"', b"x-amz-acl: ", group))


# -- EC2 --------------------------------------------------------------------------------------------------------------

def _check_query(data: bytes) -> str:
    for name, value in parse_pairs(data):
        f"{name}{value}".encode()
    return "read"


def queries() -> Target:
    """Query strings and forms."""
    return Target(_check_query, (b"Action=RunInstances&ImageId=ami-00000001&MinCount=1",
                                 b"a=%C3%A9&b=c+d%2B%2F%3D&&c&=d",
                                 b"UserData=" + b"ab%2Bc%2Fd%3D" * 20, "ü=ä&%e2%82%ac".encode()))


_EC2 = ("RunInstances", "DescribeInstances", "AuthorizeSecurityGroupIngress", "RegisterImage", "CreateVolume",
        "ImportKeyPair", "AttachVolume", "CreateTags", "GetConsoleOutput", "ModifyInstanceAttribute", "DescribeImages")


def _check_ec2(data: bytes) -> str:
    pairs = parse_pairs(data)
    name = next((value for name, value in pairs if name == "Action"), "")
    operation = model.operation(name) or model.operation(_EC2[zlib.crc32(data) % len(_EC2)])
    operation.parse(pairs)
    return "read"


def ec2() -> Target:
    """The parameters of EC2 operations."""
    seeds = (
        b"Action=RunInstances&Version=2016-11-15&ImageId=ami-00000001&MinCount=1&MaxCount=2&InstanceType=m1.small&UserData="
        b"YWJj&SecurityGroup.1=default&BlockDeviceMapping.1.DeviceName=/dev/sda&BlockDeviceMapping.1.Ebs.VolumeSize=8"
        b"&Placement.AvailabilityZone=nova&Monitoring.Enabled=true&KeyName=k",
        b"Action=DescribeInstances&InstanceId.1=i-00000001&InstanceId.2=i-2&Filter.1.Name=a&Filter.1.Value.1=b&MaxResults=5",
        b"Action=AuthorizeSecurityGroupIngress&GroupName=g&IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&"
        b"IpPermissions.1.ToPort=22&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0",
        b"Action=CreateVolume&Size=1&AvailabilityZone=nova&Encrypted=false&TagSpecification.1.ResourceType=volume&"
        b"TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b",
        b"Action=CreateTags&ResourceId.1=i-1&Tag.1.Key=a&Tag.1.Value=b&DryRun=true",
        b"Action=ImportKeyPair&KeyName=k&PublicKeyMaterial=c3NoLXJzYQ%3D%3D",
        b"Action=RequestSpotInstances&ValidFrom=2026-01-02T03:04:05Z&InstanceCount=1",
        b"Action=ModifyInstanceAttribute&InstanceId=i-1&DisableApiTermination.Value=true&UserData.Value=YQ==")
    return Target(_check_ec2, seeds, (
        b".", b".1", b".0", b".1.", b".9999", b".10000", b".member.1", b"Filter.1.Name=", b"InstanceId", b"InstanceIds",
        b"ValidFrom=", b"2026-01-02T03:04:05Z", b"0001-01-01T00:00:00+23:59", b".Value=", b"a." * 20, b"1.5", b"TRUE",
        *(b"Action=" + name.encode() for name in _EC2)))
