"""Images shared, described, copied and tagged by boto3, boto 2 and the aws command, on a cloud without guests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest

from tests.clients.support import Cloud, run
from tests.clients.test_boto2 import PYTHON
from tests.conftest import wait_until

AWS = str(Path(sys.prefix, "bin", "aws"))
#: boto 2 reads one expression a line, in which `ec2` is its connection
BOTO2 = """
import json, os, sys
from urllib.parse import urlsplit
from boto.ec2.connection import EC2Connection
from boto.ec2.regioninfo import RegionInfo
url = urlsplit(os.environ["EC2_URL"])
ec2 = EC2Connection(os.environ["EC2_ACCESS_KEY"], os.environ["EC2_SECRET_KEY"], is_secure=False, port=url.port,
                    path=url.path, region=RegionInfo(name="nova", endpoint=url.hostname))
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Client(Protocol):
    """What a client does with an image."""

    def share(self, image: str, project: str) -> None: ...
    def unshare(self, image: str, project: str) -> None: ...
    def shared_with(self, image: str) -> list[str]: ...
    def publish(self, image: str) -> None: ...
    def reset(self, image: str) -> None: ...
    def describe(self, image: str) -> str: ...
    def set_description(self, image: str, text: str) -> None: ...
    def tag(self, image: str, key: str, value: str) -> None: ...
    def untag(self, image: str, key: str) -> None: ...
    def tagged(self, key: str, value: str) -> list[str]: ...
    def copy(self, image: str, name: str) -> str: ...
    def image_of(self, instance: str, name: str) -> str: ...
    def state(self, image: str) -> str: ...
    def deregister(self, image: str) -> None: ...


class Boto3:
    """boto3."""

    def __init__(self, cloud: Cloud):
        self.ec2: Any = boto3.client(
            "ec2", region_name="nova", aws_access_key_id=cloud.access, aws_secret_access_key=cloud.secret,
            endpoint_url=f"http://127.0.0.1:{cloud.ec2_port}/services/Cloud")

    def share(self, image: str, project: str) -> None:
        self.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": project}]})

    def unshare(self, image: str, project: str) -> None:
        self.ec2.modify_image_attribute(ImageId=image, Attribute="launchPermission", OperationType="remove",
                                        UserIds=[project])

    def shared_with(self, image: str) -> list[str]:
        found = self.ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")["LaunchPermissions"]
        return [each.get("UserId", each.get("Group")) for each in found]

    def publish(self, image: str) -> None:
        self.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})

    def reset(self, image: str) -> None:
        self.ec2.reset_image_attribute(ImageId=image, Attribute="launchPermission")

    def describe(self, image: str) -> str:
        return str(self.ec2.describe_image_attribute(ImageId=image, Attribute="description")["Description"]["Value"])

    def set_description(self, image: str, text: str) -> None:
        self.ec2.modify_image_attribute(ImageId=image, Description={"Value": text})

    def tag(self, image: str, key: str, value: str) -> None:
        self.ec2.create_tags(Resources=[image], Tags=[{"Key": key, "Value": value}])

    def untag(self, image: str, key: str) -> None:
        self.ec2.delete_tags(Resources=[image], Tags=[{"Key": key}])

    def tagged(self, key: str, value: str) -> list[str]:
        pages = self.ec2.get_paginator("describe_images").paginate(
            Filters=[{"Name": f"tag:{key}", "Values": [value]}], PaginationConfig={"PageSize": 5})
        return [image["ImageId"] for page in pages for image in page["Images"]]

    def copy(self, image: str, name: str) -> str:
        return str(self.ec2.copy_image(SourceImageId=image, SourceRegion="nova", Name=name)["ImageId"])

    def image_of(self, instance: str, name: str) -> str:
        return str(self.ec2.create_image(InstanceId=instance, Name=name, NoReboot=True)["ImageId"])

    def state(self, image: str) -> str:
        return str(self.ec2.describe_images(ImageIds=[image])["Images"][0]["State"])

    def deregister(self, image: str) -> None:
        self.ec2.deregister_image(ImageId=image)


class Aws(Boto3):
    """The aws command."""

    def __init__(self, cloud: Cloud):
        self.environment = cloud.child_environment()

    def _ec2(self, *arguments: str) -> Any:
        said = run(AWS, "ec2", *arguments, environment=self.environment)
        return json.loads(said) if said else None

    def share(self, image: str, project: str) -> None:
        self._ec2("modify-image-attribute", "--image-id", image, "--launch-permission", f"Add=[{{UserId={project}}}]")

    def unshare(self, image: str, project: str) -> None:
        self._ec2("modify-image-attribute", "--image-id", image, "--attribute", "launchPermission", "--operation-type",
                  "remove", "--user-ids", project)

    def shared_with(self, image: str) -> list[str]:
        found = self._ec2("describe-image-attribute", "--image-id", image, "--attribute", "launchPermission")
        return [each.get("UserId", each.get("Group")) for each in found["LaunchPermissions"]]

    def publish(self, image: str) -> None:
        self._ec2("modify-image-attribute", "--image-id", image, "--launch-permission", "Add=[{Group=all}]")

    def reset(self, image: str) -> None:
        self._ec2("reset-image-attribute", "--image-id", image, "--attribute", "launchPermission")

    def describe(self, image: str) -> str:
        return str(self._ec2("describe-image-attribute", "--image-id", image, "--attribute", "description")[
            "Description"]["Value"])

    def set_description(self, image: str, text: str) -> None:
        self._ec2("modify-image-attribute", "--image-id", image, "--description", text)

    def tag(self, image: str, key: str, value: str) -> None:
        self._ec2("create-tags", "--resources", image, "--tags", f"Key={key},Value={value}")

    def untag(self, image: str, key: str) -> None:
        self._ec2("delete-tags", "--resources", image, "--tags", f"Key={key}")

    def tagged(self, key: str, value: str) -> list[str]:
        found = self._ec2("describe-images", "--page-size", "5", "--filters", f"Name=tag:{key},Values={value}")
        return [image["ImageId"] for image in found["Images"]]

    def copy(self, image: str, name: str) -> str:
        return str(self._ec2("copy-image", "--source-image-id", image, "--source-region", "nova", "--name", name)[
            "ImageId"])

    def image_of(self, instance: str, name: str) -> str:
        return str(self._ec2("create-image", "--instance-id", instance, "--name", name, "--no-reboot")["ImageId"])

    def state(self, image: str) -> str:
        return str(self._ec2("describe-images", "--image-ids", image)["Images"][0]["State"])

    def deregister(self, image: str) -> None:
        self._ec2("deregister-image", "--image-id", image)


