"""boto3 with its default settings; all it is given is novarc's environment."""

from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.clients.support import Cloud
from tests.clients.whole_round import Seen, whole_round


class Boto3Client:
    """See :class:`tests.clients.whole_round.Client`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cloud: Cloud):
        for name, value in cloud.child_environment().items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        self.ec2: Any = boto3.session.Session().client("ec2")
        self.s3: Any = boto3.session.Session().client("s3")

    def create_bucket(self, bucket: str) -> None:
        self.s3.create_bucket(Bucket=bucket)

    def upload(self, bucket: str, key: str, path: Path) -> None:
        self.s3.upload_file(str(path), bucket, key)

    def download(self, bucket: str, key: str, path: Path) -> None:
        self.s3.download_file(bucket, key, str(path))

    def empty_bucket(self, bucket: str, keys: list[str]) -> None:
        listed = self.s3.list_objects_v2(Bucket=bucket)["Contents"]
        assert {entry["Key"] for entry in listed} == set(keys)
        self.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
        self.s3.delete_bucket(Bucket=bucket)

    def register(self, name: str, location: str, kernel: str, ramdisk: str) -> str:
        parts = {"KernelId": kernel, "RamdiskId": ramdisk}
        return self.ec2.register_image(Name=name, ImageLocation=location, Architecture="x86_64",
                                       **{member: value for member, value in parts.items() if value})["ImageId"]

    def image_state(self, image_id: str) -> str:
        return self.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"]

    def deregister(self, image_id: str) -> None:
        self.ec2.deregister_image(ImageId=image_id)

    def create_key(self, name: str) -> str:
        return self.ec2.create_key_pair(KeyName=name)["KeyMaterial"]

    def delete_key(self, name: str) -> None:
        self.ec2.delete_key_pair(KeyName=name)

    def run(self, image_id: str, key_name: str, user_data: str) -> str:
        answer = self.ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1, KeyName=key_name,
                                        InstanceType="m1.tiny", UserData=user_data)
        return answer["Instances"][0]["InstanceId"]

    def see(self, instance_id: str) -> Seen:
        instance = self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
        return Seen(instance["State"]["Name"], instance.get("PrivateIpAddress", ""), instance["KeyName"])

    def console(self, instance_id: str) -> str:
        return self.ec2.get_console_output(InstanceId=instance_id).get("Output", "")

    def reboot(self, instance_id: str) -> None:
        self.ec2.reboot_instances(InstanceIds=[instance_id])

    def terminate(self, instance_id: str) -> None:
        self.ec2.terminate_instances(InstanceIds=[instance_id])


def test_boto3_does_the_whole_round(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    whole_round(cloud, Boto3Client(monkeypatch, cloud), "boto3", tmp_path)
