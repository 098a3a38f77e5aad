"""What every S3 operation has: the call it serves, where the body goes, the response it gives.

An operation is a small class.  :meth:`Operation.prepare` runs before the client is told to send its body and checks
all that can be checked by then; :meth:`Operation.run` runs when the body has arrived and gives the :class:`Response`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

from tornado.httputil import HTTPHeaders

from nova.auth import rbac
from nova.auth.signer import Claim
from nova.datastore import Store
from nova.objectstore import buckets, errors, objects
from nova.objectstore.body import MAX_UPLOAD, Memory, Received, Target
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket
from nova.objectstore.request import Target as RequestTarget
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
class Call:
    """One authenticated request, and the parts of the object store that serve it.

    `length` is how many bytes of data the request announces; None where it does not tell.
    """

    store: Store
    files: Files
    identity: Identity
    claim: Claim
    method: str
    target: RequestTarget
    headers: HTTPHeaders
    url: str
    length: int | None = None


@dataclass
class Response:
    """An answer.  The body is bytes, or comes block by block (`headers` have its Content-Length, if it is known)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | AsyncIterator[bytes] = b""


class Operation:
    """Base of all."""

    #: how many bytes the body may have
    max_body: ClassVar[int] = NO_BODY
    #: the operation works on a bucket that must be there and on which the caller may do it
    in_bucket: ClassVar[bool] = True
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
        caller = self.call.identity
        if self.in_bucket:
            self.bucket = await buckets.get(self.call.store, self.target.bucket)
            may = rbac.allows(caller, self.action, self.bucket.user_id, self.bucket.project_id)
        else:
            may = rbac.permits(caller, self.action)
        if not may:
            raise errors.AccessDenied()
        await self.check()
        return self.body

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

    async def check_room(self, replaced: int) -> None:
        """Refuse a large body that will not fit before it comes.

        :param replaced: bytes of what it takes the place of
        :raises QuotaExceeded:
        """
        if (self.call.length or 0) >= _LARGE:
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
