"""The redis-server that a cloud on one machine brings along: there is one, and only one, as long as the cloud runs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nova import datastore, embedded, exception
from nova.embedded import RedisServer
from nova.flags import FLAGS


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


class Rig:
    """A server below a state path, and what can be seen of it from outside."""

    def __init__(self) -> None:
        self.server = RedisServer()
        self.store = datastore.open_store(self.server.url)

    async def pid(self) -> int:
        return (await self.store.attempt(self.store.redis.info("server")))["process_id"]

    def pids(self) -> list[int]:
        """Every redis-server that works in this state path."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{name}/comm").read_text()
                if command.startswith("redis-server") and os.readlink(f"/proc/{name}/cwd") == os.path.dirname(
                        self.server.socket) and Path(f"/proc/{name}/stat").read_text().split()[2] != "Z":
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    async def answers(self) -> bool:
        try:
            await self.store.ping()
        except exception.DatastoreUnavailable:
            return False
        return True


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    FLAGS.state_path = str(short_path)
    rig = Rig()
    await rig.server.start()
    yield rig
    for pid in rig.pids():
        os.kill(pid, signal.SIGCONT)
    await rig.server.stop()
    await rig.store.close()
    assert rig.pids() == []


async def test_it_serves_on_a_socket_that_only_its_owner_can_use(rig: Rig) -> None:
    await rig.store.ping()
    assert os.stat(rig.server.socket).st_mode & 0o077 == 0
    assert os.stat(os.path.dirname(rig.server.socket)).st_mode & 0o077 == 0


async def test_what_it_holds_outlives_a_stop(rig: Rig) -> None:
    await rig.store.redis.set("a", "b")
    await rig.server.stop()
    await rig.server.start()
    assert await rig.store.redis.get("a") == b"b"


async def test_what_it_answered_outlives_a_kill_and_it_is_started_again(rig: Rig) -> None:
    await rig.store.redis.set("a", "b")
    os.kill(await rig.pid(), signal.SIGKILL)
    await until(rig.answers)
    assert await rig.store.redis.get("a") == b"b"


async def test_one_that_an_earlier_process_left_is_adopted(rig: Rig) -> None:
    pid = await rig.pid()
    later = RedisServer()
    await later.start()
    assert later._watch is not None
    later._watch.cancel()
    assert rig.pids() == [pid]


async def test_one_that_is_slow_is_not_joined_by_a_second_on_the_same_files(rig: Rig) -> None:
    pid = await rig.pid()
    os.kill(pid, signal.SIGSTOP)
    assert not await rig.answers()  # 1.5 s, in which the watch has asked too
    assert not await rig.answers()
    assert not await rig.answers()
    assert rig.pids() == [pid]
    os.kill(pid, signal.SIGCONT)
    await until(rig.answers)
    assert await rig.pid() == pid


async def test_one_that_is_slow_at_the_start_is_waited_for(rig: Rig) -> None:
    pid = await rig.pid()
    os.kill(pid, signal.SIGSTOP)
    later = RedisServer()
    start = asyncio.ensure_future(later.start())
    assert not await rig.answers()
    assert rig.pids() == [pid] and not start.done()
    os.kill(pid, signal.SIGCONT)
    await start
    assert later._watch is not None
    later._watch.cancel()
    assert rig.pids() == [pid]


async def test_a_stop_where_none_runs_is_no_error(short_path: Path) -> None:
    FLAGS.state_path = str(short_path)
    await RedisServer().stop()


async def test_a_state_path_too_long_for_a_socket_is_told_before_anything_starts(tmp_path: Path) -> None:
    FLAGS.state_path = "/tmp/" + "x" * 100
    with pytest.raises(exception.NovaError, match="too long for the path of a unix socket"):
        RedisServer()


async def test_files_that_make_no_start_possible_are_told(short_path: Path) -> None:
    FLAGS.state_path = str(short_path)
    (short_path / "redis/appendonlydir").mkdir(parents=True)
    (short_path / "redis/appendonlydir/appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(exception.NovaError, match="redis.log"):
        await RedisServer().start()


def test_files_links_and_directories_are_removed_but_not_what_a_link_names(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "directory/deep").mkdir(parents=True)
    embedded.remove_files([str(tmp_path / name) for name in ("link", "dangling", "directory", "missing")])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and (kept / "file").exists()
