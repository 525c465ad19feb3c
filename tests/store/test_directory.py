"""What is particular to the store in a folder: files, locks, damage to them, and what a killed process leaves."""

import fcntl
import gzip
import hashlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.store.settings import SECOND, START, blob, change, closed, columns, deletion, directory, key, message
from wasman_host.errors import (
    CorruptSnapshotError,
    InvalidArgumentError,
    StoreError,
    StoreSchemaError,
    StoreUnavailableError,
    UnsupportedStateError,
)
from wasman_host.store import (
    DirectoryBackend,
    Filter,
    Lost,
    ObjectStore,
    Sent,
    Status,
    Step,
    Won,
    objects,
    open_store,
    path_of,
)
from wasman_host.store.backend import NOTHING
from wasman_host.store.files import Files
from wasman_host.store.heads import seal_object

ROOT = Path(__file__).resolve().parent.parent.parent


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[ObjectStore]:
    store = directory(folder, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fails_to_open(path: Path, error: type[StoreError], says: str, **options: Any) -> None:
    store = ObjectStore(DirectoryBackend(path, **options))
    with pytest.raises(error, match=says) as raised:
        await store.open()
    assert str(path) in str(raised.value)
    await store.close()


@contextmanager
def racer(path: Path, name: str, command: str) -> Iterator[subprocess.Popen[str]]:
    """A subprocess that is killed in the end."""
    line = [sys.executable, "-m", "tests.store.racer", str(path), name, command]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def files_in(folder: Path) -> dict[str, bytes]:
    """Contents by path, those that only exclude others left out."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(("locks/", "workers/"))}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def only(folder: Path, pattern: str) -> Path:
    [path] = folder.glob(pattern)
    return path


# -- opening ---------------------------------------------------------------------------------------


async def test_only_this_user_reads_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, blobs=[blob("b")])])
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").rglob("*") if path.is_file()}
        folders = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").rglob("*") if path.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})


async def test_a_folder_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    await fails_to_open(tmp_path, StoreSchemaError, r"another program \(letter.txt is in it\)")
    assert names_in(tmp_path) == ["letter.txt"]


async def test_another_format_is_not_touched(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "store" / "format").write_bytes(gzip.compress(b'{"wasman objects": 2}'))
    await fails_to_open(tmp_path / "store", StoreSchemaError, "another format")


async def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file in the place of the folder")
    await fails_to_open(tmp_path / "store", StoreUnavailableError, "must be a folder")


async def test_where_there_is_no_folder_above(tmp_path: Path) -> None:
    await fails_to_open(tmp_path / "no" / "where", StoreUnavailableError, "must exist")
    (tmp_path / "file").write_text("")
    await fails_to_open(tmp_path / "file" / "store", StoreUnavailableError, "must exist")


async def test_many_make_one_store_together(tmp_path: Path) -> None:
    stores = [directory(tmp_path) for _ in range(5)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.open)
    for n, store in enumerate(stores):
        assert await store.commit([change(f"i{n}", None)]) == [Won(1, 0)]
    for store in stores:
        assert await store.count(Filter()) == 5
        await store.close()


async def test_a_read_only_store_is_read_and_refuses_to_write(tmp_path: Path) -> None:
    await fails_to_open(tmp_path / "store", StoreUnavailableError, "is not there", read_only=True)
    async with opened(tmp_path) as writer, opened(tmp_path, read_only=True) as store:
        await writer.commit([change("a", None, "r", entries=[(0, b"0")], columns=columns(wake=START))])
        before = files_in(tmp_path / "store")
        assert await store.load(key("a")) is not None
        assert await store.read("r") == [(0, b"0")]
        assert await store.count(Filter()) == 1
        for call in (
            store.commit([change("a", ("r", 1))]),
            store.send(message("a", "m")),
            store.beat("w", 10, {}),
            store.put_module("d", b""),
        ):
            with pytest.raises(StoreUnavailableError, match=r"store is read-only: open it for writing"):
                await call
        assert files_in(tmp_path / "store") == before


async def test_a_folder_that_cannot_be_written_to_says_so(tmp_path: Path) -> None:
    """Root may write everywhere, so a file stands where the instance's folder should be made."""
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r")])
        (tmp_path / "store" / "i" / "default" / "b").write_text("")
        with pytest.raises(StoreUnavailableError, match=r"store cannot be read or written: look at its disk"):
            await store.commit([change("b", None)])
        assert await store.commit([change("a", ("r", 1))]) == [Won(2, 0)]
        (tmp_path / "store" / "i" / "default" / "b").unlink()
        assert await store.commit([change("b", None)]) == [Won(1, 0)]


async def test_a_deleted_or_replaced_folder_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r")])
        (tmp_path / "store").rename(tmp_path / "moved")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
                await store.commit([change("a", ("r", 1))])
            with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
                await store.load(key("a"))
            (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store").rmdir()
        (tmp_path / "moved").rename(tmp_path / "store")
        assert await store.commit([change("a", ("r", 1))]) == [Won(2, 0)]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "A", "ä/ö", "../../etc", ".", "..", "x" * 200, "con", "a b", "=61", "~", "workflow/flow"]
)
async def test_any_id_is_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as store:
        names = [name, name.upper(), name + ".", "other"]
        for one in dict.fromkeys(names):
            due = columns(wake=START, queue=name)
            assert await store.commit([change(one, None, f"run {one}", entries=[(0, one.encode())], columns=due)])
            assert await store.send(message(one, f"message {name}", bytes(10_000))) is Sent.ACCEPTED
        assert await store.beat(name, 10, {}) is not None
        claimed = [claim.stored.key.id for claim in await store.claim(name, [name], 10)]
        assert sorted(claimed) == sorted(set(names))
        for one in dict.fromkeys(names):
            assert await store.read(f"run {one}") == [(0, one.encode())]
            assert [letter.body for letter in await store.mail(key(one))] == [bytes(10_000)]
    assert names_in(tmp_path) == ["store"]
    allowed = re.compile(r"[a-z0-9_.=~-]+", re.ASCII)  # whatever the file system makes of capitals
    assert all(allowed.fullmatch(path.name) for path in (tmp_path / "store").rglob("*"))


