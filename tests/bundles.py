"""Bundled images made with tar, gzip, openssl and split, as euca-bundle-image makes them; nothing of Nova's is used."""

import hashlib
import os
import secrets
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_MANIFEST = """<?xml version="1.0" encoding="UTF-8"?>
<manifest><version>2007-10-10</version>
<bundler><name>tests</name><version>1</version><release>1</release></bundler>
{signed}{signature}</manifest>
"""
_MACHINE = "<machine_configuration><architecture>{architecture}</architecture>{ids}</machine_configuration>"
_IMAGE = """<image><name>{name}</name><user>proj</user><type>{kind}</type>
<digest algorithm="SHA1">{digest}</digest><size>{size}</size><bundled_size>{bundled_size}</bundled_size>
<ec2_encrypted_key algorithm="AES-128-CBC">{key}</ec2_encrypted_key>
<user_encrypted_key algorithm="AES-128-CBC">{key}</user_encrypted_key>
<ec2_encrypted_iv>{iv}</ec2_encrypted_iv><user_encrypted_iv>{iv}</user_encrypted_iv>
<parts count="{count}">{parts}</parts></image>"""


def run(*argv: str, input: bytes | None = None) -> bytes:
    """What a command says; it must succeed."""
    return subprocess.run(argv, input=input, stdout=subprocess.PIPE, check=True, timeout=60).stdout


@dataclass
class Bundle:
    """A manifest and parts in a directory.  A test changes what it wants to be wrong, and writes the manifest.

    `signer` is the path of the private key that signs it, `extra` stands in machine_configuration.
    """

    directory: Path
    certificate: str
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    iv: str = field(default_factory=lambda: secrets.token_hex(16))
    architecture: str = "x86_64"
    kernel_id: str = ""
    ramdisk_id: str = ""
    size: int | str = 0
    bundled_size: int | str = 0
    digest: str = "0" * 40
    signer: str = ""
    kind: str = "machine"
    extra: str = ""
    part_size: int = 100_000
    parts: list[tuple[str, str]] = field(default_factory=list)
    name: str = "image"

    @property
    def manifest(self) -> bytes:
        """The manifest as it stands."""
        ids = "".join(f"<{tag}>{id}</{tag}>" for tag, id in (("kernel_id", self.kernel_id),
                                                             ("ramdisk_id", self.ramdisk_id)) if id)
        parts = "".join(f'<part index="{n}"><filename>{name}</filename>'
                        f'<digest algorithm="SHA1">{digest}</digest></part>'
                        for n, (name, digest) in enumerate(self.parts))
        signed = _MACHINE.format(architecture=self.architecture, ids=ids + self.extra) + _IMAGE.format(
            name=self.name, kind=self.kind, digest=self.digest, size=self.size, bundled_size=self.bundled_size,
            key=self.encrypt(self.key), iv=self.encrypt(self.iv), count=len(self.parts), parts=parts)
        signature = f"<signature>{self.sign(signed.encode())}</signature>" if self.signer else ""
        return _MANIFEST.format(signed=signed, signature=signature).encode()

    def sign(self, data: bytes) -> str:
        """The signature of data, in hexadecimal."""
        return run("openssl", "dgst", "-sha1", "-sign", self.signer, input=data).hex()

    def encrypt(self, digits: str) -> str:
        """Hexadecimal digits, encrypted for the certificate, in hexadecimal."""
        return run("openssl", "pkeyutl", "-encrypt", "-certin", "-inkey", self.certificate, "-pkeyopt",
                   "rsa_padding_mode:pkcs1", input=digits.encode()).hex()

    def tar(self, *paths: Path, options: tuple[str, ...] = ("-S", "-h")) -> bytes:
        """A tar archive of files."""
        names = [path.name for path in paths]
        return run("tar", "-c", *options, "-C", str(paths[0].parent), *names)

    def pack(self, archive: bytes) -> None:
        """Make the parts from a tar archive."""
        self.digest = run("sha1sum", input=archive).split()[0].decode()
        self.seal(run("gzip", "-c", input=archive))

    def seal(self, data: bytes) -> None:
        """Make the parts from what is to be encrypted."""
        encrypted = run("openssl", "enc", "-e", "-aes-128-cbc", "-K", self.key, "-iv", self.iv, input=data)
        self.split(encrypted)

    def split(self, encrypted: bytes) -> None:
        """Make the parts from what is encrypted."""
        for name in self._part_files():
            (self.directory / name).unlink()
        whole = self.directory / f"{self.name}.encrypted"
        whole.write_bytes(encrypted)
        run("split", "-b", str(self.part_size), "-d", "-a", "3", str(whole), str(self.directory / f"{self.name}.part."))
        whole.unlink()
        names = self._part_files()
        self.bundled_size = sum((self.directory / name).stat().st_size for name in names)
        self.parts = [(n, hashlib.sha1((self.directory / n).read_bytes()).hexdigest()) for n in names]

    def _part_files(self) -> list[str]:
        return sorted(n for n in os.listdir(self.directory) if n.startswith(f"{self.name}.part."))


def signer(directory: Path, private_key: bytes, certificate: bytes) -> str:
    """The path of a file with a user's private key, which the certificate is of."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{hashlib.sha256(certificate).hexdigest()}.pem"
    path.write_bytes(private_key)
    return str(path)


def make(directory: Path, certificate: str, image: bytes, **changes: object) -> Bundle:
    """The bundle of an image.

    :param certificate: path of the cloud's certificate
    :param changes: fields of :class:`Bundle`
    """
    directory.mkdir(parents=True, exist_ok=True)
    bundle = Bundle(directory, certificate, size=len(image), **changes)  # type: ignore[arg-type]
    path = directory / bundle.name
    path.write_bytes(image)
    bundle.pack(bundle.tar(path))
    path.unlink()
    return bundle
