"""A compute host's cache of image files, against a server that hands out good and bad ones."""

import asyncio
import hashlib
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nova import exception
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import download
from nova.image.cache import ImageCache
from tests.functional.image_server import Server

CONTENT = random.Random(3).randbytes(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def server(store: Store) -> AsyncIterator[Server]:
    server = Server(store, CONTENT)
    yield server
    await server.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE_FIRST", 0.01)


@pytest.fixture
def cache(store: Store, server: Server, tmp_path: Path) -> ImageCache:
    cache = ImageCache(str(tmp_path / "cache"), store, lambda: server.url)
    cache.start()
    return cache


@pytest.fixture
def files(cache: ImageCache, tmp_path: Path) -> Callable[[], list[str]]:
    return lambda: sorted(os.listdir(tmp_path / "cache"))


async def test_an_image_is_fetched_and_called_after_its_hash(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    assert Path(path).read_bytes() == CONTENT
    assert files() == [SHA]


async def test_a_fetched_file_cannot_be_written_by_accident(cache: ImageCache) -> None:
    assert os.stat(await cache.fetch("ami-1", SHA)).st_mode & 0o222 == 0


async def test_an_image_is_fetched_once_however_many_wait_for_it(cache: ImageCache, server: Server) -> None:
    await asyncio.gather(*(cache.fetch("ami-1", SHA) for _ in range(8)))
    await cache.fetch("ami-1", SHA)
    assert server.fetched == ["ami-1"]


async def test_images_of_the_same_content_share_one_file(cache: ImageCache, server: Server, files: Callable) -> None:
    assert await cache.fetch("ami-1", SHA) == await cache.fetch("ami-2", SHA)
    assert server.fetched == ["ami-1"] and files() == [SHA]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""], ids=["short", "flipped", "empty"])
async def test_a_damaged_image_is_refused_and_leaves_nothing(cache: ImageCache, server: Server, files: Callable,
                                                             content: bytes) -> None:
    server.content = content
    with pytest.raises(exception.ImageUnavailable, match="ami-1 is damaged"):
        await cache.fetch("ami-1", SHA)
    assert files() == []


async def test_an_image_that_is_gone_will_not_come_back(cache: ImageCache, server: Server, files: Callable) -> None:
    server.code = 404
    with pytest.raises(exception.ImageUnavailable, match="not in the object store any more"):
        await cache.fetch("ami-1", SHA)
    assert files() == []


@pytest.mark.parametrize("code", [403, 500, 503])
async def test_an_object_store_in_trouble_is_no_reason_to_give_up(cache: ImageCache, server: Server, files: Callable,
                                                                  code: int) -> None:
    server.code = code
    with pytest.raises(exception.NovaError) as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)
    assert len(server.fetched) == FLAGS.image_fetch_attempts
    server.code = 200
    await cache.fetch("ami-1", SHA)
    assert files() == [SHA]


async def test_a_download_goes_on_where_its_connection_broke(cache: ImageCache, server: Server,
                                                             files: Callable) -> None:
    server.cuts = [100_000, 1 << 20, 1, 1_234_567]
    path = await cache.fetch("ami-1", SHA)
    assert Path(path).read_bytes() == CONTENT and files() == [SHA]
    begins = [int(asked["Range"][6:-1]) for asked in server.asked[1:]]
    assert begins == [100_000, 1_148_576, 1_148_577, 2_383_144]
    assert all(asked["If-Match"] == f'"{SHA}"' for asked in server.asked[1:])
    assert server.sent == len(CONTENT) - begins[-1]


async def test_a_server_that_always_breaks_off_is_no_reason_to_give_up(cache: ImageCache, server: Server,
                                                                       files: Callable) -> None:
    server.cuts = [100_000] + [0] * FLAGS.image_fetch_attempts
    with pytest.raises(exception.NovaError) as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)
    assert files() == [f".part-{SHA}"]
    await cache.fetch("ami-1", SHA)
    assert files() == [SHA] and "Range" in server.asked[-1]


async def test_a_download_goes_on_after_a_restart(cache: ImageCache, server: Server, tmp_path: Path,
                                                  files: Callable) -> None:
    (tmp_path / f"cache/.part-{SHA}").write_bytes(CONTENT[:2_000_001])
    cache.start()
    path = await cache.fetch("ami-1", SHA)
    assert Path(path).read_bytes() == CONTENT and files() == [SHA]
    assert server.asked[0]["Range"] == "bytes=2000001-" and server.sent == len(CONTENT) - 2_000_001


async def test_a_process_that_died_just_before_the_end_fetches_nothing_again(cache: ImageCache, server: Server,
                                                                             tmp_path: Path) -> None:
    (tmp_path / f"cache/.part-{SHA}").write_bytes(CONTENT)
    assert Path(await cache.fetch("ami-1", SHA)).read_bytes() == CONTENT
    assert server.sent == 0


