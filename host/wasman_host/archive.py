"""The archive of a run: what has left its log because a snapshot made it superfluous.

Log entries leave in chunks of a fixed number, so the place of each follows from its number, and each chunk is written
once: a blob that holds the entries as they were sealed, and the digest of the entry before them. Log and archive are
one chain. An entry is read from the log or from the archive, never from both: one commit moves it. Entry 0, which says
what the run was started with, stays in the log.

The stored form of a chunk is one line of JSON, then its entries one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from pydantic_core import from_json, to_json

from wasman_host.errors import CorruptSnapshotError, Failure, UnsupportedStateError
from wasman_host.oplog import EMPTY_CHAIN, Delivery, Entry, open_entries
from wasman_host.seal import Address, digest_of, seal, unseal
from wasman_host.store.protocol import Blob, Key, Store

if TYPE_CHECKING:
    from wasman_host.oplog import Tail
    from wasman_host.record import ArchiveReference

__all__ = ["Archive", "Chunk"]

_VERSION = 1
_EXPIRE = 2  # chunks that are dropped where one leaves the log: also where all were kept before, there are ever fewer


def _name(entries: range) -> str:
    return f"archive-{entries.start // len(entries)}"


@frozen
class Chunk:
    """Entries that leave the log together, or have left it.

    Attributes:
        entries: Their numbers; 0 is none of them, though it counts.
        after: Digest of the entry before them.
        rows: Number and sealed bytes of each.
        opened: What they say.
        stored: Bytes that the archive has of them, payloads included; 0 where it has nothing yet.
    """

    entries: range
    after: bytes
    rows: Sequence[tuple[int, bytes]] = field(repr=False)
    opened: Sequence[Entry] = field(repr=False)
    stored: int = 0

    @property
    def name(self) -> str:
        """The name of its blob."""
        return _name(self.entries)

    @property
    def chain(self) -> bytes:
        """Digest of the last entry."""
        return digest_of(self.rows[-1][1])

    @property
    def payloads(self) -> Mapping[str, int]:
        """Blobs of the entries' payloads, and the bytes that each takes."""
        return {
            delivery.payload.blob: delivery.payload.sealed
            for entry in self.opened
            for delivery in entry.deliveries
            if delivery.payload is not None and delivery.payload.blob
        }

    def blob(self, key: Key, run: str, *, deflate: bool) -> Blob:
        """What the archive keeps."""
        head = {
            "v": _VERSION,
            "after": self.after.hex(),
            "entries": [(n, len(sealed)) for n, sealed in self.rows],
        }
        data = b"".join((to_json(head), b"\n", *(sealed for _, sealed in self.rows)))
        return Blob(self.name, seal(_address(key, run, self.name), data, deflate=deflate))


def _address(key: Key, run: str, name: str) -> Address:
    return Address(key.tenant, key.id, run, "archive", name)


