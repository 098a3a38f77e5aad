"""The servers that a cloud on one machine brings along: a private redis-server, and the end of a private libvirtd."""

import asyncio
import gzip
import logging
import os
import shutil
import tempfile

from nova import datastore, exception
from nova.flags import FLAGS
from nova.service import Service

LOG = logging.getLogger(__name__)

#: bytes that the path of a unix socket may have (unix(7))
_SOCKET_PATH_MAX = 107


class RedisServer(Service):
    """A redis-server of its own below --state_path: append-only file, every write synced, on a unix socket only.

    One that an earlier process left running (after ``kill -9``) is adopted; one that dies is started again.
    """

    name = "redis-server"

    def __init__(self) -> None:
        self._directory = os.path.join(FLAGS.state_path, "redis")
        self.socket = os.path.join(self._directory, "redis.sock")
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_MAX:
            raise exception.NovaError(f"--state_path={FLAGS.state_path} is too long for the path of a unix socket "
                                      f"in it; choose one of less than 90 characters")
        self._watch: asyncio.Task | None = None

    @property
    def url(self) -> str:
        """Its URL for :func:`nova.datastore.open_store`."""
        return f"unix://{self.socket}"

    async def start(self) -> None:
        if shutil.which("redis-server") is None:
            raise exception.NovaError("redis-server is missing: apt-get install redis-server")
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if await self._lives():
            await self._wait()
            LOG.info("adopted the redis-server that was running")
        else:
            await self._launch()
        self._watch = asyncio.ensure_future(self._watch_forever())

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        store = datastore.open_store(self.url)
        try:
            await store.redis.shutdown()
        except OSError as error:
            LOG.debug("redis-server is gone already: %s", error)
        await store.close()
        async with asyncio.timeout(5):
            while await self._answers():
                await asyncio.sleep(0.02)

    async def _launch(self) -> None:
        with open(os.path.join(self._directory, "redis.log"), "ab") as log:
            child = await asyncio.create_subprocess_exec(
                "redis-server", "--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700",
                "--dir", self._directory, "--appendonly", "yes", "--appendfsync", "always", "--save", "",
                "--daemonize", "no", stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        await self._wait(child)

    async def _wait(self, child: asyncio.subprocess.Process | None = None) -> None:
        for _ in range(600):  # reading a large append-only file takes a while
            if await self._answers():
                return
            if child is not None and child.returncode is not None:
                raise exception.NovaError(f"redis-server does not start; see {self._directory}/redis.log")
            await asyncio.sleep(0.05)
        raise exception.NovaError("redis-server does not answer within 30 s")

    async def _lives(self) -> bool:
        """Whether a server has the socket, even one that is too busy to answer: two would ruin each other's file."""
        try:
            _, writer = await asyncio.open_unix_connection(self.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        writer.close()
        return True

    async def _answers(self) -> bool:
        if not os.path.exists(self.socket):
            return False
        store = datastore.open_store(self.url)
        try:
            await store.ping()
        except exception.DatastoreUnavailable:
            return False
        finally:
            await store.close()
        return True

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(1)
            if not await self._answers() and not await self._lives():
                LOG.error("redis-server is gone; starting it again")
                try:
                    await self._launch()
                except exception.NovaError as error:
                    LOG.error("%s", error)


class PrivateLibvirtd(Service):
    """Ends the private libvirtd that the compute driver started, if it did; guests run on."""

    name = "libvirtd"

    async def stop(self) -> None:
        from nova.compute.virt import private_libvirtd  # needs libvirt-python, which a fake cloud does without
        await private_libvirtd.stop(os.path.join(FLAGS.state_path, "libvirt"), timeout=5)


def remove_files(paths: list[str]) -> None:
    """Remove files and directories that exist."""
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def placeholder_images(directory: str) -> None:
    """Write images that only the fake compute driver boots, where the starter images cannot be built.

    Each has no more than the bytes by which it is known as a kernel, a ramdisk or a file system.
    """
    os.makedirs(directory, exist_ok=True)
    contents = {"vmlinuz": bytes(510) + b"\x55\xaa\0\0HdrS", "ramdisk.gz": gzip.compress(b"placeholder", mtime=0),
                "machine.ext4": bytes(1080) + b"\x53\xef"}
    for name, content in contents.items():
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
                file.write(content.ljust(32 << 10, b"\0"))
            os.rename(file.name, path)
