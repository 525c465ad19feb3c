"""Guests of ABI v1, TinyGo: a turn, one after an eviction, what is stored of an event, many at once, a fan-out.

A turn of a live guest is timed from the delivery, which is durable by then, to the commands that it leaves. One of an
evicted guest is all of that and its restoring: looking at its snapshot, mapping, the turn. Both in a worker over the
memory store, between other turns.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from benchmarks import bare
from benchmarks.guests import programs
from benchmarks.measure import Figure, median_and_spread
from wasman_host.instance import Instance
from wasman_host.store import Key
from wasman_host.stored import open_tail
from wasman_host.turns import Turns
from wasman_sdk import Client, Worker, Workflow, activity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wasman_host.oplog import Delivery

__all__ = ["measure"]

_CALLS = 1000  # of the run whose turns are timed
_LIVE, _EVICTED = 150, 400  # us
_STORED = 4096  # bytes an event
_GOROUTINES = 10
_WIDTH, _STEPS, _EACH, _ROUNDS, _RATE = 50, 10, 10, 9, 5000
_FAN, _FAN_SECONDS = 1000, 1.0


@activity
async def echo(said: str) -> str:
    """Do nothing: what is measured is everything else."""
    return said


def _workflow(entry: str, given: Any) -> Workflow[Any, Any]:
    return Workflow(entry, given, object, module=programs(), entry=entry)


async def _timed(evicted: bool) -> list[float]:  # noqa: FBT001  a flag of anyio.run
    """Microseconds of each turn of a run, from the delivery to its commands."""
    times: list[float] = []
    turn, revive, keep = Turns._turn, Instance.revive, Instance.keep  # noqa: SLF001  what is timed
    revived = 0.0

    async def timed(self: Turns, deliveries: Sequence[Delivery]) -> None:
        nonlocal revived
        begin = time.perf_counter()
        await turn(self, deliveries)
        times.append((time.perf_counter() - begin + revived) * 1e6)
        revived = 0.0

    async def reviving(self: Instance) -> None:
        nonlocal revived
        begin = time.perf_counter()
        await revive(self)
        revived = time.perf_counter() - begin

    async def closing(self: Instance, *given: Any) -> None:
        await keep(self, *given)
        self.park()

    patched: dict[tuple[type, str], Callable[..., Any]] = {(Turns, "_turn"): timed, (Instance, "revive"): reviving}
    if evicted:
        patched[Instance, "keep"] = closing
        patched[Instance, "keeps"] = lambda *_: True
    before = {(owner, name): getattr(owner, name) for owner, name in patched}
    for (owner, name), function in patched.items():
        setattr(owner, name, function)
    try:
        workflow = _workflow("calls", int)
        async with (
            Client.connect("memory://") as client,
            Worker(client, workflows=[workflow], activities=[echo]),
        ):
            assert await client.execute_workflow(workflow, _CALLS, id="calls") == _CALLS
    finally:
        for (owner, name), function in before.items():
            setattr(owner, name, function)
    return times[1:-1]


def _turn(evicted: bool) -> Figure:  # noqa: FBT001
    middle, low, high = median_and_spread(anyio.run(_timed, evicted))
    bound = _EVICTED if evicted else _LIVE
    name = "an evicted TinyGo guest restored and run one turn" if evicted else "turn of a live TinyGo guest"
    return Figure(
        name=f"{name}, memory store",
        value=f"{middle:,.0f} us",
        spread=f"{low:,.0f}-{high:,.0f}",
        ratio="",
        bound=f"{bound} us",
        holds=middle <= bound,
        note=f"{_CALLS} turns of one run, from the delivery to the next call asked for",
    )


async def _stored(folder: Path) -> float:
    """Bytes an event, of a run with goroutines that wait and one that calls."""
    workflow = Workflow("wide", dict, object, module=programs(), entry="wide")
    async with (
        Client.connect(f"sqlite:///{folder}/stored.db") as client,
        Worker(client, workflows=[workflow], activities=[echo]),
    ):
        given = {"width": _GOROUTINES, "steps": _CALLS // _GOROUTINES}
        await client.execute_workflow(workflow, given, id="wide")
        stored = await client.store.load(Key("default", "wide"))
        assert stored is not None
        tail = open_tail(stored)
        return tail.stored / tail.entries


async def _round(client: Client, workflow: Workflow[Any, Any], number: int) -> float:
    async def lane(place: int) -> None:
        for turn in range(_EACH):
            assert await client.execute_workflow(workflow, _STEPS, id=f"{number}-{place}-{turn}") == _STEPS

    begin = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for place in range(_WIDTH):
            tasks.start_soon(lane, place)
    return _WIDTH * _EACH * _STEPS / (time.perf_counter() - begin)


async def _many(folder: Path) -> tuple[list[float], list[float]]:
    workflow = _workflow("calls", int)
    ours, least = [], []
    async with (
        Client.connect(f"sqlite:///{folder}/many.db") as client,
        Worker(client, workflows=[workflow], activities=[echo]),
    ):
        await _round(client, workflow, -1)
        for number in range(_ROUNDS):
            ours.append(await _round(client, workflow, number))
            least.append(await bare.rate(folder / "bare.db", str(number), _WIDTH, _EACH, _STEPS))
    return ours, least


def _at_once(folder: Path) -> Figure:
    ours, least = anyio.run(_many, folder)
    rate, low, high = median_and_spread(ours)
    reference, *_ = median_and_spread(least)
    ratio, *_ = median_and_spread([a / b for a, b in zip(ours, least, strict=True)])
    return Figure(
        name=f"{_WIDTH} workflows of {_STEPS} calls at once, TinyGo goroutines, SQLite, full sync, one process",
        value=f"{rate:,.0f} calls/s",
        spread=f"{low:,.0f}-{high:,.0f}",
        ratio=f"{ratio:.2f} x a bare prototype ({reference:,.0f})",
        bound=f"{_RATE:,} calls/s",
        holds=rate >= _RATE,
        note=f"{_ROUNDS} rounds of {_WIDTH * _EACH:,} workflows, start and result included",
    )


async def _fanned(folder: Path) -> list[float]:
    workflow = _workflow("fanout", int)
    times = []
    async with (
        Client.connect(f"sqlite:///{folder}/fan.db") as client,
        Worker(client, workflows=[workflow], activities=[echo]),
    ):
        for number in range(_ROUNDS):
            begin = time.perf_counter()
            assert await client.execute_workflow(workflow, _FAN, id=f"fan-{number}") == _FAN
            times.append(time.perf_counter() - begin)
    return times[1:]


def _fan_out(folder: Path) -> Figure:
    middle, low, high = median_and_spread(anyio.run(_fanned, folder))
    return Figure(
        name=f"fan-out of {_FAN:,} activities in one run, start to join, SQLite",
        value=f"{middle:.2f} s",
        spread=f"{low:.2f}-{high:.2f}",
        ratio="",
        bound=f"{_FAN_SECONDS:g} s",
        holds=middle <= _FAN_SECONDS,
        note=f"{_ROUNDS - 1} runs, the first one not counted",
    )


def _kept(folder: Path) -> Figure:
    stored = anyio.run(_stored, folder)
    return Figure(
        name=f"stored an event, TinyGo guest with {_GOROUTINES} goroutines, log and its share of deltas",
        value=f"{stored:,.0f} bytes",
        spread="",
        ratio="",
        bound=f"{_STORED:,} bytes",
        holds=stored <= _STORED,
        note=f"a run of {_CALLS:,} calls by {_GOROUTINES} goroutines; at its end, archived entries included",
    )


def measure() -> list[Figure]:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        return [_turn(evicted=False), _turn(evicted=True), _kept(folder), _at_once(folder), _fan_out(folder)]
