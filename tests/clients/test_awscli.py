"""The aws command with its default settings; all it is given is novarc's environment."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.clients.support import Cloud, run
from tests.clients.whole_round import Seen, whole_round

AWS = str(Path(sys.prefix, "bin", "aws"))


class AwsCommand:
    """See :class:`tests.clients.whole_round.Client`."""

    def __init__(self, cloud: Cloud, directory: Path):
        self._environment = cloud.child_environment()
        self._directory = directory

    def _aws(self, *arguments: str) -> str:
        return run(AWS, *arguments, environment=self._environment)

    def _ec2(self, *arguments: str) -> Any:
        said = self._aws("ec2", *arguments)
        return json.loads(said) if said else None

    def create_bucket(self, bucket: str) -> None:
        self._aws("s3", "mb", f"s3://{bucket}")

    def upload(self, bucket: str, key: str, path: Path) -> None:
        self._aws("s3", "cp", str(path), f"s3://{bucket}/{key}")

    def download(self, bucket: str, key: str, path: Path) -> None:
        self._aws("s3", "cp", f"s3://{bucket}/{key}", str(path))

    def empty_bucket(self, bucket: str, keys: list[str]) -> None:
        listed = self._aws("s3", "ls", f"s3://{bucket}/")
        assert all(key in listed for key in keys)
        self._aws("s3", "rb", "--force", f"s3://{bucket}")

    def register(self, name: str, location: str, kernel: str, ramdisk: str) -> str:
        options = [*(["--kernel-id", kernel] if kernel else []), *(["--ramdisk-id", ramdisk] if ramdisk else [])]
        return self._ec2("register-image", "--name", name, "--image-location", location, *options)["ImageId"]

    def image_state(self, image_id: str) -> str:
        return self._ec2("describe-images", "--image-ids", image_id)["Images"][0]["State"]

    def deregister(self, image_id: str) -> None:
        self._ec2("deregister-image", "--image-id", image_id)

    def create_key(self, name: str) -> str:
        return self._aws("ec2", "create-key-pair", "--key-name", name, "--query", "KeyMaterial", "--output", "text")

    def delete_key(self, name: str) -> None:
        self._ec2("delete-key-pair", "--key-name", name)

    def run(self, image_id: str, key_name: str, user_data: str) -> str:
        script = self._directory / "user-data"
        script.write_text(user_data)
        answer = self._ec2("run-instances", "--image-id", image_id, "--key-name", key_name,
                           "--instance-type", "m1.tiny", "--user-data", f"file://{script}")
        return answer["Instances"][0]["InstanceId"]

    def see(self, instance_id: str) -> Seen:
        answer = self._ec2("describe-instances", "--instance-ids", instance_id)
        instance = answer["Reservations"][0]["Instances"][0]
        return Seen(instance["State"]["Name"], instance.get("PrivateIpAddress", ""), instance["KeyName"])

    def console(self, instance_id: str) -> str:
        return self._ec2("get-console-output", "--instance-id", instance_id).get("Output", "")

    def reboot(self, instance_id: str) -> None:
        self._ec2("reboot-instances", "--instance-ids", instance_id)

    def terminate(self, instance_id: str) -> None:
        self._ec2("terminate-instances", "--instance-ids", instance_id)


def test_aws_command_does_the_whole_round(cloud: Cloud, tmp_path: Path):
    whole_round(cloud, AwsCommand(cloud, tmp_path), "awscli", tmp_path)
