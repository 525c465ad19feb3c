"""The store in one SQLite file: the embedded default.

Writing. Every write is an operation that reads and writes inside an open transaction, or a step, and all of one turn of
the event loop share a transaction on the loop's own thread, which is one fsync for the lot
(`wasman_host.store.group`; a writer thread was measured at half the speed: it pays two hand-overs of the GIL a commit).
All steps of a group are one statement, and so are all log entries. The step of an instance that goes on alone is
written at once, without a turn, and is one statement with its log entry (`wasman_host.store.sqlite_log`).

Reading. An instance that this process has just written or read is not read again as long as no other process has
committed anything since, which `pragma data_version` says at a third of the price of its rows
(`wasman_host.store.recent`).

Watching. The process's own commits wake its watchers at once. Those of others are seen by polling `pragma
data_version`, one read of shared memory, while somebody watches.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from typing_extensions import override

from wasman_host.errors import (
    CorruptSnapshotError,
    InvalidArgumentError,
    StoreUnavailableError,
)
from wasman_host.ids import drawn
from wasman_host.store import statements as sql
from wasman_host.store.forms import FORMER, decode_former, encode_former
from wasman_host.store.group import Group, Transactions, busy, pause
from wasman_host.store.locks import WorkerLocks
from wasman_host.store.protocol import (
    CLOSED,
    Claim,
    Columns,
    Key,
    Lost,
    Message,
    Page,
    Sent,
    Status,
    Step,
    Store,
    Stored,
    Unread,
    Won,
)
from wasman_host.store.recent import Recent
from wasman_host.store.rules import (
    REMEMBER_CONSUMED,
    check_change,
    check_message,
    check_page,
    claim_order,
    claimable,
    cursor_after,
    opened_twice,
    step_verdict,
    turned_away,
    verdict,
)
from wasman_host.store.sqlite_file import connected, explained, identity
from wasman_host.store.sqlite_log import Log, entries_of
from wasman_host.store.sqlite_rows import count_rows, page_rows, searched_of, shown, stored_of
from wasman_host.store.watchers import Visible, Watchers
from wasman_host.wake import call_soon, keeps_order, others_wait, turn

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from wasman_host.store.protocol import Change, Filter
    from wasman_host.wake import Answer

__all__ = ["SqliteStore"]

T = TypeVar("T")

_ROWS = 100_000  # instances whose row numbers are kept in mind
_48_BITS = (1 << 48) - 1
_LOOK = 0.02  # seconds for which the file is taken to be where it was seen
_TURN = 0.01  # between two looks for foreign commits; twice that after a second without any


class SqliteStore(Store, Transactions):
    """Durable instances in one SQLite file, for any number of processes of one machine.

    Args:
        path: The file; it is made if there is none. Beside it SQLite keeps `-wal` and `-shm` files, and the workers
            a folder `-workers`; the four belong together. A network file system will not do.
        busy_timeout: For how long a locked file is tried again, in seconds.
        read_only: Open what is there, and write nothing: every write raises `StoreUnavailableError`.
        clock: Gives the time in ns since 1970; for tests.
    """

    _cursor: sqlite3.Cursor  # of the open file, for what every transaction runs: making one costs as much as a row

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 30.0,
        read_only: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        # SQLite follows links before it names the files beside the store; so must the name of the workers' folder.
        self.path = Path(path).resolve()
        self._name = str(self.path)
        self.busy_timeout = busy_timeout
        self._read_only = read_only
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._looks_at = 0.0  # whether it is still there; by the monotonic clock
        self._group = Group(self)
        self._rows: dict[Key, tuple[int, int]] = {}  # number of the instance's row, and of its run's
        self._log = Log()
        self._touched: list[Key] = []
        self._claimable = False
        self._recent = Recent()
        self._in_turn: dict[Key, Stored] = {}  # what was loaded in this turn of the event loop
        self.repeating = False
        self._watchers = Watchers()
        self._locks = WorkerLocks(self.path.with_name(self.path.name + "-workers"))
        self._lost: set[str] = set()
        self._served = False  # whether what other processes commit is looked for

    def __repr__(self) -> str:
        return f"SqliteStore({str(self.path)!r})"

    @override
    def now(self) -> int:
        return self._clock()

    @override
    def new_run(self, key: Key) -> str:
        # Begun by the time in ms, as UUIDs of version 7 are (RFC 9562): what is started together then lies together in
        # the index of run ids, where random ones write a page each.
        return f"{time.time_ns() // 1_000_000 & _48_BITS:012x}{drawn(20)}"

    # -- opening ------------------------------------------------------------------------------------------------------

    @override
    async def open(self) -> None:
        if self._db is not None:
            raise opened_twice(self.path)
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreUnavailableError(
                f"this Python is linked to SQLite {sqlite3.sqlite_version}; a wasman store needs 3.37 or later"
            )
        self._db = await self._patiently(lambda: connected(self.path, read_only=self._read_only))
        self._cursor = self._db.cursor()
        self._file = identity(self._name)
        # Another connection counts anew, and another file may have taken the place of the one before.
        self._recent, self._log = Recent(), Log()
        self._rows, self._in_turn = {}, {}

    @override
    async def close(self) -> None:
        if self._db is None:
            return
        held = f"the store {self.path} was closed while another process had it locked"
        self._group.close(StoreUnavailableError(held))
        self._locks.close()
        db, self._db = self._db, None
        db.close()
        self._watchers.wake_all()

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreUnavailableError(f"the store {self.path} is not open")
        return self._db

    def pragma(self, name: str) -> int | str:
        """What SQLite says of a setting of this store's own connection, such as "synchronous" (2 is full)."""
        value: int | str = self._connection.execute(f"pragma {name}").fetchone()[0]
        return value

    @override
    def explained(self, error: BaseException) -> BaseException:
        return explained(error, self.path, self.busy_timeout)

    async def _patiently(self, query: Callable[[], T]) -> T:
        """Run a query now; again a little later where the file is locked."""
        deadline = time.monotonic() + self.busy_timeout
        attempt = 0
        while True:
            try:
                return query()
            except sqlite3.Error as error:
                if not busy(error) or time.monotonic() >= deadline:
                    raise self.explained(error) from error
            attempt += 1
            await anyio.sleep(pause(attempt))

    # -- group commit -------------------------------------------------------------------------------------------------

    def _write(self, work: Callable[[], T] | Step) -> Answer[T]:
        """Have the operation, or the step, be part of the next transaction."""
        if self._db is None:
            raise StoreUnavailableError(f"the store {self.path} is not open")
        return self._group.write(work)

    @override
    def cursor(self) -> sqlite3.Cursor:
        self._check_file()
        return self._cursor

    @override
    def write_steps(self, steps: Sequence[Step]) -> bool:
        if len(steps) == 1:
            return self._write_lone(steps[0])
        rows = []
        for step in steps:
            known = self._rows.get(step.key)
            if known is None:
                return False  # each is then looked up
            number, run = known
            self._recent.forget(step.key)
            rows.append((step.nonce, bytearray(step.tail), number, run, step.version))
            self._log.append(run, step.entries)
            self._log.row_kept(run, step)
            if step.blobs:
                self._add_blobs(step, run)
        return self._cursor.executemany(sql.STEP, rows).rowcount == len(rows)

    @override
    def write_alone(self, step: Step) -> bool:
        number, run = self._rows.get(step.key, (0, 0))
        data = None if step.blobs else self._log.with_step(run, step)
        if data is None:
            return False
        self._check_file()
        return self._write_row(step, number, run, data)

    def _write_lone(self, step: Step) -> bool:
        """Inside a transaction: write a step that is alone in it."""
        known = self._rows.get(step.key)
        if known is None:
            return False
        number, run = known
        data = self._log.make_room(self._cursor, number, run, step)
        if data is None:
            return False
        if step.blobs:
            self._add_blobs(step, run)
        return self._write_row(step, number, run, data)

    def _write_row(self, step: Step, number: int, run: int, data: bytearray) -> bool:
        """Write the row of a step with `data` of its log; False where the step is fenced off."""
        self._recent.forget(step.key)
        row = (step.nonce, bytearray(step.tail), data, number, run, step.version)
        if not self._cursor.execute(sql.LONE_STEP, row).rowcount:
            return False
        self._log.row_written(run, step, data)
        return True

    @override
    def write_step(self, step: Step) -> Won | Lost:
        key = step.key
        row = self._fence(key)
        decided = step_verdict(step, None if row is None else row[2:6])
        if decided is not None:
            return decided
        self._know(key, row[0], row[1])
        written = self.write_steps([step])  # not in the assertion: `python -O` leaves those out
        assert written  # the row was read inside this transaction
        return Won(step.version + 1, 0)

    @override
    def finish(self) -> None:
        self._log.write(self._cursor)

    @override
    def landed(self) -> None:
        self._watchers.passes()
        for stored in self._recent.landed():
            if stored.version == 1:
                self._watchers.made(stored.key)
        if self._touched:
            self._watchers.hint(self._touched, claimable=self._claimable)
            self._touched.clear()
            self._claimable = False

    @override
    def undone(self) -> None:
        self._recent.undone()
        self._log.undone()
        self._touched.clear()
        self._claimable = False

    def _know(self, key: Key, number: int, run: int) -> None:
        if len(self._rows) >= _ROWS:
            self._rows.clear()  # those that are forgotten are looked up once more
        self._rows[key] = (number, run)

    def _check_file(self) -> None:
        # A deleted file can still be written to, and all of it is gone when the last process closes it. To look at each
        # commit took a twentieth of the time of a run that goes on alone.
        now = time.monotonic()
        if now < self._looks_at:
            return
        if identity(self._name) != self._file:
            raise StoreUnavailableError(
                f"the store {self.path} was deleted, moved or replaced while it was open: put it back and start again"
            )
        self._looks_at = now + _LOOK

    # -- changes ------------------------------------------------------------------------------------------------------

    @override
    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        for change in changes:
            check_change(change)
        if len(changes) == 1 and isinstance(one := changes[0], Step):  # as nearly all
            won = self._group.at_once(one)
            if won is not None:
                if others_wait():  # and have, for as long as it took
                    await turn()
                return [won]
        answers: list[Answer[Any]] = [
            self._write(change if isinstance(change, Step) else partial(self._apply, change)) for change in changes
        ]
        if len(answers) == 1:  # as nearly all; a comprehension that waits has a frame of its own
            return [await answers[0].wait()]
        return [await answer.wait() for answer in answers]

    def _apply(self, change: Change) -> Won | Lost | Unread:
        """Operation: decide on one change, and write it if it wins."""
        if change.columns is not None and change.columns.closed is not None:
            ended = self._end(change, change.columns)
            if ended is not None:
                return ended
        db, key = self._connection, change.key
        row: Any = None if change.expected is None and self._is_new(key) else self._fence(key)
        unconsumed = 0
        if row is not None and change.consumes:
            unconsumed = sum(
                db.execute(sql.UNCONSUMED, (key.tenant, key.id, message)).fetchone() is not None
                for message in change.consumes
            )
        decided = verdict(change, None if row is None else row[2:6], unconsumed)
        if isinstance(decided, Unread) and db.execute(sql.UNREAD, (key.tenant, key.id)).fetchone()[0] != decided.mail:
            raise CorruptSnapshotError(f"{key} should have {decided.mail} unread messages in {self.path}, and has not")
        if decided is not None:
            return decided
        if change.record is None or change.columns is None:
            won = self._delete(key, row)
        else:
            won = self._put(change, change.record, change.columns, row)
        for child in change.creates:
            if not self._remains(child.key):  # an instance that is there has rows as well
                self._apply(child)
        for message in change.sends:
            self._deliver(message)
        return won

    def _is_new(self, key: Key) -> bool:
        """Whether there is nothing of the key at all."""
        return self._connection.execute(sql.IS_NEW, (key.tenant, key.id) * 3).fetchone() is not None

    def _fence(self, key: Key) -> Any:
        """The row that decides on a change; None where there is no instance, nor anything that one has left behind."""
        row = self._connection.execute(sql.FENCE, (key.tenant, key.id)).fetchone()
        if row is None:
            self._check_remains(key)
        return row

    def _remains(self, key: Key) -> bool:
        return bool(self._connection.execute(sql.REMAINS, (key.tenant, key.id) * 2).fetchone()[0])

    def _check_remains(self, key: Key) -> None:
        if self._remains(key):
            raise CorruptSnapshotError(
                f"the instance {key} has rows of its runs or mail in {self.path}, but its record is missing"
            )

    def _put(self, change: Change, record: bytes, columns: Columns, row: tuple[Any, ...] | None) -> Won:
        db, key = self._connection, change.key
        head = (change.nonce, bytearray(change.tail), columns.takeovers, columns.size)
        searched = searched_of(columns)
        attributes = searched[-1]
        version, mail, before = 0, 0, "{}"
        run = self._add_run(key, change.run) if row is None or change.run != row[2] else row[1]
        if row is None:
            self._moved(key, claimable=_is_claimable(columns))
            number = db.execute(sql.CREATE, (key.tenant, key.id, change.run, run, *head, *searched)).lastrowid
            db.execute(sql.ADD_RECORD, (number, bytearray(record)))
        else:
            number, was_number, was_run, version, _, mail, *was, fresh = row
            self._log.take_over(was_number, fresh, key)
            before = was[-1]
            if change.run != was_run:
                was_stored = stored_of(db.execute(sql.LOAD, (key.tenant, key.id)).fetchone())
                db.execute(sql.ADD_BLOB, (was_number, FORMER, encode_former(was_stored)))
            if change.run == was_run and not change.consumes and tuple(was) == searched:
                self._recent.forget(key)
                written = db.execute(sql.REWRITE, (*head, number, was_run, version)).rowcount
            else:
                self._moved(key, claimable=_is_claimable(columns))
                mail -= len(change.consumes)
                move = (*head, change.run, run, len(change.consumes), *searched, number, was_run, version)
                written = db.execute(sql.MOVE, move).rowcount
            assert written == 1  # the row was read inside this transaction
            db.execute(sql.REWRITE_RECORD, (record, number))
        assert number is not None
        self._know(key, number, run)
        if row is None or columns.closed is not None:
            self._is_read_soon(change, record, columns, version + 1, mail)
        if attributes != before:
            self._drop_attributes(key, before)
            rows = [(key.tenant, name, value, key.id) for name, value in columns.attributes.items()]
            db.executemany(sql.ADD_ATTRIBUTE, rows)
        self._add(change, run)
        return Won(version + 1, mail)

    def _end(self, change: Change, columns: Columns) -> Won | None:
        """Operation: end a run whose row is known and whose mail is empty, as nearly all do; None where it is not so.

        What would be looked up stands in the condition of the statement.
        """
        key, expected, record = change.key, change.expected, change.record
        known = self._rows.get(key)
        more = change.consumes or change.creates or change.sends
        if known is None or more or record is None or expected is None or expected[0] != change.run:
            return None
        number, run = known
        *searched, attributes = searched_of(columns)
        head = (change.nonce, bytearray(change.tail), columns.takeovers, columns.size)
        fresh = self._log.in_row(run, expected[1])
        if not self._connection.execute(sql.END, (*head, *searched, number, *expected, attributes, fresh)).rowcount:
            return None
        self._log.take_over(run, fresh, key)
        self._connection.execute(sql.REWRITE_RECORD, (bytearray(record), number))
        self._moved(key, claimable=False)
        self._is_read_soon(change, record, columns, expected[1] + 1, 0)
        self._add(change, run)
        return Won(expected[1] + 1, 0)

    def _is_read_soon(self, change: Change, record: bytes, columns: Columns, version: int, mail: int) -> None:
        """Whoever has started the run waits for it now, or is about to."""
        stored = Stored(change.key, change.run, version, change.nonce, columns, record, mail, change.tail)
        self._recent.written(stored)

    def _add(self, change: Change, run: int) -> None:
        """What a change writes beside the record."""
        db, key = self._connection, change.key
        if change.consumes:
            now = self.now()
            for message in change.consumes:
                consumed = db.execute(sql.CONSUME, (now, key.tenant, key.id, message)).rowcount
                assert consumed == 1  # by the verdict
        if change.blobs:
            self._add_blobs(change, run)
        for name in change.drops:
            db.execute(sql.DROP_BLOB, (run, name))
        if change.cuts:
            self._log.cut(self._cursor, key, run, change.cuts)
        self._log.append(run, change.entries)

    def _add_blobs(self, change: Change | Step, run: int) -> None:
        try:
            self._connection.executemany(sql.ADD_BLOB, [(run, blob.name, blob.data) for blob in change.blobs])
        except sqlite3.IntegrityError as error:
            message = f"{change.key}: a blob of its run {change.run} is there already"
            raise CorruptSnapshotError(message) from error

    def _add_run(self, key: Key, run: str) -> int:
        try:
            number = self._connection.execute(sql.ADD_RUN, (run, key.tenant, key.id)).lastrowid
        except sqlite3.IntegrityError as error:
            raise InvalidArgumentError(f"change of {key}: there is a run {run} already; draw a new one") from error
        assert number is not None
        return number

    def _drop_attributes(self, key: Key, attributes: str) -> None:
        if attributes != "{}":
            rows = [(key.tenant, name, value, key.id) for name, value in json.loads(attributes).items()]
            self._connection.executemany(sql.DROP_ATTRIBUTE, rows)

    def _delete(self, key: Key, row: tuple[Any, ...]) -> Won:
        self._log.write(self._cursor)  # what members before this one have appended goes as well
        *_, attributes, _ = row
        self._drop_attributes(key, attributes)
        for statement in sql.DELETE:
            self._connection.execute(statement, (key.tenant, key.id))
        self._rows.pop(key, None)
        self._moved(key, claimable=False)
        return Won(0, 0)

    def _moved(self, key: Key, *, claimable: bool) -> None:
        """Others can see a difference; those who watch are told when it is on disk."""
        self._recent.forget(key)
        self._touched.append(key)
        self._claimable |= claimable

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    async def load(self, key: Key) -> Stored | None:
        stored = await self._patiently(partial(self._stored, key))
        if stored is None:
            self._watchers.saw(key, None)
            return None
        self._watchers.saw(key, (stored.run, stored.columns.status, stored.mail))
        return stored

    @override
    async def load_in_turn(self, key: Key) -> Stored | None:
        stored = self._in_turn.get(key)
        if stored is None:
            stored = await self.load(key)
            if stored is not None and keeps_order():
                if not self._in_turn:
                    # Whoever hears of something that is committed after this look goes on after this call.
                    call_soon(self._in_turn.clear)
                self._in_turn[key] = stored
        return stored

    @override
    def remembered(self, key: Key) -> Stored | None:
        return self._recent.known(key) if self._served else None  # else nobody would find out that it is out of date

    def _stored(self, key: Key) -> Stored | None:
        stored = self._recent.get(key, self._data_version())
        if stored is None:
            row = self._row(key) or self._row_or_nothing(key)
            if row is None:
                return None
            stored = stored_of(row)
            self._recent.read(stored)
        return stored

    def _data_version(self) -> int:
        """Another number than before, if another process has committed something since."""
        version: int = self._connection.execute("pragma data_version").fetchone()[0]
        return version

    def _row(self, key: Key) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(sql.LOAD, (key.tenant, key.id)).fetchone()
        return row

    def _row_or_nothing(self, key: Key) -> tuple[Any, ...] | None:
        """Where there is no row, there is nothing else either: by one view of the file, for it may just be made."""
        self._connection.execute("begin")
        try:
            row = self._row(key)
            if row is None:
                self._check_remains(key)
            return row
        finally:
            self._connection.execute("rollback")

    @override
    async def former(self, key: Key, run: str) -> Stored | None:
        data = await self._one(sql.FORMER, FORMER, run, key.tenant, key.id)
        return None if data is None else decode_former(key, run, data)

    @override
    async def read(self, run: str, start: int = 0, stop: int | None = None) -> list[tuple[int, bytes]]:
        end = 2**63 - 1 if stop is None else stop
        return await self._patiently(lambda: entries_of(self._connection, run, start, end))

    @override
    async def blob(self, run: str, name: str) -> bytes | None:
        return await self._one(sql.BLOB, run, name)

    async def _one(self, query: str, *parameters: str) -> bytes | None:
        row = await self._patiently(lambda: self._connection.execute(query, parameters).fetchone())
        return None if row is None else row[0]

    @override
    async def put_module(self, digest: str, data: bytes) -> None:
        await self._write(lambda: self._connection.execute(sql.PUT_MODULE, (digest, data)).rowcount).wait()

    @override
    async def module(self, digest: str) -> bytes | None:
        return await self._one(sql.MODULE, digest)

    @override
    async def put_image(self, name: str, data: bytes) -> None:
        await self._write(lambda: self._connection.execute(sql.PUT_IMAGE, (name, data)).rowcount).wait()

    @override
    async def image(self, name: str) -> bytes | None:
        return await self._one(sql.IMAGE, name)

    # -- mail ---------------------------------------------------------------------------------------------------------

    @override
    async def send(self, message: Message) -> Sent:
        check_message(message)
        return await self._write(partial(self._send, message)).wait()

    def _send(self, message: Message) -> Sent:
        """Operation: deliver one message."""
        sent = self._deliver(message)
        if (
            sent is Sent.ABSENT
            and not self._connection.execute(sql.LOAD, (message.key.tenant, message.key.id)).fetchone()
        ):
            self._check_remains(message.key)
        return sent

    def _deliver(self, message: Message) -> Sent:
        db, key = self._connection, message.key
        row = db.execute(sql.RECEIVER, (key.tenant, key.id)).fetchone()
        if row is None or not row[2]:
            return Sent.ABSENT
        number, status, _, run, version, unread = row
        refused = turned_away(message, version, unread)
        if Status(status) in CLOSED or (message.run and message.run != run):
            refused = Sent.CLOSED
        if refused is not None:
            is_sent = db.execute(sql.IS_SENT, (key.tenant, key.id, message.id)).fetchone()
            return Sent.DUPLICATE if is_sent else refused
        letter = (key.tenant, key.id, message.id, message.kind, message.body, self.now())
        if not db.execute(sql.SEND, letter).rowcount:
            return Sent.DUPLICATE
        db.execute(sql.MAILED_ONE, (number,))
        self._moved(key, claimable=True)
        return Sent.ACCEPTED

    @override
    async def mail(self, key: Key) -> list[Message]:
        rows = await self._patiently(lambda: self._connection.execute(sql.MAIL, (key.tenant, key.id)).fetchall())
        return [Message(key, *row) for row in rows]

    @override
    async def mailed(self, worker: str) -> list[Key]:
        rows = await self._patiently(lambda: self._connection.execute(sql.MAILED, (worker,)).fetchall())
        return [Key(*row) for row in rows]

    # -- workers ------------------------------------------------------------------------------------------------------

    @override
    async def claim(self, worker: str, queues: Sequence[str], limit: int) -> list[Claim]:
        if limit < 1:
            return []
        # Most looks find nothing; only one that does pays for a transaction.
        if not await self._patiently(lambda: self._candidates(worker, queues, 1)):
            return []
        return await self._write(partial(self._claim, worker, queues, limit, secrets.token_hex(16))).wait()

    def _candidates(self, worker: str, queues: Sequence[str], limit: int) -> list[tuple[int, Stored, bool]]:
        """(row number, instance, whether its owner is dead) of what `worker` may take, in the order of taking."""
        db, now = self._connection, self.now()
        lease = db.execute(sql.LEASE, (worker,)).fetchone()
        if lease is None or lease[0] <= now:
            return []  # whoever takes what others may take back at once should beat first
        rows: dict[int, tuple[Any, ...]] = {}
        dead = [owner for owner, lease in db.execute(sql.OWNERS).fetchall() if self._is_dead(owner, lease, now)]
        for owner in dead:
            rows.update((row[0], row) for row in db.execute(sql.OWNED, (owner,)).fetchall())
        wanted = dict.fromkeys(queues)
        for queue in wanted:
            rows.update((row[0], row) for row in db.execute(sql.DUE, (queue, now, limit)).fetchall())
            rows.update((row[0], row) for row in db.execute(sql.DUE_BY_MAIL, (queue, limit)).fetchall())
            rows.update((row[0], row) for row in db.execute(sql.EXPIRED, (queue, now, limit)).fetchall())
        found = [(number, shown(row)) for number, *row in rows.values()]
        taken = [
            (number, stored, stored.columns.owner is not None)
            for number, stored in found
            if stored.columns.queue in wanted and claimable(stored.columns, stored.mail, now, owner_dead=True)
        ]
        return sorted(taken, key=lambda one: claim_order(one[1].columns, one[0], now))[:limit]

    def _claim(self, worker: str, queues: Sequence[str], limit: int, nonce: str) -> list[Claim]:
        """Operation: take instances for a worker."""
        db = self._connection
        plain, takeover = nonce + "c", nonce + "t"
        if self.repeating and (landed := db.execute(sql.CLAIMED, (worker, plain, takeover)).fetchall()):
            return [Claim(stored, stored.nonce == takeover) for stored in map(stored_of, landed)]
        claims: list[Claim] = []
        for number, stored, dead in self._candidates(worker, queues, limit):
            if dead and stored.columns.owner is not None:
                self._remove(stored.columns.owner)
            change = (takeover if dead else plain, worker, int(dead), number, stored.version)
            self._recent.forget(stored.key)
            claimed = db.execute(sql.CLAIM, change).rowcount
            assert claimed == 1  # the row was read inside this transaction
            row = db.execute(sql.LOAD, (stored.key.tenant, stored.key.id)).fetchone()
            claims.append(Claim(stored_of(row), dead))
        return claims

    def _is_dead(self, worker: str, lease: int | None, now: int) -> bool:
        """Whether what the worker owns may be taken; `lease` is None where it is not registered (any more)."""
        return lease is None or lease <= now or self._locks.has_died(worker)

    def _remove(self, worker: str) -> None:
        """Inside a transaction: a dead worker is nobody any more; if it lives after all, its next beat tells it."""
        if self._connection.execute(sql.REMOVE, (worker,)).rowcount:
            self._locks.delete(worker)

    @override
    async def beat(self, worker: str, ttl: float, info: Mapping[str, Any]) -> int | None:
        if worker in self._lost:
            return None
        text = json.dumps(dict(info), sort_keys=True)
        known = worker in self._locks
        try:
            now = await self._write(partial(self._beat, worker, round(ttl * 1e9), text, known=known)).wait()
        except BaseException:
            if not known:
                self._locks.give_up(worker, delete=True)
            raise
        if now is None:
            self._lost.add(worker)
            self._locks.give_up(worker)
        return now

    def _beat(self, worker: str, ttl: int, info: str, *, known: bool) -> int | None:
        """Operation: prolong a lease, or register a worker that has none."""
        db, now = self._connection, self.now()
        db.execute(sql.FORGET, (now - REMEMBER_CONSUMED,))
        if known:
            return now if db.execute(sql.BEAT, (now + ttl, info, worker)).rowcount else None
        self._sweep()
        if worker not in self._locks:
            if db.execute(sql.LEASE, (worker,)).fetchone() is not None:
                return None  # somebody else goes by that id
            self._locks.take(worker)
        db.execute(sql.REGISTER, (worker, now + ttl, info))
        return now

    def _sweep(self) -> None:
        """Inside a transaction: remove the workers that have died, and files that no worker's row stands for."""
        workers = [worker for worker, _ in self._connection.execute(sql.WORKERS).fetchall()]
        dead = {worker for worker in workers if self._locks.has_died(worker)}
        for worker in dead:
            self._remove(worker)
        self._locks.sweep(set(workers) - dead)

    @override
    async def leave(self, worker: str) -> None:
        await self._write(partial(self._leave, worker, secrets.token_hex(16))).wait()
        self._lost.add(worker)
        self._locks.give_up(worker, delete=True)

    def _leave(self, worker: str, nonce: str) -> None:
        """Operation: end a worker and hand over what it owns; the version moves on, so that it cannot write to it."""
        db = self._connection
        for _, *row in db.execute(sql.OWNED, (worker,)).fetchall():
            self._moved(stored_of(row).key, claimable=True)
        now = self.now()
        db.execute(sql.RELEASE, (nonce, now, now, worker))
        db.execute(sql.REMOVE, (worker,))

    # -- watching -----------------------------------------------------------------------------------------------------

    @override
    async def watch(self, key: Key | None, timeout: float) -> None:
        if key is None:
            await self._watchers.watch(None, timeout)
            return
        if self._served and self._watchers.is_fresh(key):
            await self._watchers.watch(key, timeout)
            return
        state = await self._patiently(partial(self._state, key))
        if self._watchers.moved(key, state):
            self._watchers.saw(key, state)
        else:
            await self._watchers.watch(key, timeout)

    def _state(self, key: Key) -> Visible | None:
        stored = self._recent.get(key, self._data_version())
        return self._states([key]).get(key) if stored is None else (stored.run, stored.columns.status, stored.mail)

    def _states(self, keys: Sequence[Key]) -> dict[Key, Visible]:
        text = json.dumps([(key.tenant, key.id) for key in keys])
        rows = self._connection.execute(sql.STATES, (text,)).fetchall()
        return {Key(tenant, instance): (run, status, mail) for tenant, instance, run, status, mail in rows}

    @override
    def wake(self) -> None:
        self._watchers.hint((), claimable=True)

    @override
    async def serve(self) -> None:
        self._served = True
        try:
            await self._look_for_others()
        finally:
            self._served = False

    async def _look_for_others(self) -> None:
        seen, quiet = -1, 0
        while True:
            await self._watchers.watched()
            await anyio.sleep(_TURN if quiet < 1 / _TURN else 2 * _TURN)
            quiet += 1
            self._watchers.passes()
            try:
                version = self._data_version()
                self._recent.looked(version)
                if version != seen:
                    seen, quiet = version, 0
                    keys = self._watchers.keys
                    self._watchers.foreign(self._states(keys) if keys else {})
            except sqlite3.Error as error:
                if not busy(error):
                    raise self.explained(error) from error

    # -- listing ------------------------------------------------------------------------------------------------------

    @override
    async def list(self, where: Filter, limit: int = 100, cursor: str | None = None) -> Page:
        after = check_page(limit, cursor)
        rows = await self._patiently(lambda: page_rows(self._connection, where, after, limit + 1))
        page = [shown(row) for row in rows]
        return Page(page[:limit], cursor_after(page, limit))

    @override
    async def count(self, where: Filter) -> int:
        return await self._patiently(lambda: count_rows(self._connection, where))


def _is_claimable(columns: Columns) -> bool:
    """Whether a worker may take an instance that was left so, now or later."""
    return columns.owner is None and columns.closed is None
