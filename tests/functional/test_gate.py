"""Lockout and replays: over HTTP at both endpoints, and in Redis between several processes' gates."""

import asyncio
import http.client
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from nova import events, exception
from nova.auth import lockout, rbac
from nova.auth.lockout import Link, LockedOut, Lockout
from nova.cloud.action import Controller, Registry, action, listing
from nova.datastore import Record, Store, open_store, record
from nova.endpoint.app import ApiService
from nova.flags import FLAGS
from nova.objectstore.service import ObjectStoreService
from tests.conftest import RedisServer

SECRET = "s3cret"


@dataclass
class Identity:
    user_id: str = "ann"
    project_id: str = "proj"
    secret: str = SECRET
    roles: frozenset = frozenset({"member", "sysadmin"})
    is_admin: bool = False


class FakeAuth:
    async def identity(self, access_key: str, project: str | None) -> Identity:
        if access_key not in ("ANN", "BOB"):
            raise exception.AuthFailure()
        return Identity()


@record("gate_thing")
@dataclass(frozen=True)
class Thing(Record):
    """What the toy's CreateVolume makes."""


@dataclass
class Calls:
    made: list = field(default_factory=list)


class Toy(Controller):
    calls: Calls

    @listing("DescribeRegions", result="Regions", id_member="RegionName",
             ids_param="RegionNames", not_found=exception.InvalidParameterValue)
    async def describe_regions(self, context, params):
        return []

    @action("RebootInstances")
    async def reboot_instances(self, context, params):
        self.calls.made.append("reboot")
        return {}

    async def replay(self, context, result_ids):
        return {"VolumeId": result_ids[0]}

    @action("CreateVolume", replay=replay)
    async def create_volume(self, context, params):
        self.calls.made.append("volume")
        tx = self.store.transaction()
        tx.create(Thing(uuid.uuid4().hex))
        context.client_token.spend(tx, ["vol-1"])
        await tx.commit()
        return {"VolumeId": "vol-1"}


@dataclass
class Cloud:
    """Both endpoints, each with a gate of its own, as in two processes."""

    ec2_port: int
    s3_port: int
    calls: Calls

    async def ec2(self, action: str, secret: str = SECRET, access: str = "ANN", **params: str) -> tuple[int, str]:
        """Status and body of one EC2 request."""
        return await self.send(self.signed_ec2(action, secret, access, **params))

    def signed_ec2(self, action: str, secret: str = SECRET, access: str = "ANN", **params: str) -> AWSRequest:
        body = urlencode({"Action": action, "Version": "2016-11-15", **params})
        request = AWSRequest("POST", f"http://127.0.0.1:{self.ec2_port}/services/Cloud", data=body, headers={
            "Content-Type": "application/x-www-form-urlencoded", "amz-sdk-invocation-id": str(uuid.uuid4())})
        botocore.auth.SigV4Auth(Credentials(f"{access}:proj", secret), "ec2", "nova").add_auth(request)
        return request

    async def s3(self, method: str, path: str, body: str = "", secret: str = SECRET) -> tuple[int, str]:
        """Status and body of one S3 request."""
        return await self.send(self.signed_s3(method, path, body, secret))

    def signed_s3(self, method: str, path: str, body: str = "", secret: str = SECRET) -> AWSRequest:
        request = AWSRequest(method, f"http://127.0.0.1:{self.s3_port}{path}", data=body,
                             headers={"amz-sdk-invocation-id": str(uuid.uuid4())})
        botocore.auth.S3SigV4Auth(Credentials("ANN:proj", secret), "s3", "nova").add_auth(request)
        return request

    async def send(self, request: AWSRequest) -> tuple[int, str]:
        """Send a request as it is."""
        def send() -> tuple[int, str]:
            address, slash, path = request.url.removeprefix("http://").partition("/")
            connection = http.client.HTTPConnection(address, timeout=30)
            try:
                connection.request(request.method, slash + path, request.data or None, dict(request.headers))
                response = connection.getresponse()
                return response.status, response.read().decode()
            finally:
                connection.close()
        return await asyncio.to_thread(send)


