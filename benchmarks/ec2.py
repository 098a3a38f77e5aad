#!/usr/bin/env python3
"""EC2 calls on Nova and on moto's server, in one run: milliseconds per call and the ratio.

    .venv/bin/python benchmarks/ec2.py [--instances 100] [--calls 30] [--clients 8]

Nova runs with the fake compute driver, every write synced to disk by its redis-server; moto keeps everything in the
memory of one process.  moto is installed from PyPI into `.cache/moto` when it is not there.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import botocore.config

ROOT = Path(__file__).resolve().parent.parent
MOTO = ROOT / ".cache" / "moto"


def client(endpoint: str, service: str, access: str, secret: str) -> Any:
    """A boto3 client that tries once."""
    return boto3.client(service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=access,
                        aws_secret_access_key=secret, config=botocore.config.Config(
                            retries={"max_attempts": 0}, max_pool_connections=64, s3={"addressing_style": "path"}))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("a server does not start")
        time.sleep(0.05)


@contextmanager
def nova() -> Iterator[tuple[Any, str]]:
    """A cloud of fake guests: a client and an image to run."""
    with tempfile.TemporaryDirectory(prefix="nb-") as state:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin/nova-all"), f"--state_path={state}", "--compute_driver=fake",
             "--ec2_port=0", "--s3_port=0", "--metadata_port=0", "--network_size=2048",
             "--max_instances_per_request=1000", "--cpu_allocation_ratio=1000000", "--user_instances=-1",
             "--project_instances=-1"], stdout=subprocess.DEVNULL)
        try:
            ready = Path(state, "ready.json")
            wait_for(ready.exists)
            facts = json.loads(ready.read_text())
            novarc = Path(state, "novarc").read_text().splitlines()
            keys = dict(line.removeprefix("export ").split("=", 1) for line in novarc if line.startswith("export AWS_"))
            access, secret = keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]
            ec2 = client(f"http://127.0.0.1:{facts['ec2_port']}/services/Cloud", "ec2", access, secret)
            wait_for(lambda: any(i["ImageType"] == "machine" for i in ec2.describe_images()["Images"]))
            [image] = [i for i in ec2.describe_images()["Images"] if i["ImageType"] == "machine"]
            yield ec2, image["ImageId"]
        finally:
            process.terminate()
            process.wait()


@contextmanager
def moto() -> Iterator[tuple[Any, str]]:
    """moto's server: a client and an image to run."""
    if not (MOTO / "bin/moto_server").exists():
        subprocess.run([sys.executable, "-m", "venv", str(MOTO)], check=True)
        subprocess.run([str(MOTO / "bin/pip"), "install", "-q", "moto[server]"], check=True)
    port = free_port()
    process = subprocess.Popen([str(MOTO / "bin/moto_server"), "-p", str(port)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={**os.environ, "MOTO_EC2_LOAD_DEFAULT_AMIS": "true"})
    try:
        def listens() -> bool:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0
        wait_for(listens)
        ec2 = client(f"http://127.0.0.1:{port}", "ec2", "testing", "testing")
        yield ec2, ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    finally:
        process.terminate()
        process.wait()


def milliseconds(call: Callable[[], Any], times: int) -> float:
    """The median time of a call."""
    call()
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples) * 1000


def rate(call: Callable[[], Any], times: int, clients: int) -> float:
    """Calls a second from several threads."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: call(), range(clients)))
        began = time.perf_counter()
        list(pool.map(lambda _: call(), range(times)))
        return times / (time.perf_counter() - began)


def list_all(ec2: Any) -> list[Any]:
    """All instances."""
    return [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]


def measure(ec2: Any, image: str, arguments: argparse.Namespace) -> dict[str, float]:
    """All figures of one server."""
    kind = "m1.tiny" if "127.0.0.1" in ec2.meta.endpoint_url and "Cloud" in ec2.meta.endpoint_url else "t2.micro"
    figures = {}

    def run(count: int) -> Any:
        return ec2.run_instances(ImageId=image, InstanceType=kind, MinCount=count, MaxCount=count)
    figures["RunInstances of 1 (ms)"] = milliseconds(lambda: run(1), 10)
    first = run(1)["Instances"][0]["InstanceId"]
    left = arguments.instances - len(list_all(ec2))
    while left > 0:
        left -= len(run(min(left, 100))["Instances"])
    wait_for(lambda: all(i["State"]["Name"] == "running" for i in list_all(ec2)), 300)
    figures[f"DescribeInstances of {arguments.instances} (ms)"] = milliseconds(
        lambda: ec2.describe_instances(), arguments.calls)
    figures["DescribeInstances of 1 by id (ms)"] = milliseconds(
        lambda: ec2.describe_instances(InstanceIds=[first]), arguments.calls)
    figures[f"DescribeInstances by id, {arguments.clients} clients (1/s)"] = rate(
        lambda: ec2.describe_instances(InstanceIds=[first]), arguments.calls * arguments.clients, arguments.clients)
    return figures


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with nova() as (ec2, image):
        ours = measure(ec2, image, arguments)
    with moto() as (ec2, image):
        theirs = measure(ec2, image, arguments)
    print(f"{'':45} {'Nova':>9} {'moto':>9}  Nova is better by")
    for name, value in ours.items():
        better = value / theirs[name] if name.endswith("(1/s)") else theirs[name] / value
        print(f"{name:45} {value:9.1f} {theirs[name]:9.1f}  {better:.1f}x")


if __name__ == "__main__":
    main()
