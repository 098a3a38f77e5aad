"""The table of roles is what is enforced: every action, with every role and every ownership, over HTTP, signed.

One user, ann, acts in the project `proj` with the roles that her access key names.  Each action is tried on a thing of
her own, of bob's in the same project, of eve's in another project, and of ann's own in that other project.  Users,
projects and access keys are kept in a real directory, in which those who are acted upon come and go.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.exceptions
import botocore.session
import pytest
import pytest_asyncio
from botocore.config import Config

from nova import datastore, exception, process
from nova.auth import rbac
from nova.auth.manager import AuthManager
from nova.auth.models import KeyPair, User
from nova.cloud import (
    action,
    admin,
    iam,
    image_attributes,
    image_copies,
    images,
    instances,
    keypairs,
    regions,
    tagging,
)
from nova.cloud.accounts import Accounts, UntoldKey
from nova.cloud.public_keys import PublicKeys
from nova.compute import models as compute
from nova.compute.models import Instance
from nova.crypto import Authority, ca_path
from nova.datastore import Store
from nova.endpoint.app import ApiService
from nova.flags import FLAGS
from nova.image.models import Image
from nova.objectstore import models as s3_models
from nova.objectstore import multipart, objects
from nova.objectstore.files import Files
from nova.objectstore.models import Bucket, Object, Part, Upload, object_id
from nova.objectstore.operations import OFFERED
from nova.objectstore.service import ObjectStoreService
from nova.rpc import Bus
from nova.service import Heartbeat
from nova.wire import model
from tests import slapd
from tests.conftest import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROJECT, SECRET = "proj", "secret/of+ann"
SUBJECTS = {"nobody": frozenset[str](), "all": frozenset(rbac.ROLES),
            **{role: frozenset({role}) for role in rbac.ROLES},
            **{f"member.{role}": frozenset({rbac.MEMBER, role}) for role in rbac.ROLES if role != rbac.MEMBER}}
#: user and project that own the thing
OWNERS = {"own": ("ann", PROJECT), "colleague": ("bob", PROJECT), "other": ("eve", "other"),
          "own elsewhere": ("ann", "other")}
BODY = b"what is in the object"
PART = b"the part that is there"
PART_MD5 = hashlib.md5(PART).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Ann with some roles."""

    roles: frozenset[str]
    user_id: str = "ann"
    project_id: str = PROJECT
    secret: str = SECRET
    is_admin: bool = False


class Auth:
    """Knows the subjects by their access keys."""

    async def identity(self, access_key: str, project: str | None) -> Identity:
        if access_key not in SUBJECTS or project != PROJECT:
            raise exception.AuthFailure()
        return Identity(SUBJECTS[access_key])


@dataclass
class Rig:
    """A running API and object store, their records, and for each service the clients of the subjects."""

    store: Store
    files: Files
    auth: AuthManager
    clients: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: "Thing | None" = None


@dataclass(frozen=True)
class Thing:
    """What an action is tried on: a record's id or name, a key in a bucket, an upload; of a user, the access key, and
    the project that the user is in."""

    id: str
    key: str = ""
    upload: str = ""
    project: str = ""


def rows(service: str) -> set[str]:
    """The rows of the table that are about a service."""
    return {name for name, rule in rbac.TABLE.items() if rule.service == service}


@pytest_asyncio.fixture(loop_scope="module", scope="module", name="rig")
async def rig_fixture(request: pytest.FixtureRequest, directory_driver: str, redis_server: RedisServer,
                      tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    with contextlib.ExitStack() as until_end:
        if directory_driver == slapd.LDAP:
            server = request.getfixturevalue("slapd")
            until_end.enter_context(server.used())
            directory = server.client()
            await slapd.empty(directory)
            await directory.stop()
        async for rig in make_rig(redis_server, tmp_path_factory):
            yield rig


async def make_rig(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    before = {name: FLAGS[name].value for name in ("state_path", "ca_path", "user_instances", "project_instances")}
    FLAGS.state_path = str(tmp_path_factory.mktemp("rbac"))
    FLAGS.ca_path = ""
    FLAGS.user_instances = FLAGS.project_instances = -1
    store = datastore.open_store(redis_server.url)
    await store.redis.flushall()
    bus = Bus("memory://", FLAGS.host)

    async def nothing(**_: Any) -> None:
        """What is wanted is recorded; nobody does it."""

    async def console(instance_id: str) -> dict[str, Any]:
        return {"output": f"console of {instance_id}", "timestamp": time.time()}

    async def capacity() -> dict[str, Any]:
        return {"memory_mb": 1 << 40, "vcpus": 1 << 30, "disk_gb": 1 << 30}
    bus.serve("compute", {"look_at_instance": nothing, "look_at_capture": nothing, "console_output": console})
    bus.serve("objectstore", {"ingest_image": nothing, "look_at_image": nothing})
    auth, authority = AuthManager(store), Authority(ca_path())
    registry = action.Registry.collect([
        instances.Instances(store=store, bus=bus), images.Images(store=store, bus=bus),
        image_attributes.ImageAttributes(store=store, bus=bus, auth=auth),
        image_copies.ImageCopies(store=store, bus=bus), tagging.Tags(store=store, bus=bus),
        keypairs.KeyPairs(store=store, public_keys=PublicKeys(store, auth)), regions.Regions(store=store)])
    await process.wait(process.in_thread(authority.ensure))
    everybody = Accounts(store, bus, auth, authority)
    others = {rbac.ADMIN: action.Registry.collect([admin.Admin(store=store, accounts=everybody)], model.admin()),
              rbac.IAM: action.Registry.collect([iam.Iam(store=store, accounts=everybody)], model.iam()),
              rbac.STS: action.Registry.collect([iam.Caller(store=store)], model.sts())}
    for service, offered in {rbac.EC2: registry, **others}.items():
        assert offered.actions.keys() == {name for name in rows(service) if ":" not in name}
    api = ApiService(store, Auth(), registry, 0, "127.0.0.1", others=others)
    s3 = ObjectStoreService(store, Auth(), 0, "127.0.0.1")
    beats = [Heartbeat(store, "compute", capacity), Heartbeat(store, "network"), Heartbeat(store, "objectstore")]
    bus.start()
    services = (auth, *beats, api, s3)
    for part in services:
        await part.start()
    rig = Rig(store, Files(s3_models.objects_path()), auth)
    core = botocore.session.Session()
    core.get_component("data_loader").search_paths.append(model.DATA_PATH)
    session = boto3.session.Session(region_name="nova", botocore_session=core)
    for service, name, port, path in ((rbac.EC2, "ec2", api.port, "/services/Cloud"), (rbac.S3, "s3", s3.port, ""),
                                      (rbac.ADMIN, model.ADMIN, api.port, "/services/Admin"),
                                      (rbac.IAM, "iam", api.port, "/services/IAM"),
                                      (rbac.STS, "sts", api.port, "/services/STS")):
        rig.clients[service] = {subject: session.client(
            name, endpoint_url=f"http://127.0.0.1:{port}{path}", aws_access_key_id=f"{subject}:{PROJECT}",
            aws_secret_access_key=SECRET,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})) for subject in SUBJECTS}
    for user in ("ann", "bob", "boss", "eve"):
        await auth.create_user(user)
    for project, manager, members in ((PROJECT, "boss", ("ann", "bob")), ("other", "eve", ("ann",))):
        await auth.create_project(project, manager)
        for user in members:
            await auth.add_member(project, user)
    rig.source = await new_object(rig, *OWNERS["own"])
    yield rig
    for part in reversed(services):
        await part.stop()
    await bus.stop()
    rig.files.close()
    await store.close()
    for name, value in before.items():
        FLAGS[name].value = value


