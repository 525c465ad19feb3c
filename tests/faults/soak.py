"""Real worker processes over one SQLite file, killed by SIGKILL again and again while they work.

    python -m tests.faults.soak [--kills 200] [--workers 3] [--seed N]

In the end every workflow must have the result that it would have had undisturbed, its sink the right bytes, and the
ledger what its activities have done, once for each idempotency key. The seed draws the moments of the kills and the
workflows; what the operating system makes of it is never the same twice.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
from attrs import define, field, frozen

from tests import wat
from tests.faults.soak_worker import LARGE
from tests.lab import sink, source
from wasman_host import control, deployments, starting
from wasman_host.payload import Payload
from wasman_host.store import CLOSED, Key, SqliteStore, Status

__all__ = ["Report", "Workers", "soak"]

ROOT = Path(__file__).resolve().parents[2]
OPEN = 30  # workflows that are under way at once
PATIENCE = 120.0  # seconds without a workflow that ends
SOURCE = random.Random(11).randbytes(70_000)
STEPS = ("note", "flaky", "slow", "sleep", "large", "checkpoint", "some")
SOME = 1500  # bytes from the source to the sink at once


@frozen
class Plan:
    """A workflow: its steps, as the module has them and as they must end."""

    steps: Sequence[tuple[str, int]]
    reentrant: bool

    @property
    def module(self) -> bytes:
        steps: list[wat.Step] = []
        for name, number in self.steps:
            match name:
                case "sleep":
                    steps.append(wat.sleep(number * 1_000_000))
                case "checkpoint":
                    steps.append(wat.checkpoint())
                case "some":
                    steps.append(
                        wat.raw(
                            f"(global.set $got (call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) "
                            f"(i32.const {SOME}))) (drop (call $stream_data (i32.const 1) (i32.const {wat.BUFFER}) "
                            "(global.get $got)))"
                        )
                    )
                case _:
                    steps.append(wat.call(name, b"%d" % number, LARGE))
        return wat.script(*steps, reentrant=self.reentrant, pages=8)

    @property
    def result(self) -> list[object]:
        results: list[object] = []
        for name, number in self.steps:
            if name == "sleep":
                results.append(0)
            elif name == "large":
                results.append(str(number).rjust(LARGE - 2, "0"))
            elif name in {"note", "slow", "flaky"}:
                results.append(number)
        return results

    @property
    def done(self) -> list[tuple[str, str]]:
        return sorted((name, str(number)) for name, number in self.steps if name in {"note", "slow", "flaky", "large"})

    @property
    def sink(self) -> bytes:
        return SOURCE[: SOME * sum(name == "some" for name, _ in self.steps)]


@define
class Report:
    """What came of it.

    Attributes:
        seed: Which draws were made.
        kills: Workers that were killed.
        workflows: Workflows that were lived.
        repeated: Activities that took effect more than once, under one key each.
        problems: What is wrong.
        seconds: How long it took.
    """

    seed: int
    kills: int = 0
    workflows: int = 0
    repeated: int = 0
    problems: list[str] = field(factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.kills} workers killed, {self.workflows} workflows, {self.repeated} activities "
            f"done again under their key, {len(self.problems)} problems, {self.seconds:.0f} s"
        )


class Workers:
    """The processes."""

    def __init__(self, store: Path, ledger: Path, logs: Path) -> None:
        self._command = [sys.executable, "-m", "tests.faults.soak_worker", str(store), str(ledger)]
        self._logs = logs
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        with self._logs.open("ab") as errors:
            pipe = subprocess.PIPE
            self.processes.append(subprocess.Popen(self._command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors))

    async def serving(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        line = await anyio.to_thread.run_sync(process.stdout.readline)
        assert line == b"serving\n", self._logs.read_text()

    def end(self, process: subprocess.Popen[bytes], *, kill: bool) -> int:
        """Its exit code."""
        self.processes.remove(process)
        if kill:
            process.kill()
        # This ends its standard input and reads the other end of its output until it has left: one that is told to
        # leave before it serves still says so.
        process.communicate()
        return process.returncode


class _Soak:
    """One campaign: its store, what was started, what is still under way."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder = folder
        self.store = SqliteStore(folder / "store.db")
        self.plans: dict[str, Plan] = {}
        self._draw = draw
        self._flows = [_drawn(draw) for _ in range(8)]
        self._open: set[str] = set()

    async def prepare(self) -> None:
        (self.folder / "in").write_bytes(SOURCE)
        await self.store.open()
        for place, plan in enumerate(self._flows):
            await deployments.deploy(self.store, "default", f"flow-{place}", plan.module)

    async def open(self) -> int:
        """How many workflows are under way."""
        for name in list(self._open):
            stored = await self.store.load(Key("default", name))
            assert stored is not None, name
            if stored.columns.status in CLOSED:
                self._open.discard(name)
        return len(self._open)

    async def fill(self) -> None:
        """Start as many as should be under way."""
        while await self.open() < OPEN:
            name, place = f"w-{len(self.plans)}", self._draw.randrange(len(self._flows))
            options = starting.StartOptions(sources=source(self.folder / "in"), sinks=sink(self.folder / f"out-{name}"))
            await starting.start(self.store, "default", name, f"flow-{place}", Payload.of(b"null"), None, options)
            self.plans[name] = self._flows[place]
            self._open.add(name)

    async def end(self) -> int:
        """Wait until all have ended; how many do not."""
        left, since = await self.open(), time.monotonic()
        while left and time.monotonic() - since < PATIENCE:
            await anyio.sleep(0.02)
            now = await self.open()
            if now != left:
                left, since = now, time.monotonic()
        return left


