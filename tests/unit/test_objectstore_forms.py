"""Forms, CORS rules, tags and lifecycle rules, without a server."""

import base64
import dataclasses
import json
import random
from datetime import UTC, datetime

import pytest

from nova.objectstore import buckets, cors, errors, lifecycle, post_policy, tags
from nova.objectstore.forms import MAX_FIELDS, Field, FileBegins, FileEnds, Parser, boundary_of
from nova.objectstore.models import Bucket, Object
from nova.wire import rest_xml

# -- forms ------------------------------------------------------------------------------------------------------------

BOUNDARY = b"XbX"


def form(*parts: tuple[str, bytes], end: bytes = b"--\r\n") -> bytes:
    """A form of parts, each with its disposition behind form-data."""
    body = b"".join(b"--XbX\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), value)
                    for head, value in parts)
    return body + b"--XbX" + end


def read(body: bytes, pieces) -> tuple[dict[str, str], str | None, bytes, bool]:
    parser, fields, filename, data, over = Parser(BOUNDARY), {}, None, b"", False
    for piece in pieces(body):
        for event in parser.feed(piece):
            if isinstance(event, Field):
                fields[event.name] = event.value
            elif isinstance(event, FileBegins):
                filename = event.filename
            elif isinstance(event, FileEnds):
                over = True
            else:
                data += event
    parser.finish()
    return fields, filename, data, over


def by(size: int):
    return lambda body: (body[i:i + size] for i in range(0, len(body), size))


CONTENTS = [b"", b"x", b"\r\n", b"\r\n--XbXy not the end", b"\r\n--Xb", b"--XbX--", b"\r\r\n--XbX-",
            b"a\r\n--XbX- b\r\n", b"\r\n--XbX \t x" * 30, bytes(range(256)) * 20]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10**6])
def test_a_form_in_pieces_of_any_size(content, size):
    body = form(('name="key"', b"k"), ('name="Content-Type"; filename="strange"', "täxt\r\n--XbXy".encode()),
                ('name="file"; filename="C:\\dir\\a b.txt"', content), ('name="submit"', b"after"))
    assert read(body, by(size)) == ({"key": "k", "Content-Type": "täxt\r\n--XbXy"}, "a b.txt", content, True)


def test_a_form_in_random_pieces():
    rng = random.Random(5)
    for _ in range(300):
        content = bytes(rng.choice(b"\r\n-Xb ") for _ in range(rng.randrange(60)))
        if b"\r\n--XbX" in b"\r\n" + content:
            continue

        def pieces(body: bytes):
            while body:
                size = rng.randrange(1, 9)
                yield body[:size]
                body = body[size:]
        assert read(form(('name="key"', b"k"), ('name="file"', content)), pieces)[2] == content


def test_names_of_files():
    for head, expected in (('name="file"; filename="a/b/c"', "c"), ('name=file; filename=plain', "plain"),
                           ('name="file"; filename="a \\"b\\""', 'a "b"'), ('name="file"', ""),
                           ("name=\"file\"; filename*=UTF-8''%c3%a4.txt", "ä.txt"),
                           ('filename="x"; name="FILE"', "x")):
        assert read(form((head, b"1")), by(100))[1] == expected


@pytest.mark.parametrize("body", [
    b"", b"no form at all", form(('name="key"', b"k"), ('name="file"', b"x"))[:-9], form(('nothing="1"', b"")),
    form(('name="key"', b"\xff"), ('name="file"', b"x")), b"--XbX\r\nno header\r\n\r\n\r\n--XbX--",
    b"--XbX\r\nContent-Disposition: attachment; name=\"file\"\r\n\r\n\r\n--XbX--"])
@pytest.mark.parametrize("size", [1, 10**6])
def test_what_is_no_form(body, size):
    with pytest.raises(errors.MalformedPOSTRequest):
        read(body, by(size))


def test_a_form_without_a_file():
    with pytest.raises(errors.InvalidArgument, match="exactly one file"):
        read(form(('name="key"', b"k")), by(3))


