"""Every change of identity, role or limit is in the audit stream: a walk through all commands and actions there are.

A command or action that is new has to be put into one of the tables here: it changes something, or it only reads.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nova.auth import rbac
from nova.flags import FLAGS
from nova.manage import cli
from tests import images
from tests.conftest import wait_until
from tests.functional.cloud import cloud, outcome, states
from tests.functional.test_admin_api import Api
from tests.functional.test_manage import Manage

#: commands that change something, in an order in which they work, the event that each leaves, and what it is about
COMMANDS: list[tuple[str, str, str, str]] = [
    ("user admin", "w-root", "user.create", "w-root"),
    ("user create", "w-ann", "user.create", "w-ann"),
    ("user create", "w-bob", "user.create", "w-bob"),
    ("user modify", "w-ann --admin yes", "user.modify", "w-ann"),
    ("user rotate", "--yes w-bob", "user.rotate", "w-bob"),
    ("user lock", "w-bob", "user.lock", "w-bob"),
    ("user unlock", "w-bob", "user.unlock", "w-bob"),
    ("project create", "w-web w-ann", "project.create", "w-web"),
    ("project modify", "w-web --description shop", "project.modify", "w-web"),
    ("project add", "w-web w-bob", "project.add", "w-web"),
    ("project zip", "w-web w-bob w.zip", "project.zip", "w-web"),
    ("project environment", "w-web w-bob w-directory", "project.environment", "w-web"),
    ("project quota", "w-web instances 3", "quota.set", "project:w-web"),
    ("role add", "w-bob netadmin w-web", "role.add", "w-bob"),
    ("role remove", "w-bob netadmin w-web", "role.remove", "w-bob"),
    ("project scrub", "--yes w-web", "project.scrub", "w-web"),
    ("project remove", "w-web w-bob", "project.remove", "w-web"),
    ("project delete", "--yes w-web", "project.delete", "w-web"),
    ("user delete", "--yes w-bob", "user.delete", "w-bob"),
    ("instance lock", "{instance}", "instance.lock", "{instance}"),
    ("instance unlock", "{instance}", "instance.unlock", "{instance}"),
    ("host disable", "{host}", "host.disable", "{host}"),
    ("host enable", "{host}", "host.enable", "{host}"),
    ("cloud verify", "--repair", "cloud.repair", ""),
    ("objectstore reindex", "--yes", "objectstore.reindex", ""),
    ("image prefetch", "{image} --all", "image.prefetch", "{image}"),
    ("image delete", "--yes {image}", "image.deregister", "{image}"),
]
#: what makes use of actions of EC2, which leave events as well
ACTING_COMMANDS = {"image import"}
READING_COMMANDS = {"user list", "user exports", "project list", "role has", "role list", "host list", "host describe",
                    "service list", "network list", "image list", "image show", "image export", "image build-starter",
                    "image build-debian", "instance list", "flags", "completion", "objectstore verify"}
READING = ("Describe", "Get", "List")


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with cloud("--compute_driver=fake", "--converge_interval=0.5", "--auth_memo_seconds=0") as made:
        made.start()
        assert made.machine_image
        yield Api(made)


@pytest.fixture(scope="module")
def instance(api: Api) -> str:
    [made] = api.cloud.ec2.run_instances(ImageId=api.cloud.machine_image, InstanceType="m1.tiny", MinCount=1,
                                         MaxCount=1)["Instances"]
    wait_until(lambda: states(api.cloud.ec2).get(made["InstanceId"]) == "running", 60, "a running instance")
    return str(made["InstanceId"])


class Stream:
    """The audit stream of a cloud."""

    def __init__(self, api: Api):
        self._api = api
        self._last = "-"
        self.new()

    def new(self) -> list[dict[str, Any]]:
        """What has come since the last call."""
        with self._api.cloud.redis_client() as redis:
            found = redis.xrange("nova:events", min=self._last if self._last == "-" else f"({self._last}")
        if found:
            self._last = found[-1][0]
        return [{**fields, "details": json.loads(fields["details"])} for _, fields in found]

    def check(self, began: float, who: str, where: str, what: str, about: str) -> None:
        """There is one more, and it says all there is to say."""
        [event] = self.new()
        assert (event["what"], event["details"].get("target", "")) == (what, about)
        assert event["who"].endswith(who) and event["where"] == where
        assert began - 1 <= float(event["when"]) <= time.time() + 1
        assert len(event["request_id"]) >= 32


def test_the_first_start_is_in_the_stream(api: Api) -> None:
    with api.cloud.redis_client() as redis:
        [first, *_] = [fields for _, fields in redis.xrange("nova:events")]
    assert (first["what"], json.loads(first["details"])) == ("cloud.bootstrap", {"target": "admin"})


def test_every_command_is_here() -> None:
    changing = {command for command, *_ in COMMANDS}
    assert not changing & READING_COMMANDS
    assert changing | ACTING_COMMANDS | READING_COMMANDS == {command.words for command in cli.COMMANDS}


def test_every_command_that_changes_something_leaves_an_event(api: Api, instance: str) -> None:
    manage, stream = Manage(api.cloud), Stream(api)
    values = {"instance": instance, "host": FLAGS.host, "image": str(api.cloud.machine_image)}
    for command, arguments, what, about in COMMANDS:
        if command == "project scrub":
            [ann] = [user for user in manage.json("user", "list") if user["user"] == "w-ann"]
            with api.cloud.redis_client() as redis:
                redis.sadd("nova:key_pairs", "w-web:lost")  # put right by cloud verify, at the end
            user = api.admin().get_user("w-ann")
            assert user.access_key == ann["access"]
            manage.client("ec2", {"access": user.access_key, "secret": user.secret_key}, "w-web").create_key_pair(
                KeyName="mine")
        assert stream.new() == []
        began = time.time()
        manage(*command.split(), *arguments.format(**values).split())
        stream.check(began, f"@{FLAGS.host}", FLAGS.host, what, about.format(**values))
    for words in sorted(READING_COMMANDS):
        manage.run(*words.split(), *{"user exports": ["w-ann"], "role has": ["w-ann", "itsec"],
                                     "host describe": [FLAGS.host], "completion": ["bash"]}.get(words, []))
    assert stream.new() == []


def test_an_import_leaves_the_events_of_its_actions_and_its_own(api: Api, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(images.machine())
    stream = Stream(api)
    [made] = Manage(api.cloud).json("image", "import", str(tmp_path / "disk"), "--project", "admin")
    found = [(event["what"], event["details"]["target"]) for event in stream.new()]
    assert found == [("image.register", made["image"]), ("image.import", made["image"])]


def test_every_action_that_changes_something_leaves_an_event(api: Api, instance: str) -> None:
    admin, iam = api.admin(), api.boto("iam")

    def key(name: str) -> str:
        return str(admin.get_user(name).access_key)
    calls: list[tuple[str, Callable[[], object], str, str]] = [
        ("RegisterUser", lambda: admin.create_user("v-ann"), "user.create", "v-ann"),
        ("RegisterProject", lambda: admin.create_project("v-web", "v-ann"), "project.create", "v-web"),
        ("ModifyProjectMember", lambda: admin.add_project_member("admin", "v-web"), "project.add", "v-web"),
        ("ModifyProjectMember", lambda: admin.remove_project_member("admin", "v-web"), "project.remove", "v-web"),
        ("ModifyUserRole", lambda: admin.add_user_role("v-ann", "itsec"), "role.add", "v-ann"),
        ("ModifyUserRole", lambda: admin.remove_user_role("v-ann", "itsec"), "role.remove", "v-ann"),
        ("GenerateX509ForUser", lambda: admin.generate_credentials("v-ann", "v-web"), "project.zip", "v-web"),
        ("LockInstance", lambda: admin.lock_instance(instance), "instance.lock", instance),
        ("UnlockInstance", lambda: admin.unlock_instance(instance), "instance.unlock", instance),
        ("DeregisterProject", lambda: admin.delete_project("v-web"), "project.delete", "v-web"),
        ("DeregisterUser", lambda: admin.delete_user("v-ann"), "user.delete", "v-ann"),
        ("CreateUser", lambda: iam.create_user(UserName="v-bob"), "user.create", "v-bob"),
        ("CreateAccessKey", lambda: iam.create_access_key(UserName="v-bob"), "user.rotate", "v-bob"),
        ("UpdateAccessKey", lambda: iam.update_access_key(UserName="v-bob", AccessKeyId=key("v-bob"),
                                                          Status="Inactive"), "user.lock", "v-bob"),
        ("UpdateAccessKey", lambda: iam.update_access_key(UserName="v-bob", AccessKeyId=key("v-bob"),
                                                          Status="Active"), "user.unlock", "v-bob"),
        ("DeleteAccessKey", lambda: iam.delete_access_key(UserName="v-bob", AccessKeyId=key("v-bob")),
         "user.rotate", "v-bob"),
        ("DeleteUser", lambda: iam.delete_user(UserName="v-bob"), "user.delete", "v-bob"),
    ]
    assert {name for name, *_ in calls} == {
        name for name, rule in rbac.TABLE.items()
        if rule.service in (rbac.ADMIN, rbac.IAM) and not name.startswith(READING) and ":" not in name}
    stream = Stream(api)
    for _, call, what, about in calls:
        began = time.time()
        call()
        stream.check(began, "admin", "127.0.0.1", what, about)


def test_what_is_refused_leaves_none(api: Api) -> None:
    stream, iam = Stream(api), api.boto("iam")
    assert outcome(lambda: iam.create_user(UserName="admin")) == "EntityAlreadyExists"
    assert outcome(lambda: iam.delete_user(UserName="nobody")) == "NoSuchEntity"
    assert stream.new() == []
