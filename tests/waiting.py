"""Ports, and waiting for conditions: what servers of tests need, whoever starts them."""

import contextlib
import random
import socket
import time
from collections.abc import Callable

#: ports that free_port gave away
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody uses, and that no client gets for its own end of a connection meanwhile (ip(7),
    ip_local_port_range)."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            if port not in _given:
                s.bind(("0.0.0.0", port))
                _given.add(port)
                return port


def wait_until(condition: Callable[[], object], timeout: float = 30, what: str = "") -> object:
    """Poll a condition until it is true; its value.  Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.05)
