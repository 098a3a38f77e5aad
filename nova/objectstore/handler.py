"""The HTTP face of the object store: authenticates a request, finds its operation and gives its answer.

A request is a delegate of the HTTP server's own (nova.http1), with no Tornado RequestHandler in between, which costs
more than all that is done here.

The body is passed on as it arrives.  What can be refused is refused before the client is told to send it (Expect:
100-continue); a client that sends it anyway is heard out up to a limit, because an answer to somebody who still
writes gets lost.
"""

import asyncio
import base64
import functools
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, cast, runtime_checkable
from urllib.parse import unquote

from tornado import httputil, iostream

from nova import exception, proxy
from nova.auth import replay, signer
from nova.auth.gate import Gate
from nova.context import new_request_id, request_id_var
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_string
from nova.http1.reading import Headers
from nova.http1.server import Connection, date
from nova.objectstore import body, cors, errors, operations, request
from nova.objectstore.body import MAX_UPLOAD, Expected, Received, Receiver
from nova.objectstore.forms import boundary_of
from nova.objectstore.models import Bucket
from nova.objectstore.operations import form
from nova.objectstore.operations.base import Anonymous, Call, Identity, Operation, Response
from nova.objectstore.serving import hand_over
from nova.objectstore.storage import Storage
from nova.wire import rest_xml

log = logging.getLogger(__name__)

DEFINE_string("s3_domain", "", "names below this domain are buckets (bucket.DOMAIN); empty: buckets are only in paths")

#: how many bytes of a refused body are read before the answer
_HEAR_OUT = 32 << 20
_CONTROL = re.compile(r"[\x00-\x1f]")
_METHODS = frozenset(("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"))
_READING = frozenset(("GET", "HEAD"))
_NOTHING = Received(0, hashlib.md5(usedforsecurity=False).hexdigest(), signer.EMPTY_SHA256, {})
#: codes and messages of what is no request, or none that is served
_REFUSALS = {413: ("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size"),
             431: ("RequestHeaderSectionTooLarge", "Your request header section exceeds the maximum allowed size."),
             501: ("NotImplemented", "A header you provided implies functionality that is not implemented")}


class Authenticator(Protocol):
    """Finds whom an access key stands for; nova.auth.manager is one."""

    async def identity(self, access_key: str, project: str | None) -> Identity:
        """:raises exception.AuthFailure: nobody"""
        ...


@runtime_checkable
class Closing(Protocol):
    """A body that has something to close."""

    async def aclose(self) -> None: ...


#: operations that are being abandoned, so that they are not forgotten half way
_closing: set[asyncio.Future] = set()


async def _close(operation: Operation, receiver: Receiver | form.FormReceiver | None) -> None:
    """Abandon an operation when nothing writes for it any more."""
    if receiver is not None:
        await receiver.close()
    await operation.abandon()


@functools.cache
def _host_id() -> str:
    return base64.b64encode(hashlib.sha256(FLAGS.host.encode()).digest()).decode()


def _anonymous(request: signer.SignedRequest) -> tuple[signer.Claim, Identity]:
    """Who did not sign; what the request says of its payload is checked all the same."""
    payload = request.header("X-Amz-Content-Sha256") or ""
    return signer.Claim("", None, "anonymous", "s3", request, "", payload=payload), Anonymous()


@dataclass
class Parts:
    """What all requests share; `running` are those that are being served."""

    store: Store
    files: Storage
    auth: Authenticator
    gate: Gate
    running: "set[S3Request]" = field(default_factory=set)


class S3Application(httputil.HTTPServerConnectionDelegate):
    """Serves all requests.

    :param others: gets those whose path begins with /_images/, which is the name of no bucket
    """

    def __init__(self, parts: Parts, others: httputil.HTTPServerConnectionDelegate):
        self._parts, self._others = parts, others

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        connection = cast(Connection, request_conn)
        head = connection.request
        if head and head.target.startswith("/_images/") and not request.is_virtual(
                head.headers.get("Host", ""), FLAGS.s3_domain):
            return self._others.start_request(server_conn, request_conn)
        return S3Request(self._parts, connection)


