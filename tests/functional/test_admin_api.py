"""The admin API by nova.adminclient, IAM and STS by boto3 and the aws command, on a real cloud."""

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from nova import adminclient
from nova.adminclient import AdminClient, AdminError, NotFound, Refused, Unreachable
from nova.flags import FLAGS
from nova.wire import model
from tests.conftest import environment_without_aws, free_port, wait_until
from tests.functional.cloud import Cloud, at_once, cloud, outcome, states, terminate_all


@dataclass
class Api:
    """The clients of one cloud."""

    cloud: Cloud

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.cloud.ec2_port}"

    def admin(self, user: adminclient.UserInfo | None = None, project: str = "") -> AdminClient:
        """A client of the admin API; the administrator's without a user."""
        if user is None:
            keys = self.cloud.credentials()
            return AdminClient(self.url, keys["aws_access_key_id"], keys["aws_secret_access_key"])
        return AdminClient(self.url, f"{user.access_key}:{project}", user.secret_key or "")

    def boto(self, service: str, path: str = "", **keys: str):
        """A boto3 client with default settings."""
        return boto3.client(service, region_name="nova", endpoint_url=f"{self.url}/services/{path or service.upper()}",
                            config=Config(retries={"total_max_attempts": 1}), **(keys or self.cloud.credentials()))


@pytest.fixture(scope="module")
def api(directory_driver: str) -> Iterator[Api]:
    with cloud("--compute_driver=fake", "--converge_interval=0.5", "--auth_memo_seconds=0",
               directory=directory_driver) as made:
        made.start()
        assert made.machine_image
        yield Api(made)


@pytest.fixture(scope="module")
def admin(api: Api) -> AdminClient:
    return api.admin()


