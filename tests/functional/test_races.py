"""Many clients at once: what there is one of is given once, and what is not needed any more comes back."""

import asyncio
import contextlib
import ipaddress
import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nova import exception
from nova.auth import credentials
from nova.auth.manager import AuthManager
from nova.datastore import Store
from nova.flags import FLAGS
from nova.network import models as network_models
from nova.network.models import Network
from tests import images as contents
from tests.conftest import wait_until
from tests.functional.cloud import Cloud, at_once, cloud, instances, outcome, states, terminate_all

#: what nova.compute.virt.fake says it has, in MiB
FAKE_MEMORY = 100_000_000
TINY = 512


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    """A cloud of records, with room enough."""
    with cloud("--compute_driver=fake", "--converge_interval=2") as made:
        made.start()
        assert made.machine_image
        yield made


@pytest.fixture(scope="module")
def small_cloud() -> Iterator[Cloud]:
    """A cloud with 12 addresses in a network, and with memory for 8 of the smallest instances."""
    with cloud("--compute_driver=fake", "--converge_interval=2", "--network_size=16",
               f"--reserved_memory_mb={FAKE_MEMORY - 8 * TINY}") as made:
        made.start()
        assert made.machine_image
        yield made


@pytest.fixture
def roomy(the_cloud: Cloud) -> Iterator[Cloud]:
    """The large cloud, empty; all is given back after the test."""
    yield the_cloud
    give_all_back(the_cloud)


@pytest.fixture
def small(small_cloud: Cloud) -> Iterator[Cloud]:
    """The small cloud, empty; all is given back after the test."""
    yield small_cloud
    give_all_back(small_cloud)


def give_all_back(made: Cloud) -> None:
    """Terminate everything of the administrator's; nothing may be claimed or owned afterwards."""
    terminate_all(made.ec2)

    def held() -> list[Any]:
        with made.redis_client() as redis:
            claims = [v for v in redis.hgetall(f"nova:claims:{FLAGS.host}").values() if v != "0"]
            owners = [key for key in redis.scan_iter("nova:pool:*:owners")]
            return claims + owners + list(redis.scan_iter("nova:network:*")) + list(redis.scan_iter("nova:user_data:*"))
    wait_until(lambda: not held(), 10, "all that instances have to be given back")


def runner(made: Cloud, least: int = 1, most: int = 1, **more: Any) -> Callable[[], Any]:
    """A call of RunInstances with a client of its own; gives the reservation or the error's code."""
    ec2, image = made.client("ec2"), made.machine_image
    return lambda: outcome(lambda: ec2.run_instances(ImageId=image, InstanceType="m1.tiny", MinCount=least,
                                                     MaxCount=most, **more))


def test_addresses_and_macs_are_unique(roomy: Cloud) -> None:
    """20 instances by 10 clients at once, twice each."""
    calls = [runner(roomy) for _ in range(10)]
    answers = at_once(itertools.chain(calls, calls))
    assert all(isinstance(a, dict) for a in answers), answers
    ec2 = roomy.ec2
    wait_until(lambda: set(states(ec2).values()) == {"running"}, 20, "20 running instances")
    found = [i for i in instances(ec2) if i["State"]["Name"] == "running"]
    assert len(found) == 20 == len({i["InstanceId"] for i in found})
    for name in ("PrivateIpAddress", "PrivateDnsName"):
        assert len({i[name] for i in found}) == 20, name
    with roomy.redis_client() as redis:
        records = [redis.hgetall(f"nova:instance:{i['InstanceId']}") for i in found]
    for name in ("mac", "uuid", "private_ip"):
        assert len({r[name] for r in records}) == 20, name
    assert len({a["ReservationId"] for a in answers}) == 20


def test_one_request_for_many(roomy: Cloud) -> None:
    """MaxCount=20 by one client: all of one reservation, launch indexes 0 to 19, distinct addresses."""
    reservation = runner(roomy, 20, 20)()
    assert sorted(i["AmiLaunchIndex"] for i in reservation["Instances"]) == list(range(20))
    assert len({i["PrivateIpAddress"] for i in reservation["Instances"]}) == 20


