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
from nova.flags import FLAGS
from nova.objectstore import errors
from nova.objectstore.models import Bucket
from nova.objectstore.storage import Storage

failpoint.declare("objectstore.bucket.committed", "the bucket is made or changed, its description is not")
failpoint.declare("objectstore.bucket.deleted", "the bucket is gone, its description is not")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
#: what S3 keeps for itself, in every region
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
_BAD_DOTS = ("..", ".-", "-.")


def check_name(name: str) -> None:
    """A bucket's name: 3 to 63 letters, digits, dots, hyphens and underscores, no IP address, nothing reserved.

    S3 has allowed capitals and underscores only in its first region, but clients of that time still use them; such
    a bucket has no host name of its own.

    :raises InvalidBucketName:
    """
    if not _NAME.fullmatch(name) or _ADDRESS.fullmatch(name) or any(dots in name for dots in _BAD_DOTS) or (
            name.startswith(_RESERVED_PREFIXES) or name.endswith(_RESERVED_SUFFIXES)):
        raise errors.InvalidBucketName()


async def create(store: Store, files: Storage, name: str, project_id: str, user_id: str, location: str = "",
                 configuration: dict[str, Any] | None = None) -> Bucket:
    """Make a bucket.

    :param configuration: what it has from the beginning
    :raises InvalidBucketName, BucketAlreadyOwnedByYou, BucketAlreadyExists:
    """
    check_name(name)
    bucket = Bucket(name, project_id=project_id, user_id=user_id, created=time.time(), location=location,
                    configuration=configuration or {})
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


async def _describe(files: Storage, bucket: Bucket) -> Bucket:
    failpoint.hit("objectstore.bucket.committed")
    await process.wait(files.pool.run(files.buckets.put, bucket))
    return bucket


async def get(store: Store, name: str) -> Bucket:
    """A bucket, whoever owns it; :raises NoSuchBucket:"""
    bucket = await store.get(Bucket, name)
    if bucket is None:
        raise errors.NoSuchBucket()
    return bucket


def location(bucket: Bucket) -> str:
    """Where a bucket is, as a region: what it was made with, else the cloud's."""
    return bucket.location or FLAGS.region


async def is_empty(store: Store, bucket: Bucket) -> bool:
    """Whether there is no version of an object in it."""
    return not await store.attempt(store.redis.exists(bucket.keys_key, bucket.versions_key))


async def again(store: Store, bucket: Bucket) -> Bucket:
    """A bucket as it is now; :raises NoSuchBucket: it was removed, and what has its name now is another one"""
    found = await get(store, bucket.id)
    if found.created != bucket.created:
        raise errors.NoSuchBucket()
    return found


async def change(store: Store, files: Storage, bucket: Bucket,
                 changes: Callable[[Bucket], dict[str, Any] | None]) -> None:
    """Change a bucket's configuration or versioning, in the datastore and then on the disk.

    :param changes: gets the record, returns the fields to change, or nothing to leave it
    :raises NoSuchBucket: somebody removed the bucket
    """
    def of_this(found: Bucket) -> dict[str, Any] | None:
        if found.created != bucket.created:
            raise errors.NoSuchBucket()  # this is another one of the same name
        return changes(found)
    try:
        await _describe(files, await store.modify(Bucket, bucket.id, of_this))
    except exception.NotFound:
        raise errors.NoSuchBucket() from None


async def configure(store: Store, files: Storage, bucket: Bucket, name: str, value: Any) -> None:
    """:func:`change` of one of the sub-resources that a bucket's `configuration` has.

    :param value: what JSON has; None removes it
    """
    def changes(found: Bucket) -> dict[str, Any] | None:
        new = {key: old for key, old in found.configuration.items() if key != name}
        if value is not None:
            new[name] = value
        return {"configuration": new} if new != found.configuration else None
    await change(store, files, bucket, changes)


async def delete(store: Store, files: Storage, bucket: Bucket) -> None:
    """Remove a bucket that has neither versions of objects nor uploads.

    :raises BucketNotEmpty, NoSuchBucket:
    """
    while not await _delete(store, bucket):
        bucket = await again(store, bucket)
    failpoint.hit("objectstore.bucket.deleted")
    await process.wait(files.pool.run(files.buckets.remove, bucket))


async def _delete(store: Store, bucket: Bucket) -> bool:
    """Remove it; whether it was still as `bucket` says."""
    tx = store.transaction()
    tx.delete(bucket)
    tx.require_empty(bucket.keys_key)
    tx.require_empty(bucket.versions_key)
    tx.require_empty(bucket.uploads_key)
    try:
        await tx.commit()
    except exception.NotFound:
        raise errors.NoSuchBucket() from None
    except exception.Conflict as error:
        if error.values.get("kind") == "bucket":
            return False
        raise errors.BucketNotEmpty() from None
    return True
