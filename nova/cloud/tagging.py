"""CreateTags, DeleteTags and DescribeTags, for every kind of resource that can have tags.

What a kind adds is one entry in :data:`KINDS`.  Tags are a field of the resource's own record, so that they go with it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nova import events, exception
from nova.auth import rbac
from nova.auth.models import KeyPair
from nova.cloud import image_access, tags
from nova.cloud.action import Controller, action, listing
from nova.compute.models import Instance
from nova.context import Context
from nova.datastore import Store
from nova.image.models import Image
from nova.rpc import Bus

#: resources, and tags, that one request may name (API reference, CreateTags)
MAX_RESOURCES, MAX_TAGS = 1000, 1000

Resource = Image | Instance | KeyPair


@dataclass(frozen=True)
class Kind:
    """A kind of resource that can have tags.

    :param resource_type: what EC2 calls it
    :param cls: its records
    :param prefixes: what the ids of its resources begin with, before the hyphen
    :param of_id: finds one by EC2's id for it, whosever it is; gets the caller, too
    :param missing: the error for one that is not there
    :param part: what follows the action in the table of roles where it has a rule of its own
    """

    resource_type: str
    cls: type[Image] | type[Instance] | type[KeyPair]
    prefixes: tuple[str, ...]
    of_id: Callable[[Store, Context, str], Awaitable[Resource | None]]
    missing: Callable[[str], exception.NovaError]
    part: str = ""


async def _key_pair(store: Store, context: Context, id: str) -> KeyPair | None:
    found = await store.find(KeyPair, project_id=context.project_id)
    return next((pair for pair in found if pair.key_pair_id == id), None)


KINDS = (
    Kind("image", Image, ("ami", "aki", "ari"), lambda store, context, id: store.get(Image, id),
         lambda id: exception.InvalidAMIIDNotFound(id=id), ":image"),
    Kind("instance", Instance, ("i",), lambda store, context, id: store.get(Instance, id),
         lambda id: exception.InvalidInstanceIDNotFound(id=id)),
    Kind("key-pair", KeyPair, ("key",), _key_pair, lambda id: exception.InvalidKeyPairNotFound(id=id)),
)
_BY_PREFIX = {prefix: kind for kind in KINDS for prefix in kind.prefixes}


class Tags(Controller):
    """The tags of a project's resources."""

    store: Store
    bus: Bus

    @action("CreateTags")
    async def create_tags(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Put tags on resources; one that is there gets the new value."""
        added = tags.checked(params["Tags"])
        _check_number(params)

        def change(now: dict[str, str]) -> dict[str, str]:
            return tags.merged(now, added)
        await self._change_all(context, "CreateTags", params["Resources"], change)
        return {}

    @action("DeleteTags")
    async def delete_tags(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Take tags off resources: those of a key, of a key and value, or all; what is not there is no error."""
        unwanted = params.get("Tags", [])
        _check_number(params)
        for tag in unwanted:
            tags.check_key(tag.get("Key", ""))

        def change(now: dict[str, str]) -> dict[str, str]:
            if not unwanted:
                return {}
            gone = {tag["Key"] for tag in unwanted if tag.get("Value") in (None, now.get(tag["Key"]))}
            return {key: value for key, value in now.items() if key not in gone}
        await self._change_all(context, "DeleteTags", params["Resources"], change)
        return {}

    @listing("DescribeTags", result="Tags", id_member="_Id",
             filters={"key": "Key", "value": "Value", "resource-id": "ResourceId", "resource-type": "ResourceType"},
             tags="_Tags")
    async def describe_tags(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The tags of the project's resources."""
        where = {} if rbac.sees_others(context, "DescribeTags") else {"project_id": context.project_id}
        found: list[list[Resource]] = await asyncio.gather(*(self.store.find(kind.cls, **where) for kind in KINDS))
        return [{"_Id": f"{id}\0{key}", "_Tags": [{"Key": key, "Value": value}], "ResourceId": id,
                 "ResourceType": kind.resource_type, "Key": key, "Value": value}
                for kind, resources in zip(KINDS, found, strict=True) for resource in resources
                if rbac.allows(context, "DescribeTags", resource.user_id, resource.project_id)
                for id in [_shown_id(resource)] for key, value in resource.tags.items()]

    async def _change_all(self, context: Context, action_name: str, ids: list[str],
                          change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """Change the tags of resources, all or none: a transaction, tried again when one of them changes meanwhile."""
        ids = list(dict.fromkeys(ids))
        while True:
            resources = await asyncio.gather(*(self._named(context, action_name, id) for id in ids))
            tx = self.store.transaction()
            changed = []
            for id, resource in zip(ids, resources, strict=True):
                now = change(resource.tags)
                if now != resource.tags:
                    tx.update(resource, tags=now)
                    changed.append(id)
            if not changed:
                return
            await events.record(tx, context, "tags.create" if action_name == "CreateTags" else "tags.delete",
                                target=changed[0] if len(changed) == 1 else changed)
            try:
                await tx.commit()
                break
            except (exception.Conflict, exception.NotFound):
                continue
        for resource in resources:
            if isinstance(resource, Image):  # what is kept with its file says it too
                self.bus.cast(f"objectstore.{resource.host}", "look_at_image", image_id=resource.id)

    async def _named(self, context: Context, action_name: str, id: str) -> Resource:
        kind = _BY_PREFIX.get(id.partition("-")[0])
        if kind is None:
            raise exception.InvalidID(id=id[:64])
        rbac.check_permitted(context, action_name + kind.part)
        resource = await kind.of_id(self.store, context, id)
        if resource is None:
            raise kind.missing(id[:64])
        seen = isinstance(resource, Image) and image_access.may_see(context, resource)
        rbac.check(context, action_name + kind.part, resource.user_id, resource.project_id,
                   exception.UnauthorizedOperation() if seen else kind.missing(id))
        return resource


def _shown_id(resource: Resource) -> str:
    return resource.key_pair_id if isinstance(resource, KeyPair) else resource.id


def _check_number(params: dict[str, Any]) -> None:
    for name, most in (("Resources", MAX_RESOURCES), ("Tags", MAX_TAGS)):
        if len(params.get(name, [])) > most:
            raise exception.InvalidParameterValue(f"At most {most} {name.lower()} may be named in one request.")
