"""Packet rules as text: what is promised for any set of networks, and what is written when."""

import re

import pytest

from nova import exception
from nova.network import firewall
from nova.network.driver import Lease, NetworkSpec, check

RANGE = "10.202.0.0/16"
ONE = NetworkSpec("p1", "br101", "10.202.1.0/24", "10.202.1.1", "255.255.255.0")
TWO = NetworkSpec("p2", "br102", "10.202.2.0/24", "10.202.2.1", "255.255.255.0")


def apply(saved: str, text: str) -> str:
    """What iptables-save says after ``iptables-restore --noflush``, for the few lines that Nova writes."""
    chains: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chains[table, line.split()[0][1:]] = []
        elif line.startswith("-A"):
            chains[table, line.split()[1]].append(line)
    for line in text.splitlines():
        words = line.split()
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chains[table, words[0][1:]] = []
        elif words[0] == "-A":
            chains[table, words[1]].append(line)
        elif words[0] == "-D":
            chains[table, words[1]].remove("-A" + line[2:])
        elif words[0] == "-I":
            chains[table, words[1]].insert(0, f"-A {words[1]} {' '.join(words[3:])}")
        elif words[0] == "-X":
            assert not chains.pop((table, words[1])), "only an empty chain can go"
            assert not any(rule.endswith(f"-j {words[1]}") for rules in chains.values() for rule in rules)
        else:
            assert line == "COMMIT"
    out = []
    for table in sorted({t for t, _ in chains}):
        out.append(f"*{table}")
        out += [f":{chain} - [0:0]" for t, chain in chains if t == table]
        out += [rule for (t, _), rules in chains.items() if t == table for rule in rules]
        out.append("COMMIT")
    return "\n".join(out) + "\n"


EMPTY = ("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
         "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n")


def rules(*networks: NetworkSpec, host: str | None = None) -> firewall.Rules:
    return firewall.rules(networks, (host, 8775), RANGE)


def test_no_network_no_rule():
    assert rules() == {"nat": [], "filter": []}
    assert firewall.plan(EMPTY, rules()) == ""


def test_order_of_networks_does_not_matter():
    assert rules(ONE, TWO) == rules(TWO, ONE)


def test_metadata_leads_to_the_gateway_of_each_network():
    nat = rules(ONE, TWO)["nat"]
    for n in (ONE, TWO):
        assert (f"-A nova-prerouting -s {n.cidr} -d 169.254.169.254/32 -i {n.bridge} "
                f"-p tcp -m tcp --dport 80 -j DNAT --to-destination {n.gateway}:8775") in nat


def test_metadata_on_another_host_is_reached_with_the_guests_address():
    found = rules(ONE, host="192.0.2.7")
    assert found["nat"][0].endswith("--to-destination 192.0.2.7:8775")
    post = [rule for rule in found["nat"] if "nova-postrouting" in rule]
    assert post[0].endswith("-j RETURN") and "-d 192.0.2.7/32" in post[0]
    assert post[1].endswith("-j MASQUERADE")
    assert not any("8775" in rule and "nova-input" in rule for rule in found["filter"])


def test_only_traffic_out_of_the_private_range_is_masqueraded():
    masquerade = [rule for rule in rules(ONE, TWO)["nat"] if rule.endswith("MASQUERADE")]
    assert masquerade == [f"-A nova-postrouting -s {n.cidr} ! -d {RANGE} ! -o {n.bridge} -j MASQUERADE"
                          for n in (ONE, TWO)]


def test_nothing_new_enters_a_network_before_anything_is_let_out():
    """The DROP into each bridge stands before every ACCEPT out of another one."""
    forward = [r for r in rules(ONE, TWO)["filter"] if r.startswith("-A nova-forward")]
    last_drop = max(i for i, r in enumerate(forward) if re.search(r"-o br\d+ -j DROP", r))
    out = [i for i, r in enumerate(forward) if re.fullmatch(r"-A nova-forward -i br\d+ -j ACCEPT", r)]
    assert len(out) == 2 and min(out) > last_drop


def test_metadata_port_is_closed_after_the_guests_were_let_in():
    found = [r for r in rules(ONE, TWO)["filter"] if "--dport 8775" in r]
    assert [r.split()[-1] for r in found] == ["ACCEPT", "ACCEPT", "DROP"]
    assert all("-s 10.202." in r and "-i br10" in r for r in found[:2])
    assert rules(ONE)["filter"].index("-A nova-input -i lo -j RETURN") < rules(ONE)["filter"].index(found[-1])


