"""Targets that are documents: XML of requests, bucket policies, policies of forms."""

import base64
import json
import random
import zlib
from datetime import UTC, datetime
from functools import cache

from botocore.serialize import create_serializer

from nova import exception
from nova.objectstore import cors, lifecycle, post_policy, tags
from nova.objectstore.access import acl, policy
from nova.objectstore.models import Bucket, Object
from nova.wire import rest_xml
from tests.fuzz.run import Target

_NOW = datetime(2026, 1, 2, tzinfo=UTC)


def _example(shape, rng: random.Random, depth: int = 0):
    """A value of one of the model's shapes."""
    kind = shape.type_name
    if kind == "structure":
        return {name: _example(member, rng, depth + 1) for name, member in shape.members.items()
                if name in shape.required_members or rng.random() < (0.7 if depth < 4 else 0.3)}
    if kind == "list":
        return [_example(shape.member, rng, depth + 1) for _ in range(rng.randint(1, 2))]
    if kind in ("integer", "long"):
        return rng.randint(1, 100)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "timestamp":
        return _NOW
    if kind == "blob":
        return b"x"
    return rng.choice(shape.enum or ["a", "ä&<é>", "b/c", "http://*.example.com"])


@cache
def _operations() -> tuple[str, ...]:
    """The operations whose requests have a document."""
    found = []
    for name in rest_xml.s3().operation_names:
        try:
            rest_xml.read_body(name, b"")
        except exception.MissingRequestBody:
            found.append(name)
        except ValueError:
            continue
    return tuple(found)


def _seeds(names: tuple[str, ...], count: int) -> list[bytes]:
    """Documents as botocore writes them, after a line with the operation's name."""
    rng, serializer, seeds = random.Random(1), create_serializer("rest-xml", include_validation=False), []
    for name in names:
        operation = rest_xml.s3().operation_model(name)
        payload = operation.input_shape.serialization["payload"]
        for _ in range(count):
            values = {member: _example(shape, rng) for member, shape in operation.input_shape.members.items()
                      if member == payload or member in operation.input_shape.required_members}
            seeds.append(name.encode() + b"\n" + serializer.serialize_to_request(values, operation)["body"])
    return seeds


_WORDS = (b'<?xml version="1.0" encoding="UTF-8"?>', b'<?xml version="1.0" encoding="UTF-16"?>', b'xmlns="x"',
          b'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"', b'xsi:type="Group"', b"<Tag><Key>a</Key></Tag>",
          b"</", b"/>", b"<a:b>", b"<!DOCTYPE x [<!ENTITY a \"b\">]>", b"&a;", b"&#xD800;", b"&#128512;", b"<Rule>",
          b"<Status>Enabled</Status>", b"TRUE", b"2026-01-02T00:00:00Z", b"0001-01-01T00:00:00Z", b"<And>", b"</And>",
          b"<Days>2147483647</Days>", b"<Prefix></Prefix>", b"<Date>", b"<ID>" + b"x" * 300 + b"</ID>")


def _check_xml(data: bytes) -> str:
    """A document is read, whatever it is."""
    name, _, document = data.partition(b"\n")
    operations = _operations()
    operation = name.decode("latin-1")
    if operation not in operations:
        operation = operations[zlib.crc32(name) % len(operations)]
    rest_xml.read_body(operation, document)
    return "read"


def xml() -> Target:
    """The documents of all operations."""
    return Target(_check_xml, _seeds(_operations(), 3), (*_WORDS, *(name.encode() + b"\n" for name in _operations())))


# -- configurations ---------------------------------------------------------------------------------------------------

def _read_lifecycle(document: dict) -> None:
    """What is kept can be applied, and the headers of objects tell it."""
    kept = json.loads(json.dumps(lifecycle.read(document)))
    bucket = Bucket(id="b", configuration={"lifecycle": kept}, **_OWNER)
    lifecycle.headers(bucket, _OBJECT)
    rules = lifecycle.rules_of(bucket)
    lifecycle.upload_due(rules, "k", 1e9)
    lifecycle.version_is_over(rules, _OBJECT, 1e9, 1, 2e9)
    lifecycle.marker_is_over(rules, _OBJECT, 2e9)
    rest_xml.write_body("GetBucketLifecycleConfiguration", kept)


