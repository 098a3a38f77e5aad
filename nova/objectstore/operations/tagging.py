"""Operations on the tags of an object."""

from nova.objectstore import errors, tags
from nova.objectstore.body import Received
from nova.objectstore.models import Object, object_id
from nova.objectstore.operations.base import Operation, Response
from nova.objectstore.operations.object import check_version
from nova.wire import rest_xml


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
        return Response(headers={"Content-Type": "application/xml"},
                        body=rest_xml.write_body("GetObjectTagging", tags.to_set(self.found.tags)))


class PutObjectTagging(_OfObject):
    """PUT object?tagging."""

    async def run(self, received: Received) -> Response:
        document = rest_xml.read_body("PutObjectTagging", self.body.data)
        await tags.put(self.call.store, self.id, tags.from_set(document, tags.MAX_OBJECT_TAGS))
        return Response()


class DeleteObjectTagging(_OfObject):
    """DELETE object?tagging."""

    async def run(self, received: Received) -> Response:
        await tags.put(self.call.store, self.id, {})
        return Response(204)
