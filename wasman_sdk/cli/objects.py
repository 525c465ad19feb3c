"""What the command line names and gives: Python objects by module:attribute, and JSON."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from wasman_host.store import MemoryStore, open_store, path_of
from wasman_sdk import Session, Worker
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.options import DEFAULT_STORE

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["imported", "imported_module", "named", "session_class", "validated", "worker_of"]

T = TypeVar("T")


def imported(name: str) -> Any:
    """The object that `module:attribute` names; the working directory is importable."""
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise Refused(f"{name!r} names nothing: write module:attribute, such as app:worker", USAGE)
    found: Any = imported_module(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise Refused(f"{name!r} names nothing: {module_name!r} has no attribute {path!r}", USAGE) from None
    return found


def imported_module(name: str) -> Any:
    """The module `name`; the working directory is importable."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  whatever the application raises, it is told in one line
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise Refused(f"there is no module {error.name!r} in the working directory or on the path", USAGE) from None
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
        raise Refused(f"{name!r} cannot be imported: {what}{where}", USAGE) from None


def named(name: str, kind: type[T]) -> T:
    """The object of this class that `module:attribute` names."""
    found = imported(name)
    if not isinstance(found, kind):
        raise Refused(f"{name!r} is a {type(found).__name__}, not a {kind.__name__}", USAGE)
    return found


def worker_of(name: str, store: str | None) -> Worker:
    """The worker that `name` gives: itself, or made by a function that takes nothing, or the store's URL.

    `store` is the URL that was asked for, None where none was: then a worker keeps its own.
    """
    found = imported(name)
    if callable(found) and not isinstance(found, Worker):
        try:
            wanted = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
        except (TypeError, ValueError):
            wanted = []
        if len(wanted) > 1:
            message = f"{name!r} takes {len(wanted)} arguments; what makes a worker takes the store's URL, or nothing"
            raise Refused(message, USAGE)
        found = found(store or DEFAULT_STORE) if wanted else found()
        if inspect.iscoroutine(found):
            found.close()
            raise Refused(f"{name!r} is async; what makes a worker is a plain function", USAGE)
    if not isinstance(found, Worker):
        raise Refused(f"{name!r} gives a {type(found).__name__}, not a Worker", USAGE)
    if store is not None and not _same(found.client.store, open_store(store)):
        message = (
            f"{name!r} uses the store {_place(found.client.store)}, and --store or WASMAN_STORE says {store}; "
            f"make it a function that takes the URL, or say none"
        )
        raise Refused(message, USAGE)
    return found


def _place(store: object) -> str:
    path = path_of(store)
    return type(store).__name__ if path is None else str(path)


def _same(one: object, other: object) -> bool:
    if (path := path_of(one)) is not None:
        return type(one) is type(other) and path == path_of(other)
    return isinstance(one, MemoryStore) and isinstance(other, MemoryStore)


def session_class(name: str) -> type[Session]:
    """The Session class that `name` names."""
    found = imported(name)
    if not (inspect.isclass(found) and issubclass(found, Session)):
        raise Refused(f"{name!r} is no Session class", USAGE)
    return found


def validated(what: str, adapter: TypeAdapter[T], given: str) -> T:
    """JSON from the command line, from stdin (-), or from the file behind an @."""
    if given.startswith("@") or given == "-":
        try:
            given = sys.stdin.buffer.read().decode() if given == "-" else Path(given[1:]).read_text("utf-8")
        except OSError as error:
            raise Refused(f"the {what} cannot be read from {given[1:]}: {error.strerror}", USAGE) from None
        except UnicodeError:
            raise Refused(f"the {what} cannot be read from {given[1:] or 'stdin'}: it is not UTF-8", USAGE) from None
    try:
        return adapter.validate_json(given)
    except ValidationError as error:
        # Without the value itself: a session may hold what is not for everybody's eyes.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise Refused(f"the {what} does not fit: {where}{': ' if where else ''}{first['msg']}{more}", USAGE) from None
