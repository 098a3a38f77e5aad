"""External commands and threads."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from nova import exception, process
from nova.process import in_thread, wait


async def gone(pid: int) -> bool:
    """Whether a process ends within 5 seconds (a zombie has ended)."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        await asyncio.sleep(0.01)
    return False


async def read_pid(path: Path) -> int:
    async with asyncio.timeout(5):
        while not path.exists() or not path.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    return int(path.read_text())


async def test_a_command_comes_back_as_a_deferred_with_what_it_said() -> None:
    deferred = process.run("sh", "-c", "echo out; echo err >&2")
    assert isinstance(deferred, Deferred)
    assert await wait(deferred) == process.Result(0, b"out\n", b"err\n")


async def test_arguments_reach_the_command_as_they_are() -> None:
    result = await wait(process.run("printf", "%s|", "a b", "$HOME", "; rm *", "'\"", ""))
    assert result.out == b"a b|$HOME|; rm *|'\"||"


async def test_input_reaches_the_command() -> None:
    data = os.urandom(1 << 20)
    assert (await wait(process.run("cat", input=data))).out == data


async def test_a_command_without_input_reads_nothing() -> None:
    assert (await wait(process.run("cat"))).out == b""


async def test_a_command_that_does_not_read_its_input_is_no_error() -> None:
    assert (await wait(process.run("true", input=b"x" * (1 << 20)))).code == 0


async def test_a_failure_tells_command_exit_code_and_what_it_said() -> None:
    with pytest.raises(exception.ProcessError) as error:
        await wait(process.run("sh", "-c", "echo this is why >&2; exit 3"))
    assert "exit code 3: this is why" in error.value.message


async def test_a_failure_is_a_result_where_it_is_not_checked() -> None:
    assert (await wait(process.run("sh", "-c", "exit 3", check=False))).code == 3
    assert (await wait(process.run("sh", "-c", "kill -9 $$", check=False))).code == -9


async def test_a_command_that_is_missing_is_an_error() -> None:
    with pytest.raises(exception.ProcessError, match="no-such-command: No such file"):
        await wait(process.run("no-such-command"))


async def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(exception.Timeout, match="no end within 0.3 s"):
        await wait(process.run("sh", "-c", f"sleep 100 & echo $! > {tmp_path}/pid; wait", timeout=0.3))
    assert time.monotonic() - began < 5
    assert await gone(await read_pid(tmp_path / "pid"))


async def test_a_command_that_nobody_awaits_any_more_is_killed(tmp_path: Path) -> None:
    task = asyncio.ensure_future(wait(process.run("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 100")))
    pid = await read_pid(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(pid)


async def test_a_command_gets_the_environment_it_is_given() -> None:
    assert (await wait(process.run("/usr/bin/env", env={"A": "b"}))).out == b"A=b\n"


async def test_a_thread_works_while_the_loop_goes_on() -> None:
    go_on = threading.Event()
    deferred = in_thread(lambda value: go_on.wait(5) and value, "done")
    assert isinstance(deferred, Deferred)
    await asyncio.sleep(0)
    go_on.set()
    assert await wait(deferred) == "done"


async def test_an_error_in_a_thread_comes_back() -> None:
    with pytest.raises(KeyError):
        await wait(in_thread({}.__getitem__, "missing"))


async def test_a_pool_has_no_more_threads_than_it_says() -> None:
    pool = process.Pool(2)
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Event()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                both.set()
        both.wait(5)
        with lock:
            running -= 1
    await asyncio.gather(*(wait(pool.run(work)) for _ in range(8)))
    pool.close()
    assert most == 2


async def test_a_closed_pool_drops_what_is_queued() -> None:
    pool, go_on, began = process.Pool(1), threading.Event(), threading.Event()

    def first() -> str:
        began.set()
        go_on.wait(5)
        return "done"
    running = asyncio.ensure_future(wait(pool.run(first)))
    await asyncio.to_thread(began.wait, 5)
    queued = asyncio.ensure_future(wait(pool.run(lambda: "never")))
    await asyncio.sleep(0)
    pool.close()
    go_on.set()
    assert await running == "done"
    with pytest.raises(asyncio.CancelledError):
        await queued
