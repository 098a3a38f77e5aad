"""The manifest of a bundle, as `euca-bundle-image` and `ec2-bundle-image` write it (version 2007-10-10).

Its `machine_configuration` and `image` are signed: the signature is RSA with SHA-1 over the bytes of the two elements
as they stand in the document, one behind the other.  Reading checks the form only; :func:`check_signature` checks who
made it.  What becomes of the parts is :mod:`nova.image.bundle`'s.
"""

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape

from M2Crypto import RSA, X509

from nova import exception

#: the most that is believed of a manifest, in bytes, and of an unpacked image, in bytes
MAX_MANIFEST = 4 << 20
MAX_IMAGE = 1 << 40

VERSION = "2007-10-10"
_SIGNED = ("machine_configuration", "image")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA1_HERE = ' algorithm="SHA1"'
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class Part:
    """One part: its file name, beside the manifest in the bucket, and its SHA-1 in hexadecimal."""

    name: str
    sha1: str


@dataclass(frozen=True)
class Keys:
    """The key and the initialization vector, encrypted for one certificate; bytes, hexadecimal undone."""

    key: bytes
    iv: bytes


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    `kind` is machine, kernel or ramdisk; `size` the unpacked image's, in bytes, `bundled_size` that of all parts
    together; `digest` the SHA-1 of the tar archive in the bundle; `for_cloud` and `for_user` are the parts' key for the
    cloud's and for the user's certificate; `block_devices` are device names by what is there (``ami``, ``ephemeral0``,
    ...).  `signed` is what `signature` signs; both are empty for a manifest that is yet to be written.
    """

    kind: str
    architecture: str
    size: int
    bundled_size: int
    digest: str
    for_cloud: Keys
    parts: tuple[Part, ...]
    for_user: Keys | None = None
    name: str = ""
    user: str = ""
    kernel_id: str = ""
    ramdisk_id: str = ""
    block_devices: dict[str, str] = field(default_factory=dict)
    product_codes: tuple[str, ...] = ()
    signature: bytes = b""
    signed: bytes = b""


def read_manifest(data: bytes) -> Manifest:
    """Parse a manifest; :raises exception.InvalidManifest: with what is wrong"""
    root, signed = _parse(data)

    def text(path: str, required: bool = True) -> str:
        found = (root.findtext(path) or "").strip()
        if required and not found:
            raise exception.InvalidManifest(reason=f"it has no {path}")
        return found

    def id(path: str) -> str:
        found = text(path, required=False)
        if found and not _ID.fullmatch(found):
            raise exception.InvalidManifest(reason=f"its {path} is no id")
        return found

    def keys(whose: str, required: bool) -> Keys | None:
        found = [text(f"image/{whose}_encrypted_{what}", required) for what in ("key", "iv")]
        return Keys(*(_unhex(digits) for digits in found)) if all(found) else None
    kernel, ramdisk, kind = id("machine_configuration/kernel_id"), id("machine_configuration/ramdisk_id"), "machine"
    if kernel == "true" or text("image/type", False) == "kernel":
        kind = "kernel"
    elif ramdisk == "true" or text("image/type", False) == "ramdisk":
        kind = "ramdisk"
    parts = _parts(root)
    size, bundled_size, digest = text("image/size"), text("image/bundled_size"), text("image/digest").lower()
    if not parts or not _is_size(size) or not _is_size(bundled_size):
        raise exception.InvalidManifest(reason="it has no parts or no sensible size")
    if not _SHA1.fullmatch(digest):
        raise exception.InvalidManifest(reason="the image's digest is no SHA-1")
    for_cloud = keys("ec2", required=True)
    assert for_cloud is not None
    mappings = root.iterfind("machine_configuration/block_device_mapping/mapping")
    return Manifest(
        kind=kind, architecture=text("machine_configuration/architecture", False) or "x86_64",
        kernel_id=kernel if kind == "machine" else "", ramdisk_id=ramdisk if kind == "machine" else "",
        size=int(size), bundled_size=int(bundled_size), digest=digest, for_cloud=for_cloud,
        for_user=keys("user", required=False), parts=parts, name=text("image/name", False),
        user=text("image/user", False),
        block_devices={_text(m, "virtual"): _text(m, "device") for m in mappings},
        product_codes=tuple((code.text or "").strip()
                            for code in root.iterfind("machine_configuration/product_codes/product_code")),
        signature=_unhex(text("signature", False) or "00"), signed=signed)


def _parse(data: bytes) -> tuple[ElementTree.Element, bytes]:
    """The document, and the bytes in it that its signature is of."""
    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()
    path: list[str] = []
    begins: dict[str, int] = {}
    signed: dict[str, bytes] = {}

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        if len(path) == 2 and name in _SIGNED:
            if name in begins:  # or what is read might be another one than what is signed
                raise exception.InvalidManifest(reason=f"it has {name} twice")
            begins[name] = parser.CurrentByteIndex
        builder.start(name, attributes)

    def end(name: str) -> None:
        if len(path) == 2 and name in _SIGNED:
            signed[name] = data[begins[name]:data.find(b">", parser.CurrentByteIndex) + 1]
        path.pop()
        builder.end(name)

    def doctype(*ignored: object) -> None:  # and with it entities, in whatever encoding they come
        raise exception.InvalidManifest(reason="document type declarations are not allowed")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter for encodings that nobody has
        raise exception.InvalidManifest(reason=f"it is no XML: {error}") from error
    return builder.close(), b"".join(signed.get(name, b"") for name in _SIGNED)


def _parts(root: ElementTree.Element) -> tuple[Part, ...]:
    elements = root.findall("image/parts/part")
    parts: list[Part | None] = [None] * len(elements)
    for position, element in enumerate(elements):
        part = Part(_text(element, "filename"), _text(element, "digest").lower())
        if part.name in ("", ".", "..") or "/" in part.name or not _SHA1.fullmatch(part.sha1):
            raise exception.InvalidManifest(reason="a part has no file name or no SHA-1 digest")
        index = element.get("index", str(position))
        if not re.fullmatch(r"[0-9]{1,9}", index) or int(index) >= len(parts) or parts[int(index)] is not None:
            raise exception.InvalidManifest(reason=f"the parts are not numbered from 0 to {len(parts) - 1}")
        parts[int(index)] = part
    if (count := root.find("image/parts")) is not None and count.get("count", str(len(parts))) != str(len(parts)):
        raise exception.InvalidManifest(reason=f"it has {len(parts)} parts and speaks of {count.get('count', '')[:20]}")
    return tuple(part for part in parts if part is not None)


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _is_size(digits: str) -> bool:
    return re.fullmatch(r"[0-9]{1,15}", digits) is not None and int(digits) <= MAX_IMAGE


def _unhex(digits: str) -> bytes:
    if not _HEX.fullmatch(digits):
        raise exception.InvalidManifest(reason="a key, an initialization vector or the signature is not hexadecimal")
    return bytes.fromhex(digits)


# -- signatures -------------------------------------------------------------------------------------------------------

def check_signature(manifest: Manifest, certificates: Iterable[bytes]) -> None:
    """See that a manifest was signed by the owner of one of these certificates.

    :param certificates: in PEM
    :raises exception.InvalidManifest: it was not
    """
    if len(manifest.signature) < 2:
        raise exception.InvalidManifest(reason="it is not signed")
    digest = hashlib.sha1(manifest.signed, usedforsecurity=False).digest()  # the format's choice
    for pem in certificates:
        try:
            if X509.load_cert_string(pem).get_pubkey().get_rsa().verify(digest, manifest.signature, "sha1"):
                return
        except RSA.RSAError:
            continue
    raise exception.InvalidManifest(
        reason="the signature is not of the user who registers it nor of the bucket's owner, or the certificate is "
               "revoked; bundle the image again with the key and certificate of a new credentials zip")


# -- writing ----------------------------------------------------------------------------------------------------------

def write_manifest(manifest: Manifest, bundler: str, sign: Callable[[bytes], bytes]) -> bytes:
    """A signed document that says what `manifest` does.

    :param bundler: name of the program that made the bundle
    :param sign: the signature of the SHA-1 digest that it gets
    """
    machine = [_element("architecture", manifest.architecture)]
    for tag, value in (("kernel_id", manifest.kernel_id), ("ramdisk_id", manifest.ramdisk_id)):
        if manifest.kind == tag.removesuffix("_id"):
            value = "true"
        if value:
            machine.append(_element(tag, value))
    if manifest.block_devices:
        machine.append("<block_device_mapping>" + "".join(
            f"<mapping>{_element('virtual', virtual)}{_element('device', device)}</mapping>"
            for virtual, device in sorted(manifest.block_devices.items())) + "</block_device_mapping>")
    if manifest.product_codes:
        machine.append("<product_codes>" + "".join(_element("product_code", code)
                                                   for code in manifest.product_codes) + "</product_codes>")
    image = [_element("name", manifest.name), _element("user", manifest.user), _element("type", manifest.kind),
             _element("digest", manifest.digest, _SHA1_HERE), _element("size", str(manifest.size)),
             _element("bundled_size", str(manifest.bundled_size))]
    for what, attribute in (("key", ' algorithm="AES-128-CBC"'), ("iv", "")):
        for whose, keys in (("ec2", manifest.for_cloud), ("user", manifest.for_user)):
            if keys is not None:
                image.append(_element(f"{whose}_encrypted_{what}", getattr(keys, what).hex(), attribute))
    parts = "".join(f'<part index="{index}">' + _element("filename", part.name)
                    + _element("digest", part.sha1, _SHA1_HERE) + "</part>"
                    for index, part in enumerate(manifest.parts))
    image.append(f'<parts count="{len(manifest.parts)}">{parts}</parts>')
    signed = (f"<machine_configuration>{''.join(machine)}</machine_configuration>"
              f"<image>{''.join(image)}</image>").encode()
    signature = sign(hashlib.sha1(signed, usedforsecurity=False).digest())
    about = _element("version", VERSION) + "<bundler>" + "".join(
        _element(tag, value) for tag, value in (("name", bundler), ("version", "1"), ("release", "0"))) + "</bundler>"
    return (b'<?xml version="1.0" encoding="UTF-8"?>\n<manifest>' + about.encode() + signed
            + _element("signature", signature.hex()).encode() + b"</manifest>\n")


def _element(name: str, text: str, attributes: str = "") -> str:
    return f"<{name}{attributes}>{escape(text)}</{name}>"
