#!/usr/bin/env python3
"""Registering a bundle, against the shell's tools on the same parts, and the disks of instances, in one run.

    .venv/bin/python benchmarks/images.py [--size 1024] [--rounds 3] [--disks 20] [--json]

A bundle of the machine's own files is made with tar, gzip, openssl and split, and uploaded to a nova-objectstore on a
redis-server that syncs every write.  Nova's time is from the record of the image until it is available: digests,
sizes and signature checked, the file written, hashed and on the disk.  The shell's is that of
`cat parts | openssl enc -d | tar xz`, which checks nothing and leaves the writing to the kernel.  They take turns; the
figures are medians of the rounds.  Then the image is fetched into a compute host's cache and disks are made of it, as
the compute manager does it.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nova import crypto, datastore  # noqa: E402
from nova.auth import tree  # noqa: E402
from nova.auth.fakeldap import FakeLdap  # noqa: E402
from nova.auth.manager import AuthManager  # noqa: E402
from nova.compute import disk  # noqa: E402
from nova.flags import FLAGS  # noqa: E402
from nova.image.cache import ImageCache  # noqa: E402
from nova.image.models import Image  # noqa: E402
from tests import images  # noqa: E402
from tests.bundles import Bundle, signer  # noqa: E402
from tests.conftest import free_port, wait_until  # noqa: E402

SECRET, PART = "benchmark-secret", 10 << 20


def make_image(path: Path, size: int) -> None:
    """An image that compresses as those of operating systems do: files of this machine, behind a super block."""
    with open(path, "wb") as file:
        files = subprocess.Popen(["tar", "-c", "/usr"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert files.stdout
        shutil.copyfileobj(_Limited(files.stdout, size), file, 1 << 20)
        files.kill()
        files.wait()
        files.stdout.close()
        file.truncate(size)
        head = bytearray(images.machine(2048))
        struct.pack_into("<I", head, 1024 + 4, size // 1024)
        os.pwrite(file.fileno(), head, 0)


class _Limited:
    """The first bytes of a stream."""

    def __init__(self, stream: Any, size: int):
        self._stream, self._left = stream, size

    def read(self, count: int) -> bytes:
        data = self._stream.read(min(count, self._left))
        self._left -= len(data)
        return data


def make_bundle(image: Path, directory: Path, authority: crypto.Authority) -> Bundle:
    """A bundle of an image, by the shell, in a directory."""
    directory.mkdir()
    made = Bundle(directory, authority.certificate_path, size=image.stat().st_size,
                  signer=signer(directory.parent, *authority.issue("benchmark", "benchmark")))
    told = directory.parent / "digest"
    subprocess.run(
        ["bash", "-c", f"set -o pipefail; tar -cS -C {shlex.quote(str(image.parent))} {shlex.quote(image.name)} | "
                       f"tee >(sha1sum > {shlex.quote(str(told))}) | gzip | "
                       f"openssl enc -e -aes-128-cbc -K {made.key} -iv {made.iv} | "
                       f"split -b {PART} -d -a 3 - {shlex.quote(str(directory / 'image.part.'))}"], check=True)
    made.digest = str(wait_until(lambda: told.read_text().split(), 30, "the digest")[0])  # type: ignore[index]
    for path in sorted(directory.iterdir()):
        made.parts.append((path.name, hashlib.sha1(path.read_bytes()).hexdigest()))
        made.bundled_size = int(made.bundled_size) + path.stat().st_size
    (directory / "image.manifest.xml").write_bytes(made.manifest)
    return made


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen]:
    """A server, which is ended."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def peak(process: subprocess.Popen) -> float:
    """The most memory that a process has had, in MiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[0]) / 1024


def by_shell(made: Bundle, directory: Path) -> float:
    """Seconds that the shell's tools take."""
    directory.mkdir()
    began = time.monotonic()
    subprocess.run(["bash", "-c", f"set -o pipefail; cat {shlex.quote(str(made.directory))}/image.part.* | "
                                  f"openssl enc -d -aes-128-cbc -K {made.key} -iv {made.iv} | "
                                  f"tar xz -C {shlex.quote(str(directory))}"], check=True)
    took = time.monotonic() - began
    shutil.rmtree(directory)
    return took


