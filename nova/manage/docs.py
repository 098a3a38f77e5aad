"""The page of the manual about nova-manage, made from the table of commands.

Also a program: ``python -m nova.manage.docs > docs/nova-manage.rst`` writes the page.
"""

import argparse
import sys

from nova.manage.cli import COMMANDS, THINGS
from nova.manage.command import Command

_INTRODUCTION = """\
nova-manage
===========

.. Made by: python -m nova.manage.docs > docs/nova-manage.rst

``nova-manage`` is the operator's tool.  It works on the cloud's state directly, so it runs on a host that reaches the
cloud's Redis: ``--redis_url`` says where that is.  Without it, nova-manage talks to the ``nova-all`` that runs in
``--state_path``.  Flags come before the command: ``nova-manage --state_path=/var/lib/nova user list``.

Every list is a table, or JSON with ``--json``.  What cannot be undone is asked about first; ``--yes`` says that it is
meant, and without a terminal to ask on it is needed.  Every level has ``--help``.  A shell completes commands after
``. <(nova-manage completion bash)``.

=========  ======================================================
exit code  meaning
=========  ======================================================
0          done
1          refused, failed, or the answer is no
2          the command line is wrong, or ``--yes`` is missing
3          the cloud cannot be reached
=========  ======================================================
"""


def page() -> str:
    """docs/nova-manage.rst."""
    parts = [_INTRODUCTION]
    for thing, text in THINGS.items():
        title = f"{thing}: {text}"
        parts.append(f"{title}\n{'-' * len(title)}\n")
        parts += [_section(command) for command in COMMANDS if command.thing == thing]
    return "\n".join(parts)


def _section(command: Command) -> str:
    parser = argparse.ArgumentParser(prog="nova-manage " + command.words, add_help=False)
    for argument in command.arguments:
        parser.add_argument(argument.name, help=argument.help, **argument.options)
    if command.destroys:
        parser.add_argument("--yes", action="store_true", help="do not ask")
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    lines = [f"``{usage}``", f"    {command.help}", ""]
    for argument in command.arguments:
        lines += [f"    ``{argument.name}``", f"        {argument.help}", ""]
    if command.examples:
        lines += ["    ::", "", *(f"        {e if 'nova-manage' in e else 'nova-manage ' + e}"
                                  for e in command.examples), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
