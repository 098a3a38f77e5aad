"""The files of the object store: written once, whole or not at all, never changed.

A file is written without a name and gets one when all of it is on the disk (O_TMPFILE, fsync, linkat, fsync of the
directory); only then is it named in a record.  A crash in between leaves a file that no record names; :meth:`sweep`
removes those.  Everything here blocks; callers use :attr:`pool`.
"""

import errno
import logging
import os
import time
import uuid
from collections.abc import Iterator
from types import TracebackType

from nova import exception, process

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TEMPORARY = "tmp-"


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
            self._temporary = _TEMPORARY + uuid.uuid4().hex
            self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=self._directory)
        self._open = True

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view):]

    def publish(self) -> None:
        """Put all of it on the disk and give it its name."""
        os.fsync(self._file)
        target = os.path.basename(self.name)
        if self._temporary:
            os.rename(self._temporary, target, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._temporary = ""
        else:
            os.link(f"/proc/self/fd/{self._file}", target, dst_dir_fd=self._directory, follow_symlinks=True)
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
        os.makedirs(root, mode=0o750, exist_ok=True)
        self.pool = process.Pool(8, "objects")

    def new(self, owner: str) -> Writer:
        """Begin a file.

        :param owner: one letter and a hyphen, then the id of the record that will name it, which the sweep looks up
        """
        return Writer(self.root, f"{owner}-{uuid.uuid4().hex}")

    def link(self, file: str, owner: str) -> str:
        """Another name for the same bytes; returns it.

        :raises FileNotFoundError: the file is gone
        """
        name = f"{owner}-{uuid.uuid4().hex}"
        directory = _make_directory(self.root, name)
        os.link(self.path(file), os.path.join(directory, name))
        _sync_directory(directory)
        return f"{name[2:4]}/{name}"

    def path(self, file: str) -> str:
        """The absolute path of a file that a record names."""
        return os.path.join(self.root, file)

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

    def names(self, older_than: float) -> Iterator[str]:
        """The files that got their name more than `older_than` seconds ago."""
        limit = time.time() - older_than
        for directory in sorted(os.listdir(self.root)):
            path = os.path.join(self.root, directory)
            if not os.path.isdir(path):
                continue
            with os.scandir(path) as entries:
                for entry in entries:
                    # ctime: a copy is a new name of an old file
                    if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_ctime < limit:
                        yield f"{directory}/{entry.name}"

    def close(self) -> None:
        """Let the threads end."""
        self.pool.close()


def owner_of(file: str) -> tuple[str, str]:
    """The letter and the id of the record for which a file was made; two empty strings for no such file."""
    name = os.path.basename(file)
    letter, _, rest = name.partition("-")
    id, _, unique = rest.rpartition("-")
    return (letter, id) if id and unique else ("", "")


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
