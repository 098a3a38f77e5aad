"""External commands and threads, the edges of the event loop.

Both come back as Twisted Deferreds; a coroutine awaits one through :func:`wait`.  Commands are argument lists, never
shell strings, and always have a time limit.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from nova import exception

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code (negative: the signal that ended it), standard output and standard error."""

    code: int
    out: bytes
    err: bytes


def wait(deferred: Deferred) -> Awaitable[Any]:
    """What a coroutine awaits to get a Deferred's result."""
    return deferred.asFuture(asyncio.get_running_loop())


def deferred(coroutine: Coroutine[Any, Any, T]) -> "Deferred[T]":
    """Start a coroutine; its result comes as a Deferred."""
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))


def run(*argv: str, input: bytes | None = None, timeout: float = 30, check: bool = True,
        env: dict[str, str] | None = None) -> "Deferred[Result]":
    """Run a command to its end.

    :param argv: the program and its arguments
    :param input: what it reads on standard input (nothing when None)
    :param timeout: seconds, after which the command and its children are killed
    :param check: a non-zero exit code is an error
    :param env: its whole environment; this process's own when None
    :raises exception.ProcessError: (in the Deferred) it cannot be started, or `check` and a non-zero exit code
    :raises exception.Timeout: (in the Deferred)
    """
    return deferred(_run(argv, input, timeout, check, env))


async def _run(argv: tuple[str, ...], input: bytes | None, timeout: float, check: bool,
               env: dict[str, str] | None) -> Result:
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=null if input is None else pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True)
    except OSError as error:
        raise exception.ProcessError(f"{argv[0]}: {error.strerror}") from error
    try:
        out, err = await asyncio.wait_for(child.communicate(input), timeout)
    except TimeoutError:
        await kill(child)
        raise exception.Timeout(f"{' '.join(argv)}: no end within {timeout:g} s") from None
    except asyncio.CancelledError:
        await kill(child)
        raise
    code = child.returncode if child.returncode is not None else -1
    if check and code != 0:
        said = (err or out).decode(errors="replace").strip()[-2000:]
        raise exception.ProcessError(f"{' '.join(argv)}: exit code {code}: {said}")
    return Result(code, out, err)


async def kill(child: asyncio.subprocess.Process) -> None:
    """End a command that leads a session of its own, and its children; it may have ended already."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    await child.wait()


class Pool:
    """A bounded pool of threads for a library that blocks."""

    def __init__(self, size: int, name: str = "pool"):
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> "Deferred[T]":
        """Call `function` in one of the pool's threads."""
        loop = asyncio.get_running_loop()
        return Deferred.fromFuture(loop.run_in_executor(self._executor, lambda: function(*args, **kwargs)))

    def close(self) -> None:
        """Let the threads end; what is queued is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)


_shared = Pool(8, "nova")


def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> "Deferred[T]":
    """Call `function` in the process's shared thread pool."""
    return _shared.run(function, *args, **kwargs)
