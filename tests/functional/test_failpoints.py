"""The daemons are killed at every failpoint, with real guests and networks: nothing is lost, done twice or left behind.

One cloud goes through all of it.  Each test starts it with one failpoint set, does what leads there, sees it die of
SIGKILL, starts it without the failpoint and looks at Redis, libvirt, /proc, interfaces, packet rules and files.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

import nova
from nova import failpoint
from nova.flags import FLAGS
from nova.network import models as network_models
from tests.conftest import wait_until
from tests.functional.cloud import ROOT, Cloud, cloud, instances, states, terminate_all

libvirt = pytest.importorskip("libvirt")
from nova.compute.virt import private_libvirtd  # noqa: E402

#: on the way of RunInstances, in its order
RUN = ["cloud.run.recorded", "compute.launch.begin", "network.spec.written", "network.rules.applied",
       "network.bridge.added", "network.bridge.made", "network.bridge.addressed", "network.dnsmasq.written",
       "network.dnsmasq.told", "network.dnsmasq.started", "compute.launch.network_ready", "compute.image.partial",
       "compute.image.fetched",
       "compute.launch.images_ready", "compute.disk.made", "compute.launch.disk_ready", "compute.spawn.defined",
       "compute.launch.spawned"]
#: where files are written into the disk of an instance
INJECTED = ["compute.disk.injected"]
#: where an image is fetched before somebody boots it
PREFETCH = ["compute.prefetch.fetched"]
#: on the way of TerminateInstances of the last instance of a network, in its order
TERMINATE = ["cloud.terminate.recorded", "compute.terminate.begin", "compute.destroy.stopped",
             "compute.terminate.destroyed", "compute.terminate.files_removed", "compute.terminate.recorded",
             "network.remove.dnsmasq", "network.remove.bridge", "network.remove.rules"]
#: where a network that stays is told of an instance that comes or goes
SHARED = ["network.spec.written", "network.rules.applied", "network.dnsmasq.written", "network.dnsmasq.told"]
#: on the way of an object into the store, out of it, and into an image
STORE = ["objectstore.put.published", "objectstore.put.committed", "objectstore.delete.committed",
         "objectstore.complete.committed"]
IMAGE = ["image.file.made", "image.published", "image.committed"]
#: on the way of an image out of the object store
REMOVED = ["image.removed"]
#: on the way of CopyImage and of CreateImage, in its order
COPY = ["cloud.copy_image.recorded"]
CAPTURE = ["cloud.create_image.recorded", "compute.capture.shut_down", "compute.capture.begun",
           "compute.capture.copied", "image.capture.received", "image.capture.recorded", "compute.capture.sent",
           "compute.capture.recorded"]
#: tests.functional.test_objectstore_many_versions has them
VERSIONS = ["objectstore.mark.committed"]

PART = 5 << 20


def test_every_failpoint_is_tested() -> None:
    for module in pkgutil.walk_packages(nova.__path__, "nova."):
        if module.name not in ("nova.compute.virt.libvirtd_launcher",):
            importlib.import_module(module.name)
    # the others of the object store: test_objectstore_crashes.py, and with another S3 behind it test_objectstore_s3.py
    named = {*RUN, *INJECTED, *PREFETCH, *TERMINATE, *STORE, *IMAGE, *REMOVED, *COPY, *CAPTURE, *VERSIONS}
    assert {n for n in failpoint.names() if not n.startswith(("objectstore.", "s3files."))} == {
        *RUN, *INJECTED, *PREFETCH, *TERMINATE, *IMAGE, *REMOVED, *COPY, *CAPTURE}
    assert named <= set(failpoint.names())


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    """One cloud for all; it has its images, and nothing runs in it."""
    with cloud("--libvirt_type=qemu", "--converge_interval=2") as made:
        made.start()
        assert made.machine_image
        yield made


class Witness:
    """What is really there, read past Nova."""

    def __init__(self, the_cloud: Cloud):
        self.cloud = the_cloud
        self.redis = the_cloud.redis_client()

    def domains(self) -> dict[str, bool]:
        """libvirt's domains by name, and whether they run."""
        connection = libvirt.open(private_libvirtd.uri(self.cloud.state / "libvirt"))
        try:
            return {domain.name(): bool(domain.isActive()) for domain in connection.listAllDomains()}
        finally:
            connection.close()

    def processes(self, *words: str) -> list[int]:
        """The processes whose command line has all of these words and this cloud's directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if str(self.cloud.state) in line and all(word in line for word in words):
                found.append(int(path.parent.name))
        return found

    def bridge(self) -> str:
        """What the project's bridge is called, by its record."""
        return "br" + str(self.redis.hget("nova:network:admin", "allotment")).split(",")[0]

    def qemus(self) -> list[int]:
        """The QEMU processes."""
        return self.processes("qemu-system", "guest=")

    def bridges(self) -> list[str]:
        """The bridges that are there, finished or not."""
        out = subprocess.run(["ip", "-json", "link", "show", "type", "bridge"], capture_output=True, check=True).stdout
        return [link["ifname"] for link in json.loads(out or b"[]") if link.get("ifname")]

    def rules(self) -> list[str]:
        """The packet rules and chains that are Nova's."""
        out = subprocess.run(["iptables-save"], capture_output=True, check=True, text=True).stdout
        return [line for line in out.splitlines() if "nova-" in line]

    def hosts(self) -> list[str]:
        """dnsmasq's static hosts, of all networks: MAC,address,name."""
        return [line for path in (self.cloud.state / "networks").glob("*/hosts")
                for line in path.read_text().splitlines()]

    def directories(self) -> list[str]:
        """The instances' directories."""
        return sorted(path.name for path in (self.cloud.state / "instances").iterdir())

    def records(self) -> list[dict[str, str]]:
        """The instances' records."""
        return [self.redis.hgetall(f"nova:instance:{id}") for id in self.redis.smembers("nova:instances")]

    def keys(self, pattern: str) -> list[str]:
        """Redis' keys of this pattern."""
        return sorted(self.redis.scan_iter(f"nova:{pattern}", count=1000))

    def claims(self) -> dict[str, str]:
        """What is claimed of this host."""
        return self.redis.hgetall(f"nova:claims:{FLAGS.host}")

    def owners(self) -> dict[str, str]:
        """The addresses of the network that are taken, and by whom."""
        return self.redis.hgetall("nova:pool:network:admin:owners")

    def lost_files(self) -> list[str]:
        """Files that were being made when the cloud died."""
        kept = {self.redis.hget(key, "file") for key in self.keys("object:*")}
        objects, images = self.cloud.state / "objects", self.cloud.state / "images"
        files = [str(p.relative_to(objects)) for p in objects.glob("??/*")]
        return ([file for file in files if file.removesuffix(".meta") not in kept]
                + [p.name for p in (self.cloud.state / "image_cache").iterdir() if len(p.name) != 64]
                + [p.name for p in images.iterdir()])


