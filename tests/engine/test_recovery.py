"""Workers die at every commit, before and after it is durable; the run ends as if nothing had been."""

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from tests import wat
from tests.lab import COMPILED, Lab, Ledger, MemoryLab, SqliteLab, answers, sink, source
from wasman_host.activity import ActivityCall, Retry
from wasman_host.control import Description
from wasman_host.errors import (
    ApplicationError,
    BlockedError,
    NondeterminismError,
    SourceChangedError,
    StreamError,
    WorkflowClosedError,
)
from wasman_host.guest.module import compile_module
from wasman_host.oplog import EMPTY_CHAIN, open_entries
from wasman_host.record import Limits
from wasman_host.seal import Address, unseal
from wasman_host.snapshot import decode_delta
from wasman_host.store import Change, Status
from wasman_host.streams import FileSink
from wasman_sdk.testing import FaultyStore

GUESTS = Path(__file__).parents[1] / "guests"


def parts(folder: Path) -> Sequence[Path]:
    """What runs have written there and not published."""
    return list(folder.glob("*.part"))


def steps() -> Sequence[wat.Step]:
    """Something of everything: calls, a result that is taken late, a timer, random bytes, a checkpoint, streams."""
    random_get = wat.raw(
        f"(drop (call $wasi_random_get (i32.const {wat.SCRATCH}) (i32.const 8)))"
        f"(call $number (i64.load32_u (i32.const {wat.SCRATCH}))) (call $comma)"
    )

    def declare(program: wat.Program) -> str:
        program.import_wasi("random_get", "ww")
        return ""

    return [
        declare,
        wat.call("note", b"1"),
        random_get,
        wat.call("note", b'"large"', 2),
        wat.checkpoint(),
        wat.sleep(1_000_000),
        wat.call("note", b'"large"'),
        wat.copy(700),
        wat.time(),
        wat.checkpoint(),
        random_get,
        wat.call("note", b"2"),
        wat.time(),
    ]


