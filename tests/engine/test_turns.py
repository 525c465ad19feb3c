"""Guests of ABI v1 under the engine: goroutines that are kept between turns, and go on in other processes."""

import json
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import wat
from tests.go_guests import COMPILERS, guest
from tests.lab import Ledger, MemoryLab, SqliteLab, answers, sink, source
from wasman_host import turns
from wasman_host.activity import ActivityCall, Retry
from wasman_host.errors import (
    ApplicationError,
    GuestDeadlockError,
    GuestLimitError,
    GuestTimeoutError,
)
from wasman_host.record import Limits
from wasman_host.residents import Residency
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Status
from wasman_sdk import Workflow
from wasman_sdk.testing import WorkflowEnvironment

ORDER = {"id": "1", "cents": 5}


def saga(ledger: Ledger) -> list[Any]:
    def charge(call: ActivityCall) -> bytes:
        ledger.note(call)
        return b'{"order":"1","card":"4"}'

    def ship(call: ActivityCall) -> bytes:
        ledger.note(call)
        return b'{"tracking":"T"}'

    return [answers("charge", charge), ledger.activity("refund"), answers("ship", ship)]


def names(ledger: Ledger) -> list[str]:
    return [name for _, _, name, _ in ledger.rows]


@COMPILERS
async def test_the_order_saga_is_approved(disk: SqliteLab, compiler: str) -> None:
    ledger = Ledger()
    await disk.start(guest("order", compiler), ORDER, entry="order")
    async with disk.worker(*saga(ledger)):
        await disk.signal("approve", {"ok": True})
        assert await disk.result() == {"tracking": "T"}
    assert names(ledger) == ["charge", "ship"]


@COMPILERS
async def test_the_order_saga_is_rejected_and_undone(lab: MemoryLab, compiler: str) -> None:
    ledger = Ledger()
    await lab.start(guest("order", compiler), ORDER, entry="order")
    async with lab.worker(*saga(ledger)):
        await lab.signal("approve", {"ok": False})
        found = await lab.ended()
    assert found.record is not None
    assert found.record.failure is not None
    assert (found.status, found.record.failure.type) == (Status.FAILED, "rejected")
    assert names(ledger) == ["charge", "refund"]


