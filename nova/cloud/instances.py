"""Instances: running, listing, rebooting and terminating them, and reading their consoles."""

import base64
import dataclasses
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from nova import exception, failpoint, service
from nova.auth import quota, rbac
from nova.auth.models import KeyPair
from nova.cloud import image_access, instance_view, locks, placement, regions, tags
from nova.cloud.action import Controller, action, listing
from nova.compute import models, types
from nova.compute.hosts import enabled
from nova.compute.models import Instance, UserData
from nova.compute.types import InstanceType
from nova.context import Context
from nova.datastore import Store
from nova.flags import FLAGS, DEFINE_integer
from nova.image.models import Image
from nova.network.models import ALLOTMENTS, Network, network_of
from nova.process import wait
from nova.rpc import Bus
from nova.service import Host

DEFINE_integer("max_instances_per_request", 100, "instances that one RunInstances may ask for", lower_bound=1)

failpoint.declare("cloud.run.recorded", "the instances are recorded, and their hosts have not been told")
failpoint.declare("cloud.terminate.recorded", "the instances are to be terminated, and their hosts have not been told")

#: EC2's limit of user data before it is encoded (User Guide, "Run commands at launch")
MAX_USER_DATA = 16384

#: parameters of RunInstances that this cloud has nothing for; what cannot be had is refused, not ignored
_NOT_OFFERED = ("BlockDeviceMappings", "NetworkInterfaces", "IamInstanceProfile", "SubnetId", "LaunchTemplate",
                "InstanceMarketOptions", "ElasticGpuSpecification", "ElasticInferenceAccelerators",
                "CapacityReservationSpecification", "LicenseSpecifications", "PrivateIpAddress", "Ipv6Addresses",
                "Ipv6AddressCount", "HibernationOptions", "EnclaveOptions", "AdditionalInfo", "CpuOptions",
                "SecurityGroupIds", "DisableApiTermination", "DisableApiStop", "EbsOptimized")
_INSTANCE_ID = re.compile(r"i-[0-9a-f]{8,17}")
_TRIES = 20


