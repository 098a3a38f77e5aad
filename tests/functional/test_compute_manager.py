"""The compute host with the fake hypervisor: whatever goes wrong, guests become what their records want."""

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nova import converge, exception
from nova.compute import models
from nova.compute.manager import ComputeManager
from nova.compute.models import Instance, UserData
from nova.compute.types import TYPES
from nova.compute.virt.base import DomainState, HypervisorError
from nova.compute.virt.fake import FakeDriver
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import download
from nova.image.cache import ImageCache
from nova.network.fake import FakeDriver as FakeNetwork
from nova.network.manager import NetworkManager
from nova.network.models import Network, network_of
from nova.process import wait
from nova.rpc import Bus
from tests.functional.image_server import Server

IMAGE = b"an image " * 1000
SHA = hashlib.sha256(IMAGE).hexdigest()
SIZE = TYPES["m1.tiny"]


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


class Driver(FakeDriver):
    """The fake hypervisor, which a test can have fail."""

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.failures: dict[str, list[Exception]] = {}
        self.calls: list[str] = []

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    async def spawn(self, guest: Any) -> None:
        await self._call("spawn")
        await super().spawn(guest)

    async def destroy(self, instance_id: str) -> None:
        await self._call("destroy")
        await super().destroy(instance_id)

    async def reboot(self, instance_id: str) -> None:
        await self._call("reboot")
        await super().reboot(instance_id)


class Rig:
    """A compute host and a network host in one process."""

    def __init__(self, store: Store, directory: Path):
        self.store, self.directory = store, directory
        self.bus = Bus("memory://", "h1")
        self.driver = Driver(directory / "guests")
        self.server = Server(store, IMAGE)
        self.cache = ImageCache(str(directory / "cache"), store, lambda: self.server.url)
        self.network = NetworkManager(store, self.bus, FakeNetwork(str(directory / "networks")))
        self.manager = ComputeManager(store, self.bus, self.driver, self.cache)

    async def start(self) -> None:
        await self.network.start()
        await self.manager.start()

    async def stop(self) -> None:
        await self.manager.stop()
        await self.network.stop()

    def restart_objects(self) -> None:
        """What a new process begins with."""
        self.cache = ImageCache(str(self.directory / "cache"), self.store, lambda: self.server.url)
        self.manager = ComputeManager(self.store, self.bus, self.driver, self.cache)

    async def record(self, number: int = 1, tell: bool = True, **changes: Any) -> Instance:
        """Have an instance, as RunInstances does."""
        network = await network_of(self.store, "proj", "h1")
        id = f"i-{number:08x}"
        values: dict[str, Any] = {
            "host": "h1", "launch_time": time.time(), "images": {"machine": SHA}, "disk_gb": 0} | changes
        tx = self.store.transaction()
        models.claim(tx, values["host"], SIZE, {"memory_mb": 10**6, "vcpus": 10**6})
        tx.create(Instance(
            id, project_id="proj", user_id="ann", reservation_id="r-1", launch_index=0, image_id="ami-1",
            instance_type=SIZE.name, vcpus=SIZE.vcpus, memory_mb=SIZE.memory_mb, hostname=id,
            uuid=models.new_uuid(), mac=models.mac_for(id), private_ip=tx.take(network.addresses, id),
            network_id="proj", zone="nova", **values))
        tx.create(UserData(id, data="eA=="))
        await tx.commit()
        if tell:
            self.tell(id)
        return await self.get(id)

    def tell(self, id: str) -> None:
        self.bus.cast("compute.h1", "look_at_instance", instance_id=id)

    async def get(self, id: str = "i-00000001") -> Instance:
        found = await self.store.get(Instance, id)
        assert found is not None
        return found

    async def change(self, id: str = "i-00000001", tell: bool = True, **changes: Any) -> None:
        await self.store.modify(Instance, id, lambda i: changes)
        if tell:
            self.tell(id)

    async def terminate(self, id: str = "i-00000001", tell: bool = True) -> None:
        await self.change(id, tell, wanted="terminated", state="shutting-down")

    async def reached(self, state: str, id: str = "i-00000001") -> Instance:
        async def there() -> bool:
            return (await self.get(id)).state == state
        await until(there)
        return await self.get(id)

    async def guests(self) -> dict[str, DomainState]:
        return await self.driver.list_guests()

    async def running(self) -> Instance:
        """A first instance that runs."""
        await self.record()
        return await self.reached("running")

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory / "instances"))


