"""Does KVM work here?

A /dev/kvm that opens is no proof: nested and partial implementations exist in which a boot sector runs and a stock
kernel hangs.  So a real kernel is booted, without disk or network, and must get as far as its first process.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import tempfile
import time
from pathlib import Path

from nova import exception, process
from nova.flags import FLAGS

LOG = logging.getLogger(__name__)

DEVICE = "/dev/kvm"
QEMU = "qemu-system-x86_64"

#: what a kernel says when it has booted and turns to user space; all before is said by one that hangs later, too
_BOOTED = (b"Run /", b"Unable to mount root")


async def probe(kernel: str | os.PathLike[str] | None, ramdisk: str | os.PathLike[str] | None = None,
                timeout: float = 10, cache: str | os.PathLike[str] | None = None) -> bool:
    """Boot `kernel` under KVM and see whether it comes up.

    The answer is kept in a file until the host reboots or QEMU or the kernel change.  Without a kernel nothing can be
    proved, and the answer is no: a guest that runs slowly is better than one that hangs.

    :param kernel: a Linux kernel with a serial console
    :param ramdisk: its initial ramdisk, when it needs one to come up
    :param timeout: seconds to wait for it
    :param cache: the file; under --state_path when None
    """
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    if kernel is None:
        LOG.warning("%s is there, but no kernel to try it with: it is not used", DEVICE)
        return False
    store = Path(cache or Path(FLAGS.state_path, "kvm-probe.json"))
    key = await process.wait(process.in_thread(_key, kernel, ramdisk)) + [await _qemu_version()]
    known = _cached(store)
    if known and known.get("key") == key:
        return known["works"]
    started = time.monotonic()
    works = await boots(kernel, ramdisk, timeout)
    LOG.info("KVM %s here (%.1f s)", "works" if works else "does not work", time.monotonic() - started)
    _store(store, {"key": key, "works": works})
    return works


async def boots(kernel: str | os.PathLike[str], ramdisk: str | os.PathLike[str] | None, timeout: float,
                accelerator: str = "kvm") -> bool:
    """Whether a kernel reaches its first process (or the lack of one) within `timeout` seconds."""
    # ended by timeout(1) should this process be killed in between
    command = ["timeout", "--signal=KILL", f"{timeout + 5:g}",
               QEMU, "-accel", accelerator, "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot",
               "-display", "none", "-serial", "stdio", "-kernel", os.fspath(kernel),
               "-append", "console=ttyS0 panic=-1"]
    if ramdisk is not None:
        command += ["-initrd", os.fspath(ramdisk)]
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        qemu = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=pipe, stderr=null,
                                                    start_new_session=True)
    except OSError as error:
        raise exception.ProcessError(f"{command[0]}: {error.strerror}") from error
    said = b""
    try:
        async with asyncio.timeout(timeout):
            while chunk := await qemu.stdout.read(4096):  # type: ignore[union-attr]
                said = said[-100:] + chunk
                if any(mark in said for mark in _BOOTED):
                    return True
    except TimeoutError:
        LOG.info("a kernel under KVM said nothing more for %g s", timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(qemu.pid, signal.SIGKILL)
        await qemu.wait()
    return False


async def _qemu_version() -> str:
    said = await process.wait(process.run(QEMU, "--version"))
    return said.out.decode(errors="replace").splitlines()[0]


def _key(kernel: str | os.PathLike[str], ramdisk: str | os.PathLike[str] | None) -> list[str]:
    """What the answer depends on: this boot of the host, and the contents of the files."""
    key = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    for path in (kernel, ramdisk):
        if path is not None:
            with open(path, "rb") as file:
                key.append(hashlib.file_digest(file, "sha256").hexdigest())
    return key


def _cached(cache: Path) -> dict | None:
    try:
        return json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _store(cache: Path, answer: dict) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as file:
        json.dump(answer, file)
    os.replace(file.name, cache)
