"""nova-manage role: who has which role."""

import argparse

from nova.auth import rbac, tree
from nova.manage.command import FAILED, OK, USER, Argument, Command, Session

_ROLE = Argument("role", "the role", {"choices": list(tree.ROLES)})
_PROJECT = Argument("project", "in which project (globally when left out)", {"nargs": "?"})


def _where(arguments: argparse.Namespace) -> str:
    return f"in {arguments.project}" if arguments.project else "globally"


async def _add(session: Session, arguments: argparse.Namespace) -> None:
    await session.accounts().add_role(None, arguments.user, arguments.role, arguments.project)
    session.say(f"{arguments.user} has the role {arguments.role} {_where(arguments)}")


async def _remove(session: Session, arguments: argparse.Namespace) -> None:
    await session.accounts().remove_role(None, arguments.user, arguments.role, arguments.project)
    session.say(f"{arguments.user} was given no role {arguments.role} {_where(arguments)} any more")


async def _has(session: Session, arguments: argparse.Namespace) -> int:
    roles = await session.accounts().roles_of(arguments.user, arguments.project)
    has = arguments.role in roles
    session.show([{"user": arguments.user, "role": arguments.role, "project": arguments.project, "has": has}])
    return OK if has else FAILED


async def _list(session: Session, arguments: argparse.Namespace) -> None:
    if arguments.user is None:
        session.show([{"role": name, "what": text} for name, text in rbac.ROLES.items()])
        return
    roles = await session.accounts().roles_of(arguments.user, arguments.project)
    session.show([{"user": arguments.user, "project": arguments.project, "role": role}
                  for role in rbac.ROLES if role in roles])


COMMANDS = (
    Command("role", "add",
            "Give a user a role. sysadmin and netadmin count in a project where they are also held globally.", _add,
            (USER, _ROLE, _PROJECT), ("role add ann netadmin", "role add ann netadmin web")),
    Command("role", "remove", "Take a role away.", _remove, (USER, _ROLE, _PROJECT), ("role remove ann netadmin web",)),
    Command("role", "has", "Tell whether a role counts; the exit code is 1 if it does not.", _has,
            (USER, _ROLE, _PROJECT), ("role has ann netadmin web",)),
    Command("role", "list", "List the roles, or those of a user that count in a project or are held globally.", _list,
            (Argument("user", "the user's name", {"nargs": "?"}), _PROJECT), ("role list", "role list ann web")),
)
