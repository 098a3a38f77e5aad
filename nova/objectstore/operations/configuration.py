"""Operations on what a bucket is told to do: CORS, tags, lifecycle.  Each is kept in the bucket's record as it came."""

from typing import Any

from nova.objectstore import buckets, cors, errors, lifecycle, tags
from nova.objectstore.body import Received
from nova.objectstore.operations.base import Operation, Response, xml


class _Get(Operation):
    """GET bucket?<sub-resource>; an error where nothing is set."""

    #: code and text of that error
    missing: tuple[str, str]

    async def run(self, received: Received) -> Response:
        found = self.bucket.configuration.get(self.target.sub_resource)
        if found is None:
            raise errors.NothingSet(*self.missing)
        return xml(self.action, found)


class _Put(Operation):
    """PUT bucket?<sub-resource>."""

    max_body = 2 << 20
    status = 200

    def read(self, document: dict[str, Any]) -> dict[str, Any]:
        """Check the document; returns what is kept of it; :raises S3Error:"""
        raise NotImplementedError

    async def run(self, received: Received) -> Response:
        kept = self.read(self.document(self.action))
        await buckets.configure(self.call.store, self.call.files, self.bucket, self.target.sub_resource, kept)
        return Response(self.status)


class _Delete(Operation):
    """DELETE bucket?<sub-resource>; it is no error if nothing is set."""

    async def run(self, received: Received) -> Response:
        await buckets.configure(self.call.store, self.call.files, self.bucket, self.target.sub_resource, None)
        return Response(204)


class GetBucketCors(_Get):
    missing = "NoSuchCORSConfiguration", "The CORS configuration does not exist"


class PutBucketCors(_Put):
    max_body = 64 << 10

    def read(self, document: dict[str, Any]) -> dict[str, Any]:
        cors.check(document)
        return document


class DeleteBucketCors(_Delete):
    pass


class GetBucketTagging(_Get):
    missing = "NoSuchTagSet", "The TagSet does not exist"


class PutBucketTagging(_Put):
    status = 204

    def read(self, document: dict[str, Any]) -> dict[str, Any]:
        return tags.to_set(tags.from_set(document, tags.MAX_BUCKET_TAGS))


class DeleteBucketTagging(_Delete):
    pass


class GetBucketLifecycleConfiguration(_Get):
    missing = "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"


class PutBucketLifecycleConfiguration(_Put):
    def read(self, document: dict[str, Any]) -> dict[str, Any]:
        return lifecycle.read(document)


class DeleteBucketLifecycle(_Delete):
    pass
