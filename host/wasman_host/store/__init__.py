"""Where instances are kept: one protocol, and the stores that implement it.

A process uses one of the stores, so each is imported when its name is first asked for.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from wasman_host.errors import InvalidArgumentError
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
    Room,
    Sent,
    Status,
    Step,
    Store,
    Stored,
    Unread,
    Won,
)

if TYPE_CHECKING:
    from wasman_host.store.directory import DirectoryBackend
    from wasman_host.store.memory import MemoryStore
    from wasman_host.store.objects import ObjectStore
    from wasman_host.store.skipping import SkippingStore
    from wasman_host.store.sqlite import SqliteStore

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
    "Room",
    "Sent",
    "SkippingStore",
    "SqliteStore",
    "Status",
    "Step",
    "Store",
    "Stored",
    "Unread",
    "Won",
    "open_store",
    "path_of",
    "redacted",
]

_LATE = {
    "DirectoryBackend": "directory",
    "MemoryStore": "memory",
    "ObjectStore": "objects",
    "SkippingStore": "skipping",
    "SqliteStore": "sqlite",
}

_PASSWORD = re.compile(r"(://[^/\s:@'\"]*:)[^\s'\"]*@")
_SECRET = re.compile(r"(?i)([?&](?:password|passwd|pwd|secret|token|key|sslpassword)=)[^&\s'\"]*")

_SCHEMES = ("sqlite:///", "file://")
_DATABASES = (".db", ".sqlite", ".sqlite3")


def __getattr__(name: str) -> object:
    if name not in _LATE:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return found


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
        from wasman_host.store.memory import MemoryStore  # noqa: PLC0415  see above

        return MemoryStore()
    scheme, path = next(((scheme, url[len(scheme) :]) for scheme in _SCHEMES if url.startswith(scheme)), ("", ""))
    if not scheme and url.startswith(("/", "./", "../")) and not url.endswith(_DATABASES):
        scheme, path = "file://", url
    if not path or "\0" in path:
        message = (
            f"{redacted(url)!r} names no store: use sqlite:///relative.db, sqlite:////absolute/path.db, "
            "file://relative/folder, file:///absolute/folder or memory://"
        )
        raise InvalidArgumentError(message)
    if scheme == "sqlite:///":
        from wasman_host.store.sqlite import SqliteStore  # noqa: PLC0415  see above

        return SqliteStore(path)
    from wasman_host.store.directory import DirectoryBackend  # noqa: PLC0415  see above
    from wasman_host.store.objects import ObjectStore  # noqa: PLC0415  see above

    return ObjectStore(DirectoryBackend(path))


def redacted(text: str) -> str:
    """`text` without the passwords of the URLs in it, for messages and logs."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def path_of(store: object) -> Path | None:
    """Where a store lies on this machine: its file or its folder; None where it does not."""
    path = getattr(getattr(store, "backend", store), "path", None)
    return path if isinstance(path, Path) else None
