"""The HTTP face of the object store: one Tornado handler that authenticates, finds the operation and gives its answer.

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
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable
from urllib.parse import unquote

from tornado import httputil, iostream, web

from nova import exception, proxy
from nova.auth import replay, signer
from nova.auth.gate import Gate
from nova.context import new_request_id, request_id_var
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_string
from nova.objectstore import body, cors, errors, operations, request
from nova.objectstore.body import MAX_UPLOAD, Receiver
from nova.objectstore.files import Files
from nova.objectstore.forms import boundary_of
from nova.objectstore.models import Bucket
from nova.objectstore.operations import form
from nova.objectstore.operations.base import Anonymous, Call, Identity, Operation, Response
from nova.objectstore.serving import StoredFile, hand_over
from nova.wire import rest_xml

log = logging.getLogger(__name__)

DEFINE_string("s3_domain", "", "names below this domain are buckets (bucket.DOMAIN); empty: buckets are only in paths")

#: how many bytes of a refused body are read before the answer
_HEAR_OUT = 32 << 20
_CONTROL = re.compile(r"[\x00-\x1f]")
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH")


class Authenticator(Protocol):
    """Finds whom an access key stands for; nova.auth.manager is one."""

    async def identity(self, access_key: str, project: str | None) -> Identity:
        """:raises exception.AuthFailure: nobody"""
        ...


@runtime_checkable
class Closing(Protocol):
    """A body that has something to close."""

    async def aclose(self) -> None: ...


class _ResponseHeaders(httputil.HTTPHeaders):
    """Headers that are sent as S3 spells them: clients take the names of metadata as they come."""

    def get_all(self) -> Iterable[tuple[str, str]]:
        for name, value in super().get_all():
            yield ("ETag" if name == "Etag" else name.lower() if name.startswith("X-Amz-") else name), value


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


@web.stream_request_body
class S3Handler(web.RequestHandler):
    """Serves one request."""

    SUPPORTED_METHODS = _METHODS

    def initialize(self, store: Store, files: Files, auth: Authenticator, running: "set[S3Handler]",
                   gate: Gate) -> None:
        self._store, self._files, self._auth, self._running, self._gate = store, files, auth, running, gate
        running.add(self)
        self._operation: Operation | None = None
        self._receiver: Receiver | form.FormReceiver | None = None
        self._failure: errors.S3Error | None = None
        self._thrown_away = 0
        self._cors: dict[str, str] = {}
        self._preflight: Response | None = None
        self._behind_nginx = self._told = False

    def set_default_headers(self) -> None:
        if not hasattr(self, "request_id"):
            self.request_id = new_request_id()
        self.set_header("Server", "Nova")
        self.set_header("x-amz-request-id", self.request_id)
        self.set_header("x-amz-id-2", _host_id())
        self.clear_header("Content-Type")

    def clear(self) -> None:
        super().clear()
        self._headers = _ResponseHeaders(self._headers)

    def compute_etag(self) -> None:
        """The operations say what the ETag is."""

    def check_etag_header(self) -> bool:
        return False

    # -- the request --

    async def prepare(self) -> None:
        request_id_var.set(self.request_id)
        self._behind_nginx = proxy.read(self.request)
        length: int | None = None
        try:
            length = body.content_length(self.request.headers)
            await self._see_origin()
            await self._prepare()
        except Exception as error:  # whatever it is becomes an answer
            self._fail(error)
            if "Expect" in self.request.headers or (length or 0) > _HEAR_OUT:
                await self._answer_early()

    async def _prepare(self) -> None:
        if self._preflight:
            return
        method, headers = self.request.method or "", self.request.headers
        target = request.read(self.request.uri or "", self.request.host, FLAGS.s3_domain)
        signed = signer.SignedRequest(method, target.path, target.query, tuple(headers.get_all()))
        claimed = signer.read_s3(signed, target.bucket if target.virtual else None)
        url = f"{self.request.protocol}://{self.request.host}"
        if form.is_form(method, target):
            if claimed is not None:
                raise errors.InvalidArgument(reason="Only one auth mechanism allowed; a form is signed in its fields")
            begin = functools.partial(self._begin_form, signed, target, url)
            self._receiver = form.FormReceiver(boundary_of(headers.get("Content-Type", "")), begin)
            self.request.connection.set_max_body_size(MAX_UPLOAD + form.ENVELOPE)  # type: ignore[union-attr]
            return
        claim, identity = await self._identify(claimed, signed)
        kind = operations.find(method, target, "x-amz-copy-source" in headers)
        expected = body.expect(headers, claim, identity.secret, kind.max_body)
        if not kind.sums_of_body:
            expected.checksums = {}
        call = Call(self._store, self._files, identity, claim, method, target, headers, url, expected.length,
                    self.request.remote_ip or "", sends_files=self._behind_nginx)
        self._operation = kind(call)
        place = await self._operation.prepare()
        expected.wanted = self._operation.wanted_checksums
        self._receiver = Receiver(expected, place, self._files.pool, kind.max_body)
        self.request.connection.set_max_body_size(kind.max_body * 2)  # type: ignore[union-attr]

    async def _see_origin(self) -> None:
        """Find out what a browser is told that asks for a page of another origin, or wants to know if it may."""
        headers, method = self.request.headers, self.request.method or ""
        if method != "OPTIONS" and not headers.get("Origin"):
            return
        target = request.read(self.request.uri or "", self.request.host, FLAGS.s3_domain)
        bucket = await self._store.get(Bucket, target.bucket) if target.bucket else None
        rules = None if bucket is None else bucket.configuration.get("cors") or {}
        if method == "OPTIONS":
            self._preflight = Response(headers=cors.preflight(rules, headers))
        else:
            self._cors = cors.answer(rules or {}, headers["Origin"], method)

    async def _begin_form(self, signed: signer.SignedRequest, target: request.Target, url: str,
                          posted: form.Form) -> Receiver:
        """The fields of a form are there: check them, and receive its file."""
        policy = posted.policy()
        claim, identity = await self._identify(posted.claim(signed, policy), signed)
        call = Call(self._store, self._files, identity, claim, "POST", target, self.request.headers, url,
                    address=self.request.remote_ip or "")
        self._operation = operation = form.PostObject(call, posted, policy)
        return await operation.receiver()

    async def _identify(self, claim: signer.Claim | None,
                        signed: signer.SignedRequest) -> tuple[signer.Claim, Identity]:
        """Who asks; nobody in particular if the request claims nothing."""
        return await self._authenticate(claim) if claim else _anonymous(signed)

    async def _authenticate(self, claim: signer.Claim) -> tuple[signer.Claim, Identity]:
        try:
            identity = await self._auth.identity(claim.access_key, claim.project)
        except exception.AuthFailure:
            raise errors.InvalidAccessKeyId() from None
        try:
            await self._gate.verify(claim, identity.secret, "", datetime.now(UTC), replay.is_repeatable_s3(claim),
                                    user=identity.user_id, where=self.request.remote_ip or "")
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

    async def data_received(self, chunk: bytes) -> None:
        request_id_var.set(self.request_id)
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

    async def _serve(self) -> None:
        if self._told:
            await self.finish()
            return
        if self._failure is None:
            try:
                response = self._preflight or await self._respond()
            except Exception as error:  # whatever it is becomes an answer
                self._fail(error)
            else:
                await self._answer(response)
                return
        await self._answer_failure()

    async def _respond(self) -> Response:
        if self._receiver is None:
            raise errors.InternalError()
        received = await self._receiver.finish()
        if self._operation is None:
            raise errors.InternalError()
        return await self._operation.run(received)

    get = head = put = post = delete = options = patch = _serve  # type: ignore[assignment]

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._told and not self._finished:
            self._log()
        self._abandon()

    def on_finish(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        self._running.discard(self)
        operation, self._operation = self._operation, None
        if operation is not None:
            task = asyncio.ensure_future(_close(operation, self._receiver))
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    # -- the answer --

    async def _answer(self, response: Response) -> None:
        self.set_status(response.status)
        for name, value in {**response.headers, **self._cors}.items():
            self.set_header(name, value)
        if response.file:
            self._hand_over(response.file)
        if isinstance(response.body, bytes):
            await self.finish(response.body if response.body and self.request.method != "HEAD" else None)
            return
        await self._stream(response.body)

    def _hand_over(self, file: StoredFile) -> None:
        """Have nginx give out a file."""
        told = hand_over(file, list(self._headers.get_all()))
        self.clear()
        for name, value in told.items():
            self.set_header(name, value)

    async def _stream(self, blocks: AsyncIterator[bytes]) -> None:
        try:
            async for block in blocks:
                self.write(block)
                await self.flush()
            await self.finish()
        except iostream.StreamClosedError:
            log.info("the client went away")
        except (OSError, web.HTTPError, exception.NovaError):
            log.exception("the answer to %s %s breaks off", self.request.method, self.request.path)
            self.request.connection.stream.close()  # type: ignore[union-attr]
        finally:
            if isinstance(blocks, Closing):
                await blocks.aclose()

    async def _answer_early(self) -> None:
        """Tell somebody who still sends, or waits for leave to, what went wrong.

        A client hears it when the connection closes.  nginx has given leave by itself; it passes the answer on when it
        has come, closes, and hears its client out.  If Nova closed first, nginx would fail to send, and say so instead.
        """
        document = self._failure_document()
        if not self._behind_nginx:
            self.set_header("Connection", "close")
            await self.finish(document)
            return
        self._told = True
        self.set_header("Content-Length", str(len(document or b"")))
        self.write(document or b"")
        try:
            await self.flush()
        except iostream.StreamClosedError:
            log.info("the client went away")

    async def _answer_failure(self) -> None:
        if not self._finished:
            await self.finish(self._failure_document())

    def _failure_document(self) -> bytes | None:
        """Make the headers of what went wrong; returns its document."""
        error = self._failure or errors.InternalError()
        self.clear()
        self.set_status(error.status)
        for name, value in {**error.headers, **self._cors}.items():
            self.set_header(name, value)
        if error.status == 304 or self.request.method == "HEAD":
            return None
        self.set_header("Content-Type", "application/xml")
        return self._document(error.code, error.message)

    def write_error(self, status_code: int, **kwargs: object) -> None:
        """What Tornado itself refuses."""
        code, message = ("MethodNotAllowed", errors.MethodNotAllowed.message) if status_code == 405 else (
            ("InternalError", errors.InternalError.message) if status_code >= 500 else
            ("InvalidRequest", "The request is invalid."))
        self.set_header("Content-Type", "application/xml")
        self.finish(self._document(code, message))

    def _document(self, code: str, message: str) -> bytes:
        resource = _CONTROL.sub("?", unquote(self.request.path))
        return rest_xml.write_error({"Code": code, "Message": message, "Resource": resource,
                                     "RequestId": self.request_id, "HostId": _host_id()})
