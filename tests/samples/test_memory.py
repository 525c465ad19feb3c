"""O(1) memory: how much a guest streams does not show in what the process needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
STREAMING = Path(__file__).with_name("streaming.py")


def peak(direction: str, size: int, folder: Path) -> int:
    """The most memory that a fresh process ever had resident, in bytes.

    There is a shell between the two: until it has executed something else, a new process has the memory of the one that
    made it, and Linux counts that; pytest's may be large, the shell's is not.
    """
    folder.mkdir()
    try:
        command = [sys.executable, str(STREAMING), direction, str(size), str(folder)]
        shell = ["/bin/sh", "-c", '"$0" "$@"; exit $?']
        ended = subprocess.run([*shell, *command], check=False, capture_output=True, text=True, timeout=300)
    finally:
        shutil.rmtree(folder)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


@pytest.mark.once
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_stream_of_any_length_takes_the_same_memory(direction: str, tmp_path: Path) -> None:
    ballast = 200 * MIB
    kept = b"-" * ballast  # so that it shows if this process's own memory were counted
    short = peak(direction, 16 * MIB, tmp_path / "short")
    long = peak(direction, 1024 * MIB, tmp_path / "long")
    sys.stdout.write(f"{direction}: 16 MiB {short / MIB:.1f} MiB, 1 GiB {long / MIB:.1f} MiB\n")
    del kept
    assert 16 * MIB < short < ballast
    assert long - short < 16 * MIB