def test_one_token_makes_one_reservation(roomy: Cloud) -> None:
    token = uuid.uuid4().hex
    answers = at_once([runner(roomy, ClientToken=token) for _ in range(10)])
    assert len({a["ReservationId"] for a in answers}) == 1
    assert len({i["InstanceId"] for a in answers for i in a["Instances"]}) == 1
    assert len(states(roomy.ec2)) == 1
    assert runner(roomy, 1, 2, ClientToken=token)() == "IdempotentParameterMismatch"


def test_one_token_for_the_last_room(small: Cloud) -> None:
    """Those who come second get the first one's answer, even if nothing is left for another instance."""
    token = uuid.uuid4().hex
    answers = at_once([runner(small, 8, 8, ClientToken=token) for _ in range(10)])
    assert {a if isinstance(a, str) else a["ReservationId"] for a in answers} == {answers[0]["ReservationId"]}
    assert len(states(small.ec2)) == 8


def test_terminated_by_all_at_once(roomy: Cloud) -> None:
    clients = [roomy.client("ec2") for _ in range(5)]
    for _ in range(5):
        [instance] = runner(roomy)()["Instances"]

        def terminate(ec2: Any, id: str = instance["InstanceId"]) -> Any:
            return outcome(lambda: ec2.terminate_instances(InstanceIds=[id])["TerminatingInstances"][0])
        answers = at_once([lambda ec2=ec2: terminate(ec2) for ec2 in clients])
        assert {a["CurrentState"]["Name"] for a in answers} <= {"shutting-down", "terminated"}
        assert [a["PreviousState"]["Name"] in ("pending", "running") for a in answers].count(True) == 1
        wait_until(lambda: not states(clients[0]), 10, "its end")
    with roomy.redis_client() as redis:
        assert {int(v) for v in redis.hgetall(f"nova:claims:{FLAGS.host}").values()} == {0}


def test_run_and_terminate_in_turn(roomy: Cloud) -> None:
    """The project's network is made and given back all the time; every request is served, and with an address of it."""
    def churn(call: Callable[[], Any], ec2: Any) -> list[str]:
        failures = []
        for _ in range(15):
            answer = call()
            if isinstance(answer, str):
                failures.append(answer)
                continue
            failures += [a for a in [outcome(lambda a=answer: ec2.terminate_instances(
                InstanceIds=[a["Instances"][0]["InstanceId"]]))] if isinstance(a, str)]
        return failures
    workers = [(runner(roomy), roomy.client("ec2")) for _ in range(4)]
    assert at_once([lambda w=w: churn(*w) for w in workers]) == [[]] * 4
    wait_until(lambda: not states(roomy.ec2), 20, "the end of all")
    assert "cannot be" not in roomy.log.read_text()  # what the driver says of an address of another network


def test_small_network_is_exhausted(roomy: Cloud) -> None:
    """Each of 16 addresses but the network's own 4 is given exactly once, and given again when it is back."""
    with cloud("--compute_driver=fake", "--converge_interval=2", "--network_size=16") as tight:
        tight.start()
        assert tight.machine_image
        calls = [runner(tight) for _ in range(20)]
        for _ in range(2):
            answers = at_once(calls)
            served = [a for a in answers if isinstance(a, dict)]
            assert Counter(a for a in answers if isinstance(a, str)) == {"InsufficientFreeAddressesInSubnet": 8}
            addresses = {a["Instances"][0]["PrivateIpAddress"] for a in served}
            assert len(addresses) == len(served) == 12
            network = ipaddress.ip_network(f"{addresses.copy().pop()}/28", strict=False)
            assert addresses == {str(a) for a in list(network)[3:-1]}
            assert calls[0]() == "InsufficientFreeAddressesInSubnet"
            terminate_all(tight.ec2)
        give_all_back(tight)
        assert len(runner(tight, 1, 50)()["Instances"]) == 12
        give_all_back(tight)


def test_capacity_is_exhausted(small: Cloud) -> None:
    answers = at_once([runner(small) for _ in range(14)])
    assert Counter(a if isinstance(a, str) else "served" for a in answers) == {
        "served": 8, "InsufficientInstanceCapacity": 6}
    with small.redis_client() as redis:
        assert redis.hgetall(f"nova:claims:{FLAGS.host}") == {"memory_mb": str(8 * TINY), "vcpus": "8"}
        assert redis.hlen("nova:pool:network:admin:owners") == 8
        assert redis.scard("nova:instances:by-private_ip:") == 0
    assert runner(small)() == "InsufficientInstanceCapacity"


