"""The contract of the compute drivers, held against the fake one and against libvirt with real guests.

Runs in namespaces of its own (see run_tests.sh): it makes a bridge and starts a libvirtd.
"""

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import libvirt_qemu
import pytest

from nova import exception, failpoint
from nova.compute.virt import base, domain_xml, kvm, libvirt_capture, private_libvirtd
from nova.compute.virt.base import DomainState
from nova.compute.virt.fake import FakeDriver
from nova.compute.virt.libvirt_driver import LibvirtDriver
from nova.flags import FLAGS
from nova.image import starter

ROOT = Path(__file__).parents[2]
MB = 1 << 20
BRIDGE = "brdrivers"
ID = "i-0000abcd"


class Died(Exception):
    """Stands for the death of the process at a failpoint."""


@dataclass
class Rig:
    """A started driver and what a guest for it needs."""

    driver: base.ComputeDriver
    directory: Path
    images: starter.StarterImages
    new_driver: Callable[[], base.ComputeDriver]

    def guest(self, instance_id: str = ID) -> base.Guest:
        number = int(instance_id[2:], 16)
        return base.Guest(
            instance_id=instance_id, uuid=f"ec2{number:05x}-0000-4000-8000-000000000001", memory_mb=128, vcpus=1,
            mac=f"02:16:3e:00:{number >> 8 & 255:02x}:{number & 255:02x}", bridge=BRIDGE,
            disk_path=str(self.directory / f"{instance_id}.disk"),
            console_path=str(self.directory / f"{instance_id}.console"), kernel_path=str(self.images.kernel),
            ramdisk_path=str(self.images.ramdisk), kernel_args="", hostname="ip-10-0-0-3")

    async def spawn(self, instance_id: str = ID) -> base.Guest:
        guest = self.guest(instance_id)
        await self.driver.create_disk(guest.disk_path, str(self.images.machine), 0)
        await self.driver.spawn(guest)
        return guest

    async def console(self, guest: base.Guest) -> str:
        return (await self.driver.console_output(guest.console_path, 65536)).decode(errors="replace")


async def until(condition: Callable[[], object], seconds: float = 40) -> None:
    """Wait for a condition; it may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def images() -> starter.StarterImages:
    return starter.build(os.environ.get("NOVA_STARTER_PATH", ROOT / ".cache/starter"))


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory with a private libvirtd, and a bridge."""
    state = tmp_path_factory.mktemp("state")
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
    yield state
    asyncio.run(private_libvirtd.remove(state / "libvirt"))
    subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


@pytest.fixture
async def real(hypervisor: Path, tmp_path: Path, images: starter.StarterImages) -> AsyncIterator[Rig]:
    FLAGS.state_path = str(hypervisor)
    FLAGS.libvirt_type = "qemu"
    rig = Rig(LibvirtDriver(), tmp_path, images, LibvirtDriver)
    await rig.driver.start()
    yield rig
    await rig.driver.purge()
    assert await rig.driver.list_guests() == {}
    await rig.driver.stop()


@pytest.fixture
async def fake(tmp_path: Path, images: starter.StarterImages) -> AsyncIterator[Rig]:
    def new_driver() -> FakeDriver:
        return FakeDriver(tmp_path / "guests")

    rig = Rig(new_driver(), tmp_path, images, new_driver)
    await rig.driver.start()
    yield rig
    await rig.driver.purge()
    assert await rig.driver.list_guests() == {}
    await rig.driver.stop()


