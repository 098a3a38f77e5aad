"""What can be done with buckets, apart from HTTP.

Bucket names are shared by all projects; a bucket belongs to one, and to the user who made it.
"""

import re
import time
from typing import Any

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


async def create(store: Store, name: str, project_id: str, user_id: str, location: str = "",
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
    """Whether there is no object in it."""
    return not await store.attempt(store.redis.zcard(bucket.keys_key))


async def configure(store: Store, bucket: Bucket, name: str, value: Any) -> None:
    """Set one of the sub-resources that a bucket's `configuration` has.

    :param value: what JSON has; None removes it
    :raises NoSuchBucket: somebody removed the bucket
    """
    def change(found: Bucket) -> dict[str, Any] | None:
        if found.created != bucket.created:
            raise errors.NoSuchBucket()  # this is another one of the same name
        new = {key: old for key, old in found.configuration.items() if key != name}
        if value is not None:
            new[name] = value
        return {"configuration": new} if new != found.configuration else None
    try:
        await store.modify(Bucket, bucket.id, change)
    except exception.NotFound:
        raise errors.NoSuchBucket() from None


async def delete(store: Store, bucket: Bucket) -> None:
    """Remove a bucket that has neither objects nor uploads.

    :raises BucketNotEmpty, NoSuchBucket:
    """
    while not await _delete(store, bucket):
        now = await get(store, bucket.id)
        if now.created != bucket.created:
            raise errors.NoSuchBucket()
        bucket = now


async def _delete(store: Store, bucket: Bucket) -> bool:
    """Remove it; whether it was still as `bucket` says."""
    tx = store.transaction()
    tx.delete(bucket)
    tx.require_empty(bucket.keys_key)
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