async def test_a_deletion_leaves_no_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        before = files_in(tmp_path / "store")
        full: dict[str, Any] = {"columns": columns(wake=START), "blobs": [blob("b")]}
        await store.commit([change("a", None, "r1", entries=[(0, bytes(50_000))], **full)])
        await store.commit([change("a", ("r1", 1), "r2", entries=[(0, b"0")], **full)])
        assert await store.send(message("a", "m1", bytes(10_000))) is Sent.ACCEPTED
        assert await store.send(message("a", "m2")) is Sent.ACCEPTED
        assert len(files_in(tmp_path / "store")) > len(before) + 5
        assert await store.commit([deletion("a", ("r2", 2))]) == [Won(0, 0)]
    assert files_in(tmp_path / "store") == before
    assert not list((tmp_path / "store" / "i" / "default").iterdir())


async def test_losers_and_what_is_consumed_or_dropped_leave_no_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r", blobs=[blob("old")])])
        before = set(files_in(tmp_path / "store"))
        stale = change("a", ("r", 7), blobs=[blob("b")], columns=columns(wake=START), entries=[(0, bytes(50_000))])
        assert await store.commit([stale]) == [Lost(("r", 1))]
        assert set(files_in(tmp_path / "store")) == before
        assert await store.send(message("a", "m", bytes(10_000))) is Sent.ACCEPTED
        assert await store.commit([change("a", ("r", 1), consumes=["m"], drops=["old"])]) == [Won(2, 0)]
        assert len(files_in(tmp_path / "store")) == len(before) - 1
        assert await store.blob("r", "old") is None


