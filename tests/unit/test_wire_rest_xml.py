"""S3's documents: botocore's requests are read, botocore reads the answers, nothing hostile gets further."""

import random
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from botocore.handlers import parse_get_bucket_location
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer

from nova import exception
from nova.wire import rest_xml
from nova.wire.model import load

MODEL = ServiceModel(load("s3"), "s3")
NASTY = "a&b<c>\"'\r\n\t ]]> \u00e9\u4e2d\U0001f600 "
ANSWERED = (
    "CompleteMultipartUpload", "CopyObject", "CreateMultipartUpload", "DeleteObjects",
    "GetBucketAccelerateConfiguration", "GetBucketAcl", "GetBucketCors", "GetBucketEncryption",
    "GetBucketLifecycleConfiguration", "GetBucketLogging", "GetBucketNotificationConfiguration",
    "GetBucketOwnershipControls", "GetBucketPolicyStatus", "GetBucketReplication", "GetBucketRequestPayment",
    "GetBucketTagging", "GetBucketVersioning", "GetBucketWebsite", "GetObjectAcl", "GetObjectAttributes",
    "GetObjectLegalHold", "GetObjectLockConfiguration", "GetObjectRetention", "GetObjectTagging",
    "GetPublicAccessBlock", "ListBucketAnalyticsConfigurations", "ListBucketIntelligentTieringConfigurations",
    "ListBucketInventoryConfigurations", "ListBucketMetricsConfigurations", "ListBuckets", "ListMultipartUploads",
    "ListObjectVersions", "ListObjects", "ListObjectsV2", "ListParts", "UploadPartCopy",
)
READ = (
    "CompleteMultipartUpload", "CreateBucket", "DeleteObjects", "PutBucketAccelerateConfiguration", "PutBucketAcl",
    "PutBucketCors", "PutBucketEncryption", "PutBucketLifecycleConfiguration", "PutBucketLogging",
    "PutBucketNotificationConfiguration", "PutBucketOwnershipControls", "PutBucketReplication",
    "PutBucketRequestPayment", "PutBucketTagging", "PutBucketVersioning", "PutBucketWebsite", "PutObjectAcl",
    "PutObjectLegalHold", "PutObjectLockConfiguration", "PutObjectRetention", "PutObjectTagging",
    "PutPublicAccessBlock",
)


def example(shape, rng, step):
    """A value of a shape with its required members and some of the others; moments are whole `step` microseconds."""
    kind = shape.type_name
    if kind == "structure":
        return {name: example(member, rng, step) for name, member in shape.members.items()
                if "location" not in member.serialization and (name in shape.required_members or rng.random() < 0.6)}
    if kind == "list":
        return [example(shape.member, rng, step) for _ in range(rng.randint(1, 3))]
    if kind in ("integer", "long"):
        return rng.randint(-5, 2 ** (31 if kind == "integer" else 63) - 1)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "timestamp":
        return datetime(2026, 11, 20, 17, 51, rng.randint(0, 59), rng.randrange(0, 10 ** 6, step), tzinfo=UTC)
    if shape.enum:
        return rng.choice(shape.enum)
    return rng.choice(["x", NASTY, "", " a/b "])


def filled(value):
    """Without lists and structures that are empty, which documents do not tell from missing ones."""
    if isinstance(value, dict):
        return {name: inner for name, content in value.items() if (inner := filled(content)) not in ({}, [])}
    return [filled(item) for item in value] if isinstance(value, list) else value


def unix(value):
    """With line ends as XML has them (section 2.11), since botocore writes a carriage return as it is."""
    if isinstance(value, dict):
        return {name: unix(content) for name, content in value.items()}
    if isinstance(value, list):
        return [unix(item) for item in value]
    return value.replace("\r\n", "\n") if isinstance(value, str) else value


def parse(name, body):
    shape = MODEL.operation_model(name).output_shape
    parsed = create_parser("rest-xml").parse({"body": body, "headers": {}, "status_code": 200}, shape)
    del parsed["ResponseMetadata"]
    payload = shape.serialization.get("payload")
    return parsed[payload] if payload else parsed


def content_shape(name, kind):
    shape = getattr(MODEL.operation_model(name), kind)
    payload = shape.serialization.get("payload")
    return shape.members[payload] if payload else shape


@pytest.mark.parametrize("name", ANSWERED)
def test_botocore_reads_what_is_written(name):
    rng = random.Random(name)
    for _ in range(30):
        result = filled(example(content_shape(name, "output_shape"), rng, 1000))
        assert filled(parse(name, rest_xml.write_body(name, result))) == result


