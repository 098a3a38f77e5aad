"""The target that is a signed request: who it says it is from, and whether it is right."""

import base64
import hmac
from datetime import UTC, datetime
from functools import cache
from urllib.parse import unquote_plus, unquote_to_bytes

from nova import exception
from nova.auth import claims, signer
from nova.wire.query import parse_pairs
from tests.fuzz.run import Target

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_SECRET = "a secret"
_STAMP, _HTTP_DATE = "20260102T030405Z", "Fri, 02 Jan 2026 03:04:05 GMT"
_FACES = ("s3", "s3-host", "s3-form", "ec2")
_SCOPE = "20260102/us-east-1/{}/aws4_request"
_EXPIRES = str(int(NOW.timestamp()) + 600)
_SHA = signer.EMPTY_SHA256


def _request(data: bytes) -> tuple[str, claims.SignedRequest, list[str]]:
    """The face that is asked, the request, and the lines of the form that it has."""
    lines = data.decode("latin-1").split("\n")
    face, _, rest = lines[0].partition(" ")
    method, _, uri = rest.partition(" ")
    path, _, query = uri.partition("?")
    end = lines.index("") if "" in lines else len(lines)
    headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines[1:end]))
    return (face if face in _FACES else "s3"), claims.SignedRequest(method, path, query, headers), lines[end + 1:]


def _claim(data: bytes) -> claims.Claim | None:
    face, request, form = _request(data)
    if face == "ec2":
        body = "\n".join(form).encode("latin-1")
        return claims.read_ec2(request, parse_pairs(request.query.encode("latin-1")) + parse_pairs(body))
    if face == "s3-form":
        return claims.read_s3_form(request, {name.lower(): value for name, _, value in
                                             (line.partition("=") for line in form)}, NOW)
    return claims.read_s3(request, "bucket" if face == "s3-host" else None)


def _meaning(claim: claims.Claim) -> tuple:
    """What a request of version 4 asks for."""
    query = sorted((unquote_to_bytes(name.replace("+", " ")), unquote_to_bytes(value.replace("+", " ")))
                   for name, _, value in (item.partition("=") for item in claim.request.query.split("&") if item)
                   if unquote_plus(name) != "X-Amz-Signature" or value)
    return (claim.face, claim.request.method, unquote_to_bytes(claim.request.path.encode("latin-1") or b"/"),
            [pair for pair in query if pair[0] != b"X-Amz-Signature"], (claim.request.header("Host") or "").split())


def _signed(template: str) -> bytes:
    """A request whose SIGNATURE is right, as a client that writes everything in the canonical way would send it."""
    form = "POST" if template.startswith("ec2 POST") else ""
    data = template.format(S="0" * 40, V4="AWS4-HMAC-SHA256").encode()
    claim = _claim(data)
    assert claim is not None
    if claim.scheme.startswith("v4"):
        key = signer.signing_key(_SECRET, claim.scope)
        texts = signer._policy(claim) if claim.scheme == "v4-form" else signer._strings_to_sign_v4(
            claim, _payload(claim))
        signature = hmac.digest(key, next(iter(texts)), "sha256").hex()
    else:
        texts = (signer._strings_to_sign_v2(claim) if claim.face == "ec2" else signer._policy(claim)
                 if claim.scheme == "v2-s3-form" else signer._strings_to_sign_v2_s3(claim))
        signature = base64.b64encode(hmac.digest(_SECRET.encode(), next(iter(texts)), claim.digest)).decode()
        if claim.scheme.endswith("query") or form:
            signature = signature.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    return data.replace(b"0" * 40, signature.encode())


def _payload(claim: claims.Claim) -> str:
    return _SHA if claim.face == "ec2" else ""


