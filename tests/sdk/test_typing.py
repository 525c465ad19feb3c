"""The public surface as mypy sees it: what it must accept, and what it must refuse."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "typing"

pytestmark = pytest.mark.once


def refused(name: str) -> set[int]:
    """The lines of a file that mypy refuses."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", f"tests/typing/{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return {int(line) for line in re.findall(rf"^tests/typing/{name}:(\d+): error:", done.stdout, re.MULTILINE)}


def test_what_is_right_is_accepted() -> None:
    assert refused("right.py") == set()


def test_what_is_wrong_is_refused_where_it_is_wrong() -> None:
    lines = (FOLDER / "wrong.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert len(wrong) > 20
    assert refused("wrong.py") == wrong
