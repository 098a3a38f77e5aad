"""Projects do not see each other: what is another's looks exactly as if it did not exist."""

import asyncio
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import pytest

from nova.auth import credentials
from nova.auth.manager import AuthManager
from nova.auth.models import User
from tests import images as contents
from tests.conftest import wait_until
from tests.functional.cloud import Cloud, cloud, error_code, instances, outcome, states, terminate_all

#: ids that never existed, for the kinds of ids of the other project
NEVER = {"instance": "i-0badcafe", "image": "ami-0badcafe", "key": "never", "bucket": "never-was-there"}
SECRET = b"the first project's own"


@dataclass
class Two:
    """The first project's things, and the clients of a stranger."""

    cloud: Cloud
    mine: dict[str, str]
    ec2: Any
    s3: Any
    stranger: User

    def client(self, service: str, project: str, secret: str = "") -> Any:
        """A client with the stranger's key for a project."""
        return self.cloud.client(service, aws_access_key_id=credentials.access_key(self.stranger, project),
                                 aws_secret_access_key=secret or self.stranger.secret)


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    """A cloud of records."""
    with cloud("--compute_driver=fake", "--converge_interval=2") as made:
        made.start()
        assert made.machine_image
        yield made


@pytest.fixture(scope="module")
def two(the_cloud: Cloud) -> Two:
    """Something of every kind in the administrator's project, and a stranger with a project of their own."""
    async def make_stranger() -> User:
        async with the_cloud.store() as store:
            auth = AuthManager(store)
            user = await auth.create_user("stranger")
            await auth.create_project("strange", "stranger")
            await auth.create_project("foreign", "admin")
            return user
    ec2, s3 = the_cloud.ec2, the_cloud.s3
    ec2.create_key_pair(KeyName="mine")
    instance = ec2.run_instances(ImageId=the_cloud.machine_image, InstanceType="m1.tiny", MinCount=1, MaxCount=1,
                                 KeyName="mine")["Instances"][0]["InstanceId"]
    wait_until(lambda: states(ec2) == {instance: "running"}, 10, "the instance running")
    s3.create_bucket(Bucket="mine-alone")
    s3.put_object(Bucket="mine-alone", Key="secret", Body=SECRET)
    mine = {"instance": instance, "image": the_cloud.machine_image, "key": "mine", "bucket": "mine-alone"}
    made = Two(the_cloud, mine, None, None, asyncio.run(make_stranger()))
    made.ec2, made.s3 = made.client("ec2", "strange"), made.client("s3", "strange")
    return made


def refusal(call: Callable[[], Any], id: str) -> tuple[str, int, str]:
    """Code, HTTP status and message of an error, with the id taken out of it."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call()
    error = caught.value.response
    assert "Message" in error["Error"]
    message = error["Error"]["Message"].replace(id, "ID")
    return error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"], message


#: what a stranger may try with an id: kind of id, expected code, call
EC2_CALLS: dict[str, tuple[str, str, Callable[[Any, str], Any]]] = {
    "describe instance": ("instance", "InvalidInstanceID.NotFound", lambda c, i: c.describe_instances(InstanceIds=[i])),
    "status": ("instance", "InvalidInstanceID.NotFound", lambda c, i: c.describe_instance_status(InstanceIds=[i])),
    "status of all": ("instance", "InvalidInstanceID.NotFound",
                      lambda c, i: c.describe_instance_status(InstanceIds=[i], IncludeAllInstances=True)),
    "console": ("instance", "InvalidInstanceID.NotFound", lambda c, i: c.get_console_output(InstanceId=i)),
    "reboot": ("instance", "InvalidInstanceID.NotFound", lambda c, i: c.reboot_instances(InstanceIds=[i])),
    "terminate": ("instance", "InvalidInstanceID.NotFound", lambda c, i: c.terminate_instances(InstanceIds=[i])),
    "describe image": ("image", "InvalidAMIID.NotFound", lambda c, i: c.describe_images(ImageIds=[i])),
    "run image": ("image", "InvalidAMIID.NotFound", lambda c, i: c.run_instances(ImageId=i, MinCount=1, MaxCount=1)),
    "deregister": ("image", "InvalidAMIID.NotFound", lambda c, i: c.deregister_image(ImageId=i)),
    "describe key": ("key", "InvalidKeyPair.NotFound", lambda c, i: c.describe_key_pairs(KeyNames=[i])),
}


@pytest.mark.parametrize("name", EC2_CALLS)
def test_ids_of_others_do_not_exist(two: Two, name: str) -> None:
    kind, code, call = EC2_CALLS[name]
    answers = [refusal(lambda id=id: call(two.ec2, id), id) for id in (two.mine[kind], NEVER[kind])]
    assert answers[0] == answers[1]
    assert answers[0][0] == code
    assert states(two.cloud.ec2) == {two.mine["instance"]: "running"}


def test_a_stranger_terminates_none_of_a_list(two: Two) -> None:
    """Own and foreign instances in one request: nothing happens to either."""
    own = own_instance(two)
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        two.ec2.terminate_instances(InstanceIds=[own, two.mine["instance"]])
    assert error_code(caught.value) == "InvalidInstanceID.NotFound"
    assert own not in str(caught.value)
    assert states(two.ec2) == {own: "running"}
    assert states(two.cloud.ec2) == {two.mine["instance"]: "running"}
    terminate_all(two.ec2)


def own_instance(two: Two) -> str:
    """An instance of the stranger's, of an image of theirs."""
    kinds = {i["ImageType"]: i["ImageId"] for i in two.ec2.describe_images()["Images"]}
    two.s3.create_bucket(Bucket="strange-images")
    two.s3.put_object(Bucket="strange-images", Key="machine", Body=contents.machine())
    image = two.ec2.register_image(Name="own", ImageLocation="strange-images/machine", KernelId=kinds["kernel"],
                                   RamdiskId=kinds["ramdisk"])["ImageId"]
    answer = two.ec2.run_instances(ImageId=image, InstanceType="m1.tiny", MinCount=1, MaxCount=1)
    own = answer["Instances"][0]["InstanceId"]
    wait_until(lambda: states(two.ec2) == {own: "running"}, 10, "the stranger's instance running")
    return str(own)


