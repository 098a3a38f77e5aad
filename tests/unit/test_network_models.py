"""Networks: what follows from their allotment, and which allotments there are."""

import pytest

from nova import exception
from nova.flags import FLAGS
from nova.network import models
from nova.network.models import Network


def test_a_network_is_what_its_allotment_says() -> None:
    network = Network("proj", allotment="103,10.202.3.0/24", host="h")
    assert (network.vlan, network.bridge, network.cidr) == (103, "br103", "10.202.3.0/24")
    assert (network.gateway, network.netmask) == ("10.202.3.1", "255.255.255.0")


def test_each_vlan_has_a_subnet_of_its_own() -> None:
    FLAGS.private_range, FLAGS.network_size, FLAGS.vlan_start = "10.202.0.0/16", 256, 100
    allotments = models.all_allotments()
    assert allotments[:2] == ["100,10.202.0.0/24", "101,10.202.1.0/24"]
    assert allotments[-1] == "355,10.202.255.0/24"


def test_there_are_no_vlans_beyond_4094() -> None:
    FLAGS.private_range, FLAGS.network_size, FLAGS.vlan_start = "10.0.0.0/8", 256, 4090
    assert [a.split(",")[0] for a in models.all_allotments()] == ["4090", "4091", "4092", "4093", "4094"]


def test_a_network_that_is_no_power_of_two_is_rounded_up() -> None:
    FLAGS.private_range, FLAGS.network_size = "10.202.0.0/16", 100
    assert models.all_allotments()[0].endswith("/25")


@pytest.mark.parametrize(("private_range", "size"), [("10.202.0.0/24", 512), ("10.202.0.1/16", 256), ("nonsense", 256)])
def test_flags_that_do_not_fit_are_told(private_range: str, size: int) -> None:
    FLAGS.private_range, FLAGS.network_size = private_range, size
    with pytest.raises(exception.NovaError, match="--private_range and --network_size"):
        models.all_allotments()
