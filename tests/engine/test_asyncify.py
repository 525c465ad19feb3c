"""Guests whose stack is unwound into memory: evicted wherever they wait, they go on there, and nothing runs twice."""

import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from tests import wat
from tests.faults.stopped_worker import noting
from tests.lab import PATIENCE, Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall
from wasman_host.engine import Engine
from wasman_host.errors import GuestLimitError, InvalidModuleError
from wasman_host.guest.asyncify import SECTION, asyncified, mark
from wasman_host.guest.binary import with_section, without_section
from wasman_host.guest.inspection import inspect
from wasman_host.guest.live import Guest
from wasman_host.guest.module import check
from wasman_host.instance import Instance
from wasman_host.machine import Machine
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.residents import Residency
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Change, Lost, Status, Step, Unread, Won

ROOT = Path(__file__).resolve().parents[2]
GUESTS = Path(__file__).parent.parent / "guests" / "asyncified"
LANGUAGES = ("c", "zig", "as")
NEVER = SnapshotPolicy(turns=1 << 30, seconds=1e9)  # kept only where it is given up
CALLS = 1000
# It names its globals, and never writes its stack.
HALF = mark(
    wat.module("""
  (memory (export "memory") 1)
  (global $state (mut i32) (i32.const 0))
  (global $data (mut i32) (i32.const 0))
  (func (export "asyncify_start_unwind") (param i32)
    (global.set $state (i32.const 1)) (global.set $data (local.get 0)))
  (func (export "run") (param i32) (result i32)
    (drop (call $host_call_api (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 1) (i32.const 8) (i32.const 8)))
    (call $host_call_api (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 1) (i32.const 8) (i32.const 8)))
  (data (i32.const 0) "note7")
"""),
    ["env.host_call_api"],
)
STARTS_OTHERWISE = """
  (memory (export "memory") 1)
  (global $state (mut i32) (i32.const 0))
  (func (export "asyncify_start_unwind") (param i32) (local i32) (global.set $state (i32.const 1)))
  (func (export "run"))
"""


def guest(language: str) -> bytes:
    return (GUESTS / f"loop_{language}.wasm").read_bytes()