@pytest.fixture(params=["fake", "real"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return request.getfixturevalue(request.param)


def die_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def hit(reached: str) -> None:
        if reached == name:
            raise Died(name)

    monkeypatch.setattr(failpoint, "hit", hit)


# -- the contract -----------------------------------------------------------------------------------------------------

async def test_a_disk_is_as_large_as_asked_or_as_its_base(rig: Rig) -> None:
    base_size = rig.images.machine.stat().st_size
    for asked, size in ((0, base_size), (100 * MB, 100 * MB), (100 * MB + 1, 100 * MB + 512)):
        path = rig.directory / f"disk{asked}"
        await rig.driver.create_disk(str(path), str(rig.images.machine), asked)
        if isinstance(rig.driver, FakeDriver):
            assert path.stat().st_size == size
        else:
            info = subprocess.run(["qemu-img", "info", str(path)], capture_output=True, text=True, check=True).stdout
            assert f"({size} bytes)" in info and f"backing file: {rig.images.machine}" in info
        assert path.stat().st_blocks * 512 < MB


async def test_a_disk_appears_whole_or_not_at_all_and_is_made_once(
        rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rig.directory / "disk"
    with monkeypatch.context() as patch:
        die_at(patch, "compute.disk.made")
        with pytest.raises(Died):
            await rig.driver.create_disk(str(path), str(rig.images.machine), 32 * MB)
    assert not path.exists()
    await rig.driver.create_disk(str(path), str(rig.images.machine), 32 * MB)
    made = path.stat()
    await rig.driver.create_disk(str(path), str(rig.images.machine), 64 * MB)
    assert path.stat() == made
    assert [entry.name for entry in rig.directory.iterdir() if "disk" in entry.name] == ["disk"]


async def test_a_disk_without_its_base_is_an_error(rig: Rig) -> None:
    with pytest.raises(exception.NovaError, match="no-such-base"):
        await rig.driver.create_disk(str(rig.directory / "disk"), str(rig.directory / "no-such-base"), MB)
    assert not (rig.directory / "disk").exists()


async def test_a_disk_of_a_qcow2_image_is_as_large_as_the_image_says(rig: Rig) -> None:
    base, path = rig.directory / "base", rig.directory / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "3G"], check=True)
    await rig.driver.create_disk(str(path), str(base), 1 << 30, "qcow2")
    if isinstance(rig.driver, FakeDriver):
        assert path.stat().st_size == 3 << 30
    else:
        found = json.loads(subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True,
                                          check=True).stdout)
        assert found["virtual-size"] == 3 << 30 and found["backing-filename-format"] == "qcow2"


@pytest.mark.parametrize(("make", "why"), [
    (["-b", "/etc/shadow", "-F", "raw"], "refers to another file"),
    (["-o", "data_file=data.raw"], "refers to another file"),
    (None, "no qcow2 file")], ids=["backing", "data", "raw"])
async def test_a_disk_of_an_image_that_is_not_what_it_should_be_is_refused(rig: Rig, make: list[str] | None,
                                                                           why: str) -> None:
    base, path = rig.directory / "base", rig.directory / "disk"
    if make is None:
        base.write_bytes(b"x" * 4096)
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *make, str(base), "1G"], check=True,
                       cwd=rig.directory)
    with pytest.raises(exception.LaunchFailed, match=why):
        await rig.driver.create_disk(str(path), str(base), 1 << 30, "qcow2")
    assert not path.exists()


async def test_a_spawned_guest_runs_and_is_spawned_once(rig: Rig) -> None:
    guest = await rig.spawn()
    assert await rig.driver.list_guests() == {ID: DomainState.RUNNING}
    await until(lambda: rig.console(guest))
    await rig.driver.spawn(guest)
    assert await rig.driver.list_guests() == {ID: DomainState.RUNNING}
    assert (await rig.console(guest)).count("INITRD uptime") <= 1


async def test_a_guest_that_was_defined_and_not_started_is_completed(
        rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, "compute.spawn.defined")
        with pytest.raises(Died):
            await rig.spawn()
    assert await rig.driver.list_guests() == {ID: DomainState.SHUTOFF}
    await rig.driver.spawn(rig.guest())
    assert await rig.driver.list_guests() == {ID: DomainState.RUNNING}


async def test_a_guest_without_its_disk_is_an_error_and_can_be_destroyed(rig: Rig) -> None:
    with pytest.raises(base.HypervisorError):
        await rig.driver.spawn(rig.guest())
    assert DomainState.RUNNING not in (await rig.driver.list_guests()).values()
    await rig.driver.destroy(ID)
    assert await rig.driver.list_guests() == {}


async def test_a_destroyed_guest_is_gone_its_disk_is_not(rig: Rig) -> None:
    guest = await rig.spawn()
    await rig.driver.destroy(ID)
    assert await rig.driver.list_guests() == {}
    assert Path(guest.disk_path).exists()
    await rig.driver.destroy(ID)


