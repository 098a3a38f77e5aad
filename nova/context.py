"""Who is asking: the context of a request, handed down from the endpoint to everything that works on it."""

import logging
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

#: the request that the running task works on; logs and messages carry it
request_id_var: ContextVar[str] = ContextVar("request_id", default="-")


def new_request_id() -> str:
    """A request id as EC2 writes them (a UUID)."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Context:
    """One authenticated request.

    `roles` are the names in :mod:`nova.auth.rbac` that the user has in the project; `client_token` is the spendable
    ClientToken of an idempotent action (:mod:`nova.cloud.action`) or None.
    """

    user_id: str
    project_id: str
    roles: frozenset[str] = frozenset()
    is_admin: bool = False
    request_id: str = field(default_factory=new_request_id)
    remote_address: str = ""
    client_token: Any = None


class RequestIdFilter(logging.Filter):
    """Gives each log record the `request_id` of the task that wrote it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id_var.get()
        return True
