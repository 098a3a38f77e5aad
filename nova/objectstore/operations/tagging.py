"""Operations on the tags of an object."""

from nova.objectstore import errors, tags
from nova.objectstore.body import Received
from nova.objectstore.models import Object, object_id
from nova.objectstore.operations.base import Operation, Response, xml
from nova.objectstore.operations.object import check_version


class _OfObject(Operation):
    """Tags of an object that must be there."""

    async def check(self) -> None:
        check_version(self.target.params)
        self.id = object_id(self.bucket.id, self.target.key)
        found = await self.call.store.get(Object, self.id)
        if found is None:
            raise errors.NoSuchKey()
        self.found = found


class GetObjectTagging(_OfObject):
    """GET object?tagging."""

    async def run(self, received: Received) -> Response:
        return xml("GetObjectTagging", tags.to_set(self.found.tags))


class PutObjectTagging(_OfObject):
    """PUT object?tagging."""

    async def run(self, received: Received) -> Response:
        new = tags.from_set(self.document("PutObjectTagging"), tags.MAX_OBJECT_TAGS)
        await tags.put(self.call.store, self.id, new)
        return Response()


class DeleteObjectTagging(_OfObject):
    """DELETE object?tagging."""

    async def run(self, received: Received) -> Response:
        await tags.put(self.call.store, self.id, {})
        return Response(204)
