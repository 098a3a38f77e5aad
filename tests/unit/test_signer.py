"""Signatures: what real signers sign is accepted, anything changed afterwards is not.

botocore's signers are the independent oracle; AWS's published examples are the second one.
"""

import hashlib
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from urllib.parse import urlencode, urlsplit

import pytest
from botocore import auth as boto_auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from nova import exception
from nova.auth import signer
from nova.auth.signer import SignedRequest

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEYS = Credentials("testuser:testproj", SECRET)
HOST = "127.0.0.1:8773"
EC2 = f"http://{HOST}/services/Cloud/"
S3 = f"http://{HOST}"


def now() -> datetime:
    return datetime.now(UTC)


def received(request: AWSRequest) -> SignedRequest:
    """What a server sees of a request that botocore has signed."""
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    headers = [(name, value.decode() if isinstance(value, bytes) else value)
               for name, value in prepared.headers.items()]
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("Host", parts.netloc))
    return SignedRequest(prepared.method, parts.path, parts.query, tuple(headers))


def changed(request: SignedRequest, **values) -> SignedRequest:
    fields = {name: getattr(request, name) for name in ("method", "path", "query", "headers")}
    return SignedRequest(**{**fields, **values})


def with_header(request: SignedRequest, name: str, value: str) -> SignedRequest:
    kept = tuple(item for item in request.headers if item[0].lower() != name.lower())
    return changed(request, headers=(*kept, (name, value)))


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def check_ec2(request, params=(), body=b"", at=None, secret=SECRET):
    claim = signer.read_ec2(request, list(params))
    assert claim is not None
    signer.verify(claim, secret, sha256(body), at or now())
    return claim


def check_s3(request, at=None, secret=SECRET, bucket=None):
    claim = signer.read_s3(request, bucket)
    assert claim is not None
    signer.verify(claim, secret, "", at or now())
    return claim


# -- EC2, version 2 ---------------------------------------------------------------------------------------------------

def v2_query(method="POST", **extra):
    values = {"Action": "RunInstances", "Version": "2010-08-31", "UserData": "a+b/c= ~*'ü", **extra}
    request = AWSRequest(method, EC2)
    request.data, request.params = (values, {}) if method == "POST" else ({}, values)
    boto_auth.SigV2Auth(KEYS).add_auth(request)
    wire = SignedRequest(method, "/services/Cloud/", urlencode(values) if method == "GET" else "", (("Host", HOST),))
    return wire, list(values.items())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_v2_query_of_botocore_is_accepted(method):
    claim = check_ec2(*v2_query(method))
    assert (claim.access_key, claim.project, claim.scheme) == ("testuser", "testproj", "v2-query")


def test_v2_query_published_example():
    params = [("AWSAccessKeyId", "AKIAIOSFODNN7EXAMPLE"), ("Action", "DescribeJobFlows"),
              ("SignatureMethod", "HmacSHA256"),
              ("SignatureVersion", "2"), ("Timestamp", "2011-10-03T15:19:30"), ("Version", "2009-03-31"),
              ("Signature", "i91nKc4PWAt0JJIdXwz9HxZCJDdiy6cf/Mj6vPxyYIs=")]
    request = SignedRequest("GET", "/", "", (("Host", "elasticmapreduce.amazonaws.com"),))
    check_ec2(request, params, secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
              at=datetime(2011, 10, 3, 15, 20, tzinfo=UTC))


@pytest.mark.parametrize("change", ["Action", "Version", "Timestamp", "UserData", "AWSAccessKeyId"])
def test_v2_query_changed_parameter_is_refused(change):
    wire, params = v2_query()
    params = [(name, value + "1" if name == change else value) for name, value in params]
    if change == "Timestamp":
        later = f"{now() + timedelta(seconds=90):%Y-%m-%dT%H:%M:%SZ}"
        params = [(name, later if name == change else value) for name, value in params]
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_ec2(wire, params)


@pytest.mark.parametrize("change", [
    lambda r: changed(r, method="GET"), lambda r: changed(r, path="/services/Cloud"),
    lambda r: with_header(r, "Host", "127.0.0.1:8774")])
def test_v2_query_on_another_request_is_refused(change):
    wire, params = v2_query()
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_ec2(change(wire), params)


