"""The starter images, built anew from the kernel package that an earlier build fetched."""

import gzip
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from nova import exception
from nova.image import building, starter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package() -> Path:
    directory = Path(os.environ.get("NOVA_STARTER_PATH", ROOT / ".cache/starter"))
    starter.build(directory)
    return directory / "packages" / starter.describe(directory)["package"]


@pytest.fixture(scope="module")
def built(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("starter")
    starter.build(directory, kernel_package=package)
    return directory


def listing(image: Path, path: str) -> str:
    return subprocess.run(["debugfs", "-R", path, str(image)], capture_output=True, text=True, check=True).stdout


def test_the_images_are_what_they_should_be(built: Path) -> None:
    images = starter.build(built, progress=refuse)
    assert images.kernel.read_bytes()[0x202:0x206] == b"HdrS"  # Linux boot protocol
    ramdisk = gzip.decompress(images.ramdisk.read_bytes())
    assert ramdisk.startswith(b"070701") and b"TRAILER!!!" in ramdisk
    assert images.machine.stat().st_size == starter.MACHINE_MB << 20
    assert images.ramdisk.stat().st_size < 3 << 20
    subprocess.run(["e2fsck", "-f", "-n", str(images.machine)], check=True, capture_output=True)


def test_modules_load_in_the_order_of_their_needs(built: Path) -> None:
    ramdisk = gzip.decompress((built / "ramdisk.gz").read_bytes())
    order = re.search(rb"lib/modules/order\0+([^\0]+)", ramdisk)
    names = order[1].decode().split()
    for needed, by in (("virtio_ring.ko", "virtio_pci.ko"), ("virtio.ko", "virtio_pci.ko"),
                       ("net_failover.ko", "virtio_net.ko")):
        assert names.index(needed) < names.index(by)


def test_root_gets_in_by_key_only(built: Path) -> None:
    image = built / "machine.ext4"
    assert listing(image, "cat /etc/shadow").startswith("root:*:")
    assert "authorized_keys" not in listing(image, "ls /root")
    assert "host_key" not in listing(image, "ls /etc/dropbear")
    assert "-s" in listing(image, "cat /etc/nova/configure").split("dropbear", 1)[1].split("\n")[0].split()


def test_a_second_build_does_nothing(built: Path) -> None:
    before = {path: path.stat() for path in built.iterdir()}
    started = time.monotonic()
    starter.build(built, progress=refuse)
    assert time.monotonic() - started < 0.05
    assert {path: path.stat() for path in built.iterdir()} == before


def test_the_same_package_gives_the_same_bytes(built: Path, package: Path, tmp_path: Path) -> None:
    starter.build(tmp_path / "again", kernel_package=package)
    first, second = starter.describe(built), starter.describe(tmp_path / "again")
    assert {n: f["sha256"] for n, f in first["files"].items()} == {n: f["sha256"] for n, f in second["files"].items()}


def test_a_build_that_was_interrupted_is_made_again(built: Path, package: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(built, directory)
    (directory / "machine.ext4").write_bytes(b"torn")
    (directory / ".build-left").mkdir()

    def die(root: Path, out: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(starter, "_machine_image", die)
        with pytest.raises(KeyboardInterrupt):
            starter.build(directory, kernel_package=package)
    assert not (directory / "starter.json").exists()
    images = starter.build(directory, kernel_package=package)
    assert images.machine.read_bytes() == (built / "machine.ext4").read_bytes()
    assert not list(directory.glob(".build-*"))


@pytest.mark.parametrize(("tool", "advice"), [("DROPBEAR", "apt-get install dropbear-bin"),
                                              ("BUSYBOX", "apt-get install busybox-static")])
def test_a_missing_package_is_named(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    tool: str, advice: str) -> None:
    monkeypatch.setitem(building.PACKAGES, "/nowhere/tool", building.PACKAGES[getattr(starter, tool)])
    monkeypatch.setattr(starter, tool, "/nowhere/tool")
    with pytest.raises(exception.NovaError, match=advice):
        starter.build(tmp_path, kernel_package=package)


def test_a_package_without_a_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.deb").write_bytes(b"junk")
    with pytest.raises(exception.NovaError, match="dpkg"):
        starter.build(tmp_path, kernel_package=tmp_path / "junk.deb")
    assert not (tmp_path / "starter.json").exists()


def test_the_program_says_where_the_images_are(built: Path) -> None:
    done = subprocess.run(["python", "-m", "nova.image.starter", str(built)], cwd=ROOT, capture_output=True, text=True,
                          check=True, env={**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"})
    assert all(str(built / name) in done.stdout for name in ("vmlinuz", "ramdisk.gz", "machine.ext4"))


def refuse(line: str) -> None:
    raise AssertionError(f"nothing should be built, but: {line}")
