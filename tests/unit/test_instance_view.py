"""How instances look to EC2's clients."""

import dataclasses

import pytest

from nova.cloud import instance_view
from nova.compute import models
from nova.compute.models import Instance
from nova.flags import FLAGS
from nova.wire import model

INSTANCE = Instance(
    "i-00000001", project_id="proj", user_id="ann", reservation_id="r-1", launch_index=0, image_id="ami-1",
    instance_type="m1.small", vcpus=1, memory_mb=1024, disk_gb=10, hostname="i-00000001", uuid=models.new_uuid(),
    mac="02:00:00:00:00:01", private_ip="10.202.0.3", network_id="proj", host="h", zone="nova", launch_time=1.0,
    security_groups=["default"], state="running")


def but(**changes: object) -> Instance:
    return dataclasses.replace(INSTANCE, **changes)  # type: ignore[arg-type]


def test_an_instance_shows_only_members_of_the_model() -> None:
    view = instance_view.instance(but(key_name="k", kernel_id="aki-1", ramdisk_id="ari-1", state_reason_code="x"))
    operation = model.ec2().operation("DescribeInstances")
    assert operation is not None and operation.output_shape is not None
    shape = operation.output_shape.members["Reservations"].member.members["Instances"].member
    assert {name for name in view if not name.startswith("_")} <= shape.members.keys()


@pytest.mark.parametrize(("name", "code"), [("pending", 0), ("running", 16), ("shutting-down", 32), ("terminated", 48)])
def test_a_state_has_ec2s_code(name: str, code: int) -> None:
    assert instance_view.instance(but(state=name))["State"] == {"Code": code, "Name": name}


def test_a_running_instance_has_its_address_and_name() -> None:
    FLAGS.dhcp_domain = "cloud"
    view = instance_view.instance(INSTANCE)
    assert (view["PrivateIpAddress"], view["PrivateDnsName"]) == ("10.202.0.3", "i-00000001.cloud")


def test_a_terminated_instance_has_neither_address_nor_name() -> None:
    view = instance_view.instance(but(state="terminated", private_ip=""))
    assert "PrivateIpAddress" not in view and view["PrivateDnsName"] == ""


def test_what_an_instance_does_not_have_is_left_out() -> None:
    assert not {"KernelId", "RamdiskId", "KeyName", "StateReason"} & instance_view.instance(INSTANCE).keys()


def test_why_an_instance_is_as_it_is_is_shown() -> None:
    view = instance_view.instance(but(state_reason_code="Server.InternalError", state_reason="Server.InternalError: x"))
    assert view["StateReason"] == {"Code": "Server.InternalError", "Message": "Server.InternalError: x"}


def test_instances_are_grouped_by_reservation_in_launch_order() -> None:
    views = [instance_view.instance(but(id=id, reservation_id=r, launch_index=n))
             for id, r, n in (("i-1", "r-1", 1), ("i-2", "r-2", 0), ("i-3", "r-1", 0))]
    first, second = instance_view.group(views)
    assert [i["InstanceId"] for i in first["Instances"]] == ["i-3", "i-1"]
    assert (first["ReservationId"], first["OwnerId"]) == ("r-1", "proj")
    assert [i["InstanceId"] for i in second["Instances"]] == ["i-2"]


def test_a_reservation_of_forgotten_instances_is_empty() -> None:
    assert instance_view.reservation([])["Instances"] == []


def test_a_state_change_has_before_and_after() -> None:
    change = instance_view.state_change(but(state="shutting-down"), "running")
    assert change == {"InstanceId": "i-00000001", "CurrentState": {"Code": 32, "Name": "shutting-down"},
                      "PreviousState": {"Code": 16, "Name": "running"}}


@pytest.mark.parametrize(("state", "alive", "system", "guest"), [
    ("running", True, "ok", "ok"), ("running", False, "impaired", "insufficient-data"),
    ("pending", True, "not-applicable", "not-applicable"), ("terminated", False, "not-applicable", "not-applicable")])
def test_the_status_is_that_of_host_and_guest(state: str, alive: bool, system: str, guest: str) -> None:
    status = instance_view.status(but(state=state), alive)
    assert (status["SystemStatus"]["Status"], status["InstanceStatus"]["Status"]) == (system, guest)


def test_a_uuid_tells_cloud_init_the_platform() -> None:
    assert models.new_uuid().startswith("ec2") and len(models.new_uuid()) == 36


def test_a_mac_follows_from_the_id_and_is_locally_administered() -> None:
    assert models.mac_for("i-0a1b2c3d") == "02:00:0a:1b:2c:3d"