@pytest.fixture
def witness(the_cloud: Cloud) -> Iterator[Witness]:
    """What is really there."""
    made = Witness(the_cloud)
    yield made
    made.redis.close()


@pytest.fixture
def clean_cloud(the_cloud: Cloud, witness: Witness) -> Iterator[Cloud]:
    """The cloud, not running and empty; after the test, all instances are terminated and nothing may be left."""
    the_cloud.kill9()
    yield the_cloud
    if the_cloud.started_with or not the_cloud.alive:
        the_cloud.kill9()
        the_cloud.start()
    terminate_all(the_cloud.ec2)
    check_nothing_is_left(witness)


def run_one(the_cloud: Cloud, token: str) -> Any:
    """Ask for an instance that uses everything an instance can have; None when the cloud dies before it answers."""
    ec2 = the_cloud.ec2
    try:
        return ec2.run_instances(ImageId=the_cloud.machine_image, InstanceType="m1.tiny", MinCount=1, MaxCount=1,
                                 ClientToken=token, UserData="#!/bin/sh\necho hello\n")["Instances"][0]["InstanceId"]
    except (botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError):
        return None


def die(the_cloud: Cloud) -> None:
    """See the cloud die at its failpoint."""
    assert the_cloud.wait_dead(20) == -signal.SIGKILL, the_cloud.last_words()


