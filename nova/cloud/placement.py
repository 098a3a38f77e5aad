"""Where instances go: pure choice among hosts."""

from collections.abc import Mapping, Sequence

from nova import exception
from nova.compute.types import InstanceType
from nova.service import Host


def choose(hosts: Sequence[Host], claims: Mapping[str, Mapping[str, int]], size: InstanceType, zone: str, least: int,
           most: int) -> list[Host]:
    """Hosts for `least` to `most` instances of one size, the emptiest first; as many as fit.

    :param hosts: the living compute hosts that are not disabled, with their capacity (memory_mb, vcpus) as facts
    :param claims: what is claimed already, by host
    :param zone: the only zone that will do, or "" for any
    :raises exception.InsufficientInstanceCapacity: fewer than `least` fit; the message says why
    """
    candidates = [h for h in hosts if not zone or h.zone == zone]
    if not candidates:
        where = f" in availability zone {zone}" if zone else ""
        raise exception.InsufficientInstanceCapacity(f"There is no compute host alive and enabled{where}.")
    free = {h.host: {name: h.facts[name] - claims.get(h.host, {}).get(name, 0) for name in ("memory_mb", "vcpus")}
            for h in candidates}
    chosen: list[Host] = []
    while len(chosen) < most:
        fitting = [h for h in candidates
                   if free[h.host]["memory_mb"] >= size.memory_mb and free[h.host]["vcpus"] >= size.vcpus]
        if not fitting:
            break
        best = max(fitting, key=lambda h: (free[h.host]["memory_mb"], h.host))
        free[best.host]["memory_mb"] -= size.memory_mb
        free[best.host]["vcpus"] -= size.vcpus
        chosen.append(best)
    if len(chosen) < least:
        raise exception.InsufficientInstanceCapacity(
            f"There is room for {len(chosen)} of the {least} instances of type {size.name} that you asked for "
            f"({size.vcpus} vCPUs and {size.memory_mb} MiB of memory each).")
    return chosen
