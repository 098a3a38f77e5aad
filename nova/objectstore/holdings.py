"""What is in the object store, by whose limits it counts: for comparing with the counters (nova.auth.quota)."""

from collections.abc import AsyncIterator

from nova.auth import quota
from nova.datastore import Store
from nova.objectstore.models import Object, Part


async def holdings(store: Store) -> AsyncIterator[quota.Holding]:
    """The objects, and the parts of uploads that are not completed."""
    async for found in store.scan(Object):
        if found.project_id:  # the cloud's own objects count in nobody's limits
            yield quota.Holding(found.project_id, found.user_id, {quota.OBJECT_GB: found.size})
    async for part in store.scan(Part):
        yield quota.Holding(part.project_id, part.user_id, {quota.OBJECT_GB: part.size})
