"""A run that lives for ever: its log stays short, its archive holds the rest, and both are read as one."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from attrs import evolve

from tests import wat
from tests.go_guests import COMPILERS, guest
from tests.lab import DirectoryLab, DiskLab, Lab, Ledger, MemoryLab, SqliteLab, answers
from wasman_host import control
from wasman_host.archive import Archive
from wasman_host.errors import CorruptSnapshotError, InvalidArgumentError
from wasman_host.oplog import Entry
from wasman_host.record import Limits
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Key, MemoryStore, Store
from wasman_host.stored import open_tail
from wasman_sdk.testing import FaultyStore

CALLS = 100  # of a run that is looked at closely
SMALL = SnapshotPolicy(chunk=8)


def caller(request: bytes = b'"something"', *, reentrant: bool = True) -> bytes:
    """A guest that calls "note" as often as its input says, with a checkpoint behind each call."""
    flag = '(func (export "wasman_reentrant"))' if reentrant else ""
    return wat.module(f"""
  (memory (export "memory") 4)
  (global $__stack_pointer (mut i32) (i32.const 1024))
  (data (i32.const 1024) "note")
  (data (i32.const 1100) "{"".join(f"{chr(92)}{byte:02x}" for byte in request)}")
  {flag}
  (func (export "run") (param $calls i32) (result i32)
    (block $end (loop $more
      (br_if $end (i32.ge_u (i32.load (i32.const 16)) (local.get $calls)))
      (drop (call $host_call_api (i32.const 1024) (i32.const 4) (i32.const 1100) (i32.const {len(request)})
        (i32.const 65536) (i32.const 150000)))
      (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
      (call $checkpoint)
      (br $more)))
    (i32.load (i32.const 16)))
""")


@pytest.fixture(params=["sqlite", "directory"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[DiskLab]:
    del anyio_backend
    made: DiskLab = SqliteLab(tmp_path / "store.db") if request.param == "sqlite" else DirectoryLab(tmp_path / "store")
    await made.open()
    yield made
    await made.close()


async def history(store: Store, id: str = "w") -> Sequence[Entry]:
    return await control.history(store, await control.load(store, Key("default", id)))


def whole(entries: Sequence[Entry], calls: int) -> bool:
    """Whether nothing is missing."""
    return [entry.n for entry in entries] == list(range(calls + 1)) and [
        [delivery.operation for delivery in entry.deliveries] for entry in entries[1:]
    ] == [[n] for n in range(calls)]


async def log_bytes(lab: Lab, id: str = "w") -> int:
    stored = await control.load(lab.store, Key("default", id))
    return sum(len(entry) for _, entry in await lab.store.read(stored.run)) + len(stored.record) + len(stored.tail)


async def test_what_is_live_of_a_run_stays_as_small(lab: MemoryLab) -> None:
    sizes = []
    for calls in (600, 2000):  # where the log of each is at its longest and where it is not
        await lab.start(caller(), calls, id=f"w{calls}")
        assert await lab.complete(Ledger().activity(), id=f"w{calls}") == calls
        sizes.append(await log_bytes(lab, f"w{calls}"))
        assert whole(await history(lab.store, f"w{calls}"), calls)
        record = await lab.record(f"w{calls}")
        assert record.archive is not None
        assert record.archive.stop == calls // 256 * 256
        assert record.snapshot is not None
        assert len(record.snapshot.deltas) <= 17
    assert sizes[1] < 3 * sizes[0]
    assert max(sizes) < 256 * 500


@COMPILERS
async def test_what_is_live_of_a_go_guest_is_bounded_whatever_its_age(lab: MemoryLab, compiler: str) -> None:
    """At 200 calls, at 2,000; and nothing is left of the snapshots that were merged into others."""
    echo, sizes = Ledger().activity("echo"), []
    for calls in (200, 2000):
        name = f"w{calls}"
        await lab.start(guest("programs", compiler), calls, id=name, entry="calls")
        assert await lab.complete(echo, id=name) == calls
        sizes.append(await log_bytes(lab, name))
        assert len(await history(lab.store, name)) == calls + 1
        record, stored = await lab.record(name), await control.load(lab.store, Key("default", name))
        assert record.snapshot is not None
        assert isinstance(lab.store, MemoryStore)
        deltas = {blob for blob, _ in record.snapshot.deltas}
        archive = {f"archive-{n}" for n in range(calls // 256)}
        assert set(lab.store._blobs[stored.run]) == deltas | archive
        assert len(deltas) <= 16
    # The log goes by 256, and by what a snapshot does not cover yet; a chunk and its snapshots have a size.
    assert sizes[1] < (256 + 64) / 200 * sizes[0]


async def test_log_and_archive_are_one_history(place: DiskLab) -> None:
    await place.start(caller(), CALLS)
    assert await place.complete(Ledger().activity(), snapshots=SMALL) == CALLS
    stored = await control.load(place.store, Key("default", "w"))
    left = [n for n, _ in await place.store.read(stored.run)]
    assert left == [0, *range(CALLS // 8 * 8, CALLS + 1)]
    assert whole(await history(place.store), CALLS)
    names = [f"archive-{at}" for at in range(CALLS // 8)]
    assert all([await place.store.blob(stored.run, name) is not None for name in names])
    record = await place.record()
    assert record.archive is not None
    sizes = [len(await place.store.blob(stored.run, name) or b"") for name in names]
    assert record.archive.size == sum(sizes)


async def test_a_run_that_is_replayed_keeps_its_log(lab: MemoryLab) -> None:
    await lab.start(caller(reentrant=False), CALLS)
    assert await lab.complete(Ledger().activity(), snapshots=SMALL) == CALLS
    assert (await lab.record()).archive is None
    stored = await control.load(lab.store, Key("default", "w"))
    assert len(await lab.store.read(stored.run)) == CALLS + 1
    assert whole(await history(lab.store), CALLS)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_worker_may_die_at_any_commit_while_the_log_is_cut(lab: MemoryLab, *, after: bool) -> None:
    counted, policy = FaultyStore(lab.store), SnapshotPolicy(chunk=4)
    await lab.start(caller(), 12, id="counted")
    await lab.complete(Ledger().activity(), id="counted", store=counted, snapshots=policy)
    assert counted.asked("commit") == 12 + 12 + 3 + 1  # calls, checkpoints, cuts, the end
    for at in range(1, counted.asked("commit") + 1):
        ledger, name = Ledger(), f"w{at}"
        await lab.start(caller(), 12, id=name)
        await lab.dies(ledger.activity(), at=at, after=after, snapshots=policy)
        assert await lab.complete(ledger.activity(), id=name, snapshots=policy) == 12
        assert len(set(ledger.keys)) == 12
        assert whole(await history(lab.store, name), 12)
        stored = await control.load(lab.store, Key("default", name))
        # Who died before the last cut has left it to the next snapshot, and there was none.
        assert len(await lab.store.read(stored.run)) in {2, 2 + 4}


async def test_an_archive_of_before_is_gone_on_with(lab: MemoryLab) -> None:
    """Its chunks keep their size, whatever a later worker would choose."""
    ledger = Ledger()
    await lab.start(caller(), CALLS)
    await lab.dies(ledger.activity(), at=60, snapshots=SMALL)
    assert await lab.complete(ledger.activity(), snapshots=SnapshotPolicy(chunk=5)) == CALLS
    record = await lab.record()
    assert record.archive is not None
    assert (record.archive.chunk, record.archive.stop) == (8, CALLS // 8 * 8)
    assert whole(await history(lab.store), CALLS)


async def test_a_history_that_is_read_while_the_log_is_cut_is_whole(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(caller(), CALLS)
    await lab.dies(ledger.activity(), at=20, snapshots=SMALL)
    early = await control.load(lab.store, Key("default", "w"))
    assert await lab.complete(ledger.activity(), snapshots=SMALL) == CALLS
    assert whole(await control.history(lab.store, early), CALLS)  # that of now: what it had is no longer in the log


# -- retention -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keeps", "first"), [(0, 96), (1, 88), (20, 72), (1000, 0)])
async def test_as_much_is_kept_as_the_policy_says(lab: MemoryLab, keeps: int, first: int) -> None:
    policy = SnapshotPolicy(chunk=8, archive=keeps)
    await lab.start(caller(), CALLS)
    assert await lab.complete(Ledger().activity(), snapshots=policy) == CALLS
    entries = await history(lab.store)
    record, stored = await lab.record(), await control.load(lab.store, Key("default", "w"))
    assert record.archive is not None
    assert record.archive.start == first
    here = [n for n in range(CALLS // 8) if await lab.store.blob(stored.run, f"archive-{n}") is not None]
    assert here == list(range(first // 8, CALLS // 8))
    if first == 0:
        assert whole(entries, CALLS)
        return
    assert [entry.n for entry in entries] == [0, 1, *range(first, CALLS + 1)]
    [dropped] = entries[1].deliveries
    assert dropped.kind == "dropped"
    assert f"entries 1 to {first - 1} were not kept" in str(dropped.failure)
    sizes = [len(await lab.store.blob(stored.run, f"archive-{n}") or b"") for n in here]
    assert record.archive.size == sum(sizes)


async def test_a_retention_that_is_chosen_late_drops_what_was_kept(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(caller(), CALLS)
    await lab.dies(ledger.activity(), at=110, snapshots=SMALL)
    archive = (await lab.record()).archive
    assert archive is not None
    assert (archive.start, archive.stop) == (0, 48)
    keeps_nothing = SnapshotPolicy(chunk=8, archive=0)
    assert await lab.complete(ledger.activity(), snapshots=keeps_nothing) == CALLS
    archive = (await lab.record()).archive
    assert archive is not None
    assert archive.start == archive.stop == 96
    assert archive.size == 0
    stored = await control.load(lab.store, Key("default", "w"))
    assert [n for n in range(20) if await lab.store.blob(stored.run, f"archive-{n}")] == []


LARGE = b'"' + b"x" * 100_000 + b'"'


@pytest.mark.parametrize("keeps", [None, 0])
async def test_large_payloads_leave_with_their_entries(lab: MemoryLab, keeps: int | None) -> None:
    """They do not count as stored any more, and are dropped with the archive."""
    large = answers("note", lambda _: LARGE)
    limits = Limits(stored=1_500_000)
    await lab.start(caller(), 40, limits=limits)
    assert await lab.complete(large, snapshots=SnapshotPolicy(chunk=8, archive=keeps)) == 40
    stored = await control.load(lab.store, Key("default", "w"))
    here = [n for n in range(1, 41) if await lab.store.blob(stored.run, f"payload-{n}-0") is not None]
    entries, record = await history(lab.store), await lab.record()
    assert record.archive is not None
    if keeps is None:
        assert here == list(range(1, 41))
        [delivery] = entries[3].deliveries
        assert delivery.payload is not None
        assert (await control.load_payload(lab.store, stored, delivery.payload)).content == LARGE
    else:
        assert here == list(range(record.archive.stop, 41))
        assert record.archive.size == 0
    assert 0 < stored.columns.size < 10 * 110_000


# -- the limit of what is stored, and damage -------------------------------------------------------


async def test_an_archive_does_not_bring_a_run_to_its_limit(lab: MemoryLab) -> None:
    await lab.start(caller(), 2000, limits=Limits(stored=200_000))
    assert await lab.complete(Ledger().activity()) == 2000
    record = await lab.record()
    assert record.archive is not None
    assert record.archive.size > 200_000
    found = await lab.look()
    assert 0 < found.stored.columns.size < 200_000


@pytest.mark.parametrize("damage", ["missing", "exchanged", "bits"])
async def test_damage_of_an_archive_is_said_and_harms_no_run(lab: MemoryLab, damage: str) -> None:
    ledger = Ledger()
    await lab.start(caller(), CALLS, id="other")
    await lab.complete(ledger.activity(), id="other", snapshots=SMALL)
    await lab.start(caller(), CALLS)
    await lab.dies(ledger.activity(), at=110, snapshots=SMALL)
    assert isinstance(lab.store, MemoryStore)
    run = (await control.load(lab.store, Key("default", "w"))).run
    blobs = lab.store._blobs[run]
    kept = blobs["archive-3"]
    other = lab.store._blobs[(await control.load(lab.store, Key("default", "other"))).run]["archive-3"]
    damaged = {"exchanged": other, "bits": kept[:100] + bytes([kept[100] ^ 1]) + kept[101:]}.get(damage)
    if damaged is None:
        del blobs["archive-3"]
    else:
        blobs["archive-3"] = damaged
    with pytest.raises(CorruptSnapshotError, match="archive archive-3 of run"):
        await history(lab.store)
    assert await lab.complete(ledger.activity(), snapshots=SMALL) == CALLS
    with pytest.raises(CorruptSnapshotError, match="archive archive-3 of run"):
        await history(lab.store)
    blobs["archive-3"] = kept
    assert whole(await history(lab.store), CALLS)


async def test_an_archive_of_another_log_is_seen(lab: MemoryLab) -> None:
    """Each chunk is whole by itself: what it comes after, and what comes after it, must be what the record says."""
    await lab.start(caller(), CALLS)
    await lab.complete(Ledger().activity(), snapshots=SMALL)
    stored, record = await control.load(lab.store, Key("default", "w")), await lab.record()
    assert record.archive is not None
    tail, archive = open_tail(stored), record.archive
    read = Archive(lab.store, stored.key, stored.run)
    assert len(await read.history(tail, archive)) == CALLS + 1
    for wrong in (
        evolve(archive, stop=archive.stop - 8),
        evolve(archive, stop=archive.stop + 8),
        evolve(archive, chain="00" * 32),
        evolve(archive, start=8, chain="00" * 32),
        evolve(archive, chunk=4),
    ):
        with pytest.raises(CorruptSnapshotError):
            await read.history(tail, wrong)


async def test_entries_that_are_damaged_do_not_leave_the_log(disk: SqliteLab) -> None:
    """What would hide the damage does not happen: the run stands still where its log is wrong."""
    ledger = Ledger()
    await disk.start(caller(), CALLS)
    await disk.dies(ledger.activity(), at=7, snapshots=SMALL)
    cell = disk.cell("entry")
    whole_entry = cell.read()
    cell.write(whole_entry[:-9] + bytes([whole_entry[-9] ^ 1]) + whole_entry[-8:])
    async with disk.worker(ledger.activity(), snapshots=SMALL):
        found = await disk.blocked(CorruptSnapshotError)
        assert "entry 2 of run" in found.reason
        cell.write(whole_entry)
        await disk.unblock()
        assert await disk.result() == CALLS
    assert whole(await history(disk.store), CALLS)


@pytest.mark.parametrize("wrong", [{"chunk": 1}, {"archive": -1}, {"turns": 0}])
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"from 0 on|2 entries or more|turns from 1 on"):
        SnapshotPolicy(**wrong)
