"""Images: registering, listing and deregistering them."""

import contextlib
import logging
import time
from typing import Any

from nova import exception
from nova.auth import rbac
from nova.cloud import image_access, image_records, image_view, tags
from nova.cloud.action import Controller, action, listing
from nova.context import Context
from nova.datastore import Store
from nova.image import bundle
from nova.image.manager import MANIFEST_SUFFIX
from nova.image.models import Image
from nova.objectstore import objects
from nova.objectstore.access import decision, values
from nova.objectstore.driver import open_files
from nova.objectstore.models import Bucket, Object
from nova.objectstore.storage import read_small
from nova.process import in_thread, wait
from nova.rpc import Bus

LOG = logging.getLogger(__name__)

#: seconds that RegisterImage waits for the image to become available before it answers that it is pending
_INGEST_WAIT = 5.0

#: what a guest of this cloud can be made for: its processors run both
ARCHITECTURES = ("x86_64", "i386")

#: parameters of RegisterImage that this cloud has nothing for; what cannot be had is refused, not ignored
_NOT_OFFERED = ("UefiData", "TpmSupport", "ImdsSupport", "BillingProducts", "SriovNetSupport")


class Images(Controller):
    """The images that a project may use."""

    store: Store
    bus: Bus

    @action("RegisterImage")
    async def register_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Register an object of S3, or a bundle by its manifest.

        ``KernelId=true`` and ``RamdiskId=true`` register a kernel and a ramdisk, as in bundles; only a cloud
        administrator may.
        """
        _check_offered(params)
        location = params.get("ImageLocation", "").lstrip("/")
        if not location:
            raise exception.MissingParameter(name="ImageLocation")
        name, description = params.get("Name", ""), image_records.checked_description(params.get("Description", ""))
        if name:
            image_records.checked_name(name)
        source = await self._source(context, location)
        kernel, ramdisk = params.get("KernelId", ""), params.get("RamdiskId", "")
        kind = "kernel" if kernel == "true" else "ramdisk" if ramdisk == "true" else "machine"
        architecture, devices = params.get("Architecture", ""), _virtual_devices(params)
        product_codes: tuple[str, ...] = ()
        if location.endswith(MANIFEST_SUFFIX):  # what the request says wins
            manifest = await wait(in_thread(_read_manifest, source))
            if kind == "machine":
                kind = manifest.kind
            kernel, ramdisk = kernel or manifest.kernel_id, ramdisk or manifest.ramdisk_id
            architecture, devices = architecture or manifest.architecture, devices or manifest.block_devices
            product_codes = manifest.product_codes
            if architecture not in ARCHITECTURES:
                raise exception.InvalidManifest(reason=f"its architecture is {architecture[:64]}; images of this cloud "
                                                       f"are {' or '.join(ARCHITECTURES)}")
        if kind != "machine":
            kernel = ramdisk = ""
            rbac.check_permitted(context, "RegisterImage:kernel")
        for id, wanted in ((kernel, "kernel"), (ramdisk, "ramdisk")):
            if id and (await image_access.usable(self.store, context, id)).kind != wanted:
                raise exception.InvalidAMIIDNotFound(id=id)
        image = Image(
            image_records.new_id(kind), project_id=context.project_id, user_id=context.user_id, name=name or location,
            location=location, kind=kind, host=await image_records.store_host(self.store), created=time.time(),
            description=description, architecture=architecture or ARCHITECTURES[0], kernel_id=kernel,
            ramdisk_id=ramdisk, block_devices=devices, product_codes=list(product_codes),
            tags=tags.at_creation(params, "image"), is_public=kind != "machine")
        await image_records.create(self.store, context, image, "image.register", is_named=bool(name))
        await self._ingest(image)
        return {"ImageId": image.id}

    @listing("DescribeImages", result="Images", id_member="ImageId", ids_param="ImageIds",
             not_found=exception.InvalidAMIIDNotFound, filters=image_view.FILTERS, max_results=(1, 1000))
    async def describe_images(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The images that the caller may use, of the owners and for the users asked for."""
        asked = params.get("ImageIds", [])
        images = await image_access.visible(self.store, context, asked)
        if not asked:
            images = [i for i in images if _is_listed(i, context, params)]
        owners = params.get("Owners", [])
        if owners:
            wanted = {context.project_id if owner == "self" else owner for owner in owners}
            images = [i for i in images if i.project_id in wanted]
        users = params.get("ExecutableUsers", [])
        if users:
            images = [i for i in images if any(_is_executable_by(i, context, user) for user in users)]
        return [image_view.image(i, i.project_id == context.project_id) for i in images]

    @action("DeregisterImage")
    async def deregister_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Forget an image; instances of it run on, and copies of it stay."""
        image = await image_access.changeable(self.store, context, "DeregisterImage", params["ImageId"])
        await image_records.forget(self.store, self.bus, context, image)
        return {"Return": True}

    async def _source(self, context: Context, location: str) -> Any:
        bucket, _, key = location.partition("/")
        if not bucket or not key:
            raise exception.InvalidParameterValue(
                f"Value ({location}) for parameter ImageLocation is invalid: <bucket>/<key> is expected")
        try:
            source = await objects.open_object(self.store, bucket, key)
        except (exception.NoSuchBucket, exception.NoSuchKey):
            source = None
        missing = exception.InvalidManifest(f"HTTP 404 (Not Found) response for URL {location}: check your S3 path.")
        if source is None:
            raise missing
        rbac.check(context, "GetObject", source.user_id, source.project_id, missing)
        await self._check_not_denied(context, source, missing)
        return source

    async def _check_not_denied(self, context: Context, source: Object, missing: exception.NovaError) -> None:
        """Refuse what the policy of the object's bucket keeps the caller from reading."""
        bucket = await self.store.get(Bucket, source.bucket)
        if bucket is None:
            raise missing
        known = values.of_caller(context, context.remote_address, time.time())
        if not decision.decide(decision.Question(context, "GetObject", bucket, source.key, known), source):
            raise exception.UnauthorizedOperation()

    async def _ingest(self, image: Image) -> None:
        """Give the image a moment to become available, so that most are when the caller learns their id.

        What becomes of it, its record tells, be it that it failed.
        """
        try:
            await wait(self.bus.call(f"objectstore.{image.host}", "ingest_image", timeout=_INGEST_WAIT,
                                     image_id=image.id))
        except exception.RpcTimeout:
            LOG.info("image %s is still being made", image.id)


