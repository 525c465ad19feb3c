"""From the start of a fresh process to its first workflow's result, its code cached.

A start is all that a user waits for: Python, imports, a new SQLite store, deploying, a worker, one workflow of three
activity calls. The clock stops when the result has arrived at the process that started it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.guests import calling, large
from benchmarks.measure import Figure, installed, median_and_spread

__all__ = ["measure"]

_STARTS = 15
_BOUND = 0.45


def _start(command: list[str], environment: dict[str, str]) -> float:
    """Seconds until the command has printed its first line."""
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None, "it is a pipe"
        line = process.stdout.readline()
        taken = time.perf_counter() - begin
    assert line, "the process printed no result"
    assert process.returncode == 0, "the process failed"
    return taken


def measure() -> Figure:
    """Measure, and say how."""
    small_ones, large_ones, bare = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as above:
        folder = Path(above).absolute()
        environment = {**installed(str(folder / "bytecode")), "WASMAN_CACHE": str(folder / "code")}
        for name, data in (("small", calling()), ("large", large())):
            (folder / name).write_bytes(data)

        def start(name: str, number: int) -> float:
            store = folder / f"{name}-{number}.db"
            return _start(
                [sys.executable, "-m", "benchmarks.first_result", str(folder / name), str(store)], environment
            )

        for name in ("small", "large"):
            start(name, -1)  # compiles
        for number in range(_STARTS):
            small_ones.append(start("small", number))
            large_ones.append(start("large", number))
            bare.append(_start([sys.executable, "-c", "print(1, flush=True)"], environment))
    median, low, high = median_and_spread(small_ones)
    with_large, *_ = median_and_spread(large_ones)
    python, *_ = median_and_spread(bare)
    return Figure(
        name="process start to the first workflow's result, code cached",
        value=f"{median * 1e3:.0f} ms",
        spread=f"{low * 1e3:.0f}-{high * 1e3:.0f}",
        ratio=f"Python alone: {python * 1e3:.0f} ms",
        bound=f"{_BOUND * 1e3:.0f} ms",
        holds=median <= _BOUND,
        note=f"{_STARTS} starts over a new SQLite store each, bytecode there, as after an installation; with a guest "
        f"of 2 MB: {with_large * 1e3:.0f} ms",
    )
