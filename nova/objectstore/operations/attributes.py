"""GET object?attributes: what is known of an object, without its bytes."""

from typing import Any

from nova.objectstore import checksums, conditions, errors
from nova.objectstore.body import Received
from nova.objectstore.models import Object
from nova.objectstore.operations.base import Operation, Response, http_time, xml
from nova.objectstore.operations.headers import of_version
from nova.objectstore.request import number

_ATTRIBUTES = frozenset(("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"))
_MAX_PARTS = 1000


class GetObjectAttributes(Operation):
    """GET object?attributes."""

    async def check(self) -> None:
        wanted = ",".join(self.headers.get_list("x-amz-object-attributes"))
        self.wanted = {name.strip() for name in wanted.split(",") if name.strip()}
        if not self.wanted:
            raise errors.InvalidRequest(reason="The x-amz-object-attributes header specifying the attributes to be "
                                               "retrieved is either missing or empty")
        if not self.wanted <= _ATTRIBUTES:
            raise errors.InvalidArgument(reason="Invalid attribute name specified.")
        self.limit = number(dict(self.headers), "X-Amz-Max-Parts", _MAX_PARTS, 0, 2**31 - 1)
        self.marker = number(dict(self.headers), "X-Amz-Part-Number-Marker", 0, 0, 2**31 - 1)

    async def run(self, received: Received) -> Response:
        found = await self.existing()
        conditions.check_read(self.headers, found.etag, found.modified)
        sums = checksums.members(found.checksums)
        known: dict[str, Any] = {
            "ETag": found.etag, "Checksum": {**sums, "ChecksumType": found.checksum_type} if sums else None,
            "ObjectParts": self._parts(found) if found.part_sizes else None, "StorageClass": found.storage_class,
            "ObjectSize": found.size}
        response = xml("GetObjectAttributes", {n: v for n, v in known.items() if n in self.wanted})
        response.headers |= {"Last-Modified": http_time(found.modified), **of_version(self.bucket, found)}
        return response

    def _parts(self, found: Object) -> dict[str, Any]:
        """How many parts it was made of; which ones, if they have checksums (as S3 does it)."""
        answer: dict[str, Any] = {"TotalPartsCount": len(found.part_sizes)}
        if not found.part_checksums:
            return answer
        algorithm = next(iter(found.checksums))
        shown = range(self.marker, min(self.marker + min(self.limit, _MAX_PARTS), len(found.part_sizes)))
        return {**answer, "PartNumberMarker": self.marker, "NextPartNumberMarker": shown[-1] + 1 if shown else 0,
                "MaxParts": self.limit, "IsTruncated": bool(shown) and shown[-1] + 1 < len(found.part_sizes),
                "Parts": [{"PartNumber": at + 1, "Size": found.part_sizes[at],
                           **checksums.members({algorithm: found.part_checksums[at]})} for at in shown]}
