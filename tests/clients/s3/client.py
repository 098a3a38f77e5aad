"""What the tests of the object store want of a client, and what clients of all kinds are built of.

A client is a class of :mod:`tests.clients.s3.libraries` or :mod:`tests.clients.s3.commands`.  It has those methods of
:class:`Client` that the software behind it can do; a test runs with each client that has the methods it names.
"""

import hashlib
import http.client
import itertools
import json
import os
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.conftest import environment_without_aws

#: seconds after which a client that says nothing has failed
PATIENCE = 120
MIB = 1 << 20
#: where aws and boto3, rclone, Amazon's SDK for JavaScript, and s3fs look for the authority's certificate
_CA_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Endpoint:
    """Where the object store is, and with which credentials."""

    url: str
    access: str
    secret: str
    region: str = "nova"
    ca: str = ""
    """the file with the certificate of the authority that signed the server's, where there is TLS"""

    @property
    def address(self) -> str:
        """host:port"""
        return urlsplit(self.url).netloc

    def environment(self, home: Path) -> dict[str, str]:
        """A shell's environment as novarc makes it, in a home directory with nothing in it."""
        return {**environment_without_aws(), "HOME": str(home), "AWS_ACCESS_KEY_ID": self.access,
                "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_DEFAULT_REGION": self.region,
                "AWS_ENDPOINT_URL_S3": self.url, "AWS_EC2_METADATA_DISABLED": "true", "AWS_PAGER": "",
                "S3_URL": self.url, "EC2_ACCESS_KEY": self.access, "EC2_SECRET_KEY": self.secret,
                **({name: self.ca for name in _CA_VARIABLES} if self.ca else {})}


@dataclass(frozen=True)
class Seen:
    """An object as a client shows it without its bytes: `etag` without quotes, names of metadata in small letters."""

    size: int
    etag: str
    content_type: str
    metadata: dict[str, str] = field(default_factory=dict)


class Client(Protocol):
    """What there is to do; a class leaves out what its software cannot do."""

    #: software that cannot name keys with two slashes in a row says False
    double_slashes: bool

    def make_bucket(self, bucket: str) -> None: ...

    def remove_bucket(self, bucket: str) -> None: ...

    def buckets(self) -> list[str]: ...

    def put(self, bucket: str, key: str, path: Path, content_type: str = "", metadata: dict[str, str] | None = None
            ) -> None:
        """Upload a file, in parts when the software by itself does so for one of this size."""

    def get(self, bucket: str, key: str, path: Path) -> None: ...

    def get_range(self, bucket: str, key: str, first: int, last: int) -> bytes: ...

    def head(self, bucket: str, key: str) -> Seen: ...

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """All keys with a prefix, however many pages that takes."""

    def level(self, bucket: str, prefix: str) -> tuple[list[str], list[str]]:
        """Keys, and prefixes up to the next slash, below a prefix that ends with a slash; both in full length."""

    def copy(self, bucket: str, key: str, new: str) -> None: ...

    def delete(self, bucket: str, key: str) -> None: ...

    def delete_many(self, bucket: str, keys: list[str]) -> None: ...

    def presign_get(self, bucket: str, key: str) -> str: ...

    def presign_put(self, bucket: str, key: str) -> str: ...

    def sync_up(self, directory: Path, bucket: str) -> None:
        """Make a bucket like a directory; what is in the bucket only goes."""

    def sync_down(self, bucket: str, directory: Path) -> None:
        """Make a directory like a bucket."""

    def close(self) -> None: ...


class Worker:
    """A program that takes a call a line, as JSON, and answers with a line of JSON: ``{"result"}`` or ``{"error"}``."""

    def __init__(self, *command: str, environment: dict[str, str]):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         env=environment)

    def call(self, name: str, *arguments: Any) -> Any:
        """:raises AssertionError: the program says that it failed, or nothing at all"""
        assert self._process.stdin and self._process.stdout
        watch = threading.Timer(PATIENCE, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        assert line, f"{name}: no answer"
        answer = json.loads(line)
        assert "error" not in answer, f"{name}: {answer['error']}"
        return answer["result"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def random_bytes(size: int, seed: str) -> bytes:
    """The same bytes for the same seed, of which no two pieces are alike."""
    return hashlib.shake_128(seed.encode()).digest(size)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def etag_of_parts(data: bytes, sizes: list[int]) -> str:
    """The ETag that S3 gives to an object uploaded in parts of these sizes."""
    ends = list(itertools.accumulate(sizes))
    digests = b"".join(bytes.fromhex(md5(data[end - size:end])) for size, end in zip(sizes, ends, strict=True))
    return f"{md5(digests)}-{len(sizes)}"


def fetch(method: str, url: str, body: bytes | None = None, ca: str = "") -> tuple[int, bytes]:
    """Status and body of the answer to a request without any header of its own: for URLs that are all one needs.

    :param ca: as in Endpoint
    """
    parts = urlsplit(url)
    assert parts.hostname and (parts.scheme == "https") == bool(ca)
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port, timeout=PATIENCE, context=strict_context(ca)) if ca else http.client.HTTPConnection(
        parts.hostname, parts.port, timeout=PATIENCE)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def strict_context(ca: str) -> ssl.SSLContext:
    """How a client verifies servers that takes certificates by the letter, as Python does from version 3.13 on."""
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def files_below(directory: Path) -> dict[str, bytes]:
    """Path within a directory -> content, of all files."""
    return {os.fspath(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*") if path.is_file()}
