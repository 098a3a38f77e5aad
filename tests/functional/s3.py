"""What the tests of the object store share: a server in a process of its own, its clients, signed requests."""

import asyncio
import base64
import contextlib
import http.client
import io
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from nova import datastore
from nova.auth.manager import AuthManager
from nova.flags import FLAGS
from tests import slapd
from tests.conftest import RedisServer, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@dataclass
class Server:
    """A running object store with two projects, whose users are 'one' and 'two'."""

    process: subprocess.Popen
    port: int
    objects: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, user: str = "one", project: str = "", **config):
        config = {"retries": {"max_attempts": 1, "mode": "standard"}, "s3": {"addressing_style": "path"}, **config}
        return boto3.client("s3", endpoint_url=self.url, aws_access_key_id=f"key{user}:{project or user}",
                            aws_secret_access_key=f"secret{user}", region_name="nova", config=Config(**config))

    def files(self) -> list[Path]:
        return [p for p in self.objects.glob("??/*") if p.is_file() and p.suffix != ".meta"]

    def wait_for_files(self, number: int) -> None:
        """Wait until there are so many; those that were replaced go a moment after the answer."""
        wait_until(lambda: len(self.files()) == number, 10, f"{number} files")

    def resident(self) -> int:
        """Its resident memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def start(redis_url: str, directory: Path, *flags: str, within: tuple[str, ...] = ()) -> Server:
    """Start a server with its files in a directory, and with the nova.conf there.

    :param within: a command that runs the one it is given
    """
    log = directory / "log"
    if (directory / "nova.conf").exists():
        flags = (f"--flagfile={directory}/nova.conf", *flags)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.functional.objectstore_server", "--s3_port=0",
             "--s3_listen=127.0.0.1", f"--redis_url={redis_url}", f"--state_path={directory}", *flags],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=out)
    line = process.stdout.readline().decode()
    assert line.startswith("listening"), log.read_text()
    return Server(process, int(line.split()[1]), directory / "objects", log)


def add_users(redis_url: str, ca_path: str = "") -> None:
    """Empty the Redis and put the users in, into the directory that the flags name.

    :param ca_path: the directory of the server's certificate authority; this process's own when empty
    """
    async def add() -> None:
        store = datastore.open_store(redis_url)
        await store.redis.flushall()
        before, FLAGS.ca_path = FLAGS.ca_path, ca_path or FLAGS.ca_path
        auth = AuthManager(store)
        FLAGS.ca_path = before
        for name in ("one", "two"):
            await auth.create_user(name, access=f"key{name}", secret=f"secret{name}")
            await auth.create_project(name, name)
        for name in ("anna", "berta"):
            await auth.create_user(name, access=f"key{name}", secret=f"secret{name}")
            await auth.add_member("one", name)
        await store.close()
    with ThreadPoolExecutor(1) as threads:  # the caller may be in a loop
        threads.submit(asyncio.run, add()).result()


@contextlib.contextmanager
def own_stores(directory: Path) -> Iterator[RedisServer]:
    """A redis-server, and a directory that is not the embedded one if so chosen, with the users in it: for servers
    that are started in `directory`."""
    own_redis = RedisServer(directory, free_port())
    own_redis.start()
    with contextlib.ExitStack() as until_end:
        until_end.callback(own_redis.kill)
        with contextlib.ExitStack() as while_adding:
            if slapd.chosen() == slapd.LDAP:
                own_slapd = until_end.enter_context(slapd.running_slapd())
                shutil.copy(own_slapd.flagfile, directory / "nova.conf")
                while_adding.enter_context(own_slapd.used())
            add_users(own_redis.url, str(directory / "ca"))
        yield own_redis

@pytest.fixture(name="server", scope="module")
def server_fixture(tmp_path_factory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("objectstore")
    with own_stores(directory) as own_redis:
        running = start(own_redis.url, directory)
        running.redis = own_redis
        yield running
        running.process.terminate()
        running.process.wait(15)


@pytest.fixture(name="s3")
def s3_fixture(server: Server):
    return server.client()


_names = iter(range(10**6))


@pytest.fixture(name="bucket")
def bucket_fixture(server: Server, s3) -> Iterator[str]:
    name = f"bucket-{next(_names)}"
    s3.create_bucket(Bucket=name)
    yield name
    for upload in s3.list_multipart_uploads(Bucket=name).get("Uploads", ()):
        s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    empty(s3, name)
    s3.delete_bucket(Bucket=name)


def empty(s3, bucket: str) -> None:
    """Remove all versions of all objects."""
    while True:
        page = s3.list_object_versions(Bucket=bucket)
        there = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        if not there:
            return
        s3.delete_objects(Bucket=bucket, Delete={
            "Objects": [{"Key": v["Key"], "VersionId": v["VersionId"]} for v in there]})


def code_of(error: pytest.ExceptionInfo) -> tuple[str, int]:
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def sign(server, method, path, body=b"", headers=None, payload=None, user="one"):
    request = AWSRequest(method, server.url + path, data=body, headers=dict(headers or {}))
    signer = botocore.auth.S3SigV4Auth(Credentials(f"key{user}:{user}", f"secret{user}"), "s3", "nova")
    if payload:
        signer.payload = lambda request: payload
    signer.add_auth(request)
    return request


def signed(server, method, path, body=b"", headers=None, payload=None, user="one"):
    request = sign(server, method, path, body, headers, payload, user)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    sent = {k: v for k, v in request.headers.items()}
    connection.request(method, path, body, sent, encode_chunked="Transfer-Encoding" in sent)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


class Zeros(io.RawIOBase):
    """A file of zeros that is not in memory."""

    def __init__(self, size: int):
        self.size, self.at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, count: int = -1) -> bytes:
        count = min(self.size - self.at, count if count >= 0 else self.size)
        self.at += count
        return bytes(count)


@pytest.fixture(name="own")
def own_fixture(tmp_path) -> Iterator[tuple[RedisServer, Path]]:
    with own_stores(tmp_path) as own_redis:
        yield own_redis, tmp_path


def stop(server: Server) -> None:
    server.process.terminate()
    assert server.process.wait(15) == 0
