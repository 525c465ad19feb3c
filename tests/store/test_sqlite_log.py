"""Log entries of a run whose steps are written alone: in its row, in rows of several, and together with others."""

import contextlib
import random
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.store.settings import blob, change, closed, database, deletion, key
from wasman_host.errors import CorruptSnapshotError
from wasman_host.store import Lost, MemoryStore, SqliteStore, Step, Store, Won
from wasman_host.store.sqlite_log import MOST, Log, packed, unpacked

_FRAME = 4096 + 24  # bytes of a page in the write-ahead log


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(database(tmp_path))
    await opened.open()
    yield opened
    await opened.close()


def step(name: str, version: int, *entries: tuple[int, bytes], **fields: Any) -> Step:
    """A step of the instance whose run goes by the same name."""
    return Step(key(name), name, version, secrets.token_hex(8), b"tail", entries, **fields)


async def steps(store: Store, name: str, first: int, count: int, size: int = 300) -> list[tuple[int, bytes]]:
    """One after the other, from that version on, and the entry of the same number; the entries."""
    entries = [(n, random.Random(n).randbytes(size)) for n in range(first, first + count)]
    for n, entry in entries:
        assert await store.commit([step(name, n, (n, entry))]) == [Won(n + 1, 0)]
    return entries


def in_row(store: SqliteStore, name: str) -> list[tuple[int, bytes]]:
    query = "select fresh from instance where id = ?"
    return unpacked(store._connection.execute(query, (name,)).fetchone()[0], name)


def in_log(store: SqliteStore, name: str) -> list[tuple[int, int]]:
    """First and last entry of each row of the run's log."""
    query = "select n, last from log where run = (select number from run where run = ?) order by n"
    return store._connection.execute(query, (name,)).fetchall()


async def test_a_step_that_is_alone_writes_one_page(store: SqliteStore, tmp_path: Path) -> None:
    await store.commit([change("a", None, "a")])
    entries = await steps(store, "a", 1, 2)
    log = tmp_path / "store.db-wal"
    before = log.stat().st_size
    entries += await steps(store, "a", 3, 5)
    assert log.stat().st_size == before + 5 * _FRAME
    assert in_row(store, "a") == entries == await store.read("a")
    assert not in_log(store, "a")


async def test_what_a_row_has_no_room_for_goes_to_the_log_as_one(store: SqliteStore) -> None:
    await store.commit([change("a", None, "a")])
    entries = await steps(store, "a", 1, 25)
    rows = in_log(store, "a")
    assert len(rows) == 2
    assert rows[0] == (1, rows[1][0] - 1)
    assert rows[1][1] + 1 == in_row(store, "a")[0][0]
    assert MOST - 320 < len(packed(entries[: rows[0][1]])) <= MOST
    large = await steps(store, "a", 26, 1, MOST)
    assert not in_row(store, "a")  # it fits in none
    assert in_log(store, "a")[-1] == (26, 26)
    entries += large + await steps(store, "a", 27, 2)
    assert await store.read("a") == entries
    for start in range(30):
        assert await store.read("a", start) == [one for one in entries if one[0] >= start]
        assert await store.read("a", start, 20) == [one for one in entries if start <= one[0] < 20]


async def test_steps_alone_and_together_may_alternate(store: SqliteStore) -> None:
    await store.commit([change("a", None, "a"), change("b", None, "b")])
    entries = await steps(store, "a", 1, 3)
    entries.append((4, b"together"))
    assert await store.commit([step("a", 4, (4, b"together")), step("b", 1, (1, b"b"))]) == [Won(5, 0), Won(2, 0)]
    assert in_log(store, "a") == [(4, 4)]
    entries += await steps(store, "a", 5, 2)
    assert in_log(store, "a") == [(1, 3), (4, 4)]
    assert in_row(store, "a") == entries[4:]
    assert await store.read("a") == entries
    assert await store.read("b") == [(1, b"b")]


async def test_a_change_leaves_nothing_in_the_row(store: SqliteStore) -> None:
    await store.commit([change("a", None, "a"), change("b", None, "b")])
    entries = {name: await steps(store, name, 1, 3) for name in ("a", "b")}
    assert await store.commit([change("a", ("a", 4), entries=[(4, b"4"), (5, b"5")])]) == [Won(5, 0)]
    found = await store.load(key("b"))
    assert found is not None
    looks: list[str] = []
    store._connection.set_trace_callback(lambda text: looks.append(text) if text.startswith("select") else None)
    assert await store.commit([change("b", ("b", 4), columns=closed(found))]) == [Won(5, 0)]
    assert not looks  # what its row holds is known
    for name, more in (("a", [(4, b"4"), (5, b"5")]), ("b", [])):
        assert not in_row(store, name)
        assert await store.read(name) == entries[name] + more
    assert in_log(store, "a") == [(1, 3), (4, 5)]


