"""What access keys stand for, remembered for a few seconds, and forgotten at once when somebody changes it.

Each process remembers for itself, so that a request costs no round trip.  Whoever changes users, projects or roles
tells all processes through a Redis channel.  A notice that gets lost costs no more than the time for which things are
remembered, and a process that was cut off from the channel forgets everything when it is back.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import redis.exceptions

from nova import exception
from nova.datastore import PREFIX, Store

LOG = logging.getLogger(__name__)

CHANNEL = PREFIX + "auth:changed"
#: identities that a process remembers at most
MAXIMUM = 20000
Key = tuple[str, str | None]


@dataclass(frozen=True)
class Identity:
    """Whom an access key stands for, in which project."""

    user_id: str
    project_id: str
    secret: str
    roles: frozenset[str]
    is_admin: bool


class Memo:
    """Remembers identities.

    :param seconds: tells for how long
    :param clock: tells the time in seconds, never backwards
    """

    def __init__(self, store: Store, seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic):
        self._store, self._seconds, self._clock = store, seconds, clock
        self._known: dict[Key, tuple[float, Identity]] = {}
        self._asked: dict[Key, asyncio.Task[Identity]] = {}
        self._changes = 0
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen for changes; without it nothing is remembered."""
        if self._listener is None:
            listening = asyncio.Event()
            self._listener = asyncio.ensure_future(self._listen(listening))
            waiting = asyncio.ensure_future(listening.wait())
            await asyncio.wait([waiting], timeout=2)  # where Redis is away, it is tried again in the background
            waiting.cancel()

    async def stop(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
            self._listener = None
        self.forget()

    def known(self, key: Key) -> Identity | None:
        """What is remembered."""
        entry = self._known.get(key)
        return entry[1] if entry is not None and self._clock() < entry[0] else None

    async def get(self, key: Key, look: Callable[[], Awaitable[Identity]]) -> Identity:
        """What is remembered, or what `look` finds; several who ask for the same at a time share one look."""
        if self._listener is None or self._seconds() <= 0:
            return await look()
        known = self.known(key)
        if known is not None:
            return known
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._look(key, look, self._changes))
            task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(task)  # one who gives up does not spoil it for the others

    async def _look(self, key: Key, look: Callable[[], Awaitable[Identity]], changes: int) -> Identity:
        began = self._clock()  # from now on it may change unseen
        found = await look()
        if changes == self._changes:  # else it may be what was before the change
            if len(self._known) >= MAXIMUM:
                self._drop_old()
            self._known[key] = (began + self._seconds(), found)
        return found

    def _end(self, key: Key, done: asyncio.Task[Identity]) -> None:
        if self._asked.get(key) is done:
            del self._asked[key]
        if not done.cancelled():
            done.exception()  # whoever asked was told

    def _drop_old(self) -> None:
        now = self._clock()
        self._known = {key: entry for key, entry in self._known.items() if now < entry[0]}
        if len(self._known) >= MAXIMUM:
            self._known.clear()

    def forget(self, user: str = "", project: str = "") -> None:
        """Forget what is known of a user, or of a project, or everything."""
        self._changes += 1
        self._asked.clear()  # who asks from now on gets a new look
        if user or project:
            self._known = {key: entry for key, entry in self._known.items()
                           if entry[1].user_id != user and entry[1].project_id != project}
        else:
            self._known.clear()

    async def tell(self, user: str = "", project: str = "") -> None:
        """Forget, here and in every other process."""
        self.forget(user, project)
        try:
            await self._store.attempt(
                self._store.redis.publish(CHANNEL, json.dumps({"user": user, "project": project})))
        except exception.DatastoreUnavailable:
            LOG.warning("the other processes are not told of a change; they find out within %g s", self._seconds())

    async def _listen(self, listening: asyncio.Event) -> None:
        while True:
            channel = self._store.redis.pubsub()
            try:
                await channel.subscribe(CHANNEL)
                while True:
                    message = await channel.get_message(timeout=1.0)
                    if message is not None and message["type"] == "subscribe":  # again after each lost connection
                        self.forget()  # what was said before is lost
                        listening.set()
                    elif message is not None:
                        self._hear(message["data"])
            except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
                LOG.warning("not told of changes of users and projects: %s", error)
            finally:
                await channel.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(0.2)

    def _hear(self, data: bytes) -> None:
        try:
            notice = json.loads(data)
            self.forget(str(notice["user"]), str(notice["project"]))
        except (ValueError, KeyError, TypeError):
            LOG.warning("a notice of a change that cannot be read: %r", data[:100])
            self.forget()
