"""The compute host: makes guests be what their records want.

Everything that a guest has on this host is called after the instance, in ``$state_path/instances/<id>`` and as the
domain ``instance-<id>``, so that a step that was half done when the daemon died is recognised by the next one.
"""

import logging
import os
import shutil
import time
import uuid
from typing import Any

from nova import exception, failpoint
from nova.compute import injection, models
from nova.compute.delivery import Deliveries
from nova.compute.models import Instance, UserData
from nova.compute.types import GIB
from nova.compute.virt.base import ComputeDriver, DomainState, Guest
from nova.converge import Converger
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_float, DEFINE_integer
from nova.image import prefetch
from nova.image.cache import ImageCache
from nova.image.prefetch import Prefetch
from nova.network.models import Network
from nova.process import in_thread, wait
from nova.rpc import Bus
from nova.service import Service

#: bytes of a console's end that GetConsoleOutput answers, and that stay when the file is cut
CONSOLE_BYTES = 64 << 10

DEFINE_float("launch_timeout", 900, "seconds after which an instance that does not get running is given up",
             lower_bound=1)
DEFINE_float("terminated_visible", 3600, "seconds that a terminated instance stays visible", lower_bound=0)
DEFINE_integer("reserved_memory_mb", 512, "memory of this host, in MiB, that no instance gets", lower_bound=0)
DEFINE_float("cpu_allocation_ratio", 16.0, "virtual CPUs of instances for each CPU of the host", lower_bound=0.1)

DEFINE_integer("console_limit", 1 << 20, "bytes of a guest's console that are kept; a longer file is cut to its end",
               lower_bound=CONSOLE_BYTES)

LOG = logging.getLogger(__name__)

for _name, _doc in (
        ("compute.launch.begin", "the record is there, and nothing of the guest is"),
        ("compute.launch.network_ready", "the network knows the instance; there is no disk yet"),
        ("compute.launch.images_ready", "the images are in the cache; there is no disk yet"),
        ("compute.launch.disk_ready", "the disk is there, the domain is not"),
        ("compute.launch.spawned", "the guest runs, and its record is still pending"),
        ("compute.terminate.begin", "the record is shutting-down, and the guest still runs"),
        ("compute.terminate.destroyed", "the domain is gone, the files are still there"),
        ("compute.terminate.files_removed", "nothing is left on this host, and the record does not know it"),
        ("compute.terminate.recorded", "the record is terminated, and the network has not been told")):
    failpoint.declare(_name, _doc)


