"""Locks on instances: while security staff look at one, its project can neither reboot nor terminate it."""

import contextlib
from collections.abc import Iterable

from nova import events, exception
from nova.compute.models import Instance
from nova.context import Context
from nova.datastore import Store


async def set_locked(store: Store, context: Context | None, instance_id: str, locked: bool) -> None:
    """Lock an instance, or unlock it, and record who did; nothing changes if it is so already.

    :param context: the request that asked for it; None for the operator of this host
    :raises exception.InvalidInstanceIDNotFound:
    :raises exception.IncorrectInstanceState: it is to be locked, but is being terminated, or gone
    """
    while True:
        instance = await store.get(Instance, instance_id)
        if instance is None:
            raise exception.InvalidInstanceIDNotFound(id=ascii(instance_id)[1:-1][:80])
        if instance.locked == locked:
            return
        if locked and instance.wanted == "terminated":
            raise exception.IncorrectInstanceState(instance_id=instance.id, verb="locked", state=instance.state)
        tx = store.transaction()
        tx.update(instance, locked=locked)
        await events.record(tx, context, "instance.lock" if locked else "instance.unlock", target=instance.id,
                            owner=instance.user_id, of_project=instance.project_id)
        with contextlib.suppress(exception.Conflict):  # it changed meanwhile
            await tx.commit()
            return


def check(instance: Instance) -> None:
    """:raises exception.InstanceLocked: it is"""
    if instance.locked:
        raise exception.InstanceLocked(id=instance.id)


async def check_all(store: Store, instance_ids: Iterable[str]) -> None:
    """:raises exception.InstanceLocked: one of them is"""
    for instance in await store.get_many(Instance, list(instance_ids)):
        check(instance)
