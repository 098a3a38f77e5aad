"""The images of instances that are to be launched, fetched beside the convergence.

To fetch an image may take long.  An instance that waits for it is left alone meanwhile and looked at again when it is
here, so that others are launched and terminated; one that is not wanted any more waits no longer.
"""

import asyncio
import logging
from collections.abc import Callable

from nova.compute.models import Instance
from nova.image.cache import ImageCache

LOG = logging.getLogger(__name__)

#: seconds in which images that are in the cache are there; for others the instance is looked at again
_AT_ONCE = 0.25


class Deliveries:
    """What is being fetched for the instances of this host.

    :param wake: told the id of an instance whose images are here, or cannot be had
    """

    def __init__(self, cache: ImageCache, wake: Callable[[str], None]):
        self._cache, self._wake = cache, wake
        self._tasks: dict[str, asyncio.Task[dict[str, str]]] = {}

    async def paths(self, instance: Instance) -> dict[str, str] | None:
        """The paths of the images that an instance boots, by role; None when they are still on their way.

        :raises exception.NovaError: as :meth:`ImageCache.fetch`
        """
        task = self._tasks.get(instance.id)
        if task is None:
            task = self._tasks[instance.id] = asyncio.ensure_future(self._fetch(instance))
            await asyncio.wait([task], timeout=_AT_ONCE)
            if not task.done():
                task.add_done_callback(lambda _: self._wake(instance.id))
        if not task.done():
            return None
        del self._tasks[instance.id]
        return task.result()

    async def forget(self, instance_id: str) -> None:
        """Fetch nothing more for an instance."""
        task = self._tasks.pop(instance_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                LOG.debug("what is not wanted any more: %s: %s", instance_id, error)

    async def stop(self) -> None:
        """Fetch nothing more."""
        for instance_id in list(self._tasks):
            await self.forget(instance_id)

    async def _fetch(self, instance: Instance) -> dict[str, str]:
        return {role: await self._cache.fetch(instance.image_ids[role], sha256)
                for role, sha256 in instance.images.items()}
