"""What users and projects own, and its removal by the same code as the API's.

What a kind of resource adds here is one entry in :data:`KINDS`: how it is listed and how it is removed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nova import exception
from nova.auth.models import KeyPair
from nova.cloud import locks
from nova.cloud.images import Images
from nova.cloud.instances import Instances
from nova.cloud.keypairs import KeyPairs
from nova.cloud.public_keys import PublicKeys
from nova.compute.models import Instance
from nova.context import Context
from nova.datastore import Store
from nova.image.models import Image
from nova.objectstore import buckets, errors, multipart, objects
from nova.objectstore.driver import open_files
from nova.objectstore.models import Bucket
from nova.objectstore.storage import Storage
from nova.rpc import Bus

#: seconds that a scrub waits for the instances' end
TIMEOUT = 120.0
#: seconds between two looks at what is still there
_PAUSE = 0.2
_BATCH = 500
#: how often a bucket is emptied that others keep filling
_TRIES = 5

#: names of what is owned, by kind, in the order of removal
Owned = dict[str, list[str]]


@dataclass(frozen=True)
class Scrubber:
    """Removes what projects own.

    :param timeout: seconds to wait for instances to be gone
    """

    store: Store
    bus: Bus
    public_keys: PublicKeys
    timeout: float = TIMEOUT

    async def owned(self, project: str, user: str | None = None) -> Owned:
        """What a project owns, or what a user owns in it; kinds of which there is nothing are left out."""
        found: Owned = {}
        for kind in KINDS:
            names = await kind.names(self.store, project, user)
            if names:
                found[kind.name] = names
        return found

    async def scrub(self, context: Context, project: str, user: str | None = None) -> Owned:
        """Remove what a project owns, or what a user owns in it; tells what it was.

        :param context: on whose behalf
        :raises exception.InstanceLocked: an instance is; then nothing is removed
        :raises exception.Timeout: instances are still there after `timeout` seconds
        """
        within = replace(context, project_id=project, roles=frozenset(_ALL_ROLES), is_admin=True)
        removed = await self.owned(project, user)
        await locks.check_all(self.store, removed.get("instances", ()))
        for kind in KINDS:
            if kind.name in removed:
                await kind.remove(self, within, removed[kind.name])
        return removed

    async def end_instances(self, context: Context, names: Sequence[str]) -> None:
        """Terminate instances and wait until nothing is left of them."""
        instances = Instances(store=self.store, bus=self.bus)
        deadline = time.monotonic() + self.timeout
        for start in range(0, len(names), _BATCH):
            await instances.terminate_instances(context, {"InstanceIds": list(names[start:start + _BATCH])})
        left = list(names)
        while left:
            states = await self.store.get_fields(Instance, left, ("id", "state"))
            left = [id for id, state in states if state != "terminated"]
            if left and time.monotonic() > deadline:
                raise exception.Timeout(f"not terminated after {self.timeout:g} s: {shown(left)}")
            if left:
                await asyncio.sleep(_PAUSE)

    async def deregister_images(self, context: Context, names: Sequence[str]) -> None:
        """Forget images."""
        images = Images(store=self.store, bus=self.bus)
        for name in names:
            try:
                await images.deregister_image(context, {"ImageId": name})
            except exception.InvalidAMIIDNotFound:
                continue  # gone meanwhile

    async def delete_key_pairs(self, context: Context, names: Sequence[str]) -> None:
        """Forget key pairs."""
        key_pairs = KeyPairs(store=self.store, public_keys=self.public_keys)
        for name in names:
            await key_pairs.delete_key_pair(context, {"KeyName": name})

    async def delete_buckets(self, context: Context, names: Sequence[str]) -> None:
        """Empty and remove buckets; files that other hosts keep are found by their sweeps."""
        files = open_files()
        try:
            for bucket in await self.store.get_many(Bucket, names):
                await self._delete_bucket(files, bucket)
        finally:
            files.close()

    async def _delete_bucket(self, files: Storage, bucket: Bucket) -> None:
        for attempt in range(_TRIES):
            for member in await self.store.attempt(self.store.redis.zrange(bucket.uploads_key, 0, -1)):
                key, _, id = member.decode().rpartition("\0")
                try:
                    await multipart.abort(self.store, files, bucket,
                                          await multipart.get(self.store, bucket, key, id))
                except errors.NoSuchUpload:
                    continue  # over meanwhile
            try:
                await objects.remove_all(self.store, files, bucket)
                return await buckets.delete(self.store, files, bucket)
            except errors.BucketNotEmpty:
                if attempt == _TRIES - 1:
                    raise
            except exception.NoSuchBucket:
                return


async def _instances(store: Store, project: str, user: str | None) -> list[str]:
    return [i.id for i in await store.find(Instance, project_id=project)
            if i.state != "terminated" and user in (None, i.user_id)]


async def _images(store: Store, project: str, user: str | None) -> list[str]:
    return [i.id for i in await store.find(Image, project_id=project)] if user is None else []


async def _buckets(store: Store, project: str, user: str | None) -> list[str]:
    return await store.ids(Bucket, project_id=project) if user is None else []


async def _key_pairs(store: Store, project: str, user: str | None) -> list[str]:
    return [p.name for p in await store.find(KeyPair, project_id=project) if user in (None, p.user_id)]


@dataclass(frozen=True)
class Kind:
    """A kind of resource that projects own: its name in the plural, how it is listed and how it is removed."""

    name: str
    names: Callable[[Store, str, str | None], Awaitable[list[str]]]
    remove: Callable[[Scrubber, Context, Sequence[str]], Awaitable[Any]]


#: in the order of removal.  Images and buckets are a project's, whoever made them
KINDS = (Kind("instances", _instances, Scrubber.end_instances), Kind("images", _images, Scrubber.deregister_images),
         Kind("buckets", _buckets, Scrubber.delete_buckets),
         Kind("key pairs", _key_pairs, Scrubber.delete_key_pairs))
_ALL_ROLES = ("member", "sysadmin", "netadmin", "projectmanager", "cloudadmin")


def shown(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: the first few, and how many more there are."""
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def describe(owned: Mapping[str, Sequence[str]]) -> str:
    """What is owned, for a message: ``2 instances (i-1, i-2), 1 bucket (mine)``."""
    return ", ".join(f"{len(names)} {kind[:-1] if len(names) == 1 else kind} ({shown(names)})"
                     for kind, names in owned.items())