async def soak(folder: Path, *, kills: int, workers: int = 3, seed: int | None = None) -> Report:
    """Kill `kills` of so many workers while there is work, then let the others end it."""
    seed = random.randrange(1 << 32) if seed is None else seed
    sys.stdout.write(f"soak: seed {seed}\n")
    sys.stdout.flush()
    draw, report, begun = random.Random(seed), Report(seed), time.monotonic()
    campaign = _Soak(folder, draw)
    await campaign.prepare()
    processes = Workers(folder / "store.db", folder / "ledger", folder / "log")
    try:
        for _ in range(workers):
            processes.begin()
        for process in processes.processes:
            await processes.serving(process)
        while report.kills < kills:
            await campaign.fill()
            await anyio.sleep(draw.uniform(0, 0.05))
            processes.end(draw.choice(processes.processes), kill=True)
            report.kills += 1
            processes.begin()
            if draw.random() < 0.7:  # else the next kill may come before it serves
                await processes.serving(processes.processes[-1])
        left = await campaign.end()
        if left:
            report.problems.append(f"{left} workflows do not end")
        for process in list(processes.processes):
            code = processes.end(process, kill=False)
            if code:
                report.problems.append(f"a worker left with code {code}")
    finally:
        for process in list(processes.processes):
            processes.end(process, kill=True)
    report.workflows = len(campaign.plans)
    await _compare(campaign.store, folder, campaign.plans, report)
    await campaign.store.close()
    log = (folder / "log").read_text()
    if "Traceback" in log:
        report.problems.append("a worker's log has a traceback:\n" + log[-3000:])
    report.seconds = time.monotonic() - begun
    return report


def _drawn(draw: random.Random) -> Plan:
    steps = [(draw.choice(STEPS), draw.randrange(1, 9)) for _ in range(draw.randrange(20, 40))]
    # Two large ones at most: a result has its place in the guest's memory.
    places = [place for place, (name, _) in enumerate(steps) if name == "large"][2:]
    steps = [("note", number) if place in places else (name, number) for place, (name, number) in enumerate(steps)]
    return Plan([("note", 0), *steps], reentrant=draw.random() < 0.5)


async def _compare(store: SqliteStore, folder: Path, plans: dict[str, Plan], report: Report) -> None:
    done: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for line in (folder / "ledger").read_text().splitlines():
        key, name, activity, request = json.loads(line)
        if key in done[name]:
            report.repeated += 1
            if done[name][key] != (activity, request):
                report.problems.append(f"{name}: two things were done under key {key}")
        done[name][key] = (activity, request)
    for name, plan in plans.items():
        found = await control.describe(store, Key("default", name))
        if found.status is not Status.COMPLETED or found.record is None or found.record.result is None:
            report.problems.append(f"{name} is {found.status.value}: {found.reason}")
            continue
        payload = await control.load_payload(store, found.stored, found.record.result)
        if payload.value() != plan.result:
            report.problems.append(f"{name} gave {payload.content[:200]!r}, not {str(plan.result)[:200]}")
        if sorted(done[name].values()) != plan.done:
            report.problems.append(f"{name} did {sorted(done[name].values())}, not {plan.done}")
        if (folder / f"out-{name}").read_bytes() != plan.sink:
            report.problems.append(f"{name} wrote other bytes")
        await control.history(store, found.stored)
    parts = sorted(path.name for path in folder.glob("out-*.part"))  # noqa: ASYNC240  all workers have ended
    if parts:
        report.problems.append(f"parts are left: {parts}")


def main() -> int:
    """Soak as the command line says."""
    parser = argparse.ArgumentParser(description="Kill workers again and again while they work.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wasman-soak-")))

        async def run() -> Report:
            return await soak(folder, kills=given.kills, workers=given.workers, seed=given.seed)

        report = anyio.run(run)
    sys.stdout.write("\n".join([str(report), *report.problems]) + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
