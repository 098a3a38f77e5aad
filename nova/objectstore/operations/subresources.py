"""Sub-resources of buckets and objects that nobody can set: the answers that S3 gives where nothing is set.

Clients ask for them as a matter of course (s3cmd info, ansible, rclone) and go by the error code.
"""

from nova.objectstore import buckets, errors
from nova.objectstore.body import Received
from nova.objectstore.operations.base import Operation, Response, xml

_FIRST_REGION = "us-east-1"
#: sub-resource of a bucket -> code and text of the error when it is not set
_NOT_SET = {
    "website": ("NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration"),
    "encryption": ("ServerSideEncryptionConfigurationNotFoundError",
                   "The server side encryption configuration was not found"),
    "replication": ("ReplicationConfigurationNotFoundError", "The replication configuration was not found"),
    "object-lock": ("ObjectLockConfigurationNotFoundError",
                    "Object Lock configuration does not exist for this bucket"),
}
#: sub-resource of a bucket -> operation of the model that gets it, and the answer when it is not set
_EMPTY: dict[str, tuple[str, dict[str, str]]] = {
    "logging": ("GetBucketLogging", {}),
    "notification": ("GetBucketNotificationConfiguration", {}),
    "accelerate": ("GetBucketAccelerateConfiguration", {}),
    "requestPayment": ("GetBucketRequestPayment", {"Payer": "BucketOwner"}),
}
#: sub-resource of which a bucket may have several, each with an id -> operation of the model that lists them
_LISTS = {
    "inventory": "ListBucketInventoryConfigurations", "analytics": "ListBucketAnalyticsConfigurations",
    "metrics": "ListBucketMetricsConfigurations",
    "intelligent-tiering": "ListBucketIntelligentTieringConfigurations",
}
#: what sub-resources are about that S3 has and this object store has not
_FEATURES = {
    "object-lock": "Object lock", "legal-hold": "Object lock: legal hold", "retention": "Object lock: retention",
    "torrent": "Distribution by BitTorrent", "restore": "Restoring from an archive",
    "select": "Querying the content of objects", "renameObject": "Renaming objects",
    "session": "A session of a directory bucket", "website": "Website hosting", "replication": "Replication",
    "logging": "Access logging", "notification": "Event notification", "encryption": "Choosing an encryption",
}


class GetBucketLocation(Operation):
    """GET bucket?location: its region, which is nothing where that is S3's first one."""

    async def run(self, received: Received) -> Response:
        region = buckets.location(self.bucket)
        return xml("GetBucketLocation", {"LocationConstraint": "" if region == _FIRST_REGION else region})


class GetBucketConfiguration(Operation):
    """GET bucket?<sub-resource> of what is not set."""

    async def run(self, received: Received) -> Response:
        name = self.target.sub_resource
        if name in _EMPTY:
            return xml(*_EMPTY[name])
        if name in _LISTS:
            if "id" in self.target.params:
                raise errors.NothingSet("NoSuchConfiguration", "The specified configuration does not exist.")
            return xml(_LISTS[name], {"IsTruncated": False})
        if name in _NOT_SET:
            raise errors.NothingSet(*_NOT_SET[name])
        raise errors.NotImplementedYet(what=f"The sub-resource {name}")


class DeleteBucketConfiguration(Operation):
    """DELETE bucket?<sub-resource> of what is not set."""

    async def run(self, received: Received) -> Response:
        return Response(204)


class NotOffered(Operation):
    """What S3 has and this object store has not; said to whoever may know that the bucket is there."""

    max_body = 1 << 20
    action = "HeadBucket"

    async def check(self) -> None:
        name = self.target.sub_resource
        what = _FEATURES.get(name)
        raise errors.NotImplementedYet(
            what=f"{what} ({self.call.method} ?{name})" if what else f"{self.call.method} of the sub-resource {name}")
