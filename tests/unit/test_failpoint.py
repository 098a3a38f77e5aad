"""Failpoints: named places where a test can have a daemon die."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nova import failpoint
from nova.flags import FLAGS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys
from nova import failpoint, flags
flags.parse_or_exit(sys.argv)
failpoint.declare("test.first", "one")
failpoint.declare("test.second", "two")
atexit.register(print, "cleaned up", flush=True)
failpoint.hit("test.first")
print("after first", flush=True)
failpoint.hit("test.second")
print("after second", flush=True)
"""


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(failpoint, "_declared", dict(failpoint._declared))


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=30,
                          env={"PYTHONPATH": str(ROOT)})


def test_nothing_happens_where_the_flag_names_no_failpoint() -> None:
    assert run().stdout.split("\n")[:2] == ["after first", "after second"]


def test_the_process_dies_at_the_failpoint_that_the_flag_names_as_by_kill_9() -> None:
    ended = run("--failpoint=test.second")
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == "after first\n"


def test_a_failpoint_that_was_never_declared_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        failpoint.hit("test.no such")


def test_a_name_stands_for_one_place() -> None:
    failpoint.declare("test.twice", "one")
    failpoint.declare("test.twice", "one")  # a module that is imported again
    with pytest.raises(ValueError, match="test.twice"):
        failpoint.declare("test.twice", "another")


def test_names_are_listed_by_their_beginning() -> None:
    failpoint.declare("testlist.b", "")
    failpoint.declare("testlist.a", "")
    assert failpoint.names("testlist.") == ["testlist.a", "testlist.b"]


def test_the_signal_goes_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    failpoint.declare("test.self", "")
    FLAGS.failpoint = "test.self"
    failpoint.hit("test.self")
    assert killed == [(os.getpid(), signal.SIGKILL)]
