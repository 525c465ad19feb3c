"""The decisions that every store makes alike: pure functions of what is stored and what is asked."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from wasman_host.errors import InvalidArgumentError
from wasman_host.store.protocol import CLOSED, OPEN, Columns, Filter, Lost, Sent, Status, Step, Unread, Won

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.store.protocol import Change, Key, Message, Stored

__all__ = [
    "REMEMBER_CONSUMED",
    "check_change",
    "check_message",
    "check_page",
    "claim_order",
    "claimable",
    "cursor_after",
    "matches",
    "opened_twice",
    "step_verdict",
    "turned_away",
    "verdict",
]

# Senders stop repeating a send after 10 minutes; an hour leaves room for clocks that disagree.
REMEMBER_CONSUMED = 3600 * 1_000_000_000

_TIMED = frozenset({Status.RUNNING, Status.WAITING, Status.PUBLISHING})


def _check_key(key: Key) -> None:
    for word in (key.tenant, key.id):
        if not word or "\0" in word or not _is_encodable(word):
            raise InvalidArgumentError(
                f"tenant {key.tenant!r}, id {key.id!r}: each needs at least one character, no NUL and no lone surrogate"
            )


def _is_encodable(word: str) -> bool:
    return word.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in word)


def opened_twice(place: object) -> InvalidArgumentError:
    """The error for a store that is opened while it is open: its first opener would be left without a connection."""
    return InvalidArgumentError(f"the store {place} is open already, and whoever has opened it closes it; just use it")


def check_change(change: Change | Step) -> None:
    """Refuse a change that no state of the store could accept.

    Raises:
        InvalidArgumentError: It contradicts itself; the message says how.
    """
    if isinstance(change, Step):
        if not change.run or not change.nonce or _has_gap(change.entries):
            raise InvalidArgumentError(f"step of {change.key}: it needs run and nonce, and entries without a gap")
        return
    if change.expected is None:  # every other key is that of an instance, or of none
        _check_key(change.key)
    problem = _contradiction(change)
    if problem is not None:
        raise InvalidArgumentError(f"change of {change.key}: {problem}")
    for message in change.sends:
        check_message(message)
    for child in change.creates:
        if child.expected is not None:
            raise InvalidArgumentError(f"change of {change.key}: it creates {child.key}, which is expected to exist")
        check_change(child)


def _contradiction(change: Change) -> str | None:
    if not change.run or not change.nonce:
        return "run and nonce must not be empty"
    if (change.record is None) != (change.columns is None):
        return "record and columns come together, or neither does"
    if change.record is None and (change.entries or change.blobs or change.drops or change.cuts or change.consumes):
        return "a deletion keeps nothing, so it has no entries, blobs, cuts or consumed mail"
    if change.expected is None and (change.record is None or change.consumes):
        return "a new instance has a record, and no mail that it could consume"
    if len(change.consumes) > 1 and len(set(change.consumes)) < len(change.consumes):
        return "a message is consumed twice"
    if _has_gap(change.entries):
        return "the numbers of its log entries have a gap"
    return _wrong_cut(change) if change.cuts else None


def _wrong_cut(change: Change) -> str | None:
    if change.expected is None or change.expected[0] != change.run:
        return "a new run has no log entries that it could cut"
    if change.cuts.step != 1 or any(n in change.cuts for n, _ in change.entries):
        return "what it cuts of the log has gaps, or is what it appends"
    return None


def _has_gap(entries: Sequence[tuple[int, bytes]]) -> bool:
    return len(entries) > 1 and any(after[0] != before[0] + 1 for before, after in pairwise(entries))


def check_message(message: Message) -> None:
    """Refuse a message that no store could keep; raises `InvalidArgumentError`."""
    _check_key(message.key)
    if not message.id:
        raise InvalidArgumentError(f"message for {message.key}: it needs an id")


def turned_away(message: Message, version: int, unread: int) -> Sent | None:
    """Why a new message is not accepted by an instance at `version` with `unread` messages; None where it is."""
    room = message.room
    if room is None:
        return None
    if room.version not in {0, version}:
        return Sent.MOVED
    return Sent.FULL if unread >= room.unread else None


def step_verdict(step: Step, found: tuple[str, int, str, int] | None) -> Won | Lost | None:
    """As `verdict`, for a step."""
    if found is None:
        return Lost(None)
    run, version, nonce, _ = found
    if nonce == step.nonce:
        return Won(version, 0)
    return None if (run, version) == (step.run, step.version) else Lost((run, version))


def verdict(change: Change, found: tuple[str, int, str, int] | None, unconsumed: int) -> Won | Lost | Unread | None:
    """What becomes of a change; None where it wins and is to be written now.

    Args:
        change: The change.
        found: (run, version, nonce, mail) of the instance, or None where there is none.
        unconsumed: How many of `change.consumes` are there and were not consumed yet.
    """
    if found is None:
        return None if change.expected is None else Lost(None)
    run, version, nonce, mail = found
    if nonce == change.nonce:
        # It is written, and only the answer was lost (rule 5): repeated, it wins without being written again.
        return Won(version, mail)
    if change.expected != (run, version) or unconsumed != len(change.consumes):
        return Lost((run, version))
    if change.columns is not None and change.columns.status in CLOSED and mail != len(change.consumes):
        return Unread(mail)
    return None


def claimable(columns: Columns, mail: int, now: int, *, owner_dead: bool) -> bool:
    """Whether a worker may take the instance now.

    Args:
        columns: The instance's columns.
        mail: How many messages nobody has consumed.
        now: The store's time, in ns since 1970.
        owner_dead: Whether `columns.owner` is dead; looked at only where there is one.
    """
    if columns.status not in OPEN or not columns.workflow or (columns.owner is not None and not owner_dead):
        return False
    if mail > 0 or (columns.expires is not None and columns.expires <= now):
        return True
    if columns.status not in _TIMED:
        return False
    return columns.owner is not None or (columns.wake is not None and columns.wake <= now)


def claim_order(columns: Columns, number: int, now: int) -> tuple[int, int]:
    """Sorts what is claimable: first what is due the longest; what is not due by time, by its age."""
    due = columns.wake is not None and columns.wake <= now
    return (columns.wake if due and columns.wake is not None else columns.created, number)


def matches(where: Filter, stored: Stored) -> bool:
    """Whether a listing by `where` shows the instance."""
    columns = stored.columns
    return (
        stored.key.tenant == where.tenant
        and columns.workflow != ""
        and (where.status is None or columns.status in where.status)
        and (where.workflow is None or columns.workflow == where.workflow)
        and (where.id_prefix is None or stored.key.id.startswith(where.id_prefix))
        and (where.created_from is None or columns.created >= where.created_from)
        and (where.created_to is None or columns.created < where.created_to)
        and (where.closed_from is None or (columns.closed is not None and columns.closed >= where.closed_from))
        and (where.closed_to is None or (columns.closed is not None and columns.closed < where.closed_to))
        and (where.parent is None or columns.parent == where.parent)
        and all(columns.attributes.get(name) == value for name, value in where.attributes.items())
    )


def cursor_after(rows: Sequence[Stored], limit: int) -> str | None:
    """The cursor behind the page `rows[:limit]`, where `rows` holds one more if there is more."""
    return f"{rows[limit - 1].columns.created}:{rows[limit - 1].key.id}" if len(rows) > limit else None


def check_page(limit: int, cursor: str | None) -> tuple[int, str] | None:
    """(created, id) of the last row before the page, or None for the first page.

    Raises:
        InvalidArgumentError: The limit is below 1, or the cursor was not made by `cursor_after`.
    """
    if limit < 1:
        raise InvalidArgumentError(f"a page of {limit} rows: the limit must be at least 1")
    if cursor is None:
        return None
    created, colon, instance = cursor.partition(":")
    if not (colon and instance and created.removeprefix("-").isdecimal() and created.isascii()):
        raise InvalidArgumentError(f"{cursor!r} is not a cursor of this listing: pass on `Page.cursor` as it was given")
    return int(created), instance