@pytest.fixture
async def idle(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A host that is not started."""
    monkeypatch.setattr(converge, "RETRY_FIRST", 0.05)
    FLAGS.state_path, FLAGS.host, FLAGS.converge_interval = str(tmp_path), "h1", 3600.0
    rig = Rig(store, tmp_path)
    rig.bus.start()
    assert await rig.bus.connected()
    yield rig
    await rig.stop()
    await rig.server.stop()
    await rig.bus.stop()


@pytest.fixture
async def rig(idle: Rig) -> Rig:
    await idle.start()
    return idle


# -- launching --------------------------------------------------------------------------------------------------------

async def test_an_instance_that_is_wanted_runs(rig: Rig) -> None:
    instance = await rig.running()
    assert await rig.guests() == {instance.id: DomainState.RUNNING}
    assert (rig.directory / "networks/br100.json").exists()


async def test_only_its_owner_can_look_into_a_guests_directory(rig: Rig) -> None:
    instance = await rig.running()
    assert (rig.directory / "instances" / instance.id).stat().st_mode & 0o077 == 0


async def test_an_instance_of_another_host_is_left_to_it(rig: Rig) -> None:
    await rig.record(2, host="h2")
    await rig.running()
    assert "i-00000002" not in await rig.guests() and (await rig.get("i-00000002")).state == "pending"


async def test_a_lost_message_costs_only_time(idle: Rig) -> None:
    FLAGS.converge_interval = 0.1
    await idle.start()
    await idle.record(tell=False)
    await idle.reached("running")
    await idle.terminate(tell=False)
    await idle.reached("terminated")


async def test_what_was_asked_while_the_daemon_was_away_is_done_when_it_starts(idle: Rig) -> None:
    await idle.record(1, tell=False)
    await idle.record(2, tell=False)
    await idle.terminate("i-00000002", tell=False)
    await idle.start()
    await idle.reached("running", "i-00000001")
    await idle.reached("terminated", "i-00000002")


@pytest.mark.parametrize("error", [HypervisorError("busy"), RuntimeError("bug")], ids=["expected", "bug"])
async def test_a_failure_to_launch_is_tried_again(rig: Rig, error: Exception) -> None:
    rig.driver.failures["spawn"] = [error, error]
    await rig.running()
    assert rig.driver.calls.count("spawn") == 3


async def test_an_instance_that_does_not_get_running_in_time_is_given_up_with_the_reason(rig: Rig) -> None:
    FLAGS.launch_timeout = 1.0
    rig.driver.failures["spawn"] = [HypervisorError("busy")] * 1000
    await rig.record()
    instance = await rig.reached("terminated")
    assert instance.state_reason_code == "Server.InternalError"
    assert instance.state_reason == "Server.InternalError: not running within 1 seconds"
    assert await rig.guests() == {} and rig.files() == []


async def test_an_instance_that_runs_is_never_given_up_for_its_age(rig: Rig) -> None:
    await rig.running()
    FLAGS.launch_timeout = 1.0
    await rig.change(launch_time=time.time() - 5000, tell=False)
    rig.driver.power_off("i-00000001")

    async def up_again() -> bool:
        return (await rig.guests()).get("i-00000001") is DomainState.RUNNING
    await until(up_again)
    assert (await rig.get()).state == "running"


async def test_a_guest_that_runs_although_its_record_is_pending_and_old_is_not_given_up(idle: Rig) -> None:
    await idle.start()
    await idle.running()
    await idle.manager.stop()
    await idle.change(state="pending", launch_time=time.time() - 5000, tell=False)
    idle.restart_objects()
    await idle.manager.start()
    await idle.reached("running")


@pytest.mark.parametrize("damage", ["damaged", "gone"])
async def test_an_instance_whose_image_is_unusable_is_given_up_at_once_with_the_reason(rig: Rig, damage: str) -> None:
    if damage == "damaged":
        rig.server.content = b"something else"
    else:
        rig.server.code = 404
    await rig.record()
    instance = await rig.reached("terminated")
    expected = {"damaged": "ami-1 is damaged", "gone": "ami-1 is not in the object store any more"}[damage]
    assert expected in instance.state_reason and instance.transition_reason == "Server.InternalError"
    assert rig.files() == []


async def test_an_instance_that_is_given_up_gives_back_what_it_had(rig: Rig) -> None:
    rig.server.content = b"something else"
    await rig.record()
    instance = await rig.reached("terminated")
    assert instance.private_ip == ""
    assert (await models.claims(rig.store, ["h1"]))["h1"] == {"memory_mb": 0, "vcpus": 0}

    async def network_gone() -> bool:
        return await rig.store.get(Network, "proj") is None
    await until(network_gone)


async def test_an_instance_is_launched_when_its_network_host_is_up_again(idle: Rig,
                                                                         caplog: pytest.LogCaptureFixture) -> None:
    await idle.manager.start()
    await idle.record()

    async def refused() -> bool:
        return "network driver is not started" in caplog.text
    await until(refused)
    await idle.network.start()
    assert (await idle.reached("running")).state_reason == ""


async def test_an_instance_terminated_while_its_image_is_fetched_is_gone_at_once(rig: Rig) -> None:
    rig.server.gate.clear()
    await rig.record()
    await rig.server.began.wait()
    await rig.terminate()
    await rig.reached("terminated")
    assert "spawn" not in rig.driver.calls and await rig.guests() == {}
    await rig.cache.sweep()
    assert os.listdir(rig.directory / "cache") == []


async def test_fifty_instances_of_one_image_fetch_it_once_and_hold_up_nobody(rig: Rig) -> None:
    await rig.record(99, images={"machine": SHA})
    await rig.reached("running", "i-00000063")
    image = b"another image " * 100_000
    other = hashlib.sha256(image).hexdigest()
    rig.server.content = image
    rig.server.gate.clear()
    rig.server.fetched.clear()
    for number in range(1, 51):
        await rig.record(number, images={"machine": other})
    await rig.server.began.wait()
    await rig.terminate("i-00000063")
    await rig.reached("terminated", "i-00000063")
    await rig.terminate("i-00000001")
    await rig.reached("terminated")
    rig.server.gate.set()
    for number in range(2, 51):
        await rig.reached("running", f"i-{number:08x}")
    assert set(os.listdir(rig.directory / "cache")) == {SHA, other}
    # the one that was terminated may have been the one that fetched: another went on
    assert len(rig.server.fetched) <= 2


async def test_an_instance_waits_no_longer_for_its_image_than_it_may(idle: Rig) -> None:
    FLAGS.launch_timeout, FLAGS.converge_interval = 1.0, 0.3
    await idle.start()
    idle.server.gate.clear()
    await idle.record()
    instance = await idle.reached("terminated")
    assert "not running within 1 seconds" in instance.state_reason


async def test_a_host_that_stops_while_it_fetches_goes_on_when_it_starts(rig: Rig) -> None:
    rig.server.gate.clear()
    await rig.record()
    await rig.server.began.wait()
    await asyncio.wait_for(rig.manager.stop(), 10)
    rig.server.gate.set()
    rig.restart_objects()
    await rig.manager.start()
    await rig.reached("running")
    assert os.listdir(rig.directory / "cache") == [SHA]


async def test_an_image_that_only_a_living_instance_has_is_kept(rig: Rig) -> None:
    await rig.running()
    FLAGS.image_cache_age = 0.0
    FLAGS.image_cache_gb = 1e-9
    await rig.cache.sweep()
    assert os.listdir(rig.directory / "cache") == [SHA]
    await rig.terminate()
    await rig.reached("terminated")
    await rig.cache.sweep()
    assert os.listdir(rig.directory / "cache") == []


async def test_a_disk_is_grown_to_its_type(rig: Rig) -> None:
    await rig.record(disk_gb=1)
    await rig.reached("running")
    assert os.path.getsize(rig.directory / "instances/i-00000001/disk") == 1 << 30


async def test_a_host_without_room_for_the_image_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(download, "write_sparse", full)
    await rig.record()
    assert "no room for ami-1 on the disk of the host h1" in (await rig.reached("terminated")).state_reason
    assert os.listdir(rig.directory / "cache") == []


async def test_kernel_and_ramdisk_reach_the_guest(rig: Rig) -> None:
    await rig.record(images={"machine": SHA, "kernel": SHA, "ramdisk": SHA}, kernel_id="aki-1", ramdisk_id="ari-1")
    instance = await rig.reached("running")
    guest = rig.driver._guest(instance.id)
    assert guest.kernel_path == guest.ramdisk_path == str(rig.directory / "cache" / SHA)


# -- guests that do otherwise -----------------------------------------------------------------------------------------

async def test_a_guest_that_stops_is_started_again(rig: Rig) -> None:
    instance = await rig.running()
    rig.driver.power_off(instance.id)

    async def up_again() -> bool:
        return (await rig.guests())[instance.id] is DomainState.RUNNING
    await until(up_again)


async def test_a_guest_that_vanished_keeps_its_disk_when_it_is_made_anew(rig: Rig) -> None:
    instance = await rig.running()
    disk = rig.directory / "instances" / instance.id / "disk"
    inode = disk.stat().st_ino
    await FakeDriver.destroy(rig.driver, instance.id)

    async def up_again() -> bool:
        return (await rig.guests()).get(instance.id) is DomainState.RUNNING
    await until(up_again)
    assert disk.stat().st_ino == inode


async def test_guests_and_files_that_no_record_wants_are_removed(idle: Rig) -> None:
    await idle.start()
    instance = await idle.running()
    await idle.manager.stop()
    await idle.store.delete(await idle.get())
    idle.restart_objects()
    await idle.manager.start()

    async def removed() -> bool:
        return await idle.guests() == {} and idle.files() == []
    await until(removed)
    assert instance.id not in await idle.guests()


async def test_a_stop_leaves_the_guests_running(rig: Rig) -> None:
    instance = await rig.running()
    await rig.manager.stop()
    assert await rig.guests() == {instance.id: DomainState.RUNNING}
    rig.restart_objects()
    await rig.manager.start()


# -- terminating ------------------------------------------------------------------------------------------------------

async def test_a_terminated_instance_leaves_nothing_but_its_record(rig: Rig) -> None:
    before = await rig.running()
    await rig.terminate()
    instance = await rig.reached("terminated")
    assert await rig.guests() == {} and rig.files() == []
    assert instance.private_ip == "" and before.private_ip != ""
    assert abs(instance.terminated_at - time.time()) < 60
    assert await rig.store.get(UserData, instance.id) is None
    assert (await models.claims(rig.store, ["h1"]))["h1"] == {"memory_mb": 0, "vcpus": 0}


async def test_the_address_of_a_terminated_instance_can_be_had_again(rig: Rig) -> None:
    await rig.record(2)
    await rig.reached("running", "i-00000002")
    before = await rig.running()
    await rig.terminate()
    await rig.reached("terminated")
    free = await rig.store.redis.lrange((await network_of(rig.store, "proj", "h1")).addresses.key, 0, -1)
    assert before.private_ip.encode() in free


async def test_terminating_is_tried_again_until_it_is_done(rig: Rig) -> None:
    await rig.running()
    rig.driver.failures["destroy"] = [HypervisorError("busy"), HypervisorError("busy")]
    await rig.terminate()
    await rig.reached("terminated")
    assert rig.driver.calls.count("destroy") == 3


async def test_claims_are_given_back_once(rig: Rig) -> None:
    await rig.record(2)
    await rig.reached("running", "i-00000002")
    await rig.running()
    await rig.terminate()
    await rig.reached("terminated")
    for _ in range(3):
        rig.tell("i-00000001")
    await rig.terminate("i-00000002")
    await rig.reached("terminated", "i-00000002")
    await rig.record(3)
    await rig.reached("running", "i-00000003")
    assert (await models.claims(rig.store, ["h1"]))["h1"] == {"memory_mb": SIZE.memory_mb, "vcpus": SIZE.vcpus}


async def test_an_expired_terminated_record_vanishes(rig: Rig) -> None:
    await rig.running()
    await rig.terminate()
    instance = await rig.reached("terminated")
    FLAGS.terminated_visible = 0.0
    rig.tell(instance.id)

    async def vanished() -> bool:
        return await rig.store.get(Instance, instance.id) is None
    await until(vanished)
    assert await rig.store.ids(Instance) == []
    assert await rig.store.redis.keys("nova:instances:by-*") == []


async def test_a_terminated_record_stays_visible_for_a_while(rig: Rig) -> None:
    await rig.running()
    await rig.terminate()
    await rig.reached("terminated")
    rig.tell("i-00000001")
    await rig.record(2)
    await rig.reached("running", "i-00000002")
    assert (await rig.get()).state == "terminated"


async def test_what_is_left_of_a_terminated_instance_is_removed(rig: Rig) -> None:
    await rig.running()
    await rig.terminate()
    await rig.reached("terminated")
    (rig.directory / "instances/i-00000001").mkdir()
    rig.tell("i-00000001")

    async def removed() -> bool:
        return rig.files() == []
    await until(removed)


# -- rebooting, the console -------------------------------------------------------------------------------------------

async def test_a_reboot_that_is_asked_for_is_done_once(rig: Rig) -> None:
    await rig.running()
    await rig.change(reboots_wanted=1)

    async def done() -> bool:
        return (await rig.get()).reboots_done == 1
    await until(done)
    rig.tell("i-00000001")
    await rig.record(2)
    await rig.reached("running", "i-00000002")
    assert rig.driver.calls.count("reboot") == 1


async def test_reboots_asked_for_together_are_one(rig: Rig) -> None:
    await rig.running()
    await rig.change(reboots_wanted=3)

    async def done() -> bool:
        return (await rig.get()).reboots_done == 3
    await until(done)
    assert rig.driver.calls.count("reboot") == 1


async def test_a_reboot_that_fails_is_tried_again(rig: Rig) -> None:
    await rig.running()
    rig.driver.failures["reboot"] = [HypervisorError("busy")]
    await rig.change(reboots_wanted=1)

    async def done() -> bool:
        return (await rig.get()).reboots_done == 1
    await until(done)
    assert rig.driver.calls.count("reboot") == 2


async def test_the_console_is_what_the_guest_wrote_last(rig: Rig) -> None:
    instance = await rig.running()
    path = rig.directory / "instances" / instance.id / "console.log"
    path.write_bytes(b"old" * 100_000 + b"\xff new")
    answer = await wait(rig.bus.call("compute.h1", "console_output", instance_id=instance.id))
    assert answer["output"].endswith("\ufffd new") and len(answer["output"]) == 64 << 10
    assert answer["timestamp"] == pytest.approx(path.stat().st_mtime)


async def test_the_console_of_a_guest_that_never_ran_is_empty(rig: Rig) -> None:
    answer = await wait(rig.bus.call("compute.h1", "console_output", instance_id="i-00000009"))
    assert answer["output"] == ""


# -- the host ---------------------------------------------------------------------------------------------------------

async def test_a_host_refuses_the_state_of_another_cloud_and_leaves_its_guests(idle: Rig) -> None:
    await idle.start()
    instance = await idle.running()
    await idle.manager.stop()
    await idle.store.redis.flushall()
    idle.restart_objects()
    with pytest.raises(exception.NovaError, match="another cloud"):
        await idle.manager.start()
    idle.tell(instance.id)
    await wait(idle.bus.call("compute.h1", "console_output", instance_id=instance.id))  # so the wake has arrived too
    await idle.manager.stop()
    assert await idle.guests() == {instance.id: DomainState.RUNNING}
    assert idle.files() == [instance.id]


async def test_a_host_starts_again_with_the_state_of_its_cloud(idle: Rig) -> None:
    await idle.start()
    await idle.manager.stop()
    idle.restart_objects()
    await idle.manager.start()


async def test_a_wake_that_comes_before_the_start_does_nothing_until_then(idle: Rig) -> None:
    await idle.driver.start()
    (idle.directory / "instances/i-0000dead").mkdir(parents=True)
    idle.tell("i-0000dead")
    await wait(idle.bus.call("compute.h1", "console_output", instance_id="i-0000dead"))
    assert idle.files() == ["i-0000dead"]


async def test_a_host_tells_what_instances_may_claim(rig: Rig) -> None:
    FLAGS.reserved_memory_mb, FLAGS.cpu_allocation_ratio = 512, 2.0
    capacity = await rig.driver.capacity()
    assert await rig.manager.facts() == {"memory_mb": capacity.memory_mb - 512, "vcpus": capacity.vcpus * 2,
                                         "disk_gb": capacity.disk_gb}


async def test_redis_away_for_a_moment_costs_only_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = rig.store.get, 0

    async def get(cls: Any, id: str) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3, 4):
            raise exception.DatastoreUnavailable()
        return await real(cls, id)
    instance = await rig.record(tell=False)
    monkeypatch.setattr(rig.store, "get", get)
    rig.tell(instance.id)

    async def up() -> bool:
        found = await real(Instance, instance.id)
        return found is not None and found.state == "running"
    await until(up)
