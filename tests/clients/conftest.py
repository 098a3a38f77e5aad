"""Clouds that the client tests share."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.clients.support", "tests.clients.whole_round")

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
