"""nova-manage project: projects, their members, credentials and limits."""

import argparse
import os

from nova import exception
from nova.auth import quota
from nova.cloud import scrub
from nova.manage.command import PROJECT, SCRUB, USER, WAIT, Argument, Command, Session


async def _create(session: Session, arguments: argparse.Namespace) -> None:
    project = await session.accounts().create_project(None, arguments.project, arguments.manager,
                                                      arguments.description)
    session.show([{"project": project.id, "manager": project.manager}])


async def _delete(session: Session, arguments: argparse.Namespace) -> None:
    accounts, name = session.accounts(arguments.wait), arguments.project
    owned = await accounts.owned_by_project(name)
    if owned and not arguments.scrub:
        raise exception.DependencyViolation(
            f"the project {name} still has {scrub.describe(owned)}; --scrub removes them first")
    session.confirm(f"deleting the project {name}" + (f" with {scrub.describe(owned)}" if owned else ""))
    await accounts.delete_project(None, name, scrubbed=arguments.scrub)
    session.say(f"deleted the project {name}")


async def _scrub(session: Session, arguments: argparse.Namespace) -> None:
    accounts, name = session.accounts(arguments.wait), arguments.project
    owned = await accounts.owned_by_project(name)
    if owned:
        session.confirm(f"removing from the project {name} {scrub.describe(owned)}")
        owned = await accounts.scrub_project(None, name)
    session.show([{"kind": kind, "removed": names} for kind, names in owned.items()])


async def _list(session: Session, arguments: argparse.Namespace) -> None:
    session.show([{"project": p.id, "manager": p.manager, "members": p.members, "description": p.description}
                  for p in await session.auth.projects()])


async def _modify(session: Session, arguments: argparse.Namespace) -> None:
    if arguments.manager is None and arguments.description is None:
        raise exception.InvalidParameterValue("there is nothing to change: --manager or --description says what")
    project = await session.accounts().modify_project(None, arguments.project, arguments.manager, arguments.description)
    session.show([{"project": project.id, "manager": project.manager, "description": project.description}])


async def _add(session: Session, arguments: argparse.Namespace) -> None:
    await session.accounts().add_member(None, arguments.project, arguments.user)
    session.say(f"{arguments.user} is a member of {arguments.project}")


async def _remove(session: Session, arguments: argparse.Namespace) -> None:
    await session.accounts().remove_member(None, arguments.project, arguments.user)
    session.say(f"{arguments.user} is no member of {arguments.project}")


async def _zip(session: Session, arguments: argparse.Namespace) -> None:
    path = os.path.abspath(arguments.file)
    archive = await session.accounts().credentials(None, arguments.project, arguments.user)
    try:  # it has secrets: nobody else gets to read it, not even for a moment, and no file is overwritten
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise exception.NovaError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(archive)
    session.show([{"credentials": path}])


async def _environment(session: Session, arguments: argparse.Namespace) -> None:
    path = await session.accounts().environment(None, arguments.project, arguments.user, arguments.directory)
    session.show([{"credentials": path}])


async def _quota(session: Session, arguments: argparse.Namespace) -> None:
    project = await session.accounts().project(arguments.project)
    if arguments.name is not None:
        if arguments.value is None:
            raise exception.InvalidParameterValue(f"which number shall {arguments.name} be? (-1: no limit, default)")
        try:
            value = None if arguments.value == "default" else int(arguments.value)
        except ValueError:
            raise exception.InvalidParameterValue(f"'{arguments.value}' is neither a number nor 'default'") from None
        await quota.override(session.store, None, quota.account("project", project.id), **{arguments.name: value})
    session.show([{"limit": f.name, "maximum": f.limit, "used": f.used}
                  for f in await quota.usage(session.store, project.id)])


COMMANDS = (
    Command("project", "create", "Add a project.", _create,
            (PROJECT, Argument("manager", "the user who manages it, and becomes a member"),
             Argument("--description", "what it is for", {"default": ""})),
            ("project create web ann --description 'the web shop'",)),
    Command("project", "delete",
            "Remove a project. One that still owns something is not removed, unless --scrub is given.", _delete,
            (PROJECT, SCRUB, WAIT), ("project delete web", "project delete --scrub --yes web"), destroys=True),
    Command("project", "list", "List the projects.", _list, (), ("project list", "--json project list")),
    Command("project", "modify", "Give a project another manager or description.", _modify,
            (PROJECT, Argument("--manager", "the user who is to manage it, and becomes a member"),
             Argument("--description", "what it is for")), ("project modify web --manager bob",)),
    Command("project", "add", "Make a user a member of a project.", _add, (PROJECT, USER), ("project add web bob",)),
    Command("project", "remove", "Take a user out of a project, with the roles there.", _remove, (PROJECT, USER),
            ("project remove web bob",)),
    Command("project", "zip", "Write a member's credentials as a zip archive.", _zip,
            (PROJECT, USER, Argument("file", "where to; it must not exist yet (nova.zip)",
                                     {"nargs": "?", "default": "nova.zip"})), ("project zip web ann ann.zip",)),
    Command("project", "environment", "Write a member's novarc, key and certificate.", _environment,
            (PROJECT, USER, Argument("directory", "where to; made when missing")),
            ("project environment web ann creds",)),
    Command("project", "quota", "Show a project's limits and what of them is used, or change one.", _quota,
            (PROJECT, Argument("name", "the limit to change", {"nargs": "?"}),
             Argument("value", "its new value: a number, -1 for no limit, or 'default'", {"nargs": "?"})),
            ("project quota web", "project quota web instances 20", "project quota web instances default")),
    Command("project", "scrub", "Remove everything that a project owns, but not the project.", _scrub, (PROJECT, WAIT),
            ("project scrub --yes web",), destroys=True),
)
