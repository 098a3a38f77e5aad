"""Images of instances' disks: copies the disk on the host, sends it to the object store.

A :class:`nova.compute.models.Capture`, recorded with the pending image, says what is to be done.  Its disk is copied to
``$state_path/captures/<image id>`` and sent; then the object store makes the image of it as of any other file, and the
record and the copy go.  An image that is deregistered meanwhile, or whose instance is terminated before its disk is
copied, ends the work.  Whatever dies in between, the next look goes on with what is there.
"""

import asyncio
import contextlib
import errno
import hashlib
import http.client
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from nova import exception, failpoint
from nova.compute import disk
from nova.compute.models import Capture, Instance
from nova.compute.virt.base import ComputeDriver
from nova.converge import Converger
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import models
from nova.image.models import Image
from nova.image.work import Progress
from nova.process import in_thread, wait
from nova.rpc import Bus
from nova.service import Service

LOG = logging.getLogger(__name__)

for _name, _doc in (
        ("compute.capture.copied", "the disk is copied, and nothing of it is sent"),
        ("compute.capture.sent", "the object store has the disk, and the capture is still recorded"),
        ("compute.capture.recorded", "the capture is done and not recorded any more, its copy is still there")):
    failpoint.declare(_name, _doc)

#: how often one that fails is tried
_TRIES = 3
#: seconds between two looks at whether a capture is still wanted
_LOOK = 1.0
#: bytes that are sent at once, and the seconds that the object store may take for them
_BLOCK, _SEND_TIMEOUT = 1 << 20, 60.0
#: seconds that it may take to put a whole disk on its own
_KEEP_TIMEOUT = 900.0
_SERVER = "Server.InternalError"


class _NotWanted(Exception):
    """Nobody wants the image any more, or it cannot be had; `code` and `reason` are said where it still is."""

    def __init__(self, code: str = "", reason: str = ""):
        super().__init__(reason)
        self.code, self.reason = code, reason


class _NoRoom(exception.NovaError):
    """The object store's disk is full."""


class CaptureManager(Service):
    """Converges the captures of this host.

    :param driver: started and stopped by the compute manager, which has to be started before and stopped after this
    :param url: tells where the object store receives disks, without the image's id
    """

    name = "captures"

    def __init__(self, store: Store, bus: Bus, driver: ComputeDriver, url: Callable[[], str]):
        self._store, self._bus, self._driver, self._url = store, bus, driver, url
        self._directory = os.path.join(FLAGS.state_path, "captures")
        self._converger = Converger("capture", self._keys, self._converge)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        bus.serve("compute", {"look_at_capture": self.look_at_capture})

    async def start(self) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._converger.start()

    async def stop(self) -> None:
        await self._converger.stop()

    async def look_at_capture(self, image_id: str) -> None:
        """Somebody says that something changed."""
        self._converger.wake(image_id)

    def _path(self, image_id: str) -> str:
        return os.path.join(self._directory, image_id)

    async def _keys(self) -> set[str]:
        files = {name.removesuffix(disk.temporary("")) for name in os.listdir(self._directory)}
        return files | set(await self._store.ids(Capture, host=FLAGS.host))

    async def _converge(self, image_id: str) -> None:
        capture = await self._store.get(Capture, image_id)
        if capture is None or capture.host != FLAGS.host:
            self._remove(image_id)
            return
        turn = self._turns.setdefault(capture.instance_id, asyncio.Lock())
        async with turn:  # two images of one instance are made one after the other, as the hypervisor wants it
            try:
                await self._while_wanted(capture)
            except _NotWanted as error:
                await self._end(capture, error)

    # -- whether it goes on -------------------------------------------------------------------------------------------

    async def _while_wanted(self, capture: Capture) -> None:
        """Work on a capture as long as it is wanted; :raises _NotWanted:"""
        image = await self._check(capture)
        working = asyncio.ensure_future(self._work(capture, image))
        try:
            while not working.done():
                await asyncio.wait([working], timeout=_LOOK)
                if not working.done():
                    await self._check(capture)
            working.result()
        finally:
            working.cancel()
            await asyncio.wait([working])

    async def _check(self, capture: Capture) -> Image:
        """The image; :raises _NotWanted: it is not wanted any more, or can never be had"""
        image = await self._store.get(Image, capture.id)
        if image is None or image.state != "pending":
            raise _NotWanted()
        if time.time() > image.created + FLAGS.capture_timeout:
            raise _NotWanted(_SERVER, f"It was not made within {FLAGS.capture_timeout:g} seconds.")
        if not os.path.exists(self._path(capture.id)):
            instance = await self._store.get(Instance, capture.instance_id)
            if instance is None or instance.wanted == "terminated":
                raise _NotWanted("Client.InstanceTerminated",
                                 f"The instance {capture.instance_id} was terminated before its disk was copied.")
        return image

    async def _end(self, capture: Capture, why: _NotWanted) -> None:
        """Leave a capture, with its image failed if there is a reason."""
        LOG.info("the image %s of %s is not made: %s", capture.id, capture.instance_id, why.reason or "it is gone")
        await self._driver.end_capture(capture.instance_id, self._path(capture.id))
        if why.reason:
            with contextlib.suppress(exception.NotFound):  # deregistered meanwhile
                await self._store.modify(Image, capture.id, lambda i: {
                    "state": "failed", "state_code": why.code, "state_reason": why.reason,
                } if i.state == "pending" else None)
        await self._forget(capture)
        self._remove(capture.id)

    async def _copy(self, capture: Capture, path: str, note: Callable[[int, int], None]) -> None:
        """Copy the disk; :raises _NotWanted: that failed too often"""
        disk_path = os.path.join(FLAGS.state_path, "instances", capture.instance_id, "disk")
        try:
            await self._driver.capture(capture.instance_id, disk_path, path, capture.reboot, note)
        except exception.NovaError as error:
            now = await self._store.modify(Capture, capture.id, lambda c: {"failures": c.failures + 1})
            await self._check(now)
            if now.failures < _TRIES:
                raise
            LOG.error("the disk of %s cannot be copied: %s", capture.instance_id, error)
            raise _NotWanted(_SERVER, f"The instance's disk could not be copied; the log of the compute host "
                                      f"{FLAGS.host} has the cause.") from error

    async def _forget(self, capture: Capture) -> None:
        while True:
            now = await self._store.get(Capture, capture.id)
            if now is None:
                return
            try:
                await self._store.delete(now)
            except (exception.Conflict, exception.NotFound):
                continue

    def _remove(self, image_id: str) -> None:
        for path in (self._path(image_id), disk.temporary(self._path(image_id))):
            Path(path).unlink(missing_ok=True)

    # -- the work itself ----------------------------------------------------------------------------------------------

    async def _work(self, capture: Capture, image: Image) -> None:
        progress = _Teller(Progress(self._store, capture.id))
        path = self._path(capture.id)
        try:
            if not os.path.exists(path):
                await progress.begin("copying the instance's disk")
                await self._copy(capture, path, progress.note)
            failpoint.hit("compute.capture.copied")
            await progress.begin("sending the instance's disk")
            await self._send(capture.id, path, progress.note)
        except _NoRoom:
            raise _NotWanted(_SERVER, "The object store's disk has no room for the image.") from None
        finally:
            await progress.end()
        failpoint.hit("compute.capture.sent")
        await self._forget(capture)
        failpoint.hit("compute.capture.recorded")
        self._remove(capture.id)
        self._bus.cast(f"objectstore.{image.host}", "look_at_image", image_id=image.id)

    async def _send(self, image_id: str, path: str, note: Callable[[int, int], None]) -> None:
        sha256 = await wait(in_thread(_sha256, path))
        secret = await models.fetch_secret(self._store)
        token = models.fetch_token(secret, models.capture_of(image_id))
        upload = Upload(f"{self._url()}{image_id}/disk", path, sha256, token, note)
        sending = asyncio.ensure_future(wait(in_thread(upload.run)))
        try:
            await asyncio.shield(sending)
        finally:
            upload.stop()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()  # told already, or nobody waits for it