class Boto2:
    """boto 2 under Debian's own Python."""

    def __init__(self, worker: subprocess.Popen[str]):
        self._worker = worker

    def _eval(self, expression: str) -> Any:
        assert self._worker.stdin is not None and self._worker.stdout is not None
        self._worker.stdin.write(expression + "\n")
        self._worker.stdin.flush()
        said = self._worker.stdout.readline()
        assert said, f"{expression} failed"
        return json.loads(said)

    def share(self, image: str, project: str) -> None:
        assert self._eval(f"ec2.modify_image_attribute({image!r}, operation='add', user_ids=[{project!r}])")

    def unshare(self, image: str, project: str) -> None:
        assert self._eval(f"ec2.modify_image_attribute({image!r}, operation='remove', user_ids=[{project!r}])")

    def shared_with(self, image: str) -> list[str]:
        found = self._eval(f"ec2.get_image_attribute({image!r}).attrs")
        return [*found.get("groups", []), *found.get("user_ids", [])]

    def publish(self, image: str) -> None:
        assert self._eval(f"ec2.modify_image_attribute({image!r}, operation='add', groups='all')")

    def reset(self, image: str) -> None:
        assert self._eval(f"ec2.reset_image_attribute({image!r})")

    def describe(self, image: str) -> str:
        return str(self._eval(f"ec2.get_image({image!r}).description"))

    def set_description(self, image: str, text: str) -> None:
        assert self._eval(f"ec2.get_status('ModifyImageAttribute', {{'ImageId': {image!r}, 'Attribute': 'description', "
                          f"'Value': {text!r}}})")

    def tag(self, image: str, key: str, value: str) -> None:
        assert self._eval(f"ec2.create_tags([{image!r}], {{{key!r}: {value!r}}})")

    def untag(self, image: str, key: str) -> None:
        assert self._eval(f"ec2.delete_tags([{image!r}], [{key!r}])")

    def tagged(self, key: str, value: str) -> list[str]:
        return list(self._eval(f"[i.id for i in ec2.get_all_images(filters={{'tag:{key}': {value!r}}})]"))

    def copy(self, image: str, name: str) -> str:
        return str(self._eval(f"ec2.copy_image('nova', {image!r}, {name!r}).image_id"))

    def image_of(self, instance: str, name: str) -> str:
        return str(self._eval(f"ec2.create_image({instance!r}, {name!r}, no_reboot=True)"))

    def state(self, image: str) -> str:
        return str(self._eval(f"ec2.get_image({image!r}).state"))

    def deregister(self, image: str) -> None:
        assert self._eval(f"ec2.deregister_image({image!r})")


@pytest.fixture(params=["boto3", "aws", "boto2"])
def client(request: pytest.FixtureRequest, fake_cloud: Cloud) -> Iterator[Client]:
    if request.param == "boto3":
        yield Boto3(fake_cloud)
    elif request.param == "aws":
        yield Aws(fake_cloud)
    else:
        if subprocess.run([PYTHON, "-c", "import boto"], capture_output=True, timeout=30).returncode != 0:
            pytest.skip("Debian's python3-boto is not installed")
        with subprocess.Popen([PYTHON, "-c", BOTO2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env=fake_cloud.child_environment()) as worker:
            yield Boto2(worker)
            worker.kill()


def test_an_image_is_shared_described_tagged_and_copied(client: Client, fake_cloud: Cloud) -> None:
    ec2, name = Boto3(fake_cloud).ec2, type(client).__name__
    [starter] = ec2.describe_images(Filters=[{"Name": "name", "Values": ["nova-starter"]}])["Images"]
    copy = client.copy(starter["ImageId"], f"a copy by {name}")
    wait_until(lambda: client.state(copy) == "available", 60, "the copy")

    client.share(copy, "admin")
    assert client.shared_with(copy) == ["admin"]
    client.publish(copy)
    assert sorted(client.shared_with(copy)) == ["admin", "all"]
    client.unshare(copy, "admin")
    assert client.shared_with(copy) == ["all"]
    client.reset(copy)
    assert client.shared_with(copy) == []

    client.set_description(copy, f"described by {name}")
    assert client.describe(copy) == f"described by {name}"
    client.tag(copy, "by", name)
    assert client.tagged("by", name) == [copy]
    client.untag(copy, "by")
    assert client.tagged("by", name) == []

    [instance] = ec2.run_instances(ImageId=copy, MinCount=1, MaxCount=1, InstanceType="m1.tiny")["Instances"]
    id = instance["InstanceId"]
    ec2.get_waiter("instance_running").wait(InstanceIds=[id], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    client.deregister(copy)
    image = client.image_of(id, f"of an instance by {name}")
    wait_until(lambda: client.state(image) in ("available", "failed"), 60, "the image of the instance")
    assert client.state(image) == "available"
    client.deregister(image)
    ec2.terminate_instances(InstanceIds=[id])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[id], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
