"""A guest in C by guest_sdk_c: it waits with its stack standing, is kept in the middle of a wait, and goes on there."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.lab import Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.blocking import Blocking
from wasman_host.snapshot import SnapshotPolicy

WAITS = (Path(__file__).parent.parent / "guests" / "asyncified" / "waits_c.wasm").read_bytes()
CALLS = 60


def expected(calls: int) -> int:
    total = 0
    for number in range(calls):
        total = (total * 31 + number) % (1 << 32)
    return total + 7 + 1


def activities(ledger: Ledger) -> Sequence[ActivityDefinition]:
    async def slow(_: ActivityCall) -> bytes:
        await anyio.sleep_forever()
        return b""

    return ledger.activity(), answers("slow", slow)


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries of the log each life of the guest was given again."""
    found: list[int] = []
    run = Blocking.run

    async def noting(self: Blocking) -> None:
        try:
            await run(self)
        finally:
            found.append(self._repeated)

    monkeypatch.setattr(Blocking, "run", noting)
    return found


async def test_a_workflow_in_c_runs(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(WAITS, CALLS)
    await lab.signal("mail", 7)
    assert await lab.complete(*activities(ledger)) == expected(CALLS)
    assert [int(request) for request in ledger.requests] == list(range(CALLS))


async def test_workers_that_leave_at_any_time_leave_nothing_to_be_repeated(lab: MemoryLab, repeated: list[int]) -> None:
    ledger = Ledger()
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    await lab.start(WAITS, CALLS)
    await lab.signal("mail", 7)
    lives = 0
    while (await lab.look()).status.value in {"running", "waiting"}:
        async with lab.worker(*activities(ledger)):
            enough = len(ledger.rows) + draw.randint(1, 9)
            with anyio.fail_after(10.0):
                while len(ledger.rows) < enough and (await lab.look()).status.value in {"running", "waiting"}:
                    await anyio.sleep(0.0005)
        lives += 1
    assert await lab.result() == expected(CALLS), f"seed {seed}"
    assert lives > 5
    assert sum(repeated) <= lives, f"seed {seed}: {repeated}"  # an answer that was durable and not given yet
    assert len(set(ledger.keys)) == CALLS


async def test_a_guest_that_computes_is_kept_by_its_processor_time(disk: SqliteLab, repeated: list[int]) -> None:
    ledger = Ledger()
    await disk.start(WAITS, CALLS)
    await disk.signal("mail", 7)
    policy: Any = SnapshotPolicy(turns=1 << 30, seconds=1e-9)  # which each of its turns takes
    await disk.dies(*activities(ledger), at=30, snapshots=policy)
    repeated.clear()
    assert await disk.complete(*activities(ledger), snapshots=policy) == expected(CALLS)
    assert repeated[-1] <= 1


async def test_a_worker_that_dies_leaves_its_last_snapshot(disk: SqliteLab, repeated: list[int]) -> None:
    ledger = Ledger()
    await disk.start(WAITS, CALLS)
    await disk.signal("mail", 7)
    policy: Any = SnapshotPolicy(turns=5)
    async with disk.worker(*activities(ledger), snapshots=policy):
        while len(ledger.rows) < 23:
            await anyio.lowlevel.checkpoint()
    await disk.dies(*activities(ledger), at=6)
    repeated.clear()
    assert await disk.complete(*activities(ledger), snapshots=policy) == expected(CALLS)
    assert repeated[-1] <= 6
    assert len(set(ledger.keys)) == CALLS
