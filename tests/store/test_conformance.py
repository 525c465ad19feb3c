"""What the protocol says, of every store and on both event loops. The sentence of each test is its name."""

import math
import random
import secrets
import sqlite3
from typing import Any

import anyio
import attrs
import pytest

from tests.store.settings import SECOND, START, Setting, blob, change, closed, columns, deletion, key, message
from wasman_host.errors import CorruptSnapshotError, InvalidArgumentError, StoreUnavailableError
from wasman_host.store import (
    CLOSED,
    OPEN,
    Change,
    Filter,
    Key,
    Lost,
    MemoryStore,
    ObjectStore,
    Room,
    Sent,
    SqliteStore,
    Status,
    Step,
    Stored,
    Unread,
    Won,
)
from wasman_host.store.heads import folder_of, head_name
from wasman_host.store.rules import matches

DAY = 86_400 * SECOND

# -- opening ---------------------------------------------------------------------------------------


async def test_an_open_store_is_not_opened_again(setting: Setting) -> None:
    with pytest.raises(InvalidArgumentError, match="is open already, and whoever has opened it closes it"):
        await setting.store.open()
    assert isinstance(await setting.commit(change("a", None, "r")), Won)


# -- commit: the swap ------------------------------------------------------------------------------


async def test_a_created_instance_reads_back_whole(setting: Setting) -> None:
    all_columns = columns(
        status=Status.WAITING,
        queue="q",
        owner="w",
        wake=5,
        expires=6,
        takeovers=7,
        size=8,
        parent="p",
        closed=9,
        attributes={"b": "2", "a": "ä"},
    )
    one = change("a", None, "r", columns=all_columns, record=b"\0\xff", entries=[(0, b"e0"), (1, b"e1")])
    one = attrs.evolve(one, blobs=[blob("s"), blob("t", b"")])
    assert await setting.commit(one) == Won(1, 0)
    assert await setting.other.load(key("a")) == Stored(key("a"), "r", 1, one.nonce, all_columns, b"\0\xff", 0)
    assert await setting.other.read("r") == [(0, b"e0"), (1, b"e1")]
    assert await setting.other.blob("r", "s") == b"data"
    assert await setting.other.blob("r", "t") == b""


async def test_what_is_absent_is_none_or_empty(setting: Setting) -> None:
    store = setting.store
    assert await store.load(key("a")) is None
    assert await store.read("r") == []
    assert await store.blob("r", "b") is None
    assert await store.module("d") is None
    assert await store.image("i") is None
    assert await store.mail(key("a")) == []
    assert await store.mailed("w") == []


async def test_a_create_of_a_taken_key_loses_and_writes_nothing(setting: Setting) -> None:
    await setting.create("a", run="r")
    late = change("a", None, "late", entries=[(0, b"late")], blobs=[blob("b")], creates=[change("child", None)])
    assert await setting.commit(late) == Lost(("r", 1))
    assert await setting.log("late") == {}
    assert await setting.other.blob("late", "b") is None
    assert await setting.other.load(key("child")) is None


async def test_the_same_id_of_another_tenant_is_another_instance(setting: Setting) -> None:
    await setting.create("a")
    assert await setting.commit(change(Key("t2", "a"), None)) == Won(1, 0)


async def test_each_change_raises_the_version_by_one_and_appends(setting: Setting) -> None:
    stored = await setting.create("a", run="r")
    for n in range(3):
        result = await setting.step(stored, record=b"%d" % n, entries=[(n, b"e%d" % n)], blobs=[blob(f"b{n}")])
        assert result == Won(n + 2, 0)
        stored = await setting.get("a")
        assert (stored.version, stored.record) == (n + 2, b"%d" % n)
    assert await setting.other.read("r") == [(0, b"e0"), (1, b"e1"), (2, b"e2")]
    assert await setting.other.read("r", 1) == [(1, b"e1"), (2, b"e2")]
    assert await setting.other.read("r", 1, 2) == [(1, b"e1")]
    assert await setting.other.read("r", 3) == []
    assert await setting.other.blob("r", "b1") == b"data"


@pytest.mark.parametrize("expected", [("r", 1), ("r", 3), ("x", 2), None])
async def test_a_change_with_a_stale_fence_loses_and_leaves_nothing(
    setting: Setting, expected: tuple[str, int] | None
) -> None:
    stored = await setting.create("a", run="r")
    await setting.create("peer")
    await setting.send("a", "m")
    assert await setting.step(stored) == Won(2, 1)
    before = await setting.get("a")
    stale = change(
        "a",
        expected,
        "r",
        record=b"stale",
        columns=columns(status=Status.WAITING, attributes={"stale": "1"}),
        entries=[(0, b"stale")],
        blobs=[blob("stale")],
        consumes=["m"] if expected else [],
        sends=[message("peer", "stale")],
        creates=[change("child", None)],
    )
    assert await setting.commit(stale) == Lost(("r", 2))
    assert await setting.get("a") == before
    assert await setting.log("r") == {}
    assert await setting.other.blob("r", "stale") is None
    assert await setting.unread("a") == ["m"]
    assert await setting.unread("peer") == []
    assert await setting.other.load(key("child")) is None
    assert await setting.other.count(Filter(attributes={"stale": "1"})) == 0


async def test_a_change_of_an_absent_instance_loses_to_nobody(setting: Setting) -> None:
    assert await setting.commit(change("a", ("r", 1))) == Lost(None)


async def test_members_of_a_group_win_and_lose_alone(setting: Setting) -> None:
    first, second, third = [await setting.create(name) for name in ("a", "b", "c")]
    group = [
        change("a", (first.run, 1), entries=[(0, b"a")]),
        change("b", (second.run, 7), entries=[(0, b"b")]),  # stale
        change("b", (second.run, 1), entries=[(0, b"b1")]),
        change("b", (second.run, 1), entries=[(0, b"b2")]),  # stale by its neighbour
        change("b", (second.run, 2), entries=[(1, b"b3")]),
        change("new", None, "n", entries=[(0, b"n")]),
        change("new", None, "n2", entries=[(0, b"n2")]),
        change("c", (third.run, 1), entries=[(0, b"c")]),
    ]
    assert await setting.store.commit(group) == [
        Won(2, 0),
        Lost((second.run, 1)),
        Won(2, 0),
        Lost((second.run, 2)),
        Won(3, 0),
        Won(1, 0),
        Lost(("n", 1)),
        Won(2, 0),
    ]
    assert await setting.log(first.run) == {0: b"a"}
    assert await setting.log(second.run) == {0: b"b1", 1: b"b3"}
    assert await setting.log("n") == {0: b"n"}
    assert await setting.log("n2") == {}
    assert await setting.log(third.run) == {0: b"c"}


async def test_of_many_at_once_one_wins(setting: Setting) -> None:
    await setting.create("a", run="r")
    results: list[Any] = []

    async def swap(n: int, store: Any) -> None:
        results.extend(await store.commit([change("a", ("r", 1), entries=[(0, b"%d" % n)])]))

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(swap, n, (setting.store, setting.other)[n % 2])
    assert sorted(map(repr, results)) == [repr(Lost(("r", 2)))] * 19 + [repr(Won(2, 0))]
    assert len(await setting.log("r")) == 1


async def test_a_repeated_change_wins_again_and_writes_nothing(setting: Setting) -> None:
    create = change("a", None, "r", entries=[(0, b"0")])
    step = change("a", ("r", 1), entries=[(1, b"1")])
    for one, version in ((create, 1), (step, 2)):
        assert await setting.commit(one) == Won(version, 0)
        assert await setting.commit(one) == Won(version, 0)
        assert (await setting.other.commit([one, one])) == [Won(version, 0)] * 2
    assert await setting.log("r") == {0: b"0", 1: b"1"}
    assert await setting.commit(create) == Lost(("r", 2))  # somebody has moved on


async def test_a_repeated_change_tells_the_mail_of_now(setting: Setting) -> None:
    await setting.create("a", run="r")
    step = change("a", ("r", 1))
    assert await setting.commit(step) == Won(2, 0)
    await setting.send("a", "m")
    assert await setting.commit(step) == Won(2, 1)


