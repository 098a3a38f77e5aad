"""Makes the parts of a bundle from an image file, as a stream: tar, gzip, AES, split.

Equal files and keys make equal parts, so that an upload that was cut short can go on where it was.  Holes of the image
are left out, compression uses all processors, and memory holds a few blocks and one part.
"""

import hashlib
import os
import secrets
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from M2Crypto import EVP

from nova import exception
from nova.image import archive
from nova.image.pipeline import ahead

#: bytes of a part, as the tools of EC2 make them
PART_SIZE = 10 << 20
#: what one thread compresses at once, and what it knows of what came before
_BLOCK, _WINDOW = 1 << 19, 1 << 15
_LEVEL = 6


@dataclass(frozen=True)
class Secret:
    """The key and the initialization vector of a bundle, 16 bytes each."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)
    iv: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)


class Parts:
    """The parts of an image's bundle, one after the other; afterwards `digest` is the SHA-1 of what is in them.

    :param descriptor: the image, open
    :param name: what it is called in the bundle
    :param told: gets the number of bytes that were read, now and then
    """

    def __init__(self, descriptor: int, name: str, secret: Secret, told: Callable[[int], None] = lambda count: None,
                 part_size: int = PART_SIZE):
        self.size = os.fstat(descriptor).st_size
        self.digest = ""
        self._version = _version(descriptor)
        self._descriptor, self._name, self._secret, self._told = descriptor, name, secret, told
        self._part_size = part_size

    def __iter__(self) -> Iterator[bytes]:
        digest = hashlib.sha1(usedforsecurity=False)  # the format's choice

        def archived() -> Iterator[bytes]:
            for data in archive.write_file(self._descriptor, self._name, self.size):
                digest.update(data)
                self._told(len(data))
                yield data
        with ahead(archived(), 4) as chunks, ahead(gzipped(chunks), 4) as compressed:
            yield from _pieces(_encrypted(compressed, self._secret), self._part_size)
        if _version(self._descriptor) != self._version:
            raise exception.NovaError(f"{self._name} was changed while it was bundled; stop what writes to it, and try "
                                      f"again")
        self.digest = digest.hexdigest()


def gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip stream, blocks of which are compressed at the same time."""
    workers = os.cpu_count() or 1
    yield b"\x1f\x8b\x08\0" + bytes(4) + b"\0\x03"  # RFC 1952: deflate, no name, no time, Unix
    pending: deque[Future[bytes]] = deque()
    checksum = length = 0
    before = b""
    with ThreadPoolExecutor(workers, thread_name_prefix="gzip") as pool:
        for block in _pieces(chunks, _BLOCK):
            checksum, length = zlib.crc32(block, checksum), length + len(block)
            pending.append(pool.submit(_deflate, block, before))
            before = block[-_WINDOW:]
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    yield b"\x03\0" + struct.pack("<LL", checksum, length & 0xffffffff)  # an empty last block


def _pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same data in pieces of one size, but for the last."""
    held = bytearray()
    for data in chunks:
        held += data
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _deflate(block: bytes, before: bytes) -> bytes:
    """A block as a piece of a deflate stream, ending at a whole byte, that may refer to what came before it."""
    options = (_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY)
    compressor = zlib.compressobj(*options, before) if before else zlib.compressobj(*options)
    return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _encrypted(chunks: Iterable[bytes], secret: Secret) -> Iterator[bytes]:
    cipher = EVP.Cipher("aes_128_cbc", secret.key, secret.iv, 1)
    for data in chunks:
        yield cipher.update(data)
    yield cipher.final()


def _version(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def stored_bytes(descriptor: int) -> int:
    """How much of a file is no hole."""
    return sum(length for _, length in archive.data_regions(descriptor, os.fstat(descriptor).st_size))
