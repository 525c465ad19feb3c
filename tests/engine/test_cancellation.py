"""A cancel: the guest is told once, durably, and ends in its own way."""

import json
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from tests import wat
from tests.lab import Lab, Ledger, answers, moved_by_hand
from wasman_host import control
from wasman_host.activity import ActivityCall, Retry
from wasman_host.errors import InvalidArgumentError, WorkflowClosedError
from wasman_host.record import Limits, Pinned, Record, decode_record, encode_record
from wasman_host.seal import seal
from wasman_host.store import CLOSED, Change, Key, Lost, Message, Sent, Status, Step, Unread, Won
from wasman_host.stored import mail_address
from wasman_sdk import Engine

FAILS = b'{"type": "Cancelled", "message": "as asked", "details": {"tidied": 1}}'
# What a guest of the SDK says that returns the error of its call.
RETURNS = b'{"type": "ActivityError", "message": "work failed", "details": {"type": "Cancelled", "activity": "work"}}'


def honours(says: bytes = FAILS) -> bytes:
    """Calls `work`, tidies up by another activity, and ends with what it was told."""
    return wat.script(wat.call("before", b"1"), wat.call("work"), wat.call("tidy", b"2"), wat.call("wasman.fail", says))


REPORTS = wat.script(wat.call("work"), wat.call("wasman.error"), wat.call("tidy", b"2"))


@pytest.fixture(params=["lab", "disk", "folder"])
def any_lab(request: pytest.FixtureRequest) -> Lab:
    lab: Lab = request.getfixturevalue(request.param)
    return lab


class Work:
    """An activity that does not end by itself."""

    def __init__(self) -> None:
        self.began, self.cancelled = anyio.Event(), 0
        self.calls: list[ActivityCall] = []

    async def __call__(self, call: ActivityCall) -> bytes:
        self.calls.append(call)
        self.began.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        return b"1"


@pytest.mark.parametrize("says", [FAILS, RETURNS], ids=["by itself", "by its call's error"])
async def test_a_guest_that_honours_it_is_cancelled_after_it_has_tidied_up(any_lab: Lab, says: bytes) -> None:
    lab, work, ledger = any_lab, Work(), Ledger()
    await lab.start(honours(says))
    async with lab.worker(answers("work", work), ledger.activity("before"), ledger.activity("tidy")):
        await work.began.wait()
        await lab.cancel()
        found = await lab.ended()
    assert found.status is Status.CANCELLED
    assert work.cancelled == 1
    assert work.calls[0].attempts.is_over(work.calls[0])
    assert ledger.requests == [b"1", b"2"]
    record = await lab.record()
    assert record.cancel is not None
    assert (record.cancel.reason, record.cancel.operation) == ("changed my mind", 1)
    assert not record.open
    assert not record.undelivered
    assert await lab.store.mail(Key("default", "w")) == []


async def test_the_call_fails_with_the_reason_and_the_guest_may_go_on(any_lab: Lab) -> None:
    lab, work, ledger = any_lab, Work(), Ledger()
    await lab.start(REPORTS)
    async with lab.worker(answers("work", work), ledger.activity("tidy")):
        await work.began.wait()
        await lab.cancel()
        code, failure, tidied = await lab.result()
    assert code == -1
    assert failure == {"type": "Cancelled", "message": "changed my mind", "activity": "work"}
    assert tidied == 2
    assert (await lab.look()).status is Status.COMPLETED  # it gave a result
    entries = await control.history(lab.store, (await lab.look()).stored)
    told = [one for entry in entries for one in entry.deliveries if one.kind == "failed"]
    run = (await lab.record()).run
    assert [(one.operation, one.message) for one in told] == [(0, f"cancel-{run}")]


