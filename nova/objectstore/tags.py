"""Tags of objects and buckets: reading, checking and writing them.

Pure functions.  Rules: Amazon S3 user guide, "Categorizing your objects using tags"; Cost Management guide,
"User-defined tag restrictions".
"""

import unicodedata
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlencode

from nova.objectstore import errors

MAX_OBJECT_TAGS = 10
MAX_BUCKET_TAGS = 50
_MAX_KEY = 128
_MAX_VALUE = 256
_PUNCTUATION = frozenset("_.:/=+-@")
_HEADER = "x-amz-tagging"


def check(pairs: Iterable[tuple[str, str]], most: int) -> dict[str, str]:
    """The tags, values by key.

    :param most: how many there may be
    :raises InvalidTag, BadRequest:
    """
    found: dict[str, str] = {}
    for key, value in pairs:
        if key in found:
            raise errors.InvalidTag(reason="Cannot provide multiple Tags with the same key")
        if not 0 < len(key) <= _MAX_KEY or not _is_tag_text(key):
            raise errors.InvalidTag(reason="The TagKey you have provided is invalid")
        if len(value) > _MAX_VALUE or not _is_tag_text(value):
            raise errors.InvalidTag(reason="The TagValue you have provided is invalid")
        if key.lower().startswith("aws:"):
            raise errors.InvalidTag(reason="System tags cannot be added/updated by requester")
        found[key] = value
    if len(found) > most:
        kind = "Object" if most == MAX_OBJECT_TAGS else "Bucket"
        raise errors.BadRequest(reason=f"{kind} tags cannot be greater than {most}")
    return found


def _is_tag_text(text: str) -> bool:
    """Letters, numbers and spaces of any script, and some punctuation."""
    return all(c in _PUNCTUATION or unicodedata.category(c)[0] in "LNZM" for c in text)


def from_set(document: Mapping, most: int) -> dict[str, str]:
    """The tags of a Tagging document, as nova.wire.rest_xml reads it; :raises InvalidTag, BadRequest:"""
    return check(((tag["Key"], tag["Value"]) for tag in document["TagSet"]), most)


def to_set(tags: Mapping[str, str]) -> dict:
    """The Tagging document of tags."""
    return {"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]}


def from_header(headers: Mapping[str, str]) -> dict[str, str]:
    """The tags that the x-amz-tagging header gives to a new object, written like a URL's query.

    :raises InvalidArgument, InvalidTag, BadRequest:
    """
    header = headers.get(_HEADER)
    if not header:
        return {}
    try:
        # a header's text stands for bytes; what is not escaped may be UTF-8
        pairs = parse_qsl(header.encode("latin-1").decode(), keep_blank_values=True, errors="strict")
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is given twice")
    except ValueError:
        raise errors.InvalidArgument(
            reason="The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without "
                   "tag name duplicates.") from None
    return check(pairs, MAX_OBJECT_TAGS)


def to_header(tags: Mapping[str, str]) -> str:
    """What :func:`from_header` reads."""
    return urlencode(tags)