def _templates() -> list[str]:
    s3, ec2 = _SCOPE.format("s3"), _SCOPE.format("ec2")
    v4 = "{V4} Credential=K:p/" + s3 + ", SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={S}"
    head = f"Host: h:3333\nx-amz-date: {_STAMP}\nx-amz-content-sha256: {_SHA}\nAuthorization: {v4}\n"
    presigned = (f"X-Amz-Algorithm={{V4}}&X-Amz-Credential=K%2F{s3.replace('/', '%2F')}&X-Amz-Date={_STAMP}"
                 "&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature={S}")
    v2 = f"AWSAccessKeyId=K%3Ap&SignatureVersion=2&SignatureMethod=HmacSHA256&Timestamp={NOW:%Y-%m-%dT%H:%M:%SZ}"
    policy = base64.b64encode(b'{"expiration": "2026-01-02T03:04:05Z", "conditions": []}').decode()
    return [
        "s3 GET /bucket/key\n" + head, "s3 GET /b/a%20b/%C3%A9?list-type=2&prefix=a%2Fb&delimiter=\n" + head,
        "s3 PUT /b/k?partNumber=1&uploadId=x+y\n" + head + "Content-Length: 0\n", f"s3 GET /b/k?{presigned}\n"
        "Host: h:3333\n", f"s3-host GET /k?versionId=null&{presigned}\nHost: bucket.h:3333\nRange: bytes=0-1\n",
        f"s3 GET /b/k?acl\nHost: h\nDate: {_HTTP_DATE}\nAuthorization: AWS K:p:{{S}}\n",
        f"s3-host PUT /k?uploads\nHost: bucket.h\nx-amz-date: {_HTTP_DATE}\nx-amz-acl: private\nContent-Type: a/b\n"
        "Authorization: AWS K:{S}\n",
        f"s3 GET /b/k?torrent&AWSAccessKeyId=K&Expires={_EXPIRES}&Signature={{S}}\nHost: h\n",
        f"s3-form POST /b\nHost: h\n\npolicy={policy}\nx-amz-algorithm={{V4}}\nx-amz-credential=K/{s3}\n"
        f"x-amz-date={_STAMP}\nx-amz-signature={{S}}",
        f"s3-form POST /b\nHost: h\n\npolicy={policy}\nAWSAccessKeyId=K:p\nsignature={{S}}",
        f"ec2 GET /?Action=DescribeInstances&{v2}&Signature={{S}}\nHost: h:8773\n",
        f"ec2 POST /services/Cloud\nHost: h:8773\n\nAction=DescribeImages&Owner.1=self&{v2}&Signature={{S}}",
        f"ec2 POST /\nHost: h\nX-Amz-Date: {_STAMP}\nAuthorization: {{V4}} Credential=K/{ec2}, "
        "SignedHeaders=host;x-amz-date, Signature={S}\n\n",
        f"ec2 GET /?Action=DescribeRegions&{presigned.replace('%2Fs3%2F', '%2Fec2%2F')}\nHost: h\n"]


@cache
def _seeds() -> tuple[list[bytes], list[tuple]]:
    """Requests that are signed right, and what those of version 4 mean."""
    seeds = [_signed(template) for template in _templates()]
    return seeds, [_meaning(claim) for claim in map(_claim, seeds)
                   if claim is not None and claim.scheme in ("v4-header", "v4-query")]


def _check(data: bytes) -> str:
    """A request is refused, or verified; what is verified by version 4 asks for what was signed."""
    claim = _claim(data)
    if claim is None:
        return "unsigned"
    try:
        signer.verify(claim, _SECRET, _payload(claim), NOW)
    except exception.SignatureDoesNotMatch:
        return "another signature"
    if claim.scheme in ("v4-header", "v4-query"):
        assert _meaning(claim) in _seeds()[1], "verified, but nobody signed this"
    return "verified"


def signature() -> Target:
    """Signed requests of EC2 and S3, of all schemes."""
    words = ("Authorization: ", "AWS K:x", "AWS4-HMAC-SHA256", "X-Amz-Signature", "X-Amz-Date", "&Signature=",
             "SignedHeaders=", "host;host", "x-amz-meta-a: b\n", "X-Amz-Expires=604801", "Credential=", "/aws4_request",
             "AWSAccessKeyId", "Expires=", "99999999999", "Timestamp=", "Date: ", "x-amz-date: ", "Host: ", "s3-form ",
             "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "UNSIGNED-PAYLOAD", "ec2 ", "\n\n", "expect", "%2B", "HmacSHA1",
             "Mon, 01 Jan 2024 00:00:00 +9999", "1970-01-01T00:00:00+14:00", "20260102T250000Z", "response-expires=")
    return Target(_check, _seeds()[0], [word.encode() for word in words])
