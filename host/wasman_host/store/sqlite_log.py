"""The logs of the runs in one SQLite file: several entries in a row, and the newest ones with the instance.

A row of the log holds one entry or more of a run, without a gap between their numbers.

A step writes the row of its instance anyway. With its entry in there a transaction writes one page; the log and the
log's index are two more, which nobody shares with a step that is alone. So its entries stay in the row of the instance
for a while. Where several take their steps together, theirs go to the log at once: side by side they need few pages of
it, and would need many more in rows. The two may alternate: what reads a run gets both in the order of their numbers.

The row is written as a whole at every step, so what it takes is limited. When the next entry does not fit, what is
there goes to the log, as one row of it. So it does at any other change, which keeps the rows of ended runs short.
"""

from __future__ import annotations

import sqlite3
import struct
from typing import TYPE_CHECKING

from wasman_host.errors import CorruptSnapshotError
from wasman_host.store import statements as sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wasman_host.store.protocol import Key, Step

__all__ = ["MOST", "Log", "entries_of", "packed", "unpacked"]

MOST = 3584  # bytes of entries in an instance's row, which lies on one page of 4096 as a whole
_RUNS = 256  # whose rows are kept in mind: those that were written last
_HEAD = struct.Struct("<QI")  # an entry's number, and its size in bytes
_NOBODY_KNOWS = -1


def packed(entries: Iterable[tuple[int, bytes]]) -> bytearray:
    """Entries one behind the other, each behind its number and size."""
    # sqlite3 looks for somebody who adapts bytes, at the price of their row, and takes a bytearray as it is.
    data = bytearray()
    for n, entry in entries:
        data += _HEAD.pack(n, len(entry))
        data += entry
    return data


def unpacked(data: bytes | bytearray, of: object) -> list[tuple[int, bytes]]:
    """The inverse of `packed`; raises `CorruptSnapshotError`, which says `of` what."""
    entries, at = [], 0
    while at < len(data):
        begin = at + _HEAD.size
        n, size = _HEAD.unpack_from(data, at) if begin <= len(data) else (0, 0)
        at = begin + size
        if at > len(data):
            raise CorruptSnapshotError(f"a row of the log of {of} is cut short; restore the store from a backup")
        entries.append((n, bytes(data[begin:at])))
    return entries


def entries_of(db: sqlite3.Connection, run: str, start: int, stop: int) -> list[tuple[int, bytes]]:
    """The entries `start` to `stop` of the run, in the order of their numbers. Raises `CorruptSnapshotError`."""
    rows = db.execute(sql.READ, (run, start, stop, run)).fetchall()
    return sorted(one for (data,) in rows for one in unpacked(data, f"run {run}") if start <= one[0] < stop)