async def test_a_guest_that_was_stopped_and_not_undefined_is_destroyed(
        rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.spawn()
    with monkeypatch.context() as patch:
        die_at(patch, "compute.destroy.stopped")
        with pytest.raises(Died):
            await rig.driver.destroy(ID)
    assert await rig.driver.list_guests() == {ID: DomainState.SHUTOFF}
    await rig.driver.destroy(ID)
    assert await rig.driver.list_guests() == {}


async def test_a_rebooted_guest_starts_again_and_keeps_its_console(rig: Rig) -> None:
    guest = await rig.spawn()

    async def starts(number: int) -> bool:
        return (await rig.console(guest)).count("INITRD uptime") == number

    await until(lambda: starts(1))
    FLAGS.reboot_timeout = 1
    await rig.driver.reboot(ID)
    await until(lambda: starts(2))
    assert await rig.driver.list_guests() == {ID: DomainState.RUNNING}


async def test_reboot_starts_a_guest_that_is_off_and_refuses_one_that_is_not(rig: Rig) -> None:
    with pytest.raises(base.GuestNotFound):
        await rig.driver.reboot(ID)
    await rig.spawn()
    power_off(rig, ID)
    assert await rig.driver.list_guests() == {ID: DomainState.SHUTOFF}
    await rig.driver.reboot(ID)
    assert await rig.driver.list_guests() == {ID: DomainState.RUNNING}


async def test_another_driver_finds_the_guests(rig: Rig) -> None:
    await asyncio.gather(rig.spawn("i-00000001"), rig.spawn("i-00000002"))
    await rig.driver.stop()
    rig.driver = rig.new_driver()
    await rig.driver.start()
    assert await rig.driver.list_guests() == {"i-00000001": DomainState.RUNNING, "i-00000002": DomainState.RUNNING}
    await rig.driver.destroy("i-00000001")
    assert await rig.driver.list_guests() == {"i-00000002": DomainState.RUNNING}


async def test_whoever_changes_a_guest_the_listener_hears_of_it(rig: Rig) -> None:
    heard: list[str] = []
    rig.driver.on_event = heard.append
    await rig.spawn()
    await until(lambda: ID in heard)
    heard.clear()
    power_off(rig, ID)
    await until(lambda: ID in heard)
    assert set(heard) == {ID}


async def test_the_console_is_its_last_bytes(rig: Rig) -> None:
    assert await rig.driver.console_output(str(rig.directory / "none"), 100) == b""
    (rig.directory / "console").write_bytes(b"0123456789")
    assert await rig.driver.console_output(str(rig.directory / "console"), 4) == b"6789"
    assert await rig.driver.console_output(str(rig.directory / "console"), 100) == b"0123456789"


async def test_the_host_has_capacity(rig: Rig) -> None:
    capacity = await rig.driver.capacity()
    assert capacity.vcpus >= 1 and capacity.memory_mb >= 256 and capacity.disk_gb >= 1


def power_off(rig: Rig, instance_id: str) -> None:
    """What a guest does that shuts itself down."""
    if isinstance(rig.driver, FakeDriver):
        rig.driver.power_off(instance_id)
    else:
        connection = libvirt.open(private_libvirtd.uri(Path(FLAGS.state_path, "libvirt")))
        connection.lookupByName(base.guest_name(instance_id)).destroy()
        connection.close()


async def test_a_captured_disk_is_a_flat_qcow2_file_as_large_as_the_disk(rig: Rig) -> None:
    target = rig.directory / "captured"
    guest = rig.guest()
    await rig.driver.create_disk(guest.disk_path, str(rig.images.machine), 100 * MB)
    await rig.driver.spawn(guest)
    for restart in (False, True):
        FLAGS.capture_shutdown_timeout = 1.0  # the guest may not be up yet
        await rig.driver.capture(ID, guest.disk_path, str(target), restart)
        info = qemu_info(target)
        assert (info["format"], info["virtual-size"]) == ("qcow2", 100 * MB) and "backing-filename" not in info
        assert await rig.driver.list_guests() == {ID: DomainState.RUNNING}
        assert sorted(path.name for path in rig.directory.iterdir() if "captured" in path.name) == ["captured"]
        made = target.stat()
        await rig.driver.capture(ID, guest.disk_path, str(target), restart)
        assert target.stat() == made  # one that is there is left alone
        target.unlink()


async def test_the_disk_of_a_guest_that_is_off_is_captured(rig: Rig) -> None:
    guest, target = await rig.spawn(), rig.directory / "captured"
    power_off(rig, ID)
    await rig.driver.capture(ID, guest.disk_path, str(target), True)
    assert qemu_info(target)["format"] == "qcow2"
    assert await rig.driver.list_guests() == {ID: DomainState.SHUTOFF}


async def test_a_disk_that_is_not_there_cannot_be_captured(rig: Rig) -> None:
    with pytest.raises(exception.NovaError):
        await rig.driver.capture(ID, str(rig.directory / "none"), str(rig.directory / "captured"), False)
    await rig.driver.end_capture(ID, str(rig.directory / "captured"))
    assert not [path for path in rig.directory.iterdir() if "captured" in path.name]


async def test_a_capture_that_was_begun_is_completed_or_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, target = await rig.spawn(), rig.directory / "captured"
    for give_up in (False, True):
        with monkeypatch.context() as patch:
            die_at(patch, "compute.capture.begun")
            with pytest.raises(Died):
                await rig.driver.capture(ID, guest.disk_path, str(target), False)
        if give_up:
            await rig.driver.end_capture(ID, str(target))
            assert not [path for path in rig.directory.iterdir() if "captured" in path.name]
        await rig.driver.capture(ID, guest.disk_path, str(target), False)
        assert qemu_info(target)["format"] == "qcow2"
        target.unlink()


def qemu_info(path: Path) -> dict[str, Any]:
    """What qemu-img tells of an image that has no errors."""
    subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
    out = subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=True).stdout
    return dict(json.loads(out))


