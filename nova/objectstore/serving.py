"""The bytes of a stored file on their way out: in one piece if they are few, else block by block."""

import contextlib
import errno
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from urllib.parse import quote

from nova import process
from nova.objectstore.models import Object
from nova.objectstore.storage import Reader, Storage

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


async def body_of(files: Storage, found: Object, start: int, length: int) -> bytes | AsyncIterator[bytes]:
    """A part of an object's file as the body of an answer.

    :param start: offset in bytes
    :param length: in bytes
    :raises FileNotFoundError: the file is gone
    :raises OSError: (EIO) it has not as many bytes as the record says
    """
    if length > _BLOCK:
        return FileBody(files, await process.wait(files.pool.run(files.open, found, start, length)), found, length)
    body = files.read_cached(found, start, length)
    return await process.wait(files.pool.run(_read, files, found, start, length)) if body is None else body


def _read(files: Storage, found: Object, start: int, length: int) -> bytes:
    with contextlib.closing(files.open(found, start, length)) as file:
        blocks = []
        while length and (block := file.read(length)):
            blocks.append(block)
            length -= len(block)
    if length:
        raise _shorter(found)
    return b"".join(blocks)


def _shorter(found: Object) -> OSError:
    return OSError(errno.EIO, "it is shorter than its record says", found.file)


class FileBody(AsyncIterator[bytes]):
    """A part of a file, read block by block in a thread."""

    def __init__(self, files: Storage, file: Reader, found: Object, length: int):
        self._files, self._file, self._found, self._left = files, file, found, length

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        block = await process.wait(self._files.pool.run(self._file.read, min(_BLOCK, self._left)))
        if not block:
            raise _shorter(self._found)
        self._left -= len(block)
        return block

    async def aclose(self) -> None:
        """Close the file."""
        self._file.close()
