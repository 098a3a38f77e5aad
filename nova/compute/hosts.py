"""Hosts that get no new instances because the operator says so."""

from collections.abc import Sequence
from dataclasses import dataclass

from nova.datastore import Record, Store, record
from nova.service import Host


@record("disabled_host")
@dataclass(frozen=True)
class DisabledHost(Record):
    """A host (the id is its name) that gets no new instances; what runs there runs on.

    `since` is seconds since the epoch.
    """

    since: float
    reason: str = ""


async def enabled(store: Store, hosts: Sequence[Host]) -> list[Host]:
    """Those of the hosts that may get new instances, in one round trip."""
    disabled = {record.id for record in await store.get_many(DisabledHost, [host.host for host in hosts])}
    return [host for host in hosts if host.host not in disabled]