async def test_a_cancelled_saga_compensates_under_a_context_that_is_not_cancelled(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(guest("order", "tinygo"), ORDER, entry="order")
    async with lab.worker(*saga(ledger)):
        while names(ledger) != ["charge"]:
            await anyio.sleep(0.01)
        await lab.cancel(reason="not needed")
        found = await lab.ended()
    assert found.status is Status.CANCELLED
    assert names(ledger) == ["charge", "refund"]


@COMPILERS
async def test_a_run_that_waits_is_handed_back_and_goes_on_in_the_middle(
    lab: MemoryLab, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_LINGER", 0.01)
    turned: list[int] = []
    turn = turns.Turns._turn

    async def counted(self: turns.Turns, deliveries: Any) -> None:
        turned.append(len(deliveries))
        await turn(self, deliveries)

    monkeypatch.setattr(turns.Turns, "_turn", counted)
    ledger = Ledger()
    await lab.start(guest("order", compiler), ORDER, entry="order")
    async with lab.worker(*saga(ledger)):
        found = await lab.until(Status.WAITING, reason="waits for signal 'approve', nothing to do until")
        assert found.stored.columns.owner is None
        assert found.stored.columns.wake is not None
    assert turned == [1, 1]
    async with lab.worker(*saga(ledger), cold=True):
        await lab.signal("approve", {"ok": True})
        assert await lab.result() == {"tracking": "T"}
    assert turned == [1, 1, 1, 1]  # start, charge, approve, ship: no turn was repeated
    assert names(ledger) == ["charge", "ship"]


async def test_a_worker_that_leaves_in_order_leaves_nothing_to_be_repeated(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[int] = []
    turn = turns.Turns._turn

    async def counted(self: turns.Turns, deliveries: Any) -> None:
        turned.append(len(deliveries))
        await turn(self, deliveries)

    monkeypatch.setattr(turns.Turns, "_turn", counted)
    called, go_on = anyio.Event(), anyio.Event()

    async def echo(call: ActivityCall) -> bytes:
        called.set()
        await go_on.wait()
        return call.request

    await lab.start(guest("programs", "tinygo"), 3, entry="calls")
    async with lab.worker(answers("echo", echo)) as engine:
        await called.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.leave, 5.0)
            await anyio.sleep(0.05)
            go_on.set()
    assert turned == [1, 1]
    assert await lab.complete(Ledger().activity("echo")) == 3
    assert turned == [1, 1, 1, 1]


@COMPILERS
async def test_evicted_at_every_turn_no_call_is_repeated(
    lab: MemoryLab, compiler: str, evicts_at_every_turn: list[str]
) -> None:
    ledger = Ledger()
    await lab.start(guest("programs", compiler), 20, entry="calls")
    assert await lab.complete(ledger.activity("echo")) == 20
    assert ledger.requests == [f'"{n}"'.encode() for n in range(20)]
    assert len(evicts_at_every_turn) == 20  # after each turn but the last


@COMPILERS
async def test_a_worker_that_dies_leaves_all_that_is_needed(disk: SqliteLab, compiler: str) -> None:
    ledger = Ledger()
    await disk.start(guest("programs", compiler), 12, entry="calls")
    for at in (3, 4, 5):
        await disk.dies(ledger.activity("echo"), at=at)
    assert await disk.complete(ledger.activity("echo")) == 12
    assert sorted({int(json.loads(request)) for request in ledger.requests}) == list(range(12))
    assert len(set(ledger.keys)) == 12


async def test_calls_are_made_beside_each_other_and_their_options_hold(lab: MemoryLab) -> None:
    under_way, most = 0, 0

    async def echo(call: ActivityCall) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await anyio.sleep(0.02)
        under_way -= 1
        return call.request

    await lab.start(guest("programs", "tinygo"), 50, entry="fanout")
    assert await lab.complete(answers("echo", echo)) == 50
    assert most == 50


async def test_the_attempts_that_a_call_asks_for_are_made(lab: MemoryLab) -> None:
    ledger = Ledger()

    def fails(call: ActivityCall) -> bytes:
        ledger.note(call)
        raise ApplicationError("no", type="Declined")

    await lab.start(guest("order", "tinygo"), ORDER, entry="order")  # its charge asks for 5
    async with lab.worker(answers("charge", fails, retry=Retry(initial_interval=0.0, maximum_attempts=1))):
        found = await lab.ended()
    assert ledger.attempts == [1, 2, 3, 4, 5]
    assert found.record is not None
    assert found.record.failure is not None
    assert found.record.failure.type == "ActivityError"
    assert found.record.failure.details["type"] == "Declined"


@COMPILERS
async def test_timers_of_the_runtime_are_durable(lab: MemoryLab, compiler: str) -> None:
    await lab.start(guest("programs", compiler), 50, entry="sleeps")
    assert await lab.complete() >= 50


@COMPILERS
async def test_a_sleep_of_300_years_comes_to_its_end(compiler: str) -> None:
    workflow = Workflow("years", int, int, module=guest("programs", compiler))
    async with WorkflowEnvironment(workflows=[workflow]) as env:
        assert await env.client.execute_workflow(workflow, 292, id="w") == 2


@COMPILERS
async def test_a_panic_fails_the_run_with_its_message_and_where(lab: MemoryLab, compiler: str) -> None:
    await lab.start(guest("programs", compiler), "the bottom fell out", entry="panics")
    async with lab.worker(Ledger().activity("echo")):
        found = await lab.ended()
    assert found.record is not None
    failure = found.record.failure
    assert failure is not None
    assert (found.status, failure.type) == (Status.FAILED, "Panic")
    assert "the bottom fell out" in failure.message
    assert "panics" in failure.backtrace


@COMPILERS
async def test_a_deadlock_is_reported_instead_of_hanging(lab: MemoryLab, compiler: str) -> None:
    await lab.start(guest("programs", compiler), "x", entry="deadlock")
    async with lab.worker(Ledger().activity("echo")):
        found = await lab.blocked(GuestDeadlockError)
    assert "its goroutines wait for each other" in found.reason


async def test_a_goroutine_that_never_yields_meets_the_budget(lab: MemoryLab) -> None:
    limits = Limits(turn_seconds=0.2)
    await lab.start(guest("programs", "tinygo"), "x", entry="endless", limits=limits)
    async with lab.worker(Ledger().activity("echo")):
        found = await lab.blocked(GuestTimeoutError)
    assert "may for 0.2 s" in found.reason


async def test_a_ticker_that_nobody_stops_is_warned_of(
    lab: MemoryLab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_TICKS", 3)
    await lab.start(guest("programs", "tinygo"), 200, entry="ticks")
    with caplog.at_level(logging.WARNING):
        assert await lab.complete() == 200
    assert "perhaps a ticker that nobody stops" in caplog.text


async def test_a_workflow_that_is_not_registered_fails_the_run_and_says_which_are(lab: MemoryLab) -> None:
    await lab.start(guest("order", "tinygo"), ORDER, entry="odrer")
    async with lab.worker():
        found = await lab.ended()
    assert found.record is not None
    failure = found.record.failure
    assert failure is not None
    assert failure.type == "UnknownWorkflow"
    assert failure.message == "the module has no workflow 'odrer': it registers 'order'"


async def test_an_input_that_does_not_fit_fails_the_run(lab: MemoryLab) -> None:
    await lab.start(guest("order", "tinygo"), {"id": 7}, entry="order")
    async with lab.worker():
        found = await lab.ended()
    assert found.record is not None
    failure = found.record.failure
    assert failure is not None
    assert failure.type == "BadInput"
    assert "id: 7 does not fit into a string" in failure.message


def _nested(within: str, depth: int) -> Any:
    """A value of which each level holds the next, in a way that JSON has."""
    if depth == 0:
        return 7 if within == "anything" else {"number": 7}
    inner = _nested(within, depth - 1)
    return {"anything": [inner], "member": {within: inner}, "list": {within: [inner]}, "map": {within: {"k": inner}}}[
        within
    ]


@pytest.mark.parametrize(("within", "deep"), [("anything", 35), ("member", 30), ("list", 14), ("map", 18)])
async def test_what_is_nested_too_deep_is_refused_before_a_stack_ends(within: str, deep: int, lab: MemoryLab) -> None:
    entry = "anything" if within == "anything" else "nested"
    for depth in (deep, 90):
        await lab.start(guest("programs", "tinygo"), _nested(within, depth), id=f"d{depth}", entry=entry)
    async with lab.worker():
        assert await lab.result(f"d{deep}") == _nested(within, deep)
        found = await lab.ended("d90")
    assert found.record is not None
    assert found.record.failure is not None
    assert found.record.failure.type == "BadInput"
    assert "values lie within each other too deep for the goroutine's stack" in found.record.failure.message
    assert "--stack-size" in found.record.failure.message


@COMPILERS
async def test_each_run_draws_random_numbers_of_its_own(compiler: str, lab: MemoryLab) -> None:
    for name in ("a", "b"):
        await lab.start(guest("programs", compiler), id=name, entry="draws")
    async with lab.worker():
        first, second = await lab.result("a"), await lab.result("b")
    assert set(first) == set(second) == {"crypto/rand", "Rand", "UUID"}
    assert all(first[source] != second[source] for source in first)


async def test_an_activity_that_nobody_has_is_waited_for_and_named(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_UNREGISTERED", 0.05)
    ledger = Ledger()
    await lab.start(guest("programs", "tinygo"), 2, entry="calls")
    async with lab.worker():
        await lab.until(Status.WAITING, reason="activity 'echo' is registered with no worker")
    assert await lab.complete(ledger.activity("echo")) == 2
    assert ledger.attempts == [1, 1]


async def test_large_inputs_and_results_are_pulled(lab: MemoryLab) -> None:
    large = "x" * 20_000
    await lab.start(guest("programs", "tinygo"), large, entry="panics")
    async with lab.worker(Ledger().activity("echo")):
        found = await lab.ended()
    assert found.record is not None
    assert found.record.failure is not None
    assert large in found.record.failure.message


async def test_more_answers_than_a_turn_takes_come_in_several(lab: MemoryLab) -> None:
    await lab.start(guest("programs", "tinygo"), 400, entry="fanout")
    assert await lab.complete(Ledger().activity("echo")) == 400


async def test_guests_are_evicted_when_there_are_too_many(lab: MemoryLab) -> None:
    called, go_on = 0, anyio.Event()

    async def echo(call: ActivityCall) -> bytes:
        nonlocal called
        called += 1
        await go_on.wait()
        return call.request

    for n in range(5):
        await lab.start(guest("programs", "tinygo"), 1, entry="calls", id=f"w{n}")
    async with lab.worker(answers("echo", echo), residency=Residency(guests=2)) as engine:
        with anyio.fail_after(10):
            while called < 5 or sum(one.guest is not None for one in engine._live.values()) > 2:
                await anyio.sleep(0.01)
        go_on.set()
        for n in range(5):
            assert await lab.result(f"w{n}") == 1
    assert called == 5


async def test_signals_are_received_in_order_and_those_left_over_are_told(lab: MemoryLab) -> None:
    await lab.start(guest("programs", "tinygo"), 3, entry="receives")
    for n in range(2):
        await lab.signal("mail", f"v{n}", message_id=f"m{n}")
    async with lab.worker():
        await lab.signal("mail", "v2", message_id="m2")
        await lab.signal("mail", "v2", message_id="m2")  # sent again
        await lab.signal("other", "x", message_id="o")
        assert await lab.result() == ["v0", "v1", "v2"]
    assert (await lab.record()).undelivered == (("o", "signal"),)


@COMPILERS
async def test_streams_are_known_by_their_names_and_go_on_where_they_were(
    disk: SqliteLab, compiler: str, tmp_path: Path
) -> None:
    left, right = b"left " * 1000, b"right" * 700
    (tmp_path / "left").write_bytes(left)
    (tmp_path / "right").write_bytes(right)
    await disk.start(
        guest("programs", compiler),
        512,
        entry="copies",
        sources={name: source(tmp_path / name)["source"] for name in ("left", "right")},
        sinks={name: sink(tmp_path / name)["sink"] for name in ("to_left", "to_right")},
    )
    ledger = Ledger()
    for at in (3, 5, 4):
        await disk.dies(ledger.activity("echo"), at=at)
    policy = SnapshotPolicy(turns=3)
    assert await disk.complete(ledger.activity("echo"), snapshots=policy) == len(left) + len(right)
    assert (tmp_path / "to_right").read_bytes() == left
    assert (tmp_path / "to_left").read_bytes() == right


async def test_a_run_is_kept_after_so_many_turns(lab: MemoryLab) -> None:
    await lab.start(guest("programs", "tinygo"), 25, entry="calls")
    async with lab.worker(Ledger().activity("echo"), snapshots=SnapshotPolicy(turns=10, seconds=100.0)):
        await lab.result()
    snapshot = (await lab.record()).snapshot
    assert snapshot is not None
    assert snapshot.entry == 20


async def test_a_stack_that_ends_is_a_limit_that_says_which(lab: MemoryLab) -> None:
    await lab.start(guest("programs", "go"), 100_000, entry="deep", limits=Limits(stack=65536))
    async with lab.worker():
        found = await lab.blocked(GuestLimitError, reason="ran into the end of its stack, 65,536 bytes")
    assert "raise the limit and unblock" in found.reason


@pytest.mark.parametrize("depth", [64, 106, 1_000, 100_000])
async def test_a_goroutines_stack_that_overflows_says_by_what_there_is_more(depth: int, lab: MemoryLab) -> None:
    await lab.start(guest("programs", "tinygo"), depth, entry="overflows")
    async with lab.worker(Ledger().activity("echo")):
        found = await lab.ended()
    assert found.status is Status.FAILED
    assert found.record is not None
    assert found.record.failure is not None
    assert "wasman build --stack-size 64KB" in found.record.failure.message, found.record.failure


async def test_an_access_out_of_bounds_in_another_language_says_nothing_of_goroutines(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.raw("(i32.store (i32.const 67108864) (i32.const 1))")))
    async with lab.worker():
        found = await lab.ended()
    assert found.record is not None
    assert found.record.failure is not None
    assert found.record.failure.message.endswith("wasm trap: out of bounds memory access")
