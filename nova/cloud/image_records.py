"""Recording and forgetting images: what RegisterImage, CopyImage, CreateImage and DeregisterImage have in common."""

import re
import secrets
from collections.abc import Callable
from typing import Any

from nova import events, exception, service
from nova.context import Context
from nova.datastore import Store, Transaction
from nova.image.models import ID_PREFIXES, Image, ImageName, name_id
from nova.rpc import Bus

#: what EC2 lets an image be called (API reference, RegisterImage)
_NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
#: characters of a description (API reference, RegisterImage)
MAX_DESCRIPTION = 255


def new_id(kind: str) -> str:
    """An id for a new image of a kind."""
    return f"{ID_PREFIXES[kind]}-{secrets.token_hex(4)}"


def checked_name(name: str) -> str:
    """The name, if an image may have it; :raises exception.InvalidAMINameMalformed:"""
    if not _NAME.fullmatch(name):
        raise exception.InvalidAMINameMalformed()
    return name


def checked_description(text: str) -> str:
    """The description, if an image may have it; :raises exception.InvalidParameterValue:"""
    if len(text) > MAX_DESCRIPTION:
        raise exception.InvalidParameterValue(
            f"A description has at most {MAX_DESCRIPTION} characters, not {len(text)}.")
    return text


def check_mappings(mappings: list[dict[str, Any]], root_device: str) -> None:
    """Refuse block devices that instances of this cloud cannot have.

    Those of no account are let through: ephemeral disks, which instance types without them ignore in EC2 too, and that
    the root disk goes with its instance.

    :raises exception.UnsupportedOperation:
    """
    for mapping in mappings:
        device, ebs = mapping.get("DeviceName", ""), mapping.get("Ebs", {})
        if "SnapshotId" in ebs:
            raise exception.UnsupportedOperation("Images that are backed by snapshots are not offered by this cloud.")
        if not ebs:
            continue
        if device not in (root_device, "/dev/sda1", "/dev/sda", "/dev/xvda", "/dev/vda"):
            raise exception.UnsupportedOperation(
                f"A volume at {device or 'no device'} is not offered by this cloud: an image has its root disk only.")
        if not ebs.get("DeleteOnTermination", True):
            raise exception.UnsupportedOperation("A root disk always goes with its instance in this cloud.")
        if extra := ebs.keys() - {"DeleteOnTermination"}:
            raise exception.UnsupportedOperation(
                f"{', '.join(sorted(extra))} of a root disk is not offered by this cloud: its size is its image's, or "
                f"that of the instance type where that is larger.")


async def store_host(store: Store) -> str:
    """An object store host that makes image files; :raises exception.Unavailable: none is alive"""
    hosts = await service.hosts(store, "objectstore")
    if not hosts:
        raise exception.Unavailable("No object store host is alive; try again shortly.")
    return hosts[0].host


async def create(store: Store, context: Context, image: Image, event: str, is_named: bool = True,
                 also: Callable[[Transaction], object] | None = None) -> None:
    """Record an image and its name, which is one image's in a project.

    :param event: what the audit stream calls it
    :param is_named: the name was given, so it is to be unique
    :param also: adds to the transaction
    :raises exception.InvalidAMINameDuplicate:
    """
    while True:
        tx = store.transaction()
        tx.create(image)
        if is_named:
            await _take_name(store, tx, image)
        if also:
            also(tx)
        await events.record(tx, context, event, target=image.id, name=image.name, source=image.source or image.location)
        try:
            await tx.commit()
            return
        except exception.Exists as error:
            if error.kind != "image_name":
                raise
        except (exception.Conflict, exception.NotFound) as error:
            if error.values["kind"] != "image_name":
                raise
        # somebody took or freed the name just now


async def _take_name(store: Store, tx: Transaction, image: Image) -> None:
    """Keep an image's name for it, which a failed image does not hold on to."""
    id = name_id(image.project_id, image.name)
    taken = await store.get(ImageName, id)
    if taken is None:
        tx.create(ImageName(id, image_id=image.id))
        return
    holder = await store.get(Image, taken.image_id)
    if holder is not None and holder.state != "failed":
        raise exception.InvalidAMINameDuplicate(name=image.name, id=taken.image_id)
    tx.update(taken, image_id=image.id)


async def forget(store: Store, bus: Bus, context: Context | None, image: Image) -> None:
    """Forget an image, with its name; its host removes its file.  One that is gone meanwhile is no error.

    :param context: the request that asks for it; None for the operator of this host
    """
    while True:
        tx = store.transaction()
        tx.delete(image)
        name = await store.get(ImageName, name_id(image.project_id, image.name))
        if name is not None and name.image_id == image.id:
            tx.delete(name)
        await events.record(tx, context, "image.deregister", target=image.id, name=image.name)
        try:
            await tx.commit()
            break
        except exception.NotFound:
            return  # somebody else forgot it just now
        except exception.Conflict:  # its file was made just now
            now = await store.get(Image, image.id)
            if now is None:
                return
            image = now
    bus.cast(f"objectstore.{image.host}", "look_at_image", image_id=image.id)
