"""A daemon: services that start in order, beat into Redis, log readably and stop in the reverse order.

Each service is a Twisted service whose :meth:`Service.start` and :meth:`Service.stop` are coroutines; :func:`serve`
installs Twisted's asyncio reactor, so that Tornado, Twisted and redis.asyncio share one loop, and runs them until
SIGINT or SIGTERM.
"""

import asyncio
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.application import service as twisted_service
from twisted.internet import asyncioreactor

from nova import exception
from nova.context import RequestIdFilter
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_boolean, DEFINE_enum, DEFINE_float, DEFINE_string

DEFINE_string("logfile", "", "file for the log; standard error when empty")
DEFINE_boolean("log_json", False, "write the log as one JSON object a line")
DEFINE_enum("log_level", "info", ["debug", "info", "warning", "error"], "least severity that is logged")
DEFINE_float("heartbeat_interval", 2.0, "seconds between two heartbeats of a daemon", lower_bound=0.1)
DEFINE_float("heartbeat_ttl", 8.0, "seconds after the last heartbeat at which a daemon counts as dead", lower_bound=0.2)
DEFINE_float("stop_timeout", 8.0, "seconds that the daemons have to stop in order", lower_bound=1)

LOG = logging.getLogger(__name__)


class Service(twisted_service.Service):
    """One part of a daemon.  Subclasses override :meth:`start` and :meth:`stop`."""

    name = "service"

    async def start(self) -> None:
        """Begin to serve; returns when it does.  An error here ends the daemon."""

    async def stop(self) -> None:
        """Finish what is under way, within a few seconds."""


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s [%(request_id)s] %(message)s",
                         "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                 "host": FLAGS.host, "request_id": getattr(record, "request_id", "-"), "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging() -> None:
    """Log as the flags say."""
    handler: logging.Handler
    if FLAGS.logfile:
        os.makedirs(os.path.dirname(os.path.abspath(FLAGS.logfile)), exist_ok=True)
        handler = logging.handlers.WatchedFileHandler(FLAGS.logfile)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if FLAGS.log_json else _TextFormatter())
    handler.addFilter(RequestIdFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(FLAGS.log_level.upper())
    for name in ("asyncio", "kombu", "amqp", "tornado.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def serve(services: Sequence[Service], ready: Callable[[], Awaitable[None]] | None = None) -> int:
    """Run services until SIGINT or SIGTERM.

    :param services: in start order
    :param ready: called once all have started
    :returns: the process's exit code
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)
    from twisted.internet import reactor as installed  # only after install()
    reactor = typing.cast(asyncioreactor.AsyncioSelectorReactor, installed)
    code = 0

    async def main() -> None:
        nonlocal code
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        started: list[Service] = []
        try:
            for part in services:
                started.append(part)
                if not await _unless(stop, part.start()):
                    break
            if not stop.is_set() and ready:
                await _unless(stop, ready())
            await stop.wait()
        except exception.NovaError as error:
            LOG.error("cannot start: %s", error)
            if FLAGS.logfile:
                print(f"cannot start: {error}", file=sys.stderr)
            code = 1
        except Exception:  # whatever it is, the parts that run must be stopped
            LOG.exception("cannot start")
            print("cannot start; the log has the details", file=sys.stderr)
            code = 1
        await _stop_all(started)
        reactor.stop()

    loop.call_soon(lambda: asyncio.ensure_future(main()))
    reactor.run(installSignalHandlers=False)
    return code


async def _unless(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await `work`, but give it up when `stop` is set; whether it came to its end."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=2)
        return False
    stopped.cancel()
    task.result()
    return True


async def _stop_all(started: list[Service]) -> None:
    deadline = time.monotonic() + FLAGS.stop_timeout
    for part in reversed(started):
        try:
            await asyncio.wait_for(part.stop(), max(0.5, deadline - time.monotonic()))
            LOG.info("%s stopped", part.name)
        except TimeoutError:
            LOG.error("%s did not stop in time", part.name)
        except Exception:  # the others must be stopped too
            LOG.exception("%s failed to stop", part.name)


@dataclass(frozen=True)
class Host:
    """A living daemon: its topic, host, availability zone and what it says of itself (capacity, for a compute host)."""

    topic: str
    host: str
    zone: str
    beat: float
    facts: dict[str, Any] = field(default_factory=dict)


class Heartbeat(Service):
    """Tells in Redis that a daemon lives; the hash ``nova:host:<host>`` has one field per topic.

    :param facts: coroutine function that tells what the others should know of this host
    """

    def __init__(self, store: Store, topic: str, facts: Callable[[], Awaitable[dict[str, Any]]] | None = None):
        self.name = f"{topic} heartbeat"
        self._store, self._topic, self._facts = store, topic, facts
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        await self._beat()
        self._task = asyncio.ensure_future(self._beat_forever())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._store.attempt(self._store.redis.hdel(f"{PREFIX}host:{FLAGS.host}", self._topic))

    async def _beat(self) -> None:
        facts = await self._facts() if self._facts else {}
        key = f"{PREFIX}host:{FLAGS.host}"
        pipeline = self._store.redis.pipeline()
        pipeline.hset(key, self._topic, json.dumps(
            {"zone": FLAGS.node_availability_zone, "beat": time.time(), "facts": facts}))
        pipeline.expire(key, 3600)
        pipeline.sadd(f"{PREFIX}hosts", FLAGS.host)
        await self._store.attempt(pipeline.execute())

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(FLAGS.heartbeat_interval)
            try:
                await self._beat()
            except exception.NovaError as error:
                LOG.warning("no heartbeat: %s", error)
            except Exception:  # whatever it is, a daemon that lives must not count as dead for ever
                LOG.exception("no heartbeat")


async def heartbeats(store: Store) -> list[Host]:
    """The daemons of all hosts, by host and topic, that live or did so within the hour; in two round trips."""
    names = sorted(n.decode() for n in await store.attempt(store.redis.smembers(f"{PREFIX}hosts")))
    pipeline = store.redis.pipeline(transaction=False)
    for name in names:
        pipeline.hgetall(f"{PREFIX}host:{name}")
    rows = await store.attempt(pipeline.execute()) if names else []
    found = []
    for name, row in zip(names, rows, strict=True):
        for topic, text in sorted(row.items()):
            entry = json.loads(text)
            found.append(Host(topic.decode(), name, entry["zone"], entry["beat"], entry["facts"]))
    return found


def is_alive(host: Host, now: float) -> bool:
    """Whether a heartbeat is recent enough."""
    return host.beat > now - FLAGS.heartbeat_ttl


async def hosts(store: Store, topic: str) -> list[Host]:
    """The living daemons of a topic, in two round trips."""
    names = sorted(n.decode() for n in await store.attempt(store.redis.smembers(f"{PREFIX}hosts")))
    pipeline = store.redis.pipeline(transaction=False)
    for name in names:
        pipeline.hget(f"{PREFIX}host:{name}", topic)
    rows = await store.attempt(pipeline.execute()) if names else []
    alive = []
    for name, row in zip(names, rows, strict=True):
        entry: dict[str, Any] = json.loads(row) if row else {"beat": 0.0}
        if entry["beat"] > time.time() - FLAGS.heartbeat_ttl:
            alive.append(Host(topic, name, entry["zone"], entry["beat"], entry["facts"]))
    return alive
