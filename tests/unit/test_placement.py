"""Where instances go."""

import pytest

from nova import exception
from nova.cloud import placement
from nova.compute.types import InstanceType
from nova.service import Host

SMALL = InstanceType("small", vcpus=1, memory_mb=1000, disk_gb=0)


def host(name: str, memory_mb: int = 4000, vcpus: int = 100, zone: str = "nova") -> Host:
    return Host("compute", name, zone, 0.0, {"memory_mb": memory_mb, "vcpus": vcpus, "disk_gb": 1})


def names(hosts: list[Host]) -> list[str]:
    return [h.host for h in hosts]


def test_the_emptiest_host_is_chosen() -> None:
    chosen = placement.choose([host("a"), host("b")], {"b": {"memory_mb": 1000, "vcpus": 1}}, SMALL, "", 1, 1)
    assert names(chosen) == ["a"]


def test_instances_are_spread() -> None:
    assert sorted(names(placement.choose([host("a"), host("b")], {}, SMALL, "", 4, 4))) == ["a", "a", "b", "b"]


def test_a_bigger_host_gets_more() -> None:
    chosen = names(placement.choose([host("a", 2000), host("b", 6000)], {}, SMALL, "", 6, 6))
    assert chosen.count("b") == 5


def test_as_many_as_fit_are_placed() -> None:
    assert len(placement.choose([host("a"), host("b")], {}, SMALL, "", 1, 100)) == 8


def test_fewer_than_the_least_are_refused_with_the_reason() -> None:
    with pytest.raises(exception.InsufficientInstanceCapacity, match="room for 8 of the 9 instances of type small"):
        placement.choose([host("a"), host("b")], {}, SMALL, "", 9, 100)


def test_memory_that_is_claimed_is_not_given_twice() -> None:
    with pytest.raises(exception.InsufficientInstanceCapacity):
        placement.choose([host("a")], {"a": {"memory_mb": 3001, "vcpus": 0}}, SMALL, "", 1, 1)
    assert placement.choose([host("a")], {"a": {"memory_mb": 3000, "vcpus": 0}}, SMALL, "", 1, 1)


def test_vcpus_that_are_claimed_are_not_given_twice() -> None:
    with pytest.raises(exception.InsufficientInstanceCapacity):
        placement.choose([host("a", vcpus=4)], {"a": {"memory_mb": 0, "vcpus": 4}}, SMALL, "", 1, 1)
    assert len(placement.choose([host("a", vcpus=4)], {}, SMALL, "", 1, 5)) == 4


def test_a_host_that_claims_more_than_it_has_gets_nothing() -> None:
    chosen = placement.choose([host("a"), host("b")], {"a": {"memory_mb": 9000, "vcpus": 1}}, SMALL, "", 1, 100)
    assert names(chosen) == ["b"] * 4


def test_only_hosts_of_the_zone_are_chosen() -> None:
    hosts = [host("a", zone="east"), host("b", 2000, zone="west")]
    assert names(placement.choose(hosts, {}, SMALL, "west", 1, 100)) == ["b", "b"]


def test_a_zone_without_hosts_has_no_capacity() -> None:
    with pytest.raises(exception.InsufficientInstanceCapacity, match="availability zone west"):
        placement.choose([host("a")], {}, SMALL, "west", 1, 1)


def test_no_hosts_have_no_capacity() -> None:
    with pytest.raises(exception.InsufficientInstanceCapacity, match="no compute host alive"):
        placement.choose([], {}, SMALL, "", 1, 1)


def test_the_choice_does_not_depend_on_the_order_of_the_hosts() -> None:
    hosts = [host("a"), host("b"), host("c")]
    assert placement.choose(hosts, {}, SMALL, "", 5, 5) == placement.choose(hosts[::-1], {}, SMALL, "", 5, 5)