@pytest.mark.parametrize("left", [b"x" * 100_000, CONTENT + b"x", b"x" + CONTENT[1:]], ids=["part", "more", "whole"])
async def test_what_is_left_damaged_is_fetched_from_its_beginning(cache: ImageCache, server: Server, tmp_path: Path,
                                                                  files: Callable, left: bytes) -> None:
    (tmp_path / f"cache/.part-{SHA}").write_bytes(left)
    assert Path(await cache.fetch("ami-1", SHA)).read_bytes() == CONTENT
    assert files() == [SHA] and "Range" not in server.asked[-1]


async def test_a_changed_etag_begins_anew(cache: ImageCache, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"cache/.part-{SHA}").write_bytes(CONTENT[:1000])
    server.etag = '"another"'
    assert Path(await cache.fetch("ami-1", SHA)).read_bytes() == CONTENT
    assert ["Range" in asked for asked in server.asked] == [True, False]


async def test_a_server_without_ranges_begins_anew(cache: ImageCache, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"cache/.part-{SHA}").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert Path(await cache.fetch("ami-1", SHA)).read_bytes() == CONTENT


async def test_another_file_is_not_even_fetched(cache: ImageCache, server: Server, files: Callable) -> None:
    server.etag = f'"{"0" * 64}"'
    server.cuts = [0]  # whoever reads on, sees this
    with pytest.raises(exception.ImageUnavailable, match="ami-1 is damaged"):
        await cache.fetch("ami-1", SHA)
    assert files() == [] and len(server.fetched) == 1


async def test_zeros_take_no_room(cache: ImageCache, server: Server) -> None:
    server.content = b"begin" + bytes(3 << 20) + CONTENT[:5000] + bytes(8 << 20) + b"x" + bytes(5_000_000)
    server.cuts = [1 << 20, 7_777_777, 6 << 20]
    path = await cache.fetch("ami-1", hashlib.sha256(server.content).hexdigest())
    assert Path(path).read_bytes() == server.content
    assert os.stat(path).st_blocks * 512 < 100_000


async def test_an_object_store_that_is_away_is_no_reason_to_give_up(cache: ImageCache, server: Server) -> None:
    await server.stop()
    with pytest.raises(exception.NovaError) as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)


async def test_a_fetch_that_takes_too_long_ends(cache: ImageCache, server: Server, files: Callable) -> None:
    FLAGS.image_fetch_timeout = 1.0
    server.gate.clear()
    with pytest.raises(exception.NovaError, match="cannot fetch ami-1") as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)


async def test_a_cancelled_fetch_ends_at_once_and_can_be_repeated(cache: ImageCache, server: Server,
                                                                  files: Callable) -> None:
    server.gate.clear()
    task = asyncio.ensure_future(cache.fetch("ami-1", SHA))
    await server.began.wait()
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 10 < download._READ_TIMEOUT
    server.gate.set()
    await cache.fetch("ami-1", SHA)
    assert files() == [SHA]


async def test_what_a_dead_process_left_half_fetched_is_removed_at_the_start(cache: ImageCache, tmp_path: Path,
                                                                             files: Callable) -> None:
    (tmp_path / "cache/.part-x").write_bytes(b"x")
    (tmp_path / "cache" / SHA).write_bytes(CONTENT)
    cache.start()
    assert files() == [SHA]


