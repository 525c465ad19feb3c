"""The store over objects: a folder of files today, a bucket tomorrow (`wasman_host.store.backend`).

Each instance is one object, its head (`wasman_host.store.heads`), and every change of it is one conditional put of that
object: whoever loses the race reads again and decides again. Log entries that no longer fit, large mail and blobs are
immutable objects of their own, written before the head that names them; nobody looks at one that no head names.

Finding. Instances are found by marks, objects of which only the name counts (`heads.places`). A mark is durable before
the head that needs it, has a random end, and is named by that head; so whoever replaces the head knows which marks are
no longer needed, and never removes one that somebody else has just made. A mark that no head names is left by a crash:
it misleads nobody, and goes after a minute.

Effects. What a change sends and creates stands in the head until it has arrived: it arrives although its sender dies.

Deleting. The head becomes a tombstone first; then all its objects go, and the tombstone last. A sign that the id was
born lies beside the head, made after it and removed before it: a head that is missing then is damage, not absence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
from attrs import evolve, field, frozen
from pydantic_core import to_json
from typing_extensions import override

from wasman_host.errors import CorruptSnapshotError, InvalidArgumentError, StoreError, UnsupportedStateError
from wasman_host.store import heads
from wasman_host.store.forms import FORMER, decode_former, encode_former
from wasman_host.store.heads import Head, Letter, Part
from wasman_host.store.protocol import (
    CLOSED,
    Change,
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
from wasman_host.store.rules import (
    REMEMBER_CONSUMED,
    check_change,
    check_message,
    check_page,
    claim_order,
    claimable,
    cursor_after,
    matches,
    step_verdict,
    turned_away,
    verdict,
)
from wasman_host.store.watchers import Visible, Watchers

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence

    from wasman_host.store.backend import Backend
    from wasman_host.store.protocol import Filter

__all__ = ["ObjectStore"]

T = TypeVar("T")

_TIMED = frozenset({Status.RUNNING, Status.WAITING, Status.PUBLISHING})
_INLINE = 32 * 1024  # bytes of log entries that a head carries: what each step writes again
_INLINE_ENTRIES = 256
_INLINE_BLOBS = 64
_NAMES = 256  # of blobs, in a part that holds nothing else: one that is full is not written again
_LETTER = 8 * 1024  # bytes of mail that a head carries
_PAST = 32  # former runs that a head carries
_CELLS = 2000  # heads kept in mind, so that their owner need not read them before it writes them
_PARTS = 32  # pieces of logs kept in mind
_RUNS = 100_000
_STALE = 60.0  # seconds after which a mark that nobody needs goes
_AT_ONCE = 16
_LOOK_AHEAD = 16  # candidates looked at beyond those that are wanted
_TURN = 0.01
_DAMAGED = Columns(Status.BLOCKED, "(damaged)", "")


@frozen
class _Cell:
    """A head, and the etag of the object that holds it."""

    etag: str
    head: Head = field(repr=False)


class _Draft:
    """What was written for a change that may still lose."""

    def __init__(self) -> None:
        self.objects: dict[str, None] = {}
        self.marks: dict[str, str] = {}
        self.since = time.monotonic()


class ObjectStore(Store):
    """Durable instances in objects.

    Args:
        backend: Where the objects are.
        clock: Gives the time in ns since 1970; for tests.
    """

    def __init__(self, backend: Backend, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.backend = backend
        self._clock = clock
        self._cells: dict[Key, _Cell] = {}
        self._runs: dict[str, Key] = {}
        self._parts: dict[str, tuple[list[tuple[int, bytes]], dict[str, str]]] = {}
        self._stale: dict[str, float] = {}
        self._doubts: dict[Key, str] = {}  # claims that may have landed though nobody was told, and their nonces
        self._leases: dict[str, tuple[str, str]] = {}  # this object's own workers: etag and token
        self._lost: set[str] = set()
        self._watchers = Watchers()

    def __repr__(self) -> str:
        return f"ObjectStore({self.backend.place!r})"

    @override
    def now(self) -> int:
        return self._clock()

    @override
    async def open(self) -> None:
        await self.backend.open()

    @override
    async def close(self) -> None:
        self._cells.clear()
        await self.backend.close()
        self._watchers.wake_all()

    # -- heads --------------------------------------------------------------------------------------------------------

    async def _read(self, key: Key) -> _Cell | None:
        """The head as it is now, a tombstone included."""
        cell = await self._read_folder(heads.folder_of(key), f"the instance {key} in {self.backend.place}")
        if cell is None:
            self._cells.pop(key, None)
        elif cell.head.key != key:
            raise CorruptSnapshotError(
                f"the instance {key} in {self.backend.place} holds {cell.head.key}: restore it from a backup"
            )
        else:
            self._keep(cell)
        return cell

    async def _read_folder(self, folder: str, what: str) -> _Cell | None:
        name = heads.head_name(folder)
        found = await self.backend.get(name)
        return None if found is None else _Cell(found.etag, heads.decode_head(found.data, name, what))

    def _keep(self, cell: _Cell) -> None:
        if len(self._cells) >= _CELLS:
            del self._cells[next(iter(self._cells))]
        self._cells[cell.head.key] = cell
        if self._runs.get(cell.head.run) is None:
            self._know(cell.head)

    def _know(self, head: Head) -> None:
        if len(self._runs) >= _RUNS:
            self._runs.clear()  # those that are forgotten are looked for again
        self._runs.update((run, head.key) for run in (head.run, *head.past))

    async def _living(self, key: Key) -> _Cell | None:
        """The head, or None where there is no instance; `CorruptSnapshotError` where it is lost."""
        cell = await self._found(key)
        return None if cell is None or cell.head.deleted else cell

    async def _found(self, key: Key) -> _Cell | None:
        """The head as it is now, a tombstone included; `CorruptSnapshotError` where it is lost."""
        cell = await self._read(key)
        if cell is not None or not (born := await self._born(key)):
            return cell
        # Perhaps it was made between the two looks. A head is there before it is born and goes after that is forgotten,
        # so one that is not there now, and is born before and behind this look, is lost.
        cell = await self._read(key)
        if cell is None and born & await self._born(key):
            raise CorruptSnapshotError(
                f"the instance {key} has objects of its runs or mail in {self.backend.place}, but its record is missing"
            )
        return cell

    async def _born(self, key: Key) -> set[str]:
        return {name for name in await self.backend.list(heads.folder_of(key)) if name.endswith("-born")}

    async def _swap(self, cell: _Cell | None, head: Head, draft: _Draft) -> _Cell | None:
        """Put `head` in the place of `cell`; None where somebody was faster."""
        marks: dict[str, str] = {}
        before = {} if cell is None else cell.head.marks
        for kind, place in heads.places(head, self.now()).items():
            name = before.get(kind, "")
            if not name.startswith(place):
                name = draft.marks.get(place, "")
            if not name:
                name = place + secrets.token_hex(6)
                await self.backend.mark(name)
                draft.marks[place] = name
            marks[kind] = name
        head = evolve(head, marks=marks)
        name = heads.head_name(heads.folder_of(head.key))
        self._cells.pop(head.key, None)
        etag = await self.backend.put(name, heads.encode_head(head, name), None if cell is None else cell.etag)
        if etag is None:
            return None
        swapped = _Cell(etag, head)
        self._keep(swapped)
        needed = set(marks.values())
        if draft.marks and time.monotonic() - draft.since > _STALE / 2:
            for name in needed:  # somebody may have taken them for what a crash has left
                await self.backend.mark(name)
        await self._tidy(name for name in (*before.values(), *draft.marks.values()) if name not in needed)
        draft.marks.clear()
        return swapped

    async def _discard(self, draft: _Draft) -> None:
        await self._tidy((*draft.marks.values(), *draft.objects))

    async def _tidy(self, names: Iterable[str]) -> None:
        """Remove what nobody needs; what cannot be removed stays, and harms nobody."""
        with contextlib.suppress(StoreError):
            for name in names:
                await self.backend.delete(name)

    async def _write(self, name: str, data: bytes, draft: _Draft) -> None:
        """Make an object that the next head names; one that is there already was made for the same change."""
        if name not in draft.objects:
            await self.backend.put(name, data, None)
            draft.objects[name] = None

    # -- changes ------------------------------------------------------------------------------------------------------

    @override
    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        for change in changes:
            check_change(change)
        if len(changes) == 1:
            return [await self._apply(changes[0])]
        results: list[Won | Lost | Unread | Exception] = [Lost(None)] * len(changes)
        by_key: dict[Key, list[int]] = {}
        for at, change in enumerate(changes):
            by_key.setdefault(change.key, []).append(at)

        async def apply(members: list[int]) -> None:
            for at in members:
                try:
                    results[at] = await self._apply(changes[at])
                except (StoreError, CorruptSnapshotError, UnsupportedStateError, InvalidArgumentError) as error:
                    results[at] = error  # the others are decided all the same

        await _all(apply, by_key.values())
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [result for result in results if not isinstance(result, Exception)]

    async def _apply(self, change: Change | Step) -> Won | Lost | Unread:
        draft = _Draft()
        try:
            result = await (self._step(change, draft) if isinstance(change, Step) else self._change(change, draft))
        except (CorruptSnapshotError, InvalidArgumentError):
            await self._discard(draft)
            raise
        if not isinstance(result, Won):
            await self._discard(draft)
        return result

    async def _step(self, step: Step, draft: _Draft) -> Won | Lost:
        cell = self._cells.get(step.key)
        while True:
            known = cell is not None
            if cell is None:
                cell = await self._living(step.key)
            if cell is not None and cell.head.outbox and cell.head.nonce != step.nonce:
                await self._flush(cell)
                cell = None
                continue
            decided = step_verdict(step, None if cell is None or cell.head.deleted else cell.head.found)
            if decided is not None and known:
                cell = None  # somebody else may have moved it on since
                continue
            if decided is not None or cell is None:
                return decided or Lost(None)
            head = await self._added(step, cell.head, draft)
            columns = evolve(head.columns, takeovers=0) if head.columns.takeovers else head.columns
            head = evolve(head, version=head.version + 1, nonce=step.nonce, columns=columns, tail=step.tail)
            if await self._swap(cell, head, draft) is not None:
                return Won(head.version, 0)
            cell = None

    async def _change(self, change: Change, draft: _Draft) -> Won | Lost | Unread:
        key = change.key
        cell = self._cells.get(key)
        while True:
            known = cell is not None
            if cell is None:
                cell = await self._found(key)
            if cell is not None and cell.head.outbox and cell.head.nonce != change.nonce:
                await self._flush(cell)
                cell = None
                continue
            head = None if cell is None or cell.head.deleted else cell.head
            unconsumed = 0 if head is None else sum(message in head.letters for message in change.consumes)
            decided = verdict(change, None if head is None else head.found, unconsumed)
            if decided is not None and known:
                cell = None
                continue
            if isinstance(decided, Won) and cell is not None:
                await self._settle(cell)  # it has landed, but perhaps not all that follows from it
                return decided
            if decided is not None:
                return decided
            if head is None and cell is not None:
                await self._bury(cell)
                cell = None
                continue
            swapped = await self._swap(cell, await self._changed(change, head, draft), draft)
            if swapped is not None:
                return await self._landed(change, head, swapped)
            cell = None

    async def _landed(self, change: Change, before: Head | None, cell: _Cell) -> Won:
        """All that follows from a change that is durable."""
        head = cell.head
        moved = before is None or head.deleted or bool(change.consumes) or head.columns != before.columns
        if before is not None:
            gone = [before.letters[message].name for message in change.consumes]
            gone += await self._dropped(change, before)
            if change.cuts:
                needed = {part.name for part in head.parts}
                gone += [part.name for part in before.parts if part.name not in needed]
            await self._tidy(name for name in gone if name)
        await self._settle(cell, born=before is None)
        if moved:
            await self._hint([head], gone=head.deleted)
        return Won(0, 0) if head.deleted else Won(head.version, len(head.letters))

    async def _settle(self, cell: _Cell, *, born: bool = True) -> None:
        """Have done what a head still says is to be done."""
        head = cell.head
        if born and not head.deleted and head.version == 1:
            # No sync: it may get lost, and then only tells nobody that the head was there.
            await self.backend.mark(_born(head), sure=False)
        if head.outbox:
            flushed = await self._flush(cell)
            if flushed is None:
                return
            cell = flushed
        if cell.head.deleted:
            await self._bury(cell)

    async def _changed(self, change: Change, head: Head | None, draft: _Draft) -> Head:
        """The head after a change that wins."""
        outbox: tuple[Change | Message, ...] = (*change.creates, *change.sends)
        if change.record is None or change.columns is None:
            assert head is not None  # a deletion expects what it deletes
            return Head(
                key=head.key,
                life=head.life,
                number=head.number,
                run=head.run,
                version=head.version + 1,
                nonce=change.nonce,
                columns=head.columns,
                record=b"",
                outbox=outbox,
                deleted=True,
            )
        columns = evolve(change.columns, attributes=dict(change.columns.attributes))
        if head is None:
            life = hashlib.sha256(f"{change.run}\0{change.nonce}".encode()).hexdigest()[:16]
            head = Head(change.key, life, time.time_ns(), change.run, 0, "", columns, b"")
        elif change.run != head.run:
            head = await self._next_run(change, head, draft)
        if change.drops:
            gone = head.gone.union(name for name in change.drops if name not in head.blobs) if head.parts else head.gone
            left = {name: at for name, at in head.blobs.items() if name not in change.drops}
            head = evolve(head, blobs=left, gone=gone)
        if change.cuts:
            head = await self._cut(change, head, draft)
        letters, consumed = head.letters, self._remembered(head)
        if change.consumes:
            letters = {id_: letter for id_, letter in letters.items() if id_ not in change.consumes}
            consumed = {**consumed, **dict.fromkeys(change.consumes, self.now())}
        return evolve(
            await self._added(change, head, draft),
            run=change.run,
            version=head.version + 1,
            nonce=change.nonce,
            columns=columns,
            record=change.record,
            tail=change.tail,
            letters=letters,
            consumed=consumed,
            outbox=outbox,
        )

    def _remembered(self, head: Head) -> Mapping[str, int]:
        """Consumed mail that may still be sent again."""
        if not head.consumed:
            return head.consumed
        oldest = self.now() - REMEMBER_CONSUMED
        return {message: at for message, at in head.consumed.items() if at >= oldest}

    async def _added(self, change: Change | Step, head: Head, draft: _Draft) -> Head:
        """The head with the entries and blobs of a change, which are written as far as they are objects."""
        if any(head.holds_entry(n) for n, _ in change.entries):
            raise CorruptSnapshotError(f"the log of {change.key} holds entries that are still to come ({change.run})")
        prefix = f"{heads.folder_of(head.key)}/{head.life}"
        names = [blob.name for blob in change.blobs]
        if len(set(names)) < len(names) or any(name in head.blobs for name in names):
            raise CorruptSnapshotError(f"{change.key}: a blob of its run {change.run} is there already")
        blobs = dict(head.blobs) if names else head.blobs
        for blob in change.blobs:
            name = f"{prefix}-b-{head.version:x}-{heads.word(change.nonce)}-{heads.word(blob.name)}"
            await self._write(name, blob.data, draft)
            blobs = {**blobs, blob.name: name}
        entries = (*head.entries, *change.entries) if change.entries else head.entries
        head = evolve(head, entries=entries, blobs=blobs)
        size = sum(len(entry) for _, entry in entries)
        if size > _INLINE or len(entries) > _INLINE_ENTRIES or len(blobs) > _INLINE_BLOBS:
            head = await self._spilled(head, change.nonce, draft)
        return head

    async def _spilled(self, head: Head, nonce: str, draft: _Draft) -> Head:
        """The head with what it carries of its log in an object."""
        part = await self._write_part(head, head.entries, head.blobs, nonce, draft)
        return evolve(head, entries=(), blobs={}, parts=(*head.parts, part))

    async def _write_part(
        self, head: Head, entries: Sequence[tuple[int, bytes]], blobs: Mapping[str, str], nonce: str, draft: _Draft
    ) -> Part:
        folder = heads.folder_of(head.key)
        name = f"{folder}/{head.life}-l-{head.version:x}-{heads.word(nonce)}-{heads.word(head.run)}"
        await self._write(name, heads.seal_object(name, heads.encode_part(entries, blobs)), draft)
        start, stop = (entries[0][0], entries[-1][0] + 1) if entries else (0, 0)
        return Part(name, start, stop)

    async def _cut(self, change: Change, head: Head, draft: _Draft) -> Head:
        """The head without some entries of its log: what the parts that held them hold besides goes into new ones."""
        cuts = change.cuts
        entries: list[tuple[int, bytes]] = []
        names: dict[str, str] = {}
        parts: list[Part] = []
        indexes: list[Part] = []
        whole: list[Part] = []
        for part in head.parts:
            if part.start >= part.stop:
                indexes.append(part)
            elif part.start < cuts.stop and part.stop > cuts.start:
                held, blobs = await self._part(part, head)
                entries += [(n, entry) for n, entry in held if n not in cuts]
                names.update(blobs)
            else:
                (parts if part.stop <= cuts.start else whole).append(part)
        if indexes and names and len(blobs := (await self._part(indexes[-1], head))[1]) < _NAMES:
            del indexes[-1]
            names = {**blobs, **names}
        kept = {name: at for name, at in names.items() if name not in head.gone}
        before = [entry for entry in entries if entry[0] < cuts.start]
        behind = [entry for entry in entries if entry[0] >= cuts.stop]
        for place, (piece, blobs) in enumerate(((before, {}), ([], kept), (behind, {}))):
            if not piece and not blobs:
                continue
            part = await self._write_part(head, piece, blobs, f"{change.nonce}-{place}", draft)
            (parts, indexes, whole)[place].append(part)
        return evolve(
            head,
            entries=tuple((n, entry) for n, entry in head.entries if n not in cuts),
            parts=tuple(sorted([*parts, *indexes, *whole], key=lambda part: part.start)),
            gone=head.gone.difference(names),
        )

    async def _next_run(self, change: Change, head: Head, draft: _Draft) -> Head:
        """The head with its run among the former ones."""
        if await self._parts_of(head, change.run) is not None:
            raise InvalidArgumentError(f"change of {change.key}: it had a run {change.run} before; draw a new one")
        name = f"{heads.folder_of(head.key)}/{head.life}-b-{head.version:x}-{heads.word(change.nonce)}-{FORMER}"
        await self._write(name, encode_former(head.stored), draft)
        head = await self._spilled(evolve(head, blobs={**head.blobs, FORMER: name}), change.nonce, draft)
        past, older = {**head.past, head.run: head.parts}, head.older
        if len(past) > _PAST:
            name = f"{heads.folder_of(head.key)}/{head.life}-r-{head.version:x}-{heads.word(change.nonce)}"
            await self._write(name, heads.seal_object(name, heads.encode_past(past, older)), draft)
            past, older = {}, name
        return evolve(head, parts=(), gone=frozenset(), past=past, older=older)

    async def _flush(self, cell: _Cell) -> _Cell | None:
        """Deliver what a head has to send, and take it out of the head. None where somebody has moved the head on."""
        for one in cell.head.outbox:
            # What cannot take it does not get it; the sender is not harmed.
            with contextlib.suppress(CorruptSnapshotError, UnsupportedStateError, InvalidArgumentError):
                if isinstance(one, Message):
                    await self._deliver(one)
                else:
                    await self._apply(one)
        nonce = cell.head.nonce
        current: _Cell | None = cell
        if self._cells.get(cell.head.key) is not cell:
            current = await self._read(cell.head.key)
        while current is not None and current.head.outbox and current.head.nonce == nonce:
            flushed = await self._swap(current, evolve(current.head, outbox=()), _Draft())
            if flushed is not None:
                return flushed
            current = await self._read(cell.head.key)
        return current

    async def _bury(self, cell: _Cell) -> None:
        """Remove all objects of a deleted instance, its tombstone last."""
        head, folder = cell.head, heads.folder_of(cell.head.key)
        for name in await self.backend.list(folder, head.life):
            if not name.endswith("-born"):
                await self.backend.delete(f"{folder}/{name}")
        await self.backend.delete(_born(head), sure=True)  # before the tombstone, also where power is lost
        await self.backend.delete(heads.head_name(folder), cell.etag, sure=True)
        self._cells.pop(head.key, None)
        await self._tidy(head.marks.values())
        await self.backend.prune(folder)

    @override
    def wake(self) -> None:
        self._watchers.hint((), claimable=True)

    async def _hint(self, moved: Sequence[Head], *, gone: bool = False) -> None:
        """Tell those who watch."""
        claimable = not gone and any(
            (head.columns.owner is None and head.columns.closed is None) or head.letters for head in moved
        )
        self._watchers.hint([head.key for head in moved], claimable=claimable)
        with contextlib.suppress(StoreError):
            await self.backend.pulse()

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    async def load(self, key: Key) -> Stored | None:
        cell = await self._living(key)
        if cell is None:
            self._watchers.saw(key, None)
            return None
        self._watchers.saw(key, _visible(cell.head))
        self._know(cell.head)
        return cell.head.stored

    @override
    async def former(self, key: Key, run: str) -> Stored | None:
        cell = await self._living(key)
        place = None if cell is None or cell.head.run == run else await self._place_of(cell.head, run, FORMER)
        if place is None:
            return None
        return decode_former(key, run, await self._needed(place, f"run {run} of {key} in {self.backend.place}"))

    @override
    async def read(self, run: str, start: int = 0, stop: int | None = None) -> list[tuple[int, bytes]]:
        async def rows(head: Head) -> builtins.list[tuple[int, bytes]]:
            return await self._rows(head, run, start, stop)

        return await self._looked(run, rows) or []

    async def _rows(self, head: Head, run: str, start: int, stop: int | None) -> builtins.list[tuple[int, bytes]]:
        parts = await self._parts_of(head, run)
        if parts is None:
            return []
        rows: list[tuple[int, bytes]] = []
        for part in parts:
            if part.stop > start and (stop is None or part.start < stop):
                rows += (await self._part(part, head))[0]
        if run == head.run:
            rows += head.entries
        return sorted((n, entry) for n, entry in rows if n >= start and (stop is None or n < stop))

    @override
    async def blob(self, run: str, name: str) -> bytes | None:
        async def place(head: Head) -> str | None:
            return await self._place_of(head, run, name)

        at = await self._looked(run, place)
        found = None if at is None else await self.backend.get(at)
        return None if found is None else found.data

    async def _looked(self, run: str, look: Callable[[Head], Awaitable[T]]) -> T | None:
        """What is found in the parts of a run's log; in those of a newer head where a cut has just replaced them."""
        head = await self._head_of(run)
        while head is not None:
            try:
                return await look(head)
            except CorruptSnapshotError:
                newer = await self._head_of(run)
                if newer is not None and newer.parts == head.parts:
                    raise
                head = newer
        return None

    async def _place_of(self, head: Head, run: str, name: str) -> str | None:
        """The object that holds a blob."""
        if run == head.run and name in head.blobs:
            return head.blobs[name]
        for part in reversed(await self._parts_of(head, run) or ()):
            blobs = (await self._part(part, head))[1]
            if name in blobs:
                return blobs[name]
        return None

    async def _dropped(self, change: Change, before: Head) -> list[str]:
        """The objects of the blobs that a change drops."""
        places: list[str] = []
        with contextlib.suppress(CorruptSnapshotError, UnsupportedStateError):  # whoever needs the log is told
            for name in change.drops:
                place = await self._place_of(before, change.run, name)
                places += [] if place is None else [place]
        return places

    async def _head_of(self, run: str) -> Head | None:
        """The instance that has or had the run."""
        known = self._runs.get(run)
        if known is not None:
            cell = await self._living(known)
            return None if cell is None else cell.head
        # Whoever reads a run has loaded its instance before; only a stranger has to look everywhere.
        async with aclosing(self._everything(None)) as everything:
            async for head in everything:
                if await self._parts_of(head, run) is not None:
                    self._runs[run] = head.key
                    return head
        return None

    async def _parts_of(self, head: Head, run: str) -> tuple[Part, ...] | None:
        """Where the log of a run is; None where the instance never had it."""
        if run == head.run:
            return head.parts
        past, older = dict(head.past), head.older
        while run not in past:
            if not older:
                return None
            past, older = await self._older(head, older)
        return past[run]

    async def _older(self, head: Head, name: str) -> tuple[dict[str, tuple[Part, ...]], str]:
        """Former runs that the head does not carry, and where those before them are."""
        what = f"the former runs of {head.key} in {self.backend.place}"
        return heads.decode_past(heads.open_object(name, await self._needed(name, what), what), what)

    async def _part(self, part: Part, head: Head) -> tuple[list[tuple[int, bytes]], dict[str, str]]:
        if part.name not in self._parts:
            what = f"the log of {head.key} in {self.backend.place}"
            data = heads.open_object(part.name, await self._needed(part.name, what), what)
            if len(self._parts) >= _PARTS:
                del self._parts[next(iter(self._parts))]
            self._parts[part.name] = heads.decode_part(data, what)
        return self._parts[part.name]

    async def _needed(self, name: str, what: str) -> bytes:
        found = await self.backend.get(name)
        if found is None:
            raise CorruptSnapshotError(f"{what} misses its object {name}: restore it from a backup")
        return found.data

    @override
    async def put_module(self, digest: str, data: bytes) -> None:
        await self.backend.put(f"module/{heads.word(digest)}", data, None)

    @override
    async def module(self, digest: str) -> bytes | None:
        found = await self.backend.get(f"module/{heads.word(digest)}")
        return None if found is None else found.data

    @override
    async def put_image(self, name: str, data: bytes) -> None:
        await self.backend.put(f"image/{heads.word(name)}", data, None)

    @override
    async def image(self, name: str) -> bytes | None:
        found = await self.backend.get(f"image/{heads.word(name)}")
        return None if found is None else found.data

    # -- mail ---------------------------------------------------------------------------------------------------------

    @override
    async def send(self, message: Message) -> Sent:
        check_message(message)
        return await self._deliver(message)

    async def _deliver(self, message: Message) -> Sent:
        draft = _Draft()
        sent: Sent | None = None
        while sent is None:
            cell = await self._living(message.key)
            if cell is None or not cell.head.columns.workflow:
                sent = Sent.ABSENT
                continue
            head, consumed = cell.head, self._remembered(cell.head)
            if message.id in head.letters or message.id in consumed:
                sent = Sent.DUPLICATE
                continue
            if head.columns.status in CLOSED or (message.run and message.run != head.run):
                sent = Sent.CLOSED
                continue
            sent = turned_away(message, head.version, len(head.letters))
            if sent is not None:
                continue
            body, name = message.body, ""
            if len(body) > _LETTER:
                folder = heads.folder_of(message.key)
                name = f"{folder}/{head.life}-m-{heads.word(message.id)}-{secrets.token_hex(6)}"
                await self._write(name, heads.seal_object(name, body), draft)
                body = b""
            letters = {**head.letters, message.id: Letter(message.kind, self.now(), body, name)}
            swapped = await self._swap(cell, evolve(head, letters=letters, consumed=consumed), draft)
            if swapped is not None:
                draft.objects.pop(name, None)
                await self._discard(draft)
                await self._hint([swapped.head])
                return Sent.ACCEPTED
        await self._discard(draft)
        return sent

    @override
    async def mail(self, key: Key) -> list[Message]:
        cell = await self._read(key)
        if cell is None or cell.head.deleted:
            return []
        messages = []
        for id_, letter in cell.head.letters.items():
            body = letter.body
            if letter.name:
                what = f"the mail {id_!r} of {key} in {self.backend.place}"
                body = heads.open_object(letter.name, await self._needed(letter.name, what), what)
            messages.append(Message(key, id_, letter.kind, body, letter.sent))
        return messages

    @override
    async def mailed(self, worker: str) -> list[Key]:
        folder = f"mail/{heads.word(worker)}"
        keys: dict[Key, None] = {}
        for name in await self.backend.list(folder):
            head = await self._marked(f"{folder}/{name}")
            if head is not None and head.columns.owner == worker and head.letters:
                keys[head.key] = None
        return list(keys)

    async def _marked(self, name: str) -> Head | None:
        """The instance that a mark stands for; None where it stands for none (any more)."""
        place = heads.split_mark(name)
        if place is None:
            return None
        try:
            cell = await self._read_folder(place[1], f"an instance in {place[1]} of {self.backend.place}")
        except (CorruptSnapshotError, UnsupportedStateError):
            return None  # whoever asks for it by its id is told
        if cell is not None and name in cell.head.marks.values():
            self._stale.pop(name, None)
            return cell.head
        # Either the head that needs it is about to be written, or never will be.
        since = self._stale.setdefault(name, time.monotonic())
        if time.monotonic() - since > _STALE:
            await self._tidy([name])
            del self._stale[name]
        return None

    # -- workers ------------------------------------------------------------------------------------------------------

    @override
    async def claim(self, worker: str, queues: Sequence[str], limit: int) -> list[Claim]:
        now = self.now()
        lease = await self._lease(worker)
        if limit < 1 or lease is None or lease[1] <= now:
            return []  # whoever takes what others may take back at once should beat first
        if claims := await self._doubtful(worker):
            return claims
        await self._send_for_the_dead()
        dead = await self._owners_that_died(worker, now)
        names = await self._due(queues, now)
        for owner in dead:
            names += [(0, f"own/{owner}/{name}") for name in await self.backend.list(f"own/{owner}")]
        found: dict[Key, tuple[tuple[int, int, str], Head, bool]] = {}
        for _, name in sorted(names):
            if len(found) >= limit + _LOOK_AHEAD:
                break
            head = await self._marked(name)
            if head is None or head.columns.queue not in queues:
                continue
            holder = head.columns.owner
            if (holder is None or heads.word(holder) in dead) and claimable(
                head.columns, len(head.letters), now, owner_dead=True
            ):
                order = (*claim_order(head.columns, head.number, now), head.key.id)
                found[head.key] = (order, head, holder is not None)
        return await self._take(worker, sorted(found.values(), key=lambda one: one[0])[:limit], dead)

    async def _due(self, queues: Sequence[str], now: int) -> builtins.list[tuple[int, str]]:
        """(time, mark) of what nobody owns and wants to be claimed."""
        names = []
        for queue in dict.fromkeys(queues):
            folder = f"q/{heads.word(queue)}"
            for name in await self.backend.list(folder):
                place = heads.split_mark(name)
                if place is not None and place[0] <= now:
                    names.append((place[0], f"{folder}/{name}"))
        return names

    async def _owners_that_died(self, worker: str, now: int) -> dict[str, tuple[str, str]]:
        """By word: workers that may own something and are dead, other than `worker`, each as `_dead` gives it."""
        dead = {}
        for folder in await self.backend.list("own"):
            owner = folder.removesuffix("/")
            if owner != heads.word(worker) and (found := await self._dead(owner, now)) is not None:
                dead[owner] = found
                await self.backend.prune(f"own/{owner}")  # where it has nothing any more
        return dead

    async def _take(
        self, worker: str, wanted: Sequence[tuple[Any, Head, bool]], dead: Mapping[str, tuple[str, str]]
    ) -> list[Claim]:
        """Claim each of these, as far as nobody else is faster."""
        removed: dict[str, bool] = {}
        for _, head, takeover in wanted:
            owner = head.columns.owner
            if takeover and owner is not None and owner not in removed:
                removed[owner] = await self._remove(owner, dead.get(heads.word(owner)))
        claims: list[Claim | None] = [None] * len(wanted)
        errors: list[StoreError] = []

        async def take(at: int) -> None:
            _, head, takeover = wanted[at]
            if head.columns.owner is not None and not removed[head.columns.owner]:
                return
            try:
                claims[at] = await self._claim(worker, head, takeover=takeover)
            except StoreError as error:
                errors.append(error)
            except (CorruptSnapshotError, UnsupportedStateError):
                return  # it was damaged a moment ago

        try:
            await _all(take, range(len(wanted)))
        except BaseException:
            # Nobody gets these now, and they are this worker's all the same.
            self._doubts.update((claim.stored.key, claim.stored.nonce) for claim in claims if claim is not None)
            raise
        taken = [claim for claim in claims if claim is not None]
        if errors and not taken:
            raise errors[0]
        return taken

    async def _claim(self, worker: str, seen: Head, *, takeover: bool) -> Claim | None:
        cell = await self._living(seen.key)
        if cell is None or cell.head.found != seen.found or cell.head.columns != seen.columns:
            return None
        draft = _Draft()
        columns = evolve(seen.columns, owner=worker, takeovers=seen.columns.takeovers + takeover)
        nonce = secrets.token_hex(16) + ("t" if takeover else "c")
        try:
            swapped = await self._swap(
                cell, evolve(cell.head, version=seen.version + 1, nonce=nonce, columns=columns), draft
            )
            if swapped is None:
                await self._discard(draft)
                return None
            self._know(swapped.head)
            if takeover:
                with contextlib.suppress(StoreError, CorruptSnapshotError, UnsupportedStateError):
                    await self._collect(swapped.head)
        except BaseException:
            self._doubts[seen.key] = nonce  # it may be this worker's without its knowing
            raise
        return Claim(swapped.head.stored, takeover)

    async def _collect(self, head: Head) -> None:
        """Remove objects that were written for a change that never came, or dropped and not removed.

        Their names tell the version that the change expected. One that expects this version or a later one may still
        win, so its objects stay. Mail stays as well: its names tell no version.
        """
        folder = heads.folder_of(head.key)
        await self.backend.prune(folder)
        names: dict[str, None] = {}
        for name in await self.backend.list(folder, head.life):
            kind, _, version = name.removeprefix(f"{head.life}-").partition("-")
            if kind in {"b", "l", "r"} and int(version.partition("-")[0], 16) < head.version:
                names[f"{folder}/{name}"] = None
        if not names:
            return
        needed = {head.older, *head.blobs.values()}
        parts, older = [head.parts, *head.past.values()], head.older
        while older:
            needed.add(older)
            past, older = await self._older(head, older)
            parts += past.values()
        for part in (part for parts_of_run in parts for part in parts_of_run):
            needed.update((part.name, *(await self._part(part, head))[1].values()))
        await self._tidy(name for name in names if name not in needed)

    async def _doubtful(self, worker: str) -> list[Claim]:
        """Claims that have landed although they failed, or although nobody waited for them."""
        claims = []
        doubts = dict(self._doubts)
        for key, nonce in doubts.items():
            try:
                cell = await self._living(key)
            except (CorruptSnapshotError, UnsupportedStateError):
                continue
            if cell is not None and (cell.head.nonce, cell.head.columns.owner) == (nonce, worker):
                claims.append(Claim(cell.head.stored, nonce.endswith("t")))
        # Another call may have looked at the same ones meanwhile; whoever is first has them.
        claims = [claim for claim in claims if self._doubts.get(claim.stored.key) == claim.stored.nonce]
        for key in doubts:
            self._doubts.pop(key, None)
        return claims

    async def _send_for_the_dead(self) -> None:
        """Send what its owner could not send any more."""
        for name in await self.backend.list("out"):
            head = await self._marked(f"out/{name}")
            if head is not None and (head.outbox or head.deleted):
                cell = await self._read(head.key)
                if cell is not None:
                    await self._settle(cell)

    async def _lease(self, worker: str) -> tuple[str, int, dict[str, Any]] | None:
        """(etag, end of the lease, all that is stored) of a worker, or None where it is not registered."""
        return await self._lease_at(f"worker/{heads.word(worker)}")

    async def _lease_at(self, name: str) -> tuple[str, int, dict[str, Any]] | None:
        found = await self.backend.get(name)
        if found is None:
            return None
        try:
            fields = json.loads(heads.open_object(name, found.data, f"a worker of {self.backend.place}"))
            return found.etag, int(fields["lease"]), fields
        except (CorruptSnapshotError, UnsupportedStateError, ValueError, KeyError):
            return found.etag, 0, {}  # whoever it was beats again, and is told that it was given up

    async def _dead(self, owner: str, now: int) -> tuple[str, str] | None:
        """None while the worker with that word lives; else the etag and the id of what is to be removed, or blanks."""
        lease = await self._lease_at(f"worker/{owner}")
        if lease is None:
            return ("", "")
        etag, end, fields = lease
        id_ = str(fields.get("id", ""))
        return (etag, id_) if end <= now or self.backend.has_died(id_) else None

    async def _remove(self, worker: str, found: tuple[str, str] | None) -> bool:
        """A dead worker is nobody any more; if it lives after all, its next beat tells it. False: it lives."""
        if found is None or not found[0]:
            return found is not None
        if not await self.backend.delete(f"worker/{heads.word(worker)}", found[0], sure=True):
            return False
        self.backend.unregister(worker, delete=True)
        return True

    @override
    async def beat(self, worker: str, ttl: float, info: Mapping[str, Any]) -> int | None:
        if worker in self._lost:
            return None
        name, now = f"worker/{heads.word(worker)}", self.now()
        etag, token = self._leases.get(worker, (None, secrets.token_hex(16)))
        if etag is None:
            await self._sweep()
            if await self.backend.get(name) is not None:
                self._lost.add(worker)
                return None  # somebody else goes by that id
            self.backend.register(worker)
        fields = {"id": worker, "lease": now + round(ttl * 1e9), "token": token, "info": dict(info)}
        data = heads.seal_object(name, to_json(fields))
        try:
            put = await self.backend.put(name, data, etag)
            if put is None and (lease := await self._lease(worker)) is not None and lease[2].get("token") == token:
                put = await self.backend.put(name, data, lease[0])  # an earlier beat has landed though it failed
        except StoreError:
            if etag is None:
                self._leases[worker] = ("", token)  # it may have landed
            raise
        if put is None and etag == "" and await self.backend.get(name) is None:
            put = await self.backend.put(name, data, None)
        if put is None:
            self._lost.add(worker)
            self._leases.pop(worker, None)
            self.backend.unregister(worker, delete=False)
            return None
        self._leases[worker] = (put, token)
        return now

    async def _sweep(self) -> None:
        """Remove the workers that have died and own nothing."""
        for name in await self.backend.list("worker"):
            lease = await self._lease_at(f"worker/{name}")
            id_ = "" if lease is None else str(lease[2].get("id", ""))
            if lease is not None and id_ and self.backend.has_died(id_):
                await self._remove(id_, (lease[0], id_))

    @override
    async def leave(self, worker: str) -> None:
        self._lost.add(worker)
        own = heads.word(worker)
        lease = await self._lease(worker)
        moved: list[Head] = []

        async def release(name: str) -> None:
            head = await self._marked(f"own/{own}/{name}")
            while head is not None and head.columns.owner == worker:
                released = await self._released(head.key, worker)
                if released is not None:
                    moved.append(released)
                    return
                cell = await self._living(head.key)
                head = None if cell is None else cell.head

        names = await self.backend.list(f"own/{own}")
        await _all(release, names)
        if lease is not None:
            await self.backend.delete(f"worker/{own}")
        self._leases.pop(worker, None)
        self.backend.unregister(worker, delete=True)
        await self.backend.prune(f"own/{own}")
        await self.backend.prune(f"mail/{own}")
        if moved:
            await self._hint(moved)

    async def _released(self, key: Key, worker: str) -> Head | None:
        cell = await self._living(key)
        if cell is None or cell.head.columns.owner != worker:
            return None
        head, columns = cell.head, cell.head.columns
        wake, now = columns.wake, self.now()
        if columns.status in _TIMED:
            wake = now if wake is None else min(wake, now)
        draft = _Draft()
        released = evolve(columns, owner=None, wake=wake)
        swapped = await self._swap(
            cell, evolve(head, version=head.version + 1, nonce=secrets.token_hex(16), columns=released), draft
        )
        if swapped is None:
            await self._discard(draft)
            return None
        return swapped.head

    # -- watching -----------------------------------------------------------------------------------------------------

    @override
    async def watch(self, key: Key | None, timeout: float) -> None:
        if key is None:
            await self._watchers.watch(None, timeout)
            return
        state = (await self._states([key])).get(key)
        if self._watchers.moved(key, state):
            self._watchers.saw(key, state)
        else:
            await self._watchers.watch(key, timeout)

    async def _states(self, keys: Sequence[Key]) -> dict[Key, Visible]:
        states = {}
        for key in keys:
            with contextlib.suppress(CorruptSnapshotError, UnsupportedStateError):
                cell = await self._read(key)
                if cell is not None and not cell.head.deleted:
                    states[key] = _visible(cell.head)
        return states

    @override
    async def serve(self) -> None:
        seen, pause = await self.backend.pulse_seen(), _TURN
        while True:
            await self._watchers.watched()
            await anyio.sleep(pause)
            pulse = await self.backend.pulse_seen()
            start = time.monotonic()
            if pulse is None or pulse != seen:
                seen = pulse
                self._watchers.foreign(await self._states(self._watchers.keys))
            # Looking must not become all that this process does; where nothing tells of a change, a second will do.
            pause = 1.0 if pulse is None else max(_TURN, 10 * (time.monotonic() - start))

    # -- listing ------------------------------------------------------------------------------------------------------

    async def _everything(self, tenant: str | None) -> AsyncGenerator[Head, None]:
        """All instances, or all of a tenant; a damaged one as far as it is known."""
        tenants = await self.backend.list("i") if tenant is None else [heads.word(tenant) + "/"]
        for one in tenants:
            for at, name in enumerate(await self.backend.list(f"i/{one.removesuffix('/')}")):
                if at % 20 == 19:  # noqa: PLR2004
                    await anyio.lowlevel.checkpoint()  # each look is made on the loop
                folder = f"i/{one}{name}".removesuffix("/")
                lost = Head(
                    Key(tenant or one.removesuffix("/"), name.removesuffix("/")), "", 0, "", 0, "", _DAMAGED, b""
                )
                try:
                    cell = await self._read_folder(folder, folder)
                except (CorruptSnapshotError, UnsupportedStateError):
                    yield lost
                    continue
                if cell is None:
                    if any(one.endswith("-born") for one in await self.backend.list(folder)):
                        yield lost
                elif not cell.head.deleted:
                    yield cell.head

    @override
    async def list(self, where: Filter, limit: int = 100, cursor: str | None = None) -> Page:
        after = check_page(limit, cursor)
        rows = await self._matching(where)
        if after is not None:
            rows = [row for row in rows if row[0] > (-after[0], after[1].encode())]
        page: builtins.list[Stored] = []
        for _, key in rows[: limit + 1]:
            try:
                cell = await self._read(key)
            except (CorruptSnapshotError, UnsupportedStateError):
                cell = None
            # What was deleted in between is shown once more, without its record.
            page.append(Stored(key, "", 0, "", _DAMAGED, b"") if cell is None else cell.head.stored)
        return Page(page[:limit], cursor_after(page, limit))

    @override
    async def count(self, where: Filter) -> int:
        return len(await self._matching(where))

    async def _matching(self, where: Filter) -> builtins.list[tuple[tuple[int, bytes], Key]]:
        """What a listing by `where` shows, newest first."""
        rows = []
        async with aclosing(self._everything(where.tenant)) as everything:
            async for head in everything:
                stored = head.stored
                if matches(where, stored):
                    rows.append((_newest_first(stored), stored.key))
        return sorted(rows, key=lambda row: row[0])


def _born(head: Head) -> str:
    return f"{heads.folder_of(head.key)}/{head.life}-born"


def _visible(head: Head) -> Visible:
    return (head.run, head.columns.status, len(head.letters))


def _newest_first(stored: Stored) -> tuple[int, bytes]:
    return (-stored.columns.created, stored.key.id.encode())


async def _all(work: Callable[[Any], Awaitable[None]], each: Iterable[Any]) -> None:
    """Do the work for each, several at once; raises the first error when all are done."""
    waiting = list(each)
    errors: list[Exception] = []

    async def some() -> None:
        while waiting:
            try:
                await work(waiting.pop(0))
            except Exception as error:  # noqa: BLE001  raised below, when the others are done
                errors.append(error)

    if len(waiting) < 2:  # noqa: PLR2004
        await some()
    else:
        async with anyio.create_task_group() as tasks:
            for _ in range(min(_AT_ONCE, len(waiting))):
                tasks.start_soon(some)
    if errors:
        raise errors[0]