async def test_who_loses_a_race_leaves_no_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await store.commit([change("a", None, "r")])
        before = set(files_in(tmp_path / "store"))
        results: list[Any] = []

        async def swap(n: int, rival: ObjectStore) -> None:
            one = change("a", ("r", 1), columns=columns(wake=START + n), blobs=[blob(f"b{n}")])
            results.extend(await rival.commit([one]))

        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(swap, n, (store, other)[n % 2])
        assert sorted(map(repr, results)) == [repr(Lost(("r", 2)))] * 7 + [repr(Won(2, 0))]
        [mark, kept] = sorted(set(files_in(tmp_path / "store")) - before, reverse=True)
        assert mark.startswith("q/default/")
        assert kept.startswith("i/default/a/")


async def test_a_long_log_goes_to_objects_of_its_own_and_reads_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r")])
        wanted = []
        for n in range(60):
            entry = random.Random(n).randbytes(2000)
            wanted.append((n, entry))
            step = Step(key("a"), "r", n + 1, f"nonce{n}", b"tail", [(n, entry)], [blob(f"b{n}", b"%d" % n)])
            assert await store.commit([step]) == [Won(n + 2, 0)]
        async with opened(tmp_path) as other:
            assert await other.read("r") == wanted
            assert await other.read("r", 15, 35) == wanted[15:35]
            assert [await other.blob("r", f"b{n}") for n in (0, 30, 59)] == [b"0", b"30", b"59"]
            with pytest.raises(CorruptSnapshotError, match="still to come"):
                await other.commit([Step(key("a"), "r", 61, "late", b"", [(3, b"x")])])
        assert only(tmp_path, "store/i/*/a/rec").stat().st_size < 40_000
        assert len(list((tmp_path / "store").glob("i/*/a/*-l-*"))) == 3


