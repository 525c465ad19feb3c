"""Each kind of stored blob or row, flipped, truncated, swapped, deleted or unpacked: its instance is blocked.

With the right bytes back, the instance is unblocked and completes as if nothing had been.
"""

import gzip
import subprocess

import anyio
import anyio.to_thread
import pytest
from attrs import evolve

from tests import wat
from tests.lab import DirectoryLab, DiskLab, Ledger, SqliteLab, answers
from wasman_host import control
from wasman_host.activity import ActivityCall
from wasman_host.errors import CorruptSnapshotError
from wasman_host.oplog import Tail, encode_tail
from wasman_host.payload import Payload
from wasman_host.record import Pinned, Record
from wasman_host.store import Key, Status, Stored
from wasman_host.stored import columns_of, open_record, sealed_record

KINDS = ["record", "tail", "first entry", "entry", "snapshot", "payload", "image", "module"]
DAMAGES = ["flipped", "truncated", "swapped", "deleted", "unpacked", "empty", "doubled"]
LARGE = "x" * 100_000

# A checkpoint, and log entries on both sides of it.
GUEST = wat.script(
    wat.call("note", b"1"),
    wat.checkpoint(),
    wat.call("note", b"2"),
    wat.call("gate", b"3"),
    wat.call("wasman.input", capacity=0),
    reentrant=True,
)
OTHER = wat.stated(GUEST, "another module")


def damaged(how: str, right: bytes, other: bytes) -> bytes | None:
    place = len(right) * 2 // 3
    if how == "unpacked":
        return gzip.decompress(right)
    return {
        "flipped": right[:place] + bytes([right[place] ^ 16]) + right[place + 1 :],
        "truncated": right[:-7],
        "swapped": other,
        "deleted": None,
        "empty": b"",
        "doubled": right + right,
    }[how]


async def half_done(disk: DiskLab) -> Ledger:
    """Two instances, each with a log, a snapshot and a large input, whose worker has died in the activity `gate`."""
    ledger, both = Ledger(), anyio.Event()
    waiting: list[str] = []

    async def stop(call: ActivityCall) -> bytes:
        waiting.append(call.key.id)
        if len(waiting) == 2:
            both.set()
        await anyio.sleep_forever()
        return b""

    await disk.start(GUEST, LARGE)
    await disk.start(OTHER, LARGE, id="other")
    await disk.dies(ledger.activity(), answers("gate", stop), when=both)
    return ledger


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_damage_blocks_and_is_mended(kind: str, how: str, disk: SqliteLab) -> None:
    if kind == "tail" and how in {"deleted", "unpacked"}:
        pytest.skip("it stands in the instance's own row, without which no worker finds it, and it is not compressed")
    ledger = await half_done(disk)
    cell = disk.cell(kind)
    right, wrong = cell.read(), damaged(how, cell.read(), disk.cell(kind, "other").read())
    done = len(ledger.rows)
    cell.write(wrong)
    async with disk.worker(ledger.activity(), ledger.activity("gate"), cold=True):
        found = await disk.blocked(CorruptSnapshotError, reason="restore it from a backup, then unblock")
        what = {"first entry": "entry", "tail": "the end of its log"}.get(kind, kind)
        assert what in found.reason or "the log of run" in found.reason
        assert await disk.result("other") == [1, 2, 3, -2]
        assert len(ledger.rows) == done + 1, "only the other instance may go on"
    cell.write(right)
    # A new process: what this one has loaded of the module and its image is not looked for again.
    async with disk.worker(ledger.activity(), ledger.activity("gate"), cold=True):
        await disk.unblock()
        assert await disk.result() == [1, 2, 3, -2]
    assert len(ledger.rows) == done + 2


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", ["snapshot", "payload", "image", "module"])
async def test_damage_in_a_folder_blocks_and_is_mended(kind: str, how: str, folder: DirectoryLab) -> None:
    ledger = await half_done(folder)
    cell = folder.cell(kind)
    right, wrong = cell.read(), damaged(how, cell.read(), folder.cell(kind, "other").read())
    done = len(ledger.rows)
    cell.write(wrong)
    async with folder.worker(ledger.activity(), ledger.activity("gate"), cold=True):
        found = await folder.blocked(CorruptSnapshotError, reason="restore it from a backup, then unblock")
        assert kind in found.reason
        assert await folder.result("other") == [1, 2, 3, -2]
        assert len(ledger.rows) == done + 1, "only the other instance may go on"
    cell.write(right)
    async with folder.worker(ledger.activity(), ledger.activity("gate"), cold=True):
        await folder.unblock()
        assert await folder.result() == [1, 2, 3, -2]
    assert len(ledger.rows) == done + 2


@pytest.mark.parametrize("how", DAMAGES)
async def test_an_instance_whose_file_is_damaged_waits_for_the_right_one(how: str, folder: DirectoryLab) -> None:
    ledger = await half_done(folder)
    cell = folder.cell("head")
    right, wrong = cell.read(), damaged(how, cell.read(), folder.cell("head", "other").read())
    done = len(ledger.rows)
    cell.write(wrong)
    async with folder.worker(ledger.activity(), ledger.activity("gate"), cold=True):
        assert await folder.result("other") == [1, 2, 3, -2]
        with pytest.raises(CorruptSnapshotError, match=r"the instance w .*(restore it from a backup|is missing)"):
            await folder.look()
        assert len(ledger.rows) == done + 1, "only the other instance may go on"
        cell.write(right)
        assert await folder.result() == [1, 2, 3, -2]  # the next look finds it again
    assert len(ledger.rows) == done + 2


