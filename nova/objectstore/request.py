"""What an S3 request asks for: bucket, key and parameters, read from the request line and the Host header.

Pure functions.  Bucket and key are the percent-decoded path, byte for byte: ``//``, ``..`` and ``+`` mean nothing
special.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote_plus, unquote_to_bytes

from nova.objectstore import errors

MAX_KEY = 1024
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(r"https?://[^/?]*", re.IGNORECASE)

#: parameters that ask for something other than the bucket or the object itself
SUB_RESOURCES = frozenset("""
    abac accelerate acl analytics annotation attributes cors delete encryption intelligent-tiering inventory legal-hold
    lifecycle location logging metadataAnnotationTable metadataConfiguration metadataInventoryTable
    metadataJournalTable metadataTable metrics notification object-lock ownershipControls policy policyStatus
    publicAccessBlock renameObject replication requestPayment restore retention select session tagging torrent uploadId
    uploads versioning versions website
    """.split())


@dataclass(frozen=True)
class Target:
    """What is asked for.

    `path` and `query` are as on the wire; `bucket` and `key` are '' where there is none; `sub_resource` is one of
    SUB_RESOURCES or ''.  `virtual` says that the Host header names the bucket.
    """

    path: str
    query: str
    bucket: str
    key: str
    params: dict[str, str]
    sub_resource: str
    virtual: bool = False


def read(uri: str, host: str, domain: str = "") -> Target:
    """Read a request line's target.

    :param uri: as on the wire, read as Latin-1
    :param host: the Host header
    :param domain: names below it are buckets; '' if buckets are never named so
    :raises InvalidURI, KeyTooLong:
    """
    absolute = _ABSOLUTE.match(uri)
    if absolute:
        uri = uri[absolute.end():] or "/"
    path, _, query = uri.partition("?")
    if not path.startswith("/"):
        raise errors.InvalidURI()
    virtual = is_virtual(host, domain)
    if virtual:
        bucket, key = _name(host)[:-len(domain) - 1], _decoded(path[1:])
    else:
        first, _, rest = path[1:].partition("/")
        bucket, key = _decoded(first), _decoded(rest)
    if len(key.encode()) > MAX_KEY:
        raise errors.KeyTooLong()
    params: dict[str, str] = {}
    for item in query.split("&"):
        if item:
            name, _, value = item.partition("=")
            params.setdefault(_text(unquote_plus(name, "latin-1")), _text(unquote_plus(value, "latin-1")))
    return Target(path, query, bucket, key, params, _sub_resource(params), virtual)


def is_virtual(host: str, domain: str) -> bool:
    """Whether a Host header names a bucket, below this domain."""
    return bool(domain) and _name(host).endswith("." + domain.lower())


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host


def _sub_resource(params: dict[str, str]) -> str:
    found = sorted(SUB_RESOURCES.intersection(params))
    if len(found) > 1:
        raise errors.InvalidRequest(reason=f"Conflicting query string parameters: {', '.join(found)}")
    return found[0] if found else ""


def copy_source(header: str) -> tuple[str, str, str | None]:
    """Bucket, key and version id of an x-amz-copy-source header: ``[/]bucket/key[?versionId=id]``, percent-encoded.

    The version id is None where the header has none.

    :raises InvalidArgument:
    """
    path, question, version = header.partition("?versionId=")
    try:
        bucket, slash, key = _decoded(path.removeprefix("/")).partition("/")
        version = _decoded(version)
    except errors.InvalidURI:
        bucket = slash = key = ""
    if not bucket or not slash or not key:
        raise errors.InvalidArgument(
            reason="Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
    return bucket, key, version if question else None


def number(params: dict[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    """A parameter that is a number.

    :raises InvalidArgument: it is none, or out of range
    """
    text = params.get(name)
    if text is None or text == "":
        return default
    if not re.fullmatch(r"[0-9]{1,19}", text) or not lowest <= int(text) <= highest:
        raise errors.InvalidArgument(reason=f"Argument {name} must be an integer between {lowest} and {highest}")
    return int(text)


def _decoded(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise errors.InvalidURI()
    return _text(unquote_to_bytes(text.encode("latin-1", "replace")).decode("latin-1"))


def _text(latin: str) -> str:
    """The UTF-8 text of which these are the bytes."""
    try:
        return latin.encode("latin-1").decode()
    except ValueError:
        raise errors.InvalidURI() from None
