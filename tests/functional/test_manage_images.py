"""nova-manage image on a real cloud: disk images come in from files and URLs, and go out again."""

import contextlib
import hashlib
import http.server
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images as contents
from tests.conftest import environment_without_aws, wait_until
from tests.functional.cloud import cloud
from tests.functional.test_manage import Manage

MIB = 1 << 20


def run(*command: str, input: bytes | None = None) -> bytes:
    return subprocess.run(command, input=input, check=True, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def manage() -> Iterator[Manage]:
    with cloud("--compute_driver=fake", "--converge_interval=0.5") as made:
        made.start()
        assert made.machine_image
        found = Manage(made)
        [found.boss] = found.json("user", "create", "boss")  # type: ignore[attr-defined]
        found("project", "create", "web", "boss")
        yield found


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "debian 12 (test).raw"
    path.write_bytes(contents.machine(3 * MIB) + bytes(5 * MIB) + random.Random(4).randbytes(MIB))
    return path


@pytest.fixture(autouse=True)
def nothing_is_left(manage: Manage) -> Iterator[None]:
    """Every test ends with no image and no bucket of the project, and nothing half uploaded or half made."""
    yield
    left = [i["image"] for i in manage.json("image", "list", "--project", "web")]
    assert left == []
    assert buckets(manage) == []
    assert list((manage.cloud.state / "images").iterdir()) == []


def buckets(manage: Manage) -> list[str]:
    s3 = manage.client("s3", manage.boss, "web")  # type: ignore[attr-defined]
    return [b["Name"] for b in s3.list_buckets()["Buckets"]]


@contextlib.contextmanager
def imported(manage: Manage, source: str | Path, *options: str) -> Iterator[dict]:
    [row] = manage.json("image", "import", str(source), "--project", "web", *options)
    yield row
    manage("image", "delete", "--yes", row["image"])


def shown(manage: Manage, image: str) -> dict:
    [facts] = manage.json("image", "show", image)
    return facts


def test_a_file_is_imported_shown_exported_and_deleted(manage: Manage, disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(path))
    packed = tmp_path / "disk.qcow2.xz"
    packed.write_bytes(run("xz", "-c", str(path)))
    with imported(manage, packed, "--description", "what it is") as row:
        assert (row["name"], row["project"], row["kind"], row["format"]) == ("disk.qcow2.xz", "web", "machine", "raw")
        facts = shown(manage, row["image"])
        assert (facts["state"], facts["disk size"], facts["user"]) == ("available", disk.stat().st_size, "boss")
        assert facts["description"] == "what it is" and not facts["public"]
        assert "available" in manage("image", "show", row["image"])
        out = tmp_path / "out.raw"
        [told] = manage.json("image", "export", row["image"], str(out))
        assert out.read_bytes() == disk.read_bytes() and told["SHA-256"] == hashlib.sha256(out.read_bytes()).hexdigest()
        assert out.stat().st_blocks * 512 < 5 * MIB
        assert "--force" in manage.fails(2, "image", "export", row["image"], str(out))
        manage("image", "export", row["image"], str(out), "--force", "--format", "qcow2")
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(out), str(tmp_path / "again"))
        assert (tmp_path / "again").read_bytes() == disk.read_bytes()
        assert sorted(os.listdir(tmp_path)) == ["again", "disk.qcow2", "disk.qcow2.xz", "out.raw"]
        assert "cannot write" in manage.fails(1, "image", "export", row["image"], "/nowhere/x")
    assert "does not exist" in manage.fails(1, "image", "show", row["image"])
    assert "does not exist" in manage.fails(1, "image", "export", "ami-00000000", str(tmp_path / "x"))


def test_an_image_gets_its_name_its_kernel_and_its_public(manage: Manage, disk: Path) -> None:
    kernel = next(i["image"] for i in manage.json("image", "list") if i["kind"] == "kernel")
    with imported(manage, disk, "--name", "my disk", "--kernel", kernel, "--public", "--sha256",
                  hashlib.sha256(disk.read_bytes()).hexdigest()) as row:
        facts = shown(manage, row["image"])
        assert (facts["name"], facts["kernel"], facts["public"]) == ("my disk", kernel, True)
    with imported(manage, disk) as row:
        assert row["name"] == "debian 12 (test).raw"
        assert "already in use" in manage.fails(1, "image", "import", str(disk), "--project", "web")


