"""Servers and stores that the tests share."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nova import datastore
from nova.flags import FLAGS


#: ports that free_port gave away
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody uses, and that no client gets for its own end of a connection meanwhile (ip(7),
    ip_local_port_range)."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            if port not in _given:
                s.bind(("0.0.0.0", port))
                _given.add(port)
                return port


def wait_until(condition: Callable[[], object], timeout: float = 30, what: str = "") -> object:
    """Poll a condition until it is true; its value.  Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.05)


@dataclass
class RedisServer:
    """A redis-server of the tests' own on a unix socket and a port."""

    directory: Path
    port: int
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory),
             "--appendonly", "yes", "--save", "", "--loglevel", "warning"], stdout=subprocess.DEVNULL)

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as s:
                s.sendall(b"PING\r\n")
                return s.recv(7) == b"+PONG\r\n"
            return False
        wait_until(answers, 10, "redis-server")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A private redis-server for the whole run."""
    directory = Path(tempfile.mkdtemp(prefix="nova-redis-"))
    server = RedisServer(directory, free_port())
    server.start()
    yield server
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[datastore.Store]:
    """An empty store on the private redis-server; the directory's key is beside it."""
    FLAGS.ca_path = str(redis_server.directory / "ca")
    store = datastore.open_store(redis_server.url)
    await store.redis.flushall()
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def flags_restored() -> Iterator[None]:
    """Flags that a test sets are as before after it."""
    before = {name: flag.value for name, flag in FLAGS.FlagDict().items()}
    yield
    for name, value in before.items():
        FLAGS.FlagDict()[name].value = value


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets in it."""
    directory = Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def environment_without_aws() -> dict[str, str]:
    """The environment without credentials and endpoints of anybody's cloud."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "EC2_", "S3_"))}
