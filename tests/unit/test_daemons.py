"""The daemons' command lines and how their parts are put together."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from nova import daemons, exception, failpoint
from nova.compute.virt.fake import FakeDriver
from nova.flags import FLAGS
from nova.network.fake import FakeDriver as FakeNetwork
from nova.service import Service

ROOT = Path(__file__).parents[2]
DAEMONS = ["nova-api", "nova-objectstore", "nova-compute", "nova-network", "nova-all"]


def run(directory: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "bin" / name), *arguments], cwd=directory, capture_output=True,
                          text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "HOME": str(directory)})


@pytest.mark.parametrize("name", DAEMONS)
def test_an_unknown_flag_is_one_line_and_exit_code_1(tmp_path: Path, name: str) -> None:
    ended = run(tmp_path, name, "--no_such_flag")
    assert ended.returncode == 1 and ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith(name) and "no_such_flag" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", DAEMONS[:-1])
def test_a_daemon_without_a_redis_url_is_one_line_and_exit_code_1(tmp_path: Path, name: str) -> None:
    ended = run(tmp_path, name, "--compute_driver=fake", "--network_driver=fake")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "--redis_url" in line


def test_a_state_path_that_is_too_long_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    ended = run(tmp_path, "nova-all", "--compute_driver=fake", f"--state_path={tmp_path}/{'x' * 120}")
    assert ended.returncode == 1
    assert "too long" in ended.stderr.splitlines()[-1]


class Listener(Service):
    name = "test server"
    port = 4711

    def __init__(self, error: OSError | None = None):
        self.error = error

    async def start(self) -> None:
        if self.error:
            raise self.error


async def test_the_port_that_a_service_got_is_put_into_its_flag() -> None:
    FLAGS.ec2_port = 0
    await daemons.PortFlag("ec2_port", Listener()).start()
    assert FLAGS.ec2_port == 4711


async def test_a_port_that_is_taken_is_told_with_the_flag_that_chooses_another() -> None:
    FLAGS.ec2_port = 8773
    taken = OSError(errno.EADDRINUSE, "Address already in use")
    with pytest.raises(exception.NovaError, match="port 8773: Address already in use .--ec2_port"):
        await daemons.PortFlag("ec2_port", Listener(taken)).start()


async def test_a_service_that_is_made_later_is_made_at_its_start() -> None:
    made = []

    async def make() -> Service:
        made.append(Listener())
        return made[-1]
    later = daemons.Later("later", make)
    await later.stop()
    assert made == []
    await later.start()
    assert len(made) == 1
    await later.stop()


def test_a_fake_hypervisor_needs_no_real_networks() -> None:
    FLAGS.compute_driver = "fake"
    assert isinstance(daemons.compute_driver(), FakeDriver)
    assert isinstance(daemons.network_driver(), FakeNetwork)


def test_every_failpoint_says_what_is_done_and_what_is_not() -> None:
    assert len(failpoint.names()) > 10
    assert {name.split(".")[0] for name in failpoint.names()} >= {"cloud", "compute", "image", "objectstore"}
