"""Operations on the service itself: the buckets that there are."""

from nova.auth import rbac
from nova.objectstore import buckets, listing
from nova.objectstore.body import Received
from nova.objectstore.models import Bucket
from nova.objectstore.operations.base import Operation, Response, owner, xml
from nova.objectstore.request import number

_MAX_BUCKETS = 10000
_PARAMETERS = frozenset(("max-buckets", "prefix", "bucket-region", "continuation-token"))


class ListBuckets(Operation):
    """GET / : all buckets of the project; of all projects, for those who may see them."""

    in_bucket = False

    async def check(self) -> None:
        params = self.target.params
        self.paged = not _PARAMETERS.isdisjoint(params)
        self.limit = number(params, "max-buckets", 0, 1, _MAX_BUCKETS)
        self.prefix, self.region = params.get("prefix", ""), params.get("bucket-region", "")
        token = params.get("continuation-token")
        self.after = listing.read_token(token).decode() if token else ""

    async def run(self, received: Received) -> Response:
        store, caller = self.call.store, self.call.identity
        found = await (store.all(Bucket) if rbac.sees_others(caller, self.action) else
                       store.find(Bucket, project_id=self.project_id))
        there = sorted((bucket for bucket in found if self._wanted(bucket) and rbac.allows(
            caller, self.action, bucket.user_id, bucket.project_id)), key=lambda bucket: bucket.id)
        page = there[:self.limit] if self.limit else there
        return xml("ListBuckets", {
            "Owner": owner(self.project_id),
            "Buckets": [{"Name": bucket.id, "CreationDate": bucket.created,
                         "BucketRegion": buckets.location(bucket) if self.paged else None} for bucket in page],
            "ContinuationToken": listing.token(page[-1].id.encode()) if len(page) < len(there) else None,
            "Prefix": self.prefix or None})

    def _wanted(self, bucket: Bucket) -> bool:
        return (bucket.id > self.after and bucket.id.startswith(self.prefix)
                and self.region in ("", buckets.location(bucket)))