@define
class Watched:
    """What guests did: operations that they asked for, answers that were repeated from the log, memories at the end."""

    asked: list[int] = field(factory=list)
    again: int = 0
    repeated: int = 0
    ends: list[tuple[bytes, Any]] = field(factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    issue, replayed, finish = Machine.issue, Machine.replayed, Instance.finish

    def issues(self: Machine, kind: str, name: str, request: str) -> int:
        again = self._asks_again
        number = issue(self, kind, name, request)
        seen.again += again
        if not again:
            seen.asked.append(number)
        return number

    def repeats(self: Machine, number: int) -> Any:
        found = replayed(self, number)
        seen.repeated += found is not None
        return found

    async def finishes(self: Instance, result: Payload) -> None:
        assert self.guest is not None
        seen.ends.append((bytes(self.guest.memory()), self.guest.globals()))
        await finish(self, result)

    monkeypatch.setattr(Machine, "issue", issues)
    monkeypatch.setattr(Machine, "replayed", repeats)
    monkeypatch.setattr(Instance, "finish", finishes)
    return seen


@contextlib.contextmanager
def seeded() -> Iterator[random.Random]:
    """A generator whose seed is printed where the test fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201
    yield random.Random(seed)


@define
class Evicting:
    """An activity that gives its request back, and evicts its instance before that now and then."""

    chance: float
    rng: random.Random
    engine: Engine | None = None
    evictions: list[int] = field(factory=list)

    async def __call__(self, call: ActivityCall) -> bytes:
        await anyio.lowlevel.checkpoint()
        if self.rng.random() < self.chance:
            assert self.engine is not None
            instance = self.engine._live[call.key]
            assert instance.evict()
            with anyio.fail_after(5):
                while instance.guest is not None:
                    await anyio.lowlevel.checkpoint()
                await instance.settled()
            self.evictions.append(call.operation)
        return call.request


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_loop_of_calls_that_is_evicted_anywhere_repeats_none(
    lab: MemoryLab, language: str, watched: Watched
) -> None:
    with seeded() as rng:
        plain = Ledger()
        async with lab.worker(plain.activity(), snapshots=NEVER):
            await lab.start(guest(language), CALLS, id="plain", entry="run")
            expected = await lab.result("plain")
        assert watched.asked == list(range(CALLS))
        watched.asked.clear()
        note = Evicting(0.2, rng)
        async with lab.worker(answers("note", note), snapshots=NEVER) as note.engine:
            await lab.start(guest(language), CALLS, id="evicted", entry="run")
            with anyio.fail_after(120):
                while (await lab.look("evicted")).status is Status.RUNNING:
                    await anyio.sleep(0.02)
            assert await lab.result("evicted") == expected
        assert len(note.evictions) > CALLS / 10
        assert watched.asked == list(range(CALLS)), "nothing was asked for twice"
        evictions = len(note.evictions)
        assert (watched.again, watched.repeated) == (evictions, evictions), "but the call that it waited in"
        assert watched.ends[0] == watched.ends[1], "memory and globals are the same to the last byte"


async def test_a_guest_is_kept_every_so_many_answers_and_a_crash_repeats_no_more(
    disk: SqliteLab, watched: Watched
) -> None:
    """Its worker dies without a word at the 500th call; the next one goes on where the guest was kept last."""
    reached = anyio.Event()
    first, second = Ledger(), Ledger()

    async def stops(call: ActivityCall) -> bytes:
        if call.operation == 500:
            reached.set()
            await anyio.sleep_forever()
        return first.note(call)

    await disk.start(guest("c"), CALLS)
    await disk.dies(answers("note", stops), when=reached)
    died_at = len(watched.asked)
    assert await disk.complete(second.activity(), cold=True) == summed(CALLS)
    kept = SnapshotPolicy().turns
    assert watched.asked[:died_at] == list(range(501))
    assert 0 < watched.repeated <= kept
    assert len(watched.asked) - CALLS <= kept + 1, "asked for again: what came behind the last snapshot"
    run = (await disk.record()).run
    assert {*first.keys, *second.keys} == {f"{run}/{n}" for n in range(CALLS)}
    assert len(first.rows) + len(second.rows) == CALLS, "no activity was called twice"


async def test_a_worker_that_is_killed_again_and_again_repeats_only_the_call_that_it_was_in(disk: SqliteLab) -> None:
    """SIGKILL, at three random moments; the ledger is a file that each of the processes writes to."""
    with seeded() as rng:
        ledger = disk.path.with_name("ledger")
        ledger.touch()
        await disk.start(guest("c"), CALLS)
        command = [sys.executable, "-m", "tests.faults.stopped_worker", str(disk.path), str(ledger), "nowhere"]
        for lines in sorted(rng.sample(range(20, CALLS - 100), 3)):
            async with await anyio.open_process(command, cwd=ROOT, env=environment()) as worker:
                with anyio.fail_after(60):
                    while ledger.read_bytes().count(b"\n") < lines:
                        await anyio.sleep(0.005)
                os.kill(worker.pid, signal.SIGKILL)
            assert worker.returncode == -signal.SIGKILL
        with anyio.fail_after(60):
            assert await disk.complete(noting(ledger)) == summed(CALLS)
    keys = [json.loads(line)[1] for line in ledger.read_text().splitlines()]
    assert len(set(keys)) == CALLS
    assert len(keys) <= CALLS + 3


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_whatever_commit_its_worker_dies_at_it_gives_the_same(
    lab: MemoryLab, watched: Watched, *, after: bool
) -> None:
    """Kept at every second answer, by commits of their own."""
    policy, calls = SnapshotPolicy(turns=2, seconds=1e9), 6
    for at in range(1, calls + 4):
        ledger = Ledger()
        watched.asked.clear()
        await lab.start(guest("as"), calls, id=f"w{at}")
        await lab.dies(ledger.activity(), at=at, after=after, snapshots=policy)
        assert await lab.complete(ledger.activity(), id=f"w{at}", snapshots=policy) == summed(calls), f"commit {at}"
        assert len(set(ledger.keys)) == calls
        assert len(ledger.rows) <= calls + 1
        assert len(watched.asked) <= calls + 3, "what came behind the last snapshot"


async def test_one_that_computes_for_long_is_kept_at_its_next_call(lab: MemoryLab) -> None:
    policy = SnapshotPolicy(turns=1 << 30, seconds=0.0)
    async with lab.worker(Ledger().activity(), snapshots=policy):
        await lab.start(guest("c"), 3)
        assert await lab.result() == summed(3)
    assert (await lab.record()).snapshot is not None


async def test_checkpoint_keeps_a_guest_of_any_language_in_the_middle_of_its_calls(
    disk: SqliteLab, watched: Watched
) -> None:
    """Five checkpoints, and a crash in the sixth call: nothing of the first five is repeated."""
    reached = anyio.Event()

    async def stops(call: ActivityCall) -> bytes:
        if call.operation == 5:
            reached.set()
            await anyio.sleep_forever()
        return call.request

    await disk.start(guest("c"), 8, entry="marked")
    await disk.dies(answers("note", stops), when=reached)
    assert watched.asked == [0, 1, 2, 3, 4, 5]
    watched.asked.clear()
    assert await disk.complete(Ledger().activity(), cold=True) == sum(range(8))
    assert (watched.asked, watched.repeated) == ([5, 6, 7], 0)


async def test_one_that_is_evicted_as_it_sleeps_wakes_in_its_sleep(disk: SqliteLab, watched: Watched) -> None:
    ledger = Ledger()
    await disk.start(guest("c"), [3, 600], entry="nap")
    async with disk.worker(ledger.activity(), residency=Residency(memory=1), snapshots=NEVER):
        found = await disk.until(Status.WAITING)
        assert found.reason.startswith("nothing to do until")
        assert await disk.result() == 3
    assert ledger.requests == [b"0", b"1", b"2"]
    assert watched.asked == list(range(6)), "three calls, three timers, none of them twice"
    assert watched.again >= 1


async def test_what_a_worker_releases_as_it_waits_is_kept(disk: SqliteLab, watched: Watched) -> None:
    reached = anyio.Event()

    async def waits(call: ActivityCall) -> bytes:
        if call.operation == 9:
            reached.set()
            await anyio.sleep_forever()
        return call.request

    await disk.start(guest("zig"), 20)
    async with disk.worker(answers("note", waits), snapshots=NEVER):
        await reached.wait()
    assert (await disk.record()).snapshot is not None
    assert await disk.complete(Ledger().activity(), cold=True) == summed(20)
    assert (watched.asked, watched.again, watched.repeated) == (list(range(20)), 1, 0)


async def test_one_whose_answer_is_durable_and_not_given_is_not_kept_as_if_it_waited(lab: MemoryLab) -> None:
    """Its worker is told to leave inside of the commit of an answer: the guest was not given it, and the log has it."""

    class Leaving:
        def __getattr__(self, name: str) -> Any:
            return getattr(lab.store, name)

        async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
            outcomes = await lab.store.commit(changes)
            answers = any(change.entries and change.key.id == "w" for change in changes)
            if answers and not told and engine._live:
                [instance] = engine._live.values()
                instance.leave()
                told.append(True)
                await anyio.lowlevel.checkpoint()
            return outcomes

    told: list[bool] = []
    ledger = Ledger()
    await lab.start(guest("c"), 4)
    engine: Engine
    async with lab.worker(ledger.activity(), store=Leaving(), snapshots=NEVER, max_instances=1) as engine:
        assert await lab.result() == summed(4)
    assert told
    assert ledger.requests == [b"0", b"1", b"2", b"3"]


async def test_an_attempt_that_fails_while_its_guest_is_evicted_is_retried(lab: MemoryLab, watched: Watched) -> None:
    attempts = []

    async def fails(call: ActivityCall) -> bytes:
        attempts.append((call.operation, call.attempt))
        if call.operation == 2 and call.attempt < 3:
            engine._live[call.key].evict()
            await anyio.sleep(0.01)
            message = "not yet"
            raise OSError(message)
        return call.request

    async with lab.worker(answers("note", fails), snapshots=NEVER) as engine:
        await lab.start(guest("as"), 5)
        assert await lab.result() == summed(5)
    assert attempts == [(0, 1), (1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1)]
    assert watched.asked == list(range(5))


async def test_it_is_told_of_a_cancel_in_the_call_that_it_is_evicted_in(lab: MemoryLab) -> None:
    """The call has failed, so the guest sums -1; it does not care and completes."""
    async with lab.worker(answers("note", waits := _Waits()), snapshots=NEVER) as engine:
        waits.engine = engine
        await lab.start(guest("c"), 2)
        await waits.evicted.wait()
        await lab.cancel()
        assert await lab.result() == -1 * 31 + 1


class _Waits:
    """The first call is evicted, and never answered."""

    engine: Engine | None = None

    def __init__(self) -> None:
        self.evicted = anyio.Event()

    async def __call__(self, call: ActivityCall) -> bytes:
        if call.operation == 0 and self.engine is not None:
            instance = self.engine._live[call.key]
            assert instance.evict()
            with anyio.fail_after(PATIENCE):
                while instance.guest is not None:
                    await anyio.lowlevel.checkpoint()
            self.evicted.set()
            await anyio.sleep_forever()
        return call.request


async def test_a_stack_that_does_not_fit_is_a_limit_that_can_be_raised(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What asyncify writes of a call is less than the call takes natively, so the limit is lowered behind its back."""
    waits = _Waits()
    async with lab.worker(answers("note", waits), snapshots=NEVER) as engine:
        waits.engine = engine
        with monkeypatch.context() as patched:
            patched.setattr(Guest, "stack", 100)
            await lab.start(guest("c"), 200, entry="nested")
            found = await lab.blocked(GuestLimitError, reason="raise the limit and unblock")
            assert "more than 100 bytes" in found.reason
        waits.engine = None
        await lab.unblock()
        assert await lab.result() == 7 + sum(range(201))


async def test_a_guest_that_asyncify_has_not_seen_whole_is_refused_as_it_is_kept(lab: MemoryLab) -> None:
    """Its section names an import that the pass was not told of: it cannot unwind there, and says so."""
    waits = _Waits()
    async with lab.worker(answers("note", waits), snapshots=NEVER) as engine:
        waits.engine = engine
        await lab.start(HALF, 1)
        found = await lab.until(Status.BLOCKED)
        assert "did not unwind its stack" in found.reason
        assert "wasman build --asyncify" in found.reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (mark(guest("c"), ["env.host_call_api"]), "has 2 sections wasman.asyncify: it was asyncified twice"),
        (with_section(without_section(guest("c"), SECTION), SECTION, b"{"), "has a damaged section wasman.asyncify"),
        (
            with_section(without_section(guest("c"), SECTION), SECTION, b'{"version": 1, "imports": 7}'),
            "has a damaged section wasman.asyncify",
        ),
        (
            with_section(without_section(guest("c"), SECTION), SECTION, b'{"version": 2, "imports": []}'),
            "was asyncified by another wasman (version 2 of its section wasman.asyncify)",
        ),
        (mark(wat.script(wat.call("note")), ["env.host_call_api"]), "was not asyncified"),
        (mark(wat.module(STARTS_OTHERWISE), ["env.host_call_api"]), "was not asyncified"),
    ],
    ids=["twice", "no JSON", "no list", "newer", "not asyncified", "another function"],
)
async def test_a_section_that_makes_no_sense_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidModuleError) as raised:
        check(data, "module m")
    assert str(raised.value).startswith("module m ")
    assert words in str(raised.value)


def test_a_module_that_has_asyncify_for_itself_is_never_steered() -> None:
    """TinyGo's scheduler unwinds goroutines by the same functions."""
    data = (GUESTS.parent / "mixed_tinygo.wasm").read_bytes()
    assert "asyncify_start_unwind" in check(data, "it").functions
    assert asyncified(data) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_inspect_tells_that_it_comes_back_in_the_middle_of_its_calls(language: str) -> None:
    comeback = inspect(guest(language), "it", Limits().guest).comeback
    assert comeback is not None
    assert comeback.how == "continuation"
    assert "env.host_call_api" in comeback.why


def environment() -> dict[str, str]:
    """For processes that work with these sources."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "host")))}


def summed(calls: int) -> int:
    total = 0
    for i in range(calls):
        total = (total * 31 + i) & 0xFFFFFFFF
    return total - (1 << 32) if total >> 31 else total