def _read_cors(document: dict) -> None:
    cors.check(document)
    cors.answer(document, "http://a.example.com", "GET", "x-a")
    rest_xml.write_body("GetBucketCors", json.loads(json.dumps(document)))


def _read_tags(document: dict) -> None:
    rest_xml.write_body("GetBucketTagging", tags.to_set(tags.from_set(document, tags.MAX_BUCKET_TAGS)))


def _read_acl(document: dict) -> None:
    made = acl.from_document(document, "a")
    acl.is_public(made)
    rest_xml.write_body("GetBucketAcl", json.loads(json.dumps(made)))


_OWNER = {"user_id": "u", "project_id": "p", "created": 1e9}
_OBJECT = Object(id="o", bucket="b", key="a", project_id="p", file="f", size=5, md5="", sha256="", etag="",
                 modified=1_767_323_045.5, tags={"a": "b"})
_READERS = {"PutBucketLifecycleConfiguration": _read_lifecycle, "PutBucketCors": _read_cors,
            "PutBucketTagging": _read_tags, "PutBucketAcl": _read_acl}


def _check_configuration(data: bytes) -> str:
    """A configuration is read, checked, applied, and written again."""
    name, _, document = data.partition(b"\n")
    operation = name.decode("latin-1")
    if operation not in _READERS:
        operation = "PutBucketLifecycleConfiguration"
    _READERS[operation](rest_xml.read_body(operation, document))
    return "read"


def configurations() -> Target:
    """Lifecycles, CORS rules, tags and access lists."""
    rules = ("<Filter/>", "<Filter><Prefix>a</Prefix></Filter>", "<Filter><And><Prefix>a</Prefix><Tag><Key>a</Key>"
             "<Value>b</Value></Tag><ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></And></Filter>", "<Prefix/>")
    actions = ("<Expiration><Days>1</Days></Expiration>", "<Expiration><Date>2026-01-02T00:00:00Z</Date></Expiration>",
               "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
               "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>")
    seeds = [f"PutBucketLifecycleConfiguration\n<LifecycleConfiguration><Rule><ID>a</ID>{rule}<Status>Enabled</Status>"
             f"{action}</Rule></LifecycleConfiguration>".encode() for rule in rules for action in actions]
    cors_rule = (b"<CORSRule><AllowedOrigin>http://*.example.com</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
                 b"<AllowedHeader>*</AllowedHeader><MaxAgeSeconds>5</MaxAgeSeconds></CORSRule>")
    seeds += [b"PutBucketCors\n<CORSConfiguration>" + cors_rule * 2 + b"</CORSConfiguration>",
              b"PutBucketTagging\n<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
              b"PutBucketAcl\n<AccessControlPolicy><Owner><ID>a</ID></Owner><AccessControlList><Grant><Grantee "
              b'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>b</ID></Grantee>'
              b"<Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>"]
    return Target(_check_configuration, seeds, _WORDS)


# -- policies ---------------------------------------------------------------------------------------------------------

_VALUES = {
    "aws:sourceip": ("::ffff:10.0.0.1",), "aws:useragent": ("a" * 100,), "aws:currenttime": ("2026-01-02T00:00:00Z",),
    "aws:epochtime": ("1767312000",), "aws:securetransport": ("false",), "s3:prefix": ("home/u/",),
    "s3:max-keys": ("7",), "aws:username": ("u",), "aws:principalarn": ("arn:aws:iam::p:user/u",),
    "s3:existingobjecttag/a": ("b",),
    "s3:requestobjecttagkeys": ("a", "é\ud800"), "aws:referer": ("http://İ\n",), "s3:versionid": ("",)}
_ASKERS = (policy.Asker("", ""), policy.Asker("p", "u"), policy.Asker("home", "v"))


def _check_policy(data: bytes) -> str:
    """A policy is read, and says something of every request."""
    found = policy.parse(data.decode(errors="replace"), "b")
    effects = [found.effect(asker, ("s3:GetObject", "s3:ListBucket"), "arn:aws:s3:::b/home/u/k", _VALUES, "home")
               for asker in _ASKERS]
    assert found.is_public in (True, False) and found.needs_tags in (True, False)
    return f"read, {'/'.join(effect.value for effect in effects)}"