# -- things -----------------------------------------------------------------------------------------------------------

def fresh(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(4)}"


async def no_thing(rig: Rig, user: str, project: str) -> Thing:
    """For actions that make something, or are about nothing in particular."""
    return Thing(fresh("new-"))


async def new_instance(rig: Rig, user: str, project: str) -> Thing:
    id = fresh("i-")
    await rig.store.create(Instance(
        id, project_id=project, user_id=user, reservation_id=fresh("r-"), launch_index=0, image_id="ami-1",
        instance_type="m1.tiny", vcpus=1, memory_mb=512, disk_gb=0, hostname=id, uuid=compute.new_uuid(),
        mac=compute.mac_for(id), private_ip="", network_id=project, host=FLAGS.host, zone="nova",
        launch_time=time.time(), state="running"))
    return Thing(id)


def image_maker(kind: str, prefix: str, is_public: bool = False) -> Callable[..., Any]:
    async def make(rig: Rig, user: str, project: str) -> Thing:
        return Thing((await rig.store.create(Image(
            fresh(prefix), project_id=project, user_id=user, name=fresh("n"), location="b/k", kind=kind,
            host=FLAGS.host, created=time.time(), state="available", sha256="0" * 64, is_public=is_public))).id)
    return make


new_image = image_maker("machine", "ami-")


new_kernel = image_maker("kernel", "aki-", is_public=True)


def changed(make: Callable[..., Any], **changes: Any) -> Callable[..., Any]:
    async def made(rig: Rig, user: str, project: str) -> Thing:
        thing = await make(rig, user, project)
        await rig.store.modify(Image, thing.id, lambda _: changes)
        return thing
    return made


SHARED, DISABLED, DEPRECATED = {"launch_permissions": ["web"]}, {"state": "disabled"}, {"deprecated_at": 9e9}


async def new_tagged_instance(rig: Rig, user: str, project: str) -> Thing:
    thing = await new_instance(rig, user, project)
    await rig.store.modify(Instance, thing.id, lambda _: {"tags": {"a": "1"}})
    return thing


async def new_key(rig: Rig, user: str, project: str) -> Thing:
    name = fresh("k")
    await rig.store.create(KeyPair(f"{project}:{name}", project_id=project, user_id=user, name=name,
                                   key_pair_id=fresh("key-"), public_key="ssh-rsa AAAA", fingerprint="00",
                                   key_type="rsa", created=time.time()))
    return Thing(name)


async def new_bucket(rig: Rig, user: str, project: str) -> Thing:
    bucket = Bucket(fresh("bucket-"), project_id=project, user_id=user, created=time.time())
    return Thing((await rig.store.create(bucket)).id, key="key")


CORS = {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]}
TAGS = {"TagSet": [{"Key": "a", "Value": "1"}]}
LIFECYCLE = {"Rules": [{"ID": "r", "Status": "Enabled", "Prefix": "", "Expiration": {"Days": 1}}]}


async def new_configured_bucket(rig: Rig, user: str, project: str) -> Thing:
    bucket = Bucket(fresh("bucket-"), project_id=project, user_id=user, created=time.time(),
                    configuration={"cors": CORS, "tagging": TAGS, "lifecycle": LIFECYCLE})
    return Thing((await rig.store.create(bucket)).id, key="key")


async def new_object(rig: Rig, user: str, project: str) -> Thing:
    thing = await new_bucket(rig, user, project)
    [bucket] = await rig.store.get_many(Bucket, [thing.id])
    id = object_id(thing.id, "key")

    def write() -> Object:
        with rig.files.new(f"o-{id}") as writer:
            writer.write(BODY)
            new = Object(id, bucket=thing.id, key="key", project_id=project, user_id=user, file=writer.name,
                         size=len(BODY), md5="0" * 32, sha256="0" * 64, etag="0" * 32, modified=time.time())
            writer.publish(new)
            return new
    await objects.put(rig.store, rig.files, bucket, await process.wait(rig.files.pool.run(write)))
    return thing


