"""Daemons: their log, and that their parts start and stop in order."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova import service
from nova.context import request_id_var
from nova.flags import FLAGS

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, os, signal, sys
from nova import exception, flags, service
flags.parse_or_exit(sys.argv[:1] + sys.argv[2:])
service.set_up_logging()
mode = sys.argv[1]

class Part(service.Service):
    def __init__(self, name):
        self.name = name
    async def start(self):
        print("start", self.name, flush=True)
        if mode == "refuse" and self.name == "b":
            raise exception.NovaError("b cannot be")
        if mode == "bug" and self.name == "b":
            raise KeyError("oops")
        if mode == "hang" and self.name == "b":
            print("hanging", flush=True)
            await asyncio.Event().wait()
    async def stop(self):
        print("stop", self.name, flush=True)
        if mode == "bad stop" and self.name == "b":
            raise KeyError("oops")
        if mode == "slow stop" and self.name == "b":
            await asyncio.Event().wait()

async def ready():
    from twisted.internet import reactor
    print("ready", type(reactor).__name__, flush=True)

sys.exit(service.serve([Part("a"), Part("b"), Part("c")], ready))
"""


class Daemon:
    """A daemon of three parts in a process of its own."""

    def __init__(self, mode: str, *flags: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, mode, *flags], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)})

    def read_until(self, word: str) -> list[str]:
        lines: list[str] = []
        assert self.process.stdout is not None
        while not lines or not lines[-1].startswith(word):
            line = self.process.stdout.readline()
            assert line, f"it ended before {word!r}: {lines}"
            lines.append(line.strip())
        return lines

    def end(self, number: int | None = None) -> tuple[int, list[str], str]:
        """Exit code, what it said since, and the log."""
        if number is not None:
            os.kill(self.process.pid, number)
        try:
            out, err = self.process.communicate(timeout=20)
        finally:
            self.process.kill()
        return self.process.returncode, out.split("\n")[:-1], err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_parts_start_in_order_and_stop_in_reverse(number: int) -> None:
    daemon = Daemon("")
    assert daemon.read_until("ready") == ["start a", "start b", "start c", "ready AsyncioSelectorReactor"]
    code, lines, _ = daemon.end(number)
    assert (code, lines) == (0, ["stop c", "stop b", "stop a"])


@pytest.mark.parametrize(("mode", "told"), [("refuse", "cannot start: b cannot be"), ("bug", "KeyError")])
def test_a_part_that_cannot_start_ends_the_daemon_in_order(mode: str, told: str) -> None:
    code, lines, log = Daemon(mode).end()
    assert (code, lines) == (1, ["start a", "start b", "stop b", "stop a"])
    assert told in log


def test_why_it_cannot_start_is_said_at_the_terminal_also_where_the_log_is_a_file(tmp_path: Path) -> None:
    code, _, err = Daemon("refuse", f"--logfile={tmp_path}/logs/x.log").end()
    assert (code, err) == (1, "cannot start: b cannot be\n")
    assert "b cannot be" in (tmp_path / "logs/x.log").read_text()


def test_a_signal_ends_a_start_that_hangs() -> None:
    daemon = Daemon("hang")
    daemon.read_until("hanging")
    code, lines, _ = daemon.end(signal.SIGTERM)
    assert (code, lines) == (0, ["stop b", "stop a"])


def test_a_part_that_fails_to_stop_does_not_keep_the_others_running() -> None:
    daemon = Daemon("bad stop")
    daemon.read_until("ready")
    code, lines, log = daemon.end(signal.SIGTERM)
    assert (code, lines) == (0, ["stop c", "stop b", "stop a"])
    assert "b failed to stop" in log


def test_a_part_that_does_not_stop_is_given_up() -> None:
    daemon = Daemon("slow stop", "--stop_timeout=1")
    daemon.read_until("ready")
    code, lines, log = daemon.end(signal.SIGTERM)
    assert (code, lines) == (0, ["stop c", "stop b", "stop a"])
    assert "b did not stop in time" in log


# -- the log ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


class Said:
    """What is logged to standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def log(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


async def test_a_json_log_is_one_object_a_line_with_the_request_id(log: Said) -> None:
    FLAGS.log_json = True
    service.set_up_logging()

    async def request(id: str) -> None:
        request_id_var.set(id)
        logging.getLogger("nova.test").info("said by %s\nin two lines", id)
    await asyncio.gather(request("r1"), request("r2"))
    entries = [json.loads(line) for line in log.text().splitlines()]
    assert [(e["request_id"], e["message"]) for e in entries] == [
        ("r1", "said by r1\nin two lines"), ("r2", "said by r2\nin two lines")]
    assert entries[0]["level"] == "info" and entries[0]["logger"] == "nova.test" and entries[0]["host"] == FLAGS.host
    assert isinstance(entries[0]["time"], float)


def test_a_json_log_has_the_traceback_in_its_line(log: Said) -> None:
    FLAGS.log_json = True
    service.set_up_logging()
    try:
        raise KeyError("oops")
    except KeyError:
        logging.getLogger("nova.test").exception("failed")
    [line] = log.text().splitlines()
    assert "KeyError: 'oops'" in json.loads(line)["traceback"]


def test_a_text_log_has_the_request_id(log: Said) -> None:
    service.set_up_logging()
    logging.getLogger("nova.test").warning("hello")
    assert log.text().endswith("Z WARNING nova.test [-] hello\n")


def test_the_log_tells_the_time_in_utc(log: Said) -> None:
    service.set_up_logging()
    record = logging.LogRecord("nova.test", logging.INFO, "", 0, "hello", None, None)
    record.created, record.msecs = 0.0, 7.0
    logging.getLogger("nova.test").handle(record)
    assert log.text().startswith("1970-01-01T00:00:00.007Z ")


def test_what_is_less_severe_than_the_flag_says_is_not_logged(log: Said) -> None:
    FLAGS.log_level = "error"
    service.set_up_logging()
    logging.getLogger("nova.test").warning("unimportant")
    logging.getLogger("nova.test").error("important")
    assert "unimportant" not in log.text() and "important" in log.text()


def test_a_log_file_that_was_moved_away_is_made_anew(root_logger: logging.Logger, tmp_path: Path) -> None:
    FLAGS.logfile = str(tmp_path / "deep/nova.log")
    service.set_up_logging()
    path = Path(FLAGS.logfile)
    logging.getLogger("nova.test").info("one")
    path.rename(tmp_path / "old.log")
    logging.getLogger("nova.test").info("two")
    assert "one" in (tmp_path / "old.log").read_text() and "two" in path.read_text()


def test_setting_up_again_does_not_log_twice(log: Said) -> None:
    service.set_up_logging()
    service.set_up_logging()
    logging.getLogger("nova.test").info("once")
    assert log.text().count("once") == 1
