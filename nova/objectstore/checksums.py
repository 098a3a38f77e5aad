"""Checksums of objects: the algorithms that S3 clients ask for, and what a request says about them.

Rules: Amazon S3 user guide, "Checking object integrity".  Values are base64 of the big-endian digest.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import anycrc

from nova.objectstore import errors

FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"
#: how long each algorithm's digest is, in bytes
DIGEST_SIZES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}
ALGORITHMS = tuple(DIGEST_SIZES)
#: what headers say of checksums
_NO_SUMS = frozenset(("algorithm", "mode", "type"))
_CRC_MODELS = {"CRC32": anycrc.Model("CRC32"), "CRC32C": anycrc.Model("CRC32C"),
               "CRC64NVME": anycrc.Model("CRC64-NVME")}


class Hasher(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    def __init__(self, algorithm: str):
        self._model, self._size = _CRC_MODELS[algorithm], DIGEST_SIZES[algorithm]
        self._value = self._model.calc(b"")

    def update(self, data: bytes, /) -> None:
        self._value = self._model.calc(data, self._value)

    def digest(self) -> bytes:
        return int(self._value).to_bytes(self._size, "big")


def hasher(algorithm: str) -> Hasher:
    """A new hash object for one of ALGORITHMS."""
    if algorithm in _CRC_MODELS:
        return _Crc(algorithm)
    return hashlib.sha1() if algorithm == "SHA1" else hashlib.sha256()


def header_name(algorithm: str) -> str:
    """The header that carries this checksum."""
    return f"x-amz-checksum-{algorithm.lower()}"


def members(sums: Mapping[str, str]) -> dict[str, str]:
    """Checksums by algorithm, under the names that they have in documents."""
    return {f"Checksum{name}": value for name, value in sums.items()}


def algorithm_of(header: str) -> str | None:
    """The algorithm whose checksum the header of this name carries; None if it is no such header."""
    name = header.strip().lower().removeprefix("x-amz-checksum-").upper()
    return name if header.strip().lower().startswith("x-amz-checksum-") and name in DIGEST_SIZES else None


def encode(digest: bytes) -> str:
    """A digest as headers carry it."""
    return base64.b64encode(digest).decode()


def decode(value: str, size: int, name: str) -> bytes:
    """A digest from a header.

    :param size: how many bytes it must have
    :param name: what the error calls it
    :raises InvalidDigest: it is not base64 of so many bytes
    """
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise errors.InvalidDigest(name=name) from None
    if len(digest) != size:
        raise errors.InvalidDigest(name=name)
    return digest


def given(headers: Mapping[str, str]) -> dict[str, bytes]:
    """The checksums that a request's headers give for its body, by algorithm.

    :raises InvalidDigest:
    :raises NotImplementedYet: of an algorithm of which nobody would check it
    """
    found = {}
    for name in headers:
        algorithm = name.lower().removeprefix("x-amz-checksum-")
        if algorithm != name.lower() and algorithm not in _NO_SUMS and algorithm.upper() not in DIGEST_SIZES:
            raise errors.NotImplementedYet(what=f"The checksum {algorithm[:32]}")
    for algorithm, size in DIGEST_SIZES.items():
        value = headers.get(header_name(algorithm))
        if value is not None:
            found[algorithm] = decode(value, size, header_name(algorithm))
    return found


def named(value: str) -> str:
    """The algorithm that a header names.

    :raises InvalidRequest: it is none
    """
    if value.upper() not in DIGEST_SIZES:
        raise errors.InvalidRequest(reason=f"Checksum algorithm provided is unsupported: {value[:32]}")
    return value.upper()


def combined(algorithm: str, parts: Iterable[tuple[str, int]]) -> str:
    """The CRC of bytes that follow one another.

    :param parts: the CRC and the size in bytes of each piece
    """
    model, whole = _CRC_MODELS[algorithm], 0
    for at, (value, size) in enumerate(parts):
        digest = int.from_bytes(base64.b64decode(value), "big")
        whole = int(model.combine(whole, digest, size)) if at else digest
    return encode(whole.to_bytes(DIGEST_SIZES[algorithm], "big"))


def composite(algorithm: str, part_digests: Iterable[str]) -> str:
    """The checksum of checksums of an object that was uploaded in parts."""
    digests = [base64.b64decode(d) for d in part_digests]
    whole = hasher(algorithm)
    whole.update(b"".join(digests))
    return f"{encode(whole.digest())}-{len(digests)}"
