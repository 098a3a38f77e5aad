"""Unpacks bundled images, as `euca-bundle-image` and `ec2-bundle-image` make them.

A bundle is a manifest (:mod:`nova.image.manifest`) and parts.  The parts, put together, are the image in a gzipped tar
archive (:mod:`nova.image.archive`), encrypted with AES-128-CBC; the manifest has the key and the initialization vector,
encrypted with the cloud's RSA key (PKCS #1 v1.5) and written in hexadecimal, the SHA-1 of each part and of the archive,
and the sizes.  It all runs as one pipeline over the data: nothing but the image is written, and that once.
"""

import contextlib
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from M2Crypto import EVP, RSA

from nova import exception
from nova.image import archive
from nova.image.manifest import MAX_MANIFEST, Manifest, read_manifest
from nova.image.pipeline import ahead

__all__ = ["MAX_MANIFEST", "Manifest", "Opener", "PartFile", "read_manifest", "unbundle", "write"]


class PartFile(Protocol):
    """The bytes of a part."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; none at the end."""


#: opens a part by its name, as a stream of its bytes
Opener = Callable[[str], AbstractContextManager[PartFile]]

#: what is read, inflated and written at once; how many of those wait between two steps
_READ, _INFLATE, _WAITING = 1 << 18, 1 << 18, 8
#: parts up to this size are checked before anything of them is used; the tools' have 10 MiB
_HELD = 16 << 20
#: zeros in whole blocks of this size become holes
_BLOCK = 4096
_ZEROS = bytes(_INFLATE)


def unbundle(manifest: Manifest, open_part: Opener, private_key: str, target: str,
             for_user: bool = False) -> tuple[str, int]:
    """Decrypt, check and unpack a bundle, without more memory than some buffers.

    Its signature is not looked at: :func:`nova.image.manifest.check_signature`.

    :param open_part: opens a part; it is read from its beginning to its end, and once more if it can be
    :param private_key: path of the private key (PEM) that the bundle is encrypted for: the cloud's
    :param target: path of the file to write; it must not exist, and does not after an error
    :param for_user: the private key is that of the user who made the bundle
    :returns: the image's SHA-256 in hexadecimal, and its size in bytes
    :raises exception.InvalidManifest: a digest or size is wrong, it is encrypted for somebody else, or it does not
        contain one regular file of the size that the manifest gives
    """
    key, iv = _decrypt_keys(manifest, private_key, for_user)
    digest = hashlib.sha1(usedforsecurity=False)  # the format's choice; the whole image gets a SHA-256
    with ahead(_decrypted(_checked(manifest, open_part), key, iv), _WAITING) as compressed:
        with ahead(_gunzipped(compressed), _WAITING) as chunks:
            try:
                sha256 = write(archive.read_file(_hashed(chunks, digest), manifest.size), manifest.size, target)
                # the first euca2ools noted the digest of the image, not of the archive
                if manifest.digest != digest.hexdigest() and manifest.digest != _sha1(target):
                    raise exception.InvalidManifest(reason="the image's digest is not what the manifest says")
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
                raise
    return sha256, manifest.size