def test_as_many_as_fit(small: Cloud) -> None:
    """Between MinCount and MaxCount, what fits; below MinCount, nothing at all."""
    assert runner(small, 9, 20)() == "InsufficientInstanceCapacity"
    assert states(small.ec2) == {}
    assert len(runner(small, 2, 5)()["Instances"]) == 5
    assert len(runner(small, 1, 5)()["Instances"]) == 3
    assert runner(small, 1, 5)() == "InsufficientInstanceCapacity"
    terminate_all(small.ec2)
    answers = at_once([runner(small, 3, 5) for _ in range(4)])  # whoever comes second gets three
    sizes = sorted(len(a["Instances"]) for a in answers if isinstance(a, dict))
    assert sizes == [3, 5]
    assert Counter(a for a in answers if isinstance(a, str)) == {"InsufficientInstanceCapacity": 2}


async def test_projects_get_networks_of_their_own(roomy: Cloud) -> None:
    names = [f"p{n}" for n in range(6)]
    keys = []
    async with roomy.store() as store:
        auth = AuthManager(store)
        for name in names:
            user = await auth.create_user(name)
            await auth.create_project(name, name)
            keys.append({"aws_access_key_id": credentials.access_key(user, name), "aws_secret_access_key": user.secret})
    image = roomy.machine_image
    clients = [roomy.client("ec2", **key) for key in keys]
    kernels = roomy.ec2.describe_images(Owners=["self"])["Images"]
    sources = {i["ImageType"]: i["ImageId"] for i in kernels}
    # machine images are their project's own: each project registers one
    images = []
    for name, key in zip(names, keys, strict=True):
        s3 = roomy.client("s3", **key)
        s3.create_bucket(Bucket=f"images-{name}")
        s3.put_object(Bucket=f"images-{name}", Key="machine", Body=contents.machine())
        ec2 = roomy.client("ec2", **key)
        images.append(ec2.register_image(Name="machine", ImageLocation=f"images-{name}/machine",
                                         KernelId=sources["kernel"], RamdiskId=sources["ramdisk"])["ImageId"])
    assert image not in images
    calls = [lambda ec2=ec2, image=image: ec2.run_instances(ImageId=image, InstanceType="m1.tiny", MinCount=2,
                                                            MaxCount=2)
             for ec2, image in zip(clients, images, strict=True) for _ in range(2)]
    answers = at_once(calls)
    nets = {name: {ipaddress.ip_network(f"{i['PrivateIpAddress']}/24", strict=False)
                   for a in answers[2 * n:2 * n + 2] for i in a["Instances"]} for n, name in enumerate(names)}
    assert all(len(found) == 1 for found in nets.values())
    assert len(set.union(*nets.values())) == len(names)
    with roomy.redis_client() as redis:
        allotments = [redis.hget(f"nova:network:{name}", "allotment") for name in names]
    assert len({str(a).split(",")[0] for a in allotments}) == len(names)
    for ec2 in clients:
        terminate_all(ec2)


async def test_network_is_asked_for_and_given_back_at_once(store: Store) -> None:
    """Whoever is told of a network can take addresses of it, and none of an earlier network of the project."""
    async def ask() -> None:
        for _ in range(40):
            network = await network_models.network_of(store, "p", "host")
            tx = store.transaction()
            tx.expect(network)
            tx.take(network.addresses, "i-1")
            try:
                [address] = await tx.commit()
            except (exception.Conflict, exception.NotFound):
                continue  # given back meanwhile, and this was noticed
            tx = store.transaction()
            tx.give(network.addresses, "i-1", address)
            now = await store.get(Network, "p")  # an owned address keeps it
            assert now is not None and ipaddress.ip_address(address) in ipaddress.ip_network(now.cidr)
            await tx.commit()

    async def give_back() -> None:
        for _ in range(80):
            network = await store.get(Network, "p")
            if network is not None:
                with contextlib.suppress(exception.NotFound):
                    await network_models.give_back(store, network)
    await asyncio.gather(*[ask() for _ in range(4)], *[give_back() for _ in range(3)])
    network = await network_models.network_of(store, "p", "host")
    free = await store.redis.lrange(network.addresses.key, 0, -1)
    assert sorted(a.decode() for a in free) == sorted(map(str, list(ipaddress.ip_network(network.cidr))[3:-1]))
    assert await store.redis.llen(network_models.ALLOTMENTS.key) == len(network_models.all_allotments()) - 1
