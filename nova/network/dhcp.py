"""One dnsmasq per network: DHCP with fixed addresses, and the names of the network's instances.

A dnsmasq is a daemon of its own and outlives Nova's; it is known again by its process id file and its command
line, never by the id alone.  All that it is told stands in arguments and in files under the network's
directory: ``hosts`` (MAC, address, name), ``names`` (a hosts file for the name service), ``leases`` (its
own), ``pid``, ``log``, and ``loaded``, Nova's note of which process was told to read which content.  How
bridges and rules come about is none of its business.
"""

import asyncio
import hashlib
import ipaddress
import json
import logging
import os
import re
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from nova import exception, failpoint, process
from nova.flags import FLAGS, DEFINE_integer, DEFINE_string
from nova.network.driver import Lease, NetworkSpec

LOG = logging.getLogger(__name__)

DEFINE_integer("dhcp_lease_time", 3600, "seconds that an address is leased for; renewed at half time",
               lower_bound=120, upper_bound=3600)
DEFINE_string("dhcp_domain", "novalocal", "domain of the instances' names inside their network")

failpoint.declare("network.dnsmasq.written", "the host files are written, dnsmasq has not read them")
failpoint.declare("network.dnsmasq.told", "dnsmasq has the new hosts, vanished ones still have leases")
failpoint.declare("network.dnsmasq.started", "dnsmasq has been started, nothing is noted about it")

RESOLV_CONF = "/etc/resolv.conf"
#: seconds in which dnsmasq ends after SIGTERM, in which a released lease leaves the file, and after which a
#: file that was written is complete
STOP_TIME, RELEASE_TIME, SETTLE_TIME = 5.0, 2.0, 0.03

#: the exit code for an address that is in use, among others (dnsmasq(8), EXIT CODES)
NETWORK_TROUBLE = 2

LEASE_LINE = re.compile(r"^\d+ ([0-9a-f:-]+) ([0-9.]+) \S+ (?:\*|([0-9a-f:]+))$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True)
class Held:
    """A line of dnsmasq's lease file; `client_id` is "" when the client gave none."""

    mac: str
    ip: str
    client_id: str = ""


def hosts_text(leases: Iterable[Lease]) -> str:
    """The content of a ``--dhcp-hostsfile`` (dnsmasq(8), ``--dhcp-host``)."""
    return "".join(f"{lease.mac},{lease.ip},{lease.hostname}\n"
                   for lease in sorted(leases, key=lambda x: x.mac))


def names_text(leases: Iterable[Lease], domain: str) -> str:
    """The content of a hosts file (hosts(5)): names resolve before the first DHCP request, and backwards."""
    return "".join(f"{lease.ip} {lease.hostname}.{domain} {lease.hostname}\n"
                   for lease in sorted(leases, key=lambda x: x.mac))


def parse_leases(text: str) -> list[Held]:
    """The IPv4 leases of a lease file: lines of expiry, MAC, address, name, client id, ``*`` for none."""
    return [Held(line[1], line[2], line[3] or "") for line in LEASE_LINE.finditer(text)]


def parse_hosts(text: str) -> list[Held]:
    """What :func:`hosts_text` wrote."""
    return [Held(*line.split(",")[:2]) for line in text.splitlines() if line.count(",") == 2]


def stale(held: Iterable[Held], leases: Iterable[Lease]) -> list[Held]:
    """The leases whose host is gone or has another address now."""
    right = {(lease.mac, lease.ip) for lease in leases}
    return [h for h in held if (h.mac, h.ip) not in right]


def pruned(text: str, gone: Collection[Held]) -> str:
    """A lease file without those leases."""
    pairs = {(h.mac, h.ip) for h in gone}
    return "".join(line for line in text.splitlines(keepends=True)
                   if len(w := line.split()) < 3 or (w[1], w[2]) not in pairs)


def arguments(spec: NetworkSpec, directory: Path, *, domain: str, lease_time: int, user: str,
              resolv: str | None) -> list[str]:
    """What dnsmasq is started with (dnsmasq(8)), without the program itself.

    :param directory: the network's, absolute
    :param lease_time: in seconds
    :param user: whom dnsmasq becomes after it has opened its sockets
    :param resolv: the host's list of name servers, which answer what the network does not know; None: nobody
        does
    """
    network = ipaddress.IPv4Network(spec.cidr)
    return [
        "--conf-file=", f"--pid-file={directory}/pid", f"--user={user}",
        f"--log-facility={directory}/log", "--quiet-dhcp",
        f"--interface={spec.bridge}", "--except-interface=lo", "--bind-interfaces",
        f"--dhcp-range={network.network_address},static,{spec.netmask},{lease_time}s", "--dhcp-authoritative",
        f"--dhcp-hostsfile={directory}/hosts", f"--dhcp-leasefile={directory}/leases",
        f"--dhcp-lease-max={network.num_addresses}",
        f"--dhcp-option=option:router,{spec.gateway}", f"--dhcp-option=option:dns-server,{spec.gateway}",
        "--no-hosts", f"--addn-hosts={directory}/names", f"--domain={domain}", f"--local=/{domain}/",
        "--domain-needed", "--bogus-priv",
        f"--resolv-file={resolv}" if resolv else "--no-resolv",
    ]


def command_line(pid: int) -> list[str]:
    """The arguments of a living process in this network namespace; [] when there is none."""
    try:
        if os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"):
            return []
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:  # it ended meanwhile
        return []
    return [word.decode(errors="replace") for word in words]


def is_ours(argv: list[str], bridge: str) -> bool:
    """Whether a command line is that of Nova's dnsmasq for `bridge`, of whatever state directory."""
    return (bool(argv) and os.path.basename(argv[0]) == "dnsmasq" and f"--interface={bridge}" in argv and any(
        a.startswith("--dhcp-hostsfile=") and a.endswith(f"/networks/{bridge}/hosts") for a in argv))


def processes(bridge: str) -> dict[int, list[str]]:
    """All dnsmasqs of Nova for `bridge` in this network namespace: process id -> command line.  Reads all of
    /proc.
    """
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            argv = command_line(int(name))
            if is_ours(argv, bridge):
                found[int(name)] = argv
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole: a reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o644)
    temporary.replace(path)