def test_v2_added_or_removed_parameter_is_refused():
    wire, params = v2_query()
    for other in ([*params, ("DryRun", "true")], [p for p in params if p[0] != "UserData"]):
        with pytest.raises(exception.SignatureDoesNotMatch):
            check_ec2(wire, other)


@pytest.mark.parametrize("minutes", [-16, 16])
def test_v2_clock_skew_of_more_than_15_minutes_is_refused(minutes):
    with pytest.raises(exception.RequestExpired):
        check_ec2(*v2_query(), at=now() + timedelta(minutes=minutes))


def test_v2_clock_skew_of_14_minutes_is_accepted():
    check_ec2(*v2_query(), at=now() + timedelta(minutes=14))


def v2_signed_by_hand(params, digest="sha256"):
    import base64
    import hmac
    from urllib.parse import quote
    text = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(params))
    text = f"GET\n{HOST}\n/services/Cloud\n{text}"
    signature = base64.b64encode(hmac.new(SECRET.encode(), text.encode(), digest).digest()).decode()
    return SignedRequest("GET", "/services/Cloud", "", (("Host", HOST),)), [*params, ("Signature", signature)]


def test_v2_hmac_sha1_and_expires_are_accepted_until_then():
    base = [("AWSAccessKeyId", "a:b:c"), ("SignatureMethod", "HmacSHA1"), ("SignatureVersion", "2"),
            ("Expires", "2030-01-01T00:00:00Z"), ("Action", "X"), ("Tag.10", "x"), ("Tag.2", "y"), ("aa", ""),
            ("Rep", "2"), ("Rep", "1")]
    wire, params = v2_signed_by_hand(base, "sha1")
    claim = check_ec2(wire, params, at=datetime(2029, 12, 31, tzinfo=UTC))
    assert (claim.access_key, claim.project) == ("a:b", "c")
    with pytest.raises(exception.RequestExpired):
        check_ec2(wire, params, at=datetime(2030, 1, 1, 0, 0, 1, tzinfo=UTC))


@pytest.mark.parametrize("missing, error", [
    ("Signature", exception.MissingParameter), ("AWSAccessKeyId", exception.MissingParameter),
    ("SignatureMethod", exception.MissingParameter), ("SignatureVersion", exception.MissingParameter),
    ("Timestamp", exception.MissingParameter)])
def test_v2_half_signed(missing, error):
    wire, params = v2_query()
    with pytest.raises(error):
        signer.read_ec2(wire, [p for p in params if p[0] != missing])


@pytest.mark.parametrize("name, value", [
    ("SignatureVersion", "1"), ("SignatureMethod", "HmacMD5"), ("Timestamp", "yesterday"), ("Timestamp", ""),
    ("Timestamp", "0001-01-01T00:00:00+14:00"), ("Timestamp", "9999-12-31T23:59:59-14:00")])
def test_v2_bad_values(name, value):
    wire, params = v2_query()
    with pytest.raises(exception.IncompleteSignature):
        signer.read_ec2(wire, [(n, value if n == name else v) for n, v in params])


def test_v2_parameter_given_twice_is_refused():
    wire, params = v2_query()
    with pytest.raises(exception.IncompleteSignature):
        signer.read_ec2(wire, [*params, ("AWSAccessKeyId", "someone")])


def test_unsigned_is_none():
    request = SignedRequest("GET", "/", "Action=DescribeInstances", (("Host", HOST),))
    assert signer.read_ec2(request, [("Action", "DescribeInstances")]) is None
    assert signer.read_s3(request) is None


# -- EC2, version 4 ---------------------------------------------------------------------------------------------------

def v4_header(body=b"Action=DescribeInstances&Version=2016-11-15", method="POST", url=EC2, region="nova", service="ec2",
              headers=()):
    request = AWSRequest(method, url, data=body, headers={"Content-Type": "application/x-www-form-urlencoded",
                                                          **dict(headers)})
    boto_auth.SigV4Auth(KEYS, service, region).add_auth(request)
    return received(request), body


@pytest.mark.parametrize("region, service", [("nova", "ec2"), ("", "ec2"), ("0", "127"), ("undefined-4711", "ec2"),
                                             ("us-east-1", "sts")])
def test_v4_header_of_botocore_is_accepted_whatever_its_scope(region, service):
    wire, body = v4_header(region=region, service=service)
    claim = check_ec2(wire, body=body)
    assert (claim.access_key, claim.project, claim.scheme) == ("testuser", "testproj", "v4-header")


