"""run.sh, as somebody who has just cloned Nova uses it: in a copy of the tree with this one's virtual environment."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from nova.quickstart import read_novarc
from tests import slapd
from tests.clients.support import guest_processes, need_isolation, run, starter_path, traces
from tests.conftest import environment_without_aws, free_port, wait_until
from tests.slapd import Slapd

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="guests and networks need root")


@pytest.fixture
def tree() -> Iterator[Path]:
    """A copy of the files that belong to Nova, with the virtual environment of this one."""
    directory = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))
    directory.chmod(0o755)
    shutil.copytree(ROOT, directory, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(
        ".git", ".venv", ".cache", ".*_cache", "__pycache__", "state", "nova.conf", "build", "dist", "_build",
        "*.egg-info"))
    (directory / ".venv").symlink_to(ROOT / ".venv")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class RunSh:
    """./run.sh in a tree, with flags that keep it apart from other clouds."""

    def __init__(self, tree: Path, *flags: str):
        self.tree, self.state = tree, tree / "state"
        self.slapd = Slapd() if slapd.chosen() == slapd.LDAP else None
        if self.slapd is not None:
            self.slapd.start()
            shutil.copy(self.slapd.flagfile, tree / "nova.conf")
        self.ec2_port = free_port()
        self._flags = [f"--ec2_port={self.ec2_port}", f"--s3_port={free_port()}", f"--metadata_port={free_port()}",
                       f"--starter_path={starter_path()}", f"--libvirt_cache={ROOT / '.cache' / 'libvirt'}", *flags]
        self.process: subprocess.Popen | None = None
        self._output = tree / "output"

    def start(self, *arguments: str, wrapper: tuple[str, ...] = ()) -> None:
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen([*wrapper, "./run.sh", *arguments, *self._flags], cwd=self.tree,
                                            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                            env=environment_without_aws(), start_new_session=True)

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object], timeout: float) -> None:
        """Wait for it while run.sh lives."""
        def holds() -> bool:
            assert self.process is not None and self.process.poll() is None, self.said
            return bool(condition())
        try:
            wait_until(holds, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said}") from None

    def answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return b"AuthFailure" in run_http(self.ec2_port)
        return False

    def stop(self, number: int) -> float:
        """Send the signal; the seconds until all of it has ended, with exit code 0."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(15) == 0, self.said
        return time.monotonic() - began

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def clean(self) -> None:
        try:
            run(str(self.tree / "run.sh"), "clean", *self._flags, environment=environment_without_aws())
        finally:
            if self.slapd is not None:
                self.slapd.remove()

    def instances(self) -> dict[str, dict]:
        novarc = read_novarc(self.state / "novarc")
        ec2 = boto3.session.Session().client(
            "ec2", region_name="nova", endpoint_url=novarc["AWS_ENDPOINT_URL_EC2"],
            aws_access_key_id=novarc["AWS_ACCESS_KEY_ID"], aws_secret_access_key=novarc["AWS_SECRET_ACCESS_KEY"])
        return {i["InstanceId"]: i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]}


