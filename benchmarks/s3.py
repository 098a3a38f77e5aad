#!/usr/bin/env python3
"""S3 requests to Nova, alone and behind nginx, and to a peer, in one run: rates, speeds and the ratios.

    .venv/bin/python benchmarks/s3.py [--seconds 5] [--clients 16] [--small 4096] [--large 1073741824]
                                      [--keys 100000] [--rounds 3] [--only nova,nginx,...] [--json]

Nova verifies every signature and has every PUT on the disk before it answers, its redis-server syncs every write;
ministack keeps everything in memory.  Large GETs are compared with nginx giving out the same file, large PUTs
with `cat > file; sync; md5sum`.  Each figure is the median of the rounds, in which the servers take turns.  ministack
is installed from PyPI into `.cache`; nginx is Debian's.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nova import datastore  # noqa: E402
from nova.auth import signer, tree  # noqa: E402
from nova.auth.fakeldap import FakeLdap  # noqa: E402
from nova.auth.manager import AuthManager  # noqa: E402
from nova.objectstore.models import Bucket, Object, object_id  # noqa: E402
from tests.functional.nginx_server import Nginx  # noqa: E402

ACCESS, SECRET = "benchmark:benchmark", "benchmark-secret"
SERVERS = ("nova", "nginx", "ministack")
KEYS = 500


@dataclass
class Server:
    """A server: its port and the process whose memory counts."""

    name: str
    port: int
    pid: int
    figures: dict[str, list[float]] = field(default_factory=dict)

    def resident(self) -> float:
        """The most memory that it has had, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

    def request(self, method: str, path: str, body: bytes = b"", query: str = "", length: int | None = None,
                sha256: str = "") -> bytes:
        """A signed request, its body not among it when its length and hash are given."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        headers = {"host": f"127.0.0.1:{self.port}",
                   "x-amz-content-sha256": sha256 or hashlib.sha256(body).hexdigest(), "x-amz-date": stamp}
        names = ";".join(headers)
        canonical = "\n".join([method, path, query, *(f"{k}:{v}" for k, v in headers.items()), "", names,
                               headers["x-amz-content-sha256"]])
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(signer.signing_key(SECRET, scope), text.encode(), "sha256").hex()
        headers |= {"authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope}, SignedHeaders={names}, "
                                     f"Signature={signature}",
                    "user-agent": "Boto3/1.36.0 md/Botocore#1.36.0 ua/2.0 os/linux md/arch#x86_64 lang/python#3.11.7",
                    "accept-encoding": "identity", "content-length": str(len(body) if length is None else length)}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path}{'?' * bool(query)}{query} HTTP/1.1\r\n{head}\r\n".encode() + body

    def ask(self, request: bytes) -> bytes:
        """One request on a connection of its own; the answer's body."""
        with socket.create_connection(("127.0.0.1", self.port), 120) as s, s.makefile("rb") as answer:
            s.sendall(request)
            return _read(answer)


def _read(answer: Any) -> bytes:
    status = answer.readline()
    head = b"".join(iter(answer.readline, b"\r\n"))
    if b" 200" not in status:
        sys.exit(f"{status!r} {head!r}")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    if length:
        return answer.read(int(length[1]))
    body = b""
    while re.search(rb"(?i)transfer-encoding: *chunked", head) and (size := int(answer.readline(), 16)):
        body += answer.read(size)
        answer.readline()
    return body


# -- the servers ------------------------------------------------------------------------------------------------------

def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(port: int) -> None:
    """Poll until somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            sys.exit("a server does not start")
        time.sleep(0.05)


@contextmanager
def running(*command: str, port: int, **environment: str) -> Iterator[int]:
    """A server that listens at a port; its process id."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, **environment})
    try:
        wait_for_port(port)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def _populate(url: str, directory: Path, keys: int) -> None:
    store = datastore.open_store(url)
    auth = AuthManager(store, FakeLdap(store, tree.roots(), os.path.join(directory, "ca", "directory.key")))
    await auth.create_user("benchmark", access="benchmark", secret=SECRET)
    await auth.create_project("benchmark", "benchmark")
    bucket = await store.create(Bucket("many", project_id="benchmark", created=time.time(), user_id="benchmark"))
    for start in range(0, keys, 1000):  # records without files: they are only listed
        tx = store.transaction()
        for n in range(start, min(start + 1000, keys)):
            key = f"key-{n:08}"
            tx.create(Object(object_id("many", key), "many", key, "benchmark", "", 4096, "0" * 32, "0" * 64, "0" * 32,
                             time.time()))
            tx.zadd_lex(bucket.keys_key, key.encode())
        await tx.commit()
    await store.close()


