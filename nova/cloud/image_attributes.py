"""The attributes of images: who may use them, what is said of them, whether they are still offered."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova import events, exception
from nova.auth import rbac
from nova.auth.manager import AuthManager
from nova.cloud import image_access, image_records, image_view
from nova.cloud.action import Controller, action
from nova.context import Context
from nova.datastore import Store
from nova.image.models import Image
from nova.rpc import Bus

#: projects that may have a launch permission of one image
MAX_PERMISSIONS = 1000
#: product codes of one image, and the characters of each
MAX_CODES, MAX_CODE = 100, 128
#: seconds in which an image may become deprecated (API reference, EnableImageDeprecation)
_MAX_DEPRECATION = 10 * 366 * 86400

#: the parameters of ModifyImageAttribute that say what to change, and the attribute that each is of
_STRUCTURES = {"LaunchPermission": "launchPermission", "Description": "description", "ImdsSupport": "imdsSupport"}
_LISTS = {"UserIds": "launchPermission", "UserGroups": "launchPermission", "ProductCodes": "productCodes",
          "OrganizationArns": "launchPermission", "OrganizationalUnitArns": "launchPermission"}

#: attributes that no image of this cloud has -> the member of the answer
_EMPTY = {"sriovNetSupport": "SriovNetSupport", "tpmSupport": "TpmSupport", "uefiData": "UefiData",
          "imdsSupport": "ImdsSupport", "lastLaunchedTime": "LastLaunchedTime",
          "deregistrationProtection": "DeregistrationProtection"}


class ImageAttributes(Controller):
    """The attributes of a project's images."""

    store: Store
    bus: Bus
    auth: AuthManager

    @action("DescribeImageAttribute")
    async def describe_image_attribute(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """One attribute of an image; whom it is shared with, only its own project and administrators may ask."""
        found = await image_access.visible(self.store, context, [params["ImageId"]])
        if not found:
            raise exception.InvalidAMIIDNotFound(id=params["ImageId"])
        [image], attribute, answer = found, params["Attribute"], {"ImageId": params["ImageId"]}
        if attribute == "launchPermission":
            rbac.check(context, "DescribeImageAttribute", image.user_id, image.project_id,
                       exception.UnauthorizedOperation())
            return {**answer, "LaunchPermissions": _permissions(image)}
        if attribute == "productCodes":
            return {**answer, "ProductCodes": image_view.product_codes(image)}
        if attribute == "blockDeviceMapping":
            return {**answer, "BlockDeviceMappings": image_view.block_devices(image)}
        values = {"description": ("Description", image.description), "kernel": ("KernelId", image.kernel_id),
                  "ramdisk": ("RamdiskId", image.ramdisk_id), "bootMode": ("BootMode", "legacy-bios")}
        member, value = values.get(attribute) or (_EMPTY[attribute], "")
        return {**answer, member: {"Value": value} if value else {}}

    @action("ModifyImageAttribute")
    async def modify_image_attribute(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Change one attribute, in whichever of the API's forms it is asked for."""
        attribute = _attribute(params)
        asked = _permissions_asked(params) if attribute == "launchPermission" else (_NOBODY, _NOBODY)
        if asked[0].all:
            rbac.check_permitted(context, "ModifyImageAttribute:all")
        image = await image_access.changeable(self.store, context, "ModifyImageAttribute", params["ImageId"])
        if attribute == "description":
            text = params.get("Description", {}).get("Value", params.get("Value"))
            if text is None:
                raise exception.MissingParameter(name="Description.Value")
            changes = _constantly(description=image_records.checked_description(text))
        elif attribute == "productCodes":
            changes = _adding_codes(params.get("ProductCodes", []))
        elif attribute == "launchPermission":
            changes = await self._sharing(context, image, *asked)
        else:
            raise exception.UnsupportedOperation(f"The attribute {attribute} cannot be changed in this cloud.")
        await self._change(context, image, "image.modify", changes, attribute=attribute)
        return {}

    @action("ResetImageAttribute")
    async def reset_image_attribute(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have an image be shared as it was when it was registered: with nobody; kernels and ramdisks with all."""
        image = await image_access.changeable(self.store, context, "ResetImageAttribute", params["ImageId"])
        await self._change(context, image, "image.reset",
                           _constantly(is_public=image.kind != "machine", launch_permissions=[]),
                           attribute=params["Attribute"])
        return {}

    @action("DisableImage")
    async def disable_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Keep an image from being used, and from being shared, until it is enabled."""
        def disable(image: Image) -> dict[str, Any]:
            if image.state == "disabled":
                return {}
            if image.state != "available":
                raise exception.InvalidAMIIDUnavailable(id=image.id, state=image.state)
            return {"state": "disabled", "is_public": False, "launch_permissions": []}
        return await self._changed(context, params, "DisableImage", "image.disable", disable)

    @action("EnableImage")
    async def enable_image(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have an image used again that was disabled."""
        def enable(image: Image) -> dict[str, Any]:
            if image.state == "available":
                return {}
            if image.state != "disabled":
                raise exception.InvalidAMIIDUnavailable(id=image.id, state=image.state)
            return {"state": "available"}
        return await self._changed(context, params, "EnableImage", "image.enable", enable)

    @action("EnableImageDeprecation")
    async def enable_image_deprecation(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Say when other projects stop to see an image in lists; it can be used as before."""
        moment = _deprecation(params["DeprecateAt"])
        return await self._changed(context, params, "EnableImageDeprecation", "image.deprecate",
                                   _constantly(deprecated_at=moment), at=image_view.iso(moment))

    @action("DisableImageDeprecation")
    async def disable_image_deprecation(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Take back what EnableImageDeprecation said."""
        return await self._changed(context, params, "DisableImageDeprecation", "image.undeprecate",
                                   _constantly(deprecated_at=0.0))

    async def _changed(self, context: Context, params: dict[str, Any], action_name: str, event: str,
                       change: Callable[[Image], dict[str, Any]], **details: Any) -> dict[str, Any]:
        image = await image_access.changeable(self.store, context, action_name, params["ImageId"])
        await self._change(context, image, event, change, **details)
        return {"Return": True}

    async def _change(self, context: Context, image: Image, event: str, change: Callable[[Image], dict[str, Any]],
                      **details: Any) -> None:
        """Change an image by a function of what it is, with its event; nothing happens where that changes nothing."""
        while True:
            changes = change(image)
            if not changes:
                return
            tx = self.store.transaction()
            tx.update(image, **changes)
            await events.record(tx, context, event, target=image.id, **details, **{
                name: value for name, value in changes.items() if name in ("is_public", "launch_permissions")})
            try:
                await tx.commit()
                # what is kept with its file says it too
                self.bus.cast(f"objectstore.{image.host}", "look_at_image", image_id=image.id)
                return
            except exception.NotFound:
                raise exception.InvalidAMIIDNotFound(id=image.id) from None
            except exception.Conflict:  # it was changed just now
                image = await image_access.find(self.store, image.id)

    async def _sharing(self, context: Context, image: Image, added: "_Grantees", removed: "_Grantees",
                       ) -> Callable[[Image], dict[str, Any]]:
        """What giving and taking launch permissions changes."""
        if added.all:
            rbac.check(context, "ModifyImageAttribute:all", image.user_id, image.project_id,
                       exception.UnauthorizedOperation())
        for project in added.projects:
            await self._check_project(project)

        def change(now: Image) -> dict[str, Any]:
            if now.state == "disabled" and added != _NOBODY:
                raise exception.InvalidAMIIDUnavailable(id=now.id, state=now.state)
            is_public = (now.is_public or added.all) and not removed.all
            permissions = sorted({*now.launch_permissions, *added.projects} - set(removed.projects))
            if len(permissions) > MAX_PERMISSIONS:
                raise exception.ResourceCountExceeded(
                    f"At most {MAX_PERMISSIONS} projects may have a launch permission of one image.")
            if (is_public, permissions) == (now.is_public, now.launch_permissions):
                return {}
            return {"is_public": is_public, "launch_permissions": permissions}
        return change

    async def _check_project(self, name: str) -> None:
        try:
            await self.auth.project(name)
        except exception.NotFound:
            raise exception.InvalidAMIAttributeItemValue(value=name[:64], name="userId") from None


def _constantly(**changes: Any) -> Callable[[Image], dict[str, Any]]:
    return lambda image: {name: value for name, value in changes.items() if getattr(image, name) != value}


def _adding_codes(codes: list[str]) -> Callable[[Image], dict[str, Any]]:
    """Product codes can be added only, as in EC2."""
    if not codes:
        raise exception.MissingParameter(name="ProductCode")
    for code in codes:
        if not code.isascii() or not code.isprintable() or len(code) > MAX_CODE:
            raise exception.InvalidProductCode(value=code[:64])

    def change(image: Image) -> dict[str, Any]:
        together = list(dict.fromkeys([*image.product_codes, *codes]))
        if len(together) > MAX_CODES:
            raise exception.ResourceCountExceeded(f"An image has at most {MAX_CODES} product codes.")
        return {"product_codes": together} if together != image.product_codes else {}
    return change


def _attribute(params: dict[str, Any]) -> str:
    """The one attribute that a request is about."""
    given = {attribute for name, attribute in _STRUCTURES.items() if name in params}
    given |= {attribute for name, attribute in _LISTS.items() if params.get(name)}
    if params.get("Attribute"):
        given.add(params["Attribute"])
    if not given:
        raise exception.MissingParameter(name="Attribute")
    if len(given) > 1:
        raise exception.InvalidParameterCombination(
            f"Only one attribute can be changed at a time, not {' and '.join(sorted(given))}.")
    return given.pop()


@dataclass(frozen=True)
class _Grantees:
    """Projects, and whether all are meant."""

    projects: tuple[str, ...] = ()
    all: bool = False


_NOBODY = _Grantees()


def _permissions_asked(params: dict[str, Any]) -> tuple[_Grantees, _Grantees]:
    """Who is to be given, and who is to lose, a launch permission.

    Newer clients send ``LaunchPermission.Add.1.UserId``, older ones ``OperationType=add`` and ``UserId.1``.
    """
    structure = params.get("LaunchPermission", {})
    added, removed = _read_items(structure.get("Add", [])), _read_items(structure.get("Remove", []))
    if params.get("OrganizationArns") or params.get("OrganizationalUnitArns"):
        raise _no_organizations()
    users, groups = params.get("UserIds", []), params.get("UserGroups", [])
    if not users and not groups:
        if added == removed == _NOBODY:
            raise exception.MissingParameter(name="LaunchPermission")
        return added, removed
    if structure:
        raise exception.InvalidParameterCombination("Use LaunchPermission, or OperationType with UserId and UserGroup.")
    operation = params.get("OperationType")
    if not operation:
        raise exception.MissingParameter(name="OperationType")
    asked = _read_items([*({"UserId": user} for user in users), *({"Group": group} for group in groups)])
    return (asked, _NOBODY) if operation == "add" else (_NOBODY, asked)


def _read_items(items: Iterable[dict[str, Any]]) -> _Grantees:
    users, to_all = [], False
    for item in items:
        if item.get("OrganizationArn") or item.get("OrganizationalUnitArn"):
            raise _no_organizations()
        if not item.get("UserId") and not item.get("Group"):
            raise exception.MissingParameter(name="UserId")
        if item.get("UserId"):
            users.append(item["UserId"])
        if item.get("Group"):
            if item["Group"] != "all":
                raise exception.InvalidAMIAttributeItemValue(value=item["Group"][:64], name="userGroup")
            to_all = True
    return _Grantees(tuple(users), to_all)


def _no_organizations() -> exception.NovaError:
    return exception.UnsupportedOperation("This cloud has no organizations; share images with projects.")


def _permissions(image: Image) -> list[dict[str, str]]:
    everybody = [{"Group": "all"}] if image.is_public else []
    return [*everybody, *({"UserId": project} for project in image.launch_permissions)]


def _deprecation(given: datetime) -> float:
    """The moment of a deprecation, in whole minutes."""
    moment, now = round(given.timestamp() / 60) * 60, time.time()
    if not now < moment <= now + _MAX_DEPRECATION:
        raise exception.InvalidParameterValue(
            f"Value ({image_view.iso(given.timestamp())}) for parameter DeprecateAt is invalid: it has to be in the "
            f"future, and at most 10 years from now.")
    return float(moment)
