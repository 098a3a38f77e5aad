"""What is written into a guest's disk before it boots, for images that do not know the metadata service.

Off unless --injection says what.  It goes into the instance's own overlay, never into the image.
:mod:`nova.compute.injector` does it, in a process of its own.
"""

import base64
import ipaddress
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nova import exception, failpoint, process
from nova.compute import injector
from nova.compute.models import Instance
from nova.flags import FLAGS, DEFINE_boolean, DEFINE_float, DEFINE_list, DEFINE_string, check
from nova.network.models import Network

KINDS = ("key", "hostname", "network", "files")

DEFINE_list("injection", [], "what is written into the disks of new instances, for images that do not ask the metadata "
            "service: key, hostname, network, files")
check("injection", lambda kinds: set(kinds or ()) <= set(KINDS), f"it is a list of: {', '.join(KINDS)}")
DEFINE_string("injection_files", "", "directory whose files are written into the disks of new instances, below / as "
              "they are below it, when --injection has 'files'")
DEFINE_boolean("injection_required", False, "an instance whose disk cannot be written into is given up; else it is "
               "booted without, and the log says why")
DEFINE_float("injection_timeout", 30, "seconds that writing into a disk may take", lower_bound=1)

LOG = logging.getLogger(__name__)

failpoint.declare("compute.disk.injected", "files are written into the disk, which is still under its temporary name")

#: a file that is injected is not larger
_MOST = 1 << 20


@dataclass(frozen=True)
class File:
    """A file in the guest, owned by root.

    `append` adds to what the image has there; `beside` is a directory without which the file is left out.
    """

    path: str
    content: bytes
    mode: int = 0o644
    append: bool = False
    beside: str = ""


def files(instance: Instance, network: Network) -> list[File]:
    """What the flags say that an instance gets.

    :raises exception.NovaError: --injection_files cannot be read
    """
    kinds, found = FLAGS.injection or (), []
    if "key" in kinds and instance.key_data:
        found.append(File("/root/.ssh/authorized_keys", f"{instance.key_data.strip()}\n".encode(), 0o600, append=True))
    if "hostname" in kinds:
        found.append(File("/etc/hostname", f"{instance.hostname}\n".encode()))
    if "network" in kinds:
        found += _network(instance, network)
    if "files" in kinds and FLAGS.injection_files:
        found += _from_directory(Path(FLAGS.injection_files))
    return found


def _network(instance: Instance, network: Network) -> list[File]:
    """The addresses as ifupdown and systemd-networkd read them, each where the image has it."""
    length = ipaddress.ip_network(network.cidr).prefixlen
    address = f"{instance.private_ip}/{length}"
    return [
        File("/etc/network/interfaces", beside="/etc/network", content=(
            "auto lo\niface lo inet loopback\n\n"
            f"auto eth0\niface eth0 inet static\n    address {address}\n    gateway {network.gateway}\n"
            f"    dns-nameservers {network.gateway}\n").encode()),
        File("/etc/systemd/network/10-nova.network", beside="/etc/systemd/network", content=(
            f"[Match]\nMACAddress={instance.mac}\n\n"
            f"[Network]\nAddress={address}\nGateway={network.gateway}\nDNS={network.gateway}\n").encode())]


def _from_directory(directory: Path) -> list[File]:
    found = []
    try:
        for path in sorted(directory.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size > _MOST:
                raise exception.NovaError(f"--injection_files: {path} is larger than 1 MiB")
            name = f"/{path.relative_to(directory)}"
            if not injector.NAME.fullmatch(name):
                raise exception.NovaError(f"--injection_files: the name of {path} cannot be written")
            found.append(File(name, path.read_bytes(), path.stat().st_mode & 0o777))
    except OSError as error:
        raise exception.NovaError(f"--injection_files: {error}") from error
    return found


async def inject(disk: str, base: str, base_format: str, wanted: Sequence[File]) -> bool:
    """Write files into the file system on an overlay that no guest has.

    :param disk: the overlay's path; in a directory that nobody but its owner may enter
    :param base: the image below it
    :param base_format: raw or qcow2
    :returns: False when it cannot be done, and the overlay is to be made anew: a part may have been written
    :raises exception.LaunchFailed: it cannot be done, and --injection_required
    """
    directory = f"{disk}.injection"
    os.makedirs(directory, mode=0o711, exist_ok=True)
    order = {"disk": disk, "base": base, "base_format": base_format, "directory": directory,
             "timeout": FLAGS.injection_timeout, "files": [
                 {"path": file.path, "content": base64.b64encode(file.content).decode(), "mode": file.mode,
                  "append": file.append, "beside": file.beside} for file in wanted]}
    try:
        # in a mount namespace of its own, which takes the mount with it however the program ends
        await process.wait(process.run("unshare", "--mount", "--propagation", "private", sys.executable, "-I",
                                       injector.__file__, input=json.dumps(order).encode(),
                                       timeout=FLAGS.injection_timeout + 5))
    except (exception.ProcessError, exception.Timeout) as error:
        reason = error.message.rpartition("exit code 1: ")[2]
        if FLAGS.injection_required:
            raise exception.LaunchFailed(f"nothing can be written into the disk: {reason}") from error
        LOG.warning("nothing is written into the disk %s, the guest boots without it: %s", disk, reason)
        return False
    finally:
        await process.wait(process.in_thread(shutil.rmtree, directory, ignore_errors=True))
    failpoint.hit("compute.disk.injected")
    return True