async def test_many_runs_stay_readable_and_the_record_small(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r0", entries=[(0, b"0")], blobs=[blob("b", b"0")])])
        for n in range(1, 80):
            one = change("a", (f"r{n - 1}", n), f"r{n}", entries=[(0, b"%d" % n)], blobs=[blob("b", b"%d" % n)])
            assert await store.commit([one]) == [Won(n + 1, 0)]
        assert only(tmp_path, "store/i/*/a/rec").stat().st_size < 6_000
        for n in (1, 40, 79):
            with pytest.raises(InvalidArgumentError, match="draw a new one"):
                await store.commit([change("a", ("r79", 80), f"r{(n + 78) % 79}")])
        async with opened(tmp_path) as other:
            for n in (0, 30, 31, 32, 33, 78, 79):
                assert await other.read(f"r{n}") == [(0, b"%d" % n)]
                assert await other.blob(f"r{n}", "b") == b"%d" % n


async def test_what_a_crash_leaves_goes_with_the_next_takeover(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r", columns=columns(owner="dead"), blobs=[blob("b")])])
        await store.commit([change("a", ("r", 1), columns=columns(owner="dead"), blobs=[blob("c")])])
        kept = only(tmp_path, "store/i/*/a/*-b-*-c")
        orphan = kept.with_name(kept.name.replace("-b-1-", "-b-0-other-"))
        torn = kept.with_name(".wasman-0")
        torn.write_bytes(b"\x1f")
        os.utime(torn, (0, 0))
        late = kept.with_name(kept.name.replace("-b-1-", "-b-ff-other-"))
        for path in (orphan, late):
            path.write_bytes(b"")
        assert await store.beat("w", 10, {}) is not None
        assert len(await store.claim("w", ["default"], 1)) == 1
        assert (orphan.exists(), torn.exists(), late.exists()) == (
            False,
            False,
            True,
        )  # the other may belong to a change that will win
        assert await store.blob("r", "b") == await store.blob("r", "c") == b"data"


# -- damage ----------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :]


DAMAGES: dict[str, Callable[[bytes, Path], bytes | None]] = {
    "truncated": lambda data, _: data[:-7],
    "cut short": lambda data, _: data[:20],
    "flipped": lambda data, _: flipped(data),
    "empty": lambda _, __: b"",
    "missing": lambda _, __: None,
    "foreign": lambda _, __: b"dear reader",
    "another gzip file": lambda data, _: gzip.compress(data),
    "another instance's": lambda _, path: (path.parent.parent / "good" / path.name).read_bytes(),
}


@pytest.mark.parametrize("how", DAMAGES)
async def test_a_damaged_record_names_its_instance_and_hurts_no_other(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as store:
        for name in ("bad", "good"):
            await store.commit([change(name, None, name, columns=columns(wake=START), entries=[(0, b"0")])])
    path = tmp_path / "store" / "i" / "default" / "bad" / "rec"
    right = path.read_bytes()
    wrong = DAMAGES[how](right, path)
    path.unlink()
    if wrong is not None:
        path.write_bytes(wrong)
    async with opened(tmp_path) as store:
        for call in (
            lambda: store.load(key("bad")),
            lambda: store.commit([change("bad", ("bad", 1))]),
            lambda: store.commit([change("bad", None, "new")]),
            lambda: store.send(message("bad", "m")),
        ):
            with pytest.raises(CorruptSnapshotError, match=r"the instance bad .*(restore it|missing)"):
                await call()
        with pytest.raises(CorruptSnapshotError, match="the instance bad"):
            await store.commit([change("good", ("good", 1), columns=columns(wake=START)), change("bad", ("bad", 1))])
        assert path.exists() == (wrong is not None)
        rows = (await store.list(Filter())).rows
        assert {row.key.id: row.columns.status for row in rows} == {"good": Status.RUNNING, "bad": Status.BLOCKED}
        assert await store.count(Filter()) == 2
        assert await store.beat("w", 10, {}) is not None
        assert [claim.stored.key.id for claim in await store.claim("w", ["default"], 5)] == ["good"]
        path.write_bytes(right)
        assert [claim.stored.key.id for claim in await store.claim("w", ["default"], 5)] == ["bad"]
        assert await store.read("bad") == [(0, b"0")]


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "another instance's"])
async def test_a_damaged_piece_of_a_log_names_its_instance(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as store:
        for name in ("bad", "good"):
            await store.commit([change(name, None, name, entries=[(0, bytes(50_000))])])
            await store.send(message(name, "long", bytes(10_000)))
    for pattern in ("*-l-*", "*-m-*"):
        path = only(tmp_path, f"store/i/default/bad/{pattern}")
        wrong = DAMAGES[how](path.read_bytes(), path)
        path.unlink()
        if wrong is not None:
            path.write_bytes(wrong)
    async with opened(tmp_path) as store:
        with pytest.raises(CorruptSnapshotError, match=r"log of bad .*restore it"):
            await store.read("bad")
        with pytest.raises(CorruptSnapshotError, match=r"mail 'long' of bad .*restore it"):
            await store.mail(key("bad"))
        assert await store.read("good") == [(0, bytes(50_000))]
        assert len(await store.mail(key("good"))) == 1


async def test_the_record_of_a_newer_wasman_is_not_touched(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r")])
        path = only(tmp_path, "store/i/*/a/rec")
        newer = seal_object("i/default/a/rec", b'{"v":2}\n')
        path.write_bytes(newer)
        with pytest.raises(UnsupportedStateError, match=r"instance a .*version 2"):
            await store.commit([change("a", ("r", 1))])
        assert path.read_bytes() == newer


async def test_damaged_marks_and_workers_mislead_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r", columns=columns(wake=START))])
        for name in ("q/default/x", "q/default/1~2~3", "q/default/0~default~a~x", "own/w/a", "out/x~y~z", "mail/w/a"):
            path = tmp_path / "store" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"dear reader")
        (tmp_path / "store" / "worker").mkdir()
        (tmp_path / "store" / "worker" / "v").write_bytes(b"dear reader")
        only(tmp_path, "store/q/default/*~*~a~????????????").write_bytes(b"")  # a mark is its name
        assert await store.beat("w", 10, {}) is not None
        assert await store.mailed("w") == []
        assert [claim.stored.key.id for claim in await store.claim("w", ["default"], 5)] == ["a"]


# -- a full disk -----------------------------------------------------------------------------------


class Full(Files):
    """A disk that takes so many operations more."""

    def __init__(self) -> None:
        self.left = 10**9

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device", "somewhere")

    def write(self, path: Path, data: bytes, *, sync: bool) -> None:
        self._count()
        super().write(path, data, sync=sync)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def make_folder(self, path: Path) -> None:
        self._count()
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._count()
        super().sync_folder(path)


async def test_a_disk_that_is_full_at_any_moment_costs_nothing(tmp_path: Path) -> None:
    disk = Full()
    async with opened(tmp_path, files=disk) as store:
        await store.commit([change("peer", None, columns=columns(queue="other"))])
        for n in range(100):
            name = f"i{n}"
            await store.commit([change(name, None, name)])
            one = change(
                name,
                (name, 1),
                columns=columns(wake=START),
                entries=[(0, b"0" * 50_000)],
                blobs=[blob("b")],
                sends=[message("peer", name)],
            )
            disk.left = n
            try:
                result = await store.commit([one])
            except StoreUnavailableError as error:
                assert "store is full: free some space on its disk" in str(error)  # noqa: PT017  it ends at some n
                disk.left = 10**9
                result = await store.commit([one])
                assert result == [Won(2, 0)]
                stored = await store.load(key(name))
                assert stored is not None
                assert (stored.version, stored.columns.wake) == (2, START)
                assert await store.read(name) == [(0, b"0" * 50_000)]
                assert await store.blob(name, "b") == b"data"
                assert name in {letter.id for letter in await store.mail(key("peer"))}
            else:
                disk.left = 10**9
                assert n > 10
                break
        assert await store.beat("w", 10, {}) is not None
        assert len(await store.claim("w", ["default"], 500)) == n + 1


LIMITED = """
import anyio, resource, signal, sys
from pathlib import Path
from tests.store.settings import change, directory, key
from wasman_host.errors import StoreUnavailableError
from wasman_host.store import Won
async def main():
    store = directory(Path(sys.argv[1]))
    await store.open()
    assert await store.commit([change("a", None, "r")]) == [Won(1, 0)]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    one = change("a", ("r", 1), entries=[(0, bytes(5000))])
    try:
        await store.commit([one])
    except StoreUnavailableError as error:
        print(error)
    stored = await store.load(key("a"))
    assert (stored.version, await store.read("r")) == (1, [])
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert await store.commit([one]) == [Won(2, 0)]
    assert await store.read("r") == [(0, bytes(5000))]
    await store.close()
anyio.run(main)
"""


async def test_a_full_disk_in_the_middle_of_a_file(tmp_path: Path) -> None:
    line = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(line, cwd=ROOT, capture_output=True, check=False))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"store is full: free some space on its disk (File too large" in done.stdout
    assert not list((tmp_path / "store").rglob(".*"))


# -- locks -----------------------------------------------------------------------------------------


def lock_of(folder: Path, name: str) -> Path:
    return folder / "store" / "locks" / hashlib.sha256(name.encode()).hexdigest()[:3]


async def test_a_locked_object_is_waited_for_without_stopping_the_loop(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r"), change("b", None)])
        turns = 0
        results: list[Any] = []

        async def tick() -> None:
            nonlocal turns
            while not results:
                turns += 1
                await anyio.sleep(0.005)

        async def commit() -> None:
            results.extend(await store.commit([change("a", ("r", 1))]))

        with lock_of(tmp_path, "i/default/a/rec").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tick)
                tasks.start_soon(commit)
                tasks.start_soon(store.load, key("a"))
                await anyio.sleep(0.2)
                assert turns >= 10
                assert not results
                assert await store.load(key("b")) is not None  # the others go on
                fcntl.flock(lock, fcntl.LOCK_UN)
        assert results == [Won(2, 0)]


async def test_an_object_locked_for_too_long_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path, busy_timeout=0.15) as store:
        await store.commit([change("a", None, "r")])
        with lock_of(tmp_path, "i/default/a/rec").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            start = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"was locked by another process for 0\.15 s"):
                await store.commit([change("a", ("r", 1))])
            assert time.monotonic() - start > 0.14
        assert await store.commit([change("a", ("r", 1))]) == [Won(2, 0)]