def read(path: Path) -> str:
    """A file's text; "" when it does not exist."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


class Dnsmasq:
    """The DHCP and name server of one network.

    :param directory: the network's own, ``<state_path>/networks/<bridge>``, absolute; the caller makes it
    :param program: path of dnsmasq
    :param release: path of dhcp_release (Debian: dnsmasq-utils)
    """

    def __init__(self, bridge: str, directory: Path, program: str = "dnsmasq", release: str = "dhcp_release"):
        self.bridge, self.directory = bridge, directory
        self._program, self._release = program, release

    async def ensure(self, spec: NetworkSpec) -> None:
        """Have it run with exactly the hosts of `spec`, and hold no lease of another.

        :raises exception.NovaError: it cannot be started, or a step failed
        """
        hosts, names = hosts_text(spec.leases), names_text(spec.leases, FLAGS.dhcp_domain)
        vanished = stale(parse_hosts(read(self.directory / "hosts")), spec.leases)
        for name, text in (("hosts", hosts), ("names", names)):
            if read(self.directory / name) != text or not (self.directory / name).exists():
                write_atomically(self.directory / name, text)
        digest = hashlib.sha256(json.dumps([hosts, names]).encode()).hexdigest()
        failpoint.hit("network.dnsmasq.written")
        argv = arguments(spec, self.directory, domain=FLAGS.dhcp_domain, lease_time=FLAGS.dhcp_lease_time,
                         user=self._user(), resolv=RESOLV_CONF if os.path.exists(RESOLV_CONF) else None)
        pid = await self._adopt(argv)
        if pid is not None and read(self.directory / "loaded") != f"{pid} {digest}\n":
            if self._signal(pid, signal.SIGHUP):
                write_atomically(self.directory / "loaded", f"{pid} {digest}\n")
            else:
                pid = None
        failpoint.hit("network.dnsmasq.told")
        if pid is not None and not await self._release_all(spec.leases, vanished):
            LOG.warning("dnsmasq of %s keeps leases of hosts that are gone; it is started anew", self.bridge)
            await self.stop()
            pid = None
        if pid is None:
            pid = await self._start(argv, spec.leases)
            write_atomically(self.directory / "loaded", f"{pid} {digest}\n")

    async def stop(self) -> None:
        """Have no dnsmasq for this bridge.

        :raises exception.Timeout: one does not end, not even after SIGKILL
        """
        for pid in await process.wait(process.in_thread(processes, self.bridge)):
            if not await self._end(pid, signal.SIGTERM) and not await self._end(pid, signal.SIGKILL):
                raise exception.Timeout(f"dnsmasq of {self.bridge}, process {pid}, does not end")
        (self.directory / "pid").unlink(missing_ok=True)

    async def _adopt(self, argv: list[str]) -> int | None:
        """The process that runs with these arguments; any other of this bridge is ended."""
        noted = read(self.directory / "pid").strip()
        if noted.isdigit() and command_line(int(noted)) == [self._program, *argv]:
            return int(noted)
        found: dict[int, list[str]] = await process.wait(process.in_thread(processes, self.bridge))
        right = [pid for pid, line in found.items() if line == [self._program, *argv]]
        if len(right) == 1 and len(found) == 1:
            return right[0]
        await self.stop()
        return None

    async def _start(self, argv: list[str], leases: Collection[Lease]) -> int:
        path = self.directory / "leases"
        text = read(path)
        if gone := stale(parse_leases(text), leases):
            write_atomically(path, pruned(text, gone))
        deadline = asyncio.get_running_loop().time() + STOP_TIME
        while (result := await process.wait(process.run(self._program, *argv, timeout=15, check=False))).code:
            # a process that was killed shows no command line any more while the kernel still closes its sockets
            if result.code != NETWORK_TROUBLE or asyncio.get_running_loop().time() > deadline:
                said = result.err.decode(errors="replace").strip()
                raise exception.NovaError(f"dnsmasq does not start on {self.bridge}, exit code {result.code}: {said}; "
                                          f"see {self.directory}/log")
            await asyncio.sleep(0.1)
        failpoint.hit("network.dnsmasq.started")
        pid = await self._adopt(argv)
        if pid is None:
            raise exception.NovaError(f"dnsmasq on {self.bridge} ended at once; see {self.directory}/log")
        LOG.info("dnsmasq of %s runs, process %d", self.bridge, pid)
        return pid

    async def _release_all(self, leases: Collection[Lease], vanished: Collection[Held]) -> bool:
        """Tell dnsmasq that the hosts with other leases are gone; False when its lease file still has one.

        Hosts that were known until now are told of in any case: a lease that was just given may not be in the
        file yet.
        """
        gone = {(h.mac, h.ip): h for h in [*vanished, *stale(await self._held(), leases)]}
        for held in gone.values():
            result = await process.wait(process.run(self._release, self.bridge, held.ip, held.mac,
                                                    *([held.client_id] if held.client_id else []),
                                                    timeout=5, check=False))
            if result.code:
                LOG.warning("dhcp_release of %s: %s", held.ip, result.err.decode(errors="replace").strip())
        deadline = asyncio.get_running_loop().time() + RELEASE_TIME
        while gone and stale(await self._held(), leases):  # the release is a datagram, without an answer
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _held(self) -> list[Held]:
        """The leases in the file, read while dnsmasq is not writing it: it empties the file first."""
        path, text = self.directory / "leases", ""
        for _ in range(100):
            text = read(path)
            if not path.exists() or abs(time.time() - path.stat().st_mtime) > SETTLE_TIME:
                break
            await asyncio.sleep(SETTLE_TIME / 2)
        return parse_leases(text)

    def _signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to our dnsmasq; False when that process is gone or is another by now."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if not is_ours(command_line(pid), self.bridge):
                return False
            signal.pidfd_send_signal(fd, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)

    async def _end(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal that ends our dnsmasq and wait; False when it still runs after :data:`STOP_TIME`."""
        try:
            fd = os.pidfd_open(pid)  # readable once the process has ended
        except ProcessLookupError:
            return True
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(fd, ended.set)
        try:
            if self._signal(pid, number):
                await asyncio.wait_for(ended.wait(), STOP_TIME)
            return True
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _user(self) -> str:
        """Whom dnsmasq becomes: nobody, unless only root can reach the directory that it re-reads its hosts
        from.
        """
        reachable = all(p.stat().st_mode & 0o001 for p in (self.directory, *self.directory.parents))
        return "nobody" if reachable else "root"