async def new_upload(rig: Rig, user: str, project: str) -> Thing:
    """An upload with one part."""
    thing = await new_bucket(rig, user, project)
    [bucket] = await rig.store.get_many(Bucket, [thing.id])
    upload = Upload(multipart.new_id(), bucket=thing.id, key="key", project_id=project, user_id=user,
                    initiated=time.time())
    await multipart.create(rig.store, rig.files, bucket, upload)

    def write() -> s3_models.Part:
        with rig.files.new(f"p-{s3_models.part_id(upload.id, 1)}") as writer:
            writer.write(PART)
            part = multipart.new_part(upload, 1, writer.name, len(PART), PART_MD5, {})
            writer.publish(part)
            return part
    part = await process.wait(rig.files.pool.run(write))
    await multipart.put_part(rig.store, rig.files, upload, part)
    return Thing(thing.id, "key", upload.id)


async def new_locked_instance(rig: Rig, user: str, project: str) -> Thing:
    thing = await new_instance(rig, user, project)
    await rig.store.modify(Instance, thing.id, lambda _: {"locked": True})
    return thing


async def new_user(rig: Rig, user: str, project: str) -> Thing:
    """Ann herself, in order; for anybody else a new user, in the project."""
    if user == "ann":
        if (await rig.auth.user(user)).is_locked:
            await rig.auth.unlock_user(user)
        await tell_key(rig, user)
        return Thing(user, (await rig.auth.user(user)).access, project=project)
    name = fresh(f"{user}-")
    made = await rig.auth.create_user(name)
    await rig.auth.add_member(project, name)
    return Thing(name, made.access, project=project)


async def tell_key(rig: Rig, user: str) -> None:
    mark = await rig.store.get(UntoldKey, user)
    if mark is not None:
        await rig.store.delete(mark)


async def new_keyless_user(rig: Rig, user: str, project: str) -> Thing:
    """As IAM's CreateUser leaves a user: nobody was told the access key."""
    thing = await new_user(rig, user, project)
    await rig.store.create(UntoldKey(thing.id, access=thing.key))
    return thing


async def new_locked_user(rig: Rig, user: str, project: str) -> Thing:
    thing = await new_user(rig, user, project)
    await rig.auth.lock_user(thing.id)
    return thing


async def new_member(rig: Rig, user: str, project: str) -> Thing:
    """For what belongs to a project and to no user in it."""
    return await new_user(rig, "member", project)


async def new_sysadmin(rig: Rig, user: str, project: str) -> Thing:
    thing = await new_member(rig, user, project)
    await rig.auth.add_role(thing.id, rbac.SYSADMIN, project)
    return thing


async def new_outsider(rig: Rig, user: str, project: str) -> Thing:
    """A user who is not in the project yet."""
    name = fresh("outsider-")
    return Thing(name, (await rig.auth.create_user(name)).access, project=project)


async def new_project(rig: Rig, user: str, project: str) -> Thing:
    name = fresh("project-")
    await rig.auth.create_project(name, "eve")
    return Thing(name)


# -- what was done ----------------------------------------------------------------------------------------------------

async def forgotten(rig: Rig, cls: type[datastore.Record], id: str) -> bool:
    return await rig.store.get(cls, id) is None


async def terminated(rig: Rig, thing: Thing) -> bool:
    instance = await rig.store.get(Instance, thing.id)
    return instance is not None and instance.wanted == "terminated"


async def rebooted(rig: Rig, thing: Thing) -> bool:
    instance = await rig.store.get(Instance, thing.id)
    return instance is not None and instance.reboots_wanted == 1


async def locked(rig: Rig, thing: Thing) -> bool:
    instance = await rig.store.get(Instance, thing.id)
    return instance is not None and instance.locked


async def unlocked(rig: Rig, thing: Thing) -> bool:
    return not await locked(rig, thing)


async def key_deleted(rig: Rig, thing: Thing) -> bool:
    return thing.id not in {pair.name for pair in await rig.store.all(KeyPair)}


async def image_deleted(rig: Rig, thing: Thing) -> bool:
    return await forgotten(rig, Image, thing.id)


def image_has(**values: Any) -> Callable[..., Any]:
    async def has(rig: Rig, thing: Thing) -> bool:
        image = await rig.store.get(Image, thing.id)
        return image is not None and all(getattr(image, name) == value for name, value in values.items())
    return has


async def image_made(rig: Rig, thing: Thing) -> bool:
    return any(image.source == f"instance:{thing.id}" for image in await rig.store.all(Image))


async def image_deprecated(rig: Rig, thing: Thing) -> bool:
    image = await rig.store.get(Image, thing.id)
    return image is not None and image.deprecated_at > 0


def tagged(cls: type[Image] | type[Instance], tags: dict[str, str]) -> Callable[..., Any]:
    async def has(rig: Rig, thing: Thing) -> bool:
        found = await rig.store.get(cls, thing.id)
        return found is not None and found.tags == tags
    return has


async def bucket_deleted(rig: Rig, thing: Thing) -> bool:
    return await forgotten(rig, Bucket, thing.id)


async def bucket_made(rig: Rig, thing: Thing) -> bool:
    made = await rig.store.get(Bucket, thing.id)
    return made is not None and (made.user_id, made.project_id) == ("ann", PROJECT)


async def object_there(rig: Rig, thing: Thing) -> bool:
    return not await object_deleted(rig, thing)


async def object_deleted(rig: Rig, thing: Thing) -> bool:
    return await forgotten(rig, Object, object_id(thing.id, "key"))


async def upload_over(rig: Rig, thing: Thing) -> bool:
    return await forgotten(rig, Upload, thing.upload) and await forgotten(
        rig, Part, s3_models.part_id(thing.upload, 1))


async def part_replaced(rig: Rig, thing: Thing) -> bool:
    part = await rig.store.get(Part, s3_models.part_id(thing.upload, 1))
    return part is not None and part.md5 != PART_MD5


