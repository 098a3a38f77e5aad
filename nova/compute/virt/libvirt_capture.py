"""Copies of guests' disks by libvirt's backup jobs.

A backup job in push mode copies what the disk was at the moment at which the job began, while the guest writes on:
QEMU copies each block before the guest changes it.  So a guest that has to be shut down for a consistent copy is off
for a moment only: it is started again, paused, the job begins, and it runs on.  libvirt has one job for a guest at a
time, and it goes on without the process that began it.
"""

import asyncio
import contextlib
import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary
from xml.etree.ElementTree import SubElement

import libvirt

from nova import failpoint
from nova.compute import disk
from nova.compute.virt import base
from nova.compute.virt.base import DomainState
from nova.flags import FLAGS
from nova.image import models  # noqa: F401  (defines --capture_timeout)

LOG = logging.getLogger(__name__)

#: calls a function of a connection, and of more, in a thread
Call = Callable[..., Awaitable[Any]]

#: seconds between two looks at a guest that shuts down, and at a job
_SHUTDOWN_PAUSE, _JOB_PAUSE = 0.1, 0.25
#: seconds between two looks at a copy that was told to end, and in which it must have
_ABORT_PAUSE, _ABORT_TIME = 0.02, 30.0
#: of a domain that is not there (any more), or does not run
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


class _Job(Enum):
    """What there is of a copy."""

    NONE = 0
    UNDER_WAY = 1
    DONE = 2


class Captures:
    """The copies of guests' disks.

    :param call: of the driver
    """

    def __init__(self, call: Call):
        self._call = call
        self._restarting: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def seen(self, instance_id: str, state: DomainState) -> DomainState:
        """What a guest is said to do: one that is off for a moment to be copied runs."""
        return DomainState.RUNNING if instance_id in self._restarting else state

    @contextlib.asynccontextmanager
    async def kept_from_starting(self, instance_id: str) -> AsyncIterator[None]:
        """While the block runs, a guest that is off to be copied is not started."""
        lock = self._locks.setdefault(instance_id, asyncio.Lock())
        async with lock:
            yield

    async def run(self, instance_id: str, disk_path: str, target: str, restart: bool, progress: base.Progress) -> None:
        """See :meth:`nova.compute.virt.base.ComputeDriver.capture`."""
        if os.path.exists(target):
            return
        part = disk.temporary(target)
        job = await self._call(_look, instance_id, part)
        if job is _Job.NONE:
            Path(part).unlink(missing_ok=True)
            if not await self._call(_is_active, instance_id):
                await disk.flatten(disk_path, "qcow2", part, FLAGS.capture_timeout)
                await disk.publish(target)
                return
            await self._begin(instance_id, part, restart)
            failpoint.hit("compute.capture.begun")
        if job is not _Job.DONE:
            while await self._call(_is_under_way, instance_id, progress):
                await asyncio.sleep(_JOB_PAUSE)
            await self._call(_check, instance_id)
        await disk.publish(target)

    async def end(self, instance_id: str, target: str) -> None:
        """See :meth:`nova.compute.virt.base.ComputeDriver.end_capture`."""
        part = disk.temporary(target)
        deadline = asyncio.get_running_loop().time() + _ABORT_TIME
        while await self._call(_abort, instance_id, part):  # the next copy would be taken for this one
            if asyncio.get_running_loop().time() > deadline:
                raise base.HypervisorError(f"the copy of {instance_id} does not end")
            await asyncio.sleep(_ABORT_PAUSE)
        Path(part).unlink(missing_ok=True)

    async def _begin(self, instance_id: str, part: str, restart: bool) -> None:
        if not restart or not await self._shut_down(instance_id):
            await self._call(_begin, instance_id, part)
            return
        try:
            failpoint.hit("compute.capture.shut_down")
            async with self.kept_from_starting(instance_id):  # by others
                await self._call(_start, instance_id, part)
        finally:
            self._restarting.discard(instance_id)
        LOG.info("%s runs again", instance_id)

    async def _shut_down(self, instance_id: str) -> bool:
        """Have a guest shut down; False when it does not, and runs on."""
        LOG.info("%s shuts down, so that its disk can be copied", instance_id)
        self._restarting.add(instance_id)
        try:
            deadline = asyncio.get_running_loop().time() + FLAGS.capture_shutdown_timeout
            await self._call(_press_power_button, instance_id)
            while await self._call(_is_active, instance_id):
                if asyncio.get_running_loop().time() > deadline:
                    LOG.warning("%s does not shut down: its disk is copied while it runs", instance_id)
                    self._restarting.discard(instance_id)
                    return False
                await asyncio.sleep(_SHUTDOWN_PAUSE)
        except BaseException:
            self._restarting.discard(instance_id)
            raise
        return True


