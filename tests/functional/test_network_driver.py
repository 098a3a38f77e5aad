"""The network drivers: one contract for both, and what the real one does for real DHCP clients.

Each test has a network namespace of its own; guests are further namespaces, with a veth in the bridge.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nova import exception, failpoint
from nova.endpoint.metadata import InstanceMetadata, MetadataService
from nova.flags import FLAGS
from nova.network import dhcp, linux  # noqa: F401  (declares the failpoints)
from nova.network.driver import Lease, NetworkDriver, NetworkSpec, create
from nova.network.fake import FakeDriver
from nova.network.linux import LinuxDriver

NEEDED = ["ip", "iptables", "iptables-restore", "dnsmasq", "dhcp_release", "busybox", "nsenter", "unshare"]
MISSING = [program for program in NEEDED if not shutil.which(program)]
real = pytest.mark.skipif(os.geteuid() != 0 or bool(MISSING),
                          reason=f"needs root and {', '.join(MISSING) or 'its programs'}")

A = Lease("02:16:3e:00:00:0a", "10.202.1.3", "i-a")
B = Lease("02:16:3e:00:00:0b", "10.202.1.4", "i-b")
C = Lease("02:16:3e:00:00:0c", "10.202.2.3", "i-c")
ONE = NetworkSpec("p1", "br101", "10.202.1.0/24", "10.202.1.1", "255.255.255.0", (A, B))
TWO = NetworkSpec("p2", "br102", "10.202.2.0/24", "10.202.2.1", "255.255.255.0", (C,))


def sh(*argv: str, check: bool = True, timeout: float = 30) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{argv}: {done.returncode} {done.stdout} {done.stderr}")
    return done.stdout


async def until(condition: Callable[[], object], timeout: float = 15, what: str = "") -> object:
    """Wait until a condition is true; its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        await asyncio.sleep(0.02)
    return value


def network_namespace(pid: int | str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[None]:
    """A network namespace of the test's own; what still runs in it afterwards is killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    if libc.unshare(0x40000000):  # CLONE_NEWNET
        pytest.skip(f"no network namespaces here: {os.strerror(ctypes.get_errno())}")
    mine = network_namespace("self")
    try:
        sh("ip", "link", "set", "lo", "up")
        yield
    finally:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid() and network_namespace(name) == mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
        libc.setns(before, 0x40000000)
        os.close(before)


@pytest.fixture(params=["fake", pytest.param("linux", marks=real)])
async def driver(request: pytest.FixtureRequest, short_path: Path) -> AsyncIterator[NetworkDriver]:
    """A started driver of either kind."""
    if request.param == "linux":
        request.getfixturevalue("namespace")
    short_path.chmod(0o755)
    FLAGS.state_path = str(short_path)
    driver = create(request.param)
    await driver.start()
    yield driver
    await driver.stop()


@pytest.fixture
async def host(namespace: None, short_path: Path) -> AsyncIterator[LinuxDriver]:
    """The real driver, started."""
    short_path.chmod(0o755)
    FLAGS.state_path = str(short_path)
    driver = LinuxDriver()
    await driver.start()
    yield driver
    await driver.stop()


# -- the contract, for both ----------------------------------------------------------------------------------

async def test_ensure_is_idempotent(driver: NetworkDriver):
    assert await driver.present() == set()
    for _ in range(2):
        await driver.ensure(ONE)
        assert await driver.present() == {"br101"}


async def test_networks_come_and_go_by_themselves(driver: NetworkDriver):
    await asyncio.gather(driver.ensure(ONE), driver.ensure(TWO), driver.ensure(ONE))
    assert await driver.present() == {"br101", "br102"}
    for _ in range(2):
        await driver.remove("br101")
        assert await driver.present() == {"br102"}
    await driver.remove("br999")


async def test_purge_takes_everything(driver: NetworkDriver, short_path: Path):
    await driver.purge()
    await driver.ensure(ONE)
    await driver.ensure(TWO)
    for _ in range(2):
        await driver.purge()
        assert await driver.present() == set()
        assert list(short_path.iterdir()) == []


async def test_a_new_driver_finds_what_the_old_one_made(driver: NetworkDriver):
    await driver.ensure(ONE)
    await driver.stop()
    again = type(driver)()
    await again.start()
    assert await again.present() == {"br101"}
    await again.remove("br101")
    assert await again.present() == set()


async def test_a_bridge_can_pass_to_another_network(driver: NetworkDriver):
    await driver.ensure(ONE)
    await driver.ensure(dataclasses.replace(TWO, bridge="br101"))
    assert await driver.present() == {"br101"}


async def test_what_is_malformed_is_refused(driver: NetworkDriver):
    with pytest.raises(exception.NovaError):
        await driver.ensure(dataclasses.replace(ONE, bridge="../br1"))
    with pytest.raises(exception.NovaError):
        await driver.remove("../br1")
    assert await driver.present() == set()


async def test_nothing_is_done_by_a_driver_that_is_not_started(driver: NetworkDriver):
    await driver.stop()
    for call in (driver.ensure(ONE), driver.remove("br101"), driver.present(), driver.purge()):
        with pytest.raises(exception.NovaError, match="not started"):
            await call


# -- the real one, seen from guests --------------------------------------------------------------------------

DHCP_SCRIPT = """#!/bin/sh
case "$1" in
bound|renew)
  ip address replace "$ip/$mask" dev "$interface"
  ip route replace default via "$router"
