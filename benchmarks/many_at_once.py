"""50 and 500 workflows of 10 activity calls at once on SQLite, full sync, one process.

Beside each round runs one of the bare prototype (`benchmarks.bare`): its figure says what this disk gives.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import anyio

from benchmarks import bare
from benchmarks.guests import calling
from benchmarks.measure import Figure, median_and_spread
from wasman_sdk import Client, Worker, Workflow, activity

__all__ = ["measure"]

_STEPS = 10
_ROUNDS = 9
_EACH = {50: 10, 500: 3}  # workflows a lane in a round
_BOUNDS = {50: 5500, 500: 7500}


@activity
async def step(number: int) -> int:
    """Do nothing: what is measured is everything else."""
    return number


async def _round(client: Client, number: int, width: int) -> float:
    """Calls a second."""
    each = _EACH[width]

    async def lane(place: int) -> None:
        for turn in range(each):
            assert await client.execute_workflow("calling", _STEPS, id=f"{number}-{place}-{turn}") == _STEPS

    begin = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for place in range(width):
            tasks.start_soon(lane, place)
    return width * each * _STEPS / (time.perf_counter() - begin)


async def _rounds(folder: Path, width: int) -> tuple[list[float], list[float]]:
    workflow = Workflow("calling", int, int, module=calling())
    ours, least = [], []
    async with (
        Client.connect(f"sqlite:///{folder}/many.db") as client,
        Worker(client, workflows=[workflow], activities=[step]),
    ):
        await _round(client, -1, width)
        for number in range(_ROUNDS):
            ours.append(await _round(client, number, width))
            least.append(await bare.rate(folder / "bare.db", str(number), width, _EACH[width], _STEPS))
    return ours, least


def _figure(width: int) -> Figure:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        ours, least = anyio.run(_rounds, Path(folder).absolute(), width)
    rate, low, high = median_and_spread(ours)
    reference, *_ = median_and_spread(least)
    ratio, *_ = median_and_spread([a / b for a, b in zip(ours, least, strict=True)])
    return Figure(
        name=f"{width} workflows of {_STEPS} activity calls at once on SQLite, one process",
        value=f"{rate:,.0f} calls/s",
        spread=f"{low:,.0f}-{high:,.0f}",
        ratio=f"{ratio:.2f} x a bare prototype ({reference:,.0f})",
        bound=f"{_BOUNDS[width]:,} calls/s",
        holds=rate >= _BOUNDS[width],
        note=f"{_ROUNDS} rounds of {width * _EACH[width]:,} workflows, start and result included, the bare prototype "
        "(SQLite and asyncio, no wasm) in between",
    )


def measure() -> list[Figure]:
    """Measure, and say how."""
    return [_figure(width) for width in _BOUNDS]
