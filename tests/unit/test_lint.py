"""ruff and mypy find nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [("ruff", "check", "."), ("mypy",)], ids=lambda arguments: arguments[0])
def test_nothing_is_found(arguments: tuple[str, ...]):
    pytest.importorskip(arguments[0], reason=f"{arguments[0]} is not installed; run_tests.sh installs it")
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
