"""The table of deliberate faults stays true to the code: `make mutants` tries them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the runner asks git for the files of the project")
def test_every_fault_applies_exactly_once_and_its_tests_are_there():
    command = [sys.executable, str(ROOT / "tests" / "mutants" / "run.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