def _decoded(data: bytes, place: str) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Digest of the entry before a chunk, and its rows."""
    line, _, bodies = data.partition(b"\n")
    try:
        fields = from_json(line)
        if fields["v"] != _VERSION:
            message = f"{place} was written by a newer wasman (version {fields['v']}); use that one"
            raise UnsupportedStateError(message)
        rows, at = [], 0
        for n, size in fields["entries"]:
            rows.append((n, bodies[at : at + size]))
            at += size
        after = bytes.fromhex(fields["after"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"{place} cannot be read ({error!r}); restore it from a backup"
        raise CorruptSnapshotError(message) from error
    if at != len(bodies):
        message = f"{place} holds {len(bodies)} bytes of entries, not {at}; restore it from a backup"
        raise CorruptSnapshotError(message)
    return after, rows


@frozen
class Archive:
    """Reads the archive of one run, and the log as far as it goes together with it.

    Attributes:
        store: Where they are.
        key: Whose.
        run: Of which run.
    """

    store: Store
    key: Key
    run: str

    async def leaving(self, entries: range, archive: ArchiveReference | None) -> Chunk:
        """The entries that leave the log next, read and checked.

        Raises:
            CorruptSnapshotError: They are not those that belong behind the archive.
            UnsupportedStateError: Another wasman wrote one.
        """
        rows = await self.store.read(self.run, entries.start, entries.stop)
        if [n for n, _ in rows] != list(entries):
            message = (
                f"the log of run {self.run} of {self.key} should hold entries {entries.start} to {entries.stop - 1} "
                f"and holds {len(rows)} of them; restore it from a backup, then unblock"
            )
            raise CorruptSnapshotError(message)
        after = EMPTY_CHAIN if archive is None else bytes.fromhex(archive.chain)
        opened = open_entries(self.key.tenant, self.key.id, self.run, rows, after)
        if entries.start == 0:
            after = digest_of(rows[0][1])
            del rows[0], opened[0]
        return Chunk(entries, after, rows, opened)

    async def expired(self, chunk: Chunk, archive: ArchiveReference | None, keeps: int | None) -> list[Chunk]:
        """What is no longer to be kept once `chunk` has left the log; where that is much, the oldest of it.

        Args:
            chunk: What leaves.
            archive: What has left before.
            keeps: How many entries are kept, None for all.
        """
        if keeps is None or archive is None:
            return []
        stop = min(chunk.entries.start, chunk.entries.stop - keeps)
        starts = range(archive.start, stop - archive.chunk + 1, archive.chunk)
        return [await self.chunk(range(start, start + archive.chunk)) for start in starts[:_EXPIRE]]

    async def chunk(self, entries: range) -> Chunk:
        """A piece of the archive.

        Raises:
            CorruptSnapshotError: It is missing or damaged.
            UnsupportedStateError: Another wasman wrote it.
        """
        address = _address(self.key, self.run, _name(entries))
        sealed = await self.store.blob(self.run, address.position)
        after, rows = _decoded(unseal(address, sealed), str(address))
        if [n for n, _ in rows] != list(entries)[entries.start == 0 :]:
            message = f"{address} does not hold the entries {entries.start} to {entries.stop - 1}; restore it"
            raise CorruptSnapshotError(message)
        opened = open_entries(self.key.tenant, self.key.id, self.run, rows, after)
        chunk = Chunk(entries, after, rows, opened)
        return Chunk(entries, after, rows, opened, len(sealed or b"") + sum(chunk.payloads.values()))

    async def history(self, tail: Tail, archive: ArchiveReference | None) -> list[Entry]:
        """All entries up to `tail`, those of the archive and those of the log, checked as one chain.

        In the place of those that were dropped there is one entry, with a delivery of kind "dropped".

        Raises:
            CorruptSnapshotError: An entry is missing, damaged, or not the one that belongs there.
            UnsupportedStateError: Another wasman wrote one.
        """
        if archive is None:
            entries, chain = await self._log(range(tail.entries), EMPTY_CHAIN)
        else:
            entries, chain = await self._log(range(1), EMPTY_CHAIN)
            if archive.start > 0:
                entries.append(_dropped(entries[0], archive))
            for start in range(archive.start, archive.stop, archive.chunk):
                chunk = await self.chunk(range(start, start + archive.chunk))
                if chunk.after != chain and start != archive.start > 0:
                    raise self._broken(start)
                entries += chunk.opened
                chain = chunk.chain
            if chain.hex() != archive.chain and archive.start < archive.stop:
                raise self._broken(archive.stop)
            more, chain = await self._log(range(archive.stop, tail.entries), bytes.fromhex(archive.chain))
            entries += more
        if chain != tail.chain:
            raise self._broken(tail.entries)
        return entries

    async def _log(self, entries: range, after: bytes) -> tuple[list[Entry], bytes]:
        """Entries of the log, behind the one with the digest `after`, and the digest of the last of them."""
        rows = await self.store.read(self.run, entries.start, entries.stop)
        if [n for n, _ in rows] != list(entries):
            message = (
                f"the log of run {self.run} of {self.key} holds {len(rows)} entries from {entries.start} on, not the "
                f"{len(entries)} that its record was written over; restore it from a backup, then unblock"
            )
            raise CorruptSnapshotError(message)
        opened = open_entries(self.key.tenant, self.key.id, self.run, rows, after)
        return opened, digest_of(rows[-1][1]) if rows else after

    def _broken(self, n: int) -> CorruptSnapshotError:
        return CorruptSnapshotError(
            f"the log of run {self.run} of {self.key} is not the one that its record was written over: entry {n - 1} "
            f"is another one; restore it from a backup, then unblock"
        )


def _dropped(first: Entry, archive: ArchiveReference) -> Entry:
    words = f"entries 1 to {archive.start - 1} were not kept: the worker's retention of archives has dropped them"
    failure = Failure("Dropped", words)
    return Entry(1, first.time, first.operations, first.digest, (), (Delivery("dropped", failure=failure),))
