"""A real slapd for tests, in a private directory on a private port, made ready by slap.sh."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from nova.auth.ldapdriver import LdapDirectory
from tests.conftest import free_port, wait_until

ROOT = Path(__file__).parents[2]
SUFFIX = "dc=nova"


class Slapd:
    """slapd through all its starts and deaths.

    :param options: more options of slap.sh
    """

    def __init__(self, *options: str):
        self.directory = Path(tempfile.mkdtemp(prefix="ns-", dir="/tmp")) / "slapd"
        self.port = free_port()
        self.options = options

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