class Upload:
    """Sends one file.  :meth:`run` blocks; its memory is one block.

    :param note: told how many bytes of how many are sent; called in the thread of :meth:`run`
    """

    def __init__(self, url: str, path: str, sha256: str, token: str, note: Callable[[int, int], None]):
        self._url, self._path, self._sha256, self._token, self._note = urlsplit(url), path, sha256, token, note
        self._stopped = False

    def stop(self) -> None:
        """End it soon, whatever it does."""
        self._stopped = True

    def run(self) -> None:
        """Send it, unless the object store has it; :raises exception.NovaError: that failed"""
        try:
            if self._ask("HEAD").getheader("ETag") == f'"{self._sha256}"':
                return
            status = self._put()
        except (OSError, http.client.HTTPException) as error:
            raise exception.NovaError(f"cannot send {self._path}: {error}") from error
        if status == 507:
            raise _NoRoom()
        if status not in (200, 204):
            raise exception.NovaError(f"cannot send {self._path}: the object store answers {status}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._url.hostname or "", self._url.port, timeout=_SEND_TIMEOUT)

    def _ask(self, method: str) -> http.client.HTTPResponse:
        with contextlib.closing(self._connect()) as connection:
            connection.request(method, self._url.path, headers={"X-Nova-Token": self._token})
            return connection.getresponse()

    def _put(self) -> int:
        with contextlib.closing(self._connect()) as connection, open(self._path, "rb") as file:
            size, sent = os.fstat(file.fileno()).st_size, 0
            connection.putrequest("PUT", self._url.path)
            for name, value in (("X-Nova-Token", self._token), ("X-Nova-Sha256", self._sha256),
                                ("Content-Length", str(size)), ("Content-Type", "application/octet-stream")):
                connection.putheader(name, value)
            connection.endheaders()
            while block := file.read(_BLOCK):
                if self._stopped:
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                connection.send(block)
                sent += len(block)
                self._note(sent, size)
            if connection.sock is not None:
                connection.sock.settimeout(_KEEP_TIMEOUT)
            return connection.getresponse().status


class _Teller:
    """Tells how far a capture is, of which threads note how far it is."""

    def __init__(self, progress: Progress):
        self._progress, self._what, self._done, self._total = progress, "", 0, 0
        self._telling: asyncio.Task[Any] | None = None

    async def begin(self, what: str) -> None:
        """Begin a step."""
        self._what, self._done, self._total = what, 0, 0
        if self._telling is None:
            self._telling = asyncio.ensure_future(self._tell_forever())

    def note(self, done: int, total: int) -> None:
        """How far the step is, in bytes."""
        self._done, self._total = done, total

    async def end(self) -> None:
        """It goes no further."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        with contextlib.suppress(exception.DatastoreUnavailable):  # it expires by itself
            await self._progress.end()

    async def _tell_forever(self) -> None:
        while True:
            with contextlib.suppress(exception.DatastoreUnavailable):  # the next time, then
                await self._progress.tell(self._what, self._done, self._total)
            await asyncio.sleep(_LOOK)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
