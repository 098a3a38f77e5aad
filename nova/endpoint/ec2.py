"""The query APIs (EC2's, and those that are like it): from the bytes of a request to the bytes of its answer.

:class:`Endpoint` knows nothing of the HTTP server.  It decodes the parameters, finds out who signed, runs the
action and writes what came of it, be that a result or an error.  Errors become XML here and nowhere else.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from nova import exception
from nova.auth import replay
from nova.auth.claims import SignedRequest, read_ec2
from nova.auth.gate import Gate
from nova.cloud.action import Registry, dispatch
from nova.context import Context
from nova.process import in_thread, wait
from nova.wire.model import Model, ec2
from nova.wire.query import parse_pairs

log = logging.getLogger(__name__)

#: bytes of body from which on decoding and hashing are done in a thread, so that other requests need not wait
LARGE = 256 * 1024

Params = list[tuple[str, str]]


class Identity(Protocol):
    """Whom an access key stands for."""

    @property
    def user_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def secret(self) -> str: ...
    @property
    def roles(self) -> frozenset[str]: ...
    @property
    def is_admin(self) -> bool: ...


class Auth(Protocol):
    """What the endpoint needs of the authentication: :class:`nova.auth.manager.AuthManager`."""

    async def identity(self, access_key: str, project: str | None) -> Identity:
        """:raises exception.AuthFailure:"""


@dataclass
class Answer:
    """An answer, the model by which it is written, and for the log: the action, who called it, and the error code (OK
    without one)."""

    status: int = 200
    body: bytes = b""
    action: str = "-"
    user_id: str = "-"
    project_id: str = "-"
    code: str = "OK"
    service: Model = field(default_factory=ec2)


def _now() -> datetime:
    return datetime.now(UTC)


class Endpoint:
    """Answers the requests of one API, EC2's or one that is like it.

    :param gate: verifies requests
    :param clock: tells the present time, aware of its zone
    :param also: other APIs, for clients that have one address for all; they are known by their versions
    """

    def __init__(self, auth: Auth, registry: Registry, gate: Gate, clock: Callable[[], datetime] = _now,
                 also: Iterable[Registry] = ()):
        self._auth = auth
        self._gate = gate
        self._registry = registry
        self._clock = clock
        self._also = {other.model.version: other for other in also}

    @property
    def model(self) -> Model:
        """The model of its API."""
        return self._registry.model

    async def answer(self, request: SignedRequest, body: bytes, request_id: str,
                     remote_address: str = "") -> Answer:
        """The answer to one request; never raises but for cancellation."""
        answer = Answer(service=self.model)
        try:
            answer.body = await self._run(request, body, request_id, remote_address, answer)
        except exception.NovaError as error:
            if error.code == exception.InternalError.code:
                log.exception("%s failed", answer.action)
                error = exception.InternalError()
            refuse(answer, error, request_id)
        except Exception:  # a mistake of ours: the client gets no more than the request id
            log.exception("%s failed", answer.action)
            refuse(answer, exception.InternalError(), request_id)
        return answer

    async def _run(self, request: SignedRequest, body: bytes, request_id: str, remote_address: str,
                   answer: Answer) -> bytes:
        large = len(body) >= LARGE
        params, digest = await _in_thread(_decode, request, body) if large else _decode(request, body)
        action = _single(params, "Action")
        version = _single(params, "Version")
        registry = self._also.get(version, self._registry)
        answer.service = registry.model
        if not action:
            raise exception.MissingAction()
        identity = await self._identify(request, registry, action, params, digest, large, remote_address)
        answer.user_id, answer.project_id = identity.user_id, identity.project_id
        if registry.model.operation(action) is not None:
            answer.action = action
        context = Context(identity.user_id, identity.project_id, identity.roles, identity.is_admin,
                          request_id, remote_address)
        operation, result = await dispatch(registry, context, action, params)
        return operation.write(result, request_id, version)

    async def _identify(self, request: SignedRequest, registry: Registry, action: str, params: Params, digest: str,
                        large: bool, remote_address: str) -> Identity:
        claim = read_ec2(request, params)
        if claim is None:
            raise exception.AuthFailure()
        identity = await self._auth.identity(claim.access_key, claim.project)
        operation = registry.model.operation(action)
        repeatable = replay.is_repeatable_action(
            action, operation is not None and operation.takes("ClientToken"), params)
        await self._gate.verify(claim, identity.secret, digest, self._clock(), repeatable,
                                _in_thread if large else None, identity.user_id, remote_address)
        return identity


def refuse(answer: Answer, error: exception.NovaError, request_id: str) -> None:
    """Make an answer the error's."""
    answer.status, answer.code = error.status, error.code
    answer.body = answer.service.write_error(error.code, error.message, request_id, error.status)


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await wait(in_thread(function, *args))


def _decode(request: SignedRequest, body: bytes) -> tuple[Params, str]:
    """The parameters of query and form, and the body's SHA-256 in hex."""
    return parse_pairs(request.query.encode("latin-1")) + parse_pairs(body), hashlib.sha256(body).hexdigest()


def _single(params: Params, wanted: str) -> str:
    values = [value for name, value in params if name == wanted]
    if len(values) > 1:
        raise exception.MalformedQueryString(f"The parameter {wanted} is given twice.")
    return values[0] if values else ""