def refuses(code: str, call, *args, **kwargs) -> AdminError:
    with pytest.raises(AdminError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    assert caught.value.request_id
    return caught.value


def member(api: Api, admin: AdminClient, name: str, project: str) -> AdminClient:
    """A new user in a project, as a client."""
    user = admin.create_user(name)
    admin.add_project_member(name, project)
    return api.admin(user, project)


# -- the admin API ----------------------------------------------------------------------------------------------------

@pytest.mark.both_directories
def test_users(api, admin):
    made = admin.create_user("ann")
    assert made.secret_key and not made.is_admin and not made.is_locked
    assert admin.get_user("ann") == made
    assert admin.has_user("ann") and not admin.has_user("nobody")
    [listed] = [user for user in admin.get_users() if user.username == "ann"]
    assert (listed.access_key, listed.secret_key) == (made.access_key, None)
    assert admin.create_user("boss", is_admin=True).is_admin
    refuses("InvalidUser.Duplicate", admin.create_user, "ann")
    refuses("InvalidParameterValue", admin.create_user, "a*)(uid=")
    admin.delete_user("ann")
    assert isinstance(refuses("InvalidUser.NotFound", admin.get_user, "ann"), NotFound)
    refuses("InvalidUser.NotFound", admin.delete_user, "ann")


@pytest.mark.both_directories
def test_projects_and_members(admin):
    for name in ("p-ann", "p-bob", "p-eve"):
        admin.create_user(name)
    made = admin.create_project("p-web", "p-ann", "the shop", ["p-bob"])
    assert made == adminclient.ProjectInfo("p-web", "p-ann", "the shop", ("p-ann", "p-bob"))
    assert admin.get_project("p-web") == made and made in admin.get_projects()
    assert admin.get_projects("p-bob") == [made] and admin.get_projects("p-eve") == []
    admin.add_project_member("p-eve", "p-web")
    admin.remove_project_member("p-bob", "p-web")
    assert admin.get_project("p-web").members == ("p-ann", "p-eve")
    refuses("InvalidProject.Duplicate", admin.create_project, "p-web", "p-ann")
    refuses("InvalidUser.NotFound", admin.create_project, "p-other", "nobody")
    refuses("InvalidUser.NotFound", admin.create_project, "p-other", "p-ann", "", ["nobody"])
    refuses("InvalidProject.NotFound", admin.get_project, "p-other")
    refuses("IncorrectState", admin.remove_project_member, "p-ann", "p-web")
    refuses("DependencyViolation", admin.delete_user, "p-ann")
    admin.delete_project("p-web")
    admin.delete_user("p-ann")


@pytest.mark.both_directories
def test_roles(admin):
    admin.create_user("r-ann")
    admin.create_project("r-web", "r-ann")
    assert admin.get_roles() == ["sysadmin", "netadmin", "projectmanager"]
    assert admin.get_roles(False) == ["sysadmin", "netadmin", "projectmanager", "cloudadmin", "itsec"]
    assert admin.get_user_roles("r-ann") == []
    admin.add_user_role("r-ann", "netadmin")
    admin.add_user_role("r-ann", "netadmin", "r-web")
    assert admin.get_user_roles("r-ann", "r-web") == ["member", "netadmin", "projectmanager"]
    admin.remove_user_role("r-ann", "netadmin", "r-web")
    assert admin.get_user_roles("r-ann", "r-web") == ["member", "projectmanager"]
    refuses("InvalidParameterValue", admin.add_user_role, "r-ann", "king")
    refuses("InvalidProject.NotFound", admin.add_user_role, "r-ann", "netadmin", "nowhere")


def test_credentials(admin):
    admin.create_user("c-ann")
    admin.create_project("c-ann", "c-ann")
    archive = zipfile.ZipFile(io.BytesIO(admin.generate_credentials("c-ann").file))
    assert {"novarc", "pk.pem", "cert.pem"} <= set(archive.namelist())
    assert admin.get_user("c-ann").access_key in archive.read("novarc").decode()
    refuses("InvalidProject.NotFound", admin.generate_credentials, "c-ann", "nowhere")


def test_hosts(admin):
    host = admin.wait_for_host(FLAGS.host)
    assert {s.name for s in host.services} >= {"api", "compute", "network"}
    assert (host.is_disabled, host.zone) == (False, "nova")
    assert host.memory_mb > 0 and host.vcpus > 0
    assert [h.name for h in admin.get_hosts()] == [FLAGS.host]
    refuses("InvalidHost.NotFound", admin.get_host, "nohost")


def test_what_owns_something_is_removed_only_with_scrub(api, admin):
    user = admin.create_user("s-ann")
    admin.create_project("s-ann", "s-ann")
    keys = {"aws_access_key_id": f"{user.access_key}:s-ann", "aws_secret_access_key": user.secret_key}
    s3, ec2 = api.cloud.client("s3", **keys), api.cloud.client("ec2", **keys)
    s3.create_bucket(Bucket="s-ann-bucket")
    s3.put_object(Bucket="s-ann-bucket", Key="k", Body=b"x")
    ec2.create_key_pair(KeyName="mine")
    error = refuses("DependencyViolation", admin.delete_project, "s-ann")
    assert "1 bucket (s-ann-bucket)" in error.message and "1 key pair (mine)" in error.message
    admin.delete_project("s-ann", scrub=True)
    admin.delete_user("s-ann")
    assert outcome(lambda: api.cloud.s3.head_bucket(Bucket="s-ann-bucket")) in ("404", "NoSuchBucket")


@pytest.mark.both_directories
def test_only_who_may(api, admin):
    manager = admin.create_user("w-boss")
    admin.create_project("w-web", "w-boss")
    boss = api.admin(manager, "w-web")
    ann = member(api, admin, "w-ann", "w-web")
    admin.create_user("w-eve")
    # a member knows themselves, their project, and no more
    assert ann.get_user("w-ann").secret_key is None
    assert ann.get_project("w-web").manager == "w-boss"
    for call in (lambda: ann.create_user("x"), ann.get_users, lambda: ann.get_user("w-boss"), ann.get_hosts,
                 lambda: ann.delete_project("w-web"), lambda: ann.add_project_member("w-ann", "w-web"),
                 lambda: ann.add_user_role("w-ann", "sysadmin", "w-web"),
                 lambda: ann.add_user_role("w-ann", "cloudadmin"), lambda: ann.generate_credentials("w-boss", "w-web")):
        assert isinstance(refuses("UnauthorizedOperation", call), Refused)
    refuses("InvalidUser.NotFound", ann.get_user, "admin")
    refuses("InvalidProject.NotFound", ann.get_project, "admin")
    assert ann.generate_credentials("w-ann", "w-web").file
    # a manager manages the project, and nothing else
    boss.add_project_member("w-eve", "w-web")
    boss.add_user_role("w-eve", "sysadmin", "w-web")
    assert boss.get_user("w-eve").secret_key is None
    boss.remove_project_member("w-eve", "w-web")
    refuses("InvalidProject.NotFound", boss.add_project_member, "w-boss", "admin")
    refuses("UnauthorizedOperation", boss.add_user_role, "w-boss", "itsec")
    # security staff read everything, without secrets
    itsec = member(api, admin, "w-sec", "w-web")
    admin.add_user_role("w-sec", "itsec")
    assert itsec.get_user("admin").secret_key is None
    assert itsec.get_users() and itsec.get_projects() and itsec.get_hosts()
    refuses("UnauthorizedOperation", itsec.create_user, "x")


def test_a_locked_instance_is_left_as_it_is(api, admin):
    ann, sec = admin.create_user("l-ann"), admin.create_user("l-sec")
    admin.create_project("l-web", "l-ann", "", ["admin"])
    admin.create_project("l-sec", "l-sec")
    admin.add_user_role("l-sec", "itsec")
    ec2 = api.boto("ec2", "Cloud", aws_access_key_id=f"{ann.access_key}:l-web", aws_secret_access_key=ann.secret_key)
    keys = api.cloud.credentials()
    keys["aws_access_key_id"] = keys["aws_access_key_id"].partition(":")[0] + ":l-web"
    made = api.boto("ec2", "Cloud", **keys).run_instances(
        ImageId=api.cloud.machine_image, InstanceType="m1.tiny", MinCount=2, MaxCount=2)
    one, other = ids = [i["InstanceId"] for i in made["Instances"]]
    wait_until(lambda: states(ec2) == dict.fromkeys(ids, "running"), 15, "both running")
    security = api.admin(sec, "l-sec")
    security.lock_instance(one)
    security.lock_instance(one)
    for call in (ec2.reboot_instances, ec2.terminate_instances):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            call(InstanceIds=[other, one])
        assert caught.value.response["Error"] == {
            "Code": "OperationNotPermitted",
            "Message": f"The instance '{one}' is locked; a security administrator can unlock it."}
    # what would remove it by the way removes nothing
    refuses("OperationNotPermitted", admin.delete_project, "l-web", scrub=True)
    assert states(ec2) == dict.fromkeys(ids, "running")
    assert not admin.get_user("l-ann").is_locked
    # its project cannot unlock it, nor does anybody lock what there is not
    refuses("UnauthorizedOperation", api.admin(ann, "l-web").unlock_instance, one)
    assert isinstance(refuses("InvalidInstanceID.NotFound", security.lock_instance, "i-00000000"), NotFound)
    security.unlock_instance(one)
    ec2.reboot_instances(InstanceIds=ids)
    ec2.terminate_instances(InstanceIds=ids)
    refuses("IncorrectInstanceState", security.lock_instance, one)
    with api.cloud.redis_client() as redis:
        entries = [fields for _, fields in redis.xrange("nova:events") if one in fields["details"]]
    assert [(e["what"], e["who"], e["project"]) for e in entries] == [
        ("instance.lock", "l-sec", "l-sec"), ("instance.unlock", "l-sec", "l-sec")]
    assert json.loads(entries[0]["details"]) == {"target": one, "owner": "admin", "of_project": "l-web"}


def test_a_user_with_a_locked_instance_is_not_scrubbed(api, admin):
    user = admin.create_user("l-bob")
    admin.add_project_member("l-bob", "admin")
    ec2 = api.boto("ec2", "Cloud", aws_access_key_id=f"{user.access_key}:admin", aws_secret_access_key=user.secret_key)
    [made] = ec2.run_instances(ImageId=api.cloud.machine_image, MinCount=1, MaxCount=1)["Instances"]
    admin.lock_instance(made["InstanceId"])
    refuses("OperationNotPermitted", admin.delete_user, "l-bob", scrub=True)
    assert not admin.get_user("l-bob").is_locked and made["InstanceId"] in states(ec2)
    admin.unlock_instance(made["InstanceId"])
    admin.delete_user("l-bob", scrub=True)
    assert not admin.has_user("l-bob")


def test_a_lock_and_a_termination_at_once(api, admin):
    """Either the lock comes first, and the instance stays, or the termination, and there is nothing to lock."""
    ec2 = api.boto("ec2", "Cloud")
    made = ec2.run_instances(ImageId=api.cloud.machine_image, InstanceType="m1.tiny", MinCount=8, MaxCount=8)
    for id in [i["InstanceId"] for i in made["Instances"]]:
        def lock(id: str = id) -> str:
            try:
                admin.lock_instance(id)
            except AdminError as error:
                return error.code
            return "locked"
        lock_said, end_said = at_once([lock, lambda id=id: outcome(lambda: ec2.terminate_instances(InstanceIds=[id]))])
        if lock_said == "locked":
            assert end_said == "OperationNotPermitted"
            admin.unlock_instance(id)
        else:
            assert lock_said == "IncorrectInstanceState" and isinstance(end_said, dict)
    terminate_all(ec2)


def test_who_signs_wrongly_is_refused(api):
    keys = api.cloud.credentials()
    wrong = AdminClient(api.url, keys["aws_access_key_id"], "wrong")
    assert isinstance(refuses("SignatureDoesNotMatch", wrong.get_users), Refused)
    nobody = AdminClient(api.url, "nobody:admin", "wrong")
    assert isinstance(refuses("AuthFailure", nobody.get_users), Refused)


def test_a_cloud_that_is_away_is_told(api):
    client = AdminClient(f"http://127.0.0.1:{free_port()}", "a:b", "c")
    with pytest.raises(Unreachable):
        client.get_users()
    client.close()


def test_dry_run_and_unknown_actions(api, admin):
    keys = api.cloud.credentials()
    raw = api.admin()._client
    assert outcome(lambda: raw.register_user(Name="dry", DryRun=True)) == "DryRunOperation"
    assert not admin.has_user("dry")
    ec2 = boto3.client("ec2", region_name="nova", endpoint_url=f"{api.url}/services/Admin", **keys)
    assert outcome(ec2.describe_regions) == "InvalidAction"


def test_every_action_of_the_model_is_offered(api):
    raw = api.admin()._client
    for name in model.admin().names:
        method = next(m for m, wire in raw.meta.method_to_api_mapping.items() if wire == name)
        required = getattr(model.admin().operation(name).input_shape, "required_members", [])
        code = outcome(lambda method=method, r=required: getattr(raw, method)(DryRun=True, **dict.fromkeys(r, "x")))
        assert code == "DryRunOperation", name


# -- IAM --------------------------------------------------------------------------------------------------------------

@pytest.mark.both_directories
def test_a_user_made_by_iam_works_with_the_key_made_by_iam(api, admin):
    iam = api.boto("iam")
    made = iam.create_user(UserName="i-ann")["User"]
    assert (made["UserName"], made["Path"], made["Arn"]) == ("i-ann", "/", "arn:aws:iam::admin:user/i-ann")
    assert iam.list_access_keys(UserName="i-ann")["AccessKeyMetadata"] == []
    key = iam.create_access_key(UserName="i-ann")["AccessKey"]
    assert key["Status"] == "Active"
    [listed] = iam.list_access_keys(UserName="i-ann")["AccessKeyMetadata"]
    assert listed["AccessKeyId"] == key["AccessKeyId"]
    assert outcome(lambda: iam.create_access_key(UserName="i-ann")) == "LimitExceeded"
    admin.create_project("i-web", "i-ann")
    keys = {"aws_access_key_id": f"{key['AccessKeyId']}:i-web", "aws_secret_access_key": key["SecretAccessKey"]}
    assert api.boto("sts", **keys).get_caller_identity()["UserId"] == "i-ann"
    assert api.boto("iam", **keys).get_user()["User"]["UserName"] == "i-ann"
    iam.update_access_key(UserName="i-ann", AccessKeyId=key["AccessKeyId"], Status="Inactive")
    assert iam.list_access_keys(UserName="i-ann")["AccessKeyMetadata"][0]["Status"] == "Inactive"
    assert outcome(api.boto("sts", **keys).get_caller_identity) == "InvalidClientTokenId"
    iam.update_access_key(UserName="i-ann", AccessKeyId=key["AccessKeyId"], Status="Active")
    api.boto("sts", **keys).get_caller_identity()
    assert outcome(lambda: iam.delete_user(UserName="i-ann")) == "DeleteConflict"
    iam.delete_access_key(UserName="i-ann", AccessKeyId=key["AccessKeyId"])
    assert outcome(api.boto("sts", **keys).get_caller_identity) == "InvalidClientTokenId"
    assert iam.list_access_keys(UserName="i-ann")["AccessKeyMetadata"] == []
    assert outcome(lambda: iam.delete_user(UserName="i-ann")) == "DeleteConflict"  # who manages a project
    admin.delete_project("i-web")
    iam.delete_user(UserName="i-ann")
    assert outcome(lambda: iam.get_user(UserName="i-ann")) == "NoSuchEntity"


def test_iam_says_when_users_and_keys_were_made(api):
    iam, before = api.boto("iam"), int(time.time())

    def is_now(moment: datetime) -> bool:
        return before <= moment.timestamp() <= time.time() + 1
    made = iam.create_user(UserName="i-dated")["User"]
    assert made.keys() == {"Path", "UserName", "UserId", "Arn", "CreateDate"} and is_now(made["CreateDate"])
    assert iam.get_user(UserName="i-dated")["User"] == made
    assert made in iam.list_users()["Users"]
    first = iam.create_access_key(UserName="i-dated")["AccessKey"]
    assert first.keys() == {"UserName", "AccessKeyId", "Status", "SecretAccessKey", "CreateDate"}
    assert is_now(first["CreateDate"])
    [listed] = iam.list_access_keys(UserName="i-dated")["AccessKeyMetadata"]
    assert listed == {name: first[name] for name in ("UserName", "AccessKeyId", "Status", "CreateDate")}
    wait_until(lambda: time.time() > first["CreateDate"].timestamp() + 1, 10, "another second")
    iam.delete_access_key(UserName="i-dated", AccessKeyId=first["AccessKeyId"])
    second = iam.create_access_key(UserName="i-dated")["AccessKey"]
    assert second["CreateDate"] > first["CreateDate"], "a new key is as old as the one before"
    assert iam.get_user(UserName="i-dated")["User"]["CreateDate"] == made["CreateDate"]


def test_iam_refuses_as_iam_does(api):
    iam = api.boto("iam")
    iam.create_user(UserName="i-bob")
    assert outcome(lambda: iam.create_user(UserName="i-bob")) == "EntityAlreadyExists"
    assert outcome(lambda: iam.create_user(UserName="i-x", Path="/staff/")) == "ValidationError"
    assert outcome(lambda: iam.create_user(UserName="i-x", Tags=[{"Key": "a", "Value": "b"}])) == "UnsupportedOperation"
    assert outcome(lambda: iam.delete_user(UserName="nobody")) == "NoSuchEntity"
    assert outcome(lambda: iam.list_access_keys(UserName="nobody")) == "NoSuchEntity"
    assert outcome(lambda: iam.delete_access_key(UserName="i-bob", AccessKeyId="A" * 20)) == "NoSuchEntity"
    assert outcome(iam.list_groups) == "UnsupportedOperation"


@pytest.mark.both_directories
def test_of_two_at_once_one_gets_the_key(api):
    api.boto("iam").create_user(UserName="i-race")
    clients = [api.boto("iam") for _ in range(4)]
    answers = at_once([lambda c=c: outcome(lambda: c.create_access_key(UserName="i-race")) for c in clients])
    assert sum(isinstance(answer, dict) for answer in answers) == 1
    assert {answer for answer in answers if isinstance(answer, str)} == {"LimitExceeded"}


def test_iam_lists_in_pages(api):
    iam = api.boto("iam")
    for number in range(3):
        iam.create_user(UserName=f"i-page{number}")
    pages = list(iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 2}))
    names = [user["UserName"] for page in pages for user in page["Users"]]
    assert len(pages) > 1 and names == sorted(names) and {"i-page0", "i-page1", "i-page2"} <= set(names)
    assert iam.list_users(PathPrefix="/staff/")["Users"] == []