def all_running(the_cloud: Cloud, count: int) -> list[dict[str, Any]]:
    """Wait until all instances run; they must be `count`."""
    ec2 = the_cloud.ec2
    wait_until(lambda: set(states(ec2).values()) == {"running"}, 30, f"running instances, not {states(ec2)}")
    found = [i for i in instances(ec2) if i["State"]["Name"] == "running"]
    assert len(found) == count
    return found


def check_runs_once(witness: Witness, *running: dict[str, Any]) -> None:
    """Each instance has one of everything, and nobody else has anything."""
    ids = sorted(i["InstanceId"] for i in running)
    macs = {r["id"]: r["mac"] for r in witness.records()}
    assert witness.domains() == {f"instance-{id}": True for id in ids}
    for id in ids:
        assert len(witness.processes("qemu-system", f"guest=instance-{id}")) == 1
    assert len(witness.qemus()) == len(ids)
    assert witness.directories() == ids
    assert sorted(witness.hosts()) == sorted(
        f"{macs[i['InstanceId']]},{i['PrivateIpAddress']},{i['InstanceId']}" for i in running)
    assert len(witness.processes("dnsmasq", f"--interface={witness.bridge()}")) == 1
    assert witness.bridges() == [witness.bridge()]
    assert len(witness.rules()) == len(set(witness.rules())) > 0
    assert witness.owners() == {i["PrivateIpAddress"]: i["InstanceId"] for i in running}
    free = witness.redis.lrange("nova:pool:network:admin", 0, -1)
    assert len({*free, *witness.owners()}) == len(free) + len(ids) == FLAGS.network_size - 4
    assert witness.claims() == {"memory_mb": str(512 * len(ids)), "vcpus": str(len(ids))}
    assert witness.keys("user_data:*") == [f"nova:user_data:{id}" for id in ids]


def check_nothing_is_left(witness: Witness) -> None:
    """All instances are terminated: no trace of them is found but their records, within a moment."""
    def left() -> dict[str, Any]:
        found = {
            "domains": witness.domains(), "processes": witness.qemus() + witness.processes("dnsmasq"),
            "directories": witness.directories(), "hosts": witness.hosts(), "bridges": witness.bridges(),
            "rules": witness.rules(), "networks": [p.name for p in (witness.cloud.state / "networks").glob("br*")],
            "records": [r for r in witness.records() if r["state"] != "terminated" or r["private_ip"]],
            "keys": [key for pattern in ("user_data:*", "network:*", "pool:network:*", "instances:by-private_ip:*")
                     for key in witness.keys(pattern)],
            "claims": [value for value in witness.claims().values() if value != "0"],
            "allotments": witness.redis.hgetall("nova:pool:networks:owners"), "files": witness.lost_files()}
        return {name: value for name, value in found.items() if value}
    try:
        wait_until(lambda: not left(), 20)
    except AssertionError:
        raise AssertionError(f"still there: {left()}") from None
    free = witness.redis.lrange("nova:pool:networks", 0, -1)
    assert sorted(free) == sorted(network_models.all_allotments())


