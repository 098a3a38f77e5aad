"""Operations on the service itself: the buckets that there are."""

from nova.auth import rbac
from nova.objectstore.body import Received
from nova.objectstore.models import Bucket
from nova.objectstore.operations.base import Operation, Response, owner, xml


class ListBuckets(Operation):
    """GET / : all buckets of the project; of all projects, for those who may see them."""

    in_bucket = False

    async def run(self, received: Received) -> Response:
        store, caller = self.call.store, self.call.identity
        found = await (store.all(Bucket) if rbac.sees_others(caller, self.action) else
                       store.find(Bucket, project_id=self.project_id))
        return xml("ListBuckets", {
            "Owner": owner(self.project_id),
            "Buckets": [{"Name": bucket.id, "CreationDate": bucket.created} for bucket in found
                        if rbac.allows(caller, self.action, bucket.user_id, bucket.project_id)]})
