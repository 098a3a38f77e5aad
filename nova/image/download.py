"""One image on its way from the object store to a file: resumed where it broke off, checked, and sparse.

The file grows under a name of its own, and what is in it when the connection or the process breaks is not fetched
again: the rest is asked for with Range and If-Match, so that it never becomes part of another file.  Only a file whose
SHA-256 is right is complete.  It runs in a thread with a memory of one buffer; blocks of zeros become holes.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import urlsplit

from nova import exception, failpoint

LOG = logging.getLogger(__name__)

failpoint.declare("compute.image.partial", "a part of an image is in its file, and the rest is not")

_BUFFER = 1 << 20
#: what becomes a hole when it is zeros: the block of most file systems
_BLOCK = 4096
_ZEROS = bytes(_BLOCK)
#: seconds in which the server has to take a connection, and to send something
_CONNECT_TIMEOUT, _READ_TIMEOUT = 5.0, 30.0
#: seconds before the first and before any other new attempt
_PAUSE_FIRST, _PAUSE_MOST = 0.5, 15.0


class Broken(exception.NovaError):
    """An attempt failed; another may not."""


class _Another(Broken):
    """What the file holds does not belong to what the server has: it is fetched from its beginning."""


class Download:
    """Fetches one image into an open file.

    :param file: where the image goes; what is in it already is its beginning
    :param image_id: for messages
    :param sha256: what the whole must be
    :param url: where it is
    :param headers: of every request; made anew for each, since tokens expire
    :param deadline: of :func:`time.monotonic`
    :param attempts: how many in a row may bring nothing
    :param progress: told how many bytes are here and how many there are (0: not known yet); called in the thread
    """

    def __init__(self, file: BinaryIO, image_id: str, sha256: str, url: str, headers: Callable[[], dict[str, str]],
                 deadline: float, attempts: int, progress: Callable[[int, int], None] = lambda done, size: None):
        self._file, self._image_id, self._sha256 = file, image_id, sha256
        self._url, self._headers, self._deadline, self._attempts = urlsplit(url), headers, deadline, attempts
        self._progress = progress
        self._stopped = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._digest = hashlib.sha256()
        self._offset = 0
        self._found = False  # whether a part of it was here before this process

    def stop(self) -> None:
        """Have :meth:`run` end soon; may be called from another thread."""
        self._stopped.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):  # it is closed
                connection.sock.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Fetch what is missing and check the whole.

        :raises exception.ImageUnavailable: the object store does not have it (any more), or it is not what it should be
        :raises Broken: it cannot be had now
        :raises OSError: the file cannot be written
        """
        self._read_what_is_there()
        failures = 0
        while True:
            before = self._offset
            try:
                self._attempt()
                self._check()
                return
            except _Another as error:
                LOG.warning("%s; fetching %s from its beginning", error, self._image_id)
                self._start_again()
                failures += 1
            except Broken as error:
                failures = 1 if self._offset > before else failures + 1
                LOG.warning("%s", error)
                if failures >= self._attempts or self._stopped.is_set():
                    raise
            if failures >= self._attempts:
                raise Broken(f"cannot fetch {self._image_id}: it changes all the time")
            self._pause(failures)

    def _read_what_is_there(self) -> None:
        self._file.seek(0)
        while data := self._file.read(_BUFFER):
            self._digest.update(data)
            self._offset += len(data)
        self._found = self._offset > 0
        if self._found:
            LOG.info("%d bytes of %s are here from an earlier attempt", self._offset, self._image_id)

    def _start_again(self) -> None:
        os.ftruncate(self._file.fileno(), 0)
        self._digest, self._offset, self._found = hashlib.sha256(), 0, False

    def _pause(self, failures: int) -> None:
        pause = min(_PAUSE_FIRST * 2 ** (failures - 1), _PAUSE_MOST) * random.uniform(0.5, 1)
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Broken(f"cannot fetch {self._image_id}: not here in time")
        self._stopped.wait(min(pause, left))

    def _attempt(self) -> None:
        secure = self._url.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = make(self._url.hostname or "", self._url.port, timeout=_CONNECT_TIMEOUT)
        try:
            self._connection.connect()
            self._connection.sock.settimeout(self._left(_READ_TIMEOUT))
            self._connection.request("GET", self._url.path, headers=self._request_headers())
            with self._connection.getresponse() as answer:
                size = self._understand(answer)
                if size is not None:
                    self._receive(answer, size)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and getattr(error, "filename", None) is self._file:
                raise
            raise Broken(f"cannot fetch {self._image_id}: {error or type(error).__name__}") from error
        finally:
            self._connection.close()

    def _request_headers(self) -> dict[str, str]:
        headers = self._headers()
        if self._offset:
            headers |= {"Range": f"bytes={self._offset}-", "If-Match": f'"{self._sha256}"'}
        return headers

    def _left(self, most: float) -> float:
        """Seconds that something may take, as there is time left and nobody wants it stopped."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self._stopped.is_set():
            raise Broken(f"cannot fetch {self._image_id}: "
                         f"{'it was called off' if self._stopped.is_set() else 'not here in time'}")
        return min(most, left)

    def _understand(self, answer: http.client.HTTPResponse) -> int | None:
        """How many bytes the image has by the head of an answer whose body has the next of them; 0: it does not say;
        None: all are here."""
        if answer.status == 404:
            raise exception.ImageUnavailable(f"{self._image_id} is not in the object store any more")
        if answer.status == 412:
            raise _Another(f"{self._image_id} has changed")
        if answer.status == 416:  # all bytes are here already, or too many
            return None
        if answer.status not in (200, 206):
            raise Broken(f"cannot fetch {self._image_id}: HTTP {answer.status} {answer.reason}")
        etag = (answer.headers.get("ETag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", etag) and etag != self._sha256:
            raise exception.ImageUnavailable(f"{self._image_id} is damaged: its SHA-256 is not the registered one")
        if answer.status == 200:
            if self._offset:
                raise _Another(f"the object store does not give a part of {self._image_id}")
            return int(answer.headers.get("Content-Length") or 0)
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if part is None or int(part[1]) != self._offset:
            raise _Another(f"the object store gives another part of {self._image_id} than was asked for")
        return int(part[2])

    def _receive(self, answer: http.client.HTTPResponse, size: int) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        self._progress(self._offset, size)
        ended = False
        while not ended:
            self._connection_timeout()
            # up to the next multiple of the buffer, so that blocks of the buffer are blocks of the file
            got, ended = _fill(answer, buffer[:_BUFFER - self._offset % _BUFFER])
            self._write(buffer[:got])
            if got:
                failpoint.hit("compute.image.partial")
            self._progress(self._offset, size)
        self._left(0)  # it ended because it was stopped
        if size and self._offset < size:
            raise Broken(f"cannot fetch {self._image_id}: the connection broke after {self._offset} of {size} bytes")

    def _connection_timeout(self) -> None:
        left = self._left(_READ_TIMEOUT)
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(left)

    def _write(self, data: memoryview) -> None:
        try:
            write_sparse(self._file.fileno(), data, self._offset)
        except OSError as error:
            error.filename = self._file  # tells it from an error of the connection
            raise
        self._digest.update(data)
        self._offset += len(data)

    def _check(self) -> None:
        if self._digest.hexdigest() == self._sha256:
            return
        if self._found:
            raise _Another(f"what an earlier process left of {self._image_id} is damaged")
        raise exception.ImageUnavailable(f"{self._image_id} is damaged: its SHA-256 is not the registered one")


def _fill(answer: http.client.HTTPResponse, buffer: memoryview) -> tuple[int, bool]:
    """Read until a buffer is full or the body ends; how many bytes, and whether it ended.  What came before the
    connection broke is not lost: the next call meets the break again."""
    got = 0
    while got < len(buffer):
        try:
            more = answer.readinto(buffer[got:])
        except (OSError, http.client.HTTPException):
            if got:
                return got, False
            raise
        if not more:
            return got, True
        got += more
    return got, False


def write_sparse(file: int, data: memoryview, offset: int) -> None:
    """Write at an offset at the end of a file; blocks of zeros become holes.

    :raises OSError: it cannot be written; the file ends at `offset` then
    """
    try:
        for begin, end in _without_zeros(data):
            _write_all(file, data[begin:end], offset + begin)
        os.ftruncate(file, offset + len(data))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, offset)
        raise


def _without_zeros(data: memoryview) -> Iterator[tuple[int, int]]:
    """Where the runs of blocks are that are not all zeros."""
    begin = None
    for at in range(0, len(data), _BLOCK):
        block = bytes(data[at:at + _BLOCK])  # bytes are compared much faster than a memoryview is
        if block == _ZEROS[:len(block)]:
            if begin is not None:
                yield begin, at
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, len(data)


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
