"""Images of real guests: what was written in a guest is found in an instance of its image."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.clients.support import Cloud, guest_processes, ssh
from tests.conftest import wait_until

#: numbers that make names of their own
_names = itertools.count()


class Guests:
    """Instances with a key that a test can log in with."""

    def __init__(self, cloud: Cloud, directory: Path):
        self.cloud, self.key = cloud, directory / "key.pem"
        self.ec2: Any = boto3.client(
            "ec2", region_name="nova", aws_access_key_id=cloud.access, aws_secret_access_key=cloud.secret,
            endpoint_url=f"http://127.0.0.1:{cloud.ec2_port}/services/Cloud")
        self.key_name = f"capture-{next(_names)}"
        self.key.write_text(self.ec2.create_key_pair(KeyName=self.key_name)["KeyMaterial"])
        self.key.chmod(0o600)
        self.images: list[str] = []
        [starter] = self.ec2.describe_images(Filters=[{"Name": "name", "Values": ["nova-starter"]}])["Images"]
        self.starter = starter["ImageId"]

    def run(self, image: str) -> tuple[str, str]:
        """An instance that is up; its id and address."""
        [made] = self.ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m1.tiny",
                                        KeyName=self.key_name)["Instances"]
        id = made["InstanceId"]
        wait_until(lambda: self.see(id)["State"]["Name"] == "running", 60, f"{id} runs")
        address = self.see(id)["PrivateIpAddress"]
        wait_until(lambda: self.boot_id(address), 90, f"{id} answers")
        return id, address

    def see(self, id: str) -> dict[str, Any]:
        return self.ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]

    def boot_id(self, address: str) -> str:
        try:
            return ssh(self.key, address, "cat /proc/sys/kernel/random/boot_id", timeout=0)
        except AssertionError:
            return ""

    def image(self, instance: str, **params: Any) -> str:
        """An available image of an instance."""
        name = f"captured-{next(_names)}"
        id = self.ec2.create_image(InstanceId=instance, Name=name, **params)["ImageId"]
        self.images.append(id)

        def ended() -> dict[str, Any] | None:
            [found] = self.ec2.describe_images(ImageIds=[id])["Images"]
            return found if found["State"] != "pending" else None
        found = wait_until(ended, 120, f"the image of {instance}")
        assert found["State"] == "available" and found["SourceInstanceId"] == instance, found
        return id

    def end(self) -> None:
        ids = [i["InstanceId"] for r in self.ec2.describe_instances(Filters=[
            {"Name": "key-name", "Values": [self.key_name]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]}])["Reservations"] for i in r["Instances"]]
        if ids:
            self.ec2.terminate_instances(InstanceIds=ids)
            wait_until(lambda: not set(ids) & set(guest_processes(self.cloud.state_path)), 60, "the guests' end")
        for id in self.images:
            self.ec2.deregister_image(ImageId=id)
        self.ec2.delete_key_pair(KeyName=self.key_name)


@pytest.fixture
def guests(cloud: Cloud, tmp_path: Path) -> Iterator[Guests]:
    made = Guests(cloud, tmp_path)
    yield made
    made.end()
    wait_until(lambda: not list((cloud.state_path / "captures").iterdir()), 20, "the end of all copies")


def test_a_guest_is_shut_down_for_its_image_and_all_it_wrote_is_in_it(guests: Guests) -> None:
    instance, address = guests.run(guests.starter)
    boot = guests.boot_id(address)
    ssh(guests.key, address, "echo not yet on the disk > /root/buffered")
    image = guests.image(instance)
    wait_until(lambda: guests.boot_id(address) not in ("", boot), 90, f"{instance} is up again")
    assert guests.see(instance)["State"]["Name"] == "running"
    assert ssh(guests.key, address, "cat /root/buffered") == "not yet on the disk"
    copy, there = guests.run(image)
    assert ssh(guests.key, there, "cat /root/buffered") == "not yet on the disk"
    assert ssh(guests.key, there, "hostname") == copy


def test_a_guest_runs_on_with_no_reboot_and_what_it_synced_is_in_its_image(guests: Guests) -> None:
    instance, address = guests.run(guests.starter)
    boot = guests.boot_id(address)
    ssh(guests.key, address, "echo on the disk > /root/synced; sync")
    image = guests.image(instance, NoReboot=True, Description="of a running guest", TagSpecifications=[
        {"ResourceType": "image", "Tags": [{"Key": "a", "Value": "1"}]}])
    assert guests.boot_id(address) == boot
    ssh(guests.key, address, "echo later > /root/later; sync")  # the guest's disk is its own again
    [found] = guests.ec2.describe_images(ImageIds=[image])["Images"]
    assert found["Description"] == "of a running guest" and found["Tags"] == [{"Key": "a", "Value": "1"}]
    _, there = guests.run(image)
    assert ssh(guests.key, there, "cat /root/synced; ls /root") == "on the disk\nsynced"


def test_an_image_of_an_instance_of_an_image_of_an_instance(guests: Guests) -> None:
    """What is flattened does not need what it came from."""
    instance, address = guests.run(guests.starter)
    ssh(guests.key, address, "echo one > /root/one; sync")
    first = guests.image(instance, NoReboot=True)
    second, address = guests.run(first)
    ssh(guests.key, address, "echo two > /root/two; sync")
    image = guests.image(second, NoReboot=True)
    guests.ec2.deregister_image(ImageId=first)
    guests.images.remove(first)
    _, there = guests.run(image)
    assert ssh(guests.key, there, "cat /root/one /root/two") == "one\ntwo"


def test_two_images_of_one_guest_at_once(guests: Guests) -> None:
    instance, _ = guests.run(guests.starter)
    ids = [guests.ec2.create_image(InstanceId=instance, Name=f"captured-{next(_names)}", NoReboot=True)["ImageId"]
           for _ in range(2)]
    guests.images += ids

    def states() -> set[str]:
        return {i["State"] for i in guests.ec2.describe_images(ImageIds=ids)["Images"]}
    wait_until(lambda: "pending" not in states(), 120, "both images")
    assert states() == {"available"}


def test_an_image_fails_whose_instance_is_terminated_at_once(guests: Guests) -> None:
    instance, _ = guests.run(guests.starter)
    id = guests.ec2.create_image(InstanceId=instance, Name=f"captured-{next(_names)}")["ImageId"]
    guests.images.append(id)
    guests.ec2.terminate_instances(InstanceIds=[instance])

    def ended() -> dict[str, Any] | None:
        [found] = guests.ec2.describe_images(ImageIds=[id])["Images"]
        return found if found["State"] != "pending" else None
    found = wait_until(ended, 60, "the image's end")
    if found["State"] == "failed":  # else the copy was faster
        assert found["StateReason"]["Code"] == "Client.InstanceTerminated"
        assert instance in found["StateReason"]["Message"]
    wait_until(lambda: instance not in guest_processes(guests.cloud.state_path), 30, f"the end of {instance}")
