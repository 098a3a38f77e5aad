"""Which directory the tests run on, and a real slapd for them: in a private directory, made ready by slap.sh.

``pytest --directory=ldap`` gives every cloud and every AuthManager of the tests a slapd; without it they use the
embedded directory.  A test that is marked ``both_directories`` runs on either.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.auth import manager, tree  # noqa: F401 (manager has a flag that slap.sh prints)
from nova.auth.directory import Directory, Scope, split_dn
from nova.auth.ldapdriver import LdapDirectory
from nova.flags import FLAGS
from tests.waiting import free_port, wait_until

ROOT = Path(__file__).parents[1]
SUFFIX = "dc=nova"
FAKE, LDAP = "fake", "ldap"

#: whether there is a slapd here
IS_INSTALLED = shutil.which("slapd", path=os.environ["PATH"] + ":/usr/sbin") is not None
needs_slapd = pytest.mark.skipif(not IS_INSTALLED, reason="slapd is not installed")

_chosen = FAKE


def choose(driver: str) -> None:
    """Have what is started from now on use this directory, unless it names one: FAKE or LDAP."""
    global _chosen
    _chosen = driver


def chosen() -> str:
    """The directory that tests use which name none."""
    return _chosen


class Slapd:
    """slapd through all its starts and deaths.

    :param options: more options of slap.sh
    """

    def __init__(self, *options: str):
        self.directory = Path(tempfile.mkdtemp(prefix="ns-", dir="/tmp")) / "slapd"
        self.port = free_port()
        self.options = options
        #: what slap.sh prints for nova.conf, there after the first start
        self.flagfile = self.directory.parent / "nova.conf"

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        return (self.directory / "nova.password").read_text()

    @property
    def pid(self) -> int:
        return int((self.directory / "slapd.pid").read_text())

    def slap(self, *options: str, input: str = "") -> subprocess.CompletedProcess[str]:
        """Run slap.sh on it."""
        return subprocess.run([str(ROOT / "slap.sh"), f"--config-dir={self.directory}", f"--port={self.port}",
                               *self.options, *options], text=True, capture_output=True, input=input, timeout=120)

    def start(self) -> None:
        done = self.slap()
        assert done.returncode == 0, done.stderr + done.stdout
        self.flagfile.write_text("".join(line for line in done.stdout.splitlines(True) if line.startswith("--")))

    def kill(self) -> None:
        """As a crash: without warning."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.listens(), 10, "slapd's end")

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        shutil.rmtree(self.directory.parent, ignore_errors=True)

    def client(self, **options) -> LdapDirectory:
        """A directory on it, as Nova unless the options say otherwise."""
        return LdapDirectory(**{"url": self.url, "user_dn": f"cn=nova,{SUFFIX}", "password": self.password,
                                "timeout": 2, **options})

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Have this process's flags name it, as slap.sh printed them."""
        lines = self.flagfile.read_text().splitlines()
        given = dict(line.removeprefix("--").split("=", 1) for line in lines)
        before = {name: FLAGS[name].value for name in given}
        for name, value in given.items():
            FLAGS[name].value = value
        try:
            yield
        finally:
            for name, value in before.items():
                FLAGS[name].value = value


@contextlib.contextmanager
def running_slapd(*options: str) -> Iterator[Slapd]:
    """A slapd that is ready, with more options of slap.sh; removed afterwards."""
    server = Slapd(*options)
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def empty(directory: Directory) -> None:
    """Remove all users, projects and roles."""
    for unit in tree.roots():
        found = await directory.search(unit, Scope.SUBTREE, attributes=["objectClass"])
        for entry in sorted(found, key=lambda e: -len(split_dn(e.dn))):
            if len(split_dn(entry.dn)) > len(split_dn(unit)):
                await directory.delete(entry.dn)