@pytest.mark.parametrize("name", READ)
def test_what_botocore_serializes_is_read(name):
    rng = random.Random(name)
    operation = MODEL.operation_model(name)
    payload = operation.input_shape.serialization["payload"]
    serializer = create_serializer("rest-xml", include_validation=False)
    others = {member: "x" for member in operation.input_shape.required_members if member != payload}
    read = 0
    for _ in range(30):
        content = example(operation.input_shape.members[payload], rng, 10 ** 6)
        request = serializer.serialize_to_request({**others, payload: content}, operation)
        if request["body"]:  # none where the content is empty
            assert filled(rest_xml.read_body(name, request["body"])) == unix(filled(content))
            read += 1
    assert read


def test_what_was_read_can_be_answered():
    content = {"Rules": [{"ID": "a", "Status": "Enabled", "Filter": {"And": {"Prefix": " p", "Tags": [
        {"Key": "k", "Value": ""}]}}, "Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}}]}
    written = rest_xml.write_body("GetBucketLifecycleConfiguration", content)
    assert rest_xml.read_body("PutBucketLifecycleConfiguration", written) == content


@pytest.mark.parametrize(("name", "root"), [
    ("ListBuckets", "ListAllMyBucketsResult"), ("ListObjects", "ListBucketResult"),
    ("ListObjectsV2", "ListBucketResult"), ("ListObjectVersions", "ListVersionsResult"),
    ("CreateMultipartUpload", "InitiateMultipartUploadResult"), ("CopyObject", "CopyObjectResult"),
    ("UploadPartCopy", "CopyPartResult"), ("GetBucketAcl", "AccessControlPolicy"), ("GetObjectTagging", "Tagging"),
    ("GetPublicAccessBlock", "PublicAccessBlockConfiguration"), ("GetBucketVersioning", "VersioningConfiguration"),
])
def test_roots_have_the_names_that_old_clients_look_for(name, root):
    assert ElementTree.fromstring(rest_xml.write_body(name, {})).tag == f"{{{rest_xml.NAMESPACE}}}{root}"


def test_an_answer_is_written_exactly():
    written = rest_xml.write_body("GetBucketAcl", {
        "Owner": {"ID": "p", "DisplayName": None},
        "Grants": [{"Grantee": {"Type": "CanonicalUser", "ID": "<&>\u0001\r\ud800\""}, "Permission": "READ"}]})
    assert written.decode() == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<AccessControlPolicy xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Owner><ID>p</ID></Owner>'
        '<AccessControlList><Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:type="CanonicalUser"><ID>&lt;&amp;&gt;&#x1;&#xd;&#xd800;"</ID></Grantee><Permission>READ</Permission>'
        "</Grant></AccessControlList></AccessControlPolicy>")


def test_a_location_is_the_text_of_the_root():
    for location in ("a&b", "", None):
        written = rest_xml.write_body("GetBucketLocation", {"LocationConstraint": location})
        parsed = {}
        parse_get_bucket_location(parsed, SimpleNamespace(raw=True, content=written))
        assert parsed == {"LocationConstraint": location or None}


def test_moments_are_cut_off_as_headers_cut_them_off():
    for moment in (1.9999, datetime.fromtimestamp(1.9999, UTC), datetime(1970, 1, 1, 0, 0, 1, 999900)):
        assert b">1970-01-01T00:00:01.999Z<" in rest_xml.write_body("CopyObject", {"LastModified": moment})
    assert b">2026-01-02T03:04:05.001Z<" in rest_xml.write_body(
        "CopyObject", {"LastModified": datetime(2026, 1, 2, 3, 4, 5, 1000, tzinfo=UTC)})


def test_an_error_has_no_namespace():
    assert rest_xml.write_error({"Code": "NoSuchKey", "Message": "<\u0001>"}) == (
        b'<?xml version="1.0" encoding="UTF-8"?>\n'
        b"<Error><Code>NoSuchKey</Code><Message>&lt;&#x1;&gt;</Message></Error>")


def test_mistakes_of_an_operation_are_errors():
    with pytest.raises(ValueError):
        rest_xml.write_body("ListObjects", {"Nonsense": 1})
    with pytest.raises(ValueError):
        rest_xml.write_body("ListParts", {"AbortDate": 0})  # a header
    for name in ("GetObject", "GetBucketPolicy", "PutObject"):
        with pytest.raises(ValueError):
            rest_xml.write_body(name, {})
    for name in ("PutObject", "PutBucketPolicy", "GetObject"):
        with pytest.raises(ValueError):
            rest_xml.read_body(name, b"<a/>")


# -- requests as clients send them ------------------------------------------------------------------------------------

@pytest.mark.parametrize("opening", [
    '<Delete>', '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">', '<Delete xmlns="http://other/">',
    '<?xml version="1.0" encoding="UTF-8"?>\n<Delete>', '<?xml version="1.0"?><!-- a comment --><Delete a="b">',
    '<?xml version="1.0" encoding="utf-8" standalone="yes"?>\n\n<Delete>'])
def test_namespaces_and_prologues_do_not_matter(opening):
    body = f"{opening}\n <Quiet> True </Quiet><Object><Key> \u00e9<![CDATA[<&]]>&amp;</Key></Object>\n</Delete>\n"
    assert rest_xml.read_body("DeleteObjects", body.encode()) == {"Quiet": True, "Objects": [{"Key": " \u00e9<&&"}]}


def test_a_grantee_has_its_type_under_any_prefix():
    body = ('<p:AccessControlPolicy xmlns:p="x"><p:AccessControlList><p:Grant>'
            '<p:Grantee xmlns:q="http://www.w3.org/2001/XMLSchema-instance" q:type="Group"><p:URI>u</p:URI></p:Grantee>'
            "<p:Permission>READ</p:Permission></p:Grant></p:AccessControlList></p:AccessControlPolicy>")
    assert rest_xml.read_body("PutBucketAcl", body.encode()) == {
        "Grants": [{"Grantee": {"Type": "Group", "URI": "u"}, "Permission": "READ"}]}


def test_a_private_cloud_has_locations_of_its_own():
    body = b"<CreateBucketConfiguration><LocationConstraint>nova</LocationConstraint></CreateBucketConfiguration>"
    assert rest_xml.read_body("CreateBucket", body) == {"LocationConstraint": "nova"}


@pytest.mark.parametrize(("name", "body"), [
    ("DeleteObjects", "<Deleted/>"),
    ("DeleteObjects", "<Delete/>"),
    ("DeleteObjects", "<Delete><Object/></Delete>"),
    ("DeleteObjects", "<Delete><Object><Key>a<b/>c</Key></Object></Delete>"),
    ("DeleteObjects", "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>"),
    ("DeleteObjects", "<Delete><Object><Key>a</Key></Object><Quiet>maybe</Quiet></Delete>"),
    ("DeleteObjects", "<Delete><Object><Key>a</Key><Size>1.5</Size></Object></Delete>"),
    ("DeleteObjects", "<Delete><Object><Key>a</Key><Size>9223372036854775808</Size></Object></Delete>"),
    ("DeleteObjects", "<Delete><Object><Key>a</Key><LastModifiedTime>now</LastModifiedTime></Object></Delete>"),
    ("CompleteMultipartUpload", "<CompleteMultipartUpload><Part><PartNumber>\u0663</PartNumber></Part>"
                                "</CompleteMultipartUpload>"),
    ("PutBucketTagging", "<Tagging/>"),
    ("PutBucketTagging", "<Tagging><TagSet/><Abc>abc</Abc></Tagging>"),
    ("PutBucketTagging", "<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>"),
    ("PutBucketTagging", "<Tagging><TagSet><Abc/></TagSet></Tagging>"),
    ("PutBucketVersioning", "<VersioningConfiguration><Status>enabled</Status></VersioningConfiguration>"),
    ("PutBucketAcl", "<AccessControlPolicy><AccessControlList><Grant><Grantee><ID>a</ID></Grantee></Grant>"
                     "</AccessControlList></AccessControlPolicy>"),
    ("PutBucketLifecycleConfiguration", "<LifecycleConfiguration><Rule><Status>Enabled</Status><Expiration>"
                                        "<Date>0001-01-01T00:00:00+14:00</Date></Expiration></Rule>"
                                        "</LifecycleConfiguration>"),
])
def test_what_the_schema_does_not_have_is_malformed(name, body):
    with pytest.raises(exception.MalformedXML):
        rest_xml.read_body(name, body.encode())


# -- hostile input ----------------------------------------------------------------------------------------------------

KEY = "<Delete><Object><Key>{}</Key></Object></Delete>"
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize("body", [
    f'<!DOCTYPE Delete [<!ENTITY l0 "ha">{LAUGHS}]>' + KEY.format("&l9;"),
    '<!DOCTYPE Delete [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + KEY.format("&x;"),
    '<!DOCTYPE Delete SYSTEM "http://127.0.0.1:1/dtd">' + KEY.format("a"),
    "<!DOCTYPE Delete>" + KEY.format("a"),
    KEY.format("&x;"),
    KEY.format("<?php x?>"),
    '<?xml-stylesheet href="x"?>' + KEY.format("a"),
    '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd"/>',
    "<Delete>" * 100_000,
    "<Delete>" * 100_000 + "</Delete>" * 100_000,
    "<Delete>" + "<Object/>" * 300_000 + "</Delete>",
    KEY.format("a\0b"), KEY.format("&#0;"), KEY.format("\u0001"), KEY.format("&#x1;"), KEY.format("\uffff"),
    KEY.format("a").encode("utf-16"), KEY.format("a").encode("utf-16-le"), KEY.format("a").encode("utf-32"),
    *(f'<?xml version="1.0" encoding="{encoding}"?>{KEY.format("a")}'
      for encoding in ("iso-8859-1", "utf-7", "rot13", "unicode_escape", "idna", "nonsense", "UTF-16")),
    KEY.format("\u00e9").encode("latin-1"),
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 100, b"{}", b"PK\x03\x04",
])
def test_hostile_documents_are_malformed(body):
    with pytest.raises(exception.MalformedXML):
        rest_xml.read_body("DeleteObjects", body if isinstance(body, bytes) else body.encode())


def test_an_empty_body_is_said_to_be_missing():
    for body in (b"", b" \r\n\t"):
        with pytest.raises(exception.MissingRequestBody):
            rest_xml.read_body("DeleteObjects", body)


def test_the_caller_limits_the_size():
    body = KEY.format("a").encode()
    assert rest_xml.read_body("DeleteObjects", body, len(body))
    with pytest.raises(exception.RequestEntityTooLarge):
        rest_xml.read_body("DeleteObjects", body, len(body) - 1)


def test_truncated_documents_are_malformed():
    body = rest_xml.write_body("GetBucketAcl", {"Owner": {"ID": "\u00e9"}, "Grants": [
        {"Grantee": {"Type": "CanonicalUser", "ID": "&"}, "Permission": "READ"}]})
    assert rest_xml.read_body("PutBucketAcl", body)
    for length in range(1, len(body)):
        with pytest.raises(exception.MalformedXML):
            rest_xml.read_body("PutBucketAcl", body[:length])


def test_random_bytes_give_nothing_but_the_errors_that_clients_know():
    rng = random.Random(20260311)
    bodies = {name: rest_xml.write_body(answer, filled(example(content_shape(answer, "output_shape"), rng, 1000)))
              for name, answer in (("PutBucketAcl", "GetBucketAcl"), ("PutBucketTagging", "GetBucketTagging"),
                                   ("PutBucketCors", "GetBucketCors"), ("PutBucketWebsite", "GetBucketWebsite"),
                                   ("PutBucketLifecycleConfiguration", "GetBucketLifecycleConfiguration"),
                                   ("PutObjectRetention", "GetObjectRetention"))}
    pieces = [b"<", b">", b"</", b"/>", b"&", b"&#x0;", b"&lt;", b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?", b"\0",
              b"<!DOCTYPE", b'"', b"=", b"xmlns:", b"\xff", b"\xc3", b"\xed\xa0\x80", b"-", b"9" * 30, b":"]
    outcomes = {"read": 0, "refused": 0}
    for turn in range(6000):
        name = rng.choice(list(bodies))
        if turn % 3 == 0:
            body = rng.randbytes(rng.randint(1, 200))
        else:
            mutable = bytearray(bodies[name])
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(mutable))
                mutable[at:at + rng.randint(0, 6)] = rng.choice(pieces) if turn % 3 == 1 else rng.randbytes(1)
            body = bytes(mutable)
        try:
            rest_xml.read_body(name, body)
            outcomes["read"] += 1
        except (exception.MalformedXML, exception.MissingRequestBody):
            outcomes["refused"] += 1
    assert outcomes["refused"] > 3000 and outcomes["read"] > 10


def test_a_thousand_keys_take_milliseconds():
    item = {"Key": "a/b", "LastModified": 1e9, "ETag": '"e"', "Size": 1, "StorageClass": "STANDARD",
            "Owner": {"ID": "p", "DisplayName": "p"}}
    result = {"Name": "b", "Contents": [item] * 1000}
    rest_xml.write_body("ListObjects", result)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        rest_xml.write_body("ListObjects", result)
        best = min(best, time.perf_counter() - start)
    assert best < 0.2
