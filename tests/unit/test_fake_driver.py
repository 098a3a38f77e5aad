"""The fake driver's own promises; what it shares with libvirt is in tests/functional/test_compute_drivers.py."""

import asyncio
from pathlib import Path

import pytest

from nova.compute.virt import base
from nova.compute.virt.base import DomainState
from nova.compute.virt.fake import FakeDriver


def guest(directory: Path, number: int = 1) -> base.Guest:
    instance_id = f"i-{number:08x}"
    return base.Guest(instance_id=instance_id, uuid=f"ec2{number:05x}-0000-4000-8000-000000000001", memory_mb=512,
                      vcpus=1, mac=f"02:16:3e:00:00:{number:02x}", bridge="br100",
                      disk_path=str(directory / f"{instance_id}.disk"),
                      console_path=str(directory / f"{instance_id}.console"),
                      kernel_path=None, ramdisk_path=None, kernel_args="", hostname="ip-10-0-0-3")


@pytest.fixture
async def driver(tmp_path: Path) -> FakeDriver:
    (tmp_path / "base").write_bytes(b"image")
    driver = FakeDriver(tmp_path / "guests")
    await driver.start()
    return driver


async def test_its_guests_outlive_it(driver: FakeDriver, tmp_path: Path) -> None:
    one = guest(tmp_path)
    await driver.create_disk(one.disk_path, str(tmp_path / "base"), 1 << 40)
    await driver.spawn(one)
    again = FakeDriver(tmp_path / "guests")
    await again.start()
    assert await again.list_guests() == {one.instance_id: DomainState.RUNNING}
    again.power_off(one.instance_id)
    assert await driver.list_guests() == {one.instance_id: DomainState.SHUTOFF}


async def test_the_console_tells_of_the_guest(driver: FakeDriver, tmp_path: Path) -> None:
    one = guest(tmp_path)
    await driver.create_disk(one.disk_path, str(tmp_path / "base"), 0)
    await driver.spawn(one)
    said = (await driver.console_output(one.console_path, 4096)).decode()
    assert one.mac in said and one.instance_id in said and "NOVA ready" in said


async def test_many_at_once(driver: FakeDriver, tmp_path: Path) -> None:
    async def run(number: int) -> None:
        one = guest(tmp_path, number)
        await driver.create_disk(one.disk_path, str(tmp_path / "base"), 0)
        await driver.spawn(one)

    await asyncio.gather(*(run(number) for number in range(100)))
    assert len(await driver.list_guests()) == 100
    await driver.purge()
    assert await driver.list_guests() == {}
    assert list((tmp_path / "guests").iterdir()) == []


async def test_an_absent_guest_cannot_power_off(driver: FakeDriver) -> None:
    with pytest.raises(base.GuestNotFound):
        driver.power_off("i-00000001")