def test_kernels_are_imported_for_administrators(manage: Manage, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(contents.kernel())
    assert "only administrators" in manage.fails(2, "image", "import", str(path), "--project", "web", "--kind",
                                                 "kernel")
    [row] = manage.json("image", "import", str(path), "--project", "admin", "--kind", "kernel")
    assert row["image"].startswith("aki-") and row["public"]
    assert "has no disk" in manage.fails(2, "image", "export", row["image"], str(tmp_path / "x"), "--format", "qcow2")
    manage("image", "delete", "--yes", row["image"])


@pytest.mark.parametrize(("make", "reason"), [
    (lambda disk: b"junk" * 1000, "no disk image"), (lambda disk: b"", "empty"),
    (lambda disk: run("zstd", "-qc", input=disk.read_bytes())[:-500], "zstd cannot unpack it")])
def test_what_is_no_image_is_refused_with_the_reason(manage: Manage, disk: Path, tmp_path: Path, make,
                                                     reason: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(make(disk))
    assert reason in manage.fails(1, "image", "import", str(path), "--project", "web")


def test_what_is_wrong_on_the_command_line(manage: Manage, disk: Path) -> None:
    for code, words, reason in (
            (1, ["/nowhere"], "cannot read /nowhere"), (2, [str(disk), "--sha256", "abc"], "64 hexadecimal"),
            (1, [str(disk), "--sha256", "0" * 64], "nothing was imported"),
            (2, [str(disk), "--kind", "ramdisk", "--kernel", "aki-1"], "neither kernel nor ramdisk"),
            (1, [str(disk), "--kernel", "aki-00000000"], "does not exist"),
            (1, [str(disk), "--name", "x"], "min length"), (1, [str(disk), "--name", "ünder"], "AMI name")):
        assert reason in manage.fails(code, "image", "import", *words, "--project", "web")
    assert "--project is needed" in manage.fails(2, "image", "import", str(disk))
    assert "cannot be undone" in manage.fails(2, "image", "delete", manage.cloud.machine_image)


# -- URLs -------------------------------------------------------------------------------------------------------------

class Web(http.server.ThreadingHTTPServer):
    """Serves one file, as a test wants it."""

    def __init__(self, data: bytes):
        self.data, self.pause, self.cut, self.begun = data, 0.0, 0, threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/disk.raw?token=x"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        if not self.path.startswith("/disk.raw"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        data = self.server.data[:len(self.server.data) - self.server.cut]
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), MIB):
                self.wfile.write(data[start:start + MIB])
                self.server.begun.set()
                time.sleep(self.server.pause)  # a slow server is what is wanted

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(disk: Path) -> Iterator[Web]:
    server = Web(disk.read_bytes())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_imported(manage: Manage, web: Web, disk: Path) -> None:
    with imported(manage, web.url) as row:
        assert row["name"] == "disk.raw" and row["SHA-256"] == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_a_slow_one_shows_its_progress(manage: Manage, web: Web) -> None:
    web.pause = 0.35
    done = manage.run("image", "import", web.url, "--project", "web")
    assert done.returncode == 0 and "uploading: " in done.stderr and " of 9.0 MiB, " in done.stderr
    assert "imported ami-" in done.stdout
    manage("image", "delete", "--yes", done.stdout.partition("imported ")[2][:12])


def test_a_url_that_breaks_off_or_is_not_there(manage: Manage, web: Web) -> None:
    assert "404" in manage.fails(1, "image", "import", web.url.replace("disk", "none"), "--project", "web")
    web.cut = MIB
    assert "to its end" in manage.fails(1, "image", "import", web.url, "--project", "web")
    assert "cannot fetch" in manage.fails(1, "image", "import", "http://127.0.0.1:1/x", "--project", "web")


def test_what_is_too_large_is_refused_before_it_is_fetched(manage: Manage, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 101 << 30)
    assert "more than 100 GiB" in manage.fails(1, "image", "import", str(path), "--project", "web")


def test_an_interrupted_import_leaves_nothing(manage: Manage, web: Web) -> None:
    web.data, web.pause = web.data + os.urandom(60 * MIB), 0.1
    child = subprocess.Popen(manage.command("image", "import", web.url, "--project", "web"), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=environment_without_aws(), cwd=manage.cloud.directory)
    assert web.begun.wait(60)
    wait_until(lambda: buckets(manage), 30, "the upload's bucket")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1 and b"interrupted" in said and b"Traceback" not in said


# -- starter images ---------------------------------------------------------------------------------------------------

def test_starter_images_are_built(manage: Manage) -> None:
    directory = os.environ.get("NOVA_STARTER_PATH")
    if not directory:
        pytest.skip("NOVA_STARTER_PATH names no built starter images; run_tests.sh builds them")
    told = manage.json("image", "build-starter", directory)
    assert [Path(row["file"]).name for row in told] == ["vmlinuz", "ramdisk.gz", "machine.ext4"]
    for row in told:
        assert hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest() == row["SHA-256"]
