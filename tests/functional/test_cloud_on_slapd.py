"""What a start, another start and the removal of a cloud mean for an LDAP server, which is no part of the cloud."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from nova.auth import tree
from nova.auth.directory import Scope
from tests.conftest import wait_until
from tests.functional.cloud import Cloud, cloud
from tests.slapd import FAKE, LDAP, ROOT, Slapd, needs_slapd

pytestmark = needs_slapd


@pytest.fixture
def up() -> Iterator[Cloud]:
    with cloud("--compute_driver=fake", directory=LDAP) as made:
        assert made.slapd is not None
        made.start(f"--flagfile={made.slapd.flagfile}")
        wait_until(lambda: "remove " in made.last_words(), 60, "the quick start's end")
        yield made


async def names(slapd: Slapd, root: str) -> list[str]:
    """The names of all entries below one of the roots."""
    directory = slapd.client(timeout=10)
    found = await directory.search(root, Scope.SUBTREE)
    await directory.stop()
    return sorted(tree.name_of(entry.dn) for entry in found if entry.dn != root)


async def test_clean_takes_away_what_is_this_clouds_alone(up: Cloud) -> None:
    slapd = up.slapd
    assert slapd is not None
    [remove] = [line for line in up.last_words().splitlines() if line.startswith("  remove ")]
    assert f" --flagfile={slapd.flagfile}" in remove
    keys = up.credentials()
    key = up.ec2.create_key_pair(KeyName="mine")["KeyPairId"]
    users, roots = tree.roots()[0], tree.roots()[1:]
    assert await names(slapd, users) == ["admin", key]
    before = [await names(slapd, root) for root in roots]
    assert up.stop() == 0
    cleaned = up.run("--clean")
    assert cleaned.returncode == 0 and not up.state.exists(), cleaned.stderr
    assert f"removed the key pairs from {slapd.url}; users, projects and roles stay there" in cleaned.stdout
    assert await names(slapd, users) == ["admin"]
    assert [await names(slapd, root) for root in roots] == before
    up.start()  # the next cloud goes on with them
    assert up.credentials() == keys
    assert await names(slapd, users) == ["admin"]


def test_another_directory_is_refused_and_one_that_is_away_holds_nobody_up(up: Cloud) -> None:
    assert up.slapd is not None
    up.ec2.create_key_pair(KeyName="mine")
    asked = subprocess.run([sys.executable, str(ROOT / "bin/nova-manage"), f"--state_path={up.state}", "user", "list"],
                           cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 1 and "the cloud keeps its users with --ldap_driver=ldap" in asked.stderr
    assert up.stop() == 0
    refused = up.run(f"--ldap_driver={FAKE}")
    assert refused.returncode == 1
    assert "the user admin, whom the first start made, is not in the directory of --ldap_driver=fake" in refused.stderr
    up.slapd.kill()
    cleaned = up.run("--clean")
    assert cleaned.returncode == 0 and not up.state.exists(), cleaned.stderr
    assert f"left {up.slapd.url} as it is: " in cleaned.stdout
