"""A hypervisor that runs nothing: for tests, and for machines without one.

It keeps the contract of :mod:`nova.compute.virt.base` to the letter.  Its guests are JSON files in a directory, so they
outlive the process as real guests do; their disks are sparse files; their consoles say what the starter image says.
"""

import asyncio
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from nova import failpoint, process
from nova.compute import disk
from nova.compute.injection import File
from nova.compute.virt import base
from nova.compute.virt.base import Capacity, DomainState, Guest
from nova.flags import FLAGS
from nova.image import models  # noqa: F401  (defines --capture_timeout)


class FakeDriver(base.ComputeDriver):
    """Guests that are files.

    :param directory: where they are; under --state_path when None
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._directory = Path(directory or Path(FLAGS.state_path, "fake-guests"))

    async def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)

    async def stop(self) -> None:
        """Nothing to disconnect from."""

    async def list_guests(self) -> dict[str, DomainState]:
        return {path.stem: DomainState(json.loads(path.read_text())["state"])
                for path in self._directory.glob("i-*.json")}

    async def guest_state(self, instance_id: str) -> DomainState | None:
        return self._state(instance_id)

    async def create_disk(self, path: str, base_path: str, size_bytes: int, base_format: str = "raw",
                          files: Sequence[File] = ()) -> None:
        if os.path.exists(path):
            return
        with open(disk.temporary(path), "wb") as file:
            file.truncate(disk.disk_size(base_path, size_bytes, base_format))
        await disk.publish(path)

    async def spawn(self, guest: Guest) -> None:
        state = self._state(guest.instance_id)
        if state is DomainState.RUNNING:
            return
        self._write(guest, DomainState.SHUTOFF)
        failpoint.hit("compute.spawn.defined")
        if not os.path.exists(guest.disk_path):
            raise base.HypervisorError(f"there is no disk {guest.disk_path}")
        self._boot(guest)

    async def destroy(self, instance_id: str) -> None:
        if self._state(instance_id) is None:
            return
        self._write(self._guest(instance_id), DomainState.SHUTOFF)
        failpoint.hit("compute.destroy.stopped")
        self._path(instance_id).unlink()
        self._tell(instance_id)

    async def reboot(self, instance_id: str) -> None:
        self._boot(self._guest(instance_id))

    async def capture(self, instance_id: str, disk_path: str, target: str, restart: bool,
                      progress: base.Progress = lambda done, total: None) -> None:
        if os.path.exists(target):
            return
        Path(disk.temporary(target)).unlink(missing_ok=True)
        if restart and self._state(instance_id) is DomainState.RUNNING:
            failpoint.hit("compute.capture.shut_down")
            self._boot(self._guest(instance_id))
        failpoint.hit("compute.capture.begun")
        await self._copy(instance_id, disk_path, disk.temporary(target))
        await disk.publish(target)

    async def _copy(self, instance_id: str, disk_path: str, target: str) -> None:
        """No guest ever writes: where it is known what a disk was made from, that is what is on it."""
        if not os.path.exists(disk_path):
            raise base.HypervisorError(f"there is no disk {disk_path}")
        guest = self._guest(instance_id)
        await disk.flatten(guest.base_path or disk_path, guest.base_format if guest.base_path else "raw", target,
                           FLAGS.capture_timeout)
        await process.wait(process.run("qemu-img", "resize", "-q", "-f", "qcow2", target,
                                       str(os.stat(disk_path).st_size)))

    async def end_capture(self, instance_id: str, target: str) -> None:
        Path(disk.temporary(target)).unlink(missing_ok=True)

    async def capacity(self) -> Capacity:
        return Capacity(vcpus=10_000, memory_mb=100_000_000, disk_gb=1_000_000)

    async def purge(self) -> None:
        for instance_id in await self.list_guests():
            await self.destroy(instance_id)

    def power_off(self, instance_id: str) -> None:
        """What happens when a guest shuts itself down.

        :raises base.GuestNotFound: there is no such guest
        """
        self._write(self._guest(instance_id), DomainState.SHUTOFF)
        self._tell(instance_id)

    def _boot(self, guest: Guest) -> None:
        self._write(guest, DomainState.RUNNING)
        with open(guest.console_path, "a") as console:
            console.write(f"INITRD uptime=0.00\nDHCP-ASK interface=eth0 mac={guest.mac}\n"
                          f"METADATA instance-id={guest.instance_id}\nSSHD started\n"
                          f"NOVA ready uptime=0.00 {guest.hostname}\n")
        self._tell(guest.instance_id)

    def _path(self, instance_id: str) -> Path:
        return self._directory / f"{instance_id}.json"

    def _state(self, instance_id: str) -> DomainState | None:
        try:
            return DomainState(json.loads(self._path(instance_id).read_text())["state"])
        except FileNotFoundError:
            return None

    def _guest(self, instance_id: str) -> Guest:
        try:
            return Guest(**json.loads(self._path(instance_id).read_text())["guest"])
        except FileNotFoundError:
            raise base.GuestNotFound(instance_id=instance_id) from None

    def _write(self, guest: Guest, state: DomainState) -> None:
        temporary = self._directory / f".{guest.instance_id}.part"
        temporary.write_text(json.dumps({"state": state.value, "guest": dataclasses.asdict(guest)}))
        temporary.replace(self._path(guest.instance_id))

    def _tell(self, instance_id: str) -> None:
        asyncio.get_running_loop().call_soon(lambda: self.on_event(instance_id))
