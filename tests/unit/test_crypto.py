"""Keys and certificates, against what ssh-keygen and openssl make of them."""

import base64
import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from nova import crypto, exception


def run(*argv: str, input: bytes | None = None) -> bytes:
    return subprocess.run(argv, input=input, capture_output=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> crypto.Authority:
    authority = crypto.Authority(str(tmp_path_factory.mktemp("ca") / "ca"))
    assert authority.ensure()
    return authority


@pytest.fixture(scope="module")
def issued(authority: crypto.Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a user's key.pem and cert.pem."""
    directory = tmp_path_factory.mktemp("user")
    key, certificate = authority.issue("ann", "proj")
    (directory / "key.pem").write_bytes(key)
    (directory / "cert.pem").write_bytes(certificate)
    return directory


def keygen(directory: Path, *options: str) -> str:
    """The public half of a new key of ssh-keygen's."""
    run("ssh-keygen", "-q", "-N", "", "-C", "ann@home", "-f", str(directory / "k"), *options)
    return (directory / "k.pub").read_text()


# -- key pairs that Nova makes ----------------------------------------------------------------------------------------

async def test_an_rsa_key_pair_belongs_together(tmp_path: Path) -> None:
    key = await crypto.new_rsa_key()
    path = tmp_path / "key.pem"
    path.touch(0o600)
    path.write_text(key.private_key)
    assert run("ssh-keygen", "-y", "-f", str(path)).split() == key.public_key.encode().split()
    assert b"Private-Key: (2048 bit" in run("openssl", "rsa", "-in", str(path), "-noout", "-text")


async def test_an_rsa_keys_fingerprint_is_the_sha1_of_its_pkcs8_der() -> None:
    key = await crypto.new_rsa_key()
    der = run("openssl", "pkcs8", "-topk8", "-nocrypt", "-outform", "DER", input=key.private_key.encode())
    assert key.fingerprint.replace(":", "") == hashlib.sha1(der).hexdigest()
    assert len(key.fingerprint) == 59


async def test_an_ed25519_key_pair_belongs_together(tmp_path: Path) -> None:
    key = await crypto.new_ed25519_key()
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(key.private_key)
    assert run("ssh-keygen", "-y", "-f", str(path)).decode().strip() == key.public_key


async def test_an_ed25519_keys_fingerprint_is_what_ssh_keygen_says(tmp_path: Path) -> None:
    key = await crypto.new_ed25519_key()
    (tmp_path / "key.pub").write_text(key.public_key)
    said = run("ssh-keygen", "-l", "-E", "sha256", "-f", str(tmp_path / "key.pub")).decode().split()[1]
    assert "SHA256:" + key.fingerprint.rstrip("=") == said


async def test_keys_are_not_made_twice() -> None:
    assert (await crypto.new_ed25519_key()).public_key != (await crypto.new_ed25519_key()).public_key


# -- key pairs that are brought along ---------------------------------------------------------------------------------

def test_an_imported_rsa_keys_fingerprint_is_the_md5_of_its_der(tmp_path: Path) -> None:
    public = keygen(tmp_path, "-t", "rsa", "-b", "3072", "-m", "PEM")
    der = run("openssl", "rsa", "-in", str(tmp_path / "k"), "-pubout", "-outform", "DER")
    assert crypto.fingerprint(public).replace(":", "") == hashlib.md5(der).hexdigest()


def test_an_imported_ed25519_keys_fingerprint_is_what_ssh_keygen_says(tmp_path: Path) -> None:
    public = keygen(tmp_path, "-t", "ed25519")
    said = run("ssh-keygen", "-l", "-f", str(tmp_path / "k.pub")).decode().split()[1]
    assert "SHA256:" + crypto.fingerprint(public).rstrip("=") == said


@pytest.mark.parametrize(("options", "kind"), [
    (["-t", "rsa", "-b", "1024"], "rsa"), (["-t", "rsa", "-b", "4096"], "rsa"), (["-t", "ed25519"], "ed25519")])
def test_a_key_of_ssh_keygen_is_taken_without_its_comment(tmp_path: Path, options: list[str], kind: str) -> None:
    public = keygen(tmp_path, *options)
    assert crypto.read_public_key(public) == (" ".join(public.split()[:2]), kind)


@pytest.mark.parametrize("options", [["-t", "ecdsa"]])
def test_a_kind_of_key_that_ec2_does_not_take_is_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(exception.InvalidKeyFormat):
        crypto.read_public_key(keygen(tmp_path, *options))


RSA_BLOB = b"\0\0\0\7ssh-rsa\0\0\0\3\1\0\1\0\0\1\0" + b"\x91" * 256
ED_BLOB = b"\0\0\0\13ssh-ed25519\0\0\0\40" + b"x" * 32


def line(kind: str, blob: bytes) -> str:
    return f"{kind} {base64.b64encode(blob).decode()}"


def test_the_blobs_below_are_keys() -> None:
    assert crypto.read_public_key(line("ssh-rsa", RSA_BLOB))[1] == "rsa"
    assert crypto.read_public_key(line("ssh-ed25519", ED_BLOB))[1] == "ed25519"


@pytest.mark.parametrize("text", [
    "", "ssh-rsa", "ssh-rsa !!!!", "ssh-rsa AAAA\0", "-----BEGIN RSA PRIVATE KEY-----",
    line("ssh-rsa", ED_BLOB), line("ssh-ed25519", RSA_BLOB), line("ssh-dss", RSA_BLOB),
    line("ssh-rsa", RSA_BLOB[:-1]), line("ssh-rsa", RSA_BLOB + b"x"), line("ssh-rsa", RSA_BLOB + b"\0\0\0\1x"),
    line("ssh-rsa", b"\0\0\0\7ssh-rsa\0\0\0\3\1\0\1\0\0\0\77" + b"\x91" * 63),
    line("ssh-rsa", b"\0\0\0\7ssh-rsa\0\0\0\3\1\0\1\0\0\1\0" + b"\0" * 256),
    line("ssh-rsa", b"\xff\xff\xff\xffssh-rsa"), line("ssh-rsa", b"\0\0"), line("ssh-rsa", b""),
    line("ssh-ed25519", ED_BLOB[:-1]), line("ssh-ed25519", b"\0\0\0\13ssh-ed25519\0\0\0\41" + b"x" * 33),
    line("ssh-rsa", RSA_BLOB) + " " + "x" * 20000, 'command="x" ' + line("ssh-rsa", RSA_BLOB),
], ids=range(20))
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(exception.InvalidKeyFormat):
        crypto.read_public_key(text)


def test_a_key_cannot_smuggle_in_a_second_line() -> None:
    public, _ = crypto.read_public_key(line("ssh-ed25519", ED_BLOB) + " comment\nssh-rsa AAAA evil")
    assert public == line("ssh-ed25519", ED_BLOB)


# -- certificates -----------------------------------------------------------------------------------------------------

def test_the_authority_is_made_once(authority: crypto.Authority) -> None:
    before = Path(authority.certificate_path).read_bytes()
    assert authority.ensure() is False
    assert Path(authority.certificate_path).read_bytes() == before


def test_only_its_owner_can_read_the_authoritys_key(authority: crypto.Authority) -> None:
    assert stat.S_IMODE(os.stat(authority.key_path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(authority.key_path)).st_mode) == 0o700


def test_the_authority_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    authority = crypto.Authority(str(tmp_path))
    (tmp_path / "cakey.pem").write_text("half a key")
    assert authority.ensure()
    run("openssl", "rsa", "-in", authority.key_path, "-check", "-noout")


def test_the_authoritys_key_and_certificate_belong_together(authority: crypto.Authority) -> None:
    of_key = run("openssl", "pkey", "-in", authority.key_path, "-pubout")
    assert run("openssl", "x509", "-in", authority.certificate_path, "-pubkey", "-noout") == of_key


def test_openssl_verifies_the_authority_and_what_it_issues(authority: crypto.Authority, issued: Path) -> None:
    for path in (authority.certificate_path, issued / "cert.pem"):
        assert b": OK" in run("openssl", "verify", "-CAfile", authority.certificate_path, str(path))


def test_an_issued_key_and_certificate_belong_together(issued: Path) -> None:
    of_key = run("openssl", "pkey", "-in", str(issued / "key.pem"), "-pubout")
    assert run("openssl", "x509", "-in", str(issued / "cert.pem"), "-pubkey", "-noout") == of_key


def test_an_issued_certificate_says_who_it_is_for(issued: Path) -> None:
    said = run("openssl", "x509", "-in", str(issued / "cert.pem"), "-noout", "-subject", "-nameopt", "RFC2253")
    assert said.strip() == b"subject=CN=ann,OU=proj,O=nova"


def test_an_issued_certificate_cannot_issue_others(issued: Path) -> None:
    assert b"CA:FALSE" in run("openssl", "x509", "-in", str(issued / "cert.pem"), "-noout", "-text")


def test_what_openssl_encrypts_for_the_certificate_the_authority_can_read(authority: crypto.Authority) -> None:
    secret = run("openssl", "pkeyutl", "-encrypt", "-certin", "-inkey", authority.certificate_path, input=b"secret")
    assert run("openssl", "pkeyutl", "-decrypt", "-inkey", authority.key_path, input=secret) == b"secret"
