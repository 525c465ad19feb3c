"""Loading a module of about 2 MB: compiled the first time, from the code cache from then on.

A load is all from the module's bytes to a module that can be instantiated. Second loads are made over a fresh
`CodeCache` each, so that nothing but the file is known; the file itself is in the kernel's memory, as after a restart
of a worker.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.guests import large
from benchmarks.measure import Figure, median_and_spread
from wasman_host.guest.cache import CodeCache
from wasman_host.guest.module import compile_module

__all__ = ["measure"]

_LOADS = 21
_BOUND = 0.025


def _load(module: bytes, folder: Path) -> float:
    """Seconds of one load."""
    cache = CodeCache(folder)
    begin = time.perf_counter()
    compile_module(module, "the large guest", cache)
    return time.perf_counter() - begin


def measure() -> Figure:
    """Measure, and say how."""
    module = large()
    with tempfile.TemporaryDirectory(dir=".") as above:
        folder = Path(above).absolute() / "code"
        first = _load(module, folder)
        seconds = [_load(module, folder) for _ in range(_LOADS)]
        [entry] = folder.iterdir()
        size = entry.stat().st_size
    median, low, high = median_and_spread(seconds)
    return Figure(
        name=f"second load of a module of {len(module) / 1e6:.1f} MB, code cached",
        value=f"{median * 1e3:.1f} ms",
        spread=f"{low * 1e3:.1f}-{high * 1e3:.1f}",
        ratio=f"the first, compiling: {first * 1e3:,.0f} ms",
        bound=f"{_BOUND * 1e3:.0f} ms",
        holds=median <= _BOUND,
        note=f"{_LOADS} loads after the one that compiles; the entry has {size / 1e6:.1f} MB, every byte of it checked",
    )