@pytest.mark.both_directories
def test_iam_is_for_administrators_but_for_oneself(api, admin):
    user = admin.create_user("i-self")
    admin.create_project("i-self", "i-self")
    keys = {"aws_access_key_id": f"{user.access_key}:i-self", "aws_secret_access_key": user.secret_key}
    iam = api.boto("iam", **keys)
    assert iam.get_user()["User"]["UserName"] == "i-self"
    assert iam.list_access_keys()["AccessKeyMetadata"][0]["AccessKeyId"] == user.access_key
    assert outcome(iam.list_users) == "AccessDenied"
    assert outcome(lambda: iam.create_user(UserName="i-y")) == "AccessDenied"
    assert outcome(lambda: iam.get_user(UserName="admin")) == "NoSuchEntity"
    assert outcome(lambda: iam.delete_access_key(UserName="admin", AccessKeyId="A" * 20)) == "NoSuchEntity"


def test_sts_and_iam_are_answered_at_ec2s_address_too(api):
    for path in ("STS", "Cloud"):
        who = api.boto("sts", path).get_caller_identity()
        assert (who["Account"], who["UserId"], who["Arn"]) == ("admin", "admin", "arn:aws:iam::admin:user/admin")
    assert api.boto("iam", "Cloud").get_user()["User"]["UserName"] == "admin"


