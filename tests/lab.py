"""Where the tests of the engine happen: a store, workers that come, leave and die over it, and ways to break things."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from attrs import define, evolve, field

from wasman_host import control, deployments, starting
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.engine import Engine
from wasman_host.guest.module import GuestModule
from wasman_host.payload import Payload
from wasman_host.record import Limits, Record, StreamSpec
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import (
    CLOSED,
    Change,
    DirectoryBackend,
    Key,
    MemoryStore,
    ObjectStore,
    SqliteStore,
    Status,
    Step,
    Store,
    Stored,
)
from wasman_host.store.heads import decode_head, word
from wasman_host.store.sqlite_log import packed, unpacked
from wasman_host.streams import StreamTypes, identify_file
from wasman_sdk.testing import Fault, FaultyStore, How, Point

__all__ = [
    "AT_ONCE",
    "COMPILED",
    "PATIENCE",
    "Cell",
    "DirectoryLab",
    "DiskLab",
    "Handler",
    "Lab",
    "Ledger",
    "MemoryLab",
    "SqliteLab",
    "answers",
    "sink",
    "source",
]

AT_ONCE = Retry(initial_interval=0.0)
COMPILED: dict[str, GuestModule] = {}  # modules are immutable, and compiling them is most of a short test's time
PATIENCE = 60.0  # seconds until a test gives up: a large guest may have to be compiled first, beside three other tests

Handler = Callable[[ActivityCall], Awaitable[bytes] | bytes]


def answers(name: str, handler: Handler, *, retry: Retry = AT_ONCE, timeout: float | None = None) -> ActivityDefinition:
    """An activity as the host knows it."""

    async def handle(call: ActivityCall) -> bytes:
        await checkpoint()
        answer = handler(call)
        return answer if isinstance(answer, bytes) else await answer

    return ActivityDefinition(name, handle, retry, timeout)


@define
class Ledger:
    """What activities have done to the world: one row an attempt."""

    rows: list[tuple[str, int, str, bytes]] = field(factory=list)

    def note(self, call: ActivityCall) -> bytes:
        """An activity that does something and gives back what it was sent."""
        self.rows.append((call.idempotency_key, call.attempt, call.name, call.request))
        return call.request

    def activity(self, name: str = "note", *, retry: Retry = AT_ONCE) -> ActivityDefinition:
        return answers(name, self.note, retry=retry)

    @property
    def keys(self) -> Sequence[str]:
        return [key for key, *_ in self.rows]

    @property
    def attempts(self) -> Sequence[int]:
        return [attempt for _, attempt, *_ in self.rows]

    @property
    def requests(self) -> Sequence[bytes]:
        return [request for *_, request in self.rows]


def moved_by_hand(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """What moves the store's clock on by so many ns: a wait ends when the test says so, however slow the machine is."""
    now, ahead = store.now, 0

    async def sleeping(time: int, _: Key) -> None:
        while store.now() < time:
            await anyio.sleep(0.005)

    def move(by: int) -> None:
        nonlocal ahead
        ahead += by

    monkeypatch.setattr(store, "now", lambda: now() + ahead)
    monkeypatch.setattr(store, "sleep_until", sleeping)
    return move


@define
class Cell:
    """One stored value that a test damages and restores."""

    read: Callable[[], bytes]
    write: Callable[[bytes | None], None]


