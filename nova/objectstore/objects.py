"""What can be done with objects, apart from HTTP.  Image ingestion reads objects through :func:`open_object`.

A version of an object is a record and a file; that of a delete marker is empty.  The file is published first, then the
records of the key's versions and the bucket's sorted sets change in one transaction (:mod:`nova.objectstore.versions`
decides how), then the files of versions that are gone are removed.  The bytes of each version count among the limits of
the bucket's user and project in the same transaction, which holds only if neither the records nor the bucket have
changed since they were read: a PUT that began before versioning was enabled does not replace what was there when it
ends.  The file's description (nova.objectstore.description) says before the transaction what the record will be.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from nova import exception, failpoint, process
from nova.auth import quota
from nova.datastore import Store, Transaction, changed, key_of, read
from nova.objectstore import buckets, conditions, errors, versions
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.storage import Storage, Undo, discard, owner_of
from nova.objectstore.versions import Change

log = logging.getLogger(__name__)

failpoint.declare("objectstore.put.published", "the object's file has its name, no record names it yet")
failpoint.declare("objectstore.put.committed", "the object is there, the file of the one it replaced still exists")
failpoint.declare("objectstore.delete.committed", "the object is gone, its file still exists")
failpoint.declare("objectstore.put.described", "it is described as what it will be, no record names it yet")
failpoint.declare("objectstore.mark.published", "the delete marker's file has its name, no record names it yet")
failpoint.declare("objectstore.mark.committed", "the delete marker is there, the file of what it replaced still exists")
failpoint.declare("objectstore.change.committed", "the object's tags, say, are changed, its description is not")

#: lets a change go ahead, or raises; gets the object that is there now
Check = Callable[[Object | None], None]
#: adds to the transaction that puts an object what else it changes; tells how many bytes of its bucket that frees
Also = Callable[[Transaction], Awaitable[int]]
#: how many versions are looked at to find the newest that is still there
_CANDIDATES = 10
_BATCH = 500


# -- reading ----------------------------------------------------------------------------------------------------------

async def open_object(store: Store, bucket: str, key: str, version: str | None = None) -> Object:
    """An object whose `path` can be read.

    The caller checks `project_id`.  The file may be removed as soon as somebody replaces the object: open or link it at
    once, and ask again if it is gone.

    :param version: the id of one of its versions as clients have it; None for the current one
    :raises NoSuchBucket, NoSuchKey:
    :raises NoSuchVersion: there is no version of this id
    :raises InvalidArgument: no version has such an id
    :raises VersionIsMarker: this version is a delete marker
    :raises InternalError: it is damaged
    """
    found = await find(store, bucket, key, version)
    if found is None:
        if await store.get(Bucket, bucket) is None:
            raise errors.NoSuchBucket()
        raise errors.NoSuchKey() if version is None else errors.NoSuchVersion()
    if found.is_marker and version is None:
        raise errors.KeyIsDeleted(versions.shown(found))
    if found.is_marker:
        raise errors.VersionIsMarker(version or "", formatdate(found.modified, usegmt=True))
    return whole(found)


def whole(found: Object) -> Object:
    """The object; :raises InternalError: it is damaged"""
    if found.damaged:
        log.error("the version %s of %s/%s is damaged", versions.shown(found), found.bucket, found.key)
        raise errors.InternalError()
    return found


async def find(store: Store, bucket: str, key: str, version: str | None = None) -> Object | None:
    """A version of an object, or a delete marker, if it is there; :raises InvalidArgument: no version has such an id"""
    id = object_id(bucket, key)
    if version is None:
        return await store.get(Object, id)
    versions.check_id(version)
    # at once: it may be on its way from one record to the other
    found = await store.get_many(Object, [id, versions.record_id(id, version)], at_once=True)
    return next((record for record in found if versions.shown(record) == version), None)


def may_name(file: str) -> list[str]:
    """The ids of all records that may name a file: of the current version, of this one and of the null version."""
    owner = owner_of(file)[1]
    return [owner, *(versions.record_id(owner, id) for id in (file.rpartition("-")[2], versions.NULL))]


async def named(store: Store, file: str) -> Object | None:
    """The version, or delete marker, that names a file."""
    # at once: it may be on its way from one record to the other
    return next((record for record in await store.get_many(Object, may_name(file), at_once=True)
                 if record.file == file), None)


async def read_many(store: Store, bucket: Bucket, keys: list[bytes]) -> list[Object]:
    """The objects that have these keys; those that have gone meanwhile are left out."""
    found = await store.get_many(Object, [object_id(bucket.id, key.decode()) for key in keys])
    return [record for record in found if not record.is_marker]


async def older_versions(store: Store, bucket: Bucket, key: str, count: int) -> list[Object]:
    """The newest `count` of a key's versions that are not the current one, the newest first."""
    lower, upper = versions.of_key(key)
    there = await store.attempt(store.redis.zrangebylex(bucket.versions_key, lower, upper, start=0, num=count + 1))
    id = object_id(bucket.id, key)
    found = await store.get_many(Object, [versions.record_id(id, versions.read_member(m)[1]) for m in there])
    return found[:count]


