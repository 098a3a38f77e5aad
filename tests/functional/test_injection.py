"""Files written into the disks of guests: into real file systems, and never out of them."""

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nova import exception
from nova.compute import disk, injection
from nova.compute.injection import File
from nova.compute.models import Instance
from nova.flags import FLAGS
from nova.network.models import Network
from tests import whole_disk
from tests.functional.cloud import ROOT

STARTER = Path(os.environ.get("NOVA_STARTER_PATH", ROOT / ".cache/starter"))
HOSTNAME = File("/etc/hostname", b"i-1\n")
MB = 1 << 20


@pytest.fixture(autouse=True)
def _required() -> None:
    FLAGS.injection_required = True


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    """Makes an image of a tree that a test lays out."""
    def make(lay_out: Callable[[Path], object] = lambda root: None, *options: str) -> Path:
        root = tmp_path / "root"
        for name in ("etc", "root"):
            (root / name).mkdir(parents=True, exist_ok=True)
        lay_out(root)
        subprocess.run(["mkfs.ext4", "-q", "-F", *options, "-d", str(root), str(tmp_path / "base"), "16m"], check=True,
                       capture_output=True)
        return tmp_path / "base"
    return make


class Disk:
    """A disk over an image, and what is in it afterwards."""

    def __init__(self, image: Path, directory: Path, image_format: str = "raw", offset: int = 0):
        self.image, self.format, self.offset = image, image_format, offset
        self.directory = directory / "instance"
        self.directory.mkdir(mode=0o700)
        self.path = self.directory / "disk"

    async def make(self, *files: File) -> None:
        before = hashlib.sha256(self.image.read_bytes()).digest()
        await disk.create_disk(str(self.path), str(self.image), 64 * MB, self.format, files)
        assert hashlib.sha256(self.image.read_bytes()).digest() == before
        assert os.listdir(self.directory) == ["disk"] and str(self.directory) not in Path("/proc/mounts").read_text()

    def read(self, path: str) -> str:
        """A file in it."""
        return self._debugfs(f"cat {path}")

    def stat(self, path: str) -> str:
        """What debugfs says of it."""
        return self._debugfs(f"stat {path}")

    def _debugfs(self, command: str) -> str:
        raw = self.directory.parent / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(self.path), str(raw)], check=True)
        if self.offset == 0:
            subprocess.run(["e2fsck", "-f", "-n", str(raw)], check=True, capture_output=True)
        return subprocess.run(["debugfs", "-R", command, f"{raw}?offset={self.offset}"], check=True,
                              capture_output=True, text=True).stdout


async def test_files_are_written_and_belong_to_root(base: Callable[..., Path], tmp_path: Path) -> None:
    made = Disk(base(), tmp_path)
    await made.make(HOSTNAME, File("/root/.ssh/authorized_keys", b"ssh-ed25519 AAAA me\n", 0o600, append=True),
                    File("/opt/a/b/file", b"x" * 100_000))
    assert made.read("/etc/hostname") == "i-1\n"
    assert made.read("/root/.ssh/authorized_keys") == "ssh-ed25519 AAAA me\n"
    assert len(made.read("/opt/a/b/file")) == 100_000
    for path, mode in (("/root/.ssh", "0700"), ("/root/.ssh/authorized_keys", "0600"), ("/opt/a", "0755"),
                       ("/etc/hostname", "0644")):
        said = " ".join(made.stat(path).split())
        assert f"Mode: {mode}" in said and "User: 0 Group: 0" in said


async def test_what_is_there_is_replaced_or_kept(base: Callable[..., Path], tmp_path: Path) -> None:
    def lay_out(root: Path) -> None:
        (root / "etc/hostname").write_text("a much longer name than the new one\n" * 1000)
        (root / "root/.ssh").mkdir()
        (root / "root/.ssh/authorized_keys").write_text("ssh-rsa THEIRS")
    made = Disk(base(lay_out), tmp_path)
    await made.make(HOSTNAME, File("/root/.ssh/authorized_keys", b"ssh-rsa OURS\n", 0o600, append=True))
    assert made.read("/etc/hostname") == "i-1\n"
    assert made.read("/root/.ssh/authorized_keys") == "ssh-rsa THEIRS\nssh-rsa OURS\n"


