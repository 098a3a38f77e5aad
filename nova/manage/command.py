"""What a command of nova-manage is: an entry of a table, and what it works with."""

import argparse
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nova import daemons, exception
from nova.auth.manager import AuthManager
from nova.cloud.accounts import Accounts
from nova.datastore import Store
from nova.rpc import Bus

Row = dict[str, Any]

#: exit codes: done; refused, failed, or the answer is no; the command line is wrong; the cloud cannot be reached
OK, FAILED, WRONG, UNREACHABLE = 0, 1, 2, 3


class Refused(exception.NovaError):
    """The command line lacks something, or the operator said no."""


@dataclass(frozen=True)
class Argument:
    """One argument of a command: a positional one, or an option when the name begins with ``--``.

    `options` are those of :meth:`argparse.ArgumentParser.add_argument`.
    """

    name: str
    help: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """One command: ``nova-manage <thing> <verb>``; `verb` is empty for a command that is only one word.

    `run` returns an exit code, or None for 0.  An `offline` command needs no cloud.  One that `destroys` what cannot be
    brought back asks before it does, unless --yes is given.
    """

    thing: str
    verb: str
    help: str
    run: "Callable[[Session, argparse.Namespace], Awaitable[int | None]]"
    arguments: tuple[Argument, ...] = ()
    examples: tuple[str, ...] = ()
    offline: bool = False
    destroys: bool = False

    @property
    def words(self) -> str:
        """How it is called."""
        return f"{self.thing} {self.verb}".rstrip()


class Session:
    """What commands work with: the store, and what is made of it when it is first needed.

    :param as_json: print JSON instead of tables
    :param yes: do not ask
    """

    def __init__(self, store: Store, as_json: bool, yes: bool):
        self.store = store
        self.as_json, self._yes = as_json, yes
        self._bus: Bus | None = None
        self._auth: AuthManager | None = None

    @cached_property
    def auth(self) -> AuthManager:
        """Users and projects."""
        self._auth = AuthManager(self.store)
        return self._auth

    @property
    def bus(self) -> Bus:
        """The message bus; where it is the in-memory one, daemons find what is wanted by themselves."""
        if self._bus is None:
            self._bus = daemons.open_bus()
            self._bus.start()
        return self._bus

    def accounts(self, timeout: float | None = None) -> Accounts:
        """What changes users and projects.

        :param timeout: seconds that a scrub waits for instances to be gone
        """
        options = {} if timeout is None else {"scrub_timeout": timeout}
        return Accounts(self.store, self.bus, self.auth, daemons.authority(), **options)

    async def close(self) -> None:
        """Let connections go."""
        if self._auth is not None:
            await self._auth.stop()
        if self._bus is not None:
            await self._bus.stop()

    def show(self, rows: Sequence[Row]) -> None:
        """Print a list."""
        if self.as_json:
            print(json.dumps(rows, indent=2))
        else:
            print(table(rows, shutil.get_terminal_size((120, 24)).columns))

    def say(self, text: str) -> None:
        """Print a line for people, not where a program reads JSON."""
        if not self.as_json:
            print(text)

    def confirm(self, what: str) -> None:
        """Ask before what cannot be undone.

        :raises Refused: the answer is no, or there is nobody to ask
        """
        if self._yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Refused(f"{what}: this cannot be undone, and there is no terminal to ask on; "
                          "--yes says that it is meant")
        print(f"{what}: this cannot be undone. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Refused("nothing was done")


def table(rows: Sequence[Row], width: int) -> str:
    """Rows of the same columns as a table that fits into `width` characters: the widest columns are cut."""
    if not rows:
        return "(none)"
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[n]) for line in [names, *cells]) for n in range(len(names))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1

    def line(texts: Sequence[str]) -> str:
        return "  ".join((text if len(text) <= w else text[:w - 1] + "…").ljust(w)
                         for text, w in zip(texts, widths, strict=True)).rstrip()
    return "\n".join([line(names), *map(line, cells)])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


USER = Argument("user", "the user's name")
PROJECT = Argument("project", "the project's name")
SCRUB = Argument("--scrub", "first remove what is owned: instances are terminated and waited for, images deregistered, "
                 "buckets emptied and removed, key pairs forgotten", {"action": "store_true"})
WAIT = Argument("--wait", "seconds to wait for instances to be gone (120)",
                {"type": float, "default": 120.0, "metavar": "SECONDS"})
