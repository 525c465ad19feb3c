"""10,000 v0 instances that wait in an activity, each with a number of its own: their memory, and their results.

Runs in a process of its own, so that nothing else has grown it before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from benchmarks.guests import asking
from benchmarks.measure import Figure
from wasman_host.guest.memory import PAGE, maps
from wasman_sdk import Client, Worker, Workflow, activity

__all__ = ["measure", "resident"]

_COUNT = 10_000
_FIRST = 100_000
_BOUND = 32.0  # KiB
_LANES = 200  # that start them

_gate = anyio.Event()
_waiting = 0


@activity(name="step")
async def park(number: int) -> int:
    """Wait until all are here, then give something that only this number gives."""
    global _waiting  # noqa: PLW0603  one count for one process
    _waiting += 1
    await _gate.wait()
    return number * 7 + 1


def resident() -> int:
    """Resident bytes of this process."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert match is not None, "the kernel says so"
    return int(match[1]) * 1024


async def _measure(folder: Path) -> dict[str, float]:
    global _gate, _waiting
    workflow = Workflow("asking", int, int, module=asking())
    async with (
        Client.connect(f"sqlite:///{folder}/parked.db") as client,
        Worker(
            client, workflows=[workflow], activities=[park], max_instances=_COUNT + 100, max_guests=_COUNT + 100
        ) as worker,
    ):
        _gate.set()  # first all of it once, so that what is made once is there already
        number = _FIRST + _COUNT
        assert await client.execute_workflow("asking", number, id="warm-up") == number * 7 + 1
        _gate, _waiting = anyio.Event(), 0
        before, begin = resident(), time.perf_counter()

        async def start(lane: int) -> None:
            for number in range(lane, _COUNT, _LANES):
                await client.start_workflow("asking", _FIRST + number, id=f"parked-{number}")

        async with anyio.create_task_group() as tasks:
            for lane in range(_LANES):
                tasks.start_soon(start, lane)
        while _waiting < _COUNT:
            await anyio.sleep(0.05)
        started = time.perf_counter() - begin
        await anyio.sleep(1)  # the worker looks after what waits
        parked = resident()
        (engine,) = worker.client.workers
        residents = getattr(engine, "residents")  # noqa: B009  of the host, which the SDK does not show
        dirtied, held = residents.counted(), len(residents)
        # A guest has written its request and nothing else, so the count is known; a wrong one would hide what it costs.
        assert dirtied == held * PAGE, f"{held} guests that wrote one page each are counted as {dirtied:,} bytes"
        begin = time.perf_counter()
        _gate.set()
        wrong = 0

        async def look(lane: int) -> None:
            nonlocal wrong
            for number in range(lane, _COUNT, _LANES):
                result = await client.get_handle(f"parked-{number}", workflow=workflow).result()
                wrong += result != (_FIRST + number) * 7 + 1

        async with anyio.create_task_group() as tasks:
            for lane in range(_LANES):
                tasks.start_soon(look, lane)
        completed = time.perf_counter() - begin
    return {
        "before": before,
        "parked": parked,
        "dirtied": dirtied,
        "guests": held,
        "wrong": wrong,
        "started": started,
        "completed": completed,
    }


def measure() -> list[Figure]:
    """Measure, and say how; nothing where the system has no /proc, or does not list what was written."""
    if not Path("/proc/self/status").exists() or not maps():
        return []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        command = [sys.executable, "-m", __name__, str(Path(folder).absolute())]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output)
    grown = (found["parked"] - found["before"]) / _COUNT / 1024
    dirtied = found["dirtied"] / _COUNT / 1024
    each = grown - dirtied
    return [
        Figure(
            name=f"{_COUNT:,} v0 instances parked in an activity, distinct ids; all then give the right result",
            value=f"{each:.1f} KiB each beyond the pages they dirtied",
            spread="",
            ratio=f"{_COUNT - found['wrong']:,} right results",
            bound=f"{_BOUND:g} KiB resident each",
            holds=each <= _BOUND and not found["wrong"] and found["guests"] == _COUNT,
            note=f"one run in a process of its own on SQLite: {grown:.1f} KiB resident each, of which {dirtied:.1f} "
            f"KiB dirtied pages; {found['guests']:,.0f} guests in memory (max_guests raised, so that none is evicted); "
            f"started in {found['started']:.1f} s, completed in {found['completed']:.1f} s",
        )
    ]


if __name__ == "__main__":
    print(json.dumps(anyio.run(_measure, Path(sys.argv[1]))))
