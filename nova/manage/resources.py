"""nova-manage network and instance: what there is in all projects, and locks on instances."""

import argparse
import time

from nova.cloud import locks
from nova.compute.models import Instance
from nova.manage.command import Argument, Command, Session
from nova.network.models import Network

_INSTANCE = Argument("instance", "the instance's id")
_PROJECT = Argument("--project", "only those of this project")


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


async def _networks(session: Session, arguments: argparse.Namespace) -> None:
    networks = await session.store.all(Network)
    pipeline = session.store.redis.pipeline(transaction=False)
    for network in networks:
        pipeline.hlen(network.addresses.owners_key)
        pipeline.llen(network.addresses.key)
    counts = await session.store.attempt(pipeline.execute()) if networks else []
    session.show([{"project": n.id, "vlan": n.vlan, "bridge": n.bridge, "cidr": n.cidr, "host": n.host,
                   "used": counts[2 * i], "free": counts[2 * i + 1]} for i, n in enumerate(networks)])


async def _instances(session: Session, arguments: argparse.Namespace) -> None:
    where = {name: value for name, value in (("project_id", arguments.project), ("host", arguments.host)) if value}
    session.show([{"instance": i.id, "project": i.project_id, "user": i.user_id, "state": i.state,
                   "type": i.instance_type, "image": i.image_id, "host": i.host, "address": i.private_ip or None,
                   "locked": i.locked, "launched": _moment(i.launch_time)}
                  for i in await session.store.find(Instance, **where)
                  if arguments.all or i.state != "terminated"])


async def _lock(session: Session, arguments: argparse.Namespace) -> None:
    await locks.set_locked(session.store, None, arguments.instance, True)
    session.say(f"locked the instance {arguments.instance}")


async def _unlock(session: Session, arguments: argparse.Namespace) -> None:
    await locks.set_locked(session.store, None, arguments.instance, False)
    session.say(f"unlocked the instance {arguments.instance}")


COMMANDS = (
    Command("network", "list", "List the projects' networks.", _networks, (), ("network list",)),
    Command("instance", "list", "List the instances of all projects.", _instances,
            (_PROJECT, Argument("--host", "only those on this host"),
             Argument("--all", "also those that are terminated", {"action": "store_true"})),
            ("instance list", "instance list --host node7")),
    Command("instance", "lock", "Have an instance left as it is: its project can neither reboot nor terminate it.",
            _lock, (_INSTANCE,), ("instance lock i-12345678",)),
    Command("instance", "unlock", "Give a locked instance back to its project.", _unlock, (_INSTANCE,),
            ("instance unlock i-12345678",)),
)
