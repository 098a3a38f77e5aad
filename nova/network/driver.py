"""The contract of network drivers, and what every driver checks before it acts.

A network is one project's layer 2 segment on this host: a bridge with the gateway's address, a DHCP and name
server that knows each instance, and packet rules.  A driver makes what a :class:`NetworkSpec` says; which
networks there are, and who has which address, is decided above.  Drivers name everything after the bridge, so
that a half-done step is recognised.
"""

import ipaddress
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from nova import exception
from nova.flags import FLAGS, DEFINE_enum, DEFINE_string

DEFINE_enum("network_driver", "linux", ["linux", "fake"],
            "linux: bridges, dnsmasq and iptables (needs root); fake: networks are only written down")
DEFINE_string("private_range", "10.202.0.0/16",
              "the range that all networks of projects lie in; traffic to it is never translated, and never "
              "passes from one network to another")
DEFINE_string("metadata_host", "",
              "address of the host whose metadata service 169.254.169.254 leads to; empty: this host")

#: a bridge's name; Linux allows 15 characters, 5 of which a driver may need for a temporary name
BRIDGE = re.compile(r"[a-z][a-z0-9_-]{0,9}")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: one label of a host name (RFC 1123, section 2.1), in lower case
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: what may follow `nova:` in a bridge's alias
NETWORK_ID = re.compile(r"[\w.@:+-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class Lease:
    """The fixed address of one interface; `hostname` is a single label, without the domain."""

    mac: str
    ip: str
    hostname: str


@dataclass(frozen=True)
class NetworkSpec:
    """Everything a host has to know of one network; `cidr` is `address/length`, `netmask` and `gateway`
    dotted.
    """

    id: str
    bridge: str
    cidr: str
    gateway: str
    netmask: str
    leases: tuple[Lease, ...] = ()


class NetworkDriver(ABC):
    """Makes networks on this host.

    All methods are idempotent, may be called in any order after :meth:`start` and are serialised by the
    driver.  They raise :class:`nova.exception.NovaError` when a step fails; calling again completes what was
    left half done.
    """

    @abstractmethod
    async def start(self) -> None:
        """Get ready; nothing is made yet.  Raises NovaError when this host cannot do it, and says what is
        missing.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Let go; networks stay as they are, because guests keep running."""

    @abstractmethod
    async def ensure(self, spec: NetworkSpec) -> None:
        """Make the network be exactly as `spec` says, whatever is there of it; leases of hosts not in it are
        released.
        """

    @abstractmethod
    async def remove(self, bridge: str) -> None:
        """Take the network of that bridge away; nothing of it is left."""

    @abstractmethod
    async def present(self) -> set[str]:
        """The bridges of the networks of which anything is found on this host."""

    @abstractmethod
    async def purge(self) -> None:
        """Take every trace of every network away; needs nothing but this host."""


def create(name: str | None = None) -> NetworkDriver:
    """The driver that `name`, or the flag ``--network_driver``, says; not started."""
    name = name or FLAGS.network_driver
    if name == "fake":
        from nova.network.fake import FakeDriver
        return FakeDriver()
    if name == "linux":
        from nova.network.linux import LinuxDriver
        return LinuxDriver()
    raise exception.NovaError(f"there is no network driver {name!r}")


def check_bridge(bridge: str) -> str:
    """`bridge`, when it is a name that drivers accept.

    :raises exception.NovaError: it is not; it never reaches a path or a command
    """
    if not BRIDGE.fullmatch(bridge):
        raise exception.NovaError(f"{bridge!r} is no name for a bridge")
    return bridge


def check(spec: NetworkSpec) -> NetworkSpec:
    """`spec`, when its values are well-formed and fit together.

    :raises exception.NovaError: says what is wrong; nothing of such a spec reaches a path, a file or a
        command
    """
    def need(condition: object, text: str) -> None:
        if not condition:
            raise exception.NovaError(f"network {spec.id!r} cannot be: {text}")

    check_bridge(spec.bridge)
    need(NETWORK_ID.fullmatch(spec.id), "its id has characters that ids do not have")
    try:
        network = ipaddress.IPv4Network(spec.cidr)
        gateway = ipaddress.IPv4Address(spec.gateway)
        addresses = [ipaddress.IPv4Address(lease.ip) for lease in spec.leases]
    except ValueError as error:
        raise exception.NovaError(f"network {spec.id!r} cannot be: {error}") from error
    need(str(network) == spec.cidr, f"{spec.cidr!r} is not written as address/length")
    need(network.prefixlen <= 30, f"{spec.cidr} has no room for a gateway and a host")
    need(str(network.netmask) == spec.netmask, f"netmask {spec.netmask} does not fit {spec.cidr}")
    reserved = {network.network_address, network.broadcast_address}
    need(gateway in network and gateway not in reserved, f"gateway {gateway} is no host address of {network}")
    for lease, address in zip(spec.leases, addresses, strict=True):
        need(MAC.fullmatch(lease.mac), f"{lease.mac!r} is no MAC in lower case")
        need(LABEL.fullmatch(lease.hostname), f"{lease.hostname!r} is no host name of one label")
        need(address in network and address not in reserved and address != gateway,
             f"{address} is no address for a host of {network}")
    for what in ("mac", "ip"):
        values = [getattr(lease, what) for lease in spec.leases]
        need(len(set(values)) == len(values), f"two hosts have the same {what}")
    return spec
