"""boto 2, the library of 2010, as Debian packages it: Signature Version 4 for EC2, Signature Version 2 for S3."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.support import Cloud
from tests.clients.whole_round import Seen, whole_round

PYTHON = "/usr/bin/python3"
WORKER = Path(__file__).with_name("boto2_worker.py")


class Boto2Client:
    """See :class:`tests.clients.whole_round.Client`."""

    def __init__(self, worker: subprocess.Popen):
        self._worker = worker

    def _call(self, name: str, *arguments: str) -> Any:
        assert self._worker.stdin and self._worker.stdout
        self._worker.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._worker.stdin.flush()
        answer = json.loads(self._worker.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def create_bucket(self, bucket: str) -> None:
        self._call("create_bucket", bucket)

    def upload(self, bucket: str, key: str, path: Path) -> None:
        assert self._call("upload", bucket, key, str(path)) == path.stat().st_size

    def download(self, bucket: str, key: str, path: Path) -> None:
        self._call("download", bucket, key, str(path))

    def empty_bucket(self, bucket: str, keys: list[str]) -> None:
        assert sorted(self._call("empty_bucket", bucket)) == sorted(keys)

    def register(self, name: str, location: str, kernel: str, ramdisk: str) -> str:
        return self._call("register", name, location, kernel, ramdisk)

    def image_state(self, image_id: str) -> str:
        return self._call("image_state", image_id)

    def deregister(self, image_id: str) -> None:
        assert self._call("deregister", image_id)

    def create_key(self, name: str) -> str:
        return self._call("create_key", name)

    def delete_key(self, name: str) -> None:
        assert self._call("delete_key", name)

    def run(self, image_id: str, key_name: str, user_data: str) -> str:
        return self._call("run", image_id, key_name, user_data)

    def see(self, instance_id: str) -> Seen:
        return Seen(*self._call("see", instance_id))

    def console(self, instance_id: str) -> str:
        return self._call("console", instance_id)

    def reboot(self, instance_id: str) -> None:
        assert self._call("reboot", instance_id)

    def terminate(self, instance_id: str) -> None:
        assert self._call("terminate", instance_id) == [instance_id]


@pytest.fixture
def boto2(cloud: Cloud) -> Iterator[Boto2Client]:
    if subprocess.run([PYTHON, "-c", "import boto"], capture_output=True, timeout=30).returncode != 0:
        pytest.skip("Debian's python3-boto is not installed")
    worker = subprocess.Popen([PYTHON, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env=cloud.child_environment())
    yield Boto2Client(worker)
    worker.kill()
    worker.wait()


def test_boto2_does_the_whole_round(cloud: Cloud, boto2: Boto2Client, tmp_path: Path):
    whole_round(cloud, boto2, "boto2", tmp_path)
