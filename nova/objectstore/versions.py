"""What a PUT or a DELETE does to the versions of a key, and how versions are found in order.

Pure functions.  The record of a key's current version, an object or a delete marker, has the id that
:func:`nova.objectstore.models.object_id` gives; those of its older versions have a dot and the version's id behind it.
Live current versions are in the sorted set `Bucket.keys_key`; older versions and current delete markers are in
`Bucket.versions_key`, the newest of a key first.  Rules: Amazon S3 user guide, "Retaining multiple versions of objects
with S3 Versioning".
"""

import re
from dataclasses import dataclass

from nova.datastore import changed
from nova.objectstore import errors
from nova.objectstore.models import Object

ENABLED, SUSPENDED = "Enabled", "Suspended"
#: how the version without an id is called
NULL = "null"

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_SEQUENCE = (1 << 63) - 1
#: how many bytes at the end of a member are no part of the key
TAIL = 50
#: tails that sort before all versions of a key, as the live current one, and behind all
_START = b"\0" + b" " * 16 + b"\0" + b" " * 32
_LIVE = b"\0" + b"0" * 16 + b"\0" + b" " * 32
_END = b"\0" + b"~" * 16 + b"\0" + b"~" * 32


@dataclass(frozen=True)
class Change:
    """A change of the records of one key: what was there of those that change, and what is there afterwards.

    Each has a file, by which it is known.
    """

    before: tuple[Object, ...] = ()
    after: tuple[Object, ...] = ()

    @property
    def come(self) -> list[Object]:
        """The versions that are added."""
        known = {record.file for record in self.before}
        return [record for record in self.after if record.file not in known]

    @property
    def gone(self) -> list[Object]:
        """The versions that are removed."""
        kept = {record.file for record in self.after}
        return [record for record in self.before if record.file not in kept]


def check_id(text: str) -> None:
    """:raises InvalidArgument: no version has such an id"""
    if text != NULL and not _ID.fullmatch(text):
        raise errors.InvalidArgument(reason="Invalid version id specified" if text else
                                     "Version id cannot be the empty string")


def shown(record: Object) -> str:
    """A version's id as clients see it."""
    return record.version_id or NULL


def record_id(current_id: str, version: str) -> str:
    """The id of the record of an older version; :param version: as clients see it"""
    return f"{current_id}.{version}"


def is_current(record: Object) -> bool:
    """Whether it is the current version of its key."""
    return "." not in record.id


def live(record: Object | None) -> Object | None:
    """A current version as those see it who name no version: a delete marker is as good as nothing."""
    return None if record is None or record.is_marker else record


def new_id(file: str) -> str:
    """The id of the version whose file this is: the sweep finds the record of a version by the name of its file."""
    unique = file.rpartition("-")[2]
    if not _ID.fullmatch(unique):
        raise ValueError(f"{file} is no name of a version's file")
    return unique


def put(versioning: str, current: Object | None, null: Object | None, new: Object, id: str, now: int) -> Change:
    """Make a new current version of a key.

    :param versioning: of the bucket
    :param null: the null version, if it is not the current one
    :param new: an object or a delete marker
    :param id: the new version's, if it gets one
    :param now: microseconds since 1970
    :returns: what is there afterwards begins with the new version
    """
    sequence = max(now, current.sequence + 1) if current else now
    version_id = id if versioning == ENABLED else ""
    if (sequence, version_id) != (new.sequence, new.version_id):
        new = changed(new, sequence=sequence, version_id=version_id)
    if current is None:
        return Change((), (new,))
    if not current.version_id and not new.version_id:
        return Change((current,), (new,))
    older = changed(current, id=record_id(current.id, shown(current)))
    replaced = (null,) if null and not new.version_id else ()
    return Change((current, *replaced), (new, older))


def replaces(versioning: str, current: Object | None) -> int:
    """The bytes of the current version that a PUT removes."""
    return current.size if current and versioning != ENABLED and not current.version_id else 0


def delete(target: Object, newest: Object | None) -> Change:
    """Remove a version.

    :param newest: the newest of the key's older versions, which takes the place of the current one
    """
    if is_current(target) and newest:
        return Change((target, newest), (changed(newest, id=target.id),))
    return Change((target,))


def restore(there: list[Object], lost: Object) -> Change | None:
    """Bring a version back that the records of its key lack; None if the null version that is there is a newer one.

    :param there: the current version and the null version, as far as there are such
    """
    replaced = [record for record in there if shown(record) == shown(lost)]
    if any(order(record) >= order(lost) for record in replaced):
        return None
    after = sorted((lost, *(record for record in there if record not in replaced)), key=order, reverse=True)
    id = lost.id.partition(".")[0]
    return Change(tuple(there), tuple(
        changed(record, id=id if n == 0 else record_id(id, shown(record))) for n, record in enumerate(after)))


def order(record: Object) -> tuple[int, float]:
    """What is highest for the newest of a key's versions."""
    return (record.sequence, record.modified)


# -- the index --------------------------------------------------------------------------------------------------------

def member(record: Object) -> bytes | None:
    """A version in `Bucket.versions_key`; None for live current ones, which are in `Bucket.keys_key`."""
    if is_current(record) and not record.is_marker:
        return None
    return _escape(record.key.encode()) + f"\0{_MAX_SEQUENCE - record.sequence:016x}\0{shown(record):32}".encode()


def live_member(key: bytes) -> bytes:
    """A key of `Bucket.keys_key` as it would be in `Bucket.versions_key`: before the key's older versions."""
    return _escape(key) + _LIVE


def read_member(found: bytes) -> tuple[str, str]:
    """Key and version id of a member; the id is '' for the live current version."""
    return _unescape(found[:-TAIL]).decode(), found[-32:].decode().strip()


def of_key(key: str) -> tuple[bytes, bytes]:
    """From where to where the members of a key are, as ZRANGEBYLEX has it."""
    escaped = _escape(key.encode())
    return b"[" + escaped + b"\0", b"(" + escaped + _END


def before(key: str) -> bytes:
    """What sorts right before all versions of a key."""
    return _escape(key.encode()) + _START


def behind(key: str) -> bytes:
    """What sorts right behind all versions of a key."""
    return _escape(key.encode()) + _END


def name(text: str | bytes) -> bytes:
    """A key or a part of one as members have it."""
    return _escape(text.encode() if isinstance(text, str) else text)


def unname(text: bytes) -> bytes:
    """What :func:`name` was given."""
    return _unescape(text)


def keys_bound(bound: bytes) -> bytes:
    """A bound of ZRANGEBYLEX in `Bucket.versions_key` as it is in `Bucket.keys_key`.

    An exclusive lower bound is a member, or :func:`before` or :func:`behind`; an inclusive one, and every upper one, is
    a part of a key.
    """
    kind, rest = bound[:1], bound[1:]
    if kind == b"(" and rest[-TAIL:-TAIL + 1] == b"\0" and rest[-33:-32] == b"\0":
        return (b"[" if rest[-TAIL:] < _LIVE else b"(") + _unescape(rest[:-TAIL])
    return kind + _unescape(rest)


# A key may have the byte that ends it in a member.  What stands for it sorts as it does, and UTF-8 has no such bytes.

def _escape(key: bytes) -> bytes:
    return key.replace(b"\0", b"\0\xfe")


def _unescape(key: bytes) -> bytes:
    return key.replace(b"\0\xfe", b"\0").replace(b"\0\xff", b"\1")
