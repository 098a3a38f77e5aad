"""nova-manage user: users and their access keys."""

import argparse
import shlex

from nova import exception
from nova.auth import credentials
from nova.auth.models import User
from nova.cloud import scrub
from nova.flags import FLAGS
from nova.manage.command import SCRUB, USER, WAIT, Argument, Command, Row, Session

_KEY = (Argument("--access", "the access key (a new one is made when left out)"),
        Argument("--secret", "its secret half (a new one is made when left out)"))


def _told(user: User) -> Row:
    return {"user": user.id, "access": user.access, "secret": user.secret}


async def _create(session: Session, arguments: argparse.Namespace) -> None:
    await _add(session, arguments, False)


async def _admin(session: Session, arguments: argparse.Namespace) -> None:
    await _add(session, arguments, True)


async def _add(session: Session, arguments: argparse.Namespace, is_admin: bool) -> None:
    user = await session.accounts().create_user(None, arguments.user, is_admin, arguments.access, arguments.secret)
    session.show([_told(user)])


async def _delete(session: Session, arguments: argparse.Namespace) -> None:
    accounts = session.accounts(arguments.wait)
    owned = await accounts.owned_by_user(arguments.user)
    if owned and (not arguments.scrub or "managed projects" in owned):
        raise exception.DependencyViolation(_refusal(f"the user {arguments.user}", owned))
    session.confirm(f"deleting the user {arguments.user}" + (f" with {scrub.describe(owned)}" if owned else ""))
    await accounts.delete_user(None, arguments.user, scrubbed=arguments.scrub)
    session.say(f"deleted the user {arguments.user}")


def _refusal(what: str, owned: scrub.Owned) -> str:
    advice = "--scrub removes them first"
    if "managed projects" in owned:
        advice = "give the projects another manager (project modify --manager) or delete them first"
    return f"{what} still has {scrub.describe(owned)}; {advice}"


async def _list(session: Session, arguments: argparse.Namespace) -> None:
    session.show([{"user": u.id, "access": u.access, "admin": u.is_admin, "locked": u.is_locked}
                  for u in await session.auth.users()])


async def _exports(session: Session, arguments: argparse.Namespace) -> None:
    user = await session.accounts().user(arguments.user)
    access = credentials.access_key(user, arguments.project or user.id)
    ec2 = FLAGS.ec2_url or f"http://{FLAGS.api_host}:{FLAGS.ec2_port}/services/Cloud"
    s3 = FLAGS.s3_url or f"http://{FLAGS.api_host}:{FLAGS.s3_port}"
    for name, value in (("EC2_ACCESS_KEY", access), ("EC2_SECRET_KEY", user.secret),
                        ("EC2_URL", ec2), ("S3_URL", s3), ("AWS_ACCESS_KEY_ID", access),
                        ("AWS_SECRET_ACCESS_KEY", user.secret), ("AWS_DEFAULT_REGION", FLAGS.region),
                        ("AWS_ENDPOINT_URL_EC2", ec2), ("AWS_ENDPOINT_URL_S3", s3),
                        ("AWS_ENDPOINT_URL_IAM", ec2),
                        ("AWS_ENDPOINT_URL_STS", ec2)):
        print(f"export {name}={shlex.quote(value)}")


async def _modify(session: Session, arguments: argparse.Namespace) -> None:
    is_admin = None if arguments.admin is None else arguments.admin == "yes"
    if (arguments.access, arguments.secret, is_admin) == (None, None, None):
        raise exception.InvalidParameterValue("there is nothing to change: --access, --secret or --admin says what")
    user = await session.accounts().modify_user(None, arguments.user, arguments.access, arguments.secret, is_admin)
    session.show([{"user": user.id, "access": user.access, "admin": user.is_admin, "locked": user.is_locked}])


async def _lock(session: Session, arguments: argparse.Namespace) -> None:
    await session.accounts().lock_user(None, arguments.user)
    session.say(f"locked the user {arguments.user}")


async def _unlock(session: Session, arguments: argparse.Namespace) -> None:
    await session.accounts().unlock_user(None, arguments.user)
    session.say(f"unlocked the user {arguments.user}")


async def _rotate(session: Session, arguments: argparse.Namespace) -> None:
    user = await session.accounts().user(arguments.user)
    session.confirm(f"making the access key {user.access} of {user.id} worthless")
    session.show([_told(await session.accounts().rotate(None, user.id))])


COMMANDS = (
    Command("user", "admin", "Add an administrator of the cloud, and print the access key.", _admin, (USER, *_KEY),
            ("user admin root",)),
    Command("user", "create", "Add a user, and print the access key.", _create, (USER, *_KEY), ("user create ann",)),
    Command("user", "delete", "Remove a user. One who still owns something is not removed, unless --scrub is given.",
            _delete, (USER, SCRUB, WAIT), ("user delete ann", "user delete --scrub --yes ann"), destroys=True),
    Command("user", "list", "List the users.", _list, (), ("user list", "--json user list")),
    Command("user", "exports", "Print a user's access key and the cloud's addresses for a shell to read.", _exports,
            (USER, Argument("project", "the project (the one of the user's name)", {"nargs": "?", "default": ""})),
            ("user exports ann web",)),
    Command("user", "modify", "Change a user's access key, or who administers the cloud.", _modify,
            (USER, Argument("--access", "another access key"), Argument("--secret", "another secret half"),
             Argument("--admin", "whether the user administers the cloud", {"choices": ["yes", "no"]})),
            ("user modify ann --admin no",)),
    Command("user", "lock", "Refuse a user's requests.", _lock, (USER,), ("user lock ann",)),
    Command("user", "unlock", "Let a user in again, also after too many wrong signatures.", _unlock, (USER,),
            ("user unlock ann",)),
    Command("user", "rotate", "Give a user a new access key in place of the old one, and print it.", _rotate, (USER,),
            ("user rotate --yes ann",), destroys=True),
)