@pytest.mark.parametrize("point", RUN)
def test_run_instances(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    if point in ("compute.image.partial", "compute.image.fetched"):
        for path in (clean_cloud.state / "image_cache").iterdir():
            path.unlink()
    token = uuid.uuid4().hex
    clean_cloud.start(f"--failpoint={point}")
    run_one(clean_cloud, token)
    die(clean_cloud)
    [record] = [r for r in witness.records() if r["state"] != "terminated"]
    clean_cloud.start()
    [instance] = all_running(clean_cloud, 1)
    assert instance["InstanceId"] == record["id"]
    assert run_one(clean_cloud, token) == record["id"]  # what a client does that got no answer
    check_runs_once(witness, *all_running(clean_cloud, 1))


@pytest.mark.parametrize("point", INJECTED)
def test_injection(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    clean_cloud.start(f"--failpoint={point}", "--injection=key,hostname", "--injection_required")
    run_one(clean_cloud, uuid.uuid4().hex)
    die(clean_cloud)
    clean_cloud.start("--injection=key,hostname", "--injection_required")
    check_runs_once(witness, *all_running(clean_cloud, 1))
    assert [p.name for p in (clean_cloud.state / "instances").glob("*/*.part*")] == []


@pytest.mark.parametrize("point", PREFETCH)
def test_prefetch(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    clean_cloud.start(f"--failpoint={point}")
    image, host = clean_cloud.machine_image, FLAGS.host
    command = [sys.executable, str(ROOT / "bin/nova-manage"), f"--state_path={clean_cloud.state}", "image", "prefetch",
               image, "--all"]
    manage = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    die(clean_cloud)
    manage.kill()
    manage.communicate()
    clean_cloud.start()
    key = f"nova:prefetch:{host}:{image}"
    wait_until(lambda: witness.redis.hget(key, "state") == "done", 30, "the prefetch")
    files = [p.name for p in (clean_cloud.state / "image_cache").iterdir()]
    assert len(files) >= 3 and all(len(name) == 64 for name in files)


@pytest.mark.parametrize("point", TERMINATE)
def test_terminate_instances(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    clean_cloud.start(f"--failpoint={point}")
    id = run_one(clean_cloud, uuid.uuid4().hex)
    check_runs_once(witness, *all_running(clean_cloud, 1))
    ec2 = clean_cloud.ec2
    try:
        ec2.terminate_instances(InstanceIds=[id])
    except (botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError):
        assert point != "compute.terminate.recorded"  # by then it has answered
    die(clean_cloud)
    clean_cloud.start()
    wait_until(lambda: not states(ec2), 20, "the end of the instance")
    [ended] = instances(ec2, InstanceIds=[id])
    assert ended["State"]["Name"] == "terminated"
    assert ended["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    check_nothing_is_left(witness)


@pytest.mark.parametrize("point", SHARED)
def test_another_instance_in_a_network(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    """A second instance's coming is cut short in the network, and then its going; the first one runs on throughout."""
    clean_cloud.start()
    first = run_one(clean_cloud, uuid.uuid4().hex)
    check_runs_once(witness, *all_running(clean_cloud, 1))
    qemu = witness.qemus()
    clean_cloud.kill9()
    clean_cloud.start("--failpoint=cloud.run.recorded")
    run_one(clean_cloud, uuid.uuid4().hex)
    die(clean_cloud)
    clean_cloud.launch(f"--failpoint={point}")
    die(clean_cloud)
    clean_cloud.start("--failpoint=compute.terminate.recorded")
    ec2 = clean_cloud.ec2
    check_runs_once(witness, *all_running(clean_cloud, 2))
    ec2.terminate_instances(InstanceIds=[id for id in states(ec2) if id != first])
    die(clean_cloud)
    clean_cloud.launch(f"--failpoint={point}")
    die(clean_cloud)
    clean_cloud.start()
    wait_until(lambda: len(witness.hosts()) == 1, 10, "the end of the second one's host entry")
    [running] = all_running(clean_cloud, 1)
    assert running["InstanceId"] == first
    check_runs_once(witness, running)
    assert witness.qemus() == qemu


@pytest.mark.parametrize("point", STORE)
def test_object_store(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    """An object is replaced, completed or deleted: it is the old one or the new one, and its file is the only one."""
    clean_cloud.start()
    s3, key = clean_cloud.s3, f"{point}.bin"
    s3.create_bucket(Bucket="failpoints")
    s3.put_object(Bucket="failpoints", Key=key, Body=b"old" * 100_000)
    upload = s3.create_multipart_upload(Bucket="failpoints", Key=key)["UploadId"]
    parts = [{"PartNumber": n, "ETag": s3.upload_part(Bucket="failpoints", Key=key, UploadId=upload, PartNumber=n,
                                                      Body=bytes([n]) * PART)["ETag"]} for n in (1, 2)]
    clean_cloud.kill9()
    clean_cloud.start(f"--failpoint={point}")
    with pytest.raises((botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError)):
        if point.startswith("objectstore.put"):
            s3.put_object(Bucket="failpoints", Key=key, Body=b"new" * 100_000)
        elif point.startswith("objectstore.complete"):
            s3.complete_multipart_upload(Bucket="failpoints", Key=key, UploadId=upload,
                                         MultipartUpload={"Parts": parts})
        else:
            s3.delete_object(Bucket="failpoints", Key=key)
    die(clean_cloud)
    clean_cloud.start("--objects_orphan_age=0", "--objects_sweep_interval=1")
    if point == "objectstore.delete.committed":
        assert s3.list_objects_v2(Bucket="failpoints")["KeyCount"] == 0
    else:
        body = s3.get_object(Bucket="failpoints", Key=key)["Body"].read()
        assert body == {"objectstore.put.published": b"old" * 100_000, "objectstore.put.committed": b"new" * 100_000,
                        "objectstore.complete.committed": b"\1" * PART + b"\2" * PART}[point]
        assert [o["Key"] for o in s3.list_objects_v2(Bucket="failpoints")["Contents"]] == [key]
        s3.delete_object(Bucket="failpoints", Key=key)
    for left in s3.list_multipart_uploads(Bucket="failpoints").get("Uploads", []):
        s3.abort_multipart_upload(Bucket="failpoints", Key=left["Key"], UploadId=left["UploadId"])
    wait_until(lambda: not witness.lost_files(), 10, f"the end of files of no record: {witness.lost_files()}")
    assert witness.keys("part*") == []
    s3.delete_bucket(Bucket="failpoints")


@pytest.mark.parametrize(("point", "form"), [*((point, form) for point in IMAGE for form in ("raw", "qcow2")),
                                             *((point, "raw") for point in REMOVED)])
def test_image(clean_cloud: Cloud, witness: Witness, tmp_path: Path, point: str, form: str) -> None:
    clean_cloud.start(f"--failpoint={point}", "--objects_orphan_age=0", "--objects_sweep_interval=1")
    ec2, location = clean_cloud.ec2, "starter/machine.ext4"
    if form == "qcow2":  # which is converted
        source, location = Path(os.environ["NOVA_STARTER_PATH"]) / "machine.ext4", "starter/killed.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source), str(tmp_path / "qcow2")],
                       check=True, timeout=60)
        clean_cloud.s3.put_object(Bucket="starter", Key="killed.qcow2", Body=(tmp_path / "qcow2").read_bytes())
    gone = (botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError)
    with contextlib.suppress(*gone):
        image = ec2.register_image(Name="killed", ImageLocation=location)["ImageId"]
        assert point in REMOVED
        ec2.deregister_image(ImageId=image)
    die(clean_cloud)
    clean_cloud.start("--objects_orphan_age=0", "--objects_sweep_interval=1")

    def registered() -> list[str]:
        query = [{"Name": "name", "Values": ["killed"]}, {"Name": "state", "Values": ["available"]}]
        return [i["ImageId"] for i in ec2.describe_images(Filters=query)["Images"]]
    if point in IMAGE:
        [image] = wait_until(registered, 10, "the image")  # type: ignore[misc]
        wait_until(lambda: not witness.lost_files(), 10, f"the end of files of no record: {witness.lost_files()}")
        made = [o for o in map(witness.redis.hgetall, witness.keys("object:*")) if o["key"] == image]
        size = (clean_cloud.state / "objects" / made[0]["file"]).stat().st_size
        assert str(size) == witness.redis.hget(f"nova:image:{image}", "size") != "0"
        ec2.deregister_image(ImageId=image)
    wait_until(lambda: image not in witness.redis.zrange("nova:bucket-keys:_images", 0, -1), 10,
               "the end of the image's object")
    wait_until(lambda: not witness.lost_files(), 10, f"the end of files of no record: {witness.lost_files()}")


def named(ec2: Any, name: str) -> list[dict[str, Any]]:
    """The images of a name that are made, or will never be."""
    found = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [name]}])["Images"]
    return [image for image in found if image["State"] != "pending"]


@pytest.mark.parametrize("point", [*COPY, *CAPTURE])
def test_image_of_what_is_there(clean_cloud: Cloud, witness: Witness, point: str) -> None:
    """A copy, or an image of an instance, is made once and whole; the guest runs on, nothing of the work is left."""
    swept = ("--objects_orphan_age=0", "--objects_sweep_interval=1")
    clean_cloud.start(f"--failpoint={point}", *swept)
    ec2 = clean_cloud.ec2
    if point in CAPTURE:
        id = run_one(clean_cloud, uuid.uuid4().hex)
        console = clean_cloud.state / "instances" / id / "console.log"
        all_running(clean_cloud, 1)
        wait_until(lambda: "NOVA ready" in console.read_text(errors="replace"), 60, "the guest's start")
    gone = (botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError)
    with contextlib.suppress(*gone):
        if point in COPY:
            ec2.copy_image(Name=point, SourceImageId=clean_cloud.machine_image, SourceRegion="nova")
        else:
            ec2.create_image(Name=point, InstanceId=id, NoReboot=point != "compute.capture.shut_down")
    die(clean_cloud)
    clean_cloud.start(*swept)
    [image] = wait_until(lambda: named(ec2, point), 60, "the image")  # type: ignore[misc]
    assert image["State"] == "available", image
    if point in CAPTURE:
        check_runs_once(witness, *all_running(clean_cloud, 1))
        wait_until(lambda: not list((clean_cloud.state / "captures").iterdir()), 10, "the end of the copy")
        assert witness.keys("capture*") == []
        wait_until(lambda: not witness.keys("bucket-keys:_captures"), 20, "the end of what was sent")
    ec2.deregister_image(ImageId=image["ImageId"])
    wait_until(lambda: not witness.lost_files(), 10, f"the end of files of no record: {witness.lost_files()}")


def test_killed_at_any_moment(clean_cloud: Cloud, witness: Witness) -> None:
    """Killed again and again while instances come and go, at moments that no failpoint names."""
    clean_cloud.start()
    for delay in (0.03, 0.1, 0.2, 0.35, 0.6):
        ec2 = clean_cloud.ec2
        with contextlib.suppress(botocore.exceptions.ConnectionClosedError):
            ec2.run_instances(ImageId=clean_cloud.machine_image, InstanceType="m1.tiny", MinCount=2, MaxCount=2,
                              UserData="#!/bin/sh\n")
            ec2.terminate_instances(InstanceIds=sorted(states(ec2))[1:3])  # one stays
            time.sleep(delay)  # the moment is the point
        clean_cloud.kill9()
        clean_cloud.start()
    wanted = [r for r in witness.records() if r["wanted"] == "running"]
    wait_until(lambda: states(ec2) == {r["id"]: "running" for r in wanted}, 30, "what is wanted")
    wait_until(lambda: len(witness.hosts()) == len(wanted), 10, "the end of the others' host entries")
    assert wanted
    check_runs_once(witness, *all_running(clean_cloud, len(wanted)))
