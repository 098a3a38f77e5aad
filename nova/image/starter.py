"""The starter images: a kernel, a ramdisk and a small machine image, built on this machine from Debian packages.

A new cloud has something to boot before anybody has uploaded anything.  The kernel is Debian's cloud kernel, fetched
by apt and unpacked beside the images (nothing is installed); the ramdisk carries the virtio drivers that are modules
there; the machine image is a 16 MB ext4 file system with busybox, a DHCP client, a metadata client and an ssh server.
The shell scripts that go into them are in `starter_files`.  The same packages give the same bytes.

Also a program: ``python -m nova.image.starter DIRECTORY``.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nova import exception
from nova.image import ramdisk

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = "/bin/busybox"
DROPBEAR = "/usr/sbin/dropbear"
FILES = Path(__file__).with_name("starter_files")

#: drivers that the root disk, the network, entropy and the power button need
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio-rng", "button", "evdev")
MACHINE_MB = 16
#: time stamp of every file in the images, and the identity of the file system: fixed, so that a build can be repeated
EPOCH = 1262304000
FILESYSTEM_UUID = "6e6f7661-0000-4000-8000-737461727465"

_PACKAGES = {"apt-cache": "apt", "apt-get": "apt", "dpkg": "dpkg", "ldd": "libc-bin", "mkfs.ext4": "e2fsprogs",
             "debugfs": "e2fsprogs", BUSYBOX: "busybox-static", DROPBEAR: "dropbear-bin"}
_SEARCH_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
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
    recipe = _recipe()
    if _complete(where, recipe):
        return images
    where.mkdir(parents=True, exist_ok=True)
    with _locked(where / ".lock"):
        if not _complete(where, recipe):
            _build(where, images, recipe, progress, Path(kernel_package) if kernel_package else None)
    return images


def _build(where: Path, images: StarterImages, recipe: str, progress: Callable[[str], object],
           kernel_package: Path | None) -> None:
    for tool in ("dpkg", "ldd", "mkfs.ext4", "debugfs", BUSYBOX, DROPBEAR):
        _tool(tool)
    for leftover in where.glob(".build-*"):
        shutil.rmtree(leftover)
    (where / _MARKER).unlink(missing_ok=True)
    package = kernel_package or _download_kernel(where / "packages", progress)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=where))
    try:
        progress(f"unpacking {package.name}")
        unpacked = work / "kernel"
        _run("dpkg", "-x", str(package), str(unpacked), timeout=120)
        kernels = sorted(unpacked.glob("boot/vmlinuz-*"))
        if not kernels:
            raise exception.NovaError(f"there is no kernel in {package}")
        release = kernels[0].name.removeprefix("vmlinuz-")
        progress(f"building the starter images (kernel {release})")
        (work / images.ramdisk.name).write_bytes(_ramdisk(unpacked / "lib/modules" / release))
        _machine_image(work / "root", work / images.machine.name)
        shutil.copyfile(kernels[0], work / images.kernel.name)
        described = {}
        for final in (images.kernel, images.ramdisk, images.machine):
            _publish(work / final.name, final)
            status = final.stat()
            described[final.name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _sha256(final)}
        marker = {"recipe": recipe, "kernel": release, "package": package.name, "files": described}
        (work / _MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        _publish(work / _MARKER, where / _MARKER)
    finally:
        shutil.rmtree(work)


def describe(directory: str | os.PathLike[str]) -> dict:
    """What a finished build says about itself: kernel release, package, and size and sha256 of each file."""
    return json.loads((Path(directory) / _MARKER).read_text())


def _recipe() -> str:
    """A digest of everything of Nova's that goes into the images."""
    digest = hashlib.sha256()
    for path in (Path(__file__), Path(ramdisk.__file__), *sorted(FILES.iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _complete(where: Path, recipe: str) -> bool:
    try:
        marker = describe(where)
        return marker["recipe"] == recipe and all(
            (status := (where / name).stat()).st_size == file["size"] and status.st_mtime_ns == file["mtime_ns"]
            for name, file in marker["files"].items())
    except (OSError, ValueError, KeyError):
        return False  # not built, or not by this version: build


# -- kernel -----------------------------------------------------------------------------------------------------------

def _download_kernel(packages: Path, progress: Callable[[str], object]) -> Path:
    depends = _run("apt-cache", "depends", KERNEL_META_PACKAGE, check=False)
    found = re.search(r"^\s*Depends: (linux-image-\S+)$", depends, re.MULTILINE)
    if not found:
        raise exception.NovaError(f"apt does not know the package {KERNEL_META_PACKAGE}: run 'apt-get update' first "
                                  "(it is in Debian 12, main)")
    packages.mkdir(parents=True, exist_ok=True)
    progress(f"downloading {found[1]} (27 MB)")
    command = [_tool("apt-get"), "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2",
               "download", found[1]]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, cwd=packages, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                                 env=_environment())
        _watch_download(child, packages, progress)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if child.returncode != 0:
        raise exception.NovaError(f"cannot download {found[1]}: {lines[-1] if lines else 'apt-get failed'}; "
                                  "check the network, or run 'apt-get update'")
    downloaded = sorted(packages.glob(f"{found[1]}_*.deb"), key=lambda path: path.stat().st_mtime)
    for old in set(packages.glob("*.deb")) - {downloaded[-1]}:
        old.unlink()
    return downloaded[-1]


def _watch_download(child: subprocess.Popen, packages: Path, progress: Callable[[str], object],
                    limit: float = 900) -> None:
    started = told = time.monotonic()
    while True:
        try:
            child.wait(0.1)
            return
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - started > limit:
                child.kill()
                child.wait()
                raise exception.Timeout(f"the download of the kernel package took more than {limit:g} s") from None
            if now - told >= 3:
                told = now
                size = sum(path.stat().st_size for path in packages.iterdir() if path.is_file())
                progress(f"downloading the kernel package: {size / 1e6:.0f} MB after {now - started:.0f} s")


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
    if _run("ldd", BUSYBOX, check=False).strip():  # says "not a dynamic executable" on standard error when static
        raise exception.NovaError(f"{BUSYBOX} is not statically linked: apt-get install busybox-static")
    return Path(BUSYBOX)


# -- machine image ----------------------------------------------------------------------------------------------------

def _machine_image(root: Path, out: Path) -> None:
    _populate(root)
    paths = sorted(root.rglob("*"))
    for path in paths:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    os.utime(root, (EPOCH, EPOCH))
    with open(out, "wb") as file:
        file.truncate(MACHINE_MB << 20)
    # A journal of 1 MB: an instance that loses its power comes back with a whole file system.
    _run("mkfs.ext4", "-q", "-F", "-L", "starter", "-U", FILESYSTEM_UUID, "-b", "1024", "-I", "256", "-m", "0",
         "-J", "size=1", "-E", f"hash_seed={FILESYSTEM_UUID},root_owner=0:0", "-d", str(root), str(out), timeout=60)
    fields = [("uid", "0"), ("gid", "0"), *((f"{t}time", f"@{EPOCH}") for t in ("a", "c", "m", "cr"))]
    commands = "".join(f'sif "/{path.relative_to(root)}" {field} {value}\n'
                       for path in paths for field, value in fields)
    with tempfile.NamedTemporaryFile("w") as script:
        script.write(commands)
        script.flush()
        said = _run("debugfs", "-w", "-f", script.name, str(out), stderr=True, timeout=60)
    complaints = [line for line in said.splitlines() if not line.startswith("debugfs ")]
    if complaints:
        raise exception.NovaError(f"debugfs: {complaints[0]}")


def _populate(root: Path) -> None:
    """Lay out the machine image's files under `root`."""
    for name in ("bin", "dev", "etc/nova", "etc/acpi/PWRF", "etc/dropbear", "lib64", "lib/x86_64-linux-gnu", "mnt",
                 "proc", "root", "run", "sys", "tmp", "usr/sbin", "var/lib/nova", "var/log", "var/run"):
        (root / name).mkdir(parents=True)
    busybox = root / "bin/busybox"
    shutil.copyfile(_static_busybox(), busybox)
    busybox.chmod(0o755)
    for applet in _run(BUSYBOX, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).hardlink_to(busybox)
    (root / "sbin").symlink_to("bin")
    shutil.copyfile(DROPBEAR, root / "usr/sbin/dropbear")
    (root / "usr/sbin/dropbear").chmod(0o755)
    for library in set(re.findall(r"(/\S+) \(0x", _run("ldd", DROPBEAR))):
        name = Path(library).name
        copy = root / ("lib64" if name.startswith("ld-") else "lib/x86_64-linux-gnu") / name
        shutil.copyfile(library, copy)
        copy.chmod(0o755)
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


def _install(name: str, path: Path, mode: int) -> None:
    shutil.copyfile(FILES / name, path)
    path.chmod(mode)


# -- tools ------------------------------------------------------------------------------------------------------------

def _tool(name: str) -> str:
    found = shutil.which(name, path=_SEARCH_PATH)
    if not found:
        raise exception.NovaError(f"{name} is missing: apt-get install {_PACKAGES[name]}")
    return found


def _environment() -> dict[str, str]:
    # E2FSPROGS_FAKE_TIME is what e2fsprogs before 1.47.1 knows
    return {"PATH": _SEARCH_PATH, "LC_ALL": "C", "HOME": "/root", "SOURCE_DATE_EPOCH": str(EPOCH),
            "E2FSPROGS_FAKE_TIME": str(EPOCH), "MKE2FS_SKIP_PROGRESS": "1"}


def _run(name: str, *arguments: str, check: bool = True, stderr: bool = False, timeout: float = 30) -> str:
    """Run a tool; its standard output, or its standard error."""
    try:
        done = subprocess.run([_tool(name), *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                              env=_environment(), text=True, errors="replace")
    except subprocess.TimeoutExpired:
        raise exception.Timeout(f"{name}: no end within {timeout:g} s") from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise exception.ProcessError(f"{name}: exit code {done.returncode}: {said}")
    return done.stderr if stderr else done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time in a directory; the lock goes with the process that holds it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(made: Path, final: Path) -> None:
    """Move a finished file to its name, so that it is there wholly or not at all."""
    with open(made, "rb") as file:
        os.fsync(file.fileno())
    os.replace(made, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
