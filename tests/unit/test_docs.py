"""The documentation builds without a warning, and names only flags that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nova import sample

DOCS = Path(__file__).parents[2] / "docs"
#: options of run.sh and of programs that the pages show
OTHERS = {"no-demo", "help", "flagfile", "name"}
#: these pages are made from the options of their programs, with tests of their own
MADE = ("nova-manage.rst", "nova-bundle.rst")


def test_documentation_builds_without_warnings(tmp_path: Path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed; run_tests.sh installs it")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS),
                           str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "getting_started.html").exists()


@pytest.mark.parametrize("page", [*sorted(page for page in DOCS.glob("*.rst") if page.name not in MADE),
                                  DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_flags_on_a_page_exist(page: Path):
    sample.generate()  # imports all modules
    named = set(re.findall(r"``--([a-z_0-9-]+)|run\.sh --([a-z_0-9-]+)", page.read_text()))
    flags = {first or second for first, second in named} - OTHERS
    flags -= set(re.findall(r"^ +--([a-z-]+)[=)|]", (DOCS.parent / "slap.sh").read_text(), re.MULTILINE))
    assert flags <= set(sample.FLAGS.FlagDict())
