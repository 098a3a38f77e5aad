"""What every S3 operation has: the call it serves, where the body goes, the response it gives.

An operation is a small class.  :meth:`Operation.prepare` runs before the client is told to send its body and checks
all that can be checked by then; :meth:`Operation.run` runs when the body has arrived and gives the :class:`Response`.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

from tornado.httputil import HTTPHeaders

from nova import process
from nova.auth import rbac
from nova.auth.signer import Claim
from nova.datastore import Store
from nova.objectstore import buckets, errors, objects, versions
from nova.objectstore.access import acl, actions, decision, values
from nova.objectstore.access.acl import Acl
from nova.objectstore.access.decision import Question
from nova.objectstore.access.pattern import Values
from nova.objectstore.body import MAX_UPLOAD, SMALL, Memory, Received, Target
from nova.objectstore.models import Bucket, Object, Part
from nova.objectstore.request import Target as RequestTarget
from nova.objectstore.serving import StoredFile
from nova.objectstore.storage import Storage, Writer
from nova.wire import rest_xml

#: bodies of operations that need none are read and thrown away up to this many bytes
NO_BODY = 64 << 10
#: from this many bytes on, it is worth looking whether an upload will fit before it comes
_LARGE = 1 << 20


class Identity(Protocol):
    """Whom an access key stands for, as nova.auth.manager gives it."""

    @property
    def user_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def secret(self) -> str: ...
    @property
    def roles(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Anonymous:
    """Whoever did not sign: in no project, and without any role."""

    user_id: str = ""
    project_id: str = ""
    secret: str = ""
    roles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """One request whose signature is right or that has none, and the parts of the object store that serve it.

    `length` is how many bytes of data the request announces; None where it does not tell.  `address` is where it comes
    from, `received` when it came, in seconds since 1970.  `sends_files` says that there is an nginx in front that gives
    files out.
    """

    store: Store
    files: Storage
    identity: Identity
    claim: Claim
    method: str
    target: RequestTarget
    headers: HTTPHeaders
    url: str
    length: int | None = None
    address: str = ""
    received: float = field(default_factory=time.time)
    sends_files: bool = False


@dataclass
class Response:
    """An answer.

    The body is bytes, or comes block by block (`headers` have its Content-Length, if it is known); or nginx makes it of
    the `file`.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | AsyncIterator[bytes] = b""
    file: StoredFile | None = None


class Operation:
    """Base of all."""

    #: how many bytes the body may have
    max_body: ClassVar[int] = NO_BODY
    #: the operation works on a bucket that must be there and on which the caller may do it
    in_bucket: ClassVar[bool] = True
    #: the checksums among its headers are of its body
    sums_of_body: ClassVar[bool] = True
    #: its name in the table of roles (nova.auth.rbac)
    action: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "action" not in vars(cls):
            cls.action = cls.__name__

    def __init__(self, call: Call):
        self.call = call
        self.bucket = Bucket("", project_id="", created=0.0)
        self.body = Memory(self.max_body)
        self.record: Object | None = None

    @property
    def target(self) -> RequestTarget:
        """What the request asks for."""
        return self.call.target

    @property
    def headers(self) -> HTTPHeaders:
        """The request's headers."""
        return self.call.headers

    @property
    def project_id(self) -> str:
        """Who asks."""
        return self.call.identity.project_id

    async def prepare(self) -> Target:
        """Check the request; returns where its body goes.

        :raises S3Error:
        """
        if self.in_bucket:
            self.bucket = await self.find_bucket()
            if self.headers.get("x-amz-expected-bucket-owner", self.bucket.project_id) != self.bucket.project_id:
                raise errors.AccessDenied()
            await self.admit()
        elif not rbac.permits(self.call.identity, self.action):
            raise errors.AccessDenied()
        await self.check()
        return self.body

    async def find_bucket(self) -> Bucket:
        """The bucket that the request names; :raises NoSuchBucket:"""
        return await buckets.get(self.call.store, self.target.bucket)

    async def find_object(self, bucket: Bucket, key: str, version: str | None) -> Object | None:
        """A version of an object, or a delete marker, if it is there.

        :raises InvalidArgument: no version has such an id
        """
        return await objects.find(self.call.store, bucket.id, key, version)

    async def admit(self) -> None:
        """Refuse who may not do this.

        If the object's record had to be read to know, it is in `record` then: what is done must be done with that one.

        :raises AccessDenied, NoSuchKey:
        """
        target = self.target
        self.record = await self.authorize(self.action, self.bucket, target.key, target.params.get("versionId"))

    async def authorize(self, action: str, bucket: Bucket, key: str, version: str | None = None,
                        more: Values | None = None) -> Object | None:
        """Refuse who may not do something with a bucket or an object in it.

        :param action: as the table of roles has it
        :param key: '' for the bucket itself
        :param version: the version that the request names, None if it names none
        :param more: what policies may ask of this key beside what they may ask of the request
        :returns: the object, if its record had to be read
        :raises AccessDenied:
        :raises NoSuchKey, NoSuchVersion: there is none, and the caller may list the bucket
        :raises InvalidArgument: no version has such an id
        """
        question = self.question(action, bucket, key, version is not None, more)
        may = decision.decide(question)
        if may is not None:
            if not may:
                raise errors.AccessDenied()
            return None
        found = versions.live(await self.find_object(bucket, key, version))
        if decision.decide(question, found):
            return found
        if found is None and self.may_list(bucket):
            raise errors.NoSuchKey() if version is None else errors.NoSuchVersion()
        raise errors.AccessDenied()

    def question(self, action: str, bucket: Bucket, key: str, with_version: bool = False,
                 more: Values | None = None) -> Question:
        """What is to be decided."""
        call, found = self.call, {}
        if "policy" in bucket.configuration:
            found = (values.of_caller(call.identity, call.address, call.received)
                     | values.of_request(call.headers, call.target.params, call.claim.scheme,
                                         call.url.startswith("https:"))
                     | values.of_operation(action) | dict(more or {})
                     | {f"{service}:resourceaccount": (bucket.project_id,) for service in ("aws", "s3")})
            if actions.need(action, False).lists and action == self.action:
                found |= values.of_listing(call.target.params)
        return Question(call.identity, action, bucket, key, found, with_version)

    def may_list(self, bucket: Bucket) -> bool:
        """Whether the caller may know which keys there are in a bucket."""
        return bool(decision.decide(self.question("ListObjects", bucket, "")))

    def shown(self, error: errors.S3Error) -> errors.S3Error:
        """An error as the caller may see it: who may not list the bucket does not learn which keys there are."""
        if (isinstance(error, errors.NoSuchKey | errors.NoSuchVersion | errors.VersionIsMarker) and self.bucket.id
                and "x-amz-copy-source" not in self.headers and not self.may_list(self.bucket)):
            return errors.AccessDenied()
        return error

    async def existing(self) -> Object:
        """The object that the request names, or the version of it, as the caller was let at it.

        :raises NoSuchKey, NoSuchVersion, InvalidArgument, VersionIsMarker:
        """
        if self.record:
            return objects.whole(self.record)
        return await objects.open_object(self.call.store, self.bucket.id, self.target.key, self.version)

    @property
    def version(self) -> str | None:
        """The version that the request names; :raises InvalidArgument: no version has such an id"""
        named = self.target.params.get("versionId")
        if named is not None:
            versions.check_id(named)
        return named

    def new_acl(self) -> Acl:
        """The access control list of the object that the request makes.

        :raises AccessDenied: the caller may put it, but not let others at it
        :raises S3Error: as :func:`nova.objectstore.access.decision.new_object_acl`
        """
        home, writer = self.bucket.project_id, self.project_id
        made = decision.new_object_acl(self.bucket, self.headers, writer)
        if not acl.gives_only_to(made, {home, writer or home}) and not decision.may_share(
                self.question("PutObjectAcl", self.bucket, self.target.key)):
            raise errors.AccessDenied()
        return made

    async def check(self) -> None:
        """Check what is particular to the operation; :raises S3Error:"""

    @property
    def wanted_checksums(self) -> frozenset[str]:
        """Checksums of the body to compute beside those that the request gives."""
        return frozenset()

    def document(self, name: str) -> dict[str, Any]:
        """The body as the document of the operation of this name in the model.

        :raises MissingRequestBody, MalformedXML:
        """
        return rest_xml.read_body(name, self.body.data, self.max_body)

    async def run(self, received: Received) -> Response:
        """Do it.

        :param received: what the body was
        :raises S3Error:
        """
        raise NotImplementedError

    async def abandon(self) -> None:
        """The request ends without :meth:`run` having come to its end."""