@pytest.mark.parametrize("reentrant", [False, True], ids=["replayed", "re-entrant"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_worker_may_die_at_any_commit(lab: MemoryLab, tmp_path: Path, *, reentrant: bool, after: bool) -> None:
    data = random.Random(1).randbytes(5000)
    (tmp_path / "in").write_bytes(data)
    module = wat.script(*steps(), reentrant=reentrant)
    sources = source(tmp_path / "in")
    counted = FaultyStore(lab.store)
    await lab.start(module, id="counted", sinks=sink(tmp_path / "counted"), sources=sources)
    await lab.complete(Ledger().activity(), id="counted", store=counted)
    assert counted.asked("commit") == (
        8 if reentrant else 6
    )  # three calls, the timer, two checkpoints, publishing, completed
    for at in range(1, counted.asked("commit") + 1):
        ledger, out, name = Ledger(), tmp_path / f"out{at}", f"w{at}"
        await lab.start(module, id=name, sinks=sink(out), sources=sources)
        await lab.dies(ledger.activity(), at=at, after=after)
        result = await lab.complete(ledger.activity(), id=name)
        one, first, late, slept, large, copied, earlier, second, two, later = result
        assert (one, late, slept, large, copied, two) == (1, -2, 0, "large", len(data), 2)
        assert first != second
        assert earlier < later
        assert out.read_bytes() == data
        assert not parts(tmp_path)
        assert list(dict.fromkeys(ledger.requests)) == [b"1", b'"large"', b"2"]
        assert len(set(ledger.keys)) == 3
        assert len(ledger.rows) - 3 <= (not after), "at most the call whose answer was lost is repeated"


@pytest.mark.parametrize(
    ("between", "commits"),
    [
        (wat.raw("(i32.store8 (i32.const 500) (i32.const 7))"), 3),
        (wat.raw("(drop (memory.grow (i32.const 1)))"), 3),
        (wat.raw("(global.set $got (i32.const 7))"), 3),
        (wat.raw("(drop (call $stream_data (i32.const 0) (i32.const 500) (i32.const 1)))"), 3),  # it has failed now
        (wat.raw("(global.set $got (i32.const 0))"), 2),
    ],
    ids=["memory", "growth", "global", "host", "nothing"],
)
async def test_a_checkpoint_is_a_commit_where_anything_has_changed(
    lab: MemoryLab, between: wat.Step, commits: int
) -> None:
    def step(program: wat.Program) -> str:
        return f"(call $checkpoint) {between(program)} (call $checkpoint)"

    counted = FaultyStore(lab.store)
    await lab.start(wat.script(step, reentrant=True))
    await lab.complete(store=counted)
    assert counted.asked("commit") == commits


async def test_a_killed_pair_of_workers_over_one_file(disk: SqliteLab) -> None:
    ledger = Ledger()
    await disk.start(wat.script(wat.call("note", b"1"), wat.call("note", b"2")))
    await disk.dies(ledger.activity(), at=1)
    await disk.dies(ledger.activity(), at=2, after=True)
    assert await disk.complete(ledger.activity()) == [1, 2]
    assert ledger.attempts == [1, 2, 1]
    assert len(set(ledger.keys)) == 2


# Attempts


async def test_a_call_that_kills_its_workers_runs_out_of_attempts(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("kill"), wat.call("wasman.error")))
    attempts: list[int] = []
    retry = Retry(initial_interval=0.0, maximum_attempts=3)
    for _ in range(3):
        await _killed_in(lab, "kill", attempts, retry)
    code, error = await lab.complete(answers("kill", lambda _: b"", retry=retry))
    assert attempts == [1, 2, 3]
    assert code == -1
    assert (error["type"], error["activity"], error["attempt"]) == ("WorkerDied", "kill", 3)
    assert error["message"] == "activity 'kill' began 3 times and no worker survived to tell"


@pytest.mark.parametrize("reentrant", [False, True], ids=["replayed", "re-entrant"])
async def test_attempts_are_counted_over_checkpoints_and_orderly_departures(lab: MemoryLab, *, reentrant: bool) -> None:
    await lab.start(_checkpoint_first(reentrant=reentrant))
    attempts: list[int] = []
    retry = Retry(initial_interval=0.0, maximum_attempts=4)
    await _killed_in(lab, "kill", attempts, retry)
    await _killed_in(lab, "kill", attempts, retry)
    reached = anyio.Event()

    async def wait(call: ActivityCall) -> bytes:
        attempts.append(call.attempt)
        reached.set()
        await anyio.sleep_forever()
        return b""

    async with lab.worker(answers("kill", wait, retry=retry)):
        await reached.wait()  # and leaves in order: that attempt did not fail
    await _killed_in(lab, "kill", attempts, retry)
    assert attempts == [1, 2, 3, 3]
    assert await lab.complete(answers("kill", lambda call: b"%d" % call.attempt, retry=retry)) == [4]


def _checkpoint_first(*, reentrant: bool) -> bytes:
    """A guest that asks for a checkpoint whenever it is entered, and then calls `kill`."""
    mark = '(func (export "wasman_reentrant"))' if reentrant else ""
    return wat.module(f"""
      (memory (export "memory") 1)
      (data (i32.const 0) "killwasman.result[?]")
      {mark}
      (func (export "run")
        (call $checkpoint)
        (drop (call $host_call_api (i32.const 0) (i32.const 4) (i32.const 0)
          (i32.const 0) (i32.const 18) (i32.const 1)))
        (drop (call $host_call_api (i32.const 4) (i32.const 13) (i32.const 17)
          (i32.const 3) (i32.const 0) (i32.const 0))))
    """)


async def _killed_in(lab: Lab, name: str, attempts: list[int], retry: Retry) -> None:
    reached = anyio.Event()

    async def kill(call: ActivityCall) -> bytes:
        attempts.append(call.attempt)
        reached.set()
        await anyio.sleep_forever()
        return b""

    await lab.dies(answers(name, kill, retry=retry), when=reached)


async def test_failures_backoffs_and_takeovers_add_up(lab: MemoryLab) -> None:
    attempts: list[int] = []
    retry = Retry(initial_interval=0.1, backoff_coefficient=1.0, maximum_attempts=4)

    def fail(call: ActivityCall) -> bytes:
        attempts.append(call.attempt)
        message = f"try {call.attempt}"
        raise ValueError(message)

    await lab.start(wat.script(wat.call("flaky"), wat.call("wasman.error")))
    # The worker dies in the backoff after its first failure: no attempt died with it.
    await lab.dies(answers("flaky", fail, retry=retry), at=1, after=True)
    record = await lab.record()
    [pending] = record.open
    assert (pending.attempts, str(pending.failure)) == (1, "ValueError: try 1 (activity 'flaky', attempt 1)")
    assert pending.retry_at is not None
    await _killed_in(lab, "flaky", attempts, retry)  # in attempt 2
    code, error = await lab.complete(answers("flaky", fail, retry=retry))
    assert attempts == [1, 2, 3, 4]
    assert (code, error["type"], error["message"], error["attempt"]) == (-1, "ValueError", "try 4", 4)


async def test_a_backoff_is_kept_by_whoever_takes_over(lab: MemoryLab) -> None:
    began: list[float] = []
    retry = Retry(initial_interval=0.4, maximum_attempts=2)

    def fail(_: ActivityCall) -> bytes:
        began.append(anyio.current_time())
        raise ValueError

    await lab.start(wat.script(wat.call("flaky")))
    await lab.dies(answers("flaky", fail, retry=retry), at=1, after=True)
    assert await lab.complete(answers("flaky", fail, retry=retry)) == [-1]
    assert 0.38 <= began[1] - began[0] < 2


async def test_what_cannot_get_better_is_not_tried_again(lab: MemoryLab) -> None:
    tries: list[str] = []

    def fail(call: ActivityCall) -> bytes:
        tries.append(call.name)
        if call.name == "hopeless":
            raise ApplicationError("no card", type="CardDeclined", details={"code": 7}, non_retryable=True)
        raise KeyError("gone")

    unlisted = Retry(initial_interval=0.0, non_retryable=frozenset({"KeyError"}))
    told = wat.call("wasman.error")
    await lab.start(wat.script(wat.call("hopeless"), told, wat.call("listed"), told))
    first, error, second, listed = await lab.complete(
        answers("hopeless", fail), answers("listed", fail, retry=unlisted)
    )
    assert (first, second, tries) == (-1, -1, ["hopeless", "listed"])
    assert error == {
        "type": "CardDeclined",
        "message": "no card",
        "details": {"code": 7},
        "activity": "hopeless",
        "attempt": 1,
        "non_retryable": True,
    }
    assert (listed["type"], listed["non_retryable"]) == ("KeyError", True)


async def test_an_attempt_that_takes_too_long_is_cut_and_tried_again(lab: MemoryLab) -> None:
    async def slow(call: ActivityCall) -> bytes:
        if call.attempt == 1:
            await anyio.sleep_forever()
        return b"%d" % call.attempt

    await lab.start(wat.script(wat.call("slow")))
    assert await lab.complete(answers("slow", slow, timeout=0.05)) == [2]


async def test_an_unregistered_activity_waits_and_costs_no_attempt(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasman_host.calls._UNREGISTERED", 0.05)
    await lab.start(wat.script(wat.call("late")))
    for _ in range(3):
        async with lab.worker():
            await lab.until(Status.WAITING)
            await anyio.sleep(0.1)
    assert (
        await lab.look()
    ).reason == "activity 'late' is registered with no worker that has seen it; start one that has it"
    assert await lab.complete(answers("late", lambda call: b"%d" % call.attempt)) == [1]
    assert (await lab.look()).reason == ""


# Replay checks


async def test_the_first_operation_that_differs_is_named_both_ways(lab: MemoryLab) -> None:
    # The memory is that of the image, which the module pins: "2w" is the request and the letter behind it.
    module, changed = (wat.script(wat.call("note", b"1"), wat.call("note", what)) for what in (b"2", b"2w"))
    ledger = Ledger()
    await lab.start(module)
    await lab.dies(ledger.activity(), at=2, after=True)
    found = await _with_another_module(lab, module, changed, ledger)
    two, other = (hashlib.sha256(request).hexdigest()[:12] for request in (b"2", b"2w"))
    assert f"operation 1 of run {found.stored.run} of 'w' was call 'note' with request {two}" in found.reason
    assert f"and the replay asks for call 'note' with request {other}" in found.reason
    assert "Its data is untouched; mend the cause and unblock, or terminate" in found.reason
    assert len(ledger.rows) == 2
    await lab.unblock()
    assert await lab.complete(ledger.activity()) == [1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        wat.script(wat.call("note", b"1")),
        wat.script(wat.call("note", b"1"), wat.raw("(unreachable)")),
        wat.script(wat.call("note", b"1"), wat.call("wasman.fail", b"x")),
        wat.script(wat.call("note", b"1"), wat.sleep(1000), wat.call("note", b"2")),
    ],
    ids=["returns", "traps", "fails", "sleeps"],
)
async def test_a_replay_that_ends_or_asks_otherwise_is_blocked(changed: bytes, lab: MemoryLab) -> None:
    module, ledger = wat.script(wat.call("note", b"1"), wat.call("note", b"2"), wat.call("note", b"3")), Ledger()
    await lab.start(module)
    await lab.dies(ledger.activity(), at=2, after=True)
    await _with_another_module(lab, module, changed, ledger)
    await lab.unblock()
    assert await lab.complete(ledger.activity()) == [1, 2, 3]


async def _with_another_module(lab: MemoryLab, module: bytes, changed: bytes, ledger: Ledger) -> Description:
    """What becomes of the run where its module does something else than it did."""
    digest = hashlib.sha256(module).hexdigest()
    other = evolve(compile_module(changed, "another"), digest=digest)
    right = COMPILED[digest]
    COMPILED[digest] = other
    try:
        async with lab.worker(ledger.activity()):
            return await lab.blocked(NondeterminismError)
    finally:
        COMPILED[digest] = right


# Streams and sinks


def _copying() -> bytes:
    """A re-entrant guest that copies a part, waits in `gate`, and copies the rest."""
    part = wat.raw(
        f"(global.set $got (call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const 3000)))"
        f"(drop (call $stream_data (i32.const 1) (i32.const {wat.BUFFER}) (global.get $got)))"
    )
    return wat.script(part, wat.checkpoint(), wat.call("gate", b"0"), wat.copy(), reentrant=True)


async def _dies_in_gate(lab: Lab) -> None:
    await _killed_in(lab, "gate", [], Retry())


async def test_a_source_that_changed_blocks_until_it_is_put_back(lab: MemoryLab, tmp_path: Path) -> None:
    path, out = tmp_path / "in", tmp_path / "out"
    data = random.Random(2).randbytes(10_000)
    path.write_bytes(data)
    await lab.start(_copying(), sources=source(path), sinks=sink(out))
    await _dies_in_gate(lab)
    status = path.stat()
    path.write_bytes(data[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    async with lab.worker(Ledger().activity("gate")):
        found = await lab.blocked(SourceChangedError, reason="has changed since the run started")
        assert str(path) in found.reason
        path.unlink()
        await lab.unblock()
        await lab.blocked(StreamError, reason="cannot be opened (No such file or directory); put it back, then unblock")
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        await lab.unblock()
        assert await lab.result() == [0, 7000]
    assert out.read_bytes() == data


async def test_a_part_that_lost_its_bytes_blocks_until_it_is_put_back(lab: MemoryLab, tmp_path: Path) -> None:
    data = bytes(range(250)) * 40
    (tmp_path / "in").write_bytes(data)
    await lab.start(_copying(), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    await _dies_in_gate(lab)
    [part] = parts(tmp_path)
    assert part.read_bytes() == data[:3000]
    part.write_bytes(data[:2999])
    async with lab.worker(Ledger().activity("gate")):
        await lab.blocked(
            StreamError, reason="holds 2999 of the 3000 bytes that were written; put it back, then unblock"
        )
        part.unlink()
        await lab.unblock()
        await lab.blocked(StreamError, reason="holds 0 of the 3000 bytes")
        assert not part.exists()
        part.write_bytes(data[:3000] + b"what a stale owner has written is written again")
        await lab.unblock()
        assert await lab.result() == [0, 7000]
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_publishing_twice_is_publishing_once(
    moment: str, lab: MemoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"data")
    (tmp_path / "out").write_bytes(b"what was there before")
    reached, publish = anyio.Event(), FileSink.publish

    async def interrupted(self: FileSink, length: int, digest: str, token: Mapping[str, object]) -> None:
        if moment == "after":
            await publish(self, length, digest, token)
        reached.set()
        await anyio.sleep_forever()

    await lab.start(wat.script(wat.copy()), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(FileSink, "publish", interrupted)
        await lab.dies(when=reached)
    found = await lab.look()
    assert found.status is Status.PUBLISHING
    assert (tmp_path / "out").read_bytes() == (b"data" if moment == "after" else b"what was there before")
    assert await lab.complete() == [4]
    assert not parts(tmp_path)
    assert (tmp_path / "out").read_bytes() == b"data"


async def test_what_cannot_be_published_blocks_and_goes_on(lab: MemoryLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    (tmp_path / "out").mkdir()
    await lab.start(wat.script(wat.copy()), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    async with lab.worker():
        found = await lab.blocked(StreamError, reason="cannot be published")
        assert str(tmp_path / "out") in found.reason
        (tmp_path / "out").rmdir()
        await lab.unblock()
        assert await lab.result() == [4]
    assert (tmp_path / "out").read_bytes() == b"data"


async def test_a_run_that_fails_publishes_nothing_and_leaves_no_part(lab: MemoryLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    module = wat.script(wat.copy(), wat.raw("(unreachable)"))
    await lab.start(module, sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    async with lab.worker():
        await lab.until(Status.FAILED)
    assert not parts(tmp_path)
    assert not (tmp_path / "out").exists()


# Terminating


async def test_terminate_ends_a_run_wherever_it_is(lab: MemoryLab, tmp_path: Path) -> None:
    reached = anyio.Event()

    async def wait(_: ActivityCall) -> bytes:
        reached.set()
        await anyio.sleep_forever()
        return b""

    loops = wat.script(wat.raw("(loop $ever (br $ever))"))
    await lab.start(wat.script(wat.call("wait")), id="in an activity", sinks=sink(tmp_path / "out"))
    await lab.start(wat.script(wat.sleep(3600 * 10**9)), id="asleep")
    await lab.start(loops, id="busy")
    await lab.start(wat.script(wat.call("missing")), id="waiting")
    await lab.start(loops, id="blocked", limits=Limits(turn_seconds=0.01))
    await lab.start(wat.script(), id="unclaimed", queue="elsewhere")
    names = ["in an activity", "asleep", "busy", "waiting", "blocked"]
    async with lab.worker(answers("wait", wait)):
        await reached.wait()
        await lab.until(Status.WAITING, id="waiting")
        await lab.until(Status.BLOCKED, id="blocked")
        for name in [*names, "unclaimed"]:
            await lab.terminate(name, f"enough of {name}")
        for name in names:
            found = await lab.until(Status.TERMINATED, id=name)
            assert found.record is not None
            assert str(found.record.failure) == f"terminated: enough of {name}"
    assert (await lab.look("unclaimed")).status is Status.RUNNING
    async with lab.worker(queues=["elsewhere"]):
        await lab.until(Status.TERMINATED, id="unclaimed")
    assert not parts(tmp_path)
    assert not (tmp_path / "out").exists()


async def test_terminating_twice_ends_a_run_once(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("missing")))
    await lab.terminate(reason="first")
    await lab.terminate(reason="second")
    async with lab.worker():
        found = await lab.until(Status.TERMINATED)
    assert found.record is not None
    assert str(found.record.failure) == "terminated: first"
    assert [kind for _, kind in found.record.undelivered] == ["terminate"]
    with pytest.raises(WorkflowClosedError, match=r"w has ended already \(terminated\), so it cannot be terminated"):
        await lab.terminate()
    with pytest.raises(WorkflowClosedError, match="so there is nothing to unblock"):
        await lab.unblock()


async def test_mail_that_comes_while_a_run_closes_is_listed(lab: MemoryLab) -> None:
    commit = lab.store.commit

    class Late:
        """Terminate between the guest's return and the commit that closes the run."""

        def __getattr__(self, name: str) -> object:
            return getattr(lab.store, name)

        async def commit(self, changes: Sequence[Change]) -> object:
            [change] = changes
            if change.columns is not None and change.columns.status is Status.COMPLETED and not sent:
                sent.append(True)
                await lab.terminate()
            return await commit(changes)

    sent: list[bool] = []
    await lab.start(wat.script(wat.call("note", b"1")))
    assert await lab.complete(Ledger().activity(), store=Late()) == [1]
    record = await lab.record()
    assert [kind for _, kind in record.undelivered] == ["terminate"]
    assert (await lab.look()).stored.mail == 0


async def test_a_release_in_order_is_no_takeover(lab: MemoryLab) -> None:
    reached = anyio.Event()
    attempts: list[int] = []

    async def wait(call: ActivityCall) -> bytes:
        attempts.append(call.attempt)
        if len(attempts) == 1:
            reached.set()
            await anyio.sleep_forever()
        return b"1"

    await lab.start(wat.script(wat.call("wait")))
    async with lab.worker(answers("wait", wait)):
        await reached.wait()
    stored = (await lab.look()).stored
    assert (stored.columns.owner, stored.columns.takeovers) == (None, 0)
    assert await lab.complete(answers("wait", wait)) == [1]
    assert attempts == [1, 1]


# Large payloads


async def test_the_same_large_bytes_may_come_again_and_again(disk: SqliteLab) -> None:
    large = json.dumps("x" * 100_000).encode()
    await disk.start(
        wat.script(*(wat.call("large", b"%d" % n, 10) for n in range(3)), wat.call("note", b"1")),
        json.loads(large),
        session=large,
    )
    ledger = Ledger()
    await disk.dies(ledger.activity(), answers("large", lambda _: large), at=3, after=True)
    assert await disk.complete(ledger.activity(), answers("large", lambda _: large)) == [-2, -2, -2, 1]


async def test_an_internal_error_blocks_and_loses_nothing(lab: MemoryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.start(wat.script(wat.call("note", b"1")))
    ledger = Ledger()
    async with lab.worker(ledger.activity()):
        with monkeypatch.context() as patch:
            patch.setattr("wasman_host.calls.respond", lambda *_: 1 / 0)
            found = await lab.blocked(BlockedError)
            assert "an internal error of wasman: ZeroDivisionError" in found.reason
        await lab.unblock()
        assert await lab.result() == [1]
    assert len(ledger.rows) == 1


async def test_memory_that_has_grown_comes_back_and_deltas_are_folded(lab: MemoryLab) -> None:
    grow = "(drop (memory.grow (i32.const 1)))"
    mark = "(i32.store8 (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1)) (memory.size))"
    steps: list[wat.Step] = []
    for _ in range(18):
        steps += [wat.raw(f"{grow} {mark}"), wat.checkpoint()]
    tell = wat.value("(i32.load8_u (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1)))")
    first = wat.value("(i32.load8_u (i32.const 327679))")
    await lab.start(wat.script(*steps, wat.call("gate", b"0"), tell, first, reentrant=True))
    await _dies_in_gate(lab)
    record = await lab.record()
    assert record.snapshot is not None
    name, _ = record.snapshot.deltas[0]
    sealed = await lab.store.blob(record.run, name)
    full = decode_delta(unseal(Address("default", "w", record.run, "snapshot", name), sealed), name)
    assert (len(record.snapshot.deltas), full.parent, full.size) == (2, record.image, (4 + 17) * 65536)
    assert await lab.complete(Ledger().activity("gate")) == [0, 22, 5]


@pytest.mark.parametrize("name", ["gcchurn.wasm"])
async def test_a_tinygo_guest_that_is_killed_all_the_time_ends_as_if_it_was_not(name: str, lab: MemoryLab) -> None:
    module = (GUESTS / name).read_bytes()
    await lab.start(module, {"steps": 12}, id="calm")
    calm = Ledger()
    expected = await lab.complete(calm.activity("echo"), id="calm")
    await lab.start(module, {"steps": 12})
    ledger = Ledger()
    for at in (3, 2, 5, 1, 6, 4):
        await lab.dies(ledger.activity("echo"), at=at)
    assert await lab.complete(ledger.activity("echo")) == expected
    assert list(dict.fromkeys(ledger.requests)) == list(dict.fromkeys(calm.requests))
    record = await lab.record()
    rows = await lab.store.read(record.run, 0, 2)
    assert open_entries("default", "w", record.run, rows, EMPTY_CHAIN)[1].issued[0].name == "echo"


@pytest.mark.parametrize("name", ["mixed_tinygo.wasm"])
async def test_a_go_command_with_goroutines_is_replayed_alike(name: str, lab: MemoryLab) -> None:
    module = (GUESTS / name).read_bytes()
    await lab.start(module)
    ledger = Ledger()
    for at in (4, 9, 15):
        await lab.dies(ledger.activity("echo"), at=at)
    result = await lab.complete(ledger.activity("echo"))
    assert (result["rounds"], result["mismatches"]) == (12, 0)
    assert len(set(ledger.keys)) == len(dict.fromkeys(ledger.requests)) == 12
