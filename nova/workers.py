"""Several processes that do the same work, forked from one that stays to watch over them.

The watcher has no event loop, no threads and no connections, so that there is nothing in it that could fail with the
work; what was loaded before is in memory once for all.  A worker that dies is replaced.  SIGTERM and SIGINT stop the
workers in order, then the watcher; if the watcher is killed, its workers stop by themselves.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from nova.flags import FLAGS
from nova.service import Service

LOG = logging.getLogger(__name__)

#: workers that failed to start one after the other, after which nobody tries again if none is left
_TRIES = 5
#: seconds before a worker is started again: after the first failure, and at most
_DELAY, _LONGEST_DELAY = 0.2, 5.0
#: seconds that workers get beyond --stop_timeout before they are killed
_GRACE = 2.0
#: glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Lifeline(Service):
    """A worker's tie to its watcher, and the last of its services: tells that it works, and stops it with the watcher.

    :param watcher: a descriptor that is at its end when the watcher is gone
    :param ready: a descriptor to write to
    """

    name = "tie to the watcher"

    def __init__(self, watcher: int, ready: int):
        self._watcher, self._ready = watcher, ready

    async def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._watcher, self._orphaned)
        os.write(self._ready, b"!")
        os.close(self._ready)

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watcher)

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watcher)
        LOG.error("the process that watches over this one is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)


#: what a worker does, by its number from 0 on; it has the Lifeline among its services, and gives its exit code
Work = Callable[[int, Lifeline], int]


@dataclass
class _Worker:
    """A place for a worker, and who has it.  `pid` is 0 while nobody has."""

    number: int
    pid: int = 0
    ready: int = -1  # the descriptor that tells, until it has
    works: bool = False
    due: float = 0.0


def _give_memory_back() -> None:
    """Have the C library return what is freed to the kernel, instead of keeping it for each thread.

    What a worker keeps of the blocks of large objects makes the most of its memory otherwise; it costs about a seventh
    more CPU time for those.  Other C libraries than glibc have no mallopt.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 512 << 10)
        mallopt(_M_TRIM_THRESHOLD, 512 << 10)


class Watcher:
    """Keeps workers.

    :param count: how many
    :param work: what each does
    :param stopping: is called in the watcher when the workers are about to be stopped
    """

    def __init__(self, count: int, work: Work, stopping: Callable[[], None] = lambda: None):
        self._work, self._stopping = work, stopping
        self._workers = [_Worker(number) for number in range(count)]
        self._have_worked = False  # all of them, at one time
        self._failed = 0  # starts in succession
        self._last_end = ""
        self._stop = False

    def run(self) -> int:
        """Watch until a signal says to stop, or there is no hope; the exit code."""
        gc.collect()
        gc.freeze()  # what is there stays, and its pages shared: no collection shall touch them
        self._alive, self._tether = os.pipe()
        self._wakes, wake = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._heard)
        code = 0
        while not self._stop:
            for worker in self._workers:
                if not worker.pid and worker.due <= time.monotonic():
                    self._start(worker)
            self._wait()
            if not self._reap():
                code = 1
                break
        return self._stop_all() or code

    def _heard(self, number: int, _: object) -> None:
        if number != signal.SIGCHLD:
            self._stop = True

    def _wait(self, limit: float = 3600) -> None:
        """Return when something has happened, or is due."""
        due = min((w.due for w in self._workers if not w.pid), default=time.monotonic() + limit)
        waiting = {w.ready: w for w in self._workers if w.ready >= 0}
        readable, _, _ = select.select([self._wakes, *waiting], [], [], min(limit, max(0.0, due - time.monotonic())))
        for descriptor in readable:
            if descriptor == self._wakes:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakes, 4096)
                continue
            worker = waiting[descriptor]
            worker.works = bool(os.read(descriptor, 1))
            os.close(descriptor)
            worker.ready = -1
            if worker.works:
                self._failed = 0
        self._have_worked = self._have_worked or all(w.works for w in self._workers)

    # -- workers begin and end --

    def _start(self, worker: _Worker) -> None:
        readable, writable = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # what comes meanwhile must not get lost in the child
        pid = os.fork()
        if not pid:
            os._exit(self._be(worker.number, writable))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(writable)
        worker.pid, worker.ready, worker.works = pid, readable, False

    def _be(self, number: int, ready: int) -> int:
        """Be a worker; its exit code."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            for descriptor in (self._tether, self._wakes, *(w.ready for w in self._workers if w.ready >= 0)):
                os.close(descriptor)
            _give_memory_back()
            code = self._work(number, Lifeline(self._alive, ready))
        except BaseException:  # it must not go on as if it were the watcher
            LOG.exception("worker %d fails", number)
        finally:
            logging.shutdown()
        return code

    def _reap(self) -> bool:
        """Take note of workers that have ended; False if there is no hope."""
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            if self._stop:
                self._ended(worker, status)
                continue
            worked = worker.works
            self._ended(worker, status)
            LOG.error("worker %d (process %d) %s%s", worker.number, pid, self._last_end,
                      "" if self._have_worked else " before it worked")
            if not self._have_worked:
                return False  # it has said why
            self._failed = 0 if worked else self._failed + 1
            worker.due = time.monotonic() + (min(_LONGEST_DELAY, _DELAY * 2 ** (self._failed - 1))
                                             if self._failed else 0)
        if self._failed >= _TRIES and not any(w.works for w in self._workers):
            LOG.error("no worker is left, and %d could not start, one after the other; the last one %s: giving up",
                      self._failed, self._last_end)
            return False
        return True

    def _ended(self, worker: _Worker, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self._last_end = (f"was ended by {signal.Signals(-code).name}" if code < 0 else
                          f"ended with exit code {code}")
        worker.pid, worker.works = 0, False
        if worker.ready >= 0:
            os.close(worker.ready)
            worker.ready = -1

    def _stop_all(self) -> int:
        self._stop, code = True, 0
        self._stopping()
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGTERM)
        deadline = time.monotonic() + FLAGS.stop_timeout + _GRACE
        while any(w.pid for w in self._workers) and time.monotonic() < deadline:
            self._wait_for_end(deadline)
        for worker in self._workers:
            if worker.pid:
                LOG.error("worker %d did not stop in time", worker.number)
                code = 1
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
        return code

    def _wait_for_end(self, deadline: float) -> None:
        select.select([self._wakes], [], [], max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakes, 4096)
        self._reap()