esac
echo "$1 ip=$ip mask=$mask router=$router dns=$dns domain=$domain lease=$lease" >> "$EVENTS"
"""


CONNECT = ["timeout", "1", "bash", "-c", 'exec 3<>"/dev/tcp/$0/$1"']
SERVER = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    while True:
        peer = server.accept()
        with open(sys.argv[2], "a") as file:
            file.write(peer[1][0] + chr(10))
"""


class Guest:
    """A namespace with one interface in a bridge."""

    def __init__(self, directory: Path, bridge: str, mac: str, number: int):
        self._children: list[subprocess.Popen] = []
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
        here = network_namespace("self")
        deadline = time.monotonic() + 10
        while network_namespace(self._holder.pid) in ("", here):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        self.tap = f"tap{number}"
        sh("ip", "link", "add", "name", self.tap, "type", "veth", "peer", "name", "eth0", "netns",
           str(self._holder.pid))
        self.plug(bridge)
        self.run("ip", "link", "set", "dev", "lo", "up")
        self.run("ip", "link", "set", "dev", "eth0", "address", mac, "up")
        self.events = directory / f"events{number}"
        self.events.write_text("")
        self._script = directory / "dhcp.sh"
        self._script.write_text(DHCP_SCRIPT)
        self._script.chmod(0o755)

    def plug(self, bridge: str) -> None:
        sh("ip", "link", "set", "dev", self.tap, "master", bridge, "up")

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        return sh(*self.command(*argv), check=check)

    def succeeds(self, *argv: str) -> bool:
        return subprocess.run(self.command(*argv), capture_output=True, timeout=30).returncode == 0

    def dhcp_client(self, *options: str) -> subprocess.Popen:
        client = subprocess.Popen(
            self.command("busybox", "udhcpc", "-f", "-i", "eth0", "-s", str(self._script), "-T", "1",
                         *options),
            env={**os.environ, "EVENTS": str(self.events)}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        self._children.append(client)
        return client

    async def boot(self) -> str:
        """Get an address by DHCP; the event that the client's script saw."""
        client = self.dhcp_client("-q", "-n", "-t", "5")
        await until(lambda: client.poll() is not None, 15, "DHCP client ends")
        assert client.returncode == 0, self.events.read_text()
        return [e for e in self.events.read_text().splitlines() if e.startswith("bound")][-1]

    def fetch(self, url: str) -> str | None:
        done = subprocess.run(self.command("timeout", "3", "busybox", "wget", "-q", "-O", "-", url),
                              capture_output=True, text=True, timeout=10)
        return done.stdout if done.returncode == 0 else None

    def listen(self, port: int) -> Path:
        """Take connections at a port; the file gets a line with the address of each peer."""
        peers = self.events.with_name(f"{self.events.name}-peers")
        peers.write_text("")
        server = subprocess.Popen(self.command(sys.executable, "-c", SERVER, str(port), str(peers)))
        self._children.append(server)
        return peers

    def connects(self, address: str, port: int) -> bool:
        return self.succeeds(*CONNECT, address, str(port))

    def end(self) -> None:
        for child in (*self._children, self._holder):
            child.kill()
            child.wait()


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Callable[[NetworkSpec, Lease], Guest]]:
    """Makes guests."""
    made: list[Guest] = []

    def make(spec: NetworkSpec, lease: Lease) -> Guest:
        made.append(Guest(tmp_path, spec.bridge, lease.mac, len(made)))
        return made[-1]
    yield make
    for guest in made:
        guest.end()


