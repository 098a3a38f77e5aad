"""Debian with cloud-init as an instance: cloud-init finds Nova's metadata service as EC2's and does what it says."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from nova.image import debian
from tests.clients.support import ssh
from tests.conftest import wait_until
from tests.functional.cloud import Cloud, cloud, instances

ROOT = Path(__file__).parents[2]
USER_DATA = """#cloud-config
write_files:
  - path: /etc/nova-test
    content: written by cloud-init
runcmd:
  - [sh, -c, "echo RUNCMD on $(hostname) > /dev/console"]
"""


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    with cloud("--libvirt_type=qemu") as made:
        made.start()
        assert made.machine_image
        yield made


def test_the_build_says_what_it_is_and_does_nothing_again() -> None:
    directory = Path(os.environ.get("NOVA_DEBIAN_PATH", ROOT / ".cache/debian"))

    def refuse(line: str) -> None:
        raise AssertionError(f"nothing should be built, but: {line}")
    debian.build(directory)
    image = debian.build(directory, refuse)
    assert image.stat().st_blocks * 512 < image.stat().st_size
    assert json.loads((directory / "debian.json").read_text())["files"]["debian.ext4"]["size"] == image.stat().st_size


def test_cloud_init_takes_key_hostname_and_user_data(the_cloud: Cloud, tmp_path: Path) -> None:
    image = debian.build(os.environ.get("NOVA_DEBIAN_PATH", ROOT / ".cache/debian"))
    ec2, s3 = the_cloud.client("ec2", timeout=120), the_cloud.client("s3", timeout=120)
    s3.create_bucket(Bucket="debian")
    s3.upload_file(str(image), "debian", "debian.ext4",
                   Config=TransferConfig(multipart_chunksize=64 << 20, max_concurrency=2))
    starter = ec2.describe_images(ImageIds=[the_cloud.machine_image])["Images"][0]
    ami = ec2.register_image(Name="debian", ImageLocation="debian/debian.ext4", KernelId=starter["KernelId"],
                             RamdiskId=starter["RamdiskId"])["ImageId"]
    query = [{"Name": "state", "Values": ["available"]}]
    wait_until(lambda: ec2.describe_images(ImageIds=[ami], Filters=query)["Images"], 120, "the Debian image")
    key = tmp_path / "key.pem"
    key.write_text(ec2.create_key_pair(KeyName="mine")["KeyMaterial"])
    key.chmod(0o600)
    [made] = ec2.run_instances(ImageId=ami, MinCount=1, MaxCount=1, InstanceType="m1.small", KeyName="mine",
                               UserData=USER_DATA)["Instances"]
    id = made["InstanceId"]
    wait_until(lambda: instances(ec2, InstanceIds=[id])[0]["State"]["Name"] == "running", 120, "the instance")
    address = made["PrivateIpAddress"]

    def guest(*command: str, timeout: float = 30) -> str:
        return ssh(key, address, *command, timeout=timeout, user="debian")

    def console() -> str:
        return str(ec2.get_console_output(InstanceId=id).get("Output", ""))
    try:
        assert guest("true", timeout=400) == ""
        wait_until(lambda: f"RUNCMD on {id}" in console(), 200, "the command of the user data")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{console()[-6000:]}") from None
    assert guest("hostname") == id
    assert guest("cat", "/etc/nova-test") == "written by cloud-init"
    wait_until(lambda: guest("cloud-init", "status").startswith("status: done"), 120, "cloud-init's end")
    assert guest("cloud-id") == "aws"
    assert "DataSourceEc2" in guest("cat", "/run/cloud-init/result.json")
    said = json.loads(guest("cat", "/run/cloud-init/result.json"))
    assert said["v1"]["errors"] == []
    size_kib = int(guest("df", "--output=size", "/").split()[-1])
    assert size_kib > 9 << 20  # the file system was grown to the disk of the type
