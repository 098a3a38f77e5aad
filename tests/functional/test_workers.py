"""Several processes that do the same work, and the one that watches over them."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from tests.conftest import free_port, wait_until
from tests.functional.s3 import MIB, ROOT, Server, Zeros, own_fixture, signed  # noqa: F401 (the fixture)

_SCRIPT = """
import os, sys, time
from nova import flags, service, workers
flags.parse(["test", "--stop_timeout=1"])
service.set_up_logging()
def work(number, lifeline):
    os.write(1, b"worker %d %d\\n" % (number, os.getpid()))
    {}
    return service.serve([lifeline])
code = workers.Watcher(2, work, lambda: print("stopping", flush=True)).run()
print("ended", flush=True)
sys.exit(code)
"""


class Script:
    """A watcher and its two workers."""

    def __init__(self, line: str = ""):
        self.process = subprocess.Popen([sys.executable, "-c", _SCRIPT.format(line or "pass")], cwd=ROOT, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def worker(self) -> tuple[int, int]:
        """Number and process of the next worker that begins."""
        word, number, pid = self.process.stdout.readline().split()
        assert word == "worker"
        return int(number), int(pid)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal: a worker, when its loop runs."""
    return bool(int(Path(f"/proc/{pid}/status").read_text().split("SigCgt:\t")[1].split()[0], 16) >> (number - 1) & 1)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_is_killed_is_replaced_and_all_stop_in_order():
    script = Script()
    first = dict(script.worker() for _ in range(2))
    assert set(first) == {0, 1}
    wait_until(lambda: all(handles(pid, signal.SIGTERM) for pid in first.values()))
    os.kill(first[1], signal.SIGKILL)
    number, replacement = script.worker()
    assert number == 1 and is_there(first[0]) and not is_there(first[1])
    wait_until(lambda: handles(replacement, signal.SIGTERM))
    script.process.terminate()
    code, out, err = script.end()
    assert (code, out.split()) == (0, ["stopping", "ended"])
    assert f"worker 1 (process {first[1]}) was ended by SIGKILL" in err
    assert not is_there(first[0]) and not is_there(replacement)


def test_workers_stop_when_their_watcher_is_killed():
    script = Script()
    pids = [script.worker()[1] for _ in range(2)]
    wait_until(lambda: all(handles(pid, signal.SIGTERM) for pid in pids))
    script.process.kill()
    wait_until(lambda: not any(map(is_there, pids)))
    assert "is gone: stopping" in script.end()[2]


def test_a_worker_that_cannot_start_ends_all():
    script = Script("if number: return 3")
    code, out, err = script.end()
    assert code == 1 and out.split()[-1] == "ended"
    assert "ended with exit code 3 before it worked" in err


def test_a_signal_while_workers_start_is_not_lost():
    script = Script("time.sleep(0.5)")
    script.worker()
    script.process.terminate()
    assert script.end()[0] == 0


def test_workers_that_can_no_longer_start_are_given_up(tmp_path):
    """The first two work, those that come in their place do not."""
    script = Script(f"if os.path.exists({str(tmp_path / 'broken')!r}): raise RuntimeError('broken')")
    pids = [script.worker()[1] for _ in range(2)]
    wait_until(lambda: all(handles(pid, signal.SIGTERM) for pid in pids))
    (tmp_path / "broken").touch()
    os.kill(pids[0], signal.SIGKILL)
    assert script.worker()[0] == script.worker()[0] == 0  # while one works, it is tried again and again
    assert is_there(pids[1])
    os.kill(pids[1], signal.SIGKILL)
    code, _, err = script.end()
    assert code == 1 and "RuntimeError: broken" in err
    assert "no worker is left" in err and "giving up" in err


def test_a_worker_that_does_not_stop_is_killed():
    script = Script("import signal; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
    pids = [script.worker()[1] for _ in range(2)]
    wait_until(lambda: all(int(Path(f"/proc/{pid}/status").read_text().split("SigIgn:\t")[1].split()[0], 16) & 1 << 14
                           for pid in pids))
    script.process.terminate()
    code, _, err = script.end()
    assert code == 1 and "did not stop in time" in err and not any(map(is_there, pids))


# -- the object store -------------------------------------------------------------------------------------------------

def start(own, *flags: str, port: int = 0) -> Server:
    """nova-objectstore with two workers."""
    own_redis, directory = own
    port, log = port or free_port(), directory / "log"
    conf = [f"--flagfile={directory}/nova.conf"] if (directory / "nova.conf").exists() else []
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin/nova-objectstore"), *conf, "--s3_workers=2", f"--s3_port={port}",
             "--s3_listen=127.0.0.1", "--host=here", f"--redis_url={own_redis.url}", "--amqp_url=memory://",
             f"--state_path={directory}", *flags], stdout=out, stderr=out)
    return Server(process, port, directory / "objects", log)