def directory(spec: NetworkSpec) -> Path:
    return Path(FLAGS.state_path) / "networks" / spec.bridge


async def leased(spec: NetworkSpec, *addresses: str) -> bool:
    """Wait until just these addresses are leased: dnsmasq empties its file before it writes it anew."""
    path = directory(spec) / "leases"
    await until(lambda: {held.ip for held in dhcp.parse_leases(path.read_text())} == set(addresses),
                what=f"leases of {addresses}")
    return True


def running(spec: NetworkSpec) -> list[int]:
    return sorted(dhcp.processes(spec.bridge))


def rules() -> list[str]:
    """All rules that there are, with the chains but without counters and comments."""
    return [line.split(" [")[0] for line in sh("iptables-save").splitlines() if line[:1] in "*:-"]


def links() -> dict[str, dict]:
    found = json.loads(sh("ip", "-json", "-details", "address", "show"))
    return {link["ifname"]: link for link in found}


async def check_whole(driver: NetworkDriver, *specs: NetworkSpec) -> None:
    """Exactly these networks are there, all of each."""
    assert await driver.present() == {spec.bridge for spec in specs}
    there = links()
    assert {n for n, link in there.items() if link.get("linkinfo", {}).get("info_kind") == "bridge"} == {
        spec.bridge for spec in specs}
    for spec in specs:
        link = there[spec.bridge]
        assert link["ifalias"] == f"nova:{spec.id}" and "UP" in link["flags"]
        assert [a["local"] for a in link["addr_info"]] == [spec.gateway]
        assert len(running(spec)) == 1
        assert (directory(spec) / "hosts").read_text() == dhcp.hosts_text(spec.leases)
    saved = rules()
    for chain, hook in (("prerouting", "PREROUTING"), ("postrouting", "POSTROUTING"), ("forward", "FORWARD"),
                        ("input", "INPUT")):
        assert saved.count(f"-A {hook} -j nova-{chain}") == 1
    assert sum(line.endswith("MASQUERADE") for line in saved) == len(specs)


async def check_nothing(driver: NetworkDriver, *specs: NetworkSpec) -> None:
    assert await driver.present() == set()
    assert set(links()) == {"lo"}
    assert not any("nova" in line for line in rules())
    for spec in specs:
        assert running(spec) == [] and not directory(spec).exists()


@contextlib.asynccontextmanager
async def metadata() -> AsyncIterator[list[str]]:
    """A metadata service that knows every guest; yields the addresses that asked."""
    asked: list[str] = []

    async def lookup(ip: str) -> InstanceMetadata:
        asked.append(ip)
        return InstanceMetadata(
            instance_id=f"i-of-{ip}", ami_id="ami-1", reservation_id="r-1", launch_index=0, hostname="h",
            local_ipv4=ip, mac="", instance_type="m1.tiny", zone="nova", region="nova", project_id="p",
            launch_time=0, cidr="", gateway="")

    service = MetadataService(lookup, secret=b"s", port=0)
    await service.start()
    FLAGS.metadata_port = service.port
    try:
        yield asked
    finally:
        await service.stop()


