"""Rows of SQLite: what they say of an instance, and which of them a listing shows.

A listing is newest first, so the usual way is along the index of creation times, and looks at what else is asked
for on the way: quick where much of what is there matches. Where little of it does, that way is long; then the few that
match are found by an index of their own, and sorted. SQLite cannot know which it is without statistics, which nobody
keeps; so it is counted first, as far as `_FEW`. Several statuses are a query each, whose pages are merged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from wasman_host.errors import CorruptSnapshotError
from wasman_host.store import statements as sql
from wasman_host.store.protocol import Columns, Key, Status, Stored

if TYPE_CHECKING:
    import sqlite3

    from wasman_host.store.protocol import Filter

__all__ = ["count_rows", "page_rows", "searched_of", "shown", "stored_of"]

_FEW = 1000  # rows that are sorted rather than looked for along the index of creation times
_LAST = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)

_SHOWN = "tenant = ? and workflow <> ''"
_ATTRIBUTE = "select id from attribute where tenant = ? and name = ? and value = ?"
_HAS_ATTRIBUTE = """exists (select 1 from attribute as a where a.tenant = instance.tenant and a.name = ?
    and a.value = ? and a.id = instance.id)"""


@frozen
class _Part:
    """One query of a listing: which index it goes along, if that is said, and its condition, with its parameters."""

    index: str
    condition: str
    parameters: Sequence[Any]


def page_rows(
    db: sqlite3.Connection, where: Filter, after: tuple[int, str] | None, limit: int
) -> list[tuple[Any, ...]]:
    """Up to `limit` rows of `COLUMNS` behind (created, id) of the last row before, newest first."""
    more, behind = "", []
    if after is not None:
        more = " and created <= ? and (created < ? or id > ?)"
        behind = [after[0], *after]
    queries, parameters = [], []
    for part in _parts(db, where):
        # The order of the whole is that of its parts, so each need give no more than all do.
        order = "order by created desc, id limit ?"
        table = sql.INSTANCE.replace("instance", f"instance{part.index}", 1)
        queries.append(f"select * from (select {sql.COLUMNS} from {table} where {part.condition}{more} {order})")  # noqa: S608
        parameters += [*part.parameters, *behind, limit]
    if not queries:
        return []
    if len(queries) == 1:
        return db.execute(queries[0], parameters).fetchall()
    query = " union all ".join(queries) + " order by created desc, id limit ?"
    return db.execute(query, [*parameters, limit]).fetchall()


def count_rows(db: sqlite3.Connection, where: Filter) -> int:
    """How many rows match."""
    counts = [
        db.execute(f"select count(*) from instance{part.index} where {part.condition}", part.parameters).fetchone()[0]  # noqa: S608
        for part in _parts(db, where)
    ]
    return sum(counts)


def _parts(db: sqlite3.Connection, where: Filter) -> list[_Part]:
    statuses = [None] if where.status is None else sorted(status.value for status in where.status)
    return [_part(db, where, status) for status in statuses]


def _part(db: sqlite3.Connection, where: Filter, status: str | None) -> _Part:
    parts: list[str] = [_SHOWN]
    parameters: list[Any] = [where.tenant]
    for part, value in (
        ("workflow = ?", where.workflow),
        ("status = ?", status),
        ("created >= ?", where.created_from),
        ("created < ?", where.created_to),
        ("closed >= ?", where.closed_from),
        ("closed < ?", where.closed_to),
        ("parent = ?", where.parent),
    ):
        if value is not None:
            parts.append(part)
            parameters.append(value)
    if where.id_prefix:
        parts.append("substr(id, 1, ?) = ?")
        parameters += [len(where.id_prefix), where.id_prefix]
    for name, value in where.attributes.items():
        parts.append(_HAS_ATTRIBUTE)
        parameters += [name, value]
    index, condition, few = _short_way(db, where, status)
    if condition:
        parts.append(condition)
        parameters += few
    return _Part(index, " and ".join(parts), parameters)


def _short_way(db: sqlite3.Connection, where: Filter, status: str | None) -> tuple[str, str, Sequence[Any]]:
    """An index by which the few that match are found, what it needs of the condition, and parameters; or blanks."""
    if where.parent is not None:
        return " indexed by instance_parent", "", ()
    by_id = " indexed by sqlite_autoindex_instance_1"
    for name, value in where.attributes.items():
        of_attribute = (where.tenant, name, value)
        if _is_few(db, _ATTRIBUTE, of_attribute):
            return by_id, f"id in ({_ATTRIBUTE})", of_attribute
    if where.id_prefix:
        condition, bounds = "id >= ?", [where.id_prefix]
        if (end := _behind(where.id_prefix)) is not None:
            condition, bounds = "id >= ? and id < ?", [where.id_prefix, end]
        if _is_few(db, f"select 1 from instance where tenant = ? and {condition}", (where.tenant, *bounds)):  # noqa: S608
            return by_id, condition, bounds
    if status is not None and (where.workflow is not None or where.attributes or where.id_prefix):
        of_status = f"select 1 from instance where {_SHOWN} and status = ?"  # noqa: S608
        if _is_few(db, of_status, (where.tenant, status)):
            return " indexed by instance_status", "", ()
    return "", "", ()


def _is_few(db: sqlite3.Connection, query: str, parameters: Sequence[Any]) -> bool:
    counted = f"select count(*) from ({query} limit {_FEW})"  # noqa: S608
    return int(db.execute(counted, parameters).fetchone()[0]) < _FEW


def _behind(prefix: str) -> str | None:
    """The first text behind all that begin with `prefix`, in the order of UTF-8; None where there is none."""
    while prefix:
        last = ord(prefix[-1]) + 1
        if last <= _LAST:
            return prefix[:-1] + chr(_SURROGATES.stop if last in _SURROGATES else last)
        prefix = prefix[:-1]
    return None


def searched_of(columns: Columns) -> tuple[Any, ...]:
    """What a row says of an instance for searches, in the order of `statements.FENCE`; attributes as JSON, last."""
    return (
        columns.status.value,
        columns.workflow,
        columns.module,
        columns.queue,
        columns.owner,
        columns.wake,
        columns.expires,
        columns.parent,
        columns.created,
        columns.closed,
        json.dumps(dict(columns.attributes), sort_keys=True) if columns.attributes else "{}",
    )


def stored_of(row: Sequence[Any]) -> Stored:
    """An instance, from a row of `COLUMNS`. Raises `CorruptSnapshotError`."""
    tenant, instance, run, version, nonce, mail, status, *plain, attributes, tail, record = row
    workflow, module, queue, owner, wake, expires, takeovers, size, parent, created, closed = plain
    try:
        columns = Columns(
            Status(status),
            workflow,
            module,
            queue,
            owner,
            wake,
            expires,
            takeovers,
            size,
            parent,
            created,
            closed,
            json.loads(attributes) if attributes != "{}" else {},
        )
    except ValueError as error:
        raise CorruptSnapshotError(f"the columns of {Key(tenant, instance)} are damaged: {error}") from error
    return Stored(Key(tenant, instance), run, version, nonce, columns, record, mail, tail)


def shown(row: Sequence[Any]) -> Stored:
    """As `stored_of`, but an instance whose columns are damaged is blocked, and does not hide all the others."""
    try:
        return stored_of(row)
    except CorruptSnapshotError:
        return stored_of((*row[:6], Status.BLOCKED.value, *row[7:-3], "{}", *row[-2:]))
