"""Wanted versus observed: keeps making what is there equal to what the records want.

A :class:`Converger` has a function that brings one thing (an instance, a network, an image) one or more idempotent
steps nearer to its record.  It runs when somebody wakes it, when the daemon starts, and every ``--converge_interval``
seconds for all; one key is never worked on twice at the same time, and a failure is tried again with a growing pause.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable

from nova import exception
from nova.context import new_request_id, request_id_var
from nova.flags import FLAGS, DEFINE_float, DEFINE_integer

DEFINE_float("converge_interval", 10.0, "seconds between two looks at everything that this host owns", lower_bound=0.1)
DEFINE_integer("converge_concurrency", 8, "things that one daemon works on at the same time", lower_bound=1)

LOG = logging.getLogger(__name__)

#: seconds before a failed convergence is tried again: the first pause, and the most
RETRY_FIRST, RETRY_MOST = 0.5, 15.0


class Converger:
    """Runs `converge` for keys.

    :param name: what the keys are, for the log
    :param keys: coroutine function that lists the keys of everything that may need work
    :param converge: coroutine function that takes a key; when it raises, it is called again later
    """

    def __init__(self, name: str, keys: Callable[[], Awaitable[Iterable[str]]],
                 converge: Callable[[str], Awaitable[None]]):
        self._name, self._keys, self._converge = name, keys, converge
        self._running: dict[str, asyncio.Task] = {}
        self._again: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        self._slots = asyncio.Semaphore(FLAGS.converge_concurrency)
        self._sweeper: asyncio.Task | None = None
        self._stopping = True  # until start(): what its owner needs may not be there yet

    def start(self) -> None:
        """Begin: everything at once, then every interval."""
        self._stopping = False
        self._sweeper = asyncio.ensure_future(self._sweep_forever())

    async def stop(self, timeout: float = 3.0) -> None:
        """Take on no more, let what runs end; after `timeout` seconds it is cancelled; the next start resumes it."""
        self._stopping = True
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        tasks = list(self._running.values())
        if self._sweeper:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)

    def wake(self, key: str) -> None:
        """Look at one key now, or again when it is being worked on; nothing before the start, which looks at all."""
        if self._stopping:
            return
        timer = self._retries.pop(key, None)
        if timer:
            timer.cancel()
        request_id = request_id_var.get()
        if key in self._running:
            self._again[key] = request_id
        else:
            self._running[key] = asyncio.ensure_future(self._run(key, request_id))

    async def settled(self, key: str) -> None:
        """Wait until nothing is being done for a key; whether it is converged then, the records tell."""
        while key in self._running:
            await asyncio.wait([self._running[key]])

    async def sweep(self) -> None:
        """Look at everything."""
        for key in await self._keys():
            if key not in self._retries:
                self.wake(key)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.sweep()
            except exception.NovaError as error:
                LOG.warning("cannot list the %ss: %s", self._name, error)
            except Exception:  # the sweep is what heals everything else: it must go on
                LOG.exception("cannot list the %ss", self._name)
            await asyncio.sleep(FLAGS.converge_interval * random.uniform(0.9, 1.1))

    async def _run(self, key: str, request_id: str) -> None:
        try:
            async with self._slots:
                request_id_var.set(request_id if request_id != "-" else new_request_id())
                await self._converge(key)
            self._failures.pop(key, None)
        except exception.NovaError as error:
            LOG.warning("%s %s: %s", self._name, key, error)
            self._retry_later(key)
        except Exception:  # one thing's bug must not end the convergence of the others; it is logged and tried again
            LOG.exception("%s %s", self._name, key)
            self._retry_later(key)
        finally:
            del self._running[key]
            again = self._again.pop(key, None)
            if again is not None and not self._stopping:
                self.wake(key)

    def _retry_later(self, key: str) -> None:
        if self._stopping:
            return
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(RETRY_FIRST * 2 ** min(failures - 1, 16), RETRY_MOST)

        def retry() -> None:
            self._retries.pop(key, None)
            self.wake(key)
        self._retries[key] = asyncio.get_running_loop().call_later(pause, retry)
