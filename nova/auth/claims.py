"""Who says they signed a request: reading the signatures of EC2 and S3 requests.

Pure functions.  A request is read into a :class:`Claim` ("this access key says it signed these bytes");
nova.auth.signer checks it.

Rules: AWS General Reference, "Signature Version 2 signing process" and "Signature Version 4 signing process"; Amazon S3
API reference, "Authenticating requests" and, for version 2, "Signing and authenticating REST requests".  Region and
service are taken from the request's own scope, whatever they are, because real clients differ in both.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property, lru_cache
from typing import NamedTuple
from urllib.parse import unquote_plus

from nova import exception

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING = frozenset({STREAMING_UNSIGNED_TRAILER, STREAMING_SIGNED, STREAMING_SIGNED_TRAILER})

#: schemes in which somebody signs for whoever gets to see it
LINKS = ("v4-query", "v2-s3-query", "v4-form", "v2-s3-form")
MAX_PRESIGNED_SECONDS = 7 * 24 * 3600
_V4 = "AWS4-HMAC-SHA256"
#: parameters of which one is enough to say that a request is signed in the query, by version and face
_V4_MARKS = frozenset({"X-Amz-Signature", "X-Amz-Algorithm", "X-Amz-Credential"})
_V2_EC2_MARKS = frozenset({"Signature", "AWSAccessKeyId", "SignatureMethod"})
_V2_S3_MARKS = frozenset({"Signature", "AWSAccessKeyId"})
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_BASIC_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z")
#: x-amz- headers that S3 does not ask to be among the signed ones: they are signed in another way, or mean nothing
_NEED_NO_SIGNATURE = frozenset({"x-amz-content-sha256", "x-amz-date", "x-amz-user-agent"})


class AccessDenied(exception.S3Error):
    code, status = "AccessDenied", 403
    message = "Access Denied"


class RequestTimeTooSkewed(exception.S3Error):
    code, status = "RequestTimeTooSkewed", 403
    message = "The difference between the request time and the current time is too large."


class AuthorizationHeaderMalformed(exception.S3Error):
    code = "AuthorizationHeaderMalformed"
    message = "The authorization header is malformed; {reason}"


class AuthorizationQueryParametersError(exception.S3Error):
    code = "AuthorizationQueryParametersError"
    message = "{reason}"


class InvalidArgument(exception.S3Error):
    code = "InvalidArgument"
    message = "{reason}"


class MissingSecurityHeader(exception.S3Error):
    code = "MissingSecurityHeader"
    message = "Your request was missing a required header: {name}"


@dataclass(frozen=True)
class SignedRequest:
    """A request as it came over the wire.

    :param method: upper case
    :param path: percent-encoding kept, without the query
    :param query: what follows the ``?``, undecoded; '' if there is none
    :param headers: (name, value) as received, repeated ones repeated
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, method: str, path: str, query: str, headers: Iterable[tuple[str, str]],
           by_name: dict[str, str]) -> "SignedRequest":
        """A request whose headers somebody has put together already, as in :attr:`by_name`."""
        made = cls(method, path, query, tuple(headers))
        vars(made)["by_name"] = by_name
        return made

    def header(self, name: str) -> str | None:
        """The value of a header, the values joined by commas if it came several times; None without it."""
        return self.by_name.get(name.lower())

    @cached_property
    def by_name(self) -> dict[str, str]:
        """The value of each header as :meth:`header` tells it, by its name in lower case."""
        found: dict[str, str] = {}
        for name, value in self.headers:
            name, value = name.lower(), value.strip()
            found[name] = f"{found[name]},{value}" if name in found else value
        return found