async def test_what_a_killed_process_left_unsynced_is_synced_before_it_is_read(tmp_path: Path) -> None:
    synced: list[Path] = []

    class Watched(Files):
        def sync_folder(self, path: Path) -> None:
            synced.append(path)
            super().sync_folder(path)

    async with opened(tmp_path, files=Watched()) as store:
        await store.commit([change("a", None, "r")])
        lock = lock_of(tmp_path, "i/default/a/rec")
        assert lock.read_bytes() == NOTHING
        lock.write_bytes(NOTHING + b"i/default/a\n")  # between the renaming and the sync
        synced.clear()
        assert await store.load(key("a")) is not None
        assert synced == [tmp_path / "store" / "i" / "default" / "a"]
        for nonsense in (b"../../x\n", b"\0\xff" * 50, b"no/where\n"):
            lock.write_bytes(NOTHING + nonsense)
            assert await store.load(key("a")) is not None
        assert len(await store.commit([change("a", ("r", 1))])) == 1
        assert lock.read_bytes() == NOTHING


# -- unknown outcomes ------------------------------------------------------------------------------


class Torn(Files):
    """A disk whose next sync of an instance's folder fails: the change is there, and nobody knows."""

    def __init__(self) -> None:
        self.armed = ""

    def sync_folder(self, path: Path) -> None:
        if self.armed and self.armed in path.as_posix():
            self.armed = ""
            raise OSError(5, "Input/output error", str(path))
        super().sync_folder(path)


