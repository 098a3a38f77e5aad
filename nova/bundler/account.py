"""Who bundles: the keys, certificates and endpoints that novarc names."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from M2Crypto import RSA, X509

from nova import exception

#: today's names of what novarc sets, and those of 2010, which other clouds' files may have alone
_OLDER = {"AWS_ACCESS_KEY_ID": "EC2_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY": "EC2_SECRET_KEY",
          "AWS_ENDPOINT_URL_EC2": "EC2_URL", "AWS_ENDPOINT_URL_S3": "S3_URL"}

#: no key or certificate has so many bytes
_MAX_PEM = 1 << 16


class Refused(exception.NovaError):
    """What was asked for cannot be done; the message says why, and what to do."""


class Misused(exception.NovaError):
    """The command line or the environment lacks something."""


@dataclass(frozen=True)
class Account:
    """What novarc says, as variables of the environment."""

    variables: Mapping[str, str]

    def file(self, given: str | None, variable: str, option: str) -> str:
        """The path of a key or certificate: as given, or as a variable says.

        :raises Misused: neither, or there is no such file
        """
        path = given or self.variables.get(variable, "")
        if not path:
            raise Misused(f"no {option}: source novarc first (it sets {variable}), or give --novarc FILE or "
                          f"{option} FILE")
        if not os.path.isfile(path):
            raise Misused(f"{path}: no such file ({option if given else variable})")
        if os.path.getsize(path) > _MAX_PEM:  # OpenSSL would look for a key in all of it, however long that takes
            raise Misused(f"{path}: too large for a key or certificate ({option if given else variable})")
        return path

    def client(self, service: str) -> Any:
        """boto3's client for ``s3`` or ``ec2``; :raises Misused: novarc does not say where the cloud is, or who asks"""
        url, id, secret = (self._value(name) for name in (
            f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        session = boto3.session.Session(id, secret, region_name=self.variables.get("AWS_DEFAULT_REGION") or "nova")
        config = Config(connect_timeout=10, read_timeout=120, retries={"max_attempts": 5, "mode": "standard"},
                        s3={"addressing_style": "path"}, max_pool_connections=32)
        return session.client(service, endpoint_url=url, config=config)

    @property
    def user_id(self) -> str:
        """The account that bundles are made for."""
        return self.variables.get("EC2_USER_ID", "") or self._value("AWS_ACCESS_KEY_ID").rpartition(":")[2]

    def _value(self, name: str) -> str:
        value = self.variables.get(name) or self.variables.get(_OLDER[name], "")
        if not value:
            raise Misused(f"{name} is not set: source novarc first, or give --novarc FILE")
        return value


def read_novarc(path: Path) -> dict[str, str]:
    """The variables that a novarc file exports; its own directory stands where it names ``$NOVA_KEY_DIR``.

    :raises Misused: it cannot be read
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"{path}: {error}") from error
    values = {}
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a line of a longer statement; exports are one line each
            continue
        if len(words) == 2 and words[0] == "export" and "=" in words[1]:
            name, value = words[1].split("=", 1)
            values[name] = value.replace("${NOVA_KEY_DIR}", "$NOVA_KEY_DIR").replace(
                "$NOVA_KEY_DIR", str(path.resolve().parent))
    if not values:
        raise Misused(f"{path}: there is no 'export NAME=VALUE' in it; is it a novarc?")
    return values


def encrypt(certificate: str, secret: bytes) -> bytes:
    """A secret, in hexadecimal as bundles have it, encrypted for the owner of a certificate (its path).

    :raises Misused: it is no certificate of an RSA key
    """
    return _public_key(certificate).public_encrypt(secret.hex().encode(), RSA.pkcs1_padding)


def signer(private_key: str, certificate: str) -> Any:
    """A function that signs SHA-1 digests with a private key (its path), which must be the certificate's.

    :raises Misused: it is not, or is none
    """
    try:
        rsa = RSA.load_key(private_key, callback=lambda *ignored: b"")
    except (RSA.RSAError, OSError) as error:
        raise Misused(f"{private_key}: no RSA private key without a passphrase: {error}") from error
    if rsa.pub() != _public_key(certificate).pub():
        raise Misused(f"{private_key} and {certificate} do not belong together; take both from one credentials zip")
    return lambda digest: rsa.sign(digest, "sha1")


def _public_key(certificate: str) -> RSA.RSA_pub:
    try:
        return X509.load_cert(certificate).get_pubkey().get_rsa()
    except (X509.X509Error, OSError, ValueError, TypeError) as error:
        raise Misused(f"{certificate}: no certificate of an RSA key: {error}") from error
