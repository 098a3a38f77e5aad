"""The starter images: a kernel, a ramdisk and a small machine image, built on this machine from Debian packages.

A new cloud has something to boot before anybody has uploaded anything.  The kernel is Debian's cloud kernel, fetched
by apt and unpacked beside the images (nothing is installed); the ramdisk carries the virtio drivers that are modules
there; the machine image is a 16 MB ext4 file system with busybox, a DHCP client, a metadata client and an ssh server,
which grows to the size of its disk when it boots.  The shell scripts that go into them are in `starter_files`.  The
same packages give the same bytes.

Also a program: ``python -m nova.image.starter DIRECTORY``.
"""

import argparse
import lzma
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nova import exception
from nova.image import building, ramdisk
from nova.image.building import EPOCH, run, tool

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = "/bin/busybox"
DROPBEAR = "/usr/sbin/dropbear"
RESIZE2FS = "/usr/sbin/resize2fs"
FILES = Path(__file__).with_name("starter_files")

#: drivers that the root disk, the network, entropy and the power button need
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio-rng", "button", "evdev")
MACHINE_MB = 16
#: the identity of the file system: fixed, so that a build can be repeated
FILESYSTEM_UUID = "6e6f7661-0000-4000-8000-737461727465"

_MARKER = "starter.json"


@dataclass(frozen=True)
class StarterImages:
    """Where the three images are."""

    kernel: Path
    ramdisk: Path
    machine: Path


def build(directory: str | os.PathLike[str], progress: Callable[[str], object] = print,
          kernel_package: str | os.PathLike[str] | None = None) -> StarterImages:
    """Build what is not there yet.  Blocks: a few seconds and a download of 27 MB the first time, then nothing.

    :param directory: where the images, and the kernel package they were made from, are kept
    :param progress: told in one line what happens next
    :param kernel_package: a .deb file to take the kernel from instead of asking apt (a machine without a network)
    :raises exception.NovaError: a tool, a package or the network is missing; the message says what to do
    """
    where = Path(directory).absolute()
    images = StarterImages(where / "vmlinuz", where / "ramdisk.gz", where / "machine.ext4")
    recipe = building.recipe(Path(__file__), Path(ramdisk.__file__), *sorted(FILES.iterdir()))
    if building.is_complete(where / _MARKER, recipe):
        return images
    where.mkdir(parents=True, exist_ok=True)
    with building.locked(where / ".lock"):
        if not building.is_complete(where / _MARKER, recipe):
            _build(where, images, recipe, progress, Path(kernel_package) if kernel_package else None)
    return images


def _build(where: Path, images: StarterImages, recipe: str, progress: Callable[[str], object],
           kernel_package: Path | None) -> None:
    for name in ("dpkg", "ldd", "mkfs.ext4", "debugfs", BUSYBOX, DROPBEAR, RESIZE2FS):
        tool(name)
    for leftover in where.glob(".build-*"):
        shutil.rmtree(leftover)
    (where / _MARKER).unlink(missing_ok=True)
    package = kernel_package or _download_kernel(where / "packages", progress)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=where))
    try:
        progress(f"unpacking {package.name}")
        unpacked = work / "kernel"
        run("dpkg", "-x", str(package), str(unpacked), timeout=120)
        kernels = sorted(unpacked.glob("boot/vmlinuz-*"))
        if not kernels:
            raise exception.NovaError(f"there is no kernel in {package}")
        release = kernels[0].name.removeprefix("vmlinuz-")
        progress(f"building the starter images (kernel {release})")
        (work / images.ramdisk.name).write_bytes(_ramdisk(unpacked / "lib/modules" / release))
        _machine_image(work / "root", work / images.machine.name)
        shutil.copyfile(kernels[0], work / images.kernel.name)
        finals = (images.kernel, images.ramdisk, images.machine)
        for final in finals:
            building.publish(work / final.name, final)
        building.mark(where / _MARKER, recipe, finals, kernel=release, package=package.name)
    finally:
        shutil.rmtree(work)


def describe(directory: str | os.PathLike[str]) -> dict:
    """What a finished build says about itself: kernel release, package, and size and sha256 of each file."""
    return building.describe(Path(directory) / _MARKER)


# -- kernel -----------------------------------------------------------------------------------------------------------

def _download_kernel(packages: Path, progress: Callable[[str], object]) -> Path:
    depends = run("apt-cache", "depends", KERNEL_META_PACKAGE, check=False)
    found = re.search(r"^\s*Depends: (linux-image-\S+)$", depends, re.MULTILINE)
    if not found:
        raise exception.NovaError(f"apt does not know the package {KERNEL_META_PACKAGE}: run 'apt-get update' first "
                                  "(it is in Debian 12, main)")
    packages.mkdir(parents=True, exist_ok=True)
    progress(f"downloading {found[1]} (27 MB)")

    def tell(seconds: float, line: str) -> str:
        size = sum(path.stat().st_size for path in packages.iterdir() if path.is_file())
        return f"downloading the kernel package: {size / 1e6:.0f} MB after {seconds:.0f} s"
    code, said = building.run_told(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2",
                                    "download", found[1]], progress, tell, 900, packages)
    if code != 0:
        reason = said.splitlines()[-1] if said else "apt-get failed"
        raise exception.NovaError(f"cannot download {found[1]}: {reason}; check the network, or run 'apt-get update'")
    downloaded = sorted(packages.glob(f"{found[1]}_*.deb"), key=lambda path: path.stat().st_mtime)
    for old in set(packages.glob("*.deb")) - {downloaded[-1]}:
        old.unlink()
    return downloaded[-1]


