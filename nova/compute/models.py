"""Instances: what is wanted of each, and what was last seen of it."""

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nova.auth import quota
from nova.compute.types import InstanceType
from nova.datastore import PREFIX, Record, Store, Transaction, record
from nova.network.models import addresses_of

#: EC2's codes of the instance states (API reference, InstanceState)
STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


@record("instance", indexes=("project_id", "host", "private_ip", "reservation_id", "network_id"))
@dataclass(frozen=True)
class Instance(Record):
    """One instance.

    `wanted` (``running`` or ``terminated``) is what its owner asked for and `state` (a name of EC2's) what its host
    last saw; the host converges the one to the other.  `images` has the SHA-256 of what it boots by role (machine,
    kernel, ramdisk), `image_format` the machine image's format (raw or qcow2).  `reboots_wanted` counts the reboots
    asked for, `reboots_done` those done.  One that is `locked` is neither rebooted nor terminated for its project.
    Times are seconds since the epoch.
    """

    project_id: str
    user_id: str
    reservation_id: str
    launch_index: int
    image_id: str
    instance_type: str
    vcpus: int
    memory_mb: int
    disk_gb: int
    hostname: str
    uuid: str
    mac: str
    private_ip: str
    network_id: str
    host: str
    zone: str
    launch_time: float
    images: dict[str, str] = field(default_factory=dict)
    image_format: str = "raw"
    kernel_id: str = ""
    ramdisk_id: str = ""
    architecture: str = "x86_64"
    key_name: str = ""
    key_data: str = ""
    security_groups: list[str] = field(default_factory=list)
    shutdown_behavior: str = "stop"
    tags: dict[str, str] = field(default_factory=dict)
    client_token: str = ""
    wanted: str = "running"
    state: str = "pending"
    state_reason_code: str = ""
    state_reason: str = ""
    transition_reason: str = ""
    reboots_wanted: int = 0
    reboots_done: int = 0
    terminated_at: float = 0.0
    locked: bool = False

    @property
    def image_ids(self) -> dict[str, str]:
        """The images it boots, by role."""
        return {role: id for role, id in (("machine", self.image_id), ("kernel", self.kernel_id),
                                          ("ramdisk", self.ramdisk_id)) if id}


@record("capture", indexes=("host", "instance_id"))
@dataclass(frozen=True)
class Capture(Record):
    """Says that an image is to be made of an instance's disk by the instance's host; its id is the image's.

    With `reboot` the guest is shut down for it, and then runs on.  `failures` counts how often it was tried in vain.
    """

    instance_id: str
    host: str
    reboot: bool = True
    failures: int = 0


@record("user_data", listed=False)
@dataclass(frozen=True)
class UserData(Record):
    """The user data of an instance, base64; a record of its own, since it is large and seldom read."""

    data: str


def new_uuid() -> str:
    """A random UUID that begins with ``ec2``, by which cloud-init knows the platform."""
    return "ec2" + str(uuid.uuid4())[3:]


def mac_for(instance_id: str) -> str:
    """The MAC address of an instance's first interface: locally administered, unique because the id is."""
    digits = instance_id.removeprefix("i-")
    return "02:00:" + ":".join(digits[n:n + 2] for n in range(0, 8, 2))


def claims_key(host: str) -> str:
    """The hash of what the instances of a host have claimed."""
    return f"claims:{host}"


def claim(tx: Transaction, host: str, size: InstanceType, limits: dict[str, int]) -> None:
    """Claim a host's capacity for one instance; the commit raises Exhausted where there is too little."""
    tx.add(claims_key(host), "memory_mb", size.memory_mb, limits["memory_mb"])
    tx.add(claims_key(host), "vcpus", size.vcpus, limits["vcpus"])


async def claims(store: Store, hosts: Sequence[str]) -> dict[str, dict[str, int]]:
    """What the instances of each of these hosts have claimed (memory_mb and vcpus), in one round trip."""
    pipeline = store.redis.pipeline(transaction=False)
    for host in hosts:
        pipeline.hgetall(PREFIX + claims_key(host))
    rows = await store.attempt(pipeline.execute()) if hosts else []
    return {host: {k.decode(): int(v) for k, v in row.items()} for host, row in zip(hosts, rows, strict=True)}


def counts(instance_type: str, number: int = 1) -> dict[str, int]:
    """What instances of a type count for among the limits of their user and project."""
    return {quota.INSTANCES: number, quota.of_type(instance_type): number}


async def holdings(store: Store) -> AsyncIterator[quota.Holding]:
    """The instances that count."""
    for instance in await store.all(Instance):
        if instance.state != "terminated":
            yield quota.Holding(instance.project_id, instance.user_id, counts(instance.instance_type))


def release(tx: Transaction, instance: Instance, user_data: UserData | None, **changes: Any) -> Instance:
    """Record that nothing is left of an instance, and give back what it had: address, claims, limits, user data."""
    quota.give(tx, instance.project_id, instance.user_id, counts(instance.instance_type))
    tx.give(addresses_of(instance.network_id), instance.id, instance.private_ip)
    tx.add(claims_key(instance.host), "memory_mb", -instance.memory_mb)
    tx.add(claims_key(instance.host), "vcpus", -instance.vcpus)
    if user_data is not None:
        tx.delete(user_data)
    return tx.update(instance, state="terminated", private_ip="", **changes)
