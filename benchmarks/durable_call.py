"""One durable activity call on SQLite, one by one, against a bare one-row commit of the same durability.

Both are measured in turn, in the same file system and the same minute: rounds of calls, rounds of bare commits. Before
that each has written more than SQLite's write-ahead log holds between two checkpoints. Until the first one that file
grows with every commit, and each sync takes about twice as long; from then on it is written over.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from benchmarks.guests import calling
from benchmarks.measure import Figure, median_and_spread
from wasman_host.store import SqliteStore
from wasman_sdk import Client, Worker, Workflow, activity

__all__ = ["counted_syncs", "measure"]

_ROUNDS = 30
_CALLS = 200
_WARM = 1200  # calls, or bare commits, that write more than the 1,000 pages after which SQLite makes a checkpoint
_BOUND = 2.0

_moments: list[float] = []


@activity
async def step(number: int) -> int:
    """Note the moment: the time between two of these is one durable call."""
    _moments.append(time.perf_counter())
    return number


async def _calls(client: Client, name: str, calls: int = _CALLS) -> float:
    """Seconds a call, over one workflow of many."""
    _moments.clear()
    await client.execute_workflow("calling", calls, id=name)
    return (_moments[-1] - _moments[0]) / (len(_moments) - 1)


def _bare(connection: sqlite3.Connection, commits: int = _CALLS) -> float:
    """Seconds a bare one-row commit."""
    begin = time.perf_counter()
    for _ in range(commits):
        connection.execute("begin immediate")
        connection.execute("insert into bare (data) values (?)", (b"x" * 300,))
        connection.execute("commit")
    return (time.perf_counter() - begin) / commits


async def _rounds(folder: Path) -> tuple[list[float], list[float], str]:
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("pragma journal_mode=wal")
    bare.execute("pragma synchronous=full")
    bare.execute("create table bare (n integer primary key, data blob)")
    workflow = Workflow("calling", int, int, module=calling())
    calls, commits = [], []
    async with (
        Client.connect(f"sqlite:///{folder}/durable.db") as client,
        Worker(client, workflows=[workflow], activities=[step]),
    ):
        store = client.store
        assert isinstance(store, SqliteStore), "the URL says so"
        read_back = f"journal_mode={store.pragma('journal_mode')}, synchronous={store.pragma('synchronous')} read back"
        await _calls(client, "warm-up", _WARM)
        _bare(bare, _WARM)
        for number in range(_ROUNDS):
            calls.append(await _calls(client, f"round-{number}"))
            commits.append(_bare(bare))
    bare.close()
    return calls, commits, read_back


def counted_syncs() -> tuple[int, int] | None:
    """(syncs, calls) of a fresh process, counted by strace; None on a machine without it."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.TemporaryDirectory(dir=".") as folder:
        counts = []
        for calls in (1, _CALLS + 1):
            log = Path(folder) / f"syncs-{calls}"
            command = [
                strace,
                "-f",
                "-qq",
                "-o",
                str(log),
                "-e",
                "trace=fsync,fdatasync",
                sys.executable,
                "-m",
                __name__,
            ]
            subprocess.run([*command, folder, str(calls)], check=True)
            counts.append(sum("sync(" in line for line in log.read_text().splitlines()))
    return counts[1] - counts[0], _CALLS


async def _traced(folder: Path, calls: int) -> None:
    workflow = Workflow("calling", int, int, module=calling())
    async with (
        Client.connect(f"sqlite:///{folder}/traced-{calls}.db") as client,
        Worker(client, workflows=[workflow], activities=[step], lease_seconds=600),
    ):
        await client.execute_workflow("calling", calls, id="traced")


def measure() -> Figure:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        calls, commits, durability = anyio.run(_rounds, Path(folder).absolute())
    syncs = counted_syncs()
    call, low, high = median_and_spread(calls)
    commit, *_ = median_and_spread(commits)
    ratio, *_ = median_and_spread([a / b for a, b in zip(calls, commits, strict=True)])
    counted = f"{syncs[0]} syncs for {syncs[1]} more calls (strace)" if syncs else "syncs not counted: no strace here"
    return Figure(
        name="one durable activity call on SQLite, one by one",
        value=f"{call * 1e6:.0f} us",
        spread=f"{low * 1e6:.0f}-{high * 1e6:.0f}",
        ratio=f"{ratio:.2f} x a bare commit ({commit * 1e6:.0f} us)",
        bound=f"{_BOUND:g} x a bare one-row WAL full-sync commit",
        holds=ratio <= _BOUND,
        note=f"{_ROUNDS} rounds of {_CALLS} after {_WARM:,}, bare commits in between; {durability}; {counted}",
    )


if __name__ == "__main__":
    anyio.run(_traced, Path(sys.argv[1]).absolute(), int(sys.argv[2]))
