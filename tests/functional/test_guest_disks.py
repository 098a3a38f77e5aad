"""The disks of real guests: grown to their types, with files written into them, and with boot loaders of their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import whole_disk
from tests.clients.support import ssh
from tests.conftest import wait_until
from tests.functional.cloud import ROOT, Cloud, cloud, instances, terminate_all


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    with cloud("--libvirt_type=qemu", "--converge_interval=2", "--injection=hostname",
               "--injection_required") as made:
        made.start()
        assert made.machine_image
        yield made


@pytest.fixture
def key(the_cloud: Cloud, tmp_path: Path) -> Iterator[Path]:
    """The private key of the key pair `mine`."""
    path = tmp_path / "key.pem"
    path.write_text(the_cloud.ec2.create_key_pair(KeyName="mine")["KeyMaterial"])
    path.chmod(0o600)
    yield path
    terminate_all(the_cloud.ec2)
    the_cloud.ec2.delete_key_pair(KeyName="mine")


def run(the_cloud: Cloud, image: str, instance_type: str) -> tuple[str, str]:
    """Have an instance running; its id and address."""
    [made] = the_cloud.ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, KeyName="mine",
                                         InstanceType=instance_type)["Instances"]
    id = made["InstanceId"]
    wait_until(lambda: instances(the_cloud.ec2, InstanceIds=[id])[0]["State"]["Name"] == "running", 120, "the instance")
    return id, made["PrivateIpAddress"]


def console(the_cloud: Cloud, id: str) -> str:
    """What it said on its serial line."""
    return str(the_cloud.ec2.get_console_output(InstanceId=id).get("Output", ""))


def register(the_cloud: Cloud, name: str, image: Path, **options: str) -> str:
    """Upload and register an image; its id once it is available."""
    ec2 = the_cloud.ec2
    the_cloud.s3.create_bucket(Bucket="images")
    the_cloud.s3.upload_file(str(image), "images", name)
    id = str(ec2.register_image(Name=name, ImageLocation=f"images/{name}", **options)["ImageId"])
    query = [{"Name": "state", "Values": ["available"]}]
    wait_until(lambda: ec2.describe_images(ImageIds=[id], Filters=query)["Images"], 60, "the image")
    return id


def test_the_starter_grows_to_the_disk_of_its_type(the_cloud: Cloud, key: Path) -> None:
    id, address = run(the_cloud, the_cloud.machine_image, "m1.small")
    sizes = ssh(key, address, "df", "-k", "/", timeout=120).splitlines()[-1].split()
    assert int(sizes[1]) > 9 << 20, sizes
    assert ssh(key, address, "cat", "/etc/hostname") == id  # written into it: the starter has no such file
    assert int(ssh(key, address, "cat", "/sys/class/block/vda/size")) * 512 == 10 << 30
    said = console(the_cloud, id)
    assert "cannot grow" not in said
    # what it wrote for that is small: the rest of the disk are holes
    assert os.stat(the_cloud.state / "instances" / id / "disk").st_blocks * 512 < 64 << 20
    ssh(key, address, "dd", "if=/dev/zero", "of=/root/file", "bs=1M", "count=40")
    assert ssh(key, address, "ls -l /root/file | tr -s ' ' | cut -d ' ' -f 5") == str(40 << 20)


def test_a_whole_disk_boots_by_its_own_boot_loader(the_cloud: Cloud, key: Path, tmp_path: Path) -> None:
    disk = whole_disk.build(Path(os.environ.get("NOVA_STARTER_PATH", ROOT / ".cache/starter")), tmp_path / "work")
    image = register(the_cloud, "whole-disk", disk)
    described = the_cloud.ec2.describe_images(ImageIds=[image])["Images"][0]
    assert not described.get("KernelId") and not described.get("RamdiskId")
    id, address = run(the_cloud, image, "m1.tiny")
    assert ssh(key, address, "grep ' / ' /proc/mounts", timeout=120).startswith("/dev/vda1 / ext4")
    assert ssh(key, address, "cat", "/etc/hostname") == id
    assert ssh(key, address, "cat", "/sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    wait_until(lambda: "NOVA ready" in console(the_cloud, id), 60, "the end of the boot")
    assert "GRUB boots" in console(the_cloud, id) and f"METADATA instance-id={id}" in console(the_cloud, id)
