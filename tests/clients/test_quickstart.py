"""The quick start may be cut short and run again at any point: what is there is kept, what is lost is made anew."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova import quickstart
from tests.clients.support import ROOT, Cloud
from tests.clients.test_boto3 import Boto3Client
from tests.conftest import environment_without_aws


class QuickStart:
    """Runs it against a cloud, with a state directory of its own."""

    def __init__(self, cloud: Cloud, state: Path):
        self.cloud, self.state = cloud, state

    def run(self, novarc: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nova.quickstart", f"--novarc={novarc or self.cloud.state_path / 'novarc'}",
             f"--state_path={self.state}", f"--starter_path={self.cloud.state_path / 'nowhere'}", "--demo",
             "--compute_driver=fake"], cwd=ROOT, env=environment_without_aws() | environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60)

    def instance(self) -> str:
        """The instance that it runs, or finds."""
        done = self.run()
        assert done.returncode == 0, done.stderr
        return json.loads((self.state / "demo.json").read_text())["instance_id"]


@pytest.fixture
def quick_start(fake_cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QuickStart]:
    yield QuickStart(fake_cloud, tmp_path)
    ec2 = Boto3Client(monkeypatch, fake_cloud).ec2
    alive = [i["InstanceId"] for r in ec2.describe_instances(
        Filters=[{"Name": "key-name", "Values": [quickstart.KEY_NAME]}])["Reservations"] for i in r["Instances"]]
    ec2.terminate_instances(InstanceIds=alive)
    ec2.get_waiter("instance_terminated").wait(InstanceIds=alive, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    ec2.delete_key_pair(KeyName=quickstart.KEY_NAME)


def test_run_again_it_finds_what_it_made(quick_start: QuickStart):
    first = quick_start.instance()
    assert quick_start.instance() == first
    assert (quick_start.state / "demo.pem").stat().st_mode & 0o777 == 0o600


def test_cut_short_before_it_noted_the_instance_it_does_not_run_another(quick_start: QuickStart):
    first = quick_start.instance()
    notes = quick_start.state / "demo.json"
    noted = json.loads(notes.read_text())
    del noted["instance_id"]
    notes.write_text(json.dumps(noted))
    assert quick_start.instance() == first


def test_a_lost_key_makes_a_new_key_and_instance(quick_start: QuickStart):
    first = quick_start.instance()
    key = quick_start.state / "demo.pem"
    before = key.read_text()
    key.unlink()
    assert quick_start.instance() != first
    assert key.read_text() != before


def test_a_terminated_instance_is_replaced(quick_start: QuickStart, monkeypatch: pytest.MonkeyPatch):
    first = quick_start.instance()
    ec2 = Boto3Client(monkeypatch, quick_start.cloud).ec2
    ec2.terminate_instances(InstanceIds=[first])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[first], WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    assert quick_start.instance() != first


def test_somebody_elses_aws_settings_do_not_count(quick_start: QuickStart):
    done = quick_start.run(AWS_ACCESS_KEY_ID="other", AWS_PROFILE="other", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr


def test_a_failure_is_one_line(fake_cloud: Cloud, tmp_path: Path):
    novarc = tmp_path / "novarc"
    text = (fake_cloud.state_path / "novarc").read_text()
    novarc.write_text(text.replace(fake_cloud.secret, "wrong"))
    done = QuickStart(fake_cloud, tmp_path).run(novarc)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("quick start: ") and "SignatureDoesNotMatch" in line and "nova-all.log" in line