async def test_whoever_dies_at_any_commit_the_guest_is_told_once(lab: Lab) -> None:
    async def whole(at: int, *, after: bool) -> bool:
        """One run whose worker dies at that commit after the cancel; whether it came so far."""
        work, ledger, id_ = Work(), Ledger(), f"w{at}{after}"
        await lab.start(honours(), id=id_)
        given = (answers("work", work), ledger.activity("before"), ledger.activity("tidy"))
        asked: list[int] = []

        def matching(change: Change | Step) -> bool:
            return bool(asked) and change.key.id == id_

        async def ask() -> None:
            await work.began.wait()
            asked.append(1)
            await lab.cancel(id_)
            with anyio.move_on_after(5):
                await lab.ended(id_)
            late.set()

        late = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await lab.dies(*given, at=at, after=after, when=late, matching=matching)
            tasks.cancel_scope.cancel()
        died = not late.is_set()
        async with lab.worker(*given):
            assert (await lab.ended(id_)).status is Status.CANCELLED
        assert len(set(ledger.keys)) == 2  # both activities, each under one key
        assert (await lab.record(id_)).undelivered == ()
        entries = await control.history(lab.store, (await lab.look(id_)).stored)
        told = [one.message for entry in entries for one in entry.deliveries if one.message]
        assert len(told) == 1
        return died

    for at in range(1, 10):
        died = [await whole(at, after=after) for after in (False, True)]
        if not any(died):
            break
    else:
        pytest.fail("it never came to its end")
    assert at > 3


async def test_it_cuts_a_backoff_short(lab: Lab) -> None:
    async def fails(_: ActivityCall) -> bytes:
        raise OSError("not yet")

    await lab.start(REPORTS)
    hour = Retry(initial_interval=3600.0, maximum_interval=3600.0)
    ledger = Ledger()
    async with lab.worker(answers("work", fails, retry=hour), ledger.activity("tidy")):
        while not (await lab.record()).open:
            await anyio.sleep(0.01)
        await lab.cancel()
        _, failure, _ = await lab.result()
    assert failure == {"type": "Cancelled", "message": "changed my mind", "activity": "work", "attempt": 1}


async def test_a_call_that_no_worker_can_answer_is_cancelled_all_the_same(any_lab: Lab) -> None:
    lab, ledger = any_lab, Ledger()
    await lab.start(REPORTS)
    async with lab.worker(ledger.activity("tidy")):
        await lab.until(Status.WAITING, reason="registered with no worker")
        await lab.cancel()
        _, failure, _ = await lab.result()
    assert failure["type"] == "Cancelled"


async def test_without_a_worker_it_waits_for_one(lab: Lab) -> None:
    ledger = Ledger()
    await lab.start(REPORTS)
    await lab.cancel()
    await lab.cancel(reason="twice is once")
    _, failure, _ = await lab.complete(answers("work", ledger.note), ledger.activity("tidy"))
    assert failure["message"] == "changed my mind"
    assert ledger.requests == [b"2"]  # its first call was never made
    assert (await lab.record()).undelivered == ()


