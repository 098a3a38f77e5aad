"""Images as EC2 shows them (shape Image of the model)."""

import time
from typing import Any

from nova.cloud import tags
from nova.flags import FLAGS
from nova.image.models import Image

ROOT_DEVICE = "/dev/vda"

#: filters that are not called after a member of the item.  Of what no image of this cloud has (volumes, say), the
#: filters are there and match nothing
FILTERS = {
    "is-public": "Public", "manifest-location": "ImageLocation", "owner-alias": "ImageOwnerAlias",
    "state-reason-code": "StateReason.Code", "state-reason-message": "StateReason.Message",
    "product-code": "ProductCodes.ProductCodeId", "product-code.type": "ProductCodes.ProductCodeType",
    "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
    "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
    "block-device-mapping.snapshot-id": "BlockDeviceMappings.Ebs.SnapshotId",
    "block-device-mapping.volume-size": "BlockDeviceMappings.Ebs.VolumeSize",
    "block-device-mapping.volume-type": "BlockDeviceMappings.Ebs.VolumeType",
    "block-device-mapping.encrypted": "BlockDeviceMappings.Ebs.Encrypted",
}


def image(i: Image, is_own: bool) -> dict[str, Any]:
    """One image.

    :param is_own: it is shown to its own project, which also sees what it was made from
    """
    view: dict[str, Any] = {
        "ImageId": i.id, "ImageLocation": i.location, "ImageType": i.kind, "Name": i.name,
        "Description": i.description, "State": i.state, "OwnerId": i.project_id, "Public": i.is_public,
        "Architecture": i.architecture, "CreationDate": iso(i.created), "VirtualizationType": "hvm",
        "Hypervisor": "kvm", "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "EnaSupport": False,
        "RootDeviceType": "instance-store", "BlockDeviceMappings": block_devices(i), "ProductCodes": product_codes(i),
        "Tags": tags.view(i.tags)}
    if i.kind == "machine":
        view["RootDeviceName"] = ROOT_DEVICE
        view["BootMode"] = "legacy-bios"
    if i.kernel_id:
        view["KernelId"] = i.kernel_id
    if i.ramdisk_id:
        view["RamdiskId"] = i.ramdisk_id
    if i.state == "failed":
        view["StateReason"] = {"Code": i.state_code or "Client.InvalidManifest", "Message": i.state_reason}
    if i.deprecated_at:
        view["DeprecationTime"] = iso(i.deprecated_at)
    if is_own:
        view |= _origin(i)
    return view


def block_devices(i: Image) -> list[dict[str, str]]:
    """What an image wants to find where; the root disk is told as RootDeviceName."""
    return [{"VirtualName": virtual, "DeviceName": device} for virtual, device in sorted(i.block_devices.items())
            if virtual not in ("ami", "root")]


def product_codes(i: Image) -> list[dict[str, str]]:
    """An image's product codes."""
    return [{"ProductCodeId": code, "ProductCodeType": "devpay"} for code in i.product_codes]


def iso(seconds: float) -> str:
    """A moment, in seconds since the epoch, as EC2 writes it where its type is a string."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _origin(i: Image) -> dict[str, Any]:
    kind, _, id = i.source.partition(":")
    if kind == "image":
        return {"SourceImageId": id, "SourceImageRegion": FLAGS.region}
    return {"SourceInstanceId": id} if kind == "instance" else {}
