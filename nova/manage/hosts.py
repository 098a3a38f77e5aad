"""nova-manage host and service: hosts and the daemons on them."""

import argparse
import time

from nova import events, service
from nova.cloud import hosts
from nova.manage.command import Argument, Command, Session

_HOST = Argument("host", "the host's name")


async def _list(session: Session, arguments: argparse.Namespace) -> None:
    now = time.time()
    session.show([{
        "host": host.name, "zone": host.zone, "enabled": host.disabled is None,
        "alive": [d.topic for d in host.daemons if service.is_alive(d, now)],
        "dead": [d.topic for d in host.daemons if not service.is_alive(d, now)],
        "instances": host.instances if host.is_compute else None} for host in await hosts.overview(session.store)])


async def _describe(session: Session, arguments: argparse.Namespace) -> None:
    host = await hosts.one(session.store, arguments.host)
    now = time.time()
    rows: list[tuple[str, object]] = [("host", host.name), ("zone", host.zone), ("enabled", host.disabled is None)]
    if host.disabled is not None:
        rows.append(("disabled since", _moment(host.disabled.since)))
        rows.append(("reason", host.disabled.reason or None))
    for daemon in host.daemons:
        state = "alive" if service.is_alive(daemon, now) else "dead"
        rows.append((f"nova-{daemon.topic}", f"{state}, heard {max(0.0, now - daemon.beat):.1f} s ago"))
    if host.is_compute:
        rows += [("instances", host.instances),
                 *((what, f"{host.claims.get(name, 0)} of {host.capacity.get(name, 0)}")
                   for what, name in (("vCPUs claimed", "vcpus"), ("MiB of memory claimed", "memory_mb")))]
    session.show([{"what": what, "value": value} for what, value in rows])


async def _disable(session: Session, arguments: argparse.Namespace) -> None:
    await hosts.disable(session.store, arguments.host, arguments.reason)
    await events.record(session.store, None, "host.disable", target=arguments.host, reason=arguments.reason)
    session.say(f"{arguments.host} gets no new instances; those that run there run on")


async def _enable(session: Session, arguments: argparse.Namespace) -> None:
    await hosts.enable(session.store, arguments.host)
    await events.record(session.store, None, "host.enable", target=arguments.host)
    session.say(f"{arguments.host} gets new instances")


async def _services(session: Session, arguments: argparse.Namespace) -> None:
    now = time.time()
    session.show([{"host": d.host, "service": f"nova-{d.topic}", "zone": d.zone, "alive": service.is_alive(d, now),
                   "beat": f"{max(0.0, now - d.beat):.1f} s ago"} for d in await service.heartbeats(session.store)])


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


COMMANDS = (
    Command("host", "list", "List the hosts of which something was heard within the hour.", _list, (), ("host list",)),
    Command("host", "describe", "Show a host's daemons, and what is claimed of it.", _describe, (_HOST,),
            ("host describe node7",)),
    Command("host", "disable", "Give a host no new instances.", _disable,
            (_HOST, Argument("--reason", "why, for those who look", {"default": ""})),
            ("host disable node7 --reason 'a new disk'",)),
    Command("host", "enable", "Give a host new instances again.", _enable, (_HOST,), ("host enable node7",)),
    Command("service", "list", "List the daemons of all hosts that live, or did so within the hour.", _services, (),
            ("service list",)),
)
