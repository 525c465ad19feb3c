"""What a call costs when much has happened before: 10,000 calls in its run, 100,000 finished workflows in its store."""

from __future__ import annotations

import secrets
import sqlite3
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import anyio

from benchmarks.guests import calling
from benchmarks.measure import Figure, median_and_spread
from wasman_sdk import Client, Worker, Workflow, activity

__all__ = ["measure"]

_BOUND = 1.2
_EARLY, _LATE, _WINDOW = 100, 10_000, 200  # calls, and how many after them are looked at
_RUNS = 7
_FINISHED, _FEW = 100_000, 10
_REAL = 2000  # of the finished ones really lived, the others are copies of their rows
_ROUNDS, _EACH, _STEPS = 15, 10, 10

_moments: list[float] = []


@activity
async def step(number: int) -> int:
    """Note the moment: the time between two of these is one durable call."""
    _moments.append(time.perf_counter())
    return number


async def _within(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds a call after 100 and after 10,000 calls, of each run."""
    workflow = Workflow("calling", int, int, module=calling())
    early, late = [], []
    async with (
        Client.connect(f"sqlite:///{folder}/long.db") as client,
        Worker(client, workflows=[workflow], activities=[step]),
    ):
        for number in range(-1, _RUNS):
            # A short run right after the long one, so that both windows are of the same moment.
            _moments.clear()
            await client.execute_workflow("calling", _LATE + _WINDOW, id=f"long-{number}")
            after_many = _median_gap(_LATE)
            _moments.clear()
            await client.execute_workflow("calling", _EARLY + _WINDOW, id=f"short-{number}")
            if number >= 0:
                late.append(after_many)
                early.append(_median_gap(_EARLY))
    return early, late


def _median_gap(start: int) -> float:
    window = _moments[start - 1 : start + _WINDOW]
    return statistics.median(after - before for before, after in pairwise(window))


async def _finish(client: Client, count: int) -> None:
    """Have `count` workflows of one call lived to their end."""

    async def lane(place: int) -> None:
        for number in range(place, count, min(count, 500)):
            await client.execute_workflow("calling", 1, id=f"finished-{number}")

    async with anyio.create_task_group() as tasks:
        for place in range(min(count, 500)):
            tasks.start_soon(lane, place)


def _multiply(path: Path, count: int) -> None:
    """Copy the rows of finished workflows, under ids and run ids of their own, until there are `count`.

    Their sealed records would not open, for they are sealed under the runs they are copies of; nothing here opens them.
    """
    with sqlite3.connect(path) as db:
        tables = {name: [row[1] for row in db.execute(f"pragma table_info({name})")] for name in ("instance", "run")}
        real = db.execute("select number, run_number from instance where id like 'finished-%'").fetchall()
        number = db.execute("select max(number) from instance").fetchone()[0]
        run_number = db.execute("select max(number) from run").fetchone()[0]
        columns = ", ".join(tables["instance"])
        copied = ", ".join(
            {"number": "?", "id": "?", "run": "?", "run_number": "?"}.get(name, name) for name in tables["instance"]
        )
        for place in range(count - len(real)):
            source, source_run = real[place % len(real)]
            number, run_number, run = number + 1, run_number + 1, secrets.token_hex(16)
            name = f"copied-{place}"
            values = {"number": number, "id": name, "run": run, "run_number": run_number}
            given = [values[column] for column in tables["instance"] if column in values]
            insert = f"insert into instance ({columns}) select {copied} from instance where number = ?"  # noqa: S608
            db.execute(insert, (*given, source))
            db.execute("insert into record select ?, data from record where instance = ?", (number, source))
            db.execute("insert into run (number, run, tenant, id) values (?, ?, 'default', ?)", (run_number, run, name))
            db.execute(
                "insert into log (run, n, last, entries) select ?, n, last, entries from log where run = ?",
                (run_number, source_run),
            )
    db.close()


async def _beside(folder: Path) -> tuple[list[float], list[float], float]:
    """Seconds a call with few and with many finished, start and result included; and what making those took."""
    workflow = Workflow("calling", int, int, module=calling())
    begin = time.perf_counter()
    for count, name in ((_FEW, "few"), (_REAL, "many")):
        async with (
            Client.connect(f"sqlite:///{folder}/{name}.db") as client,
            Worker(client, workflows=[workflow], activities=[step]),
        ):
            await _finish(client, count)
    _multiply(folder / "many.db", _FINISHED)
    made = time.perf_counter() - begin
    seconds: dict[str, list[float]] = {"few": [], "many": []}
    async with AsyncExitStack() as stack:
        clients = {}
        for name in seconds:
            clients[name] = await stack.enter_async_context(Client.connect(f"sqlite:///{folder}/{name}.db"))
            await stack.enter_async_context(Worker(clients[name], workflows=[workflow], activities=[step]))
        for number in range(-1, _ROUNDS):
            for name, client in clients.items():
                begin = time.perf_counter()
                for turn in range(_EACH):
                    await client.execute_workflow("calling", _STEPS, id=f"round-{number}-{turn}")
                if number >= 0:
                    seconds[name].append((time.perf_counter() - begin) / _EACH / _STEPS)
    return seconds["few"], seconds["many"], made


def _figure(name: str, before: list[float], after: list[float], note: str) -> Figure:
    cost, low, high = median_and_spread(after)
    small, *_ = median_and_spread(before)
    ratio, *_ = median_and_spread([a / b for a, b in zip(after, before, strict=True)])
    return Figure(
        name=name,
        value=f"{cost * 1e6:.0f} us",
        spread=f"{low * 1e6:.0f}-{high * 1e6:.0f}",
        ratio=f"{ratio:.2f} x ({small * 1e6:.0f} us)",
        bound=f"{_BOUND:g} x",
        holds=ratio <= _BOUND,
        note=note,
    )


def measure() -> list[Figure]:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        early, late = anyio.run(_within, Path(folder).absolute())
        few, many, made = anyio.run(_beside, Path(folder).absolute())
    return [
        _figure(
            f"cost of a call at {_LATE:,} calls in one run against at {_EARLY}",
            early,
            late,
            f"{_RUNS} runs of each on SQLite, in turn; the median of {_WINDOW} calls of each",
        ),
        _figure(
            f"cost of a call with {_FINISHED:,} finished workflows in the store against {_FEW}",
            few,
            many,
            f"{_ROUNDS} rounds of {_EACH} workflows of {_STEPS} calls one by one in each of two SQLite stores, start "
            f"and result included; {_REAL:,} of the finished ones were run, the others are copies of their rows; "
            f"making them took {made:.0f} s",
        ),
    ]
