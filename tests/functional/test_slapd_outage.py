"""slapd goes away under load: whoever is remembered is served as ever, the others are told, and nothing crashes."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import botocore.exceptions
import pytest

from nova.adminclient import AdminClient
from nova.auth import memo
from tests.conftest import wait_until
from tests.functional.cloud import Cloud, cloud
from tests.slapd import LDAP, needs_slapd

pytestmark = needs_slapd

#: seconds for which slapd hangs, and for which it is gone
HANGS, GONE = 10.0, 2.0
#: --ldap_timeout, and the seconds within which it is told: an answer on an old connection, and one on a new one
LDAP_TIMEOUT, TOLD = 1, 3.5
#: seconds that a request may take for which nobody has to ask slapd
PROMPT = 2.0
#: seconds within which all is well again
WELL = 2.0
DONE = (200, "")
EC2_AWAY, S3_AWAY = (503, "Unavailable"), (503, "ServiceUnavailable")


def said(call: Callable[[], Any]) -> tuple[int, str]:
    """The status of an answer, and its error's code."""
    try:
        return call()["ResponseMetadata"]["HTTPStatusCode"], ""
    except botocore.exceptions.ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]


class Client(threading.Thread):
    """Describes instances until it is told to end, and keeps what came of it: (begin, seconds, answer)."""

    def __init__(self, ec2: Any, ended: threading.Event):
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float, Any]] = []
        self._ec2, self._ended = ec2, ended

    def run(self) -> None:
        while not self._ended.wait(0.02):
            began = time.monotonic()
            try:
                answer: Any = said(self._ec2.describe_instances)
            except botocore.exceptions.BotoCoreError as error:  # no answer at all
                answer = error
            self.seen.append((began, time.monotonic() - began, answer))

    def check(self, since: float, until: float, answer: tuple[int, str], within: float) -> None:
        """Every request that was made between two moments was answered so, in time; there were some."""
        seen = [one for one in list(self.seen) if since <= one[0] and one[0] + one[1] <= until]
        assert {one[2] for one in seen} == {answer}
        assert max(one[1] for one in seen) < within

    def done_after(self, moment: float) -> bool:
        """Whether a request that was made after a moment was done."""
        return any(began >= moment and answer == DONE for began, _, answer in list(self.seen))


@pytest.fixture
def up() -> Iterator[Cloud]:
    """A cloud on a slapd that remembers for longer than a test takes."""
    with cloud("--compute_driver=fake", f"--ldap_timeout={LDAP_TIMEOUT}", "--auth_memo_seconds=120",
               directory=LDAP) as made:
        made.start()
        yield made


def new_user(made: Cloud, admin: AdminClient, name: str) -> dict[str, str]:
    """The credentials of a new member of the project admin, whom no process has seen yet."""
    user = admin.create_user(name)
    admin.add_project_member(name, "admin")
    return {"aws_access_key_id": f"{user.access_key}:admin", "aws_secret_access_key": user.secret_key or ""}


def forget(made: Cloud, name: str) -> None:
    """Have all processes forget a user, as a change of the user does."""
    with contextlib.closing(made.redis_client()) as redis:
        assert redis.publish(memo.CHANNEL, json.dumps({"user": name, "project": ""}))


def check_well(clients: list[Client], since: float) -> None:
    """Every client's requests are done again, and go on to be."""
    wait_until(lambda: all(client.done_after(since) for client in clients), WELL, "the end of the outage")
    assert time.monotonic() - since < WELL
    settled = time.monotonic()
    wait_until(lambda: all(client.done_after(settled) for client in clients), WELL, "another request of each")
    for client in clients:
        client.check(settled, time.monotonic(), DONE, PROMPT)


def test_slapd_goes_away_under_load(up: Cloud) -> None:
    slapd = up.slapd
    assert slapd is not None
    keys = up.credentials()
    admin = AdminClient(f"http://127.0.0.1:{up.ec2_port}", keys["aws_access_key_id"], keys["aws_secret_access_key"])
    users = {name: new_user(up, admin, name) for name in ("known", "dropped", "unseen", "late")}
    new_s3 = up.client("s3", **new_user(up, admin, "unseen-s3"))
    ended = threading.Event()
    known, dropped, unseen, late = clients = [Client(up.client("ec2", **user), ended) for user in users.values()]
    nobody = up.client("ec2", aws_access_key_id="NOBODY:admin", aws_secret_access_key="x")
    assert said(up.s3.list_buckets) == DONE and said(nobody.describe_instances) == (401, "AuthFailure")
    try:
        for client in (known, dropped):
            client.start()
        wait_until(lambda: known.done_after(0) and dropped.done_after(0), 10, "the load")

        # it hangs: connections stay, and nothing comes
        began, pid = time.monotonic(), slapd.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            for client in (unseen, late):
                client.start()
            assert said(up.s3.list_buckets) == DONE
            assert said(new_s3.list_buckets) == S3_AWAY
            assert said(nobody.describe_instances) == EC2_AWAY  # it cannot be known that there is no such key
            half = time.monotonic()
            dropped.check(began, half, DONE, PROMPT)
            forget(up, "dropped")
            wait_until(lambda: dropped.seen[-1][2] == EC2_AWAY, TOLD + 1, "one who is forgotten is refused")
            forgotten = time.monotonic()
            wait_until(lambda: time.monotonic() > began + HANGS, HANGS, "the outage's end")
        finally:
            back = time.monotonic()
            os.kill(pid, signal.SIGCONT)
        check_well(clients, back)
        known.check(began, time.monotonic(), DONE, PROMPT)
        dropped.check(forgotten, back, EC2_AWAY, TOLD)
        for client in (unseen, late):
            client.check(began, back, EC2_AWAY, TOLD)
        assert said(new_s3.list_buckets) == DONE and said(nobody.describe_instances) == (401, "AuthFailure")

        # it is killed: connections break, and none can be made
        began = time.monotonic()
        slapd.kill()
        gone = time.monotonic()
        forget(up, "unseen")
        wait_until(lambda: unseen.seen[-1][2] == EC2_AWAY, TOLD, "one who is forgotten is refused")
        forgotten = time.monotonic()
        wait_until(lambda: time.monotonic() > gone + GONE, GONE + 1, "the outage's end")
        starting = time.monotonic()
        slapd.start()
        check_well(clients, time.monotonic())
        unseen.check(forgotten, starting, EC2_AWAY, PROMPT)
        for client in (known, late):
            client.check(began, time.monotonic(), DONE, PROMPT)
    finally:
        ended.set()
        for client in clients:
            if client.ident is not None:
                client.join(30)
        admin.close()
    answers = {answer for client in clients for _, _, answer in client.seen}
    assert answers == {DONE, EC2_AWAY}  # in all that time, nothing else
    assert up.alive and "Traceback" not in up.log.read_text()
