"""The files of the object store in a directory.

A file is written without a name and gets one when all of it, and its description (nova.objectstore.description), is on
the disk (nova.objectstore.writing); only then is it named in a record.  A crash in between leaves a file that no record
names; the sweep removes those.
"""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from nova import failpoint, process
from nova.datastore import Record
from nova.objectstore import description, storage
from nova.objectstore.description import ASIDE
from nova.objectstore.models import Object, Part
from nova.objectstore.writing import Group, Writer, open_directory

log = logging.getLogger(__name__)

failpoint.declare("objectstore.copy.described", "the description of a copy is on the disk, its file is not")

_BLOCK = 1 << 20
#: below how many bytes it is not asked beforehand whether there is room on the disk
_SMALL = 1 << 20
#: ioctl of Linux's file attributes, and the one that `chattr +T` sets
_GET_FLAGS, _SET_FLAGS, _TOP_OF_HIERARCHIES = 0x80086601, 0x40086602, 0x00020000
#: the directory of what verification found damaged
QUARANTINE = "quarantine"


class Files(storage.Storage):
    """The directory of the files.

    :param root: its absolute path; made when missing
    """

    nginx_has_them = True

    def __init__(self, root: str):
        self.root = self.place = root
        if not os.path.isdir(os.path.join(root, QUARANTINE)):
            os.makedirs(os.path.join(root, QUARANTINE), mode=0o750, exist_ok=True)
            _spread(root)
        self.buckets = description.Register(os.path.join(root, "buckets"))
        self.uploads = description.Register(os.path.join(root, "uploads"))
        self.pool = process.Pool(8, "objects")
        self._group = Group(root, self.pool)

    def new(self, owner: str, size: int = 0) -> Writer:
        if size >= _SMALL:
            there = os.statvfs(self.root)
            if there.f_bavail * there.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.root)
        return Writer(self.root, f"{owner}-{uuid.uuid4().hex}")

    def put(self, record: Object | Part, data: bytes) -> None:
        with Writer(self.root, os.path.basename(record.file)) as writer:
            writer.write(data)
            writer.publish(record)

    async def put_soon(self, record: Object | Part, data: bytes) -> None:
        await self._group.put(record, data)

    def id(self) -> str:
        try:
            with open(os.path.join(self.root, "id")) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def set_id(self, id: str) -> None:
        with description.locked(self.root) as directory:
            if not self.id():
                description.write_aside(directory, "id", id.encode())
                os.fsync(directory)

    def link(self, file: str, record: Object) -> None:
        """Give the same bytes another name: the one that `record` has.

        Its description is beside it, and is on the disk first: the attribute of the file says what others are.
        """
        target = self.path(record.file)
        directory = open_directory(self.root, os.path.basename(target))
        try:
            description.write_aside(directory, os.path.basename(target) + ASIDE, description.encode(record))
            failpoint.hit("objectstore.copy.described")
            try:
                os.link(self.path(file), target)
            except OSError:
                os.unlink(target + ASIDE)
                raise
            os.fsync(directory)
        finally:
            os.close(directory)

    def take(self, path: str, record: Object) -> None:
        """Where both are in one file system it is only renamed."""
        name = os.path.basename(record.file)
        directory = open_directory(self.root, name)
        try:
            if os.stat(path).st_dev != os.fstat(directory).st_dev:
                with Writer(self.root, name) as writer:
                    writer.copy(path)
                    writer.publish(record)
                os.unlink(path)
                return
            data = description.encode(record)
            with open(path, "rb+") as file:
                os.fchmod(file.fileno(), 0o640)
                attached = description.attach(file.fileno(), data)
                os.fsync(file.fileno())
            if not attached:
                description.write_aside(directory, name + ASIDE, data)
            os.rename(path, name, dst_dir_fd=directory)
            os.fsync(directory)
        finally:
            os.close(directory)

    def describe(self, record: Object | Part) -> None:
        description.describe(self.path(record.file), record)

    def description(self, file: str) -> Record:
        return description.read(self.path(file))

    def open(self, found: Object | Part, start: int = 0, length: int | None = None) -> storage.Reader:
        file = self._open(found)
        if length is not None and length < found.size - start:
            return _Range(file, start, length)
        file.seek(start)
        return file

    def _open(self, found: Object | Part) -> BinaryIO:
        file = open(self.path(found.file), "rb", 0)
        size = os.fstat(file.fileno()).st_size
        if size != found.size:
            file.close()
            raise OSError(errno.EIO, f"it has {size} bytes, not {found.size}", found.file)
        return file

    def read_cached(self, found: Object, start: int, length: int) -> bytes | None:
        """Does not wait for the disk: what is few and still in memory is read at once, because to hand it to a thread
        takes longer."""
        buffer = bytearray(length)
        with self._open(found) as file:
            try:
                return bytes(buffer) if os.preadv(file.fileno(), [buffer], start, os.RWF_NOWAIT) == length else None
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                    return None
                raise

    def remove_unfinished(self) -> None:
        """A dead writer's file is gone, or is among those that have no record."""

    def quarantine(self, record: Object | Part) -> None:
        place = os.path.join(self.root, QUARANTINE)
        name = os.path.basename(record.file)
        with description.locked(place) as directory:
            description.write_aside(directory, name + ASIDE, description.encode(record))
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path(record.file), os.path.join(place, name))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(record.file) + ASIDE)
            os.fsync(directory)

    def quarantined(self) -> list[str]:
        names = sorted(os.listdir(os.path.join(self.root, QUARANTINE)))
        return [f"{QUARANTINE}/{name.removesuffix(ASIDE)}" for name in names if name.endswith(ASIDE)]

    def path(self, file: str) -> str:
        """The absolute path of a file that a record names."""
        return os.path.join(self.root, file)

    def exists(self, file: str) -> bool:
        return os.path.exists(self.path(file))

    def read(self, file: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with open(self.path(file), "rb", buffering=0) as f:
            f.seek(start)
            while length is None or length > 0:
                block = f.read(_BLOCK if length is None else min(_BLOCK, length))
                if not block:
                    return
                if length is not None:
                    length -= len(block)
                yield block

    def reread(self, file: str) -> Iterator[bytes]:
        with open(self.path(file), "rb", buffering=0) as f:
            # what is in memory may be better than what is on the disk
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while block := f.read(_BLOCK):
                yield block
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def local(self, found: Object, directory: str) -> str:
        return self.path(found.file)

    def remove(self, *files: str) -> None:
        for file in files:
            try:
                os.unlink(self.path(file))
            except FileNotFoundError:
                log.info("%s was gone already", file)
                self._release(os.path.basename(file))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(file) + ASIDE)

    def _release(self, name: str) -> None:
        """What is in quarantine has no record any more; it stays there for who wants to look at it."""
        aside = os.path.join(self.root, QUARANTINE, name + ASIDE)
        with contextlib.suppress(FileNotFoundError):
            os.rename(aside, aside + ".removed")

    def names(self, older_than: float) -> Iterator[str]:
        limit = time.time() - older_than
        for directory in sorted(os.listdir(self.root)):
            path = os.path.join(self.root, directory)
            if len(directory) != 2 or not os.path.isdir(path):
                continue
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.endswith(ASIDE) and os.path.exists(entry.path.removesuffix(ASIDE)):
                        continue
                    # ctime: a copy is a new name of an old file
                    with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                        if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_ctime < limit:
                            yield f"{directory}/{entry.name}"


class _Range:
    """A range of an open file."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._file, self._left = file, length
        file.seek(start)

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _spread(path: str) -> None:
    """Have an ext4 put the directories that are made in this one far from each other on the disk.

    Else all files would share a few block groups, in which a place for a new file takes ever longer to be found.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(directory, _GET_FLAGS, flags)
        fcntl.ioctl(directory, _SET_FLAGS, struct.pack("i4x", struct.unpack_from("i", flags)[0] | _TOP_OF_HIERARCHIES))
    except OSError as error:
        log.debug("the file system does not spread directories: %s", error)
    finally:
        os.close(directory)