async def upload_made(rig: Rig, thing: Thing) -> bool:
    [bucket] = await rig.store.get_many(Bucket, [thing.id])
    return bool(await rig.store.redis.zcard(bucket.uploads_key))


async def found_user(rig: Rig, thing: Thing) -> User | None:
    return next((user for user in await rig.auth.users() if user.id == thing.id), None)


async def user_there(rig: Rig, thing: Thing) -> bool:
    return await found_user(rig, thing) is not None


async def user_deleted(rig: Rig, thing: Thing) -> bool:
    return await found_user(rig, thing) is None


async def user_locked(rig: Rig, thing: Thing) -> bool:
    return (await rig.auth.user(thing.id)).is_locked


async def user_unlocked(rig: Rig, thing: Thing) -> bool:
    return not await user_locked(rig, thing)


async def access_key_replaced(rig: Rig, thing: Thing) -> bool:
    return (await rig.auth.user(thing.id)).access != thing.key


async def is_sysadmin(rig: Rig, thing: Thing) -> bool:
    return thing.id in await rig.auth.members_of_role(rbac.SYSADMIN, thing.project)


async def is_no_sysadmin(rig: Rig, thing: Thing) -> bool:
    return not await is_sysadmin(rig, thing)


async def is_itsec(rig: Rig, thing: Thing) -> bool:
    return thing.id in await rig.auth.members_of_role(rbac.ITSEC)


async def is_member(rig: Rig, thing: Thing) -> bool:
    return thing.id in (await rig.auth.project(thing.project)).members


async def is_no_member(rig: Rig, thing: Thing) -> bool:
    return not await is_member(rig, thing)


async def project_there(rig: Rig, thing: Thing) -> bool:
    return thing.id in {project.id for project in await rig.auth.projects()}


async def project_deleted(rig: Rig, thing: Thing) -> bool:
    return not await project_there(rig, thing)


# -- the actions ------------------------------------------------------------------------------------------------------

Call = Callable[[Any, Thing, Thing], Any]


@dataclass(frozen=True)
class Case:
    """How one action of the table is tried.

    `call` gets the client, the thing, and an object of ann's own; what it gives is false where the thing was not to be
    seen.  `done` looks whether the records changed.  `also` are actions that the caller must be permitted besides, on
    what is ann's own; `seen` says that the thing is public; `is_user` that it is a user, who is the same in all
    projects; `only` is one ownership, where no other makes sense.
    """

    make: Callable[..., Any]
    call: Call
    done: Callable[..., Any] | None = None
    also: tuple[str, ...] = ()
    seen: bool = False
    is_user: bool = False
    only: str = ""


def run(ec2: Any, image: str) -> Any:
    return ec2.run_instances(ImageId=image, InstanceType="m1.tiny", MinCount=1, MaxCount=1)["Instances"]


