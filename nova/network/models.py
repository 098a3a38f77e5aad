"""Networks of projects and the pools their addresses come from.

A project's network is made when its first instance is asked for and given back when the last one is gone.  VLAN numbers
and subnets come in pairs (an *allotment*) from one pool; the addresses of a network from a pool of its own.
"""

import ipaddress
from dataclasses import dataclass

from nova import exception
from nova.datastore import Pool, Record, Store, record
from nova.flags import FLAGS, DEFINE_integer
from nova.network import driver  # noqa: F401  (defines --private_range)

DEFINE_integer("vlan_start", 100, "number of the first project's VLAN, after which its bridge is called",
               lower_bound=1, upper_bound=4094)
DEFINE_integer("network_size", 256, "addresses in each project's network, a power of two", lower_bound=8)

#: pairs of VLAN number and subnet that no project has
ALLOTMENTS = Pool("networks")
#: addresses at the start of each subnet that instances do not get: the network, the gateway and one for a VPN server
_RESERVED = 3


@record("network", indexes=("host",))
@dataclass(frozen=True)
class Network(Record):
    """A project's network; the id is the project's.

    `allotment` is ``<vlan>,<cidr>``; `host` the network host that serves it; `seeded` tells that the pool of its
    addresses is filled.
    """

    allotment: str
    host: str
    seeded: bool = False

    @property
    def vlan(self) -> int:
        """The VLAN number."""
        return int(self.allotment.split(",")[0])

    @property
    def cidr(self) -> str:
        """The subnet, such as ``10.202.3.0/24``."""
        return self.allotment.split(",")[1]

    @property
    def bridge(self) -> str:
        """Name of the bridge on each host."""
        return f"br{self.vlan}"

    @property
    def gateway(self) -> str:
        """Address of the network host in it, the first of the subnet."""
        return str(ipaddress.ip_network(self.cidr)[1])

    @property
    def netmask(self) -> str:
        """The subnet's mask, dotted."""
        return str(ipaddress.ip_network(self.cidr).netmask)

    @property
    def addresses(self) -> Pool:
        """The pool of addresses for instances."""
        return addresses_of(self.id)


def addresses_of(network_id: str) -> Pool:
    """The pool of a network's addresses."""
    return Pool(f"network:{network_id}")


def all_allotments() -> list[str]:
    """Every pair of VLAN and subnet that the flags provide for."""
    try:
        prefix = 32 - (FLAGS.network_size - 1).bit_length()
        subnets = ipaddress.IPv4Network(FLAGS.private_range).subnets(new_prefix=prefix)
        return [f"{vlan},{subnet}" for vlan, subnet in zip(range(FLAGS.vlan_start, 4095), subnets, strict=False)]
    except ValueError as error:
        raise exception.NovaError(f"--private_range and --network_size do not fit: {error}") from error


async def network_of(store: Store, project_id: str, host: str) -> Network:
    """The network of a project, made if it has none.

    :param host: the network host that serves a new one
    :returns: one whose pool of addresses is filled
    :raises exception.Exhausted: every subnet is taken
    """
    while True:
        network = await store.get(Network, project_id)
        if network is not None and network.seeded:
            return network
        tx = store.transaction()
        if network is None:
            await store.seed(ALLOTMENTS, all_allotments())
            tx.create(Network(project_id, allotment=tx.take(ALLOTMENTS, project_id), host=host))
        else:  # which addresses it has is known only now; a network that stays without is given back
            addresses = [str(address) for address in ipaddress.ip_network(network.cidr)]
            tx.update(network, seeded=True)
            tx.fill(network.addresses, addresses[_RESERVED:-1])
        try:
            await tx.commit()
        except (exception.Exists, exception.Conflict, exception.NotFound):
            continue  # another request was faster, or it was just given back


async def give_back(store: Store, network: Network) -> bool:
    """Remove a network that has no instances, with everything of it; False when it has some (again)."""
    tx = store.transaction()
    tx.require_empty(network.addresses.owners_key)
    tx.delete(network)
    tx.give(ALLOTMENTS, network.id, network.allotment)
    tx.drop(network.addresses)
    try:
        await tx.commit()
    except exception.Conflict:
        return False
    return True