async def test_an_unknown_outcome_is_resolved_by_the_nonce(tmp_path: Path) -> None:
    disk = Torn()
    async with opened(tmp_path, files=disk) as store:
        await store.commit([change("peer", None), change("a", None, "r")])

        async def tear(what: str, call: Callable[[], Any]) -> Any:
            disk.armed = what
            with pytest.raises(StoreUnavailableError, match="cannot be read or written"):
                await call()
            assert not disk.armed
            return await call()

        step = change("a", ("r", 1), entries=[(0, b"0")], sends=[message("peer", "m")])
        assert await tear("default/a", lambda: store.commit([step])) == [Won(2, 0)]
        assert await store.read("r") == [(0, b"0")]
        assert [letter.id for letter in await store.mail(key("peer"))] == ["m"]
        step = change("a", ("r", 2), entries=[(1, b"1")], sends=[message("peer", "m2")])
        assert await tear("default/peer", lambda: store.commit([step])) == [Won(3, 0)]
        assert [letter.id for letter in await store.mail(key("peer"))] == ["m", "m2"]
        assert await tear("default/peer", lambda: store.send(message("peer", "m3"))) is Sent.DUPLICATE
        create = change("new", None, "n", columns=columns(wake=START, queue="q"))
        assert await tear("default/new", lambda: store.commit([create])) == [Won(1, 0)]
        assert await tear("store/worker", lambda: store.beat("w", 10, {})) is not None
        assert await tear("store/worker", lambda: store.beat("w", 10, {})) is not None
        claims = await tear("default/new", lambda: store.claim("w", ["q"], 2))
        assert [(claim.stored.key.id, claim.stored.version, claim.takeover) for claim in claims] == [("new", 2, False)]
        last = deletion("new", ("n", 2))
        assert await tear("default/new", lambda: store.commit([last])) in ([Won(0, 0)], [Lost(None)])
        assert await store.load(key("new")) is None
        assert await store.commit([change("new", None, "n2")]) == [Won(1, 0)]


class Slow(Files):
    """A disk that takes its time to sync an instance's folder, when it is told to."""

    delay = 0.0

    def sync_folder(self, path: Path) -> None:
        if "default/i" in path.as_posix():
            time.sleep(self.delay)
        super().sync_folder(path)


