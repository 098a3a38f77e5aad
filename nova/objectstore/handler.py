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

from nova import exception
from nova.auth import replay, signer
from nova.auth.gate import Gate
from nova.context import new_request_id, request_id_var
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_string
from nova.objectstore import body, errors, operations, request, s3xml
from nova.objectstore.body import Receiver
from nova.objectstore.files import Files
from nova.objectstore.operations.base import Call, Identity, Operation, Response

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


@functools.cache
def _host_id() -> str:
    return base64.b64encode(hashlib.sha256(FLAGS.host.encode()).digest()).decode()


@web.stream_request_body
class S3Handler(web.RequestHandler):
    """Serves one request."""

    SUPPORTED_METHODS = _METHODS

    def initialize(self, store: Store, files: Files, auth: Authenticator, running: "set[S3Handler]",
                   gate: Gate) -> None:
        self._store, self._files, self._auth, self._running, self._gate = store, files, auth, running, gate
        running.add(self)
        self._operation: Operation | None = None
        self._receiver: Receiver | None = None
        self._failure: errors.S3Error | None = None
        self._thrown_away = 0

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
        length: int | None = None
        try:
            length = body.content_length(self.request.headers)
            await self._prepare()
        except Exception as error:  # whatever it is becomes an answer
            self._failure = errors.translate(error)
            if "Expect" in self.request.headers or (length or 0) > _HEAR_OUT:
                await self._answer_failure(hang_up=True)

    async def _prepare(self) -> None:
        method, headers = self.request.method or "", self.request.headers
        target = request.read(self.request.uri or "", self.request.host, FLAGS.s3_domain)
        signed = signer.SignedRequest(method, target.path, target.query, tuple(headers.get_all()))
        claim, identity = await self._authenticate(signed, target.bucket if target.virtual else None)
        kind = operations.find(method, target, "x-amz-copy-source" in headers)
        url = f"{self.request.protocol}://{self.request.host}"
        expected = body.expect(headers, claim, identity.secret, kind.max_body)
        call = Call(self._store, self._files, identity, claim, method, target, headers, url, expected.length)
        self._operation = kind(call)
        place = await self._operation.prepare()
        expected.wanted = self._operation.wanted_checksums
        self._receiver = Receiver(expected, place, self._files.pool, kind.max_body)
        self.request.connection.set_max_body_size(kind.max_body * 2)  # type: ignore[union-attr]

    async def _authenticate(self, signed: signer.SignedRequest,
                            bucket: str | None) -> tuple[signer.Claim, Identity]:
        claim = signer.read_s3(signed, bucket)
        if claim is None:
            raise errors.AccessDenied()
        try:
            identity = await self._auth.identity(claim.access_key, claim.project)
        except exception.AuthFailure:
            raise errors.InvalidAccessKeyId() from None
        try:
            await self._gate.verify(claim, identity.secret, "", datetime.now(UTC), replay.is_repeatable_s3(claim))
        except exception.AuthFailure as error:
            raise errors.AccessDenied(error.message) from None
        return claim, identity

    async def data_received(self, chunk: bytes) -> None:
        request_id_var.set(self.request_id)
        if self._finished:
            return
        if self._receiver is not None and self._failure is None:
            try:
                await self._receiver.feed(chunk)
                return
            except Exception as error:  # whatever it is becomes an answer
                self._failure = errors.translate(error)
        self._thrown_away += len(chunk)
        if self._thrown_away > _HEAR_OUT and not isinstance(self._failure, errors.InsufficientStorage):
            await self._answer_failure(hang_up=True)

    async def _serve(self) -> None:
        if self._failure is None and self._receiver and self._operation:
            try:
                received = await self._receiver.finish()
                response = await self._operation.run(received)
            except Exception as error:  # whatever it is becomes an answer
                self._failure = errors.translate(error)
            else:
                await self._answer(response)
                return
        await self._answer_failure()

    get = head = put = post = delete = options = patch = _serve  # type: ignore[assignment]

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._abandon()

    def on_finish(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        self._running.discard(self)
        operation, self._operation = self._operation, None
        if operation is not None:
            task = asyncio.ensure_future(operation.abandon())
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    # -- the answer --

    async def _answer(self, response: Response) -> None:
        self.set_status(response.status)
        for name, value in response.headers.items():
            self.set_header(name, value)
        if isinstance(response.body, bytes):
            await self.finish(response.body if response.body and self.request.method != "HEAD" else None)
            return
        await self._stream(response.body)

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

    async def _answer_failure(self, hang_up: bool = False) -> None:
        error = self._failure or errors.InternalError()
        if self._finished:
            return
        self.clear()
        if hang_up:
            self.set_header("Connection", "close")
        self.set_status(error.status)
        if error.status == 304 or self.request.method == "HEAD":
            await self.finish()
            return
        self.set_header("Content-Type", "application/xml")
        await self.finish(self._document(error.code, error.message))

    def write_error(self, status_code: int, **kwargs: object) -> None:
        """What Tornado itself refuses."""
        code, message = ("MethodNotAllowed", errors.MethodNotAllowed.message) if status_code == 405 else (
            ("InternalError", errors.InternalError.message) if status_code >= 500 else
            ("InvalidRequest", "The request is invalid."))
        self.set_header("Content-Type", "application/xml")
        self.finish(self._document(code, message))

    def _document(self, code: str, message: str) -> bytes:
        resource = _CONTROL.sub("?", unquote(self.request.path))
        return s3xml.document("Error", [("Code", code), ("Message", message), ("Resource", resource),
                                        ("RequestId", self.request_id), ("HostId", _host_id())], namespace="")
