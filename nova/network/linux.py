"""Networks on Linux: a bridge with the gateway's address, packet rules and a dnsmasq for each.

Bridges are Nova's when their alias is ``nova:<network id>``; no other is ever touched.  What the driver was
told is kept in ``<state_path>/networks/<bridge>/spec.json``, because the rules are always made for all
networks at once.
:mod:`nova.network.firewall` decides the rules, :mod:`nova.network.dhcp` handles dnsmasq; this module has the
    order of steps, the bridges and the kernel's settings.
"""

import asyncio
import dataclasses
import hashlib
import ipaddress
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from nova import exception, failpoint, process
from nova.flags import FLAGS
from nova.network import firewall
from nova.network.dhcp import Dnsmasq, read, write_atomically
from nova.network.driver import BRIDGE, Lease, NetworkDriver, NetworkSpec, check, check_bridge

LOG = logging.getLogger(__name__)

failpoint.declare("network.spec.written", "a network is written down, nothing of it is made")
failpoint.declare("network.rules.applied", "the rules know the new network, its bridge may be missing")
failpoint.declare("network.bridge.added", "the bridge exists under a temporary name, not marked as Nova's")
failpoint.declare("network.bridge.made", "the bridge has its name and is up, its address may be missing")
failpoint.declare("network.bridge.addressed", "bridge and address are there, dnsmasq may not run")
failpoint.declare("network.remove.dnsmasq", "a network is being removed: dnsmasq is gone, the rest is there")
failpoint.declare("network.remove.bridge", "a network is being removed: its rules and files are still there")
failpoint.declare("network.remove.rules", "a network is being removed: only its files are left")

