"""What a machine does to a worker: its disk is full or read-only, its process stands still, its store is tampered with.

A clear error each, nothing lost, and everything goes on when the cause is gone.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from attrs import evolve
from isal import igzip_lib

from tests import wat
from tests.faults.stopped_worker import LEASE, noting
from tests.faults.test_every_operation import STORES
from tests.lab import Ledger, MemoryLab, SqliteLab, answers, sink, source
from wasman_host import control
from wasman_host.activity import ActivityCall
from wasman_host.engine import Engine
from wasman_host.errors import (
    CorruptSnapshotError,
    GuestLimitError,
    InvalidArgumentError,
    StoreUnavailableError,
    StreamError,
)
from wasman_host.machine import Machine
from wasman_host.oplog import Tail
from wasman_host.record import Limits, Pinned, Record, StreamSpec, encode_record
from wasman_host.seal import Address, digest_of, seal
from wasman_host.session_streams import SessionStreams
from wasman_host.store import (
    Change,
    Columns,
    Key,
    Lost,
    MemoryStore,
    SqliteStore,
    Status,
    Step,
    Store,
    Unread,
    Won,
)
from wasman_host.streams import SinkWriter, StreamTypes

ROOT = Path(__file__).resolve().parents[2]
NOISE = random.Random(5).randbytes(60_000)


# A full disk


@contextmanager
def full(disk: SqliteLab, how: str) -> Iterator[None]:
    """The store takes no more."""
    assert isinstance(disk.store, SqliteStore)
    if how == "max_page_count":
        disk.store._connection.execute("pragma max_page_count = 1")  # which means: as many as there are
        try:
            yield
        finally:
            disk.store._connection.execute("pragma max_page_count = 1000000")
        return
    log = disk.path.with_name(disk.path.name + "-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["result", "snapshot"])
@pytest.mark.parametrize("how", ["max_page_count", "RLIMIT_FSIZE"])
async def test_a_disk_that_is_full_in_the_middle_of_a_commit(
    how: str, what: str, disk: SqliteLab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit of a large result, or of a large snapshot, is repeated until there is room; nothing is done twice."""
    ledger, held, released = Ledger(), anyio.Event(), anyio.Event()
    refused = "is full" if how == "max_page_count" else "cannot be"
    tried: list[str] = []
    commit = disk.store.commit

    async def told(changes: Any) -> Any:
        try:
            return await commit(changes)
        except StoreUnavailableError as error:
            tried.append(str(error))
            raise

    monkeypatch.setattr(disk.store, "commit", told)

    async def large(call: ActivityCall) -> bytes:
        ledger.note(call)
        held.set()
        await released.wait()
        return b'"%s"' % NOISE.hex().encode() if what == "result" else b"7"

    noise = "".join(f"\\{byte:02x}" for byte in NOISE)
    module = wat.script(
        wat.call("note", b"1"),
        wat.raw("(memory.init $noise (i32.const 262144) (i32.const 0) (i32.const 60000))"),
        wat.call("large", b"2", 5),  # a result that does not fit stays with the host
        wat.checkpoint(),
        wat.call("note", b"3"),
        reentrant=True,
        pages=8,
        fields=f'(data $noise "{noise}")',
    )
    await disk.start(module)
    with anyio.fail_after(30):
        async with disk.worker(ledger.activity(), answers("large", large)):
            await held.wait()
            if what == "result":
                with full(disk, how):
                    released.set()
                    while len(tried) < 2:
                        await anyio.sleep(0.01)
                    entries = (await disk.look()).entries
            else:
                snapshots = disk.store.commit

                async def at_the_snapshot(changes: Any) -> Any:
                    if changes[0].blobs and len(tried) < 2:
                        with full(disk, how):
                            return await snapshots(changes)
                    return await snapshots(changes)

                monkeypatch.setattr(disk.store, "commit", at_the_snapshot)
                released.set()
                while len(tried) < 2:
                    await anyio.sleep(0.01)
                entries = (await disk.look()).entries
            assert entries == (2 if what == "result" else 3), "nothing of the commit is there"
            assert await disk.result() == ([1, -2, 3] if what == "result" else [1, 7, 3])
    assert all(str(disk.path) in error and refused in error for error in tried), tried
    assert "cannot be committed" in caplog.text
    assert ledger.attempts == [1, 1, 1]


