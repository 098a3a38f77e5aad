"""Reads every object again and compares it with its record: bytes that have changed on the disk are found here.

A file that is damaged goes into quarantine with its description, and its record is marked: the object is listed as
before, and to read it is an InternalError, until it is put again or deleted.  It is not made a 404, which would tell
clients that synchronise that somebody has deleted it.  The same holds for an object whose file is gone.  A part of an
upload is forgotten instead: its client is told to send it again.  Memory does not grow with the objects.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from nova import exception, process
from nova.datastore import Store
from nova.objectstore import description, multipart, objects
from nova.objectstore.description import Unreadable
from nova.objectstore.models import Object, Part, Upload
from nova.objectstore.reindex import TOLD
from nova.objectstore.storage import Storage

log = logging.getLogger(__name__)

#: is told how many files and how many bytes have been read
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """What is wrong with the file of an object (or of a part of an upload)."""

    about: str
    file: str
    what: str


@dataclass
class Report:
    """What was read, what is damaged, what was mended: files back in their place, descriptions written again."""

    objects: int = 0
    parts: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    mended: int = 0
    described: int = 0

    def tell(self, damage: Damage) -> None:
        """Something is damaged."""
        log.error("%s: %s: %s", damage.about, damage.file, damage.what)
        if len(self.damaged) < TOLD:
            self.damaged.append(damage)


async def verify(store: Store, files: Storage, bucket: str = "", change: bool = True,
                 progress: Progress = lambda count, size: None) -> Report:
    """Read everything.

    :param bucket: only what is in this one
    :param change: put into quarantine what is damaged; else it is only told
    :raises DatastoreUnavailable:
    """
    report = Report()

    def done(size: int) -> None:
        report.bytes += size
        progress(report.objects + report.parts, report.bytes)
    async for found in store.scan(Object):
        if bucket in ("", found.bucket):
            report.objects += 1
            await _object(store, files, found, change, report)
            done(found.size)
    async for part in store.scan(Part):
        upload = await store.get(Upload, part.upload_id)
        if upload is not None and bucket in ("", upload.bucket):
            report.parts += 1
            await _part(store, files, part, upload, change, report)
            done(part.size)
    return report


async def _object(store: Store, files: Storage, found: Object, change: bool, report: Report) -> None:
    what = await process.wait(files.pool.run(check, files, found))
    now = await objects.named(store, found.file)
    if now is None:
        return  # it was replaced meanwhile
    if what and change and now.is_marker:  # it has no bytes that could be lost
        await process.wait(files.pool.run(files.mark, now))
        report.mended += 1
        return
    if what:
        report.tell(Damage(f"{now.bucket}/{now.key}", now.file, what))
    if not change:
        return
    if what and not now.damaged:
        marked = await _mark(store, now.file, True)
        if marked is not None:
            await process.wait(files.pool.run(files.quarantine, marked))
    elif not what:
        if now.damaged:
            now = await _mark(store, now.file, False) or now
            report.mended += 1
        await _describe(files, now, report)


async def _mark(store: Store, file: str, damaged: bool) -> Object | None:
    """Mark the record that names a file, unless there is none by now."""
    while (now := await objects.named(store, file)) is not None:
        try:
            return await store.update(now, damaged=damaged, revision=now.revision + 1)
        except (exception.Conflict, exception.NotFound):
            continue  # it was changed, or has become an older version or the current one
    return None


async def _part(store: Store, files: Storage, part: Part, upload: Upload, change: bool, report: Report) -> None:
    what = await process.wait(files.pool.run(check, files, part))
    now = await store.get(Part, part.id)
    if now is None or now.file != part.file:
        return
    if not what:
        if change:
            await _describe(files, now, report)
        return
    report.tell(Damage(f"{upload.bucket}/{upload.key}, part {now.number} of its upload {upload.id}", now.file, what))
    if change:
        tx = store.transaction()
        multipart.forget_part(tx, now)
        try:
            await tx.commit()
        except (exception.NotFound, exception.Conflict):
            return
        await process.wait(files.pool.run(files.quarantine, now))


async def _describe(files: Storage, now: Object | Part, report: Report) -> None:
    """Write the description of a whole file again where it is lost or another one."""
    try:
        told = await process.wait(files.pool.run(files.description, now.file))
        if description.same(told, now):
            return
    except Unreadable as error:
        log.warning("%s: %s", now.file, error)
    report.described += 1
    await process.wait(files.pool.run(files.describe, now))


def check(files: Storage, record: Object | Part) -> str:
    """What is wrong with the file of a record; empty: nothing.  Runs in a thread.

    :raises exception.Unavailable: nothing can be said of it
    """
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    parts = _PartsHasher(record.part_sizes if isinstance(record, Object) and not record.md5 else [])
    try:
        for block in files.reread(record.file):
            size += len(block)
            md5.update(block)
            sha256.update(block)
            parts.update(block)
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    if isinstance(record, Object) and record.is_marker:
        return ""
    if size != record.size:
        return f"the file has {size} bytes, not {record.size}"
    if isinstance(record, Object) and record.sha256 and sha256.hexdigest() != record.sha256:
        return f"its SHA-256 is {sha256.hexdigest()}, not {record.sha256}"
    if record.md5 and md5.hexdigest() != record.md5:
        return f"its MD5 is {md5.hexdigest()}, not {record.md5}"
    if isinstance(record, Object) and not record.md5 and record.part_sizes and parts.etag() != record.etag:
        return f"its ETag is {parts.etag()}, not {record.etag}"
    return ""


class _PartsHasher:
    """Computes the ETag of an object that was uploaded in parts.

    :param sizes: of the parts, in bytes
    """

    def __init__(self, sizes: list[int]):
        self._sizes = iter(sizes)
        self._digests: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        while (size := next(self._sizes, None)) == 0:
            self._digests.append(self._md5.digest())
        self._left = size or 0

    def update(self, data: bytes) -> None:
        """Take the next bytes; what follows the last part does not count."""
        view = memoryview(data)
        while self._left and view:
            self._md5.update(view[:self._left])
            taken = min(self._left, len(view))
            view, self._left = view[taken:], self._left - taken
            if not self._left:
                self._digests.append(self._md5.digest())
                self._begin()

    def etag(self) -> str:
        """As S3 has it, without quotes."""
        return f"{hashlib.md5(b''.join(self._digests), usedforsecurity=False).hexdigest()}-{len(self._digests)}"