async def test_a_claim_that_nobody_waited_for_is_given_to_the_next_call_once(tmp_path: Path) -> None:
    disk = Slow()
    async with opened(tmp_path, files=disk) as store:
        for n in range(12):
            await store.commit([change(f"i{n}", None, columns=columns(wake=START))])
        assert await store.beat("w", 10, {}) is not None
        disk.delay = 0.05
        taken: list[str] = []

        async def take(limit: int) -> None:
            taken.extend(claim.stored.key.id for claim in await store.claim("w", ["default"], limit))

        with anyio.move_on_after(0.03):
            await take(3)
        for _ in range(6):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take, 2)
                await anyio.sleep(0.02)
                tasks.start_soon(take, 2)
        assert sorted(taken) == sorted(f"i{n}" for n in range(12))


async def test_what_a_dead_sender_has_decided_arrives(tmp_path: Path) -> None:
    disk = Torn()
    async with opened(tmp_path, files=disk) as store:
        await store.commit([change("peer", None, columns=columns(queue="other")), change("a", None, "r")])
        stored = await store.load(key("a"))
        assert stored is not None
        disk.armed = "default/peer"
        end = change(
            "a",
            ("r", 1),
            columns=closed(stored),
            sends=[message("peer", "done")],
            creates=[change("child", None, "c", columns=columns(wake=START))],
        )
        with pytest.raises(StoreUnavailableError):
            await store.commit([end])  # and here its process dies
    async with opened(tmp_path) as other:
        assert await other.beat("w", 10, {}) is not None
        claimed = await other.claim("w", ["default"], 5)
        assert [claim.stored.key.id for claim in claimed] == ["child"]
        assert [letter.id for letter in await other.mail(key("peer"))] == ["done"]
        assert not list((tmp_path / "store" / "out").iterdir())


async def test_marks_that_nobody_needs_go_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, "r", columns=columns(wake=START))])
        orphan = tmp_path / "store" / "q" / "default" / "00000000000000000000~default~a~ffffffffffff"
        orphan.write_bytes(NOTHING)
        assert await store.beat("w", 10, {}) is not None
        assert len(await store.claim("w", ["default"], 5)) == 1
        assert await store.claim("w", ["default"], 5) == []
        assert orphan.exists()  # somebody may be about to need it
        monkeypatch.setattr(objects, "_STALE", -1.0)
        assert await store.claim("w", ["default"], 5) == []
        assert not orphan.exists()


# -- more than one process -------------------------------------------------------------------------


def worker_files(folder: Path) -> list[str]:
    return sorted(path.read_text().split()[1] for path in (folder / "store" / "workers").iterdir())


async def test_the_death_of_a_worker_is_seen_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([change("a", None, columns=columns(wake=START))])
        assert await store.beat("survivor", 600, {}) is not None
        with racer(tmp_path / "store", "victim", "hold") as process:
            assert json.loads(line_of(process)) == ["a"]
            assert await store.claim("survivor", ["default"], 9) == []
            process.send_signal(signal.SIGSTOP)  # it stands still, but its lease is good
            assert await store.claim("survivor", ["default"], 9) == []
            assert worker_files(tmp_path) == ["survivor", "victim"]
            process.kill()
            process.wait()
            [claim] = await store.claim("survivor", ["default"], 9)
        assert (claim.takeover, claim.stored.columns.takeovers, claim.stored.version) == (True, 1, 3)
        assert worker_files(tmp_path) == ["survivor"]
        assert [path.name for path in (tmp_path / "store" / "worker").iterdir()] == ["survivor"]


async def test_a_stopped_worker_is_taken_over_from_when_its_lease_ends(tmp_path: Path) -> None:
    async with opened(tmp_path, clock=lambda: time.time_ns() + 601 * SECOND) as store:
        await store.commit([change("a", None, columns=columns(wake=START))])
        with racer(tmp_path / "store", "victim", "hold") as process:
            assert json.loads(line_of(process)) == ["a"]
            assert await store.beat("survivor", 600, {}) is not None
            [claim] = await store.claim("survivor", ["default"], 9)
            assert claim.takeover


