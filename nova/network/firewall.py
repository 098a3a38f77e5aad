"""The packet rules of a network host, as pure functions from networks to text.

Nova owns four chains and nothing else: ``nova-prerouting`` and ``nova-postrouting`` in the table nat,
``nova-forward`` and ``nova-input`` in the table filter, each reached by one jump at the head of the built-in
chain.  :func:`rules` says what they hold, :func:`plan` compares that with what ``iptables-save`` reports and
says what ``iptables-restore --noflush`` has to be told: nothing when all is well.  :mod:`nova.network.linux`
runs the commands.

What the rules promise: a guest reaches the metadata service at 169.254.169.254 and the service sees the
guest's own address; it gets DHCP and DNS from its gateway; it reaches the world with its host's address;
nothing passes between two networks, and nothing new passes into one from outside; a guest cannot use an
address outside its network; and the metadata port is closed to all but guests and this host.
"""

import ipaddress
from collections.abc import Sequence

from nova.network.driver import NetworkSpec

METADATA_ADDRESS = "169.254.169.254"

#: table -> chain of Nova -> the built-in chain that it is reached from
CHAINS = {"nat": {"nova-prerouting": "PREROUTING", "nova-postrouting": "POSTROUTING"},
          "filter": {"nova-forward": "FORWARD", "nova-input": "INPUT"}}

Rules = dict[str, list[str]]


def rules(networks: Sequence[NetworkSpec], metadata: tuple[str | None, int], private_range: str) -> Rules:
    """The rules of Nova's chains, spelled as ``iptables-save`` spells them.

    :param networks: all networks of this host
    :param metadata: address and port of the metadata service; no address: it is on this host
    :param private_range: the range that all networks lie in, ``address/length``
    :returns: table -> ``-A`` lines; no line at all without a network
    """
    found: Rules = {table: [] for table in CHAINS}
    if not networks:
        return found
    host, port = metadata
    private = str(ipaddress.IPv4Network(private_range))
    networks = sorted(networks, key=lambda spec: spec.bridge)
    nat, filter = found["nat"], found["filter"]
    for n in networks:
        nat.append(f"-A nova-prerouting -s {n.cidr} -d {METADATA_ADDRESS}/32 -i {n.bridge} -p tcp -m tcp "
                   f"--dport 80 -j DNAT --to-destination {host or n.gateway}:{port}")
    for n in networks:
        if host:  # the metadata service knows a guest by its address
            nat.append(f"-A nova-postrouting -s {n.cidr} -d {host}/32 -p tcp -m tcp --dport {port} -j RETURN")
        nat.append(f"-A nova-postrouting -s {n.cidr} ! -d {private} ! -o {n.bridge} -j MASQUERADE")
    filter += _forward(networks, host, port, private)
    filter += _input(networks, host, port, private)
    return found


