"""The file of a SQLite store: made or opened, told from another one, and its errors in words."""

from __future__ import annotations

import os
import sqlite3
from importlib import resources
from typing import TYPE_CHECKING

from wasman_host.errors import (
    CorruptSnapshotError,
    InvalidArgumentError,
    StoreError,
    StoreSchemaError,
    StoreUnavailableError,
)
from wasman_host.store.group import busy
from wasman_host.store.sqlite_log import packed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["APPLICATION_ID", "SCHEMA", "connected", "explained", "identity"]

APPLICATION_ID = 0x77736D6E  # "wsmn"
SCHEMA = 3
_BEFORE = 2

_ADVICE = {
    sqlite3.SQLITE_FULL: "is full: free some space on its disk",
    sqlite3.SQLITE_READONLY: "is read-only: make the file and its folder writable for this user",
    sqlite3.SQLITE_PERM: "must not be opened: give this user access to the file and its folder",
    sqlite3.SQLITE_AUTH: "must not be opened: give this user access to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: its folder must exist and be writable, and it must be a file",
    sqlite3.SQLITE_IOERR: "cannot be read or written: look at its disk",
    sqlite3.SQLITE_NOMEM: "cannot be used for lack of memory",
}


def connected(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection to the store in that file, which is made if there is none.

    Raises:
        StoreSchemaError: The file is of another program, or of another wasman.
        StoreUnavailableError: It cannot be made or used here.
    """
    mode = "ro" if read_only else "rwc"
    # Nobody but this user reads what workflows carry; SQLite gives the files beside it the mode of this one.
    if not read_only and path.parent.is_dir() and not path.exists():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreUnavailableError(f"the store {path} cannot be made: {error.strerror}") from error
    db = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=0)
    try:
        _prepare(db, path, read_only=read_only)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    def pragma(name: str) -> int | str:
        value: int | str = db.execute(f"pragma {name}").fetchone()[0]
        return value

    def empty() -> bool:
        return pragma("application_id") == 0 and not db.execute("select 1 from sqlite_schema limit 1").fetchall()

    def make() -> None:
        _run(db, "schema.sql")
        db.execute(f"pragma application_id = {APPLICATION_ID}")
        db.execute(f"pragma user_version = {SCHEMA}")

    def is_of_before() -> bool:
        return pragma("application_id") == APPLICATION_ID and pragma("user_version") == _BEFORE

    def migrate() -> None:
        db.create_function("packed", 2, lambda n, entry: packed([(n, entry)]))
        _run(db, f"schema_{_BEFORE}.sql")
        db.execute(f"pragma user_version = {SCHEMA}")

    if not read_only:
        _change(db, empty, make)
        _change(db, is_of_before, migrate)
    if pragma("application_id") != APPLICATION_ID:
        raise StoreSchemaError(f"{path} is the file of another program: give the store a file of its own")
    if (schema := int(pragma("user_version"))) != SCHEMA:
        advice = "a newer wasman has made it, so upgrade this one"
        if schema == _BEFORE:
            advice = "it is brought up to that when it is opened to be written to, by a worker for example"
        elif schema < _BEFORE:
            advice = "wasman had no release then, and none reads it; start with a new file"
        raise StoreSchemaError(f"the store {path} has schema {schema}, and this wasman knows {SCHEMA}: {advice}")
    if (mode := pragma("journal_mode" if read_only else "journal_mode = wal")) != "wal":
        raise StoreUnavailableError(
            f"the store {path} cannot use a write-ahead log here (mode {mode!r}): move it to a local disk"
        )
    db.execute("pragma synchronous = full")
    # On macOS an fsync without these does not reach the disk; elsewhere they mean nothing.
    db.execute("pragma fullfsync = on")
    db.execute("pragma checkpoint_fullfsync = on")


def _change(db: sqlite3.Connection, wanted: Callable[[], bool], change: Callable[[], None]) -> None:
    """Change the file where that is wanted, all of it or nothing."""
    if not wanted():
        return
    # First the write lock, then a second look: another process may be doing the same.
    db.execute("begin immediate")
    try:
        if wanted():
            change()
        db.execute("commit")
    finally:
        if db.in_transaction:
            db.execute("rollback")


def _run(db: sqlite3.Connection, name: str) -> None:
    """Inside a transaction, which `executescript` would end."""
    for statement in resources.files(__package__).joinpath(name).read_text("utf-8").split(";"):
        db.execute(statement)


def identity(name: str) -> tuple[int, int] | None:
    """What tells the file of that name from one that has taken its place; None where it is gone."""
    try:
        status = os.stat(name)  # noqa: PTH116  once a group: Path.stat costs three times as much
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def explained(error: BaseException, path: Path, busy_timeout: float) -> BaseException:
    """What to raise instead of an error of SQLite or of the operating system; anything else is itself."""
    if isinstance(error, OSError):
        unavailable: StoreError = StoreUnavailableError(f"the store {path}: {error.strerror} ({error.filename})")
        unavailable.__cause__ = error
        return unavailable
    if not isinstance(error, sqlite3.Error):
        return error
    code = _code(error)
    result: BaseException = error
    if busy(error):
        held = f"was locked by another process for {busy_timeout:g} s: find out which one, and end it"
        result = StoreUnavailableError(f"the store {path} {held}")
    elif code in _ADVICE:
        result = StoreUnavailableError(f"the store {path} {_ADVICE[code]} (SQLite: {error})")
    elif code == sqlite3.SQLITE_NOTADB:
        result = StoreSchemaError(f"{path} is the file of another program: give the store a file of its own")
    elif code == sqlite3.SQLITE_CORRUPT:
        result = CorruptSnapshotError(
            f"the store {path} is damaged (SQLite: {error}): stop all workers and restore a backup"
        )
    elif code == sqlite3.SQLITE_TOOBIG:
        result = InvalidArgumentError(f"the store {path} cannot keep a value that large (SQLite: {error})")
    if result is not error:
        result.__cause__ = error
    return result


def _code(error: BaseException) -> int:
    """SQLite's primary result code, or -1."""
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    return -1 if code is None else code & 0xFF
