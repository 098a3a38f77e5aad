"""Rebuilds the records of the object store in Redis from what is on the disk.

It works while the store is used, may be broken off and done again, and never takes back what Redis knows to be newer.
Of several files that the null version of an object or a part has had, the newest one counts; the others are left to the
sweep.  What Redis
lacks is looked at twice, some time apart: a file whose record is just being made or removed is no loss.  The other way
round, what only Redis knows is described on the disk again.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from nova import exception, process
from nova.auth import quota
from nova.datastore import Record, Store
from nova.objectstore import buckets, description, errors, images, objects, sweep, versions
from nova.objectstore.description import Unreadable
from nova.objectstore.models import Bucket, Object, Part, Upload, upload_member
from nova.objectstore.storage import Storage, owner_of

log = logging.getLogger(__name__)

#: seconds between the two looks
PAUSE = 2.0
_BATCH = 500
_AT_ONCE = 32
#: how many files may wait for the second look
_WAITING = 20000
#: how many of what cannot be read or found are told one by one
TOLD = 1000

#: is told how many files have been looked at
Progress = Callable[[int], None]


@dataclass
class Report:
    """What was found: how many there are, how many of them came back, and what is wrong with others.

    `leftovers` are files that no record should name.
    """

    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("bucket", "object", "upload", "part"), 0))
    restored: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("bucket", "object", "upload", "part"), 0))
    described: int = 0
    leftovers: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    def cannot_read(self, name: str, error: Unreadable) -> None:
        """A file or description is of no use."""
        log.warning("%s: %s", name, error)
        if len(self.unreadable) < TOLD:
            self.unreadable.append((name, error.message))

    def is_missing(self, record: Object | Part) -> None:
        """A record's file is gone."""
        log.warning("the file %s of %s is missing", record.file, _named(record))
        if len(self.missing) < TOLD:
            self.missing.append((_named(record), record.file))


def _named(record: Object | Part) -> str:
    return f"{record.bucket}/{record.key}" if isinstance(record, Object) else f"part {record.id}"


async def reindex(store: Store, files: Storage, progress: Progress = lambda done: None, pause: float = PAUSE) -> Report:
    """Rebuild the records.

    :param pause: seconds between the two looks at what Redis lacks
    :raises DatastoreUnavailable:
    """
    return await _Reindex(store, files, progress, pause).run()