async def test_the_network_is_told_to_what_the_image_has(base: Callable[..., Path], tmp_path: Path) -> None:
    made = Disk(base(lambda root: (root / "etc/systemd/network").mkdir(parents=True)), tmp_path)
    FLAGS.injection = ["network"]
    await made.make(*injection.files(instance(), network()))
    assert "Address=10.1.0.5/24" in made.read("/etc/systemd/network/10-nova.network")
    assert "Inode" not in made.stat("/etc/network")


async def test_the_file_system_of_a_partition_is_found(tmp_path: Path) -> None:
    made = Disk(whole_disk.build(STARTER, tmp_path / "work"), tmp_path, offset=MB)
    await made.make(HOSTNAME)
    assert made.read("/etc/hostname") == "i-1\n"


async def test_the_file_system_of_a_gpt_partition_in_a_qcow2_image_is_found(base: Callable[..., Path],
                                                                            tmp_path: Path) -> None:
    raw = tmp_path / "gpt"
    with open(raw, "wb") as file:
        file.truncate(32 * MB)
    subprocess.run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(raw)], check=True, text=True,
                   input="label: gpt\nstart=4096, size=8192, type=uefi\nstart=16384, size=32768, type=linux\n")
    with open(raw, "r+b") as file:
        file.seek(16384 * 512)
        file.write(base().read_bytes())
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(tmp_path / "qcow2")], check=True)
    made = Disk(tmp_path / "qcow2", tmp_path, "qcow2", offset=16384 * 512)
    await made.make(HOSTNAME)
    assert made.read("/etc/hostname") == "i-1\n"


@pytest.mark.parametrize(("link", "target"), [
    ("root/.ssh", "/etc"), ("root/.ssh", "../../../../etc"), ("root/.ssh", "/tmp"), ("root", "/etc"),
    ("root/.ssh/authorized_keys", "/etc/passwd"), ("root/.ssh/authorized_keys", "../../etc/shadow")])
async def test_links_in_the_image_are_refused(base: Callable[..., Path], tmp_path: Path, link: str,
                                              target: str) -> None:
    def lay_out(root: Path) -> None:
        (root / "etc/passwd").write_text("theirs\n")
        path = root / link
        if link == "root":
            path.rmdir()
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
    before = {path: path.stat() for path in (Path("/etc/passwd"), Path("/etc/shadow"))}
    made = Disk(base(lay_out), tmp_path)
    with pytest.raises(exception.LaunchFailed, match=f"/{link} in the image is a symlink"):
        await made.make(File("/root/.ssh/authorized_keys", b"ssh-rsa OURS\n", 0o600, append=True))
    assert not made.path.exists()
    assert all(path.stat() == status for path, status in before.items())
    assert not Path("/etc/authorized_keys").exists() and not Path("/tmp/authorized_keys").exists()


async def test_a_device_in_the_image_is_not_written_to(base: Callable[..., Path], tmp_path: Path) -> None:
    made = Disk(base(lambda root: os.mkfifo(root / "etc/hostname")), tmp_path)
    with pytest.raises(exception.LaunchFailed, match="/etc/hostname in the image is a FIFO"):
        await made.make(HOSTNAME)


@pytest.mark.parametrize("path", ["/etc/../root/x", "etc/x", "/etc/a b", "/etc/a\nrm /etc/passwd", "/", ""])
async def test_a_path_that_is_none_is_refused(base: Callable[..., Path], tmp_path: Path, path: str) -> None:
    with pytest.raises(exception.LaunchFailed, match="is no path for a file"):
        await Disk(base(), tmp_path).make(File(path, b"x"))