@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_the_fields_are_limited(size):
    room = MAX_FIELDS - len(form(('name="a"', b""), ('name="file"', b""), end=b"")) + len(b"\r\n--XbX")
    assert read(form(('name="a"', b"v" * room), ('name="file"', b"x" * 50_000)), by(size))[2] == b"x" * 50_000
    with pytest.raises(errors.MaxPostPreDataLengthExceeded):
        read(form(('name="a"', b"v" * (room + 1)), ('name="file"', b"x")), by(size))
    with pytest.raises(errors.MaxPostPreDataLengthExceeded):
        read(b"preamble" * 5000, by(size))


def test_a_file_full_of_almost_boundaries_is_not_kept():
    parser, kept = Parser(BOUNDARY), []
    list(parser.feed(form(('name="file"', b""), end=b"")[:-len(b"\r\n--XbX")]))
    for _ in range(200):
        kept.append(len(b"".join(e for e in parser.feed(b"\r\n--XbXno" * 1000) if isinstance(e, bytes))))
    assert sum(kept) >= 200 * 1000 * 9 - 100 and len(parser._buffer) < 100


def test_boundaries():
    assert boundary_of('multipart/form-data; charset=utf-8; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Form-Data; Boundary=----x") == b"----x"
    for wrong in ("multipart/form-data", 'multipart/form-data; boundary=""',
                  "multipart/form-data; boundary=" + "x" * 300):
        with pytest.raises(errors.MalformedPOSTRequest):
            boundary_of(wrong)
    with pytest.raises(errors.PreconditionFailed):
        boundary_of("application/x-www-form-urlencoded")


# -- policies ---------------------------------------------------------------------------------------------------------

def policy(*conditions, expiration="2030-01-01T00:00:00.000Z") -> str:
    return base64.b64encode(json.dumps({"expiration": expiration, "conditions": conditions}).encode()).decode()


def test_a_policy():
    found = post_policy.read(policy({"bucket": "b", "ACL": "private"}, ["starts-with", "$Key", "u/"],
                                    ["EQ", "$x-a", "1"], ["content-length-range", 1, "10"],
                                    ["content-length-range", 0, 12]))
    assert (found.expiration, found.smallest, found.largest) == (datetime(2030, 1, 1, tzinfo=UTC), 1, 10)
    right = {"key": "u/x", "acl": "private", "x-a": "1", "policy": "p", "x-amz-signature": "s", "x-ignore-me": "1"}
    post_policy.check(found, right, "b")
    for changed, bucket in (({"key": "v"}, "b"), ({"acl": "public-read"}, "b"), ({"x-a": "2"}, "b"), ({}, "c"),
                            ({"more": "1"}, "b"), ({"bucket": "b"}, "c")):
        with pytest.raises(errors.AccessDenied, match="Invalid according to Policy"):
            post_policy.check(found, right | changed, bucket)
    post_policy.check_size(found, 10)
    with pytest.raises(errors.EntityTooLarge):
        post_policy.check_size(found, 11)
    with pytest.raises(errors.EntityTooSmall):
        post_policy.check_size(found, 0)


def test_each_content_type_must_begin_right():
    found = post_policy.read(policy(["starts-with", "$content-type", "image/"]))
    post_policy.check(found, {"content-type": "image/png, image/gif"}, "b")
    with pytest.raises(errors.AccessDenied):
        post_policy.check(found, {"content-type": "image/png,text/html"}, "b")


@pytest.mark.parametrize("text", [
    "", "####", base64.b64encode(b"{").decode(), base64.b64encode(b"[]").decode(), base64.b64encode(b"{}").decode(),
    base64.b64encode(b"[" * 10000).decode(),
    base64.b64encode(b'{"expiration": "2030-01-01T00:00:00Z"}').decode(),
    policy(["eq", "$a"]), policy(["ends-with", "$a", "b"]), policy(["eq", "a", "b"]), policy("x"), policy({"a": 1}),
    policy(["content-length-range", -1, 5]), policy(["content-length-range", True, 5]),
    policy(expiration="tomorrow"), policy(expiration=5), policy(expiration="9999-12-31T00:00:00Z")])
def test_policies_that_are_none(text):
    with pytest.raises(errors.InvalidPolicyDocument):
        post_policy.read(text)


# -- CORS -------------------------------------------------------------------------------------------------------------

def rule(**more) -> dict:
    return {"AllowedMethods": ["GET"], "AllowedOrigins": ["http://a.example"], **more}


@pytest.mark.parametrize(("pattern", "origin", "expected"), [
    ("http://a.example", "http://a.example", True), ("http://a.example", "http://A.example", False),
    ("*", "null", True), ("http://*.example", "http://b.example", True), ("http://*.example", "http://.example", True),
    ("http://*.example", "https://b.example", False), ("aXa*aXa", "aXa", False), ("http://a*", "http://a", True)])
def test_origins(pattern, origin, expected):
    found = cors.answer({"CORSRules": [rule(AllowedOrigins=[pattern])]}, origin, "GET")
    assert bool(found) == expected


def test_the_first_rule_that_allows_all_of_it_is_taken():
    rules = {"CORSRules": [rule(MaxAgeSeconds=1),
                           rule(AllowedHeaders=["X-*"], MaxAgeSeconds=0, ExposeHeaders=["ETag"])]}
    assert cors.answer(rules, "http://a.example", "GET")["Access-Control-Max-Age"] == "1"
    found = cors.answer(rules, "http://a.example", "GET", "x-One, X-TWO")
    assert found["Access-Control-Max-Age"] == "0" and found["Access-Control-Allow-Headers"] == "x-one, x-two"
    assert found["Access-Control-Allow-Credentials"] == "true" and found["Access-Control-Expose-Headers"] == "ETag"
    assert cors.answer(rules, "http://a.example", "GET", "x-one, other") == {}
    assert cors.answer(rules, "http://a.example", "PUT") == {}
    anybody = cors.answer({"CORSRules": [rule(AllowedOrigins=["*"])]}, "http://a.example", "GET")
    assert anybody["Access-Control-Allow-Origin"] == "*" and "Access-Control-Allow-Credentials" not in anybody


@pytest.mark.parametrize("wrong", [
    rule(AllowedMethods=["PATCH"]), rule(AllowedMethods=["get"]), rule(AllowedOrigins=["*a*"]),
    rule(AllowedOrigins=[""]), rule(AllowedHeaders=["*-*"]), rule(ExposeHeaders=["x-*"]),
    rule(ExposeHeaders=["a\r\nb: c"]), rule(MaxAgeSeconds=-1), rule(ID="i" * 256)])
def test_cors_rules_that_are_refused(wrong):
    with pytest.raises(errors.InvalidRequest):
        cors.check({"CORSRules": [wrong]})


def test_a_hundred_cors_rules():
    cors.check({"CORSRules": [rule()] * 100})
    with pytest.raises(errors.InvalidRequest, match="100"):
        cors.check({"CORSRules": [rule()] * 101})


# -- tags -------------------------------------------------------------------------------------------------------------

def test_tags_of_a_header():
    assert tags.from_header({}) == {}
    found = tags.from_header({"x-amz-tagging": "a=1&b+c=%C3%A4%3D&empty="})
    assert found == {"a": "1", "b c": "ä=", "empty": ""}
    assert tags.from_header({"x-amz-tagging": tags.to_header(found)}) == found
    for wrong in ("a=1&a=2", "%ff=1"):
        with pytest.raises(errors.InvalidArgument):
            tags.from_header({"x-amz-tagging": wrong})


@pytest.mark.parametrize("pairs", [
    [("", "v")], [("k" * 129, "v")], [("k", "v" * 257)], [("k", "a<b")], [("k!", "")], [("k", "\n")], [("aws:x", "1")],
    [("k", "1"), ("k", "2")]])
def test_tags_that_are_refused(pairs):
    with pytest.raises(errors.InvalidTag):
        tags.check(pairs, 10)


def test_the_most_tags():
    pairs = [(f"{i}" + "k" * 127, "ä" * 256) for i in range(10)]
    assert len(tags.check(pairs, 10)) == 10
    with pytest.raises(errors.BadRequest, match="10"):
        tags.check([*pairs, ("x", "")], 10)


# -- lifecycle --------------------------------------------------------------------------------------------------------

def lifecycle_rules(*rules: str) -> dict:
    body = "".join(f"<Rule>{r}<Status>Enabled</Status></Rule>" for r in rules)
    return rest_xml.read_body("PutBucketLifecycleConfiguration",
                              f"<LifecycleConfiguration>{body}</LifecycleConfiguration>".encode())


DAYS = "<Expiration><Days>1</Days></Expiration>"


@pytest.mark.parametrize(("xml", "error"), [
    ("<Filter/>", errors.InvalidRequest),
    (DAYS, errors.MalformedXML),
    (f"<Filter/><Prefix/>{DAYS}", errors.InvalidRequest),
    ("<Filter/><Expiration><Days>0</Days></Expiration>", errors.InvalidArgument),
    ("<Filter/><Expiration/>", errors.MalformedXML),
    ("<Filter/><Expiration><Days>1</Days><Date>2030-01-01T00:00:00Z</Date></Expiration>", errors.MalformedXML),
    ("<Filter/><Expiration><Date>2030-01-01T01:00:00Z</Date></Expiration>", errors.InvalidArgument),
    (f"<ID>{'i' * 256}</ID><Filter/>{DAYS}", errors.InvalidArgument),
    (f"<Filter/>{DAYS}<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>",
     errors.NotImplementedYet),
    (f"<Filter><Prefix>a</Prefix><ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></Filter>{DAYS}", errors.MalformedXML),
    (f"<Filter><And><Prefix>a</Prefix></And></Filter>{DAYS}", errors.MalformedXML),
    (f"<Filter><Tag><Key>a!</Key><Value/></Tag></Filter>{DAYS}", errors.InvalidTag),
    (f"<Filter><And><ObjectSizeGreaterThan>9</ObjectSizeGreaterThan><ObjectSizeLessThan>9</ObjectSizeLessThan></And>"
     f"</Filter>{DAYS}", errors.InvalidRequest),
    ("<Filter><Tag><Key>a</Key><Value/></Tag></Filter><AbortIncompleteMultipartUpload><DaysAfterInitiation>1"
     "</DaysAfterInitiation></AbortIncompleteMultipartUpload>", errors.InvalidRequest),
    ("<Filter><ObjectSizeLessThan>5</ObjectSizeLessThan></Filter><Expiration><ExpiredObjectDeleteMarker>true"
     "</ExpiredObjectDeleteMarker></Expiration>", errors.InvalidRequest),
    ("<Filter/><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays><NewerNoncurrentVersions>101"
     "</NewerNoncurrentVersions></NoncurrentVersionExpiration>", errors.InvalidArgument),
])
def test_lifecycle_rules_that_are_refused(xml, error):
    with pytest.raises(error):
        lifecycle.read(lifecycle_rules(xml))


def test_lifecycle_ids_are_unique_and_given():
    kept = lifecycle.read(lifecycle_rules(f"<Filter/>{DAYS}", f"<ID>x</ID><Filter/>{DAYS}"))["Rules"]
    assert kept[0]["ID"] and kept[1]["ID"] == "x"
    with pytest.raises(errors.InvalidArgument, match="unique"):
        lifecycle.read(lifecycle_rules(*[f"<ID>x</ID><Filter/>{DAYS}"] * 2))
    assert len(lifecycle.read(lifecycle_rules(*[f"<Filter/>{DAYS}"] * 1000))["Rules"]) == 1000
    with pytest.raises(errors.MalformedXML):
        lifecycle.read(lifecycle_rules(*[f"<Filter/>{DAYS}"] * 1001))
    with pytest.raises(errors.InvalidRequest, match="V2"):
        lifecycle.read(lifecycle_rules(f"<Filter/>{DAYS}", f"<Prefix/>{DAYS}"))


def at(text: str) -> float:
    return datetime.fromisoformat(text + "+00:00").timestamp()


def an_object(key: str, size: int = 5, modified: float = 0, **tags_: str) -> Object:
    return Object("i", bucket="b", key=key, project_id="p", file="f", size=size, md5="", sha256="", etag="",
                  modified=modified, tags=tags_)


def test_days_end_at_midnight():
    """The example of Amazon's user guide."""
    assert lifecycle.due(at("2014-01-15T10:30:00"), 3) == at("2014-01-19T00:00:00")
    assert lifecycle.due(at("2014-01-15T00:00:00"), 3) == at("2014-01-19T00:00:00")
    assert lifecycle.due(at("2014-01-15T23:59:59"), 3) == at("2014-01-19T00:00:00")


def test_the_earliest_rule_that_chooses_an_object():
    both = ("<Filter><And><Prefix>l/</Prefix><Tag><Key>t</Key><Value>1</Value></Tag><ObjectSizeGreaterThan>3"
            "</ObjectSizeGreaterThan><ObjectSizeLessThan>10</ObjectSizeLessThan></And></Filter>")
    bucket = Bucket("b", project_id="p", created=0, configuration={"lifecycle": lifecycle.read(lifecycle_rules(
        f"<ID>and</ID>{both}{DAYS}",
        "<ID>by date</ID><Filter/><Expiration><Date>1970-01-11T00:00:00Z</Date></Expiration>"))})
    rules = lifecycle.rules_of(bucket)

    def expires(*args, **more) -> tuple[float, str]:
        moment, chosen = lifecycle.expiration(rules, an_object(*args, **more))
        return moment / lifecycle.DAY, chosen.id
    assert expires("l/x", t="1") == (2, "and")
    for other in (("m", 5), ("l/x", 3), ("l/x", 10)):
        assert expires(*other, t="1") == (10, "by date")
    assert expires("l/x") == expires("l/x", t="2") == (10, "by date")
    assert lifecycle.headers(bucket, an_object("m")) == {
        "x-amz-expiration": 'expiry-date="Sun, 11 Jan 1970 00:00:00 GMT", rule-id="by%20date"'}


def test_a_rule_that_is_disabled_does_nothing():
    kept = lifecycle.read(lifecycle_rules(f"<Prefix/>{DAYS}"))
    kept["Rules"][0]["Status"] = "Disabled"
    bucket = Bucket("b", project_id="p", created=0, configuration={"lifecycle": kept})
    assert lifecycle.rules_of(bucket) == [] and lifecycle.headers(bucket, an_object("x")) == {}


def rules_for(xml: str) -> list[lifecycle.Rule]:
    kept = lifecycle.read(lifecycle_rules(f"<Filter/>{xml}"))
    return lifecycle.rules_of(Bucket("b", project_id="p", created=0, configuration={"lifecycle": kept}))


def test_versions_expire_when_they_have_not_been_current_for_long():
    days = "<NoncurrentVersionExpiration><NoncurrentDays>5</NoncurrentDays>{}</NoncurrentVersionExpiration>"
    rules, version = rules_for(days.format("")), an_object("k")

    def is_over(day: float, newer: int = 0) -> bool:
        return lifecycle.version_is_over(rules, version, 10 * lifecycle.DAY, newer, day * lifecycle.DAY)
    assert not is_over(15.9) and is_over(16)
    rules = rules_for(days.format("<NewerNoncurrentVersions>2</NewerNoncurrentVersions>"))
    assert not is_over(1000, 0) and not is_over(1000, 1) and is_over(1000, 2) and not is_over(15, 2)
    rules = rules_for(DAYS)
    assert not is_over(1000, 1000)


def test_a_delete_marker_with_nothing_behind_it_is_removed():
    marker = dataclasses.replace(an_object("k", size=0, modified=3 * lifecycle.DAY), is_marker=True)
    asked = rules_for("<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>")
    assert lifecycle.marker_is_over(asked, marker, 0)
    by_age = rules_for("<Expiration><Days>2</Days></Expiration>")
    assert not lifecycle.marker_is_over(by_age, marker, 5 * lifecycle.DAY)
    assert lifecycle.marker_is_over(by_age, marker, 6 * lifecycle.DAY)
    assert not lifecycle.marker_is_over(rules_for("<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>"
                                                  "</NoncurrentVersionExpiration>"), marker, 1e12)


# -- names of buckets -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a..b", "a.-b", "a-.b", "xn--abc", "sthree-x", "abc-s3alias", "abc--ol-s3",
                                  "abc.mrap", "abc--x-s3", "abc-", "abc.", ".abc", "-abc", "10.0.0.1",
                                  "amzn-s3-demo-x"])
def test_bucket_names_that_s3_keeps_or_refuses(name):
    with pytest.raises(errors.InvalidBucketName):
        buckets.check_name(name)


@pytest.mark.parametrize("name", ["A_B", "abc", "a.b-c", "1.2.3", "x" * 63])
def test_bucket_names_that_will_do(name):
    buckets.check_name(name)
