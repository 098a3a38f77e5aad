"""A real cloud for tests: bin/nova-all as a process of its own, on free ports and in a directory of its own."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.exceptions
import redis
from botocore.config import Config

from nova import datastore
from nova.flags import FLAGS
from nova.quickstart import read_novarc
from tests import slapd
from tests.conftest import environment_without_aws, free_port, wait_until
from tests.slapd import Slapd

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


class Cloud:
    """nova-all with one state directory, through all its starts and deaths.

    :param flags: given at every start
    :param directory: slapd.FAKE or slapd.LDAP; the one that was chosen for the run when empty.  With LDAP it has a
        slapd of its own, which its nova.conf names
    """

    def __init__(self, *flags: str, directory: str = ""):
        self.directory = Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp"))
        self.slapd = Slapd() if (directory or slapd.chosen()) == slapd.LDAP else None
        self.state = self.directory / "state"
        self.ec2_port, self.s3_port, self.metadata_port = free_port(), free_port(), free_port()
        self.flags = flags
        self.console = self.directory / "console"
        self.log = self.state / "logs" / "nova-all.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.started_with: tuple[str, ...] = ()
        self._session = boto3.session.Session(region_name="nova")  # one for all clients: it reads the models once
        if self.slapd is not None:
            self.slapd.start()
            shutil.copy(self.slapd.flagfile, self.directory / "nova.conf")

    # -- the process -------------------------------------------------------------------------------------------------

    def command(self, *flags: str) -> list[str]:
        """The command line of nova-all."""
        given = (*self.flags, *flags)
        ports = [f"--{name}={port}" for name, port in (("ec2_port", self.ec2_port), ("s3_port", self.s3_port),
                                                       ("metadata_port", self.metadata_port))
                 if not any(flag.startswith(f"--{name}=") for flag in given)]
        starter = os.environ.get("NOVA_STARTER_PATH")
        if starter and "--compute_driver=fake" not in given:
            ports.append(f"--starter_path={starter}")
        return [sys.executable, str(ROOT / "bin/nova-all"), f"--state_path={self.state}", *ports, *given]

    def launch(self, *flags: str) -> None:
        """Start the process, and do not wait for it."""
        self.started_with = flags
        with open(self.console, "ab") as console:
            self.process = subprocess.Popen(self.command(*flags), cwd=self.directory, env=environment_without_aws(),
                                            stdin=subprocess.DEVNULL, stdout=console, stderr=console)

    def start(self, *flags: str, timeout: float = 60) -> None:
        """Start the process and wait until the API answers."""
        self.launch(*flags)
        wait_until(self._is_ready, timeout, "the cloud's start")

    def _is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, f"it ended: {self.last_words()}"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads((self.state / "ready.json").read_text())["pid"] == self.process.pid
        return False

    def last_words(self) -> str:
        """The end of what it said on its terminal."""
        return self.console.read_text(errors="replace")[-2000:]

    def run(self, *flags: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run nova-all with these flags to its end."""
        return subprocess.run(self.command(*flags), cwd=self.directory, env=environment_without_aws(),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)

    def kill9(self) -> None:
        """End it as a power failure does, but leave its children."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        self.wait_dead()

    def wait_dead(self, timeout: float = 30) -> int | None:
        """Wait for its end; its exit code as subprocess gives it."""
        return self.process.wait(timeout) if self.process is not None else None

    def stop(self, timeout: float = 20) -> int:
        """End it as Ctrl-C does; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def destroy(self) -> None:
        """End it and remove every trace, of which the command for that must leave none."""
        self.kill9()
        cleaned = self.run("--clean")
        left = list(self.state.iterdir()) if self.state.exists() else []
        if self.slapd is not None:
            self.slapd.remove()
        shutil.rmtree(self.directory, ignore_errors=True)
        assert cleaned.returncode == 0, cleaned.stderr
        assert not left, cleaned.stdout

    # -- its clients -------------------------------------------------------------------------------------------------

    def credentials(self) -> dict[str, str]:
        """The administrator's, as boto3 takes them."""
        novarc = read_novarc(self.state / "novarc")
        return {"aws_access_key_id": novarc["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": novarc["AWS_SECRET_ACCESS_KEY"]}

    def client(self, service: str, timeout: float = 30, **credentials: str) -> Any:
        """A boto3 client that never tries again; the administrator's unless credentials are given."""
        port = {"ec2": self.ec2_port, "s3": self.s3_port}[service]
        path = "/services/Cloud" if service == "ec2" else ""
        config = Config(connect_timeout=5, read_timeout=timeout, retries={"total_max_attempts": 1},
                        s3={"addressing_style": "path"}, max_pool_connections=50)
        return self._session.client(service, endpoint_url=f"http://127.0.0.1:{port}{path}", config=config,
                                    **(credentials or self.credentials()))

    @functools.cached_property
    def ec2(self) -> Any:
        """The administrator's client of EC2."""
        return self.client("ec2")

    @functools.cached_property
    def s3(self) -> Any:
        """The administrator's client of S3."""
        return self.client("s3")

    @property
    def redis_socket(self) -> Path:
        """The unix socket of the redis-server that it brings along."""
        return self.state / "redis" / "redis.sock"

    def redis_client(self) -> "redis.Redis":
        """A raw client of its redis-server."""
        return redis.Redis(unix_socket_path=str(self.redis_socket), decode_responses=True, socket_timeout=5)

    def redis_pid(self) -> int:
        """The process of its redis-server."""
        with contextlib.closing(self.redis_client()) as client:
            return int(client.info("server")["process_id"])

    @contextlib.asynccontextmanager
    async def store(self):
        """Its records, as the daemons see them; so that the directory can be read, with its certificate authority."""
        store = datastore.open_store(f"unix://{self.redis_socket}")
        ca_path, FLAGS.ca_path = FLAGS.ca_path, str(self.state / "ca")
        try:
            with self.slapd.used() if self.slapd is not None else contextlib.nullcontext():
                yield store
        finally:
            FLAGS.ca_path = ca_path
            await store.close()

    @functools.cached_property
    def machine_image(self) -> str:
        """The id of the machine image that the quick start registers, once it is available."""
        query = [{"Name": "name", "Values": ["nova-starter"]}, {"Name": "state", "Values": ["available"]}]
        found = wait_until(lambda: self.ec2.describe_images(Filters=query)["Images"], 60, "the starter image")
        return str(found[0]["ImageId"])  # type: ignore[index]


@contextlib.contextmanager
def cloud(*flags: str, directory: str = "") -> Iterator[Cloud]:
    """A cloud that has not been started; every trace of it is removed afterwards."""
    made = Cloud(*flags, directory=directory)
    try:
        yield made
    finally:
        made.destroy()


def instances(ec2: Any, **query: Any) -> list[dict[str, Any]]:
    """What DescribeInstances gives, flat."""
    return [i for r in ec2.describe_instances(**query)["Reservations"] for i in r["Instances"]]


def states(ec2: Any) -> dict[str, str]:
    """The states of the project's instances that are not terminated, by id."""
    return {i["InstanceId"]: i["State"]["Name"] for i in instances(ec2) if i["State"]["Name"] != "terminated"}


def terminate_all(ec2: Any, timeout: float = 30) -> None:
    """Terminate the project's instances and wait until they are."""
    if ids := list(states(ec2)):
        ec2.terminate_instances(InstanceIds=ids)
        wait_until(lambda: not states(ec2), timeout, "the end of all instances")


def error_code(error: BaseException) -> str:
    """The code of a client's error; its class's name when it is none of an answer."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response["Error"]["Code"])
    return type(error).__name__


def outcome(call: Callable[[], T]) -> T | str:
    """What a call of a client gives, or its error's code."""
    try:
        return call()
    except botocore.exceptions.ClientError as error:
        return error_code(error)


def at_once(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Make calls at the same time, each in a thread; what they give, in order."""
    calls = list(calls)
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and the seconds that it took."""
    began = time.monotonic()
    value = call()
    return value, time.monotonic() - began
