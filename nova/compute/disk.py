"""Instance disks: copy-on-write files over a base image that many instances share."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from nova import exception, failpoint, process
from nova.compute import injection
from nova.compute.injection import File

failpoint.declare("compute.disk.made", "the disk is complete under a temporary name and not yet at its own")

_TEMPORARY = ".part"
#: the head of a qcow2 file (QEMU: docs/interop/qcow2.txt): magic, version, offset and size of the backing file's name,
#: cluster bits, size; then, 40 bytes on, the features that a reader must know
_QCOW2 = struct.Struct(">4sIQIIQ40xQ")
_EXTERNAL_DATA = 1 << 2


async def create_disk(path: str, base_path: str, size_bytes: int, base_format: str = "raw",
                      files: Sequence[File] = ()) -> None:
    """Make a qcow2 overlay of a base image.  A disk that is there is left alone.

    :param path: absolute; the disk appears there whole or not at all
    :param base_path: absolute; must not change as long as the disk lives
    :param size_bytes: the disk's size; the base's own when that is larger
    :param base_format: raw or qcow2; written into the overlay, so that nobody ever guesses it from what a user uploaded
    :param files: to be written into its file system
    :raises exception.NovaError: the base is missing or damaged, or qemu-img failed
    """
    if os.path.exists(path):
        return
    size = disk_size(base_path, size_bytes, base_format)
    await _overlay(temporary(path), base_path, base_format, size)
    if files and not await injection.inject(temporary(path), base_path, base_format, files):
        await _overlay(temporary(path), base_path, base_format, size)
    await publish(path)


async def _overlay(path: str, base_path: str, base_format: str, size: int) -> None:
    Path(path).unlink(missing_ok=True)
    # -u: the size is known, qemu-img need not open the base
    await process.wait(process.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", base_format, "-b", base_path,
                                   path, str(size)))


def disk_size(base_path: str, size_bytes: int, base_format: str = "raw") -> int:
    """The size in bytes, whole sectors, of a disk over a base image.

    :raises exception.NovaError: the base is missing or damaged
    """
    try:
        size = max(size_bytes, virtual_size(base_path, base_format))
    except OSError as error:
        raise exception.NovaError(f"base image {base_path}: {error.strerror}") from error
    return -(-size // 512) * 512


def virtual_size(path: str, disk_format: str) -> int:
    """The bytes that a guest sees of an image.

    :param disk_format: raw or qcow2
    :raises exception.LaunchFailed: it is not of that format, or refers to other files
    :raises OSError: it cannot be read
    """
    if disk_format == "raw":
        return os.stat(path).st_size
    if disk_format != "qcow2":
        raise exception.LaunchFailed(f"images of the format {disk_format!r} cannot be booted")
    with open(path, "rb") as file:
        head = file.read(_QCOW2.size)
    if len(head) < _QCOW2.size:
        raise exception.LaunchFailed("the image is no qcow2 file")
    magic, version, backing, _, _, size, features = _QCOW2.unpack(head)
    if magic != b"QFI\xfb" or version not in (2, 3):
        raise exception.LaunchFailed("the image is no qcow2 file")
    if backing or (version == 3 and features & _EXTERNAL_DATA):
        raise exception.LaunchFailed("the image refers to another file")
    return size


async def flatten(path: str, disk_format: str, target: str, timeout: float) -> None:
    """Copy a disk that no guest uses to a qcow2 file that refers to no other; where it is zero, the copy has nothing.

    :param disk_format: raw or qcow2
    :param target: absolute; there is no such file
    :param timeout: seconds
    :raises exception.NovaError: it is not there, or qemu-img failed
    """
    await process.wait(process.run("qemu-img", "convert", "-q", "-f", disk_format, "-O", "qcow2", path, target,
                                   timeout=timeout))


def temporary(path: str) -> str:
    """Where a disk is made before it is moved to `path`."""
    return path + _TEMPORARY


async def publish(path: str) -> None:
    """Move a finished disk from its temporary name to its own, so that it outlives a power failure."""
    await process.wait(process.in_thread(_sync, temporary(path)))
    failpoint.hit("compute.disk.made")
    os.rename(temporary(path), path)
    await process.wait(process.in_thread(_sync, os.path.dirname(path)))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