async def test_another_run_keeps_the_version_rising_and_the_old_history(setting: Setting) -> None:
    await setting.commit(change("a", None, "r1", entries=[(0, b"one")], blobs=[blob("s", b"old")]))
    assert await setting.commit(change("a", ("r1", 1), "r2", entries=[(0, b"two")], blobs=[blob("s", b"new")])) == Won(
        2, 0
    )
    stored = await setting.get("a")
    assert (stored.run, stored.version) == ("r2", 2)
    assert await setting.log("r1") == {0: b"one"}
    assert await setting.log("r2") == {0: b"two"}
    assert await setting.other.blob("r1", "s") == b"old"
    assert await setting.other.blob("r2", "s") == b"new"
    assert await setting.commit(change("a", ("r1", 2))) == Lost(("r2", 2))


async def test_a_closed_instance_is_restarted_by_its_last_fence_and_a_new_run(setting: Setting) -> None:
    stored = await setting.create("a", run="r1")
    assert await setting.step(stored, columns=closed(stored), entries=[(0, b"old")]) == Won(2, 0)
    assert await setting.send("a", "m") == [Sent.CLOSED]
    assert await setting.commit(change("a", None, "r2")) == Lost(("r1", 2))
    assert await setting.commit(change("a", ("r1", 1), "r2")) == Lost(("r1", 2))
    assert await setting.commit(change("a", ("r1", 2), "r2", entries=[(0, b"new")])) == Won(3, 0)
    assert await setting.send("a", "m") == [Sent.ACCEPTED]
    assert await setting.log("r1") == {0: b"old"}
    assert await setting.log("r2") == {0: b"new"}


async def test_how_a_run_stood_is_kept_when_its_id_gets_another(setting: Setting) -> None:
    stored = await setting.create("a", run="r1", attributes={"k": "v"})
    ended = closed(stored, Status.FAILED)
    assert await setting.step(stored, columns=ended, record=b"of r1", tail=b"tail") == Won(2, 0)
    before = await setting.get("a")
    assert await setting.other.former(key("a"), "r1") is None
    assert await setting.commit(change("a", ("r1", 2), "r2", record=b"of r2", blobs=[blob("s")])) == Won(3, 0)
    assert await setting.other.former(key("a"), "r1") == before
    assert (before.record, before.tail, before.columns) == (b"of r1", b"tail", ended)
    for name, run in (("a", "r2"), ("a", "other"), ("b", "r1")):
        assert await setting.other.former(key(name), run) is None
    stored = await setting.get("a")
    assert await setting.step(stored, columns=closed(stored), record=b"r2 ended") == Won(4, 0)
    assert await setting.commit(change("a", ("r2", 4), "r3")) == Won(5, 0)
    assert await setting.other.former(key("a"), "r1") == before
    second = await setting.other.former(key("a"), "r2")
    assert second is not None
    assert (second.run, second.version, second.record) == ("r2", 4, b"r2 ended")
    assert await setting.other.blob("r2", "s") == b"data"
    assert await setting.commit(deletion("a", ("r3", 5))) == Won(0, 0)
    assert await setting.other.former(key("a"), "r1") is None


async def test_many_former_runs_are_all_kept(setting: Setting) -> None:
    await setting.create("a", run="r0")
    for n in range(1, 70):
        assert await setting.commit(change("a", (f"r{n - 1}", n), f"r{n}", record=b"%d" % n)) == Won(n + 1, 0)
    for n in (0, 1, 31, 32, 33, 68):
        former = await setting.other.former(key("a"), f"r{n}")
        assert former is not None
        assert former.record == (b"%d" % n if n else b"record")
    assert await setting.other.former(key("a"), "r69") is None


async def test_mail_for_one_run_does_not_reach_the_next(setting: Setting) -> None:
    stored = await setting.create("a", run="r1")
    first = attrs.evolve(message("a", "m1"), run="r1")
    assert await setting.store.send(first) is Sent.ACCEPTED
    assert await setting.store.send(attrs.evolve(message("a", "m2"), run="r0")) is Sent.CLOSED
    stored = await setting.get("a")
    assert await setting.step(stored, columns=closed(stored), consumes=["m1"]) == Won(2, 0)
    assert await setting.commit(change("a", ("r1", 2), "r2")) == Won(3, 0)
    assert await setting.store.send(first) is Sent.DUPLICATE
    assert await setting.store.send(attrs.evolve(message("a", "m3"), run="r1")) is Sent.CLOSED
    assert await setting.store.send(attrs.evolve(message("a", "m4"), run="r2")) is Sent.ACCEPTED
    assert await setting.unread("a") == ["m4"]
    sends = [attrs.evolve(message("a", "m5"), run="r1"), attrs.evolve(message("a", "m6"), run="r2")]
    assert await setting.commit(change("b", None, sends=sends)) == Won(1, 0)
    assert await setting.unread("a") == ["m4", "m6"]


async def test_a_message_that_needs_room_is_accepted_only_where_it_finds_it(setting: Setting) -> None:
    stored = await setting.create("a")

    async def send(ident: str, version: int, unread: int) -> Sent:
        return await setting.store.send(attrs.evolve(message("a", ident), room=Room(version, unread)))

    assert await send("m1", 1, 2) is Sent.ACCEPTED
    assert await send("m2", 2, 2) is Sent.MOVED
    assert await send("m2", 1, 2) is Sent.ACCEPTED
    assert await send("m3", 1, 2) is Sent.FULL
    assert await send("m1", 1, 2) is Sent.DUPLICATE
    assert await send("m1", 9, 9) is Sent.DUPLICATE
    assert await setting.step(stored, consumes=["m1"]) == Won(2, 1)
    assert await send("m1", 1, 2) is Sent.DUPLICATE
    assert await send("m3", 1, 2) is Sent.MOVED
    assert await send("m3", 0, 2) is Sent.ACCEPTED
    assert await setting.unread("a") == ["m2", "m3"]
    stored = await setting.get("a")
    assert await setting.step(stored, columns=closed(stored), consumes=["m2", "m3"]) == Won(3, 0)
    assert await send("m4", 0, 0) is Sent.CLOSED


async def test_however_many_send_at_once_no_more_than_the_room_holds_are_accepted(setting: Setting) -> None:
    await setting.create("a")
    became: list[Sent] = []

    async def send(n: int) -> None:
        store = setting.store if n % 2 else setting.other
        became.append(await store.send(attrs.evolve(message("a", f"m{n}"), room=Room(1, 5))))

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(send, n)
    assert (became.count(Sent.ACCEPTED), became.count(Sent.FULL)) == (5, 15)
    assert len(await setting.unread("a")) == 5


async def test_a_run_id_is_not_used_twice(setting: Setting) -> None:
    await setting.create("a", run="r1")
    assert await setting.commit(change("a", ("r1", 1), "r2")) == Won(2, 0)
    with pytest.raises(InvalidArgumentError, match="r1"):
        await setting.commit(change("a", ("r2", 2), "r1"))
    assert (await setting.get("a")).run == "r2"


async def test_a_deletion_takes_all_rows_of_all_runs(setting: Setting) -> None:
    await setting.commit(change("a", None, "r1", entries=[(0, b"1")], blobs=[blob("s")]))
    attributes = columns(attributes={"k": "v"})
    await setting.commit(change("a", ("r1", 1), "r2", columns=attributes, entries=[(0, b"2")]))
    await setting.create("b", attributes={"k": "v"})
    await setting.send("a", "m")
    assert await setting.commit(deletion("a", ("r2", 1))) == Lost(("r2", 2))
    assert await setting.commit(deletion("a", ("r2", 2))) == Won(0, 0)
    assert await setting.other.load(key("a")) is None
    assert await setting.log("r1") == {}
    assert await setting.log("r2") == {}
    assert await setting.other.blob("r1", "s") is None
    assert await setting.unread("a") == []
    assert [row.key.id for row in (await setting.other.list(Filter(attributes={"k": "v"}))).rows] == ["b"]
    assert await setting.commit(deletion("a", ("r2", 2))) == Lost(None)
    assert await setting.commit(change("a", None, "r3")) == Won(1, 0)
    assert await setting.send("a", "m") == [Sent.ACCEPTED]  # nothing of its past is left


async def test_a_deletion_in_a_group_takes_what_its_neighbours_append(setting: Setting) -> None:
    await setting.create("a", run="r")
    results = await setting.store.commit([change("a", ("r", 1), entries=[(0, b"0")]), deletion("a", ("r", 2))])
    assert results == [Won(2, 0), Won(0, 0)]
    assert await setting.log("r") == {}
    assert await setting.commit(change("a", None, "r", entries=[(0, b"0")])) == Won(1, 0)