async def test_the_end_of_a_run_keeps_what_another_process_has_left_in_the_row(
    store: SqliteStore, tmp_path: Path
) -> None:
    await store.commit([change("a", None, "a")])
    entries = await steps(store, "a", 1, 2)
    other = SqliteStore(database(tmp_path))
    await other.open()
    entries += await steps(other, "a", 3, 2)
    await other.close()
    found = await store.load(key("a"))
    assert found is not None
    assert await store.commit([change("a", ("a", 5), columns=closed(found))]) == [Won(6, 0)]
    assert not in_row(store, "a")
    assert await store.read("a") == entries


async def test_two_processes_take_turns(store: SqliteStore, tmp_path: Path) -> None:
    other = SqliteStore(database(tmp_path))
    await other.open()
    await store.commit([change("a", None, "a")])
    entries: list[tuple[int, bytes]] = []
    for n in range(1, 40, 2):
        entries += await steps(store, "a", n, 1) + await steps(other, "a", n + 1, 1)
        assert await store.commit([step("a", n + 1, (n + 1, b"late"))]) == [Lost(("a", n + 2))]
        assert await store.read("a") == await other.read("a") == entries
    await other.close()


async def test_the_next_run_begins_with_an_empty_row(store: SqliteStore) -> None:
    await store.commit([change("a", None, "a")])
    entries = await steps(store, "a", 1, 3)
    assert await store.commit([change("a", ("a", 4), "next", entries=[(0, b"0")])]) == [Won(5, 0)]
    assert await store.read("a") == entries
    assert await store.read("next") == [(0, b"0")]
    for n in (1, 2):
        one = Step(key("a"), "next", 4 + n, f"nonce {n}", b"tail", [(n, b"%d" % n)])
        assert await store.commit([one]) == [Won(5 + n, 0)]
    assert await store.read("a") == entries
    assert await store.read("next") == [(0, b"0"), (1, b"1"), (2, b"2")]
    assert await store.commit([deletion("a", ("next", 7))]) == [Won(0, 0)]
    assert await store.read("a") == await store.read("next") == []
    # One of the same name knows nothing of it, at the same versions.
    await store.commit([change("a", None, "a")])
    assert await store.read("a") == []
    assert await store.read("a") == await steps(store, "a", 1, 0)
    assert await steps(store, "a", 1, 3) == await store.read("a")


@pytest.mark.parametrize("cuts", [range(1, 25), range(3, 11), range(1, 2), range(7, 8), range(12, 40)])
async def test_a_cut_goes_through_rows_of_several(store: SqliteStore, cuts: range) -> None:
    await store.commit([change("a", None, "a")])
    entries = await steps(store, "a", 1, 24)
    await store.commit([change("a", ("a", 25), cuts=cuts)])
    assert await store.read("a") == [one for one in entries if one[0] not in cuts]
    assert await store.read("a", 10, 14) == [one for one in entries if one[0] not in cuts and 10 <= one[0] < 14]
    assert not in_row(store, "a")


async def test_blobs_are_written_with_a_step_that_is_alone(store: SqliteStore) -> None:
    await store.commit([change("a", None, "a")])
    entries = await steps(store, "a", 1, 2)
    assert await store.commit([step("a", 3, (3, b"3"), blobs=[blob("large", b"data")])]) == [Won(4, 0)]
    assert await store.blob("a", "large") == b"data"
    assert await store.commit([step("a", 4)]) == [Won(5, 0)]  # a step without an entry
    assert await store.commit([step("a", 5, (4, b"4"))]) == [Won(6, 0)]
    assert await store.read("a") == [*entries, (3, b"3"), (4, b"4")]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