ALIAS = "nova:"
#: a bridge has this before its name until it is marked as Nova's
UNNAMED = "nova-"
#: Debian's packages of the programs
PACKAGES = {"ip": "iproute2", "iptables-save": "iptables", "iptables-restore": "iptables",
            "dnsmasq": "dnsmasq-base", "dhcp_release": "dnsmasq-utils"}
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class LinuxDriver(NetworkDriver):
    """The real driver; needs root.

    :param state_path: where its files live (below, in ``networks/``); the flag's when None
    """

    def __init__(self, state_path: str | None = None):
        self._directory = Path(os.path.abspath(state_path or FLAGS.state_path)) / "networks"
        self._programs: dict[str, str] = {}
        self._specs: dict[str, NetworkSpec] = {}
        self._lock = asyncio.Lock()
        #: rules that were applied -> how this host's iptables-save spells them
        self._spelling: tuple[firewall.Rules, firewall.Rules] | None = None

    async def start(self) -> None:
        if os.geteuid() != 0:
            raise exception.NovaError("networks need root (bridges, iptables, dnsmasq): run as root, or try "
                                      "--network_driver=fake with --compute_driver=fake")
        path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        programs = {name: shutil.which(name, path=path) for name in PACKAGES}
        if missing := sorted({PACKAGES[name] for name, found in programs.items() if not found}):
            raise exception.NovaError(f"networks need {', '.join(n for n in PACKAGES if not programs[n])}: "
                                      f"apt-get install {' '.join(missing)}; or try --network_driver=fake")
        self._programs = {name: found for name, found in programs.items() if found}
        async with self._lock:
            self._load()

    async def stop(self) -> None:
        async with self._lock:  # a step under way is finished
            self._programs = {}

    async def ensure(self, spec: NetworkSpec) -> None:
        check(spec)
        async with self._lock:
            links = await self._links()
            self._refuse_strangers(spec, links)
            if self._is_of_another(spec, links):  # that network is given up, and the bridge is another's now
                await self._remove(spec.bridge, links)
                links.pop(spec.bridge, None)
            directory = self._directory / spec.bridge
            self._make_directory(directory)
            text = json.dumps(dataclasses.asdict(spec), indent=1)
            if read(directory / "spec.json") != text:
                write_atomically(directory / "spec.json", text)
            self._specs[spec.bridge] = spec
            failpoint.hit("network.spec.written")
            self._forward_packets()
            await self._apply_rules()
            failpoint.hit("network.rules.applied")
            await self._ensure_bridge(spec, links)
            failpoint.hit("network.bridge.addressed")
            await self._dnsmasq(spec.bridge).ensure(spec)

    async def remove(self, bridge: str) -> None:
        check_bridge(bridge)
        async with self._lock:
            await self._remove(bridge, await self._links())

    async def present(self) -> set[str]:
        async with self._lock:
            return self._present(await self._links())

    async def purge(self) -> None:
        async with self._lock:
            links = await self._links()
            for bridge in sorted(self._present(links)):
                await self._remove(bridge, links)
            for name in links:
                if _is_unnamed(name, links[name]):
                    await self._run("ip", "link", "delete", "dev", name)
            self._specs.clear()
            await self._apply_rules()
            before = self._directory / "ip_forward.before"
            if (value := read(before).strip()) and IP_FORWARD.read_text().strip() == "1":
                _set(IP_FORWARD, value)
            if self._directory.exists():
                shutil.rmtree(self._directory)

    # -- what is there ---------------------------------------------------------------------------------------

    async def _run(self, program: str, *arguments: str, input: bytes | None = None) -> bytes:
        if program not in self._programs:
            raise exception.NovaError("the network driver is not started")
        result = await process.wait(process.run(self._programs[program], *arguments, input=input, timeout=30))
        return result.out

    async def _links(self) -> dict[str, dict[str, Any]]:
        """The host's interfaces with their details and addresses, by name."""
        found = json.loads(await self._run("ip", "-json", "-details", "address", "show"))
        return {link["ifname"]: link for link in found if link.get("ifname")}

    def _present(self, links: dict[str, dict[str, Any]]) -> set[str]:
        bridges = {name for name, link in links.items() if _is_ours(link) and not _is_unnamed(name, link)}
        if self._directory.exists():  # what is left of a network whose removal was cut short
            bridges |= {p.name for p in self._directory.iterdir() if p.is_dir() and BRIDGE.fullmatch(p.name)}
        return bridges

    def _refuse_strangers(self, spec: NetworkSpec, links: dict[str, dict[str, Any]]) -> None:
        if spec.bridge in links and not _is_ours(links[spec.bridge]):
            raise exception.NovaError(f"interface {spec.bridge}, which network {spec.id} needs, exists and "
                                      "is not Nova's; nothing was done to it")
        mine = ipaddress.IPv4Network(spec.cidr)
        for other in self._specs.values():
            if other.bridge != spec.bridge and mine.overlaps(ipaddress.IPv4Network(other.cidr)):
                raise exception.NovaError(f"network {spec.id} has addresses of network {other.id} "
                                          f"({spec.cidr}, {other.cidr})")

    def _is_of_another(self, spec: NetworkSpec, links: dict[str, dict[str, Any]]) -> bool:
        link, known = links.get(spec.bridge), self._specs.get(spec.bridge)
        return (link is not None and link["ifalias"] != ALIAS + spec.id) or (
            known is not None and known.id != spec.id)

    def _load(self) -> None:
        """Read what earlier calls were told."""
        self._specs = {}
        for path in sorted(self._directory.glob("*/spec.json")):
            try:
                values = json.loads(path.read_text())
                leases = tuple(Lease(**lease) for lease in values.pop("leases"))
                spec = check(NetworkSpec(**values, leases=leases))
            except (ValueError, TypeError, KeyError, exception.NovaError) as error:
                LOG.warning("%s cannot be read; left out until its network is made again: %s", path, error)
                continue
            self._specs[spec.bridge] = spec

    # -- steps -----------------------------------------------------------------------------------------------

    def _make_directory(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for path in (directory, directory.parent):
            path.chmod(0o755)  # dnsmasq reads its files as nobody

    def _dnsmasq(self, bridge: str) -> Dnsmasq:
        if not self._programs:
            raise exception.NovaError("the network driver is not started")
        return Dnsmasq(bridge, self._directory / bridge, self._programs["dnsmasq"],
                       self._programs["dhcp_release"])

    def _forward_packets(self) -> None:
        """Have the host route; what it did before is noted for :meth:`purge`."""
        value = IP_FORWARD.read_text().strip()
        if value == "1":
            return
        before = self._directory / "ip_forward.before"
        if not before.exists():
            write_atomically(before, value + "\n")
        _set(IP_FORWARD, "1")

    async def _ensure_bridge(self, spec: NetworkSpec, links: dict[str, dict[str, Any]]) -> None:
        bridge, link = spec.bridge, links.get(spec.bridge)
        if link is None:
            new = UNNAMED + bridge
            if new in links and _is_unnamed(new, links[new]):  # half made before
                await self._run("ip", "link", "delete", "dev", new)
            await self._run("ip", "link", "add", "name", new, "address", _mac(spec), "type", "bridge",
                            "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
            failpoint.hit("network.bridge.added")
            await self._run("ip", "link", "set", "dev", new, "alias", ALIAS + spec.id)
            await self._run("ip", "link", "set", "dev", new, "name", bridge)
        ipv6 = Path(f"/proc/sys/net/ipv6/conf/{bridge}")
        if ipv6.exists():  # a guest's router advertisement must not give this host an address or a route
            _set(ipv6 / "accept_ra", "0")
            _set(ipv6 / "disable_ipv6", "1")
        if link is None or "UP" not in link.get("flags", []):
            await self._run("ip", "link", "set", "dev", bridge, "up")
        failpoint.hit("network.bridge.made")
        right = f"{spec.gateway}/{ipaddress.IPv4Network(spec.cidr).prefixlen}"
        there = {f"{a['local']}/{a['prefixlen']}" for a in (link or {}).get("addr_info", [])
                 if a["family"] == "inet"}
        if right not in there:
            await self._run("ip", "address", "add", right, "broadcast", "+", "dev", bridge)
        for address in there - {right}:
            await self._run("ip", "address", "delete", address, "dev", bridge)

    async def _apply_rules(self) -> None:
        """Have the kernel hold exactly the rules of all networks; nothing is written when it does already."""
        if self._specs and not FLAGS.metadata_port:
            raise exception.NovaError("--metadata_port=0 has to be replaced by the port that the service got")
        rules = firewall.rules(list(self._specs.values()), (FLAGS.metadata_host or None, FLAGS.metadata_port),
                               FLAGS.private_range)
        saved = (await self._run("iptables-save")).decode(errors="replace")
        there = firewall.observed(saved)
        if self._spelling and self._spelling[0] == rules and firewall.same(self._spelling[1], there):
            return
        text = firewall.plan(saved, rules)
        if text:
            LOG.info("packet rules are written for %d networks", len(self._specs))
            await self._run("iptables-restore", "--noflush", "--wait", "10", input=text.encode())
            saved = (await self._run("iptables-save")).decode(errors="replace")
        self._spelling = (rules, firewall.observed(saved))

    async def _remove(self, bridge: str, links: dict[str, dict[str, Any]]) -> None:
        await self._dnsmasq(bridge).stop()
        failpoint.hit("network.remove.dnsmasq")
        for name in (bridge, UNNAMED + bridge):
            if name in links and (_is_unnamed(name, links[name]) or name == bridge and _is_ours(links[name])):
                await self._run("ip", "link", "delete", "dev", name)
        failpoint.hit("network.remove.bridge")
        self._specs.pop(bridge, None)
        await self._apply_rules()
        failpoint.hit("network.remove.rules")
        if (self._directory / bridge).exists():
            (self._directory / bridge / "spec.json").unlink(missing_ok=True)
            shutil.rmtree(self._directory / bridge)


def _is_bridge(link: dict[str, Any]) -> bool:
    return link.get("linkinfo", {}).get("info_kind") == "bridge"


def _is_ours(link: dict[str, Any]) -> bool:
    return _is_bridge(link) and link.get("ifalias", "").startswith(ALIAS)


def _is_unnamed(name: str, link: dict[str, Any]) -> bool:
    """Whether it is a bridge whose making was cut short before it got its alias or its name."""
    return (name.startswith(UNNAMED) and bool(BRIDGE.fullmatch(name.removeprefix(UNNAMED)))
            and _is_bridge(link) and (_is_ours(link) or not link.get("ifalias")))


def _mac(spec: NetworkSpec) -> str:
    """The bridge's own MAC: always the same, so that guests' ARP entries for their gateway stay true."""
    digest = hashlib.sha256(f"{spec.id} {spec.bridge}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _set(path: Path, value: str) -> None:
    """Set one of the kernel's settings, when it is another.

    :raises exception.NovaError: it cannot be set (in a container, /proc/sys may be read-only)
    """
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise exception.NovaError(f"{path} cannot be set to {value}: {error.strerror}") from error