def test_lists_show_nothing_of_others(two: Two) -> None:
    for more in ({}, {"Filters": [{"Name": "instance-state-name", "Values": ["running"]}]},
                 {"Filters": [{"Name": "key-name", "Values": ["mine"]}]},
                 {"Filters": [{"Name": "owner-id", "Values": ["admin"]}]}):
        assert {r["OwnerId"] for r in two.ec2.describe_instances(**more)["Reservations"]} <= {"strange"}
        assert two.mine["instance"] not in [i["InstanceId"] for i in instances(two.ec2, **more)]
    statuses = two.ec2.describe_instance_status(IncludeAllInstances=True)["InstanceStatuses"]
    assert two.mine["instance"] not in [s["InstanceId"] for s in statuses]
    assert two.ec2.describe_key_pairs()["KeyPairs"] == []
    images = two.ec2.describe_images()["Images"]
    assert {i["ImageType"] for i in images if i["OwnerId"] != "strange"} == {"kernel", "ramdisk"}
    assert two.mine["image"] not in [i["ImageId"] for i in images]
    assert two.ec2.describe_images(Owners=["admin"])["Images"] == [i for i in images if i["OwnerId"] == "admin"]
    assert "mine-alone" not in [b["Name"] for b in two.s3.list_buckets()["Buckets"]]


def test_key_pairs_have_their_own_names_in_each_project(two: Two) -> None:
    """The same name is free here, and deleting it takes nothing from the other project."""
    theirs = two.cloud.ec2.describe_key_pairs(KeyNames=["mine"])["KeyPairs"][0]["KeyFingerprint"]
    assert outcome(lambda: two.ec2.delete_key_pair(KeyName="mine")) != "InvalidKeyPair.Duplicate"
    made = two.ec2.create_key_pair(KeyName="mine")
    assert made["KeyFingerprint"] != theirs
    two.ec2.delete_key_pair(KeyName="mine")
    assert two.cloud.ec2.describe_key_pairs(KeyNames=["mine"])["KeyPairs"][0]["KeyFingerprint"] == theirs
    code, status, _ = refusal(lambda: two.ec2.run_instances(ImageId=public_kernel(two), MinCount=1, MaxCount=1), "-")
    assert (code, status) != ("InternalError", 500)


def public_kernel(two: Two) -> str:
    """An image that everybody may see."""
    return str(next(i["ImageId"] for i in two.ec2.describe_images()["Images"] if i["ImageType"] == "kernel"))


def test_public_kernels_cannot_be_taken_away(two: Two) -> None:
    answer = outcome(lambda: two.ec2.deregister_image(ImageId=public_kernel(two)))
    assert answer in ("AuthFailure", "UnauthorizedOperation")
    assert two.ec2.describe_images(ImageIds=[public_kernel(two)])["Images"]