async def test_every_file_of_a_folder_opens_with_gunzip(folder: DirectoryLab) -> None:
    ledger = await half_done(folder)
    await control.terminate(folder.store, Key("default", "other"), "x" * 20_000)

    def read() -> tuple[int, bytes]:
        files = [path for path in folder.path.rglob("*") if path.is_file() and path.parent.name != "workers"]
        packed = [path.read_bytes() for path in files]
        unpacked = b"".join(map(gzip.decompress, packed))
        program = subprocess.run(["gunzip"], input=b"".join(packed), capture_output=True, check=True)
        assert program.stdout == unpacked
        return len(files), unpacked

    count, unpacked = await anyio.to_thread.run_sync(read)
    assert count > 15
    assert LARGE.encode() in unpacked
    async with folder.worker(ledger.activity(), ledger.activity("gate")):
        assert await folder.result() == [1, 2, 3, -2]
        await folder.until(Status.TERMINATED, id="other")
    count, unpacked = await anyio.to_thread.run_sync(read)
    assert count > 15
    assert b'"status":"completed"' in unpacked


async def test_unblocking_what_is_still_damaged_blocks_again(disk: SqliteLab) -> None:
    ledger = await half_done(disk)
    cell = disk.cell("snapshot")
    right = cell.read()
    cell.write(right[:-1])
    async with disk.worker(ledger.activity(), ledger.activity("gate")):
        for _ in range(2):
            found = await disk.blocked(CorruptSnapshotError)
            await disk.unblock()
            with anyio.fail_after(5):
                while (await disk.look()).stored.version <= found.stored.version + 1:
                    await anyio.sleep(0.01)
        await disk.blocked(CorruptSnapshotError)


async def test_a_record_that_cannot_be_read_can_be_terminated(disk: SqliteLab) -> None:
    ledger = await half_done(disk)
    disk.cell("record").write(b"\x1f\x8bnonsense")
    async with disk.worker(ledger.activity(), ledger.activity("gate")):
        await disk.blocked(CorruptSnapshotError)
        with pytest.raises(CorruptSnapshotError, match=r"record of run .* of 'w' does not begin as a sealed gzip"):
            await disk.unblock()
        await disk.terminate(reason="beyond repair")
        found = await disk.until(Status.TERMINATED)
    assert found.record is not None
    assert str(found.record.failure) == "terminated: beyond repair"


async def test_a_restored_record_may_say_waiting(disk: SqliteLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasman_host.calls._UNREGISTERED", 0.1)
    ledger = Ledger()
    await disk.start(wat.script(wat.call("missing", b"1")))
    async with disk.worker():
        await disk.until(Status.WAITING)
    cell = disk.cell("record")
    right = cell.read()
    cell.write(b"")
    async with disk.worker(ledger.activity("missing")):
        with anyio.fail_after(10):
            await disk.blocked(CorruptSnapshotError)
            disk.cell("record").write(right)
            await disk.unblock()
            assert await disk.result() == [1]


@pytest.mark.parametrize("how", DAMAGES)
async def test_mail_that_is_damaged_blocks(how: str, disk: SqliteLab) -> None:
    ledger = await half_done(disk)
    for name in ("w", "other"):
        await control.terminate(disk.store, Key("default", name), "enough", message_id=f"of {name}")
    cell = disk.cell("mail")
    cell.write(damaged(how, cell.read(), disk.cell("mail", "other").read()))
    async with disk.worker(ledger.activity(), ledger.activity("gate")):
        found = await disk.blocked(CorruptSnapshotError, reason="mail" if how != "deleted" else "unread messages")
        await disk.until(Status.TERMINATED, id="other")
        version = found.stored.version
        await anyio.sleep(0.3)
        assert (await disk.look()).stored.version <= version + 2, "a blocked instance is not claimed again and again"
        if how != "deleted":
            await disk.unblock()
            assert await disk.result() == [1, 2, 3, -2]
            assert [kind for _, kind in (await disk.record()).undelivered] == ["damaged"]


def test_the_record_of_a_run_that_has_ended_here_is_known_by_its_own_bytes_only() -> None:
    key = Key("default", "w")
    record = Record("run", Pinned("flow", "m" * 64), Status.COMPLETED, result=Payload.of(b"1"), closed=1)
    sealed, tail = sealed_record(key, record), encode_tail(Tail(1))
    columns = columns_of(record, 0, owner=None, wake=None)
    stored = Stored(key, "run", 1, "nonce", columns, sealed, 0, tail)
    assert open_record(stored) is record, "what was just sealed is opened again"
    for wrong in (
        evolve(stored, record=sealed[:-1] + bytes([sealed[-1] ^ 1])),
        evolve(stored, key=Key("default", "v")),
        evolve(stored, run="another"),
        evolve(stored, columns=evolve(columns, status=Status.FAILED)),
    ):
        with pytest.raises(CorruptSnapshotError):
            open_record(wrong)
