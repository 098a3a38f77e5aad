"""Whether a signature is right: what the client must have signed, and with what key.

Pure functions: no input or output, no clock of their own.  :func:`read_ec2` and :func:`read_s3` (nova.auth.claims) say
who a request claims to be from, the caller finds that access key's secret, and :func:`verify` raises unless the request
was signed with it.  Signatures are compared in constant time.

The path is taken as it is on the wire.  Clients differ in how they percent-encode what they sign (a ``+`` for a
space, an empty sub-resource with or without ``=``), so each check tries a few canonical forms; every one of them
means exactly the request that was received.
"""

import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product
from urllib.parse import quote, unquote_plus, unquote_to_bytes

from nova import exception
from nova.auth.claims import (
    STREAMING,
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED_PAYLOAD,
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryParametersError,
    Claim,
    InvalidArgument,
    MissingSecurityHeader,
    RequestTimeTooSkewed,
    SignedRequest,
    read_ec2,
    read_s3,
    read_s3_form,
    split_access_key,
)

__all__ = [
    "EMPTY_SHA256", "STREAMING", "STREAMING_SIGNED", "STREAMING_SIGNED_TRAILER", "STREAMING_UNSIGNED_TRAILER",
    "UNSIGNED_PAYLOAD", "AccessDenied", "AuthorizationHeaderMalformed", "AuthorizationQueryParametersError",
    "ChunkVerifier", "Claim", "InvalidArgument", "MissingSecurityHeader", "RequestTimeTooSkewed", "SignedRequest",
    "read_ec2", "read_s3", "read_s3_form", "signing_key", "split_access_key", "verify",
]

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_SKEW = timedelta(minutes=15)
#: how the policies of forms are signed
FORMS = ("v4-form", "v2-s3-form")
#: a path that is its own canonical form
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9/_.~-]*")
#: query parameters that belong to the resource of a version 2 S3 signature
_SUB_RESOURCES = frozenset("""
    accelerate acl analytics cors defaultObjectAcl delete inventory lifecycle location logging metrics notification
    object-lock partNumber policy replication requestPayment response-cache-control response-content-disposition
    response-content-encoding response-content-language response-content-type response-expires restore select
    select-type storageClass tagging torrent uploadId uploads versionId versioning versions website
    """.split())


def verify(claim: Claim, secret: str, payload_sha256: str, now: datetime, max_skew: timedelta = MAX_SKEW) -> None:
    """Return if the request was signed with `secret` and its time is right.

    :param payload_sha256: EC2: the hex SHA-256 of the body as received; S3: '' to take what the claim says of the
        payload (the body is then checked against `claim.payload` while it arrives)
    :param now: the time, with a time zone
    :param max_skew: by how much the client's clock may be wrong
    :raises SignatureDoesNotMatch: if it was not
    :raises RequestExpired: EC2: the request is too old, or from the future
    :raises RequestTimeTooSkewed, AccessDenied: S3: the same for a header and for a presigned URL
    """
    _check_time(claim, now, max_skew)
    if claim.scheme in ("v4-header", "v4-query"):
        key = signing_key(secret, claim.scope)
        expected = [_hmac_sha256(key, text).hex() for text in _strings_to_sign_v4(claim, payload_sha256)]
    elif claim.scheme == "v4-form":
        expected = [_hmac_sha256(signing_key(secret, claim.scope), text).hex() for text in _policy(claim)]
    else:
        texts = (_strings_to_sign_v2(claim) if claim.face == "ec2" else
                 _policy(claim) if claim.scheme == "v2-s3-form" else _strings_to_sign_v2_s3(claim))
        expected = [base64.b64encode(hmac.digest(secret.encode(), text, claim.digest)).decode() for text in texts]
    received = claim.signature.encode("utf-8", "surrogateescape")
    if not any([hmac.compare_digest(text.encode(), received) for text in expected]):
        raise exception.SignatureDoesNotMatch()