def _forward(networks: Sequence[NetworkSpec], host: str | None, port: int, private: str) -> list[str]:
    chain = "-A nova-forward"
    lines = [f"{chain} -i {n.bridge} -o {n.bridge} -j ACCEPT" for n in networks]
    for n in networks:
        lines.append(f"{chain} -o {n.bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
        lines.append(f"{chain} -o {n.bridge} -j DROP")
    for n in networks:
        lines.append(f"{chain} ! -s {n.cidr} -i {n.bridge} -j DROP")
        if host:
            lines.append(f"{chain} -d {host}/32 -i {n.bridge} -p tcp -m tcp --dport {port} -j ACCEPT")
        lines.append(f"{chain} -d {private} -i {n.bridge} -j DROP")
        lines.append(f"{chain} -i {n.bridge} -j ACCEPT")
    return lines


def _input(networks: Sequence[NetworkSpec], host: str | None, port: int, private: str) -> list[str]:
    chain = "-A nova-input"
    lines = [f"{chain} -i lo -j RETURN"]
    for n in networks:
        mine = f"{chain} -s {n.cidr} -d {n.gateway}/32 -i {n.bridge}"
        lines.append(f"{chain} -i {n.bridge} -p udp -m udp --dport 67 -j ACCEPT")
        lines.append(f"{mine} -p udp -m udp --dport 53 -j ACCEPT")
        lines.append(f"{mine} -p tcp -m tcp --dport 53 -j ACCEPT")
        if not host:
            lines.append(f"{mine} -p tcp -m tcp --dport {port} -j ACCEPT")
    for n in networks:  # the name server of a network answers that network only, whichever way a packet came
        lines.append(f"{chain} -d {n.gateway}/32 -p udp -m udp --dport 53 -j DROP")
        lines.append(f"{chain} -d {n.gateway}/32 -p tcp -m tcp --dport 53 -j DROP")
    if not host:
        lines.append(f"{chain} -p tcp -m tcp --dport {port} -j DROP")
    for n in networks:
        lines.append(f"{chain} ! -s {n.cidr} -i {n.bridge} -j DROP")
        lines.append(f"{chain} -d {n.gateway}/32 -i {n.bridge} -j RETURN")
        lines.append(f"{chain} -d {private} -i {n.bridge} -j DROP")
    return lines


def observed(saved: str) -> Rules:
    """What ``iptables-save`` reported of Nova: the chains' declarations, their rules, and the jumps to them,
    in order.
    """
    found: Rules = {table: [] for table in CHAINS}
    table = ""
    for line in saved.splitlines():
        words = line.split()
        if line.startswith("*"):
            table = line[1:].strip()
        elif table not in CHAINS or not words:
            continue
        elif words[0][:1] == ":" and words[0][1:] in CHAINS[table]:
            found[table].append(words[0])
        elif words[0] == "-A" and (words[1] in CHAINS[table] or words[-1] in CHAINS[table]):
            found[table].append(" ".join(words))
    return found


def wanted(rules: Rules) -> Rules:
    """What :func:`observed` finds when `rules` are in the kernel; nothing when there are none."""
    if not any(rules.values()):
        return {table: [] for table in CHAINS}
    return {table: [*(f":{chain}" for chain in chains),
                    *(f"-A {hook} -j {chain}" for chain, hook in chains.items()), *rules[table]]
            for table, chains in CHAINS.items()}


def same(one: Rules, other: Rules) -> bool:
    """Whether two sets are equal; only the order within a chain counts."""
    def split(rules: Rules) -> dict[tuple[str, str], list[str]]:
        chains: dict[tuple[str, str], list[str]] = {}
        for table, lines in rules.items():
            for line in lines:
                key = line.split()[1] if line.startswith("-A") else ":"
                chains.setdefault((table, key), []).append(line)
        for (_, key), lines in chains.items():
            if key == ":":
                lines.sort()
        return chains
    return split(one) == split(other)


def plan(saved: str, rules: Rules) -> str:
    """The input of ``iptables-restore --noflush`` that turns what is there into what is wanted.

    :param saved: the output of ``iptables-save``
    :param rules: from :func:`rules`
    :returns: a text that replaces Nova's chains whole and leaves one jump to each, or, when there are no
        rules, takes jumps and chains away; ``""`` when all is well
    """
    there = observed(saved)
    if same(there, wanted(rules)):
        return ""
    empty = not any(rules.values())
    lines: list[str] = []
    for table, chains in CHAINS.items():
        # a chain that is to go must exist when it is emptied, so it is declared in either case
        lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in chains)]
        for chain, hook in chains.items():
            # a jump that is not the plain one (a second one, one with conditions) is ours to take away, too
            jumps = [line for line in there[table] if line.startswith("-A") and line.split()[-1] == chain]
            plain = f"-A {hook} -j {chain}"
            keep = plain if plain in jumps and not empty else None
            for line in jumps:
                if line == keep:
                    keep = None
                else:
                    lines.append(f"-D{line[2:]}")
            if plain not in jumps and not empty:
                lines.append(f"-I {hook} 1 -j {chain}")
        lines += [f"-X {chain}" for chain in chains] if empty else rules[table]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"
