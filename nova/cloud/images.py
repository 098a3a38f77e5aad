"""Images: registering, listing and deregistering them."""

import logging
import secrets
import time
from typing import Any

from nova import exception, service
from nova.auth import rbac
from nova.cloud import tags
from nova.cloud.action import Controller, action, listing
from nova.context import Context
from nova.datastore import Store
from nova.image import bundle
from nova.image.manager import MANIFEST_SUFFIX
from nova.image.models import ID_PREFIXES, Image, ImageName, name_id
from nova.objectstore import objects
from nova.objectstore.access import decision, values
from nova.objectstore.models import Bucket, Object
from nova.process import in_thread, wait
from nova.rpc import Bus

LOG = logging.getLogger(__name__)

#: seconds that RegisterImage waits for the image to become available before it answers that it is pending
_INGEST_WAIT = 5.0

ROOT_DEVICE = "/dev/vda"


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
        location = params.get("ImageLocation", "").lstrip("/")
        if not location:
            raise exception.MissingParameter(name="ImageLocation")
        for name in ("BlockDeviceMappings", "UefiData", "TpmSupport"):
            if params.get(name):
                raise exception.UnsupportedOperation(f"RegisterImage with {name} is not offered by this cloud.")
        architecture = params.get("Architecture", "x86_64")
        if architecture != "x86_64":
            raise exception.InvalidParameterValue(value=architecture, name="Architecture")
        source = await self._source(context, location)
        kernel, ramdisk = params.get("KernelId", ""), params.get("RamdiskId", "")
        kind = "kernel" if kernel == "true" else "ramdisk" if ramdisk == "true" else "machine"
        if location.endswith(MANIFEST_SUFFIX):
            manifest = await wait(in_thread(_read_manifest, source.path))
            if kind == "machine":
                kind = manifest.kind
            kernel, ramdisk = kernel or manifest.kernel_id, ramdisk or manifest.ramdisk_id
        if kind != "machine":
            kernel = ramdisk = ""
            rbac.check_permitted(context, "RegisterImage:kernel")
        for id, wanted in ((kernel, "kernel"), (ramdisk, "ramdisk")):
            if id and (await usable_image(self.store, context, id)).kind != wanted:
                raise exception.InvalidAMIIDNotFound(id=id)
        image = Image(
            f"{ID_PREFIXES[kind]}-{secrets.token_hex(4)}", project_id=context.project_id, user_id=context.user_id,
            name=params.get("Name", "") or location, location=location, kind=kind, host=await self._host(),
            created=time.time(), description=params.get("Description", ""), architecture=architecture,
            kernel_id=kernel, ramdisk_id=ramdisk, tags=tags.at_creation(params, "image"), is_public=kind != "machine")
        await self._create(image, named=bool(params.get("Name")))
        await self._ingest(image)
        return {"ImageId": image.id}

    @listing("DescribeImages", result="Images", id_member="ImageId", ids_param="ImageIds",
             not_found=exception.InvalidAMIIDNotFound,
             filters={"is-public": "Public", "manifest-location": "ImageLocation", "owner-alias": "ImageOwnerAlias",
                      "state-reason-message": "StateReason.Message"})
    async def describe_images(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The images that the caller may use, of the owners asked for."""
        images = [i for i in await self.store.all(Image)
                  if i.is_public or rbac.allows(context, "DescribeImages", i.user_id, i.project_id)]
        owners = params.get("Owners", [])
        if owners:
            wanted = {context.project_id if owner == "self" else owner for owner in owners}
            images = [i for i in images if i.project_id in wanted]
        users = params.get("ExecutableUsers", [])
        if users:
            images = [i for i in images if ("all" in users and i.is_public)
                      or ({"self", context.project_id} & set(users) and i.project_id == context.project_id)]
        return [_view(i) for i in images]

    @action("DeregisterImage")
    async def deregister_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Forget an image; instances of it run on."""
        image = await _find(self.store, params["ImageId"])
        name = "DeregisterImage" if image.kind == "machine" else "DeregisterImage:kernel"
        missing = exception.UnauthorizedOperation() if image.is_public else exception.InvalidAMIIDNotFound(id=image.id)
        rbac.check(context, name, image.user_id, image.project_id, missing)
        await self._forget(image)
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

    async def _host(self) -> str:
        hosts = await service.hosts(self.store, "objectstore")
        if not hosts:
            raise exception.Unavailable("No object store host is alive; try again shortly.")
        return hosts[0].host

    async def _create(self, image: Image, named: bool) -> None:
        """Add the record of an image, and keep its name for it, which a failed image does not hold on to."""
        while True:
            tx = self.store.transaction()
            tx.create(image)
            taken = await self.store.get(ImageName, _name_id(image)) if named else None
            if taken is not None:
                holder = await self.store.get(Image, taken.image_id)
                if holder is not None and holder.state != "failed":
                    raise exception.InvalidAMINameDuplicate(name=image.name, id=taken.image_id)
                tx.update(taken, image_id=image.id)
            elif named:
                tx.create(ImageName(_name_id(image), image_id=image.id))
            try:
                await tx.commit()
                return
            except exception.Exists as error:
                if error.kind != "image_name":
                    raise
            except (exception.Conflict, exception.NotFound):  # somebody took or freed the name just now
                pass

    async def _ingest(self, image: Image) -> None:
        """Give the image a moment to become available, so that most are when the caller learns their id.

        What becomes of it, its record tells, be it that it failed.
        """
        try:
            await wait(self.bus.call(f"objectstore.{image.host}", "ingest_image", timeout=_INGEST_WAIT,
                                     image_id=image.id))
        except exception.RpcTimeout:
            LOG.info("image %s is still being made", image.id)

    async def _forget(self, image: Image) -> None:
        while True:
            tx = self.store.transaction()
            tx.delete(image)
            name = await self.store.get(ImageName, _name_id(image))
            if name is not None and name.image_id == image.id:
                tx.delete(name)
            try:
                await tx.commit()
                break
            except exception.NotFound:
                return  # somebody else forgot it just now
            except exception.Conflict:  # its file was made just now
                now = await self.store.get(Image, image.id)
                if now is None:
                    return
                image = now
        self.bus.cast(f"objectstore.{image.host}", "look_at_image", image_id=image.id)


async def usable_image(store: Store, context: Context, id: str) -> Image:
    """An image that the caller may use.

    :raises exception.InvalidAMIIDNotFound, exception.InvalidAMIIDMalformed, exception.UnauthorizedOperation:
    """
    image = await _find(store, id)
    if not image.is_public:
        rbac.check(context, "RunInstances:image", image.user_id, image.project_id,
                   exception.InvalidAMIIDNotFound(id=id))
    return image


async def _find(store: Store, id: str) -> Image:
    prefix, _, digits = id.partition("-")
    if prefix not in ID_PREFIXES.values() or not digits or not digits.isalnum():
        raise exception.InvalidAMIIDMalformed(id=id)
    image = await store.get(Image, id)
    if image is None:
        raise exception.InvalidAMIIDNotFound(id=id)
    return image


def _name_id(image: Image) -> str:
    return name_id(image.project_id, image.name)


def _read_manifest(path: str) -> bundle.Manifest:
    with open(path, "rb") as file:
        return bundle.read_manifest(file.read(bundle.MAX_MANIFEST))


def _view(image: Image) -> dict[str, Any]:
    view = {
        "ImageId": image.id, "ImageLocation": image.location, "ImageType": image.kind, "Name": image.name,
        "Description": image.description, "State": image.state, "OwnerId": image.project_id, "Public": image.is_public,
        "Architecture": image.architecture, "CreationDate": _iso(image.created), "VirtualizationType": "hvm",
        "RootDeviceType": "instance-store", "BlockDeviceMappings": [], "ProductCodes": [],
        "Tags": tags.view(image.tags)}
    if image.kind == "machine":
        view["RootDeviceName"] = ROOT_DEVICE
    if image.kernel_id:
        view["KernelId"] = image.kernel_id
    if image.ramdisk_id:
        view["RamdiskId"] = image.ramdisk_id
    if image.state == "failed":
        view["StateReason"] = {"Code": "Client.InvalidManifest", "Message": image.state_reason}
    return view


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))
