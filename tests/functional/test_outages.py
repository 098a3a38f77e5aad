"""What the cloud stands on fails, and it is started wrongly: clients and operators are told, and nothing is lost."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nova.compute.models import Instance
from tests.conftest import RedisServer, free_port, wait_until
from tests.functional.cloud import Cloud, at_once, cloud, instances, outcome, states, terminate_all, timed

FAKE = "--compute_driver=fake"
#: seconds within which an outage of Redis must be told
TOLD = 2.0


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    """A cloud of records with a redis-server of its own."""
    with cloud(FAKE, "--converge_interval=2") as made:
        made.start()
        assert made.machine_image
        yield made


@pytest.fixture
def up(the_cloud: Cloud) -> Iterator[Cloud]:
    """The cloud, running and empty; it must be in order after the test."""
    yield the_cloud
    if not the_cloud.alive:
        the_cloud.start()
    terminate_all(the_cloud.ec2)
    assert "Traceback" not in the_cloud.log.read_text()


def run_one(made: Cloud) -> str:
    """Run an instance and wait until it runs; its id."""
    answer = made.ec2.run_instances(ImageId=made.machine_image, InstanceType="m1.tiny", MinCount=1, MaxCount=1)
    id = answer["Instances"][0]["InstanceId"]
    wait_until(lambda: states(made.ec2)[id] == "running", 15, f"{id} running")
    return str(id)


def check_unavailable(made: Cloud) -> None:
    """Every kind of request is answered in time, with 503."""
    calls = [made.ec2.describe_instances, made.ec2.describe_images, made.ec2.describe_availability_zones,
             lambda: made.ec2.run_instances(ImageId=made.machine_image, MinCount=1, MaxCount=1), made.s3.list_buckets]
    for call in calls:
        answer, seconds = timed(lambda call=call: outcome(call))
        assert answer in ("Unavailable", "ServiceUnavailable"), answer
        assert seconds < TOLD
    answers = at_once([lambda: timed(lambda: outcome(made.ec2.describe_instances))] * 20)
    assert {answer for answer, _ in answers} == {"Unavailable"}
    assert max(seconds for _, seconds in answers) < TOLD + 0.5  # 20 threads on this side


def check_all_is_well(made: Cloud, *ids: str) -> None:
    """Within a moment all works as before, and these instances run."""
    wait_until(lambda: isinstance(outcome(made.ec2.describe_instances), dict), 10, "the return of Redis")
    assert states(made.ec2) == dict.fromkeys(ids, "running")
    wait_until(lambda: outcome(lambda: run_one(made)) not in ("Unavailable", "InsufficientInstanceCapacity"), 15,
               "a new instance, once the compute host has shown that it lives")
    assert made.alive


def test_redis_is_killed(up: Cloud) -> None:
    """nova-all starts its redis-server again; what was acknowledged is there."""
    for _ in range(2):
        ids = [run_one(up)]
        before = up.redis_pid()
        os.kill(before, signal.SIGKILL)
        answer, seconds = timed(lambda: outcome(up.ec2.describe_instances))
        assert seconds < TOLD and (answer == "Unavailable" or isinstance(answer, dict))
        check_all_is_well(up, *ids)
        assert up.redis_pid() != before
        terminate_all(up.ec2)


def test_redis_hangs(up: Cloud) -> None:
    id, pid = run_one(up), up.redis_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        check_unavailable(up)
    finally:
        os.kill(pid, signal.SIGCONT)
    check_all_is_well(up, id)
    assert up.redis_pid() == pid  # it was not replaced by a second one on the same files
    servers = subprocess.run(["pgrep", "-f", "redis-server.*" + str(up.redis_socket)], capture_output=True, check=False)
    assert len(servers.stdout.split()) == 1


@pytest.fixture
def external(short_path: Any) -> Iterator[RedisServer]:
    """A redis-server that is not nova-all's."""
    server = RedisServer(short_path, free_port())
    server.start()
    yield server
    server.kill()


def test_external_redis_is_killed(external: RedisServer) -> None:
    with cloud(FAKE, "--converge_interval=2", f"--redis_url={external.url}") as made:
        made.start()
        id = run_one(made)
        external.kill()
        check_unavailable(made)
        terminating = outcome(lambda: made.ec2.terminate_instances(InstanceIds=[id]))
        assert terminating == "Unavailable"
        wait_until(lambda: "cannot list the instances" in made.log.read_text(), 10, "a sweep without Redis")
        assert made.alive
        external.start()
        check_all_is_well(made, id)
        assert not (made.state / "redis").exists()
        assert "Traceback" not in made.log.read_text()
        made.stop()