async def test_a_part_that_nobody_wants_is_swept(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    wanted, unwanted = "1" * 64, "2" * 64
    for name in (wanted, unwanted):
        (tmp_path / f"cache/.part-{name}").write_bytes(b"x")
    use(cache, wanted)
    await cache.sweep()
    assert files() == [f".part-{wanted}"]


async def test_a_part_that_is_being_fetched_is_not_swept(cache: ImageCache, server: Server, files: Callable) -> None:
    server.gate.clear()
    task = asyncio.ensure_future(cache.fetch("ami-1", SHA))
    await server.began.wait()
    await cache.sweep()
    assert files() == [f".part-{SHA}"]
    server.gate.set()
    await task


async def test_processes_that_share_a_directory_fetch_once(cache: ImageCache, store: Store, server: Server,
                                                           tmp_path: Path, files: Callable) -> None:
    other = ImageCache(str(tmp_path / "cache"), store, lambda: server.url)
    server.gate.clear()
    tasks = [asyncio.ensure_future(one.fetch("ami-1", SHA)) for one in (cache, other)]
    await server.began.wait()
    other.start()  # it starts while the first fetches
    await other.sweep()
    server.gate.set()
    assert await asyncio.gather(*tasks) == [str(tmp_path / "cache" / SHA)] * 2
    assert server.fetched == ["ami-1"] and files() == [SHA]


def use(cache: ImageCache, *hashes: str) -> None:
    """Have instances use these images."""
    async def used() -> set[str]:
        return set(hashes)
    cache.used = used


def fill(directory: Path, *sizes: int) -> list[str]:
    """Files of the cache of these sizes in KiB, the longest unused first; their names."""
    names = [f"{number:064x}" for number in range(len(sizes))]
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        (directory / name).write_bytes(b"x" * (size << 10))
        os.utime(directory / name, (time.time() - 3600 + number,) * 2)
    return names


async def test_the_longest_unused_goes_where_there_are_too_many(cache: ImageCache, tmp_path: Path,
                                                                files: Callable) -> None:
    FLAGS.image_cache_gb = 2.5 / 1024
    names = fill(tmp_path / "cache", 1024, 1024, 1024)
    await cache.sweep()
    assert files() == names[1:]


async def test_a_new_image_has_older_ones_go(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    FLAGS.image_cache_gb = 4.5 / 1024
    names = fill(tmp_path / "cache", 1024, 1024, 1024)
    await cache.fetch("ami-1", SHA)
    assert files() == sorted([names[2], SHA])


async def test_one_that_is_used_stays_over_the_limit(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    FLAGS.image_cache_gb = 0.5 / 1024
    names = fill(tmp_path / "cache", 1024, 1024, 1024)
    use(cache, names[0], SHA)
    await cache.fetch("ami-1", SHA)
    assert files() == sorted([names[0], SHA])


async def test_holes_do_not_count(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    FLAGS.image_cache_gb = 1.0
    names = fill(tmp_path / "cache", 1024, 1024)
    os.truncate(tmp_path / "cache" / names[0], 100 << 30)
    await cache.sweep()
    assert files() == names


async def test_no_limit_keeps_all(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    FLAGS.image_cache_gb = 0
    names = fill(tmp_path / "cache", 1024, 1024)
    await cache.sweep()
    assert files() == names


async def test_one_that_is_used_just_now_is_not_removed(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    """An instance that is recorded after the used ones were asked for finds its image, or fetches it."""
    FLAGS.image_cache_gb = 0.5 / 1024
    [name] = fill(tmp_path / "cache", 1024)

    async def used() -> set[str]:
        await cache.fetch("ami-1", name)
        return set()
    cache.used = used
    await cache.sweep()
    assert files() == [name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


async def test_a_full_disk_gets_room_from_what_nobody_uses(store: Store, server: Server, small_disk: Path) -> None:
    cache = ImageCache(str(small_disk), store, lambda: server.url)
    cache.start()
    names = fill(small_disk, 3 << 10, 3 << 10)
    use(cache, names[0])
    assert Path(await cache.fetch("ami-1", SHA)).read_bytes() == CONTENT
    assert sorted(os.listdir(small_disk)) == sorted([names[0], SHA])


async def test_a_disk_full_of_what_is_used_is_a_clear_failure(store: Store, server: Server, small_disk: Path) -> None:
    cache = ImageCache(str(small_disk), store, lambda: server.url)
    cache.start()
    names = fill(small_disk, 3 << 10, 3 << 10)
    use(cache, *names)
    with pytest.raises(exception.NoRoom, match="no room for ami-1 on the disk of the host"):
        await cache.fetch("ami-1", SHA)
    assert sorted(os.listdir(small_disk)) == names


async def test_progress_is_told(cache: ImageCache) -> None:
    told: list[tuple[int, int]] = []
    await cache.fetch("ami-1", SHA, lambda done, size: told.append((done, size)))
    assert told == [(n << 20, 3 << 20) for n in (0, 1, 2, 3, 3)] or told == [(n << 20, 3 << 20) for n in (0, 1, 2, 3)]


async def test_a_file_that_nobody_used_for_long_is_swept(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    os.utime(path, (time.time() - FLAGS.image_cache_age - 60,) * 2)
    await cache.sweep()
    assert files() == []


async def test_a_file_that_an_instance_uses_is_kept(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    os.utime(path, (0, 0))
    use(cache, SHA)
    await cache.sweep()
    assert files() == [SHA]


async def test_a_file_that_was_used_lately_is_kept(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    os.utime(path, (0, 0))
    await cache.fetch("ami-2", SHA)
    await cache.sweep()
    assert files() == [SHA]


async def test_a_sweep_touches_nothing_else(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    (tmp_path / "cache/README").write_bytes(b"x")
    os.utime(tmp_path / "cache/README", (0, 0))
    await cache.sweep()
    assert files() == ["README"]
