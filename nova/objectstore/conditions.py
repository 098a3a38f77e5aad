"""What the headers of a request say about the copy that the client has, or wants a part of.

Pure functions.  Rules: RFC 9110 sections 13 and 14, and Amazon S3 API reference, GetObject and CopyObject, where S3
differs: of several ranges none is served, and a malformed one is ignored.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from nova.objectstore import errors

# white space is never given back, or a long run of it would take time that grows with its square
_RANGE = re.compile(r"bytes\s*+=\s*+([0-9]{0,19})\s*+-\s*+([0-9]{0,19})", re.IGNORECASE)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes asked for.

    :param header: the Range header
    :param size: of the object, in bytes
    :returns: offset and length in bytes; None for the whole object
    :raises InvalidRange: there are no such bytes
    """
    found = _RANGE.fullmatch((header or "").strip())
    if not found or (not found[1] and not found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        start = size - length
    else:
        start = int(found[1])
        end = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < start:
            return None
        length = end - start + 1
    if length <= 0 or start >= size:
        raise errors.InvalidRange()
    return start, length


def check_read(headers: Mapping[str, str], etag: str, modified: float) -> None:
    """Decide whether a GET or HEAD is answered with the object.

    :param etag: of the object, without quotes
    :param modified: when the object was written, in seconds since 1970
    :raises PreconditionFailed, NotModified:
    """
    _check_match(headers.get("If-Match"), headers.get("If-Unmodified-Since"), etag, modified)
    if _none_match(headers.get("If-None-Match"), headers.get("If-Modified-Since"), etag, modified):
        raise errors.NotModified()


def check_copy(headers: Mapping[str, str], etag: str, modified: float) -> None:
    """Decide whether a copy takes this source.

    :raises PreconditionFailed:
    """
    prefix = "x-amz-copy-source-if-"
    _check_match(headers.get(prefix + "match"), headers.get(prefix + "unmodified-since"), etag, modified)
    if _none_match(headers.get(prefix + "none-match"), headers.get(prefix + "modified-since"), etag, modified):
        raise errors.PreconditionFailed()


def check_write(headers: Mapping[str, str], etag: str | None) -> None:
    """Decide whether a PUT may replace what is there.

    :param etag: of the object that is there; None if there is none
    :raises PreconditionFailed: If-None-Match or If-Match does not hold
    :raises NoSuchKey: If-Match, but there is no object
    """
    match, none_match = headers.get("If-Match"), headers.get("If-None-Match")
    if match is not None:
        if etag is None:
            raise errors.NoSuchKey()
        if not _matches(match, etag):
            raise errors.PreconditionFailed()
    if none_match is not None and etag is not None and _matches(none_match, etag):
        raise errors.PreconditionFailed()


def _check_match(match: str | None, unmodified: str | None, etag: str, modified: float) -> None:
    if match is not None:
        if not _matches(match, etag):
            raise errors.PreconditionFailed()
    elif unmodified is not None:
        limit = seconds(unmodified)
        if limit is not None and int(modified) > limit:
            raise errors.PreconditionFailed()


def _none_match(none_match: str | None, since: str | None, etag: str, modified: float) -> bool:
    if none_match is not None:
        return _matches(none_match, etag)
    limit = seconds(since) if since is not None else None
    return limit is not None and int(modified) <= limit


def _matches(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return "*" in tags or etag in tags


def seconds(date: str) -> float | None:
    """A date of a header in seconds since 1970; None if it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