def test_v4_header_with_date_instead_of_amz_date():
    wire, body = v4_header(headers={"Date": formatdate(usegmt=True)})
    assert wire.header("X-Amz-Date") is None
    check_ec2(wire, body=body)


def test_v4_header_whitespace_and_repeated_headers():
    wire, body = v4_header(headers={"X-Amz-Note": "  a   b  "})
    check_ec2(wire, body=body)


def test_v4_plus_in_query_is_a_space():
    wire, body = v4_header(b"", "GET", EC2 + "?GroupDescription=acceptance%20run&Action=X&b=%2B&a=")
    assert "acceptance%20run" in wire.query
    check_ec2(changed(wire, query=wire.query.replace("acceptance%20run", "acceptance+run")), body=body)


def test_v4_published_example():
    secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    request = SignedRequest("GET", "/", "Action=ListUsers&Version=2010-05-08", (
        ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"), ("Host", "iam.amazonaws.com"),
        ("X-Amz-Date", "20150830T123600Z"),
        ("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
         "SignedHeaders=content-type;host;x-amz-date, "
         "Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7")))
    check_ec2(request, secret=secret, at=datetime(2015, 8, 30, 12, 40, tzinfo=UTC))


@pytest.mark.parametrize("change", [
    lambda r: changed(r, method="GET"), lambda r: changed(r, path="/services/Cloud"),
    lambda r: changed(r, query="a=b"), lambda r: with_header(r, "Host", "elsewhere"),
    lambda r: with_header(r, "Content-Type", "text/plain")])
def test_v4_header_changed_is_refused(change):
    wire, body = v4_header()
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_ec2(change(wire), body=body)


def test_v4_header_changed_body_or_secret_is_refused():
    wire, body = v4_header()
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_ec2(wire, body=body + b"&DryRun=true")
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_ec2(wire, body=body, secret="other")


def test_v4_header_skew():
    wire, body = v4_header()
    for minutes in (-16, 16):
        with pytest.raises(exception.RequestExpired):
            check_ec2(wire, body=body, at=now() + timedelta(minutes=minutes))


