"""A network driver that only writes down what it is told, one JSON file a network; needs no root.

It keeps the contract of :mod:`nova.network.driver` and is held to it by the same test as the real one.
"""

import asyncio
import dataclasses
import json
import os
import shutil
from pathlib import Path

from nova import exception
from nova.flags import FLAGS
from nova.network.dhcp import write_atomically
from nova.network.driver import NetworkDriver, NetworkSpec, check, check_bridge


class FakeDriver(NetworkDriver):
    """Networks as files.

    :param directory: where the files are; ``<state_path>/fake-networks`` when None
    """

    def __init__(self, directory: str | None = None):
        self._directory = Path(os.path.abspath(directory or os.path.join(FLAGS.state_path, "fake-networks")))
        self._lock = asyncio.Lock()
        self._started = False

    async def start(self) -> None:
        self._started = True

    async def stop(self) -> None:
        async with self._lock:
            self._started = False

    async def ensure(self, spec: NetworkSpec) -> None:
        check(spec)
        async with self._lock:
            path = self._path(spec.bridge)
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(dataclasses.asdict(spec), indent=1))

    async def remove(self, bridge: str) -> None:
        check_bridge(bridge)
        async with self._lock:
            self._path(bridge).unlink(missing_ok=True)

    async def present(self) -> set[str]:
        async with self._lock:
            self._path("none")
            return {path.stem for path in self._directory.glob("*.json")}

    async def purge(self) -> None:
        async with self._lock:
            self._path("none")
            if self._directory.exists():
                shutil.rmtree(self._directory)

    def _path(self, bridge: str) -> Path:
        if not self._started:
            raise exception.NovaError("the network driver is not started")
        return self._directory / f"{bridge}.json"
