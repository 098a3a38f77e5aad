"""The records of the object store.

An object's record is found by a hash of bucket and key, so that no key of a user becomes a Redis key or a path.  Sorted
sets, read in byte order, keep the keys and the uploads of each bucket for listings.
"""

import hashlib
import os
from dataclasses import dataclass, field

from nova import datastore
from nova.flags import FLAGS, DEFINE_string

DEFINE_string("objects_path", "", "directory of the object store's files; empty: 'objects' below --state_path")


def objects_path() -> str:
    """The directory of the object store's files."""
    return os.path.abspath(FLAGS.objects_path or os.path.join(FLAGS.state_path, "objects"))


@datastore.record("bucket", indexes=("project_id",))
@dataclass(frozen=True)
class Bucket(datastore.Record):
    """A bucket; `id` is its name, `user_id` who made it, `created` seconds since 1970.

    `versioning` is '' (never enabled), Enabled or Suspended.  `configuration` has what was put into its sub-resources:
    by the name of each (acl, cors, lifecycle, ownershipControls, policy, publicAccessBlock, tagging) what JSON has.
    """

    project_id: str
    created: float
    location: str = ""
    user_id: str = ""
    versioning: str = ""
    configuration: dict = field(default_factory=dict)

    @property
    def keys_key(self) -> str:
        """The sorted set of the keys that have an object: whose current version is no delete marker."""
        return f"{datastore.PREFIX}bucket-keys:{self.id}"

    @property
    def versions_key(self) -> str:
        """The sorted set of the versions that are not in `keys_key`, as :mod:`nova.objectstore.versions` names them."""
        return f"{datastore.PREFIX}bucket-versions:{self.id}"

    @property
    def uploads_key(self) -> str:
        """The sorted set of its multipart uploads, as :func:`upload_member` names them."""
        return f"{datastore.PREFIX}bucket-uploads:{self.id}"


@datastore.record("object", listed=False)
@dataclass(frozen=True)
class Object(datastore.Record):
    """A version of an object, or a delete marker; the only one where versioning was never enabled.

    `file` is its file below :func:`objects_path`, which never changes.  `md5` and `sha256` are hex and of the whole
    object, `etag` is what S3 calls it.  `headers` are the content headers, `metadata` what followed
    ``x-amz-meta-``; `checksums` are base64 by algorithm.  `part_sizes` are bytes, empty unless it was uploaded in parts
    (by `upload_id`); `part_checksums` are theirs, if they have any.  `user_id` and `project_id` are the bucket's: whose
    object storage it takes.  `tags` are values by key, `acl` is empty where only the owner may do anything.
    `version_id` is '' for the null version; `sequence` orders the versions of a key, the newest highest; a delete
    marker (`is_marker`) has an empty file.  `revision` counts the changes since it was put, such as of its tags.
    `damaged`: its file was found to be another than was put, or lost (nova.objectstore.verify).
    """

    bucket: str
    key: str
    project_id: str
    file: str
    size: int
    md5: str
    sha256: str
    etag: str
    modified: float
    headers: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    storage_class: str = "STANDARD"
    checksums: dict = field(default_factory=dict)
    checksum_type: str = "FULL_OBJECT"
    part_sizes: list = field(default_factory=list)
    part_checksums: list = field(default_factory=list)
    upload_id: str = ""
    user_id: str = ""
    tags: dict = field(default_factory=dict)
    acl: dict = field(default_factory=dict)
    version_id: str = ""
    sequence: int = 0
    is_marker: bool = False
    revision: int = 0
    damaged: bool = False

    @property
    def path(self) -> str:
        """The absolute path of its file."""
        return os.path.join(objects_path(), self.file)


@datastore.record("upload", listed=False)
@dataclass(frozen=True)
class Upload(datastore.Record):
    """A multipart upload that is not completed; the fields are those that the object will have."""

    bucket: str
    key: str
    project_id: str
    initiated: float
    headers: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    storage_class: str = "STANDARD"
    checksum_algorithm: str = ""
    checksum_type: str = ""
    user_id: str = ""
    tags: dict = field(default_factory=dict)
    acl: dict = field(default_factory=dict)


@datastore.record("part", indexes=("upload_id",), listed=False)
@dataclass(frozen=True)
class Part(datastore.Record):
    """One part of a multipart upload; `md5` is hex, `user_id` and `project_id` are the bucket's."""

    upload_id: str
    number: int
    file: str
    size: int
    md5: str
    modified: float
    checksums: dict = field(default_factory=dict)
    user_id: str = ""
    project_id: str = ""

    @property
    def path(self) -> str:
        """The absolute path of its file."""
        return os.path.join(objects_path(), self.file)


def object_id(bucket: str, key: str) -> str:
    """The id of the record of a key's current version.  A bucket's name has no slash, so no two objects share one."""
    return hashlib.sha256(f"{bucket}/{key}".encode()).hexdigest()


def part_id(upload_id: str, number: int) -> str:
    """The id of a part's record."""
    return f"{upload_id}.{number:05d}"


def upload_member(key: str, upload_id: str) -> bytes:
    """An upload in its bucket's sorted set: by key, then by id."""
    return f"{key}\0{upload_id}".encode()
