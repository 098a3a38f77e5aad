"""Bundles in a directory: parts beside their manifest, which is written last and so tells that they are whole."""

import contextlib
import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nova import exception
from nova.bundler.account import Account, Misused, Refused, encrypt, signer
from nova.bundler.making import Parts, Secret
from nova.image import bundle
from nova.image.manifest import MAX_MANIFEST, Keys, Manifest, Part, check_signature, read_manifest, write_manifest

SUFFIX = ".manifest.xml"
BUNDLER = "nova-bundle"


@dataclass(frozen=True)
class Description:
    """What a manifest is to say beside what comes from the image."""

    name: str
    kind: str = "machine"
    architecture: str = "x86_64"
    kernel_id: str = ""
    ramdisk_id: str = ""
    block_devices: tuple[tuple[str, str], ...] = ()
    product_codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Papers:
    """The paths of the user's private key and certificate, and of the cloud's certificate."""

    private_key: str
    certificate: str
    cloud_certificate: str

    @classmethod
    def of(cls, account: Account, private_key: str | None, certificate: str | None,
           cloud_certificate: str | None) -> "Papers":
        """Those that are given, else novarc's; :raises Misused: one is missing"""
        return cls(account.file(private_key, "EC2_PRIVATE_KEY", "--private-key"),
                   account.file(certificate, "EC2_CERT", "--cert"),
                   account.file(cloud_certificate, "EUCALYPTUS_CERT", "--cloud-cert"))


def manifest_of(description: Description, papers: Papers, user: str, made: Parts, secret: Secret,
                parts: list[Part], bundled_size: int) -> bytes:
    """The signed manifest of parts that were made."""
    def keys(certificate: str) -> Keys:
        return Keys(encrypt(certificate, secret.key), encrypt(certificate, secret.iv))
    return write_manifest(
        Manifest(kind=description.kind, architecture=description.architecture, size=made.size,
                 bundled_size=bundled_size, digest=made.digest, for_cloud=keys(papers.cloud_certificate),
                 for_user=keys(papers.certificate), parts=tuple(parts), name=description.name, user=user,
                 kernel_id=description.kernel_id, ramdisk_id=description.ramdisk_id,
                 block_devices=dict(description.block_devices), product_codes=description.product_codes),
        BUNDLER, signer(papers.private_key, papers.certificate))


def sha1(data: bytes) -> str:
    """The digest that a manifest has of a part."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def part_name(name: str, index: int) -> str:
    """The file name of a part."""
    return f"{name}.part.{index:03d}"


def write(image: int, directory: str, description: Description, papers: Papers, user: str, force: bool,
          told: Callable[[int], None]) -> str:
    """Bundle an image into a directory.

    :param image: its descriptor
    :param force: replace a bundle of this name
    :returns: the path of the manifest
    :raises Refused: there is a bundle of this name, or the directory cannot be written
    """
    path = os.path.join(directory, description.name + SUFFIX)
    if os.path.exists(path) and not force:
        raise Refused(f"{path} is there already; remove it, give --force to replace it, or another --name")
    signer(papers.private_key, papers.certificate)  # what is wrong with them is said before the long work
    try:
        os.makedirs(directory, exist_ok=True)
        _remove(directory, description.name)
        try:
            return _write(image, directory, path, description, papers, user, told)
        except BaseException:
            _remove(directory, description.name)
            raise
    except OSError as error:
        raise Refused(f"{error.filename or directory}: {error.strerror}") from error


def _write(image: int, directory: str, path: str, description: Description, papers: Papers, user: str,
           told: Callable[[int], None]) -> str:
    secret, parts, total = Secret(), list[Part](), 0
    made = Parts(image, description.name, secret, told)
    for data in made:
        name = part_name(description.name, len(parts))
        with open(os.path.join(directory, name), "xb") as file:
            file.write(data)
        parts.append(Part(name, sha1(data)))
        total += len(data)
    write_whole(path, manifest_of(description, papers, user, made, secret, parts, total))
    return path


def write_whole(path: str, data: bytes) -> None:
    """Write a file that is there complete or not at all."""
    with open(path + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


def _remove(directory: str, name: str) -> None:
    """Remove a bundle, or what is left of one; the manifest first."""
    path = os.path.join(directory, glob.escape(name))
    for found in (*glob.glob(path + SUFFIX + "*"), *glob.glob(path + ".part.[0-9]*")):
        os.unlink(found)


def read(path: str) -> Manifest:
    """The manifest in a file; :raises Refused: it cannot be read"""
    try:
        with open(path, "rb") as file:
            return read_manifest(file.read(MAX_MANIFEST + 1))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    except exception.InvalidManifest as error:
        raise Refused(f"{path}: {error.message}") from error


def unpack(path: str, target: str, private_key: str, certificate: str | None, force: bool,
           told: Callable[[int], None]) -> str:
    """Get the image back from a bundle in a directory.

    :param path: of the manifest
    :param private_key: the user's, that it was bundled with
    :param certificate: whose signature the manifest must have; None: nobody looks
    :returns: the image's SHA-256
    :raises Refused: something is wrong with it, or the target is there
    """
    manifest, directory = read(path), os.path.dirname(path)
    if os.path.exists(target) and not force:
        raise Refused(f"{target} is there already; give --force to replace it, or another --output")

    def open_part(name: str):
        return _Told(open(os.path.join(directory, name), "rb"), told)
    try:
        if certificate is not None:
            with open(certificate, "rb") as file:
                check_signature(manifest, [file.read()])
        _unlink(target + ".new")
        sha256, _ = bundle.unbundle(manifest, open_part, private_key, target + ".new", for_user=True)
        os.rename(target + ".new", target)
        return sha256
    except exception.InvalidManifest as error:
        raise Refused(f"{path}: {error.message}") from error
    except OSError as error:
        raise Refused(f"{error.filename or target}: {error.strerror}") from error


class _Told:
    """A file that tells how much is read of it."""

    def __init__(self, file, told: Callable[[int], None]):
        self._file, self._told = file, told

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._told(len(data))
        return data

    def seekable(self) -> bool:
        return False  # what is read twice would be told twice

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._file.close()


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """An image file, open; :raises Misused: it cannot be read, or is none"""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise Misused(f"{path}: {error.strerror}") from error
    try:
        if not os.path.isfile(path):
            raise Misused(f"{path}: not a file; copy a device or directory into an image file first")
        yield descriptor
    finally:
        os.close(descriptor)