def _check_offered(params: dict[str, Any]) -> None:
    for name in _NOT_OFFERED:
        if params.get(name):
            raise exception.UnsupportedOperation(f"RegisterImage with {name} is not offered by this cloud.")
    image_records.check_mappings(params.get("BlockDeviceMappings", []), params.get("RootDeviceName", ""))
    for name, offered in (("Architecture", ARCHITECTURES), ("VirtualizationType", ("hvm",)),
                          ("BootMode", ("legacy-bios",))):
        if params.get(name, offered[0]) not in offered:
            raise exception.InvalidParameterValue(
                f"Value ({params[name][:64]}) for parameter {name} is invalid: images of this cloud are "
                f"{' or '.join(offered)}.")


def _virtual_devices(params: dict[str, Any]) -> dict[str, str]:
    return {mapping["VirtualName"]: mapping["DeviceName"] for mapping in params.get("BlockDeviceMappings", [])
            if mapping.get("VirtualName") and mapping.get("DeviceName")}


def _read_manifest(source: Object) -> bundle.Manifest:
    with contextlib.closing(open_files()) as files:
        return bundle.read_manifest(read_small(files, source, bundle.MAX_MANIFEST))


def _is_listed(image: Image, context: Context, params: dict[str, Any]) -> bool:
    """Whether an image that nobody asked for by its id is listed: disabled ones and, of other projects, deprecated ones
    are when that is asked for."""
    if image.state == "disabled" and not params.get("IncludeDisabled", False):
        return False
    return (image.project_id == context.project_id or params.get("IncludeDeprecated", False)
            or not 0 < image.deprecated_at <= time.time())


def _is_executable_by(image: Image, context: Context, user: str) -> bool:
    """Whether a user named in ExecutableBy has an explicit launch permission; whom else an image is shared with, only
    its own project and the administrators learn."""
    if user == "all":
        return image.is_public
    project = context.project_id if user == "self" else user
    may_know = project == context.project_id or rbac.allows(context, "DescribeImages", image.user_id, image.project_id)
    return may_know and project in image.launch_permissions