class Claim(NamedTuple):
    """What a request says about who signed it, unverified.

    `scheme` is v2-query, v4-header, v4-query, v2-s3-header, v2-s3-query, v4-form or v2-s3-form; `face` is ec2 or s3.
    `date` is when the request was signed and `expires` until when it may be used (one of them may be None).  `payload`
    is S3's x-amz-content-sha256: a hex SHA-256, UNSIGNED-PAYLOAD or one of STREAMING.  `scope` is
    date/region/service/aws4_request.
    """

    access_key: str
    project: str | None
    scheme: str
    face: str
    request: SignedRequest
    signature: str
    date: datetime | None = None
    expires: datetime | None = None
    payload: str = ""
    scope: str = ""
    signed_headers: tuple[str, ...] = ()
    digest: str = "sha256"
    params: tuple[tuple[str, str], ...] = ()
    bucket: str | None = None

    @property
    def is_link(self) -> bool:
        """Whether it is signed to be passed on: a presigned URL or a form of S3."""
        return self.face == "s3" and self.scheme in LINKS

    @property
    def timestamp(self) -> str:
        """The time of signing as version 4 writes it."""
        return _basic_text(self.date) if self.date else ""


# -- reading ----------------------------------------------------------------------------------------------------------

def read_ec2(request: SignedRequest, params: list[tuple[str, str]]) -> Claim | None:
    """Who an EC2 request says it is from.

    :param params: the decoded parameters of query and form, in the order received
    :returns: None if it is not signed at all
    :raises IncompleteSignature, MissingParameter: if it is signed by halves
    :raises AuthFailure: if the authorization header is of an unknown kind
    """
    authorization = request.header("Authorization")
    query = _query_pairs(request.query) if request.query else []
    v4_query = any([name in _V4_MARKS for name, _ in query])
    v2_query = any([name in _V2_EC2_MARKS for name, _ in params])
    if bool(authorization) + v4_query + v2_query > 1:
        raise exception.IncompleteSignature("Only one way of signing a request may be used at a time.")
    try:
        if authorization:
            if authorization.split(None, 1)[0] != _V4:
                raise exception.AuthFailure("The Authorization header is of an unsupported kind.")
            return _read_v4_header(request, authorization, "ec2")
        if v4_query:
            return _read_v4_query(request, query, "ec2")
    except (AuthorizationHeaderMalformed, AuthorizationQueryParametersError) as error:
        raise exception.IncompleteSignature(error.message) from error
    return _read_v2_query(request, params) if v2_query else None


def read_s3(request: SignedRequest, bucket: str | None = None) -> Claim | None:
    """Who an S3 request says it is from.

    :param bucket: the bucket, if it is named by the Host header and not by the path
    :returns: None if it is not signed at all
    :raises S3Error: AuthorizationHeaderMalformed, AuthorizationQueryParametersError, AccessDenied, InvalidArgument or
        MissingSecurityHeader if it is signed by halves
    """
    authorization = request.header("Authorization")
    query = _query_pairs(request.query)
    names = {name for name, _ in query}
    v4_query = bool(names & _V4_MARKS)
    v2_query = bool(names & _V2_S3_MARKS)
    if bool(authorization) + v4_query + v2_query > 1:
        raise InvalidArgument(
            reason="Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
                   "parameter or the Authorization header should be specified")
    if authorization:
        kind = authorization.split(None, 1)[0]
        if kind == _V4:
            return _read_v4_header(request, authorization, "s3")
        if kind == "AWS":
            return _read_v2_s3_header(request, authorization, bucket)
        raise InvalidArgument(reason="Unsupported Authorization Type")
    if v4_query:
        return _read_v4_query(request, query, "s3")
    return _read_v2_s3_query(request, query, bucket) if v2_query else None