@pytest.fixture
async def cloud(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setattr(rbac, "TABLE", {**rbac.TABLE, "CreateVolume": rbac.TABLE["RunInstances"]})
    FLAGS.state_path = str(tmp_path)
    calls = Calls()
    api = ApiService(store, FakeAuth(), Registry.collect([Toy(store=store, calls=calls)]), port=0, address="127.0.0.1")
    objects = ObjectStoreService(store, FakeAuth(), port=0, address="127.0.0.1")
    await api.start()
    await objects.start()
    yield Cloud(api.port, objects.port, calls)
    await objects.stop()
    await api.stop()


# -- lockout, over HTTP -----------------------------------------------------------------------------------------------

async def test_wrong_signatures_lock_a_key_out_and_then_nobody_learns_whether_one_is_right(cloud: Cloud) -> None:
    for _ in range(FLAGS.lockout_attempts):
        status, body = await cloud.ec2("DescribeRegions", secret="wrong")
        assert (status, "SignatureDoesNotMatch" in body) == (403, True)
    wrong, right = await cloud.ec2("DescribeRegions", secret="wrong"), await cloud.ec2("DescribeRegions")
    assert wrong[0] == right[0] == 401
    assert "<Code>AuthFailure</Code>" in right[1]

    def text(body: str) -> str:
        return body.split("<Message>")[1].split("</Message>")[0]
    assert text(wrong[1]) == text(right[1]) == LockedOut.message


async def test_a_key_is_locked_at_both_endpoints(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(FLAGS.lockout_attempts):
        status, body = await cloud.s3("GET", "/", secret="wrong")
        assert (status, "SignatureDoesNotMatch" in body) == (403, True)
    status, body = await cloud.s3("GET", "/")
    assert status == 403 and "<Code>AccessDenied</Code>" in body and LockedOut.message in body
    assert (await cloud.ec2("DescribeRegions"))[0] == 401


@pytest.mark.parametrize("face", ["ec2", "s3"])
async def test_a_lockout_is_told_to_the_audit_stream_once(cloud: Cloud, store: Store, face: str) -> None:
    for _ in range(FLAGS.lockout_attempts + 3):
        await (cloud.ec2("DescribeRegions", secret="wrong") if face == "ec2" else cloud.s3("GET", "/", secret="wrong"))
    [event] = await events.read(store)
    assert (event.what, event.who, event.project, event.where) == ("user.lockout", "ann", "proj", "127.0.0.1")
    assert event.request_id not in ("", "-")
    assert event.details == {"target": "ann", "access": "ANN", "attempts": FLAGS.lockout_attempts,
                             "minutes": FLAGS.lockout_minutes}
    assert "wrong" not in repr(event) and SECRET not in repr(event)


async def test_parallel_wrong_signatures_are_one_lockout(cloud: Cloud, store: Store) -> None:
    await asyncio.gather(*(cloud.ec2("DescribeRegions", secret="wrong") for _ in range(4 * FLAGS.lockout_attempts)))
    assert [event.what for event in await events.read(store)] == ["user.lockout"]


async def test_others_are_not_locked_out(cloud: Cloud) -> None:
    for _ in range(FLAGS.lockout_attempts + 1):
        await cloud.ec2("DescribeRegions", secret="wrong")
    assert (await cloud.ec2("DescribeRegions", access="BOB"))[0] == 200


async def test_fewer_wrong_signatures_lock_nobody_out(cloud: Cloud) -> None:
    for _ in range(FLAGS.lockout_attempts - 1):
        await cloud.ec2("DescribeRegions", secret="wrong")
    assert (await cloud.ec2("DescribeRegions"))[0] == 200


async def test_without_attempts_nobody_is_ever_locked_out(cloud: Cloud) -> None:
    FLAGS.lockout_attempts = 0
    for _ in range(8):
        assert (await cloud.ec2("DescribeRegions", secret="wrong"))[0] == 403
    assert (await cloud.ec2("DescribeRegions"))[0] == 200


async def test_keys_that_nobody_has_leave_nothing_in_redis(cloud: Cloud, store: Store) -> None:
    own = b"nova:object-directories"  # the object store's, from when it has started
    before = {own, *await store.redis.keys("*")}
    for n in range(10):
        assert (await cloud.ec2("DescribeRegions", access=f"NOBODY{n}"))[0] == 401
    assert {own, *await store.redis.keys("*")} == before


def link(cloud: Cloud, key: str, secret: str = SECRET) -> AWSRequest:
    """A presigned URL for an object."""
    request = AWSRequest("GET", f"http://127.0.0.1:{cloud.s3_port}/bucket/{key}")
    botocore.auth.S3SigV4QueryAuth(Credentials("ANN:proj", secret), "s3", "nova").add_auth(request)
    return request


async def test_wrong_links_lock_the_links_from_their_address_and_not_the_key(cloud: Cloud) -> None:
    for n in range(FLAGS.lockout_attempts):
        status, body = await cloud.send(link(cloud, f"stale{n}", "the secret of yesterday"))
        assert status == 403 and "SignatureDoesNotMatch" in body
    status, body = await cloud.send(link(cloud, "good"))
    assert status == 403 and LockedOut.message in body
    assert (await cloud.s3("GET", "/"))[0] == (await cloud.ec2("DescribeRegions"))[0] == 200


async def test_a_mangled_link_may_be_tried_again_and_again(cloud: Cloud) -> None:
    good = link(cloud, "good")
    for n in range(3 * FLAGS.lockout_attempts):
        mangled = AWSRequest("GET", good.url.replace("/good", f"/good.{n}"))
        status, body = await cloud.send(mangled)
        assert status == 403 and "SignatureDoesNotMatch" in body
    assert "NoSuchBucket" in (await cloud.send(good))[1]


async def test_a_locked_key_has_links_that_work(cloud: Cloud) -> None:
    for _ in range(FLAGS.lockout_attempts):
        await cloud.s3("GET", "/", secret="wrong")
    assert "AccessDenied" in (await cloud.s3("GET", "/"))[1]
    assert "NoSuchBucket" in (await cloud.send(link(cloud, "good")))[1]


# -- lockout, in Redis ------------------------------------------------------------------------------------------------

class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def fail(gate: Lockout, times: int, access: str = "ANN") -> None:
    for _ in range(times):
        await gate.failed(access)


async def test_processes_count_together(store: Store, redis_server: RedisServer) -> None:
    other_store = open_store(redis_server.url)
    one, other = Lockout(store), Lockout(other_store)
    await fail(one, 3)
    await fail(other, 2)
    for gate in (one, other):
        with pytest.raises(LockedOut):
            await gate.failed("ANN")
    with pytest.raises(LockedOut):
        await one.check("ANN")
    await other_store.close()


async def test_parallel_wrong_signatures_get_exactly_as_many_attempts_as_the_flag_says(store: Store) -> None:
    gates = [Lockout(store) for _ in range(4)]
    outcomes = await asyncio.gather(*(gate.failed("ANN") for gate in gates for _ in range(25)), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == FLAGS.lockout_attempts
    assert all(outcome is None or isinstance(outcome, LockedOut) for outcome in outcomes)


async def test_a_process_hears_of_a_lock_and_of_its_end_within_the_memo(store: Store) -> None:
    clock = Clock()
    one, other = Lockout(store), Lockout(store, clock)
    await other.check("ANN")
    await fail(one, FLAGS.lockout_attempts)
    clock.now += lockout.MEMO
    with pytest.raises(LockedOut):
        await other.check("ANN")
    assert await one.unlock("ANN") is True
    clock.now += lockout.MEMO
    await other.check("ANN")
    assert await one.unlock("ANN") is False


async def test_a_lock_ends_by_itself(store: Store) -> None:
    FLAGS.lockout_minutes = 0.01
    gate = Lockout(store)
    await fail(gate, FLAGS.lockout_attempts)
    assert 0 < await gate.locked("ANN") <= 0.6
    with pytest.raises(LockedOut):
        await gate.check("ANN")

    async def is_open() -> bool:
        try:
            await gate.check("ANN")
        except LockedOut:
            return False
        return True
    async with asyncio.timeout(10):
        while not await is_open():
            await asyncio.sleep(0.02)
    await gate.failed("ANN")


async def test_wrong_signatures_are_counted_within_the_window_only(store: Store) -> None:
    FLAGS.lockout_window = 0.01
    gate = Lockout(store)
    await fail(gate, FLAGS.lockout_attempts - 1)
    async with asyncio.timeout(10):
        while await store.redis.keys("nova:lockout:*"):
            await asyncio.sleep(0.02)
    FLAGS.lockout_window = 15
    await fail(gate, FLAGS.lockout_attempts - 1)
    await gate.check("ANN")


async def test_what_redis_keeps_of_a_key_is_short_nameless_and_expires(store: Store) -> None:
    access = "A" * 10000
    gate = Lockout(store)
    await fail(gate, FLAGS.lockout_attempts)
    await fail(gate, FLAGS.lockout_attempts - 1, access)
    keys = await store.redis.keys("nova:lockout:*")
    assert len(keys) == 2 and all(len(key) < 80 for key in keys)
    assert all([0 < await store.redis.pttl(key) <= 15 * 60 * 1000 for key in keys])


async def test_links_are_locked_from_where_the_wrong_ones_came(store: Store) -> None:
    gate = Lockout(store)
    for n in range(FLAGS.lockout_attempts):
        await gate.failed("ANN", link=Link("2001:db8:1:2::1", str(n)))
        await gate.failed("ANN", link=Link("192.0.2.1", "the same"))
    with pytest.raises(LockedOut):
        await gate.check("ANN", Link("2001:db8:1:2:ffff::", "x"))  # it is his as well
    for access, other in (("ANN", "2001:db8:1:3::1"), ("ANN", "192.0.2.1"), ("BOB", "2001:db8:1:2::1")):
        await gate.check(access, Link(other, "x"))
    await gate.check("ANN")
    assert await gate.locked("ANN") == 0
    assert await gate.unlock("ANN")
    await Lockout(store).check("ANN", Link("2001:db8:1:2::1", "x"))


async def test_links_from_many_addresses_do_not_fill_redis(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockout, "_MAX_LINKS", 3)
    gate = Lockout(store)
    for address in range(5):
        for n in range(FLAGS.lockout_attempts):
            await gate.failed("ANN", link=Link(f"192.0.2.{address}", str(n)))
    assert await store.redis.zcard(lockout._LOCKED) == 3
    await fail(gate, FLAGS.lockout_attempts)
    assert await gate.locked("ANN") > 0  # there is always room for a key


async def test_what_is_right_asks_redis_once_a_second_whatever_the_load(store: Store) -> None:
    clock = Clock()
    gate = Lockout(store, clock)
    await gate.check("ANN")

    async def scripts_run() -> int:
        return int((await store.redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0))
    before = await scripts_run()
    for n in range(1000):
        await gate.check(f"KEY{n}")
    assert await scripts_run() == before
    clock.now += lockout.MEMO
    await asyncio.gather(*(gate.check(f"KEY{n}") for n in range(100)))
    assert await scripts_run() == before + 1


# -- replays ----------------------------------------------------------------------------------------------------------

async def twice(cloud: Cloud, request: AWSRequest) -> tuple[tuple[int, str], tuple[int, str]]:
    return await cloud.send(request), await cloud.send(request)


async def test_a_replay_is_accepted_unless_a_flag_forbids_it(cloud: Cloud) -> None:
    first, second = await twice(cloud, cloud.signed_ec2("RebootInstances", **{"InstanceId.1": "i-1"}))
    assert first[0] == second[0] == 200 and cloud.calls.made == ["reboot", "reboot"]


async def test_a_replay_of_what_changes_something_is_refused(cloud: Cloud, store: Store) -> None:
    FLAGS.reject_replays = True
    first, second = await twice(cloud, cloud.signed_ec2("RebootInstances", **{"InstanceId.1": "i-1"}))
    assert first[0] == 200 and cloud.calls.made == ["reboot"]
    assert second[0] == 401 and "<Code>AuthFailure</Code>" in second[1] and "received before" in second[1]
    [key] = await store.redis.keys("nova:replay:*")
    assert 14 * 60 * 1000 < await store.redis.pttl(key) <= 15 * 60 * 1000 + 2000


async def test_replays_at_the_same_time_get_through_once(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    request = cloud.signed_ec2("RebootInstances", **{"InstanceId.1": "i-1"})
    statuses = [status for status, _ in await asyncio.gather(*(cloud.send(request) for _ in range(10)))]
    assert sorted(statuses) == [200] + [401] * 9


async def test_a_replay_in_another_project_is_refused(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    request = cloud.signed_ec2("RebootInstances", **{"InstanceId.1": "i-1"})
    await cloud.send(request)
    authorization = request.headers["Authorization"].replace("ANN:proj/", "ANN:other/")
    del request.headers["Authorization"]
    request.headers["Authorization"] = authorization
    assert (await cloud.send(request))[0] == 401


async def test_what_only_reads_may_come_again(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    first, second = await twice(cloud, cloud.signed_ec2("DescribeRegions"))
    assert first[0] == second[0] == 200


async def test_what_has_a_client_token_may_come_again_and_happens_once(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    first, second = await twice(cloud, cloud.signed_ec2("CreateVolume", AvailabilityZone="nova", Size="1",
                                                        ClientToken="token"))
    assert first[0] == second[0] == 200 and cloud.calls.made == ["volume"]


async def test_a_client_token_helps_no_action_that_does_not_heed_it(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    _, second = await twice(cloud, cloud.signed_ec2("RebootInstances", ClientToken="token", **{"InstanceId.1": "i-1"}))
    assert second[0] == 401


async def test_replays_at_the_object_store_are_refused_but_reads_are_not(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    first, second = await twice(cloud, cloud.signed_s3("PUT", "/bucket"))
    assert first[0] == 200
    assert second[0] == 403 and "<Code>AccessDenied</Code>" in second[1] and "received before" in second[1]
    first, second = await twice(cloud, cloud.signed_s3("GET", "/bucket"))
    assert first[0] == second[0] == 200


async def test_a_presigned_url_may_be_used_again(cloud: Cloud) -> None:
    FLAGS.reject_replays = True
    await cloud.s3("PUT", "/bucket")
    request = AWSRequest("PUT", f"http://127.0.0.1:{cloud.s3_port}/bucket/key")
    botocore.auth.S3SigV4QueryAuth(Credentials("ANN:proj", SECRET), "s3", "nova", expires=600).add_auth(request)
    first, second = await twice(cloud, request)
    assert first[0] == second[0] == 200


async def test_a_wrong_signature_leaves_no_trace_among_those_accepted(cloud: Cloud, store: Store) -> None:
    FLAGS.reject_replays = True
    await cloud.ec2("RebootInstances", secret="wrong", **{"InstanceId.1": "i-1"})
    assert not await store.redis.keys("nova:replay:*")