class Lab:
    """One store's data and those who work on it. `handle` gives what a process of its own would open."""

    def __init__(self) -> None:
        self.store: Store

    async def open(self) -> None:
        self.store = await self.handle()

    async def handle(self) -> Store:
        raise NotImplementedError

    async def bury(self, store: Store, worker: str) -> None:
        """The worker that used this handle has died."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    # Instances

    async def deploy(self, data: bytes, name: str = "", entry: str = "") -> str:
        name = name or hashlib.sha256(data).hexdigest()[:12] + entry
        await deployments.deploy(self.store, "default", name, data, entry)
        return name

    async def start(
        self,
        data: bytes,
        given: object = None,
        *,
        id: str = "w",
        entry: str = "",
        session: bytes | None = None,
        **options: Any,
    ) -> Key:
        name = await self.deploy(data, entry=entry)
        stated = None if session is None else Payload.of(session)
        payload = given if isinstance(given, Payload) else Payload.of(json.dumps(given).encode())
        chosen = starting.StartOptions(**options)
        await starting.start(self.store, "default", id, name, payload, stated, chosen)
        return Key("default", id)

    async def look(self, id: str = "w") -> control.Description:
        return await control.describe(self.store, Key("default", id))

    async def record(self, id: str = "w") -> Record:
        record = (await self.look(id)).record
        assert record is not None
        return record

    async def until(self, *wanted: Status, id: str = "w", reason: str = "") -> control.Description:
        """Wait until the instance has one of these statuses, and `reason` in its reason."""
        found = await self.look(id)
        with anyio.move_on_after(PATIENCE):
            while found.status not in CLOSED and (found.status not in wanted or reason not in found.reason):
                await self.store.watch(Key("default", id), 0.05)
                found = await self.look(id)
        assert found.status in wanted, f"{found.status}: {found.reason}"
        assert reason in found.reason
        return found

    async def ended(self, id: str = "w") -> control.Description:
        return await self.until(
            Status.COMPLETED,
            Status.FAILED,
            Status.CANCELLED,
            Status.TERMINATED,
            Status.BLOCKED,
            Status.TIMED_OUT,
            id=id,
        )

    async def result(self, id: str = "w") -> Any:
        """The result of a run that is to complete."""
        found = await self.ended(id)
        assert found.record is not None
        assert found.status is Status.COMPLETED, f"{found.status}: {found.reason} {found.record.failure}"
        assert found.record.result is not None
        payload = await control.load_payload(self.store, found.stored, found.record.result)
        return json.loads(payload.content or b"null")

    async def blocked(self, error: type[Exception], id: str = "w", reason: str = "") -> control.Description:
        """The description of an instance that is to be blocked by `error`."""
        found = await self.until(Status.BLOCKED, id=id, reason=reason)
        with anyio.fail_after(PATIENCE):
            while found.stored.columns.status is not Status.BLOCKED:  # what nobody can read looks blocked at once
                await anyio.sleep(0.01)
                found = await self.look(id)
        if found.record is not None:
            assert found.record.error == error.__name__, found.reason
        return found

    async def unblock(self, id: str = "w", limits: Limits | None = None) -> None:
        await control.unblock(self.store, Key("default", id), None, limits)

    async def terminate(self, id: str = "w", reason: str = "enough") -> None:
        await control.terminate(self.store, Key("default", id), reason)

    async def cancel(self, id: str = "w", reason: str = "changed my mind") -> None:
        await control.cancel(self.store, Key("default", id), reason)

    async def signal(self, name: str, value: object = None, id: str = "w", message_id: str | None = None) -> None:
        key, payload = Key("default", id), Payload.of(json.dumps(value).encode())
        await control.signal(self.store, key, name, payload, message_id=message_id)

    # Workers

    @contextlib.asynccontextmanager
    async def worker(
        self, *activities: ActivityDefinition, store: object = None, cold: bool = False, **options: Any
    ) -> AsyncIterator[Engine]:
        """A worker that leaves in order; `cold` is one whose process has compiled nothing yet."""
        engine = Engine(cast("Store", store or self.store), {one.name: one for one in activities}, **options)
        if not cold:
            engine._modules = COMPILED
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run)
            await engine.serving.wait()
            yield engine
            await engine.leave()

    async def complete(self, *activities: ActivityDefinition, id: str = "w", **options: Any) -> Any:
        """The result that a new worker brings about."""
        async with self.worker(*activities, **options):
            return await self.result(id)

    async def dies(
        self,
        *activities: ActivityDefinition,
        at: int = 0,
        after: bool = False,
        when: anyio.Event | None = None,
        matching: Callable[[Change | Step], bool] = lambda _: True,
        streams: StreamTypes | None = None,
        snapshots: SnapshotPolicy | None = None,
    ) -> None:
        """A worker works until its `at`-th commit, or until `when`, and dies then."""
        store = await self.handle()
        fault = Fault(Point("commit", at), How.DIES_AFTER if after else How.DIES_BEFORE) if at else None
        dying = FaultyStore(store, fault, counting=lambda name, given: name != "commit" or any(map(matching, given[0])))
        engine = Engine(dying.as_store, {one.name: one for one in activities}, streams=streams, snapshots=snapshots)
        engine._modules = COMPILED
        with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
            dying.die = scope.cancel
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.run)
                if when is not None:
                    await when.wait()
                    scope.cancel()
        assert scope.cancelled_caught, "the worker was to die"
        await self.bury(store, engine.worker)

    # Damage

    def cell(self, kind: str, id: str = "w") -> Cell:
        """Where a stored thing of the instance lies."""
        raise NotImplementedError


class MemoryLab(Lab):
    """Over one store in memory."""

    async def handle(self) -> Store:
        store = getattr(self, "store", None)
        if store is None:
            store = MemoryStore()
            await store.open()
        return cast("Store", store)

    async def bury(self, store: Store, worker: str) -> None:
        assert isinstance(store, MemoryStore)
        store._leases.pop(worker, None)

    async def close(self) -> None:
        await self.store.close()

    def stored(self, id: str = "w") -> Stored:
        assert isinstance(self.store, MemoryStore)
        stored = self.store._instances[Key("default", id)].stored
        assert stored is not None
        return stored

    def rewrite(self, id: str = "w", **fields: Any) -> None:
        """Change what is stored of an instance behind everybody's back."""
        assert isinstance(self.store, MemoryStore)
        self.store._instances[Key("default", id)].stored = evolve(self.stored(id), **fields)