async def test_effects_are_part_of_the_change(setting: Setting) -> None:
    parent = await setting.create("parent")
    await setting.create("peer")
    await setting.create("taken", run="taken")
    child = change("child", None, "c", columns=columns(parent="parent"), entries=[(0, b"born")])
    child = attrs.evolve(child, creates=[change("grandchild", None, sends=[message("peer", "from-grandchild")])])
    result = await setting.step(
        parent,
        creates=[child, change("taken", None, "t2", entries=[(0, b"no")])],
        sends=[message("peer", "m1"), message("child", "m2"), message("absent", "m3"), message("peer", "m1")],
    )
    assert result == Won(2, 0)
    born = await setting.get("child")
    assert (born.run, born.version, born.columns.parent, born.mail) == ("c", 1, "parent", 1)
    assert await setting.log("c") == {0: b"born"}
    assert (await setting.get("grandchild")).version == 1
    assert (await setting.get("taken")).run == "taken"
    assert await setting.log("t2") == {}
    assert sorted(await setting.unread("peer")) == ["from-grandchild", "m1"]
    assert (await setting.get("peer")).mail == 2
    assert (await setting.get("peer")).version == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (change("", None), "at least one character"),
        (change(Key("", "a"), None), "at least one character"),
        (change("a\0", None), "NUL"),
        (change("\ud800", None), "surrogate"),
        (change("a", None, nonce=""), "nonce"),
        (change("a", None, columns=None), "together"),
        (change("a", None, record=None, columns=None), "a new instance"),
        (change("a", None, consumes=["m"]), "a new instance"),
        (change("a", ("r", 1), consumes=["m", "m"]), "twice"),
        (change("a", ("r", 1), entries=[(1, b""), (3, b"")]), "gap"),
        (change("a", ("r", 1), entries=[(1, b""), (1, b"")]), "gap"),
        (change("a", ("r", 1), record=None, columns=None, entries=[(1, b"")]), "deletion"),
        (change("a", ("r", 1), record=None, columns=None, cuts=range(1, 2)), "deletion"),
        (change("a", None, cuts=range(1, 2)), "a new run"),
        (change("a", ("r", 1), "another", cuts=range(1, 2)), "a new run"),
        (change("a", ("r", 1), cuts=range(1, 5, 2)), "gaps"),
        (change("a", ("r", 1), cuts=range(1, 3), entries=[(2, b"")]), "appends"),
        (change("a", ("r", 1), creates=[change("b", ("x", 1))]), "creates b"),
        (change("a", ("r", 1), sends=[message("b", "")]), "id"),
    ],
)
async def test_a_change_that_contradicts_itself_is_refused_before_anything_is_written(
    setting: Setting, wrong: Change, says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        await setting.store.commit([change("good", None), wrong])
    assert await setting.other.load(key("good")) is None


# -- the log is cut --------------------------------------------------------------------------------


async def test_what_is_cut_of_a_log_is_gone_and_nothing_else(setting: Setting) -> None:
    """Over every way in which a store may hold a log: what was appended in one piece, in many, small and large."""
    for size in (10, 9000):
        run, entries = f"r{size}", [(n, b"%d" % n * size) for n in range(600)]
        one = await setting.create(f"a{size}", run=run)
        for at in range(0, 600, 50):
            appended = {"entries": entries[at : at + 50], "blobs": [blob(f"b{at}", b"%d" % at)]}
            assert isinstance(await setting.step(one, **appended), Won)
            one = await setting.get(f"a{size}")
        cuts = [range(1, 20), range(20, 300), range(300, 301), range(301, 590)]
        for cut in cuts:
            kept = [blob(f"archive-{cut.start}")]
            drops = [] if cut.start != 300 else ["b100", "b550"]
            assert isinstance(await setting.step(one, cuts=cut, blobs=kept, drops=drops), Won)
            assert await setting.other.read(run) == [entries[0], *entries[cut.stop :]]
            assert await setting.other.read(run, 0, 1) == entries[:1]
            assert await setting.other.read(run, 595) == entries[595:]
            assert await setting.other.read(run, 2, cut.stop) == []
            one = await setting.get(f"a{size}")
        assert isinstance(await setting.step(one, entries=[(600, b"last")]), Won)
        assert [n for n, _ in await setting.other.read(run)] == [0, *range(590, 601)]
        for name in [*(f"b{at}" for at in range(0, 600, 50)), *(f"archive-{cut.start}" for cut in cuts)]:
            gone = name in {"b100", "b550"}
            assert (await setting.other.blob(run, name) is None) == gone, name


async def test_a_cut_that_loses_leaves_the_log(setting: Setting) -> None:
    await setting.create("a", run="r")
    one = await setting.get("a")
    assert isinstance(await setting.step(one, entries=[(n, b"%d" % n) for n in range(10)]), Won)
    assert isinstance(await setting.step(one, cuts=range(1, 5), blobs=[blob("archive")]), Lost)
    assert [n for n, _ in await setting.other.read("r")] == list(range(10))
    assert await setting.other.blob("r", "archive") is None


async def test_a_cut_that_is_repeated_is_made_once(setting: Setting) -> None:
    await setting.create("a", run="r", owner="w")
    one = await setting.get("a")
    assert isinstance(await setting.step(one, entries=[(n, b"%d" % n) for n in range(10)]), Won)
    cut = change("a", ("r", 2), cuts=range(1, 5), blobs=[blob("archive")])
    assert await setting.commit(cut) == Won(3, 0)
    assert await setting.commit(cut) == Won(3, 0)
    assert [n for n, _ in await setting.other.read("r")] == [0, *range(5, 10)]


async def test_an_instance_whose_log_is_cut_again_and_again_stays_as_small(setting: Setting) -> None:
    one, sizes = await setting.create("a", run="r"), []
    for n in range(300):
        fields: dict[str, Any] = {"entries": [(n, b"%03d" % n * 400)], "blobs": [blob(f"s{n}"), blob(f"archive-{n}")]}
        if n > 1:
            fields |= {"cuts": range(n - 1, n), "drops": [f"s{n - 1}"]}
        assert isinstance(await setting.step(one, **fields), Won)
        one = await setting.get("a")
        if isinstance(setting.store, ObjectStore):
            found = await setting.store.backend.get(head_name(folder_of(key("a"))))
            assert found is not None
            sizes.append(len(found.data))
    assert [n for n, _ in await setting.other.read("r")] == [0, 299]
    for n in range(300):
        assert await setting.other.blob("r", f"archive-{n}") == b"data"
    assert [await setting.other.blob("r", f"s{n}") for n in (2, 298, 299)] == [None, None, b"data"]
    # What names the archive in an object store is written out now and then.
    assert not sizes or max(sizes[100:]) < 1.1 * max(sizes[:100])


# -- mail ------------------------------------------------------------------------------------------


async def test_mail_is_read_oldest_first_with_the_time_of_its_acceptance(setting: Setting) -> None:
    await setting.create("a")
    sent = []
    for ident in ("z", "a", "m"):
        setting.clock.advance(1)
        assert await setting.store.send(message("a", ident, ident.encode())) is Sent.ACCEPTED
        sent.append(attrs.evolve(message("a", ident, ident.encode()), sent=setting.clock.time))
    assert await setting.other.mail(key("a")) == sent


async def test_mail_never_changes_the_version(setting: Setting) -> None:
    stored = await setting.create("a")
    await setting.send("a", "m1", "m2")
    assert await setting.get("a") == attrs.evolve(stored, mail=2)
    assert await setting.step(stored) == Won(2, 2)


async def test_mail_is_consumed_by_id_in_the_commit(setting: Setting) -> None:
    stored = await setting.create("a")
    await setting.send("a", "m1", "m2", "m3")
    assert await setting.step(stored, consumes=["m2", "m3"], entries=[(0, b"m2, m3")]) == Won(2, 1)
    assert await setting.unread("a") == ["m1"]
    assert (await setting.get("a")).mail == 1


@pytest.mark.parametrize("consumes", [["absent"], ["m1", "absent"], ["used"], ["m1", "used"]])
async def test_consuming_what_is_not_there_loses(setting: Setting, consumes: list[str]) -> None:
    await setting.create("a", run="r")
    await setting.send("a", "m1", "used")
    assert await setting.step(await setting.get("a"), consumes=["used"]) == Won(2, 1)
    stored = await setting.get("a")
    assert await setting.step(stored, consumes=consumes, entries=[(0, b"no")]) == Lost(("r", 2))
    assert await setting.get("a") == stored
    assert await setting.unread("a") == ["m1"]
    assert await setting.log("r") == {}


async def test_mail_of_another_instance_is_not_consumed(setting: Setting) -> None:
    stored = await setting.create("a", run="r")
    await setting.create("b")
    await setting.send("b", "m")
    assert await setting.step(stored, consumes=["m"]) == Lost(("r", 1))
    assert await setting.unread("b") == ["m"]


async def test_a_repeated_send_is_a_duplicate_until_long_after_its_consumption(setting: Setting) -> None:
    await setting.work("w", 10_000_000)
    await setting.create("a")
    assert await setting.send("a", "m", "m") == [Sent.ACCEPTED, Sent.DUPLICATE]
    assert (await setting.get("a")).mail == 1
    assert await setting.step(await setting.get("a"), consumes=["m"]) == Won(2, 0)
    assert await setting.send("a", "m") == [Sent.DUPLICATE]
    assert (await setting.get("a")).mail == 0
    setting.clock.advance(3599)
    assert await setting.store.beat("w", 10_000_000, {}) is not None  # when old mail is forgotten
    assert await setting.send("a", "m") == [Sent.DUPLICATE]
    stored = await setting.get("a")
    assert await setting.step(stored, columns=closed(stored)) == Won(3, 0)
    assert await setting.send("a", "m", "new") == [Sent.DUPLICATE, Sent.CLOSED]


async def test_consumed_mail_is_forgotten_in_the_end_and_unread_mail_never(setting: Setting) -> None:
    await setting.work("w", 10_000_000)
    await setting.create("a")
    await setting.send("a", "read", "unread")
    await setting.step(await setting.get("a"), consumes=["read"])
    setting.clock.advance(3601)
    assert await setting.store.beat("w", 10_000_000, {}) is not None
    assert await setting.send("a", "read", "unread") == [Sent.ACCEPTED, Sent.DUPLICATE]
    assert await setting.unread("a") == ["unread", "read"]


@pytest.mark.parametrize("status", sorted(CLOSED))
async def test_a_closed_instance_takes_no_mail(setting: Setting, status: Status) -> None:
    await setting.create("a", status=status)
    assert await setting.send("a", "m") == [Sent.CLOSED]
    assert await setting.unread("a") == []
    assert (await setting.get("a")).mail == 0


@pytest.mark.parametrize("status", sorted(OPEN))
async def test_an_open_instance_takes_mail(setting: Setting, status: Status) -> None:
    await setting.create("a", status=status)
    assert await setting.send("a", "m") == [Sent.ACCEPTED]


async def test_mail_to_nobody_is_absent(setting: Setting) -> None:
    assert await setting.send("a", "m") == [Sent.ABSENT]
    await setting.create("a")
    assert await setting.unread("a") == []


async def test_mail_outlives_the_run(setting: Setting) -> None:
    await setting.create("a", run="r1")
    await setting.send("a", "m")
    assert await setting.commit(change("a", ("r1", 1), "r2")) == Won(2, 1)
    assert await setting.unread("a") == ["m"]
    assert await setting.send("a", "m") == [Sent.DUPLICATE]


async def test_mailed_are_the_workers_own_with_unread_mail(setting: Setting) -> None:
    for name, owner in (("a", "w"), ("b", "w"), ("c", "v"), ("d", None)):
        await setting.create(name, owner=owner)
    for name in ("a", "c", "d"):
        await setting.send(name, "m")
    assert await setting.other.mailed("w") == [key("a")]
    await setting.step(await setting.get("a"), consumes=["m"])
    assert await setting.other.mailed("w") == []


# -- closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(CLOSED))
async def test_closing_with_unread_mail_is_refused_and_writes_nothing(setting: Setting, status: Status) -> None:
    await setting.create("a", run="r")
    await setting.create("peer")
    await setting.send("a", "m1", "m2")
    stored = await setting.get("a")
    closing = {"columns": closed(stored, status), "entries": [(0, b"end")], "sends": [message("peer", "done")]}
    assert await setting.step(stored, **closing) == Unread(2)
    assert await setting.step(stored, **closing, consumes=["m2"]) == Unread(2)
    assert await setting.get("a") == stored
    assert await setting.log("r") == {}
    assert await setting.unread("peer") == []
    assert await setting.unread("a") == ["m1", "m2"]
    assert await setting.step(stored, **closing, consumes=["m1", "m2"]) == Won(2, 0)
    assert (await setting.get("a")).columns.status is status
    assert await setting.unread("peer") == ["done"]


@pytest.mark.parametrize("status", sorted(OPEN))
async def test_staying_open_with_unread_mail_is_no_matter(setting: Setting, status: Status) -> None:
    stored = await setting.create("a")
    await setting.send("a", "m")
    assert await setting.step(stored, columns=attrs.evolve(stored.columns, status=status)) == Won(2, 1)


async def test_mail_that_arrives_while_closing_is_consumed_or_refused_never_lost(setting: Setting) -> None:
    """Senders and closers race; whatever was accepted is in the log, and nothing else."""
    for attempt in range(10):
        name = f"race-{attempt}"
        await setting.create(name, run=name)
        accepted: list[str] = []

        async def send(ident: str, name: str = name, accepted: list[str] = accepted) -> None:
            await anyio.sleep(0.0005 * int(ident))
            if await setting.other.send(message(name, ident)) is Sent.ACCEPTED:
                accepted.append(ident)

        async def close(name: str = name) -> None:
            n = 0
            while True:
                stored = await setting.store.load(key(name))
                assert stored is not None
                unread = [letter.id for letter in await setting.store.mail(key(name))][:2]
                entries = [(n, ",".join(unread).encode())]
                await anyio.sleep(0.0005)  # when more may arrive
                result = await setting.step(stored, columns=closed(stored), consumes=unread, entries=entries)
                if isinstance(result, Won):
                    return
                assert isinstance(result, Unread)
                if unread:
                    assert isinstance(await setting.step(stored, consumes=unread, entries=entries), Won)
                    n += 1

        async with anyio.create_task_group() as tasks:
            for i in range(6):
                tasks.start_soon(send, str(i))
            tasks.start_soon(close)
        logged = [ident for entry in (await setting.log(name)).values() for ident in entry.decode().split(",") if ident]
        assert sorted(logged) == sorted(accepted)
        stored = await setting.get(name)
        assert (stored.mail, stored.columns.status) == (0, Status.COMPLETED)
        assert await setting.unread(name) == []


async def test_sends_and_consumptions_at_once_keep_the_count(setting: Setting) -> None:
    """The counter moves by differences: what is sent between reading and committing still counts."""
    stored = await setting.create("a")
    await setting.send("a", "m0")
    results: list[Any] = []

    async def consume() -> None:
        results.append(await setting.step(stored, consumes=["m0"]))

    async with anyio.create_task_group() as tasks:
        for n in range(1, 5):
            tasks.start_soon(setting.store.send, message("a", f"m{n}"))
        tasks.start_soon(consume)
        for n in range(5, 9):
            tasks.start_soon(setting.store.send, message("a", f"m{n}"))
    assert isinstance(results[0], Won)
    assert (await setting.get("a")).mail == len(await setting.unread("a")) == 8


# -- claims ----------------------------------------------------------------------------------------


async def test_a_claim_is_a_fenced_commit(setting: Setting) -> None:
    await setting.work("w")
    before = await setting.create("a", wake=START)
    [claim] = await setting.store.claim("w", ["default"], 1)
    assert not claim.takeover
    assert claim.stored == await setting.get("a")
    assert claim.stored.nonce != before.nonce
    owned = attrs.evolve(before.columns, owner="w")
    assert claim.stored == attrs.evolve(before, version=2, nonce=claim.stored.nonce, columns=owned)
    assert await setting.step(before) == Lost((before.run, 2))
    assert await setting.claim("w") == []
    assert await setting.step(claim.stored) == Won(3, 0)


async def test_what_is_claimable(setting: Setting) -> None:
    await setting.work("w")
    day = START + DAY
    cases: list[tuple[dict[str, Any], int, frozenset[Status]]] = [
        ({}, 0, frozenset()),
        ({"wake": START}, 0, OPEN - {Status.BLOCKED}),  # time alone does not unblock
        ({"wake": START + 1}, 0, frozenset()),
        ({}, 1, OPEN),
        ({"wake": day, "expires": day}, 1, OPEN),
        ({"expires": START}, 0, OPEN),
        ({"expires": START + 1}, 0, frozenset()),
    ]
    for number, (fields, mail, claimable) in enumerate(cases):
        for status in Status:
            name = f"{status.value}-{number}"
            stored = await setting.create(name, queue=name, **fields)
            if mail and status in OPEN:
                await setting.send(name, "m")
            await setting.step(stored, columns=attrs.evolve(stored.columns, status=status))
            assert await setting.claim("w", queue=name) == ([name] if status in claimable else []), name


async def test_only_named_queues_are_claimed_and_at_most_the_limit(setting: Setting) -> None:
    await setting.work("w")
    for n in range(3):
        await setting.create(f"d{n}", wake=START)
        await setting.create(f"q{n}", wake=START, queue="q")
    assert await setting.store.claim("w", [], 10) == []
    assert await setting.store.claim("w", ["default"], 0) == []
    assert len(await setting.claim("w", 2)) == 2
    assert len(await setting.store.claim("w", ["default", "q", "q"], 10)) == 4


async def test_claims_take_first_what_waits_longest(setting: Setting) -> None:
    await setting.work("w")
    await setting.create("third", wake=START - 1)
    await setting.create("first", wake=START - 9)
    await setting.create("mailed", created=START - 5)
    await setting.create("late", wake=START)
    await setting.send("mailed", "m")
    assert await setting.claim("w", 1) == ["first"]
    assert await setting.claim("w", 2) == ["mailed", "third"]
    assert await setting.claim("w", 9) == ["late"]


async def test_after_a_week_without_workers_all_is_taken_that_is_due_the_oldest_first(setting: Setting) -> None:
    draw, week = random.Random(11), 7 * DAY
    moments = {f"s{n}": START + draw.randrange(SECOND, 2 * week) for n in range(400)}
    moments |= {"late": START - 300 * 365 * DAY, "never": 2**63 - 1}
    waiting = [columns(status=Status.WAITING, wake=wake) for wake in moments.values()]
    made = [change(name, None, columns=given) for name, given in zip(moments, waiting, strict=True)]
    assert await setting.store.commit(made) == [Won(1, 0)] * len(made)
    setting.clock.advance(7 * 24 * 3600)
    due = sorted((name for name, wake in moments.items() if wake <= START + week), key=lambda name: moments[name])
    assert due[0] == "late"
    assert 150 < len(due) < 250
    await setting.work("w")
    taken = []
    while got := await setting.claim("w", 64):
        taken.append(got)
    assert [name for batch in taken for name in batch] == due
    assert all(len(batch) == 64 for batch in taken[:-1])
    setting.clock.advance(7 * 24 * 3600)
    await setting.work("v", store=setting.other)
    later = await setting.claim("v", 1000, store=setting.other)
    assert [name for name in later if name not in due] == sorted(
        (name for name in moments if name not in due and name != "never"), key=lambda name: moments[name]
    )


async def test_a_crowd_of_one_queue_does_not_keep_another_waiting(setting: Setting) -> None:
    crowd = [change(f"c{n}", None, columns=columns(wake=START - SECOND - n)) for n in range(200)]
    await setting.store.commit([*crowd, change("one", None, columns=columns(queue="other", wake=START))])
    await setting.work("w")
    assert await setting.claim("w", 3, queue="other") == ["one"]
    assert await setting.claim("w", 3) == ["c199", "c198", "c197"]


async def test_who_is_put_off_is_taken_at_the_new_time_and_not_before(setting: Setting) -> None:
    """Also where that is done again and again, as to a run that is woken by signals before its deadline."""
    await setting.work("w", 10**6)
    one = await setting.create("a", wake=START + 10 * SECOND)
    await setting.create("b", wake=START + 5 * SECOND)
    for n in range(1500 if isinstance(setting.store, MemoryStore) else 20):
        assert isinstance(await setting.step(one, columns=columns(wake=START + (20 + n % 7) * SECOND)), Won)
        one = await setting.get("a")
    assert isinstance(await setting.step(one, columns=columns(wake=START + 20 * SECOND)), Won)
    if isinstance(setting.store, MemoryStore):
        assert len(setting.store._alarms) < 1100
    setting.clock.advance(15)
    assert await setting.claim("w") == ["b"]
    setting.clock.advance(5)
    assert await setting.claim("w") == ["a"]
    assert await setting.claim("w") == []


async def test_who_was_due_and_is_put_off_takes_nobodys_place(setting: Setting) -> None:
    await setting.work("w")
    for n in range(5):
        await setting.create(f"a{n}", wake=START - 9 + n)
    assert await setting.claim("w", 1) == ["a0"]
    for n in range(1, 5):
        one = await setting.get(f"a{n}")
        assert isinstance(await setting.step(one, columns=columns(wake=START + SECOND)), Won)
    await setting.create("b", wake=START, created=START + 1)
    assert await setting.claim("w", 2) == ["b"]


async def test_two_workers_never_get_the_same(setting: Setting) -> None:
    await setting.work("w")
    await setting.work("v", store=setting.other)
    for n in range(20):
        await setting.create(f"i{n}", wake=START)
    taken: list[str] = []

    async def take(worker: str, store: Any) -> None:
        while got := await setting.claim(worker, 3, store=store):
            taken.extend(got)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(take, "w", setting.store)
            tasks.start_soon(take, "v", setting.other)
    assert sorted(taken) == sorted(f"i{n}" for n in range(20))


async def test_released_in_order_is_no_takeover(setting: Setting) -> None:
    await setting.work("w")
    await setting.work("v", store=setting.other)
    await setting.create("a", wake=START)
    [claim] = await setting.store.claim("w", ["default"], 1)
    released = attrs.evolve(claim.stored.columns, owner=None, wake=START)
    await setting.step(claim.stored, columns=released)
    [again] = await setting.other.claim("v", ["default"], 1)
    assert (again.takeover, again.stored.columns.takeovers, again.stored.columns.owner) == (False, 0, "v")


async def test_what_a_worker_owns_is_not_claimable_while_it_lives(setting: Setting) -> None:
    await setting.work("w", 10)
    await setting.work("v", 100, store=setting.other)
    await setting.create("a", wake=START, expires=START, owner="w")
    await setting.send("a", "m")
    assert await setting.claim("v", store=setting.other) == []
    setting.clock.advance(9)
    await setting.work("w", 10)
    setting.clock.advance(9)
    assert await setting.claim("v", store=setting.other) == []


async def test_a_worker_whose_lease_ended_is_taken_over_from_and_learns_it(setting: Setting) -> None:
    await setting.work("w", 10)
    await setting.work("v", 1000, store=setting.other)
    await setting.create("a", wake=START, created=START - 1)
    await setting.create("b", wake=START)
    assert await setting.claim("w") == ["a", "b"]
    held = await setting.get("a")
    setting.clock.advance(10)
    [claim] = await setting.other.claim("v", ["default"], 1)
    assert (claim.takeover, claim.stored.key.id, claim.stored.version) == (True, "a", 3)
    assert (claim.stored.columns.owner, claim.stored.columns.takeovers) == ("v", 1)
    assert await setting.step(held) == Lost((held.run, 3))
    assert await setting.store.beat("w", 10, {}) is None
    assert await setting.store.beat("w", 10, {}) is None
    assert await setting.claim("w") == []
    [rest] = await setting.other.claim("v", ["default"], 5)
    assert (rest.takeover, rest.stored.key.id) == (True, "b")


async def test_a_worker_that_nobody_took_over_from_goes_on(setting: Setting) -> None:
    await setting.work("w", 10)
    await setting.create("a", wake=START)
    assert await setting.claim("w") == ["a"]
    setting.clock.advance(100)
    assert await setting.claim("w") == []  # it should beat first
    await setting.work("w", 10)
    assert (await setting.get("a")).columns.owner == "w"
    await setting.work("v", store=setting.other)
    assert await setting.claim("v", store=setting.other) == []


async def test_takeovers_count_until_the_owner_writes(setting: Setting) -> None:
    await setting.create("a", owner="nobody", takeovers=3)
    await setting.work("w", 10)
    [claim] = await setting.store.claim("w", ["default"], 1)
    assert (claim.takeover, claim.stored.columns.takeovers) == (True, 4)  # an owner that never registered is dead
    await setting.step(claim.stored, columns=attrs.evolve(claim.stored.columns, takeovers=0))
    assert (await setting.get("a")).columns.takeovers == 0


async def test_a_blocked_instance_of_a_dead_owner_waits_for_its_mail(setting: Setting) -> None:
    await setting.work("w")
    await setting.create("a", owner="nobody", status=Status.BLOCKED, wake=START)
    assert await setting.claim("w") == []
    await setting.send("a", "unblock")
    [claim] = await setting.store.claim("w", ["default"], 1)
    assert claim.takeover


async def test_closed_instances_of_a_dead_owner_stay(setting: Setting) -> None:
    await setting.work("w")
    await setting.create("a", owner="nobody", status=Status.COMPLETED, wake=START, expires=START)
    assert await setting.claim("w") == []


async def test_who_leaves_hands_over_at_once_without_a_takeover(setting: Setting) -> None:
    await setting.work("w")
    await setting.work("v", store=setting.other)
    await setting.create("due", wake=START)
    await setting.create("later", wake=START)
    await setting.create("blocked", wake=START)
    [first, second, third] = await setting.store.claim("w", ["default"], 9)
    later, blocked = {"wake": START + DAY}, {"status": Status.BLOCKED, "wake": START + DAY}
    for claim, fields in ((first, {}), (second, later), (third, blocked)):
        await setting.step(claim.stored, columns=attrs.evolve(claim.stored.columns, **fields))
    held = await setting.get("due")
    await setting.store.leave("w")
    assert await setting.step(held) == Lost((held.run, held.version + 1))
    claims = await setting.other.claim("v", ["default"], 9)
    assert sorted(claim.stored.key.id for claim in claims) == ["due", "later"]
    assert not any(claim.takeover or claim.stored.columns.takeovers for claim in claims)
    left = (await setting.get("blocked")).columns
    assert (left.owner, left.status, left.wake) == (None, Status.BLOCKED, START + DAY)
    assert await setting.store.beat("w", 10, {}) is None


async def test_who_has_not_beaten_claims_nothing(setting: Setting) -> None:
    await setting.create("a", wake=START)
    assert await setting.claim("stranger") == []


async def test_a_beat_gives_the_stores_time(setting: Setting) -> None:
    setting.clock.advance(5)
    assert setting.store.now() == START + 5 * SECOND
    assert await setting.store.beat("w", 1, {"host": "h", "pid": 1}) == START + 5 * SECOND


# -- reserved records ------------------------------------------------------------------------------


async def test_reserved_records_are_swapped_like_any_but_never_shown_mailed_or_claimed(setting: Setting) -> None:
    await setting.work("w")
    stored = await setting.create("workflow/flow", workflow="", wake=START, expires=START)
    await setting.create("dead", workflow="", owner="nobody")
    assert await setting.claim("w") == []
    assert await setting.send("workflow/flow", "m") == [Sent.ABSENT]
    await setting.create("a")
    await setting.step(await setting.get("a"), sends=[message("workflow/flow", "m")])
    assert (await setting.get("workflow/flow")).mail == 0
    assert await setting.store.count(Filter()) == 1
    assert [row.key.id for row in (await setting.store.list(Filter())).rows] == ["a"]
    assert await setting.store.count(Filter(workflow="")) == 0
    assert await setting.store.count(Filter(id_prefix="workflow/")) == 0
    assert await setting.step(stored, record=b"moved") == Won(2, 0)
    assert await setting.step(stored, record=b"stale") == Lost((stored.run, 2))
    assert (await setting.get("workflow/flow")).record == b"moved"


# -- modules and images ----------------------------------------------------------------------------


async def test_modules_and_images_are_kept_and_never_overwritten(setting: Setting) -> None:
    for _ in range(2):
        await setting.store.put_module("d", b"module")
        await setting.store.put_image("i", b"image")
    await setting.store.put_module("d", b"other")
    await setting.store.put_image("i", b"other")
    assert await setting.other.module("d") == b"module"
    assert await setting.other.image("i") == b"image"


# -- listing ---------------------------------------------------------------------------------------


async def listed(setting: Setting, limit: int = 100, **where: Any) -> list[str]:
    """All pages; the count is checked by the way."""
    names: list[str] = []
    cursor = None
    while True:
        page = await setting.store.list(Filter(**where), limit, cursor)
        assert len(page.rows) <= limit
        names += [row.key.id for row in page.rows]
        cursor = page.cursor
        if cursor is None:
            break
        assert len(page.rows) == limit
    assert await setting.store.count(Filter(**where)) == len(names)
    return names


async def test_listing_is_newest_first_then_by_id_in_pages(setting: Setting) -> None:
    for name, created in (
        ("b", 1),
        ("a", 1),
        ("c", 2),
        ("ä", 1),
        ("z:1", 1),
        ("d", 3),
        ("\U0001f600", 1),
        ("\uffee", 1),
    ):
        await setting.create(name, created=created)
    expected = ["d", "c", "a", "b", "z:1", "ä", "\uffee", "\U0001f600"]
    for limit in (1, 2, 3, 4, 8, 100):
        assert await listed(setting, limit) == expected


async def test_pages_stay_in_step_while_instances_come_and_go(setting: Setting) -> None:
    for n in range(6):
        await setting.create(f"i{n}", created=n)
    page = await setting.store.list(Filter(), 2)
    assert [row.key.id for row in page.rows] == ["i5", "i4"]
    await setting.create("new", created=99)
    await setting.commit(deletion("i4", ((await setting.get("i4")).run, 1)))
    page = await setting.store.list(Filter(), 2, page.cursor)
    assert [row.key.id for row in page.rows] == ["i3", "i2"]


async def test_listing_filters(setting: Setting) -> None:
    await setting.create("ax", created=1, status=Status.RUNNING, workflow="f", attributes={"k": "1", "l": "x"})
    await setting.create("ay", created=2, status=Status.FAILED, workflow="f", attributes={"k": "1"})
    await setting.create("bx", created=3, status=Status.COMPLETED, workflow="g", attributes={"k": "2"})
    await setting.create("a%", created=4, workflow="f%")
    await setting.commit(change(Key("t2", "ax"), None))
    assert await listed(setting) == ["a%", "bx", "ay", "ax"]
    assert await listed(setting, tenant="t2") == ["ax"]
    assert await listed(setting, tenant="t3") == []
    assert await listed(setting, status=frozenset({Status.FAILED, Status.COMPLETED})) == ["bx", "ay"]
    assert await listed(setting, status=frozenset()) == []
    assert await listed(setting, workflow="f") == ["ay", "ax"]
    assert await listed(setting, id_prefix="a") == ["a%", "ay", "ax"]
    assert await listed(setting, id_prefix="a%") == ["a%"]
    assert await listed(setting, id_prefix="") == ["a%", "bx", "ay", "ax"]
    assert await listed(setting, created_from=2, created_to=4) == ["bx", "ay"]
    assert await listed(setting, attributes={"k": "1"}) == ["ay", "ax"]
    assert await listed(setting, attributes={"k": "1", "l": "x"}) == ["ax"]
    assert await listed(setting, 1, workflow="f", attributes={"k": "1"}, id_prefix="a", created_from=1) == ["ay", "ax"]


async def test_attributes_follow_the_record(setting: Setting) -> None:
    stored = await setting.create("a", attributes={"k": "1", "old": "x"})
    await setting.step(stored, columns=attrs.evolve(stored.columns, attributes={"k": "2"}))
    assert await listed(setting, attributes={"k": "1"}) == []
    assert await listed(setting, attributes={"old": "x"}) == []
    assert await listed(setting, attributes={"k": "2"}) == ["a"]
    assert (await setting.get("a")).columns.attributes == {"k": "2"}


@pytest.mark.parametrize("cursor", ["", "x", "1", ":a", "x:a", "1:", "²:a"])
async def test_a_cursor_that_it_did_not_give_is_refused(setting: Setting, cursor: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cursor"):
        await setting.store.list(Filter(), 10, cursor)


async def test_listing_by_the_times_of_the_end_and_by_the_parent(setting: Setting) -> None:
    for n, name in enumerate("abcd"):
        await setting.create(name, created=n, parent=None if n == 3 else "ab"[n % 2])
    for n, name in enumerate("abc"):
        stored = await setting.get(name)
        ended = attrs.evolve(closed(stored), closed=10 + n)
        assert await setting.step(stored, columns=ended) == Won(2, 0)
    assert await listed(setting, closed_from=10) == ["c", "b", "a"]
    assert await listed(setting, closed_from=11, closed_to=12) == ["b"]
    assert await listed(setting, closed_to=12) == ["b", "a"]
    assert await listed(setting, parent="a") == ["c", "a"]
    assert await listed(setting, 1, parent="a", closed_from=0) == ["c", "a"]
    assert await listed(setting, parent="c") == []


@pytest.mark.parametrize("few", [1000, 4])
async def test_a_listing_shows_what_the_rules_say(setting: Setting, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way the store goes to find it."""
    monkeypatch.setattr("wasman_host.store.sqlite_rows._FEW", few)
    seed = random.randrange(10**9)
    draw = random.Random(seed)
    rows: list[Stored] = []
    for n in range(40):
        status = draw.choice([Status.RUNNING, Status.FAILED, Status.COMPLETED])
        created = draw.randrange(20)
        fields: dict[str, Any] = {
            "created": created,
            "status": status,
            "closed": None if status is Status.RUNNING else created + draw.randrange(10),
            "workflow": draw.choice(["f", "g"]),
            "parent": draw.choice([None, "p", "q"]),
            "attributes": {name: draw.choice("xy") for name in "kl" if draw.random() < 0.7},
        }
        rows.append(await setting.create(draw.choice(["a", "ab", "\ud7ff", "\U0010ffff"]) + str(n), **fields))
    for _ in range(60):
        wanted: dict[str, Any] = {
            "status": frozenset(draw.sample([Status.RUNNING, Status.FAILED, Status.COMPLETED], draw.randrange(4))),
            "workflow": draw.choice("fgh"),
            "id_prefix": draw.choice(["", "a", "ab", "ab1", "\ud7ff", "\U0010ffff", "z"]),
            "created_from": draw.randrange(20),
            "created_to": draw.randrange(20),
            "closed_from": draw.randrange(30),
            "closed_to": draw.randrange(30),
            "parent": draw.choice("pqr"),
            "attributes": {name: draw.choice("xyz") for name in "kl" if draw.random() < 0.7},
        }
        where = {name: wanted[name] for name in draw.sample(list(wanted), draw.randrange(4))}
        expected = sorted(
            (row for row in rows if matches(Filter(**where), row)), key=lambda row: (-row.columns.created, row.key.id)
        )
        assert await listed(setting, draw.choice([1, 3, 100]), **where) == [row.key.id for row in expected], (
            seed,
            where,
        )


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_page_of_nothing_is_refused(setting: Setting, limit: int) -> None:
    with pytest.raises(InvalidArgumentError, match="limit"):
        await setting.store.list(Filter(), limit)


# -- watching --------------------------------------------------------------------------------------


async def woken(setting: Setting, watched: Key | None, act: Any, seconds: float = 5.0) -> bool:
    """Whether whoever watches is woken by `act`, well before the time is over."""
    start = anyio.current_time()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await setting.store.watch(watched, seconds)
                scope.cancel()

            tasks.start_soon(watch)
            tasks.start_soon(setting.store.serve)
            await anyio.sleep(0.03)
            await act()
            await anyio.sleep(seconds * 2)
    return anyio.current_time() - start < seconds * 0.9


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
@pytest.mark.parametrize("what", ["commit", "send", "create", "delete", "child", "leave"])
async def test_watchers_of_a_key_and_of_anything_are_woken(setting: Setting, what: str, *, foreign: bool) -> None:
    store = setting.other if foreign else setting.store
    for watched in (key("a"), None):
        if what == "delete" and watched is None:
            continue  # nothing that a worker could take
        name = "anything" if watched is None else "a"
        await setting.work(f"worker-{name}", store=store)
        await setting.create("parent" + name)
        if what not in {"create", "child"}:
            await setting.create(name, owner=f"worker-{name}" if what == "leave" else None, wake=START)
        else:
            assert await setting.store.load(key(name)) is None
        run = f"run-default-{name}"
        acts: dict[str, Any] = {
            "commit": lambda run=run, name=name: store.commit([change(name, (run, 1))]),
            "send": lambda name=name: store.send(message(name, "m")),
            "create": lambda name=name: store.commit([change(name, None)]),
            "delete": lambda run=run, name=name: store.commit([deletion(name, (run, 1))]),
            "child": lambda name=name: store.commit(
                [change("parent" + name, (f"run-default-parent{name}", 1), creates=[change(name, None)])]
            ),
            "leave": lambda name=name: store.leave(f"worker-{name}"),
        }
        assert await woken(setting, watched, acts[what])


async def test_a_step_of_a_running_instance_wakes_nobody(setting: Setting) -> None:
    await setting.work("w")
    await setting.create("a", run="r", owner="w")
    assert await setting.store.load(key("a")) is not None
    steps = iter(range(1, 9))

    async def step() -> None:
        version = next(steps)
        moved = change("a", ("r", version), columns=columns(owner="w"))
        assert await setting.store.commit([moved]) == [Won(version + 1, 0)]

    for watched in (key("a"), None):
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setting.store.watch, watched, 0.3)
            await anyio.sleep(0.03)
            await step()
        assert anyio.current_time() - start >= 0.3


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
async def test_watchers_of_another_key_sleep_on(setting: Setting, *, foreign: bool) -> None:
    store = setting.other if foreign else setting.store
    await setting.create("a")
    await setting.create("b", run="b")
    assert await setting.store.load(key("a")) is not None
    assert not await woken(setting, key("a"), lambda: store.commit([change("b", ("b", 1))]), 0.3)


async def test_a_watch_ends_in_time(setting: Setting) -> None:
    start = anyio.current_time()
    await setting.store.watch(key("a"), 0.05)
    await setting.store.watch(None, 0.05)
    assert 0.09 < anyio.current_time() - start < 2


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
@pytest.mark.parametrize("served", [False, True], ids=["alone", "served"])
async def test_a_change_between_reading_and_watching_is_not_missed(
    setting: Setting, *, foreign: bool, served: bool
) -> None:
    store = setting.other if foreign else setting.store

    async def watch() -> None:
        while True:
            await setting.store.watch(None, math.inf)

    async with anyio.create_task_group() as tasks:
        if served:
            tasks.start_soon(setting.store.serve)
            tasks.start_soon(watch)  # so that others are looked for all the time
        for turn, pause in enumerate((0.05, 0.0) if served else (0.0,)):
            await anyio.sleep(pause)
            name, other = f"a-{turn}", f"b-{turn}"
            await setting.create(name, run=name)
            assert await setting.store.load(key(name)) is not None
            blocked = columns(status=Status.BLOCKED)
            assert await store.commit([change(name, (name, 1), columns=blocked)]) == [Won(2, 0)]
            await anyio.sleep(pause)
            with anyio.fail_after(1):
                await setting.store.watch(key(name), math.inf)
            assert await setting.store.load(key(other)) is None
            await store.commit([change(other, None)])
            await anyio.sleep(pause)
            with anyio.fail_after(1):
                await setting.store.watch(key(other), math.inf)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
async def test_what_is_remembered_is_as_it_is_or_whoever_watches_is_told(setting: Setting, *, foreign: bool) -> None:
    store = setting.other if foreign else setting.store
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setting.store.serve)
        await anyio.sleep(0.03)
        await setting.create("a", run="r")
        remembered = setting.store.remembered(key("a"))
        assert remembered is None or remembered == await setting.store.load(key("a"))
        closed = columns(status=Status.FAILED, closed=START + 1)
        assert await store.commit([change("a", ("r", 1), columns=closed)]) == [Won(2, 0)]
        with anyio.fail_after(2):
            while (found := setting.store.remembered(key("a")) or await setting.store.load(key("a"))) is not None:
                if found.columns.status is Status.FAILED:
                    break
                await setting.store.watch(key("a"), math.inf)
        assert found == await setting.store.load(key("a"))
        tasks.cancel_scope.cancel()


async def test_a_run_that_ends_is_nothing_for_whoever_watches_for_anything_unless_it_is_said(setting: Setting) -> None:
    await setting.work("w")
    await setting.create("a", run="r", owner="w")

    async def end() -> None:
        closed = columns(status=Status.COMPLETED, closed=START + 1)
        assert await setting.store.commit([change("a", ("r", 1), columns=closed)]) == [Won(2, 0)]

    async def wake() -> None:
        setting.store.wake()

    for act, waited in ((end, True), (wake, False)):
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setting.store.watch, None, 0.3)
            await anyio.sleep(0.03)
            await act()
        assert (anyio.current_time() - start >= 0.3) == waited


async def test_a_run_does_not_end_over_mail_or_on_an_outdated_version(setting: Setting) -> None:
    await setting.create("a", run="r")
    await setting.create("b", run="s")
    await setting.send("a", "m")
    closed = columns(status=Status.COMPLETED, closed=START + 1)
    assert await setting.store.commit([change("a", ("r", 1), columns=closed)]) == [Unread(1)]
    assert await setting.store.commit([change("b", ("s", 2), columns=closed)]) == [Lost(("s", 1))]
    assert await setting.store.commit([change("b", ("r", 1), columns=closed)]) == [Lost(("s", 1))]
    consumes = change("a", ("r", 1), columns=closed, consumes=["m"])
    assert await setting.store.commit([consumes]) == [Won(2, 0)]
    colour = columns(status=Status.COMPLETED, closed=START + 1, attributes={"colour": "red"})
    assert await setting.store.commit([change("b", ("s", 1), columns=colour, nonce="n")]) == [Won(2, 0)]
    assert await setting.store.commit([change("b", ("s", 1), columns=colour, nonce="n")]) == [Won(2, 0)]
    assert [one.key.id for one in (await setting.store.list(Filter(attributes={"colour": "red"}))).rows] == ["b"]


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["run", "mail"])
async def test_rows_without_their_record_are_damage_never_nothing(setting: Setting, left: str) -> None:
    await setting.commit(change("a", None, "r", entries=[(0, b"0")]))
    if left == "mail":
        await setting.send("a", "m")
    await setting.create("good", run="g")
    setting.lose_record("a")
    if left == "mail" and isinstance(setting.store, SqliteStore):
        setting.store._connection.execute("delete from run where id = 'a'")
    results: list[Any] = []

    async def commit(one: Change) -> None:
        results.extend(await setting.store.commit([one]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit, change("good", ("g", 1), entries=[(0, b"0")]))
        tasks.start_soon(commit, change("parent", None, creates=[change("a", None, "r3")]))
        for one in (change("a", None, "r2", entries=[(0, b"2")]), change("a", ("r", 1))):
            with pytest.raises(CorruptSnapshotError, match=r"a has (rows|objects)"):
                await setting.store.commit([one])
    assert sorted(results, key=repr) == [Won(1, 0), Won(2, 0)]  # the neighbours have won
    for call in (setting.store.load(key("a")), setting.store.send(message("a", "m2"))):
        with pytest.raises(CorruptSnapshotError, match=r"a has (rows|objects)"):
            await call
    assert await setting.log("r2") == {}
    if left == "run" and not isinstance(setting.store, ObjectStore):  # there the log is lost with its record
        assert await setting.log("r") == {0: b"0"}  # what is left is left alone


async def test_an_entry_that_is_there_already_is_damage(setting: Setting) -> None:
    await setting.commit(change("a", None, "r", entries=[(0, b"0"), (1, b"1")]))
    await setting.create("b", run="b")
    before = await setting.get("a")
    results: list[Any] = []

    async def neighbour() -> None:
        results.extend(await setting.store.commit([change("b", ("b", 1), entries=[(0, b"b")])]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(neighbour)
        with pytest.raises(CorruptSnapshotError, match="still to come"):
            await setting.commit(change("a", ("r", 1), entries=[(1, b"x")]))
    assert results == [Won(2, 0)]
    assert await setting.get("a") == before
    assert await setting.log("r") == {0: b"0", 1: b"1"}
    assert await setting.log("b") == {0: b"b"}


async def test_a_blob_that_is_there_already_is_damage(setting: Setting) -> None:
    await setting.commit(change("a", None, "r", blobs=[blob("s")]))
    with pytest.raises(CorruptSnapshotError, match="blob"):
        await setting.commit(change("a", ("r", 1), blobs=[blob("s", b"other")]))
    assert await setting.other.blob("r", "s") == b"data"
    assert (await setting.get("a")).version == 1


async def test_lost_mail_is_damage_when_the_instance_would_close(setting: Setting) -> None:
    if isinstance(setting.store, ObjectStore):
        pytest.skip("the mail stands in the record: neither is there without the other")
    await setting.create("a")
    await setting.send("a", "m")
    stored = await setting.get("a")
    setting.lose_mail("a")
    with pytest.raises(CorruptSnapshotError, match="1 unread"):
        await setting.step(stored, columns=closed(stored))


async def test_an_error_nobody_thought_of_hurts_only_its_own_member(setting: Setting) -> None:
    if not isinstance(setting.store, SqliteStore):
        pytest.skip("nothing is rolled back elsewhere: each member is written alone")
    stored = await setting.create("a", run="r")
    bad = change("a", ("r", 1), columns=attrs.evolve(stored.columns, size=2**80))
    results: list[Any] = []

    async def neighbour(name: str) -> None:
        results.extend(await setting.store.commit([change(name, None, entries=[(0, b"0")])]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(neighbour, "x")
        tasks.start_soon(neighbour, "y")
        with pytest.raises((OverflowError, sqlite3.Error)):
            await setting.commit(bad)
    assert results == [Won(1, 0), Won(1, 0)]
    assert await setting.log("run-default-x") == {0: b"0"}
    assert (await setting.get("a")).version == 1


# -- opening ---------------------------------------------------------------------------------------


async def test_a_store_that_is_not_open_says_so(setting: Setting) -> None:
    await setting.store.close()
    await setting.store.close()
    for call in (
        setting.store.commit([change("a", None)]),
        setting.store.load(key("a")),
        setting.store.send(message("a", "m")),
        setting.store.claim("w", ["default"], 1),
        setting.store.beat("w", 1, {}),
        setting.store.list(Filter()),
    ):
        with pytest.raises(StoreUnavailableError, match="not open"):
            await call


async def test_what_a_handle_gives_after_its_own_writes_is_what_another_one_gives(setting: Setting) -> None:
    """A store may keep in mind what it has read or written; every kind of write must then be in it."""
    store = setting.store
    where = key("w")

    async def same() -> Stored:
        stored = await setting.get("w")
        assert await store.load(where) == stored
        assert await store.load(where) == stored  # and what is kept in mind of it
        return stored

    await setting.create("w", wake=START)
    await same()
    await setting.send("w", "m1")
    await same()
    await setting.work("worker")
    assert await setting.claim("worker") == ["w"]
    stored = await same()
    step = Step(where, stored.run, stored.version, secrets.token_hex(8), b"further", [(0, b"entry")])
    assert isinstance((await store.commit([step]))[0], Won)
    stored = await same()
    assert isinstance(await setting.step(stored, record=b"written anew"), Won)
    stored = await same()
    assert isinstance(await setting.step(stored, columns=attrs.evolve(stored.columns, wake=START + 1)), Won)
    await same()
    await store.leave("worker")
    stored = await same()
    ended = attrs.evolve(stored.columns, status=Status.COMPLETED, closed=START + 2)
    assert isinstance(await setting.step(stored, columns=ended, consumes=["m1"]), Won)
    stored = await same()
    again = change("w", (stored.run, stored.version), "run-2", columns=columns(created=START + 3))
    assert isinstance(await setting.commit(again), Won)
    stored = await same()
    assert isinstance(await setting.commit(deletion("w", (stored.run, stored.version))), Won)
    assert await store.load(where) is None


async def test_what_is_written_together_with_a_message_is_read_with_it(setting: Setting) -> None:
    store, ended = setting.store, columns(status=Status.COMPLETED, closed=START)
    await setting.create("v")
    await store.load(key("v"))
    async with anyio.create_task_group() as tasks:  # on SQLite one transaction, in this order
        for one in (change("w", None), change("x", None, columns=ended)):
            tasks.start_soon(store.commit, [one])
        tasks.start_soon(store.send, message("w", "m1"))
    assert await store.load(key("w")) == await setting.get("w")
    assert await store.load(key("x")) == await setting.get("x")
