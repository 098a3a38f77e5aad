"""Ports, and waiting for conditions: what servers of tests need, whoever starts them."""

import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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
