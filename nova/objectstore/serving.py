"""The bytes of a stored file on their way out: in one piece if they are few, else block by block.

What is few and still in memory is read at once, because to hand it to a thread takes longer.
"""

import errno
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

from nova import process
from nova.objectstore.files import Files

_BLOCK = 256 << 10


async def body_of(files: Files, name: str, start: int, length: int) -> bytes | AsyncIterator[bytes]:
    """A part of a file as the body of an answer.

    :param name: as its record has it
    :param start: offset in bytes
    :param length: in bytes
    :raises FileNotFoundError: the file is gone
    :raises OSError: a small part of it is not all there; a large one says so when it is read
    """
    path = files.path(name)
    if length > _BLOCK:
        return FileBody(files, await process.wait(files.pool.run(open, path, "rb", 0)), start, length)
    body = _read_cached(path, start, length)
    return await process.wait(files.pool.run(_read, path, start, length)) if body is None else body


def _read_cached(path: str, start: int, length: int) -> bytes | None:
    """A part of a file if all of it is in memory, else None; does not wait for the disk."""
    buffer = bytearray(length)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bytes(buffer) if os.preadv(fd, [buffer], start, os.RWF_NOWAIT) == length else None
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    finally:
        os.close(fd)


def _read(path: str, start: int, length: int) -> bytes:
    with open(path, "rb", 0) as file:
        file.seek(start)
        block = file.read(length)
    if len(block) != length:
        raise OSError(f"{path} is shorter than its record says")
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
