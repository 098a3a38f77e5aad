"""Servers and stores that the tests share."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nova import datastore
from nova.flags import FLAGS
from tests import slapd
from tests.waiting import free_port, wait_until


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--directory", choices=[slapd.FAKE, slapd.LDAP], default=slapd.FAKE,
                     help="where the tests' clouds keep users, projects and roles. fake: in their Redis; ldap: in a "
                     "slapd each")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_directories: runs on the embedded directory and on slapd, by the fixture "
                            "`directory_driver`, which its cloud or store uses")
    config.addinivalue_line("markers", "embedded_directory(reason): is about the embedded directory only, and does not "
                            "run with --directory=ldap")
    slapd.choose(config.getoption("directory"))
    if slapd.chosen() == slapd.LDAP and not slapd.IS_INSTALLED:
        raise pytest.UsageError("--directory=ldap needs slapd: apt-get install slapd ldap-utils")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `directory_driver` the directory that was chosen, or both."""
    if "directory_driver" not in metafunc.fixturenames:
        return
    if metafunc.definition.get_closest_marker("both_directories") and slapd.chosen() == slapd.FAKE:
        drivers = [slapd.FAKE, pytest.param(slapd.LDAP, marks=slapd.needs_slapd)]
    else:
        drivers = [pytest.param(slapd.chosen(), id=pytest.HIDDEN_PARAM)]
    metafunc.parametrize("directory_driver", drivers, indirect=True, scope="module")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is about the embedded directory where it is not the one to test."""
    mark = item.get_closest_marker("embedded_directory")
    if mark and slapd.chosen() != slapd.FAKE:
        pytest.skip(f"about the embedded directory: {mark.args[0]}")


@pytest.fixture(scope="module")
def directory_driver(request: pytest.FixtureRequest) -> str:
    """The directory for the cloud or the store of a test: the chosen one, or each for tests marked `both_directories`.
    """
    return request.param


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


@pytest.fixture(scope="session", name="slapd")
def slapd_fixture() -> Iterator[slapd.Slapd]:
    """A slapd for the whole run.  Whoever uses it empties it first, and starts it again if need be."""
    with slapd.running_slapd() as server:
        yield server


@pytest.fixture
async def store(request: pytest.FixtureRequest, directory_driver: str,
                redis_server: RedisServer) -> AsyncIterator[datastore.Store]:
    """An empty store on the private redis-server, and an empty directory, which the flags name: the embedded one's key
    is beside the store."""
    FLAGS.ca_path = str(redis_server.directory / "ca")
    store = datastore.open_store(redis_server.url)
    await store.redis.flushall()
    with contextlib.ExitStack() as until_end:
        if directory_driver == slapd.LDAP:
            server = request.getfixturevalue("slapd")
            until_end.enter_context(server.used())
            directory = server.client()
            await slapd.empty(directory)
            await directory.stop()
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