class Instances(Controller):
    """The instances of a project."""

    store: Store
    bus: Bus

    async def replay_run(self, context: Context, result_ids: list[str]) -> dict[str, Any]:
        """The answer to RunInstances again, from the reservation that it made."""
        [reservation_id] = result_ids
        found = await self.store.find(Instance, reservation_id=reservation_id)
        return instance_view.reservation([instance_view.instance(i) for i in found])

    @action("RunInstances", replay=replay_run)
    async def run_instances(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have MinCount to MaxCount instances: recorded together with all that they take, or not at all."""
        least, most = _counts(params)
        for name in _NOT_OFFERED:
            if params.get(name):
                raise exception.UnsupportedOperation(f"RunInstances with {name} is not offered by this cloud.")
        size = _size(params.get("InstanceType", types.DEFAULT))
        template = await self._template(context, params, size)
        user_data = _user_data(params.get("UserData", ""))
        zone = params.get("Placement", {}).get("AvailabilityZone", "")
        if zone and zone not in await regions.zones(self.store):
            raise exception.InvalidZoneNotFound(id=zone)
        instances = await self._place(context, template, user_data, size, zone, least, most)
        failpoint.hit("cloud.run.recorded")
        for instance in instances:
            self.bus.cast(f"compute.{instance.host}", "look_at_instance", instance_id=instance.id)
        return instance_view.reservation([instance_view.instance(i) for i in instances])

    @listing("DescribeInstances", result="Reservations", id_member="InstanceId",
             ids_param="InstanceIds", not_found=exception.InvalidInstanceIDNotFound,
             filters=instance_view.FILTERS, group=instance_view.group)
    async def describe_instances(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The project's instances."""
        return [instance_view.instance(i)
                for i in await self._visible(context, "DescribeInstances", params.get("InstanceIds", []))]

    @listing("DescribeInstanceStatus", result="InstanceStatuses", id_member="InstanceId",
             ids_param="InstanceIds", not_found=exception.InvalidInstanceIDNotFound,
             filters={"instance-state-name": "InstanceState.Name", "instance-state-code": "InstanceState.Code",
                      "instance-status.status": "InstanceStatus.Status", "system-status.status": "SystemStatus.Status",
                      "instance-status.reachability": "InstanceStatus.Details.Status",
                      "system-status.reachability": "SystemStatus.Details.Status"})
    async def describe_instance_status(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The state of the project's running instances, or of all with IncludeAllInstances."""
        asked = params.get("InstanceIds", [])
        alive = {host.host for host in await service.hosts(self.store, "compute")}
        everything = params.get("IncludeAllInstances", False)
        return [instance_view.status(i, i.host in alive)
                for i in await self._visible(context, "DescribeInstanceStatus", asked)
                if everything or i.state == "running"]

    @action("GetConsoleOutput")
    async def get_console_output(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """The end of what an instance wrote to its serial line."""
        [instance] = await named(self.store, context, "GetConsoleOutput", [params["InstanceId"]])
        answer = {"InstanceId": instance.id, "Timestamp": instance.launch_time, "Output": ""}
        if instance.state not in ("running", "pending"):
            return answer
        try:
            console = await wait(self.bus.call(f"compute.{instance.host}", "console_output", instance_id=instance.id))
        except exception.RpcTimeout:
            raise exception.Unavailable(f"The host of {instance.id} does not answer; try again shortly.") from None
        # EC2 gives the text encoded in base64 in a member that the model declares a string
        answer["Output"] = base64.b64encode(console["output"].encode()).decode()
        answer["Timestamp"] = console["timestamp"]
        return answer

    @action("RebootInstances")
    async def reboot_instances(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Ask for a restart of running instances."""
        found = await named(self.store, context, "RebootInstances", params["InstanceIds"])
        for instance in found:
            locks.check(instance)
            if instance.wanted != "running" or instance.state not in ("running", "pending"):
                raise exception.IncorrectInstanceState(instance_id=instance.id, verb="rebooted", state=instance.state)

        def reboot(now: Instance) -> dict[str, Any]:
            locks.check(now)
            return {"reboots_wanted": now.reboots_wanted + 1}
        for instance in found:
            await self.store.modify(Instance, instance.id, reboot)
            self.bus.cast(f"compute.{instance.host}", "look_at_instance", instance_id=instance.id)
        return {}

    @action("TerminateInstances")
    async def terminate_instances(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have instances gone; one that is already is no error."""
        found = await named(self.store, context, "TerminateInstances", params["InstanceIds"])
        for instance in found:
            locks.check(instance)
        changes = []
        for instance in found:
            before = instance.state

            def terminate(now: Instance) -> dict[str, Any] | None:
                nonlocal before
                before = now.state
                if now.wanted == "terminated":
                    return None
                locks.check(now)
                stamp = time.strftime("%Y-%m-%d %H:%M:%S GMT", time.gmtime())
                return {"wanted": "terminated", "state": "shutting-down",
                        "state_reason_code": "Client.UserInitiatedShutdown",
                        "state_reason": "Client.UserInitiatedShutdown: User initiated shutdown",
                        "transition_reason": f"User initiated ({stamp})"}
            after = await self.store.modify(Instance, instance.id, terminate)
            changes.append(instance_view.state_change(after, before))
        failpoint.hit("cloud.terminate.recorded")
        for instance in found:
            self.bus.cast(f"compute.{instance.host}", "look_at_instance", instance_id=instance.id)
        return {"TerminatingInstances": changes}

    async def _visible(self, context: Context, action_name: str, asked: list[str]) -> list[Instance]:
        """The instances asked for, or all, as far as the caller may have the action's answer about them."""
        if asked:
            _check_ids(asked)
            found = await self.store.get_many(Instance, asked)
        elif rbac.sees_others(context, action_name):
            found = await self.store.all(Instance)
        else:
            found = await self.store.find(Instance, project_id=context.project_id)
        return [i for i in found if rbac.allows(context, action_name, i.user_id, i.project_id)]

    async def _template(self, context: Context, params: dict[str, Any], size: InstanceType) -> Instance:
        """What all instances of the request have in common, as an instance without a place."""
        if not params.get("ImageId"):
            raise exception.MissingParameter(name="ImageId")
        images = await self._images(context, params)
        key_name, key = params.get("KeyName", ""), None
        if key_name:
            key = await self.store.get(KeyPair, f"{context.project_id}:{key_name}")
            if key is None:
                raise exception.InvalidKeyPairNotFound(id=key_name)
        groups = list(dict.fromkeys(params.get("SecurityGroups", []))) or ["default"]
        for group in groups:
            if group != "default":
                raise exception.InvalidGroupNotFound(id=group)
        machine, kernel, ramdisk = images["machine"], images.get("kernel"), images.get("ramdisk")
        return Instance(
            "", project_id=context.project_id, user_id=context.user_id, reservation_id="", launch_index=0,
            image_id=machine.id, kernel_id=kernel.id if kernel else "", ramdisk_id=ramdisk.id if ramdisk else "",
            images={role: image.sha256 for role, image in images.items()}, image_format=machine.disk_format,
            architecture=machine.architecture,
            instance_type=size.name, vcpus=size.vcpus, memory_mb=size.memory_mb, disk_gb=size.disk_gb, hostname="",
            uuid="", mac="", private_ip="", network_id=context.project_id, host="", zone="", launch_time=0.0,
            key_name=key_name, key_data=f"{key.public_key} {key.name}" if key else "", security_groups=groups,
            shutdown_behavior=params.get("InstanceInitiatedShutdownBehavior", "stop"),
            tags=tags.at_creation(params, "instance"), client_token=params.get("ClientToken", ""))

    async def _images(self, context: Context, params: dict[str, Any]) -> dict[str, Image]:
        machine = await image_access.usable(self.store, context, params["ImageId"])
        if machine.kind != "machine":
            raise exception.InvalidAMIIDMalformed(id=machine.id)
        images = {"machine": machine}
        for role, asked, own in (("kernel", params.get("KernelId"), machine.kernel_id),
                                 ("ramdisk", params.get("RamdiskId"), machine.ramdisk_id)):
            if id := asked or own:
                # whoever may use a machine image may use what it needs
                images[role] = (await image_access.find(self.store, id) if id == own
                                else await image_access.usable(self.store, context, id))
                if images[role].kind != role:
                    raise exception.InvalidAMIIDNotFound(id=id)
        for image in images.values():
            if image.state != "available":
                raise exception.InvalidAMIIDUnavailable(id=image.id, state=image.state)
        return images

    async def _place(self, context: Context, template: Instance, user_data: str, size: InstanceType, zone: str,
                     least: int, most: int) -> list[Instance]:
        """Choose hosts and record the instances; tried again when others took what was chosen, or what limits allow."""
        for _ in range(_TRIES):
            allowance = await quota.allowance(self.store, context.project_id, context.user_id)
            allowance.check(models.counts(size.name, least))
            room = allowance.room(*models.counts(size.name))
            hosts = await enabled(self.store, await service.hosts(self.store, "compute"))
            claims = await models.claims(self.store, [host.host for host in hosts])
            chosen = placement.choose(hosts, claims, size, zone, least, most if room is None else min(most, room))
            network = await self._network(context)
            try:
                return await self._record(context, template, user_data, size, chosen, network, allowance)
            except exception.Exhausted as error:
                if error.name == network.addresses.name:
                    most = await self._free_addresses(network, least, most)
            except (exception.NotFound, exception.Conflict):
                continue  # the network was given back just now, for want of instances
            except exception.Exists as error:
                if error.kind != "instance":
                    raise
        raise exception.InsufficientInstanceCapacity("Too many requests at once for what is left; try again shortly.")

    async def _network(self, context: Context) -> Network:
        hosts = await service.hosts(self.store, "network")
        if not hosts:
            raise exception.Unavailable("No network host is alive; try again shortly.")
        try:
            return await network_of(self.store, context.project_id, secrets.choice(hosts).host)
        except exception.Exhausted as error:
            if error.name != ALLOTMENTS.name:
                raise
            raise exception.InsufficientFreeAddressesInSubnet(
                "Every network of --private_range belongs to a project already; the operator has to enlarge it."
            ) from None

    async def _free_addresses(self, network: Network, least: int, most: int) -> int:
        free: int = await self.store.attempt(self.store.redis.llen(network.addresses.key))
        if free < least:
            raise exception.InsufficientFreeAddressesInSubnet()
        return min(free, most)

    async def _record(self, context: Context, template: Instance, user_data: str, size: InstanceType,
                      chosen: list[Host], network: Network, allowance: quota.Allowance) -> list[Instance]:
        reservation_id, now = f"r-{secrets.token_hex(4)}", time.time()
        tx = self.store.transaction()
        tx.expect(network)  # one that was given back and made again may have no addresses yet
        instances = []
        for index, host in enumerate(chosen):
            id = f"i-{secrets.token_hex(4)}"
            models.claim(tx, host.host, size, host.facts)
            instance = dataclasses.replace(
                template, id=id, reservation_id=reservation_id, launch_index=index, uuid=models.new_uuid(),
                mac=models.mac_for(id), hostname=id, host=host.host, zone=host.zone, launch_time=now,
                private_ip=tx.take(network.addresses, id))
            tx.create(instance)
            if user_data:
                tx.create(UserData(id, data=user_data))
            instances.append(instance)
        context.client_token.spend(tx, [reservation_id])
        allowance.claim(tx, models.counts(size.name, len(instances)))
        addresses = await tx.commit()
        return [dataclasses.replace(i, private_ip=ip) for i, ip in zip(instances, addresses, strict=True)]


async def named(store: Store, context: Context, action_name: str, ids: list[str]) -> list[Instance]:
    """The instances that an action is to be done on, all of them or none.

    :raises exception.InvalidInstanceIDMalformed, exception.InvalidInstanceIDNotFound, exception.UnauthorizedOperation:
    """
    unique = list(dict.fromkeys(ids))
    _check_ids(unique)
    found = [i for i in await store.get_many(Instance, unique)
             if i.project_id == context.project_id or rbac.sees_others(context, action_name)]
    missing = exception.InvalidInstanceIDNotFound(
        id=", ".join(id for id in unique if id not in {i.id for i in found}))
    if len(found) < len(unique):
        raise missing
    for instance in found:
        rbac.check(context, action_name, instance.user_id, instance.project_id, missing)
    return found


def _counts(params: dict[str, Any]) -> tuple[int, int]:
    least, most = params["MinCount"], params["MaxCount"]
    if least < 1 or most < least:
        raise exception.InvalidParameterValue(
            f"Value ({least}, {most}) for parameters MinCount, MaxCount is invalid: 1 <= MinCount <= MaxCount")
    if most > FLAGS.max_instances_per_request:
        raise exception.InstanceLimitExceeded(
            f"One request may ask for at most {FLAGS.max_instances_per_request} instances.")
    return least, most


def _size(name: str) -> InstanceType:
    if name not in types.TYPES:
        raise exception.InvalidParameterValue(
            f"Invalid value '{name[:64]}' for InstanceType. It is one of {', '.join(types.TYPES)}.")
    return types.TYPES[name]


def _user_data(text: str) -> str:
    """Check user data: base64 of at most 16 KiB."""
    if not text:
        return ""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise exception.InvalidUserDataMalformed(reason="it is not encoded in base64") from None
    if len(data) > MAX_USER_DATA:
        raise exception.InvalidParameterValue(f"User data is limited to {MAX_USER_DATA} bytes")
    return base64.b64encode(data).decode()


def _check_ids(ids: Iterable[str]) -> None:
    for id in ids:
        if not _INSTANCE_ID.fullmatch(id):
            raise exception.InvalidInstanceIDMalformed(id=id[:64])