def run_http(port: int) -> bytes:
    """The answer to an unsigned request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/?Action=DescribeRegions")
        return connection.getresponse().read()
    finally:
        connection.close()


def test_from_nothing_to_a_guest_and_back(tree: Path):
    """The first start boots a guest that one can log in to; it outlives the daemons, and the next start adopts it."""
    need_isolation()
    cloud = RunSh(tree, "--vlan_start=300", "--private_range=10.203.0.0/16")
    try:
        cloud.start()
        cloud.wait_for(lambda: "remove " in cloud.said, 120)
        [(instance_id, guest)] = guest_processes(cloud.state).items()
        assert "| SSHD started" in cloud.said
        _do_as_the_summary_says(cloud, instance_id)

        assert cloud.stop(signal.SIGTERM) < 10
        assert guest_processes(cloud.state) == {instance_id: guest}
        assert not cloud.answers()

        began = time.monotonic()
        cloud.start()
        cloud.wait_for(cloud.answers, 5)
        cloud.wait_for(lambda: [i["State"]["Name"] for i in cloud.instances().values()] == ["running"], 20)
        assert time.monotonic() - began < 20
        cloud.wait_for(lambda: "remove " in cloud.said, 60)
        assert list(cloud.instances()) == [instance_id]
        assert guest_processes(cloud.state) == {instance_id: guest}
        _do_as_the_summary_says(cloud, instance_id)
        assert cloud.stop(signal.SIGINT) < 10
        assert guest_processes(cloud.state) == {instance_id: guest}
    finally:
        cloud.kill()
        cloud.clean()
    assert not any(traces(cloud.state).values())
    assert not cloud.state.exists()


def _do_as_the_summary_says(cloud: RunSh, instance_id: str) -> None:
    """Take the lines of the summary into a shell."""
    def line(label: str) -> str:
        found = re.search(rf"^  {label} +(.*)$", cloud.said, re.MULTILINE)
        assert found, cloud.said
        return found[1]
    said = run("bash", "-ec", f"{line('credentials')}\n{line('then, e.g.')}", environment=environment_without_aws())
    assert instance_id in said
    assert run("bash", "-ec", f"{line('log in')} -o LogLevel=ERROR hostname").strip() == instance_id


def test_fake_cloud_needs_no_root(tree: Path):
    """--compute_driver=fake comes as far, as an ordinary user; the user is made up by a user namespace."""
    wrapper = ("unshare", "--user") if os.geteuid() == 0 else ()
    if subprocess.run([*wrapper, "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel lets nobody make a user namespace")
    cloud = RunSh(tree, "--compute_driver=fake")
    try:
        cloud.start(wrapper=wrapper)
        cloud.wait_for(lambda: "remove " in cloud.said, 60)
        assert [i["State"]["Name"] for i in cloud.instances().values()] == ["running"]
        assert "log in" not in cloud.said
        assert cloud.stop(signal.SIGTERM) < 10
    finally:
        cloud.kill()
        cloud.clean()
    assert not cloud.state.exists()


# -- what is missing is said in one line -----------------------------------------------------------------------------

def refused(tree: Path, *command: str, path: str | None = None) -> str:
    """What a command says on standard error, which is one line, and it fails."""
    environment = environment_without_aws() | ({"PATH": path} if path else {})
    done = subprocess.run(command, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          env=environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def ordinary_user(tree: Path) -> tuple[str, ...]:
    """What runs a command as somebody who is not root, and to whom the tree belongs."""
    if os.geteuid() != 0:
        return ()
    if subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode == 0:
        return ("unshare", "--user")
    subprocess.run(["chown", "-R", "65534:65534", str(tree)], check=True)  # in a chroot there are no user namespaces
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def test_guests_without_root_are_refused(tree: Path):
    said = refused(tree, *ordinary_user(tree), "./run.sh")
    assert "root" in said and "sudo ./run.sh" in said and "./run.sh --compute_driver=fake" in said


@pytest.fixture
def programs() -> Iterator[Path]:
    """A directory with this machine's programs, but not those that a test is to find missing."""
    directory = Path(tempfile.mkdtemp(prefix="np-", dir="/tmp"))
    directory.chmod(0o755)
    for source in ("/usr/bin", "/bin"):
        for program in Path(source).iterdir():
            if not (directory / program.name).exists() and program.name != "redis-server":
                (directory / program.name).symlink_to(program)
    yield directory
    shutil.rmtree(directory)


def missing(programs: Path, *names: str) -> None:
    for name in names:
        (programs / name).unlink(missing_ok=True)


def fake_program(programs: Path, name: str, script: str) -> None:
    missing(programs, name)
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)


def test_missing_package_where_there_is_no_apt(tree: Path, programs: Path):
    missing(programs, "apt-get", "dpkg-query")
    said = refused(tree, "./run.sh", "--compute_driver=fake", path=str(programs))
    assert "missing: redis-server, and there is no apt-get here" in said
    assert "apt-get install --no-install-recommends redis-server" in said


def test_missing_package_without_root(tree: Path, programs: Path):
    fake_program(programs, "dpkg-query", "exit 1")
    said = refused(tree, *ordinary_user(tree), "./run.sh", "--compute_driver=fake", path=str(programs))
    assert "missing: redis-server. As root: apt-get install --no-install-recommends redis-server" in said


@needs_root
def test_missing_package_that_apt_cannot_install(tree: Path, programs: Path):
    fake_program(programs, "dpkg-query", "exit 1")
    fake_program(programs, "apt-get", "echo E: Unable to locate package redis-server; exit 100")
    policy = Path("/usr/sbin/policy-rc.d")
    before = policy.read_text() if policy.exists() else None
    done = subprocess.run(["./run.sh", "--compute_driver=fake"], cwd=tree, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60,
                          env=environment_without_aws() | {"PATH": str(programs)})
    assert done.returncode == 1
    *log, last = done.stderr.splitlines()
    assert any("Unable to locate package" in line for line in log)
    assert "cannot install: redis-server" in last and "apt-get install --no-install-recommends redis-server" in last
    assert (policy.read_text() if policy.exists() else None) == before


def test_help_and_mistakes(tree: Path):
    said = run(str(tree / "run.sh"), "--help")
    assert "--no-demo" in said and "clean" in said
    assert "I do not know 'start'" in refused(tree, "./run.sh", "start")
    assert "colour" in refused(tree, "./run.sh", "--compute_driver=fake", "--colour=blue")
    assert "warp" in refused(tree, "./run.sh", "--compute_driver=fake", "--ec2_port=warp")
