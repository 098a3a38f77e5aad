"""The bytes of a stored file on their way out: in one piece if they are few, else block by block.

What is few and still in memory is read at once, because to hand it to a thread takes longer.
"""

import errno
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from nova import process
from nova.objectstore.files import Files
from nova.objectstore.models import Object

_BLOCK = 256 << 10
#: headers of an answer that nginx makes itself when it gives a file out
_OF_NGINX = frozenset(("Content-Length", "Content-Range", "Date"))


@dataclass(frozen=True)
class StoredFile:
    """A file of the object store, or its `part` (offset and length in bytes), that nginx gives out."""

    name: str
    part: tuple[int, int] | None = None


def hand_over(file: StoredFile, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers that have nginx give a file out: which, the bytes wanted, and all headers, as it would drop most.

    :param headers: those of the answer
    """
    told = "&".join(f"{name}={quote(value.encode('latin-1'), safe='')}" for name, value in headers
                    if name not in _OF_NGINX)
    answer = {"X-Accel-Redirect": "@objects", "X-Nova-File": file.name, "X-Nova-Headers": told}
    if file.part:
        answer["X-Nova-Range"] = f"bytes={file.part[0]}-{file.part[0] + file.part[1] - 1}"
    return answer


async def body_of(files: Files, found: Object, start: int, length: int) -> bytes | AsyncIterator[bytes]:
    """A part of an object's file as the body of an answer.

    :param start: offset in bytes
    :param length: in bytes
    :raises FileNotFoundError: the file is gone
    :raises OSError: (EIO) it has not as many bytes as the record says
    """
    if length > _BLOCK:
        return FileBody(files, await process.wait(files.pool.run(files.open, found)), start, length)
    body = _read_cached(files, found, start, length)
    return await process.wait(files.pool.run(_read, files, found, start, length)) if body is None else body


def _read_cached(files: Files, found: Object, start: int, length: int) -> bytes | None:
    """A part of a file if all of it is in memory, else None; does not wait for the disk."""
    buffer = bytearray(length)
    with files.open(found) as file:
        try:
            return bytes(buffer) if os.preadv(file.fileno(), [buffer], start, os.RWF_NOWAIT) == length else None
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise


def _read(files: Files, found: Object, start: int, length: int) -> bytes:
    with files.open(found) as file:
        file.seek(start)
        block = file.read(length)
    if len(block) != length:
        raise OSError(errno.EIO, "it is shorter than its record says", found.file)
    return block


class FileBody(AsyncIterator[bytes]):
    """A part of a file, read block by block in a thread."""

    def __init__(self, files: Files, file: BinaryIO, start: int, length: int):
        self._files, self._file, self._offset, self._left = files, file, start, length

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        block = await process.wait(self._files.pool.run(self._read))
        if not block:
            raise OSError(f"{self._file.name} is shorter than its record says")
        self._offset += len(block)
        self._left -= len(block)
        return block

    def _read(self) -> bytes:
        self._file.seek(self._offset)
        return self._file.read(min(_BLOCK, self._left))

    async def aclose(self) -> None:
        """Close the file."""
        self._file.close()