def test_applied_once_then_left_alone():
    wanted = rules(ONE, TWO)
    saved = apply(EMPTY, firewall.plan(EMPTY, wanted))
    assert firewall.plan(saved, wanted) == ""
    for chain, hook in {**firewall.CHAINS["nat"], **firewall.CHAINS["filter"]}.items():
        assert saved.count(f"-A {hook} -j {chain}\n") == 1


@pytest.mark.parametrize("damage", [
    lambda s: s.replace("-A INPUT -j nova-input\n", ""),
    lambda s: s.replace("-A INPUT -j nova-input\n", "-A INPUT -j nova-input\n" * 3),
    lambda s: s.replace("-A FORWARD -j nova-forward\n", "-A FORWARD -i eth0 -j nova-forward\n"),
    lambda s: re.sub(r"-A nova-postrouting.*\n", "", s),
    lambda s: re.sub(r"-A nova-.*\n", "", s),
    lambda s: s.replace("-A nova-input -i lo", "-A nova-input -j ACCEPT\n-A nova-input -i lo"),
    lambda s: EMPTY,
])
def test_damage_is_healed_in_one_go(damage):
    wanted = rules(ONE, TWO)
    good = apply(EMPTY, firewall.plan(EMPTY, wanted))
    damaged = damage(good)
    assert damaged != good
    healed = apply(damaged, firewall.plan(damaged, wanted))
    assert firewall.plan(healed, wanted) == ""
    assert firewall.same(firewall.observed(healed), firewall.wanted(wanted))


def test_rules_of_others_are_never_named():
    others = EMPTY.replace(":OUTPUT ACCEPT [0:0]\n", ":OUTPUT ACCEPT [0:0]\n:docker - [0:0]\n"
                           "-A INPUT -i eth0 -j docker\n"
                           "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A docker -j RETURN\n")
    text = firewall.plan(others, rules(ONE))
    assert "docker" not in text and "--dport 22" not in text
    after = apply(others, text)
    assert "-A docker -j RETURN" in after and after.index("-j nova-input") < after.index("-i eth0 -j docker")
    assert apply(after, firewall.plan(after, rules())).split() == apply(others, "").split()


def test_last_network_gone_leaves_nothing():
    saved = apply(EMPTY, firewall.plan(EMPTY, rules(ONE)))
    after = apply(saved, firewall.plan(saved, rules()))
    assert "nova" not in after


@pytest.mark.parametrize("change", [
    {"bridge": "br1 -j ACCEPT"}, {"bridge": "../x"}, {"bridge": ""}, {"bridge": "br1234567890"},
    {"cidr": "10.202.1.1/24"}, {"cidr": "10.202.1.0/24\n"}, {"cidr": "10.202.1.0/255.255.255.0"},
    {"cidr": "10.202.1.0/31", "netmask": "255.255.255.254"}, {"gateway": "10.202.2.1"},
    {"gateway": "10.202.1.0"}, {"netmask": "255.255.0.0"}, {"id": "a b"}, {"id": ""},
    {"leases": (Lease("02:00:00:00:00:1", "10.202.1.3", "a"),)},
    {"leases": (Lease("02:00:00:00:00:01", "10.202.1.1", "a"),)},
    {"leases": (Lease("02:00:00:00:00:01", "10.202.3.4", "a"),)},
    {"leases": (Lease("02:00:00:00:00:01", "10.202.1.3", "a\nb"),)},
    {"leases": (Lease("02:00:00:00:00:01", "10.202.1.3", "a,ignore"),)},
    {"leases": (Lease("02:00:00:00:00:01", "10.202.1.3", "a"),
                Lease("02:00:00:00:00:01", "10.202.1.4", "b"))},
    {"leases": (Lease("02:00:00:00:00:01", "10.202.1.3", "a"),
                Lease("02:00:00:00:00:02", "10.202.1.3", "b"))},
])
def test_a_bad_network_goes_nowhere(change):
    import dataclasses
    with pytest.raises(exception.NovaError):
        check(dataclasses.replace(ONE, **change))
