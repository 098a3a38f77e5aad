"""The hosts of the cloud as an operator sees them."""

import time
from collections import Counter
from dataclasses import dataclass, field

from nova import exception, service
from nova.compute import models
from nova.compute.hosts import DisabledHost
from nova.compute.models import Instance
from nova.datastore import Store
from nova.service import Host


@dataclass(frozen=True)
class HostOverview:
    """One host: its daemons, and for a compute host its capacity, what is claimed of it, and its instances."""

    name: str
    zone: str
    daemons: tuple[Host, ...]
    disabled: DisabledHost | None = None
    capacity: dict[str, int] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    instances: int = 0

    @property
    def is_compute(self) -> bool:
        """Whether instances can run there."""
        return any(daemon.topic == "compute" for daemon in self.daemons)


async def overview(store: Store) -> list[HostOverview]:
    """All hosts of which something was heard within the hour, by name."""
    by_name: dict[str, list[Host]] = {}
    for daemon in await service.heartbeats(store):
        by_name.setdefault(daemon.host, []).append(daemon)
    disabled = {record.id: record for record in await store.all(DisabledHost)}
    claims = await models.claims(store, list(by_name))
    states = await store.get_fields(Instance, await store.ids(Instance), ("host", "state"))
    counts = Counter(host for host, state in states if state != "terminated")
    found = []
    for name, daemons in by_name.items():
        facts = next((d.facts for d in daemons if d.topic == "compute"), {})
        newest = max(daemons, key=lambda d: d.beat)
        found.append(HostOverview(name, newest.zone, tuple(daemons), disabled.get(name), facts, claims[name],
                                  counts[name]))
    return found


async def one(store: Store, name: str) -> HostOverview:
    """One host; :raises exception.InvalidHostNotFound:"""
    for host in await overview(store):
        if host.name == name:
            return host
    raise exception.InvalidHostNotFound(id=name)


async def disable(store: Store, name: str, reason: str) -> None:
    """Give a host no new instances; :raises exception.InvalidHostNotFound:"""
    await one(store, name)
    try:
        await store.create(DisabledHost(name, since=time.time(), reason=reason))
    except exception.Exists:
        await store.modify(DisabledHost, name, lambda _: {"reason": reason})


async def enable(store: Store, name: str) -> None:
    """Give a host new instances again; :raises exception.InvalidHostNotFound:"""
    await one(store, name)
    record = await store.get(DisabledHost, name)
    if record is not None:
        await store.delete(record)
