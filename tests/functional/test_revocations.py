"""The revocation lists are renewed in time, by themselves."""

import os
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from nova.cloud.revocations import RevocationLists
from nova.crypto import Authority, certificates
from nova.flags import FLAGS
from tests.functional.test_auth_manager_directory import until


class Clock:
    def __init__(self) -> None:
        self.now = certificates.now()

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority(str(tmp_path / "ca"), clock)


@pytest.fixture
async def renewing(authority: Authority) -> AsyncIterator[RevocationLists]:
    FLAGS.crl_interval = 0.1
    service = RevocationLists(authority)
    yield service
    await service.stop()


def published(authority: Authority) -> list[x509.CertificateRevocationList]:
    """The lists as a web server finds them."""
    directory = Path(os.path.dirname(authority.certificate_path)) / "crl"
    return [x509.load_der_x509_crl(path.read_bytes()) for path in sorted(directory.glob("*.crl"))]


def number(made: x509.CertificateRevocationList) -> int:
    return made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


async def test_a_list_is_there_at_once_and_renewed_before_it_runs_out(
        authority: Authority, clock: Clock, renewing: RevocationLists) -> None:
    authority.ensure()
    await renewing.start()
    await until(lambda: published(authority), 60)
    [first] = published(authority)
    assert first.next_update_utc == clock.now + timedelta(days=FLAGS.crl_days)
    for _ in range(3):  # each time for as long as it takes, however often the service looks meanwhile
        [before] = published(authority)
        clock.now += timedelta(days=FLAGS.crl_days / 2 + 1)
        await until(lambda before=before: number(published(authority)[0]) > number(before), 60)
        [renewed] = published(authority)
        assert before.next_update_utc > clock.now, "the old list had run out before there was a new one"
        assert renewed.next_update_utc == clock.now + timedelta(days=FLAGS.crl_days)
        assert number(renewed) == number(before) + 1


async def test_a_fresh_list_is_left_alone(authority: Authority, clock: Clock, renewing: RevocationLists) -> None:
    authority.ensure()
    authority.crl()
    [before] = published(authority)
    clock.now += timedelta(days=FLAGS.crl_days / 2 - 1)
    authority.crl()
    assert number(published(authority)[0]) == number(before)


async def test_a_host_without_the_authority_gets_none(authority: Authority, renewing: RevocationLists,
                                                      tmp_path: Path) -> None:
    await renewing.renew()
    assert not (tmp_path / "ca").exists()


async def test_trouble_does_not_end_it(authority: Authority, renewing: RevocationLists,
                                       caplog: pytest.LogCaptureFixture) -> None:
    authority.ensure()
    lists = Path(authority.certificate_path).parent / "crl"
    lists.write_text("in the way of the directory")
    await renewing.start()
    await until(lambda: "cannot be looked after" in caplog.text, 60)
    lists.unlink()
    await until(lambda: published(authority), 60)
