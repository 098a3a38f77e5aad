"""What dnsmasq is told, and how its lease file is read."""

from pathlib import Path

from nova.network import dhcp
from nova.network.driver import Lease, NetworkSpec

A = Lease("02:00:00:00:00:0a", "10.202.1.3", "i-a")
B = Lease("02:00:00:00:00:0b", "10.202.1.4", "i-b")
SPEC = NetworkSpec("p1", "br101", "10.202.1.0/24", "10.202.1.1", "255.255.255.0", (B, A))
LEASES = ("1795208398 02:00:00:00:00:0a 10.202.1.3 i-a 01:02:00:00:00:00:0a\n"
          "1795208399 02:00:00:00:00:0b 10.202.1.4 * *\n"
          "duid 00:01:00:01:2c\n")


def argv(**changes) -> list[str]:
    values = dict(domain="novalocal", lease_time=600, user="nobody", resolv="/etc/resolv.conf") | changes
    return dhcp.arguments(SPEC, Path("/s/networks/br101"), **values)


def test_files_are_the_same_whatever_the_order():
    assert dhcp.hosts_text((B, A)) == dhcp.hosts_text((A, B)) == (
        "02:00:00:00:00:0a,10.202.1.3,i-a\n02:00:00:00:00:0b,10.202.1.4,i-b\n")
    assert dhcp.names_text((B, A), "novalocal") == (
        "10.202.1.3 i-a.novalocal i-a\n10.202.1.4 i-b.novalocal i-b\n")


def test_only_known_hosts_get_addresses_for_the_time_said():
    assert "--dhcp-range=10.202.1.0,static,255.255.255.0,600s" in argv()
    assert "--dhcp-option=option:router,10.202.1.1" in argv() and "--interface=br101" in argv()


def test_names_of_the_network_are_never_asked_for_outside():
    assert {"--local=/novalocal/", "--domain-needed", "--bogus-priv"} <= set(argv())


def test_without_name_servers_nobody_is_asked():
    found = argv(resolv=None)
    assert "--no-resolv" in found and not any(a.startswith("--resolv-file") for a in found)


def test_lease_file_is_read():
    assert dhcp.parse_leases(LEASES) == [
        dhcp.Held("02:00:00:00:00:0a", "10.202.1.3", "01:02:00:00:00:00:0a"),
        dhcp.Held("02:00:00:00:00:0b", "10.202.1.4", "")]


def test_lines_that_dnsmasq_would_not_write_are_passed_over():
    assert dhcp.parse_leases("1 --help 10.202.1.3 i-a *\n1 02:00:00:00:00:0a -x i-a *\n\nnonsense\n") == []


def test_leases_of_vanished_and_moved_hosts_are_stale():
    held = dhcp.parse_leases(LEASES)
    assert dhcp.stale(held, (A, B)) == []
    assert [h.ip for h in dhcp.stale(held, (A,))] == ["10.202.1.4"]
    assert [h.ip for h in dhcp.stale(held, (A, Lease(B.mac, "10.202.1.9", "i-b")))] == ["10.202.1.4"]
    assert dhcp.stale(held, ()) == held


def test_pruned_lease_file_keeps_the_rest_as_it_is():
    held = dhcp.parse_leases(LEASES)
    assert dhcp.pruned(LEASES, held[:1]) == "".join(LEASES.splitlines(keepends=True)[1:])
    assert dhcp.pruned(LEASES, held) == "duid 00:01:00:01:2c\n"
    assert dhcp.pruned(LEASES, []) == LEASES


def test_a_strangers_process_is_not_ours():
    line = ["/usr/sbin/dnsmasq", *argv()]
    assert dhcp.is_ours(line, "br101")
    assert not dhcp.is_ours(line, "br102")
    assert not dhcp.is_ours(["/usr/bin/vi", *argv()], "br101")
    assert not dhcp.is_ours(["/usr/sbin/dnsmasq", "--interface=br101"], "br101")
    assert not dhcp.is_ours([], "br101")
    assert dhcp.command_line(2**22 + 1) == []
