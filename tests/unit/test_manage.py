"""nova-manage without a cloud: its table of commands, help, manual page, completion and tables."""

import argparse
import subprocess
from pathlib import Path

import pytest

from nova.manage import cli, docs, tools
from nova.manage.command import Refused, Session, table

ROOT = Path(__file__).parents[2]
WORDS = [command.words for command in cli.COMMANDS]


def test_every_command_is_in_the_table_once():
    assert len(WORDS) == len(set(WORDS))
    assert set(cli.THINGS) == {command.thing for command in cli.COMMANDS}


@pytest.mark.parametrize("thing,verbs", [
    ("user", "admin create delete list exports modify lock unlock rotate"),
    ("project", "create delete list add remove zip quota scrub"),
    ("role", "add remove has list"), ("host", "list describe disable"), ("service", "list"), ("network", "list"),
    ("image", "list"), ("instance", "list"), ("flags", ""), ("cloud", "verify"), ("completion", "")])
def test_what_an_operator_counts_on_is_there(thing, verbs):
    assert {f"{thing} {verb}".rstrip() for verb in verbs.split() or [""]} <= set(WORDS)


@pytest.mark.parametrize("words", ["", *cli.THINGS, *WORDS])
def test_help_on_every_level(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args([*words.split(), "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: nova-manage {words}".rstrip())
    if words:
        assert "examples:\n  " in said


@pytest.mark.parametrize("command", cli.COMMANDS, ids=WORDS)
def test_the_examples_are_right(command):
    import shlex
    for example in command.examples:
        if "nova-manage" not in example:
            assert cli.parser().parse_args(shlex.split(example)).command is command


@pytest.mark.parametrize("command", cli.COMMANDS, ids=WORDS)
def test_yes_is_there_where_something_is_destroyed(command, capsys):
    words = [*command.words.split()]
    values = [str(argument.options.get("choices", ["x"])[0]) for argument in command.arguments
              if not argument.name.startswith("--") and argument.options.get("nargs") != "?"]
    if command.destroys:
        assert cli.parser().parse_args([*words, "--yes", *values]).yes
    else:
        with pytest.raises(SystemExit):
            cli.parser().parse_args([*words, "--yes", *values])
    assert cli.parser().parse_args(["--yes", *words, *values]).yes
    assert cli.parser().parse_args([*words, *values, "--json"]).json


def test_the_manual_page_is_the_one_of_these_commands():
    assert (ROOT / "docs" / "nova-manage.rst").read_text() == docs.page(), \
        "python -m nova.manage.docs > docs/nova-manage.rst"


@pytest.mark.parametrize("typed,offered", [
    (["nova-manage", "us"], {"user"}),
    (["nova-manage", "--state_path=x", "user", "lo"], {"lock"}),
    (["nova-manage", "user", "delete", "--"], {"--scrub", "--wait", "--yes", "--json", "--help"}),
    (["nova-manage", "role", "add", "ann", "net"], {"netadmin"}),
    (["nova-manage", "completion", "b"], {"bash"}),
])
def test_completion(tmp_path, typed, offered):
    script = tmp_path / "completion"
    script.write_text(tools.bash(cli.COMMANDS) + 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _nova_manage\n'
                      'printf "%s\\n" "${COMPREPLY[@]}"\n')
    said = subprocess.run(["bash", str(script), *typed], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (set(said.stdout.split()), said.stderr) == (offered, "")


def test_tables_fit_the_terminal():
    rows = [{"name": "a" * 100, "members": ["x", "y"], "is": True, "none": None, "odd": "a\x1b[2J\nb"}]
    lines = table(rows, 60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert "x, y" in lines[1] and "yes" in lines[1] and "…" in lines[1]
    assert "\x1b" not in lines[1] and len(lines) == 2
    assert table([], 60) == "(none)"


def test_what_cannot_be_undone_is_refused_without_a_terminal():
    with pytest.raises(Refused, match="--yes"):
        Session(None, False, False).confirm("deleting it")
    Session(None, False, True).confirm("deleting it")


@pytest.mark.parametrize("answer,goes_on", [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False),
                                             ("", False)])
def test_the_answer_decides(monkeypatch, answer, goes_on):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

        def write(self, text):
            return len(text)

        def flush(self):
            pass
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr", Terminal())
    if goes_on:
        Session(None, False, False).confirm("deleting it")
    else:
        with pytest.raises(Refused, match="nothing was done"):
            Session(None, False, False).confirm("deleting it")


def test_flags_come_before_the_command(monkeypatch):
    assert cli._first_word(["nova-manage", "--state_path=/x", "--redis_url", "redis://h", "user", "list"]) == 4
    assert cli._first_word(["nova-manage", "--json", "user", "list"]) == 1


def test_without_a_cloud_it_says_so(tmp_path, capsys):
    assert cli.main(["nova-manage", f"--state_path={tmp_path}", "user", "list"]) == 3
    assert "no cloud runs" in capsys.readouterr().err
    assert cli.main(["nova-manage", "--redis_url=redis://127.0.0.1:1/0", "user", "list"]) == 3


def test_a_wrong_flag_is_a_wrong_command_line(capsys):
    assert cli.main(["nova-manage", "--nonsense=1", "user", "list"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_flags_need_no_cloud(tmp_path, capsys):
    assert cli.main(["nova-manage", f"--state_path={tmp_path}", "--json", "flags", "ec2_port"]) == 0
    assert '"flag": "--ec2_port"' in capsys.readouterr().out


def test_argparse_is_told_nothing_it_does_not_know():
    for command in cli.COMMANDS:
        parser = argparse.ArgumentParser()
        for argument in command.arguments:
            parser.add_argument(argument.name, help=argument.help, **argument.options)
