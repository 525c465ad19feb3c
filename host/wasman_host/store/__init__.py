"""Where instances are kept: one protocol, and the stores that implement it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasman_host.errors import InvalidArgumentError
from wasman_host.store.directory import DirectoryBackend
from wasman_host.store.memory import MemoryStore
from wasman_host.store.objects import ObjectStore
from wasman_host.store.protocol import (
    CLOSED,
    OPEN,
    Blob,
    Change,
    Claim,
    Columns,
    Filter,
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
from wasman_host.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CLOSED",
    "OPEN",
    "Blob",
    "Change",
    "Claim",
    "Columns",
    "DirectoryBackend",
    "Filter",
    "Key",
    "Lost",
    "MemoryStore",
    "Message",
    "ObjectStore",
    "Page",
    "Sent",
    "SqliteStore",
    "Status",
    "Step",
    "Store",
    "Stored",
    "Unread",
    "Won",
    "open_store",
    "path_of",
]

_SCHEMES = ("sqlite:///", "file://")
_DATABASES = (".db", ".sqlite", ".sqlite3")


def open_store(url: str) -> Store:
    """The store that a URL names, not yet opened.

    Args:
        url: `sqlite:///relative.db` (relative to the current directory, now), `sqlite:////absolute.db`,
            `file://relative/folder`, `file:///absolute/folder`, or `memory://` (a new store of this process's own at
            each call). What follows `sqlite:///` or `file://` is a path, taken as it is. A path alone that begins
            with `/`, `./` or `../` is a folder as well, unless it ends as a database does.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    if url == "memory://":
        return MemoryStore()
    scheme, path = next(((scheme, url[len(scheme) :]) for scheme in _SCHEMES if url.startswith(scheme)), ("", ""))
    if not scheme and url.startswith(("/", "./", "../")) and not url.endswith(_DATABASES):
        scheme, path = "file://", url
    if not path or "\0" in path:
        message = (
            f"{url!r} names no store: use sqlite:///relative.db, sqlite:////absolute/path.db, file://relative/folder, "
            "file:///absolute/folder or memory://"
        )
        raise InvalidArgumentError(message)
    return SqliteStore(path) if scheme == "sqlite:///" else ObjectStore(DirectoryBackend(path))


def path_of(store: object) -> Path | None:
    """Where a store lies on this machine: its file or its folder; None where it does not."""
    if isinstance(store, ObjectStore) and isinstance(store.backend, DirectoryBackend):
        return store.backend.path
    return store.path if isinstance(store, SqliteStore) else None
