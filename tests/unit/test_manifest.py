"""Manifests: whose signature is accepted, and that what Nova writes says what it was given."""

import dataclasses
import hashlib
import sqlite3
from pathlib import Path

import pytest

from nova import crypto, exception
from nova.image import manifest
from nova.image.manifest import Keys, Manifest, Part
from tests import bundles
from tests.bundles import Bundle


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> crypto.Authority:
    authority = crypto.Authority(str(tmp_path_factory.mktemp("ca")))
    authority.ensure()
    return authority


def key_of(authority: crypto.Authority, directory: Path, user: str, project: str = "proj") -> str:
    """The path of a new private key of a user, who has a certificate for it."""
    path = directory / f"{user}-{project}.pem"
    path.write_bytes(authority.issue(user, project)[0])
    return str(path)


@pytest.fixture
def made(authority: crypto.Authority, tmp_path: Path) -> Bundle:
    """A bundle signed by ann."""
    return bundles.make(tmp_path / "b", authority.certificate_path, b"image", signer=key_of(authority, tmp_path, "ann"))


def check(data: bytes, authority: crypto.Authority, *users: str) -> None:
    manifest.check_signature(manifest.read_manifest(data), authority.certificates_of(*users))


# -- signatures -------------------------------------------------------------------------------------------------------

def test_a_signature_by_openssl_is_accepted(made: Bundle, authority: crypto.Authority) -> None:
    check(made.manifest, authority, "ann")
    check(made.manifest, authority, "bob", "ann")


def test_a_renewed_certificate_goes_on_verifying(made: Bundle, authority: crypto.Authority, tmp_path: Path) -> None:
    key_of(authority, tmp_path, "ann")
    check(made.manifest, authority, "ann")


def test_the_signature_of_somebody_else_is_refused(made: Bundle, authority: crypto.Authority, tmp_path: Path) -> None:
    key_of(authority, tmp_path, "bob")
    for users in (["bob"], [], [""]):
        with pytest.raises(exception.InvalidManifest, match="the signature is not of the user"):
            check(made.manifest, authority, *users)


def test_the_signature_of_a_revoked_certificate_is_refused(authority: crypto.Authority, tmp_path: Path) -> None:
    made = bundles.make(tmp_path / "b", authority.certificate_path, b"image",
                        signer=key_of(authority, tmp_path, "eve", "one"))
    check(made.manifest, authority, "eve")
    authority.revoke_user("eve", "two")
    check(made.manifest, authority, "eve")
    authority.revoke_user("eve", "one")
    with pytest.raises(exception.InvalidManifest, match="revoked"):
        check(made.manifest, authority, "eve")


@pytest.mark.parametrize("signature", ["", "00", "00" * 256, "ff" * 256, "00" * 5000])
def test_what_is_no_signature_is_refused(made: Bundle, authority: crypto.Authority, signature: str,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "sign", lambda data: signature)
    with pytest.raises(exception.InvalidManifest, match="signature|not signed"):
        check(made.manifest, authority, "ann")


def test_a_manifest_without_a_signature_is_refused(made: Bundle, authority: crypto.Authority) -> None:
    made.signer = ""
    with pytest.raises(exception.InvalidManifest, match="not signed"):
        check(made.manifest, authority, "ann")


@pytest.mark.parametrize(("old", "new"), [
    (b"<size>5<", b"<size>6<"), (b"x86_64", b"x86_65"), (b"<filename>image", b"<filename>imagf"),
    (b"<user>proj", b"<user>eves"), (b"<digest algorithm", b"<digest  algorithm")])
def test_a_change_behind_the_signature_is_seen(made: Bundle, authority: crypto.Authority, old: bytes,
                                               new: bytes) -> None:
    with pytest.raises(exception.InvalidManifest, match="signature"):
        check(made.manifest.replace(old, new, 1), authority, "ann")


def test_what_is_signed_is_what_is_read(made: Bundle, authority: crypto.Authority) -> None:
    """A second image element, a comment that looks like one, or a nested one does not stand in for the real one."""
    good = made.manifest
    image = good[good.index(b"<image>"):good.index(b"</image>") + 8]
    evil = image.replace(b"<size>5<", b"<size>9<")
    with pytest.raises(exception.InvalidManifest, match="image twice"):
        check(good.replace(image, evil + image), authority, "ann")
    with pytest.raises(exception.InvalidManifest, match="signature"):
        check(good.replace(image, b"<!--" + image + b"-->" + evil), authority, "ann")
    with pytest.raises(exception.InvalidManifest, match="signature"):
        check(good.replace(image, evil).replace(b"<bundler>", b"<bundler>" + image), authority, "ann")


