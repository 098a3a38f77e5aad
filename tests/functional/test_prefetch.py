"""nova-manage image prefetch, with compute hosts that have the image soon, late, or not at all."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import prefetch
from nova.image.cache import ImageCache
from nova.image.prefetch import Prefetch, Prefetcher
from nova.rpc import Bus
from tests.functional.image_server import Server

CONTENT = b"an image" * 500_000
SHA = hashlib.sha256(CONTENT).hexdigest()


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


class Rig:
    """One compute host that prefetches."""

    def __init__(self, store: Store, directory: Path):
        self.store, self.server = store, Server(store, CONTENT)
        self.bus = Bus("memory://", "h1")
        self.cache = ImageCache(str(directory / "cache"), store, lambda: self.server.url)
        self.cache.start()
        self.prefetcher = Prefetcher(store, self.bus, self.cache)

    async def get(self) -> Prefetch:
        found = await self.store.get(Prefetch, "h1:ami-1")
        assert found is not None
        return found

    async def state(self, wanted: str) -> Prefetch:
        async def there() -> bool:
            return (await self.get()).state == wanted
        await until(there)
        return await self.get()


@pytest.fixture
async def rig(store: Store, tmp_path: Path) -> AsyncIterator[Rig]:
    FLAGS.host, FLAGS.converge_interval, FLAGS.image_fetch_attempts = "h1", 3600.0, 1
    rig = Rig(store, tmp_path)
    rig.bus.start()
    assert await rig.bus.connected()
    await rig.prefetcher.start()
    yield rig
    await rig.prefetcher.stop()
    await rig.server.stop()
    await rig.bus.stop()


async def test_a_host_fetches_what_it_is_told(rig: Rig) -> None:
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1", "elsewhere"])
    told = await rig.state(prefetch.DONE)
    assert told.done == told.size == len(CONTENT) and not told.reason
    assert Path(rig.cache.path(SHA)).read_bytes() == CONTENT
    other = await rig.store.get(Prefetch, "elsewhere:ami-1")
    assert other is not None and other.state == prefetch.WAITING


async def test_a_host_that_has_it_fetches_nothing(rig: Rig) -> None:
    await rig.cache.fetch("ami-1", SHA)
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1"])
    assert (await rig.state(prefetch.DONE)).done == 0
    assert len(rig.server.fetched) == 1


async def test_a_second_request_begins_anew(rig: Rig) -> None:
    rig.server.code = 404
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1"])
    assert "not in the object store any more" in (await rig.state(prefetch.FAILED)).reason
    rig.server.code = 200
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1"])
    assert (await rig.state(prefetch.DONE)).reason == ""


async def test_an_object_store_in_trouble_is_asked_again_and_the_record_says_so(rig: Rig) -> None:
    rig.server.code = 503
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1"])

    async def told() -> bool:
        return "503" in (await rig.get()).reason
    await until(told)
    assert (await rig.get()).state == prefetch.WAITING
    rig.server.code = 200
    await rig.state(prefetch.DONE)


async def test_how_far_it_is_can_be_seen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_OFTEN", 0.02)
    rig.server.cuts = [1 << 20]
    FLAGS.image_fetch_attempts = 5

    async def half() -> bool:
        return 0 < (await rig.get()).done < (await rig.get()).size
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1"])
    await until(half)
    await rig.state(prefetch.DONE)


async def test_one_that_ended_long_ago_is_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await prefetch.request(rig.store, rig.bus, "ami-1", {"ami-1": SHA}, ["h1"])
    await rig.state(prefetch.DONE)
    await rig.store.modify(Prefetch, "h1:ami-1", lambda _: {"requested": time.time() - 4000})
    await rig.prefetcher._converger.sweep()

    async def gone() -> bool:
        return await rig.store.get(Prefetch, "h1:ami-1") is None
    await until(gone)
    assert os.path.exists(rig.cache.path(SHA))
