"""The HTTP server of the EC2 endpoint: its application, the limit on bodies, and the service that runs it."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body

from nova import exception, proxy, service
from nova.auth.claims import SignedRequest
from nova.auth.gate import Gate
from nova.cloud.action import Registry
from nova.context import new_request_id, request_id_var
from nova.datastore import Store
from nova.endpoint.ec2 import Answer, Auth, Endpoint, refuse
from nova.flags import FLAGS, DEFINE_string
from nova.wire import model

DEFINE_string("ec2_listen", "0.0.0.0", "address on which the EC2 endpoint listens")

log = logging.getLogger("nova.endpoint.access")

#: bytes that a request's body may have
BODY_LIMIT = 20 * 1024 * 1024
#: bytes that are read and thrown away, so that a client still sending gets to see its error; beyond, it is
#: cut off
DRAIN_LIMIT = 4 * BODY_LIMIT
#: seconds that a body may take to arrive, and that an unused connection is kept
BODY_TIMEOUT, IDLE_TIMEOUT = 300, 120
#: seconds that running requests have to finish when the service stops
STOP_GRACE = 2


class Requests:
    """How many requests are being worked on."""

    def __init__(self) -> None:
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._running += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def finished(self, timeout: float) -> bool:
        """Wait until none is; False after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True


class XmlHandler(RequestHandler):
    """Errors in XML, a request id, and a body that is counted while it arrives."""

    SUPPORTED_METHODS = ("GET", "POST")

    @cached_property
    def request_id(self) -> str:
        """The id of the request, in its answer and in every line of log about it."""
        return new_request_id()

    def initialize(self, requests: Requests, endpoint: Endpoint) -> None:
        request_id_var.set(self.request_id)
        self.requests = requests
        self.endpoint = endpoint
        self.answer = Answer(service=endpoint.model)
        self.chunks: list[bytes] = []
        self.size = 0

    def set_default_headers(self) -> None:
        self.set_header("Server", "Nova")
        self.set_header("Content-Type", "text/xml;charset=UTF-8")
        self.set_header("x-amzn-RequestId", self.request_id)

    async def prepare(self) -> None:
        length = self.request.headers.get("Content-Length", "0")
        if length.isascii() and length.isdecimal() and int(length) > DRAIN_LIMIT:
            await self.refuse(exception.RequestEntityTooLarge(limit=BODY_LIMIT))

    async def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size <= BODY_LIMIT:
            self.chunks.append(chunk)
            return
        self.chunks.clear()
        if self.size > DRAIN_LIMIT and not self._finished:
            await self.refuse(exception.RequestEntityTooLarge(limit=BODY_LIMIT))

    async def get(self) -> None:
        await self._serve()

    async def post(self) -> None:
        await self._serve()

    async def _serve(self) -> None:
        if self._finished:
            return
        with self.requests:
            if self.size > BODY_LIMIT:
                await self.refuse(exception.RequestEntityTooLarge(limit=BODY_LIMIT))
            else:
                await self.respond()

    async def respond(self) -> None:
        """Answer a request whose body is complete."""
        raise NotImplementedError

    async def refuse(self, error: exception.NovaError) -> None:
        """Answer with an error."""
        refuse(self.answer, error, self.request_id)
        await self.send()

    async def send(self) -> None:
        """Send the answer; a client that is gone will not miss it."""
        self.set_status(self.answer.status)
        with contextlib.suppress(StreamClosedError):
            await self.finish(self.answer.body)

    def write_error(self, status_code: int, **_: Any) -> None:
        """Tornado's own errors, as XML."""
        names = {404: "NotFound", 405: "MethodNotAllowed"}
        error = exception.NovaError(self._reason)
        error.status = status_code
        error.code = names.get(status_code, "InternalError" if status_code >= 500 else "InvalidRequest")
        refuse(self.answer, error, self.request_id)
        self.finish(self.answer.body)

    def compute_etag(self) -> None:
        """Answers are not cached."""


@stream_request_body
class QueryHandler(XmlHandler):
    """Requests of EC2, and of the APIs that are like it."""

    async def respond(self) -> None:
        request = self.request
        proxy.read(request)
        signed = SignedRequest(request.method or "", request.path, request.query,
                               tuple(request.headers.get_all()))
        body = b"".join(self.chunks)
        self.chunks.clear()
        self.answer = await self.endpoint.answer(signed, body, self.request_id, request.remote_ip or "")
        await self.send()


@stream_request_body
class NotFoundHandler(XmlHandler):
    """Any other path."""

    async def respond(self) -> None:
        self.send_error(404)


def make_app(endpoint: Endpoint, requests: Requests | None = None,
             others: Mapping[str, Endpoint] | None = None) -> Application:
    """The application that serves `endpoint` at ``/services/Cloud`` and ``/``, and others at ``/services/<name>``."""
    requests = requests or Requests()
    arguments = {"requests": requests, "endpoint": endpoint}
    services = [(rf"/services/{name}/?", QueryHandler, {"requests": requests, "endpoint": other})
                for name, other in (others or {}).items()]
    return Application(
        [(r"/services/Cloud/?", QueryHandler, arguments), (r"/", QueryHandler, arguments), *services],
        default_handler_class=NotFoundHandler, default_handler_args=arguments,
        compress_response=True, log_function=_log)


def _log(handler: RequestHandler) -> None:
    answer = getattr(handler, "answer", None) or Answer()
    log.info("%s %s user=%s project=%s %d %s %.1f ms", handler.request.remote_ip, answer.action,
             answer.user_id, answer.project_id, handler.get_status(), answer.code,
             handler.request.request_time() * 1000)


class ApiService(service.Service):
    """The EC2 endpoint, and the APIs that are like it.

    :param store: the store that `auth` and the actions work on
    :param port: 0 takes a free one; the flag ec2_port when None
    :param address: the flag ec2_listen when None
    :param others: other APIs, by the name that follows ``/services/``; those of the plain query protocol are also
        answered at EC2's own path, where some clients ask for them
    """

    name = "ec2 endpoint"

    def __init__(self, store: Store, auth: Auth, registry: Registry, port: int | None = None,
                 address: str | None = None, others: Mapping[str, Registry] | None = None):
        self.store = store
        gate = Gate(store)
        plain = [other for other in (others or {}).values() if other.model.is_plain]
        self._endpoint = Endpoint(auth, registry, gate, also=plain)
        self._others = {name: Endpoint(auth, other, gate) for name, other in (others or {}).items()}
        self._port = port
        self._address = address
        self._requests: Requests | None = None
        self._server: HTTPServer | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; 0 while it does not."""
        return self._port or 0

    async def start(self) -> None:
        model.ec2()
        self._requests = Requests()
        self._server = HTTPServer(make_app(self._endpoint, self._requests, self._others), max_body_size=1 << 62,
                                  body_timeout=BODY_TIMEOUT, idle_connection_timeout=IDLE_TIMEOUT)
        port = FLAGS.ec2_port if self._port is None else self._port
        address = FLAGS.ec2_listen if self._address is None else self._address
        sockets = bind_sockets(port, address)
        self._port = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)
        logging.getLogger(__name__).info("EC2 endpoint on %s port %d", address, self._port)

    async def stop(self) -> None:
        if self._server is None or self._requests is None:
            return
        self._server.stop()
        if not await self._requests.finished(STOP_GRACE):
            logging.getLogger(__name__).warning("stopping with requests unfinished")
        await self._server.close_all_connections()
        self._server = None
