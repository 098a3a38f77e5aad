"""What can be done with objects, apart from HTTP.  Image ingestion reads objects through :func:`open_object`.

An object is a record and a file.  The file is published first, then the record and the bucket's sorted set change in
one transaction, then the file of the object that was replaced is removed.  The file's description
(nova.objectstore.description) has the fields of the record: they are final before the file is published.  The bytes of
an object count among the limits of the bucket's user and project in the same transaction.
"""

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nova import exception, failpoint, process
from nova.auth import quota
from nova.datastore import Store, Transaction
from nova.objectstore import conditions, errors
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, object_id

log = logging.getLogger(__name__)

failpoint.declare("objectstore.put.published", "the object's file has its name, no record names it yet")
failpoint.declare("objectstore.put.committed", "the object is there, the file of the one it replaced still exists")
failpoint.declare("objectstore.delete.committed", "the object is gone, its file still exists")

#: lets a change go ahead, or raises; gets what is there now
Check = Callable[[Object | None], None]
#: adds to the transaction that puts an object what else it changes; tells how many bytes of its bucket that frees
Also = Callable[[Transaction], Awaitable[int]]


async def open_object(store: Store, bucket: str, key: str) -> Object:
    """An object whose `path` can be read.

    The caller checks `project_id`.  The file may be removed as soon as somebody replaces the object: open or link it at
    once, and ask again if it is gone.

    :raises NoSuchBucket, NoSuchKey:
    :raises InternalError: it is damaged
    """
    found = await store.get(Object, object_id(bucket, key))
    if found is None:
        if await store.get(Bucket, bucket) is None:
            raise errors.NoSuchBucket()
        raise errors.NoSuchKey()
    if found.damaged:
        log.error("the object %s/%s is damaged", bucket, key)
        raise errors.InternalError()
    return found


def write_check(headers: Mapping[str, str]) -> Check:
    """What If-Match and If-None-Match ask of the object that a PUT replaces."""
    return lambda old: conditions.check_write(headers, old.etag if old else None)


async def check_room(store: Store, bucket: Bucket, size: int) -> None:
    """Refuse what would not fit into the limits before it is received; :raises QuotaExceeded:"""
    (await quota.allowance(store, bucket.project_id, bucket.user_id)).check({quota.OBJECT_GB: size})


async def put(store: Store, files: Files, bucket: Bucket, new: Object, check: Check | None = None,
              also: Also | None = None) -> None:
    """Put an object whose file is published into its bucket, in place of what had its key.

    :param check: raises if the object that is there must not be replaced
    :param also: ends the multipart upload that becomes this object, in the same transaction
    :raises NoSuchBucket: somebody removed the bucket
    :raises NoSuchUpload: somebody completed or aborted the upload
    :raises QuotaExceeded: the bucket's user or project may not have as much
    """
    failpoint.hit("objectstore.put.published")
    while True:
        old = await store.get(Object, new.id)
        if old is not None and old.file == new.file:
            break  # an earlier turn did it, its answer got lost
        if check:
            check(old)
        tx = store.transaction()
        tx.require_exists(Bucket, bucket.id)
        more = new.size - (await also(tx) if also else 0)
        if old is None:
            tx.create(new)
        else:
            changes = {f.name: getattr(new, f.name) for f in dataclasses.fields(new)}
            del changes["id"], changes["version"]
            tx.update(old, **changes)
        tx.zadd_lex(bucket.keys_key, new.key.encode())
        if old is not None and (old.project_id, old.user_id) == (new.project_id, new.user_id):
            more -= old.size
        elif old is not None:
            _give(tx, old)
        (await quota.allowance(store, new.project_id, new.user_id)).claim(tx, {quota.OBJECT_GB: more})
        try:
            await tx.commit()
        except (exception.Exists, exception.Conflict, exception.NotFound) as error:
            _raise_if_gone(error)
            continue
        except exception.Exhausted:
            await check_room(store, bucket, more)
            continue
        break
    failpoint.hit("objectstore.put.committed")
    if old is not None and old.file != new.file:
        await process.wait(files.pool.run(files.remove, old.file))


def _raise_if_gone(error: exception.NovaError) -> None:
    """Raise unless it was the object that somebody else has changed, and trying again helps."""
    kind = error.values.get("kind")
    if kind == "bucket":
        raise errors.NoSuchBucket() from error
    if kind == "upload":
        raise errors.NoSuchUpload() from error


def _give(tx: Transaction, old: Object) -> None:
    quota.give(tx, old.project_id, old.user_id, {quota.OBJECT_GB: old.size})


async def delete(store: Store, files: Files, bucket: Bucket, key: str, check: Check | None = None) -> None:
    """Remove an object; nothing happens if there is none."""
    while True:
        old = await store.get(Object, object_id(bucket.id, key))
        if check:
            check(old)
        if old is None:
            return
        tx = store.transaction()
        tx.delete(old)
        tx.zrem(bucket.keys_key, key.encode())
        _give(tx, old)
        try:
            await tx.commit()
        except (exception.Conflict, exception.NotFound):
            continue
        break
    failpoint.hit("objectstore.delete.committed")
    await process.wait(files.pool.run(files.remove, old.file))


async def change(store: Store, files: Files, id: str, changes: Callable[[Object], dict[str, Any] | None]) -> Object:
    """Change what is known of an object (its tags, say), in the datastore and then on the disk.

    :param id: the record's
    :param changes: gets the record, returns the fields to change, or nothing to leave it
    :raises exception.NotFound:
    """
    changed = await store.modify(Object, id, changes)
    await process.wait(files.pool.run(files.describe, changed))
    return changed


async def read_many(store: Store, bucket: Bucket, keys: list[bytes]) -> list[Object]:
    """The objects that have these keys; those that have gone meanwhile are left out."""
    return await store.get_many(Object, [object_id(bucket.id, key.decode()) for key in keys])
