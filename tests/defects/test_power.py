"""The power fails at every moment of a store's life, and what is found then is the old state or the new one.

A life is recorded as file operations (`tests.store.power`). For each of its prefixes the states are made that a loss of
power may leave; each is opened, and all that the protocol shows must be as it was before the change that was under way,
or as it was after it. What was acknowledged is there. Whatever is open must be found by a worker that comes later.
"""

import hashlib
import os
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.store.power import Disk, Operation, Recorder, lay_out
from tests.store.settings import SECOND, START, Clock, blob, change, closed, columns, deletion, key, message
from wasman_host.store import DirectoryBackend, Lost, ObjectStore, Sent, Status, Step, Stored, Unread, objects

DAY = 86_400 * SECOND
# All blobs but b1, which is dropped: it may be there for longer, named by nothing.
KEYS = [key(name) for name in ("a", "b", "child", "peer")]
RUNS = {"r1": ("b2", "b3"), "r2": ("b4",), "c": (), "p": (), "d": ("b5",)}
Dump = tuple[Any, ...]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the loop is not what is tested


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that the few changes here reach them."""
    monkeypatch.setattr(objects, "_INLINE", 60)
    monkeypatch.setattr(objects, "_LETTER", 20)
    monkeypatch.setattr(objects, "_PAST", 0)


async def dump(store: ObjectStore) -> Dump:
    """All that the protocol shows of the instances."""
    shown: list[Any] = []
    for one in KEYS:
        stored = await store.load(one)
        shown.append((stored, await store.mail(one)))
    for run, names in RUNS.items():
        shown += (await store.read(run), *[await store.blob(run, name) for name in names])
    return tuple(shown)


async def claimable_at_last(store: ObjectStore, clock: Clock) -> set[str]:
    """What a worker finds that comes when all others are dead and everything is due."""
    clock.advance(1000 * 86_400)
    assert await store.beat("late", 10, {}) is not None
    found: set[str] = set()
    while claims := await store.claim("late", ["default"], 10):
        found.update(claim.stored.key.id for claim in claims)
    return found


def to_be_found(shown: Dump) -> set[str]:
    instances: list[Stored] = [stored for stored, _ in shown[: len(KEYS)] if stored is not None]
    return {one.key.id for one in instances if one.columns.closed is None and one.columns.wake is not None}


async def live(store: ObjectStore, done: Callable[[], Awaitable[None]]) -> None:
    """The life: each change is acknowledged by `done`."""

    async def get(name: str) -> Stored:
        stored = await store.load(key(name))
        assert stored is not None
        return stored

    async def commit(one: Any) -> None:
        [result] = await store.commit([one])
        assert not isinstance(result, Lost | Unread), result
        await done()

    due = columns(wake=START)
    await commit(change("peer", None, "p", nonce="1", columns=columns(wake=START + DAY)))
    await commit(change("a", None, "r1", nonce="2", columns=due, entries=[(0, b"0" * 30)], blobs=[blob("b1")]))
    await commit(change("b", None, "d", nonce="3", columns=due, blobs=[blob("b5", b"5")]))
    assert await store.beat("w", 10, {}) is not None
    await done()
    assert len(await store.claim("w", ["default"], 1)) == 1
    await done()
    assert len(await store.claim("w", ["default"], 1)) == 1
    await done()
    a = await get("a")
    await commit(Step(a.key, "r1", a.version, "4", b"tail", [(1, b"1" * 25)], [blob("b2", b"2" * 50)]))
    effects: dict[str, Any] = {
        "sends": [message("peer", "m1"), message("child", "m2")],
        "creates": [change("child", None, "c", nonce="5", columns=due)],
    }
    a = await get("a")
    await commit(change("a", ("r1", a.version), nonce="6", columns=a.columns, entries=[(2, b"2" * 30)], **effects))
    assert await store.send(message("a", "long", b"long" * 20)) is Sent.ACCEPTED
    await done()
    assert await store.send(message("a", "short")) is Sent.ACCEPTED
    await done()
    a = await get("a")
    await commit(change("a", ("r1", a.version), nonce="7", columns=a.columns, drops=["b1"], blobs=[blob("b3", b"3")]))
    a = await get("a")
    await commit(change("a", ("r1", a.version), nonce="8", columns=closed(a), consumes=["long", "short"]))
    a = await get("a")
    await commit(
        change("a", ("r1", a.version), "r2", nonce="9", columns=due, entries=[(0, b"new")], blobs=[blob("b4")])
    )
    b = await get("b")
    await commit(deletion("b", ("d", b.version)))
    await commit(change("b", None, "d", nonce="10", columns=columns(status=Status.WAITING, wake=START + DAY)))
    assert len(await store.claim("w", ["default"], 1)) == 1
    await done()
    await store.leave("w")
    await done()


def digest(state: Mapping[str, bytes | None]) -> str:
    return hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of folders are made and removed."""
    memory = Path("/dev/shm")  # noqa: S108  the folder below it is private
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.once
async def test_p01_a_loss_of_power_leaves_the_old_state_or_the_new_one(quick_path: Path) -> None:
    """All states that a life may leave are some 3,000, WASMAN_POWER=all looks at; else at a fifth, chosen by chance."""
    share = 1.0 if os.environ.get("WASMAN_POWER") == "all" else 0.2
    tmp_path = quick_path
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  shown when the test fails
    chance = random.Random(seed)
    (tmp_path / "life").mkdir()
    recorder = Recorder(tmp_path / "life")
    store = ObjectStore(DirectoryBackend(tmp_path / "life" / "store", files=recorder), clock=Clock())
    await store.open()
    shown: list[Dump] = [await dump(store)]
    ends = [len(recorder.operations)]

    async def done() -> None:
        shown.append(await dump(store))
        ends.append(len(recorder.operations))

    await live(store, done)
    await store.close()
    operations = recorder.operations
    seen: set[str] = set()
    disk, checked = Disk(), 0
    for position in range(len(operations) + 1):
        if position:
            disk.do(operations[position - 1])
        if position < ends[0]:
            allowed = [shown[0]]
        else:
            acknowledged = max(n for n, end in enumerate(ends) if end <= position)
            allowed = shown[acknowledged : acknowledged + 2]
        for state in disk.states(chance, 2):
            name = f"{digest(state)} {len(allowed)} {ends[0] > position}"
            if name in seen:
                continue
            seen.add(name)
            if chance.random() > share:
                continue
            checked += 1
            await check(tmp_path / f"cut{checked}", state, allowed, operations[:position])
    assert checked > 300


async def check(root: Path, state: Mapping[str, bytes | None], allowed: list[Dump], past: list[Operation]) -> None:
    lay_out(state, root)
    (root / "store").mkdir(exist_ok=True)
    clock = Clock()
    store = ObjectStore(DirectoryBackend(root / "store", files=Recorder(root)), clock=clock)
    last = "\n".join(str(attrs.evolve(one, data=one.data[:20])) for one in past[-12:])
    try:
        await store.open()
        await store._send_for_the_dead()  # what a worker does first
        shown = await dump(store)
        assert shown in allowed, f"neither the old state nor the new one after\n{last}"
        assert await claimable_at_last(store, clock) == to_be_found(shown), f"not all is found after\n{last}"
    except Exception as error:
        error.add_note(f"after\n{last}")
        raise
    finally:
        await store.close()
