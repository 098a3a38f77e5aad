"""nova-manage cloud: the state of the whole."""

import argparse

from nova import events
from nova.cloud import verify
from nova.manage.command import FAILED, OK, Argument, Command, Session


async def _verify(session: Session, arguments: argparse.Namespace) -> int:
    found = await verify.verify(session.store, session.auth)
    repaired: list[verify.Difference] = []
    if arguments.repair and found:
        repaired = await verify.repair(found)
        left = await verify.verify(session.store, session.auth)
        repaired = [difference for difference in repaired if difference not in left]
        found = repaired + left
        await events.record(session.store, None, "cloud.repair", repaired=len(repaired), left=len(left))
    session.show([{"check": d.check, "about": d.about, "difference": d.what,
                   "repair": "done" if d in repaired else "possible" if d.repair else "by hand"} for d in found])
    return FAILED if len(found) > len(repaired) else OK


COMMANDS = (
    Command("cloud", "verify", "Compare records with indexes, pools with owners, claims and limits with what is there. "
            "The exit code is 1 if there are differences.", _verify,
            (Argument("--repair", "correct what can be corrected without guessing", {"action": "store_true"}),),
            ("cloud verify", "cloud verify --repair", "--json cloud verify")),
)
