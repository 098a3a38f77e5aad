"""What can be done with buckets, apart from HTTP.

Bucket names are shared by all projects; a bucket belongs to one, and to the user who made it.
"""

import re
import time

from nova import exception
from nova.datastore import Store
from nova.objectstore import errors
from nova.objectstore.models import Bucket

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")


def check_name(name: str) -> None:
    """A bucket's name: 3 to 63 letters, digits, dots, hyphens and underscores, and no IP address.

    S3 has allowed capitals and underscores only in its first region, but clients of that time still use them.

    :raises InvalidBucketName:
    """
    if not _NAME.fullmatch(name) or ".." in name or _ADDRESS.fullmatch(name):
        raise errors.InvalidBucketName()


async def create(store: Store, name: str, project_id: str, user_id: str, location: str = "") -> Bucket:
    """Make a bucket.

    :raises InvalidBucketName, BucketAlreadyOwnedByYou, BucketAlreadyExists:
    """
    check_name(name)
    bucket = Bucket(name, project_id=project_id, user_id=user_id, created=time.time(), location=location)
    while True:
        try:
            return await store.create(bucket)
        except exception.Exists:
            other = await store.get(Bucket, name)
            if other is not None and (other.project_id, other.created) == (project_id, bucket.created):
                return other  # it was made, the answer got lost
            if other is not None and other.project_id == project_id:
                raise errors.BucketAlreadyOwnedByYou() from None
            if other is not None:
                raise errors.BucketAlreadyExists() from None


async def get(store: Store, name: str) -> Bucket:
    """A bucket, whoever owns it; :raises NoSuchBucket:"""
    bucket = await store.get(Bucket, name)
    if bucket is None:
        raise errors.NoSuchBucket()
    return bucket


async def is_empty(store: Store, bucket: Bucket) -> bool:
    """Whether there is no version of an object in it."""
    return not await store.attempt(store.redis.exists(bucket.keys_key, bucket.versions_key))


async def again(store: Store, bucket: Bucket) -> Bucket:
    """A bucket as it is now; :raises NoSuchBucket: it was removed, and what has its name now is another one"""
    found = await get(store, bucket.id)
    if found.created != bucket.created:
        raise errors.NoSuchBucket()
    return found


async def set_versioning(store: Store, bucket: Bucket, status: str) -> None:
    """Enable or suspend the versioning of its objects; :raises NoSuchBucket: somebody removed the bucket"""
    while True:
        found = await again(store, bucket)
        try:
            await store.update(found, versioning=status)
            return
        except (exception.Conflict, exception.NotFound):
            continue


async def delete(store: Store, bucket: Bucket) -> None:
    """Remove a bucket that has neither versions of objects nor uploads.

    :raises BucketNotEmpty:
    """
    tx = store.transaction()
    tx.delete(bucket)
    tx.require_empty(bucket.keys_key)
    tx.require_empty(bucket.versions_key)
    tx.require_empty(bucket.uploads_key)
    try:
        await tx.commit()
    except exception.NotFound:
        raise errors.NoSuchBucket() from None
    except exception.Conflict:
        raise errors.BucketNotEmpty() from None