class DiskLab(Lab):
    """Over one place on disk; every handle is a process's own."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._handles: list[Store] = []

    def another(self) -> Store:
        raise NotImplementedError

    async def handle(self) -> Store:
        store = self.another()
        await store.open()
        self._handles.append(store)
        return store

    async def bury(self, store: Store, worker: str) -> None:
        del worker
        await store.close()

    async def close(self) -> None:
        for store in self._handles:
            await store.close()


class DirectoryLab(DiskLab):
    """Over one folder."""

    def another(self) -> Store:
        return ObjectStore(DirectoryBackend(self.path))

    def cell(self, kind: str, id: str = "w") -> Cell:
        [head] = [
            decode_head(path.read_bytes(), path.relative_to(self.path).as_posix(), "")
            for path in self.path.glob(f"i/*/{id}/rec")
        ]
        folder = f"i/default/{id}"
        [path] = {
            "head": [self.path / folder / "rec"],
            "log": [self.path / part.name for part in head.parts[:1]],
            "snapshot": sorted(self.path.glob(f"{folder}/*-b-*-snapshot-*"))[:1],
            "payload": sorted(self.path.glob(f"{folder}/*-b-*-payload-*"))[:1],
            "image": sorted(self.path.glob(f"image/{head.columns.module}*"))[:1] or list(self.path.glob("image/*"))[:1],
            "module": [self.path / "module" / word(head.columns.module)],
        }[kind]

        def write(data: bytes | None) -> None:
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)

        return Cell(path.read_bytes, write)


class SqliteLab(DiskLab):
    """Over one SQLite file."""

    def another(self) -> Store:
        return SqliteStore(self.path)

    def _execute(self, sql: str, *parameters: object) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=5)) as db:
            return db.execute(sql, parameters).fetchall()

    def _entry(self, n: int, id: str) -> Cell:
        """One entry of the log, which a row of the log or of the instance holds together with others."""
        [(run,)] = self._execute("select run_number from instance where id = ?", id)
        insert = "insert into log (run, n, last, entries) values (?, ?, ?, ?)"

        def rows() -> list[tuple[int | None, list[tuple[int, bytes]]]]:
            found = self._execute(
                "select number, entries from log where run = ? union all select null, fresh from instance "
                "where run_number = ?",
                run,
                run,
            )
            return [(number, unpacked(data, id)) for number, data in found]

        def write(data: bytes | None) -> None:
            """Replace it, in a row of its own; None takes it away."""
            for number, entries in rows():
                left = [one for one in entries if one[0] != n]
                if number is None:
                    self._execute("update instance set fresh = ? where id = ?", bytes(packed(left)), id)
                elif left != entries:
                    self._execute("delete from log where number = ?", number)
                    if left:
                        self._execute(insert, run, left[0][0], left[-1][0], bytes(packed(left)))
            if data is not None:
                self._execute(insert, run, n, n, bytes(packed([(n, data)])))

        return Cell(lambda: next(entry for _, held in rows() for at, entry in held if at == n), write)

    def cell(self, kind: str, id: str = "w") -> Cell:
        if kind in {"first entry", "entry"}:
            return self._entry(0 if kind == "first entry" else 2, id)
        run = f"(select run_number from instance where id = '{id}')"  # noqa: S608  the test's own id
        module = f"(select module from instance where id = '{id}')"  # noqa: S608
        table, column, where = {
            "record": ("record", "data", f"instance = (select number from instance where id = '{id}')"),  # noqa: S608
            "tail": ("instance", "tail", f"id = '{id}'"),
            "snapshot": ("blob", "data", f"run = {run} and name like 'snapshot-%'"),
            "payload": ("blob", "data", f"run = {run} and name like 'payload-%'"),
            "image": ("image", "data", f"name like {module} || '%'"),
            "module": ("module", "data", f"sha256 = {module}"),
            "mail": ("mail", "body", f"id = '{id}'"),
        }[kind]

        rows = [self._execute(f"select rowid, * from {table} where {where} limit 1")]  # noqa: S608
        columns = [name for _, name, *_ in self._execute(f"pragma table_info({table})")]
        [row] = rows[0]

        def read() -> bytes:
            return bytes(row[1 + columns.index(column)])

        update = f"update {table} set {column} = ? where rowid = ? and {where} returning 1"  # noqa: S608

        def write(data: bytes | None) -> None:
            """Replace the value; None takes the whole row away, and what comes later brings it back."""
            if data is None:
                self._execute(f"delete from {table} where rowid = ? and {where}", row[0])  # noqa: S608
            elif not self._execute(update, data, row[0]):
                # Not under its old number, which may be another row's by now.
                values = [data if name == column else value for name, value in zip(columns, row[1:], strict=True)]
                values = [None if name == "number" else value for name, value in zip(columns, values, strict=True)]
                self._execute(f"insert into {table} values ({', '.join('?' for _ in columns)})", *values)  # noqa: S608

        return Cell(read, write)


def source(path: Path) -> dict[str, StreamSpec]:
    """A session's one source."""
    return {"source": StreamSpec("file", {"path": str(path)}, identify_file(path))}


def sink(path: Path) -> dict[str, StreamSpec]:
    """A session's one sink."""
    return {"sink": StreamSpec("file", {"path": str(path)})}