def write(pieces: Iterable[tuple[int, memoryview]], size: int, target: str) -> str:
    """Write a file from pieces of data with their offsets, ascending; zeros and what is left out become holes.

    :param target: must not exist
    :returns: its SHA-256 in hexadecimal; the file is on the disk
    """
    digest, position = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for offset, data in pieces:
            _hash_zeros(digest, offset - position)
            digest.update(data)
            for begin, end in _data_in(data.tobytes(), offset):
                written = begin
                while written < end:
                    written += os.pwrite(descriptor, data[written:end], offset + written)
            position = offset + len(data)
        _hash_zeros(digest, size - position)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _data_in(data: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Where data is not zeros: beginnings and ends, at the blocks of the file that it has an offset in."""
    if data == (_ZEROS if len(data) == len(_ZEROS) else bytes(len(data))):
        return
    begin = position = 0
    end = min(-offset % _BLOCK or _BLOCK, len(data))  # of the first block, which may be part of one
    while position < len(data):
        if data[position] == 0 and data[position:end] == _ZEROS[:end - position]:
            if begin < position:
                yield begin, position
            begin = end
        position, end = end, min(end + _BLOCK, len(data))
    if begin < position:
        yield begin, position


def _hash_zeros(digest: "hashlib._Hash", count: int) -> None:
    while count > 0:
        digest.update(_ZEROS if count >= len(_ZEROS) else _ZEROS[:count])
        count -= len(_ZEROS)


def _sha1(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


def _decrypt_keys(manifest: Manifest, private_key: str, for_user: bool) -> tuple[bytes, bytes]:
    keys = manifest.for_user if for_user else manifest.for_cloud
    if keys is None:
        raise exception.InvalidManifest(reason="it has no key for the user who made it")
    rsa = RSA.load_key(private_key)
    return _decrypt(rsa, keys.key, for_user), _decrypt(rsa, keys.iv, for_user)


def _decrypt(rsa: RSA.RSA, data: bytes, for_user: bool) -> bytes:
    try:
        digits = rsa.private_decrypt(data, RSA.pkcs1_padding)  # None where the padding is wrong
    except RSA.RSAError:
        digits = None
    if digits and re.fullmatch(rb"[0-9a-fA-F]{32}", digits):
        return bytes.fromhex(digits.decode())
    if for_user:
        raise exception.InvalidManifest(reason="it is not encrypted for this private key; take the one that it was "
                                               "bundled with")
    raise exception.InvalidManifest(reason="it is not encrypted for this cloud; bundle it with the certificate "
                                           "that novarc names as EUCALYPTUS_CERT")


def _checked(manifest: Manifest, open_part: Opener) -> Iterator[bytes]:
    """The parts' data, of each when its digest is known to be right: a file is read twice, of which the second time
    comes from the kernel's memory; another stream is held, if it is not too large.

    A file that changes in between does not go unseen: the archive has a digest, too.
    """
    left = manifest.bundled_size
    for part in manifest.parts:
        digest, held = hashlib.sha1(usedforsecurity=False), []
        with open_part(part.name) as file:
            again = file if isinstance(file, io.IOBase) and file.seekable() else None
            while data := file.read(_READ):
                digest.update(data)
                left -= len(data)
                if left < 0:
                    raise exception.InvalidManifest(reason=_WRONG_BUNDLED_SIZE)
                if again is not None:
                    continue
                held.append(data)
                if len(held) * _READ > _HELD:
                    yield from held
                    held.clear()
            if digest.hexdigest() != part.sha1:
                raise exception.InvalidManifest(reason=f"the digest of part {part.name} is wrong")
            if again is not None:
                again.seek(0)
                while data := file.read(_READ):
                    yield data
            yield from held
    if left:
        raise exception.InvalidManifest(reason=_WRONG_BUNDLED_SIZE)


_WRONG_BUNDLED_SIZE = "the parts together have not the bundled size that the manifest says"


def _decrypted(chunks: Iterator[bytes], key: bytes, iv: bytes) -> Iterator[bytes]:
    cipher = EVP.Cipher("aes_128_cbc", key, iv, 0)
    for data in chunks:
        yield cipher.update(data)
    try:
        yield cipher.final()
    except EVP.EVPError as error:
        raise exception.InvalidManifest(reason="the parts cannot be decrypted with the manifest's key") from error


def _gunzipped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What is in one or more gzip streams, one behind the other, with zeros behind them, as gzip itself takes them."""
    unzip, begun = zlib.decompressobj(zlib.MAX_WBITS | 16), False
    try:
        for data in chunks:
            while data:
                if unzip.eof:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
                begun = True
                out = unzip.decompress(data, _INFLATE)
                data = unzip.unused_data if unzip.eof else unzip.unconsumed_tail
                yield out
            while begun and not unzip.eof and (out := unzip.decompress(b"", _INFLATE)):
                yield out
    except zlib.error as error:
        raise exception.InvalidManifest(reason=f"the parts are not gzipped: {error}") from error
    if not unzip.eof:
        raise exception.InvalidManifest(reason="the bundle is cut off")


def _hashed(chunks: Iterator[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for data in chunks:
        digest.update(data)
        yield data