@dataclass(frozen=True)
class Seen:
    """What was there when a request began: what had the key, and what its sender may have, if that was read."""

    current: Object | None
    project_id: str = ""
    user_id: str = ""
    allowance: quota.Allowance | None = None

    def allowance_of(self, project_id: str, user_id: str) -> quota.Allowance | None:
        """What a user may have in a project, if it was read."""
        return self.allowance if (project_id, user_id) == (self.project_id, self.user_id) else None


async def see(store: Store, bucket: str, key: str, project_id: str, user_id: str) -> tuple[Bucket | None, Seen]:
    """A bucket, what has a key in it, and what a user may have in a project, in one round trip."""
    row, current, *limits = await store.hashes([
        key_of(Bucket, bucket), key_of(Object, object_id(bucket, key)), *quota.allowance_keys(project_id, user_id)])
    return read(Bucket, row) if row else None, Seen(
        read(Object, current) if current else None, project_id, user_id,
        quota.allowance_of(project_id, user_id, limits))


# -- changing ---------------------------------------------------------------------------------------------------------

def write_check(headers: Mapping[str, str]) -> Check:
    """What If-Match and If-None-Match ask of the object that a PUT replaces."""
    return lambda old: conditions.check_write(headers, old.etag if old else None)


def delete_check(etag: str | None, size: int | None, modified: float | None) -> Check | None:
    """What a conditional delete asks of the object; delete markers have nothing that could be asked for.

    :param etag: as If-Match has it: without an object there is nothing to delete
    :param size: in bytes, if there is an object
    :param modified: when the object was put, if there is one, in seconds since 1970
    """
    if etag is None and size is None and modified is None:
        return None

    def check(old: Object | None) -> None:
        there = None if old is None or old.is_marker else old
        if etag is not None:
            conditions.check_write({"If-Match": etag}, there.etag if there else None)
        if there and (size not in (None, there.size) or modified is not None and int(modified) != int(there.modified)):
            raise errors.PreconditionFailed()
    return check


async def check_room(store: Store, bucket: Bucket, size: int) -> None:
    """Refuse what would not fit into the limits before it is received; :raises QuotaExceeded:"""
    (await quota.allowance(store, bucket.project_id, bucket.user_id)).check({quota.OBJECT_GB: size})


async def put(store: Store, files: Storage, bucket: Bucket, new: Object, check: Check | None = None,
              also: Also | None = None, seen: Seen | None = None) -> Object:
    """Make an object whose file is published the current version of its key.

    :param new: as :func:`planned` made it and its file is described
    :param check: raises if the object that is there must not be replaced
    :param also: ends the multipart upload that becomes this object, in the same transaction
    :param seen: what was there a moment ago, which need not be read again: the transaction finds out if it has changed
    :returns: the object with its version id
    :raises NoSuchBucket: somebody removed the bucket
    :raises NoSuchUpload: somebody completed or aborted the upload
    :raises QuotaExceeded: the bucket's user or project may not have as much
    """
    failpoint.hit("objectstore.put.published")
    made = await _add(store, files, bucket, new, check, also, seen)
    failpoint.hit("objectstore.put.committed")
    await files.remove_soon(*(record.file for record in made.gone))
    return made.after[0]


