"""slap.sh: run once, run again, scrubbed; and what it refuses."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova import exception
from nova.auth.directory import Scope
from nova.auth.filters import ANY
from tests.conftest import free_port, wait_until
from tests.slapd import ROOT, Slapd, needs_slapd

pytestmark = needs_slapd


@pytest.fixture
def server() -> Iterator[Slapd]:
    made = Slapd()
    yield made
    made.remove()


def slap(*arguments: str, **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / "slap.sh"), *arguments], text=True, capture_output=True, timeout=60,
                          stdin=subprocess.DEVNULL, **how)


def configuration(server: Slapd) -> dict[str, bytes]:
    """slapd's whole configuration on disk, without what says when it was written."""
    return {str(path): b"".join(line for line in path.read_bytes().splitlines(True)
                                if not line.startswith((b"entryCSN", b"modifyTimestamp", b"# CRC32")))
            for path in (server.directory / "slapd.d").rglob("*.ldif")}


def test_it_prints_the_flags_that_nova_needs(server: Slapd) -> None:
    done = server.slap()
    assert done.returncode == 0, done.stderr
    flags = [line for line in done.stdout.splitlines() if line.startswith("--")]
    assert flags == ["--ldap_driver=ldap", f"--ldap_url={server.url}", "--ldap_user_dn=cn=nova,dc=nova",
                     f"--ldap_password_file={server.directory}/nova.password", "--ldap_user_subtree=ou=Users,dc=nova",
                     "--ldap_project_subtree=ou=Groups,dc=nova", "--ldap_role_subtree=ou=Roles,dc=nova"]
    assert os.stat(server.directory / "nova.password").st_mode & 0o777 == 0o600
    assert os.stat(server.directory).st_mode & 0o777 == 0o700
    assert server.password not in done.stdout + done.stderr


def test_run_again_it_changes_nothing(server: Slapd) -> None:
    server.start()
    before, password, pid = configuration(server), server.password, server.pid
    server.start()
    assert configuration(server) == before and server.password == password and server.pid == pid


async def test_it_goes_on_with_what_is_there(server: Slapd) -> None:
    server.start()
    directory = server.client()
    await directory.add("cn=x,ou=Roles,dc=nova", {"objectClass": ["groupOfNames"], "cn": ["x"], "member": ["dc=nova"]})
    await directory.delete("ou=Groups,dc=nova")
    assert server.slap("--stop").returncode == 0
    wait_until(lambda: not server.listens(), 10)
    server.start()
    found = await directory.search("dc=nova", Scope.ONE, ANY, ["1.1"])
    assert {e.dn for e in found} >= {"ou=Users,dc=nova", "ou=Groups,dc=nova", "ou=Roles,dc=nova"}
    assert len(await directory.search("ou=Roles,dc=nova", Scope.ONE)) == 1
    await directory.stop()


async def test_a_new_password_in_the_file_becomes_the_password(server: Slapd) -> None:
    server.start()
    old = server.client()
    (server.directory / "nova.password").write_text("an other one")
    server.start()
    with pytest.raises(exception.Unavailable):
        await old.search("dc=nova", Scope.ONE)
    new = server.client()
    assert await new.search("dc=nova", Scope.ONE)
    for each in (old, new):
        await each.stop()


async def test_another_suffix(server: Slapd) -> None:
    server.options = ("--suffix=dc=cloud,dc=example,dc=com",)
    server.start()
    directory = server.client(user_dn="cn=nova,dc=cloud,dc=example,dc=com")
    assert len(await directory.search("dc=cloud,dc=example,dc=com", Scope.ONE, ANY, ["1.1"])) == 4
    await directory.stop()


def test_lookups_are_indexed(server: Slapd) -> None:
    server.start()
    text = b"".join(configuration(server).values()).decode()
    for attribute in ("uid", "cn", "accessKey", "member"):
        assert any(attribute in line for line in text.splitlines() if line.startswith("olcDbIndex:"))


def test_purging_asks_first(server: Slapd) -> None:
    server.start()
    refused = server.slap("--purge")
    assert refused.returncode == 1 and refused.stderr == \
        "slap.sh: --purge asks first, and there is nobody to answer; --yes answers\n"
    assert server.listens()
    (server.directory / "mine").write_text("something else")
    purged = server.slap("--purge", "--yes")
    assert purged.returncode == 0, purged.stderr
    assert not server.listens() and os.listdir(server.directory) == ["mine"]
    (server.directory / "mine").unlink()
    assert server.slap("--purge", "--yes").returncode == 0
    assert server.slap("--purge", "--yes").returncode == 0
    assert not server.directory.exists()
    server.start()


@pytest.mark.parametrize("answer, removed", [("yes\n", True), ("no\n", False), ("\n", False), ("YES\n", False)])
def test_purging_takes_yes_for_an_answer(server: Slapd, answer: str, removed: bool) -> None:
    server.start()
    command = f"{ROOT}/slap.sh --config-dir={server.directory} --port={server.port} --purge"
    done = subprocess.run(["script", "-qec", command, "/dev/null"], input=answer, text=True, capture_output=True,
                          timeout=60)
    assert "Type yes to go on" in done.stdout
    assert server.listens() is not removed and (done.returncode == 0) is removed


@pytest.mark.parametrize("arguments, said", [
    (["--nonsense"], "I do not know '--nonsense' (--help explains)"),
    (["--suffix"], "--suffix needs a value"),
    (["--suffix=cn=x"], "--suffix=cn=x is not like dc=nova or dc=cloud,dc=example,dc=com"),
    (["--suffix=dc=x,dc=y\n"], "is not like dc=nova"),
    (["--port=1"], "--stop, --port and --tls-port go with --config-dir"),
    (["--config-dir=/tmp/x y", "--port=1"], "only letters, digits"),
    (["--config-dir=/tmp/" + "x" * 100, "--port=1"], "is too long"),
    (["--config-dir=/tmp/x", "--port=abc"], "'abc' is no port"),
    (["--config-dir=/tmp/nova-none"], "--config-dir needs --port"),
    (["--tls-cert=/nonexistent"], "/nonexistent cannot be read"),
    (["--tls-cert=/etc/hostname"], "--tls-cert needs --tls-key"),
], ids=lambda value: value[-1][:20] if isinstance(value, list) else "")
def test_mistakes_are_told_in_one_line(arguments: list[str], said: str) -> None:
    done = slap(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert said in done.stderr.replace("\n", " ") and done.stderr.startswith("slap.sh: ")
    assert not Path("/tmp/nova-none").exists()


def test_a_port_that_is_taken_is_told(server: Slapd) -> None:
    other = Slapd()
    other.port = server.port
    server.start()
    try:
        done = other.slap()
        assert done.returncode == 1 and f"is port {server.port} taken?" in done.stderr
    finally:
        other.remove()


def test_help() -> None:
    done = slap("--help")
    assert done.returncode == 0 and "--purge" in done.stdout and "--config-dir=DIR" in done.stdout


def test_the_password_can_be_kept_elsewhere(server: Slapd, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("chosen")
    server.options = (f"--password-file={tmp_path}/password",)
    done = server.slap()
    assert done.returncode == 0 and f"--ldap_password_file={tmp_path}/password" in done.stdout
    assert free_port() and (tmp_path / "password").read_text() == "chosen"
