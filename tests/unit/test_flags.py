"""Flags: where their values come from, and what a mistake looks like."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from nova import flags
rest = flags.parse_or_exit(sys.argv)
print(flags.FLAGS.region, flags.FLAGS.ec2_port, flags.FLAGS.state_path, *rest[1:], sep="|")
print("\\n".join(flags.given()))
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=directory, capture_output=True, text=True,
                          timeout=30, env={"PYTHONPATH": str(ROOT)})


def values(directory: Path, *arguments: str) -> list[str]:
    """Region, EC2 port and state path, and the other arguments, after the arguments are parsed."""
    ended = run(directory, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[0].split("|")


def test_a_flag_that_nobody_sets_has_its_default(tmp_path: Path) -> None:
    assert values(tmp_path)[:2] == ["nova", "8773"]


def test_the_command_line_sets_a_flag(tmp_path: Path) -> None:
    assert values(tmp_path, "--region=moon", "--ec2_port=1")[:2] == ["moon", "1"]


def test_a_flagfile_sets_flags(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("# a comment\n\n--region=moon\n--ec2_port=1\n")
    assert values(tmp_path, "--flagfile=my.conf")[:2] == ["moon", "1"]


def test_the_command_line_wins_over_a_flagfile_before_it(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("--region=moon\n--ec2_port=1\n")
    assert values(tmp_path, "--flagfile=my.conf", "--region=mars")[:2] == ["mars", "1"]


def test_the_command_line_wins_over_a_flagfile_after_it(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("--region=moon\n--ec2_port=1\n")
    assert values(tmp_path, "--region=mars", "--flagfile=my.conf")[:2] == ["mars", "1"]
    assert values(tmp_path, "--region=mars", "--flagfile", "my.conf")[:2] == ["mars", "1"]


def test_nova_conf_is_read_where_no_flagfile_is_named(tmp_path: Path) -> None:
    (tmp_path / "nova.conf").write_text("--region=moon\n")
    assert values(tmp_path)[0] == "moon"
    assert values(tmp_path, "--region=mars")[0] == "mars"


def test_nova_conf_is_not_read_where_a_flagfile_is_named(tmp_path: Path) -> None:
    (tmp_path / "nova.conf").write_text("--region=moon\n")
    (tmp_path / "my.conf").write_text("--ec2_port=1\n")
    assert values(tmp_path, "--flagfile", "my.conf")[:2] == ["nova", "1"]


def test_of_two_flagfiles_the_later_wins(tmp_path: Path) -> None:
    (tmp_path / "one.conf").write_text("--region=moon\n--ec2_port=1\n")
    (tmp_path / "two.conf").write_text("--region=mars\n")
    assert values(tmp_path, "--flagfile=one.conf", "--flagfile=two.conf")[:2] == ["mars", "1"]


def test_nothing_behind_two_dashes_is_a_flag(tmp_path: Path) -> None:
    assert values(tmp_path, "--region=mars", "--", "--flagfile=x", "--region=moon")[3:] == [
        "--flagfile=x", "--region=moon"]


def test_state_path_is_absolute(tmp_path: Path) -> None:
    assert values(tmp_path, "--state_path=here")[2] == str(tmp_path / "here")


def test_what_is_no_flag_is_given_back(tmp_path: Path) -> None:
    assert values(tmp_path, "--region=moon", "one", "two")[3:] == ["one", "two"]


def test_given_lists_what_another_process_needs_to_be_the_same(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("--region=the moon\n")
    given = run(tmp_path, "--flagfile=my.conf", "--state_path=here").stdout.splitlines()[1:]
    assert given == ["--region=the moon", f"--state_path={tmp_path}/here"]
    assert values(tmp_path, *given) == ["the moon", "8773", f"{tmp_path}/here"]


@pytest.mark.parametrize(("arguments", "culprit"), [
    (["--no_such_flag=1"], "no_such_flag"),
    (["--ec2_port=many"], "ec2_port"),
    (["--ec2_port=65536"], "ec2_port"),
    (["--flagfile=missing.conf"], "missing.conf"),
    (["--flagfile"], "flagfile"),
], ids=["unknown", "no number", "out of range", "no such flagfile", "no flagfile"])
def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path, arguments: list[str], culprit: str) -> None:
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert culprit in line
    assert ended.stdout == ""


def test_an_unknown_flag_in_a_flagfile_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "nova.conf").write_text("--no_such_flag=1\n")
    ended = run(tmp_path)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "no_such_flag" in line
