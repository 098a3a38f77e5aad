"""What the records of the object store are on disk, so that Redis can be rebuilt from it.

A description is JSON: a schema number, the kind of record, its fields whatever they are, and a CRC-32 of all that.  It
is an extended attribute of the file that the record names, or, where that cannot be (no such attributes, or more than
the file system has room for; a copy, which shares its file with others; a change of the record later on) a file beside
it, whose name ends in ``.meta`` and which wins.  Records without a file (:class:`Register`) have one that is only this.
An object's description has the id of the key's current version, whichever it is: that follows from the sequences.
Everything here blocks.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import uuid
import zlib
from collections.abc import Iterator

from nova import exception
from nova.datastore import Record, changed
from nova.objectstore.models import Bucket, Object, Part, Upload

SCHEMA = 1
ATTRIBUTE = "user.nova"
#: what the name of a file beside another ends in
ASIDE = ".meta"
TEMPORARY = "tmp-"
_KINDS: dict[str, type[Record]] = {"bucket": Bucket, "object": Object, "part": Part, "upload": Upload}
_WORDS = {cls: word for word, cls in _KINDS.items()}
_NO_ROOM = (errno.EOPNOTSUPP, errno.ENOSPC, errno.E2BIG, errno.ERANGE)


class Unreadable(exception.NovaError):
    """There is no description, or it is damaged."""


def encode(record: Record) -> bytes:
    """A record as a description."""
    kind = _WORDS[type(record)]
    content = _dump({"schema": SCHEMA, "kind": kind, "fields": vars(_placeless(record))})
    return content[:-1] + b',"crc32":%d}' % zlib.crc32(content)


def _placeless(record: Record) -> Record:
    """A record as it is described."""
    if "." not in record.id or not isinstance(record, Object):
        return record
    return changed(record, id=record.id.partition(".")[0])


def same(one: Record, other: Record) -> bool:
    """Whether two records are described alike; their versions in the datastore do not count."""
    return changed(_placeless(one), version=0) == changed(_placeless(other), version=0)


def revision(record: Record) -> int:
    """What is higher for the later state of a record.  That of a version of an object goes from one record to another,
    each of which the datastore counts anew."""
    return record.revision if isinstance(record, Object) else record.version


_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _dump(content: dict) -> bytes:
    return _encode_json(content).encode()


def decode(data: bytes) -> Record:
    """The record of a description; fields that this version of Nova does not know are left out.

    :raises Unreadable:
    """
    try:
        content = json.loads(data)
        crc = content.pop("crc32")
        if crc != zlib.crc32(_dump(content)):
            raise Unreadable("its description is damaged")
        if content["schema"] != SCHEMA:
            raise Unreadable(f"its description has the schema {content['schema']}; known is {SCHEMA}")
        cls = _KINDS[content["kind"]]
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content["fields"].items() if name in known})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"its description is damaged: {error!r}") from None


def attach(fd: int, data: bytes) -> bool:
    """Put a description into a file's attribute, to be synced with the file; whether that could be."""
    try:
        os.setxattr(fd, ATTRIBUTE, data)
    except OSError as error:
        if error.errno in _NO_ROOM:
            return False
        raise
    return True


def write_aside(directory: int, name: str, data: bytes) -> None:
    """Write or replace a small file; what is left is to sync the directory.

    :param directory: its descriptor
    """
    temporary = TEMPORARY + uuid.uuid4().hex
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=directory)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise


@contextlib.contextmanager
def locked(path: str) -> Iterator[int]:
    """A directory's descriptor, while nobody else (of any process) changes descriptions in it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def read(path: str) -> Record:
    """The description of a file: the one beside it, or else its attribute.

    :raises Unreadable:
    """
    try:
        with open(path + ASIDE, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        try:
            data = os.getxattr(path, ATTRIBUTE)
        except OSError as error:
            raise Unreadable(f"it has no description: {error.strerror}") from None
    except OSError as error:
        raise Unreadable(f"its description cannot be read: {error.strerror}") from None
    record = decode(data)
    if os.path.basename(getattr(record, "file", "")) != os.path.basename(path):
        raise Unreadable("the description is that of another name of the same file; its own is lost")
    return record


def describe(path: str, record: Record) -> None:
    """Describe a file anew, unless it is gone or its description is of a later state of the record.

    Who changes a record describes it afterwards; two who do that at the same time leave the later one's.
    """
    if not os.path.exists(path):
        return
    with locked(os.path.dirname(path)) as directory:
        if not os.path.exists(path):
            return
        with contextlib.suppress(Unreadable):
            there = read(path)
            if revision(there) > revision(record) or same(there, record):
                return
        write_aside(directory, os.path.basename(path) + ASIDE, encode(record))
        os.fsync(directory)


def is_later(record: Record, there: Record) -> bool:
    """Whether a record is a later state than the one that is described, or is of a later life of its id."""
    return _age(record) >= _age(there) and not same(there, record)


def is_same_life(one: Record, other: Record) -> bool:
    """Whether two records are not just two that have had an id one after the other."""
    return _age(one)[0] == _age(other)[0]


def _age(record: Record) -> tuple[float, int]:
    """What is higher for the later of two records that have had an id one after the other."""
    return (getattr(record, "created", 0.0), record.version)


class Register:
    """Descriptions of records that have no file: one file each, named after the record's id.

    :param path: their directory; made when missing
    """

    def __init__(self, path: str):
        self.path = path
        os.makedirs(path, mode=0o750, exist_ok=True)

    def _file(self, id: str) -> str:
        if not id or id.startswith(".") or "/" in id:
            raise ValueError(f"{id!r} cannot be a file's name")
        return os.path.join(self.path, id + ".json")

    def put(self, record: Record) -> None:
        """Describe a record, unless a later one is described."""
        name = os.path.basename(self._file(record.id))
        with locked(self.path) as directory:
            with contextlib.suppress(Unreadable):
                there = self.get(record.id)
                if there is not None and not is_later(record, there):
                    return
            write_aside(directory, name, encode(record))
            os.fsync(directory)

    def get(self, id: str) -> Record | None:
        """A record, None where it is not described; :raises Unreadable:"""
        try:
            with open(self._file(id), "rb") as file:
                record = decode(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(f"its description cannot be read: {error.strerror}") from None
        if record.id != id:
            raise Unreadable(f"the description is that of {record.id}")
        return record

    def remove(self, record: Record) -> None:
        """Forget a record that is gone; not another one that has its id now."""
        with locked(self.path) as directory:
            with contextlib.suppress(Unreadable):
                there = self.get(record.id)
                if there is None or not is_same_life(there, record):
                    return
            os.unlink(self._file(record.id))
            os.fsync(directory)

    def ids(self, before: float = math.inf) -> list[str]:
        """The ids of all that are described, sorted; :param before: only since before that, in seconds since 1970"""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    if entry.name.endswith(".json") and entry.stat().st_mtime < before:
                        found.append(entry.name.removesuffix(".json"))
        return sorted(found)

    def remove_unfinished(self, limit: float) -> None:
        """Remove what was being written before `limit`, in seconds since 1970."""
        for name in os.listdir(self.path):
            if name.startswith(TEMPORARY) and not name.endswith(".json"):
                path = os.path.join(self.path, name)
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_mtime < limit:
                        os.unlink(path)
