"""`import wasman_sdk` in a fresh process, against importing pydantic alone, which every application of it has.

Packages are compiled when they are installed, so the bytecode is here as well.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from benchmarks.measure import Figure, installed, median_and_spread

__all__ = ["measure"]

_ROUNDS = 21
_BOUND = 0.3


def _seconds(code: str, environment: dict[str, str]) -> float:
    """Seconds that the statement takes in a process that has done nothing else, by its own clock."""
    timed = f"import time; begin = time.perf_counter()\n{code}\nprint(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", timed], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure() -> Figure:
    """Measure, and say how."""
    ours, pydantics = [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = installed(folder)
        for number in range(-1, _ROUNDS):
            ours_now = _seconds("import wasman_sdk", environment)
            theirs_now = _seconds("from pydantic import BaseModel, TypeAdapter", environment)
            if number >= 0:  # the first ones compile
                ours.append(ours_now)
                pydantics.append(theirs_now)
    middle, low, high = median_and_spread(ours)
    reference, *_ = median_and_spread(pydantics)
    ratio, *_ = median_and_spread([a / b for a, b in zip(ours, pydantics, strict=True)])
    return Figure(
        name="import wasman_sdk",
        value=f"{middle * 1e3:.0f} ms",
        spread=f"{low * 1e3:.0f}-{high * 1e3:.0f} ms",
        ratio=f"{ratio:.1f} x importing pydantic ({reference * 1e3:.0f} ms)",
        bound=f"{_BOUND * 1e3:.0f} ms",
        holds=middle <= _BOUND,
        note=f"{_ROUNDS} fresh processes each, by their own clocks; bytecode there, as after an installation",
    )
