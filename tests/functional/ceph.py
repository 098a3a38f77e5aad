"""A Ceph of one node for the tests: a monitor, an OSD that keeps its data in memory, and a radosgw, all with everything
they have below a private directory.

The monitor takes up proposals at once, which makes it ready in seconds.  S3 needs no manager daemon.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.waiting import free_port, wait_until

ACCESS, SECRET = "AKIANOVATESTS", "a/secret+of=tests"
_PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool")
needs_ceph = pytest.mark.skipif(not all(map(shutil.which, _PROGRAMS)),
                                reason="ceph-mon, ceph-osd, radosgw or ceph-common is not installed")
#: seconds: a machine that is busy with other tests takes its time
_PATIENCE = 90.0

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
keyring = {directory}/keyring
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
pid file = {directory}/run/$name.pid
log file = {directory}/log/$name.log
mon cluster log file = {directory}/log/cluster.log
crash dir = {directory}/crash
paxos propose interval = 0.05
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = false
[mon]
mon data = {directory}/mon
mon data avail warn = 1
mon data avail crit = 1
[osd]
osd data = {directory}/osd
keyring = {directory}/osd/keyring
osd objectstore = memstore
memstore device bytes = 2147483648
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} ssl_endpoint=127.0.0.1:{secure} ssl_certificate={directory}/tls.pem
rgw run sync thread = false
rgw enable usage log = false
rgw thread pool size = 64
keyring = {directory}/rgw/keyring
"""


class Ceph:
    """The cluster, and its S3 at `url`, and at `secure_url` with `certificate`; its keys are ACCESS and SECRET."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nc-", dir="/tmp"))  # short: there are sockets in it
        port, secure = free_port(), free_port()
        self.url, self.secure_url = f"http://127.0.0.1:{port}", f"https://127.0.0.1:{secure}"
        self.certificate = self.directory / "tls.pem"
        for name in ("mon", "osd", "run", "log", "rgw", "crash"):
            (self.directory / name).mkdir()
        (self.directory / "ceph.conf").write_text(_CONFIGURATION.format(
            fsid=uuid.uuid4(), mon1=free_port(), mon2=free_port(), directory=self.directory, port=port, secure=secure))
        self._environment = {**os.environ, "CEPH_CONF": str(self.directory / "ceph.conf")}

    def run(self, *argv: str, input: str = "") -> str:
        """Run a command of Ceph's; its output."""
        done = subprocess.run(argv, text=True, capture_output=True, input=input, env=self._environment,
                              timeout=_PATIENCE)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Make everything and start it."""
        here = str(self.directory)
        self.run("ceph-authtool", "--create-keyring", f"{here}/keyring", "--gen-key", "-n", "mon.", "--cap", "mon",
                 "allow *")
        self.run("ceph-authtool", f"{here}/keyring", "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *",
                 "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        fsid, host = self._said("fsid"), self._said("mon host")
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", host, f"{here}/monmap")
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{here}/monmap", "--keyring", f"{here}/keyring")
        self.run("ceph-mon", "-i", "a")
        key = self.run("ceph-authtool", "--gen-print-key").strip()
        osd = str(uuid.uuid4())
        self.run("ceph", "osd", "new", osd, "-i", "-", input=json.dumps({"cephx_secret": key}))
        self.run("ceph-authtool", "--create-keyring", f"{here}/osd/keyring", "-n", "osd.0", "--add-key", key)
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.run("ceph-osd", "-i", "0")
        wait_until(lambda: json.loads(self.run("ceph", "osd", "stat", "--format", "json"))["num_up_osds"], _PATIENCE)
        self.run("ceph", "auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx", "-o",
                 f"{here}/rgw/keyring")
        self.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                 "2", "-subj", "/CN=radosgw", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{here}/key.pem",
                 "-out", f"{here}/cert.pem")
        self.certificate.write_text((self.directory / "cert.pem").read_text()
                                    + (self.directory / "key.pem").read_text())
        self.start_gateway()
        self.run("radosgw-admin", "user", "create", "--uid=nova", "--display-name=nova", f"--access-key={ACCESS}",
                 f"--secret-key={SECRET}")

    def _said(self, name: str) -> str:
        lines = (self.directory / "ceph.conf").read_text().splitlines()
        return next(line.partition(" = ")[2] for line in lines if line.startswith(name + " = "))

    def start_gateway(self) -> None:
        """Start the radosgw; returns when it answers."""
        self.run("radosgw", "-n", "client.rgw")
        wait_until(self._answers, _PATIENCE, "radosgw answers")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def signal_gateway(self, number: int) -> None:
        """Send the radosgw a signal; after SIGKILL it is gone when this returns."""
        pid = self._pid("client.rgw")
        os.kill(pid, number)
        if number == signal.SIGKILL:
            wait_until(lambda: not _runs(pid), _PATIENCE)

    def _pid(self, name: str) -> int:
        return int((self.directory / "run" / f"{name}.pid").read_text())

    def client(self, **config: Any) -> Any:
        """An S3 client of the cluster's own S3."""
        return boto3.client("s3", endpoint_url=self.url, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
                            region_name="default", config=Config(s3={"addressing_style": "path"}, **config))

    def limit(self, **limits: int) -> None:
        """Set the quota of the user (max_objects, max_size in bytes; -1 takes one away)."""
        self.run("radosgw-admin", "quota", "set", "--quota-scope=user", "--uid=nova",
                 *(f"--{name.replace('_', '-')}={value}" for name, value in limits.items()))
        self.run("radosgw-admin", "quota", "enable", "--quota-scope=user", "--uid=nova")

    def destroy(self) -> None:
        """End it and remove all that it had."""
        for path in (self.directory / "run").glob("*.pid"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                pid = int(path.read_text())
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: not _runs(pid), _PATIENCE)
        shutil.rmtree(self.directory)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def running() -> Iterator[Ceph]:
    """A cluster while the block runs."""
    cluster = Ceph()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()