async def test_a_store_that_closes_leaves_its_workers_dead(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with opened(tmp_path) as other:
            await store.commit([change("a", None, columns=columns(wake=START))])
            assert await other.beat("w", 600, {}) is not None
            assert len(await other.claim("w", ["default"], 9)) == 1
        assert await store.beat("v", 600, {}) is not None
        [claim] = await store.claim("v", ["default"], 9)
        assert claim.takeover


async def test_a_worker_id_belongs_to_one_and_goes_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        assert await store.beat("../w", 600, {"host": "h"}) is not None
        assert await other.beat("../w", 600, {}) is None  # the id is somebody else's
        assert await store.beat("../w", 600, {}) is not None
        await store.leave("../w")
        assert worker_files(tmp_path) == []
        assert not list((tmp_path / "store" / "worker").iterdir())


async def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("the victim is a process of its own")
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  shown when the test fails
    chance = random.Random(seed)
    mailed = 0
    for attempt in range(6):
        with racer(tmp_path / "store", f"v{attempt}", "commit") as process:
            said = line_of(process)
            assert said
            await anyio.sleep(chance.uniform(0, 0.3))
            process.kill()
            assert process.stdout is not None
            told = int([said, *process.stdout.readlines()][-1].split()[0])
        async with opened(tmp_path) as store:
            assert await store.beat(f"w{attempt}", 10, {}) is not None
            await store.claim(f"w{attempt}", [], 1)  # sends what the victim could not send any more
            for n in range(3):
                name = f"v{attempt}-{n}"
                stored = await store.load(key(name))
                assert stored is not None
                # Members of a group are written side by side: the last group may have reached some of them.
                assert stored.version in {told, told + 1}, f"{told} was said to be durable"
                assert stored.record == (str(stored.version - 1).encode() if stored.version > 1 else b"record")
                numbers = range(1, stored.version)
                assert await store.read(name) == [(number, str(number).encode()) for number in numbers]
                for number in numbers:
                    filler = random.Random(number)
                    size = filler.choice([10, 10, 10_000])
                    data = await store.blob(name, str(number))
                    assert data is not None
                    assert len(data) == size
                assert await store.blob(name, str(stored.version)) is None
                mailed += stored.version - 1
            peer = await store.load(key("peer"))
            assert peer is not None
            assert peer.mail == len(await store.mail(key("peer"))) == mailed


# -- urls ------------------------------------------------------------------------------------------


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = {
        "file://sub/store": tmp_path / "sub" / "store",
        f"file://{tmp_path}/store": tmp_path / "store",
        "./store": tmp_path / "store",
        f"{tmp_path}/store": tmp_path / "store",
        "file://a ?#%41": tmp_path / "a ?#%41",
    }
    stores = {url: open_store(url) for url in urls}
    monkeypatch.chdir("/")
    for url, path in urls.items():
        store = stores[url]
        assert isinstance(store, ObjectStore)
        assert isinstance(store.backend, DirectoryBackend)
        assert store.backend.path == path_of(store) == path.resolve()
    assert path_of(open_store("memory://")) is None


@pytest.mark.parametrize("url", ["file:", "file://", "file:/x", "store", "./store.db", "s3://bucket", "file://a\0b"])
def test_what_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"names no store: use .*file:///absolute/folder"):
        open_store(url)


@pytest.mark.parametrize("deleted", [False, True])
async def test_an_instance_that_is_made_between_two_looks_is_not_taken_for_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, deleted: bool
) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        get, looks = store.backend.get, 0

        async def overtaken(name: str) -> object:
            nonlocal looks
            found, looks = await get(name), looks + 1
            if looks == 1:
                assert found is None
                assert await other.commit([change("w", None)]) == [Won(1, 0)]
            elif looks == 2 and deleted:
                assert await other.commit([deletion("w", ("run-default-w", 1))]) == [Won(0, 0)]
                found = await get(name)
            return found

        monkeypatch.setattr(store.backend, "get", overtaken)
        [outcome] = await store.commit([change("w", None, "mine")])
        assert outcome == Won(1, 0) if deleted else isinstance(outcome, Lost)
