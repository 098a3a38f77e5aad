"""The operations of the S3 API that the object store offers, one class each; :func:`find` knows them all."""

from nova.auth import rbac
from nova.objectstore import errors
from nova.objectstore.operations import (
    access,
    account,
    attributes,
    bucket,
    configuration,
    form,
    multipart,
    object,
    subresources,
    tagging,
    versions,
)
from nova.objectstore.operations.base import Operation
from nova.objectstore.request import Target

__all__ = ["OFFERED", "find"]

_BUCKET: dict[tuple[str, str], type[Operation]] = {
    ("GET", ""): bucket.ListObjects,
    ("HEAD", ""): bucket.HeadBucket,
    ("PUT", ""): bucket.CreateBucket,
    ("DELETE", ""): bucket.DeleteBucket,
    ("GET", "versions"): versions.ListObjectVersions,
    ("GET", "versioning"): versions.GetBucketVersioning,
    ("PUT", "versioning"): versions.PutBucketVersioning,
    ("GET", "uploads"): bucket.ListMultipartUploads,
    ("POST", "delete"): bucket.DeleteObjects,
    ("GET", "location"): subresources.GetBucketLocation,
    ("GET", "acl"): access.GetBucketAcl,
    ("PUT", "acl"): access.PutBucketAcl,
    ("GET", "policy"): access.GetBucketPolicy,
    ("PUT", "policy"): access.PutBucketPolicy,
    ("DELETE", "policy"): access.DeleteBucketPolicy,
    ("GET", "policyStatus"): access.GetBucketPolicyStatus,
    ("GET", "publicAccessBlock"): access.GetPublicAccessBlock,
    ("PUT", "publicAccessBlock"): access.PutPublicAccessBlock,
    ("DELETE", "publicAccessBlock"): access.DeletePublicAccessBlock,
    ("GET", "ownershipControls"): access.GetBucketOwnershipControls,
    ("PUT", "ownershipControls"): access.PutBucketOwnershipControls,
    ("DELETE", "ownershipControls"): access.DeleteBucketOwnershipControls,
    ("GET", "cors"): configuration.GetBucketCors,
    ("PUT", "cors"): configuration.PutBucketCors,
    ("DELETE", "cors"): configuration.DeleteBucketCors,
    ("GET", "tagging"): configuration.GetBucketTagging,
    ("PUT", "tagging"): configuration.PutBucketTagging,
    ("DELETE", "tagging"): configuration.DeleteBucketTagging,
    ("GET", "lifecycle"): configuration.GetBucketLifecycleConfiguration,
    ("PUT", "lifecycle"): configuration.PutBucketLifecycleConfiguration,
    ("DELETE", "lifecycle"): configuration.DeleteBucketLifecycle,
}
#: a bucket may lose these whether it has them or not
_REMOVABLE = frozenset(("website", "encryption", "replication", "inventory", "analytics", "metrics",
                        "intelligent-tiering"))
_OBJECT: dict[tuple[str, str], type[Operation]] = {
    ("GET", ""): object.GetObject,
    ("HEAD", ""): object.GetObject,
    ("PUT", ""): object.PutObject,
    ("DELETE", ""): object.DeleteObject,
    ("POST", "uploads"): multipart.CreateMultipartUpload,
    ("PUT", "uploadId"): multipart.UploadPart,
    ("POST", "uploadId"): multipart.CompleteMultipartUpload,
    ("DELETE", "uploadId"): multipart.AbortMultipartUpload,
    ("GET", "uploadId"): multipart.ListParts,
    ("GET", "acl"): access.GetObjectAcl,
    ("PUT", "acl"): access.PutObjectAcl,
    ("GET", "tagging"): tagging.GetObjectTagging,
    ("PUT", "tagging"): tagging.PutObjectTagging,
    ("DELETE", "tagging"): tagging.DeleteObjectTagging,
    ("GET", "attributes"): attributes.GetObjectAttributes,
}

#: every operation that :func:`find` may give; one that the table of roles does not have is an error here
OFFERED: tuple[type[Operation], ...] = (
    account.ListBuckets, bucket.ListObjectsV2, object.CopyObject, multipart.UploadPartCopy, form.PostObject,
    subresources.GetBucketConfiguration, subresources.DeleteBucketConfiguration, subresources.NotOffered,
    *_BUCKET.values(), *_OBJECT.values())
for _kind in OFFERED:
    rbac.rule(_kind.action)


def find(method: str, target: Target, copies: bool) -> type[Operation]:
    """The operation that a request asks for.

    :param copies: it has an x-amz-copy-source header
    :raises MethodNotAllowed, NotImplementedYet:
    """
    if not target.bucket:
        if method == "GET" and not target.key:
            return account.ListBuckets
        raise errors.MethodNotAllowed()
    sub = target.sub_resource
    if target.key:
        if copies and method == "PUT" and sub in ("", "uploadId"):
            return multipart.UploadPartCopy if sub else object.CopyObject
        found = _OBJECT.get((method, sub))
    elif method == "GET" and not sub and target.params.get("list-type") == "2":
        found = bucket.ListObjectsV2
    else:
        found = _BUCKET.get((method, sub))
        if found is None and sub:
            if method == "GET":
                found = subresources.GetBucketConfiguration
            elif method == "DELETE" and sub in _REMOVABLE:
                found = subresources.DeleteBucketConfiguration
    if found is None and sub and method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
        return subresources.NotOffered
    if found is None:
        raise errors.MethodNotAllowed()
    return found
