"""Becomes a libvirtd that shares nothing with one of the system: run as a program, by private_libvirtd.

``libvirtd_launcher.py DIRECTORY RUN CACHE HIDE_KVM(0|1)`` in a mount namespace of its own lays its directories over
libvirt's well-known ones, hides /dev/kvm if told to, and becomes libvirtd in the background.
"""

import os
import shutil
import subprocess
import sys

LIBVIRTD = "/usr/sbin/libvirtd"


def main(directory: str, run: str, cache: str, hide_kvm: bool) -> None:
    """Never returns when all is well.

    :param directory: absolute; has etc, lib, log and dev
    :param run: absolute; where the sockets are
    :param cache: absolute; where it keeps what it found out about QEMU
    """
    for own, system in ((run, "/run/libvirt"), (f"{directory}/etc", "/etc/libvirt"),
                        (f"{directory}/lib", "/var/lib/libvirt"), (f"{directory}/log", "/var/log/libvirt"),
                        (cache, "/var/cache/libvirt")):
        os.makedirs(system, exist_ok=True)
        _mount("--bind", own, system)
    if hide_kvm and os.path.exists("/dev/kvm"):
        _dev_without_kvm(f"{directory}/dev")
    os.execv(LIBVIRTD, [LIBVIRTD, "-d", "-f", "/etc/libvirt/libvirtd.conf", "-p", f"{directory}/libvirtd.pid"])


def _dev_without_kvm(dev: str) -> None:
    """Put a /dev in place that has all but kvm: absent, not covered, or libvirt probes it at every call."""
    _mount("-t", "tmpfs", "-o", "mode=755", "dev", dev)
    for entry in os.scandir("/dev"):
        if entry.name == "kvm":
            continue
        copy = f"{dev}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), copy)
        elif entry.is_dir():
            os.mkdir(copy)
            _mount("--rbind", entry.path, copy)
        else:
            status = entry.stat()
            os.mknod(copy, status.st_mode, status.st_rdev)
            os.chmod(copy, status.st_mode & 0o7777)
            shutil.chown(copy, status.st_uid, status.st_gid)
    _mount("--move", dev, "/dev")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=30)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "1")