def test_the_aws_command(api):
    keys = api.cloud.credentials()
    environment = {**environment_without_aws(), "AWS_ACCESS_KEY_ID": keys["aws_access_key_id"],
                   "AWS_SECRET_ACCESS_KEY": keys["aws_secret_access_key"], "AWS_DEFAULT_REGION": "nova",
                   "AWS_ENDPOINT_URL_IAM": f"{api.url}/services/IAM", "AWS_ENDPOINT_URL_STS": f"{api.url}/services/STS",
                   "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_PAGER": ""}

    def aws(*words: str) -> dict:
        done = subprocess.run([str(Path(sys.executable).parent / "aws"), *words], env=environment,
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "{}")
    assert aws("sts", "get-caller-identity")["UserId"] == "admin"
    aws("iam", "create-user", "--user-name", "i-aws")
    key = aws("iam", "create-access-key", "--user-name", "i-aws")["AccessKey"]["AccessKeyId"]
    assert "i-aws" in {user["UserName"] for user in aws("iam", "list-users")["Users"]}
    aws("iam", "update-access-key", "--user-name", "i-aws", "--access-key-id", key, "--status", "Inactive")
    aws("iam", "delete-access-key", "--user-name", "i-aws", "--access-key-id", key)
    aws("iam", "delete-user", "--user-name", "i-aws")


def test_every_change_is_in_the_audit_stream(api, admin):
    began = time.time()
    admin.create_user("a-ann")
    admin.add_user_role("a-ann", "itsec")
    admin.delete_user("a-ann")
    with api.cloud.redis_client() as redis:
        entries = wait_until(lambda: [fields for _, fields in redis.xrange("nova:events")
                                      if "a-ann" in fields["details"] and float(fields["when"]) >= began], 5)
    assert [(e["what"], e["who"], e["where"]) for e in entries] == [
        (what, "admin", "127.0.0.1") for what in ("user.create", "role.add", "user.delete")]
    assert all(e["request_id"] not in ("", "-") for e in entries)
