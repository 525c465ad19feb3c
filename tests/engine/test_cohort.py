"""Instances that go on by what one transaction made durable go through the stages of a step together."""

from itertools import groupby
from typing import cast

import anyio
import pytest

from tests import wat
from tests.lab import PATIENCE, Ledger, SqliteLab
from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.cohort import Cohort
from wasman_host.guest.live import Ended, Guest
from wasman_host.wake import turn

pytestmark = pytest.mark.anyio


class _Scripted:
    """Stands for a guest: says when it runs, and comes to what it was given."""

    def __init__(self, name: str, said: list[str], outcome: Ended | Exception) -> None:
        self.name, self.said, self.outcome = name, said, outcome

    def resume(self) -> Ended:
        self.said.append(f"{self.name} runs")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def _live(cohort: Cohort, guest: _Scripted) -> None:
    """What an instance does with its guest, as far as it matters here."""
    try:
        outcome = await cohort.resume(cast("Guest", guest))
        assert outcome is guest.outcome
    except ValueError as error:
        assert error is guest.outcome  # noqa: PT017  which of them it is matters
        guest.said.append(f"{guest.name} has failed")
    else:
        guest.said.append(f"{guest.name} goes on")
    finally:
        guest.said.append(f"{guest.name} is closed")


async def test_guests_run_in_a_row_and_each_instance_is_given_what_its_own_came_to() -> None:
    cohort = Cohort()
    said: list[str] = []
    guests = [_Scripted(name, said, Ended([place])) for place, name in enumerate("abc")]
    guests[1].outcome = ValueError("of b")
    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            for guest in guests:
                tasks.start_soon(_live, cohort, guest)
        assert sorted(said[:3]) == ["a runs", "b runs", "c runs"]  # and only then does any of them go on
        each = [f"{name} {what}" for name, what in (("a", "goes on"), ("b", "has failed"), ("c", "goes on"))]
        assert sorted(said[3:]) == sorted([*each, "a is closed", "b is closed", "c is closed"])
        said.clear()


async def test_a_guest_whose_instance_was_stopped_meanwhile_does_not_run_after_that() -> None:
    cohort = Cohort()
    said: list[str] = []
    stopped = anyio.CancelScope()

    async def stoppable() -> None:
        with stopped:
            await _live(cohort, _Scripted("b", said, Ended()))

    async def stop() -> None:
        stopped.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stoppable)
        tasks.start_soon(_live, cohort, _Scripted("a", said, Ended()))
        tasks.start_soon(stop)
    assert {"a runs", "a goes on"} <= set(said)
    assert "b goes on" not in said
    assert "b runs" not in said[said.index("b is closed") :]
    with anyio.fail_after(5):  # nothing of it is left behind
        await _live(cohort, _Scripted("c", said, Ended()))
    assert said[-3:] == ["c runs", "c goes on", "c is closed"]


async def test_workflows_at_once_go_on_stage_by_stage_and_a_lone_one_as_soon_as_it_may(
    disk: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    resume = Guest.resume

    def heard(self: Guest) -> object:
        said.append("guest")
        return resume(self)

    monkeypatch.setattr(Guest, "resume", heard)

    async def note(call: ActivityCall) -> bytes:
        said.append("activity")
        return call.request

    script = wat.script(*(wat.call("note", b"%d" % number) for number in range(6)))
    many = [f"many-{place}" for place in range(12)]
    activity = ActivityDefinition(name="note", handler=note)
    for name in many:
        await disk.start(script, id=name)
    async with disk.worker(activity):
        for name in many:
            assert await disk.result(name) == [*range(6)]
    rows = {kind: max(len(list(row)) for what, row in groupby(said) if what == kind) for kind in ("guest", "activity")}
    assert rows["guest"] >= 4  # without stages they would take turns
    assert rows["activity"] >= 4

    turns: list[None] = []
    for place in ("calls", "cohort", "instance"):
        monkeypatch.setattr(f"wasman_host.{place}.turn", lambda: turns.append(None))
    async with disk.worker(activity):
        await disk.start(script, id="lone")
        assert await disk.result("lone") == [*range(6)]
    assert not turns


async def test_an_answer_that_waits_for_the_others_is_committed_before_its_worker_leaves(
    disk: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    await disk.start(wat.script(wat.call("note", b"1"), wat.call("note", b"2")))
    monkeypatch.setattr("wasman_host.store.group._CROWD", 1)
    async with disk.worker(ledger.activity()) as engine:

        async def leaves() -> None:
            for instance in engine._live.values():
                instance.leave()
            await turn()

        monkeypatch.setattr("wasman_host.calls.turn", leaves)
        with anyio.fail_after(PATIENCE):
            while not ledger.rows or engine._live:
                await anyio.sleep(0.001)
    monkeypatch.undo()
    async with disk.worker(ledger.activity()):
        assert await disk.result() == [1, 2]
    assert ledger.attempts == [1, 1]