class S3Request(httputil.HTTPMessageDelegate):
    """Serves one request."""

    def __init__(self, parts: Parts, connection: Connection):
        self._parts, self._connection = parts, connection
        self._began = time.monotonic()
        self._id = new_request_id()
        self.remote_ip: str | None = connection.context.remote_ip
        self.protocol = connection.context.protocol
        self._operation: Operation | None = None
        self._receiver: Receiver | form.FormReceiver | None = None
        self._received: Received | None = None
        self._failure: errors.S3Error | None = None
        self._thrown_away = 0
        self._cors: dict[str, str] = {}
        self._preflight: Response | None = None
        self._behind_nginx = self._told = self._finished = False
        self._status = 0

    # -- the request --

    async def headers_received(self, start_line: httputil.RequestStartLine,  # type: ignore[override]
                               headers: httputil.HTTPHeaders) -> None:
        self._parts.running.add(self)
        self._connection.set_close_callback(self.on_connection_close)
        request_id_var.set(self._id)
        self._method, self._uri, self.headers = start_line.method, start_line.path, cast(Headers, headers)
        self._host = headers.get("Host", "")
        self._behind_nginx = proxy.read(self)
        length: int | None = None
        try:
            length = body.content_length(headers)
            if self._method == "OPTIONS" or "Origin" in headers:
                await self._see_origin()
            await self._prepare()
        except Exception as error:  # whatever it is becomes an answer
            self._fail(error)
            if "Expect" in headers or (length or 0) > _HEAR_OUT:
                await self._answer_early()

    async def _prepare(self) -> None:
        if self._preflight:
            return
        if self._method not in _METHODS:
            raise errors.MethodNotAllowed()
        method, headers = self._method, self.headers
        target = request.read(self._uri, self._host, FLAGS.s3_domain)
        signed = signer.SignedRequest.of(method, target.path, target.query, headers.pairs, headers.joined)
        claimed = signer.read_s3(signed, target.bucket if target.virtual else None)
        url = f"{self.protocol}://{self._host}"
        if form.is_form(method, target):
            if claimed is not None:
                raise errors.InvalidArgument(reason="Only one auth mechanism allowed; a form is signed in its fields")
            begin = functools.partial(self._begin_form, signed, target, url)
            self._receiver = form.FormReceiver(boundary_of(headers.get("Content-Type", "")), begin)
            self._connection.set_max_body_size(MAX_UPLOAD + form.ENVELOPE)
            return
        claim, identity = await self._identify(claimed, signed)
        kind = operations.find(method, target, "x-amz-copy-source" in headers)
        expected = body.expect(headers, claim, identity.secret, kind.max_body)
        if not kind.sums_of_body:
            expected.checksums = {}
        parts = self._parts
        call = Call(parts.store, parts.files, identity, claim, method, target, headers, url, expected.length,
                    self.remote_ip or "", sends_files=self._behind_nginx)
        self._operation = kind(call)
        place = await self._operation.prepare()
        expected.wanted = self._operation.wanted_checksums
        if method in _READING and _is_nothing(expected):
            self._received = _NOTHING
            return
        self._receiver = Receiver(expected, place, parts.files.pool, kind.max_body)
        self._connection.set_max_body_size(kind.max_body * 2)

    async def _see_origin(self) -> None:
        """Find out what a browser is told that asks for a page of another origin, or wants to know if it may."""
        headers, method = self.headers, self._method
        target = request.read(self._uri, self._host, FLAGS.s3_domain)
        bucket = await self._parts.store.get(Bucket, target.bucket) if target.bucket else None
        rules = None if bucket is None else bucket.configuration.get("cors") or {}
        if method == "OPTIONS":
            self._preflight = Response(headers=cors.preflight(rules, headers))
        elif headers["Origin"]:
            self._cors = cors.answer(rules or {}, headers["Origin"], method)

    async def _begin_form(self, signed: signer.SignedRequest, target: request.Target, url: str,
                          posted: form.Form) -> Receiver:
        """The fields of a form are there: check them, and receive its file."""
        policy = posted.policy()
        claim, identity = await self._identify(posted.claim(signed, policy), signed)
        call = Call(self._parts.store, self._parts.files, identity, claim, "POST", target, self.headers, url,
                    address=self.remote_ip or "")
        self._operation = operation = form.PostObject(call, posted, policy)
        return await operation.receiver()

    async def _identify(self, claim: signer.Claim | None,
                        signed: signer.SignedRequest) -> tuple[signer.Claim, Identity]:
        """Who asks; nobody in particular if the request claims nothing."""
        return await self._authenticate(claim) if claim else _anonymous(signed)

    async def _authenticate(self, claim: signer.Claim) -> tuple[signer.Claim, Identity]:
        try:
            identity = await self._parts.auth.identity(claim.access_key, claim.project)
        except exception.AuthFailure:
            raise errors.InvalidAccessKeyId() from None
        try:
            await self._parts.gate.verify(claim, identity.secret, "", datetime.now(UTC), replay.is_repeatable_s3(claim),
                                    user=identity.user_id, where=self.remote_ip or "")
        except exception.AuthFailure as error:
            raise errors.AccessDenied(error.message) from None
        return claim, identity

    def _fail(self, error: Exception) -> None:
        """What went wrong becomes the answer."""
        found = errors.translate(error)
        try:
            self._failure = self._operation.shown(found) if self._operation else found
        except exception.NovaError as second:
            self._failure = errors.translate(second)

    async def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
        if self._finished or self._told:
            return
        if self._receiver is not None and self._failure is None:
            try:
                await self._receiver.feed(chunk)
                return
            except Exception as error:  # whatever it is becomes an answer
                self._fail(error)
        self._thrown_away += len(chunk)
        if self._thrown_away > _HEAR_OUT and not isinstance(self._failure, errors.InsufficientStorage):
            await self._answer_early()

    async def finish(self) -> None:  # type: ignore[override]
        if self._told:
            self._connection.finish()
            self._end()
            return
        if self._failure is None:
            try:
                response = self._preflight or await self._respond()
            except Exception as error:  # whatever it is becomes an answer
                self._fail(error)
            else:
                await self._answer(response)
                return
        self._answer_failure()

    async def _respond(self) -> Response:
        received = self._received
        if received is None:
            if self._receiver is None:
                raise errors.InternalError()
            received = await self._receiver.finish()
        if self._operation is None:
            raise errors.InternalError()
        return await self._operation.run(received)

    def on_connection_close(self) -> None:
        if not self._finished:
            self._end()

    def _end(self) -> None:
        """The request is over, or its client has gone."""
        self._finished = True
        self._parts.running.discard(self)
        log.info("%s %s %s %d %.0f ms", self.remote_ip, self._method, self._uri.partition("?")[0], self._status,
                 (time.monotonic() - self._began) * 1000)
        operation, self._operation = self._operation, None
        if operation is not None and type(operation).abandon is not Operation.abandon:
            task = asyncio.ensure_future(_close(operation, self._receiver))
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    # -- the answer --

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        """The headers of an answer, spelled as S3 does: clients take the names of metadata as they come."""
        headers = {"Server": "Nova", "Date": date(), "x-amz-request-id": self._id, "x-amz-id-2": _host_id()}
        headers.update(more)
        if self._cors:
            headers.update(self._cors)
        return headers

    def _send(self, status: int, headers: Mapping[str, str], document: bytes = b"") -> None:
        """Give an answer that is there as a whole."""
        self._status = status
        self._connection.answer(status, headers, document)
        self._end()

    async def _answer(self, response: Response) -> None:
        headers = self._headers(response.headers)
        if response.file:
            headers = {"Date": date(), **hand_over(response.file, headers.items())}
        try:
            if isinstance(response.body, bytes):
                self._send(response.status, headers, response.body)
                return
            self._status = response.status
            self._connection.start(response.status, headers)
        except ValueError:
            log.exception("the answer to %s %s cannot be sent", self._method, self._uri)
            self._fail(errors.InternalError())
            self._answer_failure()
            return
        await self._stream(response.body)

    async def _stream(self, blocks: AsyncIterator[bytes]) -> None:
        try:
            async for block in blocks:
                self._connection.send(block)
                await self._connection.drain()
            self._connection.finish()
            self._end()
        except iostream.StreamClosedError:
            log.info("the client went away")
        except (OSError, httputil.HTTPOutputError, exception.NovaError):
            log.exception("the answer to %s %s breaks off", self._method, self._uri)
            self._connection.abort()
        finally:
            if isinstance(blocks, Closing):
                await blocks.aclose()

    async def _answer_early(self) -> None:
        """Tell somebody who still sends, or waits for leave to, what went wrong.

        A client hears it when the connection closes.  nginx has given leave by itself; it passes the answer on when it
        has come, closes, and hears its client out.  If Nova closed first, nginx would fail to send, and say so instead.
        """
        status, headers, document = self._failed()
        if not self._behind_nginx:
            self._send(status, {**headers, "Connection": "close"}, document)
            return
        self._told, self._status = True, status
        self._connection.start(status, {**headers, "Content-Length": str(len(document))})
        self._connection.send(document)

    def _answer_failure(self) -> None:
        if not self._finished:
            self._send(*self._failed())

    def _failed(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and document of what went wrong."""
        error = self._failure or errors.InternalError()
        headers = self._headers(error.headers)
        if error.status == 304 or self._method == "HEAD":
            return error.status, headers, b""
        headers["Content-Type"] = "application/xml"
        path = _CONTROL.sub("?", unquote(self._uri.partition("?")[0]))
        return error.status, headers, _document(error.code, error.message, path, self._id)


def _is_nothing(expected: Expected) -> bool:
    """Whether there is no body, and the request says nothing of one."""
    return (expected.length == 0 and expected.sha256 in (None, signer.EMPTY_SHA256) and expected.md5 is None
            and not (expected.decoder or expected.checksums or expected.wanted))


def refusal(status: int) -> tuple[dict[str, str], bytes]:
    """The answer to what is no request, or none that is served."""
    id = new_request_id()
    code, message = _REFUSALS.get(status, ("InvalidRequest", "The request is invalid."))
    return ({"Server": "Nova", "x-amz-request-id": id, "x-amz-id-2": _host_id(), "Content-Type": "application/xml"},
            _document(code, message, "", id))


def _document(code: str, message: str, resource: str, request_id: str) -> bytes:
    return rest_xml.write_error({"Code": code, "Message": message, "Resource": resource, "RequestId": request_id,
                                 "HostId": _host_id()})
