"""The certificate authority, as the openssl command sees what it makes."""

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nova import exception
from nova.crypto import Authority, certificates
from nova.flags import FLAGS

DAY = 86400


def openssl(*argv: str, ok: bool = True) -> str:
    """What the command says; it must succeed, or fail."""
    done = subprocess.run(["openssl", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(str(tmp_path / "ca"))
    authority.ensure()
    return authority


class Verifier:
    """Checks certificates as somebody does who has fetched the chain and the revocation lists."""

    def __init__(self, authority: Authority, directory: Path):
        self._authority, self._directory = authority, directory

    def __call__(self, certificate: bytes, project: str = "proj", check: str = "-crl_check", ok: bool = True) -> str:
        names = {"cert.pem": certificate, "chain.pem": self._authority.chain(project), "crl.pem": self._authority.crl()}
        for name, data in names.items():
            (self._directory / name).write_bytes(data)
        return openssl("verify", "-CAfile", str(self._directory / "chain.pem"), "-CRLfile",
                       str(self._directory / "crl.pem"), check, str(self._directory / "cert.pem"), ok=ok)


@pytest.fixture
def verify(authority: Authority, tmp_path: Path) -> Verifier:
    return Verifier(authority, tmp_path)


@pytest.fixture(params=[False, True], ids=["the cloud signs", "the project signs"])
def by_project(request: pytest.FixtureRequest) -> bool:
    FLAGS.use_project_ca = request.param
    return bool(request.param)


def text(directory: Path, certificate: bytes) -> str:
    (directory / "shown.pem").write_bytes(certificate)
    return re.sub(r"\s+", " ", openssl("x509", "-in", str(directory / "shown.pem"), "-noout", "-text"))


# -- what certificates say --------------------------------------------------------------------------------------------

def test_openssl_verifies_a_users_certificate_with_the_chain_and_the_lists(
        authority: Authority, verify: Verifier, by_project: bool) -> None:
    verify(authority.issue("ann", "proj")[1], check="-crl_check_all")


def test_without_the_projects_certificate_nothing_verifies_what_it_signed(authority: Authority, tmp_path: Path) -> None:
    FLAGS.use_project_ca = True
    (tmp_path / "cert.pem").write_bytes(authority.issue("ann", "proj")[1])
    openssl("verify", "-CAfile", authority.certificate_path, str(tmp_path / "cert.pem"), ok=False)


def test_the_clouds_certificate_has_the_extensions_of_a_root(authority: Authority, tmp_path: Path) -> None:
    shown = text(tmp_path, Path(authority.certificate_path).read_bytes())
    assert "Basic Constraints: critical CA:TRUE, pathlen:1" in shown
    assert "Key Usage: critical Key Encipherment, Certificate Sign, CRL Sign" in shown
    assert "Subject Key Identifier" in shown


def test_a_projects_certificate_signs_users_and_no_other_authority(authority: Authority, tmp_path: Path) -> None:
    FLAGS.use_project_ca = True
    shown = text(tmp_path, b"-----BEGIN" + authority.chain("proj").split(b"-----BEGIN")[2])
    assert "Basic Constraints: critical CA:TRUE, pathlen:0" in shown
    assert "Key Usage: critical Certificate Sign, CRL Sign" in shown
    assert "OU = proj" in shown


def test_a_users_certificate_has_the_extensions_of_a_client(authority: Authority, tmp_path: Path,
                                                           by_project: bool) -> None:
    shown = text(tmp_path, authority.issue("ann", "proj")[1])
    assert "Basic Constraints: critical CA:FALSE" in shown
    assert "Key Usage: critical Digital Signature, Key Encipherment" in shown
    assert "Extended Key Usage: TLS Web Client Authentication" in shown
    assert "Authority Key Identifier" in shown and "CRL Distribution" not in shown


def test_certificates_say_where_the_list_is_when_a_flag_does(authority: Authority, tmp_path: Path) -> None:
    FLAGS.crl_url = "http://cloud.example/crl/"
    certificate = authority.issue("ann", "proj")[1]
    authority.crl()
    [name] = re.findall(r"URI:http://cloud\.example/crl/(\S+)", text(tmp_path, certificate))
    assert "Certificate Revocation List" in openssl("crl", "-inform", "DER", "-noout", "-text", "-in",
                                                    str(tmp_path / "ca/crl" / name))


def test_the_clouds_certificate_is_the_first_of_the_chain(authority: Authority, by_project: bool) -> None:
    assert authority.chain("proj").startswith(Path(authority.certificate_path).read_bytes())


def test_serial_numbers_are_large_and_all_different(authority: Authority) -> None:
    serials = {certificates.load(authority.issue("ann", "proj")[1]).serial_number for _ in range(4)}
    assert len(serials) == 4 and min(serials) > 1 << 64


def test_flags_say_for_how_long_certificates_are_good(tmp_path: Path) -> None:
    FLAGS.ca_days, FLAGS.certificate_days = 20, 10
    authority = Authority(str(tmp_path / "ca"))
    authority.ensure()
    key, certificate = authority.issue("ann", "proj")
    (tmp_path / "cert.pem").write_bytes(certificate)
    for path, days in ((tmp_path / "cert.pem", 10), (authority.certificate_path, 20)):
        openssl("x509", "-in", str(path), "-noout", "-checkend", str(days * DAY - 60))
        openssl("x509", "-in", str(path), "-noout", "-checkend", str(days * DAY + 60), ok=False)


def test_no_certificate_outlives_the_one_that_signed_it(tmp_path: Path, by_project: bool) -> None:
    FLAGS.ca_days, FLAGS.certificate_days = 20, 100
    authority = Authority(str(tmp_path / "ca"))
    authority.ensure()
    root = certificates.load(Path(authority.certificate_path).read_bytes())
    issued = certificates.load(authority.issue("ann", "proj")[1])
    assert issued.not_valid_after_utc <= root.not_valid_after_utc


@pytest.mark.parametrize(("user", "project"), [("", "proj"), ("a" * 65, "proj"), ("ann", "p" * 65)])
def test_names_that_a_certificate_cannot_hold_are_refused(authority: Authority, user: str, project: str) -> None:
    with pytest.raises(exception.InvalidParameterValue):
        authority.issue(user, project)


@pytest.mark.parametrize("project", ["../evil", "..", ".", "", "a/b", "a\0b"])
def test_no_projects_name_leads_out_of_the_directory(authority: Authority, project: str, tmp_path: Path) -> None:
    FLAGS.use_project_ca = True
    with pytest.raises(exception.InvalidParameterValue):
        authority.issue("ann", project)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ca"]


# -- revocation -------------------------------------------------------------------------------------------------------

def test_a_removed_users_certificates_are_revoked_in_all_projects(authority: Authority, verify: Verifier,
                                                                 by_project: bool) -> None:
    issued = {project: authority.issue("ann", project)[1] for project in ("proj", "other")}
    assert authority.revoke_user("ann") == 2
    for project, certificate in issued.items():
        assert "certificate revoked" in verify(certificate, project, ok=False)


def test_a_user_who_leaves_a_project_keeps_the_certificates_of_others(authority: Authority, verify: Verifier,
                                                                     by_project: bool) -> None:
    issued = {project: authority.issue("ann", project)[1] for project in ("proj", "other")}
    assert authority.revoke_user("ann", "proj") == 1
    verify(issued["proj"], ok=False)
    verify(issued["other"], "other")


def test_the_certificates_of_others_stay_good(authority: Authority, verify: Verifier, by_project: bool) -> None:
    certificate = authority.issue("bob", "proj")[1]
    authority.issue("ann", "proj")
    authority.revoke_user("ann")
    verify(certificate)


def test_a_removed_projects_certificates_are_revoked(authority: Authority, verify: Verifier, by_project: bool,
                                                     tmp_path: Path) -> None:
    certificate = authority.issue("ann", "proj")[1]
    chain = authority.chain("proj")
    assert authority.revoke_project("proj") == (2 if by_project else 1)
    (tmp_path / "old.pem").write_bytes(certificate)
    (tmp_path / "old-chain.pem").write_bytes(chain)
    (tmp_path / "lists.pem").write_bytes(authority.crl())
    for check in ("-crl_check", "-crl_check_all"):
        assert "certificate revoked" in openssl(
            "verify", "-CAfile", str(tmp_path / "old-chain.pem"), "-CRLfile", str(tmp_path / "lists.pem"), check,
            str(tmp_path / "old.pem"), ok=False)
    assert not list((tmp_path / "ca/projects").glob("proj/*"))


def test_a_project_made_again_has_another_authority(authority: Authority, verify: Verifier) -> None:
    FLAGS.use_project_ca = True
    old = authority.issue("ann", "proj")[1]
    authority.revoke_project("proj")
    new = authority.issue("ann", "proj")[1]
    assert certificates.load(old).issuer != certificates.load(new).issuer
    verify(new, check="-crl_check_all")


def test_revoking_again_changes_nothing(authority: Authority, by_project: bool) -> None:
    authority.issue("ann", "proj")
    authority.revoke_project("proj")
    before = authority.crl()
    assert authority.revoke_project("proj") == authority.revoke_user("ann") == authority.revoke_user("nobody") == 0
    assert authority.crl() == before


def test_lists_are_numbered_and_made_anew_when_half_their_time_is_over(authority: Authority) -> None:
    def number() -> int:
        [shown] = re.findall(rb"X509v3 CRL Number: \n\s+(\d+)", subprocess.run(
            ["openssl", "crl", "-noout", "-text"], input=authority.crl(), capture_output=True, check=True).stdout)
        return int(shown)
    assert [number(), number()] == [1, 1]
    FLAGS.crl_days = 100  # of which the list's 30 are less than half
    assert [number(), number()] == [2, 2]


# -- what is on the disk ----------------------------------------------------------------------------------------------

def test_only_the_owner_can_read_keys_and_what_was_issued(authority: Authority, tmp_path: Path) -> None:
    FLAGS.use_project_ca = True
    authority.issue("ann", "proj")
    for name, mode in (("ca", 0o700), ("ca/cakey.pem", 0o600), ("ca/index.sqlite", 0o600), ("ca/projects", 0o700),
                       ("ca/projects/proj", 0o700), ("ca/projects/proj/cakey.pem", 0o600)):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == mode, name


def test_what_is_good_is_told_from_what_is_not(authority: Authority, by_project: bool) -> None:
    certificate = authority.issue("ann", "proj")[1]
    assert authority.is_good(certificate, "ann", "proj")
    assert not authority.is_good(certificate, "bob", "proj")
    assert not authority.is_good(certificate, "ann", "other")
    assert not authority.is_good(b"nonsense", "ann", "proj")
    FLAGS.use_project_ca = not by_project
    assert not authority.is_good(certificate, "ann", "proj")
    FLAGS.use_project_ca = by_project
    authority.revoke_user("ann")
    assert not authority.is_good(certificate, "ann", "proj")


_ISSUE = """
import sys
from nova.crypto import Authority
from nova.flags import FLAGS
FLAGS.use_project_ca = True
authority = Authority(sys.argv[1])
print("begin", flush=True)
for n in range(int(sys.argv[3])):
    authority.ensure()
    authority.issue(sys.argv[2], f"proj{n % 3}")
    if n % 4 == 3:
        authority.revoke_project(f"proj{n % 3}")
"""


@pytest.fixture
def issuing(tmp_path: Path) -> Callable[[str, int], subprocess.Popen]:
    """Starts a process that issues and revokes."""
    def start(user: str, rounds: int) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", _ISSUE, str(tmp_path / "ca"), user, str(rounds)],
                                stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    return start


def test_processes_at_once_share_one_authority(issuing: Callable[[str, int], subprocess.Popen], tmp_path: Path) -> None:
    processes = [issuing(f"user{n}", 6) for n in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    authority = Authority(str(tmp_path / "ca"))
    assert authority.ensure() is False
    FLAGS.use_project_ca = True
    Verifier(authority, tmp_path)(authority.issue("ann", "proj0")[1], "proj0", check="-crl_check_all")
    revoked = sum(authority.revoke_user(f"user{n}") for n in range(3))
    with_lists = openssl("storeutl", "-noout", "-crls", str(_written(tmp_path / "all.pem", authority.crl())))
    assert 0 < revoked <= 18 and "Total found" in with_lists


@pytest.mark.parametrize("after", [0.05, 0.2, 0.5, 0.9])
def test_a_process_killed_at_any_moment_leaves_an_authority_that_works(
        issuing: Callable[[str, int], subprocess.Popen], tmp_path: Path, after: float) -> None:
    process = issuing("ann", 1000)
    assert process.stdout is not None and process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    authority = Authority(str(tmp_path / "ca"))
    authority.ensure()
    FLAGS.use_project_ca = True
    verify = Verifier(authority, tmp_path)
    certificate = authority.issue("bob", "proj0")[1]
    verify(certificate, "proj0", check="-crl_check_all")
    authority.revoke_user("bob")
    verify(certificate, "proj0", ok=False)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
