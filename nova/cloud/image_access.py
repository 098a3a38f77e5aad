"""Which images a caller may use, see and change.

An image may be used and seen by its project, by the projects that have a launch permission, and, when it is public, by
all; what others may do is in the table of roles.  What belongs to others is found by indexes, never by a walk through
all images.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterable

from nova import exception
from nova.auth import rbac
from nova.context import Context
from nova.datastore import Store
from nova.image.models import ID_PREFIXES, Image

_IMAGE_ID = re.compile(rf"({'|'.join(ID_PREFIXES.values())})-[0-9a-f]{{8,17}}")


async def find(store: Store, id: str) -> Image:
    """An image by its id, whosever it is.

    :raises exception.InvalidAMIIDMalformed, exception.InvalidAMIIDNotFound:
    """
    check_ids([id])
    image = await store.get(Image, id)
    if image is None:
        raise exception.InvalidAMIIDNotFound(id=id)
    return image


async def usable(store: Store, context: Context, id: str) -> Image:
    """An image that the caller may run instances of, or copy.

    :raises exception.InvalidAMIIDMalformed, exception.InvalidAMIIDNotFound, exception.UnauthorizedOperation:
    """
    image = await find(store, id)
    if not _is_shared_with(image, context):
        rbac.check(context, "RunInstances:image", image.user_id, image.project_id,
                   exception.InvalidAMIIDNotFound(id=id))
    return image


async def changeable(store: Store, context: Context, action: str, id: str) -> Image:
    """An image that the caller may do an action on that changes it; of kernels and ramdisks the table of roles has
    ``<action>:kernel``.

    :raises exception.InvalidAMIIDMalformed, exception.InvalidAMIIDNotFound:
    :raises exception.UnauthorizedOperation: the caller may see it, and no more
    """
    image = await find(store, id)
    missing: exception.NovaError = exception.InvalidAMIIDNotFound(id=id)
    if _is_shared_with(image, context):
        missing = exception.UnauthorizedOperation()
    rbac.check(context, action if image.kind == "machine" else f"{action}:kernel", image.user_id, image.project_id,
               missing)
    return image


async def visible(store: Store, context: Context, ids: Iterable[str] = ()) -> list[Image]:
    """The images that the caller may see: of these ids, or all.

    :raises exception.InvalidAMIIDMalformed:
    """
    wanted = list(dict.fromkeys(ids))
    check_ids(wanted)
    if not wanted and rbac.sees_others(context, "DescribeImages"):
        found = await store.all(Image)
    elif not wanted:
        sets = await asyncio.gather(store.ids(Image, project_id=context.project_id), store.ids(Image, is_public=True),
                                    store.ids(Image, launch_permissions=context.project_id))
        found = await store.get_many(Image, sorted(set().union(*sets)))
    else:
        found = await store.get_many(Image, wanted)
    return [image for image in found if may_see(context, image)]


def may_see(context: Context, image: Image) -> bool:
    """Whether the caller sees an image in lists."""
    return (_is_shared_with(image, context)
            or rbac.allows(context, "DescribeImages", image.user_id, image.project_id))


async def withdraw(store: Store, project: str) -> None:
    """Take all launch permissions from a project that is gone: another may get its name."""
    for id in await store.ids(Image, launch_permissions=project):
        with contextlib.suppress(exception.NotFound):  # deregistered just now
            await store.modify(Image, id, lambda image: {
                "launch_permissions": [other for other in image.launch_permissions if other != project]})


def check_ids(ids: Iterable[str]) -> None:
    """:raises exception.InvalidAMIIDMalformed: one of them is no id of an image"""
    for id in ids:
        if not _IMAGE_ID.fullmatch(id):
            raise exception.InvalidAMIIDMalformed(id=id[:64])


def _is_shared_with(image: Image, context: Context) -> bool:
    return image.is_public or context.project_id in image.launch_permissions
