"""Bundles from a file on a user's disk to a guest that boots: made by openssl and tar, uploaded by s3cmd and registered
by boto 2; made, uploaded and registered by nova-bundle; and what nova-bundle does when it is killed or refused."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests import bundles, images
from tests.clients.support import Cloud, run, starter_path
from tests.clients.test_boto2 import Boto2Client, boto2  # noqa: F401 (the fixture)
from tests.conftest import environment_without_aws, wait_until
from tests.functional.cloud import ROOT, terminate_all


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nova-bundle notes its keys in the test's own directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def client(cloud: Cloud, service: str) -> Any:
    """boto3's client, of the cloud's administrator."""
    environment = cloud.child_environment()
    return boto3.client(service, endpoint_url=environment[f"AWS_ENDPOINT_URL_{service.upper()}"],
                        aws_access_key_id=cloud.access, aws_secret_access_key=cloud.secret, region_name="nova",
                        config=Config(s3={"addressing_style": "path"}))


def starter(ec2: Any, name: str) -> str:
    """The id of an image that the quick start registers."""
    query = [{"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]}]
    found = wait_until(lambda: ec2.describe_images(Filters=query)["Images"], 60, name)
    return str(found[0]["ImageId"])  # type: ignore[index]


def boots(ec2: Any, image_id: str) -> None:
    """An instance of the image comes up, all the way to its init."""
    instance_id = ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1,
                                    InstanceType="m1.tiny")["Instances"][0]["InstanceId"]
    try:
        wait_until(lambda: "NOVA ready" in ec2.get_console_output(InstanceId=instance_id)["Output"], 150,
                   f"{instance_id} boots")
    finally:
        terminate_all(ec2)


def command(cloud: Cloud, *words: object) -> list[str]:
    """The command line of nova-bundle."""
    return [sys.executable, str(ROOT / "bin" / "nova-bundle"), *map(str, words), "--novarc",
            str(cloud.state_path / "novarc")]


def nova_bundle(cloud: Cloud, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run nova-bundle with the cloud's novarc; it must end with this exit code."""
    done = subprocess.run(command(cloud, *words), text=True, timeout=280, capture_output=True,
                          env=environment_without_aws())
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


# -- guests -----------------------------------------------------------------------------------------------------------

def test_a_bundle_uploaded_by_s3cmd_and_registered_by_boto2_boots(cloud: Cloud, boto2: Boto2Client,  # noqa: F811
                                                                  tmp_path: Path) -> None:
    ec2 = client(cloud, "ec2")
    image = (starter_path() / "machine.ext4").read_bytes()
    made = bundles.make(tmp_path / "bundle", str(cloud.state_path / "cacert.pem"), image, part_size=10 << 20,
                        signer=str(cloud.state_path / "pk.pem"), kernel_id=starter(ec2, "nova-starter-kernel"),
                        ramdisk_id=starter(ec2, "nova-starter-ramdisk"))
    (made.directory / "image.manifest.xml").write_bytes(made.manifest)
    s3cmd = ("s3cmd", "--config", str(cloud.state_path / ".s3cfg"))
    run(*s3cmd, "mb", "s3://bundled")
    run(*s3cmd, "put", *map(str, sorted(made.directory.iterdir())), "s3://bundled/images/")
    image_id = boto2.register("bundled", "bundled/images/image.manifest.xml", "", "")
    wait_until(lambda: boto2.image_state(image_id) != "pending", 60, f"{image_id} is made")
    [listed] = ec2.describe_images(ImageIds=[image_id])["Images"]
    assert (listed["State"], listed["KernelId"]) == ("available", made.kernel_id), listed
    boots(ec2, image_id)
    ec2.deregister_image(ImageId=image_id)
    run(*s3cmd, "rb", "--recursive", "--force", "s3://bundled")


def test_nova_bundle_makes_an_image_that_boots_in_one_command(cloud: Cloud) -> None:
    ec2 = client(cloud, "ec2")
    told = nova_bundle(cloud, starter_path() / "machine.ext4", "--name", "from nova-bundle", "--bucket", "one-command",
                       "--kernel", starter(ec2, "nova-starter-kernel"), "--ramdisk",
                       starter(ec2, "nova-starter-ramdisk"), "--json")
    image_id = json.loads(told.stdout)["image_id"]
    boots(ec2, image_id)
    ec2.deregister_image(ImageId=image_id)
    nova_bundle(cloud, "delete", "from nova-bundle", "--bucket", "one-command", "--and-bucket")
    assert "one-command" not in [bucket["Name"] for bucket in client(cloud, "s3").list_buckets()["Buckets"]]


