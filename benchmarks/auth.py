#!/usr/bin/env python3
"""What share of a signed request's time is authentication, at full load on one API process.

    .venv/bin/python benchmarks/auth.py [--seconds 3] [--clients 16] [--rate 0]

This process is the EC2 endpoint, on a redis-server of its own; another process sends it requests of SDKs' size, each
with a signature of its own.  Times are CPU time of the endpoint's process, so that neighbours on the machine do not
count.  Measured in two ways: how long the code runs that finds and verifies who is asking, and how much less a
request takes without it.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nova import datastore  # noqa: E402
from nova.auth import signer  # noqa: E402
from nova.auth.manager import AuthManager  # noqa: E402
from nova.auth.models import KeyPair  # noqa: E402
from nova.cloud import action, keypairs, public_keys, regions  # noqa: E402
from nova.endpoint.app import ApiService  # noqa: E402
from nova.flags import FLAGS  # noqa: E402

#: the cheapest action there is, and one that reads ten records
ACTIONS = ("DescribeRegions", "DescribeKeyPairs")
KEY_PAIRS = 10
#: runs with authentication and without
ROUNDS = 3


# -- the endpoint ---------------------------------------------------------------------------------------------------

class Meter:
    """Adds up for how long coroutines run; while they wait, others do."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """The same function, measured."""
        @types.coroutine
        def drive(coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
            send, value = coroutine.send, None
            while True:
                began = time.thread_time()
                try:
                    waited_for = send(value)
                except StopIteration as end:
                    return end.value
                finally:
                    self.seconds += time.thread_time() - began
                send = coroutine.send
                try:
                    value = yield waited_for
                except BaseException as error:
                    send, value = coroutine.throw, error

        async def measured(*args: Any, **kwargs: Any) -> Any:
            return await drive(function(*args, **kwargs))
        return measured


@asynccontextmanager
async def endpoint() -> AsyncIterator[tuple[ApiService, datastore.Store, str, str]]:
    """A running endpoint, its store, and the access key and secret of a user."""
    with tempfile.TemporaryDirectory(prefix="nb-") as directory:
        path = f"{directory}/redis.sock"
        redis = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", path, "--dir", directory, "--save",
                                  ""], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            with socket.socket(socket.AF_UNIX) as probe:
                while probe.connect_ex(path):
                    if time.monotonic() > deadline:
                        sys.exit("redis-server does not start")
                    await asyncio.sleep(0.05)
            store = datastore.open_store(f"unix://{path}")
            FLAGS.state_path = directory
            auth = AuthManager(store)
            await auth.start()
            user = await auth.create_user("ann")
            await auth.create_project("proj", "ann")
            for n in range(KEY_PAIRS):
                await store.create(KeyPair(f"proj:key{n}", "proj", "ann", f"key{n}", f"key-{n:017x}",
                                           "ssh-ed25519 AAAA", "fingerprint", "ed25519", time.time()))
            registry = action.Registry.collect([regions.Regions(store=store), keypairs.KeyPairs(
                store=store, public_keys=public_keys.PublicKeys(store, auth))])
            service = ApiService(store, auth, registry, port=0, address="127.0.0.1")
            await service.start()
            try:
                yield service, store, f"{user.access}:proj", user.secret
            finally:
                await service.stop()
                await auth.stop()
                await store.close()
        finally:
            redis.terminate()
            redis.wait()


async def load(port: int, access: str, secret: str, wanted: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Have another process send requests; what it says of them."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--send", json.dumps([port, access, secret, wanted]),
        f"--seconds={arguments.seconds}", f"--clients={arguments.clients}", f"--rate={arguments.rate}",
        stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    if child.returncode:
        sys.exit("the sender failed")
    return json.loads(out)


async def measure(arguments: argparse.Namespace) -> None:
    """Print a line for each action."""
    async with endpoint() as (service, store, access, secret):
        face: Any = service._endpoint
        whole, finding, verifying = Meter(), Meter(), Meter()
        real = face._identify
        identity = await face._auth.identity(*access.split(":"))

        async def nobody_asks(*args: Any) -> Any:
            return identity
        print(f"{'':20} {'requests/s':>10} {'us each':>8} {'in authentication':>18} {'find':>7} {'verify':>7} "
              f"{'share':>7} {'by difference':>14}")
        for wanted in ACTIONS:
            await load(service.port, access, secret, wanted, argparse.Namespace(**{**vars(arguments), "seconds": 1}))
            cost: dict[Any, list[float]] = {real: [], nobody_asks: []}
            rates = []
            for identify in (real, nobody_asks) * ROUNDS:  # in turn, because neighbours come and go
                face._identify = identify
                began, sent = time.process_time(), await load(service.port, access, secret, wanted, arguments)
                cost[identify].append((time.process_time() - began) / sent["requests"])
                if identify is real:
                    rates.append(sent["requests"] / sent["seconds"])
            with_it, without = statistics.median(cost[real]), statistics.median(cost[nobody_asks])
            face._identify = whole.wrap(real)
            runs = []
            for _ in range(ROUNDS):
                whole.seconds = 0.0
                began, metered = time.process_time(), await load(service.port, access, secret, wanted, arguments)
                runs.append((whole.seconds / metered["requests"], whole.seconds / (time.process_time() - began)))
            face._identify = real
            inside, share = (statistics.median(values) for values in zip(*runs, strict=True))
            # The parts apart from the whole, because a meter inside another one counts there.
            plain_auth, plain_gate = face._auth.identity, face._gate.verify
            face._auth.identity, face._gate.verify = finding.wrap(plain_auth), verifying.wrap(plain_gate)
            finding.seconds = verifying.seconds = 0.0
            metered = await load(service.port, access, secret, wanted, arguments)
            face._auth.identity, face._gate.verify = plain_auth, plain_gate
            found, verified = (meter.seconds / metered["requests"] for meter in (finding, verifying))
            print(f"{wanted:20} {statistics.median(rates):10.0f} {with_it * 1e6:8.0f} "
                  f"{inside * 1e6:15.0f} us {found * 1e6:4.0f} us {verified * 1e6:4.0f} us {share:7.1%} "
                  f"{1 - without / with_it:14.1%}")


# -- the sender -----------------------------------------------------------------------------------------------------

def signed_request(port: int, access: str, secret: str, wanted: str, n: int) -> bytes:
    """One request as botocore sends it."""
    body = f"Action={wanted}&Version=2016-11-15".encode()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/nova/ec2/aws4_request"
    headers = {"amz-sdk-invocation-id": f"{n:08x}-0000-4000-8000-000000000000", "amz-sdk-request": "attempt=1",
               "content-type": "application/x-www-form-urlencoded; charset=utf-8", "host": f"127.0.0.1:{port}",
               "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join(["POST", "/services/Cloud", "", *(f"{k}:{v}" for k, v in headers.items()), "", names,
                           hashlib.sha256(body).hexdigest()])
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(signer.signing_key(secret, scope), text.encode(), "sha256").hex()
    headers |= {"user-agent": "Boto3/1.36.0 md/Botocore#1.36.0 ua/2.0 os/linux md/arch#x86_64 lang/python#3.11.7",
                "authorization": f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, "
                                 f"Signature={signature}", "accept-encoding": "identity",
                "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /services/Cloud HTTP/1.1\r\n{head}\r\n".encode() + body


async def send(arguments: argparse.Namespace) -> None:
    """Send requests over kept connections, each as soon as the one before is answered, or at a rate."""
    port, access, secret, wanted = json.loads(arguments.send)
    began = time.monotonic()
    end, done = began + arguments.seconds, 0

    async def client(number: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        pause = arguments.clients / arguments.rate if arguments.rate else 0
        due, n = began + pause * number / arguments.clients, 0
        while (now := time.monotonic()) < end:
            if pause:
                due += pause
                await asyncio.sleep(max(0.0, due - now))
            n += 1
            writer.write(signed_request(port, access, secret, wanted, number << 24 | n))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                sys.exit(head.decode())
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(length.split(b":")[1]))
            done += 1
        writer.close()
    await asyncio.gather(*map(client, range(arguments.clients)))
    print(json.dumps({"requests": done, "seconds": time.monotonic() - began}))


def main() -> None:
    """Measure, or be the sender of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="of each run; there are twenty")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: as many as go")
    parser.add_argument("--send", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asyncio.run(send(arguments) if arguments.send else measure(arguments))


if __name__ == "__main__":
    main()
