"""What can be done with images, called as the endpoint does: names, lists, permissions, attributes, copies and tags.

Behind the actions are the real image, network and compute managers with the fake drivers, on a real Redis.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova import exception
from nova.auth import rbac
from nova.auth.models import KeyPair
from nova.cloud import verify
from nova.cloud.accounts import Accounts
from nova.compute.models import Capture, Instance
from nova.context import Context
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image.models import Image, ImageName
from tests.functional.test_keypairs_images_actions import CONTENT, Cloud, content, until, user


@pytest.fixture
async def cloud(store: Store, tmp_path: Path) -> AsyncIterator[Cloud]:
    FLAGS.state_path, FLAGS.host, FLAGS.converge_interval = str(tmp_path), "h1", 3600.0
    FLAGS.private_range, FLAGS.network_size, FLAGS.region = "10.203.0.0/27", 16, "nova"
    cloud = Cloud(store, tmp_path)
    await cloud.start()
    for project in ("proj", "other", "third"):
        await cloud.auth.create_project(project, "ann")
    yield cloud
    await cloud.stop()


def member(project: str = "proj", name: str = "ann") -> Context:
    """A user who does not manage the project."""
    return Context(name, project, roles=rbac.roles_in(False, False))


def admin(project: str = "admins") -> Context:
    return user(project, admin=True)


async def listed(cloud: Cloud, context: Context | None = None, **params: Any) -> list[dict[str, Any]]:
    return (await cloud.call("DescribeImages", context, **params))["Images"]


async def image_of(cloud: Cloud, id: str) -> Image:
    found = await cloud.store.get(Image, id)
    assert found is not None
    return found


async def share(cloud: Cloud, id: str, *projects: str, context: Context | None = None) -> None:
    await cloud.call("ModifyImageAttribute", context, ImageId=id, **{
        f"LaunchPermission_Add_{n}_UserId": project for n, project in enumerate(projects, 1)})


async def permissions(cloud: Cloud, id: str, context: Context | None = None) -> list[dict[str, str]]:
    answer = await cloud.call("DescribeImageAttribute", context, ImageId=id, Attribute="launchPermission")
    return answer["LaunchPermissions"]


# -- registering ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["ab", "x" * 129, "a/b:c", "käse", "a\tb", "a;b"])
async def test_a_name_that_ec2_does_not_allow_is_malformed(cloud: Cloud, name: str) -> None:
    source = await cloud.register()
    [instance] = await cloud.run(source)
    await cloud.reached(instance, "running")
    for call, params in (("RegisterImage", {"ImageLocation": "bucket/disk.img"}),
                         ("CopyImage", {"SourceImageId": source, "SourceRegion": "nova"}),
                         ("CreateImage", {"InstanceId": instance})):
        with pytest.raises(exception.InvalidAMINameMalformed):
            await cloud.call(call, Name=name, **params)
    assert await cloud.describe_images() == [source]


@pytest.mark.parametrize("name", ["abc", "x" * 128, "a (b) [c] d.e/f-g'h@i_j"])
async def test_every_name_that_ec2_allows_is_taken(cloud: Cloud, name: str) -> None:
    image = await cloud.register(Name=name)
    [found] = await listed(cloud, Filter_1_Name="image-id", Filter_1_Value_1=image)
    assert found["Name"] == name


async def test_sixteen_that_want_one_name_at_once_get_it_once(cloud: Cloud) -> None:
    source = await cloud.register()
    copy = {"SourceImageId": source, "SourceRegion": "nova", "Name": "wanted"}
    answers = await asyncio.gather(
        *(cloud.call("RegisterImage", ImageLocation="bucket/disk.img", Name="wanted") for _ in range(8)),
        *(cloud.call("CopyImage", **copy) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(a, dict) for a in answers) == 1
    assert sum(isinstance(a, exception.InvalidAMINameDuplicate) for a in answers) == 15
    assert len(await cloud.describe_images()) == 2
    name = await cloud.store.get(ImageName, "proj:wanted")
    [winner] = [a["ImageId"] for a in answers if isinstance(a, dict)]
    assert name is not None and name.image_id == winner


async def test_the_same_name_is_free_in_another_project(cloud: Cloud) -> None:
    await cloud.register(Name="debian")
    await cloud.register("others/disk.img", user("other"), Name="debian")


@pytest.mark.parametrize(("params", "error"), [
    ({"VirtualizationType": "paravirtual"}, exception.InvalidParameterValue),
    ({"BootMode": "uefi"}, exception.InvalidParameterValue),
    ({"Description": "x" * 256}, exception.InvalidParameterValue),
    ({"SriovNetSupport": "simple"}, exception.UnsupportedOperation),
    ({"BlockDeviceMapping_1_DeviceName": "/dev/sdb", "BlockDeviceMapping_1_Ebs_VolumeSize": 1},
     exception.UnsupportedOperation),
    ({"BlockDeviceMapping_1_DeviceName": "/dev/sda1", "BlockDeviceMapping_1_Ebs_VolumeSize": 1},
     exception.UnsupportedOperation),
    ({"BlockDeviceMapping_1_DeviceName": "/dev/sda1", "BlockDeviceMapping_1_Ebs_DeleteOnTermination": "false"},
     exception.UnsupportedOperation)], ids=str)
async def test_what_an_image_cannot_have_is_refused(cloud: Cloud, params: dict[str, Any],
                                                    error: type[exception.NovaError]) -> None:
    with pytest.raises(error):
        await cloud.register(**params)
    assert await cloud.store.ids(Image) == []


async def test_mappings_of_no_account_are_let_through(cloud: Cloud) -> None:
    await cloud.register(RootDeviceName="/dev/sda1", VirtualizationType="hvm", Architecture="x86_64", **{
        "BlockDeviceMapping_1_DeviceName": "/dev/sda1", "BlockDeviceMapping_1_Ebs_DeleteOnTermination": "true",
        "BlockDeviceMapping_2_DeviceName": "/dev/sdb", "BlockDeviceMapping_2_VirtualName": "ephemeral0"})


# -- lists ------------------------------------------------------------------------------------------------------------

async def test_every_filter_of_the_api_is_known_and_finds_what_it_names(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", admin(), KernelId="true")
    ramdisk = await cloud.register("admins/ramdisk", admin(), RamdiskId="true")
    image = await cloud.register(Name="debian 12", Description="what it is", KernelId=kernel, RamdiskId=ramdisk,
                                 TagSpecification_1_ResourceType="image", TagSpecification_1_Tag_1_Key="Team",
                                 TagSpecification_1_Tag_1_Value="A")
    await cloud.call("ModifyImageAttribute", ImageId=image, ProductCode_1="774F4FF8")
    failed = await cloud.register("bucket/other.img")
    await cloud.store.modify(Image, failed, lambda i: {
        "state": "failed", "state_code": "Client.ImageImportError", "state_reason": "it is no disk image"})
    day = time.strftime("%Y-%m-%d", time.gmtime((await image_of(cloud, image)).created))
    finds: dict[str, tuple[str, set[str]]] = {
        "architecture": ("x86_64", {image, failed, kernel, ramdisk}), "description": ("what*", {image}),
        "creation-date": (f"{day}T*", {image, failed, kernel, ramdisk}), "ena-support": ("true", set()),
        "hypervisor": ("kvm", {image, failed, kernel, ramdisk}), "image-id": (image, {image}),
        "image-type": ("kernel", {kernel}), "is-public": ("true", {kernel, ramdisk}), "kernel-id": (kernel, {image}),
        "manifest-location": ("bucket/other*", {failed}), "name": ("debian ??", {image}),
        "owner-alias": ("amazon", set()), "owner-id": ("admins", {kernel, ramdisk}), "platform": ("windows", set()),
        "product-code": ("774F4FF8", {image}), "product-code.type": ("devpay", {image}),
        "ramdisk-id": (ramdisk, {image}), "root-device-name": ("/dev/vda", {image, failed}),
        "root-device-type": ("instance-store", {image, failed, kernel, ramdisk}), "state": ("failed", {failed}),
        "state-reason-code": ("Client.ImageImportError", {failed}), "state-reason-message": ("*no disk*", {failed}),
        "sriov-net-support": ("simple", set()), "tag:Team": ("A", {image}), "tag-key": ("Team", {image}),
        "virtualization-type": ("hvm", {image, failed, kernel, ramdisk}), "boot-mode": ("legacy-bios", {image, failed}),
        "source-instance-id": ("*", set()), "source-image-id": ("*", set()), "source-image-region": ("*", set()),
        "image-allowed": ("true", set()), "free-tier-eligible": ("true", set()),
        **{f"block-device-mapping.{what}": ("*", set()) for what in (
            "delete-on-termination", "device-name", "snapshot-id", "volume-size", "volume-type", "encrypted")}}
    for name, (value, found) in finds.items():
        ids = await cloud.describe_images(Filter_1_Name=name, Filter_1_Value_1=value)
        assert set(ids) == found, name


async def test_an_unknown_filter_is_refused(cloud: Cloud) -> None:
    with pytest.raises(exception.InvalidParameterValue, match="nonsense"):
        await cloud.describe_images(Filter_1_Name="nonsense", Filter_1_Value_1="x")


async def test_all_pages_together_are_all_images(cloud: Cloud) -> None:
    await cloud.register()
    images = [await cloud.register(Name=f"image {n}") for n in range(7)]
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        answer = await cloud.call("DescribeImages", MaxResults=3, Filter_1_Name="name", Filter_1_Value_1="image ?",
                                  **token)
        assert len(answer["Images"]) <= 3
        seen += [i["ImageId"] for i in answer["Images"]]
        if "NextToken" not in answer:
            break
        token = {"NextToken": answer["NextToken"]}
    assert seen == sorted(images)
    with pytest.raises(exception.InvalidNextToken):
        await cloud.call("DescribeImages", MaxResults=3, NextToken="AAAA")


async def test_owners_are_the_caller_projects_and_those_that_only_amazon_has(cloud: Cloud) -> None:
    own = await cloud.register()
    public = await cloud.register("others/disk.img", user("other"))
    await cloud.call("ModifyImageAttribute", user("other"), ImageId=public, LaunchPermission_Add_1_Group="all")
    assert set(await cloud.describe_images()) == {own, public}
    assert await cloud.describe_images(Owner_1="self") == [own]
    assert await cloud.describe_images(Owner_1="other") == [public]
    assert set(await cloud.describe_images(Owner_1="self", Owner_2="other")) == {own, public}
    for alias in ("amazon", "aws-marketplace", "aws-backup-vault", "nobody"):
        assert await cloud.describe_images(Owner_1=alias) == []


@pytest.mark.parametrize("id", ["ami-", "ami-xyz", "ami-1234567", "i-12345678", "ami", "ami-12345678 ", "AMI-12345678"])
async def test_a_malformed_id_is_told_from_one_that_is_not_there(cloud: Cloud, id: str) -> None:
    for name, params in (("DescribeImages", {"ImageId_1": id}), ("DeregisterImage", {"ImageId": id}),
                         ("DescribeImageAttribute", {"ImageId": id, "Attribute": "description"}),
                         ("ModifyImageAttribute", {"ImageId": id, "Description_Value": "x"}),
                         ("ResetImageAttribute", {"ImageId": id, "Attribute": "launchPermission"}),
                         ("CopyImage", {"SourceImageId": id, "SourceRegion": "nova", "Name": "copy"})):
        with pytest.raises(exception.InvalidAMIIDMalformed):
            await cloud.call(name, **params)


# -- launch permissions -----------------------------------------------------------------------------------------------

async def test_an_image_of_another_project_is_not_there_for_any_action(cloud: Cloud) -> None:
    image = await cloud.register()
    for name, params in (
            ("DescribeImages", {"ImageId_1": image}), ("DeregisterImage", {"ImageId": image}),
            ("DescribeImageAttribute", {"ImageId": image, "Attribute": "launchPermission"}),
            ("ModifyImageAttribute", {"ImageId": image, "Description_Value": "x"}),
            ("ModifyImageAttribute", {"ImageId": image, "LaunchPermission_Add_1_Group": "all"}),
            ("ResetImageAttribute", {"ImageId": image, "Attribute": "launchPermission"}),
            ("DisableImage", {"ImageId": image}), ("EnableImage", {"ImageId": image}),
            ("DisableImageDeprecation", {"ImageId": image}),
            ("CopyImage", {"SourceImageId": image, "SourceRegion": "nova", "Name": "copy"}),
            ("CreateTags", {"ResourceId_1": image, "Tag_1_Key": "a"}), ("DeleteTags", {"ResourceId_1": image}),
            ("RunInstances", {"ImageId": image, "MinCount": 1, "MaxCount": 1})):
        said = set()
        for id in (image, "ami-00000000"):
            with pytest.raises(exception.InvalidAMIIDNotFound) as error:
                await cloud.call(name, user("other"), **{
                    key: id if value == image else value for key, value in params.items()})
            said.add(error.value.message.replace(id, ""))
        assert len(said) == 1, name


@pytest.mark.parametrize(("give", "take"), [
    ({"LaunchPermission_Add_1_UserId": "other"}, {"LaunchPermission_Remove_1_UserId": "other"}),  # boto3, euca2ools
    ({"Attribute": "launchPermission", "OperationType": "add", "UserId_1": "other"},  # boto 2
     {"Attribute": "launchPermission", "OperationType": "remove", "UserId_1": "other"}),
    ({"Attribute": "launchPermission", "LaunchPermission_Add_1_UserId": "other"},  # aws, with both
     {"Attribute": "launchPermission", "LaunchPermission_Remove_1_UserId": "other"}),
    ({"LaunchPermission_Add_0_UserId": "other"}, {"OperationType": "remove", "UserId_0": "other"}),  # counted from 0
], ids=["structure", "operation", "both", "zero"])
async def test_a_launch_permission_counts_everywhere_until_it_is_taken(
        cloud: Cloud, give: dict[str, str], take: dict[str, str]) -> None:
    image, other = await cloud.register(), user("other")
    assert await cloud.call("ModifyImageAttribute", ImageId=image, **give) == {}
    assert await permissions(cloud, image) == [{"UserId": "other"}]
    assert await cloud.describe_images(other) == [image] == await cloud.describe_images(other, ImageId_1=image)
    assert await cloud.describe_images(user("third")) == []
    [instance] = await cloud.run(image, context=other)
    await cloud.call("CopyImage", other, SourceImageId=image, SourceRegion="nova", Name="copy")

    await cloud.call("ModifyImageAttribute", ImageId=image, **take)
    assert await permissions(cloud, image) == []
    assert image not in await cloud.describe_images(other)
    with pytest.raises(exception.InvalidAMIIDNotFound):
        await cloud.run(image, context=other)
    await cloud.reached(instance, "running")


async def test_whoever_may_use_an_image_may_not_change_it_and_not_see_who_else_may(cloud: Cloud) -> None:
    image, other = await cloud.register(), user("other")
    await share(cloud, image, "other", "third")
    for name, params in (("DeregisterImage", {}), ("ModifyImageAttribute", {"Description_Value": "mine"}),
                         ("ResetImageAttribute", {"Attribute": "launchPermission"}), ("DisableImage", {}),
                         ("DescribeImageAttribute", {"Attribute": "launchPermission"})):
        with pytest.raises(exception.UnauthorizedOperation):
            await cloud.call(name, other, ImageId=image, **params)
    with pytest.raises(exception.UnauthorizedOperation):
        await cloud.call("CreateTags", other, ResourceId_1=image, Tag_1_Key="a")
    assert await cloud.describe_images(other, ExecutableBy_1="self") == [image]
    assert await cloud.describe_images(other, ExecutableBy_1="third") == []
    assert await cloud.describe_images(ExecutableBy_1="third") == [image]
    await cloud.call("DescribeImageAttribute", other, ImageId=image, Attribute="description")


async def test_all_are_given_an_image_by_the_projects_manager_only(cloud: Cloud) -> None:
    image = await cloud.register()
    for params in ({"LaunchPermission_Add_1_Group": "all"}, {"OperationType": "add", "UserGroup_1": "all"}):
        with pytest.raises(exception.UnauthorizedOperation):
            await cloud.call("ModifyImageAttribute", member(), ImageId=image, **params)
        await cloud.call("ModifyImageAttribute", user(), ImageId=image, **params)
        assert await permissions(cloud, image) == [{"Group": "all"}]
        [seen] = await listed(cloud, user("third"), ExecutableBy_1="all")
        assert (seen["ImageId"], seen["Public"]) == (image, True)
        await cloud.run(image, context=user("third"))
        await cloud.call("ModifyImageAttribute", member(), ImageId=image, LaunchPermission_Remove_1_Group="all")
        assert await cloud.describe_images(user("third")) == []


async def test_permissions_are_reset(cloud: Cloud) -> None:
    image = await cloud.register()
    kernel = await cloud.register("admins/kernel", admin(), KernelId="true")
    await share(cloud, image, "other", "third")
    await cloud.call("ModifyImageAttribute", ImageId=image, LaunchPermission_Add_1_Group="all")
    await cloud.call("ModifyImageAttribute", admin(), ImageId=kernel, LaunchPermission_Remove_1_Group="all")
    assert await cloud.describe_images(user("other"), ImageId_1=image) == [image]
    for id, context in ((image, user()), (kernel, admin())):
        assert await cloud.call("ResetImageAttribute", context, ImageId=id, Attribute="launchPermission") == {}
    assert await permissions(cloud, image) == []
    assert await cloud.describe_images(user("other")) == [kernel]


async def test_a_machine_image_brings_its_kernel_and_ramdisk_to_whoever_may_use_it(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", admin(), KernelId="true")
    ramdisk = await cloud.register("admins/ramdisk", admin(), RamdiskId="true")
    image = await cloud.register(KernelId=kernel, RamdiskId=ramdisk)
    for id in (kernel, ramdisk):
        await cloud.call("ModifyImageAttribute", admin(), ImageId=id, LaunchPermission_Remove_1_Group="all")
    await share(cloud, image, "other")
    assert await cloud.describe_images(user("other")) == [image]
    [instance] = await cloud.run(image, context=user("other"))
    assert (await cloud.reached(instance, "running")).kernel_id == kernel
    own = await cloud.register("others/disk.img", user("other"))
    with pytest.raises(exception.InvalidAMIIDNotFound):
        await cloud.run(own, context=user("other"), KernelId=kernel)


@pytest.mark.parametrize(("params", "error"), [
    ({}, exception.MissingParameter), ({"Attribute": "launchPermission"}, exception.MissingParameter),
    ({"UserId_1": "other"}, exception.MissingParameter),
    ({"LaunchPermission_Add_1_UserId": "no-such-project"}, exception.InvalidAMIAttributeItemValue),
    ({"OperationType": "add", "UserGroup_1": "friends"}, exception.InvalidAMIAttributeItemValue),
    ({"LaunchPermission_Add_1_Group": "friends"}, exception.InvalidParameterValue),
    ({"LaunchPermission_Add_1_UserId": "other", "OperationType": "add", "UserId_1": "other"},
     exception.InvalidParameterCombination),
    ({"LaunchPermission_Add_1_UserId": "other", "Description_Value": "x"}, exception.InvalidParameterCombination),
    ({"Attribute": "description", "ProductCode_1": "x"}, exception.InvalidParameterCombination),
    ({"Attribute": "description"}, exception.MissingParameter),
    ({"Attribute": "productCodes"}, exception.MissingParameter),
    ({"ProductCode_1": "x" * 129}, exception.InvalidProductCode),
    ({"Attribute": "kernel", "Value": "aki-00000000"}, exception.UnsupportedOperation),
    ({"ImdsSupport_Value": "v2.0"}, exception.UnsupportedOperation),
    ({"OrganizationArn_1": "arn:aws:organizations::1:organization/o-1", "OperationType": "add"},
     exception.UnsupportedOperation),
    ({"Description_Value": "x" * 256}, exception.InvalidParameterValue)], ids=str)
async def test_a_change_that_cannot_be_made_changes_nothing(cloud: Cloud, params: dict[str, str],
                                                            error: type[exception.NovaError]) -> None:
    image = await cloud.register()
    before = await image_of(cloud, image)
    with pytest.raises(error):
        await cloud.call("ModifyImageAttribute", ImageId=image, **params)
    assert await image_of(cloud, image) == before


async def test_permissions_that_are_given_at_the_same_time_are_all_there(cloud: Cloud) -> None:
    image = await cloud.register()
    projects = [f"p{n}" for n in range(8)]
    for project in projects:
        await cloud.auth.create_project(project, "ann")
    await asyncio.gather(*(share(cloud, image, project) for project in projects))
    assert [p["UserId"] for p in await permissions(cloud, image)] == projects


async def test_a_project_that_is_deleted_leaves_no_permission_to_who_gets_its_name(cloud: Cloud) -> None:
    image = await cloud.register()
    await share(cloud, image, "other", "third")
    cloud.authority.ensure()
    await Accounts(cloud.store, cloud.bus, cloud.auth, cloud.authority).delete_project(None, "other")
    assert await permissions(cloud, image) == [{"UserId": "third"}]
    await cloud.auth.create_project("other", "ann")
    assert await cloud.describe_images(user("other")) == []


async def test_an_image_is_shared_with_a_limited_number(cloud: Cloud) -> None:
    image = await cloud.register()
    await cloud.store.modify(Image, image, lambda i: {"launch_permissions": [f"p{n:03d}" for n in range(1000)]})
    with pytest.raises(exception.ResourceCountExceeded):
        await share(cloud, image, "other")


async def test_what_is_shared_is_found_by_indexes_that_verify_watches(cloud: Cloud) -> None:
    image = await cloud.register()
    await share(cloud, image, "other")
    redis = cloud.store.redis
    await redis.srem("nova:images:by-launch_permissions:other", image)
    await redis.sadd("nova:images:by-launch_permissions:third", image)
    await redis.srem("nova:images:by-is_public:0", image)
    found = [d for d in await verify.verify(cloud.store, cloud.auth, pause=0) if d.check == "index"]
    assert len(found) == 3
    await verify.repair(found)
    assert await cloud.describe_images(user("other")) == [image]
    assert not [d for d in await verify.verify(cloud.store, cloud.auth, pause=0) if d.check == "index"]
    await cloud.call("DeregisterImage", ImageId=image)
    assert await redis.keys("nova:images:by-launch_permissions:*") == []


# -- attributes -------------------------------------------------------------------------------------------------------

async def test_every_attribute_of_the_api_is_described(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", admin(), KernelId="true")
    image = await cloud.register(KernelId=kernel, Description="what it is")
    await cloud.call("ModifyImageAttribute", ImageId=image, ProductCode_1="a", ProductCode_2="b")
    await cloud.call("ModifyImageAttribute", ImageId=image, ProductCode_1="b")
    codes = [{"ProductCodeId": code, "ProductCodeType": "devpay"} for code in ("a", "b")]
    for attribute, member_name, value in (
            ("description", "Description", {"Value": "what it is"}), ("kernel", "KernelId", {"Value": kernel}),
            ("ramdisk", "RamdiskId", {}), ("launchPermission", "LaunchPermissions", []),
            ("productCodes", "ProductCodes", codes), ("blockDeviceMapping", "BlockDeviceMappings", []),
            ("sriovNetSupport", "SriovNetSupport", {}), ("bootMode", "BootMode", {"Value": "legacy-bios"}),
            ("tpmSupport", "TpmSupport", {}), ("uefiData", "UefiData", {}),
            ("lastLaunchedTime", "LastLaunchedTime", {}), ("imdsSupport", "ImdsSupport", {}),
            ("deregistrationProtection", "DeregistrationProtection", {})):
        assert await cloud.call("DescribeImageAttribute", ImageId=image, Attribute=attribute) == {
            "ImageId": image, member_name: value}
    with pytest.raises(exception.InvalidParameterValue):
        await cloud.call("DescribeImageAttribute", ImageId=image, Attribute="nonsense")


@pytest.mark.parametrize("params", [{"Description_Value": "new"}, {"Attribute": "description", "Value": "new"},
                                    {"Attribute": "description", "Description_Value": "new"}], ids=str)
async def test_the_description_is_changed(cloud: Cloud, params: dict[str, str]) -> None:
    image = await cloud.register(Description="old")
    await cloud.call("ModifyImageAttribute", ImageId=image, **params)
    [found] = await listed(cloud)
    assert found["Description"] == "new"
    await cloud.call("ModifyImageAttribute", ImageId=image, Description_Value="")
    assert (await listed(cloud))[0]["Description"] == ""


async def test_a_disabled_image_is_shared_with_nobody_and_not_run_until_it_is_enabled(cloud: Cloud) -> None:
    image = await cloud.register()
    await share(cloud, image, "other")
    assert await cloud.call("DisableImage", ImageId=image) == {"Return": True}
    assert await cloud.call("DisableImage", ImageId=image) == {"Return": True}
    assert await cloud.describe_images() == [] == await cloud.describe_images(user("other"))
    assert await cloud.describe_images(IncludeDisabled="true") == [image]
    assert await cloud.describe_images(ImageId_1=image) == [image]
    with pytest.raises(exception.InvalidAMIIDUnavailable, match="disabled"):
        await cloud.run(image)
    with pytest.raises(exception.InvalidAMIIDUnavailable):
        await share(cloud, image, "other")
    assert await cloud.call("EnableImage", ImageId=image) == {"Return": True}
    assert await permissions(cloud, image) == []
    await cloud.run(image)


@pytest.mark.parametrize("state", ["pending", "failed"])
async def test_what_is_not_available_is_neither_disabled_nor_enabled(cloud: Cloud, state: str) -> None:
    image = await cloud.register()
    await cloud.store.modify(Image, image, lambda i: {"state": state, "host": "h2"})
    for name in ("DisableImage", "EnableImage"):
        with pytest.raises(exception.InvalidAMIIDUnavailable):
            await cloud.call(name, ImageId=image)


async def test_others_do_not_see_a_deprecated_image_in_lists(cloud: Cloud) -> None:
    image, other = await cloud.register(), user("other")
    await share(cloud, image, "other")
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    assert await cloud.call("EnableImageDeprecation", ImageId=image, DeprecateAt=soon) == {"Return": True}
    assert (await listed(cloud, other))[0]["DeprecationTime"][:13] == soon[:13]
    await cloud.store.modify(Image, image, lambda i: {"deprecated_at": time.time() - 1})
    assert await cloud.describe_images(other) == []
    assert await cloud.describe_images(other, IncludeDeprecated="true") == [image]
    assert await cloud.describe_images(other, ImageId_1=image) == [image] == await cloud.describe_images()
    await cloud.run(image, context=other)
    assert await cloud.call("DisableImageDeprecation", ImageId=image) == {"Return": True}
    [found] = await listed(cloud, other)
    assert "DeprecationTime" not in found
    for moment in ("2001-01-01T00:00:00Z", "2099-01-01T00:00:00Z"):
        with pytest.raises(exception.InvalidParameterValue):
            await cloud.call("EnableImageDeprecation", ImageId=image, DeprecateAt=moment)


# -- deregistering ----------------------------------------------------------------------------------------------------

async def test_instances_of_a_deregistered_image_run_on(cloud: Cloud) -> None:
    image = await cloud.register()
    [instance] = await cloud.run(image)
    await cloud.reached(instance, "running")
    await cloud.call("DeregisterImage", ImageId=image)
    assert await cloud.describe_images() == []
    cloud.driver.power_off(instance)  # its host starts it again, from what it has kept

    async def runs() -> bool:
        return (await cloud.driver.list_guests())[instance].value == "running"
    await until(runs)
    with pytest.raises(exception.InvalidAMIIDNotFound):
        await cloud.run(image)


# -- copies and images of instances: what is recorded -----------------------------------------------------------------

async def test_a_copy_is_the_callers_own_and_shared_with_nobody(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", admin(), KernelId="true")
    source = await cloud.register(Description="what it is", KernelId=kernel)
    await cloud.call("CreateTags", ResourceId_1=source, Tag_1_Key="a", Tag_1_Value="1")
    await share(cloud, source, "other")
    answer = await cloud.call("CopyImage", user("other"), SourceImageId=source, SourceRegion="nova", Name="copy",
                              CopyImageTags="true", TagSpecification_1_ResourceType="image",
                              TagSpecification_1_Tag_1_Key="b")
    copy = await image_of(cloud, answer["ImageId"])
    assert (copy.project_id, copy.name, copy.description, copy.kernel_id) == ("other", "copy", "what it is", kernel)
    assert (copy.launch_permissions, copy.is_public, copy.tags) == ([], False, {"b": ""})
    assert copy.source == f"image:{source}"
    own = await cloud.call("CopyImage", SourceImageId=source, SourceRegion="nova", Name="copy", CopyImageTags="true")
    [found] = await listed(cloud, ImageId_1=own["ImageId"])
    assert found["Tags"] == [{"Key": "a", "Value": "1"}] and found["SourceImageId"] == source


async def test_a_copy_shares_its_file_and_outlives_what_it_is_a_copy_of(cloud: Cloud) -> None:
    source = await cloud.register()
    copy = (await cloud.call("CopyImage", SourceImageId=source, SourceRegion="nova", Name="copy"))["ImageId"]

    async def available() -> bool:
        return (await image_of(cloud, copy)).state == "available"
    await until(available)
    files = [await cloud.image_files.find(id) for id in (source, copy)]
    assert len({os.stat(file.path).st_ino for file in files if file is not None}) == 1
    assert (await image_of(cloud, copy)).sha256 == (await image_of(cloud, source)).sha256
    await cloud.call("DeregisterImage", ImageId=source)

    async def removed() -> bool:
        return await cloud.image_files.find(source) is None
    await until(removed)
    assert await content(cloud.image_files, copy) == CONTENT
    [instance] = await cloud.run(copy)
    await cloud.reached(instance, "running")


async def test_a_copy_of_what_is_deregistered_meanwhile_fails_with_its_reason(cloud: Cloud) -> None:
    source = await cloud.register()
    await cloud.images.stop()
    copy = (await cloud.call("CopyImage", SourceImageId=source, SourceRegion="nova", Name="copy"))["ImageId"]
    await cloud.call("DeregisterImage", ImageId=source)
    await cloud.image_files.remove(source)
    await cloud.images.start()

    async def failed() -> bool:
        return (await image_of(cloud, copy)).state == "failed"
    await until(failed)
    [found] = await listed(cloud, ImageId_1=copy)
    assert found["StateReason"] == {"Code": "Client.InvalidAMIID.NotFound",
                                    "Message": f"The image {source} was deregistered before it was copied."}


async def test_a_repeated_client_token_gives_the_same_copy(cloud: Cloud) -> None:
    source = await cloud.register()
    params = {"SourceImageId": source, "SourceRegion": "nova", "Name": "copy", "ClientToken": "t"}
    answers = await asyncio.gather(*(cloud.call("CopyImage", **params) for _ in range(5)))
    assert len({answer["ImageId"] for answer in answers}) == 1
    with pytest.raises(exception.IdempotentParameterMismatch):
        await cloud.call("CopyImage", **{**params, "Name": "another"})


@pytest.mark.parametrize(("params", "error"), [
    ({"SourceRegion": "us-east-1"}, exception.InvalidParameterValue),
    ({"Encrypted": "true"}, exception.UnsupportedOperation),
    ({"DestinationOutpostArn": "arn:aws:outposts:x"}, exception.UnsupportedOperation),
    ({"SourceImageId": "ami-00000000"}, exception.InvalidAMIIDNotFound)], ids=str)
async def test_a_copy_that_cannot_be_had_is_refused(cloud: Cloud, params: dict[str, str],
                                                    error: type[exception.NovaError]) -> None:
    source = await cloud.register()
    with pytest.raises(error):
        await cloud.call("CopyImage", **{"SourceImageId": source, "SourceRegion": "nova", "Name": "copy", **params})
    assert await cloud.describe_images() == [source]


async def test_kernels_and_what_is_not_available_are_not_copied(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", admin(), KernelId="true")
    source = await cloud.register()
    await cloud.store.modify(Image, source, lambda i: {"state": "pending", "host": "h2"})
    for id, error in ((kernel, exception.UnsupportedOperation), (source, exception.InvalidAMIIDUnavailable)):
        with pytest.raises(error):
            await cloud.call("CopyImage", SourceImageId=id, SourceRegion="nova", Name="copy")


async def test_an_image_of_an_instance_is_pending_and_its_host_has_the_work(cloud: Cloud) -> None:
    source = await cloud.register()
    [instance] = await cloud.run(source)
    await cloud.reached(instance, "running")
    answer = await cloud.call("CreateImage", InstanceId=instance, Name="snapshot", NoReboot="true",
                              Description="of today", TagSpecification_1_ResourceType="image",
                              TagSpecification_1_Tag_1_Key="a", TagSpecification_1_Tag_1_Value="1")
    [found] = await listed(cloud, ImageId_1=answer["ImageId"])
    assert (found["Name"], found["Description"], found["SourceInstanceId"]) == ("snapshot", "of today", instance)
    assert found["State"] in ("pending", "available") and found["Tags"] == [{"Key": "a", "Value": "1"}]


@pytest.mark.parametrize(("params", "error"), [
    ({"InstanceId": "i-00000000"}, exception.InvalidInstanceIDNotFound),
    ({"InstanceId": "nonsense"}, exception.InvalidInstanceIDMalformed),
    ({"BlockDeviceMapping_1_DeviceName": "/dev/vda", "BlockDeviceMapping_1_Ebs_VolumeSize": 20},
     exception.UnsupportedOperation),
    ({"SnapshotLocation": "local"}, exception.UnsupportedOperation)], ids=str)
async def test_an_image_of_an_instance_that_cannot_be_had_is_refused(cloud: Cloud, params: dict[str, Any],
                                                                     error: type[exception.NovaError]) -> None:
    [instance] = await cloud.run(await cloud.register())
    await cloud.reached(instance, "running")
    with pytest.raises(error):
        await cloud.call("CreateImage", **{"InstanceId": instance, "Name": "snapshot", **params})
    assert await cloud.store.ids(Capture) == [] and len(await cloud.store.ids(Image)) == 1


async def test_there_is_no_image_of_an_instance_of_others_or_of_one_that_is_gone(cloud: Cloud) -> None:
    image = await cloud.register()
    [instance] = await cloud.run(image)
    await cloud.reached(instance, "running")
    with pytest.raises(exception.InvalidInstanceIDNotFound):
        await cloud.call("CreateImage", user("other"), InstanceId=instance, Name="snapshot")
    with pytest.raises(exception.UnauthorizedOperation):
        await cloud.call("CreateImage", member(name="bob"), InstanceId=instance, Name="snapshot")
    await cloud.call("TerminateInstances", InstanceId_1=instance)
    await cloud.reached(instance, "terminated")
    with pytest.raises(exception.IncorrectInstanceState, match="terminated"):
        await cloud.call("CreateImage", InstanceId=instance, Name="snapshot")
    assert await cloud.store.get(ImageName, "proj:snapshot") is None


# -- tags -------------------------------------------------------------------------------------------------------------

async def resources(cloud: Cloud) -> list[str]:
    """An image, an instance and a key pair, as EC2 calls them."""
    image = await cloud.register()
    [instance] = await cloud.run(image)
    key = await cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519")
    return [image, instance, key["KeyPairId"]]


async def tags_of(cloud: Cloud, context: Context | None = None, **params: Any) -> set[tuple[str, str, str, str]]:
    found = (await cloud.call("DescribeTags", context, **params))["Tags"]
    return {(tag["ResourceType"], tag["ResourceId"], tag["Key"], tag["Value"]) for tag in found}


async def test_tags_are_put_on_all_kinds_and_taken_off(cloud: Cloud) -> None:
    ids = await resources(cloud)
    named = {f"ResourceId_{n}": id for n, id in enumerate(ids)}  # libcloud counts from 0
    await cloud.call("CreateTags", **named, Tag_0_Key="a", Tag_0_Value="1", Tag_1_Key="b")
    assert await tags_of(cloud) == {
        (kind, id, key, value) for kind, id in zip(("image", "instance", "key-pair"), ids, strict=True)
        for key, value in (("a", "1"), ("b", ""))}
    await cloud.call("CreateTags", ResourceId_1=ids[0], Tag_1_Key="a", Tag_1_Value="2")
    assert (await listed(cloud))[0]["Tags"] == [{"Key": "a", "Value": "2"}, {"Key": "b", "Value": ""}]
    for tag, left in ((("a", "1"), {"a", "b"}), (("a", "2"), {"b"}), (("b", None), set())):
        given = {"Tag_1_Key": tag[0]} | ({"Tag_1_Value": tag[1]} if tag[1] is not None else {})
        await cloud.call("DeleteTags", ResourceId_1=ids[0], **given)
        found = await tags_of(cloud, Filter_1_Name="resource-id", Filter_1_Value_1=ids[0])
        assert {key for _, _, key, _ in found} == left
    await cloud.call("DeleteTags", **named)
    assert await tags_of(cloud) == set()
    await cloud.call("DeleteTags", **named, Tag_1_Key="gone")


async def test_tags_are_found_by_every_filter_and_in_pages(cloud: Cloud) -> None:
    ids = await resources(cloud)
    for n, id in enumerate(ids):
        await cloud.call("CreateTags", ResourceId_1=id, Tag_1_Key="n", Tag_1_Value=n, Tag_2_Key=f"k{n}",
                         Tag_3_Key="Team", Tag_3_Value="A")
    for name, value, number in (("key", "n", 3), ("key", "k?", 3), ("value", "A", 3), ("resource-id", ids[1], 3),
                                ("resource-type", "image", 3), ("tag:Team", "A", 3), ("tag:n", "1", 1)):
        assert len(await tags_of(cloud, Filter_1_Name=name, Filter_1_Value_1=value)) == number, name
    first = await cloud.call("DescribeTags", MaxResults=5)
    rest = await cloud.call("DescribeTags", MaxResults=5, NextToken=first["NextToken"])
    assert (len(first["Tags"]), len(rest["Tags"])) == (5, 4) and "NextToken" not in rest


@pytest.mark.parametrize(("params", "error"), [
    ({"Tag_1_Key": "aws:mine"}, exception.InvalidParameterValue),
    ({"Tag_1_Key": "AWS:mine"}, exception.InvalidParameterValue), ({"Tag_1_Key": ""}, exception.InvalidParameterValue),
    ({"Tag_1_Key": "k" * 129}, exception.InvalidParameterValue),
    ({"Tag_1_Key": "k", "Tag_1_Value": "v" * 257}, exception.InvalidParameterValue),
    ({f"Tag_{n}_Key": f"k{n}" for n in range(51)}, exception.TagLimitExceeded),
    ({"Tag_1_Key": "k", "ResourceId_2": "ami-00000000"}, exception.InvalidAMIIDNotFound),
    ({"Tag_1_Key": "k", "ResourceId_2": "i-00000000"}, exception.InvalidInstanceIDNotFound),
    ({"Tag_1_Key": "k", "ResourceId_2": "key-00000000"}, exception.InvalidKeyPairNotFound),
    ({"Tag_1_Key": "k", "ResourceId_2": "nonsense"}, exception.InvalidID), ({}, exception.MissingParameter),
], ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else value.__name__)
async def test_tags_that_cannot_be_put_are_put_on_nothing(cloud: Cloud, params: dict[str, str],
                                                          error: type[exception.NovaError]) -> None:
    image = await cloud.register()
    with pytest.raises(error):
        await cloud.call("CreateTags", ResourceId_1=image, **params)
    assert await tags_of(cloud) == set()


async def test_a_resource_never_has_more_than_fifty_tags(cloud: Cloud) -> None:
    image = await cloud.register()
    answers = await asyncio.gather(*(cloud.call("CreateTags", ResourceId_1=image, Tag_1_Key=f"k{n}")
                                     for n in range(60)), return_exceptions=True)
    assert sum(isinstance(a, exception.TagLimitExceeded) for a in answers) == 10
    assert len((await image_of(cloud, image)).tags) == 50


async def test_tags_of_another_project_are_not_there(cloud: Cloud) -> None:
    ids = await resources(cloud)
    await cloud.call("CreateTags", ResourceId_1=ids[0], Tag_1_Key="a")
    assert await tags_of(cloud, user("other")) == set()
    for id, error in zip(ids, (exception.InvalidAMIIDNotFound, exception.InvalidInstanceIDNotFound,
                               exception.InvalidKeyPairNotFound), strict=True):
        for name in ("CreateTags", "DeleteTags"):
            with pytest.raises(error):
                await cloud.call(name, user("other"), ResourceId_1=id, Tag_1_Key="a")
    with pytest.raises(exception.UnauthorizedOperation):
        await cloud.call("CreateTags", member(name="bob"), ResourceId_1=ids[1], Tag_1_Key="a")
    assert {pair.user_id for pair in await cloud.store.all(KeyPair)} == {"ann"}
    assert await cloud.store.get(Instance, ids[1]) is not None


async def test_every_change_of_an_image_is_in_the_audit_stream(cloud: Cloud) -> None:
    image = await cloud.register(Name="debian")
    await share(cloud, image, "other")
    await cloud.call("ResetImageAttribute", ImageId=image, Attribute="launchPermission")
    await cloud.call("CreateTags", ResourceId_1=image, Tag_1_Key="a")
    await cloud.call("DeleteTags", ResourceId_1=image)
    await cloud.call("DisableImage", ImageId=image)
    await cloud.call("EnableImage", ImageId=image)
    await cloud.call("CopyImage", SourceImageId=image, SourceRegion="nova", Name="copy")
    await cloud.call("DeregisterImage", ImageId=image)
    rows = await cloud.store.redis.xrange("nova:events")
    whats = [fields[b"what"].decode() for _, fields in rows if fields[b"what"].startswith((b"image.", b"tags."))]
    assert whats == ["image.register", "image.modify", "image.reset", "tags.create", "tags.delete", "image.disable",
                     "image.enable", "image.copy", "image.deregister"]


async def test_a_dry_run_changes_nothing(cloud: Cloud) -> None:
    image = await cloud.register()
    for name, params in (("DeregisterImage", {}), ("ModifyImageAttribute", {"Description_Value": "x"}),
                         ("DisableImage", {})):
        with pytest.raises(exception.DryRunOperation):
            await cloud.call(name, ImageId=image, DryRun="true", **params)
    assert (await listed(cloud))[0]["Description"] == ""


