"""The examples of the page Getting started, taken from it and run as they stand there."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.clients.support import ROOT, Cloud, run, starter_path

PAGE = (ROOT / "docs" / "getting_started.rst").read_text()


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?:(?:   .*)?\n)+)", PAGE, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def shell_script() -> str:
    """What the page has its reader type as an ordinary user: `$ ` begins a command, other lines go on with it."""
    lines = [line for block in blocks("console") if block.startswith("$ ") for line in block.splitlines()]
    return "\n".join(line.removeprefix("$ ") for line in lines)


def working_directory(cloud: Cloud, directory: Path) -> Path:
    """A directory that looks like the tree of somebody who has started this cloud there."""
    state = directory / "state"
    state.mkdir()
    (state / "novarc").symlink_to(cloud.state_path / "novarc")
    (state / "starter").symlink_to(starter_path())
    (directory / ".venv").symlink_to(sys.prefix)
    (directory / "README.md").symlink_to(ROOT / "README.md")
    return directory


def test_shell_examples(cloud: Cloud, tmp_path: Path):
    script = shell_script()
    assert "run-instances" in script and "ssh -i" in script and "register-image" in script
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=working_directory(cloud, tmp_path),
                          env=cloud.child_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^i-[0-9a-f]{8}$", done.stdout, re.MULTILINE), "the guest's host name"


def test_boto3_example(cloud: Cloud):
    [program] = blocks("python")
    run(sys.executable, "-c", program, environment=cloud.child_environment(), timeout=240)
