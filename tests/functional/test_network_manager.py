"""Networks of projects: given once, served with the leases of their instances, given back when the last is gone."""

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nova import exception
from nova.compute import models as compute_models
from nova.compute.models import Instance
from nova.datastore import Store
from nova.flags import FLAGS
from nova.network import models
from nova.network.fake import FakeDriver
from nova.network.manager import NetworkManager
from nova.network.models import ALLOTMENTS, Network, network_of
from nova.process import wait
from nova.rpc import Bus


async def until(condition: Callable, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def small_range() -> None:
    FLAGS.private_range, FLAGS.network_size, FLAGS.vlan_start = "10.202.0.0/28", 8, 100  # two networks of four hosts
    FLAGS.host = "h1"


class Rig:
    """A network host."""

    def __init__(self, store: Store, directory: Path):
        self.store, self.directory = store, directory
        self.driver = FakeDriver(str(directory))
        self.bus = Bus("memory://", "h1")
        self.manager = NetworkManager(store, self.bus, self.driver)

    async def start(self) -> None:
        self.bus.start()
        assert await self.bus.connected()
        await self.manager.start()

    async def stop(self) -> None:
        await self.manager.stop()
        await self.bus.stop()

    def leases(self, bridge: str) -> dict[str, str] | None:
        """Addresses and MACs that the driver was told for a bridge; None where there is no such network."""
        path = self.directory / f"{bridge}.json"
        if not path.exists():
            return None
        return {lease["ip"]: lease["mac"] for lease in json.loads(path.read_text())["leases"]}

    async def instance(self, number: int, project: str = "proj") -> Instance:
        """Record an instance as RunInstances does."""
        network = await network_of(self.store, project, "h1")
        id = f"i-{number:08x}"
        tx = self.store.transaction()
        tx.create(Instance(
            id, project_id=project, user_id="ann", reservation_id="r-1", launch_index=0, image_id="ami-1",
            instance_type="m1.tiny", vcpus=1, memory_mb=512, disk_gb=0, hostname=id, uuid=compute_models.new_uuid(),
            mac=compute_models.mac_for(id), private_ip=tx.take(network.addresses, id), network_id=network.id, host="h1",
            zone="nova", launch_time=0.0))
        await tx.commit()
        found = await self.store.get(Instance, id)
        assert found is not None
        return found

    async def terminate(self, instance: Instance) -> None:
        tx = self.store.transaction()
        compute_models.release(tx, instance, None, terminated_at=1.0)
        await tx.commit()


@pytest.fixture
async def rig(store: Store, tmp_path: Path) -> AsyncIterator[Rig]:
    FLAGS.converge_interval = 3600.0
    rig = Rig(store, tmp_path / "networks")
    await rig.start()
    yield rig
    await rig.stop()


# -- records ----------------------------------------------------------------------------------------------------------

async def test_a_project_gets_one_network_however_many_ask(store: Store) -> None:
    networks = await asyncio.gather(*(network_of(store, "proj", "h1") for _ in range(10)))
    assert {n.allotment for n in networks} == {"100,10.202.0.0/29"}
    assert await store.redis.llen(ALLOTMENTS.key) == 1


async def test_each_project_gets_another_network(store: Store) -> None:
    one, two = await network_of(store, "p1", "h1"), await network_of(store, "p2", "h1")
    assert one.vlan != two.vlan and one.cidr != two.cidr


async def test_when_every_subnet_is_taken_there_is_no_network(store: Store) -> None:
    for project in ("p1", "p2"):
        await network_of(store, project, "h1")
    with pytest.raises(exception.Exhausted) as error:
        await network_of(store, "p3", "h1")
    assert error.value.name == ALLOTMENTS.name
    assert await store.get(Network, "p3") is None


async def test_instances_get_neither_the_networks_nor_the_gateways_nor_the_vpns_address(store: Store) -> None:
    network = await network_of(store, "proj", "h1")
    free = await store.redis.lrange(network.addresses.key, 0, -1)
    assert free == [b"10.202.0.3", b"10.202.0.4", b"10.202.0.5", b"10.202.0.6"]


async def test_a_network_given_back_leaves_nothing(store: Store) -> None:
    network = await network_of(store, "proj", "h1")
    assert await models.give_back(store, network)
    assert await store.redis.llen(ALLOTMENTS.key) == 2
    assert await store.redis.keys("nova:pool:network:*") == []
    assert await store.redis.keys("nova:network:*") == []


async def test_a_network_with_an_instance_is_not_given_back(rig: Rig) -> None:
    instance = await rig.instance(1)
    network = await network_of(rig.store, "proj", "h1")
    assert await models.give_back(rig.store, network) is False
    assert await rig.store.get(Network, instance.network_id) is not None


async def test_addresses_are_of_the_networks_subnet_also_when_it_is_given_back_meanwhile(store: Store) -> None:
    """The pool of addresses is filled in one change with the record, or a later network would find the old ones."""
    for _ in range(30):
        async def give_back() -> None:
            network = await store.get(Network, "proj")
            if network is not None:
                await models.give_back(store, network)
        await asyncio.gather(network_of(store, "proj", "h1"), *(give_back() for _ in range(4)), return_exceptions=True)
        found = await store.get(Network, "proj")
        free: list[Any] = await store.attempt(store.redis.lrange(models.addresses_of("proj").key, 0, -1))
        if found is None:
            assert free == []
        elif found.seeded:
            subnet = ipaddress.ip_network(found.cidr)
            assert [ipaddress.ip_address(a.decode()) for a in free] == list(subnet)[3:-1]


# -- the network host -------------------------------------------------------------------------------------------------

async def test_a_network_is_made_with_the_leases_of_its_instances_when_asked(rig: Rig) -> None:
    one, two = await rig.instance(1), await rig.instance(2)
    answer = await wait(rig.bus.call("network.h1", "set_up_network", network_id="proj"))
    assert answer == {"bridge": "br100"}
    assert rig.leases("br100") == {one.private_ip: one.mac, two.private_ip: two.mac}


async def test_a_network_that_is_not_there_or_of_another_host_is_not_made(rig: Rig) -> None:
    await network_of(rig.store, "proj", "h2")
    for id in ("proj", "nothing"):
        assert await wait(rig.bus.call("network.h1", "set_up_network", network_id=id)) == {}
    assert rig.leases("br100") is None


async def test_a_wake_takes_the_lease_of_a_terminated_instance_away(rig: Rig) -> None:
    one, two = await rig.instance(1), await rig.instance(2)
    await wait(rig.bus.call("network.h1", "set_up_network", network_id="proj"))
    await rig.terminate(one)
    rig.bus.cast("network.h1", "look_at_network", bridge="br100")

    async def gone() -> bool:
        return rig.leases("br100") == {two.private_ip: two.mac}
    await until(gone)


async def test_a_network_whose_last_instance_is_gone_is_removed_and_given_back(rig: Rig) -> None:
    instance = await rig.instance(1)
    await wait(rig.bus.call("network.h1", "set_up_network", network_id="proj"))
    await rig.terminate(instance)
    rig.bus.cast("network.h1", "look_at_network", bridge="br100")

    async def gone() -> bool:
        return rig.leases("br100") is None and await rig.store.get(Network, "proj") is None
    await until(gone)
    assert await rig.store.redis.llen(ALLOTMENTS.key) == 2


async def test_at_the_start_what_is_missing_is_made_and_what_nobody_wants_removed(store: Store, tmp_path: Path) -> None:
    rig = Rig(store, tmp_path / "networks")
    instance = await rig.instance(1)
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks/br4000.json").write_text("{}")
    await rig.start()

    async def right() -> bool:
        return rig.leases("br100") == {instance.private_ip: instance.mac} and rig.leases("br4000") is None
    await until(right)
    await rig.stop()


async def test_a_lost_message_costs_only_time(store: Store, tmp_path: Path) -> None:
    FLAGS.converge_interval = 0.1
    rig = Rig(store, tmp_path / "networks")
    await rig.start()
    instance = await rig.instance(1)

    async def made() -> bool:
        return rig.leases("br100") == {instance.private_ip: instance.mac}
    await until(made)
    await rig.stop()


async def test_a_stop_leaves_the_networks(rig: Rig) -> None:
    await rig.instance(1)
    await wait(rig.bus.call("network.h1", "set_up_network", network_id="proj"))
    await rig.manager.stop()
    assert rig.leases("br100") is not None
    await rig.manager.start()
