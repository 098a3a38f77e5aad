"""Where images come from: for each kind of source a function that brings its file to the object store's host.

What the file is, nobody has looked at yet then; nova.image.manager does, whatever the source.  Another kind of source
is another function with a line in the table that the manager gets.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from nova import exception
from nova.crypto import Authority
from nova.datastore import Store
from nova.image import bundle
from nova.image.manifest import check_signature
from nova.image.models import Image
from nova.image.work import Progress
from nova.process import in_thread, wait

MANIFEST_SUFFIX = ".manifest.xml"


class StoredObject(Protocol):
    """What the object store tells of an object: its size in bytes, its SHA-256 if it knows that, its owner."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...


#: finds an object by bucket and key; raises NoSuchBucket or NoSuchKey
Opener = Callable[[str, str], Awaitable[Any]]


class ImageFiles(Protocol):
    """The part of the object store that keeps the files of images (nova.objectstore.images)."""

    async def local(self, stored: Any, directory: str) -> str:
        """The path of a file with the bytes of an object, if there is none of this machine one that is made in a
        directory; raises NoSuchKey."""

    async def read(self, stored: Any, limit: int) -> bytes:
        """The bytes of an object, no more than `limit` of them; raises NoSuchKey."""

    def open(self, stored: Any) -> AbstractContextManager[bundle.PartFile]:
        """Open an object, which blocks, as reading does."""

    async def find(self, image_id: str) -> Any:
        """The object that is an image's file, or None."""

    async def ids(self) -> set[str]:
        """The ids of all images that have a file."""

    async def publish(self, image: Image, source: Any, *, sha256: str, size: int, **changes: Any) -> None:
        """Make an object or a finished file (its path) an image's, and change the image's record."""

    async def describe(self, image: Image) -> None:
        """Note on the disk what the record of an image says now."""

    async def remove(self, image_id: str) -> None:
        """Remove the file of an image that has no record any more."""


@dataclass(frozen=True)
class Job:
    """An image that is being made, and what its source may use.

    `directory` is for what the source writes; all that is left in it is removed afterwards.  `authority` has the
    cloud's key, for which bundles are encrypted, and the certificates of who signs them.
    """

    image: Image
    directory: str
    store: Store
    open_object: Opener
    files: ImageFiles
    authority: Authority
    progress: Progress


@dataclass(frozen=True)
class Candidate:
    """What a source brought: the absolute path of a file.

    `stored` is the object that it belongs to, whose file others may share but nobody changes; None for a file in the
    job's directory.  `sha256` is the file's, in hex, where the source knows it already.
    """

    path: str
    stored: StoredObject | None = None
    sha256: str = ""


class NotYet(exception.NovaError):
    """What an image is made from is still on its way; whoever brings it says so."""


class NeverCame(exception.NovaError):
    """What an image is made from should have come long ago."""


#: brings the file of an image; raises exception.ClientError where the image has to fail, whose message tells why,
#: NeverCame where that is the cloud's fault, and NotYet where there is nothing to do for the time being
Source = Callable[[Job], Awaitable[Candidate]]


def kind_of(image: Image) -> str:
    """The kind of source that an image has: what its `source` begins with, or what its location tells."""
    if image.source:
        return image.source.partition(":")[0]
    return "bundle" if image.location.endswith(MANIFEST_SUFFIX) else "object"


async def from_object(job: Job) -> Candidate:
    """The object at the image's location."""
    bucket, _, key = job.image.location.partition("/")
    return await of(job, await job.open_object(bucket, key))


async def of(job: Job, stored: StoredObject) -> Candidate:
    """An object as a candidate."""
    return Candidate(await job.files.local(stored, job.directory), stored, stored.sha256)


async def from_bundle(job: Job) -> Candidate:
    """What is bundled under the manifest at the image's location."""
    bucket, _, key = job.image.location.partition("/")
    source = await job.open_object(bucket, key)
    document = await job.files.read(source, bundle.MAX_MANIFEST)
    manifest = await wait(in_thread(_read_signed, document, job.authority, (job.image.user_id, source.user_id)))
    folder = key.rpartition("/")[0]
    stored = {}
    for part in manifest.parts:
        stored[part.name] = await job.open_object(bucket, f"{folder}/{part.name}" if folder else part.name)

    def open_part(name: str) -> AbstractContextManager[bundle.PartFile]:
        return job.files.open(stored[name])
    target = os.path.join(job.directory, "unbundled")
    sha256, _ = await wait(in_thread(bundle.unbundle, manifest, open_part, job.authority.key_path, target))
    return Candidate(target, sha256=sha256)


def _read_signed(document: bytes, authority: Authority, signers: Sequence[str]) -> bundle.Manifest:
    """A manifest, which one of these users must have signed: who registers it, or who has the bucket."""
    manifest = bundle.read_manifest(document)
    check_signature(manifest, authority.certificates_of(*signers))
    return manifest


async def from_image(job: Job) -> Candidate:
    """The file of another image, of which this one is a copy: both share it."""
    source = job.image.source.partition(":")[2]
    stored = await job.files.find(source)
    if stored is None:
        raise exception.InvalidAMIIDNotFound(f"The image {source} was deregistered before it was copied.")
    return await of(job, stored)


SOURCES: Mapping[str, Source] = {"object": from_object, "bundle": from_bundle, "image": from_image}
