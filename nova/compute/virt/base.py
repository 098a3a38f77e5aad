"""What the compute manager asks of a hypervisor.

A driver knows one hypervisor and nothing of Nova's records: the manager says what to run (:class:`Guest`) and asks what
is there.  Every method may be repeated after a crash in its midst and completes what the first attempt left half done.
Guests are named ``instance-<instance id>`` in the hypervisor.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nova import exception, failpoint, process
from nova.compute.injection import File
from nova.flags import DEFINE_float

failpoint.declare("compute.spawn.defined", "the guest is defined in the hypervisor and not yet started")
failpoint.declare("compute.destroy.stopped", "the guest is stopped and still defined in the hypervisor")

failpoint.declare("compute.capture.shut_down", "the guest is shut down to be copied, and not started again")
failpoint.declare("compute.capture.begun", "the hypervisor copies the guest's disk")

DEFINE_float("capture_shutdown_timeout", 60, "seconds that a guest has to shut down for CreateImage; the disk of one "
             "that does not is copied while it runs", lower_bound=0)

_NAME = re.compile(r"instance-(i-[0-9a-f]{8,17})")


@dataclass(frozen=True)
class Guest:
    """One virtual machine.

    `uuid` is what the guest sees in its SMBIOS; `bridge` must exist when the guest starts; the paths are absolute;
    without a kernel the guest boots from its disk; empty `kernel_args` stand for the driver's default.  `base_path` and
    `base_format` are the image that the disk was made from (empty: not known).
    """

    instance_id: str
    uuid: str
    memory_mb: int
    vcpus: int
    mac: str
    bridge: str
    disk_path: str
    console_path: str
    kernel_path: str | None
    ramdisk_path: str | None
    kernel_args: str
    hostname: str
    base_path: str = ""
    base_format: str = "raw"


#: told how many bytes of how many are done
Progress = Callable[[int, int], None]


class DomainState(StrEnum):
    """What a guest does."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Capacity:
    """What the host has altogether, used or not."""

    vcpus: int
    memory_mb: int
    disk_gb: int


class HypervisorError(exception.NovaError):
    """The hypervisor refused or could not do what it was asked."""


class GuestNotFound(HypervisorError):
    """The hypervisor has no such guest."""

    message = "there is no guest for {instance_id}"


def _ignore(instance_id: str) -> None:
    """Nobody listens."""


class ComputeDriver(ABC):
    """A hypervisor.  All methods raise :class:`HypervisorError` when it fails them.

    `on_event` is called on the event loop with the instance id of a guest that was started, stopped, crashed, ...
    by whomever; events may be lost, so a listener also looks by itself from time to time.
    """

    on_event: Callable[[str], None] = staticmethod(_ignore)

    @abstractmethod
    async def start(self) -> None:
        """Connect."""

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect.  The guests run on."""

    @abstractmethod
    async def list_guests(self) -> dict[str, DomainState]:
        """Nova's guests by instance id, those that are defined but do not run too."""

    @abstractmethod
    async def guest_state(self, instance_id: str) -> DomainState | None:
        """What one guest does; None when there is no such guest.  Its cost does not grow with the number of guests."""

    @abstractmethod
    async def create_disk(self, path: str, base_path: str, size_bytes: int, base_format: str = "raw",
                          files: Sequence[File] = ()) -> None:
        """Make a disk whose contents are those of `base_path` (an image, never written) until the guest writes.

        :param base_format: raw or qcow2
        :param files: to be written into the file system on it, as the flags of nova.compute.injection say; where there
            is no disk to speak of, they are not

        Its size is `size_bytes`, or the base's when that is larger.  A disk that is there is left alone; one appears
        at `path` whole or not at all.
        """

    @abstractmethod
    async def spawn(self, guest: Guest) -> None:
        """Have the guest run.  A half-made one is completed, a running one left alone."""

    @abstractmethod
    async def destroy(self, instance_id: str) -> None:
        """Have the guest gone, its disk left.  No such guest: nothing to do."""

    @abstractmethod
    async def reboot(self, instance_id: str) -> None:
        """Restart the guest, gracefully if it listens; one that does not run is started.

        :raises GuestNotFound: there is no such guest
        """

    @abstractmethod
    async def capture(self, instance_id: str, disk_path: str, target: str, restart: bool,
                      progress: Progress = lambda done, total: None) -> None:
        """Copy a guest's disk, as it is at one moment, to `target`: a qcow2 file that refers to no other.

        The guest runs on while it is copied.  With `restart` one that runs is shut down for the moment, so that all it
        has written is in the copy; meanwhile it counts as running.  One that does not shut down within
        --capture_shutdown_timeout is copied as without `restart`: as a power failure would leave its disk.

        The file appears whole or not at all.  When this is cancelled, the hypervisor goes on; called again, with the
        same target, it waits for what goes on, until :meth:`end_capture`.

        :param progress: told from time to time how many bytes of how many are copied
        """

    @abstractmethod
    async def end_capture(self, instance_id: str, target: str) -> None:
        """Give up copying a guest's disk, with what was copied.  Nothing is copied: nothing to do."""

    @abstractmethod
    async def capacity(self) -> Capacity:
        """What the host can give to guests."""

    @abstractmethod
    async def purge(self) -> None:
        """Remove every guest of Nova."""

    async def console_output(self, guest_console_path: str, limit: int) -> bytes:
        """The last `limit` bytes that the guest wrote on its serial console; nothing when it never ran."""
        return await process.wait(process.in_thread(_tail, Path(guest_console_path), limit))


def guest_name(instance_id: str) -> str:
    """The guest's name in the hypervisor."""
    return f"instance-{instance_id}"


def instance_id(guest: str) -> str | None:
    """The instance that a guest's name stands for; None when the guest is not called as Nova calls its guests."""
    found = _NAME.fullmatch(guest)
    return found[1] if found else None


def _tail(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""