async def by_nova(store: datastore.Store, number: int) -> tuple[float, Image]:
    """Seconds that Nova takes, and the image."""
    began = time.monotonic()
    image = await store.create(Image(f"ami-{number:08x}", project_id="benchmark", user_id="benchmark", name=str(number),
                                     location="bundle/image.manifest.xml", kind="machine", host="benchmark",
                                     created=time.time()))
    while image.state == "pending":
        await asyncio.sleep(0.01)
        found = await store.get(Image, image.id)
        assert found is not None
        image = found
    if image.state != "available":
        sys.exit(f"the image cannot be made: {image.state_reason}")
    return time.monotonic() - began, image


async def measure(arguments: argparse.Namespace, directory: Path, url: str, port: int, server: subprocess.Popen,
                  made: Bundle) -> dict[str, float]:
    """All figures."""
    store = datastore.open_store(url)
    shell, nova, before = [], [], peak(server)
    for number in range(arguments.rounds):
        shell.append(by_shell(made, directory / "shell"))
        took, image = await by_nova(store, number)
        nova.append(took)
    after = peak(server)
    cache = ImageCache(str(directory / "cache"), store, lambda: f"http://127.0.0.1:{port}/_images/")
    cache.start()
    times = []
    for number in range(arguments.disks + 1):
        began = time.monotonic()
        base = await cache.fetch(image.id, image.sha256)
        await disk.create_disk(str(directory / f"disk-{number}"), base, 10 << 30, image.disk_format)
        times.append(1000 * (time.monotonic() - began))
    await store.close()
    return {
        "registering it, Nova (s)": statistics.median(nova), "openssl and tar (s)": statistics.median(shell),
        "Nova's time by the shell's": statistics.median(n / s for n, s in zip(nova, shell, strict=True)),
        "worst of the rounds": max(n / s for n, s in zip(nova, shell, strict=True)),
        "memory before (MiB)": before, "memory at most (MiB)": after, "first disk, fetched (ms)": times[0],
        "next disk, median (ms)": statistics.median(times[1:]), "next disk, slowest (ms)": max(times[1:])}


async def populate(url: str, ca: Path) -> None:
    """A user to upload as."""
    store = datastore.open_store(url)
    auth = AuthManager(store, FakeLdap(store, tree.roots(), str(ca / "directory.key")))
    await auth.create_user("benchmark", access="benchmark", secret=SECRET)
    await auth.create_project("benchmark", "benchmark")
    await store.close()


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, float]:
    """Start the servers, make and upload the bundle, and measure."""
    ca, socket, port = directory / "ca", directory / "redis.sock", free_port()
    url = f"unix://{socket}"
    authority = crypto.Authority(str(ca))
    authority.ensure()
    make_image(directory / "image", arguments.size << 20)
    made = make_bundle(directory / "image", directory / "bundle", authority)
    (directory / "image").unlink()
    with running("redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--appendonly",
                 "yes", "--appendfsync", "always", "--save", ""):
        wait_until(socket.exists, 60, "redis-server")
        asyncio.run(populate(url, ca))
        with running(sys.executable, str(ROOT / "bin/nova-objectstore"), f"--state_path={directory}", f"--ca_path={ca}",
                     f"--redis_url={url}", "--amqp_url=memory://", f"--s3_port={port}", "--s3_listen=127.0.0.1",
                     "--host=benchmark", "--converge_interval=0.1", "--user_object_gb=-1",
                     "--project_object_gb=-1") as server:
            upload = [sys.executable, str(ROOT / "bin/nova-bundle"), "upload", "--quiet", "--bucket", "bundle",
                      str(made.directory / "image.manifest.xml")]
            environment = {**os.environ, "AWS_ACCESS_KEY_ID": "benchmark:benchmark", "AWS_SECRET_ACCESS_KEY": SECRET,
                           "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}
            wait_until(lambda: subprocess.run(upload, env=environment, capture_output=True).returncode == 0, 120,
                       "the upload")
            return asyncio.run(measure(arguments, directory, url, port, server, made))


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="of the image, in MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disks", type=int, default=20, help="that are made of the image after the first")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    FLAGS([sys.argv[0]])
    directory = Path(tempfile.mkdtemp(prefix="nb-"))
    try:
        figures = run(arguments, directory)
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"a bundle of {arguments.size} MiB")
    for name, value in figures.items():
        print(f"{name:30}{value:10.2f}")


if __name__ == "__main__":
    main()
