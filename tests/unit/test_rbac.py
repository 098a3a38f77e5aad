"""The table of roles: what it may say, and the page of the manual that is made from it."""

from pathlib import Path

import pytest

from nova import exception
from nova.auth import rbac
from nova.context import Context

ROOT = Path(__file__).parents[2]
MISSING = exception.InvalidInstanceIDNotFound(id="i-1")


def caller(*roles: str) -> Context:
    return Context("ann", "proj", frozenset(roles))


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "rbac.rst").read_text() == rbac.page(), "run: python -m nova.auth.rbac > docs/rbac.rst"


@pytest.mark.parametrize("name", rbac.TABLE)
def test_every_row_makes_sense(name: str) -> None:
    """Whoever may do it farther away may do it nearer by; the roles exist; somebody has one."""
    row = rbac.TABLE[name]
    assert row.others <= row.project <= row.own <= rbac.ROLES.keys() and row.own or not row.owned
    assert row.own and (row.owned or not row.project | row.others)
    assert ":" not in name or name.partition(":")[0] in rbac.TABLE


def test_an_action_without_a_row() -> None:
    for ask in (rbac.rule, lambda name: rbac.permits(caller("member"), name),
                lambda name: rbac.allows(caller("member"), name, "ann", "proj")):
        with pytest.raises(TypeError, match="table of roles"):
            ask("CreateVpc")


def test_ownership() -> None:
    def check(owner: str, project: str, *roles: str) -> None:
        rbac.check(caller(*roles), "TerminateInstances", owner, project, MISSING)
    check("ann", "proj", "member")
    check("bob", "proj", "member", "projectmanager")
    for owner in ("bob", ""):
        with pytest.raises(exception.UnauthorizedOperation):
            check(owner, "proj", "member", "sysadmin", "netadmin", "cloudadmin", "itsec")
    for owner in ("bob", "ann"):
        with pytest.raises(exception.InvalidInstanceIDNotFound):
            check(owner, "other", *rbac.ROLES)


def test_no_roles_permit_nothing() -> None:
    assert not [name for name in rbac.TABLE if rbac.permits(caller(), name)]


def test_kernels_are_the_cloud_administrators() -> None:
    others = caller(*(role for role in rbac.ROLES if role != "cloudadmin"))
    assert not rbac.permits(others, "RegisterImage:kernel") and not rbac.permits(others, "DeregisterImage:kernel")
    assert rbac.permits(caller("cloudadmin"), "RegisterImage:kernel")


def test_itsec_reads_everything_and_changes_nothing_but_locks() -> None:
    """A role that sees all must not be able to change anything with it."""
    may = {name for name, row in rbac.TABLE.items() if "itsec" in row.others}
    assert {name for name in may if not name.startswith(("Describe", "Get", "List", "Head"))} == {
        "UpdateAccessKey", "LockInstance", "UnlockInstance"}
    assert {"DescribeInstances", "GetConsoleOutput", "GetObject", "DescribeImages", "DescribeKeyPairs"} <= may
