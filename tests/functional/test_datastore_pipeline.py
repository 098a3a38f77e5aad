"""The connection to Redis that all requests share: whose answer is whose, when Redis or who asks goes away."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from nova import exception
from nova.datastore import Record, Store, open_store, record
from tests.conftest import RedisServer, free_port

#: seconds within which an outage of Redis must be told
TOLD = 2.0


@record("mark", listed=False)
@dataclass(frozen=True)
class Mark(Record):
    text: str = ""


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server that may be stopped."""
    server = RedisServer(tmp_path, free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(name="marks")
async def marks_fixture(server: RedisServer) -> AsyncIterator[Store]:
    """A store with 100 records."""
    store = open_store(server.url)
    tx = store.transaction()
    for n in range(100):
        tx.create(Mark(str(n), text=f"text {n}"))
    await tx.commit()
    yield store
    await store.close()


@pytest.fixture(name="aside")
def aside_fixture(server: RedisServer) -> Iterator[redis.Redis]:
    """A connection of the test's own."""
    client = redis.Redis.from_url(server.url)
    yield client
    client.close()


async def ask_all(store: Store) -> list["asyncio.Task[Mark | None]"]:
    """Ask for all records at the same time; the questions are on their way."""
    tasks = [asyncio.ensure_future(store.get(Mark, str(n))) for n in range(100)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def check_all(store: Store) -> None:
    """Everybody gets their own answer."""
    found = await asyncio.gather(*await ask_all(store))
    assert [mark.text for mark in found if mark] == [f"text {n}" for n in range(100)]


async def add(store: Store) -> None:
    """Raise the counter by one."""
    tx = store.transaction()
    tx.add("count", "n", 1)
    await tx.commit()


def connections(aside: redis.Redis) -> int:
    """How many connections there are beside the test's own."""
    return len(aside.client_list()) - 1


async def test_all_share_one_connection(marks: Store, aside: redis.Redis) -> None:
    before = aside.info("stats")["total_reads_processed"]
    await check_all(marks)
    assert connections(aside) == 1
    assert aside.info("stats")["total_reads_processed"] - before < 10  # the questions came together


async def test_who_goes_away_takes_nobody_elses_answer(marks: Store) -> None:
    tasks = await ask_all(marks)
    for task in tasks[::3]:
        task.cancel()
    unsent = asyncio.ensure_future(marks.get(Mark, "1"))
    await asyncio.sleep(0)
    unsent.cancel()
    found = await asyncio.gather(*tasks, unsent, return_exceptions=True)
    for n, mark in enumerate(found):
        assert mark.text == f"text {n}" if n % 3 and n < 100 else isinstance(mark, asyncio.CancelledError)
    await check_all(marks)


async def test_redis_that_hangs_is_told_to_everybody_in_time(marks: Store, server: RedisServer,
                                                             aside: redis.Redis) -> None:
    assert server.process
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        tasks = await ask_all(marks)
        adding = asyncio.ensure_future(add(marks))
        await asyncio.sleep(0.5)
        later = await ask_all(marks)  # they have their own time
        found = await asyncio.gather(*tasks, adding, return_exceptions=True)
        assert {type(error) for error in found} == {exception.DatastoreUnavailable}
        assert 1 < time.monotonic() - began < TOLD and not any(task.done() for task in later)
        found = await asyncio.gather(*later, return_exceptions=True)
        assert {type(error) for error in found} == {exception.DatastoreUnavailable}
        assert time.monotonic() - began < 0.5 + TOLD
        new = await asyncio.gather(*await ask_all(marks), return_exceptions=True)  # over a new connection
        assert {type(error) for error in new} == {exception.DatastoreUnavailable}
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await check_all(marks)
    assert aside.hget("nova:count", "n") in (None, b"1")  # it may have been done, not twice
    assert connections(aside) == 1  # those that were given up are closed


async def test_who_asked_before_redis_hung_for_a_moment_gets_the_answer(marks: Store, server: RedisServer) -> None:
    assert server.process
    os.kill(server.process.pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(0.6, os.kill, server.process.pid, signal.SIGCONT)
    await check_all(marks)


async def test_a_loop_that_was_busy_takes_the_answer_all_the_same(marks: Store) -> None:
    tasks = await ask_all(marks)
    time.sleep(1.7)  # noqa: ASYNC251 (that is the point)
    assert all(mark is not None for mark in await asyncio.gather(*tasks))


async def test_a_change_whose_answer_is_lost_is_not_made_again(marks: Store, aside: redis.Redis) -> None:
    await add(marks)
    aside.client_pause(60000, all=False)  # nobody may write
    adding = asyncio.ensure_future(add(marks))
    await asyncio.sleep(0.2)
    assert not adding.done()
    aside.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(exception.DatastoreUnavailable):
        await adding
    aside.client_unpause()
    await check_all(marks)
    assert aside.hget("nova:count", "n") == b"1"


async def test_reading_goes_on_over_a_new_connection(marks: Store, aside: redis.Redis) -> None:
    await check_all(marks)
    aside.client_kill_filter(_type="normal", skipme=True)
    await check_all(marks)  # the loop has not heard of it yet
    aside.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.1)
    await add(marks)  # it has
    assert aside.hget("nova:count", "n") == b"1" and connections(aside) == 1


async def test_a_redis_that_knows_no_script(marks: Store, aside: redis.Redis) -> None:
    aside.script_flush()
    await asyncio.gather(*(add(marks) for _ in range(10)))
    assert aside.hget("nova:count", "n") == b"10"


async def test_an_error_is_only_for_who_asked(marks: Store, aside: redis.Redis) -> None:
    aside.set("nova:mark:7", "no hash")
    found = await asyncio.gather(*await ask_all(marks), return_exceptions=True)
    assert [n for n, mark in enumerate(found) if not isinstance(mark, Mark)] == [7]
    assert isinstance(found[7], redis.exceptions.ResponseError)


async def test_a_replica_is_no_place_to_write(marks: Store, aside: redis.Redis, server: RedisServer) -> None:
    aside.execute_command("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(exception.DatastoreUnavailable):
        await add(marks)
    aside.execute_command("REPLICAOF", "NO", "ONE")
    await add(marks)


@pytest.mark.parametrize("query", ["", "?protocol=2", "?protocol=3"])
async def test_users_and_protocols(marks: Store, aside: redis.Redis, server: RedisServer, query: str) -> None:
    aside.acl_setuser("somebody", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"])
    store = open_store(server.url.replace("redis://", "redis://somebody:secret@") + query)
    await check_all(store)
    await store.close()
    store = open_store(server.url.replace("redis://", "redis://somebody:wrong@") + query)
    with pytest.raises(exception.DatastoreUnavailable):
        await store.get(Mark, "1")
    await store.close()


async def test_a_store_that_is_closed_leaves_nobody_waiting(server: RedisServer, marks: Store) -> None:
    store = open_store(server.url)
    await check_all(store)
    assert server.process
    os.kill(server.process.pid, signal.SIGSTOP)
    tasks = await ask_all(store)
    await store.close()
    os.kill(server.process.pid, signal.SIGCONT)
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
    assert {type(error) for error in found} == {exception.DatastoreUnavailable}
