"""A libvirtd of Nova's own, where the machine runs none.

It has its own mount namespace, sockets and state under one directory, and lives in its starter's network namespace, so
that several stand side by side.  It goes on when Nova ends, as its guests do, and is found again at the next start.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from nova import exception, process
from nova.compute.virt import libvirtd_launcher
from nova.flags import FLAGS, DEFINE_string

LOG = logging.getLogger(__name__)

DEFINE_string("libvirt_cache", "", "directory in which private libvirtds keep what they found out about QEMU (4 s of "
              "work); several may share one; empty: each has its own")

SYSTEM_URI = "qemu:///system"
SYSTEM_SOCKET = "/run/libvirt/libvirt-sock"

#: bytes of a unix socket's path, without the final NUL (unix(7))
_SOCKET_PATH_MAX = 107
_DIRECTORIES = ("etc/qemu/networks/autostart", "lib", "log", "cache", "dev")
_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
host_uuid = "{host_uuid}"
"""
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
stdio_handler = "file"
namespaces = [ ]
cgroup_controllers = [ ]
seccomp_sandbox = 0
"""


async def ensure(directory: str | os.PathLike[str], hide_kvm: bool = False, timeout: float = 90) -> str:
    """Have a libvirtd: the system's if it answers in this network namespace, else one of our own.

    :param directory: where the private one keeps its state
    :param hide_kvm: /dev/kvm does not work: keep it from libvirt, which would wait for it
    :param timeout: seconds for it to answer
    :returns: the URI to connect to
    :raises exception.NovaError: it is not installed, or does not start; the message says why
    """
    if system_answers():
        return SYSTEM_URI
    where = Path(directory).absolute()
    if os.geteuid() != 0:
        raise exception.NovaError("a private libvirtd must be started by root (--compute_driver=fake needs neither)")
    if not os.path.exists(libvirtd_launcher.LIBVIRTD):
        raise exception.NovaError("libvirtd is missing: apt-get install libvirt-daemon-system qemu-system-x86")
    _prepare(where)
    async with _locked(where / "lock"):
        mode = where / "kvm-hidden"
        if _answers(_socket(where)) and mode.exists() == hide_kvm:
            return uri(where)
        await _end(where, timeout=30)
        mode.unlink(missing_ok=True)
        if hide_kvm:
            mode.touch()
        await _launch(where, hide_kvm, timeout)
    return uri(where)


async def stop(directory: str | os.PathLike[str], timeout: float = 30) -> None:
    """End the private libvirtd of a directory, if one runs.  Its guests run on.

    :raises exception.Timeout: it does not end
    """
    where = Path(directory).absolute()
    if where.exists():
        async with _locked(where / "lock"):
            await _end(where, timeout)


async def remove(directory: str | os.PathLike[str]) -> None:
    """End the private libvirtd of a directory, if one runs, and remove every file of it.  For when no guest is left."""
    where = Path(directory).absolute()
    await stop(where)
    for path in (run_directory(where), where):
        if path.exists():
            await process.wait(process.in_thread(shutil.rmtree, path))


def uri(directory: str | os.PathLike[str]) -> str:
    """The URI of a directory's private libvirtd."""
    return f"qemu:///system?socket={_socket(Path(directory).absolute())}"


def run_directory(directory: str | os.PathLike[str]) -> Path:
    """Where its sockets are: in the directory, or in /run when their paths would be too long for a socket there."""
    where = Path(directory).absolute()
    run = where / "run"
    if len(os.fsencode(run / "libvirt-admin-sock")) <= _SOCKET_PATH_MAX:
        return run
    return Path("/run", f"nova-{hashlib.sha256(os.fsencode(where)).hexdigest()[:12]}")


def system_answers() -> bool:
    """Whether a libvirtd of the system listens, one that sees the same network interfaces as we."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(2)
        try:
            peer.connect(SYSTEM_SOCKET)
        except OSError:
            return False
        pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
    except FileNotFoundError:
        return False  # a process of another pid namespace: not of ours


def _prepare(where: Path) -> None:
    for name in _DIRECTORIES:
        (where / name).mkdir(parents=True, exist_ok=True)
    run_directory(where).mkdir(mode=0o700, exist_ok=True)
    host_uuid = uuid.uuid5(uuid.NAMESPACE_URL, f"nova://{socket.gethostname()}{where}")
    (where / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF.format(host_uuid=host_uuid))
    (where / "etc/qemu.conf").write_text(_QEMU_CONF)
    if FLAGS.libvirt_cache:
        Path(FLAGS.libvirt_cache).mkdir(parents=True, exist_ok=True)


async def _launch(where: Path, hide_kvm: bool, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    run = run_directory(where)
    log = where / "log/libvirtd.log"
    log.unlink(missing_ok=True)
    LOG.info("starting a private libvirtd in %s", where)
    cache = os.path.abspath(FLAGS.libvirt_cache) if FLAGS.libvirt_cache else str(where / "cache")
    await process.wait(process.run(
        "unshare", "--mount", "--propagation", "private", sys.executable, "-I", libvirtd_launcher.__file__,
        str(where), str(run), cache, "1" if hide_kvm else "0", timeout=timeout))
    while not _answers(_socket(where)):
        if _pid(where) is None or time.monotonic() > deadline:
            raise exception.NovaError(f"the private libvirtd does not come up: {_last_line(log)}")
        await asyncio.sleep(0.02)


async def _end(where: Path, timeout: float) -> None:
    """End the process and wait until it is gone; killed when it does not end by itself in half the time."""
    pid = _pid(where)
    if pid is None:
        return
    try:
        process_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # its pid file goes before its sockets do, so it is the process itself that is waited for
        for ask in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process_fd, ask)
            deadline = time.monotonic() + timeout / 2
            while time.monotonic() < deadline:
                if select.select([process_fd], [], [], 0)[0]:
                    return
                await asyncio.sleep(0.02)
    finally:
        os.close(process_fd)
    raise exception.Timeout(f"the private libvirtd (process {pid}) does not end")


def _pid(where: Path) -> int | None:
    """The process id of the directory's libvirtd, None when it does not run."""
    try:
        pid = int((where / "libvirtd.pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if os.fsencode(where / "libvirtd.pid") in arguments else None  # else: another took the number


def _socket(where: Path) -> Path:
    return run_directory(where) / "libvirt-sock"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(2)
        try:
            peer.connect(str(path))
        except OSError:
            return False
    return True


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1] if lines else f"it said nothing in {log}"


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """One starter at a time; the lock goes with the process that holds it."""
    with open(path, "w") as file:
        await process.wait(process.in_thread(fcntl.flock, file, fcntl.LOCK_EX))
        yield