def _check_time(claim: Claim, now: datetime, max_skew: timedelta) -> None:
    presigned = claim.expires is not None
    early = claim.date is not None and claim.date - max_skew > now
    late = now > claim.expires if claim.expires else claim.date is not None and now > claim.date + max_skew
    if not early and not late:
        return
    if claim.face == "ec2":
        raise exception.RequestExpired()
    if claim.scheme in FORMS and late:
        raise AccessDenied("Invalid according to Policy: Policy expired.")
    if presigned:
        raise AccessDenied("Request has expired" if late else "Request is not valid yet")
    raise RequestTimeTooSkewed()


def _policy(claim: Claim) -> Iterator[bytes]:
    """What is signed of a form: its policy, as it was sent."""
    yield dict(claim.params)["policy"].encode()


# -- version 4 --------------------------------------------------------------------------------------------------------

def signing_key(secret: str, scope: str) -> bytes:
    """The key of version 4 signatures for a scope date/region/service/aws4_request."""
    name = hashlib.sha256(f"{len(scope)}:{scope}{secret}".encode()).digest()
    key = _signing_keys.get(name)
    if key is None:
        key = b"AWS4" + secret.encode()
        for part in scope.split("/"):
            key = _hmac_sha256(key, part.encode())
        if len(_signing_keys) >= _SIGNING_KEYS:
            _signing_keys.popitem(last=False)  # the one that was used least lately
    else:
        _signing_keys.pop(name, None)
    _signing_keys[name] = key
    return key


def _strings_to_sign_v4(claim: Claim, payload_sha256: str) -> Iterator[bytes]:
    request = claim.request
    lines = [f"{name}:{_signed_value(request, name)}\n" for name in claim.signed_headers]
    headers = _wire_bytes(f"{''.join(lines)}\n{';'.join(claim.signed_headers)}")
    for path, query, payload in product(_paths(request.path), _queries_v4(request.query),
                                        _payloads_v4(claim, payload_sha256)):
        canonical = b"\n".join((request.method.encode(), path, query, headers, payload.encode()))
        digest = hashlib.sha256(canonical).hexdigest()
        yield f"AWS4-HMAC-SHA256\n{claim.timestamp}\n{claim.scope}\n{digest}".encode()


def _signed_value(request: SignedRequest, name: str) -> str:
    value = request.by_name.get(name)
    if value is None:
        return "100-continue" if name == "expect" else ""  # a proxy answers and drops it; it has no other value
    return " ".join(value.split())


def _paths(path: str) -> list[bytes]:
    """The path as on the wire and as the specification would have it encoded."""
    wire = _wire_bytes(path or "/")
    if _PLAIN_PATH.fullmatch(wire):
        return [wire]
    return _distinct(wire, quote(unquote_to_bytes(wire), safe="/-_.~").encode())


def _queries_v4(query: str) -> list[bytes]:
    """The sorted query without the signature: encoded as the specification has it, and as on the wire."""
    if not query:
        return [b""]
    encoded, wire = [], []
    for item in _wire_bytes(query).split(b"&"):
        name, _, value = item.partition(b"=")
        if item and name != b"X-Amz-Signature":
            encoded.append((_recoded(name), _recoded(value)))
            wire.append((name, value))
    return _distinct(*(b"&".join(b"%s=%s" % pair for pair in sorted(pairs)) for pairs in (encoded, wire)))


def _payloads_v4(claim: Claim, payload_sha256: str) -> list[str]:
    if claim.face == "s3":
        payload = payload_sha256 or claim.payload
        return list(dict.fromkeys((payload, UNSIGNED_PAYLOAD))) if claim.scheme == "v4-query" else [payload]
    named = claim.request.header("X-Amz-Content-Sha256")
    if named == UNSIGNED_PAYLOAD and payload_sha256 == EMPTY_SHA256:
        return [UNSIGNED_PAYLOAD]  # libcloud says so of a GET; where there is no body, nothing is left unsigned
    return [payload_sha256]


#: signing keys by a digest of secret and scope, the one used last at the end
_signing_keys: OrderedDict[bytes, bytes] = OrderedDict()
_SIGNING_KEYS = 4096


