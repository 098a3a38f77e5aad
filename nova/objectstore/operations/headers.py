"""The headers of an object: read from the request that makes it, written to the responses that give it."""

import re

from tornado.httputil import HTTPHeaders

from nova.objectstore import checksums, errors, versions
from nova.objectstore.models import Bucket, Object
from nova.objectstore.operations.base import http_time

_CONTENT = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires")
_OVERRIDES = {f"response-{name.lower()}": name for name in _CONTENT}
_META = "x-amz-meta-"
_MAX_METADATA = 2048
_DEFAULT_TYPE = "binary/octet-stream"
_STORAGE_CLASSES = frozenset(("STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING"))
#: ignoring these would promise what is not kept
_NOT_OFFERED = {
    "x-amz-object-lock-mode": "Object lock",
    "x-amz-object-lock-retain-until-date": "Object lock", "x-amz-object-lock-legal-hold": "Object lock",
    "x-amz-website-redirect-location": "Website redirection", "x-amz-write-offset-bytes": "Appending",
    "x-amz-server-side-encryption-customer-algorithm": "Server side encryption with your key",
    "x-amz-server-side-encryption-aws-kms-key-id": "Server side encryption with a key of a key service",
}


def check_offered(headers: HTTPHeaders) -> None:
    """Refuse what an object cannot have here; :raises NotImplementedYet, InvalidArgument:"""
    for name, what in _NOT_OFFERED.items():
        if name in headers:
            raise errors.NotImplementedYet(what=what)
    if headers.get("x-amz-server-side-encryption", "AES256") != "AES256":
        raise errors.NotImplementedYet(what="Server side encryption with a key of a key service")
    storage_class(headers)


def storage_class(headers: HTTPHeaders) -> str:
    """The storage class asked for, which is kept and otherwise means nothing; :raises InvalidArgument:"""
    name = headers.get("x-amz-storage-class", "STANDARD")
    if name not in _STORAGE_CLASSES:
        raise errors.InvalidArgument(reason="The storage class you specified is not valid")
    return name


def content(headers: HTTPHeaders) -> dict[str, str]:
    """The content headers that an object keeps."""
    kept = {name: headers[name] for name in _CONTENT if name in headers}
    kept.setdefault("Content-Type", _DEFAULT_TYPE)
    if "Content-Encoding" in kept:
        encodings = [e.strip() for e in kept["Content-Encoding"].split(",")]
        kept["Content-Encoding"] = ",".join(e for e in encodings if e and e.lower() != "aws-chunked")
        if not kept["Content-Encoding"]:
            del kept["Content-Encoding"]
    return kept


def metadata(headers: HTTPHeaders) -> dict[str, str]:
    """The user's metadata, names in lower case; :raises MetadataTooLarge:"""
    found: dict[str, str] = {}
    for name, value in headers.get_all():
        if name.lower().startswith(_META):
            short = name[len(_META):].lower()
            found[short] = f"{found[short]},{value}" if short in found else value
    if sum(len(name) + len(value) for name, value in found.items()) > _MAX_METADATA:
        raise errors.MetadataTooLarge()
    return found


def checksum_algorithm(headers: HTTPHeaders, name: str) -> str:
    """The checksum algorithm that a header names; '' without it; :raises InvalidRequest:"""
    value = headers.get(name)
    return checksums.named(value) if value else ""


def of_object(found: Object, params: dict[str, str], with_checksums: bool) -> dict[str, str]:
    """The headers of a response that gives an object.

    :param params: of the request, which may override content headers
    :param with_checksums: add the checksums (only if the whole object is given)
    :raises InvalidArgument: an override is no header value
    """
    headers = {"ETag": f'"{found.etag}"', "Last-Modified": http_time(found.modified), "Accept-Ranges": "bytes",
               **found.headers}
    headers |= {_META + name: value for name, value in found.metadata.items()}
    if found.tags:
        headers["x-amz-tagging-count"] = str(len(found.tags))
    if found.storage_class != "STANDARD":
        headers["x-amz-storage-class"] = found.storage_class
    if with_checksums:
        headers |= of_checksums(found)
    for parameter, name in _OVERRIDES.items():
        if parameter in params:
            value = params[parameter].encode().decode("latin-1")
            if re.search(r"[\x00-\x1f\x7f]", value):
                raise errors.InvalidArgument(reason=f"{parameter} is not valid")
            headers[name] = value
    return headers


def check_overrides(params: dict[str, str]) -> None:
    """Refuse to let somebody who did not sign say how an object is shown: a page of his choice, say, on our host.

    :raises InvalidRequest:
    """
    if not params.keys().isdisjoint(_OVERRIDES):
        raise errors.InvalidRequest(
            reason="Request specific response headers cannot be used for anonymous GET requests.")


def of_version(bucket: Bucket, found: Object) -> dict[str, str]:
    """The header that tells a version's id, where there may be several: clients take it for a sign of that."""
    return {"x-amz-version-id": versions.shown(found)} if bucket.versioning or found.version_id else {}


def of_checksums(found: Object) -> dict[str, str]:
    """The headers that tell an object's checksums."""
    if not found.checksums:
        return {}
    return {**{checksums.header_name(name): value for name, value in found.checksums.items()},
            "x-amz-checksum-type": found.checksum_type}