S3_CALLS: dict[str, Callable[[Any, str], Any]] = {
    "list": lambda c, b: c.list_objects_v2(Bucket=b),
    "list old": lambda c, b: c.list_objects(Bucket=b),
    "head bucket": lambda c, b: c.head_bucket(Bucket=b),
    "get": lambda c, b: c.get_object(Bucket=b, Key="secret"),
    "head": lambda c, b: c.head_object(Bucket=b, Key="secret"),
    "put": lambda c, b: c.put_object(Bucket=b, Key="secret", Body=b"changed"),
    "put new": lambda c, b: c.put_object(Bucket=b, Key="new", Body=b"changed"),
    "delete": lambda c, b: c.delete_object(Bucket=b, Key="secret"),
    "delete many": lambda c, b: c.delete_objects(Bucket=b, Delete={"Objects": [{"Key": "secret"}]}),
    "delete bucket": lambda c, b: c.delete_bucket(Bucket=b),
    "upload": lambda c, b: c.create_multipart_upload(Bucket=b, Key="secret"),
    "uploads": lambda c, b: c.list_multipart_uploads(Bucket=b),
    "location": lambda c, b: c.get_bucket_location(Bucket=b),
}


@pytest.mark.parametrize("name", S3_CALLS)
def test_buckets_of_others(two: Two, name: str) -> None:
    """Bucket names are everybody's, so S3 says AccessDenied for another's; nothing is read or changed."""
    code, status, message = refusal(lambda: S3_CALLS[name](two.s3, two.mine["bucket"]), two.mine["bucket"])
    assert status == 403 and code in ("AccessDenied", "403"), (code, message)
    assert two.cloud.s3.get_object(Bucket="mine-alone", Key="secret")["Body"].read() == SECRET
    assert two.cloud.s3.list_objects_v2(Bucket="mine-alone")["KeyCount"] == 1
    code, status, _ = refusal(lambda: S3_CALLS[name](two.s3, NEVER["bucket"]), NEVER["bucket"])
    assert status == 404


def test_objects_of_others_by_copy_and_image(two: Two) -> None:
    two.s3.create_bucket(Bucket="strange-copies")
    copy = outcome(lambda: two.s3.copy_object(Bucket="strange-copies", Key="copy",
                                              CopySource={"Bucket": "mine-alone", "Key": "secret"}))
    assert copy == "AccessDenied"
    answers = {refusal(lambda path=path: two.ec2.register_image(Name="stolen", ImageLocation=path), path)
               for path in ("mine-alone/secret", "mine-alone/nothing", "never-was-there/secret", "starter/vmlinuz")}
    assert {answer[0] for answer in answers} == {"InvalidManifest"} and len(answers) == 1
    two.s3.delete_bucket(Bucket="strange-copies")


def test_bucket_name_of_others_is_taken(two: Two) -> None:
    assert outcome(lambda: two.s3.create_bucket(Bucket="mine-alone")) == "BucketAlreadyExists"


@pytest.mark.parametrize("project", ["foreign", "admin", "no-such-project"])
def test_no_member(two: Two, project: str) -> None:
    """A project that one is no member of, and one that does not exist: the same answer."""
    answer = refusal(two.client("ec2", project).describe_instances, project)
    assert answer[:2] == ("AuthFailure", 401)
    assert answer == refusal(two.client("ec2", "never").describe_instances, "never")
    code, status, _ = refusal(two.client("s3", project).list_buckets, project)
    assert status == 403 and code in ("InvalidAccessKeyId", "AccessDenied", "SignatureDoesNotMatch")


def test_wrong_secret(two: Two) -> None:
    answer = outcome(two.client("ec2", "strange", secret="wrong").describe_instances)
    assert answer in ("AuthFailure", "SignatureDoesNotMatch")
    assert outcome(two.client("s3", "strange", secret="wrong").list_buckets) == "SignatureDoesNotMatch"


@pytest.mark.parametrize("role", ["KernelId", "RamdiskId"])
def test_kernels_are_the_administrators(two: Two, role: str) -> None:
    two.s3.create_bucket(Bucket="strange-kernels")
    two.s3.put_object(Bucket="strange-kernels", Key="file", Body=contents.kernel())
    call = {"Name": "kernel", "ImageLocation": "strange-kernels/file", role: "true"}
    assert outcome(lambda: two.ec2.register_image(**call)) == "UnauthorizedOperation"
    owned = two.ec2.describe_images(Owners=["self"])["Images"]
    assert [i for i in owned if i["ImageType"] != "machine"] == []
    two.s3.delete_object(Bucket="strange-kernels", Key="file")
    two.s3.delete_bucket(Bucket="strange-kernels")


def test_images_are_not_handed_out_without_a_token(two: Two) -> None:
    """What compute nodes fetch images from knows no users: a node's token is needed."""
    for headers in ({}, {"X-Nova-Token": "1.00"}, {"X-Nova-Token": f"{10**10}.{'0' * 64}"}):
        request = urllib.request.Request(f"http://127.0.0.1:{two.cloud.s3_port}/_images/{two.mine['image']}",
                                         headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 403
        assert not re.search(rb"machine", caught.value.read())