@contextmanager
def nova(directory: Path, keys: int) -> Iterator[tuple[Server, Server, Nginx]]:
    """nova-objectstore alone, the same behind nginx, and the nginx."""
    path, port, secret = directory / "redis.sock", free_port(), "benchmark"
    redis = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", str(path), "--dir", str(directory),
                              "--appendonly", "yes", "--appendfsync", "always", "--save", ""],
                             stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not path.exists():
            if time.monotonic() > deadline:
                sys.exit("redis-server does not start")
            time.sleep(0.05)
        asyncio.run(_populate(f"unix://{path}", directory, keys))
        with running(sys.executable, str(ROOT / "bin/nova-objectstore"), f"--state_path={directory}",
                     f"--redis_url=unix://{path}", "--amqp_url=memory://", f"--s3_port={port}",
                     "--s3_listen=127.0.0.1", f"--proxy_secret={secret}",
                     f"--ca_path={directory / 'ca'}", "--user_object_gb=-1", "--project_object_gb=-1",
                     port=port) as pid:
            nginx = Nginx(directory / "nginx", s3_backends=[port], objects=directory / "objects", secret=secret)
            nginx.start()
            try:
                yield Server("nova", port, pid), Server("nginx", nginx.s3_port, pid), nginx
            finally:
                nginx.stop()
    finally:
        redis.terminate()
        redis.wait()


@contextmanager
def ministack() -> Iterator[Server]:
    """The peer, in a virtual environment of its own."""
    venv = ROOT / ".cache" / "ministack"
    if not (venv / "bin/ministack").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin/pip"), "install", "-q", "ministack"], check=True)
    port = free_port()
    with running(str(venv / "bin/ministack"), port=port, GATEWAY_PORT=str(port), SERVICES="s3",
                 BIND_HOST="127.0.0.1") as pid:
        yield Server("ministack", port, pid)


# -- the measurements -------------------------------------------------------------------------------------------------

class _Client(asyncio.Protocol):
    """Sends requests over one connection, each as soon as the one before is answered."""

    def __init__(self, requests: list[bytes], end: float):
        self._requests, self._end = requests, end
        self.done, self.over = 0, asyncio.get_running_loop().create_future()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        transport.write(self._requests[0])  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            self.over.set_exception(RuntimeError(self._buffer))
        elif len(body) >= int(length[1]):
            self._buffer = b""
            self.done += 1
            if time.monotonic() < self._end:
                self._transport.write(self._requests[self.done % len(self._requests)])
            elif not self.over.done():
                self.over.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error or RuntimeError("the server hung up"))


async def _rate(port: int, requests: list[bytes], seconds: float, clients: int) -> float:
    began = time.monotonic()
    protocols = []
    for n in range(clients):
        share = requests[n::clients]
        _, protocol = await asyncio.get_running_loop().create_connection(
            lambda share=share: _Client(share, began + seconds), "127.0.0.1", port)  # type: ignore[misc]
        protocols.append(protocol)
    await asyncio.gather(*(p.over for p in protocols))
    rate = sum(p.done for p in protocols) / (time.monotonic() - began)
    for protocol in protocols:
        protocol._transport.close()
    return rate


def small(server: Server, arguments: argparse.Namespace, method: str) -> float:
    """Requests a second."""
    body = os.urandom(arguments.small)
    requests = [server.request(method, f"/{server.name}-small/key-{n}", body if method == "PUT" else b"")
                for n in range(KEYS)]
    return asyncio.run(_rate(server.port, requests, arguments.seconds, arguments.clients))


def put_large(server: Server, file: Path, sha256: str) -> float:
    """MB/s of one PUT."""
    size = file.stat().st_size
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", server.port), 600) as s, s.makefile("rb") as answer:
        s.sendall(server.request("PUT", f"/{server.name}-large/large", length=size, sha256=sha256))
        with open(file, "rb") as source:
            s.sendfile(source)
        _read(answer)
    return size / (time.perf_counter() - began) / 1e6


def get_large(port: int, request: bytes, size: int) -> float:
    """MB/s of one GET."""
    room = memoryview(bytearray(1 << 20))
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), 600) as s:
        s.sendall(request)
        first = s.recv(65536)
        if not first.startswith(b"HTTP/1.1 200"):
            sys.exit(repr(first))
        left = size - len(first.partition(b"\r\n\r\n")[2])
        while left > 0:
            got = s.recv_into(room)
            if not got:
                sys.exit("the answer is too short")
            left -= got
    return size / (time.perf_counter() - began) / 1e6