@pytest.fixture(name="server")
def server_fixture(own):
    server = start(own)
    wait_until(lambda: server.log.read_text().count("listening at") == 2, 60)
    yield server
    server.process.terminate()
    assert server.process.wait(30) == 0


class Reader(threading.Thread):
    """Reads an object over one connection, again and again, and notes what goes wrong."""

    def __init__(self, server: Server):
        super().__init__()
        self.server, self.stopping = server, threading.Event()
        self.read, self.broken, self.wrong = 0, 0, []
        url = server.client().generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"})
        self.path = url.partition(f":{server.port}")[2]

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        while not self.stopping.is_set():
            try:
                connection.request("GET", self.path)
                answer = connection.getresponse()
                body = answer.read()
                self.read += 1
                if (answer.status, body) != (200, b"hello"):
                    self.wrong.append((answer.status, body))
            except (http.client.HTTPException, OSError):
                self.broken += 1
                connection.close()
        connection.close()


def established(pid: int, port: int) -> int:
    """How many connections to a port a process has."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].split(":")[1], 16) == port and words[3] == "01" and f"socket:[{words[9]}]" in inodes:
            count += 1
    return count


def test_a_worker_that_is_killed_takes_only_its_own_connections_along(server):
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="k", Body=b"hello")
    readers = [Reader(server) for _ in range(12)]
    for reader in readers:
        reader.start()
    try:
        wait_until(lambda: all(reader.read > 5 for reader in readers), 60)
        workers = children(server.process.pid)
        shares = {pid: established(pid, server.port) for pid in workers}
        assert len(workers) == 2 and all(shares.values())  # both have some
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(server.process.pid)) - {workers[0]}) == 2, 60)
        wait_until(lambda: server.log.read_text().count("listening at") == 3, 60)
        before = [reader.read for reader in readers]
        wait_until(lambda: all(r.read > n + 5 for r, n in zip(readers, before, strict=True)), 60)
    finally:
        for reader in readers:
            reader.stopping.set()
        for reader in readers:
            reader.join(60)
    assert not [reader.wrong for reader in readers if reader.wrong]
    assert all(reader.broken <= 1 for reader in readers)
    assert 0 < sum(reader.broken for reader in readers) <= shares[workers[0]]


def test_one_of_the_workers_does_what_is_done_once_on_a_host(own, server):
    own_redis, _ = own
    client = redis.Redis.from_url(own_redis.url)
    wait_until(lambda: client.hexists("nova:host:here", "objectstore"), 60)
    first = children(server.process.pid)[0]
    os.kill(first, signal.SIGKILL)
    client.delete("nova:host:here")
    wait_until(lambda: client.hexists("nova:host:here", "objectstore"), 60)  # by who took its place
    client.close()


def test_a_stop_lets_a_running_download_end(own):
    server = start(own)
    wait_until(lambda: server.log.read_text().count("listening at") == 2, 60)
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="k", Body=Zeros(32 * MIB))
    body = s3.get_object(Bucket="bucket", Key="k")["Body"]
    first = body.read(MIB)
    server.process.terminate()
    assert len(first) + len(body.read()) == 32 * MIB
    assert server.process.wait(30) == 0
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", server.port)) != 0


def test_what_one_worker_is_told_the_others_know(own, server):
    """Read after write, whoever serves: each request is on a connection of its own."""
    s3 = server.client()
    s3.create_bucket(Bucket="bucket")
    for n in range(30):
        assert signed(server, "PUT", "/bucket/k", b"%d" % n)[0] == 200
        assert signed(server, "GET", "/bucket/k") == (200, b"%d" % n)


def test_a_port_that_is_taken_is_said(own):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        server = start(own, port=s.getsockname()[1])
        assert server.process.wait(60) == 1
    said = server.log.read_text()
    assert f"cannot listen on port {server.port}" in said and "--s3_port" in said and "Traceback" not in said


def test_without_redis_it_says_so_and_ends(own):
    server = start(own, "--redis_url=redis://127.0.0.1:1/0")
    began = time.monotonic()
    assert server.process.wait(60) == 1 and time.monotonic() - began < 30
    assert "the Redis that --redis_url names does not answer" in server.log.read_text()
