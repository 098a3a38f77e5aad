"""Instances as EC2 shows them (shapes Instance, Reservation, InstanceStatus of the model)."""

from typing import Any

from nova.cloud import tags
from nova.cloud.image_view import ROOT_DEVICE
from nova.compute.models import STATE_CODES, Instance
from nova.flags import FLAGS
from nova.network import dhcp  # noqa: F401  (defines --dhcp_domain)

#: filters that are not called after a member of the item
FILTERS = {
    "availability-zone": "Placement.AvailabilityZone", "instance-state-name": "State.Name",
    "instance-state-code": "State.Code", "group-name": "SecurityGroups.GroupName",
    "instance.group-name": "SecurityGroups.GroupName", "instance.group-id": "SecurityGroups.GroupId",
    "group-id": "SecurityGroups.GroupId", "reservation-id": "_ReservationId", "owner-id": "_OwnerId",
    "requester-id": "_RequesterId", "launch-index": "AmiLaunchIndex", "dns-name": "PublicDnsName",
    "ip-address": "PublicIpAddress", "reason": "StateTransitionReason", "state-reason-code": "StateReason.Code",
    "monitoring-state": "Monitoring.State", "tenancy": "Placement.Tenancy",
    "placement-group-name": "Placement.GroupName",
}


def instance(i: Instance) -> dict[str, Any]:
    """One instance; members that begin with `_` belong to its reservation."""
    here = i.state != "terminated"
    view: dict[str, Any] = {
        "_ReservationId": i.reservation_id, "_OwnerId": i.project_id,
        "InstanceId": i.id, "ImageId": i.image_id, "State": state(i.state),
        "PrivateDnsName": f"{i.hostname}.{FLAGS.dhcp_domain}" if here else "",
        "PublicDnsName": "", "StateTransitionReason": i.transition_reason, "AmiLaunchIndex": i.launch_index,
        "ProductCodes": [], "InstanceType": i.instance_type, "LaunchTime": i.launch_time,
        "Placement": {"AvailabilityZone": i.zone, "GroupName": "", "Tenancy": "default"},
        "Monitoring": {"State": "disabled"}, "Architecture": i.architecture, "RootDeviceType": "instance-store",
        "RootDeviceName": ROOT_DEVICE, "BlockDeviceMappings": [], "VirtualizationType": "hvm",
        "ClientToken": i.client_token, "EbsOptimized": False, "NetworkInterfaces": [], "Tags": tags.view(i.tags),
        "SecurityGroups": [{"GroupName": name} for name in i.security_groups], "SourceDestCheck": True,
        "MetadataOptions": {"State": "applied", "HttpTokens": "optional", "HttpPutResponseHopLimit": 1,
                            "HttpEndpoint": "enabled"},
        "CpuOptions": {"CoreCount": i.vcpus, "ThreadsPerCore": 1}}
    if i.private_ip:
        view["PrivateIpAddress"] = i.private_ip
    for member, value in (("KernelId", i.kernel_id), ("RamdiskId", i.ramdisk_id), ("KeyName", i.key_name)):
        if value:
            view[member] = value
    if i.state_reason_code:
        view["StateReason"] = {"Code": i.state_reason_code, "Message": i.state_reason}
    return view


def group(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instances as reservations, in the order of their first instances."""
    together: dict[str, list[dict[str, Any]]] = {}
    for view in views:
        together.setdefault(view["_ReservationId"], []).append(view)
    return [reservation(members) for members in together.values()]


def reservation(views: list[dict[str, Any]]) -> dict[str, Any]:
    """One reservation of these instances; there is at least one, unless all were forgotten."""
    views = sorted(views, key=lambda view: view["AmiLaunchIndex"])
    first = views[0] if views else {"_ReservationId": "", "_OwnerId": "", "SecurityGroups": []}
    return {"ReservationId": first["_ReservationId"], "OwnerId": first["_OwnerId"], "Groups": first["SecurityGroups"],
            "Instances": views}


def state(name: str) -> dict[str, Any]:
    """A state with its code."""
    return {"Code": STATE_CODES[name], "Name": name}


def state_change(now: Instance, before: str) -> dict[str, Any]:
    """The shape InstanceStateChange."""
    return {"InstanceId": now.id, "CurrentState": state(now.state), "PreviousState": state(before)}


def status(i: Instance, host_alive: bool) -> dict[str, Any]:
    """The shape InstanceStatus: the system's status is that of the host, the instance's that of the guest on it."""
    def summary(word: str, reachable: str) -> dict[str, Any]:
        return {"Status": word, "Details": [{"Name": "reachability", "Status": reachable}]}
    if i.state != "running":
        system = guest = {"Status": "not-applicable"}
    elif host_alive:
        system = guest = summary("ok", "passed")
    else:
        system, guest = summary("impaired", "failed"), summary("insufficient-data", "insufficient-data")
    return {"InstanceId": i.id, "AvailabilityZone": i.zone, "InstanceState": state(i.state), "Events": [],
            "SystemStatus": system, "InstanceStatus": guest}
