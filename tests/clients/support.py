"""A cloud that the tests start as a user would, and what is found of it on the host."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from nova.quickstart import read_novarc
from tests import slapd
from tests.conftest import environment_without_aws, wait_until
from tests.slapd import Slapd

ROOT = Path(__file__).parents[2]
#: what libvirt found out about QEMU is kept here from run to run
LIBVIRT_CACHE = ROOT / ".cache" / "libvirt"


def starter_path() -> Path:
    """The directory of the starter images, which run_tests.sh prepares."""
    return Path(os.environ.get("NOVA_STARTER_PATH", ROOT / ".cache" / "starter"))


def need_isolation() -> None:
    """Skip the test where bridges, rules and guests would be seen outside: run_tests.sh makes namespaces for them."""
    if os.geteuid() != 0:
        pytest.skip("guests and networks need root")
    if "NOVA_TESTS_ISOLATED" not in os.environ:
        pytest.skip("guests and networks are tried only in a network namespace: use ./run_tests.sh")


@dataclass
class Cloud:
    """A running nova-all: its process, its state directory, its endpoints and its administrator's credentials; its
    slapd, if users are kept in one."""

    process: subprocess.Popen
    state_path: Path
    ec2_port: int
    s3_port: int
    environment: dict[str, str]
    slapd: Slapd | None = None

    @property
    def access(self) -> str:
        return self.environment["EC2_ACCESS_KEY"]

    @property
    def secret(self) -> str:
        return self.environment["EC2_SECRET_KEY"]

    def child_environment(self) -> dict[str, str]:
        """The environment of a shell that has sourced novarc, and nothing else of AWS."""
        return {**environment_without_aws(), **self.environment, "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_PAGER": "", "AWS_EC2_METADATA_DISABLED": "true"}

    def log(self) -> str:
        return (self.state_path / "logs" / "nova-all.log").read_text(errors="replace")


@contextlib.contextmanager
def running_cloud(*flags: str, directory: str = "") -> Iterator[Cloud]:
    """nova-all on free ports, in a directory of its own; afterwards it is stopped and cleaned away.

    :param directory: slapd.FAKE or slapd.LDAP (a slapd of its own); the one that was chosen for the run when empty
    """
    with slapd.running_slapd() if (directory or slapd.chosen()) == slapd.LDAP else contextlib.nullcontext() as server:
        with _running_cloud(flags, server) as cloud:
            yield cloud


@contextlib.contextmanager
def _running_cloud(flags: tuple[str, ...], server: Slapd | None) -> Iterator[Cloud]:
    state_path = Path(tempfile.mkdtemp(prefix="nc-", dir="/tmp"))
    arguments = [f"--state_path={state_path}", f"--starter_path={starter_path()}", *flags]
    if server is not None:
        arguments.append(f"--flagfile={server.flagfile}")
    if not any(flag.startswith("--compute_driver=fake") for flag in flags):
        arguments.append(f"--libvirt_cache={LIBVIRT_CACHE}")
    process = nova_all("--ec2_port=0", "--s3_port=0", "--metadata_port=0", *arguments, output=state_path / "output")
    try:
        cloud = wait_for_cloud(process, state_path)
        cloud.slapd = server
        yield cloud
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        cleaner = nova_all("--clean", *arguments, output=state_path / "output")
        cleaner.wait(60)
        (state_path / "output").unlink(missing_ok=True)
        if state_path.exists():
            state_path.rmdir()  # an error when something of the cloud is left


def nova_all(*arguments: str, output: Path) -> subprocess.Popen:
    """Start bin/nova-all, where there is no nova.conf; what it prints is added to the file `output`."""
    with open(output, "ab") as file:
        return subprocess.Popen([sys.executable, str(ROOT / "bin" / "nova-all"), *arguments], cwd="/",
                                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                env=environment_without_aws())


def wait_for_cloud(process: subprocess.Popen, state_path: Path, timeout: float = 90) -> Cloud:
    """Wait until a cloud is up.

    :raises AssertionError: it ended, or is not up within `timeout` seconds; with what it printed
    """
    ready = state_path / "ready.json"

    def is_ready() -> bool:
        return process.poll() is not None or (
            ready.exists() and json.loads(ready.read_text())["pid"] == process.pid
            and "Nova runs." in (state_path / "output").read_text())  # the starter images are registered, too
    try:
        wait_until(is_ready, timeout, "nova-all")
        assert process.poll() is None, f"nova-all ended with exit code {process.returncode}"
    except AssertionError as error:
        output = state_path / "output"
        raise AssertionError(f"{error}\n{output.read_text() if output.exists() else ''}") from None
    facts = json.loads(ready.read_text())
    environment = read_novarc(state_path / "novarc")
    return Cloud(process, state_path, facts["ec2_port"], facts["s3_port"],
                 {name: value for name, value in environment.items() if "$" not in value})


# -- what is on the host ---------------------------------------------------------------------------------------------

def guest_processes(state_path: Path) -> dict[str, int]:
    """The process ids of a cloud's guests, by instance id."""
    found = {}
    for arguments, pid in _processes():
        for argument in arguments:
            if argument.startswith("guest=instance-") and any(str(state_path) in a for a in arguments):
                found[argument.removeprefix("guest=instance-").split(",")[0]] = pid
    return found


