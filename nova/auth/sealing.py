"""Secrets at rest: encrypted and authenticated with a key in a file of the certificate authority's directory.

AES-256 in CBC mode, then HMAC-SHA256 over what came out (encrypt-then-MAC), with a key of its own for either.
"""

import base64
import binascii
import hashlib
import hmac
import os
import tempfile

from M2Crypto import EVP

from nova import exception

KEY_BYTES = 32
_VERSION = "1:"


def load_key(path: str) -> bytes:
    """The key in a file, which is made, with mode 0600, where there is none.

    :raises exception.NovaError: the file cannot be read or made, or is no such key
    """
    try:
        if not os.path.exists(path):
            _make_key(path)
        with open(path) as file:
            key = bytes.fromhex(file.read())
    except OSError as error:
        raise exception.NovaError(f"the key in {path}: {error.strerror}") from error
    except ValueError as error:
        raise exception.NovaError(f"{path} is no key") from error
    if len(key) != KEY_BYTES:
        raise exception.NovaError(f"{path} is no key")
    return key


def _make_key(path: str) -> None:
    """Make the file at once and whole: of several that try, one wins."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    descriptor, made = tempfile.mkstemp(dir=directory, prefix=".key-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(KEY_BYTES).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(made, path)
        except FileExistsError:
            return  # somebody was faster; theirs is the key
    finally:
        os.unlink(made)


class Sealer:
    """Encrypts texts, each for one place: what is moved to another place does not open there."""

    def __init__(self, key: bytes):
        self._cipher_key = hmac.digest(key, b"nova directory: encryption", hashlib.sha256)
        self._tag_key = hmac.digest(key, b"nova directory: authentication", hashlib.sha256)

    @property
    def mark(self) -> str:
        """Tells keys apart, and nothing about them."""
        return hmac.digest(self._tag_key, b"mark", hashlib.sha256).hex()[:32]

    def seal(self, text: str, place: str) -> str:
        """Encrypt `text` for `place`."""
        iv = os.urandom(16)
        body = iv + self._run(text.encode(), iv, encrypt=True)
        return _VERSION + base64.b64encode(body + self._tag(body, place)).decode()

    def open(self, sealed: str, place: str) -> str:
        """What was sealed for `place`; :raises exception.NovaError: it was not, or not with this key"""
        try:
            data = base64.b64decode(sealed.removeprefix(_VERSION), validate=True)
        except binascii.Error as error:
            raise exception.NovaError(f"the secret of {place} is damaged") from error
        body, tag = data[:-32], data[-32:]
        if not sealed.startswith(_VERSION) or len(body) < 32 or not hmac.compare_digest(tag, self._tag(body, place)):
            raise exception.NovaError(f"the secret of {place} is damaged, or another key encrypted it")
        return self._run(body[16:], body[:16], encrypt=False).decode()

    def _tag(self, body: bytes, place: str) -> bytes:
        name = place.encode()
        return hmac.digest(self._tag_key, len(name).to_bytes(8, "big") + name + body, hashlib.sha256)

    def _run(self, data: bytes, iv: bytes, encrypt: bool) -> bytes:
        cipher = EVP.Cipher("aes_256_cbc", self._cipher_key, iv, 1 if encrypt else 0)
        return cipher.update(data) + cipher.final()