# -- what runs in the driver's threads --------------------------------------------------------------------------------

def _domain(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain:
    try:
        return connection.lookupByName(base.guest_name(instance_id))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise base.GuestNotFound(instance_id=instance_id) from None
        raise


def _is_active(connection: libvirt.virConnect, instance_id: str) -> bool:
    try:
        return bool(_domain(connection, instance_id).isActive())
    except base.GuestNotFound:
        return False


def _look(connection: libvirt.virConnect, instance_id: str, part: str) -> _Job:
    """What an earlier process has left; reading how a job ended makes libvirt forget it."""
    if not _is_active(connection, instance_id):
        return _Job.NONE
    domain = _domain(connection, instance_id)
    if domain.jobStats()["type"] != libvirt.VIR_DOMAIN_JOB_NONE:
        if _copies_to(domain, part):
            return _Job.UNDER_WAY
        raise base.HypervisorError(f"{instance_id} is being copied for another image")
    ended = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    return _Job.DONE if os.path.exists(part) and _succeeded(ended) else _Job.NONE


def _copies_to(domain: libvirt.virDomain, part: str) -> bool:
    try:
        description = ElementTree.fromstring(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:  # a job of another kind
            return False
        raise
    return any(target.get("file") == part for target in description.iter("target"))


def _succeeded(ended: dict[str, Any]) -> bool:
    return (ended.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP and bool(ended.get("success")))


def _begin(connection: libvirt.virConnect, instance_id: str, part: str) -> None:
    backup = ElementTree.Element("domainbackup", mode="push")
    copied = SubElement(SubElement(backup, "disks"), "disk", name="vda", type="file", backup="yes")
    SubElement(copied, "driver", type="qcow2")
    SubElement(copied, "target", file=part)
    _domain(connection, instance_id).backupBegin(ElementTree.tostring(backup, encoding="unicode"), None, 0)


def _start(connection: libvirt.virConnect, instance_id: str, part: str) -> None:
    """Start a guest, and copy what its disk is before it does anything."""
    domain = _domain(connection, instance_id)
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        _begin(connection, instance_id, part)
    finally:
        domain.resume()


def _press_power_button(connection: libvirt.virConnect, instance_id: str) -> None:
    try:
        _domain(connection, instance_id).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # it is off already
            raise


def _is_under_way(connection: libvirt.virConnect, instance_id: str, progress: base.Progress) -> bool:
    try:
        job = _domain(connection, instance_id).jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return False
        raise
    if job["type"] == libvirt.VIR_DOMAIN_JOB_NONE:
        return False
    progress(int(job.get("disk_processed", 0)), int(job.get("disk_total", 0)))
    return True


def _check(connection: libvirt.virConnect, instance_id: str) -> None:
    """Refuse a copy that did not come to its end."""
    try:
        ended = _domain(connection, instance_id).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            raise base.HypervisorError(f"{instance_id} ended while its disk was copied") from None
        raise
    if not _succeeded(ended):
        raise base.HypervisorError(f"the disk of {instance_id} was not copied: {ended.get('errmsg') or 'it ended'}")


def _abort(connection: libvirt.virConnect, instance_id: str, part: str) -> bool:
    """Have a copy end; whether it goes on for now."""
    try:
        domain = _domain(connection, instance_id)
        if not (domain.isActive() and domain.jobStats()["type"] != libvirt.VIR_DOMAIN_JOB_NONE
                and _copies_to(domain, part)):
            return False
        domain.abortJob()
    except base.GuestNotFound:
        return False
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _GONE:  # it ends just now, if it is one of these
            raise
    return True
