"""What attempts say of themselves outlives them: failed attempts, dead workers, workers that leave."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests import wat
from tests.lab import AT_ONCE, Lab, MemoryLab, answers
from tests.turning import Turn, complete, turning
from tests.turning import call as asks
from wasman_host import control
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.machine import Proposal
from wasman_host.record import OpenOperation
from wasman_host.slots import Slots
from wasman_host.store import Claim
from wasman_host.turns import Turns

ASKS = wat.script(wat.call("copies"))


@pytest.fixture(params=["lab", "disk", "folder"])
def any_lab(request: pytest.FixtureRequest) -> Lab:
    lab: Lab = request.getfixturevalue(request.param)
    return lab


async def kept(lab: Lab, details: object) -> None:
    """Wait until these details are durable."""
    while [one.heartbeat for one in (await lab.record()).open] != [details]:
        await anyio.sleep(0.005)


async def test_the_attempt_after_a_dead_worker_reads_what_was_said(any_lab: Lab) -> None:
    lab, durable = any_lab, anyio.Event()
    seen: list[tuple[int, object]] = []

    async def copies(call: ActivityCall) -> bytes:
        seen.append((call.attempt, list(call.heartbeat)))
        if call.attempt == 1:
            call.attempts.heartbeat(call, b'["row", 7]')
            await kept(lab, ["row", 7])
            durable.set()
            await anyio.sleep_forever()
        return b"1"

    await lab.start(ASKS)
    await lab.dies(answers("copies", copies), when=durable)
    assert await lab.complete(answers("copies", copies)) == [1]
    assert seen == [(1, []), (2, ["row", 7])]
    assert not (await lab.record()).open


@pytest.mark.parametrize("grace", [0.0, 0.1], ids=["at once", "after a while"])
async def test_a_worker_that_leaves_hands_over_what_was_said_last(any_lab: Lab, grace: float) -> None:
    lab, began = any_lab, anyio.Event()
    seen: list[tuple[int, object]] = []

    async def copies(call: ActivityCall) -> bytes:
        seen.append((call.attempt, list(call.heartbeat)))
        if len(seen) > 1:
            return b"1"
        call.attempts.heartbeat(call, b"[1]")
        await kept(lab, [1])
        call.attempts.heartbeat(call, b"[2]")  # not due yet
        began.set()
        await engine._leaving.wait()
        if grace:
            call.attempts.heartbeat(call, b"[3]")
        await anyio.sleep_forever()
        raise AssertionError

    await lab.start(ASKS)
    async with lab.worker(answers("copies", copies)) as engine:
        await began.wait()
        await engine.leave(grace)
    assert await lab.complete(answers("copies", copies)) == [1]
    assert seen == [(1, []), (1, [3 if grace else 2])]  # nobody died, so it is the same attempt


async def test_a_worker_that_waits_for_its_activities_keeps_what_they_say(any_lab: Lab) -> None:
    lab, began = any_lab, anyio.Event()

    async def copies(call: ActivityCall) -> bytes:
        began.set()
        await engine._leaving.wait()
        await anyio.sleep(0.02)
        call.attempts.heartbeat(call, b"[3]")
        await kept(lab, [3])
        await anyio.sleep(0.02)
        return b"1"

    await lab.start(ASKS)
    async with lab.worker(answers("copies", copies)) as engine:
        await began.wait()
        await engine.leave(10.0)
    assert [one.kind for one in (await control.history(lab.store, (await lab.look()).stored))[-1].deliveries] == [
        "result"
    ]


async def test_what_was_said_last_outlives_a_failure_although_it_was_not_due(lab: Lab) -> None:
    seen: list[object] = []

    async def copies(call: ActivityCall) -> bytes:
        seen.append(list(call.heartbeat))
        if len(seen) < 3:
            for n in range(1000):
                call.attempts.heartbeat(call, b"[%d]" % (1000 * len(seen) + n))
            raise OSError("again")
        return b"1"

    await lab.start(ASKS)
    assert await lab.complete(answers("copies", copies)) == [1]
    assert seen == [[], [1999], [2999]]


async def test_a_failure_without_a_heartbeat_forgets_nothing(lab: Lab) -> None:
    seen: list[object] = []

    async def copies(call: ActivityCall) -> bytes:
        seen.append(list(call.heartbeat))
        if len(seen) == 1:
            call.attempts.heartbeat(call, b"[1]")
        if len(seen) < 4:
            raise OSError("again")
        return b"1"

    await lab.start(ASKS)
    assert await lab.complete(answers("copies", copies)) == [1]
    assert seen == [[], [1], [1], [1]]


async def test_heartbeats_in_a_tight_loop_are_written_once(lab: Lab) -> None:
    version: list[int] = []

    async def copies(call: ActivityCall) -> bytes:
        version.append((await lab.look()).stored.version)
        call.attempts.heartbeat(call, b"[0]")
        await kept(lab, [0])
        for n in range(4000):
            call.attempts.heartbeat(call, b"[%d]" % n)
            await anyio.lowlevel.checkpoint()
        version.append((await lab.look()).stored.version)
        await kept(lab, [3999])  # a second later
        version.append((await lab.look()).stored.version)
        return b"1"

    await lab.start(ASKS)
    assert await lab.complete(answers("copies", copies)) == [1]
    first, second, third = version
    assert (second - first, third - first) == (1, 2)


async def test_a_heartbeat_without_details_writes_nothing(lab: Lab) -> None:
    version: list[int] = []

    async def copies(call: ActivityCall) -> bytes:
        for _ in range(2):
            call.attempts.heartbeat(call, None)
            await anyio.sleep(0.01)
            version.append((await lab.look()).stored.version)
        return b"1"

    await lab.start(ASKS)
    assert await lab.complete(answers("copies", copies)) == [1]
    assert version[0] == version[1]


async def test_the_answer_waits_for_a_heartbeat_that_is_being_written(disk: Lab) -> None:
    # Both are commits of one version: had they been made at once, one would be lost, or taken for the other.
    written: list[int] = []

    async def copies(call: ActivityCall) -> bytes:
        [instance] = engine._live.values()
        call.attempts.heartbeat(call, b"[%d]" % call.operation)
        while instance._beside is None:
            await anyio.lowlevel.checkpoint()
        written.append(call.operation)
        return b"%d" % call.operation

    await disk.start(wat.script(*[wat.call("copies")] * 20))
    async with disk.worker(answers("copies", copies)) as engine:
        assert await disk.result() == written == list(range(20))
    entries = await control.history(disk.store, (await disk.look()).stored)
    assert [one.operation for entry in entries[1:] for one in entry.deliveries] == written


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails at first"])
async def test_what_is_committed_after_a_heartbeat_is_made_over_it(disk: Lab, *, fails: bool) -> None:
    # The heartbeat is still being written when the attempt ends: the record that follows must not be made over the one
    # before, or the call would stay open although it is answered.
    found: list[list[OpenOperation]] = []

    async def copies(call: ActivityCall) -> bytes:
        [instance] = engine._live.values()
        call.attempts.heartbeat(call, b"[%d]" % call.attempt)
        while instance._beside is None:
            await anyio.lowlevel.checkpoint()
        if fails and call.attempt == 1:
            raise OSError("at first")
        return b"1"

    async def looks(_: ActivityCall) -> bytes:
        found.append(list((await disk.record()).open))
        return b"2"

    await disk.start(wat.script(*[wat.call("copies"), wat.call("looks")] * 3))
    copying = ActivityDefinition("copies", copies, AT_ONCE)
    async with disk.worker(copying, answers("looks", looks)) as engine:
        assert await disk.result() == [1, 2] * 3
    assert found == [[]] * 3


async def test_a_heartbeat_of_an_attempt_that_is_over_changes_nothing(lab: Lab) -> None:
    calls: list[ActivityCall] = []

    async def copies(call: ActivityCall) -> bytes:
        calls.append(call)
        if len(calls) == 1:
            raise OSError("again")
        calls[0].attempts.heartbeat(calls[0], b"[1]")
        assert calls[0].attempts.is_over(calls[0])
        assert calls[0].attempts.over(calls[0]).is_set()
        assert not call.attempts.is_over(call)
        await anyio.sleep(0.01)
        return b"%d" % len((await lab.record()).open[0].heartbeat)

    await lab.start(ASKS)
    assert await lab.complete(answers("copies", copies)) == [0]


async def test_an_evicted_guests_activity_heartbeats_all_the_same(lab: Lab) -> None:
    async def copies(call: ActivityCall) -> bytes:
        [instance] = engine._live.values()
        assert instance.evict()
        call.attempts.heartbeat(call, b"[1]")
        await kept(lab, [1])
        return b"1"

    await lab.start(ASKS)
    async with lab.worker(answers("copies", copies)) as engine:
        assert await lab.result() == [1]


async def test_who_dies_while_a_call_waits_for_its_turn_has_begun_no_attempt(lab: Lab) -> None:
    slots = Slots(at_once=1)
    waits = anyio.Event()

    async def first(call: ActivityCall) -> bytes:
        await anyio.sleep_forever()
        return call.request

    async def second(call: ActivityCall) -> bytes:
        return b"%d" % call.attempt

    once = Retry(initial_interval=0.0, maximum_attempts=1)
    await lab.start(wat.script(wat.call("first")), id="first")
    held = ActivityDefinition("first", first, AT_ONCE, slots=slots)
    queued = ActivityDefinition("second", second, once, slots=slots)

    async def look() -> None:
        while not (await lab.look("first")).stored.columns.owner:
            await anyio.sleep(0.005)
        await lab.start(wat.script(wat.call("second")), id="second")
        while not (await lab.record("second")).open:
            await anyio.sleep(0.005)
        waits.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await lab.dies(held, queued, when=waits)
    assert (await lab.record("second")).open[0].attempts == 0
    async with lab.worker(ActivityDefinition("second", second, once)):
        assert await lab.result("second") == [1]


async def test_a_heartbeat_that_comes_to_be_written_after_its_instance_was_given_up_is_not(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written over that, in the name of a worker that no longer had the instance: nobody else could take it."""
    claim, commit = lab.store.claim, Turns.commit
    begun, late = anyio.Event(), anyio.Event()
    waits: list[Turns] = []

    async def commits(self: Turns, make: Callable[[], Proposal | None]) -> None:
        if begun.is_set() and not waits:
            waits.append(self)
            [instance] = engine._live.values()
            instance.leave()
            while engine._live:
                await anyio.sleep(0.001)
            await commit(self, make)
            late.set()
        else:
            await commit(self, make)

    async def claims(*given: Any) -> list[Claim]:
        return await claim(*given) if not begun.is_set() or late.is_set() else []

    async def copies(call: ActivityCall) -> bytes:
        if not begun.is_set():
            begun.set()
            call.attempts.heartbeat(call, b"[1]")
            await anyio.sleep_forever()
        return b"1"

    monkeypatch.setattr(Turns, "commit", commits)
    monkeypatch.setattr(lab.store, "claim", claims)
    await lab.start(turning(Turn(asks(0, "copies")), Turn(complete(b"1"))))
    with anyio.fail_after(10):
        async with lab.worker(answers("copies", copies)) as engine:
            assert await lab.result() == 1
            await late.wait()


def test_a_record_without_heartbeats_is_written_as_before() -> None:
    assert "heartbeat" not in OpenOperation(0, "call", "copies").as_json()
