"""Images made from what is there already: copies of images, and images of instances' disks.

Both are recorded as pending and answered at once.  A copy is made by its object store host; an image of an instance by
the instance's compute host (:mod:`nova.compute.capture`), which finds the :class:`Capture` that is recorded with it.
"""

import time
from typing import Any

from nova import exception, failpoint
from nova.cloud import image_access, image_records, image_view, tags
from nova.cloud.action import Controller, action
from nova.cloud.instances import named
from nova.compute.models import Capture, Instance
from nova.context import Context
from nova.datastore import Store, Transaction
from nova.flags import FLAGS
from nova.image.models import Image
from nova.rpc import Bus

failpoint.declare("cloud.copy_image.recorded", "the copy is recorded, and its host has not been told")
failpoint.declare("cloud.create_image.recorded", "the image is recorded, and the instance's host has not been told")

_COPY_NOT_OFFERED = ("Encrypted", "KmsKeyId", "DestinationOutpostArn", "DestinationAvailabilityZone",
                     "DestinationAvailabilityZoneId", "SnapshotCopyCompletionDurationMinutes")
_CREATE_NOT_OFFERED = ("SnapshotLocation", "BootModeOverride")


class ImageCopies(Controller):
    """Copies of images, and images of instances."""

    store: Store
    bus: Bus

    async def replay_copy(self, context: Context, result_ids: list[str]) -> dict[str, Any]:
        """The answer to CopyImage again."""
        return {"ImageId": result_ids[0]}

    @action("CopyImage", replay=replay_copy)
    async def copy_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Make an image of the caller's own, shared with nobody, from one that the caller may use."""
        _refuse(params, _COPY_NOT_OFFERED, "CopyImage")
        if params["SourceRegion"] != FLAGS.region:
            raise exception.InvalidParameterValue(
                f"Value ({params['SourceRegion'][:64]}) for parameter SourceRegion is invalid: this cloud has the "
                f"region {FLAGS.region} only.")
        name = image_records.checked_name(params["Name"])
        source = await image_access.usable(self.store, context, params["SourceImageId"])
        if source.kind != "machine":
            raise exception.UnsupportedOperation("Kernels and ramdisks are not copied: all may use them as they are.")
        if source.state != "available":
            raise exception.InvalidAMIIDUnavailable(id=source.id, state=source.state)
        own = source.project_id == context.project_id
        kept = source.tags if own and params.get("CopyImageTags", False) else {}
        image = Image(
            image_records.new_id("machine"), project_id=context.project_id, user_id=context.user_id, name=name,
            location=f"{context.project_id}/{name}", kind="machine", source=f"image:{source.id}",
            host=await image_records.store_host(self.store), created=time.time(),
            description=image_records.checked_description(params.get("Description", source.description)),
            architecture=source.architecture, kernel_id=source.kernel_id, ramdisk_id=source.ramdisk_id,
            product_codes=source.product_codes, block_devices=source.block_devices,
            tags=tags.merged(kept, tags.at_creation(params, "image")))

        def also(tx: Transaction) -> None:
            tx.require_exists(Image, source.id)
            context.client_token.spend(tx, [image.id])
        try:
            await image_records.create(self.store, context, image, "image.copy", also=also)
        except exception.NotFound:
            raise exception.InvalidAMIIDNotFound(id=source.id) from None
        failpoint.hit("cloud.copy_image.recorded")
        self.bus.cast(f"objectstore.{image.host}", "look_at_image", image_id=image.id)
        return {"ImageId": image.id}

    @action("CreateImage")
    async def create_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have an image of an instance's disk, as it is when the guest has shut down, or now with NoReboot."""
        _refuse(params, _CREATE_NOT_OFFERED, "CreateImage")
        image_records.check_mappings(params.get("BlockDeviceMappings", []), image_view.ROOT_DEVICE)
        name = image_records.checked_name(params["Name"])
        [instance] = await named(self.store, context, "CreateImage", [params["InstanceId"]])
        if instance.wanted == "terminated" or instance.state not in ("running", "stopped"):
            raise exception.IncorrectInstanceState(
                instance_id=instance.id, verb="made an image of", state=instance.state)
        image = Image(
            image_records.new_id("machine"), project_id=context.project_id, user_id=context.user_id, name=name,
            location=f"{context.project_id}/{name}", kind="machine", source=f"instance:{instance.id}",
            host=await image_records.store_host(self.store), created=time.time(),
            description=image_records.checked_description(params.get("Description", "")),
            architecture=instance.architecture, kernel_id=instance.kernel_id, ramdisk_id=instance.ramdisk_id,
            tags=tags.at_creation(params, "image"))

        def also(tx: Transaction) -> None:
            tx.require_exists(Instance, instance.id)
            tx.create(Capture(image.id, instance_id=instance.id, host=instance.host,
                              reboot=not params.get("NoReboot", False)))
        await image_records.create(self.store, context, image, "image.create", also=also)
        failpoint.hit("cloud.create_image.recorded")
        self.bus.cast(f"compute.{instance.host}", "look_at_capture", image_id=image.id)
        return {"ImageId": image.id}


def _refuse(params: dict[str, Any], names: tuple[str, ...], action_name: str) -> None:
    for name in names:
        if params.get(name):
            raise exception.UnsupportedOperation(f"{action_name} with {name} is not offered by this cloud.")
