"""The actions on key pairs, images, instances and regions, called as the endpoint calls them, on a real Redis.

Behind them are the real image, network and compute managers with the fake drivers.
"""

import asyncio
import base64
import hashlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nova import crypto, exception
from nova.auth import rbac, tree
from nova.auth.directory import Scope
from nova.auth.manager import AuthManager, open_directory
from nova.auth.models import KeyPair
from nova.cloud import action
from nova.cloud.image_attributes import ImageAttributes
from nova.cloud.image_copies import ImageCopies
from nova.cloud.images import Images
from nova.cloud.instances import Instances
from nova.cloud.keypairs import KeyPairs
from nova.cloud.public_keys import PublicKeys
from nova.cloud.regions import Regions
from nova.cloud.tagging import Tags
from nova.compute import models as compute_models
from nova.compute.capture import CaptureManager
from nova.compute.manager import ComputeManager
from nova.compute.models import Instance, UserData
from nova.compute.virt.fake import FakeDriver
from nova.context import Context
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import sources
from nova.image.cache import ImageCache
from nova.image.manager import ImageManager
from nova.image.models import Image, ImageName
from nova.network.fake import FakeDriver as FakeNetwork
from nova.network.manager import NetworkManager
from nova.network.models import Network
from nova.objectstore import captures, objects
from nova.objectstore import images as object_images
from nova.objectstore.files import Files
from nova.objectstore.images import ImageFiles
from nova.objectstore.models import Bucket, Object, object_id
from nova.objectstore.service import ObjectStoreService
from nova.rpc import Bus
from nova.service import Heartbeat
from tests import bundles, images

CONTENT = images.machine()


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def content(files: ImageFiles, image_id: str) -> bytes:
    """An image's bytes."""
    found = await files.find(image_id)
    assert found is not None
    return Path(found.path).read_bytes()