def described(ec2: Any, thing: Thing) -> bool:
    listed = [i["InstanceId"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    named = ec2.describe_instances(InstanceIds=[thing.id])["Reservations"][0]["Instances"]
    assert [i["InstanceId"] for i in named] == [thing.id] and thing.id in listed
    return True


def status(ec2: Any, thing: Thing) -> bool:
    listed = ec2.describe_instance_status()["InstanceStatuses"]
    assert ec2.describe_instance_status(InstanceIds=[thing.id])["InstanceStatuses"]
    return thing.id in [i["InstanceId"] for i in listed]


def image_seen(ec2: Any, thing: Thing) -> bool:
    return (thing.id in [i["ImageId"] for i in ec2.describe_images()["Images"]]
            and bool(ec2.describe_images(ImageIds=[thing.id])["Images"]))


def describe_as(ec2: Any, thing: Thing, text: str) -> Any:
    return ec2.modify_image_attribute(ImageId=thing.id, Description={"Value": text})


def reset(ec2: Any, thing: Thing) -> Any:
    return ec2.reset_image_attribute(ImageId=thing.id, Attribute="launchPermission")


def deprecate(ec2: Any, thing: Thing) -> Any:
    return ec2.enable_image_deprecation(ImageId=thing.id, DeprecateAt=time.time() + 3600)


def undeprecate(ec2: Any, thing: Thing) -> Any:
    return ec2.disable_image_deprecation(ImageId=thing.id)


def location(thing: Thing) -> str:
    return f"{thing.id}/{thing.key}"


PUBLIC_KEY = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJwkF1vJOdhDl0Xo9QDhrFnXzdKm6O1pIbZyFYVtmhQY")
EC2_CASES: dict[str, Case] = {
    "DescribeRegions": Case(no_thing, lambda c, t, s: c.describe_regions()["Regions"]),
    "DescribeAvailabilityZones": Case(no_thing, lambda c, t, s: c.describe_availability_zones()["AvailabilityZones"]),
    "DescribeInstanceTypes": Case(no_thing, lambda c, t, s: c.describe_instance_types()["InstanceTypes"]),
    "RunInstances": Case(image_maker("machine", "ami-", is_public=True), lambda c, t, s: run(c, t.id)),
    "RunInstances:image": Case(new_image, lambda c, t, s: run(c, t.id)),
    "DescribeInstances": Case(new_instance, lambda c, t, s: described(c, t)),
    "DescribeInstanceStatus": Case(new_instance, lambda c, t, s: status(c, t)),
    "GetConsoleOutput": Case(new_instance, lambda c, t, s: c.get_console_output(InstanceId=t.id)["Output"]),
    "RebootInstances": Case(new_instance, lambda c, t, s: c.reboot_instances(InstanceIds=[t.id]), rebooted),
    "TerminateInstances": Case(new_instance, lambda c, t, s: c.terminate_instances(InstanceIds=[t.id]), terminated),
    "CreateKeyPair": Case(no_thing, lambda c, t, s: c.create_key_pair(KeyName=t.id, KeyType="ed25519")),
    "ImportKeyPair": Case(no_thing, lambda c, t, s: c.import_key_pair(KeyName=t.id, PublicKeyMaterial=PUBLIC_KEY)),
    "DescribeKeyPairs": Case(new_key, lambda c, t, s: t.id in [
        k["KeyName"] for k in c.describe_key_pairs()["KeyPairs"]]),
    "DeleteKeyPair": Case(new_key, lambda c, t, s: c.delete_key_pair(KeyName=t.id), key_deleted),
    "RegisterImage": Case(no_thing, lambda c, t, s: c.register_image(Name=t.id, ImageLocation=location(s)),
                          also=("GetObject",)),
    "RegisterImage:kernel": Case(no_thing, lambda c, t, s: c.register_image(
        Name=t.id, ImageLocation=location(s), KernelId="true"), also=("GetObject",)),
    "DescribeImages": Case(new_image, lambda c, t, s: image_seen(c, t)),
    "DeregisterImage": Case(new_image, lambda c, t, s: c.deregister_image(ImageId=t.id), image_deleted),
    "DeregisterImage:kernel": Case(new_kernel, lambda c, t, s: c.deregister_image(ImageId=t.id), image_deleted,
                                   seen=True),
    "CopyImage": Case(image_maker("machine", "ami-", is_public=True), lambda c, t, s: c.copy_image(
        Name=fresh("n"), SourceImageId=t.id, SourceRegion="nova")),
    "CreateImage": Case(new_instance, lambda c, t, s: c.create_image(InstanceId=t.id, Name=fresh("n")), image_made),
    "DescribeImageAttribute": Case(new_image, lambda c, t, s: c.describe_image_attribute(
        ImageId=t.id, Attribute="launchPermission")),
    "ModifyImageAttribute": Case(new_image, lambda c, t, s: describe_as(c, t, "new"), image_has(description="new")),
    "ModifyImageAttribute:all": Case(new_image, lambda c, t, s: c.modify_image_attribute(
        ImageId=t.id, LaunchPermission={"Add": [{"Group": "all"}]}), image_has(is_public=True)),
    "ModifyImageAttribute:kernel": Case(new_kernel, lambda c, t, s: describe_as(c, t, "new"),
                                        image_has(description="new"), seen=True),
    "ResetImageAttribute": Case(changed(new_image, **SHARED), lambda c, t, s: reset(c, t),
                                image_has(launch_permissions=[])),
    "ResetImageAttribute:kernel": Case(changed(new_kernel, **SHARED), lambda c, t, s: reset(c, t),
                                       image_has(launch_permissions=[]), seen=True),
    "DisableImage": Case(new_image, lambda c, t, s: c.disable_image(ImageId=t.id), image_has(state="disabled")),
    "DisableImage:kernel": Case(new_kernel, lambda c, t, s: c.disable_image(ImageId=t.id),
                                image_has(state="disabled"), seen=True),
    "EnableImage": Case(changed(new_image, **DISABLED), lambda c, t, s: c.enable_image(ImageId=t.id),
                        image_has(state="available")),
    "EnableImage:kernel": Case(changed(new_kernel, **DISABLED), lambda c, t, s: c.enable_image(ImageId=t.id),
                               image_has(state="available"), seen=True),
    "EnableImageDeprecation": Case(new_image, lambda c, t, s: deprecate(c, t), image_deprecated),
    "EnableImageDeprecation:kernel": Case(new_kernel, lambda c, t, s: deprecate(c, t), image_deprecated, seen=True),
    "DisableImageDeprecation": Case(changed(new_image, **DEPRECATED), lambda c, t, s: undeprecate(c, t),
                                    image_has(deprecated_at=0.0)),
    "DisableImageDeprecation:kernel": Case(
        changed(new_kernel, **DEPRECATED), lambda c, t, s: undeprecate(c, t),
        image_has(deprecated_at=0.0), seen=True),
    "CreateTags": Case(new_instance, lambda c, t, s: c.create_tags(Resources=[t.id], Tags=TAGS["TagSet"]),
                       tagged(Instance, {"a": "1"})),
    "CreateTags:image": Case(new_image, lambda c, t, s: c.create_tags(Resources=[t.id], Tags=TAGS["TagSet"]),
                             tagged(Image, {"a": "1"})),
    "DeleteTags": Case(new_tagged_instance, lambda c, t, s: c.delete_tags(Resources=[t.id]), tagged(Instance, {})),
    "DeleteTags:image": Case(changed(new_image, tags={"a": "1"}), lambda c, t, s: c.delete_tags(Resources=[t.id]),
                             tagged(Image, {})),
    "DescribeTags": Case(new_tagged_instance, lambda c, t, s: t.id in [
        tag["ResourceId"] for tag in c.describe_tags()["Tags"]]),
    # the image's source is another's
    "GetObject:as an image": Case(new_object, lambda c, t, s: c.register_image(Name=fresh("n"),
                                                                              ImageLocation=location(t)),
                                  also=("RegisterImage",)),
}
def unset(call, code):
    """Ask for what nobody has set: who may ask is told that."""
    try:
        call()
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != code:
            raise
        return True
    return False


S3_CASES: dict[str, Case] = {
    "ListBuckets": Case(new_bucket, lambda c, t, s: t.id in [b["Name"] for b in c.list_buckets()["Buckets"]]),
    "CreateBucket": Case(no_thing, lambda c, t, s: c.create_bucket(Bucket=t.id), bucket_made),
    "HeadBucket": Case(new_bucket, lambda c, t, s: c.head_bucket(Bucket=t.id)),
    "GetBucketLocation": Case(new_bucket, lambda c, t, s: c.get_bucket_location(Bucket=t.id)),
    "GetBucketAcl": Case(new_bucket, lambda c, t, s: c.get_bucket_acl(Bucket=t.id)),
    "GetBucketConfiguration": Case(new_bucket, lambda c, t, s: c.get_bucket_logging(Bucket=t.id)),
    "GetBucketVersioning": Case(new_bucket, lambda c, t, s: c.get_bucket_versioning(Bucket=t.id)),
    "ListObjects": Case(new_object, lambda c, t, s: c.list_objects(Bucket=t.id)["Contents"]),
    "ListObjectsV2": Case(new_object, lambda c, t, s: c.list_objects_v2(Bucket=t.id)["Contents"]),
    "ListObjectVersions": Case(new_object, lambda c, t, s: c.list_object_versions(Bucket=t.id)["Versions"]),
    "ListMultipartUploads": Case(new_upload, lambda c, t, s: c.list_multipart_uploads(Bucket=t.id)["Uploads"]),
    "DeleteBucket": Case(new_bucket, lambda c, t, s: c.delete_bucket(Bucket=t.id), bucket_deleted),
    "PutBucketVersioning": Case(new_bucket, lambda c, t, s: c.put_bucket_versioning(
        Bucket=t.id, VersioningConfiguration={"Status": "Enabled"})),
    "GetBucketCors": Case(new_configured_bucket, lambda c, t, s: c.get_bucket_cors(Bucket=t.id)["CORSRules"]),
    "GetBucketTagging": Case(new_configured_bucket, lambda c, t, s: c.get_bucket_tagging(Bucket=t.id)["TagSet"]),
    "GetBucketLifecycleConfiguration": Case(
        new_configured_bucket, lambda c, t, s: c.get_bucket_lifecycle_configuration(Bucket=t.id)["Rules"]),
    "PutBucketCors": Case(new_bucket, lambda c, t, s: c.put_bucket_cors(Bucket=t.id, CORSConfiguration=CORS)),
    "PutBucketTagging": Case(new_bucket, lambda c, t, s: c.put_bucket_tagging(Bucket=t.id, Tagging=TAGS)),
    "PutBucketLifecycleConfiguration": Case(new_bucket, lambda c, t, s: c.put_bucket_lifecycle_configuration(
        Bucket=t.id, LifecycleConfiguration=LIFECYCLE)),
    "DeleteBucketCors": Case(new_configured_bucket, lambda c, t, s: c.delete_bucket_cors(Bucket=t.id)),
    "DeleteBucketTagging": Case(new_configured_bucket, lambda c, t, s: c.delete_bucket_tagging(Bucket=t.id)),
    "DeleteBucketLifecycle": Case(new_configured_bucket, lambda c, t, s: c.delete_bucket_lifecycle(Bucket=t.id)),
    "GetObjectAttributes": Case(new_object, lambda c, t, s: c.get_object_attributes(
        Bucket=t.id, Key="key", ObjectAttributes=["ObjectSize"])["ObjectSize"]),
    "PutObjectTagging": Case(new_object, lambda c, t, s: c.put_object_tagging(Bucket=t.id, Key="key", Tagging=TAGS)),
    "DeleteBucketConfiguration": Case(new_bucket, lambda c, t, s: c.delete_bucket_website(Bucket=t.id)),
    "PutBucketAcl": Case(new_bucket, lambda c, t, s: c.put_bucket_acl(Bucket=t.id, ACL="private")),
    "GetBucketOwnershipControls": Case(new_bucket, lambda c, t, s: unset(
        lambda: c.get_bucket_ownership_controls(Bucket=t.id), "OwnershipControlsNotFoundError")),
    "GetBucketPolicy": Case(new_bucket, lambda c, t, s: unset(
        lambda: c.get_bucket_policy(Bucket=t.id), "NoSuchBucketPolicy")),
    "GetBucketPolicyStatus": Case(new_bucket, lambda c, t, s: unset(
        lambda: c.get_bucket_policy_status(Bucket=t.id), "NoSuchBucketPolicy")),
    "GetPublicAccessBlock": Case(new_bucket, lambda c, t, s: unset(
        lambda: c.get_public_access_block(Bucket=t.id), "NoSuchPublicAccessBlockConfiguration")),
    "PutBucketOwnershipControls": Case(new_bucket, lambda c, t, s: c.put_bucket_ownership_controls(
        Bucket=t.id, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]})),
    "DeleteBucketOwnershipControls": Case(new_bucket, lambda c, t, s: c.delete_bucket_ownership_controls(Bucket=t.id)),
    "PutBucketPolicy": Case(new_bucket, lambda c, t, s: c.put_bucket_policy(Bucket=t.id, Policy=json.dumps(
        {"Statement": [{"Effect": "Deny", "Principal": {"AWS": "nobody"}, "Action": "s3:GetObject",
                        "Resource": f"arn:aws:s3:::{t.id}/*"}]}))),
    "DeleteBucketPolicy": Case(new_bucket, lambda c, t, s: c.delete_bucket_policy(Bucket=t.id)),
    "PutPublicAccessBlock": Case(new_bucket, lambda c, t, s: c.put_public_access_block(
        Bucket=t.id, PublicAccessBlockConfiguration={"BlockPublicAcls": True})),
    "DeletePublicAccessBlock": Case(new_bucket, lambda c, t, s: c.delete_public_access_block(Bucket=t.id)),
    "GetObject": Case(new_object, lambda c, t, s: (
        c.head_object(Bucket=t.id, Key="key"), c.get_object(Bucket=t.id, Key="key")["Body"].read() == BODY)[1]),
    "GetObjectAcl": Case(new_object, lambda c, t, s: c.get_object_acl(Bucket=t.id, Key="key")),
    "GetObjectTagging": Case(new_object, lambda c, t, s: c.get_object_tagging(Bucket=t.id, Key="key")),
    "ListParts": Case(new_upload, lambda c, t, s: c.list_parts(Bucket=t.id, Key="key", UploadId=t.upload)["Parts"]),
    "PutObject": Case(new_bucket, lambda c, t, s: c.put_object(Bucket=t.id, Key="key", Body=b"new"), object_there),
    "CopyObject": Case(new_bucket, lambda c, t, s: c.copy_object(Bucket=t.id, Key="key", CopySource=location(s)),
                       object_there, also=("GetObject",)),
    "PutObjectAcl": Case(new_object, lambda c, t, s: c.put_object_acl(Bucket=t.id, Key="key", ACL="private")),
    "DeleteObject": Case(new_object, lambda c, t, s: c.delete_object(Bucket=t.id, Key="key"), object_deleted),
    "DeleteObjects": Case(new_object, lambda c, t, s: c.delete_objects(
        Bucket=t.id, Delete={"Objects": [{"Key": "key"}]})["Deleted"], object_deleted),
    "DeleteObjectTagging": Case(new_object, lambda c, t, s: c.delete_object_tagging(Bucket=t.id, Key="key")),
    "CreateMultipartUpload": Case(new_bucket, lambda c, t, s: c.create_multipart_upload(Bucket=t.id, Key="key"),
                                  upload_made),
    "UploadPart": Case(new_upload, lambda c, t, s: c.upload_part(
        Bucket=t.id, Key="key", UploadId=t.upload, PartNumber=1, Body=b"new"), part_replaced),
    "UploadPartCopy": Case(new_upload, lambda c, t, s: c.upload_part_copy(
        Bucket=t.id, Key="key", UploadId=t.upload, PartNumber=1, CopySource=location(s)), part_replaced,
        also=("GetObject",)),
    "CompleteMultipartUpload": Case(new_upload, lambda c, t, s: c.complete_multipart_upload(
        Bucket=t.id, Key="key", UploadId=t.upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": PART_MD5}]}), upload_over),
    "AbortMultipartUpload": Case(new_upload, lambda c, t, s: c.abort_multipart_upload(
        Bucket=t.id, Key="key", UploadId=t.upload), upload_over),
    # what is copied is another's
    "GetObject:as a source": Case(new_object, lambda c, t, s: c.copy_object(
        Bucket=s.id, Key=fresh("copy"), CopySource=location(t)), also=("CopyObject",)),
}
ADMIN_CASES: dict[str, Case] = {
    "DescribeUser": Case(new_user, lambda c, t, s: c.describe_user(Name=t.id)["UserName"] == t.id, is_user=True),
    "DescribeUsers": Case(new_user, lambda c, t, s: t.id in [u["UserName"] for u in c.describe_users()["Users"]]),
    "RegisterUser": Case(no_thing, lambda c, t, s: c.register_user(Name=t.id), user_there),
    "DeregisterUser": Case(new_member, lambda c, t, s: c.deregister_user(Name=t.id), user_deleted),
    "GenerateX509ForUser": Case(new_user, lambda c, t, s: c.generate_x509_for_user(
        Name=t.id, Project=t.project)["File"]),
    "ModifyUserRole": Case(new_member, lambda c, t, s: c.modify_user_role(
        User=t.id, Role=rbac.SYSADMIN, Project=t.project, Operation="add"), is_sysadmin),
    "ModifyUserRole:taken away": Case(new_sysadmin, lambda c, t, s: c.modify_user_role(
        User=t.id, Role=rbac.SYSADMIN, Project=t.project, Operation="remove"), is_no_sysadmin),
    "ModifyUserRole:globally": Case(new_member, lambda c, t, s: c.modify_user_role(
        User=t.id, Role=rbac.ITSEC, Operation="add"), is_itsec, seen=True, only="other"),
    "DescribeUserRoles": Case(new_user, lambda c, t, s: c.describe_user_roles(User=t.id, Project=t.project)["Roles"]),
    "DescribeUserRoles:globally": Case(new_user, lambda c, t, s: c.describe_user_roles(User=t.id), is_user=True),
    "DescribeRoles": Case(no_thing, lambda c, t, s: c.describe_roles()["Roles"]),
    "RegisterProject": Case(no_thing, lambda c, t, s: c.register_project(Name=t.id, ManagerUser="eve"), project_there),
    "DeregisterProject": Case(new_project, lambda c, t, s: c.deregister_project(Name=t.id), project_deleted),
    "DescribeProject": Case(new_member, lambda c, t, s: c.describe_project(Name=t.project)["Members"]),
    "DescribeProjects": Case(new_project, lambda c, t, s: t.id in [
        p["ProjectName"] for p in c.describe_projects()["Projects"]]),
    "ModifyProjectMember": Case(new_outsider, lambda c, t, s: c.modify_project_member(
        User=t.id, Project=t.project, Operation="add"), is_member),
    "ModifyProjectMember:taken out": Case(new_member, lambda c, t, s: c.modify_project_member(
        User=t.id, Project=t.project, Operation="remove"), is_no_member),
    "DescribeHosts": Case(no_thing, lambda c, t, s: c.describe_hosts()["Hosts"]),
    "DescribeHost": Case(no_thing, lambda c, t, s: c.describe_host(Name=FLAGS.host)["HostName"]),
    "LockInstance": Case(new_instance, lambda c, t, s: c.lock_instance(InstanceId=t.id), locked),
    "UnlockInstance": Case(new_locked_instance, lambda c, t, s: c.unlock_instance(InstanceId=t.id), unlocked),
}
IAM_CASES: dict[str, Case] = {
    "CreateUser": Case(no_thing, lambda c, t, s: c.create_user(UserName=t.id), user_there),
    "GetUser": Case(new_user, lambda c, t, s: c.get_user(UserName=t.id)["User"]["UserName"] == t.id, is_user=True),
    "ListUsers": Case(new_user, lambda c, t, s: t.id in [u["UserName"] for u in c.list_users(MaxItems=1000)["Users"]]),
    "DeleteUser": Case(lambda rig, user, project: new_keyless_user(rig, "member", project),
                       lambda c, t, s: c.delete_user(UserName=t.id), user_deleted),
    "CreateAccessKey": Case(new_keyless_user, lambda c, t, s: c.create_access_key(UserName=t.id), access_key_replaced,
                            is_user=True),
    "ListAccessKeys": Case(new_user, lambda c, t, s: c.list_access_keys(UserName=t.id)["AccessKeyMetadata"],
                           is_user=True),
    "UpdateAccessKey": Case(new_user, lambda c, t, s: c.update_access_key(
        UserName=t.id, AccessKeyId=t.key, Status="Inactive"), user_locked, is_user=True),
    "UpdateAccessKey:unlocked": Case(new_locked_user, lambda c, t, s: c.update_access_key(
        UserName=t.id, AccessKeyId=t.key, Status="Active"), user_unlocked, is_user=True),
    "DeleteAccessKey": Case(new_user, lambda c, t, s: c.delete_access_key(UserName=t.id, AccessKeyId=t.key),
                            access_key_replaced, is_user=True),
}
STS_CASES: dict[str, Case] = {
    "GetCallerIdentity": Case(no_thing, lambda c, t, s: c.get_caller_identity()["UserId"] == "ann"),
}
CASES = {rbac.EC2: EC2_CASES, rbac.S3: S3_CASES, rbac.ADMIN: ADMIN_CASES, rbac.IAM: IAM_CASES, rbac.STS: STS_CASES}


async def test_every_row_of_the_table_is_walked() -> None:
    walked = {service: cases.keys() & rbac.TABLE.keys() for service, cases in CASES.items()}
    assert walked == {service: rows(service) for service in {rule.service for rule in rbac.TABLE.values()}}
    assert not [name for cases in CASES.values() for name in cases.keys() & rbac.TABLE.keys() if cases[name].only]
    assert {kind.action for kind in OFFERED} == rows(rbac.S3)


def expected(name: str, case: Case, roles: frozenset[str], ownership: str) -> str:
    """What the table says comes of it: done, missing (it looks as if there were no such thing) or refused."""
    row = rbac.TABLE[name] if name in rbac.TABLE else rbac.TABLE[name.partition(":")[0]]
    if ":" in name and name in rbac.TABLE and not roles & rbac.TABLE[name.partition(":")[0]].anywhere:
        return "refused"
    own_rows = [rbac.TABLE[also] for also in case.also]
    if not all(roles & also.own for also in own_rows):
        return "refused"
    if case.is_user and ownership == "own elsewhere":
        ownership = "own"
    allowed = {"own": row.own, "colleague": row.project}.get(ownership, row.others)
    if roles & allowed:
        return "done"
    is_far = ownership not in ("own", "colleague")
    if name == "GetObject:as an image":
        return "missing" if is_far else "refused"
    if row.service == rbac.S3 and name != "ListBuckets":
        return "refused"
    return "missing" if is_far and not case.seen and roles & row.anywhere else "refused"


async def tried(rig: Rig, case: Case, client: Any, thing: Thing) -> str:
    """What came of it: done, missing or refused."""
    try:
        answer = await asyncio.to_thread(case.call, client, thing, rig.source)
    except botocore.exceptions.ClientError as error:
        code, http = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code.endswith((".NotFound", "InvalidManifest", "NoSuchEntity")):
            outcome = "missing"
        else:
            assert http == 403 and code in ("UnauthorizedOperation", "AccessDenied", "403"), error
            outcome = "refused"
    else:
        outcome = "done" if answer else "missing"
    if case.done is not None:
        changed = await case.done(rig, thing)
        if outcome == "done" and not changed:
            outcome = "missing"  # nothing of the name: deleting it is no error
        assert changed == (outcome == "done"), outcome
    return outcome


async def walk(rig: Rig, service: str, name: str) -> None:
    case, clients = CASES[service][name], rig.clients[service]
    row = rbac.TABLE.get(name) or rbac.TABLE[name.partition(":")[0]]
    only = case.only or ("" if row.owned else "own")
    ownerships = {only: OWNERS[only]} if only else OWNERS
    found, wanted = {}, {}
    for (subject, roles), (ownership, owner) in itertools.product(SUBJECTS.items(), ownerships.items()):
        thing = await case.make(rig, *owner)
        found[subject, ownership] = await tried(rig, case, clients[subject], thing)
        wanted[subject, ownership] = expected(name, case, roles, ownership)
    assert found == wanted


@pytest.mark.parametrize(("service", "name"), [(service, name) for service, cases in CASES.items() for name in cases])
async def test_action(rig: Rig, service: str, name: str) -> None:
    await walk(rig, service, name)


@pytest.mark.both_directories
async def test_only_administrators_are_told_the_secret_halves_of_others(rig: Rig) -> None:
    bob = (await new_user(rig, *OWNERS["colleague"])).id
    for subject, roles in SUBJECTS.items():
        if roles & rbac.TABLE["DescribeUser"].project:
            told = await asyncio.to_thread(rig.clients[rbac.ADMIN][subject].describe_user, Name=bob)
            assert ("SecretKey" in told) == (rbac.CLOUDADMIN in roles), subject


@pytest.mark.both_directories
async def test_what_is_mixed_is_not_done_at_all(rig: Rig) -> None:
    """One instance among others that must not be touched: none of them is."""
    own, bobs, eves = [await new_instance(rig, *OWNERS[o]) for o in ("own", "colleague", "other")]
    member = rig.clients[rbac.EC2]["member"]
    for more, code in ((bobs, "UnauthorizedOperation"), (eves, "InvalidInstanceID.NotFound")):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            await asyncio.to_thread(member.terminate_instances, InstanceIds=[own.id, more.id])
        assert caught.value.response["Error"]["Code"] == code
        assert own.id not in caught.value.response["Error"]["Message"]
        assert not await terminated(rig, own)
