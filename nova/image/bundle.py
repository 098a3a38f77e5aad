"""Bundled images, as `euca-bundle-image` and `ec2-bundle-image` make them.

A bundle is a manifest (XML) and parts.  The parts, put together, are the image as a gzipped tar archive, encrypted
with AES-128-CBC; the manifest has the key and the initialization vector, encrypted with the cloud's RSA key (PKCS #1
v1.5) and written in hexadecimal, and the SHA-1 of each part.
"""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from M2Crypto import EVP, RSA

from nova import exception

#: the most that is believed of a manifest, in bytes, and of an unpacked image, in bytes
MAX_MANIFEST = 4 << 20
MAX_IMAGE = 1 << 40

_HEX = re.compile(r"[0-9a-fA-F]+")


@dataclass(frozen=True)
class Part:
    """One part: its file name, beside the manifest in the bucket, and its SHA-1 in hexadecimal."""

    name: str
    sha1: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.  `kind` is machine, kernel or ramdisk; `size` the unpacked image's, in bytes;
    `encrypted_key` and `encrypted_iv` are as they stand there, bytes of hexadecimal undone."""

    kind: str
    architecture: str
    kernel_id: str
    ramdisk_id: str
    size: int
    encrypted_key: bytes
    encrypted_iv: bytes
    parts: tuple[Part, ...]


class _PlainTree(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities, in whatever encoding they come."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called by the parser before it reads what is declared."""
        raise exception.InvalidManifest(reason="document type declarations are not allowed")


def read_manifest(data: bytes) -> Manifest:
    """Parse a manifest; :raises exception.InvalidManifest: with what is wrong"""
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_PlainTree()))
    except ElementTree.ParseError as error:
        raise exception.InvalidManifest(reason=f"it is no XML: {error}") from error

    def text(path: str, required: bool = True) -> str:
        found = (root.findtext(path) or "").strip()
        if required and not found:
            raise exception.InvalidManifest(reason=f"it has no {path}")
        return found

    kernel, ramdisk = text("machine_configuration/kernel_id", False), text("machine_configuration/ramdisk_id", False)
    parts = []
    for element in root.findall("image/parts/part"):
        part = Part((element.findtext("filename") or "").strip(), (element.findtext("digest") or "").strip().lower())
        if not part.name or "/" in part.name or not re.fullmatch(r"[0-9a-f]{40}", part.sha1):
            raise exception.InvalidManifest(reason="a part has no file name or no SHA-1 digest")
        parts.append(part)
    size = text("image/size")
    if not parts or not re.fullmatch(r"[0-9]{1,15}", size) or int(size) > MAX_IMAGE:
        raise exception.InvalidManifest(reason="it has no parts or no sensible size")
    return Manifest(
        kind="kernel" if kernel == "true" else "ramdisk" if ramdisk == "true" else "machine",
        architecture=text("machine_configuration/architecture", False) or "x86_64",
        kernel_id="" if kernel == "true" else kernel, ramdisk_id="" if ramdisk == "true" else ramdisk,
        size=int(size), encrypted_key=_unhex(text("image/ec2_encrypted_key")),
        encrypted_iv=_unhex(text("image/ec2_encrypted_iv")), parts=tuple(parts))


def _unhex(digits: str) -> bytes:
    if not _HEX.fullmatch(digits) or len(digits) % 2:
        raise exception.InvalidManifest(reason="the encrypted key or initialization vector is not hexadecimal")
    return bytes.fromhex(digits)


def unbundle(manifest: Manifest, open_part: Callable[[str], IO[bytes]], private_key: str, target: str) -> None:
    """Decrypt and unpack a bundle, without more memory than a few buffers.

    :param open_part: opens a part by its name
    :param private_key: path of the cloud's private key (PEM)
    :param target: path of the file to write; it must not exist
    :raises exception.InvalidManifest: a part's digest is wrong, it is encrypted for another cloud, or it does not
        contain one regular file of the size that the manifest gives
    """
    rsa = RSA.load_key(private_key)
    key = _decrypt(rsa, manifest.encrypted_key)
    iv = _decrypt(rsa, manifest.encrypted_iv)
    with tempfile.TemporaryFile(dir=os.path.dirname(target)) as pipe:  # tarfile reads; a file keeps the memory flat
        for data in _gunzipped(_decrypted(_checked(manifest, open_part), key, iv), manifest.size):
            pipe.write(data)
        pipe.seek(0)
        extract(pipe, manifest.size, target)


def extract(archive: IO[bytes], size: int, target: str) -> None:
    """Write the one file of a tar archive to `target`, which must not exist.

    :raises exception.InvalidManifest: it is no archive of one regular file of `size` bytes
    """
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            member = tar.next()
            if member is None or not member.isreg() or tar.next() is not None:
                raise exception.InvalidManifest(reason="the bundle must hold exactly one regular file")
            source = tar.extractfile(member)
            if source is None or member.size != size:
                raise exception.InvalidManifest(reason="the image's size is not what the manifest says")
            with open(target, "xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile lets some numbers that are none through
        raise exception.InvalidManifest(reason=f"the bundle is no tar archive: {error}") from error


def _decrypt(rsa: RSA.RSA, data: bytes) -> bytes:
    try:
        digits = rsa.private_decrypt(data, RSA.pkcs1_padding)  # None where the padding is wrong
    except RSA.RSAError:
        digits = None
    if digits and re.fullmatch(rb"[0-9a-fA-F]{32}", digits):
        return bytes.fromhex(digits.decode())
    raise exception.InvalidManifest(reason="it is not encrypted for this cloud; bundle it with the certificate "
                                           "that EC2_CERT's novarc names as EUCALYPTUS_CERT")


def _checked(manifest: Manifest, open_part: Callable[[str], IO[bytes]]) -> Iterator[bytes]:
    for part in manifest.parts:
        digest = hashlib.sha1(usedforsecurity=False)  # the format's choice; the whole image gets a SHA-256
        with open_part(part.name) as file:
            while data := file.read(1 << 20):
                digest.update(data)
                yield data
        if digest.hexdigest() != part.sha1:
            raise exception.InvalidManifest(reason=f"the digest of part {part.name} is wrong")


def _decrypted(chunks: Iterator[bytes], key: bytes, iv: bytes) -> Iterator[bytes]:
    cipher = EVP.Cipher("aes_128_cbc", key, iv, 0)
    for data in chunks:
        yield cipher.update(data)
    try:
        yield cipher.final()
    except EVP.EVPError as error:
        raise exception.InvalidManifest(reason="the parts cannot be decrypted with the manifest's key") from error


def _gunzipped(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    unzip, total = zlib.decompressobj(zlib.MAX_WBITS | 16), 0
    most = size + (1 << 20)  # tar's own blocks
    try:
        for data in chunks:
            while data and not unzip.eof:
                out = unzip.decompress(data, 1 << 20)
                data = unzip.unconsumed_tail
                total += len(out)
                if total > most:
                    raise exception.InvalidManifest(reason="the bundle holds more than the manifest says")
                yield out
        yield unzip.flush()
    except zlib.error as error:
        raise exception.InvalidManifest(reason=f"the parts are not gzipped: {error}") from error
    if not unzip.eof:
        raise exception.InvalidManifest(reason="the bundle is cut off")
