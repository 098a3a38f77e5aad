"""nova-manage: the operator's tool, working on the cloud's state directly.

Without --redis_url it talks to the nova-all of --state_path.  Every list comes as a table, or as JSON with --json.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

from nova import daemons, exception, flags
from nova.context import new_request_id, request_id_var
from nova.flags import FLAGS
from nova.manage import cloud, hosts, images, objectstore, prefetch, projects, resources, roles, tools, users
from nova.manage.command import FAILED, OK, UNREACHABLE, WRONG, Command, Refused, Session

COMMANDS: tuple[Command, ...] = (*users.COMMANDS, *projects.COMMANDS, *roles.COMMANDS, *hosts.COMMANDS,
                                 *resources.COMMANDS, *images.COMMANDS, *prefetch.COMMANDS, *cloud.COMMANDS,
                                 *objectstore.COMMANDS, *tools.COMMANDS)

#: what each thing is
THINGS = {
    "user": "users and their access keys", "project": "projects, their members, credentials and limits",
    "role": "who has which role", "host": "hosts", "service": "daemons", "network": "the projects' networks",
    "image": "images of disks, kernels and ramdisks", "instance": "instances", "cloud": "the state of the whole",
    "objectstore": "the object store's records and files", "flags": "flags and their values",
    "completion": "completion for a shell",
}
_EPILOG = """\
exit codes: 0 done; 1 refused, failed, or the answer is no; 2 the command line is wrong, or --yes is missing; 3 the
cloud cannot be reached

Flags (--state_path, --redis_url, --flagfile, ...) come before the command; 'nova-manage flags' lists them.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line without flags, made from the table of commands."""
    top = argparse.ArgumentParser(prog="nova-manage", description=__doc__, epilog=_EPILOG,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    _common(top, destroys=True, top=True)
    names = list(dict.fromkeys(command.thing for command in COMMANDS))
    things = top.add_subparsers(dest="thing", required=True, metavar="COMMAND")
    for name in names:
        found = [command for command in COMMANDS if command.thing == name]
        if not found[0].verb:
            _add(things, name, found[0])
            continue
        examples = _examples([command.examples[0] for command in found if command.examples])
        thing = things.add_parser(name, help=THINGS[name], description=f"{THINGS[name].capitalize()}.", epilog=examples,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        verbs = thing.add_subparsers(dest="verb", required=True, metavar="COMMAND")
        for command in found:
            _add(verbs, command.verb, command)
    return top


def _add(group: Any, name: str, command: Command) -> None:
    sub = group.add_parser(name, help=command.help, description=command.help, epilog=_examples(command.examples),
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    sub.set_defaults(command=command)
    for argument in command.arguments:
        sub.add_argument(argument.name, help=argument.help, **argument.options)
    _common(sub, command.destroys)


def _common(to: argparse.ArgumentParser, destroys: bool, top: bool = False) -> None:
    """The options that may stand before and after the command."""
    default = False if top else argparse.SUPPRESS
    to.add_argument("--json", action="store_true", default=default, help="print JSON instead of a table")
    if destroys:
        to.add_argument("--yes", action="store_true", default=default, help="do not ask before what cannot be undone")


def _examples(examples: Any) -> str:
    return "examples:\n" + "\n".join(f"  {_called(example)}" for example in examples) if examples else ""


def _called(example: str) -> str:
    return example if "nova-manage" in example else f"nova-manage {example}"


def _embedded_url() -> str:
    """The Redis of the nova-all in --state_path; its ports become the flags' values.

    :raises exception.Unavailable: there is none
    :raises exception.NovaError: it keeps its users in another directory than the flags say
    """
    socket = os.path.join(FLAGS.state_path, "redis", "redis.sock")
    ready = os.path.join(FLAGS.state_path, "ready.json")
    if not os.path.exists(ready):
        raise exception.Unavailable(
            f"no cloud runs in --state_path={FLAGS.state_path}; start it, or give --redis_url")
    with open(ready) as file:
        facts = json.load(file)
    driver = facts.get("ldap_driver", FLAGS.ldap_driver)  # a cloud of an earlier Nova does not say
    if driver != FLAGS.ldap_driver:
        raise exception.NovaError(f"the cloud keeps its users with --ldap_driver={driver}: give the flags, or the "
                                  f"--flagfile, that it was started with")
    for name, value in facts.items():
        if name.endswith("_port"):
            FLAGS[name].value = value
    return f"unix://{socket}"


async def _run(arguments: argparse.Namespace) -> int:
    command: Command = arguments.command
    request_id_var.set(new_request_id())
    url = FLAGS.redis_url or ("unix:///" if command.offline else _embedded_url())
    store = daemons.open_store(url)
    session = Session(store, arguments.json, arguments.yes)
    try:
        return await command.run(session, arguments) or OK
    finally:
        await session.close()
        await store.close()


def main(argv: list[str]) -> int:
    """Run one command; the exit code."""
    own = _first_word(argv)
    try:
        rest = flags.parse(argv[:own])[1:]
    except flags.FlagError as error:
        print(f"nova-manage: {error}  ('nova-manage flags' lists the flags)", file=sys.stderr)
        return WRONG
    arguments = parser().parse_args([*rest, *argv[own:]])
    try:
        return asyncio.run(_run(arguments))
    except Refused as error:
        print(f"nova-manage: {error}", file=sys.stderr)
        return WRONG
    except exception.Unavailable as error:
        print(f"nova-manage: {error}", file=sys.stderr)
        return UNREACHABLE
    except exception.NovaError as error:
        print(f"nova-manage: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("nova-manage: interrupted", file=sys.stderr)
        return FAILED


def _first_word(argv: list[str]) -> int:
    """Where the flags end and the command begins."""
    for index, word in enumerate(argv[1:], 1):
        if word in THINGS or word in ("--json", "--yes", "-h", "--help"):
            return index
    return next((n for n, word in enumerate(argv[1:], 1) if not word.startswith("-")), len(argv))
