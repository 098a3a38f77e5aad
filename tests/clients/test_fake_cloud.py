"""What boto3 sees of the mechanisms that all actions share, against a cloud whose instances are only written down."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.exceptions
import pytest

from tests.clients.support import Cloud
from tests.clients.test_boto3 import Boto3Client
from tests.conftest import wait_until


@pytest.fixture
def ec2(either_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's EC2 client; afterwards no instance runs."""
    client = Boto3Client(monkeypatch, either_cloud).ec2
    yield client
    not_gone = {"instance-state-name": ["pending", "running", "shutting-down"]}
    if alive := instances(client, not_gone):
        client.terminate_instances(InstanceIds=[i["InstanceId"] for i in alive])
    wait_until(lambda: not instances(client, not_gone), 30, "all are terminated")


@pytest.fixture
def image_id(ec2: Any) -> str:
    return ec2.describe_images(Filters=[{"Name": "name", "Values": ["nova-starter"]}])["Images"][0]["ImageId"]


def instances(ec2: Any, filters: dict[str, list[str]] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    """The instances that a listing has, page by page."""
    arguments["Filters"] = [{"Name": name, "Values": values} for name, values in (filters or {}).items()]
    pages = ec2.get_paginator("describe_instances").paginate(**arguments)
    return [instance for page in pages for reservation in page["Reservations"] for instance in reservation["Instances"]]


def run(ec2: Any, image_id: str, count: int = 1, **arguments: Any) -> list[str]:
    answer = ec2.run_instances(ImageId=image_id, MinCount=count, MaxCount=count, InstanceType="m1.tiny", **arguments)
    return [instance["InstanceId"] for instance in answer["Instances"]]


def code_of(call: Any, **arguments: Any) -> str:
    """The error code that a call is answered."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"]


@pytest.mark.both_directories
def test_client_token_makes_a_repeated_request_harmless(ec2: Any, image_id: str):
    first = run(ec2, image_id, 2, ClientToken="token-1")
    assert run(ec2, image_id, 2, ClientToken="token-1") == first
    assert code_of(ec2.run_instances, ImageId=image_id, MinCount=1, MaxCount=1, ClientToken="token-1",
                   InstanceType="m1.tiny") == "IdempotentParameterMismatch"
    assert sorted(i["InstanceId"] for i in instances(ec2, {"client-token": ["token-1"]})) == sorted(first)


def test_client_token_used_by_many_at_once(ec2: Any, image_id: str):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: run(ec2, image_id, ClientToken="token-2"), range(10)))
    assert answers == [answers[0]] * 10
    assert len(instances(ec2, {"client-token": ["token-2"]})) == 1


def test_dry_run_does_nothing(ec2: Any, image_id: str):
    before = len(instances(ec2))
    assert code_of(ec2.run_instances, ImageId=image_id, MinCount=1, MaxCount=1, DryRun=True) == "DryRunOperation"
    assert code_of(ec2.create_key_pair, KeyName="dry", DryRun=True) == "DryRunOperation"
    assert len(instances(ec2)) == before
    assert not ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": ["dry"]}])["KeyPairs"]


@pytest.mark.both_directories
def test_filters(ec2: Any, image_id: str):
    small = run(ec2, image_id)
    large = [i["InstanceId"] for i in ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1,
                                                        InstanceType="m1.small")["Instances"]]
    wait_until(lambda: len(instances(ec2, {"instance-state-name": ["running"]})) == 2, 30, "both run")
    alive = {"instance-state-name": ["running"]}
    assert [i["InstanceId"] for i in instances(ec2, alive | {"instance-type": ["m1.tiny"]})] == small
    assert [i["InstanceId"] for i in instances(ec2, alive | {"instance-type": ["*.small"]})] == large
    assert len(instances(ec2, alive | {"instance-type": ["m1.tiny", "m1.small"], "image-id": [image_id]})) == 2
    assert instances(ec2, alive | {"instance-type": ["m1.xlarge"]}) == []
    address = instances(ec2, InstanceIds=small)[0]["PrivateIpAddress"]
    assert [i["InstanceId"] for i in instances(ec2, {"private-ip-address": [address]})] == small
    assert code_of(ec2.describe_instances, Filters=[{"Name": "colour", "Values": ["blue"]}]) == "InvalidParameterValue"


def test_pages(ec2: Any, image_id: str):
    made = {id for _ in range(12) for id in run(ec2, image_id)}
    pages = list(ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}], PaginationConfig={"PageSize": 5}))
    assert len(pages) >= 3
    seen = [i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]]
    assert len(seen) == len(set(seen)) and set(seen) == made
    assert code_of(ec2.describe_instances, MaxResults=5, InstanceIds=list(made)[:1]) == "InvalidParameterCombination"


def test_ten_clients_ask_for_twenty_instances_at_once(ec2: Any, image_id: str):
    with ThreadPoolExecutor(10) as pool:
        made = [id for ids in pool.map(lambda _: run(ec2, image_id, 2), range(10)) for id in ids]
    wait_until(lambda: len(instances(ec2, {"instance-state-name": ["running"]})) == 20, 60, "twenty run")
    seen = instances(ec2, InstanceIds=made)
    assert len({i["PrivateIpAddress"] for i in seen}) == len({i["InstanceId"] for i in seen}) == 20


def test_terminated_instance_stays_visible(ec2: Any, image_id: str):
    [instance_id] = run(ec2, image_id)
    ec2.terminate_instances(InstanceIds=[instance_id])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    [seen] = instances(ec2, InstanceIds=[instance_id])
    assert seen["State"] == {"Code": 48, "Name": "terminated"}
    assert "PrivateIpAddress" not in seen
    assert code_of(ec2.reboot_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"


def test_what_the_cloud_says_of_itself(ec2: Any):
    assert [r["RegionName"] for r in ec2.describe_regions()["Regions"]] == ["nova"]
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    assert [(zone["ZoneName"], zone["State"]) for zone in zones] == [("nova", "available")]
    types = {t["InstanceType"] for t in ec2.describe_instance_types()["InstanceTypes"]}
    assert {"m1.tiny", "m1.small", "m1.large", "m1.xlarge", "c1.medium"} <= types
