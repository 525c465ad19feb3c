"""A guest in C by guest_sdk_c: it waits with its stack standing, is kept in the middle of a wait, and goes on there."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.lab import PATIENCE, Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.blocking import Blocking
from wasman_host.instance import Instance
from wasman_host.machine import Proposal
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Change, Key, Lost, Step, Unread, Won

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


async def test_a_worker_that_is_to_leave_as_a_deadline_is_committed_leaves(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest was told of the deadline and waited for what never comes, and so did its worker."""
    commit = Instance.commit
    fires: list[bool] = []

    async def commits(self: Instance, proposal: Proposal) -> None:
        if any(one.kind == "fired" for one in proposal.delivered) and not fires:
            fires.append(True)
            monkeypatch.setattr(lab.store, "commit", leaves)
        await commit(self, proposal)

    async def leaves(changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        monkeypatch.undo()
        outcomes = await lab.store.commit(changes)
        [instance] = engine._live.values()
        engine._leaving.set()
        while not instance._leaving:
            await anyio.sleep(0.001)
        return outcomes

    monkeypatch.setattr(Instance, "commit", commits)
    ledger = Ledger()
    await lab.start(WAITS, 1)
    with anyio.fail_after(PATIENCE):
        async with lab.worker(*activities(ledger)) as engine:
            await engine._left.wait()
    await lab.signal("mail", 7)
    assert await lab.complete(*activities(ledger)) == expected(1)


async def test_one_that_is_to_be_evicted_as_its_deadline_comes_keeps_its_memory_for_the_call_that_follows(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was evicted in that call, and what the call gave was written where its memory had been."""
    sleep_until, evicted = lab.store.sleep_until, []

    async def sleeping(time: int, key: Key) -> None:
        await sleep_until(time, key)
        evicted.append(engine._live[key].evict())

    monkeypatch.setattr(lab.store, "sleep_until", sleeping)
    ledger = Ledger()
    await lab.start(WAITS, 1)
    async with lab.worker(*activities(ledger)) as engine:
        while not evicted:
            await anyio.sleep(0.001)
        await lab.signal("mail", 7)
        assert await lab.result() == expected(1)
    assert evicted == [True]
