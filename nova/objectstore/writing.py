"""Writing files of the object store: without a name first, then under one, when all of it is on the disk.

The files of requests that come at the same time are put on the disk together (:class:`Group`): one thread writes them,
syncs them, names them and syncs each directory once.  What happens to one of them is no matter of the others.
Everything else here blocks.
"""

import asyncio
import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

from nova import process
from nova.datastore import Record
from nova.objectstore import description, storage
from nova.objectstore.description import ASIDE, TEMPORARY
from nova.objectstore.models import Object, Part

_BLOCK = 1 << 20
#: how many files one thread puts on the disk, how many threads do that at most, and for how many a further one begins
_TOGETHER, _THREADS, _ENOUGH = 32, 4, 8
#: seconds that a file takes on a disk that is so slow that it is better to let the files wait for it side by side
_SLOW = 0.004


class Writer(storage.Writer):
    """A file that is being written."""

    def __init__(self, root: str, name: str):
        self._root = root
        self.name, self._target = f"{name[2:4]}/{name}", name
        self._directory = open_directory(root, name)
        self._temporary, self._aside = "", False
        try:
            self._file = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                os.close(self._directory)
                raise
            self._temporary = TEMPORARY + uuid.uuid4().hex
            self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=self._directory)
        self._open = True

    def write(self, data: bytes, /) -> None:
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
        self.settle(record)
        self.link()
        self.sync_directory()
        self.close()

    def settle(self, record: Record) -> None:
        """Put it on the disk, and with it what it is described as."""
        data = description.encode(record)
        self._aside = not description.attach(self._file, data)
        os.fsync(self._file)
        if self._aside:
            description.write_aside(self._directory, self._target + ASIDE, data)

    def link(self) -> None:
        """Give it its name."""
        try:
            if self._temporary:
                os.rename(self._temporary, self._target, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._temporary = ""
            else:
                os.link(f"/proc/self/fd/{self._file}", self._target, dst_dir_fd=self._directory, follow_symlinks=True)
        except OSError:
            if self._aside:
                os.unlink(self._target + ASIDE, dir_fd=self._directory)
            raise

    def sync_directory(self) -> None:
        """Put its name on the disk."""
        os.fsync(self._directory)

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                if self._temporary:
                    os.unlink(self._temporary, dir_fd=self._directory)
            finally:
                os.close(self._file)
                os.close(self._directory)


def put_all(root: str, wanted: Sequence[tuple[Object | Part, bytes]]) -> list[Exception | None]:
    """Put files on the disk, each described as the record that will name it.

    :param wanted: the records, and the bytes of their files
    :returns: for each what went wrong
    """
    failures: list[Exception | None] = [None] * len(wanted)
    writers: dict[int, Writer] = {}

    def step(numbers: Iterable[int], do: Callable[[int], None]) -> None:
        for n in numbers:
            if failures[n] is None:
                try:
                    do(n)
                except Exception as error:  # whatever it is, it concerns this one alone
                    failures[n] = error

    def begin(n: int) -> None:
        record, data = wanted[n]
        writers[n] = Writer(root, os.path.basename(record.file))
        writers[n].write(data)
    step(range(len(wanted)), begin)
    step(writers, lambda n: writers[n].settle(wanted[n][0]))
    step(writers, lambda n: writers[n].link())
    by_directory: dict[str, list[int]] = {}
    for n in writers:
        by_directory.setdefault(os.path.dirname(wanted[n][0].file), []).append(n)
    for numbers in by_directory.values():
        named = [n for n in numbers if failures[n] is None]
        step(named[:1], lambda n: writers[n].sync_directory())
        for n in named[1:]:
            failures[n] = failures[named[0]]
    for writer in writers.values():
        with contextlib.suppress(OSError):  # what was not published may stay with a name that the sweep removes
            writer.close()
    return failures


class Group:
    """Puts the files of several requests on the disk together.

    :param root: where
    :param pool: the threads
    """

    def __init__(self, root: str, pool: process.Pool):
        self._root, self._pool = root, pool
        self._waiting: list[tuple[Object | Part, bytes, asyncio.Future[None]]] = []
        self._threads: set[asyncio.Task[None]] = set()
        self._is_slow = False

    def put(self, record: Object | Part, data: bytes) -> "asyncio.Future[None]":
        """Put a file on the disk under the name that `record` has, described as that.

        :raises OSError: (in the future; ENOSPC) there is no room for it
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((record, data, done))
        if self._is_slow or len(self._waiting) in (1, _ENOUGH):
            loop.call_soon(self._begin)  # with those that come in this turn
        return done

    def _begin(self) -> None:
        while self._waiting and len(self._threads) < _THREADS and (
                not self._threads or self._is_slow or len(self._waiting) >= _ENOUGH):
            number = min(_TOGETHER, -(-len(self._waiting) // (_THREADS - len(self._threads)) if self._is_slow else
                         len(self._waiting)))
            batch, self._waiting = self._waiting[:number], self._waiting[number:]
            task = asyncio.ensure_future(self._put(batch))
            self._threads.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: "asyncio.Task[None]") -> None:
        self._threads.discard(task)
        self._begin()

    async def _put(self, batch: list[tuple[Object | Part, bytes, "asyncio.Future[None]"]]) -> None:
        failures: Sequence[Exception | None]
        began = time.monotonic()
        try:
            failures = await process.wait(self._pool.run(put_all, self._root, [(r, d) for r, d, _ in batch]))
        except asyncio.CancelledError:  # the threads have ended
            for _, _, done in batch:
                done.cancel()
            raise
        except Exception as error:  # whatever it is becomes the answer of them all
            failures = [error] * len(batch)
        self._is_slow = time.monotonic() - began > _SLOW * len(batch)
        for (_, _, done), failure in zip(batch, failures, strict=True):
            if done.done():
                continue  # who asked has gone away; the sweep finds the file
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)


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


def open_directory(root: str, name: str) -> int:
    """A descriptor of the directory for a file of this name, which is made when missing."""
    path = os.path.join(root, name[2:4])
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        os.makedirs(path, mode=0o750, exist_ok=True)
        above = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(above)
        finally:
            os.close(above)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