async def delete(store: Store, files: Storage, bucket: Bucket, key: str, version: str | None = None,
                 check: Check | None = None, seen: Seen | None = None) -> Object | None:
    """Remove an object; nothing happens if there is none.

    :param version: removes this version; None puts a delete marker where the bucket has versions
    :param check: raises if what is there must not be removed: the object, or whatever `version` names
    :param seen: what was there a moment ago; where no version is named, it need not be read again
    :returns: the marker that was put, or the version that was removed
    :raises NoSuchBucket: somebody removed the bucket
    :raises InvalidArgument: no version has such an id
    """
    while True:
        if version is None and bucket.versioning:
            return await _mark(store, files, bucket, key, check)
        target = seen.current if seen and version is None else await find(store, bucket.id, key, version)
        seen = None
        if check:
            check(versions.live(target) if version is None else target)
        if target is None:
            return None
        older = []
        if versions.is_current(target) and bucket.versioning:
            older = await older_versions(store, bucket, key, _CANDIDATES)
        made = versions.delete(target, older[0] if older else None)
        if bucket_now := await _commit(store, bucket, made, None):
            bucket = bucket_now
            continue
        failpoint.hit("objectstore.delete.committed")
        await _remove_files(files, made)
        return target


async def change(store: Store, files: Storage, bucket: str, key: str, version: str | None,
                 changes: Callable[[Object], dict[str, Any]]) -> Object:
    """Change fields of an object's record that say nothing of its bytes, such as tags, in the datastore and then on the
    disk; arguments and errors as :func:`open_object`.

    :param changes: gets the record, returns the fields to change
    """
    while True:
        found = await open_object(store, bucket, key, version)
        try:
            now = await store.update(found, revision=found.revision + 1, **changes(found))
        except (exception.Conflict, exception.NotFound):
            continue  # it was changed, or has become an older version or the current one
        failpoint.hit("objectstore.change.committed")
        await process.wait(files.pool.run(files.describe, now))
        return now


def planned(bucket: Bucket, new: Object) -> Object:
    """A new object with the version id and the sequence that it gets if its bucket and its key stay as they are: what
    its file is described as."""
    return changed(new, sequence=time.time_ns() // 1000,
                   version_id=versions.new_id(new.file) if bucket.versioning == versions.ENABLED else "")


async def _mark(store: Store, files: Storage, bucket: Bucket, key: str, check: Check | None) -> Object:
    """Put a delete marker."""
    if check:
        check(versions.live(await find(store, bucket.id, key)))
    id = object_id(bucket.id, key)
    marker = planned(bucket, Object(
        id, bucket=bucket.id, key=key, project_id=bucket.project_id, user_id=bucket.user_id, file=files.name(f"o-{id}"),
        size=0, md5="", sha256="", etag="", modified=time.time(), is_marker=True))
    await process.wait(files.pool.run(files.mark, marker))
    failpoint.hit("objectstore.mark.published")
    async with Undo(files, marker.file):
        made = await _add(store, files, bucket, marker, check, None)
    failpoint.hit("objectstore.mark.committed")
    await files.remove_soon(*(record.file for record in made.gone))
    return made.after[0]


async def _add(store: Store, files: Storage, bucket: Bucket, new: Object, check: Check | None, also: Also | None,
               seen: Seen | None = None) -> Change:
    """Make a new current version of a key; the first record of what is there afterwards is the new one."""
    described = new
    while True:
        id = versions.new_id(new.file) if bucket.versioning == versions.ENABLED else ""
        if seen is not None and not bucket.versioning:
            current, null, done = seen.current, None, None
        else:
            current, null, done = await _there(store, bucket, new, id)
        if done:
            return Change((), (done,))  # an earlier turn did it, its answer got lost
        if check:
            check(versions.live(current))
        made = versions.put(bucket.versioning, current, null, new, id, new.sequence)
        if made.after[0] is not described and made.after[0] != described:
            # before the transaction: what the disk says of a record is right at any time
            described = made.after[0]
            await process.wait(files.pool.run(files.describe, described))
            failpoint.hit("objectstore.put.described")
        bucket_now = await _commit(store, bucket, made, also, seen)
        if bucket_now is None:
            return made
        bucket, seen = bucket_now, None