URL = "http://169.254.169.254/latest/meta-data/instance-id"


@real
async def test_guest_boots(host: LinuxDriver, guests):
    """It gets its own address, router and name server, resolves its neighbour, and its metadata knows it."""
    async with metadata() as asked:
        await host.ensure(ONE)
        await check_whole(host, ONE)
        guest = guests(ONE, B)
        assert await guest.boot() == ("bound ip=10.202.1.4 mask=24 router=10.202.1.1 dns=10.202.1.1 "
                                      "domain=novalocal lease=3600")
        assert await leased(ONE, "10.202.1.4")
        found = await asyncio.to_thread(guest.fetch, URL)
        assert found == "i-of-10.202.1.4" and asked == ["10.202.1.4"]
    for name in ("i-a", "i-a.novalocal"):
        assert "10.202.1.3" in guest.run("busybox", "nslookup", name, "10.202.1.1")
    assert "i-a.novalocal" in guest.run("busybox", "nslookup", "10.202.1.3", "10.202.1.1")
    assert not guest.succeeds("busybox", "nslookup", "nobody.novalocal", "10.202.1.1")


@real
async def test_a_strange_mac_gets_no_address(host: LinuxDriver, guests):
    await host.ensure(ONE)
    stranger = guests(ONE, dataclasses.replace(A, mac="02:16:3e:ff:ff:ff"))
    client = stranger.dhcp_client("-q", "-n", "-t", "2")
    await until(lambda: client.poll() is not None, 15)
    assert client.returncode != 0 and "bound" not in stranger.events.read_text() and await leased(ONE)


@real
async def test_lease_is_renewed(host: LinuxDriver, guests):
    FLAGS.dhcp_lease_time = 120
    await host.ensure(ONE)
    guest = guests(ONE, A)
    client = guest.dhcp_client()
    await until(lambda: "bound ip=10.202.1.3" in guest.events.read_text(), what="first lease")
    assert "lease=120" in guest.events.read_text()
    client.send_signal(signal.SIGUSR1)  # the client renews at once
    await until(lambda: "renew ip=10.202.1.3" in guest.events.read_text(), what="renewal")
    await host.ensure(ONE)
    client.send_signal(signal.SIGUSR1)
    await until(lambda: guest.events.read_text().count("renew ip=10.202.1.3") == 2, what="second renewal")


@real
async def test_hosts_come_and_go_without_a_new_dnsmasq(host: LinuxDriver, guests):
    await host.ensure(dataclasses.replace(ONE, leases=(A,)))
    first = running(ONE)
    await guests(ONE, A).boot()
    await host.ensure(ONE)
    second = guests(ONE, B)
    assert "ip=10.202.1.4" in await second.boot()
    assert await leased(ONE, "10.202.1.3", "10.202.1.4")
    await host.ensure(dataclasses.replace(ONE, leases=(B,)))
    assert await leased(ONE, "10.202.1.4") and A.mac not in (directory(ONE) / "hosts").read_text()
    assert not second.succeeds("busybox", "nslookup", "i-a.novalocal", "10.202.1.1")
    await host.ensure(dataclasses.replace(ONE, leases=()))
    assert await leased(ONE) and (directory(ONE) / "hosts").read_text() == ""
    assert running(ONE) == first


@real
async def test_an_address_can_pass_to_another_host(host: LinuxDriver, guests):
    await host.ensure(dataclasses.replace(ONE, leases=(A,)))
    await guests(ONE, A).boot()
    heir = Lease("02:16:3e:00:00:0d", A.ip, "i-d")
    await host.ensure(dataclasses.replace(ONE, leases=(heir,)))
    assert "ip=10.202.1.3 " in await guests(ONE, heir).boot()