async def test_an_entry_that_is_there_already_is_not_written_again(store: SqliteStore, n: int) -> None:
    await store.commit([change("a", None, "a", entries=[(0, b"0"), (1, b"1")])])
    for there in range(min(n + 1, 2)):
        with pytest.raises(CorruptSnapshotError, match="still to come"):
            await store.commit([step("a", 1, (there, b"again"))])
    for version, there in ((1, 2), (2, 3)):
        assert await store.commit([step("a", version, (there, b"there"))]) == [Won(version + 1, 0)]
    before = await store.read("a")
    with pytest.raises(CorruptSnapshotError, match="still to come"):
        await store.commit([step("a", 3, (n, b"again"))])
    assert await store.read("a") == before
    assert await store.commit([step("a", 3, (4, b"4"))]) == [Won(4, 0)]


@pytest.mark.parametrize("table", ["instance", "log"])
async def test_a_damaged_row_is_told(store: SqliteStore, tmp_path: Path, table: str) -> None:
    await store.commit([change("a", None, "a")])
    await steps(store, "a", 1, 12)
    column = "fresh" if table == "instance" else "entries"
    with contextlib.closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as db:
        where = "length(entries) > 0" if table == "log" else "id = 'a'"
        query = f"update {table} set {column} = substr({column}, 1, length({column}) - 1) where {where}"  # noqa: S608
        assert db.execute(query).rowcount == 1
    with pytest.raises(CorruptSnapshotError, match="of run a is cut short; restore the store from a backup"):
        await store.read("a")
    if table == "instance":
        store._log.undone()  # as in a process that has not written it
        with pytest.raises(CorruptSnapshotError, match="a is cut short; restore the store from a backup"):
            await store.commit([step("a", 13, (13, b"13"))])


async def test_what_was_rolled_back_is_not_thought_to_be_there(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit([change("a", None, "a"), change("b", None, "b")])
    entries = await steps(store, "a", 1, 2)

    def fails() -> None:
        raise RuntimeError("no space")

    async def fail(work: Sequence[Step]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store, "finish", fails)
            with pytest.raises(Exception, match="no space"):
                await store.commit(work)

    await fail([step("a", 3, (3, b"lost"), blobs=[blob("lost")])])
    assert await store.commit([step("a", 3, (3, b"three")), step("b", 1)]) == [Won(4, 0), Won(2, 0)]
    assert await store.commit([step("a", 4, (4, b"four"))]) == [Won(5, 0)]
    assert await store.read("a") == [*entries, (3, b"three"), (4, b"four")]
    assert await store.blob("a", "lost") is None


async def test_a_store_in_memory_reads_the_same(store: SqliteStore) -> None:
    model = MemoryStore()
    await model.open()
    chance = random.Random(4)
    versions, numbers = dict.fromkeys("abc", 1), dict.fromkeys("abc", 0)
    for one in (store, model):
        await one.commit([change(name, None, name, nonce="n") for name in "abc"])

    def work(name: str) -> Any:
        count = chance.choice([1, 1, 1, 1, 0, 3])
        entries = [(numbers[name] + n, chance.randbytes(chance.choice([5, 300, 900, 4000]))) for n in range(count)]
        numbers[name] += count
        versions[name] += 1
        if chance.random() < 0.9:
            return Step(key(name), name, versions[name] - 1, f"n{versions[name]}", b"tail", entries)
        cuts = range(0)
        if chance.random() < 0.5 and numbers[name] > count:
            start = chance.randrange(numbers[name] - count)
            cuts = range(start, chance.randint(start, numbers[name] - count))
        return change(name, (name, versions[name] - 1), nonce=f"n{versions[name]}", entries=entries, cuts=cuts)

    for _ in range(400):
        names = chance.sample("abc", chance.choice([1, 1, 1, 1, 2, 3]))
        batch = [work(name) for name in names]
        assert await store.commit(batch) == await model.commit(batch) == [Won(versions[name], 0) for name in names]
        name = chance.choice("abc")
        start = chance.randrange(numbers[name] + 1)
        stop = chance.choice([None, numbers[name], start + 4])
        assert await store.read(name, start, stop) == await model.read(name, start, stop)
    for name in "abc":
        assert await store.read(name) == await model.read(name)
    await model.close()


def test_the_memory_of_rows_is_limited() -> None:
    log = Log()
    for run in range(1000):
        log.row_written(run, step("a", 1, (0, b"0")), bytearray(b"data"))
    assert log.in_row(999, 2) == b"data"
    assert not log.in_row(999, 1)
    assert not log.in_row(0, 2)
    assert sum(log.in_row(run, 2) == b"data" for run in range(1000)) <= 256