class Upload(Operation):
    """An operation whose body is an object or a part of one."""

    max_body = MAX_UPLOAD
    writer: Writer | None = None

    async def place_for(self, owner: str) -> Target:
        """Where the body goes: what is small stays in memory until all of it is there.

        :param owner: as :meth:`nova.objectstore.files.Files.new` has it
        """
        files, length = self.call.files, self.call.length
        if length is not None and length <= SMALL:
            self.body = Memory(SMALL)
            self.file = files.name(owner)
            return self.body
        self.writer = await process.wait(files.pool.run(files.new, owner, length or 0))
        self.file = self.writer.name
        return self.writer

    async def publish(self, record: Object | Part) -> None:
        """Put the file on the disk; :param record: what will name it"""
        if self.writer is None:
            await self.call.files.put_soon(record, self.body.data)
        else:
            await process.wait(self.call.files.pool.run(self.writer.publish, record))

    async def abandon(self) -> None:
        if self.writer:
            await process.wait(self.call.files.pool.run(self.writer.close))

    @property
    def is_large(self) -> bool:
        """Whether the body is so large that it is worth looking whether it will fit before it comes."""
        return (self.call.length or 0) >= _LARGE

    async def check_room(self, replaced: int) -> None:
        """Refuse a large body that will not fit before it comes.

        :param replaced: bytes of what it takes the place of
        :raises QuotaExceeded:
        """
        if self.is_large:
            await objects.check_room(self.call.store, self.bucket, (self.call.length or 0) - replaced)


def xml(operation: str, result: dict[str, Any]) -> Response:
    """The document that the operation of this name in the model answers."""
    return Response(headers={"Content-Type": "application/xml"}, body=rest_xml.write_body(operation, result))


def http_time(seconds: float) -> str:
    """A time as headers have it."""
    return formatdate(seconds, usegmt=True)


def owner(project_id: str) -> dict[str, str]:
    """Who owns something: a project."""
    return {"ID": project_id, "DisplayName": project_id}


class Encoding:
    """Writes keys as the request's encoding-type asks.

    :raises InvalidArgument: it asks for an unknown one
    """

    def __init__(self, params: dict[str, str]):
        self.name = params.get("encoding-type") or None
        if self.name not in (None, "url"):
            raise errors.InvalidArgument(reason="Invalid Encoding Method specified in Request")

    def __call__(self, key: str | bytes) -> str:
        if self.name:
            return quote(key, safe="/-_.~")
        return key.decode() if isinstance(key, bytes) else key
