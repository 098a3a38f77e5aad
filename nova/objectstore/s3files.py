"""The files of the object store in a bucket of another S3, such as that of a Ceph cluster.

A file is one object there, under the file's name.  Its description is metadata of this object, or, where that cannot be
(they have no room for it; a file of several parts, whose metadata are told before its bytes are known; a change of the
record later on), an object beside it, whose name ends in ``.meta`` and which wins.  It is there before its file.  What
has no file is described in objects below ``buckets/`` and ``uploads/``.  A small file is written at once, a large one
in parts while it comes; the copies that S3 clients ask for, and the parts that they put together, are made there, and
their bytes do not come here.
"""

import base64
import binascii
import contextlib
import logging
import math
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from nova import exception, failpoint, process
from nova.datastore import Record
from nova.flags import FLAGS, DEFINE_integer
from nova.objectstore import description, storage
from nova.objectstore.description import ASIDE, Unreadable
from nova.objectstore.models import Object, Part
from nova.objectstore.s3backend import Backend, Download

log = logging.getLogger(__name__)

DEFINE_integer("objectstore_s3_upload_age", 86400, "seconds after which the sweep ends an upload to the S3 that keeps "
               "the files, because whoever began it must be dead", lower_bound=0)

failpoint.declare("s3files.uploaded", "all parts of a large file are at the backend, which has not put them together")
failpoint.declare("s3files.described", "the description of a file is at the backend, the file is not")

_BLOCK = 1 << 20
#: bytes of a part of a large file: the least that S3 takes, each upload has one or two of them in memory; and how many
#: parts a file may have
PART, _MOST = 5 << 20, 10000
#: bytes of the largest object that CopyObject copies, and of the parts that a larger one is copied in
_LARGEST_COPY, _COPY_PART = 5 << 30, 1 << 30
#: characters of metadata that all S3s have room for, beside the key
_METADATA = 1900
_KEY = "nova"
#: parts that are put together at a time
_AT_ONCE = 4
_QUARANTINE = "quarantine/"


def _packed(record: Record) -> dict[str, str]:
    """A description as metadata; none if it is too long."""
    text = base64.b64encode(zlib.compress(description.encode(record))).decode()
    return {_KEY: text} if len(text) <= _METADATA else {}


def _unpacked(text: str) -> Record:
    try:
        return description.decode(zlib.decompress(base64.b64decode(text, validate=True)))
    except (binascii.Error, ValueError, zlib.error) as error:
        raise Unreadable(f"its description is damaged: {error}") from None