def _processes() -> Iterator[tuple[list[str], int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield (entry / "cmdline").read_bytes().decode(errors="replace").split("\0"), int(entry.name)


def traces(state_path: Path) -> dict[str, list[str]]:
    """All that guests and networks leave on a host: empty lists when there are none.

    Under `files`, paths below the state directory; a leases file that is empty is no trace.
    """
    rules = [line for line in _output("iptables-save").splitlines() if line.startswith("-A") or "nova" in line]
    dnsmasqs = [" ".join(arguments) for arguments, _ in _processes() if arguments[0].endswith("dnsmasq")]
    return {
        "guests": sorted(guest_processes(state_path)),
        "links": sorted(interfaces() - {"lo"}),
        "rules": rules,
        "dnsmasq": [arguments for arguments in dnsmasqs if str(state_path) in arguments],
        "files": sorted(str(path.relative_to(state_path)) for name in ("instances", "networks", "libvirt/etc/qemu")
                        for path in (state_path / name).rglob("*")
                        if path.is_file() and path.name != "ip_forward.before"),
    }


def interfaces() -> set[str]:
    """The names of the network interfaces in this namespace."""
    return {link["ifname"] for link in json.loads(_output("ip", "-json", "link"))}


def redis_keys(cloud: Cloud) -> set[str]:
    """The names of all keys in the cloud's Redis."""
    with _redis(cloud) as client:
        return {key.decode() for key in client.keys("*")}


def claims(cloud: Cloud) -> list[int]:
    """What instances claim of the hosts: memory, CPUs and so on, of all hosts."""
    with _redis(cloud) as client:
        return [int(value) for key in client.keys("nova:claims:*") for value in client.hvals(key)]


def _redis(cloud: Cloud) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(cloud.state_path / "redis" / "redis.sock"))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def run(*command: str, environment: dict[str, str] | None = None, timeout: float = 120) -> str:
    """The standard output of a command; an AssertionError with what it said when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
                          env=environment)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def ssh(key: Path, address: str, *command: str, timeout: float = 30, user: str = "root") -> str:
    """The output of a command in a guest; tried again until `timeout` while nobody answers there."""
    deadline = time.monotonic() + timeout
    while True:
        done = subprocess.run(
            ["ssh", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", f"{user}@{address}", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        if done.returncode == 0:
            return done.stdout.strip()
        assert done.returncode == 255 and time.monotonic() < deadline, f"ssh: {done.stderr or done.stdout}"
        time.sleep(0.2)
