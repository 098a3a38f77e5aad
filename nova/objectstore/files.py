"""The files of the object store: written once, whole or not at all, never changed.

A file is written without a name and gets one when all of it, and its description (nova.objectstore.description), is on
the disk (O_TMPFILE, fsync, linkat, fsync of the directory); only then is it named in a record.  A crash in between
leaves a file that no record names; the sweep removes those.  Everything here blocks; callers use :attr:`pool`.
"""

import contextlib
import errno
import logging
import os
import time
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

from nova import exception, failpoint, process
from nova.datastore import Record
from nova.objectstore import description
from nova.objectstore.description import ASIDE, TEMPORARY
from nova.objectstore.models import Object, Part

log = logging.getLogger(__name__)

failpoint.declare("objectstore.copy.described", "the description of a copy is on the disk, its file is not")

_BLOCK = 1 << 20
#: below how many bytes it is not asked beforehand whether there is room on the disk
_SMALL = 1 << 20
#: the directory of what verification found damaged
QUARANTINE = "quarantine"


class Writer:
    """A file that is being written; it vanishes unless :meth:`publish` is called."""

    def __init__(self, root: str, name: str):
        self._root = root
        self.name = f"{name[2:4]}/{name}"
        self._directory = os.open(_make_directory(root, name), os.O_RDONLY | os.O_DIRECTORY)
        self._temporary = ""
        try:
            self._file = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                os.close(self._directory)
                raise
            self._temporary = TEMPORARY + uuid.uuid4().hex
            self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=self._directory)
        self._open = True

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view):]

    def copy(self, path: str) -> None:
        """Append another file; what it has no blocks for gets none here."""
        with open(path, "rb", buffering=0) as source:
            size, end = os.fstat(source.fileno()).st_size, os.lseek(self._file, 0, os.SEEK_END)
            for start, stop in data_of(source.fileno(), size):
                os.lseek(self._file, end + start, os.SEEK_SET)
                os.lseek(source.fileno(), start, os.SEEK_SET)
                while start < stop:
                    sent = os.sendfile(self._file, source.fileno(), None, min(_BLOCK, stop - start))
                    if not sent:
                        raise OSError(errno.EIO, "it was cut while it was copied", path)
                    start += sent
            os.ftruncate(self._file, end + size)

    def publish(self, record: Record) -> None:
        """Put all of it on the disk and give it its name.

        :param record: what will name it, which is what it is described as
        """
        target = os.path.basename(self.name)
        data = description.encode(record)
        attached = description.attach(self._file, data)
        os.fsync(self._file)
        if not attached:
            description.write_aside(self._directory, target + ASIDE, data)
        try:
            if self._temporary:
                os.rename(self._temporary, target, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._temporary = ""
            else:
                os.link(f"/proc/self/fd/{self._file}", target, dst_dir_fd=self._directory, follow_symlinks=True)
        except OSError:
            if not attached:
                os.unlink(target + ASIDE, dir_fd=self._directory)
            raise
        os.fsync(self._directory)
        self.close()

    def close(self) -> None:
        """Let go of it; what was not published is gone.  May be called again."""
        if self._open:
            self._open = False
            if self._temporary:
                os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self._file)
            os.close(self._directory)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Files:
    """The directory of the files.

    :param root: its absolute path; made when missing
    """

    def __init__(self, root: str):
        self.root = root
        os.makedirs(os.path.join(root, QUARANTINE), mode=0o750, exist_ok=True)
        self.buckets = description.Register(os.path.join(root, "buckets"))
        self.uploads = description.Register(os.path.join(root, "uploads"))
        self.pool = process.Pool(8, "objects")

    def new(self, owner: str, size: int = 0) -> Writer:
        """Begin a file.

        :param owner: one letter and a hyphen, then the id of the record that will name it, which the sweep looks up
        :param size: how many bytes it will have, as far as that is known
        :raises OSError: (ENOSPC) there is no room for it on the disk
        """
        if size >= _SMALL:
            there = os.statvfs(self.root)
            if there.f_bavail * there.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.root)
        return Writer(self.root, f"{owner}-{uuid.uuid4().hex}")

    def id(self) -> str:
        """What the directory is called; empty: it has no name yet."""
        try:
            with open(os.path.join(self.root, "id")) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def set_id(self, id: str) -> None:
        """Name the directory, unless somebody was faster."""
        with description.locked(self.root) as directory:
            if not self.id():
                description.write_aside(directory, "id", id.encode())
                os.fsync(directory)

    def name(self, owner: str) -> str:
        """A name for a copy; :param owner: as for :meth:`new`"""
        name = f"{owner}-{uuid.uuid4().hex}"
        return f"{name[2:4]}/{name}"

    def link(self, file: str, record: Object) -> None:
        """Another name for the same bytes: the one that `record` has.

        Its description is beside it, and is on the disk first: the attribute of the file says what others are.

        :raises FileNotFoundError: the file is gone
        """
        target = self.path(record.file)
        directory = os.open(_make_directory(self.root, os.path.basename(target)), os.O_RDONLY | os.O_DIRECTORY)
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
        """Make a finished file of somebody else's one of the store's: the one that `record` names.

        Where both are in one file system it is only renamed.  Its old name is gone afterwards.

        :raises OSError: (ENOSPC) there is no room for it
        """
        name = os.path.basename(record.file)
        directory = os.open(_make_directory(self.root, name), os.O_RDONLY | os.O_DIRECTORY)
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

    def mark(self, record: Object) -> None:
        """Make the empty file of a delete marker."""
        with Writer(self.root, os.path.basename(record.file)) as writer:
            writer.publish(record)

    def describe(self, record: Object | Part) -> None:
        """Describe the file of a record that was changed, unless it is gone; later changes are not undone."""
        description.describe(self.path(record.file), record)

    def description(self, file: str) -> Record:
        """What a file is described as; :raises description.Unreadable:"""
        return description.read(self.path(file))

    def open(self, found: Object | Part) -> BinaryIO:
        """Open the file of a record.

        :raises FileNotFoundError: it is gone
        :raises OSError: (EIO) it has not as many bytes as the record says
        """
        file = open(self.path(found.file), "rb", 0)
        size = os.fstat(file.fileno()).st_size
        if size != found.size:
            file.close()
            raise OSError(errno.EIO, f"it has {size} bytes, not {found.size}", found.file)
        return file

    def quarantine(self, record: Object | Part) -> None:
        """Put a damaged file, and what it is described as, where nobody reads it."""
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
        """What is in quarantine and still has its record: names for :meth:`description`."""
        names = sorted(os.listdir(os.path.join(self.root, QUARANTINE)))
        return [f"{QUARANTINE}/{name.removesuffix(ASIDE)}" for name in names if name.endswith(ASIDE)]

    def path(self, file: str) -> str:
        """The absolute path of a file that a record names."""
        return os.path.join(self.root, file)

    def exists(self, file: str) -> bool:
        """Whether a file is there."""
        return os.path.exists(self.path(file))

    def read(self, file: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a file, block by block.

        :raises FileNotFoundError: the file is gone
        """
        with open(self.path(file), "rb", buffering=0) as f:
            f.seek(start)
            while length is None or length > 0:
                block = f.read(_BLOCK if length is None else min(_BLOCK, length))
                if not block:
                    return
                if length is not None:
                    length -= len(block)
                yield block

    def remove(self, *files: str) -> None:
        """Remove files that no record names any more; they may be gone already."""
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
        """The files that got their name more than `older_than` seconds ago, and descriptions that lack their file."""
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

    def close(self) -> None:
        """Let the threads end."""
        self.pool.close()


def owner_of(file: str) -> tuple[str, str]:
    """The letter and the id of the record for which a file was made; two empty strings for no such file."""
    name = os.path.basename(file).removesuffix(ASIDE)
    letter, _, rest = name.partition("-")
    id, _, unique = rest.rpartition("-")
    return (letter, id) if id and unique else ("", "")


def data_of(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: beginning and end in bytes of each piece between holes.

    :param file: its descriptor
    :param size: in bytes
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole is left
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


class Undo:
    """Removes files that were published when the block ends in an error that says that no record names them.

    After any other error (the datastore did not answer, say) a record may name them, and the sweep decides.
    """

    def __init__(self, files: Files, *names: str):
        self._files, self._names = files, names

    def __enter__(self) -> "Undo":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if isinstance(error, exception.S3Error):
            self._files.remove(*self._names)


def _make_directory(root: str, name: str) -> str:
    """The directory of a file; two characters of its name spread the files over 256 of them."""
    directory = os.path.join(root, name[2:4])
    if not os.path.isdir(directory):
        os.makedirs(directory, mode=0o750, exist_ok=True)
        _sync_directory(root)
    return directory


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