# -- what only real guests show ---------------------------------------------------------------------------------------

async def test_a_real_guest_boots_the_machine_image_and_obeys_the_power_button(real: Rig) -> None:
    guest = await real.spawn()
    await until(lambda: _says(real, guest, "DHCP-NONE"))
    said = await real.console(guest)
    assert said.index("INITRD uptime") < said.index(f"DHCP-ASK interface=eth0 mac={guest.mac}")
    FLAGS.reboot_timeout = 30
    await real.driver.reboot(ID)
    await until(lambda: _says(real, guest, "NOVA power button"))
    await until(lambda: _says(real, guest, "DHCP-ASK", times=2))
    assert "EXT4-fs error" not in await real.console(guest)


async def booted(real: Rig, memory_mb: int = 128) -> base.Guest:
    """A guest that is up, and listens to its power button."""
    guest = replace(await real.spawn(), memory_mb=memory_mb)
    await until(lambda: _says(real, guest, "DHCP-NONE"))
    return guest


async def test_a_real_guest_is_shut_down_for_a_moment_and_its_file_system_is_clean(real: Rig) -> None:
    guest, target = await booted(real), real.directory / "captured"
    heard: list[DomainState | None] = []

    async def watch() -> None:
        while True:
            heard.append(await real.driver.guest_state(ID))
            await asyncio.sleep(0.02)
    watching = asyncio.ensure_future(watch())
    await real.driver.capture(ID, guest.disk_path, str(target), True)
    watching.cancel()
    assert set(heard) == {DomainState.RUNNING}  # whoever looks must not start it
    await until(lambda: _says(real, guest, "NOVA power button"))
    await until(lambda: _says(real, guest, "DHCP-ASK", times=2))
    checked = subprocess.run(["e2fsck", "-fn", str(flat(target))], capture_output=True, text=True)
    assert checked.returncode == 0 and "recovery" not in checked.stderr + checked.stdout, checked.stdout


async def test_a_real_guest_that_runs_on_is_captured_as_after_a_power_failure(real: Rig) -> None:
    guest, target = await booted(real), real.directory / "captured"
    await real.driver.capture(ID, guest.disk_path, str(target), False)
    assert not await _says(real, guest, "NOVA power button")
    checked = subprocess.run(["e2fsck", "-fn", str(flat(target))], capture_output=True, text=True)
    assert "skipping journal recovery" in checked.stderr + checked.stdout
    recovered = subprocess.run(["e2fsck", "-fy", str(flat(target))], capture_output=True, text=True)
    assert recovered.returncode in (0, 1), recovered.stdout


