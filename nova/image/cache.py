"""The compute host's cache of image files: one copy per content, checked before it is used.

A file is called after the SHA-256 of its content.  It is fetched once, however many guests wait for it, and gets its
name when it has the right hash; until then what is here of it stays, through a restart too (nova.image.download).  The
files together have a limit: those that were not used for the longest go first, and none goes that an instance of this
host has.  Several processes may share the directory.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from nova import exception, failpoint, process
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_float, DEFINE_integer
from nova.image import models
from nova.image.download import Download
from nova.process import in_thread, wait

DEFINE_float("image_fetch_timeout", 1800, "seconds that fetching one image may take", lower_bound=1)
DEFINE_integer("image_fetch_attempts", 5, "attempts to fetch an image that bring nothing new, after which the "
               "launch is tried again later", lower_bound=1)
DEFINE_float("image_cache_age", 86400, "seconds that an image stays in a compute host's cache when nobody uses it",
             lower_bound=0)
DEFINE_float("image_cache_gb", 50, "GiB of disk that a compute host's cached images may take; those that were not used "
             "for the longest go first, and none that an instance uses; 0: no limit", lower_bound=0)

LOG = logging.getLogger(__name__)

failpoint.declare("compute.image.fetched", "an image is fetched and checked, and does not have its name yet")

_NAME = re.compile("[0-9a-f]{64}")
_PART = ".part-"
#: downloads at the same time
_pool = process.Pool(4, "download")

#: tells the hashes of the images that instances of this host use
Used = Callable[[], Awaitable[set[str]]]
Progress = Callable[[int, int], None]


async def _nobody() -> set[str]:
    return set()


@dataclass
class _File:
    """A file of the cache: its name, when it was last used (ns since the epoch), bytes of disk that it takes."""

    name: str
    used: int
    size: int


@dataclass
class _Turn:
    """One content: its lock, and how many wait for it or have it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class ImageCache:
    """The files in one directory.

    :param url: tells where the object store hands images out, without the image's id
    """

    def __init__(self, directory: str, store: Store, url: Callable[[], str]):
        self._directory, self._store, self._url = directory, store, url
        self._turns: dict[str, _Turn] = {}
        #: asked before any file is removed
        self.used: Used = _nobody

    def start(self) -> None:
        """Make the directory and remove what an earlier process left that nothing can be made of."""
        os.makedirs(self._directory, exist_ok=True)
        for name in os.listdir(self._directory):
            if name.startswith(_PART) and not _NAME.fullmatch(name.removeprefix(_PART)):
                os.unlink(os.path.join(self._directory, name))

    def path(self, sha256: str) -> str:
        """Where the file of this content is, or would be."""
        return os.path.join(self._directory, sha256)

    async def fetch(self, image_id: str, sha256: str, progress: Progress = lambda done, size: None) -> str:
        """Have an image here.

        :param progress: told how many bytes are here and how many there are, when they have to be fetched; called in
            another thread
        :returns: the path of the file
        :raises exception.ImageUnavailable: the object store does not have it (any more), or it is not what it should be
        :raises exception.NoRoom: the disk is full, and nothing in the cache can go
        :raises exception.NovaError: it cannot be had now
        """
        async with self._turn(sha256):
            if not await wait(in_thread(self._touch, sha256)):
                await self._fetch(image_id, sha256, progress)
                await self._shrink(FLAGS.image_cache_gb * (1 << 30), keep=sha256)
        return self.path(sha256)

    @contextlib.asynccontextmanager
    async def _turn(self, sha256: str) -> AsyncIterator[None]:
        """One at a time for each content."""
        turn = self._turns.setdefault(sha256, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                self._turns.pop(sha256, None)

    def _touch(self, sha256: str) -> bool:
        """Note that a file is used now; False when it is not here."""
        with self._locked():
            try:
                os.utime(self.path(sha256), ns=(time.time_ns(),) * 2)
            except FileNotFoundError:
                return False
        return True

    async def _fetch(self, image_id: str, sha256: str, progress: Progress) -> None:
        LOG.info("fetching %s", image_id)
        deadline = time.monotonic() + FLAGS.image_fetch_timeout
        secret = await models.fetch_secret(self._store)
        async with self._part(image_id, sha256, deadline) as file:
            if file is None:
                return
            while True:
                download = Download(file, image_id, sha256, self._url() + image_id,
                                    lambda: {"X-Nova-Token": models.fetch_token(secret, image_id)}, deadline,
                                    FLAGS.image_fetch_attempts, progress)
                try:
                    await self._run(download)
                    await wait(in_thread(self._publish, file, sha256))
                    return
                except exception.ImageUnavailable:
                    self._discard(sha256)
                    raise
                except OSError as error:
                    await self._make_room(image_id, sha256, error)

    @staticmethod
    async def _run(download: Download) -> None:
        """Run a download; one that is not wanted any more has ended before its file is closed."""
        running = asyncio.ensure_future(wait(_pool.run(download.run)))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            download.stop()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    @contextlib.asynccontextmanager
    async def _part(self, image_id: str, sha256: str, deadline: float) -> AsyncIterator[BinaryIO | None]:
        """What is here of an image, open and for nobody else; None when meanwhile another process has all of it."""
        path = os.path.join(self._directory, _PART + sha256)
        while True:
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0) as file:
                if _lock(file) and _is_at(file, path):
                    if self._touch(sha256):
                        os.unlink(path)
                        yield None
                    else:
                        yield file
                    return
            if time.monotonic() > deadline:
                raise exception.Timeout(f"another process has been fetching {image_id} for too long")
            await asyncio.sleep(0.1)

    def _publish(self, file: BinaryIO, sha256: str) -> None:
        """Give a whole file its name, so that it outlives a power failure."""
        os.fsync(file.fileno())
        failpoint.hit("compute.image.fetched")
        os.utime(file.fileno(), ns=(time.time_ns(),) * 2)
        os.rename(os.path.join(self._directory, _PART + sha256), self.path(sha256))
        os.fchmod(file.fileno(), 0o444)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _discard(self, sha256: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, _PART + sha256))

    # -- room -------------------------------------------------------------------------------------------------------

    async def _make_room(self, image_id: str, sha256: str, error: OSError) -> None:
        """Have another file go for one that has no room.

        :raises exception.NoRoom: there is none that can
        """
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            self._discard(sha256)
            raise exception.NovaError(f"cannot keep {image_id}: {error.strerror}") from error
        if not await self._shrink(0, keep=sha256, most=1):
            self._discard(sha256)
            raise exception.NoRoom(f"there is no room for {image_id} on the disk of the host {FLAGS.host}") from error

    async def sweep(self) -> None:
        """Remove what no instance of this host uses and none did for a while, and what is over the limit."""
        files, used = self._files(), await self.used()
        before = time.time_ns() - int(FLAGS.image_cache_age * 1e9)
        for file in files:
            if file.name not in used and file.used < before:
                await self._evict(file)
        for name in os.listdir(self._directory):
            if name.startswith(_PART) and name.removeprefix(_PART) not in used:
                await wait(in_thread(self._drop_part, name))
        await self._shrink(FLAGS.image_cache_gb * (1 << 30))

    async def _shrink(self, limit: float, keep: str = "", most: int | None = None) -> int:
        """Remove files that nobody uses, the longest unused first, until the rest takes no more than the limit.

        :param limit: bytes of disk; 0 means none only where `most` says how many files are to go
        :param keep: the hash of a file that stays
        :returns: how many went
        """
        files = self._files()
        total = sum(file.size for file in files)
        if most is None and (not limit or total <= limit):
            return 0
        used, gone = await self.used(), 0
        for file in sorted(files, key=lambda f: f.used):
            if total <= limit or gone == most:
                break
            if file.name not in used and file.name != keep and await self._evict(file):
                total -= file.size
                gone += 1
        if most is None and total > limit:
            LOG.warning("the image cache takes %.1f GiB, more than --image_cache_gb: instances use all of it",
                        total / (1 << 30))
        return gone

    def _files(self) -> list[_File]:
        found = []
        for entry in os.scandir(self._directory):
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    status = entry.stat()
                    found.append(_File(entry.name, status.st_mtime_ns, status.st_blocks * 512))
        return found

    async def _evict(self, file: _File) -> bool:
        """Remove a file unless somebody has used it since it was listed; whether it is gone."""
        return file.name not in self._turns and await wait(in_thread(self._remove, file))

    def _remove(self, file: _File) -> bool:
        with self._locked(), contextlib.suppress(FileNotFoundError):
            if os.stat(self.path(file.name)).st_mtime_ns != file.used:
                return False
            os.unlink(self.path(file.name))
            LOG.info("the image file %s went from the cache, nobody uses it", file.name)
        return True

    def _drop_part(self, name: str) -> None:
        """Remove a part of an image that nobody fetches."""
        path = os.path.join(self._directory, name)
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            if _lock(file) and _is_at(file, path):
                LOG.info("removing a part of the image file %s, nobody wants it", name.removeprefix(_PART))
                os.unlink(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a file from being removed by one process while another begins to use it; held for moments only."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: str) -> bool:
    """Whether an open file still has this name."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(file.fileno()))
