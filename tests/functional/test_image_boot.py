"""A whole disk with its own boot loader, imported as a compressed qcow2, boots as a real guest."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.functional.cloud import Cloud, cloud, terminate_all
from tests.functional.test_manage import Manage

pytest.importorskip("libvirt")

MIB = 1 << 20
_MENU = """DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
 LINUX /boot/vmlinuz
 INITRD /boot/ramdisk
 APPEND root=/dev/vda1 console=ttyS0 mitigations=off
"""
_MBR = Path("/usr/lib/EXTLINUX/mbr.bin")


def run(*command: str, input: bytes | None = None) -> None:
    subprocess.run(command, input=input, check=True, capture_output=True, timeout=120)


def bootable_disk(starter: Path, directory: Path) -> Path:
    """The starter image with its kernel inside, as a partition of a disk that extlinux boots."""
    root, mounted, partition, disk = (directory / name for name in ("root", "mounted", "partition", "disk.raw"))
    mounted.mkdir()
    run("mount", "-o", "loop,ro", str(starter / "machine.ext4"), str(mounted))
    try:
        run("cp", "-a", f"{mounted}/.", str(root))
    finally:
        run("umount", str(mounted))
    (root / "boot").mkdir()
    shutil.copy(starter / "vmlinuz", root / "boot/vmlinuz")
    shutil.copy(starter / "ramdisk.gz", root / "boot/ramdisk")
    (root / "boot/extlinux.conf").write_text(_MENU)
    run("mkfs.ext4", "-q", "-F", "-O", "^64bit,^metadata_csum", "-b", "4096", "-d", str(root), str(partition), "40M")
    run("mount", "-o", "loop", str(partition), str(mounted))
    try:
        run("extlinux", "--install", str(mounted / "boot"))
    finally:
        run("umount", str(mounted))
    with open(disk, "xb") as file:
        file.truncate(42 * MIB)
    run("sfdisk", "-q", str(disk), input=b"label: dos\nstart=1MiB, type=83, bootable\n")
    with open(disk, "r+b") as file:
        file.write(_MBR.read_bytes()[:440])
        file.seek(MIB)
        file.write(partition.read_bytes())
    return disk


@pytest.fixture(scope="module")
def the_cloud() -> Iterator[Cloud]:
    with cloud("--image_format=qcow2") as made:
        made.start()
        yield made


def test_a_disk_with_its_own_boot_loader_boots(the_cloud: Cloud, tmp_path: Path) -> None:
    starter = os.environ.get("NOVA_STARTER_PATH")
    if not (starter and _MBR.exists() and shutil.which("extlinux")):
        pytest.skip("starter images or extlinux are missing; run_tests.sh has them")
    disk, image = bootable_disk(Path(starter), tmp_path), tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(image))
    run("zstd", "-q", str(image))
    manage = Manage(the_cloud)
    [row] = manage.json("image", "import", f"{image}.zst", "--project", "admin")
    assert (row["format"], row["kind"]) == ("qcow2", "machine")
    ec2 = the_cloud.ec2
    answer = ec2.run_instances(ImageId=row["image"], InstanceType="m1.tiny", MinCount=1, MaxCount=1)
    instance = answer["Instances"][0]["InstanceId"]

    def console() -> str:
        return ec2.get_console_output(InstanceId=instance).get("Output", "")
    wait_until(lambda: "SSHD started" in console(), 240, "the guest's ssh server")
    assert "BOOT_IMAGE=/boot/vmlinuz" in console() and f"METADATA instance-id={instance}" in console()
    terminate_all(ec2)
    manage("image", "delete", "--yes", row["image"])
