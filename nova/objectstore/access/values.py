"""What a request has under the condition keys of policies.

Rules: IAM user guide, "AWS global condition context keys"; Service authorization reference, "Condition keys for Amazon
S3".
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from nova.auth.rbac import Caller
from nova.objectstore.access.conditions import EXISTING_TAG, KEYS, REQUEST_TAG

_HEADERS = tuple(key.removeprefix("s3:") for key in sorted(KEYS) if key.startswith("s3:x-amz-"))
_OTHER_HEADERS = {"aws:useragent": "User-Agent", "aws:referer": "Referer", "s3:if-match": "If-Match",
                  "s3:if-none-match": "If-None-Match"}
#: whether what s3:PutObject lets somebody do makes an object: by policies, that is what wants conditions
_CREATES = {"PutObject": "true", "PostObject": "true", "CopyObject": "true", "CompleteMultipartUpload": "true",
            "CreateMultipartUpload": "false", "UploadPart": "false", "UploadPartCopy": "false"}
#: how a signature of each scheme of nova.auth.claims came, and its kind
_SCHEMES = {"v4-header": ("REST-HEADER", "AWS4-HMAC-SHA256"), "v4-query": ("REST-QUERY-STRING", "AWS4-HMAC-SHA256"),
            "v2-s3-header": ("REST-HEADER", "AWS"), "v2-s3-query": ("REST-QUERY-STRING", "AWS")}


def of_caller(caller: Caller, address: str, now: float) -> dict[str, tuple[str, ...]]:
    """What does not depend on the service.

    :param address: where the request comes from, '' if that is not known
    :param now: seconds since 1970
    """
    found: dict[str, str] = {
        "aws:currenttime": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "aws:epochtime": str(int(now))}
    if address:
        found["aws:sourceip"] = address
    if caller.project_id:
        found |= {"aws:username": caller.user_id, "aws:userid": caller.user_id, "aws:principaltype": "User",
                  "aws:principalaccount": caller.project_id,
                  "aws:principalarn": f"arn:aws:iam::{caller.project_id}:user/{caller.user_id}"}
    else:
        found |= {"aws:userid": "anonymous", "aws:principaltype": "Anonymous"}
    return {key: (value,) for key, value in found.items()}


def of_request(headers: Mapping[str, str], params: Mapping[str, str], scheme: str,
               secure: bool) -> dict[str, tuple[str, ...]]:
    """What an S3 request says, but for what lists are asked for.

    :param headers: case-insensitive
    :param params: of the query
    :param scheme: of the signature, as nova.auth.claims has it
    :param secure: it came over TLS
    """
    found = {"aws:securetransport": "true" if secure else "false"}
    found |= {f"s3:{name}": headers[name] for name in _HEADERS if name in headers}
    found |= {key: headers[name] for key, name in _OTHER_HEADERS.items() if name in headers}
    if "versionId" in params:
        found["s3:versionid"] = params["versionId"]
    if scheme in _SCHEMES:
        found["s3:authtype"], found["s3:signatureversion"] = _SCHEMES[scheme]
    values = {key: (value,) for key, value in found.items()}
    tags = dict(parse_qsl(headers.get("x-amz-tagging", ""), keep_blank_values=True))
    return values | of_request_tags(tags)


def of_operation(operation: str) -> dict[str, tuple[str, ...]]:
    """What kind of operation it is; :param operation: its name in the table of roles"""
    return {"s3:objectcreationoperation": (_CREATES[operation],)} if operation in _CREATES else {}


def of_etag(etag: str) -> dict[str, tuple[str, ...]]:
    """What DeleteObjects asks of one object in place of If-Match."""
    return {"s3:if-match": (etag,)}


def of_listing(params: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """What a request for a list says of it."""
    return {f"s3:{name}": (params[name],) for name in ("prefix", "delimiter", "max-keys") if name in params}


def of_request_tags(tags: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The tags that a request gives an object."""
    values: dict[str, tuple[str, ...]] = {REQUEST_TAG + name: (value,) for name, value in tags.items()}
    if tags:
        values["s3:requestobjecttagkeys"] = tuple(tags)
    return values


def of_object_tags(tags: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The tags that an object has."""
    return {EXISTING_TAG + name: (value,) for name, value in tags.items()}