# -- ramdisk ----------------------------------------------------------------------------------------------------------

def _ramdisk(modules: Path) -> bytes:
    archive = ramdisk.Archive(EPOCH)
    for name in ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "sys"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("init", (FILES / "ramdisk-init").read_bytes(), executable=True)
    archive.file("bin/busybox", _static_busybox().read_bytes(), executable=True)
    for applet in ("cat", "cut", "echo", "insmod", "mount", "sh", "sleep", "switch_root", "umount"):
        archive.symlink(f"bin/{applet}", "busybox")
    order = ramdisk.with_dependencies(modules, MODULES)
    for path in order:
        data = path.read_bytes()
        archive.file(f"lib/modules/{_module_file(path)}", lzma.decompress(data) if path.suffix == ".xz" else data)
    archive.file("lib/modules/order", "".join(f"{_module_file(path)}\n" for path in order).encode())
    return archive.compressed()


def _module_file(path: Path) -> str:
    return path.name.removesuffix(".xz")


def _static_busybox() -> Path:
    if run("ldd", BUSYBOX, check=False).strip():  # says "not a dynamic executable" on standard error when static
        raise exception.NovaError(f"{BUSYBOX} is not statically linked: apt-get install busybox-static")
    return Path(BUSYBOX)


# -- machine image ----------------------------------------------------------------------------------------------------

def _machine_image(root: Path, out: Path) -> None:
    populate(root)
    paths = sorted(root.rglob("*"))
    for path in paths:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    os.utime(root, (EPOCH, EPOCH))
    with open(out, "wb") as file:
        file.truncate(MACHINE_MB << 20)
    # A journal of 1 MB: an instance that loses its power comes back with a whole file system.
    run("mkfs.ext4", "-q", "-F", "-L", "starter", "-U", FILESYSTEM_UUID, "-b", "1024", "-I", "256", "-i", "16384",
         "-m", "0", "-J", "size=1", "-E", f"hash_seed={FILESYSTEM_UUID},root_owner=0:0", "-d", str(root), str(out),
         timeout=60)
    fields = [("uid", "0"), ("gid", "0"), *((f"{t}time", f"@{EPOCH}") for t in ("a", "c", "m", "cr"))]
    commands = "".join(f'sif "/{path.relative_to(root)}" {field} {value}\n'
                       for path in paths for field, value in fields)
    with tempfile.NamedTemporaryFile("w") as script:
        script.write(commands)
        script.flush()
        said = run("debugfs", "-w", "-f", script.name, str(out), stderr=True, timeout=60)
    complaints = [line for line in said.splitlines() if not line.startswith("debugfs ")]
    if complaints:
        raise exception.NovaError(f"debugfs: {complaints[0]}")


def populate(root: Path) -> None:
    """Lay out the machine image's files under `root`."""
    for name in ("bin", "dev", "etc/nova", "etc/acpi/PWRF", "etc/dropbear", "lib64", "lib/x86_64-linux-gnu", "mnt",
                 "proc", "root", "run", "sys", "tmp", "usr/sbin", "var/lib/nova", "var/log", "var/run"):
        (root / name).mkdir(parents=True)
    busybox = root / "bin/busybox"
    shutil.copyfile(_static_busybox(), busybox)
    busybox.chmod(0o755)
    for applet in run(BUSYBOX, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).hardlink_to(busybox)
    (root / "sbin").symlink_to("bin")
    for program in (DROPBEAR, RESIZE2FS):
        _install_program(Path(program), root)
    for name in ("boot", "dhcp", "configure"):
        _install(name, root / "etc/nova" / name, 0o755)
    _install("power-button", root / "etc/acpi/PWRF/00000080", 0o755)
    _install("inittab", root / "etc/inittab", 0o644)
    for name, text in {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\ntty:x:5:\n",
        "etc/shadow": "root:*:14610:0:99999:7:::\n",  # no password fits: in by key only
        "etc/shells": "/bin/sh\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/os-release": 'ID=nova-starter\nNAME="Nova starter image"\n',
    }.items():
        (root / name).write_text(text)
        (root / name).chmod(0o644)
    (root / "etc/shadow").chmod(0o600)
    (root / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    (root / "root").chmod(0o700)


def _install_program(path: Path, root: Path) -> None:
    """Put a program of this machine into the image, with the libraries that it needs."""
    shutil.copyfile(path, root / "usr/sbin" / path.name)
    (root / "usr/sbin" / path.name).chmod(0o755)
    for library in set(re.findall(r"(/\S+) \(0x", run("ldd", str(path)))):
        name = Path(library).name
        copy = root / ("lib64" if name.startswith("ld-") else "lib/x86_64-linux-gnu") / name
        shutil.copyfile(library, copy)
        copy.chmod(0o755)


def _install(name: str, path: Path, mode: int) -> None:
    shutil.copyfile(FILES / name, path)
    path.chmod(mode)


def main() -> None:
    """``python -m nova.image.starter DIRECTORY``: build and say where the images are."""
    parser = argparse.ArgumentParser(prog="python -m nova.image.starter", description="Build the starter images.")
    parser.add_argument("directory")
    parser.add_argument("--kernel-package", metavar="FILE", help="a .deb file to take the kernel from")
    arguments = parser.parse_args()
    try:
        images = build(arguments.directory, progress=print, kernel_package=arguments.kernel_package)
    except (exception.NovaError, OSError) as error:
        sys.exit(f"starter images: {error}")
    print(f"starter images: {images.kernel} {images.ramdisk} {images.machine}")


if __name__ == "__main__":
    main()
