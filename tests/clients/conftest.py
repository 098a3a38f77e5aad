"""Clouds that the client tests share."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.clients.support", "tests.clients.whole_round")

from tests import slapd  # noqa: E402
from tests.clients import support  # noqa: E402


@pytest.fixture(scope="session")
def cloud() -> Iterator[support.Cloud]:
    """A cloud with real guests and networks, inside the namespaces that run_tests.sh makes."""
    support.need_isolation()
    with support.running_cloud() as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="session")
def fake_cloud() -> Iterator[support.Cloud]:
    """A cloud whose instances and networks are only written down."""
    with support.running_cloud("--compute_driver=fake", "--network_driver=fake") as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="session")
def fake_cloud_on_slapd() -> Iterator[support.Cloud]:
    """The same with its users in a slapd, where the run has the others' in the embedded directory."""
    with support.running_cloud("--compute_driver=fake", "--network_driver=fake", directory=slapd.LDAP) as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture
def either_cloud(request: pytest.FixtureRequest, directory_driver: str) -> support.Cloud:
    """A fake cloud on the directory that the test is run for."""
    other = directory_driver != slapd.chosen()
    return request.getfixturevalue("fake_cloud_on_slapd" if other else "fake_cloud")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that fails shows the end of its cloud's log and of its guests' consoles."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, support.Cloud):
                lines = [line for line in value.log().splitlines() if " 200 " not in line and " 404 " not in line]
                report.sections.append(("the end of nova-all.log", "\n".join(lines[-60:])))
                for console in value.state_path.glob("instances/*/console.log"):
                    lines = console.read_text(errors="replace").splitlines()
                    report.sections.append((f"the end of {console}", "\n".join(lines[-20:])))
    return report