def test_v4_unsigned_payload_of_libcloud_only_without_a_body():
    request = AWSRequest("GET", EC2 + "?Action=X", headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"})
    boto_auth.SigV4Auth(KEYS, "ec2", "nova").add_auth(request)
    wire = received(request)
    check_ec2(wire)
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_ec2(wire, body=b"Action=TerminateInstances")


def test_v4_expect_dropped_by_a_proxy_counts_as_100_continue():
    # curl signs expect; nginx answers it and does not pass it on
    class Signer(boto_auth.SigV4Auth):
        def headers_to_sign(self, request):
            headers = super().headers_to_sign(request)
            headers["expect"] = "100-continue"
            return headers
    request = AWSRequest("POST", EC2, data=b"x")
    Signer(KEYS, "ec2", "nova").add_auth(request)
    check_ec2(received(request), body=b"x")


@pytest.mark.parametrize("authorization", [
    "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256 Credential",
    "AWS4-HMAC-SHA256 Credential=,SignedHeaders=,Signature=",
    "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=x",
    "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, SignedHeaders=host, Signature=x",
    "AWS4-HMAC-SHA256 Credential=a/20261120/r/s/aws4_request, SignedHeaders=date, Signature=x",
    "AWS4-HMAC-SHA256 Credential=a/20261120/r/s/other, SignedHeaders=host, Signature=x",
    "AWS4-HMAC-SHA256 Credential=a/20261120/r/s/aws4_request, Credential=b, SignedHeaders=host, Signature=x"])
def test_v4_malformed_header_is_incomplete(authorization):
    wire = SignedRequest("GET", "/", "",
                         (("Host", HOST), ("X-Amz-Date", "20261120T000000Z"), ("Authorization", authorization)))
    with pytest.raises(exception.IncompleteSignature):
        signer.read_ec2(wire, [])
    with pytest.raises(exception.S3Error):
        signer.read_s3(wire)


def test_other_authorization_kind():
    wire = SignedRequest("GET", "/", "", (("Authorization", "Basic eDp5"),))
    with pytest.raises(exception.AuthFailure):
        signer.read_ec2(wire, [])
    with pytest.raises(exception.S3Error):
        signer.read_s3(wire)


def test_two_ways_of_signing_are_refused():
    wire, params = v2_query()
    with pytest.raises(exception.IncompleteSignature):
        signer.read_ec2(with_header(wire, "Authorization", "AWS4-HMAC-SHA256 x"), params)


@pytest.mark.parametrize("when, fails", [(0, False), (3590, False), (3610, True), (-1000, True)])
def test_v4_presigned_ec2(when, fails):
    request = AWSRequest("GET", EC2 + "?Action=DescribeInstances&Version=2016-11-15&Note=a%20b")
    boto_auth.SigV4QueryAuth(KEYS, "ec2", "nova", expires=3600).add_auth(request)
    wire = received(request)
    if fails:
        with pytest.raises(exception.RequestExpired):
            check_ec2(wire, at=now() + timedelta(seconds=when))
    else:
        assert check_ec2(wire, at=now() + timedelta(seconds=when)).scheme == "v4-query"


# -- S3, version 4 ----------------------------------------------------------------------------------------------------

KEY_PATHS = ["/bucket/plain", "/bucket/a%20b%2Bc%C3%BC", "/bucket//x/../y", "/bucket/with(paren)!*'~", "/"]


def s3_v4(method="PUT", path="/bucket/key", query="", body=b"hello", **headers):
    request = AWSRequest(method, S3 + path + ("?" + query if query else ""), data=body, headers=headers)
    boto_auth.S3SigV4Auth(KEYS, "s3", "nova").add_auth(request)
    return received(request)


@pytest.mark.parametrize("path", KEY_PATHS)
def test_s3_v4_header(path):
    claim = check_s3(s3_v4(path=path))
    assert claim.payload == sha256(b"hello") and claim.face == "s3"


@pytest.mark.parametrize("query",
                         ["uploads", "uploads=", "list-type=2&prefix=a%20b&delimiter=%2F", "x-id=PutObject",
                          "partNumber=1&uploadId=x"])
def test_s3_v4_queries(query):
    check_s3(s3_v4(query=query))


def test_s3_v4_path_that_a_client_encoded_less_on_the_wire():
    wire = s3_v4(path="/bucket/a%28b%29")
    check_s3(changed(wire, path="/bucket/a(b)"))


def test_s3_v4_unsigned_amz_header_is_refused():
    wire = s3_v4()
    with pytest.raises(signer.AccessDenied):
        check_s3(with_header(wire, "x-amz-copy-source", "/other/secret"))


def test_s3_v4_skew_and_missing_payload_hash():
    wire = s3_v4()
    with pytest.raises(signer.RequestTimeTooSkewed):
        check_s3(wire, at=now() + timedelta(minutes=16))
    kept = tuple(item for item in wire.headers if item[0].lower() != "x-amz-content-sha256")
    with pytest.raises(signer.MissingSecurityHeader):
        check_s3(changed(wire, headers=kept))
    with pytest.raises(signer.InvalidArgument):
        check_s3(with_header(wire, "X-Amz-Content-SHA256", "STREAMING-SOMETHING"))


def presigned_v4(expires=600, **headers):
    request = AWSRequest("GET", S3 + "/bucket/a%20b?response-content-type=a%2Fb", headers=headers)
    boto_auth.S3SigV4QueryAuth(KEYS, "s3", "nova", expires=expires).add_auth(request)
    return received(request)


def test_s3_v4_presigned():
    claim = check_s3(presigned_v4())
    assert (claim.scheme, claim.payload, claim.project) == ("v4-query", "UNSIGNED-PAYLOAD", "testproj")
    with pytest.raises(signer.AccessDenied):
        check_s3(presigned_v4(), at=now() + timedelta(seconds=601))
    with pytest.raises(exception.SignatureDoesNotMatch):
        wire = presigned_v4()
        check_s3(changed(wire, query=wire.query.replace("Expires=600", "Expires=601")))
    with pytest.raises(signer.AuthorizationQueryParametersError):
        check_s3(presigned_v4(expires=700000))


def test_s3_v4_presigned_is_for_one_method_and_key():
    wire = presigned_v4()
    for other in (changed(wire, method="PUT"), changed(wire, path="/bucket/other"),
                  changed(wire, query=wire.query + "&versionId=1")):
        with pytest.raises(exception.SignatureDoesNotMatch):
            check_s3(other)


def test_s3_v4_published_get_object_example():
    request = SignedRequest("GET", "/test.txt", "", (
        ("Host", "examplebucket.s3.amazonaws.com"), ("Range", "bytes=0-9"),
        ("x-amz-content-sha256", signer.EMPTY_SHA256),
        ("x-amz-date", "20130524T000000Z"),
        ("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
         "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
         "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")))
    check_s3(request, secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", at=datetime(2013, 5, 24, tzinfo=UTC))


def test_s3_v4_published_presigned_example():
    query = ("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
             "aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
             "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")
    request = SignedRequest("GET", "/test.txt", query, (("Host", "examplebucket.s3.amazonaws.com"),))
    check_s3(request, secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", at=datetime(2013, 5, 24, 1, tzinfo=UTC))


def streaming_claim():
    request = SignedRequest("PUT", "/examplebucket/chunkObject.txt", "", (
        ("Host", "s3.amazonaws.com"), ("x-amz-date", "20130524T000000Z"), ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("Content-Encoding", "aws-chunked"), ("x-amz-decoded-content-length", "66560"), ("Content-Length", "66824"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("Authorization",
         "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders="
         "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;"
         "x-amz-storage-class,Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9")))
    return check_s3(request, secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", at=datetime(2013, 5, 24, tzinfo=UTC))


def test_s3_v4_published_chunks_example():
    chunks = signer.ChunkVerifier(streaming_claim(), "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    chunks.chunk(sha256(b"a" * 65536), "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648")
    chunks.chunk(sha256(b"a" * 1024), "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497")
    chunks.chunk(signer.EMPTY_SHA256, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9")


def test_s3_v4_chunk_out_of_order_is_refused():
    chunks = signer.ChunkVerifier(streaming_claim(), "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    with pytest.raises(exception.SignatureDoesNotMatch):
        chunks.chunk(sha256(b"a" * 1024), "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497")


def test_s3_v4_published_trailer_example():
    request = SignedRequest("PUT", "/examplebucket/chunkObject.txt", "", (
        ("Host", "s3.amazonaws.com"), ("x-amz-date", "20130524T000000Z"), ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("Content-Encoding", "aws-chunked"), ("x-amz-decoded-content-length", "66560"),
        ("x-amz-trailer", "x-amz-checksum-crc32c"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
        ("Authorization",
         "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders="
         "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer,"
         "Signature=106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e")))
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    chunks = signer.ChunkVerifier(check_s3(request, secret=secret, at=datetime(2013, 5, 24, tzinfo=UTC)), secret)
    chunks.chunk(sha256(b"a" * 65536), "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2")
    chunks.chunk(sha256(b"a" * 1024), "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7")
    chunks.chunk(signer.EMPTY_SHA256, "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992")
    chunks.trailer([("x-amz-checksum-crc32c", "sOO8/Q==")],
                   "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435")


# -- S3, version 2 ----------------------------------------------------------------------------------------------------

def s3_v2(method="PUT", path="/bucket/key", query="", auth_path=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = AWSRequest(method, S3 + path + ("?" + query if query else ""), headers=headers, auth_path=auth_path)
    boto_auth.HmacV1Auth(KEYS).add_auth(request)
    return received(request)


@pytest.mark.parametrize("path", KEY_PATHS)
def test_s3_v2_header(path):
    claim = check_s3(s3_v2(path=path, x_amz_meta_color="blue", Content_Type="text/plain", Content_MD5="x=="))
    assert (claim.access_key, claim.project, claim.scheme) == ("testuser", "testproj", "v2-s3-header")


@pytest.mark.parametrize("query", ["acl", "uploads", "prefix=x&max-keys=1", "uploadId=a%2Bb&partNumber=2", "location",
                                   "response-content-type=text%2Fplain", "x-id=PutObject"])
def test_s3_v2_queries(query):
    check_s3(s3_v2(query=query))


@pytest.mark.parametrize("name", ["uploads", "versioning"])
def test_s3_v2_empty_sub_resource_sent_with_equals_sign(name):
    check_s3(changed(s3_v2(query=name), query=name + "="))


def test_s3_v2_amz_date_takes_the_place_of_date():
    import base64
    import hmac
    date = formatdate(usegmt=True)
    text = f"GET\n\n\n\nx-amz-date:{date}\n/bucket/"
    signature = base64.b64encode(hmac.new(SECRET.encode(), text.encode(), "sha1").digest()).decode()
    check_s3(SignedRequest("GET", "/bucket/", "", (("x-amz-date", date), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                                                   ("Authorization", f"AWS testuser:testproj:{signature}"))))


def test_s3_v2_virtual_host():
    wire = s3_v2(path="/key", auth_path="/bucket/key")
    check_s3(wire, bucket="bucket")
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_s3(wire)


def test_s3_v2_changes_are_refused():
    wire = s3_v2(x_amz_meta_color="blue")
    for other in (changed(wire, method="DELETE"), changed(wire, path="/bucket/other"), changed(wire, query="acl"),
                  with_header(wire, "x-amz-meta-color", "red"), with_header(wire, "Content-Type", "x/y"),
                  with_header(wire, "x-amz-acl", "public-read")):
        with pytest.raises(exception.SignatureDoesNotMatch):
            check_s3(other)


def test_s3_v2_time():
    wire = s3_v2()
    with pytest.raises(signer.RequestTimeTooSkewed):
        check_s3(wire, at=now() - timedelta(minutes=16))
    for date in ("", "soon", "Thu, 99 Jan 1970 00:00:00 GMT"):
        with pytest.raises(signer.AccessDenied):
            check_s3(with_header(wire, "Date", date))


@pytest.mark.parametrize("authorization", ["AWS", "AWS x", "AWS :sig", "AWS a:"])
def test_s3_v2_malformed(authorization):
    with pytest.raises(signer.InvalidArgument):
        signer.read_s3(SignedRequest("GET", "/", "", (("Authorization", authorization),)))


def presigned_v2(method="GET", expires=600, **headers):
    request = AWSRequest(method, S3 + "/bucket/a%20b?response-content-type=a%2Fb", headers=headers)
    boto_auth.HmacV1QueryAuth(KEYS, expires=expires).add_auth(request)
    # what was a header of the signed request is a parameter now
    wire = received(request)
    return changed(wire, headers=(("Host", HOST),))


def test_s3_v2_presigned():
    claim = check_s3(presigned_v2())
    assert (claim.access_key, claim.project, claim.scheme) == ("testuser", "testproj", "v2-s3-query")
    with pytest.raises(signer.AccessDenied):
        check_s3(presigned_v2(), at=now() + timedelta(seconds=601))
    with pytest.raises(exception.SignatureDoesNotMatch):
        check_s3(changed(presigned_v2(), method="DELETE"))


def test_s3_v2_presigned_with_headers_moved_into_the_query():
    check_s3(presigned_v2("PUT", **{"x-amz-acl": "private", "Content-Type": "text/plain"}))


def test_s3_v2_presigned_with_a_bare_colon():
    wire = presigned_v2()
    assert "testuser%3Atestproj" in wire.query
    check_s3(changed(wire, query=wire.query.replace("%3A", ":")))


@pytest.mark.parametrize("query",
                         ["AWSAccessKeyId=a", "AWSAccessKeyId=a&Signature=b", "AWSAccessKeyId=a&Signature=b&Expires=x",
                                   "AWSAccessKeyId=a&Signature=b&Expires=1&Expires=2"])
def test_s3_v2_presigned_malformed(query):
    with pytest.raises(signer.AccessDenied):
        signer.read_s3(SignedRequest("GET", "/", query, ()))


def test_access_key_is_cut_at_the_last_colon():
    assert signer.split_access_key("a:b:c") == ("a:b", "c")
    assert signer.split_access_key("abc") == ("abc", None)


def test_signing_keys_are_remembered_by_secret_and_scope_and_in_a_bounded_number(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signer, "_signing_keys", OrderedDict())
    monkeypatch.setattr(signer, "_SIGNING_KEYS", 3)
    scopes = [f"2026112{n}/nova/ec2/aws4_request" for n in range(5)]
    keys = {(secret, scope): signer.signing_key(secret, scope) for secret in ("a", "b") for scope in scopes}
    assert len(set(keys.values())) == 10
    assert len(signer._signing_keys) == 3
    assert all(signer.signing_key(*of) == key for of, key in keys.items())
