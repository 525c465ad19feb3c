"""What the store's tests act in: a store seen through two handles, a clock that they move, short ways to change it."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wasman_host.store import (
    Blob,
    Change,
    Columns,
    DirectoryBackend,
    Key,
    Lost,
    MemoryStore,
    Message,
    ObjectStore,
    Sent,
    SqliteStore,
    Status,
    Step,
    Store,
    Stored,
    Unread,
    Won,
)
from wasman_host.store.heads import folder_of, head_name

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> int:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += round(seconds * SECOND)


def key(name: str, tenant: str = "default") -> Key:
    return Key(tenant, name)


def columns(**fields: Any) -> Columns:
    values: dict[str, Any] = {"status": Status.RUNNING, "workflow": "flow", "module": "m" * 64, "created": START}
    return Columns(**{**values, **fields})


def change(name: str | Key, expected: tuple[str, int] | None, run: str = "", **fields: Any) -> Change:
    where = name if isinstance(name, Key) else key(name)
    run = run or (expected[0] if expected else f"run-{where.tenant}-{where.id}")
    values: dict[str, Any] = {"nonce": secrets.token_hex(8), "record": b"record", "columns": columns()}
    return Change(where, expected, run, **{**values, **fields})


def one_step(name: str, run: str, version: int) -> Step:
    entry = (version, b"entry %d" % version)
    return Step(key(name), run, version, secrets.token_hex(8), b"tail", [entry])


def deletion(name: str, expected: tuple[str, int]) -> Change:
    return change(name, expected, record=None, columns=None)


def message(name: str | Key, ident: str, body: bytes = b"body") -> Message:
    return Message(name if isinstance(name, Key) else key(name), ident, "signal", body)


class Setting:
    """One store's data through two handles; in memory both are the same object."""

    def __init__(self, store: Store, other: Store, clock: Clock) -> None:
        self.store = store
        self.other = other
        self.clock = clock

    async def commit(self, one: Change) -> Won | Lost | Unread:
        [result] = await self.store.commit([one])
        return result

    async def create(self, name: str, *, run: str = "", **fields: Any) -> Stored:
        """A new instance with these columns."""
        assert await self.commit(change(name, None, run, columns=columns(**fields))) == Won(1, 0)
        return await self.get(name)

    async def get(self, name: str) -> Stored:
        stored = await self.other.load(key(name))
        assert stored is not None
        return stored

    async def step(self, stored: Stored, **fields: Any) -> Won | Lost | Unread:
        """A change of the instance as it was read, with its own columns unless others are given."""
        values = {"columns": stored.columns, **fields}
        return await self.commit(change(stored.key, (stored.run, stored.version), **values))

    async def send(self, name: str, *idents: str) -> Sequence[Sent]:
        return [await self.store.send(message(name, ident)) for ident in idents]

    async def unread(self, name: str) -> Sequence[str]:
        return [letter.id for letter in await self.other.mail(key(name))]

    async def log(self, run: str) -> Mapping[int, bytes]:
        return dict(await self.other.read(run))

    async def work(self, worker: str, ttl: float = 10, *, store: Store | None = None) -> None:
        """Register a worker."""
        assert await (store or self.store).beat(worker, ttl, {}) == self.clock.time

    async def claim(
        self, worker: str, limit: int = 10, *, store: Store | None = None, queue: str = "default"
    ) -> list[str]:
        return [claim.stored.key.id for claim in await (store or self.store).claim(worker, [queue], limit)]

    def lose_record(self, name: str) -> None:
        """Damage: the instance's row is gone, all others stay."""
        where = key(name)
        if isinstance(self.store, ObjectStore):
            Path(self.store.backend.place, head_name(folder_of(where))).unlink()
        elif isinstance(self.store, SqliteStore):
            self.store._connection.execute("delete from instance where tenant = ? and id = ?", (where.tenant, where.id))
        else:
            assert isinstance(self.store, MemoryStore)
            self.store._instances[where].stored = None

    def lose_mail(self, name: str) -> None:
        """Damage: unread messages are gone."""
        where = key(name)
        if isinstance(self.store, SqliteStore):
            self.store._connection.execute("delete from mail where tenant = ? and id = ?", (where.tenant, where.id))
        else:
            assert isinstance(self.store, MemoryStore)
            self.store._instances[where].letters.clear()


def blob(name: str, data: bytes = b"data") -> Blob:
    return Blob(name, data)


def closed(stored: Stored, status: Status = Status.COMPLETED) -> Columns:
    return attrs.evolve(stored.columns, status=status, owner=None, wake=None, closed=START + SECOND)


def database(folder: Path) -> Path:
    return folder / "store.db"


def directory(folder: Path, clock: Callable[[], int] = time.time_ns, **options: Any) -> ObjectStore:
    return ObjectStore(DirectoryBackend(folder / "store", **options), clock=clock)


def at(path: Path) -> Store:
    """The store of that file, or of that folder."""
    return SqliteStore(path) if path.suffix == ".db" else ObjectStore(DirectoryBackend(path))