def test_certificates_of_an_earlier_release_are_no_hindrance(tmp_path: Path) -> None:
    """The index of issued certificates did not keep them once."""
    authority = crypto.Authority(str(tmp_path / "ca"))
    authority.ensure()
    authority.issue("ann", "proj")
    db = sqlite3.connect(tmp_path / "ca" / "index.sqlite")
    db.execute("ALTER TABLE certificates DROP COLUMN pem")
    db.commit()
    db.close()
    assert authority.certificates_of("ann") == []
    _, new = authority.issue("ann", "proj")
    assert authority.certificates_of("ann") == [new]


# -- reading and writing ----------------------------------------------------------------------------------------------

def test_block_devices_and_product_codes_are_read(made: Bundle) -> None:
    made.extra = ("<block_device_mapping><mapping><virtual>ami</virtual><device>sda1</device></mapping>"
                  "<mapping><device>sdb</device><virtual>ephemeral0</virtual></mapping></block_device_mapping>"
                  "<product_codes><product_code>AB12</product_code></product_codes>")
    read = manifest.read_manifest(made.manifest)
    assert read.block_devices == {"ami": "sda1", "ephemeral0": "sdb"} and read.product_codes == ("AB12",)


@pytest.mark.parametrize("kind", ["kernel", "ramdisk"])
def test_the_type_of_an_image_tells_its_kind(made: Bundle, kind: str) -> None:
    made.kind = kind
    assert manifest.read_manifest(made.manifest).kind == kind


def test_parts_come_in_the_order_of_their_numbers(made: Bundle) -> None:
    made.parts = [("a", "0" * 40), ("b", "1" * 40), ("c", "2" * 40)]
    shuffled = made.manifest.replace(b'index="0"', b'index="x"').replace(b'index="2"', b'index="0"').replace(
        b'index="x"', b'index="2"')
    assert [part.name for part in manifest.read_manifest(shuffled).parts] == ["c", "b", "a"]


@pytest.mark.parametrize(("old", "new"), [(b'index="1"', b'index="0"'), (b'index="1"', b'index="7"'),
                                          (b'index="1"', b'index="-1"'), (b'count="2"', b'count="3"')])
def test_numbers_of_parts_that_make_no_sense_are_refused(made: Bundle, old: bytes, new: bytes) -> None:
    made.parts = [("a", "0" * 40), ("b", "1" * 40)]
    with pytest.raises(exception.InvalidManifest, match="numbered|speaks of"):
        manifest.read_manifest(made.manifest.replace(old, new))


def test_an_id_that_is_none_is_refused(made: Bundle) -> None:
    made.kernel_id = "aki 1"
    with pytest.raises(exception.InvalidManifest, match="no id"):
        manifest.read_manifest(made.manifest)


@pytest.mark.parametrize("kind", ["machine", "kernel", "ramdisk"])
def test_what_is_written_is_read_again(kind: str, authority: crypto.Authority) -> None:
    ids = {"kernel_id": "aki-1", "ramdisk_id": "ari-1"} if kind == "machine" else {}
    given = Manifest(
        kind=kind, architecture="x86_64", size=1 << 33, bundled_size=7, digest="a" * 40, for_cloud=Keys(b"k", b"v"),
        for_user=Keys(b"l", b"w"), parts=(Part("a <&> b.part.00", "1" * 40), Part("ü", "2" * 40)), name="a <&> b",
        user="p&q", block_devices={"ephemeral0": "/dev/sdb"}, product_codes=("A", "B"), **ids)  # type: ignore[arg-type]
    seen: list[bytes] = []

    def sign(digest: bytes) -> bytes:
        seen.append(digest)
        return b"signature"
    read = manifest.read_manifest(manifest.write_manifest(given, "tests", sign))
    assert seen == [hashlib.sha1(read.signed).digest()] and read.signature == b"signature"
    assert read == dataclasses.replace(given, signature=read.signature, signed=read.signed)
