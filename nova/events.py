"""Who changed what: the audit stream of identity, roles, limits, images and tags.

Each entry of the stream ``nova:events`` says who did what, when, from where and in which request, and the details of
it.  The stream keeps about the last --events_kept entries.  Secrets do not belong into it: a detail whose name says
that it is one is refused.
"""

import json
import os
import pwd
import re
import time
from dataclasses import dataclass, field
from typing import Any

from nova.context import Context, request_id_var
from nova.datastore import PREFIX, Store, Transaction
from nova.flags import FLAGS, DEFINE_integer

DEFINE_integer("events_kept", 100_000, "entries that the audit stream keeps, about", lower_bound=1)

STREAM = "events"
_SECRET = re.compile(r"secret|password|private|token|signature|key_material", re.IGNORECASE)
#: entries that are read at once where only some of them are wanted
_BATCH = 500


@dataclass(frozen=True)
class Event:
    """One entry.

    `id` orders the entries; `what` is such as ``user.create``; `who` is a user's id, or ``<login>@<host>`` for what the
    operator did on a host; `project` is the one that the user worked in; `when` is seconds since the epoch; `where` is
    the client's address.
    """

    id: str
    what: str
    who: str
    project: str
    when: float
    where: str
    request_id: str
    details: dict[str, Any] = field(default_factory=dict)


async def record(to: Store | Transaction, context: Context | None, what: str, **details: Any) -> None:
    """Append an entry to the stream.

    :param to: a transaction, to append it together with the change, or a store
    :param context: the request that asked for it; None for the operator of this host
    :param what: kind of thing and verb, such as ``user.create``
    :param details: what JSON can hold, `target` (the id of what was changed) among it
    :raises ValueError: a detail has the name of a secret
    :raises exception.DatastoreUnavailable: (with a store)
    """
    _refuse_secrets(what, details)
    if context is None:
        who, project, where, request_id = f"{_login()}@{FLAGS.host}", "", FLAGS.host, request_id_var.get()
    else:
        who, project, where = context.user_id, context.project_id, context.remote_address
        request_id = context.request_id
    tx = to if isinstance(to, Transaction) else to.transaction()
    tx.event(STREAM, FLAGS.events_kept, what=what, who=who, project=project, when=f"{time.time():.6f}", where=where,
             request_id=request_id, details=json.dumps(details, sort_keys=True))
    if tx is not to:
        await tx.commit()


async def read(store: Store, limit: int = 100, before: str = "", what: str = "", target: str = "") -> list[Event]:
    """The latest entries, the newest first.

    :param limit: how many at most
    :param before: the id of the entry before which to begin; the newest when empty
    :param what: only those whose `what` begins with this
    :param target: only those about this
    """
    found: list[Event] = []
    while len(found) < limit:
        rows = await store.attempt(store.redis.xrevrange(
            PREFIX + STREAM, max=f"({before}" if before else "+", min="-", count=_BATCH))
        for id, fields in rows:
            event = _decode(id, fields)
            if event.what.startswith(what) and target in ("", event.details.get("target")):
                found.append(event)
        if len(rows) < _BATCH:
            break
        before = rows[-1][0].decode()
    return found[:limit]


def _refuse_secrets(what: str, details: Any) -> None:
    if isinstance(details, dict):
        for name in details:
            if _SECRET.search(str(name)):
                raise ValueError(f"the detail {name} of {what} may be a secret")
        details = list(details.values())
    if isinstance(details, list | tuple):
        for value in details:
            _refuse_secrets(what, value)


def _decode(id: bytes, fields: dict[bytes, bytes]) -> Event:
    values: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items()}
    return Event(id.decode(), **{**values, "when": float(values["when"]), "details": json.loads(values["details"])})


def _login() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user that this host has no name for
        return str(os.getuid())