@real
async def test_leases_go_even_when_dnsmasq_was_dead_or_deaf(host: LinuxDriver, guests):
    await host.ensure(ONE)
    await guests(ONE, A).boot()
    os.kill(running(ONE)[0], signal.SIGKILL)
    await until(lambda: not running(ONE))
    await host.ensure(dataclasses.replace(ONE, leases=(B,)))
    assert await leased(ONE) and len(running(ONE)) == 1
    await guests(ONE, B).boot()
    host._programs["dhcp_release"] = "/bin/true"  # a release that gets lost
    await host.ensure(dataclasses.replace(ONE, leases=()))
    assert await leased(ONE) and len(running(ONE)) == 1


def bound(sock: socket.socket, address: str, port: int) -> bool:
    """Whether the address could be taken."""
    try:
        sock.bind((address, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


@real
async def test_dnsmasq_waits_for_the_sockets_of_a_dead_one(host: LinuxDriver, monkeypatch):
    """The kernel closes a killed process's sockets after its command line is gone from /proc."""
    await host.ensure(ONE)
    os.kill(running(ONE)[0], signal.SIGKILL)
    await until(lambda: not running(ONE))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as held:
        await until(lambda: bound(held, "10.202.1.1", 53))
        held.listen()
        monkeypatch.setattr(dhcp, "STOP_TIME", 0.3)
        with pytest.raises(exception.NovaError, match="dnsmasq does not start on br101, exit code 2: .*in use"):
            await host.ensure(ONE)
        monkeypatch.undo()
        asyncio.get_running_loop().call_later(0.5, held.close)
        await host.ensure(ONE)
    assert len(running(ONE)) == 1


@real
async def test_damage_is_healed(host: LinuxDriver, guests):
    await host.ensure(ONE)
    await host.ensure(TWO)
    before = rules()
    sh("iptables", "-F")
    sh("iptables", "-t", "nat", "-F")
    sh("iptables", "-I", "INPUT", "-j", "nova-input")
    sh("iptables", "-I", "INPUT", "-j", "nova-input")
    await host.ensure(ONE)
    assert rules() == before
    os.kill(running(ONE)[0], signal.SIGKILL)
    await until(lambda: not running(ONE))
    await host.ensure(ONE)
    await check_whole(host, ONE, TWO)
    sh("ip", "address", "flush", "dev", "br101")
    sh("ip", "address", "add", "10.9.9.9/24", "dev", "br101")
    sh("ip", "link", "set", "dev", "br101", "down")
    await host.ensure(ONE)
    await check_whole(host, ONE, TWO)
    mac = links()["br101"]["address"]
    sh("ip", "link", "delete", "dev", "br101")
    await host.ensure(ONE)
    await check_whole(host, ONE, TWO)
    assert links()["br101"]["address"] == mac
    assert "ip=10.202.1.3" in await guests(ONE, A).boot()


@real
async def test_nothing_is_written_when_all_is_well(host: LinuxDriver):
    await host.ensure(ONE)
    again = LinuxDriver()
    await again.start()
    commands: list[str] = []
    run = again._run

    async def record(program: str, *arguments: str, input: bytes | None = None) -> bytes:
        commands.append(program)
        return await run(program, *arguments, input=input)
    again._run = record  # type: ignore[method-assign]

    def written() -> dict[str, int]:  # but what dnsmasq writes by itself
        return {p.name: p.stat().st_mtime_ns for p in directory(ONE).iterdir() if p.name != "log"}
    before, files = running(ONE), written()
    await again.ensure(ONE)
    assert commands == ["ip", "iptables-save"] and running(ONE) == before
    assert files == written()


@real
async def test_projects_are_apart(host: LinuxDriver, guests):
    """No way from one network to another: not to guests, nor the gateway, nor with a borrowed address."""
    async with metadata() as asked:
        await host.ensure(ONE)
        await host.ensure(TWO)
        one, neighbour, two = guests(ONE, A), guests(ONE, B), guests(TWO, C)
        for guest in (one, neighbour, two):
            await guest.boot()
        neighbour.listen(7000)
        two.listen(7000)
        await until(lambda: one.connects("10.202.1.4", 7000), what="the neighbour is reached")
        assert not one.connects("10.202.2.3", 7000)
        for gateway in ("10.202.2.1", "10.202.1.1"):
            answers = one.succeeds("timeout", "2", "busybox", "nslookup", "i-c.novalocal", gateway)
            assert not answers
        assert one.succeeds("busybox", "ping", "-c", "1", "-W", "2", "10.202.1.1")
        assert not one.succeeds("busybox", "ping", "-c", "1", "-W", "1", "10.202.2.1")
        one.run("ip", "address", "replace", "10.202.2.99/32", "dev", "eth0")
        one.run("ip", "route", "replace", "default", "via", "10.202.1.1", "src", "10.202.2.99")
        assert await asyncio.to_thread(one.fetch, URL) is None
        assert await asyncio.to_thread(two.fetch, URL) == "i-of-10.202.2.3"
        assert set(asked) == {"10.202.2.3"}


@real
async def test_the_world_outside(host: LinuxDriver, guests):
    """A guest reaches it with its host's address; from there no guest, metadata or name is reached."""
    sh("ip", "link", "add", "name", "brx", "type", "bridge")
    sh("ip", "address", "add", "192.0.2.1/24", "dev", "brx")
    sh("ip", "link", "set", "dev", "brx", "up")
    outside = guests(dataclasses.replace(ONE, bridge="brx"), dataclasses.replace(A, mac="02:00:00:00:00:99"))
    outside.run("ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
    outside.run("ip", "route", "add", "10.202.0.0/16", "via", "192.0.2.1")
    async with metadata() as asked:
        await host.ensure(ONE)
        guest = guests(ONE, A)
        await guest.boot()
        guest.listen(7000)
        peers = outside.listen(7000)
        await until(lambda: guest.connects("192.0.2.2", 7000), what="outside is reached")
        await until(lambda: peers.read_text(), what="the peer is noted")
        assert set(peers.read_text().split()) == {"192.0.2.1"}
        reach = [*CONNECT, "10.202.1.3", "7000"]
        await until(lambda: subprocess.run(reach).returncode == 0, what="the host itself reaches the guest")
        assert not outside.connects("10.202.1.3", 7000)
        assert not outside.connects("192.0.2.1", FLAGS.metadata_port)
        assert not outside.connects("10.202.1.1", FLAGS.metadata_port)
        assert not outside.succeeds("timeout", "2", "busybox", "nslookup", "i-a.novalocal", "10.202.1.1")
        assert asked == []


@real
async def test_what_others_have_stays(host: LinuxDriver):
    """Bridges, rules, settings and processes of others are as before, after ensure and after purge."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    sh("ip", "link", "add", "name", "br102", "type", "bridge")
    sh("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
    sh("iptables", "-N", "mine")
    sh("iptables", "-A", "FORWARD", "-j", "mine")
    before = rules()
    with pytest.raises(exception.NovaError, match="br102, which network p2 needs, exists and is not Nova's"):
        await host.ensure(TWO)
    await host.remove("br102")
    stranger = subprocess.Popen(["sleep", "100"])
    await host.ensure(ONE)
    (directory(ONE) / "pid").write_text(f"{stranger.pid}\n")
    await host.ensure(ONE)
    assert len(running(ONE)) == 1
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    (directory(ONE) / "pid").write_text(f"{stranger.pid}\n")
    await host.purge()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0"
    own = [line for line in before if line.startswith(("-A", ":mine"))]
    assert [line for line in rules() if line.startswith(("-A", ":mine", ":nova"))] == own
    assert "br102" in links() and "br101" not in links()


@real
async def test_purge_finds_everything_without_its_files(host: LinuxDriver):
    await host.ensure(ONE)
    await host.ensure(TWO)
    shutil.rmtree(Path(FLAGS.state_path) / "networks")
    again = LinuxDriver()
    await again.start()
    await again.purge()
    await check_nothing(again, ONE, TWO)


@real
async def test_changed_settings_reach_a_running_dnsmasq(host: LinuxDriver, guests):
    await host.ensure(ONE)
    FLAGS.dhcp_lease_time = 240
    await host.ensure(ONE)
    assert len(running(ONE)) == 1
    assert "lease=240" in await guests(ONE, A).boot()


@real
async def test_a_bridge_that_passes_on_keeps_nothing(host: LinuxDriver, guests):
    await host.ensure(ONE)
    await guests(ONE, A).boot()
    heir = dataclasses.replace(TWO, bridge="br101")
    await host.ensure(heir)
    await check_whole(host, heir)
    assert await leased(heir) and not any("10.202.1." in line for line in rules())


@real
async def test_dnsmasq_is_root_only_where_nobody_else_gets_in(host: LinuxDriver, guests, short_path: Path):
    def user() -> str:
        return next(a for line in dhcp.processes("br101").values() for a in line if a.startswith("--user="))
    await host.ensure(ONE)
    assert user() == "--user=nobody"
    short_path.chmod(0o700)
    await host.ensure(dataclasses.replace(ONE, leases=()))
    assert user() == "--user=root"
    await host.ensure(ONE)
    assert "ip=10.202.1.3" in await guests(ONE, A).boot()


@real
async def test_ipv6_stays_off_the_bridge(host: LinuxDriver, guests):
    await host.ensure(ONE)
    guests(ONE, A)
    assert [a["family"] for a in links()["br101"]["addr_info"]] == ["inet"]


# -- killed between steps ------------------------------------------------------------------------------------

SCENARIO = """
import asyncio, dataclasses, sys
from nova import flags
from nova.network.driver import create
from tests.functional.test_network_driver import ONE, TWO
async def main():
    driver = create("linux")
    await driver.start()
    for step in rest[1:]:
        if step == "ensure": await driver.ensure(ONE)
        if step == "fewer": await driver.ensure(dataclasses.replace(ONE, leases=()))
        if step == "remove": await driver.remove("br101")
rest = flags.parse(sys.argv)
asyncio.run(main())
"""


def play(failpoint_name: str, *steps: str) -> int:
    """Run steps in a process that dies at the failpoint; its exit code."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, f"--failpoint={failpoint_name}", f"--state_path={FLAGS.state_path}",
         f"--metadata_port={FLAGS.metadata_port}", *steps],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@real
@pytest.mark.parametrize("end", ["completed", "removed"])
@pytest.mark.parametrize("name", failpoint.names("network."))
async def test_killed_at_any_step_it_is_completed_or_removed(host: LinuxDriver, name: str, end: str):
    assert play(name, "ensure", "fewer", "remove") == -signal.SIGKILL, "the failpoint is on the way"
    again = LinuxDriver()
    await again.start()
    if end == "completed":
        await again.ensure(ONE)
        await check_whole(again, ONE)
    for bridge in await again.present():
        await again.remove(bridge)
    await check_nothing(again, ONE)


@real
@pytest.mark.parametrize("name", ["network.dnsmasq.written", "network.dnsmasq.told"])
async def test_killed_before_a_lease_is_released_it_is_released_later(host: LinuxDriver, guests, name: str):
    await host.ensure(ONE)
    await guests(ONE, A).boot()
    before = running(ONE)
    assert play(name, "fewer") == -signal.SIGKILL
    assert await leased(ONE, "10.202.1.3") and running(ONE) == before, "dnsmasq outlives the daemon"
    again = LinuxDriver()
    await again.start()
    await again.ensure(dataclasses.replace(ONE, leases=()))
    assert await leased(ONE) and running(ONE) == before


# -- where it cannot be done ---------------------------------------------------------------------------------

async def test_without_root_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(exception.NovaError, match="need root.*--network_driver=fake.*--compute_driver=fake"):
        await LinuxDriver().start()


async def test_without_programs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(linux.shutil, "which", lambda name, path: None if name[0] == "d" else "/sbin/" + name)
    with pytest.raises(exception.NovaError, match="apt-get install dnsmasq-base dnsmasq-utils"):
        await LinuxDriver().start()


async def test_the_fake_one_needs_no_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    driver = FakeDriver(str(tmp_path / "fake"))
    await driver.start()
    await driver.ensure(ONE)
    assert await driver.present() == {"br101"}
