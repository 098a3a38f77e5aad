"""A request's body on its way in: decoded, counted, hashed, checked and written while it arrives.

Memory does not grow with the body: what arrives is collected to blocks of about a megabyte, and each block is worked
on in a thread before more is read.  A small body that stays in memory is worked on at once, because to hand it to a
thread takes longer.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nova import exception, process
from nova.auth import signer
from nova.auth.signer import ChunkVerifier, Claim
from nova.objectstore import checksums, errors
from nova.objectstore.chunked import Decoder

BLOCK = 1 << 20
#: up to how many bytes a body may be kept in memory, and be worked on in the event loop
SMALL = 256 << 10
MAX_UPLOAD = 5 << 30  # S3's limit for one PUT


class Target(Protocol):
    """Where the data go."""

    def write(self, data: bytes, /) -> None: ...


@dataclass
class Expected:
    """What a request says of its body.

    `length` is the number of bytes of data (without the aws-chunked frame), None where the request does not tell.
    """

    length: int | None
    decoder: Decoder | None = None
    md5: bytes | None = None
    sha256: str | None = None
    checksums: dict[str, bytes] = field(default_factory=dict)
    trailing: tuple[str, ...] = ()
    wanted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Received:
    """What a body was: its size in bytes, hex digests, and the checksums asked for, base64 by algorithm."""

    size: int
    md5: str
    sha256: str
    checksums: dict[str, str]


def expect(headers: Mapping[str, str], claim: Claim, secret: str, limit: int = MAX_UPLOAD) -> Expected:
    """Read what the headers say of the body.

    :param headers: case-insensitive
    :param claim: who signed the request, and how
    :param secret: with what
    :param limit: how many bytes the data may have
    :raises S3Error: they contradict each other, or the body is too large
    """
    wire_length = content_length(headers)
    length, decoder = wire_length, None
    trailers = frozenset(n.strip().lower() for n in headers.get("x-amz-trailer", "").split(",") if n.strip())
    encodings = [e.strip().lower() for e in headers.get("Content-Encoding", "").split(",")]
    if claim.payload in signer.STREAMING or "aws-chunked" in encodings:
        length = _number(headers.get("x-amz-decoded-content-length"), "x-amz-decoded-content-length")
        if length is None:
            raise errors.MissingContentLength("You must provide the x-amz-decoded-content-length HTTP header.")
        signed = claim.payload in (signer.STREAMING_SIGNED, signer.STREAMING_SIGNED_TRAILER)
        if signed and claim.scheme not in ("v4-header", "v4-query"):
            raise errors.InvalidRequest(reason="Signed chunks need a signature of version 4")
        decoder = Decoder(length, trailers, ChunkVerifier(claim, secret) if signed else None)
    elif trailers:
        raise errors.InvalidRequest(reason="Trailing headers need the aws-chunked encoding")
    if length is not None and length > limit:
        raise errors.EntityTooLarge(limit=limit)
    trailing = tuple(a for a in map(checksums.algorithm_of, sorted(trailers)) if a)
    if len(trailing) != len(trailers):
        raise errors.MalformedTrailer()
    md5 = headers.get("Content-MD5")
    return Expected(
        length, decoder, trailing=trailing, checksums=checksums.given(headers),
        md5=checksums.decode(md5, 16, "Content-MD5") if md5 is not None else None,
        sha256=claim.payload if len(claim.payload) == 64 else None)


def content_length(headers: Mapping[str, str]) -> int | None:
    """The Content-Length, in bytes; None if the body comes in HTTP chunks, 0 if neither is there.

    :raises InvalidRequest: it is no number
    """
    length = _number(headers.get("Content-Length"), "Content-Length")
    if length is None and "chunked" not in headers.get("Transfer-Encoding", "").lower():
        return 0
    return length


def _number(value: str | None, name: str) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 15:
        raise errors.InvalidRequest(reason=f"{name} must be a number of bytes")
    return int(value)


class Receiver:
    """Takes the body piece by piece.

    :param expected: what the request says of it
    :param target: gets the data; it is called in a thread
    :param pool: the threads
    :param limit: how many bytes a body of unknown length may have
    """

    def __init__(self, expected: Expected, target: Target, pool: process.Pool, limit: int = MAX_UPLOAD):
        self._expected, self._target, self._pool, self._limit = expected, target, pool, limit
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._work_under_way: asyncio.Future[Any] | None = None
        self._size = 0
        self._md5, self._sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        self._md5_apart = expected.decoder is None and (expected.length is None or expected.length > BLOCK)
        wanted = {*expected.checksums, *expected.trailing, *expected.wanted}
        self._hashers = {name: checksums.hasher(name) for name in sorted(wanted)}

    async def feed(self, piece: bytes) -> None:
        """Take a piece; returns when there is room for more: a block is worked on while the next one arrives.

        :raises S3Error: the body is not what the request says
        """
        self._waiting.append(piece)
        self._waiting_size += len(piece)
        if self._waiting_size >= BLOCK:
            await self._settle()
            self._begin()

    async def finish(self) -> Received:
        """The body is over: check it.

        :raises S3Error: the body is not what the request says
        """
        if self._work_under_way is None and self._waiting_size <= SMALL and isinstance(self._target, Memory):
            self._md5_apart = False
            self._work(b"".join(self._waiting))
        else:
            await self._settle()
            if self._waiting:
                self._begin()
                await self._settle()
        expected, trailers = self._expected, {}
        if expected.decoder:
            expected.decoder.finish()
            trailers = expected.decoder.trailers
        if expected.length is not None and self._size != expected.length:
            raise errors.IncompleteBody()
        if expected.md5 is not None and expected.md5 != self._md5.digest():
            raise errors.BadDigest(name="Content-MD5")
        if expected.sha256 is not None and expected.sha256 != self._sha256.hexdigest():
            raise errors.XAmzContentSHA256Mismatch()
        given = dict(expected.checksums)
        for algorithm in expected.trailing:
            name = checksums.header_name(algorithm)
            given[algorithm] = checksums.decode(trailers[name], checksums.DIGEST_SIZES[algorithm], name)
        digests = {name: hasher.digest() for name, hasher in self._hashers.items()}
        for algorithm, digest in given.items():
            if digests[algorithm] != digest:
                raise errors.BadDigest(name=algorithm)
        return Received(self._size, self._md5.hexdigest(), self._sha256.hexdigest(),
                        {name: checksums.encode(digest) for name, digest in digests.items()})

    async def close(self) -> None:
        """Wait until nothing more goes to the target, of a body that may have broken off."""
        if self._work_under_way is not None:
            await asyncio.wait([self._work_under_way])

    def _begin(self) -> None:
        block, self._waiting, self._waiting_size = b"".join(self._waiting), [], 0
        work = [process.wait(self._pool.run(self._work, block))]
        if self._md5_apart:  # it takes longer than the rest together
            work.append(process.wait(self._pool.run(self._md5.update, block)))
        self._work_under_way = asyncio.gather(*work)

    async def _settle(self) -> None:
        if self._work_under_way is not None:
            await self._work_under_way

    def _work(self, block: bytes) -> None:
        if self._expected.decoder is None:
            self._take(block)
        else:
            for data in self._expected.decoder.feed(block):
                self._take(data)

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise errors.EntityTooLarge(limit=self._limit)
        if not self._md5_apart:
            self._md5.update(data)
        self._sha256.update(data)
        for hasher in self._hashers.values():
            hasher.update(data)
        self._target.write(data)


class Memory:
    """A target that keeps a small body.

    :param limit: in bytes
    """

    def __init__(self, limit: int):
        self._limit, self._data = limit, bytearray()

    def write(self, data: bytes, /) -> None:
        """Append; :raises RequestEntityTooLarge: it is more than the limit"""
        if len(self._data) + len(data) > self._limit:
            raise exception.RequestEntityTooLarge(limit=self._limit)
        self._data += data

    @property
    def data(self) -> bytes:
        """All of it."""
        return bytes(self._data)