def policies() -> Target:
    """Bucket policies, and what they say of requests."""
    statements = [
        {"Sid": "1", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"},
        {"Effect": "Deny", "NotPrincipal": {"AWS": ["arn:aws:iam::p:user/u", "p"]}, "NotAction": ["s3:Put*", "s3:?et*"],
         "NotResource": ["arn:aws:s3:::b", "arn:aws:s3:::b/x?z/*"]},
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::p:root", "CanonicalUser": "p"}, "Action": "*",
         "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/home/${aws:username}/*"], "Condition": {
             "IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "::/0"]}, "Bool": {"aws:SecureTransport": False},
             "StringLikeIfExists": {"s3:prefix": "home/${aws:username}/*", "aws:Referer": "http://*?"},
             "NumericLessThan": {"s3:max-keys": 10}, "DateGreaterThan": {"aws:CurrentTime": "2020-01-01"}}},
        {"Effect": "Deny", "Principal": {"AWS": "*"}, "Action": "s3:*", "Resource": "*", "Condition": {
            "ForAnyValue:StringEqualsIgnoreCase": {"s3:RequestObjectTagKeys": ["A", "é"]},
            "StringNotEquals": {"s3:ExistingObjectTag/a": "b"}, "Null": {"s3:versionid": "true"},
            "ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/?"},
            "ForAllValues:StringLike": {"aws:UserAgent": "*a?"}, "DateLessThanEquals": {"aws:EpochTime": 9999999999}}}]
    seeds = [{"Version": "2012-10-17", "Id": "x", "Statement": [one]} for one in statements]
    seeds += [{"Version": "2008-10-17", "Statement": statements[0]}, {"Version": "2012-10-17", "Statement": statements}]
    return Target(_check_policy, [json.dumps(seed).encode() for seed in seeds], (
        b"IfExists", b"ForAllValues:", b"ForAnyValue:", b'"StringLike"', b'"IpAddress"', b'"DateEquals"', b'"Bool"',
        b'"aws:SourceIp"', b'"s3:prefix"', b"${aws:username}", b"${*}", b"${$}", b"${", b"0.0.0.0/0", b"::1/129",
        b'"Null"',
        b"10.0.0.1%eth0", b'"Principal"', b'"NotAction"', b'"*"', b"[]", b"{}", b"1e400", b'"\\ud800"', b"*?*?", b"??",
        b'{"AWS": "*"}', b"-0", b"1.5", b'"2012-10-17"', b"arn:aws:s3:::b/", b"a:b:c:d:e:f"))


_FIELDS = {"key": "user/a", "acl": "private", "content-type": "image/png, image/x", "x-amz-date": "x", "x-ignore-a": ""}


def _check_post_policy(data: bytes) -> str:
    """The JSON of a form's policy; what does not look like it is taken for base64."""
    encoded = base64.b64encode(data).decode() if data[:1] in b"{ [\"" else data.decode(errors="replace")
    found = post_policy.read(encoded)
    post_policy.check(found, _FIELDS, "b")
    post_policy.check_size(found, 100)
    return "holds"


def post_policies() -> Target:
    """The policies of forms."""
    conditions = [{"bucket": "b"}, ["starts-with", "$key", "user/"], ["eq", "$acl", "private"], {"x-amz-date": "x"},
                  ["starts-with", "$Content-Type", "image/"], ["content-length-range", 1, "1048576"]]
    seeds = [json.dumps({"expiration": date, "conditions": conditions}).encode()
             for date in ("2026-01-02T03:04:05.000Z", "2026-01-02T03:04:05+01:00")]
    return Target(_check_post_policy, [*seeds, *map(base64.b64encode, seeds)], (
        b'"eq"', b'"starts-with"', b'"$key"', b'"content-length-range"', b'"expiration"', b"[]", b"{}", b'"$"', b"1.5",
        b"1e400", b'"\\ud800"', b"==", b"A", b"-1", b'"1970-01-01"', b'"9999-12-31"', b'"0001-01-01T00:00:00+23:59"'))