class Cloud:
    """The actions, and the hosts behind them."""

    def __init__(self, store: Store, directory: Path):
        self.store, self.directory = store, directory
        self.bus = Bus("memory://", "h1")
        self.authority = crypto.Authority(str(directory / "ca"))
        self.auth = AuthManager(store)

        async def open_object(bucket: str, key: str) -> Object:
            return await objects.open_object(store, bucket, key)
        self.image_files = ImageFiles(store, Files(str(directory / "objects")))
        self.disks = captures.CapturedDisks(store, self.image_files.files)
        self.images = ImageManager(store, self.bus, open_object, self.authority, self.image_files,
                                   {**sources.SOURCES, "instance": self.disks.source})
        self.objectstore = ObjectStoreService(store, self.auth, 0, "127.0.0.1", [
            *object_images.handlers(self.image_files, store), *captures.handlers(self.disks, store)])
        self.networks = NetworkManager(store, self.bus, FakeNetwork(str(directory / "networks")))
        cache = ImageCache(str(directory / "cache"), store, lambda: self.url("_images"))
        self.driver = FakeDriver(directory / "guests")
        self.compute = ComputeManager(store, self.bus, self.driver, cache)
        self.captures = CaptureManager(store, self.bus, self.driver, lambda: self.url("_images"))
        self.beats = [Heartbeat(store, "objectstore"), Heartbeat(store, "network"),
                      Heartbeat(store, "compute", self.compute.facts)]
        self.parts: list[Any] = [self.objectstore, self.images, self.disks, self.networks, self.compute, self.captures,
                                 *self.beats]
        self.registry = action.Registry.collect([
            KeyPairs(store=store, public_keys=PublicKeys(store, self.auth)), Images(store=store, bus=self.bus),
            Instances(store=store, bus=self.bus), Regions(store=store), Tags(store=store, bus=self.bus),
            ImageAttributes(store=store, bus=self.bus, auth=self.auth), ImageCopies(store=store, bus=self.bus)])

    def url(self, path: str) -> str:
        """Where the object store hands out images, or receives disks."""
        return f"http://127.0.0.1:{self.objectstore.port}/{path}/"

    async def start(self) -> None:
        self.bus.start()
        assert await self.bus.connected()
        await self.auth.create_user("ann")
        for part in self.parts:
            await part.start()

    async def stop(self) -> None:
        for part in reversed(self.parts):
            await part.stop()
        self.image_files.files.close()
        await self.bus.stop()
        await self.auth.stop()

    async def call(self, name: str, context: Context | None = None, **params: Any) -> dict[str, Any]:
        """One action, with parameters as a client sends them (``Name_1=x`` for ``Name.1=x``)."""
        pairs = [(key.replace("_", "."), str(value)) for key, value in params.items()]
        _, result = await action.dispatch(self.registry, context or user(), name, pairs)
        return result

    async def put(self, location: str, data: bytes = CONTENT, project: str = "proj") -> None:
        """An object in the object store."""
        bucket, _, key = location.partition("/")
        if await self.store.get(Bucket, bucket) is None:
            await self.store.create(Bucket(bucket, project_id=project, created=0.0))
        path = self.directory / "objects" / hashlib.md5(location.encode()).hexdigest()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        await self.store.create(Object(
            object_id(bucket, key), bucket=bucket, key=key, project_id=project, file=path.name, size=len(data),
            md5=hashlib.md5(data).hexdigest(), sha256=hashlib.sha256(data).hexdigest(), etag="", modified=0.0))

    async def register(self, location: str = "bucket/disk.img", context: Context | None = None, **params: Any) -> str:
        """Put an object and register it; the image's id."""
        bucket, _, key = location.partition("/")
        if await self.store.get(Object, object_id(bucket, key)) is None:
            data = (images.kernel() if params.get("KernelId") == "true" else
                    images.ramdisk() if params.get("RamdiskId") == "true" else CONTENT)
            await self.put(location, data, project=(context or user()).project_id)
        return (await self.call("RegisterImage", context, ImageLocation=location, **params))["ImageId"]

    async def describe_images(self, context: Context | None = None, **params: Any) -> list[str]:
        return [i["ImageId"] for i in (await self.call("DescribeImages", context, **params))["Images"]]

    async def run(self, image: str, least: int = 1, most: int | None = None, context: Context | None = None,
                  **params: Any) -> list[str]:
        """Run m1.tiny instances; their ids."""
        answer = await self.call("RunInstances", context, ImageId=image, MinCount=least, MaxCount=most or least,
                                 **{"InstanceType": "m1.tiny", **params})
        return [i["InstanceId"] for i in answer["Instances"]]

    async def reached(self, id: str, state: str) -> Instance:
        async def there() -> bool:
            found = await self.store.get(Instance, id)
            return found is not None and found.state == state
        await until(there)
        found = await self.store.get(Instance, id)
        assert found is not None
        return found


def user(project: str = "proj", admin: bool = False) -> Context:
    return Context("ann", project, roles=rbac.roles_in(admin, True), is_admin=admin)


@pytest.fixture
async def cloud(store: Store, tmp_path: Path) -> AsyncIterator[Cloud]:
    FLAGS.state_path, FLAGS.host, FLAGS.converge_interval = str(tmp_path), "h1", 3600.0
    FLAGS.private_range, FLAGS.network_size = "10.202.0.0/27", 16  # two networks of twelve addresses
    cloud = Cloud(store, tmp_path)
    await cloud.start()
    yield cloud
    await cloud.stop()


# -- key pairs --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
async def test_a_created_key_is_the_private_half_of_the_one_that_is_kept(cloud: Cloud, tmp_path: Path,
                                                                         kind: str) -> None:
    answer = await cloud.call("CreateKeyPair", KeyName="k", KeyType=kind)
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(answer["KeyMaterial"])
    public = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    kept = await cloud.store.get(KeyPair, "proj:k")
    assert kept is not None and kept.public_key.split() == public.split()[:2]
    assert answer["KeyFingerprint"] == kept.fingerprint


async def test_the_private_half_is_nowhere_in_redis(cloud: Cloud) -> None:
    answer = await cloud.call("CreateKeyPair", KeyName="k")
    secret = answer["KeyMaterial"].splitlines()[3].encode()
    for key in await cloud.store.redis.keys("nova:key_pair*"):
        if await cloud.store.redis.type(key) == b"hash":
            row: dict[Any, Any] = await cloud.store.attempt(cloud.store.redis.hgetall(key))
            assert secret not in b"".join(row.values())


