#!/usr/bin/env python3
"""S3 requests to Nova, alone and behind nginx, and to its peers, in one run: rates, speeds, memory, and the ratios.

    .venv/bin/python benchmarks/s3.py [--rows small,large,list] [--only nova,nginx,ministack,moto] [--seconds 5]
                                      [--clients 16] [--small 4096] [--large 1073741824] [--keys 100000] [--rounds 3]
                                      [--workers 0] [--json]

Nova verifies every signature and has every PUT on the disk before it answers, its redis-server syncs every write;
ministack and moto keep everything in memory and verify nothing.  Large GETs are compared with nginx giving out the same
file, large PUTs with `cat > file; sync; md5sum`.  Each figure is the median of the rounds, in which the servers take
turns; memory is the most there was in the whole run, looked at twice a second.

ministack and moto are installed from PyPI into `.cache`, each into an environment of its own.  moto's server closes
each connection after one request, so that its clients have to connect anew for each; all others keep them.  nginx is
Debian's.
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
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nova import datastore  # noqa: E402
from nova.auth import signer, tree  # noqa: E402
from nova.auth.fakeldap import FakeLdap  # noqa: E402
from nova.auth.manager import AuthManager  # noqa: E402
from nova.objectstore.models import Bucket, Object, object_id  # noqa: E402
from tests.functional.nginx_server import Nginx  # noqa: E402

ACCESS, SECRET = "benchmark:benchmark", "benchmark-secret"
SERVERS = ("nova", "nginx", "ministack", "moto")
ROWS = ("small", "large", "list")
#: in the bucket of small objects
KEYS = 1000


class Memory(threading.Thread):
    """Looks at the memory of processes and their children, and remembers the most, in MiB.

    `resident` is that of the largest process; `proportional` is that of all, what they share counted once.
    """

    def __init__(self, pids: dict[str, int]):
        super().__init__(daemon=True)
        self._pids, self._end = pids, threading.Event()
        self.resident: dict[str, float] = {}
        self.proportional: dict[str, float] = {}

    def run(self) -> None:
        """Look, until :meth:`stop`."""
        while not self._end.wait(0.5):
            for name, pid in self._pids.items():
                with suppress(OSError):  # one ends meanwhile
                    self._look(name, family(pid))

    def _look(self, name: str, pids: list[int]) -> None:
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
        resident, proportional = ([int(re.findall(rf"{kind}:\s+(\d+)", text)[0]) / 1024 for text in texts]
                                  for kind in ("Rss", "Pss"))
        self.resident[name] = max(self.resident.get(name, 0.0), *resident)
        self.proportional[name] = max(self.proportional.get(name, 0.0), sum(proportional))

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        self.join()


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@dataclass
class Server:
    """A server: its port, and its process or the one whose children serve."""

    name: str
    port: int
    pid: int

    def cpu(self) -> float:
        """Seconds of CPU time that it has used."""
        ticks = 0
        for pid in family(self.pid):
            words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")

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
def nova(directory: Path, keys: int, workers: int = 0) -> Iterator[tuple[Server, Server, Nginx, int]]:
    """nova-objectstore alone, the same behind nginx, the nginx, and the process of redis-server."""
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
                     "--s3_listen=127.0.0.1", f"--s3_workers={workers}", f"--proxy_secret={secret}",
                     f"--ca_path={directory / 'ca'}", "--user_object_gb=-1", "--project_object_gb=-1",
                     port=port) as pid:
            nginx = Nginx(directory / "nginx", s3_backends=[port], objects=directory / "objects", secret=secret)
            nginx.start()
            try:
                yield Server("nova", port, pid), Server("nginx", nginx.s3_port, pid), nginx, redis.pid
            finally:
                nginx.stop()
    finally:
        redis.terminate()
        redis.wait()


@contextmanager
def ministack() -> Iterator[Server]:
    """ministack."""
    port = free_port()
    with running(str(environment("ministack") / "ministack"), port=port, GATEWAY_PORT=str(port), SERVICES="s3",
                 BIND_HOST="127.0.0.1") as pid:
        yield Server("ministack", port, pid)


@contextmanager
def moto() -> Iterator[Server]:
    """moto."""
    port = free_port()
    with running(str(environment("moto", "moto[server,s3]") / "moto_server"), "-H", "127.0.0.1", "-p", str(port),
                 port=port) as pid:
        yield Server("moto", port, pid)


def environment(name: str, package: str = "") -> Path:
    """The programs of a virtual environment of a peer's own."""
    venv = ROOT / ".cache" / name
    if not (venv / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin/python"), "-m", "pip", "install", "-q", package or name], check=True)
        (venv / "installed").touch()
    return venv / "bin"


# -- the measurements -------------------------------------------------------------------------------------------------

class _Client(asyncio.Protocol):
    """Sends requests over one connection, each as soon as the one before is answered.

    Connects anew where the server says that it closes.
    """

    def __init__(self, port: int, requests: list[bytes], end: float):
        self._port, self._requests, self._end = port, requests, end
        self._loop = asyncio.get_running_loop()
        self.done, self.over = 0, self._loop.create_future()
        self._buffer = b""
        self._closes = False

    async def connect(self) -> None:
        """Begin, or go on."""
        try:
            await self._loop.create_connection(lambda: self, "127.0.0.1", self._port)
        except OSError as error:
            self.over.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer, self._closes = b"", False
        self._transport.write(self._requests[self.done % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not re.match(rb"HTTP/1.[01] 200", head) or length is None:
            self.over.set_exception(RuntimeError(self._buffer))
        elif len(body) >= int(length[1]):
            self._buffer = b""
            self.done += 1
            self._closes = b"\r\nconnection: close" in head.lower()
            if time.monotonic() >= self._end:
                self.over.set_result(None)
            elif self._closes:
                self._transport.close()
            else:
                self._transport.write(self._requests[self.done % len(self._requests)])

    def connection_lost(self, error: Exception | None) -> None:
        if self.over.done():
            return
        if self._closes:
            self._again = self._loop.create_task(self.connect())
        else:
            self.over.set_exception(error or RuntimeError("the server hung up"))


async def _rate(port: int, requests: list[bytes], seconds: float, clients: int) -> tuple[float, int]:
    began = time.monotonic()
    protocols = []
    for n in range(clients):
        protocols.append(_Client(port, requests[n::clients], began + seconds))
        await protocols[-1].connect()
    await asyncio.gather(*(p.over for p in protocols))
    count = sum(p.done for p in protocols)
    rate = count / (time.monotonic() - began)
    for protocol in protocols:
        protocol._transport.close()
    return rate, count


def small(server: Server, arguments: argparse.Namespace, method: str) -> tuple[float, float]:
    """Requests a second, and the microseconds of CPU time that each took the server."""
    body = os.urandom(arguments.small)
    requests = [server.request(method, f"/{server.name}-small/key-{n}", body if method == "PUT" else b"")
                for n in range(KEYS)]
    before = server.cpu()
    rate, count = asyncio.run(_rate(server.port, requests, arguments.seconds, arguments.clients))
    return rate, (server.cpu() - before) / count * 1e6


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
        if not re.match(rb"HTTP/1.[01] 200", first):
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
        if body.count(b"<Contents>") != 1000:
            sys.exit(f"{server.name} lists {body.count(b'<Contents>')} keys")
    return statistics.median(times) * 1000


class Measurement:
    """All figures: by name, then by server."""

    def __init__(self, arguments: argparse.Namespace, directory: Path, servers: list[Server], nginx: Nginx):
        self._arguments, self._servers, self._nginx = arguments, servers, nginx
        self._large, self._directory = directory / "large", directory
        self.figures: dict[str, dict[str, list[float]]] = {}
        self._per_second = f"of {arguments.small} B, {arguments.clients} clients (1/s)"
        self._size = f"of {arguments.large >> 20} MiB (MB/s)"

    def add(self, name: str, of: str, value: float) -> None:
        """Note a figure."""
        self.figures.setdefault(name, {}).setdefault(of, []).append(value)
        print(f"  {of}: {name} {value:.1f}", file=sys.stderr)

    def medians(self) -> dict[str, dict[str, float]]:
        """What each figure is in the end."""
        return {name: {of: statistics.median(values) for of, values in row.items()}
                for name, row in self.figures.items()}

    def run(self) -> None:
        """Measure the rows that are wanted."""
        rows = self._arguments.rows.split(",")
        for server in self._servers:
            for kind in ("small", "large"):
                server.ask(server.request("PUT", f"/{server.name}-{kind}"))
            for n in range(KEYS if {"small", "list"} & set(rows) else 0):
                server.ask(server.request("PUT", f"/{server.name}-small/key-{n}", b"first"))
        for row in rows:
            getattr(self, f"_{row}_rows")()

    def _small_rows(self) -> None:
        for _ in range(self._arguments.rounds):
            for server in self._servers:
                for method in ("PUT", "GET"):
                    rate, cpu = small(server, self._arguments, method)
                    self.add(f"{method} {self._per_second}", server.name, rate)
                    self.add(f"{method}: CPU time of the server (us)", server.name, cpu)

    def _large_rows(self) -> None:
        digest = hashlib.sha256()
        with open(self._large, "wb") as file:
            for _ in range(self._arguments.large >> 20):
                block = os.urandom(1 << 20)
                digest.update(block)
                file.write(block)
        self._nginx.give(self._large)
        plain = Server("plain nginx", self._nginx.plain_port, 0)
        for _ in range(self._arguments.rounds):
            self.add(f"PUT {self._size}", "shell", by_shell(self._large, self._directory))
            for server in self._servers:
                self.add(f"PUT {self._size}", server.name, put_large(server, self._large, digest.hexdigest()))
            for server in [*self._servers, plain]:
                path = "/large" if server is plain else f"/{server.name}-large/large"
                self.add(f"GET {self._size}", server.name, get_large(
                    server.port, server.request("GET", path), self._arguments.large >> 20 << 20))

    def _list_rows(self) -> None:
        for _ in range(self._arguments.rounds):
            for server in self._servers:
                self.add(f"LIST of 1000 in {KEYS} (ms)", server.name, listing(server, f"{server.name}-small"))
                if server.name == "nova":
                    self.add(f"LIST of 1000 in {self._arguments.keys} (ms)", "nova", listing(server, "many"))


def judged(figures: dict[str, dict[str, float]]) -> list[tuple[str, float, float, bool]]:
    """What is wanted of Nova: what, how it is, how it shall be, and whether it is."""
    found = []

    def ratio(what: str, row: str, unit: str, of: str, peer: str, wanted: float) -> None:
        for name, values in figures.items():
            if name.startswith(row) and name.endswith(unit) and of in values and peer in values:
                value = values[of] / values[peer]
                found.append((f"{what}, as a part of {peer}'s, at least", value, wanted, value >= wanted))
    ratio("small GET", "GET of", "(1/s)", "nova", "ministack", 1.5)
    ratio("small PUT", "PUT of", "(1/s)", "nova", "ministack", 1.0)
    ratio("large GET through nginx", "GET of", "(MB/s)", "nginx", "plain nginx", 0.95)
    ratio("large PUT", "PUT of", "(MB/s)", "nova", "shell", 0.6)
    lists = [row["nova"] for name, row in figures.items() if name.startswith("LIST") and "nova" in row]
    if len(lists) == 2:
        found.append(("LIST in the large bucket (ms), at most", lists[1], 20, lists[1] <= 20))
        found.append(("LIST in the large bucket, as a part of that in the small, at most", lists[1] / lists[0], 1.2,
                      lists[1] <= lists[0] * 1.2))
    memory = figures.get("memory of all processes (MiB)", {}).get("nova")
    if memory:
        found.append(("memory (MiB), at most", memory, 120, memory <= 120))
    return found


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="some of " + ",".join(ROWS))
    parser.add_argument("--only", default=",".join(SERVERS), help="some of " + ",".join(SERVERS))
    parser.add_argument("--seconds", type=float, default=5, help="of each run of small requests")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--small", type=int, default=4096, help="bytes of a small object")
    parser.add_argument("--large", type=int, default=1 << 30, help="bytes of the large object")
    parser.add_argument("--keys", type=int, default=100000, help="in the bucket that is listed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes of nova-objectstore (its --s3_workers)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    for name, known in (("rows", ROWS), ("only", SERVERS)):
        if not set(getattr(arguments, name).split(",")) <= set(known):
            parser.error(f"--{name} takes some of {','.join(known)}")
    wanted = arguments.only.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers and removes the files, too
    directory = Path(tempfile.mkdtemp(prefix="nb-"))
    try:
        with ExitStack() as stack:
            alone, behind, nginx, redis = stack.enter_context(nova(directory, arguments.keys, arguments.workers))
            servers = [s for s in (alone, behind) if s.name in wanted]
            servers += [stack.enter_context(peer()) for peer in (ministack, moto) if peer.__name__ in wanted]
            memory = Memory({"redis-server": redis, **{s.name: s.pid for s in servers if s.name != "nginx"}})
            memory.start()
            measurement = Measurement(arguments, directory, servers, nginx)
            measurement.run()
            memory.stop()
    finally:
        shutil.rmtree(directory)
    figures = measurement.medians()
    figures["memory of the largest process (MiB)"] = memory.resident
    figures["memory of all processes (MiB)"] = memory.proportional
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    columns = [c for c in (*SERVERS, "plain nginx", "shell", "redis-server") if any(c in r for r in figures.values())]
    print(f"{'':40}" + "".join(f"{name:>13}" for name in columns))
    for name, row in figures.items():
        print(f"{name:40}" + "".join(f"{row[c]:13.1f}" if c in row else f"{'':>13}" for c in columns))
    print(f"\n{'wanted of Nova':70}{'is':>8}{'wanted':>8}")
    for what, value, goal, holds in judged(figures):
        print(f"{what:70}{value:8.2f}{goal:8.2f}{'' if holds else '  missed'}")


if __name__ == "__main__":
    main()
