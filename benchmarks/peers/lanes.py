"""What every side runs: rounds of workflows, ordered line by line on stdin and answered on stdout.

Imports nothing but the standard library, for the sides live in different environments. An order is
`{"width": 50, "seconds": 8, "least": 1}`: so many lanes, each starting one workflow after the other until the time is
over and it has made the least number. The answer is `{"done": ..., "elapsed": ..., "times": [...]}`, seconds. The first
line that a side writes says what it is.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["STEPS", "check", "serve"]

STEPS = 10


def check(result: object) -> None:
    """Stop everything where a workflow gave a wrong result: a fast wrong engine is no engine."""
    if result != STEPS:
        message = f"a workflow of {STEPS} steps gave {result!r}"
        raise RuntimeError(message)


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def serve(about: Mapping[str, Any], workflow: Callable[[str], Awaitable[object]]) -> None:
    """Run rounds until stdin ends.

    Args:
        about: What this side is: `version`, `settings`, and `processes`, the ids of those whose memory counts.
        workflow: Runs one workflow of 10 steps under the given id, which is new, and gives its result, the number 10.
    """
    _say(about)
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        number += 1
        times: list[float] = []
        begin = time.perf_counter()

        async def lane(place: int, name: str, least: int, until: float, times: list[float]) -> None:
            turn = 0
            while turn < least or time.perf_counter() < until:
                before = time.perf_counter()
                check(await workflow(f"{name}-{place}-{turn}"))
                times.append(time.perf_counter() - before)
                turn += 1

        until = begin + order["seconds"]
        lanes = [lane(place, f"round-{number}", order["least"], until, times) for place in range(order["width"])]
        await asyncio.gather(*lanes)
        _say({"done": len(times), "elapsed": time.perf_counter() - begin, "times": times})
