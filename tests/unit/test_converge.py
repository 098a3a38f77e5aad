"""The converger: when it looks at what, and what it does about failures."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from nova import converge, exception
from nova.context import request_id_var
from nova.converge import Converger
from nova.flags import FLAGS


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class World:
    """Things, and a converger whose work a test lets begin and end."""

    def __init__(self, keys: set[str] | None = None) -> None:
        self.keys = keys or set()
        self.began: list[str] = []
        self.ended: list[str] = []
        self.request_ids: list[str] = []
        self.errors: list[Exception] = []
        self.running: list[str] = []
        self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.converger = Converger("thing", self._list, self._converge)

    async def _list(self) -> set[str]:
        return self.keys

    async def _converge(self, key: str) -> None:
        self.began.append(key)
        self.request_ids.append(request_id_var.get())
        self.running.append(key)
        self.most_running = max(self.most_running, len(self.running))
        try:
            await self.gate.wait()
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.running.remove(key)
        self.ended.append(key)


@pytest.fixture
async def worlds() -> AsyncIterator[Callable[..., World]]:
    """Makes started worlds, and stops them."""
    made: list[World] = []
    FLAGS.converge_interval = 3600.0

    def make(keys: set[str] | None = None) -> World:
        made.append(World(keys))
        made[-1].converger.start()
        return made[-1]
    yield make
    for world in made:
        world.gate.set()
        await world.converger.stop()


async def test_everything_is_looked_at_when_it_starts(worlds: Callable[..., World]) -> None:
    world = worlds({"a", "b"})
    await until(lambda: sorted(world.ended) == ["a", "b"])


async def test_everything_is_looked_at_every_interval(worlds: Callable[..., World]) -> None:
    FLAGS.converge_interval = 0.1
    world = World({"a"})
    world.converger.start()
    await until(lambda: len(world.ended) > 3)
    await world.converger.stop()


async def test_a_wake_looks_at_one_key(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.converger.wake("a")
    await world.converger.settled("a")
    assert world.ended == ["a"]


async def test_a_key_is_never_worked_on_twice_at_the_same_time(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.gate.clear()
    for _ in range(5):
        world.converger.wake("a")
    await until(lambda: world.running)
    world.converger.wake("a")
    world.gate.set()
    await world.converger.settled("a")
    assert world.most_running == 1


async def test_wakes_while_a_key_is_worked_on_have_it_looked_at_once_more(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.gate.clear()
    world.converger.wake("a")
    await until(lambda: world.running)
    for _ in range(3):
        world.converger.wake("a")
    world.gate.set()
    await world.converger.settled("a")
    assert world.ended == ["a", "a"]


async def test_different_keys_are_worked_on_at_the_same_time_up_to_a_limit(worlds: Callable[..., World]) -> None:
    FLAGS.converge_concurrency = 3
    world = worlds()
    world.gate.clear()
    for key in "abcdefgh":
        world.converger.wake(key)
    await until(lambda: len(world.running) == 3)
    world.gate.set()
    await until(lambda: len(world.ended) == 8)
    assert world.most_running == 3


@pytest.mark.parametrize("error", [exception.Timeout("slow"), KeyError("bug")], ids=["expected", "bug"])
async def test_a_failure_is_tried_again(worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch,
                                        error: Exception) -> None:
    monkeypatch.setattr(converge, "RETRY_FIRST", 0.01)
    world = worlds()
    world.errors = [error, error]
    world.converger.wake("a")
    await until(lambda: world.ended == ["a"])
    assert world.began == ["a", "a", "a"]


async def test_the_pauses_between_failures_grow_to_a_limit(worlds: Callable[..., World],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    world = worlds()
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def call_later(delay: float, function: Callable[[], None], *rest: object, **more: object) -> asyncio.TimerHandle:
        if getattr(function, "__name__", "") == "retry":
            pauses.append(delay)
            delay = 0
        return real(delay, function, *rest, **more)  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "call_later", call_later)
    world.errors = [exception.Timeout("slow")] * 1100  # longer than a float's range of powers of two
    world.converger.wake("a")
    await until(lambda: world.ended == ["a"])
    assert pauses[:7] == [0.5, 1, 2, 4, 8, 15, 15]
    assert len(pauses) == 1100 and set(pauses[7:]) == {15}


async def test_a_success_forgets_the_failures(worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converge, "RETRY_FIRST", 0.01)
    world = worlds()
    world.errors = [exception.Timeout("slow")] * 3
    world.converger.wake("a")
    await until(lambda: world.ended == ["a"])
    assert world.converger._failures == {}


async def test_a_sweep_leaves_a_key_to_its_pause_and_a_wake_does_not(worlds: Callable[..., World]) -> None:
    world = worlds({"a"})
    world.errors = [exception.Timeout("slow")]
    await until(lambda: world.began and not world.running)
    await world.converger.sweep()
    await world.converger.settled("a")
    assert world.began == ["a"]
    world.converger.wake("a")
    await world.converger.settled("a")
    assert world.ended == ["a"]


async def test_one_failing_key_does_not_hold_up_the_others(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.errors = [RuntimeError("bug")]
    for key in "ab":
        world.converger.wake(key)
    await until(lambda: world.ended == ["b"])


async def test_it_goes_on_when_the_keys_cannot_be_listed(caplog: pytest.LogCaptureFixture) -> None:
    FLAGS.converge_interval = 0.1
    world = World({"a"})
    errors: list[Exception] = [exception.DatastoreUnavailable(), ValueError("bug")]

    async def keys() -> set[str]:
        if errors:
            raise errors.pop(0)
        return {"a"}
    converger = Converger("thing", keys, world._converge)
    converger.start()
    await until(lambda: world.ended)
    await converger.stop()
    assert "cannot list the things" in caplog.text


async def test_nothing_is_done_before_the_start() -> None:
    """A message must not have a host sweep before it has seen that it belongs to this cloud."""
    world = World({"a"})
    world.converger.wake("a")
    await world.converger.settled("a")
    assert world.began == []


async def test_a_stop_lets_what_runs_end_and_takes_on_no_more(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.gate.clear()
    world.converger.wake("a")
    await until(lambda: world.running)
    stop = asyncio.ensure_future(world.converger.stop())
    await asyncio.sleep(0)
    world.converger.wake("a")
    world.converger.wake("b")
    world.gate.set()
    await stop
    assert world.ended == ["a"] and world.began == ["a"]


async def test_a_stop_cancels_what_does_not_end(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.gate.clear()
    world.converger.wake("a")
    await until(lambda: world.running)
    await world.converger.stop(timeout=0.01)
    assert world.running == [] and world.ended == []


async def test_a_stop_ends_the_retries_and_the_next_start_looks_again(worlds: Callable[..., World]) -> None:
    world = worlds({"a"})
    world.errors = [exception.Timeout("slow")]
    await until(lambda: world.began and not world.running)
    await world.converger.stop()
    world.converger.start()
    await until(lambda: world.ended == ["a"])


async def test_work_carries_the_request_id_of_who_woke_it(worlds: Callable[..., World]) -> None:
    world = worlds()
    token = request_id_var.set("the-request")
    world.converger.wake("a")
    request_id_var.reset(token)
    await world.converger.settled("a")
    assert world.request_ids == ["the-request"]


async def test_work_that_nobody_asked_for_gets_a_request_id_of_its_own(worlds: Callable[..., World]) -> None:
    world = worlds({"a", "b"})
    await until(lambda: len(world.ended) == 2)
    assert "-" not in world.request_ids and len(set(world.request_ids)) == 2


async def test_an_expected_failure_is_one_line_and_a_bug_has_a_traceback(
        worlds: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = worlds()
    for error in (exception.Timeout("slow"), KeyError("bug")):
        world.errors = [error]
        world.converger.wake("a")
        await world.converger.settled("a")
    first, second = [r for r in caplog.records if r.name == "nova.converge"]
    assert first.getMessage() == "thing a: slow" and first.exc_info is None
    assert second.exc_info is not None