class Writer(storage.Writer):
    """A file that is being written.

    :param size: how many bytes it will have, as far as that is known: the parts of a very large one are larger
    """

    def __init__(self, backend: Backend, name: str, size: int = 0):
        self._backend, self.name = backend, name
        self._part = max(PART, -(-size // _MOST))
        self._waiting = bytearray()
        self._upload = ""
        self._etags: list[str] = []
        self._size = 0

    def write(self, data: bytes, /) -> None:
        self._waiting += data
        self._size += len(data)
        while len(self._waiting) >= self._part:
            part = bytes(memoryview(self._waiting)[:self._part])
            del self._waiting[:self._part]
            self._send(part)

    def _send(self, data: bytes | bytearray) -> None:
        self._begin()
        self._etags.append(self._backend.part(self.name, self._upload, len(self._etags) + 1, data))

    def _begin(self) -> None:
        if not self._upload:
            self._upload = self._backend.begin(self.name)

    def append(self, parts: Sequence[Part]) -> bool:
        self._copy([(part.file, 0, part.size, part.size) for part in parts if part.size])
        return True

    def copy(self, file: str, size: int) -> None:
        """Append another file that is too large for one copy."""
        self._copy([(file, at, min(_COPY_PART, size - at), size) for at in range(0, size, _COPY_PART)])

    def _copy(self, ranges: Sequence[tuple[str, int, int, int]]) -> None:
        """Append ranges of other files: file, offset, length, size of the file."""
        if not ranges:
            return
        self._begin()

        def copy(number: int, file: str, start: int, length: int, size: int) -> str:
            return self._backend.copy_part(self.name, self._upload, number, file, start, length, size)
        threads = ThreadPoolExecutor(_AT_ONCE)  # others than ours: they are waited for here
        try:
            self._etags += threads.map(copy, range(1, len(ranges) + 1), *zip(*ranges, strict=True))
        finally:
            threads.shutdown(cancel_futures=True)
        self._size += sum(length for _, _, length, _ in ranges)

    def publish(self, record: Record) -> None:
        metadata = {} if self._upload else _packed(record)
        if self._upload and self._waiting:
            self._send(self._waiting)
        failpoint.hit("s3files.uploaded")
        if not metadata:
            self._backend.put(self.name + ASIDE, description.encode(record))
            failpoint.hit("s3files.described")
        if self._upload:
            self._backend.complete(self.name, self._upload, self._etags, self._size)
            self._upload = ""
        else:
            self._backend.put(self.name, self._waiting, metadata)
        self._waiting = bytearray()

    def close(self) -> None:
        self._waiting = bytearray()
        upload, self._upload = self._upload, ""
        if upload:
            try:
                self._backend.abort(self.name, upload)
            except (exception.Unavailable, OSError) as error:
                log.warning("%s: left to the sweep: %s", self.name, error)


class Register(storage.Register):
    """Descriptions of records that have no file: an object each.

    :param prefix: of their keys
    """

    def __init__(self, backend: Backend, prefix: str):
        self._backend, self._prefix = backend, prefix

    def _key(self, id: str) -> str:
        if not id or "/" in id:
            raise ValueError(f"{id!r} cannot be part of a key")
        return f"{self._prefix}{id}.json"

    def put(self, record: Record) -> None:
        def decide(there: bytes | None) -> bytes | None:
            if there is not None:
                with contextlib.suppress(Unreadable):
                    if not description.is_later(record, description.decode(there)):
                        return None
            return description.encode(record)
        self._backend.change(self._key(record.id), decide)

    def get(self, id: str) -> Record | None:
        data, _ = self._backend.find(self._key(id))
        if data is None:
            return None
        record = description.decode(data)
        if record.id != id:
            raise Unreadable(f"the description is that of {record.id}")
        return record

    def remove(self, record: Record) -> None:
        with contextlib.suppress(Unreadable):
            there = self.get(record.id)
            if there is None or not description.is_same_life(there, record):
                return
        self._backend.delete([self._key(record.id)])

    def ids(self, before: float = math.inf) -> list[str]:
        age = time.time() - before
        return sorted(found.key.removeprefix(self._prefix).removesuffix(".json")
                      for found in self._backend.list(self._prefix)
                      if found.key.endswith(".json") and found.age > age)

    def remove_unfinished(self, limit: float) -> None:
        """There is nothing of the kind."""


class S3Files(storage.Storage):
    """The files in the bucket.

    :param threads: how many calls at a time
    """

    def __init__(self, backend: Backend, threads: int):
        self.backend, self.place = backend, backend.place
        self.buckets, self.uploads = Register(backend, "buckets/"), Register(backend, "uploads/")
        self.pool = process.Pool(threads, "objects")

    # -- what is new --

    def new(self, owner: str, size: int = 0) -> Writer:
        return Writer(self.backend, self.name(owner), size)

    def put(self, record: Object | Part, data: bytes) -> None:
        with Writer(self.backend, record.file) as writer:
            writer.write(data)
            writer.publish(record)

    def take(self, path: str, record: Object) -> None:
        with open(path, "rb") as file, Writer(self.backend, record.file, record.size) as writer:
            while block := file.read(_BLOCK):
                writer.write(block)
            writer.publish(record)
        os.unlink(path)

    def link(self, file: str, record: Object) -> None:
        if record.size > _LARGEST_COPY:
            with Writer(self.backend, record.file) as writer:
                writer.copy(file, record.size)
                writer.publish(record)
            return
        metadata = _packed(record)
        if not metadata:
            self.backend.put(record.file + ASIDE, description.encode(record))
            failpoint.hit("s3files.described")
        self.backend.copy(file, record.file, metadata)

    # -- what is there --

    def open(self, found: Object | Part, start: int = 0, length: int | None = None) -> storage.Reader:
        return Download(self.backend, found.file, start, length, found.size)

    def read(self, file: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length == 0:
            return
        with contextlib.closing(Download(self.backend, file, start, length)) as download:
            while block := download.read(_BLOCK):
                yield block

    def reread(self, file: str) -> Iterator[bytes]:
        return self.read(file)

    def local(self, found: Object, directory: str) -> str:
        path = os.path.join(directory, uuid.uuid4().hex)
        with open(path, "xb") as file, contextlib.closing(self.open(found)) as source:
            while block := source.read(_BLOCK):
                file.write(block)
        return path

    def exists(self, file: str) -> bool:
        try:
            self.backend.head(file)
        except FileNotFoundError:
            return False
        return True

    def names(self, older_than: float) -> Iterator[str]:
        last = ""
        for found in self.backend.list():
            if found.key[2:3] != "/":
                continue  # none of the files
            has_file = found.key.endswith(ASIDE) and found.key == last + ASIDE
            last = found.key
            if not has_file and (older_than <= 0 or found.age > older_than):
                yield found.key

    # -- what it is described as --

    def describe(self, record: Object | Part) -> None:
        def decide(there: bytes | None) -> bytes | None:
            with contextlib.suppress(Unreadable):
                told = self._told(record.file, there)
                if description.revision(told) > description.revision(record) or description.same(told, record):
                    return None
            return description.encode(record)
        with contextlib.suppress(FileNotFoundError):
            self.backend.head(record.file)
            self.backend.change(record.file + ASIDE, decide)

    def description(self, file: str) -> Record:
        there, _ = self.backend.find(file + ASIDE)
        return self._told(file, there)

    def _told(self, file: str, aside: bytes | None) -> Record:
        """What a file is described as.

        :param aside: what is beside it
        """
        if aside is not None:
            record = description.decode(aside)
        else:
            try:
                metadata = self.backend.head(file).get("Metadata", {})
            except FileNotFoundError:
                raise Unreadable("it has no description") from None
            if _KEY not in metadata:
                raise Unreadable("it has no description")
            record = _unpacked(metadata[_KEY])
        if os.path.basename(getattr(record, "file", "")) != os.path.basename(file):
            raise Unreadable("the description is that of another file; its own is lost")
        return record

    # -- what goes --

    def remove(self, *files: str) -> None:
        # what is in quarantine has no record any more; it stays there for who wants to look at it
        self.backend.delete([key for file in files for key in (
            file, file + ASIDE, f"{_QUARANTINE}{os.path.basename(file)}{ASIDE}")])

    def remove_unfinished(self) -> None:
        for key, upload, age in list(self.backend.uploads()):
            if age > FLAGS.objectstore_s3_upload_age or FLAGS.objectstore_s3_upload_age == 0:
                log.info("ending the upload of %s to the backend, which was not completed", key)
                self.backend.abort(key, upload)

    def quarantine(self, record: Object | Part) -> None:
        place = _QUARANTINE + os.path.basename(record.file)
        self.backend.put(place + ASIDE, description.encode(record))
        with contextlib.suppress(FileNotFoundError):
            size = self.backend.head(record.file)["ContentLength"]
            if size > _LARGEST_COPY:
                with Writer(self.backend, place) as writer:
                    writer.copy(record.file, size)
                    writer.publish(record)
            else:
                self.backend.copy(record.file, place, _packed(record))
        self.backend.delete([record.file, record.file + ASIDE])

    def quarantined(self) -> list[str]:
        return [found.key.removesuffix(ASIDE) for found in self.backend.list(_QUARANTINE) if found.key.endswith(ASIDE)]

    # -- all of them --

    def id(self) -> str:
        data, _ = self.backend.find("id")
        return (data or b"").decode()

    def set_id(self, id: str) -> None:
        self.backend.change("id", lambda there: None if there else id.encode())

    def close(self) -> None:
        super().close()
        self.backend.close()
