"""Where images are made: a directory for each attempt, and how far it has come.

A directory is locked by the process that works in it and goes with the attempt; what a dead process has left has no
lock and is removed at the next start.  So two processes on one host do not take each other's work away.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nova.datastore import PREFIX, Store
from nova.process import in_thread, wait

log = logging.getLogger(__name__)

#: seconds between two notes of how far an image is, and how long one counts
_OFTEN, _TTL = 1.0, 30


@contextlib.asynccontextmanager
async def directory(root: str, image_id: str) -> AsyncIterator[str]:
    """A directory for making an image, while the block runs."""
    path = os.path.join(root, f"{image_id}.{uuid.uuid4().hex}")
    os.mkdir(path, 0o700)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        try:
            await wait(in_thread(shutil.rmtree, path))
        finally:
            os.close(lock)


def sweep(root: str) -> None:
    """Remove what processes that are dead have left."""
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if not os.path.isdir(path):
            os.unlink(path)
            continue
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.info("removing %s, which an earlier process has left", path)
            shutil.rmtree(path)
        except BlockingIOError:
            log.info("another process works in %s", path)
        finally:
            os.close(lock)


@dataclass(frozen=True)
class Step:
    """How far an image is: what is being done, how much of it is done, of how much (0: nobody knows); in bytes."""

    what: str
    done: int
    total: int

    def __str__(self) -> str:
        if self.total:
            return f"{self.what}, {100 * self.done // self.total} %"
        return f"{self.what}, {self.done / 2**20:.0f} MiB" if self.done else self.what


class Progress:
    """Notes in Redis how far an image is, about once a second."""

    def __init__(self, store: Store, image_id: str):
        self._store, self._key, self._next, self._what = store, _key(image_id), 0.0, ""

    async def tell(self, what: str, done: int = 0, total: int = 0) -> None:
        """What is being done, and how many bytes of it are; :raises exception.DatastoreUnavailable:"""
        now = time.monotonic()
        if what == self._what and now < self._next:
            return
        self._what, self._next = what, now + _OFTEN
        await self._store.attempt(self._store.redis.set(self._key, json.dumps([what, done, total]), ex=_TTL))

    async def end(self) -> None:
        """It goes no further."""
        if self._what:
            await self._store.attempt(self._store.redis.delete(self._key))


async def progress_of(store: Store, image_ids: list[str]) -> dict[str, Step]:
    """How far images are, as far as that is known."""
    if not image_ids:
        return {}
    found = await store.attempt(store.redis.mget([_key(id) for id in image_ids]))
    return {id: Step(*json.loads(value)) for id, value in zip(image_ids, found, strict=True) if value is not None}


def _key(image_id: str) -> str:
    return f"{PREFIX}image-progress:{image_id}"