# -- nova-bundle alone ------------------------------------------------------------------------------------------------

@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image file of several parts."""
    path = tmp_path / "disk.img"
    path.write_bytes(images.machine(45 << 20, seed=random.Random(str(tmp_path)).randrange(1 << 30)))
    return path


def there(cloud: Cloud, bucket: str) -> dict[str, Any]:
    """When what is in a bucket was put there, by key; empty while there is no bucket."""
    s3 = client(cloud, "s3")
    if bucket not in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
        return {}
    return {found["Key"]: found["LastModified"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


@pytest.mark.parametrize("way", ["one command", "upload"])
def test_an_upload_that_was_killed_goes_on(fake_cloud: Cloud, image: Path, tmp_path: Path, way: str) -> None:
    bucket = way.replace(" ", "-") + "-killed"
    words = [image, "--bucket", bucket, "--name", "killed"]
    if way == "upload":
        nova_bundle(fake_cloud, "bundle", image, "--name", "killed", "--directory", tmp_path / "b")
        words = ["upload", tmp_path / "b" / "killed.manifest.xml", "--bucket", bucket]
    given = command(fake_cloud, *words, "--jobs", "1")
    process = subprocess.Popen(given, env=environment_without_aws(), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(there(fake_cloud, bucket)) >= 2, 60, "two parts are there")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    first = there(fake_cloud, bucket)
    assert "killed.manifest.xml" not in first, "it was over before it could be killed"
    done = subprocess.run(given, env=environment_without_aws(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    now = there(fake_cloud, bucket)
    assert len(now) == 6 and {key: now[key] for key in first} == first
    assert not list((tmp_path / "state").glob("nova-bundle/*"))
    nova_bundle(fake_cloud, "download", "killed", "--bucket", bucket, "--directory", tmp_path / "again")
    nova_bundle(fake_cloud, "unbundle", tmp_path / "again" / "killed.manifest.xml", "--output", tmp_path / "again.img")
    assert (tmp_path / "again.img").read_bytes() == image.read_bytes()


def test_each_step_by_itself(fake_cloud: Cloud, image: Path, tmp_path: Path) -> None:
    path = nova_bundle(fake_cloud, "bundle", image, "--name", "steps", "--directory", tmp_path / "b").stdout.strip()
    location = nova_bundle(fake_cloud, "upload", path, "--bucket", "steps/deep").stdout.strip()
    assert location == "steps/deep/steps.manifest.xml"
    before = there(fake_cloud, "steps")
    nova_bundle(fake_cloud, "upload", path, "--bucket", "steps/deep")
    after = there(fake_cloud, "steps")
    assert {key for key in after if after[key] != before[key]} <= {location.partition("/")[2]}  # the manifest at most
    image_id = nova_bundle(fake_cloud, "register", location, "--name", "steps").stdout.strip()
    [listed] = client(fake_cloud, "ec2").describe_images(ImageIds=[image_id])["Images"]
    assert (listed["State"], listed["Name"]) == ("available", "steps")
    nova_bundle(fake_cloud, "delete", "steps", "--bucket", "steps/deep", "--and-bucket")
    assert "NoSuchBucket" in nova_bundle(fake_cloud, "delete", "steps", "--bucket", "steps/deep", code=1).stderr
    client(fake_cloud, "ec2").deregister_image(ImageId=image_id)


def test_a_smaller_bundle_of_the_same_name_replaces_all_of_it(fake_cloud: Cloud, image: Path) -> None:
    nova_bundle(fake_cloud, "push", image, "--bucket", "replaced", "--no-wait")
    image.write_bytes(images.machine(5 << 20))
    nova_bundle(fake_cloud, "push", image, "--bucket", "replaced", "--no-wait", "--name", "disk", "--description", "x",
                code=1)  # the name is taken, and says so
    assert set(there(fake_cloud, "replaced")) == {"disk.part.000", "disk.manifest.xml"}


def test_an_image_that_fails_says_why(fake_cloud: Cloud, image: Path, tmp_path: Path) -> None:
    path = Path(nova_bundle(fake_cloud, "bundle", image, "--name", "fails", "--directory", tmp_path).stdout.strip())
    nova_bundle(fake_cloud, "upload", path, "--bucket", "fails")
    client(fake_cloud, "s3").put_object(Bucket="fails", Key="fails.manifest.xml",
                                        Body=path.read_bytes().replace(b"x86_64", b"i386"))
    done = nova_bundle(fake_cloud, "register", "fails/fails.manifest.xml", "--name", "fails", code=1)
    assert "failed" in done.stderr and "signature" in done.stderr
    assert os.listdir(fake_cloud.state_path / "images") == []
