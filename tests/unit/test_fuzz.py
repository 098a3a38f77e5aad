"""The parsers take generated inputs, and what such inputs have found stays mended."""

from datetime import UTC, datetime, timedelta

import pytest

from nova.auth import claims
from nova.objectstore import conditions, errors, forms, lifecycle
from nova.objectstore.models import Bucket, Object
from tests.fuzz.__main__ import main
from tests.fuzz.mutation import shrunk
from tests.fuzz.run import Target, failure_of, run
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_mapped_errors(name):
    # a machine with much else to do is given more time for each input than the command gives
    report = run(name, TARGETS[name](), inputs=2000, seed=7, limit=10)
    assert not report.failures
    assert report.inputs == sum(report.outcomes.values()) == 2000
    assert len(report.outcomes) > 1


def test_the_same_seed_gives_the_same_outcomes():
    first, second, other = (run("range", TARGETS["range"](), 500, seed, limit=10) for seed in (1, 1, 2))
    assert first.outcomes == second.outcomes != other.outcomes


def test_a_failure_is_found_and_made_small():
    def check(data: bytes) -> str:
        if b"%" in data:
            raise KeyError("a percent sign")
        return "fine"
    [failure] = run("broken", Target(check, (b"abc def",)), 5000, 1, limit=10).failures
    assert (failure.kind, failure.data) == ("KeyError in check", b"%")


def test_what_is_slow_fails():
    kind, _ = failure_of(Target(lambda data: str(sum(range(100_000))), ()), b"", limit=0)
    assert kind == "slower than 0 s"


def test_shrinking_keeps_what_is_needed():
    assert shrunk(b"xxaxxxxbxx", lambda data: b"a" in data and b"b" in data) == b"ab"


def test_the_command(capsys):
    assert main(["range", "--inputs", "50", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("range: 50 inputs in ")
    with pytest.raises(SystemExit):
        main(["nothing-of-this-name"])


# -- found ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("date", ["2 Jan 2026 0:2147483648", "Fri, 02 Jan 2026 03:04:05 +99999999999999999"])
def test_dates_with_numbers_too_large_are_none(date):
    headers = (("Host", "h"), ("Date", date), ("Authorization", "AWS K:x"))
    with pytest.raises(claims.AccessDenied):
        claims.read_s3(claims.SignedRequest("GET", "/b", "", headers))


def test_a_range_of_blanks_is_read_at_once():
    def check(data: bytes) -> str:
        return str(conditions.parse_range(data.decode(), 10))
    assert failure_of(Target(check, ()), b"bytes=" + b" " * 250_000 + b"x", limit=10) is None


@pytest.mark.parametrize("body", [
    b"--b\r\n" + b"x" * forms.MAX_FIELDS + b"\r\n\r\n",
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"\xff" * forms.MAX_FIELDS + b"\r\n--b\r\n",
    b"x" * forms.MAX_FIELDS + b"\r\n--b--"])
@pytest.mark.parametrize("size", [100, 100_000])
def test_what_is_too_long_before_the_file_is_refused_for_that_however_it_comes(body, size):
    parser = forms.Parser(b"b")
    with pytest.raises(errors.MaxPostPreDataLengthExceeded):
        for at in range(0, len(body), size):
            list(parser.feed(body[at:at + size]))


def _bucket(expiration: dict) -> Bucket:
    kept = lifecycle.read({"Rules": [{"ID": "a", "Status": "Enabled", "Prefix": "", "Expiration": expiration}]})
    return Bucket(id="b", user_id="u", project_id="p", created=0.0, configuration={"lifecycle": kept})


def _object() -> Object:
    return Object(id="o", bucket="b", key="k", project_id="p", file="f", size=1, md5="", sha256="", etag="",
                  modified=datetime(2026, 1, 2, tzinfo=UTC).timestamp())


def test_a_lifecycle_may_name_the_first_of_years():
    date = datetime(1, 1, 2, tzinfo=UTC)
    [rule] = lifecycle.rules_of(_bucket({"Date": date}))
    assert rule.date == date.timestamp()


def test_an_expiry_after_the_last_of_years_can_be_told():
    found = lifecycle.headers(_bucket({"Days": 2**31 - 1}), _object())
    assert found["x-amz-expiration"].startswith('expiry-date="Fri, 31 Dec 9999 23:59:59 GMT"')
    assert lifecycle.due(_object().modified, 2**31 - 1) > (datetime.max - datetime(1970, 1, 1)) / timedelta(seconds=1)
