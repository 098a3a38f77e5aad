"""What the operations are called in policies, and what in an access control list permits them.

Rules: Service authorization reference, "Actions, resources, and condition keys for Amazon S3"; Amazon S3 user guide,
"Access control list (ACL) overview", "Mapping of ACL permissions and access policy permissions".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """What an operation needs.

    `actions` are those of policies; `permission` is that of the list of the bucket, or of the object if it is
    `of_object` ('' where no list can give it).  `lists` says that prefix, delimiter and max-keys are looked at.
    """

    actions: tuple[str, ...]
    permission: str = ""
    of_object: bool = False
    lists: bool = False


_LIST = Need(("s3:ListBucket",), "READ", lists=True)
_READ = Need(("s3:GetObject",), "READ", of_object=True)
_WRITE = Need(("s3:PutObject",), "WRITE")

#: operations that are not simply called what they are
_NEEDS = {
    "HeadBucket": _LIST, "ListObjects": _LIST, "ListObjectsV2": _LIST,
    "ListObjectVersions": Need(("s3:ListBucketVersions",), "READ", lists=True),
    "ListMultipartUploads": Need(("s3:ListBucketMultipartUploads",), "READ", lists=True),
    "GetBucketAcl": Need(("s3:GetBucketAcl",), "READ_ACP"),
    "PutBucketAcl": Need(("s3:PutBucketAcl",), "WRITE_ACP"),
    "GetObject": _READ,
    "GetObjectAttributes": Need(("s3:GetObject", "s3:GetObjectAttributes"), "READ", of_object=True),
    "GetObjectAcl": Need(("s3:GetObjectAcl",), "READ_ACP", of_object=True),
    "PutObjectAcl": Need(("s3:PutObjectAcl",), "WRITE_ACP", of_object=True),
    "GetObjectTagging": Need(("s3:GetObjectTagging",), of_object=True),
    "PutObjectTagging": Need(("s3:PutObjectTagging",), of_object=True),
    "DeleteObjectTagging": Need(("s3:DeleteObjectTagging",), of_object=True),
    "PutObject": _WRITE, "PostObject": _WRITE, "CopyObject": _WRITE, "CreateMultipartUpload": _WRITE,
    "UploadPart": _WRITE, "UploadPartCopy": _WRITE, "CompleteMultipartUpload": _WRITE,
    "ListParts": Need(("s3:ListMultipartUploadParts",), "WRITE"),
    "AbortMultipartUpload": Need(("s3:AbortMultipartUpload",), "WRITE"),
    "DeleteObject": Need(("s3:DeleteObject",), "WRITE"),
    "DeleteObjects": Need(("s3:DeleteObject",), "WRITE"),
    "GetBucketCors": Need(("s3:GetBucketCORS",)),
    "PutBucketCors": Need(("s3:PutBucketCORS",)),
    "DeleteBucketCors": Need(("s3:PutBucketCORS",)),
    "DeleteBucketTagging": Need(("s3:PutBucketTagging",)),
    "GetBucketLifecycleConfiguration": Need(("s3:GetLifecycleConfiguration",)),
    "PutBucketLifecycleConfiguration": Need(("s3:PutLifecycleConfiguration",)),
    "DeleteBucketLifecycle": Need(("s3:PutLifecycleConfiguration",)),
    "GetPublicAccessBlock": Need(("s3:GetBucketPublicAccessBlock",)),
    "PutPublicAccessBlock": Need(("s3:PutBucketPublicAccessBlock",)),
    "DeletePublicAccessBlock": Need(("s3:PutBucketPublicAccessBlock",)),
    "DeleteBucketOwnershipControls": Need(("s3:PutBucketOwnershipControls",)),
}
#: actions that are others when they name a version
_OF_VERSIONS = {f"s3:{name}": f"s3:{name.replace('Object', 'ObjectVersion', 1)}" for name in (
    "GetObject", "GetObjectAcl", "GetObjectAttributes", "GetObjectTagging", "PutObjectAcl", "PutObjectTagging",
    "DeleteObject", "DeleteObjectTagging")}


def need(operation: str, with_version: bool) -> Need:
    """What an operation needs.

    :param operation: its name in the table of roles
    :param with_version: the request names a version of the object
    """
    found = _NEEDS.get(operation) or Need((f"s3:{operation}",))
    if not with_version:
        return found
    # a list lets nobody but the bucket's project remove a version
    permission = "" if found.actions == ("s3:DeleteObject",) else found.permission
    return Need(tuple(_OF_VERSIONS.get(action, action) for action in found.actions), permission, found.of_object,
                found.lists)
