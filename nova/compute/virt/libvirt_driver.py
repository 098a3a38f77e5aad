"""Guests under libvirt: KVM where it works, plain QEMU elsewhere.

libvirt's calls block, so they run in a small pool of threads.  The connection notices a dead libvirtd by keepalives and
is opened anew by the next call; a private libvirtd that died is started again.  Domains are persistent: libvirt and a
rebooted host still know them.
"""

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from nova import failpoint, process
from nova.compute import disk
from nova.compute.injection import File
from nova.compute.virt import (
    base,
    domain_xml,
    kvm,
    libvirt_capture,
    libvirt_flags,  # noqa: F401  (defines the flags)
    private_libvirtd,
)
from nova.compute.virt.base import Capacity, DomainState, Guest
from nova.flags import FLAGS

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: seconds that one libvirt call may take
_CALL_TIMEOUT = 60
#: seconds in which opening a connection is tried again
_CONNECT_TIME = 3
#: a libvirtd that is silent for interval x count seconds is dead
_KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 5, 3

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,  # on its way down
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_METADATA)
_UNDEFINE = (libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
             | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


class LibvirtDriver(base.ComputeDriver):
    """libvirt on this host, as the flags say.

    :param probe_kernel: a kernel for --libvirt_type=auto to try KVM with; see :func:`kvm.probe`
    :param probe_ramdisk: its ramdisk
    """

    def __init__(self, probe_kernel: str | os.PathLike[str] | None = None,
                 probe_ramdisk: str | os.PathLike[str] | None = None):
        self._probe_with = probe_kernel, probe_ramdisk
        self._owner = os.path.abspath(FLAGS.state_path)
        self._ours: set[str] = set()  # uuids of domains that are known to be this Nova's
        self._rebooted: dict[str, asyncio.Event] = {}
        self._connection: libvirt.virConnect | None = None
        self._connecting = asyncio.Lock()
        self._pool: process.Pool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._type = ""
        self._captures = libvirt_capture.Captures(self._call)

    async def start(self) -> None:
        libvirt.registerErrorHandler(_quiet, None)
        self._loop = asyncio.get_running_loop()
        self._pool = process.Pool(4, "libvirt")
        self._type = FLAGS.libvirt_type
        if self._type == "auto":
            self._type = "kvm" if await kvm.probe(*self._probe_with) else "qemu"
        _run_event_loop()
        await self._connect(None)
        LOG.info("guests run under %s (%s)", "KVM" if self._type == "kvm" else "QEMU without KVM", await self._uri())

    async def stop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._in_pool(_close, connection)
        if self._pool is not None:
            self._pool.close()
        self._loop = None

    async def list_guests(self) -> dict[str, DomainState]:
        guests = await self._call(self._list)
        return {id: self._captures.seen(id, state) for id, state in guests.items()}

    async def guest_state(self, instance_id: str) -> DomainState | None:
        state = await self._call(self._state_of, instance_id)
        return None if state is None else self._captures.seen(instance_id, state)

    async def create_disk(self, path: str, base_path: str, size_bytes: int, base_format: str = "raw",
                          files: Sequence[File] = ()) -> None:
        await disk.create_disk(path, base_path, size_bytes, base_format, files)

    async def spawn(self, guest: Guest) -> None:
        xml = domain_xml.build(guest, self._type, self._owner)
        if await self._call(_define, guest, xml):
            failpoint.hit("compute.spawn.defined")
            await self._call(_create, guest.instance_id)

    async def destroy(self, instance_id: str) -> None:
        async with self._captures.kept_from_starting(instance_id):
            await self._call(_destroy, instance_id)
            failpoint.hit("compute.destroy.stopped")
            await self._call(_undefine, instance_id)

    async def reboot(self, instance_id: str) -> None:
        rebooted = self._rebooted[instance_id] = asyncio.Event()
        try:
            if await self._call(_press_power_button, instance_id):
                try:
                    await asyncio.wait_for(rebooted.wait(), FLAGS.reboot_timeout)
                except TimeoutError:
                    LOG.info("%s does not reboot by itself: reset", instance_id)
                    await self._call(_reset, instance_id)
        finally:
            del self._rebooted[instance_id]

    async def capture(self, instance_id: str, disk_path: str, target: str, restart: bool,
                      progress: base.Progress = lambda done, total: None) -> None:
        await self._captures.run(instance_id, disk_path, target, restart, progress)
        self.on_event(instance_id)  # what happened to the guest meanwhile, it was kept from seeing

    async def end_capture(self, instance_id: str, target: str) -> None:
        await self._captures.end(instance_id, target)

    async def capacity(self) -> Capacity:
        model, memory_mb, vcpus, *rest = await self._call(lambda connection: connection.getInfo())
        return Capacity(vcpus, memory_mb, shutil.disk_usage(FLAGS.state_path).total >> 30)

    async def purge(self) -> None:
        for instance_id in await self.list_guests():
            await self.destroy(instance_id)

    def _list(self, connection: libvirt.virConnect) -> dict[str, DomainState]:
        guests = {}
        for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
            instance_id = base.instance_id(domain.name())
            if instance_id and self._is_ours(domain):
                guests[instance_id] = _STATES.get(stats["state.state"], DomainState.SHUTOFF)
        return guests

    def _state_of(self, connection: libvirt.virConnect, instance_id: str) -> DomainState | None:
        domain = _find(connection, instance_id)
        if domain is None or not self._is_ours(domain):
            return None
        try:
            return _STATES.get(domain.state()[0], DomainState.SHUTOFF)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _GONE:
                return None
            raise

    def _is_ours(self, domain: libvirt.virDomain) -> bool:
        if domain.UUIDString() in self._ours:
            return True
        try:
            mark = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.NAMESPACE)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _GONE:
                return False
            raise
        if domain_xml.owner_of(mark) != self._owner:
            return False
        self._ours.add(domain.UUIDString())
        return True

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function(connection, *args)`` in a thread; once more over a new connection when this one is dead."""
        connection = self._connection or await self._connect(None)
        try:
            return await self._in_pool(function, connection, *args)
        except libvirt.libvirtError as error:
            if await self._in_pool(_alive, connection):
                raise base.HypervisorError(f"libvirt: {error}") from error
            LOG.warning("the connection to libvirt is dead (%s); opening another", error)
        connection = await self._connect(connection)
        try:
            return await self._in_pool(function, connection, *args)
        except libvirt.libvirtError as error:
            raise base.HypervisorError(f"libvirt: {error}") from error

    async def _connect(self, dead: libvirt.virConnect | None) -> libvirt.virConnect:
        """Open a connection instead of a dead one, unless somebody else just did."""
        async with self._connecting:
            if self._connection is not None and self._connection is not dead:
                return self._connection
            self._connection = None
            if dead is not None:
                await self._in_pool(_close, dead)
            deadline = asyncio.get_running_loop().time() + _CONNECT_TIME
            while self._connection is None:
                uri = await self._uri()
                try:
                    self._connection = await self._in_pool(self._open, uri)
                except libvirt.libvirtError as error:
                    # a libvirtd that is just dying takes connections until the kernel has closed its socket
                    if asyncio.get_running_loop().time() > deadline:
                        raise base.HypervisorError(f"cannot connect to libvirt at {uri}: {error}") from error
                    await asyncio.sleep(0.1)
            return self._connection

    async def _uri(self) -> str:
        if FLAGS.libvirt_uri:
            return FLAGS.libvirt_uri
        return await private_libvirtd.ensure(Path(FLAGS.state_path, "libvirt"), hide_kvm=self._type == "qemu")

    def _open(self, uri: str) -> libvirt.virConnect:
        connection = libvirt.open(uri)
        connection.setKeepAlive(_KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._reboot, None)
        return connection

    async def _in_pool(self, function: Callable[..., T], *args: Any) -> T:
        if self._pool is None:
            raise base.HypervisorError("the driver is not started")
        try:
            return await asyncio.wait_for(process.wait(self._pool.run(function, *args)), _CALL_TIMEOUT)
        except TimeoutError:
            raise base.HypervisorError(f"libvirt did not answer within {_CALL_TIMEOUT} s") from None

    # -- events: these run in libvirt's thread ------------------------------------------------------------------------

    def _lifecycle(self, connection: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int,
                   opaque: None) -> None:
        self._tell(domain, lambda instance_id: self.on_event(instance_id))

    def _reboot(self, connection: libvirt.virConnect, domain: libvirt.virDomain, opaque: None) -> None:
        self._tell(domain, self._note_reboot)

    def _note_reboot(self, instance_id: str) -> None:
        if instance_id in self._rebooted:
            self._rebooted[instance_id].set()

    def _tell(self, domain: libvirt.virDomain, whom: Callable[[str], None]) -> None:
        loop, instance_id = self._loop, base.instance_id(domain.name())
        if loop is not None and not loop.is_closed() and instance_id:
            loop.call_soon_threadsafe(whom, instance_id)


# -- what runs in the pool's threads ----------------------------------------------------------------------------------

def _find(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain | None:
    try:
        return connection.lookupByName(base.guest_name(instance_id))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _require(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain:
    domain = _find(connection, instance_id)
    if domain is None:
        raise base.GuestNotFound(instance_id=instance_id)
    return domain


def _state(domain: libvirt.virDomain) -> DomainState:
    return _STATES.get(domain.state()[0], DomainState.SHUTOFF)


def _define(connection: libvirt.virConnect, guest: Guest, xml: str) -> bool:
    """Define the domain anew unless it runs; whether it is then to be started."""
    domain = _find(connection, guest.instance_id)
    if domain is not None and _state(domain) is DomainState.RUNNING:
        return False
    if domain is not None and domain.UUIDString() != guest.uuid.lower():
        _destroy(connection, guest.instance_id)
        _undefine(connection, guest.instance_id)
        domain = None
    if domain is None or not domain.isActive():
        connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    return True


def _create(connection: libvirt.virConnect, instance_id: str) -> None:
    domain = _require(connection, instance_id)
    try:
        if domain.isActive():
            domain.resume()  # libvirtd died between start and resume
        else:
            domain.create()
    except libvirt.libvirtError as error:
        if not (error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and _state(domain) is DomainState.RUNNING):
            raise


def _destroy(connection: libvirt.virConnect, instance_id: str) -> None:
    domain = _find(connection, instance_id)
    if domain is None:
        return
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (*_GONE, libvirt.VIR_ERR_OPERATION_INVALID):  # the latter: does not run
            raise


def _undefine(connection: libvirt.virConnect, instance_id: str) -> None:
    domain = _find(connection, instance_id)
    if domain is None:
        return
    try:
        domain.undefineFlags(_UNDEFINE)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _GONE:
            raise


def _press_power_button(connection: libvirt.virConnect, instance_id: str) -> bool:
    """Ask a running guest to reboot, start another; whether it was asked."""
    domain = _require(connection, instance_id)
    if _state(domain) is DomainState.RUNNING:
        domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)
        return True
    _create(connection, instance_id)
    return False


def _reset(connection: libvirt.virConnect, instance_id: str) -> None:
    _require(connection, instance_id).reset()


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return connection.isAlive() == 1
    except libvirt.libvirtError:
        return False


def _close(connection: libvirt.virConnect) -> None:
    try:
        connection.close()
    except libvirt.libvirtError as error:
        LOG.debug("closing a connection to libvirt: %s", error)


def _quiet(context: None, error: tuple) -> None:
    """libvirt would print every error on standard error; they are raised as well."""


_event_thread: threading.Thread | None = None


def _run_event_loop() -> None:
    """Start the thread that libvirt's events and keepalives need, once in a process and before any connection."""
    global _event_thread
    if _event_thread is None:
        libvirt.virEventRegisterDefaultImpl()
        _event_thread = threading.Thread(target=_dispatch, name="libvirt-events", daemon=True)
        _event_thread.start()


def _dispatch() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
