"""What keeps the bytes of the object store: the contract that each implementation fulfils.

A file is written once, whole or not at all, and never changed.  It has its name only when all of it and its
description (nova.objectstore.description) will survive a crash; only then is it named in a record.  A crash in between
leaves a file that no record names; the sweep removes those.  nova.objectstore.files keeps them in a directory,
nova.objectstore.s3files in a bucket of another S3; nothing else in the object store knows which of them it has.

Everything here blocks, and callers use :attr:`Storage.pool`, but for what is a coroutine.  Beside the errors that each
call names, any may raise :class:`OSError` (ENOSPC or EDQUOT: there is no room) and
:class:`nova.exception.Unavailable` (the files cannot be reached now, and nothing is known of them); none raises an
S3Error, which would say that no record names what was made.
"""

import asyncio
import logging
import math
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from nova import exception, process
from nova.datastore import Record
from nova.objectstore.description import ASIDE
from nova.objectstore.models import Object, Part

log = logging.getLogger(__name__)

#: how many files may wait for their removal
_NEEDLESS = 1000


class Reader(Protocol):
    """A file, or a range of it, that is read from its beginning to its end."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; none at the end."""

    def close(self) -> None:
        """Let go of it."""


class Writer(ABC):
    """A file that is being written; it vanishes unless :meth:`publish` is called.

    `name` is what a record calls it.
    """

    name: str

    @abstractmethod
    def write(self, data: bytes, /) -> None:
        """Append."""

    def append(self, parts: Sequence[Part]) -> bool:
        """Append the files of parts without their bytes passing through here, and nothing else; whether that could be.

        :param parts: none but the last has less than 5 MiB
        :raises FileNotFoundError: one of the files is gone
        """
        return False

    @abstractmethod
    def publish(self, record: Record) -> None:
        """Have all of it survive a crash, and give it its name.

        :param record: what will name it, which is what it is described as
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it; what was not published is gone.  May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Register(Protocol):
    """Descriptions of records that have no file, by the record's id."""

    def put(self, record: Record) -> None:
        """Describe a record, unless a later one is described."""

    def get(self, id: str) -> Record | None:
        """A record, None where it is not described; :raises description.Unreadable:"""

    def remove(self, record: Record) -> None:
        """Forget a record that is gone; not another one that has its id now."""

    def ids(self, before: float = math.inf) -> list[str]:
        """The ids of all that are described, sorted; :param before: only since before that, in seconds since 1970"""

    def remove_unfinished(self, limit: float) -> None:
        """Remove what was being written before `limit`, in seconds since 1970."""