class ChunkVerifier:
    """Checks the signatures inside an aws-chunked body, each of which signs the one before it.

    Rules: Amazon S3 API reference, "Signature calculations for the authorization header: transferring payload in
    multiple chunks", and the same "including trailing headers".

    :param claim: the verified claim of the request
    :param secret: the secret it was verified with
    """

    def __init__(self, claim: Claim, secret: str):
        self._key = signing_key(secret, claim.scope)
        self._head = f"{claim.timestamp}\n{claim.scope}\n"
        self._previous = claim.signature

    def chunk(self, sha256: str, signature: str) -> None:
        """Check the next chunk, whose data have this hex SHA-256 (the last chunk has no data).

        :raises SignatureDoesNotMatch: if the signature is wrong
        """
        self._check(f"AWS4-HMAC-SHA256-PAYLOAD\n{self._head}{self._previous}\n{EMPTY_SHA256}\n{sha256}", signature)

    def trailer(self, headers: list[tuple[str, str]], signature: str) -> None:
        """Check the trailing headers, which come after the last chunk.

        :param headers: (name, value) in the order received, without x-amz-trailer-signature
        :raises SignatureDoesNotMatch: if the signature is wrong
        """
        text = "".join(f"{name.lower().strip()}:{value.strip()}\n" for name, value in headers)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._check(f"AWS4-HMAC-SHA256-TRAILER\n{self._head}{self._previous}\n{digest}", signature)

    def _check(self, text: str, signature: str) -> None:
        expected = _hmac_sha256(self._key, text.encode()).hex()
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogateescape")):
            raise exception.SignatureDoesNotMatch()
        self._previous = expected


# -- version 2 --------------------------------------------------------------------------------------------------------

def _strings_to_sign_v2(claim: Claim) -> Iterator[bytes]:
    pairs = sorted((name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
                   for name, value in claim.params if name != "Signature")
    query = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)
    host = (claim.request.header("Host") or "").lower()
    for path in _paths(claim.request.path):
        yield b"\n".join((claim.request.method.encode(), _wire_bytes(host), path, query.encode()))


def _strings_to_sign_v2_s3(claim: Claim) -> Iterator[bytes]:
    request = claim.request
    query = dict(claim.params)  # of a presigned URL: what would be a header may be a parameter
    amz: dict[str, list[str]] = {}
    for name, value in (*request.headers, *claim.params):
        if name.lower().startswith("x-amz-"):
            amz.setdefault(name.lower(), []).append(" ".join(value.split()))
    headers = b"".join(_wire_bytes(f"{name}:{','.join(values)}\n") for name, values in sorted(amz.items()))
    if claim.scheme == "v2-s3-query":
        date = query["Expires"]
    else:
        date = "" if "x-amz-date" in amz else request.header("Date") or ""
    md5, content_type = (request.header(name) or query.get(name.lower(), query.get(name, ""))
                         for name in ("Content-MD5", "Content-Type"))
    head = _wire_bytes(f"{request.method}\n{md5}\n{content_type}\n{date}\n")
    bucket = f"/{claim.bucket}".encode() if claim.bucket else b""
    paths = _paths(request.path)
    if not claim.bucket and request.path.count("/") == 1 and len(request.path) > 1:
        paths += [path + b"/" for path in paths]  # boto3 signs /bucket/ and sends /bucket
    for path, resource in product(paths, _sub_resources_v2(request.query)):
        yield head + headers + bucket + path + resource


def _sub_resources_v2(query: str) -> list[bytes]:
    """The ``?name=value&...`` of the signed resource: values decoded or as sent, an empty one with or without =."""
    items = [item.partition("=") for item in query.split("&") if item.partition("=")[0] in _SUB_RESOURCES]
    if not items:
        return [b""]
    items.sort(key=lambda item: item[0])
    decoded = [(name, equals, unquote_plus(value)) for name, equals, value in items]
    short = [(name, equals if value else "", value) for name, equals, value in decoded]
    return _distinct(*(b"?" + "&".join("".join(item) for item in form).encode() for form in (decoded, short, items)))


# -- bytes ------------------------------------------------------------------------------------------------------------

def _hmac_sha256(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _wire_bytes(text: str) -> bytes:
    """The bytes that an HTTP server gave as text: header and request lines are read as Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def _encoded(data: bytes) -> str:
    return quote(data, safe="-_.~")


def _recoded(item: bytes) -> bytes:
    return _encoded(unquote_to_bytes(item.replace(b"+", b" "))).encode()


def _distinct(*forms: bytes) -> list[bytes]:
    return list(dict.fromkeys(forms))
