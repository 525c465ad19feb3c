"""Where instances are kept: one protocol, and the stores that implement it."""

from __future__ import annotations

from wasman_host.errors import InvalidArgumentError
from wasman_host.store.memory import MemoryStore
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

__all__ = [
    "CLOSED",
    "OPEN",
    "Blob",
    "Change",
    "Claim",
    "Columns",
    "Filter",
    "Key",
    "Lost",
    "MemoryStore",
    "Message",
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
]


def open_store(url: str) -> Store:
    """The store that a URL names, not yet opened.

    Args:
        url: `sqlite:///relative.db` (relative to the current directory, now), `sqlite:////absolute.db`, or `memory://`
            (a new store of this process's own at each call). What follows `sqlite:///` is a path, taken as it is.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    if url == "memory://":
        return MemoryStore()
    path = url.removeprefix("sqlite:///")
    if path == url or not path or "\0" in path:
        message = f"{url!r} names no store: use sqlite:///relative.db, sqlite:////absolute/path.db or memory://"
        raise InvalidArgumentError(message)
    return SqliteStore(path)