async def test_a_real_guest_that_does_not_shut_down_is_captured_while_it_runs(real: Rig) -> None:
    guest, target = await real.spawn(), real.directory / "captured"
    FLAGS.capture_shutdown_timeout = 0.0
    await real.driver.capture(ID, guest.disk_path, str(target), True)
    assert qemu_info(target)["format"] == "qcow2"
    assert await real.driver.list_guests() == {ID: DomainState.RUNNING}


async def test_a_real_guest_that_was_shut_down_when_the_process_died_is_started(
        real: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, target = await booted(real), real.directory / "captured"
    with monkeypatch.context() as patch:
        die_at(patch, "compute.capture.shut_down")
        with pytest.raises(Died):
            await real.driver.capture(ID, guest.disk_path, str(target), True)
    assert await real.driver.guest_state(ID) is DomainState.SHUTOFF  # so that its host starts it
    await real.driver.spawn(guest)
    await real.driver.capture(ID, guest.disk_path, str(target), False)
    assert await real.driver.list_guests() == {ID: DomainState.RUNNING}


async def test_a_real_guest_is_destroyed_while_its_disk_is_copied(real: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, target = await spawn_large(real), real.directory / "captured"
    is_slow = slow_copies_down(monkeypatch)
    copying = asyncio.ensure_future(real.driver.capture(ID, guest.disk_path, str(target), False))
    await until(is_slow.is_set)
    await real.driver.destroy(ID)
    with pytest.raises(base.HypervisorError):
        await copying
    await real.driver.end_capture(ID, str(target))
    assert not [path for path in real.directory.iterdir() if "captured" in path.name]


async def test_another_driver_waits_for_a_copy_that_goes_on(real: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, target = await spawn_large(real), real.directory / "captured"
    is_slow = slow_copies_down(monkeypatch)
    copying = asyncio.ensure_future(real.driver.capture(ID, guest.disk_path, str(target), False))
    await until(is_slow.is_set)
    part = Path(f"{target}.part").stat().st_ino
    copying.cancel()
    await asyncio.wait([copying])
    await real.driver.stop()
    real.driver = real.new_driver()
    await real.driver.start()
    with pytest.raises(base.HypervisorError, match="another image"):
        await real.driver.capture(ID, guest.disk_path, str(real.directory / "other"), False)
    await real.driver._call(set_speed, 0)
    told: list[tuple[int, int]] = []
    await real.driver.capture(ID, guest.disk_path, str(target), False, lambda *step: told.append(step))
    assert target.stat().st_ino == part
    assert told and all(0 <= done <= total for done, total in told) and told[-1][1] > 100 * MB


async def spawn_large(rig: Rig) -> base.Guest:
    """A guest whose disk takes a while to be copied."""
    image = rig.directory / "large.img"
    with open(image, "wb") as file:
        file.write(rig.images.machine.read_bytes())
        for _ in range(768):
            file.write(b"large" * (MB // 5))
        file.truncate(file.tell() // 512 * 512)
    guest = rig.guest()
    await rig.driver.create_disk(guest.disk_path, str(image), 0)
    await rig.driver.spawn(guest)
    return guest


def slow_copies_down(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have QEMU copy disks slowly, so that there is time to do something meanwhile; tells when one has begun."""
    begin, is_slow = libvirt_capture._begin, threading.Event()

    def begin_slowly(connection: libvirt.virConnect, instance_id: str, part: str) -> None:
        begin(connection, instance_id, part)
        set_speed(connection, 40 * MB)
        is_slow.set()
    monkeypatch.setattr(libvirt_capture, "_begin", begin_slowly)
    return is_slow


def set_speed(connection: libvirt.virConnect, speed: int) -> None:
    """Have QEMU copy so many bytes a second of the guest's disk; 0: as many as it can."""
    domain = connection.lookupByName(base.guest_name(ID))
    [job] = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-block-jobs"}', 0))["return"]
    libvirt_qemu.qemuMonitorCommand(domain, json.dumps({
        "execute": "block-job-set-speed", "arguments": {"device": job["device"], "speed": speed}}), 0)


def flat(target: Path) -> Path:
    """A captured disk as a raw file."""
    raw = target.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(target), str(raw)], check=True)
    return raw


async def _says(rig: Rig, guest: base.Guest, text: str, times: int = 1) -> bool:
    return (await rig.console(guest)).count(text) >= times


async def test_the_driver_survives_libvirtd(real: Rig) -> None:
    guest = await real.spawn()
    pid = int(Path(FLAGS.state_path, "libvirt/libvirtd.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    assert await real.driver.list_guests() == {ID: DomainState.RUNNING}
    await until(lambda: _says(real, guest, "INITRD uptime"))
    heard: list[str] = []
    real.driver.on_event = heard.append
    power_off(real, ID)
    await until(lambda: ID in heard)


async def test_guests_of_others_are_left_alone(real: Rig) -> None:
    connection = libvirt.open(private_libvirtd.uri(Path(FLAGS.state_path, "libvirt")))
    foreign = domain_xml.build(real.guest("i-00000077"), "qemu", "/somebody/else")
    unmarked = ElementTree.fromstring(domain_xml.build(real.guest("i-00000078"), "qemu", ""))
    unmarked.remove(unmarked.find("metadata"))
    for xml in (foreign, ElementTree.tostring(unmarked, encoding="unicode")):
        connection.defineXML(xml)
    await real.driver.purge()
    assert await real.driver.list_guests() == {}
    for name in ("instance-i-00000077", "instance-i-00000078"):
        connection.lookupByName(name).undefine()
    connection.close()


async def test_a_changed_guest_is_defined_anew(real: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, "compute.spawn.defined")
        with pytest.raises(Died):
            await real.spawn()
    await real.driver.spawn(replace(real.guest(), uuid="ec2fffff-0000-4000-8000-000000000002", memory_mb=144))
    assert await real.driver.list_guests() == {ID: DomainState.RUNNING}


# -- the private libvirtd ---------------------------------------------------------------------------------------------

async def test_a_private_libvirtd_is_adopted_ended_and_started_again(hypervisor: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)  # too long for a socket's path
    FLAGS.libvirt_cache = str(hypervisor / "libvirt/cache")
    try:
        uri = await private_libvirtd.ensure(deep, hide_kvm=True)
        pid = (deep / "libvirtd.pid").read_text()
        assert await private_libvirtd.ensure(deep, hide_kvm=True) == uri
        assert (deep / "libvirtd.pid").read_text() == pid
        connection = libvirt.open(uri)
        assert connection.isAlive() and connection.numOfDomains() == 0
        connection.close()
        await private_libvirtd.stop(deep)
        assert not Path(f"/proc/{pid}/exe").exists()  # at most a process that nobody has reaped
        await private_libvirtd.stop(deep)
        assert await private_libvirtd.ensure(deep, hide_kvm=True) == uri
    finally:
        await private_libvirtd.remove(deep)
    assert not deep.exists() and not private_libvirtd.run_directory(deep).exists()


# -- the KVM probe ----------------------------------------------------------------------------------------------------

async def test_a_kernel_that_comes_up_is_told_from_one_that_does_not(
        images: starter.StarterImages, tmp_path: Path) -> None:
    assert await kvm.boots(images.kernel, images.ramdisk, 40, accelerator="tcg")
    assert await kvm.boots(images.kernel, None, 40, accelerator="tcg")
    assert not await kvm.boots(images.kernel, images.ramdisk, 0.2, accelerator="tcg")
    (tmp_path / "junk").write_bytes(b"this is no kernel" * 100)
    assert not await kvm.boots(tmp_path / "junk", None, 5, accelerator="tcg")


async def test_no_kvm_or_no_kernel_is_no(images: starter.StarterImages, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    assert not await kvm.probe(None, cache=tmp_path / "cache")
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "none"))
    assert not await kvm.probe(images.kernel, images.ramdisk, cache=tmp_path / "cache")


async def test_the_answer_is_kept_until_something_changes(images: starter.StarterImages, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def boots(kernel: object, ramdisk: object, timeout: float) -> bool:
        asked.append(ramdisk)
        return True

    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(kvm, "boots", boots)
    for _ in range(3):
        assert await kvm.probe(images.kernel, images.ramdisk, cache=tmp_path / "cache")
    assert asked == [images.ramdisk]
    assert await kvm.probe(images.kernel, cache=tmp_path / "cache")
    assert asked == [images.ramdisk, None]
    (tmp_path / "cache").write_text("{ torn")
    assert await kvm.probe(images.kernel, cache=tmp_path / "cache")
    assert len(asked) == 3