def read_s3_form(request: SignedRequest, fields: dict[str, str], expiration: datetime) -> Claim | None:
    """Who signed the policy of a form that is posted to S3 (API reference, "Authenticating requests in browser-based
    uploads").

    :param fields: by name in lower case
    :param expiration: until when the policy says that it holds
    :returns: None if it is not signed at all
    :raises S3Error: InvalidArgument or AccessDenied if it is signed by halves
    """
    signed_v4 = any(name in fields for name in ("x-amz-signature", "x-amz-algorithm", "x-amz-credential"))
    signed_v2 = any(name in fields for name in ("signature", "awsaccesskeyid"))
    if not signed_v4 and not signed_v2:
        return None
    if signed_v4 and signed_v2:
        raise InvalidArgument(reason="Only one auth mechanism allowed; only the x-amz-signature field or the signature "
                                     "field should be specified")
    needed = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature", "policy") if signed_v4 else (
        "AWSAccessKeyId", "signature", "policy")
    for name in needed:
        if not fields.get(name.lower()):
            raise InvalidArgument(reason=f"Bucket POST must contain a field named '{name}'.  If it is specified, "
                                         "please check the order of the fields.")
    params = (("policy", fields["policy"]),)
    if signed_v2:
        key, project = split_access_key(fields["awsaccesskeyid"])
        return Claim(key, project, "v2-s3-form", "s3", request, fields["signature"], digest="sha1", params=params,
                     expires=expiration, payload=UNSIGNED_PAYLOAD)
    if fields["x-amz-algorithm"] != _V4:
        raise InvalidArgument(reason=f"x-amz-algorithm only supports \"{_V4}\"")
    date = _parse_basic_date(fields["x-amz-date"])
    if date is None:
        raise InvalidArgument(reason="x-amz-date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    key, project, scope = _split_credential(fields["x-amz-credential"], _basic_text(date)[:8], InvalidArgument)
    return Claim(key, project, "v4-form", "s3", request, fields["x-amz-signature"], date=date, expires=expiration,
                 scope=scope, params=params, payload=UNSIGNED_PAYLOAD)


def split_access_key(text: str) -> tuple[str, str | None]:
    """The access key and the project of ``access`` or ``access:project``, which is cut at the last colon."""
    access, colon, project = text.rpartition(":")
    return (access, project or None) if colon else (text, None)


def _read_v4_header(request: SignedRequest, authorization: str, face: str) -> Claim:
    fields: dict[str, str] = {}
    for item in authorization[len(_V4):].split(","):
        name, equals, value = item.strip().partition("=")
        if not equals or name in fields:
            raise AuthorizationHeaderMalformed(reason="it is not a list of distinct name=value.")
        fields[name] = value.strip()
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not fields.get(name):
            raise AuthorizationHeaderMalformed(reason=f"the {name} is missing.")
    amz_date = request.header("X-Amz-Date")
    date = _parse_basic_date(amz_date) if amz_date else _parse_date(request.header("Date") or "")
    if date is None:
        if face == "s3":
            raise AccessDenied("AWS authentication requires a valid Date or x-amz-date header")
        raise exception.IncompleteSignature("The request must contain a valid X-Amz-Date or Date header.")
    key, project, scope = _split_credential(fields["Credential"], _basic_text(date)[:8], AuthorizationHeaderMalformed)
    signed = tuple(fields["SignedHeaders"].lower().split(";"))
    payload = request.header("X-Amz-Content-Sha256") or ""
    if face == "s3":
        if not payload:
            raise MissingSecurityHeader(name="x-amz-content-sha256")
        _check_payload_name(payload)
    _check_signed_headers(request, signed, face, AuthorizationHeaderMalformed)
    return Claim(key, project, "v4-header", face, request, fields["Signature"], date=date, payload=payload, scope=scope,
                 signed_headers=signed)


def _read_v4_query(request: SignedRequest, query: list[tuple[str, str]], face: str) -> Claim:
    fields: dict[str, str] = {}
    for name, value in query:
        if name.startswith("X-Amz-"):
            if name in fields:
                raise AuthorizationQueryParametersError(reason=f"{name} is given twice")
            fields[name] = value
    for name in ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders"):
        if not fields.get(name):
            raise AuthorizationQueryParametersError(
                reason=f"Query-string authentication version 4 requires the {name} parameter")
    if fields["X-Amz-Algorithm"] != _V4:
        raise AuthorizationQueryParametersError(reason=f"X-Amz-Algorithm only supports \"{_V4}\"")
    date = _parse_basic_date(fields["X-Amz-Date"])
    if date is None:
        raise AuthorizationQueryParametersError(
            reason="X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    seconds = fields.get("X-Amz-Expires", "" if face == "s3" else "900")
    if not re.fullmatch(r"[0-9]{1,9}", seconds) or not 0 < int(seconds) <= MAX_PRESIGNED_SECONDS:
        raise AuthorizationQueryParametersError(
            reason=f"X-Amz-Expires must be a number of seconds from 1 to {MAX_PRESIGNED_SECONDS}")
    key, project, scope = _split_credential(fields["X-Amz-Credential"], _basic_text(date)[:8],
                                            AuthorizationQueryParametersError)
    signed = tuple(fields["X-Amz-SignedHeaders"].lower().split(";"))
    payload = ""
    if face == "s3":
        payload = fields.get("X-Amz-Content-Sha256") or request.header("X-Amz-Content-Sha256") or UNSIGNED_PAYLOAD
        _check_payload_name(payload)
    _check_signed_headers(request, signed, face, AuthorizationQueryParametersError)
    return Claim(key, project, "v4-query", face, request, fields["X-Amz-Signature"], date=date,
                 expires=date + timedelta(seconds=int(seconds)), payload=payload, scope=scope, signed_headers=signed)


def _read_v2_query(request: SignedRequest, params: list[tuple[str, str]]) -> Claim:
    fields: dict[str, str] = {}
    for name, value in params:
        if name in ("AWSAccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp", "Expires"):
            if name in fields:
                raise exception.IncompleteSignature(f"The parameter {name} is given twice.")
            fields[name] = value
    for name in ("AWSAccessKeyId", "Signature", "SignatureMethod", "SignatureVersion"):
        if not fields.get(name):
            raise exception.MissingParameter(name=name)
    if fields["SignatureVersion"] != "2":
        raise exception.IncompleteSignature("The only SignatureVersion of a query is 2.")
    digest = {"HmacSHA1": "sha1", "HmacSHA256": "sha256"}.get(fields["SignatureMethod"])
    if digest is None:
        raise exception.IncompleteSignature("The SignatureMethod must be HmacSHA256 or HmacSHA1.")
    if "Timestamp" not in fields and "Expires" not in fields:
        raise exception.MissingParameter(name="Timestamp or Expires")
    if "Timestamp" in fields and "Expires" in fields:
        raise exception.IncompleteSignature("Timestamp and Expires must not be used together.")
    name = "Timestamp" if "Timestamp" in fields else "Expires"
    moment = _parse_iso_date(fields[name])
    if moment is None:
        raise exception.IncompleteSignature(f"{name} must be a time in ISO 8601 format.")
    key, project = split_access_key(fields["AWSAccessKeyId"])
    return Claim(key, project, "v2-query", "ec2", request, fields["Signature"], digest=digest, params=tuple(params),
                 date=moment if name == "Timestamp" else None, expires=moment if name == "Expires" else None)


def _read_v2_s3_header(request: SignedRequest, authorization: str, bucket: str | None) -> Claim:
    access, colon, signature = authorization[len("AWS"):].strip().rpartition(":")
    if not colon or not access or not signature:
        raise InvalidArgument(reason="AWS authorization header is invalid.  Expected AwsAccessKeyId:signature")
    date = _parse_date(request.header("X-Amz-Date") or request.header("Date") or "")
    if date is None:
        raise AccessDenied("AWS authentication requires a valid Date or x-amz-date header")
    key, project = split_access_key(access)
    return Claim(key, project, "v2-s3-header", "s3", request, signature, digest="sha1", date=date, bucket=bucket,
                 payload=request.header("X-Amz-Content-Sha256") or UNSIGNED_PAYLOAD)


def _read_v2_s3_query(request: SignedRequest, query: list[tuple[str, str]], bucket: str | None) -> Claim:
    fields: dict[str, str] = {}
    for name, value in query:
        if name in ("AWSAccessKeyId", "Signature", "Expires"):
            if name in fields:
                raise AccessDenied(f"{name} is given twice")
            fields[name] = value
    if not all(fields.get(name) for name in ("AWSAccessKeyId", "Signature", "Expires")):
        raise AccessDenied("Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters")
    if not re.fullmatch(r"[0-9]{1,11}", fields["Expires"]):
        raise AccessDenied("Invalid date (should be seconds since epoch): " + fields["Expires"][:64])
    key, project = split_access_key(fields["AWSAccessKeyId"])
    return Claim(key, project, "v2-s3-query", "s3", request, fields["Signature"], digest="sha1", bucket=bucket,
                 expires=datetime.fromtimestamp(int(fields["Expires"]), UTC), params=tuple(query),
                 payload=request.header("X-Amz-Content-Sha256") or UNSIGNED_PAYLOAD)


@lru_cache(256)  # clients send the same all day
def _split_credential(credential: str, day: str,
                      malformed: type[exception.S3Error]) -> tuple[str, str | None, str]:
    """The access key (which may have colons and slashes), the project and the scope of a version 4 credential."""
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or not parts[0] or parts[4] != "aws4_request":
        raise malformed(reason="the Credential must be <access key>/<yyyymmdd>/<region>/<service>/aws4_request.")
    if parts[1] != day:
        raise malformed(reason="the date of the Credential is not the date of the request.")
    return *split_access_key(parts[0]), "/".join(parts[1:])


def _check_payload_name(payload: str) -> None:
    if payload != UNSIGNED_PAYLOAD and payload not in STREAMING and not _SHA256_HEX.fullmatch(payload):
        raise InvalidArgument(reason="x-amz-content-sha256 must be UNSIGNED-PAYLOAD, one of the STREAMING- values or a "
                                     "valid sha256 value.")


def _check_signed_headers(request: SignedRequest, signed: tuple[str, ...], face: str,
                          malformed: type[exception.S3Error]) -> None:
    """The host and, for S3, each x-amz- header must be signed, or others could redirect the request or add to it."""
    if "host" not in signed:
        raise malformed(reason="the Host header must be signed.")
    if face == "s3":
        for name in sorted(request.by_name):
            if name.startswith("x-amz-") and name not in signed and name not in _NEED_NO_SIGNATURE:
                raise AccessDenied(f"There were headers present in the request which were not signed: {name}")


@lru_cache(64)
def _basic_text(date: datetime) -> str:
    return date.strftime("%Y%m%dT%H%M%SZ")


@lru_cache(64)  # of many requests a second, most have the same
def _parse_basic_date(text: str) -> datetime | None:
    return _parse_iso_date(text) if _BASIC_DATE.fullmatch(text) else None


def _parse_iso_date(text: str) -> datetime | None:
    try:
        return _in_utc(datetime.fromisoformat(text.strip()))
    except ValueError:
        return None


def _parse_date(text: str) -> datetime | None:
    """A Date or x-amz-date header: RFC 1123, or one of the ISO 8601 forms."""
    moment = _parse_iso_date(text)
    if moment is None:
        try:
            moment = _in_utc(parsedate_to_datetime(text))
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return moment


def _in_utc(moment: datetime) -> datetime:
    if not 1970 <= moment.year < 9000:
        raise ValueError("a year that leaves no room to calculate with")
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _query_pairs(query: str) -> list[tuple[str, str]]:
    """The decoded parameters of a raw query string; ``+`` is a space."""
    pairs = []
    for item in query.split("&"):
        if item:
            name, _, value = item.partition("=")
            pairs.append((unquote_plus(name), unquote_plus(value)))
    return pairs
