"""Key pairs as EC2 makes and takes them.

RSA comes from M2Crypto, ed25519 keys from `ssh-keygen`.  What computes long runs in a thread.
"""

import base64
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass

from M2Crypto import RSA

from nova import exception, process
from nova.process import in_thread, wait

RSA_BITS = 2048

#: OpenSSH's names of the kinds of keys that EC2 takes, and EC2's names of them
KEY_TYPES = {"ssh-rsa": "rsa", "ssh-ed25519": "ed25519"}


@dataclass(frozen=True)
class NewKey:
    """A key pair just made: the private half (PEM or OpenSSH's format), the public half (OpenSSH), its fingerprint."""

    private_key: str
    public_key: str
    fingerprint: str


def _ssh_string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _new_rsa() -> RSA.RSA:
    return RSA.gen_key(RSA_BITS, 65537, callback=lambda *ignored: 0)


def rsa_pem() -> bytes:
    """A new RSA private key in PEM, unencrypted.  Takes a while: call it in a thread."""
    return _new_rsa().as_pem(cipher=None)


def _pem_to_der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(line for line in pem.splitlines() if line and not line.startswith(b"-----")))


def _der(tag: int, content: bytes) -> bytes:
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


#: AlgorithmIdentifier of rsaEncryption (RFC 8017, appendix A.1)
_RSA_ALGORITHM = bytes.fromhex("300d06092a864886f70d0101010500")


def _colons(digest: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in digest)


async def new_rsa_key() -> NewKey:
    """An RSA key pair as EC2 makes them; the fingerprint is the SHA-1 of the private key in PKCS #8's DER
    (EC2 User Guide, "Verify the fingerprint of your key pair")."""
    return await wait(in_thread(_make_rsa_key))


def _make_rsa_key() -> NewKey:
    rsa = _new_rsa()
    pem = rsa.as_pem(cipher=None)
    exponent, modulus = rsa.pub()[0][4:], rsa.pub()[1][4:]
    blob = _ssh_string(b"ssh-rsa") + _ssh_string(exponent) + _ssh_string(modulus)
    pkcs8 = _der(0x30, b"\x02\x01\x00" + _RSA_ALGORITHM + _der(0x04, _pem_to_der(pem)))
    return NewKey(pem.decode(), "ssh-rsa " + base64.b64encode(blob).decode(),
                  _colons(hashlib.sha1(pkcs8, usedforsecurity=False).digest()))


async def new_ed25519_key() -> NewKey:
    """An ed25519 key pair; its fingerprint is OpenSSH's SHA-256."""
    directory = tempfile.mkdtemp(prefix="nova-key-")  # only its owner can look into it
    path = os.path.join(directory, "key")
    try:
        await wait(process.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path))
        with open(path) as private, open(path + ".pub") as public:
            public_key = " ".join(public.read().split()[:2])
            return NewKey(private.read(), public_key, fingerprint(public_key))
    finally:
        shutil.rmtree(directory)


def read_public_key(text: str) -> tuple[str, str]:
    """Check a public key in OpenSSH's format.

    :returns: the key without options, comment and line breaks, and EC2's name of its type (``rsa``, ``ed25519``)
    :raises exception.InvalidKeyFormat:
    """
    words = text.split()
    if len(words) < 2 or words[0] not in KEY_TYPES or len(text) > 16384:
        raise exception.InvalidKeyFormat()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except ValueError:
        raise exception.InvalidKeyFormat() from None
    fields, rest = [], blob
    while rest:
        length = int.from_bytes(rest[:4], "big")
        if len(rest) < 4 + length:
            raise exception.InvalidKeyFormat()
        fields.append(rest[4:4 + length])
        rest = rest[4 + length:]
    kind = words[0]
    if not fields or fields[0] != kind.encode():
        raise exception.InvalidKeyFormat()
    if kind == "ssh-rsa" and not (len(fields) == 3 and 1024 <= 8 * len(fields[2].lstrip(b"\0")) <= 16384):
        raise exception.InvalidKeyFormat("RSA keys must have 1024 to 16384 bits")
    if kind == "ssh-ed25519" and not (len(fields) == 2 and len(fields[1]) == 32):
        raise exception.InvalidKeyFormat()
    return f"{kind} {words[1]}", KEY_TYPES[kind]


def fingerprint(public_key: str) -> str:
    """The fingerprint of an imported key: MD5 of an RSA key's DER, OpenSSH's SHA-256 of an ed25519 key.

    (EC2 User Guide, "Verify the fingerprint of your key pair")
    """
    kind, encoded = public_key.split()[:2]
    blob = base64.b64decode(encoded)
    if kind == "ssh-rsa":
        length = int.from_bytes(blob[:4], "big")
        rest = blob[4 + length:]
        integers = b""
        while rest:  # ssh has the exponent first, DER the modulus
            length = int.from_bytes(rest[:4], "big")
            integers = _der(0x02, rest[4:4 + length]) + integers
            rest = rest[4 + length:]
        spki = _der(0x30, _RSA_ALGORITHM + _der(0x03, b"\0" + _der(0x30, integers)))
        return _colons(hashlib.md5(spki, usedforsecurity=False).digest())
    return base64.b64encode(hashlib.sha256(blob).digest()).decode()
