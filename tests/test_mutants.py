"""The committed mutants still fit the code, and the tests that must notice them are there; `make mutants` runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.once
def test_every_mutant_applies_and_its_test_is_there() -> None:
    command = [sys.executable, "tools/run_mutants.py", "--look"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
