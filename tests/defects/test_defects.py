"""The defects of the original, R1 to R13; tools/run_mutants.py brings each back, and sees its test fail."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import anyio
import pytest

from tests import wat
from tests.lab import DirectoryLab, Lab, Ledger, MemoryLab, SqliteLab, answers, sink, source
from wasman_host import starting
from wasman_host.activity import ActivityCall
from wasman_host.errors import CorruptSnapshotError, GuestTimeoutError, WorkflowAlreadyExistsError
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.seal import Address, unseal
from wasman_host.snapshot import decode_delta
from wasman_host.starting import WorkflowIDReusePolicy
from wasman_host.store import Change, Columns, Key, Status, Store, Won
from wasman_host.streams import FileSource


def notes(count: int, every: int = 1) -> Sequence[wat.Step]:
    """Calls of `note`, with a checkpoint behind each `every`-th."""
    steps: list[wat.Step] = []
    for n in range(count):
        steps.append(wat.call("note", b"%d" % n))
        if n % every == every - 1:
            steps.append(wat.checkpoint())
    return steps


async def test_r01_a_resumed_instance_answers_each_call_with_its_own_result(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(wat.script(*notes(4), *(wat.call("note", b"%d" % n) for n in range(4, 8)), reentrant=True))
    await lab.dies(ledger.activity(), at=11)  # 4 calls with 4 checkpoints, then two calls, then in the third
    assert await lab.complete(ledger.activity()) == list(range(8))
    assert [ledger.keys.count(key) for key in dict.fromkeys(ledger.keys)] == [1, 1, 1, 1, 1, 1, 2, 1]


async def test_r01_a_result_that_was_too_large_waits_for_its_own_call(lab: MemoryLab) -> None:
    steps = (
        wat.call("note", b'"of the first"', 3),
        wat.checkpoint(),
        wat.call("note", b'"of the second"'),
        wat.call("note", b'"of the first"'),
    )
    ledger = Ledger()
    await lab.start(wat.script(*steps, reentrant=True))
    await lab.dies(ledger.activity(), at=3)
    assert await lab.complete(ledger.activity()) == [-2, "of the second", "of the first"]
    assert ledger.requests.count(b'"of the first"') == 1


async def test_r02_no_stale_delta_lies_over_a_newer_full_snapshot(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(wat.script(*notes(20), wat.call("gate"), reentrant=True))
    gate = anyio.Event()
    await lab.dies(ledger.activity(), answers("gate", lambda _: _stop(gate)), when=gate)
    snapshot = (await lab.record()).snapshot
    assert snapshot is not None
    assert len(snapshot.deltas) == 4  # folded once, after 16
    assert await lab.complete(ledger.activity(), ledger.activity("gate")) == [*range(20), None]
    assert len(ledger.rows) == 21


async def test_r03_the_log_is_never_ahead_of_the_memory_it_belongs_to(lab: MemoryLab) -> None:
    module = wat.script(*notes(4, every=2), reentrant=True)
    for at in range(1, 8):
        for after in (False, True):
            ledger, name = Ledger(), f"{at}-{after}"
            await lab.start(module, id=name)
            await lab.dies(ledger.activity(), at=at, after=after)
            assert await lab.complete(ledger.activity(), id=name) == [0, 1, 2, 3]
            done = dict(zip(ledger.keys, ledger.requests, strict=True))
            assert list(done.values()) == [b"0", b"1", b"2", b"3"], "a call got another key when it was repeated"
            assert len(ledger.rows) - 4 <= (not after), "a call was made again although its answer was logged"


async def test_r04_the_first_delta_holds_only_pages_that_have_changed(lab: MemoryLab) -> None:
    init = "(memory.fill (i32.const 196608) (i32.const 7) (i32.const 1000000))"
    await lab.start(wat.script(wat.checkpoint(), wat.call("gate"), reentrant=True, pages=20, init=init))
    gate = anyio.Event()
    await lab.dies(answers("gate", lambda _: _stop(gate)), when=gate)
    record = await lab.record()
    assert record.snapshot is not None
    [(name, _)] = record.snapshot.deltas
    sealed = await lab.store.blob(record.run, name)
    delta = decode_delta(unseal(Address("default", "w", record.run, "snapshot", name), sealed), name)
    assert delta.size == 20 * 65536
    assert 0 < sum(count for _, count in delta.runs) <= 2


async def test_r05a_a_damaged_snapshot_is_no_new_start(disk: SqliteLab) -> None:
    ledger, gate = Ledger(), anyio.Event()
    await disk.start(wat.script(wat.call("note", b"1"), wat.checkpoint(), wat.call("gate", b"2"), reentrant=True))
    await disk.dies(ledger.activity(), answers("gate", lambda _: _stop(gate)), when=gate)
    cell = disk.cell("snapshot")
    right = cell.read()
    cell.write(right[:-30] + bytes([right[-30] ^ 1]) + right[-29:])
    async with disk.worker(ledger.activity(), ledger.activity("gate")):
        found = await disk.blocked(CorruptSnapshotError)
        assert "snapshot" in found.reason
        assert "restore it from a backup, then unblock" in found.reason
        assert len(ledger.rows) == 1
        cell.write(right)
        await disk.unblock()
        assert await disk.result() == [1, 2]


async def test_r05b_what_a_snapshot_counts_on_is_synced_before_it(
    lab: MemoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(bytes(1000))
    happened: list[str] = []
    sync, replace, commit = os.fsync, Path.replace, lab.store.commit

    def note_sync(descriptor: int) -> None:
        folder = Path(f"/proc/self/fd/{descriptor}").is_dir()
        happened.append("folder" if folder else "sync")
        sync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        happened.append("publish")
        return replace(self, target)

    async def note_commit(changes: Sequence[Change]) -> Sequence[object]:
        happened.append("snapshot" if changes[0].blobs else "commit")
        return await commit(changes)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(lab.store, "commit", note_commit)
    module = wat.script(wat.copy(), wat.checkpoint(), reentrant=True)
    await lab.start(module, sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    happened.clear()
    assert await lab.complete() == [1000]
    # The bytes and their name before the snapshot; then "publishing", the renaming between two syncs, "completed".
    expected = ["sync", "folder", "snapshot", "sync", "commit", "sync", "publish", "folder", "commit"]
    assert happened == expected


async def test_r05c_sqlite_syncs_at_every_commit(disk: SqliteLab) -> None:
    [[level]] = disk.store._connection.execute("pragma synchronous")  # type: ignore[attr-defined]
    [[mode]] = disk.store._connection.execute("pragma journal_mode")  # type: ignore[attr-defined]
    assert (level, mode) == (2, "wal")


async def test_r06a_streams_go_on_where_the_snapshot_stands(
    lab: MemoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(9000)
    (tmp_path / "in").write_bytes(data)
    offsets: list[int] = []
    read, read_now = FileSource.read_into, FileSource.read_now

    async def note_read(self: FileSource, offset: int, view: memoryview) -> int:
        offsets.append(offset)
        return await read(self, offset, view)

    def note_read_now(self: FileSource, offset: int, view: memoryview) -> int | None:
        count = read_now(self, offset, view)
        if count is not None:
            offsets.append(offset)
        return count

    monkeypatch.setattr(FileSource, "read_into", note_read)
    monkeypatch.setattr(FileSource, "read_now", note_read_now)
    some = wat.raw(
        f"(global.set $got (call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const 3000)))"
        f"(drop (call $stream_data (i32.const 1) (i32.const {wat.BUFFER}) (global.get $got)))"
    )
    module = wat.script(some, wat.checkpoint(), wat.call("gate", b"0"), wat.copy(), reentrant=True)
    await lab.start(module, sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    gate = anyio.Event()
    await lab.dies(answers("gate", lambda _: _stop(gate)), when=gate)
    assert offsets == [0]
    assert await lab.complete(Ledger().activity("gate")) == [0, 6000]
    assert min(offsets[1:]) == 3000
    assert (tmp_path / "out").read_bytes() == data


async def test_r06b_closing_the_upload_leaves_the_download_alone(lab: MemoryLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"123456789")
    read = f"(call $stream_data (i32.const 0) (i32.const {wat.SCRATCH}) (i32.const 3))"
    digit = f"(i32.load8_u (i32.const {wat.SCRATCH}))"
    close = "(call $stream_data (i32.const 1) (i32.const 0) (i32.const 0))"
    module = wat.script(*map(wat.value, (read, digit, close, read, digit)))
    await lab.start(module, sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    assert await lab.complete() == [3, ord("1"), 0, 3, ord("4")]


async def test_r07a_a_second_start_of_an_id_leaves_the_first_alone(lab: MemoryLab) -> None:
    ledger, gate, opened = Ledger(), anyio.Event(), anyio.Event()

    async def wait(call: ActivityCall) -> bytes:
        gate.set()
        await opened.wait()
        return ledger.note(call)

    module = wat.script(wat.call("note", b"1"), wat.call("wait", b"2"))
    await lab.start(module)
    async with lab.worker(ledger.activity(), answers("wait", wait)):
        await gate.wait()
        with pytest.raises(WorkflowAlreadyExistsError, match="'w' is taken by run"):
            await lab.start(module)
        opened.set()
        assert await lab.result() == [1, 2]
        with pytest.raises(WorkflowAlreadyExistsError):
            await lab.start(module, reuse=WorkflowIDReusePolicy.REJECT_DUPLICATE)
    assert len(ledger.rows) == 2


async def test_r07b_of_two_who_believe_that_they_own_a_run_the_loser_does_nothing_more(lab: MemoryLab) -> None:
    done: list[tuple[str, bytes, int]] = []
    reached, proceed = anyio.Event(), anyio.Event()

    def activity(worker: str) -> Sequence[object]:
        async def first(call: ActivityCall) -> bytes:
            if worker == "loser":
                reached.set()
                await proceed.wait()
            done.append((worker, call.request, call.attempt))
            return call.request

        def second(call: ActivityCall) -> bytes:
            done.append((worker, call.request, call.attempt))
            return call.request

        return [answers("first", first), answers("second", second)]

    await lab.start(wat.script(wat.call("first", b"1"), wat.call("second", b"2")))
    async with lab.worker(*activity("loser")) as loser:  # type: ignore[arg-type]
        await reached.wait()
        await lab.bury(lab.store, loser.worker)  # the store takes it for dead, and it does not know
        async with lab.worker(*activity("winner")):  # type: ignore[arg-type]
            assert await lab.result() == [1, 2]
            assert loser.lease_is_valid
            proceed.set()
            await _settled(lambda: not loser._live)
            assert not loser._live, "the loser's copy is dropped"
    assert done == [("winner", b"1", 2), ("winner", b"2", 1), ("loser", b"1", 1)]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "directory"])
async def test_r07c_one_compare_and_swap_has_one_winner(
    kind: str, lab: MemoryLab, disk: SqliteLab, folder: DirectoryLab
) -> None:
    place: Lab = {"memory": lab, "sqlite": disk, "directory": folder}[kind]
    stores: list[Store] = [place.store, await place.handle()]
    key = Key("default", "w")
    columns = Columns(Status.RUNNING, "flow", "m")
    await place.store.commit([Change(key, None, "run", "nonce", b"", columns)])
    won: list[str] = []

    async def swap(store: Store, nonce: str) -> None:
        [outcome] = await store.commit([Change(key, ("run", 1), "run", nonce, nonce.encode(), columns)])
        if isinstance(outcome, Won):
            won.append(nonce)

    async with anyio.create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(swap, stores[n % 2], f"nonce-{n}")
    stored = await place.store.load(key)
    assert stored is not None
    assert (len(won), stored.version, stored.record) == (1, 2, won[0].encode())


async def test_r08_a_run_keeps_the_module_it_was_started_with(lab: MemoryLab) -> None:
    old, new = (wat.script(wat.call("note", number), wat.call("gate", number)) for number in (b"1", b"2"))
    await lab.deploy(old, "flow")
    name = Payload.of(b"null")
    await starting.start(lab.store, "default", "w", "flow", name, None, starting.StartOptions())
    ledger, gate = Ledger(), anyio.Event()
    await lab.dies(ledger.activity(), answers("gate", lambda _: _stop(gate)), when=gate)
    await lab.deploy(new, "flow")
    await starting.start(lab.store, "default", "newer", "flow", name, None, starting.StartOptions())
    async with lab.worker(ledger.activity(), ledger.activity("gate")):
        assert await lab.result() == [1, 1]
        assert await lab.result("newer") == [2, 2]


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (wat.raw("(unreachable)"), "GuestTrap"),
        (wat.call("wasman.fail", b'{"type": "Mine", "message": "no"}'), "Mine"),
        (wat.call("wasman.fail", b"in plain words"), "GuestFailure"),
        (lambda program: f"(call {program.import_wasi('proc_exit', 'w')} (i32.const 3))", "GuestExit"),
    ],
    ids=["trap", "fail", "fail in words", "exit"],
)
async def test_r09a_a_guest_that_fails_has_failed(step: wat.Step, kind: str, lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("wasman.result", b'"fine"', 0), step))
    async with lab.worker():
        found = await lab.ended()
    assert found.status is Status.FAILED
    assert found.record is not None
    assert found.record.failure is not None
    assert (found.record.failure.type, found.record.result) == (kind, None)


async def test_r09b_a_call_that_nobody_can_answer_is_no_success(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasman_host.calls._UNREGISTERED", 0.05)
    await lab.start(wat.script(wat.call("missing", b"1")))
    async with lab.worker():
        found = await lab.until(Status.WAITING)
        assert "activity 'missing' is registered with no worker" in found.reason
    assert await lab.complete(Ledger().activity("missing")) == [1]


async def test_r10_globals_come_back_with_the_memory(lab: MemoryLab) -> None:
    fields = """(global $small (mut i32) (i32.const 1)) (global $large (mut i64) (i64.const 2))
      (global $real (mut f64) (f64.const 3))"""
    change = wat.raw(
        "(global.set $small (i32.const -9)) (global.set $large (i64.const 5000000000)) (global.set $real (f64.const 7))"
    )
    tell = (
        wat.value("(global.get $small)"),
        wat.raw("(call $number (global.get $large)) (call $comma)"),
        wat.value("(i32.trunc_f64_s (global.get $real))"),
    )
    module = wat.script(change, wat.checkpoint(), wat.call("gate", b"0"), *tell, reentrant=True, fields=fields)
    await lab.start(module)
    gate = anyio.Event()
    await lab.dies(answers("gate", lambda _: _stop(gate)), when=gate)
    assert await lab.complete(Ledger().activity("gate")) == [0, -9, 5000000000, 7]


_BAD = [(-1, 1), (-65536, 65536), (4 * 65536 - 2, 3), (4 * 65536, 1), (0, -1), (0x7FFFFFFF, 0x7FFFFFFF), (8, 1 << 30)]


async def test_r11_a_pointer_outside_of_memory_is_refused(lab: MemoryLab) -> None:
    steps: list[wat.Step] = []
    for pointer, length in _BAD:
        bad, good = f"(i32.const {pointer}) (i32.const {length})", "(i32.const 0) (i32.const 1)"
        places = ([bad, good, good], [good, bad, good], [good, good, bad])
        steps += [wat.value(f"(call $host_call_api {' '.join(place)})") for place in places]
        steps += [wat.value(f"(call $stream_data (i32.const {way}) {bad})") for way in (0, 1)]
    ledger = Ledger()
    await lab.start(wat.script(*steps, wat.call("wasman.error")))
    *codes, error = await lab.complete(ledger.activity("\0"))
    assert codes == [-1] * 5 * len(_BAD)
    assert error["type"] == "BadPointer"
    assert "0x8, 1073741824 bytes, is not inside the guest's memory" in error["message"]
    assert not ledger.rows


async def test_r12_runs_leave_nothing_behind_in_their_process(lab: MemoryLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 5000)
    module = wat.script(wat.call("note", b"1"), wat.copy(), wat.raw("(call $trap_or_not)"), fields=_TRAP)

    async def runs(count: int, prefix: str) -> None:
        async with lab.worker(Ledger().activity(), max_instances=4):
            for n in range(count):
                await lab.start(
                    module, id=f"{prefix}{n}", sources=source(tmp_path / "in"), sinks=sink(tmp_path / f"{prefix}{n}")
                )
            for n in range(count):
                await lab.ended(f"{prefix}{n}")

    await runs(50, "warm")
    before = _held()
    await runs(300, "then")
    after = _held()
    assert after[0] <= before[0] + 2, "descriptors"
    assert after[1] <= before[1] + 25, "mappings"


_TRAP = "(func $trap_or_not (if (i64.eqz (i64.rem_u (call $host_get_time) (i64.const 2))) (then (unreachable))))"


async def test_r13_a_guest_that_loops_is_stopped_and_starves_nobody(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.raw("(loop $ever (br $ever))")), id="loops", limits=Limits(turn_seconds=0.3))
    await lab.start(wat.script(*notes(30)), id="neighbour")
    with anyio.fail_after(8):
        async with lab.worker(Ledger().activity()):
            assert await lab.result("neighbour") == list(range(30))
            found = await lab.blocked(GuestTimeoutError, "loops")
    assert "computed for 0." in found.reason
    assert "may for 0.3 s; mend the guest or raise the limit, then unblock" in found.reason


async def _stop(reached: anyio.Event) -> bytes:
    """An activity that says that it was reached, and never answers."""
    reached.set()
    await anyio.sleep_forever()
    return b""


async def _settled(condition: object) -> None:
    with anyio.move_on_after(5):
        while not cast("anyio.abc.AnyByteStream", condition)():  # type: ignore[operator]
            await anyio.sleep(0.005)


def _held() -> tuple[int, int]:
    """Open descriptors, and mappings."""
    return len(list(Path("/proc/self/fd").iterdir())), len(Path("/proc/self/maps").read_bytes().splitlines())