def test_start_without_redis_says_so(external: RedisServer) -> None:
    external.kill()
    with cloud(FAKE, f"--redis_url={external.url}") as made:
        ended, seconds = timed(lambda: made.run(timeout=30))
        assert ended.returncode == 1
        assert len(ended.stderr.strip().splitlines()) == 1 and "Traceback" not in ended.stderr
        assert "redis" in ended.stderr.lower() or "datastore" in ended.stderr.lower(), ended.stderr
        assert seconds < 15


def test_killed_and_started_again(up: Cloud) -> None:
    id, redis = run_one(up), up.redis_pid()
    before = instances(up.ec2, InstanceIds=[id])
    up.kill9()
    up.start()
    assert up.redis_pid() == redis  # adopted, not started
    assert instances(up.ec2, InstanceIds=[id]) == before
    check_all_is_well(up, id)


def test_stopped_and_started_again(up: Cloud) -> None:
    """A stop in order ends the redis-server too; all is there at the next start."""
    id = run_one(up)
    assert up.stop() == 0
    assert not (up.state / "ready.json").exists()
    with pytest.raises(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(up.redis_socket))
    up.start()
    check_all_is_well(up, id)


def one_line(ended: "subprocess.CompletedProcess[str]") -> str:
    """What a start that failed said: one line, and exit code 1."""
    assert ended.returncode == 1, ended
    [line] = ended.stderr.strip().splitlines()
    return line


def test_second_cloud_in_the_directory_is_refused(up: Cloud) -> None:
    ports = ("--ec2_port=0", "--s3_port=0", "--metadata_port=0")
    assert str(up.state) in one_line(up.run(*ports))
    assert str(up.state) in one_line(up.run("--clean"))
    assert up.alive and isinstance(up.ec2.describe_instances(), dict)


@pytest.mark.parametrize("flag", ["ec2_port", "s3_port", "metadata_port"])
def test_port_in_use(flag: str) -> None:
    with cloud(FAKE) as made, socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line(made.run(f"--{flag}={port}"))
        assert str(port) in line and flag in line
        made.start()  # what failed left nothing that is in the way
        assert made.stop() == 0


@pytest.mark.parametrize("flag", [
    "--no_such_flag=1", "--ec2_port=ninety", "--ec2_port=70000", "--compute_driver=vmware", "--network_size=3",
    "--flagfile=/nonexistent", "--converge_interval=0", "--private_range=10.202.0.0/33", "--network_size=100000000",
    "--amqp_url=nonsense", "--redis_url=nonsense", "--state_path=/proc/nova"])
def test_wrong_flags(flag: str) -> None:
    with cloud(FAKE) as made:
        line = one_line(made.run(flag, timeout=20))
        assert flag.lstrip("-").split("=")[0] in line, line


async def test_lost_message(up: Cloud) -> None:
    """Nobody is told that an instance is not wanted any more; its host finds out by itself."""
    id = run_one(up)
    async with up.store() as store:
        await store.modify(Instance, id, lambda i: {"wanted": "terminated", "state": "shutting-down"})
    began = time.monotonic()
    wait_until(lambda: not states(up.ec2), 10, "the end of the instance")
    assert time.monotonic() - began < 2 * 1.1 + 1.5  # the interval, and a moment for the work
    assert not (up.state / "instances" / id).exists()
    wait_until(lambda: not list((up.state / "fake-networks").glob("*.json")), 10, "the end of the network")


def test_guest_that_vanished(up: Cloud) -> None:
    """The guest of an instance that is wanted is gone from the host; it is started again."""
    id = run_one(up)
    guest = up.state / "fake-guests" / f"{id}.json"
    guest.unlink()
    wait_until(guest.exists, 10, "the guest")
    wait_until(lambda: states(up.ec2) == {id: "running"}, 5, "the instance running")


def test_guest_that_nobody_wants(up: Cloud) -> None:
    """A guest and a directory of no record are removed."""
    id = run_one(up)
    stray, directory = up.state / "fake-guests" / "i-00c0ffee.json", up.state / "instances" / "i-00c0ffee"
    directory.mkdir()
    stray.write_text((up.state / "fake-guests" / f"{id}.json").read_text().replace(id, "i-00c0ffee"))
    wait_until(lambda: not stray.exists() and not directory.exists(), 10, "the end of the stray guest")
    assert states(up.ec2) == {id: "running"}