async def test_a_guest_in_a_timer_is_told_by_its_next_call(any_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, ledger = any_lab, Ledger()
    move = moved_by_hand(lab.store, monkeypatch)
    await lab.start(
        wat.script(wat.sleep(5_000_000_000), wat.call("work"), wat.call("wasman.error"), wat.call("tidy", b"2"))
    )
    async with lab.worker(answers("work", ledger.note), ledger.activity("tidy")) as engine:
        while not any(instance._waits for instance in engine._live.values()):
            await anyio.sleep(0.005)
        await lab.cancel()
        while (record := await lab.record()).cancel is None:
            await anyio.sleep(0.005)
        assert record.cancel.operation is None  # taken from the mail, or it would be claimed for it again and again
        assert await lab.store.mail(Key("default", "w")) == []
        move(5_000_000_000)
        errno, code, failure, _ = await lab.result()
    assert (errno, code, failure["type"]) == (0, -1, "Cancelled")
    assert ledger.requests == [b"2"]


async def test_it_survives_the_eviction_of_a_guest_that_waits_for_a_time(lab: Lab) -> None:
    ledger = Ledger()
    await lab.start(wat.script(wat.sleep(600_000_000), wat.call("work"), wat.call("tidy", b"2")))
    async with lab.worker(answers("work", ledger.note), ledger.activity("tidy")) as engine:
        while not any(instance._waits for instance in engine._live.values()):
            await anyio.sleep(0.005)
        assert next(iter(engine._live.values())).evict()
        await lab.until(Status.WAITING)
        await lab.cancel()
        while (await lab.record()).cancel is None:
            await anyio.sleep(0.005)
        assert await lab.result() == [0, -1, 2]


async def test_an_evicted_guests_activity_is_cancelled(lab: Lab) -> None:
    work, ledger = Work(), Ledger()
    await lab.start(REPORTS)
    async with lab.worker(answers("work", work), ledger.activity("tidy")) as engine:
        await work.began.wait()
        assert next(iter(engine._live.values())).evict()
        await lab.cancel()
        _, failure, _ = await lab.result()
    assert failure["type"] == "Cancelled"
    assert work.cancelled == 1


async def test_a_blocked_run_keeps_it_until_it_is_unblocked(any_lab: Lab) -> None:
    lab, ledger = any_lab, Ledger()
    await lab.start(REPORTS, limits=Limits(request=2))
    async with lab.worker(answers("work", ledger.note), ledger.activity("tidy")):
        await lab.until(Status.BLOCKED, reason="sends activity 'work' a request of 4 bytes")
        await lab.cancel()
        while (found := await lab.look()).record is None or found.record.cancel is None:
            await anyio.sleep(0.01)
        assert found.status is Status.BLOCKED
        assert found.record.cancel.operation is None
        while (found := await lab.look()).stored.columns.owner is not None:  # and nobody is busy with it
            await anyio.sleep(0.01)
        await lab.unblock(limits=Limits())
        _, failure, _ = await lab.result()
    assert failure["type"] == "Cancelled"


class Overtaken:
    """A store in which a cancel arrives just before the run closes."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.sent = lab, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lab.store, name)

    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        closing = any(isinstance(one, Change) and one.columns and one.columns.status in CLOSED for one in changes)
        if closing and not self.sent:
            self.sent = True
            await self.lab.cancel()
        return await self.lab.store.commit(changes)


@pytest.mark.parametrize("says", [b"", FAILS], ids=["completed", "failed"])
async def test_one_that_comes_too_late_is_listed_as_undelivered(any_lab: Lab, says: bytes) -> None:
    lab, ledger = any_lab, Ledger()
    await lab.start(wat.script(wat.call("work", b"1"), *([wat.call("wasman.fail", says)] if says else [])))
    async with lab.worker(ledger.activity("work"), store=Overtaken(lab)):
        found = await lab.ended()
    assert found.status is (Status.FAILED if says else Status.COMPLETED)
    record = await lab.record()
    assert record.undelivered == ((f"cancel-{record.run}", "cancel"),)


async def test_a_second_one_disturbs_nobody(lab: Lab) -> None:
    work, tidies, tidied = Work(), anyio.Event(), list[int]()
    key = Key("default", "w")

    async def tidy(call: ActivityCall) -> bytes:
        tidied.append(call.attempt)
        tidies.set()
        await anyio.sleep(0.6)  # the worker looks at its mail meanwhile
        return call.request

    await lab.start(honours())
    ledger = Ledger()
    async with lab.worker(answers("work", work), ledger.activity("before"), answers("tidy", tidy)):
        await work.began.wait()
        await lab.cancel()
        await tidies.wait()
        run = (await lab.record()).run
        body = json.dumps({"reason": "an hour later", "run": run}).encode()
        another = Message(key, "another", "cancel", seal(mail_address(key, "cancel", "another"), body))
        assert await lab.store.send(another) is Sent.ACCEPTED
        assert (await lab.ended()).status is Status.CANCELLED
    record = await lab.record()
    assert record.undelivered == (("another", "cancel"),)
    assert record.cancel is not None
    assert record.cancel.reason == "changed my mind"
    assert tidied == [1]


async def test_a_pending_one_is_undelivered_when_the_guest_ends_without_a_call(any_lab: Lab) -> None:
    lab = any_lab
    await lab.start(wat.script(wat.sleep(300_000_000)))
    async with lab.worker() as engine:
        while not any(instance._waits for instance in engine._live.values()):
            await anyio.sleep(0.005)
        await lab.cancel()
        assert await lab.result() == [0]
    record = await lab.record()
    assert [kind for _, kind in record.undelivered] == ["cancel"]
    assert record.cancel is None


async def test_a_guest_that_was_not_told_fails_by_the_same_word(lab: Lab) -> None:
    await lab.start(wat.script(wat.call("wasman.fail", FAILS)))
    async with lab.worker():
        assert (await lab.ended()).status is Status.FAILED


async def test_a_guest_that_fails_otherwise_has_failed(lab: Lab) -> None:
    work = Work()
    await lab.start(wat.script(wat.call("work"), wat.call("wasman.fail", b"something else")))
    async with lab.worker(answers("work", work)):
        await work.began.wait()
        await lab.cancel()
        assert (await lab.ended()).status is Status.FAILED


async def test_terminate_comes_first(lab: Lab) -> None:
    await lab.start(REPORTS)
    await lab.cancel()
    await lab.terminate()
    async with lab.worker():
        found = await lab.ended()
    assert found.status is Status.TERMINATED
    record = await lab.record()
    assert [kind for _, kind in record.undelivered] == ["cancel"]


async def test_an_activity_that_is_cancelled_may_tidy_up_and_cannot_answer(lab: Lab) -> None:
    tidied: list[str] = []
    began = anyio.Event()

    async def work(_: ActivityCall) -> bytes:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
                tidied.append("work")
        return b"7"

    await lab.start(REPORTS)
    ledger = Ledger()
    async with lab.worker(answers("work", work), ledger.activity("tidy")):
        await began.wait()
        await lab.cancel()
        code, _, _ = await lab.result()
    assert (code, tidied) == (-1, ["work"])


async def test_what_has_ended_cannot_be_cancelled(lab: Lab) -> None:
    await lab.start(wat.script())
    async with lab.worker():
        await lab.result()
    with pytest.raises(WorkflowClosedError, match=r"w has ended already \(completed\), so it cannot be cancelled"):
        await lab.cancel()


async def test_damaged_mail_blocks_and_is_taken_off(disk: Lab) -> None:
    await disk.start(REPORTS)
    await disk.cancel()
    disk.cell("mail").write(b"damaged")
    async with disk.worker():
        found = await disk.until(Status.BLOCKED)
    assert found.record is not None
    assert [kind for _, kind in found.record.undelivered] == ["damaged"]


async def test_compensation_goes_on_over_a_crash(lab: Lab) -> None:
    work, ledger, tidies = Work(), Ledger(), anyio.Event()
    seen: list[int] = []

    async def tidy(call: ActivityCall) -> bytes:
        seen.append(call.attempt)
        if len(seen) == 1:
            tidies.set()
            await anyio.sleep_forever()
        return ledger.note(call)

    await lab.start(honours())
    given = (answers("work", work), ledger.activity("before"), answers("tidy", tidy))
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            await work.began.wait()
            await lab.cancel()

        tasks.start_soon(ask)
        await lab.dies(*given, when=tidies)
    async with lab.worker(*given):
        assert (await lab.ended()).status is Status.CANCELLED
    assert seen == [1, 2]
    assert len(work.calls) == 1  # the call that was cancelled is not made again


def test_a_record_without_a_cancel_is_written_and_read_as_before() -> None:
    record = Record("run", Pinned("flow", "0" * 64))
    encoded = encode_record(record)
    assert "cancel" not in json.loads(encoded.partition(b"\n")[0])
    assert decode_record(encoded, "record").cancel is None


async def test_an_instance_of_an_engine_is_not_cancelled(lab: Lab) -> None:
    async with Engine.from_bytes(wat.script(reentrant=True), store=lab.store) as engine:
        await engine.execute("direct")
        with pytest.raises(InvalidArgumentError, match="direct is executed directly: cancel the task that awaits"):
            await lab.cancel("direct")