class Log:
    """What one connection appends to the logs, and what it knows of the rows of instances.

    Of a run's row is known what it holds at the version that was written with it: while it has that, it is so. What is
    appended is written last of all in a transaction, at once for all of its members.
    """

    def __init__(self) -> None:
        self._appended: list[tuple[int, int, int, bytearray]] = []
        self._known: dict[int, tuple[int, bytearray, int]] = {}  # by run: version, data, number of the next entry

    # What a transaction writes

    def append(self, run: int, entries: Sequence[tuple[int, bytes]]) -> None:
        """Have these entries, which have no gap, be a row of the run's log."""
        if entries:
            self._appended.append((run, entries[0][0], entries[-1][0], packed(entries)))

    def take_over(self, run: int, data: bytes | bytearray, key: Key) -> None:
        """Have what the row of the instance has held be a row of the run's log."""
        if data:
            entries = unpacked(data, key)
            self._appended.append((run, entries[0][0], entries[-1][0], bytearray(data)))

    def write(self, cursor: sqlite3.Cursor) -> None:
        """Write what was appended. Raises `CorruptSnapshotError` where a log goes on behind it."""
        if self._appended:
            rows, self._appended = self._appended, []
            try:
                cursor.executemany(sql.ADD_ENTRIES, rows)
            except sqlite3.IntegrityError as error:
                raise _still_to_come("a run") from error

    def cut(self, cursor: sqlite3.Cursor, key: Key, run: int, cuts: range) -> None:
        """Delete these entries, none of which is in the instance's row."""
        self.write(cursor)  # what was appended in the same transaction may be cut as well
        for end in (cuts.start, cuts.stop):
            row = cursor.execute(sql.ACROSS, (run, end, end)).fetchone()
            if row is None:
                continue
            cursor.execute(sql.DROP_ENTRIES, row[:1])
            entries = unpacked(row[1], key)
            self.append(run, [one for one in entries if one[0] < end])
            self.append(run, [one for one in entries if one[0] >= end])
            self.write(cursor)
        cursor.execute(sql.CUT_ENTRIES, (run, cuts.start, cuts.stop))

    def undone(self) -> None:
        """The transaction was rolled back, and the same versions may come with something else."""
        self._appended.clear()
        self._known.clear()

    # What the row of an instance holds

    def in_row(self, run: int, version: int) -> bytearray:
        """What the row of the run holds at this version, as far as that is known."""
        known = self._known.get(run)
        return known[1] if known is not None and known[0] == version else bytearray()

    def with_step(self, run: int, step: Step) -> bytearray | None:
        """What the row is to hold with a step; None where that takes more than what is known, or more room."""
        before = self._before(run, step)
        if before is None:
            return None
        after = before + packed(step.entries)
        return after if len(after) <= MOST else None

    def make_room(self, cursor: sqlite3.Cursor, number: int, run: int, step: Step) -> bytearray | None:
        """Inside a transaction: what row `number` is to hold with a step, the only member; the log gets the rest.

        None where the step is fenced off. Raises `CorruptSnapshotError` where it brings what is there already.
        """
        before = known = self._before(run, step)
        if before is None:
            row = cursor.execute(sql.IN_ROW, (number, run, step.version)).fetchone()
            if row is None:
                return None
            before = self._followed(run, step, *row)
        after = before + packed(step.entries)
        if len(after) > MOST:
            if known:  # as nearly always: then the step's entries are the next ones
                self._appended.append((run, _HEAD.unpack_from(known)[0], step.entries[0][0] - 1, known))
            else:
                self.take_over(run, before, step.key)
            after = after[len(before) :]
        if len(after) > MOST:
            self.append(run, step.entries)
            after = bytearray()
        return after

    def _before(self, run: int, step: Step) -> bytearray | None:
        """What the row holds, where it is known and the step's entries are the next ones."""
        known = self._known.get(run)
        if known is None or not step.entries or known[0] != step.version or known[2] != step.entries[0][0]:
            return None
        return known[1]

    def _followed(self, run: int, step: Step, data: bytes, last: int) -> bytearray:
        """The same of a row that was read; what the step's entries do not follow goes to the log, which ends there."""
        held = unpacked(data, step.key)
        for n, _ in step.entries[:1]:
            if n <= last or (held and n <= held[-1][0]):
                raise _still_to_come(step.key)
            if held and n > held[-1][0] + 1:
                self.append(run, held)
                return bytearray()
        return bytearray(data)

    def row_written(self, run: int, step: Step, data: bytearray) -> None:
        """With the step the row holds `data`."""
        self._known.pop(run, None)
        self._known[run] = (step.version + 1, data, step.entries[-1][0] + 1 if step.entries else _NOBODY_KNOWS)
        if len(self._known) > _RUNS:
            del self._known[next(iter(self._known))]

    def row_kept(self, run: int, step: Step) -> None:
        """The step has left in the row what is there: its entries are in the log."""
        known = self._known.get(run)
        if known is not None and known[0] == step.version:
            self._known[run] = (step.version + 1, known[1], _NOBODY_KNOWS)


def _still_to_come(of: object) -> CorruptSnapshotError:
    return CorruptSnapshotError(
        f"the log of {of} holds entries that are still to come; restore the store from a backup"
    )
