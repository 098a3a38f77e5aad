"""Instance disks: copy-on-write files over a base image that many instances share."""

import os
from pathlib import Path

from nova import exception, failpoint, process

failpoint.declare("compute.disk.made", "the disk is complete under a temporary name and not yet at its own")

_TEMPORARY = ".part"


async def create_disk(path: str, base_path: str, size_bytes: int) -> None:
    """Make a qcow2 overlay of a raw base image.  A disk that is there is left alone.

    :param path: absolute; the disk appears there whole or not at all
    :param base_path: absolute; must not change as long as the disk lives
    :param size_bytes: the disk's size; the base's own when that is larger
    :raises exception.NovaError: the base is missing or qemu-img failed
    """
    if os.path.exists(path):
        return
    Path(temporary(path)).unlink(missing_ok=True)
    await process.wait(process.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base_path,
                                   temporary(path), str(disk_size(base_path, size_bytes))))
    await publish(path)


def disk_size(base_path: str, size_bytes: int) -> int:
    """The size in bytes, whole sectors, of a disk over a base image.

    :raises exception.NovaError: the base is missing
    """
    try:
        size = max(size_bytes, os.stat(base_path).st_size)
    except OSError as error:
        raise exception.NovaError(f"base image {base_path}: {error.strerror}") from error
    return -(-size // 512) * 512


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
