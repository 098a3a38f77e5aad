"""Operations on the tags of an object, or of one of its versions."""

import dataclasses

from nova.objectstore import errors, objects, tags
from nova.objectstore.access import decision, values
from nova.objectstore.body import Received
from nova.objectstore.operations.base import Operation, Response, xml
from nova.objectstore.operations.headers import of_version


class GetObjectTagging(Operation):
    """GET object?tagging."""

    async def run(self, received: Received) -> Response:
        found = await self.existing()
        response = xml("GetObjectTagging", tags.to_set(found.tags))
        response.headers |= of_version(self.bucket, found)
        return response


class _Change(Operation):
    """What changes them; the object must be there before its new tags are received."""

    async def check(self) -> None:
        await self.existing()

    async def put(self, new: dict[str, str], status: int) -> Response:
        """Replace the tags.  Where another object takes the key meanwhile, the change comes before it, or after it and
        is its own; it never brings back the one that was replaced."""
        found = await objects.change(self.call.store, self.call.files, self.bucket.id, self.target.key, self.version,
                                     lambda _: {"tags": new})
        return Response(status, of_version(self.bucket, found))


class PutObjectTagging(_Change):
    """PUT object?tagging."""

    async def run(self, received: Received) -> Response:
        new = tags.from_set(self.document("PutObjectTagging"), tags.MAX_OBJECT_TAGS)
        if "policy" in self.bucket.configuration:  # which may be about the tags that were only now received
            question = self.question(self.action, self.bucket, self.target.key, self.version is not None)
            asked = dataclasses.replace(question, values={**question.values, **values.of_request_tags(new)})
            if not decision.decide(asked, await self.existing()):
                raise errors.AccessDenied()
        return await self.put(new, 200)


class DeleteObjectTagging(_Change):
    """DELETE object?tagging."""

    async def run(self, received: Received) -> Response:
        return await self.put({}, 204)
