"""Debian with cloud-init as a machine image, built on this machine from Debian's packages when somebody wants it.

It is a bare ext4 file system that the starter images' kernel and ramdisk boot (:mod:`nova.image.starter`).  cloud-init
inside finds Nova's metadata service as it finds EC2's, takes the key, the hostname and the user data from it, and grows
the file system to the disk of the instance's type.  mmdebstrap makes the tree: apt itself resolves what is needed, in
one go, and nothing is installed twice.

Also a program: ``python -m nova.image.debian DIRECTORY``.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from nova import exception
from nova.image import building
from nova.image.building import run, tool

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
FILES = Path(__file__).with_name("debian_files")
PACKAGES = ("systemd-sysv", "cloud-init", "openssh-server", "udev", "dbus", "iproute2", "ifupdown", "isc-dhcp-client",
            "cloud-guest-utils", "e2fsprogs", "sudo", "netbase", "dmidecode")
#: a guest is small and short-lived: what nobody reads there stays away
_WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_UNITS_OFF = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer",
              "dpkg-db-backup.timer", "e2scrub_reap.service", "systemd-pstore.service")
_FILESYSTEM_UUID = "6e6f7661-0000-4000-8000-64656269616e"
#: seconds for all packages over a slow line
_LIMIT = 1800
_MARKER = "debian.json"
#: what the image has beside its files, for the guest to write on before it is grown
_SPARE = 96 << 20


def build(directory: str | os.PathLike[str], progress: Callable[[str], object] = print, mirror: str = MIRROR) -> Path:
    """Build the image unless it is there.  Blocks: a minute and a download of 80 MB the first time, then nothing.

    :param directory: where it is kept
    :param progress: told in one line what happens
    :param mirror: where Debian's packages come from
    :returns: the image, a sparse raw file
    :raises exception.NovaError: a tool or the network is missing; the message says what to do
    """
    where = Path(directory).absolute()
    image, marker = where / "debian.ext4", where / _MARKER
    recipe = building.recipe(Path(__file__), *sorted(p for p in FILES.rglob("*") if p.is_file()))
    if building.is_complete(marker, recipe):
        return image
    if os.geteuid() != 0:
        raise exception.NovaError("the Debian image must be built by root, since files in it belong to many users")
    where.mkdir(parents=True, exist_ok=True)
    with building.locked(where / ".lock"):
        if not building.is_complete(marker, recipe):
            _build(where, image, marker, recipe, progress, mirror)
    return image


def _build(where: Path, image: Path, marker: Path, recipe: str, progress: Callable[[str], object],
           mirror: str) -> None:
    for name in ("mmdebstrap", "mkfs.ext4"):
        tool(name)
    for leftover in where.glob(".build-*"):
        shutil.rmtree(leftover)
    marker.unlink(missing_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=where))
    try:
        _unpack(work / "root", progress, mirror)
        _configure(work / "root")
        progress("making the file system")
        _file_system(work / "root", work / image.name)
        building.publish(work / image.name, image)
        building.mark(marker, recipe, [image], suite=SUITE)
    finally:
        shutil.rmtree(work)


def _unpack(root: Path, progress: Callable[[str], object], mirror: str) -> None:
    progress(f"downloading and unpacking Debian {SUITE} from {mirror} (80 MB)")
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
               f"--include={','.join(PACKAGES)}",
               *(f"--dpkgopt=path-exclude={path}" for path in _WITHOUT), "--aptopt=Acquire::Retries=2", *_proxy()]
    code, said = building.run_told([*command, SUITE, str(root), mirror], progress,
                                   lambda seconds, line: f"Debian: {line[:80]} ({seconds:.0f} s)", _LIMIT)
    if code != 0:
        lines = [line for line in said.splitlines() if line.startswith(("E:", "W:", "Err:"))] or said.splitlines()
        raise exception.NovaError(f"Debian cannot be unpacked: {'; '.join(lines[-3:])}; check the network")


def _proxy() -> list[str]:
    """The proxy of this machine's apt, which mmdebstrap does not ask."""
    found = re.search("'(.+)'", run("apt-config", "shell", "proxy", "Acquire::http::Proxy"))
    return [f"--aptopt=Acquire::http::Proxy \"{found[1]}\""] if found else []


def _configure(root: Path) -> None:
    """Lay our files over it, and take away what must not be the same in two guests."""
    shutil.copytree(FILES, root, dirs_exist_ok=True)
    for path in FILES.rglob("*"):
        (root / path.relative_to(FILES)).chmod(0o755 if path.is_dir() else 0o644)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")  # systemd makes one in each guest
    for unit in _UNITS_OFF:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")


def _file_system(root: Path, out: Path) -> None:
    used = int(run("du", "-s", "--block-size=1", str(root)).split()[0])
    with open(out, "wb") as file:
        file.truncate((int(used * 1.1) + _SPARE) >> 20 << 20)
    # with room for its groups' descriptors where it grows to: 64 GiB and more without moving anything
    run("mkfs.ext4", "-q", "-F", "-L", "debian", "-U", _FILESYSTEM_UUID, "-m", "1", "-J", "size=8",
        "-E", f"hash_seed={_FILESYSTEM_UUID},resize=16777216", "-d", str(root), str(out), timeout=300)


def main() -> None:
    """``python -m nova.image.debian DIRECTORY``: build and say where the image is."""
    parser = argparse.ArgumentParser(prog="python -m nova.image.debian", description="Build the Debian image.")
    parser.add_argument("directory")
    parser.add_argument("--mirror", default=MIRROR, help="where Debian's packages come from")
    arguments = parser.parse_args()
    try:
        print(f"Debian image: {build(arguments.directory, print, arguments.mirror)}")
    except (exception.NovaError, OSError) as error:
        sys.exit(f"Debian image: {error}")


if __name__ == "__main__":
    main()
