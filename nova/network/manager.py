"""The network host: makes the networks that it serves, with the addresses of the instances that are wanted on them."""

import asyncio

from nova.compute.models import Instance
from nova.converge import Converger
from nova.datastore import Store
from nova.flags import FLAGS
from nova.network import models
from nova.network.driver import Lease, NetworkDriver, NetworkSpec
from nova.network.models import Network
from nova.rpc import Bus
from nova.service import Service


class NetworkManager(Service):
    """Converges the networks of this host; a key is a bridge, so that one is never made and removed at once."""

    name = "network"

    def __init__(self, store: Store, bus: Bus, driver: NetworkDriver):
        self._store, self._driver = store, driver
        self._locks: dict[str, asyncio.Lock] = {}
        self._next: dict[str, asyncio.Task] = {}
        self._converger = Converger("network", self._bridges, self._converge)
        bus.serve("network", {"set_up_network": self.set_up_network, "look_at_network": self.look_at_network})

    async def start(self) -> None:
        models.all_allotments()  # flags that do not fit are told now, and not to the first client
        await self._driver.start()
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()
        await self._driver.stop()

    async def set_up_network(self, network_id: str) -> dict[str, str]:
        """Make a network be as the records say, now; answers its bridge."""
        network = await self._store.get(Network, network_id)
        if network is None or network.host != FLAGS.host:
            return {}
        await self._converge(network.bridge)
        return {"bridge": network.bridge}

    async def look_at_network(self, bridge: str) -> None:
        """Somebody says that something changed."""
        self._converger.wake(bridge)

    async def _bridges(self) -> set[str]:
        networks = await self._store.find(Network, host=FLAGS.host)
        return {n.bridge for n in networks} | await self._driver.present()

    async def _converge(self, bridge: str) -> None:
        """Look at a bridge; those who ask before a look begins share it."""
        if bridge not in self._next:
            self._next[bridge] = asyncio.ensure_future(self._look(bridge))
        await asyncio.shield(self._next[bridge])

    async def _look(self, bridge: str) -> None:
        async with self._locks.setdefault(bridge, asyncio.Lock()):
            del self._next[bridge]
            networks = [n for n in await self._store.find(Network, host=FLAGS.host) if n.bridge == bridge]
            for network in networks:
                ids = await self._store.ids(Instance, network_id=network.id)
                fields = await self._store.get_fields(Instance, ids, ("mac", "private_ip", "hostname"))
                leases = tuple(Lease(mac, ip, hostname) for mac, ip, hostname in fields if ip)
                if leases or not await models.give_back(self._store, network):
                    await self._driver.ensure(NetworkSpec(network.id, bridge, network.cidr, network.gateway,
                                                          network.netmask, leases))
                    return
            await self._driver.remove(bridge)