class Storage(ABC):
    """The files.

    `pool` has the threads for them, `buckets` and `uploads` describe what has no file.  `place` says to people where
    they are.
    """

    pool: process.Pool
    buckets: Register
    uploads: Register
    place: str
    #: whether an nginx in front can give out a file by its name
    nginx_has_them: bool = False
    #: what is to be removed soon, and the task that does it
    _needless: tuple[str, ...] = ()
    _remover: asyncio.Task[None] | None = None

    # -- what is new --

    def name(self, owner: str) -> str:
        """The name of a new file.

        :param owner: one letter and a hyphen, then the id of the record that will name it, which the sweep looks up
        """
        name = f"{owner}-{uuid.uuid4().hex}"
        return f"{name[2:4]}/{name}"

    @abstractmethod
    def new(self, owner: str, size: int = 0) -> Writer:
        """Begin a file.

        :param owner: as for :meth:`name`
        :param size: how many bytes it will have, as far as that is known
        """

    @abstractmethod
    def put(self, record: Object | Part, data: bytes) -> None:
        """Make the file of a record, under the name that the record has: what a writer would do with a small body."""

    async def put_soon(self, record: Object | Part, data: bytes) -> None:
        """:meth:`put` for who is in the loop; several at a time may share the work."""
        await process.wait(self.pool.run(self.put, record, data))

    @abstractmethod
    def link(self, file: str, record: Object) -> None:
        """Make the file that `record` names, of the same bytes as another one, none of which pass through here.

        :raises FileNotFoundError: the other one is gone
        """

    @abstractmethod
    def take(self, path: str, record: Object) -> None:
        """Make a finished file of somebody else's the one that `record` names; it is gone from its place afterwards.

        :param path: its absolute path
        """

    def mark(self, record: Object) -> None:
        """Make the empty file of a delete marker."""
        self.put(record, b"")

    # -- what is there --

    @abstractmethod
    def open(self, found: Object | Part, start: int = 0, length: int | None = None) -> Reader:
        """Open the file of a record.

        :param start: offset in bytes
        :param length: in bytes; None for all that follows
        :raises FileNotFoundError: it is gone
        :raises OSError: (EIO) it has not as many bytes as the record says
        """

    def read_cached(self, found: Object, start: int, length: int) -> bytes | None:
        """A range of a file if it can be had without waiting, else None; may be called in the loop.  Errors as
        :meth:`open`."""
        return None

    @abstractmethod
    def read(self, file: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a file, block by block.

        :raises FileNotFoundError: the file is gone
        """

    @abstractmethod
    def reread(self, file: str) -> Iterator[bytes]:
        """The bytes of a file as they would be after a restart, not as a cache has them; errors as :meth:`read`."""

    @abstractmethod
    def local(self, found: Object, directory: str) -> str:
        """The path of a file of this machine with the bytes of an object, to be read and not changed.

        :param directory: where it may be put if there is none; the caller removes it with all that is in it
        :raises FileNotFoundError: the file is gone
        """

    @abstractmethod
    def exists(self, file: str) -> bool:
        """Whether a file is there."""

    @abstractmethod
    def names(self, older_than: float) -> Iterator[str]:
        """The files that got their name more than `older_than` seconds ago, and descriptions that lack their file."""

    # -- what it is described as --

    @abstractmethod
    def describe(self, record: Object | Part) -> None:
        """Describe the file of a record that was changed, unless it is gone; later changes are not undone."""

    @abstractmethod
    def description(self, file: str) -> Record:
        """What a file is described as; :raises description.Unreadable:"""

    # -- what goes --

    @abstractmethod
    def remove(self, *files: str) -> None:
        """Remove files that no record names any more; they may be gone already."""

    async def remove_soon(self, *files: str) -> None:
        """:meth:`remove` after a while, with others; only when very many wait for that, this does, too.  What cannot be
        removed is left to the sweep."""
        self._needless += files
        if self._needless and self._remover is None:
            self._remover = asyncio.ensure_future(self._remove_needless())
        if len(self._needless) > _NEEDLESS and self._remover is not None:
            await asyncio.shield(self._remover)

    async def _remove_needless(self) -> None:
        try:
            while self._needless:
                files, self._needless = self._needless, ()
                await discard(self, *files)
        finally:
            self._remover = None

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Remove what writers have left that died long ago and that has no name."""

    @abstractmethod
    def quarantine(self, record: Object | Part) -> None:
        """Put a damaged file, and what it is described as, where nobody reads it."""

    @abstractmethod
    def quarantined(self) -> list[str]:
        """What is in quarantine and still has its record: names for :meth:`description`."""

    # -- all of them --

    @abstractmethod
    def id(self) -> str:
        """What all the files together are called; empty: they have no name yet."""

    @abstractmethod
    def set_id(self, id: str) -> None:
        """Name them, unless somebody was faster."""

    def close(self) -> None:
        """Let the threads end."""
        self.pool.close()


def read_small(files: Storage, found: Object, limit: int) -> bytes:
    """The bytes of an object, no more than `limit` of them; blocks.

    :raises FileNotFoundError: the file is gone
    """
    return b"".join(files.read(found.file, 0, min(found.size, limit)))


def owner_of(file: str) -> tuple[str, str]:
    """The letter and the id of the record for which a file was made; two empty strings for no such file."""
    name = os.path.basename(file).removesuffix(ASIDE)
    letter, _, rest = name.partition("-")
    id, _, unique = rest.rpartition("-")
    return (letter, id) if id and unique else ("", "")


async def discard(files: Storage, *names: str) -> None:
    """Remove files that no record names any more; what cannot be removed is left to the sweep.

    What was done to the records stands, so the caller has nothing to tell its client of it.
    """
    try:
        await process.wait(files.pool.run(files.remove, *names))
    except (OSError, RuntimeError, exception.Unavailable) as error:  # RuntimeError: the threads have ended
        log.warning("%s: left to the sweep: %s", ", ".join(names), error)


class Undo:
    """Removes files that were published when the block ends in an error that says that no record names them.

    After any other error (the datastore did not answer, say) a record may name them, and the sweep decides.
    """

    def __init__(self, files: Storage, *names: str):
        self._files, self._names = files, names

    async def __aenter__(self) -> "Undo":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        if isinstance(error, exception.S3Error):
            await discard(self._files, *self._names)
