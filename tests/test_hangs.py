"""A test that hangs ends the run, and what it waits for is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.run_tests import REASONS, why

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
HANGS = """
import threading
import anyio

async def reaches():
    await anyio.sleep_forever()

async def test_of_tasks():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever, name="the other one")
        await reaches()

def test_of_threads():
    threading.Event().wait()

def test_that_ends():
    pass
"""


def run(folder: Path, which: str, seconds: str) -> tuple[int, str]:
    file = folder / "test_one.py"
    file.write_text(HANGS)
    words = ["-q", "-c", os.devnull, "-p", "tests.hangs", "-o", "anyio_mode=auto", "-k", which]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, file],
        cwd=ROOT,
        env={**os.environ, "WASMAN_TEST_SECONDS": seconds},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_what_its_tasks_wait_for_is_told(tmp_path: Path, loop: str) -> None:
    code, said = run(tmp_path, f"test_of_tasks and {loop}", "2")
    assert code == 1
    assert said.endswith(f"test_of_tasks[{loop}] has not ended after 2 s\n")
    assert "/test_one.py:11 test_of_tasks\n" in said
    assert "/test_one.py:6 reaches\n" in said
    assert "Task the other one:\n" in said


def test_what_its_thread_waits_for_is_told(tmp_path: Path) -> None:
    code, said = run(tmp_path, "test_of_threads", "2")
    assert code == 1
    assert "/test_one.py:14 test_of_threads\n" in said
    assert said.endswith("test_of_threads has not ended after 2 s\n")


def test_one_that_ends_in_time_is_let_be(tmp_path: Path) -> None:
    code, said = run(tmp_path, "test_that_ends", "60")
    assert (code, "HANGS" in said, "1 passed" in said) == (0, False, True)


def test_why_a_process_failed_is_said_in_short() -> None:
    failed = "FAILED tests/test_x.py::test_y - assert 1 == 2"
    assert why(f"....F..\n=== FAILURES ===\nE   assert 1 == 2\n{failed}\n1 failed, 6 passed in 1.00s\n") == [failed]
    assert why("\n".join(map(str, range(100)))) == [str(n) for n in range(100 - REASONS, 100)]