async def test_a_sink_whose_disk_is_full_blocks_and_goes_on(disk: SqliteLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(NOISE * 40)
    module = wat.script(wat.call("note", b"1"), wat.copy(60_000))
    await disk.start(module, sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    ledger = Ledger()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with disk.worker(ledger.activity()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
        try:
            found = await disk.blocked(StreamError)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(tmp_path / "out") in found.reason
        assert "unblock" in found.reason
        assert not (tmp_path / "out").exists()
        await disk.unblock()
        assert await disk.result() == [1, len(NOISE) * 40]
    assert (tmp_path / "out").read_bytes() == NOISE * 40
    assert ledger.attempts == [1]


async def test_a_worker_over_a_read_only_store_waits_and_says_why(
    disk: SqliteLab, caplog: pytest.LogCaptureFixture
) -> None:
    await disk.start(wat.script(wat.call("note", b"1")))
    ledger = Ledger()
    store = SqliteStore(disk.path, read_only=True)
    await store.open()
    engine = Engine(store, {"note": ledger.activity()})
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run)
            while "cannot reach its store" not in caplog.text:
                await anyio.sleep(0.01)
            assert not engine.serving.is_set()
            assert (await control.describe(store, Key("default", "w"))).status is Status.RUNNING
            tasks.cancel_scope.cancel()
    await store.close()
    assert f"the store {disk.path} is read-only: make the file and its folder writable" in caplog.text
    assert not ledger.rows
    assert await disk.complete(ledger.activity()) == [1]


# A process that stands still

_LOCKED = {"transaction", "statement"}  # places where it holds the store's lock


@pytest.mark.once
@pytest.mark.parametrize("place", ["activity", "commit", "committed", "transaction", "statement"])
async def test_a_worker_that_was_stopped_notices_and_does_no_harm(place: str, disk: SqliteLab, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    command = [sys.executable, "-m", "tests.faults.stopped_worker", str(disk.path), str(ledger), place]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: ASYNC220  it begins at once
        command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == "serving\n"
            calls = [wat.call("gate" if n == 2 else "note", b"%d" % n) for n in range(8)]
            await disk.start(wat.script(*calls))
            stopped = os.WSTOPPED | os.WNOWAIT
            await anyio.to_thread.run_sync(lambda: os.waitid(os.P_PID, process.pid, stopped))
            done = [json.loads(line) for line in ledger.read_text().splitlines()]
            assert [request for *_, request in done] == ["0", "1"]
            with anyio.fail_after(30):
                await _while_it_stands_still(place, disk, process, ledger)
            process.stdin.close()
            code = await anyio.to_thread.run_sync(process.wait)
            told = process.stderr.read() if process.stderr is not None else ""
        finally:
            process.kill()
    assert code == 0, told
    assert "Traceback" not in told
    if place not in _LOCKED:
        assert "lost its lease" in told
    done = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [request for *_, request in done] == ["0", "1", "3", "4", "5", "6", "7"], "each is done once"
    assert len({key for _, key, _ in done}) == 7
    if place not in _LOCKED:
        assert {pid for pid, _, request in done if request > "2"} == {os.getpid()}, "the stopped one does nothing more"


async def _while_it_stands_still(place: str, disk: SqliteLab, process: "subprocess.Popen[str]", ledger: Path) -> None:
    """Another worker comes; the stopped one is continued when it has taken over, or cannot."""
    asked: list[bytes] = []

    def gate(call: ActivityCall) -> bytes:
        asked.append(call.request)
        return call.request

    if place in _LOCKED:
        # It holds the lock: nobody can take anything over, and what it has begun is still its own.
        await anyio.sleep(2 * LEASE)
        other = SqliteStore(disk.path, busy_timeout=0.1)
        await other.open()
        with pytest.raises(StoreUnavailableError, match="was locked by another process"):
            await other.beat("other", 10, {})
        await other.close()
        process.send_signal(signal.SIGCONT)
        async with disk.worker(noting(ledger), answers("gate", gate)):
            assert await disk.result() == list(range(8))
        assert not asked, "what it committed counts"
        return
    async with disk.worker(noting(ledger), answers("gate", gate)) as engine:
        assert await disk.result() == list(range(8))
        assert asked == ([] if place == "committed" else [b"2"])
        process.send_signal(signal.SIGCONT)
        store = disk.store
        while True:  # it comes back under another id
            workers = store._connection.execute("select id from worker").fetchall()  # type: ignore[attr-defined]
            others = [name for (name,) in workers if name != engine.worker]
            if others and f"-{process.pid}-" in others[0]:
                break
            await anyio.sleep(0.01)


# Two who have one instance


# Which of the two commits first, and how much the other has done by then, differs from one race to the next.
@pytest.mark.parametrize("race", range(4))
@pytest.mark.parametrize("reentrant", [False, True])
async def test_two_engines_that_were_given_one_claim(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch, race: int, *, reentrant: bool
) -> None:
    del race
    ledger, losses = Ledger(), list[Lost]()
    commit = lab.store.commit

    commits, both = 0, anyio.Event()

    async def counted(changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        nonlocal commits
        commits += 1
        if commits == 2:
            both.set()
        await both.wait()  # neither has ended all of it before the other one begins
        outcomes = list(await commit(changes))
        losses.extend(outcome for outcome in outcomes if isinstance(outcome, Lost))
        return outcomes

    steps: list[wat.Step] = []
    for n in range(12):
        steps += [wat.call("note", b"%d" % n), wat.checkpoint()]
    key = await lab.start(wat.script(*steps, reentrant=reentrant))
    monkeypatch.setattr(lab.store, "commit", counted)
    async with (
        lab.worker(ledger.activity(), queues=("none",)) as one,
        lab.worker(ledger.activity(), queues=("none",)) as two,
    ):
        [claim] = await lab.store.claim(one.worker, ["default"], 1)
        for engine in (one, two):
            assert engine._tasks is not None
            engine._begin(engine._tasks, claim)
        assert await lab.result() == list(range(12))
        while one._live or two._live:
            await anyio.sleep(0.001)
    done = dict(zip(ledger.keys, ledger.requests, strict=True))
    assert sorted(map(int, done.values())) == list(range(12)), "a key for each call, the same in both"
    assert len(ledger.rows) <= 13, "who has lost finds out at the first commit"
    assert len(losses) == 1, "and ends"
    found = await lab.look(key.id)
    assert len(await control.history(lab.store, found.stored)) == found.entries


@pytest.mark.parametrize("kind", STORES)
async def test_a_step_of_a_stale_owner_loses_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """Each store knows the instance, so that its step is written without reading it first."""
    lab = STORES[kind](tmp_path)
    await lab.open()
    one, two = lab.store, await lab.handle()
    key, columns = Key("default", "w"), Columns(Status.RUNNING, "flow", "m")
    assert await one.commit([Change(key, None, "run", "a", b"record", columns)]) == [Won(1, 0)]

    async def steps(store: Store, version: int, n: int) -> Won | Lost | Unread:
        # Beside another change, as in a group; and under a nonce of its own.
        nonce = f"{id(store)}-{version}-{n}"
        return (await store.commit([Step(key, "run", version, nonce, b"tail", [(n, b"entry %d" % n)])]))[0]

    assert isinstance(await steps(one, 1, 0), Won)
    assert isinstance(await steps(two, 2, 1), Won)
    assert isinstance(await steps(two, 3, 2), Won)
    for version in (1, 2, 3):
        assert await steps(one, version, 3) == Lost(("run", 4)), version
    assert await two.read("run") == [(n, b"entry %d" % n) for n in range(3)]
    assert isinstance(await steps(one, 4, 3), Won)
    await lab.close()


@pytest.mark.parametrize("kind", STORES)
async def test_a_step_forgets_the_takeovers_before_it(kind: str, tmp_path: Path) -> None:
    """They stand for attempts of the operation that the step answers, and for none of the next one."""
    lab = STORES[kind](tmp_path)
    await lab.open()
    key = Key("default", "w")
    await lab.store.commit(
        [Change(key, None, "run", "a", b"record", Columns(Status.RUNNING, "flow", "m", owner="dead"))]
    )
    assert await lab.store.beat("alive", 60, {}) is not None
    [claim] = await lab.store.claim("alive", ["default"], 1)
    assert (claim.takeover, claim.stored.columns.takeovers) == (True, 1)
    step = Step(key, "run", claim.stored.version, "b", b"tail", [(0, b"entry")])
    assert isinstance((await lab.store.commit([step]))[0], Won)
    stored = await (await lab.handle()).load(key)
    assert stored is not None
    assert (stored.columns.takeovers, stored.columns.owner) == (0, "alive")
    await lab.close()


class _Interrupted:
    """A sink in whose sync the run is interrupted; its digest feels it first."""

    finish = SinkWriter.finish

    def __init__(self, scope: anyio.CancelScope) -> None:
        self._scope = scope

    async def digest(self, length: int) -> str:
        await anyio.sleep_forever()
        return f"{length}"

    async def sync(self, _: int) -> dict[str, str]:
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        return {}


async def test_a_run_that_is_interrupted_as_it_finishes_is_not_blocked() -> None:
    """Such as by a worker that leaves: it was taken for an internal error of wasman."""
    pinned = Pinned("flow", "m", sinks={"out": StreamSpec("file", {})})
    machine = Machine("default", "w", Record("run", pinned), Tail())
    streams = SessionStreams(StreamTypes(), lambda: None)
    with anyio.CancelScope() as scope:
        streams._writers["out"] = cast("SinkWriter", _Interrupted(scope))
        await streams.finished(machine)
    assert scope.cancelled_caught


# A store that was tampered with


async def _stand(lab: MemoryLab, **numbers: int) -> None:
    """Instances with two snapshots each, whose worker has died; hundreds of one number are of one module."""
    for id_, number in numbers.items():
        module = wat.script(
            wat.call("wasman.input"),
            wat.call("note", b"1"),
            wat.checkpoint(),
            wat.call("note", b"2"),
            wat.checkpoint(),
            wat.call("gate", b"3"),
            reentrant=True,
        )
        await lab.start(wat.stated(module, f"number {number // 100}"), number, id=id_)
    reached, waiting = anyio.Event(), set()

    async def gate(call: ActivityCall) -> bytes:
        waiting.add(call.key)
        if len(waiting) == len(numbers):
            reached.set()
        await anyio.sleep_forever()
        return b""

    await lab.dies(Ledger().activity(), answers("gate", gate), when=reached)


def _blobs(lab: MemoryLab, id_: str) -> dict[str, bytes]:
    """The snapshots of an instance, by name, as its store has them."""
    return dict(_held(lab, id_))


def _held(lab: MemoryLab, id_: str) -> dict[str, bytes]:
    assert isinstance(lab.store, MemoryStore)
    return lab.store._blobs[lab.stored(id_).run]


@pytest.mark.parametrize("which", ["of another module", "of another instance", "of its own past", "of nobody"])
async def test_a_snapshot_that_is_not_the_instances_own(lab: MemoryLab, which: str) -> None:
    await _stand(lab, w=100, same=110, other=200)
    own = _blobs(lab, "w")
    newest, oldest = max(own), min(own)
    wrong = {
        "of another module": lambda: _blobs(lab, "other")[newest],
        "of another instance": lambda: _blobs(lab, "same")[newest],
        "of its own past": lambda: own[oldest],
        "of nobody": lambda: b"\x1f\x8b" + bytes(100),
    }[which]()
    blobs = _held(lab, "w")
    blobs[newest] = wrong
    async with lab.worker(Ledger().activity(), Ledger().activity("gate")):
        found = await lab.blocked(CorruptSnapshotError)
        assert newest in found.reason
        assert "of 'w'" in found.reason
        assert "restore it from a backup, then unblock" in found.reason
        assert await lab.result("same") == [110, 1, 2, 3], "the neighbours go on"
        assert await lab.result("other") == [200, 1, 2, 3]
        blobs[newest] = own[newest]
        await lab.unblock()
        assert await lab.result() == [100, 1, 2, 3]


@pytest.mark.parametrize("honest", [True, False], ids=["honest", "lying"])
async def test_a_zip_bomb_as_a_snapshot_is_not_inflated(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch, *, honest: bool
) -> None:
    """The record names it as its own, so no digest gives it away."""
    await _stand(lab, w=100)
    before = lab.stored()
    record = await lab.record()
    assert record.snapshot is not None
    name = record.snapshot.deltas[-1][0]
    blobs = _held(lab, "w")
    right = blobs[name]
    place = Address("default", "w", record.run, "snapshot", name)
    bomb = seal(place, bytes(400 * 1024 * 1024))
    assert len(bomb) < 4_000_000
    if not honest:
        bomb = bomb[:-4] + (1000).to_bytes(4, "little")
    blobs[name] = bomb
    deltas = (*record.snapshot.deltas[:-1], (name, digest_of(bomb).hex()))
    forged = evolve(record, snapshot=evolve(record.snapshot, deltas=deltas))
    lab.rewrite(record=seal(Address("default", "w", record.run, "record"), encode_record(forged)))
    asked: list[int] = []
    decompressor = igzip_lib.IgzipDecompressor

    class Counting:
        def __init__(self, **options: Any) -> None:
            self._inner = decompressor(**options)

        def decompress(self, data: bytes, most: int) -> bytes:
            asked.append(most)
            return self._inner.decompress(data, most)

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._inner, attribute)

    monkeypatch.setattr("wasman_host.seal.igzip_lib.IgzipDecompressor", Counting)
    async with lab.worker(Ledger().activity(), Ledger().activity("gate")):
        found = await lab.blocked(GuestLimitError if honest else CorruptSnapshotError)
        told = "holds 419,430,400 bytes, and no more than 285,212,672 fit" if honest else "another length than it says"
        assert told in found.reason
        assert f"snapshot {name} of run {record.run} of 'w'" in found.reason
        assert max(asked, default=0) <= 100_000, "it was inflated"
        blobs[name] = right
        lab.rewrite(record=before.record)
        await lab.unblock()
        assert await lab.result() == [100, 1, 2, 3]


# Limits that are changed at the wrong time


async def test_limits_of_a_running_instance_are_not_changed(lab: MemoryLab) -> None:
    reached, opened = anyio.Event(), anyio.Event()

    async def gate(call: ActivityCall) -> bytes:
        reached.set()
        await opened.wait()
        return call.request

    await lab.start(wat.script(wat.call("gate", b"1"), wat.call("note", b"2")))
    ledger = Ledger()
    async with lab.worker(answers("gate", gate), ledger.activity()):
        await reached.wait()
        with pytest.raises(InvalidArgumentError, match="w is running, not blocked"):
            await lab.unblock(limits=Limits(memory=65536))
        opened.set()
        assert await lab.result() == [1, 2]
    assert (await lab.record()).pinned.limits == Limits()
