"""The bus over kombu's in-memory transport and over a real RabbitMQ."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nova import exception
from nova.process import wait
from nova.rpc import Bus
from tests.conftest import free_port, wait_until


class RabbitMQ:
    """A private RabbitMQ node."""

    def __init__(self, directory: Path):
        self.directory, self.port = directory, free_port()
        self.process: subprocess.Popen | None = None
        d, dist, epmd = str(directory), free_port(), free_port()
        (directory / "plugins").write_text("[].")
        (directory / "rabbitmq.conf").write_text("loopback_users = none\nlog.console = false\n")
        self.env = {**os.environ, "HOME": d, "RABBITMQ_NODENAME": f"nova{self.port}@localhost",
                    "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(self.port),
                    "RABBITMQ_DIST_PORT": str(dist), "ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
                    "RABBITMQ_BASE": d, "RABBITMQ_MNESIA_BASE": f"{d}/mnesia", "RABBITMQ_LOG_BASE": f"{d}/log",
                    "RABBITMQ_CONFIG_FILE": f"{d}/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{d}/plugins",
                    "RABBITMQ_PID_FILE": f"{d}/pid",
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                        "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -setcookie nova"}

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        self.process = subprocess.Popen(["/usr/lib/rabbitmq/bin/rabbitmq-server"], env=self.env, start_new_session=True,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    s.settimeout(2)
                    s.sendall(b"AMQP\0\0\x09\x01")
                    return s.recv(1) == b"\x01"
            except OSError:
                return False
        wait_until(answers, 60, "RabbitMQ")

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def clean(self) -> None:
        self.kill()
        for entry in Path("/proc").iterdir():  # the Erlang port mapper daemonises itself
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"RABBITMQ_BASE={self.directory}\0".encode() in environment:
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    server = RabbitMQ(Path(tempfile.mkdtemp(prefix="nova-rabbit-")))
    server.start()
    yield server
    server.clean()


@pytest.fixture(params=["memory", "amqp"])
def url(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else request.getfixturevalue("rabbitmq").url


class Worker:
    """Methods on the bus that remember what they were asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def echo(self, text: str) -> dict:
        return {"said": text}

    async def remember(self, text: str) -> None:
        self.seen.append(text)

    async def fail(self) -> None:
        raise exception.InvalidParameterValue(value="x", name="Y")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def handlers(self) -> dict:
        return {name: getattr(self, name) for name in ("echo", "remember", "fail", "sleep")}


@pytest.fixture
async def buses(url: str) -> AsyncIterator[tuple[Bus, Worker, Worker]]:
    """An asking bus, and two workers on hosts one and two of the same topic."""
    asking, one, two = Bus(url, "api"), Bus(url, "one"), Bus(url, "two")
    workers = Worker(), Worker()
    for bus, worker in zip((one, two), workers, strict=True):
        bus.serve("work", worker.handlers())
    for bus in (asking, one, two):
        bus.start()
    for bus in (asking, one, two):
        assert await bus.connected(20)
    yield asking, *workers
    for bus in (asking, one, two):
        await bus.stop()


async def eventually(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_call_is_answered(buses) -> None:
    assert await wait(buses[0].call("work.one", "echo", text="ä")) == {"said": "ä"}
    assert await wait(buses[0].call("work", "echo", text="any")) == {"said": "any"}


async def test_an_error_comes_back_as_one(buses) -> None:
    with pytest.raises(exception.RemoteError, match="Value .x. for parameter Y"):
        await wait(buses[0].call("work.two", "fail"))
    with pytest.raises(exception.RemoteError, match="no method nothing"):
        await wait(buses[0].call("work.two", "nothing"))


async def test_nobody_there_is_told_in_time(buses) -> None:
    began = time.monotonic()
    with pytest.raises(exception.RpcTimeout):
        await wait(buses[0].call("work.three", "echo", timeout=0.3, text=""))
    with pytest.raises(exception.RpcTimeout):
        await wait(buses[0].call("work.one", "sleep", timeout=0.3, seconds=1.0))
    assert time.monotonic() - began < 2


async def test_a_cast_reaches_its_host_and_a_fanout_all(buses) -> None:
    asking, one, two = buses
    await wait(asking.cast("work.one", "remember", text="cast"))
    await wait(asking.fanout("work", "remember", text="fanout"))
    await eventually(lambda: sorted(one.seen) == ["cast", "fanout"] and two.seen == ["fanout"])


async def test_a_slow_method_holds_up_no_other(buses) -> None:
    slow = buses[0].call("work.one", "sleep", seconds=1.0)
    began = time.monotonic()
    for n in range(50):
        await wait(buses[0].call("work.one", "echo", text=str(n)))
    assert time.monotonic() - began < 0.9
    await wait(slow)


async def test_the_server_comes_back(rabbitmq: RabbitMQ) -> None:
    asking, one = Bus(rabbitmq.url, "api"), Bus(rabbitmq.url, "lonely")
    worker = Worker()
    one.serve("work2", worker.handlers())
    asking.start()
    one.start()
    assert await asking.connected(20) and await one.connected(20)
    await wait(asking.call("work2", "echo", text="before"))
    rabbitmq.kill()
    waiting = asking.cast("work2", "remember", text="sent while it was down")
    await asyncio.to_thread(rabbitmq.start)
    await wait(waiting)
    async with asyncio.timeout(20):
        while True:
            try:
                await wait(asking.call("work2", "echo", timeout=2, text="after"))
                break
            except exception.RpcTimeout:
                continue
    await eventually(lambda: worker.seen == ["sent while it was down"])
    await asking.stop()
    await one.stop()