async def _there(store: Store, bucket: Bucket, new: Object,
                 id: str) -> tuple[Object | None, Object | None, Object | None]:
    """The current version of a key, its null version if that is an older one, and `new` if it is there already."""
    ids = [new.id]
    if bucket.versioning:
        ids += [versions.record_id(new.id, version) for version in (versions.NULL, id) if version]
    found = {record.id: record for record in await store.get_many(Object, ids, at_once=len(ids) > 1)}
    done = next((record for record in found.values() if record.file == new.file), None)
    return found.get(new.id), found.get(versions.record_id(new.id, versions.NULL)), done


async def _commit(store: Store, bucket: Bucket, change: Change, also: Also | None,
                  seen: Seen | None = None) -> Bucket | None:
    """Make a change; if somebody else was faster, returns the bucket as it is now, and the caller decides again.

    :param seen: what the bucket's user may have, if that was read just now
    :raises NoSuchBucket, NoSuchUpload, QuotaExceeded:
    """
    tx = store.transaction()
    tx.expect(bucket)
    balance: Counter[tuple[str, str]] = Counter()
    if also:
        balance[bucket.project_id, bucket.user_id] -= await also(tx)
    for record in change.come:
        balance[record.project_id, record.user_id] += record.size
    for record in change.gone:
        balance[record.project_id, record.user_id] -= record.size
    write(tx, bucket, change)
    for (project_id, user_id), more in balance.items():
        if more > 0:
            allowance = seen and seen.allowance_of(project_id, user_id)
            allowance = allowance or await quota.allowance(store, project_id, user_id)
            allowance.claim(tx, {quota.OBJECT_GB: more})
        elif more < 0:
            quota.give(tx, project_id, user_id, {quota.OBJECT_GB: -more})
    try:
        await tx.commit()
    except (exception.Exists, exception.Conflict, exception.NotFound) as error:
        if error.values.get("kind") == "upload":
            raise errors.NoSuchUpload() from error
        return await buckets.again(store, bucket) if error.values.get("kind") == "bucket" else bucket
    except exception.Exhausted:
        await check_room(store, bucket, balance[bucket.project_id, bucket.user_id])
        return bucket
    return None


def write(tx: Transaction, bucket: Bucket, change: Change) -> None:
    """Change the records and what lists them in a transaction."""
    before = {record.id: record for record in change.before}
    for record in change.after:
        if record.id in before:
            old = before.pop(record.id)
            there = vars(old)
            tx.update(old, **{name: value for name, value in vars(record).items()
                              if name != "version" and value != there[name]})
        else:
            tx.create(record)
    for record in before.values():
        tx.delete(record)
    listed, listing = members(bucket, change.before), members(bucket, change.after)
    for key, member in listed - listing:
        tx.zrem(key, member)
    for key, member in listing - listed:
        tx.zadd_lex(key, member)


def members(bucket: Bucket, records: Iterable[Object]) -> set[tuple[str, bytes]]:
    """The sorted sets in which these records are, and as what."""
    return {(bucket.versions_key, member) if member else (bucket.keys_key, record.key.encode())
            for record, member in ((record, versions.member(record)) for record in records)}


async def _remove_files(files: Storage, change: Change) -> None:
    if change.gone:
        await discard(files, *(record.file for record in change.gone))


async def remove_all(store: Store, files: Storage, bucket: Bucket) -> None:
    """Remove every version of every object that is in a bucket now."""
    for key in (bucket.versions_key, bucket.keys_key):
        lower = b"-"
        while found := await store.attempt(store.redis.zrangebylex(key, lower, b"+", start=0, num=_BATCH)):
            for member in found:
                await _remove(store, files, bucket, *(
                    versions.read_member(member) if key == bucket.versions_key else (member.decode(), "")))
            lower = b"(" + found[-1]


async def _remove(store: Store, files: Storage, bucket: Bucket, key: str, version: str) -> None:
    """Remove a version; '' is the current one."""
    if not version:
        current = await find(store, bucket.id, key)
        version = versions.shown(current) if current else versions.NULL
    await delete(store, files, bucket, key, version)
