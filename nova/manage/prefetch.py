"""nova-manage image prefetch: has compute hosts fetch an image, and tells how far they are."""

import argparse
import asyncio
import time

from nova import events, exception, service
from nova.image import prefetch
from nova.image.models import Image
from nova.image.prefetch import Prefetch
from nova.manage import imports
from nova.manage.command import FAILED, OK, Argument, Command, Refused, Row, Session
from nova.manage.progress import Line, mib

_LOOK = 0.2


async def _prefetch(session: Session, arguments: argparse.Namespace) -> int:
    image = await imports.find(session, arguments.image)
    images = await _files(session, image)
    hosts = await _hosts(session, arguments)
    ids = await prefetch.request(session.store, session.bus, image.id, images, hosts)
    await events.record(session.store, None, "image.prefetch", target=image.id, hosts=hosts)
    rows = await _watch(session, ids, time.monotonic() + arguments.wait)
    session.show(rows)
    return OK if all(row["state"] == prefetch.DONE for row in rows) else FAILED


async def _files(session: Session, image: Image) -> dict[str, str]:
    """The hashes of an image and of the kernel and the ramdisk that belong to it."""
    needed = [image, *await session.store.get_many(Image, [id for id in (image.kernel_id, image.ramdisk_id) if id])]
    for one in needed:
        if one.state != "available":
            raise exception.InvalidAMIIDUnavailable(id=one.id, state=one.state)
    return {one.id: one.sha256 for one in needed}


async def _hosts(session: Session, arguments: argparse.Namespace) -> list[str]:
    alive = [host.host for host in await service.hosts(session.store, "compute")]
    if arguments.all == bool(arguments.host):
        raise Refused("say which hosts: --host NAME, which may be given more than once, or --all")
    for name in arguments.host or ():
        if name not in alive:
            raise Refused(f"no nova-compute is alive on {name}; 'nova-manage service list' shows those that are")
    if not alive:
        raise Refused("no nova-compute is alive")
    return list(dict.fromkeys(arguments.host or alive))


async def _watch(session: Session, ids: list[str], deadline: float) -> list[Row]:
    """Wait until all have ended; what came of each."""
    line, begun = Line(), time.monotonic()
    ended: dict[str, Row] = {}
    try:
        while len(ended) < len(ids):
            alive = {host.host for host in await service.hosts(session.store, "compute")}
            waiting = [id for id in ids if id not in ended]
            found = await session.store.get_many(Prefetch, waiting)
            if len(found) < len(waiting):
                raise exception.NovaError("the records of this were removed meanwhile")
            for one in found:
                late = time.monotonic() > deadline
                if one.state != prefetch.WAITING or one.host not in alive or late:
                    ended[one.id] = _row(one, one.host in alive, time.monotonic() - begun)
                elif line.due():
                    line.show(f"{one.host}: {mib(one.done)}" + (f" of {mib(one.size)}" if one.size else "")
                              + f"; {len(ended)} of {len(ids)} hosts have ended")
            if len(ended) < len(ids):
                await asyncio.sleep(_LOOK)
    finally:
        line.end()
    return [ended[id] for id in ids]


def _row(one: Prefetch, alive: bool, seconds: float) -> Row:
    state, reason = one.state, one.reason
    if state == prefetch.WAITING:
        state = "unknown"
        reason = reason or ("it is not done in time" if alive else "its nova-compute does not answer any more")
    return {"host": one.host, "state": state, "fetched": mib(one.done), "seconds": round(seconds, 1),
            "reason": reason or None}


COMMANDS = (
    Command("image", "prefetch", "Have compute hosts fetch an image, with its kernel and ramdisk, before somebody "
            "boots it. Where this command is ended, they go on. The exit code is 1 if a host does not have it.",
            _prefetch,
            (Argument("image", "the image's id"),
             Argument("--host", "a host; may be given more than once", {"action": "append", "metavar": "NAME"}),
             Argument("--all", "all compute hosts that are alive", {"action": "store_true"}),
             Argument("--wait", "seconds to wait for them (1800)",
                      {"type": float, "default": 1800.0, "metavar": "SECONDS"})),
            ("image prefetch ami-12345678 --all", "image prefetch ami-12345678 --host node7 --host node8")),
)