async def test_a_name_is_given_to_one_key_pair_of_a_project(cloud: Cloud) -> None:
    results = await asyncio.gather(*(cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519") for _ in range(4)),
                                   return_exceptions=True)
    assert sum(isinstance(r, exception.InvalidKeyPairDuplicate) for r in results) == 3
    await cloud.call("CreateKeyPair", user("other"), KeyName="k", KeyType="ed25519")


@pytest.mark.parametrize("name", ["k\n", "é", "x" * 256])
async def test_a_name_that_ec2_does_not_allow_is_refused(cloud: Cloud, name: str) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        await cloud.call("CreateKeyPair", KeyName=name)


async def test_putty_keys_are_refused(cloud: Cloud) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        await cloud.call("CreateKeyPair", KeyName="k", KeyFormat="ppk")


async def test_an_imported_key_is_kept_without_its_comment(cloud: Cloud, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann@home", "-f", tmp_path / "k"], check=True)
    public = (tmp_path / "k.pub").read_bytes()
    answer = await cloud.call("ImportKeyPair", KeyName="k", PublicKeyMaterial=base64.b64encode(public).decode())
    assert "KeyMaterial" not in answer
    listed = (await cloud.call("DescribeKeyPairs", IncludePublicKey="true"))["KeyPairs"][0]
    assert listed["PublicKey"].split() == public.decode().split()[:2] and listed["KeyType"] == "ed25519"


@pytest.mark.parametrize("material", [b"", b"hello", b"\xff\xfe", b"ssh-rsa AAAA"])
async def test_what_is_no_public_key_is_not_imported(cloud: Cloud, material: bytes) -> None:
    with pytest.raises((exception.InvalidKeyFormat, exception.MissingParameter)):
        await cloud.call("ImportKeyPair", KeyName="k", PublicKeyMaterial=base64.b64encode(material).decode())
    assert await cloud.store.ids(KeyPair) == []


async def test_key_pairs_are_listed_to_their_project_only(cloud: Cloud) -> None:
    await cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519")
    [listed] = (await cloud.call("DescribeKeyPairs"))["KeyPairs"]
    assert listed["KeyName"] == "k" and "PublicKey" not in listed and "KeyMaterial" not in listed
    assert (await cloud.call("DescribeKeyPairs", user("other")))["KeyPairs"] == []
    with pytest.raises(exception.InvalidKeyPairNotFound):
        await cloud.call("DescribeKeyPairs", user("other"), KeyName_1="k")


@pytest.mark.parametrize("by", ["KeyName", "KeyPairId"])
async def test_a_key_pair_is_deleted_by_name_or_id(cloud: Cloud, by: str) -> None:
    made = await cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519")
    await cloud.call("DeleteKeyPair", user("other"), **{by: made[by]})
    assert len((await cloud.call("DescribeKeyPairs"))["KeyPairs"]) == 1
    assert (await cloud.call("DeleteKeyPair", **{by: made[by]}))["KeyPairId"] == made["KeyPairId"]
    assert (await cloud.call("DescribeKeyPairs"))["KeyPairs"] == []


@pytest.mark.both_directories
async def test_the_public_half_is_in_the_directory_as_long_as_there_is_the_key_pair(cloud: Cloud) -> None:
    made = await cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519")
    kept = await cloud.store.get(KeyPair, "proj:k")
    assert kept is not None
    directory = open_directory(cloud.store)
    [entry] = await directory.search(tree.user_dn("ann"), Scope.ONE, attributes=["*"])
    assert {name: entry.value(name) for name in ("cn", "keyName", "keyProject", "sshPublicKey", "keyFingerprint")} == {
        "cn": made["KeyPairId"], "keyName": "k", "keyProject": "proj", "sshPublicKey": kept.public_key,
        "keyFingerprint": kept.fingerprint}
    await cloud.call("DeleteKeyPair", KeyName="k")
    assert await directory.search(tree.user_dn("ann"), Scope.ONE) == []
    await directory.stop()


async def test_deleting_a_key_pair_that_is_not_there_is_no_error(cloud: Cloud) -> None:
    assert (await cloud.call("DeleteKeyPair", KeyName="nothing"))["Return"] is True
    with pytest.raises(exception.MissingParameter):
        await cloud.call("DeleteKeyPair")


async def test_a_key_pair_has_the_tags_it_was_made_with(cloud: Cloud) -> None:
    await cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519", TagSpecification_1_ResourceType="key-pair",
                     TagSpecification_1_Tag_1_Key="a", TagSpecification_1_Tag_1_Value="b")
    assert (await cloud.call("DescribeKeyPairs"))["KeyPairs"][0]["Tags"] == [{"Key": "a", "Value": "b"}]


# -- images -----------------------------------------------------------------------------------------------------------

async def test_an_object_is_registered(cloud: Cloud) -> None:
    image = await cloud.register(Name="debian", Description="what it is")
    [listed] = (await cloud.call("DescribeImages"))["Images"]
    assert image.startswith("ami-") and listed["ImageId"] == image
    assert (listed["State"], listed["Name"], listed["Description"]) == ("available", "debian", "what it is")
    assert (listed["ImageLocation"], listed["OwnerId"], listed["Public"]) == ("bucket/disk.img", "proj", False)


async def test_a_bundle_is_registered(cloud: Cloud, tmp_path: Path) -> None:
    cloud.authority.ensure()
    made = bundles.make(tmp_path / "bundle", cloud.authority.certificate_path, CONTENT,
                        signer=bundles.signer(tmp_path, *cloud.authority.issue("ann", "proj")))
    for name, _ in made.parts:
        await cloud.put(f"bucket/{name}", (made.directory / name).read_bytes())
    await cloud.put("bucket/image.manifest.xml", made.manifest)
    image = await cloud.register("bucket/image.manifest.xml")
    assert await content(cloud.image_files, image) == CONTENT


async def put_damaged(cloud: Cloud, directory: Path) -> str:
    """A bundle whose parts are not what its manifest says; its location."""
    cloud.authority.ensure()
    made = bundles.make(directory / "bundle", cloud.authority.certificate_path, CONTENT,
                        signer=bundles.signer(directory, *cloud.authority.issue("ann", "proj")))
    for name, _ in made.parts:
        await cloud.put(f"bucket/{name}", b"damaged")
    await cloud.put("bucket/image.manifest.xml", made.manifest)
    return "bucket/image.manifest.xml"


async def test_a_damaged_bundle_ends_failed_with_its_reason(cloud: Cloud, tmp_path: Path) -> None:
    image = await cloud.register(await put_damaged(cloud, tmp_path), Name="debian")
    [listed] = (await cloud.call("DescribeImages", ImageId_1=image))["Images"]
    assert listed["State"] == "failed" and "digest" in listed["StateReason"]["Message"]
    assert os.listdir(tmp_path / "images") == []
    await cloud.call("DeregisterImage", ImageId=image)
    assert await cloud.describe_images() == []
    assert await cloud.store.get(ImageName, "proj:debian") is None


async def test_a_failed_image_does_not_hold_on_to_its_name(cloud: Cloud, tmp_path: Path) -> None:
    failed = await cloud.register(await put_damaged(cloud, tmp_path), Name="debian")
    image = await cloud.register(Name="debian")
    await cloud.call("DeregisterImage", ImageId=failed)
    with pytest.raises(exception.InvalidAMINameDuplicate, match=image):
        await cloud.register(Name="debian")


async def test_what_is_no_manifest_is_refused_at_once(cloud: Cloud) -> None:
    await cloud.put("bucket/image.manifest.xml", b"hello")
    with pytest.raises(exception.InvalidManifest, match="no XML"):
        await cloud.register("bucket/image.manifest.xml")
    assert await cloud.describe_images() == []


@pytest.mark.parametrize("location", ["bucket", "/", "bucket/", "/bucket"])
async def test_what_is_no_location_is_refused(cloud: Cloud, location: str) -> None:
    with pytest.raises((exception.InvalidParameterValue, exception.MissingParameter)):
        await cloud.call("RegisterImage", ImageLocation=location)


async def test_the_object_of_another_project_looks_as_if_it_did_not_exist(cloud: Cloud) -> None:
    await cloud.put("bucket/disk.img")
    said = set()
    for location in ("bucket/disk.img", "bucket/gone", "gone/disk.img"):
        with pytest.raises(exception.InvalidManifest) as error:
            await cloud.call("RegisterImage", user("other"), ImageLocation=location)
        said.add(error.value.message.replace(location, ""))
    assert len(said) == 1


async def test_a_name_is_given_to_one_image_of_a_project(cloud: Cloud) -> None:
    image = await cloud.register(Name="debian")
    with pytest.raises(exception.InvalidAMINameDuplicate, match=image):
        await cloud.register(Name="debian")
    assert await cloud.describe_images() == [image]
    await cloud.call("DeregisterImage", ImageId=image)
    await cloud.register(Name="debian")


@pytest.mark.parametrize(("parameter", "prefix", "kind"), [
    ("KernelId", "aki-", "kernel"), ("RamdiskId", "ari-", "ramdisk")])
async def test_only_an_administrator_registers_kernels_and_ramdisks_and_all_may_use_them(
        cloud: Cloud, parameter: str, prefix: str, kind: str) -> None:
    with pytest.raises(exception.UnauthorizedOperation):
        await cloud.register(context=user(), **{parameter: "true"})
    image = await cloud.register(context=user(admin=True), **{parameter: "true"})
    assert image.startswith(prefix)
    [listed] = (await cloud.call("DescribeImages", user("other")))["Images"]
    assert (listed["ImageType"], listed["Public"]) == (kind, True) and "RootDeviceName" not in listed


async def test_a_kernel_that_is_none_is_refused(cloud: Cloud) -> None:
    machine = await cloud.register()
    for id, error in ((machine, exception.InvalidAMIIDNotFound), ("aki-00000000", exception.InvalidAMIIDNotFound),
                      ("nonsense", exception.InvalidAMIIDMalformed)):
        with pytest.raises(error):
            await cloud.register(KernelId=id)


@pytest.mark.parametrize(("name", "value", "error"), [
    ("Architecture", "arm64", exception.InvalidParameterValue), ("TpmSupport", "v2.0", exception.UnsupportedOperation),
    ("BlockDeviceMapping_1_Ebs_SnapshotId", "snap-1", exception.UnsupportedOperation)])
async def test_what_cannot_be_had_is_refused(cloud: Cloud, name: str, value: str,
                                             error: type[exception.NovaError]) -> None:
    with pytest.raises(error):
        await cloud.register(context=user(), **{name: value})
    assert await cloud.store.ids(Image) == []


async def test_an_image_of_another_project_looks_as_if_it_did_not_exist(cloud: Cloud) -> None:
    image = await cloud.register()
    other = user("other")
    assert await cloud.describe_images(other) == []
    for name, params in (("DescribeImages", {"ImageId_1": image}), ("DeregisterImage", {"ImageId": image}),
                         ("RunInstances", {"ImageId": image, "MinCount": 1, "MaxCount": 1})):
        with pytest.raises(exception.InvalidAMIIDNotFound):
            await cloud.call(name, other, **params)


async def test_images_are_listed_by_owner(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", user("admins", admin=True), KernelId="true")
    image = await cloud.register()
    assert await cloud.describe_images() == [kernel, image]
    assert await cloud.describe_images(Owner_1="self") == [image]
    assert await cloud.describe_images(Owner_1="admins") == [kernel]
    assert await cloud.describe_images(Owner_1="nobody") == []
    assert await cloud.describe_images(ExecutableBy_1="all") == [kernel]
    assert await cloud.describe_images(ExecutableBy_1="self") == []
    await cloud.store.modify(Image, image, lambda i: {"launch_permissions": ["other"]})
    assert await cloud.describe_images(user("other"), ExecutableBy_1="self") == [image]


async def test_a_deregistered_image_is_gone_with_its_file(cloud: Cloud, tmp_path: Path) -> None:
    image = await cloud.register(Name="debian")
    assert await cloud.call("DeregisterImage", ImageId=image) == {"Return": True}
    assert await cloud.describe_images() == []

    async def removed() -> bool:
        return await cloud.image_files.find(image) is None and not list((tmp_path / "objects").glob("??/*"))
    await until(removed)
    with pytest.raises(exception.InvalidAMIIDNotFound):
        await cloud.call("DeregisterImage", ImageId=image)


async def test_only_its_owner_or_an_administrator_deregisters_a_public_image(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/kernel", user("admins", admin=True), KernelId="true")
    with pytest.raises(exception.UnauthorizedOperation):
        await cloud.call("DeregisterImage", ImageId=kernel)
    await cloud.call("DeregisterImage", user("another", admin=True), ImageId=kernel)


async def test_an_image_is_deregistered_also_while_it_changes(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    image = await cloud.register(Name="debian")
    real = cloud.store.get

    async def get(cls: Any, id: str) -> Any:
        found = await real(cls, id)
        if cls is ImageName and found is not None:
            monkeypatch.setattr(cloud.store, "get", real)
            await cloud.store.modify(Image, image, lambda i: {"description": "changed"})
        return found
    monkeypatch.setattr(cloud.store, "get", get)
    await cloud.call("DeregisterImage", ImageId=image)
    assert await cloud.store.ids(Image) == [] and await real(ImageName, "proj:debian") is None


# -- instances --------------------------------------------------------------------------------------------------------

async def test_instances_run_and_are_terminated(cloud: Cloud) -> None:
    ids = await cloud.run(await cloud.register(), 2)
    for id in ids:
        await cloud.reached(id, "running")
    answer = await cloud.call("TerminateInstances", InstanceId_1=ids[0], InstanceId_2=ids[1])
    assert [(c["PreviousState"]["Name"], c["CurrentState"]["Name"]) for c in answer["TerminatingInstances"]] == [
        ("running", "shutting-down")] * 2
    for id in ids:
        await cloud.reached(id, "terminated")
    assert await cloud.driver.list_guests() == {}


async def test_instances_of_one_request_are_one_reservation_in_order(cloud: Cloud) -> None:
    ids = await cloud.run(await cloud.register(), 3)
    [reservation] = (await cloud.call("DescribeInstances"))["Reservations"]
    assert [(i["InstanceId"], i["AmiLaunchIndex"]) for i in reservation["Instances"]] == [
        (id, n) for n, id in enumerate(ids)]


async def test_no_two_instances_get_the_same_address_when_many_ask_at_once(cloud: Cloud) -> None:
    image = await cloud.register()
    answers = await asyncio.gather(*(cloud.run(image, 2) for _ in range(6)))
    instances = [await cloud.reached(id, "running") for ids in answers for id in ids]
    assert len({i.private_ip for i in instances}) == 12


async def test_addresses_that_run_out_give_as_many_instances_as_there_are_or_none(cloud: Cloud) -> None:
    image = await cloud.register()
    with pytest.raises(exception.InsufficientFreeAddressesInSubnet):
        await cloud.run(image, 13)
    assert await cloud.store.ids(Instance) == []
    assert (await compute_models.claims(cloud.store, ["h1"]))["h1"].get("vcpus", 0) == 0
    assert len(await cloud.run(image, 1, 13)) == 12


async def test_capacity_is_never_given_twice(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    async def facts() -> dict[str, Any]:
        return {"memory_mb": 512 * 3, "vcpus": 100, "disk_gb": 1}
    await Heartbeat(cloud.store, "compute", facts)._beat()
    image = await cloud.register()
    answers = await asyncio.gather(*(cloud.run(image) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(a, exception.InsufficientInstanceCapacity) for a in answers) == 3
    assert (await compute_models.claims(cloud.store, ["h1"]))["h1"] == {"memory_mb": 512 * 3, "vcpus": 3}


async def test_a_repeated_client_token_gives_the_same_instances(cloud: Cloud) -> None:
    image = await cloud.register()
    answers = await asyncio.gather(*(cloud.run(image, 2, ClientToken="t") for _ in range(5)))
    assert len({tuple(ids) for ids in answers}) == 1 and len(await cloud.store.ids(Instance)) == 2
    with pytest.raises(exception.IdempotentParameterMismatch):
        await cloud.run(image, 1, ClientToken="t")
    await cloud.run(image, 2)


async def test_a_third_project_finds_no_network_and_leaves_nothing(cloud: Cloud) -> None:
    kernel = await cloud.register("admins/x", user("admins", admin=True))
    await cloud.store.modify(Image, kernel, lambda i: {"is_public": True})
    for project in ("p1", "p2"):
        await cloud.run(kernel, context=user(project))
    with pytest.raises(exception.InsufficientFreeAddressesInSubnet, match="private_range"):
        await cloud.run(kernel, context=user("p3"))
    assert await cloud.store.get(Network, "p3") is None


@pytest.mark.parametrize(("params", "error"), [
    ({"MinCount": 0}, exception.InvalidParameterValue),
    ({"MinCount": 3, "MaxCount": 2}, exception.InvalidParameterValue),
    ({"MaxCount": 1000}, exception.InstanceLimitExceeded),
    ({"InstanceType": "m9.huge"}, exception.InvalidParameterValue),
    ({"KeyName": "gone"}, exception.InvalidKeyPairNotFound),
    ({"SecurityGroup_1": "gone"}, exception.InvalidGroupNotFound),
    ({"Placement_AvailabilityZone": "mars"}, exception.InvalidZoneNotFound),
    ({"UserData": "%%%"}, exception.InvalidUserDataMalformed),
    ({"UserData": base64.b64encode(bytes(16385)).decode()}, exception.InvalidParameterValue),
    ({"SubnetId": "subnet-1"}, exception.UnsupportedOperation),
    ({"KernelId": "ami-00000000"}, exception.InvalidAMIIDNotFound),
    ({"ImageId": "nonsense"}, exception.InvalidAMIIDMalformed),
    ({"ImageId": "ami-00000000"}, exception.InvalidAMIIDNotFound),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__)
async def test_a_request_that_cannot_be_met_is_refused_and_leaves_nothing(
        cloud: Cloud, params: dict[str, Any], error: type[exception.NovaError]) -> None:
    image = await cloud.register()
    with pytest.raises(error):
        await cloud.call("RunInstances", **{"ImageId": image, "MinCount": 1, "MaxCount": 1, **params})
    assert await cloud.store.ids(Instance) == []


async def test_an_image_that_is_pending_cannot_be_run(cloud: Cloud) -> None:
    image = await cloud.register()
    await cloud.store.modify(Image, image, lambda i: {"state": "pending", "host": "h2"})
    with pytest.raises(exception.InvalidAMIIDUnavailable, match="pending"):
        await cloud.run(image)


async def test_key_and_user_data_reach_the_instance(cloud: Cloud) -> None:
    await cloud.call("CreateKeyPair", KeyName="k", KeyType="ed25519")
    data = base64.b64encode(bytes(range(256)) * 64).decode()
    [id] = await cloud.run(await cloud.register(), KeyName="k", UserData=data)
    instance = await cloud.store.get(Instance, id)
    stored = await cloud.store.get(UserData, id)
    assert instance is not None and instance.key_data.startswith("ssh-ed25519 ") and instance.key_data.endswith(" k")
    assert stored is not None and stored.data == data


async def test_instances_of_another_project_look_as_if_they_did_not_exist(cloud: Cloud) -> None:
    [id] = await cloud.run(await cloud.register())
    other = user("other")
    assert (await cloud.call("DescribeInstances", other))["Reservations"] == []
    for name in ("DescribeInstances", "DescribeInstanceStatus", "RebootInstances", "TerminateInstances"):
        with pytest.raises(exception.InvalidInstanceIDNotFound):
            await cloud.call(name, other, InstanceId_1=id)
    with pytest.raises(exception.InvalidInstanceIDNotFound):
        await cloud.call("GetConsoleOutput", other, InstanceId=id)
    assert (await cloud.reached(id, "running")).wanted == "running"


async def test_terminating_changes_nothing_when_one_of_the_ids_is_wrong(cloud: Cloud) -> None:
    [id] = await cloud.run(await cloud.register())
    for wrong, error in (("i-0000dead", exception.InvalidInstanceIDNotFound),
                         ("x", exception.InvalidInstanceIDMalformed)):
        with pytest.raises(error):
            await cloud.call("TerminateInstances", InstanceId_1=id, InstanceId_2=wrong)
    assert (await cloud.reached(id, "running")).wanted == "running"


async def test_terminating_twice_is_no_error(cloud: Cloud) -> None:
    [id] = await cloud.run(await cloud.register())
    await cloud.call("TerminateInstances", InstanceId_1=id)
    await cloud.reached(id, "terminated")
    [change] = (await cloud.call("TerminateInstances", InstanceId_1=id))["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == change["PreviousState"]["Name"] == "terminated"


async def test_a_reboot_is_done(cloud: Cloud) -> None:
    [id] = await cloud.run(await cloud.register())
    await cloud.reached(id, "running")
    await cloud.call("RebootInstances", InstanceId_1=id)

    async def done() -> bool:
        found = await cloud.store.get(Instance, id)
        return found is not None and found.reboots_done == 1
    await until(done)


async def test_a_terminated_instance_cannot_be_rebooted(cloud: Cloud) -> None:
    [id] = await cloud.run(await cloud.register())
    await cloud.call("TerminateInstances", InstanceId_1=id)
    with pytest.raises(exception.IncorrectInstanceState):
        await cloud.call("RebootInstances", InstanceId_1=id)


async def test_the_console_comes_encoded_in_base64(cloud: Cloud) -> None:
    [id] = await cloud.run(await cloud.register())
    await cloud.reached(id, "running")
    answer = await cloud.call("GetConsoleOutput", InstanceId=id)
    assert f"instance-id={id}" in base64.b64decode(answer["Output"]).decode()
    assert answer["Timestamp"] == pytest.approx(time.time(), abs=60)


async def test_the_console_of_a_host_that_does_not_answer_is_unavailable(cloud: Cloud) -> None:
    FLAGS.rpc_timeout = 0.2
    [id] = await cloud.run(await cloud.register())
    await cloud.reached(id, "running")
    await cloud.store.modify(Instance, id, lambda i: {"host": "h9"})
    with pytest.raises(exception.Unavailable):
        await cloud.call("GetConsoleOutput", InstanceId=id)


async def test_the_status_lists_running_instances_or_all(cloud: Cloud) -> None:
    ids = await cloud.run(await cloud.register(), 2)
    for id in ids:
        await cloud.reached(id, "running")
    await cloud.call("TerminateInstances", InstanceId_1=ids[0])
    await cloud.reached(ids[0], "terminated")
    running = (await cloud.call("DescribeInstanceStatus"))["InstanceStatuses"]
    assert [s["InstanceId"] for s in running] == [ids[1]] and running[0]["SystemStatus"]["Status"] == "ok"
    everything = (await cloud.call("DescribeInstanceStatus", IncludeAllInstances="true"))["InstanceStatuses"]
    assert [s["InstanceId"] for s in everything] == sorted(ids)


async def test_no_compute_host_alive_is_no_capacity(cloud: Cloud) -> None:
    await cloud.beats[2].stop()
    with pytest.raises(exception.InsufficientInstanceCapacity, match="no compute host alive"):
        await cloud.run(await cloud.register())
    await cloud.beats[2].start()


async def test_no_network_host_alive_is_unavailable(cloud: Cloud) -> None:
    await cloud.beats[1].stop()
    with pytest.raises(exception.Unavailable, match="network host"):
        await cloud.run(await cloud.register())
    await cloud.beats[1].start()


# -- regions ----------------------------------------------------------------------------------------------------------

async def test_the_region_the_zones_and_the_types_are_listed(cloud: Cloud) -> None:
    FLAGS.region = "moon"
    assert [r["RegionName"] for r in (await cloud.call("DescribeRegions"))["Regions"]] == ["moon"]
    assert [z["ZoneName"] for z in (await cloud.call("DescribeAvailabilityZones"))["AvailabilityZones"]] == ["nova"]
    types = (await cloud.call("DescribeInstanceTypes"))["InstanceTypes"]
    assert {t["InstanceType"]: t["MemoryInfo"]["SizeInMiB"] for t in types}["m1.small"] == 1024


async def test_a_zone_without_a_living_compute_host_is_not_listed(cloud: Cloud) -> None:
    await cloud.beats[2].stop()
    assert (await cloud.call("DescribeAvailabilityZones"))["AvailabilityZones"] == []
    await cloud.beats[2].start()
