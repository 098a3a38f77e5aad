"""Files that are put on the disk together: all are there, and what happens to one is no matter of the others."""

import asyncio
import errno
import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nova.objectstore import storage, writing
from nova.objectstore.files import Files
from nova.objectstore.models import Object, object_id


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> Iterator[Files]:
    files = Files(str(tmp_path))
    yield files
    files.close()


def an_object(files: Files, key: str) -> Object:
    id = object_id("b", key)
    return Object(id, bucket="b", key=key, project_id="p", file=files.name(f"o-{id}"), size=5, md5="m", sha256="s",
                  etag="m", modified=1.5)


def data_of(record: Object) -> bytes:
    return f"data of {record.key}".encode()


async def put(files: Files, records: list[Object]) -> list[BaseException | None]:
    """Put them at the same time; what went wrong with each."""
    return await asyncio.gather(*(files.put_soon(r, data_of(r)) for r in records), return_exceptions=True)


def check_there(files: Files, records: list[Object]) -> None:
    """These are there, and nothing else."""
    assert sorted(files.names(-1)) == sorted(record.file for record in records)
    for record in records:
        assert b"".join(files.read(record.file)) == data_of(record) and files.description(record.file) == record


async def test_files_that_come_together_are_all_there(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    real = writing.put_all

    def counted(root: str, wanted: Any) -> Any:
        batches.append(len(wanted))
        return real(root, wanted)
    monkeypatch.setattr(writing, "put_all", counted)
    monkeypatch.setattr(writing, "_SLOW", 60)
    records = [an_object(files, str(n)) for n in range(100)]
    assert await put(files, records) == [None] * 100
    check_there(files, records)
    assert sum(batches) == 100 and len(batches) < 20 and max(batches) <= 32


async def test_on_a_slow_disk_files_wait_side_by_side(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    real, lock = writing.put_all, threading.Lock()

    def slow(root: str, wanted: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 * len(wanted))
        with lock:
            running -= 1
        return real(root, wanted)
    monkeypatch.setattr(writing, "put_all", slow)
    records = [an_object(files, str(n)) for n in range(7)]
    assert await put(files, records[:1]) == [None] and most == 1
    assert await put(files, records[1:]) == [None] * 6 and most == 4
    check_there(files, records)


async def test_threads_that_end_leave_nobody_waiting(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(writing, "put_all", lambda root, wanted: go_on.wait(10) and [None] * len(wanted))
    tasks = [asyncio.ensure_future(files.put_soon(an_object(files, str(n)), b"")) for n in range(70)]
    while len(files.pool._executor._threads) < 3:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    files.close()
    go_on.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_directory_is_synced_once_and_after_all_of_its_files(files: Files,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    same = an_object(files, "k")
    records = [same, *(an_object(files, "k") for _ in range(3)), an_object(files, "other")]
    await put(files, records[:1])
    for record in records[1:]:
        os.makedirs(os.path.dirname(files.path(record.file)), exist_ok=True)
    done: list[tuple[str, int]] = []

    def noted(name: str, real: Any, *arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        done.append((name, os.fstat(named.get("dst_dir_fd", arguments[0])).st_ino))
    for name in ("fsync", "link"):
        monkeypatch.setattr(os, name, functools.partial(noted, name, getattr(os, name)))
    assert writing.put_all(files.root, [(record, data_of(record)) for record in records[1:]]) == [None] * 4
    monkeypatch.undo()
    check_there(files, records)
    directories = {os.stat(os.path.dirname(files.path(record.file))).st_ino for record in records}
    assert [name for name, _ in done] == ["fsync"] * 4 + ["link"] * 4 + ["fsync"] * 2
    assert {inode for _, inode in done[8:]} == directories


@pytest.mark.parametrize("step", ["__init__", "write", "settle", "link", "sync_directory"])
async def test_the_failure_of_one_is_its_own(files: Files, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    records = [an_object(files, str(n)) for n in range(8)]
    unlucky = records[3]
    real = getattr(writing.Writer, step)

    def failing(self: writing.Writer, *arguments: Any) -> Any:
        if os.path.basename(unlucky.file) in (getattr(self, "_target", ""), *arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *arguments)
    monkeypatch.setattr(writing.Writer, step, failing)
    open_before = len(os.listdir("/proc/self/fd"))
    found = await put(files, records)
    assert [n for n, error in enumerate(found) if error] == [3] and found[3].errno == errno.ENOSPC  # type: ignore
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1  # a pool's thread may have one yet
    kept = [record for record in records if record is not unlucky]
    check_there(files, records if step == "sync_directory" else kept)  # the sweep finds what has its name


async def test_a_directory_that_cannot_be_synced_fails_all_in_it(files: Files,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*(an_object(files, "k") for _ in range(3)), an_object(files, "other")]
    real = writing.Writer.sync_directory

    def failing(self: writing.Writer) -> None:
        if self.name.startswith(os.path.dirname(records[0].file)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self)
    monkeypatch.setattr(writing.Writer, "sync_directory", failing)
    found = await put(files, records)
    assert [type(error) for error in found] == [OSError, OSError, OSError, type(None)]


async def test_who_goes_away_keeps_nobody_from_it(files: Files) -> None:
    records = [an_object(files, str(n)) for n in range(20)]
    tasks = [asyncio.ensure_future(files.put_soon(r, data_of(r))) for r in records]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert Counter(type(error) for error in found) == {asyncio.CancelledError: 10, type(None): 10}
    check_there(files, records)  # as files of requests that die; the sweep removes them


async def test_descriptions_that_do_not_fit_are_beside_their_files(files: Files,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.description, "attach", lambda fd, data: False)
    records = [an_object(files, str(n)) for n in range(5)]
    assert await put(files, records) == [None] * 5
    check_there(files, records)


async def test_needless_files_go_soon_and_never_pile_up(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_NEEDLESS", 10)
    records = [an_object(files, str(n)) for n in range(60)]
    await put(files, records)
    for n, record in enumerate(records):
        await files.remove_soon(record.file)
        assert len(list(files.names(-1))) <= 60 - n + 10
    async with asyncio.timeout(10):
        while list(files.names(-1)):
            await asyncio.sleep(0.01)
