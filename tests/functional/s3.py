"""What the tests of the object store share: a server in a process of its own, its clients, signed requests."""

import asyncio
import base64
import http.client
import io
import os
import re
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

from nova import crypto, datastore
from nova.auth import tree
from nova.auth.fakeldap import FakeLdap
from nova.auth.manager import AuthManager
from tests.conftest import RedisServer, free_port

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

    def client(self, user: str = "one", **config):
        config = {"retries": {"max_attempts": 1, "mode": "standard"}, "s3": {"addressing_style": "path"}, **config}
        return boto3.client("s3", endpoint_url=self.url, aws_access_key_id=f"key{user}:{user}",
                            aws_secret_access_key=f"secret{user}", region_name="nova", config=Config(**config))

    def files(self) -> list[Path]:
        return [p for p in self.objects.glob("??/*") if p.is_file() and p.suffix != ".meta"]

    def resident(self) -> int:
        """Its resident memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def start(redis_url: str, directory: Path, *flags: str, within: tuple[str, ...] = ()) -> Server:
    """Start a server.

    :param within: a command that runs the one it is given
    """
    log = directory / "log"
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.functional.objectstore_server", "--s3_port=0",
             "--s3_listen=127.0.0.1", f"--redis_url={redis_url}", f"--state_path={directory}", *flags],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=out)
    line = process.stdout.readline().decode()
    assert line.startswith("listening"), log.read_text()
    return Server(process, int(line.split()[1]), directory / "objects", log)


def add_users(redis_url: str, ca_path: str = "") -> None:
    """Empty the Redis and put the users in.

    :param ca_path: the directory of the server's certificate authority; this process's own when empty
    """
    async def add() -> None:
        store = datastore.open_store(redis_url)
        await store.redis.flushall()
        key_path = os.path.join(ca_path or crypto.ca_path(), "directory.key")
        auth = AuthManager(store, FakeLdap(store, tree.roots(), key_path))
        for name in ("one", "two"):
            await auth.create_user(name, access=f"key{name}", secret=f"secret{name}")
            await auth.create_project(name, name)
        await store.close()
    with ThreadPoolExecutor(1) as threads:  # the caller may be in a loop
        threads.submit(asyncio.run, add()).result()


@pytest.fixture(name="server", scope="module")
def server_fixture(tmp_path_factory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("objectstore")
    own_redis = RedisServer(directory, free_port())
    own_redis.start()
    add_users(own_redis.url, str(directory / "ca"))
    running = start(own_redis.url, directory)
    running.redis = own_redis
    yield running
    running.process.terminate()
    running.process.wait(15)
    own_redis.kill()


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
    boto3_objects = s3.list_objects_v2(Bucket=name)
    while boto3_objects.get("Contents"):
        s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": o["Key"]} for o in boto3_objects["Contents"]]})
        boto3_objects = s3.list_objects_v2(Bucket=name)
    s3.delete_bucket(Bucket=name)


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
    own_redis = RedisServer(tmp_path, free_port())
    own_redis.start()
    add_users(own_redis.url, str(tmp_path / "ca"))
    yield own_redis, tmp_path
    own_redis.kill()


def stop(server: Server) -> None:
    server.process.terminate()
    assert server.process.wait(15) == 0
