"""What is particular to the store in a file: the file itself, its locks, and what a killed process leaves."""

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from tests.store.settings import SECOND, START, blob, change, columns, database, deletion, key, message, one_step
from wasman_host.errors import (
    CorruptSnapshotError,
    InvalidArgumentError,
    StoreError,
    StoreSchemaError,
    StoreUnavailableError,
)
from wasman_host.store import (
    Filter,
    Key,
    Lost,
    MemoryStore,
    Sent,
    SqliteStore,
    Status,
    Won,
    group,
    open_store,
    sqlite,
    sqlite_file,
    statements,
)
from wasman_host.store.sqlite_file import APPLICATION_ID, SCHEMA
from wasman_host.store.sqlite_log import unpacked
from wasman_host.wake import Answer, call_soon

ROOT = Path(__file__).resolve().parent.parent.parent


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fails_to_open(path: Path, error: type[StoreError], says: str, **options: Any) -> None:
    store = SqliteStore(path, **options)
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


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


# -- the file --------------------------------------------------------------------------------------


async def test_a_commit_is_synced_and_only_this_user_reads_it(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        await store.commit([change("a", None)])
        pragmas = {
            name: store._connection.execute(f"pragma {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "application_id", "user_version", "busy_timeout")
        }
        assert pragmas == {
            "journal_mode": "wal",
            "synchronous": 2,
            "application_id": APPLICATION_ID,
            "user_version": SCHEMA,
            "busy_timeout": 0,
        }
        files = files_in(tmp_path)
        assert [file.name for file in files] == ["store.db", "store.db-shm", "store.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    async with opened(database(tmp_path)) as store:
        assert await store.load(key("a")) is not None


@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="counts system calls with strace")
async def test_no_answer_before_the_sync(tmp_path: Path, anyio_backend_name: str) -> None:
    """One write of the log, one sync and only then the answer, for each of ten commits in turn."""
    if anyio_backend_name == "trio":
        pytest.skip("the same calls")
    trace = tmp_path / "trace"
    program = """
import anyio, os, sys
from tests.store.settings import change
from wasman_host.store import SqliteStore
async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    await store.commit([change("a", None, "r")])
    os.write(1, b"start")
    for version in range(1, 11):
        await store.commit([change("a", ("r", version), entries=[(version, b"x")])])
        os.write(1, b"answer")
    os.write(1, b"end")
    os._exit(0)
anyio.run(main)
"""
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=write,fdatasync,fsync"]
    line = [*strace, sys.executable, "-c", program, str(database(tmp_path))]
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(line, cwd=ROOT, capture_output=True, check=False))
    if b"ptrace" in done.stderr or b"PTRACE" in done.stderr:
        pytest.skip("this machine forbids tracing")
    assert done.returncode == 0, done.stderr
    text = trace.read_text().split('"start"')[1].split('"end"')[0]
    calls = ["sync" if "sync(" in one else "answer" for one in text.splitlines() if "sync(" in one or '"answer"' in one]
    assert calls == ["sync", "answer"] * 10


async def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = database(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create table t (x)")
    before = path.read_bytes()
    await fails_to_open(path, StoreSchemaError, "another program")
    assert path.read_bytes() == before
    path.write_bytes(b"not a database, but a file of some length" * 100)
    await fails_to_open(path, StoreSchemaError, "another program")
    assert path.read_bytes().startswith(b"not a database")


async def test_an_empty_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(database(tmp_path))) as db:
        db.execute("pragma application_id = 7")
    await fails_to_open(database(tmp_path), StoreSchemaError, "another program")


async def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma user_version = {SCHEMA + 1}")
    await fails_to_open(path, StoreSchemaError, "newer wasman has made it, so upgrade")


def as_schema_2(path: Path) -> None:
    """Make the store what the version before would have made it: an entry a row, none with the instance."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        rows = db.execute("select run, entries from log union all select run_number, fresh from instance").fetchall()
        db.execute("drop table log")
        db.execute("alter table instance drop column fresh")
        db.execute(
            "create table log (number integer primary key, run integer not null, n integer not null, "
            "entry blob not null, unique (run, n)) strict"
        )
        entries = [(run, n, entry) for run, data in rows for n, entry in unpacked(data, run)]
        db.executemany("insert into log (run, n, entry) values (?, ?, ?)", entries)
        db.execute("pragma user_version = 2")


async def test_a_store_of_the_version_before_goes_on(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        await store.commit([change(name, None, name) for name in ("a", "b")])
        for version in range(1, 10):
            await store.commit([one_step("a", "a", version)])
            await store.commit([one_step("a", "a", version + 100)])  # it loses
        before = await store.load(key("a")), await store.read("a")
        assert len(before[1]) == 9
    as_schema_2(path)
    await fails_to_open(path, StoreSchemaError, "brought up to that when it is opened to be written to", read_only=True)
    stores = [SqliteStore(path) for _ in range(5)]
    async with anyio.create_task_group() as tasks:
        for one in stores:
            tasks.start_soon(one.open)
    for one in stores:
        assert (await one.load(key("a")), await one.read("a")) == before
    for version in range(10, 20):
        assert await stores[version % 3].commit([one_step("a", "a", version)]) == [Won(version + 1, 0)]
    assert [n for n, _ in await stores[4].read("a")] == list(range(1, 20))
    for one in stores:
        await one.close()


async def test_a_failing_migration_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        await store.commit([change("a", None, "a", entries=[(0, b"0"), (1, b"1")])])
    as_schema_2(path)

    def fails(_: object) -> bytes:
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "packed", fails)
        store = SqliteStore(path)
        with pytest.raises(sqlite3.OperationalError):
            await store.open()
        await store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma user_version").fetchone() == (2,)
        assert db.execute("select n, entry from log").fetchall() == [(0, b"0"), (1, b"1")]
    async with opened(path) as store:
        assert await store.read("a") == [(0, b"0"), (1, b"1")]


async def test_a_store_that_is_opened_again_knows_nothing_of_the_file_before(tmp_path: Path) -> None:
    path = database(tmp_path)
    store = SqliteStore(path)
    for name in ("a", "b"):  # each is the first one in its file
        await store.open()
        await store.commit([change(name, None, name)])
        for version in (1, 2, 3):
            assert await store.commit([one_step(name, name, version)]) == [Won(version + 1, 0)]
        if name == "b":
            assert await store.commit([one_step("a", "a", 4)]) == [Lost(None)]
            assert [n for n, _ in await store.read("b")] == [1, 2, 3]
        await store.close()
        for file in files_in(tmp_path):
            if file.is_file():
                file.unlink()


async def test_where_there_is_no_folder(tmp_path: Path) -> None:
    await fails_to_open(tmp_path / "missing" / "store.db", StoreUnavailableError, "folder must exist")


async def test_a_folder_is_no_store(tmp_path: Path) -> None:
    await fails_to_open(tmp_path, StoreUnavailableError, "must be a file")


async def test_many_make_one_store_together(tmp_path: Path) -> None:
    stores = [SqliteStore(database(tmp_path)) for _ in range(5)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.open)
    for n, store in enumerate(stores):
        assert await store.commit([change(f"i{n}", None)]) == [Won(1, 0)]
    for store in stores:
        assert await store.count(Filter()) == 5
        await store.close()


async def test_a_path_with_signs_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a ?mode=memory#%41ä.db"
    async with opened(path) as store:
        await store.commit([change("a", None)])
    assert path.stat().st_size > 0


async def test_a_read_only_store_is_read_and_refuses_to_write(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as writer, opened(path, read_only=True) as store:
        await writer.commit([change("a", None)])
        assert await store.load(key("a")) is not None
        writes: list[Callable[[], Any]] = [
            lambda: store.commit([change("b", None)]),
            lambda: store.send(message("a", "m")),
            lambda: store.beat("w", 1, {}),
            lambda: store.leave("w"),
            lambda: store.put_module("d", b""),
        ]
        for write in writes:
            with pytest.raises(StoreUnavailableError, match=r"store\.db is read-only: make the file"):
                await write()
        assert await writer.count(Filter()) == 1
    await fails_to_open(tmp_path / "absent.db", StoreUnavailableError, "cannot be opened", read_only=True)


async def test_a_full_store_says_so_and_hurts_only_what_does_not_fit(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        await store.commit([change("a", None, "r")])
        pages = store._connection.execute("pragma page_count").fetchone()[0]
        store._connection.execute(f"pragma max_page_count = {pages + 30}")
        results: list[Any] = []

        async def small(n: int) -> None:
            results.extend(await store.commit([change(f"small-{n}", None)]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(small, 1)
            tasks.start_soon(small, 2)
            with pytest.raises(StoreUnavailableError, match=r"store\.db is full: free some space"):
                await store.commit([change("a", ("r", 1), blobs=[blob("big", bytes(1_000_000))])])
        assert results == [Won(1, 0), Won(1, 0)]
        stored = await store.load(key("a"))
        assert stored is not None
        assert stored.version == 1
        store._connection.execute("pragma max_page_count = 1000000")
        assert await store.commit([change("a", ("r", 1), blobs=[blob("big", bytes(1_000_000))])]) == [Won(2, 0)]


async def test_a_disk_that_takes_no_more_at_the_commit_itself(tmp_path: Path) -> None:
    """The limit makes the kernel refuse the write that COMMIT does."""
    async with opened(database(tmp_path)) as store:
        await store.commit([change("a", None, "r")])
        size = files_in(tmp_path)[2].stat().st_size  # of the log
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        one = change("a", ("r", 1), entries=[(0, b"0")])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(StoreUnavailableError, match=r"store\.db (cannot be read or written|is full)"):
                await store.commit([one])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        stored = await store.load(key("a"))
        assert stored is not None
        assert stored.version == 1
        assert await store.read("r") == []
        assert await store.commit([one]) == [Won(2, 0)]
        assert await store.read("r") == [(0, b"0")]


async def test_a_deleted_or_replaced_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_LOOK", 0.0)  # else it is looked for 50 times a second
    path = database(tmp_path)
    async with opened(path) as store:
        await store.commit([change("a", None, "r")])
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
            await store.commit([change("a", ("r", 1))])
        path.write_bytes(b"")
        with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
            await store.commit([change("a", ("r", 1))])
        (tmp_path / "moved.db").rename(path)
        assert await store.commit([change("a", ("r", 1))]) == [Won(2, 0)]


async def test_damaged_columns_are_damage_and_hide_no_other_instance(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        await store.commit([change(name, None, columns=columns(wake=START)) for name in ("a", "b", "c")])
        store._connection.execute("update instance set attributes = '{' where id = 'a'")
        store._connection.execute("update instance set status = 'funning' where id = 'b'")
        for name in ("a", "b"):
            with pytest.raises(CorruptSnapshotError, match=f"columns of {name}"):
                await store.load(key(name))
        rows = (await store.list(Filter())).rows
        assert {row.key.id: row.columns.status for row in rows} == {
            "a": Status.BLOCKED,
            "b": Status.BLOCKED,
            "c": Status.RUNNING,
        }
        assert await store.beat("w", 10, {}) is not None
        assert [claim.stored.key.id for claim in await store.claim("w", ["default"], 1)] == ["c"]


async def load_all(path: Path) -> None:
    async with opened(path) as store:
        for n in range(100):
            await store.load(key(f"i{n}"))


async def test_a_damaged_file_is_damage(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        await store.commit([change(f"i{n}", None, record=bytes(3000)) for n in range(100)])
    whole = path.read_bytes()
    for damaged in (whole[:4096] + b"\xff" * (len(whole) - 4096), whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptSnapshotError, match=r"store\.db is damaged"):
            await load_all(path)


async def test_a_deletion_leaves_no_row_in_any_table(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        db = store._connection
        tables = [name for (name,) in db.execute("select name from sqlite_schema where type = 'table'").fetchall()]
        assert {"instance", "run", "log", "blob", "mail", "attribute"} < set(tables)
        full: dict[str, Any] = {"columns": columns(attributes={"k": "v"}), "blobs": [blob("b")]}
        await store.commit([change("a", None, "r1", entries=[(0, b"0")], **full)])
        await store.commit([change("a", ("r1", 1), "r2", entries=[(0, b"0")], **full)])
        assert await store.send(message("a", "m1")) is Sent.ACCEPTED
        assert await store.send(message("a", "m2")) is Sent.ACCEPTED
        await store.commit([change("a", ("r2", 2), consumes=["m1"])])
        # In one group with an entry that is still to be written.
        last = [change("a", ("r2", 3), entries=[(1, b"1")]), deletion("a", ("r2", 4))]
        assert await store.commit(last) == [Won(4, 1), Won(0, 0)]
        counts = {table: db.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}  # noqa: S608
        assert {table for table, count in counts.items() if count} == {"sqlite_sequence"}


# -- queries use their indexes ---------------------------------------------------------------------


async def test_no_claim_reads_the_whole_table(tmp_path: Path) -> None:
    queries = {
        statements.DUE: ("q", 1, 1),
        statements.DUE_BY_MAIL: ("q", 1),
        statements.EXPIRED: ("q", 1, 1),
        statements.OWNED: ("w",),
        statements.OWNERS: (),
        statements.MAILED: ("w",),
        statements.FORGET: (1,),
        statements.STATES: ("[]",),
        statements.REMAINS: ("t", "i", "t", "i"),
        statements.READ: ("r", 0, 1, "r"),
        statements.IN_ROW: (1, 1, 1),
        statements.ACROSS: (1, 1, 1),
        statements.CUT_ENTRIES: (1, 1, 1),
        statements.LOAD: ("t", "i"),
        statements.MAIL: ("t", "i"),
    }
    async with opened(database(tmp_path)) as store:
        for query, parameters in queries.items():
            plan = [row[3] for row in store._connection.execute("explain query plan " + query, parameters)]
            scans = [
                step for step in plan if step.startswith("SCAN") and step.split()[1] in {"instance", "log", "mail", "i"}
            ]
            assert not scans, (query, plan)
            if "order by" in query and query is not statements.MAIL:
                assert not any("TEMP B-TREE" in step for step in plan), (query, plan)


# -- locks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "indexes", "sorts"),
    [
        (Filter(), {"instance_created"}, False),
        (Filter(status=frozenset({Status.FAILED})), {"instance_status"}, False),
        (Filter(status=frozenset({Status.FAILED}), workflow="flow"), {"instance_status"}, False),
        (Filter(workflow="flow"), {"instance_workflow"}, False),
        (Filter(created_from=1, created_to=5), {"instance_created"}, False),
        (Filter(parent="a"), {"instance_parent"}, True),
        (Filter(id_prefix="a"), {"sqlite_autoindex_instance_1"}, True),
        (Filter(attributes={"k": "v"}), {"sqlite_autoindex_instance_1"}, True),
    ],
)
async def test_a_page_goes_along_an_index_and_sorts_only_what_is_few(
    tmp_path: Path, where: Filter, indexes: set[str], *, sorts: bool
) -> None:
    async with opened(database(tmp_path)) as store:
        for n in range(5):
            await store.commit([change(f"a{n}", None)])
        db = store._connection
        ran: list[str] = []
        db.set_trace_callback(ran.append)
        await store.list(where, 2)
        db.set_trace_callback(None)
        plan = [row[3] for row in db.execute(f"explain query plan {ran[-1]}")]
        found = {words[words.index("INDEX") + 1] for line in plan if "instance " in line for words in [line.split()]}
        assert found == indexes, plan
        assert any("TEMP B-TREE" in line for line in plan) == sorts, plan


async def test_a_locked_store_is_waited_for_without_stopping_the_loop(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        await store.commit([change("a", None, "r")])
        turns = 0
        results: list[Any] = []

        async def tick() -> None:
            nonlocal turns
            while not results:
                turns += 1
                await anyio.sleep(0.005)

        async def commit(n: int) -> None:
            results.extend(await store.commit([change(f"i{n}", None)]))

        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("begin immediate")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tick)
                for n in range(3):
                    tasks.start_soon(commit, n)
                await anyio.sleep(0.2)
                assert turns >= 10
                assert not results
                assert await store.load(key("a")) is not None  # reading goes on
                db.execute("rollback")
        assert results == [Won(1, 0)] * 3


def test_a_locked_store_is_waited_for_on_a_bare_asyncio_loop(tmp_path: Path) -> None:
    """Without anyio.run, and with trio imported: a callback has no task by which the loop could be told."""
    assert "trio" in sys.modules or pytest.importorskip("trio")
    path = database(tmp_path)

    async def main() -> None:
        async with opened(path) as store:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("begin immediate")
                asyncio.get_running_loop().call_later(0.05, db.execute, "rollback")
                assert await store.commit([change("a", None)]) == [Won(1, 0)]

    asyncio.run(main())


async def test_a_store_locked_for_too_long_says_so(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path, busy_timeout=0.15) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("begin immediate")
            start = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"store\.db was locked by another process for 0\.15 s"):
                await store.commit([change("a", None)])
            assert 0.14 < time.monotonic() - start < 2
            db.execute("rollback")
        assert await store.commit([change("a", None)]) == [Won(1, 0)]


async def test_who_closes_a_locked_store_gets_its_answer(tmp_path: Path) -> None:
    path = database(tmp_path)
    store = SqliteStore(path)
    await store.open()
    failed: list[str] = []

    async def commit() -> None:
        with pytest.raises(StoreUnavailableError) as raised:
            await store.commit([change("a", None)])
        failed.append(str(raised.value))

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("begin immediate")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commit)
            await anyio.sleep(0.05)
            await store.close()
        db.execute("rollback")
    assert len(failed) == 1
    await anyio.sleep(0.05)  # a late retry finds it closed


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    store = SqliteStore(database(tmp_path))
    await store.open()
    results: list[Any] = []

    async def commit() -> None:
        results.extend(await store.commit([change("a", None)]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit)
        while not store._group._pending and not results:
            await anyio.lowlevel.checkpoint()
        await store.close()
    assert results == [Won(1, 0)]
    async with opened(database(tmp_path)) as again:
        assert await again.load(key("a")) is not None


# -- one that goes on alone ------------------------------------------------------------------------


class Commits:
    """How often a store has committed: by that statement, or by one that is a transaction of its own."""

    def __init__(self, store: SqliteStore) -> None:
        self.count = 0
        self._db = store._connection
        self._db.set_trace_callback(self._heard)

    def _heard(self, statement: str) -> None:
        self.count += statement == "commit" or (statement.startswith("update") and not self._db.in_transaction)


async def test_who_goes_on_alone_waits_for_no_turn_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Callable[[], None]] = []

    def counted(callback: Callable[[], None]) -> None:
        turns.append(callback)
        call_soon(callback)

    monkeypatch.setattr(group, "call_soon", counted)
    async with opened(database(tmp_path)) as store:
        await store.commit([change("a", None, "r")])
        await store.commit([change("b", None, "q")])
        turns.clear()
        for version in range(1, 20):
            assert await store.commit([one_step("a", "r", version)]) == [Won(version + 1, 0)]
        assert len(turns) == 1  # for the first one, which nobody knew to be alone
        assert len(await store.read("r")) == 19
        # Whoever comes along is waited for again.
        assert await store.commit([one_step("b", "q", 1)]) == [Won(2, 0)]
        assert await store.commit([one_step("a", "r", 20)]) == [Won(21, 0)]
        assert len(turns) == 3


async def test_others_share_the_transactions_of_one_that_was_alone(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        for name in ("a", "b", "c"):
            await store.commit([change(name, None, name)])
        commits = Commits(store)

        async def steps(name: str, first: int, count: int) -> None:
            for version in range(first, first + count):
                assert await store.commit([one_step(name, name, version)]) == [Won(version + 1, 0)]

        await steps("a", 1, 20)
        assert commits.count == 20
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(steps, "a", 21, 20)
            tasks.start_soon(steps, "b", 1, 20)
            tasks.start_soon(steps, "c", 1, 20)
        assert commits.count <= 20 + 30  # 20 if they had begun in step, and 60 if none had waited for another
        # It joins who came before it, too.
        await steps("a", 41, 2)
        before = commits.count
        other: Answer[Any] = store._write(one_step("b", "b", 21))
        await steps("a", 43, 1)
        assert await other.wait() == Won(22, 0)
        assert commits.count == before + 1


async def test_one_that_goes_on_alone_lets_others_go_on(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        await store.commit([change("a", None, "r")])
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            await store.commit([one_step("a", "r", 1)])
            turns = 0
            for version in range(2, 22):
                await store.commit([one_step("a", "r", version)])
            assert turns >= 10
            tasks.cancel_scope.cancel()


async def test_one_that_goes_on_alone_waits_for_a_lock_and_loses_to_another_process(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store, opened(path) as other:
        await store.commit([change("a", None, "r")])
        await store.commit([one_step("a", "r", 1)])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("begin immediate")
            results: list[Any] = []

            async def step() -> None:
                results.extend(await store.commit([one_step("a", "r", 2)]))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)
                await anyio.sleep(0.05)
                assert not results
                db.execute("rollback")
        assert results == [Won(3, 0)]
        assert await other.commit([one_step("a", "r", 3)]) == [Won(4, 0)]
        assert await store.commit([one_step("a", "r", 3)]) == [Lost(("r", 4))]
        assert len(await store.read("r")) == 3
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.commit([one_step("a", "r", 4)])


# -- without assertions ----------------------------------------------------------------------------

WITHOUT_ASSERTIONS = """
import asyncio, sys
from pathlib import Path
from tests.store.settings import change, columns, key, message, one_step
from wasman_host.store import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    await store.beat("w", 60, {})
    await store.commit([change("a", None, "a", columns=columns(queue="q", wake=1))])
    await store.send(message("a", "m"))
    [claim] = await store.claim("w", ["q"], 1)
    await store.commit([change("a", ("a", 2), consumes=["m"])])
    store._rows.clear()  # as in a process that has not written it: the step is looked up
    await store.commit([one_step("a", "a", 3)])
    found = await store.load(key("a"))
    print(claim.stored.columns.owner, found.version, found.mail, await store.mail(key("a")), await store.read("a"))
    await store.close()

asyncio.run(main())
"""


@pytest.mark.once
def test_what_is_asserted_is_done_without_assertions(tmp_path: Path) -> None:
    line = [sys.executable, "-O", "-c", WITHOUT_ASSERTIONS, str(database(tmp_path))]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "w 4 0 [] [(3, b'entry 3')]\n", done.stderr


# -- unknown outcomes ------------------------------------------------------------------------------


class Torn:
    """A cursor whose next commit fails, which a statement outside of a transaction is too: when on disk, or before."""

    def __init__(self, db: sqlite3.Cursor, *, landed: bool) -> None:
        self.db = db
        self.landed = landed
        self.torn = 0

    def execute(self, query: str, *parameters: Any) -> Any:
        alone = query.startswith("update") and not self.db.connection.in_transaction
        if (query == "commit" or alone) and not self.torn:
            self.torn += 1
            if self.landed:
                self.db.execute(query, *parameters)
            elif not alone:
                self.db.execute("rollback")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return self.db.execute(query, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


@pytest.mark.parametrize("landed", [True, False])
async def test_an_unknown_outcome_is_resolved_by_the_nonce(tmp_path: Path, *, landed: bool) -> None:
    async with opened(database(tmp_path)) as store:
        await store.commit([change("peer", None), change("a", None, "r")])
        cursor = store._cursor

        async def tear(call: Callable[[], Any]) -> Any:
            torn = Torn(cursor, landed=landed)
            store._cursor = cast("sqlite3.Cursor", torn)
            try:
                result = await call()
                assert torn.torn == 1
            finally:
                store._cursor = cursor
            return result

        step = change("a", ("r", 1), entries=[(0, b"0")], sends=[message("peer", "m")])
        assert await tear(lambda: store.commit([step, change("b", None, "b"), change("c", ("x", 1))])) == [
            Won(2, 0),
            Won(1, 0),
            Lost(None),
        ]
        assert await store.read("r") == [(0, b"0")]
        assert [letter.id for letter in await store.mail(key("peer"))] == ["m"]
        sent = await tear(lambda: store.send(message("peer", "m2")))
        assert sent is (Sent.DUPLICATE if landed else Sent.ACCEPTED)
        peer = await store.load(key("peer"))
        assert peer is not None
        assert peer.mail == 2
        assert await tear(lambda: store.beat("w", 10, {})) is not None
        assert await store.beat("w", 10, {}) is not None
        assert await store.commit([one_step("a", "r", 2)]) == [Won(3, 0)]
        for version in (3, 4):  # it goes on alone
            assert await tear(partial(store.commit, [one_step("a", "r", version)])) == [Won(version + 1, 0)]
        assert await store.commit([one_step("a", "r", 5)]) == [Won(6, 0)]
        assert dict(await store.read("r")) == {0: b"0", **{n: b"entry %d" % n for n in range(2, 6)}}
        due, dead = columns(queue="q", wake=START), columns(queue="q", owner="dead")
        await store.commit([change("due", None, columns=due), change("dead", None, columns=dead)])
        claims = await tear(lambda: store.claim("w", ["q"], 2))
        assert sorted((claim.stored.key.id, claim.stored.version, claim.takeover) for claim in claims) == [
            ("dead", 2, True),
            ("due", 2, False),
        ]


# -- workers ---------------------------------------------------------------------------------------


def lock_files(path: Path) -> list[Path]:
    return files_in(path.with_name(path.name + "-workers"))


async def test_the_death_of_a_worker_is_seen_at_once(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        await store.commit([change("a", None, columns=columns(wake=START))])
        assert await store.beat("survivor", 600, {}) is not None
        with racer(path, "victim", "hold") as process:
            assert json.loads(line_of(process)) == ["a"]
            assert await store.claim("survivor", ["default"], 9) == []
            process.send_signal(signal.SIGSTOP)  # it stands still, but its lease is good
            assert await store.claim("survivor", ["default"], 9) == []
            assert len(lock_files(path)) == 2
            process.kill()
            process.wait()
            [claim] = await store.claim("survivor", ["default"], 9)
        assert (claim.takeover, claim.stored.columns.takeovers, claim.stored.version) == (True, 1, 3)
        assert [row[0] for row in store._connection.execute("select id from worker")] == ["survivor"]
        assert len(lock_files(path)) == 1


async def test_a_stopped_worker_is_taken_over_from_when_its_lease_ends(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path, clock=lambda: time.time_ns() + 601 * SECOND) as store:
        await store.commit([change("a", None, columns=columns(wake=START))])
        with racer(path, "victim", "hold") as process:
            assert json.loads(line_of(process)) == ["a"]
            assert await store.beat("survivor", 600, {}) is not None
            [claim] = await store.claim("survivor", ["default"], 9)
            assert claim.takeover


async def test_a_store_that_closes_leaves_its_workers_dead(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        async with opened(path) as other:
            await store.commit([change("a", None, columns=columns(wake=START))])
            assert await other.beat("w", 600, {}) is not None
            assert len(await other.claim("w", ["default"], 9)) == 1
        assert await store.beat("v", 600, {}) is not None
        [claim] = await store.claim("v", ["default"], 9)
        assert claim.takeover


async def test_lock_files_are_private_and_go_with_their_workers(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store, opened(path) as other:
        assert await store.beat("../w", 600, {"host": "h"}) is not None
        [file] = lock_files(path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert file.read_text() == f"{os.getpid()} ../w\n"
        assert await other.beat("../w", 600, {}) is None  # the id is somebody else's
        assert await store.beat("../w", 600, {}) is not None
        await store.leave("../w")
        assert lock_files(path) == []
        assert store._connection.execute("select * from worker").fetchall() == []


async def test_the_first_beat_clears_away_what_the_dead_have_left(tmp_path: Path) -> None:
    path = database(tmp_path)
    async with opened(path) as store:
        async with opened(path) as other:
            assert await other.beat("idle", 600, {}) is not None
        (lock_files(path)[0].parent / "orphan").write_text("made, and killed before its row")
        assert await store.beat("w", 600, {}) is not None
        assert len(lock_files(path)) == 1
        assert await store.beat("v", 600, {}) is not None
        assert len(lock_files(path)) == 2
        assert sorted(row[0] for row in store._connection.execute("select id from worker")) == ["v", "w"]
        assert await store.beat("w", 600, {}) is not None


# -- kill -9 ---------------------------------------------------------------------------------------


async def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("the victim is a process of its own")
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  shown when the test fails
    chance = random.Random(seed)
    path = database(tmp_path)
    mailed = 0
    for attempt in range(6):
        with racer(path, f"v{attempt}", "commit") as process:
            said = line_of(process)
            assert said
            await anyio.sleep(chance.uniform(0, 0.15))
            process.kill()
            assert process.stdout is not None
            told = int([said, *process.stdout.readlines()][-1].split()[0])
        async with opened(path) as store:
            assert store._connection.execute("pragma integrity_check").fetchone() == ("ok",)
            for n in range(3):
                name = f"v{attempt}-{n}"
                stored = await store.load(key(name))
                assert stored is not None
                assert stored.version in {told, told + 1}, f"{told} was said to be durable"
                assert stored.record == str(stored.version - 1).encode()
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
    relative, absolute = open_store("sqlite:///sub/r.db"), open_store(f"sqlite:///{tmp_path}/a.db")
    monkeypatch.chdir("/")
    assert isinstance(relative, SqliteStore)
    assert relative.path == tmp_path.resolve() / "sub" / "r.db"
    assert isinstance(absolute, SqliteStore)
    assert absolute.path == tmp_path.resolve() / "a.db"
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize(
    "url", ["", "a.db", "sqlite://", "sqlite:///", "sqlite://host/a.db", "postgresql://h/d", "memory://x"]
)
def test_what_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="sqlite:///relative"):
        open_store(url)


def test_it_is_opened_again_in_another_event_loop(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "wasman.db")
    reached: list[str] = []

    async def once() -> None:
        await store.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.serve)
            await anyio.wait_all_tasks_blocked()  # it waits for somebody who watches
            reached.append("waits")
            tasks.cancel_scope.cancel()
        await store.close()

    for backend in ("asyncio", "asyncio", "trio", "asyncio"):
        anyio.run(once, backend=backend)
    assert len(reached) == 4


async def test_an_instance_that_is_made_between_two_looks_is_not_taken_for_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database(tmp_path)) as store, opened(database(tmp_path)) as other:
        row, looks = store._row, 0

        def overtaken(of: Key) -> object:
            nonlocal looks
            found, looks = row(of), looks + 1
            if looks == 1:
                assert found is None
                other._write(partial(other._apply, change("w", None)))
                other._group._flush()
            return found

        monkeypatch.setattr(store, "_row", overtaken)
        assert await store.load(key("w")) is not None


async def test_what_was_rolled_back_is_not_kept_in_mind(tmp_path: Path) -> None:
    async with opened(database(tmp_path)) as store:
        assert await store.load(key("w")) is None
        with pytest.raises(CorruptSnapshotError, match="is there already"):
            await store.commit([change("w", None, blobs=[blob("a"), blob("a")])])
        assert await store.commit([change("v", None)]) == [Won(1, 0)]
        assert await store.load(key("w")) is None


async def test_a_store_that_is_opened_again_has_nothing_in_mind(tmp_path: Path) -> None:
    store = SqliteStore(database(tmp_path))
    await store.open()
    assert await store.commit([change("w", None)]) == [Won(1, 0)]
    await store.load(key("w"))
    await store.close()
    async with opened(database(tmp_path)) as other:
        assert await other.send(message("w", "m1")) is Sent.ACCEPTED
    await store.open()
    found = await store.load(key("w"))
    await store.close()
    assert found is not None
    assert found.mail == 1


async def test_one_look_serves_all_who_ask_in_a_turn_and_the_next_one_looks_again(
    tmp_path: Path, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database(tmp_path)) as store, opened(database(tmp_path)) as other:
        await store.commit([change("w", None)])
        looks: list[SqliteStore] = []
        look = SqliteStore._data_version

        def counted(self: SqliteStore) -> int:
            looks.append(self)
            return look(self)

        monkeypatch.setattr(SqliteStore, "_data_version", counted)

        async def expect(version: int) -> None:
            found = await store.load_in_turn(key("w"))
            assert found is not None
            assert found.version == version
            assert await store.load_in_turn(key("nobody")) is None

        for version in (1, 2, 3):
            looks.clear()
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(expect, version)
            # What is not there is looked for by each; trio keeps no order by which a look could be shared.
            assert len(looks) == 5 + (5 if anyio_backend_name == "trio" else 1)
            await other.commit([change("w", ("run-default-w", version))])
            await expect(version + 1)  # whoever was told that it has moved on never finds it as it was
