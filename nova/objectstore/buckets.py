"""What can be done with buckets, apart from HTTP.

Bucket names are shared by all projects; a bucket belongs to one, and to the user who made it.  It is described on disk
after its record has changed and before the client hears of it: the record decides who of two is first.
"""

import re
import time
from collections.abc import Callable
from typing import Any

from nova import exception, failpoint, process
from nova.datastore import Store
from nova.objectstore import errors
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket

failpoint.declare("objectstore.bucket.committed", "the bucket is made or changed, its description is not")
failpoint.declare("objectstore.bucket.deleted", "the bucket is gone, its description is not")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")


def check_name(name: str) -> None:
    """A bucket's name: 3 to 63 letters, digits, dots, hyphens and underscores, and no IP address.

    S3 has allowed capitals and underscores only in its first region, but clients of that time still use them.

    :raises InvalidBucketName:
    """
    if not _NAME.fullmatch(name) or ".." in name or _ADDRESS.fullmatch(name):
        raise errors.InvalidBucketName()


async def create(store: Store, files: Files, name: str, project_id: str, user_id: str, location: str = "") -> Bucket:
    """Make a bucket.

    :raises InvalidBucketName, BucketAlreadyOwnedByYou, BucketAlreadyExists:
    """
    check_name(name)
    bucket = Bucket(name, project_id=project_id, user_id=user_id, created=time.time(), location=location)
    while True:
        try:
            return await _describe(files, await store.create(bucket))
        except exception.Exists:
            other = await store.get(Bucket, name)
            if other is not None and other.project_id != project_id:
                raise errors.BucketAlreadyExists() from None
            if other is not None:
                await _describe(files, other)  # who made it may have died before that
                if other.created == bucket.created:
                    return other  # it was made, the answer got lost
                raise errors.BucketAlreadyOwnedByYou() from None


async def _describe(files: Files, bucket: Bucket) -> Bucket:
    failpoint.hit("objectstore.bucket.committed")
    await process.wait(files.pool.run(files.buckets.put, bucket))
    return bucket


async def change(store: Store, files: Files, name: str, changes: Callable[[Bucket], dict[str, Any] | None]) -> Bucket:
    """Change a bucket's configuration or versioning, in the datastore and then on the disk.

    :param changes: gets the record, returns the fields to change, or nothing to leave it
    :raises NoSuchBucket:
    """
    try:
        return await _describe(files, await store.modify(Bucket, name, changes))
    except exception.NotFound:
        raise errors.NoSuchBucket() from None


async def get(store: Store, name: str) -> Bucket:
    """A bucket, whoever owns it; :raises NoSuchBucket:"""
    bucket = await store.get(Bucket, name)
    if bucket is None:
        raise errors.NoSuchBucket()
    return bucket


async def is_empty(store: Store, bucket: Bucket) -> bool:
    """Whether there is no object in it."""
    return not await store.attempt(store.redis.zcard(bucket.keys_key))


async def delete(store: Store, files: Files, bucket: Bucket) -> None:
    """Remove a bucket that has neither objects nor uploads.

    :raises BucketNotEmpty:
    """
    tx = store.transaction()
    tx.delete(bucket)
    tx.require_empty(bucket.keys_key)
    tx.require_empty(bucket.uploads_key)
    try:
        await tx.commit()
    except exception.NotFound:
        raise errors.NoSuchBucket() from None
    except exception.Conflict:
        raise errors.BucketNotEmpty() from None
    failpoint.hit("objectstore.bucket.deleted")
    await process.wait(files.pool.run(files.buckets.remove, bucket))