class ComputeManager(Service):
    """Converges the instances of this host."""

    name = "compute"

    def __init__(self, store: Store, bus: Bus, driver: ComputeDriver, cache: ImageCache):
        self._store, self._bus, self._driver, self._cache = store, bus, driver, cache
        self._directory = os.path.join(FLAGS.state_path, "instances")
        self._converger = Converger("instance", self._keys, self._converge)
        self._deliveries = Deliveries(cache, self._converger.wake)
        cache.used = self._used_images
        bus.serve("compute", {"look_at_instance": self.look_at_instance, "console_output": self.console_output})

    async def start(self) -> None:
        os.makedirs(self._directory, exist_ok=True)
        await self._check_cloud()
        self._cache.start()
        await self._driver.start()
        self._driver.on_event = self._converger.wake
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()
        await self._deliveries.stop()
        await self._driver.stop()

    async def facts(self) -> dict[str, Any]:
        """What placement has to know of this host: how much its instances may claim."""
        capacity = await self._driver.capacity()
        return {"memory_mb": max(0, capacity.memory_mb - FLAGS.reserved_memory_mb),
                "vcpus": int(capacity.vcpus * FLAGS.cpu_allocation_ratio), "disk_gb": capacity.disk_gb}

    async def look_at_instance(self, instance_id: str) -> None:
        """Somebody says that something changed."""
        self._converger.wake(instance_id)

    async def console_output(self, instance_id: str) -> dict[str, Any]:
        """The end of what a guest wrote to its serial line, and when it last wrote (seconds since the epoch)."""
        path = self._path(instance_id, "console.log")
        output = await self._driver.console_output(path, CONSOLE_BYTES)
        written = os.path.getmtime(path) if os.path.exists(path) else time.time()
        return {"output": output.decode("utf-8", "replace"), "timestamp": written}

    async def _check_cloud(self) -> None:
        """This host sweeps what no record wants: the records must be those of the cloud that it worked for before."""
        key, path = f"{PREFIX}cloud", os.path.join(FLAGS.state_path, "cloud_id")
        await self._store.attempt(self._store.redis.setnx(key, str(uuid.uuid4())))
        cloud = (await self._store.attempt(self._store.redis.get(key))).decode()
        if not os.path.exists(path):
            with open(path + ".new", "w") as file:
                file.write(cloud)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path + ".new", path)
        with open(path) as file:
            if file.read().strip() != cloud:
                raise exception.NovaError(
                    f"this Redis has the state of another cloud than {path} names; instances of that cloud would be "
                    f"destroyed. Point --redis_url to the right one, or remove that file.")

    def _path(self, instance_id: str, *names: str) -> str:
        return os.path.join(self._directory, instance_id, *names)

    async def _keys(self) -> set[str]:
        """The instances that are not as they are wanted, and what there is on this host that belongs to none."""
        instances = await self._store.find(Instance, host=FLAGS.host)
        guests = await self._driver.list_guests()
        present = set(os.listdir(self._directory)) | set(guests)
        await wait(in_thread(self._cut_consoles, sorted(present)))
        await self._cache.sweep()
        settled = {i.id for i in instances if self._is_settled(i, guests.get(i.id), i.id in present)}
        return ({i.id for i in instances} | present) - settled

    async def _used_images(self) -> set[str]:
        """The hashes of the images whose files the instances of this host need, or that it is just to have."""
        instances = await self._store.find(Instance, host=FLAGS.host)
        wanted = await self._store.find(Prefetch, host=FLAGS.host)
        return {sha256 for images in (*(i.images for i in instances if i.state != "terminated"),
                                      *(p.images for p in wanted if p.state == prefetch.WAITING))
                for sha256 in images.values()}

    def _cut_consoles(self, instance_ids: list[str]) -> None:
        """Keep guests from filling this host's disk through their serial lines, which QEMU appends to."""
        for path in (self._path(id, "console.log") for id in instance_ids):
            if os.path.exists(path) and os.path.getsize(path) > FLAGS.console_limit:
                with open(path, "rb+") as file:
                    file.seek(-CONSOLE_BYTES, os.SEEK_END)
                    end = file.read()
                    file.seek(0)
                    file.truncate()
                    file.write(end)

    def _is_settled(self, instance: Instance, guest: DomainState | None, present: bool) -> bool:
        """Whether nothing is to be done for an instance."""
        if instance.state == "terminated":
            return not present and not self._is_expired(instance)
        return (instance.wanted == instance.state == "running" and guest is DomainState.RUNNING
                and instance.reboots_done >= instance.reboots_wanted)

    async def _converge(self, instance_id: str) -> None:
        instance = await self._store.get(Instance, instance_id)
        if instance is None or instance.host != FLAGS.host:
            LOG.warning("%s is nobody's: removing what is left of it", instance_id)
            await self._remove(instance_id)
        elif instance.state == "terminated":
            await self._expire(instance)
        elif instance.wanted == "terminated":
            await self._terminate(instance)
        else:
            await self._run(instance)

    async def _run(self, instance: Instance) -> None:
        if await self._driver.guest_state(instance.id) is not DomainState.RUNNING:
            if instance.state == "pending" and time.time() > instance.launch_time + FLAGS.launch_timeout:
                await self._give_up(instance, f"not running within {FLAGS.launch_timeout:g} seconds")
                return
            try:
                if not await self._launch(instance):
                    return
            except exception.LaunchFailed as error:
                if instance.state != "pending":
                    raise  # it ran before: its disk stays until somebody mends what is missing, or terminates it
                await self._give_up(instance, error.message)
                return
        if instance.state != "running":
            def running(i: Instance) -> dict[str, Any] | None:
                return {"state": "running"} if i.wanted == "running" else None
            instance = await self._store.modify(Instance, instance.id, running)
            LOG.info("%s is %s", instance.id, instance.state)
        if instance.wanted == "running" and instance.reboots_done < instance.reboots_wanted:
            await self._reboot(instance)

    async def _launch(self, instance: Instance) -> bool:
        """Have the guest run; False when meanwhile it is not wanted any more, or its images are still on their way."""
        LOG.info("launching %s", instance.id)
        failpoint.hit("compute.launch.begin")
        network = await self._store.get(Network, instance.network_id)
        if network is None:
            raise exception.NovaError(f"the network {instance.network_id} is not there")
        await wait(self._bus.call(f"network.{network.host}", "set_up_network", timeout=60, network_id=network.id))
        failpoint.hit("compute.launch.network_ready")
        paths = await self._deliveries.paths(instance)
        if paths is None:
            return False
        failpoint.hit("compute.launch.images_ready")
        now = await self._store.get(Instance, instance.id)  # fetching may have taken long
        if now is None or now.wanted != "running":
            self._converger.wake(instance.id)
            return False
        os.makedirs(self._path(instance.id), mode=0o700, exist_ok=True)
        await self._driver.create_disk(self._path(instance.id, "disk"), paths["machine"], instance.disk_gb * GIB,
                                       instance.image_format, injection.files(instance, network))
        failpoint.hit("compute.launch.disk_ready")
        await self._driver.spawn(Guest(
            instance_id=instance.id, uuid=instance.uuid, memory_mb=instance.memory_mb, vcpus=instance.vcpus,
            mac=instance.mac, bridge=network.bridge, disk_path=self._path(instance.id, "disk"),
            console_path=self._path(instance.id, "console.log"), kernel_path=paths.get("kernel"),
            ramdisk_path=paths.get("ramdisk"), kernel_args="", hostname=instance.hostname,
            base_path=paths["machine"], base_format=instance.image_format))
        failpoint.hit("compute.launch.spawned")
        return True

    async def _give_up(self, instance: Instance, reason: str) -> None:
        LOG.error("%s cannot be launched: %s", instance.id, reason)

        def terminate(i: Instance) -> dict[str, Any] | None:
            if i.wanted == "terminated":
                return None
            return {"wanted": "terminated", "state": "shutting-down", "state_reason_code": "Server.InternalError",
                    "state_reason": f"Server.InternalError: {reason}", "transition_reason": "Server.InternalError"}
        await self._terminate(await self._store.modify(Instance, instance.id, terminate))

    async def _reboot(self, instance: Instance) -> None:
        wanted = instance.reboots_wanted
        await self._driver.reboot(instance.id)
        await self._store.modify(Instance, instance.id, lambda i: {"reboots_done": max(wanted, i.reboots_done)})
        LOG.info("%s is rebooted", instance.id)

    async def _terminate(self, instance: Instance) -> None:
        LOG.info("terminating %s", instance.id)
        failpoint.hit("compute.terminate.begin")
        await self._remove(instance.id)
        network = await self._store.get(Network, instance.network_id)
        user_data = await self._store.get(UserData, instance.id)
        tx = self._store.transaction()
        models.release(tx, instance, user_data, terminated_at=time.time())
        await tx.commit()
        failpoint.hit("compute.terminate.recorded")
        if network is not None:
            self._bus.cast(f"network.{network.host}", "look_at_network", bridge=network.bridge)
        LOG.info("%s is terminated", instance.id)

    async def _remove(self, instance_id: str) -> None:
        await self._deliveries.forget(instance_id)
        await self._driver.destroy(instance_id)
        failpoint.hit("compute.terminate.destroyed")
        if os.path.exists(self._path(instance_id)):
            await wait(in_thread(shutil.rmtree, self._path(instance_id)))
        failpoint.hit("compute.terminate.files_removed")

    async def _expire(self, instance: Instance) -> None:
        if self._is_expired(instance):
            await self._store.delete(instance)
        elif os.path.exists(self._path(instance.id)) or await self._driver.guest_state(instance.id) is not None:
            await self._remove(instance.id)

    @staticmethod
    def _is_expired(instance: Instance) -> bool:
        return time.time() > instance.terminated_at + FLAGS.terminated_visible
