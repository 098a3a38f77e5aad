"""A whole-disk image as distributions publish them: a partition table, a boot loader, kernel and ramdisk inside.

It is made of the starter images and GRUB, without mounting anything.
"""

import struct
import subprocess
from pathlib import Path

from nova.image.starter import populate

GRUB = Path("/usr/lib/grub/i386-pc")
_SECTOR, _START, _SECTORS = 512, 2048, (47 << 20) // 512
_CONFIG = """\
serial --unit=0 --speed=115200
terminal_output serial
echo GRUB boots
linux /boot/vmlinuz root=/dev/vda1 rw console=ttyS0
initrd /boot/ramdisk.gz
boot
"""


def build(images: Path, work: Path) -> Path:
    """Make the image.

    :param images: the directory of the starter images
    :param work: an empty directory
    """
    root, image = work / "root", work / "disk.raw"
    root.mkdir(parents=True)
    populate(root)
    (root / "boot/grub").mkdir(parents=True)
    for name in ("vmlinuz", "ramdisk.gz"):
        (root / "boot" / name).write_bytes((images / name).read_bytes())
    (root / "boot/grub/grub.cfg").write_text(_CONFIG)
    with open(image, "wb") as file:
        file.truncate((_START + _SECTORS) * _SECTOR)
    _run("mkfs.ext4", "-q", "-F", "-E", f"offset={_START * _SECTOR}", "-d", str(root),
         str(image), f"{_SECTORS * _SECTOR >> 10}k")
    _run("grub-mkimage", "-O", "i386-pc", "-o", str(work / "core.img"), "-p", "(hd0,msdos1)/boot/grub", "biosdisk",
         "part_msdos", "ext2", "linux", "normal", "configfile", "serial", "terminal", "echo", "boot")
    core = (work / "core.img").read_bytes()
    assert len(core) < (_START - 1) * _SECTOR
    with open(image, "r+b") as file:
        file.write((GRUB / "boot.img").read_bytes()[:440])  # which reads on at sector 1
        file.seek(446)
        # bootable, Linux, with no addresses in the form of 1983: only those in sectors count
        file.write(struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", _START, _SECTORS))
        file.seek(510)
        file.write(b"\x55\xaa" + core)
    return image


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