class _Reindex:
    def __init__(self, store: Store, files: Storage, progress: Progress, pause: float):
        self._store, self._files, self._progress, self._pause = store, files, progress, pause
        self._report = Report()
        self._waiting: deque[tuple[float, str]] = deque()
        self._done = 0
        self._described_uploads: set[str] = set()
        self._completed: set[str] = set()

    async def run(self) -> Report:
        files = self._files
        await self._registered(Bucket, await self._in_thread(files.buckets.ids))
        self._described_uploads = set(await self._in_thread(files.uploads.ids))
        await self._all_files("o", Object)
        for name in await self._in_thread(files.quarantined):
            await self._quarantined(name)
        await self._registered(Upload, sorted(self._described_uploads - self._completed))
        await self._all_files("p", Part)
        await self._check_files(Object)
        await self._check_files(Part)
        await sweep.make_known(self._store, files)
        return self._report

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await process.wait(self._files.pool.run(function, *arguments))

    # -- buckets and uploads --

    async def _registered(self, cls: type[Bucket] | type[Upload], ids: list[str]) -> None:
        register = self._files.buckets if cls is Bucket else self._files.uploads
        word = cls.__name__.lower()
        lost = []
        for id in ids:
            self._report.found[word] += 1
            there = await self._store.get(cls, id)
            if there is None:
                lost.append(id)
                continue
            await self._list(there)
            try:
                told = await self._in_thread(register.get, id)
            except Unreadable as error:
                self._report.cannot_read(f"the description of the {word} {id}", error)
                self._report.described += 1
                await self._in_thread(register.put, there)
                continue
            if told is not None and _same(told, there) and told.version > there.version:
                await self._bring_up(there, told)
            elif told is not None and not description.same(told, there):
                self._report.described += 1
                await self._in_thread(register.put, there)
        if lost:
            await asyncio.sleep(self._pause)
        for id in lost:
            try:
                told = await self._in_thread(register.get, id)
            except Unreadable as error:
                self._report.cannot_read(f"the description of the {word} {id}", error)
                continue
            if told is not None and await self._create(told, self._lists_of(told)):
                self._report.restored[word] += 1
        if cls is Bucket:
            described = set(ids)
            for bucket in await self._store.all(Bucket):
                if bucket.id not in described:
                    self._report.found[word] += 1
                    self._report.described += 1
                    await self._in_thread(register.put, bucket)

    async def _bring_up(self, there: Record, told: Record) -> None:
        """Redis has lost the last changes of a record."""
        changes = {f.name: getattr(told, f.name) for f in dataclasses.fields(told) if f.name not in ("id", "version")}
        try:
            await self._store.update(there, **changes)
        except (exception.Conflict, exception.NotFound):
            log.info("%s changes just now", there.id)
            return
        self._report.restored[type(there).__name__.lower()] += 1

    # -- what makes up the index --

    def _lists_of(self, record: Record) -> list[tuple[str, bytes]]:
        """The sorted sets that a record is listed in, and as what."""
        if isinstance(record, Object):
            return list(objects.members(Bucket(record.bucket, project_id="", created=0.0), [record]))
        if isinstance(record, Upload):
            return [(Bucket(record.bucket, project_id="", created=0.0).uploads_key,
                     upload_member(record.key, record.id))]
        return []

    async def _list(self, record: Record) -> None:
        """Put a record that is there into the sorted sets, where it is not."""
        for key, member in self._lists_of(record):
            if await self._store.attempt(self._store.redis.zscore(key, member)) is None:
                tx = self._store.transaction()
                tx.expect(record)
                tx.zadd_lex(key, member)
                try:
                    await tx.commit()
                except (exception.Conflict, exception.NotFound):
                    log.info("%s changes just now", record.id)

    async def _create(self, record: Record, lists: list[tuple[str, bytes]]) -> bool:
        """Bring a record back; whether it was gone, and what it belongs to is there."""
        tx = self._store.transaction()
        if isinstance(record, Upload):
            tx.require_exists(Bucket, record.bucket)
        if isinstance(record, Part):
            tx.require_exists(Upload, record.upload_id)
        tx.create(record, version=record.version + 1 if record.version else 0)
        for key, member in lists:
            tx.zadd_lex(key, member)
        if isinstance(record, Part):
            quota.give(tx, record.project_id, record.user_id, {quota.OBJECT_GB: -record.size})
        try:
            await tx.commit()
        except (exception.Exists, exception.NotFound):
            return False
        return True

    # -- files --

    async def _all_files(self, letter: str, cls: type[Object] | type[Part]) -> None:
        names = self._files.names(-1.0)

        def next_batch() -> list[tuple[str, Record | Unreadable]]:
            mine = (name for name in names if owner_of(name)[0] == letter)
            return [(name, self._read(name)) for name in itertools.islice(mine, _BATCH)]
        while batch := await self._in_thread(next_batch):
            await self._compare(cls, batch)
            self._done += len(batch)
            self._progress(self._done)
            await self._look_again(cls, _WAITING)
        await self._look_again(cls, 0)

    def _read(self, name: str) -> Record | Unreadable:
        try:
            return self._files.description(name)
        except Unreadable as error:
            return error

    async def _compare(self, cls: type[Object] | type[Part], batch: list[tuple[str, Record | Unreadable]]) -> None:
        if cls is Object:
            ids = {id for name, _ in batch for id in objects.may_name(name)}
        else:
            ids = {owner_of(name)[1] for name, _ in batch}
        # at once: a version may be on its way from one record to the other
        there = {record.file: record for record in await self._store.get_many(cls, ids, at_once=cls is Object)}
        known = []
        for name, told in batch:
            now = there.get(name)
            if now is not None:
                known.append(self._known(now, told))
            elif isinstance(told, Unreadable):
                self._report.cannot_read(name, told)
            else:
                self._waiting.append((time.monotonic() + self._pause, name))
            if isinstance(told, Object) and told.upload_id in self._described_uploads:
                self._completed.add(told.upload_id)
        await _together(known)

    async def _known(self, there: Object | Part, told: Record | Unreadable) -> None:
        self._report.found[type(there).__name__.lower()] += 1
        await self._list(there)
        if isinstance(told, Unreadable):
            self._report.cannot_read(there.file, told)
        elif description.same(told, there):
            return
        elif description.revision(told) > description.revision(there):
            await self._bring_up(there, told)
            return
        self._report.described += 1
        await self._in_thread(self._files.describe, there)

    async def _look_again(self, cls: type[Object] | type[Part], bound: int) -> None:
        """Decide on files that have waited for their time, and on more if there are more than `bound`."""
        while self._waiting and (len(self._waiting) > bound or self._waiting[0][0] <= time.monotonic()):
            await asyncio.sleep(max(0.0, self._waiting[0][0] - time.monotonic()))
            due = [self._waiting.popleft()[1] for _ in range(min(_BATCH, len(self._waiting)))
                   if self._waiting[0][0] <= time.monotonic()]
            await _together([self._decide(cls, name) for name in due])

    async def _decide(self, cls: type[Object] | type[Part], name: str) -> None:
        told = await self._in_thread(self._read, name)
        if isinstance(told, Unreadable):
            log.info("%s is gone meanwhile, or cannot be read any more: %s", name, told)
        elif isinstance(told, Object) and cls is Object:
            await self._restore_object(told)
        elif isinstance(told, Part) and cls is Part:
            await self._restore_part(told)
        else:
            self._report.cannot_read(name, Unreadable(f"it is described as {type(told).__name__.lower()}"))

    async def _restore_object(self, told: Object) -> None:
        """Bring a version of an object back, or a delete marker."""
        if told.bucket == images.BUCKET.id:
            await self._restore_image(told)
            return
        while True:
            bucket = await self._store.get(Bucket, told.bucket)
            there = await self._store.get_many(Object, objects.may_name(told.file), at_once=True)
            if any(record.file == told.file for record in there):
                self._report.found["object"] += 1  # its record came meanwhile
                return
            change = versions.restore(there, told) if bucket else None
            if bucket is None or change is None:
                self._report.leftovers += 1
                return
            if told.version_id and not bucket.versioning:  # that it has versions was not described yet
                with contextlib.suppress(errors.NoSuchBucket):
                    await buckets.change(self._store, self._files, bucket, lambda _: {"versioning": versions.ENABLED})
                continue
            if await self._commit(bucket, change):
                self._report.found["object"] += 1 - len(change.gone)
                self._report.restored["object"] += 1
                return

    async def _restore_image(self, told: Object) -> None:
        if await images.restore(self._store, told):
            self._report.found["object"] += 1
            self._report.restored["object"] += 1
        elif await objects.named(self._store, told.file) is not None:
            self._report.found["object"] += 1  # its record came meanwhile
        else:
            self._report.leftovers += 1

    async def _commit(self, bucket: Bucket, change: versions.Change) -> bool:
        """Whether nobody was faster."""
        tx = self._store.transaction()
        tx.require_exists(Bucket, bucket.id)
        objects.write(tx, bucket, change)
        for record in change.come:
            quota.give(tx, record.project_id, record.user_id, {quota.OBJECT_GB: -record.size})
        for record in change.gone:
            quota.give(tx, record.project_id, record.user_id, {quota.OBJECT_GB: record.size})
        try:
            await tx.commit()
        except (exception.Exists, exception.Conflict, exception.NotFound):
            return False
        return True

    async def _restore_part(self, told: Part) -> None:
        while True:
            there = await self._store.get(Part, told.id)
            if there is not None and there.file == told.file:
                self._report.found["part"] += 1  # its record came meanwhile
                return
            if there is not None and there.modified >= told.modified:
                self._report.leftovers += 1
                return
            if there is None:
                if await self._create(told, []):
                    self._report.found["part"] += 1
                    self._report.restored["part"] += 1
                    return
                if await self._store.get(Upload, told.upload_id) is None:
                    self._report.leftovers += 1
                    return
            elif await self._replace(there, told):
                self._report.restored["part"] += 1
                return

    async def _replace(self, there: Part, told: Part) -> bool:
        """Let a record have what is newer; whether nobody was faster."""
        changes = {f.name: getattr(told, f.name) for f in dataclasses.fields(told) if f.name not in ("id", "version")}
        tx = self._store.transaction()
        tx.update(there, **changes)
        quota.give(tx, there.project_id, there.user_id, {quota.OBJECT_GB: there.size - told.size})
        try:
            await tx.commit()
        except (exception.Conflict, exception.NotFound):
            return False
        return True

    async def _quarantined(self, name: str) -> None:
        """What was damaged stays known as damaged."""
        told = await self._in_thread(self._read, name)
        if isinstance(told, Unreadable):
            self._report.cannot_read(name, told)
        elif isinstance(told, Object):
            await self._restore_object(told)

    async def _check_files(self, cls: type[Object] | type[Part]) -> None:
        """Tell of records whose files are gone; verification marks them."""
        batch: list[Object | Part] = []
        async for record in self._store.scan(cls):
            if not getattr(record, "damaged", False):
                batch.append(record)
            if len(batch) == _BATCH:
                await self._check_batch(batch)
                batch = []
        await self._check_batch(batch)

    async def _check_batch(self, batch: list[Object | Part]) -> None:
        for record in await self._in_thread(lambda: [r for r in batch if not self._files.exists(r.file)]):
            again = (await objects.named(self._store, record.file) if isinstance(record, Object)
                     else await self._store.get(Part, record.id))
            if again is not None and again.file == record.file:
                self._report.is_missing(record)


async def _together(work: list[Coroutine[Any, Any, None]]) -> None:
    """Do things some at a time."""
    for start in range(0, len(work), _AT_ONCE):
        await asyncio.gather(*work[start:start + _AT_ONCE])


def _same(told: Record, there: Record) -> bool:
    """Whether two records are versions of one, and not of two that have had an id one after the other."""
    return getattr(told, "created", 0.0) == getattr(there, "created", 0.0)