async def test_an_image_without_a_file_system_is_refused_or_booted_as_the_flag_says(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "junk").write_bytes(os.urandom(MB))
    made = Disk(tmp_path / "junk", tmp_path)
    with pytest.raises(exception.LaunchFailed, match="has no ext2, ext3 or ext4 file system"):
        await made.make(HOSTNAME)
    FLAGS.injection_required = False
    await made.make(HOSTNAME)
    assert made.path.exists() and "has no ext2, ext3 or ext4 file system" in caplog.text


async def test_a_full_file_system_is_said_and_the_guest_gets_its_image_as_it_is(
        base: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FLAGS.injection_required = False
    made = Disk(base(lambda root: (root / "fill").write_bytes(os.urandom(9 * MB)), "-m", "0"), tmp_path)
    await made.make(HOSTNAME, *(File(f"/etc/f{n}", os.urandom(MB)) for n in range(9)))
    assert "nothing is written into the disk" in caplog.text
    assert "Inode" not in made.stat("/etc/hostname")


@pytest.mark.parametrize("seed", range(6))
async def test_a_damaged_file_system_ends_in_a_refusal_or_not_at_all(base: Callable[..., Path], tmp_path: Path,
                                                                     seed: int) -> None:
    """Whatever a user uploads: it ends in time, with a refusal, or with a disk."""
    image = base()
    content = bytearray(image.read_bytes())
    for n in range(2000):  # the superblock's magic stays, so that debugfs looks at the rest
        at = int.from_bytes(hashlib.sha256(f"{seed} {n}".encode()).digest()[:4], "big") % (MB if seed % 2 else 16 * MB)
        if not 1024 <= at < 2048:
            content[at] = n % 256
    image.write_bytes(content)
    made, began = Disk(image, tmp_path), time.monotonic()
    try:
        await made.make(HOSTNAME)
    except exception.LaunchFailed as error:
        assert str(error)
    assert time.monotonic() - began < 60


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


async def test_what_takes_too_long_is_ended_and_leaves_nothing(base: Callable[..., Path], tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch,
                                                               open_directory: Path) -> None:
    slow = open_directory
    (slow / "debugfs").write_text("#!/bin/sh\nexec sleep 100\n")
    (slow / "debugfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    FLAGS.injection_timeout = 1.0
    began = time.monotonic()
    with pytest.raises(exception.LaunchFailed, match="it takes too long"):
        await Disk(base(), tmp_path).make(HOSTNAME)
    assert time.monotonic() - began < 20


def instance() -> Instance:
    """An instance with a key."""
    return Instance("i-1", project_id="p", user_id="u", reservation_id="r", launch_index=0, image_id="ami-1",
                    instance_type="m1.tiny", vcpus=1, memory_mb=1, disk_gb=0, hostname="i-1", uuid="ec2",
                    mac="02:00:00:00:00:01", private_ip="10.1.0.5", network_id="p", host="h", zone="z", launch_time=0.0,
                    key_data="ssh-ed25519 AAAA me")


def network() -> Network:
    """Its network."""
    return Network("p", allotment="100,10.1.0.0/24", host="h")


def test_nothing_is_injected_unless_a_flag_says_so() -> None:
    assert injection.files(instance(), network()) == []


def test_the_flags_say_what_is_injected(tmp_path: Path) -> None:
    FLAGS.injection, FLAGS.injection_files = ["key", "hostname", "files"], str(tmp_path)
    (tmp_path / "etc/ssl").mkdir(parents=True)
    (tmp_path / "etc/ssl/ca.pem").write_text("certificate")
    (tmp_path / "etc/link").symlink_to("/etc/shadow")
    found = {file.path: file.content for file in injection.files(instance(), network())}
    assert found == {"/root/.ssh/authorized_keys": b"ssh-ed25519 AAAA me\n", "/etc/hostname": b"i-1\n",
                     "/etc/ssl/ca.pem": b"certificate"}
