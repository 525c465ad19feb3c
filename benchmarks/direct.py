"""Direct executions: a guest that stays in memory is called, changes a page, and is durable again."""

from __future__ import annotations

import statistics
import time

import anyio
from wasmtime import wat2wasm

from wasman_sdk import Engine

__all__ = ["executions"]

_COUNTER = """(module (memory (export "memory") 64)
  (func (export "add") (param $n i64) (result i64)
    (i64.store (i32.const 2000000) (i64.add (i64.load (i32.const 2000000)) (local.get $n)))
    (i64.load (i32.const 2000000))))"""
_WARM, _MEASURED = 200, 2000


async def _executions() -> list[float]:
    async with Engine.from_bytes(bytes(wat2wasm(_COUNTER)), store="memory://") as engine:
        seconds = []
        for number in range(1, _WARM + _MEASURED + 1):
            begin = time.perf_counter()
            assert await engine.execute("one", "add", 1) == number
            seconds.append(time.perf_counter() - begin)
    return seconds[_WARM:]


def executions() -> tuple[float, float, float]:
    """Seconds of one warm execution with delta and commit, memory store: median, 10th and 90th percentile."""
    seconds = sorted(anyio.run(_executions))
    return statistics.median(seconds), seconds[len(seconds) // 10], seconds[len(seconds) * 9 // 10]