def by_shell(file: Path, directory: Path) -> float:
    """MB/s of the least that a PUT has to do."""
    began = time.perf_counter()
    subprocess.run(["sh", "-c", 'cat "$0" >"$1" && sync "$1" && md5sum "$1"', str(file), str(directory / "copy")],
                   check=True, stdout=subprocess.DEVNULL)
    speed = file.stat().st_size / (time.perf_counter() - began) / 1e6
    (directory / "copy").unlink()
    return speed


def listing(server: Server, bucket: str) -> float:
    """Milliseconds of a page of 1,000 keys, the median of ten."""
    times = []
    for _ in range(10):
        request = server.request("GET", f"/{bucket}", query="list-type=2&max-keys=1000")
        began = time.perf_counter()
        body = server.ask(request)
        times.append(time.perf_counter() - began)
        if body.count(b"<Contents>") < min(KEYS, 1000):
            sys.exit(f"{server.name} lists {body.count(b'<Contents>')} keys")
    return statistics.median(times) * 1000


def measure(arguments: argparse.Namespace, directory: Path, servers: list[Server], nginx: Nginx) -> dict[str, Any]:
    """All figures: by name, then by server."""
    figures: dict[str, dict[str, list[float]]] = {}

    def add(name: str, of: str, value: float) -> None:
        figures.setdefault(name, {}).setdefault(of, []).append(value)
        print(f"  {of}: {name} {value:.1f}", file=sys.stderr)
    large = directory / "large"
    digest = hashlib.sha256()
    with open(large, "wb") as file:
        for _ in range(arguments.large >> 20):
            block = os.urandom(1 << 20)
            digest.update(block)
            file.write(block)
    for server in servers:
        for kind in ("small", "large"):
            server.ask(server.request("PUT", f"/{server.name}-{kind}"))
        for n in range(KEYS):
            server.ask(server.request("PUT", f"/{server.name}-small/key-{n}", b"first"))
    per_second = f"of {arguments.small} B, {arguments.clients} clients (1/s)"
    for _ in range(arguments.rounds):
        for server in servers:
            add(f"PUT {per_second}", server.name, small(server, arguments, "PUT"))
            add(f"GET {per_second}", server.name, small(server, arguments, "GET"))
    size = f"of {arguments.large >> 20} MiB (MB/s)"
    nginx.give(large)
    for _ in range(arguments.rounds if arguments.large else 0):
        add(f"PUT {size}", "shell", by_shell(large, directory))
        for server in servers:
            if server.name in ("nova", "nginx"):
                add(f"PUT {size}", server.name, put_large(server, large, digest.hexdigest()))
        for server in servers:
            if server.name in ("nova", "nginx"):
                add(f"GET {size}", server.name, get_large(
                    server.port, server.request("GET", f"/{server.name}-large/large"), arguments.large >> 20 << 20))
        plain = f"GET /large HTTP/1.1\r\nHost: 127.0.0.1:{nginx.plain_port}\r\n\r\n".encode()
        add(f"GET {size}", "plain nginx", get_large(nginx.plain_port, plain, arguments.large >> 20 << 20))
    for server in servers:
        add(f"LIST of {KEYS} (ms)", server.name, listing(server, f"{server.name}-small"))
        if server.name == "nova":
            add(f"LIST of 1000 of {arguments.keys} (ms)", "nova", listing(server, "many"))
    for server in servers:
        if server.name != "nginx":
            add("memory (MiB)", server.name, server.resident())
    return {name: {of: statistics.median(values) for of, values in row.items()} for name, row in figures.items()}


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each run of small requests")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--small", type=int, default=4096, help="bytes of a small object")
    parser.add_argument("--large", type=int, default=1 << 30, help="bytes of the large object; 0: none")
    parser.add_argument("--keys", type=int, default=100000, help="in the bucket that is listed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SERVERS), help="some of " + ",".join(SERVERS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if not set(wanted) <= set(SERVERS):
        parser.error(f"--only takes some of {','.join(SERVERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers and removes the files, too
    directory = Path(tempfile.mkdtemp(prefix="nb-"))
    try:
        with ExitStack() as stack:
            alone, behind, nginx = stack.enter_context(nova(directory, arguments.keys))
            servers = [s for s in (alone, behind) if s.name in wanted]
            if "ministack" in wanted:
                servers.append(stack.enter_context(ministack()))
            figures = measure(arguments, directory, servers, nginx)
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    columns = ["nova", "nginx", "ministack", "plain nginx", "shell"]
    print(f"{'':42}" + "".join(f"{name:>12}" for name in columns))
    for name, row in figures.items():
        print(f"{name:42}" + "".join(f"{row[c]:12.1f}" if c in row else f"{'':>12}" for c in columns))


if __name__ == "__main__":
    main()
