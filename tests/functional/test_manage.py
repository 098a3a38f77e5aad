"""nova-manage on a real cloud: what each command does, and what it refuses."""

import io
import json
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.flags import FLAGS
from tests import images as contents
from tests.conftest import environment_without_aws, wait_until
from tests.functional.cloud import ROOT, Cloud, cloud, outcome, states


class Manage:
    """nova-manage on one cloud."""

    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "bin/nova-manage"), f"--state_path={self.cloud.state}", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=90, env=environment_without_aws(), cwd=self.cloud.directory)

    def __call__(self, *words: str) -> str:
        """What it prints; it must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *words: str) -> list[dict]:
        """The list that it prints."""
        return json.loads(self("--json", *words))

    def fails(self, code: int, *words: str) -> str:
        """What it says on standard error; it must end with this exit code."""
        done = self.run(*words)
        assert done.returncode == code, f"{words}: {done.returncode} {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr

    def client(self, service: str, user: dict, project: str):
        return self.cloud.client(service, aws_access_key_id=f"{user['access']}:{project}",
                                 aws_secret_access_key=user["secret"])


@pytest.fixture(scope="module")
def manage(directory_driver: str) -> Iterator[Manage]:
    with cloud("--compute_driver=fake", "--converge_interval=0.5", "--auth_memo_seconds=0",
               directory=directory_driver) as made:
        made.start()
        assert made.machine_image
        yield Manage(made)


# -- users ------------------------------------------------------------------------------------------------------------

@pytest.mark.both_directories
def test_users_come_and_go(manage):
    [ann] = manage.json("user", "create", "u-ann")
    assert {"user": "u-ann", "access": ann["access"], "admin": False, "locked": False} in manage.json("user", "list")
    assert "u-ann" in manage("user", "list")
    assert "already exists" in manage.fails(1, "user", "create", "u-ann")
    assert "cannot be undone" in manage.fails(2, "user", "delete", "u-ann")
    manage("user", "delete", "--yes", "u-ann")
    assert "does not exist" in manage.fails(1, "user", "delete", "--yes", "u-ann")
    assert "u-ann" not in manage("user", "list")


def test_users_with_keys_of_their_own_and_administrators(manage):
    [root] = manage.json("user", "admin", "u-root", "--access", "ROOTKEY", "--secret", "rootsecret")
    assert root == {"user": "u-root", "access": "ROOTKEY", "secret": "rootsecret"}
    assert "Another user has this access key" in manage.fails(1, "user", "create", "u-other", "--access", "ROOTKEY")
    [row] = manage.json("user", "modify", "u-root", "--admin", "no", "--access", "OTHERKEY")
    assert (row["admin"], row["access"]) == (False, "OTHERKEY")
    assert "nothing to change" in manage.fails(1, "user", "modify", "u-root")
    assert "is no name" in manage.fails(1, "user", "create", "a b*)(")


def test_a_locked_user_is_refused_until_unlocked(manage):
    [user] = manage.json("user", "create", "u-lock")
    manage("project", "create", "u-lock", "u-lock")
    ec2 = manage.client("ec2", user, "u-lock")
    ec2.describe_regions()
    manage("user", "lock", "u-lock")
    assert outcome(ec2.describe_regions) == "AuthFailure"
    manage("user", "unlock", "u-lock")
    ec2.describe_regions()


@pytest.mark.both_directories
def test_a_rotated_key_replaces_the_old_one(manage):
    [user] = manage.json("user", "create", "u-rotate")
    manage("project", "create", "u-rotate", "u-rotate")
    [new] = manage.json("user", "rotate", "--yes", "u-rotate")
    assert outcome(manage.client("ec2", user, "u-rotate").describe_regions) == "AuthFailure"
    manage.client("ec2", new, "u-rotate").describe_regions()


def test_exports_are_what_a_shell_needs(manage):
    [user] = manage.json("user", "create", "u-exports")
    script = manage("user", "exports", "u-exports", "p") + "\necho $EC2_ACCESS_KEY $EC2_URL"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{user['access']}:p", f"http://127.0.0.1:{manage.cloud.ec2_port}/services/Cloud"]


def test_a_terminal_is_asked(manage):
    manage("user", "create", "u-asked")
    for answer, code in ((b"n\n", 2), (b"y\n", 0)):
        master, slave = pty.openpty()
        process = subprocess.Popen(manage.command("user", "delete", "u-asked"), stdin=slave, stdout=slave, stderr=slave,
                                   env=environment_without_aws(), cwd=manage.cloud.directory)
        os.write(master, answer)
        assert process.wait(30) == code
        os.close(master)
        os.close(slave)
    assert "u-asked" not in manage("user", "list")


# -- projects and what they own ---------------------------------------------------------------------------------------

def test_projects_and_their_members(manage):
    for name in ("p-ann", "p-bob"):
        manage("user", "create", name)
    manage("project", "create", "p-web", "p-ann", "--description", "the shop")
    assert "already exists" in manage.fails(1, "project", "create", "p-web", "p-ann")
    assert "'nobody' does not exist" in manage.fails(1, "project", "create", "p-x", "nobody")
    manage("project", "add", "p-web", "p-bob")
    [row] = [p for p in manage.json("project", "list") if p["project"] == "p-web"]
    assert row == {"project": "p-web", "manager": "p-ann", "members": ["p-ann", "p-bob"], "description": "the shop"}
    assert "p-web" in manage.fails(1, "user", "delete", "--yes", "--scrub", "p-ann")
    assert "manages" in manage.fails(1, "project", "remove", "p-web", "p-ann")
    manage("project", "modify", "p-web", "--manager", "p-bob")
    manage("project", "remove", "p-web", "p-ann")
    manage("user", "delete", "--yes", "p-ann")
    manage("project", "delete", "--yes", "p-web")
    assert "does not exist" in manage.fails(1, "project", "delete", "--yes", "p-web")


def owner(manage, name):
    """A user with a project of an instance, an image, a bucket with an object and an upload, and a key pair."""
    [user] = manage.json("user", "create", name)
    manage("project", "create", name, name)
    for role in ("sysadmin", "netadmin"):
        manage("role", "add", name, role)
        manage("role", "add", name, role, name)
    ec2, s3 = manage.client("ec2", user, name), manage.client("s3", user, name)
    s3.create_bucket(Bucket=f"{name}-bucket")
    s3.put_object(Bucket=f"{name}-bucket", Key="disk/ä", Body=contents.machine())
    s3.create_multipart_upload(Bucket=f"{name}-bucket", Key="unfinished")
    image = ec2.register_image(Name="mine", ImageLocation=f"{name}-bucket/disk/ä")["ImageId"]
    wait_until(lambda: ec2.describe_images(ImageIds=[image])["Images"][0]["State"] == "available", 30, "the image")
    ec2.create_key_pair(KeyName="mine")
    ec2.run_instances(ImageId=image, MinCount=2, MaxCount=2, KeyName="mine")
    return user, ec2, s3


def test_a_project_that_owns_something_is_refused_and_scrubbed(manage):
    _, ec2, s3 = owner(manage, "p-own")
    said = manage.fails(1, "project", "delete", "--yes", "p-own")
    for what in ("2 instances", "1 image (", "1 bucket (p-own-bucket)", "1 key pair (mine)", "--scrub"):
        assert what in said
    assert "cannot be undone" in manage.fails(2, "project", "delete", "--scrub", "p-own")
    assert len(states(ec2)) == 2
    removed = {row["kind"]: row["removed"] for row in manage.json("project", "scrub", "--yes", "p-own")}
    assert set(removed) == {"instances", "images", "buckets", "key pairs"}
    assert (states(ec2), s3.list_buckets()["Buckets"], ec2.describe_key_pairs()["KeyPairs"]) == ({}, [], [])
    assert manage.json("project", "scrub", "--yes", "p-own") == []
    manage("project", "delete", "--yes", "p-own")
    manage("user", "delete", "--yes", "p-own")
    assert manage("cloud", "verify") == "(none)\n"


def test_delete_with_scrub_does_both(manage):
    user, ec2, _ = owner(manage, "p-both")
    manage("project", "delete", "--scrub", "--yes", "p-both")
    assert outcome(ec2.describe_regions) == "AuthFailure"
    assert "p-both" not in manage("project", "list")


def test_a_user_who_owns_something_is_refused_and_scrubbed(manage):
    owner(manage, "p-boss")
    [user] = manage.json("user", "create", "p-worker")
    manage("project", "add", "p-boss", "p-worker")
    ec2 = manage.client("ec2", user, "p-boss")
    image = manage.client("ec2", user, "p-boss").describe_images(Owners=["self"])["Images"][0]["ImageId"]
    [made] = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)["Instances"]
    assert f"1 instance ({made['InstanceId']})" in manage.fails(1, "user", "delete", "--yes", "p-worker")
    manage("user", "delete", "--yes", "--scrub", "p-worker")
    left = [i for i in manage.json("instance", "list", "--project", "p-boss")]
    assert len(left) == 2 and {i["user"] for i in left} == {"p-boss"}


def test_credentials(manage, tmp_path):
    manage("user", "create", "p-zip")
    manage("user", "create", "p-none")
    manage("project", "create", "p-zip", "p-zip")
    target = tmp_path / "ann.zip"
    manage("project", "zip", "p-zip", "p-zip", str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    assert {"novarc", "pk.pem", "cert.pem", "cacert.pem"} <= set(
        zipfile.ZipFile(io.BytesIO(target.read_bytes())).namelist())
    assert "cannot write" in manage.fails(1, "project", "zip", "p-zip", "p-zip", str(target))
    assert "no member" in manage.fails(1, "project", "zip", "p-zip", "p-none", str(tmp_path / "x.zip"))
    manage("project", "environment", "p-zip", "p-zip", str(tmp_path / "creds"))
    assert (tmp_path / "creds" / "novarc").exists()


def test_limits(manage):
    user, ec2, _ = owner(manage, "p-quota")
    assert {"limit": "instances", "maximum": 100, "used": 2} in manage.json("project", "quota", "p-quota")
    changed = manage.json("project", "quota", "p-quota", "instances", "2")
    assert {"limit": "instances", "maximum": 2, "used": 2} in changed
    image = ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"]
    assert outcome(lambda: ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)) == "InstanceLimitExceeded"
    manage("project", "quota", "p-quota", "instances", "default")
    ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)
    for words in (("nonsense", "1"), ("instances", "many"), ("instances",)):
        manage.fails(1, "project", "quota", "p-quota", *words)


# -- roles, hosts, lists ----------------------------------------------------------------------------------------------

def test_roles(manage):
    manage("user", "create", "r-ann")
    manage("user", "create", "r-bob")
    manage("project", "create", "r-web", "r-ann")
    manage.fails(1, "role", "has", "r-ann", "netadmin", "r-web")
    manage("role", "add", "r-ann", "netadmin")
    manage("role", "add", "r-ann", "netadmin", "r-web")
    manage("role", "has", "r-ann", "netadmin", "r-web")
    assert {row["role"] for row in manage.json("role", "list", "r-ann", "r-web")} == {"member", "netadmin",
                                                                                      "projectmanager"}
    manage("role", "remove", "r-ann", "netadmin", "r-web")
    manage.fails(1, "role", "has", "r-ann", "netadmin", "r-web")
    assert "no member" in manage.fails(1, "role", "add", "r-bob", "netadmin", "r-web")
    assert "globally" in manage.fails(1, "role", "add", "r-ann", "itsec", "r-web")
    assert "invalid choice" in manage.fails(2, "role", "add", "r-ann", "king")
    assert "cloudadmin" in manage("role", "list")


def test_instances_are_locked_and_unlocked(manage):
    ec2 = manage.cloud.ec2
    run = ec2.run_instances(ImageId=manage.cloud.machine_image, MinCount=1, MaxCount=1)
    id = run["Instances"][0]["InstanceId"]

    def is_locked() -> bool:
        [row] = [row for row in manage.json("instance", "list") if row["instance"] == id]
        return row["locked"]
    assert id in manage("instance", "lock", id) and is_locked()
    assert outcome(lambda: ec2.terminate_instances(InstanceIds=[id])) == "OperationNotPermitted"
    assert id in manage("instance", "unlock", id) and not is_locked()
    ec2.terminate_instances(InstanceIds=[id])
    assert "does not exist" in manage.fails(1, "instance", "lock", "i-00000000")


def test_a_disabled_host_gets_no_instances(manage):
    host = FLAGS.host
    run = {"ImageId": manage.cloud.machine_image, "MinCount": 1, "MaxCount": 1}
    manage("host", "disable", host, "--reason", "a new disk")
    assert outcome(lambda: manage.cloud.ec2.run_instances(**run)) == "InsufficientInstanceCapacity"
    [row] = manage.json("host", "list")
    assert (row["host"], row["enabled"], row["dead"]) == (host, False, [])
    assert "a new disk" in manage("host", "describe", host)
    manage("host", "disable", host, "--reason", "two disks")
    assert "two disks" in manage("host", "describe", host)
    manage("host", "enable", host)
    [made] = manage.cloud.ec2.run_instances(**run)["Instances"]
    listed = {row["instance"]: row["host"] for row in manage.json("instance", "list", "--project", "admin")}
    assert listed[made["InstanceId"]] == host
    for words in (("describe",), ("disable",), ("enable",)):
        assert "does not exist" in manage.fails(1, "host", *words, "nohost")


def test_lists(manage):
    assert {row["service"] for row in manage.json("service", "list")} >= {"nova-api", "nova-compute", "nova-network"}
    assert all(row["alive"] for row in manage.json("service", "list"))
    assert manage.cloud.machine_image in {row["image"] for row in manage.json("image", "list", "--project", "admin")}
    assert manage.json("image", "list", "--project", "none") == []
    for thing in ("network", "instance", "image"):
        assert isinstance(manage.json(thing, "list"), list)


# -- the whole --------------------------------------------------------------------------------------------------------

def test_verify_finds_and_repairs(manage):
    assert manage("cloud", "verify") == "(none)\n"
    with manage.cloud.redis_client() as redis:
        redis.sadd("nova:images", "ami-00000000")
        redis.hincrby(f"nova:claims:{FLAGS.host}", "vcpus", 3)
    done = manage.run("--json", "cloud", "verify")
    assert done.returncode == 1
    assert {(row["check"], row["about"]) for row in json.loads(done.stdout)} == {
        ("index", "nova:image:ami-00000000"), ("claim", FLAGS.host)}
    repaired = manage.json("cloud", "verify", "--repair")
    assert [row["repair"] for row in repaired] == ["done", "done"]
    assert manage("cloud", "verify") == "(none)\n"


def test_the_audit_stream_knows_and_has_no_secrets(manage):
    [user] = manage.json("user", "create", "a-ann")
    [other] = manage.json("user", "rotate", "--yes", "a-ann")
    with manage.cloud.redis_client() as redis:
        entries = [fields for _, fields in redis.xrange("nova:events")]
    mine = [e for e in entries if '"target": "a-ann"' in e["details"]]
    assert [e["what"] for e in mine] == ["user.create", "user.rotate"]
    assert not any(secret in str(entries) for secret in (user["secret"], other["secret"]))


def test_scripts_are_thin():
    assert len(Path(ROOT / "bin/nova-manage").read_text().splitlines()) < 15


def test_an_image_is_prefetched(manage):
    image = manage.cloud.machine_image
    assert "say which hosts" in manage.fails(2, "image", "prefetch", image)
    assert "no nova-compute is alive on nowhere" in manage.fails(2, "image", "prefetch", image, "--host", "nowhere")
    assert "does not exist" in manage.fails(1, "image", "prefetch", "ami-00000000", "--all")
    for path in (manage.cloud.state / "image_cache").glob("*"):
        path.unlink()
    [row] = manage.json("image", "prefetch", image, "--all")
    assert (row["host"], row["state"], row["reason"]) == (FLAGS.host, "done", None)
    assert len(list((manage.cloud.state / "image_cache").iterdir())) >= 1
    assert "done" in manage("image", "prefetch", image, "--host", FLAGS.host)
