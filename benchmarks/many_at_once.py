"""50 workflows of 10 activity calls at once on SQLite, full sync, one process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import anyio

from benchmarks.guests import calling
from benchmarks.measure import Figure, median_and_spread
from wasman_sdk import Client, Worker, Workflow, activity

__all__ = ["measure"]

_WIDTH = 50
_STEPS = 10
_ROUNDS = 9
_EACH = 10  # workflows a lane in a round
_BOUND = 3000


@activity
async def step(number: int) -> int:
    """Do nothing: what is measured is everything else."""
    return number


async def _round(client: Client, number: int) -> float:
    """Calls a second."""

    async def lane(place: int) -> None:
        for turn in range(_EACH):
            assert await client.execute_workflow("calling", _STEPS, id=f"{number}-{place}-{turn}") == _STEPS

    begin = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for place in range(_WIDTH):
            tasks.start_soon(lane, place)
    return _WIDTH * _EACH * _STEPS / (time.perf_counter() - begin)


async def _rounds(folder: Path) -> list[float]:
    workflow = Workflow("calling", int, int, module=calling())
    async with (
        Client.connect(f"sqlite:///{folder}/many.db") as client,
        Worker(client, workflows=[workflow], activities=[step]),
    ):
        await _round(client, -1)
        return [await _round(client, number) for number in range(_ROUNDS)]


def measure() -> Figure:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rates = anyio.run(_rounds, Path(folder).absolute())
    rate, low, high = median_and_spread(rates)
    return Figure(
        name=f"{_WIDTH} workflows of {_STEPS} activity calls at once on SQLite, one process",
        value=f"{rate:,.0f} calls/s",
        spread=f"{low:,.0f}-{high:,.0f}",
        ratio="",
        bound=f"{_BOUND:,} calls/s",
        holds=rate >= _BOUND,
        note=f"{_ROUNDS} rounds of {_WIDTH * _EACH} workflows, start and result included",
    )
